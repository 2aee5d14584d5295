//! Everything there is, moved one step at a time by chance; then healed, until nothing happens any more.

use std::collections::BTreeSet;
use std::path::PathBuf;

use drover_kernel::at_once;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::chance::Chance;
use crate::faults::{ACCIDENTS, Accident, Faults, LEANINGS, LEANS};
use crate::host::Simulated;
use crate::people::People;
use crate::server::{Server, Template};
use crate::trace::Trace;
use crate::truth::Truth;
use crate::wire::{Connection, Way};

/// Hosts of every simulation.
pub(crate) const HOSTS: usize = 4;

/// Everything.
pub(crate) struct World {
    pub folder: PathBuf,
    pub now_ms: u64,
    pub server: Option<Server>,
    pub hosts: Vec<Simulated>,
    pub people: People,
    pub truth: Truth,
    pub trace: Trace,
    /// Whether anything kept an agent and the server from hearing of each other for long.
    pub apart: bool,
    pub faults: Faults,
    pub(crate) server_at_ms: u64,
    /// Each with its host, and until when nothing arrives over it.
    pub(crate) connections: Vec<(usize, Connection, u64)>,
    pub(crate) chance: Chance,
    pub(crate) may: Vec<(Accident, u64)>,
    pub(crate) log_full_until_ms: u64,
    /// The host whose connections do not last, and when the present one ends.
    flapping: Option<(usize, u64)>,
    /// Whether people are in a hurry.
    hurry: bool,
    /// How often something goes wrong: where it seldom does more is under way when it does.
    unrest: u64,
}

impl World {
    /// A server, hosts with agents, and applications on all of them; nothing has gone wrong yet.
    pub(crate) fn begin(seed: u64, folder: PathBuf, trace: Trace) -> anyhow::Result<Self> {
        let place = folder.join("server");
        Template::get().copy(&place)?;
        Server::watch_moves(&place)?;
        let faults = Faults::none(seed);
        let mut now_ms = 0;
        let mut server = Server::start(&place, now_ms, &faults)?;
        now_ms = server.turn(now_ms);
        let mut ids = Vec::new();
        let mut hosts = Vec::new();
        for number in 1..=HOSTS {
            let name = format!("web-{number}");
            let body = json!({"name": name, "host_type": "PHY_HOST"});
            let made = server.ask(&mut now_ms, "POST", "/hosts/", &body, &name);
            let Some((200, made)) = made else { anyhow::bail!("{name} cannot be made: {made:?}") };
            ids.push(made["id"].as_i64().unwrap_or_default());
            hosts.push(Simulated::new(&name, &folder, server.join_token(&name)?, seed, &trace));
        }
        let people = People::prepare(&mut server, &mut now_ms, &ids);
        let mut chance = Chance::of(seed, 1);
        let leaning = LEANINGS[usize::try_from(seed).unwrap_or(0) % LEANINGS.len()];
        let mut drawn = ACCIDENTS.to_vec();
        drawn.retain(|(what, _)| chance.percent(60) || leaning.contains(what));
        drawn.iter_mut().filter(|(what, _)| leaning.contains(what)).for_each(|(_, weight)| *weight *= LEANS);
        let all: Vec<Accident> = drawn.iter().map(|(what, _)| *what).collect();
        let may = drawn.into_iter().filter(|(_, weight)| *weight > 0).collect();
        let truth = Truth::default();
        let unrest = if leaning.is_empty() { *chance.one_of(&[2, 6]) } else { 2 };
        let mut world = Self {
            folder,
            now_ms,
            server: Some(server),
            hosts,
            people,
            truth,
            trace,
            apart: all.contains(&Accident::SlowDatabase) || all.contains(&Accident::LateDecision),
            faults,
            server_at_ms: 0,
            connections: Vec::new(),
            chance,
            may,
            log_full_until_ms: 0,
            flapping: all.contains(&Accident::Flapping).then_some((0, u64::MAX)),
            unrest,
            hurry: leaning.contains(&Accident::LateDecision),
        };
        for host in 0..HOSTS {
            world.hosts[host].start(world.now_ms);
        }
        world.faults.begin(&all, leaning);
        world.say(&format!("accidents: {all:?}"));
        Ok(world)
    }

