//! Sending executions: the signed order, and beside it the values of the secrets that it needs.
//!
//! Invariants: values are opened when an order is sent and are kept nowhere; an agent that would run a script without
//! its secrets, or a release without its shared paths, gets no order; what cannot be sent fails before anything runs,
//! and says why.

use std::collections::BTreeMap;

use drover_inventory::secrets::{self, Place};
use drover_kernel::{Error, Kernel, Result};
use drover_shared::message::{SCRIPT_FEATURE, SHARED_PATHS_FEATURE};
use drover_shared::order::Entry;
use drover_shared::secret::{FEATURE, Secrets};
use drover_shared::words::{Action, ExecutionState as State};

use super::{order, results};
use crate::executions::store::{self as store, Sendable};
use crate::link::hub::Session;

/// The secrets of an execution, or why it cannot be carried out.
pub(super) type Needs = Result<Secrets, String>;

/// What an execution needs beside its order. What is wrong with it is its own trouble, and no error: others are sent in the
/// same turn.
///
/// # Errors
/// When the database is not available.
pub(super) async fn needs_of_one(kernel: &Kernel, session: &Session, execution: &Sendable) -> Result<Needs> {
    match read_needs(kernel, session, execution).await {
        Err(error @ Error::Unavailable(_)) => Err(error),
        Err(error) => {
            tracing::error!(execution = execution.id, %error, "an execution cannot be sent");
            Ok(Err("what is stored of it cannot be used: the server's log has the details".to_owned()))
        }
        needs => needs,
    }
}

async fn read_needs(kernel: &Kernel, session: &Session, execution: &Sendable) -> Result<Needs> {
    // Most need nothing, and entries are long.
    let may_need = ["\"secrets\":[", "\"shared_paths\":[", "\"action\":\"script\""];
    if !may_need.iter().any(|member| execution.entry.contains(member)) {
        return Ok(Ok(Secrets::default()));
    }
    let entry: Entry = serde_json::from_str(&execution.entry).map_err(Error::internal)?;
    if !entry.shared_paths.is_empty() && !session.can(SHARED_PATHS_FEATURE) {
        return Ok(Err(format!("the agent of {} is too old for shared paths: update it", session.host_name)));
    }
    if entry.action == Action::Script && !session.can(SCRIPT_FEATURE) {
        return Ok(Err(format!(
            "the agent of {} is too old to run scripts by themselves: update it",
            session.host_name
        )));
    }
    if entry.secrets.is_empty() {
        return Ok(Ok(Secrets::default()));
    }
    if !session.can(FEATURE) {
        return Ok(Err(format!("the agent of {} is too old for hooks with secrets: update it", session.host_name)));
    }
    let mut read = kernel.work().read().await?;
    let place = Place {
        organisation_id: execution.organisation_id,
        // Nothing is kept under this number.
        application_id: execution.application_id.unwrap_or_default(),
        host_id: execution.host_id,
        instance_id: execution.instance_id,
    };
    let opened = secrets::open(&mut read, kernel.sealer(), place, &entry.secrets).await;
    drop(read);
    let opened = match opened {
        Ok(opened) => opened,
        Err(Error::Invalid { field, .. }) => {
            return Ok(Err(format!("the secret `{field}` was deleted since the sub-task was made")));
        }
        Err(Error::Internal(detail)) => {
            tracing::error!(execution = execution.id, detail, "secrets cannot be opened");
            let names = entry.secrets.join(", ");
            return Ok(Err(format!("the secrets {names} cannot be opened: the server's log has the details")));
        }
        Err(error) => return Err(error),
    };
    let mut values = BTreeMap::new();
    for (name, value) in opened {
        let Ok(text) = std::str::from_utf8(&value) else { return Ok(Err(format!("the secret `{name}` is no text"))) };
        values.insert(name, text.to_owned());
    }
    let secrets = Secrets(values);
    Ok(secrets.check(&entry.secrets).map(|()| secrets))
}

/// Sends an execution that is marked as sent, or fails it. False when the session is over.
///
/// # Errors
/// When the database is not available.
pub(super) async fn send(kernel: &Kernel, session: &Session, execution: &Sendable, needs: Needs) -> Result<bool> {
    match needs {
        Ok(secrets) => {
            let order = order(kernel, session, execution);
            Ok(session.send_order(&execution.id, execution.attempt, order, secrets).await)
        }
        Err(reason) => {
            results::withheld(kernel, session, &execution.id, execution.attempt, &reason).await?;
            Ok(true)
        }
    }
}

/// Sends what the agent has not answered, unless an answer was noted since that was read. Of what cannot be sent any more only a new session can say whether it arrived.
///
/// # Errors
/// When the database is not available.
pub(super) async fn send_again(kernel: &Kernel, session: &Session, execution: &Sendable) -> Result<()> {
    let needs = needs_of_one(kernel, session, execution).await?;
    let known = store::find(&mut kernel.work().read().await?, session.host_id, &execution.id).await?;
    if known.is_none_or(|known| known.state != State::Dispatched || known.attempt != execution.attempt) {
        return Ok(());
    }
    match needs {
        Ok(secrets) => drop(send(kernel, session, execution, Ok(secrets)).await?),
        Err(reason) => {
            tracing::warn!(execution = execution.id, reason, "an order cannot be sent again");
            session.closed.cancel();
        }
    }
    Ok(())
}

/// Sends what an agent that has just connected does not hold, or holds without its secrets.
///
/// # Errors
/// When the database is not available.
pub(crate) async fn send_missing(kernel: &Kernel, session: &Session, execution: &Sendable, held: bool) -> Result<()> {
    match needs_of_one(kernel, session, execution).await? {
        // The agent has accepted it and waits: it is the one to end it.
        Err(reason) if held => session.cancel_one(&execution.id, execution.attempt, &reason, false).await,
        needs => drop(send(kernel, session, execution, needs).await?),
    }
    Ok(())
}
