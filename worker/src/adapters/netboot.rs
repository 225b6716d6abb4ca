//! What each node boots from the network: one GRUB configuration per node, `<mac>.cfg`, in the folder that the PXE server
//! serves. The server's `grub.cfg` has to contain `configfile /<folder>/$net_default_mac.cfg`, and its GRUB the modules `efinet`, `http` or
//! `tftp`, `configfile`, `normal`, `linux`, `minicmd`, `sleep`, `search`, `chain`, `fat` and `part_gpt`, as Ubuntu's `grubnetx64.efi.signed` does.
//! GRUB before 2.12 knows HTTP headers only as most servers write them (`Content-Length`), and waits in vain for the end of a file from one that
//! writes them in lower case.
//!
//! The node's own boot order has to begin with its disk: the BMC has it boot from the network once. One that always asks the network first
//! would install itself again and again, for its order is only withdrawn once it has told that it is installed.
//!
//! The file's first line is a comment with the order as JSON, so that what is staged can be read back from the very
//! file that the node will read. The last order stays in it after it is withdrawn: by its token, [`super::ssh`] tells a node
//! that was installed by us, and so has a new host key, from a stranger.
//!
//! A file that we did not write is never replaced: somebody meant something by it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use nix::unistd::{AccessFlags, access};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::Instant;
use turnaround_config::{ImageName, NodeImage, NodeName};
use turnaround_workflows::ports::{BootTicket, NetBoot, PortError, PortErrorKind};

/// What begins the line that holds the order.
const MARK: &str = "# turnaround: ";

/// The largest file that is read. Ours have about 1 KiB.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The PXE server runs as another user, and reads these files.
const FILE_MODE: u32 = 0o644;

/// A token longer than this would not fit into a kernel command line (2 KiB on x86) beside everything else.
const TOKEN_CHARS_MAX: usize = 128;

/// What was decided so long ago is not written any more: the folder may hang for as long as whoever serves it is away, and another worker has gone on meanwhile. An
/// order that comes back after the installation would wipe the node at its next netboot.
// As long as a look at the node may be acted upon.
const WRITTEN_WITHIN: Duration = Duration::from_secs(30);

/// The same for the URL for reports, which has the token in it.
const REPORT_CHARS_MAX: usize = 384;

/// GRUB tries so often to load an installer, as the words that it counts by. After a failure it would stay in its menu until somebody pressed a key.
// A server that was restarted is back within a minute. One that says nothing costs GRUB half a minute each time.
const LOAD_TRIES: &str = "1 2 3 4 5";
const LOAD_AGAIN_SECONDS: u32 = 10;

/// Starts what is on the disk, by the paths at which Ubuntu and the UEFI specification (3.5.1.1) have it.
// Not `exit` alone: GRUB ends with success, and after a success the firmware stops at its own menu instead of going on to its next boot
// option (UEFI 2.10, 3.1.1; seen with OVMF). It is left for a machine that has nothing on its disks.
const TO_THE_DISK: &str = "\
for loader in ubuntu/shimx64.efi ubuntu/grubx64.efi ubuntu/shimaa64.efi ubuntu/grubaa64.efi boot/bootx64.efi boot/bootaa64.efi; do
  if search --no-floppy --file --set=root /efi/$loader; then
    if chainloader /efi/$loader; then boot; fi
  fi
done
exit
";

/// The folder of boot configurations.
#[derive(Debug)]
pub(crate) struct BootFolder {
    folder: PathBuf,
    /// `(http,172.20.0.1:8080)/pxe`: how GRUB names what is under the configured URL.
    device: String,
    macs: BTreeMap<NodeName, String>,
    images: BTreeMap<ImageName, NodeImage>,
}

/// What the first line of a file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Order {
    node: NodeName,
    /// Is it to be carried out at the next netboot? If not, it was withdrawn.
    pub(crate) staged: bool,
    /// None where nothing was ever ordered.
    pub(crate) ticket: Option<BootTicket>,
}

