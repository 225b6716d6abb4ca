//! What a node says of itself, asked through the system's `ssh` program: one connection, one fixed command, nothing written.
//!
//! # Whose key is it?
//! An installation gives a node a new host key, so a key that is not known is either what we ordered or somebody else's
//! machine. Switching the check off would accept both. Here:
//!
//! 1. A key is known if it is in `ssh.known_hosts`, the operator's own list, which is only read (a site that signs its host
//!    keys has its authority there, and nothing of what follows ever happens), or in `<state_dir>/known_hosts/<node>`, ours.
//! 2. A key that isn't known is accepted only where a netboot ticket (or Ironic's rebuild) was ordered for the node, and only if what
//!    answers shows the mark of that very order: its token, which nobody had before the order, in
//!    `/etc/turnaround/installed`. It then becomes the node's key in our list, in place of an older one.
//! 3. Anything else is `Refused`, with what to do if it is in order; while a ticket is staged, or Ironic works on the node, it is
//!    `Unavailable`, because the installer itself may be what answers.
//!
//! Nothing secret is sent to a node (public-key login, no agent forwarding), so an impostor could only lie. It could do so
//! successfully if it also reads the node's boot configuration off the PXE network.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use turnaround_config::{NodeName, Ssh};
use turnaround_workflows::clock::{Clock as _, SystemClock};
use turnaround_workflows::ports::{CommandEnd, Facts, Installed, Machine, NodeFacts, NodeStock, PortError, PortErrorKind};

use super::http::{BoxError, foreign_text};
use super::ironic::{Ironic, Ordered};
use super::netboot::BootFolder;
use super::node_stock;
use super::program::{Finished, Program, ProgramError};

/// Time for the login and the command, after the connection stands.
// Both take under a second; a node that is still starting was seen to take 10 s over a login.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(30);

/// A login shell may say something before our command does; what counts begins here.
const BEGIN: &str = "turnaround-facts 1";
const END: &str = "turnaround-facts end";

/// What is run on the node. No word of it comes from anywhere else. `sh` because the login shell may be another.
const COMMAND: &str = concat!(
    "exec sh -c 'LC_ALL=C; export LC_ALL; echo \"turnaround-facts 1\"; ",
    "echo \"boot_id $(cat /proc/sys/kernel/random/boot_id)\"; ",
    "echo \"hostname $(uname -n)\"; ",
    "echo \"kernel $(uname -r)\"; ",
    "sed \"s/^/os-release /\" /etc/os-release; ",
    "if [ -e /etc/turnaround/installed ]; then sed \"s/^/installed /\" /etc/turnaround/installed || echo \"installed unreadable\"; fi; ",
    "echo \"turnaround-facts end\"'"
);

/// Of each process of QEMU's the word after `-uuid`, which Nova gives it; of so many. One program for all of them, whatever else runs there.
const GUESTS_COMMAND: &str = concat!(
    "exec sh -c 'LC_ALL=C; export LC_ALL; echo \"turnaround-guests 1\"; ",
    "grep -azhxA1 -e -uuid /proc/[0-9]*/cmdline 2>/dev/null | tr \"\\0\" \"\\n\" | sed -n \"/^[0-9a-f-]\\{36\\}\\$/p\" | head -n 20; ",
    "echo \"turnaround-guests end\"'"
);
const GUESTS_BEGIN: &str = "turnaround-guests 1";
const GUESTS_END: &str = "turnaround-guests end";
/// To read what all processes were started with takes a moment, unless one of them hangs in the kernel, as where a card does not answer: then it takes for ever, and whatever else a
/// node is asked must not wait for it.
const GUESTS_TIME_MAX: Duration = Duration::from_secs(10);

/// The MAC addresses of its network interfaces; of those in a bond the permanent ones, too, by whichever of the two tells them. InfiniBand's are longer, and no machine netboots by `lo`'s.
const MACS_COMMAND: &str = concat!(
    "exec sh -c 'LC_ALL=C; PATH=\"$PATH:/usr/sbin:/sbin\"; export LC_ALL PATH; echo \"turnaround-macs 1\"; ",
    "{ cat /sys/class/net/*/address /sys/class/net/*/bonding_slave/perm_hwaddr; ip -o link | sed -n \"s/.* permaddr \\([^ ]*\\).*/\\1/p\"; } 2>/dev/null | ",
    "grep -ix \"[0-9a-f:]\\{17\\}\" | grep -vx 00:00:00:00:00:00 | sort -u | head -n 2000; ",
    "echo \"turnaround-macs end\"'"
);
const MACS_BEGIN: &str = "turnaround-macs 1";
const MACS_END: &str = "turnaround-macs end";

