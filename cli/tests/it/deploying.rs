//! `deploy`, `revert` and `task`: what they ask the server for, and how they end.

use serde_json::{Value, json};

use crate::Person;
use crate::server::{Server, Step, page};

/// Output of two hosts that goes well.
fn good_output() -> Vec<Step> {
    vec![
        Step::Send(vec![
            json!({ "offset": 0, "next": 0, "host": "web-1", "event": { "step": "fetch", "state": "running" } }),
            json!({ "offset": 0, "next": 6, "host": "web-1", "stream": "stdout", "text": "hello " }),
            json!({ "offset": 6, "next": 12, "host": "web-2", "stream": "stdout", "text": "other\n" }),
        ]),
        Step::Send(vec![json!({ "offset": 12, "next": 18, "host": "web-1", "stream": "stdout", "text": "world\n" })]),
        Step::Close(1000, "finished"),
    ]
}

#[test]
fn a_deploy_makes_approves_starts_rolls_out_and_follows() {
    let server = Server::start();
    server.with_shop("finished").channel(good_output());
    let ended = Person::at(&server).run("deploy shop --version v1 --source app --level a --timeout 30");
    assert_eq!((ended.code, ended.output.as_str()), (0, "web-2 | other\nweb-1 | hello world\n"), "{ended:?}");
    assert!(ended.errors.contains("upgrade to version v1 on 2 hosts: finished"), "{}", ended.errors);

    let changes: Vec<String> = server.lines("POST");
    let path = "POST /api/v1/applications/deploy-tasks/";
    assert_eq!(
        changes,
        [
            path.to_owned(),
            format!("{path}7/actions/approve/"),
            format!("{path}7/actions/start/"),
            format!("{path}7/sub-upgrade-tasks/")
        ]
    );
    let task = &server.asked().iter().find(|asked| asked.line == path).unwrap().body.clone();
    assert_eq!(task["application_id"], 4);
    assert_eq!(task["version"], "v1");
    assert_eq!(task["package_source"], "app");
    assert_eq!(task["level"], "A");
    assert!(task["planned_exec_time"].as_u64().is_some_and(|time| time > 1_500_000_000));
    let sub_task = server.body("POST /api/v1/applications/deploy-tasks/7/sub-upgrade-tasks/");
    assert_eq!(
        sub_task,
        json!({ "instances": [{ "id": 11 }, { "id": 12 }], "version": "v1", "update_source": "app", "timeout": 30 })
    );
    assert!(server.asked().iter().all(|asked| asked.authorization == "Token t0ken"));
}

#[test]
fn programs_get_json_lines_and_nothing_else() {
    let server = Server::start();
    server.with_shop("finished").channel(good_output());
    let lines = Person::at(&server).run("deploy 4 --version v1 --json").json();
    let kinds: Vec<&Value> = lines.iter().map(|line| &line["type"]).collect();
    assert_eq!(kinds, ["record", "record", "record", "record", "result"]);
    assert_eq!(lines[1]["text"], "hello ");
    assert_eq!(lines[4]["status"], "finished");
    assert_eq!(lines[4]["instances"][1]["hostname"], "web-2");
}

#[test]
fn a_failure_is_an_exit_code_and_names_the_hosts() {
    let server = Server::start();
    server.with_shop("failed").channel(vec![Step::Close(1000, "failed")]);
    let person = Person::at(&server);
    let ended = person.run("deploy shop --version v1");
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.errors.contains("web-2: failed: post_exec: exit code 3"), "{}", ended.errors);
    assert!(ended.errors.contains("failed on 1 of 2 (web-2)"), "{}", ended.errors);

    server.channel(vec![Step::Close(1000, "failed")]);
    let ended = person.run("--json deploy shop --version v1");
    let lines = ended.json();
    assert_eq!((ended.code, &lines[0]["status"], &lines[1]["error"]["exit_code"]), (1, &json!("failed"), &json!(1)));
}

#[test]
fn hosts_are_picked() {
    let server = Server::start();
    server.with_shop("finished").channel(good_output());
    let person = Person::at(&server);
    assert_eq!(person.run("deploy shop --version v1 --hosts web-2").code, 0);
    let sub_task = server.body("POST /api/v1/applications/deploy-tasks/7/sub-upgrade-tasks/");
    assert_eq!(sub_task["instances"], json!([{ "id": 12 }]));

    let asked = server.lines("POST").len();
    let ended = person.run("deploy shop --version v1 --hosts web-2,web-9");
    assert_eq!(ended.code, 2);
    assert!(ended.errors.contains("shop is not on web-9"), "{}", ended.errors);
    assert_eq!(server.lines("POST").len(), asked, "nothing was changed");
}