/// Why a URL can't be given to GRUB.
#[derive(Debug, thiserror::Error)]
#[error("GRUB only fetches from `http://HOST[:PORT]/...` and `tftp://HOST/...`")]
pub(crate) struct NotForGrub;

impl BootFolder {
    /// # Errors
    /// `url` is not one that GRUB can fetch from.
    pub(crate) fn new(
        folder: PathBuf,
        url: &str,
        macs: BTreeMap<NodeName, String>,
        images: BTreeMap<ImageName, NodeImage>,
    ) -> Result<BootFolder, NotForGrub> {
        Ok(BootFolder { folder, device: grub_device(url)?, macs, images })
    }

    /// That of a site where no node is installed from it.
    pub(crate) fn none() -> BootFolder {
        BootFolder { folder: PathBuf::new(), device: String::new(), macs: BTreeMap::new(), images: BTreeMap::new() }
    }

    /// The order in the file of `node`; None where there is no file.
    pub(crate) fn order(&self, node: &NodeName, operation: &str) -> Result<Option<Order>, PortError> {
        aside(|| self.read(node, operation))
    }

    fn read(&self, node: &NodeName, operation: &str) -> Result<Option<Order>, PortError> {
        let path = self.path(node, operation)?;
        let unavailable = |source: io::Error| PortError::new(operation, PortErrorKind::Unavailable).with_source(source);
        let mut text = String::new();
        match File::open(&path) {
            Ok(file) => file.take(FILE_BYTES_MAX).read_to_string(&mut text).map(drop).or_else(|error| match error.kind() {
                // Not text: certainly not ours.
                io::ErrorKind::InvalidData => Ok(()),
                _ => Err(error),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(error),
        }
        .map_err(unavailable)?;
        let line = text.lines().next().and_then(|line| line.strip_prefix(MARK));
        let order = line.and_then(|json| serde_json::from_str::<Order>(json).ok());
        match order {
            // The text is compared wholly: a file that was edited by hand does not do what its first line says.
            Some(order) if order.node == *node && self.text(&order).as_deref() == Ok(&text) => Ok(Some(order)),
            Some(order) if order.node != *node => Err(foreign(operation, &path, &format!("it is the file of {}", order.node))),
            Some(_) => Err(foreign(operation, &path, "it was edited, or the image's settings have changed since it was written")),
            None => Err(foreign(operation, &path, "it was not written by Turnaround")),
        }
    }

    fn path(&self, node: &NodeName, operation: &str) -> Result<PathBuf, PortError> {
        let Some(mac) = self.macs.get(node) else {
            let reason = format!("{node} is not a node of the configuration");
            return Err(PortError::new(operation, PortErrorKind::Refused { reason }));
        };
        Ok(self.folder.join(format!("{mac}.cfg")))
    }

    /// The file for an order, or why there can't be one.
    fn text(&self, order: &Order) -> Result<String, String> {
        let first = serde_json::to_string(order).map_err(|error| error.to_string())?;
        let Order { node, staged, ticket } = order;
        let (true, Some(ticket)) = (staged, ticket) else {
            return Ok(format!("{MARK}{first}\n# Nothing is to be installed.\n{TO_THE_DISK}"));
        };
        let image =
            self.images.get(&ticket.image).ok_or_else(|| format!("there is no image `{}` in the configuration", ticket.image))?;
        let boot = image.boot.as_ref().ok_or_else(|| format!("image `{}` has no `boot_kernel` any more", ticket.image))?;
        if image.sha256 != ticket.sha256 {
            return Err(format!("the configuration gives image `{}` another SHA-256 than what was ordered", ticket.image));
        }
        let token = &ticket.token.0;
        if token.is_empty()
            || token.len() > TOKEN_CHARS_MAX
            || token.contains(|c| !is_plain(c))
        {
            return Err(format!("the token `{token}` is not made of 1 to {TOKEN_CHARS_MAX} letters, digits and `-_.:/`: names of schedule and node are part of it"));
        }
        let report = match &ticket.report {
            // (Brackets stand in the URL of an IPv6 address.)
            Some(url) if url.len() > REPORT_CHARS_MAX || url.contains(|c| !is_plain(c) && !matches!(c, '[' | ']')) => {
                return Err("the URL for reports is not made of letters, digits and `-_.:/`, or too long".to_owned());
            }
            Some(url) => format!("turnaround.report={url}"),
            None => String::new(),
        };
        let words = [
            boot.arguments.as_str(),
            &format!("turnaround.token={token}"),
            &format!("turnaround.sha256={}", ticket.sha256),
            &report,
        ];
        let arguments = words.iter().flat_map(|words| words.split_whitespace()).map(grub_quoted).collect::<Vec<_>>().join(" ");
        let file = |path: &str| grub_quoted(&format!("{}/{}", self.device, path.trim_start_matches('/')));
        let (kernel, initrd) = (file(&boot.kernel), file(&boot.initrd));
        let title = grub_quoted(&format!("install {} ({}) on {node}", ticket.image, image.version));
        Ok(format!(
            "{MARK}{first}\nset default=0\nset timeout=0\nmenuentry {title} {{\n\
             for try in {LOAD_TRIES}; do\n  if linux {kernel} {arguments}; then\n    if initrd {initrd}; then boot; fi\n  fi\n  \
             sleep {LOAD_AGAIN_SECONDS}\ndone\n# It can't be loaded. From the disk, the node will tell that nothing was installed.\n\
             {TO_THE_DISK}}}\n"
        ))
    }

    /// `begun`: when it was decided, before anything was asked of the folder.
    fn write(&self, operation: &str, order: &Order, begun: Instant) -> Result<(), PortError> {
        let refused = |reason| PortError::new(operation, PortErrorKind::Refused { reason });
        let text = self.text(order).map_err(refused)?;
        let path = self.path(&order.node, operation)?;
        // Nothing is half done: the rename is the effect, and it comes last.
        aside(|| replace(&path, &text, || begun.elapsed() > WRITTEN_WITHIN)).map_err(|source| PortError::new(operation, PortErrorKind::Unavailable).with_source(source))?;
        match self.order(&order.node, operation)? {
            Some(read) if read == *order => Ok(()),
            // Somebody else wrote in between.
            Some(_) | None => Err(PortError::new(operation, PortErrorKind::OutcomeUnknown)),
        }
    }

    /// The last order in the file; a file of ours that no longer fits is as good as one of ours that does, for replacing.
    fn last_ticket(&self, node: &NodeName, operation: &str) -> Result<Option<BootTicket>, PortError> {
        let path = self.path(node, operation)?;
        match self.order(node, operation) {
            Ok(order) => Ok(order.and_then(|order| order.ticket)),
            Err(error) => match first_line(&path) {
                Some(order) if order.node == *node => Ok(order.ticket),
                Some(_) | None => Err(error),
            },
        }
    }
}

#[async_trait]
impl NetBoot for BootFolder {
    async fn stage(&self, node: &NodeName, ticket: &BootTicket) -> Result<(), PortError> {
        let begun = Instant::now();
        let operation = format!("order image {} for the next netboot of {node}", ticket.image);
        self.last_ticket(node, &operation)?;
        self.write(&operation, &Order { node: node.clone(), staged: true, ticket: Some(ticket.clone()) }, begun)
    }

    async fn would_take(&self, node: &NodeName) -> Result<(), PortError> {
        let operation = format!("look whether {node} can be given an order");
        self.path(node, &operation)?;
        aside(|| access(&self.folder, AccessFlags::W_OK | AccessFlags::X_OK)).map_err(|error| {
            let why = format!("{} can't be written to by the user of the workers ({error}): it has to exist, to be theirs, and to be named in `ReadWritePaths=` of their unit", self.folder.display());
            PortError::new(operation, PortErrorKind::Unavailable).with_source(why)
        })
    }

    async fn staged(&self, node: &NodeName) -> Result<Option<BootTicket>, PortError> {
        let operation = format!("look at what {node} will boot from the network");
        let order = self.order(node, &operation)?;
        Ok(order.filter(|order| order.staged).and_then(|order| order.ticket))
    }

    async fn withdraw(&self, node: &NodeName) -> Result<(), PortError> {
        let begun = Instant::now();
        let operation = format!("withdraw what {node} was to boot from the network");
        let ticket = self.last_ticket(node, &operation)?;
        self.write(&operation, &Order { node: node.clone(), staged: false, ticket }, begun)
    }
}

fn first_line(path: &Path) -> Option<Order> {
    let mut text = String::new();
    File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    serde_json::from_str(text.lines().next()?.strip_prefix(MARK)?).ok()
}

fn foreign(operation: &str, path: &Path, why: &str) -> PortError {
    let reason = format!("{} can't be relied on: {why}; look at it, and move it away if it isn't needed", path.display());
    PortError::new(operation, PortErrorKind::Refused { reason })
}

/// What waits for a disk, or for a folder that others serve: the thread's other work goes on elsewhere meanwhile, that which tells the supervisor that we live among it.
fn aside<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        Ok(_) | Err(_) => work(),
    }
}

