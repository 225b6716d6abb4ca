//! From what was written to what is meant.
//!
//! Because one look at the file should be enough to mend it, every check notes its problem and lets the next one run;
//! only at the end is there a [`Config`] or a [`Report`].

mod nodes;
mod schedules;

use std::io::Read;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use crate::config::{
    Canary, Compared, Config, Daemon, InstallerReports, Ipmi, Ironic, Kubernetes, Matcher, MoveHow, MoveRule, NetBoot, NodeOs, OpenStack, OtlpProtocol, Pinned, Redis, Setup, Silences, Ssh, Store, Telemetry, Worker,
};
use crate::length::show_length;
use crate::limits;
use crate::problems::{Problems, Span, Wrong};
use crate::raw::{
    RawCanary, RawConfig, RawDaemon, RawIpmi, RawIronic, RawKubernetes, RawMoveRule, RawNetBoot, RawNodeOs, RawOpenStack, RawSetup, RawSilences, RawSsh, RawStore, RawTelemetry, RawWorker,
};
use crate::read::{Field, Here, Hidden, Table, Texts};
use crate::report::Report;
use crate::secret::Secret;
use crate::values;

/// The configuration in the file at `path`, or everything that is wrong with it.
///
/// Only this file is read: whether the files it names exist is found out by the program that needs them, as that
/// program's user.
pub fn check(path: &Path) -> Result<Config, Report> {
    let name = path.display().to_string();
    let unreadable = |reason: String, help: String| {
        let mut problems = Problems::new("");
        problems.add_nowhere(reason, help);
        problems.into_report(&name)
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(limits::FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| {
            let help = match error.kind() {
                std::io::ErrorKind::NotFound => "give the path of the configuration file by `--config`",
                std::io::ErrorKind::PermissionDenied => "let the user of this program read it",
                _ => "give the path of a readable file",
            };
            unreadable(format!("could not read `{name}`: {error}"), help.to_owned())
        })?;
    if bytes.len() as u64 > limits::FILE_BYTES_MAX {
        let help = format!("give a file of at most {} bytes", limits::FILE_BYTES_MAX);
        return Err(unreadable(format!("`{name}` is too large for a configuration"), help));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        unreadable(format!("line {line} of `{name}` is not UTF-8"), "save the file as UTF-8".to_owned())
    })?;
    check_text(&name, &text)
}

/// The configuration in `text`; reports call it `name`.
pub fn check_text(name: &str, text: &str) -> Result<Config, Report> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut problems = Problems::new(text);
    let (document, broken) = DeTable::parse_recoverable(text);
    let mut guesswork = false;
    for error in &broken {
        guesswork |= !is_duplicate(error);
        let reason = format!("this is not TOML: {}", error.message());
        problems.add(&error.span().unwrap_or(0..0), reason, syntax_help(error));
    }
    // A line that is not understood may hold anything; what would be missing then is not missing.
    if guesswork {
        return Err(problems.into_report(name).with_the_rest_unchecked());
    }
    let raw = RawConfig::read(document.get_ref(), String::new(), None, &mut problems);
    let config = raw.check(&mut problems);
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        Some(_) | None => Err(problems.into_report(name)),
    }
}

fn is_duplicate(error: &toml::de::Error) -> bool {
    error.message().starts_with("duplicate key")
}

/// What is usually behind an error of the parser.
fn syntax_help(error: &toml::de::Error) -> &'static str {
    let message = error.message();
    if is_duplicate(error) {
        "leave one of the two out"
    } else if message.starts_with("invalid boolean") {
        "put text in quotes; only numbers, true and false go without"
    } else if message.contains("string, expected `\"`") || message.contains("string, expected `'`") {
        "end the text with a quotation mark"
    } else if message.starts_with("unclosed") {
        "close the bracket"
    } else {
        "write `key = value`, with text in quotes"
    }
}

