//! The sub-task that a deploy task carries, and how its approval is bound to what it would run.
//!
//! Invariants: an approval names the digest of a whole rendered plan at one commit; before anything of it runs the plan
//! is made anew, and when it has become another one the approval is void, with what changed.

use drover_kernel::call::Permission;
use drover_kernel::db::Read;
use drover_kernel::fields::{Many, Number, Reference};
use drover_kernel::{Audit, AuditEntry, AuditList, Call, Error, Kernel, Result, Time, Tx};
use drover_shared::words::{Action, Word as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::moving::unchanged;
use super::rules::{self, Event, Facts, Status};
use super::store::{self, Content, DeployTask};
use crate::locks::taking::Place;
use crate::tasks::binding::Binding;
use crate::tasks::create::{self, Planned, Wanted};
use crate::tasks::follow_up::Made;
use crate::tasks::preview;
use crate::tasks::required;
use crate::tasks::rollout::Rollout;

/// How long after its time a deploy task may still start by itself.
pub(crate) const LATE_S_MAX: u64 = 3_600;

/// The update that a deploy task carries: reviewed with it, and bound to its approval.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "DeployTaskPlanNew")]
pub(super) struct CarriedNew {
    /// Instances to update.
    instances: Many<Reference>,
    /// Seconds it may take; the settings' when left out.
    #[serde(default)]
    timeout: Option<Number>,
    /// How to go from instance to instance; all at once when left out.
    #[serde(default)]
    rollout: Option<Rollout>,
}

/// The update that a deploy task carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "DeployTaskPlan")]
pub(crate) struct Carried {
    /// Ids of the instances, in their order.
    pub instances: Vec<i64>,
    /// Seconds it may take; null for the settings'.
    pub timeout: Option<i64>,
    /// How it goes from instance to instance; null when all at once.
    pub rollout: Option<Rollout>,
}

impl CarriedNew {
    /// Checks what can be checked without the database.
    pub(super) fn check(self) -> Result<Carried> {
        let carried = || {
            let instances = create::wanted_instances(&self.instances)?;
            let timeout = create::wanted_timeout(self.timeout)?;
            if let Some(rollout) = &self.rollout {
                rollout.check()?;
            }
            Ok((instances, timeout))
        };
        let (instances, timeout) = carried().map_err(|error: Error| error.under("plan"))?;
        Ok(Carried { instances, timeout, rollout: self.rollout })
    }
}

/// What starts by itself needs a plan.
pub(super) fn check(content: &Content) -> Result<()> {
    if content.auto_start && content.plan.is_none() {
        return Err(Error::invalid("auto_start", "needs a plan: what nobody approved does not start by itself"));
    }
    Ok(())
}

/// Refuses a plan that goes after tasks which its writer may not see.
pub(super) async fn check_seen<P: Permission>(call: &Call<P>, read: &mut Read, plan: Option<&Carried>) -> Result<()> {
    let rule = plan.and_then(|plan| plan.rollout.as_ref());
    required::check_seen(call, read, rule).await.map_err(|error| error.under("plan"))
}

impl Carried {
    fn wanted(&self) -> Wanted {
        Wanted {
            action: Action::Upgrade,
            instances: self.instances.clone(),
            version: None,
            source: None,
            timeout_s: self.timeout,
            rollout: self.rollout.clone(),
            place: Place::NONE,
        }
    }
}

/// The update that a deploy task carries, as it would run now.
///
/// # Errors
/// What making it would refuse; a conflict when it carries none.
pub(crate) async fn plan(kernel: &Kernel, task: &DeployTask) -> Result<Planned> {
    let carried = task.plan.as_ref().ok_or_else(|| Error::conflict("this deploy task carries no plan"))?;
    let mut read = kernel.work().read().await?;
    let wanted = carried.0.wanted();
    let output_bytes_max = kernel.settings().output_bytes_max;
    let gathered = create::gather(&mut read, task.clone(), &task.creator, &wanted, output_bytes_max).await?;
    drop(read);
    create::render(gathered).await
}

/// The same with the commit that its source is at.
///
/// # Errors
/// As [`plan`]; a conflict when the repository cannot be asked.
pub(crate) async fn bound(kernel: &Kernel, organisation_id: i64, task: &DeployTask) -> Result<(Planned, Binding)> {
    let planned = plan(kernel, task).await?;
    let commit = preview::commit(kernel, organisation_id, planned.source.as_ref()).await?;
    let binding = Binding::of(&planned, commit);
    Ok((planned, binding))
}

/// What an approval is worth now.
pub(crate) enum Standing {
    /// It is bound to no plan.
    Unbound,
    /// What was approved is what would run.
    Good(Box<Planned>),
    /// What would run has become another plan, for this reason.
    Void(String),
}

/// Makes the carried plan anew and compares. Asks the repository.
///
/// # Errors
/// When it cannot be known: the repository or the database cannot be asked.
pub(crate) async fn standing(kernel: &Kernel, organisation_id: i64, task: &DeployTask) -> Result<Standing> {
    let Some(approval) = &task.approval else { return Ok(Standing::Unbound) };
    let mut planned = match plan(kernel, task).await {
        Ok(planned) => planned,
        // It could be planned when it was approved.
        Err(error @ (Error::Invalid { .. } | Error::Conflict(_))) => {
            return Ok(Standing::Void(format!("it cannot be planned any more: {error}")));
        }
        Err(error) => return Err(error),
    };
    let commit = preview::commit(kernel, organisation_id, planned.source.as_ref()).await?;
    let binding = Binding::of(&planned, commit);
    if !binding.is_approved_by(&approval.0) {
        let differences = approval.0.differences(&binding);
        return Ok(Standing::Void(format!("{differences} changed since it was approved")));
    }
    planned.pin(&binding);
    Ok(Standing::Good(Box::new(planned)))
}

/// Carries out a plan that was approved, in the transaction that starts its deploy task if that is not started yet, in
/// somebody's name, and says of it what it is about; gives the update and what the audit says.
///
/// # Errors
/// A conflict when the deploy task is no longer what was planned, or cannot be carried out.
pub(crate) async fn begin(
    tx: &mut Tx,
    task: &DeployTask,
    planned: Planned,
    place: Place,
    (creator, about): (&str, &str),
) -> Result<(Made, Vec<AuditEntry>)> {
    let task = unchanged(tx, task).await?;
    let mut entries = Vec::new();
    if task.status == Status::Approved {
        let status = rules::step(task.status, Event::Start, Facts::default())?;
        store::advance(tx, &task, status).await?;
        let entry = AuditEntry::new(AuditList::General, "start", "deploy_task", task.id, task.version.clone());
        entries.push(entry.detail(about.to_owned()));
    } else {
        rules::step(task.status, Event::MakeSubTask, Facts::default())?;
    }
    let instances = planned.input.targets.len();
    let made = create::store_planned(tx, planned, creator, place).await?;
    let detail = format!("deploy task {}, {instances} instances, {about}", task.id);
    let entry = AuditEntry::new(AuditList::General, Action::Upgrade.as_str(), "task", made.task_id, task.version);
    entries.push(entry.detail(detail));
    Ok((made, entries))
}

/// Takes the approval back: the deploy task waits for review again, and says why.
///
/// # Errors
/// A conflict when somebody else moved the deploy task, or one of its sub-tasks runs.
pub(crate) async fn make_void(mut tx: Tx, task: &DeployTask, why: &str) -> Result<()> {
    let facts = Facts { busy: store::is_busy(&mut tx, task.id).await?, ..Facts::default() };
    let status = rules::step(task.status, Event::Void, facts)?;
    let reason = format!("the approval is void: {why}");
    store::take_back_approval(&mut tx, task, status, &reason).await?;
    let entry = AuditEntry::new(AuditList::General, Event::Void.as_str(), "deploy_task", task.id, task.version.clone())
        .detail(reason);
    tx.finish(Audit::of(entry)).await
}

/// Whether a deploy task that starts by itself is too late for that.
pub(crate) fn is_too_late(planned: Time, now: Time) -> bool {
    now > planned.after(std::time::Duration::from_secs(LATE_S_MAX))
}
