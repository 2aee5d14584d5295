//! Fetching the output of a sub-task as a stream, into a file or to standard output.
//!
//! Invariant: what is in the file is a beginning of the output, so that a broken or interrupted download goes on where it
//! stopped; what was fetched is not fetched again, but for the last of it, which is compared: a file of another output is
//! left as it is.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read, Seek as _, SeekFrom, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::api::{Opened, Server};
use crate::failure::{Failure, Result};
use crate::output;

/// How often a download that broke is taken up again without having got further.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
const PIECE_BYTES: usize = 64 * 1024;
/// Bytes at the end of an unfinished file that are fetched again, to see that it is the same output.
const OVERLAP_BYTES: u64 = 64 * 1024;

/// Writes to standard output what an address gives, from a byte on where it has ranges.
pub(crate) fn print(server: &Server, path: &str, query: &[(&str, &str)], from: u64) -> Result<()> {
    let mut out = io::stdout().lock();
    let Opened::Part(mut body) = server.open(path, query, from)? else { return Ok(()) };
    copy(&mut body, &mut out)?;
    Ok(out.flush()?)
}

/// Writes JSON records to standard output, each with its type, as following does.
pub(crate) fn print_records(server: &Server, path: &str, query: &[(&str, &str)]) -> Result<()> {
    let Opened::Part(body) = server.open(path, query, 0)? else { return Ok(()) };
    let mut out = io::stdout().lock();
    for line in BufReader::new(body).split(b'\n') {
        let line = line.map_err(broken)?;
        let Some(members) = line.strip_prefix(b"{") else { continue };
        out.write_all(b"{\"type\":\"record\",")?;
        out.write_all(members)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// Fetches into a file; gives how many bytes it has and how many of them were there before.
pub(crate) fn to_file(
    server: &Server,
    path: &str,
    query: &[(&str, &str)],
    file: &Path,
    resumes: bool,
) -> Result<(u64, u64)> {
    let name = file.display().to_string();
    let cannot = |error: io::Error| Failure::failed(format!("cannot write {name}: {error}"));
    let mut target = OpenOptions::new().append(true).read(true).create(true).open(file).map_err(cannot)?;
    if !resumes {
        target.set_len(0).map_err(cannot)?;
    }
    let before = target.metadata().map_err(cannot)?.len();
    let (mut have, mut attempts) = (before, 0);
    loop {
        let broke = match part(server, path, query, have, &mut target, &name) {
            Ok(()) => return Ok((target.metadata().map_err(cannot)?.len(), before)),
            Err(failure) if failure.is_unreachable() && resumes => failure,
            Err(failure) => return Err(failure),
        };
        let now = target.metadata().map_err(cannot)?.len();
        attempts = if now > have { 0 } else { attempts + 1 };
        have = now;
        if attempts >= ATTEMPTS {
            return Err(Failure {
                message: format!("{}; {name} has {have} bytes, do it again to go on", broke.message),
                ..broke
            });
        }
        thread::sleep(PAUSE);
    }
}

/// Fetches what is missing, after the end of what is there has been compared with the same place of the output.
fn part(server: &Server, path: &str, query: &[(&str, &str)], have: u64, target: &mut File, name: &str) -> Result<()> {
    let overlap = have.min(OVERLAP_BYTES);
    let another =
        || Failure::usage(format!("{name} has something else than the beginning of this output: it is another file"));
    match server.open(path, query, have - overlap)? {
        Opened::Nothing { length } if length == Some(0) && have == 0 => Ok(()),
        Opened::Nothing { .. } => Err(another()),
        Opened::Part(mut body) => {
            let cannot = |error: io::Error| Failure::failed(format!("cannot read {name}: {error}"));
            let (mut kept, mut told) = (Vec::new(), Vec::new());
            target.seek(SeekFrom::Start(have - overlap)).map_err(cannot)?;
            (&mut *target).take(overlap).read_to_end(&mut kept).map_err(cannot)?;
            (&mut body).take(overlap).read_to_end(&mut told).map_err(broken)?;
            if !kept.starts_with(&told) {
                return Err(another());
            }
            if told.len() < kept.len() {
                return Err(Failure::usage(format!(
                    "{name} has {have} bytes, more than the output: it is another file"
                )));
            }
            copy(&mut body, target)
        }
    }
}

/// Copies to the end; failures of the two sides are told apart.
fn copy(body: &mut impl Read, out: &mut impl Write) -> Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = match body.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(broken(error)),
        };
        out.write_all(&piece[..count])?;
    }
}

fn broken(error: io::Error) -> Failure {
    Failure::unreachable(format!("the download broke off: {error}"))
}

/// Says that nothing more is written, for a person.
pub(crate) fn told(file: &Path, (have, before): (u64, u64), json: bool) -> Result<()> {
    if json {
        return output::json(&serde_json::json!({ "file": file, "bytes": have, "resumed_at": before }));
    }
    let resumed = if before > 0 { format!(", {before} of them were there") } else { String::new() };
    output::line(&format!("{}: {have} bytes{resumed}", file.display()))
}
