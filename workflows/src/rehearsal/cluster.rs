//! A small Kubernetes cluster whose nodes are instances of the simulated site, as far as a drain meets it.

use async_trait::async_trait;

use super::guest::{TaskState, VmState};
use super::log::{By, Happened};
use super::plan::{Api, Call, ClusterPlan, PodKind};
use super::site::{Due, Site};
use super::trouble::Trouble;
use super::world::World;
use crate::ports::{ClusterNode, ClusterNodes, Cordon, Eviction, InstanceId, Pod, PortError};

#[derive(Debug)]
pub(super) struct Cluster {
    nodes: Vec<Node>,
    pods: Vec<Running>,
    replaced: usize,
}

/// All pods are in this namespace.
const NAMESPACE: &str = "default";
/// What Kubernetes answers if a node was changed since it was read.
const CONFLICT: u16 = 409;

/// It is the instance of its name.
#[derive(Debug)]
struct Node {
    name: String,
    instance: InstanceId,
    schedulable: bool,
    mark: Option<String>,
    version: u64,
}

#[derive(Debug)]
struct Running {
    name: String,
    uid: String,
    app: String,
    kind: PodKind,
    /// By the node's place in the list; None while there is no room for it.
    node: Option<usize>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starting,
    Ready,
    Terminating,
    Gone,
}

impl PodKind {
    fn has_to_leave(self) -> bool {
        matches!(self, PodKind::Replica | PodKind::Alone)
    }
}

impl Running {

    fn is_there(&self) -> bool {
        self.stage != Stage::Gone
    }
}

impl Site {
    /// After the instances were placed.
    pub(super) fn start_cluster(&mut self) {
        let Some(plan) = self.plan.cluster.clone() else { return };
        let mut nodes = Vec::new();
        for name in &plan.nodes {
            let Some(guest) = self.guests.iter().find(|guest| guest.name == *name) else { continue };
            let schedulable = !plan.cordoned.contains(name);
            nodes.push(Node { name: name.clone(), instance: guest.id.clone(), schedulable, mark: None, version: 1 });
        }
        for node in &nodes {
            let (cluster_node, instance) = (node.name.clone(), node.instance.0.clone());
            self.log.record(self.now, Happened::ClusterNodeStarted { cluster_node, instance, cordoned: !node.schedulable });
        }
        let mut pods = Vec::new();
        for pod in &plan.pods {
            let node = nodes.iter().position(|node| node.name == pod.node);
            let uid = self.uuid();
            pods.push(Running { name: pod.name.clone(), uid, app: pod.app.clone(), kind: pod.kind, node, stage: Stage::Ready });
        }
        self.cluster = Some(Cluster { nodes, pods, replaced: 0 });
        for pod in 0..plan.pods.len() {
            self.record_pod(pod, true);
        }
    }

    fn cluster(&mut self) -> Result<(&mut Cluster, &ClusterPlan), Trouble> {
        let none = || Trouble::refused(400, "the configuration has no [kubernetes]");
        let plan = self.plan.cluster.as_ref().ok_or_else(none)?;
        Ok((self.cluster.as_mut().ok_or_else(none)?, plan))
    }

    fn is_ready(&self, node: &Node) -> bool {
        let Some(guest) = self.guest(&node.instance).map(|guest| &self.guests[guest]) else { return false };
        let ill = self.plan.cluster.as_ref().is_some_and(|plan| plan.ill.contains(&node.name));
        // One that is moved live runs on meanwhile.
        let runs = guest.vm_state == VmState::Active && matches!(guest.task_state, None | Some(TaskState::Migrating));
        let host = guest.host.as_deref().and_then(|host| self.node_of_host(host));
        let first = self.plan.instances.iter().find(|instance| instance.name == node.name).and_then(|instance| instance.node.as_ref());
        let suffers = self.plan.cluster.as_ref().is_some_and(|plan| plan.ill_once_moved.contains(&node.name));
        let is_well = |host: usize| self.nodes[host].runs() && !(suffers && first.is_some_and(|first| *first != self.nodes[host].name));
        runs && !ill && host.is_some_and(is_well)
    }

    /// Only pods that a drain has to get off their node are told of.
    fn record_pod(&mut self, pod: usize, here: bool) {
        let Some(cluster) = &self.cluster else { return };
        let pod = &cluster.pods[pod];
        let Some(node) = pod.node.filter(|_| pod.kind.has_to_leave()) else { return };
        let (pod, cluster_node) = (pod.name.clone(), cluster.nodes[node].name.clone());
        self.record(if here { Happened::PodStarted { pod, cluster_node } } else { Happened::PodEnded { pod, cluster_node } });
    }

