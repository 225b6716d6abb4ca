//! Draining against a real Kubernetes control plane (etcd, API server, controllers, scheduler): the adapter by itself, and a whole renewal by real
//! processes of a host that carries a node of that cluster.
//!
//! Runs where `TURNAROUND_BED_KUBERNETES` is a folder with those programs; skipped elsewhere. Only kubelets are ours, and the machines
//! and the cloud below, which are simulated.
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

#[path = "support/kubernetes.rs"]
mod kubernetes;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kubernetes::Kubernetes;
use reqwest::Method;
use serde_json::{Value, json};
use turnaround_daemon::wire::WorkflowView;
use turnaround_tests::harness::{Running, until_within};
use turnaround_tests::site::{Settings, Site};
use turnaround_workflows::clock::SystemClock;
use turnaround_workflows::ports::{ClusterNode, Cordon, Eviction, Pod, PortErrorKind, Ports};
use turnaround_workflows::rehearsal::{Happened, InstancePlan, SitePlan, World};
use turnaround_workflows::store::Status;

/// A renewal with a drain takes half a minute.
const PATIENCE: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_millis(50);

/// What docs/kubernetes.md has an operator create, word for word; then the token's file, as it says where the token is.
async fn account(kube: &Kubernetes) -> PathBuf {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kubernetes.md")).unwrap();
    let yaml = page.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    for document in yaml.split("---\n") {
        let object: Value = serde_saphyr::from_str(document).unwrap();
        let path = match object["kind"].as_str().unwrap() {
            "ServiceAccount" => "/api/v1/namespaces/kube-system/serviceaccounts",
            "Secret" => "/api/v1/namespaces/kube-system/secrets",
            "ClusterRole" => "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            "ClusterRoleBinding" => "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            other => panic!("where does a {other} go?"),
        };
        kube.post(path, &object).await;
    }
    let token = kube.until("the secret to have a token", async || {
        let secret = kube.get("/api/v1/namespaces/kube-system/secrets/turnaround").await;
        secret["data"]["token"].as_str().map(str::to_owned)
    });
    let (encoded, file) = (kube.folder().join("token.base64"), kube.folder().join("token"));
    std::fs::write(&encoded, token.await).unwrap();
    let decoded = std::process::Command::new("base64").arg("-d").arg(&encoded).output().unwrap();
    assert!(decoded.status.success());
    secret(&file, &decoded.stdout);
    file
}

fn secret(path: &Path, text: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn table(kube: &Kubernetes, token: &Path) -> String {
    format!(
        "[kubernetes]\nurl = \"{}\"\ntoken_file = \"{}\"\nca_file = \"{}\"\nmin_ready = \"2s\"\n",
        kube.url,
        token.display(),
        kube.ca_file.display()
    )
}

/// The real adapter, with this table in the configuration.
async fn ports(table: &str) -> (Site, Ports) {
    let world = World::new(Arc::new(SystemClock), SitePlan::uniform(2, 0), 1);
    let site = Site::start(&world).await.unwrap();
    let mut settings = Settings::quick(Path::new(env!("CARGO_BIN_EXE_site-ssh")));
    table.clone_into(&mut settings.more);
    let config = turnaround_config::check_text("config.toml", &site.config_toml(&world, &settings)).unwrap_or_else(|report| panic!("{report}"));
    let ports = turnaround_worker::adapters::connect(&config).unwrap_or_else(|error| panic!("{error}"));
    (site, ports)
}

fn pod_spec() -> Value {
    json!({ "containers": [{ "name": "c", "image": "registry.test/c:1" }], "terminationGracePeriodSeconds": 5 })
}

/// A pod of its own, on the node of this name.
fn pod(name: &str, node: &str) -> Value {
    let mut spec = pod_spec();
    spec["nodeName"] = json!(node);
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": name } }, "spec": spec })
}

/// What a Deployment, a StatefulSet and a DaemonSet have in common.
fn set(kind: &str, app: &str, more: &Value) -> Value {
    let labels = json!({ "app": app });
    let mut set = json!({
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": { "name": app },
        "spec": { "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels }, "spec": pod_spec() } },
    });
    for (key, value) in more.as_object().unwrap() {
        set["spec"][key] = value.clone();
    }
    set
}

fn budget(name: &str, app: &str, min_available: u32) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": { "name": name },
        "spec": { "minAvailable": min_available, "selector": { "matchLabels": { "app": app } } },
    })
}

const PODS: &str = "/api/v1/namespaces/default/pods";
const APPS: &str = "/apis/apps/v1/namespaces/default";
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";

