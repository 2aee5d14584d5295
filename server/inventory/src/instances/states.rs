//! What hosts see of the processes of instances.
//!
//! Owns the table `instance_states`. Invariants: what an agent said counts as long as the session in which it said so is
//! open; of what nobody can say, the state is unknown, with the reason; whoever may show another state by what is
//! rendered from it says so in the transaction that changes it ([`changed`]).

use std::collections::BTreeMap;

use drover_kernel::db::{Condition, Read};
use drover_kernel::{Kernel, Paging, Result, Time, Tx, args, row, sql, when};
use drover_shared::instance::{Observation, ProcessState};
use schemars::JsonSchema;
use serde::Serialize;

use super::rules::InstanceStatus;

/// Topic of the wake-ups for what hosts watch; the keys are those of [`Changed`].
pub const TOPIC: &str = "watched";

/// What changed of which pid files may depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// What belongs to the organisation, or what many things are called.
    Organisation,
    /// An application, or which hosts it is on.
    Application(i64),
    /// What the hosts of an environment have.
    Environment(i64),
    /// A host.
    Host(i64),
    /// An instance.
    Instance(i64),
}

impl Changed {
    fn key(self) -> String {
        match self {
            Self::Organisation => "organisation".to_owned(),
            Self::Application(id) => format!("application/{id}"),
            Self::Environment(id) => format!("environment/{id}"),
            Self::Host(id) => format!("host/{id}"),
            Self::Instance(id) => format!("instance/{id}"),
        }
    }

    /// What a wake-up is about.
    #[must_use]
    pub fn parse(key: &str) -> Option<Self> {
        match key.split_once('/') {
            None if key == "organisation" => Some(Self::Organisation),
            Some(("application", id)) => id.parse().ok().map(Self::Application),
            Some(("environment", id)) => id.parse().ok().map(Self::Environment),
            Some(("host", id)) => id.parse().ok().map(Self::Host),
            Some(("instance", id)) => id.parse().ok().map(Self::Instance),
            _ => None,
        }
    }
}

/// Has hosts told again what to watch, as far as this may have changed it.
///
/// # Errors
/// When the database is not available.
pub async fn changed(tx: &mut Tx, what: Changed) -> Result<()> {
    tx.enqueue(TOPIC, &what.key()).await
}

row! {
    /// An instance, with what its host sees of its process.
    pub(super) struct SeenRow {
        pub(super) id: i64,
        pub(super) host_id: i64,
        pub(super) host_name: String,
        pub(super) status: InstanceStatus,
        pub(super) version: Option<String>,
        pub(super) process_state: ProcessState,
        pub(super) has_pid_path: bool,
        pub(super) connected: Option<bool>,
        pub(super) is_fresh: bool,
        pub(super) last_state: Option<ProcessState>,
        pub(super) pid: Option<i64>,
        pub(super) since_at: Option<Time>,
        pub(super) reason: Option<String>,
        pub(super) last_seen_at: Option<Time>,
    }
}

/// What the instance's host sees of its process.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "InstanceProcess")]
pub(super) struct ProcessOut {
    /// `running` and `stopped` by the pid file, `crashed` when it names a process that is gone, `unknown` when nobody can
    /// say.
    #[schemars(with = "String")]
    state: ProcessState,
    /// The process that runs.
    pid: Option<i64>,
    /// Since when, by the host's clock; null when nobody saw it change.
    since_time: Option<String>,
    /// Why it crashed or is unknown.
    reason: Option<String>,
    /// What was seen last, when the state is unknown because the agent is not connected.
    #[schemars(with = "Option<String>")]
    last_state: Option<ProcessState>,
    /// When the agent was last heard of, if it is not connected.
    last_seen_time: Option<String>,
}

