//! Traces that survive a crash: context that goes through records, and the set-up of the exporters.

mod context;
mod export;
mod init;
mod limit;
pub mod metrics;
mod stderr;
mod step_call;

pub(crate) use context::is_left_out;
pub use context::{child_env, current_traceparent, link, show_trace, traceparent};
pub use init::{SHUTDOWN_MAX, Telemetry, TelemetryError, init, prepare};
pub use metrics::StepOutcome;
pub(crate) use step_call::StepCall;
