//! What a claim was granted, with all that belongs to it. The script that grants leases looks into none of it, because its language makes a string of whatever it
//! looks into, and hashes all of that. It is read once the leases are there: a document never changes, only whoever has the lease appends to a
//! journal, and what else others change of a head (its flags) they tell its holder of (`direct.rs`).
//!
//! What turns out not to be fit for work is told to the script, which looks for itself, and takes the lease back.

use std::ops::RangeInclusive;

use ::redis::{Pipeline, RedisError, Value};

use super::encode::Part;
use super::keys::Keys;
use super::layout::{self, Kept};
use super::reply::{self, Granted, Malformed, Reply};
use super::tickets::Tickets;
use super::{PAGE_MAX, RedisStore, StoreError, damaged_answer, entries, limits, outage};
use crate::store::{Claimed, Fence, Queue, WorkflowId};

const OPERATION: &str = "read what was claimed";

/// The most places of one journal that are read together with those of others; the rest of long ones is read in pages.
const PLACES_MAX: u64 = 128;

/// Fields read with one command: Redis does nothing else meanwhile.
// About 0.5 ms.
const FIELDS_MAX: usize = 1_000;

/// A workflow whose head and document were read.
struct Begun {
    claimed: Claimed,
    /// Of its head.
    flags: u8,
    /// What stands at the places of its journal, from the first on.
    fields: Vec<Value>,
}

impl Begun {
    fn has_mail(&self) -> bool {
        self.flags & layout::MAIL != 0
    }

    /// The places of its journal that come after the first.
    fn places(&self) -> RangeInclusive<u64> {
        2..=self.claimed.document.seq.min(PLACES_MAX)
    }
}

impl RedisStore {
    /// What can be worked on by whoever serves these queues; and of each whether its head has no flags.
    pub(super) async fn hand_out(&self, granted: Vec<Granted>, served: &[Queue]) -> Result<(Vec<Claimed>, Vec<bool>), StoreError> {
        let mut unfit = Vec::new();
        let begun = self.begin(granted, served, &mut unfit).await?;
        let begun = self.read_on(begun, &mut unfit).await?;
        if !unfit.is_empty() {
            self.run_advance(&Part { unfit: &unfit, served, ..Part::empty() }, &Tickets::default()).await?;
        }
        let (mut handed_out, mut plain) = (Vec::with_capacity(begun.len()), Vec::with_capacity(begun.len()));
        for Begun { mut claimed, flags, fields } in begun {
            if let Err(unreadable) = entries::follow(fields, 1, 1, &mut claimed.journal) {
                claimed.damage.get_or_insert_with(|| format!("its journal: {unreadable}"));
            }
            self.complete(&mut claimed).await?;
            handed_out.push(claimed);
            plain.push(flags == 0);
        }
        Ok((handed_out, plain))
    }

    /// Reads heads, documents, and what stands first in journals: all that there is of what is new.
    async fn begin(&self, granted: Vec<Granted>, served: &[Queue], unfit: &mut Vec<(WorkflowId, Fence)>) -> Result<Vec<Begun>, StoreError> {
        if granted.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<&str> = granted.iter().map(|one| one.id.as_str()).collect();
        let firsts: Vec<String> = ids.iter().map(|id| Keys::entries(id, 1)).collect();
        let mut pipeline = Pipeline::new();
        for key in [&self.keys.heads, &self.keys.documents] {
            read_fields(&mut pipeline, key, &ids);
        }
        read_fields(&mut pipeline, &self.keys.journal, &firsts);
        let mut read = fields(self.connection.queries(OPERATION, &pipeline).await?, 3 * ids.len())?;
        let mut rows: [_; 3] = std::array::from_fn(|column| column * granted.len());
        let mut begun = Vec::with_capacity(granted.len());
        for one in granted {
            let [head, document, first] = rows.map(|row| std::mem::replace(&mut read[row], Value::Nil));
            rows = rows.map(|row| row + 1);
            let named = (one.id.clone(), one.lease.fence);
            match begin(one, head, document, first, served)? {
                Some(fit) => begun.push(fit),
                None => unfit.push(named),
            }
        }
        Ok(begun)
    }

