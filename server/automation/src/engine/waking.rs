//! Looking after tasks right away: one look at a task at a time.
//!
//! Invariant: whoever asks for a look while one is under way gets another one after it, and many that ask get one.

use std::collections::HashMap;
use std::sync::Mutex;

use drover_kernel::Kernel;

use super::{Engine, advance, lock, report};

/// Tasks that are being looked after, and whether they have to be looked at once more.
#[derive(Default)]
pub(super) struct Waking(Mutex<HashMap<i64, bool>>);

impl Waking {
    /// True when the caller has to look; otherwise whoever is looking looks again.
    pub(super) fn begin(&self, task_id: i64) -> bool {
        let mut tasks = lock(&self.0);
        let under_way = tasks.contains_key(&task_id);
        tasks.insert(task_id, under_way);
        !under_way
    }

    /// Before another look: true when somebody asked for one since the last began. Else the caller is through.
    pub(super) fn again(&self, task_id: i64) -> bool {
        let mut tasks = lock(&self.0);
        let again = tasks.insert(task_id, false) == Some(true);
        if !again {
            tasks.remove(&task_id);
        }
        again
    }

    /// To be kept as long as somebody looks.
    pub(super) fn looking(&self, task_id: i64) -> Looking<'_> {
        Looking(self, task_id)
    }
}

/// Lets others look after the task even if a look ends in a panic.
pub(super) struct Looking<'a>(&'a Waking, i64);

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            lock(&self.0.0).remove(&self.1);
        }
    }
}

/// Looks after a task right away, without waiting for the queue.
pub(crate) fn wake(kernel: &Kernel, task_id: i64) {
    let engine = kernel.part::<Engine>();
    if !engine.waking.begin(task_id) {
        return;
    }
    let owner = kernel.clone();
    kernel.spawn(async move {
        let _looking = engine.waking.looking(task_id);
        loop {
            report(task_id, advance(&owner, task_id).await);
            if !engine.waking.again(task_id) {
                return;
            }
        }
    });
}

/// Adds a line to a task's output and looks after the task.
pub(crate) fn say_and_wake(kernel: &Kernel, task_id: i64, text: String) {
    let owner = kernel.clone();
    kernel.spawn(async move {
        owner.part::<Engine>().notice(task_id, owner.clock().now(), &text).await;
        wake(&owner, task_id);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_during_a_look_gets_one_more() {
        let waking = Waking::default();
        assert!(waking.begin(1) && waking.begin(2), "tasks do not wait for one another");
        assert!(!waking.begin(1) && !waking.begin(1), "somebody looks already");
        assert!(waking.again(1), "two asked meanwhile, and one look is enough for them");
        assert!(!waking.again(1) && waking.begin(1));
    }
}
