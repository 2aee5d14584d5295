//! Schedules: what runs by itself, and when.
//!
//! Owns the tables `schedules` and `schedule_runs`. Invariants: a schedule runs nothing that its owner, who is whoever
//! changed it last, might not do by hand at that moment; each of its moments is decided about once, and what was decided
//! can be read.

mod body;
pub(crate) mod cron;
pub(crate) mod rules;
mod store;
mod what;
mod work;

use chrono_tz::Tz;
use drover_identity::{visible_applications, visible_hosts};
use drover_kernel::call::{Caller, Permission, SignedIn};
use drover_kernel::db::Condition;
use drover_kernel::fields::{Flag, Id, Name, Number, Prose, Words};
use drover_kernel::resources::{Instead, ResourceKind, Resources};
use drover_kernel::{
    Audit, Body, Call, Error, Kernel, Message, Page, Paging, Path, Query, Reply, Result, Routes, Time, permission, sql,
    when,
};
use drover_shared::words::Word as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::body::{ScheduleBody, cron_of, number, zone};
use self::rules::{Missed, Overlap, Rule, RunState};
use self::store::{Content, Run, Schedule};
use self::what::What;
use self::work::entry;
use crate::locks::taking::IfBusy;
use crate::tasks::seen;

pub(crate) use self::store::start_anew;
pub(crate) use self::work::{Scheduling, look};

/// Moments that are shown with a schedule, and at most when they are asked for.
const NEXT_SHOWN: usize = 5;
const NEXT_MAX: i64 = 100;

permission!(pub List, "schedules.list", "List schedules of the applications and hosts one may see", SignedIn);
permission!(pub ReadSchedule, "schedules.read", "See a schedule and what became of its moments",
    Resource { kind: "schedule", right: "view_app" });
permission!(pub Create, "schedules.create", "Make a schedule for what one may do by hand",
    Named { kind: "application", right: "restart_app" });
permission!(pub Change, "schedules.change", "Change, hold and run a schedule of what one may do by hand",
    Resource { kind: "schedule", right: "view_app" });

/// Routes of schedules.
pub fn routes() -> Routes {
    let one = |rest: &str| format!("/schedules/{{id}}/{rest}");
    Routes::tagged("schedules")
        .get("/schedules/", "schedules-list", "List schedules.", list)
        .post("/schedules/", "schedule-create", "Make a schedule.", create)
        .post("/schedules/actions/preview/", "schedules-preview", "See when a schedule would come.", preview)
        .get(&one(""), "schedule-detail", "Read one schedule.", detail)
        .patch(&one(""), "schedule-update", "Change a schedule.", update)
        .delete(&one(""), "schedule-delete", "Delete a schedule; what it began goes on.", delete)
        .get(&one("next/"), "schedule-next", "See when a schedule comes next.", coming)
        .get(&one("runs/"), "schedule-runs-list", "List what became of a schedule's moments, newest first.", runs)
        .post(&one("actions/pause/"), "schedule-pause", "Hold a schedule.", pause)
        .post(&one("actions/resume/"), "schedule-resume", "Let a held schedule go on from now.", resume)
        .post(&one("actions/run/"), "schedule-run", "Run what a schedule names now.", run)
}

/// A schedule stands for its application; one of a script for the hosts that are meant at present. Its owner sees that too.
pub fn resources() -> Resources {
    Resources::default().with(ResourceKind {
        name: "schedule",
        noun: "schedule",
        governed_by: "application",
        find: sql!("SELECT application_id FROM schedules WHERE organisation_id = $1 AND id = $2"),
        further_rights: Some(sql!(
            "SELECT CAST('view_app' AS TEXT) FROM schedules WHERE organisation_id = $1 AND id = $2 AND owner_id = $3 \
             AND application_id IS NULL"
        )),
        implied: &[],
        instead: Some(Instead {
            governed_by: "host",
            find: sql!(
                "SELECT DISTINCT host_id FROM schedule_hosts WHERE organisation_id = $1 AND schedule_id = $2 \
                 ORDER BY host_id"
            ),
            implied: seen::IMPLIED,
        }),
        text_key: false,
    })
}

