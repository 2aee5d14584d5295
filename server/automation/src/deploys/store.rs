//! Deploy tasks in the database.

use drover_kernel::db::{Condition, Json, Read};
use drover_kernel::{Error, Paging, Result, Time, Tx, args, row, sql};

use super::carried::Carried;
use super::rules::Status;
use crate::tasks::binding::Binding;

row! {
    /// A deploy task with the names of what it refers to.
    pub struct DeployTask {
        pub id: i64,
        pub application_id: i64,
        pub application_name: String,
        pub application_full_name: String,
        pub version: String,
        pub description: String,
        pub level: String,
        pub package_source: String,
        pub planned_exec_at: Time,
        pub upgrade_checklist: Option<String>,
        pub upgrade_steps: Option<String>,
        pub rollback_steps: Option<String>,
        pub creator_id: i64,
        pub creator: String,
        pub editor_id: Option<i64>,
        pub assignee_id: Option<i64>,
        pub assignee: Option<String>,
        pub reviewer: Option<String>,
        pub status: Status,
        pub created_at: Time,
        pub reviewed_at: Option<Time>,
        pub started_at: Option<Time>,
        pub closed_at: Option<Time>,
        pub plan: Option<Json<Carried>>,
        pub approval: Option<Json<Binding>>,
        pub auto_start: bool,
        pub status_reason: Option<String>,
    }
}

/// What a person decides about a deploy task.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub version: String,
    pub description: String,
    pub level: String,
    pub package_source: String,
    pub planned_exec_at: Time,
    pub upgrade_checklist: Option<String>,
    pub upgrade_steps: Option<String>,
    pub rollback_steps: Option<String>,
    pub plan: Option<Carried>,
    pub auto_start: bool,
}

impl Content {
    fn plan(&self) -> Result<Option<serde_json::Value>> {
        self.plan.as_ref().map(serde_json::to_value).transpose().map_err(Error::internal)
    }
}

/// One page of deploy tasks, newest first.
pub(crate) async fn list(
    read: &mut Read,
    organisation_id: i64,
    conditions: &[Condition],
    paging: &Paging,
) -> Result<(i64, Vec<DeployTask>)> {
    let count = sql!(
        "SELECT COUNT(*) FROM deploy_tasks d JOIN applications a ON a.id = d.application_id \
         WHERE d.organisation_id = $1/* filters */"
    );
    let rows = sql!(
        "SELECT d.*, a.name AS application_name, a.full_name AS application_full_name, u.username AS assignee \
         FROM deploy_tasks d JOIN applications a ON a.id = d.application_id LEFT JOIN users u ON u.id = d.assignee_id \
         WHERE d.organisation_id = $1/* filters */ ORDER BY d.id DESC"
    );
    paging.read(read, count, rows, args![organisation_id], conditions).await
}

/// One deploy task.
pub(crate) async fn load(read: &mut Read, organisation_id: i64, id: i64) -> Result<DeployTask> {
    let sql = sql!(
        "SELECT d.*, a.name AS application_name, a.full_name AS application_full_name, u.username AS assignee \
         FROM deploy_tasks d JOIN applications a ON a.id = d.application_id LEFT JOIN users u ON u.id = d.assignee_id \
         WHERE d.organisation_id = $1 AND d.id = $2"
    );
    read.opt(sql, args![organisation_id, id]).await?.ok_or_else(|| Error::not_found("deploy task"))
}

