//! Cron-style schedules: what the operator wrote, and when it fires next.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;

use crate::cron_expression::CronExpression;
use crate::names::{ImageName, NodeName};

/// One entry of `[schedules]`.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// The expression as written.
    pub cron: String,
    pub dialect: Dialect,
    /// The zone in which the expression is meant.
    pub timezone: Tz,
    pub catch_up: CatchUp,
    /// A tick that is later than this is recorded as missed and does not run.
    pub max_lateness: Duration,
    pub starts: Starts,
}

impl Schedule {
    /// The first tick later than `after`; none if there is no further one.
    ///
    /// Where clocks jump, a tick at a fixed time of day fires exactly once: a time that the clock leaves out fires at
    /// the moment of the jump, one that it shows twice fires at the first. A `posix` expression with `*` or a step in
    /// its hour or minute goes on at its pace through both.
    pub fn next_after(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.expression()?.next_after(self.timezone, after)
    }

    /// The next `count` ticks, for people to look at.
    pub fn next(&self, after: DateTime<Utc>, count: usize) -> Vec<DateTime<Utc>> {
        self.ticks(after).take(count).collect()
    }

    /// The ticks later than `after` and not later than `upto`, oldest first, at most `max` of them.
    ///
    /// With the last one as the next `after` nothing is lost or doubled, so a long outage can be worked off in bounded
    /// pieces.
    pub fn ticks_between(&self, after: DateTime<Utc>, upto: DateTime<Utc>, max: usize) -> Vec<DateTime<Utc>> {
        self.ticks(after).take_while(|tick| *tick <= upto).take(max).collect()
    }

    /// The newest tick later than `after` and not later than `upto`, without walking through all of them.
    pub fn newest_between(&self, after: DateTime<Utc>, upto: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let expression = self.expression()?;
        let next = |from: DateTime<Utc>| expression.next_after(self.timezone, from).filter(|tick| *tick <= upto);
        // Invariant: `newest` is a tick, and none lies behind `none_behind`. The distance is halved each round.
        let mut newest = next(after)?;
        let mut none_behind = upto;
        while none_behind - newest > NEWEST_SEARCH {
            let middle = newest + (none_behind - newest) / 2;
            match next(middle) {
                Some(tick) => newest = tick,
                None => none_behind = middle,
            }
        }
        Some(next(newest).unwrap_or(newest))
    }

    fn ticks(&self, after: DateTime<Utc>) -> impl Iterator<Item = DateTime<Utc>> + use<> {
        let expression = self.expression();
        let zone = self.timezone;
        let next = move |from: DateTime<Utc>| expression.as_ref()?.next_after(zone, from);
        let first = next(after);
        std::iter::successors(first, move |tick| next(*tick))
    }

    /// Always there for a checked configuration.
    fn expression(&self) -> Option<CronExpression> {
        CronExpression::parse_whole(self.dialect, &self.cron)
    }
}

/// Two ticks are at least a second apart, so that within one there is at most one more.
const NEWEST_SEARCH: TimeDelta = TimeDelta::seconds(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Five fields as in crontab(5): day of month and day of week are ORed, unless one of them begins with `*`; Sunday is 0 or 7.
    Posix,
    /// Six or seven fields with seconds first: Sunday is 1, both day fields must match.
    Quartz,
}

/// What happens with ticks that passed while no daemon was running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatchUp {
    /// None of them runs.
    Skip,
    /// The newest one runs.
    Latest,
    /// Each of them runs, oldest first.
    All,
}

/// The workflow that a tick starts.
#[derive(Debug, Clone)]
pub enum Starts {
    /// Reads what every node runs and what Nova says of it. Changes nothing.
    Survey,
    /// Renews the operating system of these nodes (all nodes if empty).
    NodeOs { nodes: Vec<NodeName>, image: ImageName },
}