/// A schedule.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Schedule")]
struct ScheduleOut {
    /// Id.
    id: i64,
    /// Name, unique.
    name: String,
    /// Application that it is about; null when it runs a script.
    application_id: Option<i64>,
    /// That application's name.
    application: Option<String>,
    /// What it runs.
    what: What,
    /// When: minute, hour, day of the month, month and weekday, as in crontab(5).
    cron: String,
    /// Time zone of that.
    zone: String,
    /// What becomes of moments at which no server was there.
    missed: Missed,
    /// How many of them are made up for, with `all`.
    missed_max: i64,
    /// What becomes of a moment that comes while what the one before began is not over.
    overlap: Overlap,
    /// What becomes of a moment whose instances or hosts are another task's.
    if_busy: IfBusy,
    /// Seconds by which moments are spread at most.
    jitter: i64,
    /// Whose rights it runs with: whoever changed it last.
    owner: String,
    /// Who holds it.
    paused_by: Option<String>,
    /// Since when.
    paused_time: Option<String>,
    /// When it comes next, in its zone, without the jitter; empty while it is held.
    next: Vec<String>,
    /// When it was made.
    created_time: String,
}

/// What became of a moment.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ScheduleRun")]
struct RunOut {
    /// The moment, in the schedule's zone.
    moment: String,
    /// What became of it.
    state: RunState,
    /// Who asked for it, if it came by hand.
    asked_by: Option<String>,
    /// The task that was made.
    task_id: Option<String>,
    /// How that ended: `finished` or `failed`; null while it runs.
    task_status: Option<String>,
    /// Why it did not begin.
    reason: Option<String>,
}

/// Moments to come.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ScheduleNext")]
struct NextOut {
    /// In the schedule's zone, without the jitter.
    next: Vec<String>,
}

/// The zone that a schedule is in.
fn zone_of(schedule: &Schedule) -> Result<Tz> {
    zone(&schedule.zone).map_err(Error::internal)
}

/// The rule of a schedule, which was checked when it was written.
fn rule_of(schedule: &Schedule) -> Result<Rule> {
    Ok(Rule {
        id: schedule.id,
        cron: cron_of(&schedule.cron).map_err(Error::internal)?,
        zone: zone_of(schedule)?,
        missed: schedule.missed,
        missed_max: schedule.missed_max,
        jitter_s: schedule.jitter_s,
    })
}

/// Checks what a schedule runs against what there is and what the caller may do.
async fn checked<P: Permission>(call: &Call<P>, content: Content) -> Result<Content> {
    Ok(Content { application_id: content.what.application(call).await?, ..content })
}

/// Condition on aliases `s` and `a` for the schedules that the caller may see; none when it is all of them.
fn visible(caller: &Caller) -> Option<Condition> {
    let (applications, hosts) = (visible_applications(caller), visible_hosts(caller));
    if applications.is_none() && hosts.is_none() {
        return None;
    }
    let of_applications = applications.unwrap_or_else(|| when!("s.application_id IS NOT NULL"));
    let of_hosts = match hosts {
        None => when!("s.application_id IS NULL"),
        Some(hosts) => hosts.within(&when!(
            "s.application_id IS NULL AND EXISTS (SELECT 1 FROM schedule_hosts m WHERE m.schedule_id = s.id) \
             AND NOT EXISTS (SELECT 1 FROM schedule_hosts m JOIN hosts h ON h.id = m.host_id \
             WHERE m.schedule_id = s.id AND NOT (/* condition */))"
        )),
    };
    let own = when!("s.application_id IS NULL AND s.owner_id = $1", caller.user_id);
    Some(of_applications.or(of_hosts).or(own))
}