/// Adds a deploy task that waits for review.
pub(crate) async fn insert(tx: &mut Tx, application_id: i64, creator: (i64, &str), content: &Content) -> Result<i64> {
    let arguments = args![
        tx.organisation_id(),
        application_id,
        content.version.as_str(),
        content.description.as_str(),
        content.level.as_str(),
        content.package_source.as_str(),
        content.planned_exec_at,
        content.upgrade_checklist.clone(),
        content.upgrade_steps.clone(),
        content.rollback_steps.clone(),
        creator.0,
        creator.1,
        Status::WaitReview,
        tx.now(),
        content.plan()?,
        content.auto_start
    ];
    let sql = sql!(
        "INSERT INTO deploy_tasks (organisation_id, application_id, version, description, level, package_source, \
         planned_exec_at, upgrade_checklist, upgrade_steps, rollback_steps, creator_id, creator, status, created_at, \
         plan, auto_start) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) RETURNING id"
    );
    Ok(tx.value(sql, arguments).await?)
}

/// Changes what a person decides about a deploy task, which waits for review again.
pub(crate) async fn update(tx: &mut Tx, task: &DeployTask, content: &Content) -> Result<()> {
    let arguments = args![
        task.id,
        task.status,
        content.version.as_str(),
        content.description.as_str(),
        content.level.as_str(),
        content.package_source.as_str(),
        content.planned_exec_at,
        content.upgrade_checklist.clone(),
        content.upgrade_steps.clone(),
        content.rollback_steps.clone(),
        Status::WaitReview,
        tx.user_id(),
        content.plan()?,
        content.auto_start
    ];
    let sql = sql!(
        "UPDATE deploy_tasks SET version = $3, description = $4, level = $5, package_source = $6, planned_exec_at = $7, \
         upgrade_checklist = $8, upgrade_steps = $9, rollback_steps = $10, status = $11, editor_id = $12, plan = $13, \
         auto_start = $14, approval = NULL, status_reason = NULL WHERE id = $1 AND status = $2"
    );
    tx.run_one(sql, arguments).await
}

/// Moves a deploy task from the state it was read in.
pub(crate) async fn advance(tx: &mut Tx, task: &DeployTask, status: Status) -> Result<()> {
    let (id, from, now) = (task.id, task.status, tx.now());
    let reviewer = match tx.actor() {
        drover_kernel::tx::Actor::User { username, .. } => Some(username.clone()),
        _ => None,
    };
    match status {
        Status::Approved | Status::Rejected => {
            let sql = sql!(
                "UPDATE deploy_tasks SET status = $3, reviewed_at = $4, reviewer = $5 WHERE id = $1 AND status = $2"
            );
            tx.run_one(sql, args![id, from, status, now, reviewer]).await
        }
        Status::Running => {
            let sql = sql!("UPDATE deploy_tasks SET status = $3, started_at = $4 WHERE id = $1 AND status = $2");
            tx.run_one(sql, args![id, from, status, now]).await
        }
        Status::Closed => {
            // What was handed over was handed over for this task, which is over.
            tx.run(sql!("DELETE FROM deploy_task_rights WHERE deploy_task_id = $1"), args![id]).await?;
            let sql = sql!("UPDATE deploy_tasks SET status = $3, closed_at = $4 WHERE id = $1 AND status = $2");
            tx.run_one(sql, args![id, from, status, now]).await
        }
        Status::WaitReview => {
            let sql = sql!("UPDATE deploy_tasks SET status = $3 WHERE id = $1 AND status = $2");
            tx.run_one(sql, args![id, from, status]).await
        }
    }
}

/// Notes what the approval is bound to. The deploy task is approved in the same transaction.
pub(crate) async fn bind(tx: &mut Tx, id: i64, binding: &Binding) -> Result<()> {
    let binding = serde_json::to_value(binding).map_err(Error::internal)?;
    let sql = sql!("UPDATE deploy_tasks SET approval = $2, status_reason = NULL WHERE id = $1");
    tx.run_one(sql, args![id, binding]).await
}

/// Has a deploy task wait for review again, and says why.
pub(crate) async fn take_back_approval(tx: &mut Tx, task: &DeployTask, status: Status, reason: &str) -> Result<()> {
    let sql = sql!(
        "UPDATE deploy_tasks SET status = $3, approval = NULL, status_reason = $4, reviewer = NULL, \
         reviewed_at = NULL WHERE id = $1 AND status = $2"
    );
    tx.run_one(sql, args![task.id, task.status, status, reason]).await
}

