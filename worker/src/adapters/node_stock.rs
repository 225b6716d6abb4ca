//! What a node says of its disks, PCI devices, VLANs, kernel parameters and clock: the command that asks for it, and the reading of its report.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use turnaround_workflows::clock::Timestamp;
use tracing::warn;
use turnaround_workflows::ports::{DiskHolds, NodeStock, PciDevice};

use super::http::foreign_text;

/// A login shell may say something before our command does; what counts begins here.
const BEGIN: &str = "turnaround-stock 1";
const END: &str = "turnaround-stock end";

/// What is run on the node, as anybody may. No word of it comes from anywhere else. `sh` because the login shell may be another.
///
/// `lsblk(8)` reads what is on the disks from udev's database, for which it needs no rights. Disks over a network belong to instances, and go with
/// them: those of NVMe over fabrics are told by the transport of their controllers, since `lsblk` calls them `nvme` like others. (A disk's `device` is its
/// controller, or by native multipath its subsystem, which has its controllers below it.)
pub(crate) const COMMAND: &str = concat!(
    "exec sh -c 'LC_ALL=C; PATH=\"$PATH:/usr/sbin:/sbin\"; export LC_ALL PATH; echo \"turnaround-stock 1\"; ",
    "echo \"clock $(date +%s)\"; ",
    "tr \" \" \"\\n\" </proc/cmdline | sed \"s/^/parameter /\"; ",
    "for disk in /sys/block/nvme*n*; do for transport in \"$disk\"/device/transport \"$disk\"/device/nvme*/transport; do ",
    "if [ -e \"$transport\" ]; then echo \"nvme ${disk##*/} $(cat \"$transport\")\"; fi; done; done; ",
    "for pci in /sys/bus/pci/devices/*; do ",
    "read -r class <\"$pci/class\" || continue; case $class in 0x02* | 0x03* | 0x0680* | 0x12*) ;; *) continue ;; esac; ",
    "read -r vendor <\"$pci/vendor\"; read -r device <\"$pci/device\"; lanes=0; read -r lanes 2>/dev/null <\"$pci/current_link_width\"; ",
    "if [ -e \"$pci/physfn\" ]; then echo \"vf $class $vendor $device\"; continue; fi; ",
    "driver=$(readlink \"$pci/driver\"); driver=${driver##*/}; ",
    "echo \"pci ${pci##*/} $class $vendor $device ${driver:--} ${lanes:-0}\"; done 2>/dev/null; ",
    "disks=$(lsblk -J -o NAME,TYPE,TRAN,SERIAL,WWN,FSTYPE,UUID,PARTUUID,MOUNTPOINT 2>/dev/null) && printf \"disks %s\\n\" \"$(printf %s \"$disks\" | tr -d \"\\n\")\"; ",
    "vlans=$(ip -j -d link show type vlan 2>/dev/null) && printf \"vlans %s\\n\" \"$(printf %s \"$vlans\" | tr -d \"\\n\")\"; ",
    "echo \"turnaround-stock end\"'"
);

/// Words of a kernel's command line that concern devices, memory and processors of guests: these, or with one of these before their `=`, or before their first dot.
// From the kernel's own list (Documentation/admin-guide/kernel-parameters.txt), those that guides to PCI passthrough, huge pages and pinned processors name
// (Nova's, Red Hat's, NVIDIA's).
const KERNEL_PARAMETERS: [&str; 21] = [
    "amd_iommu",
    "default_hugepagesz",
    "hugepages",
    "hugepagesz",
    "intel_iommu",
    "iommu",
    "iommu.passthrough",
    "irqaffinity",
    "isolcpus",
    "kvm",
    "kvm_amd",
    "kvm_intel",
    "mitigations",
    "nohz_full",
    "nosmt",
    "pci",
    "pcie_acs_override",
    "rcu_nocbs",
    "vfio",
    "vfio_iommu_type1",
    "vfio_pci",
];

/// Where the system's own file systems are. A disk under one of them is the installation's to write.
const SYSTEM_MOUNTS: [&str; 5] = ["/", "/boot", "/usr", "/var", "[SWAP]"];

