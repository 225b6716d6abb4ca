//! GET /v1/workflows/{id}/journal: what happened, checked against its seals while it is read.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use turnaround_workflows::engine::check_chain;
use turnaround_workflows::store::{Digest, PAGE_MAX, StoredEntry, WorkflowId};

use super::app::App;
use super::extract::{Path, Query};
use super::problem::{Problem, chain};
use crate::archive::Archived;
use crate::wire::{JournalLine, JournalView};

/// Entries of a page for which nobody said how many.
const ENTRIES_BY_DEFAULT: u32 = 200;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    /// Place of the first entry, from 1.
    from: Option<u64>,
    limit: Option<u32>,
}

pub(super) async fn journal(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Query(asked): Query<Parameters>,
) -> Result<Json<JournalView>, Problem> {
    let limit = asked.limit.unwrap_or(ENTRIES_BY_DEFAULT);
    let from = asked.from.unwrap_or(1);
    if limit == 0 || limit > PAGE_MAX || from == 0 {
        return Err(Problem::bad_request(format!("`limit` is 1 to {PAGE_MAX}, and `from` counts from 1")));
    }
    let id: WorkflowId = id.parse()?;
    let Some(document) = app.store.load(&id).await? else { return archived(&app, id, from, limit).await };
    let mut page = app.store.journal(&id, from.saturating_sub(1).max(1), limit.min(PAGE_MAX - 1) + u32::from(from > 1)).await?;
    let before = if from > 1 && !page.is_empty() { Some(page.remove(0).digest) } else { None };
    let read = page.len() as u64;
    let (entries, mut broken) = check(before.as_ref(), from, &page);
    let next = (from + read <= document.seq).then_some(from + read);
    if broken.is_none() && read == 0 && from <= document.seq {
        broken = Some(format!("it should have {} entries, but ends before entry {from}: entries are lost", document.seq));
    }
    // The newest entry is also sealed into the document. It may have moved on since the document was read.
    if broken.is_none() && from + read == document.seq + 1 && page.last().is_some_and(|newest| newest.digest != document.head) {
        broken = Some(format!("entry {} is not the one that the workflow's record names as its newest", document.seq));
    }
    let next = if broken.is_some() && read == 0 { None } else { next };
    Ok(Json(JournalView { id, entries, next, broken, archived: false }))
}

async fn archived(app: &App, id: WorkflowId, from: u64, limit: u32) -> Result<Json<JournalView>, Problem> {
    let kept = app.archive.read(&id).await.map_err(|error| Problem::internal(&error))?;
    let kept = kept.ok_or_else(|| Problem::no_workflow(id.as_str()))?;
    let (mut entries, unsealed) = check(None, 1, &kept.entries);
    let broken = broken(&kept, unsealed);
    let total = entries.len() as u64;
    entries.retain(|entry| entry.seq >= from && entry.seq < from.saturating_add(u64::from(limit)));
    let next = from.saturating_add(u64::from(limit));
    Ok(Json(JournalView { id, entries, next: (next <= total).then_some(next), broken, archived: true }))
}

/// What is wrong with an archived journal. `unsealed`: what its seals say of that, and they can't say whether its end is there.
fn broken(kept: &Archived, unsealed: Option<String>) -> Option<String> {
    let Some(header) = &kept.header else {
        return unsealed.or_else(|| Some("the first line of its file, which says how much it should have, can't be read".to_owned()));
    };
    let (has, should) = (kept.entries.len() as u64, header.entries);
    let is_newest_there = kept.entries.last().is_some_and(|newest| newest.digest == header.head);
    let damaged = header.problem.as_ref().map(|problem| format!("it was damaged when it was archived: {problem}"));
    damaged
        .or(unsealed)
        .or_else(|| (has != should).then(|| format!("its file should have {should} entries, but has {has}: entries are lost, or were added")))
        .or_else(|| (!is_newest_there).then(|| format!("entry {has} is not the one that the first line of its file names as its newest")))
}

/// Every entry, those up to the first bad one as sealed, and what is wrong with that one.
fn check(before: Option<&Digest>, from: u64, page: &[StoredEntry]) -> (Vec<JournalLine>, Option<String>) {
    let mut before = before;
    let mut broken = None;
    let mut lines = Vec::with_capacity(page.len());
    for (seq, stored) in (from..).zip(page) {
        let read = check_chain(before, seq, std::slice::from_ref(stored));
        let sealed = broken.is_none() && read.is_ok();
        if let Err(bad) = &read
            && broken.is_none()
        {
            broken = Some(chain(bad));
        }
        lines.push(line(seq, stored, sealed));
        before = Some(&stored.digest);
    }
    (lines, broken)
}

fn line(seq: u64, stored: &StoredEntry, sealed: bool) -> JournalLine {
    let raw = || serde_json::Value::String(stored.body.clone());
    match turnaround_workflows::engine::Entry::read(&stored.body) {
        Ok(entry) => JournalLine {
            seq,
            at: Some(entry.at.into()),
            fence: Some(entry.fence.0),
            text: entry.event.describe(),
            sealed,
            event: serde_json::to_value(&entry.event).unwrap_or_else(|_| raw()),
        },
        Err(error) => {
            JournalLine { seq, at: None, fence: None, text: format!("can't be read: {error}"), sealed, event: raw() }
        }
    }
}
