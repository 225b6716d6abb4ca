//! The API of Kubernetes, as far as a drain needs it: five calls, for which a client library would be a hundred crates
//! (API reference, "Node v1", "Pod v1", "Eviction"; "Safely drain a node").

use std::time::Duration;

use async_trait::async_trait;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method};
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};
use turnaround_config::SecretText;
use turnaround_workflows::ports::{ClusterNode, ClusterNodes, Cordon, Eviction, InstanceId, Pod, PortError, PortErrorKind};

use super::http::{Answer, BoxError, Effect, Http, Request, foreign_text};
use super::tls::Trust;

/// Says on a node who has cordoned it, and why.
const CORDONED: &str = "turnaround/cordoned";
/// Of a pod that the kubelet runs by itself, and the API server only shows.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Parts that are written are changed, others stay.
const MERGE_PATCH: HeaderValue = HeaderValue::from_static("application/merge-patch+json");

/// One site's cluster, if it has one.
#[derive(Debug)]
pub(crate) struct Kubernetes(Option<Api>);

#[derive(Debug)]
pub(crate) struct Api {
    http: Http,
    base: Url,
    /// Marked as sensitive.
    bearer: HeaderValue,
}

#[derive(Deserialize)]
struct List<T> {
    items: Vec<T>,
}

#[derive(Deserialize)]
struct Node {
    metadata: Meta,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    owner_references: Vec<Owner>,
    #[serde(default)]
    deletion_timestamp: Option<String>,
}

#[derive(Deserialize)]
struct Owner {
    kind: String,
    #[serde(default)]
    controller: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct NodeSpec {
    #[serde(default)]
    unschedulable: bool,
    #[serde(rename = "providerID", default)]
    provider_id: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct NodeStatus {
    #[serde(default)]
    conditions: Vec<Condition>,
    #[serde(default)]
    node_info: NodeInfo,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

#[derive(Deserialize, Default)]
struct NodeInfo {
    #[serde(rename = "systemUUID", default)]
    system_uuid: String,
}

#[derive(Deserialize)]
struct AnyPod {
    metadata: Meta,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Deserialize, Default)]
struct PodStatus {
    #[serde(default)]
    phase: String,
}

impl Node {
    /// None where it does not tell which machine it is.
    fn told(self) -> Option<ClusterNode> {
        // `openstack:///UUID`, or with a region between the slashes. K3s's own cloud provider writes `k3s://NAME`, which says nothing.
        let provided = self.spec.provider_id.strip_prefix("openstack://").and_then(|rest| rest.rsplit('/').next());
        let instance = provided.filter(|id| !id.is_empty()).unwrap_or(&self.status.node_info.system_uuid).to_ascii_lowercase();
        if instance.is_empty() {
            return None;
        }
        Some(ClusterNode {
            instance: InstanceId(instance),
            ready: self.status.conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True"),
            schedulable: !self.spec.unschedulable,
            mark: self.metadata.annotations.get(CORDONED).and_then(|text| text.split(' ').next()).map(str::to_owned),
            version: self.metadata.resource_version,
            name: self.metadata.name,
        })
    }
}

impl AnyPod {
    /// The rules of `kubectl drain --ignore-daemonsets --delete-emptydir-data`.
    fn has_to_leave(&self) -> bool {
        let ended = matches!(self.status.phase.as_str(), "Succeeded" | "Failed");
        let of_its_node = self.metadata.annotations.contains_key(MIRROR) || self.controller().is_some_and(|owner| owner.kind == "DaemonSet");
        !ended && !of_its_node
    }

    fn controller(&self) -> Option<&Owner> {
        self.metadata.owner_references.iter().find(|owner| owner.controller)
    }

    fn told(self) -> Pod {
        let alone = self.controller().is_none();
        let Meta { name, namespace, uid, deletion_timestamp, .. } = self.metadata;
        Pod { namespace, name, uid, terminating: deletion_timestamp.is_some(), alone }
    }
}

impl Api {
    /// # Errors
    /// The certificates of `trust`, or the token, can't be used.
    pub(crate) fn new(base: Url, token: &SecretText, request_timeout: Duration, trust: &Trust) -> Result<Api, BoxError> {
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| "the token has characters that no HTTP header can have")?;
        bearer.set_sensitive(true);
        Ok(Api { http: Http::new(request_timeout, trust)?, base, bearer })
    }

    fn request(&self, method: Method, path: &[&str], query: &[(&str, &str)]) -> Request {
        let mut url = self.base.clone();
        // An http URL always has a path to extend.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Request::new(method, url).header(AUTHORIZATION, self.bearer.clone())
    }

    /// Whatever the answer's status.
    async fn ask(&self, operation: &str, request: &Request) -> Result<Answer, PortError> {
        let answer = self.http.send(request).await;
        answer.map_err(|failure| PortError::new(operation, failure.kind(request.effect())).with_source(failure))
    }

    async fn send(&self, operation: &str, request: &Request) -> Result<Answer, PortError> {
        let answer = self.ask(operation, request).await?;
        if answer.status.is_success() { Ok(answer) } else { Err(refused(operation, &answer, request.effect())) }
    }

    async fn list<T: serde::de::DeserializeOwned>(&self, operation: &str, path: &[&str], query: &[(&str, &str)]) -> Result<Vec<T>, PortError> {
        let answer = self.send(operation, &self.request(Method::GET, path, query)).await?;
        let list: List<T> = answer.json("a list of Kubernetes").map_err(|reason| PortError::new(operation, PortErrorKind::Garbled { reason }))?;
        Ok(list.items)
    }

    async fn patch_node(&self, operation: &str, node: &ClusterNode, unschedulable: Option<bool>, cordoned: Option<String>) -> Result<(), PortError> {
        let body = json!({
            "metadata": { "resourceVersion": node.version, "annotations": { CORDONED: cordoned } },
            "spec": { "unschedulable": unschedulable },
        });
        let request = self.request(Method::PATCH, &["nodes", &node.name], &[]).json(Some(&body)).header(CONTENT_TYPE, MERGE_PATCH);
        let answer = self.ask(operation, &request).await?;
        match answer.status.as_u16() {
            200..=299 => Ok(()),
            // Somebody, perhaps its kubelet, has changed it since it was read, and nothing was done: to be read again.
            409 => Err(PortError::new(operation, PortErrorKind::Unavailable).with_source(said(&answer).unwrap_or_else(|| "HTTP 409".to_owned()))),
            _ => Err(refused(operation, &answer, request.effect())),
        }
    }
}

/// What an answer means that is not the hoped-for one.
fn refused(operation: &str, answer: &Answer, effect: Effect) -> PortError {
    let kind = if answer.status.as_u16() == 404 { PortErrorKind::NotFound } else { answer.refusal(effect, said(answer)) };
    PortError::new(operation, kind)
}

/// The message of a `Status`, with those of its causes: of a PodDisruptionBudget only they say which.
fn said(answer: &Answer) -> Option<String> {
    let status: Value = answer.json("a status").ok()?;
    let causes = status["details"]["causes"].as_array().into_iter().flatten().filter_map(|cause| cause["message"].as_str());
    let all: Vec<&str> = status["message"].as_str().into_iter().chain(causes).collect();
    if all.is_empty() { None } else { Some(foreign_text(&all.join(" "))) }
}

impl Kubernetes {
    pub(crate) fn new(api: Option<Api>) -> Kubernetes {
        Kubernetes(api)
    }

