//! Reading the logs of instances, over HTTP: what is passed on, who may, and what hosts may do wrong.

use drover_shared::instance::{FEATURE, LogAnswer, LogEvent, LogFile, LogOutcome, LogPiece, LogQuestion, LogSlice};
use drover_shared::message::{ToAgent, ToServer};
use drover_tests::stub_agent::{StubAgent, listen};
use drover_tests::{Answer, Client, TestServer, both_engines};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::deploys::{Shop, grant};

const FILE: LogFile = LogFile { device: 64_769, inode: 12, made_ns: 1_714_564_800_000_000_000 };

fn path(shop: &Shop, query: &str) -> String {
    format!("/applications/{}/instances/{}/log/{query}", shop.application, shop.instances[0])
}

/// A shop whose instances have logs.
async fn shop(server: &TestServer) -> Shop {
    let shop = Shop::new(server, 1).await;
    let logs = json!({"stdout_path": "/var/log/{{ host.name }}/out.log", "stderr_path": "{{ vars.errors }}", "run_user": "shop"});
    shop.admin.patch(&format!("/applications/{}/", shop.application), logs).await.expect(200);
    shop
}

/// Asks in the background, as its agent has to answer meanwhile.
fn ask(client: &Client, path: String) -> JoinHandle<Answer> {
    let client = client.clone();
    tokio::spawn(async move { client.get(&path).await })
}

async fn question(agent: &mut StubAgent) -> LogQuestion {
    let ToAgent::ReadLog(question) = agent.hear().await else { panic!("no question") };
    question
}

async fn answer(agent: &mut StubAgent, request: u64, outcome: LogOutcome) {
    agent.say(&ToServer::Log(Box::new(LogAnswer { request, outcome }))).await;
}

fn slice() -> LogSlice {
    let content = "zwölf\n".to_owned();
    LogSlice { content, length: 7, position: 19, total_length: 99, lines: Some(1), file: FILE, event: None }
}

fn message(error: &Value) -> &str {
    error["message"].as_str().expect("a message")
}