fn shown(kernel: &Kernel, schedule: Schedule) -> Result<ScheduleOut> {
    let rule = rule_of(&schedule)?;
    let next = match schedule.paused_by {
        None => rule.coming(kernel.clock().now(), NEXT_SHOWN),
        Some(_) => Vec::new(),
    };
    Ok(ScheduleOut {
        id: schedule.id,
        name: schedule.name,
        application_id: schedule.application_id,
        application: schedule.application_name,
        what: schedule.what.0,
        cron: schedule.cron,
        zone: schedule.zone,
        missed: schedule.missed,
        missed_max: schedule.missed_max,
        overlap: schedule.overlap,
        if_busy: schedule.if_busy,
        jitter: schedule.jitter_s,
        owner: schedule.owner,
        paused_by: schedule.paused_by,
        paused_time: schedule.paused_at.map(|time| kernel.show(time)),
        next: next.into_iter().map(|time| time.show(rule.zone)).collect(),
        created_time: kernel.show(schedule.created_at),
    })
}

/// Filters of the list.
#[derive(Debug, Deserialize, JsonSchema)]
struct Filters {
    /// Part of the name.
    #[serde(default)]
    name: Option<Name>,
    /// Schedules of one application.
    #[serde(default, alias = "application")]
    application_id: Option<Id>,
    /// Whether somebody holds them.
    #[serde(default)]
    paused: Option<Flag>,
}

async fn list(call: Call<List>, filters: Query<Filters>, paging: Paging) -> Result<Reply<Page<ScheduleOut>>> {
    let filters = filters.0;
    let mut conditions: Vec<Condition> = Vec::new();
    conditions.extend(visible(call.caller()?));
    if let Some(name) = filters.name {
        conditions.push(when!(r"lower(s.name) LIKE $1 ESCAPE '\'", Condition::pattern(&name.0)));
    }
    conditions.extend(filters.application_id.map(|id| when!("s.application_id = $1", id.0)));
    conditions.extend(filters.paused.map(|paused| when!("(s.paused_by IS NOT NULL) = $1", paused.0)));
    let mut read = call.read().await?;
    let (count, rows) = store::list(&mut read, &paging, call.organisation_id(), &conditions).await?;
    let results = rows.into_iter().map(|row| shown(call.kernel(), row)).collect::<Result<_>>()?;
    Ok(Reply::new(paging.page(count, results)))
}

async fn detail(call: Call<ReadSchedule>, id: Path<i64>) -> Result<Reply<ScheduleOut>> {
    let schedule = store::load(&mut call.read().await?, call.organisation_id(), id.0).await?;
    Ok(Reply::new(shown(call.kernel(), schedule)?))
}

async fn create(call: Call<Create>, body: Body<ScheduleBody>) -> Result<Reply<ScheduleOut>> {
    let content = body.0.content(None, call.kernel())?;
    let content = checked(&call, content).await?;
    let caller = call.caller()?.clone();
    let mut tx = call.begin().await?;
    let id = store::insert(&mut tx, &content, (caller.user_id, &caller.username)).await?;
    let made = load(&mut tx, id).await?;
    work::set_first(&mut tx, &made).await?;
    let entry = entry("add", &made).detail(told(&content));
    let shown = shown(tx.kernel(), made)?;
    tx.commit(Audit::of(entry), shown).await
}

async fn load(read: &mut drover_kernel::Tx, id: i64) -> Result<Schedule> {
    let organisation_id = read.organisation_id();
    store::load(read, organisation_id, id).await
}

/// A schedule as the audit tells it.
fn told(content: &Content) -> String {
    let Content { what, cron, zone, missed, overlap, if_busy, jitter_s, .. } = content;
    let what = what.told();
    format!("{what}, {cron} in {zone}, missed {missed}, overlap {overlap}, if busy {if_busy}, jitter {jitter_s} s")
}

