//! HTTP as all adapters use it: one try unless it only reads, bounded in time and size, never redirected, with the
//! trace that it belongs to. And what it means when it fails: was the request certainly not carried out, or
//! may it have been? The answer decides whether a step may ask again.

use std::error::Error;
use std::time::Duration;

use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use opentelemetry::propagation::Injector;
use reqwest::Url;
use serde::de::DeserializeOwned;
use tracing::field::{Empty, display};
use tracing::{Instrument as _, Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use turnaround_config::SecretText;
use turnaround_workflows::ports::PortErrorKind;

use super::tls::Trust;

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;

/// The largest answer that is read.
// Nova's largest page (1,000 servers at about 3 KiB) is 3 MiB; ten times that is no answer but an accident.
pub(crate) const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How often a request that only reads is sent at most.
// Nova answers 500 while one of the services behind it hiccups (seen with Neutron), and is well a second later. What
// lasts longer is not ours to wait for: the step is asked again later, and holds no slot meanwhile.
const READ_TRIES_MAX: u32 = 4;

/// The wait before a read is sent again; doubled every time.
const READ_RETRY_FIRST: Duration = Duration::from_millis(250);

/// An idle connection is not used again after this long.
// Apache, in front of many control planes, closes after 5 s. A POST sent into a connection that is just being closed
// has an unknown outcome, so we close first.
const IDLE_CONNECTION_MAX: Duration = Duration::from_secs(3);

/// A host that takes no connection within this long is not there.
// A lost SYN is sent again after 1 s and 3 s.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(10);

/// As much of somebody else's error text is passed on.
const FOREIGN_TEXT_CHARS_MAX: usize = 600;

/// An HTTP client for one counterpart. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: reqwest::Client,
}

/// A request that can be sent again.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// Values that are secret are marked as sensitive: `Debug` leaves them out.
    pub(crate) headers: HeaderMap,
    /// For HTTP basic authentication.
    pub(crate) basic: Option<Basic>,
    pub(crate) body: Option<Body>,
}

/// A user and its password.
#[derive(Debug, Clone)]
pub(crate) struct Basic {
    pub(crate) user: String,
    pub(crate) password: SecretText,
}

/// A JSON document to send. It may hold a password: `Debug` leaves it out.
#[derive(Clone)]
pub(crate) struct Body(Vec<u8>);

/// An answer, whatever its status, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was certainly not carried out: nobody took the connection.
    NotSent(BoxError),
    /// It may have been carried out: it was sent, and then the answer did not come, or not wholly.
    Unanswered { timed_out: bool, source: BoxError },
    /// There was an answer, longer than [`BODY_BYTES_MAX`].
    TooLong(StatusCode),
}

/// Does a request change anything?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It only reads: asking again is harmless.
    None,
    /// It changes something: where its outcome is not known, somebody has to look first.
    Some,
}

impl Body {
    fn json(document: &serde_json::Value) -> Body {
        Body(document.to_string().into_bytes())
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Body({} bytes)", self.0.len())
    }
}

impl Request {
    pub(crate) fn new(method: Method, url: Url) -> Request {
        Request { method, url, headers: HeaderMap::new(), basic: None, body: None }
    }

