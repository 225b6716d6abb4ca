//! OpenStack is put back on a wiped node by the site's setup script, whatever that does. In virtual time.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use turnaround_proof::checker::{Rules, judge};
use turnaround_proof::sim::{Sim, order};
use turnaround_workflows::clock::Clock as _;
use turnaround_workflows::engine::{Question, SignalKind};
use turnaround_workflows::rehearsal::{Happened, ScriptGoesWrong, SitePlan};
use turnaround_workflows::store::{Status, WorkflowId};

struct Bench {
    sim: Sim,
    node: WorkflowId,
}

impl Bench {
    /// One node is to be renewed, where the script goes like this.
    async fn of(goes_wrong: &[ScriptGoesWrong]) -> Bench {
        let plan = SitePlan::uniform(3, 1).with_setup(goes_wrong);
        let mut order = order(&plan, 1);
        order.nodes.truncate(1);
        let sim = Sim::new(plan, 7);
        let rollout = sim.order(&order).await;
        let node = sim.child(&rollout, "gpu-01").await;
        let mut bench = Bench { sim, node };
        bench.rest().await;
        bench
    }

    async fn rest(&mut self) {
        self.sim.run().await;
    }

    async fn question(&self) -> Question {
        let state = self.sim.state(&self.node).await;
        state.question().cloned().unwrap_or_else(|| panic!("nothing is asked: {}", state.headline()))
    }

    async fn answer(&mut self, key: &str) {
        self.sim.clock.advance(Duration::from_secs(1));
        self.sim.signal(&self.node, SignalKind::answer(key.to_owned())).await;
        self.rest().await;
    }

    async fn status(&self) -> Status {
        self.sim.document(&self.node).await.status
    }

    fn runs(&self) -> usize {
        self.sim.world.events().iter().filter(|event| matches!(event.what, Happened::ScriptStarted { node: Some(_), .. })).count()
    }

    /// Nothing has happened that must not; with these nodes not as they were found.
    fn is_clean(&self, left: &[&str]) {
        let log: String = self.sim.world.events().iter().map(|event| serde_json::to_string(event).unwrap() + "\n").collect();
        let names = || left.iter().map(|node| (*node).to_owned()).collect();
        let rules = Rules { out_max: 1, open_questions: names(), left_by_operators: names(), ..Rules::default() };
        assert_eq!(judge(&log, &rules), []);
    }

    fn is_closed(&self) -> bool {
        !self.sim.world.snapshot().node("gpu-01").unwrap().enabled
    }
}

#[tokio::test]
async fn a_wiped_node_is_back_in_openstack_after_one_run() {
    let bench = Bench::of(&[]).await;
    assert_eq!((bench.status().await, bench.runs()), (Status::Succeeded, 1));
    assert!(bench.sim.world.snapshot().node("gpu-01").unwrap().up);
    bench.is_clean(&[]);
}

#[tokio::test]
async fn a_run_that_says_it_has_done_it_and_has_not_is_found_out() {
    let bench = Bench::of(&[ScriptGoesWrong::DoesNothing]).await;
    assert_eq!(bench.status().await, Status::NeedsOperator);
    let question = bench.question().await;
    assert!(question.text.contains("is not back in Nova as it was"), "{question:?}");
    assert!(bench.is_closed(), "what nobody has seen to work is not given to tenants");
    bench.is_clean(&["gpu-01"]);
}

#[tokio::test]
async fn a_run_that_fails_after_it_has_done_everything_is_a_question_which_says_so() {
    let mut bench = Bench::of(&[ScriptGoesWrong::FailsAtTheEnd]).await;
    let question = bench.question().await;
    assert_eq!(question.text, "the setup script did not put OpenStack back on gpu-01: what now?");
    assert_eq!(question.seen[0], "it ended with 1");
    assert!(bench.is_closed());
    // Nova needs its moment: whoever looks a bit later sees more.
    bench.answer("retry").await;
    assert_eq!((bench.status().await, bench.runs()), (Status::Succeeded, 2));
    bench.is_clean(&[]);
}

#[tokio::test]
async fn a_run_that_fails_is_told_with_ansibles_own_words_and_run_again_only_when_asked_to() {
    for (goes_wrong, first) in [
        (ScriptGoesWrong::FailsMidway, "it ended with 2"),
        (ScriptGoesWrong::IsKilled, "it was killed, or its host went down: how far it came is not known"),
    ] {
        let mut bench = Bench::of(&[goes_wrong]).await;
        let question = bench.question().await;
        assert_eq!(question.seen[0], first);
        assert_eq!(question.seen.contains(&"Ansible says of gpu-01: 1 failed, 0 unreachable".to_owned()), goes_wrong == ScriptGoesWrong::FailsMidway);
        assert!(question.seen.contains(&"nova-compute on gpu-01 does not report".to_owned()), "{question:?}");
        assert_eq!(bench.runs(), 1);
        bench.answer("retry").await;
        assert_eq!((bench.status().await, bench.runs()), (Status::Succeeded, 2));
        bench.is_clean(&[]);
    }
}

