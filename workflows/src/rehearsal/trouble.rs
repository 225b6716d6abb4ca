//! What whoever asks the simulated site may get instead of an answer.

use std::fmt;

use crate::ports::{PortError, PortErrorKind};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Nobody answers, and nothing was changed.
    Unavailable,
    /// It was done; the answer is lost.
    AnswerLost,
    /// No, with the HTTP status and the words that Nova or a BMC has for it.
    Refused { status: u16, reason: String },
    /// There is no such thing.
    NotFound,
}

impl Trouble {
    pub(super) fn refused(status: u16, reason: impl Into<String>) -> Trouble {
        Trouble::Refused { status, reason: reason.into() }
    }

    /// The same in the words of the ports.
    pub fn while_trying_to(self, operation: impl fmt::Display) -> PortError {
        let kind = match self {
            Trouble::Unavailable => PortErrorKind::Unavailable,
            Trouble::AnswerLost => PortErrorKind::OutcomeUnknown,
            Trouble::Refused { status: status @ 500..=599, reason } => {
                return PortError::new(operation.to_string(), PortErrorKind::OutcomeUnknown).with_source(format!("Nova answered HTTP {status}: {reason}"));
            }
            Trouble::Refused { status: 401 | 403, reason } => PortErrorKind::Denied { reason },
            Trouble::Refused { reason, .. } => PortErrorKind::Refused { reason },
            Trouble::NotFound => PortErrorKind::NotFound,
        };
        PortError::new(operation.to_string(), kind)
    }
}
