//! The simulated site's servers, the lab, crash points and proofs.
#![allow(clippy::unwrap_used)]

pub mod otlp;
pub mod sim;
