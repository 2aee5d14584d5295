//! Rollout rules: in which batches the instances of a task get their turn, when no further one does, and which of them a
//! stopped rollout takes back. Pure.
//!
//! Invariants: a batch is admitted only when everything admitted before is over; once more targets failed than allowed,
//! or a canary failed, nothing more is admitted, ever; where nobody knows how an instance stands, it is left alone.

use std::time::Duration;

use drover_inventory::instances::rules::InstanceStatus;
use drover_kernel::fields::Id;
use drover_kernel::{Error, Result, Time};
use drover_shared::planted::{self, Bug};
use drover_shared::words::ExecutionState as State;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::health::Health;

/// Longest pause between batches, and longest time after which a canary is promoted by itself, in seconds.
const PAUSE_S_MAX: u32 = 86_400;
/// Growth from batch to batch, in percent.
const GROWTH_PERCENT_MAX: u32 = 1_000;
/// Tasks that are named to go first.
const AFTER_TASKS_MAX: usize = 100;
/// How long a task waits for a person, or for other tasks, before it is stopped.
pub(crate) const PATIENCE: Duration = Duration::from_secs(7 * 86_400);

/// A part of the instances: a number, or a percentage of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// So many.
    Count(u32),
    /// So many of a hundred.
    Percent(u32),
}

impl Share {
    fn rounded_up(self, of: usize) -> usize {
        match self {
            Self::Count(count) => count as usize,
            Self::Percent(percent) => (of * percent as usize).div_ceil(100),
        }
    }

    fn rounded_down(self, of: usize) -> usize {
        match self {
            Self::Count(count) => count as usize,
            Self::Percent(percent) => of * percent as usize / 100,
        }
    }

    fn check(self, field: &str, least: u32) -> Result<()> {
        match self {
            Self::Count(count) if count < least => Err(Error::invalid(field, format!("must be at least {least}"))),
            Self::Percent(percent) if !(least..=100).contains(&percent) => {
                Err(Error::invalid(field, format!("must be {least}% to 100%")))
            }
            _ => Ok(()),
        }
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Count(count) => serializer.serialize_u32(*count),
            Self::Percent(percent) => serializer.collect_str(&format_args!("{percent}%")),
        }
    }
}

const SHARE: &str = "must be a number such as 5, or a percentage such as \"25%\"";

impl std::str::FromStr for Share {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        match text.trim().strip_suffix('%') {
            Some(percent) => percent.trim().parse().map(Self::Percent).map_err(|_| SHARE),
            None => text.trim().parse().map(Self::Count).map_err(|_| SHARE),
        }
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Number(number) => number.to_string(),
            serde_json::Value::String(text) => text,
            _ => return Err(de::Error::custom(SHARE)),
        };
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Share {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Share".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "oneOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]{1,3}%$"}]
        })
    }
}

/// How a task goes from instance to instance. A task without one updates all at once and stops at nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rollout {
    /// Instances that go first, alone; the others follow when these are promoted. A failed one stops the rollout.
    pub canary: Option<Share>,
    /// Seconds after which a canary that went well is promoted by itself; a person promotes it when left out.
    pub promote_after: Option<u32>,
    /// Instances at a time; all when left out.
    pub batch: Share,
    /// Size of a batch in percent of the one before: 200 doubles it.
    pub growth: u32,
    /// Seconds between batches.
    pub pause: u32,
    /// Failures after which nothing more starts: more than these. None when left out, any number when null.
    pub max_failures: Option<Share>,
    /// Whether instances that were changed go back to their former release when the rollout is stopped.
    pub auto_revert: bool,
    /// What has to be true on each host after its update.
    pub health: Option<Health>,
    /// Whether nothing of it starts before every task of the applications that this one requires, directly or not, has
    /// ended well; those count that have not ended when it is made.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub after_required: bool,
    /// Tasks that have to end well before anything of it starts.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "task_ids")]
    pub after_tasks: Vec<i64>,
}

/// Ids of tasks, which the API writes as texts.
fn task_ids<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<i64>, D::Error> {
    let mut ids: Vec<i64> = Vec::<Id>::deserialize(deserializer)?.into_iter().map(|id| id.0).collect();
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            canary: None,
            promote_after: None,
            batch: Share::Percent(100),
            growth: 100,
            pause: 0,
            max_failures: Some(Share::Count(0)),
            auto_revert: false,
            health: None,
            after_required: false,
            after_tasks: Vec::new(),
        }
    }
}

