//! Stands in for OpenSSH's client at the simulated site. **Not an SSH client**: nothing is encrypted, nothing is run.
//!
//! It takes the arguments that `ssh` takes, finds the node's address in them, asks the site's server over HTTP what the node
//! would say, and prints what the one command that Turnaround runs on nodes would print. Host keys are kept and compared as
//! OpenSSH does, in the files that the options name; a node has another host key after every installation.
//!
//! The identity file (`-i`) holds, in place of a private key, `site-ssh <URL of the site's nodes> <key>`.
//!
//! `site-ssh --setup <identity file> <arguments>` stands in for the site's setup script in the same way: it tells the site to begin,
//! waits until the site says that it is over, and writes and ends as Ansible would.
#![allow(clippy::unwrap_used, reason = "a stand-in that can't go on says where")]

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::BuildHasher as _;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// What `ssh` ends with for its own errors.
const SSH_FAILED: u8 = 255;
/// Stands at the beginning and the end of the report of the command that is known here.
const BEGIN: &str = "turnaround-facts 1";
const END: &str = "turnaround-facts end";
/// The same of the command that asks what a node has.
const STOCK_BEGIN: &str = "turnaround-stock 1";
const STOCK_END: &str = "turnaround-stock end";
/// And of the one that asks what virtual machines run there.
const GUESTS_BEGIN: &str = "turnaround-guests 1";
const GUESTS_END: &str = "turnaround-guests end";
/// And of the one that asks for its MAC addresses.
const MACS_BEGIN: &str = "turnaround-macs 1";
const MACS_END: &str = "turnaround-macs end";
/// Without `-o ConnectTimeout`.
const CONNECT_SECS: u64 = 10;

/// Between two looks at a setup script that runs.
const SETUP_POLL: Duration = Duration::from_millis(50);
/// Looks in a row without an answer until the site is taken for gone: a minute.
const SETUP_UNHEARD_MAX: u32 = 1_200;

/// What was asked for on the command line.
#[derive(Debug, Default)]
struct Asked {
    user: String,
    identity: String,
    options: BTreeMap<String, String>,
    address: String,
    command: String,
}

impl Asked {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Asked, String> {
        let mut asked = Asked::default();
        while let Some(word) = words.next() {
            let mut value = || {
                words.next().ok_or_else(|| format!("option requires an argument -- {}", word.trim_start_matches('-')))
            };
            match word.as_str() {
                "-l" => asked.user = value()?,
                "-i" => asked.identity = value()?,
                "-F" | "-p" => drop(value()?),
                "-o" => {
                    let option = value()?;
                    let (key, value) = option.split_once('=').ok_or("an option without `=`")?;
                    asked.options.insert(key.to_owned(), value.to_owned());
                }
                "-T" | "-n" | "-q" | "-a" | "-x" | "-4" | "-6" => {}
                "--" => {
                    asked.address = words.next().ok_or("no destination")?;
                    break;
                }
                option if option.starts_with('-') => return Err(format!("unknown option -- {option}")),
                address => {
                    asked.address = address.to_owned();
                    break;
                }
            }
        }
        asked.command = words.collect::<Vec<_>>().join(" ");
        Ok(asked)
    }

