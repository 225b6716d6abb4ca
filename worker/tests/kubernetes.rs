//! The port `ClusterNodes` against a stand-in for an API server, whose documents are as Kubernetes' API reference has them.
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod support;

#[path = "support/cloud.rs"]
mod cloud;

use cloud::{Cloud, Reply};
use serde_json::{Value, json};
use support::{Site, secret, told};
use turnaround_workflows::ports::{ClusterNode, Cordon, Eviction, InstanceId, Pod, PortErrorKind, Ports};

const NODES: &str = "/api/v1/nodes";

fn clouds() -> Value {
    json!({ "clouds": { "none": { "auth": { "auth_url": "http://127.0.0.1:9", "user_id": "u", "password": "p", "project_id": "p" } } } })
}

/// A cluster, and ports that lead there.
async fn cluster() -> (Cloud, Site, Ports) {
    let api = Cloud::start().await;
    let site = Site::new(&clouds(), "none");
    let token = site.path("kubernetes.token");
    secret(&token, "canary-kubernetes");
    let site = site.with(&format!("[kubernetes]\nurl = \"http://{}\"\ntoken_file = \"{}\"\n", api.address, token.display()));
    let ports = site.ports();
    (api, site, ports)
}

fn node(name: &str, uuid: &str, ready: &str) -> Value {
    json!({
        "metadata": { "name": name, "uid": "n", "resourceVersion": "41", "annotations": { "other": "x" } },
        "spec": { "providerID": format!("k3s://{name}"), "podCIDR": "10.42.0.0/24" },
        "status": {
            "conditions": [{ "type": "MemoryPressure", "status": "False" }, { "type": "Ready", "status": ready }],
            "nodeInfo": { "systemUUID": uuid, "kubeletVersion": "v1.33.4+k3s1" }
        }
    })
}

