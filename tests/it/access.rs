//! Every route, called by those who may not: the route table itself is the list, so no route can be forgotten.

use std::collections::BTreeMap;

use axum::http::Method;
use drover_kernel::call::Need;
use drover_kernel::db::Sql;
use drover_kernel::routes::Route;
use drover_kernel::{args, sql};
use drover_tests::{Client, TestServer, both_engines};
use serde_json::{Value, json};

/// One object of each kind, of the first organisation.
struct Objects {
    /// By the part of the path that stands before the id, and by the id's name where that is another than `id`.
    ids: BTreeMap<&'static str, String>,
    application_id: i64,
    host_id: i64,
}

fn id(object: &Value) -> i64 {
    object["id"].as_i64().unwrap_or_else(|| panic!("no id in {object}"))
}

async fn objects(server: &TestServer) -> Objects {
    let admin = server.admin();
    let application_id = id(&admin
        .post("/applications/", json!({"name": "classified", "stdout_path": "/var/log/out.log"}))
        .await
        .expect(200));
    let host_id = id(&admin.post("/hosts/", json!({"name": "vault", "host_type": "PHY_HOST"})).await.expect(200));
    let instances = admin
        .post(&format!("/applications/{application_id}/instances/"), json!([{"hostid": host_id}]))
        .await
        .expect(200);
    let instance_id = id(&instances[0]);
    let settings = format!("/applications/{application_id}/deploy-settings/");
    admin.patch(&settings, json!({"enabled": true})).await.expect(200);
    let script = json!({"name": "hidden", "language": "bash", "content": "true"});
    let script_id = id(&admin.post("/applications/deploy-scripts/", script).await.expect(200));
    let role_id = id(&admin.post("/roles/", json!({"name": "keepers"})).await.expect(200));
    let token_id = id(&admin.get("/auth-tokens/").await.expect(200)["results"][0]);
    let password_id = crate::credentials::password(&admin, "hidden password").await;
    let key_id = crate::credentials::key(&admin, "hidden key").await;
    let environment = json!({"name": "hidden environment"});
    let environment_id = id(&admin.post("/environments/", environment).await.expect(200));
    let template_id = crate::templates::made(&admin, "hidden template").await;
    let deploy_task = "INSERT INTO deploy_tasks (id, organisation_id, application_id, version, description, level, \
        package_source, planned_exec_at, creator_id, creator, status, created_at, plan) \
        VALUES (77, 1, $1, '1', '', 'A', '', 0, 1, 'admin', 'running', 0, $2)";
    let plan = json!({"instances": [instance_id], "timeout": null, "rollout": null});
    server.run(Sql::literal(deploy_task), args![application_id, plan]).await;
    for (task_id, kind) in [(78, "upgrade"), (79, "revert")] {
        let task = "INSERT INTO tasks (id, organisation_id, deploy_task_id, application_id, kind, channel, version, \
            timeout_s, keep_backups, phase, creator, created_at, deadline_at, taken, taken_at) \
            VALUES ($2, 1, 77, $1, $3, $4, '1', 1, 1, 'preparing', 'admin', 0, 0, $2, 0)";
        let channel = format!("channel-of-{task_id}");
        server.run(Sql::literal(task), args![application_id, task_id, kind, channel]).await;
    }
    let archive = "INSERT INTO archives (id, organisation_id, application_id, version, name, state, size_bytes, sha256, \
        creator, created_at, touched_at) VALUES (80, 1, $1, '1', 'hidden.tar', 'receiving', 9, $2, 'admin', 0, 0)";
    server.run(Sql::literal(archive), args![application_id, "0".repeat(64)]).await;
    let schedule = "INSERT INTO schedules (id, organisation_id, application_id, name, what, cron, zone, missed, missed_max, \
        overlap, if_busy, jitter_s, owner_id, owner, created_at) VALUES (81, 1, $1, 'hidden', $2, '@daily', 'UTC', 'skip', 1, \
        'skip', 'refuse', 0, 1, 'admin', 0)";
    let what = json!({"kind": "restart", "application_id": application_id, "instances": null, "timeout": null,
        "rollout": null});
    server.run(Sql::literal(schedule), args![application_id, what]).await;
    let ids = [
        ("schedules", "81".to_owned()),
        ("archives", "80".to_owned()),
        ("environments", environment_id.to_string()),
        ("applications", application_id.to_string()),
        ("hosts", host_id.to_string()),
        ("{instance_id}", instance_id.to_string()),
        ("instances", instance_id.to_string()),
        ("deploy-scripts", script_id.to_string()),
        ("password", password_id.to_string()),
        ("ssh-private-key", key_id.to_string()),
        ("deploy-templates", template_id.to_string()),
        ("roles", role_id.to_string()),
        ("auth-tokens", token_id.to_string()),
        ("users", "1".to_owned()),
        ("deploy-tasks", "77".to_owned()),
        ("sub-upgrade-tasks", "78".to_owned()),
        ("sub-revert-tasks", "79".to_owned()),
        ("channel", "channel-of-78".to_owned()),
        ("tasks", "78".to_owned()),
        ("{execution_id}", "0190a5a0-0000-7000-8000-000000000001".to_owned()),
    ];
    Objects { ids: ids.into(), application_id, host_id }
}

