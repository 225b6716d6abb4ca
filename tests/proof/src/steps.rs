//! Every definition of a registry, with its steps watched: the gate learns when a step's own code runs.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use turnaround_workflows::engine::{AnyStep, Definition, Observed, PastDeadline, Policy, Progress, Registry, Report, State, StepCx, StepError, Undone};
use turnaround_workflows::ports::Ports;
use turnaround_workflows::store::{Queue, Resource, Take, WorkflowId};

use crate::gate::{At, Gate, Moment};

struct Watched {
    definition: Arc<Definition>,
    place: usize,
    gate: Arc<Gate>,
}

/// `registry`, with every step watched.
pub(super) fn watched(registry: &Registry, gate: &Arc<Gate>) -> Registry {
    Registry::new(registry.all().map(|definition| {
        let watch = |place| Box::new(Watched { definition: definition.clone(), place, gate: gate.clone() }) as Box<dyn AnyStep>;
        let steps = (0..definition.steps.len()).map(watch).collect();
        Definition { kind: definition.kind, version: definition.version, steps }
    }))
}

impl Watched {
    fn step(&self) -> &dyn AnyStep {
        &*self.definition.steps[self.place]
    }

    fn at(&self, undoing: bool) -> At {
        At { kind: self.definition.kind, step: self.step().name(), undoing }
    }

    async fn watch<T>(&self, cx: &StepCx<'_>, undoing: bool, begins: bool, ends: impl FnOnce(&T) -> bool, call: impl Future<Output = T>) -> T {
        self.gate.is_at(cx.id, self.at(undoing));
        if begins {
            self.gate.pass(Moment::EffectBegun).await;
        }
        let done = call.await;
        if ends(&done) {
            self.gate.pass(Moment::EffectDone).await;
        }
        done
    }
}

#[async_trait]
impl AnyStep for Watched {
    fn name(&self) -> &'static str {
        self.step().name()
    }

    fn is_point_of_no_return(&self) -> bool {
        self.step().is_point_of_no_return()
    }

    fn queue(&self) -> Queue {
        self.step().queue()
    }

    fn policy(&self, cx: &StepCx<'_>) -> Policy {
        self.step().policy(cx)
    }

    fn takes(&self, cx: &StepCx<'_>) -> Result<Vec<Take>, StepError> {
        self.step().takes(cx)
    }

    fn gives(&self, cx: &StepCx<'_>) -> Result<Vec<Resource>, StepError> {
        self.step().gives(cx)
    }

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<Value>, StepError> {
        // A step that only looks has its effect here; all others go on to `act`.
        let over = |seen: &Result<Observed<Value>, StepError>| !matches!(seen, Ok(Observed::ToDo { .. }));
        self.watch(cx, false, true, over, self.step().observe(cx)).await
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<Value>, StepError> {
        self.watch(cx, false, false, |_| true, self.step().act(cx)).await
    }

    async fn overdue(&self, cx: &StepCx<'_>) -> Result<PastDeadline, StepError> {
        self.step().overdue(cx).await
    }
    fn hears(&self, so_far: &State, report: &Report) -> bool {
        self.step().hears(so_far, report)
    }

    async fn undo(&self, cx: &StepCx<'_>) -> Result<Undone, StepError> {
        self.watch(cx, true, true, |_| true, self.step().undo(cx)).await
    }

    async fn leave(&self, cx: &StepCx<'_>) -> Result<(), StepError> {
        self.step().leave(cx).await
    }

    async fn discard(&self, ports: &Ports, id: &WorkflowId, target: &str) -> Result<(), StepError> {
        self.step().discard(ports, id, target).await
    }
}
