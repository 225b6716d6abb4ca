//! The configuration file of Turnaround: read once, checked wholly, every problem shown at once.
//!
//! Because a mistake found at 3 a.m. in the middle of a rollout is the expensive kind, nothing starts until
//! the whole file is good, and every mistake in it is shown together, each with what to write instead.
//!
//! The way of a file: `read` walks what was written into the tables of `raw` and notes unknown keys and wrong types;
//! `check` gives them meaning, by `values` and within `limits`; a [`Config`] is what comes out when `problems` stayed
//! empty, and a [`Report`] otherwise. `hidden` keeps secrets out of everything that is shown.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod check;
mod config;
mod cron_expression;
mod hidden;
mod hidden_in_urls;
mod length;
mod limits;
mod names;
mod nearest;
mod pattern;
mod problems;
mod raw;
mod read;
mod report;
mod schedule;
mod secret;
mod values;

pub use check::{check, check_text};
pub use config::*;
pub use length::{NotALength, parse_length, show_length};
pub use names::*;
pub use pattern::pattern_fits;
pub use raw::known_keys;
pub use report::{Problem, Report};
pub use schedule::*;
pub use secret::*;
