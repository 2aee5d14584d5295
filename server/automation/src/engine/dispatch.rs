//! Sending what may be sent: one turn at a time, for all hosts that wait for one.
//!
//! A commit waits for the disk, however much is in it: what many tasks have for many hosts is marked as sent by one.
//! Invariants: an execution is marked as sent before it is sent; a host is sent its executions in their order, by one
//! sender at a time, and while a slow one takes its orders nobody else waits for it; whoever asks for a host's turn gets
//! one that begins after it was asked for; what has to wait for its host to end something takes nobody's place.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex};

use drover_kernel::db::Read;
use drover_kernel::{Audit, Kernel, Result};
use futures_util::future::BoxFuture;
use tokio::sync::OwnedMutexGuard;

use super::{Engine, lock, sending};
use crate::executions::store::{self as store, Sendable};
use crate::link::hub::Session;
use crate::locks::rules::Object;
use crate::tasks::store::Task;

/// Executions that are marked as sent in one transaction, at most twice as many, and the hosts that they are for.
const BATCH: i64 = 200;
const HOSTS_TOGETHER_MAX: usize = 100;

/// Executions that a host has of the server's at a time, about: more than it runs at once, and far fewer than an agent
/// takes. The others wait here, in their order.
const OUT_MAX: i64 = 1_000;

/// Hosts without an agent that a task's output names at a time.
const ABSENT_NAMED_MAX: usize = 100;

/// Hosts that wait for a turn. Bounded by the hosts that are connected.
#[derive(Default)]
pub(super) struct Dispatch {
    waiting: Mutex<BTreeSet<i64>>,
    /// Held by whoever marks as sent.
    turn: tokio::sync::Mutex<()>,
}

/// A host whose turn it is; the guard is held until it has been sent everything.
struct Served {
    session: Arc<Session>,
    guard: OwnedMutexGuard<()>,
}

/// Sends what a task has for the hosts that are connected, and says which are not.
pub(super) async fn dispatch(kernel: &Kernel, task: &Task) -> Result<()> {
    let engine = kernel.part::<Engine>();
    let hosts = store::hosts_waiting(&mut kernel.work().read().await?, task.id).await?;
    let (mut present, mut absent) = (Vec::new(), Vec::new());
    for host in hosts {
        match engine.hub.find(host.host_id) {
            Some(_) => present.push(host.host_id),
            None if engine.hub.first_absence(task.id, host.host_id) => absent.push(host.host_name),
            None => {}
        }
    }
    if !absent.is_empty() {
        let (owner, task_id) = (kernel.clone(), task.id);
        kernel.spawn(async move { report_absence(&owner, task_id, &absent).await });
    }
    if present.is_empty() { Ok(()) } else { dispatch_hosts(kernel, present).await }
}

/// Says once in the output what a task waits for.
async fn report_absence(kernel: &Kernel, task_id: i64, hosts: &[String]) {
    let engine = kernel.part::<Engine>();
    let (named, others) = hosts.split_at(hosts.len().min(ABSENT_NAMED_MAX));
    for host in named {
        let text = format!("{host}: waiting for the agent of this host to connect");
        engine.notice(task_id, kernel.clock().now(), &text).await;
    }
    if !others.is_empty() {
        let text = format!("waiting for the agents of {} more hosts to connect", others.len());
        engine.notice(task_id, kernel.clock().now(), &text).await;
    }
}

/// Sends everything that waits for these hosts.
///
/// # Errors
/// When the database is not available: the sweep does what is left.
pub(crate) async fn dispatch_hosts(kernel: &Kernel, hosts: impl IntoIterator<Item = i64>) -> Result<()> {
    let engine = kernel.part::<Engine>();
    lock(&engine.dispatch.waiting).extend(hosts);
    loop {
        let _turn = engine.dispatch.turn.lock().await;
        let served = engine.dispatch.next(&engine);
        if served.is_empty() {
            return Ok(());
        }
        take_turn(kernel, &engine, served).await?;
    }
}

impl Dispatch {
    /// The next hosts of one organisation that nobody is sending to. One that is being welcomed, or still takes what it
    /// was sent before, stays in the queue: whoever lets go of it asks again.
    fn next(&self, engine: &Engine) -> Vec<Served> {
        let mut waiting = lock(&self.waiting);
        let mut served: Vec<Served> = Vec::new();
        waiting.retain(|host_id| {
            // Who is not connected is welcomed when it comes, and asks then.
            let Some(session) = engine.hub.find(*host_id) else { return false };
            // The sweep asks for its turn later.
            if session.is_out_of_room() {
                return false;
            }
            let other = served.first().is_some_and(|one| one.session.organisation_id != session.organisation_id);
            if other || served.len() >= HOSTS_TOGETHER_MAX {
                return true;
            }
            match session.sending.clone().try_lock_owned() {
                Ok(guard) => {
                    served.push(Served { session, guard });
                    false
                }
                Err(_) => true,
            }
        });
        served
    }