    fn cluster_nodes(&self) -> Result<Vec<ClusterNode>, Trouble> {
        let cluster = self.cluster.as_ref().ok_or_else(|| Trouble::refused(400, "the configuration has no [kubernetes]"))?;
        let there = cluster.nodes.iter().filter(|node| self.guest(&node.instance).is_some());
        let told = |node: &Node| ClusterNode {
            name: node.name.clone(),
            instance: node.instance.clone(),
            ready: self.is_ready(node),
            schedulable: node.schedulable,
            mark: node.mark.clone(),
            version: node.version.to_string(),
        };
        Ok(there.map(told).collect())
    }

    fn set_cordon(&mut self, read: &ClusterNode, schedulable: bool, mark: Option<String>) -> Result<(), Trouble> {
        let (cluster, _) = self.cluster()?;
        let node = cluster.nodes.iter_mut().find(|node| node.name == read.name).ok_or(Trouble::NotFound)?;
        if node.version.to_string() != read.version {
            let reason = "the object has been modified; please apply your changes to the latest version and try again";
            let reason = format!("Operation cannot be fulfilled on nodes \"{}\": {reason}", read.name);
            return Err(Trouble::refused(CONFLICT, reason));
        }
        node.version += 1;
        (node.schedulable, node.mark) = (schedulable, mark.clone());
        let cluster_node = read.name.clone();
        self.record(match schedulable {
            true => Happened::NodeUncordoned { cluster_node, by: By::Caller },
            false => Happened::NodeCordoned { cluster_node, mark, by: By::Caller },
        });
        self.place_pods();
        self.answer(if schedulable { Call::Uncordon } else { Call::Cordon }, ())
    }

    /// A person's `kubectl cordon` or `kubectl uncordon`, which leave annotations alone.
    pub(super) fn cordoned_by_other(&mut self, name: &str, schedulable: bool) {
        let Ok((cluster, _)) = self.cluster() else { return };
        let Some(node) = cluster.nodes.iter_mut().find(|node| node.name == name) else { return };
        if node.schedulable == schedulable {
            return;
        }
        node.version += 1;
        node.schedulable = schedulable;
        let cluster_node = name.to_owned();
        self.record(match schedulable {
            true => Happened::NodeUncordoned { cluster_node, by: By::Other },
            false => Happened::NodeCordoned { cluster_node, mark: None, by: By::Other },
        });
        self.place_pods();
    }

    fn pods_on(&self, name: &str) -> Result<Vec<(Pod, PodKind)>, Trouble> {
        let cluster = self.cluster.as_ref().ok_or(Trouble::NotFound)?;
        let here = |pod: &&Running| pod.is_there() && pod.node.is_some_and(|node| cluster.nodes[node].name == name);
        let told = |pod: &Running| {
            let pod_told = Pod {
                namespace: NAMESPACE.to_owned(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                terminating: pod.stage == Stage::Terminating,
                alone: pod.kind == PodKind::Alone,
            };
            (pod_told, pod.kind)
        };
        Ok(cluster.pods.iter().filter(here).map(told).collect())
    }

    /// How many pods of the application serve.
    fn healthy(&self, app: &str) -> usize {
        let Some(cluster) = &self.cluster else { return 0 };
        let serves = |pod: &&Running| pod.app == app && pod.stage == Stage::Ready && pod.node.is_some_and(|node| self.is_ready(&cluster.nodes[node]));
        cluster.pods.iter().filter(serves).count()
    }

    fn evict(&mut self, pod: &Pod) -> Result<Eviction, Trouble> {
        let (cluster, plan) = self.cluster()?;
        let found = cluster.pods.iter().position(|one| one.uid == pod.uid && one.is_there());
        let Some(index) = found else { return self.answer(Call::Evict, Eviction::Accepted) };
        if cluster.pods[index].stage == Stage::Terminating {
            return self.answer(Call::Evict, Eviction::Accepted);
        }
        let (app, ends) = (cluster.pods[index].app.clone(), plan.pod_ends);
        let needed = plan.budgets.get(&app).copied().unwrap_or_default();
        let healthy = self.healthy(&app);
        if healthy <= needed {
            let reason = format!(
                "Cannot evict pod as it would violate the pod's disruption budget. The disruption budget {app} needs {needed} healthy pods and has {healthy} currently"
            );
            return self.answer(Call::Evict, Eviction::NotNow { reason });
        }
        self.record(Happened::PodEvicted { pod: pod.name.clone() });
        if let Some(cluster) = &mut self.cluster {
            cluster.pods[index].stage = Stage::Terminating;
            cluster.replaced += 1;
            let name = format!("{app}-r{}", cluster.replaced);
            let uid = format!("{}+{}", cluster.pods[index].uid, cluster.replaced);
            cluster.pods.push(Running { name, uid, app, kind: PodKind::Replica, node: None, stage: Stage::Starting });
        }
        self.after(ends, Due::PodEnds(index));
        self.place_pods();
        self.answer(Call::Evict, Eviction::Accepted)
    }

    /// Pods without a node get the one with the fewest, of those that are Ready and take pods.
    fn place_pods(&mut self) {
        let Some(cluster) = &self.cluster else { return };
        let open: Vec<usize> = (0..cluster.nodes.len()).filter(|&node| cluster.nodes[node].schedulable && self.is_ready(&cluster.nodes[node])).collect();
        let waiting: Vec<usize> = (0..cluster.pods.len()).filter(|&pod| cluster.pods[pod].node.is_none()).collect();
        let starts = self.plan.cluster.as_ref().map(|plan| plan.pod_starts).unwrap_or_default();
        for pod in waiting {
            let Some(cluster) = &mut self.cluster else { return };
            let on = |node: usize| cluster.pods.iter().filter(|pod| pod.is_there() && pod.node == Some(node)).count();
            let Some(&node) = open.iter().min_by_key(|&&node| on(node)) else { return };
            cluster.pods[pod].node = Some(node);
            self.record_pod(pod, true);
            self.after(starts, Due::PodReady(pod));
        }
    }

    pub(super) fn pod_ready(&mut self, pod: usize) {
        if let Some(cluster) = &mut self.cluster
            && cluster.pods[pod].stage == Stage::Starting
        {
            cluster.pods[pod].stage = Stage::Ready;
        }
    }

    pub(super) fn pod_ends(&mut self, pod: usize) {
        if let Some(cluster) = &mut self.cluster {
            cluster.pods[pod].stage = Stage::Gone;
        }
        self.record_pod(pod, false);
        self.place_pods();
    }
}

/// The API server, as its protocol's server needs it.
impl World {
    /// # Errors
    /// It is away, or there is no cluster. So with all of these.
    pub fn cluster_nodes(&self) -> Result<Vec<ClusterNode>, Trouble> {
        self.asked(Api::Kubernetes, None)?.cluster_nodes()
    }

