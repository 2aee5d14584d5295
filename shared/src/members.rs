//! What an archive of files may contain, for who packs one and for who unpacks it.
//!
//! Invariant: what passes can be created on every host below one folder and nowhere else, in whatever order its members
//! are: paths are plain text without `..`, nothing lies below anything but a folder, and no link leads outside.

use std::collections::BTreeMap;

/// Length of a path, and of what a link says, in bytes.
pub const PATH_BYTES_MAX: usize = 4_000;
/// Length of one part of a path, in bytes: what file systems allow.
pub const PART_BYTES_MAX: usize = 255;
/// Parts of a path.
pub const DEPTH_MAX: usize = 200;

/// Kind of a member, with where a link points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A regular file.
    File,
    /// A symbolic link and its text.
    Symlink(String),
    /// A hard link to a member.
    HardLink(String),
}

/// The path below the root that a name means, without what means nothing; empty for the root itself.
///
/// # Errors
/// What is wrong with it, for people.
pub fn path(name: &[u8]) -> Result<String, &'static str> {
    if name.len() > PATH_BYTES_MAX {
        return Err("its name is longer than 4000 bytes");
    }
    let name = std::str::from_utf8(name).map_err(|_| "its name is not UTF-8")?;
    if name.contains('\0') {
        return Err("its name holds a NUL");
    }
    if name.starts_with('/') {
        return Err("its name is an absolute path");
    }
    let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err("its name holds `..`");
    }
    if parts.iter().any(|part| part.len() > PART_BYTES_MAX) {
        return Err("a part of its name is longer than 255 bytes");
    }
    if parts.len() > DEPTH_MAX {
        return Err("its name has more than 200 parts");
    }
    Ok(parts.join("/"))
}

/// The text of a symbolic link at a path that was [checked](path). `..` may only lead it, as many as the link is deep:
/// folders above a link are real ones, so these cannot lead outside, and neither can the rest, whatever links it meets.
///
/// # Errors
/// What is wrong with it, for people.
pub fn target(path: &str, text: &[u8]) -> Result<String, &'static str> {
    if text.is_empty() {
        return Err("it is a link to nothing");
    }
    if text.len() > PATH_BYTES_MAX {
        return Err("it is a link whose target is longer than 4000 bytes");
    }
    let text = std::str::from_utf8(text).map_err(|_| "it is a link to a name that is not UTF-8")?;
    if text.contains('\0') {
        return Err("it is a link to a name that holds a NUL");
    }
    if text.starts_with('/') {
        return Err("it is a link to an absolute path");
    }
    let mut above = path.matches('/').count();
    let mut is_below = false;
    for part in text.split('/').filter(|part| !matches!(*part, "" | ".")) {
        match part {
            ".." if is_below => return Err("it is a link with `..` behind a name, which may lead anywhere"),
            ".." => above = above.checked_sub(1).ok_or("it is a link that leads out of the archive")?,
            _ => is_below = true,
        }
    }
    Ok(text.to_owned())
}

/// The first member that lies where it cannot be, and why.
#[must_use]
pub fn misplaced(members: &BTreeMap<String, Kind>) -> Option<(&str, &'static str)> {
    members.iter().find_map(|(path, kind)| {
        let mut above = path.match_indices('/').filter_map(|(at, _)| members.get(&path[..at]));
        let reason = match above.find(|above| **above != Kind::Folder) {
            Some(Kind::Symlink(_)) => "it lies behind a link",
            Some(_) => "it lies below what is no folder",
            None => match kind {
                Kind::HardLink(target) if members.get(target) != Some(&Kind::File) => {
                    "it is a hard link to what is no file of the archive"
                }
                _ => return None,
            },
        };
        Some((path.as_str(), reason))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root_and_can_be_made() {
        for (name, expected) in [("./a//b/", "a/b"), ("", ""), ("./", ""), ("a/./b", "a/b"), ("..a/b..", "..a/b..")] {
            assert_eq!(path(name.as_bytes()).as_deref(), Ok(expected), "{name}");
        }
        let deep = |parts: usize| "a/".repeat(parts);
        assert!(path(deep(DEPTH_MAX).as_bytes()).is_ok());
        let long = "x".repeat(PART_BYTES_MAX + 1);
        for (name, expected) in [
            (&b"a/../b"[..], "its name holds `..`"),
            (b"/a", "its name is an absolute path"),
            (b"a\xff", "its name is not UTF-8"),
            (b"a\0b", "its name holds a NUL"),
            (long.as_bytes(), "a part of its name is longer than 255 bytes"),
            (deep(DEPTH_MAX + 1).as_bytes(), "its name has more than 200 parts"),
            (&[b'/'; PATH_BYTES_MAX + 1], "its name is longer than 4000 bytes"),
        ] {
            assert_eq!(path(name), Err(expected));
        }
    }

    #[test]
    fn links_go_up_first_and_no_further_than_the_root() {
        for (path, text) in [("a", "b"), ("a/b", "../c/./d"), ("a/b/c", "../../x"), ("a", "."), ("a", "b/")] {
            assert_eq!(target(path, text.as_bytes()).as_deref(), Ok(text), "{path}");
        }
        for (path, text, expected) in [
            ("a", &b""[..], "it is a link to nothing"),
            ("a", b"..", "it is a link that leads out of the archive"),
            ("a/b", b"../../c", "it is a link that leads out of the archive"),
            ("a/b", b"c/../d", "it is a link with `..` behind a name, which may lead anywhere"),
            ("a", b"/c", "it is a link to an absolute path"),
            ("a", b"b\0c", "it is a link to a name that holds a NUL"),
            ("a", b"\xff", "it is a link to a name that is not UTF-8"),
            ("a", &[b'x'; PATH_BYTES_MAX + 1], "it is a link whose target is longer than 4000 bytes"),
        ] {
            assert_eq!(target(path, text), Err(expected));
        }
    }

    #[test]
    fn members_lie_below_folders_alone() {
        let link = || Kind::Symlink("x".to_owned());
        let hard = |target: &str| Kind::HardLink(target.to_owned());
        let of = |members: &[(&str, Kind)]| {
            members.iter().map(|(path, kind)| ((*path).to_owned(), kind.clone())).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(misplaced(&of(&[("a", Kind::Folder), ("a/b", Kind::File), ("c", hard("a/b"))])), None);
        for (members, expected) in [
            ([("a", link()), ("a/b/c", Kind::File)], ("a/b/c", "it lies behind a link")),
            ([("a", Kind::File), ("a/b", Kind::Folder)], ("a/b", "it lies below what is no folder")),
            ([("a", link()), ("b", hard("a"))], ("b", "it is a hard link to what is no file of the archive")),
        ] {
            assert_eq!(misplaced(&of(&members)), Some(expected));
        }
    }
}
