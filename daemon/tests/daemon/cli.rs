//! The command, as it is typed: what it prints where, and how it ends.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use turnaround_daemon::api::caller::Access;
use turnaround_workflows::engine::{AnswerEffect, Event, Outcome, Question};
use turnaround_workflows::store::{Digest, Next, Resource, Take, WorkflowId};
use turnaround_workflows::updates::NODES_OUT;

use super::site::{KEEP, NOON, PATIENCE, Site, Wish, Work, at, begun, ended};

/// Of the user and the group `nobody`, who owns nothing.
const NOBODY: u32 = 65_534;

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test]
async fn exit_codes_tell_scripts_what_happened() {
    let site = Site::start().await;
    let id = site.rollout().await.to_string();
    let cases: [(&[&str], i32); 16] = [
        (&["status"], 0),
        (&["nodes"], 0),
        (&["workflows", "--all"], 0),
        (&["schedules"], 0),
        (&["jobs"], 0),
        (&["show", &id], 0),
        (&["journal", &id], 0),
        (&["pause", &id, "--why", "lunch"], 0),
        (&["resume", &id], 4),
        (&["answer", &id, "yes"], 4),
        (&["show", "nothing"], 5),
        (&["journal", "nothing"], 5),
        (&["node", "renew", "gpu-09", "--image", "noble-2", "--yes"], 5),
        (&["node", "renew", "gpu-01", "--image", "noble-9", "--yes"], 5),
        (&["node", "release", "gpu-01"], 4),
        (&["polish"], 2),
    ];
    for (arguments, code) in cases {
        let output = site.turnaround(arguments).await;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}{}", out(&output), err(&output));
    }
}

#[tokio::test]
async fn without_a_daemon_it_says_how_to_start_one() {
    let mut site = Site::start().await;
    site.stop().await;
    let output = site.turnaround(&["status"]).await;
    assert_eq!(output.status.code(), Some(3));
    assert!(err(&output).contains("systemctl start turnaround-daemon"), "{}", err(&output));
    assert_eq!(out(&output), "");
}

