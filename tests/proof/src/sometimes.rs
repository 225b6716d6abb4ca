//! What was reached: a proof in which a fault never came about proves nothing about that fault.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use turnaround_workflows::clock::Timestamp;

/// How many times each thing came about, and what never may.
#[derive(Debug, Default)]
pub struct Sometimes(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    counts: BTreeMap<&'static str, u64>,
    wrong: Vec<String>,
    newest_entry: Timestamp,
}

impl Sometimes {
    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn count(&self, what: &'static str) {
        *self.counted().counts.entry(what).or_default() += 1;
    }

    /// Something that must not be.
    pub fn wrong(&self, what: String) {
        self.counted().wrong.push(what);
    }

    pub(super) fn committed(&self, entries: usize, now: Timestamp) {
        if entries > 0 {
            self.counted().newest_entry = now;
        }
    }

    /// When something was last written into a journal.
    pub(super) fn newest_entry(&self) -> Timestamp {
        self.counted().newest_entry
    }

    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counted().counts.clone()
    }

    pub fn wrongs(&self) -> Vec<String> {
        self.counted().wrong.clone()
    }
}
