//! G6: whether it stays as fast when very many workflows are there, and as cheap when very many workers are.

use std::io;
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio::task::JoinSet;
use tokio::time::Instant;
use turnaround_workflows::clock::Timestamp;
use turnaround_workflows::store::Store as _;
use turnaround_workflows::store::redis::RedisStore;

use super::collector::Collector;
use super::figure::{Figure, Wanted, percentile, ratios};
use super::server::{Fsync, Server};
use super::worker::{Told, WorkerProcess};
use super::{Effort, kind, ours};

const GOAL: &str = "g6";
const FAR: Duration = Duration::from_secs(30 * 24 * 3_600);
const FEW: usize = 1_000;
/// Steps of one workflow.
const STEPS: f64 = 3.0;
/// Orders a second while latency is measured, far below what can be done: what is measured is not the queue.
const ORDERS_PER_SECOND: u32 = 200;
/// What was ordered has begun within this time, or is lost.
const BEGUN_WITHIN: Duration = Duration::from_secs(30);
const WORKERS: [usize; 3] = [1, 4, 16];

/// A Redis with workflows that wait, and the number of the next one.
struct Crowd {
    server: Server,
    store: std::sync::Arc<RedisStore>,
    next: usize,
}

impl Crowd {
    async fn of(parked: usize) -> io::Result<Crowd> {
        let server = Server::start(Fsync::EverySecond).await?;
        let store = RedisStore::connect(server.options()).await.map_err(io::Error::other)?;
        let far: Timestamp = store.now().await.map_err(io::Error::other)? + FAR;
        ours::create_all(&store, (0..parked).map(|number| kind::parked(number, far))).await?;
        server.fsync(Fsync::Always).await?;
        Ok(Crowd { server, store: std::sync::Arc::new(store), next: parked })
    }

    fn numbers(&mut self, count: usize) -> std::ops::Range<usize> {
        let numbers = self.next..self.next + count;
        self.next = numbers.end;
        numbers
    }

    /// Workflows a second, and the seconds of Redis, of `count` workflows that `workers` processes bring to their end.
    async fn run(&mut self, count: usize, workers: usize, slots: u16) -> io::Result<(f64, f64)> {
        let numbers = self.numbers(count);
        let round = ours::run(&self.server, &self.store, numbers, workers, slots).await?;
        let redis = round.redis_cpu_create + round.redis_cpu_run;
        Ok((super::count(count) / (round.created + round.ran).as_secs_f64(), redis.as_secs_f64()))
    }

    /// Milliseconds from the order to the begin of the first step, of workflows that are ordered at an even pace.
    async fn latencies(&mut self, wanted: usize) -> io::Result<Vec<f64>> {
        let path = self.server.folder().join("begins.sock");
        let begins = UnixDatagram::bind(&path)?;
        let collector = Collector::start().await?;
        let told = Told { otlp: Some(collector.endpoint()), begins: Some(&path) };
        let worker = WorkerProcess::start(self.server.folder(), &self.server.socket(), 16, ours::LEASE, told)?;
        // One first: the worker is there once it has begun.
        let first = self.numbers(1);
        ours::create(&self.store, first).await?;
        begin(&begins).await?;
        let numbers = self.numbers(wanted);
        let mut ordered = vec![None; wanted];
        let mut orders = JoinSet::new();
        let mut pace = tokio::time::interval(Duration::from_secs(1) / ORDERS_PER_SECOND);
        let (mut latencies, mut next) = (Vec::with_capacity(wanted), 0);
        while latencies.len() < wanted {
            tokio::select! {
                _ = pace.tick(), if next < wanted => {
                    let (store, new) = (self.store.clone(), kind::workflow(numbers.start + next));
                    ordered[next] = Some(Instant::now());
                    orders.spawn(async move { store.create(new).await });
                    next += 1;
                }
                begun = begin(&begins) => {
                    let place = begun?.checked_sub(numbers.start).and_then(|place| *ordered.get(place)?);
                    let ordered: Instant = place.ok_or_else(|| io::Error::other("something began that was not ordered"))?;
                    latencies.push(ordered.elapsed().as_secs_f64() * 1e3);
                }
            }
        }
        while let Some(order) = orders.join_next().await {
            order.map_err(io::Error::other)?.map_err(io::Error::other)?;
        }
        worker.stop().await?;
        std::fs::remove_file(&path)?;
        Ok(latencies)
    }
}

/// The number of the next workflow that begins.
async fn begin(begins: &UnixDatagram) -> io::Result<usize> {
    let mut said = [0; 256];
    let length = tokio::time::timeout(BEGUN_WITHIN, begins.recv(&mut said)).await.map_err(io::Error::other)??;
    let said = String::from_utf8_lossy(&said[..length]);
    said.rsplit('-').next().and_then(|number| number.parse().ok()).ok_or_else(|| io::Error::other(format!("{said} is no workflow of ours")))
}

pub(super) async fn measure(effort: Effort) -> io::Result<Vec<Figure>> {
    let mut few = Crowd::of(FEW).await?;
    let mut many = Crowd::of(effort.parked).await?;
    eprintln!("g6: {FEW} wait here and {} there", effort.parked);
    let (mut fast_few, mut fast_many, mut late_few, mut late_many) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut cpu: Vec<Vec<f64>> = vec![Vec::new(); WORKERS.len()];
    for round in 1..=effort.rounds {
        fast_few.push(few.run(effort.workflows, 1, effort.slots).await?.0);
        fast_many.push(many.run(effort.workflows, 1, effort.slots).await?.0);
        late_few.push(percentile(&few.latencies(effort.single * 5).await?, 0.99));
        late_many.push(percentile(&many.latencies(effort.single * 5).await?, 0.99));
        for (workers, cpu) in WORKERS.into_iter().zip(&mut cpu) {
            let seconds = few.run(effort.workflows, workers, effort.slots).await?.1;
            cpu.push(seconds * 1e6 / super::count(effort.workflows) / STEPS);
        }
        eprintln!("g6: round {round} of {}", effort.rounds);
    }
    few.server.end().await?;
    many.server.end().await?;
    let crowd = effort.parked;
    let mut figures = vec![
        Figure::seen(GOAL, format!("throughput, {crowd} waiting : {FEW}"), "", ratios(&fast_many, &fast_few)).wanted(Wanted::AtLeast(0.95)),
        Figure::seen(GOAL, format!("order to begin p99, {FEW} waiting : {crowd}"), "", ratios(&late_few, &late_many))
            .wanted(Wanted::AtLeast(0.95)),
    ];
    for (place, workers) in WORKERS.into_iter().enumerate().skip(1) {
        let compared = ratios(&cpu[place], &cpu[0]);
        let name = format!("Redis CPU of a step, {workers} workers : 1");
        figures.push(Figure::seen(GOAL, name, "", compared).wanted(Wanted::Within(0.85, 1.15)));
    }
    figures.push(Figure::seen(GOAL, format!("throughput, {FEW} waiting"), "workflows/s", fast_few));
    figures.push(Figure::seen(GOAL, format!("throughput, {crowd} waiting"), "workflows/s", fast_many));
    figures.push(Figure::seen(GOAL, format!("order to begin p99, {FEW} waiting"), "ms", late_few));
    figures.push(Figure::seen(GOAL, format!("order to begin p99, {crowd} waiting"), "ms", late_many));
    for (workers, cpu) in WORKERS.into_iter().zip(cpu) {
        figures.push(Figure::seen(GOAL, format!("Redis CPU of a step, {workers} workers"), "us", cpu));
    }
    Ok(figures)
}
