//! Is there room elsewhere for what is to leave? Proved before the first move, so that a node isn't left half emptied.
//!
//! Where an instance goes is decided by Nova's scheduler, which knows of zones, groups, NUMA cells and devices too. Only what
//! certainly can't work is held back here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use turnaround_config::NodeName;

use super::class::{Class, classify};
use crate::engine::{AnswerEffect, Question, StepCx, StepError};
use crate::ports::{CANARY_NAME, GroupRule, Host, Instance, InstanceId, Migration, MigrationKind, MigrationState, PortError, PortErrorKind, Room, devices};
use crate::steps::close::is_being_renewed;
use crate::updates::{MoveRules, NodeOrder};

/// Placements that are tried out before it counts as undecided whether all fit.
// It only comes to trying where the room is tight. Each is a look at every host: some 20 ms in all with 1,000 of them. It is
// also how deep the search can go.
const PLACEMENTS_MAX: u32 = 2_000;

/// A host that was named for so many instances in vain is named no more while this node is emptied.
// Once may be the instance's own fault, twice is no accident; each costs a try of Nova's.
const NOT_TAKEN_MAX: u32 = 2;

/// What an instance with a device of a PCI alias is pinned by. Whether Placement knows such devices hangs on Nova's configuration.
const PCI_ALIAS: &str = "pci_passthrough:alias=";

/// What can be said of the room for the instances that are to leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Proof {
    /// All of them have a place.
    Room,
    /// Simply placed, the biggest first, these are left over; perhaps they fit otherwise.
    Undecided { left_over: Vec<String> },
    /// However they are placed, not all of them fit.
    NoRoom { why: Vec<String> },
}

impl Proof {
    /// For the dry run.
    pub(super) fn told(&self) -> String {
        match self {
            Proof::Room => "there is room for them elsewhere by vCPUs, memory, local disks, zones, devices and server groups".to_owned(),
            Proof::Undecided { left_over } => {
                format!("room elsewhere is tight, perhaps there is none for {}", left_over.join(", "))
            }
            Proof::NoRoom { why } => format!("NO ROOM elsewhere: {}", why.join("; ")),
        }
    }
}

/// Members of server groups that are looked at to know where they are. Nova's default quota is 10 for a group.
const MEMBERS_MAX: usize = 200;

/// The hosts to which something may be moved off a node.
#[derive(Debug)]
pub(super) struct Elsewhere {
    hosts: Vec<Host>,
    /// Those of them that are renewed later: what moves there has to move again.
    later: Vec<NodeName>,
    /// By what a flavour asks of Placement: the hosts that have it, with what is free there. Not there where nobody could say.
    fitting: BTreeMap<BTreeMap<String, String>, BTreeMap<String, BTreeMap<String, u64>>>,
    groups: Vec<Group>,
    /// By the zone: its hosts.
    zones: BTreeMap<String, BTreeSet<String>>,
    /// What nothing proves, one line each.
    unproven: Vec<String>,
    patience: Patience,
    kept_waiting: bool,
}

/// What is done about what nobody tells just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// It is asked again later.
    Waits,
    /// It stays unproven. (The hosts have to be told all the same.)
    GoesOn,
}

/// `task_state` of an instance that is moved, live or cold, until it is there.
const TASKS_OF_MOVES: [&str; 5] = ["migrating", "resize_prep", "resize_migrating", "resize_migrated", "resize_finish"];

/// A server group with a hard rule that has members among those that are to leave.
#[derive(Debug, Clone)]
struct Group {
    rule: GroupRule,
    members: BTreeSet<InstanceId>,
    leaving: BTreeSet<InstanceId>,
    /// By host: how many of its other members are there.
    others: BTreeMap<String, u32>,
    /// One of them is on its way to another host.
    moving: bool,
}

impl Elsewhere {
    pub(super) async fn look(cx: &StepCx<'_>, order: &NodeOrder, leaving: &[&Instance], patience: Patience) -> Result<Elsewhere, StepError> {
        let mut hosts = cx.ports.compute.hosts().await?;
        hosts.retain(|host| host.enabled && host.up && host.name != order.node.as_str());
        let mut elsewhere = Elsewhere { hosts, later: order.later.clone(), patience, ..Elsewhere::unknown() };
        for asks in leaving.iter().map(|instance| &instance.asks).filter(|asks| !asks.is_empty()) {
            if !elsewhere.fitting.contains_key(asks)
                && let Some(fitting) = elsewhere.told(cx.ports.compute.fitting(asks).await)?
            {
                elsewhere.fitting.insert(asks.clone(), fitting);
            }
        }
        elsewhere.look_at_groups(cx, order, leaving).await?;
        if leaving.iter().any(|instance| instance.zone.is_some())
            && let Some(zones) = elsewhere.told(cx.ports.compute.zones().await)?
        {
            elsewhere.zones = zones;
        }
        // (It only leaves something unproven, which only a dry run tells.)
        let told = if cx.begun().is_none() { elsewhere.told(cx.ports.instances.device_ports(&order.node).await)? } else { None };
        let ports = told.unwrap_or_default();
        let with_ports = leaving.iter().filter_map(|instance| Some(format!("{} ({})", instance.name, ports.get(&instance.id)?.join(", "))));
        let with_ports: Vec<String> = with_ports.collect();
        if !with_ports.is_empty() {
            elsewhere.unproven.push(format!("that another host has a device for the ports of {}: nobody tells how many are free", with_ports.join(", ")));
        }
        let aliases = |instance: &&Instance| instance.pinned_by.iter().filter(|pin| pin.starts_with(PCI_ALIAS)).cloned().collect::<Vec<_>>();
        let with_alias: Vec<String> = leaving
            .iter()
            .filter(|instance| !aliases(instance).is_empty())
            .map(|instance| format!("{} ({})", instance.name, aliases(instance).join(", ")))
            .collect();
        if !with_alias.is_empty() {
            elsewhere.unproven.push(format!("that another host has a device for {}: Placement does not tell of PCI aliases", with_alias.join(", ")));
        }
        Ok(elsewhere)
    }

