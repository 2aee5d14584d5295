//! The blows: who is killed, cut or frozen, and how it comes back.

use std::collections::BTreeMap;
use std::time::Duration;

use xtask::postgres::Postgres;

use super::load::Fleet;
use super::{Chance, Plan};
use crate::processes::{Processes, Signal};
use crate::wire::Wire;

/// What may happen, each as often as it stands here.
const KINDS: [Kind; 19] = [
    Kind::KillServer,
    Kind::KillServer,
    Kind::KillServer,
    Kind::StopServer,
    Kind::KillAgent,
    Kind::KillAgent,
    Kind::KillAgent,
    Kind::KillEverything,
    Kind::KillSupervisor,
    Kind::KillSupervisor,
    Kind::KillAgentAndSupervisor,
    Kind::Cut,
    Kind::Cut,
    Kind::Cut,
    Kind::Freeze,
    Kind::PauseAgent,
    Kind::KillDatabase,
    Kind::KillDatabase,
    Kind::KillDatabase,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    KillServer,
    StopServer,
    KillAgent,
    KillEverything,
    KillSupervisor,
    KillAgentAndSupervisor,
    Cut,
    Freeze,
    PauseAgent,
    KillDatabase,
}

/// How often each kind of blow fell.
#[derive(Debug, Clone, Default)]
pub struct Struck {
    kinds: BTreeMap<Kind, u32>,
    supervisors: u32,
}

impl Struck {
    /// Supervisors that were killed: how as many executions ended nobody can know.
    #[must_use]
    pub fn supervisors(&self) -> u32 {
        self.supervisors
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.kinds.values().sum()
    }
}

impl std::fmt::Display for Struck {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<String> = self.kinds.iter().map(|(kind, count)| format!("{kind:?} {count}")).collect();
        write!(formatter, "{} ({})", self.total(), parts.join(", "))
    }
}

/// Everything that can be struck.
pub(super) struct Blows {
    processes: Processes,
    postgres: Option<Postgres>,
    hosts: Vec<String>,
    wires: BTreeMap<String, Wire>,
    chance: Chance,
    struck: Struck,
}

impl Blows {
    /// Starts the agents, each at the end of a wire of its own, and makes what is to be deployed.
    pub(super) async fn prepare(
        mut processes: Processes,
        postgres: Option<Postgres>,
        chance: Chance,
        plan: &Plan,
    ) -> (Self, Fleet) {
        let (mut hosts, mut ids, mut wires) = (Vec::new(), Vec::new(), BTreeMap::new());
        for number in 1..=plan.hosts {
            let host = format!("web-{number}");
            ids.push(processes.add_agent(&host).await);
            let wire = Wire::to(processes.agent_address()).await;
            processes.stop_agent(&host).await;
            processes.redirect_agent(&host, &wire);
            processes.start_agent(&host).await;
            wires.insert(host.clone(), wire);
            hosts.push(host);
        }
        let fleet = Fleet::prepare(&processes, &ids, plan.applications).await;
        (Self { processes, postgres, hosts, wires, chance, struck: Struck::default() }, fleet)
    }

    pub(super) fn struck(&self) -> Struck {
        self.struck.clone()
    }

    /// One blow, and the way back from it.
    pub(super) async fn strike(&mut self) {
        let pause = self.chance.milliseconds(100, 2_000);
        tokio::time::sleep(pause).await;
        let kind = *self.chance.one_of(&KINDS);
        let host = self.chance.one_of(&self.hosts).clone();
        let away = self.chance.milliseconds(0, 1_500);
        if self.carry_out(kind, &host, away).await {
            *self.struck.kinds.entry(kind).or_default() += 1;
        }
    }

    /// Whether there was anything to strike.
    async fn carry_out(&mut self, kind: Kind, host: &str, away: Duration) -> bool {
        match kind {
            Kind::KillServer => {
                self.processes.kill_server().await;
                tokio::time::sleep(away).await;
                self.processes.start_server().await;
            }
            Kind::StopServer => {
                self.processes.stop_server().await;
                self.processes.start_server().await;
            }
            Kind::KillAgent => {
                self.processes.kill_agent(host).await;
                tokio::time::sleep(away).await;
                self.processes.spawn_agent(host, &[]);
            }
            Kind::KillEverything => {
                self.processes.kill_server().await;
                for host in self.hosts.clone() {
                    self.processes.kill_agent(&host).await;
                }
                tokio::time::sleep(away).await;
                for host in self.hosts.clone() {
                    self.processes.spawn_agent(&host, &[]);
                }
                self.processes.start_server().await;
            }
            Kind::KillSupervisor => return self.kill_a_supervisor(host),
            Kind::KillAgentAndSupervisor => {
                self.processes.kill_agent(host).await;
                self.kill_a_supervisor(host);
                tokio::time::sleep(away).await;
                self.processes.spawn_agent(host, &[]);
            }
            Kind::Cut => self.wires[host].cut(),
            Kind::Freeze => {
                self.wires[host].freeze();
                tokio::time::sleep(away * 4).await;
                self.wires[host].thaw();
            }
            Kind::PauseAgent => {
                self.processes.signal_agent(host, Signal::SIGSTOP);
                tokio::time::sleep(away * 2).await;
                self.processes.signal_agent(host, Signal::SIGCONT);
            }
            Kind::KillDatabase => {
                let Some(mut postgres) = self.postgres.take() else { return false };
                postgres.kill().expect("PostgreSQL is killed");
                tokio::time::sleep(away).await;
                let starting = tokio::task::spawn_blocking(move || {
                    postgres.start_again().expect("PostgreSQL comes back");
                    postgres
                });
                self.postgres = Some(starting.await.expect("it comes back"));
            }
        }
        true
    }

    fn kill_a_supervisor(&mut self, host: &str) -> bool {
        let killed = self.processes.kill_a_supervisor(host, self.chance.next());
        self.struck.supervisors += u32::from(killed);
        killed
    }

    /// Everything runs and everybody is connected.
    pub(super) async fn heal(&mut self) {
        for host in &self.hosts {
            self.processes.wait_for_connection_within(host, true, super::SETTLING).await;
        }
    }
}