impl RawConfig {
    fn check(self, problems: &mut Problems<'_>) -> Option<Config> {
        let site = problems.need(&self.here, &self.site, "\"my-cloud\"", |text| values::site(text));
        let state_dir = path_or(&self.state_dir, limits::STATE_DIR, problems, values::state_dir);
        let patience = self.patience_at();
        let store = self.store.table().and_then(|raw| raw.check(problems));
        let daemon = self.daemon.table().and_then(|raw| raw.check(problems));
        let worker = self.worker.table().and_then(|raw| raw.check(problems));
        if let (Some(store), Some(worker), Some(at)) = (&store, &worker, patience)
            && store.reply_timeout >= worker.lease
        {
            let reason = "a worker would wait for a reply longer than it may be silent";
            let help = format!("write a `store.reply_timeout` below the `worker.lease` of {}", show_length(worker.lease));
            problems.add(&at, reason, help);
        }
        let openstack = self.openstack.table().and_then(|raw| raw.check(problems));
        let ways = nodes::Ways::of(&self.nodes, &self.images);
        let netboot = self.netboot.table().and_then(|raw| raw.check(ways.only_ironic(), problems));
        let ssh = self.ssh.table().and_then(|raw| raw.check(problems));
        let ipmi = self.ipmi.table().and_then(|raw| raw.check(problems));
        let ironic = self.ironic.table().and_then(|raw| raw.check(problems));
        let setup = self.setup.table().and_then(|raw| raw.check(problems));
        let silences = self.silences.table().and_then(|raw| raw.check(problems));
        let kubernetes = self.kubernetes.table().and_then(|raw| raw.check(problems));
        let canary = self.canary.table().and_then(|raw| raw.check(problems));
        let node_os = self.node_os.table().and_then(|raw| raw.check(problems));
        let known_images = schedules::Known::names(&self.images);
        let known_nodes = schedules::Known::names(&self.nodes);
        let moves = nodes::named(self.moves, problems, |_, raw, problems| raw.check(problems));
        let checks = nodes::checks(self.checks, &known_nodes, problems);
        let kept = nodes::kept_from_renewal(&self.nodes);
        let images = nodes::images(self.images, problems);
        let nodes = nodes::nodes(self.nodes, problems);
        let schedules = schedules::schedules(self.schedules, &known_images, &known_nodes.but(kept), &ways, problems);
        let telemetry = self.telemetry.table().and_then(|raw| raw.check(problems));
        Some(Config {
            site: site?,
            state_dir: state_dir?,
            store: store?,
            daemon: daemon?,
            worker: worker?,
            openstack: openstack?,
            netboot: netboot?,
            ssh: ssh?,
            ipmi: ipmi?,
            ironic: ironic?,
            setup: setup?,
            silences: silences?,
            kubernetes: kubernetes?,
            canary: canary?,
            node_os: node_os?,
            moves: moves?,
            checks: checks?,
            images: images?,
            nodes: nodes?,
            schedules: schedules?,
            telemetry: telemetry?,
        })
    }

    /// Where `store.reply_timeout` or else `worker.lease` is written; their defaults go together.
    fn patience_at(&self) -> Option<Span> {
        let reply = self.store.written().and_then(|store| store.value.reply_timeout.written());
        let lease = self.worker.written().and_then(|worker| worker.value.lease.written());
        reply.or(lease).map(|written| written.span.clone())
    }
}

impl RawStore {
    fn check(self, problems: &mut Problems<'_>) -> Option<Store> {
        let url = problems.maybe(&self.url, |text| values::redis_url(text));
        let sentinel = self.sentinel(problems);
        let password = secret(&self.password_file, &self.password_credential, problems);
        let program = path_or(&self.embedded_program, limits::EMBEDDED_PROGRAM, problems, values::program);
        self.only_one_redis(problems);
        if self.url.is_nothing() && self.sentinel.is_nothing() {
            for lonely in [&self.password_file, &self.password_credential].into_iter().filter_map(Field::written) {
                let help = "leave it out: the private Redis needs none, or write `url` too";
                problems.add(&lonely.key, "there is a password, but no `url` to use it with", help);
            }
        }
        let reply_timeout = problems.length(&self.reply_timeout, &limits::REPLY_TIMEOUT);
        let keep_finished = problems.length(&self.keep_finished, &limits::KEEP_FINISHED);
        let accept_weaker_durability = problems.or(&self.accept_weaker_durability, || false, |flag| Ok(*flag));
        let redis = match (url?, sentinel?) {
            (Some(url), _) => Redis::Url { url, password: password? },
            (None, Some((nodes, primary))) => Redis::Sentinel { nodes, primary, password: password? },
            (None, None) => Redis::Embedded { program: program? },
        };
        Some(Store {
            redis,
            accept_weaker_durability: accept_weaker_durability?,
            reply_timeout: reply_timeout?,
            keep_finished: keep_finished?,
        })
    }

