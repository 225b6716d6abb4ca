//! The store in memory: for simulation, rehearsal and tests.
