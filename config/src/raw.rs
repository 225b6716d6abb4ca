//! What was written: every table of the file with every key it may have.
//!
//! Because one list has to serve reading, finding unknown keys, and proving that `example.toml` is
//! complete, this is the only place that names the keys. A new key begins here; what it means and what its default
//! is stands in `check/` and `limits.rs`.

use crate::read::{Entries, Field, Here, Hidden, Named, Table, Texts, Timespan};

macro_rules! tables {
    ($($(#[$doc:meta])* $name:ident { $($key:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name {
            #[allow(dead_code, reason = "read only where a key of the table is required")]
            pub(crate) here: Here,
            $(pub(crate) $key: Field<$kind>,)*
        }

        impl Table for $name {
            const KEYS: &'static [&'static str] = &[$(stringify!($key)),*];

            fn from_entries(entries: &mut Entries<'_, '_>) -> $name {
                $name { $($key: entries.field(stringify!($key)),)* here: entries.here() }
            }

            fn known_keys(path: &str, into: &mut Vec<String>) {
                $(<$kind as crate::read::Kind>::known_keys(&crate::read::below(path, stringify!($key)), into);)*
            }
        }
    )*};
}

/// Every key that the file can have, by its dotted name; `NAME` stands for a name of the operator's choice:
/// `site`, `store.url`, `nodes.NAME.bmc.user`.
pub fn known_keys() -> Vec<String> {
    let mut keys = Vec::new();
    <RawConfig as Table>::known_keys("", &mut keys);
    keys
}

tables! {
    /// The whole file.
    RawConfig {
        site: String,
        state_dir: String,
        store: RawStore,
        daemon: RawDaemon,
        worker: RawWorker,
        openstack: RawOpenStack,
        netboot: RawNetBoot,
        ssh: RawSsh,
        ipmi: RawIpmi,
        ironic: RawIronic,
        setup: RawSetup,
        silences: RawSilences,
        kubernetes: RawKubernetes,
        canary: RawCanary,
        node_os: RawNodeOs,
        moves: Named<RawMoveRule>,
        checks: Named<RawCheck>,
        images: Named<RawImage>,
        nodes: Named<RawNode>,
        schedules: Named<RawSchedule>,
        telemetry: RawTelemetry,
    }

    /// `[store]`
    RawStore {
        url: String,
        sentinel: Texts,
        primary: String,
        password_file: Hidden,
        password_credential: Hidden,
        embedded_program: String,
        accept_weaker_durability: bool,
        reply_timeout: Timespan,
        keep_finished: Timespan,
    }

    /// `[daemon]`
    RawDaemon {
        socket: String,
        operators: Texts,
    }

    /// `[worker]`
    RawWorker {
        slots: i64,
        lease: Timespan,
    }

    /// `[openstack]`
    RawOpenStack {
        clouds_file: String,
        cloud: String,
        request_timeout: Timespan,
        poll: Timespan,
    }

    /// `[netboot]`
    RawNetBoot {
        directory: String,
        url: String,
        reports_listen: String,
        reports_url: String,
    }

    /// `[ssh]`
    RawSsh {
        program: String,
        user: String,
        identity_file: String,
        known_hosts: String,
        connect_timeout: Timespan,
    }

    /// `[ipmi]`
    RawIpmi {
        program: String,
        request_timeout: Timespan,
    }

    /// `[ironic]`
    RawIronic {
        url: String,
        configdrive: String,
    }

    /// `[setup]`
    RawSetup {
        program: String,
        directory: String,
        vault_password_file: Hidden,
        vault_password_credential: Hidden,
        fetch: Texts,
        fetch_deadline: Timespan,
        deploy: Texts,
        deploy_deadline: Timespan,
    }

    /// `[silences]`
    RawSilences {
        url: String,
        token_file: Hidden,
        token_credential: Hidden,
        ca_file: String,
        matchers: Texts,
        lasts: Timespan,
        alert_gate: bool,
    }

    /// `[kubernetes]`
    RawKubernetes {
        url: String,
        token_file: Hidden,
        token_credential: Hidden,
        ca_file: String,
        request_timeout: Timespan,
        drain_deadline: Timespan,
        min_ready: Timespan,
    }

    /// `[canary]`
    RawCanary {
        image: String,
        flavor: String,
        network: String,
        console: String,
        deadline: Timespan,
    }

    /// `[node_os]`
    RawNodeOs {
        max_out: i64,
        moves_at_once: i64,
        pinned: String,
        owner_wait: Timespan,
        settle: Timespan,
        evacuate_deadline: Timespan,
        install_deadline: Timespan,
        installer_deadline: Timespan,
        rejoin_deadline: Timespan,
        rejoin_settle: Timespan,
        compare: Texts,
        poll: Timespan,
    }

    /// `[moves.NAME]`
    RawMoveRule {
        flavors: Texts,
        projects: Texts,
        how: String,
    }

    /// `[checks.NAME]`
    RawCheck {
        command: String,
        expect: String,
        as_found: bool,
        nodes: Texts,
        time_limit: Timespan,
    }

    /// `[images.NAME]`
    RawImage {
        version: String,
        sha256: String,
        os_version_id: String,
        kernel: String,
        boot_kernel: String,
        boot_initrd: String,
        boot_arguments: String,
        ironic_image: String,
        ironic_sha256: String,
    }

    /// `[nodes.NAME]`
    RawNode {
        role: String,
        nova_host: String,
        ssh_address: String,
        carries: Texts,
        mac: String,
        bmc: RawBmc,
        ironic: RawNodeIronic,
    }

    /// `[nodes.NAME.ironic]`
    RawNodeIronic {
        node: String,
    }

    /// `[nodes.NAME.bmc]`: the keys of both protocols.
    RawBmc {
        protocol: String,
        url: String,
        system: String,
        ca_file: String,
        address: String,
        port: i64,
        cipher_suite: i64,
        user: String,
        password_file: Hidden,
        password_credential: Hidden,
    }

    /// `[schedules.NAME]`
    RawSchedule {
        cron: String,
        dialect: String,
        timezone: String,
        catch_up: String,
        max_lateness: Timespan,
        starts: String,
        nodes: Texts,
        image: String,
    }

    /// `[telemetry]`
    RawTelemetry {
        endpoint: String,
        protocol: String,
        log: String,
    }
}