    /// The Sentinels and the name of the primary: both or neither.
    fn sentinel(&self, problems: &mut Problems<'_>) -> Option<Option<(Vec<String>, String)>> {
        let primary = problems.maybe(&self.primary, |text| values::word(text));
        let Some(list) = self.sentinel.written() else {
            if let Some(lonely) = self.primary.written() {
                let help = "write `sentinel = [\"HOST:26379\", ..]` too, or leave it out";
                problems.add(&lonely.key, "there is a `primary`, but no `sentinel` that knows it", help);
            }
            return self.sentinel.is_nothing().then_some(None);
        };
        if list.value.is_empty() || list.value.len() > limits::SENTINELS_MAX {
            let reason = format!("`store.sentinel` has 1 to {} Sentinels", limits::SENTINELS_MAX);
            problems.add(&list.span, reason, "write each as \"HOST:26379\"; three on three hosts are usual");
        }
        let nodes: Vec<_> = list.value.iter().map(|one| problems.take(one, |text| values::server(text))).collect();
        if self.primary.is_nothing() {
            let help = "write `primary = \"NAME\"` too: the name in `sentinel monitor NAME ..` of sentinel.conf";
            problems.add(&list.key, "there is a `sentinel`, but no `primary` to ask it for", help);
            return None;
        }
        Some(Some((nodes.into_iter().collect::<Option<_>>()?, primary??)))
    }

    /// A private Redis, one at a URL, or one that Sentinels name: not two of them.
    fn only_one_redis(&self, problems: &mut Problems<'_>) {
        let embedded = self.embedded_program.written().map(|written| &written.key);
        let sentinel = self.sentinel.written().map(|written| &written.key);
        if let (Some(_), Some(embedded)) = (self.url.written(), embedded) {
            let help = "leave out `url` for a private Redis, or `embedded_program` for the one at `url`";
            problems.add(embedded, "there are both `url` and `embedded_program`", help);
        }
        if let (Some(_), Some(sentinel)) = (self.url.written(), sentinel) {
            let help = "leave out `url` if Sentinel is to name the primary, or `sentinel` if it is always the one at `url`";
            problems.add(sentinel, "there are both `url` and `sentinel`", help);
        }
        if let (Some(embedded), Some(_)) = (embedded, sentinel) {
            let help = "leave out `sentinel` for a private Redis, or `embedded_program` for the one that Sentinel names";
            problems.add(embedded, "there are both `sentinel` and `embedded_program`", help);
        }
    }
}

impl RawDaemon {
    fn check(self, problems: &mut Problems<'_>) -> Option<Daemon> {
        let socket = path_or(&self.socket, limits::SOCKET, problems, values::socket);
        let operators = match self.operators.written() {
            Some(list) => {
                let all: Vec<_> = list.value.iter().map(|one| problems.take(one, |text| values::user(text))).collect();
                all.into_iter().collect()
            }
            None => self.operators.is_nothing().then(Vec::new),
        };
        Some(Daemon { socket: socket?, operators: operators? })
    }
}

impl RawWorker {
    fn check(self, problems: &mut Problems<'_>) -> Option<Worker> {
        let slots = problems.count(&self.slots, &limits::SLOTS);
        let lease = problems.length(&self.lease, &limits::LEASE);
        Some(Worker { slots: slots?, lease: lease? })
    }
}

impl RawOpenStack {
    fn check(self, problems: &mut Problems<'_>) -> Option<OpenStack> {
        let clouds_file = path_or(&self.clouds_file, limits::CLOUDS_FILE, problems, values::absolute_path);
        let cloud = problems.need(&self.here, &self.cloud, "\"my-cloud\"", |text| values::word(text));
        let request_timeout = problems.length(&self.request_timeout, &limits::OPENSTACK_REQUEST_TIMEOUT);
        let poll = problems.length(&self.poll, &limits::OPENSTACK_POLL);
        Some(OpenStack {
            clouds_file: clouds_file?,
            cloud: cloud?,
            request_timeout: request_timeout?,
            poll: poll?,
        })
    }
}

