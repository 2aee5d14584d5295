//! Bytes of an archive on their way to the disk.
//!
//! One request at a time writes to an archive: a later one ends the earlier one, whose client may be long gone. Invariant:
//! an offset is told after everything before it is durable; a piece whose digest is not the announced one leaves nothing.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use drover_kernel::room::Room;
use drover_kernel::{Audit, Call, Error, Kernel, OFFSET_OCTETS, Result};
use drover_shared::Digest;
use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::rules::{self, Checksum, State};
use super::store::{self, Archive};
use super::{Archives, CancellationToken, Change, checking, lock, text};

/// Time for the next bytes of a request.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Time for a request that is superseded to let go.
const TURN_MAX: Duration = Duration::from_secs(30);
/// Bytes that are written at a time.
const WRITTEN_TOGETHER: usize = 1024 * 1024;

/// The right to write to one archive.
#[derive(Debug, Default)]
pub(super) struct Turn {
    held: Arc<tokio::sync::Mutex<()>>,
    /// Ends the request that holds it.
    superseded: Mutex<CancellationToken>,
}

/// The turn itself is held too, so that it stays the one that everybody finds.
type Held = ((Arc<Turn>, tokio::sync::OwnedMutexGuard<()>), CancellationToken);

impl Archives {
    /// Takes the turn of an archive from whoever has it.
    async fn take_turn(&self, id: i64) -> Result<Held> {
        let (turn, token) = {
            let mut turns = lock(&self.turns);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            let turn = turns.entry(id).or_default();
            let token = CancellationToken::new();
            std::mem::replace(&mut *lock(&turn.superseded), token.clone()).cancel();
            (turn.clone(), token)
        };
        let busy = |_| Error::conflict("another request is still writing to this archive; try again");
        let guard = timeout(TURN_MAX, turn.held.clone().lock_owned()).await.map_err(busy)?;
        Ok(((turn, guard), token))
    }

    /// Whether something of an archive is coming just now.
    pub(super) fn is_coming(&self, id: i64) -> bool {
        lock(&self.turns).get(&id).is_some_and(|turn| turn.held.try_lock().is_err())
    }
}

/// What the headers of a request say.
#[derive(Debug)]
pub(super) struct Wanted {
    offset: u64,
    checksum: Option<Checksum>,
}

impl Wanted {
    pub(super) fn read(headers: &HeaderMap) -> Result<Self> {
        let offset = text(headers, "upload-offset").ok_or_else(|| Error::invalid("Upload-Offset", "is missing"))?;
        let offset = offset.trim().parse().map_err(|_| Error::invalid("Upload-Offset", "is no number of bytes"))?;
        let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if kind.map(str::trim) != Some(OFFSET_OCTETS) {
            let message = format!("the body must be of type {OFFSET_OCTETS}");
            return Err(Error::Coded { status: 415, code: 10001, message, field: Some("Content-Type".to_owned()) });
        }
        Ok(Self { offset, checksum: rules::checksum(text(headers, "upload-checksum"))? })
    }
}

/// Why a body ended before its end.
enum Broken {
    Client(String),
    Server(Error),
}

/// Takes a request's bytes in and gives the offset that is durable then.
pub(super) async fn receive(
    call: Call<Change>,
    row: Archive,
    wanted: Wanted,
    mut pieces: BodyDataStream,
) -> Result<i64> {
    let kernel = call.kernel().clone();
    let archives = kernel.part::<Archives>();
    let (turn, superseded) = archives.take_turn(row.id).await?;
    let mut file = open(&archives, row.id).await.map_err(|error| storage(&error))?;
    let size = row.size_bytes.unsigned_abs();
    let length = file.metadata().await.map_err(|error| storage(&error))?.len();
    if length != wanted.offset {
        return Err(Error::conflict(format!("this archive stands at offset {length}, not at {}", wanted.offset)));
    }
    let room = kernel.part::<Room>();
    room.require().await?;
    room.require_bytes(size.saturating_sub(length))?;
    file.seek(io::SeekFrom::End(0)).await.map_err(|error| storage(&error))?;
    let mut writer =
        Writer { file, offset: length, size, hash: wanted.checksum.map(|_| Sha256::new()), waiting: BytesMut::new() };
    let broken = writer.take_all(&kernel, &mut pieces, &superseded).await.err();
    let offset = writer.end(wanted.checksum, length, broken.is_some()).await?;
    // Noted in any case: what came counts, and the upload is not forgotten meanwhile.
    let is_whole = offset == size;
    // What was whole when the server died is noted by whoever asks next.
    if offset > length || (is_whole && row.state == State::Receiving) {
        let mut tx = call.begin().await?;
        store::touch(&mut tx, row.id, is_whole).await?;
        tx.finish(Audit::none("bytes of an archive came; its creation was audited")).await?;
    }
    drop((writer, turn));
    if is_whole {
        checking::start(&kernel, Archive { state: State::Checking, ..row });
    }
    match broken {
        None => Ok(i64::try_from(offset).unwrap_or(i64::MAX)),
        Some(Broken::Client(why)) => Err(Error::invalid("body", why)),
        Some(Broken::Server(error)) => Err(error),
    }
}

