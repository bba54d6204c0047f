//! Retention, thinning, and giving space back, in small steps.

use std::time::Duration;

use memtrace_model::Time;

use crate::codec::Encoder;
use crate::reader::GAUGES;
use crate::store::{Store, pack};
use crate::{Kind, StoreError, TargetId, raw};

/// Rows that one step deletes from one table.
const DELETES: u32 = 256;
/// Sealed chunks that thinning merges into one.
const MERGE: u32 = 24;
/// Pages that one step gives back to the file system.
const PAGES: u32 = 512;
/// A run to which nothing was added for so long is sealed.
const IDLE_MS: i64 = 2 * 3600 * 1000;

/// What one step of [`Store::maintain`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Rows that had outlived their time.
    pub deleted: usize,
    /// Snapshots left out by thinning.
    pub thinned: u64,
    /// Pages given back to the file system.
    pub pages: u32,
    /// More is to be done: call again soon.
    pub more: bool,
}

fn ms(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}

impl Store {
    /// One small step of upkeep, a few milliseconds of work: deletes what is older
    /// than [`Options::retention`](crate::Options::retention), thins old snapshots,
    /// seals runs of targets that ended, and gives free space back. Call it every
    /// minute or so, and again at once while [`Progress::more`].
    pub fn maintain(&mut self, now: Time) -> Result<Progress, StoreError> {
        let pairs = self.pairs()?;
        let mut done = self.transaction(|s| {
            let mut done = s.expire(now, &pairs)?;
            // One target and kind in each step, in turn.
            if let Some(&(target, kind)) = pairs.get(s.turn % pairs.len().max(1)) {
                s.turn = s.turn.wrapping_add(1);
                done.thinned = s.thin(now, target, kind)?;
                done.more |= done.thinned > 0;
                s.seal_idle(now, target, kind)?;
            }
            Ok(done)
        })?;
        done.pages = self.shrink()?;
        done.more |= done.pages >= PAGES;
        Ok(done)
    }

    /// Every target with every kind.
    fn pairs(&self) -> Result<Vec<(TargetId, u8)>, StoreError> {
        let mut s = self
            .reader
            .db
            .prepare_cached("SELECT id FROM targets ORDER BY id")?;
        let all = s
            .query_map([], |r| r.get(0).map(TargetId))?
            .collect::<Result<Vec<_>, _>>()?;
        let kinds = [GAUGES, Kind::Heap.number(), Kind::Goroutine.number()];
        Ok(all
            .into_iter()
            .flat_map(|t| kinds.map(|k| (t, k)))
            .collect())
    }

    fn expire(&mut self, now: Time, pairs: &[(TargetId, u8)]) -> Result<Progress, StoreError> {
        let db = &self.reader.db;
        let old = now.0.saturating_sub(ms(self.options.retention));
        let old_raw = now.0.saturating_sub(ms(self.options.raw));
        let mut done = Progress::default();
        let mut gone = Vec::new();
        let mut count = |n: usize| {
            done.deleted += n;
            done.more |= n >= DELETES as usize;
        };
        for &(target, kind) in pairs {
            // What a younger run still continues goes when that one goes or is sealed.
            let n = db
                .prepare_cached(
                    "DELETE FROM chunks WHERE id IN (SELECT c.id FROM chunks c \
                     WHERE c.target = ?1 AND c.kind = ?2 AND c.last < ?3 AND NOT EXISTS \
                     (SELECT 1 FROM chunks d WHERE d.target = ?1 AND d.kind = ?2 AND d.last >= ?3 \
                      AND d.base = coalesce(c.base, c.id)) ORDER BY c.last LIMIT ?4)",
                )?
                .execute((target.0, kind, old, DELETES))?;
            if n > 0 {
                gone.push((target, kind));
            }
            count(n);
            count(raw::expire(db, target, kind, old_raw, DELETES)?);
            count(
                db.prepare_cached(
                    "DELETE FROM raw WHERE id IN (SELECT id FROM raw WHERE target = ?1 \
                     AND kind = ?2 AND pinned = 1 AND at < ?3 LIMIT ?4)",
                )?
                .execute((target.0, kind, old, DELETES))?,
            );
        }
        let targets: std::collections::BTreeSet<_> = pairs.iter().map(|p| p.0).collect();
        for target in targets {
            for table in ["events", "findings"] {
                count(
                    db.prepare_cached(&format!(
                        "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} \
                         WHERE target = ?1 AND at < ?2 LIMIT ?3)"
                    ))?
                    .execute((target.0, old, DELETES))?,
                );
            }
            count(
                db.prepare_cached("DELETE FROM pins WHERE target = ?1 AND at < ?2")?
                    .execute((target.0, old))?,
            );
            // The session that goes on is kept, however long ago it began.
            count(
                db.prepare_cached(
                    "DELETE FROM sessions WHERE target = ?1 AND began < \
                     (SELECT max(began) FROM sessions WHERE target = ?1 AND began < ?2)",
                )?
                .execute((target.0, old))?,
            );
        }
        for pair in gone {
            // The newest run may be among what went.
            self.tails.remove(&pair);
        }
        Ok(done)
    }

