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
use tokio::sync::{Mutex, MutexGuard};
use turnaround_config::NodeName;
use turnaround_daemon::wire::WorkflowView;
use turnaround_tests::beds;
use turnaround_tests::harness::{Running, until, until_within};
use turnaround_tests::site::{Settings, Site};
use turnaround_workflows::clock::SystemClock;
use turnaround_workflows::ports::*;
use turnaround_workflows::rehearsal::{SitePlan, World};
use turnaround_workflows::store::Status;

const GPU: &str = "gpu-01";
const MAC: &str = "52:54:00:00:00:01";

/// A node of a real Ironic.
struct Bed {
    url: String,
    http: reqwest::Client,
    name: String,
    /// Tests share the address of the node's port: one has it at a time.
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::const_new(());

impl Bed {
    /// None, with a plain line that says how to get one, where there is no Ironic. The node is `active` then, with the port `MAC`.
    async fn find(test: &str) -> Option<Bed> {
        let Ok(url) = std::env::var("TURNAROUND_BED_IRONIC") else {
            beds::skip("ironic", test, "set TURNAROUND_BED_IRONIC to the URL of a test Ironic without credentials that has the driver fake-hardware");
            return None;
        };
        turnaround_worker::adapters::install_tls();
        let name = format!("turnaround-rebuild-{test}");
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let bed = Bed { url, http, name, _alone: ALONE.lock().await };
        bed.tidy().await;
        bed.make().await;
        Some(bed)
    }

    /// What an earlier run may have left behind.
    async fn tidy(&self) {
        self.unprotect().await;
        self.call(Method::PUT, &format!("/nodes/{}/maintenance", self.name), Some(json!({}))).await;
        self.call(Method::DELETE, &format!("/nodes/{}", self.name), None).await;
        let (_, ports) = self.call(Method::GET, &format!("/ports?address={MAC}"), None).await;
        for port in ports["ports"].as_array().unwrap() {
            self.call(Method::DELETE, &format!("/ports/{}", port["uuid"].as_str().unwrap()), None).await;
        }
    }

