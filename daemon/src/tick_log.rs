//! What was decided about ticks, so that a run that did not happen can still be found out weeks later.
//!
//! The ledger in the store has only how far ticks were judged. The decisions are lines of `ticks.jsonl` in the state
//! directory; the newest of each schedule are in memory too, for the API.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::warn;
use turnaround_config::ScheduleName;

use crate::wire::TickView;

/// Decisions remembered for each schedule, for people to look at.
const RECENT_MAX: usize = 20;
/// Read back at the start: some 2,000 decisions.
const READ_BYTES_MAX: u64 = 256 * 1024;
/// A file that is larger takes the place of its predecessor, `ticks.jsonl.1`. An hourly schedule fills it in a year.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Debug)]
pub struct TickLog {
    path: PathBuf,
    recent: Mutex<BTreeMap<ScheduleName, VecDeque<TickView>>>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    schedule: ScheduleName,
    #[serde(flatten)]
    decided: TickView,
}

impl TickLog {
    /// The log in `state_dir`, with what is there already. A file that can't be read is no reason not to start.
    pub fn open(state_dir: &Path) -> TickLog {
        let path = state_dir.join("ticks.jsonl");
        let log = TickLog { path, recent: Mutex::default() };
        match tail(&log.path) {
            Ok(text) => {
                for line in text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok()) {
                    log.remember(&line.schedule, line.decided);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => warn!(path = %log.path.display(), %error, "earlier decisions about ticks can't be read"),
        }
        log
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ScheduleName, VecDeque<TickView>>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, schedule: &ScheduleName, decided: TickView) {
        let mut recent = self.lock();
        let ticks = recent.entry(schedule.clone()).or_default();
        ticks.push_front(decided);
        ticks.truncate(RECENT_MAX);
    }

    /// Newest first.
    pub fn recent(&self, schedule: &ScheduleName) -> Vec<TickView> {
        self.lock().get(schedule).map(|ticks| ticks.iter().cloned().collect()).unwrap_or_default()
    }

    /// Remembers it, and writes it down. A full disk costs only the line: the tick was judged already.
    pub async fn note(self: &Arc<Self>, schedule: &ScheduleName, decided: TickView) {
        self.remember(schedule, decided.clone());
        let line = serde_json::to_string(&Line { schedule: schedule.clone(), decided });
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || append(&path, &format!("{}\n", line?))).await;
        if let Ok(Err(error)) = written {
            warn!(path = %self.path.display(), %error, "the decision about a tick could not be written down");
        }
    }
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|file| file.len() > FILE_BYTES_MAX) {
        fs::rename(path, path.with_extension("jsonl.1"))?;
    }
    // One write of one line: another daemon may append to the same file.
    let mut file = File::options().append(true).create(true).open(path)?;
    file.write_all(line.as_bytes())?;
    file.sync_data()
}

/// The end of the file, at most [`READ_BYTES_MAX`] of it; its first line may be a torn one.
fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(READ_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
