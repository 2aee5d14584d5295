//! What hosts watch: each agent is told the pid files of the instances on its host, and says what it sees of them.
//!
//! What is to be watched follows from applications, settings, variables and hosts; whatever may change it names what it
//! touched, and the hosts concerned are looked after one at a time. Invariants: an agent is told only what is another
//! than what it was told before in its session; one that is too old is told nothing; what cannot be rendered is unknown,
//! with the reason; nothing is lost by a crash, because every session begins with what there is to watch.

mod store;

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use drover_inventory::instances::states::{self, Changed, TOPIC, Witness};
use drover_kernel::at_once::blocking;
use drover_kernel::jobs::{Jobs, Work};
use drover_kernel::{Audit, Error, Kernel, Result};
use drover_shared::instance::{FEATURE, Observation, ProcessState, REASON_BYTES_MAX, WATCHED_MAX, Watched};
use drover_shared::message::ToAgent;

use crate::engine::Engine;
use crate::link::hub::Session;
use crate::operations::paths::{self, PathOf};
use crate::tasks::plan::Input;

/// Pause after the database was not available.
const PAUSE: Duration = Duration::from_secs(1);

/// Hosts that have to be looked after.
#[derive(Default)]
pub(crate) struct Watching(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    hosts: BTreeSet<i64>,
    /// The one that was last told.
    last: i64,
    /// Whether somebody is at it.
    at_work: bool,
}

impl Watching {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds hosts. True when the caller has to begin.
    fn add(&self, hosts: impl IntoIterator<Item = i64>) -> bool {
        let mut waiting = self.lock();
        waiting.hosts.extend(hosts);
        !waiting.hosts.is_empty() && !std::mem::replace(&mut waiting.at_work, true)
    }

    /// The next host; none when there is nothing left to do.
    fn next(&self) -> Option<i64> {
        let mut waiting = self.lock();
        // Round and round: one that cannot be told keeps nobody behind it waiting.
        let behind = waiting.last.saturating_add(1);
        let next = waiting.hosts.range(behind..).next().or_else(|| waiting.hosts.first()).copied();
        if let Some(next) = next {
            waiting.hosts.remove(&next);
            waiting.last = next;
        }
        waiting.at_work = next.is_some();
        next
    }
}

/// Lets others begin even if this one ends in a panic.
struct AtWork<'a>(&'a Watching);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().at_work = false;
        }
    }
}

/// The handler of wake-ups of whoever changed something.
pub(crate) fn jobs() -> Jobs {
    Jobs::default().on(TOPIC, |work: Work, key: String| async move {
        let changed =
            Changed::parse(&key).ok_or_else(|| Error::internal(format!("`{key}` is nothing that changes")))?;
        let kernel = work.kernel();
        let connected = kernel.part::<Engine>().hub.hosts();
        let mut read = work.read().await?;
        let hosts = match changed {
            Changed::Organisation => connected.clone(),
            Changed::Environment(id) => store::hosts_of_environment(&mut read, id).await?,
            Changed::Host(id) => vec![id],
            Changed::Application(id) => store::hosts_of_application(&mut read, id).await?,
            Changed::Instance(id) => store::hosts_of_instance(&mut read, id).await?,
        };
        drop(read);
        let connected: BTreeSet<i64> = connected.into_iter().collect();
        look_after(kernel, hosts.into_iter().filter(|host| connected.contains(host)));
        Ok(())
    })
}

/// Has the hosts told again, as far as this may have changed what they watch.
pub(crate) fn say(kernel: &Kernel, changed: Changed) {
    let owner = kernel.clone();
    kernel.spawn(async move {
        let hosts = match changed {
            Changed::Application(id) => match owner.work().read().await {
                Ok(mut read) => store::hosts_of_application(&mut read, id).await,
                Err(error) => Err(error),
            },
            _ => Ok(owner.part::<Engine>().hub.hosts()),
        };
        match hosts {
            Ok(hosts) => look_after(&owner, hosts),
            Err(error) => tracing::warn!(%error, "cannot find which hosts watch something else now"),
        }
    });
}

