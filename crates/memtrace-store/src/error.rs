use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;

/// Why the store could not do what it was asked, sorted by who must act.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no store in this directory.
    #[error("no memtrace store in {}", .0.display())]
    Missing(PathBuf),
    /// Another process writes to the store. Stop it, or open the store for reading.
    #[error("the store is in use by {}", holder(.pid))]
    Locked {
        /// The process that holds it, where it could be read.
        pid: Option<u32>,
    },
    /// Written by a newer memtrace: update this one.
    #[error(
        "the store has format {found}, this memtrace knows formats up to {known}: update memtrace"
    )]
    Newer {
        /// Version of the file.
        found: u32,
        /// Newest version this program reads.
        known: u32,
    },
    /// No space left. What was acknowledged is safe; appending works again once there is space.
    #[error("no space left for the store")]
    Full,
    /// The directory or the file may not be written.
    #[error("the store may not be written: {0}")]
    ReadOnly(String),
    /// The file is damaged or is no store.
    #[error("the store is damaged: {0}")]
    Corrupt(String),
    /// A longer operation of another process is in the way; try again.
    #[error("the store is busy")]
    Busy,
    /// The target is not in the store.
    #[error("no such target in the store")]
    NoTarget,
    /// The operating system refused.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// Any other answer of SQLite.
    #[error("store: {0}")]
    Sqlite(rusqlite::Error),
}

fn holder(pid: &Option<u32>) -> String {
    pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"))
}

impl StoreError {
    pub(crate) fn io(path: &std::path::Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::ReadOnly(format!("{}: {source}", path.display()))
            }
            _ => Self::Io {
                path: path.to_owned(),
                source,
            },
        }
    }

    pub(crate) fn damaged(what: &str) -> Self {
        Self::Corrupt(what.to_owned())
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(e: rusqlite::Error) -> Self {
        // Growing the shared index of the log needs space as well.
        const IOERR_SHMSIZE: i32 = 10 | (19 << 8);
        let Some(code) = e.sqlite_error() else {
            return match e {
                rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::Utf8Error(..) => Self::Corrupt(e.to_string()),
                e => Self::Sqlite(e),
            };
        };
        match code.code {
            ErrorCode::DiskFull => Self::Full,
            _ if code.extended_code == IOERR_SHMSIZE => Self::Full,
            ErrorCode::ReadOnly | ErrorCode::PermissionDenied => Self::ReadOnly(e.to_string()),
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Self::Corrupt(e.to_string()),
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Self::Busy,
            _ => Self::Sqlite(e),
        }
    }
}

impl From<serde_json::Error> for StoreError {
    fn from(e: serde_json::Error) -> Self {
        Self::Corrupt(e.to_string())
    }
}
