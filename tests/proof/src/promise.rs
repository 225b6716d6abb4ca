//! What the owner of a site asks of a thousand rollouts, in the owner's words: no instance moved twice (beyond what is explained), none lost,
//! none left in another power state, no node left disabled by us without a question open.
//!
//! It reads the site's own log and the journals as plain JSON, and shares no code with what it judges.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::journals::Journals;

/// What the dry run says of instances that will have to move again.
const AGAIN: &str = " of them only on nodes that are renewed later, and move again then";

/// Begins the names of the instances that are made to try a node. They are no tenant's.
const CANARY: &str = "turnaround-canary-";

const A_MINUTE: i64 = 60_000;
/// A workflow chooses by a look that may be so old, in milliseconds, when its request reaches Nova: what a move that has failed since had taken was not
/// free then.
const A_LOOK: i64 = 10_000;
/// What fails where it can't be told which hosts have room for an instance.
const UNTOLD: [&str; 3] = ["could not list the hosts and what is free on them", "could not list the server groups", "could not ask Placement for hosts"];

/// A site before and after, and what people have said of it.
pub struct Site<'a> {
    pub log: &'a str,
    pub journals: &'a Journals,
    /// By node: vCPUs and MiB that it offers to instances.
    pub nodes: BTreeMap<String, (u64, u64)>,
    /// What the instances of this site take of that, each the same.
    pub instance: (u64, u64),
    /// By instance's name: as its tenant left it (`vm_state`), where that is to be looked at.
    pub found: BTreeMap<String, String>,
    /// By instance's id: its name, and how it is at the end.
    pub now: BTreeMap<String, (String, String)>,
    /// Nodes about which a question is open, or which an operator has said to leave as they are.
    pub asked_about: BTreeSet<String>,
}

/// What came of it, and how often each thing came about.
#[derive(Default)]
pub struct Verdict {
    pub against: Vec<String>,
    pub counts: BTreeMap<&'static str, u64>,
}

impl Verdict {
    fn count(&mut self, what: &'static str, times: u64) {
        if times > 0 {
            *self.counts.entry(what).or_default() += times;
        }
    }
}

/// One move of one instance that took place.
#[derive(Debug, Clone)]
struct Moved {
    from: String,
    to: String,
    /// When it was asked for, and how it was then.
    asked: Asked,
}

#[derive(Debug, Clone, Default)]
struct Asked {
    /// The host that was named.
    named: Option<String>,
    /// Hosts that were open, had room, and were not to be renewed after this.
    could_stay_on: Vec<String>,
    /// Hosts that were named before for the same move, and it came to nothing.
    named_in_vain: BTreeSet<String>,
    /// Since the beginning a host has been closed, has gone down or was filled, or was to be renewed before this one and was not: on it could have
    /// stayed what moves.
    a_host_was_lost: bool,
    /// Nobody had told for a minute what is free on the hosts.
    nothing_was_told: bool,
    /// Hosts that somebody else had opened in this very moment: whoever asked had looked before that.
    just_opened: BTreeSet<String>,
    /// The workflow that moved it, and its rollout.
    renewal: String,
    rollout: String,
}

/// Judges one seed. `dry_run` gives the lines of the dry run of the same order on the same site before it began, if it is needed.
pub fn judge(site: &Site<'_>, dry_run: impl FnOnce() -> Vec<Value>) -> Verdict {
    let mut verdict = Verdict::default();
    let story = Story::read(site);
    verdict.count("faults at the site", story.site_faults);
    verdict.against.clone_from(&story.strange);
    let again: Vec<(&String, &Vec<Moved>)> = story.moved.iter().filter(|(_, moves)| moves.len() > 1).collect();
    verdict.count("instances moved", story.moved.len() as u64);
    if !again.is_empty() {
        verdict.count("instances moved twice", again.len() as u64);
        moved_twice(&again, &foretold(&dry_run()), &mut verdict);
    }
    for id in story.all.iter().filter(|id| !site.now.contains_key(*id) && !story.deleted.contains(*id)) {
        verdict.against.push(format!("instance {id} is lost: it is nowhere, and nobody else has deleted it"));
    }
    other_states(site, &story, &mut verdict);
    for (node, reason) in story.disabled.iter().filter(|(node, _)| !site.asked_about.contains(*node)) {
        verdict.against.push(format!("{node} is left disabled by us (`{reason}`), and no question is open"));
    }
    let events = |wanted: &str| story.events.get(wanted).copied().unwrap_or_default();
    verdict.count("rollouts", story.rollouts);
    verdict.count("nodes renewed", story.renewed.len() as u64);
    verdict.count("questions asked", events("operator-asked"));
    verdict
}

