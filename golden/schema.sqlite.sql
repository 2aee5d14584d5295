CREATE TABLE agents (
    id TEXT PRIMARY KEY,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    host_id BIGINT NOT NULL UNIQUE REFERENCES hosts (id) ON DELETE CASCADE,
    public_key TEXT NOT NULL,
    version TEXT,
    boot_id TEXT,
    abilities TEXT,
    connected BOOLEAN NOT NULL,
    epoch BIGINT NOT NULL,
    last_seen_at BIGINT,
    clock_skew_ms BIGINT,
    enrolled_at BIGINT NOT NULL
, restarted_at BIGINT);

CREATE TABLE application_persons (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    application_id BIGINT NOT NULL REFERENCES applications (id) ON DELETE CASCADE,
    user_id BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    capacity TEXT NOT NULL CHECK (capacity IN ('dev', 'ops', 'qa', 'pm')),
    PRIMARY KEY (application_id, user_id)
);

CREATE INDEX application_persons_by_user ON application_persons (user_id);

CREATE TABLE application_requirements (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    application_id BIGINT NOT NULL REFERENCES applications (id) ON DELETE CASCADE,
    required_id BIGINT NOT NULL REFERENCES applications (id) ON DELETE CASCADE,
    PRIMARY KEY (application_id, required_id)
);

CREATE INDEX application_requirements_by_required ON application_requirements (required_id);

CREATE TABLE application_trees (
    organisation_id BIGINT PRIMARY KEY REFERENCES organisations (id),
    revision BIGINT NOT NULL
);

CREATE TABLE applications (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    name TEXT NOT NULL,
    full_name TEXT NOT NULL,
    parent_id BIGINT REFERENCES applications (id),
    production_id BIGINT,
    description TEXT NOT NULL,
    application_type TEXT NOT NULL,
    run_user TEXT NOT NULL,
    directory TEXT NOT NULL,
    startup_cmd TEXT NOT NULL,
    stop_cmd TEXT NOT NULL,
    stdout_path TEXT NOT NULL,
    stderr_path TEXT NOT NULL,
    pid_path TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (organisation_id, full_name)
);

CREATE INDEX applications_by_parent ON applications (parent_id);

CREATE TABLE archives (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    application_id BIGINT NOT NULL REFERENCES applications (id) ON DELETE CASCADE,
    version TEXT NOT NULL,
    name TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('receiving', 'checking', 'ready', 'refused')),
    reason TEXT,
    size_bytes BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    format TEXT CHECK (format IN ('tar', 'tar.gz', 'tar.zst', 'zip')),
    artifact_digest TEXT,
    artifact_bytes BIGINT,
    files BIGINT,
    creator TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    touched_at BIGINT NOT NULL,
    UNIQUE (application_id, version)
);

CREATE INDEX archives_at_work ON archives (state) WHERE state IN ('receiving', 'checking');

CREATE INDEX archives_by_artifact ON archives (artifact_digest) WHERE artifact_digest IS NOT NULL;

CREATE TABLE attendance (
    one BIGINT PRIMARY KEY CHECK (one = 1),
    seen_at BIGINT NOT NULL
);

CREATE TABLE audit_entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    list TEXT NOT NULL CHECK (list IN ('general', 'host', 'application', 'dns', 'module_right', 'resource_right')),
    action TEXT NOT NULL,
    object_type TEXT NOT NULL,
    object_id BIGINT,
    object_name TEXT NOT NULL,
    detail TEXT NOT NULL,
    right_name TEXT,
    target_type TEXT,
    target_name TEXT,
    operator_id BIGINT,
    operator TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    request_id TEXT
);

CREATE INDEX audit_entries_by_list ON audit_entries (organisation_id, list, id);

CREATE TABLE auth_tokens (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    user_id BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    token_hash TEXT NOT NULL UNIQUE,
    created_at BIGINT NOT NULL
);

CREATE INDEX auth_tokens_by_user ON auth_tokens (user_id);

