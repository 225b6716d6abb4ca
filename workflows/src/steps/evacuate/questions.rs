//! What an operator is asked about an evacuation.

use turnaround_config::NodeName;

use crate::engine::{AnswerEffect, Question};

pub(super) fn question_opened(node: &NodeName, left: usize) -> Question {
    Question::new(format!("{node} was opened by somebody while it was being emptied: what now?"))
        .seen(format!("{left} instances are on it; more may land on it at any time"))
        .answer("retry", AnswerEffect::Retry, "goes on emptying it, once you have closed it again")
        .answer("unwind", AnswerEffect::Unwind, format!("leaves {node} open, without renewing it; what has been moved stays where it is"))
}

pub(super) fn question_harmed(node: &NodeName, harmed: &[String]) -> Question {
    let text = match harmed {
        [_only] => format!("an instance that was to leave {node} is not as it was, and the renewal is being taken back: what now?"),
        more => format!("{} instances that were to leave {node} are not as they were, and the renewal is being taken back: what now?", more.len()),
    };
    harmed
        .iter()
        .fold(Question::new(text), |question, line| question.seen(line.clone()))
        .answer("retry", AnswerEffect::Retry, format!("goes on giving {node} back as it was found, whatever they are by then: mend them first, or tell their owners"))
        .answer("leave", AnswerEffect::Leave, format!("ends here; {node} stays closed, with what is left on it"))
}

/// What does not leave a node by itself.
#[derive(Debug, Default)]
pub(in crate::steps) struct Stuck {
    /// One line for each instance, with Nova's own reason where there is one.
    pub(super) lines: Vec<String>,
    /// Live migrations that do not end are among them.
    pub(super) can_be_stopped: bool,
    /// Unfinished migration records that may mean nothing.
    pub(super) records: Vec<String>,
    /// All of them are moves that were begun and do not end.
    pub(super) move_on: bool,
}

impl Stuck {
    pub(super) fn of(line: String) -> Stuck {
        Stuck { lines: vec![line], ..Stuck::default() }
    }

    fn with_answers(&self, node: &NodeName, undoing: bool, question: Question) -> Question {
        let mut question = self.lines.iter().fold(question, |question, line| question.seen(line.clone()));
        if self.can_be_stopped {
            let then = if undoing { format!("and {node} is given back then") } else { "and are asked about again once all else is done".to_owned() };
            let consequence = format!("has Nova stop the live migrations that do not end: those instances stay where they are, running, {then}");
            question = question.answer(STOP, AnswerEffect::Retry, consequence);
        }
        if !self.records.is_empty() {
            let then = if undoing { format!("and {node} is given back") } else { format!("and {node} is renewed all the same") };
            let consequence = format!("takes as over what Nova has as unfinished, for as long as nothing comes of it, {then}: migration {}", self.records.join(", "));
            question = question.answer(DISREGARD, AnswerEffect::Retry, consequence);
        }
        question
    }
}

/// The answer by which live migrations that do not end are stopped.
pub(super) const STOP: &str = "stop";
/// The answer by which unfinished migration records are disregarded.
pub(super) const DISREGARD: &str = "disregard";

pub(super) fn question(node: &NodeName, stuck: &Stuck) -> Question {
    let text = match (stuck.lines.as_slice(), stuck.move_on) {
        ([only], true) => format!("the move of an instance off {node} does not end: what now? {only}"),
        (more, true) => format!("the moves of {} instances off {node} do not end: what now?", more.len()),
        ([only], false) => format!("an instance can't be moved off {node}: what now? {only}"),
        (more, false) => format!("{} instances can't be moved off {node}: what now?", more.len()),
    };
    let retry = if stuck.move_on {
        "waits for them as long again"
    } else {
        "tries to move what is left once more, after you have mended what stood in the way, and waits as long again for what moves"
    };
    let question = Question::new(text).answer("retry", AnswerEffect::Retry, retry);
    stuck
        .with_answers(node, false, question)
        .answer("unwind", AnswerEffect::Unwind, format!("gives {node} back as it was found, once what still moves has ended; what has been moved stays where it is"))
        .answer("leave", AnswerEffect::Leave, format!("ends here; {node} stays closed, with what is left on it"))
}

/// On the way back, about moves that do not end.
pub(super) fn question_endless(node: &NodeName, stuck: &Stuck) -> Question {
    let text = format!("moves off {node} that were begun do not end, and the renewal is being taken back: what now?");
    let question = Question::new(text).answer("retry", AnswerEffect::Retry, "waits for them as long again");
    stuck.with_answers(node, true, question).answer("leave", AnswerEffect::Leave, format!("ends here; {node} stays closed, with what is left on it"))
}
