//! Sources: from a git repository to an artifact, once for each commit and path.
//!
//! `<folder>/<sha256 of the url>.git` is a bare mirror, `<sha256 of the url>.packed/` remembers which artifact a commit
//! and path became. Invariant: what is fetched is at one commit, checked member by member, and known by its digest;
//! a branch that moves later changes nothing.

pub(crate) mod check;
mod error;
mod git;
pub(crate) mod login;
mod members;
mod mirror;
mod pack;
mod unused;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use drover_shared::Digest;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::artifacts::ArtifactStore;
use check::Address;
pub use error::SourceError;
use git::Git;
use login::Login;
pub use members::Format;
use mirror::{Mirror, Resolved};
use pack::Packed;
pub(crate) use unused::{bytes_of, key, mirrors};

/// What to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitSource {
    /// `https://`, `http://`, `ssh://`, `user@host:path`, `file:///` or an absolute path. Never holds a secret.
    pub url: String,
    /// Branch whose head is taken when nothing is named like the version.
    pub branch: String,
    /// Looked up as tag, commit (at least seven digits of its hash) and branch, in this order.
    pub version: String,
    /// File or folder inside the repository; none, `.` and `/` mean the whole tree.
    pub path: Option<String>,
}

/// How to log in to a repository.
#[derive(Clone)]
pub enum Credential {
    /// User name and password or token.
    Password {
        /// Name; may be anything with tokens.
        username: String,
        /// Password or token.
        password: Zeroizing<String>,
    },
    /// User name and private key, for SSH.
    PrivateKey {
        /// Account, unless the address names one.
        username: String,
        /// Key in PEM or OpenSSH form, without a passphrase.
        private_key: Zeroizing<String>,
    },
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, username) = match self {
            Self::Password { username, .. } => ("Password", username),
            Self::PrivateKey { username, .. } => ("PrivateKey", username),
        };
        f.debug_struct(kind).field("username", username).field("secret", &"******").finish()
    }
}

/// What a repository is reached with.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// How to log in.
    pub credential: Option<Credential>,
    /// Keys that the host of a repository over SSH may show, one a line; what it shows first is trusted when there are
    /// none.
    pub host_key: Option<String>,
    /// Certificates in PEM that a repository over https is checked with; the system's when there are none.
    pub ca_certificate: Option<String>,
}

drover_shared::words! {
    /// What a version turned out to be.
    pub enum RefKind {
        /// A tag.
        Tag = "tag",
        /// A commit by its hash.
        Commit = "commit",
        /// A branch.
        Branch = "branch",
    }
}

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Full hash of the commit.
    pub commit: String,
    /// What was found under the name.
    pub ref_kind: RefKind,
    /// Whether nothing had the version's name, so that the head of the branch was taken.
    pub label_only: bool,
    /// SHA-256 of the archive: tar, compressed with zstd.
    pub digest: Digest,
    /// Length of the archive in bytes.
    pub size_bytes: u64,
    /// Files and links in it.
    pub files: u64,
    /// What people should know, one sentence each.
    pub notices: Vec<String>,
    /// Keys that the host showed and that nobody knew before: to be remembered, and to be asked of it from now on.
    pub trusted: Option<String>,
}

/// Bounds of a fetch.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Time for everything.
    pub time_max: Duration,
    /// Time to wait for another fetch of the same repository.
    pub wait_max: Duration,
    /// Files, links and folders.
    pub members_max: u64,
    /// Sum of the files' lengths.
    pub unpacked_bytes_max: u64,
    /// Length of the archive.
    pub artifact_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time_max: Duration::from_secs(600),
            wait_max: Duration::from_secs(600),
            members_max: 500_000,
            unpacked_bytes_max: 16 * 1024 * 1024 * 1024,
            artifact_bytes_max: 8 * 1024 * 1024 * 1024,
        }
    }
}

/// Told what is being done, in lines for people. Must not block.
pub type Progress<'a> = &'a (dyn Fn(String) + Send + Sync);

/// Time for finding a commit while somebody waits for the answer.
const RESOLVE_TIME_MAX: Duration = Duration::from_secs(60);

/// All sources of this server.
#[derive(Debug, Clone)]
pub struct Sources {
    folder: PathBuf,
    artifacts: ArtifactStore,
    limits: Limits,
    turns: Arc<Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>>,
}

/// What is remembered of an archive that was packed.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    digest: Digest,
    size_bytes: u64,
    files: u64,
    /// What made an older server doubt that the archive is whole: such a one is packed anew, and refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    notices: Vec<String>,
}

