//! The logs that instances write on their hosts: asked for from the host, a piece at a time, or what comes next.
//!
//! Nothing of them is kept here. Invariants: the host reads a log as the account that the instance runs as; the wait for
//! the host has an end and holds nothing; what one host is asked at a time has a bound.

mod rules;

use drover_kernel::at_once::blocking;
use drover_kernel::{Call, Error, Path, Query, Reply, Result, Routes, permission};
use drover_shared::instance::{LogEvent, LogOutcome};
use schemars::JsonSchema;
use serde::Serialize;

use self::rules::Wish;
use crate::engine::Engine;
use crate::operations::paths::{self, Place};

permission!(
    pub View,
    "instances.logs",
    "Read the logs of an application's instances",
    Resource { kind: "application", right: "view_app_log" }
);

/// Routes of logs.
pub fn routes() -> Routes {
    Routes::tagged("instances").get(
        "/applications/{id}/instances/{instance_id}/log/",
        "instance-log",
        "Read a piece of an instance's log, by bytes or by lines, or what comes next of it.",
        read,
    )
}

/// A piece of a log.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "LogSlice")]
struct LogOut {
    /// Text read: whole characters, with U+FFFD for what is none.
    content: String,
    /// Size of the content in bytes of the file.
    length: u64,
    /// Size of the file in bytes.
    total_length: u64,
    /// Byte offset just after the content: the next `from_position`.
    position: u64,
    /// How many lines the content has; lines mode only.
    #[serde(skip_serializing_if = "Option::is_none")]
    lines: Option<u64>,
    /// Which file it is, to go on in it though it is renamed.
    file: String,
    /// What happened to the file that was named, if the content is of another place than was asked for: `rotated` (another
    /// file has its name, and everything of it was given), `replaced` (the same, but it is gone, and nobody knows what came
    /// last in it) or `truncated` (it begins anew).
    #[schemars(with = "Option<String>")]
    event: Option<LogEvent>,
}

async fn read(
    call: Call<View>,
    Path((id, instance_id)): Path<(i64, i64)>,
    Query(wish): Query<Wish>,
) -> Result<Reply<LogOut>> {
    let (of, piece) = wish.piece()?;
    let input = paths::input(&mut call.read().await?, id, instance_id).await?;
    let rendering = blocking(move || {
        let place = input.targets.first().map(|target| paths::place(&input, target, of));
        (input, place)
    });
    let (input, place) = rendering.await?;
    let (Some(target), Some(place)) = (input.targets.first(), place) else { return Err(Error::not_found("instance")) };
    let place = place.map_err(Error::conflict)?;
    let missing = || Error::NotFound(format!("{} has no {}", input.application.full_name, of.member()));
    let Place { path, running_user } = place.ok_or_else(missing)?;
    let host = target.host_name.as_str();
    let session = call.kernel().part::<Engine>().hub.find(target.host_id);
    let session = session
        .ok_or_else(|| Error::Unavailable(format!("the agent of {host} is not connected: it cannot be asked now")))?;
    let answer = session.read_log(id, (path.clone(), running_user, piece)).await;
    match answer.map_err(|why| why.told(host, "logs"))? {
        LogOutcome::Slice(slice) => Ok(Reply::new(LogOut {
            content: slice.content,
            length: slice.length,
            total_length: slice.total_length,
            position: slice.position,
            lines: slice.lines,
            file: rules::name_of(slice.file),
            event: slice.event,
        })),
        LogOutcome::Missing {} => Err(Error::NotFound(format!("there is no file {path} on {host}"))),
        LogOutcome::Refused { reason } => Err(Error::conflict(format!("{path} on {host}: {reason}"))),
        LogOutcome::Busy {} => Err(Error::Unavailable(format!("too many are asking {host} at the moment, try again"))),
    }
}