#[tokio::test]
async fn who_knows_better_than_the_recap_says_go_on_and_the_next_steps_look_all_the_same() {
    let mut bench = Bench::of(&[ScriptGoesWrong::FailsAtTheEnd]).await;
    let question = bench.question().await;
    let keys: Vec<&str> = question.answers.iter().map(|answer| answer.key.as_str()).collect();
    assert_eq!(keys, ["retry", "go-on", "leave"]);
    assert_eq!(
        question.find("go-on").unwrap().consequence,
        "takes this run as good, and starts no other; gpu-01 is given back only if nova-compute reports, its hypervisor offers what it did and your checks \
         come out well, and what else the script has left undone nobody sees"
    );
    bench.answer("go-on").await;
    assert_eq!((bench.status().await, bench.runs()), (Status::Succeeded, 1));
    bench.is_clean(&[]);

    for goes_wrong in [ScriptGoesWrong::FailsMidway, ScriptGoesWrong::IsKilled] {
        let mut bench = Bench::of(&[goes_wrong]).await;
        bench.answer("go-on").await;
        assert_eq!((bench.status().await, bench.runs()), (Status::NeedsOperator, 1));
        assert!(bench.question().await.text.contains("is not back in Nova as it was"), "{:?}", bench.question().await);
        assert!(bench.is_closed(), "their word is not enough");
        bench.is_clean(&["gpu-01"]);
    }
}

/// An answer is good for the question that it was given to, and for no later one.
#[tokio::test]
async fn who_said_go_on_about_one_run_is_asked_about_the_next() {
    let mut bench = Bench::of(&[ScriptGoesWrong::FailsMidway, ScriptGoesWrong::FailsMidway]).await;
    bench.answer("retry").await;
    assert_eq!(bench.question().await.text, "the setup script did not put OpenStack back on gpu-01: what now?");
    bench.answer("go-on").await;
    assert_eq!(bench.runs(), 2);
    assert!(bench.question().await.text.contains("is not back in Nova as it was"));
}

#[tokio::test]
async fn while_a_run_goes_on_nobody_can_say_go_on() {
    let mut bench = Bench::of(&[ScriptGoesWrong::Hangs]).await;
    assert!(bench.question().await.find("go-on").is_none(), "{:?}", bench.question().await);
    bench.answer("go-on").await;
    assert_eq!((bench.status().await, bench.runs()), (Status::NeedsOperator, 1));
    assert!(bench.is_closed());
}

#[tokio::test]
async fn an_image_that_was_fetched_by_hand_is_taken_as_good_when_an_operator_says_go_on() {
    let (mut sim, rollout) = fetching(&[ScriptGoesWrong::FailsMidway]).await;
    let state = sim.state(&rollout).await;
    let keys: Vec<&str> = state.question().unwrap().answers.iter().map(|answer| answer.key.as_str()).collect();
    assert_eq!(keys, ["retry", "go-on", "unwind"]);
    sim.clock.advance(Duration::from_secs(1));
    sim.signal(&rollout, SignalKind::answer("go-on".to_owned())).await;
    sim.run().await;
    assert_eq!(sim.document(&rollout).await.status, Status::Succeeded);
    let fetches = sim.world.events().iter().filter(|event| matches!(event.what, Happened::ScriptStarted { node: None, .. })).count();
    assert_eq!(fetches, 1);
}

#[tokio::test]
async fn who_leaves_a_failed_run_leaves_the_node_closed() {
    let mut bench = Bench::of(&[ScriptGoesWrong::FailsMidway]).await;
    bench.answer("leave").await;
    assert_eq!(bench.status().await, Status::Failed);
    assert!(bench.is_closed());
    assert_eq!(bench.runs(), 1);
    bench.is_clean(&["gpu-01"]);
}