impl Sources {
    /// Opens the folder of mirrors, making it if it is missing.
    ///
    /// # Errors
    /// [`SourceError::Storage`] when it cannot be used.
    pub fn open(folder: &Path, artifacts: ArtifactStore, limits: Limits) -> Result<Self, SourceError> {
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        git::prepare(&folder)
            .map_err(|error| SourceError::Storage(format!("cannot open {}: {error}", folder.display())))?;
        Ok(Self { folder, artifacts, limits, turns: Arc::default() })
    }

    /// Fetches the source, finds its commit, and packs it unless that was done before.
    ///
    /// # Errors
    /// See [`SourceError`]; no artifact is made then.
    pub async fn fetch(
        &self,
        source: &GitSource,
        access: &Access,
        progress: Progress<'_>,
    ) -> Result<Fetched, SourceError> {
        let address = check::check(source)?;
        let path = check::path(source.path.as_deref())?;
        self.check_place(source)?;
        let key = key(&source.url);
        let turn = self.turn(key);
        let busy = |_| SourceError::Busy { url: source.url.clone() };
        let _turn = timeout(self.limits.wait_max, turn.lock()).await.map_err(busy)?;
        let login = self.login(source, &address, access).await?;
        let git = Git::new(&self.folder, login, Instant::now() + self.limits.time_max);
        let mirror = Mirror { git: &git, folder: self.folder.join(format!("{key}.git")) };
        progress(format!("Fetching {}", source.url));
        let updated = mirror.update(source).await;
        updated.map_err(|error| with_pinned(error, access))?;
        let trusted = git.login().trusted();
        let resolved = mirror.resolve(source).await?;
        progress(describe(source, &resolved));
        let index = self.index(key, &resolved.commit, path.as_deref());
        let packed = match self.remembered(&index).await {
            Some(packed) => packed,
            None => {
                progress(format!("Packing {}", path.as_deref().unwrap_or("the whole tree")));
                let packed = self.pack(&mirror, &resolved.commit, path.as_deref()).await?;
                remember(&index, &packed).await?;
                packed
            }
        };
        progress(format!("Artifact {} has {} files in {} bytes", packed.digest, packed.files, packed.size_bytes));
        Ok(Fetched {
            commit: resolved.commit,
            ref_kind: resolved.kind,
            label_only: resolved.label_only,
            digest: packed.digest,
            size_bytes: packed.size_bytes,
            files: packed.files,
            notices: notices(&address, access),
            trusted,
        })
    }

