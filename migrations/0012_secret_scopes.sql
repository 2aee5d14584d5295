-- Secrets of hosts and instances beside those of organisation and application. object_id as for variables.
CREATE TABLE secrets_next (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    scope TEXT NOT NULL CHECK (scope IN ('organisation', 'application', 'host', 'instance')),
    object_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    sealed TEXT NOT NULL,
    changed_at BIGINT NOT NULL,
    PRIMARY KEY (organisation_id, scope, object_id, name)
);

INSERT INTO secrets_next (organisation_id, scope, object_id, name, sealed, changed_at)
SELECT organisation_id, CASE application_id WHEN 0 THEN 'organisation' ELSE 'application' END, application_id, name,
    sealed, changed_at
FROM secrets;

DROP TABLE secrets;
ALTER TABLE secrets_next RENAME TO secrets;