/// Asks nodes by `ssh`.
pub(crate) struct SshFacts {
    ssh: Ssh,
    /// One file of known keys per node, ours alone.
    keys: PathBuf,
    addresses: BTreeMap<NodeName, String>,
    /// Of every node, whoever renews it: lower case.
    macs: BTreeMap<NodeName, String>,
    orders: Arc<BootFolder>,
    ironic: Arc<Ironic>,
}

/// How one connection went.
enum Asked {
    Facts(Facts),
    KeyNotKnown,
}

/// Which host keys are accepted.
#[derive(Clone, Copy)]
enum Keys<'a> {
    /// Those of the operator's list, and those in this file.
    Known(&'a Path),
    /// Any, to be written into this file.
    Any(&'a Path),
}

impl SshFacts {
    /// `keys` is the folder of known keys; it is made when it is first needed.
    ///
    /// # Errors
    /// A sentence: a path that can't be given to `ssh`.
    pub(crate) fn new(
        ssh: Ssh,
        keys: PathBuf,
        addresses: BTreeMap<NodeName, String>,
        macs: BTreeMap<NodeName, String>,
        orders: Arc<BootFolder>,
        ironic: Arc<Ironic>,
    ) -> Result<SshFacts, String> {
        for path in [&keys, &ssh.known_hosts] {
            ssh_path(path)?;
        }
        Ok(SshFacts { ssh, keys, addresses, macs, orders, ironic })
    }

    fn address(&self, node: &NodeName, operation: &str) -> Result<&String, PortError> {
        self.addresses.get(node).ok_or_else(|| {
            let reason = format!("{node} is not a node of the configuration");
            PortError::new(operation, PortErrorKind::Refused { reason })
        })
    }

    fn key_file(&self, node: &NodeName) -> PathBuf {
        self.keys.join(node.as_str())
    }

    /// Connects once, and runs `command` there.
    async fn connect(&self, address: &str, operation: &str, keys: Keys<'_>, command: &str, limit: Duration) -> Result<Finished, PortError> {
        let program = self.program(address, operation, keys, command, limit)?;
        run(program, operation).await
    }

    /// What connects once, and runs `command` there.
    fn program(&self, address: &str, operation: &str, keys: Keys<'_>, command: &str, limit: Duration) -> Result<Program, PortError> {
        let arguments = arguments(&self.ssh, address, keys, command)
            .map_err(|reason| PortError::new(operation, PortErrorKind::Refused { reason }))?;
        let mut program = Program::new(&self.ssh.program, self.ssh.connect_timeout + limit).args(arguments);
        if let (None, Some(agent)) = (&self.ssh.identity_file, std::env::var_os("SSH_AUTH_SOCK")) {
            program = program.env("SSH_AUTH_SOCK", agent);
        }
        Ok(program)
    }

    /// The lines between these two that `command` writes on the node. All of them, or an error.
    async fn list(&self, node: &NodeName, operation: String, command: &str, limit: Duration, [begin, end]: [&str; 2]) -> Result<BTreeSet<String>, PortError> {
        let (address, key) = (self.address(node, &operation)?, self.key_file(node));
        let look = || self.connect(address, &operation, Keys::Known(&key), command, limit);
        let mut finished = look().await?;
        // By another worker's host it may be known.
        if is_key_unknown(&finished) && self.facts(node).await.is_ok() {
            finished = look().await?;
        }
        // 255 is ssh's own: no connection, no login, or cut.
        if matches!(finished.code, Some(255) | None) {
            return Err(unavailable(&operation, finished.complaint()));
        }
        // (A login shell may say something before.)
        let mut lines = finished.stdout.lines().skip_while(|line| *line != begin).skip(1);
        let list = lines.by_ref().take_while(|line| *line != end).map(str::to_owned).collect();
        if finished.stdout.lines().any(|line| line == end) {
            return Ok(list);
        }
        Err(PortError::new(operation, PortErrorKind::Garbled { reason: "its answer is cut short".to_owned() }))
    }

    /// Asks once for its facts.
    async fn ask(&self, node: &NodeName, operation: &str, keys: Keys<'_>) -> Result<Asked, PortError> {
        let address = self.address(node, operation)?;
        let finished = self.connect(address, operation, keys, COMMAND, COMMAND_TIME_MAX).await?;
        match finished.code {
            Some(0) => match parse(&finished.stdout) {
                Ok(facts) => Ok(Asked::Facts(facts)),
                Err(reason) => Err(PortError::new(operation, PortErrorKind::Garbled { reason })),
            },
            Some(255) if is_key_unknown(&finished) => Ok(Asked::KeyNotKnown),
            // 255 is ssh's own: no connection, no login, or cut. Normal while a node boots.
            Some(255) | None => Err(unavailable(operation, finished.complaint())),
            Some(code) => {
                let reason = format!("the command on the node ended with exit code {code}: {}", finished.complaint());
                Err(PortError::new(operation, PortErrorKind::Garbled { reason }))
            }
        }
    }

    /// What answers has a key that isn't known: is it the node as we had it installed?
    async fn ask_stranger(&self, node: &NodeName, operation: &str) -> Result<Facts, PortError> {
        let Some(Ordered { token, installing }) = self.ordered(node, operation).await? else {
            return Err(self.stranger(node, operation, "no installation was ordered"));
        };
        let new = self.keys.join(format!(".{node}.{}.new", std::process::id()));
        remove(&new, operation)?;
        let asked = self.ask(node, operation, Keys::Any(&new)).await;
        let shows_mark = |facts: &Facts| facts.installed.as_ref().is_some_and(|installed| installed.token == token);
        match asked {
            Ok(Asked::Facts(facts)) if shows_mark(&facts) => {
                fs::rename(&new, self.key_file(node)).map_err(|error| unavailable(operation, error))?;
                tracing::warn!(%node, %token, "accepted a new host key: the node shows the mark of its installation");
                Ok(facts)
            }
            Ok(Asked::Facts(_) | Asked::KeyNotKnown) => {
                remove(&new, operation)?;
                let why = "it does not show the mark of the installation that was ordered";
                if installing {
                    Err(unavailable(
                        operation,
                        format!("its host key is not known, and {why}: perhaps it is still the installer"),
                    ))
                } else {
                    Err(self.stranger(node, operation, why))
                }
            }
            Err(error) => {
                remove(&new, operation)?;
                match error.kind {
                    // An installer need not know what we ask for.
                    PortErrorKind::Garbled { reason } if installing => Err(unavailable(operation, format!("{reason}: perhaps it is still the installer"))),
                    _ => Err(error),
                }
            }
        }
    }

    /// What was ordered last for this node, in the PXE server's folder or on Ironic's record of it.
    async fn ordered(&self, node: &NodeName, operation: &str) -> Result<Option<Ordered>, PortError> {
        if self.ironic.renews(node) {
            return self.ironic.ordered(node, operation).await;
        }
        let order = self.orders.order(node, operation)?;
        Ok(order.and_then(|order| order.ticket.map(|ticket| Ordered { token: ticket.token, installing: order.staged })))
    }

    fn stranger(&self, node: &NodeName, operation: &str, why: &str) -> PortError {
        let (ours, theirs) = (self.key_file(node), &self.ssh.known_hosts);
        let reason = format!(
            "its host key is not known, and {why}; once you have checked the key, add it to {} (`ssh-keyscan`), and remove {} if there is one",
            theirs.display(),
            ours.display()
        );
        PortError::new(operation, PortErrorKind::Refused { reason })
    }
}

#[async_trait]
impl NodeFacts for SshFacts {
    async fn facts(&self, node: &NodeName) -> Result<Facts, PortError> {
        let operation = format!("ask {node} by ssh for its facts");
        fs::create_dir_all(&self.keys).map_err(|error| unavailable(&operation, error))?;
        match self.ask(node, &operation, Keys::Known(&self.key_file(node))).await? {
            Asked::Facts(facts) => Ok(facts),
            Asked::KeyNotKnown => self.ask_stranger(node, &operation).await,
        }
    }

    async fn guests(&self, node: &NodeName) -> Result<BTreeSet<String>, PortError> {
        let operation = format!("ask {node} by ssh what virtual machines run on it");
        self.list(node, operation, GUESTS_COMMAND, GUESTS_TIME_MAX, [GUESTS_BEGIN, GUESTS_END]).await
    }

    async fn machine(&self, node: &NodeName) -> Result<Machine, PortError> {
        let operation = format!("ask {node} by ssh for its MAC addresses");
        let told: BTreeSet<String> = self.list(node, operation, MACS_COMMAND, COMMAND_TIME_MAX, [MACS_BEGIN, MACS_END]).await?;
        Ok(Machine::by_macs(node, &self.macs, told.into_iter().map(|mac| mac.to_ascii_lowercase()).collect()))
    }

    async fn stock(&self, node: &NodeName) -> Result<NodeStock, PortError> {
        let operation = format!("ask {node} by ssh for its disks, VLANs and clock");
        let address = self.address(node, &operation)?;
        let from = SystemClock.now();
        let look = async || {
            let program = self.program(address, &operation, Keys::Known(&self.key_file(node)), node_stock::COMMAND, COMMAND_TIME_MAX)?;
            run(program.says_at_most(node_stock::REPORT_BYTES_MAX), &operation).await
        };
        let mut finished = look().await?;
        // By another worker's host it may be known.
        if is_key_unknown(&finished) && self.facts(node).await.is_ok() {
            finished = look().await?;
        }
        match finished.code {
            Some(0) => node_stock::parse(&finished.stdout, from, SystemClock.now()).map_err(|reason| PortError::new(operation, PortErrorKind::Garbled { reason })),
            // 255 is ssh's own: no connection, no login, or cut.
            Some(255) | None => Err(unavailable(&operation, finished.complaint())),
            Some(code) => {
                let reason = format!("the command on the node ended with exit code {code}: {}", finished.complaint());
                Err(PortError::new(operation, PortErrorKind::Garbled { reason }))
            }
        }
    }

    async fn run(&self, node: &NodeName, command: &str, time_limit: Duration) -> Result<CommandEnd, PortError> {
        let operation = format!("run `{command}` on {node} by ssh");
        let address = self.address(node, &operation)?;
        let key = self.key_file(node);
        let mut finished = self.connect(address, &operation, Keys::Known(&key), command, time_limit).await?;
        // By another worker's host it may be known. A new key is accepted by `facts` alone, which asks for the mark of an installation.
        if is_key_unknown(&finished) && self.facts(node).await.is_ok() {
            finished = self.connect(address, &operation, Keys::Known(&key), command, time_limit).await?;
        }
        match finished.code {
            // 255 is ssh's own: no connection, no login, or cut.
            Some(255) | None => Err(unavailable(&operation, finished.complaint())),
            Some(code) => {
                let output = finished.stdout.trim().to_owned();
                // Cut off, it could be as found where the rest is not.
                if output.chars().count() > OUTPUT_CHARS_MAX {
                    let reason = format!("it says more than {OUTPUT_CHARS_MAX} characters: let it say a digest (`| sha256sum`)");
                    return Err(PortError::new(operation, PortErrorKind::Refused { reason }));
                }
                Ok(CommandEnd { code, output })
            }
        }
    }
}

/// Did ssh connect, and not know the key?
fn is_key_unknown(finished: &Finished) -> bool {
    finished.code == Some(255) && finished.stderr.contains("Host key verification failed")
}

/// As much may a check write: a list of disks has some hundred characters.
const OUTPUT_CHARS_MAX: usize = 2_000;

fn unavailable(operation: &str, source: impl Into<BoxError>) -> PortError {
    PortError::new(operation, PortErrorKind::Unavailable).with_source(source)
}

fn remove(path: &Path, operation: &str) -> Result<(), PortError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(unavailable(operation, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The arguments of `ssh`. Nothing is left to the configuration of the user who happens to run us.
fn arguments(ssh: &Ssh, address: &str, keys: Keys<'_>, command: &str) -> Result<Vec<OsString>, String> {
    let (checking, ours, theirs) = match keys {
        Keys::Known(ours) => ("yes", ours, ssh_path(&ssh.known_hosts)?),
        Keys::Any(new) => ("accept-new", new, "none".to_owned()),
    };
    let mut arguments: Vec<OsString> = ["-F", "none", "-T", "-n"].map(OsString::from).to_vec();
    let options = [
        "BatchMode=yes".to_owned(),
        format!("ConnectTimeout={}", ssh.connect_timeout.as_secs().max(1)),
        "ConnectionAttempts=1".to_owned(),
        // A node that is reset under us does not say goodbye.
        "ServerAliveInterval=5".to_owned(),
        "ServerAliveCountMax=2".to_owned(),
        format!("StrictHostKeyChecking={checking}"),
        format!("UserKnownHostsFile={}", ssh_path(ours)?),
        format!("GlobalKnownHostsFile={theirs}"),
        "HashKnownHosts=no".to_owned(),
        "CheckHostIP=no".to_owned(),
        // A node may not add keys to what is known of it.
        "UpdateHostKeys=no".to_owned(),
        "PasswordAuthentication=no".to_owned(),
        "KbdInteractiveAuthentication=no".to_owned(),
        "ForwardAgent=no".to_owned(),
        "ClearAllForwardings=yes".to_owned(),
        "ControlPath=none".to_owned(),
    ];
    for option in options {
        arguments.extend([OsString::from("-o"), OsString::from(option)]);
    }
    if let Some(identity) = &ssh.identity_file {
        arguments.extend(["-o".into(), "IdentitiesOnly=yes".into(), "-i".into(), identity.clone().into_os_string()]);
    }
    arguments.extend(["-l".into(), OsString::from(&ssh.user), "--".into(), OsString::from(address), OsString::from(command)]);
    Ok(arguments)
}

/// A path as the value of an option: `ssh` splits it at blanks, and expands `%` and `${`.
fn ssh_path(path: &Path) -> Result<String, String> {
    let text = path.to_str().ok_or_else(|| format!("{} is not UTF-8, and `ssh` has to be given it", path.display()))?;
    if text.contains(['"', '\n', '$', '\\']) {
        return Err(format!("{text} holds a character that `ssh` would not take literally"));
    }
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

async fn run(program: Program, operation: &str) -> Result<Finished, PortError> {
    program.run().await.map_err(|error| match error {
        // It won't say less the next time.
        ProgramError::TooLong(..) => PortError::new(operation, PortErrorKind::Refused { reason: error.to_string() }),
        ProgramError::NotStarted(..) | ProgramError::TooSlow(..) | ProgramError::Unreadable(..) => unavailable(operation, error),
    })
}

/// Every line of the report, or what is wrong with it.
fn parse(stdout: &str) -> Result<Facts, String> {
    let mut lines = stdout.lines().skip_while(|line| *line != BEGIN).skip(1);
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let complete = lines.by_ref().take_while(|line| *line != END).try_for_each(|line| {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        match key {
            "boot_id" | "hostname" | "kernel" | "os-release" | "installed" => found.entry(key).or_default().push(value),
            _ => return Err(format!("the node's report has a line that was not asked for: `{}`", foreign_text(line))),
        }
        Ok(())
    });
    complete?;
    if !stdout.lines().any(|line| line == END) {
        return Err("the node's report is cut short".to_owned());
    }
    let one = |key: &str| match found.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() && !value.contains(char::is_whitespace) => Ok((*value).to_owned()),
        _ => Err(format!("the node's report has no {key}")),
    };
    let release = found.get("os-release").map(Vec::as_slice).unwrap_or_default();
    let version =
        release.iter().find_map(|line| line.strip_prefix("VERSION_ID=")).map(|value| value.trim().trim_matches(['"', '\'']));
    let installed = found.get("installed").map(|lines| serde_json::from_str::<Installed>(&lines.join("\n"))).transpose();
    Ok(Facts {
        boot_id: one("boot_id")?,
        hostname: one("hostname")?,
        kernel: one("kernel")?,
        os_version_id: version.ok_or("its /etc/os-release has no VERSION_ID")?.to_owned(),
        installed: installed.map_err(|_| "/etc/turnaround/installed is not `{\"token\": .., \"sha256\": ..}`")?,
    })
}
