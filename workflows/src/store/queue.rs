//! Queues: classes of work, so that workers can stand where they reach what their work needs.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest name of a queue. It is part of key names.
pub const QUEUE_CHARS_MAX: usize = 40;

/// Names a class of work: lower-case letters, digits and `-`; at most [`QUEUE_CHARS_MAX`] characters. A workflow waits in the
/// queue of its next step, and is claimed by workers that serve that queue.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Queue(Cow<'static, str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a queue: lower-case letters, digits and `-`, at most {QUEUE_CHARS_MAX} characters")]
pub struct InvalidQueue(String);

impl Queue {
    /// Where every workflow begins, and where steps wait that need nothing but the store.
    pub const DEFAULT: Queue = Queue::of("default");

    /// A queue that a step names. Its name is checked by [`crate::engine::Registry::queues`]'s test.
    pub const fn of(name: &'static str) -> Queue {
        Queue(Cow::Borrowed(name))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Queue {
    fn default() -> Queue {
        Queue::DEFAULT
    }
}

impl std::str::FromStr for Queue {
    type Err = InvalidQueue;
    fn from_str(given: &str) -> Result<Self, InvalidQueue> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !given.is_empty() && given.len() <= QUEUE_CHARS_MAX && given.chars().all(allowed) {
            Ok(Queue(Cow::Owned(given.to_owned())))
        } else {
            Err(InvalidQueue(given.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for Queue {
    type Error = InvalidQueue;
    fn try_from(given: String) -> Result<Self, InvalidQueue> {
        given.parse()
    }
}

impl From<Queue> for String {
    fn from(queue: Queue) -> String {
        queue.0.into_owned()
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
