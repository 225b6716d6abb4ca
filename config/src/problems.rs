//! The problems found so far, and the ways in which a check meets one.
//!
//! Because every check goes on after a problem, each of these helpers notes it and answers `None`.

use std::ops::Range;
use std::time::Duration;

use crate::hidden;
use crate::hidden_in_urls;
use crate::length::{parse_length, show_length};
use crate::limits::Limits;
use crate::read::{Field, Found, Here, Timespan, Written};
use crate::report::{Problem, Report};

/// Bytes of the file, from and to.
pub(crate) type Span = Range<usize>;

/// Longest piece of the operator's own text that is repeated in a message.
const SHOWN_CHARS_MAX: usize = 80;

/// Problems that are noted. Nobody mends more in one go, and a wrong file may have one in every line.
pub(crate) const NOTED_MAX: usize = 1000;

/// Why a value was refused, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) reason: String,
    pub(crate) help: String,
    /// The part of the value that is meant, in bytes of its text.
    pub(crate) within: Option<Span>,
}

impl Wrong {
    pub(crate) fn new(reason: impl Into<String>, help: impl Into<String>) -> Wrong {
        Wrong { reason: reason.into(), help: help.into(), within: None }
    }
}

/// Collects problems while one text is checked.
pub(crate) struct Problems<'t> {
    text: &'t str,
    found: Vec<(Option<Span>, String, String)>,
}

impl<'t> Problems<'t> {
    pub(crate) fn new(text: &'t str) -> Problems<'t> {
        Problems { text, found: Vec::new() }
    }

    pub(crate) fn text(&self) -> &'t str {
        self.text
    }

