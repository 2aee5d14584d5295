//! Sources from real repositories.

mod archives;
mod bombs;
mod fetching;
mod servers;
mod uploads;

use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;

/// A repository made for a test, and the stores that fetch from it.
struct Scene {
    folder: tempfile::TempDir,
    sources: Sources,
}

impl Scene {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = ArtifactStore::open(&folder.path().join("artifacts")).unwrap();
        let sources = Sources::open(&folder.path().join("sources"), artifacts, limits).unwrap();
        let scene = Self { folder, sources };
        scene.git(&["init", "--quiet", "--initial-branch=main", "."]);
        scene
    }

    fn repository(&self) -> PathBuf {
        let path = self.folder.path().join("repository");
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn git(&self, arguments: &[&str]) -> String {
        git_in(&self.repository(), arguments)
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.repository().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn commit(&self, message: &str) -> String {
        self.git(&["add", "--all", "."]);
        self.git(&["commit", "--quiet", "--allow-empty", "-m", message]);
        self.git(&["rev-parse", "HEAD"])
    }

    fn source(&self, version: &str) -> GitSource {
        GitSource {
            url: self.repository().display().to_string(),
            branch: "main".to_owned(),
            version: version.to_owned(),
            path: None,
        }
    }

    async fn fetch(&self, source: &GitSource) -> Result<Fetched, SourceError> {
        self.sources.fetch(source, &Access::default(), &|_| {}).await
    }

    /// Name, mode and content (or link target) of each member.
    fn members(&self, digest: Digest) -> Vec<(String, u32, String)> {
        let file = self.sources.artifacts.read(digest).unwrap();
        let mut packed = Vec::new();
        while (packed.len() as u64) < file.size_bytes() {
            packed.extend_from_slice(&file.read_at(packed.len() as u64, usize::MAX).unwrap());
        }
        let mut archive = tar::Archive::new(zstd::stream::read::Decoder::new(&packed[..]).unwrap());
        let members = archive.entries().unwrap().map(|member| {
            let mut member = member.unwrap();
            let mut content = String::new();
            std::io::Read::read_to_string(&mut member, &mut content).unwrap();
            if let Some(target) = member.link_name().unwrap() {
                content = format!("-> {}", target.display());
            }
            (member.path().unwrap().display().to_string(), member.header().mode().unwrap(), content)
        });
        members.collect()
    }

    fn artifacts(&self) -> usize {
        let count = |folder: &Path| {
            let files = std::fs::read_dir(folder).unwrap().map(|item| item.unwrap().path());
            files.filter(|file| file.extension().is_none()).count()
        };
        let folders = std::fs::read_dir(self.folder.path().join("artifacts")).unwrap();
        folders.map(|folder| count(&folder.unwrap().path())).sum()
    }
}

fn git_in(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(folder)
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", folder)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_NAME", "Ada")
        .env("GIT_AUTHOR_EMAIL", "ada@example.com")
        .env("GIT_AUTHOR_DATE", "2026-01-02T03:04:05Z")
        .env("GIT_COMMITTER_NAME", "Ada")
        .env("GIT_COMMITTER_EMAIL", "ada@example.com")
        .env("GIT_COMMITTER_DATE", "2026-01-02T03:04:05Z")
        .output()
        .unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
