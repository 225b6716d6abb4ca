//! The Redis that a configuration names.

use turnaround_config::{Config, Redis, SecretError};

use super::{RedisAddress, RedisOptions};

impl RedisOptions {
    /// How to reach the configured Redis: the daemon's and every worker's. Reads the password; fails only if it can't be read.
    pub fn of(config: &Config) -> Result<RedisOptions, SecretError> {
        let (address, password) = match &config.store.redis {
            Redis::Embedded { .. } => (RedisAddress::Socket(config.state_dir.join("redis/redis.sock")), None),
            Redis::Url { url, password } => {
                let password = password.as_ref().map(|secret| secret.read()).transpose()?;
                (RedisAddress::Url(url.clone()), password)
            }
            Redis::Sentinel { nodes, primary, password } => {
                let password = password.as_ref().map(|secret| secret.read()).transpose()?;
                let nodes = nodes.iter().map(|node| format!("redis://{node}")).collect();
                (RedisAddress::Sentinel { nodes, primary: primary.clone() }, password)
            }
        };
        Ok(RedisOptions {
            password,
            reply_timeout: config.store.reply_timeout,
            only_watched: true,
            accept_weaker_durability: config.store.accept_weaker_durability,
            ..RedisOptions::new(address)
        })
    }
}
