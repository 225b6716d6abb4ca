//! Lengths of time as operators write them: `500ms`, `10s`, `90min`, `1h30min`, `30d`.
//!
//! Because `m` means minutes to one reader and months or metres to the next, units are spelled in one way only, and
//! a near miss is answered with the right spelling.

use std::time::Duration;

/// Units from small to large, in milliseconds.
const UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// What people write instead of our units, and what they mean.
const OTHER_SPELLINGS: [(&str, u64); 24] = [
    ("msec", 1), ("msecs", 1), ("millis", 1), ("millisecond", 1), ("milliseconds", 1),
    ("sec", 1_000), ("secs", 1_000), ("second", 1_000), ("seconds", 1_000),
    ("m", 60_000), ("mins", 60_000), ("minute", 60_000), ("minutes", 60_000),
    ("hr", 3_600_000), ("hrs", 3_600_000), ("hour", 3_600_000), ("hours", 3_600_000), ("std", 3_600_000),
    ("day", 86_400_000), ("days", 86_400_000),
    ("w", 604_800_000), ("wk", 604_800_000), ("week", 604_800_000), ("weeks", 604_800_000),
];

/// What is suggested back. Beyond a century it was no length that anybody meant.
const SUGGESTED_MILLIS: std::ops::Range<f64> = 1.0..100.0 * 366.0 * 86_400_000.0;

/// Longest text that is looked at; ours have three or four characters.
const LENGTH_CHARS_MAX: usize = 40;

/// Why a text is no length of time, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a length of time")]
pub struct NotALength {
    given: String,
    meant: Option<Duration>,
}

impl NotALength {
    /// What to write instead.
    pub fn help(&self) -> String {
        let example = self.meant.map_or_else(|| "90min".to_owned(), show_length);
        let other = if example == "4h" { "90min" } else { "4h" };
        format!("write a number and a unit, such as \"{example}\" or \"{other}\"")
    }
}

/// Reads `500ms`, `10s`, `90min`, `4h`, `30d`, and joined ones, largest unit first: `1h30min`.
///
/// ```
/// # use std::time::Duration;
/// use turnaround_config::parse_length;
/// assert_eq!(parse_length("1h30min"), Ok(Duration::from_secs(90 * 60)));
/// assert_eq!(parse_length("500ms"), Ok(Duration::from_millis(500)));
/// assert!(parse_length("90 mins").is_err());
/// ```
pub fn parse_length(text: &str) -> Result<Duration, NotALength> {
    strict(text).ok_or_else(|| NotALength {
        given: text.chars().filter(|c| !c.is_control()).take(LENGTH_CHARS_MAX).collect(),
        meant: lenient(text),
    })
}

/// The shortest way to write it with one unit: `90min`, `36h`, `2d`. What is below a millisecond is not shown.
pub fn show_length(length: Duration) -> String {
    let millis = length.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    let (unit, size) =
        UNITS.iter().rev().find(|(_, size)| millis.is_multiple_of(u128::from(*size))).unwrap_or(&UNITS[0]);
    format!("{}{unit}", millis / u128::from(*size))
}

fn strict(text: &str) -> Option<Duration> {
    if text.is_empty() || text.len() > LENGTH_CHARS_MAX {
        return None;
    }
    let mut rest = text;
    let mut total: u64 = 0;
    let mut smaller_than = u64::MAX;
    while !rest.is_empty() {
        let (digits, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, after) = after.split_at(after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len()));
        let size = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, size)| *size)?;
        if size >= smaller_than {
            return None;
        }
        smaller_than = size;
        total = total.checked_add(digits.parse::<u64>().ok()?.checked_mul(size)?)?;
        rest = after;
    }
    Some(Duration::from_millis(total))
}

/// What somebody most likely meant: spaces, long names, capitals and decimals are understood, but only for the help.
fn lenient(text: &str) -> Option<Duration> {
    if text.len() > LENGTH_CHARS_MAX {
        return None;
    }
    let squeezed: String = text.to_lowercase().chars().filter(|c| !c.is_whitespace()).collect();
    let mut rest = squeezed.as_str();
    let mut total = 0.0;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (unit, after) = after.split_at(after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len()));
        let size = UNITS.iter().chain(&OTHER_SPELLINGS).find(|(name, _)| *name == unit).map(|(_, size)| *size)?;
        total += number.parse::<f64>().ok()? * size as f64;
        rest = after;
    }
    SUGGESTED_MILLIS.contains(&total).then(|| Duration::from_millis(total.round() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_and_joined_units_are_read() {
        for (text, millis) in [
            ("500ms", 500), ("0s", 0), ("10s", 10_000), ("90min", 5_400_000), ("4h", 14_400_000),
            ("30d", 2_592_000_000), ("1h30min", 5_400_000), ("1d2h3min4s5ms", 93_784_005),
        ] {
            assert_eq!(parse_length(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_nearly_a_length_is_refused_with_the_right_spelling() {
        for (text, example) in [
            ("90 mins", "90min"), ("90m", "90min"), ("10 seconds", "10s"), ("1.5h", "90min"), ("2 weeks", "14d"),
            ("10S", "10s"), ("4 h", "4h"), ("1h 30min", "90min"), ("30min1h", "90min"), ("1h1h", "2h"),
        ] {
            let help = parse_length(text).unwrap_err().help();
            assert!(help.contains(&format!("\"{example}\"")), "{text}: {help}");
        }
    }

    #[test]
    fn nonsense_is_refused_without_a_guess() {
        for text in ["", "10", "s", "-5s", "1e9s", "soon", "99999999999999999999s", "10s ", "٣s", "1..2h"] {
            let wrong = parse_length(text).unwrap_err();
            assert!(wrong.help().contains("such as"), "{text}: {}", wrong.help());
        }
        assert_eq!(parse_length("18446744073709551615d").unwrap_err().help(), parse_length("").unwrap_err().help());
    }

    #[test]
    fn a_length_shown_reads_back_as_itself() {
        for millis in [0, 1, 999, 1_000, 61_000, 5_400_000, 129_600_000, 172_800_000, 2_592_000_000] {
            let length = Duration::from_millis(millis);
            assert_eq!(parse_length(&show_length(length)), Ok(length));
        }
        assert_eq!(show_length(Duration::from_secs(90 * 60)), "90min");
        assert_eq!(show_length(Duration::from_secs(36 * 3600)), "36h");
    }
}
