//! Room is proved before the first move: hosts, zones, groups, devices, and other nodes that are emptied at the same time.

use std::collections::BTreeMap;
use std::time::Duration;

use turnaround_config::Pinned;
use turnaround_proof::sim::{MORNING, Sim, order};
use turnaround_workflows::clock::Clock as _;
use turnaround_workflows::engine::SignalKind;
use turnaround_workflows::ports::{GroupRule, Move};
use turnaround_workflows::rehearsal::{ALWAYS, Api, GroupPlan, Happened, Happens, MoveFault, MoveGoesWrong, InstancePlan, NodePlan, Outage, SitePlan, VmState};
use turnaround_workflows::store::Status;

use super::{dry_run, guest, moves_of, ordered, times_moved};

/// Found by a seed (396): for the one moment in which nobody said what is free, an instance went to a node that was renewed later.
#[tokio::test]
async fn where_nobody_says_what_is_free_for_a_moment_no_host_is_left_to_chance() {
    let plan = SitePlan::uniform(3, 1);
    let mut order = order(&plan, 1);
    order.nodes.remove(0);
    for seed in 0..60 {
        let mut plan = plan.clone();
        plan.faults.unavailable_percent = 6;
        let mut sim = Sim::new(plan, seed);
        sim.order(&order).await;
        let host = |sim: &Sim| sim.world.snapshot().instance("gpu-02-a").unwrap().host.clone();
        sim.run_until(async |sim| host(sim).as_deref() != Some("gpu-02")).await;
        assert_eq!(host(&sim).as_deref(), Some("gpu-01"), "seed {seed}");
    }
}

/// A node with three instances, and one where only two of them fit; a third node is closed.
fn with_too_little_room() -> SitePlan {
    let mut plan = SitePlan::uniform(3, 0);
    plan.instances = SitePlan::uniform(1, 3).instances;
    plan.node("gpu-02").unwrap().memory_mb = 20 * 1024;
    plan.node("gpu-03").unwrap().disabled = Some("DIMM, ask carol".to_owned());
    plan
}

#[tokio::test]
async fn without_room_for_all_nothing_is_moved_and_with_a_host_more_everything_is() {
    let opened = Happens::ServiceEnabled { node: "gpu-03".to_owned() };
    let plan = with_too_little_room().happens(Duration::from_secs(3600), opened);
    let mut sim = Sim::new(plan.clone(), 7);
    let node = ordered(&sim, &plan, Pinned::Ask).await;
    sim.run().await;

    let state = sim.state(&node).await;
    let question = state.question().unwrap();
    assert_eq!(question.text, "there is no room elsewhere for all that is to leave gpu-01, and nothing was moved yet: what now?");
    let left_over = guest(&sim, "gpu-01-c");
    assert_eq!(
        question.seen,
        [
            format!("gpu-01-c ({}), which takes 4 vCPUs and 8192 MiB, finds no room once the bigger ones have theirs", left_over.id),
            "of the 1 other hosts that are enabled and up, gpu-02 has most memory free: 20480 MiB, and 64 vCPUs".to_owned(),
        ]
    );
    for name in ["gpu-01-a", "gpu-01-b", "gpu-01-c"] {
        assert_eq!(moves_of(&sim, &guest(&sim, name)), [], "nothing was moved");
    }

    sim.clock.advance(Duration::from_secs(2 * 3600));
    sim.signal(&node, SignalKind::answer("retry".to_owned())).await;
    sim.run().await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
    assert_eq!(moves_of(&sim, &left_over), [Move::Live]);
}

#[tokio::test]
async fn of_two_nodes_that_are_out_at_once_one_waits_where_there_is_room_for_one_only() {
    let plan = room_for_one_only();
    let mut order = order(&plan, 2);
    order.nodes.truncate(2);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    sim.run().await;
    let child = sim.child(&rollout, "gpu-02").await;
    assert_eq!(sim.document(&rollout).await.status, Status::Succeeded, "nobody was asked: {:?}", sim.state(&child).await.question());
    let events = sim.world.events();
    let first = |is: &dyn Fn(&Happened) -> bool| events.iter().position(|event| is(&event.what)).unwrap();
    let closed = first(&|what| matches!(what, Happened::ServiceDisabled { node, .. } if node == "gpu-02"));
    let back = first(&|what| matches!(what, Happened::ServiceEnabled { node, .. } if node == "gpu-01"));
    let moved = first(&|what| matches!(what, Happened::MigrationRequested { node: Some(node), .. } if node == "gpu-02"));
    assert!(closed < back && back < moved, "out at once, and not half emptied: {closed} {back} {moved}");
    for name in ["gpu-01-a", "gpu-01-b", "gpu-02-a", "gpu-02-b"] {
        assert_eq!(moves_of(&sim, &guest(&sim, name)), [Move::Live], "{name}");
    }
}

