//! Creations that are asked for at the same time go together: a call of their own costs Redis five times what a creation costs in
//! company. Who is alone does not wait for others; what is asked for while a call is outstanding goes with the next one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::redis::Value;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connection::Connection;
use super::keys::Keys;
use super::reply::{self, Malformed, Reply};
use super::script::Scripts;
use super::{StoreError, damaged_answer, encode, outage};
use crate::clock::Timestamp;
use crate::store::{Created, NewWorkflow};

const OPERATION: &str = "create a workflow";

/// Creations that one call carries.
// About 3 ms of Redis, in which nobody else is served; as many as commits, for which larger calls were measured to be worse.
const TOGETHER_MAX: usize = crate::store::COMMITS_MAX;

/// Calls that are outstanding at the same time: while Redis carries one out, the other is packed or read.
const CALLS_MAX: usize = 2;

/// A second call is only worth while if it has so many to carry.
const SECOND_CALL_FROM: usize = TOGETHER_MAX / 4;

/// Whoever should have answered is gone.
#[derive(Debug, thiserror::Error)]
#[error("the call was given up: its runtime ends, or it met a bug in this program")]
struct GivenUp;

struct Asked {
    new: NewWorkflow,
    reply: oneshot::Sender<Result<Created, StoreError>>,
}

#[derive(Default)]
struct Line {
    waiting: Vec<Asked>,
    /// Tasks that carry what waits.
    calls: usize,
}

struct Shared {
    connection: Arc<Connection>,
    scripts: Arc<Scripts>,
    keys: Keys,
    line: Mutex<Line>,
    /// When the store's clock was heard last, and what it said.
    heard: Mutex<Option<(Instant, Timestamp)>>,
}

/// The one way to create workflows by themselves.
pub(super) struct Creations(Arc<Shared>);

impl Creations {
    pub(super) fn new(connection: Arc<Connection>, scripts: Arc<Scripts>, keys: Keys) -> Creations {
        Creations(Arc::new(Shared { connection, scripts, keys, line: Mutex::default(), heard: Mutex::default() }))
    }

    /// As if the store's clock had just said `now`.
    #[cfg(test)]
    pub(super) fn hear(&self, now: Timestamp) {
        *self.0.heard() = Some((Instant::now(), now));
    }

    /// A caller that goes away takes back what was not sent yet, and nothing else.
    pub(super) async fn create(&self, new: NewWorkflow) -> Result<Created, StoreError> {
        let (reply, answer) = oneshot::channel();
        if self.0.join(Asked { new, reply }) {
            // A task of its own: the first caller may go away while others rely on its call.
            tokio::spawn(carry(Turn { shared: self.0.clone(), over: false }));
        }
        answer.await.unwrap_or_else(|_| Err(StoreError::Unavailable { operation: OPERATION, source: Box::new(GivenUp) }))
    }
}

impl Shared {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self) -> MutexGuard<'_, Option<(Instant, Timestamp)>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if whoever joined is to start a call.
    fn join(&self, asked: Asked) -> bool {
        let mut line = self.line();
        line.waiting.push(asked);
        let starts = line.calls == 0 || (line.calls < CALLS_MAX && line.waiting.len() >= SECOND_CALL_FROM);
        line.calls += usize::from(starts);
        starts
    }

    async fn call(&self, together: Vec<Asked>) {
        let script = &self.scripts.create;
        let heard = *self.heard();
        let now = heard.map(|(at, said)| said + at.elapsed());
        let call = encode::new_workflows(script.call(&self.keys), now, together.iter().map(|asked| &asked.new));
        let made = match script.run(&self.connection, OPERATION, call).await {
            Ok(answer) => read(answer, together.len()).map_err(|source| damaged_answer(OPERATION, source)),
            Err(error) => Err(error),
        };
        let made = made.map(|(now, made)| {
            *self.heard() = Some((Instant::now(), now));
            made
        });
        match made {
            Ok(made) => {
                for (asked, made) in together.into_iter().zip(made) {
                    // Whoever asked may be gone: what was created stands all the same.
                    let _ = asked.reply.send(made);
                }
            }
            Err(error) => {
                for asked in together {
                    let _ = asked.reply.send(Err(outage::again(&error)));
                }
            }
        }
    }
}

/// The right to carry what waits.
struct Turn {
    shared: Arc<Shared>,
    over: bool,
}

impl Turn {
    /// What goes together next; None, and the turn is over, if nobody waits.
    fn next(&mut self) -> Option<Vec<Asked>> {
        let mut line = self.shared.line();
        line.waiting.retain(|asked| !asked.reply.is_closed());
        if line.waiting.is_empty() {
            // Under the same lock: whoever joins now starts a call.
            line.calls -= 1;
            self.over = true;
            return None;
        }
        let count = line.waiting.len().min(TOGETHER_MAX);
        Some(line.waiting.drain(..count).collect())
    }
}

impl Drop for Turn {
    /// Ended before its time, with its runtime or by a panic. Those who wait hear of it instead of waiting for ever.
    fn drop(&mut self) {
        if !self.over {
            let mut line = self.shared.line();
            line.calls -= 1;
            line.waiting.clear();
        }
    }
}

async fn carry(mut turn: Turn) {
    while let Some(together) = turn.next() {
        turn.shared.call(together).await;
    }
}

/// What the store's clock says, and one answer for each of `count`.
fn read(answer: Value, count: usize) -> Result<(Timestamp, Vec<Result<Created, StoreError>>), Malformed> {
    let mut answer = Reply::of(answer)?;
    let now = Timestamp::from_millis(answer.number()?);
    let mut answers = answer.array()?;
    if answers.is_empty() {
        return Ok((now, (0..count).map(|_| Ok(Created::New)).collect()));
    }
    let made = (0..count)
        .map(|_| match answers.value()? {
            Value::Array(told) => {
                let told = reply::texts(Value::Array(told))?.join(" ");
                Ok(Err(outage::changed_by_hand(OPERATION, told)))
            }
            word => match reply::text(word)?.as_str() {
                "new" => Ok(Ok(Created::New)),
                "existing" => Ok(Ok(Created::Existing)),
                other => Err(Malformed::new("a known word", other)),
            },
        })
        .collect::<Result<_, _>>()?;
    Ok((now, made))
}
