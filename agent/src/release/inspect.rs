//! What is kept under a deploy path, looked at closely: sizes, and how releases differ from their manifests.
//!
//! Invariant: nothing is changed, no link is followed, and the answer is bounded whatever lies there.

use std::collections::{BTreeSet, HashSet};
use std::io;

use drover_shared::Digest;
use drover_shared::limits::{INSPECTED_PATH_BYTES_MAX, INSPECTED_PATHS_MAX, INSPECTED_RELEASES_MAX};
use drover_shared::message::{Drift, Inspect, Inspected, InspectedRelease, Release};
use nix::sys::stat::{FileStat, SFlag};

use crate::describe;
use crate::release::manifest::{self, Member};
use crate::release::place::{Descent, Place, kind, stopped};
use crate::release::site::{Site, manifest_name};
use crate::release::verify::differs;
use crate::release::{Layout, check_path};

/// Folders below each other that are looked into.
const DEPTH_MAX: usize = 200;
/// Names of one folder that are looked at.
const NAMES_MAX: usize = 1_000_000;
/// Files with several names that are told apart.
const LINKED_MAX: usize = 100_000;

/// Answers an inspection; `stop` ends it early, with what is known by then.
pub fn inspect(request: &Inspect, stop: &mut dyn FnMut() -> bool) -> Inspected {
    let mut answer = Inspected { request: request.request, reason: None, releases: Vec::new(), free_bytes: None };
    if let Err(reason) = fill(request, &mut answer, stop) {
        answer.reason = Some(reason);
    }
    answer
}

fn fill(request: &Inspect, answer: &mut Inspected, stop: &mut dyn FnMut() -> bool) -> Result<(), String> {
    check_path(&request.deploy_path)?;
    let Some(site) = Layout::new(&request.deploy_path).open()? else { return Ok(()) };
    answer.free_bytes =
        nix::sys::statvfs::fstatvfs(&site.releases).ok().map(|stat| stat.blocks_available() * stat.fragment_size());
    let previous = site.previous_name();
    let mut kept = site.list();
    if let Some(only) = &request.release {
        kept.retain(|release| release.name == *only);
        if kept.is_empty() {
            return Err(format!("release `{only}` is not kept on this host"));
        }
    }
    let surplus = kept.len().saturating_sub(INSPECTED_RELEASES_MAX);
    kept.truncate(INSPECTED_RELEASES_MAX);
    let mut room = INSPECTED_PATHS_MAX;
    for release in kept {
        let previous = previous.as_ref() == Some(&release.name);
        let (inspected, outcome) = one(&site, release, previous, request.compare, &mut room, stop);
        answer.releases.push(inspected);
        outcome?;
    }
    if surplus > 0 { Err(format!("{surplus} further releases are left out")) } else { Ok(()) }
}

/// A release as far as it could be looked at, and what went wrong.
fn one(
    site: &Site,
    release: Release,
    previous: bool,
    compare: bool,
    room: &mut usize,
    stop: &mut dyn FnMut() -> bool,
) -> (InspectedRelease, Result<(), String>) {
    let name = release.name.clone();
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::Interrupted => "the time allowed ran out: the answer is not complete".to_owned(),
        _ => format!("release `{name}` cannot be read: {}", describe(&error)),
    };
    let tree_digest = release.tree_digest;
    let mut inspected = InspectedRelease { release, previous, members: 0, disk_bytes: 0, drift: None };
    let mut look = || -> Result<(), String> {
        let folder = site.releases.folder(&name).map_err(failed)?;
        let text = if compare { Some(read_manifest(site, &name)?) } else { None };
        let known = text.as_deref().map(paths).transpose()?;
        let mut survey =
            Survey { inspected: &mut inspected, known, added: Vec::new(), more: 0, linked: HashSet::new() };
        survey.walk(&folder, "", 0, stop).map_err(failed)?;
        let (added, more) = (survey.added, survey.more);
        if let Some(text) = text {
            let drift =
                Drift { manifest_damaged: Digest::of(text.as_bytes()) != tree_digest, more, ..Drift::default() };
            let mut listing = Listing { drift, room };
            for path in &added {
                listing.note(path, |drift, path| drift.added.push(path));
            }
            listing.compare(&folder, &text, stop)?;
            inspected.drift = Some(listing.drift);
        }
        Ok(())
    };
    let outcome = look();
    (inspected, outcome)
}

