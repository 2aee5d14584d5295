//! The spool on a disk that is full.

use drover_shared::words::{ExecutionState, StepState};

use crate::bench::{accept_in, bash, entry, is_root, supervise};

/// A small file system of its own; gone with the value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder.path())
            .status();
        status.is_ok_and(|status| status.success()).then(|| Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_fails_the_step_with_that_reason() {
    let Some(disk) = is_root().then(|| SmallDisk::mount("1m")).flatten() else { return };
    let data_dir = disk.0.path().join("data");
    let folder = accept_in(
        &data_dir,
        &entry(vec![bash("pre_exec", "sleep 100 & head -c 4000000 /dev/zero; sleep 100")]),
        60_000,
    );
    supervise(&folder);
    let finished = folder.status().unwrap().unwrap();
    assert_eq!((finished.state, finished.steps[0].state), (ExecutionState::Failed, StepState::Failed));
    let reason = finished.reason.unwrap();
    assert!(reason.contains("its output cannot be kept: the disk is full"), "{reason}");
    assert!(finished.processes.ended >= 1);
    assert!(finished.processes.survivors.is_empty());
}

#[test]
fn a_full_disk_takes_no_order() {
    let Some(disk) = is_root().then(|| SmallDisk::mount("64k")).flatten() else { return };
    let spool = drover_agent::spool::Spool::open(disk.0.path()).unwrap();
    let filler = disk.0.path().join("filler");
    let _ = std::fs::write(&filler, vec![1; 1 << 20]);
    let bench = crate::bench::Bench::new();
    let accepted = bench.accept(&entry(vec![])).accepted().unwrap();
    let key = drover_agent::spool::Key::new(&crate::bench::execution_id(), 1).unwrap();
    let error = spool.accept(&key, &accepted).unwrap_err();
    assert_eq!(drover_agent::describe(&error), "the disk is full");
    assert!(spool.list().unwrap().is_empty());
    assert!(std::fs::read_dir(disk.0.path().join("spool")).unwrap().next().is_none());
}
