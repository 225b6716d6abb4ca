//! A whole rollout at a site where everything goes wrong, by workers to whom everything happens: all of it from one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use turnaround_workflows::chance;
use turnaround_workflows::clock::{Clock as _, Timestamp};
use turnaround_workflows::engine::{Answer, AnswerEffect, Registry, SignalKind};
use turnaround_workflows::ports::CANARY_NAME;
use turnaround_workflows::rehearsal::{Happens, InstanceSnapshot, MoveGoesWrong, NodePlan, SitePlan};
use turnaround_workflows::store::{Document, Resource, Scope, Status, WorkflowId};
use turnaround_workflows::updates::{self, RolloutOrder, SurveyOrder};

use crate::journals::{self, Journals};
use crate::{consent, promise};
use crate::{Befalls, Crowd, Fate, LEASE, MORNING, Moment, Point, Sometimes, Undisturbed, done};
use crate::checker::{Rules, judge};
use crate::sim::order;

/// At most so many nodes out of service at once.
const OUT_MAX: u32 = 2;
/// Nodes that are ordered of the four to seven of a site: more of them only do the same once more.
const NODES_ORDERED: std::ops::RangeInclusive<usize> = 1..=4;
/// Questions that are answered in one run; then the operator goes home.
const ANSWERS_MAX: u32 = 14;
/// So many of them while everything goes wrong: enough are left to bring it all to its end.
const ANSWERS_IN_THE_STORM_MAX: u32 = 8;
/// Times that an operator comes by while everything goes wrong, to answer whoever asks.
const ROUNDS: std::ops::Range<usize> = 0..9;
/// Things that people say meanwhile, or order, whether they make sense or not.
const DISTURBANCES: std::ops::Range<usize> = 0..6;
/// What was seen of a node may be acted upon for so long (ARCHITECTURE, "What a killed worker costs").
const LOOK_IS_GOOD_FOR_MS: i64 = 30_000;
/// Nobody answers in the very moment in which they are asked.
const ANSWERS_AFTER: Duration = Duration::from_secs(3);
/// Rounds of resuming and answering: each resumes all that are paused, or answers one question.
const MENDS_MAX: u32 = 100;
/// Points are counted in this many parts of the whole.
const WHOLE: u32 = 100_000;

/// What came of one seed.
pub struct Ran {
    pub seed: u64,
    /// How the rollout ended, or what it does.
    pub status: &'static str,
    /// What must not be, each in words.
    pub against: Vec<String>,
    pub counts: BTreeMap<&'static str, u64>,
    /// What the owner of a site wants to know.
    pub promised: BTreeMap<&'static str, u64>,
    /// What the site saw.
    pub log: String,
    pub journals: Journals,
}

/// Workflows that an operator has answered: the storm tells whether anything befell them after that.
#[derive(Clone, Default)]
struct Answered(Arc<Mutex<BTreeSet<WorkflowId>>>);

impl Answered {
    fn all(&self) -> MutexGuard<'_, BTreeSet<WorkflowId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What befalls workers, by chance, until everything is mended.
struct Storm {
    random: StdRng,
    mended: Timestamp,
    /// In parts of [`WHOLE`], for each point.
    death: u32,
    pause: u32,
    stop: u32,
    /// For each commit and claim.
    answer_lost: u32,
    /// In percent, for each ring.
    unheard: u32,
    slow_ms: u64,
    answered: Answered,
    sometimes: Arc<Sometimes>,
}

impl Storm {
    fn new(seed: u64, mended: Timestamp, answered: Answered, sometimes: Arc<Sometimes>) -> Storm {
        let mut random = StdRng::seed_from_u64(seed ^ 0x5707_1113);
        let mut rate = |of: &[u32]| of[random.random_range(0..of.len())];
        let (death, pause, stop) = (rate(&[0, 50, 200, 800]), rate(&[0, 50, 200, 600]), rate(&[0, 0, 50, 200]));
        let (answer_lost, unheard) = (rate(&[0, 500, 3_000]), rate(&[0, 0, 5, 30]));
        let slow_ms = u64::from(rate(&[0, 20, 300, 2_000]));
        Storm { random, mended, death, pause, stop, answer_lost, unheard, slow_ms, answered, sometimes }
    }

