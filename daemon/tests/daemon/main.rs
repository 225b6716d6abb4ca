//! The daemon and its command line, held to what they promise.
#![allow(clippy::unwrap_used, reason = "a test that can't go on should panic")]

mod api;
mod archive;
#[path = "../../../tests/src/beds.rs"]
mod beds;
mod cli;
mod events;
mod installers;
mod jobs;
mod outage;
mod process;
mod schedules;
mod signals;
mod site;
mod units;
mod why;
