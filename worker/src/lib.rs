//! The worker: makes it happen. Every effect on the outside world happens here, inside a step, under a lease.

pub mod adapters;
pub mod clock;
mod lease;
mod pump;
mod queue;
mod run;

pub use lease::{Lease, Leased};
pub use pump::{MakeStore, Pump, PumpHandle, PumpOptions};
pub use queue::Queue;
pub use run::{WorkerError, run};
