//! Sets up what a program tells about itself: lines on standard error, and traces, metrics and logs over OTLP.
//!
//! The collector runs on the very cluster that is being renewed, so it will be gone at times. Nothing here may slow
//! or fail a step: queues are bounded and overflow is dropped, exports run on threads of their own, and the end
//! of the program waits at most [`SHUTDOWN_MAX`] for them.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::global;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Dispatch;
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt as _;
use turnaround_config::OtlpProtocol;

use super::export::Providers;
use super::{export, metrics, stderr};

/// The last spans get this long to reach the collector when a program ends. One flush over a healthy network takes
/// 10 to 40 ms; an operator who stops a worker should not wait for a dead collector.
pub const SHUTDOWN_MAX: Duration = Duration::from_secs(2);

/// Name of the instrumentation scope of all spans.
const SCOPE: &str = "turnaround";

/// What has been set up. To be [shut down](Telemetry::shutdown) at the end, or the last seconds are lost.
#[must_use = "shut it down at the end, or the last seconds are lost"]
pub struct Telemetry {
    providers: Providers,
}

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("`{filter}` is not a log filter; write a level such as `info`, or `info,turnaround_worker=debug`")]
    Filter {
        filter: String,
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    #[error("can't export to {endpoint}")]
    Exporter {
        endpoint: String,
        #[source]
        source: opentelemetry_otlp::ExporterBuildError,
    },
    #[error("gRPC to {0} needs plain http here; for TLS set `protocol = \"http\"`")]
    GrpcOverTls(String),
    #[error("telemetry has to be set up inside the async runtime")]
    NoRuntime,
    #[error("telemetry was set up twice")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// Sets up logs, traces and metrics of this program, for good. `service` is its name, such as `turnaround-worker`.
///
/// To be called once, inside the async runtime, before anything is worth telling.
pub fn init(service: &'static str, config: &turnaround_config::Telemetry) -> Result<Telemetry, TelemetryError> {
    let (dispatch, telemetry) = prepare(service, config)?;
    dispatch.try_init().map_err(TelemetryError::Twice)?;
    global::set_tracer_provider(telemetry.providers.traces.clone());
    if let Some(provider) = &telemetry.providers.metrics {
        global::set_meter_provider(provider.clone());
        metrics::install(&global::meter(SCOPE));
    }
    Ok(telemetry)
}

/// What [`init`] sets up, without making it the whole program's: several can live side by side in a test. Only the
/// form in which contexts go into requests (W3C) is everybody's.
pub fn prepare(service: &'static str, config: &turnaround_config::Telemetry) -> Result<(Dispatch, Telemetry), TelemetryError> {
    // Also without a collector: whoever we call may have one, and its traces then carry our ids.
    global::set_text_map_propagator(TraceContextPropagator::new());
    let mut layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> = vec![stderr::layer(&config.log)?];
    let providers = match &config.endpoint {
        None => Providers::without_collector(),
        Some(endpoint) => {
            if tokio::runtime::Handle::try_current().is_err() {
                return Err(TelemetryError::NoRuntime);
            }
            if config.protocol == OtlpProtocol::Grpc && endpoint.starts_with("https:") {
                return Err(TelemetryError::GrpcOverTls(endpoint.clone()));
            }
            let built = Providers::build(service, endpoint, config.protocol);
            built.map_err(|source| TelemetryError::Exporter { endpoint: endpoint.clone(), source })?
        }
    };
    let traces = tracing_opentelemetry::layer()
        .with_tracer(providers.traces.tracer(SCOPE))
        // Where in our source a span was made, on which thread, and how long it was polled help nobody at a console.
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        // Whoever asks where it is asks its span: our calls (`traceparent`) and the lines (`export::Placed`). Each poll of each step would pay for it.
        .with_context_activation(false)
        .with_target(false);
    layers.push(traces.with_filter(export::filter()).boxed());
    let here = Arc::default();
    if let Some(logs) = &providers.logs {
        layers.push(export::log_layer(logs, &config.log, Arc::clone(&here))?);
    }
    let dispatch = Dispatch::from(tracing_subscriber::registry().with(layers));
    // Not by `on_register_dispatch`, of which layers in a `Vec` do not hear.
    let _ = here.set(dispatch.downgrade());
    Ok((dispatch, Telemetry { providers }))
}

impl Telemetry {
    /// Sends what has not been sent, for at most [`SHUTDOWN_MAX`]. Spans that end later are dropped.
    pub async fn shutdown(self) {
        self.providers.shutdown(SHUTDOWN_MAX).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tracing::{Instrument as _, info, info_span};

    use super::super::{child_env, current_traceparent, link, traceparent};
    use super::*;

    /// Waiting for a collector even once per batch would take several times as long.
    const GENEROUS: Duration = Duration::from_secs(15);
    /// More than the queue holds.
    const SPANS: usize = 10_000;

    fn config(endpoint: Option<String>, protocol: OtlpProtocol) -> turnaround_config::Telemetry {
        turnaround_config::Telemetry { endpoint, protocol, log: "error".to_owned() }
    }

    async fn check_that_nobody_waits_for(endpoint: String) {
        let all = async {
            let (dispatch, telemetry) = prepare("test", &config(Some(endpoint), OtlpProtocol::Grpc)).unwrap();
            let guard = tracing::dispatcher::set_default(&dispatch);
            for number in 0..SPANS {
                let step = info_span!(parent: None, "step", number);
                async { info!("something was done") }.instrument(step).await;
            }
            telemetry.shutdown().await;
            drop(guard);
        };
        tokio::time::timeout(GENEROUS, all).await.expect("a dead collector held up the work");
    }

    #[tokio::test]
    async fn a_collector_that_accepts_and_never_answers_holds_up_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let silent = tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok(accepted) = listener.accept().await {
                kept.push(accepted);
            }
        });
        check_that_nobody_waits_for(endpoint).await;
        silent.abort();
    }

    #[tokio::test]
    async fn a_collector_that_refuses_holds_up_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        check_that_nobody_waits_for(endpoint).await;
    }

    #[tokio::test]
    async fn without_a_collector_there_are_valid_ids_and_nothing_is_sampled() {
        let (dispatch, telemetry) = prepare("test", &config(None, OtlpProtocol::Grpc)).unwrap();
        let guard = tracing::dispatcher::set_default(&dispatch);
        assert_eq!(current_traceparent(), None, "there is no span yet");
        let outer = info_span!("outer");
        let here = traceparent(&outer).unwrap();
        assert!(here.starts_with("00-") && here.ends_with("-00"), "{here}");
        let (env, inner) = outer.in_scope(|| {
            assert_eq!(current_traceparent().as_ref(), Some(&here));
            (child_env(), traceparent(&info_span!("inner")).unwrap())
        });
        assert_eq!(env, Some(("TRACEPARENT".to_owned(), here.clone())));
        assert_eq!(here[..35], inner[..35], "the same trace");
        assert_ne!(here, inner);
        drop(guard);
        telemetry.shutdown().await;
    }

    #[tokio::test]
    async fn with_a_collector_spans_are_sampled_whatever_the_log_filter() {
        let endpoint = Some("http://127.0.0.1:1".to_owned());
        let (dispatch, telemetry) = prepare("test", &config(endpoint, OtlpProtocol::Grpc)).unwrap();
        let guard = tracing::dispatcher::set_default(&dispatch);
        let span = info_span!("outer");
        link(&span, Some("not a traceparent"));
        let here = traceparent(&span).unwrap();
        assert!(here.ends_with("-01"), "{here}");
        drop(guard);
        telemetry.shutdown().await;
    }

    #[test]
    fn a_mistake_in_the_configuration_is_named() {
        let prepared = |config| prepare("test", &config).map(|_| ()).unwrap_err().to_string();
        for log in ["turnaround=loud", "=debug", "info, turnaround=debug", "info,*=debug"] {
            let bad = turnaround_config::Telemetry { log: log.to_owned(), ..config(None, OtlpProtocol::Grpc) };
            assert!(prepared(bad).starts_with(&format!("`{log}` is not a log filter")), "{log}");
        }
        let outside = config(Some("http://127.0.0.1:4317".to_owned()), OtlpProtocol::Grpc);
        assert_eq!(prepared(outside), "telemetry has to be set up inside the async runtime");
    }
}
