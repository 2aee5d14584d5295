//! Records of a sub-task's output, and the place up to which they have been seen.

use serde::Deserialize;
use serde_json::Value;

/// One record of the channel.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Record {
    /// Where it begins, in bytes of the whole output.
    pub(crate) offset: u64,
    /// Where the next one begins; absent from older servers.
    #[serde(default)]
    pub(crate) next: Option<u64>,
    /// Host that it comes from; none for the server's own.
    #[serde(default)]
    pub(crate) host: Option<String>,
    /// Which stream it belongs to.
    #[serde(default)]
    pub(crate) stream: String,
    /// A piece of output, not necessarily a whole line.
    #[serde(default)]
    pub(crate) text: Option<String>,
    /// A change of state.
    #[serde(default)]
    pub(crate) event: Option<Event>,
}

/// How a step goes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "Value")]
pub(crate) struct Event {
    /// Name of the step; empty when it is about the host as a whole.
    pub(crate) step: String,
    /// `running`, then how it ended.
    pub(crate) state: String,
    /// Why it failed.
    pub(crate) error: Option<String>,
}

impl From<Value> for Event {
    fn from(event: Value) -> Self {
        let text = |name: &str| event[name].as_str().map(str::to_owned);
        let exit = event["exit_code"].as_i64().filter(|code| *code != 0).map(|code| format!("exit code {code}"));
        Self {
            step: text("step").unwrap_or_default(),
            state: text("state").unwrap_or_default(),
            error: text("error").or(exit),
        }
    }
}

impl Record {
    fn next(&self) -> u64 {
        self.next.unwrap_or_else(|| self.offset + self.text.as_ref().map_or(0, |text| text.len() as u64))
    }
}

/// How far the output has been seen. Several records without text may stand at one offset, so that the offset alone
/// does not say which of them come anew after a reconnection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// From where to ask for more.
    next: u64,
    /// Records without text at `next` that have been seen.
    seen: u64,
    /// How many of those are still to come again on this connection.
    repeated: u64,
}

impl Cursor {
    /// Begins at an offset.
    pub(crate) fn new(from: u64) -> Self {
        Self { next: from, seen: 0, repeated: 0 }
    }

    /// From where to ask for more.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// A new connection was asked to begin at [`next`](Self::next).
    pub(crate) fn reconnected(&mut self) {
        self.repeated = self.seen;
    }

    /// Whether the record is new; it counts as seen from now on.
    pub(crate) fn take(&mut self, record: &Record) -> bool {
        let (at, next) = (record.offset, record.next());
        if next < self.next || (at < self.next && next == self.next) {
            return false;
        }
        if next == at && at == self.next {
            if self.repeated > 0 {
                self.repeated -= 1;
                return false;
            }
            self.seen += 1;
        } else {
            *self = Self::new(next);
            self.seen = u64::from(next == at);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(offset: u64, text: &str) -> Record {
        let next = offset + text.len() as u64;
        serde_json::from_value(json!({ "offset": offset, "next": next, "text": text, "host": "a" })).unwrap()
    }

    fn event(offset: u64) -> Record {
        let event = json!({ "step": "fetch", "state": "running" });
        serde_json::from_value(json!({ "offset": offset, "next": offset, "event": event })).unwrap()
    }

    #[test]
    fn nothing_is_seen_twice_or_missed_wherever_the_connection_breaks() {
        let all =
            [event(0), event(0), text(0, "ab"), text(2, "c"), event(3), event(3), event(3), text(3, "d"), event(4)];
        for cut in 0..=all.len() {
            for second in cut..=all.len() {
                let mut cursor = Cursor::new(0);
                let mut seen: Vec<Record> = Vec::new();
                for end in [cut, second, all.len()] {
                    let from = cursor.next();
                    cursor.reconnected();
                    let sent = all.iter().enumerate().filter(|(index, record)| record.offset >= from && *index < end);
                    seen.extend(sent.filter(|(_, record)| cursor.take(record)).map(|(_, record)| record.clone()));
                }
                assert_eq!(seen, all, "cut at {cut} and {second}");
            }
        }
    }

    #[test]
    fn records_of_older_servers_are_understood() {
        let mut cursor = Cursor::new(0);
        let record: Record = serde_json::from_value(json!({ "offset": 0, "text": "é" })).unwrap();
        assert!(cursor.take(&record));
        assert_eq!(cursor.next(), 2);
    }

    #[test]
    fn exit_codes_are_reasons() {
        let event = Event::from(json!({ "step": "post_exec", "state": "failed", "exit_code": 3 }));
        assert_eq!(event.error.as_deref(), Some("exit code 3"));
        let event = Event::from(json!({ "step": "x", "state": "succeeded", "exit_code": 0, "error": null }));
        assert_eq!(event.error, None);
    }
}
