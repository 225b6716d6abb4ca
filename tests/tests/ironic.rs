//! A node that Ironic renews: every trouble that Ironic was seen to make, or can be thought to, one each, in virtual time.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use turnaround_proof::checker::{self, Rule, Violation};
use turnaround_proof::sim::{Death, MORNING, Sim, order};
use turnaround_workflows::clock::{Clock as _, Timestamp};
use turnaround_workflows::engine::{Question, SignalKind, check_chain, start};
use turnaround_workflows::rehearsal::{ALWAYS, Call, Happened, Happens, InstancePlan, NodeFaults, Outage, Api, RecordPlan, SitePlan};
use turnaround_workflows::store::{Status, WorkflowId};
use turnaround_workflows::updates::{self, DryRunReport};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const NODE: &str = "gpu-01";
const OLD_KERNEL: &str = "5.15.0-119-generic";
const NEW_KERNEL: &str = "6.8.0-60-generic";

/// Two nodes that Ironic renews, the first with an instance.
fn site() -> SitePlan {
    let mut plan = SitePlan::uniform(2, 0).with_ironic(&[NODE]);
    plan.instances = vec![InstancePlan::new("train").on(NODE)];
    plan
}

fn with_faults(faults: NodeFaults) -> SitePlan {
    let mut plan = site();
    plan.node(NODE).unwrap().faults = faults;
    plan
}

fn with_record(record: RecordPlan) -> SitePlan {
    let mut plan = site();
    plan.node(NODE).unwrap().ironic = Some(record);
    plan
}

/// The renewal of one node.
struct Renewal {
    sim: Sim,
    child: WorkflowId,
}

impl Renewal {
    /// Begun, and brought as far as it comes by itself.
    async fn of(plan: SitePlan) -> Renewal {
        let sim = Sim::new(plan.clone(), 7);
        Renewal::with(sim, &plan).await
    }

    async fn with(sim: Sim, plan: &SitePlan) -> Renewal {
        let mut renewal = Renewal::begun(sim, plan).await;
        renewal.sim.run().await;
        renewal
    }

    async fn begun(sim: Sim, plan: &SitePlan) -> Renewal {
        let mut order = order(plan, 1);
        order.nodes.truncate(1);
        let rollout = sim.order(&order).await;
        let child = sim.child(&rollout, NODE).await;
        Renewal { sim, child }
    }

    fn times(&self, wanted: impl Fn(&Happened) -> bool) -> usize {
        self.sim.world.events().iter().filter(|event| wanted(&event.what)).count()
    }

    /// Rebuilds that Ironic began.
    fn rebuilds(&self) -> usize {
        self.times(|what| matches!(what, Happened::RebuildRequested { refused: None, .. }))
    }

    async fn question(&self) -> Question {
        let state = self.sim.state(&self.child).await;
        state.question().cloned().unwrap_or_else(|| panic!("it asks nothing: {}", state.headline()))
    }

    async fn answer(&mut self, key: &str) {
        assert!(self.question().await.find(key).is_some(), "`{key}` can be answered");
        self.sim.clock.advance(SECOND);
        self.sim.signal(&self.child.clone(), SignalKind::answer(key.to_owned())).await;
        self.sim.run().await;
    }

    async fn succeeded(&self) {
        let document = self.sim.document(&self.child).await;
        assert_eq!(document.status, Status::Succeeded, "{}", document.headline);
        let site = self.sim.world.snapshot();
        let node = site.node(NODE).unwrap();
        assert_eq!((node.kernel.as_str(), node.enabled), (NEW_KERNEL, true));
    }

    fn judged(&self, rules: &checker::Rules) -> Vec<Violation> {
        let log: String = self.sim.world.events().iter().map(|event| serde_json::to_string(event).unwrap() + "\n").collect();
        checker::judge(&log, rules)
    }

    fn is_clean(&self) {
        assert_eq!(self.judged(&one_out()), []);
    }

    /// As if all had gone well, with so many rebuilds more as an operator has asked for.
    fn is_clean_but_for_rebuilds_again(&self, again: usize) {
        assert_eq!(self.judged(&checker::Rules { resets_again: BTreeMap::from([(NODE.to_owned(), again)]), ..one_out() }), []);
    }

