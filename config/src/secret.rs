//! Secrets: the configuration only says where they are; nothing prints them.

use std::fmt;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Largest secret that is read.
// A password has tens of bytes and a key a few thousand; more is the wrong file.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// Permission bits that let others than the owner at a file.
const OTHERS: u32 = 0o077;

/// Where systemd puts the credentials of a unit.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// Where a secret is to be had. The secret itself is never in the configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// A file whose content, without the newline at its end, is the secret.
    File(PathBuf),
    /// A systemd credential (`LoadCredential=NAME:...`), found in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

impl Secret {
    /// The secret, read anew each time, so that a changed one is used without a restart.
    pub fn read(&self) -> Result<SecretText, SecretError> {
        match self {
            Secret::File(path) => read_file(path, Owner::Only),
            Secret::Credential(name) => {
                let directory = std::env::var_os(CREDENTIALS_DIRECTORY);
                read_credential(name, directory.as_deref().map(Path::new))
            }
        }
    }
}

/// Where it is, as a person would call it.
impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Secret::File(path) => write!(f, "the file {}", path.display()),
            Secret::Credential(name) => write!(f, "the systemd credential {name}"),
        }
    }
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

/// Why a secret is not to be had. It names the place and never the content.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("there is no secret at {path}")]
    Missing { path: PathBuf },
    #[error("could not read the secret at {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is not a file")]
    NotAFile { path: PathBuf },
    #[error("the secret at {path} is open to others than its owner (mode {mode:03o})")]
    OpenToOthers { path: PathBuf, mode: u32 },
    #[error("the secret at {path} is empty")]
    Empty { path: PathBuf },
    #[error("what is at {path} is larger than a secret can be ({SECRET_BYTES_MAX} bytes)")]
    TooLarge { path: PathBuf },
    #[error("the secret at {path} is not text")]
    NotText { path: PathBuf },
    #[error("the credential {name} is not to be had: this program was not started by systemd with credentials")]
    NoCredentials { name: String },
    #[error("{name} cannot be the name of a credential")]
    BadName { name: String },
}

impl SecretError {
    /// What an operator can do about it.
    pub fn remedy(&self) -> String {
        match self {
            SecretError::Missing { path } => {
                format!("write the secret into {0}, and `chmod 600 {0}`", path.display())
            }
            SecretError::Read { path, .. } => {
                format!("let the user of this program own {}: `chown`, then `chmod 600`", path.display())
            }
            SecretError::NotAFile { path } => format!("put a file with the secret at {}", path.display()),
            SecretError::OpenToOthers { path, .. } => {
                format!("run `chmod 600 {}`, and change the secret if others may have read it", path.display())
            }
            SecretError::Empty { path } => format!("write the secret into {}", path.display()),
            SecretError::TooLarge { path } => format!("is {} the right file?", path.display()),
            SecretError::NotText { path } => format!("save {} as UTF-8 text", path.display()),
            SecretError::NoCredentials { name } => {
                format!("add `LoadCredential={name}:/path/of/the/secret` to the systemd unit, or use `password_file`")
            }
            SecretError::BadName { .. } => "use letters, digits, `-`, `_` and `.`".to_owned(),
        }
    }
}

/// Who else may read a secret's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Only,
    /// systemd guards the folder and gives single users access by ACL, which shows as a group bit.
    Systemd,
}

fn read_credential(name: &str, directory: Option<&Path>) -> Result<SecretText, SecretError> {
    // A name with a slash would read any file of the system.
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(SecretError::BadName { name: name.to_owned() });
    }
    let directory = directory.ok_or_else(|| SecretError::NoCredentials { name: name.to_owned() })?;
    read_file(&directory.join(name), Owner::Systemd)
}

