//! Reasons for which a renewed node is not given back, each a word that scripts and statistics can go by.

use std::fmt;

/// Stands with a question ([`crate::engine::Question::reasons`]); what each means is in `docs/checks.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    DidNotComeBack,
    InstallerFailed,
    InstallerSilent,
    OtherSystem,
    OsRelease,
    Kernel,
    HostName,
    NotBackInNova,
    Identity,
    Inventory,
    NetworkAgent,
    NotTold,
    CheckFailed,
    NodeSilent,
    Clock,
    DataDisks,
    PciDevices,
    KernelParameters,
    Vlans,
    NotCompared,
    WasLeft,
    CanaryStays,
    CanaryFailed,
    Alerts,
}

impl Reason {
    pub const ALL: [Reason; 24] = [
        Reason::DidNotComeBack,
        Reason::InstallerFailed,
        Reason::InstallerSilent,
        Reason::OtherSystem,
        Reason::OsRelease,
        Reason::Kernel,
        Reason::HostName,
        Reason::NotBackInNova,
        Reason::Identity,
        Reason::Inventory,
        Reason::NetworkAgent,
        Reason::NotTold,
        Reason::CheckFailed,
        Reason::NodeSilent,
        Reason::Clock,
        Reason::DataDisks,
        Reason::PciDevices,
        Reason::KernelParameters,
        Reason::Vlans,
        Reason::NotCompared,
        Reason::WasLeft,
        Reason::CanaryStays,
        Reason::CanaryFailed,
        Reason::Alerts,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Reason::DidNotComeBack => "did-not-come-back",
            Reason::InstallerFailed => "installer-failed",
            Reason::InstallerSilent => "installer-silent",
            Reason::OtherSystem => "other-system",
            Reason::OsRelease => "os-release",
            Reason::Kernel => "kernel",
            Reason::HostName => "host-name",
            Reason::NotBackInNova => "not-back-in-nova",
            Reason::Identity => "identity",
            Reason::Inventory => "inventory",
            Reason::NetworkAgent => "network-agent",
            Reason::NotTold => "not-told",
            Reason::CheckFailed => "check-failed",
            Reason::NodeSilent => "node-silent",
            Reason::Clock => "clock",
            Reason::DataDisks => "data-disks",
            Reason::PciDevices => "pci-devices",
            Reason::KernelParameters => "kernel-parameters",
            Reason::Vlans => "vlans",
            Reason::NotCompared => "not-compared",
            Reason::WasLeft => "was-left",
            Reason::CanaryStays => "canary-stays",
            Reason::CanaryFailed => "canary-failed",
            Reason::Alerts => "alerts",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Reason;

    #[test]
    fn each_reason_is_a_word_of_its_own_and_explained() {
        let page = include_str!("../../../docs/checks.md");
        let words: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        for word in words {
            assert!(page.contains(&format!("`{word}`")), "{word} is not in docs/checks.md");
        }
    }
}
