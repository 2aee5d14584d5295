//! The local mirror of a repository: brought up to date, then asked for a commit.
//!
//! Invariant: the mirror holds what the repository said last; what it does not hold any more is never resolved by name.

use std::path::{Path, PathBuf};

use super::check::is_ref_name;
use super::git::{Ended, Git};
use super::{GitSource, RefKind, SourceError};

/// Objects that may share an abbreviation before it is called ambiguous unseen.
const CANDIDATES_MAX: usize = 64;

/// A mirror on disk.
#[derive(Debug)]
pub(super) struct Mirror<'a> {
    pub(super) git: &'a Git,
    pub(super) folder: PathBuf,
}

/// What a version stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resolved {
    pub(super) commit: String,
    pub(super) kind: RefKind,
    pub(super) label_only: bool,
}

impl Mirror<'_> {
    /// Fetches all branches and tags. A mirror that an interrupted run has spoiled is made anew.
    pub(super) async fn update(&self, source: &GitSource) -> Result<(), SourceError> {
        let mut ended = self.fetch(source).await?;
        if !ended.success && self.is_spoiled(&ended.complaint) {
            tracing::warn!(folder = %self.folder.display(), "making a spoiled mirror anew");
            remove(&self.folder).await?;
            ended = self.fetch(source).await?;
        }
        if !ended.success {
            return Err(explain(&source.url, ended));
        }
        let refs = self.ask("look for branches", &["for-each-ref", "--count=1", "--format=%(objectname)"]).await?;
        if refs.is_none_or(|answer| answer.is_empty()) {
            return Err(SourceError::Empty { url: source.url.clone() });
        }
        Ok(())
    }

    async fn fetch(&self, source: &GitSource) -> Result<Ended, SourceError> {
        if !self.folder.join("HEAD").is_file() {
            self.create().await?;
        }
        let arguments = [
            "fetch",
            "--quiet",
            "--force",
            "--prune",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-recurse-submodules",
            "--end-of-options",
            &source.url,
            "+refs/heads/*:refs/heads/*",
            "+refs/tags/*:refs/tags/*",
        ];
        self.git.run(&self.folder, "fetch the repository", &arguments).await
    }

    /// Makes an empty mirror beside its place and moves it there, so that it is never seen half made.
    async fn create(&self) -> Result<(), SourceError> {
        let fresh = self.folder.with_extension("new");
        remove(&fresh).await?;
        remove(&self.folder).await?;
        let ended = self.git.run(&fresh, "make a mirror", &["init", "--quiet", "--bare"]).await?;
        if !ended.success {
            return Err(SourceError::Storage(format!("cannot make a mirror: {}", ended.complaint)));
        }
        tokio::fs::rename(&fresh, &self.folder)
            .await
            .map_err(|error| SourceError::Storage(format!("cannot make a mirror: {error}")))
    }

    /// Whether git complains about the mirror itself: a lock that a killed run left, or a damaged object.
    fn is_spoiled(&self, complaint: &str) -> bool {
        let here = self.folder.file_name().is_some_and(|name| complaint.contains(&*name.to_string_lossy()));
        let lock = complaint.contains(".lock") && complaint.contains("File exists");
        let damage = ["is empty", "is corrupt", "not a git repository", "bad object", "did not send all"];
        here && (lock || damage.iter().any(|words| complaint.contains(words)))
    }

    /// Finds the commit: a tag, else a commit, else a branch of the version's name, else the configured branch.
    pub(super) async fn resolve(&self, source: &GitSource) -> Result<Resolved, SourceError> {
        let version = source.version.as_str();
        let exact = |commit, kind| Resolved { commit, kind, label_only: false };
        let named = is_ref_name(version);
        if named && let Some(commit) = self.commit_of(&format!("refs/tags/{version}")).await? {
            return Ok(exact(commit, RefKind::Tag));
        }
        if let Some(commit) = self.commit_like(source).await? {
            return Ok(exact(commit, RefKind::Commit));
        }
        if named && let Some(commit) = self.commit_of(&format!("refs/heads/{version}")).await? {
            return Ok(exact(commit, RefKind::Branch));
        }
        match self.commit_of(&format!("refs/heads/{}", source.branch)).await? {
            Some(commit) => Ok(Resolved { commit, kind: RefKind::Branch, label_only: true }),
            None => Err(SourceError::NoVersion { version: source.version.clone(), branch: source.branch.clone() }),
        }
    }

    /// The commit that the version names by its hash or the beginning of it.
    async fn commit_like(&self, source: &GitSource) -> Result<Option<String>, SourceError> {
        let version = source.version.as_str();
        let is_hash = (7..=64).contains(&version.len()) && version.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hash {
            return Ok(None);
        }
        let disambiguate = format!("--disambiguate={}", version.to_ascii_lowercase());
        let found = self.ask("look for a commit", &["rev-parse", &disambiguate]).await?.unwrap_or_default();
        let mut commits = Vec::new();
        for object in found.lines().take(CANDIDATES_MAX) {
            let kind = self.ask("look for a commit", &["cat-file", "-t", object]).await?;
            if kind.as_deref() == Some("commit") {
                commits.push(object.to_owned());
            }
        }
        if commits.len() > 1 {
            return Err(SourceError::Invalid { field: "version", reason: "is the beginning of several commits" });
        }
        if commits.is_empty() && matches!(version.len(), 40 | 64) {
            return self.fetch_commit(source).await;
        }
        Ok(commits.pop())
    }

    /// Asks for a commit that no branch or tag leads to; many servers give it.
    async fn fetch_commit(&self, source: &GitSource) -> Result<Option<String>, SourceError> {
        let version = source.version.to_ascii_lowercase();
        let arguments = [
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-recurse-submodules",
            "--end-of-options",
            &source.url,
            &version,
        ];
        self.git.run(&self.folder, "fetch the commit", &arguments).await?;
        self.commit_of(&version).await
    }

    async fn commit_of(&self, name: &str) -> Result<Option<String>, SourceError> {
        let name = format!("{name}^{{commit}}");
        self.ask("resolve the version", &["rev-parse", "--verify", "--quiet", "--end-of-options", &name]).await
    }

    /// Time of a commit in seconds since 1970.
    pub(super) async fn time_of(&self, commit: &str) -> Result<u64, SourceError> {
        let seconds =
            self.ask("read the commit", &["log", "-1", "--no-show-signature", "--format=%ct", commit]).await?;
        Ok(seconds.and_then(|text| text.parse::<i64>().ok()).and_then(|time| u64::try_from(time).ok()).unwrap_or(0))
    }

    /// The type of what is at `name`, such as `<commit>:<path>`; none when there is nothing.
    pub(super) async fn type_of(&self, name: &str) -> Result<Option<String>, SourceError> {
        self.ask("look into the repository", &["cat-file", "-t", name]).await
    }

    /// The first submodule at `path` of a commit or below it, if there is one.
    pub(super) async fn submodule(&self, commit: &str, path: Option<&str>) -> Result<Option<String>, SourceError> {
        let mut arguments = vec!["ls-tree", "-r", "--full-tree", commit];
        if let Some(path) = path {
            arguments.extend(["--", path]);
        }
        let found = self.git.find_line(&self.folder, "look for submodules", &arguments, "160000 commit ").await?;
        Ok(found.map(|line| line.split_once('\t').map_or(line.clone(), |(_, name)| name.to_owned())))
    }

    /// The trimmed answer of a successful run, none of one that failed.
    async fn ask(&self, doing: &'static str, arguments: &[&str]) -> Result<Option<String>, SourceError> {
        let ended = self.git.run(&self.folder, doing, arguments).await?;
        Ok(ended.success.then(|| ended.answer.trim().to_owned()))
    }
}

