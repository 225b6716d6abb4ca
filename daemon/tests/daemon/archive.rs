//! The archive: finished journals as files, whole or not at all, and provable.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use turnaround_daemon::jobs::{ArchiveFinished, BackgroundJob as _, Sweep};
use turnaround_workflows::clock::Timestamp;
use turnaround_workflows::engine::{Checkpoint, Event, Outcome, check_chain};
use turnaround_workflows::store::high_water::{HighWater, Standing};
use turnaround_workflows::store::memory::MemoryStore;
use turnaround_workflows::store::{
    Advance, Advanced, Backlog, Created, Digest, Document, Durability, Holding, NewWorkflow, Next, Query, Queue, Signalled, Status, Store,
    StoreError, StoreEvent, StoredEntry, StoredSignal, WorkflowId,
};

use super::site::{NOON, Site, Work, at, begun, ended};

const KEPT: Duration = Duration::from_secs(3_600);

async fn finished(site: &Site) -> WorkflowId {
    let id = site.rollout().await;
    let note = Event::StepCheckpointed { step: "renew-nodes".to_owned(), checkpoint: Checkpoint::of(&json!("a \"quoted\"}\n line")).unwrap(), note: "ü".to_owned() };
    site.work(&id, vec![begun("renew-nodes"), note, ended(Outcome::Succeeded, "")], Next::End { keep: KEPT }).await;
    id
}

fn job(site: &Site) -> ArchiveFinished {
    ArchiveFinished::new(Arc::clone(&site.store) as Arc<dyn Store>, site.app.archive.clone())
}

#[tokio::test]
async fn a_finished_journal_outlives_its_workflow_and_still_proves_itself() {
    let site = Site::start().await;
    let id = finished(&site).await;
    site.rollout().await;
    let mut job = job(&site);
    let report = job.activate().await.unwrap();
    assert_eq!((report.archived, report.kept), (1, 1), "the open one is not archived");
    assert_eq!(job.activate().await.unwrap().archived, 0, "once is enough");
    let (_, before) = site.get(&format!("/v1/workflows/{id}/journal")).await;
    site.clock.advance(KEPT * 2);
    site.store.sweep().await.unwrap();
    assert_eq!(site.get(&format!("/v1/workflows/{id}")).await.0, 404);
    let (status, after) = site.get(&format!("/v1/workflows/{id}/journal")).await;
    assert_eq!(status, 200);
    assert_eq!((&after["archived"], &after["broken"]), (&json!(true), &json!(null)));
    assert_eq!(after["entries"], before["entries"]);
    let (_, page) = site.get(&format!("/v1/workflows/{id}/journal?from=2&limit=2")).await;
    assert_eq!((page["entries"].as_array().unwrap().len(), &page["next"]), (2, &json!(4)));
}

#[tokio::test]
async fn another_daemon_archives_nothing_again_and_no_temporary_file_stays() {
    let site = Site::start().await;
    let id = finished(&site).await;
    assert_eq!(job(&site).activate().await.unwrap().archived, 1);
    assert_eq!(job(&site).activate().await.unwrap().archived, 0);
    let files: Vec<_> = std::fs::read_dir(site.folder.path().join("archive")).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, [std::ffi::OsString::from(format!("{id}.jsonl"))]);
    let text = std::fs::read_to_string(site.folder.path().join(format!("archive/{id}.jsonl"))).unwrap();
    assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "every line is JSON");
}

#[tokio::test]
async fn a_byte_changed_in_the_archive_is_noticed() {
    let site = Site::start().await;
    let id = finished(&site).await;
    job(&site).activate().await.unwrap();
    let path = site.folder.path().join(format!("archive/{id}.jsonl"));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("ü", "u")).unwrap();
    let archived = site.app.archive.read(&id).await.unwrap().unwrap();
    assert!(check_chain(None, 1, &archived.entries).is_err());
}