    /// Its instance is where it was, and so is its system.
    fn is_untouched(&self, enabled: bool) {
        let site = self.sim.world.snapshot();
        let node = site.node(NODE).unwrap();
        assert_eq!((node.kernel.as_str(), node.enabled, node.instances), (OLD_KERNEL, enabled, 1));
        assert_eq!(self.times(|what| matches!(what, Happened::RebuildRequested { .. } | Happened::MigrationRequested { .. })), 0);
    }
}

fn one_out() -> checker::Rules {
    checker::Rules { out_max: 1, ..checker::Rules::default() }
}

fn mentions(question: &Question, what: &str) -> bool {
    question.seen.iter().any(|seen| seen.contains(what))
}

/// When the rebuild is asked for, if all goes well.
async fn rebuilt_at(plan: &SitePlan) -> Timestamp {
    let renewal = Renewal::of(plan.clone()).await;
    let events = renewal.sim.world.events();
    events.iter().find(|event| matches!(event.what, Happened::RebuildRequested { .. })).unwrap().at
}

#[tokio::test]
async fn ironic_rebuilds_the_node_once_and_our_own_netboot_has_no_part_in_it() {
    let renewal = Renewal::of(site()).await;
    renewal.succeeded().await;
    renewal.is_clean();
    let site = renewal.sim.world.snapshot();
    let token = site.node(NODE).unwrap().installed.clone().unwrap();
    assert!(token.starts_with(renewal.child.as_str()), "{token}");
    assert_eq!(renewal.rebuilds(), 1);
    let ours = |what: &Happened| matches!(what, Happened::ResetRequested { .. } | Happened::BootOverride { .. } | Happened::TicketStaged { .. });
    assert_eq!(renewal.times(ours), 0);
}

#[tokio::test]
async fn a_rollout_renews_each_node_in_its_own_way() {
    let plan = site();
    let mut sim = Sim::new(plan.clone(), 7);
    let rollout = sim.order(&order(&plan, 1)).await;
    sim.run().await;
    assert_eq!(sim.document(&rollout).await.status, Status::Succeeded);
    let kinds = [sim.document(&sim.child(&rollout, "gpu-01").await).await.kind, sim.document(&sim.child(&rollout, "gpu-02").await).await.kind];
    assert_eq!(kinds, ["node-os-ironic", "node-os"]);
    let done = |what: &Happened| match what {
        Happened::RebuildRequested { node, .. } => Some(format!("rebuild {node}")),
        Happened::ResetRequested { node, .. } => Some(format!("reset {node}")),
        _ => None,
    };
    let done: Vec<String> = sim.world.events().iter().filter_map(|event| done(&event.what)).collect();
    assert_eq!(done, ["rebuild gpu-01", "reset gpu-02"]);
}

#[tokio::test]
async fn a_dry_run_says_what_ironic_would_do_and_what_speaks_against_it() {
    let mut plan = site().with_ironic(&["gpu-02"]);
    plan.node("gpu-02").unwrap().ironic = Some(RecordPlan { maintenance: Some("DIMM, ask bob".to_owned()), ..RecordPlan::default() });
    let mut sim = Sim::new(plan.clone(), 7);
    let new = updates::dry_run(&order(&plan, 1), "tester").unwrap();
    let id = new.id.clone();
    sim.store.create(start(new, sim.clock.now()).unwrap()).await.unwrap();
    sim.run().await;
    let state = sim.state(&id).await;
    let report: DryRunReport = serde_json::from_value(state.steps.last().unwrap().output.clone().unwrap()).unwrap();
    let line = |node: &str, step: &str| report.lines.iter().find(|line| line.node.as_str() == node && line.step == step).unwrap().would.clone();
    assert_eq!(line("gpu-01", "check-record"), "look whether gpu-01 may be rebuilt; now: it may");
    assert_eq!(line("gpu-01", "rebuild"), "have Ironic rebuild gpu-01 with image node-26.1.1 (24.04), which wipes its system disk");
    assert_eq!(line("gpu-01", "await-rebuild"), "wait until gpu-01 reports its installation of 24.04");
    assert_eq!(line("gpu-02", "check-record"), "gpu-02 can't be rebuilt as it is: Ironic has gpu-02 in maintenance: DIMM, ask bob");
    let problems: Vec<_> = report.lines.iter().filter(|line| line.problem).map(|line| (line.node.as_str(), line.step.as_str())).collect();
    assert_eq!(problems, [("gpu-02", "check-record")]);
    assert!(!report.lines.iter().any(|line| line.step == "stage-image"));
    assert_eq!(sim.world.events().len(), 1, "nothing was done");
}

