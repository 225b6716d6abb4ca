//! All that the memory store keeps, and what each operation does to it. Nothing here waits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::record::{Lease, Record, Turn};
use super::resources::{Pool, Resources};
use super::standing::Watched;
use crate::clock::Timestamp;
use crate::store::high_water::{HighWater, Standing};
use crate::store::{
    Advance, Advanced, Backlog, CLAIM_MAX, Claim, Claimed, Commit, Committed, Created, Document, Fence, Holding,
    INBOX_SIGNALS_MAX, NewWorkflow, Next, PAGE_MAX, QUEUES_MAX, Query, Queue, Resource, Scope, Signalled, Status, StoreEvent, StoredEntry,
    StoredSignal, Waiting, WorkflowId, limits, mark,
};

#[derive(Debug, Default)]
pub(super) struct Shelf {
    records: BTreeMap<WorkflowId, Record>,
    due: BTreeMap<Queue, BTreeSet<(Timestamp, WorkflowId)>>,
    leases: BTreeSet<(Timestamp, WorkflowId)>,
    resources: Resources,
    /// The newest fencing token.
    fence: u64,
    ticks: BTreeMap<String, Timestamp>,
    events: VecDeque<StoreEvent>,
    /// Number of the newest event.
    events_end: u64,
    pub(super) watched: Watched,
    rings: BTreeMap<Queue, usize>,
    /// Rings of the operation that runs.
    new_rings: BTreeMap<Queue, usize>,
}

impl Shelf {
    pub(super) fn is_halted(&self) -> bool {
        self.watched.is_halted()
    }

    /// Lifts the halt: no lease stands, every open workflow is due, every ledger is at `now`. None: there is no halt.
    pub(super) fn accept(&mut self, remembered: &HighWater, now: Timestamp) -> Option<Standing> {
        self.watched.lift(remembered, now).then_some(())?;
        let is_to_be_looked_at = |record: &Record| !record.is_ended() && (record.status != Status::Quarantined || record.fence().is_some());
        let open: Vec<_> = self.records.iter().filter(|(_, record)| is_to_be_looked_at(record)).map(|(id, _)| id.clone()).collect();
        // Whoever has a lease loses it, and one that is set apart had mail.
        for id in open {
            if !self.is_due(&id, now) {
                self.make_due(&id, now, now);
            }
        }
        for judged in self.ticks.values_mut() {
            *judged = now.max(*judged);
        }
        Some(self.watched.standing(Some(&remembered.witness)))
    }

    // --- workflows ---

    pub(super) fn create(&mut self, new: NewWorkflow, now: Timestamp) -> Created {
        if self.records.contains_key(&new.id) {
            return Created::Existing;
        }
        let id = new.id.clone();
        let due = new.due.map_or(now, limits::keepable).max(now);
        let record = Record::new(new, now);
        self.records.insert(id.clone(), record);
        self.publish_newest(&id, 1);
        self.make_due(&id, due, now);
        Created::New
    }

    pub(super) fn advance(&mut self, advance: Advance, now: Timestamp) -> Advanced {
        let lease_until = now + advance.lease;
        let commits = advance.commits.into_iter().map(|commit| self.commit(commit, lease_until, now)).collect();
        let renewed =
            advance.renew.into_iter().map(|(id, fence)| self.renew(&id, fence, lease_until)).collect();
        for (id, fence) in advance.hand_back {
            if self.records.get(&id).is_some_and(|record| record.fence() == Some(fence)) {
                self.make_due(&id, now, now);
            }
        }
        let Some(claim) = advance.claim else { return Advanced { now, commits, renewed, claimed: Vec::new(), next: None } };
        let claimed = self.claim(&claim, now);
        let next = self.next_look(&claim.queues);
        let is_full = claimed.len() >= claim.max.min(CLAIM_MAX) as usize;
        for queue in &claim.queues {
            if is_full && !self.new_rings.contains_key(queue) {
                // Who claims has no place left, and will not hear of what is due then: somebody else has to.
                self.ring(queue);
            } else if !is_full && next.is_none_or(|next| next > now) {
                // Nothing is left that a ring could be about.
                self.rings.remove(queue);
                self.new_rings.remove(queue);
            }
        }
        Advanced { now, commits, renewed, claimed, next }
    }

