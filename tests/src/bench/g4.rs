//! G4: very many parked workflows: what each costs in memory, and what happens when many become due at the same moment.

use std::io;
use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;
use turnaround_workflows::clock::Timestamp;
use turnaround_workflows::store::redis::RedisStore;
use turnaround_workflows::store::{Advance, CLAIM_MAX, Claim, Queue, Store};

use super::collector::Collector;
use super::figure::{Figure, Wanted, ratios};
use super::server::{Fsync, Server};
use super::stall::Stall;
use super::worker::{Told, WorkerProcess};
use super::{Effort, count, floor, kind, ours, process};

const GOAL: &str = "g4";
/// Parked for as long as anything is measured.
const FAR: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Claimed for as long as anything is measured: what has been claimed must not come back.
const LONG_LEASE: Duration = Duration::from_secs(24 * 3_600);
/// There before the memory is looked at: what is there once, and not for each workflow, is there by then.
const FIRST: usize = 1_000;
/// Workflows of which what is kept is weighed.
const WEIGHED: usize = 1_000;
/// All of them are parked this long before they become due, at the least.
const PARKED_BEFORE: Duration = Duration::from_secs(2);

pub(super) async fn measure(effort: Effort) -> io::Result<Vec<Figure>> {
    // Written fast, and measured as it is in production.
    let server = Server::start(Fsync::EverySecond).await?;
    let store = RedisStore::connect(server.options()).await.map_err(io::Error::other)?;
    let far = now(&store).await? + FAR;
    park(&store, 0..FIRST, far).await?;
    let small = worker_peak(&server, effort, &store, FIRST).await?;
    let begun = Instant::now();
    let extra = effort.due_at_once + FIRST;
    let memory_before = server.memory().await?;
    park(&store, extra..effort.parked + extra, far).await?;
    let each = begun.elapsed().div_f64(count(effort.parked));
    let beyond = (server.memory().await? - memory_before) / count(effort.parked) - own_bytes(&server, extra).await?;
    eprintln!("g4: {} parked, {each:?} each", effort.parked);
    server.fsync(Fsync::Always).await?;
    let mut next = effort.parked + extra;
    let socket = server.socket();
    let all = 0..effort.parked;
    tokio::task::spawn_blocking(move || floor::make_due(&socket, all, "9000000000000")).await??;
    let (mut ours, mut theirs, mut our_stalls, mut their_stalls) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=effort.rounds {
        let numbers = next..next + effort.due_at_once;
        next = numbers.end;
        let due = park_until_due(&store, numbers.clone(), each).await?;
        let (took, stall) = floor_claims(&server, numbers.clone()).await?;
        theirs.push(took.as_secs_f64());
        their_stalls.push(stall.as_secs_f64() * 1e3);
        let (took, stall) = our_claims(&server, &store, numbers.len(), due).await?;
        ours.push(took.as_secs_f64());
        our_stalls.push(stall.as_secs_f64() * 1e3);
        eprintln!("g4: round {round} of {}", effort.rounds);
    }
    let numbers = next..next + effort.due_at_once;
    let due = park_until_due(&store, numbers, each).await?;
    let (large, ran, stall) = flood(&server, effort, &store, due).await?;
    server.end().await?;
    let worst = our_stalls.iter().copied().fold(stall.as_secs_f64() * 1e3, f64::max);
    Ok(vec![
        Figure::seen(GOAL, format!("memory of each of {} parked, beyond its head, document and journal", effort.parked), "bytes", vec![beyond])
            .wanted(Wanted::AtMost(200.0)),
        Figure::seen(GOAL, format!("{} due at once, claimed in, ours : floor", effort.due_at_once), "", ratios(&ours, &theirs))
            .wanted(Wanted::AtMost(2.0)),
        Figure::seen(GOAL, "longest silence of Redis meanwhile", "ms", vec![worst]).wanted(Wanted::AtMost(50.0)),
        Figure::seen(GOAL, format!("worker's memory, {} parked : {FIRST}", effort.parked), "", vec![large / small]).wanted(Wanted::AtMost(1.1)),
        Figure::seen(GOAL, "ours, time for all claims", "s", ours),
        Figure::seen(GOAL, "floor, time for all claims", "s", theirs),
        Figure::seen(GOAL, "ours, longest silence while they were claimed", "ms", our_stalls),
        Figure::seen(GOAL, "floor, longest silence while they were claimed", "ms", their_stalls),
        Figure::seen(GOAL, "worker runs them all: longest silence", "ms", vec![stall.as_secs_f64() * 1e3]),
        Figure::seen(GOAL, "worker runs them all: time", "s", vec![ran.as_secs_f64()]),
        Figure::seen(GOAL, "worker's memory at its peak", "MB", vec![large / 1e6]),
        Figure::seen(GOAL, "ordering one", "us", vec![each.as_secs_f64() * 1e6]),
    ])
}

