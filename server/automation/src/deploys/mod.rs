//! Deploy tasks: asking for a version of an application to go live, its review, and carrying it out.
//!
//! Invariants: a deploy task's state moves only by `rules`; whoever was given a task may do on it what the giver might.

pub(crate) mod carried;
pub(crate) mod moving;
pub mod rules;
pub(crate) mod store;

use drover_identity::visible_applications;
use drover_kernel::db::Condition;
use drover_kernel::fields::{Flag, Id, Line, Name, Number, Patch, Prose, Words};
use drover_kernel::resources::{ResourceKind, Resources};
use drover_kernel::room::Room;
use drover_kernel::{
    Audit, AuditEntry, AuditList, Body, Call, Error, Kernel, Message, Page, Paging, Path, Query, Reply, Result, Routes,
    Time, api_words, permission, sql, when,
};
use drover_shared::words::Word as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::settings::{self, store::Loaded};
use crate::tasks::{self, SubTaskOut};
use carried::{Carried, CarriedNew};
use rules::{Event, Facts, Status};
use store::{Content, DeployTask};

permission!(pub List, "deploy_tasks.list", "List deploy tasks of the applications one may see", SignedIn);
permission!(pub Read, "deploy_tasks.read", "See a deploy task, its sub-tasks and their output",
    Resource { kind: "deploy_task", right: "view_app" });
permission!(pub Create, "deploy_tasks.create", "Ask for a version to be deployed",
    Named { kind: "application", right: "deploy_app" });
permission!(pub Deploy, "deploy_tasks.deploy", "Start, close and carry out a deploy task",
    Resource { kind: "deploy_task", right: "deploy_app" });
permission!(pub Review, "deploy_tasks.review", "Approve or reject a deploy task",
    Resource { kind: "deploy_task", right: "review_app_deploy_task" });
permission!(pub Delegate, "deploy_tasks.delegate", "Hand a deploy task over, for who may deploy or review it",
    Resource { kind: "deploy_task", right: "view_app" });

/// Routes of deploy tasks.
pub fn routes() -> Routes {
    let base = "/applications/deploy-tasks/";
    let at = |rest: &str| format!("{base}{{id}}/{rest}");
    Routes::tagged("deploy-tasks")
        .get(base, "deploy-tasks-list", "List deploy tasks.", list)
        .post(base, "deploy-task-create", "Ask for a version of an application to be deployed.", create)
        .get(&at(""), "deploy-task-detail", "Read one deploy task with its sub-tasks.", detail)
        .patch(&at(""), "deploy-task-update", "Change a deploy task that is not approved yet.", update)
        .get(&at("plan/"), "deploy-task-plan", "See what the update that a deploy task carries would do.", moving::plan)
        .post(
            &at("actions/approve/"),
            "deploy-task-approve",
            "Approve a deploy task that waits for review.",
            moving::approve,
        )
        .post(&at("actions/reject/"), "deploy-task-reject", "Turn a deploy task down.", moving::reject)
        .post(&at("actions/start/"), "deploy-task-start", "Begin carrying out an approved deploy task.", moving::start)
        .post(&at("actions/close/"), "deploy-task-close", "End a deploy task.", moving::close)
        .post(&at("actions/delegate/"), "deploy-task-delegate", "Hand a deploy task over to another user.", delegate)
}

/// Whoever reviews a task has to read it, its sub-tasks and their output.
pub(crate) const REVIEWERS_READ: &[(&str, &str)] = &[("review_app_deploy_task", "view_app")];

/// Deploy tasks stand for their application, plus what was delegated.
pub fn resources() -> Resources {
    Resources::default().with(ResourceKind {
        name: "deploy_task",
        noun: "deploy task",
        governed_by: "application",
        find: sql!("SELECT application_id FROM deploy_tasks WHERE organisation_id = $1 AND id = $2"),
        further_rights: Some(sql!(
            "SELECT right_name FROM deploy_task_rights WHERE organisation_id = $1 AND deploy_task_id = $2 AND user_id = $3"
        )),
        implied: REVIEWERS_READ,
        text_key: false,
        instead: None,
    })
}

api_words! {
    /// Importance of a deploy task.
    pub enum Level {
        /// Highest.
        S = "S",
        /// High.
        A = "A",
        /// Middle.
        B = "B",
        /// Low.
        C = "C",
        /// Informative.
        I = "I",
    }
}

