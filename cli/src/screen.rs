//! What a follower sees: the output line by line, and one live line for each host.
//!
//! Invariant: standard output carries the hosts' output alone (or JSON), standard error everything else; the pieces of
//! a line are put together for each host and stream by itself, and what is kept of an unfinished line has a bound.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::channel::Viewer;
use crate::failure::Result;
use crate::output;
use crate::records::{Event, Record};

/// A line longer than this is shown in pieces.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Name of the server's own line.
const SERVER: &str = "drover";

/// Shows a sub-task.
pub(crate) struct Screen {
    json: bool,
    bars: Option<MultiProgress>,
    hosts: BTreeMap<String, Host>,
    width: usize,
    colours: bool,
    /// Whole lines that wait to be written together.
    ready: String,
}

#[derive(Default)]
struct Host {
    bar: Option<ProgressBar>,
    unfinished: HashMap<String, String>,
    failure: Option<String>,
}

impl Screen {
    /// A screen for these hosts; live lines only where there is a terminal for them.
    pub(crate) fn new(json: bool, hosts: &[String]) -> Self {
        let live = !json && io::stderr().is_terminal();
        let colours = !json && io::stdout().is_terminal() && console::colors_enabled();
        Self::with(json, live.then(MultiProgress::new), colours, hosts)
    }

    fn with(json: bool, bars: Option<MultiProgress>, colours: bool, hosts: &[String]) -> Self {
        let width = hosts.iter().map(|host| host.chars().count()).max().unwrap_or(0);
        let mut screen = Self { json, bars, hosts: BTreeMap::new(), width, colours, ready: String::new() };
        for host in hosts {
            screen.host(host);
        }
        screen
    }

    fn host(&mut self, name: &str) -> &mut Host {
        if !self.hosts.contains_key(name) {
            let bar = self.bars.as_ref().filter(|_| name != SERVER).map(|bars| {
                let bar = bars.add(ProgressBar::new_spinner());
                if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix:.bold} {wide_msg} {elapsed}") {
                    bar.set_style(style);
                }
                bar.set_prefix(format!("{name:<width$}", width = self.width));
                bar.set_message("waiting");
                bar.enable_steady_tick(Duration::from_millis(120));
                bar
            });
            self.hosts.insert(name.to_owned(), Host { bar, ..Host::default() });
        }
        self.hosts.entry(name.to_owned()).or_default()
    }

    fn text(&mut self, host: &str, stream: &str, text: &str) {
        let mut rest = std::mem::take(self.host(host).unfinished.entry(stream.to_owned()).or_default());
        rest.push_str(text);
        let mut pieces = rest.split_inclusive('\n').peekable();
        while let Some(piece) = pieces.next() {
            if piece.ends_with('\n') || piece.len() > LINE_BYTES_MAX {
                self.line(host, piece);
            } else {
                debug_assert!(pieces.peek().is_none(), "only the last piece has no end");
                self.host(host).unfinished.insert(stream.to_owned(), piece.to_owned());
            }
        }
    }

    /// Adds a line to what is written next; `piece` ends in a newline or is a part of a very long line.
    fn line(&mut self, host: &str, piece: &str) {
        let line = piece.trim_end_matches(['\n', '\r']);
        let label = format!("{host:<width$}", width = self.width);
        if self.colours {
            self.ready.push_str(&console::style(label).cyan().to_string());
        } else {
            self.ready.push_str(&label);
        }
        self.ready.push_str(" | ");
        self.ready.push_str(line);
        if self.colours && line.contains('\u{1b}') {
            // A colour that the line leaves open would run into what follows.
            self.ready.push_str("\u{1b}[0m");
        }
        self.ready.push('\n');
    }

    fn event(&mut self, name: &str, event: &Event) {
        let failed =
            !matches!(event.state.as_str(), "pending" | "queued" | "dispatched" | "running" | "succeeded" | "skipped");
        let what = if event.step.is_empty() { event.state.clone() } else { format!("{}: {}", event.step, event.state) };
        let what = event.error.as_ref().map_or(what.clone(), |error| format!("{what} ({error})"));
        let host = self.host(name);
        if failed {
            host.failure.get_or_insert_with(|| what.clone());
        }
        match &host.bar {
            Some(bar) if event.state == "running" && !event.step.is_empty() => bar.set_message(event.step.clone()),
            Some(bar) => bar.set_message(what.clone()),
            None => {}
        }
        // Without a live line each step is named when it begins; how it all ended is said in the end.
        let begins = host.bar.is_none() && event.state == "running" && !event.step.is_empty();
        if failed {
            self.say(&format!("{name}: {what}"));
        } else if begins {
            self.say(&format!("{name}: {}", event.step));
        }
    }

    /// Says something to people, above the live lines.
    pub(crate) fn say(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Shows how it ended: each host's state, then everything that was not a whole line.
    pub(crate) fn finish(&mut self, sub_task: &Value) -> Result<()> {
        let names: Vec<String> = self.hosts.keys().cloned().collect();
        for name in names {
            let unfinished: Vec<String> =
                self.host(&name).unfinished.drain().map(|(_, line)| line).filter(|line| !line.is_empty()).collect();
            for line in unfinished {
                self.line(&name, &line);
            }
        }
        self.show()?;
        if self.json {
            return output::json(&json!({
                "type": "result",
                "status": sub_task["status"],
                "task_id": sub_task["task_id"],
                "deploy_task_id": sub_task["deploy_task_id"],
                "kind": sub_task["kind"],
                "version": sub_task["version"],
                "error": sub_task["error"],
                "instances": sub_task["instances"],
            }));
        }
        for instance in sub_task["instances"].as_array().map_or(&[][..], Vec::as_slice) {
            let (name, state) = (output::cell(instance, "hostname"), output::cell(instance, "status"));
            let error = output::cell(instance, "error");
            let what = if error.is_empty() { state } else { format!("{state}: {error}") };
            match &self.host(&name).bar {
                Some(bar) => bar.finish_with_message(what),
                None => eprintln!("{name}: {what}"),
            }
        }
        for bar in self.hosts.values().filter_map(|host| host.bar.as_ref()).filter(|bar| !bar.is_finished()) {
            bar.abandon();
        }
        Ok(())
    }
}