/// How the kernel's names of a node's own disks begin. Whatever else `lsblk` calls a disk (rbd, nbd, zvols, what other storage makes of tenants' volumes)
/// comes and goes.
const DISKS: [&str; 7] = ["sd", "nvme", "vd", "xvd", "hd", "mmcblk", "pmem"];

/// How disks are attached that are another machine's, or come and go: a BMC's virtual media are USB disks.
const NOT_ITS_OWN: [&str; 4] = ["iscsi", "fc", "fcoe", "usb"];

/// Lengths of what a node says that is kept: a serial number has 20 characters, a UUID 36, an interface's name 15.
const WORD_CHARS_MAX: usize = 128;

/// Disks of a node. The largest chassis take a hundred.
const DISKS_MAX: usize = 512;

/// Graphics, accelerator and network cards of a node, and switches of those, but for virtual functions. Sixteen of the largest are in one chassis.
const DEVICES_MAX: usize = 512;

/// PCIe has no wider link. What is said to have more does not say, but for [`PciDevice::LANES_OF_THE_DEAD`].
const LANES_MAX: u32 = 32;

/// A report, in bytes.
// Half a KiB of a disk with its volume, one KiB of each path to a tenant's volume: a storage node, or one with many instances on Fibre Channel, comes to some
// hundred KiB.
pub(crate) const REPORT_BYTES_MAX: u64 = 1024 * 1024;

/// Of the graphics of BMCs (ASPEED, Matrox), whose driver changes with the kernel and concerns nobody.
const CONSOLES: [&str; 2] = ["0x1a03", "0x102b"];

/// NVIDIA's, whose NVSwitches say that they are bridges of some other kind.
const NVIDIA: &str = "0x10de";

/// VLAN interfaces of a node: there are no more VLANs than that.
const VLANS_MAX: usize = 4_096;

#[derive(Deserialize)]
struct Lsblk {
    blockdevices: Vec<Block>,
}

#[derive(Deserialize)]
struct Block {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    tran: Option<String>,
    serial: Option<String>,
    wwn: Option<String>,
    fstype: Option<String>,
    uuid: Option<String>,
    partuuid: Option<String>,
    mountpoint: Option<String>,
    #[serde(default)]
    children: Vec<Block>,
}

impl Block {
    fn is_own_disk(&self, fabrics: &BTreeSet<&str>) -> bool {
        let is_own = !self.tran.as_deref().is_some_and(|tran| NOT_ITS_OWN.contains(&tran)) && !fabrics.contains(self.name.as_str());
        self.kind == "disk" && DISKS.iter().any(|kind| self.name.starts_with(kind)) && is_own
    }

    fn carries_the_system(&self) -> bool {
        let mounted = self.mountpoint.as_deref().is_some_and(|at| SYSTEM_MOUNTS.contains(&at) || at.starts_with("/boot/"));
        mounted || self.children.iter().any(Block::carries_the_system)
    }

    /// What is on the device itself, in one phrase; None if nothing that is known.
    fn content(&self) -> Option<String> {
        let words: Vec<String> = [&self.fstype, &self.uuid, &self.partuuid].into_iter().flatten().filter(|word| !word.is_empty()).map(|word| kept(word)).collect();
        (!words.is_empty()).then(|| words.join(" "))
    }

    /// What is on a disk and its partitions. What is made of these (volume groups, arrays) is there only once somebody has started it.
    fn holds(&self) -> BTreeSet<String> {
        let partitions = self.children.iter().filter(|child| child.kind == "part");
        self.content().into_iter().chain(partitions.map(|part| part.content().unwrap_or_else(|| "a partition".to_owned()))).collect()
    }

    fn key(&self) -> String {
        // Namespaces of one NVMe drive have its serial number, each a WWN of its own, which is the same by each path.
        kept(said(self.wwn.as_ref()).or(self.serial()).unwrap_or(&self.name))
    }

    fn serial(&self) -> Option<&str> {
        said(self.serial.as_ref())
    }
}

