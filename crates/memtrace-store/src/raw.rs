//! The bytes of profiles as they came, for a while.
//!
//! Successive profiles of one process are nearly the same, which gzip hides. So
//! they are unpacked, and packed again against the first of a small group:
//! a quarter of the size. What was gzip is handed out as gzip, of the same content.
//! Bytes that do not unpack are kept as they are.

use std::borrow::Cow;
use std::io::{Read, Write};
use std::sync::Arc;

use flate2::Compression;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use memtrace_model::Time;
use rusqlite::{Connection, OptionalExtension};
use zstd::dict::EncoderDictionary;

use crate::{StoreError, TargetId};

/// Profiles of a group.
const GROUP: u32 = 15;
const LEVEL: i32 = 3;
/// What unpacks to more is kept as it came: the profiles of large services come to as much.
const MAX_UNPACKED: u64 = 8 << 20;
/// What is handed out unpacks to no more, and so nothing larger is packed. An older version
/// packed as much of what came compressed, too.
const MAX_READ: u64 = 64 << 20;

/// Larger than this, a profile is packed alone: the first of each group stays in memory.
const MAX_FIRST: usize = 512 << 10;

/// How the bytes lie in the file.
const AS_IS: u8 = 0;
const GZIP: u8 = 1;
const PLAIN: u8 = 2;

/// The group that goes on.
#[derive(Clone)]
pub(crate) struct Group {
    base: i64,
    count: u32,
    first: Arc<EncoderDictionary<'static>>,
}

fn damaged() -> StoreError {
    StoreError::damaged("the bytes of a profile")
}

fn limited(from: impl Read, most: u64) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let n = from.take(most + 1).read_to_end(&mut out).ok()?;
    (n as u64 <= most).then_some(out)
}

fn unpack(coding: u8, data: &[u8], base: Option<&[u8]>) -> Result<Vec<u8>, StoreError> {
    if coding != GZIP && coding != PLAIN {
        return Err(damaged());
    }
    zstd::stream::read::Decoder::with_dictionary(data, base.unwrap_or(&[]))
        .ok()
        .and_then(|packed| limited(packed, MAX_READ))
        .ok_or_else(damaged)
}

fn pack(bytes: &[u8], first: Option<&EncoderDictionary<'_>>) -> Result<Vec<u8>, StoreError> {
    let packer = match first {
        Some(first) => zstd::bulk::Compressor::with_prepared_dictionary(first),
        None => zstd::bulk::Compressor::new(LEVEL),
    };
    packer
        .and_then(|mut c| c.compress(bytes))
        .map_err(crate::store::pack)
}

/// Keeps `raw`; returns the group that goes on.
pub(crate) fn add(
    db: &Connection,
    target: TargetId,
    kind: u8,
    at: i64,
    raw: &[u8],
    group: Option<Group>,
) -> Result<Option<Group>, StoreError> {
    let (coding, unpacked) = if raw.starts_with(&[0x1f, 0x8b]) {
        match limited(MultiGzDecoder::new(raw), MAX_UNPACKED) {
            Some(bytes) => (GZIP, Some(Cow::Owned(bytes))),
            None => (AS_IS, None),
        }
    } else if raw.len() as u64 <= MAX_READ {
        (PLAIN, Some(Cow::Borrowed(raw)))
    } else {
        (AS_IS, None)
    };
    let mut group = group.filter(|g| g.count < GROUP && unpacked.is_some());
    if let Some(g) = &group {
        // With long intervals the first of the group may have outlived its time.
        let there = db
            .prepare_cached("SELECT 1 FROM raw WHERE id = ?1")?
            .exists([g.base])?;
        group = group.filter(|_| there);
    }
    let data = match &unpacked {
        Some(bytes) => Cow::Owned(pack(bytes, group.as_ref().map(|g| &*g.first))?),
        None => Cow::Borrowed(raw),
    };
    db.prepare_cached(
        "INSERT INTO raw (target, kind, at, pinned, coding, base, data) \
         VALUES (?1, ?2, ?3, 0, ?4, ?5, ?6)",
    )?
    .execute((
        target.0,
        kind,
        at,
        coding,
        group.as_ref().map(|g| g.base),
        data,
    ))?;
    Ok(match (group, unpacked) {
        (Some(g), _) => Some(Group {
            count: g.count + 1,
            ..g
        }),
        (None, Some(bytes)) if bytes.len() <= MAX_FIRST => Some(Group {
            base: db.last_insert_rowid(),
            count: 1,
            first: Arc::new(EncoderDictionary::copy(&bytes, LEVEL)),
        }),
        (None, _) => None,
    })
}

