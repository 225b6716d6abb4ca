//! Nova's API, as far as draining and renewing nodes needs it, as release 2026.1 answers.
//!
//! Microversions 2.1 to 2.103 are accepted; answers are those of 2.53 and later.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use serde_json::{Value, json};
use turnaround_workflows::clock::Timestamp;
use turnaround_workflows::rehearsal::{Trouble, World};

use super::mishaps::lost;
use super::tokens::{Bearer, Tokens};

mod actions;
mod groups;
mod hypervisors;
mod migrations;
mod servers;
mod services;

/// The newest microversion of 2026.1.
const NEWEST: u32 = 103;
/// Nova's `max_limit`: the largest page.
const PAGE_MAX: usize = 1000;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-openstack-request-id");
const COMPUTE_REQUEST_ID: HeaderName = HeaderName::from_static("x-compute-request-id");
const API_VERSION: HeaderName = HeaderName::from_static("openstack-api-version");
const LEGACY_API_VERSION: HeaderName = HeaderName::from_static("x-openstack-nova-api-version");
const AUTH_TOKEN: HeaderName = HeaderName::from_static("x-auth-token");

pub(super) struct Nova {
    pub(super) url: String,
    pub(super) world: Arc<World>,
    pub(super) tokens: Arc<Tokens>,
}

type Shared = State<Arc<Nova>>;

/// What a request may ask for: the query, each key once.
type Query = axum::extract::Query<BTreeMap<String, String>>;

/// The `NN` of the microversion `2.NN` in which the answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Minor(u32);

pub(super) fn routes(nova: Nova) -> Router {
    let nova = Arc::new(nova);
    let api = Router::new()
        .route("/os-services", get(services::list))
        .route("/os-services/{id}", put(services::update))
        .route("/os-hypervisors", get(hypervisors::list))
        .route("/os-hypervisors/detail", get(hypervisors::detail))
        .route("/servers", get(servers::list).post(servers::create))
        .route("/servers/detail", get(servers::detail))
        .route("/servers/{id}", get(servers::show).delete(servers::remove))
        .route("/servers/{id}/action", post(actions::act))
        .route("/servers/{id}/migrations", get(migrations::of_server))
        .route("/servers/{id}/migrations/{number}", delete(migrations::stop))
        .route("/servers/{id}/os-instance-actions", get(actions::list))
        .route("/servers/{id}/os-instance-actions/{request}", get(actions::show))
        .route("/os-migrations", get(migrations::list))
        .route("/os-server-groups", get(groups::list))
        .route("/os-aggregates", get(services::aggregates))
        .fallback(async || Refusal::new(404, "The resource could not be found."))
        .layer(middleware::from_fn_with_state(Arc::clone(&nova), admit))
        .with_state(Arc::clone(&nova));
    Router::new()
        .route("/", get(versions))
        .route("/v2.1", get(version))
        .route("/v2.1/", get(version))
        .with_state(nova)
        .nest("/v2.1", api)
        .layer(middleware::from_fn(give_request_id))
}

fn v21(nova: &Nova) -> Value {
    json!({
        "id": "v2.1",
        "status": "CURRENT",
        "version": format!("2.{NEWEST}"),
        "min_version": "2.1",
        "updated": "2013-07-23T11:33:21Z",
        "links": [{ "rel": "self", "href": format!("{}/v2.1/", nova.url) }],
    })
}

async fn versions(State(nova): Shared) -> Json<Value> {
    Json(json!({ "versions": [v21(&nova)] }))
}

async fn version(State(nova): Shared) -> Json<Value> {
    Json(json!({ "version": v21(&nova) }))
}

/// Nova gives every request an id, unless the answer has one already.
async fn give_request_id(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let id = response.headers().get(&REQUEST_ID).cloned().or_else(|| {
        let random: u128 = rand::random();
        HeaderValue::from_str(&format!("req-{}", dashed(random))).ok()
    });
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id.clone());
        response.headers_mut().insert(COMPUTE_REQUEST_ID, id);
    }
    response
}

