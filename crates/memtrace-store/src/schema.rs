//! The tables, their version, and how a connection is set up.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::{Durability, StoreError};

/// File of the store in its directory.
pub(crate) const FILE: &str = "memtrace.db";
/// Format that this program writes.
pub(crate) const VERSION: u32 = MIGRATIONS.len() as u32;
/// Marks the file as ours (`mtr1`).
const APPLICATION: u32 = 0x6d74_7231;

/// Step `i` brings format `i` to `i + 1`. Steps are never changed once released.
const MIGRATIONS: &[&str] = &["
CREATE TABLE targets  (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE sessions (id INTEGER PRIMARY KEY, target INTEGER NOT NULL, began INTEGER NOT NULL,
                       started INTEGER, reason TEXT NOT NULL);
CREATE INDEX sessions_by_time ON sessions (target, began);

-- The dictionary: everything that snapshots share, once.
CREATE TABLE strings  (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE mappings (id INTEGER PRIMARY KEY, data BLOB NOT NULL UNIQUE);
CREATE TABLE headers  (id INTEGER PRIMARY KEY, data BLOB NOT NULL UNIQUE);
CREATE TABLE locations(id INTEGER PRIMARY KEY, data BLOB NOT NULL UNIQUE);
CREATE TABLE stacks   (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, locations BLOB NOT NULL);
CREATE TABLE labels   (id INTEGER PRIMARY KEY, data BLOB NOT NULL UNIQUE);
CREATE TABLE rows     (id INTEGER PRIMARY KEY, stack INTEGER NOT NULL, labels INTEGER NOT NULL,
                       UNIQUE (stack, labels));

-- Runs of snapshots. base: the chunk whose last snapshot this run of chunks continues; null: stands alone.
CREATE TABLE chunks   (id INTEGER PRIMARY KEY, target INTEGER NOT NULL, kind INTEGER NOT NULL,
                       first INTEGER NOT NULL, last INTEGER NOT NULL, count INTEGER NOT NULL,
                       base INTEGER, thinned INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX chunks_by_time ON chunks (target, kind, last);

CREATE TABLE raw      (id INTEGER PRIMARY KEY, target INTEGER NOT NULL, kind INTEGER NOT NULL,
                       at INTEGER NOT NULL, pinned INTEGER NOT NULL, coding INTEGER NOT NULL,
                       base INTEGER, data BLOB NOT NULL);
CREATE INDEX raw_by_time ON raw (target, kind, pinned, at);
CREATE TABLE pins     (target INTEGER NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (target, at)) WITHOUT ROWID;

CREATE TABLE events   (id INTEGER PRIMARY KEY, target INTEGER NOT NULL, at INTEGER NOT NULL, data TEXT NOT NULL);
CREATE INDEX events_by_time ON events (target, at);
CREATE TABLE findings (id INTEGER PRIMARY KEY, target INTEGER NOT NULL, at INTEGER NOT NULL, data TEXT NOT NULL);
CREATE INDEX findings_by_time ON findings (target, at);
"];

/// Opens the file for its one writer, creating or updating its tables.
pub(crate) fn open_writer(dir: &Path, durability: Durability) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(dir.join(FILE), flags)?;
    if db.is_readonly("main")? {
        return Err(StoreError::ReadOnly(dir.join(FILE).display().to_string()));
    }
    prepare(&db)?;
    let found = version(&db)?;
    if found == 0 {
        // Take effect only before the first table.
        db.execute_batch("PRAGMA auto_vacuum = INCREMENTAL;")?;
    }
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(
        None,
        "synchronous",
        match durability {
            Durability::ProcessKill => "NORMAL",
            Durability::PowerLoss => "FULL",
        },
    )?;
    // A log that grew while a reader held it is cut back to this.
    db.execute_batch("PRAGMA journal_size_limit = 16777216;")?;
    for (i, step) in MIGRATIONS.iter().enumerate().skip(found as usize) {
        db.execute_batch(&format!(
            "BEGIN IMMEDIATE; {step} PRAGMA application_id = {APPLICATION}; \
             PRAGMA user_version = {}; COMMIT;",
            i + 1
        ))
        .inspect_err(|_| {
            let _ = db.execute_batch("ROLLBACK");
        })?;
    }
    Ok(db)
}

/// Opens the file for reading only.
pub(crate) fn open_reader(dir: &Path) -> Result<Connection, StoreError> {
    let path = dir.join(FILE);
    match path.try_exists() {
        Ok(true) => {}
        Ok(false) => return Err(StoreError::Missing(dir.to_owned())),
        Err(e) => return Err(StoreError::io(&path, e)),
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(&path, flags)?;
    let tried = prepare(&db).and_then(|()| version(&db));
    let (db, found) = match tried {
        Ok(found) => (db, found),
        // In a directory that may not be written, SQLite cannot make the index of the
        // log. Without a log there is no writer, and the file does not change.
        Err(StoreError::Sqlite(_) | StoreError::ReadOnly(_)) if !has_log(dir) => {
            let uri = format!("file:{}?immutable=1", escape(&path));
            let db = Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?;
            prepare(&db)?;
            let found = version(&db)?;
            (db, found)
        }
        Err(e) => return Err(e),
    };
    if found == 0 {
        return Err(StoreError::Missing(dir.to_owned()));
    }
    if found < VERSION {
        // No format before the first; a later program says here which ones it still reads.
        return Err(StoreError::damaged("a format that never was"));
    }
    Ok(db)
}

fn has_log(dir: &Path) -> bool {
    std::fs::metadata(dir.join(format!("{FILE}-wal"))).is_ok_and(|m| m.len() > 0)
}

fn escape(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.replace('%', "%25")
        .replace('?', "%3f")
        .replace('#', "%23")
}

fn prepare(db: &Connection) -> Result<(), StoreError> {
    db.busy_timeout(Duration::from_secs(5))?;
    db.set_prepared_statement_cache_capacity(64);
    db.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;")?;
    Ok(())
}

/// Format of the file, 0 when it is empty.
fn version(db: &Connection) -> Result<u32, StoreError> {
    let number = |name| db.pragma_query_value(None, name, |r| r.get::<_, u32>(0));
    let (found, application) = (number("user_version")?, number("application_id")?);
    let tables: u32 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
    if tables == 0 && found == 0 {
        return Ok(0);
    }
    if application != APPLICATION {
        return Err(StoreError::damaged("the file belongs to another program"));
    }
    if found > VERSION {
        return Err(StoreError::Newer {
            found,
            known: VERSION,
        });
    }
    if found == 0 {
        return Err(StoreError::damaged("tables without a version"));
    }
    Ok(found)
}