    pub(crate) fn say(&self, line: &str) {
        self.trace.say(self.now_ms, line);
    }

    /// One step of chance.
    pub(crate) fn step(&mut self) {
        let accident = if self.may.is_empty() { 0 } else { self.unrest };
        match self.chance.weighed(&[80, 40, 36, 60, 16, 3, 12, accident]) {
            0 => self.deliver(),
            1 => {
                let host = self.chance.below(HOSTS);
                self.turn_of(host);
            }
            2 => self.server_turn(),
            3 => self.supervise(),
            4 => {
                let span = *self.chance.one_of(&[1, 5, 20, 50, 250, 1_000, 3_000]);
                self.now_ms += self.chance.between(1, span);
            }
            5 => {
                let wanted = self.people.want(&mut self.chance, self.hurry);
                if wanted == "answer what is lost" {
                    self.answer_lost();
                }
                self.say(&format!("somebody wants: {wanted}"));
            }
            6 => self.ask(),
            _ => self.accident(),
        }
        self.bring_back();
    }

    fn answer_lost(&mut self) {
        if let Some(server) = &mut self.server {
            self.people.answer_lost(server, &mut self.now_ms, &mut self.chance);
        }
        self.mourn();
    }

    fn ask(&mut self) {
        let Some(server) = &mut self.server else { return };
        if let Some(said) = self.people.ask(server, &mut self.now_ms) {
            self.say(&format!("asked: {said}"));
        }
        self.mourn();
    }

    /// Lets a message arrive, or an agent connect.
    fn deliver(&mut self) {
        self.connections.retain(|(_, connection, _)| !connection.is_over());
        let mut choices: Vec<(usize, Option<(Connection, Way)>)> = Vec::new();
        for (host, connection, _) in &self.connections {
            for way in [Way::ToServer, Way::ToAgent] {
                if connection.has_flight(way) {
                    choices.push((*host, Some((connection.clone(), way))));
                }
            }
        }
        for (number, host) in self.hosts.iter().enumerate() {
            if !host.machine.lock().dialing.is_empty() {
                choices.push((number, None));
            }
        }
        if choices.is_empty() {
            return;
        }
        let (host, what) = choices.swap_remove(self.chance.below(choices.len()));
        match what {
            None => self.connect(host),
            Some((connection, way)) => {
                if way == Way::ToServer && connection.is_left() {
                    self.faults.met(Accident::LateFrame);
                }
                if way == Way::ToServer && connection.says_hello() && self.faults.comes(Accident::LateHello) {
                    let until = self.now_ms + *self.chance.one_of(&[1_500, 5_000, 18_000]);
                    connection.leave();
                    self.freeze(&connection, until);
                    return self.say(&format!("the hello of {} is late", self.hosts[host].name()));
                }
                if let Some(message) = connection.deliver(way) {
                    if way == Way::ToServer {
                        self.heard(host, &message);
                    }
                    let arrow = if way == Way::ToServer { "->" } else { "<-" };
                    self.say(&format!("{} {arrow} {}", self.hosts[host].name(), describe(&message)));
                }
            }
        }
    }

    /// What matters now and then comes at the worst moment: a late hello when its agent has taken an order that it knows nothing
    /// of, and a slow database when something has ended.
    fn heard(&mut self, host: usize, message: &Message) {
        let Ok(text) = message.to_text() else { return };
        if text.contains("\"type\":\"finished\"") {
            self.faults.outcome_arrives();
        }
        if text.contains("\"type\":\"accepted\"") && self.chance.percent(50) {
            let late =
                self.connections.iter_mut().filter(|(of, one, _)| *of == host && one.is_left() && one.says_hello());
            late.for_each(|(_, _, thaws)| *thaws = 0);
        }
    }

