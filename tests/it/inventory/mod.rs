//! Hosts, applications and instances, over HTTP.

mod applications;
mod environments;
mod hosts;
mod instances;
mod relations;
mod secrets;
mod together;
mod tree;
mod variables;

use drover_kernel::{args, sql};
use drover_tests::{Client, TestServer};
use serde_json::{Value, json};

/// The id of a new thing.
fn id(body: &Value) -> i64 {
    body["id"].as_i64().expect("an id")
}

/// Ids of the results of a page, or of a bare array.
fn ids(body: &Value) -> Vec<i64> {
    let results = body.get("results").unwrap_or(body);
    results.as_array().into_iter().flatten().map(id).collect()
}

async fn application(client: &Client, name: &str, parent: Option<i64>) -> i64 {
    id(&client.post("/applications/", json!({"name": name, "parent_app": parent})).await.expect(200))
}

async fn host(client: &Client, name: &str) -> i64 {
    id(&client.post("/hosts/", json!({"name": name, "host_type": "PHY_HOST"})).await.expect(200))
}

async fn instance(client: &Client, application_id: i64, host_id: i64) -> i64 {
    let path = format!("/applications/{application_id}/instances/");
    id(&client.post(&path, json!([{"hostid": host_id}])).await.expect(200)[0])
}

/// Grants or withdraws rights of a user on one `application` or `host`.
async fn grant(server: &TestServer, user_id: i64, kind: &str, id: i64, permission: Value) {
    let body = json!({"authorizations": [{"id": id, "permission": permission}]});
    server.admin().post(&format!("/users/{user_id}/{kind}/perms/"), body).await.expect(200);
}

/// Grants or withdraws rights of a user on a module.
async fn grant_module(server: &TestServer, user_id: i64, module: &str, permissions: Value) {
    let body = json!([{"module_name": module, "permissions": permissions}]);
    server.admin().post(&format!("/users/{user_id}/system/perms/"), body).await.expect(200);
}

/// Details of the audit entries of one list and action, oldest first.
async fn audited(server: &TestServer, list: &str, action: &str) -> Vec<String> {
    let sql = sql!("SELECT detail FROM audit_entries WHERE list = $1 AND action = $2 ORDER BY id");
    server.read().await.values(sql, args![list, action]).await.expect("the audit")
}

/// Sends a body that must be refused with 400, and that field named.
async fn refused(client: &Client, method: &str, path: &str, body: Value, field: &str) {
    let shown = format!("{method} {path} {body}");
    let answer = client.send(method.parse().expect("a method"), path, body).await;
    let error = answer.expect_error(400, 10001);
    assert_eq!(error["field"], field, "{shown}: {error}");
}
