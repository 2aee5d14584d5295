//! Rules for files of every kind: length, names, links, and nothing of any one machine.

use std::collections::BTreeSet;

use super::Violation;
use crate::sources::Source;

/// Past this many lines a file is a room that wants a wall; 500 are asked for.
const LINES_MAX: usize = 600;

/// Files that are still longer than [`LINES_MAX`].
const LONG_FILES: &[&str] = &[];

/// Kinds of files whose length people feel.
const WRITTEN: &[&str] = &["rs", "ts", "tsx", "js", "css", "py", "sh", "sql"];

/// Names that say nothing about what a module owns.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "types"];

/// Texts that belong to one workplace, not to the project.
const FOREIGN: &[&str] = &[concat!("/wo", "rk/"), concat!("..", "/shared")];

pub(super) fn violations(sources: &[Source]) -> Vec<Violation> {
    let paths = every_path(sources);
    let mut found = Vec::new();
    for source in sources {
        found.extend(length(source));
        found.extend(name(source));
        found.extend(foreign(source));
        if source.is("md") {
            found.extend(links(source, &paths));
        }
    }
    for listed in LONG_FILES {
        if !sources.iter().any(|source| source.path == *listed && source.text.lines().count() > LINES_MAX) {
            found.push(at(listed, 1, "is short enough: take it off the list of long files"));
        }
    }
    found
}

fn at(file: &str, line: usize, rule: impl Into<String>) -> Violation {
    Violation { file: file.to_owned(), line, rule: rule.into() }
}

fn length(source: &Source) -> Option<Violation> {
    let lines = source.text.lines().count();
    let counts = WRITTEN.iter().any(|extension| source.is(extension)) && !source.is_in("golden");
    (counts && lines > LINES_MAX && !LONG_FILES.contains(&source.path.as_str()))
        .then(|| at(&source.path, lines, format!("{lines} lines, {LINES_MAX} are the limit: divide the file")))
}

fn name(source: &Source) -> Option<Violation> {
    let stem = source.path.strip_suffix(".rs")?;
    let empty = stem.split('/').find(|part| EMPTY_NAMES.contains(part))?;
    Some(at(&source.path, 1, format!("`{empty}` says nothing: name the module after what it owns")))
}

fn foreign(source: &Source) -> Vec<Violation> {
    let lines = source.text.lines().enumerate();
    lines
        .filter_map(|(index, line)| {
            let text = FOREIGN.iter().find(|text| line.contains(**text))?;
            Some(at(&source.path, index + 1, format!("`{text}` is a path of one machine: the project stands alone")))
        })
        .collect()
}

/// Files and folders, as links may name them.
fn every_path(sources: &[Source]) -> BTreeSet<String> {
    let mut paths = BTreeSet::from([String::new()]);
    for source in sources {
        let mut path = source.path.as_str();
        paths.insert(path.to_owned());
        while let Some((folder, _)) = path.rsplit_once('/') {
            paths.insert(folder.to_owned());
            path = folder;
        }
    }
    paths
}

fn links(source: &Source, paths: &BTreeSet<String>) -> Vec<Violation> {
    let folder = source.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut fenced = false;
    let mut found = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for target in targets(line) {
            let resolved = resolve(folder, target);
            if !resolved.is_some_and(|path| paths.contains(&path)) {
                found.push(at(&source.path, index + 1, format!("link to `{target}`, which does not exist")));
            }
        }
    }
    found
}

/// Targets of `[text](target)` that lie in the project, without their anchors.
fn targets(line: &str) -> Vec<&str> {
    line.match_indices("](")
        .filter_map(|(at, _)| {
            let rest = &line[at + 2..];
            let target = rest[..rest.find([')', ' '])?].split('#').next()?;
            (!target.is_empty() && !target.contains(':')).then_some(target)
        })
        .collect()
}

/// The path that `target` names, seen from `folder`; none when it leaves the project.
fn resolve(folder: &str, target: &str) -> Option<String> {
    let (folder, target) = target.strip_prefix('/').map_or((folder, target), |target| ("", target));
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop()?,
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::broken;

    #[test]
    fn long_files_are_seen() {
        let long = format!("//! Doc.\n{}", "fn f() {}\n".repeat(600));
        assert_eq!(broken(&[("a.rs", &long)]), ["a.rs:601: 601 lines, 600 are the limit: divide the file"]);
        assert_eq!(broken(&[("a.json", &long)]), [""; 0]);
    }

    #[test]
    fn empty_names_are_seen() {
        for path in ["a/src/utils.rs", "a/src/common/mod.rs", "tests/helpers.rs"] {
            assert_eq!(broken(&[(path, "//! Doc.\n")]).len(), 1, "{path}");
        }
        assert_eq!(broken(&[("a/src/subtypes.rs", "//! Doc.\n")]), [""; 0]);
    }

    #[test]
    fn dead_links_are_seen() {
        let page =
            "[a](b.md) [b](../README.md#top) [c](https://x/y.md) [d](gone.md)\n```\n[e](gone.md)\n```\n[f](../..)";
        assert_eq!(
            broken(&[("docs/a.md", page), ("docs/b.md", ""), ("README.md", "[docs](docs/) [none](#here)")]),
            [
                "docs/a.md:1: link to `gone.md`, which does not exist",
                "docs/a.md:5: link to `../..`, which does not exist"
            ]
        );
    }

    #[test]
    fn foreign_paths_are_seen() {
        let line = format!("see {}", super::FOREIGN[0]);
        assert_eq!(broken(&[("a.toml", &line)]).len(), 1);
    }
}