    /// Nothing is known: nothing is chosen.
    pub(super) fn unknown() -> Elsewhere {
        Elsewhere {
            hosts: Vec::new(),
            later: Vec::new(),
            fitting: BTreeMap::new(),
            groups: Vec::new(),
            zones: BTreeMap::new(),
            unproven: Vec::new(),
            patience: Patience::Waits,
            kept_waiting: false,
        }
    }

    /// Was something not told that may be told later?
    pub(super) fn is_kept_waiting(&self) -> bool {
        self.kept_waiting
    }

    /// What may be told later is asked again, while there is patience. What won't be (for want of rights, or of the API) only leaves something unproven.
    fn told<T>(&mut self, told: Result<T, PortError>) -> Result<Option<T>, StepError> {
        match told {
            Ok(told) => Ok(Some(told)),
            Err(error) if error.kind == PortErrorKind::Unavailable && self.patience == Patience::Waits => Err(error.into()),
            Err(error) => {
                self.kept_waiting |= error.kind == PortErrorKind::Unavailable;
                self.unproven.push(StepError::from(error).chain());
                Ok(None)
            }
        }
    }

    async fn look_at_groups(&mut self, cx: &StepCx<'_>, order: &NodeOrder, leaving: &[&Instance]) -> Result<(), StepError> {
        let Some(groups) = self.told(cx.ports.instances.groups().await)? else { return Ok(()) };
        let mut looked_at = 0;
        for group in groups {
            let ours: BTreeSet<InstanceId> = leaving.iter().map(|instance| instance.id.clone()).filter(|id| group.members.contains(id)).collect();
            if ours.is_empty() {
                continue;
            }
            let names: Vec<&str> = leaving.iter().filter(|instance| ours.contains(&instance.id)).map(|instance| instance.name.as_str()).collect();
            if group.rule == GroupRule::Affinity {
                // As read in Nova's scheduler: whoever leaves may only go to where the group is, and that is also the host that it is to leave.
                let what = "that Nova moves them one by one, as it must";
                self.unproven.push(format!("{what}: {} are to stay on one host by their server group {} (affinity)", names.join(", "), group.name));
            }
            let is_small = looked_at + group.members.len() <= MEMBERS_MAX;
            let (mut others, mut moving): (BTreeMap<String, u32>, bool) = (BTreeMap::new(), false);
            if is_small {
                looked_at += group.members.len();
                for id in group.members.iter().filter(|id| !ours.contains(*id)) {
                    let Some(Some(other)) = self.told(cx.ports.instances.get(id).await)? else { continue };
                    moving |= other.task_state.as_deref().is_some_and(|task| TASKS_OF_MOVES.contains(&task));
                    if let Some(host) = other.host.filter(|host| *host != order.node.as_str()) {
                        *others.entry(host).or_default() += 1;
                    }
                }
            } else {
                self.unproven.push(format!("that server group {} lets {} onto another host: it has {} members", group.name, names.join(", "), group.members.len()));
            }
            self.groups.push(Group { rule: group.rule, members: group.members.into_iter().collect(), leaving: ours, others, moving });
        }
        Ok(())
    }

    /// Has another of a group of its with a hard rule been sent somewhere, and has not arrived? `under_way` says so of those of this node.
    // Two of them that are begun at the same moment by two nodes' workflows are not seen: then Nova's own check on the host is what is left.
    pub(super) fn keeps_apart(&self, id: &InstanceId, under_way: impl Fn(&InstanceId) -> bool) -> bool {
        let mut groups = self.groups.iter().filter(|group| group.members.contains(id));
        groups.any(|group| group.moving || group.members.iter().any(|other| other != id && under_way(other)))
    }

    /// Is there enough for all of `leaving`?
    pub(super) fn prove(&self, leaving: &[&Instance]) -> Proof {
        Puzzle::new(self, leaving, |_| true).judge()
    }

    /// Will there be enough for all of `leaving` once `hosts` take instances again?
    pub(super) fn may_have_room_with(&self, hosts: &[Host], leaving: &[&Instance]) -> bool {
        let (zones, fitting, groups) = (self.zones.clone(), self.fitting.clone(), self.groups.clone());
        let with = Elsewhere { hosts: self.hosts.iter().chain(hosts).cloned().collect(), zones, fitting, groups, ..Elsewhere::unknown() };
        !matches!(with.prove(leaving), Proof::NoRoom { .. })
    }

    /// For the dry run: what the proof says nothing of.
    pub(super) fn unproven(&self) -> Option<String> {
        (!self.unproven.is_empty()).then(|| format!("NOT proven: {}", self.unproven.join("; ")))
    }

