//! Server and agents on one thread, with a clock, a network, a database and accidents that follow from a seed.
//!
//! The server is the real one without its listeners, the agents are the real ones without their processes: what would come
//! from outside comes from here. Hooks are data, and whoever carries them out writes down what really happened, outside of
//! everything that is being tried; at the end the promises are held against that. Invariants: nothing happens beside the one
//! thread, so that a seed gives the same run each time; whatever goes wrong ends before the end, so that everything can end.

mod accidents;
mod chance;
mod checks;
mod faults;
mod host;
mod people;
mod server;
mod supervisor;
mod trace;
mod truth;
mod wire;
mod world;

use std::path::{Path, PathBuf};

use drover_shared::planted::{Bug, plant};

pub use checks::Counted;
pub use faults::{Accident, Met};
use trace::Trace;
use world::World;

/// Steps of chance, and rounds in which everything may come to its end.
const STEPS: u64 = 9_000;
const ROUNDS: u64 = 12_000;
/// Lines of the trace that a failure shows.
const SHOWN: usize = 60;

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Lines of the trace, and their digest.
    pub trace: (usize, String),
    /// What went wrong on purpose, and how often.
    pub met: Met,
    /// What was compared, or the promise that is broken and how.
    pub promises: Result<Counted, (&'static str, String)>,
    /// The end of the trace.
    pub tail: String,
    /// All of it.
    pub lines: Vec<String>,
}

/// Runs a seed. The same seed gives the same outcome.
///
/// # Panics
/// When the simulation itself cannot go on.
#[must_use]
pub fn simulate(seed: u64, bug: Option<Bug>, echo: bool) -> Outcome {
    plant(bug);
    let folder = tempfile::tempdir_in(place()).expect("a folder");
    let trace = Trace::new(echo);
    let mut world = World::begin(seed, folder.path().to_owned(), trace.clone()).expect("everything begins");
    for _ in 0..STEPS {
        world.step();
    }
    let promises = if world.heal(ROUNDS) {
        checks::check(&mut world)
    } else {
        Err(("P1", format!("it does not come to an end: {}", world.unfinished())))
    };
    plant(None);
    let met = world.faults.all();
    Outcome { trace: trace.digest(), met, promises, tail: trace.tail(SHOWN), lines: trace.lines() }
}

/// Memory, where there is such a place: what is written here need not last.
fn place() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}