#[tokio::test]
async fn nothing_is_renewed_by_a_script_that_did_not_say_yes() {
    let site = Site::start().await;
    let output = site.turnaround(&["node", "renew", "gpu-01", "--image", "noble-2"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("would empty this node, install noble-2 on it"), "{}", err(&output));
    assert!(err(&output).contains("--yes"));
    assert_eq!(site.get("/v1/workflows?scope=all").await.1["workflows"], json!([]));
}

#[tokio::test]
async fn who_may_not_change_anything_is_told_what_to_add_where() {
    let site = Site::with(Wish { access: Access::only(Vec::new(), &[]), ..Wish::default() }).await;
    let output = site.turnaround(&["survey"]).await;
    assert_eq!(output.status.code(), Some(4));
    assert!(err(&output).contains("`daemon.operators`"), "{}", err(&output));
}

#[tokio::test]
async fn data_goes_to_stdout_and_talk_to_stderr() {
    let site = Site::start().await;
    let started = site.turnaround(&["node", "renew", "gpu-01", "--image", "noble-2", "--yes"]).await;
    let id = out(&started).trim().to_owned();
    assert!(id.starts_with("node-os-rollout-") && !id.contains(char::is_whitespace), "{id}");
    assert!(err(&started).contains(&id));
    for arguments in [&["show", &id][..], &["workflows"], &["status"], &["nodes"], &["schedules"], &["jobs"], &["journal", &id]] {
        let output = site.turnaround(&[&["--json"], arguments].concat()).await;
        serde_json::from_str::<Value>(&out(&output)).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
    }
    let problem = site.turnaround(&["--json", "show", "nothing"]).await;
    assert_eq!(out(&problem), "");
    assert!(serde_json::from_str::<Value>(&err(&problem)).is_ok());
}

#[tokio::test]
async fn an_ambiguous_id_is_not_guessed() {
    let site = Site::start().await;
    for _ in 0..2 {
        site.rollout().await;
    }
    let output = site.turnaround(&["abort", "node-os-rollout-"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("2 workflows begin with"), "{}", err(&output));
}

async fn wait_with(outcome: Outcome) -> Output {
    let site = Site::start().await;
    tokio::join!(site.turnaround(&RENEW_AND_WAIT), end_the_rollout(&site, outcome)).0
}

const RENEW_AND_WAIT: [&str; 7] = ["node", "renew", "gpu-01", "--image", "noble-2", "--yes", "--wait"];

/// Works on the only open workflow, once there is one, to its end.
async fn end_the_rollout(site: &Site, outcome: Outcome) {
    let id: WorkflowId = loop {
        let (_, listed) = site.get("/v1/workflows").await;
        match listed["workflows"][0]["id"].as_str() {
            Some(id) => break id.parse().unwrap(),
            None => tokio::task::yield_now().await,
        }
    };
    site.work(&id, vec![begun("renew-nodes")], Next::At(at(NOON))).await;
    let done = Event::StepSucceeded { step: "renew-nodes".to_owned(), output: json!({}), gave: Vec::new() };
    site.work(&id, vec![done, ended(outcome, "as told")], KEEP).await;
}

#[tokio::test]
async fn waiting_ends_with_the_rollout_and_as_it_did() {
    let good = wait_with(Outcome::Succeeded).await;
    assert_eq!(good.status.code(), Some(0), "{}", err(&good));
    assert!(out(&good).contains("succeeded"), "{}", out(&good));
    let bad = wait_with(Outcome::Failed).await;
    assert_eq!(bad.status.code(), Some(1), "{}", err(&bad));
}

#[tokio::test]
async fn what_a_tenant_writes_can_not_move_the_cursor() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let question = Question::new("what now?").seen("\u{1b}[2J\u{1b}]0;gone\u{7} \u{202e}").answer("retry", AnswerEffect::Retry, "tries again");
    let asked = Event::OperatorAsked { step: "renew-nodes".to_owned(), question };
    site.work(&id, vec![begun("renew-nodes"), asked], Next::Signal).await;
    for arguments in [&["show", id.as_str()][..], &["journal", id.as_str()], &["status"], &["events"], &["workflows"]] {
        let text = out(&site.turnaround(arguments).await);
        assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{arguments:?}: {text:?}");
    }
    let shown = out(&site.turnaround(&["show", id.as_str()]).await);
    assert!(shown.contains(&format!("turnaround answer {id} retry")), "{shown}");
}

#[tokio::test]
async fn a_broken_journal_fails_the_command() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let forged = Work { events: vec![begun("renew-nodes")], take: Vec::new(), next: Next::Signal, forged: Some(Digest([0; 32])), follows: None };
    forged.on(&*site.store, &id).await;
    let output = site.turnaround(&["journal", id.as_str()]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("BROKEN") && out(&output).contains("NOT SEALED"), "{}{}", out(&output), err(&output));
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_error() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_turnaround"))
        .args(["--socket", site.socket.to_str().unwrap(), "events", "--follow", "--after", "0-0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    site.work(&id, vec![begun("renew-nodes")], Next::At(at(NOON))).await;
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap();
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), ""));
}

/// The exit code of the command whose output nobody reads.
async fn unread(site: &Site, arguments: &[&str]) -> Option<i32> {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_turnaround"));
    command.arg("--socket").arg(&site.socket).args(arguments).stdin(Stdio::null()).stdout(writer).stderr(Stdio::null());
    tokio::time::timeout(PATIENCE, command.status()).await.expect("the command ends").unwrap().code()
}

#[tokio::test]
async fn an_exit_code_that_is_a_result_tells_it_also_where_nobody_reads_the_output() {
    let site = Site::start().await;
    for (outcome, code) in [(Outcome::Succeeded, 0), (Outcome::Failed, 1)] {
        let ended = tokio::join!(unread(&site, &RENEW_AND_WAIT), end_the_rollout(&site, outcome)).0;
        assert_eq!(ended, Some(code), "{outcome:?}");
    }
    let id = site.rollout().await;
    assert_eq!(unread(&site, &["journal", id.as_str()]).await, Some(0));
    let forged = Work { events: vec![begun("renew-nodes")], take: Vec::new(), next: Next::Signal, forged: Some(Digest([0; 32])), follows: None };
    forged.on(&*site.store, &id).await;
    assert_eq!(unread(&site, &["journal", id.as_str()]).await, Some(1));
    let file = site.folder.path().join("bad.toml");
    std::fs::write(&file, "sit = \"x\"\n").unwrap();
    assert_eq!(unread(&site, &["--json", "config", "check", file.to_str().unwrap()]).await, Some(78));
}

