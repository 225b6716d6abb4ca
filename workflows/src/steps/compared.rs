//! In what a renewed node differs from how it was found, without a check of the site's own.

use std::collections::BTreeSet;
use std::time::Duration;

use turnaround_config::Compared;

use super::Reason;
use crate::ports::{DiskHolds, NodeStock, PciDevice};

/// A clock that is certainly off by so much is wrong.
// A host that keeps time is within milliseconds (chrony, NTP); one that does not is soon seconds off, which is when Ceph complains (0.05 s), then
// certificates and tokens of Keystone do.
const CLOCK_OFF_MAX: Duration = Duration::from_secs(2);

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) reason: Reason,
    /// What was compared, for people.
    pub(super) what: &'static str,
    pub(super) line: String,
    /// An operator may say that it is meant to be so.
    pub(super) may_be_meant: bool,
}

/// In what `now` is not as it has to be. `Err(why)`: there is nothing to compare it with.
pub(super) fn differences(compare: &BTreeSet<Compared>, before: Result<&NodeStock, &str>, now: &NodeStock) -> Vec<Difference> {
    let mut found = Vec::new();
    for compared in compare {
        let (reason, what) = (reason(*compared), what(*compared));
        match compared {
            Compared::Clock => {
                if now.clock_ahead_ms.unsigned_abs() >= u64::try_from(CLOCK_OFF_MAX.as_millis()).unwrap_or(u64::MAX) {
                    let line = format!("its clock is {} that of the worker's host: have the one that is wrong synchronized (chrony, NTP)", off_by(now.clock_ahead_ms));
                    found.push(Difference { reason, what, line, may_be_meant: false });
                }
            }
            Compared::DataDisks | Compared::PciDevices | Compared::KernelParameters | Compared::Vlans => {
                let told = match before {
                    Err(why) => Err(format!("{why}; now: {}", shown(*compared, now))),
                    Ok(before) => changes(*compared, before, now),
                };
                match told {
                    Ok(changes) if changes.is_empty() => {}
                    Ok(changes) => found.push(Difference { reason, what, line: format!("{what}: {}", changes.join("; ")), may_be_meant: true }),
                    Err(why) => found.push(Difference { reason: Reason::NotCompared, what, line: format!("{what}: {why}"), may_be_meant: true }),
                }
            }
        }
    }
    found
}

fn reason(compared: Compared) -> Reason {
    match compared {
        Compared::Clock => Reason::Clock,
        Compared::DataDisks => Reason::DataDisks,
        Compared::PciDevices => Reason::PciDevices,
        Compared::KernelParameters => Reason::KernelParameters,
        Compared::Vlans => Reason::Vlans,
    }
}

fn what(compared: Compared) -> &'static str {
    match compared {
        Compared::Clock => "its clock",
        Compared::DataDisks => "its data disks",
        Compared::PciDevices => "its PCI devices",
        Compared::KernelParameters => "its kernel's parameters",
        Compared::Vlans => "its VLANs",
    }
}

/// What there will be nothing to compare with, if this is all that a node tells of itself.
pub(super) fn untold(compare: &BTreeSet<Compared>, stock: &NodeStock) -> Vec<&'static str> {
    let is_untold = |compared: &&Compared| match compared {
        Compared::Clock | Compared::PciDevices | Compared::KernelParameters => false,
        Compared::DataDisks => stock.disks.is_none(),
        Compared::Vlans => stock.vlans.is_none(),
    };
    compare.iter().filter(is_untold).map(|compared| what(*compared)).collect()
}

/// What of it there is no more, or is another; `Err(why)` where that can't be told.
fn changes(compared: Compared, before: &NodeStock, now: &NodeStock) -> Result<Vec<String>, String> {
    const UNTOLD: &str = "the node could not tell";
    match compared {
        Compared::Clock => Ok(Vec::new()),
        Compared::DataDisks => {
            let Some(before) = &before.disks else { return Err(format!("{UNTOLD} before; now: {}", shown(compared, now))) };
            let Some(now) = &now.disks else { return Err(UNTOLD.to_owned()) };
            let changed = |(disk, held): (&String, &DiskHolds)| match (held, now.get(disk)) {
                (DiskHolds::System, _) => None,
                (held, Some(holds)) if held == holds => None,
                (DiskHolds::Data(held), None) => Some(format!("disk {disk} is gone, which held {}", contents(held))),
                (DiskHolds::Data(held), Some(DiskHolds::System)) => Some(format!("the SYSTEM is on disk {disk} now, which held {}", contents(held))),
                (DiskHolds::Data(held), Some(DiskHolds::Data(holds))) => Some(format!("disk {disk} held {}, and holds {} now", contents(held), contents(holds))),
            };
            Ok(before.iter().filter_map(changed).collect())
        }
        Compared::PciDevices => Ok(devices(before, now)),
        // What an image adds is its own affair.
        Compared::KernelParameters => Ok(before.kernel_parameters.difference(&now.kernel_parameters).map(|word| format!("`{word}` is gone")).collect()),
        Compared::Vlans => {
            let Some(before) = &before.vlans else { return Err(format!("{UNTOLD} before; now: {}", shown(compared, now))) };
            let Some(now) = &now.vlans else { return Err(UNTOLD.to_owned()) };
            Ok(before.difference(now).map(|vlan| format!("{vlan} is gone")).collect())
        }
    }
}

