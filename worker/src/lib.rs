//! The worker: makes it happen. Every effect on the outside world happens here, inside a step, under a lease.

use mimalloc::MiMalloc;

/// Every program that this library is part of. A workflow's life is many small texts that are made on one thread and dropped on
/// another, which the C library's allocator is slow at.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

pub mod adapters;
pub mod clock;
mod lease;
mod pump;
mod queue;
mod run;

pub use lease::{Lease, Leased};
pub use pump::{MakeStore, Pump, PumpHandle, PumpOptions};
pub use queue::Queue;
pub use run::{WorkerError, run, runtime};
