//! What the machine boots, made from Debian's packages: an installer, and disk images of a node.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

const INSTALLER: &str = include_str!("guest/installer.sh");
const INITRD: &str = include_str!("guest/initrd.sh");
const NODE: &str = include_str!("guest/node.sh");

/// The drivers that a machine of `super::machine` needs, in an order in which each finds what it needs.
const DRIVERS: [&str; 9] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "drivers/block/virtio_blk",
];
const SECTOR_BYTES: u64 = 512;
/// Where the first partition begins, as every partitioning tool has it: 1 MiB.
const FIRST_SECTOR: u64 = 2048;
/// Kernel (14 MB), initrd (1 MB), GRUB (0.6 MB), and room for another release's.
const BOOT_PARTITION_KIB: u64 = 24 * 1024;
/// BusyBox (2 MB), Dropbear and its libraries (5 MB).
const SYSTEM_PARTITION_KIB: u64 = 12 * 1024;
const EXECUTABLE: u32 = 0o755;
const SECRET: u32 = 0o600;

/// A kernel of Debian's, unpacked: `<folder>/vmlinuz`, `<folder>/modules`. The folder's name is what `uname -r` says.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub release: String,
    folder: PathBuf,
}

impl Kernel {
    /// All that are in `folder`, oldest first.
    pub fn all_in(folder: &Path) -> Vec<Kernel> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut kernels: Vec<Kernel> = entries
            .filter(|entry| entry.path().join("vmlinuz").exists() && entry.path().join("modules").exists())
            .map(|entry| Kernel { release: entry.file_name().to_string_lossy().into_owned(), folder: entry.path() })
            .collect();
        kernels.sort_by(|one, other| one.release.cmp(&other.release));
        kernels
    }
}

/// Who a node is, and who gets in.
#[derive(Debug, Clone)]
pub struct Identity {
    pub hostname: String,
    /// One line of `authorized_keys`.
    pub authorized_key: String,
}

/// One version of the node's operating system.
#[derive(Debug, Clone)]
pub struct NodeImage {
    pub version: String,
    pub kernel: String,
    pub file: PathBuf,
    /// Of `file`, as `sha256sum` prints it.
    pub sha256: String,
}

/// What an image has that an installation adds: a node that was not installed by us here and now.
#[derive(Debug, Clone, Default)]
pub struct Lived {
    /// A host key in Dropbear's form. Without one, the first boot makes one.
    pub host_key: Option<PathBuf>,
    /// The text of `/etc/turnaround/installed`.
    pub mark: Option<String>,
}

/// Writes the installer, `vmlinuz` and `initrd`, into `folder`.
pub fn installer(kernel: &Kernel, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::copy(kernel.folder.join("vmlinuz"), folder.join("vmlinuz"))?;
    initrd(kernel, INSTALLER, &folder.join("initrd"))
}

/// Writes the disk image of `version` to `file`: a boot partition (GRUB, kernel, initrd) and a system partition.
pub fn node_image(kernel: &Kernel, version: &str, who: &Identity, lived: &Lived, file: &Path) -> io::Result<NodeImage> {
    let work = tempfile::tempdir()?;
    let (boot, system) = (work.path().join("boot.img"), work.path().join("system.img"));
    boot_partition(kernel, work.path(), &boot)?;
    system_partition(version, who, lived, work.path(), &system)?;
    let sectors = |kib: u64| kib * 1024 / SECTOR_BYTES;
    let partitions = [
        (0xef, FIRST_SECTOR, sectors(BOOT_PARTITION_KIB)),
        (0x83, FIRST_SECTOR + sectors(BOOT_PARTITION_KIB), sectors(SYSTEM_PARTITION_KIB)),
    ];
    let mut disk = partition_table(&partitions);
    disk.resize(usize::try_from(FIRST_SECTOR * SECTOR_BYTES).map_err(io::Error::other)?, 0);
    disk.extend(fs::read(&boot)?);
    disk.extend(fs::read(&system)?);
    fs::write(file, &disk)?;
    let sha256 = Sha256::digest(&disk).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(NodeImage { version: version.to_owned(), kernel: kernel.release.clone(), file: file.to_owned(), sha256 })
}

/// Writes what a machine gets by TFTP: GRUB, and the `grub.cfg` that `worker/src/adapters/netboot.rs` asks of a PXE server. The nodes'
/// own files are in `nodes` below `folder`.
pub fn pxe_folder(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder.join("nodes"))?;
    let server = "(tftp,10.0.2.2)";
    fs::write(folder.join("grub.cfg"), "configfile /nodes/$net_default_mac.cfg\n")?;
    let first = folder.join("first.cfg");
    fs::write(&first, format!("set root={server}\nconfigfile {server}/grub.cfg\n"))?;
    let network = ["efinet", "net", "tftp", "http", "configfile", "linux", "normal", "sleep", "minicmd", "test"];
    let disk = ["search", "search_fs_file", "chain", "part_msdos", "fat"];
    grub(&first, server, &[&network[..], &disk[..]].concat(), &folder.join("grubx64.efi"))
}