    /// Finds the commit that a source is at now, without packing anything.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub async fn resolve(&self, source: &GitSource, access: &Access) -> Result<String, SourceError> {
        let address = check::check(source)?;
        check::path(source.path.as_deref())?;
        self.check_place(source)?;
        let key = key(&source.url);
        let turn = self.turn(key);
        let busy = |_| SourceError::Busy { url: source.url.clone() };
        let _turn = timeout(self.limits.wait_max.min(RESOLVE_TIME_MAX), turn.lock()).await.map_err(busy)?;
        let until = Instant::now() + self.limits.time_max.min(RESOLVE_TIME_MAX);
        let git = Git::new(&self.folder, self.login(source, &address, access).await?, until);
        let mirror = Mirror { git: &git, folder: self.folder.join(format!("{key}.git")) };
        mirror.update(source).await.map_err(|error| with_pinned(error, access))?;
        Ok(mirror.resolve(source).await?.commit)
    }

    async fn login(&self, source: &GitSource, address: &Address, access: &Access) -> Result<Login, SourceError> {
        let (folder, url) = (self.folder.clone(), source.url.clone());
        let (address, access) = (address.clone(), access.clone());
        blocking(move || Login::prepare(&folder, &url, &address, &access)).await?
    }

    /// Refuses repositories among the server's own files: they belong to other applications.
    fn check_place(&self, source: &GitSource) -> Result<(), SourceError> {
        let local = source.url.strip_prefix("file://").unwrap_or(&source.url);
        let Ok(place) = Path::new(local).canonicalize() else { return Ok(()) };
        let Ok(mirrors) = self.folder.canonicalize() else { return Ok(()) };
        let beside = |name: &str| mirrors.parent().is_some_and(|folder| place.starts_with(folder.join(name)));
        if place.starts_with(&mirrors) || ["artifacts", "logs", "keys"].into_iter().any(beside) {
            let reason = "must not be among the server's own files";
            return Err(SourceError::Invalid { field: "repository.url", reason });
        }
        Ok(())
    }

    /// The lock of one repository.
    fn turn(&self, key: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(&key).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(key, Arc::downgrade(&turn));
        turn
    }

    fn index(&self, key: Digest, commit: &str, path: Option<&str>) -> PathBuf {
        let path = Digest::of(path.unwrap_or("").as_bytes()).short();
        self.folder.join(format!("{key}.packed")).join(format!("{commit}-{path}.json"))
    }

    /// What was packed before, if its artifact is still there.
    async fn remembered(&self, index: &Path) -> Option<Remembered> {
        let text = tokio::fs::read(index).await.ok()?;
        let packed: Remembered =
            serde_json::from_slice(&text).ok().filter(|packed: &Remembered| packed.notices.is_empty())?;
        let file = self.artifacts.read(packed.digest).ok()?;
        (file.size_bytes() == packed.size_bytes).then_some(packed)
    }

    async fn pack(&self, mirror: &Mirror<'_>, commit: &str, path: Option<&str>) -> Result<Remembered, SourceError> {
        if let Some(name) = mirror.submodule(commit, path).await? {
            return Err(SourceError::Incomplete(format!(
                "`{name}` is a submodule, and submodules are not followed: what it holds would be missing. Choose a path \
                 without it, or put its files into the repository"
            )));
        }
        let time = mirror.time_of(commit).await?;
        let mut arguments = vec!["archive".to_owned(), "--format=tar".to_owned()];
        match path {
            None => arguments.push(commit.to_owned()),
            Some(path) => {
                let inside = format!("{commit}:{path}");
                let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
                match mirror.type_of(&inside).await?.as_deref() {
                    Some("tree") => arguments.push(inside),
                    Some("blob") => arguments.extend([format!("{commit}:{folder}"), "--".to_owned(), name.to_owned()]),
                    _ => return Err(SourceError::NoPath { path: path.to_owned(), commit: commit.to_owned() }),
                }
            }
        }
        let (reader, writer) =
            std::io::pipe().map_err(|error| SourceError::Storage(format!("cannot make a pipe: {error}")))?;
        let running = mirror.git.start_into(&mirror.folder, writer, &arguments)?;
        let (limits, artifacts) = (self.limits.clone(), self.artifacts.clone());
        let packing = blocking(move || members::pack_git(reader, time, &limits, &artifacts));
        let ended = mirror.git.finish(running, "pack the source", None::<tokio::io::Empty>).await?;
        let packed = packing.await?;
        // When packing refuses, git dies of the closed pipe: the refusal is the reason, not that.
        let packed = packed.map_err(|error| match (&error, ended.success) {
            (SourceError::Storage(_), false) if !ended.complaint.is_empty() => {
                SourceError::Storage(format!("git gives no archive: {}", ended.complaint))
            }
            _ => error,
        })?;
        if !ended.success {
            return Err(SourceError::Storage(format!("git gives no archive: {}", ended.complaint)));
        }
        blocking(move || keep(packed)).await?
    }

    /// Packs an archive that somebody uploaded, from its file; `stop` gives it up.
    ///
    /// # Errors
    /// See [`SourceError`]; no artifact is made then.
    pub async fn pack_upload(&self, file: PathBuf, stop: CancellationToken) -> Result<Upload, SourceError> {
        let (limits, artifacts) = (self.limits.clone(), self.artifacts.clone());
        blocking(move || {
            let unreadable = |error| SourceError::Storage(format!("cannot read what was uploaded: {error}"));
            let file = std::fs::File::open(file).map_err(unreadable)?;
            let (packed, format) = members::pack_upload(file, &limits, &artifacts, &stop)?;
            let Remembered { digest, size_bytes, files, .. } = keep(packed)?;
            Ok(Upload { format, digest, size_bytes, files })
        })
        .await?
    }

    /// Packs a part of an artifact, or gives the artifact itself when there is no path; `name` says for people what it was
    /// made from. Gives digest and length.
    ///
    /// # Errors
    /// [`SourceError::NoPart`] when there is nothing at the path, and others; see [`SourceError`].
    pub async fn part(
        &self,
        whole: Digest,
        path: Option<&str>,
        name: &str,
        stop: CancellationToken,
    ) -> Result<(Digest, u64), SourceError> {
        let path = check::path(path)?;
        let size_bytes = {
            let artifacts = self.artifacts.clone();
            blocking(move || artifacts.read(whole).map(|file| file.size_bytes())).await??
        };
        let Some(path) = path else { return Ok((whole, size_bytes)) };
        let key = Digest::of(format!("artifact {whole}").as_bytes());
        let turn = self.turn(key);
        let busy = |_| SourceError::Busy { url: name.to_owned() };
        let _turn = timeout(self.limits.wait_max, turn.lock()).await.map_err(busy)?;
        let index = self.index(key, &whole.to_string(), Some(&path));
        if let Some(packed) = self.remembered(&index).await {
            return Ok((packed.digest, packed.size_bytes));
        }
        let (limits, artifacts, inside) = (self.limits.clone(), self.artifacts.clone(), path.clone());
        // Packing ends when nobody waits for it any more, too.
        let stop = stop.child_token();
        let _given_up = stop.clone().drop_guard();
        let packed = blocking(move || {
            let file = artifacts.open_file(whole)?;
            members::pack_part(file, &inside, &limits, &artifacts, &stop)?.map(keep).transpose()
        });
        let packed =
            packed.await??.ok_or_else(|| SourceError::NoPart { path: path.clone(), archive: name.to_owned() })?;
        remember(&index, &packed).await?;
        Ok((packed.digest, packed.size_bytes))
    }
}

