//! Reading a backup.
//!
//! Invariant: what is left behind is whole: every file that the backup names, with the digest that it names, and none
//! besides.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Component, Path};

use anyhow::{Context as _, Result, bail, ensure};
use drover_shared::Digest;
use sha2::{Digest as _, Sha256};
use tar::{Archive, EntryType};

use super::pack::Hashing;
use super::{ABOUT, About, DATA, DATABASE, DIGESTS, FORMAT, Kept};

/// Longest of the texts at the beginning and the end.
const TEXT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Unpacks a backup into a new folder.
pub(super) fn unpack(file: &Path, to: &Path) -> Result<()> {
    let packed = File::open(file).with_context(|| format!("open {}", file.display()))?;
    let is_broken = || format!("{} is no backup, or a broken one", file.display());
    let unpacked = zstd::Decoder::new(packed).with_context(is_broken)?;
    for folder in [to.to_owned(), to.join(DATABASE), to.join(DATA)] {
        private().create(&folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let mut found: BTreeMap<String, (u64, Digest)> = BTreeMap::new();
    let mut kept: Option<Vec<Kept>> = None;
    let mut archive = Archive::new(unpacked);
    for entry in archive.entries().with_context(is_broken)? {
        let mut entry = entry.with_context(is_broken)?;
        let name = entry.path()?.to_str().with_context(is_broken)?.to_owned();
        ensure!(entry.header().entry_type() == EntryType::Regular, "{name} is no file: {}", is_broken());
        ensure!(kept.is_none(), "{name} comes after the end: {}", is_broken());
        let mut from = Hashing { from: &mut entry, hash: Sha256::new(), bytes: 0 };
        if found.is_empty() {
            ensure!(name == ABOUT, "{}", is_broken());
            about(&text(&mut from).with_context(is_broken)?).with_context(is_broken)?;
        } else if name == DIGESTS {
            kept = Some(serde_json::from_slice(&text(&mut from).with_context(is_broken)?).with_context(is_broken)?);
            continue;
        } else {
            write(&mut from, to, &name).with_context(|| format!("unpack {name}: {}", is_broken()))?;
        }
        let digest = Digest::from_bytes(from.hash.finalize().into());
        ensure!(found.insert(name.clone(), (from.bytes, digest)).is_none(), "{name} comes twice: {}", is_broken());
    }
    let kept = kept.with_context(|| format!("{} is not complete", file.display()))?;
    for one in kept {
        let same = found.remove(&one.path) == Some((one.bytes, one.digest));
        ensure!(same, "{} is not what it was: {}", one.path, is_broken());
    }
    ensure!(found.is_empty(), "{:?} are no part of it: {}", found.keys(), is_broken());
    Ok(())
}

fn private() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}

fn text(from: &mut impl Read) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let length = from.take(TEXT_BYTES_MAX + 1).read_to_end(&mut text)?;
    ensure!(u64::try_from(length)? <= TEXT_BYTES_MAX, "too long");
    Ok(text)
}

fn about(text: &[u8]) -> Result<()> {
    let about: About = serde_json::from_slice(text)?;
    if about.format != FORMAT {
        bail!("it was made by version {} and has the form {}: this server knows {FORMAT}", about.version, about.format);
    }
    Ok(())
}

/// Writes one file, durably, below one of the two folders.
fn write(from: &mut impl Read, to: &Path, name: &str) -> Result<()> {
    let path = Path::new(name);
    let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    ensure!(is_plain && (path.starts_with(DATABASE) || path.starts_with(DATA)), "it leads elsewhere");
    let target = to.join(path);
    let folder = target.parent().context("it has no folder")?;
    if !folder.is_dir() {
        let mut builder = private();
        builder.recursive(true).create(folder)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
    io::copy(from, &mut file)?;
    file.sync_all()?;
    File::open(folder)?.sync_all()?;
    Ok(())
}
