//! Random walks through rollouts: the real engine, agents that fail at random, and persons who interfere at random.
//!
//! What the hosts of a walk did is kept apart from what the server says. Which way a walk goes follows from its seed, which
//! is printed when it fails; how fast the engine follows does not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use drover_automation::engine::sweep_once;
use drover_kernel::db::Json;
use drover_kernel::{args, row, sql};
use drover_shared::message::{Finished, Holding, StepOutcome, ToAgent, ToServer};
use drover_shared::order::{Entry, Statement};
use drover_shared::words::{Action, ExecutionState as State, StepState};
use drover_tests::stub_agent::{StubAgent, finished, listen};
use drover_tests::torture::Chance;
use drover_tests::{TestServer, both_engines};
use serde_json::{Value, json};

use super::{references, upgrades};
use crate::deploys::Shop;

const HOSTS: usize = 4;
/// Sub-tasks of a walk, and what happens to each before everybody does what is due.
const ROUNDS: u64 = 5;
const HAPPENINGS: u64 = 30;
/// Rounds of the sweep until everything has come to its end.
const PATIENCE: usize = 200;
/// Why a host turns an order down.
const SUNDAY: &str = "it is Sunday";

row! {
    struct Execution {
        id: String,
        task_id: i64,
        instance_id: i64,
        host_name: String,
        batch: i64,
        state: State,
        excluded: bool,
        sent: bool,
        steps: Option<Json<Value>>,
    }
}

row! {
    struct Task {
        id: i64,
        rollout: Option<Json<Value>>,
        stop_reason: Option<String>,
        origin: Option<String>,
        origin_task_id: Option<i64>,
        is_over: bool,
        has_failed: bool,
    }
}

/// What a host did with an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Heard,
    Works,
    TurnedDown,
    /// So many steps went well.
    Ended {
        well: bool,
        steps: usize,
    },
}

/// An order that a host was given.
struct Known {
    statement: Statement,
    entry: Entry,
    deed: Deed,
    /// How it ended, until the server has taken that in.
    told: Option<Finished>,
}

struct Host {
    agent: StubAgent,
    orders: BTreeMap<String, Known>,
    /// What it serves; nobody knows after a failure.
    serves: Option<String>,
}

impl Host {
    /// Takes note of what the server has said. What it wants ended ends. A session that is over begins anew.
    async fn listen(&mut self) {
        let Some(heard) = self.agent.try_heard().await else { return self.come_back().await };
        for message in heard {
            match message {
                ToAgent::Run { order, .. } => {
                    let statement: Statement = serde_json::from_str(&order.statement).expect("a statement");
                    let entry = serde_json::from_str(&order.entry).expect("an entry");
                    let (execution_id, attempt) = (statement.execution_id.clone(), statement.attempt);
                    let known = self.orders.entry(execution_id.clone());
                    let known = known.or_insert(Known { statement, entry, deed: Deed::Heard, told: None });
                    if known.deed == Deed::TurnedDown {
                        // For the same reason as before.
                        let reason = SUNDAY.to_owned();
                        self.agent.try_say(&ToServer::Rejected { execution_id, attempt, reason, no_room: false }).await;
                    }
                }
                ToAgent::Cancel { execution_id, .. } => self.end(&execution_id, State::Cancelled, 0).await,
                ToAgent::Archived { execution_id, .. } => {
                    if let Some(known) = self.orders.get_mut(&execution_id) {
                        known.told = None;
                    }
                }
                _ => {}
            }
        }
    }

    /// A new session, with what it has begun. What it never began it has forgotten.
    async fn come_back(&mut self) {
        self.orders.retain(|_, one| one.deed != Deed::Heard);
        let held = |one: &&Known| one.deed == Deed::Works || one.told.is_some();
        let holding = |one: &Known| Holding {
            execution_id: one.statement.execution_id.clone(),
            attempt: one.statement.attempt,
            channel: 1,
            log_length: 0,
            finished: one.told.is_some(),
            needs_order: false,
        };
        self.agent.come_back(self.orders.values().filter(held).map(holding).collect()).await;
        for told in self.orders.values().filter_map(|one| one.told.clone()) {
            self.agent.try_say(&ToServer::Finished(Box::new(told))).await;
        }
    }

