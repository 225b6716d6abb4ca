//! Every port of a site, each call through the gate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use turnaround_config::{Matcher, NodeName};
use turnaround_workflows::ports::{
    Bmc, BootOverride, BootTicket, Canaries, CanaryInstance, ClusterNode, ClusterNodes, CommandEnd, ComputeService, ComputeServices, Cordon, Eviction, Facts, Host, Hypervisor, Instance, InstanceId, Instances, Migration,
    Move, MoveProgress, MoveStarted, NetBoot, NodeFacts, NodeStock, Pod, PortError, Ports, Power, Machine, RequestId, ScriptRun, ScriptState, ServerGroup, SetupScript, Silence, Silences,
    NewCanary, NewSilence, RebuildOrder, RebuildRecord, Rebuilder,
};

use crate::gate::Gate;

struct Gated {
    site: Ports,
    gate: Arc<Gate>,
}

/// `site`, each call through `gate`.
pub(super) fn gated(site: Ports, gate: Arc<Gate>) -> Ports {
    let all = Arc::new(Gated { site, gate });
    Ports { compute: all.clone(), instances: all.clone(), bmc: all.clone(), netboot: all.clone(), rebuilder: all.clone(), facts: all.clone(), setup: all.clone(), silences: all.clone(), cluster: all.clone(), canaries: all }
}

#[async_trait]
impl ComputeServices for Gated {
    async fn service(&self, node: &NodeName) -> Result<ComputeService, PortError> {
        self.gate.call("service", false, self.site.compute.service(node)).await
    }
    async fn hypervisor(&self, node: &NodeName) -> Result<Hypervisor, PortError> {
        self.gate.call("hypervisor", false, self.site.compute.hypervisor(node)).await
    }
    async fn inventory(&self, node: &NodeName) -> Result<BTreeMap<String, u64>, PortError> {
        self.gate.call("inventory", false, self.site.compute.inventory(node)).await
    }
    async fn agents(&self, node: &NodeName) -> Result<BTreeMap<String, bool>, PortError> {
        self.gate.call("agents", false, self.site.compute.agents(node)).await
    }
    async fn zones(&self) -> Result<BTreeMap<String, BTreeSet<String>>, PortError> {
        self.gate.call("zones", false, self.site.compute.zones()).await
    }
    async fn hosts(&self) -> Result<Vec<Host>, PortError> {
        self.gate.call("hosts", false, self.site.compute.hosts()).await
    }
    async fn fitting(&self, asks: &BTreeMap<String, String>) -> Result<BTreeMap<String, BTreeMap<String, u64>>, PortError> {
        self.gate.call("fitting hosts", false, self.site.compute.fitting(asks)).await
    }
    async fn close(&self, node: &NodeName, reason: &str) -> Result<(), PortError> {
        self.gate.call("close", true, self.site.compute.close(node, reason)).await
    }
    async fn reopen(&self, node: &NodeName) -> Result<(), PortError> {
        self.gate.call("reopen", true, self.site.compute.reopen(node)).await
    }
}