async fn open(archives: &Archives, id: i64) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(archives.file(id)).await
}

fn storage(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Error::Unavailable("the disk that holds the archives is full".to_owned())
        }
        _ => Error::internal(format!("what is uploaded cannot be written: {error}")),
    }
}

/// A file that is written to, with what has come and is not written yet.
struct Writer {
    file: File,
    /// Everything before it is written, or waits.
    offset: u64,
    size: u64,
    hash: Option<Sha256>,
    waiting: BytesMut,
}

impl Writer {
    async fn take_all(
        &mut self,
        kernel: &Kernel,
        pieces: &mut BodyDataStream,
        superseded: &CancellationToken,
    ) -> Result<(), Broken> {
        let stop = kernel.stopping();
        loop {
            let piece = tokio::select! {
                piece = timeout(SILENCE_MAX, pieces.next()) => piece,
                () = superseded.cancelled() => {
                    return Err(Broken::Server(Error::conflict("another request goes on with this archive")));
                }
                () = stop.cancelled() => return Err(Broken::Server(Error::Unavailable("the server stops".to_owned()))),
            };
            match piece {
                Ok(Some(Ok(piece))) => self.take(&piece).await?,
                Ok(None) => return Ok(()),
                Ok(Some(Err(_))) => return Err(Broken::Client("broke off before its end".to_owned())),
                Err(_) => {
                    return Err(Broken::Client(format!("brought nothing for {} s", SILENCE_MAX.as_secs())));
                }
            }
        }
    }

    async fn take(&mut self, piece: &Bytes) -> Result<(), Broken> {
        if self.offset + piece.len() as u64 > self.size {
            let message = format!("the archive was announced with {} bytes, and more come", self.size);
            let field = Some("Upload-Length".to_owned());
            return Err(Broken::Server(Error::Coded { status: 413, code: 10007, message, field }));
        }
        if let Some(hash) = &mut self.hash {
            hash.update(piece);
        }
        self.offset += piece.len() as u64;
        self.waiting.extend_from_slice(piece);
        if self.waiting.len() >= WRITTEN_TOGETHER {
            self.write().await.map_err(|error| Broken::Server(storage(&error)))?;
        }
        Ok(())
    }

    async fn write(&mut self) -> io::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        let written = self.file.write_all(&waiting).await;
        // The file buffers, too: only now is it known whether there was room.
        written.and(self.file.flush().await)
    }

    /// Makes durable what is to stay, and gives the offset then.
    async fn end(&mut self, checksum: Option<Checksum>, begin: u64, is_broken: bool) -> Result<u64> {
        let written = self.write().await;
        let found = self.hash.take().map(|hash| Digest::from_bytes(hash.finalize().into()));
        let wrong = checksum.zip(found).filter(|(Checksum(wanted), found)| is_broken || wanted != found);
        if wrong.is_some() {
            self.file.set_len(begin).await.map_err(|error| storage(&error))?;
        }
        self.file.sync_data().await.map_err(|error| storage(&error))?;
        let offset = self.file.metadata().await.map_err(|error| storage(&error))?.len();
        if let Some((Checksum(wanted), found)) = wrong.filter(|_| !is_broken) {
            let message = format!("the piece has SHA-256 {found}, not {wanted}; nothing of it was kept");
            return Err(Error::Coded { status: 460, code: 10001, message, field: Some("Upload-Checksum".to_owned()) });
        }
        written.map_err(|error| storage(&error))?;
        Ok(offset)
    }
}

/// How much of an archive is here.
pub(super) async fn seen(kernel: &Kernel, row: &Archive) -> i64 {
    match row.state {
        State::Receiving => {
            let meta = tokio::fs::metadata(kernel.part::<Archives>().file(row.id)).await;
            meta.map_or(0, |meta| i64::try_from(meta.len()).unwrap_or(i64::MAX).min(row.size_bytes))
        }
        State::Checking | State::Ready | State::Refused => row.size_bytes,
    }
}

/// As [`seen`], after it was made durable: a server that was killed left what is only in the system's memory.
pub(super) async fn durable(kernel: &Kernel, row: &Archive) -> Result<i64> {
    if row.state == State::Receiving {
        match File::open(kernel.part::<Archives>().file(row.id)).await {
            Ok(file) => file.sync_data().await.map_err(|error| storage(&error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(storage(&error)),
        }
    }
    Ok(seen(kernel, row).await)
}

/// Ends whoever writes to an archive that is gone, and removes what has come of it.
pub(super) async fn forget(kernel: &Kernel, id: i64) {
    let archives = kernel.part::<Archives>();
    let turn = archives.take_turn(id).await;
    if let Err(error) = tokio::fs::remove_file(archives.file(id)).await
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(id, %error, "what was uploaded cannot be removed; the sweep tries again");
    }
    drop(turn);
    lock(&archives.turns).remove(&id);
}
