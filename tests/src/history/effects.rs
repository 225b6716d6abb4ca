//! What was done to the world: by whom, and after which intent.

use std::collections::BTreeMap;

use super::facts::{Claim, Effect, Facts, Workflow};
use super::{Invariant, Violation};

pub(super) fn judge(facts: &Facts, violations: &mut Vec<Violation>) {
    let claims: BTreeMap<(&str, u64), &Claim> =
        facts.claims.iter().map(|claim| ((claim.workflow.as_str(), claim.fence), claim)).collect();
    for effect in facts.effects.iter().filter(|effect| facts.poisoned(&effect.workflow).is_none()) {
        let Some(claim) = claims.get(&(effect.workflow.as_str(), effect.fence)) else {
            let what = format!("{} of {} for {} under fence {}, which was never granted", effect.call, effect.on, effect.workflow, effect.fence);
            violations.push(Violation { invariant: Invariant::FencesGrow, what });
            continue;
        };
        if let Some(why) = facts.workflows.get(&effect.workflow).and_then(|workflow| objection(facts, workflow, effect, claim.seq)) {
            let what = format!("{} of {} for {}: {why}", effect.call, effect.on, effect.workflow);
            violations.push(Violation { invariant: Invariant::IntentFirst, what });
        }
    }
}

/// Why the effect should not have begun yet, by what its worker knew to be in the journal.
fn objection(facts: &Facts, workflow: &Workflow, effect: &Effect, claimed: u64) -> Option<String> {
    let own = facts
        .commits_of(&effect.workflow)
        .filter(|(commit, sent)| commit.fence == effect.fence && sent.done().is_some_and(|at| at <= effect.at));
    let known = own.map(|(commit, _)| commit.expected + commit.digests.len() as u64).max().unwrap_or(0).max(claimed);
    let mut current = None;
    let mut newest = "";
    for (_, entry) in workflow.entries.range(..=known) {
        match entry.event() {
            "step-begun" | "undo-begun" => current = Some(entry.text("step")),
            "step-succeeded" | "step-undone" | "unwind-begun" | "ended" => current = None,
            _ => {}
        }
        newest = entry.event();
    }
    match current {
        None => Some(format!("no step was known to have begun; its newest entry was {known}, `{newest}`")),
        // A reset can't be looked up at the BMC, and Ironic would do a rebuild again: they have an intent of their own, right before them.
        Some(step) if matches!(effect.call.as_str(), "reset" | "rebuild") && newest != "step-checkpointed" => {
            Some(format!("`{step}` had begun, and the intent to {} was not written down; its newest entry was {known}, `{newest}`", effect.call))
        }
        Some(_) => None,
    }
}
