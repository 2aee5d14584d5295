-- The sub-task that a deploy task carries, what its approval is bound to, whether it starts by itself, and why it is
-- where it is when nobody put it there.
ALTER TABLE deploy_tasks ADD COLUMN plan JSONB;
ALTER TABLE deploy_tasks ADD COLUMN approval JSONB;
ALTER TABLE deploy_tasks ADD COLUMN auto_start BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE deploy_tasks ADD COLUMN status_reason TEXT;

CREATE INDEX deploy_tasks_starting ON deploy_tasks (planned_exec_at) WHERE auto_start AND status = 'approved';
