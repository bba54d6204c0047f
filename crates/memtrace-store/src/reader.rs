use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use memtrace_model::{
    Event, Finding, Frame as StackFrame, Gauge, Profile, Series, StackId, StackKey, Time,
};
use rusqlite::{Connection, OptionalExtension};

use crate::codec::{Decoder, Frame};
use crate::dictionary::Dictionary;
use crate::{Kind, Session, StoreError, Target, TargetId, schema};

/// Kind of the chunks that hold gauges.
pub(crate) const GAUGES: u8 = 0;

/// Reads a store. Any number of readers work beside the one writer, each with its
/// own `Reader`; none ever waits for it.
#[derive(Debug)]
pub struct Reader {
    pub(crate) db: Connection,
    dictionary: Dictionary,
}

/// One chunk as it lies in the file.
pub(crate) struct Chunk {
    pub(crate) id: i64,
    pub(crate) base: Option<i64>,
    pub(crate) data: Vec<u8>,
}

impl Reader {
    /// Opens the store in `dir` for reading. Works beside a writer, on a store that was
    /// left by a kill -9, and in a directory that may not be written.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Ok(Self::new(schema::open_reader(dir)?))
    }

    pub(crate) fn new(db: Connection) -> Self {
        Self {
            db,
            dictionary: Dictionary::default(),
        }
    }

    /// All targets, in the order in which they came.
    pub fn targets(&self) -> Result<Vec<Target>, StoreError> {
        let mut s = self.db.prepare_cached(
            "SELECT t.id, t.name, (SELECT min(first) FROM chunks WHERE target = t.id), \
                    (SELECT max(last) FROM chunks WHERE target = t.id) \
             FROM targets t ORDER BY t.id",
        )?;
        let all = s.query_map([], |r| {
            Ok(Target {
                id: TargetId(r.get(0)?),
                name: r.get(1)?,
                first: r.get::<_, Option<i64>>(2)?.map(Time),
                last: r.get::<_, Option<i64>>(3)?.map(Time),
            })
        })?;
        Ok(all.collect::<Result<_, _>>()?)
    }

    /// The target with this name, where the store knows it.
    pub fn find_target(&self, name: &str) -> Result<Option<TargetId>, StoreError> {
        Ok(self
            .db
            .prepare_cached("SELECT id FROM targets WHERE name = ?1")?
            .query_row([name], |r| r.get(0).map(TargetId))
            .optional()?)
    }

    /// The lives of the target's process, oldest first: one begins with each
    /// `Attach` and `Restart` event.
    pub fn sessions(&self, target: TargetId) -> Result<Vec<Session>, StoreError> {
        let mut s = self.db.prepare_cached(
            "SELECT began, started, reason FROM sessions WHERE target = ?1 ORDER BY began, id",
        )?;
        let all = s.query_map([target.0], |r| {
            Ok(Session {
                began: Time(r.get(0)?),
                started: r.get::<_, Option<i64>>(1)?.map(Time),
                reason: r.get(2)?,
            })
        })?;
        Ok(all.collect::<Result<_, _>>()?)
    }

    /// Events of the target in `range`, oldest first.
    pub fn events(
        &self,
        target: TargetId,
        range: RangeInclusive<Time>,
    ) -> Result<Vec<Event>, StoreError> {
        self.json("events", target, range)
    }

    /// Findings of the target in `range`, oldest first, as often as they were stored.
    pub fn findings(
        &self,
        target: TargetId,
        range: RangeInclusive<Time>,
    ) -> Result<Vec<Finding>, StoreError> {
        self.json("findings", target, range)
    }

    fn json<T: for<'a> serde::Deserialize<'a>>(
        &self,
        table: &str,
        target: TargetId,
        range: RangeInclusive<Time>,
    ) -> Result<Vec<T>, StoreError> {
        let mut s = self.db.prepare_cached(&format!(
            "SELECT data FROM {table} WHERE target = ?1 AND at BETWEEN ?2 AND ?3 ORDER BY at, id"
        ))?;
        let mut rows = s.query((target.0, range.start().0, range.end().0))?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push(serde_json::from_str(
                row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?,
            )?);
        }
        Ok(all)
    }

    /// One gauge of the target over `range`; what is damaged is left out.
    pub fn gauges(
        &self,
        target: TargetId,
        gauge: Gauge,
        range: RangeInclusive<Time>,
    ) -> Result<Series, StoreError> {
        let mut series = Series::default();
        let wanted: Option<u32> = self
            .db
            .prepare_cached("SELECT id FROM strings WHERE text = ?1")?
            .query_row([gauge.name()], |r| r.get(0))
            .optional()?;
        let Some(wanted) = wanted else {
            return Ok(series);
        };
        let mut frames = self.frames(target, GAUGES, range)?;
        while let Some(frame) = frames.next_whole()? {
            if let Ok(i) = frame.ids.binary_search(&wanted) {
                series.push(Time(frame.at), gauge_value(frame.row(i)));
            }
        }
        Ok(series)
    }

    /// Snapshots of the target in `range`, oldest first. A damaged part of the store
    /// yields one error, and what can be read after it.
    pub fn snapshots(
        &self,
        target: TargetId,
        kind: Kind,
        range: RangeInclusive<Time>,
    ) -> Result<Snapshots<'_>, StoreError> {
        Ok(Snapshots {
            frames: self.frames(target, kind.number(), range)?,
            types: None,
        })
    }

    /// Values of one stack over successive snapshots (its rows of all labels summed;
    /// 0 where the snapshot does not have it). `sample_type` is `inuse_space`, say;
    /// snapshots without such values are left out, and damaged ones.
    pub fn series(
        &self,
        target: TargetId,
        kind: Kind,
        stack: StackKey,
        sample_type: &str,
        range: RangeInclusive<Time>,
    ) -> Result<Series, StoreError> {
        let rows = self.dictionary.rows_of(&self.db, stack)?;
        let mut series = Series::default();
        if rows.is_empty() {
            return Ok(series);
        }
        let mut columns: HashMap<u32, Option<usize>> = HashMap::new();
        let mut frames = self.frames(target, kind.number(), range)?;
        while let Some(frame) = frames.next_whole()? {
            let header = frame.layout.header;
            let column = match columns.get(&header) {
                Some(&c) => c,
                None => {
                    let types = self.dictionary.sample_types(&self.db, header)?;
                    let c = types.iter().position(|t| &*t.kind == sample_type);
                    columns.insert(header, c);
                    c
                }
            };
            let Some(column) = column else { continue };
            let sum = rows
                .iter()
                .filter_map(|id| frame.ids.binary_search(id).ok())
                .filter_map(|i| frame.row(i).get(column))
                .fold(0i64, |s, &v| s.saturating_add(v));
            series.push(Time(frame.at), sum as f64);
        }
        Ok(series)
    }

    /// The newest profile taken at or before `at`, with the time of its snapshot. Rows
    /// of equal stack and labels are one, rows without any value are not there, and
    /// addresses remain only where there are no symbols.
    pub fn profile_at(
        &self,
        target: TargetId,
        kind: Kind,
        at: Time,
    ) -> Result<Option<(Time, Profile)>, StoreError> {
        let chunk = |order: &str| {
            self.db
                .prepare_cached(&format!(
                    "SELECT first, last FROM chunks WHERE target = ?1 AND kind = ?2 AND last {order} LIMIT 1"
                ))?
                .query_row((target.0, kind.number(), at.0), |r| {
                    Ok((Time(r.get(0)?), Time(r.get(1)?)))
                })
                .optional()
        };
        // The first chunk that ends at `at` or later may begin before it.
        let around = chunk(">= ?3 ORDER BY last, id")?.filter(|c| c.0 <= at);
        let from = match around {
            Some((first, _)) => first,
            None => match chunk("< ?3 ORDER BY last DESC, id DESC")? {
                Some((_, last)) => last,
                None => return Ok(None),
            },
        };
        let mut newest = None;
        let mut frames = self.frames(target, kind.number(), from..=at)?;
        while let Some(frame) = frames.next()? {
            newest = Some(Time(frame.at));
        }
        let Some(newest) = newest else {
            return Ok(None);
        };
        let mut found = None;
        let mut frames = self.frames(target, kind.number(), newest..=newest)?;
        while let Some(frame) = frames.next()? {
            found = Some(self.dictionary.profile(&self.db, frame)?);
        }
        Ok(found.map(|p| (newest, p)))
    }

    /// The bytes of the profile taken at `at`, as they came (what was gzip is gzip of the
    /// same content), while they are kept: 15 minutes, or as long as snapshots where
    /// they were pinned.
    pub fn raw(
        &self,
        target: TargetId,
        kind: Kind,
        at: Time,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        crate::raw::read(&self.db, target, kind.number(), at)
    }

    /// Times of the profiles of which the bytes are kept, oldest first.
    pub fn raw_times(&self, target: TargetId, kind: Kind) -> Result<Vec<Time>, StoreError> {
        let mut s = self.db.prepare_cached(
            "SELECT at FROM raw WHERE target = ?1 AND kind = ?2 AND pinned IN (0, 1) ORDER BY at",
        )?;
        let all = s.query_map((target.0, kind.number()), |r| r.get(0).map(Time))?;
        Ok(all.collect::<Result<_, _>>()?)
    }

    /// Frames of a stack, the leaf first; `None` when the store does not know it.
    pub fn stack(&self, key: StackKey) -> Result<Option<Vec<StackFrame>>, StoreError> {
        let found = self.dictionary.stack(&self.db, key)?;
        Ok(found.map(|p| p.frames(StackId(0)).map(StackFrame::from).collect()))
    }

    /// Whether the file is whole, by SQLite's own check. Reads all of it.
    pub fn check(&self) -> Result<(), StoreError> {
        let answer: String = self
            .db
            .query_row("PRAGMA integrity_check(1)", [], |r| r.get(0))?;
        if answer == "ok" {
            Ok(())
        } else {
            Err(StoreError::Corrupt(answer))
        }
    }

    pub(crate) fn frames(
        &self,
        target: TargetId,
        kind: u8,
        range: RangeInclusive<Time>,
    ) -> Result<Frames<'_>, StoreError> {
        // One statement sees one state of the file, whatever the writer does meanwhile.
        let mut s = self.db.prepare_cached(
            "WITH start AS (SELECT base, last FROM chunks \
                            WHERE target = ?1 AND kind = ?2 AND last >= ?3 ORDER BY last, id LIMIT 1) \
             SELECT id, base, data FROM chunks \
             WHERE target = ?1 AND kind = ?2 AND first <= ?4 \
               AND last >= coalesce((SELECT last FROM chunks WHERE id = (SELECT base FROM start)), ?3) \
             ORDER BY last, id",
        )?;
        let chunks = s
            .query_map((target.0, kind, range.start().0, range.end().0), chunk)?
            .collect::<Result<VecDeque<_>, _>>()?;
        Ok(Frames {
            reader: self,
            chunks,
            range,
            decoder: None,
            base: Frame::default(),
            chain: None,
        })
    }
}

