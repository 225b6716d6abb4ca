//! Compute services and hypervisors: `os-services`, `os-hypervisors`. What is free on them: Placement.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use http::Method;
use serde_json::{Value, json};
use turnaround_config::NodeName;
use turnaround_workflows::ports::{ComputeService, ComputeServices, Host, Hypervisor, PortError, PortErrorKind};

use super::instances::endless;
use crate::adapters::http::foreign_text;
use super::{Call, Microversion, Nova, PAGE, PAGES_MAX, wire};

/// Nova refuses a longer reason.
// Not cut short here: the reason says whose closure it is, and half of that is worse than an error.
const REASON_CHARS_MAX: usize = 255;

/// The newest microversion in which a hypervisor says what it offers.
// 2.88 took `vcpus` and `memory_mb` out; Placement has them, behind another endpoint and another policy.
const HYPERVISOR_MICROVERSION: Microversion = Microversion { major: 2, minor: 87 };

#[async_trait]
impl ComputeServices for Nova {
    async fn service(&self, node: &NodeName) -> Result<ComputeService, PortError> {
        let operation = format!("look at the compute service of {node}");
        let service = self.known_service(node, &operation).await?;
        Ok(service.1)
    }

    async fn close(&self, node: &NodeName, reason: &str) -> Result<(), PortError> {
        let operation = format!("close {node} for new instances");
        let chars = reason.chars().count();
        if chars == 0 || chars > REASON_CHARS_MAX {
            let reason = format!("the reason has {chars} characters, and Nova takes 1 to {REASON_CHARS_MAX}");
            return Err(PortError::new(operation, PortErrorKind::Refused { reason }));
        }
        self.set_status(node, operation, json!({ "status": "disabled", "disabled_reason": reason })).await
    }

    async fn reopen(&self, node: &NodeName) -> Result<(), PortError> {
        // Nova clears the reason by itself, and refuses one here.
        self.set_status(node, format!("reopen {node} for new instances"), json!({ "status": "enabled" })).await
    }

    async fn hypervisor(&self, node: &NodeName) -> Result<Hypervisor, PortError> {
        let found = self.hypervisor_of(node, &format!("look at the hypervisor of {node}")).await?;
        Ok(Hypervisor {
            id: Some(found.id),
            up: found.state == "up",
            vcpus: found.vcpus.unwrap_or(0),
            memory_mb: found.memory_mb.unwrap_or(0),
            running: found.servers.into_iter().map(|server| server.uuid).collect(),
        })
    }

    async fn inventory(&self, node: &NodeName) -> Result<BTreeMap<String, u64>, PortError> {
        let operation = format!("look at what Placement has of {node}");
        let found = self.hypervisor_of(node, &operation).await?;
        let inventory = self.inventory_of(&operation, &found.id).await?;
        if inventory.is_empty() { Err(PortError::new(operation, PortErrorKind::NotFound)) } else { Ok(inventory) }
    }

    async fn agents(&self, node: &NodeName) -> Result<BTreeMap<String, bool>, PortError> {
        let operation = format!("list the network agents of {node}");
        let host = self.host(node, &operation)?;
        self.agents_of(&operation, host).await
    }

    async fn hosts(&self) -> Result<Vec<Host>, PortError> {
        let operation = "list the hosts and what is free on them";
        let free = self.free_room(operation).await?;
        let hosts = self.hypervisors(operation).await?.into_iter().map(|hypervisor| Host {
            name: self.our_name(hypervisor.service.host),
            enabled: hypervisor.status == "enabled",
            up: hypervisor.state == "up",
            free: free.get(&hypervisor.id).copied().unwrap_or_default(),
        });
        Ok(hosts.collect())
    }

    async fn zones(&self) -> Result<BTreeMap<String, BTreeSet<String>>, PortError> {
        let call = Call::get("list the aggregates that make availability zones", &["os-aggregates"]);
        let found: wire::Aggregates = self.document(call, "a list of aggregates").await?;
        let mut zones: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for aggregate in found.aggregates {
            if let Some(zone) = aggregate.availability_zone {
                zones.entry(foreign_text(&zone)).or_default().extend(aggregate.hosts.into_iter().map(|host| self.our_name(host)));
            }
        }
        Ok(zones)
    }

