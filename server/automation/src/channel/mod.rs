//! The channel: the output of a task as a websocket, live and from the beginning.
//!
//! A viewer reads the task's log file up to its end and then follows it, so a slow one neither blocks anybody nor is
//! dropped, and one that joins late or comes back misses nothing. Invariant: what is sent is durable.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use drover_kernel::call::{Call, Permission, Permit};
use drover_kernel::fields::{Name, Number, Words};
use drover_kernel::{Error, Kernel, Path, Query, Result, Routes, permission};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::logs::{Format, LogReader};
use crate::output::Form;
use crate::tasks::store as task_store;

/// Interval of pings to a viewer that sees nothing new: proxies close what is silent.
const PING: Duration = Duration::from_secs(20);
/// Interval at which a viewer's right to see the task is asked for again.
pub(crate) const RECHECK: Duration = Duration::from_secs(30);
/// Time for a viewer to take one frame. A slow one is waited for; one that takes nothing at all is gone.
pub(crate) const TAKE: Duration = Duration::from_secs(300);
/// The same once the server stops.
const TAKE_LAST: Duration = Duration::from_secs(2);
/// What a viewer may send: nothing but control frames.
const INCOMING_BYTES_MAX: usize = 4096;
/// Viewers of this server.
const VIEWERS_MAX: i64 = 10_000;
/// Searches of this server at a time: each keeps a core busy.
const SEARCHES_MAX: usize = 2;

permission!(pub Follow, "channel.follow", "Follow the output of a task",
    Resource { kind: "channel", right: "view_app" });

/// Routes of the channel.
pub fn routes() -> Routes {
    Routes::tagged("channel").get("/channel/{channel}", "task-output-channel", "Stream a task's output.", follow)
}

/// Where the client finds channels: the host that it used.
pub(crate) struct Addresses(String);

impl Addresses {
    /// The absolute address of a channel.
    pub(crate) fn of(&self, channel: &str) -> String {
        format!("{}/api/v1/channel/{channel}", self.0)
    }
}

/// Where the client of a call finds channels.
pub(crate) fn addresses<P: Permission>(call: &Call<P>) -> Addresses {
    let scheme = if call.kernel().settings().secure { "wss" } else { "ws" };
    let host = call.client().host.as_deref().unwrap_or("localhost");
    Addresses(format!("{scheme}://{host}"))
}

/// How the output is wanted.
#[derive(Deserialize, JsonSchema)]
struct Wish {
    /// Byte of the task's text to begin at; the beginning when left out.
    #[serde(default)]
    from: Option<Number>,
    /// `text` (the default) or `json`: one record with execution, host, step, stream, time and offset for each line.
    #[serde(default)]
    #[schemars(with = "Option<Words<Form>>")]
    format: Option<Name>,
}

