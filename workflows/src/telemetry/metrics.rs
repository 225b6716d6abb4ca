pub(super) fn install(_meter: &opentelemetry::metrics::Meter) {}
