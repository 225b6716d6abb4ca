//! The judge of histories, judged: bad ones are flagged by the right invariant, good ones are not.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use turnaround_tests::history::{Evidence, Invariant, Judgement, Struck, judge};

const NODE: &str = "roll.gpu-01";
const ROLLOUT: &str = "roll";

/// A history as it should be, to be spoiled: a rollout of one node by two workers, of which the first one dies in between.
struct Story {
    lines: Vec<Value>,
    /// Journals: workflow, fence, what it says.
    journals: Vec<(&'static str, u64, Value)>,
    statuses: Vec<(&'static str, &'static str)>,
    site: Vec<Value>,
}

fn order(at: i64, signal: Option<&str>) -> Value {
    let what = if signal.is_some() { "pause" } else { "rollout" };
    let workflow = if signal.is_some() { NODE } else { ROLLOUT };
    json!({ "event": "accepted", "at": at, "asked": at - 1, "what": what, "workflow": workflow, "signal": signal })
}

fn claimed(at: i64, pid: u64, workflow: &str, fence: u64, seq: u64) -> Value {
    json!({ "event": "claimed", "at": at, "pid": pid, "workflow": workflow, "fence": fence, "seq": seq, "kind": "node-os", "target": "gpu-01" })
}

fn effect(at: i64, call: &str, fence: u64) -> Value {
    json!({ "event": "effect", "at": at, "pid": 1, "call": call, "on": "gpu-01", "workflow": NODE, "fence": fence })
}

/// A commit of the entries at these places, sent at `at` and answered a moment later. Digests are filled in at the end.
fn commit(at: i64, pid: u64, workflow: &str, fence: u64, places: std::ops::Range<u64>, next: &str, how: &str) -> [Value; 2] {
    let line = |event: &str, at: i64| {
        let places: Vec<u64> = places.clone().collect();
        json!({
            "event": event, "at": at, "pid": pid, "workflow": workflow, "fence": fence, "expected": places.first().unwrap_or(&1) - 1,
            "places": places, "next": next, "how": how,
        })
    };
    [line("commit", at), line("committed", at + 1)]
}

impl Story {
    fn good() -> Story {
        let created = |kind: &str, by: &str| json!({ "event": "created", "kind": kind, "by": by });
        let step = |event: &str, step: &str| json!({ "event": event, "step": step });
        let lock = json!({ "lock": { "name": "node:gpu-01" } });
        let journals = vec![
            (ROLLOUT, 0, created("node-os-rollout", "ada")),
            (ROLLOUT, 10, step("step-begun", "renew-nodes")),
            (ROLLOUT, 10, json!({ "event": "children-started", "step": "renew-nodes", "children": [{ "key": "gpu-01", "id": NODE }] })),
            (ROLLOUT, 30, json!({ "event": "child-ended", "key": "gpu-01", "outcome": "succeeded" })),
            (ROLLOUT, 30, json!({ "event": "ended", "outcome": "succeeded", "why": "" })),
            (NODE, 0, created("node-os", "workflow roll")),
            (NODE, 11, json!({ "event": "step-begun", "step": "close", "took": [lock] })),
            (NODE, 20, step("step-succeeded", "close")),
            (NODE, 20, step("step-begun", "reprovision")),
            (NODE, 20, step("step-checkpointed", "reprovision")),
            (NODE, 20, json!({ "event": "paused", "by": "ada", "follows": "ada/k1" })),
            (NODE, 20, step("step-succeeded", "reprovision")),
            (NODE, 20, json!({ "event": "ended", "outcome": "succeeded", "why": "" })),
        ];
        let mut lines = vec![order(100, None), order(1_500, Some("ada/k1"))];
        lines.push(claimed(110, 1, ROLLOUT, 10, 1));
        lines.extend(commit(112, 1, ROLLOUT, 10, 2..4, "signal", "done"));
        lines.push(claimed(120, 1, NODE, 11, 1));
        lines.extend(commit(122, 1, NODE, 11, 2..3, "keep", "done"));
        lines.push(effect(130, "close", 11));
        lines.push(json!({ "event": "fault", "at": 140, "kind": "worker killed", "pids": [1] }));
        lines.push(claimed(2_140, 2, NODE, 20, 2));
        lines.extend(commit(2_150, 2, NODE, 20, 3..6, "keep", "done"));
        lines.push(effect(2_160, "reset", 20));
        lines.extend(commit(2_170, 2, NODE, 20, 6..9, "end", "done"));
        lines.push(claimed(2_180, 2, ROLLOUT, 30, 3));
        lines.extend(commit(2_190, 2, ROLLOUT, 30, 4..6, "end", "done"));
        let node = json!({ "node": "gpu-01", "enabled": true, "disabled_reason": null, "os_version_id": "22.04", "instances": [] });
        let site = vec![json!({ "seq": 1, "at": 90, "kind": "site_started", "seed": 1, "nodes": [node] })];
        Story { lines, journals, statuses: vec![(ROLLOUT, "succeeded"), (NODE, "succeeded")], site }
    }