/// Two people order the same node: the second one waits for the first, and asks nobody about what the first one does.
#[tokio::test]
async fn two_rollouts_of_one_node_rebuild_it_one_after_the_other() {
    let plan = site();
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let rollouts = [sim.order(&order).await, sim.order(&order).await];
    let over = MORNING + 6 * HOUR;
    sim.run_until(async |sim| sim.clock.now() > over || sim.open().await.is_empty()).await;
    for rollout in &rollouts {
        assert_eq!(sim.document(rollout).await.status, Status::Succeeded);
    }
    let rebuilt = |what: &Happened| matches!(what, Happened::RebuildRequested { refused: None, .. });
    assert_eq!(sim.world.events().iter().filter(|event| rebuilt(&event.what)).count(), 2);
    let log: String = sim.world.events().iter().map(|event| serde_json::to_string(event).unwrap() + "\n").collect();
    assert_eq!(checker::judge(&log, &one_out()), []);
}

// --- nodes that are not rebuilt ---

#[tokio::test]
async fn a_node_that_ironic_would_not_or_should_not_rebuild_is_asked_about_before_it_is_emptied() {
    let records = [
        (RecordPlan { maintenance: Some("DIMM, ask bob".to_owned()), ..RecordPlan::default() }, "in maintenance: DIMM, ask bob"),
        (RecordPlan { protected: true, ..RecordPlan::default() }, "protected"),
        // (Ironic itself would rebuild it.)
        (RecordPlan { tenant: Some("6f1c".to_owned()), ..RecordPlan::default() }, "the machine of instance 6f1c"),
    ];
    for (record, told) in records {
        let mut renewal = Renewal::of(with_record(record)).await;
        let question = renewal.question().await;
        assert!(mentions(&question, told), "{question:?}");
        renewal.is_untouched(false);
        renewal.answer("unwind").await;
        assert!(renewal.sim.document(&renewal.child).await.status.is_ended());
        renewal.is_untouched(true);
        renewal.is_clean();
    }
}

#[tokio::test]
async fn a_node_that_somebody_puts_into_maintenance_meanwhile_is_not_rebuilt() {
    let plan = site().happens(10 * SECOND, Happens::MaintenanceSet { node: NODE.to_owned(), reason: Some("DIMM".to_owned()) });
    let plan = plan.happens(2 * HOUR, Happens::MaintenanceSet { node: NODE.to_owned(), reason: None });
    let mut renewal = Renewal::of(plan).await;
    let question = renewal.question().await;
    assert!(mentions(&question, "in maintenance: DIMM"), "{question:?}");
    assert_eq!(renewal.times(|what| matches!(what, Happened::RebuildRequested { .. })), 0);
    assert!(!renewal.sim.world.snapshot().node(NODE).unwrap().enabled, "it stays closed meanwhile");
    renewal.sim.clock.advance(3 * HOUR);
    renewal.answer("retry").await;
    renewal.succeeded().await;
    renewal.is_clean();
}

