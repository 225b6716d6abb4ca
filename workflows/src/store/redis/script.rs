//! The scripts, and how one is run.

use ::redis::{Cmd, Value, cmd};

use super::connection::Connection;
use super::keys::Keys;
use super::{StoreError, layout, limits};
use crate::store::{INBOX_SIGNALS_MAX, Status};

/// One script, known to Redis by its digest. Redis forgets scripts when it restarts; then they are loaded again.
pub(super) struct Script {
    code: String,
    digest: String,
    /// Begins with `gate.lua`.
    is_gated: bool,
}

impl Script {
    fn new(code: &str) -> Script {
        let number = |status| layout::number(status).to_string();
        let mut code = code
            .replace("@STATUSES@", &layout::statuses())
            .replace("@RUNNABLE@", &number(Status::Runnable))
            .replace("@WAITING@", &number(Status::Waiting))
            .replace("@QUARANTINED@", &number(Status::Quarantined))
            .replace("@LAYOUT@", layout::LAYOUT);
        if cfg!(feature = "bug-commit-without-fence") {
            code = code.replace("if not holds then return FENCED end", "");
        }
        let digest = ::redis::Script::new(&code).get_hash().to_owned();
        Script { code, digest, is_gated: false }
    }

    /// The beginning of a call, up to the arguments that are the script's own.
    pub(super) fn call(&self, keys: &Keys) -> Cmd {
        let shared = keys.shared();
        let mut call = cmd("EVALSHA");
        call.arg(&self.digest).arg(shared.len());
        for key in shared {
            call.arg(key);
        }
        call.arg(format!(
            "{} {} {} {} {} {}",
            keys.prefix,
            limits::EVENTS_KEPT,
            limits::BELL_RINGS_MAX,
            limits::WAITERS_LOOKED_MAX,
            INBOX_SIGNALS_MAX,
            limits::SIGNALS_HANDED_MAX
        ));
        call
    }

    /// The beginning of a call of a script that does without `common.lua`.
    pub(super) fn bare_call(&self, keys: &[&str]) -> Cmd {
        let mut call = cmd("EVALSHA");
        call.arg(&self.digest).arg(keys.len()).arg(keys);
        call
    }

    /// Runs what [`Script::call`] began.
    pub(super) async fn run(
        &self,
        connection: &Connection,
        operation: &'static str,
        call: Cmd,
    ) -> Result<Value, StoreError> {
        if self.is_gated {
            connection.run_writing(operation, &call, &self.code).await
        } else {
            connection.run_script(operation, &call, &self.code).await
        }
    }

    /// The same for the script that looks on behalf of a witness.
    pub(super) async fn run_with_run(
        &self,
        connection: &Connection,
        operation: &'static str,
        call: Cmd,
    ) -> Result<Value, StoreError> {
        connection.run_with_run(operation, call, &self.code).await
    }
}

pub(super) struct Scripts {
    pub(super) create: Script,
    pub(super) advance: Script,
    pub(super) signal: Script,
    pub(super) judge_ticks: Script,
    pub(super) release_budget: Script,
    pub(super) sweep: Script,
    pub(super) open: Script,
    pub(super) compare: Script,
    pub(super) standing: Script,
    pub(super) accept: Script,
    read: Script,
    entries: Script,
}

/// A script that writes: nothing while the store is halted.
macro_rules! with_common {
    ($file:literal) => {
        Script {
            is_gated: true,
            ..Script::new(concat!(
                include_str!("scripts/gate.lua"),
                "\n",
                include_str!("scripts/common.lua"),
                "\n",
                include_str!($file)
            ))
        }
    };
}

impl Scripts {
    pub(super) fn new() -> Scripts {
        Scripts {
            create: with_common!("scripts/create.lua"),
            advance: with_common!("scripts/advance.lua"),
            signal: with_common!("scripts/signal.lua"),
            judge_ticks: with_common!("scripts/judge_ticks.lua"),
            release_budget: with_common!("scripts/release_budget.lua"),
            sweep: with_common!("scripts/sweep.lua"),
            open: Script::new(include_str!("scripts/open.lua")),
            compare: Script::new(include_str!("scripts/compare.lua")),
            standing: Script::new(include_str!("scripts/standing.lua")),
            // Without the gate: it is what opens it.
            accept: Script::new(concat!(include_str!("scripts/common.lua"), "\n", include_str!("scripts/accept.lua"))),
            read: Script::new(include_str!("scripts/read.lua")),
            entries: Script::new(include_str!("scripts/entries.lua")),
        }
    }

    /// Reads what is kept of `ids`: one element for each, nil for those that are not there.
    pub(super) async fn read(
        &self,
        connection: &Connection,
        keys: &Keys,
        operation: &'static str,
        ids: &[impl AsRef<str>],
    ) -> Result<Value, StoreError> {
        let mut call = self.read.bare_call(&[&keys.lease, &keys.heads, &keys.documents, &keys.states, &keys.holders]);
        call.arg(&keys.prefix);
        for id in ids {
            call.arg(id.as_ref());
        }
        self.read.run(connection, operation, call).await
    }

    /// Reads what single commits appended, by workflow and place of the first entry: for each the document and the entries, or nils.
    pub(super) async fn entries(
        &self,
        connection: &Connection,
        keys: &Keys,
        operation: &'static str,
        places: &[(&str, u64)],
    ) -> Result<Value, StoreError> {
        let mut call = self.entries.bare_call(&[&keys.documents, &keys.journal]);
        for (id, seq) in places {
            call.arg(*id).arg(*seq);
        }
        self.entries.run(connection, operation, call).await
    }
}
