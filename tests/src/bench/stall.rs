//! For how long Redis says nothing: another client's view of what we ask of it.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Between two questions.
const EVERY: Duration = Duration::from_millis(1);
/// A Redis that is silent for longer has died.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Asks every millisecond, from a thread of its own, until it is ended.
pub(super) struct Stall {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<io::Result<Duration>>,
}

impl Stall {
    pub(super) fn watch(socket: &Path) -> io::Result<Stall> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("stall".to_owned()).spawn(move || {
            let (mut longest, mut answer) = (Duration::ZERO, [0; 7]);
            while !stopped.load(Ordering::Relaxed) {
                let asked = Instant::now();
                stream.write_all(b"PING\r\n")?;
                stream.read_exact(&mut answer)?;
                longest = longest.max(asked.elapsed());
                std::thread::sleep(EVERY);
            }
            Ok(longest)
        })?;
        Ok(Stall { stop, thread })
    }

    /// The longest time without an answer.
    pub(super) fn end(self) -> io::Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| io::Error::other("the thread that pings Redis panicked"))?
    }
}