#[tokio::test]
async fn a_damaged_journal_is_archived_as_it_is_and_named() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let forged = Work { events: vec![begun("renew-nodes")], take: Vec::new(), next: Next::At(at(NOON)), forged: Some(Digest([0xff; 32])), follows: None };
    forged.on(&*site.store, &id).await;
    site.work(&id, vec![ended(Outcome::Failed, "")], Next::End { keep: KEPT }).await;
    let report = job(&site).activate().await.unwrap();
    assert_eq!(report.damaged, std::slice::from_ref(&id));
    assert!(site.folder.path().join(format!("archive/{id}.damaged.jsonl")).is_file());
    assert_eq!(job(&site).activate().await.unwrap().archived, 0);
}

#[tokio::test]
async fn a_full_disk_fails_the_pass_and_the_next_one_makes_up_for_it() {
    let site = Site::start().await;
    let id = finished(&site).await;
    // A file where the folder should be stands in for whatever keeps it from being written.
    let folder = site.folder.path().join("archive");
    std::fs::write(&folder, "").unwrap();
    let mut job = job(&site);
    let error = job.activate().await.unwrap_err();
    assert!(error.to_string().contains(id.as_str()), "{error}");
    std::fs::remove_file(&folder).unwrap();
    assert_eq!(job.activate().await.unwrap().archived, 1);
}

#[tokio::test]
async fn what_could_not_be_archived_is_not_swept() {
    let site = Site::start().await;
    let mut archiving = job(&site);
    // Whoever has ended it keeps it for less long than the daemon believes.
    let mut sweep = Sweep::after(&archiving, KEPT * 10);
    archiving.activate().await.unwrap();
    let id = finished(&site).await;
    site.clock.advance(KEPT * 2);
    let folder = site.folder.path().join("archive");
    std::fs::write(&folder, "").unwrap();
    archiving.activate().await.unwrap_err();
    let report = sweep.activate().await.unwrap();
    assert_eq!((report.dropped, report.held), (0, true));
    assert!(site.store.load(&id).await.unwrap().is_some());
    // It is made up for, and then it goes.
    std::fs::remove_file(&folder).unwrap();
    assert_eq!(archiving.activate().await.unwrap().archived, 1);
    let report = sweep.activate().await.unwrap();
    assert_eq!((report.dropped, report.held), (1, false));
    let (_, journal) = site.get(&format!("/v1/workflows/{id}/journal")).await;
    assert_eq!((&journal["archived"], &journal["broken"]), (&json!(true), &json!(null)));
}

#[tokio::test]
async fn a_daemon_that_was_away_archives_before_it_sweeps() {
    let site = Site::start().await;
    finished(&site).await;
    site.clock.advance(KEPT * 2);
    let mut archiving = job(&site);
    let mut sweep = Sweep::after(&archiving, KEPT);
    assert_eq!(sweep.activate().await.unwrap().dropped, 0, "both begin at the same moment");
    archiving.activate().await.unwrap();
    assert_eq!(sweep.activate().await.unwrap().dropped, 1);
}

#[tokio::test]
async fn what_has_ended_since_the_last_pass_waits_for_the_next() {
    let site = Site::start().await;
    let mut archiving = job(&site);
    let mut sweep = Sweep::after(&archiving, KEPT);
    archiving.activate().await.unwrap();
    finished(&site).await;
    // The whole daemon was stopped meanwhile, say.
    site.clock.advance(KEPT + Duration::from_secs(1));
    let report = sweep.activate().await.unwrap();
    assert_eq!((report.dropped, report.held), (0, true));
    archiving.activate().await.unwrap();
    assert_eq!(sweep.activate().await.unwrap().dropped, 1);
}

/// What GET says of the journal of `id` once the store has it no more.
async fn once_swept(site: &Site, id: &WorkflowId) -> Value {
    site.clock.advance(KEPT * 2);
    site.store.sweep().await.unwrap();
    let (_, journal) = site.get(&format!("/v1/workflows/{id}/journal")).await;
    assert_eq!(journal["archived"], true, "{journal}");
    journal
}