/// By node: how many of its instances move again, by the dry run.
fn foretold(lines: &[Value]) -> BTreeMap<String, usize> {
    let number = |would: &str| would.split(AGAIN).next().and_then(|before| before.rsplit(' ').next()).and_then(|number| number.parse().ok());
    let said = lines.iter().filter(|line| text(line, "would").contains(AGAIN));
    said.map(|line| (text(line, "node").to_owned(), number(text(line, "would")).unwrap_or(0))).collect()
}

/// Each move but the last must have an explanation for why it did not last.
fn moved_twice(again: &[(&String, &Vec<Moved>)], foretold: &BTreeMap<String, usize>, verdict: &mut Verdict) {
    let mut left = foretold.clone();
    for (id, moves) in again {
        for (this, next) in moves.iter().zip(&moves[1..]) {
            let foretold = left.get_mut(&this.from).filter(|left| **left > 0);
            let why = if this.asked.rollout != next.asked.rollout {
                "moved again: for another rollout"
            } else if !this.asked.named_in_vain.is_empty() && this.asked.could_stay_on.iter().all(|host| this.asked.named_in_vain.contains(host)) {
                "moved again: Nova did not take the host on which it could stay"
            } else if !this.asked.named_in_vain.is_empty() {
                // By design: a host is named once, as the scheduler may know why it takes none of them.
                "moved again: Nova did not take the host that was named, and no other one was named"
            } else if this.asked.named.is_none() && this.asked.just_opened.contains(&this.to) {
                "moved again: somebody had opened the host on which it came in this very moment"
            } else if this.asked.nothing_was_told {
                "moved again: for a minute nobody had said what is free where"
            } else if this.asked.could_stay_on.is_empty() {
                match foretold {
                    Some(left) => {
                        *left -= 1;
                        "moved again: the dry run says so"
                    }
                    None if this.asked.a_host_was_lost => "moved again: the hosts on which it could stay had been closed or filled since the dry run",
                    // A fault of the dry run's, not of the move's.
                    None => "moved again: nowhere could it stay, which the dry run did not foresee",
                }
            } else {
                let what = format!(
                    "{id} is moved off {}, and then off {} again, although it could have stayed on {} ({:?} was named): nothing explains that",
                    this.from, this.to, this.asked.could_stay_on.join(", "), this.asked.named
                );
                verdict.against.push(what);
                continue;
            };
            verdict.count(why, 1);
        }
    }
}

fn other_states(site: &Site<'_>, story: &Story, verdict: &mut Verdict) {
    for (id, (name, now)) in &site.now {
        let Some(found) = site.found.get(name).filter(|found| *found != now) else { continue };
        // (One that ended in error may never have moved: then off which node it was to move.)
        let node_of = |asked: &AskedFor| story.renewals.iter().find(|renewal| renewal.id == asked.renewal).map(|renewal| &renewal.node);
        let was_to_leave = || story.asked_for.get(id).and_then(|all| all.last()).and_then(node_of);
        let from = story.moved.get(id).and_then(|moves| moves.last()).map(|moved| &moved.from).or_else(was_to_leave);
        // Only who was asked by the workflow that moved it, after that, and about this state of it. A later renewal, which finds it so, leaves it so.
        let is_told = |question: &Asking, asked: &AskedFor| {
            let of_state = |line: &String| line.contains(id.as_str()) && line.contains(now.strip_suffix('d').filter(|_| now == "resized").unwrap_or(now));
            question.workflow == asked.renewal && question.at >= asked.at && question.seen.iter().any(of_state)
        };
        let asked_for = story.asked_for.get(id).into_iter().flatten();
        if asked_for.into_iter().any(|asked| story.asked_about.iter().any(|question| is_told(question, asked))) {
            verdict.count("left in another state, and asked about", 1);
        } else if now == "resized" && from.is_some_and(|from| site.asked_about.contains(from)) {
            verdict.count("left half moved, as an operator left its node or is asked about it", 1);
        } else if from.is_some_and(|from| site.asked_about.contains(from)) {
            // Not good, and rare: a question about something else came first, and the answer was to leave all as it is.
            verdict.count("left in another state and not named, as an operator left its node or is asked about it", 1);
        } else {
            verdict.against.push(format!("{name} ({id}) was {found}, is left {now}, and nobody was asked about it"));
        }
    }
}

