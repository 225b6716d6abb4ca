//! What the operator reads when the configuration is not good.

use std::fmt;
use std::io::IsTerminal;
use std::ops::Range;

use crate::hidden::harmless;
use crate::problems::NOTED_MAX;

/// Problems shown in full. Somebody who passed a wrong file should see the top of the report on the screen.
const SHOWN_MAX: usize = 50;

/// Longest line of the file that is shown whole; of a longer one, the part around the problem.
// Most terminals are wider, and the help stands to the right of the part.
const LINE_CHARS_MAX: usize = 110;

/// How much of a longer line is shown before the problem.
const LEAD_CHARS: usize = 40;

/// Of a very long line, no more than this is looked at on either side of the problem.
const AROUND_BYTES: usize = 1000;

/// Every problem of one configuration file. Nothing in it is a secret, so it may be logged and pasted.
#[derive(Clone)]
pub struct Report {
    name: String,
    problems: Vec<Problem>,
    /// There may be more to find once these are mended.
    rest_unchecked: bool,
}

/// One problem: where it is, why it is one, and what to write instead.
#[derive(Clone, PartialEq, Eq)]
pub struct Problem {
    line: usize,
    column: usize,
    reason: String,
    help: String,
    /// The line as it may be shown, and the part of it that is meant.
    shown: Option<(String, Range<usize>)>,
}

impl Report {
    pub(crate) fn new(name: String, problems: Vec<Problem>) -> Report {
        Report { name: name.chars().map(harmless).collect(), problems, rest_unchecked: false }
    }

    pub(crate) fn with_the_rest_unchecked(mut self) -> Report {
        self.rest_unchecked = true;
        self
    }

    /// In the order of the file.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// How many there are; never none.
    pub fn count(&self) -> usize {
        self.problems.len()
    }

    /// The report for standard error: in colour where that is a terminal and `NO_COLOR` is not set.
    pub fn for_stderr(&self) -> String {
        // Any value but the empty one counts, as no-color.org has it.
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        self.render(if wanted && std::io::stderr().is_terminal() { &COLOUR } else { &PLAIN })
    }

    fn render(&self, paint: &Paint) -> String {
        let mut text = String::new();
        for problem in self.problems.iter().take(SHOWN_MAX) {
            text.push_str(&problem.render(&self.name, paint));
            text.push_str("\n\n");
        }
        if self.problems.len() > SHOWN_MAX {
            text.push_str(&format!("{} more problems are not shown\n", self.problems.len() - SHOWN_MAX));
        }
        let noun = match self.problems.len() {
            1 => "problem",
            NOTED_MAX.. => "problems or more",
            _ => "problems",
        };
        let rest = if self.rest_unchecked { "; the rest is checked when these are mended" } else { "" };
        text + &format!("{} {noun} in {}{rest}; nothing was started", self.problems.len(), self.name)
    }
}

/// Without colour, whatever the terminal.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(&PLAIN))
    }
}

/// As shown: `unwrap` in a test should be readable too.
impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{self}")
    }
}

impl std::error::Error for Report {}

impl Problem {
    /// `hidden` is in order and without overlaps.
    pub(crate) fn at(text: &str, hidden: &[Range<usize>], at: Range<usize>, reason: String, help: String) -> Problem {
        let start = floor(text, at.start);
        let line_start = text[..start].rfind('\n').map_or(0, |n| n + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |n| start + n);
        let column = text[line_start..start].chars().count() + 1;
        let line_start = floor(text, line_start.max(start.saturating_sub(AROUND_BYTES)));
        let line_end = floor(text, line_end.min(start + AROUND_BYTES));
        let shown = Shown::of(text, hidden, line_start..line_end, start..floor(text, at.end).clamp(start, line_end));
        Problem {
            line: text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1,
            column,
            reason,
            help,
            shown: Some((shown.line, shown.part)),
        }
    }

    pub(crate) fn nowhere(reason: String, help: String) -> Problem {
        Problem { line: 1, column: 1, reason, help, shown: None }
    }

    /// From 1. A problem with something that is not in the file has line 1, column 1.
    pub fn line(&self) -> usize {
        self.line
    }

    /// From 1, in characters.
    pub fn column(&self) -> usize {
        self.column
    }

    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// What to write instead.
    pub fn help(&self) -> &str {
        &self.help
    }

    /// Plain text of our own, as a library for this puts the true column of a line out of joint once a secret in the
    /// line has been replaced.
    fn render(&self, name: &str, paint: &Paint) -> String {
        let Paint { error, place, plain } = paint;
        let title = format!("{error}error{plain}: {}", self.reason);
        let Some((line, part)) = &self.shown else {
            return format!("{title}\n  {place}-->{plain} {name}\n   {place}={plain} {}", self.help);
        };
        let number = self.line.to_string();
        let gutter = " ".repeat(number.len());
        let indent = " ".repeat(line[..part.start].chars().count());
        let carets = "^".repeat(line[part.clone()].chars().count().max(1));
        format!(
            "{title}\n\
             {gutter}{place}-->{plain} {name}:{number}:{column}\n\
             {place}{number} |{plain} {line}\n\
             {place}{gutter} |{plain} {indent}{error}{carets} {help}{plain}",
            column = self.column,
            help = self.help,
        )
    }
}

/// How the report is coloured.
struct Paint {
    error: &'static str,
    place: &'static str,
    plain: &'static str,
}

const PLAIN: Paint = Paint { error: "", place: "", plain: "" };

