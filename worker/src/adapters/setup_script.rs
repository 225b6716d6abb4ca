//! The site's setup script, run to its end beside the workers.
//!
//! A run is nobody's child: its worker may be killed, restarted or replaced. What is known of it is in its folder,
//! `<state_dir>/scripts/<name>`:
//!
//! | file | |
//! |---|---|
//! | `pid` | who runs it: process id, start time (`/proc/<pid>/stat`), boot id. Made by a hard link, so only one can ever have made it: **that is what keeps a run from being started twice** |
//! | `log` | what it writes |
//! | `exit` | its exit code, once it has ended, with what it has left behind in the background |
//!
//! One run at a time: the runner holds a lock on `<state_dir>/scripts/lock`, and whatever it starts inherits it, so that the lock is free
//! when nothing of the run is left, and not earlier. (But for what closes what it has not opened itself, as a daemon does.) The runner itself, and
//! nothing else, holds a lock on `pid` as long as it lives: a worker may not be allowed to see it in `/proc`.
//!
//! Where systemd runs, a run is a transient unit of its own (`systemd-run`), named after it: it has none of the confinement of a
//! worker's unit, and outlives it. Elsewhere it is a session of its own (`setsid`). In both, the same few lines of `sh` make the
//! files. While the runner or any process of that session lives, the run is said to go on.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use turnaround_config::{Secret, SecretText, Setup};
use turnaround_workflows::ports::{HostRecap, PortError, PortErrorKind, ScriptEnd, ScriptRun, ScriptState, SetupScript};

use super::http::foreign_text;
use super::program::Program;

/// Time in which a run must be handed over; it does not wait for the run itself.
// `systemd-run` waits for D-Bus, which a busy host answers within seconds.
const START_TIME_MAX: Duration = Duration::from_secs(30);
/// The last lines are looked for in so much of the end of a log: a line of Ansible's may hold all that a program has written.
const TAIL_BYTES_MAX: u64 = 256 * 1024;
/// So much of a line is read in search of recaps: a host's name and its counts take less than half a KiB, colours included.
const LINE_BYTES_MAX: u64 = 4 * 1024;
/// Lines of recaps that are kept: a thousand hosts in ten plays, which take about a megabyte.
const RECAP_LINES_MAX: usize = 10_000;
/// Lines that a person is shown.
const LAST_LINES_MAX: usize = 10;
/// A process id, two numbers and a boot id.
const SMALL_FILE_BYTES_MAX: u64 = 1024;
/// Where systemd says that it runs (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";
/// Where it shows a unit's credentials.
const CREDENTIAL: &str = "vault";

/// `$1` is the run's folder, `$2` where to work; then the program and its arguments.
///
/// Written to be read by a person at night, and to do nothing if the run has been started before. What systemd tells a unit of itself
/// (systemd.exec(5)) is not the script's business. Signals that ask it to end are left
/// to the script: it alone knows what may be left half done. File descriptor 9 is the lock of all runs, which the script inherits, 8 the runner's own.
///
/// That the run was started stands on the disk, name and all, before anything of the script runs: after a power cut it is not started again.
///
/// Before it writes `exit` it lets go of its own 9, and waits until nothing else holds that lock. Another run that takes it right then only costs time:
/// it can do so only when nothing of this one is left, and `exit` comes when that one has ended; 8 tells meanwhile that this one goes on.
const RUNNER: &str = r#"
exec </dev/null >/dev/null 2>&1
umask 022
run=$1; work=$2; shift 2
cd "$run" || exit 1
exec 9>>../lock && flock -n 9 || exit 1
echo "$$ $(cut -d' ' -f22 /proc/$$/stat) $(cat /proc/sys/kernel/random/boot_id)" >"pid.$$" && sync "pid.$$" || exit 1
ln "pid.$$" pid && sync . || { rm -f "pid.$$"; exit 1; }
rm -f "pid.$$"
exec 8<pid && flock 8
trap : HUP INT TERM
if [ -n "$CREDENTIALS_DIRECTORY" ] && [ -r "$CREDENTIALS_DIRECTORY/vault" ]; then
    VAULT_PASSWORD=$(cat "$CREDENTIALS_DIRECTORY/vault"); export VAULT_PASSWORD
fi
unset CREDENTIALS_DIRECTORY INVOCATION_ID JOURNAL_STREAM SYSTEMD_EXEC_PID MEMORY_PRESSURE_WATCH MEMORY_PRESSURE_WRITE
if cd "$work"; then "$@" >"$run/log" 2>&1 8<&-; code=$?; else echo "$work: no such folder" >"$run/log"; code=126; fi
trap '' HUP INT TERM
exec 9>>"$run/../lock" && flock 9
echo "$code" >"$run/exit.new" && sync "$run/exit.new" && mv "$run/exit.new" "$run/exit"
"#;

