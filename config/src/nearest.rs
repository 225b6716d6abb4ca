//! The known word nearest to a mistyped one.

/// At least this similar (Jaro-Winkler, 1.0 is equal) and we dare to guess.
// A transposition or a missing letter in a word of five letters gives 0.9 and more, unrelated keys of ours stay under 0.8.
const SIMILARITY_MIN: f64 = 0.82;

/// At most this many known words are listed where no guess is possible; more would hide the message.
const LISTED_MAX: usize = 12;

pub(crate) fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_lowercase();
    known
        .into_iter()
        .map(|word| (strsim::jaro_winkler(&given, &word.to_lowercase()), word))
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, word)| word)
}

/// `did you mean ...?` where a guess is possible, else the list to choose from.
pub(crate) fn suggest(given: &str, known: &[&str], when_none: &str) -> String {
    if known.is_empty() {
        return when_none.to_owned();
    }
    match nearest(given, known.iter().copied()) {
        Some(word) => format!("did you mean `{word}`?"),
        None => format!("write {}", any_of(known)),
    }
}

/// `` `a`, `b` or `c` ``
pub(crate) fn any_of(words: &[&str]) -> String {
    let quoted = |words: &[&str]| words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ");
    match words {
        [] => "nothing".to_owned(),
        [one] => format!("`{one}`"),
        many if many.len() > LISTED_MAX => {
            format!("one of {} ({} more)", quoted(&many[..LISTED_MAX]), many.len() - LISTED_MAX)
        }
        [most @ .., last] => format!("{} or `{last}`", quoted(most)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_the_word_and_nonsense_finds_none() {
        let known = ["slots", "lease", "reply_timeout"];
        assert_eq!(nearest("slot", known), Some("slots"));
        assert_eq!(nearest("laese", known), Some("lease"));
        assert_eq!(nearest("reply-timeout", known), Some("reply_timeout"));
        assert_eq!(nearest("colour", known), None);
    }

    #[test]
    fn a_list_reads_like_a_sentence() {
        assert_eq!(any_of(&["a", "b", "c"]), "`a`, `b` or `c`");
        assert_eq!(suggest("x", &[], "add one"), "add one");
    }
}
