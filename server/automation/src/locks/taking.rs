//! Taking what a task changes, at once or after waiting for it.
//!
//! Invariant: who takes something that others wait for as well stood before them in the line.

use drover_inventory::instances;
use drover_inventory::instances::rules::InstanceStatus;
use drover_kernel::fields::Number;
use drover_kernel::{Error, Result, Tx, api_words};
use drover_shared::words::Action;

use super::store;
use crate::tasks::answer::check_answered;
use crate::tasks::premises;

/// Tasks that may wait.
const TASKS_MAX: i64 = 1_000;
/// What they may want together.
const OBJECTS_MAX: i64 = 100_000;
/// The greatest priority, and the least with a minus.
const PRIORITY_MAX: i64 = 100;

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

/// What an instance is doing while a task of this kind changes it.
fn busy(kind: Action) -> InstanceStatus {
    match kind {
        Action::Upgrade => InstanceStatus::Updating,
        Action::Revert => InstanceStatus::Reverting,
        Action::Start | Action::Stop | Action::Restart => InstanceStatus::Restarting,
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

/// Takes instances for a task that is about to be made, or finds that it has to wait.
///
/// # Errors
/// A conflict when something is taken, or wanted by others, and the task does not wait; when the queue is full.
pub(crate) async fn take_or_wait(tx: &mut Tx, ids: &[i64], kind: Action, place: Place) -> Result<Taken> {
    if place.if_busy == IfBusy::Refuse {
        let before = take(tx, ids, kind).await?;
        let Some(other) = store::before(tx, ids, i64::MIN).await? else { return Ok(Taken::Now(before)) };
        let (task_id, host) = (other.task_id, other.host_name);
        return Err(Error::conflict(format!("task {task_id} waits for the instance on {host} already")));
    }
    // Whoever ends a change at this moment has ended it, or sees that this one waits.
    instances::store::hold(tx, ids).await?;
    let why = if let Some(holder) = store::holder(tx, ids).await? {
        Some(format!("task {} has the instance on {}", holder.task_id, holder.host_name))
    } else {
        let before = store::before(tx, ids, place.priority).await?;
        before.map(|other| format!("task {} waits for the instance on {} already", other.task_id, other.host_name))
    };
    let Some(why) = why else { return take(tx, ids, kind).await.map(Taken::Now) };
    let length = store::length(tx).await?;
    let objects = length.objects.saturating_add(i64::try_from(ids.len()).unwrap_or(i64::MAX));
    if length.tasks >= TASKS_MAX || objects > OBJECTS_MAX {
        let text = format!("the queue is full: {} tasks wait for {} instances", length.tasks, length.objects);
        return Err(Error::conflict(text));
    }
    Ok(Taken::Later(why))
}

/// Takes instances, all or none, and gives the status that each had.
///
/// # Errors
/// A conflict when one of them is taken.
pub(crate) async fn take(tx: &mut Tx, ids: &[i64], kind: Action) -> Result<Vec<(i64, String)>> {
    // Read under the change's own lock: this is what they go back to if nothing happens to them.
    let before = premises::instance_statuses(tx, ids).await?;
    instances::store::begin_change(tx, ids, busy(kind)).await?;
    check_answered(tx, ids).await?;
    Ok(before)
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
