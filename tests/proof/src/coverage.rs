//! Which points of which steps were reached, held against the registry: a step that nobody was killed in is not proven.

use std::collections::BTreeSet;

use turnaround_workflows::engine::Registry;

use crate::gate::{At, Moment, Point};

/// The points of every step, and of every undoing of a step.
const POINTS: [Moment; 6] = [
    Moment::Claimed,
    Moment::IntentWritten,
    Moment::EffectBegun,
    Moment::EffectDone,
    Moment::CommitSent,
    Moment::CommitReplied,
];

/// What was struck, and where.
#[derive(Debug, Clone, Default)]
pub struct Coverage(BTreeSet<(At, Moment)>);

impl Coverage {
    pub fn add(&mut self, point: &Point) {
        self.0.insert((point.at, point.moment));
    }

    pub fn extend(&mut self, other: Coverage) {
        self.0.extend(other.0);
    }

    /// Every point of every step of `registry` that was not reached, in words. What comes after a point of no return is never undone.
    pub fn missing(&self, registry: &Registry) -> Vec<String> {
        let mut missing = Vec::new();
        for definition in registry.all() {
            let mut may_be_undone = true;
            for step in &definition.steps {
                may_be_undone &= !step.is_point_of_no_return();
                for undoing in [false, true].into_iter().take(1 + usize::from(may_be_undone)) {
                    let at = At { kind: definition.kind, step: step.name(), undoing };
                    let unmet = POINTS.into_iter().filter(|moment| !self.0.contains(&(at, *moment)));
                    missing.extend(unmet.map(|moment| {
                        let what = if undoing { "the undoing of " } else { "" };
                        format!("{}: {what}`{}`: {moment:?}", at.kind, at.step)
                    }));
                }
            }
        }
        missing
    }
}
