//! The unix socket of the API: one daemon to a socket, a bounded number of connections, in all and of one user, and the
//! kernel's word on who is at the other end.

use std::collections::HashMap;
use std::fs::{File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
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
/// Of one user; further ones are closed at once, so that a console which leaks connections locks out nobody but its own user. A handful of
/// consoles and as many scripts fit in. Root and the daemon's own user have no such bound: they are who mends things.
const CONNECTIONS_OF_ONE_MAX: u32 = 64;
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
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Ok(ApiListener { listener, permits, peer_of: Peer::of, users: Users::default(), claim: self })
    }
}

/// `api.sock` and `lock` make `api.sock.lock`.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

/// Open connections by user.
type Users = Arc<Mutex<HashMap<Peer, Open>>>;

/// Accepts clients until it is dropped, which takes the socket away.
#[derive(Debug)]
pub struct ApiListener {
    listener: UnixListener,
    permits: Arc<Semaphore>,
    /// [`Peer::of`], except in tests.
    peer_of: fn(&UnixStream) -> Peer,
    users: Users,
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
                Ok((stream, address)) => {
                    let peer = (self.peer_of)(&stream);
                    let Some(place) = Place::take(&self.users, peer) else { continue };
                    return (Connection { stream, place, _permit: permit }, address);
                }
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

/// The connections of a user.
#[derive(Debug, Default)]
struct Open {
    count: u32,
    /// That there are too many was logged.
    told: bool,
}

/// One of the connections of a user.
#[derive(Debug)]
struct Place {
    users: Users,
    peer: Peer,
}

impl Place {
    /// None: the user has as many as one may have.
    fn take(users: &Users, peer: Peer) -> Option<Place> {
        let mut all = users.lock().unwrap_or_else(PoisonError::into_inner);
        let open = all.entry(peer).or_default();
        if open.count >= CONNECTIONS_OF_ONE_MAX && !peer.is_unbounded() {
            // Once until all of them are closed: who leaks connections usually goes on with it.
            if !std::mem::replace(&mut open.told, true) {
                warn!(uid = peer.uid, connections = open.count, "a user has as many connections as one may have: further ones are closed at once");
            }
            return None;
        }
        open.count += 1;
        Some(Place { users: Arc::clone(users), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = all.get_mut(&self.peer) {
            open.count -= 1;
            if open.count == 0 {
                all.remove(&self.peer);
            }
        }
    }
}

/// A client's connection and its place among those of its user and among [`CONNECTIONS_MAX`].
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    place: Place,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer {
    pub uid: Option<u32>,
}

impl Peer {
    fn of(stream: &UnixStream) -> Peer {
        Peer { uid: stream.peer_cred().ok().map(|credentials| credentials.uid()) }
    }

    /// May this user have more than [`CONNECTIONS_OF_ONE_MAX`]?
    fn is_unbounded(self) -> bool {
        self.uid.is_some_and(|uid| uid == 0 || uid == nix::unistd::Uid::effective().as_raw())
    }
}

impl Connected<IncomingStream<'_, ApiListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, ApiListener>) -> Peer {
        stream.io().place.peer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// Who connects just now.
    static WHO: AtomicU32 = AtomicU32::new(0);

    /// A connection of `uid` with both its ends. None: it was closed at once.
    async fn connect(listener: &mut ApiListener, uid: u32) -> Option<(UnixStream, Connection)> {
        WHO.store(uid, Ordering::Relaxed);
        let mut client = UnixStream::connect(&listener.claim.path).await.unwrap();
        let mut nothing = [0];
        tokio::select! {
            (connection, _) = listener.accept() => {
                assert_eq!(connection.place.peer.uid, Some(uid));
                Some((client, connection))
            }
            read = client.read(&mut nothing) => {
                assert_eq!(read.unwrap(), 0, "closed, and nothing said");
                None
            }
        }
    }

    #[tokio::test]
    async fn a_user_who_leaks_connections_locks_out_nobody_else() {
        let own = nix::unistd::Uid::effective().as_raw();
        let (leaking, other) = (own + 1001, own + 1002);
        let folder = tempfile::tempdir().unwrap();
        let mut listener = SocketClaim::take(&folder.path().join("api.sock")).unwrap().bind().unwrap();
        listener.peer_of = |_| Peer { uid: Some(WHO.load(Ordering::Relaxed)) };
        let mut open = Vec::new();
        for _ in 0..CONNECTIONS_OF_ONE_MAX {
            open.push(connect(&mut listener, leaking).await.expect("there is room"));
        }
        for _ in 0..3 {
            assert!(connect(&mut listener, leaking).await.is_none(), "one user has more than one may have");
        }
        let others = connect(&mut listener, other).await;
        assert!(others.is_some(), "another user is served");
        open.pop();
        assert!(connect(&mut listener, leaking).await.is_some(), "a place is free again");
        drop((open, others));
        assert!(listener.users.lock().unwrap().is_empty(), "nothing is remembered of who is gone");
        for unbounded in [0, own] {
            let mut open = Vec::new();
            for _ in 0..=CONNECTIONS_OF_ONE_MAX {
                open.push(connect(&mut listener, unbounded).await.expect("no bound for who mends things"));
            }
        }
    }
}
