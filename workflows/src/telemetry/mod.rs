//! Traces that survive a crash: context that goes through records, and the set-up of the exporters.

mod context;

pub use context::{link, traceparent};
