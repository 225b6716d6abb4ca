//! The engine of Turnaround, the store under it, and the updates above it.
//!
//! `engine` knows no update, `ports` names no vendor, only `store::redis` knows a key, only `clock` asks for the time.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod chance;
pub mod clock;
pub mod engine;
pub mod history;
pub mod ports;
pub mod rehearsal;
pub mod steps;
pub mod store;
pub mod telemetry;
pub mod updates;
