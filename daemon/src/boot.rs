//! The way from a good configuration to a store that can be used.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use turnaround_config::{Config, Redis, SecretError};
use turnaround_workflows::history;
use turnaround_workflows::store::embedded::{EmbeddedError, EmbeddedRedis};
use turnaround_workflows::store::redis::{RedisOptions, RedisStore};
use turnaround_workflows::store::{Store, StoreError};

use crate::api::problem::chain;
use crate::systemd;

/// Between two tries to reach the store. A private Redis is there within 100 ms.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// An outage is told at once and then this often.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// Why the store can't be used. Waiting does not mend it.
#[derive(Debug, thiserror::Error)]
pub enum StoreRefused {
    #[error("the password can't be read; {}", .0.remedy())]
    Password(#[source] SecretError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the private Redis can't be started")]
    Private(#[from] EmbeddedError),
}

/// How to reach the configured store.
pub fn redis_options(config: &Config) -> Result<RedisOptions, StoreRefused> {
    RedisOptions::of(config).map_err(StoreRefused::Password)
}

/// The private Redis, running, where no other is configured.
pub async fn private_redis(config: &Config) -> Result<Option<EmbeddedRedis>, StoreRefused> {
    match &config.store.redis {
        Redis::Embedded { program } => Ok(Some(EmbeddedRedis::start(&config.state_dir, program).await?)),
        Redis::Url { .. } | Redis::Sentinel { .. } => Ok(None),
    }
}

/// The store, as soon as it answers. None: `stop` came first.
///
/// # Errors
/// What waiting does not mend: writes that would be lost, a wrong address, a wrong password.
pub async fn open_store(options: RedisOptions, stop: &CancellationToken) -> Result<Option<Arc<dyn Store>>, StoreRefused> {
    let address = options.address.to_string();
    let mut pause = PAUSE_FIRST;
    let mut told: Option<Instant> = None;
    while !stop.is_cancelled() {
        match RedisStore::connect(options.clone()).await {
            Ok(store) => {
                if told.is_some() {
                    info!(address, "the store answers");
                }
                return Ok(Some(history::of_store(Arc::new(store))));
            }
            Err(error) if error.is_outage() => {
                // The first tries of a Redis that is just being started are nobody's concern.
                if pause >= PAUSE_MAX && told.is_none_or(|then| then.elapsed() >= TOLD_EVERY) {
                    warn!(address, error = chain(&error), "waiting for the store; nothing is served until it answers");
                    systemd::status(&format!("waiting for the store at {address}"));
                    told = Some(Instant::now());
                }
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
    Ok(None)
}
