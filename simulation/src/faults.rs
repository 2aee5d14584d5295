//! What goes wrong by itself or at its moment: the database, the disk of the server, wake-ups; and what was met of all
//! that goes wrong, so that an accident that never happens is seen.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use drover_kernel::at_once::{Disk, Write};
use drover_kernel::db::direct::{Fate, Fates, Moment};

use crate::chance::Chance;

/// What can go wrong. Each run leaves some of it out, so that the rest meets more often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Accident {
    /// The server is killed where it stands.
    KillServer,
    /// The server is killed at a commit: before or after it.
    KillAtCommit,
    /// The server is killed while it writes a log.
    TornLog,
    /// The disk that holds the logs is full for a while.
    FullLog,
    /// Logs are written late.
    SlowLog,
    /// The database refuses.
    Refusal,
    /// The database commits without an answer.
    Silence,
    /// The database answers late.
    SlowDatabase,
    /// The database answers late right after an outcome was taken in: what follows from it is decided late.
    LateDecision,
    /// A wake-up gets lost.
    LostWakeUp,
    /// A wake-up comes twice.
    DoubledWakeUp,
    /// An agent is killed.
    KillAgent,
    /// An agent stands still for a while.
    Pause,
    /// The disk of an agent is full for a while.
    FullHost,
    /// A supervisor is killed.
    KillSupervisor,
    /// A host loses its power and comes back.
    Reboot,
    /// It loses what it had not made durable of a log.
    TornTail,
    /// It loses the mark that an execution has begun, or the name of an outcome.
    LostName,
    /// A connection is cut, with what is in flight.
    Cut,
    /// The agent's end of a connection breaks; the server hears of it later, behind what is in flight.
    HalfOpen,
    /// Nothing arrives over a connection for a while, and neither end hears of it.
    Freeze,
    /// An agent says who it is and what it holds, and dials again before that arrives.
    LateHello,
    /// One host's connections do not last.
    Flapping,
    /// Something arrives at the server that an agent sent over a connection that it has left.
    LateFrame,
    /// An agent connects while the server holds an older connection of it.
    Overlap,
    /// Nobody has a turn for a long time.
    Long,
}

/// All of them, with the weight of those that chance brings about; the others come by themselves.
pub(crate) const ACCIDENTS: [(Accident, u64); 26] = [
    (Accident::KillServer, 6),
    (Accident::KillAtCommit, 8),
    (Accident::TornLog, 4),
    (Accident::FullLog, 8),
    (Accident::SlowLog, 0),
    (Accident::Refusal, 8),
    (Accident::Silence, 4),
    (Accident::SlowDatabase, 0),
    (Accident::LateDecision, 0),
    (Accident::LostWakeUp, 0),
    (Accident::DoubledWakeUp, 0),
    (Accident::KillAgent, 10),
    (Accident::Pause, 6),
    (Accident::FullHost, 6),
    (Accident::KillSupervisor, 5),
    (Accident::Reboot, 4),
    (Accident::TornTail, 0),
    (Accident::LostName, 0),
    (Accident::Cut, 10),
    (Accident::HalfOpen, 10),
    (Accident::Freeze, 8),
    (Accident::LateHello, 0),
    (Accident::Flapping, 0),
    (Accident::LateFrame, 0),
    (Accident::Overlap, 0),
    (Accident::Long, 3),
];

/// What runs lean to, one after the other: that is never left out and comes more often, because some things go wrong only
/// when several meet.
pub(crate) const LEANINGS: [&[Accident]; 4] = [
    &[],
    // What an agent said over a connection that it has left.
    &[Accident::HalfOpen, Accident::LateHello],
    // Output that is sent again before it is there.
    &[Accident::SlowLog, Accident::HalfOpen, Accident::Flapping],
    // Agents that come one after the other to a server that is slow to decide.
    &[Accident::KillAgent, Accident::LateDecision],
];
/// So many times as often comes what a run leans to.
pub(crate) const LEANS: u64 = 4;

impl Accident {
    /// Every one of them.
    pub fn all() -> impl Iterator<Item = Self> {
        ACCIDENTS.iter().map(|(accident, _)| *accident)
    }
}

/// How often something was met.
pub type Met = BTreeMap<Accident, u64>;

/// What the database is about to do wrong.
#[derive(Debug)]
struct Armed {
    moment: Moment,
    after: u64,
    fate: Fate,
}

#[derive(Debug)]
struct Inner {
    chance: Chance,
    /// What comes by itself, and how often in a thousand.
    rates: BTreeMap<Accident, u64>,
    armed: Option<Armed>,
    /// How much is asked of the database late from the next commit on, and from now on.
    late: (u32, u32),
    /// The next piece of a log is torn.
    torn: bool,
    full: bool,
    met: Met,
}

/// What the server's database and disk do; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Faults(Arc<Mutex<Inner>>);

