//! Because the example is what operators copy from: it is complete, good, and tells the true defaults.
#![allow(clippy::unwrap_used)]

use turnaround_config::check_text;

const EXAMPLE: &str = include_str!("../example.toml");

#[test]
fn the_example_is_good() {
    check_text("example.toml", EXAMPLE).unwrap();
}
