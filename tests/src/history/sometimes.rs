//! Rare paths that a campaign must have reached: what was never reached was never tested.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{CommitKey, Facts, Sent};
use super::recovery::{self, Struck};

/// A rare path, and how often it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    pub what: &'static str,
    pub times: usize,
}

type Count = fn(&Facts) -> usize;

/// Every one of them, and how it is told.
const SOMETIMES: [(&str, Count); 28] = [
    ("a commit was fenced", |facts| answered(facts, "fenced")),
    ("a commit met a resource that somebody else has", |facts| answered(facts, "busy")),
    ("an unanswered commit was sent again, and stands", |facts| sent(facts, |_, sent| sent.unknown > 0 && sent.done().is_some())),
    ("a commit waited out an outage of more than a second", |facts| sent(facts, |_, sent| waited_ms(sent) > 1_000)),
    ("an expired lease was taken over", takeovers),
    ("a lease was refused its renewal", |facts| of_leases(facts, "lease-refused")),
    ("a guard was refused right before an effect", |facts| of_leases(facts, "guard-refused")),
    ("a lease was handed back", |facts| of_leases(facts, "handed-back")),
    ("a worker died or was paused with work in hand", |facts| struck(facts, |struck| struck != Struck::RedisKilled)),
    ("an effect was cut short by its worker's end", |facts| facts.effects.len().saturating_sub(facts.outcomes.len())),
    ("an effect ended with its answer lost", |facts| facts.outcomes.iter().filter(|outcome| outcome.contains("the answer was lost")).count()),
    ("an effect failed otherwise", |facts| {
        facts.outcomes.iter().filter(|outcome| *outcome != "done" && !outcome.contains("the answer was lost")).count()
    }),
    ("a workflow waited for a budget", |facts| waited_for(facts, "budget")),
    ("a workflow waited for a lock", |facts| waited_for(facts, "lock")),
    ("a step failed and was tried again", |facts| events(facts, "step-failed")),
    ("an operator was asked", |facts| events(facts, "operator-asked")),
    ("an operator answered", |facts| events(facts, "operator-answered")),
    ("an operator asked for another try", |facts| events(facts, "retry-requested")),
    ("a workflow was paused", |facts| events(facts, "paused")),
    ("a workflow was resumed", |facts| events(facts, "resumed")),
    ("a workflow went back", |facts| events(facts, "unwind-begun")),
    ("a step was undone", |facts| events(facts, "step-undone")),
    ("a signal came too late to be followed", |facts| events(facts, "signal-refused")),
    ("a request was sent again under its key", sent_again),
    ("a child told its parent of its end", |facts| events(facts, "child-ended")),
    ("an aborted workflow ended", |facts| statuses(facts, "aborted")),
    ("a workflow ended well", |facts| statuses(facts, "succeeded")),
    ("a damaged journal was set aside", |facts| statuses(facts, "quarantined")),
];

pub(super) fn reached(facts: &Facts) -> Vec<Reached> {
    SOMETIMES.iter().map(|(what, count)| Reached { what, times: count(facts) }).collect()
}

fn sent(facts: &Facts, is: impl Fn(&CommitKey, &Sent) -> bool) -> usize {
    facts.commits.iter().filter(|(commit, sent)| is(commit, sent)).count()
}

fn answered(facts: &Facts, how: &str) -> usize {
    sent(facts, |_, sent| sent.answers.iter().any(|(_, answer)| answer == how))
}

fn waited_ms(sent: &Sent) -> i64 {
    sent.done().map_or(0, |done| if sent.unknown > 0 { done - sent.first } else { 0 })
}

fn of_leases(facts: &Facts, event: &str) -> usize {
    facts.leases.iter().filter(|(what, ..)| what == event).count()
}

fn struck(facts: &Facts, is: impl Fn(Struck) -> bool) -> usize {
    recovery::recoveries(facts).iter().filter(|recovery| is(recovery.struck)).count()
}

/// Requests that were accepted under a key under which the same had been accepted before.
fn sent_again(facts: &Facts) -> usize {
    let accepted = facts.orders.iter().filter(|order| order["event"] == "accepted");
    let keys: Vec<(&str, &str)> = accepted.filter_map(|order| Some((order["what"].as_str()?, order["key"].as_str()?))).collect();
    keys.len() - keys.iter().collect::<BTreeSet<_>>().len()
}

fn events(facts: &Facts, event: &str) -> usize {
    facts.workflows.values().flat_map(|workflow| workflow.events()).filter(|(what, _)| *what == event).count()
}

fn waited_for(facts: &Facts, what: &str) -> usize {
    let waits = facts.workflows.values().flat_map(|workflow| workflow.events()).filter(|(event, _)| *event == "resource-awaited");
    waits.filter(|(_, entry)| !entry.said["resource"][what].is_null()).count()
}

fn statuses(facts: &Facts, status: &str) -> usize {
    facts.workflows.values().filter(|workflow| workflow.status == status).count()
}

/// Claims of workflows whose last holder had not given its lease up.
fn takeovers(facts: &Facts) -> usize {
    let mut holders: BTreeMap<&str, u64> = BTreeMap::new();
    let mut count = 0;
    for claim in &facts.claims {
        let before = holders.insert(&claim.workflow, claim.fence);
        if before.is_some_and(|fence| !recovery::given_up(facts, &claim.workflow, fence, claim.at)) {
            count += 1;
        }
    }
    count
}
