//! Real programs under blows: server, agents, supervisors and the database are killed at random while deploys run whose
//! output is known, and at the end everything is compared with what the hooks themselves wrote down.
//!
//! Invariants: what is done, and when, follows from the seed (not what it meets: programs run as fast as they run); the
//! blows end before the count begins; whatever does not agree ends the run with a panic that says what.

mod blows;
mod count;
mod load;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use xtask::postgres::Postgres;

use crate::Engine;
use crate::processes::Processes;
use blows::Blows;
pub use blows::Struck;
pub use count::Counted;
use load::Fleet;

/// Longest time that everything may take to come to its end after the last blow.
const SETTLING: Duration = Duration::from_secs(240);

/// What is done.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Where chance begins.
    pub seed: u64,
    /// How long blows fall.
    pub duration: Duration,
    /// Database.
    pub engine: Engine,
    /// Hosts.
    pub hosts: usize,
    /// Applications, each with an instance on every host and a person who deploys it again and again.
    pub applications: usize,
}

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// The blows, by kind.
    pub struck: Struck,
    /// What was compared at the end.
    pub counted: Counted,
    /// How long everything took to come to its end after the last blow.
    pub settled: Duration,
}

impl std::fmt::Display for Report {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(formatter, "blows: {}", self.struck)?;
        writeln!(formatter, "{}", self.counted)?;
        write!(formatter, "all over {:.1} s after the last blow", self.settled.as_secs_f64())
    }
}

/// Chance from a seed: splitmix64 by Steele, Lea and Flood (2014), whose whole state is one number.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// What follows from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, share: u64) -> bool {
        self.below(100) < share
    }

    fn milliseconds(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }

    /// One of several.
    ///
    /// # Panics
    /// When there is none.
    pub fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let length = u64::try_from(all.len()).expect("few");
        &all[usize::try_from(self.below(length)).expect("few")]
    }

    /// Another chance that follows from this one's seed.
    fn apart(&mut self) -> Self {
        Self(self.next())
    }
}

/// Strikes, waits for the end and counts.
///
/// # Panics
/// When anything does not agree with what was promised.
pub async fn run(plan: Plan) -> Report {
    let mut chance = Chance(plan.seed);
    let postgres = match plan.engine {
        Engine::Sqlite => None,
        // One that keeps its promises, and that nobody else uses.
        Engine::Postgres => Some(Postgres::durable().expect("PostgreSQL starts")),
    };
    let url = postgres.as_ref().map(|postgres| postgres.url().to_owned());
    let processes = Processes::start_on(url).await;
    let (mut blows, fleet) = Blows::prepare(processes, postgres, chance.apart(), &plan).await;
    let over = AtomicBool::new(false);
    let apart = (0..plan.applications).map(|application| (application, chance.apart()));
    let work = apart.map(|(application, chance)| fleet.deploy_again_and_again(application, chance, &over));
    let mut people = std::pin::pin!(join_all(work.collect::<Vec<_>>()));
    let striking = async {
        let deadline = Instant::now() + plan.duration;
        while Instant::now() < deadline {
            blows.strike().await;
        }
        blows.heal().await;
    };
    tokio::select! {
        () = striking => {}
        _ = &mut people => unreachable!("nobody stops before it is over"),
    }
    over.store(true, Ordering::Relaxed);
    let healed = Instant::now();
    let asked = tokio::time::timeout(SETTLING, people).await.expect("everything comes to its end");
    let asked: Vec<_> = asked.into_iter().flatten().collect();
    let settled = healed.elapsed();
    let counted = count::count(&fleet, &asked).await;
    let lost = counted.executions.get("lost").copied().unwrap_or(0);
    let killed = usize::try_from(blows.struck().supervisors()).expect("few");
    assert!(lost <= killed, "{lost} executions are lost, and {killed} supervisors were killed");
    fleet.deploy_once_more(plan.applications).await;
    Report { struck: blows.struck(), counted, settled }
}

impl Fleet {
    /// Whatever was done to it: it works.
    async fn deploy_once_more(&self, applications: usize) {
        for application in 0..applications {
            self.deploy_well(application).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_chance() {
        let drawn = |seed| (0..100).scan(Chance(seed), |chance, _| Some(chance.below(1000))).collect::<Vec<_>>();
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
        assert!(drawn(7).iter().all(|number| *number < 1000));
    }
}