    fn waits(&self, host_id: i64) -> bool {
        lock(&self.waiting).contains(&host_id)
    }
}

/// Marks what waits for these hosts as sent, and has it sent.
async fn take_turn(kernel: &Kernel, engine: &Arc<Engine>, served: Vec<Served>) -> Result<()> {
    let mut served: BTreeMap<i64, Served> = served.into_iter().map(|one| (one.session.host_id, one)).collect();
    let work = kernel.work();
    let mut hosts: Vec<i64> = served.keys().copied().collect();
    let mut read = work.read().await?;
    let full = store::hosts_with(&mut read, &hosts, OUT_MAX).await?;
    // Each outcome has its task looked after, which asks for a turn again.
    hosts.retain(|host_id| !full.contains(host_id));
    let (free, is_all) = free_for(&mut read, &served, &hosts).await?;
    drop(read);
    let Some(organisation_id) = free.first().map(|first| first.organisation_id) else { return Ok(()) };
    // Before anything is marked as sent: what cannot be read now is sent later.
    let mut ready = Vec::with_capacity(free.len());
    for execution in free {
        let Some(one) = served.get(&execution.host_id) else { continue };
        let needs = sending::needs_of_one(kernel, &one.session, &execution).await?;
        ready.push((execution, needs));
    }
    let mut tx = work.begin(organisation_id).await?;
    let ids = ready.iter().map(|(execution, _)| execution.id.clone()).collect();
    let tasks = ready.iter().map(|(execution, _)| execution.task_id).collect();
    let sent: HashSet<String> = store::mark_sent(&mut tx, ids, tasks).await?.into_iter().collect();
    tx.finish(Audit::none("executions are sent")).await?;
    // A turn that sends nothing is followed by no other by itself.
    if !is_all && !sent.is_empty() {
        lock(&engine.dispatch.waiting).extend(hosts);
    }
    let mut orders: BTreeMap<i64, Vec<_>> = BTreeMap::new();
    for (execution, needs) in ready.into_iter().filter(|(one, _)| sent.contains(&one.id)) {
        orders.entry(execution.host_id).or_default().push((execution, needs));
    }
    for (host_id, orders) in orders {
        if let Some(one) = served.remove(&host_id) {
            kernel.spawn(send_all(kernel.clone(), one, orders));
        }
    }
    Ok(())
}

/// What may be sent to these hosts now, and whether that is all of it. What has to wait until its host has ended something
/// is passed over: then its host has a turn again.
async fn free_for(read: &mut Read, served: &BTreeMap<i64, Served>, hosts: &[i64]) -> Result<(Vec<Sendable>, bool)> {
    let is_free = |one: &Sendable| {
        let object = Object::of(one.role, one.instance_id, one.host_id);
        served.get(&one.host_id).is_some_and(|served| served.session.is_free(object))
    };
    let is_full = |rows: &[Sendable]| i64::try_from(rows.len()).is_ok_and(|count| count >= BATCH);
    let mut free = Vec::new();
    let mut beyond = String::new();
    loop {
        let page = store::queued_for_hosts(read, hosts, &beyond, BATCH).await?;
        if let Some(last) = page.last() {
            beyond.clone_from(&last.id);
        }
        let is_last = !is_full(&page);
        free.extend(page.into_iter().filter(is_free));
        if is_last || is_full(&free) {
            return Ok((free, is_last));
        }
    }
}

/// Sends to one host, which may be slow to take it. Boxed, because it may ask for the next turn.
fn send_all(kernel: Kernel, served: Served, orders: Vec<(Sendable, sending::Needs)>) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let Served { session, guard } = served;
        for (execution, needs) in orders {
            // A session that ends here takes nothing along: the agent does not list it, and it is sent again.
            match sending::send(&kernel, &session, &execution, needs).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => tracing::warn!(execution = execution.id, %error, "an order could not be sent"),
            }
        }
        drop(guard);
        if kernel.part::<Engine>().dispatch.waits(session.host_id)
            && let Err(error) = dispatch_hosts(&kernel, []).await
        {
            tracing::warn!(host = session.host_name, %error, "orders could not be sent; the sweep tries again");
        }
    })
}
