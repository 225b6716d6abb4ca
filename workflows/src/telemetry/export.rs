//! OTLP: bounded queues, each emptied by a thread of its own, towards a collector that may be gone.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::{Context, KeyValue};
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp::{
    ExporterBuildError, LogExporter, MetricExporter, Protocol, RetryPolicy, SpanExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::{self, BatchLogProcessor, SdkLogger, SdkLoggerProvider};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};
use opentelemetry_sdk::trace::{self, BatchSpanProcessor, Sampler, SdkTracerProvider};
use tracing::dispatcher::WeakDispatch;
use tracing::{Event, warn};
use tracing_opentelemetry::get_otel_context;
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, Targets};
use tracing_subscriber::layer::{self, Layer};
use tracing_subscriber::registry::{LookupSpan as _, Registry};
use turnaround_config::OtlpProtocol;

use super::limit::{LineLimit, TraceLimit};
use super::{TelemetryError, stderr};

/// Spans, and likewise log lines, that are being exported are tried again for this long, and are lost then: a collector's restart takes less.
/// Others wait in the queue meanwhile.
const EXPORT_MAX: Duration = Duration::from_secs(30);
/// Pauses between those tries grow up to this: who has come back should not be waited for.
const EXPORT_PAUSE_MAX: Duration = Duration::from_secs(2);
/// The same for metrics, of which the next export tells all again. A collector near by answers within milliseconds.
const METRICS_EXPORT_MAX: Duration = Duration::from_secs(3);
/// Spans, and likewise log lines, that wait for the collector; more are dropped. A worker makes some ten a second, so
/// this bridges a collector's restart, in a few MB.
const QUEUE_MAX: usize = 4_096;
/// Spans or log lines in one request: well below the 4 MB that gRPC servers accept.
const BATCH_MAX: usize = 512;
/// Spans and log lines are sent this often: an operator who watches a node being renewed should not have to wait.
const BATCH_EVERY: Duration = Duration::from_secs(1);
/// Metrics are sent this often: the usual scrape interval, so that rates look the same as everything else's.
const METRICS_EVERY: Duration = Duration::from_secs(15);

/// Libraries that carry the exports. Exporting what they say would make each export cause the next.
const CARRIERS: [&str; 7] = ["hyper", "tonic", "h2", "reqwest", "opentelemetry", "tower", "rustls"];

/// Where spans, metrics and log lines go.
pub(super) struct Providers {
    pub(super) traces: SdkTracerProvider,
    pub(super) metrics: Option<SdkMeterProvider>,
    pub(super) logs: Option<SdkLoggerProvider>,
}

impl Providers {
    /// Nobody listens: spans have valid ids, so that log lines and requests of one activation can be told from others',
    /// but they are not sampled, carry nothing, and go nowhere.
    pub(super) fn without_collector() -> Providers {
        let traces = SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOff).build();
        Providers { traces, metrics: None, logs: None }
    }

    /// Nothing is connected yet: that a collector is down shows later, and harms nothing.
    pub(super) fn build(service: &'static str, endpoint: &str, protocol: OtlpProtocol) -> Result<Providers, ExporterBuildError> {
        let resource = resource(service);
        let (spans, metrics, lines) = exporters(endpoint, protocol)?;
        let batches = trace::BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_MAX)
            .with_max_export_batch_size(BATCH_MAX)
            .with_scheduled_delay(BATCH_EVERY)
            .build();
        let traces = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_sampler(Sampler::ParentBased(Box::new(TraceLimit::new())))
            .with_span_processor(BatchSpanProcessor::builder(spans).with_batch_config(batches).build())
            .build();
        let metrics = SdkMeterProvider::builder()
            .with_resource(resource.clone())
            .with_reader(PeriodicReader::builder(metrics).with_interval(METRICS_EVERY).build())
            .build();
        let batches = logs::BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_MAX)
            .with_max_export_batch_size(BATCH_MAX)
            .with_scheduled_delay(BATCH_EVERY)
            .build();
        let logs = SdkLoggerProvider::builder()
            .with_resource(resource)
            .with_log_processor(BatchLogProcessor::builder(lines).with_batch_config(batches).build())
            .build();
        Ok(Providers { traces, metrics: Some(metrics), logs: Some(logs) })
    }

    /// Sends what is left. Returns after `at_most`, also when the collector hangs.
    // Each on a thread of its own, because these calls block, one after the other would add up, and the metrics'
    // one ignores the time-out that it is given. What has not come back by then is left to the end of the process.
    pub(super) async fn shutdown(self, at_most: Duration) {
        let Providers { traces, metrics, logs } = self;
        let mut ends = vec![in_thread(move || traces.shutdown_with_timeout(at_most))];
        if let Some(metrics) = metrics {
            ends.push(in_thread(move || metrics.shutdown_with_timeout(at_most)));
        }
        if let Some(logs) = logs {
            ends.push(in_thread(move || logs.shutdown_with_timeout(at_most)));
        }
        if tokio::time::timeout(at_most, futures::future::join_all(ends)).await.is_err() {
            warn!("the collector did not take the last traces, metrics and logs; they are lost");
        }
    }
}

