//! The setup script of the simulated site: its runs, and what they do to nodes.

use super::log::Happened;
use super::plan::{Call, ScriptGoesWrong};
use super::site::{Due, Site};
use super::trouble::Trouble;
use crate::ports::{HostRecap, ScriptEnd, ScriptRun, ScriptState};

/// As `sh` tells of a program that was not found.
const NO_SUCH_NODE: i32 = 127;
/// As `ansible-playbook` ends: hosts failed; hosts were unreachable.
const HOSTS_FAILED: i32 = 2;
const HOSTS_UNREACHABLE: i32 = 4;

#[derive(Debug)]
pub(super) struct Run {
    name: String,
    /// The node that its arguments name.
    node: Option<usize>,
    /// It is about the PXE server, and no node.
    fetches: bool,
    goes_wrong: Option<ScriptGoesWrong>,
    state: ScriptState,
}

impl Site {
    /// Of several calls with one name only the first does anything; none while another run goes on.
    pub(super) fn start_script(&mut self, run: &ScriptRun) -> Result<(), Trouble> {
        let Some(setup) = &self.plan.setup else { return Err(Trouble::refused(400, "the site has no setup script")) };
        let takes = setup.takes;
        let goes_on = |run: &Run| matches!(run.state, ScriptState::Running { .. });
        if !self.runs.iter().any(|known| known.name == run.name || goes_on(known)) {
            let node = run.arguments.iter().find_map(|argument| self.node_named(argument));
            let nth = self.runs.iter().filter(|run| run.node.is_some() == node.is_some()).count();
            let plan = if node.is_some() { &setup.goes_wrong } else { &setup.fetch_goes_wrong };
            let goes_wrong = plan.get(nth).copied();
            let named = node.map(|node| self.nodes[node].name.clone());
            self.record(Happened::ScriptStarted { run: run.name.clone(), node: named });
            let state = ScriptState::Running { last_line: "TASK [nova-cell : Starting nova-compute container]".to_owned() };
            let fetches = run.arguments.iter().any(|argument| argument == "pxesetup");
            self.runs.push(Run { name: run.name.clone(), node, fetches, goes_wrong, state });
            if goes_wrong != Some(ScriptGoesWrong::Hangs) {
                self.after(takes, Due::ScriptEnds(self.runs.len() - 1));
            }
        }
        self.answer(Call::StartScript, ())
    }

    pub(super) fn script(&self, name: &str) -> ScriptState {
        self.runs.iter().find(|run| run.name == name).map_or(ScriptState::NotStarted, |run| run.state.clone())
    }

    pub(super) fn script_ends(&mut self, run: usize) {
        let (node, goes_wrong) = (self.runs[run].node, self.runs[run].goes_wrong);
        let works = !matches!(goes_wrong, Some(ScriptGoesWrong::DoesNothing | ScriptGoesWrong::FailsMidway | ScriptGoesWrong::IsKilled));
        let did = works && node.is_some_and(|node| self.deploy(node));
        let named = node.map(|node| self.nodes[node].name.clone());
        let (code, failed, unreachable) = match (goes_wrong, &named) {
            (Some(ScriptGoesWrong::FailsMidway | ScriptGoesWrong::FailsAtTheEnd), None) => (HOSTS_FAILED, 1, 0),
            (_, None) if self.runs[run].fetches => (0, 0, 0),
            (_, None) => (NO_SUCH_NODE, 0, 0),
            (Some(ScriptGoesWrong::DoesNothing), _) => (0, 0, 0),
            (Some(ScriptGoesWrong::FailsAtTheEnd), _) => (1, 0, 0),
            (Some(ScriptGoesWrong::FailsMidway), _) => (HOSTS_FAILED, 1, 0),
            (Some(ScriptGoesWrong::IsKilled | ScriptGoesWrong::Hangs) | None, _) if did => (0, 0, 0),
            (Some(ScriptGoesWrong::IsKilled | ScriptGoesWrong::Hangs) | None, _) => (HOSTS_UNREACHABLE, 0, 1),
        };
        let recap = named.iter().cloned().chain((self.runs[run].fetches && works).then(|| "pxe".to_owned())).map(|host| HostRecap { host, ok: 10, changed: 3, unreachable, failed }).collect();
        let last_lines = vec![format!("{} : ok=10", named.as_deref().unwrap_or("no host"))];
        let killed = goes_wrong == Some(ScriptGoesWrong::IsKilled);
        self.runs[run].state = if killed {
            ScriptState::Lost { last_lines }
        } else {
            ScriptState::Ended(ScriptEnd { code, recap, last_lines })
        };
        let code = (!killed).then_some(code);
        self.record(Happened::ScriptEnded { run: self.runs[run].name.clone(), node: named, code, did });
    }
}
