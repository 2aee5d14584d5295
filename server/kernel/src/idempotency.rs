//! Repeated requests: one that comes again with the same `Idempotency-Key` gets the first answer.
//!
//! Owns the table of answers and the requests under way. Invariants: an answer is kept in the transaction that it
//! tells of; of requests with one key one at a time is carried out, and the others wait for its answer, for a bounded
//! time; what is kept of a request is a digest with a key that the database does not hold, since requests carry
//! passwords.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use drover_shared::Digest;
use tokio::sync::OwnedMutexGuard;

use crate::call::{Caller, IDEMPOTENCY_HEADER, Refusal};
use crate::clock::Time;
use crate::db::{OnDuplicate as _, Write};
use crate::kernel::Kernel;
use crate::{Error, Result, args, sql};

/// Characters that a key may have.
const KEY_CHARACTERS_MAX: usize = 200;

/// How long a request waits for the answer of another one with its key.
const WAIT_MAX: Duration = Duration::from_secs(10);

const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Whose key it is: organisation, user, key.
type Owner = (i64, i64, String);

/// The requests with a key that are under way. Bounded by the number of connections.
#[derive(Default)]
pub(crate) struct UnderWay(Mutex<HashMap<Owner, Arc<tokio::sync::Mutex<()>>>>);

/// The right to carry out requests with one key, until it is dropped.
struct Turn {
    under_way: Arc<UnderWay>,
    owner: Owner,
    guard: Option<OwnedMutexGuard<()>>,
}

impl UnderWay {
    /// Waits for the requests with this key that came before.
    async fn turn(self: &Arc<Self>, owner: Owner) -> Result<Turn> {
        let lock = self.all().entry(owner.clone()).or_default().clone();
        // Made first, so that the entry goes away if this request does while it waits.
        let mut turn = Turn { under_way: self.clone(), owner, guard: None };
        match tokio::time::timeout(WAIT_MAX, lock.lock_owned()).await {
            Ok(guard) => turn.guard = Some(guard),
            Err(_) => return Err(busy()),
        }
        Ok(turn)
    }

    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<Owner, Arc<tokio::sync::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut all = self.under_way.all();
        drop(self.guard.take());
        // The map's own handle is the last one when nobody waits.
        if all.get(&self.owner).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            all.remove(&self.owner);
        }
    }
}

fn busy() -> Error {
    Error::conflict("a request with this Idempotency-Key is being carried out, ask again")
}

/// A request with a key, as it travels from the middleware to the call.
#[derive(Clone)]
pub(crate) struct RequestKey {
    key: String,
    /// Of everything that makes it the same request.
    digest: String,
    taken: Arc<OnceLock<Turn>>,
}

/// What a transaction keeps of a request with a key.
#[derive(Debug, Clone)]
pub(crate) struct Idempotency {
    user_id: i64,
    key: String,
    fingerprint: String,
}

crate::row! {
    struct Kept {
        request: String,
        answer: Option<String>,
    }
}

