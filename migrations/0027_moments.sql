-- When a moment was decided about: who waits behind it has its own time from then on.
ALTER TABLE schedule_runs ADD COLUMN decided_at BIGINT;
