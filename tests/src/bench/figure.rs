//! Figures, and the report that shows them.

use std::fmt;

use serde::Serialize;

/// One thing that was measured, in all its rounds.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// Which goal it belongs to, such as `g1`.
    pub goal: &'static str,
    pub name: String,
    pub unit: &'static str,
    /// Median of the rounds.
    pub value: f64,
    pub rounds: Vec<f64>,
    /// None: shown for a better understanding, without a goal of its own.
    pub wanted: Option<Wanted>,
    /// None without a goal.
    pub met: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    AtLeast(f64),
    AtMost(f64),
    Within(f64, f64),
}

impl Figure {
    /// A figure without a goal.
    pub fn seen(goal: &'static str, name: impl Into<String>, unit: &'static str, rounds: Vec<f64>) -> Figure {
        Figure { goal, name: name.into(), unit, value: median(&rounds), rounds, wanted: None, met: None }
    }

    pub fn wanted(self, wanted: Wanted) -> Figure {
        let met = match wanted {
            Wanted::AtLeast(least) => self.value >= least,
            Wanted::AtMost(most) => self.value <= most,
            Wanted::Within(least, most) => (least..=most).contains(&self.value),
        };
        Figure { wanted: Some(wanted), met: Some(met), ..self }
    }
}

/// The middle one, or the mean of the two in the middle. NaN of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (count, middle) if count % 2 == 1 => sorted[middle],
        (_, middle) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The value that `share` of all are not above (0.99: the 99th percentile). NaN of none.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts are small")]
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1).min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// One over the other, round by round.
pub fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()
}

/// What a run of the bench says.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub machine: super::machine::Machine,
    pub figures: Vec<Figure>,
}

impl Report {
    pub(super) fn begin(machine: super::machine::Machine) -> Report {
        Report { machine, figures: Vec::new() }
    }

    pub fn missed(&self) -> usize {
        self.figures.iter().filter(|figure| figure.met == Some(false)).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.machine)?;
        writeln!(f, "{:<4} {:<58} {:>12} {:<14} {:>9}  rounds", "goal", "figure", "median", "unit", "wanted")?;
        for figure in &self.figures {
            let wanted = match figure.wanted {
                Some(Wanted::AtLeast(least)) => format!(">= {least}"),
                Some(Wanted::AtMost(most)) => format!("<= {most}"),
                Some(Wanted::Within(least, most)) => format!("{least}-{most}"),
                None => String::new(),
            };
            let verdict = match figure.met {
                Some(true) => "met",
                Some(false) => "missed",
                None => "",
            };
            let rounds: Vec<String> = figure.rounds.iter().map(|round| short(*round)).collect();
            let Figure { goal, name, unit, value, .. } = figure;
            writeln!(f, "{goal:<4} {name:<58} {:>12} {unit:<14} {wanted:>9} {verdict:<6} {}", short(*value), rounds.join(" "))?;
        }
        Ok(())
    }
}

/// Three digits that say something.
fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        small if small >= 0.1 || small == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.99), 99.0);
        assert_eq!(percentile(&hundred, 1.0), 100.0);
        assert_eq!(percentile(&[7.0], 0.5), 7.0);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_goal_is_met_at_its_very_limit_and_missed_beyond() {
        let figure = || Figure::seen("g1", "x", "", vec![0.8]);
        assert_eq!(figure().met, None);
        assert_eq!(figure().wanted(Wanted::AtLeast(0.8)).met, Some(true));
        assert_eq!(figure().wanted(Wanted::AtLeast(0.81)).met, Some(false));
        assert_eq!(figure().wanted(Wanted::AtMost(0.8)).met, Some(true));
        assert_eq!(figure().wanted(Wanted::AtMost(0.79)).met, Some(false));
        assert_eq!(Figure::seen("g1", "x", "", Vec::new()).wanted(Wanted::AtMost(1.0)).met, Some(false), "nothing measured");
    }
}