    /// Something that it has begun or may begin.
    fn open(&self, chance: &mut Chance) -> Option<String> {
        let is_open = |deed: Deed| matches!(deed, Deed::Heard | Deed::Works);
        let open: Vec<&String> = self.orders.iter().filter(|(_, one)| is_open(one.deed)).map(|(id, _)| id).collect();
        (!open.is_empty()).then(|| (*chance.one_of(&open)).clone())
    }

    async fn act(&mut self, chance: &mut Chance, failing: u64) {
        let Some(id) = self.open(chance) else { return };
        let Known { statement, entry, deed, .. } = self.orders.get_mut(&id).expect("it is open");
        if *deed == Deed::Works {
            let state = if chance.percent(failing) {
                *chance.one_of(&[State::Failed, State::TimedOut])
            } else {
                State::Succeeded
            };
            let steps = chance.below(entry.steps.len() as u64);
            return self.end(&id, state, usize::try_from(steps).expect("few")).await;
        }
        let (execution_id, attempt) = (id, statement.attempt);
        if chance.percent(failing / 4) {
            *deed = Deed::TurnedDown;
            let reason = SUNDAY.to_owned();
            self.agent.try_say(&ToServer::Rejected { execution_id, attempt, reason, no_room: false }).await;
        } else {
            *deed = Deed::Works;
            self.agent.try_say(&ToServer::Accepted { execution_id, attempt, channel: 1 }).await;
        }
    }

    /// Ends what it is at after so many steps, or after all when it went well.
    async fn end(&mut self, id: &str, state: State, steps: usize) {
        let Some(Known { statement, entry, deed, told }) = self.orders.get_mut(id) else { return };
        if matches!(deed, Deed::Ended { .. } | Deed::TurnedDown) {
            return;
        }
        let well = state == State::Succeeded;
        let steps = if well { entry.steps.len() } else { steps };
        *deed = Deed::Ended { well, steps };
        self.serves = well.then(|| entry.version.clone());
        let step = |(at, step): (usize, &drover_shared::order::Step)| StepOutcome {
            name: step.name().to_owned(),
            state: match at.cmp(&steps) {
                std::cmp::Ordering::Less => StepState::Succeeded,
                std::cmp::Ordering::Equal => StepState::Failed,
                std::cmp::Ordering::Greater => StepState::Skipped,
            },
            exit_code: None,
            signal: None,
            error: None,
            started_ms: None,
            duration_ms: None,
            log_start: 0,
            log_end: 0,
        };
        let steps = entry.steps.iter().enumerate().map(step).collect();
        let finished = Finished { steps, ..finished(statement, state) };
        *told = Some(finished.clone());
        self.agent.try_say(&ToServer::Finished(Box::new(finished))).await;
    }
}

struct Walk<'a> {
    server: &'a TestServer,
    shop: Shop,
    deploy_task: i64,
    hosts: Vec<Host>,
    chance: Chance,
    /// Executions that were sent when a task had more failures than allowed.
    frozen: BTreeMap<i64, BTreeSet<String>>,
    /// Executions of which nobody knew how they ended, at some time.
    lost: BTreeSet<String>,
}

