//! The lab: a simulated site, a private Redis, the daemon and workers as real processes, and a rollout over all of it.

mod chaos;
mod processes;
mod view;

pub use chaos::{Chaos, ChaosReport};
pub use processes::{Processes, Programs};
pub use view::{Progress, View};
