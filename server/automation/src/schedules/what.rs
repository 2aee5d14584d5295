//! What a schedule runs: checked when it is written, and planned anew, with the rights that its owner has by then, each
//! time.
//!
//! Invariant: nothing runs that its owner might not do by hand at that moment.

use drover_identity::caller_of;
use drover_kernel::call::{Caller, Permission, require_right};
use drover_kernel::db::Read;
use drover_kernel::fields::{Id, Many, Name, Number, Reference};
use drover_kernel::room::Room;
use drover_kernel::{AuditEntry, Call, Error, Kernel, Result, Tx};
use drover_shared::words::Action;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::store::Schedule;
use crate::deploys::carried::{self, Standing};
use crate::deploys::rules::{self as deploy_rules, Event, Facts, Status};
use crate::deploys::store::{self as deploy_store, DeployTask};
use crate::locks::taking::{IfBusy, Place};
use crate::operations::make::{self, Prepared};
use crate::script_tasks::checked_rollout;
use crate::script_tasks::make as script_make;
use crate::script_tasks::targets::{HostRef, ScriptRef, Wanted};
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
    /// Runs a stored script on hosts.
    Script(Box<ScriptRun>),
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

/// Which script on which hosts, and how. Both are looked up anew each time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ScheduledScript")]
pub(crate) struct ScriptRun {
    /// The stored script, by id or name.
    pub script: ScriptRef,
    /// Where.
    #[serde(flatten)]
    pub targets: Wanted,
    /// Values of its parameters by name.
    pub parameters: Map<String, Value>,
    /// Account to run as; null for the script's.
    pub running_user: Option<String>,
    /// Seconds that it may take; null for as long as by hand.
    pub timeout: Option<i64>,
    /// How it goes from host to host; null when all at once.
    pub rollout: Option<Rollout>,
}

impl ScriptRun {
    fn wanted(&self, if_busy: IfBusy) -> script_make::Wanted {
        script_make::Wanted {
            script: self.script.clone(),
            targets: self.targets.clone(),
            parameters: self.parameters.clone(),
            running_user: self.running_user.clone(),
            timeout_s: self.timeout,
            rollout: self.rollout.clone(),
            place: Place { if_busy, ..Place::NONE },
        }
    }

    /// Checks that the caller may run it by hand now.
    pub(super) async fn check(&self, kernel: &Kernel, caller: &Caller) -> Result<()> {
        let prepared = script_make::prepare(kernel, caller, self.wanted(IfBusy::Refuse)).await;
        prepared.and_then(script_make::Prepared::meant).map(drop).map_err(|error| error.under("what"))
    }
}

/// What is to be run, as a person writes it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ScheduledWorkNew")]
pub(super) struct WhatNew {
    /// `start`, `stop`, `restart`, `deploy` or `script`.
    kind: Name,
    /// Application whose instances are started, stopped or restarted, or on whose hosts a script runs: then by id or full
    /// name.
    #[serde(default, alias = "application")]
    application_id: Option<ScriptRef>,
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
    /// Stored script, by id or name.
    #[serde(default)]
    script: Option<ScriptRef>,
    /// Hosts that it runs on, each by id or name.
    #[serde(default)]
    hosts: Option<Many<HostRef>>,
    /// It runs on the hosts that have this label by then.
    #[serde(default)]
    label: Option<Name>,
    /// A value for each parameter that has no default, or shall have another one.
    #[serde(default)]
    parameters: Option<Map<String, Value>>,
    /// Account to run as; the script's when left out. Another one is for administrators.
    #[serde(default)]
    running_user: Option<Name>,
}

/// Members of what starts, stops or restarts instances.
const OF_OPERATION: &[&str] = &["application_id", "instances", "timeout", "rollout"];
/// Members of what runs a script.
const OF_SCRIPT: &[&str] =
    &["script", "hosts", "application_id", "label", "parameters", "running_user", "timeout", "rollout"];

impl WhatNew {
    /// Checks what can be checked without the database.
    pub(super) fn check(self) -> Result<What> {
        self.checked().map_err(|error| error.under("what"))
    }

    fn checked(self) -> Result<What> {
        let kind = self.kind.0.clone();
        match kind.as_str() {
            "start" => self.operation().map(What::Start),
            "stop" => self.operation().map(What::Stop),
            "restart" => self.operation().map(What::Restart),
            "deploy" => self.deploy(),
            "script" => self.script().map(|run| What::Script(Box::new(run))),
            _ => Err(Error::invalid("kind", format!("`{kind}` is not start, stop, restart, deploy or script"))),
        }
    }