    /// The line of a place, from 1.
    pub(crate) fn line(&self, at: &Span) -> usize {
        self.text.as_bytes()[..at.start.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(crate) fn add(&mut self, at: &Span, reason: impl Into<String>, help: impl Into<String>) {
        self.note(Some(at.clone()), reason.into(), help.into());
    }

    /// For what is not in the file at all.
    pub(crate) fn add_nowhere(&mut self, reason: impl Into<String>, help: impl Into<String>) {
        self.note(None, reason.into(), help.into());
    }

    fn note(&mut self, at: Option<Span>, reason: String, help: String) {
        if self.found.len() < NOTED_MAX {
            self.found.push((at, reason, help));
        }
    }

    /// The operator's own words, made fit to be shown: no secrets, no control characters, not too long.
    pub(crate) fn show(&self, text: &str) -> String {
        show(text)
    }

    /// The same in quotes.
    pub(crate) fn show_value(&self, text: &str) -> String {
        format!("\"{}\"", show(text))
    }

    /// What `parse` makes of the value; a refusal is noted at its place.
    pub(crate) fn take<T, U>(
        &mut self,
        written: &Written<T>,
        parse: impl FnOnce(&T) -> Result<U, Wrong>,
    ) -> Option<U> {
        match parse(&written.value) {
            Ok(meant) => Some(meant),
            Err(wrong) => {
                let at = self.part(&written.span, wrong.within);
                self.add(&at, wrong.reason, wrong.help);
                None
            }
        }
    }

    /// Like `take`, with a default for what is not written.
    pub(crate) fn or<T, U>(
        &mut self,
        field: &Field<T>,
        default: impl FnOnce() -> U,
        parse: impl FnOnce(&T) -> Result<U, Wrong>,
    ) -> Option<U> {
        match &field.found {
            Found::Nothing => Some(default()),
            Found::Unreadable => None,
            Found::Written(written) => self.take(written, parse),
        }
    }

    /// Like `take`, for a key that may be left out.
    pub(crate) fn maybe<T, U>(
        &mut self,
        field: &Field<T>,
        parse: impl FnOnce(&T) -> Result<U, Wrong>,
    ) -> Option<Option<U>> {
        self.or(field, || None, |value| parse(value).map(Some))
    }

    /// Like `take`, for a key that must be there. `example` is a value in TOML.
    pub(crate) fn need<T, U>(
        &mut self,
        here: &Here,
        field: &Field<T>,
        example: &str,
        parse: impl FnOnce(&T) -> Result<U, Wrong>,
    ) -> Option<U> {
        match &field.found {
            Found::Nothing => {
                self.missing(here, field.key, example);
                None
            }
            Found::Unreadable => None,
            Found::Written(written) => self.take(written, parse),
        }
    }

    /// A number within its limits.
    pub(crate) fn count<N: TryFrom<u64>>(&mut self, field: &Field<i64>, limits: &Limits<u64>) -> Option<N> {
        let narrow = |n: u64| N::try_from(n).ok();
        let number = self.or(field, || Some(limits.default), |n| match u64::try_from(*n) {
            Ok(n) if (limits.least..=limits.most).contains(&n) => Ok(Some(n)),
            Ok(_) | Err(_) => Err(out_of_range(&field.path, &limits.least.to_string(), &limits.most.to_string(), "")),
        });
        number.flatten().and_then(narrow)
    }

    /// A length of time within its limits.
    pub(crate) fn length(&mut self, field: &Field<Timespan>, limits: &Limits<Duration>) -> Option<Duration> {
        self.or(field, || limits.default, |text| {
            let length = parse_length(&text.0).map_err(|wrong| Wrong::new(wrong.to_string(), wrong.help()))?;
            if (limits.least..=limits.most).contains(&length) {
                return Ok(length);
            }
            Err(out_of_range(&field.path, &show_length(limits.least), &show_length(limits.most), "\""))
        })
    }

    pub(crate) fn missing(&mut self, here: &Here, key: &str, example: &str) {
        if here.path.is_empty() {
            self.add_nowhere(format!("`{key}` is missing"), format!("write `{key} = {example}` at the top of the file"));
            return;
        }
        let reason = format!("`{key}` is missing in `[{}]`", show(&here.path));
        match &here.header {
            Some(header) => self.add(header, reason, format!("add `{key} = {example}`")),
            None => self.add_nowhere(reason, format!("write `[{}]` and under it `{key} = {example}`", show(&here.path))),
        }
    }

    /// Everything found, in the order of the file.
    pub(crate) fn into_report(mut self, name: &str) -> Report {
        self.found.sort_by_key(|(at, _, _)| at.as_ref().map_or(0, |at| at.start));
        let hidden = hidden::in_file(self.text);
        let problems = self.found.into_iter().map(|(at, reason, help)| match at {
            Some(at) => Problem::at(self.text, &hidden, at, reason, help),
            None => Problem::nowhere(reason, help),
        });
        Report::new(name.to_owned(), problems.collect())
    }

    /// The place in the file of a part of a value, where the value is written literally.
    fn part(&self, value: &Span, within: Option<Span>) -> Span {
        let literal = |within: Span| {
            let text = self.text.get(value.clone())?;
            let simple = text.len() >= 2 && !text.contains('\\') && !text.starts_with("\"\"\"") && !text.starts_with("'''");
            simple.then(|| value.start + 1 + within.start..value.start + 1 + within.end)
        };
        within.and_then(literal).unwrap_or_else(|| value.clone())
    }
}

/// See [`Problems::show`].
pub(crate) fn show(text: &str) -> String {
    shortened(&hidden_in_urls::mask_urls(text))
}

/// The same for what should be a URL.
pub(crate) fn show_url(text: &str) -> String {
    shortened(&hidden_in_urls::mask_url(text))
}

fn shortened(text: &str) -> String {
    let mut shown: String = text.chars().map(hidden::harmless).take(SHOWN_CHARS_MAX).collect();
    if text.chars().count() > SHOWN_CHARS_MAX {
        shown.push('…');
    }
    shown
}

fn out_of_range(path: &str, least: &str, most: &str, quote: &str) -> Wrong {
    Wrong::new(
        format!("`{}` is out of range", show(path)),
        format!("write something from {quote}{least}{quote} to {quote}{most}{quote}"),
    )
}