impl Rollout {
    /// Checks every member.
    ///
    /// # Errors
    /// Names the member and the reason.
    pub fn check(&self) -> Result<()> {
        let long = |field: &str| Error::invalid(field, format!("must be at most {PAUSE_S_MAX} seconds"));
        if let Some(canary) = self.canary {
            canary.check("rollout.canary", 1)?;
        }
        if self.promote_after.is_some() && self.canary.is_none() {
            return Err(Error::invalid("rollout.promote_after", "there is no canary to promote"));
        }
        if self.promote_after.is_some_and(|seconds| seconds > PAUSE_S_MAX) {
            return Err(long("rollout.promote_after"));
        }
        self.batch.check("rollout.batch", 1)?;
        if !(100..=GROWTH_PERCENT_MAX).contains(&self.growth) {
            return Err(Error::invalid("rollout.growth", format!("must be 100 to {GROWTH_PERCENT_MAX} percent")));
        }
        if self.pause > PAUSE_S_MAX {
            return Err(long("rollout.pause"));
        }
        if let Some(most) = self.max_failures {
            most.check("rollout.max_failures", 0)?;
        }
        if self.after_tasks.len() > AFTER_TASKS_MAX {
            return Err(Error::invalid("rollout.after_tasks", format!("at most {AFTER_TASKS_MAX} tasks")));
        }
        self.health.as_ref().map_or(Ok(()), Health::check)
    }

    /// The batch of each of so many instances, in order. The canary, if there is one, is batch 0.
    #[must_use]
    pub fn batches(&self, instances: usize) -> Vec<i64> {
        let mut batches = Vec::with_capacity(instances);
        let mut batch = 0;
        let canary = self.canary.map_or(0, |canary| canary.rounded_up(instances).min(instances));
        if canary > 0 {
            batches.resize(canary, batch);
            batch += 1;
        }
        let mut size = self.batch.rounded_up(instances).max(1);
        while batches.len() < instances {
            batches.resize((batches.len() + size).min(instances), batch);
            batch += 1;
            size = (size * self.growth as usize).div_ceil(100).min(instances);
        }
        batches
    }

    /// Whether any number of failures could stop it.
    #[must_use]
    pub fn may_stop(&self) -> bool {
        self.max_failures.is_some() || self.canary.is_some()
    }

    /// What a retry goes by: its own batches, and the checks and the way back that were rendered with what it tries again.
    ///
    /// # Errors
    /// When it asks for another check, or for a way back that was not rendered.
    pub fn retrying(self, former: Option<&Self>) -> Result<Self> {
        let health = former.and_then(|former| former.health.clone());
        if self.health.is_some() && self.health != health {
            let reason = "a retry checks what was rendered with the sub-task that it tries again: leave it out";
            return Err(Error::invalid("rollout.health", reason));
        }
        if self.auto_revert && !former.is_some_and(|former| former.auto_revert) {
            let reason = "no way back was rendered with the sub-task that is tried again";
            return Err(Error::invalid("rollout.auto_revert", reason));
        }
        Ok(Self { health, ..self })
    }

    /// Failures after which nothing more starts are more than these.
    fn allowed(&self, instances: usize) -> usize {
        let more = usize::from(planted::has(Bug::OneFailureMore));
        self.max_failures.map_or(usize::MAX, |most| most.rounded_down(instances) + more)
    }
}

/// One instance of a task.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its batch.
    pub batch: i64,
    /// State of its execution.
    pub state: State,
    /// Whether a person took it out, before its turn or by cancelling it alone.
    pub excluded: bool,
    /// When it ended.
    pub finished_at: Option<Time>,
}

impl Target {
    fn failed(&self) -> bool {
        let counts = !self.excluded || planted::has(Bug::TakenOutIsFailed);
        counts && self.state.is_over() && self.state != State::Succeeded
    }
}

