//! Sessions that last: what is over leaves nothing behind.

use drover_shared::message::{Finished, ProcessVerdict, ToAgent, ToServer};
use drover_shared::order::Statement;
use drover_shared::words::ExecutionState;
use drover_tests::stub_agent::{StubAgent, listen};
use drover_tests::{TestServer, both_engines, wait_until};

use super::upgrade;
use crate::deploys::Shop;

/// More than the files that the server keeps open for those who may still ask.
const TASKS: u32 = 200;
const OPEN_MAX: usize = 150;

/// Files of output that this process has open.
fn open_logs(server: &TestServer) -> usize {
    let folder = server.data_directory().to_owned();
    let open = std::fs::read_dir("/proc/self/fd").expect("what is open").filter_map(Result::ok);
    let targets = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    targets.filter(|target| target.starts_with(&folder) && target.to_string_lossy().contains("/logs/")).count()
}

async fn carry_out(agent: &mut StubAgent, channel: u32) {
    let ToAgent::Run { order, .. } = agent.hear().await else { panic!("no order") };
    let Statement { execution_id, attempt, .. } = serde_json::from_str(&order.statement).expect("a statement");
    agent.say(&ToServer::Accepted { execution_id: execution_id.clone(), attempt, channel }).await;
    let finished = Finished {
        execution_id,
        attempt,
        state: ExecutionState::Succeeded,
        reason: None,
        steps: Vec::new(),
        log_length: 0,
        output_truncated: false,
        processes: ProcessVerdict::default(),
        releases: None,
    };
    agent.say(&ToServer::Finished(Box::new(finished))).await;
    let ToAgent::Archived { .. } = agent.hear().await else { panic!("not taken in") };
}

both_engines! {
    async fn a_session_keeps_no_file_of_what_is_over(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "true").await;
        let mut agent = StubAgent::enrol(&server, listen(&server).await, "web-1", &[]).await;
        let deploy_task = shop.started().await;
        for channel in 1..=TASKS {
            upgrade(&shop, deploy_task, &shop.instances).await;
            carry_out(&mut agent, channel).await;
        }
        wait_until("the files to be closed", async || open_logs(&server) <= OPEN_MAX).await;
        assert!(open_logs(&server) > 0, "they are where this test looks");
    }
}