/// Two nodes and a third one that has room for what is on one of them only.
fn room_for_one_only() -> SitePlan {
    let mut plan = SitePlan::uniform(3, 2);
    plan.instances.retain(|instance| instance.node.as_deref() != Some("gpu-03"));
    *plan.node("gpu-03").unwrap() = NodePlan::new("gpu-03").size(64, 20 * 1024);
    plan
}

#[tokio::test]
async fn of_two_nodes_with_parts_of_the_cluster_neither_keeps_what_the_other_one_waits_for() {
    for first in ["gpu-01", "gpu-02"] {
        let plan = room_for_one_only().with_cluster(&["gpu-01-a", "gpu-02-a"]);
        let mut order = order(&plan, 2);
        order.nodes.truncate(2);
        order.nodes.sort_by_key(|node| node.as_str() != first);
        let mut sim = Sim::new(plan, 7);
        let rollout = sim.order(&order).await;
        sim.run().await;
        assert_eq!(sim.document(&rollout).await.status, Status::Succeeded, "{first}: nobody was asked");
        assert!(sim.clock.now().since(MORNING) < Duration::from_secs(2 * 3600), "{first}: nor was anything waited out");
    }
}

#[tokio::test]
async fn a_node_that_an_operator_has_left_is_not_waited_for() {
    let mut plan = room_for_one_only();
    plan.node("gpu-01").unwrap().faults.never_comes_back = 1;
    let mut order = order(&plan, 2);
    order.nodes.truncate(2);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    let (left, next) = (sim.child(&rollout, "gpu-01").await, sim.child(&rollout, "gpu-02").await);
    sim.run_until(async |sim| sim.world.events().iter().any(|event| matches!(event.what, Happened::ImageWritten { .. }))).await;
    sim.run_until(async |sim| sim.document(&left).await.status == Status::NeedsOperator).await;
    assert_eq!(sim.document(&next).await.headline, "evacuate: waits for room: gpu-01 being emptied or renewed");
    let at = sim.clock.now();
    sim.signal(&left, SignalKind::answer("leave".to_owned())).await;
    sim.run().await;
    let reason = sim.world.services().unwrap().into_iter().find(|service| service.node == "gpu-01").unwrap().disabled_reason.unwrap();
    assert!(reason.contains("found-enabled: left closed by an operator, since "), "{reason}");
    let state = sim.state(&next).await;
    let question = state.question().unwrap_or_else(|| panic!("nothing is asked: {}", state.headline()));
    assert!(question.text.starts_with("there is no room elsewhere"), "{question:?}");
    let asked = sim.store.journal(&next, 0, 500).await.unwrap().into_iter().find(|entry| entry.body.contains("operator-asked")).unwrap();
    let asked = serde_json::from_str::<serde_json::Value>(&asked.body).unwrap()["at"].as_i64().unwrap();
    assert!(asked - at.millis() < 60_000, "at once: {asked} {at}");
}

#[tokio::test]
async fn the_last_host_of_a_zone_or_with_disk_enough_is_not_half_emptied() {
    type Change = fn(&mut SitePlan);
    let cases: [(Change, &str); 2] = [
        (
            |plan| {
                plan.node("gpu-01").unwrap().zone = Some("az-1".to_owned());
                plan.instance("gpu-01-b").unwrap().zone = Some("az-1".to_owned());
            },
            "which takes 4 vCPUs and 8192 MiB, bound to zone az-1, fits on no other host",
        ),
        (
            |plan| {
                plan.nodes.iter_mut().for_each(|node| node.disk_gb = Some(100));
                plan.instance("gpu-01-b").unwrap().disk_gb = 60;
                plan.instance("gpu-02-a").unwrap().disk_gb = 60;
            },
            "which takes 4 vCPUs, 8192 MiB and 60 GB of disk, fits on no other host",
        ),
    ];
    for (change, told) in cases {
        let mut plan = SitePlan::uniform(2, 2);
        change(&mut plan);
        let mut sim = Sim::new(plan.clone(), 7);
        let node = ordered(&sim, &plan, Pinned::Ask).await;
        sim.run().await;
        let state = sim.state(&node).await;
        let question = state.question().unwrap_or_else(|| panic!("nothing is asked: {}", state.headline()));
        assert!(question.seen[0].starts_with("gpu-01-b (") && question.seen[0].ends_with(told), "{question:?}");
        for name in ["gpu-01-a", "gpu-01-b"] {
            assert_eq!(moves_of(&sim, &guest(&sim, name)), [], "nothing was moved");
        }
    }
}

fn groups(rule: GroupRule, members: &[&str]) -> Vec<GroupPlan> {
    vec![GroupPlan { name: "etcd".to_owned(), rule, members: members.iter().map(|name| (*name).to_owned()).collect() }]
}

