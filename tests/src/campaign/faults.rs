//! What goes wrong: who, when and how is decided by the seed, in several lanes at once, so that faults overlap.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::Method;
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::ledger::now_ms;
use super::stage::Stage;
use crate::servers::{Mishap, Which};

/// A killed process stays away for so long, in milliseconds.
const AWAY_MS: Range<u64> = 50..800;
/// A paused worker sleeps longer than its lease, which the campaign sets to two seconds.
const ASLEEP_MS: Range<u64> = 2_300..3_500;
/// Redis hangs: from less than an answer's time limit of one second to longer than a lease.
const HUNG_MS: Range<u64> = 400..2_600;
/// The wire is slow, or silent: from less than an answer's time limit to longer than a lease.
const SLOW_MS: Range<u64> = 20..400;
const SILENT_MS: Range<u64> = 600..2_600;
/// Redis is out of memory, or the disk is full, for so long.
const FULL_MS: Range<u64> = 300..1_500;
/// With the disk full, the next write ends Redis; with no write at all in this time there is none to refuse.
const WRITE_PATIENCE: Duration = Duration::from_secs(3);
/// From a write that did not fit to the end of Redis, on a busy machine.
const ENDING: Duration = Duration::from_millis(500);
/// Workflows that one doubled wake-up concerns.
const WOKEN_MAX: usize = 8;
/// Rollouts whose journal is damaged: each is lost to the campaign, so only a few.
const DAMAGED_MAX: usize = 3;
/// Redis's clock is wrong by so much: from one that is set to another, several leases at once, forward and back. Back means that leases end later and
/// what is due waits, which a campaign of a minute can't have for long.
const CLOCK_WRONG_BY_MS: Range<i64> = -4_000..12_000;
const CLOCK_SEEN_WITHIN_MS: i64 = 2_500;
/// Wake-ups are put forward or back by up to this much.
const MOVED_MS: i64 = 300;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    WorkerKilled,
    WorkerPaused,
    WorkerToldToStop,
    DaemonKilled,
    RedisKilled,
    RedisHung,
    RedisRestarted,
    HostKilled,
    DiskFull,
    MemoryFull,
    ClockSet,
    AnswerCut,
    WireCut,
    WireSilent,
    WireSlow,
    WakeUpsDoubled,
    WakeUpsReordered,
    BellsLost,
    SignalGarbled,
    JournalDamaged,
    SiteAnswersLost,
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Fault::WorkerKilled => "worker killed",
            Fault::WorkerPaused => "worker paused beyond its lease",
            Fault::WorkerToldToStop => "worker told to stop",
            Fault::DaemonKilled => "daemon killed",
            Fault::RedisKilled => "Redis killed",
            Fault::RedisHung => "Redis hung",
            Fault::RedisRestarted => "Redis restarted",
            Fault::HostKilled => "whole host killed",
            Fault::DiskFull => "disk full",
            Fault::MemoryFull => "Redis out of memory",
            Fault::ClockSet => "Redis's clock set",
            Fault::AnswerCut => "cut after the commit, before the answer",
            Fault::WireCut => "connections cut",
            Fault::WireSilent => "connections silent",
            Fault::WireSlow => "connections slow",
            Fault::WakeUpsDoubled => "wake-ups doubled",
            Fault::WakeUpsReordered => "wake-ups reordered",
            Fault::BellsLost => "bells lost",
            Fault::SignalGarbled => "garbage in an inbox",
            Fault::JournalDamaged => "a byte of a journal flipped",
            Fault::SiteAnswersLost => "answers of the site lost",
        }
    }
}

/// One stream of faults: what it may do, with weights, and its pauses in milliseconds.
struct Lane {
    faults: &'static [(Fault, u32)],
    pause_ms: Range<u64>,
    /// Of the workers, those whose number has this remainder by two: so that two lanes never strike the same one.
    workers: usize,
}

