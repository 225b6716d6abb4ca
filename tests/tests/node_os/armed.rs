//! A node's boot ticket is there while it is about to be reset or may be being installed, and at no other time: whoever waits for an operator may wait for
//! long, and a node that is opened meanwhile must survive its next restart.

use turnaround_workflows::engine::seal;
use turnaround_workflows::rehearsal::WorldEvent;
use turnaround_workflows::store::{Advance, Claim, Commit, Committed, Next};

use super::*;

impl Scenario {
    async fn tell(&mut self, kind: SignalKind) {
        self.sim.signal(&self.node("gpu-01"), kind).await;
    }

    /// Until the node's workflow is at `step`, which has said `note`.
    async fn until_at(&mut self, step: &str, note: &str) {
        let id = self.node("gpu-01");
        self.sim
            .run_until(async |sim| {
                let open = sim.open().await.into_iter().any(|document| document.id == id);
                let state = if open { Some(sim.state(&id).await) } else { None };
                state.is_some_and(|state| state.note.contains(note) && state.current.is_some_and(|current| current.step == step))
            })
            .await;
    }
}

#[tokio::test]
async fn a_bmc_that_takes_no_boot_device_leaves_no_boot_ticket_behind_while_an_operator_is_asked() {
    let mut scenario = Scenario::new(with_faults(NodeFaults { ignores_boot_override: 8, ..NodeFaults::default() }), &["gpu-01"], 1).await;
    scenario.rest().await;
    assert_eq!(scenario.state("gpu-01").await.current.unwrap().step, "reprovision");
    assert_eq!((scenario.status("gpu-01").await, scenario.staged("gpu-01")), (Status::NeedsOperator, None));
    scenario.answer("gpu-01", "retry").await;
    scenario.succeeded("gpu-01").await;
    assert_eq!(scenario.resets("gpu-01"), 1);
    scenario.is_clean();
}

#[tokio::test]
async fn nor_does_one_that_never_says_yes_and_its_words_are_shown() {
    let mut plan = SitePlan::uniform(3, 0);
    let bmc = Api::Bmc;
    // From after the first look on, until the deadline of the step is long over.
    plan.faults.outages = vec![Outage { api: bmc, node: None, from: 2 * SECOND, lasts: 2 * HOUR }];
    let mut scenario = Scenario::new(plan, &["gpu-01"], 1).await;
    scenario.rest().await;
    assert_eq!((scenario.status("gpu-01").await, scenario.staged("gpu-01"), scenario.resets("gpu-01")), (Status::NeedsOperator, None, 0));
    scenario.sim.clock.advance_to(MORNING + 3 * HOUR);
    scenario.answer("gpu-01", "retry").await;
    scenario.succeeded("gpu-01").await;
    scenario.is_clean();
}

/// Each try is one that may have worked, for three minutes: the tenth one is under way when the half hour of the step is over.
#[tokio::test]
async fn nobody_is_asked_about_a_reset_before_it_is_certain_that_it_has_not_happened_and_what_the_bmc_said_is_shown() {
    let mut plan = with_faults(NodeFaults { ignores_reset: ALWAYS, ..NodeFaults::default() });
    for nth in 1..=20 {
        plan = plan.loses_answer(Call::Reset, nth);
    }
    let mut scenario = Scenario::new(plan, &["gpu-01"], 1).await;
    scenario.rest().await;
    let question = scenario.question("gpu-01").await;
    assert!(question.text.contains("was not reset into the network, however often"), "{question:?}");
    assert!(question.seen.iter().any(|line| line.contains("reset gpu-01")), "{question:?}");
    let reset = scenario.sim.world.events().into_iter().rfind(|event| matches!(event.what, Happened::ResetRequested { .. })).unwrap();
    let asked = scenario.sim.clock.now();
    assert!(asked.since(reset.at) >= 3 * MINUTE, "asked at {asked}, reset at {}", reset.at);
    assert_eq!((scenario.staged("gpu-01"), scenario.resets("gpu-01")), (None, 10));
}