impl SeenRow {
    pub(super) fn process(&self, kernel: &Kernel) -> ProcessOut {
        let state = self.process_state;
        let away = self.connected == Some(false);
        let why = match self.connected {
            _ if !self.has_pid_path => Some("the application has no pid_path"),
            None => Some("the host has no agent"),
            Some(false) => Some("the agent is not connected"),
            Some(true) if !self.is_fresh => Some("the agent has not said so far; one that is too old never does"),
            Some(true) => None,
        };
        let reason = match why {
            Some(why) => Some(why.to_owned()),
            None => self.reason.clone().filter(|_| matches!(state, ProcessState::Crashed | ProcessState::Unknown)),
        };
        let told = why.is_none();
        ProcessOut {
            state,
            pid: self.pid.filter(|_| told),
            since_time: self.since_at.filter(|_| told).map(|time| kernel.show(time)),
            reason,
            last_state: self.last_state.filter(|_| away && self.has_pid_path),
            last_seen_time: self.last_seen_at.filter(|_| away).map(|time| kernel.show(time)),
        }
    }
}

/// The condition that the state is this one.
pub(super) fn is(state: ProcessState) -> Condition {
    when!(
        "CASE WHEN a.pid_path = '' OR s.state IS NULL OR g.connected IS NULL OR NOT g.connected OR s.epoch <> g.epoch \
         OR s.agent_id <> g.id THEN 'unknown' WHEN s.state = 'crashed' AND i.status = 'stopped' THEN 'stopped' \
         ELSE s.state END = $1",
        state
    )
}

/// One page of the instances of an application; conditions speak of `i`, `s`, `a` and `g`.
///
/// # Errors
/// When the database is not available.
pub(super) async fn list(
    read: &mut Read,
    paging: &Paging,
    application_id: i64,
    conditions: &[Condition],
) -> Result<(i64, Vec<SeenRow>)> {
    let count = sql!(
        "SELECT COUNT(*) FROM instances i JOIN applications a ON a.id = i.application_id \
         LEFT JOIN agents g ON g.host_id = i.host_id LEFT JOIN instance_states s ON s.instance_id = i.id \
         WHERE i.application_id = $1/* filters */"
    );
    // A pid file that is left over after a stop is no crash.
    let rows = sql!(
        "SELECT i.id, i.host_id, h.name AS host_name, i.status, i.version, CASE WHEN a.pid_path = '' OR s.state IS NULL \
         OR g.connected IS NULL OR NOT g.connected OR s.epoch <> g.epoch OR s.agent_id <> g.id THEN 'unknown' \
         WHEN s.state = 'crashed' AND i.status = 'stopped' THEN 'stopped' ELSE s.state END AS process_state, \
         a.pid_path <> '' AS has_pid_path, g.connected, COALESCE(g.connected AND s.epoch = g.epoch AND s.agent_id = g.id, FALSE) \
         AS is_fresh, s.state AS last_state, s.pid, s.since_at, s.reason, g.last_seen_at \
         FROM instances i JOIN hosts h ON h.id = i.host_id JOIN applications a ON a.id = i.application_id \
         LEFT JOIN agents g ON g.host_id = i.host_id LEFT JOIN instance_states s ON s.instance_id = i.id \
         WHERE i.application_id = $1/* filters */ ORDER BY i.id"
    );
    paging.read(read, count, rows, args![application_id], conditions).await
}

/// Those of these instances that are the application's, by id.
///
/// # Errors
/// When the database is not available.
pub(super) async fn find_many(read: &mut Read, application_id: i64, ids: &[i64]) -> Result<Vec<SeenRow>> {
    let rows = sql!(
        "SELECT i.id, i.host_id, h.name AS host_name, i.status, i.version, CASE WHEN a.pid_path = '' OR s.state IS NULL \
         OR g.connected IS NULL OR NOT g.connected OR s.epoch <> g.epoch OR s.agent_id <> g.id THEN 'unknown' \
         WHEN s.state = 'crashed' AND i.status = 'stopped' THEN 'stopped' ELSE s.state END AS process_state, \
         a.pid_path <> '' AS has_pid_path, g.connected, COALESCE(g.connected AND s.epoch = g.epoch AND s.agent_id = g.id, FALSE) \
         AS is_fresh, s.state AS last_state, s.pid, s.since_at, s.reason, g.last_seen_at \
         FROM instances i JOIN hosts h ON h.id = i.host_id JOIN applications a ON a.id = i.application_id \
         LEFT JOIN agents g ON g.host_id = i.host_id LEFT JOIN instance_states s ON s.instance_id = i.id \
         WHERE i.application_id = $1 AND i.id IN ($2) ORDER BY i.id"
    );
    Ok(read.all(rows, args![application_id, ids.to_vec()]).await?)
}

