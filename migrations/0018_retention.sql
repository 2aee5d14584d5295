-- What retention has removed of tasks that are over, and when.
ALTER TABLE tasks ADD COLUMN output_removed_at BIGINT;
ALTER TABLE tasks ADD COLUMN artifact_removed_at BIGINT;

CREATE INDEX tasks_with_output ON tasks (finished_at, id) WHERE phase = 'over' AND output_removed_at IS NULL;
CREATE INDEX tasks_by_origin ON tasks (origin_task_id) WHERE origin_task_id IS NOT NULL;
