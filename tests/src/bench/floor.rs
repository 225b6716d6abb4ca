//! The floor: the nine native commands that a workflow of three steps needs at least, sent by a client that does nothing else.
//! It has no fences, compares nothing, and would lose work to a crash. Nobody who keeps a journal in Redis can do with less.

use std::io::{self, Read as _, Write as _};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::kind;

const DUE: &str = "{floor}:due";

/// Connections of the bare client. With AOF `always` Redis calls fsync once for what it read from all of them, 16 KB from each
/// at a time.
const CONNECTIONS: usize = 16;
/// Sent at once: what a socket takes without waiting.
const CHUNK_BYTES: usize = 128 * 1024;
/// A Redis that says nothing for so long has not got a complete command from us, or has died.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What is written for one workflow: as many bytes as the engine writes.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    /// Fields of the document, with their values, as they are at the creation.
    pub(super) document: Vec<(String, String)>,
    /// Fields that every step changes.
    pub(super) changed: Vec<(String, String)>,
    /// Bytes that each of the three steps appends to the journal.
    pub(super) step_bytes: usize,
}

/// How long it took to create `workflows` workflows, and to run them to their end.
pub(super) fn run(socket: &Path, workflows: usize, sizes: &Sizes) -> io::Result<(Duration, Duration)> {
    let client = Client::connect(socket)?;
    // Two replies of one line each; then a popped pair in five lines and six more.
    let created = client.ask(0..workflows, 2, |number, out| create(number, sizes, out))?;
    let ran = client.ask(0..workflows, 11, |number, out| bring_on(number, sizes, out))?;
    Ok((created, ran))
}

/// Makes the workflows of these numbers due at `at`, whatever number that is.
pub(super) fn make_due(socket: &Path, numbers: Range<usize>, at: &str) -> io::Result<Duration> {
    Client::connect(socket)?.ask(numbers, 1, |number, out| command(out, ["ZADD", DUE, at, &kind::id(number)]))
}

/// How long it took to claim as many workflows as there are numbers.
pub(super) fn claim(socket: &Path, numbers: Range<usize>) -> io::Result<Duration> {
    Client::connect(socket)?.ask(numbers, 5, |_, out| command(out, ["ZPOPMIN", DUE]))
}

/// The bare client: all of its connections.
struct Client(Vec<UnixStream>);

impl Client {
    fn connect(socket: &Path) -> io::Result<Client> {
        (0..CONNECTIONS).map(|_| UnixStream::connect(socket)).collect::<io::Result<Vec<_>>>().map(Client)
    }

    /// Sends what `write` writes for every number, each connection its share of them, and waits for the `lines` replied to
    /// each. How long that took.
    fn ask(&self, numbers: Range<usize>, lines: usize, write: impl Fn(usize, &mut Vec<u8>) + Sync) -> io::Result<Duration> {
        let share = |connection: usize| numbers.start + numbers.len() * connection / CONNECTIONS;
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (connection, stream) in self.0.iter().enumerate() {
                let share = share(connection)..share(connection + 1);
                let (write, expected) = (&write, share.len() * lines);
                threads.push(scope.spawn(move || await_lines(stream, expected)));
                threads.push(scope.spawn(move || send(stream, share, write)));
            }
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| io::Error::other("a thread of the bare client panicked"))?)
        })?;
        Ok(begun.elapsed())
    }
}

fn send(mut stream: &UnixStream, share: Range<usize>, write: impl Fn(usize, &mut Vec<u8>)) -> io::Result<()> {
    let mut chunk = Vec::with_capacity(2 * CHUNK_BYTES);
    for number in share {
        write(number, &mut chunk);
        if chunk.len() >= CHUNK_BYTES {
            stream.write_all(&chunk)?;
            chunk.clear();
        }
    }
    stream.write_all(&chunk)
}

/// Counts lines, which is enough: no value that is replied has a line break, and an error begins with `-`.
fn await_lines(mut stream: &UnixStream, expected: usize) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    let mut buffer = vec![0; 64 * 1024];
    let (mut seen, mut line_begins) = (0, true);
    while seen < expected {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Err(io::Error::other("Redis closed the connection"));
        }
        for byte in &buffer[..length] {
            if line_begins && *byte == b'-' {
                return Err(io::Error::other(format!("Redis refused: {}", String::from_utf8_lossy(&buffer[..length]))));
            }
            line_begins = *byte == b'\n';
            seen += usize::from(line_begins);
        }
    }
    if seen > expected { Err(io::Error::other("Redis said more than was asked")) } else { Ok(()) }
}

fn create(number: usize, sizes: &Sizes, out: &mut Vec<u8>) {
    let (id, key) = (kind::id(number), document_key(number));
    let fields = sizes.document.iter().flat_map(|(field, value)| [field.as_str(), value.as_str()]);
    command(out, ["HSET", key.as_str()].into_iter().chain(fields));
    command(out, ["ZADD", DUE, "1800000000000", id.as_str()]);
}

fn bring_on(number: usize, sizes: &Sizes, out: &mut Vec<u8>) {
    let key = document_key(number);
    let journal = format!("{key}:journal");
    let entry = "x".repeat(sizes.step_bytes);
    command(out, ["ZPOPMIN", DUE]);
    for _ in 0..3 {
        command(out, ["RPUSH", journal.as_str(), entry.as_str()]);
        let fields = sizes.changed.iter().flat_map(|(field, value)| [field.as_str(), value.as_str()]);
        command(out, ["HSET", key.as_str()].into_iter().chain(fields));
    }
}

fn document_key(number: usize) -> String {
    format!("{{floor}}:wf:{}", kind::id(number))
}

fn command<'a>(out: &mut Vec<u8>, words: impl IntoIterator<Item = &'a str>) {
    let words: Vec<&str> = words.into_iter().collect();
    // Writing to memory can't fail.
    let _ = write!(out, "*{}\r\n", words.len());
    for word in words {
        let _ = write!(out, "${}\r\n{word}\r\n", word.len());
    }
}
