//! Keystone v3: its version, and tokens for a user and its password.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use turnaround_workflows::clock::Timestamp;

use super::tokens::{Bearer, Tokens};
use super::{ADMIN_PROJECT, Login};

/// The domain that everybody is in.
pub(crate) const DOMAIN: &str = "Default";
const DOMAIN_ID: &str = "default";
pub(crate) const REGION: &str = "RegionOne";
/// The project that the mere member is in.
const MEMBER_PROJECT: &str = "tenant-a";

const X_SUBJECT_TOKEN: HeaderName = HeaderName::from_static("x-subject-token");

pub(super) struct Keystone {
    pub(super) url: String,
    pub(super) nova_url: String,
    pub(super) placement_url: String,
    pub(super) ironic_url: String,
    pub(super) neutron_url: String,
    pub(super) admin: Login,
    pub(super) member: Login,
    pub(super) tokens: Arc<Tokens>,
}

pub(super) fn routes(keystone: Keystone) -> Router {
    let keystone = Arc::new(keystone);
    Router::new()
        .route("/", get(versions))
        .route("/v3", get(version))
        .route("/v3/", get(version))
        .route("/v3/auth/tokens", post(authenticate))
        .with_state(keystone)
}

fn v3(keystone: &Keystone) -> Value {
    json!({
        "id": "v3.14",
        "status": "stable",
        "updated": "2020-04-07T00:00:00Z",
        "links": [{ "rel": "self", "href": format!("{}/v3/", keystone.url) }],
        "media-types": [{ "base": "application/json", "type": "application/vnd.openstack.identity-v3+json" }],
    })
}

async fn versions(State(keystone): State<Arc<Keystone>>) -> Response {
    (StatusCode::MULTIPLE_CHOICES, Json(json!({ "versions": { "values": [v3(&keystone)] } }))).into_response()
}

async fn version(State(keystone): State<Arc<Keystone>>) -> Json<Value> {
    Json(json!({ "version": v3(&keystone) }))
}

fn refuse(status: StatusCode, title: &str, message: &str) -> Response {
    (status, Json(json!({ "error": { "code": status.as_u16(), "message": message, "title": title } }))).into_response()
}

fn unauthorized() -> Response {
    refuse(StatusCode::UNAUTHORIZED, "Unauthorized", "The request you have made requires authentication.")
}

fn malformed(what: &str) -> Response {
    let message = format!(
        "Expecting to find {what} in request. The server could not comply with the request since it is either malformed or otherwise incorrect. The client is assumed to be in error."
    );
    refuse(StatusCode::BAD_REQUEST, "Bad Request", &message)
}

/// A name within a domain, or an id. Ids are the names here.
fn named(what: &Value) -> Option<&str> {
    if let Some(id) = what["id"].as_str() {
        return Some(id);
    }
    let domain = &what["domain"];
    let known = domain["name"] == DOMAIN || domain["id"] == DOMAIN_ID;
    what["name"].as_str().filter(|_| known)
}

async fn authenticate(State(keystone): State<Arc<Keystone>>, body: axum::body::Bytes) -> Response {
    let Ok(request) = serde_json::from_slice::<Value>(&body) else { return malformed("valid JSON") };
    let identity = &request["auth"]["identity"];
    if identity["methods"] != json!(["password"]) {
        return if identity.is_object() { unauthorized() } else { malformed("auth") };
    }
    let user = &identity["password"]["user"];
    let (name, password) = (named(user), user["password"].as_str());
    let logins = [(&keystone.admin, ADMIN_PROJECT, true), (&keystone.member, MEMBER_PROJECT, false)];
    let login = logins
        .into_iter()
        .find(|(login, ..)| Some(login.user.as_str()) == name && Some(login.password.as_str()) == password);
    let Some((login, own_project, admin)) = login else { return unauthorized() };
    let scope = &request["auth"]["scope"]["project"];
    let project = if scope.is_null() { None } else { Some(named(scope)) };
    match project {
        None => answer(&keystone, login, None, admin),
        Some(wanted) if wanted == Some(own_project) => answer(&keystone, login, Some(own_project), admin),
        Some(_) => unauthorized(),
    }
}

fn answer(keystone: &Keystone, login: &Login, project: Option<&str>, admin: bool) -> Response {
    let bearer = Bearer { user: login.user.clone(), project: project.map(str::to_owned), admin };
    let (token, issued, expires) = keystone.tokens.give(bearer);
    let time = |at: Timestamp| at.utc().format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let domain = json!({ "id": DOMAIN_ID, "name": DOMAIN });
    let mut document = json!({
        "methods": ["password"],
        "user": { "id": login.user, "name": login.user, "domain": domain, "password_expires_at": null },
        "audit_ids": [&token[8..30]],
        "issued_at": time(issued),
        "expires_at": time(expires),
    });
    if let Some(project) = project {
        let role = if admin { "admin" } else { "member" };
        document["project"] = json!({ "id": project, "name": project, "domain": domain });
        document["is_domain"] = json!(false);
        document["roles"] = json!([{ "id": role, "name": role }]);
        document["catalog"] = catalog(keystone);
    }
    let Ok(value) = HeaderValue::from_str(&token) else { return unauthorized() };
    (StatusCode::CREATED, [(X_SUBJECT_TOKEN, value)], Json(json!({ "token": document }))).into_response()
}

fn catalog(keystone: &Keystone) -> Value {
    let service = |id: &str, kind: &str, name: &str, url: String| {
        let endpoint = |interface: &str| json!({ "id": format!("{id}-{interface}"), "interface": interface, "region": REGION, "region_id": REGION, "url": url });
        let endpoints = [endpoint("public"), endpoint("internal"), endpoint("admin")];
        json!({ "id": id, "type": kind, "name": name, "endpoints": endpoints })
    };
    json!([
        service("c1", "compute", "nova", format!("{}/v2.1", keystone.nova_url)),
        service("p1", "placement", "placement", keystone.placement_url.clone()),
        service("n1", "network", "neutron", keystone.neutron_url.clone()),
        service("b1", "baremetal", "ironic", keystone.ironic_url.clone()),
        service("i1", "identity", "keystone", format!("{}/v3", keystone.url)),
    ])
}
