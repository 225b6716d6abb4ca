//! Commits without a script, which cost Redis a third of what they cost with one: one transaction (`MULTI`) that Redis carries out only if nobody else has
//! changed anything of what this store holds.
//!
//! Whoever changes something of a workflow that somebody holds (takes over its lease, puts a signal into its inbox, frees what it waits for)
//! touches its holder's **hand**, a key of that store (`touch` in `common.lua`), within the same script. Before each transaction its connection
//! watches the hand (`WATCH`), and the key that is there while the store is halted: then a touch, a halt, or an emptied store makes the transaction
//! do nothing. The watch ends with each transaction, and the next one begins right after it; what happens in between is seen by the hand's value,
//! which is another one after each touch. So a lease may be gone by if **the hand had one and the same value when the lease was granted and when the
//! watch began**. (Where the watch was broken and the value is what it was, somebody has put back what Redis had earlier: the store then touches its own
//! hand.) Everything else goes by the script, which compares the head itself: what has resources, children, signals or mail, what
//! parks, and what was not carried out.
//!
//! A transaction whose answer was lost may still be carried out at any time, and would then put a head back to what it was. So before anything else is asked for, the
//! store touches its own hand: then it has been carried out by now, or never is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::{Cmd, Pipeline, RedisError, RedisResult, Value, cmd};
use tokio::sync::{Mutex as Lock, MutexGuard as LockGuard};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::connection::{Connection, Open};
use super::encode::{self, Part};
use super::keys::Keys;
use super::layout::{self, Packed};
use super::reply::Answer;
use super::{StoreError, entries, limits};
use crate::clock::Timestamp;
use crate::store::{Commit, Committed, Fence, Next, Status, WorkflowId};

/// Connections that are watched: each has one transaction outstanding at most. As many as a pump has calls.
const LANES: usize = 2;

/// A hand that nobody touches is forgotten after this long, and made anew by whoever is still there.
const HAND_KEPT: Duration = Duration::from_secs(24 * 3_600);

/// With fewer commits than this a call that needs the script anyway goes by it alone: a second round trip, and a second fsync, is more than they save.
const DIRECT_LEAST: usize = 16;

/// A kept lease is renewed once it has lost this part of its length: whoever commits often does not need it each time.
const WORN: u32 = 4;

/// What a hand says: another value after each touch.
type Hand = Arc<[u8]>;

/// A lease of this store's, as its head stands.
struct Held {
    fence: Fence,
    seq: u64,
    status: Status,
    created: Timestamp,
    until: Timestamp,
    /// The hand, at a moment at which the lease was certainly ours. None: its head has flags, which only a script keeps; or a script was asked,
    /// and has not answered.
    hand: Option<Hand>,
}

struct Lane {
    connection: Connection,
    /// The connection that is used, by its number. Another one may lead to another Redis: what was granted before has to be looked at there.
    number: Option<u64>,
    /// The hand when its watch began. None: nothing is watched, or that is not known, and nobody knows what has happened since.
    watched: Option<Hand>,
    /// Somebody has touched the hand since.
    is_stale: bool,
}

/// A commit that may go without a script, and what its head says.
struct Chosen {
    status: Status,
    created: Timestamp,
    /// When its lease will end.
    until: Timestamp,
    renews: bool,
}

/// Commits that may go without a script, and the lane that they go by.
pub(super) struct Turn<'a> {
    direct: &'a Direct,
    lane: LockGuard<'a, Lane>,
    open: Open,
    now: Timestamp,
    chosen: Vec<Chosen>,
    /// It was sent, and nobody knows what became of it.
    in_doubt: bool,
}

pub(super) struct Direct {
    lanes: [Lock<Lane>; LANES],
    held: Mutex<HashMap<WorkflowId, Held>>,
    /// The hand as a script has told it last.
    newest: Mutex<Option<Hand>>,
    /// When the store's clock was heard last, and what it said.
    heard: Mutex<Option<(Instant, Timestamp)>>,
    /// So many transactions of which nobody knew what became of them; and so many of these have been settled.
    doubts: AtomicU64,
    settled: AtomicU64,
    /// When a transaction was refused last, or could not even be sent.
    refused: Mutex<Option<Instant>>,
    /// How long none is tried after that.
    refused_pause: Duration,
    keys: Keys,
    pub(super) hand: String,
}

