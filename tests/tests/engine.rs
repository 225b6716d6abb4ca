//! What the engine promises to every workflow, whatever its steps do.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use turnaround_proof::sim::{MORNING, Sim};
use turnaround_workflows::clock::Clock as _;
use turnaround_workflows::engine::{
    AnswerEffect, ChildSpec, Course, Definition, Entry, Event, Observed, Outcome, Policy, Progress, Question, Registry, SignalKind,
    Start, State, Step, StepCx, StepError, Undone, check_chain, start, step,
};
use turnaround_workflows::rehearsal::SitePlan;
use turnaround_workflows::store::{Queue, Resource, Status, Store, Take, WorkflowId};

/// What a step under test is told to do, call by call; the last one for ever.
#[derive(Clone)]
struct Told(Arc<(Vec<Do>, AtomicU32, AtomicU32)>);

#[derive(Clone, Copy)]
enum Do {
    Succeed,
    Wait,
    Fail,
    /// Writes down what it means to do, and fails then.
    FailAfterItsIntent,
    Ask,
    Panic,
    Fatal,
}

impl Told {
    fn to(what: &[Do]) -> Told {
        Told(Arc::new((what.to_vec(), AtomicU32::new(0), AtomicU32::new(0))))
    }

    fn next(&self) -> Do {
        let call = self.0.1.fetch_add(1, Ordering::SeqCst) as usize;
        self.0.0[call.min(self.0.0.len() - 1)]
    }

    fn calls(&self) -> u32 {
        self.0.1.load(Ordering::SeqCst)
    }

    fn undone(&self) -> u32 {
        self.0.2.load(Ordering::SeqCst)
    }
}

struct First(Told);
struct Second(Told);
struct NoReturn(Told);
struct Far(Told);

async fn act(told: &Told, cx: &StepCx<'_>) -> Result<Progress<()>, StepError> {
    match told.next() {
        Do::Succeed => Ok(Progress::Done(())),
        Do::Wait => Ok(Progress::LookAgain { after: Duration::from_secs(60), note: "waits".to_owned() }),
        Do::Fail => Err(StepError::retry("nobody answers")),
        Do::FailAfterItsIntent => {
            cx.save(&cx.just_now().await, "about to ask").await?;
            Err(StepError::retry("nobody answers"))
        }
        Do::Ask => Err(StepError::ask(
            Question::new("what now?")
                .answer("retry", AnswerEffect::Retry, "tries again")
                .answer("unwind", AnswerEffect::Unwind, "goes back")
                .answer("leave", AnswerEffect::Leave, "leaves it"),
        )),
        Do::Panic => panic!("a planted bug"),
        Do::Fatal => Err(StepError::fatal("never")),
    }
}

macro_rules! told_step {
    ($type:ident, $name:literal, $no_return:literal) => {
        told_step!($type, $name, $no_return, Queue::DEFAULT);
    };
    ($type:ident, $name:literal, $no_return:literal, $queue:expr) => {
        #[async_trait]
        impl Step for $type {
            const NAME: &'static str = $name;
            const POINT_OF_NO_RETURN: bool = $no_return;
            const QUEUE: Queue = $queue;
            type Output = ();

            fn policy(&self, _: &StepCx<'_>) -> Policy {
                Policy { deadline: Duration::from_secs(600), failures_max: 3, ..Policy::default() }
            }

            fn takes(&self, cx: &StepCx<'_>) -> Result<Vec<Take>, StepError> {
                let resource = Resource::Budget { name: "room".to_owned(), member: cx.id.to_string() };
                Ok(if $name == "first" { vec![Take::new(resource, 1)] } else { Vec::new() })
            }

            fn gives(&self, cx: &StepCx<'_>) -> Result<Vec<Resource>, StepError> {
                let resource = Resource::Budget { name: "room".to_owned(), member: cx.id.to_string() };
                Ok(if $name == "second" { vec![resource] } else { Vec::new() })
            }

            async fn observe(&self, _: &StepCx<'_>) -> Result<Observed<()>, StepError> {
                Ok(Observed::ToDo { would: "do it".to_owned() })
            }

            async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<()>, StepError> {
                act(&self.0, cx).await
            }

            async fn undo(&self, _: &StepCx<'_>) -> Result<Undone, StepError> {
                self.0.0.2.fetch_add(1, Ordering::SeqCst);
                Ok(Undone::Done { note: "undone".to_owned() })
            }
        }
    };
}

