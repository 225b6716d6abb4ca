//! After the faults: everything is mended, paused work is resumed, questions are answered, and then all of it must end.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::desk::Desk;
use super::stage::Stage;

/// Within this time after the last fault every workflow has ended or asks.
// A reset of unknown outcome is settled after three minutes if the node answers, and after fourteen if it has not answered before
// either (the longest self-test); then a renewal at this site takes half a minute, and several may wait for one another.
pub const TAIL_MAX: Duration = Duration::from_secs(18 * 60);
/// A Redis that has just met a full disk ends within this time.
const ENDING: Duration = Duration::from_millis(500);
/// How often it is looked at.
const POLL: Duration = Duration::from_millis(300);
/// A question is answered with `retry` so often, then otherwise.
const RETRIES: u32 = 2;

/// How it ended.
#[derive(Debug, Clone)]
pub struct Tail {
    pub took: Duration,
    /// What was open for longest.
    pub last: Vec<(String, String, String)>,
    /// What is still open and neither asks nor is set aside: id, status, headline.
    pub open: Vec<(String, String, String)>,
}

/// Everything works again on return.
pub(super) async fn heal(stage: &Stage) -> io::Result<()> {
    stage.wire.heal();
    stage.site.servers.mishaps.clear();
    stage.site.servers.mishaps.slow_down(stage.latency);
    if let Some(disk) = &stage.disk {
        disk.make_room()?;
    }
    if let Some(clock) = &stage.clock {
        clock.set(0)?;
    }
    let mut processes = stage.processes.lock().await;
    processes.signal_redis(Signal::SIGCONT)?;
    if processes.redis_ends(ENDING).await? {
        processes.start_redis().await?;
    }
    for worker in 0..processes.workers() {
        processes.signal_worker(worker, Signal::SIGCONT)?;
    }
    processes.start_what_is_missing()?;
    Ok(())
}

/// Waits until everything has ended, and helps as operators do.
pub(super) async fn until_all_has_ended(stage: &Stage, within: Duration) -> io::Result<Tail> {
    let began = Instant::now();
    let desk = Desk::new(stage)?;
    let mut answered: BTreeMap<String, (u32, u64)> = BTreeMap::new();
    let mut open = Vec::new();
    while began.elapsed() < within {
        stage.processes.lock().await.check()?;
        if let Some(lines) = desk.open().await {
            if lines.iter().all(is_at_rest) {
                return Ok(Tail { took: began.elapsed(), last: open, open: Vec::new() });
            }
            for line in &lines {
                help(&desk, line, &mut answered).await?;
            }
            open = lines.iter().filter(|line| !is_at_rest(line)).map(told).collect();
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(Tail { took: began.elapsed(), last: Vec::new(), open })
}

/// Only a person with a backup can mend its journal: it is set aside, which is where it must be.
fn is_at_rest(line: &Value) -> bool {
    line["status"] == "quarantined"
}

fn told(line: &Value) -> (String, String, String) {
    let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
    (text("id"), text("status"), text("headline"))
}

async fn help(desk: &Desk<'_>, line: &Value, answered: &mut BTreeMap<String, (u32, u64)>) -> io::Result<()> {
    let id = line["id"].as_str().unwrap_or_default();
    let path = format!("/v1/workflows/{id}/signals");
    if line["status"] == "paused" {
        desk.send("resume", &path, &json!({ "signal": "resume" }), &desk.next_key()).await?;
    }
    if line["status"] != "needs-operator" {
        return Ok(());
    }
    let Some(shown) = desk.get(&format!("/v1/workflows/{id}")).await else { return Ok(()) };
    let entries = shown["journal_entries"].as_u64().unwrap_or_default();
    let (times, at) = answered.get(id).copied().unwrap_or_default();
    // The answer to this very question is on its way.
    if shown["question"].is_null() || at == entries {
        return Ok(());
    }
    let Some(key) = choose(&shown["question"], times) else { return Ok(()) };
    desk.send("answer", &path, &json!({ "signal": "answer", "key": key }), &desk.next_key()).await?;
    answered.insert(id.to_owned(), (times + 1, entries));
    Ok(())
}

fn choose(question: &Value, times: u32) -> Option<String> {
    let answers = question["answers"].as_array()?;
    let by_effect = |effect: &str| answers.iter().find(|answer| answer["effect"] == effect);
    let retry = if times < RETRIES { by_effect("retry") } else { None };
    let chosen = retry.or_else(|| by_effect("unwind")).or_else(|| by_effect("leave")).or_else(|| answers.first())?;
    chosen["key"].as_str().map(str::to_owned)
}