/// The route's path with the objects that it asks about, each of which there is.
fn path(route: &Route, objects: &Objects) -> String {
    let mut before = "";
    let mut filled = Vec::new();
    for part in route.path.split('/') {
        if part.starts_with('{') {
            let id = objects.ids.get(part).or_else(|| objects.ids.get(before));
            filled.push(id.unwrap_or_else(|| panic!("no object for {part} in {}", route.path)).as_str());
        } else {
            filled.push(part);
        }
        before = part;
    }
    filled.join("/").trim_start_matches("/api/v1").to_owned()
}

/// A body that names the objects in every way that a route may read, so that nothing but the right to it is missing.
fn body(route: &Route, objects: &Objects) -> Value {
    let one = json!({"id": 1});
    // Rights on modules are an array.
    if route.path.ends_with("/system/perms/") {
        return json!([{"module_name": "dns", "permissions": {"manage_dns_server": true}}]);
    }
    if route.path.ends_with("/schedules/") {
        let what = json!({"kind": "restart", "application_id": objects.application_id});
        return json!({"name": "something", "cron": "@daily", "what": what});
    }
    if route.path.contains("/environments/") {
        return json!({"name": "something", "variables": {}, "secrets": {}});
    }
    json!({"application_id": objects.application_id, "hosts": [{"id": objects.host_id}], "version": "1", "level": "A",
        "planned_exec_time": 1, "package_source": "", "id": 1, "user": one, "role": one, "authorizations": [],
        "username": "somebody", "name": "something", "password": "12345678", "old_password": "12345678",
        "new_password": "87654321", "language": "bash", "content": "true", "script": "something"})
}

async fn status(client: &Client, route: &Route, objects: &Objects) -> u16 {
    client.send(route.method.clone(), &path(route, objects), body(route, objects)).await.status
}