    fn commit(&mut self, commit: Commit, lease_until: Timestamp, now: Timestamp) -> Committed {
        let id = commit.id.clone();
        let Some(record) = self.records.get(&id) else { return Committed::Fenced };
        let holds = record.fence() == Some(commit.fence);
        if record.has(&commit) {
            return match commit.next {
                Next::Keep if holds => self.keep(&id, lease_until),
                Next::Keep => Committed::Fenced,
                Next::At(_) | Next::Signal | Next::End { .. } => {
                    Committed::Done { lease_until: None, signals: Vec::new() }
                }
            };
        }
        if !holds && !cfg!(feature = "bug-commit-without-fence") {
            return Committed::Fenced;
        }
        if record.seq() != commit.expected {
            return Committed::Conflict { seq: record.seq() };
        }
        let is_open = |holder: &WorkflowId| self.records.get(holder).is_some_and(|record| !record.is_ended());
        if let Some((refused, in_line)) = self.resources.refused(&id, &commit.take, is_open) {
            if let (true, Committed::Busy { resource, .. }) = (in_line, &refused) {
                self.resources.wait(&id, resource, now);
            }
            return refused;
        }
        self.write_down(&id, &commit, now);
        self.move_resources(&id, &commit, now);
        for child in commit.create {
            self.create(child, now);
        }
        // The workflow itself, if it ends with this commit, gets no more signals.
        if let Next::End { keep } = commit.next {
            self.end(&id, keep, now);
        }
        for (to, signal) in commit.signals {
            self.signal_within(&to, signal, now);
        }
        match commit.next {
            Next::Keep => return self.keep(&id, lease_until),
            Next::At(at) => self.park(&id, Some(at), now),
            Next::Signal => self.park(&id, None, now),
            Next::End { .. } => {}
        }
        Committed::Done { lease_until: None, signals: Vec::new() }
    }

    fn write_down(&mut self, id: &WorkflowId, commit: &Commit, now: Timestamp) {
        let Some(record) = self.records.get_mut(id) else { return };
        record.inbox.drain(..record.inbox.len().min(commit.consumed as usize));
        record.journal.extend(commit.entries.iter().cloned());
        if commit.state.is_some() {
            record.state.clone_from(&commit.state);
        }
        record.queue.clone_from(&commit.queue);
        record.tries = 0;
        record.status = commit.status;
        record.headline.clone_from(&commit.headline);
        record.traceparent.clone_from(&commit.traceparent);
        record.updated = now;
        record.mark = commit.entries.is_empty().then(|| mark::of(commit));
        self.publish_newest(id, commit.entries.len());
    }

    fn move_resources(&mut self, id: &WorkflowId, commit: &Commit, now: Timestamp) {
        for take in &commit.take {
            self.resources.take(id, take);
            if let (Resource::Lock { name }, Some(record)) = (&take.resource, self.records.get_mut(id)) {
                record.locks.insert(name.clone());
            }
        }
        for given in &commit.give {
            self.give(id, given, now);
        }
    }

    fn give(&mut self, id: &WorkflowId, resource: &Resource, now: Timestamp) {
        if let (Resource::Lock { name }, Some(record)) = (resource, self.records.get_mut(id)) {
            record.locks.remove(name);
        }
        if let Some(pool) = self.resources.give(id, resource) {
            self.wake_one(&pool, now);
        }
    }

    /// Wakes the longest waiter, passing over those that have ended since.
    fn wake_one(&mut self, pool: &Pool, now: Timestamp) {
        for _ in 0..limits::WAITERS_LOOKED_MAX {
            let Some(waiter) = self.resources.next_waiter(pool) else { return };
            match self.records.get_mut(&waiter) {
                Some(Record { turn: Turn::Leased(_), woken, .. }) => {
                    *woken = true;
                    return;
                }
                Some(Record { turn: Turn::Due(..) | Turn::Asleep, .. }) => return self.make_due_now(&waiter, now),
                Some(Record { turn: Turn::Ended { .. }, .. }) | None => {}
            }
        }
    }

    fn keep(&mut self, id: &WorkflowId, until: Timestamp) -> Committed {
        self.set_lease_end(id, until);
        let signals = self.records.get(id).map(Record::unread).unwrap_or_default();
        Committed::Done { lease_until: Some(until), signals }
    }

    /// Ends the lease. What has arrived meanwhile makes the workflow due now.
    fn park(&mut self, id: &WorkflowId, at: Option<Timestamp>, now: Timestamp) {
        let Some(record) = self.records.get_mut(id) else { return };
        let at = if record.woken || !record.inbox.is_empty() { Some(now) } else { at };
        record.woken = false;
        match at {
            Some(at) => self.make_due(id, limits::keepable(at).max(now), now),
            None => self.set_turn(id, Turn::Asleep),
        }
    }

