//! The simulated site behind every port.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use turnaround_config::NodeName;

use super::guest::{Guest, MigrationRecord, MigrationStatus};
use super::log::Happened;
use super::plan::{Api, Call};
use super::trouble::Trouble;
use super::world::{ServiceView, World};
use crate::ports::{
    Bmc, BootDevice, BootOverride, BootTicket, CommandEnd, ComputeService, ComputeServices, Facts, Host, Hypervisor, Instance, InstanceId, Instances, Migration,
    MigrationKind, Move, MoveProgress, MoveStarted, NetBoot, NodeFacts, NodeStock, PortError, PortErrorKind, Machine, Power, RequestId, ScriptRun, ScriptState, ServerGroup, SetupScript,
    Installed, PROTECTED_BY_US, RebuildOrder, RebuildRecord, RebuildState, Rebuilder, lacks_group_policy,
};

impl World {
    fn service_of(&self, node: &NodeName) -> Result<ServiceView, Trouble> {
        let mut found = self.services_where(|name| name == node.as_str())?;
        found.pop().ok_or(Trouble::NotFound)
    }

    fn instances_of(&self, node: &NodeName) -> Result<Vec<Instance>, Trouble> {
        let host = self.service_of(node)?.host;
        let here = self.guests_where(|guest| guest.host.as_ref() == Some(&host))?;
        Ok(here.iter().map(|guest| self.told(guest)).collect())
    }

    /// As the ports tell it: hosts by our own names for them.
    pub(super) fn told(&self, guest: &Guest) -> Instance {
        let mut instance = guest.as_instance();
        instance.host = instance.host.map(|host| self.our_name(host));
        instance
    }

    fn our_name(&self, host: String) -> String {
        self.machines().into_iter().find(|machine| machine.host == host).map_or(host, |machine| machine.node)
    }

    fn newest_first(&self, wanted: impl Fn(&MigrationRecord) -> bool) -> Result<Vec<Migration>, Trouble> {
        let told = |record: &MigrationRecord| {
            let mut migration = record.as_migration();
            migration.source = migration.source.map(|host| self.our_name(host));
            migration.destination = migration.destination.map(|host| self.our_name(host));
            migration
        };
        Ok(self.migrations_where(wanted)?.iter().rev().map(told).collect())
    }

    fn newest_cold(&self, id: &InstanceId) -> Result<Option<(MigrationKind, MigrationStatus)>, Trouble> {
        let cold = self.migrations_where(|one| one.instance == *id && one.kind != MigrationKind::Live)?;
        Ok(cold.last().map(|migration| (migration.kind, migration.status)))
    }
}

#[async_trait]
impl ComputeServices for World {
    async fn service(&self, node: &NodeName) -> Result<ComputeService, PortError> {
        let service =
            self.service_of(node).map_err(|e| e.while_trying_to(format_args!("read the compute service of {node}")))?;
        Ok(ComputeService { enabled: service.enabled, disabled_reason: service.disabled_reason, up: service.up })
    }

    async fn close(&self, node: &NodeName, reason: &str) -> Result<(), PortError> {
        let closed = self.service_of(node).and_then(|service| self.disable_service(&service.host, reason));
        closed.map_err(|e| e.while_trying_to(format_args!("disable the compute service of {node}")))
    }

    async fn reopen(&self, node: &NodeName) -> Result<(), PortError> {
        let opened = self.service_of(node).and_then(|service| self.enable_service(&service.host));
        opened.map_err(|e| e.while_trying_to(format_args!("enable the compute service of {node}")))
    }

    async fn hypervisor(&self, node: &NodeName) -> Result<Hypervisor, PortError> {
        let read = || {
            let service = self.service_of(node)?;
            let running = self.instances_of(node)?.into_iter().map(|instance| instance.id.0).collect();
            Ok(Hypervisor { id: Some(service.id), up: service.up, vcpus: service.vcpus, memory_mb: service.memory_mb, running })
        };
        read().map_err(|e: Trouble| e.while_trying_to(format_args!("read the hypervisor of {node}")))
    }

    async fn inventory(&self, node: &NodeName) -> Result<BTreeMap<String, u64>, PortError> {
        self.service_of(node).map(|service| service.inventory).map_err(|e| e.while_trying_to(format_args!("read what Placement has of {node}")))
    }

    async fn agents(&self, node: &NodeName) -> Result<BTreeMap<String, bool>, PortError> {
        self.service_of(node).map(|service| service.agents).map_err(|e| e.while_trying_to(format_args!("list the network agents of {node}")))
    }

