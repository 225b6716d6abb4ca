//! The store in Redis: the one place that knows a key.
//!
//! Each operation that writes is one Lua script, so that it happens wholly or not at all, and takes its time from
//! Redis. The rules are in `scripts/`; this side only packs the question and reads the answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, Value, cmd};
use async_trait::async_trait;
use tokio::time::Instant;
use tracing::error;

use super::high_water::{HighWater, Standing};
use super::{
    Advance, Advanced, Backlog, Created, Digest, Document, Durability, Holding, NewWorkflow, PAGE_MAX, Query, Queue, Resource,
    Signalled, Status, Store, StoreError, StoreEvent, StoredEntry, StoredSignal, WorkflowId, limits,
};
use crate::clock::Timestamp;

mod backlog;
mod bell;
mod configured;
mod connection;
mod creations;
mod direct;
mod durability;
mod encode;
mod entries;
mod events;
mod granted;
mod keys;
mod layout;
mod listing;
mod options;
mod outage;
mod reply;
mod script;
mod standing;
mod tickets;

pub use options::{RedisAddress, RedisOptions};
pub(super) use outage::trouble;

use bell::Bell;
use connection::{Connection, Server};
use creations::Creations;
use direct::Direct;
use encode::Part;
use events::Events;
use keys::Keys;
use reply::{Answer, Malformed, Reply};
use script::Scripts;
use tickets::{TicketBook, Tickets};

/// Most commits have at most so many entries.
const COMMIT_ENTRIES_FEW: u64 = 16;

/// Keeps workflows in Redis. Its connections heal by themselves; while they can't, every call answers
/// [`StoreError::Unavailable`], and it is the caller who asks again.
///
/// The connections live on the tokio runtime that they are first used on: a thread that must not wait for others
/// has a store of its own.
pub struct RedisStore {
    keys: Keys,
    scripts: Arc<Scripts>,
    connection: Arc<Connection>,
    creations: Creations,
    bell: Bell,
    events: Events,
    tickets: TicketBook,
    direct: Direct,
}

const ADVANCE: &str = "advance workflows";

impl RedisStore {
    /// Connects, and makes sure that acknowledged writes are kept.
    ///
    /// # Errors
    /// [`StoreError::NotDurable`] if they may be lost and `options` does not accept that, [`StoreError::Unusable`] if
    /// the configuration can't be right, [`StoreError::Unavailable`] if nobody answers (yet).
    pub async fn connect(options: RedisOptions) -> Result<RedisStore, StoreError> {
        let keys = Keys::new(&options.prefix)?;
        let server = Arc::new(Server::new(&options)?);
        let connect = || {
            let connection = Connection::new(server.clone(), options.reply_timeout);
            if options.only_watched { connection.only_watched(&keys) } else { connection }
        };
        let connection = Arc::new(connect());
        let tickets = TicketBook::new();
        let direct = Direct::new(&keys, tickets.session(), options.refused_pause, connect);
        let scripts = Arc::new(Scripts::new());
        let store = RedisStore {
            creations: Creations::new(connection.clone(), scripts.clone(), keys.clone()),
            scripts,
            bell: Bell::new(server.clone(), bell::WAIT + options.reply_timeout, &keys),
            events: Events::new(Connection::new(server.clone(), events::WAIT + options.reply_timeout), &keys),
            connection,
            tickets,
            direct,
            keys,
        };
        let durability = store.durability().await?;
        if !durability.weaknesses.is_empty() && !options.accept_weaker_durability {
            return Err(StoreError::NotDurable {
                address: options.address.to_string(),
                weaknesses: durability.weaknesses,
            });
        }
        store.open().await?;
        Ok(store)
    }

    /// As if who creates had just heard that the store's clock says `now`.
    #[cfg(test)]
    pub(in crate::store) fn hear(&self, now: Timestamp) {
        self.creations.hear(now);
    }

    async fn query(&self, operation: &'static str, command: &Cmd) -> Result<Value, StoreError> {
        self.connection.query(operation, command).await
    }

    /// Runs a script that answers with one word.
    async fn word(
        &self,
        operation: &'static str,
        script: &script::Script,
        arguments: Cmd,
        meaning: &[&'static str],
    ) -> Result<&'static str, StoreError> {
        let answer = script.run(&self.connection, operation, arguments).await?;
        let word = reply::text(answer).map_err(|source| damaged_answer(operation, source))?;
        let known = meaning.iter().find(|known| **known == word).copied();
        known.ok_or_else(|| damaged_answer(operation, Malformed::new("a known word", word)))
    }