/// Between the last look at Ironic's record and its answer: it says no itself, in words that are passed on.
#[tokio::test]
async fn a_refusal_is_a_question_in_ironics_own_words_and_leaves_a_node_closed_if_that_is_wanted() {
    let at = rebuilt_at(&site()).await.since(MORNING);
    let mut asked = 0;
    for calls in 0..60_u32 {
        let after = at + calls * Duration::from_millis(100);
        let plan = site().happens(after, Happens::MaintenanceSet { node: NODE.to_owned(), reason: Some("DIMM".to_owned()) });
        let mut sim = Sim::new(plan.clone(), 7);
        sim.call_takes = Duration::from_millis(100);
        let mut renewal = Renewal::with(sim, &plan).await;
        let state = renewal.sim.state(&renewal.child).await;
        let Some(question) = state.question() else { continue };
        if question.text.contains("was refused") {
            asked += 1;
            assert!(mentions(question, "because it's in maintenance mode"), "{question:?}");
            assert_eq!(renewal.rebuilds(), 0);
            renewal.answer("leave").await;
            let site = renewal.sim.world.snapshot();
            let node = site.node(NODE).unwrap();
            assert_eq!((node.enabled, node.kernel.as_str()), (false, OLD_KERNEL));
        }
    }
    assert!(asked > 0, "in none of them the moment was met");
}

#[tokio::test]
async fn a_node_that_is_locked_for_a_while_is_waited_for() {
    for from in [Duration::ZERO, 30 * SECOND, MINUTE] {
        let plan = site().happens(from, Happens::RecordLocked { node: NODE.to_owned(), lasts: 10 * MINUTE });
        let renewal = Renewal::of(plan).await;
        renewal.succeeded().await;
        // Waiting is no failure.
        let journal = renewal.sim.store.journal(&renewal.child, 1, 500).await.unwrap();
        assert!(!journal.iter().any(|entry| entry.body.contains("step-failed")), "{journal:#?}");
        assert_eq!(renewal.rebuilds(), 1);
        renewal.is_clean();
    }
}

/// A rebuild that an operator wanted, and a record that somebody has locked for days: it does not wait for ever without a word.
#[tokio::test]
async fn a_record_that_stays_locked_before_a_second_rebuild_is_a_question_in_the_end() {
    let mut plan = site().happens(2 * HOUR, Happens::RecordLocked { node: NODE.to_owned(), lasts: 48 * HOUR });
    plan.node(NODE).unwrap().faults.rebuild_fails = 1;
    let mut renewal = Renewal::of(plan).await;
    let asks = async |renewal: &Renewal| renewal.sim.document(&renewal.child).await.status == Status::NeedsOperator;
    assert!(asks(&renewal).await);
    renewal.sim.clock.advance_to(MORNING + 2 * HOUR + MINUTE);
    renewal.sim.signal(&renewal.child, SignalKind::answer("rebuild")).await;
    let child = renewal.child.clone();
    let later = renewal.sim.clock.now() + 3 * HOUR;
    renewal.sim.run_until(async |sim| sim.clock.now() >= later || sim.state(&child).await.questions == 2).await;
    assert!(asks(&renewal).await, "{}", renewal.sim.document(&child).await.headline);
    assert_eq!(renewal.rebuilds(), 1);
    let seen = renewal.sim.state(&child).await.question().unwrap().seen.clone();
    assert!(seen.iter().any(|line| line.contains("has it locked")), "{seen:?}");
}

/// At whatever moment somebody takes the lock.
#[tokio::test]
async fn a_lock_that_is_taken_between_our_own_calls_costs_time_and_nothing_else() {
    let at = rebuilt_at(&site()).await.since(MORNING);
    for back in 0..12 {
        let plan = site().happens(at + 2 * SECOND - back * Duration::from_millis(200), Happens::RecordLocked { node: NODE.to_owned(), lasts: MINUTE });
        let mut sim = Sim::new(plan.clone(), 7);
        sim.call_takes = Duration::from_millis(100);
        let renewal = Renewal::with(sim, &plan).await;
        renewal.succeeded().await;
        assert_eq!(renewal.rebuilds(), 1, "{back}");
        renewal.is_clean();
    }
}

// --- outcomes that are not known ---

#[tokio::test]
async fn a_rebuild_whose_answer_is_lost_is_settled_by_looking_and_not_asked_for_again() {
    let renewal = Renewal::of(site().loses_answer(Call::Rebuild, 1)).await;
    renewal.succeeded().await;
    assert_eq!(renewal.times(|what| matches!(what, Happened::RebuildRequested { .. })), 1);
    renewal.is_clean();
}

