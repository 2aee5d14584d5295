//! What is removed of tasks that ended long ago, and what stays because something needs it.

use std::path::PathBuf;
use std::time::Duration;

use drover_automation::artifacts;
use drover_automation::engine::Engine;
use drover_automation::logs::Format;
use drover_automation::retention::{self, Counted, Places, Removed};
use drover_kernel::retention::Retention;
use drover_kernel::{args, sql};
use drover_tests::{TestServer, both_engines, wait_until};
use serde_json::json;

use super::reverting::{installed, store_artifact};
use super::{counts, entries, references, reverts, upgrade, upgrades};
use crate::deploys::{PATH, Repository, Shop};

/// Everything goes after a day, however few there are.
fn a_day() -> Retention {
    let day = Some(Duration::from_hours(24));
    Retention { output: day, artifacts: day, tasks: day, ..Retention::for_ever() }
}

fn file(server: &TestServer, task: i64) -> PathBuf {
    server.data_directory().join(format!("logs/0/{task}.log"))
}

/// Says something in the output of a task, and ends it.
async fn say(server: &TestServer, task: i64, text: &str) {
    let log = server.kernel().part::<Engine>().logs.task(task).await.expect("the log");
    log.notice(0, text, 0).await.expect("stored");
    log.finish("finished").await.expect("stored");
}

/// Updates of one instance to the versions `1.0`, `2.0` and so on, which ended in 1970.
async fn history(server: &TestServer, shop: &Shop, versions: u8) -> Vec<i64> {
    let mut tasks = Vec::new();
    for version in 1..=versions {
        let artifact = store_artifact(server, format!("the archive of {version}").as_bytes());
        let task = installed(server, shop, &shop.instances, &format!("{version}.0"), artifact).await;
        say(server, task, &format!("this was {version}")).await;
        tasks.push(task);
    }
    tasks
}

async fn look(server: &TestServer, retention: &Retention) -> Removed {
    let places = Places::beside(server.data_directory());
    retention::look(&server.work(), &places, retention).await.expect("a look")
}

async fn ids(server: &TestServer) -> Vec<i64> {
    server.read().await.values(sql!("SELECT id FROM tasks ORDER BY id"), args![]).await.expect("the tasks")
}

