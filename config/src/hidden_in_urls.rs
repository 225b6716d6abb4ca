//! The parts of URLs that may be secrets.
//!
//! Because a password in a URL is the one that is most often pasted along.

use std::ops::Range;

use crate::hidden::is_sensitive;

/// `redis://***@host`: a URL without its credentials. What is no URL, but has an `@`, loses all before that.
pub(crate) fn mask_url(text: &str) -> String {
    let mut ranges = Vec::new();
    url_secrets(text, 0, &mut ranges);
    masked(text, ranges)
}

/// The same for every URL within a text.
pub(crate) fn mask_urls(text: &str) -> String {
    let mut ranges = Vec::new();
    urls(text, 0, &mut ranges);
    masked(text, ranges)
}

fn masked(text: &str, ranges: Vec<Range<usize>>) -> String {
    let mut masked = String::new();
    let mut from = 0;
    for range in merged(ranges) {
        masked.push_str(&text[from..range.start]);
        masked.push_str("***");
        from = range.end;
    }
    masked + &text[from..]
}

/// Every URL in a line, each up to the quote that ends it.
pub(crate) fn urls(line: &str, offset: usize, hidden: &mut Vec<Range<usize>>) {
    let mut from = 0;
    while let Some(found) = line[from..].find("://") {
        let start = from + found;
        let end = line[start..].find(['"', '\'', '\n']).map_or(line.len(), |n| start + n);
        url_secrets(&line[start..end], offset + start, hidden);
        from = end.max(start + 3);
    }
}

/// What one URL says before its last `@`, as a password may itself contain `@` and `/`, and passwords in its query.
pub(crate) fn url_secrets(url: &str, offset: usize, hidden: &mut Vec<Range<usize>>) {
    let start = url.find("://").map_or(0, |n| n + 3);
    let at = url.rfind('@');
    if let Some(at) = at {
        hidden.push(offset + start.min(at)..offset + at);
    }
    let start = at.map_or(start, |at| at + 1).max(start);
    // `user:password` without an `@`, or cut before it: what should be a port is none.
    let authority = url[start..].split(['/', '?', '#']).next().unwrap_or_default();
    let port = authority.rsplit_once(':').map(|(_, port)| port.trim_end_matches(['"', '\'']));
    let is_address = authority.starts_with('[');
    if !is_address && port.is_some_and(|port| port.parse::<u16>().is_err()) {
        hidden.push(offset + start..offset + url.len());
    }
    for parameter in url.match_indices(['?', '&', ';']).map(|(n, _)| n + 1) {
        let stop = url[parameter..].find(['&', ';', '#']).map_or(url.len(), |n| parameter + n);
        if let Some((name, value)) = url[parameter..stop].split_once('=')
            && is_sensitive(name)
        {
            hidden.push(offset + stop - value.len()..offset + stop);
        }
    }
}

/// In order, without overlaps.
pub(crate) fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_masked_and_the_rest_is_not() {
        for (text, shown) in [
            ("redis://192.0.2.5:6379/1", "redis://192.0.2.5:6379/1"),
            ("http://[2001:db8::1]:80/boot", "http://[2001:db8::1]:80/boot"),
            ("redis://u:p@h/1", "redis://***@h/1"),
            ("redis://:p@ss/w@h:6379", "redis://***@h:6379"),
            ("redis://:password", "redis://***"),
            ("http://ops:password/path", "http://***"),
            ("unix:///run/r.sock?db=1&pass=x&z=1", "unix:///run/r.sock?db=1&pass=***&z=1"),
        ] {
            assert_eq!(mask_url(text), shown);
            assert_eq!(mask_urls(&format!("see {text}")), format!("see {shown}"));
        }
        assert_eq!(mask_url("ops:p@h"), "***@h");
        assert_eq!(mask_urls("ana@example.org"), "ana@example.org");
    }
}
