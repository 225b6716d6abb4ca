//! Alerts, and that nobody is to be told of them for a while.

use std::collections::BTreeSet;

use async_trait::async_trait;
use turnaround_config::Matcher;

use super::PortError;
use crate::clock::Timestamp;

/// A silence to be begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSilence {
    /// Which alerts: all of these hold. `{node}` is replaced already.
    pub matchers: Vec<Matcher>,
    pub from: Timestamp,
    /// When it ends by itself.
    pub until: Timestamp,
    /// Whose it is, for [`Silences::in_force`]. Without a colon at its end.
    pub mark: String,
    /// For people.
    pub why: String,
}

/// A silence that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    pub id: String,
    pub until: Timestamp,
}

/// Alertmanager, or Grafana's own: `/api/v2/silences`, `/api/v2/alerts`.
#[async_trait]
pub trait Silences: Send + Sync {
    /// The silences with this mark that have not ended.
    async fn in_force(&self, mark: &str) -> Result<Vec<Silence>, PortError>;

    /// Begins one. **Not idempotent**: where the answer was lost, look at [`Silences::in_force`]. `Refused` where the site has nothing that alerts.
    async fn begin(&self, silence: &NewSilence) -> Result<(), PortError>;

    /// Ends one at once. One that has ended may be refused.
    async fn end(&self, id: &str) -> Result<(), PortError>;

    /// The alerts that fire just now for which all of these hold, silenced or not, with all their labels: `NodeDown{instance="gpu-03:9100", severity="critical"}`.
    async fn firing(&self, matchers: &[Matcher]) -> Result<BTreeSet<String>, PortError>;
}
