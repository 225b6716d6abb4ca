//! What a journal says: everything that ever happened to a workflow, in past tense.

use serde::de::value::EnumAccessDeserializer;
use serde::de::{DeserializeSeed, EnumAccess, Error as _, MapAccess, Unexpected, VariantAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Checkpoint, Question, Report};
use crate::clock::Timestamp;
use crate::store::{Resource, WorkflowId};

/// Defines [`Event`], which stands in JSON with its tag beside its fields. Serde's own way to read such an enum copies all fields aside before it knows
/// which variant they are of, and every claim reads a whole journal: therefore the same definition is read as one whose tag is known by then.
macro_rules! with_tag_beside_fields {
    ($(#[$attribute:meta])* pub enum Event $variants:tt) => {
        $(#[$attribute])*
        #[derive(Serialize)]
        #[serde(tag = "event", rename_all = "kebab-case")]
        pub enum Event $variants

        #[derive(Deserialize)]
        #[serde(remote = "Event", rename_all = "kebab-case")]
        enum OfKnownTag $variants
    };
}

with_tag_beside_fields! {
    /// One thing that happened. Journals outlive releases: variants and fields are only ever added.
    #[derive(Debug, Clone, PartialEq)]
    pub enum Event {
        Created {
            kind: String,
            /// Version of the definition; another one parks the workflow instead of guessing.
            version: u32,
            target: String,
            input: Value,
            parent: Option<WorkflowId>,
            /// Under which key the parent keeps it.
            key: Option<String>,
            by: String,
        },
        /// The step can't begin: somebody else has what it needs.
        ResourceAwaited { step: String, resource: Resource, holders: Vec<WorkflowId> },
        /// The intent. Whatever the step does to the world happens after this.
        StepBegun {
            step: String,
            deadline: Timestamp,
            took: Vec<Resource>,
            /// Those of `took` that another workflow had kept when it ended. Releases before node-os 8 don't say.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            took_over: Vec<TakenOver>,
        },
        /// Partial progress, or the intent to do one of many things.
        StepCheckpointed { step: String, checkpoint: Checkpoint, note: String },
        /// Nothing to do until then; `until` None: until a child ends.
        StepParked { step: String, until: Option<Timestamp>, note: String },
        StepSucceeded { step: String, output: Value, gave: Vec<Resource> },
        /// It will be tried again at `retry_at`.
        StepFailed { step: String, error: String, failures: u32, retry_at: Timestamp },
        OperatorAsked { step: String, question: Question },
        OperatorAnswered { step: String, key: String, by: String },
        /// An operator asked for another try before its time.
        RetryRequested { by: String, deadline: Timestamp },
        ChildrenStarted {
            step: String,
            children: Vec<ChildStarted>,
            #[serde(default)]
            note: String,
        },
        ChildEnded { key: String, outcome: Outcome, headline: String },
        Paused {
            by: String,
            why: String,
            /// A person's and its rollout's: both have to end.
            #[serde(default, skip_serializing_if = "std::ops::Not::not")]
            beside: bool,
        },
        Resumed { by: String },
        /// Something was said from outside that a step listens to. Nobody vouches for it.
        Reported { report: Report },
        /// A signal that could not be followed, and why.
        SignalRefused { by: String, signal: String, why: String },
        UnwindBegun { cause: UnwindCause },
        /// The intent to undo a step.
        UndoBegun { step: String, deadline: Timestamp },
        StepUndone { step: String, note: String, gave: Vec<Resource> },
        Ended { outcome: Outcome, why: String },
    }
}

/// A share of a budget that another workflow had kept when it ended: what it stands for was left out of service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenOver {
    pub resource: Resource,
    pub from: WorkflowId,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildStarted {
    pub key: String,
    pub id: WorkflowId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Succeeded,
    Failed,
    Aborted,
}

/// Why a workflow goes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "kebab-case")]
pub enum UnwindCause {
    Aborted { by: String, why: String },
    /// An operator's answer.
    Answered { by: String },
    /// A step that nobody can mend.
    Fatal { step: String, error: String },
}

impl Event {
    /// Reads the rest of a map, which is at the value of `event`; what stands behind it are the event's own fields.
    pub(super) fn of_rest<'de, M: MapAccess<'de>>(map: M) -> Result<Event, M::Error> {
        OfKnownTag::deserialize(EnumAccessDeserializer::new(AtTag(map)))
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        match self {
            Event::Created { kind, target, by, .. } => format!("{kind} of {target} created by {by}"),
            Event::ResourceAwaited { step, resource, holders } => {
                format!("{step}: {}", waits_for(resource, holders))
            }
            Event::StepBegun { step, took_over, .. } => {
                let over = took_over.iter().map(|TakenOver { resource, from }| format!("; takes the {resource} over from {from}"));
                format!("{step}: begun{}", over.collect::<String>())
            }
            Event::StepCheckpointed { step, note, .. } | Event::StepParked { step, note, .. } => format!("{step}: {note}"),
            Event::StepSucceeded { step, .. } => format!("{step}: done"),
            Event::StepFailed { step, error, failures, retry_at } => {
                format!("{step}: failed ({failures}), next try {retry_at}: {error}")
            }
            Event::OperatorAsked { step, question } => format!("{step}: asks: {}", question.text),
            Event::OperatorAnswered { step, key, by } => format!("{step}: {by} answered `{key}`"),
            Event::RetryRequested { by, .. } => format!("{by} asked for another try"),
            Event::ChildrenStarted { children, .. } => {
                let ids: Vec<&str> = children.iter().map(|child| child.id.as_str()).collect();
                format!("started {}", ids.join(", "))
            }
            Event::ChildEnded { key, outcome, headline } => format!("{key} {}: {headline}", outcome.as_str()),
            Event::Paused { by, why, .. } if why.is_empty() => format!("paused by {by}"),
            Event::Paused { by, why, .. } => format!("paused by {by}: {why}"),
            Event::Resumed { by } => format!("resumed by {by}"),
            Event::Reported { report: Report { word, text, .. } } if text.is_empty() => format!("reported from outside: {word}"),
            Event::Reported { report: Report { word, text, .. } } => format!("reported from outside: {word}: {text}"),
            Event::SignalRefused { by, signal, why } => format!("`{signal}` by {by} was not followed: {why}"),
            Event::UnwindBegun { cause } => format!("goes back: {cause}"),
            Event::UndoBegun { step, .. } => format!("{step}: undo begun"),
            Event::StepUndone { step, note, .. } => format!("{step}: undone: {note}"),
            Event::Ended { outcome, why } if why.is_empty() => outcome.as_str().to_owned(),
            Event::Ended { outcome, why } => format!("{}: {why}", outcome.as_str()),
        }
    }
}

/// A map that is at the value of its tag.
struct AtTag<M>(M);

impl<'de, M: MapAccess<'de>> EnumAccess<'de> for AtTag<M> {
    type Error = M::Error;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'de>>(mut self, tag: T) -> Result<(T::Value, Self), M::Error> {
        Ok((self.0.next_value_seed(tag)?, self))
    }
}

