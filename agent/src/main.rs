//! `drover-agent`: see `drover-agent --help`.
//!
//! A supervisor is this program in another mode: it is started for every execution, therefore its way in is short.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().as_deref() == Some(OsStr::new("supervise"))
        && let Some(folder) = arguments.next()
    {
        return match drover_agent::supervise::supervise(Path::new(&folder)) {
            Ok(_) => ExitCode::SUCCESS,
            Err(error) => {
                complain(&format!("drover-agent supervise: {error}"));
                ExitCode::FAILURE
            }
        };
    }
    ExitCode::SUCCESS
}

fn complain(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{text}");
}
