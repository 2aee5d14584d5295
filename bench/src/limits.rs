//! What this machine can do at best, measured in the same run: figures without these mean nothing.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

use crate::report::{float, percentile};

/// How long each limit is measured.
const SPAN: Duration = Duration::from_millis(1000);

/// Milliseconds of each append of 4 KiB that is made durable.
pub(crate) fn syncs() -> Result<Vec<f64>> {
    let mut file = tempfile::tempfile()?;
    each(|| {
        file.write_all(&[7; 4096])?;
        Ok(file.sync_data()?)
    })
}

/// Milliseconds of each bash that does nothing.
pub(crate) fn spawns() -> Result<Vec<f64>> {
    each(|| bash(1))
}

/// How many such there are in a second, eight at a time.
pub(crate) fn spawns_per_second() -> Result<f64> {
    let started = Instant::now();
    let mut count = 0;
    while started.elapsed() < SPAN {
        bash(8)?;
        count += 8;
    }
    Ok(float(count) / started.elapsed().as_secs_f64())
}

/// Milliseconds of processor time for each such.
pub(crate) fn spawn_cpu() -> Result<f64> {
    cpu_of_each(spawns)
}

/// Milliseconds of processor time for each durable append.
pub(crate) fn sync_cpu() -> Result<f64> {
    cpu_of_each(syncs)
}

/// Milliseconds of processor time for each of several.
fn cpu_of_each(several: impl FnOnce() -> Result<Vec<f64>>) -> Result<f64> {
    let used = || -> Result<f64> {
        let (own, theirs) = (getrusage(UsageWho::RUSAGE_SELF)?, getrusage(UsageWho::RUSAGE_CHILDREN)?);
        let times = [own.user_time(), own.system_time(), theirs.user_time(), theirs.system_time()];
        let microseconds: i64 = times.iter().map(nix::sys::time::TimeVal::num_microseconds).sum();
        Ok(float(usize::try_from(microseconds)?) / 1000.0)
    };
    let before = used()?;
    let count = several()?.len();
    Ok((used()? - before) / float(count))
}

fn bash(count: usize) -> Result<()> {
    let start = || Command::new("bash").args(["-c", "true"]).stdin(Stdio::null()).spawn();
    let children = (0..count).map(|_| start()).collect::<std::io::Result<Vec<_>>>()?;
    for mut child in children {
        child.wait()?;
    }
    Ok(())
}

fn each(mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < SPAN {
        let started = Instant::now();
        work()?;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(times)
}

/// Milliseconds at a percentile of what a no-op hook cannot do without: the bash, and the waits for the disk that follow
/// one another: task, order in the spool, outcome, its arrival, the end of the output.
pub(crate) fn least_hook(percent: usize) -> Result<f64> {
    Ok(percentile(&mut spawns()?, percent) + 5.0 * percentile(&mut syncs()?, percent))
}

/// Seconds that a script's output takes through a pipe.
pub(crate) fn through_a_pipe(script: &str) -> Result<f64> {
    let started = Instant::now();
    let mut child = Command::new("python3").args(["-c", script]).stdout(Stdio::piped()).spawn()?;
    let mut pipe = child.stdout.take().context("a pipe")?;
    let mut piece = vec![0; 64 * 1024];
    while pipe.read(&mut piece)? > 0 {}
    child.wait()?;
    Ok(started.elapsed().as_secs_f64())
}

/// Seconds that so many bytes take over loopback.
pub(crate) fn over_loopback(bytes: usize) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let started = Instant::now();
    let sending = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let piece = vec![7; 64 * 1024];
        (0..bytes.div_ceil(piece.len())).try_for_each(|_| stream.write_all(&piece))
    });
    let mut stream = TcpStream::connect(address)?;
    let mut piece = vec![0; 64 * 1024];
    while stream.read(&mut piece)? > 0 {}
    sending.join().map_err(|_| anyhow!("the sender panicked"))??;
    Ok(started.elapsed().as_secs_f64())
}

/// Milliseconds of each byte that goes over loopback and comes back.
pub(crate) fn echoes() -> Result<Vec<f64>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let echoing = std::thread::spawn(move || {
        let mut byte = [0];
        while far.read_exact(&mut byte).and_then(|()| far.write_all(&byte)).is_ok() {}
    });
    let mut byte = [7];
    let times = each(|| {
        near.write_all(&byte)?;
        Ok(near.read_exact(&mut byte)?)
    });
    drop(near);
    echoing.join().map_err(|_| anyhow!("the echo panicked"))?;
    times
}

/// Milliseconds at a percentile of what a line needs at least until a viewer has it: it is made durable, and sent.
pub(crate) fn least_line(percent: usize) -> Result<f64> {
    Ok(percentile(&mut syncs()?, percent) + percentile(&mut echoes()?, percent))
}

/// Milliseconds of one run of a program.
pub(crate) fn program(command: &mut Command) -> Result<f64> {
    let started = Instant::now();
    command.stdout(Stdio::null()).status()?;
    Ok(started.elapsed().as_secs_f64() * 1000.0)
}

/// Appends of one small row, each durable by itself, in a second.
pub(crate) fn syncs_per_second() -> Result<f64> {
    let times = syncs()?;
    Ok(float(times.len()) / SPAN.as_secs_f64())
}