    fn connect(&mut self, host: usize) {
        let dialing = self.hosts[host].machine.lock().dialing.remove(0);
        let Some(server) = &self.server else {
            let _ = dialing.send(Err(std::io::ErrorKind::ConnectionRefused.into()));
            return self.say(&format!("{} finds no server", self.hosts[host].name()));
        };
        if self.connections.iter().any(|(of, older, _)| *of == host && !older.is_over()) {
            self.faults.met(Accident::Overlap);
        }
        let (connection, server_end, agent_end) = Connection::open();
        server.accept(server_end);
        let _ = dialing.send(Ok(agent_end));
        self.connections.push((host, connection, 0));
        if let Some((_, ends_ms)) = self.flapping.as_mut().filter(|(of, _)| *of == host) {
            *ends_ms = self.now_ms + self.chance.between(300, 8_000);
        }
        self.say(&format!("{} is connected", self.hosts[host].name()));
    }

    /// Nothing arrives over a connection until then.
    fn freeze(&mut self, connection: &Connection, until: u64) {
        connection.freeze(true);
        let same = self.connections.iter_mut().filter(|(_, one, _)| one.is_same(connection));
        same.for_each(|(_, _, thaws)| *thaws = until);
    }

    fn turn_of(&mut self, host: usize) {
        if self.hosts[host].paused_until_ms > self.now_ms {
            return;
        }
        let (now_ms, ended) = self.hosts[host].turn(self.now_ms);
        self.now_ms = now_ms;
        if let Some(reason) = ended {
            self.say(&format!("the agent of {} ended: {reason}", self.hosts[host].name()));
        }
    }

    fn server_turn(&mut self) {
        if let Some(server) = &mut self.server {
            self.now_ms = server.turn(self.now_ms);
        }
        self.mourn();
    }

    /// Takes a server away that was halted.
    fn mourn(&mut self) {
        if self.server.is_some() && at_once::is_halted() {
            self.say("the server is dead");
            self.server = None;
            self.server_at_ms = self.now_ms + self.chance.between(1, 8_000);
        }
    }

    fn supervise(&mut self) {
        let at_work: Vec<usize> = (0..HOSTS).filter(|host| self.hosts[*host].supervisors() > 0).collect();
        if at_work.is_empty() {
            return;
        }
        let host = *self.chance.one_of(&at_work);
        let which = self.chance.below(self.hosts[host].supervisors());
        self.supervise_one(host, which);
    }

    fn supervise_one(&mut self, host: usize, which: usize) {
        if let Some(said) = self.hosts[host].supervise(which, self.now_ms, &mut self.truth) {
            self.say(&format!("{} {said}", self.hosts[host].name()));
        }
    }

    /// What died or froze comes back by itself after a while.
    fn bring_back(&mut self) {
        let now_ms = self.now_ms;
        for host in 0..HOSTS {
            if !self.hosts[host].is_up() && self.hosts[host].paused_until_ms <= now_ms {
                self.hosts[host].start(now_ms);
                self.say(&format!("the agent of {} starts", self.hosts[host].name()));
            }
        }
        self.faults.fill(self.log_full_until_ms > now_ms);
        if let Some((host, ends_ms)) = self.flapping.as_mut().filter(|(_, ends_ms)| *ends_ms <= now_ms) {
            *ends_ms = u64::MAX;
            self.faults.met(Accident::Flapping);
            self.connections.iter().filter(|(of, ..)| of == host).for_each(|(_, connection, _)| connection.cut());
            self.trace.say(now_ms, &format!("a connection of {} does not last", self.hosts[*host].name()));
        }
        for (host, connection, until) in &self.connections {
            if connection.is_frozen() && *until <= now_ms {
                connection.freeze(false);
                self.trace.say(now_ms, &format!("a connection of {} thaws", self.hosts[*host].name()));
            }
        }
        if self.server.is_none() && self.server_at_ms <= now_ms {
            match Server::start(&self.folder.join("server"), now_ms, &self.faults) {
                Ok(server) => {
                    self.server = Some(server);
                    self.say("the server starts");
                }
                Err(error) => panic!("the server does not start: {error:#}"),
            }
        }
    }

