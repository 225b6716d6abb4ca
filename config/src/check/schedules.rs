//! `[schedules]`: what fires when, and that what it starts exists.

use std::collections::BTreeMap;

use chrono_tz::Tz;

use super::nodes::Ways;
use crate::cron_expression::CronExpression;
use crate::limits;
use crate::names::{ImageName, NodeName, ScheduleName};
use crate::nearest::{nearest, suggest};
use crate::pattern::pattern_fits;
use crate::problems::{Problems, Wrong, show};
use crate::raw::RawSchedule;
use crate::read::{Field, Found, Kind, Named, Written};
use crate::schedule::{CatchUp, Dialect, Schedule, Starts};
use crate::values;

/// The names of one kind that the file has, good or not, so that a reference to a faulty one is not a second problem.
pub(super) struct Known {
    names: Vec<String>,
    /// Those of them that can't be renewed from here.
    kept: Vec<String>,
    /// The table could not be read, so nothing can be said about what it holds.
    unreadable: bool,
}

impl Known {
    pub(super) fn names<T>(field: &Field<Named<T>>) -> Known
    where
        Named<T>: Kind,
    {
        let names = field.written().map(|written| written.value.0.iter().map(|(name, _)| name.value.clone()).collect());
        Known { names: names.unwrap_or_default(), kept: Vec::new(), unreadable: matches!(field.found, Found::Unreadable) }
    }

    pub(super) fn but(self, kept: Vec<String>) -> Known {
        Known { kept, ..self }
    }

    fn check(&self, name: &str, kind: &str, table: &str) -> Result<(), Wrong> {
        if self.kept.iter().any(|kept| kept == name) {
            let reason = format!("`{}` can't be renewed from here, because of what it `carries`", show(name));
            return Err(Wrong::new(reason, format!("leave it out, or move that elsewhere and change `{table}.{}`", show(name))));
        }
        if self.unreadable || self.names.iter().any(|known| known == name) {
            return Ok(());
        }
        let known: Vec<&str> = self.names.iter().map(String::as_str).collect();
        let help = suggest(name, &known, &format!("add `[{table}.{}]`", show(name)));
        Err(Wrong::new(format!("there is no {kind} `{}`", show(name)), show(&help)))
    }

    /// Those of these nodes that `pattern` means: a node's name, in which `*` stands for any characters. A faulty name is a problem of its own.
    pub(super) fn that_fit(&self, pattern: &str) -> Result<Vec<NodeName>, Wrong> {
        let found: Vec<&String> = self.names.iter().filter(|name| pattern_fits(pattern, name)).collect();
        if !found.is_empty() || self.unreadable {
            return Ok(found.into_iter().filter_map(|name| name.parse().ok()).collect());
        }
        if !pattern.contains('*') {
            self.check(pattern, "node", "nodes")?;
        }
        let example = nearest(pattern, self.names.iter().map(String::as_str)).or(self.names.first().map(String::as_str));
        let help = match example {
            Some(name) => format!("write a node's name, such as `{}`, in which `*` may stand for any characters", show(name)),
            None => "add a node under `[nodes]`, or leave this out".to_owned(),
        };
        Err(Wrong::new(format!("`{}` fits no node", show(pattern)), help))
    }
}

pub(super) fn schedules(
    field: Field<Named<RawSchedule>>,
    images: &Known,
    nodes: &Known,
    ways: &Ways,
    problems: &mut Problems<'_>,
) -> Option<BTreeMap<ScheduleName, Schedule>> {
    super::nodes::named(field, problems, |_, raw, problems| raw.check(images, nodes, ways, problems))
}

/// The two words for [`Starts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kinds {
    Survey,
    NodeOs,
}

impl RawSchedule {
    fn check(self, images: &Known, nodes: &Known, ways: &Ways, problems: &mut Problems<'_>) -> Option<Schedule> {
        let dialects = [("posix", Dialect::Posix), ("quartz", Dialect::Quartz)];
        let dialect = problems.or(&self.dialect, || Dialect::Posix, |text| values::one_of(text, &dialects));
        // Without a dialect nothing can be said about the expression.
        let cron = match dialect {
            Some(dialect) => {
                problems.need(&self.here, &self.cron, "\"30 2 * * 6\"", |text| cron(dialect, text))
            }
            None => None,
        };
        let timezone = problems.or(&self.timezone, || Tz::UTC, |text| timezone(text));
        let words = [("skip", CatchUp::Skip), ("latest", CatchUp::Latest), ("all", CatchUp::All)];
        let catch_up = problems.or(&self.catch_up, || CatchUp::Latest, |text| values::one_of(text, &words));
        let max_lateness = problems.length(&self.max_lateness, &limits::MAX_LATENESS);
        let starts = self.starts(images, nodes, ways, problems);
        Some(Schedule {
            cron: cron?,
            dialect: dialect?,
            timezone: timezone?,
            catch_up: catch_up?,
            max_lateness: max_lateness?,
            starts: starts?,
        })
    }