    fn api(&self, operation: &str) -> Result<&Api, PortError> {
        let reason = || "the configuration has no [kubernetes]".to_owned();
        self.0.as_ref().ok_or_else(|| PortError::new(operation, PortErrorKind::Refused { reason: reason() }))
    }
}

#[async_trait]
impl ClusterNodes for Kubernetes {
    async fn nodes(&self) -> Result<Vec<ClusterNode>, PortError> {
        let operation = "list the nodes of the Kubernetes cluster";
        let nodes: Vec<Node> = self.api(operation)?.list(operation, &["nodes"], &[]).await?;
        let told = |node: Node| {
            let name = node.metadata.name.clone();
            let reason = || format!("node {name} has neither an OpenStack `spec.providerID` nor a `status.nodeInfo.systemUUID`: which instance is it?");
            node.told().ok_or_else(|| PortError::new(operation, PortErrorKind::Garbled { reason: reason() }))
        };
        nodes.into_iter().map(told).collect()
    }

    async fn cordon(&self, node: &ClusterNode, cordon: &Cordon) -> Result<(), PortError> {
        let operation = format!("cordon {}", node.name);
        let cordoned = format!("{} {}", cordon.mark, cordon.why);
        self.api(&operation)?.patch_node(&operation, node, Some(true), Some(cordoned)).await
    }

    async fn uncordon(&self, node: &ClusterNode) -> Result<(), PortError> {
        let operation = format!("uncordon {}", node.name);
        self.api(&operation)?.patch_node(&operation, node, None, None).await
    }

    async fn pods(&self, node: &str) -> Result<Vec<Pod>, PortError> {
        let operation = format!("list the pods on {node}");
        let on_node = format!("spec.nodeName={node}");
        let pods: Vec<AnyPod> = self.api(&operation)?.list(&operation, &["pods"], &[("fieldSelector", &on_node)]).await?;
        Ok(pods.into_iter().filter(AnyPod::has_to_leave).map(AnyPod::told).collect())
    }

    async fn evict(&self, pod: &Pod) -> Result<Eviction, PortError> {
        let operation = format!("evict pod {pod}");
        let api = self.api(&operation)?;
        let body = json!({
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": { "name": pod.name, "namespace": pod.namespace },
            "deleteOptions": { "preconditions": { "uid": pod.uid } },
        });
        let request = api.request(Method::POST, &["namespaces", &pod.namespace, "pods", &pod.name, "eviction"], &[]).json(Some(&body));
        let answer = api.ask(&operation, &request).await?;
        match answer.status.as_u16() {
            // 409: by now another pod has its name, such as the next one of a StatefulSet. Whoever is left on the node is seen there.
            200..=299 | 404 | 409 => Ok(Eviction::Accepted),
            429 => Ok(Eviction::NotNow { reason: said(&answer).unwrap_or_else(|| "Kubernetes gives no reason".to_owned()) }),
            // Of a pod that it can't evict it says why with a 500, and nothing was done.
            500 => Err(PortError::new(operation, PortErrorKind::Refused { reason: said(&answer).unwrap_or_else(|| "HTTP 500".to_owned()) })),
            _ => Err(refused(&operation, &answer, request.effect())),
        }
    }
}
