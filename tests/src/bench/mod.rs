//! What is measured, and how: every figure is a ratio of two things that were measured side by side, in alternating rounds of
//! one run, because machines are shared and noisy.
//!
//! The one thing is ours: real processes on a real Redis. The other is the floor: the native commands that the same work
//! needs at least, sent by a bare client.

mod collector;
pub mod figure;
mod floor;
mod g1;
mod g2;
mod g4;
mod g5;
mod g6;
mod kind;
mod machine;
mod ours;
mod process;
mod server;
mod stall;
pub mod worker;

use std::io;
use std::time::Duration;

pub use figure::{Figure, Report};

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Goal {
    /// Throughput, and what it costs.
    G1,
    /// Latency of one workflow alone.
    G2,
    /// Very many parked workflows.
    G4,
    /// At rest.
    G5,
    /// Many workflows, many workers.
    G6,
}

impl Goal {
    pub const ALL: [Goal; 5] = [Goal::G1, Goal::G2, Goal::G4, Goal::G5, Goal::G6];
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Alternating rounds of each figure.
    pub rounds: usize,
    /// Workflows of one round.
    pub workflows: usize,
    /// Workflows that one worker process has in hand at the same time.
    pub slots: u16,
    /// Workflows of one round where latency is measured, each by itself.
    pub single: usize,
    /// Workflows that wait for a time that does not come.
    pub parked: usize,
    /// Workflows that become due at the same moment.
    pub due_at_once: usize,
    /// Workflows that wait while the processes are at rest, and for how long the processes are watched.
    pub parked_idle: usize,
    pub idle: Duration,
}

impl Effort {
    /// Fewer rounds say nothing on a shared machine.
    pub const ROUNDS: usize = 5;

    pub fn full() -> Effort {
        Effort {
            rounds: Effort::ROUNDS,
            workflows: 20_000,
            slots: SLOTS,
            single: 200,
            parked: 1_000_000,
            due_at_once: 100_000,
            parked_idle: 100_000,
            idle: Duration::from_secs(60),
        }
    }

    /// For a first impression, under a minute where nobody else is at work.
    pub fn quick() -> Effort {
        Effort {
            rounds: 2,
            workflows: 2_000,
            slots: SLOTS,
            single: 50,
            parked: 10_000,
            due_at_once: 2_000,
            parked_idle: 10_000,
            idle: Duration::from_secs(5),
        }
    }
}

/// Twice what one call to Redis carries: while it is at one half, the worker is at the other.
const SLOTS: u16 = 512;

/// Measures `goals`, telling on standard error what is being done.
pub async fn engine(goals: &[Goal], effort: Effort) -> io::Result<Report> {
    let mut report = Report::begin(machine::look()?);
    for goal in goals {
        let figures = match goal {
            Goal::G1 => g1::measure(effort).await?,
            Goal::G2 => g2::measure(effort).await?,
            Goal::G4 => g4::measure(effort).await?,
            Goal::G5 => g5::measure(effort).await?,
            Goal::G6 => g6::measure(effort).await?,
        };
        report.figures.extend(figures);
    }
    Ok(report)
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn count(all: usize) -> f64 {
    all as f64
}
