//! Cron-style schedules: what the operator wrote, and when it fires next.

use std::time::Duration;

use chrono_tz::Tz;

use crate::names::{ImageName, NodeName};

/// One entry of `[schedules]`.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// The expression as written.
    pub cron: String,
    pub dialect: Dialect,
    /// The zone in which the expression is meant.
    pub timezone: Tz,
    pub catch_up: CatchUp,
    /// A tick that is later than this is recorded as missed and does not run.
    pub max_lateness: Duration,
    pub starts: Starts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Five fields as in crontab(5): day of month and day of week are ORed, Sunday is 0 or 7.
    Posix,
    /// Six or seven fields with seconds first: Sunday is 1, both day fields must match.
    Quartz,
}

/// What happens with ticks that passed while no daemon was running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatchUp {
    /// None of them runs.
    Skip,
    /// The newest one runs.
    Latest,
    /// Each of them runs, oldest first.
    All,
}

/// The workflow that a tick starts.
#[derive(Debug, Clone)]
pub enum Starts {
    /// Reads what every node runs and what Nova says of it. Changes nothing.
    Survey,
    /// Renews the operating system of these nodes (all nodes if empty).
    NodeOs { nodes: Vec<NodeName>, image: ImageName },
}