const PROCESSES: &[(Fault, u32)] = &[(Fault::WorkerKilled, 5), (Fault::WorkerPaused, 3), (Fault::WorkerToldToStop, 2)];
const STORE: &[(Fault, u32)] = &[
    (Fault::RedisKilled, 4),
    (Fault::RedisHung, 3),
    (Fault::RedisRestarted, 2),
    (Fault::MemoryFull, 2),
    (Fault::DiskFull, 2),
    (Fault::DaemonKilled, 4),
    (Fault::ClockSet, 3),
    (Fault::HostKilled, 1),
];
const WIRE: &[(Fault, u32)] = &[(Fault::AnswerCut, 5), (Fault::WireCut, 2), (Fault::WireSilent, 2), (Fault::WireSlow, 2)];
const NOISE: &[(Fault, u32)] = &[
    (Fault::WakeUpsDoubled, 3),
    (Fault::WakeUpsReordered, 2),
    (Fault::BellsLost, 2),
    (Fault::SignalGarbled, 1),
    (Fault::JournalDamaged, 1),
    (Fault::SiteAnswersLost, 3),
];

// Together some 1.3 faults a second, and each part of the system has seconds in which it works.
fn lanes() -> [Lane; 5] {
    [
        Lane { faults: PROCESSES, pause_ms: 1_500..4_500, workers: 0 },
        Lane { faults: PROCESSES, pause_ms: 1_500..4_500, workers: 1 },
        Lane { faults: STORE, pause_ms: 2_500..6_000, workers: 0 },
        Lane { faults: WIRE, pause_ms: 1_000..4_000, workers: 0 },
        Lane { faults: NOISE, pause_ms: 1_000..4_000, workers: 0 },
    ]
}

/// Deals the faults until `stop`, and counts them. All are mended on return.
pub(super) async fn deal(stage: &Stage, stop: &CancellationToken) -> io::Result<BTreeMap<Fault, u32>> {
    let dealt = Mutex::new(BTreeMap::new());
    let runs = lanes().into_iter().enumerate().map(|(number, lane)| {
        let random = StdRng::seed_from_u64(stage.seed.wrapping_mul(31).wrapping_add(number as u64));
        Dealer { stage, random, lane, damaged: Vec::new() }.run(stop, &dealt)
    });
    let [one, two, three, four, five] = runs.collect::<Vec<_>>().try_into().unwrap_or_else(|_| unreachable!("five lanes"));
    tokio::try_join!(one, two, three, four, five)?;
    Ok(dealt.into_inner().unwrap_or_else(PoisonError::into_inner))
}

struct Dealer<'a> {
    stage: &'a Stage,
    /// Journals that were damaged so far.
    damaged: Vec<String>,
    random: StdRng,
    lane: Lane,
}