fn boot_partition(kernel: &Kernel, work: &Path, image: &Path) -> io::Result<()> {
    let (first, grub_image, initrd_file) = (work.join("first.cfg"), work.join("BOOTX64.EFI"), work.join("initrd"));
    let words = "console=ttyS0 quiet";
    fs::write(&first, format!("search --file --set=root /vmlinuz\nlinux /vmlinuz {words}\ninitrd /initrd\nboot\n"))?;
    grub(&first, "/", &["part_msdos", "fat", "search", "search_fs_file", "linux", "normal"], &grub_image)?;
    initrd(kernel, INITRD, &initrd_file)?;
    run(Command::new("mkfs.vfat").args(["-C", "-n", "BOOT"]).arg(image).arg(BOOT_PARTITION_KIB.to_string()))?;
    run(Command::new("mmd").arg("-i").arg(image).args(["::/EFI", "::/EFI/BOOT"]))?;
    let vmlinuz = kernel.folder.join("vmlinuz");
    for (from, to) in [(&grub_image, "::/EFI/BOOT/"), (&vmlinuz, "::/"), (&initrd_file, "::/")] {
        run(Command::new("mcopy").arg("-i").arg(image).arg(from).arg(to))?;
    }
    Ok(())
}

fn system_partition(version: &str, who: &Identity, lived: &Lived, work: &Path, image: &Path) -> io::Result<()> {
    let root = work.join("system");
    for folder in ["bin", "sbin", "dev", "proc", "sys", "run", "tmp", "mnt", "etc/dropbear", "etc/turnaround", "root/.ssh"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let put = |path: &str, text: &str, mode: u32| write(&root.join(path), text.as_bytes(), mode);
    put("sbin/init", NODE, EXECUTABLE)?;
    let release = format!("NAME=\"Turnaround's test node\"\nID=test\nVERSION_ID=\"{version}\"\n");
    put("etc/os-release", &release, 0o644)?;
    put("etc/hostname", &format!("{}\n", who.hostname), 0o644)?;
    put("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644)?;
    put("etc/group", "root:x:0:\n", 0o644)?;
    put("etc/shells", "/bin/sh\n", 0o644)?;
    put("root/.ssh/authorized_keys", &format!("{}\n", who.authorized_key), SECRET)?;
    if let Some(mark) = &lived.mark {
        put("etc/turnaround/installed", mark, 0o644)?;
    }
    if let Some(key) = &lived.host_key {
        write(&root.join("etc/dropbear/key"), &fs::read(key)?, SECRET)?;
    }
    busybox(&root)?;
    for program in ["/usr/sbin/dropbear", "/usr/bin/dropbearkey"] {
        fs::copy(program, root.join("sbin").join(Path::new(program).file_name().unwrap_or_default()))?;
        for library in libraries(program)? {
            let to = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap_or(&root))?;
            fs::copy(&library, &to)?;
        }
    }
    let size = format!("{SYSTEM_PARTITION_KIB}k");
    // Without a journal: a node that is reset while it writes is installed anew.
    run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(&root).arg(image).arg(size))
}

/// The shared libraries of a program, as `ldd` has them.
fn libraries(program: &str) -> io::Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths = said.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(str::to_owned).collect())
}

/// A first file system in memory, which begins with the script `init`.
fn initrd(kernel: &Kernel, init: &str, file: &Path) -> io::Result<()> {
    let work = tempfile::tempdir()?;
    let root = work.path();
    for folder in ["bin", "dev", "proc", "sys", "tmp", "mnt", "lib/drivers"] {
        fs::create_dir_all(root.join(folder))?;
    }
    busybox(root)?;
    write(&root.join("init"), init.as_bytes(), EXECUTABLE)?;
    for (number, driver) in DRIVERS.iter().enumerate() {
        let from = kernel.folder.join("modules").join(format!("{driver}.ko"));
        let name = Path::new(driver).file_name().unwrap_or_default().to_string_lossy().into_owned();
        fs::copy(&from, root.join(format!("lib/drivers/{number}-{name}.ko")))
            .map_err(|error| io::Error::other(format!("{}: {error}", from.display())))?;
    }
    let archive = fs::File::create(file)?;
    let mut list = Command::new("busybox").arg("find").arg(".").current_dir(root).stdout(Stdio::piped()).spawn()?;
    let names = list.stdout.take().map_or(Stdio::null(), Stdio::from);
    let made = Command::new("busybox")
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(root)
        .stdin(names)
        .stdout(archive)
        .stderr(Stdio::null())
        .status()?;
    list.wait()?;
    if made.success() { Ok(()) } else { Err(io::Error::other("busybox cpio made no initrd")) }
}

fn busybox(root: &Path) -> io::Result<()> {
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", root.join("bin/sh"))
}

fn grub(first: &Path, prefix: &str, modules: &[&str], image: &Path) -> io::Result<()> {
    let mut grub = Command::new("grub-mkimage");
    run(grub.args(["-O", "x86_64-efi", "-p", prefix, "-c"]).arg(first).arg("-o").arg(image).args(modules))
}

/// A partition table of the old kind (MBR): type, first sector, sectors.
fn partition_table(partitions: &[(u8, u64, u64)]) -> Vec<u8> {
    let mut sector = vec![0; 446];
    for (kind, first, sectors) in partitions {
        // The three bytes of an address by cylinder say that it is out of their reach.
        sector.extend([0, 0xfe, 0xff, 0xff, *kind, 0xfe, 0xff, 0xff]);
        for number in [first, sectors] {
            sector.extend(u32::try_from(*number).unwrap_or(u32::MAX).to_le_bytes());
        }
    }
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, bytes)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Runs a program to its end; its complaint as an error.
pub(super) fn run(command: &mut Command) -> io::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| io::Error::other(format!("{name}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr))))
}