pub(crate) struct SetupScripts {
    /// None: the site has none.
    script: Option<Script>,
    /// The folder of all runs.
    runs: PathBuf,
    place: String,
}

struct Script {
    program: PathBuf,
    directory: PathBuf,
    vault: Option<Vault>,
}

struct Vault {
    password: SecretText,
    /// Where systemd can read it for a unit: what is on its command line, or in its environment, every user can see.
    file: PathBuf,
}

/// Who runs it.
#[derive(Debug, PartialEq, Eq)]
struct Runner {
    pid: u32,
    started: u64,
    boot_id: String,
}

impl SetupScripts {
    /// # Errors
    /// A sentence: the password can't be read, or the host's name.
    pub(crate) fn new(setup: Option<&Setup>, runs: PathBuf) -> Result<SetupScripts, String> {
        let script = match setup {
            None => None,
            Some(setup) => Some(Script {
                program: setup.program.clone(),
                directory: setup.directory.clone(),
                vault: setup.vault_password.as_ref().map(vault).transpose()?,
            }),
        };
        let place = fs::read_to_string("/proc/sys/kernel/hostname").map_err(|error| format!("the name of this host can't be read: {error}"))?;
        Ok(SetupScripts { script, runs, place: place.trim().to_owned() })
    }

    fn folder(&self, name: &str) -> Result<PathBuf, PortError> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(good) {
            let kind = PortErrorKind::Refused { reason: "that is no name of a run".to_owned() };
            return Err(PortError::new(format!("find run `{}`", foreign_text(name)), kind));
        }
        Ok(self.runs.join(name))
    }
}

fn vault(secret: &Secret) -> Result<Vault, String> {
    let password = secret.read().map_err(|error| format!("{error}; {}", error.remedy()))?;
    let file = match secret {
        Secret::File(path) => path.clone(),
        Secret::Credential(name) => Path::new(&std::env::var_os("CREDENTIALS_DIRECTORY").unwrap_or_default()).join(name),
    };
    Ok(Vault { password, file })
}

impl Script {
    /// What hands a run over to somebody who outlives this process.
    fn launcher(&self, run: &ScriptRun, folder: &Path, systemd: bool) -> Program {
        let program = if systemd { "systemd-run" } else { "setsid" };
        let mut launcher = Program::new(Path::new(program), START_TIME_MAX);
        if let Some(home) = std::env::var_os("HOME") {
            launcher = launcher.env("HOME", home);
        }
        if systemd {
            launcher = launcher.args(unit_arguments(run, self.vault.as_ref().map(|vault| vault.file.as_path())));
        } else {
            launcher = launcher.args(["--fork"]);
            if let Some(vault) = &self.vault {
                launcher = launcher.env("VAULT_PASSWORD", vault.password.expose());
            }
        }
        let runner = Program::new(Path::new(program), START_TIME_MAX)
            .args(["sh", "-c", RUNNER, "turnaround-setup"])
            .args([folder, &self.directory, &self.program])
            .args(run.arguments.clone())
            .into_arguments();
        launcher.args(if systemd { runner.into_iter().map(literally).collect() } else { runner })
    }
}

/// systemd puts variables into the words of a unit's command, also of a transient one; a doubled dollar sign is one that it leaves alone
/// (systemd.service(5), "Command lines").
fn literally(word: OsString) -> OsString {
    let bytes = word.into_vec().into_iter().flat_map(|byte| if byte == b'$' { vec![byte, byte] } else { vec![byte] });
    OsString::from_vec(bytes.collect())
}

/// For a unit with the run's name: systemd itself refuses a second one while it is there.
fn unit_arguments(run: &ScriptRun, vault: Option<&Path>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = ["--quiet", "--collect", "--no-ask-password"].map(OsString::from).to_vec();
    arguments.push(format!("--unit=turnaround-setup-{}", run.name).into());
    arguments.push("--description=Turnaround, a run of the setup script".into());
    // `exec`: what keeps it from beginning is told at once. To be killed only by a person who means it.
    arguments.extend(["--property=Type=exec", "--property=KillMode=process", "--property=TimeoutStopSec=infinity"].map(OsString::from));
    if let Some(file) = vault {
        let mut credential = OsString::from(format!("--property=LoadCredential={CREDENTIAL}:"));
        credential.push(file);
        arguments.push(credential);
    }
    arguments.push("--".into());
    arguments
}

