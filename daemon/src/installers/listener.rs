//! Connections of installers: so many at once, so many of one address, each for so long.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tracing::debug;

use super::From;

/// Connections at once; further ones wait in the kernel's queue. With what hyper reads ahead of each (some 400 KiB at most) that is 25 MiB.
const CONNECTIONS_MAX: usize = 64;
/// Of one address; further ones are closed at once. An installer has one; some may be behind one router.
const CONNECTIONS_OF_ONE_MAX: u32 = 8;
/// From a connection's beginning to its end, whatever is done with it: who sends byte by byte is cut off. The store is waited for for 2 s by
/// default, and a report is one packet.
const CONNECTION_LASTS_MAX: Duration = Duration::from_secs(10);
/// After an error of `accept` (no file descriptors left, usually): long enough for one to be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Connections by address.
type Peers = Arc<Mutex<HashMap<IpAddr, u32>>>;

/// Accepts installers until it is dropped.
#[derive(Debug)]
pub struct ReportListener {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    peers: Peers,
}

impl ReportListener {
    pub async fn bind(address: SocketAddr) -> io::Result<ReportListener> {
        let listener = TcpListener::bind(address).await?;
        Ok(ReportListener { listener, permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)), peers: Peers::default() })
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Listener for ReportListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            // The semaphore is never closed.
            let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    let Some(place) = Place::take(&self.peers, address.ip()) else { continue };
                    let over = Box::pin(tokio::time::sleep(CONNECTION_LASTS_MAX));
                    return (Connection { stream, over, _place: place, _permit: permit }, address);
                }
                Err(error) => {
                    debug!(%error, "an installer's connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One of the connections of an address.
#[derive(Debug)]
struct Place {
    peers: Peers,
    peer: IpAddr,
}

impl Place {
    /// None: the address has as many as it may have.
    fn take(peers: &Peers, peer: IpAddr) -> Option<Place> {
        let mut open = peers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(peer).or_default();
        if *count >= CONNECTIONS_OF_ONE_MAX {
            return None;
        }
        *count += 1;
        Some(Place { peers: Arc::clone(peers), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.peer);
            }
        }
    }
}

/// An installer's connection, which ends by itself.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    over: Pin<Box<Sleep>>,
    _place: Place,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Connection {
    /// An error once its time is over; whoever waits for it is woken then.
    fn still_good(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.over.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.still_good(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.still_good(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.still_good(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.still_good(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected<IncomingStream<'_, ReportListener>> for From {
    fn connect_info(stream: IncomingStream<'_, ReportListener>) -> From {
        From(stream.remote_addr().ip())
    }
}
