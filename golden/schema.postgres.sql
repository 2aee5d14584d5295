agents.id text NOT NULL COLLATE C
agents.organisation_id bigint NOT NULL
agents.host_id bigint NOT NULL
agents.public_key text NOT NULL
agents.version text
agents.boot_id text
agents.abilities jsonb
agents.connected boolean NOT NULL
agents.epoch bigint NOT NULL
agents.last_seen_at bigint
agents.clock_skew_ms bigint
agents.enrolled_at bigint NOT NULL
agents.restarted_at bigint
application_persons.organisation_id bigint NOT NULL
application_persons.application_id bigint NOT NULL
application_persons.user_id bigint NOT NULL
application_persons.capacity text NOT NULL
application_requirements.organisation_id bigint NOT NULL
application_requirements.application_id bigint NOT NULL
application_requirements.required_id bigint NOT NULL
application_trees.organisation_id bigint NOT NULL
application_trees.revision bigint NOT NULL
applications.id bigint NOT NULL IDENTITY
applications.organisation_id bigint NOT NULL
applications.name text NOT NULL
applications.full_name text NOT NULL
applications.parent_id bigint
applications.production_id bigint
applications.description text NOT NULL
applications.application_type text NOT NULL
applications.run_user text NOT NULL
applications.directory text NOT NULL
applications.startup_cmd text NOT NULL
applications.stop_cmd text NOT NULL
applications.stdout_path text NOT NULL
applications.stderr_path text NOT NULL
applications.pid_path text NOT NULL
applications.created_at bigint NOT NULL
archives.id bigint NOT NULL IDENTITY
archives.organisation_id bigint NOT NULL
archives.application_id bigint NOT NULL
archives.version text NOT NULL
archives.name text NOT NULL
archives.state text NOT NULL
archives.reason text
archives.size_bytes bigint NOT NULL
archives.sha256 text NOT NULL
archives.format text
archives.artifact_digest text
archives.artifact_bytes bigint
archives.files bigint
archives.creator text NOT NULL
archives.created_at bigint NOT NULL
archives.touched_at bigint NOT NULL
attendance.one bigint NOT NULL
attendance.seen_at bigint NOT NULL
audit_entries.id bigint NOT NULL IDENTITY
audit_entries.organisation_id bigint NOT NULL
audit_entries.list text NOT NULL
audit_entries.action text NOT NULL
audit_entries.object_type text NOT NULL
audit_entries.object_id bigint
audit_entries.object_name text NOT NULL
audit_entries.detail text NOT NULL
audit_entries.right_name text
audit_entries.target_type text
audit_entries.target_name text
audit_entries.operator_id bigint
audit_entries.operator text NOT NULL
audit_entries.created_at bigint NOT NULL
audit_entries.request_id text
auth_tokens.id bigint NOT NULL IDENTITY
auth_tokens.organisation_id bigint NOT NULL
auth_tokens.user_id bigint NOT NULL
auth_tokens.name text NOT NULL
auth_tokens.description text NOT NULL
auth_tokens.token_hash text NOT NULL
auth_tokens.created_at bigint NOT NULL
deploy_hooks.organisation_id bigint NOT NULL
deploy_hooks.settings_id bigint NOT NULL
deploy_hooks.hook text NOT NULL
deploy_hooks.script_id bigint NOT NULL
deploy_hooks.running_user text
deploy_hooks.timeout_s bigint
deploy_scripts.id bigint NOT NULL IDENTITY
deploy_scripts.organisation_id bigint NOT NULL
deploy_scripts.name text NOT NULL
deploy_scripts.language text NOT NULL
deploy_scripts.content text NOT NULL
deploy_scripts.template_engine text NOT NULL
deploy_scripts.creator text NOT NULL
deploy_scripts.created_at bigint NOT NULL
deploy_scripts.parameters jsonb
deploy_scripts.running_user text
deploy_settings.id bigint NOT NULL IDENTITY
deploy_settings.organisation_id bigint NOT NULL
deploy_settings.application_id bigint NOT NULL
deploy_settings.enabled boolean NOT NULL
deploy_settings.creator text
deploy_settings.repository_url text
deploy_settings.repository_branch text
deploy_settings.deploy_path text
deploy_settings.running_user text
deploy_settings.four_eyes boolean NOT NULL
deploy_settings.created_at bigint NOT NULL
deploy_settings.credential_id bigint
deploy_settings.template_id bigint
deploy_settings.repository_host_key text
deploy_settings.repository_ca_certificate text
deploy_settings.timeout_s bigint
deploy_settings.keep_backups bigint
deploy_settings.shared_paths jsonb
deploy_settings.repository_type text
deploy_task_rights.organisation_id bigint NOT NULL
deploy_task_rights.deploy_task_id bigint NOT NULL
deploy_task_rights.user_id bigint NOT NULL
deploy_task_rights.right_name text NOT NULL
deploy_tasks.id bigint NOT NULL IDENTITY
deploy_tasks.organisation_id bigint NOT NULL
deploy_tasks.application_id bigint NOT NULL
deploy_tasks.version text NOT NULL
deploy_tasks.description text NOT NULL
deploy_tasks.level text NOT NULL
deploy_tasks.package_source text NOT NULL
deploy_tasks.planned_exec_at bigint NOT NULL
deploy_tasks.upgrade_checklist text
deploy_tasks.upgrade_steps text
deploy_tasks.rollback_steps text
deploy_tasks.creator_id bigint NOT NULL
deploy_tasks.creator text NOT NULL
deploy_tasks.editor_id bigint
deploy_tasks.assignee_id bigint
deploy_tasks.reviewer text
deploy_tasks.status text NOT NULL
deploy_tasks.created_at bigint NOT NULL
deploy_tasks.reviewed_at bigint
deploy_tasks.started_at bigint
deploy_tasks.closed_at bigint
deploy_tasks.plan jsonb
deploy_tasks.approval jsonb
deploy_tasks.auto_start boolean NOT NULL
deploy_tasks.status_reason text
deploy_template_hooks.organisation_id bigint NOT NULL
deploy_template_hooks.template_id bigint NOT NULL
deploy_template_hooks.hook text NOT NULL
deploy_template_hooks.script_id bigint NOT NULL
deploy_template_hooks.running_user text
deploy_template_hooks.timeout_s bigint
deploy_templates.id bigint NOT NULL IDENTITY
deploy_templates.organisation_id bigint NOT NULL
deploy_templates.name text NOT NULL
deploy_templates.enabled boolean NOT NULL
deploy_templates.creator text NOT NULL
deploy_templates.repository_url text
deploy_templates.repository_branch text
deploy_templates.repository_host_key text
deploy_templates.repository_ca_certificate text
deploy_templates.deploy_path text
deploy_templates.timeout_s bigint
deploy_templates.keep_backups bigint
deploy_templates.running_user text
deploy_templates.created_at bigint NOT NULL
deploy_templates.credential_id bigint
deploy_templates.shared_paths jsonb
deploy_templates.repository_type text
environments.id bigint NOT NULL IDENTITY
environments.organisation_id bigint NOT NULL
environments.name text NOT NULL
environments.description text NOT NULL
environments.created_at bigint NOT NULL
executions.id text NOT NULL COLLATE C
executions.organisation_id bigint NOT NULL
executions.task_id bigint NOT NULL
executions.ordinal bigint NOT NULL
executions.role text NOT NULL
executions.instance_id bigint
executions.host_id bigint NOT NULL
executions.host_name text NOT NULL
executions.previous_status text
executions.attempt bigint NOT NULL
executions.state text NOT NULL
executions.epoch bigint
executions.entry text NOT NULL
executions.entry_digest text NOT NULL
executions.reason text
executions.steps jsonb
executions.processes jsonb
executions.output_truncated boolean NOT NULL
executions.created_at bigint NOT NULL
executions.dispatched_at bigint
executions.started_at bigint
executions.finished_at bigint
executions.batch bigint NOT NULL
executions.excluded boolean NOT NULL
executions.revert_entry text
executions.answer text COLLATE C
executions.answered_by text COLLATE C
executions.answered_at bigint
executions.answer_reason text
executions.broken boolean NOT NULL
executions.host_said text
executions.cancel_reason text
host_labels.organisation_id bigint NOT NULL
host_labels.host_id bigint NOT NULL
host_labels.label text NOT NULL COLLATE C
hosts.id bigint NOT NULL IDENTITY
hosts.organisation_id bigint NOT NULL
hosts.name text NOT NULL
hosts.host_type text NOT NULL
hosts.status text NOT NULL
hosts.os_status text NOT NULL
hosts.os_type text NOT NULL
hosts.cpu bigint NOT NULL
hosts.memory bigint NOT NULL
hosts.location text NOT NULL
hosts.description text NOT NULL
hosts.created_at bigint NOT NULL
hosts.environment_id bigint
idempotency_keys.organisation_id bigint NOT NULL
idempotency_keys.user_id bigint NOT NULL
idempotency_keys.key text NOT NULL
idempotency_keys.request text NOT NULL
idempotency_keys.answer text
idempotency_keys.created_at bigint NOT NULL
instance_releases.organisation_id bigint NOT NULL
instance_releases.instance_id bigint NOT NULL
instance_releases.release_name text NOT NULL
instance_releases.version text NOT NULL
instance_releases.artifact_digest text NOT NULL
instance_releases.tree_digest text NOT NULL
instance_releases.is_current boolean NOT NULL
instance_releases.installed_at bigint NOT NULL
instance_states.instance_id bigint NOT NULL
instance_states.organisation_id bigint NOT NULL
instance_states.agent_id text NOT NULL
instance_states.epoch bigint NOT NULL
instance_states.state text NOT NULL
instance_states.pid bigint
instance_states.since_at bigint
instance_states.reason text
instance_states.observed_at bigint NOT NULL
instances.id bigint NOT NULL IDENTITY
instances.organisation_id bigint NOT NULL
instances.application_id bigint NOT NULL
instances.host_id bigint NOT NULL
instances.status text NOT NULL
instances.version text
instances.created_at bigint NOT NULL
ip_addresses.id bigint NOT NULL IDENTITY
ip_addresses.organisation_id bigint NOT NULL
ip_addresses.host_id bigint NOT NULL
ip_addresses.owner text
ip_addresses.is_virtual boolean NOT NULL
ip_addresses.addr_type text NOT NULL
ip_addresses.network text NOT NULL
ip_addresses.netmask text NOT NULL
ip_addresses.address text NOT NULL
join_tokens.id bigint NOT NULL IDENTITY
join_tokens.organisation_id bigint NOT NULL
join_tokens.token_hash text NOT NULL
join_tokens.host_name text
join_tokens.uses_left bigint NOT NULL
join_tokens.expires_at bigint NOT NULL
join_tokens.created_at bigint NOT NULL
module_rights.organisation_id bigint NOT NULL
module_rights.subject_type text NOT NULL
module_rights.subject_id bigint NOT NULL
module_rights.module text NOT NULL
module_rights.right_name text NOT NULL
organisations.id bigint NOT NULL IDENTITY
organisations.name text NOT NULL
organisations.created_at bigint NOT NULL
repository_credentials.id bigint NOT NULL IDENTITY
repository_credentials.organisation_id bigint NOT NULL
repository_credentials.credential_type text NOT NULL
repository_credentials.name text
repository_credentials.username text NOT NULL
repository_credentials.sealed_secret text NOT NULL
repository_credentials.settings_id bigint
repository_credentials.template_id bigint
repository_credentials.creator text NOT NULL
repository_credentials.created_at bigint NOT NULL
resource_rights.organisation_id bigint NOT NULL
resource_rights.subject_type text NOT NULL
resource_rights.subject_id bigint NOT NULL
resource_rights.resource_type text NOT NULL
resource_rights.resource_id bigint NOT NULL
resource_rights.right_name text NOT NULL
role_users.organisation_id bigint NOT NULL
role_users.role_id bigint NOT NULL
role_users.user_id bigint NOT NULL
roles.id bigint NOT NULL IDENTITY
roles.organisation_id bigint NOT NULL
roles.name text NOT NULL
roles.creator text NOT NULL
roles.created_at bigint NOT NULL
schedule_hosts.organisation_id bigint
schedule_hosts.schedule_id bigint
schedule_hosts.host_id bigint
schedule_runs.organisation_id bigint NOT NULL
schedule_runs.schedule_id bigint NOT NULL
schedule_runs.moment bigint NOT NULL
schedule_runs.state text NOT NULL COLLATE C
schedule_runs.asked_by_id bigint
schedule_runs.asked_by text
schedule_runs.task_id bigint
schedule_runs.reason text
schedule_runs.created_at bigint NOT NULL
schedule_runs.decided_at bigint
schedule_targets.organisation_id bigint NOT NULL
schedule_targets.schedule_id bigint NOT NULL
schedule_targets.kind text NOT NULL COLLATE C
schedule_targets.target_id bigint
schedule_targets.target text
schedules.id bigint NOT NULL IDENTITY
schedules.organisation_id bigint NOT NULL
schedules.application_id bigint
schedules.name text NOT NULL
schedules.what jsonb NOT NULL
schedules.cron text NOT NULL
schedules.zone text NOT NULL
schedules.missed text NOT NULL COLLATE C
schedules.missed_max bigint NOT NULL
schedules.overlap text NOT NULL COLLATE C
schedules.if_busy text NOT NULL COLLATE C
schedules.jitter_s bigint NOT NULL
schedules.owner_id bigint NOT NULL
schedules.owner text NOT NULL
schedules.paused_by text
schedules.paused_at bigint
schedules.next_moment bigint
schedules.next_at bigint
schedules.created_at bigint NOT NULL
schema_migrations.name text NOT NULL
schema_migrations.digest text NOT NULL
schema_migrations.applied_at bigint NOT NULL
secrets.organisation_id bigint NOT NULL
secrets.scope text NOT NULL
secrets.object_id bigint NOT NULL
secrets.name text NOT NULL
secrets.sealed text NOT NULL
secrets.changed_at bigint NOT NULL
sessions.id bigint NOT NULL IDENTITY
sessions.organisation_id bigint NOT NULL
sessions.user_id bigint NOT NULL
sessions.token_hash text NOT NULL
sessions.csrf_hash text NOT NULL
sessions.created_at bigint NOT NULL
sessions.expires_at bigint NOT NULL
sign_in_failures.organisation_id bigint NOT NULL
sign_in_failures.subject text NOT NULL
sign_in_failures.failures bigint NOT NULL
sign_in_failures.blocked_until bigint NOT NULL
sign_in_failures.last_at bigint NOT NULL
task_requirements.organisation_id bigint NOT NULL
task_requirements.task_id bigint NOT NULL
task_requirements.required_id bigint NOT NULL
tasks.id bigint NOT NULL IDENTITY
tasks.organisation_id bigint NOT NULL
tasks.deploy_task_id bigint
tasks.application_id bigint
tasks.kind text NOT NULL
tasks.channel text NOT NULL
tasks.version text NOT NULL
tasks.update_source text
tasks.timeout_s bigint NOT NULL
tasks.keep_backups bigint NOT NULL
tasks.phase text NOT NULL
tasks.outcome text
tasks.reason text
tasks.source jsonb
tasks.resolved_commit text
tasks.artifact_digest text
tasks.plan_digest text
tasks.creator text NOT NULL
tasks.created_at bigint NOT NULL
tasks.deadline_at bigint NOT NULL
tasks.finished_at bigint
tasks.rollout jsonb
tasks.batch_admitted bigint NOT NULL
tasks.promoted boolean NOT NULL
tasks.held_by text
tasks.held_at bigint
tasks.stop_reason text
tasks.cancelled boolean NOT NULL
tasks.origin text
tasks.origin_task_id bigint
tasks.waits boolean NOT NULL
tasks.output_removed_at bigint
tasks.artifact_removed_at bigint
tasks.priority bigint NOT NULL
tasks.taken bigint
tasks.taken_at bigint
users.id bigint NOT NULL IDENTITY
users.organisation_id bigint NOT NULL
users.username text NOT NULL
users.name text NOT NULL
users.email text NOT NULL
users.phone text NOT NULL
users.status text NOT NULL
users.administrator boolean NOT NULL
users.password_hash text
users.created_at bigint NOT NULL
variables.organisation_id bigint NOT NULL
variables.scope text NOT NULL
variables.object_id bigint NOT NULL
variables.name text NOT NULL
variables.value text NOT NULL

