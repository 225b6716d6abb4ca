//! What is ordered: the inputs of the workflows, made from the configuration at the moment of the order.
//!
//! An order carries everything that the work depends on, so that a configuration that changes later does not
//! change work that has begun.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use super::{NODE_OS, NODE_OS_IRONIC};
use turnaround_config::{Carries, Compared, Config, Expect, ImageName, Matcher, MoveRule, Node, NodeName, Pinned, pattern_fits};

use crate::ports::Instance;

/// An image, as it was when it was ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderedImage {
    pub name: ImageName,
    pub version: String,
    pub sha256: String,
    pub os_version_id: String,
    pub kernel: String,
    /// The same for Ironic. None: no node of the order is renewed by it; older orders don't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ironic: Option<OrderedIronicImage>,
}

/// What Ironic writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderedIronicImage {
    /// A URL, or the id of an image in Glance.
    pub source: String,
    /// SHA-256 of that file. The installed node reports it.
    pub sha256: String,
}

/// The rules under which it was ordered. Times are in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// At most so many nodes are out of service at once, for whatever rollout.
    pub max_out: u32,
    pub moves_at_once: u32,
    /// What is done with running instances that can't be moved live. Older orders don't say.
    #[serde(default)]
    pub pinned: Pinned,
    /// How certain instances are moved. Older orders don't say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moves: Vec<OrderedMoveRule>,
    /// Owners of instances that only they can have moved are waited for so long. Older orders don't say.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub owner_wait_ms: u64,
    /// After a node was closed, instances may turn up for so long whose place was chosen before.
    pub settle_ms: u64,
    pub evacuate_deadline_ms: u64,
    pub install_deadline_ms: u64,
    /// How installers report, and how long the first word of one is waited for. None: none does; older orders don't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installer: Option<OrderedReports>,
    pub rejoin_deadline_ms: u64,
    /// So long a compute service that is back has to report without a break. Older orders don't say.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rejoin_settle_ms: u64,
    /// In what the renewed node is compared with how it was found. Older orders don't say.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub compare: BTreeSet<Compared>,
    /// How often a moving instance is looked at.
    pub move_poll_ms: u64,
    /// How often a node that is being installed or verified is looked at.
    pub node_poll_ms: u64,
    /// What puts the image on the PXE server before the first node is touched. None: it is there.
    #[serde(default)]
    pub fetch: Option<Deploy>,
    /// What puts OpenStack back on a node that was wiped. None: the image brings it.
    #[serde(default)]
    pub deploy: Option<Deploy>,
    /// Which alerts are silenced meanwhile. None: none.
    #[serde(default)]
    pub silence: Option<OrderedSilence>,
    /// How nodes of the Kubernetes cluster are drained before their instances move. None: no instance is known to be one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<OrderedCluster>,
    /// What is checked on the node before it is given back.
    #[serde(default)]
    pub checks: Vec<OrderedCheck>,
    /// The instance that has to start on the node before it is given back. None: none; older orders don't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<OrderedCanary>,
}

/// How instances of certain flavours or projects are moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderedMoveRule {
    pub name: String,
    #[serde(flatten)]
    pub rule: MoveRule,
}

impl OrderedMoveRule {
    /// Is it about `instance`, by its flavour and its project? Its owner, or a more careful rule, may still have the last word.
    pub fn is_about(&self, instance: &Instance) -> bool {
        let fits = |patterns: &[String], text: &str| patterns.is_empty() || patterns.iter().any(|pattern| pattern_fits(pattern, text));
        fits(&self.rule.flavors, &instance.flavor) && fits(&self.rule.projects, &instance.project)
    }
}

/// What decides how an instance is moved, besides itself and its owner.
#[derive(Debug, Clone, Copy)]
pub struct MoveRules<'a> {
    pub pinned: Pinned,
    pub rules: &'a [OrderedMoveRule],
}

impl Rules {
    pub fn move_rules(&self) -> MoveRules<'_> {
        MoveRules { pinned: self.pinned, rules: &self.moves }
    }
}

