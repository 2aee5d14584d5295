//! The project's files, read once.
//!
//! Invariant: build output, dependencies and local data are left out, and paths are relative to the project, with
//! forward slashes, in alphabetical order.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// Folders that hold nothing that people wrote.
const SKIPPED: &[&str] = &[".git", "target", "node_modules", "drover-data", "dist"];

/// One text file.
#[derive(Debug, Clone)]
pub struct Source {
    /// Path below the project's root.
    pub path: String,
    /// What stands in it.
    pub text: String,
}

impl Source {
    /// Whether the path ends in `.extension`.
    #[must_use]
    pub fn is(&self, extension: &str) -> bool {
        self.path.rsplit_once('.').is_some_and(|(_, end)| end == extension)
    }

    /// Whether one of the path's folders has this name.
    #[must_use]
    pub fn is_in(&self, folder: &str) -> bool {
        self.path.rsplit_once('/').is_some_and(|(folders, _)| folders.split('/').any(|part| part == folder))
    }

    /// The path's last part.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.path.rsplit_once('/').map_or(self.path.as_str(), |(_, name)| name)
    }
}

/// The root of the project that this program was built from.
#[must_use]
pub fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

/// Every text file below `root`; files that are not UTF-8 are left out.
///
/// # Errors
/// When a folder or file cannot be read.
pub fn read(root: &Path) -> io::Result<Vec<Source>> {
    let mut found = Vec::new();
    walk(root, "", &mut found)?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn walk(folder: &Path, prefix: &str, found: &mut Vec<Source>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if !SKIPPED.contains(&name.as_str()) && !entry.path().join("CACHEDIR.TAG").exists() {
                walk(&entry.path(), &path, found)?;
            }
        } else if kind.is_file() {
            match String::from_utf8(fs::read(entry.path())?) {
                Ok(text) => found.push(Source { path, text }),
                Err(_) => continue,
            }
        }
    }
    Ok(())
}