/// A deploy task.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "DeployTask")]
pub struct DeployTaskOut {
    id: i64,
    application_id: i64,
    application: ApplicationName,
    version: String,
    description: String,
    #[schemars(with = "Words<Level>")]
    level: String,
    package_source: String,
    planned_exec_time: i64,
    upgrade_checklist: Option<String>,
    upgrade_steps: Option<String>,
    rollback_steps: Option<String>,
    creator: String,
    assignee: Option<Assignee>,
    reviewer: Option<String>,
    status: Status,
    /// Why it is where it is, when nobody put it there.
    status_reason: Option<String>,
    /// The update that it carries.
    plan: Option<Carried>,
    /// Digest of the plan that was approved.
    plan_digest: Option<String>,
    /// Commit that was approved.
    plan_commit: Option<String>,
    /// Whether it starts by itself at its time once it is approved.
    auto_start: bool,
    created_time: String,
    reviewed_time: Option<String>,
    started_time: Option<String>,
    closed_time: Option<String>,
    /// Sub-tasks, oldest first; in the detail only.
    #[serde(skip_serializing_if = "Option::is_none")]
    sub_tasks: Option<Vec<SubTaskOut>>,
}

/// An application in short.
#[derive(Debug, Serialize, JsonSchema)]
struct ApplicationName {
    id: i64,
    name: String,
    full_name: String,
}

/// A user in short.
#[derive(Debug, Serialize, JsonSchema)]
struct Assignee {
    id: i64,
    username: String,
}

fn shown(kernel: &Kernel, task: DeployTask, sub_tasks: Option<Vec<SubTaskOut>>) -> DeployTaskOut {
    let show = |time: Option<Time>| time.map(|time| kernel.show(time));
    DeployTaskOut {
        id: task.id,
        application_id: task.application_id,
        application: ApplicationName {
            id: task.application_id,
            name: task.application_name,
            full_name: task.application_full_name,
        },
        version: task.version,
        description: task.description,
        level: task.level,
        package_source: task.package_source,
        planned_exec_time: task.planned_exec_at.seconds(),
        upgrade_checklist: task.upgrade_checklist,
        upgrade_steps: task.upgrade_steps,
        rollback_steps: task.rollback_steps,
        creator: task.creator,
        assignee: task.assignee_id.zip(task.assignee).map(|(id, username)| Assignee { id, username }),
        reviewer: task.reviewer,
        status: task.status,
        status_reason: task.status_reason,
        plan: task.plan.map(|plan| plan.0),
        plan_digest: task.approval.as_ref().map(|approval| approval.0.digest.to_string()),
        plan_commit: task.approval.and_then(|approval| approval.0.commit),
        auto_start: task.auto_start,
        created_time: kernel.show(task.created_at),
        reviewed_time: show(task.reviewed_at),
        started_time: show(task.started_at),
        closed_time: show(task.closed_at),
        sub_tasks,
    }
}

/// Filters of the list.
#[derive(Deserialize, JsonSchema)]
struct Filters {
    /// Tasks of one application.
    #[serde(default, alias = "application")]
    application_id: Option<Id>,
    /// Tasks in one state.
    #[serde(default)]
    status: Option<Status>,
    /// Tasks made by this username.
    #[serde(default)]
    creator: Option<Name>,
    /// Tasks of one level.
    #[serde(default)]
    level: Option<Level>,
    /// Tasks for one version.
    #[serde(default)]
    version: Option<Name>,
    /// Made later than this time.
    #[serde(default, rename = "time__gt")]
    time_after: Option<Name>,
    /// Made earlier than this time.
    #[serde(default, rename = "time__lt")]
    time_before: Option<Name>,
}

async fn list(call: Call<List>, filters: Query<Filters>, paging: Paging) -> Result<Reply<Page<DeployTaskOut>>> {
    let filters = filters.0;
    let caller = call.caller()?;
    let mut conditions: Vec<Condition> = Vec::new();
    if let Some(visible) = visible_applications(caller) {
        let delegated = when!(
            "EXISTS (SELECT 1 FROM deploy_task_rights r WHERE r.deploy_task_id = d.id AND r.user_id = $1)",
            caller.user_id
        );
        conditions.push(visible.or(delegated));
    }
    conditions.extend(filters.application_id.map(|id| when!("d.application_id = $1", id.0)));
    conditions.extend(filters.status.map(|status| when!("d.status = $1", status)));
    conditions.extend(filters.creator.map(|creator| when!("d.creator = $1", creator.0)));
    conditions.extend(filters.level.map(|level| when!("d.level = $1", level)));
    conditions.extend(filters.version.map(|version| when!("d.version = $1", version.0)));
    let zone = call.kernel().settings().zone;
    let time = |text: Option<Name>, field: &str| {
        text.map(|text| Time::parse(&text.0, zone).map_err(|reason| Error::invalid(field, reason))).transpose()
    };
    conditions.extend(time(filters.time_after, "time__gt")?.map(|time| when!("d.created_at > $1", time)));
    conditions.extend(time(filters.time_before, "time__lt")?.map(|time| when!("d.created_at < $1", time)));
    let mut read = call.read().await?;
    let (count, rows) = store::list(&mut read, call.organisation_id(), &conditions, &paging).await?;
    let results = rows.into_iter().map(|task| shown(call.kernel(), task, None)).collect();
    Ok(Reply::new(paging.page(count, results)))
}

