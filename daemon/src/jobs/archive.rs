//! Writes the journals of finished workflows into the state directory, before they expire from the store.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use tokio::sync::Mutex;
use tracing::error;
use turnaround_workflows::clock::Timestamp;
use turnaround_workflows::engine::check_chain;
use turnaround_workflows::store::{Digest, Document, PAGE_MAX, Query, Scope, Store, StoreError, StoredEntry, WorkflowId};

use super::{BackgroundJob, JobReport};
use crate::api::problem::chain;
use crate::archive::{Archive, ArchiveError};

/// Pages of finished workflows that one pass looks at, newest first: 100,000 workflows, which a site that renews 300 nodes a day has after a year.
/// What is older than so many was archived when it was not, unless no daemon ran for as long.
const PAGES_MAX: u32 = 200;
/// Entries of one journal, five times the most that a rollout of 1,000 nodes can write; and calls for it, if all of them are lost: about a minute.
const JOURNAL_ENTRIES_MAX: u64 = 50_000;

/// Until when all that has ended is archived, by the store's clock. None: that is not known, because no pass has gone through yet, or the last one failed.
///
/// Whoever archives or sweeps has it locked meanwhile: what is removed while pages are listed moves others from a page that is still to come to one that
/// was read.
pub(super) type ArchivedUntil = Arc<Mutex<Option<Timestamp>>>;

pub struct ArchiveFinished {
    pub(super) store: Arc<dyn Store>,
    pub(super) archived_until: ArchivedUntil,
    archive: Archive,
    /// Found archived in an earlier pass, and still listed.
    known: HashSet<WorkflowId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArchiveReport {
    /// Written in this pass.
    pub archived: u32,
    /// Finished workflows that are still in the store, archived all.
    pub kept: u32,
    /// Journals whose seals do not hold. They are archived as they are, under a name that says so.
    pub damaged: Vec<WorkflowId>,
}

impl JobReport for ArchiveReport {
    fn summary(&self) -> String {
        let damaged = if self.damaged.is_empty() { String::new() } else { format!(", {} DAMAGED", self.damaged.len()) };
        format!("archived {} journals, {} finished workflows are still in the store{damaged}", self.archived, self.kept)
    }

    fn worked(&self) -> bool {
        self.archived > 0
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ArchivingError {
    #[error("could not read what is to be archived")]
    Store(#[from] StoreError),
    #[error("could not archive {id}")]
    Write {
        id: WorkflowId,
        #[source]
        source: ArchiveError,
    },
}

impl ArchiveFinished {
    pub fn new(store: Arc<dyn Store>, archive: Archive) -> ArchiveFinished {
        ArchiveFinished { store, archived_until: Arc::default(), archive, known: HashSet::new() }
    }

    async fn keep(&self, document: &Document, report: &mut ArchiveReport) -> Result<(), ArchivingError> {
        // Another daemon has swept it since it was listed, and sweeps what it has archived itself; or a person has removed it. We do not: we sweep after a pass.
        let Some(journal) = self.find(document).await? else { return Ok(()) };
        let lost: Vec<u64> = (1..).zip(&journal).filter(|(_, entry)| entry.digest == Digest::NONE).map(|(place, _)| place).collect();
        let problem = match (lost.first(), check_chain(None, 1, &journal)) {
            (Some(first), _) => Some(format!("{} of its {} entries can't be read any more, the first of them is entry {first}", lost.len(), document.seq)),
            (None, Ok(_)) if journal.last().is_some_and(|newest| newest.digest == document.head) => None,
            (None, Ok(_)) => Some("its newest entry is not the one that the workflow's record names".to_owned()),
            (None, Err(bad)) => Some(chain(&bad)),
        };
        if let Some(problem) = &problem {
            error!(workflow = %document.id, problem, "a finished workflow's journal is damaged; it is archived as it is");
            report.damaged.push(document.id.clone());
        }
        let written = self.archive.write(document, &journal, problem.as_deref()).await;
        written.map_err(|source| ArchivingError::Write { id: document.id.clone(), source })?;
        report.archived += 1;
        Ok(())
    }

    /// All that the store has of the journal, with an entry that nothing seals in each place where it has none. None: the workflow itself is gone.
    async fn find(&self, document: &Document) -> Result<Option<Vec<StoredEntry>>, StoreError> {
        let (mut journal, mut is_there) = (Vec::new(), false);
        loop {
            let place = journal.len() as u64 + 1;
            let page = self.store.journal(&document.id, place, PAGE_MAX).await?;
            if !page.is_empty() {
                journal.extend(page);
                // What says how many there are may be what is damaged: beyond that it goes on to the end of what is there.
                if journal.len() as u64 == document.seq || journal.len() as u64 >= JOURNAL_ENTRIES_MAX {
                    break;
                }
                continue;
            }
            if place > document.seq.min(JOURNAL_ENTRIES_MAX) {
                break;
            }
            is_there = is_there || self.store.load(&document.id).await?.is_some();
            if !is_there {
                return Ok(None);
            }
            // A page ends at what can't be read, and what is lost may be a whole commit: what follows is evidence, too, and begins at one of the next places.
            journal.push(StoredEntry { digest: Digest::NONE, body: format!("entry {place} is lost") });
        }
        Ok(Some(journal))
    }
}

#[async_trait]
impl BackgroundJob for ArchiveFinished {
    const NAME: &'static str = "archive";
    const ABOUT: &'static str = "writes journals of finished workflows to the state directory";
    type Report = ArchiveReport;
    type Error = ArchivingError;

    async fn activate(&mut self) -> Result<ArchiveReport, ArchivingError> {
        let archived_until = Arc::clone(&self.archived_until);
        let mut archived_until = archived_until.lock().await;
        // So it stays if this pass fails, or is cut off.
        *archived_until = None;
        // What ends from here on may be missing from the listing.
        let began = self.store.now().await?;
        let mut report = ArchiveReport { archived: 0, kept: 0, damaged: Vec::new() };
        let mut listed = HashSet::new();
        for page in 0..PAGES_MAX {
            let query = Query { scope: Scope::Ended, offset: page * PAGE_MAX, limit: PAGE_MAX, ..Query::default() };
            let documents = self.store.list(&query).await?;
            let full = documents.len() >= PAGE_MAX as usize;
            for document in documents {
                if !self.known.contains(&document.id) && !self.archive.has(&document.id).await {
                    self.keep(&document, &mut report).await?;
                }
                report.kept += 1;
                listed.insert(document.id);
            }
            if !full {
                break;
            }
        }
        self.known = listed;
        *archived_until = Some(began);
        Ok(report)
    }
}