    /// The fields of the journal entries of `id` from place `first` on, before `end`; nil where no commit began.
    async fn fields(&self, operation: &'static str, id: &WorkflowId, first: u64, end: u64) -> Result<Vec<Value>, StoreError> {
        if first >= end {
            return Ok(Vec::new());
        }
        let mut command = cmd("HMGET");
        command.arg(&self.keys.journal);
        for place in first..end {
            command.arg(Keys::entries(id.as_str(), place));
        }
        let answer = self.query(operation, &command).await?;
        Reply::of(answer).map(Reply::rest).map_err(|source| damaged_answer(operation, source))
    }

    /// Entries of one journal from place `from` (1 is the first), at most `limit`; fewer where it ends.
    async fn entries(&self, operation: &'static str, id: &WorkflowId, from: u64, limit: u64) -> Result<Vec<StoredEntry>, StoreError> {
        let Some(end) = from.checked_add(limit) else { return Ok(Vec::new()) };
        let (mut first, mut fields) = (from, self.fields(operation, id, from, end).await?);
        // Where the commit begins that the entry is of.
        let begins = |first: u64, fields: &[Value]| (first..=from).zip(fields).filter(|(_, field)| !matches!(field, Value::Nil)).last().map(|(place, _)| place);
        for back in [COMMIT_ENTRIES_FEW, limits::COMMIT_ITEMS_MAX as u64] {
            if first > 1 && begins(first, &fields).is_none() {
                let before = from.saturating_sub(back).max(1);
                let mut earlier = self.fields(operation, id, before, first).await?;
                earlier.append(&mut fields);
                (first, fields) = (before, earlier);
            }
        }
        let Some(begins) = begins(first, &fields) else { return Ok(Vec::new()) };
        let mut entries = Vec::new();
        // What can't be read is an entry that nothing seals: who reads it names it, and sees what comes before. It hides no other workflow.
        if let Err(unreadable) = entries::follow(fields, first, begins, &mut entries) {
            entries.push(StoredEntry { digest: Digest::NONE, body: unreadable.to_string() });
        }
        let skip = usize::try_from(from - begins).unwrap_or(usize::MAX).min(entries.len());
        entries.drain(..skip);
        entries.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(entries)
    }

    /// One call of at most [`super::COMMITS_MAX`] commits.
    async fn advance_once(&self, mut part: Part<'_>) -> Result<Advanced, StoreError> {
        let Some(turn) = self.direct.turn(&self.connection, &part).await else { return self.advance_by_script(&part).await };
        let Some(done) = turn.commit(&part).await.map_err(|error| outage::judge(ADVANCE, error))? else {
            return self.advance_by_script(&part).await;
        };
        part.commits.drain(..done.len());
        let mut advanced = match self.direct.now().filter(|_| part.is_empty()) {
            Some(now) => Advanced { now, commits: Vec::new(), renewed: Vec::new(), claimed: Vec::new(), next: None },
            None => self.advance_by_script(&part).await?,
        };
        advanced.commits.splice(..0, done);
        Ok(advanced)
    }

    async fn advance_by_script(&self, part: &Part<'_>) -> Result<Advanced, StoreError> {
        self.direct.settle(&self.connection, ADVANCE).await?;
        self.direct.ask(part);
        let drawn = self.tickets.draw(part.claim.is_some());
        let mut answer = self.run_advance(part, drawn.tickets()).await?;
        let heard = Instant::now();
        drawn.taken_back();
        let served = part.claim.map(encode::served).unwrap_or_default();
        (answer.advanced.claimed, answer.claimed_plain) = self.hand_out(std::mem::take(&mut answer.granted), served).await?;
        self.direct.hear(part, &answer, heard);
        self.direct.begin(&self.connection, ADVANCE, &answer).await;
        // Only now: what was granted and could not be handed out is taken back by the next claim.
        drawn.answered();
        // The script has said it before all that was read.
        answer.advanced.now = answer.advanced.now + heard.elapsed();
        Ok(answer.advanced)
    }

