//! Repositories behind real servers: who gets in, what is trusted, and what nobody must see.

mod deploying;
mod servers;
mod shell;
mod web;

use drover_automation::artifacts::ArtifactStore;
use drover_automation::source::{Access, Fetched, GitSource, Limits, SourceError, Sources};

use servers::Place;

/// The sources of one server.
struct Store {
    folder: tempfile::TempDir,
    sources: Sources,
}

impl Store {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let sources = Self::open(folder.path());
        Self { folder, sources }
    }

    fn open(folder: &std::path::Path) -> Sources {
        let artifacts = ArtifactStore::open(&folder.join("artifacts")).expect("a store");
        Sources::open(&folder.join("sources"), artifacts, Limits::default()).expect("sources")
    }

    async fn fetch(&self, url: &str, access: &Access) -> Result<Fetched, SourceError> {
        let source =
            GitSource { url: url.to_owned(), branch: "main".to_owned(), version: "main".to_owned(), path: None };
        let fetched = self.sources.fetch(&source, access, &|_| {}).await;
        // However it ended, nothing stays that somebody could log in with.
        let names = std::fs::read_dir(self.folder.path().join("sources")).expect("a folder");
        let names: Vec<String> =
            names.map(|item| item.expect("an item").file_name().to_string_lossy().into_owned()).collect();
        assert!(names.iter().all(|name| !name.starts_with("login-")), "{names:?}");
        fetched
    }
}

#[test]
fn what_a_killed_server_left_is_removed() {
    let store = Store::new();
    let left = store.folder.path().join("sources/login-abc");
    std::fs::create_dir(&left).expect("a folder");
    std::fs::write(left.join("key"), "secret").expect("a file");
    Store::open(store.folder.path());
    assert!(!left.exists());
}
