//! Large and real repositories arrive whole.

use std::collections::BTreeMap;
use std::fs;

use drover_shared::Digest;

use super::*;

#[tokio::test]
async fn twenty_thousand_files() {
    let shop = Shop::open(Engine::Sqlite, &["web-1"]).await;
    shop.set(json!({"timeout": 60})).await;
    for folder in 0..100 {
        let path = shop.repository().join(format!("part-{}/{folder:03}", folder % 10));
        fs::create_dir_all(&path).expect("a folder");
        for file in 0..200 {
            fs::write(path.join(format!("{file:03}.txt")), format!("{folder} {file}\n")).expect("a file");
        }
    }
    shop.commit_all("v1");
    assert_eq!(compare(&shop, "v1").await, 20_000);
}

#[tokio::test]
async fn the_projects_own_repository() {
    let shop = Shop::open(Engine::Sqlite, &["web-1"]).await;
    let root = xtask::sources::root();
    fs::remove_dir_all(shop.repository()).expect("the empty repository");
    let (from, to) = (root.display().to_string(), shop.repository().display().to_string());
    git(shop.folder(), &["clone", "--quiet", "--no-local", &from, &to]);
    let commit = git(&shop.repository(), &["rev-parse", "HEAD"]);
    let files = compare(&shop, &commit).await;
    assert!(files > 100, "only {files} files");
}

/// Deploys a version and compares every file with the repository's; gives their number.
async fn compare(shop: &Shop, version: &str) -> usize {
    let sub_task = shop.deployed(version).await;
    let commit = git(&shop.repository(), &["rev-parse", "HEAD"]);
    assert_eq!(shop.end_of(&sub_task).await["commit"], json!(commit));
    let expected = digests(&shop.repository());
    let found = digests(&shop.deploy_path("web-1").join("current/"));
    for (name, digest) in &expected {
        assert_eq!(found.get(name), Some(digest), "{}", name.display());
    }
    assert_eq!(found.len(), expected.len());
    expected.len()
}

/// Digest of each file below a folder, git's own left out; of a link, where it points.
fn digests(folder: &Path) -> BTreeMap<PathBuf, Digest> {
    let mut found = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(at) = folders.pop() {
        for item in fs::read_dir(folder.join(&at)).expect("a folder") {
            let item = item.expect("an item");
            let name = at.join(item.file_name());
            let kind = item.file_type().expect("the kind of an item");
            if kind.is_dir() && name != Path::new(".git") {
                folders.push(name);
            } else if kind.is_symlink() {
                let target = fs::read_link(item.path()).expect("a link");
                found.insert(name, Digest::of(target.as_os_str().as_encoded_bytes()));
            } else if kind.is_file() {
                found.insert(name, Digest::of(&fs::read(item.path()).expect("a file")));
            }
        }
    }
    found
}
