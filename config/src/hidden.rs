//! What is never shown: anything in the file that may be a secret.
//!
//! Because reports are pasted into chats and tickets, and a report quotes the line it speaks of. The file may be broken
//! in any way when this runs, so it trusts no parser: it walks the characters, and where in doubt it hides.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::OnceLock;

use crate::hidden_in_urls::{merged, url_secrets, urls};
use crate::raw::known_keys;

/// Parts of key names whose values are hidden.
const SENSITIVE: [&str; 10] =
    ["pass", "pwd", "secret", "token", "credential", "private", "api_key", "apikey", "api-key", "auth"];

/// A key this similar to `password` is taken for a mistyped one.
const TYPO_SIMILARITY_MIN: f64 = 0.85;

/// Whether the value under this key is hidden.
pub(crate) fn is_sensitive(key: &str) -> bool {
    let key = key.to_lowercase();
    SENSITIVE.iter().any(|word| key.contains(word)) || strsim::jaro_winkler(&key, "password") >= TYPO_SIMILARITY_MIN
}

/// A character that cannot move the cursor, ring, or turn the text around.
pub(crate) fn harmless(c: char) -> char {
    let turns_text = matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    match c {
        '\t' => ' ',
        c if c.is_control() || turns_text => '\u{fffd}',
        c => c,
    }
}

/// The byte ranges of a whole file that may hold a secret, in order, without overlaps.
pub(crate) fn in_file(text: &str) -> Vec<Range<usize>> {
    let mut walk = Walk { text, at: 0, hidden: Vec::new() };
    walk.run();
    let mut hidden = walk.hidden;
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        urls(line, start, &mut hidden);
        start += line.len();
    }
    merged(hidden)
}

/// How a value is treated, by its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Plain,
    /// Shown without credentials.
    Url,
    /// Shown unless somebody has written `user:password`.
    User,
    Unknown,
    Sensitive,
}

/// Where something ends, and whether it was closed there.
struct End {
    at: usize,
    closed: bool,
}

/// Reads settings as TOML has them, from one key to the next. Where the text is no TOML, the rest of the line is hidden:
/// a secret may have come there by a slip.
struct Walk<'t> {
    text: &'t str,
    at: usize,
    hidden: Vec<Range<usize>>,
}