fn text<'a>(event: &'a Value, key: &str) -> &'a str {
    event[key].as_str().unwrap_or_default()
}

/// A workflow that renews one node.
struct Renewal {
    id: String,
    node: String,
    begun: i64,
    /// When it got the node; until then it waits for others that have it.
    turn: Option<i64>,
    /// When it ended well.
    renewed: Option<i64>,
    /// When it could not be told what is free on the hosts.
    untold: Vec<i64>,
    /// Its rollout, and all nodes of that.
    parent: String,
    rollout: BTreeSet<String>,
}

impl Renewal {
    /// Is it of `node`, and of the same rollout as `other`?
    fn is_of(&self, node: &str, other: &Renewal) -> bool {
        self.node == node && self.parent == other.parent
    }
}

/// A question of a workflow.
struct Asking {
    workflow: String,
    at: i64,
    seen: Vec<String>,
}

struct AskedFor {
    renewal: String,
    at: i64,
}

/// What the log and the journals tell.
#[derive(Default)]
struct Story {
    renewals: Vec<Renewal>,
    rollouts: u64,
    renewed: BTreeSet<String>,
    /// Entries of the journals, by what they are.
    events: BTreeMap<String, u64>,
    /// What operators were asked.
    asked_about: Vec<Asking>,
    /// By instance: the requests to move it.
    asked_for: BTreeMap<String, Vec<AskedFor>>,
    all: BTreeSet<String>,
    /// By others: what we delete ourselves is lost.
    deleted: BTreeSet<String>,
    /// Disabled by us, with the reason that we have left there.
    disabled: BTreeMap<String, String>,
    moved: BTreeMap<String, Vec<Moved>>,
    site_faults: u64,
    /// What nobody could explain.
    strange: Vec<String>,
}

/// A node as the log has it so far.
#[derive(Default)]
struct Node {
    enabled: bool,
    up: bool,
    /// The workflow that has closed it last, as its reason says.
    closed_by: String,
    /// When it was enabled last, if that was somebody else's doing.
    opened_by_other: Option<i64>,
}

impl Story {
    fn read(site: &Site<'_>) -> Story {
        let mut story = Story::default();
        story.read_journals(site.journals);
        let mut reader = Reader { site, nodes: BTreeMap::new(), places: BTreeMap::new(), left: BTreeMap::new(), requests: BTreeMap::new(), vain: BTreeMap::new(), went_to: BTreeMap::new(), fit_at_first: BTreeSet::new(), canaries: BTreeSet::new(), story: &mut story };
        for line in site.log.lines() {
            reader.learn_destination(&serde_json::from_str(line).unwrap_or_default());
        }
        for line in site.log.lines() {
            reader.event(&serde_json::from_str(line).unwrap_or_default());
        }
        story
    }

