//! Request ids: one for each request, in every log line and error of it.

use tokio::task_local;

task_local! {
    static REQUEST_ID: String;
}

/// Id of the request that the present task works on.
#[must_use]
pub fn current_request_id() -> Option<String> {
    REQUEST_ID.try_with(Clone::clone).ok()
}

/// Runs `work` as the request with this id.
pub(crate) async fn with_request_id<F: Future>(id: String, work: F) -> F::Output {
    REQUEST_ID.scope(id, work).await
}
