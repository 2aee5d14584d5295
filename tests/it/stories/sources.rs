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

/// A web server of Python's, gone with this value.
struct WebServer {
    process: std::process::Child,
    port: u16,
}

impl WebServer {
    fn start(shop: &Shop, arguments: &[&str]) -> Self {
        use std::io::BufRead as _;
        let mut command = Command::new("python3");
        command.args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]).args(arguments);
        command.current_dir(shop.folder()).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
        let mut process = command.spawn().expect("python3 starts");
        let mut line = String::new();
        let said = process.stdout.take().expect("its output");
        std::io::BufReader::new(said).read_line(&mut line).expect("what it says");
        let (_, rest) = line.split_once(" port ").expect("its port");
        let port = rest.split_whitespace().next().expect("a word").parse().expect("a port");
        Self { process, port }
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_repository_behind_a_plain_web_server() {
    let shop = Shop::with_versions(&["web-1"]).await;
    git(&shop.repository(), &["update-server-info"]);
    let server = WebServer::start(&shop, &[]);
    let url = format!("http://127.0.0.1:{}/repository/.git", server.port);
    shop.set(json!({"repository": {"type": "GIT", "url": url, "branch": "main"}})).await;
    for (version, page) in [("v1", "one\n"), ("v2", "two\n")] {
        shop.deployed(version).await;
        assert_eq!(shop.current("web-1", "index.html").as_deref(), Some(page));
    }
    // What comes later is found too.
    shop.commit("v3", &[("index.html", "three\n")]);
    git(&shop.repository(), &["update-server-info"]);
    shop.deployed("v3").await;
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("three\n"));
}

#[tokio::test]
async fn a_repository_behind_gits_own_program_for_web_servers() {
    use std::os::unix::fs::PermissionsExt as _;
    let shop = Shop::with_versions(&["web-1"]).await;
    let programs = shop.folder().join("cgi-bin");
    fs::create_dir(&programs).expect("a folder");
    let program = programs.join("git");
    let script = format!(
        "#!/bin/sh\nexport GIT_PROJECT_ROOT='{}' GIT_HTTP_EXPORT_ALL=1 GIT_CONFIG_COUNT=1\n\
         export GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'\nexec git http-backend\n",
        shop.folder().display()
    );
    fs::write(&program, script).expect("a program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("its mode");
    // Python runs such programs as nobody when it is root.
    fs::set_permissions(shop.folder(), fs::Permissions::from_mode(0o755)).expect("its mode");
    let server = WebServer::start(&shop, &["--cgi"]);
    let url = format!("http://127.0.0.1:{}/cgi-bin/git/repository/.git", server.port);
    shop.set(json!({"repository": {"type": "GIT", "url": url, "branch": "main"}})).await;
    shop.deployed("v1").await;
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("one\n"));
    let sub_task = shop.deployed("main").await;
    assert_eq!(shop.end_of(&sub_task).await["commit"], json!(git(&shop.repository(), &["rev-parse", "HEAD"])));
    assert_eq!(shop.current("web-1", "index.html").as_deref(), Some("two\n"));
}
