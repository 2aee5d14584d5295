//! A minute of blows on each database, so that nobody forgets; `cargo xtask torture` goes on for as long as is wished.

use std::time::Duration;

use drover_kernel::Clock;
use drover_tests::Engine;
use drover_tests::torture::{Plan, run};

async fn a_minute(engine: Engine) {
    // Another one each time; what fails says which it was.
    let seed = u64::try_from(Clock::system().now().millis()).unwrap_or(0);
    let plan = Plan { seed, duration: Duration::from_secs(60), engine, hosts: 3, applications: 3 };
    let report = Box::pin(run(plan)).await;
    assert!(report.struck.total() > 0 && report.counted.bytes > 0, "seed {seed}: {report}");
}

#[tokio::test]
async fn nothing_is_lost_and_nothing_runs_twice_on_sqlite() {
    a_minute(Engine::Sqlite).await;
}

#[tokio::test]
async fn nothing_is_lost_and_nothing_runs_twice_on_postgres() {
    a_minute(Engine::Postgres).await;
}
