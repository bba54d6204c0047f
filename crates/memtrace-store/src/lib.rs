//! Keeps what was learned, in one SQLite file per machine.
//!
//! ```text
//! Profile ─▶ rows by number ─▶ changes since the last snapshot ─▶ zstd ─▶ one small blob
//!            (dictionary)       (runs of snapshots)
//! ```
//! What this crate hides: the tables and their versions; the dictionary in which
//! every string, frame, stack and label set is stored once; the coding of
//! snapshots, of which 24 hours at 30 s cost about a fiftieth of the profiles that
//! came in; sealing (single snapshots become runs of an hour), thinning and
//! retention; the lock that admits one writer.
//!
//! [`Store`] writes, [`Reader`] reads; the two may be different processes. What
//! [`Store::append`] acknowledged survives a kill -9 of the process; with
//! [`Durability::PowerLoss`] also a loss of power. An error leaves the store as it
//! was before the call. The crate reads no clock: every call says which time it is.

mod codec;
mod dictionary;
mod error;
mod lock;
mod maintain;
mod raw;
mod reader;
mod sampled;
mod schema;
mod store;
mod varint;

use std::time::Duration;

use memtrace_model::Time;

pub use error::StoreError;
pub use maintain::Progress;
pub use reader::{Reader, SampleType, Snapshots, StoredSnapshot};
pub use store::{Reading, Snapshot, Store};

/// Number of a target in one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(pub i64);

/// Which profile a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Heap profile.
    Heap,
    /// Goroutine profile.
    Goroutine,
}

impl Kind {
    /// Both kinds.
    pub const ALL: [Self; 2] = [Self::Heap, Self::Goroutine];

    /// The number in the file.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Heap => 1,
            Self::Goroutine => 2,
        }
    }
}

/// A watched target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its number.
    pub id: TargetId,
    /// Its name, as the user gave it.
    pub name: String,
    /// Oldest reading that is kept.
    pub first: Option<Time>,
    /// Newest reading.
    pub last: Option<Time>,
}

/// One life of a target's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// When it was noticed.
    pub began: Time,
    /// Start of the process, where known.
    pub started: Option<Time>,
    /// Why a new one began; `attach` for the first.
    pub reason: String,
}

/// What an acknowledged write survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The end of the process, by `kill -9` too. A loss of power may cost the last
    /// writes, never the file.
    #[default]
    ProcessKill,
    /// A loss of power as well, at the price of one `fsync` a write.
    PowerLoss,
}

/// How a store keeps its data.
#[derive(Clone, Debug)]
pub struct Options {
    /// What an acknowledged write survives.
    pub durability: Durability,
    /// How long snapshots, gauges, events, findings and pinned bytes are kept; 7 days.
    pub retention: Duration,
    /// How long the bytes of every profile are kept; 15 minutes.
    pub raw: Duration,
    /// Age from which snapshots are thinned; 24 hours.
    pub thin_after: Duration,
    /// Distance of the snapshots that thinning leaves; 10 minutes.
    pub thin_to: Duration,
    /// Rows of one snapshot; the lightest beyond it are folded into a row `[other]`. 200,000.
    pub max_rows: usize,
    /// Different label sets in the store; further ones are dropped from their rows. 1,000,000.
    pub max_label_sets: u32,
    /// Largest size of the file in bytes; beyond it appending fails with
    /// [`StoreError::Full`]. No limit but the disk's by default.
    pub max_bytes: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durability: Durability::default(),
            retention: Duration::from_secs(7 * 24 * 3600),
            raw: Duration::from_secs(15 * 60),
            thin_after: Duration::from_secs(24 * 3600),
            thin_to: Duration::from_secs(600),
            max_rows: 200_000,
            max_label_sets: 1_000_000,
            max_bytes: None,
        }
    }
}