/// A new deploy task.
#[derive(Deserialize, JsonSchema)]
struct DeployTaskNew {
    /// Application to deploy.
    #[serde(alias = "application")]
    application_id: Id,
    /// Version to deploy: looked up as tag, commit or branch; else a label for the head of the configured branch.
    version: Name,
    /// What goes live.
    #[serde(default)]
    description: Prose,
    /// Importance.
    level: Level,
    /// Path inside the repository; none is the whole tree.
    #[serde(default, alias = "deploy_source", alias = "update_source")]
    package_source: Line,
    /// Intended time, in seconds since 1970 UTC.
    planned_exec_time: Number,
    /// What to check.
    #[serde(default)]
    upgrade_checklist: Option<Prose>,
    /// How to carry it out.
    #[serde(default)]
    upgrade_steps: Option<Prose>,
    /// How to go back.
    #[serde(default)]
    rollback_steps: Option<Prose>,
    /// The update to be approved with it.
    #[serde(default)]
    plan: Option<CarriedNew>,
    /// Whether the plan starts by itself at the planned time, once it is approved.
    #[serde(default)]
    auto_start: Option<Flag>,
}

/// The answer to a new deploy task.
#[derive(Debug, Serialize, JsonSchema)]
struct Created {
    /// `success`.
    message: &'static str,
    /// Id of the new deploy task.
    id: i64,
}

async fn create(call: Call<Create>, body: Body<DeployTaskNew>) -> Result<Reply<Created>> {
    let new = body.0;
    let application_id = new.application_id.0;
    let content = Content {
        version: new.version.required("version")?,
        description: new.description.0,
        level: new.level.as_str().to_owned(),
        package_source: new.package_source.0,
        planned_exec_at: planned(new.planned_exec_time)?,
        upgrade_checklist: new.upgrade_checklist.map(|text| text.0),
        upgrade_steps: new.upgrade_steps.map(|text| text.0),
        rollback_steps: new.rollback_steps.map(|text| text.0),
        plan: new.plan.map(CarriedNew::check).transpose()?,
        auto_start: new.auto_start.is_some_and(|flag| flag.0),
    };
    carried::check(&content)?;
    let mut read = call.read().await?;
    call.require(&mut read, "application", application_id, "deploy_app").await?;
    carried::check_seen(&call, &mut read, content.plan.as_ref()).await?;
    drop(read);
    call.kernel().part::<Room>().require().await?;
    let caller = call.caller()?;
    let creator = (caller.user_id, caller.username.clone());
    let mut tx = call.begin().await?;
    let settings = settings::store::load(&mut tx, application_id).await?;
    Loaded::check_enabled(settings)?;
    let id = store::insert(&mut tx, application_id, (creator.0, &creator.1), &content).await?;
    let entry = AuditEntry::new(AuditList::General, "create", "deploy_task", id, content.version.clone());
    tx.commit(Audit::of(entry), Created { message: "success", id }).await
}

fn planned(time: Number) -> Result<Time> {
    if (0..=253_402_300_799).contains(&time.0) {
        Ok(Time::from_seconds(time.0))
    } else {
        Err(Error::invalid("planned_exec_time", "must be seconds since 1970, before the year 10000"))
    }
}

async fn detail(call: Call<Read>, id: Path<i64>) -> Result<Reply<DeployTaskOut>> {
    let mut read = call.read().await?;
    let task = store::load(&mut read, call.organisation_id(), id.0).await?;
    let sub_tasks = tasks::of_deploy_task(&call, &mut read, &task).await?;
    Ok(Reply::new(shown(call.kernel(), task, Some(sub_tasks))))
}