/// Deletes what is older than `before`, but for what younger ones are packed against.
pub(crate) fn expire(
    db: &Connection,
    target: TargetId,
    kind: u8,
    before: i64,
    limit: u32,
) -> Result<usize, StoreError> {
    Ok(db
        .prepare_cached(
            "DELETE FROM raw WHERE id IN (SELECT o.id FROM raw o \
             WHERE o.target = ?1 AND o.kind = ?2 AND o.pinned = 0 AND o.at < ?3 \
             AND (o.base IS NOT NULL OR NOT EXISTS (SELECT 1 FROM raw y WHERE y.target = ?1 \
                  AND y.kind = ?2 AND y.pinned = 0 AND y.at >= ?3 AND y.base = o.id)) LIMIT ?4)",
        )?
        .execute((target.0, kind, before, limit))?)
}

/// Keeps the bytes of this time for good, independent of the others of its group.
pub(crate) fn pin(db: &Connection, target: TargetId, at: Time) -> Result<(), StoreError> {
    for kind in [1u8, 2] {
        let found = db
            .prepare_cached(
                "SELECT id, coding, base IS NOT NULL FROM raw \
                 WHERE target = ?1 AND kind = ?2 AND pinned = 0 AND at = ?3",
            )?
            .query_map((target.0, kind, at.0), |r| {
                Ok((
                    r.get::<_, i64>(0)?,
                    r.get::<_, u8>(1)?,
                    r.get::<_, bool>(2)?,
                ))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        for (id, coding, hangs) in found {
            if hangs && coding != AS_IS {
                let bytes = unpacked_of(db, id)?.ok_or_else(damaged)?;
                db.execute(
                    "UPDATE raw SET base = NULL, data = ?2 WHERE id = ?1",
                    (id, pack(&bytes, None)?),
                )?;
            }
            db.execute("UPDATE raw SET pinned = 1 WHERE id = ?1", [id])?;
        }
    }
    Ok(())
}

/// The bytes of this time.
pub(crate) fn read(
    db: &Connection,
    target: TargetId,
    kind: u8,
    at: Time,
) -> Result<Option<Vec<u8>>, StoreError> {
    let found: Option<(i64, u8)> = db
        .prepare_cached(
            "SELECT id, coding FROM raw \
             WHERE target = ?1 AND kind = ?2 AND pinned IN (0, 1) AND at = ?3",
        )?
        .query_row((target.0, kind, at.0), |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?;
    let Some((id, coding)) = found else {
        return Ok(None);
    };
    if coding == AS_IS {
        let mut s = db.prepare_cached("SELECT data FROM raw WHERE id = ?1")?;
        return Ok(s.query_row([id], |r| r.get(0)).optional()?);
    }
    let Some(bytes) = unpacked_of(db, id)? else {
        return Ok(None);
    };
    if coding != GZIP {
        return Ok(Some(bytes));
    }
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    let done = gzip.write_all(&bytes).and_then(|()| gzip.finish());
    done.map(Some).map_err(crate::store::pack)
}

/// The unpacked bytes of row `id`; `None` when it is gone.
fn unpacked_of(db: &Connection, id: i64) -> Result<Option<Vec<u8>>, StoreError> {
    // One statement, so that both rows are of the same moment.
    type Row = (
        u8,
        Vec<u8>,
        Option<i64>,
        Option<u8>,
        Option<Vec<u8>>,
        Option<i64>,
    );
    let found: Option<Row> = db
        .prepare_cached(
            "SELECT r.coding, r.data, r.base, b.coding, b.data, b.base \
             FROM raw r LEFT JOIN raw b ON b.id = r.base WHERE r.id = ?1",
        )?
        .query_row([id], |r| {
            Ok((
                r.get(0)?,
                r.get(1)?,
                r.get(2)?,
                r.get(3)?,
                r.get(4)?,
                r.get(5)?,
            ))
        })
        .optional()?;
    match found {
        None => Ok(None),
        Some((coding, data, None, ..)) => unpack(coding, &data, None).map(Some),
        // A base stands alone.
        Some((coding, data, Some(_), Some(base_coding), Some(base), None)) => {
            let base = unpack(base_coding, &base, None)?;
            unpack(coding, &data, Some(&base)).map(Some)
        }
        Some(_) => Err(damaged()),
    }
}