async fn update(call: Call<Change>, id: Path<i64>, body: Body<ScheduleBody>) -> Result<Reply<ScheduleOut>> {
    let caller = call.caller()?.clone();
    let mut read = call.read().await?;
    let before = store::load(&mut read, call.organisation_id(), id.0).await?;
    // Whoever changes it answers for all of it; its owner may mend what they may not do any more.
    if before.owner_id != caller.user_id {
        before.what.0.require(&call, &mut read, id.0).await?;
    }
    drop(read);
    let content = body.0.content(Some(&before), call.kernel())?;
    let content = checked(&call, content).await?;
    let mut tx = call.begin().await?;
    let now = store::hold(&mut tx, id.0).await?;
    if now.what.0 != before.what.0 {
        return Err(Error::conflict("somebody else changed this at the same time, read it again"));
    }
    store::update(&mut tx, id.0, &content, (caller.user_id, &caller.username)).await?;
    let after = load(&mut tx, id.0).await?;
    work::set_first(&mut tx, &after).await?;
    let entry = entry("update", &after).detail(told(&content));
    let shown = shown(tx.kernel(), after)?;
    tx.commit(Audit::of(entry), shown).await
}

/// The schedule, if the caller may do by hand what it runs.
async fn of_caller(call: &Call<Change>, id: i64) -> Result<Schedule> {
    let mut read = call.read().await?;
    let schedule = store::load(&mut read, call.organisation_id(), id).await?;
    schedule.what.0.require(call, &mut read, id).await?;
    Ok(schedule)
}

/// The same; whose it is may end it whatever they may do.
async fn of_owner(call: &Call<Change>, id: i64) -> Result<Schedule> {
    let schedule = store::load(&mut call.read().await?, call.organisation_id(), id).await?;
    if schedule.owner_id == call.caller()?.user_id { Ok(schedule) } else { of_caller(call, id).await }
}

async fn delete(call: Call<Change>, id: Path<i64>) -> Result<Reply<Message>> {
    let schedule = of_owner(&call, id.0).await?;
    let mut tx = call.begin().await?;
    store::hold(&mut tx, id.0).await?;
    store::delete(&mut tx, id.0).await?;
    tx.commit(Audit::of(entry("delete", &schedule).detail(schedule.what.0.told())), Message::success()).await
}

/// Why something is done.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Reason {
    /// Why; kept in the audit.
    #[serde(default)]
    reason: Prose,
}

async fn pause(call: Call<Change>, id: Path<i64>, body: Body<Reason>) -> Result<Reply<Message>> {
    of_owner(&call, id.0).await?;
    let username = call.caller()?.username.clone();
    let mut tx = call.begin().await?;
    let schedule = store::hold(&mut tx, id.0).await?;
    if let Some(holder) = &schedule.paused_by {
        return Err(Error::conflict(format!("{holder} holds this schedule already")));
    }
    store::pause(&mut tx, id.0, Some(&username)).await?;
    store::drop_waiting(&mut tx, id.0, &format!("{username} holds the schedule")).await?;
    tx.commit(Audit::of(entry("pause", &schedule).detail(body.0.reason.0)), Message::success()).await
}

async fn resume(call: Call<Change>, id: Path<i64>, body: Body<Reason>) -> Result<Reply<Message>> {
    of_caller(&call, id.0).await?;
    let mut tx = call.begin().await?;
    let schedule = store::hold(&mut tx, id.0).await?;
    if schedule.paused_by.is_none() {
        return Err(Error::conflict("nobody holds this schedule"));
    }
    store::pause(&mut tx, id.0, None).await?;
    work::set_first(&mut tx, &schedule).await?;
    tx.commit(Audit::of(entry("resume", &schedule).detail(body.0.reason.0)), Message::success()).await
}

async fn run(call: Call<Change>, id: Path<i64>, body: Body<Reason>) -> Result<Reply<RunOut>> {
    of_caller(&call, id.0).await?;
    let caller = call.caller()?.clone();
    let mut tx = call.begin().await?;
    let schedule = store::hold(&mut tx, id.0).await?;
    if let Some(holder) = &schedule.paused_by {
        return Err(Error::conflict(format!("{holder} holds this schedule: resume it first")));
    }
    let at_work = store::at_work(&mut tx, schedule.id).await?;
    if let (Some(task_id), Overlap::Skip) = (at_work.first(), schedule.overlap) {
        return Err(Error::conflict(format!("task {task_id} of this schedule is not over")));
    }
    if store::is_full(&mut tx, schedule.id).await? {
        return Err(Error::conflict("too many moments of this schedule wait already"));
    }
    let (moment, by) = (tx.now(), (caller.user_id, caller.username.as_str()));
    if !store::note(&mut tx, (schedule.id, moment), RunState::Waiting, Some(by), None).await? {
        return Err(Error::conflict("it was run at this very moment already"));
    }
    let answer = RunOut {
        moment: moment.show(zone_of(&schedule)?),
        state: RunState::Waiting,
        asked_by: Some(caller.username),
        task_id: None,
        task_status: None,
        reason: None,
    };
    tx.commit(Audit::of(entry("run_now", &schedule).detail(body.0.reason.0)), answer).await
}