/// A change of a deploy task.
#[derive(Deserialize, JsonSchema)]
struct DeployTaskPatch {
    /// Version.
    #[serde(default)]
    version: Option<Name>,
    /// What goes live.
    #[serde(default)]
    description: Option<Prose>,
    /// Importance.
    #[serde(default)]
    level: Option<Level>,
    /// Path inside the repository.
    #[serde(default, alias = "deploy_source", alias = "update_source")]
    package_source: Option<Line>,
    /// Seconds since 1970 UTC.
    #[serde(default)]
    planned_exec_time: Option<Number>,
    /// What to check.
    #[serde(default)]
    upgrade_checklist: Patch<Prose>,
    /// How to carry it out.
    #[serde(default)]
    upgrade_steps: Patch<Prose>,
    /// How to go back.
    #[serde(default)]
    rollback_steps: Patch<Prose>,
    /// The update to be approved with it.
    #[serde(default)]
    plan: Patch<CarriedNew>,
    /// Whether the plan starts by itself at the planned time, once it is approved.
    #[serde(default)]
    auto_start: Option<Flag>,
}

async fn update(call: Call<Deploy>, id: Path<i64>, body: Body<DeployTaskPatch>) -> Result<Reply<DeployTaskOut>> {
    let patch = body.0;
    let plan = match patch.plan {
        Patch::Absent => Patch::Absent,
        Patch::Null => Patch::Null,
        Patch::Value(new) => Patch::Value(new.check()?),
    };
    if let Patch::Value(plan) = &plan {
        carried::check_seen(&call, &mut call.read().await?, Some(plan)).await?;
    }
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    store::hold(&mut tx, id.0).await?;
    let task = store::load(&mut tx, organisation_id, id.0).await?;
    rules::step(task.status, Event::Update, Facts::default())?;
    let text = |patch: Patch<Prose>, present: &Option<String>| match patch {
        Patch::Absent => present.clone(),
        Patch::Null => None,
        Patch::Value(text) => Some(text.0),
    };
    let content = Content {
        version: patch.version.map_or(Ok(task.version.clone()), |version| version.required("version"))?,
        description: patch.description.map_or_else(|| task.description.clone(), |text| text.0),
        level: patch.level.map_or_else(|| task.level.clone(), |level| level.as_str().to_owned()),
        package_source: patch.package_source.map_or_else(|| task.package_source.clone(), |path| path.0),
        planned_exec_at: patch.planned_exec_time.map_or(Ok(task.planned_exec_at), planned)?,
        upgrade_checklist: text(patch.upgrade_checklist, &task.upgrade_checklist),
        upgrade_steps: text(patch.upgrade_steps, &task.upgrade_steps),
        rollback_steps: text(patch.rollback_steps, &task.rollback_steps),
        plan: match plan {
            Patch::Absent => task.plan.as_ref().map(|plan| plan.0.clone()),
            Patch::Null => None,
            Patch::Value(plan) => Some(plan),
        },
        auto_start: patch.auto_start.map_or(task.auto_start, |flag| flag.0),
    };
    carried::check(&content)?;
    store::update(&mut tx, &task, &content).await?;
    let after = store::load(&mut tx, organisation_id, id.0).await?;
    let entry = AuditEntry::new(AuditList::General, "update", "deploy_task", task.id, content.version)
        .detail(format!("version {} -> {}, level {} -> {}", task.version, after.version, task.level, after.level));
    let kernel = tx.kernel().clone();
    tx.commit(Audit::of(entry), shown(&kernel, after, None)).await
}

/// Whom to hand a task to.
#[derive(Deserialize, JsonSchema)]
struct Delegation {
    /// User who takes the task over.
    user_id: Id,
}

async fn delegate(call: Call<Delegate>, id: Path<i64>, body: Body<Delegation>) -> Result<Reply<Message>> {
    let held: Vec<String> = ["view_app", "deploy_app", "review_app_deploy_task"]
        .into_iter()
        .filter(|right| call.rights().contains(*right))
        .map(str::to_owned)
        .collect();
    if !held.iter().any(|right| right != "view_app") {
        return Err(Error::Forbidden("only who may deploy or review this task can hand it over".to_owned()));
    }
    let user_id = body.0.user_id.0;
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    store::hold(&mut tx, id.0).await?;
    let task = store::load(&mut tx, organisation_id, id.0).await?;
    rules::step(task.status, Event::Delegate, Facts::default())?;
    let username = store::enabled_username(&mut tx, organisation_id, user_id)
        .await?
        .ok_or_else(|| Error::invalid("user_id", "is no enabled user"))?;
    store::delegate(&mut tx, &task, user_id, &held).await?;
    let entry = AuditEntry::new(AuditList::General, "delegate", "deploy_task", task.id, task.version.clone())
        .detail(format!("to {username}"));
    tx.commit(Audit::of(entry), Message::success()).await
}
