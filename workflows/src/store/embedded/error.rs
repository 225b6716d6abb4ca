//! Why there is no private Redis.

use std::io;
use std::path::PathBuf;

/// Each message says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    #[error("`{}` is not installed: run `apt-get install redis-server`, or configure the URL of another Redis", program.display())]
    Missing { program: PathBuf },
    #[error("could not start `{}`", program.display())]
    Start {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("could not prepare {} for the private Redis", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the path {} is longer than a socket's may be ({max} bytes): choose a shorter state_dir", path.display())]
    LongPath { path: PathBuf, max: usize },
    #[error("the private Redis ended while it started: {last_words}")]
    Ended { last_words: String },
    #[error("the private Redis at {} does not answer: look at {} and at the daemon that owns it", socket.display(), log.display())]
    Silent { socket: PathBuf, log: PathBuf },
    #[error("an old private Redis (process {pid}) can't be ended: end it by hand")]
    Stuck { pid: i32 },
}
