//! Decides when: schedules, background jobs, the API, and the command that an operator types.
//!
//! The daemon touches nothing but the store. Every effect on the outside world is a worker's.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod alarms;
pub mod api;
pub mod archive;
pub mod boot;
pub mod cli;
pub mod exit;
pub mod feed;
pub mod high_water_file;
pub mod installers;
pub mod jobs;
mod renewing;
pub mod schedule;
pub mod service;
pub mod store_watch;
pub mod systemd;
pub mod tick_log;
pub mod why;
pub mod wire;