impl Walk<'_> {
    fn run(&mut self) {
        while let Some(c) = self.peek() {
            match c {
                '#' => self.comment(),
                '[' => self.header(),
                c if c.is_whitespace() || matches!(c, ',' | '{' | '}') => self.at += c.len_utf8(),
                _ => self.setting(),
            }
        }
    }

    /// Shown, unless it is a setting that is commented out, or a stray `#` within one.
    fn comment(&mut self) {
        let end = self.line_end();
        let text = &self.text[self.at..end];
        if is_sensitive(text) || text.contains(['=', ':', '"']) {
            self.hidden.push(self.at + 1..end);
        }
        self.at = end;
    }

    /// `[table]`, alone on its line.
    fn header(&mut self) {
        let end = self.line_end();
        let line = &self.text[self.at..end];
        let inside = line.split('#').next().unwrap_or_default().trim_end();
        if inside.ends_with(']') && !inside.contains('=') && inside.matches(['"', '\'']).count().is_multiple_of(2) {
            self.at += inside.len();
        } else {
            self.hide_from(self.at + 1, end);
        }
    }

    /// `a.b = value`
    fn setting(&mut self) {
        let start = self.at;
        let mut sensitive = false;
        let last = loop {
            let word_start = self.at;
            let Some(word) = self.word() else { return self.hide_from(start, self.line_end()) };
            let word = self.text[word_start..word].trim_matches(['"', '\'']);
            sensitive |= is_sensitive(word);
            self.skip_spaces();
            if self.peek() != Some('.') {
                break word;
            }
            self.at += 1;
            self.skip_spaces();
        };
        if !matches!(self.peek(), Some('=' | ':')) {
            // A known word is shown, as it tells what was meant.
            let from = if is_known(last) { self.at } else { start };
            return self.hide_from(from, self.line_end());
        }
        let key = match last {
            _ if sensitive => Key::Sensitive,
            "url" | "endpoint" => Key::Url,
            "user" => Key::User,
            known if is_known(known) => Key::Plain,
            _ => Key::Unknown,
        };
        self.at += 1;
        self.skip_spaces();
        self.value(key);
    }

    fn value(&mut self, key: Key) {
        let start = self.at;
        let hide = matches!(key, Key::Sensitive | Key::Unknown);
        let end = match self.peek() {
            // The keys inside are judged one by one.
            Some('{') if key != Key::Sensitive => return self.at += 1,
            None | Some('\n' | '\r') if hide => return self.hide_from(start, self.next_setting()),
            Some('"' | '\'') => self.string_end(),
            Some('[') => self.list_end(),
            Some(_) | None => self.bare_end(),
        };
        let value = &self.text[start..end.at];
        let suspect = hide
            || is_sensitive(value)
            || (key == Key::User && value.contains(':'))
            || (!end.closed && value.contains(['=', ':', '@']));
        if key == Key::Url {
            url_secrets(value, start, &mut self.hidden);
        }
        self.at = end.at;
        self.skip_spaces();
        let ends_well = matches!(self.peek(), None | Some(',' | '}' | '\n' | '\r' | '#'));
        match (end.closed, suspect) {
            (true, true) if ends_well => self.hidden.push(start..end.at),
            (true, false) if ends_well => {}
            (true, _) => self.hide_from(start, self.line_end()),
            (false, true) => self.hide_from(start, self.next_setting()),
            // What was to be in this value may go on below.
            (false, false) => self.hide_from(self.line_end(), self.next_setting()),
        }
    }

    fn hide_from(&mut self, from: usize, to: usize) {
        self.hidden.push(from..to);
        self.at = to;
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn skip_spaces(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start_matches([' ', '\t']).len();
    }

    fn line_end(&self) -> usize {
        self.text[self.at..].find('\n').map_or(self.text.len(), |n| self.at + n)
    }

    /// The end of this line and of all that follow and do not begin anything that could be TOML.
    fn next_setting(&self) -> usize {
        let mut at = self.line_end();
        while let Some(below) = self.text.get(at + 1..).filter(|below| !below.is_empty()) {
            let line = below.lines().next().unwrap_or_default();
            let key = line.split_once('=').map(|(key, _)| key.trim());
            let is_key = |key: &str| {
                !key.is_empty() && key.chars().all(|c| is_bare(c) || matches!(c, '.' | '"' | '\'' | ' '))
            };
            if line.trim().is_empty() || line.starts_with(['[', '#']) || key.is_some_and(is_key) {
                return at;
            }
            at += 1 + line.len();
        }
        self.text.len()
    }

    /// Steps over a bare or quoted word and returns its end; `None` if there is none.
    fn word(&mut self) -> Option<usize> {
        let end = match self.peek()? {
            '"' | '\'' => self.string_end(),
            c if is_bare(c) => {
                let rest = &self.text[self.at..];
                End { at: self.at + rest.find(|c| !is_bare(c)).unwrap_or(rest.len()), closed: true }
            }
            _ => return None,
        };
        self.at = end.at;
        end.closed.then_some(end.at)
    }

    /// A number, true, false, or a text whose quotes were forgotten.
    fn bare_end(&self) -> End {
        let line = &self.text[self.at..self.line_end()];
        let stop = line.find([',', '}', '#']).unwrap_or(line.len());
        let bare = line[..stop].trim_end();
        let misplaced = bare.is_empty() && line[stop..].starts_with([',', '}']);
        if bare.contains(['"', '\'']) || misplaced {
            return End { at: self.line_end(), closed: false };
        }
        End { at: self.at + bare.len(), closed: true }
    }

    /// Behind the string that begins here.
    fn string_end(&self) -> End {
        let rest = &self.text[self.at..];
        let (within, quote, escapes) = match rest {
            _ if rest.starts_with("\"\"\"") => (rest, "\"\"\"", true),
            _ if rest.starts_with("'''") => (rest, "'''", false),
            _ if rest.starts_with('"') => (&self.text[self.at..self.line_end()], "\"", true),
            _ => (&self.text[self.at..self.line_end()], "'", false),
        };
        match closing(within, quote, escapes) {
            Some(n) => End { at: self.at + n, closed: true },
            None => End { at: self.at + within.len(), closed: false },
        }
    }

    /// Behind the list that begins here, its lists and strings skipped.
    fn list_end(&self) -> End {
        let mut inner = Walk { text: self.text, at: self.at, hidden: Vec::new() };
        let mut depth = 0;
        while let Some(c) = inner.peek() {
            match c {
                '"' | '\'' => {
                    let end = inner.string_end();
                    if !end.closed {
                        break;
                    }
                    inner.at = end.at;
                    continue;
                }
                '[' => depth += 1,
                ']' => depth -= 1,
                '=' => break,
                _ => {}
            }
            inner.at += c.len_utf8();
            if depth == 0 {
                return End { at: inner.at, closed: true };
            }
        }
        End { at: self.line_end(), closed: false }
    }
}