#[tokio::test]
async fn a_node_that_waits_to_be_reset_while_it_is_paused_has_no_boot_ticket() {
    let mut plan = SitePlan::uniform(3, 0);
    plan.faults.outages = vec![Outage { api: Api::NetBoot, node: None, from: Duration::ZERO, lasts: 2 * HOUR }];
    let mut scenario = Scenario::new(plan, &["gpu-01"], 1).await;
    scenario.rest().await;
    scenario.sim.clock.advance_to(MORNING + 3 * HOUR);
    scenario.tell(SignalKind::answer("retry")).await;
    scenario.until_at("reprovision", "waits").await;
    scenario.tell(SignalKind::Pause { why: "the night".to_owned() }).await;
    scenario.rest().await;
    assert_eq!((scenario.status("gpu-01").await, scenario.staged("gpu-01"), scenario.resets("gpu-01")), (Status::Paused, None, 0));
    scenario.sim.clock.advance(HOUR);
    scenario.tell(SignalKind::Resume).await;
    scenario.rest().await;
    scenario.succeeded("gpu-01").await;
    assert_eq!(scenario.resets("gpu-01"), 1);
    scenario.is_clean();
}

#[tokio::test]
async fn an_instance_whose_place_was_chosen_while_it_was_paused_is_not_wiped() {
    let mut plan = SitePlan::uniform(3, 1)
        .happens(10 * MINUTE, Happens::ServiceEnabled { node: "gpu-01".to_owned() })
        .happens(10 * MINUTE, Happens::InstanceCreated(InstancePlan::new("late").on("gpu-01")))
        .happens(10 * MINUTE + SECOND, Happens::ServiceDisabled { node: "gpu-01".to_owned(), reason: "closed again, by ada".to_owned() });
    plan.latencies.schedule = 20 * SECOND;
    let mut scenario = Scenario::new(plan, &["gpu-01"], 1).await;
    scenario.until_at("evacuate", "").await;
    scenario.tell(SignalKind::Pause { why: "lunch".to_owned() }).await;
    scenario.rest().await;
    scenario.sim.clock.advance_to(MORNING + 10 * MINUTE + 2 * SECOND);
    scenario.tell(SignalKind::Resume).await;
    scenario.rest().await;
    scenario.succeeded("gpu-01").await;
    scenario.is_clean();
    let late = scenario.sim.world.snapshot().instance("late").unwrap().clone();
    assert!(late.vm_state == "active" && late.host.as_deref().is_some_and(|host| host != "gpu-01"), "{late:?}");
}

/// A person has paused a node, and another one its rollout.
async fn paused_by_both(rollout_first: bool) -> Scenario {
    let mut scenario = Scenario::new(SitePlan::uniform(3, 1), &["gpu-01"], 1).await;
    scenario.until_at("evacuate", "").await;
    let (rollout, node) = (scenario.rollout.clone(), scenario.node("gpu-01"));
    let mut pauses = [(&node, "hands in the rack"), (&rollout, "the night")];
    if rollout_first {
        pauses.reverse();
    }
    for (whom, why) in pauses {
        scenario.sim.signal(whom, SignalKind::Pause { why: why.to_owned() }).await;
        scenario.rest().await;
    }
    scenario
}

#[tokio::test]
async fn a_rollout_that_is_resumed_does_not_lift_what_a_person_wants_of_one_node() {
    for rollout_first in [false, true] {
        let mut scenario = paused_by_both(rollout_first).await;
        scenario.sim.clock.advance(HOUR);
        scenario.sim.signal(&scenario.rollout.clone(), SignalKind::Resume).await;
        scenario.rest().await;
        let paused = scenario.state("gpu-01").await.paused.expect("it stays paused");
        assert_eq!((paused.why.as_str(), scenario.resets("gpu-01")), ("hands in the rack", 0));
        scenario.tell(SignalKind::Resume).await;
        scenario.rest().await;
        scenario.succeeded("gpu-01").await;
    }
}

