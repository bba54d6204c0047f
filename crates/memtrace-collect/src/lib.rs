//! A live target to bytes and gauges: HTTP scraping and `/proc`.
//!
//! What this crate hides: how a target is found from what the user has at hand,
//! the HTTP conversation with a service that must not be disturbed, and the many
//! shapes of `/proc` and of cgroups. What comes out is never interpreted here.
//!
//! ```text
//! "4711" · "http://host:6060" · "0f3c…" · "heap.pb.gz"
//!    │ Target::parse          what kind of thing it is
//!    ▼
//! Target ──attach──▶ Attached { endpoint, pid }
//!                       │           │
//!              Scraper::new     Process::open
//!                       │           │
//!        heap() goroutines()      read()
//!                       ▼           ▼
//!                 Fetched (bytes)  Gauges
//! ```
//!
//! The target comes first. One request at a time, over one kept connection; never
//! a CPU profile or a trace; goroutine dumps at most once a minute; retries end
//! with the interval; everything that is read is read with a bound; nothing is
//! written but what is asked for ([`Draft`]).

mod draft;
pub mod goproc;
pub mod proc;
pub mod scrape;
pub mod target;

pub use draft::Draft;
pub use goproc::{FreezeError, Frozen, Method};
pub use proc::{Exe, ProcError, Process};
pub use scrape::{Endpoint, Fetched, Options, ScrapeError, Scraper, TokenSource, WATCH_BYTES};
pub use target::{Attached, Target, TargetError};

/// Any error of this crate, for callers that only print it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CollectError {
    /// The target could not be found.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The target did not answer with a profile.
    #[error(transparent)]
    Scrape(#[from] ScrapeError),
    /// The process could not be read.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// The process could not be frozen.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    /// The process answers with no profile, and what it runs cannot be read from outside.
    #[error("process {pid} is {what}")]
    Program {
        /// The pid.
        pid: u32,
        /// What it runs, as a noun phrase.
        what: memtrace_formats::Error,
    },
    /// The process answers with no profile, and its memory may not be read either.
    #[error("{endpoint}; nor can its memory be read: {memory}")]
    Closed {
        /// Why there is no profile.
        endpoint: TargetError,
        /// Why its memory cannot be read.
        memory: Box<FreezeError>,
    },
}

/// Now, in the words of the model.
fn now() -> memtrace_model::Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let ms = since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX));
    memtrace_model::Time(ms)
}

/// Everything that can easily go wrong with a text on its way: cut off at every
/// place, and each byte replaced by what parsers dislike.
#[cfg(test)]
fn damaged(text: &str) -> impl Iterator<Item = String> + '_ {
    let cut =
        (0..text.len()).map(|at| String::from_utf8_lossy(&text.as_bytes()[..at]).into_owned());
    let replaced = (0..text.len()).flat_map(|at| {
        [
            0, b' ', b'\n', b':', b'/', b'-', b'9', b'(', b')', b'\\', 0xff,
        ]
        .map(|byte| {
            let mut bytes = text.as_bytes().to_vec();
            bytes[at] = byte;
            String::from_utf8_lossy(&bytes).into_owned()
        })
    });
    cut.chain(replaced)
}