both_engines! {
    async fn a_piece_is_asked_for_as_the_contract_says(server: TestServer) {
        let shop = shop(&server).await;
        let mut agent = StubAgent::enrol(&server, listen(&server).await, "web-1", &[FEATURE]).await;
        for (query, piece) in [
            ("", LogPiece::Bytes { from: 0, bytes: 8_192 }),
            ("?log_type=stdout&mode=%20bytes&from_position=5&block_size=100&lines=x", LogPiece::Bytes { from: 5, bytes: 100 }),
            ("?from_last_position=0", LogPiece::LastBytes { back: 0, bytes: 8_192 }),
            ("?mode=lines&from_lines=3&lines=7", LogPiece::Lines { skip: 3, lines: 7 }),
            ("?mode=lines&latest_lines_offset=2&lines=7", LogPiece::LastLines { skip: 2, lines: 1_000 }),
            (
                "?from_position=5&file=64769-12-1714564800000000000&wait=9",
                LogPiece::Next { file: FILE, from: 5, bytes: 8_192, wait_ms: 9_000 },
            ),
        ] {
            let asked = ask(&shop.admin, path(&shop, query));
            let asking = question(&mut agent).await;
            assert_eq!((asking.path.as_str(), asking.running_user.as_deref()), ("/var/log/web-1/out.log", Some("shop")));
            assert_eq!(asking.piece, piece, "{query}");
            let lines = query.contains("lines&").then_some(1);
            let event = matches!(piece, LogPiece::Next { .. }).then_some(LogEvent::Rotated);
            // What nobody asks is heard by nobody.
            answer(&mut agent, asking.request + 100, LogOutcome::Missing {}).await;
            answer(&mut agent, asking.request, LogOutcome::Slice(LogSlice { lines, event, ..slice() })).await;
            let told = asked.await.expect("no panic").expect(200);
            let mut expected = json!({"content": "zwölf\n", "length": 7, "total_length": 99, "position": 19,
                "file": "64769-12-1714564800000000000", "event": event.map(|_| "rotated")});
            if let Some(lines) = lines {
                expected["lines"] = json!(lines);
            }
            assert_eq!(told, expected, "{query}");
        }
        // Errors are in a file of their own, and addresses may be written as in old times.
        let variables = format!("/hosts/{}/variables/", shop.hosts[0]);
        shop.admin.patch(&variables, json!({"variables": {"errors": "/var/log/errors.log"}})).await.expect(200);
        let old = format!("/application/{}/instance/{}/log?log_type=error", shop.application, shop.instances[0]);
        let asked = ask(&shop.admin, old);
        let asking = question(&mut agent).await;
        assert_eq!(asking.path, "/var/log/errors.log");
        answer(&mut agent, asking.request, LogOutcome::Slice(slice())).await;
        asked.await.expect("no panic").expect(200);
    }

    async fn a_path_that_never_ends_says_so(server: TestServer) {
        let shop = shop(&server).await;
        let endless = "/{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}x.log";
        let texts = json!({"stdout_path": endless, "stderr_path": "/var/log/{{ 'x' * 1000000000 }}"});
        shop.admin.patch(&format!("/applications/{}/", shop.application), texts).await.expect(200);
        for (query, member) in [("", "stdout_path"), ("?log_type=error", "stderr_path")] {
            let error = shop.admin.get(&path(&shop, query)).await.expect_error(409, 10006);
            let wanted = "rendering the paths of an instance takes more than 2000 steps together";
            assert!(message(&error).contains(member) && message(&error).contains(wanted), "{error}");
        }
    }

    async fn what_cannot_be_read_says_why(server: TestServer) {
        let shop = shop(&server).await;
        let address = listen(&server).await;
        let error = shop.admin.get(&path(&shop, "")).await.expect_error(503, 10009);
        assert!(message(&error).contains("web-1 is not connected"), "{error}");
        let mut old = StubAgent::enrol(&server, address, "web-1", &["inspect"]).await;
        let error = shop.admin.get(&path(&shop, "")).await.expect_error(409, 10006);
        assert!(message(&error).contains("too old"), "{error}");
        old.leave();
        let mut agent = StubAgent::enrol(&server, address, "web-1", &[FEATURE]).await;
        for (outcome, status, code, part) in [
            (LogOutcome::Missing {}, 404, 10004, "there is no file /var/log/web-1/out.log on web-1"),
            (LogOutcome::Refused { reason: "permission denied".to_owned() }, 409, 10006, "/var/log/web-1/out.log on web-1: permission denied"),
            (LogOutcome::Busy {}, 503, 10009, "too many"),
        ] {
            let asked = ask(&shop.admin, path(&shop, ""));
            let request = question(&mut agent).await.request;
            answer(&mut agent, request, outcome).await;
            let error = asked.await.expect("no panic").expect_error(status, code);
            assert!(message(&error).contains(part), "{error}");
        }
        let asked = ask(&shop.admin, path(&shop, ""));
        question(&mut agent).await;
        agent.leave();
        let error = asked.await.expect("no panic").expect_error(503, 10009);
        assert!(message(&error).contains("went away"), "{error}");
        // Before anybody is asked.
        for (query, field) in [
            ("?from_position=1&from_last_position=1", "from_last_position"), ("?from_position=-1", "from_position"),
            ("?log_type=debug", "log_type"), ("?mode=words", "mode"), ("?mode=lines&latest_lines=-1", "latest_lines"),
            ("?wait=1", "wait"), ("?file=x", "file"), ("?file=1-2-3&wait=31", "wait"),
        ] {
            let error = shop.admin.get(&path(&shop, query)).await.expect_error(400, 10001);
            assert_eq!(error["field"], field, "{query}");
        }
        let error = shop.admin.get(&path(&shop, "?log_type=error")).await.expect_error(409, 10006);
        assert!(message(&error).contains("stderr_path"), "{error}");
        let application = format!("/applications/{}/", shop.application);
        shop.admin.patch(&application, json!({"stderr_path": "", "stdout_path": "out.log"})).await.expect(200);
        let error = shop.admin.get(&path(&shop, "")).await.expect_error(409, 10006);
        assert!(message(&error).contains("absolute"), "{error}");
        let error = shop.admin.get(&path(&shop, "?log_type=error")).await.expect_error(404, 10004);
        assert_eq!(message(&error), "shop has no stderr_path");
        shop.admin.get(&format!("{application}instances/4711/log/")).await.expect_error(404, 10004);
    }

    async fn who_may_see_the_application_may_not_read_its_logs(server: TestServer) {
        let shop = shop(&server).await;
        let user = server.user("ann").await;
        user.get(&path(&shop, "")).await.expect_error(404, 10004);
        grant(&server, user.id, shop.application, &["view_app", "edit_app"]).await;
        user.get(&path(&shop, "")).await.expect_error(403, 10003);
        grant(&server, user.id, shop.application, &["view_app_log"]).await;
        user.get(&path(&shop, "")).await.expect_error(503, 10009);
    }

    async fn those_who_follow_and_those_who_read_have_bounds_of_their_own(server: TestServer) {
        let shop = shop(&server).await;
        let mut agent = StubAgent::enrol(&server, listen(&server).await, "web-1", &[FEATURE]).await;
        let follow = |from: usize| {
            path(&shop, &format!("?file=64769-12-1714564800000000000&from_position={from}&wait=30"))
        };
        // One application's followers have a few places, and leave the others to other applications.
        let mut following: Vec<_> = (0..4).map(|from| ask(&shop.admin, follow(from))).collect();
        let mut requests = Vec::new();
        for _ in 0..4 {
            requests.push(question(&mut agent).await.request);
        }
        let error = shop.admin.get(&follow(4)).await.expect_error(503, 10009);
        assert!(message(&error).contains("followed from 4 places on web-1 already"), "{error}");
        // Who waits for the same shares a place.
        following.extend((0..20).map(|_| ask(&shop.admin, follow(3))));
        // Many who read wait for their turn, and the host is asked by few at a time.
        let reading: Vec<_> = (0..20).map(|_| ask(&shop.admin, path(&shop, ""))).collect();
        let mut open = Vec::new();
        for _ in 0..4 {
            open.push(question(&mut agent).await.request);
        }
        for done in 0..20 {
            answer(&mut agent, open.remove(0), LogOutcome::Slice(slice())).await;
            if done < 16 {
                open.push(question(&mut agent).await.request);
            }
        }
        for one in reading {
            one.await.expect("no panic").expect(200);
        }
        for request in requests {
            answer(&mut agent, request, LogOutcome::Slice(slice())).await;
        }
        // Who came too late to share is answered for itself.
        let all = async {
            for one in following {
                one.await.expect("no panic").expect(200);
            }
        };
        let mut all = Box::pin(all);
        loop {
            let request = tokio::select! {
                () = &mut all => break,
                question = question(&mut agent) => question.request,
            };
            answer(&mut agent, request, LogOutcome::Slice(slice())).await;
        }
    }
}
