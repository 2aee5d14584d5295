//! Which mirrors there are, and removing one.
//!
//! Invariant: a mirror goes in its turn, so while nobody works with it; who wants it later makes it anew. One that is half
//! removed has another name, by which it is found again.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use drover_shared::Digest;

use super::{SourceError, Sources, blocking};

/// What the mirror of a repository is known by.
#[must_use]
pub(crate) fn key(url: &str) -> Digest {
    Digest::of(url.as_bytes())
}

fn place(folder: &Path, key: Digest, ending: &str) -> PathBuf {
    folder.join(format!("{key}.{ending}"))
}

/// The mirrors in a folder, those that are half made or half removed among them. Blocks.
///
/// # Errors
/// When the folder cannot be read.
pub(crate) fn mirrors(folder: &Path) -> io::Result<BTreeSet<Digest>> {
    let mut mirrors = BTreeSet::new();
    let items = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(mirrors),
        items => items?,
    };
    for item in items {
        let name = item?.file_name();
        let key = name.to_str().and_then(|name| name.strip_suffix(".git").or_else(|| name.strip_suffix(".new")));
        mirrors.extend(key.and_then(|key| key.parse::<Digest>().ok()));
    }
    Ok(mirrors)
}

/// Bytes of a mirror and of what is remembered of it, as far as they can be read. Blocks.
#[must_use]
pub(crate) fn bytes_of(folder: &Path, key: Digest) -> u64 {
    ["git", "new", "packed"].into_iter().map(|ending| bytes_in(&place(folder, key, ending))).sum()
}

fn bytes_in(folder: &Path) -> u64 {
    let mut bytes = 0;
    for item in fs::read_dir(folder).into_iter().flatten().flatten() {
        match item.metadata() {
            Ok(about) if about.is_dir() => bytes += bytes_in(&item.path()),
            Ok(about) => bytes += about.len(),
            // Removed meanwhile.
            Err(_) => {}
        }
    }
    bytes
}

impl Sources {
    /// Where the mirrors are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Removes the mirror of a repository, unless somebody works with it. Says whether it is gone.
    ///
    /// # Errors
    /// [`SourceError::Storage`] when the file system refuses.
    pub async fn remove(&self, key: Digest) -> Result<bool, SourceError> {
        let turn = self.turn(key);
        let Ok(_turn) = turn.try_lock() else { return Ok(false) };
        let folder = self.folder.clone();
        let remove = move || {
            let place = |ending| place(&folder, key, ending);
            remove_all(&place("new"))?;
            if let Err(error) = fs::rename(place("git"), place("new"))
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
            remove_all(&place("packed"))?;
            remove_all(&place("new"))
        };
        let removed = blocking(remove).await?;
        removed.map_err(|error| SourceError::Storage(format!("cannot remove an old mirror: {error}")))?;
        Ok(true)
    }
}

fn remove_all(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
