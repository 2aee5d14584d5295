//! `cargo xtask demo`: the whole way once, with real processes and a real git repository.
//!
//! Invariant: a version counts as deployed only when the application itself served its page on both hosts, and
//! everything that was started ends with the demo.

mod api;
mod machines;
mod sample;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::scratch::Scratch;
use crate::{debian, process};
use api::Api;
use machines::{Agent, Server};
use sample::Sample;

/// Names of the hosts; both are this machine.
const HOSTS: [&str; 2] = ["web-1", "web-2"];
const APPLICATION: &str = "shop";

/// How long anything may take that is not a build.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let once = match arguments {
        [] => false,
        [flag] if flag == "--once" => true,
        _ => bail!("cargo xtask demo [--once]"),
    };
    if process::find("git").is_none() {
        debian::install("git", "The demo keeps its application in git")?;
    }
    if process::find("python3").is_none() {
        debian::install("python3", "The demo's application is written in Python")?;
    }
    say("Building the server, the agent and the command line");
    let packages = ["--package", "drover-server", "--package", "drover-agent", "--package", "drover"];
    process::run(process::cargo().arg("build").args(packages))?;

    let scratch = Scratch::new("demo")?;
    // Dropped last to first: the applications, the agents, the server, then the folder.
    let server = Server::start(scratch.path())?;
    say(&format!("The server runs at {}", server.url()));
    let api = sign_in(&server)?;
    let agents: Vec<Agent> = HOSTS.iter().map(|host| Agent::start(&server, host)).collect::<Result<_>>()?;
    wait_for_agents(&api)?;
    say(&format!("The agents of {} are connected", HOSTS.join(" and ")));
    let sample = Sample::new(scratch.path())?;
    describe(&api, &sample)?;
    say("The application is in git with the versions v1.0 and v2.0, and the server knows how to deploy it");

    drover(&server, &["login", "--username", "admin", "--password-stdin"], Some(server.password()))?;
    deploy(&server, &sample, "v1.0")?;
    deploy(&server, &sample, "v2.0")?;
    say("drover revert shop --version v1.0");
    drover(&server, &["revert", APPLICATION, "--version", "v1.0", "--yes"], None)?;
    sample.look("v1.0")?;
    say("Each version was served by the application on both hosts");

    if !once {
        stay(&server, &sample)?;
    }
    drop(sample);
    drop(agents);
    drop(server);
    Ok(())
}

fn say(text: &str) {
    println!("\n== {text}");
}

/// Gives an API as the first administrator.
fn sign_in(server: &Server) -> Result<Api> {
    let nobody = Api::new(server.address(), None);
    let answer =
        nobody.post("/users/actions/login/", &json!({ "username": "admin", "password": server.password() }))?;
    let token = answer["token"].as_str().context("signing in gave no token")?;
    Ok(Api::new(server.address(), Some(token.to_owned())))
}

fn wait_for_agents(api: &Api) -> Result<()> {
    let connected = || {
        let hosts = api.get("/hosts/?page_size=100").unwrap_or_default();
        let hosts = hosts["results"].as_array().cloned().unwrap_or_default();
        HOSTS.iter().all(|name| hosts.iter().any(|host| host["name"] == *name && host["agent"]["connected"] == true))
    };
    ensure!(process::until(PATIENCE, || process::interrupted() || connected()), "the agents do not connect");
    ensure!(!process::interrupted(), "interrupted");
    Ok(())
}

/// Tells the server about the application, through the same API as everybody.
fn describe(api: &Api, sample: &Sample) -> Result<()> {
    let application = api.post("/applications/", &json!({ "name": APPLICATION, "description": "A shop" }))?;
    let application = id(&application)?;
    let hosts = api.get("/hosts/?page_size=100")?;
    let mut instances = Vec::new();
    for name in HOSTS {
        let host = hosts["results"].as_array().and_then(|hosts| hosts.iter().find(|host| host["name"] == name));
        instances.push(json!({ "hostid": id(host.with_context(|| format!("no host {name}"))?)? }));
    }
    api.post(&format!("/applications/{application}/instances/"), &Value::Array(instances))?;
    let script = |name: &str, content: &str| {
        let script = json!({ "name": name, "language": "bash", "content": content, "template_engine": "jinja" });
        id(&api.post("/applications/deploy-scripts/", &script)?)
    };
    let stop = script("stop shop", sample.stop_script())?;
    let start = script("start shop", &sample.start_script())?;
    let settings = json!({
        "enabled": true,
        "repository": { "type": "GIT", "url": sample.repository(), "branch": "main" },
        "deploy_path": sample.deploy_path(),
        "keep_backups": 3,
        "timeout": 120,
        "lifecycle_hooks": {
            "pre_exec": { "script": { "id": stop } },
            "post_exec": { "script": { "id": start } },
        },
    });
    api.patch(&format!("/applications/{application}/deploy-settings/"), &settings)?;
    Ok(())
}

fn id(object: &Value) -> Result<i64> {
    object["id"].as_i64().with_context(|| format!("no id in {object}"))
}

fn deploy(server: &Server, sample: &Sample, version: &str) -> Result<()> {
    say(&format!("drover deploy {APPLICATION} --version {version}"));
    drover(server, &["deploy", APPLICATION, "--version", version, "--yes"], None)?;
    sample.look(version)
}

/// Runs the command line as people do, its output being ours.
fn drover(server: &Server, arguments: &[&str], input: Option<&str>) -> Result<()> {
    let mut command = Command::new(process::bin_dir()?.join("drover"));
    command.args(arguments).env("DROVER_URL", server.url()).env("DROVER_CLI_CONFIG", server.cli_settings());
    command.env_remove("DROVER_TOKEN").env_remove("DROVER_CA");
    match input {
        Some(input) => process::run_with_input(&mut command, input),
        None => process::run(&mut command),
    }
}

/// Leaves everything running until Ctrl-C.
fn stay(server: &Server, sample: &Sample) -> Result<()> {
    println!("\nThe server goes on until Ctrl-C.\n");
    println!("  address   {}", server.url());
    println!("  user      admin");
    println!("  password  {}", server.password());
    println!("  API       {}/api/v1/openapi.json", server.url());
    for (host, port) in sample.ports() {
        println!("  {host}     http://127.0.0.1:{port}/");
    }
    let settings = server.cli_settings();
    let program = process::bin_dir()?.join("drover");
    println!("\n  DROVER_CLI_CONFIG={} {} task list\n", settings.display(), program.display());
    while !process::interrupted() {
        ensure!(server.runs(), "the server has ended; its log is gone with it");
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("\nStopping everything.");
    Ok(())
}
