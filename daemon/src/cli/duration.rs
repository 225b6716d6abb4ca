//! Lengths and moments as people read them.

use std::time::Duration;

use chrono::SecondsFormat;
use turnaround_workflows::clock::Timestamp;

use crate::wire::When;

/// `350ms`, `12s`, `4m 05s`, `3h 12m`, `5d 3h`.
pub(super) fn length(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0 => format!("{}ms", length.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h {:02}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

pub(super) fn millis(millis: u64) -> String {
    length(Duration::from_millis(millis))
}

/// How long ago `then` was; `in ..` if it is yet to come.
pub(super) fn ago(then: When, now: Timestamp) -> String {
    if then.0 > now { format!("in {}", length(then.0.since(now))) } else { format!("{} ago", length(now.since(then.0))) }
}

/// How long ago, without the word: for columns that say so.
pub(super) fn age(then: When, now: Timestamp) -> String {
    length(now.since(then.0))
}

/// `2026-11-22T02:30:00Z`
pub(super) fn moment(at: When) -> String {
    at.0.utc().to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// `02:30:00.123`
pub(super) fn time_of_day(at: When) -> String {
    at.0.utc().format("%H:%M:%S%.3f").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_two_units_at_most() {
        let cases = [(0, "0ms"), (350, "350ms"), (12_900, "12s"), (245_000, "4m 05s"), (11_520_000, "3h 12m"), (442_800_000, "5d 3h")];
        for (given, shown) in cases {
            assert_eq!(millis(given), shown);
        }
    }
}
