//! Secrets on their way from the agent to the supervisor: a nameless file in memory, as standard input.
//!
//! Invariant: the values are on no command line, in no environment but a hook's, and in no file with a name.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::process::Stdio;

use drover_shared::order::canonical;
use drover_shared::secret::Secrets;
use nix::sys::memfd::{MFdFlags, memfd_create};
use zeroize::Zeroizing;

/// Length of all of it, names and JSON's escapes included, in bytes.
const BYTES_MAX: u64 = 1024 * 1024;

/// The standard input of a supervisor that gets these secrets.
///
/// # Errors
/// The kernel gives no memory.
pub(crate) fn hand_over(secrets: &Secrets) -> io::Result<Stdio> {
    if secrets.is_empty() {
        return Ok(Stdio::null());
    }
    let mut file = File::from(memfd_create("secrets", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(Zeroizing::new(canonical(secrets)).as_bytes())?;
    file.rewind()?;
    Ok(Stdio::from(file))
}

/// Keeps this process out of core dumps and of the sight of its own account's other processes. What it starts is as
/// any other program.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn hide() -> io::Result<()> {
    Ok(nix::sys::prctl::set_dumpable(false)?)
}

/// What the agent handed over.
///
/// # Errors
/// It is not readable.
pub(crate) fn take_over() -> io::Result<Secrets> {
    let mut text = Zeroizing::new(Vec::new());
    io::stdin().take(BYTES_MAX).read_to_end(&mut text)?;
    // A hook could read the file again as long as it is open here.
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    if text.is_empty() {
        return Ok(Secrets::default());
    }
    // The error must not quote what it could not read.
    serde_json::from_slice(&text).map_err(|_| io::Error::other("the secrets that the agent handed over are damaged"))
}
