//! Keeps what was learned: one SQLite file per machine.
