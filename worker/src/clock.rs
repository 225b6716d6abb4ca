//! The store's clock, as this process knows it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use turnaround_workflows::clock::{Clock, Timestamp};

/// Follows the store's clock by what its replies say, and runs on by the monotonic clock in between. Every worker of a site
/// thereby goes by one clock, whatever its own host's says. It goes back where the store's does.
#[derive(Debug)]
pub struct StoreClock(Mutex<(Timestamp, Instant)>);

impl StoreClock {
    pub fn new(now: Timestamp) -> StoreClock {
        StoreClock(Mutex::new((now, Instant::now())))
    }

    /// The store has just said that it is `now`.
    pub fn heard(&self, now: Timestamp) {
        *lock(&self.0) = (now, Instant::now());
    }

    /// When it will be `then`, by the monotonic clock.
    pub fn instant(&self, then: Timestamp) -> Instant {
        let (now, at) = *lock(&self.0);
        at + then.since(now)
    }
}

impl Clock for StoreClock {
    fn now(&self) -> Timestamp {
        let (now, at) = *lock(&self.0);
        now + at.elapsed()
    }
}

/// The store's clock as it is told under one lease: it goes on by at least what passes here. A failover may lead to a Redis whose clock is behind, or
/// somebody sets the clock of its host back: then an age would shrink, and what was seen 90 s ago would pass for new.
///
/// Not for longer than one lease: who claims the workflow next, here or elsewhere, goes by the store's clock. A worker that stayed ahead of it for as long as it
/// lives would disagree with all that came later about what is due, and for how long somebody has waited.
#[derive(Debug)]
pub(crate) struct SteadyClock {
    store: Arc<StoreClock>,
    /// The newest that it knew from the store, and when that was.
    known: Mutex<(Timestamp, Instant)>,
}

impl SteadyClock {
    pub(crate) fn new(store: Arc<StoreClock>) -> SteadyClock {
        let known = Mutex::new((store.now(), Instant::now()));
        SteadyClock { store, known }
    }

    /// What it tells at `at`, at which the store's clock is taken to be `store`.
    fn tell(&self, store: Timestamp, at: Instant) -> Timestamp {
        let mut known = lock(&self.known);
        let (newest, then) = *known;
        let own = newest + at.saturating_duration_since(then);
        if store <= own {
            // From the same beginning the next time, too: a part of a millisecond that is dropped with each call would make it slow.
            return own;
        }
        *known = (store, at);
        store
    }
}

impl Clock for SteadyClock {
    fn now(&self) -> Timestamp {
        self.tell(self.store.now(), Instant::now())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOON: Timestamp = Timestamp::from_millis(1_800_000_000_000);
    const SECOND: Duration = Duration::from_secs(1);

    /// Known to be noon at that moment.
    fn steady() -> (SteadyClock, Instant) {
        let begun = Instant::now();
        (SteadyClock { store: Arc::new(StoreClock::new(NOON)), known: Mutex::new((NOON, begun)) }, begun)
    }

    #[test]
    fn where_the_clock_of_the_store_goes_back_what_is_told_under_a_lease_goes_on_by_what_passes() {
        let (clock, begun) = steady();
        let mut told = Vec::new();
        // After ten seconds a failover leads to a store that is two minutes behind, which catches up by a minute and a half, and then overtakes.
        for (passed, store) in [(0, 0), (10, 10), (11, -109), (41, -79), (100, -20), (130, 100), (131, 140)] {
            let says = Timestamp::from_millis(NOON.millis() + store * 1_000);
            let now = clock.tell(says, begun + SECOND * u32::try_from(passed).unwrap());
            told.push(i64::try_from(now.since(NOON).as_secs()).unwrap());
        }
        assert_eq!(told, [0, 10, 11, 41, 100, 130, 140]);
    }

    #[test]
    fn who_asks_often_hears_no_slower_clock() {
        let (clock, begun) = steady();
        let behind = Timestamp::from_millis(NOON.millis() - 120_000);
        let asked = (0..=10_000).map(|tenths| clock.tell(behind, begun + Duration::from_micros(100) * tenths));
        assert_eq!(asked.last(), Some(NOON + SECOND));
    }

    #[test]
    fn a_clock_that_is_set_back_is_followed_by_whoever_sleeps_and_by_the_next_lease() {
        let store = Arc::new(StoreClock::new(NOON));
        let lease = SteadyClock::new(store.clone());
        assert!(lease.now() >= NOON);
        let earlier = Timestamp::from_millis(NOON.millis() - 120_000);
        store.heard(earlier);
        assert!(lease.now() >= NOON, "an age is not to shrink");
        assert!(store.now() < NOON && SteadyClock::new(store.clone()).now() < NOON);
        // Otherwise what is due in two minutes would be due now, and be asked for over and over.
        assert!(store.instant(NOON) > Instant::now() + Duration::from_secs(60));
    }
}
