-- What templates see as `vars`. object_id is that of the application, host or instance; 0 for the organisation.
CREATE TABLE variables (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    scope TEXT NOT NULL CHECK (scope IN ('organisation', 'application', 'host', 'instance')),
    object_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (organisation_id, scope, object_id, name)
);

-- Sealed values. application_id is 0 for those of the organisation.
CREATE TABLE secrets (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    application_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    sealed TEXT NOT NULL,
    changed_at BIGINT NOT NULL,
    PRIMARY KEY (organisation_id, application_id, name)
);
