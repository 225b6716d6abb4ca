//! What is free on the hosts, as Placement tells it to Nova's scheduler.
//!
//! Nova's own numbers won't do: they say nothing of over-commitment, so that a host with room would look full.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue, Method};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use turnaround_workflows::ports::{PortError, PortErrorKind, Room};

use super::{Nova, X_AUTH_TOKEN};
use crate::adapters::http::{Effect, Request};
use crate::adapters::keystone::Token;

/// That of Rocky: the first one that tells each candidate's whole tree of providers, with all that they have.
const MICROVERSION: HeaderValue = HeaderValue::from_static("placement 1.29");

/// As in the header of Nova's own microversion.
const OPENSTACK_API_VERSION: HeaderName = HeaderName::from_static("openstack-api-version");

/// Candidates for the least that any instance takes: every host that has anything left. Without a limit Placement gives them all.
const LEAST: &str = "MEMORY_MB:1";

/// That of Train: groups may have names (`resources_GPU`) and not only numbers.
const NAMED_GROUPS: HeaderValue = HeaderValue::from_static("placement 1.33");

/// The query for one instance of a flavour with these extra specs, as Nova's scheduler words it; without its size, which is counted by us.
fn query(asks: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let (mut resources, mut required) = (BTreeMap::from([(String::new(), vec![LEAST.to_owned()])]), BTreeMap::<String, Vec<String>>::new());
    for (key, value) in asks {
        let Some((group, name)) = key.split_once(':') else { continue };
        if let Some(group) = group.strip_prefix("resources") {
            if value != "0" {
                resources.entry(group.to_owned()).or_default().push(format!("{name}:{value}"));
            }
        } else if let Some(group) = group.strip_prefix("trait") {
            // Any other value Nova only logs (`ResourceRequest._add_trait`), and so does not ask for.
            let sign = match value.as_str() {
                "required" => "",
                "forbidden" => "!",
                _ => continue,
            };
            required.entry(group.to_owned()).or_default().push(format!("{sign}{name}"));
        }
    }
    // Of a group without resources Placement would know no provider that has to have the trait.
    required.retain(|group, _| resources.contains_key(group));
    let groups = resources.len() - 1;
    let mut query: Vec<(String, String)> = resources.into_iter().map(|(group, all)| (format!("resources{group}"), all.join(","))).collect();
    query.extend(required.into_iter().map(|(group, all)| (format!("required{group}"), all.join(","))));
    // Where a flavour with more than one group names no policy, or one that is unknown, Nova names none either, and Placement refuses. So it does with us.
    if let Some(policy) = asks.get("group_policy").filter(|policy| groups > 1 && POLICIES.contains(&policy.as_str())) {
        query.push(("group_policy".to_owned(), policy.clone()));
    }
    query
}

/// How Placement may place groups of one request: each from another provider, or not.
const POLICIES: [&str; 2] = ["isolate", "none"];

/// Both kinds of processors: which kind an instance takes depends on its flavour, its image and Nova's configuration. A host is
/// never said to be full because of the wrong kind.
const PROCESSORS: [&str; 2] = ["VCPU", "PCPU"];

/// Parts of a host whose inventories are read, each by a call of its own. Nova has one for each NUMA cell and each GPU, or slice of one.
const PARTS_MAX: usize = 200;

/// By the provider that it is of.
#[derive(Deserialize)]
struct Allocations {
    allocations: BTreeMap<String, Allocation>,
}

#[derive(Deserialize)]
struct Allocation {
    resources: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Tree {
    resource_providers: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    uuid: String,
}

#[derive(Deserialize)]
struct Inventories {
    inventories: BTreeMap<String, Inventory>,
}

#[derive(Deserialize)]
struct Inventory {
    total: u64,
}

#[derive(Deserialize)]
struct Candidates {
    provider_summaries: BTreeMap<String, Provider>,
}

#[derive(Deserialize)]
struct Provider {
    resources: BTreeMap<String, Resource>,
    /// Of the host, where this is a part of one: a NUMA cell, a GPU.
    root_provider_uuid: String,
}

#[derive(Deserialize)]
struct Resource {
    /// What may be placed in all: what is reserved is taken off, the allocation ratio is counted in.
    capacity: i64,
    used: i64,
}

impl Resource {
    fn free(&self) -> u64 {
        // More may be used than there is, after a ratio was lowered.
        u64::try_from(self.capacity.saturating_sub(self.used)).unwrap_or(0)
    }
}

impl Candidates {
    fn by_class(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let mut free: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for provider in self.provider_summaries.values() {
            let host = free.entry(provider.root_provider_uuid.clone()).or_default();
            for (class, resource) in &provider.resources {
                let sum = host.entry(class.clone()).or_default();
                *sum = sum.saturating_add(resource.free());
            }
        }
        free
    }

