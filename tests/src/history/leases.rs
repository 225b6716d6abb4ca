//! Who may write: fences grow, and one commit stands at each place.

use std::collections::BTreeMap;

use super::facts::Facts;
use super::{Invariant, Violation};

pub(super) fn judge(facts: &Facts, violations: &mut Vec<Violation>) {
    each_fence_once(facts, violations);
    older_fences_write_nothing(facts, violations);
    one_commit_a_place(facts, violations);
    journals_keep_the_order(facts, violations);
}

fn say(violations: &mut Vec<Violation>, invariant: Invariant, what: String) {
    violations.push(Violation { invariant, what });
}

fn each_fence_once(facts: &Facts, violations: &mut Vec<Violation>) {
    let mut granted: BTreeMap<u64, (&str, u64)> = BTreeMap::new();
    for claim in &facts.claims {
        if let Some((workflow, pid)) = granted.insert(claim.fence, (&claim.workflow, claim.pid)) {
            let what = format!("fence {} was granted on {workflow} to {pid}, and on {} to {}", claim.fence, claim.workflow, claim.pid);
            say(violations, Invariant::FencesGrow, what);
        }
    }
}

/// A commit that is first sent after somebody else was seen to have a newer lease is refused.
fn older_fences_write_nothing(facts: &Facts, violations: &mut Vec<Violation>) {
    for (commit, sent) in facts.commits.iter().filter(|(_, sent)| sent.done().is_some()) {
        let newer = facts.claims_of(&commit.workflow).iter().find(|claim| claim.fence > commit.fence && claim.at < sent.first);
        if let Some(newer) = newer {
            let what = format!(
                "{} was committed to under fence {} by {}, {} ms after {} had fence {}",
                commit.workflow,
                commit.fence,
                commit.pid,
                sent.first - newer.at,
                newer.pid,
                newer.fence
            );
            say(violations, Invariant::FencesGrow, what);
        }
    }
}

fn one_commit_a_place(facts: &Facts, violations: &mut Vec<Violation>) {
    let mut places: BTreeMap<(&str, u64), (&str, u64)> = BTreeMap::new();
    for (commit, _) in facts.commits.iter().filter(|(_, sent)| sent.done().is_some()) {
        for (seq, digest) in (commit.expected + 1..).zip(&commit.digests) {
            let before = places.insert((&commit.workflow, seq), (digest, commit.fence));
            if let Some((other, fence)) = before
                && other != digest
            {
                let what = format!("entry {seq} of {} was acknowledged under fence {fence}, and another one under {}", commit.workflow, commit.fence);
                say(violations, Invariant::OneCommitAPlace, what);
            }
        }
    }
}

fn journals_keep_the_order(facts: &Facts, violations: &mut Vec<Violation>) {
    for (id, workflow) in &facts.workflows {
        let mut newest = 0;
        for (seq, entry) in &workflow.entries {
            // Whose text was damaged on purpose says nothing any more.
            if facts.poisoned(id) == Some(*seq) {
                continue;
            }
            if entry.fence() < newest {
                let what = format!("entry {seq} of {id} was written under fence {}, after one under {newest}", entry.fence());
                say(violations, Invariant::FencesGrow, what);
            }
            newest = newest.max(entry.fence());
        }
    }
}
