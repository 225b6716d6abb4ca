//! How long work stands still after a kill, at the default settings.
//!
//! One sample is one workflow (a survey) that a process had in hand when it, or Redis, was killed with SIGKILL. It is taken from
//! what the processes wrote of themselves: from the moment before the kill of a worker to the moment in which another one was told
//! that it has the workflow (apart: those of which the store has counted one lease more than anybody has told of); from the moment before the kill of Redis to the next commit of the workflow that was acknowledged.
//! Workers are killed one after the other, a second apart on average: while what one had in hand waits for its lease to end, the next
//! ones are killed, also those that had just taken something over.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::time::Instant;

use super::desk::Desk;
use super::evidence;
use super::stage::{Scale, Stage};
use crate::harness::Client;
use crate::history::{Evidence, Histogram, Recovery, Struck, judge};

/// The default of `worker.lease`.
const LEASE: Duration = Duration::from_secs(10);
/// What is promised: the lease, and a second for the rest.
pub const BOUND: Duration = Duration::from_secs(11);
/// Workflows in hand before a kill, over all workers.
const IN_HAND: usize = 48;
/// Workers that live through a kill can take all of it.
const WORKERS: usize = 3;
const SLOTS: u16 = 64;
/// Every answer of the site takes so long, so that workflows are caught in hand.
// A worker lives for three seconds between two kills: some surveys, which take as long, end nevertheless.
const HELD_FOR: Duration = Duration::from_millis(1_500);
/// From one kill of a worker to the next, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 300..1_700;
/// After so many everything may end: what twenty workers in a row have lost would be set aside.
const KILLS_IN_A_ROW: usize = 30;
/// For Redis, whose return is to be seen in commits that come by themselves.
// A survey of two calls in a row then takes two seconds, of which some are left when Redis is killed: they are part of the sample.
const BUSY_FOR: Duration = Duration::from_secs(1);
/// In hand before a kill of Redis: surveys end while further ones are ordered.
const IN_HAND_BUSY: usize = 16;
/// Everything that a kill concerned has ended within this time, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// Of so many kills one is of Redis.
const REDIS_ONE_IN: usize = 4;
/// Pauses between kills are made of it.
const SEED: u64 = 1;

/// What was measured.
#[derive(Debug)]
pub struct Measured {
    pub worker_kills: usize,
    pub redis_kills: usize,
    /// Until another worker had it in hand.
    pub claimed: Histogram,
    /// The same, where that one was killed in turn before it could say so: until the next one had it.
    pub unheard: Histogram,
    /// Those of them that took longer than the bound allows for each.
    pub too_late: Vec<Recovery>,
    /// After a kill of Redis: until the next commit of what was in hand.
    pub redis: Histogram,
    pub violations: Vec<String>,
    /// In hand at a kill, and never heard of again.
    pub lost: usize,
}

impl Measured {
    pub fn is_good(&self) -> bool {
        let bound = i64::try_from(BOUND.as_millis()).unwrap_or(i64::MAX);
        let within = |histogram: &Histogram| histogram.max().is_some_and(|max| max <= bound);
        within(&self.claimed) && within(&self.redis) && self.too_late.is_empty() && self.violations.is_empty() && self.lost == 0
    }
}

/// Kills so often.
pub async fn measure(kills: usize, as_built: bool) -> io::Result<Measured> {
    let scale = Scale {
        nodes: 2,
        instances: 0,
        workers: WORKERS,
        slots: SLOTS,
        lease: "10s",
        reply_timeout: "2s",
        latency: Duration::ZERO,
        as_built,
        troubled: false,
        ..Scale::default()
    };
    let stage = Stage::set(1, &scale).await?;
    for socket in stage.sockets() {
        Client::new(&socket)?.until_up().await?;
    }
    let kills_of = Kills { desk: Desk::new(&stage)?, stage: &stage };
    let redis_kills = (kills / REDIS_ONE_IN).max(1);
    let worker_kills = kills.saturating_sub(redis_kills).max(1);
    let mut random = StdRng::seed_from_u64(SEED);
    stage.site.servers.mishaps.slow_down(HELD_FOR);
    for kill in 0..worker_kills {
        kills_of.a_worker(kill % WORKERS).await?;
        tokio::time::sleep(Duration::from_millis(random.random_range(PAUSE_MS))).await;
        if (kill + 1).is_multiple_of(KILLS_IN_A_ROW) {
            kills_of.until_idle().await?;
        }
    }
    kills_of.until_idle().await?;
    stage.site.servers.mishaps.slow_down(BUSY_FOR);
    for _ in 0..redis_kills {
        kills_of.redis().await?;
    }
    let kept = evidence::kept(&stage).await?;
    let out_max = usize::from(stage.out_max);
    let site = stage.end().await?;
    let history = evidence::gather(site.folder(), kept)?;
    let judged = judge(&Evidence { history: &history, site: &std::fs::read_to_string(&site.log)?, out_max });
    let of = |struck: Struck, time: fn(&Recovery) -> Option<i64>| {
        Histogram::of(judged.recoveries.iter().filter(|recovery| recovery.struck == struck).filter_map(time))
    };
    Ok(Measured {
        worker_kills,
        redis_kills,
        claimed: of(Struck::WorkerKilled, |recovery| recovery.claimed_ms.filter(|_| recovery.unheard == 0)),
        unheard: of(Struck::WorkerKilled, |recovery| recovery.claimed_ms.filter(|_| recovery.unheard > 0)),
        too_late: judged.recoveries.iter().filter(|recovery| is_too_late(recovery)).cloned().collect(),
        redis: of(Struck::RedisKilled, |recovery| recovery.committed_ms),
        violations: judged.violations.iter().map(ToString::to_string).collect(),
        lost: judged.recoveries.iter().filter(|recovery| recovery.committed_ms.is_none()).count(),
    })
}