#[async_trait]
impl Instances for Gated {
    async fn on(&self, node: &NodeName) -> Result<Vec<Instance>, PortError> {
        self.gate.call("instances on", false, self.site.instances.on(node)).await
    }
    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, PortError> {
        self.gate.call("instance", false, self.site.instances.get(id)).await
    }
    async fn device_ports(&self, node: &NodeName) -> Result<BTreeMap<InstanceId, Vec<String>>, PortError> {
        self.gate.call("device ports", false, self.site.instances.device_ports(node)).await
    }
    async fn allocations(&self, id: &InstanceId) -> Result<BTreeMap<String, u64>, PortError> {
        self.gate.call("allocations", false, self.site.instances.allocations(id)).await
    }
    async fn groups(&self) -> Result<Vec<ServerGroup>, PortError> {
        self.gate.call("server groups", false, self.site.instances.groups()).await
    }
    async fn progress(&self, id: &InstanceId) -> Result<Option<MoveProgress>, PortError> {
        self.gate.call("progress", false, self.site.instances.progress(id)).await
    }
    async fn start_move(&self, id: &InstanceId, how: Move, to: Option<&str>) -> Result<MoveStarted, PortError> {
        self.gate.call("start_move", true, self.site.instances.start_move(id, how, to)).await
    }
    async fn stop_live(&self, id: &InstanceId, migration: &str) -> Result<(), PortError> {
        self.gate.call("stop_live", true, self.site.instances.stop_live(id, migration)).await
    }
    async fn confirm(&self, id: &InstanceId) -> Result<(), PortError> {
        self.gate.call("confirm", true, self.site.instances.confirm(id)).await
    }
    async fn migrations(&self, id: &InstanceId) -> Result<Vec<Migration>, PortError> {
        self.gate.call("migrations", false, self.site.instances.migrations(id)).await
    }
    async fn moving(&self, node: &NodeName) -> Result<Vec<Migration>, PortError> {
        self.gate.call("moving", false, self.site.instances.moving(node)).await
    }
    async fn why_failed(&self, id: &InstanceId, request: &RequestId) -> Result<Option<String>, PortError> {
        self.gate.call("why_failed", false, self.site.instances.why_failed(id, request)).await
    }
}

#[async_trait]
impl Canaries for Gated {
    async fn find(&self, name: &str) -> Result<Vec<CanaryInstance>, PortError> {
        self.gate.call("find canaries", false, self.site.canaries.find(name)).await
    }
    async fn create(&self, name: &str, canary: &NewCanary) -> Result<(), PortError> {
        self.gate.call("create_canary", true, self.site.canaries.create(name, canary)).await
    }
    async fn put_on(&self, id: &InstanceId, node: &NodeName) -> Result<RequestId, PortError> {
        self.gate.call("put_canary", true, self.site.canaries.put_on(id, node)).await
    }
    async fn stop(&self, id: &InstanceId) -> Result<(), PortError> {
        self.gate.call("stop_canary", true, self.site.canaries.stop(id)).await
    }
    async fn start(&self, id: &InstanceId) -> Result<RequestId, PortError> {
        self.gate.call("start_canary", true, self.site.canaries.start(id)).await
    }
    async fn console(&self, id: &InstanceId) -> Result<String, PortError> {
        self.gate.call("console", false, self.site.canaries.console(id)).await
    }
    async fn remove(&self, id: &InstanceId) -> Result<(), PortError> {
        self.gate.call("remove_canary", true, self.site.canaries.remove(id)).await
    }
}

#[async_trait]
impl Bmc for Gated {
    async fn power(&self, node: &NodeName) -> Result<Power, PortError> {
        self.gate.call("power", false, self.site.bmc.power(node)).await
    }
    async fn machine(&self, node: &NodeName) -> Result<Machine, PortError> {
        self.gate.call("machine", false, self.site.bmc.machine(node)).await
    }
    async fn boot_override(&self, node: &NodeName) -> Result<BootOverride, PortError> {
        self.gate.call("boot_override", false, self.site.bmc.boot_override(node)).await
    }
    async fn netboot_next(&self, node: &NodeName) -> Result<(), PortError> {
        self.gate.call("netboot_next", true, self.site.bmc.netboot_next(node)).await
    }
    async fn reset(&self, node: &NodeName) -> Result<(), PortError> {
        self.gate.call("reset", true, self.site.bmc.reset(node)).await
    }
}

#[async_trait]
impl NetBoot for Gated {
    async fn stage(&self, node: &NodeName, ticket: &BootTicket) -> Result<(), PortError> {
        self.gate.call("stage", true, self.site.netboot.stage(node, ticket)).await
    }
    async fn would_take(&self, node: &NodeName) -> Result<(), PortError> {
        self.gate.call("would_take", false, self.site.netboot.would_take(node)).await
    }
    async fn staged(&self, node: &NodeName) -> Result<Option<BootTicket>, PortError> {
        self.gate.call("staged", false, self.site.netboot.staged(node)).await
    }
    async fn withdraw(&self, node: &NodeName) -> Result<(), PortError> {
        self.gate.call("withdraw", true, self.site.netboot.withdraw(node)).await
    }
}

