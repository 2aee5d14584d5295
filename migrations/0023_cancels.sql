-- Why a person had this one end by itself; it is told to its agent until it is over.
ALTER TABLE executions ADD COLUMN cancel_reason TEXT;
