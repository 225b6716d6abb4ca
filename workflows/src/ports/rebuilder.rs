//! A service that installs nodes in our place, at sites that have one.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use turnaround_config::NodeName;

use super::{PortError, Token};

/// Begins the reason that our own protection is given, by which it is told from others'.
pub const PROTECTED_BY_US: &str = "turnaround:";

/// What a node is to be rebuilt with, and by whose order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebuildOrder {
    /// The node's new system carries it in its installation mark ([`super::Installed`]).
    pub token: Token,
    /// The node that was looked at: [`RebuildRecord::id`]. A name may mean another one by now.
    pub id: String,
    /// The URL where the service has the image from.
    pub source: String,
    /// SHA-256 of that file, lower-case hex. The service checks it before it writes; the mark carries it, too.
    pub sha256: String,
}

/// How a node stands with the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RebuildState {
    /// A system is installed, and nothing is under way. Only from here, and from `Failed`, a node can be rebuilt.
    Installed,
    /// Something is being done to it.
    Working,
    /// The last installation failed.
    Failed,
    /// Anything else: it is not in use, it is being taken in or given back.
    Other,
}

/// What the service has on record of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RebuildRecord {
    /// The service's own id of the node, which never means another one.
    pub id: String,
    pub state: RebuildState,
    /// The state in the service's own word.
    pub called: String,
    /// Who works on it just now, as the service names it: nothing can be asked for meanwhile.
    pub locked_by: Option<String>,
    /// It refuses a rebuild because of [`Rebuilder::protect`].
    pub protected_by_us: bool,
    /// What speaks against a rebuild at any time, one line each: in maintenance, protected by others, somebody's own machine, another machine.
    pub objections: Vec<String>,
    /// The token of the order that was written down last ([`Rebuilder::order`]).
    pub order: Option<Token>,
    /// Another one after every change of `called`. To be compared, and nothing else.
    pub changed: Option<String>,
    /// What went wrong last, in the service's own words.
    pub last_error: Option<String>,
}

/// A rebuild is accepted at most once: while one goes on, another one is refused. **But one that has ended can be asked for again**, so
/// that whoever does not know whether he was heard looks at the record, and does not ask again.
#[async_trait]
pub trait Rebuilder: Send + Sync {
    /// What is on record of `node`. `Refused` where it is not a node that is renewed so.
    async fn record(&self, node: &NodeName) -> Result<RebuildRecord, PortError>;

    /// Writes `order` down on the record of `node`, in place of an earlier one: from now on the record carries its token, and a rebuild writes
    /// its image; our own protection of it is taken away. Nothing is done to the node. `Unavailable` while somebody works on it.
    async fn order(&self, node: &NodeName, order: &RebuildOrder) -> Result<(), PortError>;

    /// Begins to rebuild `node` with what was ordered. On return it is under way (`Working`), or over already. `Unavailable` while somebody works on
    /// it, `Refused` in the service's own words. **Overwrites its system disk.**
    async fn rebuild(&self, node: &NodeName, order: &RebuildOrder) -> Result<(), PortError>;

    /// Has the service refuse every rebuild of the node with this id until the next order: also one that was asked for long ago and comes only now.
    /// A node that others have protected stays theirs. `Unavailable` while somebody works on it.
    async fn protect(&self, node: &NodeName, id: &str) -> Result<(), PortError>;
}