    /// What the script answers.
    async fn run_advance(&self, part: &Part<'_>, tickets: &Tickets) -> Result<Answer, StoreError> {
        let script = &self.scripts.advance;
        let call = encode::advance(script.call(&self.keys), part, tickets, &self.direct.hand);
        let answer = script.run(&self.connection, ADVANCE, call).await?;
        reply::advanced(answer, part).map_err(|source| damaged_answer(ADVANCE, source))
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn now(&self) -> Result<Timestamp, StoreError> {
        const OPERATION: &str = "tell the time";
        let answer = self.query(OPERATION, &cmd("TIME")).await?;
        let read = || {
            let mut reply = Reply::of(answer)?;
            let (seconds, micros) = (reply.number::<i64>()?, reply.number::<i64>()?);
            Ok(Timestamp::from_millis(seconds * 1_000 + micros / 1_000))
        };
        read().map_err(|source| damaged_answer(OPERATION, source))
    }

    async fn create(&self, new: NewWorkflow) -> Result<Created, StoreError> {
        self.creations.create(new).await
    }

    async fn advance(&self, advance: &Advance) -> Result<Advanced, StoreError> {
        limits::check_advance(advance)?;
        let mut whole = Advanced { now: Timestamp::default(), commits: Vec::new(), renewed: Vec::new(), claimed: Vec::new(), next: None };
        for part in encode::parts(advance) {
            let Advanced { now, commits, renewed, claimed, next } = self.advance_once(part).await?;
            whole.commits.extend(commits);
            whole.renewed.extend(renewed);
            whole = Advanced { now, claimed, next, ..whole };
        }
        Ok(whole)
    }

    async fn wait_for_bell(&self, queues: &[Queue], timeout: Duration) -> Result<Option<Queue>, StoreError> {
        self.bell.wait(queues, timeout).await
    }

    async fn ring(&self, queue: &Queue) -> Result<(), StoreError> {
        const OPERATION: &str = "ring the bell";
        let bell = self.keys.bell(queue);
        let rings = self.query(OPERATION, cmd("LPUSH").arg(&bell).arg("1")).await?;
        if reply::number::<usize>(&rings).is_ok_and(|rings| rings > limits::BELL_RINGS_MAX) {
            let last = limits::BELL_RINGS_MAX - 1;
            self.query(OPERATION, cmd("LTRIM").arg(&bell).arg(0).arg(last)).await?;
        }
        Ok(())
    }

    async fn signal(&self, id: &WorkflowId, signal: StoredSignal) -> Result<Signalled, StoreError> {
        let script = &self.scripts.signal;
        let mut arguments = script.call(&self.keys);
        arguments.arg(id.as_str()).arg(&signal.body);
        let words = ["kept", "missing", "ended", "full"];
        Ok(match self.word("signal a workflow", script, arguments, &words).await? {
            "missing" => Signalled::Missing,
            "ended" => Signalled::Ended,
            "full" => Signalled::Full,
            _ => Signalled::Kept,
        })
    }

    async fn load(&self, id: &WorkflowId) -> Result<Option<Document>, StoreError> {
        let read = self.read("read a workflow", std::slice::from_ref(id)).await?;
        Ok(read.into_iter().next())
    }

    async fn journal(&self, id: &WorkflowId, from: u64, limit: u32) -> Result<Vec<StoredEntry>, StoreError> {
        const OPERATION: &str = "read a journal";
        let limit = u64::from(limit.min(PAGE_MAX));
        if limit == 0 {
            return Ok(Vec::new());
        }
        self.entries(OPERATION, id, from.max(1), limit).await
    }

    async fn list(&self, query: &Query) -> Result<Vec<Document>, StoreError> {
        self.page(query).await
    }

    async fn counts(&self) -> Result<Vec<(Status, u64)>, StoreError> {
        const OPERATION: &str = "count the workflows";
        let answer = self.query(OPERATION, cmd("HGETALL").arg(&self.keys.counts)).await?;
        let pairs = reply::pairs(answer).map_err(|source| damaged_answer(OPERATION, source))?;
        let count = |status: Status| {
            let found = pairs.iter().find(|(name, _)| name == status.as_str());
            (status, found.and_then(|(_, count)| count.parse().ok()).unwrap_or(0))
        };
        Ok(Status::ALL.into_iter().map(count).filter(|(_, count)| *count > 0).collect())
    }

    async fn backlog(&self, queues: &[Queue], before: Timestamp) -> Result<Backlog, StoreError> {
        self.waiting(queues, before).await
    }

    async fn events(&self, cursor: Option<&str>, timeout: Duration) -> Result<Vec<StoreEvent>, StoreError> {
        let after = match cursor {
            Some(cursor) => cursor.to_owned(),
            None => self.events_end().await?,
        };
        self.events.after(&self.connection, &self.scripts, &after, timeout).await
    }

    async fn events_end(&self) -> Result<String, StoreError> {
        self.events.end(&self.connection).await
    }

    async fn holdings(&self) -> Result<Vec<Holding>, StoreError> {
        const OPERATION: &str = "list who holds what";
        let damaged = |source| damaged_answer(OPERATION, source);
        let mut holdings = Vec::new();
        // One that can't be read must not hide the others.
        let mut hold = |resource: Resource, id: String| match id.parse::<WorkflowId>() {
            Ok(holder) => holdings.push(Holding { resource, holder }),
            Err(why) => error!(%resource, %why, "something is held by what is no workflow"),
        };
        let locks = self.query(OPERATION, cmd("HGETALL").arg(&self.keys.locks)).await?;
        for (name, id) in reply::pairs(locks).map_err(damaged)? {
            hold(Resource::Lock { name }, id);
        }
        let budgets = self.query(OPERATION, cmd("SMEMBERS").arg(&self.keys.budgets)).await?;
        for name in reply::texts(budgets).map_err(damaged)? {
            let members = match self.query(OPERATION, cmd("HGETALL").arg(self.keys.budget(&name))).await {
                Err(why @ StoreError::Unusable { .. }) => {
                    error!(budget = name, %why, "a budget can't be read");
                    continue;
                }
                members => members?,
            };
            for (member, id) in reply::pairs(members).map_err(damaged)? {
                hold(Resource::Budget { name: name.clone(), member }, id);
            }
        }
        holdings.sort_by(|one, other| one.resource.cmp(&other.resource));
        Ok(holdings)
    }

    async fn release_budget(&self, name: &str, member: &str) -> Result<bool, StoreError> {
        let script = &self.scripts.release_budget;
        let mut arguments = script.call(&self.keys);
        arguments.arg(name).arg(member);
        let words = ["released", "open", "nobody"];
        Ok(self.word("release a budget share", script, arguments, &words).await? == "released")
    }

    async fn ledgers(&self) -> Result<BTreeSet<String>, StoreError> {
        const OPERATION: &str = "read which schedules have a ledger";
        let answer = self.query(OPERATION, cmd("HKEYS").arg(&self.keys.ticks)).await?;
        Ok(reply::texts(answer).map_err(|source| damaged_answer(OPERATION, source))?.into_iter().collect())
    }

    async fn last_tick(&self, schedule: &str) -> Result<Option<Timestamp>, StoreError> {
        const OPERATION: &str = "read the ledger of a schedule";
        let answer = self.query(OPERATION, cmd("HGET").arg(&self.keys.ticks).arg(schedule)).await?;
        reply::optional_time(answer).map_err(|source| damaged_answer(OPERATION, source))
    }

    async fn judge_ticks(
        &self,
        schedule: &str,
        last: Option<Timestamp>,
        judged: Timestamp,
        create: Vec<NewWorkflow>,
    ) -> Result<bool, StoreError> {
        limits::check_created(&create)?;
        let script = &self.scripts.judge_ticks;
        let arguments = encode::ticks(script.call(&self.keys), schedule, last, judged, &create);
        Ok(self.word("judge ticks", script, arguments, &["judged", "judged-before"]).await? == "judged")
    }

    async fn sweep(&self) -> Result<u32, StoreError> {
        const OPERATION: &str = "sweep";
        let script = &self.scripts.sweep;
        let mut arguments = script.call(&self.keys);
        arguments.arg(limits::SWEEP_MAX).arg(limits::ENTRIES_SWEPT_MAX);
        let swept = script.run(&self.connection, OPERATION, arguments).await?;
        reply::number(&swept).map_err(|source| damaged_answer(OPERATION, source))
    }

    async fn durability(&self) -> Result<Durability, StoreError> {
        durability::look(&self.connection).await
    }

    async fn standing(&self) -> Result<Standing, StoreError> {
        self.read_standing().await
    }

    async fn compare(&self, remembered: &HighWater, by: &str) -> Result<Standing, StoreError> {
        self.compared(remembered, by).await
    }

    async fn accept(&self, remembered: &HighWater, by: &str) -> Result<Option<Standing>, StoreError> {
        self.accepted(remembered, by).await
    }
}

fn damaged_answer(operation: &'static str, source: Malformed) -> StoreError {
    StoreError::Damaged { operation, what: "an answer of Redis".to_owned(), source: source.into() }
}
