//! G1: throughput of fenced, journalled workflows of three steps, and what they cost, against the floor.

use std::io;
use std::time::Duration;

use super::figure::{Figure, Wanted, ratios};
use super::floor::{self, Sizes};
use super::server::{Fsync, Server};
use super::{Effort, count, ours};

const GOAL: &str = "g1";

pub(super) async fn measure(effort: Effort) -> io::Result<Vec<Figure>> {
    let sizes = ours::sizes().await?;
    eprintln!("g1: the engine writes 3 x {} bytes of journal for each workflow after its creation", sizes.step_bytes);
    let mut figures = Vec::new();
    for (fsync, least) in [(Fsync::EverySecond, 0.8), (Fsync::Always, 1.0)] {
        figures.extend(measure_with(fsync, least, effort, &sizes).await?);
    }
    Ok(figures)
}

/// What the floor took, in one round.
struct Floor {
    created: Duration,
    ran: Duration,
    redis_cpu: Duration,
}

async fn floor_round(fsync: Fsync, workflows: usize, sizes: &Sizes) -> io::Result<Floor> {
    let server = Server::start(fsync).await?;
    let before = server.cpu().await?;
    let (socket, sizes) = (server.socket(), sizes.clone());
    let (created, ran) = tokio::task::spawn_blocking(move || floor::run(&socket, workflows, &sizes)).await??;
    let redis_cpu = server.cpu().await? - before;
    server.end().await?;
    Ok(Floor { created, ran, redis_cpu })
}

async fn measure_with(fsync: Fsync, least: f64, effort: Effort, sizes: &Sizes) -> io::Result<Vec<Figure>> {
    let count = count(effort.workflows);
    let (mut floor, mut ours) = (Vec::new(), Vec::new());
    for round in 1..=effort.rounds {
        // Who begins changes, so that what drifts does not always hit the same one.
        if round % 2 == 1 {
            floor.push(floor_round(fsync, effort.workflows, sizes).await?);
            ours.push(ours::round(fsync, effort.workflows, effort.slots).await?);
        } else {
            ours.push(ours::round(fsync, effort.workflows, effort.slots).await?);
            floor.push(floor_round(fsync, effort.workflows, sizes).await?);
        }
        eprintln!("g1: AOF {}, round {round} of {}", fsync.as_str(), effort.rounds);
    }
    let mode = fsync.as_str();
    let floor_speed: Vec<f64> = floor.iter().map(|one| count / (one.created + one.ran).as_secs_f64()).collect();
    let our_speed: Vec<f64> = ours.iter().map(|one| count / (one.created + one.ran).as_secs_f64()).collect();
    let each = |all: Vec<Duration>| -> Vec<f64> { all.into_iter().map(|all| all.as_secs_f64() * 1e6 / count).collect() };
    let floor_cpu = each(floor.iter().map(|one| one.redis_cpu).collect());
    let our_cpu = each(ours.iter().map(|one| one.redis_cpu_create + one.redis_cpu_run).collect());
    let seen = |name: &str, unit, rounds| Figure::seen(GOAL, format!("{mode}: {name}"), unit, rounds);
    #[allow(clippy::cast_precision_loss, reason = "counts are small")]
    let spans = ours.iter().map(|one| one.spans as f64 / count).collect();
    Ok(vec![
        seen("throughput, ours : floor", "", ratios(&our_speed, &floor_speed)).wanted(Wanted::AtLeast(least)),
        seen("Redis CPU, ours : floor", "", ratios(&our_cpu, &floor_cpu)).wanted(Wanted::AtMost(1.2)),
        seen("floor", "workflows/s", floor_speed),
        seen("ours", "workflows/s", our_speed),
        seen("floor, Redis CPU of a workflow", "us", floor_cpu),
        seen("ours, Redis CPU of a workflow", "us", our_cpu),
        seen("  of that for its creation", "us", each(ours.iter().map(|one| one.redis_cpu_create).collect())),
        seen("  of that for its run", "us", each(ours.iter().map(|one| one.redis_cpu_run).collect())),
        seen("ours, worker CPU of a workflow", "us", each(ours.iter().map(|one| one.worker_cpu).collect())),
        seen("ours, creation of a workflow", "us", each(ours.iter().map(|one| one.created).collect())),
        seen("ours, run of a workflow", "us", each(ours.iter().map(|one| one.ran).collect())),
        seen("floor, creation of a workflow", "us", each(floor.iter().map(|one| one.created).collect())),
        seen("floor, run of a workflow", "us", each(floor.iter().map(|one| one.ran).collect())),
        seen("ours, spans that reached the collector, of 4", "", spans),
    ])
}
