//! `archive upload`, `archive list`, `archive delete`.
//!
//! Invariant: nothing that the server has is sent twice: an upload goes on at the offset that the server tells, after a
//! broken connection by itself, and after anything else when it is run again.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::rollout::Application;
use crate::api::Server;
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::output::{self, Column, cell};

/// How often an upload that broke is taken up again without having got further.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// Pause between two looks at an archive that is being checked.
const LOOK: Duration = Duration::from_millis(300);
/// Bytes of one request.
const PART_BYTES: u64 = 64 * 1024 * 1024;
/// Archives that are listed at most.
const LISTED_MAX: usize = 1_000;

const ARCHIVES: &[Column] = &[
    ("ID", |archive| cell(archive, "id")),
    ("VERSION", |archive| cell(archive, "version")),
    ("STATE", |archive| cell(archive, "state")),
    ("BYTES", bytes),
    ("FILE", |archive| cell(archive, "name")),
    ("SHA-256", |archive| cell(archive, "sha256").chars().take(12).collect()),
    ("CREATED", |archive| cell(archive, "created_time")),
    ("REASON", |archive| cell(archive, "reason")),
];

/// Commands on archives.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Upload an archive (tar, tar.gz, tar.zst or zip) as a version; what broke off goes on when it is run again
    Upload(Upload),
    /// List the archives of an application, the newest first
    List(List),
    /// Delete the archive of a version
    Delete(Delete),
}

/// Options of `archive upload`.
#[derive(Debug, Args)]
pub(crate) struct Upload {
    /// Application, by id or full name
    application: String,
    /// The archive
    file: PathBuf,
    /// Version that it is deployed as
    #[arg(long, value_name = "VERSION")]
    version: String,
}

/// Options of `archive list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Application, by id or full name
    application: String,
}

/// Options of `archive delete`.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Application, by id or full name
    application: String,
    /// Version whose archive goes
    #[arg(long, value_name = "VERSION")]
    version: String,
}

pub(super) fn run(server: &Server, command: &Command, json: bool) -> Result<()> {
    match command {
        Command::Upload(upload) => self::upload(server, upload, json),
        Command::List(list) => self::list(server, list, json),
        Command::Delete(delete) => self::delete(server, delete, json),
    }
}

fn place(application: &Application) -> String {
    format!("/applications/{}/archives/", application.id)
}

fn list(server: &Server, list: &List, json: bool) -> Result<()> {
    let application = Application::find(server, &list.application)?;
    let found = server.list(&place(&application), &[], LISTED_MAX)?;
    if json {
        return output::json(&json!({ "results": found }));
    }
    output::table(ARCHIVES, &found)
}

fn delete(server: &Server, delete: &Delete, json: bool) -> Result<()> {
    let application = Application::find(server, &delete.application)?;
    let place = place(&application);
    let Some(found) = of_version(server, &place, &delete.version)? else {
        return Err(Failure::not_found(format!("there is no archive of version {}", delete.version)));
    };
    server.delete(&format!("{place}{}/", cell(&found, "id")))?;
    if json {
        return output::json(&json!({ "deleted": found["id"] }));
    }
    output::line(&format!("the archive of version {} is deleted", delete.version))
}

fn of_version(server: &Server, place: &str, version: &str) -> Result<Option<Value>> {
    Ok(server.list(place, &[("version", version)], 1)?.into_iter().next())
}

/// Length, and how much of it is there as long as that is less.
fn bytes(archive: &Value) -> String {
    match (archive["offset"].as_u64(), archive["size_bytes"].as_u64()) {
        (Some(offset), Some(size)) if offset < size => format!("{offset} of {size}"),
        _ => cell(archive, "size_bytes"),
    }
}