impl Direct {
    /// `session` names the store in the tickets of its claims. `connect` makes one more connection to the same Redis.
    pub(super) fn new(keys: &Keys, session: &str, refused_pause: Duration, connect: impl Fn() -> Connection) -> Direct {
        let lane = |_| Lock::new(Lane { connection: connect(), number: None, watched: None, is_stale: false });
        Direct {
            lanes: std::array::from_fn(lane),
            held: Mutex::default(),
            newest: Mutex::default(),
            heard: Mutex::default(),
            doubts: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            refused: Mutex::default(),
            refused_pause,
            keys: keys.clone(),
            hand: keys.hand(session),
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<WorkflowId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store's clock, as far as it was heard.
    pub(super) fn now(&self) -> Option<Timestamp> {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.map(|(at, said)| said + at.elapsed())
    }

    /// On return no transaction of before will be carried out any more.
    pub(super) async fn settle(&self, main: &Connection, operation: &'static str) -> Result<(), StoreError> {
        let doubts = self.doubts.load(Ordering::SeqCst);
        if self.settled.load(Ordering::SeqCst) < doubts {
            main.query(operation, &self.touch()).await?;
            self.settled.fetch_max(doubts, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Until a script has answered what it is asked, nobody knows how these stand.
    pub(super) fn ask(&self, part: &Part<'_>) {
        let mut held = self.held();
        let commits = part.commits.iter().map(|commit| (&commit.id, commit.fence));
        for (id, fence) in commits.chain(part.hand_back.iter().map(|(id, fence)| (id, *fence))) {
            if let Some(known) = held.get_mut(id).filter(|held| held.fence == fence) {
                known.hand = None;
            }
        }
    }

    fn newest(&self) -> MutexGuard<'_, Option<Hand>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self) -> MutexGuard<'_, Option<Instant>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After Redis has answered so where it should have carried something out: for a while no transaction is tried. The connection is not used again: perhaps it leads
    /// to one that is no primary any more.
    async fn pause_after(&self, lane: &Lane, number: u64, answers: &[Value]) {
        *self.refused() = Some(Instant::now());
        let why = answers.iter().find_map(|answer| if let Value::ServerError(error) = answer { Some(error.to_string()) } else { None });
        warn!(why = why.unwrap_or_default(), "Redis takes no transactions just now; commits go by scripts, which cost it more");
        lane.connection.give_up(number).await;
    }

    /// Gives the hand a value that it never had.
    fn touch(&self) -> Cmd {
        let mut touch = cmd("SET");
        touch.arg(&self.hand).arg(format!("{:x}", rand::random::<u64>())).arg("EX").arg(HAND_KEPT.as_secs());
        touch
    }

    /// Makes the hand, where a script has found none.
    pub(super) async fn begin(&self, main: &Connection, operation: &'static str, answer: &Answer) {
        if answer.hand.is_none()
            && !answer.advanced.claimed.is_empty()
            && let Err(error) = main.query(operation, &self.touch()).await
        {
            debug!(%error, "without a hand all goes by the script");
        }
    }

    /// Takes in what a script has answered at `at`.
    pub(super) fn hear(&self, asked: &Part<'_>, answer: &Answer, at: Instant) {
        let Answer { advanced, hand, kept_plain, claimed_plain, .. } = answer;
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        // Another one may have been heard since.
        if heard.is_none_or(|(newest, _)| newest <= at) {
            *heard = Some((at, advanced.now));
        }
        drop(heard);
        let hand: Option<Hand> = hand.as_deref().map(Arc::from);
        self.newest().clone_from(&hand);
        let mut held = self.held();
        for ((commit, committed), plain) in asked.commits.iter().zip(&advanced.commits).zip(kept_plain) {
            let is_ours = |held: &Held| held.fence == commit.fence;
            match committed {
                Committed::Done { lease_until: Some(until), .. } => {
                    let Some(known) = held.get_mut(&commit.id).filter(|held| is_ours(held)) else { continue };
                    known.seq = commit.expected + commit.entries.len() as u64;
                    (known.status, known.until) = (commit.status, *until);
                    known.hand = hand.clone().filter(|_| *plain);
                }
                Committed::Done { lease_until: None, .. } | Committed::Fenced | Committed::Conflict { .. } => {
                    if held.get(&commit.id).is_some_and(is_ours) {
                        held.remove(&commit.id);
                    }
                }
                Committed::Busy { .. } | Committed::Held { .. } => {}
            }
        }
        for ((id, fence), renewed) in asked.renew.iter().zip(&advanced.renewed) {
            let Some(known) = held.get_mut(id).filter(|held| held.fence == *fence) else { continue };
            match renewed {
                Some(until) => known.until = *until,
                None => drop(held.remove(id)),
            }
        }
        for (id, fence) in asked.hand_back {
            if held.get(id).is_some_and(|held| held.fence == *fence) {
                held.remove(id);
            }
        }
        if !asked.renew.is_empty() {
            // Whoever lets a lease expire does not say so.
            held.retain(|_, held| held.until >= advanced.now);
        }
        for (claimed, plain) in advanced.claimed.iter().zip(claimed_plain) {
            let document = &claimed.document;
            let known = Held {
                fence: claimed.fence,
                seq: document.seq,
                status: document.status,
                created: document.created,
                until: claimed.lease_until,
                hand: hand.clone().filter(|_| *plain),
            };
            held.insert(document.id.clone(), known);
        }
    }

    /// The first commits of `part`, as many as may go without a script, if a lane is free. None: none of them.
    pub(super) async fn turn(&self, main: &Connection, part: &Part<'_>) -> Option<Turn<'_>> {
        let commits = &part.commits;
        let in_doubt = self.settled.load(Ordering::SeqCst) < self.doubts.load(Ordering::SeqCst);
        let pauses = self.refused().is_some_and(|refused| refused.elapsed() < self.refused_pause);
        if cfg!(feature = "bug-commit-without-fence") || in_doubt || pauses {
            return None;
        }
        let (first, _) = commits.split_first()?;
        if !is_direct(first) || hand_of(&self.held(), first).is_none() {
            return None;
        }
        let mut lane = self.lanes.iter().find_map(|lane| lane.try_lock().ok())?;
        let Ok(open) = self.open(&lane, main).await else {
            // Whatever goes wrong here goes wrong with the script, too, which says what; or it is slow, and not to be tried with each commit.
            *self.refused() = Some(Instant::now());
            return None;
        };
        let open = open?;
        let is_new = lane.number != Some(open.number) || lane.watched.is_none();
        if is_new || lane.is_stale {
            let before = lane.watched.take();
            let mut pipeline = Pipeline::new();
            if is_new {
                // What was granted before has to be looked at.
                pipeline.add_command(self.touch());
            }
            // Ends the watch, and tells whether it was broken. A Redis that knows no transactions would carry out what follows one by one.
            pipeline.cmd("MULTI").cmd("EXEC");
            let exec = pipeline.len() - 1;
            self.watch(&mut pipeline);
            let answers = lane.connection.pipeline(&open, &pipeline).await.ok()?;
            // Where the touch was refused, what was granted before might pass for what is known here. (Where a doubt was settled before, or the transaction is
            // refused, too, it would not; so no test reaches this alone.)
            if is_new && !matches!(&answers[..], [Value::Okay, Value::Okay, Value::Array(_) | Value::Nil, ..]) {
                self.pause_after(&lane, open.number, &answers).await;
                return None;
            }
            lane.number = Some(open.number);
            lane.begins_to_watch(before.filter(|_| !is_new), &answers, exec);
            self.newest().clone_from(&lane.watched);
        }
        let hand = lane.watched.clone()?;
        let now = self.now()?;
        let held = self.held();
        let (mut met, mut chosen) = (HashSet::new(), Vec::new());
        for commit in commits {
            // Of several commits of one workflow the first.
            let is_first = met.insert(&commit.id);
            let may_go = is_first && is_direct(commit) && hand_of(&held, commit) == Some(&hand);
            // What comes after one that goes by the script does so, too: commits of one call are carried out in their order.
            let Some(known) = held.get(&commit.id).filter(|_| may_go) else { break };
            let is_fresh = (now + (part.lease - part.lease / WORN)..=now + part.lease).contains(&known.until);
            let renews = commit.next == Next::Keep && !is_fresh;
            let until = if renews { now + part.lease } else { known.until };
            chosen.push(Chosen { status: known.status, created: known.created, until, renews });
        }
        drop(held);
        if chosen.is_empty() {
            // One of them was touched. If it is the lane's, that begins to watch anew.
            lane.is_stale = *self.newest() != lane.watched;
            return None;
        }
        let is_all = chosen.len() == commits.len() && part.renew.is_empty() && part.hand_back.is_empty() && part.claim.is_none();
        if !is_all && chosen.len() < DIRECT_LEAST {
            return None;
        }
        Some(Turn { direct: self, lane, open, now, chosen, in_doubt: false })
    }

    /// The connection of a lane. None: it leads to another Redis than the scripts' one.
    async fn open(&self, lane: &Lane, main: &Connection) -> RedisResult<Option<Open>> {
        let open = lane.connection.open_watched().await?;
        // After a failover a lane may still lead to the process from before, which knows nothing of leases that were granted since.
        if lane.connection.run_of(&open).await? == main.run().await? {
            return Ok(Some(open));
        }
        lane.connection.give_up(open.number).await;
        Ok(None)
    }

    /// Begins a watch, and tells of the hand; made anew if it was forgotten.
    fn watch(&self, pipeline: &mut Pipeline) {
        let mut unless_there = self.touch();
        unless_there.arg("NX");
        pipeline.add_command(unless_there);
        pipeline.cmd("WATCH").arg(&self.hand).arg(&self.keys.halt);
        pipeline.cmd("GET").arg(&self.hand);
        pipeline.cmd("EXISTS").arg(&self.keys.halt);
    }
}

impl Lane {
    /// Takes in what a pipeline has answered that began a watch, and ended another one with its answer number `exec`. `before`: what that one began with.
    fn begins_to_watch(&mut self, before: Option<Hand>, answers: &[Value], exec: usize) {
        let is_broken = matches!(answers.get(exec), Some(Value::Nil));
        // Nobody gives a hand a value that it had.
        self.watched = watched(answers).filter(|hand| !(is_broken && Some(hand) == before.as_ref()));
        self.is_stale = false;
    }
}

/// What the end of a pipeline answers that [`Direct::watch`] ended. None: it does not watch, or the store is halted.
fn watched(answers: &[Value]) -> Option<Hand> {
    match answers {
        [.., Value::Okay, Value::BulkString(hand), Value::Int(0)] => Some(Arc::from(hand.as_slice())),
        _ => None,
    }
}

/// The hand at a moment at which the lease of `commit` was ours, and its head as the commit expects it. None: only a script can tell.
fn hand_of<'a>(held: &'a HashMap<WorkflowId, Held>, commit: &Commit) -> Option<&'a Hand> {
    let known = held.get(&commit.id).filter(|held| held.fence == commit.fence && held.seq == commit.expected);
    known.and_then(|known| known.hand.as_ref())
}

/// Could it go without a script, by what it says?
fn is_direct(commit: &Commit) -> bool {
    let alone = commit.take.is_empty() && commit.give.is_empty() && commit.create.is_empty() && commit.signals.is_empty();
    let stays_or_ends = matches!(commit.next, Next::Keep | Next::End { .. });
    alone && stays_or_ends && commit.consumed == 0 && commit.state.is_none() && !commit.entries.is_empty()
}

impl Turn<'_> {
    /// What became of those that went, in their order. None: nothing was written, or that is not known; the script will tell.
    pub(super) async fn commit(mut self, part: &Part<'_>) -> RedisResult<Option<Vec<Committed>>> {
        let (mut pipeline, ends) = self.transaction(part);
        self.direct.watch(&mut pipeline);
        let before = self.lane.watched.take();
        self.in_doubt = true;
        let answers = match self.lane.connection.pipeline(&self.open, &pipeline).await {
            Ok(answers) => answers,
            Err(error) => {
                debug!(%error, "a transaction was not answered; the script will tell what became of it");
                return Ok(None);
            }
        };
        self.in_doubt = false;
        self.lane.begins_to_watch(before, &answers, ends);
        match answers.get(ends) {
            Some(Value::Array(done)) => {
                if let Some(Value::ServerError(error)) = done.iter().find(|one| matches!(one, Value::ServerError(_))) {
                    return Err(RedisError::from(error.clone()));
                }
            }
            // Somebody has touched the hand.
            Some(Value::Nil) => return Ok(None),
            // It was refused as a whole.
            _ => {
                self.direct.pause_after(&self.lane, self.open.number, &answers).await;
                return Ok(None);
            }
        }
        let mut held = self.direct.held();
        let done = |(chosen, commit): (&Chosen, &&Commit)| {
            if commit.next != Next::Keep {
                held.remove(&commit.id);
                return Committed::Done { lease_until: None, signals: Vec::new() };
            }
            if let Some(known) = held.get_mut(&commit.id).filter(|held| held.fence == commit.fence) {
                known.seq += commit.entries.len() as u64;
                (known.status, known.until) = (commit.status, chosen.until);
            }
            Committed::Done { lease_until: Some(chosen.until), signals: Vec::new() }
        };
        Ok(Some(self.chosen.iter().zip(&part.commits).map(done).collect()))
    }

    /// What writes them, and the place of its answer.
    fn transaction(&self, part: &Part<'_>) -> (Pipeline, usize) {
        let (keys, now) = (&self.direct.keys, self.now);
        let of = |name: &str, key: &str| {
            let mut command = cmd(name);
            command.arg(key);
            command
        };
        let (mut heads, mut journal, mut renewed) = (of("HSET", &keys.heads), of("HSET", &keys.journal), of("ZADD", &keys.lease));
        let (mut over, mut closed) = (of("ZREM", &keys.lease), of("ZREM", &keys.open));
        let (mut ended, mut expiry) = (of("ZADD", &keys.ended), of("ZADD", &keys.expiry));
        let (mut told, mut counts) = (String::new(), BTreeMap::<&str, i64>::new());
        let (mut packed, mut text, mut renews, mut ends) = (Packed::default(), String::new(), false, false);
        for (chosen, commit) in self.chosen.iter().zip(&part.commits) {
            let (id, is_end) = (commit.id.as_str(), commit.next != Next::Keep);
            heads.arg(id).arg(head(&mut packed, commit, now));
            journal.arg(encode::field(&mut text, commit));
            entries::pack(&mut packed.0, &commit.entries);
            journal.arg(&packed.0);
            encode::tell(&mut told, commit);
            if commit.status != chosen.status || is_end {
                *counts.entry(chosen.status.as_str()).or_default() -= 1;
                if !is_end {
                    *counts.entry(commit.status.as_str()).or_default() += 1;
                }
            }
            if let Next::End { keep } = commit.next {
                ends = true;
                over.arg(id);
                closed.arg(id);
                ended.arg(chosen.created.millis()).arg(id);
                expiry.arg((now + keep.min(limits::KEEP_MAX)).millis()).arg(id);
            } else if chosen.renews {
                renews = true;
                renewed.arg(chosen.until.millis()).arg(id);
            }
        }
        let mut pipeline = Pipeline::new();
        pipeline.cmd("MULTI");
        pipeline.add_command(heads).add_command(journal);
        if renews {
            pipeline.add_command(renewed);
        }
        if ends {
            for command in [over, closed, ended, expiry] {
                pipeline.add_command(command);
            }
        }
        for (status, by) in counts.into_iter().filter(|(_, by)| *by != 0) {
            pipeline.cmd("HINCRBY").arg(&keys.counts).arg(status).arg(by);
        }
        pipeline.cmd("XADD").arg(&keys.events).arg("MAXLEN").arg("~").arg(limits::EVENTS_KEPT).arg("*").arg("e").arg(told);
        pipeline.cmd("INCR").arg(&keys.revision);
        pipeline.cmd("EXEC");
        let exec = pipeline.len() - 1;
        (pipeline, exec)
    }
}

impl Drop for Turn<'_> {
    /// Also where whoever waited for the answer has gone.
    fn drop(&mut self) {
        if self.in_doubt {
            self.direct.doubts.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// The head after a commit. It has no flags: what has some goes by the script.
fn head<'a>(packed: &'a mut Packed, commit: &Commit, now: Timestamp) -> &'a [u8] {
    let flags = if commit.next == Next::Keep { 0 } else { layout::ENDED };
    packed.clear().head(commit.expected + commit.entries.len() as u64, flags, commit.status, now);
    let newest = commit.entries.last().map(|newest| newest.digest);
    packed.add_tail(newest, commit.traceparent.as_deref(), "", commit.queue.as_str(), &commit.headline);
    &packed.0
}
