//! What Neutron tells of hosts: their agents, and the ports there that have a device of theirs (Neutron's API, "Agents" and "Ports").
//!
//! It shows these to administrators; anybody else finds none.

use std::collections::BTreeMap;

use http::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use turnaround_workflows::ports::{InstanceId, PortError, PortErrorKind};

use super::instances::endless;
use super::{Nova, PAGE, PAGES_MAX, X_AUTH_TOKEN, wire};
use crate::adapters::http::{Effect, Request, foreign_text};
use crate::adapters::keystone::Token;

#[derive(Deserialize)]
struct Agents {
    agents: Vec<Agent>,
}

#[derive(Deserialize)]
struct Agent {
    /// What runs: `neutron-openvswitch-agent`, `ovn-controller`.
    binary: String,
    host: String,
    /// Has it reported within Neutron's `agent_down_time`?
    alive: bool,
}

#[derive(Deserialize)]
struct Ports {
    ports: Vec<Port>,
    #[serde(default)]
    ports_links: Vec<wire::Link>,
}

#[derive(Deserialize)]
struct Port {
    id: String,
    device_id: String,
    #[serde(default)]
    device_owner: String,
    #[serde(default, rename = "binding:vnic_type")]
    vnic_type: String,
}

/// `binding:vnic_type` of ports that have no device of their host.
const PLAIN: [&str; 2] = ["normal", "baremetal"];

impl Nova {
    /// Of instances on `host`: the kinds of their ports with a device.
    pub(super) async fn device_ports_on(&self, operation: &str, host: &str) -> Result<BTreeMap<InstanceId, Vec<String>>, PortError> {
        let (mut all, mut marker): (BTreeMap<InstanceId, Vec<String>>, Option<String>) = (BTreeMap::new(), None);
        for _ in 0..PAGES_MAX {
            let mut query = vec![("binding:host_id", host.to_owned()), ("limit", PAGE.to_string())];
            // (Neutron does not filter by `binding:vnic_type`.)
            query.extend(["id", "device_id", "device_owner", "binding:vnic_type"].map(|field| ("fields", field.to_owned())));
            query.extend(marker.take().map(|marker| ("marker", marker)));
            let Some(Ports { ports, ports_links }) = self.neutron(operation, "ports", &query, "Neutron's list of ports").await? else { break };
            let last = ports.last().map(|port| port.id.clone());
            for port in ports.into_iter().filter(|port| port.device_owner.starts_with("compute:") && !PLAIN.contains(&port.vnic_type.as_str())) {
                all.entry(InstanceId(port.device_id)).or_default().push(foreign_text(&port.vnic_type));
            }
            match last {
                Some(last) if wire::goes_on(&ports_links) => marker = Some(last),
                _ => return Ok(all),
            }
        }
        if marker.is_some() { Err(endless(operation.to_owned())) } else { Ok(all) }
    }

    /// The agents of `host`, and whether each reports. Empty where the cloud has no Neutron.
    pub(super) async fn agents_of(&self, operation: &str, host: &str) -> Result<BTreeMap<String, bool>, PortError> {
        let found: Option<Agents> = self.neutron(operation, "agents", &[("host", host.to_owned())], "Neutron's list of agents").await?;
        // Exactly this host, whatever the filter did. Of two with one binary both have to report.
        let mut all = BTreeMap::new();
        for agent in found.into_iter().flat_map(|found| found.agents).filter(|agent| agent.host == host) {
            all.entry(agent.binary).and_modify(|alive| *alive &= agent.alive).or_insert(agent.alive);
        }
        Ok(all)
    }

    /// Reads one document; None where the cloud has no Neutron. `expected` says what it is, for an error.
    async fn neutron<T: DeserializeOwned>(&self, operation: &str, path: &str, query: &[(&str, String)], expected: &str) -> Result<Option<T>, PortError> {
        let fail = |kind| PortError::new(operation, kind);
        let before = |error: PortError| error.before(operation);
        if !self.session.token().await.map_err(before)?.offers("network") {
            return Ok(None);
        }
        let asked = |token: &Token| {
            let mut url = self.session.network_endpoint(token)?;
            if let Ok(mut segments) = url.path_segments_mut() {
                segments.pop_if_empty().extend(["v2.0", path]);
            }
            url.query_pairs_mut().extend_pairs(query);
            Ok(Request::new(Method::GET, url).header(X_AUTH_TOKEN, token.value.clone()))
        };
        let answer = self.look(operation, asked).await?;
        match answer.status.as_u16() {
            200 => answer.json(expected).map(Some).map_err(|reason| fail(PortErrorKind::Garbled { reason })),
            404 => Err(fail(PortErrorKind::Refused { reason: format!("there is no {expected} at the address that the catalogue gives") })),
            _ => Err(fail(answer.refusal(Effect::None, answer.fault()))),
        }
    }
}
