//! At every point of every step of every definition: killed, paused beyond the lease, answered by nobody. The same end, and nothing twice.
//!
//! The steps come from the registry; one that is not struck at every point fails the suite.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use turnaround_proof::checker::{Rules, judge};
use turnaround_proof::coverage::Coverage;
use turnaround_proof::journals::{self, Journals};
use turnaround_proof::script::{Played, Script, Where};
use turnaround_proof::{At, Befalls, Crowd, LEASE, Moment, Point, done};
use turnaround_proof::sim::order;
use turnaround_workflows::chance;
use turnaround_workflows::engine::{Definition, Observed, Progress, Registry, SignalKind, Start, Step, StepCx, StepError, step};
use turnaround_workflows::ports::CANARY_NAME;
use turnaround_workflows::rehearsal::{Happened, InstancePlan, SitePlan, VmState, WorldEvent};
use turnaround_workflows::store::Scope;
use turnaround_workflows::updates::{self, NODE_OS, NODE_OS_DRY_RUN, NODE_OS_IRONIC, NODE_OS_ROLLOUT, SURVEY, SurveyOrder};

/// The one who was struck, and the one who takes over.
const WORKERS: usize = 2;
/// The shortest pause in which a lease is lost, and one in which all the work is done by others.
const PAUSES: [Duration; 2] = [Duration::from_secs(LEASE.as_secs() + 5), Duration::from_secs(6 * 3600)];

/// Not the half hour of a real one: every look at a run is a point to be killed at, and they are all alike.
const SETUP_TAKES: Duration = Duration::from_secs(40);

/// One node to be renewed, two for its instances; every way to move is needed.
fn plan(kind: &str) -> SitePlan {
    let mut plan = SitePlan::uniform(3, 0).with_setup(&[]).setup_takes(SETUP_TAKES);
    plan.instances = vec![
        InstancePlan::new("train").on("gpu-01"),
        InstancePlan::new("spare").on("gpu-01").state(VmState::Stopped),
        InstancePlan::new("k3s-1").on("gpu-01"),
        InstancePlan::new("k3s-2").on("gpu-02"),
    ];
    let plan = plan.with_cluster(&["k3s-1", "k3s-2"]);
    if kind == NODE_OS_IRONIC { plan.with_ironic(&["gpu-01"]) } else { plan }
}

/// What is started, so that every step of `kind` runs.
fn begin(kind: &str) -> Start {
    let plan = plan(kind);
    let mut order = order(&plan, 1);
    order.nodes.truncate(1);
    order.rules.node_poll_ms = 60_000;
    match kind {
        NODE_OS | NODE_OS_IRONIC | NODE_OS_ROLLOUT => updates::rollout(&order, "tester"),
        NODE_OS_DRY_RUN => updates::dry_run(&order, "tester"),
        SURVEY => updates::survey(&SurveyOrder { nodes: order.nodes }, "tester"),
        other => panic!("`{other}` is new: say here how every step of it is brought about"),
    }
    .unwrap()
}

