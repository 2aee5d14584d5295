-- What agents say of the processes of instances. A row counts as long as the session that it was said in is open.
CREATE TABLE instance_states (
    instance_id BIGINT PRIMARY KEY REFERENCES instances (id) ON DELETE CASCADE,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    agent_id TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'stopped', 'crashed', 'unknown')),
    pid BIGINT,
    since_at BIGINT,
    reason TEXT,
    observed_at BIGINT NOT NULL
);
