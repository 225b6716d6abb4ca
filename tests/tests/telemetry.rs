//! What the programs tell really arrives, over both protocols, and says where it came from.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::Uri;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use turnaround_config::{OtlpProtocol, Telemetry};
use turnaround_tests::harness::until;
use turnaround_tests::otlp::Receiver;
use turnaround_workflows::store::Status;
use turnaround_workflows::telemetry::{self, StepOutcome, metrics};

fn config(endpoint: &str, protocol: OtlpProtocol) -> Telemetry {
    Telemetry { endpoint: Some(endpoint.to_owned()), protocol, log: "info".to_owned() }
}

#[tokio::test]
async fn traces_metrics_and_logs_arrive_by_grpc_and_say_who_sent_them() {
    let receiver = Receiver::start().await.unwrap();
    let telemetry = telemetry::init("turnaround-test", &config(receiver.endpoint(), OtlpProtocol::Grpc)).unwrap();
    tracing::info_span!("outer", kind = "node-os").in_scope(|| {
        tracing::info!(node = "compute-1", "node closed");
        metrics::activated("node-os", "parked");
        metrics::step_finished("node-os", "close", StepOutcome::Retry, Duration::from_millis(20));
        metrics::workflow_ended("node-os", "succeeded");
        metrics::claimed(3);
        metrics::committed(Duration::from_millis(2));
        metrics::lease_lost();
        metrics::store_outage();
        metrics::workflows_open(&[(Status::NeedsOperator, 2), (Status::Waiting, 5)]);
    });
    telemetry.shutdown().await;
    let received = receiver.received();

    let span = received.span("outer");
    assert!(span.sampled && span.parent.is_none());
    assert_eq!(span.attributes["kind"], "node-os");
    assert_eq!(span.resource["service.name"], "turnaround-test");
    assert!(span.resource["service.instance.id"].ends_with(&format!(":{}", std::process::id())));
    assert!(span.resource.contains_key("service.version"));

    let line = received.logs.iter().find(|line| line.body == "node closed").expect("the line arrived");
    assert_eq!((line.severity.as_str(), line.attributes["node"].as_str()), ("INFO", "compute-1"));
    assert_eq!(line.place.as_ref(), Some(&span.place), "a line names the span it was written in");

    let mut told: Vec<String> = received
        .metrics
        .iter()
        .map(|point| format!("{} {:?} = {} {}", point.name, point.attributes.values().collect::<Vec<_>>(), point.value, point.unit))
        .collect();
    told.sort();
    assert_eq!(
        told.join("\n"),
        "turnaround.activations [\"node-os\", \"parked\"] = 1 {activation}\n\
         turnaround.leases.lost [] = 1 {lease}\n\
         turnaround.questions.open [] = 2 {question}\n\
         turnaround.step.duration [\"node-os\", \"retry\", \"close\"] = 1 s\n\
         turnaround.step.failures [\"node-os\", \"retry\", \"close\"] = 1 {failure}\n\
         turnaround.store.claimed [] = 1 {workflow}\n\
         turnaround.store.commit.duration [] = 1 s\n\
         turnaround.store.outages [] = 1 {outage}\n\
         turnaround.telemetry.traces_left_out [] = 0 {trace}\n\
         turnaround.workflows.ended [\"node-os\", \"succeeded\"] = 1 {workflow}\n\
         turnaround.workflows.open [\"needs-operator\"] = 2 {workflow}\n\
         turnaround.workflows.open [\"paused\"] = 0 {workflow}\n\
         turnaround.workflows.open [\"quarantined\"] = 0 {workflow}\n\
         turnaround.workflows.open [\"runnable\"] = 0 {workflow}\n\
         turnaround.workflows.open [\"unwinding\"] = 0 {workflow}\n\
         turnaround.workflows.open [\"waiting\"] = 5 {workflow}"
    );
}

/// The filter is about lines: which spans are traced is not its matter.
#[tokio::test]
async fn a_line_names_the_nearest_span_that_is_traced_also_where_only_warnings_are_told() {
    let receiver = Receiver::start().await.unwrap();
    let quiet = Telemetry { log: "warn".to_owned(), ..config(receiver.endpoint(), OtlpProtocol::Grpc) };
    let (dispatch, telemetry) = telemetry::prepare("turnaround-test", &quiet).unwrap();
    tracing::dispatcher::with_default(&dispatch, || {
        let (outer, inner, untraced) = (tracing::info_span!("outer"), tracing::info_span!("inner"), tracing::debug_span!("untraced"));
        outer.in_scope(|| inner.in_scope(|| untraced.in_scope(|| tracing::warn!("the disk is nearly full"))));
        tracing::warn!("nobody has asked for this");
    });
    telemetry.shutdown().await;
    let received = receiver.received();
    let place = |body: &str| received.logs.iter().find(|line| line.body == body).expect("the line arrived").place.clone();
    assert_eq!(place("the disk is nearly full"), Some(received.span("inner").place.clone()));
    assert_eq!(place("nobody has asked for this"), None);
}

/// A collector that takes everything by HTTP. It says on which paths.
fn takes_all(listener: TcpListener) -> (Arc<Mutex<Vec<String>>>, JoinHandle<std::io::Result<()>>) {
    let paths = Arc::new(Mutex::new(Vec::new()));
    let note = |State(paths): State<Arc<Mutex<Vec<String>>>>, uri: Uri| async move {
        paths.lock().unwrap().push(uri.path().to_owned());
    };
    let collector = Router::new().fallback(note).with_state(paths.clone());
    (paths, tokio::spawn(async move { axum::serve(listener, collector).await }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_told_while_the_collector_was_away_arrives_once_it_is_back() {
    /// Tried only as often as is usual, four times, nothing of spans, lines and metrics would be left by then.
    const UNANSWERED: u32 = 13;
    turnaround_worker::adapters::install_tls();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (dispatch, telemetry) = telemetry::prepare("turnaround-test", &config(&endpoint, OtlpProtocol::Http)).unwrap();
    tracing::dispatcher::with_default(&dispatch, || {
        tracing::info_span!("outer").in_scope(|| tracing::info!("node closed"));
    });
    let away = async {
        for _ in 0..UNANSWERED {
            drop(listener.accept().await.unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(60), away).await.expect("they are tried again while it is away");
    let (paths, server) = takes_all(listener);
    let both = async || ["/v1/logs", "/v1/traces"].iter().all(|path| paths.lock().unwrap().iter().any(|seen| seen == path)).then_some(());
    until("spans and lines to be tried again", both).await.unwrap();
    telemetry.shutdown().await;
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_each_signal_goes_to_its_own_path() {
    turnaround_worker::adapters::install_tls();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/", listener.local_addr().unwrap());
    let (paths, server) = takes_all(listener);

    let (dispatch, telemetry) = telemetry::prepare("turnaround-test", &config(&endpoint, OtlpProtocol::Http)).unwrap();
    tracing::dispatcher::with_default(&dispatch, || {
        tracing::info_span!("outer").in_scope(|| tracing::info!("node closed"));
    });
    telemetry.shutdown().await;
    server.abort();
    let mut paths = paths.lock().unwrap().clone();
    paths.sort();
    paths.dedup();
    // No metrics: those go through the program's own meter, which this is not.
    assert_eq!(paths, ["/v1/logs", "/v1/traces"]);
}
