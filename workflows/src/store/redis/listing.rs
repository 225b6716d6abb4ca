//! Listings: pages of documents, newest first. They are read in slices, so that a long one keeps nobody waiting.

use ::redis::cmd;
use tracing::error;

use super::{Document, Malformed, PAGE_MAX, Query, RedisStore, StoreError, WorkflowId, damaged_answer, limits, reply};
use crate::store::Scope;

const OPERATION: &str = "list workflows";

/// Documents read at once.
// At 2 KB each a reply of 200 KB, and about 0.3 ms of Redis.
const SLICE: usize = 100;

/// Index entries read at once.
const INDEX_SLICE: usize = 1_000;

impl RedisStore {
    pub(super) async fn page(&self, query: &Query) -> Result<Vec<Document>, StoreError> {
        let (mut skip, limit) = (query.offset as usize, query.limit.min(PAGE_MAX) as usize);
        let mut page = Vec::new();
        let mut index = Index::new(self.indexes(query));
        // What is passed over is read only where that tells whether it counts.
        while skip > 0 && has_all_of_its_indexes(query) {
            let ids = index.next(self, skip.min(SLICE)).await?;
            if ids.is_empty() {
                return Ok(page);
            }
            skip -= ids.len();
        }
        while page.len() < limit {
            let ids = index.next(self, SLICE).await?;
            if ids.is_empty() {
                break;
            }
            let found = self.read(OPERATION, &ids).await?;
            for document in found.into_iter().filter(|document| is_wanted(query, document)) {
                if skip > 0 {
                    skip -= 1;
                } else if page.len() < limit {
                    page.push(document);
                }
            }
        }
        Ok(page)
    }

    /// The documents of those of `ids` that are there, in that order.
    pub(super) async fn read(
        &self,
        operation: &'static str,
        ids: &[WorkflowId],
    ) -> Result<Vec<Document>, StoreError> {
        let names: Vec<&str> = ids.iter().map(WorkflowId::as_str).collect();
        let answer = self.scripts.read(&self.connection, &self.keys, operation, &names).await?;
        let ::redis::Value::Array(read) = answer else {
            return Err(damaged_answer(operation, Malformed::new("an array", format!("{answer:?}"))));
        };
        let documents = ids.iter().zip(read).map(|(id, read)| {
            reply::document(id, read).map_err(|source| StoreError::Damaged {
                operation,
                what: format!("the workflow {id}"),
                source: source.into(),
            })
        });
        documents.filter_map(Result::transpose).collect()
    }

    /// The shortest indexes that have all that `query` asks for. Open and ended are apart; a parent's children
    /// are together.
    fn indexes(&self, query: &Query) -> Vec<String> {
        match (&query.parent, query.scope) {
            (Some(parent), Scope::Open | Scope::Ended | Scope::All) => vec![self.keys.children(parent)],
            (None, Scope::Open) => vec![self.keys.open.clone()],
            (None, Scope::Ended) => vec![self.keys.ended.clone()],
            (None, Scope::All) => vec![self.keys.open.clone(), self.keys.ended.clone()],
        }
    }

    /// Entries `from`.. of one index, newest first, with when they were created; and how many were read for that.
    async fn index_slice(&self, key: &str, from: usize) -> Result<(Vec<(i64, WorkflowId)>, usize), StoreError> {
        let mut command = cmd("ZREVRANGE");
        command.arg(key).arg(from).arg(from + INDEX_SLICE - 1).arg("WITHSCORES");
        let answer = self.query(OPERATION, &command).await?;
        let entries = reply::pairs(answer).map_err(|source| damaged_answer(OPERATION, source))?;
        let read = entries.len();
        let entry = |(id, created): (String, String)| {
            let created = created.parse::<f64>().map_err(|_| Malformed::new("a score", created))?;
            Ok::<_, Malformed>((created as i64, reply::id(id)?))
        };
        // One that is none must not hide the others.
        let sound = entries.into_iter().filter_map(|one| entry(one).inspect_err(|why| error!(key, %why, "an index has something that is no workflow")).ok());
        Ok((sound.collect(), read))
    }
}

/// Does it want all that is in its indexes?
fn has_all_of_its_indexes(query: &Query) -> bool {
    // A parent's children are open and ended ones.
    let in_scope = query.parent.is_none() || query.scope == Scope::All;
    in_scope && query.kind.is_none() && query.target.is_none()
}

fn is_wanted(query: &Query, document: &Document) -> bool {
    // A parent's children are open and ended ones.
    let in_scope = match query.scope {
        Scope::Open => !document.status.is_ended(),
        // (Of one that can't be read only its place in the index tells that it has ended. It is evidence, to be archived before it is swept.)
        Scope::Ended => document.status.is_ended() || query.parent.is_none() && reply::is_unreadable(document),
        Scope::All => true,
    };
    in_scope
        && query.parent.as_ref().is_none_or(|parent| document.parent.as_ref() == Some(parent))
        && query.kind.as_ref().is_none_or(|kind| document.kind == *kind)
        && query.target.as_ref().is_none_or(|target| document.target == *target)
}

/// Several indexes read as one, newest first.
struct Index {
    sources: Vec<Source>,
    looked: usize,
}

struct Source {
    key: String,
    read: usize,
    /// Newest last.
    slice: Vec<(i64, WorkflowId)>,
    exhausted: bool,
}

impl Index {
    fn new(keys: Vec<String>) -> Index {
        let source = |key| Source { key, read: 0, slice: Vec::new(), exhausted: false };
        Index { sources: keys.into_iter().map(source).collect(), looked: 0 }
    }

    /// The next ids, at most `count`; none at the end.
    async fn next(&mut self, store: &RedisStore, count: usize) -> Result<Vec<WorkflowId>, StoreError> {
        let mut ids = Vec::new();
        while ids.len() < count && self.looked < limits::LIST_LOOKED_MAX {
            for source in &mut self.sources {
                while source.slice.is_empty() && !source.exhausted {
                    let (slice, read) = store.index_slice(&source.key, source.read).await?;
                    source.slice = slice;
                    source.exhausted = read < INDEX_SLICE;
                    source.read += read;
                    source.slice.reverse();
                }
            }
            let newest = self.sources.iter_mut().max_by(|one, other| one.slice.last().cmp(&other.slice.last()));
            let Some((_, id)) = newest.and_then(|source| source.slice.pop()) else { break };
            self.looked += 1;
            ids.push(id);
        }
        Ok(ids)
    }
}
