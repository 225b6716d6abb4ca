//! The adapter against a real Ironic: what the simulated one was made after.
//!
//! Runs where `TURNAROUND_BED_IRONIC` is the URL of a test Ironic that asks for no credentials (`auth_strategy=noauth`) and has the
//! driver `fake-hardware`; skipped elsewhere. It makes nodes called `turnaround-rebuild-*`, and removes them.
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use turnaround_config::NodeName;
use turnaround_tests::harness::until_within;
use turnaround_tests::site::{Settings, Site};
use turnaround_workflows::clock::SystemClock;
use turnaround_workflows::ports::*;
use turnaround_workflows::rehearsal::{SitePlan, World};

const GPU: &str = "gpu-01";
const MAC: &str = "52:54:00:00:00:01";

/// A node of a real Ironic, and the adapter to it.
struct Bed {
    url: String,
    http: reqwest::Client,
    name: String,
    rebuilder: Arc<dyn Rebuilder>,
    _site: Site,
}

impl Bed {
    /// None, with a plain line that says how to get one, where there is no Ironic. The node is `active` then, with the port `MAC`.
    async fn find(test: &str) -> Option<Bed> {
        let Ok(url) = std::env::var("TURNAROUND_BED_IRONIC") else {
            assert!(std::env::var_os("TURNAROUND_REQUIRE_BEDS").is_none(), "TURNAROUND_BED_IRONIC is not set");
            eprintln!("skipped: {test}: set TURNAROUND_BED_IRONIC to the URL of a test Ironic without credentials that has the driver fake-hardware");
            return None;
        };
        let name = format!("turnaround-rebuild-{}-{test}", std::process::id());
        let world = World::new(Arc::new(SystemClock), SitePlan::uniform(1, 0).with_ironic(&[GPU]), 1);
        let site = Site::start(&world).await.unwrap();
        let mut settings = Settings::quick(Path::new(env!("CARGO_BIN_EXE_site-ssh")));
        settings.more = format!("[ironic]\nurl = \"{url}\"\n");
        let text = site.config_toml(&world, &settings).replacen("ironic = {}", &format!("ironic.node = \"{name}\""), 1);
        let config = turnaround_config::check_text("config.toml", &text).unwrap_or_else(|report| panic!("{report}"));
        let rebuilder = turnaround_worker::adapters::connect(&config).unwrap_or_else(|error| panic!("{error}")).rebuilder;
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let bed = Bed { url, http, name, rebuilder, _site: site };
        bed.make().await;
        Some(bed)
    }

    async fn make(&self) {
        let node = json!({ "name": self.name, "driver": "fake-hardware", "resource_class": "turnaround-rebuild" });
        let (status, made) = self.call(Method::POST, "/nodes", Some(node)).await;
        assert_eq!(status, 201, "{made}");
        let port = json!({ "node_uuid": made["uuid"], "address": MAC });
        // An earlier run that was killed may have left its port behind.
        let (_, ports) = self.call(Method::GET, &format!("/ports?address={MAC}"), None).await;
        for port in ports["ports"].as_array().unwrap() {
            self.call(Method::DELETE, &format!("/ports/{}", port["uuid"].as_str().unwrap()), None).await;
        }
        assert_eq!(self.call(Method::POST, "/ports", Some(port)).await.0, 201);
        for (target, state) in [("manage", "manageable"), ("provide", "available")] {
            self.provision(target).await;
            self.settled(state).await;
        }
        let first = json!([
            { "op": "add", "path": "/instance_info/image_source", "value": "http://127.0.0.1:1/first.raw" },
            { "op": "add", "path": "/instance_info/image_checksum", "value": "d41d8cd98f00b204e9800998ecf8427e" },
        ]);
        self.patch(first).await;
        self.provision("active").await;
        self.settled("active").await;
    }

    /// A call by hand.
    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.http.request(method, format!("{}/v1{path}", self.url)).header("x-openstack-ironic-api-version", "1.65");
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or(Value::Null))
    }

    async fn provision(&self, target: &str) {
        let path = format!("/nodes/{}/states/provision", self.name);
        let (status, said) = self.call(Method::PUT, &path, Some(json!({ "target": target }))).await;
        assert_eq!(status, 202, "{target}: {said}");
    }

    async fn patch(&self, patch: Value) {
        let (status, said) = self.call(Method::PATCH, &format!("/nodes/{}", self.name), Some(patch)).await;
        assert_eq!(status, 200, "{said}");
    }

    async fn node(&self) -> Value {
        self.call(Method::GET, &format!("/nodes/{}", self.name), None).await.1
    }

    async fn settled(&self, state: &str) {
        until_within(Duration::from_secs(60), Duration::from_millis(200), "the node's state", async || {
            let node = self.node().await;
            (node["provision_state"] == state && node["reservation"].is_null()).then_some(())
        })
        .await
        .unwrap();
    }

    async fn record(&self) -> RebuildRecord {
        self.rebuilder.record(&gpu()).await.unwrap()
    }

    /// Takes the node away again.
    async fn done(self) {
        self.call(Method::PUT, &format!("/nodes/{}/maintenance", self.name), Some(json!({}))).await;
        let (status, said) = self.call(Method::DELETE, &format!("/nodes/{}", self.name), None).await;
        assert_eq!(status, 204, "{said}");
    }
}

fn gpu() -> NodeName {
    GPU.parse().unwrap()
}

