ALTER TABLE executions ADD COLUMN answer TEXT COLLATE "C" CHECK (answer IN ('retry', 'done', 'give_up'));
ALTER TABLE executions ADD COLUMN answered_by TEXT COLLATE "C";
ALTER TABLE executions ADD COLUMN answered_at BIGINT;
ALTER TABLE executions ADD COLUMN answer_reason TEXT;

UPDATE executions SET answer = 'give_up', answer_reason = 'lost before anybody was asked' WHERE state = 'lost';

CREATE INDEX executions_unanswered ON executions (instance_id) WHERE state = 'lost' AND answer IS NULL;