/// What must not depend on what befell whom.
#[derive(Debug, Clone, PartialEq)]
struct End {
    statuses: Vec<(String, &'static str)>,
    enabled: Vec<bool>,
    kernel: String,
    instances: Vec<(String, String)>,
    /// Moves, resets, images and losses, each with its object.
    effects: BTreeMap<String, u32>,
}

fn effects(events: &[WorldEvent]) -> BTreeMap<String, u32> {
    let mut count = BTreeMap::new();
    let is_canary = |id: &String| {
        events.iter().any(|event| matches!(&event.what, Happened::InstanceCreated { instance, name, .. } if instance == id && name.starts_with(CANARY_NAME)))
    };
    for event in events {
        let what = match &event.what {
            // Its id depends on when it was made.
            Happened::InstanceCreated { name, .. } if name.starts_with(CANARY_NAME) => "canary built".to_owned(),
            Happened::MigrationRequested { instance, .. } if is_canary(instance) => "canary moved".to_owned(),
            Happened::MigrationRequested { instance, .. } => format!("move {instance}"),
            Happened::StopRequested { instance, .. } => format!("stop {instance}"),
            Happened::ResetRequested { node, .. } => format!("reset {node}"),
            Happened::RebuildRequested { node, .. } => format!("rebuild {node}"),
            Happened::NodeCordoned { cluster_node, .. } => format!("cordon {cluster_node}"),
            Happened::NodeUncordoned { cluster_node, .. } => format!("uncordon {cluster_node}"),
            Happened::PodEvicted { pod } => format!("evict {pod}"),
            Happened::SilenceBegun { node, .. } => format!("silence {}", node.as_deref().unwrap_or("nobody")),
            Happened::ImageWritten { node, .. } => format!("image {node}"),
            Happened::InstancesLost { node, .. } => format!("HARM on {node}"),
            _ => continue,
        };
        *count.entry(what).or_insert(0) += 1;
    }
    count
}

/// How it ended, what was passed, and what is against it.
struct Ran {
    end: End,
    played: Played,
    against: Vec<String>,
}

fn run(kind: &str, lines: Vec<(Where, Befalls)>) -> Ran {
    let _seeded = chance::seeded(11);
    let wanted = lines.len();
    let (script, played) = Script::new(lines);
    let mut crowd = Crowd::new(plan(kind), 7, WORKERS, &updates::registry(), Box::new(script));
    crowd.start(begin(kind));
    crowd.rest();
    let played = std::mem::take(&mut *played.lock().unwrap());
    let log = crowd.log();
    let mut against: Vec<String> =
        judge(&log, &Rules { out_max: 1, ..Rules::default() }).iter().map(ToString::to_string).collect();
    let mut written = Journals::new();
    let mut statuses = Vec::new();
    for document in crowd.list(Scope::All) {
        written.insert(document.id.to_string(), crowd.journal(&document.id));
        statuses.push((document.target.clone(), document.status.as_str()));
        if !document.status.is_ended() {
            against.push(format!("{} is {}: {}", document.id, document.status.as_str(), document.headline));
        }
    }
    statuses.sort();
    against.extend(journals::judge(&written));
    against.extend(journals::judge_effects(&written, &log));
    against.extend(crowd.sometimes.wrongs());
    against.extend(done(crowd.store.holdings()).unwrap().iter().map(|held| format!("{} is still held", held.resource)));
    if played.struck.len() < wanted {
        against.push(format!("only {} of {wanted} lines of the script were played", played.struck.len()));
    }
    let site = crowd.world.snapshot();
    let end = End {
        statuses,
        enabled: site.nodes.iter().map(|node| node.enabled).collect(),
        kernel: site.nodes[0].kernel.clone(),
        instances: site.instances.iter().map(|guest| (guest.name.clone(), guest.vm_state.clone())).collect(),
        effects: effects(&crowd.world.events()),
    };
    Ran { end, played, against }
}

/// The point that is passed as number `place` (from 0) from when this line is the next.
fn nth(place: usize) -> Where {
    let passed = AtomicUsize::new(0);
    Box::new(move |_| passed.fetch_add(1, Ordering::SeqCst) == place)
}

fn at(at: At, moment: Moment) -> Where {
    Box::new(move |point| (point.at, point.moment) == (at, moment))
}

/// What may befall a worker at such a point.
fn faults(moment: Moment) -> Vec<Befalls> {
    let pauses = PAUSES.map(Befalls::Pause);
    match moment {
        // A call that only looks: killed or paused there is as killed before or after the step's own code.
        Moment::Calls { changes: false, .. } => vec![Befalls::Unavailable],
        Moment::Called { changes: false, .. } => Vec::new(),
        // No lease calls back what is on its way already: nobody is paused here for longer than a lease (see ARCHITECTURE).
        Moment::Calls { changes: true, .. } => vec![Befalls::Death, Befalls::Unavailable],
        Moment::Guarded => vec![Befalls::Death],
        Moment::Called { changes: true, .. } | Moment::CommitSent => {
            [Befalls::Death, Befalls::AnswerLost].into_iter().chain(pauses).collect()
        }
        Moment::Claimed
        | Moment::IntentWritten
        | Moment::EffectBegun
        | Moment::EffectDone
        | Moment::Commits
        | Moment::CommitReplied
        | Moment::Guards => [Befalls::Death, Befalls::Stop].into_iter().chain(pauses).collect(),
    }
}

/// A story that some workflow goes through, undisturbed but for what its own lines say.
struct Story {
    kind: &'static str,
    name: String,
    lines: Box<dyn Fn() -> Vec<(Where, Befalls)> + Sync>,
    /// Only what happens on the way back is of interest.
    only_undoing: bool,
}

fn abort() -> Befalls {
    Befalls::Told(SignalKind::Abort { why: "a tenant called".to_owned() })
}

/// When an abort is told so that the step in this place has begun by the time it is read.
fn told_at(place: usize) -> Moment {
    if place == 0 { Moment::Claimed } else { Moment::EffectBegun }
}

/// An abort that is read while the step in this place has begun, and the next one has not.
fn aborted_in(definition: &Definition, place: usize) -> Vec<(Where, Befalls)> {
    let told = At { kind: definition.kind, step: definition.steps[place].name(), undoing: false };
    vec![(at(told, told_at(place)), abort())]
}

/// Each definition from its beginning to its end; and each aborted in each of its steps.
fn stories(registry: &Registry) -> Vec<Story> {
    let mut stories = Vec::new();
    for definition in registry.all() {
        let kind = definition.kind;
        if kind != NODE_OS {
            stories.push(Story { kind, name: format!("{kind}, undisturbed"), lines: Box::new(Vec::new), only_undoing: false });
        }
        for (place, step) in definition.steps.iter().enumerate() {
            let definition = definition.clone();
            let lines = Box::new(move || aborted_in(&definition, place));
            stories.push(Story { kind, name: format!("{kind}, aborted in {}", step.name()), lines, only_undoing: true });
        }
    }
    // A rollout whose node is under way: it is aborted first.
    let told = At { kind: NODE_OS_ROLLOUT, step: "renew-nodes", undoing: false };
    let lines = Box::new(move || vec![(at(told, Moment::EffectDone), abort())]);
    let name = format!("{NODE_OS_ROLLOUT}, aborted with its node under way");
    stories.push(Story { kind: NODE_OS_ROLLOUT, name, lines, only_undoing: true });
    stories
}

struct Case<'a> {
    story: &'a Story,
    expected: &'a End,
    place: usize,
    point: &'a Point,
    fault: Befalls,
}