/// What became of a moment.
#[derive(Debug, Deserialize, JsonSchema)]
struct RunFilters {
    /// State.
    #[serde(default)]
    #[schemars(with = "Option<Words<RunState>>")]
    state: Option<Name>,
}

async fn runs(
    call: Call<ReadSchedule>,
    id: Path<i64>,
    filters: Query<RunFilters>,
    paging: Paging,
) -> Result<Reply<Page<RunOut>>> {
    let mut conditions = Vec::new();
    if let Some(state) = filters.0.state {
        let state = RunState::parse(&state.0).map_err(|error| Error::invalid("state", error.to_string()))?;
        conditions.push(when!("r.state = $1", state));
    }
    let mut read = call.read().await?;
    let zone = zone_of(&store::load(&mut read, call.organisation_id(), id.0).await?)?;
    let (count, rows) = store::runs(&mut read, &paging, id.0, &conditions).await?;
    let shown = |run: Run| RunOut {
        moment: run.moment.show(zone),
        state: run.state,
        asked_by: run.asked_by,
        task_id: run.task_id.map(|id| id.to_string()),
        task_status: run.task_id.map(|_| run.task_outcome.unwrap_or_else(|| "running".to_owned())),
        reason: run.reason,
    };
    Ok(Reply::new(paging.page(count, rows.into_iter().map(shown).collect())))
}

/// How many moments to show.
#[derive(Debug, Deserialize, JsonSchema)]
struct Count {
    /// 1 to 100; 10 when left out.
    #[serde(default)]
    count: Option<Number>,
}

async fn coming(call: Call<ReadSchedule>, id: Path<i64>, count: Query<Count>) -> Result<Reply<NextOut>> {
    let schedule = store::load(&mut call.read().await?, call.organisation_id(), id.0).await?;
    if schedule.paused_by.is_some() {
        return Ok(Reply::new(NextOut { next: Vec::new() }));
    }
    Ok(Reply::new(next_out(&rule_of(&schedule)?, call.now(), count.0.count)?))
}

fn next_out(rule: &Rule, now: Time, count: Option<Number>) -> Result<NextOut> {
    let count = number("count", count, 10, (1, NEXT_MAX))?;
    let next = rule.coming(now, usize::try_from(count).unwrap_or(0));
    Ok(NextOut { next: next.into_iter().map(|time| time.show(rule.zone)).collect() })
}

/// A schedule that nobody has made yet.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ScheduleImagined")]
struct Imagined {
    /// When: minute, hour, day of the month, month and weekday, as in crontab(5), or `@daily` and the like.
    cron: Name,
    /// Time zone of that; the server's when left out.
    #[serde(default)]
    zone: Option<Name>,
    /// 1 to 100; 10 when left out.
    #[serde(default)]
    count: Option<Number>,
}

async fn preview(call: Call<SignedIn>, imagined: Body<Imagined>) -> Result<Reply<NextOut>> {
    let Imagined { cron, zone: name, count } = imagined.0;
    let zone = name.map_or(Ok(call.kernel().settings().zone), |name| zone(&name.0))?;
    let cron = cron_of(&cron.0)?;
    let rule = Rule { id: 0, cron, zone, missed: Missed::Skip, missed_max: 1, jitter_s: 0 };
    Ok(Reply::new(next_out(&rule, call.now(), count)?))
}