    async fn hosts(&self) -> Result<Vec<Host>, PortError> {
        let services = self.services().map_err(|e| e.while_trying_to("list the hosts and what is free on them"))?;
        let host = |service: ServiceView| Host { name: service.node, enabled: service.enabled, up: service.up, free: service.free };
        Ok(services.into_iter().map(host).collect())
    }

    async fn zones(&self) -> Result<BTreeMap<String, BTreeSet<String>>, PortError> {
        let services = self.services().map_err(|e| e.while_trying_to("list the availability zones"))?;
        let mut zones: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for service in services {
            if let Some(zone) = service.zone {
                zones.entry(zone).or_default().insert(service.node);
            }
        }
        Ok(zones)
    }

    async fn fitting(&self, asks: &BTreeMap<String, String>) -> Result<BTreeMap<String, BTreeMap<String, u64>>, PortError> {
        let refused = || Trouble::refused(400, "The \"group_policy\" parameter is required when specifying more than one \"resources{N}\" parameter.");
        let offering = if lacks_group_policy(asks) { Err(refused()) } else { self.offering(asks) };
        let offering = offering.map_err(|e| e.while_trying_to("ask Placement for hosts with what a flavour wants"))?;
        Ok(offering.into_iter().map(|(host, left)| (self.our_name(host), left)).collect())
    }
}

#[async_trait]
impl Instances for World {
    async fn on(&self, node: &NodeName) -> Result<Vec<Instance>, PortError> {
        self.instances_of(node).map_err(|e| e.while_trying_to(format_args!("list the instances on {node}")))
    }

    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, PortError> {
        let guest = self.guest(id).map_err(|e| e.while_trying_to(format_args!("read instance {id}")))?;
        Ok(guest.as_ref().map(|guest| self.told(guest)))
    }

    async fn start_move(&self, id: &InstanceId, how: Move, to: Option<&str>) -> Result<MoveStarted, PortError> {
        let operation = match how {
            Move::Live => format!("live-migrate instance {id}"),
            Move::Cold => format!("cold-migrate instance {id}"),
        };
        let host = to.map(|name| self.host_named(name));
        let request = self.request_move(id, how, host.as_deref()).map_err(|e| e.while_trying_to(operation))?;
        Ok(MoveStarted { request: RequestId(request) })
    }

    async fn stop_live(&self, id: &InstanceId, migration: &str) -> Result<(), PortError> {
        let stopped = || match self.migrations_where(|record| record.instance == *id && record.uuid == migration)?.first() {
            Some(record) if !record.status.is_over() => self.request_stop(id, record.number),
            Some(_) | None => Ok(()),
        };
        stopped().map_err(|e: Trouble| e.while_trying_to(format_args!("stop the live migration of instance {id}")))
    }

    async fn confirm(&self, id: &InstanceId) -> Result<(), PortError> {
        let confirmed = || match self.newest_cold(id)? {
            None => Err(Trouble::refused(400, "it has never been migrated cold")),
            Some((MigrationKind::Resize, _)) => {
                Err(Trouble::refused(400, "its last move is a tenant's change of flavour"))
            }
            Some((_, MigrationStatus::Confirming | MigrationStatus::Confirmed)) => Ok(()),
            Some(_) => self.request_confirm(id),
        };
        confirmed().map_err(|e: Trouble| e.while_trying_to(format_args!("confirm the migration of instance {id}")))
    }

    async fn migrations(&self, id: &InstanceId) -> Result<Vec<Migration>, PortError> {
        let found = self.newest_first(|migration| migration.instance == *id);
        found.map_err(|e| e.while_trying_to(format_args!("list the migrations of instance {id}")))
    }

    async fn moving(&self, node: &NodeName) -> Result<Vec<Migration>, PortError> {
        let found = self.service_of(node).and_then(|service| {
            let here = |host: &str| host == service.host;
            let touches = |migration: &MigrationRecord| here(&migration.source) || migration.destination.as_deref().is_some_and(here);
            self.newest_first(|migration| touches(migration) && !migration.status.is_over())
        });
        found.map_err(|e| e.while_trying_to(format_args!("list the migrations from and to {node}")))
    }

    async fn progress(&self, id: &InstanceId) -> Result<Option<MoveProgress>, PortError> {
        self.progress_of(id).map_err(|e| e.while_trying_to(format_args!("ask how far the live migration of instance {id} is")))
    }

