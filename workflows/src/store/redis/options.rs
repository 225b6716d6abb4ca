//! What is needed to reach a Redis.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use turnaround_config::SecretText;

/// Where Redis is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisAddress {
    /// `redis://`, `rediss://`, or `redis+unix://` (`unix://`). It should carry no password.
    Url(String),
    /// A unix socket.
    Socket(PathBuf),
    /// The primary of that name, as these Sentinels (URLs) know it. Asked again for every new connection.
    Sentinel { nodes: Vec<String>, primary: String },
}

impl fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RedisAddress::Url(url) => f.write_str(&without_password(url)),
            RedisAddress::Socket(path) => path.display().fmt(f),
            RedisAddress::Sentinel { nodes, primary } => {
                write!(f, "{primary} (of {} Sentinels)", nodes.len())
            }
        }
    }
}

/// Somebody will write one into the URL all the same.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{host}"),
        None => url.to_owned(),
    }
}

/// How to reach a Redis, and what to expect of it.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    pub address: RedisAddress,
    pub password: Option<SecretText>,
    /// First part of every key: exactly one hash tag in braces, so that all keys are in one slot of a cluster.
    pub prefix: String,
    /// How long one answer may take before the store counts as unavailable.
    pub reply_timeout: Duration,
    /// Where Redis refuses transactions (it is full, or its user may not), or the connection for them, it is not asked for one for so long: all goes by
    /// scripts, as it would anyway.
    pub refused_pause: Duration,
    /// Write only to a Redis that a daemon has compared with what it remembers since it was started: what was put back from a backup is
    /// not worked on for as much as a moment. For sites, where there is a daemon.
    pub only_watched: bool,
    /// Connect also if acknowledged writes may be lost. What is weaker is still reported.
    pub accept_weaker_durability: bool,
}

impl RedisOptions {
    /// The usual options for a Redis at `address`.
    pub fn new(address: RedisAddress) -> RedisOptions {
        RedisOptions {
            address,
            password: None,
            prefix: "{ta}".to_owned(),
            reply_timeout: REPLY_TIMEOUT,
            refused_pause: REFUSED_PAUSE,
            only_watched: false,
            accept_weaker_durability: false,
        }
    }
}

// A batch of 256 commits takes 13 ms at the 99th percentile, a busy disk's fsync some 100 ms. A Redis that is silent for
// longer hangs, and a lease of 10 s leaves time to notice.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);

// Each time is a warning, and costs one round trip more than the script alone.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);
