//! Judges what was done to a site by the site's own log, and by nothing else.
//!
//! It shares no code with what it judges: lines of JSON come in, violations come out. A log that it does not understand is a
//! violation too, so that silence always means that everything was looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

/// Begins the names of the instances that are made to try a node: they come and go as they must, and are lost and drained by nobody.
const CANARY: &str = "turnaround-canary-";

/// A move may still be asked for off a node that somebody else has opened less than so many milliseconds ago.
// It is chosen by a look that may be 30 s old, and the guard behind that may wait for the store for 30 s more; a call takes some seconds on top.
const MOVE_UNHEARD_MS: i64 = 70_000;

/// What must hold, and what is excused.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// At most so many nodes out of service at once. Those that were out before anything began don't count.
    pub out_max: usize,
    /// Nodes that others closed, or that failed by themselves, don't count either.
    pub only_own_count: bool,
    /// Nodes about which a question to an operator is open: they need not be as they were found.
    pub open_questions: BTreeSet<String>,
    /// Nodes that an operator has said to leave as they are: they need not be as they were found, and go on counting as out.
    pub left_by_operators: BTreeSet<String>,
    /// Resets (and with them images) of a node that an operator asked for again, with the same order.
    pub resets_again: BTreeMap<String, usize>,
    /// Instances may be moved off nodes that are in service: back to where they came from.
    pub moves_back: bool,
    /// A node that somebody else has opened less than so many milliseconds ago may be reset, also with what has come on its way to it since, and one
    /// that somebody else has disabled so recently may be disabled or enabled by us: who looked right before could not know. Nova has nothing by which
    /// it could be known.
    pub look_is_good_for_ms: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// The log has gaps, goes back in time, contradicts itself, or is not understood.
    LogIsWhole,
    /// No move of an instance is asked for while one is under way.
    OneMoveAtATime,
    /// No instance leaves a node twice while that is closed.
    MovesOnce,
    /// No move is asked for from a node that is in service: the instance had left already, or was never ours to move.
    MovesOnlyOffClosedNodes,
    /// A tenant's change of flavour is the tenant's to confirm.
    ConfirmsOnlyOwnMoves,
    /// One reset for each order.
    OneResetAnOrder,
    /// One rebuild for each order, and one order unless an operator asks for another try.
    OneRebuildAnOrder,
    /// One image for each order.
    OneImageAnOrder,
    /// No reset, and no image, on a node with instances, or with some on their way from or to it, whoever moves them; and none is deleted by us.
    NothingIsLost,
    /// No reset, and no image, on a node that is in service.
    OnlyClosedNodesAreTaken,
    NotTooManyOut,
    /// A node that somebody else disabled is not enabled.
    OthersClosuresStay,
    /// The setup script works on the whole environment: it is never run twice at a time.
    OneScriptAtATime,
    /// No move of an instance is asked for that is a node of the Kubernetes cluster and takes pods, or has some that had to leave.
    DrainedBeforeMoved,
    /// Of the Kubernetes cluster no node is cordoned by us while another one is.
    OneClusterNodeAtATime,
    /// At the end, every node is in service as it was found; those of the Kubernetes cluster, too.
    LeftAsFound,
    /// At the end, nothing is ordered that a later netboot would install.
    NoOrderStays,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub rule: Rule,
    /// Number of the event in the log; 0 for its end.
    pub seq: u64,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seq {
            0 => write!(f, "{:?}: at the end: {}", self.rule, self.what),
            seq => write!(f, "{:?}: event {seq}: {}", self.rule, self.what),
        }
    }
}

/// Everything in `log` that must not happen, in words; with at most `out_max` nodes out at once, and no excuses.
pub fn check(log: &str, out_max: u32) -> Vec<String> {
    let rules = Rules { out_max: out_max.try_into().unwrap_or(usize::MAX), ..Rules::default() };
    judge(log, &rules).iter().map(Violation::to_string).collect()
}

/// Everything in `log` that breaks `rules`, in order of the events.
pub fn judge(log: &str, rules: &Rules) -> Vec<Violation> {
    let mut judge = Judge { rules, ..Judge::new(rules) };
    for line in log.lines() {
        match serde_json::from_str::<Value>(line) {
            Ok(event) => judge.event(&event),
            Err(error) => judge.say(Rule::LogIsWhole, format!("line {} is not JSON: {error}", judge.seq + 1)),
        }
    }
    judge.end();
    judge.violations
}

