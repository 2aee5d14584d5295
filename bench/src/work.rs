//! What is run: scripts, applications with an instance on each host, and started deploy tasks.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::client::Client;

/// A script.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Script {
    pub(crate) name: &'static str,
    pub(crate) language: &'static str,
    pub(crate) content: &'static str,
}

/// A hook that does nothing.
pub(crate) const NOTHING: Script = Script { name: "nothing", language: "bash", content: "true\n" };

/// An application with one instance on each of several hosts, and a started deploy task.
pub(crate) struct Application {
    pub(crate) deploy_task: i64,
    pub(crate) instances: Vec<i64>,
}

/// Every host that the server knows.
pub(crate) async fn hosts(client: &mut Client) -> Result<Vec<i64>> {
    let mut all = Vec::new();
    for page in 1.. {
        let hosts = client.get(&format!("/hosts/?page_size=100&page={page}")).await?;
        let results = hosts["results"].as_array().context("hosts")?;
        all.extend(results.iter().filter_map(|host| host["id"].as_i64()));
        if hosts["next"].is_null() {
            break;
        }
    }
    Ok(all)
}

/// So many applications on these hosts, whose only hook is the script.
pub(crate) async fn applications(
    client: &mut Client,
    count: usize,
    hosts: &[i64],
    script: Script,
) -> Result<Vec<Application>> {
    let Script { name, language, content } = script;
    let script = json!({"name": name, "language": language, "content": content});
    let script = client.post("/applications/deploy-scripts/", &script).await?;
    let mut applications = Vec::with_capacity(count);
    for number in 0..count {
        applications.push(application(client, &format!("{name}-{number}"), hosts, &script["id"]).await?);
    }
    Ok(applications)
}

async fn application(client: &mut Client, name: &str, hosts: &[i64], script: &Value) -> Result<Application> {
    let id = client.post("/applications/", &json!({"name": name})).await?["id"].as_i64().context("id")?;
    let wanted: Vec<Value> = hosts.iter().map(|host| json!({"hostid": host})).collect();
    let made = client.post(&format!("/applications/{id}/instances/"), &json!(wanted)).await?;
    let instances: Vec<i64> =
        made.as_array().context("instances")?.iter().filter_map(|one| one["id"].as_i64()).collect();
    ensure!(instances.len() == hosts.len(), "{made}");
    let settings = json!({"enabled": true, "lifecycle_hooks": {"post_exec": {"script": {"id": script}}}});
    client.patch(&format!("/applications/{id}/deploy-settings/"), &settings).await?;
    let task =
        json!({"application_id": id, "version": "1", "level": "I", "package_source": "", "planned_exec_time": 1});
    let deploy_task = client.post("/applications/deploy-tasks/", &task).await?["id"].as_i64().context("id")?;
    for action in ["approve", "start"] {
        client.post(&format!("/applications/deploy-tasks/{deploy_task}/actions/{action}/"), &json!({})).await?;
    }
    Ok(Application { deploy_task, instances })
}

/// Runs applications all at once, on all their hosts, and waits for their ends.
pub(crate) async fn round(client: &mut Client, applications: &[Application]) -> Result<usize> {
    let mut receipts = Vec::with_capacity(applications.len());
    for application in applications {
        receipts.push(client.run(application.deploy_task, &application.instances).await?);
    }
    for receipt in &receipts {
        ensure!(client.follow(receipt).await? == "finished", "a hook failed");
    }
    Ok(applications.iter().map(|application| application.instances.len()).sum())
}