impl Faults {
    /// All is well.
    pub(crate) fn none(seed: u64) -> Self {
        let (rates, met) = (BTreeMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(Inner {
            chance: Chance::of(seed, 2),
            rates,
            armed: None,
            late: (0, 0),
            torn: false,
            full: false,
            met,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on what comes by itself comes as often as this run has it, if it is among these: often what it leans to.
    pub(crate) fn begin(&self, may: &[Accident], leaning: &[Accident]) {
        let mut inner = self.lock();
        for (accident, often) in [
            (Accident::SlowLog, [50, 200, 600]),
            (Accident::SlowDatabase, [20, 80, 200]),
            (Accident::LateDecision, [50, 200, 600]),
            (Accident::LostWakeUp, [50, 200, 1_000]),
            (Accident::DoubledWakeUp, [20, 100, 400]),
            (Accident::LateHello, [50, 200, 500]),
        ] {
            let often = if leaning.contains(&accident) { often[2] } else { *inner.chance.one_of(&often) };
            if may.contains(&accident) {
                inner.rates.insert(accident, often);
            }
        }
    }

    /// All is well again.
    pub(crate) fn end(&self) {
        let mut inner = self.lock();
        inner.rates.clear();
        (inner.armed, inner.late, inner.torn, inner.full) = (None, (0, 0), false, false);
    }

    /// Something went wrong.
    pub(crate) fn met(&self, accident: Accident) {
        *self.lock().met.entry(accident).or_default() += 1;
    }

    /// Whether something that comes by itself comes now.
    pub(crate) fn comes(&self, accident: Accident) -> bool {
        self.lock().comes(accident)
    }

    /// Everything that went wrong.
    pub(crate) fn all(&self) -> Met {
        self.lock().met.clone()
    }

    /// Has the database do this at a moment that comes soon. Gives how many such moments it lets pass.
    pub(crate) fn arm(&self, moment: Moment, fate: Fate) -> u64 {
        let mut inner = self.lock();
        let after = inner.chance.between(0, 6);
        inner.armed = Some(Armed { moment, after, fate });
        after
    }

    /// An outcome arrives: what follows from it may be decided late.
    pub(crate) fn outcome_arrives(&self) {
        let mut inner = self.lock();
        if inner.comes(Accident::LateDecision) {
            inner.late = (3, 0);
        }
    }

    /// Has the server end in the middle of the next piece of a log.
    pub(crate) fn tear(&self) {
        self.lock().torn = true;
    }

    /// Whether the disk that holds the logs is full from now on.
    pub(crate) fn fill(&self, full: bool) {
        self.lock().full = full;
    }

    /// What the database asks.
    pub(crate) fn fates(&self) -> Fates {
        let faults = self.clone();
        Arc::new(move |moment| faults.lock().fate(moment))
    }

    /// The disk that the server writes to.
    pub(crate) fn disk(&self) -> Disk {
        let (slow, faulty) = (self.clone(), self.clone());
        Disk {
            delay: Box::new(move || slow.lock().late(Accident::SlowLog, &[20, 300, 2_000, 8_000]).unwrap_or_default()),
            write: Box::new(move || faulty.lock().write()),
        }
    }
}

impl Inner {
    fn note(&mut self, accident: Accident) {
        *self.met.entry(accident).or_default() += 1;
    }

    fn comes(&mut self, accident: Accident) -> bool {
        let Some(often) = self.rates.get(&accident).copied() else { return false };
        let comes = self.chance.next() % 1_000 < often;
        if comes {
            self.note(accident);
        }
        comes
    }

    fn late(&mut self, accident: Accident, spans_ms: &[u64]) -> Option<Duration> {
        let comes = self.comes(accident);
        comes.then(|| Duration::from_millis(*self.chance.one_of(spans_ms)))
    }

    fn fate(&mut self, moment: Moment) -> Fate {
        if let Some(armed) = self.armed.as_mut().filter(|armed| armed.moment == moment) {
            if armed.after > 0 {
                armed.after -= 1;
                return Fate::Well;
            }
            let fate = armed.fate;
            self.armed = None;
            self.note(match fate {
                Fate::EndBefore | Fate::EndAfter => Accident::KillAtCommit,
                Fate::Unanswered => Accident::Silence,
                _ => Accident::Refusal,
            });
            return fate;
        }
        match moment {
            Moment::Begin if self.late.1 > 0 => {
                self.late.1 -= 1;
                Fate::Late(Duration::from_millis(*self.chance.one_of(&[1_000, 4_000, 12_000])))
            }
            Moment::Begin | Moment::Commit => {
                if moment == Moment::Commit && self.late.0 > 0 {
                    self.late = (0, self.late.0);
                }
                self.late(Accident::SlowDatabase, &[20, 300, 3_000, 15_000]).map_or(Fate::Well, Fate::Late)
            }
            Moment::WakeUp if self.comes(Accident::LostWakeUp) => Fate::Refused,
            Moment::Delivery if self.comes(Accident::DoubledWakeUp) => Fate::Refused,
            _ => Fate::Well,
        }
    }

    fn write(&mut self) -> Write {
        if std::mem::take(&mut self.torn) {
            self.note(Accident::TornLog);
            return Write::Torn;
        }
        if self.full {
            self.note(Accident::FullLog);
            return Write::Full;
        }
        Write::Whole
    }
}