/// What of its PCI devices is gone, driven by something else, or slower.
fn devices(before: &NodeStock, now: &NodeStock) -> Vec<String> {
    let changed = |(address, was): (&String, &PciDevice)| {
        let Some(is) = now.devices.get(address).filter(|is| is.id == was.id) else { return Some(format!("{} is gone", device(address, was))) };
        if is.driver != was.driver {
            return Some(format!("{address} ({}) was driven by {}, and is by {} now", is.id, driver(was), driver(is)));
        }
        if is.lanes == PciDevice::LANES_OF_THE_DEAD && was.lanes != is.lanes {
            return Some(format!("{address} ({}) is listed, and does not answer (all that is read of it is ones)", is.id));
        }
        // (0: it does not say, as one that sleeps.)
        (is.lanes > 0 && is.lanes < was.lanes).then(|| format!("{address} ({}) had {} lanes, and has {} now", is.id, was.lanes, is.lanes))
    };
    let fewer = |(id, was): (&String, &u32)| {
        let is = now.virtual_functions.get(id).copied().unwrap_or(0);
        (is < *was).then(|| format!("{is} of {was} virtual functions {id} are left"))
    };
    before.devices.iter().filter_map(changed).chain(before.virtual_functions.iter().filter_map(fewer)).collect()
}

fn driver(device: &PciDevice) -> &str {
    device.driver.as_deref().unwrap_or("nothing")
}

fn device(address: &str, of: &PciDevice) -> String {
    format!("{address} ({}, driven by {}, {} lanes)", of.id, driver(of), of.lanes)
}

fn contents(text: &str) -> &str {
    if text.is_empty() { "nothing" } else { text }
}

fn shown(compared: Compared, stock: &NodeStock) -> String {
    let or_none = |all: Vec<String>| if all.is_empty() { "none".to_owned() } else { all.join("; ") };
    match compared {
        Compared::Clock => off_by(stock.clock_ahead_ms),
        Compared::DataDisks => stock.disks.as_ref().map_or_else(
            || "it can't tell".to_owned(),
            |disks| {
                let data = disks.iter().filter_map(|(disk, holds)| match holds {
                    DiskHolds::System => None,
                    DiskHolds::Data(holds) => Some(format!("{disk} holds {}", contents(holds))),
                });
                or_none(data.collect())
            },
        ),
        Compared::PciDevices => {
            let functions = stock.virtual_functions.iter().map(|(id, count)| format!("{count} virtual functions {id}"));
            or_none(stock.devices.iter().map(|(address, of)| device(address, of)).chain(functions).collect())
        }
        Compared::KernelParameters => or_none(stock.kernel_parameters.iter().cloned().collect()),
        Compared::Vlans => stock.vlans.as_ref().map_or_else(|| "it can't tell".to_owned(), |vlans| or_none(vlans.iter().cloned().collect())),
    }
}

