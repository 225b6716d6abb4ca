//! One call of one step, told to trace and metrics alike.

use tokio::time::Instant;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::metrics::{self, StepOutcome};

/// A call that is under way. One that is dropped without its end was cut short by a lost lease.
pub(crate) struct StepCall {
    kind: &'static str,
    step: &'static str,
    span: Span,
    begun: Instant,
}

impl StepCall {
    /// `span` has the empty field `otel.status_code`.
    pub(crate) fn begin(kind: &'static str, step: &'static str, span: Span) -> StepCall {
        StepCall { kind, step, span, begun: Instant::now() }
    }

    pub(crate) fn end(self, outcome: StepOutcome) {
        // For the trace alone: no line follows that would show a field.
        self.span.set_attribute("outcome", outcome.as_str());
        if outcome.is_failure() {
            self.span.record("otel.status_code", "error");
        }
        metrics::step_finished(self.kind, self.step, outcome, self.begun.elapsed());
    }
}
