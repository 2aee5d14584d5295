-- Seconds that a hook may take by itself; none when only the task's time counts.
ALTER TABLE deploy_hooks ADD COLUMN timeout_s BIGINT;
ALTER TABLE deploy_template_hooks ADD COLUMN timeout_s BIGINT;