fn off_by(ahead_ms: i64) -> String {
    let length = Duration::from_millis(ahead_ms.unsigned_abs());
    if ahead_ms < 0 { format!("at least {length:?} behind") } else { format!("at least {length:?} ahead of") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(driver: &str, lanes: u32) -> PciDevice {
        PciDevice { id: "10de:2330".to_owned(), driver: Some(driver.to_owned()), lanes }
    }

    fn stock() -> NodeStock {
        let disks = [("SYS", DiskHolds::System), ("OSD", DiskHolds::Data("LVM2_member x".to_owned())), ("NEW", DiskHolds::Data(String::new()))];
        NodeStock {
            clock_ahead_ms: 0,
            devices: [("17:00.0", gpu("vfio-pci", 16)), ("3d:00.0", gpu("vfio-pci", 16)), ("5e:00.0", gpu("vfio-pci", 16))].map(|(at, gpu)| (at.to_owned(), gpu)).into(),
            virtual_functions: [("15b3:101e".to_owned(), 16)].into(),
            disks: Some(disks.map(|(disk, holds)| (disk.to_owned(), holds)).into()),
            kernel_parameters: ["intel_iommu=on", "hugepages=64"].map(str::to_owned).into(),
            vlans: Some(["bond0.100: VLAN 100 on bond0"].map(str::to_owned).into()),
        }
    }

    fn told(before: Result<&NodeStock, &str>, now: &NodeStock) -> Vec<(Reason, String)> {
        differences(&Compared::ALL.into(), before, now).into_iter().map(|difference| (difference.reason, difference.line)).collect()
    }

    #[test]
    fn what_is_as_it_was_and_what_is_new_is_no_difference() {
        let (before, mut now) = (stock(), stock());
        assert_eq!(told(Ok(&before), &now), []);
        now.kernel_parameters.insert("isolcpus=2-31".to_owned());
        now.vlans.as_mut().unwrap().insert("bond0.200: VLAN 200 on bond0".to_owned());
        let disks = now.disks.as_mut().unwrap();
        // Another disk in place of the system's.
        disks.remove("SYS");
        disks.insert("SYS2".to_owned(), DiskHolds::System);
        now.devices.insert("af:00.0".to_owned(), gpu("nvidia", 8));
        now.virtual_functions = [("15b3:101e".to_owned(), 32)].into();
        now.devices.insert("17:00.0".to_owned(), gpu("vfio-pci", 0));
        now.clock_ahead_ms = -1_999;
        assert_eq!(told(Ok(&before), &now), []);
    }

    #[test]
    fn what_the_installation_has_overwritten_or_lost_is_named() {
        let (before, mut now) = (stock(), stock());
        let disks = now.disks.as_mut().unwrap();
        disks.insert("OSD".to_owned(), DiskHolds::System);
        disks.insert("NEW".to_owned(), DiskHolds::Data("ext4 y".to_owned()));
        now.kernel_parameters = ["hugepages=32".to_owned()].into();
        now.vlans = Some(BTreeSet::new());
        now.devices = [("17:00.0", gpu("nouveau", 16)), ("3d:00.0", gpu("vfio-pci", 8))].map(|(at, gpu)| (at.to_owned(), gpu)).into();
        now.virtual_functions.clear();
        now.clock_ahead_ms = -2_000;
        assert_eq!(
            told(Ok(&before), &now),
            [
                (Reason::Clock, "its clock is at least 2s behind that of the worker's host: have the one that is wrong synchronized (chrony, NTP)".to_owned()),
                (Reason::DataDisks, "its data disks: disk NEW held nothing, and holds ext4 y now; the SYSTEM is on disk OSD now, which held LVM2_member x".to_owned()),
                (
                    Reason::PciDevices,
                    "its PCI devices: 17:00.0 (10de:2330) was driven by vfio-pci, and is by nouveau now; 3d:00.0 (10de:2330) had 16 lanes, and has 8 now; \
                     5e:00.0 (10de:2330, driven by vfio-pci, 16 lanes) is gone; 0 of 16 virtual functions 15b3:101e are left"
                        .to_owned()
                ),
                (Reason::KernelParameters, "its kernel's parameters: `hugepages=64` is gone; `intel_iommu=on` is gone".to_owned()),
                (Reason::Vlans, "its VLANs: bond0.100: VLAN 100 on bond0 is gone".to_owned()),
            ]
        );
        now.devices.insert("17:00.0".to_owned(), gpu("vfio-pci", PciDevice::LANES_OF_THE_DEAD));
        assert!(told(Ok(&before), &now)[2].1.contains("17:00.0 (10de:2330) is listed, and does not answer (all that is read of it is ones)"));
        now.disks.as_mut().unwrap().remove("OSD");
        assert!(told(Ok(&before), &now)[1].1.contains("disk OSD is gone, which held LVM2_member x"));
    }

    #[test]
    fn what_can_not_be_told_is_not_taken_as_good() {
        let unable = NodeStock { disks: None, vlans: None, ..stock() };
        for (before, now, reason) in [(&unable, &stock(), "could not tell before"), (&stock(), &unable, "could not tell"), (&unable, &unable, "could not tell before")] {
            let told = told(Ok(before), now);
            assert_eq!(told.iter().map(|(reason, _)| *reason).collect::<Vec<_>>(), [Reason::NotCompared; 2]);
            assert!(told.iter().all(|(_, line)| line.contains(reason)), "{told:?}");
        }
        assert_eq!(untold(&Compared::ALL.into(), &unable), ["its data disks", "its VLANs"]);
        let told = told(Err("it was silent"), &stock());
        let lines: Vec<&str> = told.iter().map(|(_, line)| line.as_str()).collect();
        assert_eq!(
            lines,
            [
                "its data disks: it was silent; now: NEW holds nothing; OSD holds LVM2_member x",
                "its PCI devices: it was silent; now: 17:00.0 (10de:2330, driven by vfio-pci, 16 lanes); 3d:00.0 (10de:2330, driven by vfio-pci, 16 lanes); \
                 5e:00.0 (10de:2330, driven by vfio-pci, 16 lanes); 16 virtual functions 15b3:101e",
                "its kernel's parameters: it was silent; now: hugepages=64; intel_iommu=on",
                "its VLANs: it was silent; now: bond0.100: VLAN 100 on bond0",
            ]
        );
    }
}
