//! What the journals say, and whether they can be believed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::facts::{Entry, Facts, Workflow};
use super::{Invariant, Violation};
use turnaround_proof::checker::Rules;

pub(super) fn judge(facts: &Facts, violations: &mut Vec<Violation>) {
    for (id, workflow) in &facts.workflows {
        if !workflow.known {
            say(violations, Invariant::NothingLost, format!("there are entries of {id}, and nothing else of it"));
        }
        chain(facts, id, workflow, violations);
        ending(facts, id, workflow, violations);
        // Nothing more can be said by what can't be believed.
        if facts.poisoned(id).is_none() {
            steps(id, workflow, violations);
            children(facts, id, workflow, violations);
        }
    }
    free_at_the_end(facts, violations);
}

fn say(violations: &mut Vec<Violation>, invariant: Invariant, what: String) {
    violations.push(Violation { invariant, what });
}

fn chain(facts: &Facts, id: &str, workflow: &Workflow, violations: &mut Vec<Violation>) {
    let mut broken = None;
    for (expected, (seq, entry)) in (1..).zip(&workflow.entries) {
        if *seq != expected {
            return say(violations, Invariant::NothingLost, format!("{id} has no entry {expected}"));
        }
        if !is_sealed(workflow, *seq) || entry.said["seq"] != *seq {
            broken = broken.or(Some(*seq));
        }
    }
    let meant = facts.poisoned(id);
    match (broken, meant) {
        (Some(seq), None) => say(violations, Invariant::JournalsAreWhole, format!("entry {seq} of {id} is not as it was sealed")),
        (None, Some(_)) if facts.perhaps_poisoned(id) => {}
        (None, Some(seq)) => say(violations, Invariant::HistoryIsWhole, format!("entry {seq} of {id} should be damaged, and is not")),
        (Some(_), Some(_)) | (None, None) => {}
    }
}

/// Its digest is that of its predecessor's digest and its own text.
fn is_sealed(workflow: &Workflow, seq: u64) -> bool {
    let before = seq.checked_sub(1).and_then(|before| workflow.entries.get(&before)).map_or("", |entry| entry.digest.as_str());
    let Some(entry) = workflow.entries.get(&seq) else { return false };
    let digest = Sha256::new().chain_update(before).chain_update(&entry.body).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>() == entry.digest
}

fn ending(facts: &Facts, id: &str, workflow: &Workflow, violations: &mut Vec<Violation>) {
    let is = workflow.status.as_str();
    let damaged = facts.poisoned(id).is_some_and(|seq| !facts.perhaps_poisoned(id) || !is_sealed(workflow, seq));
    match (is, damaged) {
        ("quarantined", true) => {}
        // Somebody had asked for its abort before: that is how a damaged one is discarded.
        ("failed", true) if workflow.headline.starts_with("discarded by") => {}
        ("quarantined", false) => say(violations, Invariant::JournalsAreWhole, format!("{id} is set aside: {}", workflow.headline)),
        (_, true) => say(violations, Invariant::JournalsAreWhole, format!("{id} is damaged, and is {is} all the same")),
        (_, false) if workflow.is_ended() || is == "needs-operator" => {}
        (_, false) => say(violations, Invariant::EverythingEnds, format!("{id} is {is}: {}", workflow.headline)),
    }
    // One that is set apart is taken by turns for as long as it has unread mail of other workflows.
    if workflow.leased && is != "quarantined" {
        say(violations, Invariant::EverythingEnds, format!("somebody has {id} in hand, and does nothing with it"));
    }
    let last = workflow.events().last().map(|(event, _)| event);
    if !damaged && workflow.is_ended() != (last == Some("ended")) {
        say(violations, Invariant::EverythingEnds, format!("{id} is {is}, and its journal ends with `{}`", last.unwrap_or("nothing")));
    }
}