CREATE TABLE deploy_hooks (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    settings_id BIGINT NOT NULL REFERENCES deploy_settings (id) ON DELETE CASCADE,
    hook TEXT NOT NULL CHECK (hook IN ('global_pre_exec', 'pre_exec', 'post_exec', 'global_post_exec')),
    script_id BIGINT NOT NULL REFERENCES deploy_scripts (id),
    running_user TEXT, timeout_s BIGINT,
    PRIMARY KEY (settings_id, hook)
);

CREATE INDEX deploy_hooks_by_script ON deploy_hooks (script_id);

CREATE TABLE deploy_scripts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    name TEXT NOT NULL,
    language TEXT NOT NULL CHECK (language IN ('bash', 'python')),
    content TEXT NOT NULL,
    template_engine TEXT NOT NULL CHECK (template_engine IN ('jinja')),
    creator TEXT NOT NULL,
    created_at BIGINT NOT NULL, parameters TEXT, running_user TEXT,
    UNIQUE (organisation_id, name)
);

CREATE TABLE deploy_settings (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    application_id BIGINT NOT NULL UNIQUE REFERENCES applications (id) ON DELETE CASCADE,
    enabled BOOLEAN NOT NULL,
    creator TEXT,
    repository_url TEXT,
    repository_branch TEXT,
    deploy_path TEXT,
    running_user TEXT,
    four_eyes BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL
, credential_id BIGINT REFERENCES repository_credentials (id), template_id BIGINT REFERENCES deploy_templates (id), repository_host_key TEXT, repository_ca_certificate TEXT, timeout_s BIGINT, keep_backups BIGINT, shared_paths TEXT, repository_type TEXT CHECK (repository_type IN ('GIT', 'FTP', 'ARCHIVE')));

CREATE INDEX deploy_settings_by_credential ON deploy_settings (credential_id) WHERE credential_id IS NOT NULL;

CREATE INDEX deploy_settings_by_template ON deploy_settings (template_id) WHERE template_id IS NOT NULL;

CREATE TABLE deploy_task_rights (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    deploy_task_id BIGINT NOT NULL REFERENCES deploy_tasks (id) ON DELETE CASCADE,
    user_id BIGINT NOT NULL,
    right_name TEXT NOT NULL,
    PRIMARY KEY (deploy_task_id, user_id, right_name)
);

CREATE TABLE deploy_tasks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    application_id BIGINT NOT NULL REFERENCES applications (id) ON DELETE CASCADE,
    version TEXT NOT NULL,
    description TEXT NOT NULL,
    level TEXT NOT NULL CHECK (level IN ('S', 'A', 'B', 'C', 'I')),
    package_source TEXT NOT NULL,
    planned_exec_at BIGINT NOT NULL,
    upgrade_checklist TEXT,
    upgrade_steps TEXT,
    rollback_steps TEXT,
    creator_id BIGINT NOT NULL,
    creator TEXT NOT NULL,
    editor_id BIGINT,
    assignee_id BIGINT,
    reviewer TEXT,
    status TEXT NOT NULL CHECK (status IN ('wait_review', 'approved', 'rejected', 'running', 'closed')),
    created_at BIGINT NOT NULL,
    reviewed_at BIGINT,
    started_at BIGINT,
    closed_at BIGINT
, plan TEXT, approval TEXT, auto_start BOOLEAN NOT NULL DEFAULT FALSE, status_reason TEXT);

CREATE INDEX deploy_tasks_by_application ON deploy_tasks (application_id, id);

CREATE INDEX deploy_tasks_starting ON deploy_tasks (planned_exec_at) WHERE auto_start AND status = 'approved';

CREATE TABLE deploy_template_hooks (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    template_id BIGINT NOT NULL REFERENCES deploy_templates (id) ON DELETE CASCADE,
    hook TEXT NOT NULL CHECK (hook IN ('global_pre_exec', 'pre_exec', 'post_exec', 'global_post_exec')),
    script_id BIGINT NOT NULL REFERENCES deploy_scripts (id),
    running_user TEXT, timeout_s BIGINT,
    PRIMARY KEY (template_id, hook)
);