fn read_manifest(site: &Site, release: &str) -> Result<String, String> {
    manifest::read_lines(&site.notes, &manifest_name(release))
        .map_err(|error| format!("the manifest of release `{release}` cannot be read: {error}"))
}

fn member(line: &str) -> Result<Member, String> {
    serde_json::from_str(line).map_err(|error| format!("the manifest is damaged: {error}"))
}

fn paths(text: &str) -> Result<BTreeSet<String>, String> {
    text.lines().map(|line| member(line).map(|member| member.path)).collect()
}

/// Counts what is in a release, and finds what is not in its manifest.
struct Survey<'a> {
    inspected: &'a mut InspectedRelease,
    known: Option<BTreeSet<String>>,
    /// At most so many as an answer may hold.
    added: Vec<String>,
    /// Further ones.
    more: u64,
    linked: HashSet<u64>,
}

impl Survey<'_> {
    fn walk(&mut self, folder: &Place, path: &str, depth: usize, stop: &mut dyn FnMut() -> bool) -> io::Result<()> {
        for name in folder.names(NAMES_MAX)? {
            if stop() {
                return Err(stopped());
            }
            let Some(stat) = folder.look(&name)? else { continue };
            self.count(&stat);
            let shown = name.to_string_lossy();
            let inner = if path.is_empty() { shown.into_owned() } else { format!("{path}/{shown}") };
            if self.known.as_ref().is_some_and(|known| !known.contains(&inner)) {
                if self.added.len() < INSPECTED_PATHS_MAX {
                    self.added.push(inner.clone());
                } else {
                    self.more += 1;
                }
            }
            // What cannot be entered was put in place of a folder just now, or lies too deep.
            if kind(&stat) == SFlag::S_IFDIR
                && depth < DEPTH_MAX
                && let Ok(below) = folder.folder(&name)
            {
                self.walk(&below, &inner, depth + 1, stop)?;
            }
        }
        Ok(())
    }

    fn count(&mut self, stat: &FileStat) {
        self.inspected.members += 1;
        let several = kind(stat) == SFlag::S_IFREG && stat.st_nlink > 1;
        if several && (self.linked.len() >= LINKED_MAX || !self.linked.insert(stat.st_ino)) {
            return;
        }
        self.inspected.disk_bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    }
}

/// Lists differences as long as there is room in the answer.
struct Listing<'a> {
    drift: Drift,
    room: &'a mut usize,
}

impl Listing<'_> {
    fn note(&mut self, path: &str, put: impl FnOnce(&mut Drift, String)) {
        if *self.room == 0 {
            self.drift.more += 1;
            return;
        }
        *self.room -= 1;
        let end = path.floor_char_boundary(INSPECTED_PATH_BYTES_MAX);
        put(&mut self.drift, path[..end].to_owned());
    }

    fn compare(&mut self, folder: &Place, text: &str, stop: &mut dyn FnMut() -> bool) -> Result<(), String> {
        let mut descent = Descent::new(folder);
        for line in text.lines() {
            let member = member(line)?;
            let stopped = "the time allowed ran out: the answer is not complete";
            if stop() {
                return Err(stopped.to_owned());
            }
            match differs(&mut descent, &member, stop).map_err(|_| stopped)? {
                None => {}
                Some("is missing") => self.note(&member.path, |drift, path| drift.missing.push(path)),
                Some(how) => self.note(&member.path, |drift, path| drift.changed.push((path, how.to_owned()))),
            }
        }
        Ok(())
    }
}
