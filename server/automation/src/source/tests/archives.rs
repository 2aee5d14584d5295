//! What is in an archive, and what must not be.

use std::time::Instant;

use tar::EntryType;

use super::*;

#[tokio::test]
async fn a_path_becomes_the_root() {
    let scene = Scene::new();
    scene.write("README", "all");
    scene.write("dist/app.sh", "#!/bin/sh\n");
    scene.write("dist/[a]/deep é.txt", "deep");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(scene.repository().join("dist/app.sh"), executable).unwrap();
    std::os::unix::fs::symlink("app.sh", scene.repository().join("dist/link")).unwrap();
    let long = format!("dist/{}/{}", "x".repeat(120), "y".repeat(120));
    scene.write(&long, "long");
    scene.commit("one");
    let file = |name: &str, mode, content: &str| (name.to_owned(), mode, content.to_owned());
    let inside = [
        file("[a]/", 0o755, ""),
        file("[a]/deep é.txt", 0o644, "deep"),
        file("app.sh", 0o755, "#!/bin/sh\n"),
        file("link", 0o777, "-> app.sh"),
        file(&format!("{}/", "x".repeat(120)), 0o755, ""),
        file(long.strip_prefix("dist/").unwrap(), 0o644, "long"),
    ];
    let with = |path: &str| GitSource { path: Some(path.to_owned()), ..scene.source("main") };
    let folder = scene.fetch(&with("/dist/")).await.unwrap();
    assert_eq!((scene.members(folder.digest), folder.files), (inside.to_vec(), 4));
    for (path, name, content) in [("dist/[a]/deep é.txt", "deep é.txt", "deep"), ("README", "README", "all")] {
        let single = scene.fetch(&with(path)).await.unwrap();
        assert_eq!(scene.members(single.digest), [file(name, 0o644, content)]);
    }
    let whole = scene.fetch(&with(".")).await.unwrap();
    assert_eq!(scene.members(whole.digest).len(), 8);
    let error = scene.fetch(&with("dist/none")).await.unwrap_err();
    assert_eq!(error, SourceError::NoPath { path: "dist/none".to_owned(), commit: whole.commit });
}

#[tokio::test]
async fn an_archive_that_escapes_is_refused_as_a_whole() {
    let outside = [
        ("/etc/passwd", "it is a link to an absolute path"),
        ("../outside", "it is a link that leads out of the archive"),
        ("b/../../x", "it is a link with `..` behind a name, which may lead anywhere"),
        ("up/../..", "it is a link with `..` behind a name, which may lead anywhere"),
    ];
    for (target, reason) in outside {
        let scene = Scene::new();
        scene.write("b/keep", "");
        std::fs::create_dir(scene.repository().join("deep")).unwrap();
        std::os::unix::fs::symlink("deep/back", scene.repository().join("up")).unwrap();
        std::os::unix::fs::symlink("../b", scene.repository().join("deep/back")).unwrap();
        std::os::unix::fs::symlink(target, scene.repository().join("escape")).unwrap();
        scene.commit("one");
        let error = scene.fetch(&scene.source("main")).await.unwrap_err();
        assert_eq!(error, SourceError::Member { name: "escape".to_owned(), reason }, "{target}");
        assert_eq!(scene.artifacts(), 0);
    }
}

#[tokio::test]
async fn links_inside_are_kept() {
    let scene = Scene::new();
    scene.write("a/file", "x");
    for (name, target) in [("a/up", "../a/file"), ("loop", "loop"), ("dangling", "a/none"), ("folder", "a/.")] {
        std::os::unix::fs::symlink(target, scene.repository().join(name)).unwrap();
    }
    scene.commit("one");
    assert_eq!(scene.fetch(&scene.source("main")).await.unwrap().files, 5);
}

