//! The simulated site over its vendors' protocols, what holds the product to its promises, and the lab.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

pub mod beds;
pub mod bench;
pub mod campaign;
pub mod harness;
pub mod history;
pub mod lab;
pub mod metal;
pub mod otlp;
pub mod renewal;
pub mod servers;
pub mod site;