async fn now(store: &RedisStore) -> io::Result<Timestamp> {
    store.now().await.map_err(io::Error::other)
}

async fn park(store: &RedisStore, numbers: Range<usize>, due: Timestamp) -> io::Result<()> {
    ours::create_all(store, numbers.map(|number| kind::parked(number, due))).await
}

/// Parks them until the same moment, and returns that moment, which is not yet there.
async fn park_until_due(store: &RedisStore, numbers: Range<usize>, each: Duration) -> io::Result<Timestamp> {
    let due = now(store).await? + each.mul_f64(2.0 * count(numbers.len())) + PARKED_BEFORE;
    park(store, numbers, due).await?;
    if now(store).await? >= due { Err(io::Error::other("some became due before all were parked")) } else { Ok(due) }
}

async fn until(store: &RedisStore, due: Timestamp) -> io::Result<()> {
    tokio::time::sleep(due.since(now(store).await?)).await;
    while now(store).await? < due {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Bytes of what is kept of one workflow: its head, its document, its journal of one entry.
async fn own_bytes(server: &Server, first: usize) -> io::Result<f64> {
    let mut bytes = 0;
    for number in first..first + WEIGHED {
        let id = kind::id(number);
        for (key, field) in [("{ta}:heads", id.clone()), ("{ta}:documents", id.clone()), ("{ta}:journal", format!("{id}:1"))] {
            let own = server.bytes_of(key, &field).await?;
            if own == 0 {
                return Err(io::Error::other(format!("there is no {field} in {key}: the store has named its keys anew")));
            }
            bytes += own;
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    Ok(bytes as f64 / count(WEIGHED))
}

/// How long it took, once they were due, to claim them as a worker does: so many in one call, one call at a time.
async fn our_claims(server: &Server, store: &RedisStore, all: usize, due: Timestamp) -> io::Result<(Duration, Duration)> {
    until(store, due).await?;
    let stall = Stall::watch(&server.socket())?;
    let begun = Instant::now();
    let mut claimed = 0;
    while claimed < all {
        let claim = Some(Claim { max: CLAIM_MAX, lease: LONG_LEASE, worker: "bench".to_owned(), queues: vec![Queue::DEFAULT] });
        let advanced = store.advance(&Advance { lease: LONG_LEASE, claim, ..Advance::default() }).await.map_err(io::Error::other)?;
        if advanced.claimed.is_empty() {
            return Err(io::Error::other(format!("only {claimed} of {all} could be claimed")));
        }
        claimed += advanced.claimed.len();
    }
    Ok((begun.elapsed(), stall.end()?))
}

async fn floor_claims(server: &Server, numbers: Range<usize>) -> io::Result<(Duration, Duration)> {
    let (socket, again) = (server.socket(), numbers.clone());
    tokio::task::spawn_blocking(move || floor::make_due(&socket, again, "1800000000000")).await??;
    let stall = Stall::watch(&server.socket())?;
    let socket = server.socket();
    let took = tokio::task::spawn_blocking(move || floor::claim(&socket, numbers)).await??;
    Ok((took, stall.end()?))
}

/// The peak of a worker's memory after it has run `workflows` workflows that were due.
async fn worker_peak(server: &Server, effort: Effort, store: &RedisStore, first: usize) -> io::Result<f64> {
    ours::create(store, first..first + effort.due_at_once).await?;
    let (peak, _, _) = flood(server, effort, store, now(store).await?).await?;
    Ok(peak)
}

/// A worker that runs all that becomes due at `due`: the peak of its memory, how long it took, and Redis's longest silence.
async fn flood(server: &Server, effort: Effort, store: &RedisStore, due: Timestamp) -> io::Result<(f64, Duration, Duration)> {
    let collector = Collector::start().await?;
    let told = Told { otlp: Some(collector.endpoint()), begins: None };
    let still_open = ours::open(store).await? - effort.due_at_once as u64;
    let stall = Stall::watch(&server.socket())?;
    let mut worker = WorkerProcess::start(server.folder(), &server.socket(), effort.slots, ours::LEASE, told)?;
    until(store, due).await?;
    let begun = Instant::now();
    ours::all_ended_but(store, std::slice::from_mut(&mut worker), still_open).await?;
    let took = begun.elapsed();
    let stall = stall.end()?;
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let peak = process::memory_peak(worker.pid()?)? as f64;
    worker.stop().await?;
    Ok((peak, took, stall))
}
