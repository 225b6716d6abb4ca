//! The campaign: real processes on a real Redis, a simulated site that speaks the real protocols, operators at work, and faults
//! of many kinds at once. Then everything is mended, and what is left is judged by the site's own log and by what every process
//! wrote of itself.

mod desk;
mod clock;
mod disk;
mod evidence;
mod faults;
mod ledger;
mod operators;
pub mod planted;
pub mod recovery;
mod report;
mod run;
mod stage;
mod tail;
mod wire;

pub use faults::Fault;
pub use report::{json, tell};
pub use run::{Campaign, Outcome};
pub use stage::Scale;
pub use tail::TAIL_MAX;
