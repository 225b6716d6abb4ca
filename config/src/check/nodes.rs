//! `[images]` and `[nodes]`, and that no two nodes are the same machine.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use super::schedules::Known;
use crate::config::{Bmc, BootFiles, Carries, Check, Expect, IronicImage, Node, NodeImage, RenewedBy, Role};
use crate::limits;
use crate::names::{CheckName, ImageName, InvalidName, NodeName};
use crate::nearest::any_of;
use crate::problems::{Problems, Wrong, show, show_url};
use crate::raw::{RawBmc, RawCheck, RawImage, RawNode, RawNodeIronic};
use crate::read::{Field, Found, Kind, Named, Written};
use crate::values;

pub(super) fn images(
    field: Field<Named<RawImage>>,
    problems: &mut Problems<'_>,
) -> Option<BTreeMap<ImageName, NodeImage>> {
    named(field, problems, |_, raw, problems| raw.check(problems))
}

pub(super) fn checks(field: Field<Named<RawCheck>>, nodes: &Known, problems: &mut Problems<'_>) -> Option<BTreeMap<CheckName, Check>> {
    named(field, problems, |_, raw, problems| raw.check(nodes, problems))
}

impl RawCheck {
    fn check(self, nodes: &Known, problems: &mut Problems<'_>) -> Option<Check> {
        let command = problems.need(&self.here, &self.command, "\"nvidia-smi -L | wc -l\"", |text| values::command(text));
        let expect = problems.maybe(&self.expect, |text| values::line(text.trim()));
        let as_found = problems.or(&self.as_found, || false, |flag| Ok(*flag));
        if let (Some(_), Some(second)) = (self.expect.written(), self.as_found.written())
            && second.value
        {
            let help = "leave out `expect` if it must be as it was before, or `as_found` if you know what it must be";
            problems.add(&second.key, "there are both `expect` and `as_found`", help);
        }
        let nodes = match &self.nodes.found {
            Found::Nothing => Some(BTreeSet::new()),
            Found::Unreadable => None,
            Found::Written(list) => {
                let all: Vec<_> = list.value.iter().map(|one| problems.take(one, |pattern| nodes.that_fit(pattern))).collect();
                all.into_iter().collect::<Option<Vec<_>>>().map(|found| found.into_iter().flatten().collect())
            }
        };
        let time_limit = problems.length(&self.time_limit, &limits::CHECK_TIME_LIMIT);
        let expect = match (expect?, as_found?) {
            (Some(text), _) => Expect::Output(text),
            (None, true) => Expect::AsFound,
            (None, false) => Expect::Success,
        };
        Some(Check { command: command?, expect, nodes: nodes?, time_limit: time_limit? })
    }
}

pub(super) fn nodes(field: Field<Named<RawNode>>, problems: &mut Problems<'_>) -> Option<BTreeMap<NodeName, Node>> {
    if let Some(written) = field.written() {
        note_doubles(&written.value.0, problems);
        note_two_protocols(&written.value.0, problems);
    }
    named(field, problems, |name, raw, problems| raw.check(name, problems))
}

/// Names of the nodes that carry what keeps them from being renewed.
pub(super) fn kept_from_renewal(field: &Field<Named<RawNode>>) -> Vec<String> {
    let word = |text: &str| values::one_of(text, &Carries::WORDS).ok();
    let keeps = |raw: &RawNode| {
        raw.carries.written().is_some_and(|list| list.value.iter().filter_map(|one| word(&one.value)).any(Carries::keeps_from_renewal))
    };
    let entries = field.written().map(|written| written.value.0.iter());
    entries.into_iter().flatten().filter(|(_, raw)| keeps(raw)).map(|(name, _)| name.value.clone()).collect()
}