fn read_file(path: &Path, owner: Owner) -> Result<SecretText, SecretError> {
    let at = || path.to_owned();
    let read = |source: std::io::Error| match source.kind() {
        ErrorKind::NotFound => SecretError::Missing { path: at() },
        _ => SecretError::Read { path: at(), source },
    };
    // Asked before opening too: opening a named pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(read)?.is_file() {
        return Err(SecretError::NotAFile { path: at() });
    }
    let file = std::fs::File::open(path).map_err(read)?;
    // Asked of the open file, so that what was checked is what is read.
    let mode = file.metadata().map_err(read)?.permissions().mode() & 0o777;
    if owner == Owner::Only && mode & OTHERS != 0 {
        return Err(SecretError::OpenToOthers { path: at(), mode });
    }
    let mut bytes = Vec::new();
    file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        return Err(SecretError::TooLarge { path: at() });
    }
    let mut text = String::from_utf8(bytes).map_err(|_| SecretError::NotText { path: at() })?;
    // Editors end a file with a newline, and no password does.
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    if text.is_empty() {
        return Err(SecretError::Empty { path: at() });
    }
    Ok(SecretText(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    fn read(content: &[u8], mode: u32) -> Result<SecretText, SecretError> {
        let (_folder, path) = file(content, mode);
        Secret::File(path).read()
    }

    #[test]
    fn one_newline_at_the_end_is_not_part_of_the_secret() {
        assert_eq!(read(b"canary\n", 0o600).unwrap().expose(), "canary");
        assert_eq!(read(b"canary\r\n", 0o400).unwrap().expose(), "canary");
        assert_eq!(read(b"canary", 0o600).unwrap().expose(), "canary");
        assert_eq!(read(b" can ary \n\n", 0o600).unwrap().expose(), " can ary \n");
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused_with_the_remedy() {
        for mode in [0o640, 0o604, 0o644, 0o620, 0o601] {
            let error = read(b"canary", mode).unwrap_err();
            assert!(matches!(error, SecretError::OpenToOthers { .. }), "{mode:o}: {error}");
            assert!(error.remedy().contains("chmod 600"), "{}", error.remedy());
        }
    }

    #[test]
    fn what_cannot_be_a_secret_is_refused() {
        assert!(matches!(read(b"", 0o600), Err(SecretError::Empty { .. })));
        assert!(matches!(read(b"\n", 0o600), Err(SecretError::Empty { .. })));
        assert!(matches!(read(&[b'x'; 64 * 1024 + 1], 0o600), Err(SecretError::TooLarge { .. })));
        assert_eq!(read(&[b'x'; 64 * 1024], 0o600).unwrap().expose().len(), 64 * 1024);
        assert!(matches!(read(&[0xff, b'c'], 0o600), Err(SecretError::NotText { .. })));
        assert!(matches!(Secret::File("/nonexistent/x".into()).read(), Err(SecretError::Missing { .. })));
        assert!(matches!(Secret::File("/".into()).read(), Err(SecretError::NotAFile { .. })));
    }

    #[test]
    fn a_credential_comes_from_the_folder_that_systemd_names() {
        let (folder, _) = file(b"canary\n", 0o440);
        assert_eq!(read_credential("secret", Some(folder.path())).unwrap().expose(), "canary");
        assert!(matches!(read_credential("other", Some(folder.path())), Err(SecretError::Missing { .. })));
        assert!(matches!(read_credential("secret", None), Err(SecretError::NoCredentials { .. })));
        for name in ["", "../secret", "/etc/passwd", "..", ".hidden"] {
            assert!(matches!(read_credential(name, Some(folder.path())), Err(SecretError::BadName { .. })), "{name}");
        }
    }

    #[test]
    fn no_error_tells_the_secret() {
        let all = [read(b"canary", 0o644), read(&[b"canary\xff".as_slice(), b""].concat(), 0o600)];
        for error in all.map(Result::unwrap_err) {
            let told = format!("{error} {error:?} {} {:?}", error.remedy(), std::error::Error::source(&error));
            assert!(!told.contains("canary"), "{told}");
        }
        assert_eq!(format!("{:?}", SecretText::new("canary".to_owned())), "SecretText(..)");
    }
}
