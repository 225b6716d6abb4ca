//! Tests against real counterparts need something that may not be here. Without it they are skipped, and where that must not be they fail.
//!
//! `.ci/beds up` brings up a real Ironic, a Redfish emulator and a real Nova with three hosts that fail on demand (`ironic`, `redfish`, `nova`, `nova-faults`,
//! `nova-paged`), and prints what to export; `.ci/run` uses them.
//!
//! `TURNAROUND_REQUIRE_BEDS` is a list such as `ipmi,ssh`, or `all`. Test programs of other crates have this file by its path: it is no part of the product, and
//! needs nothing.
#![allow(unreachable_pub, dead_code, reason = "public in the crate that it belongs to, and used in part elsewhere")]

/// Every bed: what the tests need, in one word.
pub const BEDS: [&str; 16] = [
    "alertmanager",
    "grub",
    "ipmi",
    "ironic",
    "kubernetes",
    "metal",
    "nova",
    "nova-faults",
    "nova-paged",
    "openssl",
    "redfish",
    "redis",
    "sentinel",
    "small-disk",
    "ssh",
    "systemd",
];

/// Tells in a plain line that `test` is skipped for want of `bed`, and `how` that is had.
///
/// # Panics
/// Where the bed is required, and where a word is none: a mistyped one would require nothing.
pub fn skip(bed: &str, test: &str, how: &str) {
    let list = std::env::var("TURNAROUND_REQUIRE_BEDS").unwrap_or_default();
    assert!(!is_required(bed, &list), "{test}: bed `{bed}` is required (TURNAROUND_REQUIRE_BEDS={list}) and missing: {how}");
    eprintln!("skipped: {test}: {how}");
}

/// # Panics
/// Where a word is no bed.
pub fn is_required(bed: &str, list: &str) -> bool {
    assert!(BEDS.contains(&bed), "`{bed}` is no bed: add it to BEDS");
    let words: Vec<&str> = list.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    for word in &words {
        assert!(*word == "all" || BEDS.contains(word), "TURNAROUND_REQUIRE_BEDS: `{word}` is no bed: write `all`, or some of {}", BEDS.join(","));
    }
    words.iter().any(|word| *word == "all" || *word == bed)
}