/// Every entry of a table of named tables; `None` if one of them is not good.
pub(super) fn named<N, R, T>(
    field: Field<Named<R>>,
    problems: &mut Problems<'_>,
    mut check: impl FnMut(&str, R, &mut Problems<'_>) -> Option<T>,
) -> Option<BTreeMap<N, T>>
where
    N: FromStr<Err = InvalidName> + Ord,
    Named<R>: Kind,
{
    let entries = match field.found {
        Found::Nothing => Vec::new(),
        Found::Unreadable => return None,
        Found::Written(written) => written.value.0,
    };
    let all: Vec<_> = entries
        .into_iter()
        .map(|(name, raw)| {
            let parsed = problems.take(&name, |text| name_of::<N>(text));
            let meant = check(&name.value, raw, problems);
            Some((parsed?, meant?))
        })
        .collect();
    all.into_iter().collect()
}

pub(super) fn name_of<N: FromStr<Err = InvalidName>>(text: &str) -> Result<N, Wrong> {
    text.parse().map_err(|_| {
        Wrong::new(
            format!("`{}` cannot be a name here", show(text)),
            format!(
                "use letters, digits, `-`, `_` and `.`, begin with a letter or digit, at most {} characters",
                crate::names::NAME_CHARS_MAX
            ),
        )
    })
}

impl RawImage {
    fn check(self, problems: &mut Problems<'_>) -> Option<NodeImage> {
        let here = &self.here;
        let version = problems.need(here, &self.version, "\"2026.11.1\"", |text| values::word(text));
        let digest = "\"64 hex digits, as sha256sum prints them\"";
        let sha256 = problems.need(here, &self.sha256, digest, |text| values::sha256(text));
        let os_version_id = problems.need(here, &self.os_version_id, "\"24.04\"", |text| values::word(text));
        let kernel = problems.need(here, &self.kernel, "\"6.8.0-45-generic\"", |text| values::word(text));
        let boot = self.boot(problems);
        let source = problems.maybe(&self.ironic_image, |text| values::web_url(text));
        let written = problems.maybe(&self.ironic_sha256, |text| values::sha256(text));
        if let (Some(lonely), true) = (self.ironic_sha256.written(), self.ironic_image.is_nothing()) {
            problems.add(&lonely.key, "there is no `ironic_image` that this is the digest of", "write `ironic_image` too, or leave it out");
        }
        let (sha256, source, written) = (sha256?, source?, written?);
        Some(NodeImage {
            version: version?,
            ironic: source.map(|source| IronicImage { source, sha256: written.unwrap_or_else(|| sha256.clone()) }),
            sha256,
            os_version_id: os_version_id?,
            kernel: kernel?,
            boot: boot?,
        })
    }

    /// None inside: only Ironic can write it.
    fn boot(&self, problems: &mut Problems<'_>) -> Option<Option<BootFiles>> {
        let arguments = problems.or(&self.boot_arguments, String::new, |text| values::line_or_nothing(text));
        let boots = !(self.boot_kernel.is_nothing() && self.boot_initrd.is_nothing() && self.boot_arguments.is_nothing());
        if !boots && self.ironic_image.written().is_some() {
            return Some(None);
        }
        let kernel = problems.need(&self.here, &self.boot_kernel, "\"noble/vmlinuz\"", |text| values::boot_file(text));
        let initrd = problems.need(&self.here, &self.boot_initrd, "\"noble/initrd\"", |text| values::boot_file(text));
        Some(Some(BootFiles { kernel: kernel?, initrd: initrd?, arguments: arguments? }))
    }
}

impl RawNode {
    fn check(self, name: &str, problems: &mut Problems<'_>) -> Option<Node> {
        let words = [("compute", Role::Compute)];
        let role = problems.or(&self.role, || Role::Compute, |text| values::one_of(text, &words));
        let nova_host = problems.or(&self.nova_host, || name.to_owned(), |text| values::host(text));
        let ssh_address = problems.or(&self.ssh_address, || name.to_owned(), |text| values::host(text));
        let carries = match self.carries.written() {
            Some(list) => {
                let words = |text: &str| values::one_of(text, &Carries::WORDS);
                let all: Vec<_> = list.value.iter().map(|one| problems.take(one, |text| words(text))).collect();
                all.into_iter().collect()
            }
            None => self.carries.is_nothing().then(Default::default),
        };
        let renewed_by = self.renewed_by(name, problems);
        Some(Node { role: role?, nova_host: nova_host?, ssh_address: ssh_address?, carries: carries?, renewed_by: renewed_by? })
    }

    /// By us, who need its BMC and its MAC address, or by Ironic, which has both.
    fn renewed_by(self, name: &str, problems: &mut Problems<'_>) -> Option<RenewedBy> {
        if let (Some(_), Some(second)) = (self.bmc.written(), self.ironic.written()) {
            let help = "leave out `ironic` if Turnaround installs this node by its BMC, or `bmc` if Ironic does";
            problems.add(&second.key, "there are both `bmc` and `ironic`", help);
        }
        if !self.ironic.is_nothing() {
            let mac = problems.need(&self.here, &self.mac, "\"02:00:5e:10:00:0a\"", |text| values::mac(text));
            let node = self.ironic.table().and_then(|raw: RawNodeIronic| problems.or(&raw.node, || name.to_owned(), |text| values::word(text)));
            return Some(RenewedBy::Ironic { node: node?, mac: mac? });
        }
        let mac = problems.need(&self.here, &self.mac, "\"02:00:5e:10:00:0a\"", |text| values::mac(text));
        let bmc = match self.bmc.found {
            Found::Nothing => {
                let example = "{ protocol = \"redfish\", url = \"https://...\", user = \"...\", password_file = \"/...\" }`, or, if Ironic renews it, `ironic = {}";
                problems.missing(&self.here, "bmc", example);
                None
            }
            Found::Unreadable => None,
            Found::Written(written) => written.value.check(problems),
        };
        Some(RenewedBy::Netboot { mac: mac?, bmc: bmc? })
    }
}

/// What the file says of who renews what, to be compared with what schedules want.
pub(super) struct Ways {
    /// Names of the nodes, and whether Ironic renews them.
    pub(super) nodes: Vec<(String, bool)>,
    /// Images that Ironic can't write, and those that we can't.
    pub(super) not_for_ironic: Vec<String>,
    pub(super) not_for_netboot: Vec<String>,
}

impl Ways {
    pub(super) fn of(nodes: &Field<Named<RawNode>>, images: &Field<Named<RawImage>>) -> Ways {
        let nodes = nodes.written().map(|written| written.value.0.iter().map(|(name, raw)| (name.value.clone(), !raw.ironic.is_nothing())));
        let images: Vec<_> = images.written().map(|written| written.value.0.iter().collect()).unwrap_or_default();
        let without = |lacks: fn(&RawImage) -> bool| images.iter().filter(|(_, raw)| lacks(raw)).map(|(name, _)| name.value.clone()).collect();
        Ways {
            nodes: nodes.into_iter().flatten().collect(),
            not_for_ironic: without(|raw| raw.ironic_image.is_nothing()),
            not_for_netboot: without(|raw| raw.ironic_image.written().is_some() && raw.boot_kernel.is_nothing() && raw.boot_initrd.is_nothing()),
        }
    }

    /// Ironic renews all nodes that there are.
    pub(super) fn only_ironic(&self) -> bool {
        !self.nodes.is_empty() && self.nodes.iter().all(|(_, ironics)| *ironics)
    }
}

/// The two ways to speak with a BMC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Redfish,
    Ipmi,
}