fn list(items: &[Value]) -> Reply {
    Reply::json(200, &json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": items }))
}

#[tokio::test]
async fn nodes_are_told_with_the_instance_that_each_runs_on() {
    let (api, _site, ports) = cluster().await;
    let mut cordoned = node("b", "", "Unknown");
    cordoned["spec"] = json!({ "providerID": "openstack://RegionOne/0AB0", "unschedulable": true });
    cordoned["metadata"]["annotations"] = json!({ "turnaround/cordoned": "turnaround:roll.gpu-01 gpu-01 is renewed" });
    api.reply("GET", NODES, [list(&[node("a", "17DE7CD8-6A87", "True"), cordoned]), list(&[node("c", "", "True")]), Reply::json(200, &json!({ "items": 3 }))]);
    let told_node = |name: &str, instance: &str, ready, schedulable, mark: Option<&str>| ClusterNode {
        name: name.to_owned(),
        instance: InstanceId(instance.to_owned()),
        ready,
        schedulable,
        mark: mark.map(str::to_owned),
        version: "41".to_owned(),
    };
    let expected = [told_node("a", "17de7cd8-6a87", true, true, None), told_node("b", "0ab0", false, false, Some("turnaround:roll.gpu-01"))];
    assert_eq!(ports.cluster.nodes().await.unwrap(), expected);
    assert_eq!(api.asked("GET", NODES)[0].headers["authorization"], "Bearer canary-kubernetes");
    let nameless = ports.cluster.nodes().await.unwrap_err();
    assert!(told(&nameless).contains("node c has neither"), "{}", told(&nameless));
    assert!(matches!(ports.cluster.nodes().await.unwrap_err().kind, PortErrorKind::Garbled { .. }));
}

#[tokio::test]
async fn a_cordon_is_written_in_one_with_its_mark_and_only_on_the_node_that_was_read() {
    let (api, _site, ports) = cluster().await;
    api.reply("GET", NODES, [list(&[node("a", "17de", "True")])]);
    let conflict = json!({ "kind": "Status", "status": "Failure", "message": "the object has been modified", "reason": "Conflict", "code": 409 });
    let forbidden = json!({ "kind": "Status", "message": "nodes \"a\" is forbidden", "reason": "Forbidden", "code": 403 });
    api.reply("PATCH", NODES, [Reply::json(200, &json!({})), Reply::json(200, &json!({})), Reply::json(409, &conflict), Reply::json(403, &forbidden)]);
    let node = ports.cluster.nodes().await.unwrap().remove(0);
    let cordon = Cordon { mark: "turnaround:w".to_owned(), why: "gpu-01 is renewed".to_owned() };
    ports.cluster.cordon(&node, &cordon).await.unwrap();
    ports.cluster.uncordon(&node).await.unwrap();
    let asked = api.asked("PATCH", "/api/v1/nodes/a");
    let body = |nth: usize| serde_json::from_str::<Value>(&asked[nth].body).unwrap();
    let types: Vec<_> = asked[0].headers.get_all("content-type").iter().collect();
    assert_eq!(types, ["application/merge-patch+json"]);
    assert_eq!(
        body(0),
        json!({ "metadata": { "resourceVersion": "41", "annotations": { "turnaround/cordoned": "turnaround:w gpu-01 is renewed" } }, "spec": { "unschedulable": true } })
    );
    assert_eq!(body(1), json!({ "metadata": { "resourceVersion": "41", "annotations": { "turnaround/cordoned": null } }, "spec": { "unschedulable": null } }));
    let changed = ports.cluster.cordon(&node, &cordon).await.unwrap_err();
    assert_eq!(changed.kind, PortErrorKind::Unavailable, "to be read again");
    assert!(told(&changed).contains("the object has been modified"), "{}", told(&changed));
    let denied = ports.cluster.uncordon(&node).await.unwrap_err();
    assert_eq!(told(&denied), "could not uncordon a: not permitted: nodes \"a\" is forbidden");
    assert!(!format!("{denied:?} {}", told(&denied)).contains("canary"));
}

fn pod(name: &str, owner: Option<&str>) -> Value {
    let owners: Vec<Value> = owner.iter().map(|kind| json!({ "kind": kind, "name": "o", "uid": "o", "controller": true })).collect();
    json!({ "metadata": { "name": name, "namespace": "apps", "uid": format!("u-{name}"), "ownerReferences": owners }, "status": { "phase": "Running" } })
}

#[tokio::test]
async fn a_drain_gets_off_what_kubectl_would() {
    let (api, _site, ports) = cluster().await;
    let mut mirror = pod("static", Some("Node"));
    mirror["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "x" });
    let mut ended = pod("job", Some("Job"));
    ended["status"]["phase"] = json!("Succeeded");
    let mut ending = pod("ending", Some("ReplicaSet"));
    ending["metadata"]["deletionTimestamp"] = json!("2026-11-26T12:00:00Z");
    let all = [pod("web", Some("ReplicaSet")), pod("exporter", Some("DaemonSet")), mirror, ended, ending, pod("shell", None)];
    api.reply("GET", "/api/v1/pods", [list(&all)]);
    let pods = ports.cluster.pods("k3s-1").await.unwrap();
    assert_eq!(api.asked("GET", "/api/v1/pods")[0].path, "/api/v1/pods?fieldSelector=spec.nodeName%3Dk3s-1");
    let short: Vec<_> = pods.iter().map(|pod| (pod.name.as_str(), pod.terminating, pod.alone)).collect();
    assert_eq!(short, [("web", false, false), ("ending", true, false), ("shell", false, true)]);
}

#[tokio::test]
async fn an_eviction_is_of_this_very_pod_and_a_budget_is_told_in_kubernetes_own_words() {
    let (api, _site, ports) = cluster().await;
    let web = Pod { namespace: "apps".to_owned(), name: "web".to_owned(), uid: "u-web".to_owned(), terminating: false, alone: false };
    let path = "/api/v1/namespaces/apps/pods/web/eviction";
    let cause = json!([{ "reason": "DisruptionBudget", "message": "The disruption budget web needs 2 healthy pods and has 2 currently" }]);
    let budget = json!({ "kind": "Status", "message": "Cannot evict pod as it would violate the pod's disruption budget.", "details": { "causes": cause }, "code": 429 });
    let two = json!({ "kind": "Status", "message": "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.", "code": 500 });
    let another = json!({ "kind": "Status", "message": "the UID in the precondition (u-web) does not match the UID in record (v)", "reason": "Conflict", "code": 409 });
    api.reply("POST", path, [Reply::json(201, &json!({})), Reply::json(429, &budget), Reply::json(404, &json!({ "message": "not found" })), Reply::json(409, &another), Reply::json(500, &two)]);
    assert_eq!(ports.cluster.evict(&web).await.unwrap(), Eviction::Accepted);
    let body: Value = serde_json::from_str(&api.asked("POST", path)[0].body).unwrap();
    assert_eq!((&body["apiVersion"], &body["kind"]), (&json!("policy/v1"), &json!("Eviction")));
    assert_eq!(body["deleteOptions"], json!({ "preconditions": { "uid": "u-web" } }));
    let reason = "Cannot evict pod as it would violate the pod's disruption budget. The disruption budget web needs 2 healthy pods and has 2 currently";
    assert_eq!(ports.cluster.evict(&web).await.unwrap(), Eviction::NotNow { reason: reason.to_owned() });
    assert_eq!(ports.cluster.evict(&web).await.unwrap(), Eviction::Accepted, "it is gone");
    assert_eq!(ports.cluster.evict(&web).await.unwrap(), Eviction::Accepted, "another pod has its name");
    let two = ports.cluster.evict(&web).await.unwrap_err();
    assert!(told(&two).contains("more than one PodDisruptionBudget"), "{}", told(&two));
}

#[tokio::test]
async fn without_a_cluster_in_the_configuration_none_is_asked() {
    let ports = Site::new(&clouds(), "none").ports();
    let reason = "the configuration has no [kubernetes]".to_owned();
    assert_eq!(ports.cluster.nodes().await.unwrap_err().kind, PortErrorKind::Refused { reason });
}