    fn end(&mut self, id: &WorkflowId, keep: Duration, now: Timestamp) {
        self.set_turn(id, Turn::Ended { expires: now + keep.min(limits::KEEP_MAX) });
        let Some(record) = self.records.get_mut(id) else { return };
        record.inbox.clear();
        for name in std::mem::take(&mut record.locks) {
            self.give(id, &Resource::Lock { name }, now);
        }
    }

    fn renew(&mut self, id: &WorkflowId, fence: Fence, until: Timestamp) -> Option<Timestamp> {
        (self.records.get(id)?.fence() == Some(fence)).then(|| self.set_lease_end(id, until))?;
        Some(until)
    }

    fn claim(&mut self, claim: &Claim, now: Timestamp) -> Vec<Claimed> {
        let max = claim.max.min(CLAIM_MAX) as usize;
        let come = |(at, _): &&(Timestamp, WorkflowId)| *at <= now;
        let expired: Vec<_> = self.leases.iter().take_while(come).take(max).cloned().collect();
        let mut claimed: Vec<_> = expired.into_iter().filter_map(|(_, id)| self.grant(id, claim, true, now)).collect();
        let served = claim.queues.iter().take(QUEUES_MAX).filter_map(|queue| self.due.get(queue));
        let mut due: Vec<_> = served.flat_map(|due| due.iter().take_while(come).take(max)).cloned().collect();
        due.sort();
        due.truncate(max - claimed.len());
        claimed.extend(due.into_iter().filter_map(|(_, id)| self.grant(id, claim, false, now)));
        claimed
    }

    /// None if it waits for workers of another queue. `expired`: its last holder is presumed dead.
    fn grant(&mut self, id: WorkflowId, claim: &Claim, expired: bool, now: Timestamp) -> Option<Claimed> {
        if !claim.queues.iter().take(QUEUES_MAX).any(|queue| self.records.get(&id).is_some_and(|record| record.queue == *queue)) {
            self.make_due(&id, now, now);
            return None;
        }
        self.fence += 1;
        let (fence, until) = (Fence(self.fence), now + claim.lease);
        self.set_turn(&id, Turn::Leased(Lease { worker: claim.worker.clone(), fence, until }));
        let record = self.records.get_mut(&id)?;
        record.woken = false;
        record.tries += u32::from(expired);
        Some(Claimed {
            document: Document { state: None, ..record.document(&id) },
            journal: record.journal.clone(),
            tries: record.tries,
            damage: None,
            fence,
            lease_until: until,
            signals: record.unread(),
        })
    }

    pub(super) fn signal(&mut self, id: &WorkflowId, signal: StoredSignal, now: Timestamp) -> Signalled {
        match self.records.get(id) {
            None => Signalled::Missing,
            Some(record) if record.is_ended() => Signalled::Ended,
            // A repeat, because the answer was lost.
            Some(record) if record.inbox.contains(&signal) => Signalled::Kept,
            Some(record) if record.inbox.len() >= INBOX_SIGNALS_MAX as usize => Signalled::Full,
            Some(_) => {
                self.signal_within(id, signal, now);
                self.watched.revision += 1;
                Signalled::Kept
            }
        }
    }

    fn signal_within(&mut self, id: &WorkflowId, signal: StoredSignal, now: Timestamp) {
        let Some(record) = self.records.get_mut(id) else { return };
        if record.is_ended() {
            return;
        }
        record.inbox.push_back(signal);
        if record.fence().is_none() {
            self.make_due_now(id, now);
        }
    }

    pub(super) fn release_budget(&mut self, name: &str, member: &str, now: Timestamp) -> bool {
        let Some(holder) = self.resources.share(name, member) else { return false };
        if self.records.get(holder).is_some_and(|record| !record.is_ended()) {
            return false;
        }
        let pool = self.resources.free_share(name, member);
        self.wake_one(&pool, now);
        self.watched.revision += 1;
        true
    }

    pub(super) fn ledgers(&self) -> BTreeSet<String> {
        self.ticks.keys().cloned().collect()
    }

    pub(super) fn last_tick(&self, schedule: &str) -> Option<Timestamp> {
        self.ticks.get(schedule).copied()
    }

