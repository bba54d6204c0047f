use serde::{Deserialize, Serialize};

use crate::Time;

/// Something that happened to a target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When it was noticed.
    pub at: Time,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// The watch began.
    Attach {
        /// Start of the process in Unix time, where known.
        started: Option<Time>,
    },
    /// The service was restarted: its counters began anew. Never a drop in a series.
    Restart {
        /// Why we believe so: `pid changed`, `start time changed`, `counters fell`.
        reason: String,
    },
    /// The target could not be read.
    Lost {
        /// The error, in one line.
        reason: String,
    },
    /// The target could be read again.
    Recovered,
    /// Where figures come from that can come from several places.
    Source {
        /// Which figures, and where from, in one line.
        text: String,
    },
    /// A snapshot of its heap was written.
    Snapshot {
        /// The file.
        file: String,
        /// What for, in one line.
        text: String,
    },
    /// Something in the answer was damaged, skipped or refused.
    Warning {
        /// What it was, in one line.
        text: String,
    },
}