/// Where installers say how far they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderedReports {
    /// The URL of the daemon as nodes have it.
    pub url: String,
    /// From a node's reset until an operator is asked about an installer that has not said anything.
    pub deadline_ms: u64,
}

/// A small instance, by Nova's, Glance's and Neutron's ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderedCanary {
    pub image: String,
    pub flavor: String,
    /// None: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// What its console must say after its start on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<String>,
    /// Until an operator is asked about it.
    pub deadline_ms: u64,
}

/// The alerts that are about a node, and how long they are silenced at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderedSilence {
    /// `{node}` stands for the node's name.
    pub matchers: Vec<Matcher>,
    pub lasts_ms: u64,
    /// Alerts about the node that are new keep it from being given back. Older orders don't say.
    #[serde(default)]
    pub gate: bool,
}

/// A Kubernetes cluster whose nodes are instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderedCluster {
    /// Until an operator is asked about what keeps a node from being drained, or from being Ready again.
    pub drain_deadline_ms: u64,
    /// What a node that was moved says of itself is believed after so long. Older orders don't say.
    #[serde(default = "OrderedCluster::older_min_ready")]
    pub min_ready_ms: u64,
}

impl OrderedCluster {
    const fn older_min_ready() -> u64 {
        60_000
    }
}

/// A command that only looks, and what it must say on the renewed node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderedCheck {
    pub name: String,
    pub command: String,
    pub expect: Expected,
    pub time_limit_ms: u64,
    /// On which nodes it is run. Empty: on all of them. Older orders don't say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeName>,
}

/// What counts as well, besides an exit code of 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expected {
    Success,
    Output(String),
    AsFound,
}

/// One run of the site's setup script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deploy {
    /// Its arguments; `{node}` stands for the node's name.
    pub arguments: Vec<String>,
    pub deadline_ms: u64,
}

/// Input of [`super::NODE_OS`] and [`super::NODE_OS_IRONIC`]: one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeOrder {
    pub node: NodeName,
    pub image: OrderedImage,
    pub rules: Rules,
    /// Other nodes of the same rollout that were not renewed when this one was begun: what moves to them has to move again. Older orders don't say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub later: Vec<NodeName>,
    /// Nova's name for its host, where that is another. Older orders don't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// It carries a part of the platform: no other node is out beside it. Older orders don't say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub alone: bool,
}

/// Input of [`super::NODE_OS_ROLLOUT`]: several nodes, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutOrder {
    pub nodes: Vec<NodeName>,
    /// Those of them that carry parts of the platform: each is renewed when no other is out. Older orders don't say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alone: Vec<NodeName>,
    /// Those of them that Ironic installs. Older orders don't say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_ironic: Vec<NodeName>,
    /// Nova's names for the hosts of those of them that it knows by another. Older orders don't say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hosts: BTreeMap<NodeName, String>,
    pub image: OrderedImage,
    pub rules: Rules,
}

/// Input of [`super::SURVEY`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SurveyOrder {
    pub nodes: Vec<NodeName>,
}

/// Why an order can't be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadOrder {
    #[error("there is no image `{0}` in the configuration: add it under [images]")]
    UnknownImage(ImageName),
    #[error("there is no node `{0}` in the configuration: add it under [nodes]")]
    UnknownNode(NodeName),
    #[error("node `{0}` is named twice")]
    NodeTwice(NodeName),
    #[error("no node is named, or none is left that can be renewed (`carries` under [nodes])")]
    NoNode,
    #[error("node `{node}` can't be renewed from here: it carries {what} (`carries` under [nodes.{node}]); move that elsewhere first")]
    CarriesUs { node: NodeName, what: &'static str },
    #[error("node `{node}` is renewed by Ironic, and image `{image}` says nothing of what Ironic is to write: add `ironic_image` to [images.{image}]")]
    NotForIronic { node: NodeName, image: ImageName },
    #[error("node `{node}` is renewed by our own installer, and image `{image}` does not say how that is booted: add `boot_kernel` and `boot_initrd` to [images.{image}]")]
    NotForNetboot { node: NodeName, image: ImageName },
}

