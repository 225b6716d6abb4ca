//! Other people's programs, run without a shell: arguments as a list, an empty environment, a time limit, a bounded
//! output, and killed where nobody waits for them any more.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tracing::field::Empty;
use tracing::{Instrument as _, info_span};

use super::http::{foreign_text, trace_headers};

/// As much of each of a program's outputs is read, where nothing else is said.
// The longest that is meant to come is an os-release file, under 1 KiB.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;

/// One run of a program, to be started. `Debug` is left out: the environment may hold a password.
pub(crate) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
    time_limit: Duration,
    output_max: u64,
}

/// What a program left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    /// None where a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Why a program did not run to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    #[error("could not start {0}")]
    NotStarted(PathBuf, #[source] std::io::Error),
    #[error("{0} was still running after {1:?}, and was killed")]
    TooSlow(PathBuf, Duration),
    #[error("could not read what {0} said")]
    Unreadable(PathBuf, #[source] std::io::Error),
    #[error("{0} said more than {1} bytes, and was killed")]
    TooLong(PathBuf, u64),
}

impl Program {
    pub(crate) fn new(path: &Path, time_limit: Duration) -> Program {
        Program { path: path.to_owned(), arguments: Vec::new(), environment: Vec::new(), time_limit, output_max: OUTPUT_BYTES_MAX }
    }

    pub(crate) fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Program {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// The arguments so far.
    pub(crate) fn into_arguments(self) -> Vec<OsString> {
        self.arguments
    }

    /// It may say so much, in bytes, on each of its outputs.
    pub(crate) fn says_at_most(self, output_max: u64) -> Program {
        Program { output_max, ..self }
    }

    /// Sets a variable of the program's environment. Other users can't see it, unlike its arguments.
    pub(crate) fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Program {
        self.environment.push((name, value.into()));
        self
    }

    /// Runs it to its end, in a span of its own. Whatever its exit code, that is a success here.
    pub(crate) async fn run(self) -> Result<Finished, ProgramError> {
        // Its arguments stay out: they name users and keys.
        let name = self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned();
        let span = info_span!("program", otel.name = name, otel.status_code = Empty, process.exit.code = Empty);
        let finished = self.finish().instrument(span.clone()).await;
        match &finished {
            Ok(finished) => span.record("process.exit.code", finished.code.map(i64::from)),
            Err(_) => span.record("otel.status_code", "error"),
        };
        finished
    }

    async fn finish(self) -> Result<Finished, ProgramError> {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        // Its messages are read by us, and are matched in one language.
        command.env("LANG", "C").env("LC_ALL", "C");
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        for (name, value) in &trace_headers() {
            // `traceparent` becomes TRACEPARENT, as programs that trace expect it.
            if let Ok(value) = value.to_str() {
                command.env(name.as_str().to_ascii_uppercase(), value);
            }
        }
        command.envs(self.environment);
        let mut child = command.spawn().map_err(|source| ProgramError::NotStarted(self.path.clone(), source))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let ended = tokio::time::timeout(self.time_limit, async {
            tokio::try_join!(read(out, self.output_max), read(err, self.output_max), async { child.wait().await.map_err(Ended::Unreadable) })
        });
        match ended.await {
            Ok(Ok((stdout, stderr, status))) => Ok(Finished { code: status.code(), stdout, stderr }),
            Ok(Err(Ended::Unreadable(source))) => Err(ProgramError::Unreadable(self.path, source)),
            Ok(Err(Ended::TooLong)) => Err(ProgramError::TooLong(self.path, self.output_max)),
            Err(_) => Err(ProgramError::TooSlow(self.path, self.time_limit)),
        }
    }
}

enum Ended {
    Unreadable(std::io::Error),
    TooLong,
}

async fn read(output: Option<impl AsyncRead + Unpin>, max: u64) -> Result<String, Ended> {
    let mut bytes = Vec::new();
    if let Some(output) = output {
        output.take(max + 1).read_to_end(&mut bytes).await.map_err(Ended::Unreadable)?;
    }
    if bytes.len() as u64 > max { Err(Ended::TooLong) } else { Ok(String::from_utf8_lossy(&bytes).into_owned()) }
}

impl Finished {
    /// The last line of what it complained, in which programs put the reason.
    pub(crate) fn complaint(&self) -> String {
        let last = self.stderr.lines().rfind(|line| !line.trim().is_empty());
        foreign_text(last.unwrap_or("it gave no reason"))
    }
}
