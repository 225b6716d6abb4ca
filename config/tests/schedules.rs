//! Because clocks jump twice a year, and a maintenance window that opens twice or never is an outage.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, TimeZone, Timelike, Utc, Weekday};
use chrono_tz::Tz;
use turnaround_config::{CatchUp, Dialect, Schedule, Starts};

/// Jumps of an hour in both hemispheres and at different hours of the day, half an hour (Lord Howe), two hours (Troll),
/// at midnight (Santiago, Beirut), half-hour offsets without jumps, and none at all.
const ZONES: [Tz; 11] = [
    Tz::UTC,
    Tz::Europe__Berlin,
    Tz::Europe__London,
    Tz::America__New_York,
    Tz::America__Santiago,
    Tz::America__St_Johns,
    Tz::Australia__Lord_Howe,
    Tz::Antarctica__Troll,
    Tz::Asia__Beirut,
    Tz::Asia__Kolkata,
    Tz::Pacific__Chatham,
];

fn schedule(dialect: Dialect, cron: &str, timezone: Tz) -> Schedule {
    Schedule {
        cron: cron.to_owned(),
        dialect,
        timezone,
        catch_up: CatchUp::Latest,
        max_lateness: Duration::from_secs(3600),
        starts: Starts::Survey,
    }
}

fn at(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).unwrap().to_utc()
}

/// The ticks from `from` to `upto`, as the zone's clocks show them.
fn local(schedule: &Schedule, from: &str, upto: &str) -> Vec<String> {
    let ticks = schedule.ticks_between(at(from), at(upto), 1000);
    ticks.iter().map(|tick| tick.with_timezone(&schedule.timezone).format("%d. %H:%M %Z").to_string()).collect()
}

#[test]
fn a_nightly_start_in_the_hour_that_is_left_out_fires_once_at_the_jump() {
    for (dialect, cron) in [(Dialect::Posix, "30 2 * * *"), (Dialect::Quartz, "0 30 2 * * ?")] {
        let berlin = schedule(dialect, cron, Tz::Europe__Berlin);
        assert_eq!(
            local(&berlin, "2026-03-27T12:00:00Z", "2026-03-30T12:00:00Z"),
            ["28. 02:30 CET", "29. 03:00 CEST", "30. 02:30 CEST"],
            "{dialect:?}"
        );
    }
}

#[test]
fn a_nightly_start_in_the_hour_that_comes_twice_fires_once_at_the_first() {
    for (dialect, cron) in [(Dialect::Posix, "30 2 * * *"), (Dialect::Quartz, "0 30 2 * * ?")] {
        let berlin = schedule(dialect, cron, Tz::Europe__Berlin);
        assert_eq!(
            local(&berlin, "2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z"),
            ["25. 02:30 CEST", "26. 02:30 CET"],
            "{dialect:?}"
        );
        // Also when it is asked in between the two.
        assert_eq!(berlin.next_after(at("2026-10-25T00:45:00Z")), Some(at("2026-10-26T01:30:00Z")), "{dialect:?}");
    }
}

#[test]
fn starts_at_several_times_of_the_day_fire_once_each_too() {
    for (dialect, cron) in [(Dialect::Posix, "0 2,14 * * *"), (Dialect::Quartz, "0 0 2,14 * * ?")] {
        let berlin = schedule(dialect, cron, Tz::Europe__Berlin);
        assert_eq!(
            local(&berlin, "2026-10-24T13:00:00Z", "2026-10-26T02:00:00Z"),
            ["25. 02:00 CEST", "25. 14:00 CET", "26. 02:00 CET"],
            "{dialect:?}"
        );
        assert_eq!(
            local(&berlin, "2026-03-28T14:00:00Z", "2026-03-30T02:00:00Z"),
            ["29. 03:00 CEST", "29. 14:00 CEST", "30. 02:00 CEST"],
            "{dialect:?}"
        );
    }
    let berlin = schedule(Dialect::Posix, "0,30 1-2 * * 0", Tz::Europe__Berlin);
    assert_eq!(
        local(&berlin, "2026-10-24T12:00:00Z", "2026-10-25T12:00:00Z"),
        ["25. 01:00 CEST", "25. 01:30 CEST", "25. 02:00 CEST", "25. 02:30 CEST"]
    );
    assert_eq!(local(&berlin, "2026-03-28T12:00:00Z", "2026-03-29T12:00:00Z"), ["29. 01:00 CET", "29. 01:30 CET", "29. 03:00 CEST"]);
}

