//! Nodes of the Kubernetes cluster are drained before their instances move, one at a time. In virtual time.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use turnaround_proof::checker::{Rules, judge};
use turnaround_proof::sim::{Sim, order};
use turnaround_workflows::engine::{Question, SignalKind, start};
use turnaround_workflows::ports::Move;
use turnaround_workflows::rehearsal::{Api, Call, Happened, Happens, InstancePlan, LostAnswer, MoveFault, MoveGoesWrong, Outage, PodKind, PodPlan, SitePlan};
use turnaround_workflows::store::{Status, WorkflowId};
use turnaround_workflows::updates::{self, DryRunReport};

const HOUR: Duration = Duration::from_secs(3600);

/// Three nodes of the cluster on three of five hosts, with one other instance on the first.
fn plan() -> SitePlan {
    let mut plan = SitePlan::uniform(5, 0);
    plan.instances = ["1", "2", "3"].map(|n| InstancePlan::new(&format!("k3s-{n}")).on(&format!("gpu-0{n}"))).to_vec();
    plan.instances.push(InstancePlan::new("train").on("gpu-01"));
    plan.with_cluster(&["k3s-1", "k3s-2", "k3s-3"])
}

/// A renewal of `gpu-01`, to its end or its first question.
async fn renewed(plan: SitePlan) -> (Sim, WorkflowId) {
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    let node = sim.child(&rollout, "gpu-01").await;
    sim.run().await;
    (sim, node)
}

async fn question(sim: &Sim, node: &WorkflowId) -> Question {
    sim.state(node).await.question().cloned().unwrap_or_else(|| panic!("nothing is asked"))
}

async fn answered(sim: &mut Sim, node: &WorkflowId, key: &str) {
    sim.signal(node, SignalKind::answer(key.to_owned())).await;
    sim.run().await;
}

/// What was done to the cluster and its instances, in order.
fn story(sim: &Sim) -> Vec<String> {
    // (Canaries are gone by then.)
    let instance = |id: &str| sim.world.guests_where(|guest| guest.id.0 == id).unwrap().pop().map(|guest| guest.name);
    let told = sim.world.events().into_iter().filter_map(|event| match event.what {
        Happened::NodeCordoned { cluster_node, .. } => Some(format!("cordon {cluster_node}")),
        Happened::NodeUncordoned { cluster_node, .. } => Some(format!("uncordon {cluster_node}")),
        Happened::PodEvicted { pod } => Some(format!("evict {pod}")),
        Happened::InstanceMoved { instance: id, .. } => instance(&id).map(|name| format!("move {name}")),
        _ => None,
    });
    told.collect()
}

/// What the site's own log has against it.
fn against(sim: &Sim, rules: &Rules) -> Vec<String> {
    let log: Vec<String> = sim.world.events().iter().map(|event| serde_json::to_string(event).unwrap()).collect();
    judge(&log.join("\n"), rules).iter().map(ToString::to_string).collect()
}

fn rules(out_max: usize) -> Rules {
    Rules { out_max, ..Rules::default() }
}

const WHOLE: [&str; 5] = ["cordon k3s-1", "evict console-on-k3s-1", "move k3s-1", "uncordon k3s-1", "move train"];

#[tokio::test]
async fn a_node_of_the_cluster_is_cordoned_and_drained_before_its_instance_moves_and_uncordoned_afterwards() {
    let (sim, node) = renewed(plan()).await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
    assert_eq!(story(&sim), WHOLE);
    assert_eq!(against(&sim, &rules(1)), Vec::<String>::new());
    // Kubernetes goes on calling a silent node Ready for most of a minute.
    let when = |of: fn(&Happened) -> bool| sim.world.events().into_iter().find(|event| of(&event.what)).unwrap().at;
    let moved = when(|what| matches!(what, Happened::InstanceMoved { .. }));
    let uncordoned = when(|what| matches!(what, Happened::NodeUncordoned { .. }));
    assert!(uncordoned.since(moved) >= Duration::from_secs(60), "{:?}", uncordoned.since(moved));
}

#[tokio::test]
async fn answers_that_are_lost_cost_nothing_but_time() {
    let mut plan = plan();
    plan.faults.lost_answers = [Call::Cordon, Call::Evict, Call::Uncordon].map(|call| LostAnswer { call, nth: 1 }).to_vec();
    let (sim, node) = renewed(plan).await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
    assert_eq!(story(&sim), WHOLE);
}