/// A node as the log has it so far.
#[derive(Debug, Default)]
struct Node {
    enabled: bool,
    reason: Option<String>,
    /// Its system runs and its compute service reports.
    running: bool,
    up: bool,
    /// It was closed before anything began, and has been since.
    found_out: bool,
    /// How others want it to be: as found, or as they left it since.
    wanted: (bool, Option<String>),
    /// It failed by itself: that it is down is nobody's doing.
    crashed: bool,
    /// We have had it reset or rebuilt, and its compute service has not reported since: it is out by our doing, whatever others do to it meanwhile.
    down_by_us: bool,
    /// Whoever changed its service last was somebody else.
    others_turn: bool,
    /// When somebody else enabled it last.
    opened_by_other: Option<i64>,
    closed_by_other: Option<i64>,
    staged: Option<String>,
    resets: BTreeMap<String, usize>,
    images: BTreeMap<String, usize>,
    /// Rebuilds that Ironic accepted, by order.
    rebuilds: BTreeMap<String, usize>,
}

impl Node {
    fn is_down(&self) -> bool {
        !self.running || !self.up
    }

    fn is_out(&self) -> bool {
        !self.enabled || self.is_down()
    }
}

/// A node of the Kubernetes cluster as the log has it so far.
#[derive(Debug, Default)]
struct ClusterNode {
    instance: String,
    cordoned: bool,
    /// Who of us has cordoned it.
    mark: Option<String>,
    /// How others want it to be.
    wanted_cordoned: bool,
    pods: BTreeSet<String>,
}

struct Judge<'a> {
    rules: &'a Rules,
    seq: u64,
    at: i64,
    nodes: BTreeMap<String, Node>,
    /// Where each instance is.
    places: BTreeMap<String, String>,
    /// By instance: the request, where from, and to which host, if one was named.
    moves: BTreeMap<String, (String, String, Value)>,
    /// Node and instance: who has left a node since it was closed.
    left: BTreeSet<(String, String)>,
    /// Runs of the setup script that go on.
    scripts: BTreeSet<String>,
    /// Silences that were begun and not ended.
    silences: BTreeSet<String>,
    cluster: BTreeMap<String, ClusterNode>,
    /// Instances that are canaries, and there.
    canaries: BTreeSet<String>,
    violations: Vec<Violation>,
}

fn text<'a>(event: &'a Value, key: &str) -> &'a str {
    event[key].as_str().unwrap_or_default()
}

fn list(event: &Value, key: &str) -> Vec<String> {
    event[key].as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
}