#[async_trait]
impl SetupScript for SetupScripts {
    fn place(&self) -> String {
        self.place.clone()
    }

    async fn start(&self, run: &ScriptRun) -> Result<(), PortError> {
        let operation = format!("start the setup script as {}", run.name);
        let failed = |kind| PortError::new(operation.clone(), kind);
        let Some(script) = &self.script else {
            let reason = "the configuration has no `setup.program` any more".to_owned();
            return Err(failed(PortErrorKind::Refused { reason }));
        };
        let folder = self.folder(&run.name)?;
        fs::create_dir_all(&folder).map_err(|error| failed(PortErrorKind::Unavailable).with_source(error))?;
        if folder.join("pid").exists() {
            return Ok(());
        }
        let systemd = Path::new(SYSTEMD).is_dir();
        let ended = script.launcher(run, &folder, systemd).run().await;
        match ended {
            Ok(ended) if ended.code == Some(0) => Ok(()),
            // Somebody else was quicker, and has come as far as its first lines, or not yet (systemd: `Unit .. already exists`).
            Ok(ended) if folder.join("pid").exists() || ended.complaint().contains("already") => Ok(()),
            Ok(ended) => Err(failed(PortErrorKind::Refused { reason: ended.complaint() })),
            // It may have been handed over all the same; asked again, it is not started twice.
            Err(error) => Err(failed(PortErrorKind::Unavailable).with_source(error)),
        }
    }

    async fn look(&self, name: &str) -> Result<ScriptState, PortError> {
        let folder = self.folder(name)?;
        let looked = tokio::task::spawn_blocking(move || look(&folder)).await;
        let failed = || PortError::new(format!("look at run {name} of the setup script"), PortErrorKind::Unavailable);
        match looked {
            Ok(Ok(state)) => Ok(state),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                let kind = PortErrorKind::Garbled { reason: error.to_string() };
                Err(PortError::new(format!("look at run {name} of the setup script"), kind))
            }
            Ok(Err(error)) => Err(failed().with_source(error)),
            Err(error) => Err(failed().with_source(error)),
        }
    }
}

fn look(folder: &Path) -> io::Result<ScriptState> {
    let Some(pid) = small_file(&folder.join("pid"))? else { return Ok(ScriptState::NotStarted) };
    // Looked at before its exit code: a script that has ended may have left something behind which goes on.
    // (A pid file that can't be read was written by a host that went down right then.)
    if let Ok(runner) = Runner::read(&pid)
        && runner.lives()?
    {
        return Ok(ScriptState::Running { last_line: last_lines(&tail(folder)?, 1).pop().unwrap_or_default() });
    }
    let mut exit = small_file(&folder.join("exit"))?;
    if exit.is_none() {
        // Who runs as another user may be hidden from this process. The locks are not.
        if is_locked(&folder.join("pid"))? || is_locked(&folder.with_file_name("lock"))? {
            return Ok(ScriptState::Running { last_line: last_lines(&tail(folder)?, 1).pop().unwrap_or_default() });
        }
        // Perhaps it has ended between the two.
        exit = small_file(&folder.join("exit"))?;
    }
    let last_lines = last_lines(&tail(folder)?, LAST_LINES_MAX);
    let Some(code) = exit else { return Ok(ScriptState::Lost { last_lines }) };
    let code = code.trim().parse().map_err(|_| bad("the exit code is not a number"))?;
    let recap = match log(folder)? {
        Some((log, length)) => recap(BufReader::new(log.take(length)))?,
        None => Vec::new(),
    };
    Ok(ScriptState::Ended(ScriptEnd { code, recap, last_lines }))
}

