//! What makes no sense is refused by its field, and who may not see or do something is told so.

use drover_kernel::{args, sql};
use drover_tests::both_engines;
use serde_json::{Value, json};

use super::{PATH, body, schedule, shop};
use crate::deploys::grant;

both_engines! {
    async fn wrong_input_is_named_and_stores_nothing(server: TestServer) {
        let shop = shop(&server, 1).await;
        let application = shop.application;
        let what = |more: Value| {
            let mut what = json!({"kind": "restart", "application_id": application});
            what.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            json!({"what": what})
        };
        for (more, field) in [
            (json!({"name": ""}), "name"),
            (json!({"name": "a\nb"}), "name"),
            (json!({"cron": "* * * *"}), "cron"),
            (json!({"cron": "61 * * * *"}), "cron"),
            (json!({"cron": "0 0 31 2 *"}), "cron"),
            (json!({"zone": "Mars/Olympus"}), "zone"),
            (json!({"missed": "never"}), "missed"),
            (json!({"missed_max": 0}), "missed_max"),
            (json!({"missed_max": 101}), "missed_max"),
            (json!({"overlap": "fight"}), "overlap"),
            (json!({"jitter": -1}), "jitter"),
            (json!({"jitter": 600}), "jitter"),
            (json!({"jitter": 100_000}), "jitter"),
            (json!({"what": {"kind": "dance"}}), "what.kind"),
            (json!({"what": {"kind": "restart"}}), "what.application_id"),
            (json!({"what": {"kind": "deploy"}}), "what.deploy_task_id"),
            (json!({"what": {"kind": "deploy", "deploy_task_id": 1, "timeout": 3}}), "what.timeout"),
            (json!({"what": {"kind": "deploy", "deploy_task_id": 1, "script": "x"}}), "what.script"),
            (json!({"if_busy": "x"}), "if_busy"),
            (what(json!({"deploy_task_id": 1})), "what.deploy_task_id"),
            (what(json!({"label": "web"})), "what.label"),
            (what(json!({"application_id": "shop"})), "what.application_id"),
            (what(json!({"instances": []})), "what.instances"),
            (what(json!({"instances": [999_999]})), "what.instances"),
            (what(json!({"timeout": 0})), "what.timeout"),
            (what(json!({"rollout": {"batch": "0%"}})), "what.rollout.batch"),
            (what(json!({"rollout": {"auto_revert": true}})), "what.rollout.auto_revert"),
            (what(json!({"rollout": {"after_tasks": [1]}})), "what.rollout"),
        ] {
            let refused = shop.admin.post(PATH, body(&shop, more.clone())).await.expect(400);
            assert_eq!(refused["field"], field, "{more} {refused}");
        }
        for missing in ["name", "what", "cron"] {
            let mut body = body(&shop, json!({}));
            body.as_object_mut().expect("an object").remove(missing);
            assert_eq!(shop.admin.post(PATH, body).await.expect(400)["field"], missing);
        }
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM schedules"), args![]).await, 0);
        schedule(&server, &shop, json!({})).await;
        shop.admin.post(PATH, body(&shop, json!({}))).await.expect_error(409, 10006);
    }

    async fn the_next_moments_are_shown_on_the_clock_of_the_zone(server: TestServer) {
        let shop = shop(&server, 1).await;
        let more = json!({"cron": "30 2 * * *", "zone": "Europe/Berlin", "jitter": 60});
        let id = schedule(&server, &shop, more).await;
        let told = shop.admin.get(&format!("{PATH}{id}/")).await.expect(200);
        assert_eq!(told["next"][0], "2024-05-02T02:30:00+02:00");
        assert_eq!(told["next"].as_array().map(Vec::len), Some(5));
        let next = shop.admin.get(&format!("{PATH}{id}/next/?count=100")).await.expect(200);
        assert_eq!(next["next"].as_array().map(Vec::len), Some(100));
        assert_eq!(shop.admin.get(&format!("{PATH}{id}/next/?count=101")).await.expect(400)["field"], "count");
        // Before there is a schedule; in autumn the first of the two.
        let preview = format!("{PATH}actions/preview/");
        let imagined = json!({"cron": "30 2 27 10 *", "zone": "Europe/Berlin", "count": 2});
        let next = shop.admin.post(&preview, imagined).await.expect(200);
        assert_eq!(next["next"], json!(["2024-10-27T02:30:00+02:00", "2025-10-27T02:30:00+01:00"]));
        assert_eq!(shop.admin.post(&preview, json!({"cron": "x"})).await.expect(400)["field"], "cron");
        let changed = json!({"zone": "Asia/Kolkata", "cron": "@daily"});
        let told = shop.admin.patch(&format!("{PATH}{id}/"), changed).await.expect(200);
        assert_eq!((&told["next"][0], &told["jitter"]), (&json!("2024-05-02T00:00:00+05:30"), &json!(60)));
    }

    async fn only_who_may_do_it_by_hand_may_schedule_it(server: TestServer) {
        let shop = shop(&server, 1).await;
        let id = schedule(&server, &shop, json!({})).await;
        let one = format!("{PATH}{id}/");
        let ada = server.user("ada").await;
        ada.post(PATH, body(&shop, json!({"name": "hers"}))).await.expect(404);
        ada.get(&one).await.expect(404);
        assert_eq!(ada.get(PATH).await.expect(200)["count"], 0);
        grant(&server, ada.id, shop.application, &["view_app"]).await;
        assert_eq!(ada.get(&one).await.expect(200)["name"], "nightly");
        assert_eq!(ada.get(PATH).await.expect(200)["count"], 1);
        ada.get(&format!("{one}runs/")).await.expect(200);
        ada.post(PATH, body(&shop, json!({"name": "hers"}))).await.expect(403);
        ada.patch(&one, json!({"jitter": 1})).await.expect(403);
        ada.delete(&one).await.expect(403);
        for action in ["pause", "resume", "run"] {
            ada.post(&format!("{one}actions/{action}/"), json!({})).await.expect(403);
        }
        grant(&server, ada.id, shop.application, &["view_app", "restart_app"]).await;
        ada.post(&format!("{one}actions/pause/"), json!({})).await.expect(200);
        assert_eq!(shop.admin.get("/schedules/?paused=true&name=NIGHT").await.expect(200)["count"], 1);
        assert_eq!(shop.admin.get("/schedules/?paused=false").await.expect(200)["count"], 0);
        assert_eq!(shop.admin.get(&format!("{one}runs/?state=x")).await.expect(400)["field"], "state");
    }
}
