//! The archive: finished journals as files, whole or not at all, and provable.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use turnaround_daemon::jobs::{ArchiveFinished, BackgroundJob as _};
use turnaround_workflows::engine::{Checkpoint, Event, Outcome, check_chain};
use turnaround_workflows::store::{Digest, Next, Store};

use super::site::{NOON, Site, Work, at, begun, ended};

const KEPT: Duration = Duration::from_secs(3_600);

async fn finished(site: &Site) -> turnaround_workflows::store::WorkflowId {
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
    let entries = site.app.archive.read(&id).await.unwrap().unwrap();
    assert!(check_chain(None, 1, &entries).is_err());
}

#[tokio::test]
async fn a_damaged_journal_is_archived_as_it_is_and_named() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let forged = Work { events: vec![begun("renew-nodes")], take: Vec::new(), next: Next::At(at(NOON)), forged: Some(Digest([0xff; 32])) };
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
