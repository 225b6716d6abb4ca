//! What is told in one second, at most: a flood is read by nobody, costs more than the work that it tells of, and is thrown away by
//! whoever takes it (the journal by default takes some 300 lines a second, our own queues 4,096 spans).

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use opentelemetry::trace::{Link, SpanKind, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, ShouldSample};
use tokio::time::Instant;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata, Subscriber, warn};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{self, Filter};

use super::metrics;

/// Lines of level info and below, of each exit. A worker of a large site (10,000 nodes, each looked at twice a minute) writes
/// some hundred; warnings and errors always pass.
pub(super) const LINES_PER_SECOND: u32 = 1_000;
/// Traces that begin: activations, requests, jobs. That large site has some 300 activations. The others keep their ids, so that
/// lines can be told apart, and are not exported: better than traces with holes, which is what a full queue makes of all.
pub(super) const TRACES_PER_SECOND: u32 = 500;

/// So many in each second, whoever asks.
#[derive(Debug)]
struct Allowance {
    per_second: u32,
    begun: Instant,
    /// The second in the upper half, and how many were had in it in the lower half.
    had: AtomicU64,
    refused: AtomicU64,
}

/// What becomes of one.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// It may pass. So many had to be left out since the last time that this was told.
    Granted { left_out: u64 },
    Refused,
}

impl Allowance {
    fn of(per_second: u32) -> Allowance {
        Allowance { per_second, begun: Instant::now(), had: AtomicU64::new(0), refused: AtomicU64::new(0) }
    }

    fn ask(&self) -> Asked {
        let now = self.begun.elapsed().as_secs() << 32;
        let next = |had: u64| match had & u64::from(u32::MAX) {
            // Never back: another thread may have read a later clock.
            _ if had < now => Some(now + 1),
            used if used < u64::from(self.per_second) => Some(had + 1),
            _ => None,
        };
        match self.had.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(before) if before < now => Asked::Granted { left_out: self.refused.swap(0, Ordering::Relaxed) },
            Ok(_) => Asked::Granted { left_out: 0 },
            Err(_) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                Asked::Refused
            }
        }
    }
}

/// Lets [`LINES_PER_SECOND`] lines of level info and below pass, and everything else.
pub(super) struct LineLimit<S> {
    allowance: Allowance,
    /// It says what it left out.
    tells: bool,
    subscriber: PhantomData<fn(S)>,
}

impl<S> LineLimit<S> {
    /// For the exit that everything has: a flood is told of and counted once.
    pub(super) fn telling() -> LineLimit<S> {
        LineLimit { allowance: Allowance::of(LINES_PER_SECOND), tells: true, subscriber: PhantomData }
    }

    /// For the other exits, which leave out much the same lines.
    pub(super) fn silent() -> LineLimit<S> {
        LineLimit { tells: false, ..LineLimit::telling() }
    }
}

fn is_limited(metadata: &Metadata<'_>) -> bool {
    metadata.is_event() && *metadata.level() >= Level::INFO
}

impl<S: Subscriber> Filter<S> for LineLimit<S> {
    fn enabled(&self, metadata: &Metadata<'_>, _: &layer::Context<'_, S>) -> bool {
        if !is_limited(metadata) {
            return true;
        }
        match self.allowance.ask() {
            Asked::Granted { left_out } => {
                if self.tells && left_out > 0 {
                    tell(left_out);
                }
                true
            }
            Asked::Refused => false,
        }
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if is_limited(metadata) { Interest::sometimes() } else { Interest::always() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }
}

/// In a task of its own: a line must not be written while it is being decided whether another one is.
fn tell(left_out: u64) {
    metrics::lines_left_out(left_out);
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(async move { warn!(left_out, "more lines than {LINES_PER_SECOND} a second: some were left out") });
    }
}

/// Samples whole traces, [`TRACES_PER_SECOND`] of them.
#[derive(Debug, Clone)]
pub(super) struct TraceLimit(Arc<Allowance>);

impl TraceLimit {
    pub(super) fn new() -> TraceLimit {
        TraceLimit(Arc::new(Allowance::of(TRACES_PER_SECOND)))
    }
}

impl ShouldSample for TraceLimit {
    fn should_sample(&self, _: Option<&Context>, _: TraceId, _: &str, _: &SpanKind, _: &[KeyValue], _: &[Link]) -> SamplingResult {
        let decision = match self.0.ask() {
            Asked::Granted { left_out } => {
                metrics::traces_left_out(left_out);
                SamplingDecision::RecordAndSample
            }
            Asked::Refused => SamplingDecision::Drop,
        };
        SamplingResult { decision, attributes: Vec::new(), trace_state: TraceState::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tracing::{Event, debug, info};
    use tracing_subscriber::layer::{Layer, SubscriberExt as _};
    use tracing_subscriber::registry::Registry;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_pass_in_each_second_and_the_next_one_hears_of_the_others() {
        let three = Allowance::of(3);
        for _ in 0..2 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(three.ask(), Asked::Granted { left_out: 0 });
            assert_eq!(three.ask(), Asked::Granted { left_out: 0 });
            assert_eq!(three.ask(), Asked::Granted { left_out: 0 });
        }
        assert_eq!(three.ask(), Asked::Refused);
        assert_eq!(three.ask(), Asked::Refused);
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(three.ask(), Asked::Granted { left_out: 2 });
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<std::sync::Mutex<Vec<Level>>>);

    impl Layer<Registry> for Lines {
        fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, Registry>) {
            self.0.lock().unwrap().push(*event.metadata().level());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_cut_off_without_a_warning_lost_and_is_told_of() {
        let lines = Lines::default();
        let exits = vec![lines.clone().with_filter(LineLimit::telling()), Lines::default().with_filter(LineLimit::silent())];
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(exits));
        let of = |level: Level| lines.0.lock().unwrap().iter().filter(|line| **line == level).count();
        for _ in 0..LINES_PER_SECOND {
            info!("done");
            debug!("nothing to do");
            warn!("cleaned up");
        }
        assert_eq!(of(Level::INFO) + of(Level::DEBUG), LINES_PER_SECOND as usize);
        assert_eq!(of(Level::WARN), LINES_PER_SECOND as usize);
        tokio::time::advance(Duration::from_secs(1)).await;
        info!("done");
        assert_eq!(of(Level::INFO) + of(Level::DEBUG), LINES_PER_SECOND as usize + 1);
        while of(Level::WARN) == LINES_PER_SECOND as usize {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(of(Level::WARN), LINES_PER_SECOND as usize + 1, "once, however many exits there are");
        drop(guard);
    }
}
