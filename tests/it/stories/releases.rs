//! What hosts keep, asked of the hosts themselves: releases, their size, and what somebody changed there.

use std::process::Command;

use super::*;

async fn releases(shop: &Shop, host: &str, query: &str) -> Value {
    let (_, id) = shop.instances.iter().find(|(name, _)| name == host).expect("an instance");
    shop.api().get(&format!("/applications/{}/instances/{id}/releases/{query}", shop.application)).await.expect(200)
}

fn drover(shop: &Shop, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command: Command = shop.processes.program("drover");
    command.args(["--url", &shop.processes.url(), "--token", shop.api().token()]).args(arguments);
    let output = command.output().expect("the command line starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn a_host_tells_what_it_keeps_and_what_was_changed_there() {
    let mut shop = Shop::open(Engine::Sqlite, &["web-1", "web-2"]).await;
    shop.commit("v1", &[("index.html", "one\n"), ("gone.txt", "here\n"), ("static/style.css", "a {}\n")]);
    shop.commit("v2", &[("index.html", "two\n")]);
    let nothing = releases(&shop, "web-1", "").await;
    assert_eq!((&nothing["deploy_path"], &nothing["releases"]), (&Value::Null, &json!([])), "{nothing:#}");

    shop.deployed("v1").await;
    shop.deployed("v2").await;
    let kept = releases(&shop, "web-1", "").await;
    assert_eq!(kept["deploy_path"], json!(shop.deploy_path("web-1")), "{kept:#}");
    assert_eq!((&kept["hostname"], &kept["complete"], &kept["reason"]), (&json!("web-1"), &json!(true), &Value::Null));
    assert!(kept["free_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{kept:#}");
    let [second, first] = kept["releases"].as_array().expect("releases").as_slice() else { panic!("{kept:#}") };
    for (release, version, current) in [(second, "v2", true), (first, "v1", false)] {
        assert_eq!((&release["version"], &release["current"]), (&json!(version), &json!(current)), "{kept:#}");
        assert_eq!(release["previous"], json!(!current));
        assert_eq!((&release["members"], &release["drift"]), (&json!(4), &Value::Null));
        assert!(text(&release["name"]).starts_with(version) && text(&release["artifact_digest"]).len() == 64);
        assert!(release["used_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{release:#}");
    }
    let clean = releases(&shop, "web-1", "?compare=true").await;
    for release in clean["releases"].as_array().expect("releases") {
        assert_eq!(release["drift"]["count"], 0, "{clean:#}");
    }
    let (code, told, _) = drover(&shop, &["release", "drift", "shop"]);
    assert!(code == Some(0) && told.matches("is as it was installed").count() == 2, "{told}");

    let release = shop.deploy_path("web-1").join("current");
    fs::write(release.join("index.html"), "defaced\n").expect("a changed file");
    fs::remove_file(release.join("gone.txt")).expect("the file");
    fs::write(release.join("static/shell.php"), "<?php\n").expect("a new file");
    let drifted = releases(&shop, "web-1", "?compare=true&release=current").await;
    let [release] = drifted["releases"].as_array().expect("releases").as_slice() else { panic!("{drifted:#}") };
    let drift = &release["drift"];
    assert_eq!((&release["version"], &drift["count"], &drift["unlisted"]), (&json!("v2"), &json!(3), &json!(0)));
    assert_eq!(drift["changed"][0]["path"], "index.html", "{drift:#}");
    assert_eq!((&drift["missing"], &drift["extra"]), (&json!(["gone.txt"]), &json!(["static/shell.php"])), "{drift:#}");
    assert_eq!(drift["manifest_damaged"], false);
    // The other release, and the other host, are as they were.
    let name = text(&first["name"]);
    let other = releases(&shop, "web-1", &format!("?compare=true&release={name}")).await;
    assert_eq!((&other["releases"][0]["name"], &other["releases"][0]["drift"]["count"]), (&json!(name), &json!(0)));

    let (code, told, said) = drover(&shop, &["release", "drift", "shop", "--host", "web-1,web-2"]);
    assert_eq!(code, Some(2), "{told}{said}");
    for line in ["has 3 differences", "changed  index.html (", "missing  gone.txt", "extra    static/shell.php"] {
        assert!(told.contains(line), "{told}");
    }
    assert!(told.contains("web-2 v2-") && told.contains("is as it was installed"), "{told}");
    let (code, told, _) = drover(&shop, &["release", "list", "shop", "--host", "web-1"]);
    assert!(code == Some(0) && told.contains("current") && told.contains("free at /"), "{told}");
    assert!(!told.contains("web-2"), "{told}");

    // A host that cannot be asked hides nothing that another says.
    shop.processes.stop_agent("web-2").await;
    shop.processes.wait_for_connection("web-2", false).await;
    let path = format!("/applications/{}/instances/{}/releases/", shop.application, shop.instances[1].1);
    let away = shop.api().get(&path).await;
    assert_eq!(away.status, 503, "{}", away.body);
    assert!(text(&away.body["message"]).contains("web-2 is not connected"), "{}", away.body);
    let (code, told, said) = drover(&shop, &["release", "list", "shop"]);
    assert!(code == Some(1) && told.contains("web-1") && said.contains("web-2 is not connected"), "{told}{said}");
    let (code, told, _) = drover(&shop, &["--json", "release", "list", "shop"]);
    let told: Value = serde_json::from_str(told.lines().next().expect("a line")).expect("JSON");
    assert_eq!((code, told["results"].as_array().map(Vec::len)), (Some(1), Some(2)), "{told}");
}
