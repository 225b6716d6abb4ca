//! Packs questions for the scripts: the order here is the order in which they read. Long texts are arguments of
//! their own, so that no script has to parse them.

use std::time::Duration;

use ::redis::Cmd;

use super::limits;
use super::tickets::Tickets;
use crate::clock::Timestamp;
use crate::store::{Advance, COMMITS_MAX, CLAIM_MAX, Commit, Fence, NewWorkflow, Next, Resource, WorkflowId, mark};

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
    call.arg(millis(advance.lease));
    call.arg(advance.commits.len());
    for one in &advance.commits {
        commit(&mut call, one);
    }
    leases(&mut call, &advance.renew);
    leases(&mut call, &advance.hand_back);
    match &advance.claim {
        Some(claim) => call.arg(claim.max.min(CLAIM_MAX)).arg(millis(claim.lease)).arg(&claim.worker),
        None => call.arg(-1).arg(0).arg(""),
    };
    call.arg(&tickets.own).arg(tickets.lost.len());
    for lost in &tickets.lost {
        call.arg(lost);
    }
    call.arg(limits::LOST_LOOKED_MAX);
    call
}

fn leases(call: &mut Cmd, leases: &[(WorkflowId, Fence)]) {
    call.arg(leases.len());
    for (id, fence) in leases {
        call.arg(id.as_str()).arg(fence.0);
    }
}

fn commit(call: &mut Cmd, commit: &Commit) {
    call.arg(commit.id.as_str())
        .arg(commit.fence.0)
        .arg(mark::of(commit))
        .arg(commit.expected)
        .arg(commit.status.as_str())
        .arg(&commit.headline)
        .arg(commit.consumed)
        .arg(commit.traceparent.as_deref().unwrap_or_default());
    match commit.next {
        Next::Keep => call.arg("keep").arg(0),
        Next::At(at) => call.arg("at").arg(limits::keepable(at).millis()),
        Next::Signal => call.arg("signal").arg(0),
        Next::End { keep } => call.arg("end").arg(millis(keep.min(limits::KEEP_MAX))),
    };
    call.arg(if commit.state.is_some() { "1" } else { "0" }).arg(commit.state.as_deref().unwrap_or_default());
    call.arg(commit.entries.len());
    for entry in &commit.entries {
        call.arg(&entry.digest.0).arg(&entry.body);
    }
    call.arg(commit.take.len());
    for take in &commit.take {
        resource(call, &take.resource);
        call.arg(take.limit);
    }
    call.arg(commit.give.len());
    for given in &commit.give {
        resource(call, given);
    }
    call.arg(commit.create.len());
    for new in &commit.create {
        append_new(call, new);
    }
    call.arg(commit.signals.len());
    for (to, signal) in &commit.signals {
        call.arg(to.as_str()).arg(&signal.body);
    }
}

fn resource(call: &mut Cmd, resource: &Resource) {
    match resource {
        Resource::Lock { name } => call.arg("lock").arg(name).arg(""),
        Resource::Budget { name, member } => call.arg("budget").arg(name).arg(member),
    };
}

pub(super) fn new_workflow(mut call: Cmd, new: &NewWorkflow) -> Cmd {
    append_new(&mut call, new);
    call
}

fn append_new(call: &mut Cmd, new: &NewWorkflow) {
    call.arg(new.id.as_str())
        .arg(&new.kind)
        .arg(&new.target)
        .arg(new.parent.as_ref().map_or("", WorkflowId::as_str))
        .arg(&new.headline)
        .arg(&new.entry.digest.0)
        .arg(&new.entry.body)
        .arg(&new.state)
        .arg(new.traceparent.as_deref().unwrap_or_default());
    optional_time(call, new.due.map(limits::keepable));
}

pub(super) fn ticks(
    mut call: Cmd,
    schedule: &str,
    last: Option<Timestamp>,
    judged: Timestamp,
    create: &[NewWorkflow],
) -> Cmd {
    call.arg(schedule);
    optional_time(&mut call, last);
    call.arg(judged.millis()).arg(create.len());
    for new in create {
        append_new(&mut call, new);
    }
    call
}

fn optional_time(call: &mut Cmd, at: Option<Timestamp>) {
    match at {
        Some(at) => call.arg(at.millis()),
        None => call.arg(""),
    };
}

fn millis(length: Duration) -> i64 {
    i64::try_from(length.min(limits::KEEP_MAX).as_millis()).unwrap_or(i64::MAX)
}
