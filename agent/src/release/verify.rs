//! Whether a kept release is what was unpacked.

use std::fs::File;
use std::io::{self, Read as _};

use drover_shared::Digest;
use nix::sys::stat::SFlag;
use sha2::{Digest as _, Sha256};

use crate::describe;
use crate::release::manifest::{self, Body, Member};
use crate::release::place::{Descent, Place, kind, stopped};
use crate::release::site::{Site, manifest_name};
use crate::release::{Layout, check_name};

/// Differences that a message names.
const DIFFERENCES_MAX: usize = 10;

/// Compares a release with its manifest, and the manifest with the digest that the server kept. Files that were
/// added later are no difference. `stop` ends it early. Gives a line for people.
///
/// # Errors
/// A sentence that names the first differences.
pub fn verify(
    layout: &Layout,
    release: &str,
    tree_digest: Digest,
    stop: &mut dyn FnMut() -> bool,
) -> Result<String, String> {
    check_name(release)?;
    match layout.open()? {
        Some(site) => verify_in(&site, release, tree_digest, stop),
        None => Err(format!("release `{release}` is not kept on this host")),
    }
}

/// As [`verify`].
pub(crate) fn verify_in(
    site: &Site,
    release: &str,
    tree_digest: Digest,
    stop: &mut dyn FnMut() -> bool,
) -> Result<String, String> {
    if !site.has(release) {
        return Err(format!("release `{release}` is not kept on this host"));
    }
    let folder = site
        .releases
        .folder(release)
        .map_err(|error| format!("release `{release}` cannot be read: {}", describe(&error)))?;
    let text = manifest::read_lines(&site.notes, &manifest_name(release))
        .map_err(|error| format!("the manifest of release `{release}` cannot be read: {error}"))?;
    if Digest::of(text.as_bytes()) != tree_digest {
        return Err(format!("the manifest of release `{release}` is not the one that was recorded"));
    }
    let mut descent = Descent::new(&folder);
    let mut count = 0_usize;
    let mut differences = Vec::new();
    let mut more = 0_usize;
    for line in text.lines() {
        if stop() {
            return Err("stopped".to_owned());
        }
        let member: Member = serde_json::from_str(line).map_err(|error| format!("the manifest is damaged: {error}"))?;
        count += 1;
        if let Some(difference) = differs(&mut descent, &member, stop)? {
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

/// How a member differs from the manifest, if it does.
///
/// # Errors
/// It was told to stop.
pub(crate) fn differs(
    descent: &mut Descent<'_>,
    member: &Member,
    stop: &mut dyn FnMut() -> bool,
) -> Result<Option<&'static str>, String> {
    let Ok((place, name)) = descent.to(&member.path) else { return Ok(Some("is missing")) };
    let Ok(Some(stat)) = place.look(name) else { return Ok(Some("is missing")) };
    let (is, mode) = (kind(&stat), stat.st_mode & 0o777);
    Ok(match &member.body {
        Body::Folder { .. } if is != SFlag::S_IFDIR => Some("is no folder any more"),
        Body::Folder { mode: expected } => (mode != *expected).then_some("has other permissions"),
        Body::Link { .. } if is != SFlag::S_IFLNK => Some("is no symbolic link any more"),
        Body::Link { target } => {
            let same = place.link(name).is_ok_and(|now| now.to_str() == Some(target.as_str()));
            (!same).then_some("points elsewhere")
        }
        Body::File { .. } if is != SFlag::S_IFREG => Some("is no file any more"),
        Body::File { mode: expected, .. } if mode != *expected => Some("has other permissions"),
        Body::File { size, .. } if u64::try_from(stat.st_size) != Ok(*size) => Some("has another length"),
        Body::File { sha256, .. } => match file_digest(place, name, stop) {
            Ok(now) if now == *sha256 => None,
            Ok(_) => Some("has another content"),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err("stopped".to_owned()),
            Err(_) => Some("cannot be read"),
        },
    })
}

fn file_digest(place: &Place, name: &str, stop: &mut dyn FnMut() -> bool) -> io::Result<Digest> {
    digest_of(&mut place.file_at(name)?, stop)
}

/// SHA-256 of what is left of a file.
///
/// # Errors
/// Whatever the file system says; or it was told to stop.
fn digest_of(file: &mut File, stop: &mut dyn FnMut() -> bool) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::from_bytes(hash.finalize().into())),
            length => hash.update(&buffer[..length]),
        }
        if stop() {
            return Err(stopped());
        }
    }
}
