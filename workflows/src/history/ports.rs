//! Ports that tell what is done to the world. What only looks is not told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use turnaround_config::{Matcher, NodeName};

use super::{for_whom, tell};
use crate::ports::{
    Bmc, BootOverride, BootTicket, Canaries, CanaryInstance, ClusterNode, ClusterNodes, CommandEnd, ComputeService, ComputeServices, Cordon, Eviction, Facts, Host, Hypervisor, Instance, InstanceId, Instances, Migration, Move,
    MoveProgress, MoveStarted, NetBoot, NodeFacts, NodeStock, Pod, PortError, Ports, Power, Machine, RequestId, ScriptRun, ScriptState, ServerGroup, SetupScript, Silence, Silences,
    NewCanary, NewSilence, RebuildOrder, RebuildRecord, Rebuilder,
};

pub(super) struct Told(pub(super) Ports);

/// Tells that `call` begins, and how it ended. Of one that was dropped meanwhile only the beginning is told.
async fn effect<T>(call: &str, on: &str, done: impl Future<Output = Result<T, PortError>>) -> Result<T, PortError> {
    tell("effect", || for_whom(json!({ "call": call, "on": on })));
    let answer = done.await;
    let outcome = match &answer {
        Ok(_) => "done".to_owned(),
        Err(error) => error.to_string(),
    };
    tell("effected", || for_whom(json!({ "call": call, "on": on, "outcome": outcome })));
    answer
}

#[async_trait]
impl ComputeServices for Told {
    async fn service(&self, node: &NodeName) -> Result<ComputeService, PortError> {
        self.0.compute.service(node).await
    }
    async fn hypervisor(&self, node: &NodeName) -> Result<Hypervisor, PortError> {
        self.0.compute.hypervisor(node).await
    }
    async fn inventory(&self, node: &NodeName) -> Result<BTreeMap<String, u64>, PortError> {
        self.0.compute.inventory(node).await
    }
    async fn agents(&self, node: &NodeName) -> Result<BTreeMap<String, bool>, PortError> {
        self.0.compute.agents(node).await
    }
    async fn zones(&self) -> Result<BTreeMap<String, BTreeSet<String>>, PortError> {
        self.0.compute.zones().await
    }
    async fn hosts(&self) -> Result<Vec<Host>, PortError> {
        self.0.compute.hosts().await
    }
    async fn fitting(&self, asks: &BTreeMap<String, String>) -> Result<BTreeMap<String, BTreeMap<String, u64>>, PortError> {
        self.0.compute.fitting(asks).await
    }
    async fn close(&self, node: &NodeName, reason: &str) -> Result<(), PortError> {
        effect("close", node.as_str(), self.0.compute.close(node, reason)).await
    }
    async fn reopen(&self, node: &NodeName) -> Result<(), PortError> {
        effect("reopen", node.as_str(), self.0.compute.reopen(node)).await
    }
}

#[async_trait]
impl Instances for Told {
    async fn on(&self, node: &NodeName) -> Result<Vec<Instance>, PortError> {
        self.0.instances.on(node).await
    }
    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, PortError> {
        self.0.instances.get(id).await
    }
    async fn device_ports(&self, node: &NodeName) -> Result<BTreeMap<InstanceId, Vec<String>>, PortError> {
        self.0.instances.device_ports(node).await
    }
    async fn allocations(&self, id: &InstanceId) -> Result<BTreeMap<String, u64>, PortError> {
        self.0.instances.allocations(id).await
    }
    async fn groups(&self) -> Result<Vec<ServerGroup>, PortError> {
        self.0.instances.groups().await
    }
    async fn progress(&self, id: &InstanceId) -> Result<Option<MoveProgress>, PortError> {
        self.0.instances.progress(id).await
    }
    async fn start_move(&self, id: &InstanceId, how: Move, to: Option<&str>) -> Result<MoveStarted, PortError> {
        effect("start_move", &id.to_string(), self.0.instances.start_move(id, how, to)).await
    }
    async fn stop_live(&self, id: &InstanceId, migration: &str) -> Result<(), PortError> {
        effect("stop_live", &id.to_string(), self.0.instances.stop_live(id, migration)).await
    }
    async fn confirm(&self, id: &InstanceId) -> Result<(), PortError> {
        effect("confirm", &id.to_string(), self.0.instances.confirm(id)).await
    }
    async fn migrations(&self, id: &InstanceId) -> Result<Vec<Migration>, PortError> {
        self.0.instances.migrations(id).await
    }
    async fn moving(&self, node: &NodeName) -> Result<Vec<Migration>, PortError> {
        self.0.instances.moving(node).await
    }
    async fn why_failed(&self, id: &InstanceId, request: &RequestId) -> Result<Option<String>, PortError> {
        self.0.instances.why_failed(id, request).await
    }
}

#[async_trait]
impl Canaries for Told {
    async fn find(&self, name: &str) -> Result<Vec<CanaryInstance>, PortError> {
        self.0.canaries.find(name).await
    }
    async fn create(&self, name: &str, canary: &NewCanary) -> Result<(), PortError> {
        effect("create_canary", name, self.0.canaries.create(name, canary)).await
    }
    async fn put_on(&self, id: &InstanceId, node: &NodeName) -> Result<RequestId, PortError> {
        effect("put_canary", &id.to_string(), self.0.canaries.put_on(id, node)).await
    }
    async fn stop(&self, id: &InstanceId) -> Result<(), PortError> {
        effect("stop_canary", &id.to_string(), self.0.canaries.stop(id)).await
    }
    async fn start(&self, id: &InstanceId) -> Result<RequestId, PortError> {
        effect("start_canary", &id.to_string(), self.0.canaries.start(id)).await
    }
    async fn console(&self, id: &InstanceId) -> Result<String, PortError> {
        self.0.canaries.console(id).await
    }
    async fn remove(&self, id: &InstanceId) -> Result<(), PortError> {
        effect("remove_canary", &id.to_string(), self.0.canaries.remove(id)).await
    }
}

