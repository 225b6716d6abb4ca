//! Because a wrong path on the command line may name any file: whatever it holds, an answer comes soon and is short.
#![allow(clippy::unwrap_used)]

use turnaround_config::check_text;

/// Large enough that anything quadratic would take minutes.
const FILE_BYTES: usize = 200_000;

/// Fifty problems of a few short lines each, and the last line.
const REPORT_BYTES_MAX: usize = 20_000;

#[test]
fn a_large_file_of_nonsense_gets_a_short_answer() {
    for piece in [
        "a=[", "\u{1}", "[[[[", "= \"x ", "\"", "a = b\n", "x\n", "'''\n", "://@", "{", "k = \"\n", "a.", "pass = \n",
        "[nodes.a]\n", "mac=1,", "ß",
    ] {
        let report = check_text("c.toml", &piece.repeat(FILE_BYTES / piece.len())).unwrap_err();
        assert!(report.to_string().len() < REPORT_BYTES_MAX, "{piece:?}: {report}");
    }
}