row! {
    struct StateRow {
        instance_id: i64,
        state: ProcessState,
    }
}

/// What is seen now of these instances; those of which nobody can say are left out.
///
/// # Errors
/// When the database is not available.
pub async fn seen(read: &mut Read, ids: &[i64]) -> Result<BTreeMap<i64, ProcessState>> {
    let rows = sql!(
        "SELECT s.instance_id, s.state FROM instance_states s JOIN instances i ON i.id = s.instance_id \
         JOIN applications a ON a.id = i.application_id \
         JOIN agents g ON g.host_id = i.host_id AND g.id = s.agent_id AND g.epoch = s.epoch \
         WHERE s.instance_id IN ($1) AND g.connected AND a.pid_path <> '' AND s.state <> 'unknown'"
    );
    let rows: Vec<StateRow> = read.all(rows, args![ids.to_vec()]).await?;
    Ok(rows.into_iter().map(|row| (row.instance_id, row.state)).collect())
}

/// Who says what a host sees.
#[derive(Debug, Clone, Copy)]
pub struct Witness<'a> {
    /// Host.
    pub host_id: i64,
    /// Its agent.
    pub agent_id: &'a str,
    /// The agent's session.
    pub epoch: i64,
}

/// Notes what a host sees. Gives whether all of it was about instances of that host, said in its present session; the
/// rest is left out.
///
/// # Errors
/// When the database is not available.
pub async fn observe(tx: &mut Tx, witness: Witness<'_>, observations: &[Observation]) -> Result<bool> {
    let ids: Vec<i64> = observations.iter().map(|observation| observation.instance_id).collect();
    // What a session says that is over must not take the place of what is said in the one after it.
    let known = sql!(
        "SELECT i.id FROM instances i JOIN agents g ON g.host_id = i.host_id WHERE i.organisation_id = $1 \
         AND i.host_id = $2 AND i.id IN ($3) AND g.id = $4 AND g.epoch = $5"
    );
    let (organisation_id, now) = (tx.organisation_id(), tx.now());
    let arguments = args![organisation_id, witness.host_id, ids, witness.agent_id, witness.epoch];
    let known: Vec<i64> = tx.values(known, arguments).await?;
    let mut ordered: Vec<&Observation> = observations.iter().filter(|one| known.contains(&one.instance_id)).collect();
    // Whoever changes several does it in this order, so that no two wait for each other.
    ordered.sort_unstable_by_key(|one| one.instance_id);
    for one in ordered {
        let write = sql!(
            "INSERT INTO instance_states (instance_id, organisation_id, agent_id, epoch, state, pid, since_at, reason, \
             observed_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (instance_id) DO UPDATE SET \
             agent_id = excluded.agent_id, epoch = excluded.epoch, state = excluded.state, pid = excluded.pid, \
             since_at = excluded.since_at, reason = excluded.reason, observed_at = excluded.observed_at"
        );
        let arguments = args![
            one.instance_id,
            organisation_id,
            witness.agent_id,
            witness.epoch,
            one.state,
            one.pid.map(i64::from),
            one.since_ms.map(Time::from_millis),
            one.reason.clone(),
            now
        ];
        tx.run(write, arguments).await?;
    }
    Ok(observations.iter().all(|one| known.contains(&one.instance_id)))
}

/// An operation has just seen to it that an instance runs, or does not: whoever looks before its agent says so sees that.
///
/// # Errors
/// When the database is not available.
pub async fn presume(tx: &mut Tx, instance_id: i64, state: ProcessState) -> Result<()> {
    let update = sql!(
        "UPDATE instance_states SET state = $2, pid = NULL, since_at = $3, reason = NULL WHERE instance_id = $1 \
         AND state <> $2 AND state <> 'unknown'"
    );
    let now = tx.now();
    Ok(tx.run(update, args![instance_id, state, now]).await.map(drop)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_found_in_its_key() {
        for what in [
            Changed::Organisation,
            Changed::Application(7),
            Changed::Environment(6),
            Changed::Host(8),
            Changed::Instance(9),
        ] {
            assert_eq!(Changed::parse(&what.key()), Some(what));
        }
        for key in ["", "host", "host/x", "deploy/1"] {
            assert_eq!(Changed::parse(key), None);
        }
    }
}