fn ordered(name: &str, check: &turnaround_config::Check) -> OrderedCheck {
    let expect = match &check.expect {
        Expect::Success => Expected::Success,
        Expect::Output(text) => Expected::Output(text.clone()),
        Expect::AsFound => Expected::AsFound,
    };
    let nodes = check.nodes.iter().cloned().collect();
    OrderedCheck { name: name.to_owned(), command: check.command.clone(), expect, time_limit_ms: millis(check.time_limit), nodes }
}

/// What this node carries that must not go away.
fn keeps_from_renewal(config: &Config, node: &NodeName) -> Option<&'static str> {
    let carries = config.nodes.get(node)?.carries.iter().find(|carries| carries.keeps_from_renewal())?;
    Some(match carries {
        Carries::Netboot => "the PXE server",
        Carries::Turnaround => "Turnaround itself",
        Carries::Management | Carries::Registry => return None,
    })
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(length: &u64) -> bool {
    *length == 0
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

impl RolloutOrder {
    /// Every node that can be renewed, in the order of their names.
    pub fn all_nodes(config: &Config) -> Vec<NodeName> {
        config.nodes.keys().filter(|node| keeps_from_renewal(config, node).is_none()).cloned().collect()
    }

    /// An order for `nodes` to be renewed to `image`, in this order, but for those that carry parts of the platform: they come last.
    pub fn new(config: &Config, nodes: &[NodeName], image: &ImageName) -> Result<RolloutOrder, BadOrder> {
        let found = config.images.get(image).ok_or_else(|| BadOrder::UnknownImage(image.clone()))?;
        if nodes.is_empty() {
            return Err(BadOrder::NoNode);
        }
        for (place, node) in nodes.iter().enumerate() {
            if !config.nodes.contains_key(node) {
                return Err(BadOrder::UnknownNode(node.clone()));
            }
            if nodes[..place].contains(node) {
                return Err(BadOrder::NodeTwice(node.clone()));
            }
            if let Some(what) = keeps_from_renewal(config, node) {
                return Err(BadOrder::CarriesUs { node: node.clone(), what });
            }
        }
        // Whoever needs the management cluster or the registry meanwhile has them until the end.
        let carries = |node: &NodeName| config.nodes.get(node).is_some_and(|node| !node.carries.is_empty());
        let mut nodes = nodes.to_vec();
        nodes.sort_by_key(carries);
        let alone = nodes.iter().filter(|node| carries(node)).cloned().collect();
        let by_ironic: Vec<NodeName> = nodes.iter().filter(|node| config.nodes.get(node).is_some_and(Node::is_ironics)).cloned().collect();
        if let (Some(node), None) = (by_ironic.first(), &found.ironic) {
            return Err(BadOrder::NotForIronic { node: node.clone(), image: image.clone() });
        }
        if let (Some(node), None) = (nodes.iter().find(|node| !by_ironic.contains(node)), &found.boot) {
            return Err(BadOrder::NotForNetboot { node: node.clone(), image: image.clone() });
        }
        let ironic = found.ironic.as_ref().filter(|_| !by_ironic.is_empty());
        let image = OrderedImage {
            name: image.clone(),
            version: found.version.clone(),
            sha256: found.sha256.clone(),
            os_version_id: found.os_version_id.clone(),
            kernel: found.kernel.clone(),
            ironic: ironic.map(|ironic| OrderedIronicImage { source: ironic.source.clone(), sha256: ironic.sha256.clone() }),
        };
        let rules = Rules {
            max_out: u32::from(config.node_os.max_out),
            moves_at_once: u32::from(config.node_os.moves_at_once),
            pinned: config.node_os.pinned,
            moves: config.moves.iter().map(|(name, rule)| OrderedMoveRule { name: name.to_string(), rule: rule.clone() }).collect(),
            owner_wait_ms: millis(config.node_os.owner_wait),
            settle_ms: millis(config.node_os.settle),
            evacuate_deadline_ms: millis(config.node_os.evacuate_deadline),
            install_deadline_ms: millis(config.node_os.install_deadline),
            installer: config.netboot.as_ref().and_then(|netboot| netboot.reports.as_ref()).map(|reports| OrderedReports {
                url: reports.url.clone(),
                deadline_ms: millis(config.node_os.installer_deadline),
            }),
            rejoin_deadline_ms: millis(config.node_os.rejoin_deadline),
            rejoin_settle_ms: millis(config.node_os.rejoin_settle),
            compare: config.node_os.compare.clone(),
            move_poll_ms: millis(config.openstack.poll),
            node_poll_ms: millis(config.node_os.poll),
            fetch: config.setup.as_ref().filter(|setup| !setup.fetch.is_empty()).map(|setup| Deploy {
                arguments: setup.fetch.clone(),
                deadline_ms: millis(setup.fetch_deadline),
            }),
            deploy: config.setup.as_ref().map(|setup| Deploy {
                arguments: setup.deploy.clone(),
                deadline_ms: millis(setup.deploy_deadline),
            }),
            silence: config.silences.as_ref().map(|silences| OrderedSilence {
                matchers: silences.matchers.clone(),
                lasts_ms: millis(silences.lasts),
                gate: silences.alert_gate,
            }),
            cluster: config.kubernetes.as_ref().map(|cluster| OrderedCluster {
                drain_deadline_ms: millis(cluster.drain_deadline),
                min_ready_ms: millis(cluster.min_ready),
            }),
            checks: config.checks.iter().map(|(name, check)| ordered(name.as_str(), check)).collect(),
            canary: config.canary.as_ref().map(|canary| OrderedCanary {
                image: canary.image.clone(),
                flavor: canary.flavor.clone(),
                network: canary.network.clone(),
                console: canary.console.clone(),
                deadline_ms: millis(canary.deadline),
            }),
        };
        let host = |node: &NodeName| Some((node.clone(), config.nodes.get(node)?.nova_host.clone())).filter(|(node, host)| host != node.as_str());
        let hosts = nodes.iter().filter_map(host).collect();
        Ok(RolloutOrder { nodes, alone, by_ironic, hosts, image, rules })
    }

    /// The kind of workflow that renews `node`.
    pub fn kind(&self, node: &NodeName) -> &'static str {
        if self.by_ironic.contains(node) { NODE_OS_IRONIC } else { NODE_OS }
    }

    /// The part of one node, where `is_renewed` tells which others are already.
    pub fn node(&self, node: &NodeName, is_renewed: impl Fn(&NodeName) -> bool) -> NodeOrder {
        let later = self.nodes.iter().filter(|other| *other != node && !is_renewed(other)).cloned().collect();
        let mut rules = self.rules.clone();
        let alone = self.alone.contains(node);
        if alone {
            // Also of those that have ended: one that was left is out, and what the other ones carry is needed.
            rules.max_out = 1;
        }
        rules.checks.retain(|check| check.nodes.is_empty() || check.nodes.contains(node));
        for check in &mut rules.checks {
            // Said by its being there. Every node's journal would have the names of all.
            check.nodes.clear();
        }
        NodeOrder { node: node.clone(), image: self.image.clone(), rules, later, host: self.hosts.get(node).cloned(), alone }
    }
}