/// Puts `text` at `path` so that a reader, or a power cut, finds the old text or the new one, and nothing in between. Not if it is `too_late` once all but that is done.
fn replace(path: &Path, text: &str, too_late: impl Fn() -> bool) -> io::Result<()> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Err(io::ErrorKind::InvalidInput.into()) };
    // Not `.cfg` at its end: the PXE server never takes it for a node's. Several workers may share the folder.
    let unique = format!(".{}.{}-{}.new", name.to_string_lossy(), std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    let new = folder.join(unique);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&new)?;
        // Whatever this process's umask is: our unit's lets nobody else read.
        file.set_permissions(fs::Permissions::from_mode(FILE_MODE))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if too_late() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the folder was too slow: what was to be written may be out of date by now"));
        }
        fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // Best effort: a leftover harms nobody, and the error that matters is on its way.
        let _ = fs::remove_file(&new);
    }
    written
}

/// How GRUB names the place of `url`: `(http,host:port)/path` (GRUB manual, "Network").
fn grub_device(url: &str) -> Result<String, NotForGrub> {
    let url = Url::parse(url).map_err(|_| NotForGrub)?;
    let host = url.host_str().ok_or(NotForGrub)?;
    let port = match (url.scheme(), url.port()) {
        ("http" | "tftp", None) => String::new(),
        ("http", Some(port)) => format!(":{port}"),
        _ => return Err(NotForGrub),
    };
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err(NotForGrub);
    }
    Ok(format!("({},{host}{port}){}", url.scheme(), url.path().trim_end_matches('/')))
}

