//! Folders reached through descriptors.
//!
//! Whoever owns a deploy path may rename, remove and link what lies in it, at any moment and between any two system
//! calls. Invariant: an open [`Place`] stays the same folder whatever its name means meanwhile; a name handed to it is
//! one part of a path, and no symbolic link below it is ever followed.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, fchown, symlinkat, unlinkat};
use rustix::fs::{RenameFlags, renameat_with};

use crate::accounts::Account;

/// Symbolic links followed on the way to a deploy path.
const LINKS_MAX: usize = 40;
/// Names read from a folder before they are dealt with.
const BATCH: usize = 1_000;

/// An open folder.
#[derive(Debug)]
pub(crate) struct Place {
    folder: File,
}

impl AsFd for Place {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

/// What [`Place::remove_all`] and others do when they are told to stop.
pub(crate) fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "stopped")
}

impl Place {
    /// Opens the folder at an absolute path. Links on the way are followed if root or the agent's account made them;
    /// another account could lead the agent anywhere.
    ///
    /// # Errors
    /// It does not exist, is no folder, or a link of another account is on the way.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        walk(path, false).map(|(place, _)| place)
    }

    /// As [`Place::at`]; folders that are missing are made, the last one `owner`'s.
    ///
    /// # Errors
    /// As [`Place::at`].
    pub(crate) fn at_or_make(path: &Path, owner: &Account) -> io::Result<Self> {
        let (place, made) = walk(path, true)?;
        if made {
            place.hand_over(owner)?;
        }
        Ok(place)
    }

    /// Opens a folder in this one.
    ///
    /// # Errors
    /// There is none of this name, or it is something else.
    pub(crate) fn folder(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(self, name.as_ref(), flags, Mode::empty()) {
            Ok(descriptor) => Ok(Self { folder: File::from(descriptor) }),
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                let link = self.look(name)?.is_some_and(|stat| kind(&stat) == SFlag::S_IFLNK);
                let why = if link { "it is a symbolic link, not a folder" } else { "it is not a folder" };
                Err(io::Error::new(io::ErrorKind::NotADirectory, why))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a folder in this one, made first if there is nothing of this name; a new one becomes `owner`'s.
    ///
    /// # Errors
    /// As [`Place::folder`].
    pub(crate) fn folder_or_make(&self, name: &str, mode: u32, owner: Option<&Account>) -> io::Result<Self> {
        match mkdirat(self, name, Mode::from_bits_truncate(mode)) {
            Ok(()) => {
                let place = self.folder(name)?;
                if let Some(owner) = owner {
                    place.hand_over(owner)?;
                }
                Ok(place)
            }
            Err(Errno::EEXIST) => self.folder(name),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a folder that only the agent's account may enter.
    ///
    /// # Errors
    /// There is something of this name, or something else was put in its place at once.
    pub(crate) fn make_private(&self, name: &str) -> io::Result<Self> {
        mkdirat(self, name, Mode::S_IRWXU)?;
        let place = self.folder(name)?;
        let meta = place.meta()?;
        if meta.uid() != nix::unistd::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
            return Err(io::Error::other("somebody else put another folder in its place"));
        }
        Ok(place)
    }

    /// Gives a folder that was just made to its owner. Another one that was put in its place meanwhile is left alone.
    fn hand_over(&self, owner: &Account) -> io::Result<()> {
        if !owner.changes {
            return Ok(());
        }
        if self.meta()?.uid() != nix::unistd::geteuid().as_raw() || !self.names(1)?.is_empty() {
            return Err(io::Error::other("somebody else put another folder in its place"));
        }
        Ok(fchown(self, Some(owner.uid), Some(owner.gid))?)
    }

    /// The folder's own descriptor.
    #[must_use]
    pub(crate) fn file(&self) -> &File {
        &self.folder
    }

    /// What the system knows of the folder.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(crate) fn meta(&self) -> io::Result<Metadata> {
        self.folder.metadata()
    }

    /// What the system knows of a name, links not followed; none if there is nothing.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(crate) fn look(&self, name: impl AsRef<OsStr>) -> io::Result<Option<FileStat>> {
        match fstatat(self, name.as_ref(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// There is none of this name, or it is something else.
    pub(crate) fn file_at(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        // Without blocking, lest a named pipe that was put there keeps the agent waiting.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = File::from(openat(self, name.as_ref(), flags, Mode::empty())?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a file")) }
    }

    /// Makes a file that was not there.
    ///
    /// # Errors
    /// There is something of this name.
    pub(crate) fn create(&self, name: &str, mode: u32) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(File::from(openat(self, name, flags, Mode::from_bits_truncate(mode))?))
    }

    /// Where a link points.
    ///
    /// # Errors
    /// There is none of this name, or it is something else.
    pub(crate) fn link(&self, name: impl AsRef<OsStr>) -> io::Result<OsString> {
        Ok(readlinkat(self, name.as_ref())?)
    }

    /// Makes a link.
    ///
    /// # Errors
    /// There is something of this name.
    pub(crate) fn make_link(&self, target: &Path, name: &str) -> io::Result<()> {
        Ok(symlinkat(target, self, name)?)
    }

    /// Gives another name to what is here, in place of what has that name.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(self, from, self, to)?)
    }

    /// Exchanges two names in one step.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(crate) fn exchange(&self, one: &str, other: &str) -> io::Result<()> {
        Ok(renameat_with(self, one, self, other, RenameFlags::EXCHANGE)?)
    }

    /// Removes a file or link; gives whether there was anything.
    ///
    /// # Errors
    /// It is a folder, or whatever the file system says.
    pub(crate) fn remove(&self, name: impl AsRef<OsStr>) -> io::Result<bool> {
        match unlinkat(self, name.as_ref(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes whatever has this name, with all that is in it.
    ///
    /// # Errors
    /// Whatever the file system says; or it was told to stop, half-way.
    pub(crate) fn remove_all(&self, name: impl AsRef<OsStr>, stop: &mut dyn FnMut() -> bool) -> io::Result<()> {
        let name = name.as_ref();
        match self.look(name)? {
            None => return Ok(()),
            Some(stat) if kind(&stat) != SFlag::S_IFDIR => return self.remove(name).map(drop),
            Some(_) => {}
        }
        let folder = self.folder(name)?;
        loop {
            let names = folder.names(BATCH)?;
            if names.is_empty() {
                break;
            }
            for inner in names {
                if stop() {
                    return Err(stopped());
                }
                folder.remove_all(&inner, stop)?;
            }
        }
        Ok(unlinkat(self, name, UnlinkatFlags::RemoveDir)?)
    }

    /// Some names in this folder, at most so many, in no order.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(crate) fn names(&self, most: usize) -> io::Result<Vec<OsString>> {
        use std::os::unix::ffi::OsStrExt as _;
        // A description of its own, so that the place in the list belongs to nobody else.
        let mut folder =
            Dir::openat(self, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut names = Vec::new();
        for item in folder.iter() {
            let item = item?;
            let name = item.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
            if names.len() >= most {
                break;
            }
        }
        Ok(names)
    }

    /// Replaces a file in one step, durably.
    ///
    /// # Errors
    /// Whatever the file system says; the old content then still stands.
    pub(crate) fn write_atomic(&self, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
        let temporary = format!(".{name}.new");
        let write = || -> io::Result<()> {
            self.remove(&temporary)?;
            let mut file = self.create(&temporary, mode)?;
            file.write_all(content)?;
            file.sync_all()?;
            self.rename(&temporary, name)
        };
        if let Err(error) = write() {
            let _ = self.remove(&temporary);
            return Err(error);
        }
        self.sync()
    }

    /// Makes the names in this folder durable.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.folder.sync_all()
    }
}

/// What a name stands for.
#[must_use]
pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// Goes to a path part by part; gives whether the last part had to be made.
fn walk(path: &Path, make: bool) -> io::Result<(Place, bool)> {
    let way = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = || open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let (mut here, mut made, mut links) = (root()?, false, 0);
    // The next part is the last.
    let mut parts: Vec<OsString> = parts_backwards(path);
    while let Some(part) = parts.pop() {
        made = false;
        let next = match openat(&here, part.as_os_str(), way, Mode::empty()) {
            Err(Errno::ENOENT) if make => {
                match mkdirat(&here, part.as_os_str(), Mode::from_bits_truncate(0o755)) {
                    Ok(()) => made = true,
                    Err(Errno::EEXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                openat(&here, part.as_os_str(), way | OFlag::O_DIRECTORY, Mode::empty())?
            }
            other => other?,
        };
        let stat = fstat(&next)?;
        if kind(&stat) != SFlag::S_IFLNK {
            here = next;
            continue;
        }
        if stat.st_uid != 0 && stat.st_uid != nix::unistd::geteuid().as_raw() {
            let part = part.to_string_lossy();
            return Err(io::Error::other(format!("`{part}` on the way to it is a symbolic link of another account")));
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(Errno::ELOOP.into());
        }
        let target = readlinkat(&next, "")?;
        if Path::new(&target).is_absolute() {
            here = root()?;
        }
        parts.extend(parts_backwards(Path::new(&target)));
    }
    Ok((Place { folder: readable(&here)? }, made))
}

fn readable(folder: &OwnedFd) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(File::from(openat(folder, ".", flags, Mode::empty())?))
}

fn parts_backwards(path: &Path) -> Vec<OsString> {
    let parts = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    parts.collect()
}

/// Reaches the members of a folder by their paths, without following any link.
pub(crate) struct Descent<'a> {
    top: &'a Place,
    below: Vec<(String, Place)>,
}

impl<'a> Descent<'a> {
    /// Starts at this folder.
    #[must_use]
    pub(crate) fn new(top: &'a Place) -> Self {
        Self { top, below: Vec::new() }
    }

    /// The folder that holds a member, and the member's name in it. Cheap when paths come in order.
    ///
    /// # Errors
    /// A folder on the way is missing or something else.
    pub(crate) fn to<'p>(&mut self, path: &'p str) -> io::Result<(&Place, &'p str)> {
        let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut parts = parents.split('/').filter(|part| !part.is_empty()).peekable();
        let mut known = 0;
        while let Some((have, _)) = self.below.get(known)
            && parts.next_if(|part| part == have).is_some()
        {
            known += 1;
        }
        self.below.truncate(known);
        for part in parts {
            let place = self.below.last().map_or(self.top, |(_, place)| place).folder(part)?;
            self.below.push((part.to_owned(), place));
        }
        Ok((self.below.last().map_or(self.top, |(_, place)| place), name))
    }
}
