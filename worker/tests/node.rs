//! The ports `NetBoot` and `NodeFacts`: what a node boots, and what it says of itself, by a real `sshd`.
#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod support;

#[path = "support/program.rs"]
mod program;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use program::{Server, free_port, here, script};
use serde_json::json;
use support::{Site, eventually, node, told};
use turnaround_workflows::ports::{BootTicket, CommandEnd, Facts, Installed, PortErrorKind, Ports, Token};

const SHA256: &str = "4a5c6e0f8d2b1937a6e4c0d85f3b7291e6a8d4c0b2f19573e8c6a4d0b1f29375";

fn site() -> Site {
    Site::new(
        &json!({ "clouds": { "none": { "auth": { "auth_url": "http://127.0.0.1:9", "user_id": "u", "password": "p", "project_id": "p" } } } }),
        "none",
    )
}

fn ticket(token: &str) -> BootTicket {
    BootTicket { token: Token(token.to_owned()), image: "noble".parse().unwrap(), sha256: SHA256.to_owned(), report: None }
}

fn reason(kind: PortErrorKind) -> String {
    match kind {
        PortErrorKind::Refused { reason } => reason,
        other => panic!("{other:?}"),
    }
}

/// By GRUB's own parser.
fn parses_as_grub(file: &Path, test: &str) {
    if here("grub", "/usr/bin/grub-script-check", "grub-common", test) {
        assert!(std::process::Command::new("grub-script-check").arg(file).status().unwrap().success());
    }
}

#[tokio::test]
async fn a_ticket_is_what_the_node_boots_and_is_read_back_from_it() {
    let site = site().with_node("gpu-01", "gpu-01");
    let (gpu, ports, file) = (node("gpu-01"), site.ports(), site.path("netboot/02:00:5e:10:00:00.cfg"));
    assert_eq!(ports.netboot.staged(&gpu).await.unwrap(), None);
    ports.netboot.withdraw(&gpu).await.unwrap();
    assert_eq!(ports.netboot.staged(&gpu).await.unwrap(), None);
    // As in our systemd unit: what is written is for others to read all the same.
    let usual = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    for token in ["node-7.1", "node-7.2"] {
        ports.netboot.stage(&gpu, &ticket(token)).await.unwrap();
        assert_eq!(ports.netboot.staged(&gpu).await.unwrap(), Some(ticket(token)));
    }
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        format!(
            r#"# turnaround: {{"node":"gpu-01","staged":true,"ticket":{{"token":"node-7.2","image":"noble","sha256":"{SHA256}"}}}}
set default=0
set timeout=0
menuentry 'install noble (2026.11.1) on gpu-01' {{
for try in 1 2 3 4 5; do
  if linux '(http,192.0.2.1:8080)/boot/noble/vmlinuz' 'ds=nocloud;s=http://192.0.2.1/seed/' console=ttyS1 turnaround.token=node-7.2 turnaround.sha256={SHA256}; then
    if initrd '(http,192.0.2.1:8080)/boot/noble/initrd'; then boot; fi
  fi
  sleep 10
done
# It can't be loaded. From the disk, the node will tell that nothing was installed.
for loader in ubuntu/shimx64.efi ubuntu/grubx64.efi ubuntu/shimaa64.efi ubuntu/grubaa64.efi boot/bootx64.efi boot/bootaa64.efi; do
  if search --no-floppy --file --set=root /efi/$loader; then
    if chainloader /efi/$loader; then boot; fi
  fi
done
exit
}}
"#
        )
    );
    parses_as_grub(&file, "a_ticket_is_what_the_node_boots_and_is_read_back_from_it");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644, "the PXE server reads it");
    nix::sys::stat::umask(usual);

    ports.netboot.withdraw(&gpu).await.unwrap();
    ports.netboot.withdraw(&gpu).await.unwrap();
    assert_eq!(ports.netboot.staged(&gpu).await.unwrap(), None);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.ends_with("\nexit\n") && !text.contains("linux"), "{text}");
    parses_as_grub(&file, "a_ticket_is_what_the_node_boots_and_is_read_back_from_it");
    let files: Vec<_> = fs::read_dir(site.path("netboot")).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["02:00:5e:10:00:00.cfg"], "nothing is left beside it");
}

