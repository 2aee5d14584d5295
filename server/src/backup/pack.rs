//! Writing a backup.
//!
//! Invariant: a file is taken with the length that it has when it is opened; what grows meanwhile grows behind that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use drover_shared::Digest;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::{ABOUT, About, DATA, DATABASE, DIGESTS, Kept, Written};

/// How hard the packer tries: most of what is packed is packed already.
const LEVEL: i32 = 3;
/// Folders below one another in a data directory.
const DEPTH_MAX: usize = 32;
/// What is made anew by itself, or says only how this server runs: repositories, the address for agents, trials of the disk.
const LEFT_OUT: [&str; 3] = ["sources", "agent-url", ".room-probe"];
/// What tells servers apart that are at work on one folder.
const LOCK: &str = "lock";

/// Packs everything into `to`, durably.
pub(super) fn pack(about: &About, database: &Path, data: &Path, sqlite: Option<&Path>, to: &Path) -> Result<Written> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let file = file.with_context(|| format!("make {}", to.display()))?;
    let packer = zstd::Encoder::new(file, LEVEL).context("the packer")?;
    let mut packing = Packing { tar: Builder::new(packer), kept: Vec::new() };
    packing.text(ABOUT, &serde_json::to_vec_pretty(about)?)?;
    for (name, path) in files(database, &|_, _| true)? {
        packing.file(&format!("{DATABASE}/{name}"), &path)?;
    }
    let wanted = |name: &str, path: &Path| {
        let is_left_out = LEFT_OUT.iter().any(|left_out| name.split('/').next() == Some(left_out));
        !is_left_out && !name.ends_with(&format!("/{LOCK}")) && !is_database(path, sqlite)
    };
    for (name, path) in files(data, &wanted)? {
        packing.file(&format!("{DATA}/{name}"), &path)?;
    }
    let kept = std::mem::take(&mut packing.kept);
    packing.text(DIGESTS, &serde_json::to_vec(&kept)?)?;
    let file = packing.tar.into_inner()?.finish()?;
    file.sync_all()?;
    let bytes = kept.iter().map(|one| one.bytes).sum();
    Ok(Written { files: kept.len(), bytes, packed_bytes: file.metadata()?.len() })
}

/// The SQLite file, and what SQLite keeps beside it.
fn is_database(path: &Path, sqlite: Option<&Path>) -> bool {
    let Some(sqlite) = sqlite else { return false };
    ["", "-wal", "-shm", "-journal"].iter().any(|suffix| {
        let mut name = sqlite.as_os_str().to_owned();
        name.push(suffix);
        path.as_os_str() == name
    })
}

/// Every file below a folder that is wanted, with its name from there, in order.
fn files(folder: &Path, wanted: &dyn Fn(&str, &Path) -> bool) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let mut folders = vec![(String::new(), folder.to_owned(), 0)];
    while let Some((prefix, folder, depth)) = folders.pop() {
        ensure!(depth <= DEPTH_MAX, "{} is too deep", folder.display());
        for item in fs::read_dir(&folder).with_context(|| format!("look into {}", folder.display()))? {
            let item = item?;
            let name =
                item.file_name().into_string().map_err(|name| anyhow::anyhow!("{} is no text", name.display()))?;
            let (name, path) = (format!("{prefix}{name}"), item.path());
            // Links have no business here, and devices even less.
            match item.file_type()? {
                _ if !wanted(&name, &path) => {}
                kind if kind.is_dir() => folders.push((format!("{name}/"), path, depth + 1)),
                kind if kind.is_file() => found.push((name, path)),
                _ => {}
            }
        }
    }
    found.sort();
    Ok(found)
}

struct Packing<W: Write> {
    tar: Builder<W>,
    kept: Vec<Kept>,
}

impl<W: Write> Packing<W> {
    fn text(&mut self, name: &str, text: &[u8]) -> Result<()> {
        let length = u64::try_from(text.len())?;
        self.append(name, length, text)
    }

    /// One file as long as it is now; one that is gone meanwhile is no loss: whoever removed it had no use for it.
    fn file(&mut self, name: &str, path: &Path) -> Result<()> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
        };
        let length = file.metadata()?.len();
        self.append(name, length, file.take(length)).with_context(|| format!("pack {}", path.display()))
    }

    fn append(&mut self, name: &str, length: u64, from: impl Read) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_size(length);
        header.set_mode(0o600);
        let mut from = Hashing { from, hash: Sha256::new(), bytes: 0 };
        self.tar.append_data(&mut header, name, &mut from)?;
        ensure!(from.bytes == length, "it became shorter while it was read");
        let digest = Digest::from_bytes(from.hash.finalize().into());
        self.kept.push(Kept { path: name.to_owned(), bytes: length, digest });
        Ok(())
    }
}

/// Passes on what it reads.
pub(super) struct Hashing<R> {
    pub(super) from: R,
    pub(super) hash: Sha256,
    pub(super) bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes += u64::try_from(count).unwrap_or(0);
        Ok(count)
    }
}