    async fn fitting(&self, asks: &BTreeMap<String, String>) -> Result<BTreeMap<String, BTreeMap<String, u64>>, PortError> {
        let operation = "ask Placement for hosts with what a flavour wants";
        let mut fitting = self.free_devices(operation, asks).await?;
        let hypervisors = self.hypervisors(operation).await?;
        Ok(hypervisors.into_iter().filter_map(|one| Some((self.our_name(one.service.host), fitting.remove(&one.id)?))).collect())
    }
}

impl Nova {
    async fn hypervisor_of(&self, node: &NodeName, operation: &str) -> Result<wire::Hypervisor, PortError> {
        let host = self.host(node, operation)?;
        // The pattern is a substring, and hypervisors may be called by their full domain name where the service is not,
        // or the other way round: ask for the first label, keep those of our service.
        let pattern = host.split('.').next().unwrap_or(host);
        let call = Call::get(operation, &["os-hypervisors", "detail"])
            .query("hypervisor_hostname_pattern", pattern)
            .query("with_servers", "true")
            .at_most(HYPERVISOR_MICROVERSION);
        let found: wire::Hypervisors = self.document(call, "a list of hypervisors").await?;
        let mut ours: Vec<_> = found.hypervisors.into_iter().filter(|hypervisor| hypervisor.service.host == host).collect();
        match (ours.pop(), ours.is_empty()) {
            (None, _) => Err(PortError::new(operation, PortErrorKind::NotFound)),
            (Some(only), true) => Ok(only),
            (Some(_), false) => {
                let reason = format!(
                    "compute service {host} has several hypervisors, as one for bare metal does; nodes with instances have one"
                );
                Err(PortError::new(operation, PortErrorKind::Refused { reason }))
            }
        }
    }

    /// Every hypervisor of the cloud.
    async fn hypervisors(&self, operation: &str) -> Result<Vec<wire::HostRecord>, PortError> {
        let (mut all, mut marker) = (Vec::new(), None);
        for _ in 0..PAGES_MAX {
            // A newer Nova asks every host for its uptime here.
            let path = ["os-hypervisors", "detail"];
            let mut call = Call::get(operation, &path).query("limit", PAGE.to_string()).at_most(HYPERVISOR_MICROVERSION);
            if let Some(marker) = marker.take() {
                call = call.query("marker", marker);
            }
            let page: wire::Hosts = self.document(call, "a page of hypervisors").await?;
            let last = page.hypervisors.last().map(|hypervisor| hypervisor.id.clone());
            all.extend(page.hypervisors);
            match last {
                Some(last) if wire::goes_on(&page.hypervisors_links) => marker = Some(last),
                _ => return Ok(all),
            }
        }
        Err(endless(operation.to_owned()))
    }

    /// The compute service of `node` with its id.
    ///
    /// # Errors
    /// `NotFound` where Nova has no such service; `Unavailable` where its cell doesn't answer, so that its instances could
    /// not be listed either: a host that can't be seen must not look empty.
    pub(super) async fn known_service(&self, node: &NodeName, operation: &str) -> Result<(String, ComputeService), PortError> {
        let host = self.host(node, operation)?;
        let call = Call::get(operation, &["os-services"]).query("binary", "nova-compute").query("host", host);
        let found: wire::Services = self.document(call, "a list of compute services").await?;
        // Exactly this host, whatever the filter did.
        let Some(mut service) = found.services.into_iter().find(|service| service.host == host) else {
            return Err(PortError::new(operation, PortErrorKind::NotFound));
        };
        match (service.id.take(), service.meaning()) {
            (Some(id), Some(service)) => Ok((id, service)),
            _ => {
                Err(PortError::new(operation, PortErrorKind::Unavailable)
                    .with_source("the Nova cell of this host does not answer"))
            }
        }
    }

    /// Setting a status twice is harmless, yet a lost answer stays `OutcomeUnknown`: it may be carried out later than what
    /// somebody else asks for in between.
    async fn set_status(&self, node: &NodeName, operation: String, status: Value) -> Result<(), PortError> {
        let (id, _) = self.known_service(node, &operation).await?;
        self.send(Call::change(operation, Method::PUT, &["os-services", &id], status)).await.map(drop)
    }
}
