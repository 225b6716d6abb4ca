//! What a kind of workflow consists of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{AnyStep, Report, State};
use crate::store::Queue;

/// A kind of workflow: its steps in order, to be read aloud.
pub struct Definition {
    /// Stable: records name it.
    pub kind: &'static str,
    /// Grows whenever a step is added, removed, renamed or reordered. A workflow begun under another version
    /// waits for a worker that has that version; nobody guesses.
    pub version: u32,
    pub steps: Vec<Box<dyn AnyStep>>,
}

impl Definition {
    pub fn step_names(&self) -> Vec<&'static str> {
        self.steps.iter().map(|step| step.name()).collect()
    }

    pub fn step(&self, name: &str) -> Option<&dyn AnyStep> {
        self.steps.iter().find(|step| step.name() == name).map(|step| &**step)
    }

    /// Does a step that has begun want to know of `report`? Asked by whoever takes reports, and again by the worker that reads them.
    pub fn hears(&self, so_far: &State, report: &Report) -> bool {
        so_far.steps.iter().filter_map(|record| self.step(&record.step)).any(|step| step.hears(so_far, report))
    }
}

/// Every definition that this program knows. Crash tests enumerate it.
#[derive(Clone, Default)]
pub struct Registry(BTreeMap<&'static str, Arc<Definition>>);

impl Registry {
    pub fn new(definitions: impl IntoIterator<Item = Definition>) -> Registry {
        Registry(definitions.into_iter().map(|definition| (definition.kind, Arc::new(definition))).collect())
    }

    pub fn get(&self, kind: &str) -> Option<&Arc<Definition>> {
        self.0.get(kind)
    }

    /// Every queue that a step of a known kind waits in, and the one where workflows begin; sorted.
    pub fn queues(&self) -> Vec<Queue> {
        let steps = self.all().flat_map(|definition| definition.steps.iter().map(|step| step.queue()));
        steps.chain([Queue::DEFAULT]).collect::<BTreeSet<_>>().into_iter().collect()
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Definition>> {
        self.0.values()
    }
}
