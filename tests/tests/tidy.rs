//! What the architecture promises and text can show.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use turnaround_tests::beds::{self, BEDS};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every Rust file below `folder`, with its text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "there are sources in {folder}");
    found
}

/// The files below `folder` in which a line of code (no comment) has one of `words`.
fn naming(folder: &str, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in sources(folder) {
        for (number, line) in text.lines().enumerate() {
            let code = line.trim_start();
            if !code.starts_with("//") && words.iter().any(|word| code.contains(word)) {
                found.push(format!("{name}:{}: {code}", number + 1));
            }
        }
    }
    found
}

fn none(found: Vec<String>, why: &str) {
    assert!(found.is_empty(), "{why}:\n{}", found.join("\n"));
}

#[test]
fn the_engine_knows_no_update() {
    let found = naming("workflows/src/engine", &["crate::updates", "crate::steps", "crate::rehearsal"]);
    none(found, "the engine names an update, a step or the simulation");
}

#[test]
fn ports_name_no_vendor() {
    none(naming("workflows/src/ports", &["reqwest", "Redfish", "Ipmi", "Openstack"]), "a port names a vendor or a library");
    none(naming("workflows/src/steps", &["reqwest", "Redfish", "ipmitool", "std::process"]), "a step speaks to a vendor itself");
}

#[test]
fn only_the_redis_store_knows_a_key() {
    let mut found = Vec::new();
    for folder in ["config/src", "workflows/src", "daemon/src", "worker/src"] {
        found.extend(naming(folder, &["\"{ta}", "{ta}:"]));
    }
    found.retain(|line| !line.starts_with("workflows/src/store/redis/") && !line.starts_with("workflows/src/store/tests/"));
    none(found, "a Redis key outside the Redis store");
}

#[test]
fn the_daemon_reaches_nothing_but_redis_and_its_socket() {
    let manifest = std::fs::read_to_string(root().join("daemon/Cargo.toml")).unwrap();
    assert!(!manifest.contains("turnaround-worker"), "the daemon depends on the worker");
    let manifest = std::fs::read_to_string(root().join("worker/Cargo.toml")).unwrap();
    assert!(!manifest.contains("turnaround-daemon"), "the worker depends on the daemon");
    none(naming("daemon/src", &["ports::", "clouds_file", "password_file"]), "the daemon reaches for the outside world");
}

/// The one shell there is runs a fixed text, which gets every word of ours as an argument: what hands a run of the setup script over.
const THE_RUNNER: &str = r#".args(["sh", "-c", RUNNER, "turnaround-setup"])"#;

#[test]
fn no_shell_is_ever_started_with_words_from_elsewhere() {
    let mut found = Vec::new();
    for folder in ["config/src", "workflows/src", "daemon/src", "worker/src"] {
        found.extend(naming(folder, &["Command::new(\"sh\")", "Command::new(\"bash\")", "\"/bin/sh\"", "\"-c\""]));
    }
    let runner = std::fs::read_to_string(root().join("worker/src/adapters/setup_script.rs")).unwrap();
    assert!(runner.contains(THE_RUNNER) && runner.contains("const RUNNER: &str = r#\""), "the runner is not a fixed text any more");
    found.retain(|place| !place.contains("worker/src/adapters/setup_script.rs"));
    assert_eq!(runner.matches("\"-c\"").count(), 1, "a second shell in setup_script.rs");
    none(found, "a shell");
}

#[test]
fn the_top_level_is_as_agreed() {
    let agreed = ["Cargo.toml", "Cargo.lock", "LICENSE", "README.md", "config", "daemon", "docs", "tests", "worker", "workflows", "target"];
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.starts_with('.') && !agreed.contains(&name.as_str()) {
            found.push(name);
        }
    }
    none(found, "beyond the agreed top level");
}

/// A name that is mistyped there would require nothing, and no test would say so.
#[test]
fn what_every_change_is_tested_against_are_beds() {
    let run = std::fs::read_to_string(root().join(".ci/run")).unwrap();
    // `=LIST` or `+=,LIST`.
    let lists: Vec<&str> = run.split("TURNAROUND_REQUIRE_BEDS").skip(1).filter_map(|rest| rest.split_once('=')?.1.split_whitespace().next()).collect();
    assert!(lists.len() > 1, "{lists:?}");
    for list in lists {
        for word in list.split(',').filter(|word| !word.is_empty()) {
            assert!(beds::is_required(word, list));
        }
    }
    assert!(BEDS.iter().all(|bed| beds::is_required(bed, "all") && !beds::is_required(bed, "")));
    assert!(!beds::is_required("nova", "nova-faults, ssh") && beds::is_required("ssh", "nova-faults, ssh"));
    assert!(std::panic::catch_unwind(|| beds::is_required("ssh", "ssh,impi")).is_err());
}