#[test]
fn an_hourly_start_goes_on_at_its_pace() {
    let berlin = schedule(Dialect::Posix, "0 * * * *", Tz::Europe__Berlin);
    assert_eq!(
        local(&berlin, "2026-03-28T23:30:00Z", "2026-03-29T02:30:00Z"),
        ["29. 01:00 CET", "29. 03:00 CEST", "29. 04:00 CEST"]
    );
    assert_eq!(
        local(&berlin, "2026-10-24T22:30:00Z", "2026-10-25T02:30:00Z"),
        ["25. 01:00 CEST", "25. 02:00 CEST", "25. 02:00 CET", "25. 03:00 CET"]
    );
}

#[test]
fn the_two_dialects_mean_weekdays_and_days_of_the_month_as_their_users_do() {
    let from = at("2026-11-01T00:00:00Z"); // A Sunday.
    let posix = schedule(Dialect::Posix, "0 2 13 * 5", Tz::UTC);
    let days: Vec<u32> = posix.next(from, 5).iter().map(Datelike::day).collect();
    assert_eq!(days, [6, 13, 20, 27, 4], "either the 13th or a Friday");
    let quartz = schedule(Dialect::Quartz, "0 0 2 13 * 6", Tz::UTC);
    assert_eq!(quartz.next(from, 1), [at("2026-11-13T02:00:00Z")], "a Friday the 13th");
    assert_eq!(quartz.next(from, 2)[1], at("2027-08-13T02:00:00Z"));
    for (dialect, cron) in [(Dialect::Posix, "0 2 * * 0"), (Dialect::Posix, "0 2 * * 7"), (Dialect::Quartz, "0 0 2 ? * 1")] {
        assert_eq!(schedule(dialect, cron, Tz::UTC).next(from, 1), [at("2026-11-01T02:00:00Z")], "{cron} is Sunday");
    }
}

/// The days of 2026 on which `cron` fires.
fn days_of_2026(cron: &str) -> Vec<NaiveDate> {
    let ticks = schedule(Dialect::Posix, cron, Tz::UTC).ticks_between(at("2025-12-31T23:59:59Z"), at("2026-12-31T23:59:59Z"), 100_000);
    let mut days: Vec<NaiveDate> = ticks.iter().map(DateTime::date_naive).collect();
    days.dedup();
    days
}

/// The days of 2026 of which `wanted` is true.
fn all_of_2026(wanted: impl Fn(&NaiveDate) -> bool) -> Vec<NaiveDate> {
    let first = NaiveDate::from_ymd_opt(2026, 1, 1).unwrap();
    first.iter_days().take_while(|day| day.year() == 2026).filter(wanted).collect()
}

/// On any other day it would wipe nodes unasked.
#[test]
fn the_first_sunday_of_a_month_is_written_as_for_crond() {
    let days = days_of_2026("0 22 1-7 * */7");
    assert_eq!(days.len(), 12, "{days:?}");
    assert_eq!(days, all_of_2026(|day| day.weekday() == Weekday::Sun && day.day() <= 7));
}

#[test]
fn both_day_fields_have_to_match_where_one_begins_with_a_star_as_for_crond() {
    let saturday = |day: &NaiveDate| day.weekday() == Weekday::Sat;
    let odd = |day: &NaiveDate| day.day() % 2 == 1;
    assert_eq!(days_of_2026("0 22 */2 * 6"), all_of_2026(|day| odd(day) && saturday(day)));
    assert_eq!(days_of_2026("0 22 ?/2 * 6"), days_of_2026("0 22 */2 * 6"), "to croner a question mark is a star");
    assert_eq!(days_of_2026("0 22 */2 * */6"), all_of_2026(|day| odd(day) && (saturday(day) || day.weekday() == Weekday::Sun)));
    // Any step is one, also one that leaves nothing out.
    assert_eq!(days_of_2026("0 22 */1 * 6"), all_of_2026(saturday));
    assert_eq!(days_of_2026("0 22 13 * */1"), all_of_2026(|day| day.day() == 13));
    assert_eq!(days_of_2026("*/30 * 1-7 * */7"), days_of_2026("0 22 1-7 * */7"), "at a pace, too");
    // The other fields have no say in it.
    assert_eq!(days_of_2026("*/30 */2 1-7 */1 0"), days_of_2026("0 22 1-7 * 0"));
}

