//! The output of a task as a file: whole, in parts, with times, as records, and searched.

use drover_automation::engine::Engine as Automation;
use drover_automation::logs::TaskLog;
use drover_shared::record::{Record, Stream};
use drover_tests::{Answer, Client, TestServer, both_engines, wait_until};
use serde_json::{Value, json};

use super::{detail, upgrade};
use crate::deploys::{Shop, action_path, grant};

/// A running task on two hosts, and what was said in it.
struct Story {
    shop: Shop,
    deploy_task: i64,
    task: i64,
    log: TaskLog,
    /// The server's own lines.
    notices: String,
}

impl Story {
    async fn begin(server: &TestServer) -> Self {
        let shop = Shop::new(server, 2).await;
        let deploy_task = shop.started().await;
        let task = upgrade(&shop, deploy_task, &shop.instances).await;
        let mut notices = String::new();
        wait_until("both remarks in the output", async || {
            let told = detail(&shop, deploy_task, task).await;
            notices = told["output"].as_str().expect("text").to_owned();
            notices.matches(": waiting").count() == 2
        })
        .await;
        let log = server.kernel().part::<Automation>().logs.task(task).await.expect("the log");
        Self { shop, deploy_task, task, log, notices }
    }

    /// Adds what an execution says.
    async fn say(&self, source: u32, stream: Stream, payload: &[u8]) {
        let mut raw = Vec::new();
        Record { time_ms: 1_524_037_120_007, step: 2, stream, payload }.encode(&mut raw);
        let length = u32::try_from(raw.len()).expect("a short record");
        self.log.append(source, self.log.durable(source), 0, length, raw.into()).await.expect("stored");
    }

    async fn get(&self, query: &str) -> Answer {
        self.shop.admin.get(&format!("/tasks/{}/output/{query}", self.task)).await
    }

    async fn part(&self, query: &str, range: &str) -> Answer {
        let path = format!("/tasks/{}/output/{query}", self.task);
        self.shop.admin.with_header("range", range).get(&path).await
    }

    async fn search(&self, query: &str) -> Value {
        self.get(&format!("search/?{query}")).await.expect(200)
    }
}

fn texts(found: &Value) -> Vec<&str> {
    found["matches"].as_array().expect("matches").iter().map(|line| line["text"].as_str().expect("text")).collect()
}