#[test]
fn a_deploy_stops_where_it_is_told_to() {
    let server = Server::start();
    server.with_shop("finished");
    let person = Person::at(&server);
    let ended = person.run("deploy shop --version v1 --no-approve");
    assert_eq!((ended.code, ended.output.as_str()), (0, "7\n"));
    assert_eq!(server.lines("POST").len(), 1);

    let ended = person.run("deploy shop --version v1 --no-start --json");
    assert_eq!(ended.json(), [json!({ "deploy_task_id": 7, "status": "approved" })]);

    let ended = person.run("deploy shop --version v1 --no-follow --json");
    assert_eq!(ended.json()[0]["task_id"], "34");
    assert!(server.lines("GET /api/v1/channel").is_empty());
}

#[test]
fn a_task_is_gone_on_with() {
    let server = Server::start();
    server.with_shop("finished").channel(good_output());
    let ended = Person::at(&server).run("deploy --task 7");
    assert_eq!(ended.code, 0, "{ended:?}");
    let changes = server.lines("POST");
    assert!(changes[0].ends_with("7/actions/start/") && changes[1].ends_with("7/sub-upgrade-tasks/"), "{changes:?}");
    let sub_task = server.body("POST /api/v1/applications/deploy-tasks/7/sub-upgrade-tasks/");
    assert_eq!((&sub_task["version"], &sub_task["update_source"]), (&json!("v1"), &json!("app")));
}

#[test]
fn whoever_may_not_approve_hears_how_to_go_on() {
    let server = Server::start();
    let forbidden = json!({ "error_code": 10003, "message": "four eyes", "request_id": "r9" });
    server.on("POST /applications/deploy-tasks/7/actions/approve/", 403, forbidden).with_shop("finished");
    let ended = Person::at(&server).run("deploy shop --version v1");
    assert_eq!(ended.code, 3);
    assert!(ended.errors.contains("four eyes (request r9); task 7 waits for review"), "{}", ended.errors);
    assert!(ended.errors.contains("drover deploy --task 7"), "{}", ended.errors);
}

#[test]
fn what_the_server_refuses_later_names_the_task_that_was_made() {
    for (action, state) in [
        ("actions/approve/", "waits for review"),
        ("actions/start/", "is approved"),
        ("sub-upgrade-tasks/", "is started"),
    ] {
        let server = Server::start();
        let refused = json!({ "error_code": 10006, "message": "not by you", "request_id": "r9" });
        let line = format!("POST /applications/deploy-tasks/7/{action}");
        server.on(&line, 409, refused.clone()).on(&line, 409, refused).with_shop("finished");
        let person = Person::at(&server);
        let ended = person.run("deploy shop --version v1");
        assert_eq!(ended.code, 2);
        assert!(ended.errors.contains(&format!("; task 7 {state}: go on later with")), "{}", ended.errors);
        let told = person.run("deploy shop --version v1 --json").json();
        assert!(told[0]["error"]["message"].as_str().is_some_and(|message| message.contains("task 7")), "{told:?}");
    }
}

#[test]
fn a_task_is_approved_by_the_short_command_too() {
    let server = Server::start();
    server.with_shop("finished");
    let ended = Person::at(&server).run("approve 7 --plan abc --json");
    assert_eq!(ended.json(), [json!({ "deploy_task_id": 7, "status": "approved" })]);
    assert_eq!(
        server.body("POST /api/v1/applications/deploy-tasks/7/actions/approve/"),
        json!({ "plan_digest": "abc" })
    );
}

#[test]
fn a_revert_uses_the_running_task_or_makes_one() {
    let server = Server::start();
    server.on("GET /applications/deploy-tasks/", 200, page(json!([{ "id": 7 }])));
    server.on("GET /applications/deploy-tasks/", 200, page(json!([])));
    server.with_shop("finished").channel(good_output()).channel(good_output());
    let person = Person::at(&server);
    assert_eq!(person.run("revert shop --version v0").code, 0);
    assert_eq!(server.lines("POST"), ["POST /api/v1/applications/deploy-tasks/7/sub-revert-tasks/"]);
    let body = server.body("POST /api/v1/applications/deploy-tasks/7/sub-revert-tasks/");
    assert_eq!(body, json!({ "instances": [{ "id": 11 }, { "id": 12 }], "version": "v0" }));
    let found = server.lines("GET /api/v1/applications/deploy-tasks/?");
    assert!(found[0].contains("application_id=4") && found[0].contains("status=running"), "{found:?}");

    assert_eq!(person.run("revert shop --version v0").code, 0);
    assert_eq!(server.lines("POST").len(), 5);
}