impl RawNetBoot {
    /// None inside: it is left out, and no node needs it.
    fn check(self, may_be_left_out: bool, problems: &mut Problems<'_>) -> Option<Option<NetBoot>> {
        let reports = self.reports(problems);
        if may_be_left_out && self.directory.is_nothing() && self.url.is_nothing() && self.reports_listen.is_nothing() && self.reports_url.is_nothing() {
            return Some(None);
        }
        let directory =
            problems.need(&self.here, &self.directory, "\"/srv/netboot\"", |text| values::absolute_path(text));
        let url = problems.need(&self.here, &self.url, "\"http://192.0.2.1/boot\"", |text| values::netboot_url(text));
        Some(Some(NetBoot { directory: directory?, url: url?, reports: reports? }))
    }

    /// None inside: nobody listens to installers.
    fn reports(&self, problems: &mut Problems<'_>) -> Option<Option<InstallerReports>> {
        let listen = problems.maybe(&self.reports_listen, |text| values::listen(text));
        let url = problems.maybe(&self.reports_url, |text| values::reports_url(text));
        match (self.reports_listen.written(), self.reports_url.written()) {
            (Some(listen), None) if self.reports_url.is_nothing() => {
                problems.add(&listen.span, "nodes are not told where this is", "write `reports_url` too: the same as nodes have it, such as \"http://192.0.2.1:8470\"");
                None
            }
            (None, Some(url)) if self.reports_listen.is_nothing() => {
                problems.add(&url.span, "nobody listens there", "write `reports_listen` too: the address and port of this host, such as \"192.0.2.1:8470\"");
                None
            }
            _ => match (listen?, url?) {
                (Some(listen), Some(url)) => Some(Some(InstallerReports { listen, url })),
                _ => Some(None),
            },
        }
    }
}

impl RawSsh {
    fn check(self, problems: &mut Problems<'_>) -> Option<Ssh> {
        let program = path_or(&self.program, limits::SSH_PROGRAM, problems, values::program);
        let user = problems.or(&self.user, || limits::SSH_USER.to_owned(), |text| values::user(text));
        let identity_file = problems.maybe(&self.identity_file, |text| values::absolute_path(text));
        let known_hosts = path_or(&self.known_hosts, limits::SSH_KNOWN_HOSTS, problems, values::absolute_path);
        let connect_timeout = problems.length(&self.connect_timeout, &limits::SSH_CONNECT_TIMEOUT);
        Some(Ssh {
            program: program?,
            user: user?,
            identity_file: identity_file?,
            known_hosts: known_hosts?,
            connect_timeout: connect_timeout?,
        })
    }
}

impl RawIpmi {
    fn check(self, problems: &mut Problems<'_>) -> Option<Ipmi> {
        let program = path_or(&self.program, limits::IPMITOOL, problems, values::program);
        let request_timeout = problems.length(&self.request_timeout, &limits::IPMI_REQUEST_TIMEOUT);
        Some(Ipmi { program: program?, request_timeout: request_timeout? })
    }
}

impl RawIronic {
    fn check(self, problems: &mut Problems<'_>) -> Option<Ironic> {
        let url = problems.maybe(&self.url, |text| values::web_url(text));
        let configdrive = problems.maybe(&self.configdrive, |text| values::node_file(text));
        Some(Ironic { url: url?, configdrive: configdrive? })
    }
}

impl RawSetup {
    /// None inside: there is no script.
    fn check(self, problems: &mut Problems<'_>) -> Option<Option<Setup>> {
        let program = problems.maybe(&self.program, |text| values::absolute_path(text));
        let directory = problems.maybe(&self.directory, |text| values::absolute_path(text));
        let vault_password = secret(&self.vault_password_file, &self.vault_password_credential, problems);
        let deploy = arguments(&self.deploy, &limits::SETUP_DEPLOY, problems);
        let fetch = arguments(&self.fetch, &limits::SETUP_FETCH, problems);
        if let Some(written) = self.fetch.written()
            && let Some(one) = written.value.iter().find(|one| one.value.contains(values::NODE))
        {
            problems.add(&one.span, "this run is for all nodes at once", "leave `{node}` out; `deploy` is for one node");
        }
        let fetch_deadline = problems.length(&self.fetch_deadline, &limits::FETCH_DEADLINE);
        let deploy_deadline = problems.length(&self.deploy_deadline, &limits::DEPLOY_DEADLINE);
        if self.program.is_nothing() {
            let keys = [
                self.directory.written().map(|written| &written.key),
                self.vault_password_file.written().map(|written| &written.key),
                self.vault_password_credential.written().map(|written| &written.key),
                self.fetch.written().map(|written| &written.key),
                self.fetch_deadline.written().map(|written| &written.key),
                self.deploy.written().map(|written| &written.key),
                self.deploy_deadline.written().map(|written| &written.key),
            ];
            for lonely in keys.into_iter().flatten() {
                problems.add(lonely, "there is no `program` that this is for", "write `program` too, or leave it out");
            }
        }
        let (program, directory, vault_password) = (program?, directory?, vault_password?);
        let (deploy, deploy_deadline, fetch, fetch_deadline) = (deploy?, deploy_deadline?, fetch?, fetch_deadline?);
        Some(program.map(|program| {
            let beside = || program.parent().unwrap_or(&program).to_owned();
            let directory = directory.unwrap_or_else(beside);
            Setup { directory, program, vault_password, fetch, fetch_deadline, deploy, deploy_deadline }
        }))
    }
}

