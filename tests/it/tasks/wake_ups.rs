//! The queue of wake-ups keeps what is on its way, and nothing else.

use std::time::Duration;

use drover_kernel::args;
use drover_kernel::db::Sql;
use drover_tests::{Engine, TestServer, both_engines, wait_until};

use super::upgrade;
use crate::deploys::Shop;

async fn count(server: &TestServer, condition: &str) -> i64 {
    let table = if server.engine() == Engine::Sqlite { "Jobs" } else { "apalis.jobs" };
    let text = format!("SELECT COUNT(*) FROM {table} WHERE {condition}");
    server.read().await.value(Sql::literal(text.leak()), args![]).await.expect("a number")
}

both_engines! {
    async fn what_was_handed_out_does_not_stay(server: TestServer) {
        server.kernel().spawn(drover_server::jobs().run(server.kernel().clone()));
        let shop = Shop::new(&server, 1).await;
        let deploy_task = shop.started().await;
        upgrade(&shop, deploy_task, &shop.instances).await;
        wait_until("every wake-up to be handed out", async || {
            count(&server, "TRUE").await > 0 && count(&server, "status = 'Pending'").await == 0
        })
        .await;
        let before = count(&server, "TRUE").await;
        // The queue takes the machine's clock, and what came a moment ago is kept.
        server.kernel().clean().await.expect("a round");
        assert_eq!(count(&server, "TRUE").await, before);
        server.advance(Duration::from_secs(100 * 365 * 86_400));
        server.kernel().clean().await.expect("a round");
        assert_eq!(count(&server, "TRUE").await, 0);
    }
}
