//! What installers say of themselves: shown, asked about, and never believed.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use turnaround_proof::checker;
use turnaround_proof::sim::{Death, MORNING, Sim, order};
use turnaround_workflows::clock::Clock as _;
use turnaround_workflows::engine::{Entry, Event, Question, Signal, SignalKind, State, check_chain};
use turnaround_workflows::rehearsal::{ALWAYS, Happened, NodeFaults, SitePlan};
use turnaround_workflows::store::{Status, WorkflowId};
use turnaround_workflows::updates::{ReportDesk, Taken, Word};

const NODE: &str = "gpu-01";
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A site where installers report, and whose one node is renewed.
struct Scenario {
    sim: Sim,
    id: WorkflowId,
}

impl Scenario {
    async fn new(faults: NodeFaults) -> Scenario {
        let mut plan = SitePlan::uniform(3, 1).with_reports();
        plan.node(NODE).unwrap().faults = faults;
        let sim = Sim::new(plan.clone(), 7);
        let mut order = order(&plan, 1);
        order.nodes = vec![NODE.parse().unwrap()];
        let id = sim.order(&order).await.child(NODE).unwrap();
        Scenario { sim, id }
    }

    async fn question(&self) -> Question {
        let state = self.sim.state(&self.id).await;
        state.question().cloned().unwrap_or_else(|| panic!("it asks nothing: {}", state.headline()))
    }

    /// Whoever answers takes a second to think.
    async fn answer(&mut self, key: &str) {
        assert!(self.question().await.find(key).is_some(), "`{key}` can be answered");
        self.sim.clock.advance(SECOND);
        self.sim.signal(&self.id, SignalKind::answer(key.to_owned())).await;
        self.sim.run().await;
    }

    async fn status(&self) -> Status {
        self.sim.document(&self.id).await.status
    }

    async fn journal(&self) -> Vec<Entry> {
        check_chain(None, 1, &self.sim.store.journal(&self.id, 1, 500).await.unwrap()).unwrap()
    }

    /// What was heard, in order.
    async fn heard(&self) -> Vec<String> {
        let heard = |entry: Entry| match entry.event {
            Event::Reported { report } => Some(report.word),
            _ => None,
        };
        self.journal().await.into_iter().filter_map(heard).collect()
    }

    async fn questions(&self) -> usize {
        self.journal().await.iter().filter(|entry| matches!(entry.event, Event::OperatorAsked { .. })).count()
    }

    fn resets(&self) -> usize {
        self.sim.world.events().iter().filter(|event| matches!(event.what, Happened::ResetRequested { .. })).count()
    }

    fn token(&self) -> String {
        self.sim.world.snapshot().node(NODE).unwrap().staged.clone().unwrap()
    }

    /// Renewed, and nothing else has happened at the site than may.
    async fn is_renewed(&self, resets_again: usize) {
        assert_eq!(self.status().await, Status::Succeeded, "{}", self.sim.document(&self.id).await.headline);
        let log: String = self.sim.world.events().iter().map(|event| serde_json::to_string(event).unwrap() + "\n").collect();
        let rules = checker::Rules { out_max: 1, resets_again: BTreeMap::from([(NODE.to_owned(), resets_again)]), ..checker::Rules::default() };
        assert_eq!(checker::judge(&log, &rules), []);
    }

    /// After an installer that gave up; and who hears the next one, by the token that both have.
    async fn is_reset_once_more(&mut self) -> (ReportDesk, String) {
        self.sim.run().await;
        let reports = ReportDesk::new(self.sim.store.clone(), turnaround_workflows::updates::registry());
        let token = self.token();
        self.sim.clock.advance(SECOND);
        self.sim.signal(&self.id, SignalKind::answer("netboot".to_owned())).await;
        self.until_said("await-install: its installer has not reported yet").await;
        (reports, token)
    }

    /// Until the step's line says this.
    async fn until_said(&mut self, words: &str) {
        let id = self.id.clone();
        let says = async |sim: &Sim| match sim.store.load(&id).await.unwrap() {
            Some(document) => document.headline.contains(words),
            None => false,
        };
        self.sim.run_until(says).await;
        let headline = self.sim.document(&self.id).await.headline;
        assert!(headline.contains(words), "{headline}");
    }
}

