//! A schedule as a person writes it: read, and checked but for what needs the database.
//!
//! Invariant: what is stored was understood, and comes again and again.

use chrono_tz::Tz;
use drover_kernel::fields::{Name, Number};
use drover_kernel::{Error, Kernel, Result};
use drover_shared::words::Word;
use schemars::JsonSchema;
use serde::Deserialize;

use super::cron::Cron;
use super::rules::{MISSED_MAX, Missed, Overlap, Rule};
use super::store::{Content, Schedule};
use super::what::WhatNew;
use crate::locks::taking::IfBusy;

/// Longest jitter, in seconds.
const JITTER_S_MAX: i64 = 86_400;

/// A schedule's properties. When one is made `name`, `what` and `cron` are required; a change keeps what is left out.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ScheduleProperties")]
pub(super) struct ScheduleBody {
    /// Name, unique.
    name: Option<Name>,
    /// What it runs.
    what: Option<WhatNew>,
    /// When: minute, hour, day of the month, month and weekday, as in crontab(5), or `@daily` and the like.
    cron: Option<Name>,
    /// Time zone of that, such as `Europe/Berlin`; the server's when left out.
    zone: Option<Name>,
    /// What becomes of moments at which no server was there; `skip` when left out.
    #[schemars(with = "Option<Missed>")]
    missed: Option<Name>,
    /// How many of them are made up for, with `all`: 1 to 100, 10 when left out.
    missed_max: Option<Number>,
    /// What becomes of a moment that comes while what the one before began is not over; `skip` when left out.
    #[schemars(with = "Option<Overlap>")]
    overlap: Option<Name>,
    /// What becomes of a moment whose instances or hosts are another task's: `refuse` tries again for an hour, `wait` makes
    /// its task, which waits in the queue. When left out `wait` if `overlap` is `queue`, else `refuse`.
    #[schemars(with = "Option<IfBusy>")]
    if_busy: Option<Name>,
    /// Seconds by which moments are spread at most; 0 when left out. Shorter than what is between two of them.
    jitter: Option<Number>,
}

/// Reads a zone's name.
pub(super) fn zone(name: &str) -> Result<Tz> {
    name.parse().map_err(|_| Error::invalid("zone", format!("`{name}` is no time zone, such as Europe/Berlin or UTC")))
}

pub(super) fn cron_of(text: &str) -> Result<Cron> {
    Cron::parse(text).map_err(|reason| Error::invalid("cron", reason))
}

fn word<W: Word>(field: &str, text: Option<Name>, before: W) -> Result<W> {
    match text {
        None => Ok(before),
        Some(text) => W::parse(&text.0).map_err(|error| Error::invalid(field, error.to_string())),
    }
}

pub(super) fn number(field: &str, value: Option<Number>, before: i64, (least, most): (i64, i64)) -> Result<i64> {
    match value {
        Some(Number(value)) if !(least..=most).contains(&value) => {
            Err(Error::invalid(field, format!("must be {least} to {most}")))
        }
        value => Ok(value.map_or(before, |value| value.0)),
    }
}

impl ScheduleBody {
    /// The schedule after this change; a new one when there is none before. Checked but for what needs the database.
    pub(super) fn content(self, before: Option<&Schedule>, kernel: &Kernel) -> Result<Content> {
        let missing = |field: &str| Error::invalid(field, "is missing");
        let name = self.name.map(|name| name.0).or_else(|| before.map(|row| row.name.clone()));
        let name = name.ok_or_else(|| missing("name"))?;
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(Error::invalid("name", "must not be empty or contain control characters"));
        }
        let what = match (self.what, before) {
            (Some(what), _) => what.check()?,
            (None, Some(row)) => row.what.0.clone(),
            (None, None) => return Err(missing("what")),
        };
        let cron = self.cron.map(|cron| cron.0).or_else(|| before.map(|row| row.cron.clone()));
        let cron = cron.ok_or_else(|| missing("cron"))?;
        let zone_name = self.zone.map(|zone| zone.0).or_else(|| before.map(|row| row.zone.clone()));
        let zone_name = zone_name.unwrap_or_else(|| kernel.settings().zone.name().to_owned());
        let missed = word("missed", self.missed, before.map_or(Missed::Skip, |row| row.missed))?;
        let overlap = word("overlap", self.overlap, before.map_or(Overlap::Skip, |row| row.overlap))?;
        let left_out = if overlap == Overlap::Queue { IfBusy::Wait } else { IfBusy::Refuse };
        let if_busy = word("if_busy", self.if_busy, before.map_or(left_out, |row| row.if_busy))?;
        let (most, jitter) = (before.map_or(10, |row| row.missed_max), before.map_or(0, |row| row.jitter_s));
        let missed_max = number("missed_max", self.missed_max, most, (1, MISSED_MAX))?;
        let jitter_s = number("jitter", self.jitter, jitter, (0, JITTER_S_MAX))?;
        let rule = Rule { id: 0, cron: cron_of(&cron)?, zone: zone(&zone_name)?, missed, missed_max, jitter_s };
        if !rule.jitter_fits(kernel.clock().now()) {
            return Err(Error::invalid("jitter", "must be shorter than what is between two moments"));
        }
        Ok(Content {
            application_id: None,
            name,
            what,
            cron,
            zone: zone_name,
            missed,
            missed_max,
            overlap,
            if_busy,
            jitter_s,
        })
    }
}
