//! What a schedule runs: checked when it is written, and planned anew, with the rights that its owner has by then, each
//! time.
//!
//! Invariant: nothing runs that its owner might not do by hand at that moment.

use drover_identity::caller_of;
use drover_kernel::call::{Permission, require_right};
use drover_kernel::db::Read;
use drover_kernel::fields::{Id, Many, Name, Number, Reference};
use drover_kernel::room::Room;
use drover_kernel::{AuditEntry, Call, Error, Kernel, Result, Tx};
use drover_shared::words::Action;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::store::Schedule;
use crate::deploys::carried::{self, Standing};
use crate::deploys::rules::{self as deploy_rules, Event, Facts, Status};
use crate::deploys::store::{self as deploy_store, DeployTask};
use crate::locks::taking::Place;
use crate::operations::make::{self, Prepared};
use crate::tasks::create::{self, Planned};
use crate::tasks::follow_up::Made;
use crate::tasks::premises;
use crate::tasks::rollout::Rollout;

/// What a schedule runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[schemars(rename = "ScheduledWork")]
pub(crate) enum What {
    /// Starts instances of an application.
    Start(Operation),
    /// Stops them.
    Stop(Operation),
    /// Restarts them.
    Restart(Operation),
    /// Carries out a deploy task that was approved with its plan.
    Deploy {
        /// The deploy task.
        deploy_task_id: i64,
    },
}

/// On which instances, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ScheduledOperation")]
pub(crate) struct Operation {
    /// The application.
    pub application_id: i64,
    /// Instances; null for all that there are by then.
    pub instances: Option<Vec<i64>>,
    /// Seconds that it may take; null for as long as by hand.
    pub timeout: Option<i64>,
    /// How it goes from instance to instance; null when all at once.
    pub rollout: Option<Rollout>,
}

/// What is to be run, as a person writes it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ScheduledWorkNew")]
pub(super) struct WhatNew {
    /// `start`, `stop`, `restart` or `deploy`.
    kind: Name,
    /// Application whose instances are started, stopped or restarted.
    #[serde(default, alias = "application")]
    application_id: Option<Id>,
    /// Instances; when left out all that there are by then.
    #[serde(default)]
    instances: Option<Many<Reference>>,
    /// Seconds that it may take.
    #[serde(default)]
    timeout: Option<Number>,
    /// How to go from instance to instance; all at once when left out.
    #[serde(default)]
    rollout: Option<Rollout>,
    /// Deploy task that is carried out, approved with its plan.
    #[serde(default)]
    deploy_task_id: Option<Id>,
}

impl WhatNew {
    /// Checks what can be checked without the database.
    pub(super) fn check(self) -> Result<What> {
        self.checked().map_err(|error| error.under("what"))
    }

    fn checked(self) -> Result<What> {
        let makes: fn(Operation) -> What = match self.kind.0.as_str() {
            "start" => What::Start,
            "stop" => What::Stop,
            "restart" => What::Restart,
            "deploy" => {
                let given = self.application_id.is_some() || self.instances.is_some();
                if given || self.timeout.is_some() || self.rollout.is_some() {
                    let text = "a deploy has deploy_task_id alone: the rest is in the plan that was approved";
                    return Err(Error::invalid("kind", text));
                }
                let id = self.deploy_task_id.ok_or_else(|| Error::invalid("deploy_task_id", "is missing"))?;
                return Ok(What::Deploy { deploy_task_id: id.0 });
            }
            other => {
                let text = format!("`{other}` is not start, stop, restart or deploy");
                return Err(Error::invalid("kind", text));
            }
        };
        if self.deploy_task_id.is_some() {
            return Err(Error::invalid("deploy_task_id", "goes with the kind deploy alone"));
        }
        let application = self.application_id.ok_or_else(|| Error::invalid("application_id", "is missing"))?;
        if let Some(rollout) = &self.rollout {
            rollout.check()?;
            if rollout.auto_revert {
                return Err(Error::invalid("rollout.auto_revert", "there is no release to take back"));
            }
            if rollout.after_required || !rollout.after_tasks.is_empty() {
                return Err(Error::invalid("rollout", "what a schedule runs waits for no other tasks"));
            }
        }
        Ok(makes(Operation {
            application_id: application.0,
            instances: self.instances.as_ref().map(create::wanted_instances).transpose()?,
            timeout: create::wanted_timeout(self.timeout)?,
            rollout: self.rollout,
        }))
    }
}

impl What {
    fn operation(&self) -> Option<(Action, &Operation)> {
        match self {
            Self::Start(operation) => Some((Action::Start, operation)),
            Self::Stop(operation) => Some((Action::Stop, operation)),
            Self::Restart(operation) => Some((Action::Restart, operation)),
            Self::Deploy { .. } => None,
        }
    }

    /// Kind, id and right of what its owner has to hold.
    fn need(&self) -> (&'static str, i64, &'static str) {
        match self {
            Self::Start(operation) | Self::Stop(operation) | Self::Restart(operation) => {
                ("application", operation.application_id, "restart_app")
            }
            Self::Deploy { deploy_task_id } => ("deploy_task", *deploy_task_id, "deploy_app"),
        }
    }

    /// Checks that the caller may do it by hand.
    pub(super) async fn require<P: Permission>(&self, call: &Call<P>, read: &mut Read) -> Result<()> {
        let (kind, id, right) = self.need();
        call.require(read, kind, id, right).await
    }