#[tokio::test]
async fn a_run_that_hangs_becomes_a_question_is_never_killed_and_nothing_is_started_beside_it() {
    let mut bench = Bench::of(&[ScriptGoesWrong::Hangs]).await;
    assert_eq!(bench.status().await, Status::NeedsOperator);
    bench.answer("retry").await;
    assert_eq!((bench.status().await, bench.runs()), (Status::NeedsOperator, 1), "it is waited for once more");
    bench.answer("leave").await;
    assert_eq!(bench.status().await, Status::Failed);
    // Another rollout of another node comes as far as its own run, and waits.
    let plan = SitePlan::uniform(3, 1).with_setup(&[]);
    let mut other = order(&plan, 2);
    other.nodes = vec!["gpu-02".parse().unwrap()];
    other.rules.fetch = None;
    bench.sim.order(&other).await;
    let asleep = bench.sim.clock.now() + Duration::from_secs(6 * 3600);
    bench.sim.run_until(async |sim| sim.clock.now() > asleep).await;
    assert_eq!(bench.runs(), 1);
    let other = bench.sim.open().await.into_iter().find(|document| document.target == "gpu-02" && document.parent.is_some()).unwrap();
    assert!(other.headline.contains("deploy-openstack"), "{}", other.headline);
}

/// The time for which others are before it is not a run's own. Whoever waits behind one that hangs is not asked about the whole night, and at its end.
#[tokio::test]
async fn runs_that_wait_for_each_other_are_asked_about_by_their_own_time() {
    let plan = SitePlan::uniform(6, 0).with_setup(&[]);
    let mut ordered = order(&plan, 6);
    (ordered.rules.fetch, ordered.rules.canary) = (None, None);
    // Less than the six of them take, and more than one.
    let takes = plan.setup.as_ref().unwrap().takes;
    ordered.rules.deploy.as_mut().unwrap().deadline_ms = u64::try_from(takes.as_millis()).unwrap() * 2;
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&ordered).await;
    sim.run().await;
    assert_eq!(sim.document(&rollout).await.status, Status::Succeeded);

    let mut bench = Bench::of(&[ScriptGoesWrong::Hangs]).await;
    assert_eq!(bench.status().await, Status::NeedsOperator, "that one has had its time");
    let plan = SitePlan::uniform(3, 1).with_setup(&[]);
    let mut other = order(&plan, 2);
    other.nodes = vec!["gpu-02".parse().unwrap()];
    other.rules.fetch = None;
    let rollout = bench.sim.order(&other).await;
    let other = bench.sim.child(&rollout, "gpu-02").await;
    bench.rest().await;
    let state = bench.sim.state(&other).await;
    assert!(state.question().unwrap().text.contains("deploy-openstack"), "{state:?}");
    let waited = bench.sim.clock.now().since(state.record("deploy-openstack").unwrap().begun);
    assert!(waited > Duration::from_secs(7 * 3600), "{waited:?}");
}

/// A workflow that was put back from a backup may be long over: its node is in use.
#[tokio::test]
async fn a_node_that_is_in_use_is_not_set_up_without_a_word() {
    let plan = SitePlan::uniform(3, 1).with_setup(&[]);
    let mut ordered = order(&plan, 1);
    ordered.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&ordered).await;
    let node = sim.child(&rollout, "gpu-01").await;
    sim.run_until(async |sim| sim.store.load(&node).await.unwrap().is_some() && sim.state(&node).await.record("await-install").is_some()).await;
    let mut bench = Bench { sim, node };
    let world = &bench.sim.world;
    world.enable_service(&world.host_named("gpu-01")).unwrap();
    bench.rest().await;
    let question = bench.question().await;
    assert_eq!(question.text, "gpu-01 is not closed and empty before the setup script is run for it: what now?");
    assert_eq!((question.seen[0].as_str(), bench.runs()), ("gpu-01 is open: instances may land on it", 0));
    bench.answer("retry").await;
    assert_eq!((bench.status().await, bench.runs()), (Status::NeedsOperator, 0));
    bench.answer("run").await;
    assert_eq!(bench.runs(), 1);
}

/// Whoever waits in line is not asked because Nova restarts; and where it is never heard of, an operator has a way on.
#[tokio::test]
async fn a_nova_that_does_not_tell_is_waited_for_before_a_run_and_then_asked_about() {
    for (lasts, asks) in [(Duration::from_secs(10 * 60), false), (Duration::from_secs(24 * 3_600), true)] {
        let plan = SitePlan::uniform(3, 0).with_setup(&[]);
        let mut ordered = order(&plan, 1);
        ordered.nodes.truncate(1);
        let mut sim = Sim::new(plan.clone(), 7);
        let rollout = sim.order(&ordered).await;
        let node = sim.child(&rollout, "gpu-01").await;
        sim.run_until(async |sim| sim.store.load(&node).await.unwrap().is_some() && sim.state(&node).await.record("verify-os").is_some()).await;
        let begins = sim.clock.now().since(turnaround_proof::sim::MORNING);
        let mut plan = plan;
        plan.faults.outages = vec![turnaround_workflows::rehearsal::Outage { api: turnaround_workflows::rehearsal::Api::Nova, node: None, from: begins, lasts }];
        let sim = Sim::new(plan, 7);
        let rollout = sim.order(&ordered).await;
        let node = sim.child(&rollout, "gpu-01").await;
        let mut bench = Bench { sim, node };
        bench.rest().await;
        if !asks {
            assert_eq!((bench.status().await, bench.runs()), (Status::Succeeded, 1));
            continue;
        }
        let question = bench.question().await;
        assert_eq!(question.text, "gpu-01 is not closed and empty before the setup script is run for it: what now?");
        assert!(question.seen[0].starts_with("Nova does not tell whether gpu-01 is closed and empty: "), "{question:?}");
        assert_eq!(bench.runs(), 0);
        bench.answer("run").await;
        assert_eq!(bench.runs(), 1);
    }
}

