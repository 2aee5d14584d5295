//! Deploy paths whose owner means harm: links, pipes and folders put in the agent's way.

use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use drover_agent::release::verify::verify;
use drover_shared::order::Step;
use drover_shared::words::ExecutionState;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use tar::EntryType;

use crate::bench::is_root;
use crate::releases::{Site, archive, names};

/// Every path below a folder, with what tells whether it was touched.
fn picture(folder: &Path) -> Vec<(PathBuf, u32, u32, i64, i64)> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let meta = std::fs::symlink_metadata(&folder).unwrap();
        all.push((folder.clone(), meta.uid(), meta.mode(), meta.ctime(), meta.ctime_nsec()));
        if meta.is_dir() {
            folders.extend(std::fs::read_dir(&folder).unwrap().map(|item| item.unwrap().path()));
        }
    }
    all.sort();
    all
}

/// Moves `from` outside the deploy path and leaves a link in its place; gives the folder outside.
fn lead_astray(site: &Site, from: &Path) -> PathBuf {
    let outside = site.bench.path("outside");
    std::fs::rename(from, &outside).unwrap();
    symlink(&outside, from).unwrap();
    outside
}

#[test]
fn a_link_in_the_place_of_releases_is_refused() {
    let site = Site::new();
    assert_eq!(site.install("1-a", 9).reason, None);
    let outside = lead_astray(&site, &site.layout().releases());
    let before = picture(&outside);
    let digest = site.cache(&archive(&[("app.txt", EntryType::Regular, "", b"x")]));
    let tree_digest = digest;
    for (step, name) in [
        (Step::Unpack { digest, release: "2-b".to_owned() }, "unpack"),
        (Step::Switch { release: "1-a".to_owned() }, "switch"),
        (Step::Verify { release: "1-a".to_owned(), tree_digest }, "verify"),
        (Step::Prune { keep: 0 }, "prune"),
    ] {
        let finished = site.run(vec![step]);
        assert_eq!((finished.state, finished.releases), (ExecutionState::Failed, None), "{name}");
        let reason = finished.reason.unwrap();
        let expected = format!("folder `{}` cannot be", site.layout().releases().display());
        assert!(reason.starts_with(&format!("{name}: {expected}")), "{reason}");
        assert!(reason.ends_with("it is a symbolic link, not a folder"), "{reason}");
    }
    assert_eq!(picture(&outside), before);
}

#[test]
fn a_link_in_the_place_of_the_notes_is_refused() {
    let site = Site::new();
    assert_eq!(site.install("1-a", 9).reason, None);
    let outside = lead_astray(&site, &site.layout().notes());
    let before = picture(&outside);
    for finished in [site.install("2-b", 0), site.run(vec![Step::Prune { keep: 0 }])] {
        let reason = finished.reason.unwrap();
        assert!(reason.ends_with("it is a symbolic link, not a folder"), "{reason}");
    }
    assert_eq!(picture(&outside), before);
    assert!(!site.layout().release("2-b").exists());
}

#[test]
fn notes_that_others_may_write_are_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let site = Site::new();
    assert_eq!(site.install("1-a", 9).reason, None);
    let notes = site.layout().notes();
    std::fs::set_permissions(&notes, std::fs::Permissions::from_mode(0o777)).unwrap();
    let reason = site.install("2-b", 0).reason.unwrap();
    assert!(reason.contains("does not belong to the agent's account alone"), "{reason}");
}

#[test]
fn folders_that_change_places_with_links_lead_nowhere() {
    let site = Site::new();
    for release in ["1-a", "2-b", "3-c"] {
        assert_eq!(site.install(release, 9).reason, None);
    }
    let outside = site.bench.path("outside");
    std::fs::create_dir_all(outside.join("1-a")).unwrap();
    std::fs::write(outside.join("1-a/app.txt"), "precious").unwrap();
    for name in ["releases-link", ".drover-link"] {
        symlink(&outside, site.deploy.join(name)).unwrap();
    }
    let before = picture(&outside);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let swap = |name: &str, link: &str| {
                let (name, link) = (site.deploy.join(name), site.deploy.join(link));
                let _ = renameat2(AT_FDCWD, &name, AT_FDCWD, &link, RenameFlags::RENAME_EXCHANGE);
            };
            while !done.load(Ordering::Relaxed) {
                swap("releases", "releases-link");
                swap(".drover", ".drover-link");
                swap("releases", "releases-link");
                swap(".drover", ".drover-link");
            }
        });
        let layout = site.layout();
        for round in 0..2_000 {
            let _ = layout.switch(if round % 2 == 0 { "2-b" } else { "3-c" });
            let _ = layout.prune(0, &|_| false, &mut || false, &mut Vec::new());
            let _ = layout.list();
        }
        for _ in 0..20 {
            let _ = site.install("4-d", 0);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(picture(&outside), before);
}