impl RawSilences {
    /// None inside: nothing is silenced.
    fn check(self, problems: &mut Problems<'_>) -> Option<Option<Silences>> {
        let url = problems.maybe(&self.url, |text| values::web_url(text));
        let token = secret(&self.token_file, &self.token_credential, problems);
        let ca_file = problems.maybe(&self.ca_file, |text| values::absolute_path(text));
        let matchers = self.matchers(problems);
        let lasts = problems.length(&self.lasts, &limits::SILENCE_LASTS);
        if self.url.is_nothing() {
            let keys = [
                self.token_file.written().map(|written| &written.key),
                self.token_credential.written().map(|written| &written.key),
                self.ca_file.written().map(|written| &written.key),
                self.matchers.written().map(|written| &written.key),
                self.lasts.written().map(|written| &written.key),
                self.alert_gate.written().map(|written| &written.key),
            ];
            for lonely in keys.into_iter().flatten() {
                problems.add(lonely, "there is no `url` that this is for", "write `url` too, or leave it out");
            }
        }
        let alert_gate = problems.or(&self.alert_gate, || true, |on| Ok(*on));
        let (url, token, ca_file, matchers, lasts, alert_gate) = (url?, token?, ca_file?, matchers?, lasts?, alert_gate?);
        Some(url.map(|url| Silences { url, token, ca_file, matchers, lasts, alert_gate }))
    }

    /// Where there is a `url`, at least one that names the node: a silence without it would keep every alert of the site quiet.
    fn matchers(&self, problems: &mut Problems<'_>) -> Option<Vec<Matcher>> {
        let Some(list) = self.matchers.written() else {
            if self.url.written().is_some() && self.matchers.is_nothing() {
                problems.missing(&self.here, "matchers", "['instance=~\"{node}(:[0-9]+)?\"']");
                return None;
            }
            return self.matchers.is_nothing().then(Vec::new);
        };
        if list.value.len() > limits::MATCHERS_MAX {
            let help = format!("write at most {}", limits::MATCHERS_MAX);
            problems.add(&list.span, "there are too many conditions for one silence", help);
        }
        let all: Vec<_> = list.value.iter().map(|one| problems.take(one, |text| values::matcher(text))).collect();
        let all: Vec<Matcher> = all.into_iter().collect::<Option<_>>()?;
        if !all.iter().any(|matcher| matcher.is_equal && matcher.value.contains(values::NODE)) {
            let help = "write `{node}` for the node's name in one of them, such as 'instance=~\"{node}(:[0-9]+)?\"'";
            problems.add(&list.span, "these silence alerts about every node", help);
            return None;
        }
        Some(all)
    }
}

impl RawKubernetes {
    /// None inside: no cluster is looked after.
    fn check(self, problems: &mut Problems<'_>) -> Option<Option<Kubernetes>> {
        let url = problems.maybe(&self.url, |text| values::web_url(text));
        let token = secret(&self.token_file, &self.token_credential, problems);
        let ca_file = problems.maybe(&self.ca_file, |text| values::absolute_path(text));
        let request_timeout = problems.length(&self.request_timeout, &limits::KUBERNETES_REQUEST_TIMEOUT);
        let drain_deadline = problems.length(&self.drain_deadline, &limits::DRAIN_DEADLINE);
        let min_ready = problems.length(&self.min_ready, &limits::MIN_READY);
        if self.url.is_nothing() {
            let keys = [
                self.token_file.written().map(|written| &written.key),
                self.token_credential.written().map(|written| &written.key),
                self.ca_file.written().map(|written| &written.key),
                self.request_timeout.written().map(|written| &written.key),
                self.drain_deadline.written().map(|written| &written.key),
                self.min_ready.written().map(|written| &written.key),
            ];
            for lonely in keys.into_iter().flatten() {
                problems.add(lonely, "there is no `url` that this is for", "write `url` too, or leave it out");
            }
        } else if self.token_file.is_nothing() && self.token_credential.is_nothing() {
            problems.missing(&self.here, "token_file", "\"/etc/turnaround/kubernetes.token\"");
            return None;
        }
        let (url, token, ca_file) = (url?, token?, ca_file?);
        let (request_timeout, drain_deadline, min_ready) = (request_timeout?, drain_deadline?, min_ready?);
        Some(url.zip(token).map(|(url, token)| Kubernetes { url, token, ca_file, request_timeout, drain_deadline, min_ready }))
    }
}

