//! An OTLP collector inside the test: it takes what the programs export over gRPC, and lets the test wait for it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{MetricsService, MetricsServiceServer};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{metric, number_data_point};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1 as trace;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Spans, points and lines that are kept, each. A renewal of twelve nodes makes some ten thousand; more is a loop.
const KEPT_MAX: usize = 200_000;
/// What has not come after this long will not. Spans leave a program within a second, metrics within 15.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A collector that runs until it is dropped.
pub struct Receiver {
    endpoint: String,
    received: Arc<Mutex<Received>>,
    arrivals: watch::Receiver<()>,
    server: tokio::task::JoinHandle<()>,
}

/// Everything received so far.
#[derive(Debug, Clone, Default)]
pub struct Received {
    pub spans: Vec<Span>,
    pub metrics: Vec<Point>,
    pub logs: Vec<Log>,
}

pub type Attributes = BTreeMap<String, String>;

/// Where a span is: ids in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    pub trace: String,
    pub span: String,
}

#[derive(Debug, Clone)]
pub struct Span {
    /// Attributes of the program that made it, such as `service.name`.
    pub resource: Attributes,
    pub name: String,
    pub place: Place,
    /// Id of the span that it is inside of. None: the root of its trace.
    pub parent: Option<String>,
    pub links: Vec<Place>,
    pub sampled: bool,
    pub client: bool,
    pub failed: bool,
    pub attributes: Attributes,
    /// Names of its events.
    pub events: Vec<String>,
    pub start_nanos: u64,
    pub end_nanos: u64,
}

/// One point of one metric. Later points of the same metric and attributes replace nothing: all are kept.
#[derive(Debug, Clone)]
pub struct Point {
    pub resource: Attributes,
    pub name: String,
    pub unit: String,
    pub attributes: Attributes,
    /// Of a histogram: how many were recorded.
    pub value: f64,
}

#[derive(Debug, Clone)]
pub struct Log {
    pub resource: Attributes,
    pub severity: String,
    pub body: String,
    pub attributes: Attributes,
    /// None: it was written outside of any span.
    pub place: Option<Place>,
}

/// It was waited for, and did not come.
#[derive(Debug, thiserror::Error)]
#[error("no {what} within {WAIT_MAX:?}; received so far: {received}")]
pub struct NotReceived {
    pub what: String,
    pub received: Received,
}

impl Receiver {
    /// Listens on a free port of the loopback interface.
    pub async fn start() -> std::io::Result<Receiver> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let received = Arc::new(Mutex::new(Received::default()));
        let (arrived, arrivals) = watch::channel(());
        let sink = Sink { received: Arc::clone(&received), arrived: Arc::new(arrived) };
        let services = Server::builder()
            .add_service(TraceServiceServer::new(sink.clone()))
            .add_service(MetricsServiceServer::new(sink.clone()))
            .add_service(LogsServiceServer::new(sink));
        let server = tokio::spawn(async move {
            if let Err(error) = services.serve_with_incoming(TcpIncoming::from(listener)).await {
                tracing::error!(%error, "the OTLP receiver ended");
            }
        });
        Ok(Receiver { endpoint, received, arrivals, server })
    }

    /// For `telemetry.endpoint`, with the gRPC protocol.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn spans(&self) -> Vec<Span> {
        self.received().spans
    }

    pub fn metrics(&self) -> Vec<Point> {
        self.received().metrics
    }

    pub fn logs(&self) -> Vec<Log> {
        self.received().logs
    }

    pub fn received(&self) -> Received {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns once `predicate` holds for what has been received, with that.
    pub async fn wait_for(&self, what: &str, predicate: impl Fn(&Received) -> bool) -> Result<Received, NotReceived> {
        let mut arrivals = self.arrivals.clone();
        let enough = async {
            loop {
                arrivals.mark_unchanged();
                let received = self.received();
                if predicate(&received) || arrivals.changed().await.is_err() {
                    return received;
                }
            }
        };
        match tokio::time::timeout(WAIT_MAX, enough).await {
            Ok(received) if predicate(&received) => Ok(received),
            Ok(_) | Err(_) => Err(NotReceived { what: what.to_owned(), received: self.received() }),
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Received {
    /// The one span of this name; panics with what there is if there is none or more, for tests.
    pub fn span(&self, name: &str) -> &Span {
        let mut named = self.spans.iter().filter(|span| span.name == name);
        match (named.next(), named.next()) {
            (Some(span), None) => span,
            (first, _) => panic!("{} spans are named {name}: {self}", if first.is_none() { "no" } else { "several" }),
        }
    }

    /// Spans that begin a trace, in the order of their beginning.
    pub fn roots(&self) -> Vec<&Span> {
        let mut roots: Vec<&Span> = self.spans.iter().filter(|span| span.parent.is_none()).collect();
        roots.sort_by_key(|span| span.start_nanos);
        roots
    }

    /// Spans right inside of `parent`, in the order of their beginning.
    pub fn inside(&self, parent: &Span) -> Vec<&Span> {
        let is_inside = |span: &&Span| span.place.trace == parent.place.trace && span.parent.as_ref() == Some(&parent.place.span);
        let mut inside: Vec<&Span> = self.spans.iter().filter(is_inside).collect();
        inside.sort_by_key(|span| span.start_nanos);
        inside
    }
}

impl fmt::Display for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Received { spans, metrics, logs } = self;
        write!(f, "{} spans, {} points, {} lines", spans.len(), metrics.len(), logs.len())?;
        for span in spans {
            write!(f, "\n  {} {} in {:?}, links {:?}", span.name, span.place, span.parent, span.links)?;
        }
        Ok(())
    }
}

impl Place {
    /// Of a W3C `traceparent`.
    pub fn of(traceparent: &str) -> Option<Place> {
        let mut parts = traceparent.split('-').skip(1);
        Some(Place { trace: parts.next()?.to_owned(), span: parts.next()?.to_owned() })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.trace, self.span)
    }
}