    pub(super) fn judge_ticks(
        &mut self,
        schedule: &str,
        last: Option<Timestamp>,
        judged: Timestamp,
        create: Vec<NewWorkflow>,
        now: Timestamp,
    ) -> bool {
        if self.last_tick(schedule) != last {
            return false;
        }
        self.ticks.insert(schedule.to_owned(), judged);
        self.watched.revision += 1;
        for new in create {
            self.create(new, now);
        }
        true
    }

    pub(super) fn sweep(&mut self, now: Timestamp) -> u32 {
        let mut expired: Vec<_> = self
            .records
            .iter()
            .filter_map(|(id, record)| match record.turn {
                Turn::Ended { expires } if expires <= now => Some((expires, id.clone())),
                Turn::Ended { .. } | Turn::Leased(_) | Turn::Due(..) | Turn::Asleep => None,
            })
            .collect();
        expired.sort();
        expired.truncate(limits::SWEEP_MAX);
        for (_, id) in &expired {
            self.records.remove(id);
        }
        u32::try_from(expired.len()).unwrap_or(u32::MAX)
    }

    // --- reading ---

    pub(super) fn document(&self, id: &WorkflowId) -> Option<Document> {
        Some(self.records.get(id)?.document(id))
    }

    pub(super) fn journal(&self, id: &WorkflowId, from: u64, limit: u32) -> Vec<StoredEntry> {
        let skip = usize::try_from(from.saturating_sub(1)).unwrap_or(usize::MAX);
        let entries = self.records.get(id).map(|record| record.journal.as_slice()).unwrap_or_default();
        entries.iter().skip(skip).take(limit as usize).cloned().collect()
    }

    pub(super) fn list(&self, query: &Query) -> Vec<Document> {
        let wanted = |record: &Record| {
            let in_scope = match query.scope {
                Scope::Open => !record.is_ended(),
                Scope::Ended => record.is_ended(),
                Scope::All => true,
            };
            in_scope
                && query.parent.as_ref().is_none_or(|parent| record.parent.as_ref() == Some(parent))
                && query.kind.as_ref().is_none_or(|kind| record.kind == *kind)
                && query.target.as_ref().is_none_or(|target| record.target == *target)
        };
        let mut found: Vec<_> = self.records.iter().filter(|(_, record)| wanted(record)).collect();
        found.sort_by_key(|(id, record)| std::cmp::Reverse((record.created, *id)));
        let page = found.into_iter().skip(query.offset as usize).take(query.limit.min(PAGE_MAX) as usize);
        page.map(|(id, record)| record.document(id)).collect()
    }

    pub(super) fn counts(&self) -> Vec<(Status, u64)> {
        let open = || self.records.values().filter(|record| !record.is_ended());
        let count = |status| (status, open().filter(|record| record.status == status).count() as u64);
        Status::ALL.into_iter().map(count).filter(|(_, count)| *count > 0).collect()
    }

    pub(super) fn backlog(&self, queues: &[Queue], before: Timestamp) -> Backlog {
        let waiting = |all: &BTreeSet<(Timestamp, WorkflowId)>| Waiting {
            count: all.iter().take_while(|(at, _)| *at <= before).count() as u64,
            since: all.first().map(|(at, _)| *at).filter(|at| *at <= before),
        };
        let expired = waiting(&self.leases);
        let due = queues.iter().take(QUEUES_MAX).map(|queue| self.due.get(queue).map(waiting).unwrap_or_default()).collect();
        Backlog { leased: self.leases.len() as u64 - expired.count, expired, due }
    }

    pub(super) fn events_end(&self) -> u64 {
        self.events_end
    }

    pub(super) fn events_after(&self, after: u64) -> Option<Vec<StoreEvent>> {
        let oldest = self.events_end - self.events.len() as u64;
        let skip = usize::try_from(after.saturating_sub(oldest)).unwrap_or(usize::MAX);
        let told = self.events.iter().skip(skip).filter_map(|event| self.as_it_is_now(event));
        let page: Vec<_> = told.take(limits::EVENTS_PAGE_MAX).collect();
        (!page.is_empty()).then_some(page)
    }

    /// Of a workflow that is swept there is nothing more to tell; if there is another one of that name, its entries
    /// are told.
    fn as_it_is_now(&self, event: &StoreEvent) -> Option<StoreEvent> {
        let record = self.records.get(&event.workflow)?;
        let entry = record.journal.get(usize::try_from(event.seq - 1).ok()?)?.clone();
        let (kind, target) = (record.kind.clone(), record.target.clone());
        Some(StoreEvent { kind, target, entry, ..event.clone() })
    }

