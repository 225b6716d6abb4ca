//! Lines on standard error: for a person at a terminal, for the journal, or for a program that reads them.

use std::fmt;
use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata, Subscriber};
use tracing::field::{Field, Visit};
use tracing::span::Record;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::{EnvFilter, FilterExt as _, LevelFilter, Targets, dynamic_filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FormatFields, FormattedFields};
use tracing_subscriber::layer::{self, Layer};
use tracing_subscriber::registry::Registry;

use super::TelemetryError;
use super::limit::LineLimit;

/// The exporters complain at each export about a dead collector, some times a second in all. Once in this long is
/// enough to know it, and leaves the rest of the log readable.
const COMPLAINT_EVERY: Duration = Duration::from_secs(60);

pub(super) fn layer(filter: &str) -> Result<Box<dyn Layer<Registry> + Send + Sync>, TelemetryError> {
    let filter = self::filter(filter)?.and(complaints()).and(LineLimit::telling());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    Ok(if std::io::stderr().is_terminal() {
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        lines.fmt_fields(Fields).with_target(false).with_ansi(colours).with_filter(filter).boxed()
    } else if std::env::var_os("JOURNAL_STREAM").is_some() {
        // The journal knows the time.
        lines.fmt_fields(Fields).with_target(false).with_ansi(false).without_time().with_filter(filter).boxed()
    } else {
        lines.json().flatten_event(true).with_current_span(false).with_ansi(false).with_filter(filter).boxed()
    })
}

pub(super) fn filter(text: &str) -> Result<Box<dyn layer::Filter<Registry> + Send + Sync>, TelemetryError> {
    let filter = EnvFilter::builder().parse(text).map_err(|source| TelemetryError::Filter { filter: text.to_owned(), source })?;
    // One by spans or fields (`[step]=debug`) has to be told of each span that is entered, left or closed; the usual one has not. (Alone, `Targets` takes what
    // is none: it means nothing then.)
    match text.parse::<Targets>() {
        Ok(targets) if !text.contains('[') => Ok(Box::new(targets)),
        Ok(_) | Err(_) => Ok(Box::new(filter)),
    }
}

/// Fields as `name=value`, without those that are only for the exporter (the span's name and status there).
struct Fields;

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = Line { writer, begun: false, written: Ok(()) };
        fields.record(&mut line);
        line.written
    }

    fn add_fields(&self, current: &'writer mut FormattedFields<Self>, fields: &Record<'_>) -> fmt::Result {
        let begun = !current.fields.is_empty();
        let mut line = Line { writer: current.as_writer(), begun, written: Ok(()) };
        fields.record(&mut line);
        line.written
    }
}

struct Line<'writer> {
    writer: Writer<'writer>,
    /// Something stands there already.
    begun: bool,
    written: fmt::Result,
}

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let name = field.name();
        if name.starts_with("otel.") || self.written.is_err() {
            return;
        }
        let gap = if std::mem::replace(&mut self.begun, true) { " " } else { "" };
        self.written = match name {
            "message" => write!(self.writer, "{gap}{value:?}"),
            _ => write!(self.writer, "{gap}{name}={value:?}"),
        };
    }
}

/// Lets everything pass but the exporters' complaints, of which one in [`COMPLAINT_EVERY`] passes.
fn complaints<S: Subscriber>() -> impl layer::Filter<S> {
    // Only they are asked about each time.
    let interest = |metadata: &Metadata<'_>| if complains(metadata) { Interest::sometimes() } else { Interest::always() };
    dynamic_filter_fn(one_complaint()).with_callsite_filter(interest).with_max_level_hint(LevelFilter::TRACE)
}

fn complains(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("opentelemetry") && metadata.is_event()
}

fn one_complaint<S>() -> impl Fn(&Metadata<'_>, &layer::Context<'_, S>) -> bool {
    let begun = Instant::now();
    // Seconds after `begun` from which on the next may pass.
    let next = AtomicU64::new(0);
    move |metadata, _| {
        if !complains(metadata) {
            return true;
        }
        let now = begun.elapsed().as_secs();
        let from = next.load(Ordering::Relaxed);
        *metadata.level() <= Level::WARN
            && now >= from
            && next.compare_exchange(from, now + COMPLAINT_EVERY.as_secs(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing::field::Empty;
    use tracing::{Event, error, info, info_span};
    use tracing_subscriber::layer::{Context, SubscriberExt as _};

    use super::*;

    /// What is written, for a test to read.
    #[derive(Clone, Default)]
    struct Paper(Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_says_where_it_belongs_and_nothing_that_is_only_for_the_exporter() {
        let paper = Paper::default();
        let writer = paper.clone();
        let lines = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        let lines = lines.fmt_fields(Fields).with_target(false).with_ansi(false).without_time();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            let activation = info_span!("activation", otel.name = "node-os gpu-01", trace = Empty, workflow = %"renew-1");
            activation.record("trace", "0af7");
            let _entered = activation.entered();
            let step = info_span!("step", otel.name = "close", step = "close", otel.status_code = Empty);
            step.record("otel.status_code", "error");
            step.in_scope(|| info!(node = %"gpu-01", "node closed"));
        });
        let written = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        assert_eq!(written, " INFO activation{workflow=renew-1 trace=\"0af7\"}:step{step=\"close\"}: node closed node=gpu-01\n");
    }

    #[derive(Clone, Default)]
    struct Count(Arc<AtomicU64>);

    impl Layer<Registry> for Count {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, Registry>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_collector_is_told_of_once_a_minute_and_hides_nothing_else() {
        let count = Count::default();
        let layer = count.clone().with_filter(filter("info").unwrap().and(complaints()));
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        let complain = || error!(target: "opentelemetry_sdk", "export failed");
        let passed = || count.0.swap(0, Ordering::Relaxed);
        (0..5).for_each(|_| complain());
        assert_eq!(passed(), 1);
        (0..5).for_each(|_| info!("node closed"));
        assert_eq!(passed(), 5);
        tokio::time::advance(COMPLAINT_EVERY).await;
        (0..5).for_each(|_| complain());
        assert_eq!(passed(), 1);
        drop(guard);
    }
}