/// Neither of the two who want it to stand still ends what the other one wants.
#[tokio::test]
async fn who_resumes_one_node_does_not_lift_the_pause_of_its_rollout() {
    for rollout_first in [false, true] {
        let mut scenario = paused_by_both(rollout_first).await;
        assert_eq!(scenario.state("gpu-01").await.paused.unwrap().why, "hands in the rack");
        // Twice, because nobody had followed the first one yet.
        for _ in 0..2 {
            scenario.tell(SignalKind::Resume).await;
        }
        scenario.rest().await;
        let paused = scenario.state("gpu-01").await.paused.expect("its rollout is paused");
        assert_eq!((paused.why.as_str(), paused.is_by_a_person(), scenario.resets("gpu-01")), ("the night", false, 0));
        scenario.sim.clock.advance(HOUR);
        scenario.sim.signal(&scenario.rollout.clone(), SignalKind::Resume).await;
        scenario.rest().await;
        scenario.succeeded("gpu-01").await;
    }
}

/// One look that fails right after a pause is not two minutes of silence.
#[tokio::test]
async fn a_pause_uses_up_nothing_of_the_time_for_which_the_node_is_asked_what_runs_on_it() {
    let mut plan = SitePlan::uniform(3, 0);
    plan.node("gpu-01").unwrap().faults.unknown_guest = Some(UNKNOWN.to_owned());
    plan.faults.outages = vec![Outage { api: Api::Ssh, node: None, from: 30 * SECOND, lasts: 2 * HOUR + MINUTE }];
    let mut scenario = Scenario::new(plan, &["gpu-01"], 1).await;
    scenario.until_at("stage-image", "does not tell what runs on it").await;
    scenario.tell(SignalKind::Pause { why: "the network".to_owned() }).await;
    scenario.rest().await;
    scenario.sim.clock.advance_to(MORNING + 2 * HOUR);
    scenario.tell(SignalKind::Resume).await;
    scenario.rest().await;
    let question = scenario.question("gpu-01").await;
    assert_eq!(question.text, "gpu-01 is empty by Nova's word, and not by its own: what now?");
    assert!(question.seen[0].contains(UNKNOWN), "{question:?}");
    let is_staged = |event: &WorldEvent| matches!(event.what, Happened::TicketStaged { .. });
    assert!(!scenario.sim.world.events().iter().any(is_staged), "it waits for the node's word");
}

/// Its journal says nothing any more that could be believed; its name is on the ticket.
#[tokio::test]
async fn whoever_discards_a_workflow_that_is_set_apart_leaves_no_boot_ticket_of_its_behind() {
    let mut scenario = Scenario::new(with_faults(NodeFaults { never_comes_back: 1, ..NodeFaults::default() }), &["gpu-01"], 1).await;
    scenario.rest().await;
    assert!(scenario.staged("gpu-01").is_some(), "it may be being installed");
    let id = scenario.node("gpu-01");
    scenario.sim.signal(&id, SignalKind::answer("nonsense")).await;
    let served = scenario.sim.registry.queues();
    let claim = Claim { max: 1, lease: MINUTE, worker: "by hand".to_owned(), queues: served };
    let claimed = scenario.sim.store.advance(&Advance { lease: MINUTE, claim: Some(claim), ..Advance::default() }).await.unwrap().claimed.remove(0);
    let document = claimed.document;
    assert_eq!(document.id, id);
    let last = Entry::read(&claimed.journal.last().unwrap().body).unwrap();
    // Sealed over nothing.
    let forged = seal(None, &Entry { seq: document.seq + 1, ..last }).unwrap();
    let commit = Commit {
        id: id.clone(),
        fence: claimed.fence,
        expected: document.seq,
        entries: vec![forged],
        state: None,
        status: document.status,
        headline: document.headline,
        consumed: 1,
        take: Vec::new(),
        give: Vec::new(),
        create: Vec::new(),
        signals: Vec::new(),
        traceparent: None,
        next: Next::At(scenario.sim.clock.now()),
        queue: document.queue,
    };
    let done = scenario.sim.store.advance(&Advance { lease: MINUTE, commits: vec![commit], ..Advance::default() }).await.unwrap();
    assert!(matches!(done.commits[0], Committed::Done { .. }), "{:?}", done.commits);
    let apart = async |sim: &Sim| sim.document(&id).await.status == Status::Quarantined;
    scenario.sim.run_until(apart).await;
    scenario.sim.signal(&id, SignalKind::Abort { why: "mended by hand".to_owned() }).await;
    let ended = async |sim: &Sim| sim.document(&id).await.status.is_ended();
    scenario.sim.run_until(ended).await;
    assert_eq!((scenario.status("gpu-01").await, scenario.staged("gpu-01")), (Status::Failed, None));
}

