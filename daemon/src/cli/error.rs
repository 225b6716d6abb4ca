//! Why a command did not do what it was asked to, with what to do about it.

use std::path::PathBuf;

use super::out::{Style, clean};
use crate::exit::Exit;
use crate::wire::ProblemView;

/// Whose the socket is as the daemon's unit has it.
const GROUP: &str = "turnaround";

type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// The daemon said no.
    #[error("{}", .0.detail)]
    Problem(ProblemView),
    #[error("no daemon answers at {}", socket.display())]
    Unreachable {
        socket: PathBuf,
        #[source]
        source: BoxError,
    },
    /// It is there, and not for us.
    #[error("you may not open the daemon's socket {}", socket.display())]
    SocketDenied {
        socket: PathBuf,
        /// Who may, where that can be seen.
        group: Option<String>,
    },
    #[error("it is not known whether the order was taken")]
    OrderUnknown {
        key: String,
        #[source]
        source: Box<CliError>,
    },
    #[error("the daemon's answer can't be understood: {what}")]
    Answer { what: String },
    #[error("{what}")]
    Usage { what: String, remedy: String },
    #[error("{what}")]
    NoNode { what: String, remedy: String },
    #[error("there is no workflow `{typed}`")]
    NoWorkflow { typed: String },
    /// A node was typed where a workflow has to be, with the open workflows that renew it, and the rollout in which its turn is yet to come.
    #[error("`{node}` is a node, and no workflow")]
    NodeTyped { node: String, open: Vec<String>, planned: Option<String> },
    #[error("{count} workflows begin with `{typed}`: {}", some.join(", "))]
    Ambiguous { typed: String, count: usize, some: Vec<String> },
    #[error("the configuration at {} is not good", path.display())]
    Config { path: PathBuf, report: String },
    #[error("{what}")]
    Local {
        what: String,
        #[source]
        source: BoxError,
    },
    /// Whoever read our output has seen enough.
    #[error("the reader of the output is gone")]
    ReaderGone,
}

impl CliError {
    pub(super) fn exit(&self) -> Exit {
        match self {
            CliError::Problem(problem) => match problem.status {
                404 => Exit::NotFound,
                422 if problem.kind.ends_with(":not-in-configuration") => Exit::NotFound,
                400 | 413 | 422 => Exit::Usage,
                403 | 409 => Exit::Refused,
                _ => Exit::Failed,
            },
            CliError::Unreachable { .. } => Exit::Unreachable,
            CliError::SocketDenied { .. } => Exit::Refused,
            CliError::OrderUnknown { source, .. } => source.exit(),
            CliError::Usage { .. } | CliError::Ambiguous { .. } => Exit::Usage,
            CliError::NoWorkflow { .. } | CliError::NodeTyped { .. } | CliError::NoNode { .. } => Exit::NotFound,
            CliError::Config { .. } => Exit::Config,
            CliError::Answer { .. } | CliError::Local { .. } => Exit::Failed,
            CliError::ReaderGone => Exit::Good,
        }
    }

    fn remedy(&self) -> String {
        match self {
            CliError::Problem(problem) => problem.remedy.clone(),
            CliError::Unreachable { .. } => "start it with `systemctl start turnaround-daemon`, or by hand with \
                 `turnaround-daemon --config FILE`. If it runs, `systemctl status turnaround-daemon` tells whether it still \
                 waits for its Redis. If it serves elsewhere, give `--socket PATH` or `--config FILE`. If it serves others and not you: of one user \
                 it serves 64 connections at a time, and closes further ones unheard"
                .to_owned(),
            CliError::SocketDenied { group, .. } => {
                let group = group.as_deref().unwrap_or(GROUP);
                format!(
                    "it is for the group `{group}`: have yourself added (`sudo usermod -aG {group} USER`), and log in anew. That lets you look; \
                     who may change things is in `daemon.operators` of the configuration"
                )
            }
            CliError::OrderUnknown { key, .. } => {
                format!("see what `turnaround workflows` says; or give the order again with `--key {key}`, which starts it once at most")
            }
            CliError::Usage { remedy, .. } | CliError::NoNode { remedy, .. } => remedy.clone(),
            CliError::NoWorkflow { .. } => "`turnaround workflows --all` lists what is kept; `turnaround journal` with the whole id also reads the \
                 archive"
                .to_owned(),
            CliError::NodeTyped { node, open, planned: Some(rollout) } if open.is_empty() => {
                format!("no workflow renews {node} yet; {rollout} will, when its turn comes: `turnaround show {rollout}`")
            }
            CliError::NodeTyped { node, open, planned: None } if open.is_empty() => format!(
                "no open workflow renews {node}; `turnaround nodes` tells what was done to it, `turnaround workflows --all` lists what is kept"
            ),
            CliError::NodeTyped { open, .. } => format!("give the workflow that renews it: {}", open.join(", ")),
            CliError::Ambiguous { .. } => "type more of it".to_owned(),
            CliError::Answer { .. } => "are the command and the daemon of the same release? compare `turnaround --version` \
                 with `turnaround status`"
                .to_owned(),
            CliError::Config { .. } | CliError::Local { .. } | CliError::ReaderGone => String::new(),
        }
    }

    /// To stderr, for people; with `--json` as one line of JSON.
    pub(super) fn tell(&self, style: &Style) {
        if let CliError::ReaderGone = self {
            return;
        }
        let (text, remedy) = (crate::api::problem::chain(self), self.remedy());
        if style.json {
            let problem = match self {
                CliError::Problem(problem) => serde_json::to_value(problem).unwrap_or_default(),
                _ => serde_json::json!({ "detail": text, "remedy": remedy }),
            };
            eprintln!("{problem}");
            return;
        }
        if let CliError::Config { report, .. } = self {
            eprintln!("{report}\n");
        }
        eprintln!("{}: {}", style.bad("error"), clean(&text));
        if !remedy.is_empty() {
            eprintln!("  {}: {}", style.strong("help"), clean(&remedy));
        }
    }
}