/// Tells the agents of these hosts what to watch, one after the other, if it is another than they were told.
pub(crate) fn look_after(kernel: &Kernel, hosts: impl IntoIterator<Item = i64>) {
    let engine = kernel.part::<Engine>();
    if !engine.watching.add(hosts) {
        return;
    }
    let owner = kernel.clone();
    kernel.spawn(async move {
        let _at_work = AtWork(&engine.watching);
        let stop = owner.stopping();
        while let Some(host_id) = engine.watching.next() {
            let Some(session) = engine.hub.find(host_id).filter(|session| session.can(FEATURE)) else { continue };
            // One that reads nothing keeps nobody waiting; its session does not last.
            let told = if session.has_room() {
                tell(&owner, &session).await
            } else {
                Err(Error::internal("it reads nothing"))
            };
            if let Err(error) = told {
                tracing::warn!(%error, host = session.host_name, "cannot tell a host what to watch, trying again");
                engine.watching.add([host_id]);
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = stop.cancelled() => return,
                }
            }
        }
    });
}

/// Tells a host again what to watch, so that it says again what it sees.
pub(crate) fn tell_anew(kernel: &Kernel, host_id: i64) {
    if let Some(session) = kernel.part::<Engine>().hub.find(host_id) {
        *session.watched.lock().unwrap_or_else(PoisonError::into_inner) = None;
        look_after(kernel, [host_id]);
    }
}

/// Tells an agent what to watch, if it is another than before.
async fn tell(kernel: &Kernel, session: &Session) -> Result<()> {
    let mut read = kernel.work().read().await?;
    let mut inputs = Vec::new();
    for (application_id, instance_id) in store::watched_on(&mut read, session.host_id, WATCHED_MAX).await? {
        inputs.push(paths::input(&mut read, application_id, instance_id).await?);
    }
    drop(read);
    let rendering = blocking(move || render(&inputs));
    let (watched, unclear) = rendering.await?;
    let is_known = {
        let mut told = session.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = told.as_ref().map_or(watched.is_empty(), |told| *told == watched);
        if !is_known {
            *told = Some(watched.clone());
        }
        is_known
    };
    if !is_known {
        session.send(ToAgent::Watch { instances: watched }).await;
    }
    note(kernel, session, &unclear).await.map(drop)
}

/// What is to be watched, and what cannot be, with the reasons.
fn render(inputs: &[Input]) -> (Vec<Watched>, Vec<Observation>) {
    let (mut watched, mut unclear) = (Vec::new(), Vec::new());
    for (input, target) in inputs.iter().flat_map(|input| input.targets.iter().map(move |target| (input, target))) {
        let instance_id = target.instance_id;
        match paths::place(input, target, PathOf::PidFile) {
            Ok(Some(place)) => {
                watched.push(Watched { instance_id, pid_path: place.path, running_user: place.running_user });
            }
            Ok(None) => {}
            Err(mut reason) => {
                reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
                let (state, reason) = (ProcessState::Unknown, Some(reason));
                unclear.push(Observation { instance_id, state, pid: None, since_ms: None, reason });
            }
        }
    }
    (watched, unclear)
}

/// An agent says what it sees.
pub(crate) async fn observed(kernel: &Kernel, session: &Session, mut instances: Vec<Observation>) -> Result<()> {
    instances.truncate(WATCHED_MAX);
    for reason in instances.iter_mut().filter_map(|one| one.reason.as_mut()) {
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        // PostgreSQL keeps no text with it.
        reason.retain(|character| character != '\0');
    }
    if !note(kernel, session, &instances).await? {
        // Instances that were taken away since it was told.
        look_after(kernel, [session.host_id]);
    }
    Ok(())
}

async fn note(kernel: &Kernel, session: &Session, observations: &[Observation]) -> Result<bool> {
    if observations.is_empty() {
        return Ok(true);
    }
    let mut tx = kernel.work().begin(session.organisation_id).await?;
    let witness = Witness { host_id: session.host_id, agent_id: &session.agent_id, epoch: session.epoch };
    let all_known = states::observe(&mut tx, witness, observations).await?;
    tx.finish(Audit::none("a host says how its instances are")).await?;
    Ok(all_known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_at_work_and_hosts_wait_once() {
        let watching = Watching::default();
        assert!(!watching.add([]), "there is nothing to begin");
        assert!(watching.add([2, 1]));
        assert!(!watching.add([1, 3]), "somebody is at it");
        assert_eq!(
            [watching.next(), watching.next(), watching.next(), watching.next()],
            [Some(1), Some(2), Some(3), None]
        );
        assert!(watching.add([1]), "the one before has ended");
    }
}
