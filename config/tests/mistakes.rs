//! Because an operator mends a file in one go only if all of its mistakes are shown in one go.
#![allow(clippy::unwrap_used)]

use turnaround_config::{Expect, Report, check, check_text};

/// What is required and nothing else.
const REQUIRED: &str = r#"site = "lab"
openstack.cloud = "lab"
netboot = { directory = "/srv/boot", url = "http://192.0.2.1/boot" }
"#;

/// Everything wrong with `tail` behind what is required.
fn report(tail: &str) -> Report {
    let text = format!("{REQUIRED}{tail}");
    match check_text("test.toml", &text) {
        Ok(_) => panic!("nothing was found wrong with\n{text}"),
        Err(report) => report,
    }
}

/// The only problem of `tail`: its reason and its help.
fn only(tail: &str) -> (String, String) {
    let report = report(tail);
    assert_eq!(report.count(), 1, "{report}");
    (report.problems()[0].reason().to_owned(), report.problems()[0].help().to_owned())
}

fn assert_only(tail: &str, reason: &str, help: &str) {
    assert_eq!(only(tail), (reason.to_owned(), help.to_owned()), "{tail}");
}

fn assert_good(tail: &str) {
    check_text("test.toml", &format!("{REQUIRED}{tail}")).unwrap();
}

const EIGHT: &str = r#"site = "lab"
state_dir = "var/lib/turnaround"

[openstack]
cloud = "lab"
request_timeout = "30 seconds"

[netboot]
directory = "/srv/boot"
url = "http://192.0.2.1/boot"

[worker]
slot = 8

[images.noble]
version = "2026.11.1"
sha256 = "4a5c6e0f8d2b1937a6e4c0d85f3b7291e6a8d4c0b2f19573e8c6a4d0b1f29375"
os_version_id = 24.04
kernel = "6.8.0-45-generic"
boot_kernel = "noble/vmlinuz"
boot_initrd = "noble/initrd"

[nodes.gpu-01]
mac = "02:00:5e:10:00:01"
bmc = { protocol = "ipmi", address = "192.0.2.11", user = "ops", password = "hunter2" }

[nodes.gpu-02]
mac = "02:00:5e:10:00:02"
bmc = { protocol = "ipmi", address = "192.0.2.11", user = "ops", password_file = "/etc/turnaround/bmc" }

[schedules.saturdays]
cron = "0 25 * * 6"
starts = "node-os"
image = "nobel"
"#;

