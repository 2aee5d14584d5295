-- The order in which tasks took what they change, and when; none for one that waits in the queue until that is free.
ALTER TABLE tasks ADD COLUMN priority BIGINT NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN taken BIGINT;
ALTER TABLE tasks ADD COLUMN taken_at BIGINT;

UPDATE tasks SET taken = id, taken_at = created_at;

CREATE INDEX tasks_by_turn ON tasks (taken);
CREATE INDEX tasks_in_queue ON tasks (id) WHERE taken IS NULL AND phase <> 'over';

-- What a person took a lock away from, and what its host said of it afterwards.
ALTER TABLE executions ADD COLUMN broken BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE executions ADD COLUMN host_said TEXT;
