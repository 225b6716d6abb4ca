//! A machine of QEMU's, and the hand of its BMC on the power switch.
//!
//! A start from the network is a start with the network card first, then the disk; any other has the disk alone. Whatever was set to boot
//! next is used up by it. A machine that restarts itself ends its QEMU (`-no-reboot`) and is started anew, from its disk.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use turnaround_workflows::ports::{BootDevice, BootOverride, Power};

/// UEFI firmware, from Debian's `ovmf`. It forgets its settings with each start.
pub const FIRMWARE: &str = "/usr/share/ovmf/OVMF.fd";
/// The installer holds kernel, initrd and a whole image (40 MB) in memory, in one half of it.
const MEMORY_MIB: &str = "320";
/// A restart that cuts the power leaves it off for so long.
const POWER_OFF: Duration = Duration::from_millis(200);
/// What `ipmitool chassis bootdev pxe options=efiboot` sets: valid, EFI, next boot only; from the network.
const NETWORK_BY_EFI: &str = "a004";

/// What there is to start.
#[derive(Debug, Clone)]
pub struct Hardware {
    /// Its disk, a raw image.
    pub disk: PathBuf,
    /// What it gets by TFTP.
    pub pxe: PathBuf,
    pub mac: String,
    pub uuid: String,
    /// Where its SSH server is on this host's loopback.
    pub ssh_port: u16,
    /// Everything it says on its serial console.
    pub serial: PathBuf,
    /// Where an IPMI BMC keeps the boot flags, in hexadecimal digits.
    pub boot_flags: PathBuf,
}

/// What is wrong with the BMC, or the machine.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// The BMC says yes to a boot device and keeps none.
    pub forgets_boot_device: bool,
    /// The BMC keeps the boot device and shows it, and the machine boots from its disk all the same.
    pub ignores_boot_device: bool,
    /// The next restart is carried out a second time after so long.
    pub doubles_next_restart: Option<Duration>,
    /// At the next restart by itself, this disk is what it boots.
    pub then_boots: Option<PathBuf>,
}

/// One start of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    pub from_network: bool,
    pub by: By,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Bmc,
    /// It restarted itself.
    Itself,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    On,
    Off,
    Restart,
}

/// The machine. It is switched off when the last of its handles is dropped.
#[derive(Debug)]
pub struct Machine {
    hardware: Hardware,
    orders: mpsc::UnboundedSender<Order>,
    state: Arc<Mutex<State>>,
    hand: AbortHandle,
}

#[derive(Debug)]
struct State {
    on: bool,
    next_boot: BootDevice,
    faults: Faults,
    starts: Vec<Start>,
    disk: PathBuf,
    /// Why QEMU could not be started, or has ended.
    broken: Option<String>,
}

impl Machine {
    /// It is off.
    pub fn new(hardware: Hardware) -> Machine {
        let disk = hardware.disk.clone();
        let state =
            State { on: false, next_boot: BootDevice::None, faults: Faults::default(), starts: Vec::new(), disk, broken: None };
        let state = Arc::new(Mutex::new(state));
        let (orders, inbox) = mpsc::unbounded_channel();
        let hand = Hand { hardware: hardware.clone(), state: Arc::clone(&state), qemu: None };
        let hand = tokio::spawn(hand.work(inbox)).abort_handle();
        Machine { hardware, orders, state, hand }
    }

    /// Acknowledged before anything happens, as by a BMC.
    pub fn order(&self, order: Order) {
        // The hand only goes away with the machine.
        let _ = self.orders.send(order);
    }

    pub fn power(&self) -> Power {
        if self.state.lock().unwrap().on { Power::On } else { Power::Off }
    }

    /// Of the interface that netboots.
    pub fn mac(&self) -> &str {
        &self.hardware.mac
    }

    pub fn next_boot(&self) -> BootOverride {
        BootOverride { device: self.state.lock().unwrap().next_boot, efi: true }
    }

    pub fn set_next_boot(&self, device: BootDevice) {
        let mut state = self.state.lock().unwrap();
        if !state.faults.forgets_boot_device {
            state.next_boot = device;
        }
    }

    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().unwrap().faults = faults;
    }

    /// All starts so far, oldest first.
    pub fn starts(&self) -> Vec<Start> {
        self.state.lock().unwrap().starts.clone()
    }

    pub fn broken(&self) -> Option<String> {
        self.state.lock().unwrap().broken.clone()
    }

    /// Everything that it has said so far.
    pub fn said(&self) -> String {
        fs::read(&self.hardware.serial).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The newest lines of it, for a person.
    pub fn last_said(&self, lines: usize) -> String {
        let said: String = self.said().chars().filter(|c| !c.is_control() || *c == '\n').collect();
        let all: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.hand.abort();
    }
}

struct Hand {
    hardware: Hardware,
    state: Arc<Mutex<State>>,
    qemu: Option<Child>,
}