/// It is over by the time that anybody looks, and Ironic would begin another one.
#[tokio::test]
async fn a_rebuild_whose_answer_is_lost_and_that_is_over_before_anybody_looks_is_not_asked_for_again() {
    let mut plan = site().loses_answer(Call::Rebuild, 1);
    let at = rebuilt_at(&plan).await.since(MORNING);
    plan.faults.outages.push(Outage { api: Api::Ironic, node: None, from: at + Duration::from_millis(1), lasts: MINUTE });
    plan.node(NODE).unwrap().install_time = 5 * SECOND;
    let renewal = Renewal::of(plan).await;
    renewal.succeeded().await;
    assert_eq!(renewal.times(|what| matches!(what, Happened::RebuildRequested { .. })), 1);
    renewal.is_clean();
}

#[tokio::test]
async fn who_waits_for_a_rebuild_that_may_still_come_is_told_until_when() {
    let renewed = async |death: &Death| {
        let mut sim = Sim::new(site(), 7);
        sim.deaths.push_back(death.clone());
        let renewal = Renewal::with(sim, &site()).await;
        renewal.succeeded().await;
        renewal.is_clean();
        renewal
    };
    let whole = Death::never();
    renewed(&whole).await;
    let point = (1..).zip(whole.names()).find(|(_, name)| name == "before rebuild").unwrap().0;
    let renewal = renewed(&Death::at(point)).await;
    let stored = renewal.sim.store.journal(&renewal.child, 1, 500).await.unwrap();
    let entries = check_chain(None, 1, &stored).unwrap();
    let place = |said: &str| entries.iter().position(|entry| entry.event.describe().contains(said)).unwrap_or_else(|| panic!("{said}: {entries:#?}"));
    let certain = entries[place("about to have it rebuilt")].at + 3 * MINUTE;
    place(&format!("looks whether the rebuild has begun; only at {certain} is it certain that it has not"));
    let asked: Vec<_> = renewal.sim.world.events().into_iter().filter(|event| matches!(event.what, Happened::RebuildRequested { .. })).collect();
    assert!(asked.len() == 1 && asked[0].at >= certain && asked[0].at < certain + 20 * SECOND, "{asked:?}");
}

#[tokio::test]
async fn an_order_whose_answer_is_lost_is_written_down_anew_and_the_node_is_rebuilt_once() {
    let renewal = Renewal::of(site().loses_answer(Call::OrderRebuild, 1)).await;
    renewal.succeeded().await;
    assert_eq!(renewal.rebuilds(), 1);
    renewal.is_clean();
}

#[tokio::test]
async fn an_ironic_that_is_away_is_waited_for() {
    let at = rebuilt_at(&site()).await.since(MORNING);
    for from in [Duration::ZERO, at - SECOND, at + 10 * SECOND] {
        let mut plan = site();
        plan.faults.outages.push(Outage { api: Api::Ironic, node: None, from, lasts: MINUTE });
        let renewal = Renewal::of(plan).await;
        renewal.succeeded().await;
        assert_eq!(renewal.rebuilds(), 1, "{from:?}");
        renewal.is_clean();
    }
}

// --- rebuilds that don't come out well ---

#[tokio::test]
async fn a_deployment_that_fails_is_a_question_and_is_rebuilt_once_more_if_that_is_the_answer() {
    let mut renewal = Renewal::of(with_faults(NodeFaults { rebuild_fails: 2, ..NodeFaults::default() })).await;
    for rebuilds in [1, 2] {
        let question = renewal.question().await;
        assert!(mentions(&question, "`deploy failed`") && mentions(&question, "No space left on device"), "{question:?}");
        assert_eq!(question.answers.iter().map(|answer| answer.key.as_str()).collect::<Vec<_>>(), ["rebuild", "retry", "leave"]);
        assert_eq!(renewal.rebuilds(), rebuilds);
        renewal.answer("rebuild").await;
    }
    renewal.succeeded().await;
    assert_eq!(renewal.rebuilds(), 3);
    renewal.is_clean_but_for_rebuilds_again(2);
}