    async fn make(&self) {
        let node = json!({ "name": self.name, "driver": "fake-hardware", "resource_class": "turnaround-rebuild" });
        let (status, made) = self.call(Method::POST, "/nodes", Some(node)).await;
        assert_eq!(status, 201, "{made}");
        let port = json!({ "node_uuid": made["uuid"], "address": MAC });
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

    /// A renewed node is protected by us, also from being removed.
    async fn unprotect(&self) {
        let no_more = json!([{ "op": "replace", "path": "/protected", "value": false }]);
        self.call(Method::PATCH, &format!("/nodes/{}", self.name), Some(no_more)).await;
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

    /// Takes the node away again.
    async fn done(self) {
        self.unprotect().await;
        self.call(Method::PUT, &format!("/nodes/{}/maintenance", self.name), Some(json!({}))).await;
        let (status, said) = self.call(Method::DELETE, &format!("/nodes/{}", self.name), None).await;
        assert_eq!(status, 204, "{said}");
    }
}

/// The adapter to `bed`, and the simulated site around it.
struct Adapter {
    rebuilder: Arc<dyn Rebuilder>,
    _site: Site,
}

impl Adapter {
    async fn to(bed: &Bed) -> Adapter {
        let world = World::new(Arc::new(SystemClock), SitePlan::uniform(1, 0).with_ironic(&[GPU]), 1);
        let site = Site::start(&world).await.unwrap();
        let mut settings = Settings::quick(Path::new(env!("CARGO_BIN_EXE_site-ssh")));
        settings.more = format!("[ironic]\nurl = \"{}\"\n", bed.url);
        let text = site.config_toml(&world, &settings).replacen("ironic = {}", &format!("ironic.node = \"{}\"", bed.name), 1);
        let config = turnaround_config::check_text("config.toml", &text).unwrap_or_else(|report| panic!("{report}"));
        let rebuilder = turnaround_worker::adapters::connect(&config).unwrap_or_else(|error| panic!("{error}")).rebuilder;
        Adapter { rebuilder, _site: site }
    }

    async fn record(&self) -> RebuildRecord {
        self.rebuilder.record(&gpu()).await.unwrap()
    }
}

fn gpu() -> NodeName {
    GPU.parse().unwrap()
}

fn order(token: &str, found: &RebuildRecord) -> RebuildOrder {
    RebuildOrder { token: Token(token.to_owned()), id: found.id.clone(), source: "http://127.0.0.1:1/new.raw".to_owned(), sha256: "a".repeat(64) }
}

macro_rules! bed {
    ($name:literal) => {
        match Bed::find($name).await {
            Some(bed) => bed,
            None => return,
        }
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_ironic_rebuilds_a_node_as_the_simulated_one_does() {
    let bed = bed!("rebuild");
    let adapter = Adapter::to(&bed).await;
    let found = adapter.record().await;
    assert_eq!((found.state, found.called.as_str(), found.locked_by.clone()), (RebuildState::Installed, "active", None));
    assert_eq!((found.objections.clone(), found.order.clone(), found.last_error.clone()), (vec![], None, None));

    // Ordered: on record, and nothing else has changed. The checksum of the image before is gone.
    adapter.rebuilder.order(&gpu(), &order("t-1", &found)).await.unwrap();
    assert_eq!(adapter.record().await, RebuildRecord { order: Some(Token("t-1".to_owned())), ..found.clone() });
    let info = bed.node().await["instance_info"].take();
    assert_eq!((&info["image_source"], &info["image_os_hash_algo"]), (&json!("http://127.0.0.1:1/new.raw"), &json!("sha256")));
    assert_eq!((&info["image_os_hash_value"], &info["image_checksum"]), (&json!("a".repeat(64)), &Value::Null));

    // Rebuilt: refused for now while it goes on, and its state has changed before the answer came.
    adapter.rebuilder.rebuild(&gpu(), &order("t-1", &found)).await.unwrap();
    let working = adapter.record().await;
    assert_eq!((working.state, working.order.clone()), (RebuildState::Working, Some(Token("t-1".to_owned()))));
    assert_ne!(working.changed, found.changed);
    assert!(working.locked_by.is_some());
    assert_eq!(adapter.rebuilder.rebuild(&gpu(), &order("t-1", &found)).await.unwrap_err().kind, PortErrorKind::Unavailable);
    let locked = adapter.rebuilder.order(&gpu(), &order("t-2", &found)).await.unwrap_err();
    assert_eq!(locked.kind, PortErrorKind::Unavailable);
    println!("while it works: {locked}: {}", locked.source.as_ref().unwrap());
    bed.settled("active").await;
    let over = adapter.record().await;
    assert_eq!((over.state, over.locked_by, over.last_error), (RebuildState::Installed, None, None));
    assert_ne!(over.changed, found.changed);

    // Nothing keeps it from being asked for again: that is for us.
    adapter.rebuilder.rebuild(&gpu(), &order("t-1", &found)).await.unwrap();
    bed.settled("active").await;

    // Refused, in its own words.
    bed.call(Method::PUT, &format!("/nodes/{}/maintenance", bed.name), Some(json!({ "reason": "DIMM, ask bob" }))).await;
    assert_eq!(adapter.record().await.objections, ["Ironic has gpu-01 in maintenance: DIMM, ask bob"]);
    match adapter.rebuilder.rebuild(&gpu(), &order("t-1", &found)).await.unwrap_err().kind {
        PortErrorKind::Refused { reason } => assert!(reason.ends_with("because it's in maintenance mode."), "{reason}"),
        other => panic!("{other:?}"),
    }
    bed.call(Method::DELETE, &format!("/nodes/{}/maintenance", bed.name), None).await;
    bed.patch(json!([{ "op": "add", "path": "/protected", "value": true }])).await;
    assert_eq!(adapter.record().await.objections, ["Ironic has gpu-01 protected"]);
    assert!(matches!(adapter.rebuilder.rebuild(&gpu(), &order("t-1", &found)).await.unwrap_err().kind, PortErrorKind::Denied { .. }));
    bed.patch(json!([{ "op": "add", "path": "/protected", "value": false }])).await;

    // Our own protection is none of that: the next order takes it away.
    adapter.rebuilder.protect(&gpu(), &found.id).await.unwrap();
    let protected = adapter.record().await;
    assert_eq!((protected.protected_by_us, protected.objections), (true, vec![]));
    assert!(matches!(adapter.rebuilder.rebuild(&gpu(), &order("t-1", &found)).await.unwrap_err().kind, PortErrorKind::Denied { .. }));
    adapter.rebuilder.order(&gpu(), &order("t-1", &found)).await.unwrap();
    assert!(!adapter.record().await.protected_by_us);
    adapter.rebuilder.rebuild(&gpu(), &order("t-1", &found)).await.unwrap();
    bed.settled("active").await;

    // A tenant's machine, and a retired one: Ironic itself would rebuild both.
    bed.patch(json!([{ "op": "add", "path": "/instance_uuid", "value": "6f1c3f5e-0000-4000-8000-000000000001" }])).await;
    assert_eq!(adapter.record().await.objections, ["for Ironic, gpu-01 is the machine of instance 6f1c3f5e-0000-4000-8000-000000000001"]);
    bed.patch(json!([{ "op": "remove", "path": "/instance_uuid" }, { "op": "add", "path": "/retired", "value": true }])).await;
    assert_eq!(adapter.record().await.objections, ["Ironic has gpu-01 retired"]);
    bed.patch(json!([{ "op": "add", "path": "/retired", "value": false }])).await;

    // Another machine's record.
    let (_, ports) = bed.call(Method::GET, &format!("/ports?address={MAC}"), None).await;
    let port = format!("/ports/{}", ports["ports"][0]["uuid"].as_str().unwrap());
    assert_eq!(bed.call(Method::DELETE, &port, None).await.0, 204);
    assert_eq!(adapter.record().await.objections, [format!("Ironic's record `{}` is of another machine: it has no port with the address {MAC}", bed.name)]);

    // A node that it does not have.
    bed.call(Method::PATCH, &format!("/nodes/{}", bed.name), Some(json!([{ "op": "add", "path": "/name", "value": format!("{}-x", bed.name) }]))).await;
    assert_eq!(adapter.rebuilder.record(&gpu()).await.unwrap_err().kind, PortErrorKind::NotFound);
    bed.call(Method::PATCH, &format!("/nodes/{}-x", bed.name), Some(json!([{ "op": "add", "path": "/name", "value": bed.name }]))).await;
    bed.done().await;
}

/// The daemon, two workers and a real Ironic. It has no machines: that of the simulated site does what Ironic says that it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_renewed_by_a_real_ironic_also_if_a_worker_is_killed_meanwhile() {
    let bed = bed!("whole");
    let mut plan = SitePlan::uniform(2, 0).sped_up(60);
    plan.nodes[0].name.clone_from(&bed.name);
    let plan = plan.with_ironic(&[&bed.name]);
    let mut running = Running::start(plan, 2, |settings| settings.more = format!("[ironic]\nurl = \"{}\"\n", bed.url)).await.unwrap();
    let rollout = running.renew(&[&bed.name]).await.unwrap();
    let found = until("Ironic to rebuild it", async || {
        let node = bed.node().await;
        (node["provision_state"] == "deploying" && node["extra"]["turnaround"]["token"].is_string()).then_some(node)
    });
    let found = found.await.unwrap();
    let order: RebuildOrder = serde_json::from_value(json!({
        "token": found["extra"]["turnaround"]["token"], "id": found["uuid"], "sha256": found["extra"]["turnaround"]["sha256"], "source": found["instance_info"]["image_source"],
    }))
    .unwrap();
    running.world.order_rebuild(&bed.name, &order, false).unwrap();
    running.world.request_rebuild(&bed.name, Installed { token: order.token.clone(), sha256: order.sha256.clone() }).unwrap();
    for worker in 0..2 {
        running.processes.kill_worker(worker).await.unwrap();
        running.processes.start_worker(worker).unwrap();
    }
    let ended = until("the rollout to end", async || {
        let view: WorkflowView = running.client.get(&format!("/v1/workflows/{rollout}")).await.ok()?;
        (view.line.status.is_ended() || view.line.status == Status::NeedsOperator).then_some(view)
    });
    let ended = ended.await.unwrap();
    assert_eq!(ended.line.status, Status::Succeeded, "{}", ended.line.headline);
    let node = bed.node().await;
    assert_eq!((&node["provision_state"], &node["extra"]["turnaround"]["token"]), (&json!("active"), &json!(order.token)));
    let snapshot = running.world.snapshot();
    let renewed = snapshot.node(&bed.name).unwrap();
    assert_eq!((renewed.kernel.as_str(), renewed.enabled, renewed.installed.as_deref()), ("6.8.0-60-generic", true, Some(order.token.0.as_str())));
    running.processes.end().await.unwrap();
    bed.done().await;
}
