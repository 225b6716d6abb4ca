//! A cron expression that has been read: which field is wrong if it has not, and when it fires next.
//!
//! Because clocks jump twice a year. What is meant for certain times of the day is walked in local time without any zone and mapped to instants here,
//! as both libraries skip or double some ticks then. What goes by `*` or a step in `posix` is left to croner, which goes on at its pace as crond does.

use std::str::FromStr;

use chrono::{DateTime, Days, LocalResult, NaiveDateTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use croner::parser::{CronParser, Seconds, Year};

use crate::problems::{Wrong, show};
use crate::schedule::Dialect;

/// Whether an expression ever fires is asked from here on. Any moment would do: the calendar repeats within 28 years of
/// this one, and asking the real clock would make the answer depend on the day.
const ASKED_FROM: &str = "2024-01-01T00:00:00Z";

/// The longest a local clock has ever jumped: a whole day, when Samoa changed its side of the date line.
const JUMP_DAYS_MAX: u64 = 1;

/// Ticks that may map to one and the same instant or before it: one for each second of the longest jump.
const TICKS_IN_A_JUMP_MAX: usize = 86_400 + 1;

/// Finer than any jump of any zone in the IANA database, which has kept whole seconds.
const GAP_SEARCH: TimeDelta = TimeDelta::seconds(1);

const POSIX_FIELDS: [(&str, &str); 5] = [
    ("minute", "from 0 to 59"),
    ("hour", "from 0 to 23"),
    ("day of month", "from 1 to 31"),
    ("month", "from 1 to 12, or JAN to DEC"),
    ("day of week", "from 0 to 7, or SUN to SAT; 0 and 7 are Sunday"),
];

const QUARTZ_FIELDS: [(&str, &str); 7] = [
    ("second", "from 0 to 59"),
    ("minute", "from 0 to 59"),
    ("hour", "from 0 to 23"),
    ("day of month", "from 1 to 31"),
    ("month", "from 1 to 12, or JAN to DEC"),
    ("day of week", "from 1 to 7, or SUN to SAT; 1 is Sunday"),
    ("year", "from 1970 to 2100"),
];

/// What crond's nicknames stand for.
const NICKNAMES: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

#[derive(Debug, Clone)]
pub(crate) enum CronExpression {
    /// At certain times of the day, as crond has it.
    PosixTimes(Box<croner::Cron>),
    /// At a pace, by `*` or a step in the minute or the hour.
    PosixPace(Box<croner::Cron>),
    Quartz(Box<cron::Schedule>),
}

impl CronExpression {
    /// The expression, or which of its fields is wrong.
    pub(crate) fn parse(dialect: Dialect, text: &str) -> Result<CronExpression, Wrong> {
        let (known, smallest): (&[_], usize) = match dialect {
            Dialect::Posix => (&POSIX_FIELDS, 5),
            Dialect::Quartz => (&QUARTZ_FIELDS, 6),
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        if !(smallest..=known.len()).contains(&fields.len()) {
            return Err(wrong_field_count(dialect, text, fields.len()));
        }
        for (n, field) in fields.iter().enumerate() {
            if !field_is_good(dialect, n, field) {
                return Err(wrong_field(text, field, known[n]));
            }
        }
        let whole = || Wrong::new(format!("`{}` is not a cron expression", show(text)), "write one such as \"30 2 * * 6\"");
        let expression = Self::parse_whole(dialect, text).ok_or_else(whole)?;
        let asked_from = DateTime::parse_from_rfc3339(ASKED_FROM).map_err(|_| whole())?.to_utc();
        if expression.next_after(Tz::UTC, asked_from).is_none() {
            return Err(Wrong::new(
                format!("`{}` never fires", show(text)),
                "there is no such day: check the day of month and the month",
            ));
        }
        Ok(expression)
    }

    pub(crate) fn parse_whole(dialect: Dialect, text: &str) -> Option<CronExpression> {
        match dialect {
            Dialect::Posix => {
                // As crond has it: where a day field begins with `*`, also with a step, both have to match. croner sees to that for a lone `*` only
                // (`?` is the same to it): with `1-7` and `*/7` it would take each of those days and each Sunday.
                let both_days = text.split_whitespace().skip(2).step_by(2).any(|field| field.starts_with(['*', '?']));
                let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).dom_and_dow(both_days).build();
                // As crond tells them apart; croner takes only one minute and one hour for times of the day.
                let at_times = text.split_whitespace().take(2).all(|field| !field.contains(['*', '/', '?']));
                let cron = Box::new(parser.parse(text).ok()?);
                Some(if at_times { CronExpression::PosixTimes(cron) } else { CronExpression::PosixPace(cron) })
            }
            Dialect::Quartz => {
                cron::Schedule::from_str(text).ok().map(|cron| CronExpression::Quartz(Box::new(cron)))
            }
        }
    }

    /// The first tick later than `after`.
    pub(crate) fn next_after(&self, zone: Tz, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // Whatever the clock shows at or before `after` has fired; only times it has not yet shown are asked.
        let shown = after.with_timezone(&zone).naive_local().and_utc();
        match self {
            CronExpression::PosixTimes(cron) => first_after(zone, after, cron.iter_after(shown)),
            CronExpression::PosixPace(cron) => {
                cron.find_next_occurrence(&after.with_timezone(&zone), false).ok().map(|tick| tick.to_utc())
            }
            CronExpression::Quartz(cron) => first_after(zone, after, cron.after(&shown)),
        }
    }
}

/// The first of these local times whose instant is later than `after`.
fn first_after(zone: Tz, after: DateTime<Utc>, ticks: impl Iterator<Item = DateTime<Utc>>) -> Option<DateTime<Utc>> {
    ticks.take(TICKS_IN_A_JUMP_MAX).filter_map(|tick| instant(zone, tick.naive_utc())).find(|tick| *tick > after)
}

/// The instant at which clocks in `zone` show `local`: the earlier one where they show it twice, and the moment of the
/// jump where they never do.
fn instant(zone: Tz, local: NaiveDateTime) -> Option<DateTime<Utc>> {
    match zone.from_local_datetime(&local) {
        LocalResult::Single(at) => Some(at.to_utc()),
        LocalResult::Ambiguous(earlier, later) => Some(earlier.to_utc().min(later.to_utc())),
        LocalResult::None => end_of_gap(zone, local),
    }
}

/// The first moment after the gap that `local` falls into, found by halving.
fn end_of_gap(zone: Tz, local: NaiveDateTime) -> Option<DateTime<Utc>> {
    let offset_before = zone.from_local_datetime(&local.checked_sub_days(Days::new(JUMP_DAYS_MAX))?).earliest()?;
    // In the offset from before the jump, `local` would lie behind it; the jump is within a day of it.
    let mut before = offset_before.to_utc();
    let mut behind = before.checked_add_days(Days::new(2 * JUMP_DAYS_MAX))?;
    let shows_later = |at: DateTime<Utc>| at.with_timezone(&zone).naive_local() > local;
    while behind - before > GAP_SEARCH {
        let middle = before + (behind - before) / 2;
        if shows_later(middle) { behind = middle } else { before = middle }
    }
    // Halving leaves fractions of a second, jumps happen on whole ones.
    DateTime::from_timestamp(behind.timestamp(), 0)
}

/// Whether this field alone, with `*` for the others, is understood.
fn field_is_good(dialect: Dialect, n: usize, field: &str) -> bool {
    if field.starts_with('@') {
        return false;
    }
    let mut fields = match dialect {
        Dialect::Posix => vec!["*"; 5],
        Dialect::Quartz => vec!["*"; 7],
    };
    fields[n] = field;
    CronExpression::parse_whole(dialect, &fields.join(" ")).is_some()
}

fn wrong_field(text: &str, field: &str, (name, range): (&str, &str)) -> Wrong {
    let start = field.as_ptr() as usize - text.as_ptr() as usize;
    Wrong {
        reason: format!("the {name} field of a cron expression cannot be `{}`", show(field)),
        help: format!("write a number {range}, or `*`, `1-5`, `1,3`, `*/15`"),
        within: Some(start..start + field.len()),
    }
}

fn wrong_field_count(dialect: Dialect, text: &str, count: usize) -> Wrong {
    let nickname = NICKNAMES.iter().find(|(name, _)| text.trim().eq_ignore_ascii_case(name));
    let (wanted, help) = match (dialect, nickname) {
        (Dialect::Posix, Some((_, fields))) => ("five", format!("write \"{fields}\"")),
        (Dialect::Posix, None) if count == 6 => {
            ("five", "leave out the seconds, or write `dialect = \"quartz\"` too".to_owned())
        }
        (Dialect::Posix, None) => {
            ("five", "write minute, hour, day of month, month, day of week, such as \"30 2 * * 6\"".to_owned())
        }
        (Dialect::Quartz, Some((_, fields))) => ("six or seven", format!("write \"{fields}\" and leave out `dialect`")),
        (Dialect::Quartz, None) => {
            ("six or seven", "write the seconds first, such as \"0 30 2 * * 7\", or leave out `dialect`".to_owned())
        }
    };
    let fields = if count == 1 { "field" } else { "fields" };
    Wrong::new(format!("this cron expression has {count} {fields}, not {wanted}"), help)
}
