//! Background jobs: they take no input, do one pass, and report in a type. The timer, a wake-up and a restart all run
//! the same code, so a job that was interrupted simply runs again.

mod archive;
mod board;
mod driver;
mod overdue;
mod sweep;
mod watch;

use std::error::Error;

use async_trait::async_trait;
use serde::Serialize;

pub use archive::{ArchiveFinished, ArchiveReport};
pub use board::JobBoard;
pub use driver::{Driver, JobDefinition};
pub use overdue::{Overdue, OverdueReport};
pub use sweep::{Sweep, SweepReport};
pub use watch::{Watch, WatchReport};

#[async_trait]
pub trait BackgroundJob: Send + 'static {
    /// Stable: people and programs name it.
    const NAME: &'static str;
    /// What one pass does, for people.
    const ABOUT: &'static str;
    type Report: JobReport;
    type Error: Error + Send;

    /// One pass. It may be cut off at any await, by the end of the process at the latest.
    async fn activate(&mut self) -> Result<Self::Report, Self::Error>;
}

/// What one pass did. Shown at GET /v1/jobs.
pub trait JobReport: Serialize + Send {
    /// One line for people.
    fn summary(&self) -> String;

    /// Did it change anything? Otherwise it is not worth a line of the log.
    fn worked(&self) -> bool;
}