fn said(word: Option<&String>) -> Option<&str> {
    word.map(|word| word.trim()).filter(|word| !word.is_empty())
}

#[derive(Deserialize)]
struct Link {
    /// Some versions of `ip` print an empty object for each interface that is of another kind.
    ifname: Option<String>,
    link: Option<String>,
    linkinfo: Option<LinkInfo>,
}

#[derive(Deserialize)]
struct LinkInfo {
    info_data: Option<LinkData>,
}

#[derive(Deserialize)]
struct LinkData {
    id: Option<u16>,
}

fn kept(word: &str) -> String {
    foreign_text(word).chars().take(WORD_CHARS_MAX).collect()
}

/// The disks in the words of `lsblk`.
fn disks(json: &str, fabrics: &BTreeSet<&str>) -> Result<BTreeMap<String, DiskHolds>, String> {
    let lsblk: Lsblk = serde_json::from_str(json).map_err(|error| format!("what `lsblk` says of its disks can't be read: {error}"))?;
    let own = || lsblk.blockdevices.iter().filter(|block| block.is_own_disk(fabrics));
    let mut serials: BTreeMap<String, BTreeSet<Option<&str>>> = BTreeMap::new();
    for disk in own() {
        serials.entry(disk.key()).or_default().insert(disk.serial());
    }
    // A disk that is reached by two ways is there twice, with the same on it.
    let mut found: BTreeMap<String, (bool, BTreeSet<String>)> = BTreeMap::new();
    for disk in own() {
        let (key, holds) = (disk.key(), disk.holds());
        // Some makers give one WWN to several disks. (By the kernel's name only where there is nothing else: that may change with each boot.)
        let is_shared = serials.get(&key).is_some_and(|serials| serials.len() > 1);
        let key = if is_shared { format!("{key} ({})", kept(disk.serial().unwrap_or(&disk.name))) } else { key };
        // What holds something else is another one, although it is called the same.
        let is_another = found.get(&key).is_some_and(|(_, held)| *held != holds);
        let key = if is_another { format!("{key} ({})", kept(&disk.name)) } else { key };
        let (system, held) = found.entry(key).or_default();
        *system |= disk.carries_the_system();
        *held = holds;
    }
    if found.len() > DISKS_MAX {
        return Err(format!("it tells of more than {DISKS_MAX} disks"));
    }
    let told = |(disk, (system, holds)): (String, (bool, BTreeSet<String>))| {
        let holds = if system { DiskHolds::System } else { DiskHolds::Data(holds.into_iter().collect::<Vec<_>>().join(", ")) };
        (disk, holds)
    };
    Ok(found.into_iter().map(told).collect())
}

/// The VLAN interfaces in the words of `ip`.
fn vlans(json: &str) -> Result<BTreeSet<String>, String> {
    if json.trim().is_empty() {
        return Ok(BTreeSet::new());
    }
    let links: Vec<Link> = serde_json::from_str(json).map_err(|error| format!("what `ip` says of its VLANs can't be read: {error}"))?;
    if links.len() > VLANS_MAX {
        return Err(format!("it tells of more than {VLANS_MAX} VLANs"));
    }
    let told = |link: Link| {
        let id = link.linkinfo?.info_data?.id?;
        Some(format!("{}: VLAN {id} on {}", kept(&link.ifname?), link.link.map_or_else(|| "nothing".to_owned(), |link| kept(&link))))
    };
    Ok(links.into_iter().filter_map(told).collect())
}

fn pci_id(vendor: &str, device: &str) -> String {
    kept(&format!("{}:{}", vendor.trim_start_matches("0x"), device.trim_start_matches("0x")))
}

/// Does a device of this class matter to guests: a network card (0x02), a graphics card (0x03) that is no BMC's, an accelerator (0x12), an NVSwitch?
fn matters(class: &str, vendor: &str) -> bool {
    if CONSOLES.contains(&vendor) {
        return false;
    }
    ["0x02", "0x03", "0x12"].iter().any(|of| class.starts_with(of)) || class.starts_with("0x0680") && vendor == NVIDIA
}

