//! Upper bounds that both stores keep, each with its reason.

use std::time::Duration;

use super::{Advance, Commit, NewWorkflow, StoreError};
use crate::clock::Timestamp;

/// Entries, takes, gives, children or signals that one commit may carry, of each kind.
// Redis does nothing else meanwhile: 1,000 children take about 10 ms.
pub(crate) const COMMIT_ITEMS_MAX: usize = 1_000;

/// Renewals, and hand backs, carried by one call; more are sent in several.
pub(super) const RENEWALS_MAX: usize = 1_000;

/// Signals handed out at once, oldest first; the others follow with the next commit.
// A full inbox of 1,000 in each of 256 claims would be a reply of many megabytes.
pub(crate) const SIGNALS_HANDED_MAX: usize = 100;

/// Rings that the bell keeps. A worker that is rung takes a whole batch, and passes on what it can't
/// use, so that a few more than there are worker processes is enough.
pub(super) const BELL_RINGS_MAX: usize = 128;

/// Writes (each with all its events) that subscribers can go back by; a console that was away for longer reads the
/// listing again.
// One write carries up to some 300 events of about 80 bytes: 50 MB where the system is busiest, 200 KB where it is not.
pub(super) const EVENTS_KEPT: usize = 2_000;

/// Events in one answer.
pub(super) const EVENTS_PAGE_MAX: usize = 500;

/// Holders named in one `Busy`. People read it.
pub(super) const HOLDERS_SHOWN_MAX: usize = 100;

/// Waiters looked at to find those that a freed resource wakes: some may have ended since.
pub(super) const WAITERS_LOOKED_MAX: usize = 1_000;

/// Leases looked at to find those of a claim whose answer was lost; the others are found when they expire.
// About 10 ms of Redis, once after an outage.
pub(super) const LOST_LOOKED_MAX: usize = 10_000;

/// Claims without an answer that a store remembers. An outage of a minute, asked each second, has so many.
pub(super) const LOST_CLAIMS_MAX: usize = 64;

/// Workflows that one sweep removes.
pub(super) const SWEEP_MAX: usize = 1_000;

/// Journal entries after which a sweep takes no further workflow.
// Each takes about half a microsecond to remove: some 5 ms of Redis.
pub(super) const ENTRIES_SWEPT_MAX: usize = 10_000;

/// Index entries that a filtered listing looks at before it answers with what it found.
// 100,000 hash reads are about 0.2 s of Redis, in slices of a few milliseconds.
pub(super) const LIST_LOOKED_MAX: usize = 100_000;

/// Latest moment that a store keeps exactly (in the year 287,396): Redis scores are floating point.
pub(super) const TIME_MAX: Timestamp = Timestamp::from_millis((1 << 53) - 1);

/// Longest time that an ended workflow is kept.
pub(super) const KEEP_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3_600);

/// `at`, if a store can keep it, or the nearest moment that it can.
pub(super) fn keepable(at: Timestamp) -> Timestamp {
    at.clamp(Timestamp::from_millis(0), TIME_MAX)
}

#[derive(Debug, thiserror::Error)]
#[error("it has {count} {what}; at most {COMMIT_ITEMS_MAX} are carried at once")]
struct TooMany {
    what: &'static str,
    count: usize,
}

/// Refuses what would keep the store busy for too long.
pub(super) fn check_advance(advance: &Advance) -> Result<(), StoreError> {
    advance.commits.iter().try_for_each(check_commit)
}

fn check_commit(commit: &Commit) -> Result<(), StoreError> {
    let counts = [
        ("entries", commit.entries.len()),
        ("resources to take", commit.take.len()),
        ("resources to give", commit.give.len()),
        ("workflows to create", commit.create.len()),
        ("signals to send", commit.signals.len()),
    ];
    counts.into_iter().try_for_each(|(what, count)| check_count("commit", what, count))
}

pub(super) fn check_created(create: &[NewWorkflow]) -> Result<(), StoreError> {
    check_count("judge ticks", "workflows to create", create.len())
}

fn check_count(operation: &'static str, what: &'static str, count: usize) -> Result<(), StoreError> {
    if count <= COMMIT_ITEMS_MAX {
        return Ok(());
    }
    Err(StoreError::Unusable {
        operation,
        remedy: "this is a fault of Turnaround's own; split the work into several commits".to_owned(),
        source: Box::new(TooMany { what, count }),
    })
}