    /// What the store would hold, sealed, and what was committed with its digests.
    fn history(&self) -> String {
        let mut lines = self.lines.clone();
        let mut digests: std::collections::BTreeMap<(&str, u64), String> = Default::default();
        for (workflow, status) in &self.statuses {
            lines.push(json!({ "event": "workflow", "workflow": workflow, "kind": "node-os", "target": "gpu-01", "status": status, "leased": false }));
            let mut before = String::new();
            for (seq, (_, fence, said)) in (1..).zip(self.journals.iter().filter(|(of, ..)| of == workflow)) {
                let mut said = said.clone();
                said["seq"] = json!(seq);
                said["fence"] = json!(fence);
                let body = said.to_string();
                let digest: String = Sha256::digest(format!("{before}{body}")).iter().map(|byte| format!("{byte:02x}")).collect();
                lines.push(json!({ "event": "entry", "workflow": workflow, "seq": seq, "digest": digest, "body": body }));
                digests.insert((workflow, seq), digest.clone());
                before = digest;
            }
        }
        for line in &mut lines {
            let Some(places) = line["places"].as_array().cloned() else { continue };
            let workflow = line["workflow"].as_str().unwrap().to_owned();
            let digest = |place: &Value| digests.get(&(workflow.as_str(), place.as_u64().unwrap())).cloned().unwrap_or_else(|| "gone".to_owned());
            line["digests"] = places.iter().map(|place| json!(digest(place))).collect();
        }
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    fn judge(&self) -> Judgement {
        self.judge_text(&self.history())
    }

    fn judge_text(&self, history: &str) -> Judgement {
        let site: String = self.site.iter().map(|line| format!("{line}\n")).collect();
        judge(&Evidence { history, site: &site, out_max: 1 })
    }

    fn line(&mut self, event: &str, nth: usize) -> &mut Value {
        self.lines.iter_mut().filter(|line| line["event"] == event).nth(nth).unwrap()
    }
}

fn flags(judgement: &Judgement) -> Vec<Invariant> {
    let mut flags: Vec<Invariant> = judgement.violations.iter().map(|violation| violation.invariant).collect();
    flags.dedup();
    flags
}

/// Spoils the good story, and expects the invariant; others may be hurt by the same.
fn flagged(invariant: Invariant, spoil: impl FnOnce(&mut Story)) {
    let mut story = Story::good();
    spoil(&mut story);
    let judgement = story.judge();
    assert!(flags(&judgement).contains(&invariant), "{invariant:?} is not among {:#?}", judgement.violations);
}

/// Changes the good story into another good one.
fn fine(change: impl FnOnce(&mut Story)) {
    let mut story = Story::good();
    change(&mut story);
    let judgement = story.judge();
    assert!(judgement.violations.is_empty(), "{:#?}", judgement.violations);
}

#[test]
fn a_good_history_is_not_flagged() {
    fine(|_| {});
}

#[test]
fn the_order_of_the_lines_does_not_matter() {
    fine(|story| story.lines.reverse());
}

#[test]
fn what_is_not_understood_is_flagged() {
    let story = Story::good();
    let judgement = story.judge_text(&format!("{}{{\"event\":\"dance\"}}\n", story.history()));
    assert_eq!(flags(&judgement), [Invariant::HistoryIsWhole]);
    let judgement = story.judge_text(&format!("{}half a li", story.history()));
    assert_eq!(flags(&judgement), [Invariant::HistoryIsWhole]);
}

#[test]
fn two_commits_at_one_place_are_flagged() {
    flagged(Invariant::OneCommitAPlace, |story| {
        let mut other = commit(2_155, 3, NODE, 20, 3..4, "keep", "done");
        for line in &mut other {
            line["places"] = json!([30]);
            line["expected"] = json!(2);
        }
        story.lines.extend(other);
    });
}

#[test]
fn a_commit_under_an_older_fence_is_flagged() {
    flagged(Invariant::FencesGrow, |story| story.lines.extend(commit(2_145, 1, NODE, 11, 3..4, "keep", "done")));
}

#[test]
fn a_commit_that_was_sent_before_the_newer_lease_was_granted_is_fine() {
    fine(|story| {
        let [mut sent, mut answered] = commit(2_139, 1, NODE, 11, 2..3, "at 5", "done");
        sent["at"] = json!(2_139);
        answered["at"] = json!(2_300);
        story.lines.extend([sent, answered]);
    });
}

#[test]
fn a_fenced_commit_under_an_older_fence_is_fine() {
    fine(|story| story.lines.extend(commit(2_145, 1, NODE, 11, 3..4, "keep", "fenced")));
}

#[test]
fn one_fence_for_two_claims_is_flagged() {
    flagged(Invariant::FencesGrow, |story| story.lines.push(claimed(2_141, 3, NODE, 20, 2)));
}

#[test]
fn fences_that_go_back_in_a_journal_are_flagged() {
    flagged(Invariant::FencesGrow, |story| story.journals[11].1 = 11);
}

#[test]
fn an_effect_under_a_fence_that_was_never_granted_is_flagged() {
    flagged(Invariant::FencesGrow, |story| story.lines.push(effect(2_161, "close", 19)));
}

#[test]
fn an_accepted_order_without_a_workflow_is_flagged() {
    flagged(Invariant::NothingLost, |story| story.line("accepted", 0)["workflow"] = json!("roll-2"));
}

#[test]
fn an_accepted_signal_that_is_in_no_journal_is_flagged() {
    flagged(Invariant::NothingLost, |story| {
        let mut lost = order(150, Some("ada/k2"));
        lost["workflow"] = json!(ROLLOUT);
        story.statuses[0].1 = "needs-operator";
        story.journals.remove(4);
        story.lines.push(lost);
    });
}

#[test]
fn a_signal_that_two_holders_in_a_row_did_not_read_is_flagged() {
    flagged(Invariant::NothingLost, |story| {
        story.lines.push(order(115, Some("ada/k2")));
    });
}

#[test]
fn a_signal_that_came_when_its_workflow_was_about_to_end_is_fine() {
    fine(|story| story.lines.push(order(2_165, Some("ada/k2"))));
}

#[test]
fn an_acknowledged_entry_that_is_gone_is_flagged() {
    flagged(Invariant::NothingLost, |story| story.lines.extend(commit(2_175, 2, NODE, 20, 9..10, "keep", "done")));
}

#[test]
fn an_unanswered_commit_that_is_not_there_is_fine() {
    fine(|story| {
        let [sent, mut unknown] = commit(2_175, 2, NODE, 20, 9..10, "keep", "");
        unknown["event"] = json!("unknown");
        story.lines.extend([sent, unknown]);
    });
}

#[test]
fn a_started_child_that_is_not_there_is_flagged() {
    flagged(Invariant::NothingLost, |story| story.journals[2].2["children"][0]["id"] = json!("roll.gpu-02"));
}

#[test]
fn a_parent_that_was_never_told_is_flagged() {
    flagged(Invariant::NothingLost, |story| story.journals[3].2 = json!({ "event": "resumed", "by": "ada" }));
}

#[test]
fn a_child_whose_end_is_noted_twice_is_flagged() {
    flagged(Invariant::NothingTwice, |story| story.journals.insert(4, story.journals[3].clone()));
}

#[test]
fn a_signal_that_is_followed_twice_is_flagged() {
    flagged(Invariant::NothingTwice, |story| story.journals.insert(11, story.journals[10].clone()));
}

#[test]
fn an_order_that_begins_two_workflows_under_one_key_is_flagged() {
    let sent = |what: &str, key: &str, workflow: &str| {
        let mut order = order(95, None);
        (order["what"], order["key"], order["workflow"]) = (json!(what), json!(key), json!(workflow));
        order
    };
    flagged(Invariant::NothingTwice, |story| story.lines.extend([sent("rollout", "deed-1", ROLLOUT), sent("rollout", "deed-1", NODE)]));
    // Sent twice and answered alike; another key; another kind of order; and what was refused the second time has begun nothing.
    fine(|story| {
        let mut refused = sent("rollout", "deed-1", NODE);
        (refused["event"], refused["workflow"]) = (json!("refused"), Value::Null);
        story.lines.extend([sent("rollout", "deed-1", ROLLOUT), sent("rollout", "deed-1", ROLLOUT), refused]);
        story.lines.extend([sent("rollout", "deed-2", NODE), sent("survey", "deed-1", NODE)]);
    });
}

#[test]
fn a_step_that_begins_or_succeeds_twice_is_flagged() {
    flagged(Invariant::NothingTwice, |story| story.journals.insert(9, story.journals[8].clone()));
    flagged(Invariant::NothingTwice, |story| story.journals.insert(12, story.journals[11].clone()));
}

#[test]
fn undoing_out_of_order_is_flagged() {
    let undone = |step: &str| (NODE, 20, json!({ "event": "step-undone", "step": step }));
    flagged(Invariant::UndoneInReverse, |story| {
        story.journals.splice(11..12, [undone("close"), undone("reprovision")]);
    });
    fine(|story| {
        story.journals.splice(11..12, [undone("reprovision"), undone("close")]);
        // One entry more than the history tells of: it ends later.
        story.lines.retain(|line| line["fence"] != 20 || line["next"] != "end");
        story.lines.extend(commit(2_170, 2, NODE, 20, 6..10, "end", "done"));
    });
}

#[test]
fn what_neither_ends_nor_asks_is_flagged() {
    flagged(Invariant::EverythingEnds, |story| story.statuses[1].1 = "waiting");
    flagged(Invariant::EverythingEnds, |story| drop(story.journals.pop()));
    flagged(Invariant::EverythingEnds, |story| story.statuses[0].1 = "needs-operator");
}

#[test]
fn what_is_still_leased_at_the_end_is_flagged() {
    let story = Story::good();
    let judgement = story.judge_text(&story.history().replace("\"leased\":false", "\"leased\":true"));
    assert_eq!(flags(&judgement), [Invariant::EverythingEnds]);
}

#[test]
fn a_lock_or_a_share_that_nobody_gave_back_is_flagged() {
    let lock = json!({ "event": "holding", "lock": "node:gpu-01", "workflow": NODE });
    let share = json!({ "event": "holding", "budget": "nodes-out", "member": "gpu-01", "workflow": NODE });
    flagged(Invariant::FreeAtTheEnd, |story| story.lines.push(lock));
    flagged(Invariant::FreeAtTheEnd, |story| story.lines.push(share.clone()));
    // An operator has said to leave the node as it is: it counts as out.
    fine(|story| {
        story.lines.push(share);
        story.journals[11].2 = json!({ "event": "operator-answered", "step": "reprovision", "key": "leave", "by": "ada" });
    });
}

#[test]
fn an_effect_before_its_intent_is_flagged() {
    flagged(Invariant::IntentFirst, |story| story.lines.push(effect(119, "close", 11)));
    // The step had begun, but nothing was said of a reset.
    flagged(Invariant::IntentFirst, |story| story.lines.push(effect(2_145, "reset", 20)));
}

#[test]
fn an_entry_that_was_changed_is_flagged_unless_it_was_meant_to_be() {
    let damaged = |story: &Story| story.history().replacen("\\\"by\\\":\\\"ada\\\"", "\\\"by\\\":\\\"adb\\\"", 1);
    let mut story = Story::good();
    assert_eq!(flags(&story.judge_text(&damaged(&story))), [Invariant::JournalsAreWhole]);
    let meant = json!({ "event": "fault", "at": 1, "kind": "journal damaged", "pids": [], "workflow": ROLLOUT, "poisoned": 1 });
    story.lines.push(meant);
    assert_eq!(flags(&story.judge_text(&damaged(&story))), [Invariant::JournalsAreWhole], "damaged, and it went on");
    story.statuses[0].1 = "quarantined";
    assert!(story.judge_text(&damaged(&story)).violations.is_empty());
    // And nothing else may be set aside.
    flagged(Invariant::JournalsAreWhole, |story| story.statuses[1].1 = "quarantined");
}

#[test]
fn what_the_site_saw_is_judged_too() {
    let reset = |seq: u64, instances: &[&str]| {
        json!({
            "seq": seq, "at": 200 + seq, "kind": "reset_requested", "node": "gpu-01", "token": "roll.gpu-01-1", "instances": instances,
            "enabled": false, "obeyed": true,
        })
    };
    let disabled = json!({ "seq": 2, "at": 200, "kind": "service_disabled", "node": "gpu-01", "reason": "us", "was_enabled": true, "by": "caller" });
    let enabled = json!({ "seq": 5, "at": 300, "kind": "service_enabled", "node": "gpu-01", "was_enabled": false, "by": "caller" });
    flagged(Invariant::NothingTwice, |story| story.site.extend([disabled.clone(), reset(3, &[]), reset(4, &[]), enabled.clone()]));
    flagged(Invariant::NoImageOnInstances, |story| story.site.extend([disabled.clone(), reset(3, &["vm-1"])]));
    flagged(Invariant::LeftAsFound, |story| story.site.push(disabled.clone()));
    let answered = |event: &str, key: &str| {
        let mut story = Story::good();
        story.site.extend([disabled.clone(), reset(3, &[]), reset(4, &[]), enabled.clone()]);
        story.journals[9].2["event"] = json!(event);
        story.journals[9].2["key"] = json!(key);
        story.lines.retain(|line| line["call"] != "reset");
        flags(&story.judge())
    };
    // An operator has wanted another reset; another try is not that.
    assert_eq!(answered("operator-answered", "netboot"), []);
    assert!(answered("operator-answered", "retry").contains(&Invariant::NothingTwice));
    assert!(answered("retry-requested", "netboot").contains(&Invariant::NothingTwice));
}

#[test]
fn the_time_to_recovery_is_from_the_blow_to_the_next_commit() {
    let recoveries = Story::good().judge().recoveries;
    let [recovery] = recoveries.as_slice() else { panic!("{recoveries:?}") };
    assert_eq!((recovery.struck, recovery.workflow.as_str()), (Struck::WorkerKilled, NODE));
    assert_eq!((recovery.claimed_ms, recovery.committed_ms), (Some(2_000), Some(2_011)));
}

#[test]
fn who_was_killed_before_it_could_say_that_it_had_something_is_known_by_what_the_store_counts() {
    let killed = |at: i64, pid: u64| json!({ "event": "fault", "at": at, "kind": "worker killed", "pids": [pid] });
    let unheard = |tries: u64, more: Vec<Value>| {
        let mut story = Story::good();
        story.lines.iter_mut().find(|line| line["event"] == "claimed" && line["fence"] == 20).unwrap()["tries"] = json!(tries);
        story.lines.extend(more);
        story.judge().recoveries.last().unwrap().unheard
    };
    // The lease of who was killed at 140 has expired; it had committed under it.
    assert_eq!(unheard(1, vec![]), 0);
    // It was granted to somebody meanwhile. Only who was killed has an excuse.
    assert_eq!(unheard(2, vec![]), 0);
    assert_eq!(unheard(2, vec![killed(500, 9)]), 1);
    // One more has said that it had it, the second after somebody unheard of, and was killed at 1,100.
    let one_more = |tries: u64| {
        let mut told = claimed(1_000, 3, NODE, 15, 2);
        told["tries"] = json!(tries);
        vec![killed(500, 9), told, killed(1_100, 3), killed(1_200, 8)]
    };
    assert_eq!(unheard(2, one_more(1)), 0);
    assert_eq!(unheard(3, one_more(1)), 1);
    assert_eq!(unheard(3, one_more(2)), 0, "who was unheard of before that is none of this one's");
}

#[test]
fn rare_paths_are_counted() {
    let reached = Story::good().judge().reached;
    let times = |what: &str| reached.iter().find(|reached| reached.what == what).unwrap().times;
    assert_eq!(times("an expired lease was taken over"), 1);
    assert_eq!(times("a commit was fenced"), 0);
    assert_eq!(times("an effect was cut short by its worker's end"), 2);
    assert_eq!(times("a child told its parent of its end"), 1);
    assert_eq!(times("a worker died or was paused with work in hand"), 1);
    assert_eq!(times("a request was sent again under its key"), 0);
}

#[test]
fn a_kill_of_redis_is_no_kill_of_a_worker() {
    let mut story = Story::good();
    story.line("fault", 0)["kind"] = json!("Redis killed");
    let judgement = story.judge();
    assert_eq!(judgement.recoveries.len(), 1, "{:?}", judgement.recoveries);
    let of_workers = judgement.reached.iter().find(|reached| reached.what == "a worker died or was paused with work in hand").unwrap();
    assert_eq!(of_workers.times, 0);
}
