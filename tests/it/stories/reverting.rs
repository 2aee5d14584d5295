//! Going back to what is kept if it is whole, and to what was there before and can be had again.

use std::fs;

use super::*;

#[tokio::test]
async fn a_version_that_is_not_kept_is_refused_with_what_is() {
    let shop = Shop::with_versions(&["web-1"]).await;
    shop.commit("v3", &[("index.html", "three\n")]);
    shop.deployed("v1").await;
    shop.deployed("v2").await;
    let task = shop.deploy_task("v3").await;
    let path = format!("/applications/deploy-tasks/{task}/sub-revert-tasks/");
    let refused = shop.api().post(&path, shop.sub_task("v3")).await.expect(409);
    assert_eq!(
        refused["message"], "version v3 is not among the releases that web-1 keeps; it keeps v2, v1",
        "{refused}"
    );
    assert_eq!(shop.api().get(&path).await.expect(200)["count"], 0);
    assert_eq!(shop.instance("web-1").await, ("running".to_owned(), Some("v2".to_owned())));
}

/// Releases that the host keeps, by the versions that their folders are named after.
fn kept(shop: &Shop) -> Vec<String> {
    let folders = fs::read_dir(shop.deploy_path("web-1").join("releases")).expect("releases");
    let name = |item: fs::DirEntry| item.file_name().to_string_lossy().into_owned();
    let mut versions: Vec<String> =
        folders.filter_map(|item| Some(name(item.expect("a release")).rsplit_once('-')?.0.to_owned())).collect();
    versions.sort();
    versions
}

/// Takes everything back to a version and gives the steps that this took.
async fn reverted(shop: &Shop, version: &str) -> Vec<String> {
    let sub_task = shop.revert(version).await;
    let detail = shop.end_of(&sub_task).await;
    assert_eq!(detail["status"], "finished", "{detail:#}");
    assert_eq!(shop.instance("web-1").await, ("running".to_owned(), Some(version.to_owned())));
    steps(on_host(&detail, "web-1")).into_iter().map(|(name, _)| name).collect()
}

#[tokio::test]
async fn a_version_that_is_no_longer_kept_is_installed_again() {
    let shop = Shop::with_versions(&["web-1"]).await;
    let folder = shop.folder().display().to_string();
    shop.commit("v3", &[("index.html", "three\n")]);
    shop.set(json!({"keep_backups": 1})).await;
    for version in ["v1", "v2", "v3"] {
        shop.deployed(version).await;
    }
    assert_eq!(kept(&shop), ["v2", "v3"]);
    let serve = format!("cp \"$DROVER_RELEASE_PATH/index.html\" '{folder}/served'");
    shop.hook("post_exec", "bash", &serve).await;
    let served = || fs::read_to_string(shop.folder().join("served")).ok();

    // The archive is still in the server's store.
    assert_eq!(reverted(&shop, "v1").await, ["fetch", "unpack", "switch", "post_exec", "prune"]);
    assert_eq!((served().as_deref(), kept(&shop)), (Some("one\n"), vec!["v1".to_owned(), "v3".to_owned()]));
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("one\n"));

    // It is packed anew from its commit, even though the tag names another one by now.
    let artifacts = shop.folder().join("server/artifacts");
    let forget = || {
        for item in fs::read_dir(&artifacts).expect("the artifacts").map(|item| item.expect("a folder").path()) {
            fs::remove_dir_all(&item).expect("the artifacts are removed");
            if item.ends_with("incoming") {
                fs::create_dir(&item).expect("a folder");
            }
        }
    };
    forget();
    git(&shop.repository(), &["tag", "--force", "v2", "v1"]);
    assert_eq!(reverted(&shop, "v2").await, ["fetch", "unpack", "switch", "post_exec", "prune"]);
    assert_eq!((served().as_deref(), kept(&shop)), (Some("two\n"), vec!["v1".to_owned(), "v2".to_owned()]));
    // What is kept is switched to, as ever.
    assert_eq!(reverted(&shop, "v1").await, ["verify", "switch", "post_exec"]);

    // The repository has another history by now: its branch is no substitute for the commit.
    forget();
    for item in fs::read_dir(shop.folder().join("server/sources")).expect("the mirrors").flatten() {
        if item.path().extension().is_some_and(|kind| kind == "git") {
            fs::remove_dir_all(item.path()).expect("a mirror");
        }
    }
    fs::remove_dir_all(shop.repository().join(".git")).expect("the old history");
    git(&shop.repository(), &["init", "--quiet", "--initial-branch=main"]);
    shop.commit("v4", &[("index.html", "not three\n")]);
    let task = shop.deploy_task("v3").await;
    let path = format!("/applications/deploy-tasks/{task}/sub-revert-tasks/");
    let refused = shop.api().post(&path, shop.sub_task("v3")).await.expect(409);
    assert!(text(&refused["message"]).contains("is no longer in the repository"), "{refused}");

    // Neither the archive nor the repository is left.
    forget();
    fs::rename(shop.repository(), shop.folder().join("elsewhere")).expect("the repository goes away");
    let refused = shop.api().post(&path, shop.sub_task("v3")).await.expect(409);
    let message = text(&refused["message"]);
    assert!(
        message.contains("version v3") && message.contains("cannot be had again: there is no repository"),
        "{message}"
    );
    let dry = shop.api().post(&format!("{path}?dry_run=true"), shop.sub_task("v3")).await;
    assert_eq!(dry.status, 409, "{}", dry.body);
    assert_eq!(shop.api().get(&path).await.expect(200)["count"], 0);
    assert_eq!(shop.instance("web-1").await, ("running".to_owned(), Some("v1".to_owned())));
}

#[tokio::test]
async fn a_release_that_was_tampered_with_is_not_switched_to() {
    let shop = Shop::with_versions(&["web-1"]).await;
    let folder = shop.folder().display().to_string();
    shop.deployed("v1").await;
    shop.deployed("v2").await;
    shop.hook("pre_exec", "bash", &format!("touch '{folder}/pre_exec-ran'")).await;
    let releases = shop.deploy_path("web-1").join("releases");
    let kept = fs::read_dir(releases).expect("releases").map(|item| item.expect("a release").path());
    let first = kept.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("v1-")));
    let first = first.last().expect("the release of v1");
    fs::write(first.join("index.html"), "uno\n").expect("the changed file");

    let sub_task = shop.revert("v1").await;
    let detail = shop.end_of(&sub_task).await;
    let instance = on_host(&detail, "web-1");
    assert_eq!((&detail["status"], &instance["status"]), (&json!("failed"), &json!("failed")), "{detail:#}");
    let reason = text(&instance["error"]);
    assert!(reason.starts_with("verify: ") && reason.contains("index.html has another content"), "{reason}");
    assert!(shop.output(&sub_task, "").await.text.contains(&reason));
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("two\n"));
    assert!(!shop.folder().join("pre_exec-ran").exists(), "it is verified before anything is stopped");
    assert_eq!(shop.instance("web-1").await.1.as_deref(), Some("v2"));
}