fn closing(text: &str, quote: &str, escapes: bool) -> Option<usize> {
    let mut at = quote.len();
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with(quote) {
            // `""""` closes with a quote as its last character.
            let extra = if quote.len() == 3 { rest[3..].chars().take_while(|c| quote.starts_with(*c)).count() } else { 0 };
            return Some(at + quote.len() + extra);
        }
        let mut chars = rest.chars();
        let first = chars.next().map_or(1, char::len_utf8);
        let escaped = if escapes && rest.starts_with('\\') { chars.next().map_or(0, char::len_utf8) } else { 0 };
        at += first + escaped;
    }
    None
}

fn is_bare(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '-'
}

/// Whether some table has this key. What stands under any other key may be anything.
fn is_known(key: &str) -> bool {
    static KNOWN: OnceLock<BTreeSet<String>> = OnceLock::new();
    let last = |path: String| path.rsplit('.').next().unwrap_or_default().to_owned();
    let known = KNOWN.get_or_init(|| known_keys().into_iter().map(last).collect());
    known.contains(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text with everything hidden shown as `***`.
    fn shown(text: &str) -> String {
        let mut out = text.to_owned();
        for range in in_file(text).into_iter().rev() {
            out.replace_range(range, "***");
        }
        out
    }

    #[test]
    fn whatever_form_a_password_is_written_in_it_is_hidden() {
        for text in [
            "password = \"canary\"",
            "password = 'canary'",
            "password = canary",
            "password=\"can\\\"ary\" # canary pass",
            "\"password\" = \"canary\"",
            "bmc.password = \"canary\"",
            "password.url = \"canary\"",
            "password: \"canary\"",
            "password \"canary\"",
            "password = \"canary",
            "password = \"ca\"nary\"",
            "password = \"\"\"\ncanary\ncanary\"\"\"",
            "password = '''\ncanary\n",
            "password = [\"x\",\n \"canary\"]",
            "pasword = \"canary\"",
            "Admin_Passwd = \"canary\"",
            "token = \"canary\"",
            "surprise = \"canary\"",
            "= \"canary\"",
            "url = = \"canary\"",
            "bmc = { user = \"admin\", password = \"canary\", port = 1 }",
            "password_file = \"canary\"",
            "url = \"redis://:canary@192.0.2.1/\"",
            "url = \"redis://user:can@ary@192.0.2.1/\"",
            "url = \"redis://user:can/canary@192.0.2.1/\"",
            "url = \"unix:///run/redis.sock?db=1&pass=canary\"",
            "slots = 3 # was with password canary",
        ] {
            let shown = shown(text);
            assert!(!shown.contains("canary") && !shown.contains("nary"), "{text}\n-> {shown}");
        }
    }

    #[test]
    fn what_is_no_secret_stays_readable() {
        for text in [
            "slots = 3 # as many as fit",
            "[nodes.gpu-01]\nmac = \"aa\" # it's the first\nnova_host = \"x\"",
            "bmc = { protocol = \"redfish\", url = \"https://192.0.2.1\", user = \"admin\" }",
            "nodes = [\"gpu-01\", \"gpu-02\"]\nimage = \"noble\"",
            "cron = \"30 2 * * *\"\ntimezone = 'Europe/Berlin'",
        ] {
            assert_eq!(shown(text), text);
        }
        assert_eq!(shown("password = \"x\"\nslots = 3"), "password = ***\nslots = 3");
    }

    #[test]
    fn broken_text_of_any_kind_is_walked_to_its_end() {
        for text in ["\"", "'''", "\"\"\"\\", "[[[", "a = [", "=", "ü = \"\\", "é.ß = {", "password", "://", "x=://@"] {
            in_file(text);
        }
    }
}