CREATE INDEX deploy_template_hooks_by_script ON deploy_template_hooks (script_id);

CREATE TABLE deploy_templates (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    name TEXT NOT NULL,
    enabled BOOLEAN NOT NULL,
    creator TEXT NOT NULL,
    repository_url TEXT,
    repository_branch TEXT,
    repository_host_key TEXT,
    repository_ca_certificate TEXT,
    deploy_path TEXT,
    timeout_s BIGINT,
    keep_backups BIGINT,
    running_user TEXT,
    created_at BIGINT NOT NULL
, credential_id BIGINT REFERENCES repository_credentials (id), shared_paths TEXT, repository_type TEXT CHECK (repository_type IN ('GIT', 'FTP', 'ARCHIVE')));

CREATE INDEX deploy_templates_by_credential ON deploy_templates (credential_id) WHERE credential_id IS NOT NULL;

CREATE INDEX deploy_templates_by_organisation ON deploy_templates (organisation_id, id);

CREATE TABLE environments (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (organisation_id, name)
);

CREATE TABLE "executions" (
    id TEXT PRIMARY KEY,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    task_id BIGINT NOT NULL REFERENCES "tasks" (id) ON DELETE CASCADE,
    ordinal BIGINT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('global_pre', 'instance', 'global_post')),
    instance_id BIGINT,
    host_id BIGINT NOT NULL,
    host_name TEXT NOT NULL,
    previous_status TEXT,
    attempt BIGINT NOT NULL,
    state TEXT NOT NULL CHECK (state IN
        ('queued', 'dispatched', 'running', 'succeeded', 'failed', 'timed_out', 'cancelled', 'lost')),
    epoch BIGINT,
    entry TEXT NOT NULL,
    entry_digest TEXT NOT NULL,
    reason TEXT,
    steps TEXT,
    processes TEXT,
    output_truncated BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    dispatched_at BIGINT,
    started_at BIGINT,
    finished_at BIGINT,
    batch BIGINT NOT NULL DEFAULT 0,
    excluded BOOLEAN NOT NULL DEFAULT FALSE,
    revert_entry TEXT,
    answer TEXT CHECK (answer IN ('retry', 'done', 'give_up')),
    answered_by TEXT,
    answered_at BIGINT,
    answer_reason TEXT,
    broken BOOLEAN NOT NULL DEFAULT FALSE,
    host_said TEXT, cancel_reason TEXT,
    UNIQUE (task_id, ordinal)
);

CREATE INDEX executions_at_work ON executions (host_id, state) WHERE state IN ('queued', 'dispatched', 'running');

CREATE INDEX executions_by_instance ON executions (instance_id, id);

CREATE INDEX executions_lost_on_host ON executions (host_id) WHERE state = 'lost' AND answer IS NULL;

CREATE INDEX executions_unanswered ON executions (instance_id) WHERE state = 'lost' AND answer IS NULL;

CREATE TABLE host_labels (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    host_id BIGINT NOT NULL REFERENCES hosts (id) ON DELETE CASCADE,
    label TEXT NOT NULL,
    PRIMARY KEY (host_id, label)
);

CREATE INDEX host_labels_by_label ON host_labels (organisation_id, label);

CREATE TABLE hosts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    name TEXT NOT NULL,
    host_type TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('attached', 'inited', 'raw', 'offline')),
    os_status TEXT NOT NULL CHECK (os_status IN ('stopped', 'running', 'restarting')),
    os_type TEXT NOT NULL,
    cpu BIGINT NOT NULL,
    memory BIGINT NOT NULL,
    location TEXT NOT NULL,
    description TEXT NOT NULL,
    created_at BIGINT NOT NULL, environment_id BIGINT REFERENCES environments (id),
    UNIQUE (organisation_id, name)
);

CREATE INDEX hosts_by_environment ON hosts (environment_id) WHERE environment_id IS NOT NULL;