#[tokio::test]
async fn the_step_says_when_the_installer_has_started_and_when_it_says_that_it_is_done() {
    let mut scenario = Scenario::new(NodeFaults { reports_repeated: 3, ..NodeFaults::default() }).await;
    scenario.until_said("await-install: its installer has not reported yet").await;
    scenario.until_said("await-install: its installer has started at 20").await;
    scenario.until_said("await-install: its installer says that it was done at 20").await;
    scenario.sim.run().await;
    scenario.is_renewed(0).await;
    assert_eq!(scenario.heard().await, ["started", "installed"], "each once, however often it is said");
    assert_eq!(scenario.questions().await, 0);
}

#[tokio::test]
async fn an_installer_that_gives_up_is_a_question_at_once_with_its_own_reason() {
    for faults in [NodeFaults { installer_gives_up: 1, ..NodeFaults::default() }, NodeFaults { installer_gives_up: 1, reports_repeated: 5, ..NodeFaults::default() }] {
        let mut scenario = Scenario::new(faults).await;
        scenario.sim.run().await;
        let waited = scenario.sim.clock.now().since(MORNING);
        assert!(waited < 8 * MINUTE, "{waited:?}");
        let question = scenario.question().await;
        assert_eq!(question.text, "gpu-01 was not installed: its installer has given up: what now?");
        assert!(question.seen[0].ends_with(": the image is another one than was ordered"), "{question:?}");
        assert!(question.seen[0].starts_with("its installer has given up at 20") && question.seen[1].starts_with("its installer has started at 20"), "{question:?}");
        assert_eq!(question.answers.iter().map(|answer| answer.key.as_str()).collect::<Vec<_>>(), ["netboot", "retry", "leave"]);
        scenario.answer("netboot").await;
        assert_eq!(scenario.resets(), 2);
        scenario.is_renewed(1).await;
        assert_eq!(scenario.heard().await, ["started", "failed", "started", "installed"]);
        assert_eq!(scenario.questions().await, 1);
    }
}

#[tokio::test]
async fn what_the_old_installer_repeats_until_the_power_is_cut_is_no_word_of_the_next_one() {
    let mut scenario = Scenario::new(NodeFaults { installer_gives_up: 2, ..NodeFaults::default() }).await;
    let (reports, token) = scenario.is_reset_once_more().await;
    assert_eq!(scenario.resets(), 2);
    assert_eq!(reports.take(&token, Word::Failed, "the image is another one").await.unwrap(), Taken::Early);
    scenario.sim.run().await;
    // The second one gives up, too, and is heard.
    assert_eq!((scenario.questions().await, scenario.resets()), (2, 2));
    assert_eq!(scenario.heard().await, ["started", "failed", "started", "failed"]);
    scenario.answer("netboot").await;
    scenario.is_renewed(2).await;
}

#[tokio::test]
async fn one_that_starts_and_gives_up_before_any_worker_has_read_that_is_heard() {
    let mut scenario = Scenario::new(NodeFaults { installer_gives_up: 1, ..NodeFaults::default() }).await;
    let (reports, token) = scenario.is_reset_once_more().await;
    for (word, taken) in [(Word::Failed, Taken::Early), (Word::Started, Taken::Kept), (Word::Failed, Taken::Kept), (Word::Failed, Taken::Nothing)] {
        assert_eq!(reports.take(&token, word, "no route to the image").await.unwrap(), taken);
    }
    scenario.until_said("its installer has given up: what now?").await;
    assert!(scenario.question().await.seen[0].ends_with(": no route to the image"));
}

#[tokio::test]
async fn an_answered_failure_is_not_asked_about_again_but_the_deadline_is() {
    let mut scenario = Scenario::new(NodeFaults { installer_gives_up: 1, ..NodeFaults::default() }).await;
    scenario.sim.run().await;
    let asked = scenario.sim.clock.now();
    scenario.answer("retry").await;
    // It waits as long again for the node itself.
    let waited = scenario.sim.clock.now().since(asked);
    assert!(waited >= 60 * MINUTE, "{waited:?}");
    let question = scenario.question().await;
    assert_eq!(question.text, "gpu-01 has not come back from its installation: what now?");
    assert!(question.seen[0].ends_with(": the image is another one than was ordered"), "{question:?}");
    assert_eq!((scenario.questions().await, scenario.resets()), (2, 1));
    // Another one that gives up is another question.
    scenario.answer("netboot").await;
    scenario.is_renewed(1).await;
}

