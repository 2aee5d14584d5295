-- Tasks that go after others: which, and whether one still waits for them. What is waited for may be deleted; then it
-- never ended well.
CREATE TABLE task_requirements (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    task_id BIGINT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    required_id BIGINT NOT NULL,
    PRIMARY KEY (task_id, required_id)
);

CREATE INDEX task_requirements_by_required ON task_requirements (required_id);

ALTER TABLE tasks ADD COLUMN waits BOOLEAN NOT NULL DEFAULT FALSE;
