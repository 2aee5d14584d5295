//! Whether a kept release is what was unpacked.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use drover_shared::Digest;
use sha2::{Digest as _, Sha256};

use crate::release::manifest::{self, Body, Member};
use crate::release::{Layout, check_name};

/// Differences that a message names.
const DIFFERENCES_MAX: usize = 10;

/// Compares a release with its manifest, and the manifest with the digest that the server kept. Files that were
/// added later are no difference. Gives a line for people.
///
/// # Errors
/// A sentence that names the first differences.
pub fn verify(layout: &Layout, release: &str, tree_digest: Digest) -> Result<String, String> {
    check_name(release)?;
    let folder = layout.release(release);
    if !fs::symlink_metadata(&folder).is_ok_and(|meta| meta.is_dir()) {
        return Err(format!("release `{release}` is not kept on this host"));
    }
    let text = manifest::read_lines(&layout.manifest(release))
        .map_err(|error| format!("the manifest of release `{release}` cannot be read: {error}"))?;
    if Digest::of(text.as_bytes()) != tree_digest {
        return Err(format!("the manifest of release `{release}` is not the one that was recorded"));
    }
    let mut count = 0_usize;
    let mut differences = Vec::new();
    let mut more = 0_usize;
    for line in text.lines() {
        let member: Member = serde_json::from_str(line).map_err(|error| format!("the manifest is damaged: {error}"))?;
        count += 1;
        if let Some(difference) = differs(&folder.join(&member.path), &member.body) {
            if differences.len() < DIFFERENCES_MAX {
                differences.push(format!("{} {difference}", member.path));
            } else {
                more += 1;
            }
        }
    }
    if differences.is_empty() {
        return Ok(format!("{release} is whole, {count} members"));
    }
    let rest = if more > 0 { format!(", and {more} more") } else { String::new() };
    Err(format!("release `{release}` was changed: {}{rest}", differences.join(", ")))
}

fn differs(path: &Path, body: &Body) -> Option<&'static str> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Some("is missing") };
    let mode = meta.mode() & 0o777;
    match body {
        Body::Folder { .. } if !meta.is_dir() => Some("is no folder any more"),
        Body::Folder { mode: expected } => (mode != *expected).then_some("has other permissions"),
        Body::Link { .. } if !meta.is_symlink() => Some("is no symbolic link any more"),
        Body::Link { target } => {
            let same = fs::read_link(path).is_ok_and(|now| now.to_str() == Some(target.as_str()));
            (!same).then_some("points elsewhere")
        }
        Body::File { .. } if !meta.is_file() => Some("is no file any more"),
        Body::File { mode: expected, .. } if mode != *expected => Some("has other permissions"),
        Body::File { size, .. } if meta.len() != *size => Some("has another length"),
        Body::File { sha256, .. } => match file_digest(path) {
            Ok(now) if now == *sha256 => None,
            Ok(_) => Some("has another content"),
            Err(_) => Some("cannot be read"),
        },
    }
}

/// SHA-256 of a file, which must not be a symbolic link.
///
/// # Errors
/// Whatever the file system says.
pub fn file_digest(path: &Path) -> io::Result<Digest> {
    let mut file = File::options().read(true).custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits()).open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::from_bytes(hash.finalize().into())),
            length => hash.update(&buffer[..length]),
        }
    }
}