    /// The files of an option, as `ssh` reads its value: in double quotes, with `%%` for a percent sign.
    fn file(&self, option: &str) -> Option<String> {
        Some(self.options.get(option)?.trim_matches('"').replace("%%", "%"))
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [first, identity, arguments @ ..] = &words[..]
        && first == "--setup"
    {
        return match setup(identity, arguments) {
            Ok(code) => ExitCode::from(code),
            Err(error) => {
                eprintln!("site-ssh: {error}");
                ExitCode::FAILURE
            }
        };
    }
    match ask() {
        Ok(report) => {
            print!("{report}");
            ExitCode::SUCCESS
        }
        Err((code, message)) => {
            eprintln!("{message}");
            ExitCode::from(code)
        }
    }
}

/// The URL and the key of an identity file.
fn login(identity: &str) -> Option<(String, String)> {
    let text = fs::read_to_string(identity).ok()?;
    let mut words = text.split_whitespace();
    let (Some("site-ssh"), Some(url), Some(key)) = (words.next(), words.next(), words.next()) else { return None };
    Some((url.to_owned(), key.to_owned()))
}

/// Returns what the script ends with.
fn setup(identity: &str, arguments: &[String]) -> Result<u8, String> {
    let (url, key) = login(identity).ok_or_else(|| format!("{identity} is not an identity file of a simulated site"))?;
    let timeout = Duration::from_secs(CONNECT_SECS);
    // Process ids come round.
    let path = format!("/scripts/{}-{:016x}", std::process::id(), RandomState::new().hash_one(0));
    let authorization = format!("Key ubuntu:{key}");
    let begun = Value::from(arguments).to_string();
    request("PUT", &url, &path, &authorization, &begun, timeout).map_err(|error| error.to_string())?;
    let (mut said, mut unheard) = (String::new(), 0);
    loop {
        // The site may not answer just now; or it has ended, and nobody waits for this any more.
        unheard += 1;
        if unheard > SETUP_UNHEARD_MAX {
            return Err("the site does not answer any more".to_owned());
        }
        if let Ok((200, body)) = request("GET", &url, &path, &authorization, "", timeout) {
            unheard = 0;
            let told: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
            let text = told["text"].as_str().unwrap_or_default();
            if text != said {
                print!("{text}");
                text.clone_into(&mut said);
            }
            if let Some(code) = told["code"].as_u64() {
                return u8::try_from(code).map_err(|error| error.to_string());
            }
        }
        std::thread::sleep(SETUP_POLL);
    }
}

type Failed = (u8, String);
/// Words of a command, the first of which tells it from others; and what it prints on a node that says all this.
type Command = (&'static [&'static str], fn(&Value) -> String);

fn ask() -> Result<String, Failed> {
    let failed = |message: String| (SSH_FAILED, message);
    let asked = Asked::read(std::env::args().skip(1)).map_err(failed)?;
    let Asked { user, address, .. } = &asked;
    let Some((url, key)) = login(&asked.identity) else {
        return Err(failed(format!("site-ssh: {} is not an identity file of a simulated site", asked.identity)));
    };
    let timeout = asked.options.get("ConnectTimeout").and_then(|secs| secs.parse().ok()).unwrap_or(CONNECT_SECS);
    // Each word of a command that this stand-in answers: if the command changes, so must it.
    let commands: [Command; 4] = [
        (&[BEGIN, "boot_id ", "/proc/sys/kernel/random/boot_id", "uname -n", "uname -r", "/etc/os-release", "/etc/turnaround/installed", END], |told| report(&told["facts"])),
        (
            &[STOCK_BEGIN, "date +%s", "/proc/cmdline", "lsblk -J", "/sys/bus/pci/devices", "NAME,TYPE,TRAN,SERIAL,WWN,FSTYPE,UUID,PARTUUID,MOUNTPOINT", "ip -j -d link show type vlan", STOCK_END],
            |told| stock(&told["stock"]),
        ),
        (&[GUESTS_BEGIN, "grep -azhxA1 -e -uuid /proc/[0-9]*/cmdline", "head -n 20", GUESTS_END], |told| lines(GUESTS_BEGIN, &told["guests"], GUESTS_END)),
        (
            &[MACS_BEGIN, "cat /sys/class/net/*/address /sys/class/net/*/bonding_slave/perm_hwaddr", "ip -o link", "sort -u", MACS_END],
            |told| lines(MACS_BEGIN, &told["macs"], MACS_END),
        ),
    ];
    let Some((words, print)) = commands.into_iter().find(|(words, _)| asked.command.contains(words[0])) else {
        return command(&asked, &url, &key, Duration::from_secs(timeout));
    };
    let (status, body) =
        request("GET", &url, &format!("/nodes/{address}"), &format!("Key {user}:{key}"), "", Duration::from_secs(timeout))
            .map_err(|error| failed(format!("ssh: connect to host {address} port 22: {error}")))?;
    if !matches!(status, 200 | 401) {
        return Err(failed(format!("ssh: connect to host {address} port 22: Connection timed out")));
    }
    let answer: Value = serde_json::from_str(&body).map_err(|error| failed(format!("site-ssh: {error}")))?;
    check_host_key(&asked, answer["host_key"].as_str().unwrap_or_default()).map_err(failed)?;
    if status == 401 {
        return Err(failed(format!("{user}@{address}: Permission denied (publickey).")));
    }
    if let Some(missing) = words.iter().find(|word| !asked.command.contains(*word)) {
        return Err((
            127,
            format!("site-ssh: the command has no `{missing}`: it is not the one that this stand-in answers"),
        ));
    }
    Ok(print(&answer))
}

