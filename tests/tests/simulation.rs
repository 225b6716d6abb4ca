//! Whole rollouts at sites where things go wrong, made up from seeds, in virtual time, judged by the site's own log.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use turnaround_proof::checker::{Rules, judge};
use turnaround_proof::sim::{Sim, order};
use turnaround_workflows::clock::Clock;
use turnaround_workflows::engine::{AnswerEffect, SignalKind};
use turnaround_workflows::rehearsal::{
    ALWAYS, Call, Happened, Happens, InstancePlan, MoveFault, MoveGoesWrong, SitePlan, VmState, WorldEvent,
};
use turnaround_workflows::store::{Document, Status};

/// Questions that are answered in one run; then the operator goes home.
const ANSWERS_MAX: usize = 12;

/// Seeds of one run, unless `TURNAROUND_SITE_SEEDS` says otherwise (`FROM..TO`).
const SEEDS: std::ops::Range<u64> = 0..30;

/// At most so many nodes out of service at once.
const OUT_MAX: u32 = 2;

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("TURNAROUND_SITE_SEEDS") else { return SEEDS };
    let (from, to) = text.split_once("..").expect("TURNAROUND_SITE_SEEDS is FROM..TO");
    from.parse().unwrap()..to.parse().unwrap()
}

/// What became of one seed's rollout, and what the site has against it.
async fn run(seed: u64) -> (&'static str, Vec<String>) {
    let plan = SitePlan::troubled(seed);
    let mut sim = Sim::new(plan.clone(), seed);
    let rollout = sim.order(&order(&plan, OUT_MAX)).await;
    let mut rules = Rules { out_max: OUT_MAX as usize, only_own_count: true, ..Rules::default() };
    let mut random = StdRng::seed_from_u64(seed);
    sim.run_until(only_waits).await;
    for _ in 0..ANSWERS_MAX {
        if !answer_one(&mut sim, &mut random, &mut rules).await {
            break;
        }
    }
    let open = sim.open().await;
    let asks = |document: &&Document| document.status == Status::NeedsOperator;
    rules.open_questions.extend(open.iter().filter(asks).map(|document| document.target.clone()));
    let mut log = String::new();
    for event in sim.world.events() {
        log += &(serde_json::to_string(&event).unwrap() + "\n");
    }
    let mut against: Vec<String> = judge(&log, &rules).iter().map(ToString::to_string).collect();
    let status = sim.store.load(&rollout).await.unwrap().map(|document| document.status);
    let waits = open.iter().any(|document| asks(&document));
    if status.is_some_and(|status| !status.is_ended()) && !waits {
        against.push("the rollout has not ended, and nobody is asked anything".to_owned());
    }
    if std::env::var_os("TURNAROUND_SHOW").is_some() {
        println!("{log}");
        for document in &open {
            println!("{} {} {}: {}", document.id, document.kind, document.status.as_str(), document.headline);
        }
    }
    (status.map_or("ended, and forgotten", |status| status.as_str()), against)
}

/// Somebody is asked, and all others only wait: for their children, or for their turn.
async fn only_waits(sim: &Sim) -> bool {
    let open = sim.open().await;
    let asks = |document: &Document| document.status == Status::NeedsOperator;
    let waits = |document: &Document| document.headline.starts_with("waits for") || document.due.is_none();
    open.iter().any(asks) && open.iter().all(|document| asks(document) || waits(document))
}

/// An operator who answers the first open question somehow. False if there is none.
async fn answer_one(sim: &mut Sim, random: &mut StdRng, rules: &mut Rules) -> bool {
    let open = sim.open().await;
    let Some(asking) = open.into_iter().find(|document| document.status == Status::NeedsOperator) else { return false };
    let state = sim.state(&asking.id).await;
    let mut answers = state.question().expect("it asks").answers.clone();
    // Nodes that are left go on counting as out: with as many as may be out, nothing would go on.
    if rules.left_by_operators.len() + 1 >= rules.out_max {
        answers.retain(|answer| answer.effect != AnswerEffect::Leave);
    }
    let answer = answers[random.random_range(0..answers.len())].clone();
    match answer.effect {
        // One more reset for the same order may follow from it, and from no other answer.
        AnswerEffect::Retry if matches!(answer.key.as_str(), "netboot" | "rebuild") => {
            *rules.resets_again.entry(asking.target.clone()).or_default() += 1;
        }
        AnswerEffect::Leave => drop(rules.left_by_operators.insert(asking.target.clone())),
        AnswerEffect::Retry | AnswerEffect::Unwind => {}
    }
    sim.signal(&asking.id, SignalKind::answer(answer.key)).await;
    let heard = async |sim: &Sim| {
        // Finished ones are forgotten after a day.
        let now = sim.store.load(&asking.id).await.unwrap();
        now.is_none_or(|now| now.seq > asking.seq) && only_waits(sim).await
    };
    sim.run_until(heard).await;
    true
}