#[tokio::test]
async fn a_file_that_somebody_else_wrote_is_neither_believed_nor_replaced() {
    let site = site().with_node("gpu-01", "gpu-01").with_node("gpu-02", "gpu-02");
    let (gpu, ports, file) = (node("gpu-01"), site.ports(), site.path("netboot/02:00:5e:10:00:00.cfg"));
    for garbage in [
        "",
        "menuentry x {\n  linux /vmlinuz\n}\n",
        "# turnaround: {\"node\":\"gpu-01\"}\n",
        "# turnaround: what\n",
        "\u{0}\u{1}",
    ] {
        fs::write(&file, garbage).unwrap();
        let all = [
            ports.netboot.staged(&gpu).await.map(drop),
            ports.netboot.stage(&gpu, &ticket("t")).await,
            ports.netboot.withdraw(&gpu).await,
        ];
        for result in all {
            assert!(reason(result.unwrap_err().kind).contains("it was not written by Turnaround"));
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), garbage);
    }
    fs::write(&file, [0xff, 0xfe]).unwrap();
    assert!(reason(ports.netboot.staged(&gpu).await.unwrap_err().kind).contains("it was not written by Turnaround"));

    // Ours, and edited: it would not do what its first line says. It may be replaced.
    fs::remove_file(&file).unwrap();
    ports.netboot.stage(&gpu, &ticket("t")).await.unwrap();
    let edited = fs::read_to_string(&file).unwrap().replace("console=ttyS1", "console=ttyS0");
    fs::write(&file, edited).unwrap();
    assert!(reason(ports.netboot.staged(&gpu).await.unwrap_err().kind).contains("it was edited"));
    ports.netboot.stage(&gpu, &ticket("t")).await.unwrap();

    // Another node's, by a mix-up of addresses.
    fs::copy(&file, site.path("netboot/02:00:5e:10:00:01.cfg")).unwrap();
    assert!(
        reason(ports.netboot.stage(&node("gpu-02"), &ticket("t")).await.unwrap_err().kind).contains("it is the file of gpu-01")
    );
}

#[tokio::test]
async fn a_ticket_that_does_not_fit_the_configuration_is_refused_before_anything_is_written() {
    let site = site().with_node("gpu-01", "gpu-01");
    let (gpu, ports) = (node("gpu-01"), site.ports());
    let refused = async |ticket: BootTicket| reason(ports.netboot.stage(&gpu, &ticket).await.unwrap_err().kind);
    assert_eq!(
        refused(BootTicket { image: "jammy".parse().unwrap(), ..ticket("t") }).await,
        "there is no image `jammy` in the configuration"
    );
    assert_eq!(
        refused(BootTicket { sha256: "0".repeat(64), ..ticket("t") }).await,
        "the configuration gives image `noble` another SHA-256 than what was ordered"
    );
    for token in ["", "a b", "a'b", "$(reboot)", "a\nb", &"x".repeat(129)] {
        let why = refused(ticket(token)).await;
        assert!(why.starts_with("the token `") && why.contains("is not made of 1 to 128 letters, digits and `-_.:/`"), "{token:?}: {why}");
    }
    for report in ["http://h/a b", "http://h/$(reboot)", "http://h/a'b", &format!("http://h/{}", "x".repeat(400))] {
        let reason = refused(BootTicket { report: Some(report.to_owned()), ..ticket("t") }).await;
        assert_eq!(reason, "the URL for reports is not made of letters, digits and `-_.:/`, or too long", "{report:?}");
    }
    assert_eq!(fs::read_dir(site.path("netboot")).unwrap().count(), 0);
    fs::remove_dir(site.path("netboot")).unwrap();
    assert_eq!(ports.netboot.stage(&gpu, &ticket("t")).await.unwrap_err().kind, PortErrorKind::Unavailable);
}