/// Calls every route and lists those that answered otherwise than expected.
async fn replay(server: &TestServer, client: &Client, objects: &Objects, expected: impl Fn(&Route) -> Option<u16>) {
    let mut wrong = Vec::new();
    for route in server.routes().all() {
        let Some(expected) = expected(route) else { continue };
        let found = status(client, route, objects).await;
        if found != expected {
            wrong.push(format!("{} {} ({}): {found}, not {expected}", route.method, route.path, route.permission));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether a route reads a body.
fn has_body(document: &Value, route: &Route) -> bool {
    let method = route.method.as_str().to_lowercase();
    !document["paths"][route.path.trim_start_matches("/api/v1")][method]["requestBody"].is_null()
}

/// What would be more or less after a change: every change is audited.
async fn traces(server: &TestServer) -> Vec<i64> {
    let mut counts = vec![server.count(sql!("SELECT COUNT(*) FROM audit_entries"), args![]).await];
    counts.push(server.count(sql!("SELECT COUNT(*) FROM users"), args![]).await);
    counts.push(server.count(sql!("SELECT COUNT(*) FROM deploy_tasks"), args![]).await);
    counts.push(server.count(sql!("SELECT COUNT(*) FROM tasks"), args![]).await);
    counts
}

both_engines! {
    async fn no_route_takes_nonsense(server: TestServer) {
        let objects = objects(&server).await;
        let (admin, before) = (server.admin(), traces(&server).await);
        let document = admin.get("/openapi.json").await.expect(200);
        let mut tried = 0;
        for route in server.routes().all().iter().filter(|route| has_body(&document, route)) {
            for text in ["{", "7", "\"text\"", "{\"a\": ?}"] {
                let answer = admin.send_text(route.method.clone(), &path(route, &objects), text.to_owned()).await;
                let error = answer.expect_error(400, 10001);
                assert!(error["field"].is_string(), "{} {} with {text}: {error}", route.method, route.path);
            }
            tried += 1;
        }
        assert!(tried > 40, "{tried} routes read a body");
        assert_eq!(traces(&server).await, before);
    }

    async fn what_is_not_there_is_not_found(server: TestServer) {
        let objects = objects(&server).await;
        let (admin, before) = (server.admin(), traces(&server).await);
        for route in server.routes().all().iter().filter(|route| route.path.contains('{')) {
            if route.method != "GET" && !matches!(route.need, Need::Resource { .. }) {
                continue;
            }
            let filled = route.path.split('/').map(|part| if part.starts_with('{') { "4711" } else { part });
            let path = filled.collect::<Vec<_>>().join("/").trim_start_matches("/api/v1").to_owned();
            let answer = admin.send(route.method.clone(), &path, body(route, &objects)).await;
            assert_eq!((answer.status, &answer.body["error_code"]), (404, &json!(10004)), "{} {path}", route.method);
        }
        assert_eq!(traces(&server).await, before);
    }

    async fn nobody_gets_in_without_signing_in(server: TestServer) {
        let objects = objects(&server).await;
        replay(&server, &server.anonymous(), &objects, |route| (route.need != Need::Public).then_some(401)).await;
        let forged = server.anonymous().with_token(&"0".repeat(64));
        replay(&server, &forged, &objects, |route| (route.need != Need::Public).then_some(401)).await;
    }

    async fn a_member_without_rights_sees_nothing(server: TestServer) {
        let objects = objects(&server).await;
        let member = server.user("mallory").await;
        replay(&server, &member, &objects, |route| match route.need {
            Need::Public | Need::SignedIn => None,
            Need::Administrator | Need::Module { .. } => Some(403),
            Need::SelfOrAdministrator | Need::Resource { .. } | Need::Named { .. } => Some(404),
        })
        .await;
    }

    async fn who_may_see_an_object_may_not_touch_it_for_that(server: TestServer) {
        let objects = objects(&server).await;
        let member = server.user("eve").await;
        let grant = |resource: &str, id: i64, right: &str| {
            args![1_i64, "user", member.id, resource.to_owned(), id, right.to_owned()]
        };
        // Rights that open no route: they let the objects be seen and nothing else.
        for arguments in [grant("application", objects.application_id, "see_only"), grant("host", objects.host_id, "restart_host")] {
            let insert = sql!(
                "INSERT INTO resource_rights (organisation_id, subject_type, subject_id, resource_type, resource_id, \
                 right_name) VALUES ($1, $2, $3, $4, $5, $6)"
            );
            server.run(insert, arguments).await;
        }
        replay(&server, &member, &objects, |route| match route.need {
            Need::Resource { .. } | Need::Named { .. } => Some(403),
            Need::Public
            | Need::SignedIn
            | Need::Administrator
            | Need::SelfOrAdministrator
            | Need::Module { .. } => None,
        })
        .await;
    }

    async fn another_organisations_administrator_finds_nothing(server: TestServer) {
        let objects = objects(&server).await;
        let stranger = server.user("stranger").await;
        server.run(sql!("INSERT INTO organisations (id, name, created_at) VALUES (2, 'other', 0)"), args![]).await;
        let move_user = sql!("UPDATE users SET organisation_id = 2, administrator = TRUE WHERE id = $1");
        server.run(move_user, args![stranger.id]).await;
        for table in [
            sql!("UPDATE sessions SET organisation_id = 2 WHERE user_id = $1"),
            sql!("UPDATE auth_tokens SET organisation_id = 2 WHERE user_id = $1"),
        ] {
            server.run(table, args![stranger.id]).await;
        }
        let stranger: &Client = &stranger;
        // Whatever has an id is somebody else's, so there is no such thing.
        let named = |route: &Route| route.path.contains('{') && route.need != Need::Public;
        replay(&server, stranger, &objects, |route| (named(route) || matches!(route.need, Need::Named { .. })).then_some(404))
            .await;
        // What has none is about the stranger's own organisation, where there is nothing but themselves.
        for route in server.routes().all().iter().filter(|route| !route.path.contains('{') && route.method == Method::GET) {
            let told = stranger.get(&path(route, &objects)).await.expect(200).to_string();
            for word in ["classified", "vault", "hidden", "keepers", "\"admin\""] {
                assert!(!told.contains(word), "{}: {word} in {told}", route.path);
            }
        }
    }

    async fn the_objects_of_this_test_are_there(server: TestServer) {
        let objects = objects(&server).await;
        replay(&server, &server.admin(), &objects, |route| {
            // These ask for more than the object.
            let more = route.path.contains("/channel/") || route.path.ends_with("/search/");
            let of_host = route.path.ends_with("/log/");
            (route.method == Method::GET).then_some(match (more, of_host) {
                (true, _) => 400,
                // It is the host that has it, and nobody is connected.
                (_, true) => 503,
                _ => 200,
            })
        })
        .await;
    }
}
