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

/// As heads number them.
const STATUSES: [&str; 9] =
    ["runnable", "waiting", "needs-operator", "paused", "unwinding", "quarantined", "succeeded", "failed", "aborted"];

/// 16 bytes of numbers, of which 4 are the number of entries, and the 8th is the status; a digest of 32 bytes; then trace, mark, queue,
/// each up to a zero byte, and the headline.
fn split_head(head: &[u8]) -> Option<(&[u8], &[u8])> {
    let (numbers, texts) = head.split_at_checked(16)?;
    Some((numbers, texts.get(32..)?.splitn(4, |byte| *byte == 0).nth(3)?))
}

/// When it was created in 8 bytes, the parent up to a zero byte, the length of the kind in 4 bytes, the kind, the target.
fn split_document(document: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let document = document.get(8..)?;
    let (parent, rest) = document.split_at(document.iter().position(|byte| *byte == 0)?);
    let (length, rest) = rest.get(1..)?.split_first_chunk::<4>()?;
    let (kind, target) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    Some((parent, kind, target))
}

/// One entry, and what follows: its digest in 32 bytes, the length of its body in 4, its body.
fn split_entry(kept: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (digest, rest) = kept.split_at_checked(32)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (body, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    Some((digest, body, rest))
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
        let head: Option<Vec<u8>> = self.ask(redis::cmd("HGET").arg("{ta}:heads").arg(id)).await?;
        let document: Option<Vec<u8>> = self.ask(redis::cmd("HGET").arg("{ta}:documents").arg(id)).await?;
        // What is not of its form is told as empty.
        let (numbers, headline) = head.as_deref().and_then(split_head).unwrap_or((&[0; 16], b""));
        let (parent, kind, target) = document.as_deref().and_then(split_document).unwrap_or_default();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        // What has ended (flag 8) keeps the name of who had it.
        let leased: bool = self.ask::<bool>(redis::cmd("HEXISTS").arg("{ta}:holders").arg(id)).await? && numbers[4] < 8;
        let unread: u64 = self.ask(redis::cmd("LLEN").arg(format!("{{ta}}:inbox:{id}"))).await?;
        self.line(
            "workflow",
            json!({
                "workflow": id, "kind": text(kind), "target": text(target), "parent": text(parent),
                "status": STATUSES.get(usize::from(numbers[7])).copied().unwrap_or("none"),
                "leased": leased, "unread": unread, "headline": text(headline),
            }),
        );
        // Up to the first that is not there, so that one that is too many is found as well.
        let mut seq = 1_u64;
        loop {
            // What one commit appended stands under the place of the first of its entries.
            let kept: Option<Vec<u8>> = self.ask(redis::cmd("HGET").arg("{ta}:journal").arg(format!("{id}:{seq}"))).await?;
            let Some(kept) = kept else { break };
            let mut rest = &kept[..];
            while !rest.is_empty() {
                let (digest, body, after) = split_entry(rest).unwrap_or((&[], rest, &[]));
                let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                self.line("entry", json!({ "workflow": id, "seq": seq, "digest": digest, "body": text(body) }));
                (seq, rest) = (seq + 1, after);
            }
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
