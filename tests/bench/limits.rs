//! What this machine can do at best, measured in the same run: figures without these mean nothing.

use std::fs::File;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::Row;

/// How long each limit is measured.
const SPAN: Duration = Duration::from_millis(1500);

pub(crate) fn rows() -> Result<Vec<Row>> {
    let append = per_second(|file: &mut File| {
        file.write_all(&[7; 4096])?;
        Ok(file.sync_data()?)
    })?;
    let spawn = per_second(|_| {
        Command::new("bash").args(["-c", "true"]).stdin(Stdio::null()).status()?;
        Ok(())
    })?;
    Ok(vec![
        Row { what: "limit: append 4 KiB and fdatasync", value: format!("{append:.0}/s"), target: "" },
        Row { what: "limit: bash -c true, one at a time", value: format!("{spawn:.0}/s"), target: "" },
    ])
}

fn per_second(mut work: impl FnMut(&mut File) -> Result<()>) -> Result<f64> {
    let mut file = tempfile::tempfile()?;
    let started = Instant::now();
    let mut count = 0_u32;
    while started.elapsed() < SPAN {
        work(&mut file)?;
        count += 1;
    }
    Ok(f64::from(count) / started.elapsed().as_secs_f64())
}