#[tokio::test]
async fn the_installer_is_told_where_to_report() {
    let site = site().with_node("gpu-01", "gpu-01");
    let (gpu, ports, file) = (node("gpu-01"), site.ports(), site.path("netboot/02:00:5e:10:00:00.cfg"));
    for url in ["http://192.0.2.1:8470/installer/node-7.1", "http://[2001:db8::1]:8470/installer/node-7.1"] {
        let ticket = BootTicket { report: Some(url.to_owned()), ..ticket("node-7.1") };
        ports.netboot.stage(&gpu, &ticket).await.unwrap();
        assert_eq!(ports.netboot.staged(&gpu).await.unwrap(), Some(ticket));
        let text = fs::read_to_string(&file).unwrap();
        let word = format!("turnaround.report={url}");
        let line = text.lines().find(|line| line.contains("if linux ")).unwrap();
        assert!(line.contains(&format!(" turnaround.token=node-7.1 turnaround.sha256={SHA256} {word};")) || line.contains(&format!(" '{word}';")), "{line}");
        parses_as_grub(&file, "the_installer_is_told_where_to_report");
    }
}

#[tokio::test]
async fn a_boot_folder_that_is_not_there_takes_no_order() {
    let site = site().with_node("gpu-01", "gpu-01");
    let ports = site.ports();
    ports.netboot.would_take(&node("gpu-01")).await.unwrap();
    fs::remove_dir(site.path("netboot")).unwrap();
    let error = ports.netboot.would_take(&node("gpu-01")).await.unwrap_err();
    assert!(error.kind == PortErrorKind::Unavailable && told(&error).contains("it has to exist"), "{}", told(&error));
}

#[test]
fn everything_that_is_wrong_is_told_at_once_and_no_secret() {
    let site = site().with_node("gpu-01", "gpu-01").with_node("gpu-02", "gpu-02");
    let mut config = site.config();
    config.netboot.as_mut().unwrap().url = "https://192.0.2.1/boot".to_owned();
    fs::write(site.path("clouds.yaml"), "clouds:\n  none:\n    auth_type: password\n    auth:\n      auth_url: http://u:canary@127.0.0.1\n      password: canary\n    cert: /x\n").unwrap();
    support::secret(&site.path("bmc.password"), "canary-longer-than-twenty-bytes");
    fs::set_permissions(site.path("clouds.yaml"), fs::Permissions::from_mode(0o640)).unwrap();
    let Err(error) = turnaround_worker::adapters::connect(&config) else { panic!("connected") };
    let text = error.to_string();
    for expected in [
        "clouds.yaml holds a secret, and others than its owner may read it (mode 640): chmod 600 it",
        "cloud `none` of",
        "`cert`: client certificates are not supported",
        "`auth_url` holds a user or a password: they belong in `auth`",
        "`username` or `user_id` is missing",
        "`project_name` or `project_id` is missing",
        "netboot.url: GRUB only fetches from",
        "nodes.gpu-01.bmc: the password has more than 20 bytes",
        "nodes.gpu-02.bmc: the password has more than 20 bytes",
    ] {
        assert!(text.contains(expected), "{expected}:\n{text}");
    }
    assert!(!text.contains("canary") && !format!("{error:?}").contains("canary"), "{text}");

    fs::write(site.path("clouds.yaml"), "clouds:\n  none:\n    auth: canary\n").unwrap();
    let Err(error) = turnaround_worker::adapters::connect(&config) else { panic!("connected") };
    assert!(error.to_string().contains("line 3, column 11") && !format!("{error}{error:?}").contains("canary"), "{error}");
}

/// A node: a real `sshd` on loopback, which runs what it is asked for, or says what the file `report` holds.
struct Machine {
    folder: tempfile::TempDir,
    port: u16,
    server: Option<Server>,
}

impl Machine {
    fn new() -> Machine {
        let machine = Machine { folder: tempfile::TempDir::new().unwrap(), port: free_port(), server: None };
        machine.keygen("user");
        let report = machine.at("report");
        script(
            Path::new(&machine.at("answer")),
            &format!("#!/bin/sh\nif [ -e {report} ]; then cat {report}; else exec sh -c \"$SSH_ORIGINAL_COMMAND\"; fi\n"),
        );
        machine
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn keygen(&self, name: &str) {
        let _ = fs::remove_file(self.at(name));
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f", &self.at(name)])
            .status()
            .unwrap();
        assert!(made.success());
    }

    /// Boots it with a new host key.
    fn install(&mut self) {
        self.server = None;
        self.keygen("host");
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nForceCommand {}\n",
            self.port,
            self.at("host"),
            self.at("user.pub"),
            self.at("answer")
        );
        fs::write(self.at("sshd_config"), config).unwrap();
        self.server = Some(Server::start("/usr/sbin/sshd", &["-D", "-f", &self.at("sshd_config")]));
    }