impl RawCanary {
    /// None inside: no instance is tried on a node.
    fn check(self, problems: &mut Problems<'_>) -> Option<Option<Canary>> {
        let image = problems.maybe(&self.image, |text| values::uuid(text));
        // (An operator may have given a flavour any id.)
        let flavor = problems.maybe(&self.flavor, |text| values::word(text));
        let network = problems.maybe(&self.network, |text| values::uuid(text));
        let console = problems.maybe(&self.console, |text| values::line(text));
        let deadline = problems.length(&self.deadline, &limits::CANARY_DEADLINE);
        if self.image.is_nothing() {
            let keys = [
                self.flavor.written().map(|written| &written.key),
                self.network.written().map(|written| &written.key),
                self.console.written().map(|written| &written.key),
                self.deadline.written().map(|written| &written.key),
            ];
            for lonely in keys.into_iter().flatten() {
                problems.add(lonely, "there is no `image` that this is for", "write `image` too, or leave it out");
            }
        } else if self.flavor.is_nothing() {
            problems.missing(&self.here, "flavor", "\"3f1c7a52-0c3e-4d2f-9a51-6a0a1c1f7e10\"");
            return None;
        }
        let (image, flavor, network, console, deadline) = (image?, flavor?, network?, console?, deadline?);
        Some(image.zip(flavor).map(|(image, flavor)| Canary { image, flavor, network, console, deadline }))
    }
}

impl RawNodeOs {
    fn check(self, problems: &mut Problems<'_>) -> Option<NodeOs> {
        let max_out = problems.count(&self.max_out, &limits::MAX_OUT);
        let moves_at_once = problems.count(&self.moves_at_once, &limits::MOVES_AT_ONCE);
        let words = [("ask", Pinned::Ask), ("cold", Pinned::Cold)];
        let pinned = problems.or(&self.pinned, Pinned::default, |text| values::one_of(text, &words));
        let owner_wait = problems.length(&self.owner_wait, &limits::OWNER_WAIT);
        let settle = problems.length(&self.settle, &limits::SETTLE);
        let evacuate_deadline = problems.length(&self.evacuate_deadline, &limits::EVACUATE_DEADLINE);
        if let (Some(written), Some(wait), Some(deadline)) = (self.owner_wait.written(), owner_wait, evacuate_deadline)
            && wait >= deadline
        {
            let help = "write a longer `evacuate_deadline` too, or wait for owners no longer than that";
            problems.add(&written.span, "owners can't be waited for until `evacuate_deadline`, when an operator is asked about the whole node", help);
        }
        if let (Some(written), Some(settle), Some(deadline)) = (self.settle.written(), settle, evacuate_deadline)
            && settle >= deadline
        {
            let help = "write a longer `evacuate_deadline` too, or a shorter `settle`";
            problems.add(&written.span, "a node could not be found empty before `evacuate_deadline`", help);
        }
        let install_deadline = problems.length(&self.install_deadline, &limits::INSTALL_DEADLINE);
        let installer_deadline = problems.length(&self.installer_deadline, &limits::INSTALLER_DEADLINE);
        let rejoin_deadline = problems.length(&self.rejoin_deadline, &limits::REJOIN_DEADLINE);
        let rejoin_settle = problems.length(&self.rejoin_settle, &limits::REJOIN_SETTLE);
        let words = Compared::ALL.map(|compared| (compared.as_str(), compared));
        let compare = match self.compare.written() {
            Some(list) => {
                let all: Vec<_> = list.value.iter().map(|one| problems.take(one, |text| values::one_of(text, &words))).collect();
                all.into_iter().collect()
            }
            None => self.compare.is_nothing().then(|| Compared::ALL.into()),
        };
        let poll = problems.length(&self.poll, &limits::NODE_POLL);
        Some(NodeOs {
            max_out: max_out?,
            moves_at_once: moves_at_once?,
            pinned: pinned?,
            owner_wait: owner_wait?,
            settle: settle?,
            evacuate_deadline: evacuate_deadline?,
            install_deadline: install_deadline?,
            installer_deadline: installer_deadline?,
            rejoin_deadline: rejoin_deadline?,
            rejoin_settle: rejoin_settle?,
            compare: compare?,
            poll: poll?,
        })
    }
}

