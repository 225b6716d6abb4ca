//! The wire between the product's processes and Redis, and what goes wrong on it.
//!
//! A proxy on a unix socket. It knows nothing of what passes, except that a client's bytes are a request and that the server's
//! bytes after them are its answer: enough to let a request through and swallow its answer.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// Bytes that are passed on at once.
const PIECE_BYTES: usize = 64 * 1024;

/// How a connection is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    /// The next request goes through; its answer does not come back, and the connection breaks.
    CutBeforeAnswer,
    /// Open, and nothing passes.
    Stalled,
    /// Everything takes this much longer.
    Delayed(Duration),
    Cut,
}

/// The proxy. It ends when it is dropped.
pub(super) struct Wire {
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

struct Shared {
    server: PathBuf,
    connections: Mutex<Connections>,
    /// Answers that were swallowed.
    swallowed: Mutex<u32>,
}

#[derive(Default)]
struct Connections {
    next: u64,
    open: BTreeMap<u64, (u32, watch::Sender<Mode>)>,
}

impl Wire {
    /// Listens at `socket` and passes on to `server`, which need not be there yet.
    pub(super) fn start(socket: &Path, server: &Path) -> io::Result<Wire> {
        let listener = UnixListener::bind(socket)?;
        let shared = Arc::new(Shared { server: server.to_owned(), connections: Mutex::default(), swallowed: Mutex::default() });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Wire { shared, accepting })
    }

    /// The next request on each connection of `pid` (None: of everybody) is carried out, and its answer is lost.
    pub(super) fn cut_before_answer(&self, pid: Option<u32>) -> usize {
        self.shared.set(pid, Mode::CutBeforeAnswer)
    }

    pub(super) fn cut(&self, pid: Option<u32>) -> usize {
        self.shared.set(pid, Mode::Cut)
    }

    /// The connections stay open and silent, until [`Wire::heal`].
    pub(super) fn stall(&self, pid: Option<u32>) -> usize {
        self.shared.set(pid, Mode::Stalled)
    }

    pub(super) fn delay(&self, pid: Option<u32>, by: Duration) -> usize {
        self.shared.set(pid, Mode::Delayed(by))
    }

    /// Everything passes again.
    pub(super) fn heal(&self) {
        self.shared.set(None, Mode::Open);
    }

    /// Answers that were swallowed so far.
    #[cfg(test)]
    fn swallowed(&self) -> u32 {
        *self.shared.swallowed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
        self.shared.set(None, Mode::Cut);
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many connections are concerned.
    fn set(&self, pid: Option<u32>, mode: Mode) -> usize {
        let connections = self.connections();
        let mut concerned = 0;
        for (_, sender) in connections.open.values().filter(|(owner, _)| pid.is_none_or(|pid| pid == *owner)) {
            sender.send_replace(mode);
            concerned += 1;
        }
        concerned
    }

    fn add(&self, pid: u32) -> (u64, watch::Receiver<Mode>) {
        let mut connections = self.connections();
        connections.next += 1;
        let number = connections.next;
        let (sender, receiver) = watch::channel(Mode::Open);
        connections.open.insert(number, (pid, sender));
        (number, receiver)
    }
}

async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    loop {
        // A client that is gone again before it was accepted is no reason to stop.
        let Ok((client, _)) = listener.accept().await else { continue };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let pid = client.peer_cred().ok().and_then(|peer| peer.pid()).and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
            // Redis is away: the client finds its connection closed, as with a real one that is refused.
            let Ok(server) = UnixStream::connect(&shared.server).await else { return };
            let (number, mode) = shared.add(pid);
            serve(client, server, mode, &shared).await;
            shared.connections().open.remove(&number);
        });
    }
}