    fn pause(&mut self, moment: Moment) -> Duration {
        // What is on its way already no lease can call back: whatever stands between the last guard and such a call is
        // bounded by the call's own time-out, and shorter than what a lease has left.
        let under_way = matches!(moment, Moment::Guarded | Moment::Calls { changes: true, .. });
        let longest = if under_way { 3_000 } else if self.random.random_range(0..4) == 0 { 900_000 } else { 25_000 };
        Duration::from_millis(self.random.random_range(100..longest))
    }

    fn draw(&mut self, point: &Point) -> Befalls {
        let drawn = self.random.random_range(0..WHOLE);
        let mut below = 0;
        let mut comes = |rate: u32| {
            below += rate;
            drawn < below
        };
        if comes(self.death) {
            Befalls::Death
        } else if comes(self.stop) {
            Befalls::Stop
        } else if comes(self.pause) {
            Befalls::Pause(self.pause(point.moment))
        } else if matches!(point.moment, Moment::CommitSent | Moment::Claimed) && comes(self.answer_lost) {
            Befalls::AnswerLost
        } else {
            Befalls::Nothing
        }
    }
}

impl Fate for Storm {
    fn befalls(&mut self, point: &Point) -> Befalls {
        if point.now >= self.mended {
            return Befalls::Nothing;
        }
        let befalls = self.draw(point);
        // (Whoever has only just claimed it has not read the answer.)
        let strikes = matches!(befalls, Befalls::Death | Befalls::Stop | Befalls::Pause(_)) && point.moment != Moment::Claimed;
        if strikes && self.answered.all().contains(&point.workflow) {
            self.sometimes.count("worker struck after an answer");
        }
        befalls
    }

    fn takes(&mut self, point: &Point) -> Duration {
        match point.moment {
            Moment::Calls { .. } | Moment::Commits | Moment::Guards if self.slow_ms > 0 => {
                Duration::from_millis(self.random.random_range(0..=self.slow_ms))
            }
            _ => Duration::ZERO,
        }
    }

    fn picks(&mut self, of: usize) -> usize {
        if of < 2 { 0 } else { self.random.random_range(0..of) }
    }

    fn rings_unheard(&mut self) -> bool {
        self.unheard > 0 && self.random.random_range(0..100) < self.unheard
    }
}

/// The people at the site.
struct People {
    random: StdRng,
    mended: Timestamp,
    /// Questions that they have answered.
    asked: u32,
    answered: Answered,
    /// Whom they have told to leave its node as it is, each with the signal.
    leaving: Vec<(WorkflowId, String)>,
    /// What was set apart and has been tried again.
    tried_again: BTreeSet<WorkflowId>,
}

/// An answer, and the number of the question that it is for.
struct Chosen {
    answer: Answer,
    question: Option<u32>,
}

impl People {
    fn new(seed: u64, mended: Timestamp, answered: Answered) -> People {
        let random = StdRng::seed_from_u64(seed ^ 0x0009_e091);
        People { random, mended, asked: 0, answered, leaving: Vec::new(), tried_again: BTreeSet::new() }
    }

    fn one_in(&mut self, chance: u32) -> bool {
        self.random.random_range(0..chance) == 0
    }

    /// Somebody says something to some workflow, perhaps more than once.
    fn say_something(&mut self, crowd: &mut Crowd) {
        let open = crowd.list(Scope::Open);
        if open.is_empty() {
            return;
        }
        let document = &open[self.random.random_range(0..open.len())];
        let times = if self.one_in(3) { self.random.random_range(2..4) } else { 1 };
        let kind = match self.random.random_range(0..10) {
            0..3 => SignalKind::Pause { why: "lunch".to_owned() },
            3..5 => SignalKind::Resume,
            5 => SignalKind::Abort { why: "a tenant called".to_owned() },
            6..8 => SignalKind::Retry,
            8 => SignalKind::answer("nonsense".to_owned()),
            _ => match self.choose(crowd, document) {
                Some(chosen) => {
                    self.asked += 1;
                    crowd.sometimes.count("told an answer in passing");
                    return self.give(crowd, &document.id, chosen, times);
                }
                // By the time it is read, something may be asked.
                None => SignalKind::answer("retry".to_owned()),
            },
        };
        crowd.sometimes.count(match &kind {
            SignalKind::Pause { .. } => "told to pause",
            SignalKind::Resume => "told to resume",
            SignalKind::Abort { .. } => "told to abort",
            SignalKind::Retry => "told to try again",
            SignalKind::Answer { .. } => "told what answers no question",
            SignalKind::Report { .. } | SignalKind::ChildEnded { .. } => "told of a child",
        });
        crowd.tell(&document.id, kind, times);
    }

