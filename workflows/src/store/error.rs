//! Why the store did not answer as asked.

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// No variant means that a commit did not happen: where a call that writes fails, its outcome is unknown, and calling
/// again with the same arguments answers what stands.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nobody answers, or they answer that they can't just now (`LOADING`, `MISCONF`, `OOM`, `READONLY`, ..). Retry with
    /// backoff for as long as it lasts.
    #[error("the store does not answer while it should {operation}")]
    Unavailable {
        operation: &'static str,
        #[source]
        source: BoxError,
    },
    /// It has lost something, and a person must look before anything goes on; see [`super::high_water`]. Retry as during an outage.
    #[error("could not {operation}: the store is halted, because something is missing from it; `turnaround status` says what")]
    Halted { operation: &'static str },
    /// Redis was started since a daemon last compared it with what it remembers: it may have lost something, or be another one. Retry as
    /// during an outage: daemons look each second.
    #[error("could not {operation}: Redis was started anew, and no daemon has looked yet whether it has lost something")]
    Unwatched { operation: &'static str },
    /// It would lose acknowledged writes, and the configuration does not accept that.
    #[error("the Redis at {address} may lose acknowledged writes: {}", weaknesses.join("; "))]
    NotDurable { address: String, weaknesses: Vec<String> },
    /// It can't be used as configured: wrong address, wrong password, no rights.
    #[error("could not {operation}: {remedy}")]
    Unusable {
        operation: &'static str,
        remedy: String,
        #[source]
        source: BoxError,
    },
    /// What is kept there makes no sense.
    #[error("could not {operation}: {what} is damaged")]
    Damaged {
        operation: &'static str,
        what: String,
        #[source]
        source: BoxError,
    },
}

impl StoreError {
    /// Will it pass, by itself or because a person lifts a halt? Whoever has something to write then asks again, with backoff.
    pub fn is_outage(&self) -> bool {
        matches!(self, StoreError::Unavailable { .. } | StoreError::Halted { .. } | StoreError::Unwatched { .. })
    }
}
