//! The unix socket of the API: one daemon to a socket, a bounded number of connections, and the kernel's word on
//! who is at the other end.

use std::fs::{File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

/// Connections served at once; further ones wait in the kernel's queue. A person has one or two, a console a handful:
/// this is to keep a client that opens connections in a loop from using up file descriptors (1,024 by default).
const CONNECTIONS_MAX: usize = 512;
/// Owner and group may connect, nobody else.
const SOCKET_MODE: u32 = 0o660;
/// After an error of `accept` (no file descriptors left, usually): long enough for one to be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another daemon serves {}: stop it, or give this one another `daemon.socket`", path.display())]
    Taken { path: PathBuf },
    #[error("{} is there already and is not a socket: move it away, or give another `daemon.socket`", path.display())]
    NotASocket { path: PathBuf },
    #[error("there is no folder {}: create it, or let systemd do so by `RuntimeDirectory=`", folder.display())]
    NoFolder { folder: PathBuf },
    #[error("could not {operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The right to serve on a path, held by a lock on a file beside it for as long as this lives.
#[derive(Debug)]
pub struct SocketClaim {
    path: PathBuf,
    _lock: File,
}

impl SocketClaim {
    /// Refuses if a living daemon serves there. What a dead one left behind is no hindrance.
    pub fn take(path: &Path) -> Result<SocketClaim, SocketError> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        if !folder.is_dir() {
            return Err(SocketError::NoFolder { folder: folder.to_owned() });
        }
        let lock_path = beside(path, "lock");
        let failed = |operation, source| SocketError::Io { operation, path: lock_path.clone(), source };
        let lock = File::options().write(true).create(true).truncate(false).open(&lock_path).map_err(|e| failed("open", e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SocketError::Taken { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed("lock", source)),
        }
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(SocketError::Io { operation: "look at", path: path.to_owned(), source }),
            Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket { path: path.to_owned() }),
            // Somebody may serve there without our lock: another program, or a daemon in a container.
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                return Err(SocketError::Taken { path: path.to_owned() });
            }
            Ok(_) => {}
        }
        Ok(SocketClaim { path: path.to_owned(), _lock: lock })
    }

    /// On return clients can connect. The socket has its permissions before it has its name, and takes the place of one
    /// that was left behind in one step.
    pub fn bind(self) -> Result<ApiListener, SocketError> {
        let fresh = beside(&self.path, "new");
        let failed = |operation, source| SocketError::Io { operation, path: self.path.clone(), source };
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace what is left beside", error)),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&fresh).map_err(|e| failed("bind", e))?;
        std::fs::set_permissions(&fresh, Permissions::from_mode(SOCKET_MODE)).map_err(|e| failed("set permissions of", e))?;
        std::fs::rename(&fresh, &self.path).map_err(|e| failed("put in place", e))?;
        Ok(ApiListener { listener, permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)), claim: self })
    }
}

/// `api.sock` and `lock` make `api.sock.lock`.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

/// Accepts clients until it is dropped, which takes the socket away.
#[derive(Debug)]
pub struct ApiListener {
    listener: UnixListener,
    permits: Arc<Semaphore>,
    claim: SocketClaim,
}

impl Drop for ApiListener {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.claim.path) {
            warn!(path = %self.claim.path.display(), %error, "the socket could not be taken away");
        }
    }
}

impl Listener for ApiListener {
    type Io = Connection;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Connection, Self::Addr) {
        loop {
            // The semaphore is never closed.
            let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
            match self.listener.accept().await {
                Ok((stream, address)) => return (Connection { stream, _permit: permit }, address),
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A client's connection and its place among [`CONNECTIONS_MAX`].
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    _permit: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Who is at the other end, as the kernel says. None: it does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub uid: Option<u32>,
}

impl Connected<IncomingStream<'_, ApiListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, ApiListener>) -> Peer {
        Peer { uid: stream.io().stream.peer_cred().ok().map(|credentials| credentials.uid()) }
    }
}
