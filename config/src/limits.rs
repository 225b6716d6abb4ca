//! Every default and every bound, each with its reason.
//!
//! Because a default is a decision made for the operator, it stands here by name and not somewhere in the code.

use std::time::Duration;

/// What a number or a length may be, and what it is when nothing is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits<T> {
    pub(crate) least: T,
    pub(crate) default: T,
    pub(crate) most: T,
}

const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}
const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
const fn minutes(n: u64) -> Duration {
    seconds(n * 60)
}
const fn hours(n: u64) -> Duration {
    minutes(n * 60)
}
const fn days(n: u64) -> Duration {
    hours(n * 24)
}

/// Largest configuration file that is read.
// A thousand nodes need some 400 KB; ten times that is no configuration any more.
pub(crate) const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Longest site name. It is put into every note left in Nova, whose `disabled_reason` holds 255 characters.
pub(crate) const SITE_CHARS_MAX: usize = 63;

/// Longest path of a unix socket on Linux: `sun_path` has 108 bytes, the last one is NUL.
pub(crate) const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Where the private Redis puts its socket below `state_dir`; counted when `state_dir` is checked.
pub(crate) const REDIS_SOCKET_BELOW_STATE_DIR: &str = "redis/redis.sock";

/// The place the FHS gives to a service's own state.
pub(crate) const STATE_DIR: &str = "/var/lib/turnaround";

/// What `RuntimeDirectory=turnaround` creates and clears.
pub(crate) const SOCKET: &str = "/run/turnaround/api.sock";

/// Redis is packaged under this name everywhere; `valkey-server` has to be asked for.
pub(crate) const EMBEDDED_PROGRAM: &str = "redis-server";

/// The site-wide place of the three in which every OpenStack client looks for `clouds.yaml`.
pub(crate) const CLOUDS_FILE: &str = "/etc/openstack/clouds.yaml";

/// Sentinels that can be named. Three or five are usual, and as many as this are asked at once.
pub(crate) const SENTINELS_MAX: usize = 16;

/// From `PATH`, so that a site's wrapper is found where its operators find it.
pub(crate) const SSH_PROGRAM: &str = "ssh";

/// The user that Ubuntu's cloud images come with, and our nodes run Ubuntu.
pub(crate) const SSH_USER: &str = "ubuntu";

/// OpenSSH's own system-wide list of host keys.
pub(crate) const SSH_KNOWN_HOSTS: &str = "/etc/ssh/ssh_known_hosts";

/// From `PATH`, like `ssh`.
pub(crate) const IPMITOOL: &str = "ipmitool";

/// One system per BMC is the rule, and most vendors call it `1`; those that do not (`System.Embedded.1`) are read back
/// with 404, never with another machine.
pub(crate) const REDFISH_SYSTEM: &str = "/redfish/v1/Systems/1";

/// One line per thing done. `debug` would log every look at every node.
pub(crate) const LOG: &str = "info";

/// Workflows advanced at once by one worker. They mostly wait, so it may be more than there are cores; 1024 open
/// connections to a cloud's API would be an attack on it.
pub(crate) const SLOTS: Limits<u64> = Limits { least: 1, default: 16, most: 1024 };

/// Silence after which a worker is presumed dead.
// Three missed renewals of a third each. Under a second, a pause of the scheduler looks like a death; over five
// minutes, a dead worker holds up a maintenance window.
pub(crate) const LEASE: Limits<Duration> = Limits { least: seconds(1), default: seconds(10), most: minutes(5) };

/// Wait for one reply of the store.
// A reply takes well under a millisecond, an fsync of a busy disk up to a second.
pub(crate) const REPLY_TIMEOUT: Limits<Duration> =
    Limits { least: millis(10), default: seconds(2), most: minutes(1) };

/// Retention of finished workflows in Redis; the archive on disk stays.
// A month lets the monthly review see the last rollout.
pub(crate) const KEEP_FINISHED: Limits<Duration> = Limits { least: seconds(1), default: days(30), most: days(3650) };

