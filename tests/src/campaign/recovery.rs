//! How long work stands still after a kill, at the default settings.
//!
//! One sample is one workflow (a survey) that a process had in hand when it, or Redis, was killed with SIGKILL. It is taken from
//! what the processes wrote of themselves: from the moment before the kill of a worker to the moment in which another one was told
//! that it has the workflow; from the moment before the kill of Redis to the next commit of the workflow that was acknowledged.
//! Many are in hand at each kill, so that some hundred samples take minutes.

use std::io;
use std::time::Duration;

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
/// Workers that live through each kill can take all of it.
const WORKERS: usize = 3;
const SLOTS: u16 = 64;
/// Every answer of the site takes so long while workflows are to be caught in hand: below the limit of 30 s of a request.
const HELD_FOR: Duration = Duration::from_secs(20);
/// For Redis, whose return is to be seen in commits that come by themselves.
// A survey of two calls in a row then takes two seconds, of which some are left when Redis is killed: they are part of the sample.
const BUSY_FOR: Duration = Duration::from_secs(1);
/// In hand before a kill of Redis: surveys end while further ones are ordered.
const IN_HAND_BUSY: usize = 16;
/// Everything that a kill concerned has ended within this time, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// Of so many kills one is of Redis.
const REDIS_ONE_IN: usize = 3;

/// What was measured.
#[derive(Debug)]
pub struct Measured {
    pub worker_kills: usize,
    pub redis_kills: usize,
    /// Until another worker had it in hand.
    pub claimed: Histogram,
    /// Until its next commit: beside the recovery, that is how long the site takes to answer, which catches workflows in hand by
    /// answering slowly. Shown, not judged.
    pub committed: Histogram,
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
        within(&self.claimed) && within(&self.redis) && self.violations.is_empty() && self.lost == 0
    }
}

/// Kills until there are `samples` of kills of workers, and about half as many kills of Redis.
pub async fn measure(samples: usize, as_built: bool) -> io::Result<Measured> {
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
    let mut round = Round { desk: Desk::new(&stage)?, stage: &stage, worker_kills: 0, redis_kills: 0 };
    let mut taken = 0;
    while taken < samples {
        taken += round.kill_a_worker().await?;
        eprintln!("{taken} of {samples} samples after {} kills", round.worker_kills);
        if round.worker_kills.is_multiple_of(REDIS_ONE_IN) {
            round.kill_redis().await?;
        }
    }
    if round.redis_kills == 0 {
        round.kill_redis().await?;
    }
    let (worker_kills, redis_kills) = (round.worker_kills, round.redis_kills);
    stage.site.servers.mishaps.slow_down(Duration::ZERO);
    round.until_idle().await?;
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
        claimed: of(Struck::WorkerKilled, |recovery| recovery.claimed_ms),
        committed: of(Struck::WorkerKilled, |recovery| recovery.committed_ms),
        redis: of(Struck::RedisKilled, |recovery| recovery.committed_ms),
        violations: judged.violations.iter().map(ToString::to_string).collect(),
        lost: judged.recoveries.iter().filter(|recovery| recovery.committed_ms.is_none()).count(),
    })
}

struct Round<'a> {
    stage: &'a Stage,
    desk: Desk<'a>,
    worker_kills: usize,
    redis_kills: usize,
}

impl Round<'_> {
    /// Whoever the worker had in hand; how many that were.
    async fn kill_a_worker(&mut self) -> io::Result<usize> {
        self.stage.site.servers.mishaps.slow_down(HELD_FOR);
        self.fill(IN_HAND).await?;
        let index = self.worker_kills % WORKERS;
        let mut processes = self.stage.processes.lock().await;
        let pid = processes.worker_pid(index).ok_or_else(|| io::Error::other("a worker has ended by itself"))?;
        let held = self.held_by(pid).await?;
        // What is taken over meets a site that answers at once.
        self.stage.site.servers.mishaps.slow_down(Duration::ZERO);
        self.stage.faults.tell("fault", json!({ "kind": "worker killed", "pids": [pid] }));
        processes.kill_worker(index).await?;
        processes.start_what_is_missing()?;
        drop(processes);
        self.worker_kills += 1;
        self.until_ended(&held).await?;
        Ok(held.len())
    }

    async fn kill_redis(&mut self) -> io::Result<()> {
        self.until_idle().await?;
        self.stage.site.servers.mishaps.slow_down(BUSY_FOR);
        self.fill(IN_HAND_BUSY).await?;
        let mut processes = self.stage.processes.lock().await;
        self.stage.faults.tell("fault", json!({ "kind": "Redis killed", "pids": [] }));
        processes.kill_redis().await?;
        processes.start_redis().await?;
        drop(processes);
        self.redis_kills += 1;
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

    async fn held_by(&self, pid: u32) -> io::Result<Vec<String>> {
        let mut redis = self.stage.redis().await?;
        let mut held = Vec::new();
        for id in self.leases().await? {
            let holder: Option<String> =
                redis::cmd("HGET").arg(format!("{{ta}}:wf:{id}")).arg("holder").query_async(&mut redis).await.map_err(io::Error::other)?;
            // `host:pid ticket`
            if holder.is_some_and(|holder| holder.split(' ').next().is_some_and(|who| who.ends_with(&format!(":{pid}")))) {
                held.push(id);
            }
        }
        Ok(held)
    }

    async fn until_ended(&self, ids: &[String]) -> io::Result<()> {
        self.until(async |open| !ids.iter().any(|id| open.contains(id))).await
    }

    async fn until_idle(&self) -> io::Result<()> {
        self.until(async |open| open.is_empty()).await
    }

    async fn until(&self, is: impl AsyncFn(&[String]) -> bool) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut redis = self.stage.redis().await?;
            let open: Vec<String> =
                redis::cmd("ZRANGE").arg("{ta}:idx:open").arg(0).arg(-1).query_async(&mut redis).await.map_err(io::Error::other)?;
            if is(&open).await {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(io::Error::other(format!("{} workflows did not end within {} s", open.len(), PATIENCE.as_secs())));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Prints it.
pub fn tell(measured: &Measured) {
    println!("lease {} s, bound {} s", LEASE.as_secs(), BOUND.as_secs());
    println!("a sample is a survey that was in hand when the process was killed with SIGKILL\n");
    let Measured { worker_kills, redis_kills, claimed, committed, redis, .. } = measured;
    println!("{worker_kills} kills of a worker, until another one has it in hand: {claimed}");
    println!("{worker_kills} kills of a worker, until the next commit, with the slow site's answers in it: {committed}");
    println!("{redis_kills} kills of Redis (started again at once), until the next commit: {redis}");
    println!("{} were never heard of again", measured.lost);
    for violation in &measured.violations {
        println!("VIOLATION: {violation}");
    }
    println!("verdict: {}", if measured.is_good() { "within the bound" } else { "NOT GOOD" });
}