    /// Some answer to the question of this workflow, if it asks one.
    fn choose(&mut self, crowd: &Crowd, document: &Document) -> Option<Chosen> {
        let state = crowd.state(document);
        let mut answers = state.question()?.answers.clone();
        // Nodes that are left go on counting as out: with as many as may be out, nothing would go on.
        self.leaving.retain(|(id, signal)| may_be_left(crowd, id, signal));
        if self.leaving.len() + 1 >= OUT_MAX as usize {
            answers.retain(|answer| answer.effect != AnswerEffect::Leave);
        }
        let answer = answers[self.random.random_range(0..answers.len())].clone();
        Some(Chosen { answer, question: state.open_question() })
    }

    /// Tells the workflow the answer, for the question that was read, as the daemon has it. (It may have gone on by itself meanwhile.)
    fn give(&mut self, crowd: &mut Crowd, id: &WorkflowId, Chosen { answer, question }: Chosen, times: u32) {
        let signal = crowd.tell(id, SignalKind::Answer { key: answer.key, question }, times);
        if answer.effect == AnswerEffect::Leave {
            self.leaving.push((id.clone(), signal));
        }
        self.answered.all().insert(id.clone());
    }

    /// Reads the question of this workflow, and answers it some seconds later. False if there is none, or they have gone home.
    fn answer(&mut self, crowd: &mut Crowd, id: &WorkflowId) -> bool {
        if self.asked >= ANSWERS_MAX {
            return false;
        }
        let document = crowd.document(id);
        let Some(chosen) = document.and_then(|document| self.choose(crowd, &document)) else { return false };
        self.asked += 1;
        crowd.run_until(crowd.clock.now() + ANSWERS_AFTER);
        if crowd.document(id).is_some_and(|document| crowd.state(&document).open_question() == chosen.question) {
            let storms = crowd.clock.now() < self.mended;
            crowd.sometimes.count(if storms { "question answered in the storm" } else { "question answered" });
        }
        self.give(crowd, id, chosen, 1);
        true
    }

    /// While everything goes wrong: whoever asks just now is answered.
    fn come_by(&mut self, crowd: &mut Crowd) {
        for asking in asking(crowd) {
            if self.asked < ANSWERS_IN_THE_STORM_MAX {
                self.answer(crowd, &asking.id);
            }
        }
    }

    /// What was set apart only because its workers died is tried again once, as docs/errors/quarantined.md has it: a dry run makes some hundred
    /// calls in one go, and where each kills its worker with 8 percent, twenty die in a row. What is set apart for another reason stays so.
    fn try_again(&mut self, crowd: &mut Crowd) -> bool {
        let set_apart = |document: &Document| document.status == Status::Quarantined && document.headline.contains("workers in a row lost it");
        let mut found: Vec<_> = crowd.list(Scope::Open).into_iter().filter(set_apart).map(|document| document.id).collect();
        found.retain(|id| self.tried_again.insert(id.clone()));
        for id in &found {
            crowd.tell(id, SignalKind::Retry, 1);
            crowd.sometimes.count("set apart after many deaths, and tried again");
        }
        !found.is_empty()
    }