#[tokio::test]
async fn each_installer_that_gives_up_is_asked_about() {
    let mut scenario = Scenario::new(NodeFaults { installer_gives_up: 2, ..NodeFaults::default() }).await;
    scenario.sim.run().await;
    scenario.answer("netboot").await;
    assert!(scenario.question().await.text.ends_with("its installer has given up: what now?"));
    assert_eq!((scenario.questions().await, scenario.resets()), (2, 2));
    scenario.answer("netboot").await;
    scenario.is_renewed(2).await;
}

#[tokio::test]
async fn an_installer_that_gives_up_and_restarts_is_asked_about_with_what_has_come_up() {
    let mut scenario = Scenario::new(NodeFaults { installer_gives_up_and_restarts: 1, ..NodeFaults::default() }).await;
    scenario.sim.run().await;
    assert!(scenario.question().await.text.ends_with("its installer has given up: what now?"));
    // Meanwhile the old system comes up: that is something else than what the operator consented to have wiped.
    scenario.sim.clock.advance(5 * MINUTE);
    scenario.answer("netboot").await;
    let question = scenario.question().await;
    assert_eq!(question.text, "gpu-01 runs something else than what was to be installed: what now?");
    assert!(question.seen.iter().any(|line| line.ends_with(": the image is another one than was ordered")), "{question:?}");
    assert_eq!(question.reasons.iter().map(String::as_str).collect::<Vec<_>>(), ["installer-failed", "other-system"]);
    assert_eq!(scenario.resets(), 1);
    scenario.answer("netboot").await;
    scenario.is_renewed(1).await;
}

#[tokio::test]
async fn a_node_without_a_word_of_its_installer_is_a_question_long_before_it_should_be_back() {
    let mut scenario = Scenario::new(NodeFaults { installer_hangs: 1, reports_lost: 1, ..NodeFaults::default() }).await;
    scenario.sim.run().await;
    let waited = scenario.sim.clock.now().since(MORNING);
    assert!(waited >= 20 * MINUTE && waited < 25 * MINUTE, "{waited:?}");
    let question = scenario.question().await;
    assert_eq!(question.text, "gpu-01 was reset, and no installer has reported: what now?");
    assert!(question.seen[0].starts_with("no installer of it has reported to http://192.0.2.1:8470 since its reset"), "{question:?}");
    assert!(question.seen.iter().any(|line| line.starts_with("its boot device for one boot is used up")), "{question:?}");
    // Told to wait, it waits for the node itself, and asks no more about its installer.
    scenario.answer("retry").await;
    let waited = scenario.sim.clock.now().since(MORNING);
    assert!(waited >= 80 * MINUTE, "{waited:?}");
    assert!(scenario.question().await.text.ends_with("has not come back from its installation: what now?"));
    scenario.answer("netboot").await;
    scenario.is_renewed(1).await;
}

#[tokio::test]
async fn where_reports_are_lost_a_node_is_renewed_all_the_same() {
    // It is back before anybody would ask.
    let mut scenario = Scenario::new(NodeFaults { reports_lost: ALWAYS, ..NodeFaults::default() }).await;
    scenario.sim.run().await;
    scenario.is_renewed(0).await;
    assert_eq!((scenario.heard().await.len(), scenario.questions().await), (0, 0));
}

#[tokio::test]
async fn an_installer_that_is_slow_and_unheard_is_a_question_and_the_answer_finds_the_node_renewed() {
    let mut plan = SitePlan::uniform(3, 1).with_reports();
    let node = plan.node(NODE).unwrap();
    (node.faults, node.install_time) = (NodeFaults { reports_lost: ALWAYS, ..NodeFaults::default() }, 25 * MINUTE);
    let sim = Sim::new(plan.clone(), 7);
    let mut order = order(&plan, 1);
    order.nodes = vec![NODE.parse().unwrap()];
    let id = sim.order(&order).await.child(NODE).unwrap();
    let mut scenario = Scenario { sim, id };
    scenario.sim.run().await;
    assert!(scenario.question().await.text.ends_with("no installer has reported: what now?"));
    scenario.sim.clock.advance(15 * MINUTE);
    scenario.answer("retry").await;
    scenario.is_renewed(0).await;
    assert_eq!(scenario.resets(), 1);
}

