-- When an agent was first heard in another boot of its host than before.
ALTER TABLE agents ADD COLUMN restarted_at BIGINT;
