//! What is counted and measured. Labels come from small fixed sets (kinds, steps, outcomes), never ids, nodes or
//! worker names, so that a site of any size costs its metrics store the same.
//!
//! Every function may be called from anywhere at any time; where nothing is exported they do nothing.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};

use crate::store::Status;

/// The instruments of this program. Empty without a collector.
static INSTRUMENTS: OnceLock<Instruments> = OnceLock::new();

/// Open workflows by status, in the order of [`Status::ALL`], as last told.
static OPEN: [AtomicU64; Status::ALL.len()] = [const { AtomicU64::new(NEVER_TOLD) }; Status::ALL.len()];
/// Alarms by code: 1 while raised, 0 once over. What was never raised is not told.
static ALARMS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());
/// This program has not looked, so it says nothing rather than 0.
const NEVER_TOLD: u64 = u64::MAX;

/// Seconds. From one API call (some 10 ms) over a poll to a whole evacuation kept in one call.
const STEP_SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0];
/// Seconds. One fsync is 1 to 10 ms; what took seconds has met an outage.
const COMMIT_SECONDS: [f64; 11] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0];
/// Workflows. Up to the most that one call hands out.
const CLAIMED_WORKFLOWS: [f64; 8] = [0.0, 1.0, 2.0, 4.0, 8.0, 32.0, 128.0, 256.0];

struct Instruments {
    activations: Counter<u64>,
    step_seconds: Histogram<f64>,
    step_failures: Counter<u64>,
    workflows_ended: Counter<u64>,
    claimed: Histogram<u64>,
    commit_seconds: Histogram<f64>,
    leases_lost: Counter<u64>,
    store_outages: Counter<u64>,
    quarantined: Counter<u64>,
    lines_left_out: Counter<u64>,
    traces_left_out: Counter<u64>,
}

/// A workflow was brought on by a worker. `outcome`: `parked`, `ended` or `lost`.
pub fn activated(kind: &'static str, outcome: &'static str) {
    with(|all| all.activations.add(1, &[KeyValue::new("kind", kind), KeyValue::new("outcome", outcome)]));
}

/// A step (or its undoing) was called once. `outcome` says what came of that call, not of the step as a whole.
pub fn step_finished(kind: &'static str, step: &'static str, outcome: StepOutcome, took: Duration) {
    with(|all| {
        let labels = [KeyValue::new("kind", kind), KeyValue::new("step", step), KeyValue::new("outcome", outcome.as_str())];
        all.step_seconds.record(took.as_secs_f64(), &labels);
        if outcome.is_failure() {
            all.step_failures.add(1, &labels);
        }
    });
}

/// A workflow came to its end. `outcome`: `succeeded`, `failed` or `aborted`.
pub fn workflow_ended(kind: &'static str, outcome: &'static str) {
    with(|all| all.workflows_ended.add(1, &[KeyValue::new("kind", kind), KeyValue::new("outcome", outcome)]));
}

/// One call to the store handed out so many workflows.
pub fn claimed(workflows: u64) {
    with(|all| all.claimed.record(workflows, &[]));
}

/// One call that carried commits was answered, from its first sending on.
pub fn committed(took: Duration) {
    with(|all| all.commit_seconds.record(took.as_secs_f64(), &[]));
}

/// Work in hand turned out to be somebody else's.
pub fn lease_lost() {
    with(|all| all.leases_lost.add(1, &[]));
}

/// The store stopped answering. Once for each outage, however often it is asked again meanwhile.
pub fn store_outage() {
    with(|all| all.store_outages.add(1, &[]));
}

/// A workflow was set apart because what is kept of it can't be right. Somebody should look.
pub fn quarantined() {
    with(|all| all.quarantined.add(1, &[]));
}

/// So many lines were not written, because there were too many in one second.
pub(super) fn lines_left_out(lines: u64) {
    with(|all| all.lines_left_out.add(lines, &[]));
}

/// So many traces were not exported, likewise.
pub(super) fn traces_left_out(traces: u64) {
    with(|all| all.traces_left_out.add(traces, &[]));
}

/// How many workflows are open, by status; what is not in `counts` is none. To be told now and then by whoever looks.
pub fn workflows_open(counts: &[(Status, u64)]) {
    for (status, open) in Status::ALL.iter().zip(&OPEN) {
        let told = counts.iter().filter(|(counted, _)| counted == status).map(|(_, count)| count).sum();
        open.store(told, Ordering::Relaxed);
    }
}

/// An alarm was raised, or is over.
pub fn alarm(code: &'static str, raised: bool) {
    ALARMS.lock().unwrap_or_else(PoisonError::into_inner).insert(code, u64::from(raised));
}