/// Anybody in the provisioning network can say anything.
#[tokio::test]
async fn what_is_said_by_others_installs_nothing_opens_nothing_and_wipes_nothing() {
    let mut scenario = Scenario::new(NodeFaults::default()).await;
    scenario.until_said("await-install: its installer has not reported yet").await;
    let reports = ReportDesk::new(scenario.sim.store.clone(), turnaround_workflows::updates::registry());
    let token = scenario.token();
    for (token, word) in [("nonsense".to_owned(), Word::Failed), (token.replace("-", "_"), Word::Failed), (format!("{}0", &token[..token.len() - 1]), Word::Failed)] {
        if token != scenario.token() {
            assert_eq!(reports.take(&token, word, "").await.unwrap(), Taken::Unknown);
        }
    }
    assert_eq!(reports.take(&token, Word::Installed, "").await.unwrap(), Taken::Kept);
    for _ in 0..100 {
        assert_eq!(reports.take(&token, Word::Installed, "again").await.unwrap(), Taken::Nothing);
    }
    scenario.until_said("its installer says that it was done").await;
    assert!(!scenario.sim.world.snapshot().node(NODE).unwrap().enabled);
    // A lie is a question; the node's own word is stronger.
    assert_eq!(reports.take(&token, Word::Failed, "a lie").await.unwrap(), Taken::Kept);
    scenario.sim.run().await;
    assert!(scenario.question().await.seen[0].ends_with(": a lie"));
    scenario.sim.clock.advance(10 * MINUTE);
    scenario.answer("retry").await;
    scenario.is_renewed(0).await;
    assert_eq!(reports.take(&token, Word::Failed, "too late").await.unwrap(), Taken::Unknown, "of one that has ended");
    assert_eq!(scenario.resets(), 1);
}

#[tokio::test]
async fn what_was_said_before_the_reset_does_not_count() {
    let mut scenario = Scenario::new(NodeFaults::default()).await;
    scenario.until_said("await-install: its installer has not reported yet").await;
    // Kept by somebody who did not know better: the worker judges by when it was taken.
    let kind = SignalKind::Report { about: scenario.token(), word: "failed".to_owned(), text: "early".to_owned() };
    let early = Signal { id: "early".to_owned(), at: MORNING, by: "installer".to_owned(), kind };
    scenario.sim.store.signal(&scenario.id, early.stored().unwrap()).await.unwrap();
    scenario.sim.run().await;
    scenario.is_renewed(0).await;
    assert_eq!(scenario.heard().await, ["started", "installed"]);
}

#[tokio::test]
async fn a_report_and_its_question_survive_a_worker_that_dies_anywhere() {
    let whole = Death::never();
    for point in 0.. {
        let mut scenario = Scenario::new(NodeFaults { installer_gives_up: 1, ..NodeFaults::default() }).await;
        scenario.until_said("its installer has started").await;
        scenario.sim.deaths.push_back(if point == 0 { whole.clone() } else { Death::at(point) });
        scenario.sim.run().await;
        assert!(scenario.question().await.text.ends_with("its installer has given up: what now?"), "{point}");
        // An hour of looks follows, in which nothing else is written down.
        scenario.sim.deaths.clear();
        scenario.answer("retry").await;
        let asked = scenario.question().await;
        assert!(asked.text.ends_with("has not come back from its installation: what now?"), "{point}: {asked:?}");
        scenario.answer("netboot").await;
        scenario.is_renewed(1).await;
        if point == whole.passed() {
            break;
        }
    }
    assert!(whole.passed() > 3, "{}", whole.passed());
}

#[tokio::test]
async fn without_the_rule_nothing_is_said_and_nothing_is_asked_before_the_deadline() {
    let plan = SitePlan::uniform(3, 1);
    let mut sim = Sim::new(plan.clone(), 7);
    let mut order = order(&plan, 1);
    order.nodes = vec![NODE.parse().unwrap()];
    assert!(order.rules.installer.is_none());
    assert!(!serde_json::to_string(&order).unwrap().contains("installer\""), "an order is what it was");
    let id = sim.order(&order).await.child(NODE).unwrap();
    sim.run().await;
    let state: State = sim.state(&id).await;
    assert!(state.reports.is_empty() && !serde_json::to_string(&state).unwrap().contains("report"));
    assert!(!sim.world.events().iter().any(|event| matches!(event.what, Happened::InstallerReported { .. })));
}