    fn free(&self) -> BTreeMap<String, Room> {
        let mut free: BTreeMap<String, Room> = BTreeMap::new();
        for provider in self.provider_summaries.values() {
            let host = free.entry(provider.root_provider_uuid.clone()).or_default();
            for (class, resource) in &provider.resources {
                if PROCESSORS.contains(&class.as_str()) {
                    host.vcpus = host.vcpus.saturating_add(resource.free());
                } else if class == "MEMORY_MB" {
                    host.memory_mb = host.memory_mb.saturating_add(resource.free());
                } else if class == "DISK_GB" {
                    // Where the disk is a provider of its own, shared by hosts, they have none.
                    host.disk_gb = Some(host.disk_gb.unwrap_or(0).saturating_add(resource.free()));
                }
            }
        }
        free
    }
}

impl Nova {
    /// What is free on each host that has anything left, by its hypervisor's UUID.
    pub(super) async fn free_room(&self, operation: &str) -> Result<BTreeMap<String, Room>, PortError> {
        Ok(self.candidates(operation, &BTreeMap::new()).await?.free())
    }

    /// What is free of each resource class on each host that can take an instance of a flavour with these extra specs, by its hypervisor's UUID.
    pub(super) async fn free_devices(&self, operation: &str, asks: &BTreeMap<String, String>) -> Result<BTreeMap<String, BTreeMap<String, u64>>, PortError> {
        Ok(self.candidates(operation, asks).await?.by_class())
    }

    /// What Placement has in all on the hypervisor of that UUID, and on the parts of it. Empty where it knows none of them.
    pub(super) async fn inventory_of(&self, operation: &str, hypervisor: &str) -> Result<BTreeMap<String, u64>, PortError> {
        let in_tree = [("in_tree".to_owned(), hypervisor.to_owned())];
        let tree: Tree = self.placement(operation, &["resource_providers"], &in_tree, &MICROVERSION, "Placement's resource providers").await?;
        if tree.resource_providers.len() > PARTS_MAX {
            let reason = format!("the host has {} resource providers, more than {PARTS_MAX}", tree.resource_providers.len());
            return Err(PortError::new(operation, PortErrorKind::Refused { reason }));
        }
        let mut all = BTreeMap::new();
        for part in tree.resource_providers {
            let path = ["resource_providers", &part.uuid, "inventories"];
            let answer = self.placement::<Inventories>(operation, &path, &[], &MICROVERSION, "Placement's inventories").await;
            // A part that has gone since has nothing.
            let Inventories { inventories } = match answer {
                Err(error) if error.kind == PortErrorKind::NotFound => continue,
                answer => answer?,
            };
            for (class, Inventory { total }) in inventories {
                let sum: &mut u64 = all.entry(class).or_default();
                *sum = sum.saturating_add(total);
            }
        }
        Ok(all)
    }

    /// What Placement has for the instance of that UUID, on all hosts. Empty where it knows nothing of it.
    pub(super) async fn allocations_of(&self, operation: &str, instance: &str) -> Result<BTreeMap<String, u64>, PortError> {
        let found: Allocations = self.placement(operation, &["allocations", instance], &[], &MICROVERSION, "Placement's allocations").await?;
        let mut all = BTreeMap::new();
        for (class, amount) in found.allocations.into_values().flat_map(|allocation| allocation.resources) {
            let sum: &mut u64 = all.entry(class).or_default();
            *sum = sum.saturating_add(amount);
        }
        Ok(all)
    }

    async fn candidates(&self, operation: &str, asks: &BTreeMap<String, String>) -> Result<Candidates, PortError> {
        let query = query(asks);
        let named = query.iter().any(|(key, _)| key.contains('_') && key != "group_policy");
        let microversion = if named { NAMED_GROUPS } else { MICROVERSION };
        self.placement(operation, &["allocation_candidates"], &query, &microversion, "Placement's allocation candidates").await
    }