    /// Refuses members that this kind does not have.
    fn only(&self, members: &[&str]) -> Result<()> {
        let given = [
            ("application_id", self.application_id.is_some()),
            ("instances", self.instances.is_some()),
            ("timeout", self.timeout.is_some()),
            ("rollout", self.rollout.is_some()),
            ("deploy_task_id", self.deploy_task_id.is_some()),
            ("script", self.script.is_some()),
            ("hosts", self.hosts.is_some()),
            ("label", self.label.is_some()),
            ("parameters", self.parameters.is_some()),
            ("running_user", self.running_user.is_some()),
        ];
        match given.iter().find(|(member, is_given)| *is_given && !members.contains(member)) {
            Some((member, _)) => Err(Error::invalid(*member, format!("does not go with the kind {}", self.kind.0))),
            None => Ok(()),
        }
    }

    fn deploy(self) -> Result<What> {
        // The rest is in the plan that was approved.
        self.only(&["deploy_task_id"])?;
        let id = self.deploy_task_id.ok_or_else(|| Error::invalid("deploy_task_id", "is missing"))?;
        Ok(What::Deploy { deploy_task_id: id.0 })
    }

    fn operation(self) -> Result<Operation> {
        self.only(OF_OPERATION)?;
        let application_id = match self.application_id {
            Some(ScriptRef::Id(id)) => id,
            Some(ScriptRef::Name(_)) => return Err(Error::invalid("application_id", "must be an id, a number")),
            None => return Err(Error::invalid("application_id", "is missing")),
        };
        if let Some(rollout) = &self.rollout {
            rollout.check()?;
            if rollout.auto_revert {
                return Err(Error::invalid("rollout.auto_revert", "there is no release to take back"));
            }
            if rollout.after_required || !rollout.after_tasks.is_empty() {
                return Err(Error::invalid("rollout", "what a schedule runs waits for no other tasks"));
            }
        }
        Ok(Operation {
            application_id,
            instances: self.instances.as_ref().map(create::wanted_instances).transpose()?,
            timeout: create::wanted_timeout(self.timeout)?,
            rollout: self.rollout,
        })
    }

    fn script(self) -> Result<ScriptRun> {
        self.only(OF_SCRIPT)?;
        Ok(ScriptRun {
            script: self.script.ok_or_else(|| Error::invalid("script", "is missing"))?,
            targets: Wanted::of(self.hosts, self.application_id, self.label)?,
            parameters: self.parameters.unwrap_or_default(),
            running_user: self.running_user.and_then(Name::non_empty),
            timeout: create::wanted_timeout(self.timeout)?,
            rollout: checked_rollout(self.rollout)?,
        })
    }
}

impl What {
    fn operation(&self) -> Option<(Action, &Operation)> {
        match self {
            Self::Start(operation) => Some((Action::Start, operation)),
            Self::Stop(operation) => Some((Action::Stop, operation)),
            Self::Restart(operation) => Some((Action::Restart, operation)),
            Self::Deploy { .. } | Self::Script(_) => None,
        }
    }

    /// What it runs on hosts, if that is what it does.
    pub(super) fn script(&self) -> Option<&ScriptRun> {
        match self {
            Self::Script(run) => Some(run),
            _ => None,
        }
    }

    /// Kind, id and right of what its owner has to hold; of a script that follows from its hosts.
    fn need(&self) -> Option<(&'static str, i64, &'static str)> {
        match self {
            Self::Start(operation) | Self::Stop(operation) | Self::Restart(operation) => {
                Some(("application", operation.application_id, "restart_app"))
            }
            Self::Deploy { deploy_task_id } => Some(("deploy_task", *deploy_task_id, "deploy_app")),
            Self::Script(_) => None,
        }
    }

    /// Checks that the caller may do by hand what this schedule runs, as far as that depends on whose it is.
    pub(super) async fn require<P: Permission>(&self, call: &Call<P>, read: &mut Read, id: i64) -> Result<()> {
        let (kind, id, right) = self.need().unwrap_or(("schedule", id, "restart_app"));
        call.require(read, kind, id, right).await
    }

