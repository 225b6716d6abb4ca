//! What an operator is asked, and what each answer does.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A workflow that can't go on by itself asks. It is never a dead end: every question has answers, and each
/// answer says what it will do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// One sentence that ends in a question mark.
    pub text: String,
    /// What was seen, one fact a line, others' own words included.
    pub seen: Vec<String>,
    /// Why it is asked, as words that scripts and statistics can go by; empty where nobody has given it one. Older questions have none.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub reasons: BTreeSet<String>,
    pub answers: Vec<Answer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What the operator types: `turnaround answer ID KEY`.
    pub key: String,
    /// What happens then.
    pub consequence: String,
    pub effect: AnswerEffect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerEffect {
    /// The step is tried again, with a fresh deadline and fresh attempts. It knows which answer that was.
    Retry,
    /// What was done is undone, last first; the workflow ends as failed.
    Unwind,
    /// The workflow ends as failed and leaves everything as it is now.
    Leave,
}

impl Question {
    pub fn new(text: impl Into<String>) -> Question {
        Question { text: text.into(), seen: Vec::new(), reasons: BTreeSet::new(), answers: Vec::new() }
    }

    pub fn seen(mut self, fact: impl Into<String>) -> Question {
        self.seen.push(fact.into());
        self
    }

    /// A fact, and the word for why it is asked about.
    pub fn because(mut self, reason: impl fmt::Display, fact: impl Into<String>) -> Question {
        self.reasons.insert(reason.to_string());
        self.seen(fact)
    }

    pub fn answer(mut self, key: &str, effect: AnswerEffect, consequence: impl Into<String>) -> Question {
        self.answers.push(Answer { key: key.to_owned(), consequence: consequence.into(), effect });
        self
    }

    /// The answer that goes by `key`.
    pub fn find(&self, key: &str) -> Option<&Answer> {
        self.answers.iter().find(|answer| answer.key == key)
    }
}