    fn lasts(&self, host: &Host) -> bool {
        !self.later.iter().any(|node| node.as_str() == host.name)
    }

    /// So many of `leaving` find no room but on nodes that are renewed later.
    pub(super) fn move_again(&self, leaving: &[&Instance]) -> usize {
        let puzzle = Puzzle::new(self, leaving, |host| self.lasts(host));
        puzzle.first_fit().iter().map(|need| need.instances.len()).sum()
    }

    /// The host with the most room on which `instance` can stay for the rest of the rollout; what it takes is taken from what is free there. None
    /// where there is none, or where all are as good: then the choice is the scheduler's, which knows more than we do. A host that has not taken
    /// one instance comes after the others, one that has not taken [`NOT_TAKEN_MAX`] not at all.
    pub(super) fn choose(&mut self, instance: &Instance, not_taken_by: &BTreeMap<String, u32>) -> Option<String> {
        if self.hosts.iter().all(|host| self.lasts(host)) {
            return None;
        }
        let not_taken = |host: &Host| not_taken_by.get(&host.name).copied().unwrap_or(0);
        let puzzle = Puzzle::new(self, &[instance], |host| self.lasts(host) && not_taken(host) < NOT_TAKEN_MAX);
        let need = puzzle.needs.first()?;
        let fit = (0..self.hosts.len()).filter(|&host| puzzle.holds(&puzzle.free, host, need));
        let best = fit.max_by_key(|&host| (Reverse(not_taken(&self.hosts[host])), self.hosts[host].free, host))?;
        self.takes(instance, best);
        Some(self.hosts[best].name.clone())
    }

    /// It will be there.
    fn takes(&mut self, instance: &Instance, host: usize) {
        let host = &mut self.hosts[host];
        host.free = host.free.without(instance.takes);
        if let Some(left) = self.fitting.get_mut(&instance.asks).and_then(|fitting| fitting.get_mut(&host.name)) {
            take(left, &devices(&instance.asks));
        }
        for group in self.groups.iter_mut().filter(|group| group.leaving.contains(&instance.id)) {
            group.leaving.remove(&instance.id);
            *group.others.entry(host.name.clone()).or_default() += 1;
        }
    }
}

/// A node that was closed before this one, and whose name comes first, is given so long to begin with its moves: both may have been closed at the same moment.
pub(super) const BEGINS_WITHIN: Duration = Duration::from_secs(2 * 60);

/// Other nodes that are being renewed just now, of whichever rollout: closed by us, and not left so by an operator. One that has neither begun to move
/// nor is empty (it waits, or asks) is none of them.
#[derive(Debug, Default)]
pub(super) struct Others {
    /// They take instances again once they are back: with what is free there then.
    pub(super) hosts: Vec<Host>,
    /// What is still to leave them.
    pub(super) leaving: Vec<Instance>,
    /// There are more, of which it can't be told now whether they have begun.
    pub(super) undecided: bool,
}

