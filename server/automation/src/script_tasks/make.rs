//! Making a task that runs a script: everything is read, checked and rendered first, in the name of a person, then stored in
//! one transaction. Requests call this, and whatever else makes such tasks with somebody's rights.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use drover_inventory::applications::rules::check_account;
use drover_inventory::secrets::TaskSecrets;
use drover_inventory::variables::TaskVariables;
use drover_kernel::at_once::blocking;
use drover_kernel::call::Caller;
use drover_kernel::{AuditEntry, AuditList, Error, Kernel, Result, Tx};
use drover_shared::limits::KILL_GRACE_MS_DEFAULT;
use drover_shared::order::{Entry, Step};
use drover_shared::words::{Action, Word as _};
use drover_shared::{Digest, secret};
use serde_json::Value;

use super::targets::{self, HostRow, ScriptRef};
use crate::locks::taking::{Place, Targets};
use crate::render;
use crate::scripts::parameters::{self, Kind};
use crate::scripts::store::{self as script_store, ScriptRow};
use crate::tasks::create::{NewPlan, store_plan};
use crate::tasks::follow_up::Made;
use crate::tasks::plan::{Draft, check_size};
use crate::tasks::premises;
use crate::tasks::rollout::Rollout;
use crate::tasks::rules::Role;
use crate::tasks::secrets::{self, Offered};

/// Seconds that a script may take unless somebody says otherwise.
const TIMEOUT_S: i64 = 300;
/// Name of the only step.
const STEP: &str = "script";
/// Hosts that the audit names.
const NAMED_MAX: usize = 20;

/// What is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub script: ScriptRef,
    pub targets: targets::Wanted,
    pub parameters: serde_json::Map<String, Value>,
    pub running_user: Option<String>,
    pub timeout_s: Option<i64>,
    pub rollout: Option<Rollout>,
    pub place: Place,
}

/// A rendered task.
pub(crate) struct Prepared {
    /// Name of the script.
    pub script: String,
    pub running_user: Option<String>,
    /// Of the script's text before rendering.
    pub digest: Digest,
    /// One for each host; none when nothing is meant at present.
    pub drafts: Vec<Draft>,
    targets: targets::Wanted,
    timeout_s: i64,
    rollout: Option<Rollout>,
    place: Place,
}

impl Prepared {
    /// Why there is nothing to run, if that is so: the field that says where, and a sentence.
    pub(crate) fn nothing(&self) -> Option<(&'static str, String)> {
        self.drafts.is_empty().then(|| self.targets.nothing())
    }

    /// This, for somebody who means at least one host.
    ///
    /// # Errors
    /// An invalid field when no host is meant.
    pub(crate) fn meant(self) -> Result<Self> {
        match self.nothing() {
            Some((field, why)) => Err(Error::invalid(field, why)),
            None => Ok(self),
        }
    }

    /// The text for the first host.
    pub(crate) fn content(&self) -> &str {
        let first = self.drafts.first().and_then(|draft| draft.entry.steps.first());
        match first {
            Some(Step::Script { content, .. }) => content,
            _ => "",
        }
    }
}

/// What all hosts share.
struct Input {
    script: ScriptRow,
    values: BTreeMap<String, Value>,
    running_user: Option<String>,
    creator: String,
    hosts: Vec<HostRow>,
    addresses: HashMap<i64, Vec<String>>,
    variables: TaskVariables,
    secrets: Offered,
    rollout: Option<Rollout>,
    output_bytes_max: u64,
    work: Arc<render::Work>,
}

/// Reads, checks and renders. Nothing is written. An application or a label may mean no host at present.
///
/// # Errors
/// What is wrong with what is asked for; forbidden when this person may not do it.
pub(crate) async fn prepare(kernel: &Kernel, caller: &Caller, wanted: Wanted) -> Result<Prepared> {
    let mut read = kernel.work().read().await?;
    // Whoever may not log in there learns nothing of scripts.
    let hosts = targets::find(&mut read, caller, &wanted.targets).await?;
    let script = match &wanted.script {
        ScriptRef::Id(id) => script_store::find_many(&mut read, caller.organisation_id, &[*id]).await?.pop(),
        ScriptRef::Name(name) => script_store::find_by_name(&mut read, caller.organisation_id, name).await?,
    };
    let script = script.ok_or_else(|| Error::NotFound(format!("there is no deploy script `{}`", wanted.script)))?;
    let values = parameters::values(script.parameters(), &wanted.parameters)?;
    let running_user = account(caller, &script, wanted.running_user)?;
    let ids: Vec<i64> = hosts.iter().map(|host| host.id).collect();
    let mut addresses: HashMap<i64, Vec<String>> = HashMap::new();
    for (host_id, address) in premises::addresses(&mut read, ids.clone()).await? {
        addresses.entry(host_id).or_default().push(address);
    }
    let input = Input {
        addresses,
        variables: TaskVariables::of_hosts(&mut read, caller.organisation_id, ids.clone()).await?,
        // Nothing is kept under this number of an application.
        secrets: Offered::new(TaskSecrets::read(&mut read, (caller.organisation_id, 0), ids, Vec::new()).await?),
        script,
        values,
        running_user,
        creator: caller.username.clone(),
        hosts,
        rollout: wanted.rollout,
        output_bytes_max: kernel.settings().output_bytes_max,
        work: Arc::default(),
    };
    drop(read);
    let rendering = blocking(move || draft(&input).map(|drafts| (input, drafts)));
    let (input, drafts) = rendering.await??;
    Ok(Prepared {
        digest: Digest::of(input.script.content.as_bytes()),
        script: input.script.name,
        running_user: input.running_user,
        drafts,
        targets: wanted.targets,
        timeout_s: wanted.timeout_s.unwrap_or(TIMEOUT_S),
        rollout: input.rollout,
        place: wanted.place,
    })
}

