//! Taking what a task changes, at once or after waiting for it.
//!
//! Invariant: who takes something that others wait for as well stood before them in the line.

use drover_inventory::instances::rules::InstanceStatus;
use drover_inventory::{hosts, instances};
use drover_kernel::fields::Number;
use drover_kernel::{Error, Result, Tx, api_words};
use drover_shared::words::Action;

use super::rules::{Object, PRIORITY_MAX, rank};
use super::store;
use crate::tasks::answer::check_answered;
use crate::tasks::premises;

/// Tasks that may wait.
const TASKS_MAX: i64 = 1_000;
/// What they may want together.
const OBJECTS_MAX: i64 = 100_000;

api_words! {
    /// What becomes of a task when something that it changes is taken.
    pub enum IfBusy {
        /// It is not made.
        Refuse = "refuse",
        /// It waits in the queue.
        Wait = "wait",
    }
}

/// Whether and where a task waits. Left out: it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub if_busy: IfBusy,
    pub priority: i64,
}

impl Place {
    /// Nothing waits.
    pub(crate) const NONE: Self = Self { if_busy: IfBusy::Refuse, priority: 0 };

    /// The place that is asked for.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub(crate) fn wanted(if_busy: Option<IfBusy>, priority: Option<Number>) -> Result<Self> {
        let if_busy = if_busy.unwrap_or(IfBusy::Refuse);
        let priority = match priority {
            Some(_) if if_busy == IfBusy::Refuse => {
                return Err(Error::invalid("priority", "only what waits has one: set if_busy to wait"));
            }
            Some(priority) => checked_priority(priority)?,
            None => 0,
        };
        Ok(Self { if_busy, priority })
    }
}

/// A priority in its bounds.
///
/// # Errors
/// An invalid field.
pub(crate) fn checked_priority(priority: Number) -> Result<i64> {
    if (-PRIORITY_MAX..=PRIORITY_MAX).contains(&priority.0) {
        return Ok(priority.0);
    }
    Err(Error::invalid("priority", format!("must be -{PRIORITY_MAX} to {PRIORITY_MAX}")))
}

/// What a task changes: instances, or hosts.
#[derive(Debug, Clone)]
pub(crate) enum Targets {
    /// Instances of an application.
    Instances(Vec<i64>),
    /// Hosts that a script runs on.
    Hosts(Vec<i64>),
}

impl Targets {
    /// Those of executions, which are all of one kind.
    pub(crate) fn of(objects: impl Iterator<Item = Object>) -> Self {
        let (mut instances, mut hosts) = (Vec::new(), Vec::new());
        for object in objects {
            match object {
                Object::Instance(id) => instances.push(id),
                Object::Host(id) => hosts.push(id),
            }
        }
        if hosts.is_empty() { Self::Instances(instances) } else { Self::Hosts(hosts) }
    }

    /// Their ids, for statements that look for either: instances, hosts.
    pub(super) fn ids(&self) -> (&[i64], &[i64]) {
        match self {
            Self::Instances(ids) => (ids, &[]),
            Self::Hosts(ids) => (&[], ids),
        }
    }

    fn len(&self) -> usize {
        let (instances, hosts) = self.ids();
        instances.len() + hosts.len()
    }

    /// One of them, in a sentence.
    fn one_on(&self, host: &str) -> String {
        match self {
            Self::Instances(_) => format!("the instance on {host}"),
            Self::Hosts(_) => format!("the host {host}"),
        }
    }
}

/// What an instance is doing while a task of this kind changes it; nothing for one that runs a script on hosts.
fn busy(kind: Action) -> Option<InstanceStatus> {
    match kind {
        Action::Upgrade => Some(InstanceStatus::Updating),
        Action::Revert => Some(InstanceStatus::Reverting),
        Action::Start | Action::Stop | Action::Restart => Some(InstanceStatus::Restarting),
        Action::Script => None,
    }
}

/// What came of it.
pub(crate) enum Taken {
    /// It is the task's, and had this status before: pairs of instance and status.
    Now(Vec<(i64, String)>),
    /// It is not; why, for the output.
    Later(String),
}

impl Taken {
    /// The status that an instance had before it was taken.
    pub(crate) fn status_before(&self, instance_id: Option<i64>) -> Option<String> {
        let Self::Now(before) = self else { return None };
        before.iter().find(|(id, _)| Some(*id) == instance_id).map(|(_, status)| status.clone())
    }