    /// Reads the signals, and the rest of journals that are not long.
    async fn read_on(&self, begun: Vec<Begun>, unfit: &mut Vec<(WorkflowId, Fence)>) -> Result<Vec<Begun>, StoreError> {
        let mut pipeline = Pipeline::new();
        let places = |one: &Begun| one.places().map(|place| Keys::entries(one.claimed.document.id.as_str(), place)).collect::<Vec<_>>();
        let names: Vec<String> = begun.iter().flat_map(places).collect();
        for id in begun.iter().filter(|one| one.has_mail()).map(|one| &one.claimed.document.id) {
            pipeline.cmd("LRANGE").arg(self.keys.inbox(id)).arg(0).arg(limits::SIGNALS_HANDED_MAX - 1);
        }
        let mails = pipeline.len();
        read_fields(&mut pipeline, &self.keys.journal, &names);
        if pipeline.is_empty() {
            return Ok(begun);
        }
        let mut answers = self.connection.queries(OPERATION, &pipeline).await?.into_iter();
        let mut mail = answers.by_ref().take(mails).collect::<Vec<_>>().into_iter();
        let mut rest = fields(answers.collect(), names.len())?.into_iter();
        let mut fit = Vec::with_capacity(begun.len());
        for mut one in begun {
            let places = one.places().count();
            one.fields.extend(rest.by_ref().take(places));
            match one.has_mail().then(|| mail.next()).flatten() {
                // It is no list: somebody else has written there.
                Some(Value::ServerError(error)) if error.code() != "WRONGTYPE" => return Err(outage::judge(OPERATION, RedisError::from(error))),
                Some(Value::ServerError(_)) => unfit.push((one.claimed.document.id, one.claimed.fence)),
                Some(bodies) => {
                    one.claimed.signals = reply::signals(bodies).map_err(|source| damaged_answer(OPERATION, source))?;
                    fit.push(one);
                }
                None => fit.push(one),
            }
        }
        Ok(fit)
    }

    /// The rest of a long journal, in pages.
    async fn complete(&self, claimed: &mut Claimed) -> Result<(), StoreError> {
        while claimed.damage.is_none() && (claimed.journal.len() as u64) < claimed.document.seq {
            // A commit begins here.
            let from = claimed.journal.len() as u64 + 1;
            let end = from + u64::from(PAGE_MAX);
            let fields = self.fields("read a claimed journal", &claimed.document.id, from, end).await?;
            match entries::follow(fields, from, from, &mut claimed.journal) {
                Ok(next) if next == from => claimed.damage = Some(format!("entry {from} of its journal is not there")),
                Ok(_) => {}
                Err(unreadable) => claimed.damage = Some(format!("its journal: {unreadable}")),
            }
        }
        claimed.journal.truncate(usize::try_from(claimed.document.seq).unwrap_or(usize::MAX));
        Ok(())
    }
}

fn read_fields<T: AsRef<str>>(pipeline: &mut Pipeline, key: &str, fields: &[T]) {
    for some in fields.chunks(FIELDS_MAX) {
        let command = pipeline.cmd("HMGET").arg(key);
        for field in some {
            command.arg(field.as_ref());
        }
    }
}

/// All that `HMGET`s have answered.
fn fields(answers: Vec<Value>, count: usize) -> Result<Vec<Value>, StoreError> {
    let mut fields = Vec::with_capacity(count);
    for answer in answers {
        match answer {
            Value::ServerError(error) => return Err(outage::judge(OPERATION, RedisError::from(error))),
            answer => fields.extend(Reply::of(answer).map_err(|source| damaged_answer(OPERATION, source))?.rest()),
        }
    }
    if fields.len() == count {
        return Ok(fields);
    }
    Err(damaged_answer(OPERATION, Malformed::new("an answer for each field", fields.len().to_string())))
}

/// None: it is not fit for work, or not for those who serve these queues.
fn begin(granted: Granted, head: Value, document: Value, first: Value, served: &[Queue]) -> Result<Option<Begun>, StoreError> {
    let Granted { id, lease } = granted;
    let bytes = |value| reply::optional_bytes(value).map_err(|source| damaged_answer(OPERATION, source));
    let (head, document) = (bytes(head)?, bytes(document)?);
    let Some(Ok(kept)) = head.map(|head| layout::kept(id, &head, document.as_deref())) else { return Ok(None) };
    let Kept { mut document, tries, flags, damage } = kept;
    let is_elsewhere = damage.is_none() && !served.contains(&document.queue);
    if is_elsewhere || flags & layout::ENDED != 0 {
        return Ok(None);
    }
    let (fence, lease_until) = (lease.fence, lease.until);
    document.lease = Some(lease);
    let claimed = Claimed { document, journal: Vec::new(), tries, damage, fence, lease_until, signals: Vec::new() };
    Ok(Some(Begun { claimed, flags, fields: vec![first] }))
}