    /// Checks it, and what the caller may do, against what there is, and gives the application that it is about, if it
    /// is about one.
    pub(super) async fn application<P: Permission>(&self, call: &Call<P>) -> Result<Option<i64>> {
        let mut read = call.read().await?;
        if let Some((kind, id, right)) = self.need() {
            call.require(&mut read, kind, id, right).await?;
        }
        let checked = match self {
            Self::Script(run) => {
                drop(read);
                return run.check(call.kernel(), call.caller()?).await.map(|()| None);
            }
            Self::Deploy { deploy_task_id } => {
                let task = deploy_store::load(&mut read, call.organisation_id(), *deploy_task_id).await?;
                check_plan(&task).map(|()| task.application_id)
            }
            Self::Start(operation) | Self::Stop(operation) | Self::Restart(operation) => {
                let wanted = operation.instances.as_deref().unwrap_or_default();
                let targets = premises::targets(&mut read, operation.application_id, wanted).await?;
                let missing = wanted.iter().find(|id| !targets.iter().any(|target| target.instance_id == **id));
                match missing {
                    Some(id) => Err(Error::invalid("instances", format!("{id} is no instance of this application"))),
                    None => Ok(operation.application_id),
                }
            }
        };
        checked.map(Some).map_err(|error| error.under("what"))
    }

    /// In short, for people.
    pub(super) fn told(&self) -> String {
        if let Some(ScriptRun { script, targets, .. }) = self.script() {
            return match targets {
                Wanted::Hosts(hosts) => format!("script {script} on {} hosts", hosts.len()),
                Wanted::Application(application) => format!("script {script} on the hosts of {application}"),
                Wanted::Label(label) => format!("script {script} on label {label}"),
            };
        }
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
    Script(Box<script_make::Prepared>),
    /// There is nothing to do, for this reason.
    Nothing(String),
    /// The approval is void, for this reason.
    Void(Box<DeployTask>, String),
}

impl Ready {
    /// What the trace has to say of it beyond its task: which text a script had.
    pub(super) fn told(&self) -> String {
        match self {
            Self::Script(prepared) => format!(", script {} with SHA-256 {}", prepared.script, prepared.digest),
            _ => String::new(),
        }
    }
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
    if let Some(need) = schedule.what.0.need() {
        require_right(kernel, &mut read, &caller, need).await?;
    }
    match (&schedule.what.0, schedule.what.0.operation()) {
        (_, Some((action, operation))) => {
            let wanted = wanted(&mut read, action, operation, schedule.if_busy).await?;
            drop(read);
            let prepared = make::prepare(kernel, operation.application_id, &caller.username, wanted).await?;
            if prepared.wanted.instances.is_empty() {
                return Ok(Ready::Nothing("every instance is so already".to_owned()));
            }
            Ok(Ready::Operation(Box::new(prepared)))
        }
        (What::Script(run), _) => {
            drop(read);
            let prepared = script_make::prepare(kernel, &caller, run.wanted(schedule.if_busy)).await?;
            Ok(match prepared.nothing() {
                Some((_, why)) => Ready::Nothing(why),
                None => Ready::Script(Box::new(prepared)),
            })
        }
        (What::Deploy { deploy_task_id }, _) => {
            let task = deploy_store::load(&mut read, schedule.organisation_id, *deploy_task_id).await?;
            drop(read);
            deploy(kernel, task, schedule.organisation_id).await
        }
        _ => Err(Error::internal("a schedule that runs nothing")),
    }
}

async fn wanted(read: &mut Read, action: Action, operation: &Operation, if_busy: IfBusy) -> Result<make::Wanted> {
    let instances = match &operation.instances {
        Some(instances) => instances.clone(),
        None => premises::instances_of(read, operation.application_id).await?,
    };
    if instances.is_empty() {
        return Err(Error::conflict("the application has no instances"));
    }
    let rollout = operation.rollout.clone();
    let place = Place { if_busy, ..Place::NONE };
    Ok(make::Wanted { action, instances, timeout_s: operation.timeout, rollout, place, leaves_out: true })
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

/// Begins it, or has it wait; gives the task and what the audit says.
pub(super) async fn begin(
    tx: &mut Tx,
    ready: Ready,
    if_busy: IfBusy,
    creator: &str,
    about: &str,
) -> Result<(Made, Vec<AuditEntry>)> {
    match ready {
        Ready::Operation(prepared) => {
            let (made, entry) = make::store(tx, *prepared, creator).await?;
            Ok((made, vec![entry]))
        }
        Ready::Deploy(deploy) => {
            let (task, planned) = *deploy;
            // What takes back what it changes does not wait.
            let takes_back = planned.input.rollout.as_ref().is_some_and(|rollout| rollout.auto_revert);
            let place = Place { if_busy: if takes_back { IfBusy::Refuse } else { if_busy }, ..Place::NONE };
            carried::begin(tx, &task, planned, place, (creator, about)).await
        }
        Ready::Script(prepared) => {
            let (made, entry) = script_make::store(tx, *prepared, creator).await?;
            Ok((made, vec![entry]))
        }
        Ready::Nothing(why) => Err(Error::conflict(why)),
        Ready::Void(_, why) => Err(Error::conflict(format!("the approval is void: {why}"))),
    }
}