    /// Why it waits, if it does.
    pub(crate) fn waits(&self) -> Option<&str> {
        match self {
            Self::Now(_) => None,
            Self::Later(why) => Some(why),
        }
    }
}

/// Takes what a task changes that is about to be made, or finds that it has to wait.
///
/// # Errors
/// A conflict when something is taken, or wanted by others, and the task does not wait; when the queue is full.
pub(crate) async fn take_or_wait(tx: &mut Tx, targets: &Targets, kind: Action, place: Place) -> Result<Taken> {
    if place.if_busy == IfBusy::Refuse {
        let before = take(tx, targets, kind).await?;
        let Some(other) = store::before(tx, targets, i64::MAX).await? else { return Ok(Taken::Now(before)) };
        let what = targets.one_on(&other.host_name);
        return Err(Error::conflict(format!("task {} waits for {what} already", other.task_id)));
    }
    // Whoever ends a change at this moment has ended it, or sees that this one waits.
    hold(tx, targets).await?;
    let why = if let Some(holder) = store::holder(tx, targets).await? {
        Some(format!("task {} has {}", holder.task_id, targets.one_on(&holder.host_name)))
    } else {
        let rank = rank(place.priority, tx.now());
        let before = store::before(tx, targets, rank).await?;
        before.map(|one| format!("task {} waits for {} already", one.task_id, targets.one_on(&one.host_name)))
    };
    let Some(why) = why else { return take(tx, targets, kind).await.map(Taken::Now) };
    let length = store::length(tx).await?;
    let objects = length.objects.saturating_add(i64::try_from(targets.len()).unwrap_or(i64::MAX));
    if length.tasks >= TASKS_MAX || objects > OBJECTS_MAX {
        let text = format!("the queue is full: {} tasks wait for {} instances or hosts", length.tasks, length.objects);
        return Err(Error::conflict(text));
    }
    Ok(Taken::Later(why))
}

async fn hold(tx: &mut Tx, targets: &Targets) -> Result<()> {
    match targets {
        Targets::Instances(ids) => instances::store::hold(tx, ids).await,
        Targets::Hosts(ids) => hosts::store::hold(tx, ids).await,
    }
}

/// Takes instances or hosts, all or none, and gives the status that each instance had.
///
/// # Errors
/// A conflict when one of them is taken.
pub(crate) async fn take(tx: &mut Tx, targets: &Targets, kind: Action) -> Result<Vec<(i64, String)>> {
    match (targets, busy(kind)) {
        (Targets::Instances(ids), Some(busy)) => {
            // Read under the change's own lock: this is what they go back to if nothing happens to them.
            let before = premises::instance_statuses(tx, ids).await?;
            instances::store::begin_change(tx, ids, busy).await?;
            check_answered(tx, ids).await?;
            Ok(before)
        }
        (Targets::Hosts(ids), None) => {
            // A host has no state that says so: whoever takes one waits for the others who do.
            hosts::store::hold(tx, ids).await?;
            match store::holder(tx, targets).await? {
                None => Ok(Vec::new()),
                Some(holder) => {
                    Err(Error::conflict(format!("task {} has the host {}", holder.task_id, holder.host_name)))
                }
            }
        }
        _ => Err(Error::internal(format!("a task that does {kind} has other targets"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(if_busy: Option<IfBusy>, priority: Option<i64>) -> std::result::Result<Place, String> {
        Place::wanted(if_busy, priority.map(Number)).map_err(|error| error.to_string())
    }

    #[test]
    fn only_what_waits_has_a_priority() {
        assert_eq!(wanted(None, None), Ok(Place::NONE));
        let wait = |priority| Ok(Place { if_busy: IfBusy::Wait, priority });
        assert_eq!(wanted(Some(IfBusy::Wait), None), wait(0));
        assert_eq!(wanted(Some(IfBusy::Wait), Some(-100)), wait(-100));
        assert_eq!(wanted(Some(IfBusy::Wait), Some(101)), Err("priority: must be -100 to 100".to_owned()));
        let refused = wanted(Some(IfBusy::Refuse), Some(1)).expect_err("it does not wait");
        assert!(refused.starts_with("priority: "), "{refused}");
    }
}
