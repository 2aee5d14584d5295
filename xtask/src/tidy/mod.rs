//! Rules over the tree that the compiler does not know.
//!
//! Owns the list of rules; each is a function from the sources to violations. Invariant: an allow-list may only
//! shrink, so an entry that is no longer needed is a violation as well.

mod files;
mod layers;
mod rust;
mod tables;

use std::fmt;
use std::io;
use std::path::Path;

use crate::scan::Class;
use crate::scan::Scanned;
use crate::sources::{self, Source};

/// A place that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Path below the project's root.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Which rule, and what to do.
    pub rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

/// A Rust file with its code and comments told apart.
struct RustFile<'a> {
    source: &'a Source,
    scanned: Scanned<'a>,
    /// Code alone, comments and literals blanked.
    code: String,
    /// Comments alone.
    comments: String,
    /// Offset at which the file's own tests begin; its length when it has none.
    tests_from: usize,
}

impl<'a> RustFile<'a> {
    fn new(source: &'a Source) -> Self {
        let scanned = Scanned::new(&source.text);
        let code = scanned.only(Class::Code);
        let comments = scanned.only(Class::Comment);
        let tests_from = code.find("#[cfg(test)]\nmod ").unwrap_or(code.len());
        Self { source, scanned, code, comments, tests_from }
    }

    fn violation(&self, offset: usize, rule: impl Into<String>) -> Violation {
        Violation { file: self.source.path.clone(), line: self.scanned.line(offset), rule: rule.into() }
    }
}

/// Every violation in the project at `root`, in order of file and line.
///
/// # Errors
/// When a folder or file cannot be read.
pub fn violations(root: &Path) -> io::Result<Vec<Violation>> {
    Ok(check(&sources::read(root)?))
}

fn check(sources: &[Source]) -> Vec<Violation> {
    let rust: Vec<RustFile<'_>> = sources.iter().filter(|source| source.is("rs")).map(RustFile::new).collect();
    let mut found = Vec::new();
    found.extend(files::violations(sources));
    found.extend(rust.iter().flat_map(rust::violations));
    found.extend(layers::violations(sources, &rust));
    found.extend(tables::violations(sources, &rust));
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules of `files` broken by the given files, as `file:line: rule`.
    pub(super) fn broken(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> =
            files.iter().map(|(path, text)| Source { path: (*path).to_owned(), text: (*text).to_owned() }).collect();
        check(&sources).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_tree_is_tidy() {
        let found = violations(&sources::root()).expect("the tree can be read");
        let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "\n{}\n", lines.join("\n"));
    }
}
