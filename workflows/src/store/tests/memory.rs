use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::{HandClock, Timestamp};
use crate::store::conformance::{self, Bed};
use crate::store::Store;
use crate::store::memory::MemoryStore;

struct MemoryBed {
    clock: Arc<HandClock>,
    store: Arc<MemoryStore>,
}

impl MemoryBed {
    fn new() -> MemoryBed {
        let clock = Arc::new(HandClock::at(Timestamp::from_millis(1_800_000_000_000)));
        MemoryBed { clock: clock.clone(), store: Arc::new(MemoryStore::new(clock)) }
    }
}

#[async_trait]
impl Bed for MemoryBed {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn pass(&self, by: Duration) {
        self.clock.advance(by);
    }
}

macro_rules! test_each {
    ($($check:ident)*) => {
        $(
            #[tokio::test(start_paused = true)]
            async fn $check() {
                conformance::$check(&MemoryBed::new()).await;
            }
        )*
    };
}

crate::for_each_store_check!(test_each);
