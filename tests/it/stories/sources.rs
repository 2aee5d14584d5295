//! Large and real repositories arrive whole.

use std::collections::BTreeMap;
use std::fs;

use drover_shared::Digest;

use super::*;

#[tokio::test]
async fn twenty_thousand_files() {
    let shop = Shop::open(Engine::Sqlite, &["web-1"]).await;
    let mut files = BTreeMap::new();
    for number in 0..20_000 {
        let name = format!("part-{}/{:03}/{number:05}.txt", number % 7, number % 100);
        files.insert(PathBuf::from(name), format!("file {number} \u{1f600}\n"));
    }
    import(&shop.repository(), &files);
    let expected = files.into_iter().map(|(name, content)| (name, Digest::of(content.as_bytes())));
    // In memory where that is possible: some disks need minutes to remove so many files again.
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory } else { shop.folder() };
    let place = tempfile::Builder::new().prefix("drover-story-").tempdir_in(place).expect("a temporary folder");
    shop.set(json!({"deploy_path": place.path()})).await;
    compare(&shop, "main", &place.path().join("current/"), &expected.collect()).await;
}

/// Commits files without writing each of them to the disk first.
fn import(repository: &Path, files: &BTreeMap<PathBuf, String>) {
    let mut stream = "commit refs/heads/main\ncommitter Story <story@example.com> 1 +0000\ndata 4\nmany\n".to_owned();
    for (name, content) in files {
        stream.push_str(&format!("M 100644 inline {}\ndata {}\n{content}\n", name.display(), content.len()));
    }
    let file = repository.join(".git/stream");
    fs::write(&file, stream).expect("a file");
    let mut command = Command::new("git");
    command.current_dir(repository).args(["fast-import", "--quiet"]).stdin(fs::File::open(file).expect("the stream"));
    assert!(command.status().expect("git starts").success(), "git fast-import");
}

#[tokio::test]
async fn the_projects_own_repository() {
    let shop = Shop::open(Engine::Sqlite, &["web-1"]).await;
    let root = xtask::sources::root();
    fs::remove_dir_all(shop.repository()).expect("the empty repository");
    let (from, to) = (root.display().to_string(), shop.repository().display().to_string());
    git(shop.folder(), &["clone", "--quiet", "--no-local", &from, &to]);
    let commit = git(&shop.repository(), &["rev-parse", "HEAD"]);
    let expected = digests(&shop.repository());
    assert!(expected.len() > 100, "only {} files", expected.len());
    compare(&shop, &commit, &shop.deploy_path("web-1").join("current/"), &expected).await;
}

/// Deploys a version and compares every file.
async fn compare(shop: &Shop, version: &str, current: &Path, expected: &BTreeMap<PathBuf, Digest>) {
    let sub_task = shop.deployed(version).await;
    let commit = git(&shop.repository(), &["rev-parse", "HEAD"]);
    assert_eq!(shop.end_of(&sub_task).await["commit"], json!(commit));
    let found = digests(current);
    for (name, digest) in expected {
        assert_eq!(found.get(name), Some(digest), "{}", name.display());
    }
    assert_eq!(found.len(), expected.len());
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
