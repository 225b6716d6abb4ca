//! What a node finds when it boots from the network.

use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnaround_config::{ImageName, NodeName};

use super::PortError;

/// Names one attempt to install one node. It goes through the kernel command line into the installed
/// system, so that an installation can be told from a leftover of an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(pub String);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What is to be installed on a node at its next netboot, and by whose order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTicket {
    pub token: Token,
    pub image: ImageName,
    /// SHA-256 of the image file, lower-case hex.
    pub sha256: String,
    /// The URL below which the installer says how far it is. None: nobody listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<String>,
}

/// The PXE server's per-node boot configuration.
#[async_trait]
pub trait NetBoot: Send + Sync {
    /// The next netboot of `node` installs what `ticket` says. An earlier ticket is replaced.
    async fn stage(&self, node: &NodeName, ticket: &BootTicket) -> Result<(), PortError>;

    /// Could something be staged for `node`? An error says what keeps it from that: better known before a node has been emptied.
    async fn would_take(&self, node: &NodeName) -> Result<(), PortError>;

    /// What is staged for `node`.
    async fn staged(&self, node: &NodeName) -> Result<Option<BootTicket>, PortError>;

    /// The next netboot of `node` installs nothing and goes on to its disk. Withdrawing nothing is fine.
    async fn withdraw(&self, node: &NodeName) -> Result<(), PortError>;
}
