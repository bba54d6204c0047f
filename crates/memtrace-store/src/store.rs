use std::collections::HashMap;
use std::path::Path;

use memtrace_model::{Event, EventKind, Finding, Gauges, Profile, Time, to_json};
use rusqlite::OptionalExtension;

use crate::codec::{Encoder, Frame, Layout, Packer};
use crate::dictionary::Writer;
use crate::lock::WriterLock;
use crate::reader::{GAUGES, gauge_pair};
use crate::{Kind, Options, Reader, StoreError, TargetId, raw, schema};

/// Snapshots in a run before it is sealed.
const SEAL_COUNT: u32 = 120;
/// Bytes of a run before it is sealed, packed, and as they are.
const SEAL_BYTES: u32 = 1 << 20;
const SEAL_UNPACKED: usize = 4 << 20;
/// Packing effort for single snapshots, which are packed again soon.
const LEVEL_SINGLE: i32 = 3;
/// Packing effort for what stays. Its tables take 12 MiB within such a window (a power of two),
/// and four times as much without.
const LEVEL_SEALED: i32 = 12;
const WINDOW_SEALED: u32 = 20;

/// One profile to keep.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// What it is.
    pub kind: Kind,
    /// The profile.
    pub profile: &'a Profile,
    /// The bytes it was read from, to be kept for a while.
    pub raw: Option<&'a [u8]>,
}

/// What was read from one target at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// The target.
    pub target: TargetId,
    /// When. A time before the target's last one is moved to the last one.
    pub at: Time,
    /// Profiles, none or one of each kind.
    pub snapshots: &'a [Snapshot<'a>],
    /// Gauges; those not read are absent.
    pub gauges: &'a Gauges,
}

/// Where the newest run of one target and kind ends.
#[derive(Debug)]
pub(crate) struct Tail {
    /// First chunk of the run.
    base: i64,
    /// Snapshots not yet sealed, and their packed size.
    count: u32,
    bytes: u32,
    /// Their unpacked size, as far as they were written since the store was opened.
    unpacked: usize,
    last: Frame,
}

