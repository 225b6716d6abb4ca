//! How the store is, compared with what a witness remembers; and the halt, lifted by a person.

use ::redis::Value;

use super::reply::{self, Malformed, Reply};
use super::{RedisStore, StoreError, damaged_answer, layout};
use crate::clock::Timestamp;
use crate::store::high_water::{Halt, HighWater, Landmark, Loss, Standing};

/// Hexadecimal digits of a store's name: 64 bits, so that no two stores ever have the same.
const IDENTITY_DIGITS: usize = 16;

/// A name that no store has yet.
fn fresh_identity() -> String {
    format!("{:0IDENTITY_DIGITS$x}", rand::random::<u64>())
}

#[derive(Debug, thiserror::Error)]
#[error("another release of Turnaround keeps workflows here, in another form (this one has form {})", layout::LAYOUT)]
struct OtherLayout;

impl RedisStore {
    /// On return the store has a name and a revision, unless it has one without the other.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] if another release keeps its workflows there in another form.
    pub(super) async fn open(&self) -> Result<(), StoreError> {
        const OPERATION: &str = "open the store";
        let mut call = self.scripts.open.bare_call(&[&self.keys.store, &self.keys.revision]);
        call.arg(fresh_identity()).arg(layout::LAYOUT);
        match self.word(OPERATION, &self.scripts.open, call, &["known", "named", "other-layout"]).await? {
            "other-layout" => Err(StoreError::Unusable {
                operation: OPERATION,
                remedy: format!(
                    "let the release that wrote it bring its workflows to their end; then stop daemon and workers, and give this one a Redis without `{}` (its own: move the folder `redis` of \
                     the state directory away). It halts, as it has lost what was there: `turnaround store accept`",
                    self.keys.store
                ),
                source: Box::new(OtherLayout),
            }),
            _ => Ok(()),
        }
    }

    pub(super) async fn read_standing(&self) -> Result<Standing, StoreError> {
        let call = self.scripts.standing.bare_call(&self.keys.watched());
        const OPERATION: &str = "read how the store is";
        let answer = self.scripts.standing.run(&self.connection, OPERATION, call).await?;
        standing(answer).map_err(|source| damaged_answer(OPERATION, source))
    }

    pub(super) async fn compared(&self, remembered: &HighWater, by: &str) -> Result<Standing, StoreError> {
        if remembered.identity.is_none() {
            self.open().await?;
        }
        let mut call = self.scripts.compare.bare_call(&self.keys.watched());
        call.arg(&remembered.witness)
            .arg(remembered.identity.as_deref().unwrap_or_default())
            .arg(remembered.accepted.millis())
            .arg(remembered.revision)
            .arg(remembered.looks)
            .arg(by);
        const OPERATION: &str = "compare the store with what is remembered";
        let answer = self.scripts.compare.run_with_run(&self.connection, OPERATION, call).await?;
        standing(answer).map_err(|source| damaged_answer(OPERATION, source))
    }

    pub(super) async fn accepted(&self, remembered: &HighWater, by: &str) -> Result<Option<Standing>, StoreError> {
        const OPERATION: &str = "accept the store as it is";
        let script = &self.scripts.accept;
        let mut from = 0;
        loop {
            let mut call = script.call(&self.keys);
            call.arg(from)
                .arg(by)
                .arg(&remembered.witness)
                .arg(fresh_identity())
                .arg(remembered.identity.as_deref().unwrap_or_default())
                .arg(remembered.accepted.millis())
                .arg(remembered.revision);
            match script.run(&self.connection, OPERATION, call).await? {
                Value::Nil => return Ok(None),
                Value::Int(next) => from = next,
                answer => return standing(answer).map(Some).map_err(|source| damaged_answer(OPERATION, source)),
            }
        }
    }
}

/// What `compare.lua`, `standing.lua` and `accept.lua` answer.
fn standing(answer: Value) -> Result<Standing, Malformed> {
    let mut reply = Reply::of(answer)?;
    let identity = reply.optional_text()?;
    // Below zero while the store is halted; none if it was emptied.
    let revision = reply.optional_text()?.unwrap_or_else(|| "0".to_owned());
    let revision = number(revision.trim_start_matches('-').to_owned())?;
    let accepted = reply.optional_text()?.map_or(Ok(0), number)?;
    let looks = reply.number()?;
    let halt = reply::pairs(reply.value()?)?;
    let halt = if halt.is_empty() { None } else { Some(read_halt(&halt)?) };
    Ok(Standing { identity, revision, accepted: Timestamp::from_millis(accepted), looks, halt })
}

fn read_halt(fields: &[(String, String)]) -> Result<Halt, Malformed> {
    let text = |name: &'static str| {
        let found = fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.clone());
        found.ok_or_else(|| Malformed::new("each field of a halt", name))
    };
    let landmark = |identity, revision, looks| {
        let identity = Some(text(identity)?).filter(|identity| !identity.is_empty());
        Ok(Landmark { identity, revision: number(text(revision)?.trim_start_matches('-').to_owned())?, looks: number(text(looks)?)? })
    };
    let loss = text("loss")?;
    let known = Loss::ALL.into_iter().find(|known| known.as_str() == loss);
    Ok(Halt {
        since: Timestamp::from_millis(number(text("since")?)?),
        noticed_by: text("by")?,
        loss: known.ok_or_else(|| Malformed::new("a loss", loss))?,
        expected: landmark("expected", "expected_revision", "expected_looks")?,
        found: landmark("found", "found_revision", "found_looks")?,
    })
}

fn number<T: std::str::FromStr>(text: String) -> Result<T, Malformed> {
    text.parse().map_err(|_| Malformed::new("a number", text))
}
