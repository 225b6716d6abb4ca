//! The systemd units: understood by systemd to the last key, and caged.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::beds;

/// What systemd-analyze calls exposure, in tenths: 11 is 1.1. Below a networked service hardly comes; redis-server as Debian
/// has it is at 1.2, sshd at 9.6.
const EXPOSURE_MAX: u32 = 11;

fn unit(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}

/// The units in a folder, with programs that exist here; None where there is no systemd-analyze.
fn prepared(test: &str) -> Option<(tempfile::TempDir, [PathBuf; 2])> {
    if Command::new("systemd-analyze").arg("--version").stdout(Stdio::null()).status().is_err() {
        beds::skip("systemd", test, "systemd-analyze is not installed, so the units are not checked");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_turnaround-daemon");
    let written = [
        ("turnaround-daemon.service", unit("daemon/systemd/turnaround-daemon.service")),
        ("turnaround-worker@1.service", unit("worker/systemd/turnaround-worker@.service")),
    ]
    .map(|(name, text)| {
        let text = text.replace("/usr/bin/turnaround-daemon", program).replace("/usr/bin/turnaround-worker", program);
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    });
    Some((folder, written))
}

fn analyze(arguments: &[&str], unit: &Path) -> Output {
    Command::new("systemd-analyze").args(arguments).arg(unit).output().unwrap()
}

#[test]
fn systemd_understands_every_line() {
    let Some((_folder, units)) = prepared("systemd_understands_every_line") else { return };
    for unit in units {
        let output = analyze(&["verify", "--man=no"], &unit);
        let said = String::from_utf8(output.stderr).unwrap();
        // It exits 0 also where it ignores a key.
        assert!(output.status.success() && said.is_empty(), "{}: {said}", unit.display());
    }
}

#[test]
fn the_units_are_as_caged_as_a_service_with_a_network_can_be() {
    let Some((_folder, units)) = prepared("the_units_are_as_caged_as_a_service_with_a_network_can_be") else { return };
    for unit in units {
        let output = analyze(&["security", "--offline=true", "--no-pager", &format!("--threshold={EXPOSURE_MAX}")], &unit);
        assert!(output.status.success(), "{}: {}", unit.display(), String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn operators_are_not_hidden_from_the_daemon_behind_a_user_namespace() {
    let daemon = unit("daemon/systemd/turnaround-daemon.service");
    assert!(daemon.lines().any(|line| line == "PrivateUsers=no"));
    assert!(daemon.lines().any(|line| line == "RestartPreventExitStatus=78"));
}