pub(crate) fn chunk(r: &rusqlite::Row<'_>) -> rusqlite::Result<Chunk> {
    Ok(Chunk {
        id: r.get(0)?,
        base: r.get(1)?,
        data: r.get(2)?,
    })
}

/// Gauges are pairs: (the number, 1) where it is whole, (the bits of the float, 2).
pub(crate) fn gauge_pair(value: f64) -> [i64; 2] {
    const EXACT: f64 = (1u64 << 53) as f64;
    if value.fract() == 0.0 && value.abs() < EXACT && !(value == 0.0 && value.is_sign_negative()) {
        [value as i64, 1]
    } else {
        [value.to_bits() as i64, 2]
    }
}

fn gauge_value(pair: &[i64]) -> f64 {
    match pair {
        [v, 1] => *v as f64,
        [v, 2] => f64::from_bits(*v as u64),
        _ => f64::NAN,
    }
}

/// Snapshots of a range, decoded one by one.
#[derive(Debug)]
pub(crate) struct Frames<'r> {
    reader: &'r Reader,
    chunks: VecDeque<Chunk>,
    range: RangeInclusive<Time>,
    decoder: Option<Decoder>,
    base: Frame,
    /// First chunk of the chain that `base` belongs to.
    chain: Option<i64>,
}

