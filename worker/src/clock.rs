//! The store's clock, as this process knows it.

use std::sync::Mutex;

use tokio::time::Instant;
use turnaround_workflows::clock::{Clock, Timestamp};

/// Follows the store's clock by what its replies say, and runs on by the monotonic clock in between. Every worker of a site
/// thereby goes by one clock, whatever its own host's says.
#[derive(Debug)]
pub struct StoreClock(Mutex<(Timestamp, Instant)>);

impl StoreClock {
    pub fn new(now: Timestamp) -> StoreClock {
        StoreClock(Mutex::new((now, Instant::now())))
    }

    /// The store has just said that it is `now`.
    pub fn heard(&self, now: Timestamp) {
        *self.known() = (now, Instant::now());
    }

    /// When it will be `then`, by the monotonic clock.
    pub fn instant(&self, then: Timestamp) -> Instant {
        let (now, at) = *self.known();
        at + then.since(now)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, (Timestamp, Instant)> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Clock for StoreClock {
    fn now(&self) -> Timestamp {
        let (now, at) = *self.known();
        now + at.elapsed()
    }
}
