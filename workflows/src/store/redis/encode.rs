//! Packs questions for the scripts: the order here is the order in which they read. What is short stands together in one argument,
//! the head: numbers in binary form, little-endian, and texts that end with a zero byte, as `struct.unpack` reads them. Long texts are
//! arguments of their own, so that no script has to parse them.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use ::redis::Cmd;

use super::limits;
use super::tickets::Tickets;
use crate::clock::Timestamp;
use crate::store::{
    Advance, CLAIM_MAX, COMMITS_MAX, Claim, Commit, Fence, NewWorkflow, Next, QUEUES_MAX, Resource, StoredEntry, WorkflowId, mark,
};

/// What one call carries of an [`Advance`].
pub(super) struct Part<'a> {
    pub(super) lease: Duration,
    pub(super) commits: &'a [Commit],
    pub(super) renew: &'a [(WorkflowId, Fence)],
    pub(super) hand_back: &'a [(WorkflowId, Fence)],
    pub(super) claim: Option<&'a Claim>,
}

/// Splits what is too much for one call; at least one part. Claims come last, because what was committed before may be claimed.
pub(super) fn parts(advance: &Advance) -> Vec<Part<'_>> {
    let mut commits = advance.commits.chunks(COMMITS_MAX);
    let mut renew = advance.renew.chunks(limits::RENEWALS_MAX);
    let mut hand_back = advance.hand_back.chunks(limits::RENEWALS_MAX);
    let count = commits.len().max(renew.len()).max(hand_back.len()).max(1);
    let mut take = |_| Part {
        lease: advance.lease,
        commits: commits.next().unwrap_or_default(),
        renew: renew.next().unwrap_or_default(),
        hand_back: hand_back.next().unwrap_or_default(),
        claim: None,
    };
    let mut parts: Vec<Part<'_>> = (0..count).map(&mut take).collect();
    if let Some(last) = parts.last_mut() {
        last.claim = advance.claim.as_ref();
    }
    parts
}

pub(super) fn advance(mut call: Cmd, advance: &Part<'_>, tickets: &Tickets) -> Cmd {
    let (mut packed, mut text) = (Head::default(), String::new());
    call.arg(millis(advance.lease));
    call.arg(advance.commits.len());
    for one in advance.commits {
        commit(&mut call, &mut packed, &mut text, one);
    }
    leases(&mut call, &mut text, advance.renew);
    leases(&mut call, &mut text, advance.hand_back);
    let (max, lease, worker) = match advance.claim {
        Some(claim) => (i64::from(claim.max.min(CLAIM_MAX)), millis(claim.lease), claim.worker.as_str()),
        None => (-1, 0, ""),
    };
    call.arg(head(&mut text, format_args!("{max} {lease} {}", limits::LOST_LOOKED_MAX)));
    call.arg(head(&mut text, format_args!("{worker} {}", tickets.own)));
    let queues = advance.claim.map(|claim| claim.queues.as_slice()).unwrap_or_default();
    let queues = &queues[..queues.len().min(QUEUES_MAX)];
    call.arg(queues.len());
    for queue in queues {
        call.arg(queue.as_str());
    }
    call.arg(tickets.lost.len());
    for lost in &tickets.lost {
        call.arg(lost);
    }
    call
}

/// `written` in a buffer that is used again and again.
fn head<'a>(text: &'a mut String, written: std::fmt::Arguments<'_>) -> &'a str {
    text.clear();
    // Writing to a string does not fail.
    let _ = text.write_fmt(written);
    text
}

fn leases(call: &mut Cmd, text: &mut String, leases: &[(WorkflowId, Fence)]) {
    call.arg(leases.len());
    for (id, fence) in leases {
        call.arg(head(text, format_args!("{id} {}", fence.0)));
    }
}

/// Arguments of one wish, one resource given, one workflow created, one signal sent.
const TAKE_ARGUMENTS: usize = 4;
const GIVE_ARGUMENTS: usize = 3;
const NEW_ARGUMENTS: usize = 5;
const SIGNAL_ARGUMENTS: usize = 2;

/// A head, in a buffer that is used again and again.
#[derive(Default)]
struct Head(Vec<u8>);

impl Head {
    /// A count of what one commit carries, at most [`limits::COMMIT_ITEMS_MAX`].
    fn count(&mut self, count: usize) {
        self.0.extend(u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes());
    }

    fn number(&mut self, number: u32) {
        self.0.extend(number.to_le_bytes());
    }

    fn small(&mut self, number: u8) {
        self.0.push(number);
    }