impl SurveyOrder {
    /// A look at every node of the configuration.
    pub fn new(config: &Config) -> SurveyOrder {
        SurveyOrder { nodes: config.nodes.keys().cloned().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A site with the image `noble`, and with `further`.
    fn config(further: &str) -> Config {
        let text = format!(
            "site = \"lab\"\nopenstack.cloud = \"lab\"\nnetboot = {{ directory = \"/srv/boot\", url = \"http://192.0.2.1/boot\" }}\n\
             [images.noble]\nversion = \"1\"\nsha256 = \"{}\"\nos_version_id = \"24.04\"\nkernel = \"6.8\"\nboot_kernel = \"k\"\nboot_initrd = \"i\"\n{further}",
            "a".repeat(64),
        );
        turnaround_config::check_text("x", &text).unwrap_or_else(|report| panic!("{report}"))
    }

    fn node(name: &str, number: u8, carries: &str) -> String {
        format!(
            "[nodes.{name}]\nmac = \"02:00:5e:10:00:{number:02x}\"\ncarries = [{carries}]\n\
             bmc = {{ protocol = \"ipmi\", address = \"192.0.2.{number}\", user = \"u\", password_file = \"/etc/p\" }}\n"
        )
    }

    #[test]
    fn an_order_from_before_there_were_rules_for_pinned_instances_asks_about_them() {
        let rules = r#"{ "max_out": 1, "moves_at_once": 2, "settle_ms": 1, "evacuate_deadline_ms": 1, "install_deadline_ms": 1,
            "rejoin_deadline_ms": 1, "move_poll_ms": 1, "node_poll_ms": 1 }"#;
        let mut rules: Rules = serde_json::from_str(rules).unwrap();
        assert_eq!(rules.pinned, Pinned::Ask);
        rules.pinned = Pinned::Cold;
        let written = serde_json::to_string(&rules).unwrap();
        assert!(written.contains(r#""pinned":"cold""#), "{written}");
        assert_eq!(serde_json::from_str::<Rules>(&written).unwrap(), rules);
    }

    #[test]
    fn a_check_is_run_on_the_nodes_that_it_is_meant_for_and_in_older_orders_on_all() {
        let checks = "[checks.clock]\ncommand = \"c\"\n[checks.disks]\ncommand = \"d\"\nnodes = [\"ceph-1\", \"gpu-2\"]\n\
            [checks.gpus]\ncommand = \"g\"\nnodes = [\"gpu-*\"]\n";
        let config = config(&format!("{checks}{}{}{}", node("ceph-1", 1, ""), node("gpu-1", 2, ""), node("gpu-2", 3, "")));
        let order = RolloutOrder::new(&config, &RolloutOrder::all_nodes(&config), &"noble".parse().unwrap()).unwrap();
        let order: RolloutOrder = serde_json::from_str(&serde_json::to_string(&order).unwrap()).unwrap();
        let checks = |node: usize| {
            let part = order.node(&order.nodes[node], |_| false);
            assert!(part.rules.checks.iter().all(|check| check.nodes.is_empty()));
            part.rules.checks.iter().map(|check| check.name.clone()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!([checks(0), checks(1), checks(2)], ["clock disks", "clock gpus", "clock disks gpus"]);
        let older = r#"{ "name": "x", "command": "x", "expect": "success", "time_limit_ms": 1 }"#;
        let mut order = order;
        order.rules.checks = vec![serde_json::from_str(older).unwrap()];
        assert!(order.nodes.iter().all(|node| order.node(node, |_| false).rules.checks.len() == 1));
    }

    #[test]
    fn what_the_platform_stands_on_comes_last_or_not_at_all() {
        let nodes = [
            node("a", 1, "\"management\""),
            node("b", 2, ""),
            node("c", 3, "\"netboot\""),
            node("d", 4, "\"registry\", \"turnaround\""),
            node("e", 5, ""),
        ];
        let config = config(&nodes.concat());
        let image = "noble".parse().unwrap();
        let names = |nodes: &[NodeName]| nodes.iter().map(|node| node.as_str().to_owned()).collect::<Vec<_>>().concat();
        let all = RolloutOrder::all_nodes(&config);
        assert_eq!(names(&all), "abe");
        let order = RolloutOrder::new(&config, &all, &image).unwrap();
        assert_eq!((names(&order.nodes), names(&order.alone)), ("bea".to_owned(), "a".to_owned()));
        let part = order.node(&order.nodes[1], |other| other.as_str() == "b");
        assert_eq!((part.node.as_str(), names(&part.later)), ("e", "a".to_owned()), "neither itself nor what is renewed");
        let named = |node: &str| RolloutOrder::new(&config, &[node.parse().unwrap()], &image).unwrap_err().to_string();
        assert_eq!(named("c"), "node `c` can't be renewed from here: it carries the PXE server (`carries` under [nodes.c]); move that elsewhere first");
        assert!(named("d").contains("it carries Turnaround itself"), "{}", named("d"));
    }
}
