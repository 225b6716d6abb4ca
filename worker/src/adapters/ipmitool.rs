//! A BMC by IPMI 2.0 over the network, through the `ipmitool` program: the commands are those of the operators' runbook
//! for re-provisioning a node (`-I lanplus -L OPERATOR`, `chassis bootdev pxe options=efiboot`, `chassis bootparam get 5`,
//! `chassis power cycle`).
//!
//! The password goes into the program's environment (`-E`), never into its arguments, which every user can see. A wrong
//! password and a BMC that isn't there give the same message and exit code, so neither can be told from it.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;
use turnaround_config::SecretText;
use turnaround_workflows::ports::{BootDevice, BootOverride, PortError, PortErrorKind, Power};

use super::http::{Effect, foreign_text};
use super::late::in_time;
use super::program::{Finished, Program};

/// IPMI 2.0 has no longer passwords, and `ipmitool` refuses to start with one.
pub(crate) const PASSWORD_BYTES_MAX: usize = 20;

/// At most this long is the answer to a changing command awaited, in seconds (`-N`, with `-R 1`: no repetition).
// ipmitool's own 1 s, four times, is wrong for a power command: a machine whose BMC took 3 s over it was switched on three
// times (seen with `ipmi_sim`), and a second reset uses up the boot device that was set for once. No BMC was seen to take 10 s.
const ANSWER_SECONDS_MAX: u64 = 10;

/// The patience with a command that only reads: two tries of 2 s. A BMC that isn't there is given up after 10 s.
// ipmitool's own patience is 20 s for that, which would be cut off by the usual time limit, and say less.
const READING: [&str; 4] = ["-N", "2", "-R", "2"];

/// One node's BMC.
#[derive(Debug)]
pub(crate) struct Ipmitool {
    pub(crate) program: PathBuf,
    /// Time limit of one command, from start to end of `ipmitool`.
    pub(crate) request_timeout: Duration,
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: SecretText,
    pub(crate) cipher_suite: u8,
}

impl Ipmitool {
    pub(crate) async fn power(&self, operation: &str) -> Result<Power, PortError> {
        let said = self.command(operation, Effect::None, &["chassis", "power", "status"]).await?;
        match said.trim() {
            "Chassis Power is on" => Ok(Power::On),
            "Chassis Power is off" => Ok(Power::Off),
            other => Err(garbled(operation, "`Chassis Power is on` or `off`", other)),
        }
    }

    pub(crate) async fn boot_override(&self, operation: &str) -> Result<BootOverride, PortError> {
        let said = self.command(operation, Effect::None, &["chassis", "bootparam", "get", "5"]).await?;
        parse_boot_flags(&said).ok_or_else(|| garbled(operation, "`Boot parameter data:` with five bytes", &said))
    }

    /// Sets it, and tells what the BMC then says.
    pub(crate) async fn netboot_next(&self, operation: &str) -> Result<BootOverride, PortError> {
        self.command(operation, Effect::Some, &["chassis", "bootdev", "pxe", "options=efiboot"]).await?;
        self.boot_override(operation).await
    }

    pub(crate) async fn reset(&self, operation: &str) -> Result<(), PortError> {
        let decided = Instant::now();
        // A node that is off can't be cycled: IPMI's power cycle does nothing then.
        let action = match self.power(operation).await? {
            Power::Off => "on",
            Power::On | Power::Changing => "cycle",
        };
        in_time(decided, operation, "tell its power state")?;
        self.command(operation, Effect::Some, &["chassis", "power", action]).await.map(drop)
    }

    /// Short enough that `ipmitool` itself gives a BMC up that isn't there, and so says that nothing was asked of it: it tries
    /// twice to open a session.
    fn answer_seconds(&self) -> u64 {
        (self.request_timeout.as_secs().saturating_sub(1) / 2).clamp(1, ANSWER_SECONDS_MAX)
    }

    async fn command(&self, operation: &str, effect: Effect, words: &[&str]) -> Result<String, PortError> {
        let mut program = Program::new(&self.program, self.request_timeout)
            .args(["-I", "lanplus", "-L", "OPERATOR"])
            .args(["-H", &self.address, "-p", &self.port.to_string(), "-U", &self.user])
            .args(["-C", &self.cipher_suite.to_string()])
            .env("IPMITOOL_PASSWORD", self.password.expose())
            .args(["-E"]);
        program = match effect {
            Effect::None => program.args(READING),
            // Carried out twice is worse than not at all, which shows when the result is looked at.
            Effect::Some => program.args(["-N", &self.answer_seconds().to_string(), "-R", "1"]),
        };
        let finished = match program.args(words.iter().copied()).run().await {
            Ok(finished) => finished,
            Err(error) => {
                let not_started = matches!(error, super::program::ProgramError::NotStarted(..));
                let kind = if not_started || effect == Effect::None {
                    PortErrorKind::Unavailable
                } else {
                    PortErrorKind::OutcomeUnknown
                };
                return Err(PortError::new(operation, kind).with_source(error));
            }
        };
        if finished.code == Some(0) {
            return Ok(finished.stdout);
        }
        Err(PortError::new(operation, meaning(&finished, effect)).with_source(finished.complaint()))
    }
}

/// What a failed `ipmitool` means.
fn meaning(finished: &Finished, effect: Effect) -> PortErrorKind {
    let said = &finished.stderr;
    // Without a session, nothing was asked.
    if effect == Effect::None || said.contains("Unable to establish") {
        return PortErrorKind::Unavailable;
    }
    // The BMC's own completion codes: it received the command and said no.
    let refused = [
        "Insufficient privilege",
        "Command not supported in present state",
        "Invalid data field",
        "Invalid command",
        "not supported",
    ];
    if refused.iter().any(|words| said.contains(words)) {
        return PortErrorKind::Refused { reason: finished.complaint() };
    }
    PortErrorKind::OutcomeUnknown
}

/// The boot flags, from the raw bytes that `ipmitool` shows beside its own words. IPMI 2.0, table 28-14, parameter 5: in
/// the first byte bit 7 = valid, bit 5 = EFI; in the second, bits 5 to 2 = the device.
fn parse_boot_flags(said: &str) -> Option<BootOverride> {
    let data = said.lines().find_map(|line| line.trim().strip_prefix("Boot parameter data:"))?.trim();
    if data.len() < 10 || !data.is_ascii() {
        return None;
    }
    let byte = |index: usize| u8::from_str_radix(&data[2 * index..2 * index + 2], 16).ok();
    let (flags, device) = (byte(0)?, (byte(1)? >> 2) & 0x0f);
    let device = match (flags & 0x80 != 0, device) {
        (false, _) | (true, 0) => BootDevice::None,
        (true, 1) => BootDevice::Pxe,
        (true, 2 | 3) => BootDevice::Disk,
        (true, _) => BootDevice::Other,
    };
    Some(BootOverride { device, efi: flags & 0x20 != 0 })
}

fn garbled(operation: &str, expected: &str, said: &str) -> PortError {
    let reason = format!("expected {expected}, and ipmitool said `{}`", foreign_text(said));
    PortError::new(operation, PortErrorKind::Garbled { reason })
}