impl Dealer<'_> {
    async fn run(mut self, stop: &CancellationToken, dealt: &Mutex<BTreeMap<Fault, u32>>) -> io::Result<()> {
        loop {
            let pause = self.millis(self.lane.pause_ms.clone());
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
            let fault = self.choose();
            let began = now_ms();
            if self.strike(fault).await? {
                *dealt.lock().unwrap_or_else(PoisonError::into_inner).entry(fault).or_insert(0) += 1;
                self.stage.faults.tell("mended", json!({ "kind": fault.name(), "began": began }));
            }
        }
    }

    fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.random.random_range(range))
    }

    fn choose(&mut self) -> Fault {
        let total: u32 = self.lane.faults.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.random.random_range(0..total);
        for (fault, weight) in self.lane.faults {
            if drawn < *weight {
                return *fault;
            }
            drawn -= weight;
        }
        unreachable!("the weights add up")
    }

    /// Whom it befalls is told before it is done.
    fn tell(&self, fault: Fault, pids: &[u32]) {
        self.stage.faults.tell("fault", json!({ "kind": fault.name(), "pids": pids }));
    }

    /// False if there was nothing to do it to.
    async fn strike(&mut self, fault: Fault) -> io::Result<bool> {
        match fault {
            Fault::WorkerKilled | Fault::WorkerPaused | Fault::WorkerToldToStop => self.worker(fault).await,
            Fault::DaemonKilled => self.daemon().await,
            Fault::RedisKilled | Fault::RedisHung | Fault::RedisRestarted => self.redis(fault).await,
            Fault::HostKilled => self.host().await,
            Fault::DiskFull => self.disk().await,
            Fault::MemoryFull => self.memory().await,
            Fault::ClockSet => self.clock().await,
            Fault::AnswerCut | Fault::WireCut | Fault::WireSilent | Fault::WireSlow => self.wire(fault).await,
            Fault::WakeUpsDoubled | Fault::WakeUpsReordered | Fault::BellsLost | Fault::SignalGarbled => self.noise(fault).await,
            Fault::JournalDamaged => self.damage().await,
            Fault::SiteAnswersLost => Ok(self.site()),
        }
    }

    async fn worker(&mut self, fault: Fault) -> io::Result<bool> {
        let away = self.millis(AWAY_MS);
        let asleep = self.millis(ASLEEP_MS);
        let workers = self.stage.processes.lock().await.workers();
        let index = self.random.random_range(0..workers.div_ceil(2)) * 2 + self.lane.workers;
        let index = index.min(workers - 1);
        let Some(pid) = self.stage.processes.lock().await.worker_pid(index) else { return Ok(false) };
        self.tell(fault, &[pid]);
        match fault {
            Fault::WorkerPaused => {
                self.stage.processes.lock().await.signal_worker(index, Signal::SIGSTOP)?;
                tokio::time::sleep(asleep).await;
                self.stage.processes.lock().await.signal_worker(index, Signal::SIGCONT)?;
            }
            Fault::WorkerToldToStop => self.stage.processes.lock().await.stop_worker(index).await?,
            _ => {
                self.stage.processes.lock().await.kill_worker(index).await?;
                tokio::time::sleep(away).await;
            }
        }
        self.stage.processes.lock().await.start_what_is_missing()?;
        Ok(true)
    }

    async fn daemon(&mut self) -> io::Result<bool> {
        let away = self.millis(AWAY_MS);
        let second = self.random.random_bool(0.5);
        self.tell(Fault::DaemonKilled, &[]);
        {
            let mut processes = self.stage.processes.lock().await;
            if second { processes.kill_second_daemon().await? } else { processes.kill_daemon().await? }
        }
        tokio::time::sleep(away).await;
        self.stage.processes.lock().await.start_what_is_missing()?;
        Ok(true)
    }

    async fn redis(&mut self, fault: Fault) -> io::Result<bool> {
        let (away, hung) = (self.millis(AWAY_MS), self.millis(HUNG_MS));
        self.tell(fault, &[]);
        if fault == Fault::RedisHung {
            self.stage.processes.lock().await.signal_redis(Signal::SIGSTOP)?;
            tokio::time::sleep(hung).await;
            self.stage.processes.lock().await.signal_redis(Signal::SIGCONT)?;
            return Ok(true);
        }
        if fault == Fault::RedisKilled {
            self.stage.processes.lock().await.kill_redis().await?;
        } else {
            self.stage.processes.lock().await.stop_redis().await?;
        }
        tokio::time::sleep(away).await;
        self.stage.processes.lock().await.start_redis().await?;
        Ok(true)
    }

    async fn host(&mut self) -> io::Result<bool> {
        let away = self.millis(AWAY_MS);
        let mut processes = self.stage.processes.lock().await;
        let pids: Vec<u32> = (0..processes.workers()).filter_map(|index| processes.worker_pid(index)).collect();
        self.tell(Fault::HostKilled, &pids);
        processes.kill_all().await?;
        tokio::time::sleep(away).await;
        processes.start_redis().await?;
        processes.start_what_is_missing()?;
        Ok(true)
    }

    /// With appendfsync always, Redis ends itself at the first write that does not fit.
    async fn disk(&mut self) -> io::Result<bool> {
        let full = self.millis(FULL_MS);
        let Some(disk) = &self.stage.disk else { return Ok(false) };
        self.tell(Fault::DiskFull, &[]);
        disk.fill()?;
        let ended = self.stage.processes.lock().await.redis_ends(WRITE_PATIENCE).await?;
        if ended {
            tokio::time::sleep(full).await;
        }
        disk.make_room()?;
        let mut processes = self.stage.processes.lock().await;
        // Perhaps it has just met the full disk, and ends only now.
        let ended = ended || processes.redis_ends(ENDING).await?;
        if ended {
            processes.start_redis().await?;
        }
        Ok(ended)
    }

    async fn memory(&mut self) -> io::Result<bool> {
        let full = self.millis(FULL_MS);
        let Ok(mut redis) = self.stage.redis().await else { return Ok(false) };
        self.tell(Fault::MemoryFull, &[]);
        let limit = |bytes: &'static str| redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes).to_owned();
        limit("1").query_async::<()>(&mut redis).await.map_err(io::Error::other)?;
        tokio::time::sleep(full).await;
        limit("0").query_async::<()>(&mut redis).await.map_err(io::Error::other)?;
        Ok(true)
    }

    /// It stays so until it is set again.
    async fn clock(&mut self) -> io::Result<bool> {
        let wrong_by = self.random.random_range(CLOCK_WRONG_BY_MS);
        let Some(clock) = &self.stage.clock else { return Ok(false) };
        self.tell(Fault::ClockSet, &[]);
        clock.set(wrong_by)?;
        // A Redis that is away now has it when it is back.
        let Ok(mut redis) = self.stage.redis().await else { return Ok(true) };
        let Ok((seconds, micros)) = redis::cmd("TIME").query_async::<(i64, i64)>(&mut redis).await else { return Ok(true) };
        let seen = seconds * 1_000 + micros / 1_000 - now_ms();
        // An answer may be late by as long as one is waited for.
        if (wrong_by - CLOCK_SEEN_WITHIN_MS..=wrong_by + CLOCK_SEEN_WITHIN_MS).contains(&seen) {
            return Ok(true);
        }
        Err(io::Error::other(format!("Redis's clock was set to be wrong by {wrong_by} ms, and is wrong by {seen} ms")))
    }

    async fn wire(&mut self, fault: Fault) -> io::Result<bool> {
        let (slow, silent) = (self.millis(SLOW_MS), self.millis(SILENT_MS));
        let workers = self.stage.processes.lock().await.workers();
        let index = self.random.random_range(0..workers + 1);
        // One worker's connections, or everybody's.
        let pid = if index == workers { None } else { self.stage.processes.lock().await.worker_pid(index) };
        self.tell(fault, &[]);
        let wire = &self.stage.wire;
        let concerned = match fault {
            Fault::AnswerCut => wire.cut_before_answer(pid),
            Fault::WireCut => wire.cut(pid),
            Fault::WireSilent => wire.stall(pid),
            _ => wire.delay(pid, slow),
        };
        if matches!(fault, Fault::WireSilent | Fault::WireSlow) {
            tokio::time::sleep(silent).await;
            wire.heal();
        }
        Ok(concerned > 0)
    }

    fn site(&mut self) -> bool {
        let mishap = match self.random.random_range(0..4) {
            0 => Mishap::Status(503),
            1 => Mishap::StatusAfterEffect(502),
            2 => Mishap::CutBefore,
            _ => Mishap::CutAfterEffect,
        };
        self.tell(Fault::SiteAnswersLost, &[]);
        // What only looks is asked for most of the time: half of the mishaps wait for a call that changes something.
        let which = match self.random.random_range(0..6) {
            0 => Which::change(Method::POST, ""),
            1 => Which::change(Method::PUT, ""),
            2 => Which::change(Method::PATCH, ""),
            _ => Which::any(),
        };
        self.stage.site.servers.mishaps.plan(which, mishap, self.random.random_range(1..4));
        true
    }

    /// One bit of one entry of a rollout that waits for its nodes: they end as they would, and only it can't be believed any more.
    async fn damage(&mut self) -> io::Result<bool> {
        let Ok(mut redis) = self.stage.redis().await else { return Ok(false) };
        let open: Vec<String> = match redis::cmd("ZRANGE").arg("{ta}:idx:open").arg(0).arg(-1).query_async(&mut redis).await {
            Ok(open) => open,
            Err(_) => return Ok(false),
        };
        let rollouts: Vec<&String> = open.iter().filter(|id| !id.contains('.') && id.contains("rollout") && !self.damaged.contains(id)).collect();
        if rollouts.is_empty() || self.damaged.len() >= DAMAGED_MAX {
            return Ok(false);
        }
        let id = rollouts[self.random.random_range(0..rollouts.len())].clone();
        let entries = redis::cmd("EVAL").arg(ENTRIES).arg(0).arg(&id).query_async::<u64>(&mut redis).await;
        let Ok(entries @ 1..) = entries else { return Ok(false) };
        let (seq, place) = (self.random.random_range(1..=entries), self.random.random_range(0..1_000));
        let flipped = redis::cmd("EVAL").arg(FLIP).arg(0).arg(&id).arg(seq).arg(place).query_async::<u8>(&mut redis).await;
        if flipped.as_ref().is_ok_and(|flipped| *flipped == 0) {
            return Ok(false);
        }
        self.damaged.push(id.clone());
        // Redis may have been killed before it said that it had done so.
        let line = json!({ "kind": Fault::JournalDamaged.name(), "pids": [], "workflow": id, "poisoned": seq, "perhaps": flipped.is_err() });
        self.stage.faults.tell("fault", line);
        Ok(true)
    }

    /// What a queue may do to its messages, by Redis's own commands on the product's keys.
    async fn noise(&mut self, fault: Fault) -> io::Result<bool> {
        let Ok(mut redis) = self.stage.redis().await else { return Ok(false) };
        let open: Vec<String> = match redis::cmd("ZRANGE").arg("{ta}:idx:open").arg(0).arg(-1).query_async(&mut redis).await {
            Ok(open) => open,
            Err(_) => return Ok(false),
        };
        if open.is_empty() {
            return Ok(false);
        }
        self.tell(fault, &[]);
        let now = now_ms();
        let mut pipe = redis::pipe();
        for _ in 0..self.random.random_range(1..=WOKEN_MAX) {
            let id = &open[self.random.random_range(0..open.len())];
            let (script, at) = match fault {
                Fault::WakeUpsDoubled => (WAKE, now),
                Fault::WakeUpsReordered => (MOVE, now + self.random.random_range(-MOVED_MS..=MOVED_MS)),
                Fault::BellsLost => (SILENCE, now),
                _ => (GARBLE, now),
            };
            pipe.cmd("EVAL").arg(script).arg(0).arg(id).arg(at).ignore();
        }
        Ok(pipe.query_async::<()>(&mut redis).await.is_ok())
    }
}