impl Others {
    pub(super) async fn look(cx: &StepCx<'_>, order: &NodeOrder) -> Result<Others, StepError> {
        let mut others = Others::default();
        let new = cx.begun().is_some_and(|begun| cx.now().since(begun) < BEGINS_WITHIN);
        for mut host in cx.ports.compute.hosts().await?.into_iter().filter(|host| !host.enabled && host.name != order.node.as_str()) {
            // (A host with a name that is none of ours is no node of ours.)
            let Ok(node) = host.name.parse::<NodeName>() else { continue };
            let service = match cx.ports.compute.service(&node).await {
                Ok(service) => service,
                Err(error) if matches!(error.kind, PortErrorKind::NotFound | PortErrorKind::Refused { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            if !is_being_renewed(service.disabled_reason.as_deref(), cx.id) {
                continue;
            }
            let (mut on_node, moving) = match (cx.ports.instances.on(&node).await, cx.ports.instances.moving(&node).await) {
                (Ok(on_node), Ok(moving)) => (on_node, moving),
                (Err(error), _) | (_, Err(error)) if error.kind == PortErrorKind::Unavailable => return Err(error.into()),
                // What is wrong with another node is no hindrance here.
                (Err(_), _) | (_, Err(_)) => continue,
            };
            // One that is renewed already is tried out.
            on_node.retain(|one| !one.name.starts_with(CANARY_NAME));
            let away = |one: &Migration| {
                one.state == MigrationState::InProgress && matches!(one.kind, MigrationKind::Live | MigrationKind::Cold) && one.source.as_deref() == Some(node.as_str())
            };
            let has_begun = on_node.is_empty() || moving.iter().any(away);
            let begins = new && node < order.node;
            if !(has_begun || begins) {
                others.undecided = true;
                continue;
            }
            // What moves already, too: Nova counts it where it goes only once it has chosen.
            on_node.retain(|one| matches!(classify(one, order.rules.move_rules()), Class::Move(_) | Class::Wait { .. }));
            for Room { vcpus, memory_mb, disk_gb } in on_node.iter().map(|one| one.takes) {
                host.free.vcpus += vcpus;
                host.free.memory_mb += memory_mb;
                host.free.disk_gb = host.free.disk_gb.map(|free| free + disk_gb.unwrap_or(0));
            }
            others.leaving.extend(on_node);
            others.hosts.push(host);
        }
        Ok(others)
    }

    pub(super) fn names(&self) -> String {
        self.hosts.iter().map(|host| host.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// Those of `on_node` that can be moved, and take anything.
pub(super) fn leaving<'a>(on_node: &'a [Instance], rules: MoveRules<'_>) -> Vec<&'a Instance> {
    let moves = |instance: &&Instance| matches!(classify(instance, rules), Class::Move(_)) && instance.takes != Room::default();
    on_node.iter().filter(moves).collect()
}

pub(super) fn question(node: &NodeName, why: &[String]) -> Question {
    let mut question = Question::new(format!("there is no room elsewhere for all that is to leave {node}, and nothing was moved yet: what now?"));
    for line in why {
        question = question.seen(line.clone());
    }
    question
        .answer("retry", AnswerEffect::Retry, "looks for room again, after you have made some or opened another host")
        .answer("unwind", AnswerEffect::Unwind, format!("gives {node} back as it was found"))
}

/// Instances that must go to one host together: most of them one.
#[derive(Debug, Clone)]
struct Need<'a> {
    instances: Vec<&'a Instance>,
    takes: Room,
    devices: BTreeMap<String, u64>,
    /// By host: may it go there at all?
    may: Vec<bool>,
    /// Groups, by their place, of which at most so many may be on a host.
    apart: Vec<(usize, u32)>,
}

/// What is left of a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Free {
    room: Room,
    /// Of those devices that somebody asks for.
    devices: BTreeMap<String, u64>,
    /// Of each group, how many members are there.
    members: Vec<u32>,
}

/// Who is to leave, and what is free where.
struct Puzzle<'a> {
    hosts: &'a [Host],
    /// The biggest first.
    needs: Vec<Need<'a>>,
    free: Vec<Free>,
}

fn take(left: &mut BTreeMap<String, u64>, need: &BTreeMap<String, u64>) {
    for (class, amount) in need {
        left.entry(class.clone()).and_modify(|left| *left = left.saturating_sub(*amount));
    }
}

impl<'a> Puzzle<'a> {
    fn new(elsewhere: &'a Elsewhere, leaving: &[&'a Instance], usable: impl Fn(&Host) -> bool) -> Puzzle<'a> {
        let hosts = elsewhere.hosts.as_slice();
        let is_in_zone = |host: &Host, instance: &Instance| {
            let zone = instance.zone.as_ref().and_then(|zone| elsewhere.zones.get(zone));
            zone.is_none_or(|hosts| hosts.contains(&host.name))
        };
        let fits = |host: &Host, instance: &Instance| is_in_zone(host, instance) && elsewhere.fitting.get(&instance.asks).is_none_or(|fitting| fitting.contains_key(&host.name));
        let need = |instance: &&'a Instance| Need {
            instances: vec![*instance],
            takes: instance.takes,
            devices: if elsewhere.fitting.contains_key(&instance.asks) { devices(&instance.asks) } else { BTreeMap::new() },
            may: hosts.iter().map(|host| usable(host) && fits(host, instance)).collect(),
            apart: Vec::new(),
        };
        let mut needs: Vec<Need<'a>> = leaving.iter().map(need).collect();
        for (place, group) in elsewhere.groups.iter().enumerate() {
            match group.rule {
                GroupRule::AntiAffinity { max_on_a_host } => {
                    let members = |need: &&mut Need<'_>| need.instances.iter().any(|one| group.leaving.contains(&one.id));
                    needs.iter_mut().filter(members).for_each(|need| need.apart.push((place, max_on_a_host)));
                }
                GroupRule::Affinity => together(&mut needs, hosts, group),
            }
        }
        needs.sort_by_key(|need| Reverse(need.takes));
        let free = |host: &Host| Free {
            room: host.free,
            devices: free_devices(elsewhere, host),
            members: elsewhere.groups.iter().map(|group| group.others.get(&host.name).copied().unwrap_or(0)).collect(),
        };
        Puzzle { hosts, free: hosts.iter().map(free).collect(), needs }
    }

    fn holds(&self, free: &[Free], host: usize, need: &Need<'_>) -> bool {
        let free = &free[host];
        need.may[host]
            && free.room.holds(need.takes)
            && need.devices.iter().all(|(class, amount)| free.devices.get(class).is_some_and(|left| left >= amount))
            && need.apart.iter().all(|(group, most)| free.members[*group] < *most)
    }