CREATE TABLE idempotency_keys (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    user_id BIGINT NOT NULL,
    key TEXT NOT NULL,
    request TEXT NOT NULL,
    answer TEXT,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (organisation_id, user_id, key)
);

CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);

CREATE TABLE instance_releases (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    instance_id BIGINT NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    release_name TEXT NOT NULL,
    version TEXT NOT NULL,
    artifact_digest TEXT NOT NULL,
    tree_digest TEXT NOT NULL,
    is_current BOOLEAN NOT NULL,
    installed_at BIGINT NOT NULL,
    PRIMARY KEY (instance_id, release_name)
);

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

CREATE TABLE instances (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    application_id BIGINT NOT NULL REFERENCES applications (id),
    host_id BIGINT NOT NULL REFERENCES hosts (id),
    status TEXT NOT NULL CHECK (status IN ('restarting', 'running', 'stopped', 'updating', 'reverting')),
    version TEXT,
    created_at BIGINT NOT NULL,
    UNIQUE (application_id, host_id)
);

CREATE INDEX instances_by_host ON instances (host_id);

CREATE TABLE ip_addresses (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    host_id BIGINT NOT NULL REFERENCES hosts (id) ON DELETE CASCADE,
    owner TEXT,
    is_virtual BOOLEAN NOT NULL,
    addr_type TEXT NOT NULL CHECK (addr_type IN ('PRIVATE', 'PUBLIC')),
    network TEXT NOT NULL,
    netmask TEXT NOT NULL,
    address TEXT NOT NULL
);

CREATE INDEX ip_addresses_by_host ON ip_addresses (host_id);

CREATE TABLE join_tokens (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    token_hash TEXT NOT NULL UNIQUE,
    host_name TEXT,
    uses_left BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE module_rights (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    subject_type TEXT NOT NULL CHECK (subject_type IN ('user', 'role')),
    subject_id BIGINT NOT NULL,
    module TEXT NOT NULL,
    right_name TEXT NOT NULL,
    PRIMARY KEY (subject_type, subject_id, module, right_name)
);

CREATE TABLE organisations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    created_at BIGINT NOT NULL
);

CREATE TABLE repository_credentials (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    credential_type TEXT NOT NULL CHECK (credential_type IN ('PASSWORD', 'SSH_PRIVATE_KEY')),
    name TEXT,
    username TEXT NOT NULL,
    sealed_secret TEXT NOT NULL,
    settings_id BIGINT REFERENCES deploy_settings (id) ON DELETE CASCADE,
    template_id BIGINT REFERENCES deploy_templates (id) ON DELETE CASCADE,
    creator TEXT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE INDEX repository_credentials_by_organisation ON repository_credentials (organisation_id, id);

CREATE INDEX repository_credentials_by_settings ON repository_credentials (settings_id) WHERE settings_id IS NOT NULL;

CREATE INDEX repository_credentials_by_template ON repository_credentials (template_id) WHERE template_id IS NOT NULL;

CREATE TABLE resource_rights (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    subject_type TEXT NOT NULL CHECK (subject_type IN ('user', 'role')),
    subject_id BIGINT NOT NULL,
    resource_type TEXT NOT NULL CHECK (resource_type IN ('application', 'host')),
    resource_id BIGINT NOT NULL,
    right_name TEXT NOT NULL,
    PRIMARY KEY (subject_type, subject_id, resource_type, resource_id, right_name)
);

CREATE INDEX resource_rights_by_resource ON resource_rights (resource_type, resource_id);

CREATE TABLE role_users (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    role_id BIGINT NOT NULL REFERENCES roles (id) ON DELETE CASCADE,
    user_id BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    PRIMARY KEY (role_id, user_id)
);

CREATE INDEX role_users_by_user ON role_users (user_id);

CREATE TABLE roles (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    name TEXT NOT NULL,
    creator TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    UNIQUE (organisation_id, name)
);

CREATE VIEW schedule_hosts AS
SELECT s.organisation_id, s.schedule_id, h.id AS host_id FROM schedule_targets s
JOIN hosts h ON h.organisation_id = s.organisation_id AND h.id = s.target_id
WHERE s.kind = 'host'
UNION ALL
SELECT s.organisation_id, s.schedule_id, h.id AS host_id FROM schedule_targets s
JOIN hosts h ON h.organisation_id = s.organisation_id AND h.name = s.target
WHERE s.kind = 'host'
UNION ALL
SELECT s.organisation_id, s.schedule_id, i.host_id FROM schedule_targets s
JOIN applications a ON a.organisation_id = s.organisation_id AND a.id = s.target_id
JOIN instances i ON i.application_id = a.id
WHERE s.kind = 'application'
UNION ALL
SELECT s.organisation_id, s.schedule_id, i.host_id FROM schedule_targets s
JOIN applications a ON a.organisation_id = s.organisation_id AND a.full_name = s.target
JOIN instances i ON i.application_id = a.id
WHERE s.kind = 'application'
UNION ALL
SELECT s.organisation_id, s.schedule_id, l.host_id FROM schedule_targets s
JOIN host_labels l ON l.organisation_id = s.organisation_id AND l.label = s.target
WHERE s.kind = 'label';

CREATE TABLE "schedule_runs" (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    schedule_id BIGINT NOT NULL REFERENCES "schedules" (id) ON DELETE CASCADE,
    moment BIGINT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'started', 'skipped', 'missed', 'failed')),
    asked_by_id BIGINT,
    asked_by TEXT,
    task_id BIGINT REFERENCES tasks (id) ON DELETE SET NULL,
    reason TEXT,
    created_at BIGINT NOT NULL, decided_at BIGINT,
    PRIMARY KEY (schedule_id, moment)
);