#[test]
fn tasks_are_shown_and_acted_on() {
    let server = Server::start();
    let list = json!([{ "id": 7, "application": { "full_name": "shop" }, "version": "v1", "status": "running" }]);
    server.on("GET /applications/deploy-tasks/", 200, page(list)).with_shop("finished");
    server.on("POST /applications/deploy-tasks/7/actions/close/", 200, json!({ "message": "success" }));
    let person = Person::at(&server);
    let shown = person.run("task show 7").output;
    assert!(shown.contains("version      v1") && shown.contains("web-2 succeeded"), "{shown}");
    assert_eq!(person.run("task show 7 --json").json()[0]["id"], 7);
    let listed = person.run("task list --status running").output;
    assert_eq!(listed.lines().nth(1).map(|line| line.split_whitespace().count()), Some(4), "{listed}");
    assert_eq!(person.run("task close 7").code, 0);
    assert_eq!(server.lines("POST").len(), 1);
}

#[test]
fn a_rollout_is_asked_for_as_it_was_said() {
    let server = Server::start();
    server.with_shop("finished").channel(vec![Step::Close(1000, "finished")]);
    let ended = Person::at(&server).run(
        "deploy shop --version v1 --canary 1 --batch 25% --max-failures any --auto-revert --health-tcp localhost:80",
    );
    assert_eq!(ended.code, 0, "{}", ended.errors);
    let body = server.body("POST /api/v1/applications/deploy-tasks/7/sub-upgrade-tasks/");
    let expected = json!({
        "canary": "1", "batch": "25%", "max_failures": null, "auto_revert": true, "health": {"tcp": "localhost:80"},
    });
    assert_eq!(body["rollout"], expected);
}

#[test]
fn a_person_acts_on_the_newest_sub_task() {
    let server = Server::start();
    let at = |action: &str| format!("POST /applications/deploy-tasks/7/sub-upgrade-tasks/34/actions/{action}/");
    let success = json!({ "message": "success" });
    server.with_shop("running");
    for action in ["pause", "resume", "proceed", "promote", "refuse", "cancel", "skip"] {
        server.on(&at(action), 200, success.clone());
    }
    assert_eq!(Person::at(&server).run("pause 7 --reason lunch").code, 0);
    assert_eq!(
        server.body("POST /api/v1/applications/deploy-tasks/7/sub-upgrade-tasks/34/actions/pause/")["reason"],
        "lunch"
    );
    for action in ["resume", "proceed", "promote", "refuse", "cancel"] {
        let ended = Person::at(&server).run(&format!("{action} 7/34 --reason because"));
        assert_eq!((ended.code, ended.output), (0, format!("7/34: {action}\n")), "{}", ended.errors);
        let asked =
            server.body(&format!("POST /api/v1/applications/deploy-tasks/7/sub-upgrade-tasks/34/actions/{action}/"));
        assert_eq!(asked, json!({"reason": "because"}));
    }
    assert_eq!(Person::at(&server).run("skip 7 --hosts web-2").code, 0);
    let body = server.body("POST /api/v1/applications/deploy-tasks/7/sub-upgrade-tasks/34/actions/skip/");
    assert_eq!(body["instances"], json!([{"id": 12}]));
    let strange = Person::at(&server).run("skip 7 --hosts web-9");
    assert!(strange.code == 2 && strange.errors.contains("it is for web-1, web-2"), "{}", strange.errors);
    assert_eq!(Person::at(&server).run("pause 7/35").code, 4);
}

#[test]
fn what_failed_is_tried_again_and_followed() {
    let path = "POST /applications/deploy-tasks/7/sub-upgrade-tasks/34/actions/retry/";
    let asked = "POST /api/v1/applications/deploy-tasks/7/sub-upgrade-tasks/34/actions/retry/";
    let receipt = json!({"task_id": "34", "task_output": "/ws/x"});
    for (status, code) in [("finished", 0), ("failed", 1)] {
        let server = Server::start();
        server.with_shop(status).on(path, 200, receipt.clone()).channel(vec![Step::Close(1000, status)]);
        let ended = Person::at(&server).run("retry 7 --reason again");
        assert_eq!(ended.code, code, "{ended:?}");
        assert_eq!(server.body(asked), json!({"reason": "again", "from_failed_step": true}));
    }
    let server = Server::start();
    server.with_shop("failed").on(path, 200, receipt);
    let ended = Person::at(&server).run("retry 7/34 --hosts web-2 --from-the-beginning --batch 1 --no-follow");
    assert_eq!((ended.code, ended.output.as_str()), (0, "7/34\n"), "{ended:?}");
    let body = server.body(asked);
    assert_eq!((&body["instances"], &body["from_failed_step"]), (&json!([{"id": 12}]), &json!(false)));
    assert_eq!(body["rollout"], json!({"batch": "1"}));
}