#[tokio::test]
async fn hosts_that_are_renewed_at_once_drain_one_node_of_the_cluster_at_a_time() {
    let plan = plan();
    let mut order = order(&plan, 3);
    order.nodes.truncate(3);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    sim.run().await;
    assert_eq!(sim.document(&rollout).await.status, Status::Succeeded);
    assert_eq!(against(&sim, &rules(3)), Vec::<String>::new());
    assert_eq!(story(&sim).iter().filter(|line| line.starts_with("cordon")).count(), 3);

    // Two on one host.
    let mut plan = self::plan();
    plan.instance("k3s-2").unwrap().node = Some("gpu-01".to_owned());
    let (sim, node) = renewed(plan).await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
    assert_eq!(against(&sim, &rules(1)), Vec::<String>::new());
    assert_eq!(story(&sim).iter().filter(|line| line.starts_with("cordon")).count(), 2);
}

#[tokio::test]
async fn a_cordon_of_somebody_else_is_left_as_found() {
    let mut plan = plan();
    plan.cluster.as_mut().unwrap().cordoned = vec!["k3s-1".to_owned()];
    let (sim, node) = renewed(plan).await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
    assert_eq!(story(&sim), ["evict console-on-k3s-1", "move k3s-1", "move train"]);
    assert_eq!(against(&sim, &rules(1)), Vec::<String>::new());
}

/// A PodDisruptionBudget that lets no pod go.
fn stuck() -> SitePlan {
    let mut plan = plan();
    plan.cluster.as_mut().unwrap().budgets.insert("console".to_owned(), 3);
    plan
}

#[tokio::test]
async fn what_a_disruption_budget_keeps_becomes_a_question_that_says_so_and_each_answer_uncordons() {
    let (sim, node) = renewed(stuck()).await;
    let asked = question(&sim, &node).await;
    assert_eq!(asked.text, "node k3s-1 of the Kubernetes cluster can't be drained, and its instance is still on gpu-01: what now?");
    assert_eq!(
        asked.seen,
        ["pod default/console-on-k3s-1 is not evicted: Cannot evict pod as it would violate the pod's disruption budget. \
          The disruption budget console needs 3 healthy pods and has 3 currently"]
    );
    assert_eq!(story(&sim), ["cordon k3s-1"]);
    for (answer, enabled) in [("unwind", true), ("leave", false)] {
        let (mut sim, node) = renewed(stuck()).await;
        answered(&mut sim, &node, answer).await;
        assert_eq!(story(&sim), ["cordon k3s-1", "uncordon k3s-1"], "{answer}");
        assert_eq!(sim.world.snapshot().node("gpu-01").unwrap().enabled, enabled, "{answer}");
        assert_eq!(sim.document(&node).await.status, Status::Failed);
    }
    let (mut sim, node) = renewed(stuck()).await;
    answered(&mut sim, &node, "retry").await;
    assert_eq!(question(&sim, &node).await.seen.len(), 1, "asked again after a fresh deadline");
}

#[tokio::test]
async fn a_node_of_the_cluster_whose_live_migration_never_ends_is_asked_about_and_stopped_at_an_operators_word() {
    let mut plan = plan();
    plan.instance("k3s-1").unwrap().fault = MoveFault::new(MoveGoesWrong::Hangs, 1, "").only(Move::Live);
    let (mut sim, node) = renewed(plan).await;
    let asked = question(&sim, &node).await;
    assert!(asked.text.starts_with("the move of an instance off gpu-01 does not end: what now? k3s-1 "), "{asked:?}");
    answered(&mut sim, &node, "stop").await;
    let asked = question(&sim, &node).await;
    assert!(asked.seen[0].contains("was stopped, as an operator wanted: it had been moving since"), "{asked:?}");
    sim.clock.advance(Duration::from_secs(1));
    answered(&mut sim, &node, "retry").await;
    assert_eq!(sim.document(&node).await.status, Status::Succeeded);
}

#[tokio::test]
async fn a_pod_that_nothing_would_start_again_is_never_evicted() {
    let mut plan = plan();
    let pods = &mut plan.cluster.as_mut().unwrap().pods;
    pods.push(PodPlan { name: "shell".to_owned(), app: "shell".to_owned(), node: "k3s-1".to_owned(), kind: PodKind::Alone });
    let (sim, node) = renewed(plan).await;
    assert_eq!(question(&sim, &node).await.seen, ["pod default/shell has no controller: nothing would start it again elsewhere; delete it, or move what it does"]);
    assert_eq!(story(&sim), ["cordon k3s-1", "evict console-on-k3s-1"]);
}

#[tokio::test]
async fn a_cluster_that_is_not_whole_is_not_made_smaller() {
    let mut plan = plan();
    plan.cluster.as_mut().unwrap().ill = vec!["k3s-3".to_owned()];
    let (sim, node) = renewed(plan).await;
    assert_eq!(question(&sim, &node).await.seen, ["k3s-3 is not Ready"]);
    assert_eq!(story(&sim), Vec::<String>::new());

    let mut plan = self::plan();
    plan.cluster.as_mut().unwrap().nodes.truncate(1);
    let (sim, node) = renewed(plan).await;
    assert_eq!(question(&sim, &node).await.seen, ["no other node than k3s-1 takes pods"]);
    assert_eq!(story(&sim), Vec::<String>::new());
}

