//! Which commit a version is, and what cannot be fetched.

use std::sync::Mutex;

use super::*;

#[tokio::test]
async fn a_version_is_a_tag_a_commit_a_branch_or_a_label() {
    let scene = Scene::new();
    scene.write("a", "1");
    let first = scene.commit("one");
    scene.git(&["tag", "-a", "-m", "one", "v1"]);
    scene.write("a", "2");
    let second = scene.commit("two");
    scene.git(&["branch", "next"]);
    scene.git(&["branch", "deadbeef"]);
    scene.write("a", "3");
    let third = scene.commit("three");
    let upper = first.to_uppercase();
    let cases = [
        ("v1", &first, RefKind::Tag, false),
        (&second, &second, RefKind::Commit, false),
        (&second[..7], &second, RefKind::Commit, false),
        (&upper, &first, RefKind::Commit, false),
        ("next", &second, RefKind::Branch, false),
        ("deadbeef", &second, RefKind::Branch, false),
        ("main", &third, RefKind::Branch, false),
        ("2.0", &third, RefKind::Branch, true),
        ("any label: (with) ~ this^", &third, RefKind::Branch, true),
        ("HEAD", &third, RefKind::Branch, true),
        (&second[..6], &third, RefKind::Branch, true),
    ];
    for (version, commit, kind, label_only) in cases {
        let fetched = scene.fetch(&scene.source(version)).await.unwrap();
        assert_eq!((&fetched.commit, fetched.ref_kind, fetched.label_only), (commit, kind, label_only), "{version}");
    }
    assert_eq!(scene.artifacts(), 3, "one for each commit");
    let missing = GitSource { branch: "trunk".to_owned(), ..scene.source("2.0") };
    let error = scene.fetch(&missing).await.unwrap_err().to_string();
    assert_eq!(error, "repository has neither a tag, commit nor branch `2.0`, and no branch `trunk`");
}

#[tokio::test]
async fn a_moved_branch_and_a_removed_tag_are_followed() {
    let scene = Scene::new();
    scene.write("a", "1");
    let first = scene.commit("one");
    scene.git(&["tag", "v1"]);
    let before = scene.fetch(&scene.source("main")).await.unwrap();
    assert_eq!(before.commit, first);
    scene.git(&["checkout", "--quiet", "--orphan", "other"]);
    scene.write("a", "rewritten");
    let second = scene.commit("another beginning");
    scene.git(&["branch", "--force", "main", "other"]);
    scene.git(&["tag", "-d", "v1"]);
    let after = scene.fetch(&scene.source("main")).await.unwrap();
    assert_eq!(after.commit, second);
    assert_ne!(after.digest, before.digest);
    let gone = scene.fetch(&scene.source("v1")).await.unwrap();
    assert!(gone.label_only);
    assert_eq!(gone.digest, after.digest);
}

#[tokio::test]
async fn nothing_is_packed_twice_and_progress_is_told() {
    let scene = Scene::new();
    scene.write("a", "1");
    scene.commit("one");
    let lines = Mutex::new(Vec::new());
    let tell = |line| lines.lock().unwrap().push(line);
    let source = scene.source("main");
    let first = scene.sources.fetch(&source, &Access::default(), &tell).await.unwrap();
    let second = scene.sources.fetch(&source, &Access::default(), &tell).await.unwrap();
    assert_eq!(first, second);
    let lines = lines.into_inner().unwrap();
    let count = |word: &str| lines.iter().filter(|line| line.starts_with(word)).count();
    assert_eq!((count("Fetching"), count("Version"), count("Packing"), count("Artifact")), (2, 2, 1, 2), "{lines:?}");
    // Another server makes the same bytes of it.
    let other = Scene::new();
    let again = other.fetch(&source).await.unwrap();
    assert_eq!(again.digest, first.digest);
}

