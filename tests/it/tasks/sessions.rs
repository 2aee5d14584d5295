//! Sessions that last, and sessions that are overtaken: what is over leaves nothing behind.

use drover_shared::message::{Finished, Holding, ToAgent, ToServer};
use drover_shared::order::Statement;
use drover_shared::words::ExecutionState;
use drover_tests::stub_agent::{StubAgent, finished};
use drover_tests::{TestServer, both_engines, wait_until};

use super::returning::{at_work, state};
use super::{detail, upgrade};
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
    let statement = agent.order().await;
    agent.accept_on(&statement, channel).await;
    agent.succeed(&statement).await;
    agent.archived(&statement).await;
}

/// Has the system refuse to open the output of the first task, as it does when too many files are open.
fn refuse_to_open(server: &TestServer) -> std::path::PathBuf {
    let file = server.data_directory().join("logs/0/1.log");
    std::fs::create_dir_all(&file).expect("room");
    file
}

/// An order whose output could not be opened when its agent took it; by now it can be.
async fn taken_unheard(server: &TestServer) -> (Shop, StubAgent, Statement, i64) {
    let shop = Shop::new(server, 1).await;
    shop.hook("pre_exec", "true").await;
    let file = refuse_to_open(server);
    let mut agent = StubAgent::alone(server, "web-1").await;
    let deploy_task = shop.started().await;
    assert_eq!(upgrade(&shop, deploy_task, &shop.instances).await, 1);
    let statement = agent.order().await;
    agent.accept(&statement).await;
    agent.heard().await;
    std::fs::remove_dir(file).expect("it is empty");
    (shop, agent, statement, deploy_task)
}

/// Sends what was asked for again, and how it ended; gives what the task's output is then.
async fn resume(shop: &Shop, agent: &mut StubAgent, statement: &Statement, deploy_task: i64) -> String {
    let asked = agent.hear().await;
    assert!(matches!(asked, ToAgent::OutputResume { channel: 1, offset: 0 }), "{asked:?}");
    let log_length = agent.output(1, 0, "said\n").await;
    agent.end(Finished { log_length, ..finished(statement, ExecutionState::Succeeded) }).await;
    agent.archived(statement).await;
    detail(shop, deploy_task, 1).await["output"].as_str().expect("text").to_owned()
}

both_engines! {
    async fn output_that_could_not_be_opened_for_a_moment_is_asked_for_before_the_outcome(server: TestServer) {
        let (shop, mut agent, statement, deploy_task) = Box::pin(taken_unheard(&server)).await;
        let log_length = agent.output(1, 0, "said\n").await;
        agent.end(Finished { log_length, ..finished(&statement, ExecutionState::Succeeded) }).await;
        let output = resume(&shop, &mut agent, &statement, deploy_task).await;
        assert_eq!(output.matches("said").count(), 1, "{output}");
    }

    /// It is too long to be sent without an acknowledgement.
    async fn long_output_that_could_not_be_opened_is_asked_for_with_the_next_sign_of_life(server: TestServer) {
        let (shop, mut agent, statement, deploy_task) = Box::pin(taken_unheard(&server)).await;
        agent.output(1, 0, "said\n").await;
        agent.say(&ToServer::Heartbeat { time_ms: 0 }).await;
        let output = resume(&shop, &mut agent, &statement, deploy_task).await;
        assert_eq!(output.matches("said").count(), 1, "{output}");
    }

    /// An agent dials anew while its former connection is only slow, and what it had said there arrives afterwards.
    async fn what_a_former_session_says_counts_no_more(server: TestServer) {
        let (shop, mut agent, statement, deploy_task, task) = Box::pin(at_work(&server)).await;
        let (execution_id, attempt) = (statement.execution_id.clone(), statement.attempt);
        let holding = Holding { execution_id, attempt, channel: 1, log_length: 0, finished: false, needs_order: false };
        let mut former = agent.come_back_beside(vec![holding]).await;
        let late = finished(&statement, ExecutionState::Failed);
        former.says_too_late(&ToServer::Finished(Box::new(late))).await;
        assert_eq!(state(&shop, deploy_task, task).await, "running");
        agent.succeed(&statement).await;
        agent.archived(&statement).await;
        assert_eq!(state(&shop, deploy_task, task).await, "succeeded");
    }

    async fn a_session_keeps_no_file_of_what_is_over(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "true").await;
        let mut agent = StubAgent::alone(&server, "web-1").await;
        let deploy_task = shop.started().await;
        for channel in 1..=TASKS {
            upgrade(&shop, deploy_task, &shop.instances).await;
            carry_out(&mut agent, channel).await;
        }
        wait_until("the files to be closed", async || open_logs(&server) <= OPEN_MAX).await;
        assert!(open_logs(&server) > 0, "they are where this test looks");
    }

    async fn what_an_agent_said_before_it_dialled_again_counts_no_more(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.hook("pre_exec", "true").await;
        let mut agent = StubAgent::alone(&server, "web-1").await;
        // Its hello is on its way over this connection when it gives that up, and dials again.
        let mut former = agent.knock().await;
        agent.come_back(Vec::new()).await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        let statement = agent.order().await;
        agent.accept(&statement).await;
        wait_until("it to run", async || {
            detail(&shop, deploy_task, task).await["instances"][0]["status"] == "running"
        })
        .await;
        let answer = agent.arrive(&mut former, Vec::new()).await;
        assert!(matches!(answer, ToAgent::Refused { retry: true, .. }), "{answer:?}");
        agent.succeed(&statement).await;
        agent.archived(&statement).await;
        wait_until("the end", async || detail(&shop, deploy_task, task).await["status"] == "finished").await;
    }
}