#[tokio::test]
async fn a_node_that_is_left_after_a_failed_deployment_stays_closed_and_counts_as_out() {
    let mut renewal = Renewal::of(with_faults(NodeFaults { rebuild_fails: ALWAYS, ..NodeFaults::default() })).await;
    renewal.answer("leave").await;
    assert!(renewal.sim.document(&renewal.child).await.status.is_ended());
    assert!(!renewal.sim.world.snapshot().node(NODE).unwrap().enabled);
    assert_eq!(renewal.rebuilds(), 1);
    let held = renewal.sim.store.holdings().await.unwrap();
    assert!(held.iter().any(|held| held.resource.to_string().contains("nodes-out")), "{held:?}");
}

#[tokio::test]
async fn a_deployment_that_never_ends_is_a_question_at_its_deadline() {
    let mut renewal = Renewal::of(with_faults(NodeFaults { rebuild_hangs: 1, ..NodeFaults::default() })).await;
    for hours in [1, 2] {
        let question = renewal.question().await;
        assert!(renewal.sim.clock.now() > MORNING + hours * HOUR, "the deadline of an installation is an hour here");
        assert_eq!(question.text, format!("{NODE} has not come back from its rebuild: what now?"));
        assert!(mentions(&question, "Ironic has it as `deploy") && mentions(&question, "the node does not answer"), "{question:?}");
        renewal.answer("retry").await;
    }
    assert_eq!(renewal.rebuilds(), 1);
    assert!(renewal.question().await.find("rebuild").is_none(), "Ironic is at it still, and would refuse another one");
}

#[tokio::test]
async fn a_node_that_comes_back_old_is_not_believed_whatever_ironic_says() {
    let mut renewal = Renewal::of(with_faults(NodeFaults { rebuild_keeps_old: 1, ..NodeFaults::default() })).await;
    let question = renewal.question().await;
    assert!(question.text.contains("something else") && mentions(&question, "it carries no installation mark"), "{question:?}");
    assert!(mentions(&question, OLD_KERNEL) && mentions(&question, "it has booted since"), "{question:?}");
    renewal.answer("rebuild").await;
    renewal.succeeded().await;
    renewal.is_clean_but_for_rebuilds_again(1);
}

/// Its host key is new, and no mark vouches for it.
#[tokio::test]
async fn a_node_that_comes_back_without_our_mark_is_asked_about_and_rebuilt_once_more_if_that_is_wanted() {
    let mut renewal = Renewal::of(with_faults(NodeFaults { rebuild_unmarked: 1, ..NodeFaults::default() })).await;
    let question = renewal.question().await;
    assert!(question.text.contains("something else") && mentions(&question, "its host key is not known"), "{question:?}");
    renewal.answer("rebuild").await;
    renewal.succeeded().await;
    assert_eq!(renewal.rebuilds(), 2);
    renewal.is_clean_but_for_rebuilds_again(1);
}

/// Its host key is not known, so it can't be asked how it is.
#[tokio::test]
async fn a_node_that_was_left_as_a_stranger_is_renewed_all_the_same() {
    let plan = with_faults(NodeFaults { rebuild_unmarked: 1, ..NodeFaults::default() });
    let mut renewal = Renewal::of(plan.clone()).await;
    renewal.answer("leave").await;
    let mut renewal = Renewal::with(renewal.sim, &plan).await;
    let question = renewal.question().await;
    assert!(question.text.contains("can't be told by comparing"), "{question:?}");
    renewal.answer("accept").await;
    renewal.succeeded().await;
}

/// What is said not to have begun, and has, is not begun again.
#[tokio::test]
async fn a_rebuild_that_a_proxy_asks_for_twice_is_done_once() {
    let renewal = Renewal::of(with_faults(NodeFaults { rebuild_repeated: 1, ..NodeFaults::default() })).await;
    renewal.succeeded().await;
    assert_eq!(renewal.rebuilds(), 1);
    renewal.is_clean();
}

