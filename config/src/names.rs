//! Names that end up in argument lists, paths, URLs and Redis keys: an allow-list, checked once.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// Longest name. A DNS label has at most 63 characters, and node names are host names.
pub const NAME_CHARS_MAX: usize = 63;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a {what}: use letters, digits, `-`, `_` and `.`, begin with a letter or digit, at most {NAME_CHARS_MAX} characters")]
pub struct InvalidName {
    what: &'static str,
    given: String,
}

fn check(what: &'static str, given: &str) -> Result<String, InvalidName> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good = given.starts_with(|c: char| c.is_ascii_alphanumeric())
        && given.len() <= NAME_CHARS_MAX
        && given.chars().all(allowed);
    if good { Ok(given.to_owned()) } else { Err(InvalidName { what, given: given.chars().take(80).collect() }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub struct $type(String);

        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;
            fn from_str(given: &str) -> Result<Self, InvalidName> {
                check($what, given).map(Self)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// A node under management, by its host name.
    NodeName, "node name");
name!(
    /// An entry of `[images]`.
    ImageName, "image name");
name!(
    /// An entry of `[moves]`.
    MoveRuleName, "name of a rule for moves");
name!(
    /// An entry of `[checks]`.
    CheckName, "check name");
name!(
    /// An entry of `[schedules]`.
    ScheduleName, "schedule name");
