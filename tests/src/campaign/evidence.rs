//! What is left at the end, as text: what every process wrote, what the campaign wrote, and what Redis holds, read key by key.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::Path;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue};
use serde_json::json;

use super::stage::Stage;

/// Adds every line of the histories, the orders and the faults to what Redis holds.
pub(super) fn gather(folder: &Path, kept: String) -> io::Result<String> {
    let mut all = kept;
    let mut files = vec![folder.join("orders.jsonl"), folder.join("faults.jsonl")];
    for entry in std::fs::read_dir(folder.join("history"))? {
        files.push(entry?.path());
    }
    files.sort();
    for file in files {
        all.push_str(&std::fs::read_to_string(file)?);
    }
    Ok(all)
}

/// What Redis holds, as lines.
pub(super) async fn kept(stage: &Stage) -> io::Result<String> {
    let mut reader = Reader { redis: stage.redis().await?, lines: String::new() };
    for index in ["{ta}:idx:open", "{ta}:idx:ended"] {
        for id in reader.ask::<Vec<String>>(redis::cmd("ZRANGE").arg(index).arg(0).arg(-1)).await? {
            reader.workflow(&id).await?;
        }
    }
    reader.holdings().await?;
    Ok(reader.lines)
}

struct Reader {
    redis: MultiplexedConnection,
    lines: String,
}

impl Reader {
    async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> io::Result<T> {
        command.query_async(&mut self.redis).await.map_err(io::Error::other)
    }

    fn line(&mut self, event: &str, mut what: serde_json::Value) {
        what["event"] = json!(event);
        let _ = writeln!(self.lines, "{what}");
    }

    async fn workflow(&mut self, id: &str) -> io::Result<()> {
        let key = format!("{{ta}}:wf:{id}");
        let fields: BTreeMap<String, Vec<u8>> = self.ask(redis::cmd("HGETALL").arg(&key)).await?;
        let fields: BTreeMap<String, String> =
            fields.into_iter().map(|(name, value)| (name, String::from_utf8_lossy(&value).into_owned())).collect();
        let field = |name: &str| fields.get(name).cloned().unwrap_or_default();
        let unread: u64 = self.ask(redis::cmd("LLEN").arg(format!("{key}:inbox"))).await?;
        self.line(
            "workflow",
            json!({
                "workflow": id, "kind": field("kind"), "target": field("target"), "parent": field("parent"), "status": field("status"),
                "leased": !field("fence").is_empty(), "unread": unread, "headline": field("headline"),
            }),
        );
        // Each entry is a field `e` and its place, so that one that is too many is found as well.
        let entries = fields.iter().filter_map(|(name, entry)| Some((name.strip_prefix('e')?.parse::<u64>().ok()?, entry)));
        for (seq, entry) in entries {
            let (digest, body) = entry.split_once(' ').unwrap_or(("", entry));
            self.line("entry", json!({ "workflow": id, "seq": seq, "digest": digest, "body": body }));
        }
        Ok(())
    }

    async fn holdings(&mut self) -> io::Result<()> {
        let locks: BTreeMap<String, String> = self.ask(redis::cmd("HGETALL").arg("{ta}:locks")).await?;
        for (name, holder) in locks {
            self.line("holding", json!({ "lock": name, "workflow": holder }));
        }
        let budgets: Vec<String> = self.ask(redis::cmd("SMEMBERS").arg("{ta}:budgets")).await?;
        for budget in budgets {
            let members: BTreeMap<String, String> = self.ask(redis::cmd("HGETALL").arg(format!("{{ta}}:budget:{budget}"))).await?;
            for (member, holder) in members {
                self.line("holding", json!({ "budget": budget, "member": member, "workflow": holder }));
            }
        }
        Ok(())
    }
}