both_engines! {
    async fn a_download_has_the_bytes_as_they_were_written(server: TestServer) {
        let story = Story::begin(&server).await;
        story.say(1, Stream::Output, b"one \xff\xfe\x1b[31m\0 half \xf0\x9f").await;
        story.say(2, Stream::Error, b"two\r\n").await;
        story.say(1, Stream::Output, b"\x98\x80 whole\n").await;
        story.say(1, Stream::Event, br#"{"step":"post_exec","state":"running"}"#).await;
        let one: &[u8] = b"one \xff\xfe\x1b[31m\0 half \xf0\x9f\x98\x80 whole\n";
        let whole = [story.notices.as_bytes(), &one[..one.len() - 9], b"two\r\n", &one[one.len() - 9..]].concat();

        let answer = story.get("").await;
        assert_eq!((answer.status, &answer.bytes), (200, &whole));
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
        assert_eq!(answer.header("content-length"), whole.len().to_string());
        assert_eq!(answer.header("accept-ranges"), "bytes");
        assert_eq!(answer.header("content-disposition"), format!("attachment; filename=\"task-{}.log\"", story.task));
        assert_eq!(story.get("?host=web-1").await.bytes, one);
        assert_eq!(story.get("?host=web-2").await.bytes, b"two\r\n");
        let told = detail(&story.shop, story.deploy_task, story.task).await;
        let execution = told["instances"][1]["execution_id"].as_str().expect("an id").to_owned();
        let host = told["instances"][1]["hostname"].as_str().expect("a name").to_owned();
        let by_host = story.get(&format!("?host={host}")).await.bytes;
        assert_eq!(story.get(&format!("?execution={execution}&host={host}")).await.bytes, by_host);

        for (query, all) in [("", whole.as_slice()), ("?host=web-1", one), ("?host=web-2", b"two\r\n")] {
            for from in 0..all.len() {
                let answer = story.part(query, &format!("bytes={from}-")).await;
                assert_eq!((answer.status, answer.bytes.as_slice()), (206, &all[from..]), "{query} from {from}");
                let last = (from + 3).min(all.len() - 1);
                let answer = story.part(query, &format!("bytes={from}-{last}")).await;
                assert_eq!(answer.bytes, &all[from..=last], "{query} {from}-{last}");
                assert_eq!(answer.header("content-range"), format!("bytes {from}-{last}/{}", all.len()));
            }
            assert_eq!(story.part(query, "bytes=-3").await.bytes, &all[all.len() - 3..]);
            let answer = story.part(query, &format!("bytes={}-", all.len())).await;
            assert_eq!(answer.header("content-range"), format!("bytes */{}", all.len()));
            assert_eq!(answer.expect_error(416, 10001)["field"], "Range");
        }
        let path = format!("/tasks/{}/output/", story.task);
        let conditional = story.shop.admin.with_header("range", "bytes=1-").with_header("if-range", "\"tag\"");
        let answer = conditional.get(&path).await;
        assert_eq!((answer.status, answer.bytes), (200, whole));
    }

    async fn records_and_times_are_given_on_demand(server: TestServer) {
        let story = Story::begin(&server).await;
        story.say(1, Stream::Event, br#"{"step":"post_exec","state":"running"}"#).await;
        story.say(1, Stream::Output, b"begun ").await;
        story.say(2, Stream::Error, b"bad \xff\n").await;
        story.say(1, Stream::Output, b"ended\nleft").await;
        story.say(1, Stream::Event, br#"{"step":"post_exec","state":"failed","exit_code":3,"error":"exit code 3"}"#).await;
        let at = "2018-04-18T07:38:40.007+00:00";
        let marked = story.get(&format!("?timestamps=true&from={}", story.notices.len())).await;
        let expected = [
            format!("{at} web-1 = post_exec running\n").into_bytes(),
            [format!("{at} web-2 ! bad ").as_bytes(), b"\xff\n"].concat(),
            format!("{at} web-1 | begun ended\n{at} web-1 | left\n").into_bytes(),
            format!("{at} web-1 = post_exec failed, exit code 3: exit code 3\n").into_bytes(),
        ];
        let text = String::from_utf8_lossy(&marked.bytes).into_owned();
        assert_eq!(marked.bytes, expected.concat(), "{text}");
        let all = story.get("?timestamps=1").await.bytes;
        let all = String::from_utf8_lossy(&all).into_owned();
        assert!(all.lines().next().is_some_and(|line| line.contains(" drover * ")), "{all}");
        assert_eq!(story.get("?timestamps=1&host=web-2").await.bytes, expected[1]);

        let answer = story.get(&format!("?format=json&host=web-1&from={}", story.notices.len())).await;
        assert_eq!(answer.header("content-type"), "application/x-ndjson");
        let text = String::from_utf8(answer.bytes).expect("text");
        let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a record")).collect();
        let texts: Vec<&Value> = records.iter().filter_map(|record| record.get("text")).collect();
        assert_eq!(texts, ["begun ", "ended\nleft"]);
        assert!(records.iter().all(|record| record["host"] == "web-1"), "{text}");
        assert_eq!(records[0]["event"]["state"], "running");
    }

    async fn a_search_finds_lines_and_goes_on_where_it_stopped(server: TestServer) {
        let story = Story::begin(&server).await;
        for number in 0..20 {
            let source = 1 + number % 2;
            story.say(source, Stream::Output, format!("line {number} of \x1b[1m{source}\x1b[0m\nhal").as_bytes()).await;
            story.say(source, Stream::Output, b"f error: (no)\r\n").await;
        }
        let found = story.search("q=error:%20(no)&limit=3").await;
        assert_eq!(texts(&found), ["half error: (no)"; 3]);
        let line = &found["matches"][0];
        assert_eq!((&line["stream"], &line["step"], &line["cut"]), (&json!("stdout"), &json!(2), &json!(false)));
        assert_eq!(line["time"], "2018-04-18T07:38:40.007+00:00");
        assert!(line["execution"].is_string() && line["host"] == "web-1", "{line}");

        let (mut offsets, mut from) = (Vec::new(), String::new());
        for _ in 0..100 {
            let found = story.search(&format!("q=HALF&ignore_case=1&limit=3{from}")).await;
            offsets.extend(found["matches"].as_array().expect("matches").iter().map(|line| line["offset"].as_u64()));
            let Some(next) = found["next"].as_str() else { break };
            from = format!("&from={next}");
        }
        assert_eq!(offsets.len(), 20);
        assert!(offsets.is_sorted_by(|one, other| one < other), "{offsets:?}");

        let found = story.search("q=%5Eline%201%5Cd%20&regex=true&host=web-2&context=1").await;
        assert_eq!(texts(&found).len(), 5, "{found}");
        assert_eq!((&found["next"], &found["matches"][0]["before"][0]["text"]), (&Value::Null, &json!("half error: (no)")));
        assert_eq!(found["matches"][0]["after"][0]["text"], "half error: (no)");
        assert_eq!(found["read_to"], story.log.text_length());
        let nothing = json!({"matches": [], "next": null, "read_to": story.log.text_length()});
        assert_eq!(story.search("q=nothing").await, nothing);
        assert_eq!(texts(&story.search("q=waiting").await).len(), 2, "the server's own lines are found too");
    }

    async fn bad_wishes_are_named(server: TestServer) {
        let story = Story::begin(&server).await;
        let long = "x".repeat(1001);
        for (query, field) in [
            ("?format=xml", "format"),
            ("?format=json&timestamps=1", "timestamps"),
            ("?timestamps=maybe", "timestamps"),
            ("?from=5", "from"),
            ("?format=json&from=-5", "from"),
            ("?host=web-9", "host"),
            ("?execution=web-1", "execution"),
            ("search/", "q"),
            ("search/?q=(&regex=1", "q"),
            ("search/?q=a%0Ab", "q"),
            (&format!("search/?q={long}"), "q"),
            ("search/?q=(((a{99}){99}){99})&regex=1", "q"),
            ("search/?q=a&context=21", "context"),
            ("search/?q=a&limit=0", "limit"),
            ("search/?q=a&limit=1001", "limit"),
            ("search/?q=a&from=x", "from"),
            ("search/?q=a&from=1-x", "from"),
            ("search/?q=a&host=web-9", "host"),
        ] {
            let error = story.get(query).await.expect_error(400, 10001);
            assert_eq!(error["field"], field, "{query}: {error}");
        }
        assert_eq!(texts(&story.search("q=(").await), Vec::<&str>::new(), "plain text needs no escaping");
        story.search("q=a&from=99999999999").await;
    }

    async fn output_needs_the_right_that_the_channel_needs(server: TestServer) {
        let story = Story::begin(&server).await;
        let paths = ["", "search/?q=a"].map(|end| format!("/tasks/{}/output/{end}", story.task));
        let check = async |client: &Client, status: u16| {
            for path in &paths {
                assert_eq!(client.get(path).await.status, status, "{path}");
            }
        };
        check(&server.anonymous(), 401).await;
        let user = server.user("ada").await;
        check(&user, 404).await;
        grant(&server, user.id, story.shop.application, &["restart_app"]).await;
        check(&user, 403).await;
        for right in ["review_app_deploy_task", "view_app"] {
            grant(&server, user.id, story.shop.application, &[right]).await;
            check(&user, 200).await;
        }
        let taker = server.user("eve").await;
        check(&taker, 404).await;
        let path = action_path(story.deploy_task, "delegate");
        story.shop.admin.post(&path, json!({"user_id": taker.id})).await.expect(200);
        check(&taker, 200).await;
        story.shop.admin.get("/tasks/4711/output/").await.expect_error(404, 10004);
        story.shop.admin.get("/tasks/x/output/").await.expect_error(404, 10004);
    }
}