#[tokio::test]
async fn no_rollout_harms_a_site_whatever_goes_wrong_there() {
    let (mut statuses, mut bad) = (BTreeMap::new(), Vec::new());
    for seed in seeds() {
        // Shown with a panic; the last one is the one that panicked.
        println!("seed {seed}");
        let (status, against) = run(seed).await;
        *statuses.entry(status).or_insert(0) += 1;
        bad.extend(against.into_iter().map(|what| format!("seed {seed}: {what}")));
    }
    println!("{statuses:?}");
    assert!(bad.is_empty(), "{} complaints:\n{}", bad.len(), bad.join("\n"));
}

/// Found by a seed: Nova knows the node by another name, and an instance that is stopped has to leave it.
#[tokio::test]
async fn a_node_that_nova_knows_by_another_name_is_emptied_and_renewed() {
    let mut plan = SitePlan::uniform(3, 2);
    plan.node("gpu-01").unwrap().nova_host = Some("gpu-01.cloud.internal".to_owned());
    plan.instance("gpu-01-b").unwrap().vm_state = VmState::Stopped;
    let mut sim = Sim::new(plan.clone(), 1);
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let rollout = sim.order(&order).await;
    sim.run_until(only_waits).await;
    assert_eq!(sim.document(&rollout).await.status, Status::Succeeded);
}

/// Found by a seed: chosen for the node before it was closed, an instance shows on it only after it was found empty.
#[tokio::test]
async fn an_instance_that_was_on_its_way_to_an_empty_node_is_not_lost() {
    let late = Happens::InstanceCreated(InstancePlan::new("late").on("gpu-01"));
    let plan = SitePlan::uniform(3, 0).happens(Duration::ZERO, late);
    let mut sim = Sim::new(plan.clone(), 1);
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    sim.order(&order).await;
    sim.run_until(only_waits).await;
    let lost = |event: &WorldEvent| matches!(event.what, Happened::InstancesLost { .. });
    assert!(!sim.world.events().iter().any(lost), "{:#?}", sim.world.events());
}

/// Found by a seed: an instance is on its way to a node that looks empty, is closed, and is reset at once.
#[tokio::test]
async fn a_node_to_which_an_instance_is_on_its_way_is_not_empty() {
    let mut plan = SitePlan::uniform(3, 0);
    plan.instances = vec![InstancePlan::new("train").on("gpu-01"), InstancePlan::new("other").on("gpu-03")];
    plan.latencies.jitter_percent = 0;
    let arrives = plan.latencies.schedule + plan.latencies.live_migration;
    let mut sim = Sim::new(plan.clone(), 1);
    let (mut first, mut second) = (order(&plan, 2), order(&plan, 2));
    first.nodes.truncate(1);
    second.nodes = vec!["gpu-02".parse().unwrap()];
    // The look alone has to tell: nothing is waited for.
    second.rules.settle_ms = 0;
    sim.order(&first).await;
    let asked = |sim: &Sim| sim.world.events().iter().find(|event| matches!(event.what, Happened::MigrationRequested { .. })).map(|event| event.at);
    sim.run_until(async |sim| asked(sim).is_some()).await;
    // A BMC takes 1.5 s from its yes to the cut: the instance arrives in between.
    let before = asked(&sim).unwrap() + (arrives - Duration::from_secs(1));
    sim.run_until(async |sim| sim.clock.now() + Duration::from_secs(3) > before).await;
    assert!(sim.clock.now() <= before, "it has arrived before it was wanted");
    sim.clock.advance_to(before);
    let site = sim.world.snapshot();
    assert_eq!(site.node("gpu-02").map(|node| (node.instances, node.arriving)), Some((0, 1)));
    sim.order(&second).await;
    sim.run_until(only_waits).await;
    let harm = |event: &WorldEvent| match &event.what {
        Happened::InstancesLost { .. } => true,
        Happened::ResetRequested { touching, .. } | Happened::ImageWritten { touching, .. } => !touching.is_empty(),
        _ => false,
    };
    let events = sim.world.events();
    assert!(!events.iter().any(harm), "{events:#?}");
    let renewed = |name: &str| events.iter().any(|event| matches!(&event.what, Happened::ImageWritten { node, .. } if node == name));
    assert!(renewed("gpu-02"), "it was reset in the end: {events:#?}");
}