/// Its machine is another one, which runs what its tenants have there.
#[tokio::test]
async fn the_bmc_of_another_node_is_asked_for_nothing_and_an_operator_is() {
    let mut plan = SitePlan::uniform(3, 1).happens(24 * HOUR, Happens::BmcCorrected { node: "gpu-01".to_owned() });
    plan.node("gpu-01").unwrap().faults.bmc_of = Some("gpu-02".to_owned());
    let mut scenario = Scenario::new(plan, &["gpu-01"], 1).await;
    scenario.rest().await;
    let question = scenario.question("gpu-01").await;
    assert_eq!(question.text, "the configuration gives gpu-01 the BMC of gpu-02, or its MAC address: what now?");
    assert!(question.seen.iter().any(|line| line.contains("may take down gpu-02")), "{question:?}");
    let is_touched = |event: &WorldEvent| matches!(event.what, Happened::ResetRequested { .. } | Happened::BootOverride { .. });
    assert_eq!(scenario.sim.world.events().iter().filter(|event| is_touched(event)).count(), 0);
    assert_eq!(scenario.staged("gpu-01"), None);
    // Asked again while it is as it was.
    scenario.answer("gpu-01", "retry").await;
    assert_eq!(scenario.status("gpu-01").await, Status::NeedsOperator);
    scenario.sim.clock.advance_to(MORNING + 24 * HOUR);
    scenario.answer("gpu-01", "retry").await;
    scenario.succeeded("gpu-01").await;
    assert_eq!((scenario.resets("gpu-01"), scenario.resets("gpu-02")), (1, 0));
    scenario.is_clean();
}

/// What its BMC tells agrees with its MAC address: both are another node's. Its own word does not.
#[tokio::test]
async fn nor_that_of_the_node_whose_mac_address_the_configuration_gives_it() {
    for ironic in [false, true] {
        let mut plan = SitePlan::uniform(3, 1).happens(24 * HOUR, Happens::BmcCorrected { node: "gpu-01".to_owned() }).happens(24 * HOUR, Happens::BmcCorrected { node: "gpu-02".to_owned() });
        if ironic {
            plan = plan.with_ironic(&["gpu-01"]);
        }
        for (node, other) in [("gpu-01", "gpu-02"), ("gpu-02", "gpu-01")] {
            let faults = &mut plan.node(node).unwrap().faults;
            (faults.bmc_of, faults.mac_of) = (Some(other.to_owned()), Some(other.to_owned()));
        }
        let mut scenario = Scenario::new(plan, &["gpu-01"], 1).await;
        scenario.rest().await;
        let question = scenario.question("gpu-01").await;
        let text = if ironic { "gpu-01 can't be rebuilt as it is: what now?" } else { "the configuration gives gpu-01 the MAC address of another node: what now?" };
        assert_eq!(question.text, text);
        assert!(question.seen.iter().any(|line| line.contains("by its own word, gpu-01 has the `mac` of gpu-02")), "{question:?}");
        let is_touched = |event: &WorldEvent| matches!(event.what, Happened::ResetRequested { .. } | Happened::BootOverride { .. } | Happened::RebuildRequested { .. });
        assert_eq!(scenario.sim.world.events().iter().filter(|event| is_touched(event)).count(), 0);
        assert_eq!(scenario.staged("gpu-01"), None);
        scenario.answer("gpu-01", "retry").await;
        assert_eq!(scenario.status("gpu-01").await, Status::NeedsOperator);
        scenario.sim.clock.advance_to(MORNING + 24 * HOUR);
        scenario.answer("gpu-01", "retry").await;
        scenario.succeeded("gpu-01").await;
        assert_eq!((scenario.resets("gpu-01"), scenario.resets("gpu-02")), (usize::from(!ironic), 0));
        scenario.is_clean();
    }
}