CREATE INDEX schedule_runs_by_task ON schedule_runs (task_id) WHERE task_id IS NOT NULL;

CREATE INDEX schedule_runs_waiting ON schedule_runs (schedule_id, moment) WHERE state = 'waiting';

CREATE TABLE schedule_targets (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    schedule_id BIGINT NOT NULL REFERENCES schedules (id) ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('host', 'application', 'label')),
    target_id BIGINT,
    target TEXT
);

CREATE INDEX schedule_targets_by_schedule ON schedule_targets (schedule_id);

CREATE TABLE "schedules" (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    application_id BIGINT REFERENCES applications (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    what TEXT NOT NULL,
    cron TEXT NOT NULL,
    zone TEXT NOT NULL,
    missed TEXT NOT NULL CHECK (missed IN ('skip', 'once', 'all')),
    missed_max BIGINT NOT NULL,
    overlap TEXT NOT NULL CHECK (overlap IN ('skip', 'queue', 'cancel_old')),
    if_busy TEXT NOT NULL CHECK (if_busy IN ('refuse', 'wait')),
    jitter_s BIGINT NOT NULL,
    owner_id BIGINT NOT NULL,
    owner TEXT NOT NULL,
    paused_by TEXT,
    paused_at BIGINT,
    next_moment BIGINT,
    next_at BIGINT,
    created_at BIGINT NOT NULL,
    UNIQUE (organisation_id, name)
);

CREATE INDEX schedules_by_application ON schedules (application_id);

CREATE INDEX schedules_due ON schedules (next_at) WHERE paused_by IS NULL;

CREATE TABLE schema_migrations (name TEXT PRIMARY KEY, digest TEXT NOT NULL, applied_at BIGINT NOT NULL);

CREATE TABLE "secrets" (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    scope TEXT NOT NULL CHECK (scope IN ('organisation', 'application', 'environment', 'host', 'instance')),
    object_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    sealed TEXT NOT NULL,
    changed_at BIGINT NOT NULL,
    PRIMARY KEY (organisation_id, scope, object_id, name)
);

CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    user_id BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    token_hash TEXT NOT NULL UNIQUE,
    csrf_hash TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE INDEX sessions_by_end ON sessions (expires_at);

CREATE INDEX sessions_by_user ON sessions (user_id);

CREATE TABLE sign_in_failures (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    subject TEXT NOT NULL,
    failures BIGINT NOT NULL,
    blocked_until BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    PRIMARY KEY (organisation_id, subject)
);

CREATE INDEX sign_in_failures_by_age ON sign_in_failures (organisation_id, last_at);

CREATE TABLE "task_requirements" (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    task_id BIGINT NOT NULL REFERENCES "tasks" (id) ON DELETE CASCADE,
    required_id BIGINT NOT NULL,
    PRIMARY KEY (task_id, required_id)
);

CREATE INDEX task_requirements_by_required ON task_requirements (required_id);

CREATE TABLE "tasks" (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    deploy_task_id BIGINT REFERENCES deploy_tasks (id) ON DELETE CASCADE,
    application_id BIGINT REFERENCES applications (id) ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('upgrade', 'revert', 'start', 'stop', 'restart', 'script')),
    channel TEXT NOT NULL UNIQUE,
    version TEXT NOT NULL,
    update_source TEXT,
    timeout_s BIGINT NOT NULL,
    keep_backups BIGINT NOT NULL,
    phase TEXT NOT NULL CHECK (phase IN ('preparing', 'global_pre', 'instances', 'global_post', 'over')),
    outcome TEXT CHECK (outcome IN ('finished', 'failed')),
    reason TEXT,
    source TEXT,
    resolved_commit TEXT,
    artifact_digest TEXT,
    plan_digest TEXT,
    creator TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    deadline_at BIGINT NOT NULL,
    finished_at BIGINT,
    rollout TEXT,
    batch_admitted BIGINT NOT NULL DEFAULT 0,
    promoted BOOLEAN NOT NULL DEFAULT FALSE,
    held_by TEXT,
    held_at BIGINT,
    stop_reason TEXT,
    cancelled BOOLEAN NOT NULL DEFAULT FALSE,
    origin TEXT CHECK (origin IN ('retry', 'auto_revert')),
    origin_task_id BIGINT,
    waits BOOLEAN NOT NULL DEFAULT FALSE,
    output_removed_at BIGINT,
    artifact_removed_at BIGINT,
    priority BIGINT NOT NULL DEFAULT 0,
    taken BIGINT,
    taken_at BIGINT,
    CHECK (deploy_task_id IS NOT NULL OR kind NOT IN ('upgrade', 'revert')),
    CHECK ((application_id IS NULL) = (kind = 'script'))
);

