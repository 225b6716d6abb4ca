//! The simulated site.