#[test]
fn eight_mistakes_in_one_file_are_shown_at_once_each_with_its_line_and_remedy() {
    let report = check_text("/etc/turnaround/config.toml", EIGHT).unwrap_err();
    insta::assert_snapshot!(report, @r#"
    error: `var/lib/turnaround` is not an absolute path
     --> /etc/turnaround/config.toml:2:13
    2 | state_dir = "var/lib/turnaround"
      |             ^^^^^^^^^^^^^^^^^^^^ write the whole path from the root, beginning with a slash

    error: `30 seconds` is not a length of time
     --> /etc/turnaround/config.toml:6:19
    6 | request_timeout = "30 seconds"
      |                   ^^^^^^^^^^^^ write a number and a unit, such as "30s" or "4h"

    error: `slot` is not known in `[worker]`
      --> /etc/turnaround/config.toml:13:1
    13 | slot = ***
       | ^^^^ did you mean `slots`?

    error: `images.noble.os_version_id` must be text, not a number
      --> /etc/turnaround/config.toml:18:17
    18 | os_version_id = 24.04
       |                 ^^^^^ put it in quotes: "24.04"

    error: `nodes.gpu-01.bmc.password` would be a secret in this file
      --> /etc/turnaround/config.toml:25:66
    25 | bmc = { protocol = "ipmi", address = "192.0.2.11", user = "ops", password = *** }
       |                                                                  ^^^^^^^^ put it into a file of its own and write `password_file = "/..."`

    error: `gpu-01` and `gpu-02` have the same BMC
      --> /etc/turnaround/config.toml:29:38
    29 | bmc = { protocol = "ipmi", address = "192.0.2.11", user = "ops", password_file = *** }
       |                                      ^^^^^^^^^^^^ each node has its own: this one or the one in line 25 is wrong

    error: the hour field of a cron expression cannot be `25`
      --> /etc/turnaround/config.toml:32:11
    32 | cron = "0 25 * * 6"
       |           ^^ write a number from 0 to 23, or `*`, `1-5`, `1,3`, `*/15`

    error: there is no image `nobel`
      --> /etc/turnaround/config.toml:34:9
    34 | image = "nobel"
       |         ^^^^^^^ did you mean `noble`?

    8 problems in /etc/turnaround/config.toml; nothing was started
    "#);
}

#[test]
fn a_broken_file_is_reported_in_the_same_form() {
    let report = check_text("config.toml", "site = \"lab\"\n[worker]\nslots = four\nlease = \"10s\n[store]\npassword = \"hunter2\n").unwrap_err();
    insta::assert_snapshot!(report, @r#"
    error: this is not TOML: invalid boolean, expected `false`
     --> config.toml:3:9
    3 | slots = four
      |         ^^^^ put text in quotes; only numbers, true and false go without

    error: this is not TOML: invalid basic string, expected `"`
     --> config.toml:4:13
    4 | lease = "10s
      |             ^ end the text with a quotation mark

    error: this is not TOML: invalid basic string, expected `"`
     --> config.toml:6:20
    6 | password = ***
      |               ^ end the text with a quotation mark

    3 problems in config.toml; the rest is checked when these are mended; nothing was started
    "#);
}

#[test]
fn an_empty_file_is_told_what_it_needs() {
    insta::assert_snapshot!(check_text("config.toml", "").unwrap_err(), @r#"
    error: `site` is missing
      --> config.toml
       = write `site = "my-cloud"` at the top of the file

    error: `cloud` is missing in `[openstack]`
      --> config.toml
       = write `[openstack]` and under it `cloud = "my-cloud"`

    error: `directory` is missing in `[netboot]`
      --> config.toml
       = write `[netboot]` and under it `directory = "/srv/netboot"`

    error: `url` is missing in `[netboot]`
      --> config.toml
       = write `[netboot]` and under it `url = "http://192.0.2.1/boot"`

    4 problems in config.toml; nothing was started
    "#);
}

#[test]
fn a_file_that_is_not_there_is_reported_in_the_same_form() {
    insta::assert_snapshot!(check("/nonexistent/config.toml".as_ref()).unwrap_err(), @r#"
    error: could not read `/nonexistent/config.toml`: No such file or directory (os error 2)
      --> /nonexistent/config.toml
       = give the path of the configuration file by `--config`

    1 problem in /nonexistent/config.toml; nothing was started
    "#);
}

#[test]
fn a_file_that_is_no_text_or_far_too_large_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    std::fs::write(&path, b"site = \"lab\"\n# \xff\n").unwrap();
    assert!(check(&path).unwrap_err().to_string().contains("line 2 of "));
    std::fs::write(&path, vec![b'#'; 4 * 1024 * 1024 + 1]).unwrap();
    assert!(check(&path).unwrap_err().to_string().contains("too large"));
    std::fs::write(&path, REQUIRED).unwrap();
    check(&path).unwrap();
}

#[test]
fn a_key_written_twice_does_not_hide_the_other_problems() {
    let report = report("[worker]\nslots = 4\nslots = 5\nlease = \"soon\"\n");
    assert_eq!(report.count(), 2, "{report}");
}

#[test]
fn an_unknown_key_is_answered_with_the_known_one() {
    assert_only("[worker]\nslot = 4", "`slot` is not known in `[worker]`", "did you mean `slots`?");
    assert_only("[workers]\nslots = 4", "`workers` is not known at the top of the file", "did you mean `worker`?");
    assert_only("[store]\nlease = \"10s\"", "`lease` is not known in `[store]`", "it belongs under `[worker]`");
    assert_only("[worker]\ncolour = 1", "`colour` is not known in `[worker]`", "write `slots` or `lease`");
}

#[test]
fn a_value_of_a_wrong_type_is_answered_with_the_right_form() {
    for (tail, help) in [
        ("worker.slots = \"4\"", "write 4, without quotes"),
        ("worker.slots = 1.5", "write a whole number, without quotes"),
        ("worker.lease = 10", "write a number and a unit in quotes, such as \"10s\" or \"10min\""),
        ("store.accept_weaker_durability = \"yes\"", "write true or false, without quotes"),
        ("state_dir = 1", "put it in quotes: \"1\""),
        ("daemon.operators = \"ana\"", "write it as a list: [\"ana\"]"),
        ("daemon.operators = [1]", "put it in quotes: \"1\""),
        ("worker = 4", "write a table: a line `[worker]`, and its keys below it"),
        ("nodes = []", "write one table for each: a line `[nodes.NAME]`, and its keys below it"),
        ("nodes.a = 1", "write a table: a line `[nodes.a]`, and its keys below it"),
    ] {
        assert_eq!(only(tail).1, help, "{tail}");
    }
}

#[test]
fn numbers_and_lengths_keep_to_their_limits() {
    for (tail, help) in [
        ("worker.slots = 0", "write something from 1 to 1024"),
        ("worker.slots = 99999999999999999999", "write something from 1 to 1024"),
        ("worker.slots = -99999999999999999999", "write something from 1 to 1024"),
        ("worker.lease = \"500ms\"", "write something from \"1s\" to \"5min\""),
        ("worker.lease = \"6min\"", "write something from \"1s\" to \"5min\""),
        ("node_os.max_out = 0", "write something from 1 to 1000"),
        ("store.keep_finished = \"0s\"", "write something from \"1s\" to \"3650d\""),
    ] {
        assert_eq!(only(tail).1, help, "{tail}");
    }
    assert_good("worker.lease = \"1s\"\nstore.reply_timeout = \"500ms\"\nopenstack.poll = \"20ms\"");
    assert_only(
        "worker.lease = \"2s\"",
        "a worker would wait for a reply longer than it may be silent",
        "write a `store.reply_timeout` below the `worker.lease` of 2s",
    );
}

#[test]
fn what_is_done_with_pinned_instances_is_one_of_two_words() {
    assert_only("node_os.pinned = \"live\"", "`live` is not one of `ask` or `cold`", "write `ask` or `cold`");
    assert_only("node_os.pinned = \"could\"", "`could` is not one of `ask` or `cold`", "did you mean `cold`?");
    assert_eq!(only("node_os.pinned = true").1, "put it in quotes: \"true\"");
    assert_good("node_os.pinned = \"cold\"");
}

#[test]
fn a_rule_for_moves_says_which_instances_and_how() {
    assert_only("[moves.a]\nflavors = [\"gpu.*\"]\nhow = \"never\"", "`never` is not one of `ask`, `live` or `cold`", "write `ask`, `live` or `cold`");
    assert_only("[moves.a]\nflavors = [\"\"]\nhow = \"cold\"", "this is empty", "write something between the quotes");
    assert_good("[moves.a]\nprojects = [\"4f1e*\"]\nhow = \"ask\"");
    for tail in ["[moves.a]\nhow = \"cold\"", "[moves.a]\nflavors = []\nhow = \"cold\"", "[moves.a]\nflavors = [\"x\"]"] {
        only(tail);
    }
}

#[test]
fn what_is_compared_is_a_list_of_known_words() {
    let known = "`clock`, `data-disks`, `pci-devices`, `kernel-parameters` or `vlans`";
    assert_only("node_os.compare = [\"vlan\"]", &format!("`vlan` is not one of {known}"), "did you mean `vlans`?");
    assert_only("node_os.compare = [\"clock\", \"gpus\"]", &format!("`gpus` is not one of {known}"), &format!("write {known}"));
    assert_good("node_os.compare = []");
    assert_good("node_os.compare = [\"clock\", \"vlans\"]");
}

#[test]
fn spaces_in_a_log_filter_are_part_of_no_name() {
    let config = check_text("test.toml", &format!("{REQUIRED}telemetry.log = \" info, turnaround_worker=debug \"")).unwrap();
    assert_eq!(config.telemetry.log, "info,turnaround_worker=debug");
    let config = check_text("test.toml", &format!("{REQUIRED}telemetry.log = \"info, [step{{step=close}}]=debug\"")).unwrap();
    assert_eq!(config.telemetry.log, "info, [step{step=close}]=debug", "a filter of spans is left to the library");
    assert_only("telemetry.log = \"info,\"", "`` is not a log level", "write `off`, `error`, `warn`, `info`, `debug` or `trace`, or `TARGET=LEVEL`, with commas between them");
    for target in ["", "*", "a=b", "turnaround_worker "] {
        let help = "write the name of a crate or module before the `=`, such as `turnaround_worker=debug`";
        assert_only(&format!("telemetry.log = \"info,{target}=debug\""), &format!("`{target}` is not a target of log lines"), help);
    }
    assert_good("telemetry.log = \"warn,turnaround_workflows::store=TRACE\"");
}

#[test]
fn paths_are_absolute_and_sockets_fit() {
    for (tail, reason) in [
        ("state_dir = \"lib\"", "`lib` is not an absolute path"),
        ("daemon.socket = \"./api.sock\"", "`./api.sock` is not an absolute path"),
        ("openstack.clouds_file = \"~/clouds.yaml\"", "`~/clouds.yaml` is not an absolute path"),
        ("ssh.program = \"bin/ssh\"", "`bin/ssh` is neither the name of a program nor an absolute path"),
        ("ssh.program = \"ssh -v\"", "`ssh -v` is more than the name of a program"),
        ("ssh.identity_file = \"\"", "`` is not an absolute path"),
    ] {
        assert_eq!(only(tail).0, reason, "{tail}");
    }
    let long = format!("state_dir = \"/{}\"", "x".repeat(95));
    assert!(only(&long).1.ends_with("at least 6 characters shorter"), "{:?}", only(&long));
    assert_good(&format!("state_dir = \"/{}\"", "x".repeat(89)));
}

#[test]
fn redis_urls_are_sound_and_without_password() {
    for good in ["redis://192.0.2.5:6379/1", "rediss://redis.example", "unix:///run/redis.sock", "redis+unix:///run/r", "redis://ops@h"] {
        assert_good(&format!("store.url = \"{good}\""));
    }
    for bad in ["192.0.2.5:6379", "http://192.0.2.5", "redis://", "unix://run/redis.sock", "redis://h:70000", "redis://a b"] {
        only(&format!("store.url = \"{bad}\""));
    }
    let both = "[store]\nurl = \"redis://192.0.2.5\"\nembedded_program = \"valkey-server\"";
    assert_eq!(only(both).0, "there are both `url` and `embedded_program`");
    let lonely = "store.password_file = \"/etc/turnaround/redis\"";
    assert_eq!(only(lonely).0, "there is a password, but no `url` to use it with");
    let twice = "[store]\nurl = \"redis://192.0.2.5\"\npassword_file = \"/x\"\npassword_credential = \"redis\"";
    assert_eq!(only(twice).0, "there are both `password_file` and `password_credential`");
}

fn node(name: &str, keys: &str, bmc: &str) -> String {
    format!("[nodes.{name}]\n{keys}\nbmc = {{ user = \"ops\", password_file = \"/etc/bmc\", {bmc} }}\n")
}

#[test]
fn two_nodes_are_never_the_same_machine() {
    let one = node("a", "mac = \"02:00:5e:10:00:01\"", "protocol = \"redfish\", url = \"https://192.0.2.11\"");
    let other_mac = "mac = \"02:00:5e:10:00:02\"";
    let other_bmc = "protocol = \"redfish\", url = \"https://192.0.2.12\"";
    assert_good(&(one.clone() + &node("b", other_mac, other_bmc)));
    for (keys, bmc, what) in [
        ("mac = \"02:00:5E:10:00:01\"", other_bmc, "MAC address"),
        (other_mac, "protocol = \"redfish\", url = \"https://192.0.2.11/\"", "BMC and system"),
        (other_mac, "protocol = \"redfish\", url = \"https://192.0.2.11:443\"", "BMC and system"),
        (other_mac, "protocol = \"ipmi\", address = \"192.0.2.11\"", "BMC"),
        ("mac = \"02:00:5e:10:00:02\"\nnova_host = \"A\"", other_bmc, "nova_host"),
        ("mac = \"02:00:5e:10:00:02\"\nssh_address = \"a\"", other_bmc, "ssh_address"),
    ] {
        let (reason, _) = only(&(one.clone() + &node("b", keys, bmc)));
        assert_eq!(reason, format!("`a` and `b` have the same {what}"));
    }
    // Several systems behind one BMC are several machines.
    let system = "protocol = \"redfish\", url = \"https://192.0.2.11\", system = \"/redfish/v1/Systems/2\"";
    assert_good(&(one.clone() + &node("b", other_mac, system)));
    let elsewhere = "protocol = \"ipmi\", address = \"192.0.2.11\", port = 6230";
    assert_good(&(one + &node("b", other_mac, elsewhere)));
    let ipmi = |name, n, port| {
        let mac = format!("mac = \"02:00:5e:10:00:0{n}\"");
        node(name, &mac, &format!("protocol = \"ipmi\", address = \"127.0.0.1\", port = {port}"))
    };
    assert_good(&(ipmi("a", 1, 6230) + &ipmi("b", 2, 6231)));
    assert_eq!(only(&(ipmi("a", 1, 623) + &ipmi("b", 2, 623))).0, "`a` and `b` have the same BMC");
}

#[test]
fn a_node_is_written_as_its_protocol_needs() {
    let mac = "mac = \"02:00:5e:10:00:01\"";
    for (keys, bmc, reason) in [
        ("", "protocol = \"ipmi\", address = \"h\"", "`mac` is missing in `[nodes.a]`"),
        ("mac = \"02-00-5e-10-00-01\"", "protocol = \"ipmi\", address = \"h\"", "`02-00-5e-10-00-01` is not a MAC address"),
        ("mac = \"ff:ff:ff:ff:ff:ff\"", "protocol = \"ipmi\", address = \"h\"", "`ff:ff:ff:ff:ff:ff` is not the address of one interface"),
        (mac, "protocol = \"ipmi\"", "`address` is missing in `[nodes.a.bmc]`"),
        (mac, "protocol = \"ipmi\", address = \"10.0.0.300\"", "`10.0.0.300` is not a host name or an address"),
        (mac, "protocol = \"ipmi\", address = \"h\", url = \"https://h\"", "`url` has no meaning for ipmi"),
        (mac, "protocol = \"ipmi\", address = \"h\", cipher_suite = 0", "`nodes.a.bmc.cipher_suite` is out of range"),
        (mac, "protocol = \"redfish\", url = \"https://h/redfish/v1\"", "there is a path in `https://h/redfish/v1`"),
        (mac, "protocol = \"redfish\", url = \"https://ops:canary@h\"", "there is a user name or a password in this URL"),
        (mac, "protocol = \"snmp\", address = \"h\"", "`snmp` is not one of `redfish` or `ipmi`"),
    ] {
        assert_eq!(only(&node("a", keys, bmc)).0, reason);
    }
    let missing = "[nodes.a]\nmac = \"02:00:5e:10:00:01\"\nbmc = { protocol = \"ipmi\", address = \"h\", user = \"ops\" }";
    assert_eq!(only(missing).0, "`password_file` is missing in `[nodes.a.bmc]`");
    assert_eq!(only(&node("\"a b\"", &format!("{mac}\nnova_host = \"a\"\nssh_address = \"a\""), "protocol = \"ipmi\", address = \"h\"")).0, "`a b` cannot be a name here");
}

fn schedule(keys: &str) -> String {
    format!("[schedules.s]\n{keys}\n")
}

#[test]
fn a_schedule_says_which_part_of_it_is_wrong() {
    let survey = "starts = \"survey\"\n";
    for (keys, reason, help) in [
        ("cron = \"0 0 31 2 *\"", "`0 0 31 2 *` never fires", "there is no such day: check the day of month and the month"),
        ("cron = \"0 0 31 2 */7\"", "`0 0 31 2 */7` never fires", "there is no such day: check the day of month and the month"),
        ("cron = \"@daily\"", "this cron expression has 1 field, not five", "write \"0 0 * * *\""),
        ("cron = \"0 0 2 * * *\"", "this cron expression has 6 fields, not five", "leave out the seconds, or write `dialect = \"quartz\"` too"),
        ("cron = \"0 2 * * 8\"", "the day of week field of a cron expression cannot be `8`", "write a number from 0 to 7, or SUN to SAT; 0 and 7 are Sunday, or `*`, `1-5`, `1,3`, `*/15`"),
        ("cron = \"0 2 * FOO *\"", "the month field of a cron expression cannot be `FOO`", "write a number from 1 to 12, or JAN to DEC, or `*`, `1-5`, `1,3`, `*/15`"),
        ("cron = \"0 0 2 * * 0\"\ndialect = \"quartz\"", "the day of week field of a cron expression cannot be `0`", "write a number from 1 to 7, or SUN to SAT; 1 is Sunday, or `*`, `1-5`, `1,3`, `*/15`"),
        ("cron = \"0 0 0 31 2 ?\"\ndialect = \"quartz\"", "`0 0 0 31 2 ?` never fires", "there is no such day: check the day of month and the month"),
        ("cron = \"0 2 * * *\"\ntimezone = \"Berlin\"", "`Berlin` is not a time zone", "did you mean `Europe/Berlin`?"),
        ("cron = \"0 2 * * *\"\ntimezone = \"europe/berlin\"", "`europe/berlin` is not a time zone", "did you mean `Europe/Berlin`?"),
        ("cron = \"0 2 * * *\"\ncatch_up = \"last\"", "`last` is not one of `skip`, `latest` or `all`", "did you mean `latest`?"),
        ("cron = \"0 2 * * *\"\nimage = \"noble\"", "`image` has no meaning for a survey, which reads every node", "leave it out, or write `starts = \"node-os\"`"),
        ("cron = \"0 2 * * *\"\nnodes = []", "`nodes` has no meaning for a survey, which reads every node", "leave it out, or write `starts = \"node-os\"`"),
    ] {
        let report = report(&schedule(&format!("{survey}{keys}")));
        let problem = &report.problems()[0];
        assert_eq!((problem.reason(), problem.help()), (reason, help));
    }
    for good in ["cron = \"*/15 8-18 * * MON-FRI\"", "cron = \"0 0 29 2 *\"", "cron = \"0 0 2 ? * SUN 2027\"\ndialect = \"quartz\""] {
        assert_good(&schedule(&format!("{survey}{good}")));
    }
}

#[test]
fn a_renewal_needs_an_image_that_exists() {
    let renewal = "cron = \"0 2 * * *\"\nstarts = \"node-os\"\n";
    assert_only(&schedule(renewal), "`image` is missing in `[schedules.s]`", "add `image = \"one of [images]\"`");
    let unknown = schedule(&format!("{renewal}image = \"noble\""));
    assert_only(&unknown, "there is no image `noble`", "add `[images.noble]`");
}

#[test]
fn a_schedule_names_images_and_nodes_that_exist_even_where_they_are_not_good() {
    let renewal = schedule("cron = \"0 2 * * *\"\nstarts = \"node-os\"\nimage = \"noble\"\nnodes = [\"a\", \"b\"]");
    let report = report(&format!("{renewal}[nodes.a]\nmac = \"x\"\n[images.noble]\nversion = \"1\"\n"));
    let about: Vec<_> = report.problems().iter().filter(|problem| problem.line() < 9).map(|p| p.reason()).collect();
    assert_eq!(about, ["there is no node `b`"], "{report}");
}

#[test]
fn sentinels_and_the_name_of_the_primary_go_together_and_without_a_url() {
    assert_good("[store]\nsentinel = [\"192.0.2.5:26379\", \"[2001:db8::5]:26379\"]\nprimary = \"ta\"\n");
    assert_only(
        "[store]\nsentinel = [\"192.0.2.5:26379\"]\n",
        "there is a `sentinel`, but no `primary` to ask it for",
        "write `primary = \"NAME\"` too: the name in `sentinel monitor NAME ..` of sentinel.conf",
    );
    assert_only(
        "[store]\nprimary = \"ta\"\n",
        "there is a `primary`, but no `sentinel` that knows it",
        "write `sentinel = [\"HOST:26379\", ..]` too, or leave it out",
    );
    assert_only(
        "[store]\nurl = \"redis://192.0.2.5:6379\"\nsentinel = [\"192.0.2.5:26379\"]\nprimary = \"ta\"\n",
        "there are both `url` and `sentinel`",
        "leave out `url` if Sentinel is to name the primary, or `sentinel` if it is always the one at `url`",
    );
    assert_only(
        "[store]\nembedded_program = \"redis-server\"\nsentinel = [\"192.0.2.5:26379\"]\nprimary = \"ta\"\n",
        "there are both `sentinel` and `embedded_program`",
        "leave out `sentinel` for a private Redis, or `embedded_program` for the one that Sentinel names",
    );
    assert_only("[store]\nsentinel = [\"192.0.2.5\"]\nprimary = \"ta\"\n", "`192.0.2.5` has no port", "write it like \"192.0.2.5:26379\"");
    let (reason, _) = only("[store]\nsentinel = []\nprimary = \"ta\"\n");
    assert_eq!(reason, "`store.sentinel` has 1 to 16 Sentinels");
    let (reason, _) = only("[store]\nsentinel = [\"redis://:hunter2@192.0.2.5:26379\"]\nprimary = \"ta\"\n");
    assert!(!reason.contains("hunter2"), "{reason}");
    // Its password is the primary's.
    assert_good("[store]\nsentinel = [\"a:1\"]\nprimary = \"ta\"\npassword_file = \"/etc/x\"\n");
}

#[test]
fn a_setup_script_is_told_wholly_or_not_at_all() {
    let lonely = ("there is no `program` that this is for", "write `program` too, or leave it out");
    for line in ["directory = \"/opt\"", "deploy = [\"--tags\"]", "deploy_deadline = \"1h\"", "vault_password_credential = \"vault\""] {
        assert_only(&format!("[setup]\n{line}\n"), lonely.0, lonely.1);
    }
    let setup = |more: &str| format!("[setup]\nprogram = \"/opt/setup.sh\"\n{more}\n");
    assert_good(&setup("deploy = [\"--limit={node}\"]"));
    assert_good("[setup]\n");
    assert_only(&setup("deploy = [\"--limit={host}\"]"), "`--limit={host}` has a brace that means nothing", "write `{node}` for the node's name");
    assert_only(&setup("deploy = [\"\"]"), "this is not an argument", "write 1 to 1024 characters, without line breaks");
    let both = setup("vault_password_file = \"/etc/vault\"\nvault_password_credential = \"vault\"");
    assert_only(&both, "there are both `vault_password_file` and `vault_password_credential`", "leave one of the two out");
}

#[test]
fn silences_name_the_node_or_would_keep_everything_quiet() {
    let lonely = ("there is no `url` that this is for", "write `url` too, or leave it out");
    for line in ["lasts = \"1h\"", "alert_gate = false", "matchers = ['node=\"{node}\"']", "token_credential = \"grafana\"", "ca_file = \"/etc/ca.pem\""] {
        assert_only(&format!("[silences]\n{line}\n"), lonely.0, lonely.1);
    }
    let silences = |matchers: &str| format!("[silences]\nurl = \"http://192.0.2.9:9093\"\nmatchers = [{matchers}]\n");
    assert_good("[silences]\n");
    assert_good(&silences(r#"'instance=~"{node}(:[0-9]+)?"', 'severity!="critical"', ' job = node ', 'a!~b', 'b=~"x\\.y \"z\""'"#));
    assert_only("[silences]\nurl = \"http://192.0.2.9:9093\"\n", "`matchers` is missing in `[silences]`", "add `matchers = ['instance=~\"{node}(:[0-9]+)?\"']`");
    let all = "these silence alerts about every node";
    for matchers in ["", "'severity=\"warning\"'", "'instance!=\"{node}\"'"] {
        assert_eq!(only(&silences(matchers)).0, all, "{matchers}");
    }
    for wrong in ["instance", "=x", "9a=x", "a=", "a=\"x", "a=\"\"x", "a ~ x"] {
        let (reason, _) = only(&silences(&format!("'n=\"{{node}}\"', '{wrong}'")));
        assert_eq!(reason, format!("`{wrong}` is no condition on a label"));
    }
}

#[test]
fn a_cluster_is_told_with_its_token_or_not_at_all() {
    let lonely = ("there is no `url` that this is for", "write `url` too, or leave it out");
    for line in ["token_file = \"/etc/t\"", "token_credential = \"kubernetes\"", "ca_file = \"/etc/ca.pem\"", "request_timeout = \"9s\"", "drain_deadline = \"1h\"", "min_ready = \"9s\""] {
        assert_only(&format!("[kubernetes]\n{line}\n"), lonely.0, lonely.1);
    }
    let cluster = |more: &str| format!("[kubernetes]\nurl = \"https://192.0.2.7:6443\"\n{more}\n");
    assert_good("[kubernetes]\n");
    assert_good(&cluster("token_credential = \"kubernetes\""));
    assert_only(&cluster(""), "`token_file` is missing in `[kubernetes]`", "add `token_file = \"/etc/turnaround/kubernetes.token\"`");
    let both = cluster("token_file = \"/etc/t\"\ntoken_credential = \"kubernetes\"");
    assert_only(&both, "there are both `token_file` and `token_credential`", "leave one of the two out");
    assert_eq!(only(&cluster("token_file = \"/etc/t\"\ndrain_deadline = \"90 mins\"")).0, "`90 mins` is not a length of time");
}

#[test]
fn a_canary_has_an_image_and_a_flavour_or_there_is_none() {
    let lonely = ("there is no `image` that this is for", "write `image` too, or leave it out");
    for line in ["flavor = \"tiny\"", "network = \"b9f0c6d4-5a3e-4a0b-8d57-2f0c9b1e7a33\"", "console = \"login:\"", "deadline = \"9min\""] {
        assert_only(&format!("[canary]\n{line}\n"), lonely.0, lonely.1);
    }
    let canary = |more: &str| format!("[canary]\nimage = \"6d1f7a0e-8a4c-4a57-9f6e-0d3b2c1a4e55\"\n{more}\n");
    assert_good("[canary]\n");
    assert_good(&canary("flavor = \"tiny\"\nnetwork = \"B9F0C6D4-5a3e-4a0b-8d57-2f0c9b1e7a33\"\nconsole = \"ready to log in\"\ndeadline = \"9min\""));
    let flavor = "add `flavor = \"3f1c7a52-0c3e-4d2f-9a51-6a0a1c1f7e10\"`";
    assert_only(&canary(""), "`flavor` is missing in `[canary]`", flavor);
    for wrong in ["cirros", "6d1f7a0e-8a4c-4a57-9f6e-0d3b2c1a4e5", "6d1f7a0e8a4c4a579f6e0d3b2c1a4e55", "6d1f7a0e-8a4c-4a57-9f6e-0d3b2c1a4e5g"] {
        assert_eq!(only(&canary(&format!("flavor = \"tiny\"\nnetwork = \"{wrong}\""))).0, format!("`{wrong}` is not an id"));
    }
    assert_eq!(only(&canary("flavor = \"a tiny one\"")).0, "there is a blank in `a tiny one`");
    assert_eq!(only(&canary("flavor = \"tiny\"\nconsole = \"\"")).0, "this is empty");
}

#[test]
fn a_silence_is_about_one_node_and_none_whose_name_begins_alike() {
    for value in ["{node}.*", "a-{node}[0-9]*", "({node}|x)|{node}.+"] {
        let text = format!("[silences]\nurl = \"http://192.0.2.9:9093\"\nmatchers = ['instance=~\"{value}\"']\n");
        assert_eq!(only(&text).0, format!("`instance=~\"{value}\"` is also about nodes whose names begin with this one's"));
    }
}

/// Images for our own installer, for Ironic, and for both, and a schedule.
fn ways(image: &str, nodes: &str) -> String {
    let keys = format!("version = \"1\"\nsha256 = \"{}\"\nos_version_id = \"24.04\"\nkernel = \"6.8\"\n", "a".repeat(64));
    let (boot, ironic) = ("boot_kernel = \"k\"\nboot_initrd = \"i\"\n", "ironic_image = \"http://192.0.2.1/n.raw\"\n");
    format!(
        "[nodes.ours]\nmac = \"02:00:5e:10:00:0a\"\nbmc = {{ protocol = \"ipmi\", address = \"192.0.2.9\", user = \"u\", password_file = \"/etc/p\" }}\n\
         [nodes.theirs]\nmac = \"02:00:5e:10:00:0b\"\nironic = {{}}\n\
         [images.boot]\n{keys}{boot}[images.ironic]\n{keys}{ironic}[images.both]\n{keys}{boot}{ironic}\
         [schedules.weekly]\ncron = \"0 22 * * 6\"\nstarts = \"node-os\"\nimage = \"{image}\"\nnodes = [{nodes}]\n"
    )
}

#[test]
fn a_node_is_renewed_in_one_way_and_by_an_image_that_can_be_written_so() {
    assert_good(&ways("both", ""));
    assert_good(&ways("boot", "\"ours\""));
    assert_good(&ways("ironic", "\"theirs\""));
    assert_only(
        &ways("boot", ""),
        "Ironic renews `theirs`, and `boot` does not say what is to be written there",
        "add `ironic_image = \"http://192.0.2.1/images/node.raw\"` to `[images.boot]`",
    );
    assert_only(
        &ways("ironic", "\"ours\""),
        "our installer renews `ours`, and `ironic` does not say what is to be written there",
        "add `boot_kernel = \"noble/vmlinuz\"` and `boot_initrd = \"noble/initrd\"` to `[images.ironic]`",
    );
    let both = "mac = \"02:00:5e:10:00:01\"\nironic.node = \"rack7\"";
    assert_only(
        &node("a", both, "protocol = \"ipmi\", address = \"h\""),
        "there are both `bmc` and `ironic`",
        "leave out `ironic` if Turnaround installs this node by its BMC, or `bmc` if Ironic does",
    );
    let (reason, help) = only("[nodes.a]\nmac = \"02:00:5e:10:00:01\"\n");
    assert_eq!(reason, "`bmc` is missing in `[nodes.a]`");
    assert!(help.ends_with("`, or, if Ironic renews it, `ironic = {}`"), "{help}");
    assert_eq!(only("[nodes.a]\nmac = \"02:00:5e:10:00:01\"\nironic.nod = \"x\"\n").1, "did you mean `node`?");
    assert_eq!(only("[nodes.a]\nmac = \"02:00:5e:10:00:01\"\nironic.node = \"x\"\n[nodes.b]\nmac = \"02:00:5e:10:00:02\"\nironic.node = \"X\"\n").0, "`a` and `b` have the same node of Ironic's");
    assert_eq!(only("[nodes.a]\nironic = {}\nmac = \"02-00-5e-10-00-01\"\n").0, "`02-00-5e-10-00-01` is not a MAC address");
    assert_eq!(only("[nodes.a]\nironic = {}\n").0, "`mac` is missing in `[nodes.a]`");
    assert_eq!(only(&ways("ironic", "\"theirs\"").replacen("http://192.0.2.1/n.raw", "noble-2026-11", 1)).0, "`noble-2026-11` is not an http or https URL");
    let lonely = ways("boot", "\"ours\"").replacen("[images.ironic]", &format!("ironic_sha256 = \"{}\"\n[images.ironic]", "b".repeat(64)), 1);
    assert_only(&lonely, "there is no `ironic_image` that this is the digest of", "write `ironic_image` too, or leave it out");
    assert_only("[ironic]\nconfigdrive = \"drive.json\"\n", "`drive.json` is not an absolute path", "write the whole path from the root, beginning with a slash");
    assert_only("[ironic]\nconfigdrive = \"/etc/{nod}.json\"\n", "`/etc/{nod}.json` has a brace that means nothing", "write `{node}` for the node's name");
}

#[test]
fn a_site_whose_nodes_ironic_renews_needs_no_pxe_server() {
    let site = "site = \"lab\"\nopenstack.cloud = \"lab\"\n[nodes.a]\nmac = \"02:00:5e:10:00:0c\"\nironic = {}\n";
    assert!(check_text("c", site).unwrap().netboot.is_none());
    let half = format!("{site}[netboot]\ndirectory = \"/srv/boot\"\n");
    assert_eq!(check_text("c", &half).unwrap_err().problems()[0].reason(), "`url` is missing in `[netboot]`");
    let mixed = format!("{site}[nodes.b]\nmac = \"02:00:5e:10:00:0a\"\nbmc = {{ protocol = \"ipmi\", address = \"h\", user = \"u\", password_file = \"/p\" }}\n");
    assert_eq!(check_text("c", &mixed).unwrap_err().problems()[0].reason(), "`directory` is missing in `[netboot]`");
}

#[test]
fn grub_is_sent_to_no_url_that_it_can_not_fetch_from() {
    let site = |url: &str| {
        let text = format!("site = \"lab\"\nopenstack.cloud = \"lab\"\n[netboot]\ndirectory = \"/srv/boot\"\nurl = \"{url}\"\n");
        check_text("c", &text).map(|config| config.netboot.unwrap().url).map_err(|report| {
            assert_eq!(report.count(), 1, "{report}");
            (report.problems()[0].reason().to_owned(), report.problems()[0].help().to_owned())
        })
    };
    assert_eq!(site("http://pxe.example:8080/boot/").unwrap(), "http://pxe.example:8080/boot");
    let help = "write \"http://pxe.example:8443/boot\", and let the files be offered there by plain HTTP";
    assert_eq!(site("https://pxe.example:8443/boot/").unwrap_err(), ("GRUB fetches from here, and knows no https".to_owned(), help.to_owned()));
    assert_eq!(site("pxe.example/boot").unwrap_err().1, "write a URL such as \"http://192.0.2.1/boot\"");
}

#[test]
fn what_can_not_be_renewed_is_in_no_schedule() {
    let node = |carries: &str| {
        format!(
            "[nodes.gpu-1]\nmac = \"02:00:5e:10:00:0a\"\ncarries = [{carries}]\n\
             bmc = {{ protocol = \"ipmi\", address = \"192.0.2.9\", user = \"u\", password_file = \"/etc/p\" }}\n\
             [images.noble]\nversion = \"1\"\nsha256 = \"{}\"\nos_version_id = \"24.04\"\nkernel = \"6.8\"\nboot_kernel = \"k\"\nboot_initrd = \"i\"\n\
             [schedules.weekly]\ncron = \"0 22 * * 6\"\nstarts = \"node-os\"\nimage = \"noble\"\nnodes = [\"gpu-1\"]\n",
            "a".repeat(64)
        )
    };
    assert_good(&node("\"management\""));
    assert_only(
        &node("\"registry\", \"netboot\""),
        "`gpu-1` can't be renewed from here, because of what it `carries`",
        "leave it out, or move that elsewhere and change `nodes.gpu-1`",
    );
    assert!(only(&node("\"bastion\"")).0.contains("bastion"));
}

#[test]
fn where_installers_report_is_said_twice_or_not_at_all() {
    let site = |further: &str| {
        let netboot = "[netboot]\ndirectory = \"/srv/boot\"\nurl = \"http://192.0.2.1/boot\"\n";
        check_text("c", &format!("site = \"lab\"\nopenstack.cloud = \"lab\"\n{netboot}{further}"))
    };
    assert!(site("").unwrap().netboot.unwrap().reports.is_none());
    let reports = site("reports_listen = \"[2001:db8::1]:8470\"\nreports_url = \"http://pxe.example:8470/x/\"\n").unwrap().netboot.unwrap().reports.unwrap();
    assert_eq!((reports.listen.to_string(), reports.url), ("[2001:db8::1]:8470".to_owned(), "http://pxe.example:8470/x".to_owned()));
    let wrong = |further: &str| {
        let report = site(further).unwrap_err();
        assert_eq!(report.count(), 1, "{report}");
        assert!(report.to_string().contains("c:6:"), "{report}");
        report.problems()[0].reason().to_owned()
    };
    assert_eq!(wrong("reports_listen = \"192.0.2.1:8470\"\n"), "nodes are not told where this is");
    assert_eq!(wrong("reports_url = \"http://192.0.2.1:8470\"\n"), "nobody listens there");
    for listen in ["192.0.2.1", "pxe.example:8470", "192.0.2.1:0", ":8470"] {
        assert_eq!(wrong(&format!("reports_listen = \"{listen}\"\nreports_url = \"http://h\"\n")), format!("`{listen}` is not an address and a port"));
    }
    let long = format!("http://h/{}", "x".repeat(200));
    for url in ["http://h/a'b", "http://h/$x", &long] {
        assert!(site(&format!("reports_listen = \"192.0.2.1:8470\"\nreports_url = \"{url}\"\n")).unwrap_err().to_string().contains("does not fit into the kernel's command line"));
    }
}

#[test]
fn the_run_for_the_pxe_server_is_for_no_node() {
    let (reason, _) = only("[setup]\nprogram = \"/opt/setup.sh\"\nfetch = [\"--limit={node}\"]\n");
    assert_eq!(reason, "this run is for all nodes at once");
    assert_good("[setup]\nprogram = \"/opt/setup.sh\"\nfetch = []\n");
}

#[test]
fn a_check_names_nodes_that_there_are() {
    let nodes = "[nodes.gpu-01]\nmac = \"02:00:5e:10:00:01\"\nironic = {}\n[nodes.gpu-02]\nmac = \"02:00:5e:10:00:02\"\nironic = {}\n\
        [nodes.ceph-01]\nmac = \"02:00:5e:10:00:03\"\nironic = {}\n";
    let check = |chosen: &str| format!("{nodes}[checks.gpus]\ncommand = \"x\"\nnodes = [{chosen}]\n");
    let meant = |chosen: &str| {
        let config = check_text("test.toml", &format!("{REQUIRED}{}", check(chosen))).unwrap();
        config.checks.values().flat_map(|check| check.nodes.iter().map(|node| node.as_str().to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(meant("\"gpu-02\", \"gpu-*\""), ["gpu-01", "gpu-02"]);
    assert_eq!(meant("\"*-01\""), ["ceph-01", "gpu-01"]);
    assert_eq!(meant("\"*p*0*2\""), ["gpu-02"]);
    assert_eq!(meant("\"**\"").len(), 3);
    assert_eq!(meant(""), [] as [&str; 0]);
    assert_only(&check("\"gpu-1\""), "there is no node `gpu-1`", "did you mean `gpu-01`?");
    let help = "write a node's name, such as `gpu-01`, in which `*` may stand for any characters";
    assert_only(&check("\"gpo-*\""), "`gpo-*` fits no node", help);
    // A `1` is not there for both.
    assert_only(&check("\"gpu-01*1\""), "`gpu-01*1` fits no node", help);
    assert_only("[checks.gpus]\ncommand = \"x\"\nnodes = [\"*\"]\n", "`*` fits no node", "add a node under `[nodes]`, or leave this out");
    insta::assert_snapshot!(report("[nodes.gpu-01]\nmac = \"02:00:5e:10:00:01\"\nironic = {}\n[checks.gpus]\ncommand = \"x\"\nnodes = [\"gpu-*\", \"dgx-*\"]\n"), @r#"
    error: `dgx-*` fits no node
     --> test.toml:9:19
    9 | nodes = ["gpu-*", "dgx-*"]
      |                   ^^^^^^^ write a node's name, such as `gpu-01`, in which `*` may stand for any characters

    1 problem in test.toml; nothing was started
    "#);
}

#[test]
fn a_check_says_what_it_runs_and_one_thing_that_it_wants() {
    assert_good("[checks.gpus]\ncommand = \"nvidia-smi -L | wc -l\"\nexpect = \"8\"\n");
    assert_good("[checks.disks]\ncommand = \"lsblk\"\nas_found = true\n");
    assert!(only("[checks.gpus]\nexpect = \"8\"\n").0.contains("command"));
    let help = "write 1 to 1024 characters on one line, as you would type them on the node";
    assert_only("[checks.gpus]\ncommand = \"  \"\n", "this is not a command", help);
    let both = "[checks.gpus]\ncommand = \"x\"\nexpect = \"8\"\nas_found = true\n";
    let help = "leave out `expect` if it must be as it was before, or `as_found` if you know what it must be";
    assert_only(both, "there are both `expect` and `as_found`", help);
}

#[test]
fn blanks_at_both_ends_of_what_a_check_has_to_write_are_left_aside() {
    let check = |expect: &str| format!("[checks.gpus]\ncommand = \"x\"\nexpect = \"{expect}\"\n");
    for written in ["8 x", " 8 x", "8 x \\n"] {
        let config = check_text("test.toml", &format!("{REQUIRED}{}", check(written))).unwrap();
        let meant: Vec<_> = config.checks.values().map(|check| &check.expect).collect();
        assert_eq!(meant, [&Expect::Output("8 x".to_owned())], "{written}");
    }
    assert_only(&check(" \\n"), "this is empty", "write something between the quotes");
    assert!(only(&check("8\\n9")).0.starts_with("there is a line break"));
}

#[test]
fn no_time_that_a_node_is_waited_for_is_longer_than_the_patience_with_it() {
    let (reason, help) = only("[node_os]\nevacuate_deadline = \"60s\"\nsettle = \"60s\"\n");
    assert_eq!((reason.as_str(), help.as_str()), ("a node could not be found empty before `evacuate_deadline`", "write a longer `evacuate_deadline` too, or a shorter `settle`"));
    let (reason, _) = only("[node_os]\nevacuate_deadline = \"2h\"\nowner_wait = \"2h\"\n");
    assert!(reason.starts_with("owners can't be waited for until `evacuate_deadline`"), "{reason}");
    assert_good("[node_os]\nevacuate_deadline = \"61s\"\nsettle = \"60s\"\n");
}
