//! Sending output as the body of an answer, piece by piece, at the pace of whoever takes it.
//!
//! Invariant: a download holds a few pieces in memory, whatever its length and whatever the client's pace.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::{Buf as _, Bytes};
use drover_kernel::at_once::blocking;
use drover_kernel::call::Permit;
use drover_kernel::{Error, Kernel, Result};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::marked::Marked;
use super::rules::{Wanted, wanted};
use crate::channel::{Place, RECHECK, TAKE};
use crate::logs::{Format, LogReader, ReadError, Sources, TaskLog};

/// Pieces that wait for the client.
const PIECES: usize = 2;
/// Pause before the client of a download that broke is told: nothing more is said on its connection.
const BROKEN: Duration = Duration::from_secs(5);

/// What makes the pieces.
pub(super) enum Producer {
    /// Bytes as they were written: so many to pass over, and so many to give.
    Bytes { reader: Box<LogReader>, skip: u64, left: u64 },
    /// What a reader gives.
    Frames(Box<LogReader>),
    /// Lines with time and host. It is away while it works.
    Marked(Option<Box<Marked>>),
}

impl Producer {
    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        match self {
            Self::Frames(reader) => Ok(reader.next_frame().await?.map(|frame| frame.bytes)),
            Self::Bytes { left: 0, .. } => Ok(None),
            Self::Bytes { reader, skip, left } => loop {
                let Some(frame) = reader.next_frame().await? else { return Ok(None) };
                let mut bytes = frame.bytes;
                let passed = usize::try_from(*skip).unwrap_or(usize::MAX).min(bytes.len());
                bytes.advance(passed);
                *skip -= passed as u64;
                bytes.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= bytes.len() as u64;
                if !bytes.is_empty() {
                    return Ok(Some(bytes));
                }
            },
            Self::Marked(marked) => {
                let Some(mut working) = marked.take() else { return Ok(None) };
                let work = blocking(move || {
                    let piece = working.next_piece();
                    (working, piece)
                });
                let stopped = |error: Error| ReadError::Storage { task_id: 0, reason: error.to_string() };
                let (working, piece) = work.await.map_err(stopped)?;
                *marked = Some(working);
                piece
            }
        }
    }
}

/// An answer that is ready to be sent.
pub(super) struct View {
    status: StatusCode,
    headers: HeaderMap,
    producer: Producer,
}

impl View {
    /// Everything, of a length that is not known before.
    pub(super) fn whole(name: String, kind: &'static str, producer: Producer) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{name}\"")) {
            headers.insert(header::CONTENT_DISPOSITION, value);
        }
        Self { status: StatusCode::OK, headers, producer }
    }

    /// Begins to send.
    pub(super) fn respond(self, kernel: &Kernel, permit: Permit, place: Place) -> Response {
        let (sender, receiver) = mpsc::channel(PIECES);
        let owner = kernel.clone();
        // The server waits for it when it stops.
        drop(kernel.spawn(async move {
            send(&owner, &permit, self.producer, sender).await;
            drop(place);
        }));
        let pieces = futures_util::stream::unfold(receiver, |mut receiver| async {
            let piece: io::Result<Bytes> = receiver.recv().await?;
            Some((piece, receiver))
        });
        (self.status, self.headers, Body::from_stream(pieces)).into_response()
    }
}

async fn send(kernel: &Kernel, permit: &Permit, mut producer: Producer, sender: mpsc::Sender<io::Result<Bytes>>) {
    let stop = kernel.stopping();
    let mut checked = Instant::now();
    let broken = loop {
        if checked.elapsed() > RECHECK {
            if !permit.still_holds().await {
                break "the right to see this was withdrawn".to_owned();
            }
            checked = Instant::now();
        }
        let piece = match producer.next().await {
            Ok(Some(piece)) => piece,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "a log cannot be read");
                break error.to_string();
            }
        };
        let sent = tokio::select! {
            sent = timeout(TAKE, sender.send(Ok(piece))) => sent,
            () = stop.cancelled() => break "the server stops".to_owned(),
        };
        match sent {
            Ok(Ok(())) => {}
            // The client went.
            Ok(Err(_)) => return,
            Err(_) => break "the client takes nothing".to_owned(),
        }
    };
    // An answer that breaks off is seen as such: its length is not what was announced, or its end is missing.
    let _ = timeout(BROKEN, sender.send(Err(io::Error::other(broken)))).await;
}

/// The bytes as they were written, or the part of them that the headers ask for; or what to answer when there is none.
pub(super) async fn bytes(
    log: &TaskLog,
    sources: Sources,
    headers: &HeaderMap,
    name: String,
) -> Result<std::result::Result<View, Response>> {
    let measure = |wanted| log.measure(sources.clone(), wanted);
    let length = measure(0).await.map_err(Error::internal)?.length;
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    // There are no validators that a conditional range could name.
    let range = range.filter(|_| !headers.contains_key(header::IF_RANGE));
    let (from, to, partial) = match wanted(range, length) {
        Wanted::Whole => (0, length, false),
        Wanted::Part(from, to) => (from, to, true),
        Wanted::Nothing => {
            let message = format!("there are {length} bytes so far");
            let refused = Error::Coded { status: 416, code: 10001, message, field: Some("Range".to_owned()) };
            let mut refused = refused.into_response();
            refused.headers_mut().insert(header::CONTENT_RANGE, text(&format!("bytes */{length}")));
            return Ok(Err(refused));
        }
    };
    let begin = measure(from).await.map_err(Error::internal)?;
    let reader = log.reader(begin.text_offset, Format::Raw).only(sources).until_now();
    let producer = Producer::Bytes { reader: Box::new(reader), skip: begin.skip, left: to - from };
    let mut view = View::whole(name, "text/plain; charset=utf-8", producer);
    view.headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    view.headers.insert(header::CONTENT_LENGTH, (to - from).into());
    if partial {
        view.status = StatusCode::PARTIAL_CONTENT;
        view.headers.insert(header::CONTENT_RANGE, text(&format!("bytes {from}-{}/{length}", to - 1)));
    }
    Ok(Ok(view))
}

fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static(""))
}
