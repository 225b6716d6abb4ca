//! What this process did, for whoever judges it from outside.
//!
//! A checker that shares no code with the product can only judge what it is told, and a process that was killed tells nothing
//! any more. So, where it is asked for, each process writes what it is about to do, and what came of it, to a file of its own:
//! one JSON object a line, one write for each, which outlives the process.
//!
//! Nothing is written, and nothing is wrapped, unless the environment names a folder in [`FOLDER`].

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use serde_json::{Value, json};

use crate::clock::{Clock as _, SystemClock};
use crate::ports::Ports;
use crate::store::{Fence, Store, WorkflowId};

mod ports;
mod store;

/// The environment variable that asks for a history: a folder, in which each process keeps `<program>-<pid>.jsonl`.
pub const FOLDER: &str = "TURNAROUND_HISTORY";

tokio::task_local! {
    /// The workflow that the current task brings on, and under which lease.
    static IN_HAND: (WorkflowId, Fence);
}

/// The file, if one was asked for. It is opened once: a process has one history.
fn file() -> Option<&'static File> {
    static FILE: OnceLock<Option<File>> = OnceLock::new();
    FILE.get_or_init(|| {
        let folder = PathBuf::from(std::env::var_os(FOLDER)?);
        let path = folder.join(format!("{}-{}.jsonl", program(), std::process::id()));
        match File::options().create(true).append(true).open(&path) {
            Ok(file) => Some(file),
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "no history is written: its file can't be opened");
                None
            }
        }
    })
    .as_ref()
}

fn program() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    path.file_name().map_or_else(|| "unknown".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Adds a line, if a history is asked for. `what` is an object; the time (milliseconds since 1970, by this machine) and the
/// process are added to it.
pub fn tell(event: &str, what: impl FnOnce() -> Value) {
    let Some(mut file) = file() else { return };
    let mut line = what();
    line["event"] = json!(event);
    line["at"] = json!(SystemClock.now().millis());
    line["pid"] = json!(std::process::id());
    if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
        tracing::error!(%error, "a line of the history could not be written");
    }
}

/// `store`, which tells what it is asked and what it answers, if a history is asked for.
pub fn of_store(store: Arc<dyn Store>) -> Arc<dyn Store> {
    if file().is_some() { Arc::new(store::Told(store)) } else { store }
}

/// `ports`, which tell what is done to the world, if a history is asked for.
pub fn of_ports(inner: Ports) -> Ports {
    if file().is_none() {
        return inner;
    }
    let all = Arc::new(ports::Told(inner));
    Ports { compute: all.clone(), instances: all.clone(), bmc: all.clone(), netboot: all.clone(), rebuilder: all.clone(), facts: all.clone(), setup: all.clone(), silences: all.clone(), cluster: all.clone(), canaries: all }
}

/// What `work` does to the world is told with the workflow and the lease for which it is done.
pub async fn in_hand<T>(id: WorkflowId, fence: Fence, work: impl Future<Output = T>) -> T {
    IN_HAND.scope((id, fence), work).await
}

/// `line` with the workflow and the lease in hand.
fn for_whom(mut line: Value) -> Value {
    let known = IN_HAND.try_with(|(id, fence)| (id.to_string(), fence.0));
    if let Ok((id, fence)) = known {
        line["workflow"] = json!(id);
        line["fence"] = json!(fence);
    }
    line
}
