//! Proofs in memory: the true engine, several workers at once, and whatever may befall them, in virtual time.
//!
//! A [`Crowd`] of workers shares the memory store and the simulated site. Everything that an activation does passes a
//! [`Gate`], where a [`Fate`] decides what befalls it: nothing, most of the time. Nothing is left to the machine: one thread, a
//! clock turned by hand, chance from a seed. So the same seed gives the same history, to the byte.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

pub mod checker;
pub mod consent;
pub mod coverage;
mod crowd;
mod gate;
pub mod journals;
mod lease;
mod ports;
pub mod promise;
mod sometimes;
mod steps;
pub mod script;
pub mod sim;
pub mod storm;

pub use crowd::{Crowd, LEASE, MORNING, done};
pub use sometimes::Sometimes;
pub use gate::{At, Befalls, Fate, Moment, Point, Undisturbed};