    fn judge(mut self) -> Proof {
        let nowhere = |need: &&Need<'_>| !(0..self.free.len()).any(|host| self.holds(&self.free, host, need));
        let lost: Vec<String> = self.needs.iter().filter(nowhere).map(|need| format!("{} on no other host", self.described(need, "fits", "fit"))).collect();
        if !lost.is_empty() {
            return Proof::NoRoom { why: with_most_room(lost, self.hosts) };
        }
        let left_over: Vec<Need<'_>> = self.first_fit().into_iter().cloned().collect();
        if left_over.is_empty() {
            return Proof::Room;
        }
        let exceeds = |of: fn(&Room) -> u64| {
            let needed: u64 = self.needs.iter().map(|need| of(&need.takes)).sum();
            needed > self.free.iter().map(|free| of(&free.room)).fold(0, u64::saturating_add)
        };
        // (A host of whose disk nothing is said has any amount.)
        let needs_disk: u64 = self.needs.iter().filter_map(|need| need.takes.disk_gb).sum();
        let disk: Option<u64> = self.free.iter().map(|free| free.room.disk_gb).sum();
        let placed = if exceeds(|room| room.memory_mb) || exceeds(|room| room.vcpus) || disk.is_some_and(|free| needs_disk > free) {
            Some(false)
        } else {
            let mut free = std::mem::take(&mut self.free);
            self.place(0, &mut free, &mut 0)
        };
        match placed {
            Some(true) => Proof::Room,
            None => Proof::Undecided { left_over: left_over.iter().flat_map(|need| &need.instances).map(|instance| instance.name.clone()).collect() },
            Some(false) => {
                let line = |need: &Need<'_>| format!("{} no room once the bigger ones have theirs", self.described(need, "finds", "find"));
                Proof::NoRoom { why: with_most_room(left_over.iter().map(line).collect(), self.hosts) }
            }
        }
    }

    /// What is left over if each goes to the first host that holds it.
    fn first_fit(&self) -> Vec<&Need<'a>> {
        let mut free = self.free.clone();
        let mut left_over = Vec::new();
        for need in &self.needs {
            match (0..free.len()).find(|&host| self.holds(&free, host, need)) {
                Some(host) => free[host] = free[host].without(need),
                None => left_over.push(need),
            }
        }
        left_over
    }

    /// Can all from the `first` on be placed? Every way is tried; None where that takes too long.
    fn place(&self, first: usize, free: &mut [Free], tried: &mut u32) -> Option<bool> {
        let Some(need) = self.needs.get(first) else { return Some(true) };
        // Two hosts with the same left, to which the same may go, are the same.
        let mut alike = BTreeSet::new();
        for host in 0..free.len() {
            let before = free[host].clone();
            let may: Vec<bool> = self.needs[first..].iter().map(|need| need.may[host]).collect();
            if !self.holds(free, host, need) || !alike.insert((before.clone(), may)) {
                continue;
            }
            *tried += 1;
            if *tried > PLACEMENTS_MAX {
                return None;
            }
            free[host] = before.without(need);
            let placed = self.place(first + 1, free, tried);
            free[host] = before;
            if placed != Some(false) {
                return placed;
            }
        }
        Some(false)
    }

    fn described(&self, need: &Need<'_>, one: &str, more: &str) -> String {
        let Room { vcpus, memory_mb, disk_gb } = need.takes;
        let size = match disk_gb {
            Some(disk) => format!("{vcpus} vCPUs, {memory_mb} MiB and {disk} GB of disk"),
            None => format!("{vcpus} vCPUs and {memory_mb} MiB"),
        };
        let names: Vec<String> = need.instances.iter().map(|instance| format!("{} ({})", instance.name, instance.id)).collect();
        let wants: Vec<String> = need.instances.iter().flat_map(|instance| &instance.asks).map(|(key, value)| format!("{key}={value}")).collect();
        let mut besides = String::new();
        if !need.devices.is_empty() || !wants.is_empty() {
            besides = format!(" and asks for {}", wants.join(", "));
        }
        let zones: BTreeSet<&str> = need.instances.iter().filter_map(|instance| instance.zone.as_deref()).collect();
        if !zones.is_empty() {
            besides += &format!(", bound to zone {}", zones.into_iter().collect::<Vec<_>>().join(" and to "));
        }
        if !need.apart.is_empty() {
            besides += ", and has to keep apart from others of its server group";
        }
        match names.as_slice() {
            [name] => format!("{name}, which takes {size}{besides}, {one}"),
            _ => format!("{}, which have to stay together, take {size}{besides}, and {more}", names.join(" and ")),
        }
    }
}

/// Makes one of those of the group that are to leave, which may only go to where its others are, if there are any.
fn together(needs: &mut Vec<Need<'_>>, hosts: &[Host], group: &Group) {
    let (mut bound, apart): (Vec<_>, Vec<_>) =
        std::mem::take(needs).into_iter().partition(|need| need.instances.iter().any(|one| group.leaving.contains(&one.id)));
    *needs = apart;
    let Some(mut all) = bound.pop() else { return };
    for need in bound {
        all.instances.extend(need.instances);
        all.takes = all.takes.with(need.takes);
        for (class, amount) in need.devices {
            *all.devices.entry(class).or_insert(0) += amount;
        }
        all.may.iter_mut().zip(need.may).for_each(|(may, also)| *may &= also);
        all.apart.extend(need.apart);
    }
    all.instances.sort_by(|one, other| one.name.cmp(&other.name));
    if !group.others.is_empty() {
        all.may.iter_mut().zip(hosts).for_each(|(may, host)| *may &= group.others.contains_key(&host.name));
    }
    needs.push(all);
}

/// By class: what is free on `host` of the devices that anybody asks for, by whoever has said most.
fn free_devices(elsewhere: &Elsewhere, host: &Host) -> BTreeMap<String, u64> {
    let mut devices: BTreeMap<String, u64> = BTreeMap::new();
    for (class, free) in elsewhere.fitting.values().filter_map(|fitting| fitting.get(&host.name)).flatten() {
        let most = devices.entry(class.clone()).or_insert(0);
        *most = (*most).max(*free);
    }
    devices
}