/// A worker that was stopped between its last look and its request wakes up when the node is back, and has instances.
#[tokio::test]
async fn a_rebuild_that_comes_when_the_node_is_back_is_refused_and_the_next_renewal_takes_place() {
    let renewal = Renewal::of(site()).await;
    renewal.succeeded().await;
    let world = &renewal.sim.world;
    let ours = world.ironic_node(NODE).unwrap().ordered.unwrap();
    let late = turnaround_workflows::ports::Installed { token: ours.token, sha256: ours.sha256 };
    let refused = world.request_rebuild(NODE, late).unwrap_err();
    assert!(format!("{refused:?}").contains("is protected"), "{refused:?}");
    assert!(world.snapshot().node(NODE).unwrap().enabled, "as if nothing had been asked");
    assert!(world.ironic_node(NODE).unwrap().protected_reason.is_some_and(|reason| reason.starts_with("turnaround:")));
    let ports = world.ports();
    assert!(ports.rebuilder.record(&NODE.parse().unwrap()).await.unwrap().objections.is_empty(), "it is no objection to the next one");
}

/// The operator's word is about what was asked, not about what came of it since.
#[tokio::test]
async fn a_consent_to_rebuild_is_good_for_nothing_else_than_what_was_asked_about() {
    let mut renewal = Renewal::of(with_faults(NodeFaults { rebuild_fails: 1, ..NodeFaults::default() })).await;
    let failed = renewal.question().await;
    assert!(failed.text.contains("has failed"), "{failed:?}");
    // Somebody has it rebuilt by hand meanwhile: it comes up without our mark.
    let by_hand = renewal.sim.world.ironic_node(NODE).unwrap().ordered.unwrap();
    let theirs = turnaround_workflows::ports::Installed { token: turnaround_workflows::ports::Token("by-hand".to_owned()), sha256: by_hand.sha256 };
    renewal.sim.world.request_rebuild(NODE, theirs).unwrap();
    renewal.answer("rebuild").await;
    let another = renewal.question().await;
    assert!(another.text.contains("something else") && mentions(&another, "by-hand"), "{another:?}");
    assert_eq!(renewal.rebuilds(), 2, "ours, and that by hand");
    renewal.answer("rebuild").await;
    renewal.succeeded().await;
    assert_eq!(renewal.rebuilds(), 3);
}

#[tokio::test]
async fn a_node_with_another_digest_is_not_believed() {
    let renewal = Renewal::of(with_faults(NodeFaults { wrong_sha256: Some("0".repeat(64)), ..NodeFaults::default() })).await;
    let question = renewal.question().await;
    assert!(mentions(&question, &"0".repeat(64)), "{question:?}");
    assert!(!renewal.sim.world.snapshot().node(NODE).unwrap().enabled);
}

#[tokio::test]
async fn a_node_that_is_never_heard_of_again_is_a_question() {
    let renewal = Renewal::of(with_faults(NodeFaults { never_comes_back: 1, ..NodeFaults::default() })).await;
    renewal.question().await;
    assert_eq!(renewal.rebuilds(), 1);
}

#[tokio::test]
async fn a_node_whose_kernel_is_not_what_was_ordered_is_asked_about_as_with_our_own_netboot() {
    let renewal = Renewal::of(with_faults(NodeFaults { wrong_kernel: Some("6.8.0-31".to_owned()), ..NodeFaults::default() })).await;
    let question = renewal.question().await;
    assert!(mentions(&question, "kernel: expected 6.8.0-60-generic, found 6.8.0-31"), "{question:?}");
}

// --- the last look ---

#[tokio::test]
async fn instances_that_landed_while_the_store_was_away_are_not_wiped_by_ironic_either() {
    let plain = SitePlan::uniform(2, 0).with_ironic(&[NODE]);
    let at = rebuilt_at(&plain).await;
    let after = at.since(MORNING);
    let plan = plain
        .happens(after + MINUTE, Happens::ServiceEnabled { node: NODE.to_owned() })
        .happens(after + 2 * MINUTE, Happens::InstanceCreated(InstancePlan::new("late").on(NODE)));
    let mut held_back = 0;
    for calls_before in 0..=24_u32 {
        let mut sim = Sim::new(plan.clone(), 7);
        sim.call_takes = Duration::from_millis(100);
        sim.store_outage = Some((at + Duration::from_millis(u64::from(calls_before) * 200), at + 10 * MINUTE));
        let renewal = Renewal::with(sim, &plan).await;
        let bad: Vec<Violation> =
            renewal.judged(&one_out()).into_iter().filter(|bad| matches!(bad.rule, Rule::NothingIsLost | Rule::OnlyClosedNodesAreTaken)).collect();
        let before = renewal.sim.world.events().iter().any(|event| matches!(event.what, Happened::RebuildRequested { .. }) && event.at < at + MINUTE);
        assert!(before || bad.is_empty(), "{calls_before}: {bad:?}");
        held_back += u32::from(!before);
    }
    assert!(held_back > 3, "the store has to go away before the rebuild in some of them: {held_back}");
}