agents FOREIGN KEY (host_id) REFERENCES hosts(id) ON DELETE CASCADE
agents FOREIGN KEY (organisation_id) REFERENCES organisations(id)
agents PRIMARY KEY (id)
agents UNIQUE (host_id)
application_persons CHECK ((capacity = ANY (ARRAY['dev'::text, 'ops'::text, 'qa'::text, 'pm'::text])))
application_persons FOREIGN KEY (application_id) REFERENCES applications(id) ON DELETE CASCADE
application_persons FOREIGN KEY (organisation_id) REFERENCES organisations(id)
application_persons FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE
application_persons PRIMARY KEY (application_id, user_id)
application_requirements FOREIGN KEY (application_id) REFERENCES applications(id) ON DELETE CASCADE
application_requirements FOREIGN KEY (organisation_id) REFERENCES organisations(id)
application_requirements FOREIGN KEY (required_id) REFERENCES applications(id) ON DELETE CASCADE
application_requirements PRIMARY KEY (application_id, required_id)
application_trees FOREIGN KEY (organisation_id) REFERENCES organisations(id)
application_trees PRIMARY KEY (organisation_id)
applications FOREIGN KEY (organisation_id) REFERENCES organisations(id)
applications FOREIGN KEY (parent_id) REFERENCES applications(id)
applications PRIMARY KEY (id)
applications UNIQUE (organisation_id, full_name)
archives CHECK ((format = ANY (ARRAY['tar'::text, 'tar.gz'::text, 'tar.zst'::text, 'zip'::text])))
archives CHECK ((state = ANY (ARRAY['receiving'::text, 'checking'::text, 'ready'::text, 'refused'::text])))
archives FOREIGN KEY (application_id) REFERENCES applications(id) ON DELETE CASCADE
archives FOREIGN KEY (organisation_id) REFERENCES organisations(id)
archives PRIMARY KEY (id)
archives UNIQUE (application_id, version)
attendance CHECK ((one = 1))
attendance PRIMARY KEY (one)
audit_entries CHECK ((list = ANY (ARRAY['general'::text, 'host'::text, 'application'::text, 'dns'::text, 'module_right'::text, 'resource_right'::text])))
audit_entries FOREIGN KEY (organisation_id) REFERENCES organisations(id)
audit_entries PRIMARY KEY (id)
auth_tokens FOREIGN KEY (organisation_id) REFERENCES organisations(id)
auth_tokens FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE
auth_tokens PRIMARY KEY (id)
auth_tokens UNIQUE (token_hash)
deploy_hooks CHECK ((hook = ANY (ARRAY['global_pre_exec'::text, 'pre_exec'::text, 'post_exec'::text, 'global_post_exec'::text])))
deploy_hooks FOREIGN KEY (organisation_id) REFERENCES organisations(id)
deploy_hooks FOREIGN KEY (script_id) REFERENCES deploy_scripts(id)
deploy_hooks FOREIGN KEY (settings_id) REFERENCES deploy_settings(id) ON DELETE CASCADE
deploy_hooks PRIMARY KEY (settings_id, hook)
deploy_scripts CHECK ((language = ANY (ARRAY['bash'::text, 'python'::text])))
deploy_scripts CHECK ((template_engine = 'jinja'::text))
deploy_scripts FOREIGN KEY (organisation_id) REFERENCES organisations(id)
deploy_scripts PRIMARY KEY (id)
deploy_scripts UNIQUE (organisation_id, name)
deploy_settings CHECK ((repository_type = ANY (ARRAY['GIT'::text, 'FTP'::text, 'ARCHIVE'::text])))
deploy_settings FOREIGN KEY (application_id) REFERENCES applications(id) ON DELETE CASCADE
deploy_settings FOREIGN KEY (credential_id) REFERENCES repository_credentials(id)
deploy_settings FOREIGN KEY (organisation_id) REFERENCES organisations(id)
deploy_settings FOREIGN KEY (template_id) REFERENCES deploy_templates(id)
deploy_settings PRIMARY KEY (id)
deploy_settings UNIQUE (application_id)
deploy_task_rights FOREIGN KEY (deploy_task_id) REFERENCES deploy_tasks(id) ON DELETE CASCADE
deploy_task_rights FOREIGN KEY (organisation_id) REFERENCES organisations(id)
deploy_task_rights PRIMARY KEY (deploy_task_id, user_id, right_name)
deploy_tasks CHECK ((level = ANY (ARRAY['S'::text, 'A'::text, 'B'::text, 'C'::text, 'I'::text])))
deploy_tasks CHECK ((status = ANY (ARRAY['wait_review'::text, 'approved'::text, 'rejected'::text, 'running'::text, 'closed'::text])))
deploy_tasks FOREIGN KEY (application_id) REFERENCES applications(id) ON DELETE CASCADE
deploy_tasks FOREIGN KEY (organisation_id) REFERENCES organisations(id)
deploy_tasks PRIMARY KEY (id)
deploy_template_hooks CHECK ((hook = ANY (ARRAY['global_pre_exec'::text, 'pre_exec'::text, 'post_exec'::text, 'global_post_exec'::text])))
deploy_template_hooks FOREIGN KEY (organisation_id) REFERENCES organisations(id)
deploy_template_hooks FOREIGN KEY (script_id) REFERENCES deploy_scripts(id)
deploy_template_hooks FOREIGN KEY (template_id) REFERENCES deploy_templates(id) ON DELETE CASCADE
deploy_template_hooks PRIMARY KEY (template_id, hook)
deploy_templates CHECK ((repository_type = ANY (ARRAY['GIT'::text, 'FTP'::text, 'ARCHIVE'::text])))
deploy_templates FOREIGN KEY (credential_id) REFERENCES repository_credentials(id)
deploy_templates FOREIGN KEY (organisation_id) REFERENCES organisations(id)
deploy_templates PRIMARY KEY (id)
environments FOREIGN KEY (organisation_id) REFERENCES organisations(id)
environments PRIMARY KEY (id)
environments UNIQUE (organisation_id, name)
executions CHECK ((answer = ANY (ARRAY['retry'::text, 'done'::text, 'give_up'::text])))
executions CHECK ((role = ANY (ARRAY['global_pre'::text, 'instance'::text, 'global_post'::text])))
executions CHECK ((state = ANY (ARRAY['queued'::text, 'dispatched'::text, 'running'::text, 'succeeded'::text, 'failed'::text, 'timed_out'::text, 'cancelled'::text, 'lost'::text])))
executions FOREIGN KEY (organisation_id) REFERENCES organisations(id)
executions FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE
executions PRIMARY KEY (id)
executions UNIQUE (task_id, ordinal)
host_labels FOREIGN KEY (host_id) REFERENCES hosts(id) ON DELETE CASCADE
host_labels FOREIGN KEY (organisation_id) REFERENCES organisations(id)
host_labels PRIMARY KEY (host_id, label)
hosts CHECK ((os_status = ANY (ARRAY['stopped'::text, 'running'::text, 'restarting'::text])))
hosts CHECK ((status = ANY (ARRAY['attached'::text, 'inited'::text, 'raw'::text, 'offline'::text])))
hosts FOREIGN KEY (environment_id) REFERENCES environments(id)
hosts FOREIGN KEY (organisation_id) REFERENCES organisations(id)
hosts PRIMARY KEY (id)
hosts UNIQUE (organisation_id, name)
idempotency_keys FOREIGN KEY (organisation_id) REFERENCES organisations(id)
idempotency_keys PRIMARY KEY (organisation_id, user_id, key)
instance_releases FOREIGN KEY (instance_id) REFERENCES instances(id) ON DELETE CASCADE
instance_releases FOREIGN KEY (organisation_id) REFERENCES organisations(id)
instance_releases PRIMARY KEY (instance_id, release_name)
instance_states CHECK ((state = ANY (ARRAY['running'::text, 'stopped'::text, 'crashed'::text, 'unknown'::text])))
instance_states FOREIGN KEY (instance_id) REFERENCES instances(id) ON DELETE CASCADE
instance_states FOREIGN KEY (organisation_id) REFERENCES organisations(id)
instance_states PRIMARY KEY (instance_id)
instances CHECK ((status = ANY (ARRAY['restarting'::text, 'running'::text, 'stopped'::text, 'updating'::text, 'reverting'::text])))
instances FOREIGN KEY (application_id) REFERENCES applications(id)
instances FOREIGN KEY (host_id) REFERENCES hosts(id)
instances FOREIGN KEY (organisation_id) REFERENCES organisations(id)
instances PRIMARY KEY (id)
instances UNIQUE (application_id, host_id)
ip_addresses CHECK ((addr_type = ANY (ARRAY['PRIVATE'::text, 'PUBLIC'::text])))
ip_addresses FOREIGN KEY (host_id) REFERENCES hosts(id) ON DELETE CASCADE
ip_addresses FOREIGN KEY (organisation_id) REFERENCES organisations(id)
ip_addresses PRIMARY KEY (id)
join_tokens FOREIGN KEY (organisation_id) REFERENCES organisations(id)
join_tokens PRIMARY KEY (id)
join_tokens UNIQUE (token_hash)
module_rights CHECK ((subject_type = ANY (ARRAY['user'::text, 'role'::text])))
module_rights FOREIGN KEY (organisation_id) REFERENCES organisations(id)
module_rights PRIMARY KEY (subject_type, subject_id, module, right_name)
organisations PRIMARY KEY (id)
organisations UNIQUE (name)
repository_credentials CHECK ((credential_type = ANY (ARRAY['PASSWORD'::text, 'SSH_PRIVATE_KEY'::text])))
repository_credentials FOREIGN KEY (organisation_id) REFERENCES organisations(id)
repository_credentials FOREIGN KEY (settings_id) REFERENCES deploy_settings(id) ON DELETE CASCADE
repository_credentials FOREIGN KEY (template_id) REFERENCES deploy_templates(id) ON DELETE CASCADE
repository_credentials PRIMARY KEY (id)
resource_rights CHECK ((resource_type = ANY (ARRAY['application'::text, 'host'::text])))
resource_rights CHECK ((subject_type = ANY (ARRAY['user'::text, 'role'::text])))
resource_rights FOREIGN KEY (organisation_id) REFERENCES organisations(id)
resource_rights PRIMARY KEY (subject_type, subject_id, resource_type, resource_id, right_name)
role_users FOREIGN KEY (organisation_id) REFERENCES organisations(id)
role_users FOREIGN KEY (role_id) REFERENCES roles(id) ON DELETE CASCADE
role_users FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE
role_users PRIMARY KEY (role_id, user_id)
roles FOREIGN KEY (organisation_id) REFERENCES organisations(id)
roles PRIMARY KEY (id)
roles UNIQUE (organisation_id, name)
schedule_runs CHECK ((state = ANY (ARRAY['waiting'::text, 'started'::text, 'skipped'::text, 'missed'::text, 'failed'::text])))
schedule_runs FOREIGN KEY (organisation_id) REFERENCES organisations(id)
schedule_runs FOREIGN KEY (schedule_id) REFERENCES schedules(id) ON DELETE CASCADE
schedule_runs FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE SET NULL
schedule_runs PRIMARY KEY (schedule_id, moment)
schedule_targets CHECK ((kind = ANY (ARRAY['host'::text, 'application'::text, 'label'::text])))
schedule_targets FOREIGN KEY (organisation_id) REFERENCES organisations(id)
schedule_targets FOREIGN KEY (schedule_id) REFERENCES schedules(id) ON DELETE CASCADE
schedules CHECK ((if_busy = ANY (ARRAY['refuse'::text, 'wait'::text])))
schedules CHECK ((missed = ANY (ARRAY['skip'::text, 'once'::text, 'all'::text])))
schedules CHECK ((overlap = ANY (ARRAY['skip'::text, 'queue'::text, 'cancel_old'::text])))
schedules FOREIGN KEY (application_id) REFERENCES applications(id) ON DELETE CASCADE
schedules FOREIGN KEY (organisation_id) REFERENCES organisations(id)
schedules PRIMARY KEY (id)
schedules UNIQUE (organisation_id, name)
schema_migrations PRIMARY KEY (name)
secrets CHECK ((scope = ANY (ARRAY['organisation'::text, 'application'::text, 'environment'::text, 'host'::text, 'instance'::text])))
secrets FOREIGN KEY (organisation_id) REFERENCES organisations(id)
secrets PRIMARY KEY (organisation_id, scope, object_id, name)
sessions FOREIGN KEY (organisation_id) REFERENCES organisations(id)
sessions FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE CASCADE
sessions PRIMARY KEY (id)
sessions UNIQUE (token_hash)
sign_in_failures FOREIGN KEY (organisation_id) REFERENCES organisations(id)
sign_in_failures PRIMARY KEY (organisation_id, subject)
task_requirements FOREIGN KEY (organisation_id) REFERENCES organisations(id)
task_requirements FOREIGN KEY (task_id) REFERENCES tasks(id) ON DELETE CASCADE
task_requirements PRIMARY KEY (task_id, required_id)
tasks CHECK (((application_id IS NULL) = (kind = 'script'::text)))
tasks CHECK (((deploy_task_id IS NOT NULL) OR (kind <> ALL (ARRAY['upgrade'::text, 'revert'::text]))))
tasks CHECK ((kind = ANY (ARRAY['upgrade'::text, 'revert'::text, 'start'::text, 'stop'::text, 'restart'::text, 'script'::text])))
tasks CHECK ((origin = ANY (ARRAY['retry'::text, 'auto_revert'::text])))
tasks CHECK ((outcome = ANY (ARRAY['finished'::text, 'failed'::text])))
tasks CHECK ((phase = ANY (ARRAY['preparing'::text, 'global_pre'::text, 'instances'::text, 'global_post'::text, 'over'::text])))
tasks FOREIGN KEY (application_id) REFERENCES applications(id) ON DELETE CASCADE
tasks FOREIGN KEY (deploy_task_id) REFERENCES deploy_tasks(id) ON DELETE CASCADE
tasks FOREIGN KEY (organisation_id) REFERENCES organisations(id)
tasks PRIMARY KEY (id)
tasks UNIQUE (channel)
users CHECK ((status = ANY (ARRAY['enabled'::text, 'disabled'::text])))
users FOREIGN KEY (organisation_id) REFERENCES organisations(id)
users PRIMARY KEY (id)
variables CHECK ((scope = ANY (ARRAY['organisation'::text, 'application'::text, 'environment'::text, 'host'::text, 'instance'::text])))
variables FOREIGN KEY (organisation_id) REFERENCES organisations(id)
variables PRIMARY KEY (organisation_id, scope, object_id, name)

