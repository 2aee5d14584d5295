//! What moves a deploy task: its review, its start and its end. What it carries is shown here too, for who reviews it.
//!
//! Invariant: repositories are asked before the transaction begins; what was read then is compared within it.

use drover_kernel::fields::Line;
use drover_kernel::{Audit, AuditEntry, AuditList, Body, Call, Error, Message, Path, Reply, Result, Tx};
use drover_shared::words::Word as _;
use schemars::JsonSchema;
use serde::Deserialize;

use super::carried::{self, Standing};
use super::rules::{self, Event, Facts};
use super::store::{self, DeployTask};
use super::{Deploy, Read, Review};
use crate::settings;
use crate::tasks::binding::Binding;
use crate::tasks::preview::{self, Preview};

/// The update that a deploy task carries, as it would run now.
pub(super) async fn plan(call: Call<Read>, id: Path<i64>) -> Result<Reply<Preview>> {
    let task = store::load(&mut call.read().await?, call.organisation_id(), id.0).await?;
    let (planned, binding) = carried::bound(call.kernel(), call.organisation_id(), &task).await?;
    let preview = preview::preview(&mut call.read().await?, call.caller()?, planned, binding).await?;
    Ok(Reply::new(preview))
}

/// An approval.
#[derive(Deserialize, JsonSchema)]
pub(super) struct Approval {
    /// Digest of the plan that was looked at; refused when the plan is another one by now.
    #[serde(default)]
    plan_digest: Option<Line>,
}

pub(super) async fn approve(call: Call<Review>, id: Path<i64>, body: Body<Approval>) -> Result<Reply<Message>> {
    let read = store::load(&mut call.read().await?, call.organisation_id(), id.0).await?;
    let looked_at = body.0.plan_digest.map(|digest| digest.0);
    let binding = match (&read.plan, looked_at) {
        // Whether it may be approved at all is said before a repository is asked.
        _ if rules::step(read.status, Event::Approve, Facts::default()).is_err() => None,
        (None, None) => None,
        (None, Some(_)) => return Err(Error::invalid("plan_digest", "this deploy task carries no plan")),
        (Some(_), looked_at) => {
            let (_, binding) = carried::bound(call.kernel(), call.organisation_id(), &read).await?;
            if looked_at.is_some_and(|digest| digest != binding.digest.to_string()) {
                return Err(Error::conflict("the plan has become another one since it was looked at: look again"));
            }
            Some(binding)
        }
    };
    if read.auto_start && carried::is_too_late(read.planned_exec_at, call.now()) {
        return Err(Error::conflict("its planned time is over: it would not start by itself any more"));
    }
    review(call, read, Event::Approve, binding).await
}

pub(super) async fn reject(call: Call<Review>, id: Path<i64>) -> Result<Reply<Message>> {
    let read = store::load(&mut call.read().await?, call.organisation_id(), id.0).await?;
    review(call, read, Event::Reject, None).await
}

async fn review(
    call: Call<Review>,
    read: DeployTask,
    event: Event,
    binding: Option<Binding>,
) -> Result<Reply<Message>> {
    let user_id = call.caller()?.user_id;
    let server_asks = call.kernel().settings().four_eyes;
    let mut tx = call.begin().await?;
    let task = unchanged(&mut tx, &read).await?;
    let settings = settings::store::load(&mut tx, task.application_id).await?;
    let four_eyes = settings.is_some_and(|settings| settings.own.four_eyes);
    // Whoever wrote what is reviewed does not review it, whether they made the task or changed it last.
    let own = task.creator_id == user_id || task.editor_id == Some(user_id);
    let facts = Facts { lacks_second_person: (four_eyes || server_asks) && own, busy: false };
    let status = rules::step(task.status, event, facts)?;
    store::advance(&mut tx, &task, status).await?;
    if let Some(binding) = binding {
        store::bind(&mut tx, task.id, &binding).await?;
    }
    finish(tx, &task, event).await
}

/// The deploy task as it is now, if it is what was read before the transaction.
pub(crate) async fn unchanged(tx: &mut Tx, read: &DeployTask) -> Result<DeployTask> {
    let organisation_id = tx.organisation_id();
    store::hold(tx, read.id).await?;
    let now = store::load(tx, organisation_id, read.id).await?;
    let same = now.status == read.status
        && now.version == read.version
        && now.package_source == read.package_source
        && now.plan == read.plan
        && now.auto_start == read.auto_start
        && now.planned_exec_at == read.planned_exec_at
        && now.approval == read.approval;
    if same { Ok(now) } else { Err(Error::conflict("somebody else changed this at the same time, read it again")) }
}

pub(super) async fn start(call: Call<Deploy>, id: Path<i64>) -> Result<Reply<Message>> {
    let read = store::load(&mut call.read().await?, call.organisation_id(), id.0).await?;
    let status = rules::step(read.status, Event::Start, Facts::default())?;
    let standing = carried::standing(call.kernel(), call.organisation_id(), &read).await?;
    let mut tx = call.begin().await?;
    let task = unchanged(&mut tx, &read).await?;
    if let Standing::Void(why) = standing {
        carried::make_void(tx, &task, &why).await?;
        return Err(Error::conflict(format!("the approval of this deploy task is void: {why}")));
    }
    store::advance(&mut tx, &task, status).await?;
    finish(tx, &task, Event::Start).await
}

pub(super) async fn close(call: Call<Deploy>, id: Path<i64>) -> Result<Reply<Message>> {
    let mut tx = call.begin().await?;
    let organisation_id = tx.organisation_id();
    store::hold(&mut tx, id.0).await?;
    let task = store::load(&mut tx, organisation_id, id.0).await?;
    let facts = Facts { busy: store::is_busy(&mut tx, task.id).await?, ..Facts::default() };
    let status = rules::step(task.status, Event::Close, facts)?;
    store::advance(&mut tx, &task, status).await?;
    finish(tx, &task, Event::Close).await
}

async fn finish(tx: Tx, task: &DeployTask, event: Event) -> Result<Reply<Message>> {
    let entry = AuditEntry::new(AuditList::General, event.as_str(), "deploy_task", task.id, task.version.clone())
        .detail(format!("application {}", task.application_full_name));
    tx.commit(Audit::of(entry), Message::success()).await
}
