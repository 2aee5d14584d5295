//! Built-in steps: unpack, switch, verify, prune, and archives that mean harm.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use drover_agent::release::Layout;
use drover_shared::Digest;
use drover_shared::message::Finished;
use drover_shared::order::{Entry, Step};
use drover_shared::record::Stream;
use drover_shared::words::{ExecutionState, StepState};
use tar::{EntryType, Header};

use crate::bench::{Bench, PROGRAM, bash, entry, text};
use crate::spool::limited;

/// One member of a made-up archive: path, kind, link target, content.
pub(crate) type Member<'a> = (&'a str, EntryType, &'a str, &'a [u8]);

pub(crate) fn archive(members: &[Member<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, target, content) in members {
        let mut header = Header::new_gnu();
        // Written into the raw field: the builder itself would refuse a bad path.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    zstd::encode_all(builder.into_inner().unwrap().as_slice(), 1).unwrap()
}

pub(crate) struct Site {
    pub(crate) bench: Bench,
    pub(crate) deploy: PathBuf,
}

impl Site {
    pub(crate) fn new() -> Self {
        let bench = Bench::new();
        let deploy = bench.path("shop");
        Self { bench, deploy }
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout::new(&self.deploy)
    }

    pub(crate) fn cache(&self, archive: &[u8]) -> Digest {
        let digest = Digest::of(archive);
        let folder = self.bench.data_dir().join("artifacts");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::File::create(folder.join(digest.to_string())).unwrap().write_all(archive).unwrap();
        digest
    }

    pub(crate) fn entry(&self, steps: Vec<Step>) -> Entry {
        let mut entry = entry(steps);
        entry.deploy_path = Some(self.deploy.to_string_lossy().into_owned());
        entry
    }

    pub(crate) fn run(&self, steps: Vec<Step>) -> Finished {
        self.bench.run(&self.entry(steps)).0
    }

    pub(crate) fn install(&self, release: &str, keep: u32) -> Finished {
        let digest = self.cache(&archive(&[("app.txt", EntryType::Regular, "", release.as_bytes())]));
        let release = release.to_owned();
        self.run(vec![
            Step::Unpack { digest, release: release.clone() },
            Step::Switch { release },
            Step::Prune { keep },
        ])
    }
}

pub(crate) fn names(finished: &Finished) -> Vec<(&str, bool)> {
    finished.releases.as_ref().unwrap().iter().map(|release| (release.name.as_str(), release.current)).collect()
}

#[test]
fn a_release_is_unpacked_switched_and_listed() {
    let site = Site::new();
    let digest = site.cache(&archive(&[
        ("./", EntryType::Directory, "", b""),
        ("bin/", EntryType::Directory, "", b""),
        ("bin/run", EntryType::Regular, "", b"#!/bin/sh\n"),
        ("deep/er/file", EntryType::Regular, "", "\u{1f680}".as_bytes()),
        ("link", EntryType::Symlink, "bin/run", b""),
        ("deep/up", EntryType::Symlink, "../bin", b""),
        ("hard", EntryType::Link, "bin/run", b""),
    ]));
    let release = "1.0-abc".to_owned();
    let finished = site.run(vec![
        Step::Unpack { digest, release: release.clone() },
        Step::Switch { release: release.clone() },
        bash("post_exec", "test \"$PWD\" = \"$DROVER_RELEASE_PATH\" && test -z \"$DROVER_PREVIOUS_RELEASE_PATH\""),
    ]);
    assert_eq!(finished.reason, None);
    assert_eq!(names(&finished), [("1.0-abc", true)]);
    let kept = finished.releases.unwrap().remove(0);
    assert_eq!((kept.version.as_str(), kept.artifact_digest), ("1.0", digest));
    let current = site.layout().current();
    assert_eq!(std::fs::read_link(&current).unwrap(), Path::new("releases/1.0-abc"));
    assert_eq!(std::fs::read(current.join("deep/er/file")).unwrap(), "\u{1f680}".as_bytes());
    assert_eq!(std::fs::read(current.join("link")).unwrap(), b"#!/bin/sh\n");
    assert_eq!(std::fs::read(current.join("hard")).unwrap(), b"#!/bin/sh\n");
    assert_eq!(std::fs::metadata(current.join("bin/run")).unwrap().permissions().mode() & 0o777, 0o755);
    assert!(site.layout().shared().is_dir());

    let verified = site.run(vec![Step::Verify { release: release.clone(), tree_digest: kept.tree_digest }]);
    assert_eq!(verified.reason, None);
    std::fs::write(current.join("added"), "later").unwrap();
    std::fs::write(current.join("bin/run"), "#!/bin/no\n").unwrap();
    std::fs::remove_file(current.join("link")).unwrap();
    let verified = site.run(vec![Step::Verify { release: release.clone(), tree_digest: kept.tree_digest }]);
    let reason = verified.reason.unwrap();
    assert!(reason.contains("bin/run has another content") && reason.contains("link is missing"), "{reason}");

    // What serves is left as it is until a whole one is switched to.
    let again = site.run(vec![Step::Unpack { digest, release: release.clone() }]);
    assert_eq!(again.reason, None);
    assert_eq!(std::fs::read(current.join("bin/run")).unwrap(), b"#!/bin/no\n");
    let here = "test \"$PWD\" = \"$DROVER_RELEASE_PATH\" && test \"$PWD\" -ef \"$DROVER_CURRENT_PATH\"";
    let steps = || {
        vec![
            Step::Unpack { digest, release: release.clone() },
            Step::Switch { release: release.clone() },
            bash("post_exec", here),
        ]
    };
    let switched = site.run(steps());
    assert_eq!(switched.reason, None);
    assert_eq!(names(&switched), [("1.0-abc.2", true), ("1.0-abc", false)]);
    assert_eq!(std::fs::read(current.join("bin/run")).unwrap(), b"#!/bin/sh\n");
    // A whole one is not unpacked again, and the other folder has its turn when this one is changed.
    assert_eq!(names(&site.run(steps())), [("1.0-abc.2", true), ("1.0-abc", false)]);
    std::fs::write(current.join("bin/run"), "#!/bin/no\n").unwrap();
    assert_eq!(names(&site.run(steps())), [("1.0-abc", true), ("1.0-abc.2", false)]);
    assert_eq!(std::fs::read(current.join("bin/run")).unwrap(), b"#!/bin/sh\n");
}

#[test]
fn an_archive_that_escapes_changes_nothing() {
    let file = ("ok", EntryType::Regular, "", b"fine".as_slice());
    let cases: &[(&str, &[Member<'_>])] = &[
        ("its name holds `..`", &[file, ("../evil", EntryType::Regular, "", b"x")]),
        ("its name holds `..`", &[file, ("a/../../evil", EntryType::Regular, "", b"x")]),
        ("its name is an absolute path", &[file, ("/etc/evil", EntryType::Regular, "", b"x")]),
        ("leads out of the archive", &[file, ("out", EntryType::Symlink, "../../..", b"")]),
        ("with `..` behind a name", &[("s", EntryType::Symlink, ".", b""), ("t", EntryType::Symlink, "s/s/..", b"")]),
        ("it is a link to an absolute path", &[file, ("out", EntryType::Symlink, "/etc", b"")]),
        ("it lies behind a link", &[("d", EntryType::Symlink, "x", b""), ("d/f", EntryType::Regular, "", b"x")]),
        ("of its target its name holds `..`", &[file, ("hard", EntryType::Link, "../../etc/passwd", b"")]),
        ("of its target its name is an absolute path", &[file, ("hard", EntryType::Link, "/etc/passwd", b"")]),
        (
            "to what is no file of the archive",
            &[("s", EntryType::Symlink, "ok", b""), ("hard", EntryType::Link, "s", b"")],
        ),
        ("it is a device", &[file, ("null", EntryType::Char, "", b"")]),
        ("it is a named pipe", &[file, ("pipe", EntryType::Fifo, "", b"")]),
        ("it is there twice", &[file, file]),
    ];
    for (expected, members) in cases {
        let site = Site::new();
        let digest = site.cache(&archive(members));
        let finished = site.run(vec![Step::Unpack { digest, release: "1-x".to_owned() }]);
        let reason = finished.reason.unwrap_or_default();
        assert!(reason.contains(expected), "expected `{expected}`, got `{reason}`");
        assert!(!site.deploy.exists(), "{expected}: something was created");
        assert!(!site.bench.path("evil").exists());
    }
    let site = Site::new();
    let digest = site.cache(b"this is no archive");
    let finished = site.run(vec![Step::Unpack { digest, release: "1-x".to_owned() }]);
    assert!(finished.reason.unwrap().contains("damaged"));
}

#[test]
fn pruning_spares_the_current_and_the_previous() {
    let site = Site::new();
    for release in ["1-a", "2-b", "3-c", "4-d"] {
        assert_eq!(site.install(release, 9).reason, None);
    }
    std::fs::create_dir(site.layout().releases().join(".5-e.tmp-dead")).unwrap();
    // Back to the oldest: the newest is the previous one then.
    let finished = site.run(vec![Step::Switch { release: "1-a".to_owned() }, Step::Prune { keep: 0 }]);
    assert_eq!(finished.reason, None);
    assert_eq!(names(&finished), [("4-d", false), ("1-a", true)]);
    assert_eq!(site.layout().previous_name().as_deref(), Some("4-d"));
    assert_eq!(std::fs::read_dir(site.layout().releases()).unwrap().count(), 2);
    let finished = site.install("6-f", 1);
    // `1-a` is previous, and one other is kept besides.
    assert_eq!(names(&finished), [("6-f", true), ("4-d", false), ("1-a", false)]);
}

#[test]
fn the_link_is_always_there_while_it_changes() {
    let site = Site::new();
    for release in ["1-a", "2-b"] {
        assert_eq!(site.install(release, 9).reason, None);
    }
    let (layout, stop) = (site.layout(), std::sync::atomic::AtomicBool::new(false));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0_u32;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::fs::read(layout.current().join("app.txt")).expect("current is whole at every moment");
                reads += 1;
            }
            reads
        });
        for round in 0..200 {
            layout.switch(if round % 2 == 0 { "1-a" } else { "2-b" }).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
}

#[test]
fn a_folder_called_current_is_left_alone() {
    let site = Site::new();
    assert_eq!(site.install("1-a", 9).reason, None);
    std::fs::remove_file(site.layout().current()).unwrap();
    std::fs::create_dir(site.layout().current()).unwrap();
    let finished = site.run(vec![Step::Switch { release: "1-a".to_owned() }]);
    assert_eq!(finished.state, ExecutionState::Failed);
    assert!(finished.reason.unwrap().contains("exists and is not a symbolic link"));
    let finished = site.run(vec![Step::Switch { release: "7-z".to_owned() }]);
    assert_eq!(finished.reason.as_deref(), Some("switch: release `7-z` is not on this host"));
    assert_eq!(names(&finished), [("1-a", false)]);
}

#[test]
fn an_unpack_that_runs_out_of_room_changes_nothing() {
    let site = Site::new();
    assert_eq!(site.install("1-a", 9).reason, None);
    let big = vec![0; 1 << 20];
    let members = [("small", EntryType::Regular, "", b"x".as_slice()), ("big", EntryType::Regular, "", &big)];
    let (digest, release) = (site.cache(&archive(&members)), "2-b".to_owned());
    let steps = vec![Step::Unpack { digest, release: release.clone() }, Step::Switch { release }];
    let folder = site.bench.accept(&site.entry(steps.clone()));
    let [shell, option, limit] = limited(256 * 1024);
    let status = Command::new(shell).args([option, limit]).arg(PROGRAM).arg("supervise").arg(folder.path()).status();
    assert!(status.unwrap().success());
    let finished = folder.status().unwrap().unwrap();
    let states: Vec<StepState> = finished.steps.iter().map(|step| step.state).collect();
    assert_eq!((finished.state, &states[..]), (ExecutionState::Failed, &[StepState::Failed, StepState::Skipped][..]));
    let reason = finished.reason.clone().unwrap();
    let expected = "unpack: member `big` cannot be unpacked: the file would be larger than this system allows";
    assert_eq!(reason, expected);
    assert!(text(&folder, Stream::Notice).contains(expected));
    assert_eq!(names(&finished), [("1-a", true)]);
    let left: Vec<_> =
        std::fs::read_dir(site.layout().releases()).unwrap().map(|item| item.unwrap().file_name()).collect();
    assert_eq!(left, ["1-a"], "the temporary folder is gone");
    assert_eq!(std::fs::read(site.layout().current().join("app.txt")).unwrap(), b"1-a");

    // Once there is room it goes well.
    let finished = site.run(steps);
    assert_eq!((finished.reason.as_deref(), names(&finished)), (None, vec![("2-b", true), ("1-a", false)]));
}