impl RawBmc {
    fn check(self, problems: &mut Problems<'_>) -> Option<Bmc> {
        let words = [("redfish", Protocol::Redfish), ("ipmi", Protocol::Ipmi)];
        let protocol = problems.need(&self.here, &self.protocol, "\"redfish\"", |text| values::one_of(text, &words));
        let password = super::needed_secret(&self.here, &self.password_file, &self.password_credential, problems);
        let user = match protocol {
            Some(Protocol::Ipmi) => problems.need(&self.here, &self.user, "\"admin\"", |text| ipmi_user(text)),
            Some(Protocol::Redfish) | None => {
                problems.need(&self.here, &self.user, "\"admin\"", |text| values::user(text))
            }
        };
        match protocol? {
            Protocol::Redfish => {
                self.refuse("redfish", &["url", "system", "ca_file"], problems);
                let url = problems.need(&self.here, &self.url, "\"https://192.0.2.11\"", |text| bmc_url(text));
                let system = problems.or(&self.system, || limits::REDFISH_SYSTEM.to_owned(), |text| system(text));
                let ca_file = problems.maybe(&self.ca_file, |text| values::absolute_path(text));
                Some(Bmc::Redfish {
                    url: url?,
                    system: system?,
                    user: user?,
                    password: password?,
                    ca_file: ca_file?,
                })
            }
            Protocol::Ipmi => {
                self.refuse("ipmi", &["address", "port", "cipher_suite"], problems);
                let address = problems.need(&self.here, &self.address, "\"192.0.2.11\"", |text| values::host(text));
                let port = problems.count(&self.port, &limits::IPMI_PORT);
                let cipher_suite = problems.count(&self.cipher_suite, &limits::IPMI_CIPHER_SUITE);
                Some(Bmc::Ipmi {
                    address: address?,
                    port: port?,
                    user: user?,
                    password: password?,
                    cipher_suite: cipher_suite?,
                })
            }
        }
    }

