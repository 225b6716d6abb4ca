//! W3C trace context in and out of stored records.
//!
//! No span is held open across a park or a crash: each activation of a workflow is a trace of its own, linked
//! to the one before it, whose context the record keeps.

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::export;

/// The flags of a trace that is not exported.
const NOT_SAMPLED: &str = "-00";

/// The W3C `traceparent` of `span`; None where nothing is traced.
pub fn traceparent(span: &Span) -> Option<String> {
    here(span).map(|here| written(&here))
}

/// Where `span` is; None where nothing is traced.
fn here(span: &Span) -> Option<SpanContext> {
    let context = span.context();
    let here = context.span().span_context().clone();
    here.is_valid().then_some(here)
}

fn written(here: &SpanContext) -> String {
    format!("00-{}-{}-{:02x}", here.trace_id(), here.span_id(), here.trace_flags().to_u8())
}

/// As [`traceparent`], and writes the trace's id into the span's field `trace`, so that every log line says to which trace
/// it belongs. For spans that begin a trace.
pub fn show_trace(span: &Span) -> Option<String> {
    let here = here(span)?;
    span.record("trace", tracing::field::display(here.trace_id()));
    Some(written(&here))
}

/// Nothing is exported of this trace, although there is a collector: there are too many. Then a span within it is worth nothing to anybody but
/// the lines written in it, which the trace's first span tells from those of others.
pub(crate) fn is_left_out(traceparent: Option<&str>) -> bool {
    traceparent.is_some_and(|traceparent| traceparent.ends_with(NOT_SAMPLED)) && export::is_on()
}

/// The W3C `traceparent` of where the caller is: what a new workflow's first activation is to be linked to.
pub fn current_traceparent() -> Option<String> {
    traceparent(&Span::current())
}

/// The variable of a child process's environment that lets it go on with our trace.
pub fn child_env() -> Option<(String, String)> {
    current_traceparent().map(|traceparent| ("TRACEPARENT".to_owned(), traceparent))
}

/// Links `span` to the one that `traceparent` names. A malformed one is left out: a broken link must not stop an update.
pub fn link(span: &Span, traceparent: Option<&str>) {
    if let Some(there) = traceparent.and_then(parse) {
        span.add_link(there);
    }
}

fn parse(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::default(),
    );
    (version == "00" && context.is_valid()).then_some(context)
}
