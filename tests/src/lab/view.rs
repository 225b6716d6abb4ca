//! What the lab shows: a live view on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use turnaround_workflows::rehearsal::SiteSnapshot;

/// Where the rollout's nodes stand: node -> what its workflow says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    pub nodes: BTreeMap<String, String>,
    pub done: usize,
}

/// Shows progress.
pub struct View {
    began: tokio::time::Instant,
    shown: BTreeMap<String, String>,
    bars: Option<Bars>,
}

struct Bars {
    all: MultiProgress,
    nodes: BTreeMap<String, ProgressBar>,
    total: ProgressBar,
}

/// Width of one line of the live view: it must not wrap.
const LINE_CHARS_MAX: usize = 110;

impl View {
    /// A live view if standard error is a terminal and `plain` is false.
    pub fn new(nodes: &[String], plain: bool) -> View {
        let bars = (!plain && std::io::stderr().is_terminal()).then(|| Bars::new(nodes));
        View { began: tokio::time::Instant::now(), shown: BTreeMap::new(), bars }
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// A line of its own, above the live view.
    pub fn tell(&self, text: &str) {
        let line = format!("{:6.1} s  {text}", self.began.elapsed().as_secs_f64());
        match &self.bars {
            Some(bars) => {
                let _ = bars.all.println(line);
            }
            None => eprintln!("{line}"),
        }
    }

    pub fn update(&mut self, progress: &Progress, site: &SiteSnapshot) {
        for node in &site.nodes {
            let work = progress.nodes.get(&node.name).map_or("", String::as_str);
            let service = if node.enabled { "open" } else { "closed" };
            let text = format!(
                "{:<8} {:<7} {:>2} inst.  {:<6} {:<11} {work}",
                node.name, service, node.instances, node.os_version_id, node.phase
            );
            let text: String = text.chars().take(LINE_CHARS_MAX).collect();
            match &self.bars {
                Some(bars) => {
                    if let Some(bar) = bars.nodes.get(&node.name) {
                        bar.set_message(text);
                    }
                }
                None if self.shown.get(&node.name).is_none_or(|shown| shown != work) => {
                    if !work.is_empty() {
                        self.tell(&format!("{:<8} {work}", node.name));
                    }
                    self.shown.insert(node.name.clone(), work.to_owned());
                }
                None => {}
            }
        }
        if let Some(bars) = &self.bars {
            bars.total.set_position(progress.done as u64);
        }
    }

    pub fn finish(&self) {
        if let Some(bars) = &self.bars {
            for bar in bars.nodes.values() {
                bar.finish();
            }
            bars.total.finish();
        }
    }
}

impl Bars {
    fn new(nodes: &[String]) -> Bars {
        let all = MultiProgress::new();
        let line = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = |name: &String| {
            let bar = all.add(ProgressBar::new_spinner());
            bar.set_style(line.clone());
            (name.clone(), bar)
        };
        let rows = nodes.iter().map(bar).collect();
        let total = all.add(ProgressBar::new(nodes.len() as u64));
        let style = ProgressStyle::with_template("{elapsed_precise} {bar:40} {pos} of {len} nodes renewed");
        total.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Bars { all, nodes: rows, total }
    }
}