    /// Reads one document. `expected` says what it is, for an error.
    async fn placement<T: DeserializeOwned>(
        &self,
        operation: &str,
        path: &[&str],
        query: &[(String, String)],
        microversion: &HeaderValue,
        expected: &str,
    ) -> Result<T, PortError> {
        let fail = |kind| PortError::new(operation, kind);
        let asked = |token: &Token| {
            let mut url = self.session.placement_endpoint(token)?;
            // An http URL always has a path to extend.
            if let Ok(mut segments) = url.path_segments_mut() {
                segments.pop_if_empty().extend(path);
            }
            if !query.is_empty() {
                url.query_pairs_mut().extend_pairs(query);
            }
            let request = Request::new(Method::GET, url).header(X_AUTH_TOKEN, token.value.clone());
            Ok(request.header(OPENSTACK_API_VERSION, microversion.clone()))
        };
        let answer = self.look(operation, asked).await?;
        let garbled = |reason: &str| Err(fail(PortErrorKind::Garbled { reason: reason.to_owned() }));
        match answer.status.as_u16() {
            200 => answer.json(expected).map_err(|reason| fail(PortErrorKind::Garbled { reason })),
            // One of a list is not there; the lists always are.
            404 if path.len() > 1 && answer.fault().is_some() => Err(fail(PortErrorKind::NotFound)),
            404 => garbled("there is no Placement at the address that the catalogue gives"),
            406 if *microversion == NAMED_GROUPS => garbled("Placement does not know its microversion 1.33 (OpenStack Train), and the flavour has groups with names"),
            406 => garbled("Placement does not know its microversion 1.29 (OpenStack Rocky), the oldest that will do"),
            _ => Err(fail(answer.refusal(Effect::None, answer.fault()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placement_is_asked_as_novas_scheduler_would() {
        let asked = |specs: &[(&str, &str)]| {
            let asks = specs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            query(&asks).into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("&")
        };
        assert_eq!(asked(&[]), "resources=MEMORY_MB:1");
        let specs = [("resources:VGPU", "2"), ("trait:CUSTOM_H100", "required"), ("trait:CUSTOM_MIG", "forbidden"), ("resources:PGPU", "0")];
        assert_eq!(asked(&specs), "resources=MEMORY_MB:1,VGPU:2&required=CUSTOM_H100,!CUSTOM_MIG");
        let specs = [("resources1:VGPU", "1"), ("resources_GPU:VGPU", "1"), ("trait1:CUSTOM_A", "required"), ("trait9:CUSTOM_B", "required")];
        assert_eq!(asked(&specs), "resources=MEMORY_MB:1&resources1=VGPU:1&resources_GPU=VGPU:1&required1=CUSTOM_A");
        let specs = [("resources1:VGPU", "1"), ("resources2:VGPU", "1"), ("group_policy", "isolate")];
        assert_eq!(asked(&specs), "resources=MEMORY_MB:1&resources1=VGPU:1&resources2=VGPU:1&group_policy=isolate");
        let specs = [("resources1:VGPU", "1"), ("resources2:VGPU", "1"), ("group_policy", "spread")];
        assert_eq!(asked(&specs), "resources=MEMORY_MB:1&resources1=VGPU:1&resources2=VGPU:1", "Nova only logs it");
        let specs = [("trait:CUSTOM_A", "preferred"), ("trait:CUSTOM_B", "Required"), ("trait:CUSTOM_C", "")];
        assert_eq!(asked(&specs), "resources=MEMORY_MB:1", "Nova only logs them");
    }

    #[test]
    fn all_of_a_hosts_tree_counts_over_commitment_and_both_kinds_of_processors_included() {
        // The first provider as Placement 15.0.0 told it, with a ratio of 4.
        let told = r#"{ "allocation_requests": [], "provider_summaries": {
            "host-1": { "resources": { "VCPU": { "capacity": 4000, "used": 3 }, "MEMORY_MB": { "capacity": 799488, "used": 192 },
                                       "DISK_GB": { "capacity": 600000, "used": 3 } },
                        "traits": ["COMPUTE_NODE"], "parent_provider_uuid": null, "root_provider_uuid": "host-1" },
            "host-2": { "resources": { "PCPU": { "capacity": 32, "used": 8 }, "MEMORY_MB": { "capacity": 100, "used": 300 } },
                        "traits": [], "parent_provider_uuid": null, "root_provider_uuid": "host-2" },
            "gpu":    { "resources": { "VGPU": { "capacity": 8, "used": 0 } },
                        "traits": [], "parent_provider_uuid": "host-2", "root_provider_uuid": "host-2" },
            "cell":   { "resources": { "VCPU": { "capacity": 16, "used": 0 } },
                        "traits": [], "parent_provider_uuid": "host-2", "root_provider_uuid": "host-2" } } }"#;
        let free = serde_json::from_str::<Candidates>(told).unwrap().free();
        let expected = [
            ("host-1".to_owned(), Room { vcpus: 3997, memory_mb: 799_296, disk_gb: Some(599_997) }),
            ("host-2".to_owned(), Room { vcpus: 40, memory_mb: 0, disk_gb: None }),
        ];
        assert_eq!(free, BTreeMap::from(expected));
    }
}
