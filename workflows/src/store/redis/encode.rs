//! Packs questions for the scripts: the order here is the order in which they read. What is short and has no spaces stands together
//! in one argument, the head; long texts are arguments of their own, so that no script has to parse them.

use std::fmt::Write as _;
use std::time::Duration;

use ::redis::Cmd;

use super::limits;
use super::tickets::Tickets;
use crate::clock::Timestamp;
use crate::store::{
    Advance, CLAIM_MAX, COMMITS_MAX, Commit, Fence, NewWorkflow, Next, QUEUES_MAX, Resource, StoredEntry, WorkflowId, mark,
};

/// Stands in heads for what is not there.
const NOTHING: &str = "-";

/// Splits what is too much for one call. Claims come last, because what was committed before may be claimed.
pub(super) fn parts(advance: Advance) -> Vec<Advance> {
    let Advance { lease, commits, renew, hand_back, claim } = advance;
    let mut commits = chunks(commits, COMMITS_MAX);
    let mut renew = chunks(renew, limits::RENEWALS_MAX);
    let mut hand_back = chunks(hand_back, limits::RENEWALS_MAX);
    let count = commits.len().max(renew.len()).max(hand_back.len()).max(1);
    let mut take = |_| Advance {
        lease,
        commits: commits.next().unwrap_or_default(),
        renew: renew.next().unwrap_or_default(),
        hand_back: hand_back.next().unwrap_or_default(),
        claim: None,
    };
    let mut parts: Vec<Advance> = (0..count).map(&mut take).collect();
    if let Some(last) = parts.last_mut() {
        last.claim = claim;
    }
    parts
}

fn chunks<T>(mut all: Vec<T>, size: usize) -> std::vec::IntoIter<Vec<T>> {
    let mut chunks = Vec::new();
    while all.len() > size {
        let rest = all.split_off(size);
        chunks.push(std::mem::replace(&mut all, rest));
    }
    if !all.is_empty() {
        chunks.push(all);
    }
    chunks.into_iter()
}

pub(super) fn advance(mut call: Cmd, advance: &Advance, tickets: &Tickets) -> Cmd {
    let mut text = String::new();
    call.arg(millis(advance.lease));
    call.arg(advance.commits.len());
    for one in &advance.commits {
        commit(&mut call, &mut text, one);
    }
    leases(&mut call, &mut text, &advance.renew);
    leases(&mut call, &mut text, &advance.hand_back);
    let (max, lease, worker) = match &advance.claim {
        Some(claim) => (i64::from(claim.max.min(CLAIM_MAX)), millis(claim.lease), claim.worker.as_str()),
        None => (-1, 0, ""),
    };
    call.arg(head(&mut text, format_args!("{max} {lease} {}", limits::LOST_LOOKED_MAX)));
    call.arg(head(&mut text, format_args!("{worker} {}", tickets.own)));
    let queues = advance.claim.as_ref().map(|claim| claim.queues.as_slice()).unwrap_or_default();
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

fn commit(call: &mut Cmd, text: &mut String, commit: &Commit) {
    let (next, value) = match commit.next {
        Next::Keep => ("keep", 0),
        Next::At(at) => ("at", limits::keepable(at).millis()),
        Next::Signal => ("signal", 0),
        Next::End { keep } => ("end", millis(keep.min(limits::KEEP_MAX))),
    };
    let follow = 1
        + usize::from(commit.state.is_some())
        + commit.entries.len()
        + commit.take.len() * TAKE_ARGUMENTS
        + commit.give.len() * GIVE_ARGUMENTS
        + commit.create.len() * NEW_ARGUMENTS
        + commit.signals.len() * SIGNAL_ARGUMENTS;
    let written = format_args!(
        "{} {} {} {} {} {next} {value} {} {} {} {} {} {} {} {} {} {follow}",
        commit.id,
        commit.fence.0,
        commit.expected,
        commit.status.as_str(),
        commit.consumed,
        commit.queue,
        in_head(commit.traceparent.as_deref()),
        mark::of(commit),
        commit.entries.len(),
        commit.take.len(),
        commit.give.len(),
        commit.create.len(),
        commit.signals.len(),
        u8::from(commit.state.is_some()),
    );
    call.arg(head(text, written)).arg(&commit.headline);
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
        append_new(call, text, new);
    }
    for (to, signal) in &commit.signals {
        call.arg(to.as_str()).arg(&signal.body);
    }
}

/// As it is kept.
fn entry<'a>(text: &'a mut String, entry: &StoredEntry) -> &'a str {
    head(text, format_args!("{} {}", entry.digest.0, entry.body))
}

/// A text that has spaces is none that belongs there: a traceparent has hexadecimal digits and dashes.
fn in_head(text: Option<&str>) -> &str {
    text.filter(|text| !text.is_empty() && !text.contains(char::is_whitespace)).unwrap_or(NOTHING)
}

fn resource(call: &mut Cmd, resource: &Resource) {
    match resource {
        Resource::Lock { name } => call.arg("lock").arg(name).arg(""),
        Resource::Budget { name, member } => call.arg("budget").arg(name).arg(member),
    };
}

pub(super) fn new_workflow(mut call: Cmd, new: &NewWorkflow) -> Cmd {
    append_new(&mut call, &mut String::new(), new);
    call
}

fn append_new(call: &mut Cmd, text: &mut String, new: &NewWorkflow) {
    let due = new.due.map(|due| limits::keepable(due).millis().to_string());
    let written = format_args!(
        "{} {} {} {} {}",
        new.id,
        due.as_deref().unwrap_or(NOTHING),
        new.parent.as_ref().map_or(NOTHING, WorkflowId::as_str),
        in_head(new.traceparent.as_deref()),
        crate::store::Queue::DEFAULT,
    );
    call.arg(head(text, written)).arg(&new.kind).arg(&new.target).arg(&new.headline);
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
    call.arg(judged.millis()).arg(create.len());
    let mut text = String::new();
    for new in create {
        append_new(&mut call, &mut text, new);
    }
    call
}

fn millis(length: Duration) -> i64 {
    i64::try_from(length.min(limits::KEEP_MAX).as_millis()).unwrap_or(i64::MAX)
}