impl RawMoveRule {
    fn check(self, problems: &mut Problems<'_>) -> Option<MoveRule> {
        let mut patterns = |field: &Field<Texts>| match field.written() {
            Some(list) => {
                let all: Vec<_> = list.value.iter().map(|one| problems.take(one, |text| values::line(text))).collect();
                all.into_iter().collect::<Option<Vec<_>>>()
            }
            None => field.is_nothing().then(Vec::new),
        };
        let (flavors, projects) = (patterns(&self.flavors), patterns(&self.projects));
        let words = [("ask", MoveHow::Ask), ("live", MoveHow::Live), ("cold", MoveHow::Cold)];
        let how = problems.need(&self.here, &self.how, "\"cold\"", |text| values::one_of(text, &words));
        let (flavors, projects) = (flavors?, projects?);
        if flavors.is_empty() && projects.is_empty() {
            problems.missing(&self.here, "flavors", "[\"gpu.*\"]");
            return None;
        }
        Some(MoveRule { flavors, projects, how: how? })
    }
}

impl RawTelemetry {
    fn check(self, problems: &mut Problems<'_>) -> Option<Telemetry> {
        let endpoint = problems.maybe(&self.endpoint, |text| values::web_url(text));
        let words = [("grpc", OtlpProtocol::Grpc), ("http", OtlpProtocol::Http)];
        let protocol = problems.or(&self.protocol, || OtlpProtocol::Grpc, |text| values::one_of(text, &words));
        let log = problems.or(&self.log, || limits::LOG.to_owned(), |text| values::log_filter(text));
        Some(Telemetry { endpoint: endpoint?, protocol: protocol?, log: log? })
    }
}

/// Arguments of the setup script, with a default.
fn arguments(field: &Field<Texts>, default: &[&str], problems: &mut Problems<'_>) -> Option<Vec<String>> {
    match field.written() {
        Some(list) => {
            let all: Vec<_> = list.value.iter().map(|one| problems.take(one, |text| values::argument(text))).collect();
            all.into_iter().collect()
        }
        None => field.is_nothing().then(|| default.iter().map(|&argument| argument.to_owned()).collect()),
    }
}

/// A path with a default.
fn path_or(
    field: &Field<String>,
    default: &str,
    problems: &mut Problems<'_>,
    parse: fn(&str) -> Result<PathBuf, Wrong>,
) -> Option<PathBuf> {
    problems.or(field, || PathBuf::from(default), |text| parse(text))
}

/// Where a password is, if anywhere. Both ways at once is a problem.
fn secret(
    file: &Field<Hidden>,
    credential: &Field<Hidden>,
    problems: &mut Problems<'_>,
) -> Option<Option<Secret>> {
    if let (Some(first), Some(second)) = (file.written(), credential.written()) {
        let named = |key: &Span| problems.text()[key.clone()].to_owned();
        let reason = format!("there are both `{}` and `{}`", named(&first.key), named(&second.key));
        problems.add(&second.key, reason, "leave one of the two out");
    }
    let file = problems.maybe(file, |path| values::secret_path(&path.0).map(Secret::File));
    let credential = problems.maybe(credential, |name| values::credential(&name.0).map(Secret::Credential));
    Some(file?.or(credential?))
}

/// Like `secret`, where one is needed.
fn needed_secret(
    here: &Here,
    file: &Field<Hidden>,
    credential: &Field<Hidden>,
    problems: &mut Problems<'_>,
) -> Option<Secret> {
    if file.is_nothing() && credential.is_nothing() && !here.plain_password {
        problems.missing(here, "password_file", "\"/etc/turnaround/bmc.password\"");
        return None;
    }
    secret(file, credential, problems)?
}
