//! The site's own setup script (Midokura: `platform-setup.sh`), run to its end beside the workers.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::PortError;

/// One run of the script. Its name is what keeps it from being started twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptRun {
    /// Letters, digits, `-` and `.`; unique for ever.
    pub name: String,
    pub arguments: Vec<String>,
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScriptState {
    /// It was never started, or is about to begin.
    NotStarted,
    /// It runs, or what it started does.
    Running {
        /// The last line that it has written; empty before the first.
        last_line: String,
    },
    Ended(ScriptEnd),
    /// It does not run any more and has left no exit code: it was killed, or its host went down.
    Lost {
        last_lines: Vec<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptEnd {
    /// As the shell tells it: 128 and the signal's number where a signal ended it.
    pub code: i32,
    /// Every line of every `PLAY RECAP` of Ansible's, wherever it wrote it; empty if it wrote none. Of very many, those of hosts that failed come before
    /// others: a host that is not in here is not a good one.
    pub recap: Vec<HostRecap>,
    /// The last lines that it has written, oldest first.
    pub last_lines: Vec<String>,
}

/// A line of Ansible's `PLAY RECAP`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRecap {
    pub host: String,
    pub ok: u32,
    pub changed: u32,
    pub unreachable: u32,
    pub failed: u32,
}

/// The script of one site. It works on the whole environment, so one run at a time goes on. A run is nobody's child: it goes on when the worker that started it ends, and is looked at by the next one.
#[async_trait]
pub trait SetupScript: Send + Sync {
    /// The host on which runs are started, and can be looked at.
    fn place(&self) -> String;

    /// Starts `run`. **Idempotent by its name**: of several calls only the first one starts anything, also if they come from several
    /// workers at the same moment. While another run goes on it starts nothing: then [`SetupScript::look`] still says `NotStarted`, and it
    /// is to be asked for again. `Refused` where the site has no script.
    async fn start(&self, run: &ScriptRun) -> Result<(), PortError>;

    /// How far the run of this name is.
    async fn look(&self, name: &str) -> Result<ScriptState, PortError>;
}