#[tokio::test]
async fn a_configuration_is_checked_without_a_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let run = async |text: &str, json: bool| {
        let file = folder.path().join("c.toml");
        std::fs::write(&file, text).unwrap();
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_turnaround"));
        command.args(["config", "check"]).arg(&file).args(json.then_some("--json"));
        command.output().await.unwrap()
    };
    let nightly = "[schedules.nightly]\ncron = \"30 2 * * *\"\nstarts = \"survey\"";
    let good = run(&super::site::config_text(nightly), false).await;
    assert_eq!(good.status.code(), Some(0), "{}", err(&good));
    assert!(out(&good).contains("nightly: survey") && out(&good).matches("  next ").count() == 5, "{}", out(&good));
    let bad = run("sit = \"x\"\n[store]\nreply_timeout = \"90 mins\"\n", false).await;
    assert_eq!((bad.status.code(), out(&bad).as_str()), (Some(78), ""));
    assert!(err(&bad).contains("90 mins") && err(&bad).contains("c.toml:3"), "{}", err(&bad));
    let json = run("sit = \"x\"\n", true).await;
    assert_eq!(json.status.code(), Some(78));
    assert!(serde_json::from_str::<Value>(&out(&json)).unwrap()["problems"].as_array().is_some_and(|problems| !problems.is_empty()));
}

#[tokio::test]
async fn without_a_terminal_one_record_is_one_line_and_has_no_colour() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let parked = Event::StepParked { step: "renew-nodes".to_owned(), until: None, note: "a very long note ".repeat(20) };
    site.work(&id, vec![begun("renew-nodes"), parked], Next::Signal).await;
    let text = out(&site.turnaround(&["workflows"]).await);
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(!text.contains('\u{1b}'));
}

#[tokio::test]
async fn an_order_whose_answer_was_lost_can_be_given_again() {
    let site = Site::start().await;
    let order = ["node", "renew", "gpu-01", "--image", "noble-2", "--yes", "--key", "k1"];
    let (first, second) = (site.turnaround(&order).await, site.turnaround(&order).await);
    assert_eq!(out(&first), out(&second), "{}", err(&second));
    let other = site.turnaround(&["node", "renew", "gpu-02", "--image", "noble-2", "--yes", "--key", "k1"]).await;
    assert_eq!(other.status.code(), Some(4), "{}", err(&other));
}

/// The command, whose first request the daemon carries out and whose answer to it never comes.
async fn with_its_first_answer_lost(site: &Site, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_turnaround"));
    command.arg("--socket").arg(&socket).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = command.spawn().unwrap();
    let mut asked = accept(&listener).await;
    let mut daemon = UnixStream::connect(&site.socket).await.unwrap();
    daemon.write_all(&until(&mut asked, "\r\n\r\n{}").await).await.unwrap();
    until(&mut daemon, "\r\n\r\n").await;
    // Its next try reaches the daemon itself.
    std::fs::remove_file(&socket).unwrap();
    std::os::unix::fs::symlink(&site.socket, &socket).unwrap();
    drop(asked);
    tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("the command ends").unwrap()
}

#[tokio::test]
async fn a_release_whose_answer_was_lost_is_told_as_done_and_only_where_the_share_is_free() {
    let site = Site::start().await;
    let id = site.rollout().await;
    let share = Resource::Budget { name: NODES_OUT.to_owned(), member: "gpu-01".to_owned() };
    let taking = Work { events: vec![begun("renew-nodes")], take: vec![Take::new(share, 2)], next: Next::At(at(NOON)), forged: None, follows: None };
    taking.on(&*site.store, &id).await;
    let (release, refusal) = (["node", "release", "gpu-01"], "gpu-01 is not a node that an ended workflow left out of service");
    let held = with_its_first_answer_lost(&site, &release).await;
    assert_eq!(held.status.code(), Some(4), "an open workflow holds it: {}", err(&held));
    assert!(err(&held).contains(refusal) && !err(&held).contains("share is free"), "{}", err(&held));
    site.work(&id, vec![ended(Outcome::Failed, "left as it is")], KEEP).await;
    let lost = with_its_first_answer_lost(&site, &release).await;
    let told = "no answer; asking again\n\
                gpu-01 counts as in service: its share is free. The answer to an earlier try was lost, so it is not known whether this command freed it\n  \
                nothing is placed on it as long as it is disabled in Nova: `turnaround survey` looks\n";
    assert_eq!((lost.status.code(), err(&lost).as_str(), out(&lost).as_str()), (Some(0), told, ""));
    assert_eq!(site.get("/v1/nodes").await.1["nodes"][0]["out"], json!(null));
    let mistaken = site.turnaround(&release).await;
    assert_eq!(mistaken.status.code(), Some(4), "nothing was lost: {}", err(&mistaken));
    assert!(err(&mistaken).contains(refusal), "{}", err(&mistaken));
    let json = with_its_first_answer_lost(&site, &["--json", "node", "release", "gpu-01"]).await;
    assert_eq!((json.status.code(), err(&json).as_str()), (Some(0), told));
    assert_eq!(serde_json::from_str::<Value>(&out(&json)).unwrap(), json!({ "node": "gpu-01", "budget": "nodes-out" }));
}

