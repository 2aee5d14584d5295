//! Options that say how to go from host to host, and the rule that they make.

use clap::Args;

/// How to go from host to host; all at once when nothing is said.
#[derive(Debug, Clone, Args)]
pub(crate) struct Rollout {
    /// Hosts that go first, alone: a number, or a percentage such as 5%
    #[arg(long, value_name = "N|N%")]
    pub(crate) canary: Option<String>,
    /// Seconds after which a good canary is promoted by itself; else `drover promote` does it
    #[arg(long, value_name = "SECONDS", requires = "canary")]
    pub(crate) promote_after: Option<u32>,
    /// Hosts at a time: a number, or a percentage such as 25%
    #[arg(long, value_name = "N|N%")]
    pub(crate) batch: Option<String>,
    /// Size of each batch in percent of the one before
    #[arg(long, value_name = "PERCENT")]
    pub(crate) growth: Option<u32>,
    /// Seconds between batches
    #[arg(long, value_name = "SECONDS")]
    pub(crate) pause: Option<u32>,
    /// Failures after which nothing more starts: more than these; `any` stops at nothing
    #[arg(long, value_name = "N|N%|any")]
    pub(crate) max_failures: Option<String>,
    /// Take back what was changed when the rollout is stopped
    #[arg(long)]
    pub(crate) auto_revert: bool,
    /// Address on each host that has to answer 200 to 299 after the update
    #[arg(long, value_name = "URL", conflicts_with_all = ["health_tcp", "health_command"])]
    pub(crate) health_http: Option<String>,
    /// Host and port that have to take a connection after the update
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "health_command")]
    pub(crate) health_tcp: Option<String>,
    /// Bash script on each host that has to end with 0 after the update
    #[arg(long, value_name = "SCRIPT")]
    pub(crate) health_command: Option<String>,
    /// Start only when all that runs for the applications that this one requires has ended well
    #[arg(long)]
    pub(crate) after_required: bool,
    /// Start only when these tasks have ended well, separated by commas
    #[arg(long = "after", value_name = "SUBTASK_ID", value_delimiter = ',')]
    pub(crate) after_tasks: Vec<u64>,
}

impl Rollout {
    /// The rule as the API takes it; none when nothing was said.
    pub(crate) fn as_json(&self) -> Option<serde_json::Value> {
        let mut rule = serde_json::Map::new();
        let mut set = |name: &str, value: Option<serde_json::Value>| {
            if let Some(value) = value {
                rule.insert(name.to_owned(), value);
            }
        };
        let text = |text: &Option<String>| text.as_ref().map(|text| serde_json::json!(text));
        let number = |number: Option<u32>| number.map(|number| serde_json::json!(number));
        set("canary", text(&self.canary));
        set("promote_after", number(self.promote_after));
        set("batch", text(&self.batch));
        set("growth", number(self.growth));
        set("pause", number(self.pause));
        let most =
            self.max_failures.as_deref().map(|most| if most == "any" { serde_json::Value::Null } else { most.into() });
        set("max_failures", most);
        set("auto_revert", self.auto_revert.then_some(serde_json::Value::Bool(true)));
        let health = [("http", &self.health_http), ("tcp", &self.health_tcp), ("command", &self.health_command)];
        let health = health.into_iter().find_map(|(name, text)| text.as_ref().map(|text| (name, text)));
        set("health", health.map(|(name, text)| serde_json::json!({ name: text })));
        set("after_required", self.after_required.then_some(serde_json::Value::Bool(true)));
        set("after_tasks", (!self.after_tasks.is_empty()).then(|| serde_json::json!(self.after_tasks)));
        (!rule.is_empty()).then_some(serde_json::Value::Object(rule))
    }
}
