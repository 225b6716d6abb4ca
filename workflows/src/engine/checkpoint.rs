//! What a step leaves of itself while it is under way.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

/// JSON as it stands in the journal. Of all checkpoints of a step only the newest is ever looked into, and every claim reads a whole journal: so only whoever
/// looks takes it apart.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Checkpoint(Box<RawValue>);

impl Checkpoint {
    /// Fails where `value` can't be written as JSON.
    pub fn of<T: Serialize>(value: &T) -> Result<Checkpoint, serde_json::Error> {
        to_raw_value(value).map(Checkpoint)
    }

    pub fn read<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.0.get())
    }
}

/// By what is written: whoever writes the same twice writes it in the same order.
impl PartialEq for Checkpoint {
    fn eq(&self, other: &Checkpoint) -> bool {
        self.0.get() == other.0.get()
    }
}