impl std::fmt::Debug for Chunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "chunk {}", self.id)
    }
}

impl Frames<'_> {
    /// Leaves out chunks that are not part of the run that begins with `base`.
    pub(crate) fn only_run(&mut self, base: i64) {
        self.chunks.retain(|c| c.id == base || c.base == Some(base));
    }

    /// As [`Self::next`], damaged parts passed over.
    fn next_whole(&mut self) -> Result<Option<&Frame>, StoreError> {
        loop {
            match self.advance() {
                Ok(true) => break,
                Ok(false) => return Ok(None),
                Err(StoreError::Corrupt(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(self.decoder.as_ref().map(Decoder::last))
    }

    /// The next snapshot. After an error, the next call goes on behind the damage.
    pub(crate) fn next(&mut self) -> Result<Option<&Frame>, StoreError> {
        if !self.advance()? {
            return Ok(None);
        }
        Ok(self.decoder.as_ref().map(Decoder::last))
    }

    fn advance(&mut self) -> Result<bool, StoreError> {
        loop {
            if self.decoder.is_none() {
                let Some(chunk) = self.chunks.pop_front() else {
                    return Ok(false);
                };
                let base = match chunk.base {
                    None => {
                        self.chain = Some(chunk.id);
                        Frame::default()
                    }
                    Some(b) if self.chain == Some(b) => std::mem::take(&mut self.base),
                    Some(_) => {
                        // The damage was told when it was met; what hangs on it is lost too.
                        if self.chain.take().is_some() {
                            return Err(StoreError::damaged("a run of snapshots lacks its start"));
                        }
                        continue;
                    }
                };
                self.decoder = Decoder::new(&chunk.data, base);
                if self.decoder.is_none() {
                    self.chain = None;
                    return Err(StoreError::damaged("a run of snapshots cannot be unpacked"));
                }
            }
            let Some(decoder) = &mut self.decoder else {
                continue;
            };
            let at = match decoder.next() {
                Ok(Some(f)) => Some(Time(f.at)),
                Ok(None) => None,
                Err(_) => {
                    self.decoder = None;
                    self.chain = None;
                    return Err(StoreError::damaged("a snapshot cannot be decoded"));
                }
            };
            match at {
                None => {
                    self.base = self
                        .decoder
                        .take()
                        .map(Decoder::into_last)
                        .unwrap_or_default();
                }
                Some(at) if at > *self.range.end() => {
                    self.chunks.clear();
                    self.decoder = None;
                    return Ok(false);
                }
                Some(at) if self.range.contains(&at) => return Ok(true),
                Some(_) => {}
            }
        }
    }
}

/// What a value counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleType {
    /// `inuse_space`, say.
    pub kind: Arc<str>,
    /// Its unit, `bytes`, say.
    pub unit: Arc<str>,
}

/// A snapshot read back: rows of (stack, values), ordered by row number.
#[derive(Clone, Debug)]
pub struct StoredSnapshot {
    /// When it was taken.
    pub at: Time,
    /// Stack of each row. A stack with several sets of labels has several rows.
    pub stacks: Vec<StackKey>,
    /// Number of each row: the same stack and labels have the same number in every
    /// snapshot of this store.
    pub rows: Vec<u32>,
    /// Values, row by row.
    pub values: Vec<i64>,
    /// What each value of a row counts.
    pub sample_types: Arc<[SampleType]>,
}

impl StoredSnapshot {
    /// Values of row `i`, one for each sample type.
    #[must_use]
    pub fn row(&self, i: usize) -> &[i64] {
        let n = self.sample_types.len();
        self.values.get(i * n..(i + 1) * n).unwrap_or(&[])
    }

    /// Index of the sample type called `kind`.
    #[must_use]
    pub fn sample_type(&self, kind: &str) -> Option<usize> {
        self.sample_types.iter().position(|t| &*t.kind == kind)
    }
}

/// Iterator of [`Reader::snapshots`].
#[derive(Debug)]
pub struct Snapshots<'r> {
    frames: Frames<'r>,
    types: Option<(u32, Arc<[SampleType]>)>,
}

impl Iterator for Snapshots<'_> {
    type Item = Result<StoredSnapshot, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let reader = self.frames.reader;
        let frame = match self.frames.next() {
            Ok(frame) => frame?,
            Err(e) => return Some(Err(e)),
        };
        let header = frame.layout.header;
        let mut read = || {
            let types = match &self.types {
                Some((h, types)) if *h == header => types.clone(),
                _ => {
                    let types: Arc<[_]> =
                        reader.dictionary.sample_types(&reader.db, header)?.into();
                    self.types = Some((header, types.clone()));
                    types
                }
            };
            if types.len() != frame.layout.width {
                return Err(StoreError::damaged(
                    "a snapshot of another width than its header",
                ));
            }
            let stacks = frame
                .ids
                .iter()
                .map(|&id| Ok(reader.dictionary.row(&reader.db, id)?.key))
                .collect::<Result<_, StoreError>>()?;
            Ok(StoredSnapshot {
                at: Time(frame.at),
                stacks,
                rows: frame.ids.clone(),
                values: frame.values.clone(),
                sample_types: types,
            })
        };
        Some(read())
    }
}