    async fn device_ports(&self, node: &NodeName) -> Result<BTreeMap<InstanceId, Vec<String>>, PortError> {
        let here = || {
            let host = self.service_of(node)?.host;
            self.guests_where(|guest| guest.host.as_ref() == Some(&host) && !guest.device_ports.is_empty())
        };
        let guests = here().map_err(|e: Trouble| e.while_trying_to(format_args!("list the ports with a device on {node}")))?;
        Ok(guests.into_iter().map(|guest| (guest.id, guest.device_ports)).collect())
    }

    async fn allocations(&self, id: &InstanceId) -> Result<BTreeMap<String, u64>, PortError> {
        self.allocations_of(id).map_err(|e| e.while_trying_to(format_args!("ask Placement what instance {id} has")))
    }

    async fn groups(&self) -> Result<Vec<ServerGroup>, PortError> {
        self.server_groups().map_err(|e| e.while_trying_to("list the server groups"))
    }

    async fn why_failed(&self, id: &InstanceId, request: &RequestId) -> Result<Option<String>, PortError> {
        let actions =
            self.actions_of(id).map_err(|e| e.while_trying_to(format_args!("read what became of {}", request.0)))?;
        Ok(actions.into_iter().find(|action| action.request == request.0).and_then(|action| action.failure))
    }
}

#[async_trait]
impl Bmc for World {
    async fn power(&self, node: &NodeName) -> Result<Power, PortError> {
        self.power_of(node.as_str()).map_err(|e| e.while_trying_to(format_args!("read the power state of {node}")))
    }

    async fn machine(&self, node: &NodeName) -> Result<Machine, PortError> {
        let operation = || format!("ask the BMC of {node} whose it is");
        let macs = self.macs_of(node.as_str()).map_err(|e| e.while_trying_to(operation()))?;
        Ok(Machine::by_macs(node, &self.configured_macs(), macs))
    }

    async fn boot_override(&self, node: &NodeName) -> Result<BootOverride, PortError> {
        self.next_boot_of(node.as_str())
            .map_err(|e| e.while_trying_to(format_args!("read the boot override of {node}")))
    }

    async fn netboot_next(&self, node: &NodeName) -> Result<(), PortError> {
        let operation = format!("make {node} boot from the network");
        let set = self.set_next_boot(node.as_str(), BootDevice::Pxe);
        let read = set.and_then(|()| self.next_boot_of(node.as_str())).map_err(|e| e.while_trying_to(&operation))?;
        if read.device == BootDevice::Pxe && read.efi {
            return Ok(());
        }
        let reason = "the BMC accepted the boot override and did not take it".to_owned();
        Err(PortError::new(operation, PortErrorKind::Refused { reason }))
    }

    async fn reset(&self, node: &NodeName) -> Result<(), PortError> {
        self.request_reset(node.as_str()).map_err(|e| e.while_trying_to(format_args!("reset {node}")))
    }
}

#[async_trait]
impl NetBoot for World {
    async fn stage(&self, node: &NodeName, ticket: &BootTicket) -> Result<(), PortError> {
        let staged = || {
            let mut site = self.asked(Api::NetBoot, Some(node.as_str()))?;
            site.node_named(node.as_str()).ok_or(Trouble::NotFound)?;
            site.tickets.0.insert(node.as_str().to_owned(), ticket.clone());
            site.record(Happened::TicketStaged {
                node: node.as_str().to_owned(),
                token: ticket.token.0.clone(),
                image: ticket.image.as_str().to_owned(),
                sha256: ticket.sha256.clone(),
            });
            site.answer(Call::Stage, ())
        };
        staged().map_err(|e: Trouble| e.while_trying_to(format_args!("stage the boot ticket of {node}")))
    }

    async fn would_take(&self, node: &NodeName) -> Result<(), PortError> {
        let site = self.asked(Api::NetBoot, Some(node.as_str()));
        site.map(drop).map_err(|e| e.while_trying_to(format_args!("look whether {node} can be given an order")))
    }

    async fn staged(&self, node: &NodeName) -> Result<Option<BootTicket>, PortError> {
        let site = self.asked(Api::NetBoot, Some(node.as_str()));
        let site = site.map_err(|e| e.while_trying_to(format_args!("read the boot ticket of {node}")))?;
        Ok(site.tickets.0.get(node.as_str()).cloned())
    }

    async fn withdraw(&self, node: &NodeName) -> Result<(), PortError> {
        let withdrawn = || {
            let mut site = self.asked(Api::NetBoot, Some(node.as_str()))?;
            let token = site.tickets.0.remove(node.as_str()).map(|ticket| ticket.token.0);
            site.record(Happened::TicketWithdrawn { node: node.as_str().to_owned(), token });
            site.answer(Call::Withdraw, ())
        };
        withdrawn().map_err(|e: Trouble| e.while_trying_to(format_args!("withdraw the boot ticket of {node}")))
    }
}