#[tokio::test]
async fn what_is_missing_from_an_archived_journal_is_noticed() {
    let site = Site::start().await;
    let id = finished(&site).await;
    job(&site).activate().await.unwrap();
    assert_eq!(once_swept(&site, &id).await["broken"], json!(null));
    let path = site.folder.path().join(format!("archive/{id}.jsonl"));
    let good = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let (header, entries) = lines.split_first().unwrap();
    let first_line_says = |key: &str, value: Value| {
        let mut said: Value = serde_json::from_str(header).unwrap();
        said[key] = value;
        format!("{said}\n{}\n", entries.join("\n")).into_bytes()
    };
    let within_a_character = good.find('ü').unwrap() + 1;
    let cases = [
        ("without its last line", lines[..lines.len() - 1].join("\n").into_bytes()),
        ("empty", Vec::new()),
        ("cut off in its first line", good.as_bytes()[..20].to_vec()),
        ("cut off within a character", good.as_bytes()[..within_a_character].to_vec()),
        ("without its first line", entries.join("\n").into_bytes()),
        ("damaged before it was archived", first_line_says("problem", json!("entries were lost"))),
        ("one entry too few", first_line_says("entries", json!(entries.len() + 1))),
        ("another newest entry", first_line_says("head", json!(Digest([7; 32])))),
    ];
    for (what, bytes) in cases {
        std::fs::write(&path, bytes).unwrap();
        let (code, journal) = site.get(&format!("/v1/workflows/{id}/journal")).await;
        assert_eq!((code, journal["broken"].is_string()), (200, true), "{what}: {journal}");
    }
    let told = site.turnaround(&["journal", id.as_str()]).await;
    assert_eq!(told.status.code(), Some(1), "{told:?}");
}

#[tokio::test]
async fn what_is_left_of_a_journal_that_has_lost_entries_is_archived() {
    for lost in [1..=1, 2..=3, 4..=4, 1..=4] {
        let site = Site::start().await;
        let id = finished(&site).await;
        let (_, whole) = site.get(&format!("/v1/workflows/{id}/journal")).await;
        let store = Arc::new(Holed { store: Arc::clone(&site.store), lost: lost.clone() });
        let report = ArchiveFinished::new(store, site.app.archive.clone()).activate().await.unwrap();
        assert_eq!(report.damaged, std::slice::from_ref(&id), "{lost:?}");
        assert!(site.folder.path().join(format!("archive/{id}.damaged.jsonl")).is_file(), "{lost:?}");
        let journal = once_swept(&site, &id).await;
        let (first, count) = (lost.start(), lost.clone().count());
        let told = journal["broken"].as_str().unwrap_or_else(|| panic!("{lost:?}: {journal}"));
        assert!(told.contains(&format!("{count} of its 4 entries can't be read any more, the first of them is entry {first}")), "{told}");
        // What is left of it is there, each in its place.
        let events = |journal: &Value| journal["entries"].as_array().unwrap().iter().map(|entry| entry["event"].clone()).collect::<Vec<_>>();
        for (place, (kept, was)) in (1..).zip(events(&journal).into_iter().zip(events(&whole))) {
            assert_eq!(kept == was, !lost.contains(&place), "entry {place}, lost {lost:?}: {kept}");
        }
        assert_eq!(journal["entries"].as_array().unwrap().len(), 4, "{lost:?}");
    }
}

#[tokio::test]
async fn a_workflow_that_is_gone_since_it_was_listed_is_not_damaged() {
    let site = Site::start().await;
    let id = finished(&site).await;
    let store = Arc::new(Holed { store: Arc::clone(&site.store), lost: 0..=u64::MAX });
    let mut archiving = ArchiveFinished::new(store, site.app.archive.clone());
    let report = archiving.activate().await.unwrap();
    assert_eq!((report.damaged, report.archived), (Vec::new(), 0));
    assert!(!site.app.archive.has(&id).await);
}