#[tokio::test]
async fn a_second_order_for_a_node_is_refused_and_says_which_workflow_has_it() {
    let site = Site::start().await;
    let order = ["node", "renew", "gpu-01", "--image", "noble-2", "--yes"];
    let id = out(&site.turnaround(&order).await).trim().to_owned();
    let second = site.turnaround(&order).await;
    assert_eq!((second.status.code(), out(&second).as_str()), (Some(4), ""));
    let said = err(&second);
    assert!(said.contains(&format!("gpu-01 (by {id})")) && said.contains(&format!("turnaround show {id}")) && said.contains("--again"), "{said}");
    // Nobody is asked here, and what would be asked is shown.
    let asked = err(&site.turnaround(&[&order[..5], &["--again"]].concat()).await);
    assert!(asked.contains(&format!("ONCE MORE: gpu-01 will be renewed by {id}, which has not come to it yet; after that, this wipes it again\n")), "{asked}");
    let meant = site.turnaround(&[&order[..], &["--again"]].concat()).await;
    assert_eq!(meant.status.code(), Some(0), "{}", err(&meant));
}

#[tokio::test]
async fn whoever_may_not_open_the_socket_is_told_which_group_may() {
    let site = Site::start().await;
    let folder = tempfile::tempdir().unwrap();
    // Root may open everything: then somebody else types it, who has to find the program.
    let program = folder.path().join("turnaround");
    std::fs::copy(env!("CARGO_BIN_EXE_turnaround"), &program).unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(site.socket.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&site.socket, Permissions::from_mode(0o000)).unwrap();
    let mut command = tokio::process::Command::new(&program);
    if nix::unistd::Uid::effective().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.arg("--socket").arg(&site.socket).arg("status").output().await.unwrap();
    let group = nix::unistd::Group::from_gid(nix::unistd::Gid::effective()).unwrap().unwrap().name;
    assert_eq!(output.status.code(), Some(4), "{}", err(&output));
    assert!(err(&output).contains(&format!("you may not open the daemon's socket {}", site.socket.display())), "{}", err(&output));
    assert!(err(&output).contains(&format!("usermod -aG {group} USER")) && !err(&output).contains("systemctl"), "{}", err(&output));
}

