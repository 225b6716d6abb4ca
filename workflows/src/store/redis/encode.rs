//! Packs questions for the scripts: the order here is the order in which they read. What is short stands together in one argument:
//! numbers in binary form, little-endian, and texts that end with a zero byte, as `struct.unpack` reads them. Long texts are
//! arguments of their own, so that no script has to parse them. All ids come first, so that all heads are read at once.

use std::fmt::Write as _;
use std::time::Duration;

use ::redis::Cmd;

use super::entries;
use super::layout::{self, Packed};
use super::limits;
use super::tickets::Tickets;
use crate::clock::Timestamp;
use crate::store::{
    Advance, CLAIM_MAX, COMMITS_MAX, Claim, Commit, Fence, NewWorkflow, Next, QUEUES_MAX, Queue, Resource, Status, WorkflowId, mark,
};

/// What one call carries of an [`Advance`].
pub(super) struct Part<'a> {
    pub(super) lease: Duration,
    pub(super) commits: Vec<&'a Commit>,
    pub(super) renew: &'a [(WorkflowId, Fence)],
    pub(super) hand_back: &'a [(WorkflowId, Fence)],
    pub(super) claim: Option<&'a Claim>,
    /// What was granted and can't be worked on by whoever serves those queues.
    pub(super) unfit: &'a [(WorkflowId, Fence)],
    pub(super) served: &'a [Queue],
}

/// Splits what is too much for one call; at least one part. Claims come last, because what was committed before may be claimed.
pub(super) fn parts(advance: &Advance) -> Vec<Part<'_>> {
    let mut commits = advance.commits.chunks(COMMITS_MAX);
    let mut renew = advance.renew.chunks(limits::RENEWALS_MAX);
    let mut hand_back = advance.hand_back.chunks(limits::RENEWALS_MAX);
    let count = commits.len().max(renew.len()).max(hand_back.len()).max(1);
    let mut take = |_| Part {
        lease: advance.lease,
        commits: commits.next().unwrap_or_default().iter().collect(),
        renew: renew.next().unwrap_or_default(),
        hand_back: hand_back.next().unwrap_or_default(),
        ..Part::empty()
    };
    let mut parts: Vec<Part<'_>> = (0..count).map(&mut take).collect();
    if let Some(last) = parts.last_mut() {
        last.claim = advance.claim.as_ref();
    }
    parts
}

impl Part<'_> {
    pub(super) fn empty() -> Self {
        Part { lease: Duration::ZERO, commits: Vec::new(), renew: &[], hand_back: &[], claim: None, unfit: &[], served: &[] }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.commits.is_empty() && self.renew.is_empty() && self.hand_back.is_empty() && self.claim.is_none() && self.unfit.is_empty()
    }
}

/// `hand`: what is touched when somebody changes what this store holds.
pub(super) fn advance(mut call: Cmd, advance: &Part<'_>, tickets: &Tickets, hand: &str) -> Cmd {
    let (mut packed, mut text) = (Packed::default(), String::new());
    call.arg(millis(advance.lease)).arg(hand);
    call.arg(advance.commits.len()).arg(advance.renew.len()).arg(advance.hand_back.len());
    let leases = || advance.renew.iter().chain(advance.hand_back);
    for id in advance.commits.iter().map(|commit| &commit.id).chain(leases().map(|(id, _)| id)) {
        call.arg(id.as_str());
    }
    for (_, fence) in leases() {
        packed.fence(*fence);
    }
    call.arg(&packed.0);
    for one in &advance.commits {
        commit(&mut call, &mut packed, &mut text, one);
    }
    let (max, lease, worker) = match advance.claim {
        Some(claim) => (i64::from(claim.max.min(CLAIM_MAX)), millis(claim.lease), claim.worker.as_str()),
        None => (-1, 0, ""),
    };
    call.arg(written(&mut text, format_args!("{max} {lease} {}", limits::LOST_LOOKED_MAX)));
    // The holder, but for the fence.
    call.arg(written(&mut text, format_args!("{worker} {}", tickets.own)));
    let queues = advance.claim.map_or(advance.served, served);
    call.arg(queues.len());
    for queue in queues {
        call.arg(queue.as_str());
    }
    call.arg(tickets.lost.len());
    for lost in &tickets.lost {
        call.arg(lost);
    }
    call.arg(advance.unfit.len());
    packed.clear();
    for (id, fence) in advance.unfit {
        call.arg(id.as_str());
        packed.fence(*fence);
    }
    call.arg(&packed.0);
    call
}