    /// Merges old sealed chunks of one target into one with fewer snapshots.
    fn thin(&mut self, now: Time, target: TargetId, kind: u8) -> Result<u64, StoreError> {
        let old = now.0.saturating_sub(ms(self.options.thin_after));
        let step = ms(self.options.thin_to);
        let db = &self.reader.db;
        let old_chunks: Vec<(i64, i64, i64, u32)> = db
            .prepare_cached(
                "SELECT id, first, last, count FROM chunks c WHERE target = ?1 AND kind = ?2 \
                 AND last < ?3 AND thinned = 0 AND base IS NULL AND NOT EXISTS \
                 (SELECT 1 FROM chunks d WHERE d.target = ?1 AND d.kind = ?2 AND d.last >= c.last \
                  AND d.base = c.id) ORDER BY last, id LIMIT ?4",
            )?
            .query_map((target.0, kind, old, MERGE), |r| {
                Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?))
            })?
            .collect::<Result<_, _>>()?;
        let (Some(first), Some(last)) = (old_chunks.first(), old_chunks.last()) else {
            return Ok(0);
        };
        // Each chunk costs one full snapshot: merge several, or wait for more of them.
        let waited = old.saturating_sub(first.1) >= ms(self.options.thin_after) / 4;
        if old_chunks.len() < MERGE as usize && !waited {
            return Ok(0);
        }
        let pins: Vec<i64> = db
            .prepare_cached("SELECT at FROM pins WHERE target = ?1 AND at BETWEEN ?2 AND ?3")?
            .query_map((target.0, first.1, last.2), |r| r.get(0))?
            .collect::<Result<_, _>>()?;
        let before: u64 = old_chunks.iter().map(|c| u64::from(c.3)).sum();
        let mut encoder = Encoder::new(None);
        let mut kept: Option<(i64, i64, u32)> = None;
        let mut next = i64::MIN;
        for chunk in &old_chunks {
            let mut frames = self
                .reader
                .frames(target, kind, Time(chunk.1)..=Time(chunk.2))?;
            frames.only_run(chunk.0);
            loop {
                let frame = match frames.next() {
                    Ok(Some(f)) => f,
                    Ok(None) => break,
                    // Damaged: nothing of it can be kept.
                    Err(StoreError::Corrupt(_)) => continue,
                    Err(e) => return Err(e),
                };
                if frame.at < next && !pins.contains(&frame.at) {
                    continue;
                }
                next = next.max(frame.at.saturating_add(step));
                kept = Some(kept.map_or((frame.at, frame.at, 1), |k| (k.0, frame.at, k.2 + 1)));
                encoder.push(frame.clone());
            }
        }
        let db = &self.reader.db;
        for chunk in &old_chunks {
            db.prepare_cached("DELETE FROM chunks WHERE id = ?1")?
                .execute([chunk.0])?;
        }
        if let Some((from, to, count)) = kept {
            let (data, _) = encoder.finish(&mut self.tight).map_err(pack)?;
            db.prepare_cached(
                "INSERT INTO chunks (target, kind, first, last, count, base, thinned, data) \
                 VALUES (?1, ?2, ?3, ?4, ?5, NULL, 1, ?6)",
            )?
            .execute((target.0, kind, from, to, count, data))?;
        }
        self.tails.remove(&(target, kind));
        Ok(before.saturating_sub(kept.map_or(0, |k| u64::from(k.2))))
    }

    fn seal_idle(&mut self, now: Time, target: TargetId, kind: u8) -> Result<(), StoreError> {
        let db = &self.reader.db;
        let open: Option<i64> = db
            .prepare_cached(
                "SELECT max(last) FROM chunks WHERE target = ?1 AND kind = ?2 AND base IS NOT NULL",
            )?
            .query_row((target.0, kind), |r| r.get(0))?;
        if open.is_some_and(|last| last < now.0.saturating_sub(IDLE_MS)) {
            self.load_tail(target, kind)?;
            self.seal(target, kind)?;
        }
        Ok(())
    }

    fn shrink(&self) -> Result<u32, StoreError> {
        let db = &self.reader.db;
        let free: u32 = db.pragma_query_value(None, "freelist_count", |r| r.get(0))?;
        let all: u32 = db.pragma_query_value(None, "page_count", |r| r.get(0))?;
        // Some free pages are the reserve of the next writes.
        if free < all / 8 || free < PAGES {
            return Ok(0);
        }
        let mut s = db.prepare(&format!("PRAGMA incremental_vacuum({PAGES})"))?;
        let mut rows = s.query([])?;
        while rows.next()?.is_some() {}
        drop(rows);
        let left: u32 = db.pragma_query_value(None, "freelist_count", |r| r.get(0))?;
        Ok(free.saturating_sub(left))
    }
}