/// Until either side has gone, or the wire is cut.
async fn serve(client: UnixStream, server: UnixStream, mode: watch::Receiver<Mode>, shared: &Shared) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asked = watch::channel(false).0;
    let mut until_cut = mode.clone();
    tokio::select! {
        () = requests(&mut from_client, &mut to_server, mode.clone(), &asked) => {}
        () = answers(&mut from_server, &mut to_client, mode, &asked, shared) => {}
        _ = until_cut.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

/// Waits while the wire is stalled, and for as long as it is slow.
async fn passes(mode: &mut watch::Receiver<Mode>) -> Mode {
    // The sender lives as long as the connection is known.
    let now = mode.wait_for(|mode| *mode != Mode::Stalled).await.map_or(Mode::Cut, |mode| *mode);
    if let Mode::Delayed(by) = now {
        tokio::time::sleep(by).await;
    }
    now
}

async fn requests(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, mut mode: watch::Receiver<Mode>, asked: &watch::Sender<bool>) {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let Ok(read) = from.read(&mut piece).await else { return };
        if read == 0 {
            return;
        }
        let now = passes(&mut mode).await;
        if now == Mode::CutBeforeAnswer {
            asked.send_replace(true);
        }
        if to.write_all(&piece[..read]).await.is_err() {
            return;
        }
    }
}

async fn answers(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    asked: &watch::Sender<bool>,
    shared: &Shared,
) {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let Ok(read) = from.read(&mut piece).await else { return };
        if read == 0 {
            return;
        }
        let now = passes(&mut mode).await;
        if now == Mode::CutBeforeAnswer && *asked.borrow() {
            // The request was carried out: here is its answer, and it goes no further.
            *shared.swallowed.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            return;
        }
        if to.write_all(&piece[..read]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each byte with itself, and counts what it was asked.
    async fn echo(path: &Path) -> Arc<Mutex<u32>> {
        let listener = UnixListener::bind(path).unwrap();
        let asked = Arc::new(Mutex::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let count = Arc::clone(&count);
                tokio::spawn(async move {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).await.is_ok() {
                        *count.lock().unwrap() += 1;
                        if stream.write_all(&byte).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        asked
    }

    async fn ask(stream: &mut UnixStream) -> io::Result<u8> {
        stream.write_all(b"?").await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.map(|_| byte[0])
    }

    async fn wired() -> (tempfile::TempDir, Wire, Arc<Mutex<u32>>, UnixStream) {
        let folder = tempfile::tempdir().unwrap();
        let (server, socket) = (folder.path().join("server"), folder.path().join("wire"));
        let asked = echo(&server).await;
        let wire = Wire::start(&socket, &server).unwrap();
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        assert_eq!(ask(&mut stream).await.unwrap(), b'?');
        (folder, wire, asked, stream)
    }

    #[tokio::test]
    async fn a_request_goes_through_and_its_answer_does_not() {
        let (_folder, wire, asked, mut stream) = wired().await;
        assert_eq!(wire.cut_before_answer(Some(std::process::id())), 1);
        assert!(ask(&mut stream).await.is_err());
        assert_eq!((*asked.lock().unwrap(), wire.swallowed()), (2, 1));
    }

    #[tokio::test]
    async fn a_stalled_wire_is_silent_until_it_is_healed() {
        let (_folder, wire, asked, mut stream) = wired().await;
        assert_eq!(wire.stall(None), 1);
        let waited = tokio::time::timeout(Duration::from_millis(100), ask(&mut stream)).await;
        assert!(waited.is_err(), "nothing passes");
        assert_eq!(*asked.lock().unwrap(), 1);
        wire.heal();
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        assert_eq!(*asked.lock().unwrap(), 2);
    }

    #[tokio::test]
    async fn only_the_named_process_is_cut() {
        let (_folder, wire, _, mut stream) = wired().await;
        assert_eq!(wire.cut(Some(0)), 0);
        assert_eq!(ask(&mut stream).await.unwrap(), b'?');
        assert_eq!(wire.cut(Some(std::process::id())), 1);
        assert!(ask(&mut stream).await.is_err());
    }
}
