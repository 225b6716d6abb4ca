//! What goes to the terminal, and how.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;
use serde_json::Value;

use super::error::CliError;
use crate::exit::Exit;

/// Widest line of a table on a terminal. Operators have two of them side by side.
pub(super) const COLUMNS: u16 = 100;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) json: bool,
    /// Whether stdout is a terminal: lines are wrapped then, and one record is one line otherwise.
    pub(super) terminal: bool,
    pub(super) colour: bool,
}

impl Style {
    pub(super) fn of_this_process(json: bool) -> Style {
        let terminal = io::stdout().is_terminal();
        // Any value but the empty one counts, as no-color.org has it.
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Style { json, terminal, colour: terminal && wanted && !json }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    pub(super) fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(super) fn warning(self, text: &str) -> String {
        self.paint("1;33", text)
    }

    pub(super) fn good(self, text: &str) -> String {
        self.paint("32", text)
    }
}

/// To stdout. A reader that is gone is no error of ours, but ends the command.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(CliError::ReaderGone),
        Err(error) => Err(CliError::Local { what: "could not write to stdout".to_owned(), source: error.into() }),
    }
}

pub(super) fn print_json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::Local { what: "could not write JSON".to_owned(), source: error.into() })?;
    print(&format!("{text}\n"))
}

/// The end of a command whose exit code is its result: that is what it is, whether or not anybody has read what was `printed` of it.
pub(super) fn result(printed: Result<(), CliError>, exit: Exit) -> Result<Exit, CliError> {
    match printed {
        Ok(()) | Err(CliError::ReaderGone) => Ok(exit),
        Err(error) => Err(error),
    }
}

/// Talk, to stderr.
pub(super) fn say(text: &str) {
    // Nobody may be there to listen; that is no reason not to go on.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// `text` with everything escaped that could move the cursor, hide text or turn it around: it may come from a tenant.
pub(super) fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}');
        match c {
            '\n' => clean.push_str("\\n"),
            '\t' => clean.push_str("\\t"),
            c if c.is_control() || turns => {
                let _ = write!(clean, "\\u{{{:x}}}", u32::from(c));
            }
            c => clean.push(c),
        }
    }
    clean
}

/// Every text in `value`, cleaned: done once, where answers come in, so that nothing that prints can forget it.
pub(super) fn clean_all(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(clean(&text)),
        Value::Array(items) => Value::Array(items.into_iter().map(clean_all).collect()),
        Value::Object(fields) => Value::Object(fields.into_iter().map(|(key, value)| (clean(&key), clean_all(value))).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_fool_a_terminal_is_shown_as_what_it_is() {
        assert_eq!(clean("a\u{1b}[2Jb\r\u{9b}c\u{202e}d\n"), "a\\u{1b}[2Jb\\u{d}\\u{9b}c\\u{202e}d\\n");
        assert_eq!(clean("Größe 10 µs, 実例"), "Größe 10 µs, 実例");
    }
}