/// Each who was killed before it could say that it had the workflow has had it for no longer than the bound.
fn is_too_late(recovery: &Recovery) -> bool {
    let bound = BOUND.as_millis() as i64 * (recovery.unheard as i64 + 1);
    recovery.struck == Struck::WorkerKilled && recovery.claimed_ms.is_some_and(|claimed| claimed > bound)
}

struct Kills<'a> {
    stage: &'a Stage,
    desk: Desk<'a>,
}

impl Kills<'_> {
    async fn a_worker(&self, index: usize) -> io::Result<()> {
        self.fill(IN_HAND).await?;
        let mut processes = self.stage.processes.lock().await;
        let pid = processes.worker_pid(index).ok_or_else(|| io::Error::other("a worker has ended by itself"))?;
        self.stage.faults.tell("fault", json!({ "kind": "worker killed", "pids": [pid] }));
        processes.kill_worker(index).await?;
        processes.start_what_is_missing()
    }

    async fn redis(&self) -> io::Result<()> {
        self.fill(IN_HAND_BUSY).await?;
        let mut processes = self.stage.processes.lock().await;
        self.stage.faults.tell("fault", json!({ "kind": "Redis killed", "pids": [] }));
        processes.kill_redis().await?;
        processes.start_redis().await?;
        drop(processes);
        self.until_idle().await
    }

    /// Orders surveys until enough are in hand at the same time.
    async fn fill(&self, wanted: usize) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let in_hand = self.leases().await?.len();
            if in_hand >= wanted {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(io::Error::other(format!("only {in_hand} of {wanted} workflows are in hand")));
            }
            for _ in in_hand..wanted {
                self.desk.send("survey", "/v1/surveys", &json!({}), &self.desk.next_key()).await?;
            }
        }
    }

    /// Ids of the workflows that are in hand.
    async fn leases(&self) -> io::Result<Vec<String>> {
        let mut redis = self.stage.redis().await?;
        redis::cmd("ZRANGE").arg("{ta}:lease").arg(0).arg(-1).query_async(&mut redis).await.map_err(io::Error::other)
    }

    async fn until_idle(&self) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut redis = self.stage.redis().await?;
            let open: Vec<String> =
                redis::cmd("ZRANGE").arg("{ta}:idx:open").arg(0).arg(-1).query_async(&mut redis).await.map_err(io::Error::other)?;
            if open.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                let shown = self.desk.open().await.unwrap_or_default();
                let status = |line: &serde_json::Value| format!("{} {}", line["status"].as_str().unwrap_or("?"), line["headline"].as_str().unwrap_or("?"));
                let shown: BTreeSet<String> = shown.iter().map(status).collect();
                return Err(io::Error::other(format!("{} workflows did not end within {} s: {shown:?}", open.len(), PATIENCE.as_secs())));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Prints it.
pub fn tell(measured: &Measured) {
    println!("lease {} s, bound {} s", LEASE.as_secs(), BOUND.as_secs());
    println!("a sample is a survey that was in hand when the process was killed with SIGKILL\n");
    let Measured { worker_kills, redis_kills, claimed, unheard, redis, .. } = measured;
    println!("{worker_kills} kills of a worker, until another one has it in hand: {claimed}");
    println!("  where that one was killed in turn before it could say so, until the next one has it: {unheard}");
    println!("{redis_kills} kills of Redis (started again at once), until the next commit: {redis}");
    println!("{} were never heard of again", measured.lost);
    for Recovery { workflow, claimed_ms, unheard, .. } in &measured.too_late {
        println!("TOO LATE: {workflow}: {claimed_ms:?} ms, {unheard} unheard of meanwhile");
    }
    for violation in &measured.violations {
        println!("VIOLATION: {violation}");
    }
    println!("verdict: {}", if measured.is_good() { "within the bound" } else { "NOT GOOD" });
}