async fn follow(
    call: Call<Follow>,
    channel: Path<String>,
    wish: Query<Wish>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response> {
    let wish = wish.0;
    let from = u64::try_from(wish.from.map_or(0, |from| from.0))
        .map_err(|_| Error::invalid("from", "must not be negative"))?;
    let json = Form::wanted(wish.format.as_ref())? == Form::Json;
    let upgrade =
        upgrade.map_err(|error| Error::invalid("Upgrade", format!("this address is a websocket: {error}")))?;
    let mut read = call.read().await?;
    let task = task_store::find_by_channel(&mut read, call.organisation_id(), &channel.0).await?;
    let names = if json { names(&task_store::speakers(&mut read, task.id).await?) } else { HashMap::new() };
    drop(read);
    let (kernel, permit) = (call.kernel().clone(), call.permit());
    let viewers = kernel.part::<Viewers>();
    let place = viewers.enter_or_refuse()?;
    if task.outcome.is_some() {
        // A crash between the end of a task and the end of its log is repaired here at the latest.
        crate::engine::advance(&kernel, task.id).await?;
    }
    let log = crate::output::kept(&kernel, task.id).await?;
    let format = if json { Format::Json(Arc::new(move |source| names.get(&source).cloned())) } else { Format::Text };
    let reader = log.reader(from, format);
    Ok(upgrade.max_message_size(INCOMING_BYTES_MAX).max_frame_size(INCOMING_BYTES_MAX).on_upgrade(
        move |socket| async move {
            let owner = kernel.clone();
            // The upgrade's own task is large; the viewer's is small, and the server waits for it when it stops.
            let _ = kernel.spawn(show(owner, permit, socket, reader)).await;
            drop(place);
        },
    ))
}

/// Execution and host of every source. The server's own lines have neither.
pub(crate) fn names(speakers: &[task_store::Speaker]) -> HashMap<u32, Map<String, Value>> {
    let mut names =
        HashMap::from([(0, Map::from_iter([("execution".to_owned(), Value::Null), ("host".to_owned(), Value::Null)]))]);
    for speaker in speakers {
        let Ok(source) = u32::try_from(speaker.ordinal) else { continue };
        let members = [
            ("execution".to_owned(), Value::from(speaker.id.as_str())),
            ("host".to_owned(), Value::from(speaker.host_name.as_str())),
            ("instance_id".to_owned(), Value::from(speaker.instance_id)),
        ];
        names.insert(source, Map::from_iter(members));
    }
    names
}

async fn show(kernel: Kernel, permit: Permit, mut socket: WebSocket, mut reader: LogReader) {
    let stop = kernel.stopping();
    let mut recheck = tokio::time::interval(RECHECK);
    recheck.reset();
    let end = loop {
        let frame = tokio::select! {
            frame = reader.next_frame() => frame,
            incoming = socket.recv() => match incoming {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
            () = tokio::time::sleep(PING) => {
                if !take(&mut socket, &stop, Message::Ping(Vec::new().into())).await {
                    return;
                }
                continue;
            }
            _ = recheck.tick() => {
                if permit.still_holds().await {
                    continue;
                }
                break CloseFrame { code: close_code::POLICY, reason: "the right to see this was withdrawn".into() };
            }
            () = stop.cancelled() => break CloseFrame { code: close_code::RESTART, reason: "the server stops".into() },
        };
        match frame {
            Ok(Some(frame)) => {
                if !take(&mut socket, &stop, Message::Text(frame.into_text().into())).await {
                    return;
                }
            }
            Ok(None) => {
                let reason = reader.final_state().unwrap_or("over").to_owned();
                break CloseFrame { code: close_code::NORMAL, reason: reason.into() };
            }
            Err(error) => {
                tracing::error!(%error, "a log cannot be read");
                break CloseFrame { code: close_code::ERROR, reason: "the log cannot be read".into() };
            }
        }
    };
    if take(&mut socket, &stop, Message::Close(Some(end))).await {
        // The viewer's own close frame ends the connection; it has its time for it.
        let _ = timeout(Duration::from_secs(5), async { while let Some(Ok(_)) = socket.recv().await {} }).await;
    }
}

/// Sends a frame; false when the viewer did not take it in time.
async fn take(socket: &mut WebSocket, stop: &CancellationToken, message: Message) -> bool {
    let too_late = async {
        let last = async {
            stop.cancelled().await;
            tokio::time::sleep(TAKE_LAST).await;
        };
        let _ = timeout(TAKE, last).await;
    };
    tokio::select! {
        sent = socket.send(message) => sent.is_ok(),
        () = too_late => false,
    }
}

/// Counts viewers and downloads, and lets few search at a time, so that there are bounds.
pub struct Viewers {
    count: Arc<std::sync::atomic::AtomicI64>,
    pub(crate) searches: Semaphore,
}

impl Default for Viewers {
    fn default() -> Self {
        Self { count: Arc::default(), searches: Semaphore::new(SEARCHES_MAX) }
    }
}

/// One viewer among them, as long as this value lives.
pub(crate) struct Place(Arc<std::sync::atomic::AtomicI64>);

impl Viewers {
    /// Counts one more, if there is room.
    pub(crate) fn enter_or_refuse(&self) -> Result<Place> {
        use std::sync::atomic::Ordering::SeqCst;
        if self.count.fetch_add(1, SeqCst) >= VIEWERS_MAX {
            self.count.fetch_sub(1, SeqCst);
            return Err(Error::Unavailable("too many viewers at a time".to_owned()));
        }
        Ok(Place(self.count.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
    }
}
