//! Instances: coming, going, and the changes that other areas make.

use drover_inventory::instances::rules::InstanceStatus;
use drover_inventory::instances::store::{begin_change, finish_change, load_many};
use drover_kernel::{Audit, DEFAULT_ORGANISATION, Error, Tx, args, sql};
use drover_tests::{TestServer, both_engines};
use serde_json::json;

use super::{application, audited, grant, host, ids, instance, refused};

async fn begin(server: &TestServer) -> Tx {
    server.work().begin(DEFAULT_ORGANISATION).await.expect("a transaction")
}

async fn finish(tx: Tx) {
    tx.finish(Audit::none("a test prepares something")).await.expect("the commit");
}

both_engines! {
    async fn instances_come_and_go(server: TestServer) {
        let admin = server.admin();
        let (shop, web1, web2) = (application(&admin, "shop", None).await, host(&admin, "web1").await, host(&admin, "web2").await);
        let path = format!("/applications/{shop}/instances/");
        let added = admin.post(&path, json!([{"hostid": web1, "hostname": "web1"}, {"host_id": format!("{web2}")}])).await.expect(200);
        let first = &added[0];
        assert_eq!((&first["hostid"], &first["hostname"], &first["status"], &first["version"]), (&json!(web1), &json!("web1"), &json!("stopped"), &json!(null)));
        assert_eq!(admin.get(&path).await.expect(200)["results"], added);
        assert_eq!(&admin.get(&format!("{path}{}/", ids(&added)[0])).await.expect(200), first);
        assert_eq!(admin.get(&format!("/hosts/{web1}/")).await.expect(200)["status"], "attached");
        // Here `page_number` beside `page` is the size.
        assert_eq!(ids(&admin.get(&format!("{path}?page=2&page_number=1")).await.expect(200)), ids(&added)[1..]);
        assert_eq!(audited(&server, "application", "attach_host").await.len(), 2);
        assert!(audited(&server, "host", "attach_app").await[0].starts_with("shop on web1"));

        let mail = application(&admin, "mail", None).await;
        instance(&admin, mail, web1).await;
        admin.delete(&format!("{path}?id={}&id={}", ids(&added)[0], ids(&added)[1])).await.expect(200);
        assert_eq!(admin.get(&path).await.expect(200)["count"], 0);
        assert_eq!(admin.get(&format!("/hosts/{web1}/")).await.expect(200)["status"], "attached", "another stays");
        assert_eq!(admin.get(&format!("/hosts/{web2}/")).await.expect(200)["status"], "inited");
        assert_eq!(audited(&server, "application", "deatach_host").await.len(), 2);
        assert_eq!(audited(&server, "host", "deatach_app").await.len(), 2);
    }

    async fn bad_instances_are_refused_as_a_whole(server: TestServer) {
        let admin = server.admin();
        let (shop, mail) = (application(&admin, "shop", None).await, application(&admin, "mail", None).await);
        let (web1, web2) = (host(&admin, "web1").await, host(&admin, "web2").await);
        let off = admin.post("/hosts/", json!({"name": "off", "host_type": "PHY_HOST", "status": "offline"})).await.expect(200)["id"].clone();
        let path = format!("/applications/{shop}/instances/");
        let (own, foreign) = (instance(&admin, shop, web1).await, instance(&admin, mail, web1).await);
        for (method, body, field) in [
            ("POST", json!([]), "hostid"),
            ("POST", json!([{}]), "[0].hostid"),
            ("POST", json!([{"hostid": "x"}]), "[0].hostid"),
            ("POST", json!([{"hostid": web2}, {"hostid": 999}]), "[1].hostid"),
            ("POST", json!([{"hostid": web2}, {"hostid": web2}]), "[1].hostid"),
            ("POST", json!([{"hostid": web2, "hostname": "web1"}]), "[0].hostname"),
            ("DELETE", json!(null), "id"),
            ("DELETE", json!([{"id": own}, {"id": foreign}]), "id"),
            ("DELETE", json!([{"id": own}, {"id": 999}]), "id"),
            ("DELETE", json!({"id": true}), "body"),
        ] {
            refused(&admin, method, &path, body, field).await;
        }
        admin.post(&path, json!([{"hostid": web2}, {"hostid": web1}])).await.expect_error(409, 10006);
        let error = admin.post(&path, json!([{"hostid": web2}, {"hostid": off}])).await.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("off")), "{error}");
        assert_eq!(ids(&admin.get(&path).await.expect(200)), [own]);
        assert_eq!(admin.get(&format!("/hosts/{web2}/")).await.expect(200)["status"], "raw");
        admin.get(&format!("{path}{foreign}/")).await.expect_error(404, 10004);
        admin.get("/applications/999/instances/").await.expect_error(404, 10004);
    }

    async fn hosts_one_may_not_see_carry_nothing(server: TestServer) {
        let admin = server.admin();
        let user = server.user("ann").await;
        let (shop, web) = (application(&admin, "shop", None).await, host(&admin, "web1").await);
        let path = format!("/applications/{shop}/instances/");
        grant(&server, user.id, "application", shop, json!({"view_app": true})).await;
        user.post(&path, json!([{"hostid": web}])).await.expect_error(403, 10003);
        grant(&server, user.id, "application", shop, json!({"edit_app": true})).await;
        refused(&user, "POST", &path, json!([{"hostid": web}]), "[0].hostid").await;
        grant(&server, user.id, "host", web, json!({"view_host": true})).await;
        let added = user.post(&path, json!([{"hostid": web}])).await.expect(200);
        user.delete_with(&path, json!([{"id": ids(&added)[0]}])).await.expect(200);
    }

    async fn one_change_at_a_time(server: TestServer) {
        let admin = server.admin();
        let (shop, web1, web2) = (application(&admin, "shop", None).await, host(&admin, "web1").await, host(&admin, "web2").await);
        let (first, second) = (instance(&admin, shop, web1).await, instance(&admin, shop, web2).await);
        let path = format!("/applications/{shop}/instances/");
        let mut tx = begin(&server).await;
        begin_change(&mut tx, &[first], InstanceStatus::Updating).await.expect("at rest");
        finish(tx).await;

        let mut tx = begin(&server).await;
        let busy = begin_change(&mut tx, &[second, first], InstanceStatus::Reverting).await;
        assert!(matches!(&busy, Err(Error::Conflict(text)) if text.contains("web1") && !text.contains("web2")), "{busy:?}");
        drop(tx);
        let mut tx = begin(&server).await;
        assert!(matches!(begin_change(&mut tx, &[second, 999], InstanceStatus::Updating).await, Err(Error::Conflict(_))));
        drop(tx);
        let error = admin.delete_with(&path, json!([{"id": second}, {"id": first}])).await.expect_error(409, 10006);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("web1")), "{error}");

        let mut tx = begin(&server).await;
        assert!(finish_change(&mut tx, first, InstanceStatus::Running, Some("1.0")).await.expect("the database"));
        assert!(!finish_change(&mut tx, first, InstanceStatus::Running, None).await.expect("the database"));
        finish(tx).await;
        let mut tx = begin(&server).await;
        begin_change(&mut tx, &[first], InstanceStatus::Restarting).await.expect("at rest");
        assert!(finish_change(&mut tx, first, InstanceStatus::Stopped, None).await.expect("the database"));
        finish(tx).await;
        let rows = load_many(&mut server.read().await, shop, &[first, second, 999]).await.expect("instances");
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].status, rows[0].version.as_deref()), (InstanceStatus::Stopped, Some("1.0")));
        assert_eq!(rows[1].status, InstanceStatus::Stopped, "a refused change leaves all as they were");
        admin.delete_with(&path, json!([first, second])).await.expect(200);
        assert_eq!(server.count(sql!("SELECT COUNT(*) FROM instances"), args![]).await, 0);
    }

    async fn a_host_is_attached_while_one_comes_and_another_goes(server: TestServer) {
        let admin = server.admin();
        let (shop, mail) = (application(&admin, "shop", None).await, application(&admin, "mail", None).await);
        let web = host(&admin, "web1").await;
        let (shop_path, mail_path) = (format!("/applications/{shop}/instances/"), format!("/applications/{mail}/instances/"));
        for _ in 0..10 {
            let going = instance(&admin, shop, web).await;
            let (gone, come) = tokio::join!(
                admin.delete_with(&shop_path, json!([going])),
                admin.post(&mail_path, json!([{"hostid": web}])),
            );
            gone.expect(200);
            let coming = ids(&come.expect(200));
            assert_eq!(admin.get(&format!("/hosts/{web}/")).await.expect(200)["status"], "attached");
            admin.delete_with(&mail_path, json!(coming)).await.expect(200);
            assert_eq!(admin.get(&format!("/hosts/{web}/")).await.expect(200)["status"], "inited");
        }
    }
}