fn is_kept_parameter(word: &str) -> bool {
    // (The kernel takes dashes for underscores.)
    let word = word.replace('-', "_");
    let key = word.split_once('=').map_or(word.as_str(), |(key, _)| key);
    let module = key.split_once('.').map_or(key, |(module, _)| module);
    KERNEL_PARAMETERS.iter().any(|known| *known == key || *known == module)
}

/// How far a clock that said `node` (in whole seconds) is certainly ahead of ours, which said `from` before it was asked, and `until` afterwards.
fn certainly_ahead_ms(node_s: i64, from: Timestamp, until: Timestamp) -> i64 {
    let (from, until) = (from.millis(), until.millis());
    let least = node_s.saturating_mul(1_000);
    let most = least.saturating_add(999);
    if least > until {
        least - until
    } else if most < from {
        most - from
    } else {
        0
    }
}

/// The report of [`COMMAND`], or what is wrong with it; `from` and `until` are our own time before and after.
pub(crate) fn parse(stdout: &str, from: Timestamp, until: Timestamp) -> Result<NodeStock, String> {
    let lines: Vec<&str> = stdout.lines().skip_while(|line| *line != BEGIN).skip(1).take_while(|line| *line != END).collect();
    if !stdout.lines().any(|line| line == END) {
        return Err("the node's report is cut short".to_owned());
    }
    let (mut clock, mut parameters, mut fabrics) = (None, BTreeSet::new(), BTreeSet::new());
    let (mut devices, mut functions) = (BTreeMap::new(), BTreeMap::new());
    let (mut told_disks, mut told_vlans) = (None, None);
    for line in lines {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        match key {
            "clock" => clock = value.parse::<i64>().ok(),
            "parameter" => {
                if is_kept_parameter(value) {
                    parameters.insert(kept(value));
                }
            }
            "nvme" => {
                if let Some((disk, transport)) = value.split_once(' ')
                    && transport != "pcie"
                {
                    fabrics.insert(disk);
                }
            }
            "pci" | "vf" => match *value.split(' ').collect::<Vec<_>>() {
                [class, vendor, device] if key == "vf" && matters(class, vendor) => *functions.entry(pci_id(vendor, device)).or_insert(0) += 1,
                [address, class, vendor, device, driver, lanes] if matters(class, vendor) => {
                    // (`current_link_width` is 255 where the device does not say.)
                    let lanes = lanes.parse().ok().filter(|lanes| *lanes <= LANES_MAX || *lanes == PciDevice::LANES_OF_THE_DEAD).unwrap_or(0);
                    devices.insert(kept(address), PciDevice { id: pci_id(vendor, device), driver: (driver != "-").then(|| kept(driver)), lanes });
                }
                _ => {}
            },
            "disks" => told_disks = Some(value),
            "vlans" => told_vlans = Some(value),
            _ => return Err(format!("the node's report has a line that was not asked for: `{}`", foreign_text(line))),
        }
    }
    if devices.len() > DEVICES_MAX {
        return Err(format!("it tells of more than {DEVICES_MAX} PCI devices"));
    }
    Ok(NodeStock {
        devices,
        virtual_functions: functions,
        clock_ahead_ms: certainly_ahead_ms(clock.ok_or("the node's report has no clock")?, from, until),
        disks: told_disks.and_then(|json| told(disks(json, &fabrics))),
        kernel_parameters: parameters,
        vlans: told_vlans.and_then(|json| told(vlans(json))),
    })
}

