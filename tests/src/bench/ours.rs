//! Our side: workflows ordered as the daemon would order them, and brought on by real worker processes.

use std::io;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::Instant;
use turnaround_workflows::store::redis::RedisStore;
use turnaround_workflows::store::{NewWorkflow, Status, Store, StoredEntry};

use super::collector::Collector;
use super::floor::Sizes;
use super::server::{Fsync, Server};
use super::worker::{Told, WorkerProcess};
use super::{kind, process};

/// Orders that are under way at the same time.
const CREATES_AT_ONCE: usize = 256;
/// How often it is looked whether all are done. One look is one HGETALL of eight fields.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// All of a round ends within this time, or something is stuck.
const ROUND_MAX: Duration = Duration::from_secs(600);
/// As configured in production.
pub(super) const LEASE: Duration = Duration::from_secs(10);

/// What one round took.
#[derive(Debug, Clone)]
pub(super) struct Round {
    pub(super) created: Duration,
    /// From the start of the worker's process until the last workflow had ended.
    pub(super) ran: Duration,
    pub(super) redis_cpu_create: Duration,
    pub(super) redis_cpu_run: Duration,
    pub(super) worker_cpu: Duration,
    /// Spans that reached the collector.
    pub(super) spans: u64,
}

/// Creates those of these numbers, due now.
pub(super) async fn create(store: &RedisStore, numbers: std::ops::Range<usize>) -> io::Result<()> {
    create_all(store, numbers.map(kind::workflow)).await
}

/// Creates them, many at a time.
pub(super) async fn create_all(store: &RedisStore, workflows: impl Iterator<Item = NewWorkflow>) -> io::Result<()> {
    stream::iter(workflows.map(|new| store.create(new)))
        .buffer_unordered(CREATES_AT_ONCE)
        .try_for_each(|_| std::future::ready(Ok(())))
        .await
        .map_err(io::Error::other)
}

/// How many are not ended.
pub(super) async fn open(store: &RedisStore) -> io::Result<u64> {
    let counts = store.counts().await.map_err(io::Error::other)?;
    Ok(counts.iter().filter(|(status, _): &&(Status, u64)| !status.is_ended()).map(|(_, count)| count).sum())
}

/// Returns once no more than `others` have not ended.
pub(super) async fn all_ended_but(store: &RedisStore, workers: &mut [WorkerProcess], others: u64) -> io::Result<()> {
    let give_up = Instant::now() + ROUND_MAX;
    while open(store).await? > others {
        workers.iter_mut().try_for_each(WorkerProcess::check)?;
        if Instant::now() > give_up {
            return Err(io::Error::other(format!("{} workflows have not ended within {ROUND_MAX:?}", open(store).await?)));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// One round of `workflows` workflows on a new Redis.
pub(super) async fn round(fsync: Fsync, workflows: usize, slots: u16) -> io::Result<Round> {
    let server = Server::start(fsync).await?;
    let store = RedisStore::connect(server.options()).await.map_err(io::Error::other)?;
    let round = run(&server, &store, 0..workflows, 1, slots).await?;
    server.end().await?;
    Ok(round)
}

/// Orders the workflows of these numbers, then starts `workers` processes, and waits until they have brought them to their end.
/// What else is in the store is not due.
pub(super) async fn run(
    server: &Server,
    store: &RedisStore,
    numbers: std::ops::Range<usize>,
    workers: usize,
    slots: u16,
) -> io::Result<Round> {
    let collector = Collector::start().await?;
    let others = open(store).await?;
    let cpu_before = server.cpu().await?;
    let begun = Instant::now();
    create(store, numbers).await?;
    let created = begun.elapsed();
    let cpu_between = server.cpu().await?;
    let begun = Instant::now();
    let told = Told { otlp: Some(collector.endpoint()), begins: None };
    let mut processes = (0..workers)
        .map(|_| WorkerProcess::start(server.folder(), &server.socket(), slots, LEASE, told))
        .collect::<io::Result<Vec<_>>>()?;
    all_ended_but(store, &mut processes, others).await?;
    let ran = begun.elapsed();
    let cpu_after = server.cpu().await?;
    let mut worker_cpu = Duration::ZERO;
    for worker in processes {
        worker_cpu += process::cpu(worker.pid()?)?;
        worker.stop().await?;
    }
    let spans = collector.spans();
    Ok(Round { created, ran, redis_cpu_create: cpu_between - cpu_before, redis_cpu_run: cpu_after - cpu_between, worker_cpu, spans })
}

/// What the engine keeps of an entry: its digest, the length of its body, its body.
fn kept_bytes(entry: &StoredEntry) -> usize {
    entry.digest.0.len() + size_of::<u32>() + entry.body.len()
}

/// What our engine writes for one workflow, in bytes, by running one.
pub(super) async fn sizes() -> io::Result<Sizes> {
    let server = Server::start(Fsync::EverySecond).await?;
    let store = RedisStore::connect(server.options()).await.map_err(io::Error::other)?;
    let new = kind::workflow(0);
    let text = |text: &str| text.to_owned();
    let changed = |headline: &str| {
        vec![
            (text("status"), text("runnable")),
            (text("headline"), text(headline)),
            (text("seq"), text("1")),
            // As many bytes as are kept of it.
            (text("head"), "d".repeat(new.entry.digest.0.len())),
        ]
    };
    let mut document = vec![(text("kind"), new.kind.clone()), (text("target"), new.target.clone())];
    document.extend(changed(&new.headline));
    document.push((text("entry"), "e".repeat(kept_bytes(&new.entry))));
    let id = new.id.clone();
    create(&store, 0..1).await?;
    let mut worker = WorkerProcess::start(server.folder(), &server.socket(), 1, LEASE, Told::default())?;
    all_ended_but(&store, std::slice::from_mut(&mut worker), 0).await?;
    worker.stop().await?;
    let journal = store.journal(&id, 2, turnaround_workflows::store::PAGE_MAX).await.map_err(io::Error::other)?;
    server.end().await?;
    let bytes: usize = journal.iter().map(kept_bytes).sum();
    Ok(Sizes { document, changed: changed("second"), step_bytes: bytes / 3 })
}
