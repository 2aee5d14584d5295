-- Which rows name an artifact.
CREATE INDEX archives_by_artifact ON archives (artifact_digest) WHERE artifact_digest IS NOT NULL;
CREATE INDEX tasks_by_artifact ON tasks (artifact_digest) WHERE artifact_digest IS NOT NULL;
