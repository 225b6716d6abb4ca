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
/// answered with `ERR`, and that word first. Before Redis 7 any error in a script is: `ERR Error running script (call to f_...): @user_script:17: -READONLY ...`.
fn code(error: &RedisError) -> &str {
    let Some(code) = error.code() else { return "" };
    let (true, Some(detail)) = (code == "ERR", error.detail()) else { return code };
    if detail.starts_with(OF_A_STRANGER) {
        return "NOAUTH";
    }
    let is_known = |word: &&str| PASSING.contains(word) || REFUSED.contains(word);
    let parts = if detail.starts_with(OF_A_SCRIPT) { usize::MAX } else { 1 };
    let words = detail.split(": ").take(parts).filter_map(|part| part.trim_start_matches('-').split_whitespace().next());
    words.filter(|word| is_known(word)).last().unwrap_or(code)
}

/// What Redis says of a request that is larger than what it reads of somebody who has not logged in (`networking.c`: ten words, 16 KiB).
const OF_A_STRANGER: &str = "Protocol error: unauthenticated";

/// How Redis before 7 begins what it says of an error in a script.
const OF_A_SCRIPT: &str = "Error running script";

pub(super) fn judge(operation: &'static str, error: RedisError) -> StoreError {
    if error.code() == Some("HALTED") {
        return StoreError::Halted { operation };
    }
    match remedy(&error) {
        None => StoreError::Unavailable { operation, source: Box::new(error) },
        Some(remedy) => StoreError::Unusable { operation, remedy, source: Box::new(error) },
    }
}

/// The same of a Redis that has answered us before. Somebody has changed the password, perhaps on the way to change it here, too: who has work in hand waits
/// until that is done, and tells meanwhile what it is. What is started then ends at once, and says why.
pub(super) fn judge_again(operation: &'static str, error: RedisError) -> StoreError {
    if refuses_us(&error) {
        return StoreError::Unavailable { operation, source: Box::new(error) };
    }
    judge(operation, error)
}

/// Is it that Redis does not take us for who we say we are?
fn refuses_us(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed || matches!(code(error), "NOAUTH" | "WRONGPASS")
}

/// What an error of Redis that passes tells of; None of other errors.
pub(in crate::store) fn trouble(error: &(dyn std::error::Error + 'static)) -> Option<Trouble> {
    let error = error.downcast_ref::<RedisError>()?;
    Some(match code(error) {
        _ if refuses_us(error) => Trouble::Unusable,
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

/// Must the connection be replaced? It is broken, its peer is silent, does not know us, or is not the primary any more.
pub(super) fn breaks_connection(error: &RedisError) -> bool {
    error.is_unrecoverable_error()
        || matches!(error.kind(), ErrorKind::Io | ErrorKind::Parse)
        || matches!(code(error), "READONLY" | "MASTERDOWN" | "NOAUTH")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(line: &str) -> RedisError {
        let Ok(::redis::Value::ServerError(error)) = ::redis::parse_redis_value(format!("-{line}\r\n").as_bytes()) else { panic!("{line}") };
        error.into()
    }

    #[test]
    fn an_outage_that_a_script_meets_is_one_whichever_redis_says_so() {
        for (line, means) in [
            ("READONLY You can't write against a read only replica.", Some("READONLY")),
            ("ERR OOM command not allowed when used memory > 'maxmemory'.", Some("OOM")),
            ("ERR Error running script (call to f_5a1f): @user_script:17: @user_script: 17: -READONLY You can't write against a read only replica.", Some("READONLY")),
            ("ERR Error running script (call to f_5a1f): @user_script:17: -OOM command not allowed when used memory > 'maxmemory'.", Some("OOM")),
            ("ERR Error running script (call to f_5a1f): @user_script:17: MISCONF Redis is configured to save RDB snapshots", Some("MISCONF")),
            ("ERR Error running script (call to f_5a1f): @user_script:17: attempt to index a nil value", None),
            ("ERR wrong number of arguments: READONLY", None),
        ] {
            let error = answered(line);
            assert_eq!(code(&error), means.unwrap_or("ERR"), "{line}");
            assert_eq!(matches!(judge("test", error), StoreError::Unavailable { .. }), means.is_some(), "{line}");
        }
        assert!(breaks_connection(&answered("ERR Error running script (call to f_5a1f): @user_script:17: -READONLY no")));
    }

    #[test]
    fn a_password_that_is_refused_is_for_a_person_at_the_start_and_waited_out_later() {
        let refused = || RedisError::from((ErrorKind::AuthenticationFailed, "Password authentication failed"));
        for error in [refused(), answered("NOAUTH Authentication required."), answered("WRONGPASS invalid username-password pair or user is disabled."), answered("ERR Protocol error: unauthenticated multibulk length")] {
            let StoreError::Unusable { remedy, .. } = judge("test", error.clone()) else { panic!("{error}") };
            assert!(remedy.contains("password"), "{remedy}");
            let later = judge_again("test", error);
            assert_eq!((later.is_outage(), later.trouble()), (true, Trouble::Unusable), "{later}");
            assert_eq!(again(&later).trouble(), Trouble::Unusable, "also for who relied on the same call");
        }
        // What else a person must mend stays so, and what passes anyway is told as what it is.
        for (line, is_outage, trouble) in [
            ("NOPERM this user has no permissions to run the 'evalsha' command", false, Trouble::Unusable),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", false, Trouble::Unusable),
            ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", true, Trouble::Busy),
        ] {
            let later = judge_again("test", answered(line));
            assert_eq!((later.is_outage(), later.trouble()), (is_outage, trouble), "{line}");
        }
    }
}