/// The account to run as: whoever may run a script may not choose whose rights it has.
fn account(caller: &Caller, script: &ScriptRow, wanted: Option<String>) -> Result<Option<String>> {
    let own = script.running_user.clone();
    match wanted {
        None => Ok(own),
        Some(wanted) if own.as_ref() == Some(&wanted) => Ok(own),
        Some(wanted) => {
            check_account("running_user", &wanted)?;
            if !caller.administrator {
                let text = "only administrators may run a script as another account than its own";
                return Err(Error::Forbidden(text.to_owned()));
            }
            Ok(Some(wanted))
        }
    }
}

fn draft(input: &Input) -> Result<Vec<Draft>> {
    let batches = input.rollout.as_ref().map(|rollout| rollout.batches(input.hosts.len())).unwrap_or_default();
    let mut drafts = Vec::with_capacity(input.hosts.len());
    for (index, host) in input.hosts.iter().enumerate() {
        drafts.push(Draft {
            role: Role::Instance,
            ordinal: i64::try_from(index + 1).map_err(Error::internal)?,
            instance_id: None,
            host_id: host.id,
            host_name: host.name.clone(),
            batch: batches.get(index).copied().unwrap_or(0),
            entry: entry(input, host)?,
        });
    }
    Ok(drafts)
}

fn entry(input: &Input, host: &HostRow) -> Result<Entry> {
    let offered = input.secrets.on(host.id, None);
    let context = context(input, host, offered.clone());
    let content = render::render_within(&input.script.name, &input.script.content, &context, &input.work)
        .map_err(|error| Error::invalid("script", error.to_string()))?;
    let (running_user, timeout_ms) = (input.running_user.clone(), None);
    let (name, language) = (STEP.to_owned(), input.script.language);
    let mut entry = Entry {
        action: Action::Script,
        task_id: 0,
        host: host.name.clone(),
        application: String::new(),
        instance_id: None,
        version: String::new(),
        deploy_path: None,
        run_user: running_user.clone(),
        steps: vec![Step::Script { name, language, content, running_user, timeout_ms }],
        environment: parameters::environment(input.script.parameters(), &input.values),
        output_bytes_max: input.output_bytes_max,
        kill_grace_ms: KILL_GRACE_MS_DEFAULT,
        secrets: Vec::new(),
        shared_paths: Vec::new(),
    };
    for name in input.script.parameters().iter().filter(|one| one.kind == Kind::Secret).map(|one| &one.name) {
        let placed = input.values.get(name).and_then(Value::as_str).unwrap_or_default();
        if let Some(missing) = secret::names(placed).find(|secret| !offered.names().contains(*secret)) {
            let why = format!("there is no secret `{missing}` for the host {}", host.name);
            return Err(Error::invalid(format!("parameters.{name}"), why));
        }
    }
    secrets::name(&mut entry, offered.names()).map_err(|(_, why)| Error::invalid("script", why))?;
    check_size(&entry).map_err(|_| Error::invalid("script", "is too long, rendered with these parameters"))?;
    Ok(entry)
}

fn context(input: &Input, host: &HostRow, secrets: render::SecretNames) -> render::Context {
    render::Context {
        action: Action::Script,
        task: render::Task { creator: input.creator.clone() },
        deploy_task: None,
        application: None,
        version: String::new(),
        previous_version: None,
        deploy_path: None,
        release_path: None,
        host: render::Host {
            id: host.id,
            name: host.name.clone(),
            ip_addresses: input.addresses.get(&host.id).cloned().unwrap_or_default(),
            os_type: host.os_type.clone(),
            location: host.location.clone(),
            environment: host.environment.clone(),
            kind: host.host_type.clone(),
        },
        instance: None,
        instances: render::Targets::from_iter([]),
        hook: STEP.to_owned(),
        running_user: input.running_user.clone().unwrap_or_default(),
        keep_backups: 0,
        source: render::Source { kind: String::new(), url: String::new(), branch: String::new(), path: String::new() },
        vars: input.variables.on(host.id, None),
        params: input.values.clone(),
        secrets,
    }
}

/// Stores it as a task, which has its hosts or waits for them; gives that and its entry in the audit.
///
/// # Errors
/// A conflict when a host is taken and it does not wait.
pub(crate) async fn store(tx: &mut Tx, prepared: Prepared, creator: &str) -> Result<(Made, AuditEntry)> {
    let hosts = prepared.drafts.iter().map(|draft| draft.host_id).collect();
    let named: Vec<String> = prepared.drafts.iter().take(NAMED_MAX).map(|draft| draft.host_name.clone()).collect();
    let detail = format!("{} hosts: {}", prepared.drafts.len(), named.join(", "));
    let plan = NewPlan {
        deploy_task_id: None,
        application_id: None,
        action: Action::Script,
        version: &prepared.script,
        targets: Targets::Hosts(hosts),
        timeout_s: prepared.timeout_s,
        keep_backups: 0,
        source: None,
        creator,
        rollout: prepared.rollout.as_ref(),
        place: prepared.place,
        drafts: prepared.drafts,
        reverts: &BTreeMap::new(),
    };
    let made = store_plan(tx, plan).await?;
    let kind = Action::Script.as_str();
    let entry = AuditEntry::new(AuditList::General, kind, "task", made.task_id, prepared.script).detail(detail);
    Ok((made, entry))
}
