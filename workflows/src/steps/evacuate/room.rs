//! Is there room elsewhere for what is to leave? Proved before the first move, so that a node isn't left half emptied.
//!
//! Where an instance goes is decided by Nova's scheduler, which knows of zones, groups, NUMA cells and devices too. Only what
//! certainly can't work is held back here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use turnaround_config::{NodeName, Pinned};

use super::class::{Class, classify};
use crate::engine::{AnswerEffect, Question, StepCx, StepError};
use crate::ports::{Host, Instance, Room};
use crate::updates::NodeOrder;

/// Placements that are tried out before it counts as undecided whether all fit.
// It only comes to trying where the room is tight. Each is a look at every host: some 20 ms in all with 1,000 of them. It is
// also how deep the search can go.
const PLACEMENTS_MAX: u32 = 2_000;

/// A host that was named for so many instances in vain is named no more while this node is emptied.
// Once may be the instance's own fault, twice is no accident; each costs a try of Nova's.
const NOT_TAKEN_MAX: u32 = 2;

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
            Proof::Room => "there is room for them elsewhere".to_owned(),
            Proof::Undecided { left_over } => {
                format!("room elsewhere is tight, perhaps there is none for {}", left_over.join(", "))
            }
            Proof::NoRoom { why } => format!("NO ROOM elsewhere: {}", why.join("; ")),
        }
    }
}

/// The hosts to which something may be moved off a node.
#[derive(Debug)]
pub(super) struct Elsewhere {
    hosts: Vec<Host>,
    /// Those of them that are renewed later: what moves there has to move again.
    later: Vec<NodeName>,
}

impl Elsewhere {
    pub(super) async fn look(cx: &StepCx<'_>, order: &NodeOrder) -> Result<Elsewhere, StepError> {
        let mut hosts = cx.ports.compute.hosts().await?;
        hosts.retain(|host| host.enabled && host.up && host.name != order.node.as_str());
        Ok(Elsewhere { hosts, later: order.later.clone() })
    }

    /// Nothing is known: nothing is chosen.
    pub(super) fn unknown() -> Elsewhere {
        Elsewhere { hosts: Vec::new(), later: Vec::new() }
    }

    /// Is there enough for all of `leaving`?
    pub(super) fn prove(&self, leaving: &[&Instance]) -> Proof {
        judge(leaving.to_vec(), &self.hosts)
    }

    fn lasts(&self, host: &Host) -> bool {
        !self.later.iter().any(|node| node.as_str() == host.name)
    }

    /// So many of `leaving` find no room but on nodes that are renewed later.
    pub(super) fn move_again(&self, leaving: &[&Instance]) -> usize {
        let mut leaving = leaving.to_vec();
        leaving.sort_by_key(|instance| Reverse(instance.takes));
        first_fit(&leaving, self.hosts.iter().filter(|host| self.lasts(host)).map(|host| host.free).collect()).len()
    }

    /// The host with the most room on which `takes` can stay for the rest of the rollout; what it takes is taken from what is free there. None
    /// where there is none, or where all are as good: then the choice is the scheduler's, which knows more than we do. A host that has not taken
    /// one instance comes after the others, one that has not taken [`NOT_TAKEN_MAX`] not at all.
    pub(super) fn choose(&mut self, takes: Room, not_taken_by: &BTreeMap<String, u32>) -> Option<String> {
        let (lasting, later): (Vec<_>, Vec<_>) = self.hosts.iter().enumerate().partition(|(_, host)| self.lasts(host));
        if later.is_empty() {
            return None;
        }
        let not_taken = |host: &Host| not_taken_by.get(&host.name).copied().unwrap_or(0);
        let fit = lasting.into_iter().filter(|(_, host)| host.free.holds(takes) && not_taken(host) < NOT_TAKEN_MAX);
        let (best, _) = fit.max_by_key(|(_, host)| (Reverse(not_taken(host)), host.free))?;
        let host = &mut self.hosts[best];
        host.free = host.free.without(takes);
        Some(host.name.clone())
    }
}