/// What can't be read is as good as not told, and takes nothing of the rest with it.
fn told<T>(read: Result<T, String>) -> Option<T> {
    read.inspect_err(|why| warn!(why, "a part of what a node has can't be compared")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_500);

    fn report(lines: &[&str]) -> String {
        format!("Welcome!\n{BEGIN}\n{}\n{END}\n", lines.join("\n"))
    }

    #[test]
    fn a_clock_is_off_only_by_what_is_certain() {
        let ahead = |node_s, from, until| certainly_ahead_ms(node_s, Timestamp::from_millis(from), Timestamp::from_millis(until));
        assert_eq!(ahead(100, 100_500, 100_600), 0);
        // A slow connection proves nothing.
        assert_eq!(ahead(100, 90_000, 130_000), 0);
        assert_eq!((ahead(100, 101_000, 101_000), ahead(101, 101_000, 101_000), ahead(102, 101_000, 101_500)), (-1, 0, 500));
        assert_eq!((ahead(100, 103_000, 104_000), ahead(i64::MAX, 0, 0)), (-2_001, i64::MAX));
    }

    #[test]
    fn disks_are_told_by_serial_number_and_what_the_system_is_on_is_told_apart() {
        let json = r#"disks {"blockdevices": [
            {"name":"sda","type":"disk","tran":"sata","serial":"SYS1","wwn":"0x5","fstype":null,"uuid":null,"partuuid":null,"mountpoint":null,"children":[
                {"name":"sda1","type":"part","tran":null,"serial":null,"wwn":null,"fstype":"vfat","uuid":"AB-CD","partuuid":"p1","mountpoint":"/boot/efi"},
                {"name":"sda2","type":"part","tran":null,"serial":null,"wwn":null,"fstype":"linux_raid_member","uuid":"r","partuuid":"p2","mountpoint":null,"children":[
                    {"name":"md0","type":"raid1","tran":null,"serial":null,"wwn":null,"fstype":"ext4","uuid":"u","partuuid":null,"mountpoint":"/"}]}]},
            {"name":"sdb","type":"disk","tran":"sas","serial":"SYS2","wwn":null,"fstype":null,"uuid":null,"partuuid":null,"mountpoint":null,"children":[
                {"name":"sdb2","type":"part","tran":null,"serial":null,"wwn":null,"fstype":"linux_raid_member","uuid":"r","partuuid":"p3","mountpoint":null,"children":[
                    {"name":"md0","type":"raid1","tran":null,"serial":null,"wwn":null,"fstype":"ext4","uuid":"u","partuuid":null,"mountpoint":"/"}]}]},
            {"name":"nvme0n1","type":"disk","tran":"nvme","serial":"OSD1","wwn":"eui.1","fstype":"LVM2_member","uuid":"pv-1","partuuid":null,"mountpoint":null,"children":[
                {"name":"ceph--1-osd--block","type":"lvm","tran":null,"serial":null,"wwn":null,"fstype":"ceph_bluestore","uuid":null,"partuuid":null,"mountpoint":null}]},
            {"name":"nvme10n1","type":"disk","tran":"nvme","serial":"  ","wwn":"eui.2","fstype":null,"uuid":null,"partuuid":null,"mountpoint":null},
            {"name":"nvme1n1","type":"disk","tran":"nvme","serial":"FABRIC","wwn":null,"fstype":"ext4","uuid":"t","partuuid":null,"mountpoint":null},
            {"name":"sdc","type":"disk","tran":"iscsi","serial":"VOLUME","wwn":null,"fstype":"xfs","uuid":"v","partuuid":null,"mountpoint":null},
            {"name":"sdd","type":"disk","tran":"sas","serial":"TWICE","wwn":null,"fstype":null,"uuid":null,"partuuid":null,"mountpoint":null,"children":[
                {"name":"sdd1","type":"part","tran":null,"serial":null,"wwn":null,"fstype":"xfs","uuid":"d1","partuuid":"p4","mountpoint":"/srv/data"}]},
            {"name":"sde","type":"disk","tran":"sas","serial":"TWICE","wwn":null,"fstype":null,"uuid":null,"partuuid":null,"mountpoint":null,"children":[
                {"name":"sde1","type":"part","tran":null,"serial":null,"wwn":null,"fstype":"xfs","uuid":"d1","partuuid":"p4","mountpoint":null}]},
            {"name":"nvme2n1","type":"disk","tran":"nvme","serial":"BOTH","wwn":null,"fstype":null,"uuid":null,"partuuid":null,"mountpoint":null,"children":[
                {"name":"nvme2n1p1","type":"part","tran":null,"serial":null,"wwn":null,"fstype":"ext4","uuid":"v","partuuid":"p5","mountpoint":"/var"}]},
            {"name":"nvme2n2","type":"disk","tran":"nvme","serial":"BOTH","wwn":null,"fstype":"LVM2_member","uuid":"pv-2","partuuid":null,"mountpoint":null},
            {"name":"sdf","type":"disk","tran":"usb","serial":"BMC","wwn":null,"fstype":"vfat","uuid":"m","partuuid":null,"mountpoint":null},
            {"name":"sdg","type":"disk","tran":"sata","serial":"A","wwn":"0x0","fstype":"ceph_bluestore","uuid":null,"partuuid":null,"mountpoint":null},
            {"name":"sdh","type":"disk","tran":"sata","serial":"B","wwn":"0x0","fstype":"ceph_bluestore","uuid":null,"partuuid":null,"mountpoint":null},
            {"name":"scinia","type":"disk","tran":null,"serial":"FLEX","wwn":null,"fstype":"ext4","uuid":"f","partuuid":null,"mountpoint":null},
            {"name":"zram0","type":"disk","tran":null,"serial":null,"wwn":null,"fstype":null,"uuid":null,"partuuid":null,"mountpoint":null},
            {"name":"rbd0","type":"disk","tran":null,"serial":null,"wwn":null,"fstype":null,"uuid":null,"partuuid":null,"mountpoint":null},
            {"name":"sr0","type":"rom","tran":"sata","serial":"CD","wwn":null,"fstype":null,"uuid":null,"partuuid":null,"mountpoint":null},
            {"name":"vda","type":"disk","tran":"virtio","serial":null,"wwn":null,"fstype":null,"uuid":null,"partuuid":null,"mountpoint":null}]}"#;
        let json = json.replace('\n', " ");
        let stock = parse(&report(&["clock 1800000000", "nvme nvme0n1 pcie", "nvme nvme1n1 tcp", &json]), NOW, NOW).unwrap();
        let data = |text: &str| DiskHolds::Data(text.to_owned());
        let expected = [
            ("0x0 (A)", data("ceph_bluestore")),
            ("0x0 (B)", data("ceph_bluestore")),
            ("0x5", DiskHolds::System),
            ("BOTH", DiskHolds::System),
            ("BOTH (nvme2n2)", data("LVM2_member pv-2")),
            ("SYS2", DiskHolds::System),
            ("TWICE", data("xfs d1 p4")),
            ("eui.1", data("LVM2_member pv-1")),
            ("eui.2", data("")),
            ("vda", data("")),
        ];
        assert_eq!(stock.disks.unwrap(), expected.map(|(disk, holds)| (disk.to_owned(), holds)).into());
        assert_eq!((stock.vlans, stock.clock_ahead_ms), (None, 0));
    }

    #[test]
    fn vlans_and_the_parameters_that_matter_are_kept() {
        let vlans = r#"vlans [{},{"ifname":"bond0.100","link":"bond0","linkinfo":{"info_kind":"vlan","info_data":{"protocol":"802.1Q","id":100,"flags":["REORDER_HDR"]}}}]"#;
        let words = ["BOOT_IMAGE=/vmlinuz", "root=UUID=1", "quiet", "intel_iommu=on", "vfio-pci.ids=10de:2330", "hugepages=64", "pci=realloc", "kvm.ignore_msrs=1", "iommu=pt", "pcie_aspm=off"];
        let words: Vec<String> = words.iter().map(|word| format!("parameter {word}")).collect();
        let lines: Vec<&str> = words.iter().map(String::as_str).chain(["clock 1800000000", vlans]).collect();
        let stock = parse(&report(&lines), NOW, NOW).unwrap();
        assert_eq!(stock.vlans.unwrap(), ["bond0.100: VLAN 100 on bond0".to_owned()].into());
        let kept = ["hugepages=64", "intel_iommu=on", "iommu=pt", "kvm.ignore_msrs=1", "pci=realloc", "vfio-pci.ids=10de:2330"];
        assert_eq!(stock.kernel_parameters, kept.map(str::to_owned).into());
        assert_eq!(parse(&report(&["clock 1800000000", "vlans"]), NOW, NOW).unwrap().vlans, Some(BTreeSet::new()));
    }

    #[test]
    fn cards_are_told_by_address_and_virtual_functions_are_counted() {
        let lines = [
            "clock 1800000000",
            "pci 0000:17:00.0 0x030200 0x10de 0x2330 vfio-pci 16",
            "pci 0000:18:00.0 0x068000 0x10de 0x22a3 - 2",
            "pci 0000:00:1f.0 0x068000 0x8086 0x1234 - 0",
            "pci 0000:02:00.0 0x030000 0x1a03 0x2000 ast 0",
            "pci 0000:3d:00.0 0x020000 0x15b3 0x101d mlx5_core 255",
            "pci 0000:65:00.0 0x030200 0x10de 0x2330 nvidia 63",
            "vf 0x020000 0x15b3 0x101e",
            "vf 0x020000 0x15b3 0x101e",
            "pci 0000:3d:00.3 0x020000",
        ];
        let stock = parse(&report(&lines), NOW, NOW).unwrap();
        let card = |id: &str, driver: Option<&str>, lanes| PciDevice { id: id.to_owned(), driver: driver.map(str::to_owned), lanes };
        let expected = [
            ("0000:17:00.0", card("10de:2330", Some("vfio-pci"), 16)),
            ("0000:18:00.0", card("10de:22a3", None, 2)),
            ("0000:3d:00.0", card("15b3:101d", Some("mlx5_core"), 0)),
            ("0000:65:00.0", card("10de:2330", Some("nvidia"), PciDevice::LANES_OF_THE_DEAD)),
        ];
        assert_eq!(stock.devices, expected.map(|(address, card)| (address.to_owned(), card)).into());
        assert_eq!(stock.virtual_functions, [("15b3:101e".to_owned(), 2)].into());
    }

    #[test]
    fn a_report_that_is_cut_or_strange_is_none() {
        let cut = format!("{BEGIN}\nclock 1800000000\n");
        assert_eq!(parse(&cut, NOW, NOW).unwrap_err(), "the node's report is cut short");
        assert_eq!(parse(&report(&["parameter quiet"]), NOW, NOW).unwrap_err(), "the node's report has no clock");
        assert!(disks("{\"blockdevices\": 3}", &BTreeSet::new()).unwrap_err().starts_with("what `lsblk` says of its disks can't be read"));
        assert!(vlans("[1]").unwrap_err().starts_with("what `ip` says of its VLANs can't be read"));
        // It takes nothing of the rest with it, the clock least of all.
        let stock = parse(&report(&["clock 1", "disks {\"blockdevices\": 3}", "vlans [1]", "parameter iommu=pt"]), NOW, NOW).unwrap();
        assert_eq!((stock.disks, stock.vlans, stock.kernel_parameters.len(), stock.clock_ahead_ms < 0), (None, None, 1, true));
        assert_eq!(parse(&report(&["clock 1", "rm -rf"]), NOW, NOW).unwrap_err(), "the node's report has a line that was not asked for: `rm -rf`");
    }
    #[test]
    fn disks_over_a_fabric_are_told_by_the_transport_of_their_controllers() {
        let sys = tempfile::tempdir().unwrap();
        let path = |of: &str| sys.path().join("block").join(of);
        for (of, transport) in [("nvme0n1/device", "pcie"), ("nvme3n1/device/nvme5", "tcp"), ("nvme4n1/device/nvme6", "pcie"), ("nvme4n1/device/nvme7", "pcie")] {
            std::fs::create_dir_all(path(of)).unwrap();
            std::fs::write(path(of).join("transport"), format!("{transport}\n")).unwrap();
        }
        let command = sys.path().join("command");
        std::fs::write(&command, COMMAND.replace("/sys/block/", &format!("{}/block/", sys.path().display()))).unwrap();
        let said = std::process::Command::new("env").arg("sh").arg(&command).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let nvme: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("nvme ")).collect();
        assert_eq!(nvme, ["nvme0n1 pcie", "nvme3n1 tcp", "nvme4n1 pcie", "nvme4n1 pcie"], "{said}");
    }
}
