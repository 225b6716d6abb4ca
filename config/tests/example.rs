//! Because the example is what operators copy from: it is complete, good, and tells the true defaults.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use turnaround_config::{check_text, known_keys};

const EXAMPLE: &str = include_str!("../example.toml");

/// `key = value` of the example, or `#key = value`.
struct Setting {
    line: usize,
    /// The dotted name, with `NAME` for names of the operator's choice.
    path: String,
    commented: bool,
    /// The text above it says that it is required.
    required: bool,
}

fn settings() -> Vec<Setting> {
    let mut table = String::new();
    let mut required = false;
    let mut all = Vec::new();
    for (line, text) in EXAMPLE.lines().enumerate() {
        let commented = text.starts_with('#') && !text.starts_with("# ") && text != "#";
        let text = if commented { &text[1..] } else { text };
        if let Some(header) = text.strip_prefix('[') {
            table = generic(header.trim_end_matches(']'));
            required = false;
        } else if let Some((key, _)) = text.split_once(" = ").filter(|_| !text.starts_with('#')) {
            let path = if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") };
            all.push(Setting { line, path, commented, required });
        } else if text.is_empty() {
            required = false;
        }
        required |= text.starts_with("# Required");
    }
    all
}

/// `nodes.gpu-01.bmc` becomes `nodes.NAME.bmc`.
fn generic(table: &str) -> String {
    let mut parts: Vec<&str> = table.split('.').collect();
    if matches!(parts[0], "checks" | "images" | "moves" | "nodes" | "schedules") {
        parts[1] = "NAME";
    }
    parts.join(".")
}

/// The example with these lines changed.
fn example_with(change: impl Fn(usize, &str) -> Option<String>) -> String {
    EXAMPLE.lines().enumerate().filter_map(|(n, text)| change(n, text)).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_is_good() {
    check_text("example.toml", EXAMPLE).unwrap();
}

#[test]
fn the_example_has_every_key_that_there_is() {
    let shown: BTreeSet<String> = settings().into_iter().map(|setting| setting.path).collect();
    let known: BTreeSet<String> = known_keys().into_iter().collect();
    assert_eq!(shown, known);
}

#[test]
fn every_setting_in_the_example_is_either_required_or_the_default() {
    let whole = format!("{:?}", check_text("example.toml", EXAMPLE).unwrap());
    for setting in settings().iter().filter(|setting| !setting.commented) {
        let without = example_with(|n, text| (n != setting.line).then(|| text.to_owned()));
        match check_text("example.toml", &without) {
            Ok(config) => {
                assert_eq!(format!("{config:?}"), whole, "`{}` is not the default", setting.path);
                assert!(!setting.required, "`{}` is not required", setting.path);
            }
            Err(report) => assert!(setting.required, "`{}` is required:\n{report}", setting.path),
        }
    }
}

/// Adjacent commented lines are meant together.
#[test]
fn every_commented_alternative_in_the_example_is_good_when_it_is_taken() {
    let lines: Vec<Setting> = settings().into_iter().filter(|setting| setting.commented).collect();
    let mut blocks: Vec<Vec<&Setting>> = Vec::new();
    for setting in &lines {
        match blocks.last_mut() {
            Some(block) if block.last().is_some_and(|last| last.line + 1 == setting.line) => block.push(setting),
            Some(_) | None => blocks.push(vec![setting]),
        }
    }
    assert!(blocks.len() >= 5, "only {} found", blocks.len());
    for block in blocks {
        let takes_url = block.iter().any(|setting| matches!(setting.path.as_str(), "store.url" | "store.sentinel"));
        let taken = example_with(|n, text| match text {
            text if block.iter().any(|setting| setting.line == n) => Some(text[1..].to_owned()),
            text if takes_url && text.starts_with("embedded_program") => None,
            text => Some(text.to_owned()),
        });
        check_text("example.toml", &taken).unwrap();
    }
}

#[test]
fn the_example_shows_no_credentials_and_only_documentation_addresses() {
    for line in EXAMPLE.lines().filter(|line| !line.starts_with("# ")) {
        assert!(!line.trim_start_matches('#').starts_with("password ="), "{line}");
        if let Some((_, host)) = line.split_once("://") {
            assert!(host.starts_with("192.0.2.") || host.starts_with("127.0.0.1"), "{line}");
        }
    }
}

/// What is not in the file has the defaults that the example tells.
#[test]
fn the_smallest_file_means_the_same_as_the_example_section_by_section() {
    let smallest = "site = \"example-cloud\"\n\
        openstack.cloud = \"example-cloud\"\n\
        netboot = { directory = \"/srv/netboot/nodes\", url = \"http://192.0.2.1/boot\" }\n";
    let (small, whole) = (check_text("a", smallest).unwrap(), check_text("b", EXAMPLE).unwrap());
    assert_eq!(small.state_dir, whole.state_dir);
    for (small, whole) in [
        (format!("{:?}", small.store), format!("{:?}", whole.store)),
        (format!("{:?}", small.daemon), format!("{:?}", whole.daemon)),
        (format!("{:?}", small.worker), format!("{:?}", whole.worker)),
        (format!("{:?}", small.openstack), format!("{:?}", whole.openstack)),
        (format!("{:?}", small.netboot), format!("{:?}", whole.netboot)),
        (format!("{:?}", small.ssh), format!("{:?}", whole.ssh)),
        (format!("{:?}", small.ipmi), format!("{:?}", whole.ipmi)),
        (format!("{:?}", small.node_os), format!("{:?}", whole.node_os)),
        (format!("{:?}", small.telemetry), format!("{:?}", whole.telemetry)),
    ] {
        assert_eq!(small, whole);
    }
}

/// What the page on checks offers can be copied as it stands.
#[test]
fn the_checks_that_are_recommended_are_understood() {
    let page = include_str!("../../docs/checks.md");
    let blocks: Vec<&str> = page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect();
    let smallest = "site = \"example-cloud\"\nopenstack.cloud = \"example-cloud\"\n\
        netboot = { directory = \"/srv/netboot/nodes\", url = \"http://192.0.2.1/boot\" }\n";
    let config = check_text("checks.md", &format!("{smallest}{}", blocks.concat())).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(config.checks.len(), page.matches("[checks.").count());
}
