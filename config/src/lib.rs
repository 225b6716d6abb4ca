//! The configuration file of Turnaround: read once, checked wholly, every problem shown at once.

mod config;
mod names;
mod schedule;
mod secret;

pub use config::*;
pub use names::*;
pub use schedule::*;
pub use secret::*;
