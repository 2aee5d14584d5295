//! Starting a script's process: the only place with `unsafe` code.
//!
//! Invariant: between fork and exec only system calls are made; whatever needs memory or a name service is ready
//! before the fork.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

use nix::sys::signal::SigSet;

use crate::accounts::Account;
use crate::supervise::processes;

/// Starts `command` as `account`, inside the process tree whose `door` is given, in a process group of its own.
///
/// # Errors
/// The process cannot be made, or may not become that account.
pub(crate) fn spawn(command: &mut Command, account: &Account, door: Option<File>) -> io::Result<Child> {
    command.process_group(0);
    let identity = account.changes.then(|| (account.groups.clone(), account.gid, account.uid));
    let prepare = move || {
        // What the supervisor reads from its descriptor must reach the script and the services that it starts.
        SigSet::empty().thread_set_mask()?;
        if let Some(door) = &door {
            processes::enter(door)?;
        }
        if let Some((groups, gid, uid)) = &identity {
            nix::unistd::setgroups(groups)?;
            nix::unistd::setgid(*gid)?;
            nix::unistd::setuid(*uid)?;
        }
        Ok(())
    };
    #[expect(unsafe_code, reason = "the closure makes system calls only and allocates nothing")]
    // SAFETY: the closure runs between fork and exec and calls sigprocmask, write, setgroups, setgid and setuid alone.
    unsafe {
        command.pre_exec(prepare);
    }
    command.spawn()
}