told_step!(First, "first", false);
told_step!(Second, "second", false);
told_step!(NoReturn, "no-return", true);
told_step!(Far, "far", false, FAR);

/// Where only some workers reach.
const FAR: Queue = Queue::of("far");

/// Somebody tells its workflow this while it acts.
struct Telling {
    store: Arc<dyn Store>,
    kind: SignalKind,
}

#[async_trait]
impl Step for Telling {
    const NAME: &'static str = "telling";
    type Output = ();

    async fn observe(&self, _: &StepCx<'_>) -> Result<Observed<()>, StepError> {
        Ok(Observed::ToDo { would: "hear it".to_owned() })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<()>, StepError> {
        let signal = turnaround_workflows::engine::Signal { id: "told".to_owned(), at: cx.now(), by: "ada".to_owned(), kind: self.kind.clone() };
        self.store.signal(cx.id, signal.stored().unwrap()).await.unwrap();
        Ok(Progress::Done(()))
    }
}

/// Starts a child of the first kind for each key, and waits for all.
struct Children(u32);

#[async_trait]
impl Step for Children {
    const NAME: &'static str = "children";
    type Output = u32;

    async fn observe(&self, cx: &StepCx<'_>) -> Result<Observed<u32>, StepError> {
        let ended = cx.children().values().filter(|child| child.outcome.is_some()).count();
        let ended = u32::try_from(ended).unwrap();
        Ok(if ended == self.0 { Observed::AlreadyDone(ended) } else { Observed::ToDo { would: "start children".to_owned() } })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<u32>, StepError> {
        if !cx.children().is_empty() {
            return Ok(Progress::AwaitChildren { note: "waits for children".to_owned() });
        }
        let child = |n| ChildSpec { key: format!("c{n}"), kind: "told".to_owned(), target: format!("child {n}"), input: serde_json::Value::Null };
        Ok(Progress::StartChildren { children: (0..self.0).map(child).collect(), note: "started".to_owned() })
    }
}

struct Bench {
    sim: Sim,
    first: Told,
    second: Told,
}

impl Bench {
    fn new(first: &[Do], second: &[Do]) -> Bench {
        let (first, second) = (Told::to(first), Told::to(second));
        let mut sim = Sim::new(SitePlan::uniform(1, 0), 1);
        sim.registry = Registry::new([
            Definition { kind: "told", version: 1, steps: vec![step(First(first.clone())), step(Second(second.clone()))] },
            Definition { kind: "wiper", version: 1, steps: vec![step(NoReturn(first.clone())), step(Second(second.clone()))] },
            Definition { kind: "parent", version: 1, steps: vec![step(Children(3))] },
        ]);
        Bench { sim, first, second }
    }

    async fn begin(&self, kind: &str, id: &str) -> WorkflowId {
        self.begin_version(kind, id, 1).await
    }

    async fn begin_version(&self, kind: &str, id: &str, version: u32) -> WorkflowId {
        let new = Start {
            id: id.parse().unwrap(),
            kind: kind.to_owned(),
            version,
            target: "nothing".to_owned(),
            input: serde_json::Value::Null,
            parent: None,
            key: None,
            by: "tester".to_owned(),
            traceparent: None,
        };
        let id = new.id.clone();
        self.sim.store.create(start(new, self.sim.clock.now()).unwrap()).await.unwrap();
        id
    }

    async fn status(&self, id: &WorkflowId) -> Status {
        self.sim.document(id).await.status
    }

