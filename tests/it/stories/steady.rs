//! Deploys with a hook that goes on until it is told to end, and whose whole output is known.
//!
//! The hook writes line after line, numbered, to its output and to a file.

use std::fs;

use super::*;

const STEADY: &str = r#"
import os, sys, time
with open("FOLDER/starts-{{ host.name }}", "a") as starts:
    starts.write("started\n")
kept = open("FOLDER/kept-{{ host.name }}", "ab")
number = 0
def say():
    global number
    number += 1
    data = ("%06d \x1b[32m\U0001f600\x1b[0m\n" % number).encode()
    kept.write(data)
    kept.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
while not os.path.exists("FOLDER/go"):
    say()
    time.sleep(0.002)
for _ in range(500):
    say()
"#;

/// Lines that the hook writes before, and again during, an absence.
const LINES: usize = 100;

pub(super) struct Story {
    pub(super) shop: Shop,
    pub(super) sub_task: SubTask,
}

impl Story {
    /// Begins a deploy and waits until its hook's output is seen.
    pub(super) async fn begin(engine: Engine) -> Self {
        Self::begin_within(engine, 600).await
    }

    /// The same with so many seconds for the whole deploy.
    pub(super) async fn begin_within(engine: Engine, timeout: i64) -> Self {
        Self::begin_in(Shop::open(engine, &["web-1"]).await, timeout).await
    }

    /// The same on all hosts of a shop, one host after the other.
    pub(super) async fn begin_in(shop: Shop, timeout: i64) -> Self {
        shop.commit("v1", &[("index.html", "one\n")]);
        shop.hook("pre_exec", "python", &STEADY.replace("FOLDER", &shop.folder().display().to_string())).await;
        shop.set(json!({"timeout": timeout})).await;
        let task = shop.deploy_task("v1").await;
        let mut body = shop.sub_task("v1");
        body["rollout"] = json!({"batch": 1});
        let sub_task = shop.make("upgrade", task, body).await;
        let mut viewer = Viewer::open(&sub_task.channel, shop.api().token()).await;
        viewer.until(&format!("{LINES:06} ")).await;
        Self { shop, sub_task }
    }

    /// What the hook wrote on a host.
    pub(super) fn kept(&self, host: &str) -> String {
        fs::read_to_string(self.shop.folder().join(format!("kept-{host}"))).unwrap_or_default()
    }

    fn written(&self) -> usize {
        self.shop.instances.iter().map(|(host, _)| self.kept(host).lines().count()).sum()
    }

    /// Waits until the hook has written more.
    pub(super) async fn goes_on(&self) {
        let before = self.written();
        wait_until("the hook to go on", async || self.written() >= before + LINES).await;
    }

    pub(super) fn let_it_end(&self) {
        fs::write(self.shop.folder().join("go"), "").expect("a file");
    }

    /// Waits until the hook has written its last line on some host.
    pub(super) async fn hook_is_done(&self) {
        self.let_it_end();
        wait_until("the release to be there", async || {
            let mut hosts = self.shop.instances.iter();
            hosts.any(|(host, _)| self.shop.current(host, "index.html").is_some())
        })
        .await;
    }

    /// Everything went well, once on each host, and the output is what the hook wrote.
    pub(super) async fn ends_well(&self) {
        let detail = self.shop.end_of(&self.sub_task).await;
        assert_eq!(detail["status"], "finished", "{detail:#}");
        let output = self.shop.output(&self.sub_task, "?format=json").await;
        assert_eq!(output.closing, Closing { code: 1000, reason: "finished".to_owned() });
        let records = output.records();
        for (host, _) in &self.shop.instances {
            assert_eq!(on_host(&detail, host)["attempt"], 1);
            let starts = fs::read_to_string(self.shop.folder().join(format!("starts-{host}")));
            assert_eq!(starts.expect("the hook's starts"), "started\n", "the hook started once on {host}");
            let (seen, kept) = (stdout_of(&records, host), self.kept(host));
            assert!(seen == kept && !kept.is_empty(), "{host}: {} bytes seen, {} written", seen.len(), kept.len());
            assert_eq!(self.shop.current(host, "index.html").as_deref(), Some("one\n"));
            assert_eq!(self.shop.instance(host).await, ("running".to_owned(), Some("v1".to_owned())));
        }
    }
}