#[test]
fn a_link_of_another_account_on_the_way_is_refused() {
    let mut site = Site::new();
    let outside = site.bench.path("outside");
    std::fs::create_dir(&outside).unwrap();
    let link = site.bench.path("link");
    symlink(&outside, &link).unwrap();
    site.deploy = link.join("shop");
    // The agent's own links are its business.
    assert_eq!(site.install("1-a", 9).reason, None);
    if !is_root() {
        // Without root no link of another account can be made; the agent could not be led beyond its own rights.
        return;
    }
    std::os::unix::fs::lchown(&link, Some(65_534), Some(65_534)).unwrap();
    let before = picture(&outside);
    let reason = site.install("2-b", 0).reason.unwrap();
    assert!(reason.contains("`link` on the way to it is a symbolic link of another account"), "{reason}");
    assert_eq!(picture(&outside), before);
}

#[test]
fn a_release_is_verified_without_following_links_or_waiting_for_pipes() {
    let site = Site::new();
    let members = [("d/f", EntryType::Regular, "", b"x".as_slice()), ("p", EntryType::Regular, "", b"")];
    let digest = site.cache(&archive(&members));
    let release = "1-a".to_owned();
    let finished = site.run(vec![Step::Unpack { digest, release: release.clone() }]);
    assert_eq!(names(&finished), [("1-a", false)]);
    let tree_digest = finished.releases.unwrap()[0].tree_digest;
    let folder = site.layout().release(&release);
    std::fs::rename(folder.join("d"), site.bench.path("same")).unwrap();
    symlink(site.bench.path("same"), folder.join("d")).unwrap();
    std::fs::remove_file(folder.join("p")).unwrap();
    nix::unistd::mkfifo(&folder.join("p"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reason = site.run(vec![Step::Verify { release, tree_digest }]).reason.unwrap();
    for expected in ["d is no folder any more", "d/f is missing", "p is no file any more"] {
        assert!(reason.contains(expected), "{reason}");
    }
}

#[test]
fn looking_and_pruning_end_when_they_are_told_to() {
    let site = Site::new();
    for release in ["1-a", "2-b", "3-c"] {
        assert_eq!(site.install(release, 9).reason, None);
    }
    let layout = site.layout();
    let tree_digest = layout.list().unwrap()[0].tree_digest;
    assert_eq!(verify(&layout, "3-c", tree_digest, &mut || true), Err("stopped".to_owned()));
    let error = layout.prune(0, &|_| false, &mut || true, &mut Vec::new()).unwrap_err();
    assert!(error.ends_with("stopped"), "{error}");
    // What was half removed is no release any more, and the next one removes the rest.
    assert_eq!(layout.list().unwrap().iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["3-c", "2-b"]);
    layout.prune(0, &|_| false, &mut || false, &mut Vec::new()).unwrap();
    assert_eq!(std::fs::read_dir(layout.releases()).unwrap().count(), 2);
}

#[test]
fn without_root_files_of_another_user_are_refused() {
    let site = Site::new();
    let digest = site.cache(&archive(&[("f", EntryType::Regular, "", b"x")]));
    let mut entry = site.entry(vec![Step::Unpack { digest, release: "1-a".to_owned() }]);
    entry.run_user = Some("root".to_owned());
    let reason = site.bench.run_without_root(&entry).0.reason.unwrap();
    assert!(reason.starts_with("unpack: the agent runs as `"), "{reason}");
    assert!(reason.ends_with("` and may not run scripts as `root`"), "{reason}");
    assert!(!site.deploy.exists(), "nothing was made");
    entry.run_user = None;
    let finished = site.bench.run_without_root(&entry).0;
    assert_eq!(finished.reason, None, "its own files it may have");
    let owner = std::fs::symlink_metadata(site.layout().release("1-a").join("f")).unwrap().uid();
    assert_ne!(owner, 0);
}

#[test]
fn files_belong_to_the_running_user() {
    if !is_root() {
        // Only root may give files away; see above for everybody else.
        return;
    }
    let site = Site::new();
    let digest = site.cache(&archive(&[("d/f", EntryType::Regular, "", b"x"), ("l", EntryType::Symlink, "d", b"")]));
    let mut entry = site.entry(vec![Step::Unpack { digest, release: "1-a".to_owned() }]);
    entry.run_user = Some("nobody".to_owned());
    let (finished, _) = site.bench.run(&entry);
    assert_eq!(finished.reason, None);
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap().uid.as_raw();
    let release = site.layout().release("1-a");
    let layout = site.layout();
    for path in
        [release.clone(), release.join("d"), release.join("d/f"), release.join("l"), layout.shared(), layout.releases()]
    {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!(meta.uid(), nobody, "{}", path.display());
    }
    assert_eq!(std::fs::symlink_metadata(layout.notes()).unwrap().uid(), 0);
}
