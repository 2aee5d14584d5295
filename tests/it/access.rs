//! Every route, called by those who may not: the route table itself is the list, so no route can be forgotten.

use std::collections::BTreeMap;

use drover_kernel::call::Need;
use drover_kernel::routes::Route;
use drover_kernel::{args, sql};
use drover_tests::{Client, TestServer, both_engines};
use serde_json::{Value, json};

/// One object of each kind, and a user who is not the caller.
struct Objects {
    ids: BTreeMap<&'static str, String>,
    application_id: i64,
    host_id: i64,
}

async fn objects(server: &TestServer) -> Objects {
    let admin = server.admin();
    let application = admin.post("/applications/", json!({"name": "secret"})).await.expect(200);
    let host = admin.post("/hosts/", json!({"name": "vault", "host_type": "PHY_HOST"})).await.expect(200);
    let application_id = application["id"].as_i64().expect("an id");
    let host_id = host["id"].as_i64().expect("an id");
    let deploy_task = "INSERT INTO deploy_tasks (id, organisation_id, application_id, version, description, level, \
        package_source, planned_exec_at, creator_id, creator, status, created_at) \
        VALUES (77, 1, $1, '1', '', 'A', '', 0, 1, 'admin', 'running', 0)";
    server.run(drover_kernel::db::Sql::literal(deploy_task), args![application_id]).await;
    let task = "INSERT INTO tasks (id, organisation_id, deploy_task_id, application_id, kind, channel, version, timeout_s, \
        keep_backups, phase, creator, created_at, deadline_at) \
        VALUES (78, 1, 77, $1, 'upgrade', 'channel-of-78', '1', 1, 1, 'preparing', 'admin', 0, 0)";
    server.run(drover_kernel::db::Sql::literal(task), args![application_id]).await;
    let ids = [
        ("application", application_id.to_string()),
        ("host", host_id.to_string()),
        ("deploy_task", "77".to_owned()),
        ("channel", "channel-of-78".to_owned()),
        ("task", "78".to_owned()),
    ];
    Objects { ids: ids.into(), application_id, host_id }
}

/// The route's path with an object of the kind that it asks about.
fn path(route: &Route, objects: &Objects) -> String {
    let kind = match route.need {
        Need::Resource { kind, .. } => kind,
        Need::Public
        | Need::SignedIn
        | Need::Administrator
        | Need::SelfOrAdministrator
        | Need::Module { .. }
        | Need::Named { .. } => "",
    };
    // User 1 is the administrator, whom nobody else may see.
    let id = objects.ids.get(kind).map_or("1", String::as_str);
    let filled: Vec<&str> = route
        .path
        .split('/')
        .map(|part| {
            if part == "{id}" || part == "{channel}" {
                id
            } else if part.starts_with('{') {
                "78"
            } else {
                part
            }
        })
        .collect();
    filled.join("/").trim_start_matches("/api/v1").to_owned()
}

/// A body that names the objects in every way that a route may read.
fn body(objects: &Objects) -> Value {
    json!({"application_id": objects.application_id, "hosts": [{"id": objects.host_id}], "version": "1", "level": "A",
        "planned_exec_time": 1, "package_source": ""})
}

async fn status(client: &Client, route: &Route, objects: &Objects) -> u16 {
    client.send(route.method.clone(), &path(route, objects), body(objects)).await.status
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

both_engines! {
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
        for arguments in [grant("application", objects.application_id, "see_only"), grant("host", objects.host_id, "login_host")] {
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
        replay(&server, &stranger, &objects, |route| match route.need {
            Need::Resource { .. } | Need::Named { .. } => Some(404),
            Need::Public
            | Need::SignedIn
            | Need::Administrator
            | Need::SelfOrAdministrator
            | Need::Module { .. } => None,
        })
        .await;
    }
}
