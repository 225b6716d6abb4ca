//! Secrets: the configuration only says where they are; nothing prints them.

use std::fmt;
use std::path::PathBuf;

/// Where a secret is to be had. The secret itself is never in the configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// A file whose content, without the newline at its end, is the secret.
    File(PathBuf),
    /// A systemd credential (`LoadCredential=NAME:...`), found in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

/// A secret's text. It has neither `Display` nor a telling `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    pub fn new(text: String) -> SecretText {
        SecretText(text)
    }

    /// The secret itself, to be handed to whom it is meant for and to nobody else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}
