//! Writes the journals of finished workflows into the state directory, before they expire from the store.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use tracing::error;
use turnaround_workflows::engine::check_chain;
use turnaround_workflows::store::{Document, PAGE_MAX, Query, Scope, Store, StoreError, StoredEntry, WorkflowId};

use super::{BackgroundJob, JobReport};
use crate::api::problem::chain;
use crate::archive::{Archive, ArchiveError};

/// Pages of finished workflows that one pass looks at, newest first: 10,000 workflows. At the longest retention a site
/// that renews 300 nodes a day stays below.
const PAGES_MAX: u32 = 20;
/// Pages of one journal: 50,000 entries, five times the longest that a rollout of 1,000 nodes can write.
const JOURNAL_PAGES_MAX: u64 = 100;

pub struct ArchiveFinished {
    store: Arc<dyn Store>,
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
        ArchiveFinished { store, archive, known: HashSet::new() }
    }

    async fn keep(&self, document: &Document, report: &mut ArchiveReport) -> Result<(), ArchivingError> {
        let journal = self.journal(document).await?;
        // It expired between the listing and this. It was listed for days, so an earlier pass has archived it.
        if journal.is_empty() {
            return Ok(());
        }
        let problem = match check_chain(None, 1, &journal) {
            Ok(_) if journal.last().is_some_and(|newest| newest.digest == document.head) => None,
            Ok(_) => Some("its newest entry is not the one that the workflow's record names".to_owned()),
            Err(bad) => Some(chain(&bad)),
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

    async fn journal(&self, document: &Document) -> Result<Vec<StoredEntry>, StoreError> {
        let mut journal = Vec::new();
        for _ in 0..JOURNAL_PAGES_MAX {
            let page = self.store.journal(&document.id, journal.len() as u64 + 1, PAGE_MAX).await?;
            // A page may end early at what can't be read: what follows is evidence, too.
            if page.is_empty() {
                break;
            }
            journal.extend(page);
            if journal.len() as u64 >= document.seq {
                break;
            }
        }
        Ok(journal)
    }
}

#[async_trait]
impl BackgroundJob for ArchiveFinished {
    const NAME: &'static str = "archive";
    const ABOUT: &'static str = "writes journals of finished workflows to the state directory";
    type Report = ArchiveReport;
    type Error = ArchivingError;

    async fn activate(&mut self) -> Result<ArchiveReport, ArchivingError> {
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
        Ok(report)
    }
}