/// What a command prints that lists these.
fn lines(begin: &str, list: &Value, end: &str) -> String {
    let listed = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    [begin].into_iter().chain(listed).chain([end]).map(|line| format!("{line}\n")).collect()
}

/// Another command than the one that asks for facts: the site knows how it ends.
fn command(asked: &Asked, url: &str, key: &str, timeout: Duration) -> Result<String, Failed> {
    let Asked { user, address, .. } = asked;
    let body = Value::from(asked.command.as_str()).to_string();
    let (status, answer) = request("PUT", url, &format!("/nodes/{address}/command"), &format!("Key {user}:{key}"), &body, timeout)
        .map_err(|error| (SSH_FAILED, format!("ssh: connect to host {address} port 22: {error}")))?;
    if status != 200 {
        return Err((SSH_FAILED, format!("ssh: connect to host {address} port 22: Connection timed out")));
    }
    let answer: Value = serde_json::from_str(&answer).map_err(|error| (SSH_FAILED, error.to_string()))?;
    check_host_key(asked, answer["host_key"].as_str().unwrap_or_default()).map_err(|error| (SSH_FAILED, error))?;
    match answer["end"]["code"].as_u64().and_then(|code| u8::try_from(code).ok()) {
        Some(0) => Ok(format!("{}\n", answer["end"]["output"].as_str().unwrap_or_default())),
        Some(code) => Err((code, format!("sh: {}: not found", asked.command))),
        None => Err((SSH_FAILED, "site-ssh: no exit code".to_owned())),
    }
}

/// What the command prints on a node with these facts.
fn report(facts: &Value) -> String {
    let text = |key: &str| facts[key].as_str().unwrap_or_default().to_owned();
    let version = text("os_version_id");
    let mut lines = vec![
        BEGIN.to_owned(),
        format!("boot_id {}", text("boot_id")),
        format!("hostname {}", text("hostname")),
        format!("kernel {}", text("kernel")),
        format!("os-release PRETTY_NAME=\"Ubuntu {version}.1 LTS\""),
        "os-release NAME=\"Ubuntu\"".to_owned(),
        format!("os-release VERSION_ID=\"{version}\""),
        "os-release ID=ubuntu".to_owned(),
        "os-release ID_LIKE=debian".to_owned(),
    ];
    if !facts["installed"].is_null() {
        lines.push(format!("installed {}", facts["installed"]));
    }
    lines.push(END.to_owned());
    lines.join("\n") + "\n"
}

