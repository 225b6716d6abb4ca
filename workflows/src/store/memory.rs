//! The store in memory: for simulation, rehearsal and tests.
//!
//! It behaves as the store in Redis does, and is held to it by [`super::conformance`]. It goes by the clock that it
//! is given, and waits by tokio's time, so that a simulation may run in virtual time.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::high_water::{HighWater, Standing};
use super::{
    Advance, Advanced, Backlog, Created, Document, Durability, Holding, NewWorkflow, PAGE_MAX, Query, Queue, Signalled, Status, Store,
    StoreError, StoreEvent, StoredEntry, StoredSignal, WorkflowId, limits,
};
use crate::clock::{Clock, Timestamp};

mod record;
mod resources;
mod shelf;
mod standing;

use shelf::Shelf;

/// Keeps workflows for as long as the process runs.
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    shelf: Mutex<Shelf>,
    /// Told whenever the bell was rung.
    rung: Notify,
    /// Told whenever an event was added.
    happened: Notify,
}

impl MemoryStore {
    /// An empty store that goes by `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> MemoryStore {
        MemoryStore { clock, shelf: Mutex::default(), rung: Notify::new(), happened: Notify::new() }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one operation that writes, unless the store is halted.
    fn write_unless_halted<T>(
        &self,
        operation: &'static str,
        run: impl FnOnce(&mut Shelf, Timestamp) -> T,
    ) -> Result<T, StoreError> {
        // Looked at under the same lock as the operation itself.
        self.write(|shelf, now| (!shelf.is_halted()).then(|| run(shelf, now))).ok_or(StoreError::Halted { operation })
    }

    /// Runs one operation, then wakes whoever waits for what it did.
    fn write<T>(&self, operation: impl FnOnce(&mut Shelf, Timestamp) -> T) -> T {
        let now = self.clock.now();
        let mut shelf = self.shelf();
        let events_before = shelf.events_end();
        let done = operation(&mut shelf, now);
        let rung = shelf.settle_bell();
        let happened = shelf.events_end() != events_before;
        drop(shelf);
        if rung {
            self.rung.notify_waiters();
        }
        if happened {
            self.happened.notify_waiters();
        }
        done
    }

    /// Returns what `look` finds, looking again after each notice, or None after `timeout`.
    async fn wait_until<T>(
        &self,
        notice: &Notify,
        timeout: Duration,
        mut look: impl FnMut(&mut Shelf) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + timeout;
        loop {
            let noticed = notice.notified();
            tokio::pin!(noticed);
            // Before looking, so that a notice between looking and waiting is not missed.
            noticed.as_mut().enable();
            if let Some(found) = look(&mut self.shelf()) {
                return Some(found);
            }
            tokio::time::timeout_at(deadline, noticed).await.ok()?;
        }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn now(&self) -> Result<Timestamp, StoreError> {
        Ok(self.clock.now())
    }

    async fn create(&self, new: NewWorkflow) -> Result<Created, StoreError> {
        self.write_unless_halted("create a workflow", |shelf, now| shelf.create(new, now))
    }

    async fn advance(&self, advance: &Advance) -> Result<Advanced, StoreError> {
        limits::check_advance(advance)?;
        self.write_unless_halted("advance workflows", |shelf, now| shelf.advance(advance.clone(), now))
    }

    async fn wait_for_bell(&self, queues: &[Queue], timeout: Duration) -> Result<Option<Queue>, StoreError> {
        Ok(self.wait_until(&self.rung, timeout, |shelf| shelf.take_ring(queues)).await)
    }

    async fn ring(&self, queue: &Queue) -> Result<(), StoreError> {
        self.write(|shelf, _| shelf.ring(queue));
        Ok(())
    }

    async fn signal(&self, id: &WorkflowId, signal: StoredSignal) -> Result<Signalled, StoreError> {
        self.write_unless_halted("signal a workflow", |shelf, now| shelf.signal(id, signal, now))
    }

    async fn load(&self, id: &WorkflowId) -> Result<Option<Document>, StoreError> {
        Ok(self.shelf().document(id))
    }

    async fn journal(&self, id: &WorkflowId, from: u64, limit: u32) -> Result<Vec<StoredEntry>, StoreError> {
        Ok(self.shelf().journal(id, from, limit.min(PAGE_MAX)))
    }

    async fn list(&self, query: &Query) -> Result<Vec<Document>, StoreError> {
        Ok(self.shelf().list(query))
    }

    async fn counts(&self) -> Result<Vec<(Status, u64)>, StoreError> {
        Ok(self.shelf().counts())
    }

    async fn backlog(&self, queues: &[Queue], before: Timestamp) -> Result<Backlog, StoreError> {
        Ok(self.shelf().backlog(queues, before))
    }

    async fn events(&self, cursor: Option<&str>, timeout: Duration) -> Result<Vec<StoreEvent>, StoreError> {
        let after = match cursor {
            Some(cursor) => cursor.to_owned(),
            None => self.events_end().await?,
        };
        // What this store did not write itself is from before all that it has.
        let after = after.parse().unwrap_or(0);
        let found = self.wait_until(&self.happened, timeout, |shelf| shelf.events_after(after)).await;
        Ok(found.unwrap_or_default())
    }

    async fn events_end(&self) -> Result<String, StoreError> {
        Ok(self.shelf().events_end().to_string())
    }

    async fn holdings(&self) -> Result<Vec<Holding>, StoreError> {
        Ok(self.shelf().holdings())
    }

    async fn release_budget(&self, name: &str, member: &str) -> Result<bool, StoreError> {
        self.write_unless_halted("release a budget share", |shelf, now| shelf.release_budget(name, member, now))
    }

    async fn ledgers(&self) -> Result<BTreeSet<String>, StoreError> {
        Ok(self.shelf().ledgers())
    }

    async fn last_tick(&self, schedule: &str) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.shelf().last_tick(schedule))
    }

    async fn judge_ticks(
        &self,
        schedule: &str,
        last: Option<Timestamp>,
        judged: Timestamp,
        create: Vec<NewWorkflow>,
    ) -> Result<bool, StoreError> {
        limits::check_created(&create)?;
        self.write_unless_halted("judge ticks", |shelf, now| shelf.judge_ticks(schedule, last, judged, create, now))
    }

    async fn sweep(&self) -> Result<u32, StoreError> {
        self.write_unless_halted("sweep", |shelf, now| shelf.sweep(now))
    }

    async fn durability(&self) -> Result<Durability, StoreError> {
        Ok(Durability {
            description: "in memory".to_owned(),
            weaknesses: vec!["everything is lost when the process ends; configure a Redis to keep it".to_owned()],
        })
    }
    async fn standing(&self) -> Result<Standing, StoreError> {
        Ok(self.shelf().watched.standing(None))
    }

    async fn compare(&self, remembered: &HighWater, by: &str) -> Result<Standing, StoreError> {
        Ok(self.write(|shelf, now| shelf.watched.compare(remembered, by, now)))
    }

    async fn accept(&self, remembered: &HighWater, _by: &str) -> Result<Option<Standing>, StoreError> {
        Ok(self.write(|shelf, now| shelf.accept(remembered, now)))
    }
}