/// A card that the system does not drive is in none of its interfaces: only somebody who knows the machine can tell.
#[tokio::test]
async fn who_knows_that_the_system_does_not_show_its_interface_says_so_once() {
    let mut plan = SitePlan::uniform(3, 1);
    plan.node("gpu-01").unwrap().faults.tells_macs = Some(vec!["02:00:5e:99:00:01".to_owned()]);
    let mut scenario = Scenario::new(plan, &["gpu-01"], 1).await;
    scenario.rest().await;
    let question = scenario.question("gpu-01").await;
    assert_eq!(question.text, "gpu-01 has no interface with the MAC address that the configuration gives it: what now?");
    assert!(question.seen[0].starts_with("by its own word it has 02:00:5e:99:00:01: another machine may"), "{question:?}");
    assert_eq!((scenario.staged("gpu-01"), scenario.resets("gpu-01")), (None, 0));
    scenario.answer("gpu-01", "reset").await;
    scenario.succeeded("gpu-01").await;
    scenario.is_clean();
}

const UNKNOWN: &str = "0c9b0f6e-0000-4000-8000-00000000000d";

/// What Nova calls gpu-01 may be another machine than that which answers us, or somebody has started it by hand.
#[tokio::test]
async fn a_node_on_which_runs_what_nova_does_not_know_is_not_wiped() {
    for ironic in [false, true] {
        let mut plan = SitePlan::uniform(3, 1).happens(24 * HOUR, Happens::UnknownGuestStopped { node: "gpu-01".to_owned() });
        if ironic {
            plan = plan.with_ironic(&["gpu-01"]);
        }
        plan.node("gpu-01").unwrap().faults.unknown_guest = Some(UNKNOWN.to_owned());
        let mut scenario = Scenario::new(plan, &["gpu-01"], 1).await;
        scenario.rest().await;
        let question = scenario.question("gpu-01").await;
        let text = if ironic { "gpu-01 can't be rebuilt as it is: what now?" } else { "gpu-01 is empty by Nova's word, and not by its own: what now?" };
        assert_eq!(question.text, text);
        assert!(question.seen[0].starts_with(&format!("by its own processes, virtual machine {UNKNOWN} runs on it")), "{question:?}");
        assert_eq!((scenario.staged("gpu-01"), scenario.resets("gpu-01")), (None, 0));
        scenario.answer("gpu-01", "retry").await;
        assert_eq!(scenario.status("gpu-01").await, Status::NeedsOperator);
        scenario.sim.clock.advance_to(MORNING + 24 * HOUR);
        scenario.answer("gpu-01", "retry").await;
        scenario.succeeded("gpu-01").await;
        scenario.is_clean();
    }
}

/// The last word is asked right before the reset, too: it may not have answered before.
#[tokio::test]
async fn nor_one_that_says_so_only_right_before_its_reset() {
    let mut plan = SitePlan::uniform(3, 0);
    plan.node("gpu-01").unwrap().faults.unknown_guest = Some(UNKNOWN.to_owned());
    // So long that its stock is not taken, and nobody waits for its word before anything is staged; over by the time that its BMC answers.
    plan.faults.outages = vec![
        Outage { api: Api::Ssh, node: None, from: Duration::ZERO, lasts: 3 * MINUTE + 30 * SECOND },
        Outage { api: Api::Bmc, node: None, from: Duration::ZERO, lasts: 3 * MINUTE + 35 * SECOND },
    ];
    let mut scenario = Scenario::new(plan, &["gpu-01"], 1).await;
    scenario.rest().await;
    let question = scenario.question("gpu-01").await;
    assert_eq!(question.text, "gpu-01 is not closed and empty right before its reset: what now?");
    assert!(question.seen[0].contains(UNKNOWN), "{question:?}");
    assert_eq!((scenario.staged("gpu-01"), scenario.resets("gpu-01")), (None, 0));
}