row! {
    /// A deploy task whose time to start by itself has come.
    pub struct Due {
        pub id: i64,
        pub organisation_id: i64,
    }
}

/// Approved deploy tasks whose time to start by themselves has come, beyond an id; a hundred at a time.
pub(crate) async fn due(read: &mut Read, now: Time, beyond: i64) -> Result<Vec<Due>> {
    let sql = sql!(
        "SELECT id, organisation_id FROM deploy_tasks WHERE auto_start AND status = 'approved' \
         AND planned_exec_at <= $1 AND id > $2 ORDER BY id LIMIT 100"
    );
    Ok(read.all(sql, args![now, beyond]).await?)
}

/// Says why a deploy task did not start by itself, and whether it will still try.
pub(crate) async fn put_off(tx: &mut Tx, task: &DeployTask, reason: &str, tries_again: bool) -> Result<()> {
    let sql = sql!(
        "UPDATE deploy_tasks SET status_reason = $3, auto_start = $4 WHERE id = $1 AND status = $2 AND auto_start"
    );
    tx.run_one(sql, args![task.id, task.status, reason, tries_again]).await
}

/// Makes a user the assignee, with the rights that the delegating user has on this task.
pub(crate) async fn delegate(tx: &mut Tx, task: &DeployTask, user_id: i64, rights: &[String]) -> Result<()> {
    let organisation_id = tx.organisation_id();
    // The assignee is one person: who had the task before keeps only rights of their own.
    tx.run(sql!("DELETE FROM deploy_task_rights WHERE deploy_task_id = $1"), args![task.id]).await?;
    let rows = rights.iter().map(|right| args![organisation_id, task.id, user_id, right.as_str()]).collect();
    let sql = sql!(
        "INSERT INTO deploy_task_rights (organisation_id, deploy_task_id, user_id, right_name) VALUES ($1, $2, $3, $4)"
    );
    tx.insert_many(sql, rows).await?;
    let sql = sql!("UPDATE deploy_tasks SET assignee_id = $3 WHERE id = $1 AND status = $2");
    tx.run_one(sql, args![task.id, task.status, user_id]).await
}

/// Whether a sub-task of this deploy task runs.
pub(crate) async fn is_busy(read: &mut Read, id: i64) -> Result<bool> {
    let sql = sql!("SELECT COUNT(*) FROM tasks WHERE deploy_task_id = $1 AND phase <> 'over'");
    Ok(read.value::<i64>(sql, args![id]).await? > 0)
}

/// Takes the row's lock before it is read, so that of two changes at the same time the second one sees the first.
pub(crate) async fn hold(tx: &mut Tx, id: i64) -> Result<()> {
    let sql = sql!("UPDATE deploy_tasks SET status = status WHERE organisation_id = $1 AND id = $2");
    let organisation_id = tx.organisation_id();
    Ok(tx.run(sql, args![organisation_id, id]).await.map(drop)?)
}

/// Takes the row's lock for the rest of the transaction, so that closing and making a sub-task exclude each other.
pub(crate) async fn lock(tx: &mut Tx, task: &DeployTask) -> Result<()> {
    let sql = sql!("UPDATE deploy_tasks SET status = status WHERE id = $1 AND status = $2");
    tx.run_one(sql, args![task.id, task.status]).await
}

/// Login name of an enabled user.
pub(crate) async fn enabled_username(read: &mut Read, organisation_id: i64, user_id: i64) -> Result<Option<String>> {
    let sql = sql!("SELECT username FROM users WHERE organisation_id = $1 AND id = $2 AND status = 'enabled'");
    Ok(read.opt::<(String,)>(sql, args![organisation_id, user_id]).await?.map(|(name,)| name))
}
