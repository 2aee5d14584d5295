//! Going back only to what is kept, and only if it is whole.

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