/// As many as one call looks into.
pub(super) fn served(claim: &Claim) -> &[Queue] {
    &claim.queues[..claim.queues.len().min(QUEUES_MAX)]
}

/// What is written, in a buffer that is used again and again.
fn written<'a>(text: &'a mut String, arguments: std::fmt::Arguments<'_>) -> &'a str {
    text.clear();
    // Writing to a string does not fail.
    let _ = text.write_fmt(arguments);
    text
}

/// Arguments of the entries of one commit, of one wish, one resource given, one workflow created, one signal sent.
const ENTRIES_ARGUMENTS: usize = 3;
const TAKE_ARGUMENTS: usize = 5;
const GIVE_ARGUMENTS: usize = 3;
const NEW_ARGUMENTS: usize = 6;
const SIGNAL_ARGUMENTS: usize = 2;

fn commit(call: &mut Cmd, packed: &mut Packed, text: &mut String, commit: &Commit) {
    // As `advance.lua` calls them.
    let (next, value) = match commit.next {
        Next::Keep => (0, 0),
        Next::At(at) => (1, limits::keepable(at).millis()),
        Next::Signal => (2, 0),
        Next::End { keep } => (3, millis(keep.min(limits::KEEP_MAX))),
    };
    let has_entries = !commit.entries.is_empty();
    let follow = 1
        + ENTRIES_ARGUMENTS * usize::from(has_entries)
        + usize::from(commit.state.is_some())
        + commit.take.len() * TAKE_ARGUMENTS
        + commit.give.len() * GIVE_ARGUMENTS
        + commit.create.len() * NEW_ARGUMENTS
        + commit.signals.len() * SIGNAL_ARGUMENTS;
    let more = [commit.take.len(), commit.give.len(), commit.create.len(), commit.signals.len()];
    let has_more = commit.consumed > 0 || more.iter().any(|count| *count > 0);
    packed.clear().fence(commit.fence);
    packed.number(commit.expected);
    packed.number(follow as u64);
    packed.count(commit.entries.len());
    packed.small(u8::from(commit.state.is_some()));
    packed.small(u8::from(has_more));
    packed.small(next);
    packed.small(layout::number(commit.status));
    packed.millis(value);
    if has_more {
        more.into_iter().for_each(|count| packed.count(count));
        packed.number(u64::from(commit.consumed));
    }
    call.arg(&packed.0);
    let mark = if has_entries { String::new() } else { mark::of(commit) };
    let newest = commit.entries.last().map(|newest| newest.digest);
    call.arg(packed.tail(newest, commit.traceparent.as_deref(), &mark, commit.queue.as_str(), &commit.headline));
    if has_entries {
        call.arg(field(text, commit));
        entries::pack(&mut packed.0, &commit.entries);
        call.arg(&packed.0);
        text.clear();
        tell(text, commit);
        call.arg(&*text);
    }
    for take in &commit.take {
        resource(call, &take.resource, take.alone);
        call.arg(take.limit).arg(take.from.as_ref().map_or("", WorkflowId::as_str));
    }
    for given in &commit.give {
        resource(call, given, false);
    }
    if let Some(state) = &commit.state {
        call.arg(state);
    }
    for new in &commit.create {
        call.arg(new.id.as_str());
        append_due(call, packed, new);
        append_new(call, packed, text, Timestamp::default(), new);
    }
    for (to, signal) in &commit.signals {
        call.arg(to.as_str()).arg(&signal.body);
    }
}