    pub(super) fn holdings(&self) -> Vec<Holding> {
        self.resources.holdings()
    }

    // --- the bell ---

    pub(super) fn ring(&mut self, queue: &Queue) {
        *self.new_rings.entry(queue.clone()).or_default() += 1;
    }

    pub(super) fn take_ring(&mut self, queues: &[Queue]) -> Option<Queue> {
        let rang = queues.iter().find(|queue| self.rings.contains_key(queue))?.clone();
        let left = self.rings.remove(&rang)? - 1;
        if left > 0 {
            self.rings.insert(rang.clone(), left);
        }
        Some(rang)
    }

    /// Adds what the operation rang. True if somebody may be woken.
    pub(super) fn settle_bell(&mut self) -> bool {
        let rang = std::mem::take(&mut self.new_rings);
        for (queue, rings) in &rang {
            let before = self.rings.entry(queue.clone()).or_default();
            *before = (*before + rings).min(limits::BELL_RINGS_MAX);
        }
        !rang.is_empty()
    }

    // --- within ---

    /// The one place where a workflow changes between leased, due, asleep and ended.
    fn set_turn(&mut self, id: &WorkflowId, turn: Turn) {
        let Some(record) = self.records.get_mut(id) else { return };
        match &record.turn {
            Turn::Leased(lease) => {
                self.leases.remove(&(lease.until, id.clone()));
            }
            Turn::Due(queue, at) => {
                if let Some(due) = self.due.get_mut(queue) {
                    due.remove(&(*at, id.clone()));
                }
            }
            Turn::Asleep | Turn::Ended { .. } => {}
        }
        match &turn {
            Turn::Leased(lease) => {
                self.leases.insert((lease.until, id.clone()));
            }
            Turn::Due(queue, at) => {
                self.due.entry(queue.clone()).or_default().insert((*at, id.clone()));
            }
            Turn::Asleep | Turn::Ended { .. } => {}
        }
        record.turn = turn;
    }

    fn set_lease_end(&mut self, id: &WorkflowId, until: Timestamp) {
        let Some(Record { turn: Turn::Leased(lease), .. }) = self.records.get(id) else { return };
        let lease = Lease { worker: lease.worker.clone(), fence: lease.fence, until };
        self.set_turn(id, Turn::Leased(lease));
    }

    /// Due at `at`; rings if that is now, or earlier than all else that is due.
    fn make_due(&mut self, id: &WorkflowId, at: Timestamp, now: Timestamp) {
        let Some(queue) = self.records.get(id).map(|record| record.queue.clone()) else { return };
        self.set_turn(id, Turn::Due(queue.clone(), at));
        let first = self.due.get(&queue).and_then(BTreeSet::first);
        if at <= now || first.is_some_and(|(_, first)| first == id) {
            self.ring(&queue);
        }
    }

    /// Due now, unless it is due already.
    fn make_due_now(&mut self, id: &WorkflowId, now: Timestamp) {
        if !self.is_due(id, now) {
            self.make_due(id, now, now);
        }
    }

    fn is_due(&self, id: &WorkflowId, now: Timestamp) -> bool {
        matches!(self.records.get(id), Some(Record { turn: Turn::Due(_, at), .. }) if *at <= now)
    }

    fn next_look(&self, queues: &[Queue]) -> Option<Timestamp> {
        let due = queues.iter().filter_map(|queue| self.due.get(queue)?.first());
        due.chain(self.leases.first()).map(|(at, _)| *at).min()
    }

    fn publish_newest(&mut self, id: &WorkflowId, entries: usize) {
        let Some(record) = self.records.get(id) else { return };
        self.watched.revision += u64::from(entries > 0);
        let first = record.journal.len() - entries;
        for (place, entry) in record.journal.iter().enumerate().skip(first) {
            self.events_end += 1;
            self.events.push_back(StoreEvent {
                cursor: self.events_end.to_string(),
                workflow: id.clone(),
                kind: record.kind.clone(),
                target: record.target.clone(),
                status: record.status,
                headline: record.headline.clone(),
                seq: place as u64 + 1,
                entry: entry.clone(),
            });
        }
        while self.events.len() > limits::EVENTS_KEPT {
            self.events.pop_front();
        }
    }
}