/// What came of one call of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOutcome {
    Done,
    /// Not done yet: it will be looked at again, or waits for children.
    Waits,
    /// Failed; it will be tried again, or has used up its patience.
    Retry,
    /// Only an operator can decide.
    Asks,
    /// Nobody can mend it.
    Fatal,
    /// The workflow is somebody else's now.
    LeaseLost,
}

impl StepOutcome {
    pub fn as_str(self) -> &'static str {
        match self {
            StepOutcome::Done => "done",
            StepOutcome::Waits => "waits",
            StepOutcome::Retry => "retry",
            StepOutcome::Asks => "asks",
            StepOutcome::Fatal => "fatal",
            StepOutcome::LeaseLost => "lease-lost",
        }
    }

    pub fn is_failure(self) -> bool {
        match self {
            StepOutcome::Retry | StepOutcome::Asks | StepOutcome::Fatal => true,
            StepOutcome::Done | StepOutcome::Waits | StepOutcome::LeaseLost => false,
        }
    }
}

fn with(record: impl FnOnce(&Instruments)) {
    if let Some(all) = INSTRUMENTS.get() {
        record(all);
    }
}

/// From now on what is counted goes to `meter`. The first call of a program counts.
pub(super) fn install(meter: &Meter) {
    INSTRUMENTS.get_or_init(|| instruments(meter));
}

fn instruments(meter: &Meter) -> Instruments {
    // The meter keeps what it observes; the handles are of no further use.
    let _ = meter
        .u64_observable_gauge("turnaround.workflows.open")
        .with_unit("{workflow}")
        .with_description("Open workflows, by status")
        .with_callback(|observer| {
            for (status, open) in Status::ALL.iter().zip(&OPEN).filter(|(status, _)| !status.is_ended()) {
                let open = open.load(Ordering::Relaxed);
                if open != NEVER_TOLD {
                    observer.observe(open, &[KeyValue::new("status", status.as_str())]);
                }
            }
        })
        .build();
    let _ = meter
        .u64_observable_gauge("turnaround.questions.open")
        .with_unit("{question}")
        .with_description("Workflows that wait for an operator's answer")
        .with_callback(|observer| {
            for (status, open) in Status::ALL.iter().zip(&OPEN) {
                let open = open.load(Ordering::Relaxed);
                if *status == Status::NeedsOperator && open != NEVER_TOLD {
                    observer.observe(open, &[]);
                }
            }
        })
        .build();
    let _ = meter
        .u64_observable_gauge("turnaround.alarms")
        .with_unit("{alarm}")
        .with_description("1 while an alarm is raised, by its code")
        .with_callback(|observer| {
            for (code, raised) in ALARMS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                observer.observe(*raised, &[KeyValue::new("code", *code)]);
            }
        })
        .build();
    Instruments {
        activations: counter(meter, "turnaround.activations", "{activation}", "Times that a worker brought a workflow on"),
        step_seconds: histogram(meter, "turnaround.step.duration", "How long one call of a step took", &STEP_SECONDS),
        step_failures: counter(meter, "turnaround.step.failures", "{failure}", "Calls of steps that failed"),
        workflows_ended: counter(meter, "turnaround.workflows.ended", "{workflow}", "Workflows that came to their end"),
        claimed: meter
            .u64_histogram("turnaround.store.claimed")
            .with_unit("{workflow}")
            .with_description("Workflows handed out by one call")
            .with_boundaries(CLAIMED_WORKFLOWS.to_vec())
            .build(),
        commit_seconds: histogram(meter, "turnaround.store.commit.duration", "Round trip of a call that carried commits", &COMMIT_SECONDS),
        leases_lost: counter(meter, "turnaround.leases.lost", "{lease}", "Leases that were lost while work was under way"),
        lines_left_out: counter(meter, "turnaround.telemetry.lines_left_out", "{line}", "Lines that were not written: too many in one second"),
        traces_left_out: counter(meter, "turnaround.telemetry.traces_left_out", "{trace}", "Traces that were not exported: too many in one second"),
        store_outages: counter(meter, "turnaround.store.outages", "{outage}", "Times that the store stopped answering"),
        quarantined: counter(meter, "turnaround.workflows.quarantined", "{workflow}", "Workflows set apart because what is kept of them can't be right"),
    }
}

fn counter(meter: &Meter, name: &'static str, unit: &'static str, what: &'static str) -> Counter<u64> {
    meter.u64_counter(name).with_unit(unit).with_description(what).build()
}

fn histogram(meter: &Meter, name: &'static str, what: &'static str, seconds: &[f64]) -> Histogram<f64> {
    meter.f64_histogram(name).with_unit("s").with_description(what).with_boundaries(seconds.to_vec()).build()
}
