//! A counterpart that answers what a test tells it to, and remembers what it was asked. Unless told otherwise, it is a Keystone
//! and a Nova 2.103 with one host, `compute1`.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What it was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

/// What it answers.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
    /// Never comes.
    silent: bool,
}

#[derive(Clone)]
pub(crate) struct Cloud {
    pub(crate) address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    asked: Vec<Asked>,
    /// By method and beginning of the path; the last reply of each list stays.
    replies: HashMap<(String, String), Vec<Reply>>,
    tokens: u32,
}

impl Reply {
    pub(crate) fn json(status: u16, body: &Value) -> Reply {
        Reply { status, headers: vec![("content-type", "application/json".to_owned())], body: body.to_string(), silent: false }
    }

    pub(crate) fn text(status: u16, body: &str) -> Reply {
        Reply { status, headers: Vec::new(), body: body.to_owned(), silent: false }
    }

    pub(crate) fn silent() -> Reply {
        Reply { silent: true, ..Reply::text(200, "") }
    }

    pub(crate) fn with(mut self, header: &'static str, value: &str) -> Reply {
        self.headers.push((header, value.to_owned()));
        self
    }
}

impl Cloud {
    pub(crate) async fn start() -> Cloud {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cloud = Cloud { address, shared: Arc::default() };
        cloud.reply("GET", "/v2.1/", [Reply::json(200, &json!({ "version": { "version": "2.103", "min_version": "2.1" } }))]);
        cloud.reply("GET", "/v2.1/os-services?", [Reply::json(200, &services("compute1"))]);
        cloud.reply("GET", "/v2.1/servers/detail", [Reply::json(200, &json!({ "servers": [server("one")] }))]);
        cloud.reply("GET", "/v2.1/servers/one", [Reply::json(200, &json!({ "server": server("one") }))]);
        cloud.reply("POST", "/v2.1/servers/one/action", [Reply::text(202, "").with("x-openstack-request-id", "req-1")]);
        let app = axum::Router::new().fallback(answer).with_state(cloud.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        cloud
    }

    /// From now on, such requests are answered so, one reply after the other; the last one stays.
    pub(crate) fn reply(&self, method: &str, path: &str, replies: impl IntoIterator<Item = Reply>) {
        let mut replies: Vec<Reply> = replies.into_iter().collect();
        replies.reverse();
        self.shared.lock().unwrap().replies.insert((method.to_owned(), path.to_owned()), replies);
    }

    /// Everything it was asked that begins so.
    pub(crate) fn asked(&self, method: &str, path: &str) -> Vec<Asked> {
        let shared = self.shared.lock().unwrap();
        shared.asked.iter().filter(|asked| asked.method == method && asked.path.starts_with(path)).cloned().collect()
    }

    /// A `clouds.yaml` that leads here.
    pub(crate) fn clouds(&self) -> Value {
        json!({ "clouds": { "fake": { "region_name": "RegionOne", "auth": {
            "auth_url": format!("http://{}", self.address), "username": "turnaround", "password": "canary-keystone",
            "user_domain_name": "Default", "project_name": "admin", "project_domain_id": "default" } } } })
    }

    /// Keystone's answer with a token that is good until `expires`.
    pub(crate) fn token(&self, expires: &str, number: u32) -> Reply {
        let url = format!("http://{}/v2.1", self.address);
        let endpoints = json!([
            { "interface": "public", "region_id": "RegionOne", "url": url },
            { "interface": "internal", "region_id": "RegionOne", "url": "http://192.0.2.9:8774/v2.1" },
            { "interface": "public", "region_id": "RegionTwo", "url": "http://192.0.2.9:8774/v2.1" }]);
        let network = ["RegionOne", "RegionTwo"].map(|region| json!({ "interface": "public", "region_id": region, "url": format!("http://{}/network", self.address) }));
        let body = json!({ "token": { "expires_at": expires, "project": { "id": "p" }, "catalog": [{ "type": "compute", "endpoints": endpoints }, { "type": "network", "endpoints": network }] } });
        Reply::json(201, &body).with("x-subject-token", &format!("canary-token-{number}"))
    }
}

async fn answer(State(cloud): State<Cloud>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().unwrap().to_string();
    let body = String::from_utf8(to_bytes(body, 1 << 20).await.unwrap().to_vec()).unwrap();
    let asked = Asked { method: head.method.to_string(), path: path.clone(), headers: head.headers, body };
    let reply = cloud.choose(asked);
    if reply.silent {
        std::future::pending::<()>().await;
    }
    let mut response = Response::builder().status(StatusCode::from_u16(reply.status).unwrap());
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    response.body(Body::from(reply.body)).unwrap()
}

impl Cloud {
    fn choose(&self, asked: Asked) -> Reply {
        let mut shared = self.shared.lock().unwrap();
        shared.asked.push(asked.clone());
        // A path that ends with a slash is meant as it stands.
        let fits = |path: &str| if path.ends_with('/') { asked.path == path } else { asked.path.starts_with(path) };
        let fitting = shared.replies.keys().filter(|(method, path)| *method == asked.method && fits(path));
        let Some(key) = fitting.max_by_key(|(_, path)| path.len()).cloned() else {
            if asked.path == "/v3/auth/tokens" {
                shared.tokens += 1;
                return self.token("2999-01-01T00:00:00.000000Z", shared.tokens);
            }
            return Reply::json(404, &json!({ "itemNotFound": { "code": 404, "message": "no such thing" } }));
        };
        let replies = shared.replies.get_mut(&key).unwrap();
        if replies.len() > 1 { replies.pop().unwrap() } else { replies[0].clone() }
    }
}

pub(crate) fn services(host: &str) -> Value {
    json!({ "services": [{ "id": "5e41ce", "binary": "nova-compute", "host": host, "status": "enabled", "state": "up", "disabled_reason": null, "forced_down": false }] })
}

pub(crate) fn server(id: &str) -> Value {
    json!({ "id": id, "name": id, "tenant_id": "p", "status": "ACTIVE", "locked": false, "OS-EXT-SRV-ATTR:host": "compute1",
        "OS-EXT-STS:vm_state": "active", "OS-EXT-STS:task_state": null })
}
