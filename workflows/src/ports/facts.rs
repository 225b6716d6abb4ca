//! What a node says of itself.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::{PortError, Token};

/// The mark that the installer leaves in `/etc/turnaround/installed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// From the installer's kernel command line.
    pub token: Token,
    /// SHA-256 of the image that was written, as the installer computed it.
    pub sha256: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// `/proc/sys/kernel/random/boot_id`: another one after every boot.
    pub boot_id: String,
    pub hostname: String,
    /// `VERSION_ID` of `/etc/os-release`.
    pub os_version_id: String,
    /// `uname -r`.
    pub kernel: String,
    /// None on a node that was never installed by us.
    pub installed: Option<Installed>,
}

/// How a command on a node ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandEnd {
    pub code: i32,
    /// What it wrote to its standard output, without blanks at both ends.
    pub output: String,
}

#[async_trait]
pub trait NodeFacts: Send + Sync {
    /// Asks the node itself. `Unavailable` while it does not answer, which is normal while it boots.
    async fn facts(&self, node: &NodeName) -> Result<Facts, PortError>;

    /// Runs a command that only looks, in the node's login shell. `Unavailable` while the node does not answer, or not in `time_limit`;
    /// `Refused` where it says more than can be kept.
    async fn run(&self, node: &NodeName, command: &str, time_limit: Duration) -> Result<CommandEnd, PortError>;
}