/// What decides.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The rule.
    pub rollout: &'a Rollout,
    /// The last batch that was admitted.
    pub admitted: i64,
    /// Whether a person promoted the canary.
    pub promoted: bool,
    /// Since when a person holds it.
    pub held_at: Option<Time>,
    /// Every instance.
    pub targets: Vec<Target>,
    /// The present time.
    pub now: Time,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Move {
    /// What was admitted is at work, or there is nothing left.
    Stay,
    /// A person holds it.
    Held,
    /// A person has to promote the canary.
    AwaitPromotion,
    /// The next batch gets its turn at this time.
    Until(Time),
    /// The next batch gets its turn.
    Admit(i64),
    /// Nothing more starts; why.
    Stop(String),
}

impl Facts<'_> {
    /// Whether a canary has shown that it goes well.
    #[must_use]
    pub fn is_proved(&self) -> bool {
        self.targets.iter().any(|target| target.batch == 0 && target.state == State::Succeeded)
    }
}

/// What follows from the facts.
#[must_use]
pub fn next(facts: &Facts<'_>) -> Move {
    let Facts { rollout, admitted, now, .. } = *facts;
    let failed = facts.targets.iter().filter(|target| target.failed()).count();
    let has_canary = rollout.canary.is_some();
    if has_canary && facts.targets.iter().any(|target| target.batch == 0 && target.failed()) {
        return Move::Stop("a canary failed".to_owned());
    }
    let allowed = rollout.allowed(facts.targets.len());
    if failed > allowed {
        return Move::Stop(format!("{failed} of {} instances failed, {allowed} may", facts.targets.len()));
    }
    // A batch of which nothing is left is passed over.
    let left = facts.targets.iter().filter(|target| target.batch > admitted && !target.excluded);
    let Some(following) = left.map(|target| target.batch).min() else { return Move::Stay };
    if let Some(held_at) = facts.held_at {
        let tired = now >= held_at.after(PATIENCE);
        return if tired { Move::Stop("nobody let it go on for a week".to_owned()) } else { Move::Held };
    }
    let before = facts.targets.iter().filter(|target| target.batch <= admitted);
    if before.clone().any(|target| !target.state.is_over()) {
        return Move::Stay;
    }
    let ended = before.filter_map(|target| target.finished_at).max().unwrap_or(now);
    let seconds = |seconds: u32| ended.after(Duration::from_secs(seconds.into()));
    // Where every canary was taken out nothing was proved, and time alone promotes nobody.
    let promote_after = rollout.promote_after.filter(|_| facts.is_proved());
    let due = match (has_canary && admitted == 0 && !facts.promoted, promote_after) {
        (true, None) if now >= ended.after(PATIENCE) => {
            return Move::Stop("nobody promoted the canary for a week".to_owned());
        }
        (true, None) => return Move::AwaitPromotion,
        (true, Some(after)) => seconds(after),
        (false, _) if has_canary && admitted == 0 => ended,
        (false, _) => seconds(rollout.pause),
    };
    if now < due { Move::Until(due) } else { Move::Admit(following) }
}

/// How an instance of a stopped rollout stands that had its turn.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// State of its execution.
    pub state: State,
    /// Whether anything may have been done to what it serves.
    pub touched: bool,
    /// What it is doing; none when it is gone.
    pub status: Option<InstanceStatus>,
    /// Whether a later task did something to it.
    pub changed_since: bool,
    /// Whether there is a release to go back to.
    pub has_former: bool,
}

/// What taking a rollout back does to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WayBack {
    /// Nothing: it serves what it served.
    Untouched,
    /// It goes back to its former release.
    Goes,
    /// It is left alone; why, to be read behind the name of its host.
    Left(&'static str),
}

/// Whether an instance goes back.
#[must_use]
pub fn way_back(standing: Standing) -> WayBack {
    match standing {
        Standing { touched: false, .. } => WayBack::Untouched,
        Standing { state: State::Lost, .. } => WayBack::Left("cannot say where it stands"),
        Standing { status: None, .. } => WayBack::Left("is no instance any more"),
        Standing { status: Some(status), .. } if status.is_busy() => WayBack::Left("is in another task"),
        Standing { changed_since: true, .. } => WayBack::Left("was changed since then"),
        Standing { has_former: false, .. } => WayBack::Left("has no earlier release"),
        Standing { .. } => WayBack::Goes,
    }
}

#[cfg(test)]
#[path = "rollout_tests.rs"]
mod tests;
