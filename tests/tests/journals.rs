//! The judge of journals is judged first: good ones pass, and each bad one is flagged for what is wrong with it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use turnaround_proof::journals::{Journals, judge, judge_effects};

const ID: &str = "node-os-1";

/// The entries of a journal, each with its place, and sealed.
fn sealed(entries: &[Value]) -> Vec<(String, String)> {
    let mut before = String::new();
    let mut kept = Vec::new();
    for entry in entries {
        let body = entry.to_string();
        let mut hash = Sha256::new();
        hash.update(before.as_bytes());
        hash.update(body.as_bytes());
        before = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        kept.push((before.clone(), body));
    }
    kept
}

/// `events` one second after the other, under leases that grow.
fn journal(events: &[Value]) -> Vec<Value> {
    let entry = |(place, event): (usize, &Value)| {
        let mut entry = event.clone();
        entry["seq"] = json!(place + 1);
        entry["at"] = json!(1_000 + 1_000 * place);
        entry["fence"] = json!(place);
        entry
    };
    events.iter().enumerate().map(entry).collect()
}

fn told(entries: &[Value]) -> Vec<String> {
    judge(&Journals::from([(ID.to_owned(), sealed(entries))]))
}

fn flagged(events: &[Value], wanted: &str) {
    let against = told(&journal(events));
    assert!(against.iter().any(|what| what.contains(wanted)), "`{wanted}` is not in {against:#?}");
}

fn created() -> Value {
    json!({ "event": "created", "kind": "node-os" })
}

fn of(event: &str, step: &str) -> Value {
    json!({ "event": event, "step": step })
}

fn begun(step: &str) -> Value {
    json!({ "event": "step-begun", "step": step, "took": [] })
}

fn succeeded(step: &str, output: u32) -> Value {
    json!({ "event": "step-succeeded", "step": step, "output": output, "gave": [] })
}

fn undone(step: &str) -> Value {
    json!({ "event": "step-undone", "step": step, "gave": [] })
}

fn unwinds() -> Value {
    json!({ "event": "unwind-begun" })
}

fn ended(outcome: &str) -> Value {
    json!({ "event": "ended", "outcome": outcome, "why": "" })
}

#[test]
fn good_journals_pass() {
    let there_and_back = [
        created(),
        begun("close"),
        succeeded("close", 1),
        begun("move"),
        of("step-parked", "move"),
        unwinds(),
        of("undo-begun", "move"),
        undone("move"),
        of("undo-begun", "close"),
        undone("close"),
        ended("aborted"),
    ];
    assert_eq!(told(&journal(&there_and_back)), Vec::<String>::new());
    assert_eq!(told(&journal(&[created(), begun("close"), of("operator-asked", "close"), of("operator-answered", "close"), succeeded("close", 1), ended("succeeded")])), Vec::<String>::new());
}

/// Those that a release has written, except for rollouts: their nodes' journals are not with them.
#[test]
fn golden_journals_pass() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/journals");
    let mut read = 0;
    for file in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let text = std::fs::read_to_string(&file).unwrap();
        let entries = text.lines().skip(1).map(|line| {
            let entry: Value = serde_json::from_str(line).unwrap();
            (entry["digest"].as_str().unwrap().to_owned(), entry["body"].as_str().unwrap().to_owned())
        });
        let against = judge(&Journals::from([(ID.to_owned(), entries.collect())]));
        if !file.to_str().unwrap().contains("rollout") {
            assert_eq!(against, Vec::<String>::new(), "{}", file.display());
            read += 1;
        }
    }
    assert!(read >= 8, "only {read}");
}

#[test]
fn a_step_that_succeeds_twice_or_begins_twice_is_flagged() {
    flagged(&[created(), begun("close"), succeeded("close", 1), succeeded("close", 2)], "succeeds once more, with 2 and not 1");
    flagged(&[created(), begun("close"), succeeded("close", 1), succeeded("close", 1)], "succeeds once more");
    flagged(&[created(), begun("close"), succeeded("close", 1), begun("close")], "begins once more");
    flagged(&[created(), begun("close"), begun("move")], "while `close` is under way");
    flagged(&[created(), succeeded("close", 1)], "was never begun");
}

#[test]
fn a_signal_that_is_followed_twice_is_flagged() {
    let follows = |event: &str, signal: &str| json!({ "event": event, "follows": signal });
    flagged(&[created(), follows("paused", "ada/k1"), follows("signal-refused", "ada/k1")], "the signal `ada/k1` is followed once more");
    let two = [created(), follows("paused", "ada/k1"), follows("resumed", "ada/k2"), follows("paused", "ada/k3")];
    assert_eq!(told(&journal(&two)), Vec::<String>::new());
}

#[test]
fn a_lease_that_goes_back_a_time_that_goes_back_and_a_wrong_place_are_flagged() {
    let good = journal(&[created(), begun("close"), succeeded("close", 1)]);
    for (key, value, wanted) in [
        ("fence", json!(0), "under lease 0 after one under lease 1"),
        ("at", json!(5), "its time 5 is before"),
        ("seq", json!(9), "it says that it is entry 9"),
    ] {
        let mut bad = good.clone();
        bad[2][key] = value;
        let against = told(&bad);
        assert!(against.iter().any(|what| what.contains(wanted)), "{against:?}");
    }
}

