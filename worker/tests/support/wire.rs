//! A small proxy between an adapter and its counterpart: it can swallow the next answer, and shows what went through.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A proxy on loopback, for as long as it lives.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct State {
    /// So many requests that begin so get no answer, though they are delivered.
    swallow: Option<(String, usize)>,
    requests: Vec<String>,
}

impl Wire {
    /// A proxy to `to` (`host:port`).
    pub(crate) async fn to(to: &str) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, to) = (Arc::new(Mutex::new(State::default())), to.to_owned());
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&to).await.unwrap();
                tokio::spawn(carry(client, server, Arc::clone(&shared)));
            }
        });
        Wire { address, state, task }
    }

    /// Cuts the connection in place of the answers to the next `count` requests that begin with `start`.
    pub(crate) fn swallow_answers_to(&self, start: &str, count: usize) {
        self.state.lock().unwrap().swallow = Some((start.to_owned(), count));
    }

    /// The heads of all requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    /// The value of a header in the newest request that has it.
    pub(crate) fn last_header(&self, name: &str) -> Option<String> {
        let requests = self.requests();
        let lines = requests.iter().rev().flat_map(|head| head.lines());
        lines
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut client: TcpStream, mut server: TcpStream, state: Arc<Mutex<State>>) {
    let (mut from_client, mut from_server) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut swallowing = false;
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => match read {
                Ok(count) if count > 0 => {
                    // A request of ours comes with one write, or its head does.
                    let head = String::from_utf8_lossy(&from_client[..count]).into_owned();
                    {
                        let mut state = state.lock().unwrap();
                        if let Some((start, left)) = &mut state.swallow
                            && *left > 0
                            && head.starts_with(start.as_str())
                        {
                            *left -= 1;
                            swallowing = true;
                        }
                        state.requests.push(head);
                    }
                    server.write_all(&from_client[..count]).await.unwrap();
                }
                _ => return,
            },
            read = server.read(&mut from_server) => match read {
                Ok(count) if count > 0 && !swallowing => client.write_all(&from_server[..count]).await.unwrap(),
                _ => return,
            },
        }
    }
}
