//! Lines on standard error: for a person at a terminal, for the journal, or for a program that reads them.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{Level, Metadata};
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::{EnvFilter, FilterExt as _, dynamic_filter_fn};
use tracing_subscriber::fmt::format;
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::Registry;

use super::TelemetryError;

/// The exporters complain at each export about a dead collector, some times a second in all. Once in this long is
/// enough to know it, and leaves the rest of the log readable.
const COMPLAINT_EVERY: Duration = Duration::from_secs(60);

pub(super) fn layer(filter: &str) -> Result<Box<dyn Layer<Registry> + Send + Sync>, TelemetryError> {
    let filter = self::filter(filter)?.and(dynamic_filter_fn(complaints()));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // What is only for the exporter (the span's name there) is no news to whoever reads lines.
    let fields = format::debug_fn(|writer, field, value| match field.name() {
        "message" => write!(writer, "{value:?}"),
        name if name.starts_with("otel.") => Ok(()),
        name => write!(writer, "{name}={value:?}"),
    })
    .delimited(" ");
    Ok(if std::io::stderr().is_terminal() {
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        lines.fmt_fields(fields).with_target(false).with_ansi(colours).with_filter(filter).boxed()
    } else if std::env::var_os("JOURNAL_STREAM").is_some() {
        // The journal knows the time.
        lines.fmt_fields(fields).with_target(false).with_ansi(false).without_time().with_filter(filter).boxed()
    } else {
        lines.json().flatten_event(true).with_current_span(false).with_ansi(false).with_filter(filter).boxed()
    })
}

pub(super) fn filter(text: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder().parse(text).map_err(|source| TelemetryError::Filter { filter: text.to_owned(), source })
}

/// Lets everything pass but the exporters' complaints, of which one in [`COMPLAINT_EVERY`] passes.
fn complaints<S>() -> impl Fn(&Metadata<'_>, &tracing_subscriber::layer::Context<'_, S>) -> bool {
    let begun = Instant::now();
    // Seconds after `begun` from which on the next may pass.
    let next = AtomicU64::new(0);
    move |metadata, _| {
        if !metadata.target().starts_with("opentelemetry") || !metadata.is_event() {
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

    use tracing::{Event, error, info};
    use tracing_subscriber::layer::{Context, SubscriberExt as _};

    use super::*;

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
        let layer = count.clone().with_filter(filter("info").unwrap().and(dynamic_filter_fn(complaints())));
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
