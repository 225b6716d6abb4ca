//! Silences and alerts of an Alertmanager, or of a Grafana with its own alerting, which has the same API under `/api/alertmanager/grafana`
//! (Alertmanager's `api/v2/openapi.yaml`; Grafana's HTTP API, "Alertmanager").

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use http::header::AUTHORIZATION;
use http::{HeaderValue, Method};
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};
use turnaround_config::SecretText;
use turnaround_workflows::clock::Timestamp;
use turnaround_workflows::ports::{NewSilence, PortError, PortErrorKind, Silence, Silences};

use super::http::{Answer, BoxError, Effect, Http, Request, foreign_text};
use super::tls::Trust;

/// Time limit of one request. It keeps its silences in memory.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Who is said to have made our silences.
const CREATED_BY: &str = "turnaround";

/// One site's alerting, if it has one.
#[derive(Debug)]
pub(crate) struct Alertmanager(Option<Api>);

#[derive(Debug)]
pub(crate) struct Api {
    http: Http,
    base: Url,
    /// Marked as sensitive.
    bearer: Option<HeaderValue>,
}

#[derive(Deserialize)]
struct Known {
    id: String,
    comment: String,
    #[serde(rename = "endsAt")]
    ends: DateTime<Utc>,
    status: Status,
}

#[derive(Deserialize)]
struct Status {
    state: String,
}

impl Api {
    /// # Errors
    /// The certificates of `trust`, or the token, can't be used.
    pub(crate) fn new(base: Url, token: Option<SecretText>, trust: &Trust) -> Result<Api, BoxError> {
        let bearer = token.map(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| "the token has characters that no HTTP header can have")?;
            value.set_sensitive(true);
            Ok::<_, BoxError>(value)
        });
        Ok(Api { http: Http::new(REQUEST_TIMEOUT, trust)?, base, bearer: bearer.transpose()? })
    }

    async fn send(&self, operation: &str, method: Method, path: &[&str], body: Option<&Value>) -> Result<Answer, PortError> {
        self.send_to(operation, method, self.url(path), body).await
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        // An http URL always has a path to extend.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v2"]).extend(path);
        }
        url
    }

    async fn send_to(&self, operation: &str, method: Method, url: Url, body: Option<&Value>) -> Result<Answer, PortError> {
        let mut request = Request::new(method, url).json(body);
        if let Some(bearer) = &self.bearer {
            request = request.header(AUTHORIZATION, bearer.clone());
        }
        let effect = request.effect();
        let answer = self.http.send(&request).await;
        let answer = answer.map_err(|failure| PortError::new(operation, failure.kind(effect)).with_source(failure))?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        if answer.status.as_u16() == 404 && effect == Effect::None {
            let reason = "there is no Alertmanager API at this `url`: for a Grafana it ends with /api/alertmanager/grafana".to_owned();
            return Err(PortError::new(operation, PortErrorKind::Refused { reason }));
        }
        Err(PortError::new(operation, answer.refusal(effect, said(&answer))))
    }
}

/// What it says of an error: a bare text, or an object with a message.
fn said(answer: &Answer) -> Option<String> {
    let document: Value = answer.json("an error").ok()?;
    let text = document.as_str().or_else(|| document.get("message")?.as_str())?;
    Some(foreign_text(text))
}

impl Alertmanager {
    pub(crate) fn new(api: Option<Api>) -> Alertmanager {
        Alertmanager(api)
    }

    fn api(&self, operation: &str) -> Result<&Api, PortError> {
        let reason = || "the configuration has no [silences]".to_owned();
        self.0.as_ref().ok_or_else(|| PortError::new(operation, PortErrorKind::Refused { reason: reason() }))
    }
}

/// As Alertmanager's `filter` wants it.
fn filter(matcher: &turnaround_config::Matcher) -> String {
    let sign = match (matcher.is_equal, matcher.is_regex) {
        (true, false) => "=",
        (false, false) => "!=",
        (true, true) => "=~",
        (false, true) => "!~",
    };
    let value = matcher.value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{}{sign}\"{value}\"", matcher.name)
}

/// An alert that fires.
#[derive(Deserialize)]
struct Alert {
    labels: BTreeMap<String, String>,
    /// Of all its labels.
    fingerprint: String,
}

/// So much of an alert is told; of a longer one its fingerprint says which it is.
const ALERT_CHARS_MAX: usize = 400;

impl Alert {
    fn told(mut self) -> String {
        let name = self.labels.remove("alertname").unwrap_or_default();
        let labels: Vec<String> = self.labels.into_iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let told = format!("{name}{{{}}}", labels.join(", "));
        if told.chars().count() <= ALERT_CHARS_MAX {
            return foreign_text(&told);
        }
        let begins: String = told.chars().take(ALERT_CHARS_MAX).collect();
        foreign_text(&format!("{begins}... ({})", self.fingerprint))
    }
}

#[async_trait]
impl Silences for Alertmanager {
    async fn in_force(&self, mark: &str) -> Result<Vec<Silence>, PortError> {
        let operation = "list the silences";
        let answer = self.api(operation)?.send(operation, Method::GET, &["silences"], None).await?;
        let known: Vec<Known> =
            answer.json("a list of silences").map_err(|reason| PortError::new(operation, PortErrorKind::Garbled { reason }))?;
        let ours = |silence: &Known| silence.status.state != "expired" && silence.comment.strip_prefix(mark).is_some_and(|rest| rest.starts_with(':'));
        Ok(known.into_iter().filter(ours).map(|silence| Silence { id: silence.id, until: Timestamp::from(silence.ends) }).collect())
    }

    async fn begin(&self, silence: &NewSilence) -> Result<(), PortError> {
        let operation = format!("silence alerts until {}", silence.until);
        let matcher = |matcher: &turnaround_config::Matcher| {
            json!({ "name": matcher.name, "value": matcher.value, "isRegex": matcher.is_regex, "isEqual": matcher.is_equal })
        };
        let body = json!({
            "matchers": silence.matchers.iter().map(matcher).collect::<Vec<_>>(),
            "startsAt": silence.from.to_string(),
            "endsAt": silence.until.to_string(),
            "createdBy": CREATED_BY,
            "comment": format!("{}: {}", silence.mark, silence.why),
        });
        self.api(&operation)?.send(&operation, Method::POST, &["silences"], Some(&body)).await?;
        Ok(())
    }

    async fn end(&self, id: &str) -> Result<(), PortError> {
        let operation = format!("end silence {id}");
        self.api(&operation)?.send(&operation, Method::DELETE, &["silence", id], None).await?;
        Ok(())
    }

    async fn firing(&self, matchers: &[turnaround_config::Matcher]) -> Result<BTreeSet<String>, PortError> {
        let operation = "list the alerts that fire";
        let api = self.api(operation)?;
        let mut url = api.url(&["alerts"]);
        url.query_pairs_mut().extend_pairs(matchers.iter().map(|matcher| ("filter", filter(matcher))));
        // Silenced and inhibited ones are in it, unless they are left out on purpose; those that have ended are not.
        let answer = api.send_to(operation, Method::GET, url, None).await?;
        let alerts: Vec<Alert> =
            answer.json("a list of alerts").map_err(|reason| PortError::new(operation, PortErrorKind::Garbled { reason }))?;
        Ok(alerts.into_iter().map(Alert::told).collect())
    }
}