/// Ends when `work` has, or could not be begun.
fn in_thread(work: impl FnOnce() -> OTelSdkResult + Send + 'static) -> tokio::sync::oneshot::Receiver<()> {
    let (done, end) = tokio::sync::oneshot::channel();
    let begun = std::thread::Builder::new().name("telemetry-shutdown".to_owned()).spawn(move || {
        // That it failed has been logged by whoever failed.
        let _ = work();
        let _ = done.send(());
    });
    if let Err(error) = begun {
        warn!(%error, "no thread to send the last telemetry from");
    }
    end
}

fn exporters(endpoint: &str, protocol: OtlpProtocol) -> Result<(SpanExporter, MetricExporter, LogExporter), ExporterBuildError> {
    // Said, so that no environment says otherwise: a gap in them has to heal by itself.
    let temporality = Temporality::Cumulative;
    Ok(match protocol {
        OtlpProtocol::Grpc => (
            SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_MAX).with_retry_policy(again()).build()?,
            MetricExporter::builder().with_temporality(temporality).with_tonic().with_endpoint(endpoint).with_timeout(METRICS_EXPORT_MAX).build()?,
            LogExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_MAX).with_retry_policy(again()).build()?,
        ),
        OtlpProtocol::Http => {
            let at = |signal: &str| format!("{}/v1/{signal}", endpoint.trim_end_matches('/'));
            let proto = Protocol::HttpBinary;
            (
                SpanExporter::builder()
                    .with_http()
                    .with_protocol(proto)
                    .with_endpoint(at("traces"))
                    .with_timeout(EXPORT_MAX)
                    .with_retry_policy(again())
                    .build()?,
                MetricExporter::builder()
                    .with_temporality(temporality)
                    .with_http()
                    .with_protocol(proto)
                    .with_endpoint(at("metrics"))
                    .with_timeout(METRICS_EXPORT_MAX)
                    .build()?,
                LogExporter::builder()
                    .with_http()
                    .with_protocol(proto)
                    .with_endpoint(at("logs"))
                    .with_timeout(EXPORT_MAX)
                    .with_retry_policy(again())
                    .build()?,
            )
        }
    })
}

/// As often as it can be within [`EXPORT_MAX`].
fn again() -> RetryPolicy {
    RetryPolicy::recommended().with_max_retries(usize::MAX).with_max_delay(EXPORT_PAUSE_MAX)
}

/// Who tells this: one process of one program on one host.
fn resource(service: &'static str) -> Resource {
    let host = host_name();
    Resource::builder()
        .with_service_name(service)
        .with_attributes([
            KeyValue::new("service.instance.id", format!("{host}:{}", std::process::id())),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("host.name", host),
        ])
        .build()
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".to_owned() } else { name.trim().to_owned() }
}

/// Spans that are exported, with their events. Not a matter of the log filter: a trace with holes misleads.
pub(super) fn filter() -> impl layer::Filter<Registry> {
    let carriers = CARRIERS.map(|carrier| (carrier, LevelFilter::OFF));
    Targets::new().with_default(LevelFilter::INFO).with_targets(carriers).and(LineLimit::silent())
}

/// The same lines as on standard error, with the ids of trace and span. `dispatch` is to be told once it is there.
pub(super) fn log_layer(logs: &SdkLoggerProvider, filter: &str, dispatch: Arc<OnceLock<WeakDispatch>>) -> Result<Box<dyn Layer<Registry> + Send + Sync>, TelemetryError> {
    let carriers = Targets::new().with_default(LevelFilter::TRACE).with_targets(CARRIERS.map(|carrier| (carrier, LevelFilter::OFF)));
    let lines: Lines = Placed { lines: OpenTelemetryTracingBridge::new(logs), dispatch };
    Ok(lines.with_filter(stderr::filter(filter)?.and(carriers).and(LineLimit::silent())).boxed())
}

/// What the lines of a program go through that has a collector.
type Lines = Placed<OpenTelemetryTracingBridge<SdkLoggerProvider, SdkLogger>>;

/// Where the caller is there is a collector.
pub(super) fn is_on() -> bool {
    tracing::dispatcher::get_default(|dispatch| dispatch.is::<Lines>())
}

/// Lines that say in which span they were written, by its ids.
struct Placed<L> {
    lines: L,
    /// What it is a part of.
    dispatch: Arc<OnceLock<WeakDispatch>>,
}

impl<L: Layer<Registry>> Layer<Registry> for Placed<L> {
    fn on_event(&self, event: &Event<'_>, context: layer::Context<'_, Registry>) {
        let place = self.dispatch.get().and_then(WeakDispatch::upgrade).and_then(|dispatch| {
            // Not by the layer's own context, which knows only the spans that pass the lines' filter; and the nearest that is traced.
            let spans = dispatch.downcast_ref::<Registry>()?;
            let within = spans.span(dispatch.current_span().id()?)?.scope();
            within.into_iter().find_map(|span| get_otel_context(&span.id(), &dispatch))
        });
        let _there = place.map(Context::attach);
        self.lines.on_event(event, context);
    }
}
