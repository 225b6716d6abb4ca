//! What an error of Redis means: will it pass, or must a person do something?

use ::redis::{ErrorKind, RedisError};

use super::StoreError;
use crate::store::Trouble;

/// Answers that mean "not just now": it loads its file, is out of memory or disk, was demoted, or runs a script.
const PASSING: [&str; 10] = [
    "LOADING", "MISCONF", "OOM", "READONLY", "NOREPLICAS", "BUSY", "TRYAGAIN", "MASTERDOWN", "CLUSTERDOWN", "UNBLOCKED",
];

/// Answers that mean "you may not".
const REFUSED: [&str; 3] = ["NOAUTH", "WRONGPASS", "NOPERM"];

/// Redis's own word for what is wrong. A script that passes an error on, as `advance.lua` does with what is not one workflow's own, is
/// answered with `ERR`, and that word first.
fn code(error: &RedisError) -> &str {
    let Some(code) = error.code() else { return "" };
    let passed_on = error.detail().and_then(|detail| detail.split_whitespace().next());
    match passed_on {
        Some(word) if code == "ERR" && (PASSING.contains(&word) || REFUSED.contains(&word)) => word,
        Some(_) | None => code,
    }
}

pub(super) fn judge(operation: &'static str, error: RedisError) -> StoreError {
    if error.code() == Some("HALTED") {
        return StoreError::Halted { operation };
    }
    match remedy(&error) {
        None => StoreError::Unavailable { operation, source: Box::new(error) },
        Some(remedy) => StoreError::Unusable { operation, remedy, source: Box::new(error) },
    }
}

/// What an error of Redis that passes tells of; None of other errors.
pub(in crate::store) fn trouble(error: &(dyn std::error::Error + 'static)) -> Option<Trouble> {
    let error = error.downcast_ref::<RedisError>()?;
    Some(match code(error) {
        "LOADING" => Trouble::Loading,
        "MISCONF" => Trouble::DiskFull,
        "OOM" => Trouble::MemoryFull,
        "READONLY" | "MASTERDOWN" => Trouble::Demoted,
        "NOREPLICAS" => Trouble::FewReplicas,
        "BUSY" => Trouble::Busy,
        _ if error.is_timeout() => Trouble::Silent,
        _ => Trouble::Unreachable,
    })
}

const LOOK_AT_THE_CAUSE: &str = "look at the cause; if the keys were changed by hand, restore them from a backup";

/// What a script says of what is kept of one workflow.
pub(super) fn changed_by_hand(operation: &'static str, told: String) -> StoreError {
    StoreError::Unusable { operation, remedy: LOOK_AT_THE_CAUSE.to_owned(), source: told.into() }
}

/// The same once more, for somebody else who relied on the same call.
pub(super) fn again(error: &StoreError) -> StoreError {
    let source = |source: &(dyn std::error::Error + Send + Sync + 'static)| -> Box<dyn std::error::Error + Send + Sync> {
        match source.downcast_ref::<RedisError>() {
            Some(error) => Box::new(error.clone()),
            None => source.to_string().into(),
        }
    };
    match error {
        StoreError::Unavailable { operation, source: why } => StoreError::Unavailable { operation, source: source(&**why) },
        StoreError::Halted { operation } => StoreError::Halted { operation },
        StoreError::Unwatched { operation } => StoreError::Unwatched { operation },
        StoreError::NotDurable { address, weaknesses } => {
            StoreError::NotDurable { address: address.clone(), weaknesses: weaknesses.clone() }
        }
        StoreError::Unusable { operation, remedy, source: why } => {
            StoreError::Unusable { operation, remedy: remedy.clone(), source: source(&**why) }
        }
        StoreError::Damaged { operation, what, source: why } => {
            StoreError::Damaged { operation, what: what.clone(), source: source(&**why) }
        }
    }
}

/// What a person should do; None if it passes.
fn remedy(error: &RedisError) -> Option<String> {
    let code = code(error);
    if PASSING.contains(&code) {
        return None;
    }
    if REFUSED.contains(&code) || error.kind() == ErrorKind::AuthenticationFailed {
        return Some("check the password, and that the user may run EVALSHA, SCRIPT and transactions on these keys".to_owned());
    }
    let text = error.to_string();
    if text.contains("unknown command") || text.contains("unknown subcommand") {
        return Some("use Redis 6.2 or newer, or Valkey, with no command renamed or disabled".to_owned());
    }
    match error.kind() {
        // Cut off in the middle of an answer: nothing says that it would have been a wrong one.
        ErrorKind::Parse if text.contains("end of input") => None,
        ErrorKind::Io
        | ErrorKind::MasterNameNotFoundBySentinel
        | ErrorKind::NoValidReplicasFoundBySentinel
        | ErrorKind::ClusterConnectionNotFound => None,
        ErrorKind::InvalidClientConfig | ErrorKind::EmptySentinelList => {
            Some("check the address of Redis in the configuration".to_owned())
        }
        ErrorKind::Parse => Some("check that it is a Redis which listens there".to_owned()),
        // A script that is killed or a transaction that is dropped would be in `code`.
        _ => Some(LOOK_AT_THE_CAUSE.to_owned()),
    }
}

/// Must the connection be replaced? It is broken, its peer is silent, or its peer is not the primary any more.
pub(super) fn breaks_connection(error: &RedisError) -> bool {
    error.is_unrecoverable_error()
        || matches!(error.kind(), ErrorKind::Io | ErrorKind::Parse)
        || matches!(code(error), "READONLY" | "MASTERDOWN")
}