#[tokio::test]
async fn an_abort_before_the_rebuild_gives_the_node_back_and_one_after_it_is_refused() {
    let plan = site();
    let mut renewal = Renewal::begun(Sim::new(plan.clone(), 7), &plan).await;
    let moves = |what: &Happened| matches!(what, Happened::MigrationRequested { .. });
    renewal.sim.run_until(async |sim| sim.world.events().iter().any(|event| moves(&event.what))).await;
    renewal.sim.signal(&renewal.child.clone(), SignalKind::Abort { why: "a tenant called".to_owned() }).await;
    renewal.sim.run().await;
    assert_eq!(renewal.sim.document(&renewal.child).await.status, Status::Aborted);
    assert_eq!(renewal.rebuilds(), 0);
    renewal.is_clean();

    let mut renewal = Renewal::begun(Sim::new(plan.clone(), 7), &plan).await;
    let rebuilds = |what: &Happened| matches!(what, Happened::RebuildRequested { .. });
    renewal.sim.run_until(async |sim| sim.world.events().iter().any(|event| rebuilds(&event.what))).await;
    renewal.sim.signal(&renewal.child.clone(), SignalKind::Abort { why: "too late".to_owned() }).await;
    renewal.sim.run().await;
    renewal.succeeded().await;
    renewal.is_clean();
}

// --- the checker ---

/// What the rules say of lines of a site's log, behind its beginning.
fn said(lines: &[&str]) -> Vec<Rule> {
    let node = r#"{"node":"gpu-01","enabled":false,"disabled_reason":"ours","os_version_id":"22.04","instances":["i1"]}"#;
    let mut log = format!("{{\"seq\":1,\"at\":0,\"kind\":\"site_started\",\"seed\":1,\"nodes\":[{node}]}}\n");
    for (seq, line) in (2..).zip(lines) {
        log += &format!("{{\"seq\":{seq},\"at\":{seq},\"node\":\"gpu-01\",{line}}}\n");
    }
    let excused = [NODE.to_owned()].into();
    let rules = checker::Rules { open_questions: excused, ..one_out() };
    checker::judge(&log, &rules).into_iter().map(|violation| violation.rule).collect()
}

#[test]
fn the_checker_sees_a_rebuild_that_harms_and_one_too_many() {
    let gone = r#""kind":"instance_deleted","instance":"i1""#;
    let rebuild = |token: &str, refused: &str| {
        format!(r#""kind":"rebuild_requested","token":"{token}","instances":[],"enabled":false,"refused":{refused}"#)
    };
    let (a, b, no) = (rebuild("w-1-a", "null"), rebuild("w-2-b", "null"), rebuild("w-1-a", "\"409\""));
    let of_another = rebuild("v-3-c", "null");
    assert_eq!(said(&[gone, &a]), []);
    assert_eq!(said(&[&a]), [Rule::NothingIsLost]);
    assert_eq!(said(&[gone, &a, &a]), [Rule::OneRebuildAnOrder]);
    assert_eq!(said(&[gone, &a, &b]), [Rule::OneRebuildAnOrder]);
    assert_eq!(said(&[gone, &a, &of_another]), []);
    assert_eq!(said(&[gone, &no, &a]), [], "what Ironic refused did nothing");
    let open = r#""kind":"service_enabled","was_enabled":false,"by":"other""#;
    assert_eq!(said(&[gone, open, &a]), [Rule::OnlyClosedNodesAreTaken]);
}
