//! Workflows as listings show them.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use turnaround_workflows::clock::Timestamp;
use turnaround_workflows::engine::Entry;
use turnaround_workflows::store::{Document, Store, StoreError};

use crate::why::why_not_now;
use crate::wire::WorkflowLine;

/// Reads of the store under way at once, for one request: the store sends them over one connection together.
const READS_AT_ONCE: usize = 32;

/// A line for each document, in order.
pub(super) async fn lines(store: &Arc<dyn Store>, documents: Vec<Document>, now: Timestamp) -> Result<Vec<WorkflowLine>, StoreError> {
    let asked = documents.into_iter().map(|document| line(store, document, now));
    futures::stream::iter(asked).buffered(READS_AT_ONCE).try_collect().await
}

pub(super) async fn line(store: &Arc<dyn Store>, document: Document, now: Timestamp) -> Result<WorkflowLine, StoreError> {
    let since = if document.status.is_ended() { document.updated } else { newest_entry_at(store, &document).await? };
    let why_not_now = why_not_now(&document, since, now);
    let worker = document.lease.filter(|lease| lease.until > now).map(|lease| lease.worker);
    Ok(WorkflowLine {
        id: document.id,
        kind: document.kind,
        target: document.target,
        parent: document.parent,
        status: document.status,
        headline: document.headline,
        created: document.created.into(),
        updated: document.updated.into(),
        due: document.due.map(Into::into),
        worker,
        why_not_now,
    })
}

/// When something last happened to it. Looks that see nothing new are commits, but no entries.
async fn newest_entry_at(store: &Arc<dyn Store>, document: &Document) -> Result<Timestamp, StoreError> {
    let newest = store.journal(&document.id, document.seq, 1).await?;
    let read = newest.first().and_then(|stored| Entry::read(&stored.body).ok());
    Ok(read.map_or(document.updated, |entry| entry.at))
}