impl<'a> Judge<'a> {
    fn new(rules: &'a Rules) -> Judge<'a> {
        let (nodes, places, moves) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Judge { rules, seq: 0, at: i64::MIN, nodes, places, moves, left: BTreeSet::new(), scripts: BTreeSet::new(), silences: BTreeSet::new(), cluster: BTreeMap::new(), canaries: BTreeSet::new(), violations: Vec::new() }
    }

    fn say(&mut self, rule: Rule, what: String) {
        self.violations.push(Violation { rule, seq: self.seq, what });
    }

    fn event(&mut self, event: &Value) {
        let (Some(seq), Some(at)) = (event["seq"].as_u64(), event["at"].as_i64()) else {
            return self.say(Rule::LogIsWhole, format!("no `seq` or no `at` in {event}"));
        };
        let expected = self.seq + 1;
        self.seq = seq;
        if seq != expected {
            self.say(Rule::LogIsWhole, format!("event {expected} was expected here"));
        }
        if at < self.at {
            self.say(Rule::LogIsWhole, "time goes back".to_owned());
        }
        self.at = at;
        let kind = text(event, "kind");
        if (kind == "site_started") != (seq == 1) {
            self.say(Rule::LogIsWhole, "a log begins with `site_started`, once".to_owned());
        }
        match kind {
            "site_started" => self.started(event),
            "instance_created" => {
                self.places.insert(text(event, "instance").to_owned(), text(event, "node").to_owned());
                if text(event, "name").starts_with(CANARY) {
                    self.canaries.insert(text(event, "instance").to_owned());
                }
            }
            "instance_deleted" => self.deleted(event),
            "instance_moved" => self.moved(event),
            "instances_lost" => {
                let (lost, why) = (list(event, "instances").join(", "), text(event, "why"));
                self.say(Rule::NothingIsLost, format!("{} lost {lost}: {why}", text(event, "node")));
            }
            "migration_requested" => self.move_requested(event),
            "migration_ended" => {
                let instance = text(event, "instance");
                if self.moves.get(instance).is_some_and(|(request, ..)| request == text(event, "request")) {
                    self.moves.remove(instance);
                }
            }
            "confirm_requested" => {
                if event["of"] == "resize" {
                    let what = format!("confirms a tenant's change of flavour of {}", text(event, "instance"));
                    self.say(Rule::ConfirmsOnlyOwnMoves, what);
                }
            }
            "script_started" => {
                let run = text(event, "run");
                if !self.scripts.is_empty() {
                    self.say(Rule::OneScriptAtATime, format!("{run} begins while {:?} go on", self.scripts));
                }
                self.scripts.insert(run.to_owned());
            }
            "script_ended" => {
                if !self.scripts.remove(text(event, "run")) {
                    self.say(Rule::LogIsWhole, format!("{} ends, and has never begun", text(event, "run")));
                }
            }
            // Two at once, after a worker was paused between its look and its call, do no harm.
            "silence_begun" => {
                self.silences.insert(text(event, "silence").to_owned());
            }
            "silence_ended" => {
                if !self.silences.remove(text(event, "silence")) {
                    self.say(Rule::LogIsWhole, format!("silence {} ends, and is not in force", text(event, "silence")));
                }
            }
            "answer_lost" | "pod_evicted" | "stop_requested" => {}
            "cluster_node_started" | "node_cordoned" | "node_uncordoned" | "pod_started" | "pod_ended" => self.event_of_cluster(kind, event),
            _ => self.event_of_node(kind, event),
        }
    }

    fn started(&mut self, event: &Value) {
        for found in event["nodes"].as_array().into_iter().flatten() {
            let name = text(found, "node");
            let enabled = found["enabled"].as_bool().unwrap_or_default();
            let reason = found["disabled_reason"].as_str().map(str::to_owned);
            for instance in list(found, "instances") {
                self.places.insert(instance, name.to_owned());
            }
            let (wanted, found_out) = ((enabled, reason.clone()), !enabled);
            let node = Node { enabled, reason, running: true, up: true, found_out, wanted, ..Node::default() };
            self.nodes.insert(name.to_owned(), node);
        }
    }

    /// Only canaries are ours to delete. (One for which no host was found was never seen to be created.)
    fn deleted(&mut self, event: &Value) {
        let instance = text(event, "instance");
        let is_canary = self.canaries.remove(instance) || text(event, "name").starts_with(CANARY);
        if event["by"] == "caller" && !is_canary {
            self.say(Rule::NothingIsLost, format!("{instance} is deleted by us, and is no canary"));
        }
        self.places.remove(instance);
        self.moves.remove(instance);
    }

    fn moved(&mut self, event: &Value) {
        let (instance, from, to) = (text(event, "instance"), text(event, "from"), text(event, "to"));
        let was = self.places.insert(instance.to_owned(), to.to_owned());
        if was.as_deref() != Some(from) {
            self.say(Rule::LogIsWhole, format!("{instance} moves from {from}, and was on {was:?}"));
        }
        let closed = self.nodes.get(from).is_some_and(|node| !node.enabled) && !self.canaries.contains(instance);
        if closed && !self.left.insert((from.to_owned(), instance.to_owned())) {
            self.say(Rule::MovesOnce, format!("{instance} leaves {from} again"));
        }
    }

    fn move_requested(&mut self, event: &Value) {
        let (instance, from) = (text(event, "instance").to_owned(), text(event, "node").to_owned());
        // (Whoever tries a node with a canary names that, and whoever empties the one where it was made does not: both may ask at once, and Nova refuses one.
        // The same asked again would be one who did not look.)
        let is_another = |(.., to): &(String, String, Value)| *to != event["to"] && self.canaries.contains(&instance) && !event["refused"].is_null();
        if self.moves.get(&instance).is_some_and(|open| !is_another(open)) {
            self.say(Rule::OneMoveAtATime, format!("a second move of {instance} is asked for while one is under way"));
        }
        let unheard = |node: &Node| node.others_turn && node.opened_by_other.is_some_and(|at| self.at - at < MOVE_UNHEARD_MS);
        if !self.rules.moves_back && !self.canaries.contains(&instance) && self.nodes.get(&from).is_some_and(|node| node.enabled && !unheard(node)) {
            let what = format!("a move of {instance} is asked for from {from}, which is in service");
            self.say(Rule::MovesOnlyOffClosedNodes, what);
        }
        let undrained = self.cluster.iter().find(|(_, node)| node.instance == instance && (!node.cordoned || !node.pods.is_empty()));
        if let Some((name, node)) = undrained {
            let what = format!("a move of {instance} is asked for, which is {name} of the cluster, cordoned: {}, with {:?} on it", node.cordoned, node.pods);
            self.say(Rule::DrainedBeforeMoved, what);
        }
        if event["refused"].is_null() {
            self.moves.insert(instance, (text(event, "request").to_owned(), from, event["to"].clone()));
        }
    }

    fn event_of_cluster(&mut self, kind: &str, event: &Value) {
        let name = text(event, "cluster_node").to_owned();
        if kind == "cluster_node_started" {
            let cordoned = event["cordoned"] == true;
            let node = ClusterNode { instance: text(event, "instance").to_owned(), cordoned, wanted_cordoned: cordoned, ..ClusterNode::default() };
            self.cluster.insert(name, node);
            return;
        }
        let by_other = event["by"] == "other";
        let others: Vec<String> = self.cluster.iter().filter(|(is, node)| **is != name && node.cordoned && node.mark.is_some()).map(|(is, _)| is.clone()).collect();
        let Some(node) = self.cluster.get_mut(&name) else {
            return self.say(Rule::LogIsWhole, format!("`{kind}` of `{name}`, which is no node of the cluster"));
        };
        match kind {
            "node_cordoned" => {
                node.cordoned = true;
                if by_other {
                    node.wanted_cordoned = true;
                    return;
                }
                node.mark = event["mark"].as_str().map(str::to_owned);
                if !others.is_empty() {
                    self.say(Rule::OneClusterNodeAtATime, format!("{name} is cordoned while {} is", others.join(", ")));
                }
            }
            "node_uncordoned" => {
                node.cordoned = false;
                if by_other {
                    node.wanted_cordoned = false;
                    return;
                }
                let ours = node.mark.take().is_some();
                if !ours || node.wanted_cordoned {
                    self.say(Rule::OthersClosuresStay, format!("{name} is uncordoned, and it was somebody else who had cordoned it"));
                }
            }
            "pod_started" => drop(node.pods.insert(text(event, "pod").to_owned())),
            _ => drop(node.pods.remove(text(event, "pod"))),
        }
    }

    /// Events that happen to one node, and must name one.
    fn event_of_node(&mut self, kind: &str, event: &Value) {
        let name = text(event, "node").to_owned();
        let Some(node) = self.nodes.get_mut(&name) else {
            return self.say(Rule::LogIsWhole, format!("`{kind}` of `{name}`: not an event, or not a node"));
        };
        match kind {
            "service_disabled" => self.disabled(&name, event),
            "service_enabled" => self.enabled(&name, event),
            "reset_requested" => self.reset(&name, event),
            "rebuild_requested" => self.rebuild(&name, event),
            "image_written" => self.image(&name, event),
            // That the nova-compute of a node that runs falls silent is nobody's doing.
            "service_down" => node.up &= node.running,
            "service_up" => (node.up, node.running, node.crashed, node.down_by_us) = (true, true, false, false),
            "power_lost" => node.running = false,
            "node_crashed" => (node.running, node.crashed) = (false, true),
            "ticket_staged" => node.staged = Some(text(event, "token").to_owned()),
            "ticket_withdrawn" => node.staged = None,
            "boot_override" | "power_back" | "netbooted" | "installer_reported" | "disk_booted" | "came_up" => {}
            _ => self.say(Rule::LogIsWhole, format!("`{kind}` is not an event that is known here")),
        }
    }

    fn disabled(&mut self, name: &str, event: &Value) {
        let reason = Some(text(event, "reason").to_owned());
        let by_other = event["by"] == "other";
        let Some(node) = self.nodes.get_mut(name) else { return };
        let was_enabled = std::mem::replace(&mut node.enabled, false);
        node.reason.clone_from(&reason);
        if text(event, "reason").starts_with("AUTO: ") {
            // Nova's own hand, which would open it again: nobody wants it closed.
            return;
        }
        node.others_turn = by_other;
        let unheard = node.closed_by_other.is_some_and(|at| self.at - at < self.rules.look_is_good_for_ms);
        if by_other {
            node.closed_by_other = Some(self.at);
            node.wanted = (false, reason);
        } else if was_enabled {
            self.count_out(name);
        } else if unheard {
            // Their word is lost by ours.
            node.wanted = (true, None);
        }
    }

    fn enabled(&mut self, name: &str, event: &Value) {
        let by_other = event["by"] == "other";
        let Some(node) = self.nodes.get_mut(name) else { return };
        (node.enabled, node.reason, node.found_out) = (true, None, false);
        self.left.retain(|(left, _)| left != name);
        node.others_turn = by_other;
        if by_other {
            node.opened_by_other = Some(self.at);
            node.wanted = (true, None);
        } else if node.closed_by_other.is_some_and(|at| self.at - at < self.rules.look_is_good_for_ms) {
            // Nobody had looked since then.
            node.wanted = (true, None);
        } else if !node.wanted.0 {
            self.say(
                Rule::OthersClosuresStay,
                format!("{name} is enabled, and it was somebody else who had disabled it"),
            );
        }
    }

    /// Judged when one of ours goes out, not when one fails by itself.
    fn count_out(&mut self, name: &str) {
        let only_own = self.rules.only_own_count;
        let counts = |node: &Node| {
            let excused = only_own && (node.crashed || node.others_turn) && !node.down_by_us;
            // What was closed before we came is only out by our doing while we have it down.
            let out = if node.found_out { node.is_down() } else { node.is_out() };
            out && !excused
        };
        let out = self.nodes.iter().filter(|(is, node)| counts(node) || *is == name).map(|(name, _)| name.as_str());
        let out: Vec<&str> = out.collect();
        if out.len() > self.rules.out_max {
            let what = format!(
                "{name} is taken out of service as number {} of at most {}: {}",
                out.len(),
                self.rules.out_max,
                out.join(", ")
            );
            self.say(Rule::NotTooManyOut, what);
        }
    }

    /// What speaks against a reset of this node, or an image on it.
    fn objections(&mut self, name: &str, what: &str, event: &Value) {
        let mut there: BTreeSet<String> =
            self.places.iter().filter(|(_, at)| *at == name).map(|(id, _)| id.clone()).collect();
        there.extend(list(event, "instances"));
        if !there.is_empty() {
            let there: Vec<&str> = there.iter().map(String::as_str).collect();
            self.say(Rule::NothingIsLost, format!("{what} of {name} with {} on it", there.join(", ")));
        }
        let unknown = text(event, "unknown_guest");
        if !unknown.is_empty() {
            self.say(Rule::NothingIsLost, format!("{what} of {name} while {unknown} runs on it, which Nova does not know"));
        }
        // What we have asked for ourselves is known without the site's word; of all others, whoever moves them, only the site can tell.
        let mut on_their_way: BTreeSet<String> =
            self.moves.iter().filter(|(_, (_, from, _))| from == name).map(|(id, _)| id.clone()).collect();
        let just_opened = self.nodes.get(name).is_some_and(|node| self.is_opened_unheard(node));
        for one in event["touching"].as_array().into_iter().flatten() {
            let just_begun = one["since"].as_i64().is_some_and(|since| self.at - since < self.rules.look_is_good_for_ms);
            if !(just_opened && just_begun) {
                on_their_way.insert(text(one, "instance").to_owned());
            }
        }
        if !on_their_way.is_empty() {
            let on_their_way: Vec<&str> = on_their_way.iter().map(String::as_str).collect();
            self.say(
                Rule::NothingIsLost,
                format!("{what} of {name} while {} is on its way from or to it, or has not wholly left it", on_their_way.join(", ")),
            );
        }
    }

    /// Has somebody else opened it so recently that who had looked right before could not know?
    fn is_opened_unheard(&self, node: &Node) -> bool {
        node.others_turn && node.opened_by_other.is_some_and(|at| self.at - at < self.rules.look_is_good_for_ms)
    }

    fn must_be_closed(&mut self, name: &str, what: &str) {
        if self.nodes.get(name).is_some_and(|node| node.enabled && !self.is_opened_unheard(node)) {
            self.say(Rule::OnlyClosedNodesAreTaken, format!("{what} of {name}, which is in service"));
        }
    }

    fn reset(&mut self, name: &str, event: &Value) {
        self.objections(name, "a reset", event);
        self.must_be_closed(name, "a reset");
        let token = text(event, "token").to_owned();
        let again = self.rules.resets_again.get(name).copied().unwrap_or_default();
        let Some(node) = self.nodes.get_mut(name) else { return };
        // A BMC that said yes and did nothing has to be asked again.
        if event["obeyed"] == true {
            node.down_by_us = true;
            let resets = node.resets.entry(token.clone()).or_default();
            *resets += 1;
            if *resets > 1 + again {
                let what = format!("reset number {resets} of {name} for the order `{token}`");
                self.say(Rule::OneResetAnOrder, what);
            }
        }
        self.count_out(name);
    }

    /// Ironic was asked: one that it refused did nothing, and yet should not have been asked for.
    fn rebuild(&mut self, name: &str, event: &Value) {
        self.objections(name, "a rebuild", event);
        self.must_be_closed(name, "a rebuild");
        let token = text(event, "token").to_owned();
        let Some(node) = self.nodes.get_mut(name) else { return };
        if event["refused"].is_null() {
            node.down_by_us = true;
            let rebuilds = node.rebuilds.entry(token.clone()).or_default();
            *rebuilds += 1;
            if *rebuilds > 1 {
                let what = format!("rebuild number {rebuilds} of {name} for the order `{token}`");
                self.say(Rule::OneRebuildAnOrder, what);
            }
        }
        // Each try has an order of its own, `<workflow>-<fence>-<chance>`: a workflow has as many as an operator has asked for.
        let owner = |token: &str| token.rsplitn(3, '-').nth(2).unwrap_or_default().to_owned();
        let orders = self.nodes.get(name).map_or(0, |node| node.rebuilds.keys().filter(|other| owner(other) == owner(&token)).count());
        let again = self.rules.resets_again.get(name).copied().unwrap_or_default();
        if orders > 1 + again {
            self.say(Rule::OneRebuildAnOrder, format!("{name} is rebuilt by {orders} orders of {}, and nobody asked for it again", owner(&token)));
        }
        self.count_out(name);
    }

    fn image(&mut self, name: &str, event: &Value) {
        self.objections(name, "an image", event);
        // Whom somebody else opens while it is being installed, nobody could keep closed.
        if !self.nodes.get(name).is_some_and(|node| node.others_turn) {
            self.must_be_closed(name, "an image");
        }
        let token = text(event, "token").to_owned();
        let again = self.rules.resets_again.get(name).copied().unwrap_or_default();
        let Some(node) = self.nodes.get_mut(name) else { return };
        let images = node.images.entry(token.clone()).or_default();
        *images += 1;
        if *images > 1 + again {
            self.say(Rule::OneImageAnOrder, format!("the image of the order `{token}` is written to {name} once more"));
        }
    }

    fn end(&mut self) {
        let started = self.seq > 0;
        self.seq = 0;
        if !started {
            self.say(Rule::LogIsWhole, "it is empty".to_owned());
        }
        let mut said = Vec::new();
        let excused =
            |name: &String| self.rules.open_questions.contains(name) || self.rules.left_by_operators.contains(name);
        for (name, node) in self.nodes.iter().filter(|(name, _)| !excused(name)) {
            let is = (node.enabled, node.reason.clone());
            if is != node.wanted {
                let what = format!("{name} is {}, and was {}", service(&is), service(&node.wanted));
                said.push((Rule::LeftAsFound, what));
            }
            if node.is_down() && (!node.crashed || node.down_by_us) {
                said.push((Rule::LeftAsFound, format!("{name} is down")));
            }
            if let Some(token) = &node.staged {
                said.push((Rule::NoOrderStays, format!("the next netboot of {name} installs the order `{token}`")));
            }
        }
        for (name, node) in &self.cluster {
            // The mark of a node's workflow ends with that node's name.
            let asked = |mark: &str| self.rules.open_questions.iter().any(|asks| mark.ends_with(&format!(".{asks}")));
            let excused = node.mark.as_deref().is_some_and(asked);
            if node.cordoned != node.wanted_cordoned && !excused {
                said.push((Rule::LeftAsFound, format!("{name} of the cluster is left cordoned: {}, by {:?}", node.cordoned, node.mark)));
            }
        }
        for (rule, what) in said {
            self.say(rule, what);
        }
    }
}

fn service((enabled, reason): &(bool, Option<String>)) -> String {
    match (enabled, reason) {
        (true, _) => "enabled".to_owned(),
        (false, reason) => format!("disabled ({})", reason.as_deref().unwrap_or("no reason")),
    }
}
