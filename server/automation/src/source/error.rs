//! Why a source cannot be had, in sentences for people.

/// Why there is no artifact. The sentences are for people and hold no secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// A field is not acceptable.
    #[error("{field} {reason}")]
    Invalid {
        /// Field as in the API.
        field: &'static str,
        /// Goes on after the field's name.
        reason: &'static str,
    },
    /// There is no such repository.
    #[error("there is no repository at {url}: {detail}")]
    Missing {
        /// Address.
        url: String,
        /// What git says.
        detail: String,
    },
    /// The repository wants other credentials.
    #[error("the repository {url} does not let us in: {detail}")]
    Unauthorised {
        /// Address.
        url: String,
        /// What git says.
        detail: String,
    },
    /// The host is not the one that it was.
    #[error(
        "the host of {url} shows another key than the one that is pinned ({pinned}){shown}. Somebody may be in between; \
         if the host has a new key, change repository.host_key"
    )]
    HostKey {
        /// Address.
        url: String,
        /// Fingerprints of the keys that are pinned.
        pinned: String,
        /// Fingerprint of the key that it shows, as a clause of its own; empty when that is not known.
        shown: String,
    },
    /// No answer, or no answer that makes sense.
    #[error("cannot fetch {url}: {detail}")]
    Unreachable {
        /// Address.
        url: String,
        /// What git says.
        detail: String,
    },
    /// The time is over.
    #[error("no time left to {doing}")]
    TimedOut {
        /// What it was at.
        doing: &'static str,
    },
    /// Another fetch of the same repository takes too long.
    #[error("another fetch of {url} is still under way")]
    Busy {
        /// Address.
        url: String,
    },
    /// Nothing has been committed.
    #[error("the repository {url} is empty")]
    Empty {
        /// Address.
        url: String,
    },
    /// Neither the version nor the branch is there.
    #[error("repository has neither a tag, commit nor branch `{version}`, and no branch `{branch}`")]
    NoVersion {
        /// Version asked for.
        version: String,
        /// Configured branch.
        branch: String,
    },
    /// The path is not in the commit.
    #[error("there is no `{path}` at commit {commit}")]
    NoPath {
        /// Path asked for.
        path: String,
        /// Commit.
        commit: String,
    },
    /// The path is not in the archive.
    #[error("there is no `{path}` in {archive}")]
    NoPart {
        /// Path asked for.
        path: String,
        /// What it was looked for in.
        archive: String,
    },
    /// A member is refused, and the archive with it.
    #[error("the archive is refused because of `{name}`: {reason}")]
    Member {
        /// Name of the member.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Too many members.
    #[error("the archive has more than {members_max} members")]
    TooMany {
        /// The limit.
        members_max: u64,
    },
    /// Too many bytes.
    #[error("the archive is larger than {bytes} bytes {what}")]
    TooLarge {
        /// `packed` or `unpacked`.
        what: &'static str,
        /// The limit.
        bytes: u64,
    },
    /// It unpacks to suspiciously much.
    #[error("the archive unpacks to more than {ratio} times its length, as one does that is made to fill disks")]
    Bomb {
        /// The limit.
        ratio: u64,
    },
    /// It cannot be read.
    #[error("the archive cannot be read: {0}")]
    Damaged(String),
    /// The source has parts that are kept elsewhere.
    #[error("{0}")]
    Incomplete(String),
    /// The server has no git.
    #[error("the server has no `git` program")]
    NoGit,
    /// The server has no ssh.
    #[error("the server has no `ssh` program, which repositories over SSH need (Debian: openssh-client)")]
    NoSsh,
    /// Something on this server refuses.
    #[error("{0}")]
    Storage(String),
}
