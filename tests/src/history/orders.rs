//! What was accepted or acknowledged is in the journals, and has come of it what had to.

use std::collections::BTreeMap;

use serde_json::Value;

use super::facts::{Facts, Workflow};
use super::{Invariant, Violation, journals};

pub(super) fn judge(facts: &Facts, violations: &mut Vec<Violation>) {
    for order in facts.orders.iter().filter(|order| order["event"] == "accepted") {
        accepted(facts, order, violations);
    }
    acknowledged(facts, violations);
    each_key_once(facts, violations);
    each_signal_once(facts, violations);
}

fn say(violations: &mut Vec<Violation>, invariant: Invariant, what: String) {
    violations.push(Violation { invariant, what });
}

fn accepted(facts: &Facts, order: &Value, violations: &mut Vec<Violation>) {
    let (what, id) = (order["what"].as_str().unwrap_or_default(), order["workflow"].as_str().unwrap_or_default());
    let Some(workflow) = facts.workflows.get(id).filter(|workflow| journals::created(workflow).is_some()) else {
        return say(violations, Invariant::NothingLost, format!("`{what}` was accepted for {id}, and there is no such workflow"));
    };
    let Some(signal) = order["signal"].as_str() else { return };
    if followed(workflow).any(|followed| followed == signal) || facts.poisoned(id).is_some() {
        return;
    }
    // Nobody has read it: it came when the workflow was in hand for the last time. Whoever claims later is given it, and
    // reads it before anything else.
    let accepted = order["at"].as_i64().unwrap_or_default();
    let later = facts.claims_of(id).iter().filter(|claim| claim.at > accepted).map(|claim| claim.fence);
    let wrote = |fence: u64| workflow.entries.values().any(|entry| entry.fence() == fence);
    // Claims are told when they are answered: the first one after the signal may have been granted before it.
    let ignored = later.skip(1).find(|fence| wrote(*fence));
    if let Some(fence) = ignored {
        say(violations, Invariant::NothingLost, format!("`{what}` ({signal}) was accepted for {id}; who had it under fence {fence} went on without"));
    } else if !workflow.is_ended() {
        say(violations, Invariant::NothingLost, format!("`{what}` ({signal}) was accepted for {id}, and is not in its journal"));
    }
}

/// Ids of the signals that are in the journal.
fn followed(workflow: &Workflow) -> impl Iterator<Item = &str> {
    workflow.entries.values().filter_map(|entry| entry.said["follows"].as_str())
}

fn acknowledged(facts: &Facts, violations: &mut Vec<Violation>) {
    for (commit, _) in facts.commits.iter().filter(|(_, sent)| sent.done().is_some()) {
        let workflow = facts.workflows.get(&commit.workflow);
        for (seq, digest) in (commit.expected + 1..).zip(&commit.digests) {
            let kept = workflow.and_then(|workflow| workflow.entries.get(&seq)).map(|entry| &entry.digest);
            if kept != Some(digest) && facts.poisoned(&commit.workflow) != Some(seq) {
                let what = format!("entry {seq} of {} was acknowledged to {} under fence {}, and is not there", commit.workflow, commit.pid, commit.fence);
                say(violations, Invariant::NothingLost, what);
            }
        }
    }
}

/// Who sends a request again under its key is told of what the first one has brought about.
fn each_key_once(facts: &Facts, violations: &mut Vec<Violation>) {
    let mut first: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for order in facts.orders.iter().filter(|order| order["event"] == "accepted") {
        let (what, id) = (order["what"].as_str().unwrap_or_default(), order["workflow"].as_str().unwrap_or_default());
        // (What is typed has no key.)
        let Some(key) = order["key"].as_str() else { continue };
        let known = *first.entry((what, key)).or_insert(id);
        if known != id {
            say(violations, Invariant::NothingTwice, format!("`{what}` was accepted under the key {key} for {known}, and for {id}"));
        }
    }
}

fn each_signal_once(facts: &Facts, violations: &mut Vec<Violation>) {
    for (id, workflow) in &facts.workflows {
        let mut times: BTreeMap<&str, u32> = BTreeMap::new();
        for signal in followed(workflow) {
            *times.entry(signal).or_default() += 1;
        }
        for (signal, times) in times.into_iter().filter(|(_, times)| *times > 1) {
            say(violations, Invariant::NothingTwice, format!("the signal {signal} was followed {times} times in {id}"));
        }
    }
}