    fn starts(&self, images: &Known, nodes: &Known, ways: &Ways, problems: &mut Problems<'_>) -> Option<Starts> {
        let words = [("survey", Kinds::Survey), ("node-os", Kinds::NodeOs)];
        let kind = problems.need(&self.here, &self.starts, "\"survey\"", |text| values::one_of(text, &words));
        if kind == Some(Kinds::Survey) {
            return self.survey(problems);
        }
        let image = match &self.image.found {
            Found::Written(written) => problems.take(written, |text| {
                images.check(text, "image", "images")?;
                self.writable(text, nodes, ways)?;
                super::nodes::name_of::<ImageName>(text)
            }),
            Found::Nothing if kind.is_some() => {
                problems.missing(&self.here, "image", "\"one of [images]\"");
                None
            }
            Found::Nothing | Found::Unreadable => None,
        };
        let chosen = match &self.nodes.found {
            Found::Nothing => Some(Vec::new()),
            Found::Unreadable => None,
            Found::Written(list) => chosen_nodes(&list.value, nodes, problems),
        };
        kind?;
        Some(Starts::NodeOs { nodes: chosen?, image: image? })
    }

    /// `image` can be written to all of the chosen nodes, each in its own way.
    fn writable(&self, image: &str, nodes: &Known, ways: &Ways) -> Result<(), Wrong> {
        let chosen = |node: &String| match self.nodes.written() {
            Some(list) if !list.value.is_empty() => list.value.iter().any(|one| one.value == *node),
            Some(_) | None => !nodes.kept.contains(node),
        };
        for (node, ironics) in ways.nodes.iter().filter(|(node, _)| chosen(node)) {
            let (lacking, who, key) = if *ironics {
                (&ways.not_for_ironic, "Ironic renews", "ironic_image = \"http://192.0.2.1/images/node.raw\"")
            } else {
                (&ways.not_for_netboot, "our installer renews", "boot_kernel = \"noble/vmlinuz\"` and `boot_initrd = \"noble/initrd\"")
            };
            if lacking.iter().any(|lacks| lacks == image) {
                let reason = format!("{who} `{}`, and `{}` does not say what is to be written there", show(node), show(image));
                return Err(Wrong::new(reason, format!("add `{key}` to `[images.{}]`", show(image))));
            }
        }
        Ok(())
    }

    fn survey(&self, problems: &mut Problems<'_>) -> Option<Starts> {
        let keys = [
            ("nodes", self.nodes.written().map(|written| &written.key)),
            ("image", self.image.written().map(|written| &written.key)),
        ];
        for (key, at) in keys {
            if let Some(at) = at {
                let reason = format!("`{key}` has no meaning for a survey, which reads every node");
                problems.add(at, reason, "leave it out, or write `starts = \"node-os\"`");
            }
        }
        Some(Starts::Survey)
    }
}

fn chosen_nodes(list: &[Written<String>], nodes: &Known, problems: &mut Problems<'_>) -> Option<Vec<NodeName>> {
    let mut chosen = Vec::new();
    let mut good = true;
    for (n, written) in list.iter().enumerate() {
        let name = problems.take(written, |text| {
            nodes.check(text, "node", "nodes")?;
            if list[..n].iter().any(|earlier| earlier.value == *text) {
                return Err(Wrong::new(format!("`{}` is in this list twice", show(text)), "leave one of the two out"));
            }
            super::nodes::name_of::<NodeName>(text)
        });
        good &= name.is_some();
        chosen.extend(name);
    }
    good.then_some(chosen)
}

fn cron(dialect: Dialect, text: &str) -> Result<String, Wrong> {
    CronExpression::parse(dialect, text)?;
    Ok(text.to_owned())
}

fn timezone(text: &str) -> Result<Tz, Wrong> {
    if let Ok(zone) = text.parse() {
        return Ok(zone);
    }
    let names = || chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name());
    // `Berlin` and `europe/berlin` mean something, and similarity alone would miss the first.
    let city = text.rsplit('/').next().unwrap_or_default().replace(' ', "_");
    let by_city = names().find(|name| name.rsplit('/').next().is_some_and(|last| last.eq_ignore_ascii_case(&city)));
    let help = match by_city.or_else(|| nearest(text, names())) {
        Some(name) => format!("did you mean `{name}`?"),
        None => "write a zone such as `UTC` or `Europe/Berlin`".to_owned(),
    };
    Err(Wrong::new(format!("`{}` is not a time zone", show(text)), help))
}
