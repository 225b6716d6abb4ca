//! Why a port could not do what it was asked, and who can mend it.

use std::fmt;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A failed call to the outside world. Says what was attempted, never repeats its source.
#[derive(Debug)]
pub struct PortError {
    /// What was attempted, with its object: `list the instances on gpu-03`.
    pub operation: String,
    pub kind: PortErrorKind,
    pub source: Option<BoxError>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortErrorKind {
    /// Nobody answered, or they answered that they can't just now. Nothing was changed, or the
    /// call only reads. Try again later.
    Unavailable,
    /// The request may or may not have been carried out: its answer was lost. Look before asking again.
    OutcomeUnknown,
    /// They said no, with this reason. Asking again won't help.
    Refused { reason: String },
    /// There is no such thing (any more).
    NotFound,
    /// Our credentials were not accepted, or they don't suffice. An operator has to mend it.
    Denied { reason: String },
    /// They answered something that we don't understand.
    Garbled { reason: String },
}

impl PortError {
    pub fn new(operation: impl Into<String>, kind: PortErrorKind) -> PortError {
        PortError { operation: operation.into(), kind, source: None }
    }

    pub fn with_source(mut self, source: impl Into<BoxError>) -> PortError {
        self.source = Some(source.into());
        self
    }

    /// The same error, of `operation`, which this one kept from being asked for. What they said is said once.
    #[must_use]
    pub fn before(self, operation: impl Into<String>) -> PortError {
        let told = |reason: &str| format!("could not {}: {reason}", self.operation);
        let kind = match &self.kind {
            PortErrorKind::Refused { reason } => PortErrorKind::Refused { reason: told(reason) },
            PortErrorKind::Denied { reason } => PortErrorKind::Denied { reason: told(reason) },
            PortErrorKind::Garbled { reason } => PortErrorKind::Garbled { reason: told(reason) },
            kind @ (PortErrorKind::Unavailable | PortErrorKind::OutcomeUnknown | PortErrorKind::NotFound) => return PortError::new(operation, kind.clone()).with_source(self),
        };
        PortError { operation: operation.into(), kind, source: self.source }
    }

    /// May the same call be made again without a look at the world?
    pub fn is_temporary(&self) -> bool {
        matches!(self.kind, PortErrorKind::Unavailable | PortErrorKind::OutcomeUnknown)
    }
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not {}", self.operation)?;
        match &self.kind {
            PortErrorKind::Unavailable => Ok(()),
            PortErrorKind::OutcomeUnknown => f.write_str(": the answer was lost"),
            PortErrorKind::Refused { reason } => write!(f, ": refused: {reason}"),
            PortErrorKind::NotFound => f.write_str(": not found"),
            PortErrorKind::Denied { reason } => write!(f, ": not permitted: {reason}"),
            PortErrorKind::Garbled { reason } => write!(f, ": the answer makes no sense: {reason}"),
        }
    }
}

impl std::error::Error for PortError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}