/// One request to Keystone or Nova.
// A Nova under load takes 10 s for a listing; HAProxy in front of it gives up after 60.
pub(crate) const OPENSTACK_REQUEST_TIMEOUT: Limits<Duration> =
    Limits { least: millis(100), default: seconds(30), most: minutes(10) };

/// Between two looks at a running migration.
// A live migration takes tens of seconds; looking more often than every few only loads the API. Labs look faster.
pub(crate) const OPENSTACK_POLL: Limits<Duration> = Limits { least: millis(10), default: seconds(5), most: hours(1) };

/// Until `ssh` has connected. A node that boots refuses at once; one that is off says nothing.
pub(crate) const SSH_CONNECT_TIMEOUT: Limits<Duration> =
    Limits { least: seconds(1), default: seconds(10), most: minutes(5) };

/// One `ipmitool` call. BMCs are slow: their own retries take some 4 s, and power commands up to 10.
pub(crate) const IPMI_REQUEST_TIMEOUT: Limits<Duration> =
    Limits { least: millis(100), default: seconds(20), most: minutes(5) };

/// The officially assigned port of RMCP.
pub(crate) const IPMI_PORT: Limits<u64> = Limits { least: 1, default: 623, most: 65535 };

/// ipmitool's `-C`. 3 is what every IPMI 2.0 BMC must offer.
// 0 is not allowed: with it the BMC asks for no password at all, so anybody could switch the node off.
pub(crate) const IPMI_CIPHER_SUITE: Limits<u64> = Limits { least: 1, default: 3, most: 17 };

/// Longest user name that IPMI 2.0 can carry.
pub(crate) const IPMI_USER_BYTES_MAX: usize = 16;

/// Nodes out of service at once. One, until the operator says how much the cloud can spare.
pub(crate) const MAX_OUT: Limits<u64> = Limits { least: 1, default: 1, most: 1000 };

/// Instances moved at once from one node. Nova's own `max_concurrent_live_migrations` is 1; two keep the next one
/// ready while the first ends.
pub(crate) const MOVES_AT_ONCE: Limits<u64> = Limits { least: 1, default: 2, most: 100 };

/// Until an operator is asked about what is left on a node.
// 80 instances at two at a time and 3 min each are 2 h; doubled.
pub(crate) const EVACUATE_DEADLINE: Limits<Duration> = Limits { least: seconds(1), default: hours(4), most: days(7) };

/// What has the PXE server load the image of the release, as Midokura's runbook "Node OS re-provisioning" has it, but for one tag: the whole
/// `--bootstrap` would work on the router and the fabric, too, and it goes on for up to 100 min.
pub(crate) const SETUP_FETCH: [&str; 3] = ["--bootstrap", "--tags", "pxesetup"];

/// Until an operator is asked about that run.
// An image of some GiB over a slow line; the rest takes minutes.
pub(crate) const FETCH_DEADLINE: Limits<Duration> = Limits { least: seconds(1), default: hours(2), most: days(2) };

/// What enables OpenStack on a node, as Midokura's page on `platform-setup.sh` has it.
pub(crate) const SETUP_DEPLOY: [&str; 2] = ["--tags", "openstack"];

/// Until an operator is asked about a run of the setup script.
// 20 to 40 min are documented; three times that, because nothing is gained by asking while it still works.
pub(crate) const DEPLOY_DEADLINE: Limits<Duration> = Limits { least: seconds(1), default: hours(2), most: days(2) };

/// Until a silence ends by itself.
// The deadlines of an installation, a run of the setup script and a hypervisor's return together: by then an operator is asked, and an alert is
// no surprise.
pub(crate) const SILENCE_LASTS: Limits<Duration> = Limits { least: minutes(1), default: hours(4), most: days(7) };

/// Conditions of one silence. Alerts have some ten labels.
pub(crate) const MATCHERS_MAX: usize = 20;

/// One request to a Kubernetes API server. It gives up its own requests after 60 s.
pub(crate) const KUBERNETES_REQUEST_TIMEOUT: Limits<Duration> = Limits { least: seconds(1), default: seconds(60), most: minutes(10) };