/// What the command prints on a node that has this.
#[expect(clippy::disallowed_methods, reason = "what a node's `date` prints")]
fn stock(stock: &Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(0));
    let mut lines = vec![STOCK_BEGIN.to_owned(), format!("clock {}", (now + stock["clock_ahead_ms"].as_i64().unwrap_or(0)) / 1000)];
    let words = stock["kernel_parameters"].as_array().into_iter().flatten().filter_map(Value::as_str);
    lines.extend(["BOOT_IMAGE=/vmlinuz", "ro", "quiet"].into_iter().chain(words).map(|word| format!("parameter {word}")));
    let class = |id: &str| if id.starts_with("15b3") { "0x020000" } else { "0x030200" };
    let words = |id: &str| {
        let (vendor, device) = id.split_once(':').unwrap_or((id, ""));
        format!("{} 0x{vendor} 0x{device}", class(id))
    };
    for (address, device) in stock["devices"].as_object().into_iter().flatten() {
        let (id, driver) = (device["id"].as_str().unwrap_or_default(), device["driver"].as_str().unwrap_or("-"));
        lines.push(format!("pci {address} {} {driver} {}", words(id), device["lanes"].as_u64().unwrap_or(0)));
    }
    for (id, count) in stock["virtual_functions"].as_object().into_iter().flatten() {
        lines.extend((0..count.as_u64().unwrap_or(0)).map(|_| format!("vf {}", words(id))));
    }
    if let Some(disks) = stock["disks"].as_object() {
        let disk = |(place, (serial, holds)): (usize, (&String, &Value))| {
            let name = format!("sd{}", char::from(b'a' + u8::try_from(place % 26).unwrap_or(0)));
            let mut disk = json!({ "name": name, "type": "disk", "tran": "sata", "serial": serial, "wwn": null, "fstype": null, "uuid": null, "partuuid": null, "mountpoint": null });
            match holds["data"].as_str() {
                None => {
                    disk["children"] = json!([{ "name": format!("{name}1"), "type": "part", "tran": null, "serial": null, "wwn": null, "fstype": "ext4",
                        "uuid": "0f0f", "partuuid": "1e1e", "mountpoint": "/" }]);
                }
                Some(holds) => {
                    let (fstype, uuid) = holds.split_once(' ').unwrap_or((holds, ""));
                    disk["fstype"] = if fstype.is_empty() { Value::Null } else { fstype.into() };
                    disk["uuid"] = if uuid.is_empty() { Value::Null } else { uuid.into() };
                }
            }
            disk
        };
        lines.push(format!("disks {}", json!({ "blockdevices": disks.iter().enumerate().map(disk).collect::<Vec<_>>() })));
    }
    if let Some(vlans) = stock["vlans"].as_array() {
        let vlan = |vlan: &Value| {
            let (name, rest) = vlan.as_str()?.split_once(": VLAN ")?;
            let (id, link) = rest.split_once(" on ")?;
            Some(json!({ "ifname": name, "link": link, "linkinfo": { "info_kind": "vlan", "info_data": { "protocol": "802.1Q", "id": id.parse::<u16>().ok()? } } }))
        };
        lines.push(format!("vlans {}", Value::from(vlans.iter().filter_map(vlan).collect::<Vec<_>>())));
    }
    lines.push(STOCK_END.to_owned());
    lines.join("\n") + "\n"
}

/// As OpenSSH does, with one key for each host.
fn check_host_key(asked: &Asked, key: &str) -> Result<(), String> {
    let line = format!("{} {key}", asked.address);
    let own = asked.file("UserKnownHostsFile");
    let files = [own.clone(), asked.file("GlobalKnownHostsFile")];
    let texts: Vec<String> = files.iter().flatten().map(|file| fs::read_to_string(file).unwrap_or_default()).collect();
    let ours: Vec<&str> = texts
        .iter()
        .flat_map(|text| text.lines())
        .filter(|known| known.split(' ').next() == Some(&asked.address))
        .collect();
    if ours.contains(&line.as_str()) {
        return Ok(());
    }
    if !ours.is_empty() {
        let bar = "@".repeat(59);
        return Err(format!(
            "{bar}\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\n{bar}\n\
             IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!\n\
             Host key for {} has changed and you have requested strict checking.\nHost key verification failed.",
            asked.address
        ));
    }
    match (asked.options.get("StrictHostKeyChecking").map(String::as_str), own) {
        (Some("accept-new" | "no"), Some(own)) => {
            let mut file = File::options().create(true).append(true).open(own).map_err(|error| error.to_string())?;
            writeln!(file, "{line}").map_err(|error| error.to_string())?;
            eprintln!("Warning: Permanently added '{}' (ED25519) to the list of known hosts.", asked.address);
            Ok(())
        }
        (_, _) => Err(format!(
            "No ED25519 host key is known for {} and you have requested strict checking.\nHost key verification failed.",
            asked.address
        )),
    }
}

/// One HTTP request, with nothing but the standard library.
fn request(
    method: &str,
    url: &str,
    path: &str,
    authorization: &str,
    body: &str,
    timeout: Duration,
) -> std::io::Result<(u16, String)> {
    let host = url.trim_start_matches("http://").trim_end_matches('/');
    let address = host.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {authorization}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status =
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
}