#[async_trait]
impl Bmc for Told {
    async fn power(&self, node: &NodeName) -> Result<Power, PortError> {
        self.0.bmc.power(node).await
    }
    async fn machine(&self, node: &NodeName) -> Result<Machine, PortError> {
        self.0.bmc.machine(node).await
    }
    async fn boot_override(&self, node: &NodeName) -> Result<BootOverride, PortError> {
        self.0.bmc.boot_override(node).await
    }
    async fn netboot_next(&self, node: &NodeName) -> Result<(), PortError> {
        effect("netboot_next", node.as_str(), self.0.bmc.netboot_next(node)).await
    }
    async fn reset(&self, node: &NodeName) -> Result<(), PortError> {
        effect("reset", node.as_str(), self.0.bmc.reset(node)).await
    }
}

#[async_trait]
impl NetBoot for Told {
    async fn stage(&self, node: &NodeName, ticket: &BootTicket) -> Result<(), PortError> {
        effect("stage", node.as_str(), self.0.netboot.stage(node, ticket)).await
    }
    async fn would_take(&self, node: &NodeName) -> Result<(), PortError> {
        self.0.netboot.would_take(node).await
    }
    async fn staged(&self, node: &NodeName) -> Result<Option<BootTicket>, PortError> {
        self.0.netboot.staged(node).await
    }
    async fn withdraw(&self, node: &NodeName) -> Result<(), PortError> {
        effect("withdraw", node.as_str(), self.0.netboot.withdraw(node)).await
    }
}

#[async_trait]
impl Rebuilder for Told {
    async fn record(&self, node: &NodeName) -> Result<RebuildRecord, PortError> {
        self.0.rebuilder.record(node).await
    }
    async fn order(&self, node: &NodeName, order: &RebuildOrder) -> Result<(), PortError> {
        effect("order_rebuild", node.as_str(), self.0.rebuilder.order(node, order)).await
    }
    async fn rebuild(&self, node: &NodeName, order: &RebuildOrder) -> Result<(), PortError> {
        effect("rebuild", node.as_str(), self.0.rebuilder.rebuild(node, order)).await
    }
    async fn protect(&self, node: &NodeName, id: &str) -> Result<(), PortError> {
        effect("protect", node.as_str(), self.0.rebuilder.protect(node, id)).await
    }
}

#[async_trait]
impl NodeFacts for Told {
    async fn facts(&self, node: &NodeName) -> Result<Facts, PortError> {
        self.0.facts.facts(node).await
    }
    async fn guests(&self, node: &NodeName) -> Result<BTreeSet<String>, PortError> {
        self.0.facts.guests(node).await
    }
    async fn machine(&self, node: &NodeName) -> Result<Machine, PortError> {
        self.0.facts.machine(node).await
    }
    async fn stock(&self, node: &NodeName) -> Result<NodeStock, PortError> {
        self.0.facts.stock(node).await
    }
    async fn run(&self, node: &NodeName, command: &str, time_limit: Duration) -> Result<CommandEnd, PortError> {
        self.0.facts.run(node, command, time_limit).await
    }
}

#[async_trait]
impl Silences for Told {
    async fn in_force(&self, mark: &str) -> Result<Vec<Silence>, PortError> {
        self.0.silences.in_force(mark).await
    }
    async fn begin(&self, silence: &NewSilence) -> Result<(), PortError> {
        effect("begin_silence", &silence.mark, self.0.silences.begin(silence)).await
    }
    async fn end(&self, id: &str) -> Result<(), PortError> {
        effect("end_silence", id, self.0.silences.end(id)).await
    }
    async fn firing(&self, matchers: &[Matcher]) -> Result<BTreeSet<String>, PortError> {
        self.0.silences.firing(matchers).await
    }
}

#[async_trait]
impl ClusterNodes for Told {
    async fn nodes(&self) -> Result<Vec<ClusterNode>, PortError> {
        self.0.cluster.nodes().await
    }
    async fn cordon(&self, node: &ClusterNode, cordon: &Cordon) -> Result<(), PortError> {
        effect("cordon", &node.name, self.0.cluster.cordon(node, cordon)).await
    }
    async fn uncordon(&self, node: &ClusterNode) -> Result<(), PortError> {
        effect("uncordon", &node.name, self.0.cluster.uncordon(node)).await
    }
    async fn pods(&self, node: &str) -> Result<Vec<Pod>, PortError> {
        self.0.cluster.pods(node).await
    }
    async fn evict(&self, pod: &Pod) -> Result<Eviction, PortError> {
        effect("evict", &pod.to_string(), self.0.cluster.evict(pod)).await
    }
}

#[async_trait]
impl SetupScript for Told {
    fn place(&self) -> String {
        self.0.setup.place()
    }
    async fn start(&self, run: &ScriptRun) -> Result<(), PortError> {
        effect("start_script", &run.name, self.0.setup.start(run)).await
    }
    async fn look(&self, name: &str) -> Result<ScriptState, PortError> {
        self.0.setup.look(name).await
    }
}
