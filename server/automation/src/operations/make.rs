//! Making a task that starts, stops or restarts instances: read, checked and rendered first, stored in one transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use drover_inventory::instances::rules::InstanceStatus;
use drover_inventory::instances::states;
use drover_inventory::secrets::TaskSecrets;
use drover_inventory::variables::TaskVariables;
use drover_kernel::at_once::blocking;
use drover_kernel::db::Read;
use drover_kernel::{Audit, AuditEntry, AuditList, Call, Error, Kernel, Reply, Result, Tx};
use drover_shared::instance::ProcessState;
use drover_shared::limits::OUTPUT_BYTES_MAX_DEFAULT;
use drover_shared::words::{Action, Word as _};

use super::{Operate, commands};
use crate::channel;
use crate::locks::taking::{Place, Targets};
use crate::settings;
use crate::tasks::create::{self, NewPlan};
use crate::tasks::follow_up::Made;
use crate::tasks::plan::{self, Draft, Input};
use crate::tasks::premises::{self, Target};
use crate::tasks::rollout::Rollout;
use crate::tasks::secrets::Offered;
use crate::tasks::view::SubTaskReceipt;

/// Seconds that an operation may take unless somebody says otherwise.
const TIMEOUT_S: i64 = 300;

/// What is asked for.
pub(crate) struct Wanted {
    pub action: Action,
    pub instances: Vec<i64>,
    pub timeout_s: Option<i64>,
    pub rollout: Option<Rollout>,
    pub place: Place,
    /// Whether instances that are so already are left out, in place of refusing everything.
    pub leaves_out: bool,
}

/// A task that is ready to be stored. Everything was left out if there are no instances.
pub(crate) struct Prepared {
    application_id: i64,
    pub wanted: Wanted,
    input: Input,
    drafts: Vec<Draft>,
}

/// Makes the task.
pub(super) async fn make(call: Call<Operate>, application_id: i64, wanted: Wanted) -> Result<Reply<SubTaskReceipt>> {
    let creator = call.caller()?.username.clone();
    let prepared = prepare(call.kernel(), application_id, &creator, wanted).await?;
    let addresses = channel::addresses(&call);
    let mut tx = call.begin().await?;
    let (made, entry) = store(&mut tx, prepared, &creator).await?;
    let receipt = SubTaskReceipt { task_id: made.task_id.to_string(), task_output: addresses.of(&made.channel) };
    tx.commit(Audit::of(entry), receipt).await
}

/// Reads, checks and renders everything; stores nothing.
///
/// # Errors
/// Names what is wrong; a conflict when instances are so already.
pub(crate) async fn prepare(
    kernel: &Kernel,
    application_id: i64,
    creator: &str,
    mut wanted: Wanted,
) -> Result<Prepared> {
    let gathered = gather(&mut kernel.work().read().await?, application_id, creator, &mut wanted).await?;
    let output_bytes_max = kernel.settings().output_bytes_max;
    let input = Input { rollout: wanted.rollout.clone(), output_bytes_max, ..gathered };
    let rendering = blocking(move || commands::draft(&input).map(|drafts| (input, drafts)));
    let (input, drafts) = rendering.await??;
    Ok(Prepared { application_id, wanted, input, drafts })
}

/// Stores it as a task; gives that and its entry in the audit.
///
/// # Errors
/// A conflict when an instance is in another task.
pub(crate) async fn store(tx: &mut Tx, prepared: Prepared, creator: &str) -> Result<(Made, AuditEntry)> {
    let Prepared { application_id, wanted, input, drafts } = prepared;
    let made = create::store_plan(
        tx,
        NewPlan {
            deploy_task_id: None,
            application_id: Some(application_id),
            action: wanted.action,
            version: "",
            targets: Targets::Instances(wanted.instances.clone()),
            timeout_s: wanted.timeout_s.unwrap_or(TIMEOUT_S),
            keep_backups: input.settings.keep_backups(),
            source: None,
            creator,
            rollout: wanted.rollout.as_ref(),
            place: wanted.place,
            drafts,
            reverts: &BTreeMap::new(),
        },
    )
    .await?;
    let hosts: Vec<&str> = input.targets.iter().map(|target| target.host_name.as_str()).take(20).collect();
    let detail = format!("{} instances: {}", wanted.instances.len(), hosts.join(", "));
    let name = input.application.full_name.clone();
    let entry = AuditEntry::new(AuditList::General, wanted.action.as_str(), "task", made.task_id, name).detail(detail);
    Ok((made, entry))
}

async fn gather(read: &mut Read, application_id: i64, creator: &str, wanted: &mut Wanted) -> Result<Input> {
    let mut input = input(read, application_id, creator, (wanted.action, &wanted.instances)).await?;
    if let Some(missing) =
        wanted.instances.iter().find(|id| !input.targets.iter().any(|target| target.instance_id == **id))
    {
        return Err(Error::invalid("id", format!("{missing} is no instance of this application")));
    }
    let already = match wanted.action {
        Action::Start => Some(InstanceStatus::Running),
        Action::Stop => Some(InstanceStatus::Stopped),
        _ => None,
    };
    // The host knows better than what was done last: what crashed may be started, what somebody else started stopped.
    let seen = states::seen(read, &wanted.instances).await?;
    let is_otherwise = |target: &Target| {
        matches!(
            (seen.get(&target.instance_id), wanted.action),
            (Some(ProcessState::Stopped | ProcessState::Crashed), Action::Start)
                | (Some(ProcessState::Running), Action::Stop)
        )
    };
    let is_there =
        |target: &&Target| already.is_some_and(|status| target.status == status.as_str()) && !is_otherwise(target);
    if wanted.leaves_out {
        input.targets.retain(|target| !is_there(&target));
        wanted.instances.retain(|id| input.targets.iter().any(|target| target.instance_id == *id));
        input.everyone = plan::everyone(&input.targets);
        return Ok(input);
    }
    let there: Vec<&str> =
        input.targets.iter().filter(is_there).map(|target| target.host_name.as_str()).take(20).collect();
    if let Some(status) = already.filter(|_| !there.is_empty()) {
        return Err(Error::conflict(format!("already {status} on: {}", there.join(", "))));
    }
    Ok(input)
}

/// What commands and paths of these instances are rendered from, as far as they are the application's.
pub(crate) async fn input(
    read: &mut Read,
    application_id: i64,
    creator: &str,
    (action, instances): (Action, &[i64]),
) -> Result<Input> {
    let targets = premises::targets(read, application_id, instances).await?;
    let application = premises::application(read, application_id).await?;
    let host_ids: Vec<i64> = targets.iter().map(|target| target.host_id).collect();
    let addresses = premises::addresses(read, host_ids.clone()).await?;
    let variables = TaskVariables::read(read, application_id, host_ids.clone(), instances.to_vec()).await?;
    let settings = settings::store::load(read, application_id).await?.map(|loaded| loaded.values).unwrap_or_default();
    let owner = (application.organisation_id, application.id);
    let secrets = TaskSecrets::read(read, owner, host_ids, instances.to_vec()).await?;
    Ok(Input {
        output_bytes_max: OUTPUT_BYTES_MAX_DEFAULT,
        action,
        version: String::new(),
        source_path: String::new(),
        creator: creator.to_owned(),
        deploy_task: None,
        application,
        settings,
        hooks: Vec::new(),
        everyone: plan::everyone(&targets),
        targets,
        addresses,
        releases: Vec::new(),
        former: None,
        rollout: None,
        variables: Arc::new(variables),
        work: Arc::default(),
        secrets: Offered::new(secrets),
    })
}