/// The one writer of a store.
pub struct Store {
    pub(crate) reader: Reader,
    pub(crate) options: Options,
    writer: Writer,
    pub(crate) tails: HashMap<(TargetId, u8), Tail>,
    raw_groups: HashMap<(TargetId, u8), raw::Group>,
    quick: Packer,
    pub(crate) tight: Packer,
    pub(crate) turn: usize,
    _lock: WriterLock,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in `dir` for writing; creates both where they are missing.
    pub fn create_or_open(dir: &Path, options: Options) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(|e| StoreError::io(dir, e))?;
        let lock = WriterLock::take(dir)?;
        let db = schema::open_writer(dir, options.durability)?;
        if let Some(max) = options.max_bytes {
            let page: u32 = db.pragma_query_value(None, "page_size", |r| r.get(0))?;
            let pages = (max / u64::from(page.max(1))).clamp(1, u64::from(u32::MAX - 1)) as u32;
            db.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
        }
        Ok(Self {
            reader: Reader::new(db),
            options,
            writer: Writer::default(),
            tails: HashMap::new(),
            raw_groups: HashMap::new(),
            quick: Packer::new(LEVEL_SINGLE).map_err(pack)?,
            tight: {
                let mut tight = Packer::new(LEVEL_SEALED).map_err(pack)?;
                let window = zstd::zstd_safe::CParameter::WindowLog(WINDOW_SEALED);
                tight.set_parameter(window).map_err(pack)?;
                tight
            },
            turn: 0,
            _lock: lock,
        })
    }

    /// Opens the store in `dir` for reading only.
    pub fn open_read_only(dir: &Path) -> Result<Reader, StoreError> {
        Reader::open(dir)
    }

    /// Reads through the writer's own connection.
    #[must_use]
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// The target with this name; a new one where the store does not know it.
    pub fn target(&mut self, name: &str) -> Result<TargetId, StoreError> {
        if let Some(id) = self.reader.find_target(name)? {
            return Ok(id);
        }
        self.transaction(|s| {
            s.reader
                .db
                .execute("INSERT INTO targets (name) VALUES (?1)", [name])?;
            Ok(TargetId(s.reader.db.last_insert_rowid()))
        })
    }

    /// Keeps one reading. When this returns `Ok`, it survives a kill -9.
    pub fn append(&mut self, reading: &Reading<'_>) -> Result<(), StoreError> {
        self.append_many(std::slice::from_ref(reading))
    }

    /// Keeps several readings, all or none: cheaper than one by one.
    pub fn append_many(&mut self, readings: &[Reading<'_>]) -> Result<(), StoreError> {
        self.transaction(|s| {
            // Sealing is spread, so that no single call takes long.
            let mut seals = 2 + readings.len() / 25;
            for r in readings {
                s.add(r, &mut seals)?;
            }
            Ok(())
        })
    }

    /// Keeps an event. `Attach` and `Restart` begin a new session of the target.
    pub fn event(&mut self, target: TargetId, event: &Event) -> Result<(), StoreError> {
        let text = to_json(event)?;
        let session = match &event.kind {
            EventKind::Attach { started } => Some((*started, "attach")),
            EventKind::Restart { reason } => Some((None, reason.as_str())),
            _ => None,
        };
        self.transaction(|s| {
            let db = &s.reader.db;
            if let Some((started, reason)) = session {
                db.execute(
                    "INSERT INTO sessions (target, began, started, reason) VALUES (?1, ?2, ?3, ?4)",
                    (target.0, event.at.0, started.map(|t: Time| t.0), reason),
                )?;
            }
            db.execute(
                "INSERT INTO events (target, at, data) VALUES (?1, ?2, ?3)",
                (target.0, event.at.0, text),
            )?;
            Ok(())
        })
    }

    /// Keeps a finding.
    pub fn finding(&mut self, target: TargetId, finding: &Finding) -> Result<(), StoreError> {
        let text = to_json(finding)?;
        self.transaction(|s| {
            s.reader.db.execute(
                "INSERT INTO findings (target, at, data) VALUES (?1, ?2, ?3)",
                (target.0, finding.at.0, text),
            )?;
            Ok(())
        })
    }

    /// Keeps the profiles of these times, those just before an onset, as long as
    /// snapshots are kept: their bytes where they are still there, and their
    /// snapshots, which thinning passes over.
    pub fn keep_raw(&mut self, target: TargetId, times: &[Time]) -> Result<(), StoreError> {
        self.transaction(|s| {
            let db = &s.reader.db;
            for t in times {
                db.execute(
                    "INSERT OR IGNORE INTO pins (target, at) VALUES (?1, ?2)",
                    (target.0, t.0),
                )?;
                raw::pin(db, target, *t)?;
            }
            Ok(())
        })
    }

    fn add(&mut self, r: &Reading<'_>, seals: &mut usize) -> Result<(), StoreError> {
        let mut frames = Vec::with_capacity(r.snapshots.len() + 1);
        if r.gauges.iter().next().is_some() {
            frames.push((GAUGES, self.gauges_frame(r.gauges)?, None));
        }
        for snapshot in r.snapshots {
            let mut frame = self.writer.frame(
                &self.reader.db,
                snapshot.profile,
                self.options.max_rows.max(1),
                self.options.max_label_sets,
            )?;
            let taken = snapshot.profile.taken_at();
            frame.taken = taken.map(|t| t.0.saturating_sub(r.at.0));
            frames.push((snapshot.kind.number(), frame, snapshot.raw));
        }
        for (kind, mut frame, raw) in frames {
            self.load_tail(r.target, kind)?;
            let tail = self.tails.remove(&(r.target, kind));
            frame.at = tail.as_ref().map_or(r.at.0, |t| t.last.at.max(r.at.0));
            if frame.at != r.at.0 {
                frame.taken = frame.taken.map(|t| t.saturating_add(r.at.0 - frame.at));
            }
            let at = frame.at;
            let (base, count, bytes, unpacked, last) = match tail {
                Some(t) => (Some(t.base), t.count, t.bytes, t.unpacked, Some(t.last)),
                None => (None, 0, 0, 0, None),
            };
            let mut encoder = Encoder::new(last);
            encoder.push(frame);
            let unpacked = unpacked.saturating_add(encoder.len());
            let (data, last) = encoder.finish(&mut self.quick).map_err(pack)?;
            self.reader
                .db
                .prepare_cached(
                    "INSERT INTO chunks (target, kind, first, last, count, base, thinned, data) \
                     VALUES (?1, ?2, ?3, ?3, 1, ?4, 0, ?5)",
                )?
                .execute((r.target.0, kind, at, base, &data))?;
            let id = self.reader.db.last_insert_rowid();
            let tail = Tail {
                base: base.unwrap_or(id),
                count: count + 1,
                bytes: bytes.saturating_add(u32::try_from(data.len()).unwrap_or(u32::MAX)),
                unpacked,
                last,
            };
            let full = tail.count >= SEAL_COUNT
                || tail.bytes >= SEAL_BYTES
                || tail.unpacked >= SEAL_UNPACKED;
            self.tails.insert((r.target, kind), tail);
            if full && *seals > 0 {
                *seals -= 1;
                self.seal(r.target, kind)?;
            }
            if let Some(raw) = raw {
                self.add_raw(r.target, kind, at, raw)?;
            }
        }
        Ok(())
    }

    fn add_raw(
        &mut self,
        target: TargetId,
        kind: u8,
        at: i64,
        raw: &[u8],
    ) -> Result<(), StoreError> {
        let window = i64::try_from(self.options.raw.as_millis()).unwrap_or(i64::MAX);
        let db = &self.reader.db;
        raw::expire(db, target, kind, at.saturating_sub(window), u32::MAX)?;
        let group = self.raw_groups.remove(&(target, kind));
        if let Some(group) = raw::add(db, target, kind, at, raw, group)? {
            self.raw_groups.insert((target, kind), group);
        }
        Ok(())
    }

    fn gauges_frame(&self, gauges: &Gauges) -> Result<Frame, StoreError> {
        let mut rows = gauges
            .iter()
            .map(|(g, v)| Ok((self.writer.text(&self.reader.db, g.name())?, gauge_pair(v))))
            .collect::<Result<Vec<_>, StoreError>>()?;
        rows.sort_unstable();
        Ok(Frame {
            layout: Layout {
                header: 0,
                width: 2,
                rate: 0,
            },
            ids: rows.iter().map(|r| r.0).collect(),
            counts: vec![Default::default(); rows.len()],
            values: rows.iter().flat_map(|r| r.1).collect(),
            ..Frame::default()
        })
    }

    /// Finds the end of the newest run after an opening or an error.
    pub(crate) fn load_tail(&mut self, target: TargetId, kind: u8) -> Result<(), StoreError> {
        if self.tails.contains_key(&(target, kind)) {
            return Ok(());
        }
        let db = &self.reader.db;
        let newest: Option<(i64, Option<i64>, i64)> = db
            .prepare_cached(
                "SELECT id, base, last FROM chunks WHERE target = ?1 AND kind = ?2 \
                 ORDER BY last DESC, id DESC LIMIT 1",
            )?
            .query_row((target.0, kind), |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
            .optional()?;
        let Some((id, base, last)) = newest else {
            let known = db
                .prepare_cached("SELECT 1 FROM targets WHERE id = ?1")?
                .exists([target.0])?;
            return if known {
                Ok(())
            } else {
                Err(StoreError::NoTarget)
            };
        };
        let base = base.unwrap_or(id);
        let (count, bytes) = db
            .prepare_cached(
                "SELECT coalesce(sum(count), 0), coalesce(sum(length(data)), 0) FROM chunks \
                 WHERE target = ?1 AND kind = ?2 AND base = ?3",
            )?
            .query_row((target.0, kind, base), |r| Ok((r.get(0)?, r.get(1)?)))?;
        let mut found = None;
        let mut frames = self.reader.frames(target, kind, Time(last)..=Time(last))?;
        loop {
            match frames.next() {
                Ok(Some(f)) => found = Some(f.clone()),
                Ok(None) => break,
                Err(StoreError::Corrupt(_)) => found = None,
                Err(e) => return Err(e),
            }
        }
        // A damaged run is left as it is; a new one begins.
        if let Some(last) = found {
            let tail = Tail {
                base,
                count,
                bytes,
                unpacked: 0,
                last,
            };
            self.tails.insert((target, kind), tail);
        }
        Ok(())
    }

    /// Does `f` as a whole or not at all.
    pub(crate) fn transaction<T>(
        &mut self,
        f: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.reader.db.execute_batch("BEGIN IMMEDIATE")?;
        let done = f(self).and_then(|v| {
            self.reader.db.execute_batch("COMMIT")?;
            Ok(v)
        });
        if done.is_err() {
            // After some errors SQLite has rolled back by itself.
            if !self.reader.db.is_autocommit() {
                let _ = self.reader.db.execute_batch("ROLLBACK");
            }
            self.writer = Writer::default();
            self.tails.clear();
            self.raw_groups.clear();
        }
        done
    }

    /// Packs the single snapshots of the newest run into one chunk.
    pub(crate) fn seal(&mut self, target: TargetId, kind: u8) -> Result<(), StoreError> {
        let Some(tail) = self.tails.get(&(target, kind)) else {
            return Ok(());
        };
        let base = tail.base;
        let (first, of_base): (i64, u32) = self
            .reader
            .db
            .prepare_cached("SELECT first, count FROM chunks WHERE id = ?1")?
            .query_row([base], |r| Ok((r.get(0)?, r.get(1)?)))?;
        // Sealed already: the run hangs on a chunk of many, which stays as it is.
        let keep_base = of_base > 1;
        let mut encoder = Encoder::new(None);
        let (mut from, mut to, mut count) = (i64::MAX, first, 0u32);
        let mut skip = if keep_base { of_base } else { 0 };
        let mut frames = self
            .reader
            .frames(target, kind, Time(first)..=Time(i64::MAX))?;
        frames.only_run(base);
        while let Some(f) = frames.next()? {
            if skip > 0 {
                skip -= 1;
                continue;
            }
            from = from.min(f.at);
            to = f.at;
            count += 1;
            encoder.push(f.clone());
        }
        if count == 0 {
            return Ok(());
        }
        let (data, last) = encoder.finish(&mut self.tight).map_err(pack)?;
        let db = &self.reader.db;
        db.prepare_cached(
            "DELETE FROM chunks WHERE target = ?1 AND kind = ?2 AND last >= ?3 \
             AND (base = ?4 OR (id = ?4 AND count = 1))",
        )?
        .execute((target.0, kind, first, base))?;
        db.prepare_cached(
            "INSERT INTO chunks (target, kind, first, last, count, base, thinned, data) \
             VALUES (?1, ?2, ?3, ?4, ?5, NULL, 0, ?6)",
        )?
        .execute((target.0, kind, from, to, count, data))?;
        let tail = Tail {
            base: db.last_insert_rowid(),
            count: 0,
            bytes: 0,
            unpacked: 0,
            last,
        };
        self.tails.insert((target, kind), tail);
        Ok(())
    }
}

pub(crate) fn pack(e: std::io::Error) -> StoreError {
    StoreError::io(Path::new("zstd"), e)
}
