//! Contents that kept releases have and a new one needs again.
//!
//! Invariant: what is handed on was read just now and has the digest that is wanted, whatever became of the release since
//! it was unpacked.

use std::collections::{BTreeSet, HashSet};
use std::io::{self, Read as _};

use drover_shared::chunks::{ChunkDigest, Cutter, WHOLE_BYTES_MAX, digest_of, short};

use crate::release::Layout;
use crate::release::manifest::{self, Body, Member};
use crate::release::place::{Descent, stopped};
use crate::release::site::{Site, manifest_name};

/// Releases that are looked through, the one in use first.
const RELEASES_MAX: usize = 3;

/// Whether any release is kept.
pub(crate) fn is_any(layout: &Layout) -> bool {
    layout.list().is_some_and(|releases| !releases.is_empty())
}

/// Looks for chunks in the kept releases and takes those that are found out of `wanted`.
///
/// # Errors
/// `found` fails, or it was told to stop. What cannot be read has nothing.
pub(crate) fn gather(
    layout: &Layout,
    wanted: &mut HashSet<ChunkDigest>,
    found: &mut dyn FnMut(ChunkDigest, &[u8]) -> io::Result<()>,
    stop: &mut dyn FnMut() -> bool,
) -> io::Result<()> {
    let Ok(Some(site)) = layout.open() else { return Ok(()) };
    let mut releases = site.list();
    releases.sort_by_key(|release| !release.current);
    let mut seen = BTreeSet::new();
    for release in releases.iter().take(RELEASES_MAX) {
        if wanted.is_empty() {
            break;
        }
        look_through(&site, &release.name, wanted, &mut seen, found, stop)?;
    }
    Ok(())
}

fn look_through(
    site: &Site,
    release: &str,
    wanted: &mut HashSet<ChunkDigest>,
    seen: &mut BTreeSet<drover_shared::Digest>,
    found: &mut dyn FnMut(ChunkDigest, &[u8]) -> io::Result<()>,
    stop: &mut dyn FnMut() -> bool,
) -> io::Result<()> {
    let (Ok(folder), Ok(text)) =
        (site.releases.folder(release), manifest::read_lines(&site.notes, &manifest_name(release)))
    else {
        return Ok(());
    };
    let mut descent = Descent::new(&folder);
    for line in text.lines() {
        if stop() {
            return Err(stopped());
        }
        let Ok(Member { path, body: Body::File { size, sha256, .. } }) = serde_json::from_str(line) else { continue };
        // A short file is one chunk, so whether it is wanted is known without reading it; a long one is read once.
        let is_short = size <= WHOLE_BYTES_MAX;
        if is_short && !wanted.contains(&short(sha256)) || !is_short && !seen.insert(sha256) {
            continue;
        }
        let Ok((place, name)) = descent.to(&path) else { continue };
        let Ok(file) = place.file_at(name) else { continue };
        if !file.metadata().is_ok_and(|meta| meta.is_file()) {
            continue;
        }
        for chunk in Cutter::new(file.take(size), size) {
            let Ok(chunk) = chunk else { break };
            if stop() {
                return Err(stopped());
            }
            let digest = digest_of(&chunk);
            if wanted.remove(&digest) {
                found(digest, &chunk)?;
            }
        }
        if wanted.is_empty() {
            break;
        }
    }
    Ok(())
}