both_engines! {
    async fn what_is_old_goes_as_foreseen_and_every_revert_works_after_it(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.set(json!({"deploy_path": "/srv/shop"})).await;
        let tasks = history(&server, &shop, 8).await;
        let before = counts(&server).await;
        let foreseen = look(&server, &a_day()).await;
        assert_eq!((foreseen.tasks, foreseen.output.count, foreseen.artifacts.count), (3, 8, 3));
        assert_eq!(foreseen.artifacts.bytes, 3 * "the archive of 1".len() as u64);
        assert_eq!(counts(&server).await, before, "looking changes nothing");
        assert_eq!(look(&server, &a_day()).await, foreseen);
        assert_eq!(look(&server, &Retention::for_ever()).await, Removed::default());
        let least = Retention { tasks_least: 7, ..a_day() };
        assert_eq!(look(&server, &least).await.tasks, 1, "the newest seven stay");

        assert_eq!(retention::round(server.kernel(), &a_day()).await.expect("a round"), foreseen);
        assert_eq!(ids(&server).await, tasks[3..]);
        assert!(tasks.iter().all(|task| !file(&server, *task).exists()));
        assert_eq!(look(&server, &a_day()).await, Removed::default(), "nothing is left to do");
        let said = sql!("SELECT COUNT(*) FROM audit_entries WHERE object_name = 'retention'");
        assert_eq!(server.count(said, args![]).await, 2, "one for the tasks, one for the output of the others");

        // The five versions that the instance had last can be had again.
        for (version, is_there) in [("3.0", false), ("4.0", true), ("7.0", true)] {
            let deploy_task = shop.started().await;
            let body = json!({"instances": references(&shop.instances), "version": version});
            let answer = shop.admin.post(&reverts(deploy_task), body).await;
            if !is_there {
                answer.expect_error(409, 10006);
                continue;
            }
            let receipt = answer.expect(200);
            let task: i64 = receipt["task_id"].as_str().expect("text").parse().expect("digits");
            let path = format!("{}{task}/", reverts(deploy_task));
            wait_until("the plan", async || shop.admin.get(&path).await.expect(200)["plan_digest"].is_string()).await;
            assert_eq!(entries(&server, task).await[0]["steps"][0]["kind"], "fetch", "{version}");
            shop.admin.post(&format!("{path}actions/cancel/"), json!({})).await.expect(200);
            wait_until("the end", async || shop.admin.get(&path).await.expect(200)["status"] == "failed").await;
        }
    }

    async fn removed_output_is_said_to_be_removed(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let tasks = history(&server, &shop, 1).await;
        let path = format!("/tasks/{}/", tasks[0]);
        // An update belongs to a deploy task, and is shown among all tasks as well.
        let told = shop.admin.get(&path).await.expect(200);
        assert!(told["output"].as_str().is_some_and(|text| text.contains("this was 1")), "{told}");
        assert!(told["output_removed_time"].is_null(), "{told}");
        let removed = retention::round(server.kernel(), &a_day()).await.expect("a round");
        assert_eq!((removed.tasks, removed.output.count), (0, 1));
        let told = shop.admin.get(&path).await.expect(200);
        assert!(told.get("output").is_none() && told["output_removed_time"].is_string(), "{told}");
        for query in ["output/", "output/?format=json", "output/?timestamps=1", "output/search/?q=one"] {
            let error = shop.admin.get(&format!("{path}{query}")).await.expect_error(410, 10004);
            let message = error["message"].as_str().expect("a reason");
            assert!(message.contains("removed by retention at 2024-05-01"), "{message}");
        }
        // What is looked after later makes no new file.
        drover_automation::engine::sweep_once(server.kernel(), true).await.expect("a round");
        assert!(!file(&server, tasks[0]).exists());
    }

    async fn who_reads_reads_on_while_output_is_removed(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let tasks = history(&server, &shop, 1).await;
        let log = server.kernel().part::<Engine>().logs.task(tasks[0]).await.expect("the log");
        let mut reader = log.reader(0, Format::Text);
        drop(log);
        let removed = retention::round(server.kernel(), &a_day()).await.expect("a round");
        assert_eq!(removed.output, Counted::default(), "somebody reads it");
        shop.admin.get(&format!("/tasks/{}/output/", tasks[0])).await.expect_error(410, 10004);
        let mut text = String::new();
        while let Some(frame) = reader.next_frame().await.expect("a frame") {
            text.push_str(&frame.into_text());
        }
        assert_eq!((text.as_str(), reader.final_state()), ("this was 1\n", Some("finished")));
        drop(reader);
        assert_eq!(retention::sweep(server.kernel()).await.expect("a sweep").count, 1);
        assert!(!file(&server, tasks[0]).exists());
    }

    async fn what_a_crash_leaves_between_rows_and_files_goes_next_time(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let tasks = history(&server, &shop, 7).await;
        let foreseen = look(&server, &a_day()).await;
        // The rows are written and no file is touched: as beside a server, and as after a crash.
        let places = Places::beside(server.data_directory());
        let marked = retention::mark(&server.work(), &places, &a_day()).await.expect("marks");
        assert_eq!(marked, foreseen);
        assert_eq!(ids(&server).await, tasks[2..]);
        assert!(tasks.iter().all(|task| file(&server, *task).is_file()));
        shop.admin.get(&format!("/tasks/{}/output/", tasks[6])).await.expect_error(410, 10004);
        let mut left = look(&server, &a_day()).await;
        assert_eq!((left.tasks, left.output, left.artifacts), (0, foreseen.output, foreseen.artifacts));
        let Shop { admin, application, hosts, instances } = shop;
        drop(admin);
        let server = server.restarted().await;
        let shop = Shop { admin: server.admin(), application, hosts, instances };
        left.tasks = 0;
        assert_eq!(retention::round(server.kernel(), &a_day()).await.expect("a round"), left);
        assert!(tasks.iter().all(|task| !file(&server, *task).exists()));

        // What belonged to an application that is gone, too; but nothing of which the database knows nothing at all.
        say(&server, tasks[3], "left over").await;
        say(&server, 999, "of another database").await;
        shop.admin.delete_with(&format!("/applications/{}/instances/", shop.application), json!(shop.instances)).await.expect(200);
        assert_eq!(retention::sweep(server.kernel()).await.expect("a sweep").count, 1);
        assert!(!file(&server, tasks[3]).exists() && file(&server, 999).is_file());
        assert_eq!(artifacts::sweep(server.kernel()).await.expect("a sweep"), Counted::default());
    }

    async fn what_somebody_wants_stays(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let tasks = history(&server, &shop, 11).await;
        // Of the first six none is needed for a revert.
        let [lost, origin, awaited, running, _, newest_of_them, ..] = tasks[..] else { panic!("too few") };
        let made = sql!("UPDATE tasks SET origin = 'retry', origin_task_id = $1 WHERE id = $2");
        server.run(made, args![origin, tasks[10]]).await;
        let deploy_task = shop.started().await;
        let waiting = upgrade(&shop, deploy_task, &shop.instances).await;
        server.run(sql!("UPDATE executions SET state = 'lost' WHERE task_id = $1"), args![lost]).await;
        let goes_after = sql!("INSERT INTO task_requirements (organisation_id, task_id, required_id) VALUES (1, $1, $2)");
        server.run(goes_after, args![waiting, awaited]).await;
        let open = sql!("UPDATE tasks SET phase = 'instances', outcome = NULL WHERE id = $1");
        server.run(open, args![running]).await;
        let removed = retention::round(server.kernel(), &a_day()).await.expect("a round");
        let mut stay = vec![lost, origin, awaited, running];
        stay.extend(&tasks[6..]);
        stay.push(waiting);
        assert_eq!((removed.tasks, ids(&server).await), (2, stay), "without {newest_of_them} and the one before");
        // Nobody knows how it ended, so its output stays as well; and what is not over keeps everything.
        assert!(file(&server, lost).is_file() && file(&server, running).is_file());
        assert!(!file(&server, origin).exists() && !file(&server, awaited).exists());
        // What waits for it is decided after the end.
        let over = sql!("UPDATE tasks SET phase = 'over', outcome = 'finished' WHERE id = $1");
        server.run(over, args![running]).await;
        server.run(sql!("DELETE FROM task_requirements"), args![]).await;
        assert_eq!(retention::round(server.kernel(), &a_day()).await.expect("a round").tasks, 2);
    }

    async fn output_beyond_its_size_goes_the_oldest_first(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let tasks = history(&server, &shop, 4).await;
        for (task, at) in tasks.iter().zip([400_i64, 200, 300, 100]) {
            server.run(sql!("UPDATE tasks SET finished_at = $1 WHERE id = $2"), args![at, *task]).await;
        }
        let bytes = |task: i64| std::fs::metadata(file(&server, task)).expect("a file").len();
        let most = bytes(tasks[0]) + bytes(tasks[2]);
        let retention = Retention { output_bytes: Some(most), ..Retention::for_ever() };
        let foreseen = look(&server, &retention).await;
        assert_eq!(foreseen.output, Counted { count: 2, bytes: bytes(tasks[1]) + bytes(tasks[3]) });
        assert_eq!(retention::round(server.kernel(), &retention).await.expect("a round"), foreseen);
        let there: Vec<bool> = tasks.iter().map(|task| file(&server, *task).is_file()).collect();
        assert_eq!(there, [true, false, true, false]);
    }

    async fn a_deploy_task_goes_after_the_last_of_its_sub_tasks(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let tasks = history(&server, &shop, 7).await;
        let of = sql!("SELECT deploy_task_id FROM tasks WHERE id IN ($1) ORDER BY id");
        let mut stay: Vec<i64> = server.read().await.values(of, args![tasks]).await.expect("the deploy tasks");
        let gone: Vec<i64> = stay.drain(..2).collect();
        // One that was never used goes as well, but none that nobody has started.
        let unused = shop.started().await;
        shop.act(unused, "close").await;
        let approved = shop.task().await;
        shop.act(approved, "approve").await;
        let aged = sql!("UPDATE deploy_tasks SET started_at = 1, closed_at = CASE WHEN closed_at IS NULL THEN NULL ELSE 1 END");
        server.run(aged, args![]).await;
        stay.extend([approved, shop.started().await]);
        let foreseen = look(&server, &a_day()).await;
        assert_eq!((foreseen.tasks, foreseen.deploy_tasks), (2, 3));
        assert_eq!(look(&server, &Retention { tasks_least: 8, ..a_day() }).await.deploy_tasks, 0, "the newest eight stay");
        assert_eq!(retention::round(server.kernel(), &a_day()).await.expect("a round"), foreseen);
        let ids = sql!("SELECT id FROM deploy_tasks ORDER BY id");
        assert_eq!(server.read().await.values::<i64>(ids, args![]).await.expect("the deploy tasks"), stay);
        for id in &gone {
            shop.admin.get(&format!("{PATH}{id}/")).await.expect_error(404, 10004);
            let approval = sql!("SELECT operator FROM audit_entries WHERE object_type = 'deploy_task' AND action = 'approve' AND object_id = $1");
            let approval: Vec<String> = server.read().await.values(approval, args![*id]).await.expect("the audit");
            assert_eq!(approval, ["admin"], "who approved it is still told");
        }
        let said = sql!("SELECT detail FROM audit_entries WHERE object_name = 'retention' AND object_type = 'deploy_task'");
        let said: Vec<String> = server.read().await.values(said, args![]).await.expect("the audit");
        assert_eq!(said, ["3 deploy tasks without sub-tasks, which were closed or started long ago"]);
        assert_eq!(look(&server, &a_day()).await, Removed::default());
    }

    async fn the_audit_stays_unless_a_time_is_set_for_it(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        shop.started().await;
        let all = counts(&server).await[2];
        let old = sql!("UPDATE audit_entries SET created_at = 1 WHERE id <= (SELECT MIN(id) + 2 FROM audit_entries)");
        server.run(old, args![]).await;
        assert_eq!(look(&server, &a_day()).await.audit, 0);
        let year = Retention { audit: Some(Duration::from_hours(365 * 24)), ..Retention::for_ever() };
        let foreseen = look(&server, &year).await;
        assert_eq!(foreseen, Removed { audit: 3, ..Removed::default() });
        assert_eq!(counts(&server).await[2], all, "looking changes nothing");
        assert_eq!(retention::round(server.kernel(), &year).await.expect("a round"), foreseen);
        // That they went is an entry itself.
        assert_eq!(counts(&server).await[2], all - 3 + 1);
        let said = shop.admin.get("/audit/entries/?page_size=1").await.expect(200);
        assert_eq!(said["results"][0]["op_detail"], "3 entries of the audit, which were written long ago", "{said}");
        assert_eq!(look(&server, &year).await, Removed::default());
    }

    async fn a_mirror_goes_with_the_last_that_names_its_repository(server: TestServer) {
        let (first, second) = (Repository::new(), Repository::new());
        let shop = Shop::new(&server, 1).await;
        let choose = async |repository: &Repository| {
            shop.set(json!({"deploy_path": "/srv/shop", "repository": repository.settings()})).await;
            let plan = format!("{}?dry_run=true", upgrades(shop.started().await));
            shop.admin.post(&plan, json!({"instances": references(&shop.instances), "version": "main"})).await.expect(200);
        };
        let mirrors = || {
            let folder = std::fs::read_dir(server.data_directory().join("sources")).expect("the mirrors");
            folder.filter(|item| item.as_ref().expect("an item").path().extension().is_some_and(|ending| ending == "git")).count()
        };
        choose(&first).await;
        assert_eq!((mirrors(), look(&server, &Retention::for_ever()).await.mirrors.count), (1, 0));
        choose(&second).await;
        let foreseen = look(&server, &Retention::for_ever()).await;
        assert_eq!((mirrors(), foreseen.mirrors.count), (2, 1));
        assert!(foreseen.mirrors.bytes > 0);
        // As long as there is a task that was fetched from it, it stays: a revert may want its commit.
        let tasks = history(&server, &shop, 6).await;
        let source = json!({"url": first.settings()["url"], "branch": "main", "version": "1.0", "path": ""});
        server.run(sql!("UPDATE tasks SET source = $1 WHERE id = $2"), args![source, tasks[0]]).await;
        assert_eq!(look(&server, &Retention::for_ever()).await.mirrors, Counted::default());
        assert_eq!(retention::sweep_mirrors(server.kernel()).await.expect("a sweep"), Counted::default());
        let with_it = look(&server, &a_day()).await;
        assert_eq!((with_it.tasks, with_it.mirrors), (1, foreseen.mirrors));
        assert_eq!(retention::round(server.kernel(), &a_day()).await.expect("a round"), with_it);
        assert_eq!(mirrors(), 1);
        choose(&first).await;
        assert_eq!(mirrors(), 2, "whoever wants it later has it again");
    }
}