#[tokio::test]
async fn what_has_to_keep_apart_is_not_moved_where_no_host_is_left_for_it_and_moved_once_there_is_one() {
    let mut plan = SitePlan::uniform(3, 1);
    plan.groups = groups(GroupRule::AntiAffinity { max_on_a_host: 1 }, &["gpu-01-a", "gpu-02-a", "gpu-03-a"]);
    let plan = plan.happens(Duration::from_secs(3 * 3600), Happens::InstanceDeleted { name: "gpu-02-a".to_owned() });
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let moved = guest(&sim, "gpu-01-a");
    let rollout = sim.order(&order).await;
    sim.run().await;
    let node = sim.child(&rollout, "gpu-01").await;
    let state = sim.state(&node).await;
    let question = state.question().expect("there is no room");
    assert_eq!(question.text, "there is no room elsewhere for all that is to leave gpu-01, and nothing was moved yet: what now?");
    let expected = format!("gpu-01-a ({}), which takes 4 vCPUs and 8192 MiB, and has to keep apart from others of its server group, fits on no other host", moved.id);
    assert_eq!(question.seen[0], expected);
    assert_eq!(times_moved(&sim), BTreeMap::new());
    // By then the one on gpu-02 is deleted by its owner.
    sim.clock.advance(Duration::from_secs(4 * 3600));
    sim.signal(&node, SignalKind::answer("retry".to_owned())).await;
    sim.run().await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
    assert_eq!(guest(&sim, "gpu-01-a").host.as_deref(), Some("gpu-02"));
}

#[tokio::test]
async fn the_dry_run_says_what_it_does_not_prove() {
    let mut plan = SitePlan::uniform(3, 2);
    plan.instance("gpu-01-a").unwrap().extra_specs.insert("pci_passthrough:alias".to_owned(), "h100:1".to_owned());
    plan.instance("gpu-01-a").unwrap().metadata.insert("turnaround:move".to_owned(), "cold".to_owned());
    plan.groups = groups(GroupRule::Affinity, &["gpu-02-a", "gpu-02-b"]);
    plan.instance("gpu-01-b").unwrap().device_ports = vec!["direct".to_owned()];
    plan.groups.push(GroupPlan { name: "single".to_owned(), rule: GroupRule::Affinity, members: vec!["gpu-03-a".to_owned()] });
    let order = order(&plan, 1);
    let mut sim = Sim::new(plan, 7);
    let lines = dry_run(&mut sim, &order).await;
    let would = |node: &str| lines.iter().find(|line| line.node.as_str() == node && line.step == "evacuate").unwrap().would.clone();
    let alias = "server groups; NOT proven: that another host has a device for the ports of gpu-01-b (direct): nobody tells how many are free; that another host has a device for gpu-01-a (pci_passthrough:alias=h100:1): Placement does not tell of PCI aliases";
    assert!(would("gpu-01").contains(alias), "{}", would("gpu-01"));
    let together = "NOT proven: that Nova moves them one by one, as it must: gpu-02-a, gpu-02-b are to stay on one host by their server group etcd (affinity)";
    assert!(would("gpu-02").contains(together), "{}", would("gpu-02"));
    let alone = "NOT proven: that Nova moves them one by one, as it must: gpu-03-a are to stay on one host by their server group single (affinity)";
    assert!(would("gpu-03").contains(alone), "{}", would("gpu-03"));
}

/// As Nova has it: the host that an instance is to leave is one of its group's hosts, and the only one where nobody else of it is.
#[tokio::test]
async fn the_only_member_of_an_affinity_group_is_refused_as_well() {
    let mut plan = SitePlan::uniform(2, 1);
    plan.groups = groups(GroupRule::Affinity, &["gpu-01-a"]);
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    sim.run().await;
    let node = sim.child(&rollout, "gpu-01").await;
    assert!(sim.state(&node).await.question().expect("Nova moves it nowhere").seen[0].contains("No valid host"));
    assert_eq!(times_moved(&sim), BTreeMap::new());
}

