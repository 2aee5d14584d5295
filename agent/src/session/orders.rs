//! Orders as they come: every check before the first of them is written down.
//!
//! Invariant: an order that is handed out is the server's, for this agent, and whole, its secrets included.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use drover_shared::limits::HOLDINGS_MAX;
use drover_shared::order::{Entry, Order, Statement, Step};
use drover_shared::secret::{self, Secrets};
use ring::signature::{ED25519, UnparsedPublicKey};

use super::{NewOrder, Output, Session};
use crate::spool::Key;

/// Steps of one entry.
const STEPS_MAX: usize = 1_000;

impl Session {
    pub(super) fn handle_run(&mut self, order: Order, secrets: Secrets) {
        // Read before it is verified, only to say which order is rejected.
        let Ok(named) = serde_json::from_str::<Statement>(&order.statement) else {
            return tracing::warn!("an order without a readable statement was skipped");
        };
        let (execution_id, attempt) = (named.execution_id, named.attempt);
        if self.waits_to_be_carried_out(&execution_id, attempt) {
            // It is answered when the first of it is.
            return;
        }
        match self.examine(&order, &secrets, &execution_id, attempt) {
            Ok(Some((key, statement, entry))) => {
                self.outputs.push_back(Output::Run(Box::new(NewOrder { key, order, statement, entry, secrets })));
            }
            Ok(None) => {
                if let Some(key) = Key::new(&execution_id, attempt) {
                    self.accepted(&key);
                    let needs = self.executions.get_mut(&key).map(|shipping| &mut shipping.needs_order);
                    if needs.is_some_and(std::mem::take) {
                        self.outputs.push_back(Output::Secrets(key, secrets));
                    }
                }
            }
            Err(reason) => self.reject(execution_id, attempt, reason, false),
        }
    }

    fn waits_to_be_carried_out(&self, execution_id: &str, attempt: u32) -> bool {
        self.outputs.iter().any(|output| {
            matches!(output, Output::Run(new) if new.key.attempt == attempt && new.key.execution_id == execution_id)
        })
    }

    /// The order as a new one; none when it is held already.
    fn examine(
        &self,
        order: &Order,
        secrets: &Secrets,
        execution_id: &str,
        attempt: u32,
    ) -> Result<Option<(Key, Statement, Entry)>, String> {
        let key = Key::new(execution_id, attempt).ok_or("the execution id is no UUID")?;
        let public = BASE64.decode(&self.profile.signing_key).map_err(|_| "the server's key is damaged")?;
        let verify = |message: &[u8], signature: &[u8]| {
            UnparsedPublicKey::new(&ED25519, &public).verify(message, signature).is_ok()
        };
        let (statement, entry) = order.open(verify).map_err(|error| error.to_string())?;
        if Some(&statement.agent_id) != self.profile.agent_id.as_ref() {
            return Err("the order is for another agent".to_owned());
        }
        check_secrets(&entry, secrets)?;
        if self.executions.contains_key(&key) {
            return Ok(None);
        }
        if attempt == 0 {
            return Err("attempt 0 does not exist".to_owned());
        }
        if entry.steps.len() > STEPS_MAX {
            return Err(format!("the order has {} steps, {STEPS_MAX} are allowed", entry.steps.len()));
        }
        if let Some(name) = entry.environment.keys().find(|name| !is_environment_name(name)) {
            return Err(format!("environment: `{name}` is not allowed as a name"));
        }
        if self.executions.len() >= HOLDINGS_MAX {
            return Err(format!("the agent holds {HOLDINGS_MAX} executions already"));
        }
        Ok(Some((key, statement, entry)))
    }
}

/// The secrets are those that the entry names, and its scripts ask for no others.
fn check_secrets(entry: &Entry, secrets: &Secrets) -> Result<(), String> {
    secrets.check(&entry.secrets)?;
    for step in &entry.steps {
        if let Step::Script { name, content, .. } = step
            && let Some(missing) = secret::names(content).find(|asked| !secrets.0.contains_key(*asked))
        {
            return Err(format!("{name} asks for secret `{missing}`, which the order does not name"));
        }
    }
    Ok(())
}

fn is_environment_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with("DROVER_") && name.chars().all(|letter| letter != '=' && letter != '\0')
}
