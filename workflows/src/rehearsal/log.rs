//! The simulated site's own account of what happened there, in its own single order.
//!
//! It is the ground truth for a checker that shares no code with the product, so every line has what
//! is needed to judge it.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::ports::{BootDevice, MigrationKind, Move};

/// Events kept in memory; the file has all of them.
// A day at a site of a thousand nodes has about 100,000; ten times that is 300 MB at most.
const EVENTS_KEPT_MAX: usize = 1_000_000;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorldEvent {
    /// Counted from 1, without gaps.
    pub seq: u64,
    pub at: Timestamp,
    #[serde(flatten)]
    pub what: Happened,
}

/// A node as it was at the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAtStart {
    pub node: String,
    pub enabled: bool,
    pub disabled_reason: Option<String>,
    pub os_version_id: String,
    pub instances: Vec<String>,
}

/// Who did it: those who are under test, or somebody else at the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// It came over one of the site's interfaces.
    Caller,
    /// A tenant, another operator, the hardware.
    Other,
}

/// A migration that is not over, of any kind and whoever has asked for it, with one of its ends at the node in question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnderWay {
    pub instance: String,
    pub kind: MigrationKind,
    /// Since when that end of it is there: when it was asked for, or its new host was chosen.
    pub since: Timestamp,
}

/// Nodes are called by our names throughout, also where Nova has others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Happened {
    SiteStarted {
        seed: u64,
        nodes: Vec<NodeAtStart>,
    },

    InstanceCreated {
        instance: String,
        name: String,
        node: String,
    },
    InstanceDeleted {
        instance: String,
        name: String,
        node: Option<String>,
        by: By,
    },
    /// Harm: they were on a node that went down, or whose disk was overwritten.
    InstancesLost {
        node: String,
        instances: Vec<String>,
        why: String,
    },

    ServiceDisabled {
        node: String,
        reason: String,
        was_enabled: bool,
        by: By,
    },
    ServiceEnabled {
        node: String,
        was_enabled: bool,
        by: By,
    },
    ServiceDown {
        node: String,
    },
    ServiceUp {
        node: String,
    },

    /// Somebody asked for a move. `refused` says why Nova did not accept it.
    MigrationRequested {
        instance: String,
        node: Option<String>,
        how: Move,
        /// The node that was named as its target.
        to: Option<String>,
        request: String,
        under_way: bool,
        refused: Option<String>,
    },
    InstanceMoved {
        instance: String,
        from: String,
        to: String,
    },
    MigrationEnded {
        instance: String,
        request: String,
        from: String,
        to: Option<String>,
        status: String,
        reason: Option<String>,
    },
    /// Somebody wanted a live migration to be stopped.
    StopRequested {
        instance: String,
        refused: Option<String>,
    },
    ConfirmRequested {
        instance: String,
        of: Option<MigrationKind>,
        refused: Option<String>,
    },

    /// Alerts about `node` are not told of, until then at most.
    SilenceBegun {
        silence: String,
        node: Option<String>,
        mark: String,
        until: Timestamp,
    },
    SilenceEnded {
        silence: String,
    },

    /// A node of the Kubernetes cluster as it is at the beginning.
    ClusterNodeStarted {
        cluster_node: String,
        instance: String,
        cordoned: bool,
    },
    /// `mark` says who has cordoned it.
    NodeCordoned {
        cluster_node: String,
        mark: Option<String>,
        by: By,
    },
    NodeUncordoned {
        cluster_node: String,
        by: By,
    },
    /// Pods that a drain has to get off their node.
    PodStarted {
        pod: String,
        cluster_node: String,
    },
    PodEvicted {
        pod: String,
    },
    PodEnded {
        pod: String,
        cluster_node: String,
    },

    TicketStaged {
        node: String,
        token: String,
        image: String,
        sha256: String,
    },
    TicketWithdrawn {
        node: String,
        token: Option<String>,
    },

    BootOverride {
        node: String,
        device: BootDevice,
        taken: bool,
    },
    /// `token` is that of the ticket which is staged at this moment; `obeyed` is false where the BMC
    /// said yes and did nothing.
    ResetRequested {
        node: String,
        token: Option<String>,
        instances: Vec<String>,
        touching: Vec<UnderWay>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unknown_guest: Option<String>,
        enabled: bool,
        obeyed: bool,
    },
    /// Somebody asked Ironic to rebuild it. `refused` says why it did not.
    RebuildRequested {
        node: String,
        token: String,
        instances: Vec<String>,
        touching: Vec<UnderWay>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unknown_guest: Option<String>,
        enabled: bool,
        refused: Option<String>,
    },
    PowerLost {
        node: String,
        asked: bool,
    },
    PowerBack {
        node: String,
    },
    NodeCrashed {
        node: String,
    },
    Netbooted {
        node: String,
        token: Option<String>,
    },
    DiskBooted {
        node: String,
    },
    /// An installer said something; `lost` if nobody heard it.
    InstallerReported {
        node: String,
        token: String,
        word: String,
        lost: bool,
    },
    ImageWritten {
        node: String,
        token: String,
        image: String,
        sha256: String,
        instances: Vec<String>,
        touching: Vec<UnderWay>,
        enabled: bool,
    },
    CameUp {
        node: String,
        boot_id: String,
        os_version_id: String,
        kernel: String,
        token: Option<String>,
    },
    /// A run of the setup script.
    ScriptStarted {
        run: String,
        node: Option<String>,
    },
    /// `code` is None where it was killed.
    ScriptEnded {
        run: String,
        node: Option<String>,
        code: Option<i32>,
        did: bool,
    },
    /// The effect took place; whoever asked was not told.
    AnswerLost {
        call: String,
    },
}

/// Events in memory, and in a file where one was given.
#[derive(Debug, Default)]
pub(super) struct Log {
    kept: Vec<WorldEvent>,
    seq: u64,
    file: Option<File>,
}

impl Log {
    pub(super) fn record(&mut self, at: Timestamp, what: Happened) {
        self.seq += 1;
        let event = WorldEvent { seq: self.seq, at, what };
        if let Some(file) = &mut self.file
            && let Err(error) = write_line(file, &event)
        {
            tracing::error!(%error, "the simulated site could not write its log; it goes on without");
            self.file = None;
        }
        if self.kept.len() < EVENTS_KEPT_MAX {
            self.kept.push(event);
        }
    }

    /// What happened so far, and everything from now on, goes to a new file as well.
    pub(super) fn also_to(&mut self, path: &Path) -> io::Result<()> {
        let mut file = File::options().create(true).write(true).truncate(true).open(path)?;
        for event in &self.kept {
            write_line(&mut file, event)?;
        }
        self.file = Some(file);
        Ok(())
    }

    pub(super) fn kept(&self) -> &[WorldEvent] {
        &self.kept
    }
}

/// One write for each event, so that a reader never sees half a line.
fn write_line(file: &mut File, event: &WorldEvent) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    file.write_all(&line)
}