impl Case<'_> {
    /// What is against it; and which points were struck.
    fn judge(&self) -> (Vec<String>, Coverage) {
        let mut lines = (self.story.lines)();
        // The story's own lines come first and are passed on the way: the place is counted from where the last of them struck.
        lines.push((nth(self.place), self.fault.clone()));
        let ran = run(self.story.kind, lines);
        let mut against = ran.against;
        if ran.end != *self.expected {
            against.push(format!("it ends otherwise:\n{:?}\ninstead of\n{:?}", ran.end, self.expected));
        }
        let mut coverage = Coverage::default();
        if let Some(struck) = ran.played.struck.last() {
            coverage.add(struck);
        }
        let whence = format!("{}: {:?} at {} of `{}`: {:?}", self.story.name, self.fault, self.point.at.kind, self.point.at.step, self.point.moment);
        (against.into_iter().map(|what| format!("{whence}: {what}")).collect(), coverage)
    }
}

/// Runs every case, one thread for each core.
fn judge_all<T: Sync>(cases: &[T], judge: impl Fn(&T) -> (Vec<String>, Coverage) + Sync) -> (Vec<String>, Coverage) {
    let (next, told) = (AtomicUsize::new(0), Mutex::new((Vec::new(), Coverage::default())));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let (against, coverage) = judge(case);
                    let mut told = told.lock().unwrap();
                    told.0.extend(against);
                    told.1.extend(coverage);
                }
            });
        }
    });
    told.into_inner().unwrap()
}

/// Killed once in a step, or in its undoing, and again as soon as the next worker has claimed it.
fn killed_twice(registry: &Registry) -> Vec<(Arc<Definition>, usize, bool)> {
    let mut cases = Vec::new();
    for definition in registry.all() {
        let mut may_be_undone = true;
        for (place, step) in definition.steps.iter().enumerate() {
            may_be_undone &= !step.is_point_of_no_return();
            for undoing in [false, true].into_iter().take(1 + usize::from(may_be_undone)) {
                cases.push((definition.clone(), place, undoing));
            }
        }
    }
    cases
}

fn judge_killed_twice((definition, place, undoing): &(Arc<Definition>, usize, bool)) -> (Vec<String>, Coverage) {
    let here = At { kind: definition.kind, step: definition.steps[*place].name(), undoing: *undoing };
    let mut lines = if *undoing { aborted_in(definition, *place) } else { Vec::new() };
    lines.push((at(here, Moment::IntentWritten), Befalls::Death));
    lines.push((at(here, Moment::Claimed), Befalls::Death));
    let ran = run(here.kind, lines);
    let mut coverage = Coverage::default();
    ran.played.struck.iter().for_each(|point| coverage.add(point));
    (ran.against.into_iter().map(|what| format!("killed twice in {here:?}: {what}")).collect(), coverage)
}