CREATE INDEX tasks_at_work ON tasks (phase) WHERE phase <> 'over';

CREATE INDEX tasks_by_application ON tasks (application_id, id);

CREATE INDEX tasks_by_artifact ON tasks (artifact_digest) WHERE artifact_digest IS NOT NULL;

CREATE INDEX tasks_by_deploy_task ON tasks (deploy_task_id, id);

CREATE INDEX tasks_by_origin ON tasks (origin_task_id) WHERE origin_task_id IS NOT NULL;

CREATE INDEX tasks_by_turn ON tasks (taken);

CREATE INDEX tasks_in_queue ON tasks (id) WHERE taken IS NULL AND phase <> 'over';

CREATE INDEX tasks_with_output ON tasks (finished_at, id) WHERE phase = 'over' AND output_removed_at IS NULL;

CREATE TABLE users (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    username TEXT NOT NULL,
    name TEXT NOT NULL,
    email TEXT NOT NULL,
    phone TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('enabled', 'disabled')),
    administrator BOOLEAN NOT NULL,
    password_hash TEXT,
    created_at BIGINT NOT NULL
);

CREATE UNIQUE INDEX users_by_username ON users (lower(username));

CREATE TABLE "variables" (
    organisation_id BIGINT NOT NULL REFERENCES organisations (id),
    scope TEXT NOT NULL CHECK (scope IN ('organisation', 'application', 'environment', 'host', 'instance')),
    object_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (organisation_id, scope, object_id, name)
);