#[tokio::test]
async fn a_log_is_followed_on_when_the_daemon_is_back() {
    let state = tempfile::tempdir().unwrap();
    let wish = || Wish { config: format!("state_dir = \"{}\"\n", state.path().display()), ..Wish::default() };
    let mut first = Site::with(wish()).await;
    let id = first.rollout().await;
    let run = state.path().join("scripts").join(format!("{id}.deploy-openstack.7"));
    std::fs::create_dir_all(&run).unwrap();
    std::fs::write(run.join("log"), "one\n").unwrap();
    // Where the daemon is; the next one is elsewhere.
    let socket = state.path().join("api.sock");
    std::os::unix::fs::symlink(&first.socket, &socket).unwrap();
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_turnaround"))
        .args(["--socket", socket.to_str().unwrap(), "show", "--log", "--follow", id.as_str()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut log = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(log.next_line().await.unwrap().as_deref(), Some("one"));
    first.stop().await;
    let told = tokio::time::timeout(PATIENCE, said.next_line()).await.expect("it says so").unwrap();
    assert_eq!(told.as_deref(), Some("the daemon does not answer; going on when it is back"));
    std::fs::write(run.join("log"), "one\ntwo\n").unwrap();
    let second = Site::with(wish()).await;
    std::fs::remove_file(&socket).unwrap();
    std::os::unix::fs::symlink(&second.socket, &socket).unwrap();
    let next = tokio::time::timeout(PATIENCE, log.next_line()).await.expect("it goes on").unwrap();
    assert_eq!(next.as_deref(), Some("two"));
    std::fs::write(run.join("exit"), "0").unwrap();
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends with the run").unwrap();
    assert_eq!(status.code(), Some(0));
}

fn follow_events(socket: &Path) -> tokio::process::Child {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_turnaround"));
    command.arg("--socket").arg(socket).args(["events", "--follow"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
}

/// The next time that the command comes.
async fn accept(listener: &UnixListener) -> UnixStream {
    tokio::time::timeout(PATIENCE, listener.accept()).await.expect("it comes").unwrap().0
}

/// What has come by the time that `end` has.
async fn until(stream: &mut UnixStream, end: &str) -> Vec<u8> {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(end) {
        let more = tokio::time::timeout(PATIENCE, stream.read_buf(&mut read)).await.expect("more comes").unwrap();
        assert_ne!(more, 0, "{}", String::from_utf8_lossy(&read));
    }
    read
}

#[tokio::test]
async fn events_are_followed_on_when_the_daemon_is_back_although_none_had_come_yet() {
    let mut first = Site::start().await;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut child = follow_events(&socket);
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut events = BufReader::new(child.stdout.take().unwrap()).lines();
    // Through this test, so that it is known how far the command has come: one block of the stream.
    let mut command = accept(&listener).await;
    let mut daemon = UnixStream::connect(&first.socket).await.unwrap();
    daemon.write_all(&until(&mut command, "\r\n\r\n").await).await.unwrap();
    command.write_all(&until(&mut daemon, "\n\n").await).await.unwrap();
    first.stop().await;
    drop(command);
    let told = tokio::time::timeout(PATIENCE, said.next_line()).await.expect("it says so").unwrap();
    assert_eq!(told.as_deref(), Some("the daemon ended the stream; going on when it is back"));
    // Another daemon, elsewhere; for the command there is none yet.
    let second = Site::with(Wish { store: Some(Arc::clone(&first.store) as _), ..Wish::default() }).await;
    let missed = second.rollout().await;
    let nobody = accept(&listener).await;
    std::fs::remove_file(&socket).unwrap();
    std::os::unix::fs::symlink(&second.socket, &socket).unwrap();
    drop(nobody);
    let mut next = async || tokio::time::timeout(PATIENCE, events.next_line()).await.expect("it goes on").unwrap().unwrap();
    let line = next().await;
    assert!(line.contains(missed.as_str()), "{line}");
    let heard = second.rollout().await;
    let line = next().await;
    assert!(line.contains(heard.as_str()), "{line}");
    assert!(child.try_wait().unwrap().is_none(), "it stays");
}

/// As one that is killed right then does.
#[tokio::test]
async fn events_are_followed_on_also_where_the_daemon_went_away_before_it_told_where_the_stream_begins() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let _child = follow_events(&socket);
    let mut command = accept(&listener).await;
    until(&mut command, "\r\n\r\n").await;
    command.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").await.unwrap();
    drop(command);
    // Nobody answers; then it comes once more.
    drop(accept(&listener).await);
    accept(&listener).await;
}

#[tokio::test]
async fn whoever_types_a_node_is_told_which_workflow_renews_it() {
    let site = Site::start().await;
    let none = site.turnaround(&["show", "gpu-01"]).await;
    assert_eq!(none.status.code(), Some(5));
    assert!(err(&none).contains("`gpu-01` is a node, and no workflow") && err(&none).contains("no open workflow renews gpu-01"), "{}", err(&none));
    let rollout = site.rollout().await;
    let planned = site.turnaround(&["show", "gpu-01"]).await;
    assert_eq!((planned.status.code(), err(&planned).as_str()), (Some(0), "gpu-01 is a node; its turn is yet to come, in the open rollout:\n"));
    assert!(out(&planned).starts_with(&format!("{rollout}: node-os-rollout of ")), "{}", out(&planned));
    let refused = site.turnaround(&["abort", "gpu-01"]).await;
    assert!(err(&refused).contains(&format!("no workflow renews gpu-01 yet; {rollout} will, when its turn comes")), "{}", err(&refused));
    let listed = out(&site.turnaround(&["nodes"]).await);
    assert_eq!(listed.matches(&format!("its turn in {rollout} is to come")).count(), 2, "{listed}");
    let node = site.node_begun(&rollout, "gpu-01").await.to_string();
    let shown = site.turnaround(&["show", "gpu-01"]).await;
    assert_eq!(shown.status.code(), Some(0), "{}", err(&shown));
    assert!(out(&shown).starts_with(&format!("{node}: node-os of gpu-01")), "{}", out(&shown));
    assert_eq!(out(&site.turnaround(&["nodes"]).await).matches("is to come").count(), 1, "gpu-02");
    // Whoever changes something types what.
    for command in [&["answer", "gpu-01", "retry"][..], &["abort", "gpu-01"]] {
        let refused = site.turnaround(command).await;
        assert_eq!(refused.status.code(), Some(5), "{command:?}");
        assert!(err(&refused).contains(&format!("give the workflow that renews it: {node}")), "{}", err(&refused));
    }
}