    /// Notes keys that belong to the other protocol.
    fn refuse(&self, protocol: &str, own: &[&str], problems: &mut Problems<'_>) {
        let texts = [&self.url, &self.system, &self.ca_file, &self.address].into_iter().map(key_of);
        let numbers = [&self.port, &self.cipher_suite].into_iter().map(key_of);
        for (key, written) in texts.chain(numbers) {
            if let Some(at) = written.filter(|_| !own.contains(&key)) {
                problems.add(&at, format!("`{key}` has no meaning for {protocol}"), format!("use {}", any_of(own)));
            }
        }
    }
}

fn key_of<T>(field: &Field<T>) -> (&'static str, Option<crate::problems::Span>) {
    (field.key, field.written().map(|written| written.key.clone()))
}

fn ipmi_user(text: &str) -> Result<String, Wrong> {
    let user = values::user(text)?;
    if user.len() <= limits::IPMI_USER_BYTES_MAX {
        return Ok(user);
    }
    let help = format!("write at most {} bytes; IPMI can carry no more", limits::IPMI_USER_BYTES_MAX);
    Err(Wrong::new("this user name is too long", help))
}

/// The service root's host. A path in it would be doubled by `system`.
fn bmc_url(text: &str) -> Result<String, Wrong> {
    let url = values::web_url(text)?;
    let host = url.split_once("://").map_or(url.as_str(), |(_, host)| host);
    match host.split_once('/') {
        None => Ok(url),
        Some((_, path)) => Err(Wrong::new(
            format!("there is a path in `{}`", show_url(text)),
            format!("write the host here, and the path as `system = \"/{}\"`", show(path)),
        )),
    }
}

fn system(text: &str) -> Result<String, Wrong> {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '"' | '\\');
    if text.starts_with("/redfish/") && text.chars().all(plain) && !text.contains("/../") {
        return Ok(text.trim_end_matches('/').to_owned());
    }
    let help = format!("write the path of the system, such as \"{}\"", limits::REDFISH_SYSTEM);
    Err(Wrong::new(format!("`{}` is not the path of a Redfish system", show(text)), help))
}

/// Two nodes with one machine's address would be taken down together, or one in place of the other.
///
/// Compared as written, so that a double is found even where the rest of the node is not good.
fn note_doubles(nodes: &[(Written<String>, RawNode)], problems: &mut Problems<'_>) {
    let mut seen: BTreeMap<(&str, String), (&str, usize)> = BTreeMap::new();
    for (name, node) in nodes {
        for (what, value, at) in identities(name, node) {
            if let Some((first, line)) = seen.get(&(what, value.clone())) {
                let reason = format!("`{}` and `{}` have the same {what}", show(first), show(&name.value));
                problems.add(&at, reason, format!("each node has its own: this one or the one in line {line} is wrong"));
            } else {
                seen.insert((what, value), (&name.value, problems.line(&at)));
            }
        }
    }
}