#[test]
fn a_broken_seal_is_flagged() {
    let mut entries = sealed(&journal(&[created(), begun("close"), succeeded("close", 1)]));
    entries[1].1 = entries[1].1.replace("close", "clone");
    let against = judge(&Journals::from([(ID.to_owned(), entries)]));
    assert!(against.iter().any(|what| what.contains("digest")), "{against:?}");
}

#[test]
fn undoing_in_another_order_or_not_at_all_is_flagged() {
    let forward = [created(), begun("close"), succeeded("close", 1), begun("move")];
    let then = |events: &[Value]| [&forward[..], events].concat();
    flagged(&then(&[unwinds(), of("undo-begun", "close")]), "which began later");
    flagged(&then(&[of("undo-begun", "move")]), "does not go back");
    flagged(&then(&[unwinds(), undone("move")]), "that was not begun");
    flagged(&then(&[unwinds(), ended("aborted")]), "were not undone");
    flagged(&then(&[unwinds(), begun("stage")]), "begins on the way back");
    flagged(&then(&[unwinds(), unwinds()]), "goes back once more");
}

#[test]
fn going_on_without_an_answer_and_after_the_end_are_flagged() {
    flagged(&[created(), begun("close"), of("operator-asked", "close"), succeeded("close", 1)], "without an answer");
    flagged(&[created(), begun("close"), of("operator-answered", "close")], "nothing was asked");
    flagged(&[created(), ended("failed"), begun("close")], "after it has failed");
    flagged(&[created(), begun("close"), ended("succeeded")], "unfinished");
    flagged(&[created(), json!({ "event": "something-new" })], "not an event");
    flagged(&[begun("close")], "begins with `created`");
}

#[test]
fn what_is_given_back_must_have_been_taken() {
    let lock = json!({ "lock": { "name": "node:gpu-01" } });
    let took = json!({ "event": "step-begun", "step": "close", "took": [lock] });
    let gave = json!({ "event": "step-succeeded", "step": "close", "output": 1, "gave": [lock] });
    assert_eq!(told(&journal(&[created(), took, gave.clone()])), Vec::<String>::new());
    flagged(&[created(), begun("close"), gave], "which it does not have");
}

#[test]
fn a_child_is_started_once_and_its_parent_is_told_the_truth() {
    let starts = json!({ "event": "children-started", "step": "renew", "children": [{ "key": "a", "id": "node-os-1.a" }] });
    let child_ended = json!({ "event": "child-ended", "key": "a", "outcome": "succeeded" });
    let parent = journal(&[created(), begun("renew"), starts.clone(), child_ended.clone()]);
    let with_child = |outcome: &str| {
        judge(&Journals::from([(ID.to_owned(), sealed(&parent)), ("node-os-1.a".to_owned(), sealed(&journal(&[created(), ended(outcome)])))]))
    };
    assert_eq!(with_child("succeeded"), Vec::<String>::new());
    assert!(with_child("failed")[0].contains("was told that"));
    flagged(&[created(), begun("renew"), starts.clone(), starts.clone()], "is started once more");
    flagged(&[created(), begun("renew"), child_ended], "was not open");
    flagged(&[created(), begun("renew"), starts, ended("failed")], "before its children");
}

#[test]
fn an_effect_without_its_intent_before_it_is_flagged() {
    let token = format!("{ID}-7-abcd0123");
    let ticket = json!({ "event": "step-checkpointed", "step": "stage-image", "checkpoint": { "ticket": { "token": token } } });
    let reset = json!({ "event": "step-checkpointed", "step": "reprovision", "checkpoint": { "acknowledged": false } });
    let closed = json!({ "event": "step-checkpointed", "step": "close", "checkpoint": { "found": {} } });
    let log = |lines: &[Value]| lines.iter().map(|line| line.to_string() + "\n").collect::<String>();
    let events = [json!({ "seq": 4, "at": 9_500, "kind": "reset_requested", "node": "gpu-01", "token": token })];
    let whole = log(&[
        json!({ "seq": 1, "at": 9_000, "kind": "service_disabled", "node": "gpu-01", "by": "caller", "reason": format!("turnaround:{ID}:found-enabled: x") }),
        json!({ "seq": 2, "at": 9_000, "kind": "ticket_staged", "node": "gpu-01", "token": token }),
        json!({ "seq": 3, "at": 9_000, "kind": "reset_requested", "node": "gpu-01", "token": token }),
    ]);
    let against = |entries: &[Value], log: &str| judge_effects(&Journals::from([(ID.to_owned(), sealed(&journal(entries)))]), log);
    let all = [created(), closed.clone(), ticket.clone(), reset.clone()];
    assert_eq!(against(&all, &whole), Vec::<String>::new());
    for (missing, wanted) in [(1, "is closed"), (2, "is staged"), (3, "reset number 1")] {
        let mut without = all.to_vec();
        without.remove(missing);
        let against = against(&without, &whole);
        assert!(against.len() == 1 && against[0].contains(wanted), "{wanted}: {against:?}");
    }
    // One intent, two resets; and an intent that came too late.
    assert!(against(&all, &(whole.clone() + &log(&events)))[0].contains("reset number 2"));
    assert_eq!(against(&all, &whole.replace("9000", "10")).len(), 3);
}