    /// Exact, as everything that stores keep: see [`limits::TIME_MAX`] and [`limits::KEEP_MAX`].
    fn millis(&mut self, millis: i64) {
        #[allow(clippy::cast_precision_loss, reason = "below 2^53")]
        self.0.extend((millis as f64).to_le_bytes());
    }

    /// Nothing that belongs in a head has a zero byte; what has one is left out.
    fn text(&mut self, text: &str) {
        if !text.contains('\0') {
            self.0.extend(text.as_bytes());
        }
        self.0.push(0);
    }

    fn decimal(&mut self, number: u64) {
        // Writing to memory does not fail.
        let _ = write!(self.0, "{number}");
        self.0.push(0);
    }
}

fn commit(call: &mut Cmd, head: &mut Head, text: &mut String, commit: &Commit) {
    // As `advance.lua` calls them.
    let (next, value) = match commit.next {
        Next::Keep => (0, 0),
        Next::At(at) => (1, limits::keepable(at).millis()),
        Next::Signal => (2, 0),
        Next::End { keep } => (3, millis(keep.min(limits::KEEP_MAX))),
    };
    let follow = 1
        + usize::from(commit.state.is_some())
        + commit.entries.len()
        + commit.take.len() * TAKE_ARGUMENTS
        + commit.give.len() * GIVE_ARGUMENTS
        + commit.create.len() * NEW_ARGUMENTS
        + commit.signals.len() * SIGNAL_ARGUMENTS;
    head.0.clear();
    head.number(u32::try_from(follow).unwrap_or(u32::MAX));
    for count in [commit.entries.len(), commit.take.len(), commit.give.len(), commit.create.len(), commit.signals.len()] {
        head.count(count);
    }
    head.number(commit.consumed);
    head.small(u8::from(commit.state.is_some()));
    head.small(next);
    head.millis(value);
    head.text(commit.id.as_str());
    head.decimal(commit.fence.0);
    head.decimal(commit.expected);
    head.text(commit.status.as_str());
    head.text(&mark::of(commit));
    head.text(commit.queue.as_str());
    head.text(traceparent(commit.traceparent.as_deref()));
    call.arg(&head.0).arg(&commit.headline);
    if let Some(state) = &commit.state {
        call.arg(state);
    }
    for one in &commit.entries {
        call.arg(entry(text, one));
    }
    for take in &commit.take {
        resource(call, &take.resource);
        call.arg(take.limit);
    }
    for given in &commit.give {
        resource(call, given);
    }
    for new in &commit.create {
        append_new(call, head, text, new);
    }
    for (to, signal) in &commit.signals {
        call.arg(to.as_str()).arg(&signal.body);
    }
}

/// As it is kept.
fn entry<'a>(text: &'a mut String, entry: &StoredEntry) -> &'a str {
    head(text, format_args!("{} {}", entry.digest.0, entry.body))
}

/// A text that has spaces is none: a traceparent has hexadecimal digits and dashes.
fn traceparent(text: Option<&str>) -> &str {
    text.filter(|text| !text.contains(char::is_whitespace)).unwrap_or_default()
}

fn resource(call: &mut Cmd, resource: &Resource) {
    match resource {
        Resource::Lock { name } => call.arg("lock").arg(name).arg(""),
        Resource::Budget { name, member } => call.arg("budget").arg(name).arg(member),
    };
}

pub(super) fn new_workflows<'a>(mut call: Cmd, new: impl ExactSizeIterator<Item = &'a NewWorkflow>) -> Cmd {
    call.arg(new.len());
    let (mut head, mut text) = (Head::default(), String::new());
    for new in new {
        append_new(&mut call, &mut head, &mut text, new);
    }
    call
}

fn append_new(call: &mut Cmd, head: &mut Head, text: &mut String, new: &NewWorkflow) {
    head.0.clear();
    // In the past is now.
    head.millis(new.due.map_or(-1, |due| limits::keepable(due).millis()));
    head.text(new.id.as_str());
    head.text(new.parent.as_ref().map(WorkflowId::as_str).unwrap_or_default());
    head.text(traceparent(new.traceparent.as_deref()));
    head.text(crate::store::Queue::DEFAULT.as_str());
    call.arg(&head.0).arg(&new.kind).arg(&new.target).arg(&new.headline);
    call.arg(entry(text, &new.entry));
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
    new_workflows(call, create.iter())
}

fn millis(length: Duration) -> i64 {
    i64::try_from(length.min(limits::KEEP_MAX).as_millis()).unwrap_or(i64::MAX)
}