impl Walk<'_> {
    async fn tasks(&self) -> Vec<Task> {
        let sql = sql!(
            "SELECT id, rollout, stop_reason, origin, origin_task_id, outcome IS NOT NULL AS is_over, \
             COALESCE(outcome = 'failed', FALSE) AS has_failed FROM tasks ORDER BY id"
        );
        self.server.read().await.all(sql, args![]).await.expect("the tasks")
    }

    async fn executions(&self) -> Vec<Execution> {
        let sql = sql!(
            "SELECT id, task_id, instance_id, host_name, batch, state, excluded, dispatched_at IS NOT NULL AS sent, steps \
             FROM executions ORDER BY task_id, ordinal"
        );
        self.server.read().await.all(sql, args![]).await.expect("the executions")
    }

    /// The engine and all hosts come up with what happened; what was promised has to hold at any time.
    async fn settle(&mut self) {
        sweep_once(self.server.kernel(), true).await.expect("a round");
        // Before a host that is there hears that it was given up, and says how it ended.
        self.note_lost().await;
        for host in &mut self.hosts {
            host.listen().await;
        }
        let executions = self.note_lost().await;
        for task in self.tasks().await {
            let Some(Json(rollout)) = &task.rollout else { continue };
            let of_task: Vec<&Execution> = executions.iter().filter(|one| one.task_id == task.id).collect();
            let sent: BTreeSet<String> = of_task.iter().filter(|one| one.sent).map(|one| one.id.clone()).collect();
            if let Some(frozen) = self.frozen.get(&task.id) {
                assert_eq!(&sent, frozen, "something of task {} starts after the allowed failures", task.id);
            }
            let failed = |one: &&&Execution| !one.excluded && one.state.is_over() && one.state != State::Succeeded;
            let allowed = rollout["max_failures"].as_u64().unwrap_or(u64::MAX);
            let canary = rollout["canary"].is_u64() && of_task.iter().filter(failed).any(|one| one.batch == 0);
            if canary || of_task.iter().filter(failed).count() as u64 > allowed {
                self.frozen.insert(task.id, sent);
            }
        }
    }

    async fn note_lost(&mut self) -> Vec<Execution> {
        let executions = self.executions().await;
        self.lost.extend(executions.iter().filter(|one| one.state == State::Lost).map(|one| one.id.clone()));
        executions
    }

    async fn person(&mut self, task: i64) {
        let actions = ["pause", "pause", "resume", "resume", "promote", "skip", "refuse", "cancel", "cancel one"];
        let action = *self.chance.one_of(&actions);
        // What ends everything is rare.
        if matches!(action, "refuse" | "cancel") && !self.chance.percent(30) {
            return;
        }
        let body = match action {
            "skip" => json!({"instances": references(&[*self.chance.one_of(&self.shop.instances)])}),
            _ => json!({}),
        };
        let path = if action == "cancel one" {
            let all = self.executions().await;
            let of_task: Vec<&Execution> = all.iter().filter(|one| one.task_id == task).collect();
            let id = &self.chance.one_of(&of_task).id;
            format!("{}{task}/executions/{id}/actions/cancel/", upgrades(self.deploy_task))
        } else {
            format!("{}{task}/actions/{action}/", upgrades(self.deploy_task))
        };
        let answer = self.shop.admin.post(&path, body).await;
        assert!(matches!(answer.status, 200 | 400 | 409), "{action}: {}", answer.body);
    }

    async fn happens(&mut self, task: i64) {
        match self.chance.below(100) {
            0..70 => {
                let host = usize::try_from(self.chance.below(HOSTS as u64)).expect("few");
                self.hosts[host].act(&mut self.chance, 30).await;
            }
            70..82 => self.person(task).await,
            82..95 => self.server.advance(Duration::from_secs(self.chance.below(30))),
            // Longer than anything may take: nobody knows what became of what runs.
            95..97 => self.server.advance(Duration::from_secs(900)),
            _ => {}
        }
        self.settle().await;
    }

    /// Everybody does what is due, until nothing is left to do.
    async fn come_to_an_end(&mut self, task: i64) {
        for _ in 0..PATIENCE {
            let at_work = |host: &Host| {
                host.orders.values().any(|one| matches!(one.deed, Deed::Heard | Deed::Works) || one.told.is_some())
            };
            if self.tasks().await.iter().all(|task| task.is_over) && !self.hosts.iter().any(at_work) {
                self.check().await;
                return self.answer().await;
            }
            for action in ["resume", "promote"] {
                let path = format!("{}{task}/actions/{action}/", upgrades(self.deploy_task));
                self.shop.admin.post(&path, json!({})).await;
            }
            for host in &mut self.hosts {
                host.act(&mut self.chance, 10).await;
            }
            self.server.advance(Duration::from_secs(1));
            self.settle().await;
        }
        panic!("it does not come to an end: {:#?}", self.executions().await);
    }

    /// A person says of what nobody knows that it is as it is.
    async fn answer(&self) {
        for one in self.executions().await.iter().filter(|one| one.state == State::Lost) {
            let path = format!("{}{}/actions/answer/", upgrades(self.deploy_task), one.task_id);
            let body = json!({"instances": references(&[one.instance_id]), "answer": "give_up", "reason": "I looked"});
            let answer = self.shop.admin.post(&path, body).await;
            assert!(matches!(answer.status, 200 | 404 | 409), "{}", answer.body);
        }
    }

    /// All that started ended as is told, and what a stopped rollout changed went back.
    async fn check(&self) {
        let (tasks, executions) = (self.tasks().await, self.executions().await);
        let orders: BTreeMap<&String, Deed> =
            self.hosts.iter().flat_map(|host| host.orders.iter().map(|(id, one)| (id, one.deed))).collect();
        for one in &executions {
            let deed = orders.get(&one.id).copied();
            let is_true = match (one.state, deed) {
                (State::Succeeded, Some(Deed::Ended { well, .. })) => well,
                (State::Failed | State::TimedOut | State::Cancelled, Some(Deed::Ended { well, .. })) => !well,
                (State::Failed | State::Lost, Some(Deed::TurnedDown)) => true,
                // One that was sent never arrived, or was forgotten before it began.
                (State::Cancelled, None) => true,
                (State::TimedOut, None) => !one.sent,
                _ => false,
            };
            assert!(is_true, "{} of task {} is told as {}, and is {deed:?}", one.host_name, one.task_id, one.state);
        }
        for task in &tasks {
            let asked = task.rollout.as_ref().is_some_and(|rollout| rollout.0["auto_revert"] == true);
            let back = tasks
                .iter()
                .find(|other| other.origin.as_deref() == Some("auto_revert") && other.origin_task_id == Some(task.id));
            let due = asked && task.stop_reason.is_some() && task.has_failed;
            assert!(due || back.is_none(), "nobody asked for a way back from task {}", task.id);
            for one in executions.iter().filter(|one| due && one.task_id == task.id) {
                let goes_back = back.is_some_and(|back| {
                    executions.iter().any(|other| other.task_id == back.id && other.instance_id == one.instance_id)
                });
                let touched = matches!(orders.get(&one.id), Some(Deed::Ended { .. }));
                let known = !self.lost.contains(&one.id);
                assert!(!known || goes_back == touched, "{}: touched {touched}, goes back {goes_back}", one.host_name);
            }
        }
        for host in self.hosts.iter().zip(&self.shop.instances) {
            let (host, instance) = host;
            let Some(last) = executions.iter().rfind(|one| one.instance_id == *instance && one.sent) else { continue };
            if last.state == State::Succeeded {
                let path = format!("/applications/{}/instances/{instance}/", self.shop.application);
                let told = self.shop.admin.get(&path).await.expect(200);
                assert_eq!((told["version"].as_str(), &told["status"]), (host.serves.as_deref(), &json!("running")));
            }
        }
    }

    fn rollout(&mut self) -> Value {
        let mut rollout = json!({"batch": 1 + self.chance.below(3), "growth": 100 + self.chance.below(200)});
        rollout["max_failures"] = if self.chance.percent(20) { Value::Null } else { self.chance.below(3).into() };
        if self.chance.percent(30) {
            rollout["canary"] = 1.into();
        }
        if self.chance.percent(30) {
            rollout["pause"] = self.chance.below(20).into();
        }
        rollout
    }

    /// A sub-task on all instances. Half of them would go back, each to what it served before.
    async fn begin(&mut self, number: u64) -> i64 {
        let mut rollout = self.rollout();
        let body = json!({"instances": references(&self.shop.instances), "version": format!("{number}.0"), "rollout": rollout});
        let receipt = self.shop.admin.post(&upgrades(self.deploy_task), body).await.expect(200);
        let task: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
        if self.chance.percent(50) {
            rollout["auto_revert"] = true.into();
            self.server.run(sql!("UPDATE tasks SET rollout = $2 WHERE id = $1"), args![task, rollout]).await;
            let entries = sql!("SELECT entry FROM executions WHERE task_id = $1 ORDER BY ordinal LIMIT 1");
            let entry: String = self.server.read().await.value(entries, args![task]).await.expect("an entry");
            for (instance, host) in self.shop.instances.iter().zip(1..) {
                let mut entry: Entry = serde_json::from_str(&entry).expect("an entry");
                (entry.action, entry.version) = (Action::Revert, format!("{number}.0-before"));
                (entry.host, entry.instance_id) = (format!("web-{host}"), Some(*instance));
                let entry = serde_json::to_string(&entry).expect("an entry");
                let sql = sql!("UPDATE executions SET revert_entry = $3 WHERE task_id = $1 AND instance_id = $2");
                self.server.run(sql, args![task, *instance, entry]).await;
            }
        }
        task
    }

    /// Tries again what failed, if anything did: no step that was done is done once more.
    async fn retry(&mut self, task: i64) -> Option<i64> {
        let path = format!("{}{task}/actions/retry/", upgrades(self.deploy_task));
        let before = self.executions().await;
        let answer = self.shop.admin.post(&path, json!({"reason": "once more"})).await;
        if answer.status == 409 {
            return None;
        }
        let again: i64 = answer.expect(200)["task_id"].as_str().expect("text").parse().expect("digits");
        for (draft, entry) in self
            .executions()
            .await
            .iter()
            .filter(|one| one.task_id == again)
            .zip(super::entries(self.server, again).await)
        {
            let last = before.iter().rfind(|one| one.instance_id == draft.instance_id && one.sent);
            let Some(last) = last.filter(|last| last.task_id == task) else { continue };
            let steps = last.steps.as_ref().and_then(|steps| steps.0.as_array().cloned()).unwrap_or_default();
            let done = steps.iter().filter(|step| step["state"] == "succeeded").map(|step| &step["name"]);
            let done: Vec<&Value> = done.collect();
            let planned: Vec<&Value> =
                entry["steps"].as_array().expect("steps").iter().map(|step| &step["name"]).collect();
            assert!(!planned.iter().any(|name| done.contains(name)), "{planned:?} after {done:?}");
        }
        Some(again)
    }
}