/// What is asked about one node's run is no reason for another node to wait.
#[tokio::test]
async fn a_question_about_one_run_holds_up_no_other_node() {
    let plan = SitePlan::uniform(4, 1).with_setup(&[ScriptGoesWrong::FailsMidway]);
    let mut order = order(&plan, 2);
    order.nodes.truncate(2);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    let (first, second) = (sim.child(&rollout, "gpu-01").await, sim.child(&rollout, "gpu-02").await);
    let ended = async |sim: &Sim| sim.store.load(&second).await.unwrap().is_some_and(|document| document.status.is_ended());
    sim.run_until(ended).await;
    let mut statuses = [sim.document(&first).await.status, sim.document(&second).await.status];
    statuses.sort();
    assert!(statuses.contains(&Status::NeedsOperator) && statuses.contains(&Status::Succeeded), "{statuses:?}");
}

/// The rollout of one node, where the run for the PXE server goes like this.
async fn fetching(goes_wrong: &[ScriptGoesWrong]) -> (Sim, WorkflowId) {
    let mut plan = SitePlan::uniform(3, 1).with_setup(&[]);
    plan.setup.as_mut().unwrap().fetch_goes_wrong = goes_wrong.to_vec();
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    sim.run().await;
    (sim, rollout)
}

#[tokio::test]
async fn the_image_is_put_on_the_pxe_server_once_and_before_any_node_is_touched() {
    let (sim, rollout) = fetching(&[]).await;
    assert_eq!(sim.document(&rollout).await.status, Status::Succeeded);
    let told = sim.world.events().into_iter().filter_map(|event| match event.what {
        Happened::ScriptStarted { node: None, .. } => Some("fetch"),
        Happened::ServiceDisabled { .. } => Some("close"),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), ["fetch", "close"]);
}

#[tokio::test]
async fn a_rollout_whose_image_was_not_fetched_asks_and_touches_no_node() {
    for (goes_wrong, seen) in [
        (ScriptGoesWrong::FailsMidway, "it ended with 2"),
        (ScriptGoesWrong::DoesNothing, "Ansible's recap has no host at all"),
        (ScriptGoesWrong::IsKilled, "it was killed, or its host went down: how far it came is not known"),
    ] {
        let (mut sim, rollout) = fetching(&[goes_wrong]).await;
        let state = sim.state(&rollout).await;
        let question = state.question().unwrap_or_else(|| panic!("nothing is asked: {}", state.headline()));
        assert_eq!(question.text, "the setup script did not put image node-26.1.1 on the PXE server: what now?");
        assert_eq!(question.seen[0], seen);
        assert!(sim.world.snapshot().node("gpu-01").unwrap().enabled);
        sim.clock.advance(Duration::from_secs(1));
        sim.signal(&rollout, SignalKind::answer("retry".to_owned())).await;
        sim.run().await;
        assert_eq!(sim.document(&rollout).await.status, Status::Succeeded);

        let (mut sim, rollout) = fetching(&[goes_wrong]).await;
        sim.signal(&rollout, SignalKind::answer("unwind".to_owned())).await;
        sim.run().await;
        assert_eq!(sim.document(&rollout).await.status, Status::Failed);
        assert!(sim.world.events().iter().all(|event| !matches!(event.what, Happened::ServiceDisabled { .. })));
    }
}

#[tokio::test]
async fn an_aborted_rollout_says_that_its_run_goes_on() {
    let plan = SitePlan::uniform(3, 1).with_setup(&[]);
    let order = order(&plan, 1);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&order).await;
    sim.run_until(async |sim| sim.world.events().iter().any(|event| matches!(event.what, Happened::ScriptStarted { .. }))).await;
    sim.signal(&rollout, SignalKind::Abort { why: "not tonight".to_owned() }).await;
    sim.run_until(async |sim| sim.document(&rollout).await.status == Status::Aborted).await;
    let journal = sim.store.journal(&rollout, 0, 100).await.unwrap();
    let told = journal.iter().any(|entry| entry.body.contains("of the setup script goes on, and is not killed"));
    assert!(told, "{journal:#?}");
}