/// Is it held? (That of all runs tells of any run. One at a time goes on: if it is not this one, this one is told to be lost when that has ended.)
fn is_locked(lock: &Path) -> io::Result<bool> {
    let lock = match fs::File::open(lock) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match lock.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(fs::TryLockError::WouldBlock) => Ok(true),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// None if there is no such file.
fn small_file(path: &Path) -> io::Result<Option<String>> {
    let mut text = String::new();
    match fs::File::open(path) {
        Ok(file) => file.take(SMALL_FILE_BYTES_MAX).read_to_string(&mut text).map(|_| Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Its log, and how long that is by now; None if it has none yet.
fn log(folder: &Path) -> io::Result<Option<(fs::File, u64)>> {
    let file = match fs::File::open(folder.join("log")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    Ok(Some((file, length)))
}

/// The end of its log; empty if it has none yet.
fn tail(folder: &Path) -> io::Result<String> {
    let Some((mut log, length)) = log(folder)? else { return Ok(String::new()) };
    log.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    log.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn last_lines(text: &str, count: usize) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().rev().filter(|line| !line.trim().is_empty()).take(count).map(foreign_text).collect();
    lines.reverse();
    lines
}

/// Every `PLAY RECAP` of Ansible's default output, for a script that runs several playbooks: `host : ok=1 changed=0 unreachable=0 failed=0 ...`.
///
/// The whole log is read, in which an early play may have failed and a late one not, and no more of it is held than a line.
/// Of more recaps than are kept, those of hosts that failed are: a host that nothing is kept of is not taken for a good one.
fn recap(mut log: impl BufRead) -> io::Result<Vec<HostRecap>> {
    let (mut kept, mut good): (Vec<HostRecap>, usize) = (Vec::new(), 0);
    let (mut line, mut in_recap) = (Vec::new(), false);
    loop {
        line.clear();
        let read = log.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(kept);
        }
        if !line.ends_with(b"\n") {
            log.skip_until(b'\n')?;
        }
        let text = String::from_utf8_lossy(&line);
        if text.contains("PLAY RECAP") {
            in_recap = true;
            continue;
        }
        let Some(host) = in_recap.then(|| host_recap(&without_colours(&text))).flatten() else {
            in_recap = false;
            continue;
        };
        let is_good = host.failed == 0 && host.unreachable == 0;
        if kept.len() == RECAP_LINES_MAX {
            if is_good || good == 0 {
                continue;
            }
            if let Some(last_good) = kept.iter().rposition(|host| host.failed == 0 && host.unreachable == 0) {
                kept.remove(last_good);
                good -= 1;
            }
        }
        good += usize::from(is_good);
        kept.push(host);
    }
}

/// Ansible colours hosts and counts where it is told to (`ANSIBLE_FORCE_COLOR`): `ESC [ 0;31m` and its like.
fn without_colours(line: &str) -> String {
    let mut parts = line.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |plain, part| plain + part.split_once('m').map_or(part, |(_, rest)| rest))
}

fn host_recap(line: &str) -> Option<HostRecap> {
    let (host, counts) = line.split_once(':')?;
    let count = |name: &str| {
        let value = counts.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.and_then(|value| value.parse().ok())
    };
    Some(HostRecap {
        host: host.trim().to_owned(),
        ok: count("ok")?,
        changed: count("changed")?,
        unreachable: count("unreachable")?,
        failed: count("failed")?,
    })
}

impl Runner {
    fn read(text: &str) -> io::Result<Runner> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [pid, started, boot_id] = words[..] else { return Err(bad("the pid file does not say who runs it")) };
        let number = |_| bad("the pid file has no numbers");
        Ok(Runner { pid: pid.parse().map_err(number)?, started: started.parse().map_err(number)?, boot_id: boot_id.to_owned() })
    }

    /// Does anything of it run still? A process id alone proves nothing: they come round, and hosts reboot.
    fn lives(&self) -> io::Result<bool> {
        if fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim() != self.boot_id {
            return Ok(false);
        }
        if Stat::of(self.pid).is_some_and(|stat| stat.started == self.started && stat.state != 'Z') {
            return Ok(true);
        }
        // It has ended or was killed, and what it had started goes on in its session. (No session is newer than its leader.)
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if Stat::of(pid).is_some_and(|stat| stat.session == self.pid && stat.started >= self.started && stat.state != 'Z') {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// What `/proc/<pid>/stat` says; None if there is no such process.
struct Stat {
    state: char,
    session: u32,
    started: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Stat> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name in brackets, and may hold anything.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // proc(5) counts from 1; what is left begins with field 3.
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Stat { state: field(3)?.chars().next()?, session: field(6)?.parse().ok()?, started: field(22)?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What systemd makes of the words of a unit's command: `$$` is `$`, and what else begins with `$` is a variable.
    fn as_systemd_reads(word: &str) -> Option<String> {
        let kept = word.replace("$$", "\u{0}");
        (!kept.contains('$')).then(|| kept.replace('\u{0}', "$"))
    }

    #[test]
    fn under_systemd_every_word_arrives_as_it_was_meant_and_the_password_is_on_no_command_line() {
        let vault = Vault { password: SecretText::new("open sesame".to_owned()), file: PathBuf::from("/etc/vault") };
        let script = Script { program: "/opt/$x/setup.sh".into(), directory: "/opt".into(), vault: Some(vault) };
        let run = ScriptRun { name: "r.1".to_owned(), arguments: vec!["--limit=$(gpu)".to_owned()] };
        let words = |systemd| script.launcher(&run, Path::new("/var/r.1"), systemd).into_arguments();
        let told: Vec<String> = words(true).into_iter().map(|word| word.into_string().unwrap()).collect();
        assert!(told.contains(&"--unit=turnaround-setup-r.1".to_owned()) && told.contains(&"--property=LoadCredential=vault:/etc/vault".to_owned()));
        assert!(!told.iter().any(|word| word.contains("sesame")), "{told:?}");
        let command = told.iter().skip_while(|word| *word != "--").skip(1).map(|word| as_systemd_reads(word).unwrap());
        let plain: Vec<String> = words(false).into_iter().skip(1).map(|word| word.into_string().unwrap()).collect();
        assert_eq!(command.collect::<Vec<_>>(), plain);
        assert_eq!(plain[2], RUNNER);
    }

    /// As Ansible 2.19 wrote it, with `ANSIBLE_FORCE_COLOR`.
    #[test]
    fn a_recap_in_colours_is_a_recap() {
        let text = "\nPLAY RECAP *********************************************************************\n\
            \u{1b}[0;33mgpu-01\u{1b}[0m                     : \u{1b}[0;32mok=1   \u{1b}[0m \u{1b}[0;33mchanged=1   \u{1b}[0m unreachable=0    failed=0    \u{1b}[0;36mskipped=1   \u{1b}[0m rescued=0    ignored=0   \n\
            \u{1b}[0;31mgpu-02\u{1b}[0m                     : \u{1b}[0;32mok=1   \u{1b}[0m \u{1b}[0;33mchanged=1   \u{1b}[0m unreachable=0    \u{1b}[0;31mfailed=1   \u{1b}[0m skipped=0    rescued=0    ignored=0   \n\
            \u{1b}[0;31mgpu-03\u{1b}[0m                     : ok=0    changed=0    \u{1b}[1;31munreachable=1   \u{1b}[0m failed=0    skipped=0    rescued=0    ignored=0   \n";
        let host = |host: &str, ok, changed, unreachable, failed| HostRecap { host: host.to_owned(), ok, changed, unreachable, failed };
        assert_eq!(recap(text.as_bytes()).unwrap(), [host("gpu-01", 1, 1, 0, 0), host("gpu-02", 1, 1, 0, 1), host("gpu-03", 0, 0, 1, 0)]);
    }

    #[test]
    fn of_too_many_recaps_those_of_hosts_that_failed_are_kept_and_of_a_long_line_its_beginning() {
        let line = |host: usize, failed: u32| format!("gpu-{host} : ok=1 changed=0 unreachable=0 failed={failed}\n");
        let good: String = (0..RECAP_LINES_MAX + 5).map(|host| line(host, 0)).collect();
        let late = line(20_000, 1) + "gpu-long : ok=1 changed=0 unreachable=0 failed=2 " + &"x".repeat(3 * LINE_BYTES_MAX as usize) + "\n" + &line(20_001, 0);
        let kept = recap(format!("PLAY RECAP ***\n{good}{late}\n").as_bytes()).unwrap();
        assert_eq!(kept.len(), RECAP_LINES_MAX);
        let failed: Vec<&str> = kept.iter().filter(|host| host.failed > 0).map(|host| host.host.as_str()).collect();
        assert_eq!(failed, ["gpu-20000", "gpu-long"]);
        let bad: String = (0..RECAP_LINES_MAX + 5).map(|host| line(host, 1)).collect();
        assert_eq!(recap(format!("PLAY RECAP ***\n{bad}").as_bytes()).unwrap().len(), RECAP_LINES_MAX);
    }

    #[test]
    fn what_can_not_be_told_to_have_ended_is_said_to_go_on_while_the_lock_is_held() {
        let runs = tempfile::tempdir().unwrap();
        let folder = runs.path().join("r.1");
        fs::create_dir(&folder).unwrap();
        // By a host that went down before it was on the disk; or by somebody who is hidden from us.
        for pid in ["", "1 1 another-boot"] {
            fs::write(folder.join("pid"), pid).unwrap();
            let lock = fs::File::create(runs.path().join("lock")).unwrap();
            lock.lock().unwrap();
            assert!(matches!(look(&folder).unwrap(), ScriptState::Running { .. }), "{pid}");
            drop(lock);
            assert!(matches!(look(&folder).unwrap(), ScriptState::Lost { .. }), "{pid}");
        }
    }
}