#[test]
fn a_star_alone_leaves_the_days_to_the_other_field() {
    assert_eq!(days_of_2026("0 22 * * 6"), all_of_2026(|day| day.weekday() == Weekday::Sat));
    assert_eq!(days_of_2026("0 22 1-7 * *"), all_of_2026(|day| day.day() <= 7));
    assert_eq!(days_of_2026("0 22 */2 * *"), all_of_2026(|day| day.day() % 2 == 1));
    assert_eq!(days_of_2026("0 22 * * *"), all_of_2026(|_| true));
}

#[test]
fn one_of_the_day_fields_has_to_match_where_none_begins_with_a_star() {
    let either = all_of_2026(|day| day.weekday() == Weekday::Sun || day.day() <= 7);
    assert_eq!(days_of_2026("0 22 1-7 * 0"), either);
    assert_eq!(days_of_2026("0 22 1-7 * 0-6/7"), either, "a step of a range is none of a star");
}

/// The instants that a daily start has by its definition, found without any of the code under test: for each day, walk
/// the real time line second by second (by minutes, then seconds) to the first moment at which the clock shows the time
/// or has jumped over it.
fn by_definition(zone: Tz, time: NaiveTime, first: NaiveDate, days: u64) -> Vec<DateTime<Utc>> {
    let mut all = Vec::new();
    for date in first.iter_days().take(days as usize) {
        let wanted = date.and_time(time);
        let mut instant = Utc.from_utc_datetime(&wanted) - TimeDelta::hours(15);
        let shows = |instant: DateTime<Utc>| -> NaiveDateTime { instant.with_timezone(&zone).naive_local() };
        for step in [TimeDelta::minutes(30), TimeDelta::minutes(1), TimeDelta::seconds(1)] {
            while shows(instant + step) < wanted {
                instant += step;
            }
        }
        all.push(instant + TimeDelta::seconds(1));
    }
    all
}

#[test]
fn over_two_years_of_days_no_daily_tick_is_lost_or_doubled_in_any_zone() {
    let first = NaiveDate::from_ymd_opt(2026, 1, 1).unwrap();
    for zone in ZONES {
        // Those near midnight and in the small hours are the ones that jumps meet.
        for (hour, minute) in [(0, 0), (0, 30), (1, 15), (2, 0), (2, 30), (3, 0), (12, 0), (23, 59)] {
            let expected = by_definition(zone, NaiveTime::from_hms_opt(hour, minute, 0).unwrap(), first, 731);
            for (dialect, cron) in [
                (Dialect::Posix, format!("{minute} {hour} * * *")),
                (Dialect::Quartz, format!("0 {minute} {hour} * * ?")),
            ] {
                let daily = schedule(dialect, &cron, zone);
                let ticks = daily.next(expected[0] - TimeDelta::seconds(1), expected.len());
                for (tick, wanted) in ticks.iter().zip(&expected) {
                    assert_eq!(tick, wanted, "{dialect:?} `{cron}` in {zone}");
                }
                assert_eq!(ticks.len(), expected.len());
            }
        }
    }
}

/// The hours after which the zone's clocks have jumped, and one hour in which nothing happens.
fn jumps_of_2026(zone: Tz) -> Vec<DateTime<Utc>> {
    let offset = |instant: DateTime<Utc>| instant.with_timezone(&zone).naive_local() - instant.naive_utc();
    let hours = (0..365 * 24).map(|n| at("2026-01-01T00:00:00Z") + TimeDelta::hours(n));
    let jumps = hours.filter(|hour| offset(*hour) != offset(*hour + TimeDelta::hours(1)));
    jumps.chain([at("2026-06-10T00:00:00Z")]).collect()
}