#[test]
fn members_that_git_never_makes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(folder.path()).unwrap();
    let member = |name: &str, kind: EntryType, target: &str| {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_mode(0o644);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let cases = [
        (vec![member("../x", EntryType::Regular, "")], "its name holds `..`"),
        (vec![member("/x", EntryType::Regular, "")], "its name is an absolute path"),
        (vec![member("x", EntryType::Char, "")], "it is a device"),
        (vec![member("x", EntryType::Fifo, "")], "it is a named pipe"),
        (
            vec![member("x", EntryType::Link, "y")],
            "it is a hard link; only files, folders and symbolic links are taken",
        ),
        (vec![member("x", EntryType::Regular, ""), member("./x", EntryType::Regular, "")], "it is there twice"),
        (vec![member("x", EntryType::Symlink, "y"), member("x/z", EntryType::Regular, "")], "it lies behind a link"),
        (
            vec![member("x/z", EntryType::Regular, ""), member("x", EntryType::Symlink, "../..")],
            "it is a link that leads out of the archive",
        ),
        (
            vec![member("x/z", EntryType::Regular, ""), member("x", EntryType::Regular, "")],
            "it lies below what is no folder",
        ),
        (vec![member("./", EntryType::Symlink, "x")], "it has no name"),
    ];
    for (members, expected) in cases {
        let stream = [members.concat(), vec![0; 1024]].concat();
        match members::pack_git(&stream[..], 0, &Limits::default(), &store) {
            Err(SourceError::Member { reason, .. }) => assert_eq!(reason, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn limits_hold() {
    let check = async |limits: Limits, expected: &str| {
        let scene = Scene::with(limits);
        for number in 0..20 {
            scene.write(&number.to_string(), &"x".repeat(1000));
        }
        scene.commit("one");
        let error = scene.fetch(&scene.source("main")).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(scene.artifacts(), 0);
    };
    let limits = Limits::default();
    check(Limits { members_max: 19, ..limits.clone() }, "the archive has more than 19 members").await;
    check(Limits { unpacked_bytes_max: 19_999, ..limits.clone() }, "the archive is larger than 19999 bytes unpacked")
        .await;
    check(Limits { artifact_bytes_max: 50, ..limits }, "the archive is larger than 50 bytes packed").await;
}

#[tokio::test]
async fn what_would_be_missing_is_refused() {
    let scene = Scene::new();
    scene.write("site/index.html", "hello");
    scene.write("large/big.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n");
    scene.write("large/small.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n");
    let commit = scene.commit("one");
    let at = |path: &str| GitSource { path: Some(path.to_owned()), ..scene.source("main") };
    let refused = async |source: GitSource| match scene.fetch(&source).await.unwrap_err() {
        SourceError::Incomplete(reason) => reason,
        other => panic!("{other}"),
    };
    let reason = refused(scene.source("main")).await;
    assert!(reason.contains("2 files, `large/big.bin` first, are Git LFS pointers"), "{reason}");
    let reason = refused(at("large/small.bin")).await;
    assert!(reason.contains("1 files, `small.bin` first"), "{reason}");
    assert_eq!((scene.fetch(&at("site")).await.unwrap().files, scene.artifacts()), (1, 1));

    // A submodule, whether `.gitmodules` tells of it or not.
    scene.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{commit},site/vendor/x y")]);
    scene.git(&["commit", "--quiet", "-m", "two"]);
    for path in ["site", "site/vendor", "site/vendor/x y"] {
        let reason = refused(at(path)).await;
        assert!(reason.starts_with("`site/vendor/x y` is a submodule, and submodules are not followed"), "{reason}");
    }
    assert_eq!(scene.fetch(&at("site/index.html")).await.unwrap().files, 1);
    assert_eq!(scene.artifacts(), 1, "nothing was packed of what was refused");
}

#[tokio::test]
async fn what_an_older_server_packed_in_spite_of_pointers_is_refused() {
    let scene = Scene::new();
    scene.write("a", "1");
    let commit = scene.commit("one");
    let source = scene.source("main");
    let digest = scene.fetch(&source).await.unwrap().digest;
    let index = scene.sources.index(Digest::of(source.url.as_bytes()), &commit, None);
    let mut packed: serde_json::Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
    packed["notices"] = serde_json::json!(["pointers"]);
    std::fs::write(&index, packed.to_string()).unwrap();
    assert_eq!(scene.fetch(&source).await.unwrap().digest, digest);
    let packed: serde_json::Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
    assert_eq!(packed.get("notices"), None, "it was packed anew");
}

#[tokio::test]
async fn twenty_thousand_files() {
    let scene = Scene::new();
    for number in 0..20_000 {
        scene.write(&format!("{}/{number}.txt", number % 100), &format!("file {number}\n"));
    }
    scene.commit("many");
    let start = Instant::now();
    let fetched = scene.fetch(&scene.source("main")).await.unwrap();
    println!("20,000 files: {:?}, {} bytes", start.elapsed(), fetched.size_bytes);
    assert_eq!(fetched.files, 20_000);
    let start = Instant::now();
    assert_eq!(scene.fetch(&scene.source("main")).await.unwrap().digest, fetched.digest);
    println!("again: {:?}", start.elapsed());
}