/// `alone`: nobody takes a share of that budget beside it.
fn resource(call: &mut Cmd, resource: &Resource, alone: bool) {
    match resource {
        Resource::Lock { name } => call.arg("lock").arg(name).arg(""),
        Resource::Budget { name, member } if alone => call.arg("alone").arg(name).arg(member),
        Resource::Budget { name, member } => call.arg("budget").arg(name).arg(member),
    };
}

/// `now`: what the store's clock is supposed to say.
pub(super) fn new_workflows<'a>(mut call: Cmd, now: Option<Timestamp>, new: impl ExactSizeIterator<Item = &'a NewWorkflow> + Clone) -> Cmd {
    // Where all of them are so, the script need not look into any.
    let sent = now.filter(|_| new.clone().all(|new| new.due.is_none() && new.parent.is_none()));
    call.arg(new.len()).arg(sent.map_or(0, Timestamp::millis)).arg(Queue::DEFAULT.as_str());
    for new in new.clone() {
        call.arg(new.id.as_str());
    }
    let (mut packed, mut text) = (Packed::default(), String::new());
    for new in new {
        if sent.is_none() {
            append_due(&mut call, &mut packed, new);
        }
        append_new(&mut call, &mut packed, &mut text, sent.unwrap_or_default(), new);
    }
    call
}

/// The field of its entries.
pub(super) fn field<'a>(text: &'a mut String, commit: &Commit) -> &'a str {
    written(text, format_args!("{}:{}", commit.id, commit.expected + 1))
}

/// Adds what is told of it, as `events.rs` reads it.
pub(super) fn tell(text: &mut String, commit: &Commit) {
    let (id, first, count) = (&commit.id, commit.expected + 1, commit.entries.len());
    let status = commit.status.as_str();
    // Writing to a string does not fail.
    let _ = write!(text, "{id} {first} {count} {status} {}:{}", commit.headline.len(), commit.headline);
}

/// When it is due, and where.
fn append_due(call: &mut Cmd, packed: &mut Packed, new: &NewWorkflow) {
    // In the past is now.
    packed.clear().millis(new.due.map_or(-1, |due| limits::keepable(due).millis()));
    packed.text(Queue::DEFAULT.as_str());
    call.arg(&packed.0);
}

/// All else but its id. `sent`: its times, if the script takes them as they are.
fn append_new(call: &mut Cmd, packed: &mut Packed, text: &mut String, sent: Timestamp, new: &NewWorkflow) {
    packed.clear().head(1, 0, Status::Runnable, sent);
    packed.add_tail(Some(new.entry.digest), new.traceparent.as_deref(), "", Queue::DEFAULT.as_str(), &new.headline);
    call.arg(&packed.0);
    call.arg(packed.document(sent, &new.kind, &new.target, new.parent.as_ref()));
    entries::pack(&mut packed.0, std::slice::from_ref(&new.entry));
    call.arg(&packed.0);
    call.arg(written(text, format_args!(" {}:{}", new.headline.len(), new.headline)));
}

pub(super) fn ticks(
    mut call: Cmd,
    schedule: &str,
    last: Option<Timestamp>,
    judged: Timestamp,
    create: &[NewWorkflow],
) -> Cmd {
    call.arg(schedule);
    match last {
        Some(last) => call.arg(last.millis()),
        None => call.arg(""),
    };
    call.arg(judged.millis());
    call.arg(create.len());
    let (mut packed, mut text) = (Packed::default(), String::new());
    for new in create {
        call.arg(new.id.as_str());
        append_due(&mut call, &mut packed, new);
        append_new(&mut call, &mut packed, &mut text, Timestamp::default(), new);
    }
    call
}

fn millis(length: Duration) -> i64 {
    i64::try_from(length.min(limits::KEEP_MAX).as_millis()).unwrap_or(i64::MAX)
}
