//! Exit codes of both programs. They are part of the interface: scripts and systemd units go by them.

use std::process::ExitCode;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Good = 0,
    /// What was asked for did not succeed; of the daemon: something unforeseen ended it.
    Failed = 1,
    /// The command line can't be understood.
    Usage = 2,
    /// No daemon answers on the socket.
    Unreachable = 3,
    /// The daemon refused: no rights, or it can't be done as things stand.
    Refused = 4,
    /// There is no such workflow, node or image.
    NotFound = 5,
    /// Daemon: the store can't be used as it is, e.g. it would lose acknowledged writes (EX_UNAVAILABLE).
    Store = 69,
    /// Daemon: the socket can't be had, e.g. another daemon serves it (EX_CANTCREAT).
    Socket = 73,
    /// The configuration is not good (EX_CONFIG).
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}
