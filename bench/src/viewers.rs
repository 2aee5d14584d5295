//! A thousand viewers of one loud job: whether each gets everything, and how late.
//!
//! The viewers are as light as can be, because they share the machine: they count bytes and follow the frames, and only
//! some of them read what is in them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::Client;
use crate::machines::Machines;
use crate::report::{Figure, Report, float, percentile};
use crate::work::{self, Script};
use crate::{Size, limits};

/// 50,000 lines of 16 bytes in a second, for four seconds, after the viewers have come.
const LOUD: Script = Script {
    name: "viewed",
    language: "python",
    content: "import sys, time\n\
        out = sys.stdout.buffer\n\
        time.sleep(4)\n\
        next = time.monotonic()\n\
        for turn in range(800):\n    \
            out.write(b'at %d\\n' % time.time_ns() + b'a line of output\\n' * 249)\n    \
            out.flush()\n    \
            next += 0.005\n    \
            time.sleep(max(0, next - time.monotonic()))\n",
};
/// Seconds that the job is loud.
const SECONDS: f64 = 4.0;
/// One in so many viewers reads the times.
const READING: usize = 20;
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) async fn rows(size: Size, report: &mut Report) -> Result<()> {
    let machines = Machines::start(1).await?;
    let mut client = Client::connect(&machines).await?;
    let hosts = work::hosts(&mut client).await?;
    let loud = work::applications(&mut client, 1, &hosts, LOUD).await?;
    let count = size.pick(1000, 50);
    let (mut lates, mut lost, mut shares, mut bare) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut least = Vec::new();
    for _ in 0..size.pick(3, 1) {
        let address = client.run(loud[0].deploy_task, &loud[0].instances).await?;
        let mut viewers = Vec::with_capacity(count);
        for number in 0..count {
            viewers.push(tokio::spawn(view(
                machines.address().to_owned(),
                machines.token().to_owned(),
                address.clone(),
                number % READING == 0,
            )));
        }
        let cpu = machines.server_cpu()?;
        let mut lags = Vec::new();
        let mut lengths = Vec::new();
        for viewer in viewers {
            let seen = timeout(PATIENCE, viewer).await.context("the viewers do not come to the end")???;
            lengths.push(seen.bytes);
            lags.extend(seen.lags);
        }
        shares.push((machines.server_cpu()? - cpu) / SECONDS);
        let path = format!("/applications/deploy-tasks/{}/sub-upgrade-tasks/?page_size=1", loud[0].deploy_task);
        let task = client.get(&path).await?["results"][0]["task_id"].as_str().context("task_id")?.to_owned();
        let whole = client.fetch(&format!("/tasks/{task}/output/")).await?;
        lost.push(float(lengths.iter().map(|length| whole.abs_diff(*length)).sum()));
        lates.push(percentile(&mut lags, 99));
        least.push(limits::least_line(99)?);
        bare.push(limits::over_loopback(whole * count)? / SECONDS);
    }
    report.add(Figure::new(format!("{count} viewers of 50,000 lines/s, bytes lost"), "", lost).at_most(0.0));
    let figure = Figure::new("the same, lag of a line, p99", "ms", lates).at_most(50.0);
    report.add(figure.beside("a wait for the disk and an echo", least));
    let figure = Figure::new("the same, server", "cores", shares).at_most(1.0);
    report.add(figure.beside("loopback of as many bytes", bare));
    Ok(())
}

struct Seen {
    bytes: usize,
    lags: Vec<f64>,
}

/// One viewer, from its coming to the close frame.
async fn view(address: String, token: String, channel: String, reads: bool) -> Result<Seen> {
    let mut stream = TcpStream::connect(&address).await?;
    let path = channel.split_once("/api/").context("an address of a channel")?.1;
    let request = format!(
        "GET /api/{path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Token {token}\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: bm90aGluZyBzZWNyZXQgaA==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    let mut frames = Frames::default();
    let mut seen = Seen { bytes: 0, lags: Vec::new() };
    let mut line = Vec::new();
    let mut buffer = vec![0; 32 * 1024];
    while !frames.closed {
        let length = stream.read(&mut buffer).await?;
        ensure!(length > 0, "the output broke off");
        frames.take(&buffer[..length], |text| {
            seen.bytes += text.len();
            if reads {
                read_times(&mut line, text, &mut seen.lags);
            }
        });
    }
    Ok(seen)
}

/// Finds the lines with a time; `line` is the beginning of one that is not complete.
#[expect(clippy::disallowed_methods, reason = "the hook and this program compare the machine's own clock")]
fn read_times(line: &mut Vec<u8>, text: &[u8], lags: &mut Vec<f64>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    for piece in text.split_inclusive(|byte| *byte == b'\n') {
        line.extend_from_slice(piece);
        if piece.ends_with(b"\n") {
            let time = std::str::from_utf8(line).ok().and_then(|line| line.trim().strip_prefix("at ")?.parse().ok());
            if let Some(time) = time {
                lags.push(
                    Duration::from_nanos(u64::try_from(now.saturating_sub(time)).unwrap_or(0)).as_secs_f64() * 1000.0,
                );
            }
            line.clear();
        }
    }
}

/// Follows the frames of a server's websocket, which are not masked.
#[derive(Default)]
struct Frames {
    header: Vec<u8>,
    left: u64,
    is_text: bool,
    closed: bool,
}

impl Frames {
    fn take(&mut self, mut bytes: &[u8], mut text: impl FnMut(&[u8])) {
        while !bytes.is_empty() && !self.closed {
            if self.left > 0 {
                let (now, later) = bytes.split_at(usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len()));
                self.left -= u64::try_from(now.len()).unwrap_or(0);
                if self.is_text {
                    text(now);
                }
                bytes = later;
                continue;
            }
            self.header.push(bytes[0]);
            bytes = &bytes[1..];
            let [first, second, rest @ ..] = &self.header[..] else { continue };
            let length = match (second & 0x7f, rest) {
                (126, [high, low]) => u64::from(u16::from_be_bytes([*high, *low])),
                (127, rest) if rest.len() == 8 => rest.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
                (126 | 127, _) => continue,
                (length, _) => u64::from(length),
            };
            self.left = length;
            self.is_text = first & 0x0f == 1;
            self.closed = first & 0x0f == 8;
            self.header.clear();
        }
    }
}
