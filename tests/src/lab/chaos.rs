//! Kills on the way: who, when and how is decided by a seed.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::Processes;

/// Pauses between two blows, in milliseconds: long enough that work goes on in between, short enough that a lab of half a
/// minute sees a dozen.
const PAUSE_MS: std::ops::Range<u64> = 800..2_500;
/// A killed process stays away for so long at most.
const AWAY_MS: std::ops::Range<u64> = 50..800;
/// A stopped worker sleeps longer than its lease, which the lab sets to two seconds.
const ASLEEP_MS: std::ops::Range<u64> = 2_300..3_500;

/// Deals the blows.
pub struct Chaos {
    random: StdRng,
    report: ChaosReport,
}

/// What was done to whom.
#[derive(Debug, Clone, Default)]
pub struct ChaosReport(pub BTreeMap<&'static str, u32>);

impl std::fmt::Display for ChaosReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let total: u32 = self.0.values().sum();
        let kinds: Vec<String> = self.0.iter().map(|(what, times)| format!("{what} {times}")).collect();
        write!(f, "{total} blows: {}", kinds.join(", "))
    }
}

impl Chaos {
    pub fn new(seed: u64) -> Chaos {
        Chaos { random: StdRng::seed_from_u64(seed), report: ChaosReport::default() }
    }

    pub fn report(&self) -> ChaosReport {
        self.report.clone()
    }

    /// How long until the next blow.
    pub fn pause(&mut self) -> Duration {
        Duration::from_millis(self.random.random_range(PAUSE_MS))
    }

    /// One blow, and its mending.
    pub async fn strike(&mut self, processes: &mut Processes) -> io::Result<&'static str> {
        let worker = self.random.random_range(0..processes.workers());
        let away = Duration::from_millis(self.random.random_range(AWAY_MS));
        let what = match self.random.random_range(0..10) {
            0..4 => {
                processes.kill_worker(worker).await?;
                tokio::time::sleep(away).await;
                processes.start_worker(worker)?;
                "worker killed"
            }
            4..5 => {
                processes.stop_worker(worker).await?;
                processes.start_worker(worker)?;
                "worker told to stop"
            }
            5..7 => {
                processes.signal_worker(worker, Signal::SIGSTOP)?;
                tokio::time::sleep(Duration::from_millis(self.random.random_range(ASLEEP_MS))).await;
                processes.signal_worker(worker, Signal::SIGCONT)?;
                "worker paused beyond its lease"
            }
            7..8 => {
                processes.kill_daemon().await?;
                tokio::time::sleep(away).await;
                processes.start_daemon()?;
                "daemon killed"
            }
            _ => {
                processes.kill_redis().await?;
                tokio::time::sleep(away).await;
                processes.start_redis().await?;
                "Redis killed"
            }
        };
        *self.report.0.entry(what).or_insert(0) += 1;
        Ok(what)
    }
}
