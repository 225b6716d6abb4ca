//! What was said about a workflow from outside, on nobody's authority: it wakes, and is shown, and proves nothing.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// One thing that was said. Whoever hears it must not do anything because of it that it would not do at any moment by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What it is about, such as the token of one attempt.
    pub about: String,
    /// What is said, in one word.
    pub word: String,
    /// In their own words; may be empty. One line, bounded by whoever took it.
    pub text: String,
    /// When it was taken, by the store's clock.
    pub received: Timestamp,
}