    pub(crate) fn json(mut self, document: Option<&serde_json::Value>) -> Request {
        self.body = document.map(Body::json);
        if self.body.is_some() {
            self.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        self
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Request {
        self.headers.insert(name, value);
        self
    }

    /// Named as OpenTelemetry's conventions want it. Without query and user, which may hold more than a path does.
    fn span(&self) -> Span {
        let host = self.url.host_str().unwrap_or_default();
        info_span!(
            "request", otel.name = format!("{} {host}", self.method), otel.kind = "client", otel.status_code = Empty,
            http.request.method = self.method.as_str(), http.response.status_code = Empty, error.type = Empty,
            server.address = host, server.port = self.url.port_or_known_default().map(i64::from), url.path = self.url.path(),
        )
    }

    pub(crate) fn effect(&self) -> Effect {
        if self.method == Method::GET { Effect::None } else { Effect::Some }
    }
}

impl Http {
    /// # Errors
    /// The certificates of `trust` (or of this machine) can't be used.
    pub(crate) fn new(request_timeout: Duration, trust: &Trust) -> Result<Http, BoxError> {
        super::tls::install_tls();
        let builder = reqwest::Client::builder()
            .user_agent(concat!("turnaround/", env!("CARGO_PKG_VERSION")))
            .timeout(request_timeout)
            .connect_timeout(request_timeout.min(CONNECT_TIMEOUT_MAX))
            .pool_idle_timeout(IDLE_CONNECTION_MAX)
            // A redirect would carry our token to wherever an answer says.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            // Control planes and BMCs are reached directly; a proxy of the login shell that started us is none of ours.
            .no_proxy();
        Ok(Http { client: trust.apply(builder)?.build()? })
    }

    /// Sends `request` once, in a span of its own, whose context goes with it.
    pub(crate) async fn once(&self, request: &Request) -> Result<Answer, Failure> {
        let span = request.span();
        let answer = self.exchange(request).instrument(span.clone()).await;
        match &answer {
            Ok(answer) => {
                span.record("http.response.status_code", i64::from(answer.status.as_u16()));
                // What they refuse (4xx) is often what we wanted to know; a server's error never is.
                if answer.status.is_server_error() {
                    span.record("otel.status_code", "error");
                }
            }
            Err(failure) => {
                span.record("otel.status_code", "error").record("error.type", display(failure));
            }
        }
        answer
    }

    async fn exchange(&self, request: &Request) -> Result<Answer, Failure> {
        let mut headers = request.headers.clone();
        headers.extend(trace_headers());
        let mut builder = self.client.request(request.method.clone(), request.url.clone()).headers(headers);
        if let Some(Basic { user, password }) = &request.basic {
            builder = builder.basic_auth(user, Some(password.expose()));
        }
        if let Some(Body(body)) = &request.body {
            builder = builder.body(body.clone());
        }
        let mut response = builder.send().await.map_err(Failure::of)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(Failure::of)? {
            if body.len() + chunk.len() > BODY_BYTES_MAX {
                return Err(Failure::TooLong(status));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, headers, body })
    }

    /// Sends `request`; where it only reads, again after a 5xx or a broken connection, a few times. A time-out is not
    /// repeated: it took the operator's whole patience already.
    pub(crate) async fn send(&self, request: &Request) -> Result<Answer, Failure> {
        match request.effect() {
            Effect::Some => self.once(request).await,
            Effect::None => self.read(request).await,
        }
    }

    /// As [`Http::send`] of a request that only reads, whatever its method.
    pub(crate) async fn read(&self, request: &Request) -> Result<Answer, Failure> {
        let mut wait = READ_RETRY_FIRST;
        for _ in 1..READ_TRIES_MAX {
            match self.once(request).await {
                Ok(answer) if !answer.status.is_server_error() => return Ok(answer),
                Err(failure @ (Failure::Unanswered { timed_out: true, .. } | Failure::TooLong(_))) => return Err(failure),
                Ok(answer) => tracing::debug!(status = answer.status.as_u16(), "a read is sent again after a server error"),
                Err(failure) => tracing::debug!(error = %failure, "a read is sent again after a broken connection"),
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        self.once(request).await
    }
}

impl Answer {
    /// The document in the body.
    ///
    /// # Errors
    /// A sentence that says what was `expected`. It quotes no value of the answer.
    pub(crate) fn json<T: DeserializeOwned>(&self, expected: &str) -> Result<T, String> {
        serde_json::from_slice(&self.body)
            .map_err(|error| format!("expected {expected}, and column {} of line {} does not fit", error.column(), error.line()))
    }

    /// What OpenStack says of an error. The key around it varies with the error (`badRequest`, `conflictingRequest`,
    /// `computeFault`, ...), so the first value that has a message counts. None where the answer isn't from an
    /// OpenStack API, but perhaps from a proxy in front of it.
    pub(crate) fn fault(&self) -> Option<String> {
        let document: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        let keys = document.as_object()?;
        let message = keys.values().find_map(|value| value.get("message")?.as_str());
        // Placement has its own form.
        let message = message.or_else(|| keys.get("errors")?.get(0)?.get("detail")?.as_str())?;
        Some(foreign_text(message))
    }

    /// A text header, where there is one.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What an answer that isn't the hoped-for one means. 404 is left to the caller: it knows what it named.
    pub(crate) fn refusal(&self, effect: Effect, said: Option<String>) -> PortErrorKind {
        let status = self.status;
        let reason = said.unwrap_or_else(|| format!("HTTP {status}"));
        match status.as_u16() {
            401 | 403 => PortErrorKind::Denied { reason },
            408 | 429 => effect.unavailable(status.as_u16() == 429),
            501 => PortErrorKind::Refused { reason },
            500..=599 => effect.unavailable(false),
            300..=399 => {
                let to = foreign_text(self.header(LOCATION.as_str()).unwrap_or("nowhere"));
                PortErrorKind::Refused {
                    reason: format!("it redirects to {to}; redirects are not followed, give the final address"),
                }
            }
            400..=499 => PortErrorKind::Refused { reason },
            _ => PortErrorKind::Garbled { reason: format!("HTTP {status} was not expected here") },
        }
    }
}

impl Effect {
    /// No proper answer to a request with this effect. `not_done`: they said that they did not do it.
    fn unavailable(self, not_done: bool) -> PortErrorKind {
        if not_done || self == Effect::None { PortErrorKind::Unavailable } else { PortErrorKind::OutcomeUnknown }
    }
}

impl Failure {
    fn of(error: reqwest::Error) -> Failure {
        let (before, timed_out) = (error.is_connect() || error.is_builder(), error.is_timeout());
        // The operation names what was asked; the address is the operator's own.
        let source = BoxError::from(error.without_url());
        if before { Failure::NotSent(source) } else { Failure::Unanswered { timed_out, source } }
    }

    /// What it means for a request with this effect.
    pub(crate) fn kind(&self, effect: Effect) -> PortErrorKind {
        match self {
            Failure::NotSent(_) => PortErrorKind::Unavailable,
            Failure::Unanswered { .. } => effect.unavailable(false),
            Failure::TooLong(_) if effect == Effect::Some => PortErrorKind::OutcomeUnknown,
            Failure::TooLong(_) => PortErrorKind::Garbled { reason: format!("it is longer than {} MiB", BODY_BYTES_MAX >> 20) },
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::NotSent(_) => f.write_str("no connection"),
            Failure::Unanswered { timed_out: true, .. } => f.write_str("no answer in time"),
            Failure::Unanswered { .. } => f.write_str("the connection broke before the answer was complete"),
            Failure::TooLong(status) => write!(f, "an endless answer (HTTP {status})"),
        }
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Failure::NotSent(source) | Failure::Unanswered { source, .. } => Some(source.as_ref()),
            Failure::TooLong(_) => None,
        }
    }
}

/// Somebody else's words, made fit for one line of a report.
pub(crate) fn foreign_text(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let line = words.collect::<Vec<_>>().join(" ");
    line.chars().take(FOREIGN_TEXT_CHARS_MAX).collect()
}

/// The W3C trace context of the current span, as headers (`traceparent`, `tracestate`), so that the counterpart's
/// own traces join ours. Empty where nothing is traced.
pub(crate) fn trace_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    let context = tracing::Span::current().context();
    opentelemetry::global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut Headers(&mut headers)));
    headers
}

