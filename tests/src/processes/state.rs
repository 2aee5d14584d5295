//! What the system tells of the server's process.

use super::Processes;

/// Memory of a process as the kernel tells it, in KiB.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Resident now.
    pub resident_kib: u64,
    /// The most that was resident at a time.
    pub peak_kib: u64,
}

impl Processes {
    /// The number of the server's process, which still runs.
    ///
    /// # Panics
    /// When it has ended.
    pub fn server_id(&mut self) -> u32 {
        let server = self.server.as_mut().expect("the server runs");
        let ended = server.try_wait().expect("the server's state");
        assert!(ended.is_none(), "the server ended with {ended:?}");
        server.id()
    }

    /// Memory of the server.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn server_memory(&self) -> Memory {
        let id = self.server.as_ref().expect("the server runs").id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("the server's state");
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of the state");
            line.trim_matches(|sign: char| !sign.is_ascii_digit()).parse().expect("a number")
        };
        Memory { resident_kib: kib("VmRSS:"), peak_kib: kib("VmHWM:") }
    }
}
