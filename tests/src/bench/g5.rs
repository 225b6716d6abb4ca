//! G5: what the daemon and four workers cost while nothing is to be done and very many workflows wait.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use turnaround_workflows::clock::SystemClock;
use turnaround_workflows::rehearsal::{NodePlan, SitePlan, World};
use turnaround_workflows::store::Store as _;
use turnaround_workflows::store::redis::RedisStore;

use super::collector::Collector;
use super::figure::{Figure, Wanted};
use super::process::{Usage, usage};
use super::server::{Fsync, Server};
use super::{Effort, kind, ours};
use crate::harness::Client;
use crate::lab::{Processes, Programs};
use crate::site::{Settings, Site};

const GOAL: &str = "g5";
const WORKERS: usize = 4;
const FAR: Duration = Duration::from_secs(30 * 24 * 3_600);
/// The processes have come to rest by then: the exporters have sent what the start said.
const REST: Duration = Duration::from_secs(5);

pub(super) async fn measure(effort: Effort) -> io::Result<Vec<Figure>> {
    let programs = built().await?;
    let server = Server::start(Fsync::EverySecond).await?;
    let store = RedisStore::connect(server.options()).await.map_err(io::Error::other)?;
    let far = store.now().await.map_err(io::Error::other)? + FAR;
    ours::create_all(&store, (0..effort.parked_idle).map(|number| kind::parked(number, far))).await?;
    server.fsync(Fsync::Always).await?;
    eprintln!("g5: {} wait; {} s of rest are measured", effort.parked_idle, effort.idle.as_secs());

    let collector = Collector::start().await?;
    let plan = SitePlan { nodes: vec![NodePlan { name: "gpu-01".to_owned(), ..NodePlan::default() }], ..SitePlan::default() };
    let world = World::new(Arc::new(SystemClock), plan, 1);
    let site = Site::start(&world).await?;
    let mut settings = Settings::quick(&programs.site_ssh);
    // As in production.
    "10s".clone_into(&mut settings.lease);
    settings.store = format!("url = \"unix://{}\"", server.socket().display());
    settings.more = format!("[telemetry]\nendpoint = \"{}\"\n", collector.endpoint());
    let config = site.write_config(&world, &settings)?;
    let mut processes = Processes::new(programs, site.folder(), &config, WORKERS);
    processes.start_daemon()?;
    for worker in 0..WORKERS {
        processes.start_worker(worker)?;
    }
    Client::new(&site.socket())?.until_up().await?;
    tokio::time::sleep(REST).await;

    let pids = pids(&processes)?;
    let before = pids.iter().map(|(_, pid)| usage(*pid)).collect::<io::Result<Vec<_>>>()?;
    let redis_before = server.cpu().await?;
    tokio::time::sleep(effort.idle).await;
    let after = pids.iter().map(|(_, pid)| usage(*pid)).collect::<io::Result<Vec<_>>>()?;
    let redis = server.cpu().await? - redis_before;
    processes.check()?;
    processes.end().await?;
    server.end().await?;
    let seconds = effort.idle.as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "counts are small")]
    let sleeps = |(before, after): (&Usage, &Usage)| (after.sleeps - before.sleeps) as f64 / seconds;
    let share = |(before, after): (&Usage, &Usage)| (after.cpu - before.cpu).as_secs_f64() / seconds * 100.0;
    let sleeps: Vec<f64> = before.iter().zip(&after).map(sleeps).collect();
    let shares: Vec<f64> = before.iter().zip(&after).map(share).collect();
    let figure = |name, unit, rounds: &[f64]| Figure::seen(GOAL, name, unit, rounds.to_vec());
    Ok(vec![
        figure("daemon at rest, wake-ups", "1/s", &sleeps[..1]).wanted(Wanted::AtMost(1.0)),
        figure("daemon at rest, share of a core", "%", &shares[..1]).wanted(Wanted::AtMost(0.05)),
        figure("a worker at rest, wake-ups", "1/s", &sleeps[1..]).wanted(Wanted::AtMost(1.0)),
        figure("a worker at rest, share of a core", "%", &shares[1..]).wanted(Wanted::AtMost(0.05)),
        Figure::seen(GOAL, "Redis meanwhile, share of a core", "%", vec![redis.as_secs_f64() / seconds * 100.0]),
    ])
}

/// The daemon's, then the workers'.
fn pids(processes: &Processes) -> io::Result<Vec<(String, u32)>> {
    let ended = |name: &str| io::Error::other(format!("{name} has ended"));
    let mut pids = vec![("daemon".to_owned(), processes.daemon_pid().ok_or_else(|| ended("the daemon"))?)];
    for worker in 0..WORKERS {
        pids.push((format!("worker {worker}"), processes.worker_pid(worker).ok_or_else(|| ended("a worker"))?));
    }
    Ok(pids)
}

/// The real programs, built as this one is.
async fn built() -> io::Result<Programs> {
    let mut command = crate::harness::cargo();
    command.args(["build", "--quiet", "--locked", "--workspace", "--bins"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    if !command.status().await?.success() {
        return Err(io::Error::other("the programs could not be built"));
    }
    Programs::beside_this_one()
}