impl Hand {
    async fn work(mut self, mut inbox: mpsc::UnboundedReceiver<Order>) {
        loop {
            tokio::select! {
                order = inbox.recv() => match order {
                    Some(order) => self.carry_out(order).await,
                    None => return,
                },
                ended = end_of(&mut self.qemu) => self.has_ended(ended),
            }
        }
    }

    async fn carry_out(&mut self, order: Order) {
        match order {
            Order::Off => self.switch_off().await,
            Order::On if self.qemu.is_some() => {}
            Order::On | Order::Restart => {
                self.switch_off().await;
                self.start(By::Bmc);
                let again = self.state.lock().unwrap().faults.doubles_next_restart.take();
                if let Some(again) = again {
                    tokio::time::sleep(again).await;
                    self.switch_off().await;
                    self.start(By::Bmc);
                }
            }
        }
    }

    async fn switch_off(&mut self) {
        if let Some(mut qemu) = self.qemu.take() {
            let _ = qemu.kill().await;
            tokio::time::sleep(POWER_OFF).await;
        }
        self.state.lock().unwrap().on = false;
    }

    fn has_ended(&mut self, ended: io::Result<std::process::ExitStatus>) {
        self.qemu = None;
        match ended {
            Ok(status) if status.success() => {
                {
                    let mut state = self.state.lock().unwrap();
                    if let Some(disk) = state.faults.then_boots.take() {
                        state.disk = disk;
                    }
                }
                self.start(By::Itself);
            }
            Ok(status) => self.broke(format!("qemu has ended: {status}")),
            Err(error) => self.broke(format!("qemu is lost: {error}")),
        }
    }

    fn broke(&self, why: String) {
        let mut state = self.state.lock().unwrap();
        state.on = false;
        state.broken = Some(why);
    }

    /// Uses up what was set to boot next.
    fn start(&mut self, by: By) {
        let mut state = self.state.lock().unwrap();
        let flags = fs::read_to_string(&self.hardware.boot_flags).unwrap_or_default();
        let asked = std::mem::replace(&mut state.next_boot, BootDevice::None) == BootDevice::Pxe || flags.starts_with(NETWORK_BY_EFI);
        let _ = fs::remove_file(&self.hardware.boot_flags);
        let from_network = asked && by == By::Bmc && !state.faults.ignores_boot_device;
        state.starts.push(Start { from_network, by });
        let number = state.starts.len();
        let disk = state.disk.clone();
        drop(state);
        let started = self.note(&format!("start {number} by {by:?}, {}", if from_network { "from the network" } else { "from the disk" }));
        match started.and_then(|()| self.qemu(&disk, from_network).spawn()) {
            Ok(qemu) => {
                self.qemu = Some(qemu);
                self.state.lock().unwrap().on = true;
            }
            Err(error) => self.broke(format!("qemu could not be started: {error}")),
        }
    }

    /// A line of our own in what the machine says.
    fn note(&self, line: &str) -> io::Result<()> {
        writeln!(fs::OpenOptions::new().create(true).append(true).open(&self.hardware.serial)?, "\n=== {line}")
    }

    fn qemu(&self, disk: &Path, from_network: bool) -> Command {
        let Hardware { pxe, mac, uuid, ssh_port, serial, .. } = &self.hardware;
        let (network, storage) = if from_network { (",bootindex=0", ",bootindex=1") } else { ("", ",bootindex=0") };
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-machine", "q35", "-cpu", "qemu64,+rdrand", "-smp", "1", "-m", MEMORY_MIB])
            .args(["-nodefaults", "-display", "none", "-no-reboot", "-bios", FIRMWARE, "-uuid", uuid])
            .arg("-chardev")
            .arg(format!("file,id=serial,append=on,path={}", serial.display()))
            .args(["-serial", "chardev:serial", "-netdev"])
            .arg(format!(
                "user,id=network,tftp={},bootfile=grubx64.efi,hostfwd=tcp:127.0.0.1:{ssh_port}-10.0.2.15:22",
                pxe.display()
            ))
            .arg("-device")
            // Without a ROM of its own: the firmware's driver and PXE are used.
            .arg(format!("virtio-net-pci,netdev=network,mac={mac},romfile={network}"))
            .arg("-drive")
            .arg(format!("if=none,id=disk,format=raw,cache=unsafe,file={}", disk.display()))
            .arg("-device")
            .arg(format!("virtio-blk-pci,drive=disk{storage}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::OpenOptions::new().append(true).open(serial).map_or(Stdio::null(), Stdio::from))
            .kill_on_drop(true);
        qemu
    }
}

async fn end_of(qemu: &mut Option<Child>) -> io::Result<std::process::ExitStatus> {
    match qemu {
        Some(qemu) => qemu.wait().await,
        None => std::future::pending().await,
    }
}