#[test]
fn whatever_befalls_a_worker_at_any_point_of_any_step_the_end_is_the_same_and_nothing_is_done_twice() {
    let registry = updates::registry();
    let stories = stories(&registry);
    let undisturbed: Vec<Ran> = stories.iter().map(|story| run(story.kind, (story.lines)())).collect();
    let mut against: Vec<String> = Vec::new();
    let mut cases = Vec::new();
    for (story, ran) in stories.iter().zip(&undisturbed) {
        against.extend(ran.against.iter().map(|what| format!("{}: {what}", story.name)));
        let begins = ran.played.struck.last().map_or(0, |last| {
            1 + ran.played.passed.iter().position(|point| point == last).expect("what was struck was passed")
        });
        for (place, point) in ran.played.passed[begins..].iter().enumerate() {
            if story.only_undoing && !point.at.undoing {
                continue;
            }
            // Its rollout is a story of its own.
            if story.kind == NODE_OS_IRONIC && point.at.kind == NODE_OS_ROLLOUT {
                continue;
            }
            cases.extend(faults(point.moment).into_iter().map(|fault| Case { story, expected: &ran.end, place, point, fault }));
        }
    }
    let (more, mut coverage) = judge_all(&cases, Case::judge);
    against.extend(more);
    let (more, twice) = judge_all(&killed_twice(&registry), judge_killed_twice);
    against.extend(more);
    coverage.extend(twice);
    println!("{} stories, {} cases", stories.len(), cases.len());
    let shown: Vec<&str> = against.iter().take(30).map(String::as_str).collect();
    assert!(against.is_empty(), "{} complaints:\n{}", against.len(), shown.join("\n"));
    assert_eq!(coverage.missing(&registry), Vec::<String>::new(), "points at which nobody was struck");
}

#[test]
fn a_story_without_faults_does_what_it_says() {
    let renewed = run(NODE_OS_ROLLOUT, Vec::new());
    assert_eq!(renewed.against, Vec::<String>::new());
    assert_eq!(renewed.end.statuses, [("gpu-01".to_owned(), "succeeded"), ("gpu-01".to_owned(), "succeeded")]);
    assert_eq!(renewed.end.kernel, "6.8.0-60-generic");
    assert_eq!(renewed.end.effects.values().copied().collect::<Vec<u32>>(), [1; 11], "{:?}", renewed.end.effects);
    let told = At { kind: NODE_OS, step: "evacuate", undoing: false };
    let aborted = run(NODE_OS, vec![(at(told, Moment::EffectBegun), abort())]);
    assert_eq!(aborted.end.kernel, "5.15.0-119-generic");
    assert_eq!(aborted.end.enabled, [true; 3]);
    let rebuilt = run(NODE_OS_IRONIC, Vec::new());
    assert_eq!(rebuilt.against, Vec::<String>::new());
    assert_eq!(rebuilt.end.kernel, "6.8.0-60-generic");
    assert_eq!(rebuilt.end.effects.get("rebuild gpu-01"), Some(&1), "{:?}", rebuilt.end.effects);
    assert_eq!(rebuilt.end.effects.values().copied().collect::<Vec<u32>>(), [1; 11], "{:?}", rebuilt.end.effects);
    // Past the point of no return.
    let told = At { kind: NODE_OS, step: "await-install", undoing: false };
    let refused = run(NODE_OS, vec![(at(told, Moment::EffectBegun), abort())]);
    assert_eq!(refused.end, renewed.end);
}

struct Unknown;

#[async_trait::async_trait]
impl Step for Unknown {
    const NAME: &'static str = "never-tried";
    type Output = ();

    async fn observe(&self, _: &StepCx<'_>) -> Result<Observed<()>, StepError> {
        Ok(Observed::AlreadyDone(()))
    }

    async fn act(&self, _: &StepCx<'_>) -> Result<Progress<()>, StepError> {
        Ok(Progress::Done(()))
    }
}

#[test]
fn a_step_or_a_definition_at_which_nobody_was_struck_is_named() {
    let registry = |steps: usize| {
        let steps = (0..steps).map(|_| step(Unknown)).collect();
        Registry::new([Definition { kind: "new", version: 1, steps }])
    };
    assert_eq!(Coverage::default().missing(&registry(0)), Vec::<String>::new());
    let missing = Coverage::default().missing(&registry(1));
    assert_eq!(missing.len(), 12, "six points of the step, six of its undoing: {missing:?}");
    assert!(missing[0].contains("never-tried"), "{missing:?}");
    let mut coverage = Coverage::default();
    let at = At { kind: "new", step: "never-tried", undoing: true };
    for moment in [Moment::Claimed, Moment::IntentWritten, Moment::EffectBegun, Moment::EffectDone, Moment::CommitSent] {
        coverage.add(&Point { at, moment, workflow: "w".parse().unwrap(), now: turnaround_proof::MORNING });
    }
    assert_eq!(coverage.missing(&registry(1)).len(), 7);
    assert!(!coverage.missing(&updates::registry()).is_empty());
}