#[test]
fn a_plan_with_changes_has_an_exit_code_of_its_own() {
    let server = Server::start();
    let change = json!({ "step": "pre_exec", "kind": "changed", "hostnames": ["web-1"], "diff": "-old\n+new\n" });
    let plan = |changes: Value| {
        json!({ "digest": "abc", "version": "v1", "commit": "123", "batches": [["web-1"], ["web-2"]],
                "changes": changes, "truncated": false })
    };
    let line = "POST /applications/deploy-tasks/7/sub-upgrade-tasks/?dry_run=true";
    server.on(line.split('?').next().unwrap(), 200, plan(json!([change]))).with_shop("finished");
    let ended = Person::at(&server).run("plan 7 --batch 1");
    assert_eq!(ended.code, 2, "{}", ended.errors);
    for part in ["version v1, commit 123", "batch 2: web-2", "pre_exec changed on web-1", "+new", "plan abc"] {
        assert!(ended.output.contains(part), "{part}: {}", ended.output);
    }
    assert_eq!(
        server.body("POST /api/v1/applications/deploy-tasks/7/sub-upgrade-tasks/")["rollout"],
        json!({"batch": "1"})
    );
    assert_eq!(server.lines("POST /api/v1/applications/deploy-tasks/7/sub-upgrade-tasks/?dry_run=true").len(), 1);
}

#[test]
fn a_plan_is_one_object_for_programs_and_shows_the_way_back() {
    let server = Server::start();
    let step = json!({ "name": "pre_exec", "script": "d1" });
    let target = |host: &str| json!({ "hostname": host, "steps": [step] });
    let plan = |changes: Value, truncated: bool| {
        json!({ "digest": "abc", "version": "v1", "batches": [["web-1", "web-2"]], "changes": changes,
                "way_back": [target("web-1"), target("web-2")], "scripts": { "d1": { "content": "echo back\n" } },
                "truncated": truncated })
    };
    let change = json!([{ "step": "fetch", "kind": "changed", "hostnames": ["web-1"], "diff": "" }]);
    let line = "POST /applications/deploy-tasks/7/sub-upgrade-tasks/";
    server.on(line, 200, plan(change, false)).on(line, 200, plan(json!([]), true)).on(
        line,
        200,
        plan(json!([]), false),
    );
    server.with_shop("finished");
    let person = Person::at(&server);
    let ended = person.run("plan 7 --json");
    assert_eq!((ended.code, ended.json().len()), (2, 1), "{ended:?}");
    assert_eq!(person.run("plan 7").code, 2, "what was left out may be a difference");
}

#[test]
fn a_plan_shows_people_what_runs_when_it_is_stopped() {
    let server = Server::start();
    let target = |host: &str| json!({ "hostname": host, "steps": [{ "name": "pre_exec", "script": "d1" }] });
    let plan = json!({ "digest": "abc", "version": "v1", "batches": [["web-1", "web-2"]], "changes": [], "truncated": false,
        "way_back": [target("web-1"), target("web-2")], "scripts": { "d1": { "content": "echo back\n" } } });
    server.on("POST /applications/deploy-tasks/7/sub-upgrade-tasks/", 200, plan).with_shop("finished");
    let ended = Person::at(&server).run("plan 7 --auto-revert");
    assert_eq!(ended.code, 0, "{}", ended.errors);
    let back = "if it is stopped: web-1, web-2 go back\n\npre_exec on the way back, on web-1, web-2\necho back\n";
    assert!(ended.output.contains(back), "{}", ended.output);
}

#[test]
fn releases_that_differ_are_one_object_for_programs() {
    let server = Server::start();
    let release = json!({ "name": "v1-a", "current": true, "drift": { "count": 1, "changed": [] } });
    let answer = |host: &str, complete: bool| json!({ "hostname": host, "complete": complete, "reason": "no time", "releases": [release] });
    for instance in [11, 12] {
        let path = format!("GET /applications/4/instances/{instance}/releases/");
        server.on(&path, 200, answer("web-1", true)).on(&path, 200, answer("web-1", false));
    }
    server.with_shop("finished");
    let person = Person::at(&server);
    for code in [2, 1] {
        let ended = person.run("release drift shop --json");
        assert_eq!((ended.code, ended.json().len()), (code, 1), "{ended:?}");
    }
}