/// Notes what makes a request the same again, and gives one that lost a race against its twin the twin's answer: on
/// another server of the same database it may have been carried out at the same time.
pub(crate) async fn remember_request(State(kernel): State<Kernel>, request: Request, next: Next) -> Response {
    let Some(key) = request.headers().get(IDEMPOTENCY_HEADER).cloned() else {
        return next.run(request).await;
    };
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let key = match key.to_str() {
        Ok(key) if !key.trim().is_empty() && key.len() <= KEY_CHARACTERS_MAX => key.trim().to_owned(),
        _ => {
            return Error::invalid("Idempotency-Key", format!("must have 1 to {KEY_CHARACTERS_MAX} plain characters"))
                .into_response();
        }
    };
    let (mut parts, body) = request.into_parts();
    let limit_bytes = kernel.settings().body_bytes_max;
    let Ok(body) = axum::body::to_bytes(body, limit_bytes).await else {
        return Error::TooLarge { limit_bytes }.into_response();
    };
    let mut text = format!("{} {}\n", parts.method, parts.uri).into_bytes();
    // What is uploaded is described there.
    for (name, value) in parts.headers.iter().filter(|(name, _)| name.as_str().starts_with("upload-")) {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend([b": ", value.as_bytes(), b"\n"].concat());
    }
    text.extend_from_slice(&body);
    let request = RequestKey { key, digest: Digest::of(&text).to_string(), taken: Arc::default() };
    parts.extensions.insert(request.clone());
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    let lost = response.status().is_client_error() || response.status().is_server_error();
    match request.taken.get() {
        Some(turn) if lost => match find(&kernel, &turn.owner).await {
            Ok(Some(Kept { request: kept, answer: Some(answer) }))
                if kernel.sealer().fits(request.digest.as_bytes(), &kept) =>
            {
                replayed(answer)
            }
            _ => response,
        },
        _ => response,
    }
}

/// Answers a repeated request with the first answer; otherwise it is this request's turn.
pub(crate) async fn replay(kernel: &Kernel, caller: &Caller, request: &RequestKey) -> Result<Idempotency, Refusal> {
    let owner = (caller.organisation_id, caller.user_id, request.key.clone());
    let turn = kernel.under_way().turn(owner).await?;
    let found = find(kernel, &turn.owner).await?;
    // Kept until the answer is there.
    let _ = request.taken.set(turn);
    let digest = request.digest.as_bytes();
    match found {
        None => Ok(Idempotency {
            user_id: caller.user_id,
            key: request.key.clone(),
            fingerprint: kernel.sealer().fingerprint(digest),
        }),
        Some(found) if !kernel.sealer().fits(digest, &found.request) => {
            Err(Error::invalid("Idempotency-Key", "was used for another request").into())
        }
        Some(Kept { answer: Some(answer), .. }) => Err(Refusal::Replay(replayed(answer))),
        Some(_) => {
            Err(Error::conflict("this request was carried out; its answer held a secret that is shown once").into())
        }
    }
}

async fn find(kernel: &Kernel, (organisation_id, user_id, key): &Owner) -> Result<Option<Kept>> {
    let sql =
        sql!("SELECT request, answer FROM idempotency_keys WHERE organisation_id = $1 AND user_id = $2 AND key = $3");
    Ok(kernel.db().read().await?.opt(sql, args![*organisation_id, *user_id, key.as_str()]).await?)
}

fn replayed(answer: String) -> Response {
    (StatusCode::OK, [(header::CONTENT_TYPE, "application/json"), (REPLAYED, "true")], answer).into_response()
}

/// Keeps the answer; none when it held a secret.
pub(crate) async fn keep(
    write: &mut Write,
    organisation_id: i64,
    idempotency: Idempotency,
    answer: Option<String>,
    now: Time,
) -> Result<()> {
    let Idempotency { user_id, key, fingerprint } = idempotency;
    let sql = sql!(
        "INSERT INTO idempotency_keys (organisation_id, user_id, key, request, answer, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6)"
    );
    let arguments = args![organisation_id, user_id, key, fingerprint, answer, now];
    write.run(sql, arguments).await.on_duplicate(busy).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(key: &str) -> Owner {
        (1, 1, key.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_and_nothing_stays() {
        let all = Arc::new(UnderWay::default());
        let first = all.turn(owner("k")).await.unwrap();
        assert!(all.turn(owner("other")).await.is_ok(), "another key does not wait");
        let mut second = Box::pin(all.turn(owner("k")));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        let second = second.await.unwrap();
        assert!(matches!(all.turn(owner("k")).await, Err(Error::Conflict(_))), "the wait is bounded");
        let waiting = Box::pin(all.turn(owner("k")));
        drop((second, waiting));
        assert!(all.turn(owner("k")).await.is_ok());
        assert!(all.all().is_empty());
    }
}
