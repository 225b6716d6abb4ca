//! What every store promises, as checks that each implementation is held to.
//!
//! A check is given an empty store and a way to let the store's time pass. It panics where a promise is broken.
#![allow(clippy::unwrap_used, reason = "a check that can't go on has failed")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};

use super::{
    Advance, Advanced, Claim, Claimed, Commit, Committed, Created, Digest, Fence, NewWorkflow, Next, Queue, Resource, Signalled,
    Status, Store, StoredEntry, StoredSignal, Take, WorkflowId,
};
use crate::clock::Timestamp;

mod bell_and_events;
mod journal;
mod leases;
mod listings;
mod resources;
mod schedules;
mod signals;
mod standing;

pub use bell_and_events::*;
pub use journal::*;
pub use leases::*;
pub use listings::*;
pub use resources::*;
pub use schedules::*;
pub use signals::*;
pub use standing::*;

/// An empty store, and its time.
#[async_trait]
pub trait Bed: Send + Sync {
    fn store(&self) -> Arc<dyn Store>;

    /// On return the store's clock has moved on by `by`.
    async fn pass(&self, by: Duration);
}

/// Calls `$run!` with the names of all checks.
#[macro_export]
macro_rules! for_each_store_check {
    ($run:ident) => {
        $run! {
            a_workflow_is_created_once
            a_due_workflow_is_claimed_by_one_worker
            a_workflow_is_not_claimed_before_it_is_due
            a_commit_appends_and_keeps_the_lease
            the_journal_is_read_in_pages_and_its_chain_holds
            an_empty_advance_is_a_look_at_the_clock
            a_commit_on_another_revision_is_a_conflict
            a_repeated_commit_that_keeps_the_lease_stands_once
            a_repeated_commit_that_parks_stands_once
            a_repeated_commit_that_ends_stands_once
            a_repeated_commit_without_entries_stands_once
            a_repeat_after_somebody_else_was_granted_the_lease_does_not_give_it_back
            many_commits_of_one_call_are_judged_apart_and_in_order
            whatever_texts_are_kept_come_back
            a_lease_that_expired_unnoticed_may_still_commit
            a_worker_that_paused_for_too_long_is_fenced
            a_claim_hands_out_the_whole_journal
            leases_that_expire_without_a_commit_are_counted
            a_workflow_waits_for_workers_of_its_queue
            what_has_been_due_longest_is_claimed_first_whatever_its_queue
            a_renewed_lease_does_not_expire
            a_lost_lease_is_not_renewed
            a_lease_that_was_handed_back_is_due_at_once
            expired_leases_are_claimed_before_what_is_due
            what_has_been_due_longest_is_claimed_first
            a_thousand_due_at_once_are_each_claimed_once
            fences_grow_with_every_grant
            a_busy_lock_refuses_all_and_wakes_its_waiter
            a_lock_freed_before_the_waiter_parks_makes_it_due
            what_a_workflow_frees_itself_makes_it_due_if_it_waited_for_that
            the_longest_waiter_is_woken_first
            a_waiter_that_ended_wakes_the_next_one
            ending_frees_locks_and_keeps_budget_shares
            a_budget_has_so_many_members_and_no_more
            beside_a_share_that_is_held_alone_nobody_has_one
            a_share_is_taken_over_only_from_whoever_is_named_and_has_ended
            a_budget_share_of_an_open_workflow_is_not_released
            a_signal_wakes_whom_it_is_for
            a_signal_that_arrives_before_the_park_is_not_slept_through
            signals_are_consumed_in_order_and_once
            signals_for_nobody_are_refused
            an_inbox_has_a_bound
            a_repeated_signal_is_kept_once
            a_commit_sends_signals_and_creates_children
            ticks_are_judged_by_one_of_two_daemons
            ended_workflows_are_swept_and_may_be_created_anew
            listings_are_filtered_and_newest_first
            open_workflows_are_counted_by_status
            what_nobody_takes_is_counted_by_queue
            a_bell_wakes_whoever_waits
            a_ring_waits_for_whoever_comes_later
            rings_about_nothing_are_forgotten
            whoever_has_no_place_left_leaves_a_ring_for_others
            events_are_told_in_order_and_from_a_cursor
            what_one_call_did_is_told_event_by_event
            waiting_for_events_ends_when_one_happens
            a_store_that_lost_nothing_is_never_halted
            what_a_witness_misses_halts_the_store
            a_halted_store_hands_out_and_takes_nothing
            what_a_person_accepts_begins_anew_under_new_leases
            what_was_accepted_by_one_is_accepted_by_all
        }
    };
}

/// Longer than any check takes.
const LONG: Duration = Duration::from_secs(600);
/// Short enough to wait for, in real time where the store is real.
const SHORT: Duration = Duration::from_millis(30);
/// Longer than a few calls take, also on a machine with better things to do.
const SOON: Duration = Duration::from_millis(1_500);

fn id(name: &str) -> WorkflowId {
    name.parse().expect("a workflow id")
}

/// The entry that follows the one whose digest is `head` (none: the first).
fn entry(head: Option<Digest>, body: &str) -> StoredEntry {
    let head = head.map(|head| head.to_string()).unwrap_or_default();
    StoredEntry { digest: Digest(Sha256::new().chain_update(head).chain_update(body).finalize().into()), body: body.to_owned() }
}