    /// Checks it against what there is, and gives the application that it is about.
    pub(super) async fn application(&self, read: &mut Read, organisation_id: i64) -> Result<i64> {
        let checked = match self {
            Self::Deploy { deploy_task_id } => {
                let task = deploy_store::load(read, organisation_id, *deploy_task_id).await?;
                check_plan(&task).map(|()| task.application_id)
            }
            Self::Start(operation) | Self::Stop(operation) | Self::Restart(operation) => {
                let wanted = operation.instances.as_deref().unwrap_or_default();
                let targets = premises::targets(read, operation.application_id, wanted).await?;
                let missing = wanted.iter().find(|id| !targets.iter().any(|target| target.instance_id == **id));
                match missing {
                    Some(id) => Err(Error::invalid("instances", format!("{id} is no instance of this application"))),
                    None => Ok(operation.application_id),
                }
            }
        };
        checked.map_err(|error| error.under("what"))
    }

    /// In short, for people.
    pub(super) fn told(&self) -> String {
        match (self.operation(), self) {
            (Some((action, Operation { instances: None, .. })), _) => format!("{action} all instances"),
            (Some((action, Operation { instances: Some(ids), .. })), _) => format!("{action} {} instances", ids.len()),
            (None, Self::Deploy { deploy_task_id }) => format!("deploy task {deploy_task_id}"),
            (None, _) => String::new(),
        }
    }
}

/// Only what was approved with its plan runs by itself.
fn check_plan(task: &DeployTask) -> Result<()> {
    if task.plan.is_none() {
        return Err(Error::invalid(
            "deploy_task_id",
            "this deploy task carries no plan: nobody can approve what would run",
        ));
    }
    Ok(())
}

/// What is ready to begin.
pub(super) enum Ready {
    Operation(Box<Prepared>),
    Deploy(Box<(DeployTask, Planned)>),
    /// The approval is void, for this reason.
    Void(Box<DeployTask>, String),
}

/// Plans what a schedule runs, with the rights of the user who answers for it. Asks the repository; stores nothing.
///
/// # Errors
/// What doing it by hand would be refused for.
pub(super) async fn prepare(kernel: &Kernel, schedule: &Schedule, user_id: i64) -> Result<Ready> {
    let mut read = kernel.work().read().await?;
    let caller = match deploy_store::enabled_username(&mut read, schedule.organisation_id, user_id).await? {
        Some(_) => caller_of(&mut read, schedule.organisation_id, user_id).await?,
        None => None,
    };
    let caller = caller.ok_or_else(|| Error::Forbidden("who answers for it is no user any more".to_owned()))?;
    let (kind, id, right) = schedule.what.0.need();
    require_right(kernel, &mut read, &caller, (kind, id, right)).await?;
    match schedule.what.0.operation() {
        Some((action, operation)) => {
            let wanted = wanted(&mut read, action, operation).await?;
            drop(read);
            let prepared = make::prepare(kernel, operation.application_id, &caller.username, wanted).await?;
            Ok(Ready::Operation(Box::new(prepared)))
        }
        None => {
            let task = deploy_store::load(&mut read, schedule.organisation_id, id).await?;
            drop(read);
            deploy(kernel, task, schedule.organisation_id).await
        }
    }
}

async fn wanted(read: &mut Read, action: Action, operation: &Operation) -> Result<make::Wanted> {
    let instances = match &operation.instances {
        Some(instances) => instances.clone(),
        None => premises::instances_of(read, operation.application_id).await?,
    };
    if instances.is_empty() {
        return Err(Error::conflict("the application has no instances"));
    }
    let rollout = operation.rollout.clone();
    Ok(make::Wanted { action, instances, timeout_s: operation.timeout, rollout, place: Place::NONE, leaves_out: true })
}

async fn deploy(kernel: &Kernel, task: DeployTask, organisation_id: i64) -> Result<Ready> {
    check_plan(&task)?;
    kernel.part::<Room>().require().await?;
    if task.status != Status::Approved {
        // It waits for a person, and not for a while.
        let standing = deploy_rules::step(task.status, Event::MakeSubTask, Facts::default());
        standing.map_err(|error| Error::Forbidden(Error::from(error).to_string()))?;
    }
    match carried::standing(kernel, organisation_id, &task).await? {
        Standing::Good(planned) => Ok(Ready::Deploy(Box::new((task, *planned)))),
        Standing::Void(why) => Ok(Ready::Void(Box::new(task), why)),
        Standing::Unbound => Err(Error::Forbidden("this deploy task was approved without its plan".to_owned())),
    }
}

/// Begins it; gives the task and what the audit says.
pub(super) async fn begin(tx: &mut Tx, ready: Ready, creator: &str, about: &str) -> Result<(Made, Vec<AuditEntry>)> {
    match ready {
        Ready::Operation(prepared) => {
            let (made, entry) = make::store(tx, *prepared, creator).await?;
            Ok((made, vec![entry]))
        }
        Ready::Deploy(deploy) => {
            let (task, planned) = *deploy;
            carried::begin(tx, &task, planned, creator, about).await
        }
        Ready::Void(_, why) => Err(Error::conflict(format!("the approval is void: {why}"))),
    }
}