    /// Nothing goes wrong any more, and everybody has their turns, until nothing happens. True when that came about.
    pub(crate) fn heal(&mut self, rounds: u64) -> bool {
        self.say("everything is well from now on");
        self.faults.end();
        self.log_full_until_ms = 0;
        self.flapping = None;
        for host in &mut self.hosts {
            host.paused_until_ms = self.now_ms;
            host.full_until_ms = 0;
        }
        self.connections.iter_mut().for_each(|(_, _, until)| *until = 0);
        self.server_at_ms = self.now_ms;
        let mut quiet = 0;
        for round in 0..rounds {
            self.bring_back();
            if round % 40 == 10 {
                self.release_what_waits();
            }
            self.ask();
            self.server_turn();
            for host in 0..HOSTS {
                for which in (0..self.hosts[host].supervisors()).rev() {
                    self.supervise_one(host, which);
                }
                self.turn_of(host);
            }
            for _ in 0..60 {
                self.deliver();
            }
            // Nobody waits for anything but time.
            let in_flight = self.connections.iter().any(|(_, connection, _)| connection.has_any_flight());
            self.now_ms += if in_flight { 40 } else { 150 };
            quiet = if self.is_quiet() { quiet + 1 } else { 0 };
            if quiet > 20 {
                return true;
            }
        }
        false
    }

    fn release_what_waits(&mut self) {
        for (task, held, waits) in self.open() {
            if held {
                self.people.act(task, "resume", json!({}));
            } else if waits {
                self.people.act(task, "promote", json!({}));
            }
        }
        self.answer_lost();
    }

    /// Tasks that are not over: whether each is held, and whether it may wait for a promotion.
    fn open(&self) -> Vec<(i64, bool, bool)> {
        let Some(server) = &self.server else { return Vec::new() };
        let sql = drover_kernel::sql!(
            "SELECT id, CASE WHEN held_by IS NULL THEN 0 ELSE 1 END AS held, \
             CASE WHEN CAST(rollout AS TEXT) LIKE '%\"canary\":1%' AND NOT promoted THEN 1 ELSE 0 END AS waits \
             FROM tasks WHERE outcome IS NULL ORDER BY id"
        );
        drover_kernel::row! { struct Open { id: i64, held: i64, waits: i64 } }
        let open = server.run(async {
            let mut read = server.kernel().work().read().await.ok()?;
            read.all::<Open>(sql, vec![]).await.ok()
        });
        open.unwrap_or_default().into_iter().map(|one| (one.id, one.held != 0, one.waits != 0)).collect()
    }

    fn is_quiet(&self) -> bool {
        self.people.is_quiet()
            && self.server.is_some()
            && self.hosts.iter().all(|host| host.supervisors() == 0 && host.spooled() == 0)
            && self.open().is_empty()
    }

    /// What is not over, for people.
    pub(crate) fn unfinished(&self) -> String {
        let spooled: Vec<usize> = self.hosts.iter().map(Simulated::spooled).collect();
        let supervisors: Vec<usize> = self.hosts.iter().map(Simulated::supervisors).collect();
        let tasks: BTreeSet<i64> = self.open().into_iter().map(|(id, ..)| id).collect();
        format!(
            "tasks {tasks:?}, spool folders {spooled:?}, supervisors {supervisors:?}, people quiet {}",
            self.people.is_quiet()
        )
    }
}

/// What a message is, without what differs from run to run.
fn describe(message: &Message) -> String {
    let Message::Text(text) = message else { return format!("{} bytes", message.len()) };
    let told: Value = serde_json::from_str(text).unwrap_or_default();
    let of = told["execution_id"].as_str().unwrap_or_default();
    let mut said = format!("{} {of}", told["type"].as_str().unwrap_or("?"));
    if let Some(statement) = told["order"]["statement"].as_str() {
        let statement: Value = serde_json::from_str(statement).unwrap_or_default();
        said.push_str(statement["execution_id"].as_str().unwrap_or_default());
    }
    for member in ["state", "offset", "epoch"] {
        if !told[member].is_null() {
            said.push_str(&format!(" {member} {}", told[member]));
        }
    }
    for holding in told["holdings"].as_array().into_iter().flatten() {
        said.push_str(&format!(" [{} {}]", holding["execution_id"].as_str().unwrap_or_default(), holding["finished"]));
    }
    said
}