    /// Cordons or uncordons a node as it was read, in one with the mark.
    ///
    /// # Errors
    /// Refused with 409 if it was changed since.
    pub fn set_cordon(&self, read: &ClusterNode, schedulable: bool, mark: Option<String>) -> Result<(), Trouble> {
        self.asked(Api::Kubernetes, None)?.set_cordon(read, schedulable, mark)
    }

    /// All pods on the node of this name.
    pub fn cluster_pods(&self, node: &str) -> Result<Vec<(Pod, PodKind)>, Trouble> {
        self.asked(Api::Kubernetes, None)?.pods_on(node)
    }

    /// By its uid; one that is gone is accepted.
    pub fn evict_pod(&self, pod: &Pod) -> Result<Eviction, Trouble> {
        self.asked(Api::Kubernetes, None)?.evict(pod)
    }
}

/// A conflict is to be read again.
fn cordoning(trouble: Trouble, operation: String) -> PortError {
    match trouble {
        Trouble::Refused { status: CONFLICT, .. } => Trouble::Unavailable.while_trying_to(operation),
        Trouble::Refused { .. } | Trouble::Unavailable | Trouble::AnswerLost | Trouble::NotFound => trouble.while_trying_to(operation),
    }
}

#[async_trait]
impl ClusterNodes for World {
    async fn nodes(&self) -> Result<Vec<ClusterNode>, PortError> {
        self.cluster_nodes().map_err(|e| e.while_trying_to("list the nodes of the Kubernetes cluster"))
    }

    async fn cordon(&self, node: &ClusterNode, cordon: &Cordon) -> Result<(), PortError> {
        self.set_cordon(node, false, Some(cordon.mark.clone())).map_err(|e| cordoning(e, format!("cordon {}", node.name)))
    }

    async fn uncordon(&self, node: &ClusterNode) -> Result<(), PortError> {
        self.set_cordon(node, true, None).map_err(|e| cordoning(e, format!("uncordon {}", node.name)))
    }

    async fn pods(&self, node: &str) -> Result<Vec<Pod>, PortError> {
        let pods = self.cluster_pods(node).map_err(|e| e.while_trying_to(format_args!("list the pods on {node}")))?;
        Ok(pods.into_iter().filter(|(_, kind)| kind.has_to_leave()).map(|(pod, _)| pod).collect())
    }

    async fn evict(&self, pod: &Pod) -> Result<Eviction, PortError> {
        self.evict_pod(pod).map_err(|e| e.while_trying_to(format_args!("evict pod {pod}")))
    }
}
