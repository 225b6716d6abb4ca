//! What the campaign itself did, one JSON object a line, for the judge.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use turnaround_workflows::clock::{Clock as _, SystemClock};

/// A file of lines. A line that can't be written is an error of the whole campaign: nobody could judge it then.
pub(super) struct Ledger {
    file: File,
    broken: Mutex<Option<io::Error>>,
}

/// Milliseconds since 1970 by this machine, which is what every process of the campaign goes by.
pub(super) fn now_ms() -> i64 {
    SystemClock.now().millis()
}

impl Ledger {
    pub(super) fn create(path: &Path) -> io::Result<Ledger> {
        Ok(Ledger { file: File::options().create_new(true).append(true).open(path)?, broken: Mutex::default() })
    }

    /// `line` is an object; the event and the time are added to it.
    pub(super) fn tell(&self, event: &str, mut line: Value) {
        line["event"] = json!(event);
        if line.get("at").is_none() {
            line["at"] = json!(now_ms());
        }
        if let Err(error) = (&self.file).write_all(format!("{line}\n").as_bytes()) {
            self.broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }

    /// The first error of all writes.
    pub(super) fn whole(&self) -> io::Result<()> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}
