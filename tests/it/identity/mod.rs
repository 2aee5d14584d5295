//! Users, roles, rights, tokens and signing in, over HTTP.

mod authorization;
mod lists;
mod module_rights;
mod roles;
mod sign_in;
mod tokens;
mod users;

use drover_kernel::{args, sql};
use drover_tests::{Client, TestServer};
use serde_json::{Value, json};

/// Ids of the results of a page, or of a bare array.
fn ids(body: &Value) -> Vec<i64> {
    let results = body.get("results").unwrap_or(body);
    results.as_array().into_iter().flatten().filter_map(|result| result["id"].as_i64()).collect()
}

/// The id of a new thing.
fn id(body: &Value) -> i64 {
    body["id"].as_i64().expect("an id")
}

async fn application(client: &Client, name: &str) -> i64 {
    id(&client.post("/applications/", json!({"name": name})).await.expect(200))
}

async fn host(client: &Client, name: &str) -> i64 {
    let body = json!({"name": name, "host_type": "PHY_HOST"});
    id(&client.post("/hosts/", body).await.expect(200))
}

async fn role(server: &TestServer, name: &str) -> i64 {
    id(&server.admin().post("/roles/", json!({"name": name})).await.expect(200))
}

/// Entries of an audit list with this action.
async fn audited(server: &TestServer, list: &str, action: &str) -> i64 {
    let sql = sql!("SELECT COUNT(*) FROM audit_entries WHERE list = $1 AND action = $2");
    server.count(sql, args![list, action]).await
}

/// Grants or withdraws rights on modules of a user (`users/7`) or role (`roles/7`).
async fn module_rights(server: &TestServer, subject: &str, module: &str, permissions: Value) {
    let body = json!([{"module_name": module, "permissions": permissions}]);
    server.admin().post(&format!("/{subject}/system/perms/"), body).await.expect(200);
}

/// Grants or withdraws rights on one resource of a user or role.
async fn resource_rights(server: &TestServer, subject: &str, kind: &str, id: i64, permission: Value) {
    let body = json!({"authorizations": [{"id": id, "permission": permission}]});
    server.admin().post(&format!("/{subject}/{kind}/perms/"), body).await.expect(200);
}