#[tokio::test]
async fn a_node_that_is_not_ready_on_its_new_host_stays_cordoned_and_is_asked_about() {
    let mut plan = plan();
    plan.cluster.as_mut().unwrap().ill_once_moved = vec!["k3s-1".to_owned()];
    let (sim, node) = renewed(plan).await;
    let asked = question(&sim, &node).await;
    assert_eq!(asked.text, "node k3s-1 of the Kubernetes cluster has left gpu-01 and is not Ready: what now?");
    let story = story(&sim);
    assert!(story.contains(&"move k3s-1".to_owned()) && !story.contains(&"uncordon k3s-1".to_owned()), "{story:?}");
}

#[tokio::test]
async fn while_the_cluster_does_not_answer_nothing_moves_that_might_be_one_of_its_nodes() {
    let out = |from: Duration| {
        let mut plan = plan();
        plan.faults.outages = vec![Outage { api: Api::Kubernetes, node: None, from, lasts: 24 * HOUR }];
        plan
    };
    let (sim, node) = renewed(out(Duration::ZERO)).await;
    assert_eq!(question(&sim, &node).await.seen, ["could not list the nodes of the Kubernetes cluster"]);
    assert_eq!(story(&sim), Vec::<String>::new());
    // It goes away between a drain and what else is on the host.
    let (sim, node) = renewed(out(Duration::from_secs(90))).await;
    assert_eq!(sim.document(&node).await.status, Status::NeedsOperator);
    assert!(!story(&sim).contains(&"move train".to_owned()), "{:?}", story(&sim));
}

#[tokio::test]
async fn a_node_that_somebody_uncordons_is_not_drained_any_further() {
    let mut plan = stuck();
    plan = plan.happens(Duration::from_secs(60), Happens::ClusterNodeUncordoned { name: "k3s-1".to_owned() });
    let (sim, node) = renewed(plan).await;
    assert_eq!(
        question(&sim, &node).await.text,
        "node k3s-1 of the Kubernetes cluster was uncordoned by somebody while it was being drained: what now?"
    );
}

#[tokio::test]
async fn a_node_of_the_cluster_that_comes_after_all_others_were_moved_is_a_question() {
    let mut plan = plan();
    plan.instances.retain(|instance| instance.name != "k3s-1");
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let late = sim.world.guests_where(|guest| guest.name == "k3s-2").unwrap().remove(0);
    sim.world.request_move(&late.id, Move::Live, Some("gpu-01")).unwrap();
    while sim.world.migrations_where(|record| record.destination.is_some()).unwrap().is_empty() {
        sim.clock.advance_to(sim.world.next_event().unwrap());
    }
    let rollout = sim.order(&order).await;
    let node = sim.child(&rollout, "gpu-01").await;
    sim.run().await;
    let asked = question(&sim, &node).await;
    assert!(asked.seen[0].contains("is node k3s-2 of the Kubernetes cluster, and has come since its nodes were moved"), "{:?}", asked.seen);
}

#[tokio::test]
async fn a_dry_run_names_the_nodes_of_the_cluster_and_says_what_keeps_them_from_being_drained() {
    let line = async |plan: SitePlan, step: &str| {
        let mut order = order(&plan, 1);
        order.nodes.truncate(1);
        let mut sim = Sim::new(plan, 7);
        let new = updates::dry_run(&order, "tester").unwrap();
        let id = new.id.clone();
        sim.store.create(start(new, turnaround_proof::sim::MORNING).unwrap()).await.unwrap();
        sim.run().await;
        let report: DryRunReport = serde_json::from_value(sim.state(&id).await.record("preview").unwrap().output.clone().unwrap()).unwrap();
        assert_eq!(story(&sim), Vec::<String>::new());
        report.lines.into_iter().find(|line| line.step == step).unwrap()
    };
    let found = line(plan(), "find-cluster-nodes").await;
    assert_eq!(found.would, "find instances that are nodes of the Kubernetes cluster: k3s-1 is node k3s-1");
    let moved = line(plan(), "move-cluster-nodes").await;
    assert_eq!(moved.would, "one after the other, cordon and drain, move, and uncordon once Ready again: k3s-1 (k3s-1)");
    assert!(!moved.problem);
    let mut plan = plan();
    plan.cluster.as_mut().unwrap().ill = vec!["k3s-3".to_owned()];
    assert!(line(plan, "move-cluster-nodes").await.problem);
}
