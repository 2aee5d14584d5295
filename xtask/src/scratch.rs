//! Folders for as long as a command runs.
//!
//! Invariant: the folder is new, and is removed with everything in it when its guard goes.

use std::path::{Path, PathBuf};
use std::{env, fs, io, process};

use anyhow::{Context as _, Result};

/// Tries to find a free name.
const ATTEMPTS: u32 = 100;

/// A folder that is removed with this value.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes a folder for `purpose` among the system's temporary files.
    pub fn new(purpose: &str) -> Result<Self> {
        let mut attempt = 0;
        loop {
            let path = env::temp_dir().join(format!("drover-{purpose}-{}-{attempt}", process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(error).with_context(|| format!("cannot make {}", path.display())),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}
