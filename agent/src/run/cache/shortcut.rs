//! The shorter way to an artifact: its index, what is here already, and only the frames that are missing.
//!
//! Invariant: no failure here is one of the download: then all of it is fetched.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use drover_shared::Digest;
use sha2::Digest as _;

use super::{Cache, Coming, Content, Download, Job, Phase, Progress, Task, open_part, shown};
use crate::describe;
use crate::release::kept;
use crate::run::assembly::Plan;

impl Cache {
    /// The first step of a shortcut, where there is one that may do: none where all of it has to come.
    pub(super) fn begin_shortcut(&mut self, digest: Digest) -> Option<Result<Task, String>> {
        let shortcut = self.downloads.get(&digest)?.shortcut.clone()?;
        // What has begun to come goes on, and without a release there is nothing to take from.
        let has_begun = fs::metadata(self.part(digest)).is_ok_and(|meta| meta.len() > 0);
        if has_begun || !kept::is_any(&shortcut.layout) {
            self.downloads.get_mut(&digest)?.shortcut = None;
            return None;
        }
        let index = self.file(digest, "index");
        if fs::metadata(&index).is_ok_and(|meta| meta.len() == shortcut.index.size_bytes) {
            return self.plan(digest).map(Ok);
        }
        let given_up = Arc::new(AtomicBool::new(false));
        let file = open_part(&self.file(digest, "index.part")).and_then(|file| file.set_len(0).map(|()| file));
        let file = file.map_err(|error| describe(&error));
        self.downloads.get_mut(&digest)?.phase = Phase::Opening(Arc::clone(&given_up));
        Some(file.map(|file| Task::OpenIndex { file }))
    }

    /// Looking what is here, once the index is.
    pub(super) fn plan(&mut self, digest: Digest) -> Option<Task> {
        let (index, part) = (self.file(digest, "index"), self.file(digest, "tar.part"));
        let download = self.downloads.get_mut(&digest)?;
        let layout = download.shortcut.as_ref()?.layout.clone();
        let given_up = Arc::new(AtomicBool::new(false));
        download.phase = Phase::Opening(Arc::clone(&given_up));
        Some(Task::Plan { plan: Box::new(Plan { index, artifact_bytes: download.size, part, layout }), given_up })
    }

    /// Fetches all of an artifact, since less did not do.
    pub(super) fn fall_back(&mut self, digest: Digest, reason: String) -> Progress {
        for ending in ["index", "index.part", "tar.part"] {
            let _ = fs::remove_file(self.file(digest, ending));
        }
        if let Some(download) = self.downloads.get_mut(&digest) {
            self.started += 1;
            // Late answers to what was begun are none to what begins now.
            download.number = self.started;
            download.shortcut = None;
            download.phase = Phase::Queued;
            self.line.push_front(digest);
        }
        Progress::Again(reason)
    }

    /// All of an index came.
    pub(super) fn close_index(&mut self, digest: Digest, content: Content) -> Result<Job, Progress> {
        let found = Digest::from_bytes(content.hash.finalize().into());
        let wanted = self.downloads.get(&digest).and_then(|one| one.shortcut.as_ref()).map(|one| one.index.digest);
        if wanted != Some(found) {
            return Err(self.fall_back(digest, format!("the index has another digest, {found}")));
        }
        if let Err(error) = fs::rename(self.file(digest, "index.part"), self.file(digest, "index")) {
            return Err(self.fall_back(digest, describe(&error)));
        }
        let number = self.downloads.get(&digest).map_or(0, |download| download.number);
        match self.plan(digest) {
            Some(task) => Ok(Job { digest, number, task }),
            None => Err(self.fail(digest, "nobody needs it any more".to_owned())),
        }
    }

    /// Says how much had to come of how much.
    pub(super) fn moved(&self, digest: Digest, moved: &str) -> String {
        let Some(download) = self.downloads.get(&digest) else { return String::new() };
        let index = download.shortcut.as_ref().map_or(0, |one| one.index.size_bytes);
        let moved = moved.parse::<u64>().unwrap_or(0) + index;
        format!("moved {} of {}, the rest was here already", shown(moved), shown(download.size))
    }

    /// The server does not send what was asked for.
    pub(in crate::run) fn refused(&mut self, digest: Digest, reason: &str) -> Progress {
        let is_part =
            |download: &Download| matches!(download.phase, Phase::Receiving(Coming::Index(_) | Coming::Frames(_)));
        if self.downloads.get(&digest).is_some_and(is_part) {
            return self.fall_back(digest, reason.to_owned());
        }
        self.fail(digest, format!("the server refuses it: {reason}"))
    }
}
