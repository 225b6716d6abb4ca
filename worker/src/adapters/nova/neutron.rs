//! What Neutron tells of hosts: their agents (Neutron's API, "Agents").

use std::collections::BTreeMap;

use http::Method;
use serde::Deserialize;
use turnaround_workflows::ports::{PortError, PortErrorKind};

use super::{Nova, X_AUTH_TOKEN};
use crate::adapters::http::{Effect, Request};
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

impl Nova {
    /// The agents of `host`, and whether each reports. Empty where the cloud has no Neutron.
    pub(super) async fn agents_of(&self, operation: &str, host: &str) -> Result<BTreeMap<String, bool>, PortError> {
        let fail = |kind| PortError::new(operation, kind);
        let before = |error: PortError| PortError::new(operation, error.kind.clone()).with_source(error);
        let token = self.session.token().await.map_err(before)?;
        if !token.offers("network") {
            return Ok(BTreeMap::new());
        }
        let asked = |token: &Token| {
            let mut url = self.session.network_endpoint(token)?;
            if let Ok(mut segments) = url.path_segments_mut() {
                segments.pop_if_empty().extend(["v2.0", "agents"]);
            }
            url.query_pairs_mut().append_pair("host", host);
            Ok(Request::new(Method::GET, url).header(X_AUTH_TOKEN, token.value.clone()))
        };
        let answer = self.look(operation, asked).await?;
        match answer.status.as_u16() {
            200 => {
                let Agents { agents } = answer.json("Neutron's list of agents").map_err(|reason| fail(PortErrorKind::Garbled { reason }))?;
                // Exactly this host, whatever the filter did. Of two with one binary both have to report.
                let mut all = BTreeMap::new();
                for agent in agents.into_iter().filter(|agent| agent.host == host) {
                    all.entry(agent.binary).and_modify(|alive| *alive &= agent.alive).or_insert(agent.alive);
                }
                Ok(all)
            }
            404 => Err(fail(PortErrorKind::Refused { reason: "Neutron has no agents at the address that the catalogue gives".to_owned() })),
            _ => {
                Err(fail(answer.refusal(Effect::None, answer.fault())))
            }
        }
    }
}
