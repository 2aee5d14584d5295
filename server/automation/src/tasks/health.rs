//! Health checks: what has to be true on a host after its update. The agent asks; here is what it is told.

use drover_kernel::{Error, Result};
use drover_shared::order::Probe;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest command or address.
const TEXT_MAX: usize = 2_000;
/// Bounds of the numbers: seconds and counts.
const INTERVAL_MAX: u32 = 3_600;
const TIMEOUT_MAX: u32 = 600;
const TRIES_MAX: u32 = 1_000;

/// What is asked, how often, and what counts as healthy. One of `command`, `http` and `tcp` is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Health {
    /// A template of a bash script that has to end with exit code 0.
    pub command: Option<String>,
    /// A template of an address, `http://127.0.0.1:8080/health`, that has to answer with a status of 200 to 299.
    pub http: Option<String>,
    /// A template of host and port, `127.0.0.1:8080`, that have to take a connection.
    pub tcp: Option<String>,
    /// Seconds between two questions.
    pub interval: u32,
    /// Seconds within which each is answered.
    pub timeout: u32,
    /// Questions before it counts as unhealthy.
    pub retries: u32,
    /// Good answers in a row before it counts as healthy.
    pub successes: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self { command: None, http: None, tcp: None, interval: 2, timeout: 5, retries: 15, successes: 1 }
    }
}

impl Health {
    /// Checks every member.
    ///
    /// # Errors
    /// Names the member and the reason.
    pub fn check(&self) -> Result<()> {
        let texts = [&self.command, &self.http, &self.tcp];
        if texts.iter().filter(|text| text.is_some()).count() != 1 {
            return Err(Error::invalid("rollout.health", "give exactly one of command, http and tcp"));
        }
        for (text, name) in texts.into_iter().zip(["command", "http", "tcp"]) {
            if text.as_ref().is_some_and(|text| text.trim().is_empty() || text.len() > TEXT_MAX) {
                let field = format!("rollout.health.{name}");
                return Err(Error::invalid(field, format!("must have 1 to {TEXT_MAX} bytes")));
            }
        }
        let numbers = [
            ("interval", self.interval, INTERVAL_MAX),
            ("timeout", self.timeout, TIMEOUT_MAX),
            ("retries", self.retries, TRIES_MAX),
            ("successes", self.successes, TRIES_MAX),
        ];
        match numbers.into_iter().find(|(_, number, most)| !(1..=*most).contains(number)) {
            Some((name, _, most)) => {
                Err(Error::invalid(format!("rollout.health.{name}"), format!("must be 1 to {most}")))
            }
            None if self.successes > self.retries => {
                Err(Error::invalid("rollout.health.successes", "must not be more than retries"))
            }
            None => Ok(()),
        }
    }

    /// The question with its template, and the name of the member that holds it.
    #[must_use]
    pub(crate) fn template(&self) -> (&'static str, &str) {
        match self {
            Self { command: Some(text), .. } => ("command", text),
            Self { http: Some(text), .. } => ("http", text),
            Self { tcp: Some(text), .. } => ("tcp", text),
            Self { .. } => ("command", ""),
        }
    }

    /// The question once its template is rendered.
    ///
    /// # Errors
    /// When the rendered address is none.
    pub(crate) fn probe(&self, rendered: String, host: &str) -> Result<Probe> {
        let wrong = |name: &str, reason: String| {
            Error::invalid(format!("rollout.health.{name}"), format!("{reason}; on {host} it is `{rendered}`"))
        };
        let address = rendered.trim().to_owned();
        match self.template().0 {
            "http" => match url::Url::parse(&address) {
                Ok(url) if url.scheme() == "http" && url.host().is_some() => Ok(Probe::Http { url: address }),
                Ok(_) => Err(wrong("http", "must begin with http://".to_owned())),
                Err(error) => Err(wrong("http", format!("is no address: {error}"))),
            },
            "tcp" => match address.rsplit_once(':') {
                Some((name, port)) if !name.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => {
                    Ok(Probe::Tcp { address })
                }
                _ => Err(wrong("tcp", "must be a host and a port".to_owned())),
            },
            _ => Ok(Probe::Command { content: rendered }),
        }
    }
}