/// Each step once, in turn; undone last first.
fn steps(id: &str, workflow: &Workflow, violations: &mut Vec<Violation>) {
    let mut begun: Vec<&str> = Vec::new();
    let mut succeeded = BTreeSet::new();
    let mut ended = 0;
    for (event, entry) in workflow.events() {
        let step = entry.text("step");
        match event {
            "step-begun" if begun.contains(&step) => {
                say(violations, Invariant::NothingTwice, format!("`{step}` of {id} begins twice"));
            }
            "step-begun" => begun.push(step),
            "step-succeeded" if !succeeded.insert(step) => {
                say(violations, Invariant::NothingTwice, format!("`{step}` of {id} succeeds twice"));
            }
            "undo-begun" | "step-undone" if begun.last() != Some(&step) => {
                let newest = begun.last().unwrap_or(&"nothing");
                say(violations, Invariant::UndoneInReverse, format!("`{step}` of {id} is undone, and `{newest}` was begun last"));
            }
            "step-undone" => drop(begun.pop()),
            "ended" => ended += 1,
            _ => {}
        }
    }
    if ended > 1 {
        say(violations, Invariant::NothingTwice, format!("{id} ends {ended} times"));
    }
}

/// Who was started is there, and whose end its parent waits for has told it.
fn children(facts: &Facts, id: &str, workflow: &Workflow, violations: &mut Vec<Violation>) {
    let mut told = BTreeSet::new();
    for (event, entry) in workflow.events().filter(|(event, _)| *event == "child-ended") {
        if !told.insert(entry.text("key")) {
            say(violations, Invariant::NothingTwice, format!("{id} notes the end of `{}` twice ({event})", entry.text("key")));
        }
    }
    let started = workflow.events().filter(|(event, _)| *event == "children-started");
    for child in started.flat_map(|(_, entry)| entry.said["children"].as_array().into_iter().flatten()) {
        let (key, name) = (child["key"].as_str().unwrap_or_default(), child["id"].as_str().unwrap_or_default());
        let Some(child) = facts.workflows.get(name) else {
            say(violations, Invariant::NothingLost, format!("{id} started {name}, and there is no such workflow"));
            continue;
        };
        if child.is_ended() && !told.contains(key) && !workflow.was_left() {
            say(violations, Invariant::NothingLost, format!("{name} has ended, and {id} was never told"));
        }
    }
}

fn free_at_the_end(facts: &Facts, violations: &mut Vec<Violation>) {
    let left = left(facts);
    for holding in &facts.holdings {
        let holder = holding["workflow"].as_str().unwrap_or_default();
        let workflow = facts.workflows.get(holder);
        let over = workflow.is_none_or(Workflow::is_ended);
        match (holding["lock"].as_str(), holding["member"].as_str()) {
            (Some(lock), _) if over => say(violations, Invariant::FreeAtTheEnd, format!("{holder} has ended, and has the lock {lock}")),
            (_, Some(member)) if over && !left.contains(member) => {
                let what = format!("{holder} has ended, and has a share of {} for {member}", holding["budget"].as_str().unwrap_or_default());
                say(violations, Invariant::FreeAtTheEnd, what);
            }
            _ => {}
        }
    }
}

/// Nodes that an operator has said to leave as they are.
fn left(facts: &Facts) -> BTreeSet<&str> {
    facts.workflows.values().filter(|workflow| workflow.was_left()).map(|workflow| workflow.target.as_str()).collect()
}

/// What the site's own log is not held against anybody, by what the journals say that operators wanted.
pub(super) fn excuses(facts: &Facts, out_max: usize) -> Rules {
    let mut resets_again: BTreeMap<String, usize> = BTreeMap::new();
    for workflow in facts.workflows.values() {
        let wiping = |entry: &Entry| matches!(entry.said["key"].as_str(), Some("netboot" | "rebuild"));
        let again = workflow.events().filter(|(event, entry)| *event == "operator-answered" && wiping(entry)).count();
        *resets_again.entry(workflow.target.clone()).or_default() += again;
    }
    let asks = |workflow: &&Workflow| workflow.status == "needs-operator" || workflow.status == "quarantined";
    Rules {
        out_max,
        open_questions: facts.workflows.values().filter(asks).map(|workflow| workflow.target.clone()).collect(),
        left_by_operators: left(facts).into_iter().map(str::to_owned).collect(),
        resets_again,
        ..Rules::default()
    }
}

/// The value of the first entry, which says what was ordered.
pub(super) fn created(workflow: &Workflow) -> Option<&Value> {
    workflow.entries.get(&1).map(|entry| &entry.said)
}