impl Free {
    fn without(&self, need: &Need<'_>) -> Free {
        let mut left = self.clone();
        left.room = left.room.without(need.takes);
        take(&mut left.devices, &need.devices);
        for (group, _) in &need.apart {
            left.members[*group] += 1;
        }
        left
    }
}

fn with_most_room(mut lines: Vec<String>, hosts: &[Host]) -> Vec<String> {
    lines.push(match hosts.iter().max_by_key(|host| host.free) {
        Some(Host { name, free: Room { vcpus, memory_mb, disk_gb }, .. }) => {
            let disk = disk_gb.map_or_else(String::new, |disk| format!(", {disk} GB of disk"));
            format!("of the {} other hosts that are enabled and up, {name} has most memory free: {memory_mb} MiB{disk}, and {vcpus} vCPUs", hosts.len())
        }
        None => "no other host is enabled and up".to_owned(),
    });
    lines
}

impl Room {
    fn holds(self, need: Room) -> bool {
        let has_disk = self.disk_gb.zip(need.disk_gb).is_none_or(|(free, need)| free >= need);
        self.vcpus >= need.vcpus && self.memory_mb >= need.memory_mb && has_disk
    }

    fn with(self, more: Room) -> Room {
        let disk_gb = if self.disk_gb.or(more.disk_gb).is_some() { Some(self.disk_gb.unwrap_or(0) + more.disk_gb.unwrap_or(0)) } else { None };
        Room { vcpus: self.vcpus + more.vcpus, memory_mb: self.memory_mb + more.memory_mb, disk_gb }
    }