/// Nova keeps an instance apart from those that are on a host, and not from those that are on their way there.
#[tokio::test]
async fn members_that_have_to_keep_apart_leave_one_after_the_other() {
    for named in [true, false] {
        let mut plan = SitePlan::uniform(5, 0);
        *plan.node("gpu-02").unwrap() = NodePlan::new("gpu-02").size(64, 900_000);
        plan.node("gpu-05").unwrap().disabled = Some("fan".to_owned());
        plan.instances = ["a", "b", "c"].map(|name| InstancePlan::new(name).on("gpu-01")).to_vec();
        plan.instances.push(InstancePlan::new("d").on("gpu-02"));
        // While `a` is on its way, this one's place is free again.
        plan.instance("b").unwrap().fault = MoveFault::new(MoveGoesWrong::PreCheck, ALWAYS, "no");
        plan.groups = groups(GroupRule::AntiAffinity { max_on_a_host: 2 }, &["a", "c", "d"]);
        let mut order = order(&plan, 1);
        order.rules.moves_at_once = 2;
        order.nodes.retain(|node| node.as_str() == "gpu-01" || named && node.as_str() == "gpu-04");
        let mut sim = Sim::new(plan, 7);
        sim.order(&order).await;
        sim.run().await;
        let hosts = ["a", "c"].map(|name| guest(&sim, name).host);
        assert_eq!(hosts.iter().filter(|host| host.as_deref() == Some("gpu-02")).count(), 1, "{hosts:?}, named: {named}");
        assert!(!hosts.contains(&Some("gpu-01".to_owned())), "{hosts:?}");
    }
}

/// What only proves more must not hold a node back for as long as it is away.
#[tokio::test]
async fn a_node_is_not_held_back_for_long_because_nobody_tells_the_server_groups() {
    let mut plan = SitePlan::uniform(3, 1);
    plan.faults.outages = vec![Outage { api: Api::ServerGroups, node: None, from: Duration::ZERO, lasts: Duration::from_secs(24 * 3_600) }];
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let began = sim.clock.now();
    let rollout = sim.order(&order).await;
    sim.run_until(async |sim| !times_moved(sim).is_empty()).await;
    let waited = sim.clock.now().since(began);
    assert!((Duration::from_secs(60)..Duration::from_secs(600)).contains(&waited), "{waited:?}");
    sim.run().await;
    assert_eq!(sim.document(&rollout).await.status, Status::Succeeded);
}

#[tokio::test]
async fn devices_that_no_other_host_has_left_hold_an_evacuation_back() {
    let mut plan = SitePlan::uniform(3, 1);
    for (node, vgpus) in [("gpu-01", 4), ("gpu-02", 1), ("gpu-03", 0)] {
        plan.node(node).unwrap().devices = BTreeMap::from([("VGPU".to_owned(), vgpus)]);
    }
    for name in ["one", "two"] {
        plan.instances.push(InstancePlan::new(name).on("gpu-01").state(VmState::Stopped).extra_spec("resources:VGPU", "1"));
    }
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let lines = dry_run(&mut sim, &order).await;
    let line = lines.iter().find(|line| line.step == "evacuate").unwrap();
    assert!(line.problem && line.would.contains("and asks for resources:VGPU=1, finds no room once the bigger ones have theirs"), "{}", line.would);
    sim.order(&order).await;
    sim.run().await;
    assert_eq!(times_moved(&sim), BTreeMap::new());
}

#[tokio::test]
async fn a_node_whose_instances_find_no_room_is_given_back_as_found() {
    let plan = with_too_little_room();
    let mut sim = Sim::new(plan.clone(), 7);
    let node = ordered(&sim, &plan, Pinned::Ask).await;
    sim.run().await;
    assert!(!sim.world.snapshot().node("gpu-01").unwrap().enabled);
    sim.signal(&node, SignalKind::answer("unwind".to_owned())).await;
    sim.run().await;
    assert_eq!(sim.document(&node).await.status, Status::Failed);
    assert!(sim.world.snapshot().node("gpu-01").unwrap().enabled);
    assert_eq!(moves_of(&sim, &guest(&sim, "gpu-01-a")), []);
}

#[tokio::test]
async fn the_dry_run_says_what_is_done_with_each_and_whether_there_is_room() {
    for (plan, expected) in [
        (SitePlan::uniform(3, 2), "move 2 instances off gpu-01: 2 live, 0 cold; there is room for them elsewhere by vCPUs, memory, local disks, zones, devices and server groups"),
        (
            with_too_little_room(),
            "move 3 instances off gpu-01: 3 live, 0 cold; NO ROOM elsewhere: gpu-01-c (ID), which takes 4 vCPUs and 8192 MiB, finds no \
             room once the bigger ones have theirs; of the 1 other hosts that are enabled and up, gpu-02 has most memory free: 20480 \
             MiB, and 64 vCPUs",
        ),
    ] {
        let mut order = order(&plan, 1);
        order.nodes.truncate(1);
        let mut sim = Sim::new(plan, 7);
        let lines = dry_run(&mut sim, &order).await;
        let line = lines.iter().find(|line| line.step == "evacuate").unwrap();
        let last = guest(&sim, if expected.contains("(ID)") { "gpu-01-c" } else { "gpu-01-a" });
        assert_eq!((line.would.as_str(), line.problem), (expected.replace("(ID)", &format!("({})", last.id)).as_str(), expected.contains("NO ROOM")));
    }
}
