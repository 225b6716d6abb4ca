//! What is never shown: anything in the file that may be a secret.
//!
//! Because reports are pasted into chats and tickets, and a report quotes the line it speaks of. The file may be broken
//! in any way when this runs, so it trusts no parser: it walks the characters, and where in doubt it hides.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::OnceLock;

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

/// `redis://user:***@host`: whatever a URL in `text` says before an `@`, and passwords in its query.
pub(crate) fn mask_urls(text: &str) -> String {
    let mut ranges = Vec::new();
    urls(text, 0, &mut ranges);
    let mut masked = String::new();
    let mut from = 0;
    for range in merged(ranges) {
        masked.push_str(&text[from..range.start]);
        masked.push_str("***");
        from = range.end;
    }
    masked + &text[from..]
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

struct Walk<'t> {
    text: &'t str,
    at: usize,
    hidden: Vec<Range<usize>>,
}

impl Walk<'_> {
    fn run(&mut self) {
        // Set while the parts of a dotted key are read: one secret part makes the value secret.
        let mut secret_path = false;
        while let Some(c) = self.peek() {
            let start = self.at;
            match c {
                '#' => {
                    self.at = self.line_end();
                    if is_sensitive(&self.text[start..self.at]) {
                        self.hidden.push(start + 1..self.at);
                    }
                    continue;
                }
                '"' | '\'' => self.at = self.string_end(),
                c if is_bare(c) => self.at = self.bare_end(),
                c => {
                    self.at += c.len_utf8();
                    // A value or a second `=` with no key that we know before it.
                    if c == '=' {
                        self.hide_value();
                    }
                    continue;
                }
            }
            let word = self.text[start..self.at].trim_matches(['"', '\'']);
            let secret = is_sensitive(word);
            self.skip_spaces();
            match self.peek() {
                Some('.') => {
                    secret_path |= secret;
                    self.at += 1;
                }
                Some('=' | ':') => {
                    self.at += 1;
                    if secret || secret_path || !is_known(word) {
                        self.hide_value();
                    } else {
                        self.skip_value();
                    }
                    secret_path = false;
                }
                // `password "..."` and the like: no TOML, but quite possibly a secret.
                Some(next) if secret && next != ']' => {
                    let end = self.line_end();
                    self.hidden.push(self.at..end);
                    self.at = end;
                }
                Some(_) | None => secret_path = false,
            }
        }
    }

    /// Hides the value that begins here, and whatever stands behind it where nothing should.
    fn hide_value(&mut self) {
        self.skip_spaces();
        let start = self.at;
        match self.peek() {
            Some('{') | None => return, // The keys inside are judged one by one.
            Some('"' | '\'') => self.at = self.string_end(),
            Some('[') => self.at = self.list_end(),
            Some(_) => self.at = self.line_end(),
        }
        let end = self.at;
        self.skip_spaces();
        if !matches!(self.peek(), None | Some(',' | '}' | ']' | '\n' | '\r' | '#')) {
            self.at = self.line_end();
            self.hidden.push(start..self.at);
        } else {
            self.hidden.push(start..end);
        }
    }

    /// A string under a known key is no key itself.
    fn skip_value(&mut self) {
        self.skip_spaces();
        if matches!(self.peek(), Some('"' | '\'')) {
            self.at = self.string_end();
        }
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn skip_spaces(&mut self) {
        self.at += self.text[self.at..].len() - self.text[self.at..].trim_start_matches([' ', '\t']).len();
    }

    fn line_end(&self) -> usize {
        self.text[self.at..].find('\n').map_or(self.text.len(), |n| self.at + n)
    }

    fn bare_end(&self) -> usize {
        self.text[self.at..].find(|c| !is_bare(c)).map_or(self.text.len(), |n| self.at + n)
    }

    /// Behind the string that begins here; the end of the line (or of the file) where it is not closed.
    fn string_end(&self) -> usize {
        let rest = &self.text[self.at..];
        for (quote, escapes) in [("\"\"\"", true), ("'''", false)] {
            if rest.starts_with(quote) {
                return closing(rest, quote, escapes).map_or(self.text.len(), |n| self.at + n);
            }
        }
        let (quote, escapes) = if rest.starts_with('"') { ("\"", true) } else { ("'", false) };
        let line = &self.text[self.at..self.line_end()];
        closing(line, quote, escapes).map_or(self.line_end(), |n| self.at + n)
    }

    /// Behind the list that begins here, its lists and strings skipped.
    fn list_end(&self) -> usize {
        let mut inner = Walk { text: self.text, at: self.at, hidden: Vec::new() };
        let mut depth = 0;
        while let Some(c) = inner.peek() {
            match c {
                '"' | '\'' => {
                    inner.at = inner.string_end();
                    continue;
                }
                '[' => depth += 1,
                ']' => depth -= 1,
                _ => {}
            }
            inner.at += c.len_utf8();
            if depth == 0 {
                return inner.at;
            }
        }
        self.text.len()
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

fn urls(line: &str, offset: usize, hidden: &mut Vec<Range<usize>>) {
    let mut from = 0;
    while let Some(found) = line[from..].find("://") {
        let start = from + found + 3;
        let end = line[start..].find(['"', '\'', '\n']).map_or(line.len(), |n| start + n);
        // Up to the last `@` before the next blank: a password may itself contain `@` and `/`.
        if let Some(at) = line[start..end].rfind('@') {
            hidden.push(offset + start..offset + start + at);
        }
        for parameter in line[start..end].match_indices(['?', '&', ';']).map(|(n, _)| start + n + 1) {
            let stop = line[parameter..end].find(['&', ';', '#']).map_or(end, |n| parameter + n);
            if let Some((name, value)) = line[parameter..stop].split_once('=')
                && is_sensitive(name)
            {
                hidden.push(offset + stop - value.len()..offset + stop);
            }
        }
        from = end.max(start);
    }
}

fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            Some(_) | None => merged.push(range),
        }
    }
    merged
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
    fn masked(text: &str) -> String {
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
            let shown = masked(text);
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
            assert_eq!(masked(text), text);
        }
        assert_eq!(masked("password = \"x\"\nslots = 3"), "password = ***\nslots = 3");
        assert_eq!(mask_urls("redis://u:p@h/1 and rest"), "redis://***@h/1 and rest");
    }

    #[test]
    fn broken_text_of_any_kind_is_walked_to_its_end() {
        for text in ["\"", "'''", "\"\"\"\\", "[[[", "a = [", "=", "ü = \"\\", "é.ß = {", "password", "://", "x=://@"] {
            in_file(text);
        }
    }
}