/// Found by a seed: one node sends an instance to another just before that is closed, too.
#[tokio::test]
async fn an_instance_that_has_just_arrived_is_not_moved_again_before_its_migration_is_over() {
    let mut plan = SitePlan::uniform(3, 0);
    plan.instances = vec![InstancePlan::new("train").on("gpu-01"), InstancePlan::new("other").on("gpu-03")];
    let mut sim = Sim::new(plan.clone(), 1);
    for node in ["gpu-01", "gpu-02"] {
        let mut order = order(&plan, 2);
        order.nodes = vec![node.parse().unwrap()];
        sim.order(&order).await;
        let arrived = |sim: &Sim| sim.world.snapshot().instance("train").unwrap().host.as_deref() == Some("gpu-02");
        sim.run_until(async |sim| arrived(sim)).await;
    }
    sim.run_until(only_waits).await;
    let twice = |event: &WorldEvent| matches!(event.what, Happened::MigrationRequested { under_way: true, .. });
    assert!(!sim.world.events().iter().any(twice), "{:#?}", sim.world.events());
}

/// A migration may run for days. Going back waits for it, but somebody must be told.
#[tokio::test]
async fn going_back_from_a_migration_that_never_ends_becomes_a_question() {
    let mut plan = SitePlan::uniform(3, 1);
    plan.instance("gpu-01-a").unwrap().fault = MoveFault::new(MoveGoesWrong::Hangs, ALWAYS, "");
    let mut sim = Sim::new(plan.clone(), 1);
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    sim.order(&order).await;
    sim.run_until(only_waits).await;
    let asking = sim.open().await.into_iter().find(|document| document.status == Status::NeedsOperator).unwrap();
    sim.signal(&asking.id, SignalKind::answer("unwind".to_owned())).await;
    let asks_again = async |sim: &Sim| sim.document(&asking.id).await.seq > asking.seq && only_waits(sim).await;
    let patience = sim.clock.now() + Duration::from_secs(86_400);
    sim.run_until(async |sim: &Sim| sim.clock.now() > patience || asks_again(sim).await).await;
    assert!(sim.clock.now() <= patience, "a day, and nobody was asked: {}", sim.document(&asking.id).await.headline);
}

/// Its boot ticket was withdrawn while it was asked about, the answer to that was lost, and then the operator wanted another try.
#[tokio::test]
async fn no_node_is_reset_without_the_boot_ticket_that_it_is_reset_for() {
    let mut plan = SitePlan::uniform(3, 0).loses_answer(Call::Withdraw, 1);
    // Until it becomes a question, and a few times more.
    plan.node("gpu-01").unwrap().faults.ignores_boot_override = 10;
    let mut sim = Sim::new(plan.clone(), 1);
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let rollout = sim.order(&order).await;
    sim.run_until(only_waits).await;
    let asking = sim.open().await.into_iter().find(|document| document.status == Status::NeedsOperator).expect("it asks");
    assert_eq!(sim.world.snapshot().node("gpu-01").unwrap().staged, None);
    sim.signal(&asking.id, SignalKind::answer("retry")).await;
    sim.run_until(async |sim| sim.document(&asking.id).await.seq > asking.seq).await;
    sim.run_until(only_waits).await;
    let resets: Vec<WorldEvent> =
        sim.world.events().into_iter().filter(|event| matches!(event.what, Happened::ResetRequested { .. })).collect();
    assert_eq!(resets.len(), 1);
    assert!(matches!(&resets[0].what, Happened::ResetRequested { token: Some(_), .. }), "{resets:#?}");
    assert_eq!(sim.document(&rollout).await.status, Status::Succeeded);
}