/// A store that has lost some entries of each journal: it answers as Redis does when what a commit has appended is gone. One that has lost entry 0 has lost
/// all that it lists.
struct Holed {
    store: Arc<MemoryStore>,
    lost: RangeInclusive<u64>,
}

#[async_trait]
impl Store for Holed {
    async fn journal(&self, id: &WorkflowId, from: u64, limit: u32) -> Result<Vec<StoredEntry>, StoreError> {
        let whole = self.store.journal(id, from, limit).await?;
        let until_lost = (from..).zip(whole).take_while(|(place, _)| !self.lost.contains(place));
        Ok(until_lost.map(|(_, entry)| entry).collect())
    }
    async fn load(&self, id: &WorkflowId) -> Result<Option<Document>, StoreError> {
        if self.lost.contains(&0) { Ok(None) } else { self.store.load(id).await }
    }

    // All else is as it was.
    async fn now(&self) -> Result<Timestamp, StoreError> {
        self.store.now().await
    }
    async fn create(&self, new: NewWorkflow) -> Result<Created, StoreError> {
        self.store.create(new).await
    }
    async fn advance(&self, advance: &Advance) -> Result<Advanced, StoreError> {
        self.store.advance(advance).await
    }
    async fn wait_for_bell(&self, queues: &[Queue], timeout: Duration) -> Result<Option<Queue>, StoreError> {
        self.store.wait_for_bell(queues, timeout).await
    }
    async fn ring(&self, queue: &Queue) -> Result<(), StoreError> {
        self.store.ring(queue).await
    }
    async fn signal(&self, id: &WorkflowId, signal: StoredSignal) -> Result<Signalled, StoreError> {
        self.store.signal(id, signal).await
    }
    async fn list(&self, query: &Query) -> Result<Vec<Document>, StoreError> {
        self.store.list(query).await
    }
    async fn counts(&self) -> Result<Vec<(Status, u64)>, StoreError> {
        self.store.counts().await
    }
    async fn backlog(&self, queues: &[Queue], before: Timestamp) -> Result<Backlog, StoreError> {
        self.store.backlog(queues, before).await
    }
    async fn events(&self, cursor: Option<&str>, timeout: Duration) -> Result<Vec<StoreEvent>, StoreError> {
        self.store.events(cursor, timeout).await
    }
    async fn events_end(&self) -> Result<String, StoreError> {
        self.store.events_end().await
    }
    async fn holdings(&self) -> Result<Vec<Holding>, StoreError> {
        self.store.holdings().await
    }
    async fn release_budget(&self, name: &str, member: &str) -> Result<bool, StoreError> {
        self.store.release_budget(name, member).await
    }
    async fn ledgers(&self) -> Result<BTreeSet<String>, StoreError> {
        self.store.ledgers().await
    }
    async fn last_tick(&self, schedule: &str) -> Result<Option<Timestamp>, StoreError> {
        self.store.last_tick(schedule).await
    }
    async fn judge_ticks(&self, schedule: &str, last: Option<Timestamp>, judged: Timestamp, create: Vec<NewWorkflow>) -> Result<bool, StoreError> {
        self.store.judge_ticks(schedule, last, judged, create).await
    }
    async fn sweep(&self) -> Result<u32, StoreError> {
        self.store.sweep().await
    }
    async fn durability(&self) -> Result<Durability, StoreError> {
        self.store.durability().await
    }
    async fn standing(&self) -> Result<Standing, StoreError> {
        self.store.standing().await
    }
    async fn compare(&self, remembered: &HighWater, by: &str) -> Result<Standing, StoreError> {
        self.store.compare(remembered, by).await
    }
    async fn accept(&self, remembered: &HighWater, by: &str) -> Result<Option<Standing>, StoreError> {
        self.store.accept(remembered, by).await
    }
}
