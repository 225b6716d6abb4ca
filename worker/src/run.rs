//! A worker's life: the pump claims, apalis hands out, the engine brings on.

use std::convert::Infallible;
use std::sync::Arc;

use apalis::layers::WorkerBuilderExt as _;
use apalis_core::monitor::{Monitor, MonitorError};
use apalis_core::worker::builder::WorkerBuilder;
use apalis_core::worker::ext::parallelize::ParallelizeExt as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use turnaround_workflows::engine::Engine;
use turnaround_workflows::history;
use turnaround_workflows::store::StoreError;

use crate::lease::Leased;
use crate::pump::Pump;
use crate::queue::Queue;

/// Why a worker ended otherwise than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("the store can't be used")]
    Store(#[source] StoreError),
    #[error("the worker's loop ended")]
    Monitor(#[source] MonitorError),
    #[error("the worker's loop met a bug in this program")]
    Panicked(#[source] tokio::task::JoinError),
    #[error("the pump met a bug in this program; its leases will expire")]
    PumpPanicked,
}

/// The runtime of a worker's steps. One core is left to the pump's thread and to whoever else is at work: the runtime has something to do whenever they have, and
/// a thread more than there are cores costs all of them more than it brings (a fifth of a workflow, on two cores).
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    tokio::runtime::Builder::new_multi_thread().worker_threads(cores.saturating_sub(1).max(1)).enable_all().build()
}

/// Works until `stop` is cancelled or the store proves unusable. On return every lease is settled or handed back.
pub async fn run(pump: Pump, engine: Engine, slots: u16, stop: CancellationToken) -> Result<(), WorkerError> {
    let (leased, handle) = pump.split();
    let engine = Arc::new(engine);
    // The factory is called once: a worker whose backend can't fail is never started again.
    let leased = std::sync::Mutex::new(Some(leased));
    let monitor = Monitor::new().register(move |_restarts| {
        let leased = leased.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let leased = leased.unwrap_or_else(|| tokio::sync::mpsc::channel(1).1);
        // No time-out: an activation ends at its next commit after its lease is lost, and waiting holds no slot.
        WorkerBuilder::new("workflows")
            .backend(Queue::new(leased))
            .concurrency(usize::from(slots))
            .parallelize(tokio::spawn)
            .catch_panic()
            .build({
                // Not as data of each task, which would make a map for each.
                let engine = engine.clone();
                move |leased| bring_on(leased, engine.clone())
            })
    });
    let stopping = handle.stopping();
    let signal = async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = stopping.cancelled() => {}
        }
        handle.stop();
        Ok::<_, std::io::Error>(handle)
    };
    let (tell, told) = tokio::sync::oneshot::channel();
    let signal = async move {
        let handle = signal.await?;
        let _ = tell.send(handle);
        Ok(())
    };
    // A task of its own, which ends with this call: polled by one of the runtime's threads, it hears of the end of an activation
    // without a system call.
    let mut working = JoinSet::new();
    working.spawn(monitor.run_with_signal(signal));
    let ended = working.join_next().await;
    if let Ok(handle) = told.await {
        let joined = tokio::task::spawn_blocking(move || handle.join()).await;
        match joined.map_err(WorkerError::Panicked)? {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(WorkerError::Store(error)),
            Err(_) => return Err(WorkerError::PumpPanicked),
        }
    }
    match ended {
        None => Ok(()),
        Some(Ok(ended)) => ended.map_err(WorkerError::Monitor),
        Some(Err(panicked)) => Err(WorkerError::Panicked(panicked)),
    }
}

async fn bring_on(leased: Box<Leased>, engine: Arc<Engine>) -> Result<(), Infallible> {
    let Leased { claimed, lease } = *leased;
    let id = claimed.document.id.clone();
    // On the heap: apalis's layers move what they pass on, several times.
    let end = Box::pin(history::in_hand(id.clone(), claimed.fence, engine.activate(claimed, &lease))).await;
    debug!(workflow = %id, ?end, "activation ended");
    Ok(())
}