struct Headers<'a>(&'a mut HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(key.as_bytes()), HeaderValue::from_str(&value)) {
            self.0.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use turnaround_config::{OtlpProtocol, Telemetry};
    use turnaround_workflows::telemetry;

    use super::*;

    /// Answers one request, and returns its head.
    async fn answer_one(listener: TcpListener) -> String {
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(peer.read_u8().await.unwrap());
        }
        peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        String::from_utf8(head).unwrap()
    }

    #[tokio::test]
    async fn a_request_carries_the_context_of_a_span_of_its_own_inside_the_callers() {
        let config = Telemetry { endpoint: None, protocol: OtlpProtocol::Grpc, log: "error".to_owned() };
        let (dispatch, telemetry) = telemetry::prepare("test", &config).unwrap();
        let guard = tracing::dispatcher::set_default(&dispatch);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v2.1/servers?all_tenants=1", listener.local_addr().unwrap()).parse().unwrap();
        let http = Http::new(Duration::from_secs(30), &Trust::System).unwrap();

        let step = info_span!("step");
        let here = telemetry::traceparent(&step).unwrap();
        let asked = async { http.once(&Request::new(Method::GET, url)).await.unwrap() };
        let (head, _) = tokio::join!(answer_one(listener), asked.instrument(step));

        let sent = head.lines().find_map(|line| line.strip_prefix("traceparent: ")).expect("the header was sent");
        assert_eq!(sent[..36], here[..36], "it is the same trace");
        assert_ne!(sent, here, "and a span of its own");
        drop(guard);
        telemetry.shutdown().await;
    }
}