/// One BMC is one machine's, whether it is spoken to by IPMI or by Redfish: where both use the usual ports, the same host is the same BMC.
fn note_two_protocols(nodes: &[(Written<String>, RawNode)], problems: &mut Problems<'_>) {
    let mut by_ipmi: BTreeMap<String, (usize, &str, usize)> = BTreeMap::new();
    for (place, (name, node)) in nodes.iter().enumerate() {
        let Some(bmc) = node.bmc.written().map(|written| &written.value) else { continue };
        let usual = bmc.port.written().is_none_or(|port| port.value == limits::IPMI_PORT.default as i64);
        if let (Some(address), true) = (bmc.address.written(), usual) {
            by_ipmi.insert(address.value.to_lowercase(), (place, &name.value, problems.line(&address.span)));
        }
    }
    for (place, (name, node)) in nodes.iter().enumerate() {
        let Some(url) = node.bmc.written().and_then(|written| written.value.url.written()) else { continue };
        let host = redfish_place(&url.value).trim_start_matches('[').trim_end_matches(']').to_owned();
        if let Some((other, known, line)) = by_ipmi.get(&host).filter(|(other, ..)| *other != place) {
            let (first, second) = if *other < place { (*known, name.value.as_str()) } else { (name.value.as_str(), *known) };
            let reason = format!("`{}` and `{}` have the same BMC", show(first), show(second));
            problems.add(&url.span, reason, format!("each node has its own: this one or the one in line {line} is wrong"));
        }
    }
}

/// Host, and port unless it is the usual one, however the URL is written.
fn redfish_place(url: &str) -> String {
    let service = url.trim_end_matches('/').to_lowercase();
    let (scheme, place) = service.split_once("://").unwrap_or(("", &service));
    let usual = if scheme == "https" { ":443" } else { ":80" };
    place.strip_suffix(usual).unwrap_or(place).to_owned()
}

/// What may stand for one machine only, normalised: what it is, its value, and where it is written.
fn identities<'a>(name: &Written<String>, node: &'a RawNode) -> Vec<(&'a str, String, crate::problems::Span)> {
    let mut all = Vec::new();
    let or_name = |field: &'a Field<String>| match field.written() {
        Some(written) => (written.value.to_lowercase(), written.span.clone()),
        None => (name.value.to_lowercase(), name.span.clone()),
    };
    let (host, at) = or_name(&node.nova_host);
    all.push(("nova_host", host, at));
    let (address, at) = or_name(&node.ssh_address);
    all.push(("ssh_address", address, at));
    if let Some(mac) = node.mac.written() {
        all.push(("MAC address", mac.value.to_lowercase(), mac.span.clone()));
    }
    if let Some(ironic) = node.ironic.written() {
        let (known_as, at) = match ironic.value.node.written() {
            Some(written) => (written.value.to_lowercase(), written.span.clone()),
            None => (name.value.to_lowercase(), ironic.key.clone()),
        };
        all.push(("node of Ironic's", known_as, at));
    }
    let Some(bmc) = node.bmc.written().map(|written| &written.value) else { return all };
    if let Some(url) = bmc.url.written() {
        let system = bmc.system.written().map_or(limits::REDFISH_SYSTEM, |written| &written.value);
        all.push(("BMC and system", format!("{} {}", redfish_place(&url.value), system.trim_end_matches('/')), url.span.clone()));
    }
    if let Some(address) = bmc.address.written() {
        let port = bmc.port.written().map_or(limits::IPMI_PORT.default as i64, |written| written.value);
        all.push(("BMC", format!("{} {port}", address.value.to_lowercase()), address.span.clone()));
    }
    all
}
