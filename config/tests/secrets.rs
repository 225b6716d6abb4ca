//! Because reports are pasted into chats: whatever is wrong with a file, no secret in it is ever shown.
#![allow(clippy::unwrap_used)]

use turnaround_config::check_text;

/// Stands wherever somebody might put a password.
const CANARY: &str = "Zq7Kx9Wv2Jm4";

/// Pieces of the canary of this length are not shown either: a mistake may cut it in two.
const PIECE: usize = 4;

const FILE: &str = r#"site = "lab"
[openstack]
cloud = "lab"
[netboot]
directory = "/srv"
url = "http://me:Zq7Kx9Wv2Jm4@192.0.2.1/boot"
[store]
url = "redis://:Zq7Kx9Wv2Jm4@192.0.2.5/0"
password = "Zq7Kx9Wv2Jm4"
password_file = "Zq7Kx9Wv2Jm4"
password_credential = "Zq7Kx9Wv2Jm4!"
reply_timeout = "2 s" # password = "Zq7Kx9Wv2Jm4"
[nodes.a]
mac = "x"
bmc = { protocol = "redfish", user = "ops:Zq7Kx9Wv2Jm4", password = 'Zq7Kx9Wv2Jm4', porrt = 3 }
[nodes.b.bmc]
protocol = "ipmi"
pasword = "Zq7Kx9Wv2Jm4"
secret = ["Zq7Kx9Wv2Jm4"]
user = "ops"
"#;

/// Everything that a program could print of what comes back.
fn shown(text: &str) -> String {
    match check_text("test.toml", text) {
        Ok(config) => format!("{config:?}"),
        Err(report) => {
            let problems: String = report.problems().iter().map(|p| format!("{p} {p:?} {} {}", p.reason(), p.help())).collect();
            format!("{report}\n{report:?}\n{}\n{problems}", report.for_stderr())
        }
    }
}

fn assert_silent(shown: &str, text: &str, what: &str) {
    for start in 0..=CANARY.len() - PIECE {
        let piece = &CANARY[start..start + PIECE];
        assert!(!shown.contains(piece), "{what}: `{piece}` is shown\n{text}\n->\n{shown}");
    }
}

#[test]
fn a_file_full_of_passwords_in_the_open_is_reported_without_one_of_them() {
    let report = check_text("test.toml", FILE).unwrap_err();
    assert!(report.count() >= 14, "{report}");
    assert_silent(&shown(FILE), FILE, "as it is");
}

#[test]
fn whichever_character_is_missing_or_wrong_no_secret_is_shown() {
    // Without its colon, `user:password` is a good user name, and nobody could tell.
    let file = FILE.replace(&format!("ops:{CANARY}"), "ops");
    // What is shown on a screen; the other forms are made of the same pieces.
    let check = |text: &str, what: String| match check_text("test.toml", text) {
        Ok(config) => assert_silent(&format!("{config:?}"), text, &what),
        Err(report) => assert_silent(&report.to_string(), text, &what),
    };
    for (at, c) in file.char_indices() {
        let (before, after) = (&file[..at], &file[at + c.len_utf8()..]);
        check(before, format!("cut at {at}"));
        check(&format!("{before}{after}"), format!("without the character at {at}"));
        for other in ['"', '\'', '=', '\n', '#', '[', ']', '{', '}', ',', '\\', ' ', 'x', ':'] {
            check(&format!("{before}{other}{after}"), format!("{other:?} in place of the character at {at}"));
            check(&format!("{before}{other}{c}{after}"), format!("{other:?} before the character at {at}"));
        }
    }
}