/// As a UUID is written.
fn dashed(random: u128) -> String {
    let hex = format!("{random:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Whose token it is, and which microversion is spoken.
async fn admit(State(nova): Shared, mut request: Request, next: Next) -> Response {
    let token = request.headers().get(&AUTH_TOKEN).and_then(|token| token.to_str().ok());
    let Some(bearer) = token.and_then(|token| nova.tokens.bearer(token)).filter(|bearer| bearer.project.is_some())
    else {
        let message = "The request you have made requires authentication.";
        let body = json!({ "error": { "code": 401, "title": "Unauthorized", "message": message } });
        return (StatusCode::UNAUTHORIZED, Json(body)).into_response();
    };
    let minor = match wanted(request.headers()) {
        Ok(minor) => minor,
        Err(refusal) => return refusal.into_response(),
    };
    request.extensions_mut().insert(bearer);
    request.extensions_mut().insert(minor);
    let mut response = next.run(request).await;
    if let Ok(version) = HeaderValue::from_str(&format!("compute 2.{}", minor.0)) {
        response.headers_mut().insert(API_VERSION, version);
    }
    response
}

/// The microversion that was asked for; the oldest where none was.
fn wanted(headers: &HeaderMap) -> Result<Minor, Refusal> {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let asked = match text(&API_VERSION) {
        Some(list) => list.split(',').find_map(|one| one.trim().strip_prefix("compute ")).map(str::trim),
        None => text(&LEGACY_API_VERSION),
    };
    let Some(asked) = asked else { return Ok(Minor(1)) };
    if asked == "latest" {
        return Ok(Minor(NEWEST));
    }
    let minor =
        asked.split_once('.').and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)));
    match minor {
        None => Err(Refusal::new(
            400,
            format!("API Version String {asked} is of invalid format. Must be of format MajorNum.MinorNum."),
        )),
        Some((2, minor)) if (1..=NEWEST).contains(&minor) => Ok(Minor(minor)),
        Some(_) => {
            let message =
                format!("Version {asked} is not supported by the API. Minimum is 2.1 and maximum is 2.{NEWEST}.");
            Err(Refusal::new(406, message))
        }
    }
}

/// No, in Nova's form: one key that depends on the status.
#[derive(Debug)]
enum Refusal {
    Said {
        status: u16,
        message: String,
    },
    /// A proxy says that Nova is not there.
    Away,
    /// Whoever asked is never told.
    Lost,
}

impl Refusal {
    fn new(status: u16, message: impl Into<String>) -> Refusal {
        Refusal::Said { status, message: message.into() }
    }

    fn of(trouble: Trouble, not_found: impl Into<String>) -> Refusal {
        match trouble {
            Trouble::Unavailable => Refusal::Away,
            Trouble::AnswerLost => Refusal::Lost,
            Trouble::Refused { status, reason } => Refusal::new(status, reason),
            Trouble::NotFound => Refusal::new(404, not_found),
        }
    }
}

impl From<Trouble> for Refusal {
    fn from(trouble: Trouble) -> Refusal {
        Refusal::of(trouble, "The resource could not be found.")
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, message) = match self {
            Refusal::Said { status, message } => (status, message),
            Refusal::Away => {
                let page = "<html><body><h1>503 Service Unavailable</h1>No server is available to handle this request.</body></html>\n";
                return (StatusCode::SERVICE_UNAVAILABLE, page).into_response();
            }
            Refusal::Lost => return lost(),
        };
        let key = match status {
            400 => "badRequest",
            403 => "forbidden",
            404 => "itemNotFound",
            409 => "conflictingRequest",
            _ => "computeFault",
        };
        let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (code, Json(json!({ key: { "code": status, "message": message } }))).into_response()
    }
}

type Answer = Result<Json<Value>, Refusal>;

/// Nova's policy: only administrators.
fn only_admin(bearer: &Bearer, rule: &str) -> Result<(), Refusal> {
    if bearer.admin { Ok(()) } else { Err(Refusal::new(403, format!("Policy doesn't allow {rule} to be performed."))) }
}

/// Times with fractions of a second, in most documents.
fn time(at: Timestamp) -> String {
    at.utc().format("%Y-%m-%dT%H:%M:%S.000000").to_string()
}

/// One page of a list, and whether there are more: by `limit` and `marker`.
fn page<T>(all: Vec<T>, query: &BTreeMap<String, String>, id: impl Fn(&T) -> &str) -> Result<(Vec<T>, bool), Refusal> {
    let limit = match query.get("limit").map(|limit| limit.parse::<usize>()) {
        None => PAGE_MAX,
        Some(Ok(limit)) => limit.min(PAGE_MAX),
        Some(Err(_)) => return Err(Refusal::new(400, "Invalid input for query parameters limit.")),
    };
    let skip = match query.get("marker") {
        None => 0,
        Some(marker) => match all.iter().position(|one| id(one) == marker) {
            Some(position) => position + 1,
            None => return Err(Refusal::new(400, format!("marker [{marker}] not found"))),
        },
    };
    let more = all.len() > skip + limit;
    // Nova gives a link only for a page that is full.
    Ok((all.into_iter().skip(skip).take(limit).collect(), more && limit > 0))
}

/// The link to the page after the one that ends with `last`.
fn next_link(nova: &Nova, path: &str, query: &BTreeMap<String, String>, last: &str) -> Value {
    let mut query = query.clone();
    query.insert("marker".to_owned(), last.to_owned());
    let words: Vec<String> = query.iter().map(|(key, value)| format!("{key}={value}")).collect();
    json!([{ "rel": "next", "href": format!("{}/v2.1{path}?{}", nova.url, words.join("&")) }])
}
