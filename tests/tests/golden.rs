//! Journals outlive releases: what earlier releases wrote must mean the same to this one.
//!
//! `tests/golden/definitions/` has the steps of each kind and version, `tests/golden/queues.txt` the queues, `tests/golden/journals/` has journals as
//! some release wrote them, each with the status that it stood for then. None is ever changed; new ones are added (to the queues by hand) by
//! `TURNAROUND_GOLDEN=write cargo test -p turnaround-tests --test golden`, twice, which leaves alone what is there already: the
//! first run writes what the second one judges.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use turnaround_proof::sim::{Sim, order};
use turnaround_workflows::clock::Clock as _;
use turnaround_workflows::engine::{Definition, Entry, SignalKind, Start, State, check_chain, start};
use turnaround_workflows::rehearsal::{ALWAYS, Happened, InstancePlan, MoveFault, MoveGoesWrong, SitePlan, VmState};
use turnaround_workflows::store::{Document, Status, StoredEntry, WorkflowId};
use turnaround_workflows::updates::{self, NODE_OS, NODE_OS_DRY_RUN, NODE_OS_IRONIC, NODE_OS_ROLLOUT, SURVEY, SurveyOrder};

/// Every event that a journal may have. One that no golden journal shows would not be known to be read for ever.
const EVENTS: [&str; 20] = [
    "child-ended",
    "children-started",
    "created",
    "ended",
    "operator-answered",
    "operator-asked",
    "paused",
    "reported",
    "resource-awaited",
    "resumed",
    "retry-requested",
    "signal-refused",
    "step-begun",
    "step-checkpointed",
    "step-failed",
    "step-parked",
    "step-succeeded",
    "step-undone",
    "undo-begun",
    "unwind-begun",
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

fn writes() -> bool {
    std::env::var("TURNAROUND_GOLDEN").is_ok_and(|wanted| wanted == "write")
}

/// Writes a file that is not there yet. What a release has written stays.
fn keep(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    if !path.exists() {
        std::fs::write(path, text).unwrap();
    }
}

fn files(name: &str) -> Vec<PathBuf> {
    let found = std::fs::read_dir(folder(name)).unwrap_or_else(|error| panic!("{}: {error}", folder(name).display()));
    let mut found: Vec<PathBuf> = found.map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// One step a line, with what makes it special.
fn steps_of(definition: &Definition) -> String {
    let line = |step: &dyn turnaround_workflows::engine::AnyStep| {
        let mark = if step.is_point_of_no_return() { " (from here only forward)" } else { "" };
        format!("{}{mark}\n", step.name())
    };
    definition.steps.iter().map(|step| line(&**step)).collect()
}

fn definition_file(definition: &Definition) -> PathBuf {
    folder("definitions").join(format!("{}-v{}.txt", definition.kind, definition.version))
}

/// What waits in one of an older release is found by nobody else, and nobody would miss it (docs/errors/no-worker.md).
#[test]
fn no_queue_is_ever_given_up() {
    let kept: BTreeSet<String> = std::fs::read_to_string(folder("queues.txt")).unwrap().lines().map(str::to_owned).collect();
    let served: BTreeSet<String> = updates::registry().queues().iter().map(|queue| queue.as_str().to_owned()).collect();
    assert_eq!(kept, served, "a queue that is gone: keep it served; a new one: add it to tests/golden/queues.txt");
}

/// What a release that has `definition` owes to those before it; None if nothing.
fn complaint(definition: &Definition, kept: Option<&str>) -> Option<String> {
    let (kind, version) = (definition.kind, definition.version);
    match kept {
        None => Some(format!("the steps of `{kind}` version {version} are not kept: run this with TURNAROUND_GOLDEN=write")),
        Some(kept) if kept != steps_of(definition) => {
            Some(format!("the steps of `{kind}` are not those of its version {version} any more: raise its version"))
        }
        Some(_) => None,
    }
}

#[test]
fn a_definition_whose_steps_change_has_a_new_version() {
    let mut complaints = Vec::new();
    for definition in updates::registry().all() {
        let file = definition_file(definition);
        if writes() {
            keep(&file, &steps_of(definition));
        }
        complaints.extend(complaint(definition, std::fs::read_to_string(file).ok().as_deref()));
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn a_step_that_is_added_without_a_new_version_is_noticed() {
    let registry = updates::registry();
    let definition = registry.get(NODE_OS).unwrap();
    let kept = steps_of(definition);
    assert_eq!(complaint(definition, Some(&kept)), None);
    let without_the_last: String = kept.lines().take(definition.steps.len() - 1).map(|line| format!("{line}\n")).collect();
    assert!(complaint(definition, Some(&without_the_last)).unwrap().contains("raise its version"));
    assert!(complaint(definition, Some(&kept.replace(" (from here only forward)", ""))).is_some());
    assert!(complaint(definition, None).is_some());
}

// --- journals ---

/// A journal as some release wrote it, and what it stood for then.
struct Golden {
    name: String,
    kind: String,
    version: u32,
    status: String,
    entries: Vec<StoredEntry>,
}

fn read(path: &Path) -> Golden {
    let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    let head: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    Golden {
        name,
        kind: head["kind"].as_str().unwrap().to_owned(),
        version: head["version"].as_u64().unwrap().try_into().unwrap(),
        status: head["status"].as_str().unwrap().to_owned(),
        entries: lines.map(|line| serde_json::from_str(line).unwrap()).collect(),
    }
}

fn fold(entries: &[StoredEntry]) -> State {
    let entries: Vec<Entry> = check_chain(None, 1, entries).unwrap();
    let begun = State::begin(&entries[0].event).unwrap();
    entries[1..].iter().try_fold(begun, |state, entry| state.apply(entry.at, &entry.event)).unwrap()
}

#[tokio::test]
async fn what_earlier_releases_wrote_means_the_same_today() {
    if writes() {
        write_journals().await;
    }
    let mut seen = BTreeSet::new();
    for golden in files("journals").iter().map(|path| read(path)) {
        let state = fold(&golden.entries);
        assert_eq!((state.kind.as_str(), state.version), (golden.kind.as_str(), golden.version), "{}", golden.name);
        assert_eq!(state.status().as_str(), golden.status, "{}", golden.name);
        assert!(golden.name.starts_with(&format!("{}-v{}-", golden.kind, golden.version)), "{}", golden.name);
        for entry in &golden.entries {
            let body: Value = serde_json::from_str(&entry.body).unwrap();
            seen.insert(body["event"].as_str().unwrap().to_owned());
        }
    }
    let unseen: Vec<&&str> = EVENTS.iter().filter(|event| !seen.contains(**event)).collect();
    assert!(unseen.is_empty(), "no golden journal has {unseen:?}");
    let unlisted: Vec<&String> = seen.iter().filter(|event| !EVENTS.contains(&event.as_str())).collect();
    assert!(unlisted.is_empty(), "events that are not listed here: {unlisted:?}");
}

#[test]
fn every_kind_and_version_has_a_golden_journal() {
    let have: BTreeSet<(String, u32)> = files("journals").iter().map(|path| read(path)).map(|golden| (golden.kind, golden.version)).collect();
    for definition in updates::registry().all() {
        let wanted = (definition.kind.to_owned(), definition.version);
        assert!(have.contains(&wanted), "{wanted:?} has none: run this with TURNAROUND_GOLDEN=write");
    }
}

/// The list above is that of the program: serde names the variants that it knows when it meets one that it does not.
#[test]
fn the_list_of_events_is_complete() {
    let unknown = r#"{"seq":1,"at":0,"fence":0,"event":"no-such-event"}"#;
    let error = turnaround_workflows::engine::Entry::read(unknown).unwrap_err().to_string();
    let known: BTreeSet<&str> = error.split('`').skip(3).step_by(2).collect();
    assert_eq!(known, EVENTS.into_iter().collect(), "{error}");
}

/// One damaged byte anywhere in a kept journal is noticed; so is a line that is lost, in the middle or doubled.
#[test]
fn a_golden_journal_that_is_damaged_is_noticed() {
    for golden in files("journals").iter().map(|path| read(path)) {
        for place in 0..golden.entries.len() {
            let mut bad = golden.entries.clone();
            bad[place].body = bad[place].body.replacen("\"at\":1", "\"at\":2", 1);
            assert!(check_chain(None, 1, &bad).is_err(), "{}: entry {}", golden.name, place + 1);
            let mut doubled = golden.entries.clone();
            doubled.insert(place, golden.entries[place].clone());
            assert!(check_chain(None, 1, &doubled).is_err(), "{}: entry {} doubled", golden.name, place + 1);
            let mut lost = golden.entries.clone();
            lost.remove(place);
            assert!(place + 1 == golden.entries.len() || check_chain(None, 1, &lost).is_err(), "{}: entry {} lost", golden.name, place + 1);
        }
    }
}

// --- another release's workflows ---

#[tokio::test]
async fn a_workflow_of_an_unknown_version_or_kind_is_parked_and_nothing_is_guessed() {
    let mut strange: Vec<(String, u32)> = vec![("no-such-kind".to_owned(), 1)];
    for definition in updates::registry().all() {
        strange.extend([(definition.kind.to_owned(), definition.version + 1), (definition.kind.to_owned(), definition.version - 1)]);
    }
    for (kind, version) in strange {
        let plan = SitePlan::uniform(2, 1);
        let input = serde_json::to_value(order(&plan, 1)).unwrap();
        let mut sim = Sim::new(plan, 1);
        let id: WorkflowId = "strange".parse().unwrap();
        let new = Start {
            id: id.clone(),
            kind: kind.clone(),
            version,
            target: "gpu-01".to_owned(),
            input,
            parent: None,
            key: None,
            by: "another release".to_owned(),
            traceparent: None,
        };
        sim.store.create(start(new, sim.clock.now()).unwrap()).await.unwrap();
        let mut turns = 0;
        sim.run_until(async |_| {
            turns += 1;
            turns > 10
        })
        .await;
        let document = sim.document(&id).await;
        assert_eq!((document.status, document.seq), (Status::NeedsOperator, 1), "{kind} version {version}: {}", document.headline);
        assert!(document.due.is_some() || document.lease.is_some(), "{kind} version {version} is offered again to whoever knows it");
        assert_eq!(sim.world.events().len(), 1, "{kind} version {version}: something was done at the site");
        assert!(sim.store.holdings().await.unwrap().is_empty(), "{kind} version {version}: something is held");
    }
}

// --- how they are written ---

/// Not the half hour of a real one: the journals are kept.
const SETUP_TAKES: std::time::Duration = std::time::Duration::from_secs(40);

/// Two nodes, of which the first has instances for every way to move, and one that is a node of a Kubernetes cluster.
fn plan() -> SitePlan {
    let mut plan = SitePlan::uniform(3, 0).with_setup(&[]).setup_takes(SETUP_TAKES);
    plan.instances = vec![
        InstancePlan::new("train").on("gpu-01"),
        InstancePlan::new("spare").on("gpu-01").state(VmState::Stopped),
        InstancePlan::new("k3s-1").on("gpu-01"),
        InstancePlan::new("k3s-2").on("gpu-03"),
    ];
    plan.with_cluster(&["k3s-1", "k3s-2"])
}

async fn write(sim: &Sim, id: &WorkflowId, what: &str) {
    let Document { kind, status, seq, .. } = sim.document(id).await;
    let entries = sim.store.journal(id, 1, 500).await.unwrap();
    assert_eq!(entries.len() as u64, seq);
    let version = fold(&entries).version;
    let mut text = format!("{}\n", json!({ "kind": kind, "version": version, "status": status.as_str() }));
    for entry in entries {
        text += &(serde_json::to_string(&entry).unwrap() + "\n");
    }
    keep(&folder("journals").join(format!("{kind}-v{version}-{what}.jsonl")), &text);
}

async fn moves(sim: &Sim) -> bool {
    sim.world.events().iter().any(|event| matches!(event.what, Happened::MigrationRequested { .. }))
}

async fn asks(sim: &Sim, id: &WorkflowId) -> bool {
    sim.store.load(id).await.unwrap().is_some_and(|document| document.status == Status::NeedsOperator)
}

async fn write_journals() {
    write_rebuilds().await;
    write_renewals().await;
    write_ways_back().await;
    write_questions().await;
    write_looks().await;
    write_reports().await;
    write_taken_over().await;
}

/// A node that was left, whose share of the budget the next renewal takes over.
async fn write_taken_over() {
    let mut plan = plan();
    plan.node("gpu-01").unwrap().faults.loses_boot_override = 1;
    let mut ordered = order(&plan, 1);
    ordered.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    for (answer, ends) in [("leave", Status::Failed), ("accept", Status::Succeeded)] {
        let rollout = sim.order(&ordered).await;
        let child = sim.child(&rollout, "gpu-01").await;
        sim.run().await;
        sim.clock.advance(std::time::Duration::from_secs(60));
        sim.signal(&child, SignalKind::answer(answer.to_owned())).await;
        sim.run().await;
        assert_eq!(sim.document(&child).await.status, ends);
        if ends == Status::Succeeded {
            write(&sim, &child, "renewed-after-it-was-left").await;
        }
    }
}

/// An installer that gives up; once more, and well.
async fn write_reports() {
    let mut plan = plan().with_reports();
    plan.node("gpu-01").unwrap().faults.installer_gives_up = 1;
    let mut ordered = order(&plan, 1);
    ordered.nodes.truncate(1);
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&ordered).await;
    let child = sim.child(&rollout, "gpu-01").await;
    sim.run().await;
    sim.clock.advance(std::time::Duration::from_secs(60));
    sim.signal(&child, SignalKind::answer("netboot".to_owned())).await;
    sim.run().await;
    assert_eq!(sim.document(&child).await.status, Status::Succeeded);
    write(&sim, &child, "renewed-after-its-installer-gave-up").await;
}

/// By Ironic: once well; and once failed, asked, tried again, and well.
async fn write_rebuilds() {
    for (fails, what) in [(0, "renewed"), (1, "renewed-after-a-failure")] {
        let mut plan = plan().with_ironic(&["gpu-01"]);
        plan.node("gpu-01").unwrap().faults.rebuild_fails = fails;
        let mut ordered = order(&plan, 1);
        ordered.nodes.truncate(1);
        let mut sim = Sim::new(plan, 7);
        let rollout = sim.order(&ordered).await;
        let child = sim.child(&rollout, "gpu-01").await;
        sim.run().await;
        if asks(&sim, &child).await {
            sim.clock.advance(std::time::Duration::from_secs(60));
            sim.signal(&child, SignalKind::answer("rebuild".to_owned())).await;
            sim.run().await;
        }
        assert_eq!(sim.document(&child).await.status, Status::Succeeded);
        write(&sim, &child, what).await;
    }
}

/// Two nodes, one out at a time, so that one waits for the other; the first with a Nova that loses an answer, and paused for a minute.
async fn write_renewals() {
    let mut plan = plan();
    plan.faults.unavailable_percent = 5;
    let mut ordered = order(&plan, 2);
    ordered.nodes.truncate(2);
    ordered.rules.max_out = 1;
    let mut sim = Sim::new(plan, 3);
    let rollout = sim.order(&ordered).await;
    let mut second = ordered.clone();
    second.nodes = vec!["gpu-03".parse().unwrap()];
    let waiter = sim.order(&second).await;
    sim.run_until(async |sim| moves(sim).await).await;
    sim.signal(&rollout, SignalKind::Pause { why: "lunch".to_owned() }).await;
    // Not until all rests: whoever waits for the budget looks again and again.
    let over = sim.clock.now() + std::time::Duration::from_secs(60);
    sim.run_until(async |sim| sim.clock.now() > over).await;
    sim.signal(&rollout, SignalKind::Resume).await;
    sim.run().await;
    let waited = sim.child(&waiter, "gpu-03").await;
    write(&sim, &rollout, "two-nodes-paused-and-resumed").await;
    write(&sim, &sim.child(&rollout, "gpu-01").await, "renewed").await;
    write(&sim, &waited, "renewed-after-waiting").await;
}

async fn write_ways_back() {
    let plan = plan();
    let mut ordered = order(&plan, 1);
    ordered.nodes.truncate(1);
    let mut sim = Sim::new(plan.clone(), 7);
    let rollout = sim.order(&ordered).await;
    sim.run_until(async |sim| moves(sim).await).await;
    sim.signal(&rollout, SignalKind::Abort { why: "a tenant called".to_owned() }).await;
    sim.run().await;
    write(&sim, &rollout, "aborted").await;
    write(&sim, &sim.child(&rollout, "gpu-01").await, "aborted").await;
    // After the reset there is no way back: refused, and the node is renewed.
    let mut sim = Sim::new(plan, 7);
    let rollout = sim.order(&ordered).await;
    let child = sim.child(&rollout, "gpu-01").await;
    let reset = async |sim: &Sim| sim.world.events().iter().any(|event| matches!(event.what, Happened::ResetRequested { .. }));
    sim.run_until(reset).await;
    sim.signal(&child, SignalKind::Abort { why: "too late".to_owned() }).await;
    sim.run().await;
    write(&sim, &child, "abort-refused").await;
}

/// A stubborn instance: asked, tried again, asked, and left.
async fn write_questions() {
    for (answers, what) in [(vec!["retry", "leave"], "asked-and-left"), (vec!["unwind"], "asked-and-undone"), (vec![], "asking")] {
        let mut plan = plan();
        plan.instance("train").unwrap().fault = MoveFault::new(MoveGoesWrong::PreCheck, ALWAYS, "CPU does not match");
        let mut ordered = order(&plan, 1);
        ordered.nodes.truncate(1);
        let mut sim = Sim::new(plan, 7);
        let rollout = sim.order(&ordered).await;
        let child = sim.child(&rollout, "gpu-01").await;
        sim.run_until(async |sim| asks(sim, &child).await).await;
        for answer in answers {
            let before = sim.document(&child).await.seq;
            sim.signal(&child, SignalKind::answer(answer.to_owned())).await;
            sim.run_until(async |sim| sim.document(&child).await.seq > before && asks(sim, &child).await).await;
        }
        write(&sim, &child, what).await;
    }
}

async fn write_looks() {
    let plan = plan();
    let ordered = order(&plan, 1);
    let mut sim = Sim::new(plan.clone(), 7);
    let looks = [
        (updates::dry_run(&ordered, "tester").unwrap(), NODE_OS_DRY_RUN),
        (updates::survey(&SurveyOrder { nodes: ordered.nodes.clone() }, "tester").unwrap(), SURVEY),
    ];
    for (new, kind) in looks {
        let id = new.id.clone();
        sim.store.create(start(new, sim.clock.now()).unwrap()).await.unwrap();
        sim.run().await;
        assert_eq!(sim.document(&id).await.kind, kind);
        write(&sim, &id, "done").await;
    }
}

#[test]
fn kinds_are_what_they_were() {
    let kinds: BTreeMap<&str, u32> = updates::registry().all().map(|definition| (definition.kind, definition.version)).collect();
    for kind in [NODE_OS, NODE_OS_IRONIC, NODE_OS_ROLLOUT, NODE_OS_DRY_RUN, SURVEY] {
        assert!(kinds.contains_key(kind), "{kind} has gone: its open workflows would wait for ever");
    }
}
