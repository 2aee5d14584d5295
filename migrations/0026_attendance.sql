-- When a server that could act was last there: one row for the installation. 0 before any was.
CREATE TABLE attendance (
    one BIGINT PRIMARY KEY CHECK (one = 1),
    seen_at BIGINT NOT NULL
);

INSERT INTO attendance (one, seen_at) VALUES (1, 0);
