//! Journals of finished workflows as files: `archive/<id>.jsonl`, one that is there is whole.
//!
//! The first line says what it was; each further one is `{"digest":"..","entry":..}` with the entry's text exactly as it
//! was sealed, so that the chain can be checked again years later with `sha256sum` and an editor.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;
use turnaround_workflows::store::{Digest, Document, StoredEntry, WorkflowId};

use crate::wire::When;

/// Largest archived journal that is read back. 50,000 entries of 1 KiB.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
const BEFORE_DIGEST: &str = r#"{"digest":""#;
const BEFORE_ENTRY: &str = r#"","entry":"#;

#[derive(Debug, thiserror::Error)]
#[error("could not {operation} {}", path.display())]
pub struct ArchiveError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What the first line of a file says of what follows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Header {
    /// So many entries.
    pub entries: u64,
    /// Digest of the newest of them, as the workflow's record had it.
    pub head: Digest,
    /// What was wrong with them when they were archived.
    pub problem: Option<String>,
}

/// A journal as its file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archived {
    /// None: there is no first line, or it can't be read.
    pub header: Option<Header>,
    pub entries: Vec<StoredEntry>,
}

/// The folder with the archived journals.
#[derive(Debug, Clone)]
pub struct Archive {
    folder: PathBuf,
}

impl Archive {
    /// In `state_dir`; the folder is made when something is first archived.
    pub fn new(state_dir: &Path) -> Archive {
        Archive { folder: state_dir.join("archive") }
    }

    fn path(&self, id: &WorkflowId, damaged: bool) -> PathBuf {
        self.folder.join(format!("{id}{}.jsonl", if damaged { ".damaged" } else { "" }))
    }

    /// Is the journal of `id` archived, good or damaged?
    pub async fn has(&self, id: &WorkflowId) -> bool {
        let paths = [self.path(id, false), self.path(id, true)];
        blocking(move || paths.iter().any(|path| path.is_file())).await
    }

    /// On return the journal is on the disk, whole, under its name; whatever happened on the way, there was never a part
    /// of it under that name.
    pub async fn write(&self, document: &Document, journal: &[StoredEntry], problem: Option<&str>) -> Result<(), ArchiveError> {
        let header = json!({
            "archive": 1,
            "id": document.id,
            "kind": document.kind,
            "target": document.target,
            "parent": document.parent,
            "status": document.status,
            "headline": document.headline,
            "created": When(document.created),
            "ended": When(document.updated),
            "entries": journal.len(),
            "head": document.head,
            "problem": problem,
        });
        let mut text = format!("{header}\n");
        for entry in journal {
            text.push_str(&written(entry));
        }
        let path = self.path(&document.id, problem.is_some());
        let folder = self.folder.clone();
        blocking(move || put(&folder, &path, text.as_bytes())).await
    }

    /// The archived journal of `id`; None if there is none. Whether its seals hold, and whether it is whole, is for the caller to check.
    pub async fn read(&self, id: &WorkflowId) -> Result<Option<Archived>, ArchiveError> {
        let paths = [self.path(id, false), self.path(id, true)];
        blocking(move || {
            for path in paths {
                let file = match File::open(&path) {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(source) => return Err(ArchiveError { operation: "open", path, source }),
                };
                let mut bytes = Vec::new();
                let read = file.take(FILE_BYTES_MAX).read_to_end(&mut bytes);
                read.map_err(|source| ArchiveError { operation: "read", path, source })?;
                // It may be cut off within a character: that entry's seal can't hold, and the others are told.
                let text = String::from_utf8_lossy(&bytes);
                let mut lines = text.lines();
                let header = lines.next().and_then(|line| serde_json::from_str(line).ok());
                return Ok(Some(Archived { header, entries: lines.map(entry).collect() }));
            }
            Ok(None)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // Blocking work is never cancelled, so it panicked: so do we.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn written(entry: &StoredEntry) -> String {
    let digest = entry.digest;
    // A body is one line of JSON. A damaged one may be anything, and is kept as text then.
    let is_one_line = !entry.body.contains('\n') && serde_json::from_str::<serde::de::IgnoredAny>(&entry.body).is_ok();
    let body = if is_one_line { entry.body.clone() } else { json!(entry.body).to_string() };
    format!("{BEFORE_DIGEST}{digest}{BEFORE_ENTRY}{body}}}\n")
}

/// The reverse of [`written`]. What can't be read becomes an entry whose seal can't hold.
fn entry(line: &str) -> StoredEntry {
    let parts = line
        .strip_prefix(BEFORE_DIGEST)
        .and_then(|rest| rest.split_once(BEFORE_ENTRY))
        .and_then(|(digest, rest)| Some((digest, rest.strip_suffix('}')?)));
    let (digest, body) = parts.unwrap_or(("", line));
    StoredEntry { digest: digest.parse().unwrap_or(Digest::NONE), body: body.to_owned() }
}

fn put(folder: &Path, path: &Path, text: &[u8]) -> Result<(), ArchiveError> {
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| ArchiveError { operation, path, source }
    };
    fs::create_dir_all(folder).map_err(failed("make", folder))?;
    // Another daemon with the same state directory may write the same journal now; each writes its own file first.
    let fresh = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = File::create(&fresh).map_err(failed("create", &fresh))?;
    file.write_all(text).and_then(|()| file.sync_all()).map_err(failed("write", &fresh))?;
    fs::rename(&fresh, path).map_err(failed("put in place", path))?;
    // The name too must survive a power cut.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("write", folder))
}