/// Bold red and blue: the two that every terminal shows legibly, dark or light.
const COLOUR: Paint = Paint { error: "\x1b[1;31m", place: "\x1b[1;34m", plain: "\x1b[0m" };

/// For logs: one line.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.line, self.column, self.reason, self.help)
    }
}

impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A line made fit to be shown: secrets are `***`, and nothing in it moves the cursor.
struct Shown {
    line: String,
    part: Range<usize>,
}

impl Shown {
    fn of(text: &str, hidden: &[Range<usize>], line: Range<usize>, part: Range<usize>) -> Shown {
        let mut shown = Shown { line: String::new(), part: 0..0 };
        let mut at = line.start;
        let (mut from, mut to) = (None, None);
        while at < line.end {
            let covering = hidden.get(hidden.partition_point(|range| range.end <= at));
            let mask = covering.filter(|range| range.contains(&at)).map(|range| range.end.min(line.end));
            let next = mask.unwrap_or_else(|| at + text[at..].chars().next().map_or(1, char::len_utf8));
            if from.is_none() && next > part.start {
                from = Some(shown.line.len());
            }
            if to.is_none() && at >= part.end {
                to = Some(shown.line.len());
            }
            match mask {
                Some(_) => shown.line.push_str("***"),
                None => shown.line.extend(text[at..next].chars().filter(|c| *c != '\r').map(harmless)),
            }
            at = next;
        }
        let from = from.unwrap_or(shown.line.len());
        shown.part = from..to.unwrap_or(shown.line.len()).max(from);
        shown.cut()
    }

    /// A long line is cut to what is around the part.
    fn cut(mut self) -> Shown {
        if self.line.chars().count() <= LINE_CHARS_MAX {
            return self;
        }
        let lead = self.line[..self.part.start].chars().count();
        let skipped = lead.saturating_sub(LEAD_CHARS);
        let place = |line: &str, n: usize| line.char_indices().nth(n).map_or(line.len(), |(at, _)| at);
        let start = place(&self.line, skipped);
        let end = place(&self.line, skipped + LINE_CHARS_MAX);
        let before = if start > 0 { "…" } else { "" };
        let after = if end < self.line.len() { "…" } else { "" };
        let part = self.part.start.clamp(start, end)..self.part.end.clamp(start, end);
        self.line = format!("{before}{}{after}", &self.line[start..end]);
        self.part = before.len() + part.start - start..before.len() + part.end - start;
        self
    }
}

/// The nearest place at or before `at` where a character begins.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The report of a problem with `what` in `text`.
    fn about(text: &str, hidden: &str, what: &str) -> Report {
        let range = |part: &str| text.find(part).map(|at| at..at + part.len()).unwrap();
        let hidden: Vec<_> = Some(hidden).filter(|hidden| !hidden.is_empty()).map(range).into_iter().collect();
        let problem = Problem::at(text, &hidden, range(what), "reason".to_owned(), "help".to_owned());
        Report::new("c.toml".to_owned(), vec![problem])
    }

    /// Only the two lines with the text and the carets.
    fn lines(report: &Report) -> String {
        report.to_string().lines().skip(2).take(2).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_carets_stand_below_what_is_meant() {
        let report = about("a = 1\r\n\tkö = \"ß\" # x\r\nb = 2\n", "", "\"ß\"");
        assert_eq!((report.problems()[0].line(), report.problems()[0].column()), (2, 7));
        assert_eq!(lines(&report), "2 |  kö = \"ß\" # x\n  |       ^^^ help");
    }

    #[test]
    fn a_hidden_part_moves_the_carets_but_not_the_column() {
        let report = about("a = \"secret\", b = 3", "\"secret\"", "b");
        assert_eq!(report.problems()[0].column(), 15);
        assert_eq!(lines(&report), "1 | a = ***, b = 3\n  |          ^ help");
        // A problem within what is hidden points at the mask.
        assert_eq!(lines(&about("a = \"secret\"", "\"secret\"", "cre")), "1 | a = ***\n  |     ^^^ help");
    }

    #[test]
    fn nothing_in_a_file_moves_the_cursor() {
        let shown = about("a = \"\u{1b}[2J\u{7}\u{202e}\"", "", "a").for_stderr();
        assert!(shown.contains("a = \"\u{fffd}[2J\u{fffd}\u{fffd}\""), "{shown}");
    }

    #[test]
    fn a_long_line_is_cut_around_the_problem() {
        let text = format!("a = \"{}\", b = 3, c = \"{}\"", "x".repeat(300), "y".repeat(300));
        let shown = lines(&about(&text, "", "b"));
        let (line, carets) = shown.split_once('\n').unwrap();
        assert!(line.starts_with("1 | …xxx") && line.ends_with("yyy…"), "{line}");
        assert_eq!(line.chars().position(|c| c == 'b'), carets.chars().position(|c| c == '^'));
    }

    #[test]
    fn colour_is_only_for_terminals() {
        let report = about("a = 1", "", "a");
        assert!(!report.to_string().contains('\u{1b}'));
        assert!(report.render(&COLOUR).contains("\u{1b}[1;31merror\u{1b}[0m: reason"));
    }

    #[test]
    fn a_flood_of_problems_is_bounded() {
        let problems = vec![Problem::nowhere("reason".to_owned(), "help".to_owned()); 1000];
        let shown = Report::new("c.toml".to_owned(), problems).to_string();
        assert!(shown.ends_with("950 more problems are not shown\n1000 problems or more in c.toml; nothing was started"));
    }
}
