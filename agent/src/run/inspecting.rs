//! Inspections of deploy paths: done on another thread, a few at a time, answered once each.

use drover_shared::message::{Inspect, Inspected};

use super::executions::{Executions, Report};
use crate::clock;
use crate::release::inspect::inspect;
use crate::session::Session;

/// Inspections under way at a time.
const INSPECTIONS_MAX: usize = 2;
/// Longest time that one may take, in milliseconds.
const INSPECTION_MS_MAX: u64 = 10 * 60 * 1000;

impl Executions {
    /// Starts an inspection, or answers why not.
    pub(super) fn inspect(&mut self, request: Inspect, session: &mut Session) {
        if self.inspecting >= INSPECTIONS_MAX {
            let reason =
                Some(format!("the agent is at work on {INSPECTIONS_MAX} inspections already: try again later"));
            let request = request.request;
            return session.inspected(Inspected { request, reason, releases: Vec::new(), free_bytes: None });
        }
        self.inspecting += 1;
        let reports = self.reports.clone();
        let until = clock::monotonic_ms().saturating_add(request.timeout_ms.min(INSPECTION_MS_MAX));
        tokio::task::spawn_blocking(move || {
            let answer = inspect(&request, &mut || clock::monotonic_ms() >= until);
            let _ = reports.blocking_send(Report::Inspected(Box::new(answer)));
        });
    }

    /// An inspection is done.
    pub(super) fn inspected(&mut self, answer: Inspected, session: &mut Session) {
        self.inspecting -= 1;
        session.inspected(answer);
    }
}