async fn remove(folder: &Path) -> Result<(), SourceError> {
    match tokio::fs::remove_dir_all(folder).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(SourceError::Storage(format!("cannot remove an old mirror: {error}")))
        }
        _ => Ok(()),
    }
}

/// What git's complaint about a repository means.
fn explain(url: &str, ended: Ended) -> SourceError {
    let detail = ended.complaint;
    let says = |words: &[&str]| words.iter().any(|word| detail.contains(word));
    let url = url.to_owned();
    if says(&["No space left on device", "Disk quota exceeded"]) {
        SourceError::Storage(detail)
    } else if says(&["ssh: not found", "cannot run ssh"]) {
        SourceError::NoSsh
    } else if says(&["Host key verification failed"]) {
        let shown = ended.fingerprint.map(|shown| format!(", it shows {shown}")).unwrap_or_default();
        SourceError::HostKey { url, pinned: String::new(), shown }
    } else if says(&[
        "Authentication failed",
        "could not read Username",
        "could not read Password",
        "Permission denied",
        "Too many authentication failures",
        "error: 401",
        "error: 403",
    ]) {
        SourceError::Unauthorised { url, detail }
    } else if says(&["does not appear to be a git repository", "not found", "does not exist", "error: 404"]) {
        SourceError::Missing { url, detail }
    } else {
        SourceError::Unreachable { url, detail }
    }
}