/// A file that is going to be uploaded.
struct Source {
    file: File,
    size: u64,
    sha256: String,
    bar: ProgressBar,
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let cannot = |error: io::Error| Failure::usage(format!("cannot read {}: {error}", path.display()));
        let mut file = File::open(path).map_err(cannot)?;
        let size = file.metadata().map_err(cannot)?.len();
        let bar = ProgressBar::new(size);
        // A style that cannot be read leaves the usual one.
        if let Ok(style) =
            ProgressStyle::with_template("{msg} {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left")
        {
            bar.set_style(style);
        }
        bar.set_message("Reading");
        let mut hash = Sha256::new();
        let mut piece = vec![0; 256 * 1024];
        loop {
            match file.read(&mut piece).map_err(cannot)? {
                0 => break,
                count => {
                    hash.update(&piece[..count]);
                    bar.inc(count as u64);
                }
            }
        }
        bar.set_message("Uploading");
        Ok(Self { file, size, sha256: hex::encode(hash.finalize()), bar })
    }

    /// Sends what is missing from an offset on, or a part of it.
    fn send(&mut self, server: &Server, path: &str, offset: u64) -> Result<()> {
        let length = (self.size - offset).min(PART_BYTES);
        let place = self.file.seek(SeekFrom::Start(offset));
        place.map_err(|error| Failure::failed(format!("the file cannot be read any more: {error}")))?;
        self.bar.set_position(offset);
        let mut part = self.bar.wrap_read(&self.file).take(length);
        server.append(path, offset, length, &mut part)
    }
}

fn upload(server: &Server, upload: &Upload, json: bool) -> Result<()> {
    let application = Application::find(server, &upload.application)?;
    let place = place(&application);
    let mut source = Source::open(&upload.file)?;
    let mut archive = match of_version(server, &place, &upload.version)? {
        Some(found) if found["state"] != "refused" => same(found, &source)?,
        _ => announce(server, &place, upload, &source)?,
    };
    let path = format!("{place}{}/", cell(&archive, "id"));
    interrupt::hint("run it again, and it goes on where it is now".to_owned());
    let (mut attempts, mut last) = (0, 0);
    while archive["state"] == "receiving" {
        let offset = archive["offset"].as_u64().unwrap_or(0);
        attempts = if offset > last { 0 } else { attempts };
        last = offset;
        let sent = source.send(server, &path, offset).and_then(|()| server.get(&path));
        let failure = match sent {
            Ok(told) => {
                archive = told;
                if archive["state"] != "receiving" || archive["offset"].as_u64() > Some(offset) {
                    continue;
                }
                Failure::unreachable("the server takes nothing more of the archive")
            }
            Err(failure) => failure,
        };
        // A server that goes away while it is asked is asked again, and so is one that takes nothing.
        attempts += 1;
        let has_ended = !failure.is_unreachable() && failure.code != crate::failure::USAGE;
        if attempts >= ATTEMPTS || has_ended {
            source.bar.abandon();
            return Err(failure);
        }
        thread::sleep(PAUSE);
        archive = server.get(&path).unwrap_or(archive);
    }
    source.bar.set_message("Checking");
    source.bar.set_position(source.size);
    while archive["state"] == "checking" {
        thread::sleep(LOOK);
        archive = server.get(&path)?;
    }
    source.bar.finish_and_clear();
    told(&archive, json)
}

/// What is there already, if it is the same.
fn same(found: Value, source: &Source) -> Result<Value> {
    if found["sha256"] == source.sha256.as_str() && found["size_bytes"] == source.size {
        return Ok(found);
    }
    Err(Failure::usage(format!(
        "version {} has another archive, {} with SHA-256 {}; delete it first with `drover archive delete`",
        cell(&found, "version"),
        cell(&found, "name"),
        cell(&found, "sha256")
    )))
}

fn announce(server: &Server, place: &str, upload: &Upload, source: &Source) -> Result<Value> {
    let name = upload.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let members = [("version", upload.version.as_str()), ("filename", &name), ("sha256", &source.sha256)];
    let metadata: Vec<String> =
        members.iter().map(|(name, value)| format!("{name} {}", BASE64.encode(value))).collect();
    server.announce(place, source.size, &metadata.join(","))
}

fn told(archive: &Value, json: bool) -> Result<()> {
    if archive["state"] != "ready" {
        return Err(Failure::failed(format!("the archive is refused: {}", cell(archive, "reason"))));
    }
    if json {
        return output::json(archive);
    }
    let (version, files, bytes) = (cell(archive, "version"), cell(archive, "files"), cell(archive, "size_bytes"));
    output::line(&format!("version {version} is ready: {files} files, {bytes} bytes uploaded"))
}
