//! apalis's backend, directly over the store's claims.
//!
//! apalis supplies the worker's loop, its layers, `Monitor` and shutdown. The truth stays in the journal: the queue has no
//! codec, no sink and no acknowledgement, and its error type has no values, so that the compiler sees to it that no outage
//! ever ends a worker.

use std::convert::Infallible;
use std::task::{Context, Poll};

use apalis_core::backend::finalize::Ephemeral;
use apalis_core::backend::{Backend, BackendConfig};
use apalis_core::task::Task;
use apalis_core::task::task_id::RandomId;
use apalis_core::worker::context::WorkerContext;
use tokio::sync::mpsc;
use tower::layer::util::Identity;

use crate::lease::Leased;

/// The workflows that the pump has claimed.
pub struct Queue {
    leased: mpsc::Receiver<Leased>,
}

impl Queue {
    pub fn new(leased: mpsc::Receiver<Leased>) -> Queue {
        Queue { leased }
    }
}

impl Backend for Queue {
    type Task = Task<Box<Leased>>;
    type Error = Infallible;

    fn poll_ready(&mut self, _cx: &mut Context<'_>, _worker: &WorkerContext) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, _worker: &WorkerContext) -> Poll<Option<Result<Task<Box<Leased>>, Infallible>>> {
        match self.leased.poll_recv(cx) {
            Poll::Ready(Some(leased)) => Poll::Ready(Some(Ok(Task::new(Box::new(leased))))),
            // The pump is gone. `None` would hang apalis's worker; the shutdown that follows ends it.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// What was claimed and not begun is dropped here, which hands it back.
    fn poll_close(&mut self, _cx: &mut Context<'_>, _worker: &WorkerContext) -> Poll<Result<(), Infallible>> {
        self.leased.close();
        while self.leased.try_recv().is_ok() {}
        Poll::Ready(Ok(()))
    }
}

impl BackendConfig for Queue {
    type Args = Box<Leased>;
    type Id = RandomId;
    type Kind = Ephemeral;
    type Config = ();
    type Layer = Identity;

    fn config(&self) -> &() {
        &()
    }

    fn middleware(&mut self, _worker: &mut WorkerContext) -> Identity {
        Identity::new()
    }
}
