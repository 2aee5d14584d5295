-- How a task goes from batch to batch, who holds it, why it was stopped, and which task it follows.
ALTER TABLE tasks ADD COLUMN rollout JSONB;
ALTER TABLE tasks ADD COLUMN batch_admitted BIGINT NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN promoted BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE tasks ADD COLUMN held_by TEXT;
ALTER TABLE tasks ADD COLUMN held_at BIGINT;
ALTER TABLE tasks ADD COLUMN stop_reason TEXT;
ALTER TABLE tasks ADD COLUMN cancelled BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE tasks ADD COLUMN origin TEXT CHECK (origin IN ('retry', 'auto_revert'));
ALTER TABLE tasks ADD COLUMN origin_task_id BIGINT;

-- The batch of an instance, whether a person took it out, and what takes it back.
ALTER TABLE executions ADD COLUMN batch BIGINT NOT NULL DEFAULT 0;
ALTER TABLE executions ADD COLUMN excluded BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE executions ADD COLUMN revert_entry TEXT;

CREATE INDEX executions_by_instance ON executions (instance_id, id);