#[async_trait]
impl Rebuilder for Gated {
    async fn record(&self, node: &NodeName) -> Result<RebuildRecord, PortError> {
        self.gate.call("rebuild record", false, self.site.rebuilder.record(node)).await
    }
    async fn order(&self, node: &NodeName, order: &RebuildOrder) -> Result<(), PortError> {
        self.gate.call("order_rebuild", true, self.site.rebuilder.order(node, order)).await
    }
    async fn rebuild(&self, node: &NodeName, order: &RebuildOrder) -> Result<(), PortError> {
        self.gate.call("rebuild", true, self.site.rebuilder.rebuild(node, order)).await
    }
    async fn protect(&self, node: &NodeName, id: &str) -> Result<(), PortError> {
        self.gate.call("protect", true, self.site.rebuilder.protect(node, id)).await
    }
}

#[async_trait]
impl NodeFacts for Gated {
    async fn facts(&self, node: &NodeName) -> Result<Facts, PortError> {
        self.gate.call("facts", false, self.site.facts.facts(node)).await
    }
    async fn guests(&self, node: &NodeName) -> Result<BTreeSet<String>, PortError> {
        self.gate.call("guests", false, self.site.facts.guests(node)).await
    }
    async fn machine(&self, node: &NodeName) -> Result<Machine, PortError> {
        self.gate.call("machine_by_its_own_word", false, self.site.facts.machine(node)).await
    }
    async fn stock(&self, node: &NodeName) -> Result<NodeStock, PortError> {
        self.gate.call("stock", false, self.site.facts.stock(node)).await
    }
    async fn run(&self, node: &NodeName, command: &str, time_limit: Duration) -> Result<CommandEnd, PortError> {
        self.gate.call("run", false, self.site.facts.run(node, command, time_limit)).await
    }
}

#[async_trait]
impl Silences for Gated {
    async fn in_force(&self, mark: &str) -> Result<Vec<Silence>, PortError> {
        self.gate.call("in_force", false, self.site.silences.in_force(mark)).await
    }
    async fn begin(&self, silence: &NewSilence) -> Result<(), PortError> {
        self.gate.call("begin_silence", true, self.site.silences.begin(silence)).await
    }
    async fn end(&self, id: &str) -> Result<(), PortError> {
        self.gate.call("end_silence", true, self.site.silences.end(id)).await
    }
    async fn firing(&self, matchers: &[Matcher]) -> Result<BTreeSet<String>, PortError> {
        self.gate.call("firing alerts", false, self.site.silences.firing(matchers)).await
    }
}

#[async_trait]
impl ClusterNodes for Gated {
    async fn nodes(&self) -> Result<Vec<ClusterNode>, PortError> {
        self.gate.call("cluster nodes", false, self.site.cluster.nodes()).await
    }
    async fn cordon(&self, node: &ClusterNode, cordon: &Cordon) -> Result<(), PortError> {
        self.gate.call("cordon", true, self.site.cluster.cordon(node, cordon)).await
    }
    async fn uncordon(&self, node: &ClusterNode) -> Result<(), PortError> {
        self.gate.call("uncordon", true, self.site.cluster.uncordon(node)).await
    }
    async fn pods(&self, node: &str) -> Result<Vec<Pod>, PortError> {
        self.gate.call("pods", false, self.site.cluster.pods(node)).await
    }
    async fn evict(&self, pod: &Pod) -> Result<Eviction, PortError> {
        self.gate.call("evict", true, self.site.cluster.evict(pod)).await
    }
}

#[async_trait]
impl SetupScript for Gated {
    fn place(&self) -> String {
        self.site.setup.place()
    }
    async fn start(&self, run: &ScriptRun) -> Result<(), PortError> {
        self.gate.call("start_script", true, self.site.setup.start(run)).await
    }
    async fn look(&self, name: &str) -> Result<ScriptState, PortError> {
        self.gate.call("script", false, self.site.setup.look(name)).await
    }
}
