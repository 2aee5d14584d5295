//! Paths that every version shares, and a disk that has no room for the next one.

use super::*;

/// Writes a file below the release in use, as the application does.
fn write(shop: &Shop, file: &str, content: &str) {
    fs::write(shop.deploy_path("web-1").join("current").join(file), content).expect("a file of the application");
}

#[tokio::test]
async fn what_is_shared_survives_updates_and_a_revert() {
    let shop = Shop::open(Engine::Sqlite, &["web-1"]).await;
    shop.commit("v1", &[("index.html", "one\n"), ("uploads/packed.txt", "of the archive\n"), ("conf/a.toml", "a\n")]);
    shop.commit("v2", &[("index.html", "two\n")]);
    shop.commit("v3", &[("index.html", "three\n"), ("uploads/packed.txt", "of another archive\n")]);
    // At first nothing is shared: the same version gets its shared paths when it is deployed again.
    shop.deployed("v1").await;
    assert_eq!(shop.current("web-1", "uploads/packed.txt").as_deref(), Some("of the archive\n"));
    shop.set(json!({"shared_paths": ["uploads/", "conf/local.toml"]})).await;
    shop.deployed("v1").await;
    assert_eq!(shop.current("web-1", "uploads/packed.txt"), None, "what is shared is not the archive's");
    write(&shop, "uploads/photo.jpg", "a photo\n");
    write(&shop, "conf/local.toml", "mine\n");
    let kept = |file: &str| fs::read_to_string(shop.deploy_path("web-1").join("shared").join(file)).ok();
    assert_eq!(kept("uploads/photo.jpg").as_deref(), Some("a photo\n"));

    for (version, page) in [("v2", "two\n"), ("v3", "three\n")] {
        shop.deployed(version).await;
        assert_eq!(shop.current("web-1", "index.html").as_deref(), Some(page));
        assert_eq!(shop.current("web-1", "uploads/photo.jpg").as_deref(), Some("a photo\n"));
        assert_eq!(shop.current("web-1", "conf/local.toml").as_deref(), Some("mine\n"));
        assert_eq!(shop.current("web-1", "conf/a.toml").as_deref(), Some("a\n"));
    }
    write(&shop, "uploads/photo.jpg", "a better photo\n");
    let sub_task = shop.revert("v2").await;
    let detail = shop.end_of(&sub_task).await;
    assert_eq!(detail["status"], "finished", "{detail:#}");
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("two\n"));
    assert_eq!(shop.current("web-1", "uploads/photo.jpg").as_deref(), Some("a better photo\n"));
    // What the application writes there is no drift.
    let path = format!("/applications/{}/instances/{}/releases/?compare=true", shop.application, shop.instances[0].1);
    let told = shop.api().get(&path).await.expect(200);
    let releases = told["releases"].as_array().expect("releases");
    // The first version is there twice: with what is shared and without.
    assert!(releases.len() == 4 && releases.iter().all(|release| release["drift"]["count"] == 0), "{told:#}");
    assert_eq!(kept("uploads/photo.jpg").as_deref(), Some("a better photo\n"));
}

#[tokio::test]
async fn a_disk_without_room_is_noticed_before_anything_is_stopped() {
    let shop = Shop::with_versions(&["web-1"]).await;
    let folder = shop.folder().display().to_string();
    shop.deployed("v1").await;
    shop.hook("pre_exec", "bash", &format!("touch '{folder}/stopped'")).await;
    // The file system of the processes has no room at all, wherever this runs.
    shop.set(json!({"deploy_path": "/proc/none/shop"})).await;
    let sub_task = shop.deploy("v2").await;
    let detail = shop.end_of(&sub_task).await;
    let instance = on_host(&detail, "web-1");
    assert_eq!((&detail["status"], &instance["status"]), (&json!("failed"), &json!("failed")), "{detail:#}");
    let reason = text(&instance["error"]);
    assert!(
        reason.starts_with("fetch: the disk is full: ") || reason.starts_with("fetch the disk is full: "),
        "{reason}"
    );
    assert!(reason.contains("bytes are needed below `/proc/none/shop`, 0 are free"), "{reason}");
    assert_eq!(steps(instance)[0], ("fetch".to_owned(), "failed".to_owned()));
    assert!(!shop.folder().join("stopped").exists(), "the hook that stops the application did not run");
    assert!(shop.output(&sub_task, "").await.text.contains(&reason));
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("one\n"));
}

#[tokio::test]
async fn the_same_version_with_other_shared_paths_leaves_what_serves_until_it_is_switched() {
    let shop = Shop::open(Engine::Sqlite, &["web-01"]).await;
    shop.commit("v1", &[("index.html", "one\n"), ("uploads/a", "of the archive\n")]);
    shop.deployed("v1").await;
    let before = fs::read_link(shop.deploy_path("web-01").join("current")).expect("a link");
    shop.set(json!({"shared_paths": ["uploads/"]})).await;
    // The hook after the switch fails: the release that served before is whole still.
    let folder = shop.folder().display().to_string();
    shop.hook("post_exec", "bash", &format!("test ! -e '{folder}/fail'")).await;
    fs::write(shop.folder().join("fail"), "").expect("a file");
    let sub_task = shop.deploy("v1").await;
    assert_eq!(shop.end_of(&sub_task).await["status"], "failed");
    fs::remove_file(shop.folder().join("fail")).expect("the file");
    let live = shop.deploy_path("web-01").join(&before).join("uploads/a");
    assert_eq!(fs::read_to_string(live).expect("what served"), "of the archive\n");
    assert_ne!(fs::read_link(shop.deploy_path("web-01").join("current")).expect("a link"), before);
    shop.deployed("v1").await;
    assert_eq!(shop.current("web-01", "uploads/a"), None, "the shared folder is empty");
}
