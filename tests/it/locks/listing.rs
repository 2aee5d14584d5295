//! Lists of locks and of the queue.

use drover_tests::both_engines;
use serde_json::{Value, json};

use super::{is_queued, waiting};
use crate::deploys::{Shop, grant};
use crate::tasks::upgrade;

both_engines! {
    async fn both_lists_say_who_and_what_and_why(server: TestServer) {
        let shop = Shop::new(&server, 3).await;
        let deploy_task = shop.started().await;
        let holder = upgrade(&shop, deploy_task, &shop.instances[..2]).await;
        let first = waiting(&shop, deploy_task, &shop.instances[1..], 7).await;
        let second = waiting(&shop, deploy_task, &shop.instances[2..], 0).await;
        assert!(is_queued(&shop, deploy_task, second).await);

        let queue = shop.admin.get("/queue/").await.expect(200);
        assert_eq!(queue["count"], 2);
        let (one, two) = (&queue["results"][0], &queue["results"][1]);
        assert_eq!((&one["position"], &one["task_id"], &one["priority"]), (&json!(1), &json!(first.to_string()), &json!(7)));
        assert_eq!((&one["application"], &one["kind"], &one["creator"]), (&json!("shop"), &json!("upgrade"), &json!("admin")));
        assert_eq!(one["waits_for_count"], 1);
        assert_eq!(one["waits_for"], json!([{"kind": "instance", "id": shop.instances[1], "hostname": "web-2",
            "why": "taken", "task_id": holder.to_string()}]));
        assert_eq!(two["waits_for"], json!([{"kind": "instance", "id": shop.instances[2], "hostname": "web-3",
            "why": "wanted", "task_id": first.to_string()}]));
        assert_eq!((&two["position"], &two["goes_after_others"], &two["held_by"]), (&json!(2), &json!(false), &Value::Null));

        let locks = shop.admin.get("/locks/?page_size=1&page=2").await.expect(200);
        assert_eq!((&locks["count"], &locks["next"]), (&json!(2), &Value::Null));
        let lock = &locks["results"][0];
        assert_eq!((&lock["kind"], &lock["id"], &lock["hostname"]), (&json!("instance"), &json!(shop.instances[1]), &json!("web-2")));
        assert_eq!((&lock["task_id"], &lock["status"]), (&json!(holder.to_string()), &json!("queued")));
        assert_eq!((&lock["waiting_count"], &lock["waiting"]), (&json!(1), &json!([first.to_string()])));
        assert_eq!((&lock["connected"], &lock["task_kind"]), (&json!(false), &json!("upgrade")));
        assert!(lock["since_time"].is_string());
        for (filter, count) in [("wanted=true", 1), ("wanted=false", 1), ("task_id=4711", 0)] {
            let locks = shop.admin.get(&format!("/locks/?{filter}")).await.expect(200);
            assert_eq!(locks["count"], count, "{filter}");
        }
        let queue = shop.admin.get(&format!("/queue/?task_id={second}")).await.expect(200);
        assert_eq!((&queue["count"], &queue["results"][0]["position"]), (&json!(1), &json!(2)));
    }

    async fn nobody_sees_what_they_may_not(server: TestServer) {
        let shop = Shop::new(&server, 1).await;
        let deploy_task = shop.started().await;
        upgrade(&shop, deploy_task, &shop.instances).await;
        waiting(&shop, deploy_task, &shop.instances, 0).await;
        let user = server.user("ann").await;
        for (rights, count) in [(false, 0), (true, 1)] {
            if rights {
                grant(&server, user.id, shop.application, &["view_app"]).await;
            }
            for list in ["/queue/", "/locks/"] {
                assert_eq!(user.get(list).await.expect(200)["count"], count, "{list}");
            }
        }
        for (path, field) in [("/queue/?task_id=x", "task_id"), ("/locks/?wanted=perhaps", "wanted"), ("/locks/?page=0", "page")] {
            assert_eq!(shop.admin.get(path).await.expect(400)["field"], field, "{path}");
        }
    }
}