/// What a head says in front: entries, flags (1: mail, 8: ended), tries, status (from 0; 1: waiting); queue is the third text after
/// one more number and a digest of 32 bytes. Somebody has what has a holder.
macro_rules! with_head {
    ($rest:literal) => {
        concat!(
            "local head = redis.call('HGET', '{ta}:heads', ARGV[1]) if not head then return 0 end ",
            "local entries, flags, tries, status = struct.unpack('<IBHB', head) local _, _, queue = struct.unpack('sss', head, 49) ",
            $rest
        )
    };
}

/// How many entries the journal has.
const ENTRIES: &str = with_head!("return entries");
/// Wakes an open workflow, also one that somebody has in hand, and rings twice.
const WAKE: &str = with_head!(
    r"
if flags >= 8 then return 0 end
redis.call('ZADD', '{ta}:due:' .. queue, ARGV[2], ARGV[1])
return redis.call('LPUSH', '{ta}:bell:' .. queue, '1', '1')"
);
/// Moves a wake-up that is due anyway.
const MOVE: &str = with_head!("return redis.call('ZADD', '{ta}:due:' .. queue, 'XX', ARGV[2], ARGV[1])");
const SILENCE: &str = with_head!("return redis.call('DEL', '{ta}:bell:' .. queue)");
/// Something that is no signal in the inbox of a workflow that is open and not in hand, as if a program had gone wrong.
const GARBLE: &str = with_head!(
    r"
if flags >= 8 or redis.call('HEXISTS', '{ta}:holders', ARGV[1]) == 1 then return 0 end
redis.call('RPUSH', '{ta}:inbox:' .. ARGV[1], '{\34no\34: \34signal')
redis.call('HSET', '{ta}:heads', ARGV[1], string.sub(head, 1, 4) .. string.char(bit.bor(flags, 1)) .. string.sub(head, 6))
return redis.call('ZADD', '{ta}:due:' .. queue, ARGV[2], ARGV[1])"
);
/// Flips a bit in one entry of a workflow that waits and whose lease nobody has, and wakes it. 0: it does not wait.
const FLIP: &str = with_head!(
    r"
if status ~= 1 or redis.call('HEXISTS', '{ta}:holders', ARGV[1]) == 1 then return 0 end
-- What its commit appended stands under the place of the first of its entries.
local first, name, kept = tonumber(ARGV[2])
repeat
  name = ARGV[1] .. ':' .. first
  kept = redis.call('HGET', '{ta}:journal', name)
  first = first - 1
until kept or first < 1
local at, length = 1
for place = first + 1, tonumber(ARGV[2]) do
  if length then at = at + 36 + length end
  length = struct.unpack('<I', kept, at + 32)
end
-- A digest and the length of the text are in front: it is the text that is damaged.
at = at + 36 + ARGV[3] % length
local flipped = string.char(bit.bxor(string.byte(kept, at), 1))
redis.call('HSET', '{ta}:journal', name, string.sub(kept, 1, at - 1) .. flipped .. string.sub(kept, at + 1))
redis.call('ZADD', '{ta}:due:' .. queue, 0, ARGV[1])
return 1"
);
