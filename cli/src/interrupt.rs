//! Ctrl-C: the command ends, the work on the server goes on, and the caller hears how to come back to it.

use std::process;
use std::sync::Mutex;

use crate::failure::{Failure, INTERRUPTED, Result};

static HINT: Mutex<Option<String>> = Mutex::new(None);

/// From now on SIGINT, SIGTERM and SIGHUP end the command with the code of an interruption.
pub(crate) fn watch() -> Result<()> {
    ctrlc::set_handler(|| {
        let hint = HINT.lock().map_or(None, |hint| hint.clone());
        eprintln!();
        eprintln!("interrupted{}", hint.map(|hint| format!("; {hint}")).unwrap_or_default());
        process::exit(i32::from(INTERRUPTED));
    })
    .map_err(|error| Failure::failed(format!("cannot watch for signals: {error}")))
}

/// What to say when the command is interrupted from now on.
pub(crate) fn hint(text: String) {
    if let Ok(mut hint) = HINT.lock() {
        *hint = Some(text);
    }
}