/// What Ironic answers while somebody works on the node: later it may say yes.
fn busy_or(trouble: Trouble, operation: String) -> PortError {
    match trouble {
        Trouble::Refused { status: 409, reason } => PortError::new(operation, PortErrorKind::Unavailable).with_source(reason),
        other => other.while_trying_to(operation),
    }
}

#[async_trait]
impl Rebuilder for World {
    async fn record(&self, node: &NodeName) -> Result<RebuildRecord, PortError> {
        let found = self.ironic_node(node.as_str()).map_err(|e| busy_or(e, format!("read Ironic's record of {node}")))?;
        let state = match found.provision_state.as_str() {
            "active" => RebuildState::Installed,
            "deploy failed" => RebuildState::Failed,
            _ => RebuildState::Working,
        };
        let protected_by_us = found.protected_reason.as_ref().is_some_and(|reason| reason.starts_with(PROTECTED_BY_US));
        let objections = [
            found.maintenance.map(|reason| format!("Ironic has {node} in maintenance: {reason}")),
            (found.protected && !protected_by_us).then(|| format!("Ironic has {node} protected")),
            found.instance_uuid.map(|instance| format!("{node} is the machine of instance {instance}")),
        ];
        Ok(RebuildRecord {
            id: found.name,
            state,
            called: found.provision_state,
            locked_by: found.reservation,
            protected_by_us,
            objections: objections.into_iter().flatten().collect(),
            order: found.ordered.map(|order| order.token),
            changed: Some(format!("{}/{}", found.provision_updated.0, found.provision_updated.1)),
            last_error: found.last_error,
        })
    }

    async fn order(&self, node: &NodeName, order: &RebuildOrder) -> Result<(), PortError> {
        let unprotects = self.record(node).await?.protected_by_us;
        self.order_rebuild(node.as_str(), order, unprotects).map_err(|e| busy_or(e, format!("write down what Ironic is to rebuild {node} with")))
    }

    async fn rebuild(&self, node: &NodeName, order: &RebuildOrder) -> Result<(), PortError> {
        let mark = Installed { token: order.token.clone(), sha256: order.sha256.clone() };
        self.request_rebuild(node.as_str(), mark).map_err(|e| busy_or(e, format!("have Ironic rebuild {node}")))
    }

    async fn protect(&self, node: &NodeName, _id: &str) -> Result<(), PortError> {
        let found = self.ironic_node(node.as_str()).map_err(|e| busy_or(e, format!("have Ironic protect {node}")))?;
        if found.protected {
            return Ok(());
        }
        let reason = format!("{PROTECTED_BY_US} a late rebuild is refused");
        self.protect_record(node.as_str(), reason).map_err(|e| busy_or(e, format!("have Ironic protect {node}")))
    }
}

#[async_trait]
impl NodeFacts for World {
    async fn facts(&self, node: &NodeName) -> Result<Facts, PortError> {
        self.facts_of(node.as_str()).map_err(|e| e.while_trying_to(format_args!("ask {node} what it runs")))
    }

    async fn guests(&self, node: &NodeName) -> Result<BTreeSet<String>, PortError> {
        self.guests_of(node.as_str()).map_err(|e| e.while_trying_to(format_args!("ask {node} what runs on it")))
    }

    async fn machine(&self, node: &NodeName) -> Result<Machine, PortError> {
        let macs = self.own_macs_of(node.as_str()).map_err(|e| e.while_trying_to(format_args!("ask {node} for its MAC addresses")))?;
        Ok(Machine::by_macs(node, &self.configured_macs(), macs))
    }

    async fn stock(&self, node: &NodeName) -> Result<NodeStock, PortError> {
        self.stock_of(node.as_str()).map_err(|e| e.while_trying_to(format_args!("ask {node} what it has")))
    }

    async fn run(&self, node: &NodeName, command: &str, _time_limit: Duration) -> Result<CommandEnd, PortError> {
        self.run_on(node.as_str(), command).map_err(|e| e.while_trying_to(format_args!("run `{command}` on {node}")))
    }
}

#[async_trait]
impl SetupScript for World {
    fn place(&self) -> String {
        "bastion".to_owned()
    }

    async fn start(&self, run: &ScriptRun) -> Result<(), PortError> {
        self.start_script(run).map_err(|e| e.while_trying_to(format_args!("start the setup script as {}", run.name)))
    }

    async fn look(&self, name: &str) -> Result<ScriptState, PortError> {
        Ok(self.script(name))
    }
}