    /// Once everything is mended: whoever is paused is resumed, and a question is answered. False if there was nothing to say.
    fn mend(&mut self, crowd: &mut Crowd) -> bool {
        let mut said = false;
        for document in crowd.list(Scope::Open) {
            let state = crowd.state(&document);
            if state.paused.is_some() {
                crowd.tell(&document.id, SignalKind::Resume, 1);
                said = true;
            }
        }
        said |= self.try_again(crowd);
        if said {
            return true;
        }
        let asking = asking(crowd).into_iter().next();
        asking.is_some_and(|asking| self.answer(crowd, &asking.id))
    }
}

/// Those that ask an operator just now.
fn asking(crowd: &Crowd) -> Vec<Document> {
    crowd.list(Scope::Open).into_iter().filter(|document| document.status == Status::NeedsOperator).collect()
}

/// Has an operator ended it, and left its node as it was?
fn is_left(document: &Document) -> bool {
    document.status.is_ended() && document.headline.starts_with("left as it is by ")
}

/// Is this one left, or will it perhaps be once it has read that signal? (It refuses while it is paused, or where Nova does not tell what has to be
/// confirmed first.)
fn may_be_left(crowd: &Crowd, id: &WorkflowId, signal: &str) -> bool {
    crowd.document(id).is_some_and(|document| if document.status.is_ended() { is_left(&document) } else { !crowd.is_followed(id, signal) })
}

/// Runs one seed to its end, and judges it.
pub fn run(seed: u64, registry: &Registry) -> Ran {
    let _seeded = chance::seeded(seed ^ 0xc4a9_ce00);
    let mut random = StdRng::seed_from_u64(seed ^ 0x0091_ace5);
    let plan = SitePlan::troubled(seed);
    let mended = MORNING + Duration::from_secs(random.random_range(10..60) * 60);
    let workers = random.random_range(1..=4);
    let mut crowd = Crowd::new(plan.clone(), seed, workers, registry, Box::new(Undisturbed));
    let answered = Answered::default();
    crowd.rule(Box::new(Storm::new(seed, mended, answered.clone(), crowd.sometimes.clone())));
    crowd.outages(outages(&mut random, mended));
    let orders = orders(&mut random, &plan);
    let rollout = crowd.start(updates::rollout(&orders[0], "tester").expect("an order can be written"));
    let mut others = orders[1..].to_vec();
    if random.random_range(0..8) == 0 {
        crowd.start(updates::dry_run(&orders[0], "tester").expect("an order can be written"));
        crowd.start(updates::survey(&SurveyOrder { nodes: orders[0].nodes.clone() }, "tester").expect("an order can be written"));
    }
    let mut people = People::new(seed, mended, answered);
    for (at, visit) in visits(&mut random, mended) {
        crowd.run_until(at);
        match visit {
            Visit::Disturbs => match others.pop() {
                Some(other) => drop(crowd.start(updates::rollout(&other, "tester").expect("an order can be written"))),
                None => people.say_something(&mut crowd),
            },
            Visit::Answers => people.come_by(&mut crowd),
        }
    }
    crowd.run_until(mended);
    crowd.rest();
    for round in 0.. {
        if !people.mend(&mut crowd) {
            break;
        }
        if round == MENDS_MAX {
            crowd.sometimes.wrong("whoever is resumed is paused again, for ever".to_owned());
            break;
        }
        crowd.rest();
    }
    let status = crowd.document(&rollout).map_or("gone", |document| document.status.as_str());
    let dry_run = || dry_run(seed, registry, &plan, &orders[0]);
    verdict(seed, status, &crowd, &plan, mended, dry_run)
}

/// The lines of the dry run of `order` on the same site, before anything began: what was told to whoever ordered it.
fn dry_run(seed: u64, registry: &Registry, plan: &SitePlan, order: &RolloutOrder) -> Vec<Value> {
    let mut crowd = Crowd::new(plan.clone(), seed, 1, registry, Box::new(Undisturbed));
    let preview = crowd.start(updates::dry_run(order, "tester").expect("an order can be written"));
    crowd.rest();
    let entries = crowd.journal(&preview);
    let output = entries.iter().filter_map(|(_, body)| serde_json::from_str::<Value>(body).ok()).find(|entry| entry["event"] == "step-succeeded");
    output.and_then(|entry| entry["output"]["lines"].as_array().cloned()).unwrap_or_default()
}

/// One rollout of all nodes; sometimes a second one of some of them, whose nodes then have two workflows that want them.
fn orders(random: &mut StdRng, plan: &SitePlan) -> Vec<RolloutOrder> {
    let mut first = order(plan, OUT_MAX);
    first.nodes.truncate(random.random_range(NODES_ORDERED));
    first.rules.node_poll_ms = [10_000, 30_000, 60_000][random.random_range(0..3)];
    first.rules.move_poll_ms = [5_000, 10_000, 20_000][random.random_range(0..3)];
    first.rules.evacuate_deadline_ms = 3_600_000;
    first.rules.install_deadline_ms = 1_800_000;
    first.rules.rejoin_deadline_ms = 900_000;
    let mut orders = vec![first.clone()];
    if random.random_range(0..6) == 0 {
        let mut second = first;
        second.nodes = vec![second.nodes[random.random_range(0..second.nodes.len())].clone()];
        orders.push(second);
    }
    orders
}

fn outages(random: &mut StdRng, mended: Timestamp) -> Vec<(Timestamp, Timestamp)> {
    let whole = mended.since(MORNING).as_secs();
    let mut outages: Vec<(Timestamp, Timestamp)> = (0..random.random_range(0..4))
        .map(|_| {
            let from = MORNING + Duration::from_secs(random.random_range(0..whole));
            let lasts = if random.random_range(0..3) == 0 { random.random_range(10..300) } else { random.random_range(1..15) };
            (from, from + Duration::from_secs(lasts))
        })
        .collect();
    outages.sort();
    outages
}

/// What somebody comes by for.
#[derive(Debug, Clone, Copy)]
enum Visit {
    Disturbs,
    Answers,
}

/// Who comes by while everything goes wrong, in order of time.
fn visits(random: &mut StdRng, mended: Timestamp) -> Vec<(Timestamp, Visit)> {
    let whole = mended.since(MORNING).as_millis() as u64;
    let (disturb, answer) = (random.random_range(DISTURBANCES), random.random_range(ROUNDS));
    let why = std::iter::repeat_n(Visit::Disturbs, disturb).chain(std::iter::repeat_n(Visit::Answers, answer));
    let mut visits: Vec<(Timestamp, Visit)> = why.map(|visit| (MORNING + Duration::from_millis(random.random_range(0..whole)), visit)).collect();
    visits.sort_by_key(|(at, _)| *at);
    visits
}

/// What is not held against anybody. What operators have wanted is read from the journals: an answer that was refused is no excuse.
fn rules(crowd: &Crowd, journals: &Journals) -> Rules {
    let mut rules = Rules { out_max: OUT_MAX as usize, only_own_count: true, look_is_good_for_ms: LOOK_IS_GOOD_FOR_MS, ..Rules::default() };
    for document in crowd.list(Scope::All) {
        // One more reset for the same order may follow from these, and from no other answer.
        let again = answers(&journals[document.id.as_str()]).filter(|answer| matches!(answer["key"].as_str(), Some("netboot" | "rebuild"))).count();
        *rules.resets_again.entry(document.target.clone()).or_default() += again;
        if is_left(&document) {
            rules.left_by_operators.insert(document.target);
        }
    }
    rules
}

/// The answers that were followed.
fn answers(entries: &[(String, String)]) -> impl Iterator<Item = Value> {
    let answered = entries.iter().filter(|(_, body)| body.contains(r#""event":"operator-answered""#));
    answered.filter_map(|(_, body)| serde_json::from_str(body).ok())
}

fn verdict(seed: u64, status: &'static str, crowd: &Crowd, plan: &SitePlan, mended: Timestamp, dry_run: impl FnOnce() -> Vec<Value>) -> Ran {
    let mut journals = Journals::new();
    for document in crowd.list(Scope::All) {
        journals.insert(document.id.to_string(), crowd.journal(&document.id));
    }
    let mut rules = rules(crowd, &journals);
    let open = crowd.list(Scope::Open);
    let asks = |document: &&Document| document.status == Status::NeedsOperator;
    rules.open_questions.extend(open.iter().filter(asks).map(|document| document.target.clone()));
    // Whoever waits for the lock of one that asks waits for that answer.
    let waits = |document: &&Document| document.headline.contains("cluster-nodes");
    if !rules.open_questions.is_empty() {
        rules.open_questions.extend(open.iter().filter(waits).map(|document| document.target.clone()));
    }
    let log = crowd.log();
    let mut against: Vec<String> = judge(&log, &rules).iter().map(ToString::to_string).collect();
    against.extend(journals::judge(&journals));
    against.extend(journals::judge_effects(&journals, &log));
    against.extend(crowd.sometimes.wrongs());
    against.extend(unfinished(&open));
    against.extend(kept(crowd, &open, &rules));
    against.extend(canaries(crowd, &open));
    against.extend(changed(crowd, plan, !rules.open_questions.is_empty() || !rules.left_by_operators.is_empty(), &journals));
    let with_fault = |is: fn(&NodePlan) -> bool| plan.nodes.iter().filter(|node| is(node)).map(|node| node.name.clone()).collect();
    against.extend(consent::judge(&consent::Site {
        log: &log,
        journals: &journals,
        off: with_fault(|node| node.faults.stock_once_installed.as_ref().is_some_and(|stock| stock.clock_ahead_ms != 0)),
        changed: with_fault(|node| node.faults.stock_once_installed.as_ref().is_some_and(|stock| stock.clock_ahead_ms == 0)),
        another: with_fault(|node| node.faults.new_identity),
        misnamed: with_fault(|node| node.faults.wrong_hostname.is_some()),
        short: with_fault(|node| node.faults.loses_memory_mb > 0 || node.faults.loses_devices.is_some()),
        mute: with_fault(|node| node.faults.agent_stays_away),
        alerting: with_fault(|node| node.faults.alert_once_installed.is_some()),
        canary: with_fault(|node| node.faults.canary_fails || node.faults.canary_does_not_boot),
    }));
    let promise = promise::judge(&before_and_after(crowd, plan, &rules, &log, &journals), dry_run);
    against.extend(promise.against);
    let mut promised = promise.counts;
    let befell = ["worker killed", "worker paused", "worker stopped", "claim whose answer was lost", "commit whose answer was lost", "store outage waited out"];
    promised.insert("faults among the workers", befell.iter().filter_map(|what| crowd.sometimes.counts().get(what).copied()).sum());
    for (id, entries) in &journals {
        for (_, body) in entries {
            reached(crowd, body);
        }
        for answer in answers(entries).filter(|answer| answer["at"].as_i64().is_some_and(|at| at < mended.millis())) {
            crowd.sometimes.count(followed_in_the_storm(answer["key"].as_str().unwrap_or_default()));
        }
        debug_assert!(!entries.is_empty(), "{id} has a journal");
    }
    let late = log.lines().filter(|line| line.contains(r#""kind":"answer_lost","call":"StartMove, late""#)).count();
    (0..late).for_each(|_| crowd.sometimes.count("move that Nova takes up late"));
    Ran { seed, status, against, counts: crowd.sometimes.counts(), promised, log, journals }
}

fn before_and_after<'a>(crowd: &Crowd, plan: &SitePlan, rules: &Rules, log: &'a str, journals: &'a Journals) -> promise::Site<'a> {
    let instance = plan.instances.first().map_or((0, 0), |instance| (u64::from(instance.vcpus), instance.memory_mb));
    debug_assert!(plan.instances.iter().all(|one| (u64::from(one.vcpus), one.memory_mb) == instance), "a troubled site has instances of one size");
    let now = crowd.world.snapshot().instances.into_iter().map(|one| (one.id, (one.name, one.vm_state)));
    promise::Site {
        log,
        journals,
        nodes: plan.nodes.iter().map(|node| (node.name.clone(), (u64::from(node.vcpus), node.memory_mb))).collect(),
        instance,
        found: plan.instances.iter().filter(|one| !tenant_resizes(plan, &one.name)).map(|one| (one.name.clone(), one.vm_state.as_str().to_owned())).collect(),
        now: now.collect(),
        asked_about: rules.open_questions.union(&rules.left_by_operators).cloned().collect(),
    }
}

/// Does its tenant change its flavour meanwhile? Then it is `resized`, and stays so.
fn tenant_resizes(plan: &SitePlan, instance: &str) -> bool {
    plan.happenings.iter().any(|happening| matches!(&happening.what, Happens::InstanceResized { name } if name == instance))
}

/// Everything is mended, and somebody has answered: whoever is still open asks, or waits for one that does.
fn unfinished(open: &[Document]) -> Vec<String> {
    let asks = open.iter().any(|document| document.status == Status::NeedsOperator);
    let stuck = |document: &&Document| match document.status {
        Status::NeedsOperator => false,
        Status::Paused | Status::Quarantined => true,
        _ => !asks || document.lease.is_some(),
    };
    let say = |document: &Document| format!("{} has not ended, and nobody is asked: {}: {}", document.id, document.status.as_str(), document.headline);
    open.iter().filter(stuck).map(say).collect()
}

/// What is held by nobody who could ever give it back.
fn kept(crowd: &Crowd, open: &[Document], rules: &Rules) -> Vec<String> {
    let open: BTreeSet<&str> = open.iter().map(|document| document.id.as_str()).collect();
    let holdings = done(crowd.store.holdings()).expect("the memory store always answers");
    let excused = |resource: &Resource| match resource {
        Resource::Lock { .. } => false,
        Resource::Budget { member, .. } => rules.left_by_operators.contains(member),
    };
    let lost = holdings.iter().filter(|holding| !open.contains(holding.holder.as_str()) && !excused(&holding.resource));
    lost.map(|holding| format!("{} is held by {}, which has ended", holding.resource, holding.holder)).collect()
}

/// Canaries of workflows that have ended.
fn canaries(crowd: &Crowd, open: &[Document]) -> Vec<String> {
    let is_at_work = |name: &str| open.iter().any(|document| name.ends_with(document.id.as_str()));
    // An operator who is asked about this very one may leave it.
    let all = crowd.list(Scope::All);
    let was_left = |name: &str| all.iter().any(|document| name.ends_with(document.id.as_str()) && document.headline.contains("is not removed"));
    // (One that is being deleted is gone in a second.)
    let is_there = |one: &InstanceSnapshot| one.name.starts_with(CANARY_NAME) && one.task_state.as_deref() != Some("deleting");
    let left = crowd.world.snapshot().instances.into_iter().filter(|one| is_there(one) && !is_at_work(&one.name) && !was_left(&one.name));
    left.map(|one| format!("{} is left, {} on {:?}", one.name, one.vm_state, one.host)).collect()
}

/// Instances that are not as their tenants left them. One that Nova itself brings to an error, or does not start again, is an operator's matter, who
/// was asked; so is one that is half moved while somebody is still asked, or has answered that a node is to be left as it is, or was asked about
/// this very instance.
fn changed(crowd: &Crowd, plan: &SitePlan, an_operators_matter: bool, journals: &Journals) -> Vec<String> {
    let site = crowd.world.snapshot();
    let found = plan.instances.iter().filter(|instance| instance.node.is_some() && instance.fault.how != MoveGoesWrong::StaysOff && !tenant_resizes(plan, &instance.name));
    let mut changed = Vec::new();
    for instance in found {
        let (Some(now), wanted) = (site.instance(&instance.name), instance.vm_state.as_str()) else { continue };
        let asks_about_it = |body: &String| body.contains(r#""event":"operator-asked""#) && body.contains(&now.id) && body.contains("is `resized`");
        let named = || journals.values().flatten().any(|(_, body)| asks_about_it(body));
        let excused = now.vm_state == "error" || now.vm_state == "resized" && (an_operators_matter || named());
        if now.vm_state != wanted && !excused {
            changed.push(format!("{} was {wanted} and is {}", instance.name, now.vm_state));
        }
    }
    changed
}

/// By the entry's own event: what a step has written down may have the same words in it.
fn reached(crowd: &Crowd, body: &str) {
    for (event, what) in [
        (r#""event":"operator-asked""#, "question asked"),
        (r#""event":"unwind-begun""#, "went back"),
        (r#""event":"step-undone""#, "step undone"),
        (r#""event":"step-failed""#, "step failed and was tried again"),
        (r#""event":"signal-refused""#, "signal refused"),
        (r#""event":"resource-awaited""#, "waited for a resource"),
        (r#""event":"paused""#, "paused"),
        (r#""event":"ended","outcome":"aborted""#, "aborted"),
    ] {
        if body.contains(event) {
            crowd.sometimes.count(what);
        }
    }
}

/// What a workflow was answered while workers were still being struck.
fn followed_in_the_storm(key: &str) -> &'static str {
    match key {
        "retry" => "followed in the storm: retry",
        "unwind" => "followed in the storm: unwind",
        "leave" => "followed in the storm: leave",
        "netboot" => "followed in the storm: netboot",
        "rebuild" => "followed in the storm: rebuild",
        "accept" => "followed in the storm: accept",
        "stop" => "followed in the storm: stop",
        "disregard" => "followed in the storm: disregard",
        "go-on" => "followed in the storm: go-on",
        _ => "followed in the storm: another answer",
    }
}

/// The lease that a paused worker loses is shorter than its longest pauses.
const _: () = assert!(LEASE.as_millis() < 25_000);