/// Until an operator is asked about what is left on a node that is drained.
// A pod has 30 s to end by default, databases some minutes; and its replacement must be ready elsewhere before a PodDisruptionBudget lets
// the next one go.
pub(crate) const DRAIN_DEADLINE: Limits<Duration> = Limits { least: seconds(1), default: minutes(15), most: hours(24) };

/// What a cluster node that was moved says of itself is believed after so long.
// Kubernetes calls a node Ready for another 40 s (50 s since 1.32) after its kubelet was last heard of (`node-monitor-grace-period`).
pub(crate) const MIN_READY: Limits<Duration> = Limits { least: seconds(1), default: seconds(60), most: hours(1) };

/// Until an operator is asked about an instance that is tried on a renewed node.
// It is built in a minute or two, moved in one, started in one; an image that no host has yet takes Glance some minutes.
pub(crate) const CANARY_DEADLINE: Limits<Duration> = Limits { least: seconds(1), default: minutes(15), most: hours(6) };

/// Until a check's command is given up. `dcgmi diag -r 1` takes seconds, `-r 2` two minutes, `-r 3` a quarter of an hour.
pub(crate) const CHECK_TIME_LIMIT: Limits<Duration> = Limits { least: seconds(1), default: seconds(30), most: hours(1) };

/// Longest argument that is given to the setup script. A name or a list of tags has some tens.
pub(crate) const ARGUMENT_CHARS_MAX: usize = 1024;

/// Until an operator is asked about an installation.
// A server's self-test takes up to 10 min, the image transfer and first boot 20; doubled.
pub(crate) const INSTALL_DEADLINE: Limits<Duration> =
    Limits { least: seconds(1), default: minutes(60), most: days(7) };

/// Until an operator is asked about an installer that has not reported, where they do.
// A server's self-test takes up to 15 min where it has much memory, and the transfer of kernel and initrd a minute or two.
pub(crate) const INSTALLER_DEADLINE: Limits<Duration> =
    Limits { least: seconds(1), default: minutes(20), most: days(7) };

/// Longest URL for reports. It goes into the kernel's command line with a token of up to 128 characters, and x86 has room for 2,048 in all.
pub(crate) const REPORTS_URL_CHARS_MAX: usize = 200;

/// Until an operator is asked about a hypervisor that is not back.
// It follows a deployment by Ansible of up to 40 min.
pub(crate) const REJOIN_DEADLINE: Limits<Duration> = Limits { least: seconds(1), default: minutes(60), most: days(7) };

/// A compute service that is back has to report for so long without a break.
// Nova takes a silent one for down after 60 s (`service_down_time`): one that is silent at once is up for that long.
pub(crate) const REJOIN_SETTLE: Limits<Duration> = Limits { least: millis(10), default: seconds(120), most: hours(1) };

/// From closing a node until it may be found empty.
// Between the choice of a node for an instance and the node's taking it stand the message queue and its time limit of 60 s. Steps of half an hour wait for it after
// an operator's word, so it is well below that.
pub(crate) const SETTLE: Limits<Duration> = Limits { least: millis(10), default: seconds(60), most: minutes(15) };

/// For the owner of an instance that only he can have moved.
// None by default: somebody has to tell owners that their instance is waited for, and Turnaround does not yet.
pub(crate) const OWNER_WAIT: Limits<Duration> = Limits { least: millis(0), default: seconds(0), most: hours(7 * 24) };

/// Between two looks at a node that is being installed or verified.
// Nothing in a boot happens faster than this; labs look faster.
pub(crate) const NODE_POLL: Limits<Duration> = Limits { least: millis(10), default: seconds(15), most: hours(1) };

/// How late a scheduled start may be.
// Longer than any restart of the daemon, shorter than the distance of two nightly windows.
pub(crate) const MAX_LATENESS: Limits<Duration> = Limits { least: seconds(1), default: hours(1), most: days(31) };