/// An uploaded archive that was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Form that it had.
    pub format: Format,
    /// SHA-256 of the artifact.
    pub digest: Digest,
    /// Length of the artifact in bytes.
    pub size_bytes: u64,
    /// Files and links in it.
    pub files: u64,
}

/// Puts an archive that is complete into the store.
fn keep(packed: Packed) -> Result<Remembered, SourceError> {
    check_whole(&packed)?;
    let files = packed.files;
    let stored = packed.artifact.commit_with(packed.index.as_deref())?;
    Ok(Remembered { digest: stored.digest, size_bytes: stored.size_bytes, files, notices: Vec::new() })
}

/// Starts work that blocks.
fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, SourceError>> {
    let task = tokio::task::spawn_blocking(work);
    async move { task.await.map_err(|error| SourceError::Storage(format!("packing stopped: {error}"))) }
}

/// Refuses an archive that holds pointers in the place of files.
fn check_whole(packed: &Packed) -> Result<(), SourceError> {
    let Some((name, count)) = &packed.lfs else { return Ok(()) };
    Err(SourceError::Incomplete(format!(
        "{count} files, `{name}` first, are Git LFS pointers, and LFS is not supported: their content would be missing. \
         Choose a path without them, or put the files into the repository"
    )))
}

/// What people should know about the way to the repository.
fn notices(address: &Address, access: &Access) -> Vec<String> {
    match (address, &access.credential) {
        (Address::Http { secure: false }, Some(_)) => {
            vec!["The password of the repository travels in clear, since its address is http and not https.".to_owned()]
        }
        _ => Vec::new(),
    }
}

/// Says which keys are pinned, to who has to decide about another.
fn with_pinned(error: SourceError, access: &Access) -> SourceError {
    match error {
        SourceError::HostKey { url, shown, .. } => {
            let pinned = access.host_key.as_deref().map(login::fingerprints).unwrap_or_default();
            SourceError::HostKey { url, pinned, shown }
        }
        error => error,
    }
}

fn describe(source: &GitSource, resolved: &Resolved) -> String {
    let Resolved { commit, kind, label_only } = resolved;
    if *label_only {
        let GitSource { version, branch, .. } = source;
        return format!("Nothing is named {version}: taking the head of branch {branch}, commit {commit}");
    }
    match kind {
        RefKind::Commit => format!("Version {} is commit {commit}", source.version),
        RefKind::Tag | RefKind::Branch => format!("Version {} is a {kind}, commit {commit}", source.version),
    }
}

/// Remembers an archive; whole or not at all.
async fn remember(index: &Path, packed: &Remembered) -> Result<(), SourceError> {
    let failed = |error: std::io::Error| SourceError::Storage(format!("cannot remember the archive: {error}"));
    let text = serde_json::to_vec(packed).map_err(|error| failed(error.into()))?;
    if let Some(folder) = index.parent() {
        tokio::fs::create_dir_all(folder).await.map_err(failed)?;
    }
    let fresh = index.with_extension("new");
    tokio::fs::write(&fresh, text).await.map_err(failed)?;
    tokio::fs::rename(&fresh, index).await.map_err(failed)
}