    /// The operator's own list of host keys.
    fn vouch(&self) {
        let key = fs::read_to_string(self.at("host.pub")).unwrap();
        fs::write(self.at("known_hosts"), format!("[127.0.0.1]:{} {key}", self.port)).unwrap();
    }

    fn report(&self, installed: &str) {
        let report = format!(
            "some noise of the login shell\nturnaround-facts 1\nboot_id b-1\nhostname gpu-01\nkernel 6.8.0\nos-release ID=ubuntu\nos-release VERSION_ID=\"24.04\"\n{installed}turnaround-facts end\n"
        );
        fs::write(self.at("report"), report).unwrap();
    }

    fn site(&self) -> (Site, Ports) {
        let user = String::from_utf8(std::process::Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
        // The configuration has no port for ssh; a program that takes the same arguments has.
        script(Path::new(&self.at("ssh")), &format!("#!/bin/sh\nexec ssh -p {} \"$@\"\n", self.port));
        let site = site()
            .with(&format!(
                "[ssh]\nprogram = \"{}\"\nuser = \"{}\"\nidentity_file = \"{}\"\nknown_hosts = \"{}\"\nconnect_timeout = \"5s\"",
                self.at("ssh"),
                user.trim(),
                self.at("user"),
                self.at("known_hosts")
            ))
            .with_node("gpu-01", "gpu-01")
            .with("ssh_address = \"127.0.0.1\"");
        let ports = site.ports();
        (site, ports)
    }
}

fn sshd(test: &str) -> bool {
    if !here("ssh", "/usr/sbin/sshd", "openssh-server", test) || !here("ssh", "/usr/bin/ssh", "openssh-client", test) {
        return false;
    }
    // sshd wants it when it runs as root; its package's service makes it.
    let _ = fs::create_dir("/run/sshd");
    true
}

#[tokio::test]
async fn a_node_tells_its_facts_to_who_knows_its_key() {
    if !sshd("a_node_tells_its_facts_to_who_knows_its_key") {
        return;
    }
    let mut machine = Machine::new();
    let (gpu, (_site, ports)) = (node("gpu-01"), machine.site());
    let error = ports.facts.facts(&gpu).await.unwrap_err();
    assert!(error.kind == PortErrorKind::Unavailable && told(&error).contains("Connection refused"), "{}", told(&error));

    machine.install();
    machine.vouch();
    let facts = eventually("facts", || async { ports.facts.facts(&gpu).await.ok() }).await;
    // This machine's own, by the command that is run on nodes.
    let file = |path: &str| fs::read_to_string(path).unwrap().trim().to_owned();
    assert_eq!((facts.boot_id, facts.kernel), (file("/proc/sys/kernel/random/boot_id"), file("/proc/sys/kernel/osrelease")));
    assert_eq!(facts.hostname, file("/proc/sys/kernel/hostname"));
    assert!(file("/etc/os-release").contains(&facts.os_version_id));
    assert_eq!(facts.installed, None);
    let mut macs: Vec<String> = fs::read_dir("/sys/class/net").unwrap().map(|entry| file(entry.unwrap().path().join("address").to_str().unwrap())).collect();
    macs.retain(|mac| mac.len() == 17 && mac != "00:00:00:00:00:00");
    macs.sort();
    macs.dedup();
    assert_eq!(ports.facts.machine(&gpu).await.unwrap(), turnaround_workflows::ports::Machine::Unknown { macs });
    // As libvirt starts a virtual machine, to whoever looks at what runs.
    let uuid = format!("0c9b0f6e-0000-4000-8000-{:012x}", std::process::id());
    assert!(!ports.facts.guests(&gpu).await.unwrap().contains(&uuid));
    let arguments = ["-c", "read _", "qemu-system-x86_64", "-name", "guest=instance-00000001", "-uuid", &uuid, "-no-user-config"];
    let mut guest = std::process::Command::new("/bin/sh").args(arguments).stdin(std::process::Stdio::piped()).spawn().unwrap();
    let guests = ports.facts.guests(&gpu).await.unwrap();
    assert!(guests.contains(&uuid), "{guests:?}");
    drop(guest.stdin.take());
    guest.wait().unwrap();
    assert!(!ports.facts.guests(&gpu).await.unwrap().contains(&uuid));

    let installed = Installed { token: Token("node-7.1".to_owned()), sha256: SHA256.to_owned() };
    machine.report(&format!("installed {}\n", serde_json::to_string(&installed).unwrap()));
    let expected = Facts {
        boot_id: "b-1".into(),
        hostname: "gpu-01".into(),
        os_version_id: "24.04".into(),
        kernel: "6.8.0".into(),
        installed: Some(installed),
    };
    assert_eq!(ports.facts.facts(&gpu).await.unwrap(), expected);
    // Not what it was asked for.
    assert!(matches!(ports.facts.guests(&gpu).await.unwrap_err().kind, PortErrorKind::Garbled { .. }));

    for (installed, complaint) in [
        ("installed unreadable\n", "/etc/turnaround/installed is not `{\"token\": .., \"sha256\": ..}`"),
        ("surprise\n", "the node's report has a line that was not asked for: `surprise`"),
        ("boot_id b-2\n", "the node's report has no boot_id"),
    ] {
        machine.report(installed);
        assert_eq!(ports.facts.facts(&gpu).await.unwrap_err().kind, PortErrorKind::Garbled { reason: complaint.to_owned() });
    }
    fs::write(machine.at("report"), "turnaround-facts 1\nboot_id b-1\n").unwrap();
    assert_eq!(
        ports.facts.facts(&gpu).await.unwrap_err().kind,
        PortErrorKind::Garbled { reason: "the node's report is cut short".to_owned() }
    );
    // Our key is no longer welcome.
    machine.keygen("user");
    fs::rename(machine.at("user.pub"), machine.at("elsewhere")).unwrap();
    let error = ports.facts.facts(&gpu).await.unwrap_err();
    assert!(
        error.kind == PortErrorKind::Unavailable && told(&error).contains("Permission denied (publickey"),
        "{}",
        told(&error)
    );
}

#[tokio::test]
async fn a_check_is_run_as_it_was_typed_and_told_as_it_ended() {
    if !sshd("a_check_is_run_as_it_was_typed_and_told_as_it_ended") {
        return;
    }
    let mut machine = Machine::new();
    let (gpu, (_site, ports)) = (node("gpu-01"), machine.site());
    machine.install();
    let run = async |command: &str, secs: u64| ports.facts.run(&gpu, command, std::time::Duration::from_secs(secs)).await;
    // Nobody has vouched for its key, and a check is no reason to accept one.
    let error = eventually("an answer", || async {
        let error = run("true", 30).await.unwrap_err();
        (!told(&error).contains("Connection refused")).then_some(error)
    })
    .await;
    assert!(told(&error).contains("Host key verification failed"), "{}", told(&error));
    machine.vouch();
    let ended = |code: i32, output: &str| CommandEnd { code, output: output.to_owned() };
    assert_eq!(run("printf 'a b\\nc\\n\\n' | sort -r; echo \"it's $((3 + 4))\"", 30).await.unwrap(), ended(0, "c\na b\n\nit's 7"));
    assert_eq!(run("echo half; exit 3", 30).await.unwrap(), ended(3, "half"));
    assert_eq!(run("no-such-program", 30).await.unwrap().code, 127);
    let error = run("yes | head -c 10000", 30).await.unwrap_err();
    assert!(matches!(error.kind, PortErrorKind::Refused { ref reason } if reason.contains("sha256sum")), "{}", told(&error));
    let error = run("yes | head -c 100000", 30).await.unwrap_err();
    assert!(matches!(error.kind, PortErrorKind::Refused { ref reason } if reason.contains("said more than 65536 bytes")), "{}", told(&error));
    // What this very machine has: whatever that is, it can be read, and its clock is ours.
    let stock = ports.facts.stock(&gpu).await.unwrap();
    assert_eq!(stock.clock_ahead_ms, 0, "{stock:?}");
    // The time limit, and the five seconds in which a connection must stand.
    // (What runs on the node goes on when its connection is gone: it ends by itself soon after.)
    let error = run("sleep 15", 1).await.unwrap_err();
    assert!(error.kind == PortErrorKind::Unavailable && told(&error).contains("still running after 6s"), "{}", told(&error));
}

#[tokio::test]
async fn an_unknown_host_key_is_accepted_only_from_a_node_that_shows_the_mark_of_its_installation() {
    if !sshd("an_unknown_host_key_is_accepted_only_from_a_node_that_shows_the_mark_of_its_installation") {
        return;
    }
    let mut machine = Machine::new();
    let (gpu, (site, ports)) = (node("gpu-01"), machine.site());
    machine.install();
    machine.report("");
    let refused = |what: &str| {
        format!(
            "its host key is not known, and {what}; once you have checked the key, add it to {} (`ssh-keyscan`), and remove {} if there is one",
            machine.at("known_hosts"),
            site.path("known_hosts/gpu-01").display()
        )
    };
    let (unordered, unmarked) =
        (refused("no installation was ordered"), refused("it does not show the mark of the installation that was ordered"));
    let kind = eventually("an answer", || async {
        ports.facts.facts(&gpu).await.err().filter(|error| error.kind != PortErrorKind::Unavailable)
    })
    .await
    .kind;
    assert_eq!(reason(kind), unordered);
    machine.vouch();
    assert_eq!(ports.facts.facts(&gpu).await.unwrap().boot_id, "b-1");

    // Ordered, and what answers is not it yet: the installer, or an impostor.
    ports.netboot.stage(&gpu, &ticket("node-7.1")).await.unwrap();
    assert_eq!(ports.facts.facts(&gpu).await.unwrap().boot_id, "b-1", "the old system, by its old key");
    machine.install();
    let error = eventually("the installer", || async {
        ports.facts.facts(&gpu).await.err().filter(|error| !told(error).contains("Connection refused"))
    })
    .await;
    assert!(
        error.kind == PortErrorKind::Unavailable && told(&error).contains("perhaps it is still the installer"),
        "{}",
        told(&error)
    );
    machine.report(&format!("installed {{\"token\": \"node-6.1\", \"sha256\": \"{SHA256}\"}}\n"));
    assert_eq!(ports.facts.facts(&gpu).await.unwrap_err().kind, PortErrorKind::Unavailable);
    // An installer that lets us log in, and knows nothing of what we ask.
    fs::write(machine.at("report"), "BusyBox v1.36.1 built-in shell (ash)\n").unwrap();
    let error = ports.facts.facts(&gpu).await.unwrap_err();
    assert!(error.kind == PortErrorKind::Unavailable && told(&error).contains("perhaps it is still the installer"), "{}", told(&error));

    // Installed, as ordered.
    machine.report(&format!("installed {{\"token\": \"node-7.1\", \"sha256\": \"{SHA256}\"}}\n"));
    assert!(ports.facts.facts(&gpu).await.unwrap().installed.is_some());
    ports.netboot.withdraw(&gpu).await.unwrap();
    machine.report("");
    assert_eq!(
        ports.facts.facts(&gpu).await.unwrap().boot_id,
        "b-1",
        "its new key is known by now, beside the operator's old one"
    );

    // Another machine in its place.
    machine.install();
    let kind = eventually("a stranger", || async {
        ports.facts.facts(&gpu).await.err().filter(|error| error.kind != PortErrorKind::Unavailable)
    })
    .await
    .kind;
    assert_eq!(reason(kind), unmarked);
    // Another worker, which never saw the node, finds the mark too, though the order is withdrawn.
    fs::remove_dir_all(site.path("known_hosts")).unwrap();
    machine.report(&format!("installed {{\"token\": \"node-7.1\", \"sha256\": \"{SHA256}\"}}\n"));
    assert!(ports.facts.facts(&gpu).await.unwrap().installed.is_some());
    // Also where that worker is to look at its disks, or to run a check.
    fs::remove_dir_all(site.path("known_hosts")).unwrap();
    fs::create_dir_all(site.path("known_hosts")).unwrap();
    let run = ports.facts.run(&gpu, "true", std::time::Duration::from_secs(20)).await;
    assert!(run.is_ok(), "{run:?}");
    let files: Vec<_> = fs::read_dir(site.path("known_hosts")).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["gpu-01"]);
}