async fn walk(server: &TestServer, seed: u64) {
    let shop = Shop::new(server, HOSTS).await;
    shop.hook("pre_exec", "stop").await;
    shop.hook("post_exec", "start").await;
    let deploy_task = shop.started().await;
    let address = listen(server).await;
    let mut hosts = Vec::new();
    for number in 1..=HOSTS {
        let agent = StubAgent::enrol(server, address, &format!("web-{number}"), &[]).await;
        hosts.push(Host { agent, orders: BTreeMap::new(), serves: None });
    }
    let (chance, frozen, lost) = (Chance::new(seed), BTreeMap::new(), BTreeSet::new());
    let mut walk = Walk { server, shop, deploy_task, hosts, chance, frozen, lost };
    for number in 1..=ROUNDS {
        let mut task = walk.begin(number).await;
        for _ in 0..HAPPENINGS {
            walk.happens(task).await;
        }
        walk.come_to_an_end(task).await;
        for _ in 0..3 {
            let Some(again) = walk.retry(task).await else { break };
            for _ in 0..HAPPENINGS / 4 {
                walk.happens(again).await;
            }
            walk.come_to_an_end(again).await;
            task = again;
        }
    }
}

/// Says which walk it was when it fails.
struct Told(u64);

impl Drop for Told {
    #[expect(clippy::print_stderr, reason = "a walk that fails can be walked again")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the walk from seed {}; DROVER_WALK_SEED walks it again", self.0);
        }
    }
}

both_engines! {
    async fn rollouts_keep_their_promise_under_random_failures_and_orders(server: TestServer) {
        let given = std::env::var("DROVER_WALK_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| drover_kernel::Clock::system().now().millis().unsigned_abs());
        let _told = Told(seed);
        Box::pin(walk(&server, seed)).await;
    }
}
