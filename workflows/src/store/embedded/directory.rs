//! The directory of the private Redis: nobody else's to read, and one process's to own.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::{EmbeddedError, socket_in};

/// Longest path of a unix socket on Linux, without the zero at its end.
const SOCKET_PATH_MAX: usize = 107;

/// A log that is longer is put aside when the server starts. Redis writes a few lines an hour.
const LOG_BYTES_MAX: u64 = 4 * 1_024 * 1_024;

/// What is written to find out whether there is room: more than one append of Redis's.
const ROOM_BYTES: usize = 64 * 1_024;

/// How much of the log's end is read to find out why the server died.
const LAST_WORDS_BYTES: u64 = 2_048;

#[derive(Debug, Clone)]
pub(super) struct Directory {
    path: PathBuf,
    socket: PathBuf,
}

impl Directory {
    /// On return the directory exists, and only its owner may enter it.
    pub(super) fn prepare(state_dir: &Path) -> Result<Directory, EmbeddedError> {
        let absolute = std::path::absolute(state_dir).map_err(|source| failed(state_dir, source))?;
        let socket = socket_in(&absolute);
        let path = absolute.join("redis");
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(EmbeddedError::LongPath { path: socket, max: SOCKET_PATH_MAX });
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|source| failed(&path, source))?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(|source| failed(&path, source))?;
        Ok(Directory { path, socket })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("redis.log")
    }

    pub(super) fn pid_file(&self) -> PathBuf {
        self.path.join("redis.pid")
    }

    /// The process that wrote the pid file and still runs on this directory.
    pub(super) fn running(&self) -> Option<Pid> {
        let pid: i32 = std::fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()?;
        // The number may long be another process's: Redis shows its socket in its title.
        let title = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let socket = self.socket.as_os_str().as_encoded_bytes();
        title.windows(socket.len()).any(|part| part == socket).then(|| Pid::from_raw(pid))
    }

    /// The owner's lock; None if another process has it. It ends with the process, however that ends.
    pub(super) fn try_lock(&self) -> Result<Option<File>, EmbeddedError> {
        let (path, file) = self.lock_file()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(failed(&path, source)),
        }
    }

    /// The owner's lock, as soon as the owner is gone; None if that can't be waited for.
    pub(super) async fn lock_when_free(&self) -> Option<File> {
        let (_, file) = self.lock_file().ok()?;
        let (tell, told) = tokio::sync::oneshot::channel();
        // A thread of its own, because this may wait for months, and a runtime waits for its threads when it ends.
        // If nobody waits any more when the lock comes, it is given back at once.
        let waiting = std::thread::Builder::new().name("owner-lock".to_owned()).spawn(move || {
            if file.lock().is_ok() {
                let _ = tell.send(file);
            }
        });
        waiting.ok()?;
        told.await.ok()
    }

    fn lock_file(&self) -> Result<(PathBuf, File), EmbeddedError> {
        let path = self.path.join("owner.lock");
        let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        match opened {
            Ok(file) => Ok((path, file)),
            Err(source) => Err(failed(&path, source)),
        }
    }

    /// Removes what a dead server left: its socket (a connection to it would be refused, which is no answer), and a log
    /// that grew too long.
    pub(super) fn tidy(&self) -> Result<(), EmbeddedError> {
        match std::fs::remove_file(&self.socket) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => return Err(failed(&self.socket, source)),
            Ok(()) | Err(_) => {}
        }
        if std::fs::metadata(self.log()).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
            let old = self.path.join("redis.log.old");
            std::fs::rename(self.log(), &old).map_err(|source| failed(&old, source))?;
        }
        Ok(())
    }

    /// Writes as much as a server might, and takes it away.
    fn try_room(&self) -> std::io::Result<()> {
        let path = self.path.join("room");
        let written = File::create(&path).and_then(|mut file| file.write_all(&[0; ROOM_BYTES]).and_then(|()| file.sync_all()));
        // Also where it was written in part.
        let removed = std::fs::remove_file(&path);
        written.and(removed)
    }

    /// What explains an end of the server: a full disk, of which it could write nothing down; or else its newest warning, or where to look.
    pub(super) fn last_words(&self) -> String {
        let full = |remedy: &str, error: std::io::Error| format!("{} can't be written to ({error}): {remedy}", self.path.display());
        match self.try_room() {
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => return full("make room on its disk", error),
            Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => return full("see `dmesg` for why its file system became so", error),
            // Whatever else that was is no reason for a server to end.
            Ok(()) | Err(_) => {}
        }
        let log = self.log();
        let warning = read_end(&log).and_then(|end| {
            let lines = end.lines().rev().filter_map(|line| line.split_once(" # "));
            lines.map(|(_, said)| said.trim().to_owned()).find(|said| !said.is_empty())
        });
        match warning {
            Some(said) => format!("its last warning in {}: {said}", log.display()),
            None => format!("see {}", log.display()),
        }
    }
}

fn read_end(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS_BYTES))).ok()?;
    let mut end = Vec::new();
    file.take(LAST_WORDS_BYTES).read_to_end(&mut end).ok()?;
    Some(String::from_utf8_lossy(&end).into_owned())
}

fn failed(path: &Path, source: std::io::Error) -> EmbeddedError {
    EmbeddedError::Directory { path: path.to_owned(), source }
}
