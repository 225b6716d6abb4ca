//! One reader of the store's events, shared by every subscriber.
//!
//! A subscriber is nothing but a cursor: the newest events are in one ring for all of them, and who fell behind the ring
//! reads from the store until it has caught up. So a slow subscriber costs no memory and misses nothing that the store
//! still has.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use turnaround_workflows::engine::Entry;
use turnaround_workflows::store::{Store, StoreError, StoreEvent};

use crate::wire::EventView;

/// Events in the ring: a quarter of what the store keeps (2,000), so that who falls behind the ring still finds the rest
/// there. About 1 KiB each.
const RING_EVENTS_MAX: usize = 512;
/// How long one read of the store waits for an event. Only bounds how late the reader notices that it should stop.
const READ_WAITS: Duration = Duration::from_secs(20);
/// A catch-up does not wait. Not zero, which Redis takes for "for ever".
const CATCH_UP_WAITS: Duration = Duration::from_millis(1);
/// A subscriber that is ahead of the ring looks again after this long: it may be gone from the ring altogether.
const AHEAD_WAITS: Duration = Duration::from_secs(1);
const OUTAGE_PAUSE_FIRST: Duration = Duration::from_millis(100);
const OUTAGE_PAUSE_MAX: Duration = Duration::from_secs(5);

/// The newest events, and word that there are more.
pub struct EventFeed {
    store: Arc<dyn Store>,
    ring: Mutex<Ring>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Ring {
    /// The cursor that the oldest event in the ring follows. None until the reader knows where the events end.
    before: Option<String>,
    events: VecDeque<Arc<EventView>>,
}

enum Found {
    After(Vec<Arc<EventView>>),
    /// The ring does not know this cursor.
    Unknown,
}

impl Ring {
    fn end(&self) -> Option<&str> {
        self.events.back().map(|newest| newest.cursor.as_str()).or(self.before.as_deref())
    }

    fn after(&self, cursor: &str) -> Found {
        // From the back: nearly every subscriber is at the end.
        let place = self.events.iter().rposition(|event| event.cursor == cursor);
        match place {
            Some(place) => Found::After(self.events.range(place + 1..).cloned().collect()),
            None if self.before.as_deref() == Some(cursor) => Found::After(self.events.iter().cloned().collect()),
            None => Found::Unknown,
        }
    }

    fn push(&mut self, event: EventView) {
        if self.events.len() >= RING_EVENTS_MAX {
            self.before = self.events.pop_front().map(|oldest| oldest.cursor.clone());
        }
        self.events.push_back(Arc::new(event));
    }
}

impl EventFeed {
    pub fn new(store: Arc<dyn Store>) -> Arc<EventFeed> {
        Arc::new(EventFeed { store, ring: Mutex::default(), changed: watch::Sender::new(0) })
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads until `stop`. Outages are waited out.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut pause = OUTAGE_PAUSE_FIRST;
        let mut out = false;
        while !stop.is_cancelled() {
            let read = tokio::select! {
                () = stop.cancelled() => return,
                read = self.read_on() => read,
            };
            match read {
                Ok(()) => {
                    pause = OUTAGE_PAUSE_FIRST;
                    if std::mem::take(&mut out) {
                        info!("the store's events can be read again");
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut out, true) {
                        let error = crate::api::problem::chain(&error);
                        warn!(error, "the store's events can't be read; trying until it works");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(OUTAGE_PAUSE_MAX);
                }
            }
        }
    }

    async fn read_on(&self) -> Result<(), StoreError> {
        let end = self.ring().end().map(str::to_owned);
        let Some(end) = end else {
            let end = self.store.events_end().await?;
            self.ring().before = Some(end);
            self.changed.send_modify(|count| *count += 1);
            return Ok(());
        };
        let events = self.store.events(Some(&end), READ_WAITS).await?;
        if !events.is_empty() {
            let mut ring = self.ring();
            events.into_iter().map(view).for_each(|event| ring.push(event));
            drop(ring);
            self.changed.send_modify(|count| *count += 1);
        }
        Ok(())
    }

    /// Where a subscriber begins that wants only what happens from now on.
    pub async fn end(&self) -> Result<String, StoreError> {
        let known = self.ring().end().map(str::to_owned);
        match known {
            Some(end) => Ok(end),
            None => self.store.events_end().await,
        }
    }

    /// At least one event after `cursor`, oldest first; waits for it.
    pub async fn after(&self, cursor: &str) -> Result<Vec<Arc<EventView>>, StoreError> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let is_ahead = matches!(self.ring().after(cursor), Found::Unknown);
            let found = self.found(cursor).await?;
            if !found.is_empty() {
                return Ok(found);
            }
            // Fails only when the feed is gone, and then nobody is here to ask.
            if is_ahead {
                tokio::time::timeout(AHEAD_WAITS, changed.changed()).await.ok();
            } else {
                changed.changed().await.ok();
            }
        }
    }

    /// The next events after `cursor`, oldest first; none if that was the newest one.
    async fn found(&self, cursor: &str) -> Result<Vec<Arc<EventView>>, StoreError> {
        // (Not in the `match`, which would hold the ring while the store is asked.)
        let found = self.ring().after(cursor);
        match found {
            Found::After(events) => Ok(events),
            Found::Unknown => self.missed(cursor).await,
        }
    }

    /// The same, as the store has it: the newest ones need not have come to us yet.
    pub async fn found_by_now(&self, cursor: &str) -> Result<Vec<Arc<EventView>>, StoreError> {
        let found = self.found(cursor).await?;
        if found.is_empty() { self.missed(cursor).await } else { Ok(found) }
    }

    async fn missed(&self, cursor: &str) -> Result<Vec<Arc<EventView>>, StoreError> {
        let missed = self.store.events(Some(cursor), CATCH_UP_WAITS).await?;
        Ok(missed.into_iter().map(view).map(Arc::new).collect())
    }
}

fn view(event: StoreEvent) -> EventView {
    let StoreEvent { cursor, workflow, kind, target, status, headline, seq, entry } = event;
    // The chain is checked where a journal is shown whole; an event that can't be read is passed on as it is.
    let read = Entry::read(&entry.body);
    let (at, text) = match &read {
        Ok(entry) => (Some(entry.at.into()), entry.event.describe()),
        Err(error) => (None, format!("an entry that can't be read: {error}")),
    };
    let event = read
        .ok()
        .and_then(|entry| serde_json::to_value(&entry.event).ok())
        .unwrap_or_else(|| serde_json::Value::String(entry.body.clone()));
    EventView { cursor, workflow, kind, target, status, headline, seq, at, text, event }
}
