//! Looks each second whether the store is the one that is remembered, and whether it can be written to.

use std::convert::Infallible;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;

use super::{BackgroundJob, JobReport};
use crate::store_watch::{StoreWatch, described};

pub struct Watch(pub Arc<StoreWatch>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WatchReport {
    /// Revision of the store. None: it could not be asked.
    pub revision: Option<u64>,
    /// What is missing from it.
    pub halted: Option<String>,
}

impl JobReport for WatchReport {
    fn summary(&self) -> String {
        match (self.revision, &self.halted) {
            (None, _) => "the store can't be asked; see the alarms".to_owned(),
            (Some(_), Some(what)) => format!("the store is HALTED: {what}"),
            (Some(revision), None) => format!("the store is at revision {revision}, and nothing is missing"),
        }
    }

    fn worked(&self) -> bool {
        false
    }
}

#[async_trait]
impl BackgroundJob for Watch {
    const NAME: &'static str = "store-watch";
    const ABOUT: &'static str = "compares the store with what is remembered of it";
    type Report = WatchReport;
    /// What goes wrong is an alarm.
    type Error = Infallible;

    async fn activate(&mut self) -> Result<WatchReport, Infallible> {
        let standing = self.0.look().await;
        Ok(WatchReport {
            revision: standing.as_ref().map(|standing| standing.revision),
            halted: standing.and_then(|standing| standing.halt).as_ref().map(described),
        })
    }
}