/// Those of `on_node` that can be moved, and take anything.
pub(super) fn leaving(on_node: &[Instance], pinned: Pinned) -> Vec<&Instance> {
    let moves = |instance: &&Instance| matches!(classify(instance, pinned), Class::Move(_)) && instance.takes != Room::default();
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

fn judge(mut leaving: Vec<&Instance>, hosts: &[Host]) -> Proof {
    leaving.sort_by_key(|instance| Reverse(instance.takes));
    let mut free: Vec<Room> = hosts.iter().map(|host| host.free).collect();
    let lost = leaving.iter().filter(|instance| !free.iter().any(|host| host.holds(instance.takes)));
    let lost: Vec<String> = lost.map(|instance| format!("{} fits on no other host", described(instance))).collect();
    if !lost.is_empty() {
        return Proof::NoRoom { why: with_most_room(lost, hosts) };
    }
    let left_over = first_fit(&leaving, free.clone());
    if left_over.is_empty() {
        return Proof::Room;
    }
    let needs: Vec<Room> = leaving.iter().map(|instance| instance.takes).collect();
    let exceeds = |of: fn(&Room) -> u64| needs.iter().map(of).sum::<u64>() > free.iter().map(of).fold(0, u64::saturating_add);
    let placed = if exceeds(|room| room.memory_mb) || exceeds(|room| room.vcpus) {
        Some(false)
    } else {
        place(&needs, &mut free, &mut 0)
    };
    match placed {
        Some(true) => Proof::Room,
        None => Proof::Undecided { left_over: left_over.iter().map(|instance| instance.name.clone()).collect() },
        Some(false) => {
            let line = |instance: &&Instance| format!("{} finds no room once the bigger ones have theirs", described(instance));
            Proof::NoRoom { why: with_most_room(left_over.iter().map(line).collect(), hosts) }
        }
    }
}

/// What is left over if each goes to the first host that holds it.
fn first_fit<'a>(leaving: &[&'a Instance], mut free: Vec<Room>) -> Vec<&'a Instance> {
    let mut left_over = Vec::new();
    for &instance in leaving {
        match free.iter_mut().find(|host| host.holds(instance.takes)) {
            Some(host) => *host = host.without(instance.takes),
            None => left_over.push(instance),
        }
    }
    left_over
}

/// Can all of `needs` be placed? Every way is tried; None where that takes too long.
fn place(needs: &[Room], free: &mut [Room], tried: &mut u32) -> Option<bool> {
    let Some((&first, rest)) = needs.split_first() else { return Some(true) };
    // Two hosts with the same room are the same.
    let mut alike = BTreeSet::new();
    for host in 0..free.len() {
        let before = free[host];
        if !before.holds(first) || !alike.insert(before) {
            continue;
        }
        *tried += 1;
        if *tried > PLACEMENTS_MAX {
            return None;
        }
        free[host] = before.without(first);
        let placed = place(rest, free, tried);
        free[host] = before;
        if placed != Some(false) {
            return placed;
        }
    }
    Some(false)
}

fn described(instance: &Instance) -> String {
    let Room { vcpus, memory_mb } = instance.takes;
    format!("{} ({}), which takes {vcpus} vCPUs and {memory_mb} MiB,", instance.name, instance.id)
}

fn with_most_room(mut lines: Vec<String>, hosts: &[Host]) -> Vec<String> {
    lines.push(match hosts.iter().max_by_key(|host| host.free) {
        Some(Host { name, free: Room { vcpus, memory_mb }, .. }) => {
            format!("of the {} other hosts that are enabled and up, {name} has most memory free: {memory_mb} MiB, and {vcpus} vCPUs", hosts.len())
        }
        None => "no other host is enabled and up".to_owned(),
    });
    lines
}

impl Room {
    fn holds(self, need: Room) -> bool {
        self.vcpus >= need.vcpus && self.memory_mb >= need.memory_mb
    }

    fn without(self, need: Room) -> Room {
        Room { vcpus: self.vcpus - need.vcpus, memory_mb: self.memory_mb - need.memory_mb }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::InstanceId;

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
            takes: Room { vcpus, memory_mb },
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
            free: Room { vcpus, memory_mb },
        };
        let hosts: Vec<Host> = free.iter().enumerate().map(host).collect();
        judge(instances(sizes).iter().collect(), &hosts)
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
        let host = |name: &str, memory_mb: u64| Host { name: name.to_owned(), enabled: true, up: true, free: Room { vcpus: 9, memory_mb } };
        let mut elsewhere = Elsewhere {
            hosts: vec![host("renewed", 10), host("stranger", 12), host("later", 99)],
            later: vec!["later".parse().unwrap()],
        };
        let takes = |memory_mb| Room { vcpus: 1, memory_mb };
        let chosen: Vec<_> = [5, 8, 8, 3].into_iter().map(|memory| elsewhere.choose(takes(memory), &BTreeMap::new())).collect();
        let expected = [Some("stranger"), Some("renewed"), None, Some("stranger")];
        assert_eq!(chosen, expected.map(|name| name.map(str::to_owned)));
        let mut alike = Elsewhere { hosts: vec![host("renewed", 10)], later: vec!["later".parse().unwrap()] };
        assert_eq!(alike.choose(takes(1), &BTreeMap::new()), None, "the scheduler can do no harm: the later one is not open");
    }

    #[test]
    fn a_host_that_has_not_taken_one_comes_after_the_others_and_after_two_not_at_all() {
        let host = |name: &str, memory_mb: u64| Host { name: name.to_owned(), enabled: true, up: true, free: Room { vcpus: 99, memory_mb } };
        let chosen = |big: u32, small: u32| {
            let hosts = vec![host("big", 50), host("small", 40), host("later", 99)];
            let mut elsewhere = Elsewhere { hosts, later: vec!["later".parse().unwrap()] };
            let not_taken_by = BTreeMap::from([("big".to_owned(), big), ("small".to_owned(), small)]);
            elsewhere.choose(Room { vcpus: 1, memory_mb: 1 }, &not_taken_by)
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
}
