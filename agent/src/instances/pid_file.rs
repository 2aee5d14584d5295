//! Pid files: what one says, and how to notice that it says something else.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Bytes that are looked at.
const BYTES_MAX: u64 = 256;

/// What a pid file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PidFile {
    /// There is none.
    Missing,
    /// It cannot be read or names no process, and why.
    Unclear(String),
    /// It names a process.
    Names {
        /// Number of the process.
        pid: u32,
        /// When the file was written, milliseconds since 1970 UTC.
        written_ms: i64,
    },
}

/// By what a file that was written anew, or has another in its place, is told from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp(Option<[i64; 6]>);

/// The stamp of what is there now.
pub(crate) fn stamp(path: &str) -> Stamp {
    let numbers = |meta: fs::Metadata| {
        let (device, inode, size) = (meta.dev().cast_signed(), meta.ino().cast_signed(), meta.size().cast_signed());
        [device, inode, size, meta.mtime(), meta.mtime_nsec(), meta.ctime_nsec()]
    };
    Stamp(fs::metadata(path).ok().map(numbers))
}

/// Reads a pid file.
pub(crate) fn read(path: &str) -> PidFile {
    match content(path) {
        Ok((text, written_ms)) => {
            let line = text.lines().next().unwrap_or_default().trim();
            match line.parse::<u32>() {
                Ok(pid @ 1..) if line.bytes().all(|byte| byte.is_ascii_digit()) => PidFile::Names { pid, written_ms },
                _ => PidFile::Unclear("the pid file has no number of a process in its first line".to_owned()),
            }
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            PidFile::Missing
        }
        Err(error) => PidFile::Unclear(format!("the pid file cannot be read: {}", crate::describe(&error))),
    }
}

fn content(path: &str) -> io::Result<(String, i64)> {
    let file = open_regular(path)?;
    let meta = file.metadata()?;
    let mut bytes = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut bytes)?;
    let written_ms = meta.mtime().saturating_mul(1_000).saturating_add(meta.mtime_nsec() / 1_000_000);
    Ok((String::from_utf8_lossy(&bytes).into_owned(), written_ms))
}

/// Opens a regular file by its absolute path, and nothing else.
///
/// # Errors
/// Whatever the file system says, or that it is something else.
pub(super) fn open_regular(path: &str) -> io::Result<fs::File> {
    if !Path::new(path).is_absolute() || path.contains('\0') {
        return Err(io::Error::other("the path is not absolute"));
    }
    // Looked at before: to open a device may already do something.
    regular(&fs::metadata(path)?)?;
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    regular(&file.metadata()?)?;
    Ok(file)
}

fn regular(meta: &fs::Metadata) -> io::Result<()> {
    match meta.is_file() {
        true => Ok(()),
        false => Err(io::Error::other("it is no regular file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pid_file_may_say() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pid");
        let path = path.to_str().unwrap();
        assert_eq!(read(path), PidFile::Missing);
        let missing = stamp(path);
        for (text, pid) in [
            ("1234\n", Some(1234)),
            (" 7 \nmore", Some(7)),
            ("", None),
            ("0", None),
            ("-5", None),
            ("+5", None),
            ("x", None),
        ] {
            fs::write(path, text).unwrap();
            match (read(path), pid) {
                (PidFile::Names { pid, .. }, Some(expected)) => assert_eq!(pid, expected),
                (PidFile::Unclear(_), None) => {}
                other => panic!("{text:?}: {other:?}"),
            }
        }
        assert_ne!(stamp(path), missing);
        let before = stamp(path);
        fs::write(folder.path().join("new"), "x").unwrap();
        fs::rename(folder.path().join("new"), path).unwrap();
        assert_ne!(stamp(path), before, "the same text in another file");
        for other in [folder.path().to_str().unwrap(), "/dev/zero", "a.pid"] {
            assert!(matches!(read(other), PidFile::Unclear(_)), "{other}");
        }
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read(fifo.to_str().unwrap()), PidFile::Unclear(_)), "nobody waits for a writer");
    }
}