fn order(token: &str) -> RebuildOrder {
    RebuildOrder { token: Token(token.to_owned()), source: "http://127.0.0.1:1/new.raw".to_owned(), sha256: "a".repeat(64) }
}

macro_rules! bed {
    ($name:literal) => {
        match Bed::find($name).await {
            Some(bed) => bed,
            None => return,
        }
    };
}

/// One test, as one node has to be in use at a time: they share an address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_ironic_rebuilds_a_node_as_the_simulated_one_does() {
    let bed = bed!("rebuild");
    let found = bed.record().await;
    assert_eq!((found.state, found.called.as_str(), found.locked_by.clone()), (RebuildState::Installed, "active", None));
    assert_eq!((found.objections.clone(), found.order.clone(), found.last_error.clone()), (vec![], None, None));

    // Ordered: on record, and nothing else has changed. The checksum of the image before is gone.
    bed.rebuilder.order(&gpu(), &order("t-1")).await.unwrap();
    assert_eq!(bed.record().await, RebuildRecord { order: Some(Token("t-1".to_owned())), ..found.clone() });
    let info = bed.node().await["instance_info"].take();
    assert_eq!((&info["image_source"], &info["image_os_hash_algo"]), (&json!("http://127.0.0.1:1/new.raw"), &json!("sha256")));
    assert_eq!((&info["image_os_hash_value"], &info["image_checksum"]), (&json!("a".repeat(64)), &Value::Null));

    // Rebuilt: refused for now while it goes on, and its state has changed before the answer came.
    bed.rebuilder.rebuild(&gpu(), &order("t-1")).await.unwrap();
    let working = bed.record().await;
    assert_eq!((working.state, working.order.clone()), (RebuildState::Working, Some(Token("t-1".to_owned()))));
    assert_ne!(working.changed, found.changed);
    assert!(working.locked_by.is_some());
    assert_eq!(bed.rebuilder.rebuild(&gpu(), &order("t-1")).await.unwrap_err().kind, PortErrorKind::Unavailable);
    let locked = bed.rebuilder.order(&gpu(), &order("t-2")).await.unwrap_err();
    assert_eq!(locked.kind, PortErrorKind::Unavailable);
    println!("while it works: {locked}: {}", locked.source.as_ref().unwrap());
    bed.settled("active").await;
    let over = bed.record().await;
    assert_eq!((over.state, over.locked_by, over.last_error), (RebuildState::Installed, None, None));
    assert_ne!(over.changed, found.changed);

    // Nothing keeps it from being asked for again: that is for us.
    bed.rebuilder.rebuild(&gpu(), &order("t-1")).await.unwrap();
    bed.settled("active").await;

    // Refused, in its own words.
    bed.call(Method::PUT, &format!("/nodes/{}/maintenance", bed.name), Some(json!({ "reason": "DIMM, ask bob" }))).await;
    assert_eq!(bed.record().await.objections, ["Ironic has gpu-01 in maintenance: DIMM, ask bob"]);
    match bed.rebuilder.rebuild(&gpu(), &order("t-1")).await.unwrap_err().kind {
        PortErrorKind::Refused { reason } => assert!(reason.ends_with("because it's in maintenance mode."), "{reason}"),
        other => panic!("{other:?}"),
    }
    bed.call(Method::DELETE, &format!("/nodes/{}/maintenance", bed.name), None).await;
    bed.patch(json!([{ "op": "add", "path": "/protected", "value": true }])).await;
    assert_eq!(bed.record().await.objections, ["Ironic has gpu-01 protected"]);
    assert!(matches!(bed.rebuilder.rebuild(&gpu(), &order("t-1")).await.unwrap_err().kind, PortErrorKind::Denied { .. }));
    bed.patch(json!([{ "op": "add", "path": "/protected", "value": false }])).await;

    // A tenant's machine, and a retired one: Ironic itself would rebuild both.
    bed.patch(json!([{ "op": "add", "path": "/instance_uuid", "value": "6f1c3f5e-0000-4000-8000-000000000001" }])).await;
    assert_eq!(bed.record().await.objections, ["for Ironic, gpu-01 is the machine of instance 6f1c3f5e-0000-4000-8000-000000000001"]);
    bed.patch(json!([{ "op": "remove", "path": "/instance_uuid" }, { "op": "add", "path": "/retired", "value": true }])).await;
    assert_eq!(bed.record().await.objections, ["Ironic has gpu-01 retired"]);
    bed.patch(json!([{ "op": "add", "path": "/retired", "value": false }])).await;

    // Another machine's record.
    let (_, ports) = bed.call(Method::GET, &format!("/ports?address={MAC}"), None).await;
    let port = format!("/ports/{}", ports["ports"][0]["uuid"].as_str().unwrap());
    assert_eq!(bed.call(Method::DELETE, &port, None).await.0, 204);
    assert_eq!(bed.record().await.objections, [format!("Ironic's record `{}` is of another machine: it has no port with the address {MAC}", bed.name)]);

    // A node that it does not have.
    bed.call(Method::PATCH, &format!("/nodes/{}", bed.name), Some(json!([{ "op": "add", "path": "/name", "value": format!("{}-x", bed.name) }]))).await;
    assert_eq!(bed.rebuilder.record(&gpu()).await.unwrap_err().kind, PortErrorKind::NotFound);
    bed.call(Method::PATCH, &format!("/nodes/{}-x", bed.name), Some(json!([{ "op": "add", "path": "/name", "value": bed.name }]))).await;
    bed.done().await;
}
