//! The manifest of a release: every file as it was unpacked.
//!
//! The first line is a JSON object about the release, [`About`]; each further line is a JSON object about one member,
//! [`Member`], in the order of their paths. Invariant: the tree digest is the SHA-256 of all lines but the first.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Read as _};

use drover_shared::Digest;
use drover_shared::order::canonical;
use serde::{Deserialize, Serialize};

use crate::release::place::Place;

/// Longest manifest, in bytes.
const MANIFEST_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// Longest first line, in bytes.
const ABOUT_BYTES_MAX: u64 = 64 * 1024;

/// What the first line says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Name of the folder.
    pub release: String,
    /// Version.
    pub version: String,
    /// SHA-256 of the archive.
    pub artifact_digest: Digest,
    /// SHA-256 of the members' lines.
    pub tree_digest: Digest,
    /// When it was unpacked, milliseconds since 1970 UTC.
    pub installed_ms: i64,
    /// Paths that lead to `shared/`, as ordered.
    #[serde(default)]
    pub shared_paths: Vec<String>,
}

/// One member of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Path inside the release.
    pub path: String,
    /// What it is.
    #[serde(flatten)]
    pub body: Body,
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Body {
    /// A folder.
    Folder {
        /// Permission bits.
        mode: u32,
    },
    /// A regular file; hard links appear as files of their own.
    File {
        /// Permission bits.
        mode: u32,
        /// Length in bytes.
        size: u64,
        /// SHA-256 of the content.
        sha256: Digest,
    },
    /// A symbolic link.
    Link {
        /// Where it points, as written.
        target: String,
    },
}

/// The lines of these members, and their digest.
#[must_use]
pub fn lines(members: &BTreeMap<String, Body>) -> (String, Digest) {
    let mut text = String::new();
    for (path, body) in members {
        text.push_str(&canonical(&Member { path: path.clone(), body: body.clone() }));
        text.push('\n');
    }
    let digest = Digest::of(text.as_bytes());
    (text, digest)
}

/// Reads the first line.
///
/// # Errors
/// It is missing or damaged.
pub(crate) fn about(notes: &Place, name: &str) -> io::Result<About> {
    let mut line = String::new();
    BufReader::new(notes.file_at(name)?.take(ABOUT_BYTES_MAX)).read_line(&mut line)?;
    serde_json::from_str(&line).map_err(io::Error::other)
}

/// Reads the members' lines, as text.
///
/// # Errors
/// The file is missing or not text.
pub(crate) fn read_lines(notes: &Place, name: &str) -> io::Result<String> {
    let mut text = String::new();
    notes.file_at(name)?.take(MANIFEST_BYTES_MAX).read_to_string(&mut text)?;
    match text.split_once('\n') {
        Some((_, rest)) => Ok(rest.to_owned()),
        None => Err(io::Error::other("the manifest is cut off")),
    }
}