    fn without(self, need: Room) -> Room {
        let disk_gb = self.disk_gb.map(|free| free - need.disk_gb.unwrap_or(0));
        Room { vcpus: self.vcpus - need.vcpus, memory_mb: self.memory_mb - need.memory_mb, disk_gb }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::InstanceId;

    fn room(vcpus: u64, memory_mb: u64) -> Room {
        Room { vcpus, memory_mb, disk_gb: None }
    }

    /// Instances `i0`, `i1`, ... that take so many vCPUs and so much memory.
    fn instances(sizes: &[(u64, u64)]) -> Vec<Instance> {
        let instance = |(place, &(vcpus, memory_mb)): (usize, &(u64, u64))| Instance {
            id: InstanceId(format!("{place}")),
            name: format!("i{place}"),
            project: "tenant-a".to_owned(),
            host: None,
            vm_state: "active".to_owned(),
            task_state: None,
            fault: None,
            locked: false,
            takes: room(vcpus, memory_mb),
            zone: None,
            asks: BTreeMap::new(),
            flavor: String::new(),
            pinned_by: Vec::new(),
            owner_wants: None,
        };
        sizes.iter().enumerate().map(instance).collect()
    }

    fn judged(sizes: &[(u64, u64)], free: &[(u64, u64)]) -> Proof {
        let host = |(place, &(vcpus, memory_mb)): (usize, &(u64, u64))| Host {
            name: format!("h{place}"),
            enabled: true,
            up: true,
            free: room(vcpus, memory_mb),
        };
        let hosts: Vec<Host> = free.iter().enumerate().map(host).collect();
        let elsewhere = Elsewhere { hosts, ..Elsewhere::unknown() };
        elsewhere.prove(&instances(sizes).iter().collect::<Vec<_>>())
    }

    #[test]
    fn what_fits_on_no_host_is_named_with_the_most_that_is_free() {
        let expected = [
            "i1 (1), which takes 8 vCPUs and 100 MiB, fits on no other host",
            "of the 2 other hosts that are enabled and up, h1 has most memory free: 900 MiB, and 4 vCPUs",
        ];
        let why = expected.map(str::to_owned).to_vec();
        assert_eq!(judged(&[(1, 10), (8, 100)], &[(4, 800), (4, 900)]), Proof::NoRoom { why });
        assert_eq!(judged(&[(1, 10), (8, 100)], &[(4, 800), (8, 100)]), Proof::Room, "exactly");
    }

    #[test]
    fn without_another_host_there_is_no_room() {
        let why = vec!["i0 (0), which takes 1 vCPUs and 1 MiB, fits on no other host".to_owned(), "no other host is enabled and up".to_owned()];
        assert_eq!(judged(&[(1, 1)], &[]), Proof::NoRoom { why });
    }

    #[test]
    fn what_fits_one_by_one_may_not_fit_at_once() {
        let left_over = |proof: Proof| match proof {
            Proof::NoRoom { why } => why[0].clone(),
            Proof::Room | Proof::Undecided { .. } => panic!("{proof:?}"),
        };
        // Too much memory in all; enough of it, but in pieces; too few processors.
        let finds_none = "finds no room once the bigger ones have theirs";
        assert_eq!(left_over(judged(&[(1, 6), (1, 5)], &[(9, 10)])), format!("i1 (1), which takes 1 vCPUs and 5 MiB, {finds_none}"));
        assert_eq!(left_over(judged(&[(1, 2), (1, 2), (1, 2)], &[(9, 3), (9, 3)])), format!("i2 (2), which takes 1 vCPUs and 2 MiB, {finds_none}"));
        assert_eq!(left_over(judged(&[(3, 1), (3, 1)], &[(5, 10)])), format!("i1 (1), which takes 3 vCPUs and 1 MiB, {finds_none}"));
    }

    #[test]
    fn what_first_fit_does_not_find_is_still_room() {
        // The biggest first would take the big host, where only the two others fit.
        assert_eq!(judged(&[(1, 6), (1, 5), (1, 5)], &[(9, 10), (9, 6)]), Proof::Room);
    }

    #[test]
    fn a_host_is_chosen_only_where_one_is_better_than_another_and_what_it_takes_is_gone() {
        let host = |name: &str, memory_mb: u64| Host { name: name.to_owned(), enabled: true, up: true, free: room(9, memory_mb) };
        let mut elsewhere = Elsewhere {
            hosts: vec![host("renewed", 10), host("stranger", 12), host("later", 99)],
            later: vec!["later".parse().unwrap()],
            ..Elsewhere::unknown()
        };
        let takes = |memory_mb| instances(&[(1, memory_mb)]).remove(0);
        let chosen: Vec<_> = [5, 8, 8, 3].into_iter().map(|memory| elsewhere.choose(&takes(memory), &BTreeMap::new())).collect();
        let expected = [Some("stranger"), Some("renewed"), None, Some("stranger")];
        assert_eq!(chosen, expected.map(|name| name.map(str::to_owned)));
        let mut alike = Elsewhere { hosts: vec![host("renewed", 10)], later: vec!["later".parse().unwrap()], ..Elsewhere::unknown() };
        assert_eq!(alike.choose(&takes(1), &BTreeMap::new()), None, "the scheduler can do no harm: the later one is not open");
    }

    #[test]
    fn a_host_that_has_not_taken_one_comes_after_the_others_and_after_two_not_at_all() {
        let host = |name: &str, memory_mb: u64| Host { name: name.to_owned(), enabled: true, up: true, free: room(99, memory_mb) };
        let chosen = |big: u32, small: u32| {
            let hosts = vec![host("big", 50), host("small", 40), host("later", 99)];
            let mut elsewhere = Elsewhere { hosts, later: vec!["later".parse().unwrap()], ..Elsewhere::unknown() };
            let not_taken_by = BTreeMap::from([("big".to_owned(), big), ("small".to_owned(), small)]);
            elsewhere.choose(&instances(&[(1, 1)])[0], &not_taken_by)
        };
        assert_eq!(chosen(0, 0).as_deref(), Some("big"));
        assert_eq!(chosen(1, 0).as_deref(), Some("small"));
        assert_eq!(chosen(1, 1).as_deref(), Some("big"));
        assert_eq!(chosen(2, 1).as_deref(), Some("small"));
        assert_eq!(chosen(2, 2), None);
    }

    #[test]
    fn what_can_not_be_decided_in_time_is_left_to_nova() {
        // Two of them on each host, and one too many; no two are alike.
        let sizes: Vec<(u64, u64)> = (0..41).map(|n| (1, 500 + n)).collect();
        let free: Vec<(u64, u64)> = (0..20).map(|n| (99, 1400 + n)).collect();
        assert_eq!(judged(&sizes, &free), Proof::Undecided { left_over: vec!["i0".to_owned()] });
    }

    /// Three instances `i0`, `i1`, `i2` of the same size, and hosts `h0`, `h1`, ... with room for as many of them.
    fn bound(rule: GroupRule, room_for: &[u64], others: &[(&str, u32)]) -> Proof {
        let host = |(place, &many): (usize, &u64)| Host { name: format!("h{place}"), enabled: true, up: true, free: room(many, many) };
        let leaving = instances(&[(1, 1), (1, 1), (1, 1)]);
        let elsewhere = Elsewhere {
            hosts: room_for.iter().enumerate().map(host).collect(),
            groups: vec![Group {
                rule,
                members: BTreeSet::new(),
                moving: false,
                leaving: leaving[..2].iter().map(|instance| instance.id.clone()).collect(),
                others: others.iter().map(|(host, many)| ((*host).to_owned(), *many)).collect(),
            }],
            ..Elsewhere::unknown()
        };
        elsewhere.prove(&leaving.iter().collect::<Vec<_>>())
    }

    fn first(proof: Proof) -> String {
        match proof {
            Proof::NoRoom { why } => why[0].clone(),
            Proof::Room | Proof::Undecided { .. } => panic!("{proof:?}"),
        }
    }

    #[test]
    fn members_of_an_anti_affinity_group_are_placed_apart_from_each_other_and_from_those_that_are_there() {
        let apart = GroupRule::AntiAffinity { max_on_a_host: 1 };
        assert_eq!(bound(apart, &[9, 9], &[]), Proof::Room);
        let alone = "i1 (1), which takes 1 vCPUs and 1 MiB, and has to keep apart from others of its server group, finds no room once the bigger ones have theirs";
        assert_eq!(first(bound(apart, &[9], &[])), alone);
        assert_eq!(first(bound(apart, &[9, 9], &[("h1", 1)])), alone);
        let nowhere = "i0 (0), which takes 1 vCPUs and 1 MiB, and has to keep apart from others of its server group, fits on no other host";
        assert_eq!(first(bound(apart, &[9, 9], &[("h0", 1), ("h1", 1)])), nowhere);
        assert_eq!(bound(GroupRule::AntiAffinity { max_on_a_host: 2 }, &[9], &[]), Proof::Room);
        assert_eq!(bound(GroupRule::AntiAffinity { max_on_a_host: 2 }, &[9, 1], &[("h0", 1)]), Proof::Room, "one of them beside that one, one on the other host");
    }

    #[test]
    fn members_of_an_affinity_group_find_room_together_or_not_at_all() {
        assert_eq!(bound(GroupRule::Affinity, &[1, 2], &[]), Proof::Room);
        let expected = "i0 (0) and i1 (1), which have to stay together, take 2 vCPUs and 2 MiB, and fit on no other host";
        assert_eq!(first(bound(GroupRule::Affinity, &[1, 1, 1], &[])), expected);
        assert_eq!(first(bound(GroupRule::Affinity, &[1, 9], &[("h0", 1)])), expected, "where the others of it are");
        assert_eq!(bound(GroupRule::Affinity, &[1, 9], &[("h1", 1)]), Proof::Room);
    }

    #[test]
    fn devices_that_placement_knows_are_counted_host_by_host() {
        let with_devices = |free: &[(&str, u64)], wants: usize| {
            let mut leaving = instances(&[(1, 1), (1, 1), (1, 1)]);
            let asks = BTreeMap::from([("resources:VGPU".to_owned(), "1".to_owned())]);
            leaving.iter_mut().take(wants).for_each(|instance| instance.asks.clone_from(&asks));
            let host = |name: &str| Host { name: name.to_owned(), enabled: true, up: true, free: room(9, 9) };
            let fitting = free.iter().map(|(host, free)| ((*host).to_owned(), BTreeMap::from([("VGPU".to_owned(), *free)]))).collect();
            let elsewhere = Elsewhere { hosts: vec![host("h0"), host("h1")], fitting: BTreeMap::from([(asks, fitting)]), ..Elsewhere::unknown() };
            elsewhere.prove(&leaving.iter().collect::<Vec<_>>())
        };
        assert_eq!(with_devices(&[("h0", 1), ("h1", 2)], 3), Proof::Room);
        assert_eq!(with_devices(&[], 0), Proof::Room);
        let finds_none = "i2 (2), which takes 1 vCPUs and 1 MiB and asks for resources:VGPU=1, finds no room once the bigger ones have theirs";
        assert_eq!(first(with_devices(&[("h0", 1), ("h1", 1)], 3)), finds_none);
        assert_eq!(first(with_devices(&[("h1", 2)], 3)), finds_none);
        let nowhere = "i0 (0), which takes 1 vCPUs and 1 MiB and asks for resources:VGPU=1, fits on no other host";
        assert_eq!(first(with_devices(&[], 1)), nowhere);
    }

    #[test]
    fn local_disks_are_counted_where_placement_says_how_much_a_host_has() {
        let with_disks = |needs: &[Option<u64>], free: &[Option<u64>]| {
            let mut leaving = instances(&vec![(1, 1); needs.len()]);
            leaving.iter_mut().zip(needs).for_each(|(instance, disk)| instance.takes.disk_gb = *disk);
            let host = |(place, disk): (usize, &Option<u64>)| Host { name: format!("h{place}"), enabled: true, up: true, free: Room { disk_gb: *disk, ..room(9, 9) } };
            let elsewhere = Elsewhere { hosts: free.iter().enumerate().map(host).collect(), ..Elsewhere::unknown() };
            elsewhere.prove(&leaving.iter().collect::<Vec<_>>())
        };
        assert_eq!(with_disks(&[Some(20), Some(20)], &[Some(20), Some(20)]), Proof::Room);
        assert_eq!(with_disks(&[Some(20), Some(20), None], &[Some(20), None]), Proof::Room, "nothing is said of the other one's");
        let nowhere = "i0 (0), which takes 1 vCPUs, 1 MiB and 21 GB of disk, fits on no other host";
        assert_eq!(first(with_disks(&[Some(21)], &[Some(20), Some(20)])), nowhere);
        let finds_none = "i1 (1), which takes 1 vCPUs, 1 MiB and 15 GB of disk, finds no room once the bigger ones have theirs";
        assert_eq!(first(with_disks(&[Some(15), Some(15)], &[Some(20)])), finds_none);
    }

    #[test]
    fn who_is_bound_to_a_zone_finds_room_there_or_nowhere() {
        let bound_to = |zone: &str, made: &[(&str, &[&str])]| {
            let mut leaving = instances(&[(1, 1)]);
            leaving[0].zone = Some(zone.to_owned());
            let host = |name: &str| Host { name: name.to_owned(), enabled: true, up: true, free: room(9, 9) };
            let zones = made.iter().map(|(zone, hosts)| ((*zone).to_owned(), hosts.iter().map(|host| (*host).to_owned()).collect())).collect();
            let elsewhere = Elsewhere { hosts: vec![host("h0"), host("h1")], zones, ..Elsewhere::unknown() };
            elsewhere.prove(&leaving.iter().collect::<Vec<_>>())
        };
        assert_eq!(bound_to("a", &[("a", &["h1", "gone"]), ("b", &["h0"])]), Proof::Room);
        assert_eq!(bound_to("nova", &[("b", &["h0"])]), Proof::Room, "no aggregate makes such a zone");
        assert_eq!(first(bound_to("a", &[("a", &["the-node-itself"])])), "i0 (0), which takes 1 vCPUs and 1 MiB, bound to zone a, fits on no other host");
    }
}