#[tokio::test]
async fn what_is_no_repository_is_told() {
    let scene = Scene::new();
    let error = scene.fetch(&scene.source("main")).await.unwrap_err();
    assert!(matches!(&error, SourceError::Empty { .. }), "{error}");
    let nowhere = GitSource { url: "/nowhere/at all".replace(' ', "-"), ..scene.source("main") };
    let error = scene.fetch(&nowhere).await.unwrap_err();
    assert!(matches!(&error, SourceError::Missing { .. }), "{error}");
    assert!(error.to_string().starts_with("there is no repository at /nowhere/at-all: "), "{error}");
    let refused = GitSource { url: "git://host/x".to_owned(), ..scene.source("main") };
    let error = scene.fetch(&refused).await.unwrap_err().to_string();
    assert_eq!(error, "repository.url must begin with https://, http://, ssh://, file:/// or /, or be user@host:path");
    for (version, branch, field) in
        [("-x", "main", "version"), ("1", "--all", "repository.branch"), ("1", "a b", "repository.branch")]
    {
        let source = GitSource { branch: branch.to_owned(), ..scene.source(version) };
        let error = scene.fetch(&source).await.unwrap_err();
        assert!(matches!(error, SourceError::Invalid { field: named, .. } if named == field), "{error}");
    }
}

#[tokio::test]
async fn a_spoiled_mirror_is_made_anew() {
    let scene = Scene::new();
    scene.write("a", "1");
    scene.commit("one");
    let source = scene.source("main");
    scene.fetch(&source).await.unwrap();
    let mirror = scene.folder.path().join(format!("sources/{}.git", Digest::of(source.url.as_bytes())));
    scene.git(&["branch", "gone"]);
    scene.fetch(&source).await.unwrap();
    scene.git(&["branch", "-D", "gone"]);
    // As a killed fetch leaves it.
    std::fs::write(mirror.join("packed-refs.lock"), "").unwrap();
    std::fs::write(mirror.join("refs/heads/main.lock"), "").unwrap();
    scene.write("a", "2");
    let second = scene.commit("two");
    assert_eq!(scene.fetch(&source).await.unwrap().commit, second);
    std::fs::write(mirror.join("HEAD"), "").unwrap();
    scene.write("a", "3");
    let third = scene.commit("three");
    assert_eq!(scene.fetch(&source).await.unwrap().commit, third);
}

#[tokio::test]
async fn fetches_of_one_repository_take_turns() {
    let scene = Scene::with(Limits { wait_max: Duration::ZERO, ..Limits::default() });
    scene.write("a", "1");
    scene.commit("one");
    let source = scene.source("main");
    let turn = scene.sources.turn(Digest::of(source.url.as_bytes()));
    let held = turn.lock().await;
    let error = scene.fetch(&source).await.unwrap_err();
    assert!(matches!(error, SourceError::Busy { .. }), "{error}");
    drop(held);
    scene.fetch(&source).await.unwrap();
}

#[tokio::test]
async fn a_mirror_goes_when_nobody_works_with_it_and_whole() {
    let scene = Scene::new();
    scene.write("a", "1");
    let commit = scene.commit("one");
    let source = scene.source("main");
    scene.fetch(&source).await.unwrap();
    let (folder, key) = (scene.sources.folder(), key(&source.url));
    let turn = scene.sources.turn(key);
    let held = turn.lock().await;
    assert!(!scene.sources.remove(key).await.unwrap());
    drop(held);
    assert_eq!(mirrors(folder).unwrap(), [key].into());
    assert!(bytes_of(folder, key) > 0);
    // As a server leaves it that was killed meanwhile.
    std::fs::rename(folder.join(format!("{key}.git")), folder.join(format!("{key}.new"))).unwrap();
    assert_eq!(mirrors(folder).unwrap(), [key].into());
    assert!(scene.sources.remove(key).await.unwrap());
    assert_eq!((mirrors(folder).unwrap(), bytes_of(folder, key)), (Default::default(), 0));
    assert!(scene.sources.remove(key).await.unwrap(), "what is not there is gone");
    assert_eq!(scene.fetch(&source).await.unwrap().commit, commit);
}

#[tokio::test]
async fn the_servers_own_files_are_no_repository() {
    let scene = Scene::new();
    scene.write("a", "1");
    scene.commit("one");
    scene.fetch(&scene.source("main")).await.unwrap();
    let mirror = scene.sources.folder.join(format!("{}.git", Digest::of(scene.source("main").url.as_bytes())));
    assert!(mirror.is_dir());
    for url in [mirror.display().to_string(), format!("file://{}", mirror.display())] {
        let error = scene.fetch(&GitSource { url, ..scene.source("main") }).await.unwrap_err();
        assert!(matches!(error, SourceError::Invalid { field: "repository.url", .. }), "{error}");
    }
}