fn signal(body: &str) -> StoredSignal {
    StoredSignal { body: body.to_owned() }
}

fn new(name: &str) -> NewWorkflow {
    NewWorkflow {
        id: id(name),
        kind: "probe".to_owned(),
        target: "site".to_owned(),
        parent: None,
        headline: format!("{name} begins"),
        entry: entry(None, &format!("{{\"created\":\"{name}\"}}")),
        traceparent: None,
        due: None,
    }
}

fn lock(name: &str) -> Take {
    Take::new(Resource::Lock { name: name.to_owned() }, 1)
}

fn share(name: &str, member: &str, limit: u32) -> Take {
    Take::new(Resource::Budget { name: name.to_owned(), member: member.to_owned() }, limit)
}

/// A commit of one entry by whoever holds `claimed`.
fn commit(claimed: &Claimed, next: Next) -> Commit {
    let document = &claimed.document;
    Commit {
        id: document.id.clone(),
        fence: claimed.fence,
        expected: document.seq,
        entries: vec![entry(Some(document.head), &format!("{{\"after\":{}}}", document.seq))],
        // As the engine does it.
        state: matches!(next, Next::At(_) | Next::Signal).then(|| format!("{{\"steps\":{}}}", document.seq)),
        status: match next {
            Next::Keep => Status::Runnable,
            Next::At(_) | Next::Signal => Status::Waiting,
            Next::End { .. } => Status::Succeeded,
        },
        headline: format!("{} goes on", document.id),
        consumed: 0,
        take: Vec::new(),
        give: Vec::new(),
        create: Vec::new(),
        signals: Vec::new(),
        traceparent: None,
        next,
        queue: Queue::DEFAULT,
    }
}

/// The same without an entry.
fn bare_commit(claimed: &Claimed, next: Next) -> Commit {
    Commit { entries: Vec::new(), state: None, ..commit(claimed, next) }
}

/// `claimed` as it is after `commit`, kept.
fn after(claimed: &Claimed, commit: &Commit) -> Claimed {
    let mut claimed = claimed.clone();
    claimed.document.seq += commit.entries.len() as u64;
    if let Some(last) = commit.entries.last() {
        claimed.document.head = last.digest;
    }
    claimed
}

fn done() -> Committed {
    Committed::Done { lease_until: None, signals: Vec::new() }
}

fn is_done(committed: &Committed) -> bool {
    matches!(committed, Committed::Done { .. })
}

/// The store with short words for what the checks do all the time.
struct Desk {
    store: Arc<dyn Store>,
}

impl Desk {
    fn at(bed: &dyn Bed) -> Desk {
        Desk { store: bed.store() }
    }

    async fn now(&self) -> Timestamp {
        self.store.now().await.expect("the time")
    }

    async fn create(&self, name: &str) {
        let created = self.store.create(new(name)).await.expect("a creation");
        assert_eq!(created, Created::New, "{name}");
    }

    async fn advance(&self, advance: Advance) -> Advanced {
        self.store.advance(&advance).await.expect("an advance")
    }

    async fn claim_for(&self, max: u32, lease: Duration) -> Vec<Claimed> {
        let claim = Claim { max, lease, worker: "host:1".to_owned(), queues: vec![Queue::DEFAULT] };
        self.advance(Advance { claim: Some(claim), ..Advance::default() }).await.claimed
    }

    async fn claim(&self, max: u32) -> Vec<Claimed> {
        self.claim_for(max, LONG).await
    }

    /// The one workflow that is due.
    async fn claim_only(&self) -> Claimed {
        let mut claimed = self.claim(10).await;
        assert_eq!(claimed.len(), 1, "{claimed:#?}");
        claimed.remove(0)
    }

    async fn claim_named(&self, name: &str) -> Claimed {
        let claimed = self.claim_only().await;
        assert_eq!(claimed.document.id, id(name));
        claimed
    }

    /// Creates `name` and claims it. Nothing else may be due.
    async fn begin(&self, name: &str) -> Claimed {
        self.create(name).await;
        self.claim_named(name).await
    }

    async fn commit(&self, commit: Commit) -> Committed {
        let advance = Advance { lease: LONG, commits: vec![commit], ..Advance::default() };
        self.advance(advance).await.commits.remove(0)
    }

    /// Commits what must be accepted; the workflow as it is then.
    async fn must(&self, claimed: &Claimed, commit: Commit) -> Claimed {
        let after = after(claimed, &commit);
        let committed = self.commit(commit).await;
        assert!(is_done(&committed), "{committed:?}");
        after
    }

    async fn signal(&self, name: &str, body: &str) -> Signalled {
        self.store.signal(&id(name), signal(body)).await.expect("a signal")
    }

    async fn names(&self, claimed: &[Claimed]) -> Vec<String> {
        claimed.iter().map(|claimed| claimed.document.id.to_string()).collect()
    }

    async fn due_names(&self) -> Vec<String> {
        self.names(&self.claim(100).await).await
    }

    async fn rang(&self) -> bool {
        // A ring that is there is taken at once; the time-out only bounds a missing one.
        let waited = tokio::time::timeout(SHORT, self.store.wait_for_bell(&[Queue::DEFAULT], LONG)).await;
        waited.is_ok_and(|rang| rang.is_ok())
    }
}