#[derive(Clone)]
struct Sink {
    received: Arc<Mutex<Received>>,
    arrived: Arc<watch::Sender<()>>,
}

impl Sink {
    fn keep(&self, add: impl FnOnce(&mut Received)) {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        add(&mut received);
        received.spans.truncate(KEPT_MAX);
        received.metrics.truncate(KEPT_MAX);
        received.logs.truncate(KEPT_MAX);
        drop(received);
        self.arrived.send_replace(());
    }
}

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.keep(|received| {
            for group in request.into_inner().resource_spans {
                let resource = resource(group.resource);
                let spans = group.scope_spans.into_iter().flat_map(|scope| scope.spans);
                received.spans.extend(spans.map(|span| read_span(resource.clone(), span)));
            }
        });
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Sink {
    async fn export(&self, request: Request<ExportMetricsServiceRequest>) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.keep(|received| {
            for group in request.into_inner().resource_metrics {
                let resource = resource(group.resource);
                for metric in group.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                    for (attributes, value) in metric.data.map(points).unwrap_or_default() {
                        let (name, unit) = (metric.name.clone(), metric.unit.clone());
                        received.metrics.push(Point { resource: resource.clone(), name, unit, attributes, value });
                    }
                }
            }
        });
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Sink {
    async fn export(&self, request: Request<ExportLogsServiceRequest>) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.keep(|received| {
            for group in request.into_inner().resource_logs {
                let resource = resource(group.resource);
                for line in group.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
                    let place = Place { trace: hex(&line.trace_id), span: hex(&line.span_id) };
                    received.logs.push(Log {
                        resource: resource.clone(),
                        severity: line.severity_text,
                        body: line.body.map(text).unwrap_or_default(),
                        attributes: attributes(line.attributes),
                        place: (!line.trace_id.is_empty()).then_some(place),
                    });
                }
            }
        });
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

/// Bit of a span's flags: W3C `sampled`.
const SAMPLED: u32 = 1;

fn read_span(resource: Attributes, span: trace::Span) -> Span {
    let place = Place { trace: hex(&span.trace_id), span: hex(&span.span_id) };
    let status = span.status.clone().unwrap_or_default();
    Span {
        resource,
        client: span.kind() == trace::span::SpanKind::Client,
        failed: status.code() == trace::status::StatusCode::Error,
        name: span.name,
        place,
        parent: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
        links: span.links.iter().map(|link| Place { trace: hex(&link.trace_id), span: hex(&link.span_id) }).collect(),
        sampled: span.flags & SAMPLED != 0,
        attributes: attributes(span.attributes),
        events: span.events.into_iter().map(|event| event.name).collect(),
        start_nanos: span.start_time_unix_nano,
        end_nanos: span.end_time_unix_nano,
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts in tests are small")]
fn points(data: metric::Data) -> Vec<(Attributes, f64)> {
    let numbers = match data {
        metric::Data::Gauge(gauge) => gauge.data_points,
        metric::Data::Sum(sum) => sum.data_points,
        metric::Data::Histogram(histogram) => {
            return histogram.data_points.into_iter().map(|point| (attributes(point.attributes), point.count as f64)).collect();
        }
        metric::Data::ExponentialHistogram(_) | metric::Data::Summary(_) => Vec::new(),
    };
    let value = |value| match value {
        Some(number_data_point::Value::AsInt(value)) => value as f64,
        Some(number_data_point::Value::AsDouble(value)) => value,
        None => f64::NAN,
    };
    numbers.into_iter().map(|point| (attributes(point.attributes), value(point.value))).collect()
}

fn resource(resource: Option<Resource>) -> Attributes {
    attributes(resource.unwrap_or_default().attributes)
}

fn attributes(attributes: Vec<KeyValue>) -> Attributes {
    attributes.into_iter().map(|pair| (pair.key, pair.value.map(text).unwrap_or_default())).collect()
}

fn text(value: AnyValue) -> String {
    match value.value {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::BoolValue(value)) => value.to_string(),
        Some(any_value::Value::IntValue(value)) => value.to_string(),
        Some(any_value::Value::DoubleValue(value)) => value.to_string(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