    /// The journal, whose chain and whose fold are checked on the way.
    async fn journal(&self, id: &WorkflowId) -> Vec<Event> {
        let stored = self.sim.store.journal(id, 1, 500).await.unwrap();
        let entries: Vec<Entry> = check_chain(None, 1, &stored).unwrap();
        let kept = State::of(&self.sim.document(id).await).unwrap();
        assert!(kept.is_none_or(|kept| kept == State::of_entries(&entries).unwrap()), "what is kept for listings is the fold of the journal");
        entries.into_iter().map(|entry| entry.event).collect()
    }
}

fn names(journal: &[Event]) -> Vec<String> {
    let name = |event: &Event| serde_json::to_value(event).unwrap()["event"].as_str().unwrap().to_owned();
    journal.iter().map(name).collect()
}

#[tokio::test]
async fn steps_run_in_order_and_the_journal_tells_it() {
    let mut bench = Bench::new(&[Do::Wait, Do::Succeed], &[Do::Succeed]);
    let id = bench.begin("told", "w").await;
    bench.sim.run().await;
    assert_eq!(bench.status(&id).await, Status::Succeeded);
    let told = names(&bench.journal(&id).await);
    assert_eq!(told, ["created", "step-begun", "step-parked", "step-succeeded", "step-begun", "step-succeeded", "ended"]);
    assert!(bench.sim.store.holdings().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_failure_is_tried_again_with_pauses_and_then_becomes_a_question() {
    let mut bench = Bench::new(&[Do::Fail], &[Do::Succeed]);
    let id = bench.begin("told", "w").await;
    bench.sim.run().await;
    assert_eq!(bench.status(&id).await, Status::NeedsOperator);
    assert_eq!(bench.first.calls(), 3);
    let state = bench.sim.state(&id).await;
    let keys: Vec<&str> = state.question().unwrap().answers.iter().map(|answer| answer.key.as_str()).collect();
    assert_eq!(keys, ["retry", "unwind", "leave"]);
    assert!(bench.sim.clock.now() > MORNING);
}

#[tokio::test]
async fn an_intent_that_is_written_down_before_each_try_is_no_success() {
    let mut bench = Bench::new(&[Do::FailAfterItsIntent], &[Do::Succeed]);
    let id = bench.begin("told", "w").await;
    bench.sim.run().await;
    assert_eq!(bench.status(&id).await, Status::NeedsOperator);
    assert_eq!(bench.first.calls(), 3);
}

#[tokio::test]
async fn an_answer_is_for_the_question_that_its_author_has_read() {
    let mut bench = Bench::new(&[Do::Ask, Do::Ask, Do::Wait], &[Do::Succeed]);
    let id = bench.begin("told", "w").await;
    bench.sim.run().await;
    assert_eq!(bench.sim.state(&id).await.open_question(), Some(1));
    // Two people answer the first one; the second answer arrives while the step looks again, and is read when another question is open.
    let to = |key: &str, question| SignalKind::Answer { key: key.to_owned(), question: Some(question) };
    for key in ["retry", "leave"] {
        bench.sim.signal(&id, to(key, 1)).await;
        bench.sim.run().await;
    }
    let state = bench.sim.state(&id).await;
    assert_eq!((bench.first.calls(), state.open_question(), state.status()), (2, Some(2), Status::NeedsOperator));
    let refused = bench.journal(&id).await.into_iter().find_map(|event| if let Event::SignalRefused { why, .. } = event { Some(why) } else { None });
    assert_eq!(refused.as_deref(), Some("`leave` was for question 1, and question 2 is open now"));
    bench.sim.signal(&id, to("leave", 2)).await;
    bench.sim.run().await;
    assert_eq!(bench.status(&id).await, Status::Failed);
}

#[tokio::test]
async fn what_is_paused_is_not_left_before_it_is_resumed() {
    let mut bench = Bench::new(&[Do::Ask], &[Do::Succeed]);
    let id = bench.begin("told", "w").await;
    bench.sim.run().await;
    bench.sim.signal(&id, SignalKind::Pause { why: "lunch".to_owned() }).await;
    bench.sim.signal(&id, SignalKind::answer("leave")).await;
    bench.sim.run().await;
    assert_eq!(bench.status(&id).await, Status::NeedsOperator);
    bench.sim.signal(&id, SignalKind::Resume).await;
    bench.sim.signal(&id, SignalKind::answer("leave")).await;
    bench.sim.run().await;
    assert_eq!(bench.status(&id).await, Status::Failed);
}

/// It asks, and has been paused since.
async fn paused_for_a_night() -> (Bench, WorkflowId) {
    let mut bench = Bench::new(&[Do::Ask, Do::Wait], &[Do::Succeed]);
    let id = bench.begin("told", "w").await;
    bench.sim.run().await;
    bench.sim.signal(&id, SignalKind::Pause { why: "the night".to_owned() }).await;
    bench.sim.run().await;
    bench.sim.clock.advance(Duration::from_secs(10 * 3_600));
    (bench, id)
}

#[tokio::test]
async fn another_try_has_the_patience_of_the_first_one_however_long_a_pause_was() {
    let (mut bench, id) = paused_for_a_night().await;
    bench.sim.signal(&id, SignalKind::Resume).await;
    bench.sim.run().await;
    let answered = bench.sim.clock.now();
    bench.sim.signal(&id, SignalKind::answer("retry")).await;
    bench.sim.run().await;
    let deadline = bench.journal(&id).await.into_iter().find_map(|event| if let Event::RetryRequested { deadline, .. } = event { Some(deadline) } else { None });
    assert_eq!(deadline, Some(answered + Duration::from_secs(600)));
}

#[tokio::test]
async fn what_is_answered_in_a_pause_has_the_patience_of_the_first_try_and_not_the_pause_on_top() {
    let (mut bench, id) = paused_for_a_night().await;
    bench.sim.signal(&id, SignalKind::answer("retry")).await;
    bench.sim.run().await;
    bench.sim.clock.advance(Duration::from_secs(60));
    bench.sim.signal(&id, SignalKind::Resume).await;
    let resumed = bench.sim.clock.now();
    bench.sim.run_until(async |sim| sim.state(&id).await.paused.is_none()).await;
    let current = bench.sim.state(&id).await.current.unwrap();
    assert_eq!(current.deadline, resumed + Duration::from_secs(600), "{current:?}");
}

#[tokio::test]
async fn an_answer_does_what_it_says() {
    for (key, status, undone, holdings) in
        [("unwind", Status::Failed, 1, 0), ("leave", Status::Failed, 0, 1), ("retry", Status::Succeeded, 0, 0)]
    {
        let mut bench = Bench::new(&[Do::Ask, Do::Succeed], &[Do::Succeed]);
        let id = bench.begin("told", "w").await;
        bench.sim.run().await;
        assert_eq!(bench.status(&id).await, Status::NeedsOperator);
        bench.sim.signal(&id, SignalKind::answer("nonsense".to_owned())).await;
        bench.sim.run().await;
        assert_eq!(bench.status(&id).await, Status::NeedsOperator, "an answer that is none changes nothing");
        bench.sim.signal(&id, SignalKind::answer(key.to_owned())).await;
        bench.sim.run().await;
        assert_eq!(bench.status(&id).await, status, "{key}");
        assert_eq!(bench.first.undone(), undone, "{key}");
        assert_eq!(bench.sim.store.holdings().await.unwrap().len(), holdings, "{key}: a node left out goes on counting");
        assert!(names(&bench.journal(&id).await).contains(&"signal-refused".to_owned()));
    }
}

#[tokio::test]
async fn a_step_that_never_comes_to_an_end_becomes_a_question_at_its_deadline() {
    let mut bench = Bench::new(&[Do::Wait], &[Do::Succeed]);
    let id = bench.begin("told", "w").await;
    bench.sim.run().await;
    assert_eq!(bench.status(&id).await, Status::NeedsOperator);
    assert_eq!(bench.sim.clock.now().since(MORNING), Duration::from_secs(600));
    let parked = names(&bench.journal(&id).await).iter().filter(|name| *name == "step-parked").count();
    assert_eq!(parked, 1, "a poll that sees nothing new is not worth an entry");
}

#[tokio::test]
async fn a_panic_is_a_question_and_not_the_end_of_the_worker() {
    let mut bench = Bench::new(&[Do::Panic, Do::Succeed], &[Do::Succeed]);
    let id = bench.begin("told", "w").await;
    bench.sim.run().await;
    assert!(bench.sim.state(&id).await.question().unwrap().seen[0].contains("a planted bug"));
    bench.sim.signal(&id, SignalKind::answer("retry".to_owned())).await;
    bench.sim.run().await;
    assert_eq!(bench.status(&id).await, Status::Succeeded);
}

#[tokio::test]
async fn what_cannot_succeed_is_unwound_last_step_first() {
    let mut bench = Bench::new(&[Do::Succeed], &[Do::Fatal]);
    let id = bench.begin("told", "w").await;
    bench.sim.run().await;
    assert_eq!(bench.status(&id).await, Status::Failed);
    let undone: Vec<String> =
        bench.journal(&id).await.iter().filter_map(|event| if let Event::StepUndone { step, .. } = event { Some(step.clone()) } else { None }).collect();
    assert_eq!(undone, ["second", "first"]);
    assert!(bench.sim.store.holdings().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_paused_workflow_begins_nothing_until_it_is_resumed() {
    let mut bench = Bench::new(&[Do::Wait, Do::Succeed], &[Do::Succeed]);
    let id = bench.begin("told", "w").await;
    bench.sim.run_until(async |sim| sim.document(&id).await.status == Status::Waiting).await;
    bench.sim.signal(&id, SignalKind::Pause { why: "lunch".to_owned() }).await;
    bench.sim.run().await;
    assert_eq!((bench.status(&id).await, bench.first.calls()), (Status::Paused, 1));
    bench.sim.clock.advance(Duration::from_secs(300));
    bench.sim.run().await;
    assert_eq!((bench.status(&id).await, bench.first.calls()), (Status::Paused, 1));
    bench.sim.signal(&id, SignalKind::Resume).await;
    bench.sim.run().await;
    assert_eq!(bench.status(&id).await, Status::Succeeded);
}

#[tokio::test]
async fn an_abort_unwinds_before_the_point_of_no_return_and_is_refused_after_it() {
    for (kind, status, undone) in [("told", Status::Aborted, 1), ("wiper", Status::Succeeded, 0)] {
        let mut bench = Bench::new(&[Do::Wait, Do::Succeed], &[Do::Succeed]);
        let id = bench.begin(kind, "w").await;
        bench.sim.run_until(async |sim| sim.document(&id).await.status == Status::Waiting).await;
        bench.sim.signal(&id, SignalKind::Abort { why: String::new() }).await;
        bench.sim.run().await;
        assert_eq!((bench.status(&id).await, bench.first.undone()), (status, undone), "{kind}");
    }
}

#[tokio::test]
async fn a_signal_that_is_delivered_twice_counts_once() {
    let mut bench = Bench::new(&[Do::Wait, Do::Succeed], &[Do::Succeed]);
    let id = bench.begin("told", "w").await;
    let signal = turnaround_workflows::engine::Signal {
        id: "the-same".to_owned(),
        at: MORNING,
        by: "tester".to_owned(),
        kind: SignalKind::Pause { why: String::new() },
    };
    bench.sim.store.signal(&id, signal.stored().unwrap()).await.unwrap();
    bench.sim.run().await;
    bench.sim.store.signal(&id, signal.stored().unwrap()).await.unwrap();
    bench.sim.signal(&id, SignalKind::Resume).await;
    bench.sim.run().await;
    assert_eq!(bench.status(&id).await, Status::Succeeded);
    assert!(!names(&bench.journal(&id).await).contains(&"signal-refused".to_owned()));
}

#[tokio::test]
async fn a_budget_lets_in_one_at_a_time_and_wakes_who_waits() {
    let mut bench = Bench::new(&[Do::Wait, Do::Succeed], &[Do::Succeed]);
    let ids = [bench.begin("told", "a").await, bench.begin("told", "b").await, bench.begin("told", "c").await];
    bench.sim.run().await;
    for id in &ids {
        assert_eq!(bench.status(id).await, Status::Succeeded);
    }
    let waited = bench.journal(&ids[2]).await.iter().any(|event| matches!(event, Event::ResourceAwaited { .. }));
    assert!(waited, "the last one had to wait");
    assert!(bench.sim.clock.now().since(MORNING) < Duration::from_secs(120), "and was woken, not left to its fallback");
}

/// The one place that there is: whoever has it, and ends without giving it back, leaves it to the next.
struct Seat(Told);

fn seat() -> Resource {
    Resource::Budget { name: "seats".to_owned(), member: "window".to_owned() }
}

#[async_trait]
impl Step for Seat {
    const NAME: &'static str = "seat";
    type Output = ();

    fn policy(&self, _: &StepCx<'_>) -> Policy {
        Policy { deadline: Duration::from_secs(600), ..Policy::default() }
    }

    fn takes(&self, _: &StepCx<'_>) -> Result<Vec<Take>, StepError> {
        Ok(vec![Take::new(seat(), 1)])
    }

    fn gives(&self, _: &StepCx<'_>) -> Result<Vec<Resource>, StepError> {
        Ok(vec![seat()])
    }

    async fn observe(&self, _: &StepCx<'_>) -> Result<Observed<()>, StepError> {
        Ok(Observed::ToDo { would: "sit down".to_owned() })
    }

    async fn act(&self, cx: &StepCx<'_>) -> Result<Progress<()>, StepError> {
        act(&self.0, cx).await
    }
}

/// The first commit of a step that takes over from somebody is answered with who that is, and may have waited for the store until then.
#[tokio::test]
async fn the_deadline_of_a_step_that_took_something_over_counts_from_the_commit_that_stands() {
    let mut bench = Bench::new(&[Do::Succeed], &[Do::Succeed]);
    bench.sim.registry = Registry::new([Definition { kind: "told", version: 1, steps: vec![step(Seat(Told::to(&[Do::Ask, Do::Succeed])))] }]);
    let first = bench.begin("told", "first").await;
    bench.sim.run().await;
    bench.sim.signal(&first, SignalKind::answer("leave".to_owned())).await;
    bench.sim.run().await;
    assert_eq!(bench.status(&first).await, Status::Failed);

    let back = bench.sim.clock.now() + Duration::from_secs(3_600);
    bench.sim.store_outage = Some((bench.sim.clock.now(), back));
    let second = bench.begin("told", "second").await;
    bench.sim.run().await;
    let journal = bench.journal(&second).await;
    let begun = journal.iter().find_map(|event| match event {
        Event::StepBegun { deadline, took_over, .. } => Some((*deadline, took_over.clone())),
        _ => None,
    });
    let (deadline, took_over) = begun.expect("it began");
    assert_eq!(took_over.iter().map(|taken| &taken.from).collect::<Vec<_>>(), [&first]);
    assert_eq!(deadline, back + Duration::from_secs(600));
    assert_eq!(bench.status(&second).await, Status::Succeeded);
}

/// Its patience was over before anybody could try it.
#[tokio::test]
async fn a_step_that_was_begun_before_a_long_outage_is_tried_after_it() {
    let mut bench = Bench::new(&[Do::Succeed], &[Do::Succeed]);
    let id = bench.begin("told", "w").await;
    // The step's patience is ten minutes.
    let from = bench.sim.clock.now();
    bench.sim.store_outage = Some((from, from + Duration::from_secs(3_600)));
    bench.sim.run().await;
    let journal = bench.journal(&id).await;
    assert_eq!(bench.status(&id).await, Status::Succeeded, "{journal:?}");
    assert!(!names(&journal).contains(&"operator-asked".to_owned()), "{journal:?}");
}

/// Nobody has looked into its inbox since the step before it began.
#[tokio::test]
async fn what_is_told_during_the_step_before_the_point_of_no_return_is_followed_before_it() {
    for (kind, status) in [(SignalKind::Abort { why: String::new() }, Status::Aborted), (SignalKind::Pause { why: String::new() }, Status::Paused)] {
        let mut bench = Bench::new(&[Do::Succeed], &[Do::Succeed]);
        let hook = Told::to(&[Do::Succeed]);
        let steps = vec![step(First(bench.first.clone())), step(Telling { store: bench.sim.store.clone(), kind }), step(NoReturn(hook.clone()))];
        bench.sim.registry = Registry::new([Definition { kind: "told", version: 1, steps }]);
        let id = bench.begin("told", "w").await;
        bench.sim.run().await;
        assert_eq!((bench.status(&id).await, hook.calls()), (status, 0));
        assert!(bench.sim.state(&id).await.record("no-return").is_none());
    }
}

/// More of them than one commit carries.
#[tokio::test]
async fn a_parent_of_many_children_tells_them_everything_that_it_was_told_at_once() {
    let mut bench = Bench::new(&[Do::Wait], &[Do::Succeed]);
    bench.sim.registry = Registry::new([
        Definition { kind: "told", version: 1, steps: vec![step(Second(bench.first.clone()))] },
        Definition { kind: "parent", version: 1, steps: vec![step(Children(400))] },
    ]);
    let id = bench.begin("parent", "p").await;
    let child: WorkflowId = "p.c0".parse().unwrap();
    bench.sim.run_until(async |sim| sim.store.load(&child).await.unwrap().is_some_and(|child| child.status == Status::Waiting)).await;
    for kind in [SignalKind::Pause { why: String::new() }, SignalKind::Resume, SignalKind::Pause { why: String::new() }, SignalKind::Abort { why: "enough".to_owned() }] {
        bench.sim.signal(&id, kind).await;
    }
    bench.sim.signal(&id, SignalKind::Resume).await;
    bench.sim.run().await;
    assert_eq!(bench.status(&id).await, Status::Aborted);
}

#[tokio::test]
async fn children_run_and_their_parent_learns_how_they_ended() {
    let mut bench = Bench::new(&[Do::Succeed], &[Do::Succeed]);
    let id = bench.begin("parent", "p").await;
    bench.sim.run().await;
    assert_eq!(bench.status(&id).await, Status::Succeeded);
    let state = bench.sim.state(&id).await;
    assert_eq!(state.children.len(), 3);
    assert!(state.children.values().all(|child| child.outcome == Some(Outcome::Succeeded)));
    assert_eq!(state.children["c1"].id.as_str(), "p.c1");
}

#[tokio::test]
async fn an_aborted_parent_aborts_its_children_first() {
    let mut bench = Bench::new(&[Do::Wait], &[Do::Succeed]);
    let id = bench.begin("parent", "p").await;
    let child: WorkflowId = "p.c0".parse().unwrap();
    bench.sim.run_until(async |sim| sim.store.load(&child).await.unwrap().is_some_and(|child| child.status == Status::Waiting)).await;
    bench.sim.signal(&id, SignalKind::Abort { why: "enough".to_owned() }).await;
    bench.sim.run().await;
    assert_eq!(bench.status(&id).await, Status::Aborted);
    assert!(bench.sim.state(&id).await.children.values().all(|child| child.outcome == Some(Outcome::Aborted)));
    assert!(bench.sim.store.holdings().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_workflow_of_another_release_is_left_alone() {
    let mut bench = Bench::new(&[Do::Succeed], &[Do::Succeed]);
    let id = bench.begin_version("told", "w", 9).await;
    let mut looked = 0;
    bench.sim.run_until(async |_| { looked += 1; looked > 20 }).await;
    assert_eq!((bench.status(&id).await, bench.first.calls(), bench.second.calls()), (Status::NeedsOperator, 0, 0));
    assert_eq!(bench.sim.state(&id).await.course, Course::Forward);
}

#[tokio::test]
async fn a_step_is_left_to_workers_that_serve_its_queue_also_on_the_way_back() {
    let mut bench = Bench::new(&[Do::Wait, Do::Succeed], &[Do::Wait, Do::Wait]);
    let (first, far) = (bench.first.clone(), bench.second.clone());
    let steps = vec![step(First(first)), step(Far(far))];
    bench.sim.registry = Registry::new([Definition { kind: "told", version: 1, steps }]);
    let id = bench.begin("told", "w").await;
    let waits_in = async |bench: &Bench| bench.sim.document(&id).await.queue;
    bench.sim.queues = Some(vec![Queue::DEFAULT]);
    bench.sim.run_until(async |sim| sim.document(&id).await.queue == FAR).await;
    assert_eq!((bench.first.calls(), bench.second.calls()), (2, 0), "the far step is not begun here");
    let before = bench.sim.document(&id).await.seq;
    assert!(bench.sim.state(&id).await.record("far").is_none(), "{before}");
    bench.sim.queues = Some(vec![FAR]);
    bench.sim.run_until(async |sim| sim.document(&id).await.status == Status::Waiting).await;
    assert_eq!((bench.second.calls(), waits_in(&bench).await), (1, FAR));
    // The far step is undone there, the first one here.
    bench.sim.signal(&id, SignalKind::Abort { why: String::new() }).await;
    bench.sim.run_until(async |sim| sim.document(&id).await.queue == Queue::DEFAULT).await;
    assert_eq!((bench.first.undone(), bench.second.undone()), (0, 1));
    bench.sim.queues = Some(vec![Queue::DEFAULT]);
    bench.sim.run().await;
    assert_eq!((bench.status(&id).await, bench.first.undone()), (Status::Aborted, 1));
}