    fn read_journals(&mut self, journals: &Journals) {
        let mut orders: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for (id, entries) in journals {
            for (_, body) in entries {
                let entry: Value = serde_json::from_str(body).unwrap_or_default();
                *self.events.entry(text(&entry, "event").to_owned()).or_default() += 1;
                match (text(&entry, "event"), text(&entry, "kind")) {
                    ("operator-asked", _) => self.asked_about.push(Asking {
                        workflow: id.clone(),
                        at: entry["at"].as_i64().unwrap_or_default(),
                        seen: entry["question"]["seen"].as_array().into_iter().flatten().filter_map(|line| line.as_str().map(str::to_owned)).collect(),
                    }),
                    ("created", "node-os-rollout") => {
                        self.rollouts += 1;
                        let nodes = entry["input"]["nodes"].as_array().into_iter().flatten();
                        orders.insert(id, nodes.filter_map(|node| node.as_str().map(str::to_owned)).collect());
                    }
                    ("created", "node-os" | "node-os-ironic") => self.renewals.push(Renewal {
                        id: id.clone(),
                        node: text(&entry, "target").to_owned(),
                        begun: entry["at"].as_i64().unwrap_or_default(),
                        turn: None,
                        renewed: None,
                        untold: Vec::new(),
                        parent: text(&entry, "parent").to_owned(),
                        rollout: orders.get(text(&entry, "parent")).cloned().unwrap_or_default(),
                    }),
                    ("step-failed", _) if UNTOLD.iter().any(|call| body.contains(call)) => {
                        if let Some(renewal) = self.renewals.iter_mut().find(|renewal| renewal.id == *id) {
                            renewal.untold.extend(entry["at"].as_i64());
                        }
                    }
                    ("step-begun", _) if text(&entry, "step") == "close" => {
                        if let Some(renewal) = self.renewals.iter_mut().find(|renewal| renewal.id == *id) {
                            renewal.turn = entry["at"].as_i64();
                        }
                    }
                    ("ended", _) if text(&entry, "outcome") == "succeeded" => {
                        if let Some(renewal) = self.renewals.iter_mut().find(|renewal| renewal.id == *id) {
                            renewal.renewed = entry["at"].as_i64();
                            self.renewed.insert(id.clone());
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// The renewal that empties this node: the one that has closed it, or where that was somebody else, the newest that has come to its turn.
    fn renewal(&self, node: &str, closed_by: &str, at: i64) -> Option<&Renewal> {
        let turn = |renewal: &&Renewal| renewal.turn.filter(|turn| *turn <= at);
        let newest = || self.renewals.iter().filter(|renewal| renewal.node == node && turn(renewal).is_some()).max_by_key(turn);
        self.renewals.iter().find(|renewal| renewal.id == closed_by).or_else(newest)
    }

    /// Are instances that go to `host` now left in peace by the rollout of `renewal`? That another rollout has renewed it does not keep this one
    /// from renewing it again.
    fn lasts(&self, host: &str, renewal: &Renewal) -> bool {
        let renewed = |other: &Renewal| other.is_of(host, renewal) && other.renewed.is_some_and(|at| at <= renewal.begun);
        !renewal.rollout.contains(host) || self.renewals.iter().any(renewed)
    }
}

struct Reader<'a> {
    site: &'a Site<'a>,
    nodes: BTreeMap<String, Node>,
    /// Where each instance is.
    places: BTreeMap<String, String>,
    /// By host: when instances have left it, moved or deleted.
    left: BTreeMap<String, Vec<i64>>,
    /// By instance: the requests to move it off the node where it is that Nova has accepted or refused, newest last, each with when it came to nothing.
    requests: BTreeMap<String, Vec<(String, Asked, Option<i64>)>>,
    /// By renewal: hosts that were named in vain, how often.
    vain: BTreeMap<String, BTreeMap<String, u32>>,
    /// By request: the host that Nova chose or was told, as the end of it says.
    went_to: BTreeMap<String, String>,
    /// Hosts that were open at the beginning, with room for one more.
    fit_at_first: BTreeSet<String>,
    canaries: BTreeSet<String>,
    story: &'a mut Story,
}

impl Reader<'_> {
    fn learn_destination(&mut self, event: &Value) {
        if text(event, "kind") == "migration_ended"
            && let Some(to) = event["to"].as_str()
        {
            self.went_to.insert(text(event, "request").to_owned(), to.to_owned());
        }
    }

    fn event(&mut self, event: &Value) {
        let (node, instance) = (text(event, "node").to_owned(), text(event, "instance").to_owned());
        let by_other = event["by"] == "other";
        if text(event, "name").starts_with(CANARY) {
            self.canaries.insert(instance.clone());
        }
        if self.canaries.contains(&instance) {
            return;
        }
        match text(event, "kind") {
            "site_started" => self.started(event),
            "instance_created" => {
                self.story.all.insert(instance.clone());
                self.places.insert(instance, node);
            }
            "instance_deleted" => {
                if by_other {
                    self.story.deleted.insert(instance.clone());
                }
                if let Some(host) = self.places.remove(&instance) {
                    self.left.entry(host).or_default().extend(event["at"].as_i64());
                }
            }
            "service_disabled" => {
                self.story.disabled.remove(&node);
                // One that we have found closed, and give back so, has its reason again.
                if !by_other && text(event, "reason").starts_with("turnaround") {
                    self.story.disabled.insert(node.clone(), text(event, "reason").to_owned());
                }
                self.story.site_faults += u64::from(by_other);
                let closed = self.nodes.entry(node).or_default();
                closed.enabled = false;
                if by_other {
                    closed.closed_by.clear();
                } else if let Some((_, rest)) = text(event, "reason").split_once("turnaround:") {
                    rest.split(':').next().unwrap_or_default().clone_into(&mut closed.closed_by);
                }
            }
            "service_enabled" => {
                self.story.disabled.remove(&node);
                self.story.site_faults += u64::from(by_other);
                let node = self.nodes.entry(node).or_default();
                (node.enabled, node.opened_by_other) = (true, event["at"].as_i64().filter(|_| by_other));
            }
            "service_down" => self.nodes.entry(node).or_default().up = false,
            "service_up" => self.nodes.entry(node).or_default().up = true,
            "migration_requested" => self.requested(event),
            "migration_ended" => {
                let failed = matches!(text(event, "status"), "error" | "failed" | "cancelled");
                let request = text(event, "request");
                let known = self.requests.get_mut(&instance).and_then(|all| all.iter_mut().find(|(id, ..)| id == request));
                if let Some((_, asked, in_vain)) = known.filter(|_| failed) {
                    *in_vain = event["at"].as_i64();
                    self.story.site_faults += 1;
                    let asked = asked.clone();
                    self.named_in_vain(&asked);
                }
            }
            "instance_moved" => {
                self.places.insert(instance.clone(), text(event, "to").to_owned());
                self.left.entry(text(event, "from").to_owned()).or_default().extend(event["at"].as_i64());
                if let Some((_, asked, _)) = self.requests.remove(&instance).and_then(|mut all| all.pop()) {
                    let moved = Moved { from: text(event, "from").to_owned(), to: text(event, "to").to_owned(), asked };
                    self.story.moved.entry(instance).or_default().push(moved);
                }
            }
            "answer_lost" | "node_crashed" => self.story.site_faults += 1,
            "boot_override" => self.story.site_faults += u64::from(event["taken"] == false),
            "reset_requested" => self.story.site_faults += u64::from(event["obeyed"] == false),
            "script_ended" => self.story.site_faults += u64::from(event["code"] != 0 || event["did"] == false),
            _ => {}
        }
    }

    fn started(&mut self, event: &Value) {
        for node in event["nodes"].as_array().into_iter().flatten() {
            self.nodes.insert(text(node, "node").to_owned(), Node { enabled: node["enabled"] == true, up: true, ..Node::default() });
            for instance in node["instances"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                self.story.all.insert(instance.to_owned());
                self.places.insert(instance.to_owned(), text(node, "node").to_owned());
            }
        }
        let at = event["at"].as_i64().unwrap_or_default();
        self.fit_at_first = self.nodes.iter().filter(|(host, state)| state.enabled && self.has_room(host, at)).map(|(host, _)| host.clone()).collect();
    }

    fn requested(&mut self, event: &Value) {
        let (node, instance) = (text(event, "node").to_owned(), text(event, "instance").to_owned());
        let refused = !event["refused"].is_null();
        self.story.site_faults += u64::from(refused);
        let before = self.requests.entry(instance.clone()).or_default();
        let named_in_vain = before.iter().filter(|(.., in_vain)| in_vain.is_some()).filter_map(|(_, asked, _)| asked.named.clone()).collect();
        let at = event["at"].as_i64().unwrap_or_default();
        let mut asked = Asked { named: event["to"].as_str().map(str::to_owned), named_in_vain, ..Asked::default() };
        let closed_by = self.nodes.get(&node).map(|node| node.closed_by.as_str()).unwrap_or_default();
        if let Some(renewal) = self.story.renewal(&node, closed_by, at) {
            asked.renewal.clone_from(&renewal.id);
            asked.rollout.clone_from(&renewal.parent);
            asked.nothing_was_told = asked.named.is_none() && renewal.untold.iter().any(|untold| (A_MINUTE..5 * A_MINUTE).contains(&(at - untold)));
            let renewed_before = |host: &str| self.story.renewals.iter().any(|other| other.is_of(host, renewal) && other.begun <= renewal.begun);
            let lost = |(host, state): (&String, &Node)| {
                let was_to_last = *host != node && (!renewal.rollout.contains(host) || renewed_before(host));
                was_to_last && self.fit_at_first.contains(host) && !(state.enabled && state.up && self.has_room(host, at) && self.story.lasts(host, renewal))
            };
            asked.a_host_was_lost = self.nodes.iter().any(lost);
            let vain = |host: &str| self.vain.get(&renewal.id).and_then(|hosts| hosts.get(host)).copied().unwrap_or(0);
            let fits = |(host, state): &(&String, &Node)| **host != node && state.enabled && state.up && self.has_room(host, at) && self.story.lasts(host, renewal) && vain(host) < 2;
            let just_now = |(_, state): &(&String, &Node)| state.opened_by_other.is_some_and(|opened| at - opened < A_LOOK);
            asked.just_opened = self.nodes.iter().filter(just_now).map(|(host, _)| host.clone()).collect();
            asked.could_stay_on = self.nodes.iter().filter(fits).map(|(host, _)| host.clone()).collect();
        } else {
            self.story.strange.push(format!("a move of {instance} is asked for off {node}, which no workflow renews"));
        }
        self.story.asked_for.entry(instance.clone()).or_default().push(AskedFor { renewal: asked.renewal.clone(), at });
        if refused {
            self.named_in_vain(&asked);
        }
        self.requests.entry(instance).or_default().push((text(event, "request").to_owned(), asked, refused.then_some(at)));
    }

    /// The workflow is told of it, and needs not believe in that host any more once it has failed for two.
    fn named_in_vain(&mut self, asked: &Asked) {
        if let Some(host) = &asked.named {
            *self.vain.entry(asked.renewal.clone()).or_default().entry(host.clone()).or_default() += 1;
        }
    }

    /// For one more instance, also with all that is on its way there, or was there when whoever asks now may have looked. (Where a move goes that
    /// never ended is not known: it counts everywhere.)
    fn has_room(&self, host: &str, at: i64) -> bool {
        let Some(&(vcpus, memory)) = self.site.nodes.get(host) else { return false };
        let open = self.requests.iter().filter_map(|(instance, all)| Some((instance, all.last().filter(|(.., in_vain)| in_vain.is_none_or(|then| at - then < A_LOOK))?)));
        let comes = |(instance, (request, asked, _)): &(&String, &(String, Asked, Option<i64>))| {
            let to = asked.named.as_ref().or_else(|| self.went_to.get(request));
            to.is_none_or(|to| to == host) && self.places.get(*instance).is_none_or(|place| place != host)
        };
        let was_there = self.left.get(host).into_iter().flatten().filter(|left| at - *left < A_LOOK).count();
        let there = self.places.values().filter(|place| *place == host).count() + open.filter(comes).count() + was_there;
        let takes = there as u64 + 1;
        takes * self.site.instance.0 <= vcpus && takes * self.site.instance.1 <= memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::json;

    /// Three nodes, of which `a` and `b` are renewed together and `a` has the instance `i`; it is moved to `b`, and off that again.
    fn judged(change: impl FnOnce(&mut Vec<Value>, &mut Site<'_>), dry_run: Vec<Value>) -> Verdict {
        judged_with(change, |_| {}, dry_run)
    }

    fn judged_with(change: impl FnOnce(&mut Vec<Value>, &mut Site<'_>), write: impl FnOnce(&mut Journals), dry_run: Vec<Value>) -> Verdict {
        let node = |name: &str, instances: Value| json!({ "node": name, "enabled": true, "instances": instances });
        let closed = |node: &str| json!({ "kind": "service_disabled", "node": node, "reason": format!("turnaround:roll.{node}:found-enabled"), "by": "caller" });
        let asked = |node: &str, to: Value, at: i64| json!({ "kind": "migration_requested", "at": at, "instance": "i", "node": node, "to": to, "request": node, "refused": null });
        let moved = |from: &str, to: &str| json!({ "kind": "instance_moved", "instance": "i", "from": from, "to": to });
        let opened = |node: &str| json!({ "kind": "service_enabled", "node": node, "by": "caller" });
        let mut log = vec![
            json!({ "kind": "site_started", "nodes": [node("a", json!(["i"])), node("b", json!([])), node("c", json!([]))] }),
            closed("a"),
            asked("a", json!(null), 100),
            moved("a", "b"),
            opened("a"),
            closed("b"),
            asked("b", json!("a"), 200),
            moved("b", "a"),
            opened("b"),
        ];
        let entry = |body: Value| (String::new(), body.to_string());
        let renewal = |node: &str, at: i64| vec![entry(json!({ "event": "created", "kind": "node-os", "target": node, "parent": "roll", "at": at }))];
        let mut journals = Journals::from([
            ("roll".to_owned(), vec![entry(json!({ "event": "created", "kind": "node-os-rollout", "input": { "nodes": ["a", "b"] } }))]),
            ("roll.a".to_owned(), renewal("a", 50)),
            ("roll.b".to_owned(), renewal("b", 150)),
        ]);
        write(&mut journals);
        let mut site = Site {
            log: "",
            journals: &journals,
            nodes: ["a", "b", "c"].map(|node| (node.to_owned(), (8, 8))).into(),
            instance: (4, 4),
            found: BTreeMap::from([("one".to_owned(), "active".to_owned())]),
            now: BTreeMap::from([("i".to_owned(), ("one".to_owned(), "active".to_owned()))]),
            asked_about: BTreeSet::new(),
        };
        change(&mut log, &mut site);
        let log: String = log.iter().map(|event| format!("{event}\n")).collect();
        site.log = &log;
        judge(&site, || dry_run)
    }

    fn against(change: impl FnOnce(&mut Vec<Value>, &mut Site<'_>)) -> String {
        judged(change, Vec::new()).against.join("; ")
    }

    fn c_is_closed_by_others(log: &mut Vec<Value>) {
        log.insert(1, json!({ "kind": "service_disabled", "node": "c", "reason": "fan", "by": "other" }));
    }

    #[test]
    fn an_instance_that_moves_twice_although_it_could_have_stayed_elsewhere_is_against_the_promise() {
        let expected = "i is moved off a, and then off b again, although it could have stayed on c (None was named): nothing explains that";
        assert_eq!(against(|_, _| {}), expected);
        let again = |log: &mut Vec<Value>, _: &mut Site<'_>| c_is_closed_by_others(log);
        assert_eq!(judged(again, Vec::new()).counts["moved again: the hosts on which it could stay had been closed or filled since the dry run"], 1);
    }

    #[test]
    fn a_move_off_a_node_that_others_had_closed_is_of_the_renewal_whose_turn_it_is() {
        let judged = |turns: [(&str, i64); 2]| {
            let found_closed = |log: &mut Vec<Value>, _: &mut Site<'_>| log.retain(|event| event["node"] != "a" || event["kind"] == "migration_requested");
            let write = |journals: &mut Journals| {
                for (rollout, at) in turns {
                    let created = json!({ "event": "created", "kind": "node-os", "target": "a", "parent": rollout, "at": 50 }).to_string();
                    let begun = json!({ "event": "step-begun", "step": "close", "at": at }).to_string();
                    journals.insert(format!("{rollout}.a"), vec![(String::new(), created), (String::new(), begun)]);
                }
            };
            judged_with(found_closed, write, Vec::new())
        };
        // The other one waits until the first has moved it, at 100.
        assert_eq!(judged([("one", 60), ("roll", 150)]).counts["moved again: for another rollout"], 1);
        assert!(judged([("one", 150), ("roll", 60)]).against.concat().contains("nothing explains that"));
    }

    #[test]
    fn what_was_so_from_the_beginning_is_counted_as_what_the_dry_run_missed() {
        let small = |_: &mut Vec<Value>, site: &mut Site<'_>| site.nodes.extend([("c".to_owned(), (3, 8))]);
        assert_eq!(judged(small, Vec::new()).counts["moved again: nowhere could it stay, which the dry run did not foresee"], 1);
    }

    #[test]
    fn only_what_goes_to_a_host_fills_it() {
        // Another is on its way off `a` all the while, to where there is no room left then, or elsewhere.
        let other = |to: &str| {
            let asked = json!({ "kind": "migration_requested", "at": 90, "instance": "j", "node": "a", "to": to, "request": "j", "refused": null });
            against(move |log, site| {
                log.insert(2, asked);
                site.nodes.extend([("c".to_owned(), (4, 4))]);
            })
        };
        assert!(other("b").contains("could have stayed on c"), "{}", other("b"));
        assert_eq!(other("c"), "");
    }

    #[test]
    fn room_that_has_only_just_come_free_was_not_seen() {
        // `j` fills `c` until it is deleted or moved, so long before `i` is to be moved.
        let freed = |kind: &str, before: i64| {
            let left = json!({ "kind": kind, "at": 100 - before, "instance": "j", "node": "c", "from": "c", "to": "d" });
            against(move |log, site| {
                log[0]["nodes"][2]["instances"] = json!(["j"]);
                log.insert(2, left);
                site.nodes.extend([("c".to_owned(), (4, 4))]);
                site.now.insert("j".to_owned(), ("two".to_owned(), "active".to_owned()));
            })
        };
        for kind in ["instance_deleted", "instance_moved"] {
            assert!(freed(kind, A_LOOK).contains("could have stayed on c"), "{kind}: {}", freed(kind, A_LOOK));
            assert_eq!(freed(kind, A_LOOK - 1), "", "{kind}");
        }
    }

    #[test]
    fn only_a_question_of_its_renewal_after_its_move_and_about_its_state_excuses_it() {
        let told = |workflow: &str, at: i64, line: &str| {
            let question = json!({ "event": "operator-asked", "at": at, "question": { "text": "what now?", "seen": [line] } }).to_string();
            let stopped = |log: &mut Vec<Value>, site: &mut Site<'_>| {
                log.truncate(5);
                site.now.insert("i".to_owned(), ("one".to_owned(), "stopped".to_owned()));
            };
            let write = |journals: &mut Journals| journals.entry(workflow.to_owned()).or_default().push((String::new(), question));
            judged_with(stopped, write, Vec::new()).against.join("; ")
        };
        assert_eq!(told("roll.a", 101, "one (i): is still stopped on b"), "");
        for (workflow, at, line) in [("roll.b", 101, "one (i): is still stopped on b"), ("roll.a", 99, "one (i): is still stopped on b"), ("roll.a", 101, "one (i): no valid host")] {
            assert_eq!(told(workflow, at, line), "one (i) was active, is left stopped, and nobody was asked about it", "{workflow} {at} {line}");
        }
    }

    #[test]
    fn what_the_dry_run_foretold_explains_as_many_as_it_named() {
        let line = |count: u32| json!({ "node": "a", "step": "evacuate", "would": format!("move 1 instances off a; there is room for them elsewhere; {count}{AGAIN}") });
        let again = |log: &mut Vec<Value>, _: &mut Site<'_>| c_is_closed_by_others(log);
        assert_eq!(judged(again, vec![line(1)]).counts["moved again: the dry run says so"], 1);
        assert!(!judged(again, vec![line(0)]).counts.contains_key("moved again: the dry run says so"));
    }

    #[test]
    fn what_is_lost_in_another_state_or_left_closed_is_against_the_promise() {
        let once = |log: &mut Vec<Value>| log.truncate(5);
        assert_eq!(against(|log, _| once(log)), "");
        let lost = |log: &mut Vec<Value>, site: &mut Site<'_>| {
            once(log);
            site.now.clear();
        };
        assert_eq!(against(lost), "instance i is lost: it is nowhere, and nobody else has deleted it");
        let deleted_by = |who: &str| {
            let deleted = json!({ "kind": "instance_deleted", "instance": "i", "name": "one", "node": "b", "by": who });
            against(|log, site| {
                lost(log, site);
                log.push(deleted);
            })
        };
        assert_eq!(deleted_by("other"), "");
        assert_eq!(deleted_by("caller"), "instance i is lost: it is nowhere, and nobody else has deleted it");
        let stopped = |log: &mut Vec<Value>, site: &mut Site<'_>| {
            once(log);
            site.now.insert("i".to_owned(), ("one".to_owned(), "stopped".to_owned()));
        };
        assert_eq!(against(stopped), "one (i) was active, is left stopped, and nobody was asked about it");
        let closed = "a is left disabled by us (`turnaround:roll.a:found-enabled`), and no question is open";
        assert_eq!(against(|log, _| log.truncate(4)), closed);
        let asked = |log: &mut Vec<Value>, site: &mut Site<'_>| {
            log.truncate(4);
            site.asked_about.insert("a".to_owned());
        };
        assert_eq!(against(asked), "");
    }

    #[test]
    fn what_the_dry_run_foretells_is_read_from_its_own_words() {
        let line = |node: &str, would: &str| serde_json::json!({ "node": node, "step": "evacuate", "would": would, "problem": false });
        let lines = [
            line("gpu-01", &format!("move 5 instances off gpu-01: 5 live, 0 cold; there is room for them elsewhere; 12{AGAIN}")),
            line("gpu-02", "move 5 instances off gpu-02: 5 live, 0 cold; there is room for them elsewhere"),
        ];
        assert_eq!(foretold(&lines), BTreeMap::from([("gpu-01".to_owned(), 12)]));
    }
}
