//! What survives versions, what a disk has room for, and how a host tells what it keeps.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use drover_agent::release::inspect::inspect;
use drover_shared::Digest;
use drover_shared::message::{Inspect, Inspected, ToAgent, ToServer};
use drover_shared::order::Step;
use drover_shared::words::{Action, ExecutionState};
use tar::EntryType;

use crate::bench::{Bench, bash, entry, execution_id, is_root};
use crate::releases::{Member, Site, archive};
use crate::run::{Gathered, finish};
use crate::server::{Got, Server, agent, run};

fn unpack(site: &Site, members: &[Member<'_>], release: &str, shared_paths: &[&str]) -> Option<String> {
    let digest = site.cache(&archive(members));
    let release = release.to_owned();
    let mut entry = site.entry(vec![Step::Unpack { digest, release: release.clone() }, Step::Switch { release }]);
    entry.shared_paths = shared_paths.iter().map(|path| (*path).to_owned()).collect();
    if is_root() {
        entry.run_user = Some("nobody".to_owned());
    }
    site.bench.run(&entry).0.reason
}

#[test]
fn shared_paths_survive_every_version() {
    let site = Site::new();
    let members: &[Member<'_>] = &[
        ("app", EntryType::Regular, "", b"1"),
        ("uploads/example.png", EntryType::Regular, "", b"of the archive"),
        ("etc/app.conf", EntryType::Regular, "", b"of the archive"),
    ];
    let shared_paths = ["uploads/", "etc/app.conf", "var/log/app/"];
    assert_eq!(unpack(&site, members, "1-a", &shared_paths), None);
    let (current, shared) = (site.layout().current(), site.layout().shared());
    let up = |folders: usize, path: &str| Path::new(&"../".repeat(folders)).join("shared").join(path);
    assert_eq!(std::fs::read_link(current.join("uploads")).unwrap(), up(2, "uploads"));
    assert_eq!(std::fs::read_link(current.join("var/log/app")).unwrap(), up(4, "var/log/app"));
    assert_eq!(std::fs::read_dir(shared.join("uploads")).unwrap().count(), 0);
    std::fs::write(current.join("uploads/cat.png"), "a cat").unwrap();
    std::fs::write(current.join("etc/app.conf"), "by hand").unwrap();
    let owner = |path: &Path| std::fs::metadata(path).unwrap().uid();
    let expected = if is_root() { 65_534 } else { nix::unistd::geteuid().as_raw() };
    for path in ["", "uploads", "etc", "var", "var/log", "var/log/app"] {
        assert_eq!(owner(&shared.join(path)), expected, "{path}");
    }

    assert_eq!(unpack(&site, &[("app", EntryType::Regular, "", b"2")], "2-b", &shared_paths), None);
    assert_eq!(std::fs::read_to_string(current.join("app")).unwrap(), "2");
    assert_eq!(std::fs::read_to_string(current.join("uploads/cat.png")).unwrap(), "a cat");
    assert_eq!(std::fs::read_to_string(current.join("etc/app.conf")).unwrap(), "by hand");
    // The links are part of the release: it is whole with them, and pruned without what they lead to.
    let kept = site.layout().list().unwrap().remove(0);
    let (release, tree_digest) = (kept.name, kept.tree_digest);
    assert_eq!(site.run(vec![Step::Verify { release, tree_digest }, Step::Prune { keep: 0 }]).reason, None);
    assert_eq!(std::fs::read_to_string(shared.join("uploads/cat.png")).unwrap(), "a cat");

    // The same archive with other shared paths is another release on disk.
    assert_eq!(unpack(&site, &[("app", EntryType::Regular, "", b"2")], "2-b", &[]), None);
    assert!(!current.join("uploads").exists());
}

#[test]
fn what_serves_stays_until_the_switch_and_can_be_gone_back_to() {
    let site = Site::new();
    let members: &[Member<'_>] =
        &[("app", EntryType::Regular, "", b"1"), ("uploads/a", EntryType::Regular, "", b"live")];
    assert_eq!(unpack(&site, members, "1-a", &[]), None);
    let before = site.layout().list().unwrap().remove(0);
    // An order of the same name with other shared paths, as from a server that does not name them.
    let digest = site.cache(&archive(members));
    let steps = vec![Step::Unpack { digest, release: "1-a".to_owned() }, bash("post_exec", "exit 3")];
    let mut entry = site.entry(steps);
    entry.shared_paths = vec!["uploads/".to_owned()];
    assert_eq!(site.bench.run(&entry).0.reason.as_deref(), Some("post_exec exited with status 3"));
    assert_eq!(std::fs::read_to_string(site.layout().current().join("uploads/a")).unwrap(), "live");
    let mut back = site.entry(vec![
        Step::Verify { release: before.name.clone(), tree_digest: before.tree_digest },
        Step::Switch { release: before.name.clone() },
    ]);
    back.action = Action::Revert;
    let finished = site.bench.run(&back).0;
    assert_eq!(finished.reason, None);
    assert_eq!(site.layout().current_name(), Some(before.name));
}

#[test]
fn shared_paths_that_cannot_be_are_refused() {
    let members: &[Member<'_>] = &[
        ("app", EntryType::Regular, "", b"1"),
        ("d/file", EntryType::Regular, "", b"1"),
        ("hard", EntryType::Link, "d/file", b""),
    ];
    for (paths, expected) in [
        (&["../outside"][..], "unpack: shared path `../outside` is not a plain path inside a release"),
        (&["/etc"], "unpack: shared path `/etc` is not a plain path inside a release"),
        (&["a//b"], "unpack: shared path `a//b` is not a plain path inside a release"),
        (&["a/", "a/b"], "unpack: shared paths `a` and `a/b` lie in each other"),
        (&["app/data"], "unpack: shared path `app/data` lies below `app`, which is no folder of the archive"),
        (&["d/"], "unpack: member `hard` is a hard link to `d/file`, which is a shared path"),
    ] {
        let site = Site::new();
        assert_eq!(unpack(&site, members, "1-a", paths).as_deref(), Some(expected));
        assert!(!site.deploy.exists(), "{expected}: something was created");
    }
    let site = Site::new();
    assert_eq!(unpack(&site, members, "1-a", &[]), None);
    let outside = site.bench.path("outside");
    std::fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, site.layout().shared().join("var")).unwrap();
    let reason = unpack(&site, &[("app", EntryType::Regular, "", b"2")], "2-b", &["var/log/"]).unwrap();
    assert_eq!(reason, "unpack: shared path `var/log` cannot be made: it is a symbolic link, not a folder");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[tokio::test]
async fn an_artifact_that_no_disk_can_hold_is_not_asked_for() {
    let bench = Bench::new();
    let mut server = Server::start().await;
    let _agent = agent(&bench.data_dir(), Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let fetch = Step::Fetch { digest: Digest::of(b"huge"), size_bytes: 1 << 60, index: None };
    let order = server.order(&execution_id(), &entry(vec![fetch]), 60_000);
    peer.send(&run(order)).await;
    assert!(matches!(peer.message().await, ToServer::Accepted { .. }));
    let mut gathered = Gathered::default();
    finish(&mut peer, &mut gathered).await;
    let finished = gathered.finished.unwrap();
    assert_eq!(finished.state, ExecutionState::Failed);
    let reason = finished.reason.unwrap();
    assert!(reason.starts_with(&format!("fetch: the disk is full: {} bytes are needed", 1_u64 << 60)), "{reason}");
}

fn look(site: &Site, release: Option<&str>, compare: bool) -> Inspected {
    let deploy_path = site.deploy.to_string_lossy().into_owned();
    let release = release.map(str::to_owned);
    inspect(&Inspect { request: 1, deploy_path, release, compare, timeout_ms: 60_000 }, &mut || false)
}

#[test]
fn a_host_tells_what_it_keeps_and_what_was_changed() {
    let site = Site::new();
    assert_eq!((look(&site, None, true).releases.len(), look(&site, None, true).reason), (0, None));
    let members: &[Member<'_>] = &[
        ("bin/run", EntryType::Regular, "", b"#!/bin/sh\n"),
        ("hard", EntryType::Link, "bin/run", b""),
        ("link", EntryType::Symlink, "bin/run", b""),
        ("big", EntryType::Regular, "", &[7; 100_000]),
    ];
    let digest = site.cache(&archive(members));
    let release = "2-b".to_owned();
    assert_eq!(site.install("1-a", 9).reason, None);
    let steps = vec![Step::Unpack { digest, release: release.clone() }, Step::Switch { release }];
    assert_eq!(site.run(steps).reason, None);

    let answer = look(&site, None, true);
    assert_eq!((answer.reason, answer.releases.len()), (None, 2));
    assert!(answer.free_bytes.is_some());
    let [new, old] = &answer.releases[..] else { panic!("two releases") };
    assert_eq!((new.release.name.as_str(), new.release.current, new.previous), ("2-b", true, false));
    assert_eq!((old.release.name.as_str(), old.release.current, old.previous), ("1-a", false, true));
    assert_eq!((new.release.artifact_digest, new.members), (digest, 5));
    assert!((100_000..300_000).contains(&new.disk_bytes), "{}", new.disk_bytes);
    assert!(answer.releases.iter().all(|one| one.drift.as_ref().is_some_and(|drift| drift.is_none())));

    let folder = site.layout().release("2-b");
    std::fs::write(folder.join("big"), "small").unwrap();
    std::fs::remove_file(folder.join("link")).unwrap();
    std::fs::create_dir(folder.join("new")).unwrap();
    for number in 0..600 {
        std::fs::write(folder.join(format!("new/{number}")), "").unwrap();
    }
    let answer = look(&site, Some("2-b"), true);
    let drift = answer.releases[0].drift.as_ref().unwrap();
    assert_eq!(drift.added.len(), 500);
    assert!(drift.added.iter().all(|path| path.starts_with("new")));
    // 601 came, one was changed, one is missing; 500 fit.
    assert_eq!((drift.changed.len(), drift.missing.len(), drift.more), (0, 0, 103));
    std::fs::remove_dir_all(folder.join("new")).unwrap();
    std::fs::write(folder.join("added"), "").unwrap();
    let answer = look(&site, Some("2-b"), true);
    let drift = answer.releases[0].drift.clone().unwrap();
    assert_eq!(drift.changed, [("big".to_owned(), "has another length".to_owned())]);
    assert_eq!((drift.missing, drift.added, drift.more), (vec!["link".to_owned()], vec!["added".to_owned()], 0));
    assert_eq!(look(&site, Some("2-b"), false).releases[0].drift, None);

    assert_eq!(look(&site, Some("9-z"), true).reason.as_deref(), Some("release `9-z` is not kept on this host"));
    let deploy_path = site.deploy.to_string_lossy().into_owned();
    let request = Inspect { request: 1, deploy_path, release: None, compare: true, timeout_ms: 0 };
    let answer = inspect(&request, &mut || true);
    assert_eq!(answer.reason.as_deref(), Some("the time allowed ran out: the answer is not complete"));
    let request = Inspect { deploy_path: "/srv/../etc".to_owned(), ..request };
    let reason = inspect(&request, &mut || false).reason.unwrap();
    assert_eq!(reason, "deploy path `/srv/../etc` is not an absolute path without `..`");
}

#[tokio::test]
async fn the_agent_answers_inspections_over_the_link() {
    let site = Site::new();
    assert_eq!(site.install("1-a", 9).reason, None);
    let data_dir = site.bench.path("agent");
    let mut server = Server::start().await;
    let _agent = agent(&data_dir, Some(&server.token));
    let (mut peer, _) = server.open(|_| (true, 0)).await;
    let deploy_path = site.deploy.to_string_lossy().into_owned();
    // More than are done at once: every one is answered, with releases or with the reason why not.
    for request in 0..20 {
        let inspect =
            Inspect { request, deploy_path: deploy_path.clone(), release: None, compare: true, timeout_ms: 60_000 };
        peer.send(&ToAgent::Inspect(inspect)).await;
    }
    let mut answered = std::collections::BTreeSet::new();
    let mut told = 0;
    while answered.len() < 20 {
        let Got::Message(ToServer::Inspected(answer)) = peer.next().await.unwrap() else { panic!("another message") };
        match &answer.reason {
            None => {
                assert_eq!(answer.releases[0].release.name, "1-a");
                told += 1;
            }
            Some(reason) => assert!(reason.contains("inspections already"), "{reason}"),
        }
        assert!(answered.insert(answer.request));
    }
    assert!(told >= 1);
}