CREATE INDEX application_persons_by_user ON public.application_persons USING btree (user_id)
CREATE INDEX application_requirements_by_required ON public.application_requirements USING btree (required_id)
CREATE INDEX applications_by_parent ON public.applications USING btree (parent_id)
CREATE INDEX archives_at_work ON public.archives USING btree (state) WHERE (state = ANY (ARRAY['receiving'::text, 'checking'::text]))
CREATE INDEX archives_by_artifact ON public.archives USING btree (artifact_digest) WHERE (artifact_digest IS NOT NULL)
CREATE INDEX audit_entries_by_list ON public.audit_entries USING btree (organisation_id, list, id)
CREATE INDEX auth_tokens_by_user ON public.auth_tokens USING btree (user_id)
CREATE INDEX deploy_hooks_by_script ON public.deploy_hooks USING btree (script_id)
CREATE INDEX deploy_settings_by_credential ON public.deploy_settings USING btree (credential_id) WHERE (credential_id IS NOT NULL)
CREATE INDEX deploy_settings_by_template ON public.deploy_settings USING btree (template_id) WHERE (template_id IS NOT NULL)
CREATE INDEX deploy_tasks_by_application ON public.deploy_tasks USING btree (application_id, id)
CREATE INDEX deploy_tasks_starting ON public.deploy_tasks USING btree (planned_exec_at) WHERE (auto_start AND (status = 'approved'::text))
CREATE INDEX deploy_template_hooks_by_script ON public.deploy_template_hooks USING btree (script_id)
CREATE INDEX deploy_templates_by_credential ON public.deploy_templates USING btree (credential_id) WHERE (credential_id IS NOT NULL)
CREATE INDEX deploy_templates_by_organisation ON public.deploy_templates USING btree (organisation_id, id)
CREATE INDEX executions_at_work ON public.executions USING btree (host_id, state) WHERE (state = ANY (ARRAY['queued'::text, 'dispatched'::text, 'running'::text]))
CREATE INDEX executions_by_instance ON public.executions USING btree (instance_id, id)
CREATE INDEX executions_lost_on_host ON public.executions USING btree (host_id) WHERE ((state = 'lost'::text) AND (answer IS NULL))
CREATE INDEX executions_unanswered ON public.executions USING btree (instance_id) WHERE ((state = 'lost'::text) AND (answer IS NULL))
CREATE INDEX host_labels_by_label ON public.host_labels USING btree (organisation_id, label)
CREATE INDEX hosts_by_environment ON public.hosts USING btree (environment_id) WHERE (environment_id IS NOT NULL)
CREATE INDEX idempotency_keys_by_age ON public.idempotency_keys USING btree (created_at)
CREATE INDEX instances_by_host ON public.instances USING btree (host_id)
CREATE INDEX ip_addresses_by_host ON public.ip_addresses USING btree (host_id)
CREATE INDEX repository_credentials_by_organisation ON public.repository_credentials USING btree (organisation_id, id)
CREATE INDEX repository_credentials_by_settings ON public.repository_credentials USING btree (settings_id) WHERE (settings_id IS NOT NULL)
CREATE INDEX repository_credentials_by_template ON public.repository_credentials USING btree (template_id) WHERE (template_id IS NOT NULL)
CREATE INDEX resource_rights_by_resource ON public.resource_rights USING btree (resource_type, resource_id)
CREATE INDEX role_users_by_user ON public.role_users USING btree (user_id)
CREATE INDEX schedule_runs_by_task ON public.schedule_runs USING btree (task_id) WHERE (task_id IS NOT NULL)
CREATE INDEX schedule_runs_waiting ON public.schedule_runs USING btree (schedule_id, moment) WHERE (state = 'waiting'::text)
CREATE INDEX schedule_targets_by_schedule ON public.schedule_targets USING btree (schedule_id)
CREATE INDEX schedules_by_application ON public.schedules USING btree (application_id)
CREATE INDEX schedules_due ON public.schedules USING btree (next_at) WHERE (paused_by IS NULL)
CREATE INDEX sessions_by_end ON public.sessions USING btree (expires_at)
CREATE INDEX sessions_by_user ON public.sessions USING btree (user_id)
CREATE INDEX sign_in_failures_by_age ON public.sign_in_failures USING btree (organisation_id, last_at)
CREATE INDEX task_requirements_by_required ON public.task_requirements USING btree (required_id)
CREATE INDEX tasks_at_work ON public.tasks USING btree (phase) WHERE (phase <> 'over'::text)
CREATE INDEX tasks_by_application ON public.tasks USING btree (application_id, id)
CREATE INDEX tasks_by_artifact ON public.tasks USING btree (artifact_digest) WHERE (artifact_digest IS NOT NULL)
CREATE INDEX tasks_by_deploy_task ON public.tasks USING btree (deploy_task_id, id)
CREATE INDEX tasks_by_origin ON public.tasks USING btree (origin_task_id) WHERE (origin_task_id IS NOT NULL)
CREATE INDEX tasks_by_turn ON public.tasks USING btree (taken)
CREATE INDEX tasks_in_queue ON public.tasks USING btree (id) WHERE ((taken IS NULL) AND (phase <> 'over'::text))
CREATE INDEX tasks_with_output ON public.tasks USING btree (finished_at, id) WHERE ((phase = 'over'::text) AND (output_removed_at IS NULL))
CREATE UNIQUE INDEX agents_host_id_key ON public.agents USING btree (host_id)
CREATE UNIQUE INDEX agents_pkey ON public.agents USING btree (id)
CREATE UNIQUE INDEX application_persons_pkey ON public.application_persons USING btree (application_id, user_id)
CREATE UNIQUE INDEX application_requirements_pkey ON public.application_requirements USING btree (application_id, required_id)
CREATE UNIQUE INDEX application_trees_pkey ON public.application_trees USING btree (organisation_id)
CREATE UNIQUE INDEX applications_organisation_id_full_name_key ON public.applications USING btree (organisation_id, full_name)
CREATE UNIQUE INDEX applications_pkey ON public.applications USING btree (id)
CREATE UNIQUE INDEX archives_application_id_version_key ON public.archives USING btree (application_id, version)
CREATE UNIQUE INDEX archives_pkey ON public.archives USING btree (id)
CREATE UNIQUE INDEX attendance_pkey ON public.attendance USING btree (one)
CREATE UNIQUE INDEX audit_entries_pkey ON public.audit_entries USING btree (id)
CREATE UNIQUE INDEX auth_tokens_pkey ON public.auth_tokens USING btree (id)
CREATE UNIQUE INDEX auth_tokens_token_hash_key ON public.auth_tokens USING btree (token_hash)
CREATE UNIQUE INDEX deploy_hooks_pkey ON public.deploy_hooks USING btree (settings_id, hook)
CREATE UNIQUE INDEX deploy_scripts_organisation_id_name_key ON public.deploy_scripts USING btree (organisation_id, name)
CREATE UNIQUE INDEX deploy_scripts_pkey ON public.deploy_scripts USING btree (id)
CREATE UNIQUE INDEX deploy_settings_application_id_key ON public.deploy_settings USING btree (application_id)
CREATE UNIQUE INDEX deploy_settings_pkey ON public.deploy_settings USING btree (id)
CREATE UNIQUE INDEX deploy_task_rights_pkey ON public.deploy_task_rights USING btree (deploy_task_id, user_id, right_name)
CREATE UNIQUE INDEX deploy_tasks_pkey ON public.deploy_tasks USING btree (id)
CREATE UNIQUE INDEX deploy_template_hooks_pkey ON public.deploy_template_hooks USING btree (template_id, hook)
CREATE UNIQUE INDEX deploy_templates_pkey ON public.deploy_templates USING btree (id)
CREATE UNIQUE INDEX environments_organisation_id_name_key ON public.environments USING btree (organisation_id, name)
CREATE UNIQUE INDEX environments_pkey ON public.environments USING btree (id)
CREATE UNIQUE INDEX executions_new_pkey ON public.executions USING btree (id)
CREATE UNIQUE INDEX executions_new_task_id_ordinal_key ON public.executions USING btree (task_id, ordinal)
CREATE UNIQUE INDEX host_labels_pkey ON public.host_labels USING btree (host_id, label)
CREATE UNIQUE INDEX hosts_organisation_id_name_key ON public.hosts USING btree (organisation_id, name)
CREATE UNIQUE INDEX hosts_pkey ON public.hosts USING btree (id)
CREATE UNIQUE INDEX idempotency_keys_pkey ON public.idempotency_keys USING btree (organisation_id, user_id, key)
CREATE UNIQUE INDEX instance_releases_pkey ON public.instance_releases USING btree (instance_id, release_name)
CREATE UNIQUE INDEX instance_states_pkey ON public.instance_states USING btree (instance_id)
CREATE UNIQUE INDEX instances_application_id_host_id_key ON public.instances USING btree (application_id, host_id)
CREATE UNIQUE INDEX instances_pkey ON public.instances USING btree (id)
CREATE UNIQUE INDEX ip_addresses_pkey ON public.ip_addresses USING btree (id)
CREATE UNIQUE INDEX join_tokens_pkey ON public.join_tokens USING btree (id)
CREATE UNIQUE INDEX join_tokens_token_hash_key ON public.join_tokens USING btree (token_hash)
CREATE UNIQUE INDEX module_rights_pkey ON public.module_rights USING btree (subject_type, subject_id, module, right_name)
CREATE UNIQUE INDEX organisations_name_key ON public.organisations USING btree (name)
CREATE UNIQUE INDEX organisations_pkey ON public.organisations USING btree (id)
CREATE UNIQUE INDEX repository_credentials_pkey ON public.repository_credentials USING btree (id)
CREATE UNIQUE INDEX resource_rights_pkey ON public.resource_rights USING btree (subject_type, subject_id, resource_type, resource_id, right_name)
CREATE UNIQUE INDEX role_users_pkey ON public.role_users USING btree (role_id, user_id)
CREATE UNIQUE INDEX roles_organisation_id_name_key ON public.roles USING btree (organisation_id, name)
CREATE UNIQUE INDEX roles_pkey ON public.roles USING btree (id)
CREATE UNIQUE INDEX schedule_runs_new_pkey ON public.schedule_runs USING btree (schedule_id, moment)
CREATE UNIQUE INDEX schedules_new_organisation_id_name_key ON public.schedules USING btree (organisation_id, name)
CREATE UNIQUE INDEX schedules_new_pkey ON public.schedules USING btree (id)
CREATE UNIQUE INDEX schema_migrations_pkey ON public.schema_migrations USING btree (name)
CREATE UNIQUE INDEX secrets_next_pkey1 ON public.secrets USING btree (organisation_id, scope, object_id, name)
CREATE UNIQUE INDEX sessions_pkey ON public.sessions USING btree (id)
CREATE UNIQUE INDEX sessions_token_hash_key ON public.sessions USING btree (token_hash)
CREATE UNIQUE INDEX sign_in_failures_pkey ON public.sign_in_failures USING btree (organisation_id, subject)
CREATE UNIQUE INDEX task_requirements_new_pkey ON public.task_requirements USING btree (task_id, required_id)
CREATE UNIQUE INDEX tasks_new_channel_key ON public.tasks USING btree (channel)
CREATE UNIQUE INDEX tasks_new_pkey ON public.tasks USING btree (id)
CREATE UNIQUE INDEX users_by_username ON public.users USING btree (lower(username))
CREATE UNIQUE INDEX users_pkey ON public.users USING btree (id)
CREATE UNIQUE INDEX variables_next_pkey ON public.variables USING btree (organisation_id, scope, object_id, name)