/// Each variant has named fields.
impl<'de, M: MapAccess<'de>> VariantAccess<'de> for AtTag<M> {
    type Error = M::Error;

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, M::Error> {
        visitor.visit_map(self.0)
    }

    fn unit_variant(self) -> Result<(), M::Error> {
        Err(M::Error::invalid_type(Unexpected::UnitVariant, &"an event with fields"))
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, M::Error> {
        Err(M::Error::invalid_type(Unexpected::NewtypeVariant, &"an event with fields"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, M::Error> {
        Err(M::Error::invalid_type(Unexpected::TupleVariant, &"an event with fields"))
    }
}

/// What is waited for, and who has it, in one line for people: the same in journals, listings and `turnaround show`.
pub fn waits_for(resource: &Resource, holders: &[WorkflowId]) -> String {
    let holders: Vec<&str> = holders.iter().map(WorkflowId::as_str).collect();
    match holders.is_empty() {
        true => format!("waits for the {resource}, held by nobody who can be named: a worker's log says by what, and it looks again by itself"),
        false => format!("waits for the {resource}, held by {}", holders.join(", ")),
    }
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Succeeded => "succeeded",
            Outcome::Failed => "failed",
            Outcome::Aborted => "aborted",
        }
    }
}

impl std::fmt::Display for UnwindCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            UnwindCause::Aborted { by, why } if why.is_empty() => write!(f, "aborted by {by}"),
            UnwindCause::Aborted { by, why } => write!(f, "aborted by {by}: {why}"),
            UnwindCause::Answered { by } => write!(f, "{by} answered so"),
            UnwindCause::Fatal { step, error } => write!(f, "{step} can't succeed: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_told_also_where_nobody_can_be_named_who_has_it() {
        let share = Resource::Budget { name: "nodes-out".to_owned(), member: "gpu-01".to_owned() };
        let holders: Vec<WorkflowId> = ["roll.gpu-02", "roll.gpu-03"].iter().filter_map(|id| id.parse().ok()).collect();
        assert_eq!(waits_for(&share, &holders), "waits for the budget nodes-out for gpu-01, held by roll.gpu-02, roll.gpu-03");
        assert!(waits_for(&share, &[]).starts_with("waits for the budget nodes-out for gpu-01, held by nobody who can be named"));
    }
}