async fn all_ready(kube: &Kubernetes, app: &str, count: usize) {
    kube.until(&format!("{count} pods of {app} to be ready"), async || {
        (kube.pods(app).await.values().filter(|(_, ready)| *ready).count() == count).then_some(())
    })
    .await;
}

/// The disruption controller has counted: so many may go.
async fn may_go(kube: &Kubernetes, budget: &str, count: u32) {
    kube.until(&format!("{count} pods of {budget} to be allowed to go"), async || {
        let budget = kube.get(&format!("{BUDGETS}/{budget}")).await;
        let seen = budget["status"]["observedGeneration"] == budget["metadata"]["generation"];
        (seen && budget["status"]["disruptionsAllowed"] == count).then_some(())
    })
    .await;
}

async fn node(ports: &Ports, name: &str) -> ClusterNode {
    ports.cluster.nodes().await.unwrap().into_iter().find(|node| node.name == name).unwrap()
}

/// Cordons or uncordons until nobody has changed the node between: kubelets write their state all the time.
async fn written(ports: &Ports, name: &str, cordon: Option<&Cordon>) {
    let written = until_within(PATIENCE, POLL, "a node that nobody changes between", async || {
        let node = node(ports, name).await;
        let written = match cordon {
            Some(cordon) => ports.cluster.cordon(&node, cordon).await,
            None => ports.cluster.uncordon(&node).await,
        };
        match written {
            Ok(()) => Some(()),
            Err(error) if error.kind == PortErrorKind::Unavailable => None,
            Err(error) => panic!("{error}"),
        }
    });
    written.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_adapter_drains_as_a_real_api_server_lets_it() {
    let Some(mut kube) = Kubernetes::start("the_adapter_drains_as_a_real_api_server_lets_it").await else { return };
    kube.node("k3s-1", "17DE7CD8-6A87-4E3F-9D3B-0CBE1F6F5E11", || true).await;
    kube.node("k3s-2", "17DE7CD8-6A87-4E3F-9D3B-0CBE1F6F5E22", || true).await;
    let token = account(&kube).await;
    let (_site, ports) = ports(&table(&kube, &token)).await;

    let first = node(&ports, "k3s-1").await;
    assert_eq!(first.instance.0, "17de7cd8-6a87-4e3f-9d3b-0cbe1f6f5e11");
    assert_eq!((first.ready, first.schedulable, &first.mark), (true, true, &None));

    // Only the node that was read.
    let cordon = Cordon { mark: "turnaround:roll.gpu-01".to_owned(), why: "gpu-01 is renewed".to_owned() };
    written(&ports, "k3s-1", Some(&cordon)).await;
    let cordoned = kube.get("/api/v1/nodes/k3s-1").await;
    assert_eq!(cordoned["spec"]["unschedulable"], true);
    assert_eq!(cordoned["metadata"]["annotations"]["turnaround/cordoned"], "turnaround:roll.gpu-01 gpu-01 is renewed");
    assert_eq!(cordoned["metadata"]["labels"]["kubernetes.io/hostname"], "k3s-1", "what the patch does not name stays");
    let stale = ports.cluster.uncordon(&first).await.unwrap_err();
    assert_eq!(stale.kind, PortErrorKind::Unavailable, "{stale}");
    let seen = node(&ports, "k3s-1").await;
    assert_eq!((seen.schedulable, seen.mark.as_deref()), (false, Some("turnaround:roll.gpu-01")));
    written(&ports, "k3s-1", None).await;
    let open = kube.get("/api/v1/nodes/k3s-1").await;
    assert!(open["spec"]["unschedulable"].is_null() && open["metadata"]["annotations"]["turnaround/cordoned"].is_null(), "{open}");

    // What has to leave.
    kube.until("the namespace to have its account", async || {
        kube.get("/api/v1/namespaces/default/serviceaccounts").await["items"].as_array().is_some_and(|all| !all.is_empty()).then_some(())
    })
    .await;
    kube.post(&format!("{APPS}/deployments"), &set("Deployment", "web", &json!({ "replicas": 2 }))).await;
    kube.post(&format!("{APPS}/daemonsets"), &set("DaemonSet", "exporter", &json!({}))).await;
    kube.post(&format!("{APPS}/statefulsets"), &set("StatefulSet", "db", &json!({ "replicas": 1, "serviceName": "db" }))).await;
    kube.post(PODS, &pod("shell", "k3s-1")).await;
    kube.post(PODS, &pod("job", "k3s-1")).await;
    let mut mirror = pod("static", "k3s-1");
    mirror["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "x", "kubernetes.io/config.hash": "x" });
    kube.post(PODS, &mirror).await;
    for (app, count) in [("web", 2), ("exporter", 2), ("db", 1), ("shell", 1), ("job", 1)] {
        all_ready(&kube, app, count).await;
    }
    kube.call(Method::PATCH, &format!("{PODS}/job/status"), Some(&json!({ "status": { "phase": "Succeeded" } }))).await;
    let mut told: Vec<Pod> = Vec::new();
    for node in ["k3s-1", "k3s-2"] {
        told.extend(ports.cluster.pods(node).await.unwrap());
    }
    let names: std::collections::BTreeSet<&str> = told.iter().map(|pod| pod.name.split('-').next().unwrap()).collect();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["db", "shell", "web"], "none of a DaemonSet, no mirror pod, none that has ended");
    assert_eq!(told.iter().filter(|pod| pod.alone).map(|pod| pod.name.as_str()).collect::<Vec<_>>(), ["shell"]);

    // A budget is honoured, and told in Kubernetes' own words.
    kube.post(BUDGETS, &budget("web-stays", "web", 2)).await;
    may_go(&kube, "web-stays", 0).await;
    let web = told.iter().find(|pod| pod.name.starts_with("web-")).unwrap();
    let Eviction::NotNow { reason } = ports.cluster.evict(web).await.unwrap() else { panic!("both have to stay") };
    assert!(reason.contains("disruption budget") && reason.contains("web-stays"), "{reason}");
    kube.call(Method::PATCH, &format!("{BUDGETS}/web-stays"), Some(&json!({ "spec": { "minAvailable": 1 } }))).await;
    may_go(&kube, "web-stays", 1).await;
    assert_eq!(ports.cluster.evict(web).await.unwrap(), Eviction::Accepted);
    kube.until("the evicted pod to be gone", async || (!kube.pods("web").await.contains_key(&web.name)).then_some(())).await;
    assert_eq!(ports.cluster.evict(web).await.unwrap(), Eviction::Accepted, "it is gone");
    all_ready(&kube, "web", 2).await;

    // The next pod of a StatefulSet has the same name, and stays.
    let db = told.iter().find(|pod| pod.name == "db-0").unwrap();
    assert_eq!(ports.cluster.evict(db).await.unwrap(), Eviction::Accepted);
    let successor = kube.until("db-0 to be another pod", async || {
        let all = kube.get(&format!("{PODS}?labelSelector=app%3Ddb")).await;
        all["items"][0]["metadata"]["uid"].as_str().filter(|uid| *uid != db.uid).map(str::to_owned)
    });
    let successor = successor.await;
    all_ready(&kube, "db", 1).await;
    assert_eq!(ports.cluster.evict(db).await.unwrap(), Eviction::Accepted, "the pod that was meant is gone");
    let now = kube.get(&format!("{PODS}/db-0")).await;
    assert_eq!((now["metadata"]["uid"].as_str(), &now["metadata"]["deletionTimestamp"]), (Some(successor.as_str()), &Value::Null));

    // Two budgets for one pod: Kubernetes can't.
    kube.post(BUDGETS, &budget("web-stays-too", "web", 1)).await;
    may_go(&kube, "web-stays-too", 1).await;
    let mut all = ports.cluster.pods("k3s-1").await.unwrap();
    all.extend(ports.cluster.pods("k3s-2").await.unwrap());
    let refused = ports.cluster.evict(all.iter().find(|pod| pod.name.starts_with("web-")).unwrap()).await.unwrap_err();
    assert!(matches!(&refused.kind, PortErrorKind::Refused { reason } if reason.contains("more than one PodDisruptionBudget")), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_or_speaks_to_somebody_else_is_told_so() {
    let Some(mut kube) = Kubernetes::start("who_may_not_or_speaks_to_somebody_else_is_told_so").await else { return };
    kube.node("k3s-1", "17de7cd8-6a87-4e3f-9d3b-0cbe1f6f5e11", || true).await;
    let token = account(&kube).await;
    let good = table(&kube, &token);
    let (_site, real) = ports(&good).await;
    assert_eq!(real.cluster.nodes().await.unwrap().len(), 1);

    let wrong = kube.folder().join("wrong.token");
    secret(&wrong, b"eyJ0.e30.no");
    let (_site, stranger) = ports(&table(&kube, &wrong)).await;
    let error = stranger.cluster.nodes().await.unwrap_err();
    assert!(matches!(error.kind, PortErrorKind::Denied { .. }), "{error:?}");

    // The role is taken away: it says who may not do what.
    kube.call(Method::DELETE, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/turnaround", None).await;
    let error = kube.until("the binding to be gone", async || real.cluster.nodes().await.err()).await;
    let reason = "nodes is forbidden: User \"system:serviceaccount:kube-system:turnaround\" cannot list resource \"nodes\"";
    assert!(matches!(&error.kind, PortErrorKind::Denied { reason: told } if told.starts_with(reason)), "{error:?}");

    // Another authority than the cluster's: nothing is said to it.
    let (_site, careful) = ports(&good.lines().filter(|line| !line.starts_with("ca_file")).collect::<Vec<_>>().join("\n")).await;
    let error = careful.cluster.nodes().await.unwrap_err();
    assert!(matches!(error.kind, PortErrorKind::Unavailable | PortErrorKind::Refused { .. }), "{error:?}");
    let told = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>();
    assert!(told.join(": ").contains("certificate"), "{told:?}");
}

/// A K3s of three nodes on the first three of four hosts; the console has three pods, of which two have to be ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_renewed_and_its_cluster_node_drained_while_a_worker_is_killed() {
    let Some(mut kube) = Kubernetes::start("a_host_is_renewed_and_its_cluster_node_drained_while_a_worker_is_killed").await else { return };
    let token = account(&kube).await;
    let names = ["k3s-1", "k3s-2", "k3s-3"];
    let mut plan = SitePlan::uniform(4, 0);
    plan.instances = names.iter().zip(&plan.nodes).map(|(name, node)| InstancePlan::new(name).on(&node.name)).collect();
    plan.instances.push(InstancePlan::new("train").on("gpu-01"));
    let mut running = Running::start(plan.sped_up(60), 2, |settings| settings.more = table(&kube, &token)).await.unwrap();
    for name in names {
        let (world, id) = (Arc::clone(&running.world), running.world.snapshot().instance(name).unwrap().id.clone());
        let runs = move || {
            let snapshot = world.snapshot();
            let instance = snapshot.instances.iter().find(|instance| instance.id == id);
            let host = instance.and_then(|instance| instance.host.as_deref());
            host.and_then(|host| snapshot.node(host)).is_some_and(|node| node.phase == "running")
        };
        let id = running.world.snapshot().instance(name).unwrap().id.clone();
        kube.node(name, &id.to_uppercase(), runs).await;
    }
    kube.post(&format!("{APPS}/deployments"), &set("Deployment", "console", &json!({ "replicas": 3 }))).await;
    kube.post(&format!("{APPS}/daemonsets"), &set("DaemonSet", "exporter", &json!({}))).await;
    all_ready(&kube, "console", 3).await;
    kube.post(BUDGETS, &budget("console-stays", "console", 2)).await;
    may_go(&kube, "console-stays", 1).await;
    let before = kube.pods("console").await;

    let rollout = running.renew(&["gpu-01"]).await.unwrap();
    kube.until("k3s-1 to be cordoned", async || (kube.get("/api/v1/nodes/k3s-1").await["spec"]["unschedulable"] == true).then_some(())).await;
    for worker in 0..running.processes.workers() {
        running.processes.kill_worker(worker).await.unwrap();
    }
    running.processes.start_what_is_missing().unwrap();
    let mut least = before.len();
    let ended: WorkflowView = until_within(PATIENCE, POLL, "the rollout to end", async || {
        least = least.min(kube.pods("console").await.values().filter(|(_, ready)| *ready).count());
        let view: WorkflowView = running.client.get(&format!("/v1/workflows/{rollout}")).await.ok()?;
        (view.line.status.is_ended() || view.line.status == Status::NeedsOperator).then_some(view)
    })
    .await
    .unwrap();
    assert_eq!(ended.line.status, Status::Succeeded, "{}", ended.line.headline);
    assert!(least >= 2, "only {least} pods of the console were ready");
    let node = kube.get("/api/v1/nodes/k3s-1").await;
    assert!(node["spec"]["unschedulable"].is_null() && node["metadata"]["annotations"]["turnaround/cordoned"].is_null(), "{node}");
    all_ready(&kube, "console", 3).await;
    let after = kube.pods("console").await;
    for (name, (on, _)) in &before {
        assert_eq!(after.contains_key(name), on != "k3s-1", "{name} was on {on}: before {before:?}, after {after:?}");
    }
    let moves = |instance: &str| {
        let id = running.world.snapshot().instance(instance).unwrap().id.clone();
        let moved = |event: &&turnaround_workflows::rehearsal::WorldEvent| matches!(&event.what, Happened::InstanceMoved { instance, .. } if *instance == id);
        running.world.events().iter().filter(moved).count()
    };
    assert_eq!([moves("k3s-1"), moves("k3s-2"), moves("k3s-3"), moves("train")], [1, 0, 0, 1]);
}