/// A daemon asks at any moment, not only at ticks, and must get the same ones.
#[test]
fn the_next_tick_does_not_depend_on_when_it_is_asked_for() {
    let crons = [
        (Dialect::Posix, "30 2 * * *"),
        (Dialect::Posix, "0 0 * * *"),
        (Dialect::Posix, "*/20 * * * *"),
        (Dialect::Posix, "10 */2 * * *"),
        (Dialect::Posix, "0,30 1-3 * * *"),
        (Dialect::Quartz, "0 30 2 * * ?"),
        (Dialect::Quartz, "0 0 0 * * ?"),
        (Dialect::Quartz, "0 */20 * * * ?"),
    ];
    for (zone, jump) in ZONES.iter().flat_map(|zone| jumps_of_2026(*zone).into_iter().map(|jump| (*zone, jump))) {
        let from = jump - TimeDelta::hours(15);
        let upto = jump + TimeDelta::hours(15);
        for (dialect, cron) in crons {
            let schedule = schedule(dialect, cron, zone);
            let ticks = schedule.ticks_between(from, upto, 10_000);
            assert!(ticks.windows(2).all(|two| two[0] < two[1]), "{cron} in {zone}: {ticks:?}");
            // An odd step, with fractions of a second, so that it meets all kinds of moments.
            let mut asked = from;
            while asked < upto {
                let wanted = ticks.iter().find(|tick| **tick > asked);
                if let Some(wanted) = wanted {
                    assert_eq!(schedule.next_after(asked).as_ref(), Some(wanted), "{cron} in {zone} asked at {asked}");
                }
                asked += TimeDelta::milliseconds(17 * 60_000 + 7_013);
            }
            for tick in &ticks {
                let before = *tick - TimeDelta::milliseconds(1);
                assert_eq!(schedule.next_after(before), Some(*tick), "{cron} in {zone} just before {tick}");
            }
        }
    }
}

#[test]
fn a_frequent_start_in_quartz_never_stands_still() {
    for zone in ZONES {
        let frequent = schedule(Dialect::Quartz, "0 */10 * * * ?", zone);
        let ticks = frequent.next(at("2026-01-01T00:00:00Z"), 6 * 24 * 366);
        assert!(ticks.windows(2).all(|two| two[0] < two[1]), "{zone}");
        // It pauses while the clock shows an hour for the second time, the longest being Troll's two.
        assert!(ticks.windows(2).all(|two| two[1] - two[0] <= TimeDelta::minutes(130)), "{zone}");
        assert!(ticks.iter().all(|tick| tick.second() == 0), "{zone}");
    }
}

#[test]
fn a_day_that_a_zone_left_out_altogether_fires_when_it_is_over() {
    // Samoa had no 30 December 2011.
    let samoa = schedule(Dialect::Quartz, "0 0 12 * * ?", Tz::Pacific__Apia);
    let shown = local(&samoa, "2011-12-28T12:00:00Z", "2011-12-31T12:00:00Z");
    assert_eq!(shown, ["28. 12:00 -10", "29. 12:00 -10", "31. 00:00 +14", "31. 12:00 +14"]);
}

#[test]
fn ticks_between_excludes_the_start_includes_the_end_and_is_bounded() {
    let hourly = schedule(Dialect::Posix, "0 * * * *", Tz::UTC);
    let (from, upto) = (at("2026-11-01T00:00:00Z"), at("2026-11-01T03:00:00Z"));
    let all = [at("2026-11-01T01:00:00Z"), at("2026-11-01T02:00:00Z"), upto];
    assert_eq!(hourly.ticks_between(from, upto, 100), all);
    assert_eq!(hourly.ticks_between(from, upto, 2), all[..2]);
    assert_eq!(hourly.ticks_between(all[1], upto, 2), all[2..]);
    assert!(hourly.ticks_between(upto, from, 100).is_empty());
    assert!(hourly.next(from, 0).is_empty());
}

#[test]
fn the_newest_tick_of_a_long_outage_is_the_last_of_all() {
    for zone in ZONES {
        for cron in ["*/10 * * * *", "30 2 * * *", "0 22 * * 6"] {
            let schedule = schedule(Dialect::Posix, cron, zone);
            let from = at("2026-03-20T11:11:11Z");
            for hours in [0, 1, 24, 24 * 9 + 4, 24 * 45] {
                let upto = from + TimeDelta::hours(hours);
                let all = schedule.ticks_between(from, upto, 100_000);
                assert_eq!(schedule.newest_between(from, upto), all.last().copied(), "{cron} in {zone}, {hours} h");
            }
        }
    }
}

#[test]
fn a_schedule_that_is_over_has_no_next_tick() {
    let over = schedule(Dialect::Quartz, "0 0 2 1 1 ? 2026", Tz::UTC);
    assert_eq!(over.next(at("2025-06-01T00:00:00Z"), 5), [at("2026-01-01T02:00:00Z")]);
    assert_eq!(over.next_after(at("2026-01-01T02:00:00Z")), None);
    let nonsense = schedule(Dialect::Posix, "what", Tz::UTC);
    assert_eq!(nonsense.next_after(at("2026-01-01T02:00:00Z")), None);
}
