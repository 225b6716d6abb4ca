//! Traces that survive a crash: context that goes through records, and the set-up of the exporters.

mod context;
mod export;
mod init;
pub mod metrics;
mod stderr;

pub use context::{child_env, current_traceparent, link, traceparent};
pub use init::{SHUTDOWN_MAX, Telemetry, TelemetryError, init, prepare};
