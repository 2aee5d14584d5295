//! `host list`, `app list`.

use serde_json::{Value, json};

use crate::api::Server;
use crate::arguments::Named;
use crate::failure::Result;
use crate::output::{self, Column, cell};

const HOSTS: &[Column] = &[
    ("ID", |host| cell(host, "id")),
    ("NAME", |host| cell(host, "name")),
    ("STATUS", |host| cell(host, "status")),
    ("ENVIRONMENT", |host| cell(&host["environment"], "name")),
    ("OS", |host| cell(host, "os_status")),
    ("AGENT", agent),
    ("LAST SEEN", |host| cell(&host["agent"], "last_seen_time")),
    ("ADDRESS", addresses),
    ("DESCRIPTION", |host| cell(host, "description")),
];

const APPLICATIONS: &[Column] = &[
    ("ID", |application| cell(application, "id")),
    ("NAME", |application| cell(application, "full_name")),
    ("TYPE", |application| cell(application, "application_type")),
    ("DESCRIPTION", |application| cell(application, "description")),
];

pub(crate) fn hosts(server: &Server, list: &Named, json: bool) -> Result<()> {
    show(server, ("/hosts/", "name"), HOSTS, list, json)
}

pub(crate) fn applications(server: &Server, list: &Named, json: bool) -> Result<()> {
    show(server, ("/applications/", "full_name"), APPLICATIONS, list, json)
}

fn show(server: &Server, (path, filter): (&str, &str), columns: &[Column], list: &Named, json: bool) -> Result<()> {
    let filter = list.name.as_deref().map(|name| (filter, name));
    let found = server.list(path, filter.as_slice(), list.limit.limit as usize)?;
    if json {
        return output::json(&json!({ "results": found }));
    }
    output::table(columns, &found)
}

/// Whether the agent is connected, and its version.
fn agent(host: &Value) -> String {
    let state = match host["agent"]["connected"].as_bool() {
        Some(true) => "connected",
        Some(false) => "away",
        None => return "none".to_owned(),
    };
    format!("{state} {}", cell(&host["agent"], "version")).trim_end().to_owned()
}

fn addresses(host: &Value) -> String {
    let addresses = host["ip_address"].as_array().map_or(&[][..], Vec::as_slice);
    addresses.iter().map(|address| cell(address, "address")).collect::<Vec<_>>().join(", ")
}