/// Characters that mean nothing to GRUB or to the kernel.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/')
}

/// One word of a GRUB script. Within single quotes every character stands for itself, but for the quote.
fn grub_quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/' | '=' | ',' | '+' | '%' | '@');
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Longer than it takes to begin a task, on a busy machine too.
    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn what_waits_for_a_disk_holds_up_nobody_else_on_its_thread() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
        let answered = runtime.block_on(async {
            let (tell, told) = mpsc::channel();
            let (begin, begun) = tokio::sync::oneshot::channel();
            let slow = tokio::spawn(async move {
                aside(|| {
                    begin.send(()).expect("the other one waits");
                    told.recv_timeout(PATIENCE)
                })
            });
            tokio::spawn(async move {
                begun.await.expect("the slow one begins");
                tell.send(()).expect("the slow one still waits");
            });
            slow.await.expect("it ends")
        });
        assert!(answered.is_ok(), "the other task did not get its turn");
    }

    #[test]
    fn what_was_decided_too_long_ago_is_not_written_any_more() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("node.cfg");
        replace(&path, "old", || false).expect("it is written");
        let late = replace(&path, "new", || true).expect_err("it is too late");
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert_eq!(fs::read_to_string(&path).expect("it is there"), "old");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "and nothing else is");
    }
}