impl Viewer for Screen {
    fn record(&mut self, record: &Record, written: &str) -> Result<()> {
        if self.json {
            // Marked as a record in place of being read and written anew.
            let members = written.trim().strip_prefix('{').unwrap_or_default();
            self.ready.push_str("{\"type\":\"record\",");
            self.ready.push_str(members);
            self.ready.push('\n');
            return Ok(());
        }
        let host = record.host.as_deref().unwrap_or(SERVER);
        if let Some(text) = &record.text {
            self.text(host, &record.stream, text);
        }
        if let Some(event) = &record.event {
            // What was written before comes first, also on two streams of one terminal.
            self.show()?;
            self.event(host, event);
        }
        Ok(())
    }

    fn show(&mut self) -> Result<()> {
        if self.ready.is_empty() {
            return Ok(());
        }
        let ready = std::mem::take(&mut self.ready);
        let write = || {
            let mut out = io::stdout().lock();
            out.write_all(ready.as_bytes()).and_then(|()| out.flush())
        };
        Ok(match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }?)
    }

    fn lost(&mut self, why: &str) {
        self.say(&format!("connection lost, trying again: {why}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(value: Value) -> Record {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn lines_are_put_together_for_each_host_and_stream() {
        let mut screen = Screen::with(false, None, false, &["web-1".to_owned(), "b".to_owned()]);
        for (host, stream, text) in [
            ("web-1", "stdout", "one\ntw"),
            ("b", "stdout", "x\r\n"),
            ("web-1", "stderr", "oh\n"),
            ("web-1", "stdout", "o\n\nthr"),
        ] {
            let written = json!({ "offset": 0, "host": host, "stream": stream, "text": text });
            screen.record(&record(written), "").unwrap();
        }
        assert_eq!(screen.ready, "web-1 | one\nb     | x\nweb-1 | oh\nweb-1 | two\nweb-1 | \n");
    }

    #[test]
    fn each_host_has_one_live_line_that_says_where_it_is() {
        let bars = MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden());
        let mut screen = Screen::with(false, Some(bars), false, &["web-1".to_owned(), "b".to_owned()]);
        let live = |screen: &Screen| -> Vec<(String, String)> {
            let bars = screen.hosts.values().filter_map(|host| host.bar.as_ref());
            bars.map(|bar| (bar.prefix().trim_end().to_owned(), bar.message())).collect()
        };
        let lines = |b: &str, web: &str| vec![("b".to_owned(), b.to_owned()), ("web-1".to_owned(), web.to_owned())];
        assert_eq!(live(&screen), lines("waiting", "waiting"));
        let event = |step: &str, state: &str, error: Option<&str>| Event {
            step: step.to_owned(),
            state: state.to_owned(),
            error: error.map(str::to_owned),
        };
        screen.event("web-1", &event("pre_exec", "running", None));
        assert_eq!(live(&screen), lines("waiting", "pre_exec"));
        screen.event("b", &event("pre_exec", "failed", Some("exit code 4")));
        screen.event("web-1", &event("", "succeeded", None));
        assert_eq!(live(&screen), lines("pre_exec: failed (exit code 4)", "succeeded"));
        // The server's own words have no line of theirs.
        screen.event(SERVER, &event("fetch", "running", None));
        assert_eq!(live(&screen).len(), 2);
    }

    #[test]
    fn a_line_without_end_is_shown_in_pieces() {
        let mut screen = Screen::with(false, None, false, &[]);
        let written = json!({ "offset": 0, "stream": "stdout", "text": "x".repeat(LINE_BYTES_MAX + 1) });
        screen.record(&record(written), "").unwrap();
        assert_eq!(screen.ready.len(), LINE_BYTES_MAX + 1 + "drover | \n".len());
        assert!(screen.hosts[SERVER].unfinished["stdout"].is_empty());
    }

    #[test]
    fn programs_get_the_records_as_they_are() {
        let mut screen = Screen::with(true, None, false, &["a".to_owned()]);
        let written = "{\"offset\":0,\"text\":\"x\"}";
        screen.record(&record(serde_json::from_str(written).unwrap()), written).unwrap();
        assert_eq!(screen.ready, "{\"type\":\"record\",\"offset\":0,\"text\":\"x\"}\n");
    }
}
