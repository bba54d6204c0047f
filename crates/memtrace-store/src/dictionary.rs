//! What snapshots share: text, frames, stacks, label sets, headers; each stored once.
//!
//! A row of a snapshot is (stack, labels) and has one number in the whole store.
//! Stacks are found by their [`StackKey`], all else by its bytes, in which text
//! stands as its number. [`Writer`] turns a profile into numbers, [`Dictionary`]
//! turns numbers into what they stand for.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use memtrace_model::{
    Function, FunctionId, Label, LabelSetId, LabelValue, Line, Location, LocationId, Mapping,
    MappingId, Profile, StackId, StackKey, StringId, ValueType,
};
use rusqlite::{Connection, OptionalExtension};

use crate::StoreError;
use crate::codec::{Frame, Layout};
use crate::reader::SampleType;
use crate::sampled::Counts;
use crate::varint::{Cursor, put, put_signed};

/// Most values of a row that are kept.
const MAX_WIDTH: usize = 64;
/// Most strings the writer remembers; those of every profile are few.
const TEXTS: usize = 10_000;
/// Most bytes of a string that is remembered: longer ones are looked up.
const LONG_TEXT: usize = 256;
/// The same of a label set or a header, of which sound ones have some tens.
const LONG_ENTRY: usize = 256;
/// Most stacks and rows that it remembers: those of a hundred services, tables of 65,536 places.
const NUMBERS: usize = 7 << 13;
/// Most label sets, headers and the like, which may be long.
const SETS: usize = 1 << 14;

/// Remembers one more; forgets all others where that is too much: the file knows them, too.
fn remember<K: Eq + Hash, V>(known: &mut HashMap<K, V>, key: K, value: V, most: usize) {
    if known.len() >= most {
        known.clear();
    }
    known.insert(key, value);
}
const GO_HEAP: [&str; 4] = [
    "alloc_objects",
    "alloc_space",
    "inuse_objects",
    "inuse_space",
];

fn damaged() -> StoreError {
    StoreError::damaged("dictionary entry")
}

/// Numbers of what was stored so far; what is not here may still be in the file.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    stacks: HashMap<StackKey, u32>,
    labels: HashMap<Vec<u8>, u32>,
    rows: HashMap<(u32, u32), u32>,
    headers: HashMap<Vec<u8>, u32>,
    texts: RefCell<HashMap<String, u32>>,
    /// Those of the profile at hand, whose stacks share them.
    locations: RefCell<Vec<Option<u32>>>,
    mappings: RefCell<Vec<Option<u32>>>,
    /// Label sets in the file.
    label_count: Option<u32>,
}

impl Writer {
    /// The rows of `profile`, equal ones summed, those without any value left out;
    /// at most `max_rows`, the lightest folded into one row `[other]`.
    pub(crate) fn frame(
        &mut self,
        db: &Connection,
        profile: &Profile,
        max_rows: usize,
        max_labels: u32,
    ) -> Result<Frame, StoreError> {
        let width = profile.sample_types.len().min(MAX_WIDTH);
        *self.locations.get_mut() = vec![None; profile.locations.len()];
        *self.mappings.get_mut() = vec![None; profile.mappings.len()];
        let header = self.header(db, profile, width)?;
        let go_heap = width == 4
            && profile.period > 0
            && profile
                .sample_types
                .iter()
                .zip(GO_HEAP)
                .all(|(t, name)| profile.text(t.kind) == name);
        let layout = Layout {
            header,
            width,
            rate: if go_heap { profile.period as u64 } else { 0 },
        };
        let (kept, other) = heaviest(profile, max_rows);

        let keys = profile.stack_keys();
        let mut stacks = vec![None; keys.len()];
        let mut labels = vec![None; profile.label_sets.len()];
        let mut rows: Vec<(u32, u64, u32)> = Vec::with_capacity(kept.len() + 1);
        let mut other_row = None;
        for &i in &kept {
            let stack = profile.sample_stacks[i as usize];
            let key = keys.get(stack.index()).copied().unwrap_or_default();
            let stack_number = match stacks.get(stack.index()).copied().flatten() {
                Some(n) => n,
                None => {
                    let n = self.stack(db, profile, stack, key)?;
                    if let Some(slot) = stacks.get_mut(stack.index()) {
                        *slot = Some(n);
                    }
                    n
                }
            };
            let set = profile
                .sample_labels
                .get(i as usize)
                .copied()
                .unwrap_or_default();
            let (label_number, size) = match labels.get(set.index()).copied().flatten() {
                Some(known) => known,
                None => {
                    let known = self.label_set(db, profile, set, max_labels)?;
                    if let Some(slot) = labels.get_mut(set.index()) {
                        *slot = Some(known);
                    }
                    known
                }
            };
            rows.push((self.row(db, stack_number, label_number)?, size, i));
        }
        if let Some(sum) = other {
            let mut p = Profile::default();
            let stack = p.other_stack();
            let key = p.stack_keys()[0];
            let stack = self.stack(db, &p, stack, key)?;
            let (none, _) = self.label_set(db, &p, LabelSetId(0), max_labels)?;
            rows.push((self.row(db, stack, none)?, 0, u32::MAX));
            other_row = Some(sum);
        }
        rows.sort_unstable();

        let mut frame = Frame {
            layout,
            duration: profile.duration_nanos,
            ..Frame::default()
        };
        for (id, size, i) in rows {
            let values = match (&other_row, i) {
                (Some(sum), u32::MAX) => &sum[..width],
                _ => &profile.row(i as usize)[..width],
            };
            if frame.ids.last() == Some(&id) {
                let from = frame.values.len() - width;
                for (sum, v) in frame.values[from..].iter_mut().zip(values) {
                    *sum = sum.saturating_add(*v);
                }
            } else {
                frame.ids.push(id);
                frame.counts.push(Counts {
                    size,
                    ..Counts::default()
                });
                frame.values.extend_from_slice(values);
            }
        }
        drop_empty(&mut frame);
        Ok(frame)
    }

    /// The number of `text`.
    pub(crate) fn text(&self, db: &Connection, text: &str) -> Result<u32, StoreError> {
        if let Some(&id) = self.texts.borrow().get(text) {
            return Ok(id);
        }
        let found = db
            .prepare_cached("SELECT id FROM strings WHERE text = ?1")?
            .query_row([text], |r| r.get(0))
            .optional()?;
        let id = match found {
            Some(id) => id,
            None => {
                db.prepare_cached("INSERT INTO strings (text) VALUES (?1)")?
                    .execute([text])?;
                number(db.last_insert_rowid())?
            }
        };
        if text.len() <= LONG_TEXT {
            remember(&mut self.texts.borrow_mut(), text.to_owned(), id, TEXTS);
        }
        Ok(id)
    }

    fn header(&mut self, db: &Connection, p: &Profile, width: usize) -> Result<u32, StoreError> {
        let mut b = Vec::new();
        let text = |b: &mut Vec<u8>, id: StringId| -> Result<(), StoreError> {
            put(b, u64::from(self.text(db, p.text(id))?));
            Ok(())
        };
        put(&mut b, width as u64);
        for t in &p.sample_types[..width] {
            text(&mut b, t.kind)?;
            text(&mut b, t.unit)?;
        }
        put(&mut b, p.default_sample_type.map_or(0, |i| i as u64 + 1));
        text(&mut b, p.period_type.kind)?;
        text(&mut b, p.period_type.unit)?;
        put_signed(&mut b, p.period);
        text(&mut b, p.drop_frames)?;
        text(&mut b, p.keep_frames)?;
        text(&mut b, p.doc_url)?;
        put(&mut b, p.comments.len() as u64);
        for &c in &p.comments {
            text(&mut b, c)?;
        }
        put(&mut b, p.mappings.len() as u64);
        for m in 0..p.mappings.len() {
            put(&mut b, u64::from(self.mapping(db, p, m)?));
        }
        find_or_add(db, &mut self.headers, "headers", b)
    }

    fn mapping(&self, db: &Connection, p: &Profile, number: usize) -> Result<u32, StoreError> {
        if let Some(Some(known)) = self.mappings.borrow().get(number) {
            return Ok(*known);
        }
        let m = p.mappings.get(number).copied().unwrap_or_default();
        let mut b = Vec::new();
        put(&mut b, m.start);
        put(&mut b, m.limit);
        put(&mut b, m.offset);
        put(&mut b, u64::from(self.text(db, p.text(m.file))?));
        put(&mut b, u64::from(self.text(db, p.text(m.build_id))?));
        let flags = [
            m.has_functions,
            m.has_filenames,
            m.has_line_numbers,
            m.has_inline_frames,
        ];
        for (i, &flag) in flags.iter().enumerate() {
            if flag {
                put(&mut b, i as u64);
            }
        }
        let found = find_or_add(db, &mut HashMap::new(), "mappings", b)?;
        if let Some(slot) = self.mappings.borrow_mut().get_mut(number) {
            *slot = Some(found);
        }
        Ok(found)
    }

    fn stack(
        &mut self,
        db: &Connection,
        p: &Profile,
        stack: StackId,
        key: StackKey,
    ) -> Result<u32, StoreError> {
        if let Some(&n) = self.stacks.get(&key) {
            return Ok(n);
        }
        let bytes = key.0.to_be_bytes();
        let found = db
            .prepare_cached("SELECT id FROM stacks WHERE key = ?1")?
            .query_row([&bytes], |r| r.get(0))
            .optional()?;
        let id = match found {
            Some(id) => id,
            None => {
                let mut list = Vec::new();
                for &l in p.stack(stack) {
                    put(&mut list, u64::from(self.location(db, p, l)?));
                }
                db.prepare_cached("INSERT INTO stacks (key, locations) VALUES (?1, ?2)")?
                    .execute((&bytes, list))?;
                number(db.last_insert_rowid())?
            }
        };
        remember(&mut self.stacks, key, id, NUMBERS);
        Ok(id)
    }

    /// Addresses of symbolised locations are not kept: they differ from start to
    /// start, and the same stack would be another one.
    fn location(&self, db: &Connection, p: &Profile, id: LocationId) -> Result<u32, StoreError> {
        if let Some(Some(known)) = self.locations.borrow().get(id.index()) {
            return Ok(*known);
        }
        let l = p.locations.get(id.index()).copied().unwrap_or_default();
        let mapping = l.mapping.map(|m| m.index());
        let mapping = mapping.filter(|m| *m < p.mappings.len());
        let lines = p.lines_of(&l);
        let mut b = Vec::new();
        put(&mut b, lines.len() as u64 * 2 + u64::from(l.is_folded));
        if lines.is_empty() {
            put(&mut b, l.address);
            if let Some(m) = mapping {
                put(&mut b, u64::from(self.mapping(db, p, m)?));
            }
        } else {
            let file = mapping.and_then(|m| p.mappings.get(m));
            let file = file.map_or("", |m| p.text(m.file));
            put(&mut b, u64::from(self.text(db, file)?));
        }
        for line in lines {
            let f = p
                .functions
                .get(line.function.index())
                .copied()
                .unwrap_or_default();
            put(&mut b, u64::from(self.text(db, p.text(f.name))?));
            put(&mut b, u64::from(self.text(db, p.text(f.system_name))?));
            put(&mut b, u64::from(self.text(db, p.text(f.file))?));
            put_signed(&mut b, f.start_line);
            put_signed(&mut b, line.line);
            put_signed(&mut b, line.column);
        }
        let found = find_or_add(db, &mut HashMap::new(), "locations", b)?;
        if let Some(slot) = self.locations.borrow_mut().get_mut(id.index()) {
            *slot = Some(found);
        }
        Ok(found)
    }

    /// The number of a label set, and the object size it tells (label `bytes`), else 0.
    fn label_set(
        &mut self,
        db: &Connection,
        p: &Profile,
        set: LabelSetId,
        max: u32,
    ) -> Result<(u32, u64), StoreError> {
        let mut b = Vec::new();
        let mut size = 0;
        for label in p.label_sets.get(set.0) {
            let key = p.text(label.key);
            let key_number = u64::from(self.text(db, key)?);
            match label.value {
                LabelValue::Text(t) => {
                    put(&mut b, key_number * 2);
                    put(&mut b, u64::from(self.text(db, p.text(t))?));
                }
                LabelValue::Number(n, unit) => {
                    put(&mut b, key_number * 2 + 1);
                    put_signed(&mut b, n);
                    put(&mut b, u64::from(self.text(db, p.text(unit))?));
                    if key == "bytes" {
                        size = u64::try_from(n).unwrap_or(0);
                    }
                }
            }
        }
        if let Some(&id) = self.labels.get(&b) {
            return Ok((id, size));
        }
        let count = match self.label_count {
            Some(n) => n,
            None => db.query_row("SELECT coalesce(max(id), 0) FROM labels", [], |r| r.get(0))?,
        };
        self.label_count = Some(count);
        if count >= max && !b.is_empty() {
            // Labels without end (a request number, say): their rows are kept without them.
            let is_known = db
                .prepare_cached("SELECT 1 FROM labels WHERE data = ?1")?
                .exists([&b])?;
            if !is_known {
                b.clear();
            }
        }
        let id = find_or_add(db, &mut self.labels, "labels", b)?;
        self.label_count = Some(count.max(id));
        Ok((id, size))
    }

    fn row(&mut self, db: &Connection, stack: u32, labels: u32) -> Result<u32, StoreError> {
        if let Some(&n) = self.rows.get(&(stack, labels)) {
            return Ok(n);
        }
        let found = db
            .prepare_cached("SELECT id FROM rows WHERE stack = ?1 AND labels = ?2")?
            .query_row((stack, labels), |r| r.get(0))
            .optional()?;
        let id = match found {
            Some(id) => id,
            None => {
                db.prepare_cached("INSERT INTO rows (stack, labels) VALUES (?1, ?2)")?
                    .execute((stack, labels))?;
                number(db.last_insert_rowid())?
            }
        };
        remember(&mut self.rows, (stack, labels), id, NUMBERS);
        Ok(id)
    }
}

fn number(rowid: i64) -> Result<u32, StoreError> {
    u32::try_from(rowid).map_err(|_| StoreError::Full)
}

fn find_or_add(
    db: &Connection,
    known: &mut HashMap<Vec<u8>, u32>,
    table: &str,
    data: Vec<u8>,
) -> Result<u32, StoreError> {
    if let Some(&n) = known.get(&data) {
        return Ok(n);
    }
    let found = db
        .prepare_cached(&format!("SELECT id FROM {table} WHERE data = ?1"))?
        .query_row([&data], |r| r.get(0))
        .optional()?;
    let id = match found {
        Some(id) => id,
        None => {
            db.prepare_cached(&format!("INSERT INTO {table} (data) VALUES (?1)"))?
                .execute([&data])?;
            number(db.last_insert_rowid())?
        }
    };
    if data.len() <= LONG_ENTRY {
        remember(known, data, id, SETS);
    }
    Ok(id)
}

/// The samples to keep, and the sum of the others where there are more than `max`.
fn heaviest(p: &Profile, max: usize) -> (Vec<u32>, Option<Vec<i64>>) {
    let mut all: Vec<u32> = (0..u32::try_from(p.len()).unwrap_or(u32::MAX)).collect();
    // A row without any value says nothing.
    all.retain(|&i| p.row(i as usize).iter().any(|&v| v != 0));
    if all.len() <= max {
        return (all, None);
    }
    let shown = p.shown_sample_type().unwrap_or(0);
    let weight = |i: u32| {
        let row = p.row(i as usize);
        let total = row
            .iter()
            .fold(0u64, |s, v| s.saturating_add(v.unsigned_abs()));
        (row.get(shown).map_or(0, |v| v.unsigned_abs()), total)
    };
    all.select_nth_unstable_by_key(max.saturating_sub(1), |&i| std::cmp::Reverse(weight(i)));
    let rest = all.split_off(max.saturating_sub(1));
    let mut sum = vec![0i64; p.sample_types.len()];
    for i in rest {
        for (s, v) in sum.iter_mut().zip(p.row(i as usize)) {
            *s = s.saturating_add(*v);
        }
    }
    (all, Some(sum))
}

fn drop_empty(f: &mut Frame) {
    let w = f.layout.width;
    let keep: Vec<bool> = (0..f.ids.len())
        .map(|i| f.row(i).iter().any(|&v| v != 0))
        .collect();
    if keep.iter().all(|&k| k) {
        return;
    }
    let mut n = 0;
    for (i, _) in keep.iter().enumerate().filter(|(_, k)| **k) {
        f.ids[n] = f.ids[i];
        f.counts[n] = f.counts[i];
        f.values.copy_within(i * w..(i + 1) * w, n * w);
        n += 1;
    }
    f.ids.truncate(n);
    f.counts.truncate(n);
    f.values.truncate(n * w);
}

/// Reads what numbers stand for, each once.
#[derive(Debug, Default)]
pub(crate) struct Dictionary {
    texts: RefCell<HashMap<u32, Arc<str>>>,
    rows: RefCell<HashMap<u32, Row>>,
}

/// What a row stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) key: StackKey,
    pub(crate) stack: u32,
    pub(crate) labels: u32,
}

impl Dictionary {
    pub(crate) fn text(&self, db: &Connection, id: u32) -> Result<Arc<str>, StoreError> {
        if let Some(t) = self.texts.borrow().get(&id) {
            return Ok(t.clone());
        }
        let text: Arc<str> = db
            .prepare_cached("SELECT text FROM strings WHERE id = ?1")?
            .query_row([id], |r| r.get::<_, Arc<str>>(0))
            .optional()?
            .ok_or_else(damaged)?;
        self.texts.borrow_mut().insert(id, text.clone());
        Ok(text)
    }

    pub(crate) fn row(&self, db: &Connection, id: u32) -> Result<Row, StoreError> {
        if let Some(row) = self.rows.borrow().get(&id) {
            return Ok(*row);
        }
        let row = db
            .prepare_cached(
                "SELECT s.key, r.stack, r.labels FROM rows r JOIN stacks s ON s.id = r.stack \
                 WHERE r.id = ?1",
            )?
            .query_row([id], |r| {
                Ok(Row {
                    key: StackKey(u128::from_be_bytes(r.get(0)?)),
                    stack: r.get(1)?,
                    labels: r.get(2)?,
                })
            })
            .optional()?
            .ok_or_else(damaged)?;
        self.rows.borrow_mut().insert(id, row);
        Ok(row)
    }

    /// Rows of the stack with this key.
    pub(crate) fn rows_of(&self, db: &Connection, key: StackKey) -> Result<Vec<u32>, StoreError> {
        let mut s = db.prepare_cached(
            "SELECT r.id FROM stacks s JOIN rows r ON r.stack = s.id WHERE s.key = ?1 ORDER BY r.id",
        )?;
        let rows = s.query_map([key.0.to_be_bytes()], |r| r.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn data(&self, db: &Connection, table: &str, id: u32) -> Result<Vec<u8>, StoreError> {
        let column = if table == "stacks" {
            "locations"
        } else {
            "data"
        };
        db.prepare_cached(&format!("SELECT {column} FROM {table} WHERE id = ?1"))?
            .query_row([id], |r| r.get(0))
            .optional()?
            .ok_or_else(damaged)
    }

    /// Kinds of the values under `header`, with units.
    pub(crate) fn sample_types(
        &self,
        db: &Connection,
        header: u32,
    ) -> Result<Vec<SampleType>, StoreError> {
        let data = self.data(db, "headers", header)?;
        let mut c = Cursor(&data);
        let width = c
            .get()
            .filter(|&w| w <= MAX_WIDTH as u64)
            .ok_or_else(damaged)?;
        (0..width)
            .map(|_| {
                let (kind, unit) = (c.get_u32(), c.get_u32());
                Ok(SampleType {
                    kind: self.text(db, kind.ok_or_else(damaged)?)?,
                    unit: self.text(db, unit.ok_or_else(damaged)?)?,
                })
            })
            .collect()
    }

    /// The profile with the header and the rows of `frame`.
    pub(crate) fn profile(&self, db: &Connection, frame: &Frame) -> Result<Profile, StoreError> {
        let mut b = Builder {
            db,
            dictionary: self,
            p: Profile::default(),
            mappings: HashMap::new(),
            functions: HashMap::new(),
            locations: HashMap::new(),
            stacks: HashMap::new(),
            labels: HashMap::new(),
        };
        b.header(frame.layout.header)?;
        if b.p.sample_types.len() != frame.layout.width {
            return Err(damaged());
        }
        for (i, &id) in frame.ids.iter().enumerate() {
            let row = self.row(db, id)?;
            let stack = b.stack(row.stack)?;
            let labels = b.label_set(row.labels)?;
            b.p.sample_stacks.push(stack);
            b.p.sample_labels.push(labels);
            b.p.values.extend_from_slice(frame.row(i));
        }
        let at = frame.taken.map_or(0, |t| frame.at.saturating_add(t));
        b.p.time_nanos = at.saturating_mul(1_000_000);
        b.p.duration_nanos = frame.duration;
        Ok(b.p)
    }

    /// A profile that holds the stack alone, as [`StackId`] 0.
    pub(crate) fn stack(
        &self,
        db: &Connection,
        key: StackKey,
    ) -> Result<Option<Profile>, StoreError> {
        let id = db
            .prepare_cached("SELECT id FROM stacks WHERE key = ?1")?
            .query_row([key.0.to_be_bytes()], |r| r.get(0))
            .optional()?;
        let Some(id) = id else { return Ok(None) };
        let mut b = Builder {
            db,
            dictionary: self,
            p: Profile::default(),
            mappings: HashMap::new(),
            functions: HashMap::new(),
            locations: HashMap::new(),
            stacks: HashMap::new(),
            labels: HashMap::new(),
        };
        b.stack(id)?;
        Ok(Some(b.p))
    }
}

/// Builds a profile from numbers.
struct Builder<'a> {
    db: &'a Connection,
    dictionary: &'a Dictionary,
    p: Profile,
    mappings: HashMap<u32, MappingId>,
    functions: HashMap<Function, FunctionId>,
    locations: HashMap<u32, LocationId>,
    stacks: HashMap<u32, StackId>,
    labels: HashMap<u32, LabelSetId>,
}

impl Builder<'_> {
    fn text(&mut self, c: &mut Cursor<'_>) -> Result<StringId, StoreError> {
        let id = c.get_u32().ok_or_else(damaged)?;
        let text = self.dictionary.text(self.db, id)?;
        Ok(self.p.intern(&text))
    }

    fn value_type(&mut self, c: &mut Cursor<'_>) -> Result<ValueType, StoreError> {
        Ok(ValueType {
            kind: self.text(c)?,
            unit: self.text(c)?,
        })
    }

    fn header(&mut self, id: u32) -> Result<(), StoreError> {
        let data = self.dictionary.data(self.db, "headers", id)?;
        let c = &mut Cursor(&data);
        let width = c
            .get()
            .filter(|&w| w <= MAX_WIDTH as u64)
            .ok_or_else(damaged)?;
        for _ in 0..width {
            let t = self.value_type(c)?;
            self.p.sample_types.push(t);
        }
        let shown = c.get().ok_or_else(damaged)?;
        self.p.default_sample_type = shown.checked_sub(1).map(|i| i as usize);
        self.p.period_type = self.value_type(c)?;
        self.p.period = c.get_signed().ok_or_else(damaged)?;
        self.p.drop_frames = self.text(c)?;
        self.p.keep_frames = self.text(c)?;
        self.p.doc_url = self.text(c)?;
        for _ in 0..c.get().ok_or_else(damaged)? {
            let comment = self.text(c)?;
            self.p.comments.push(comment);
        }
        for _ in 0..c.get().ok_or_else(damaged)? {
            let id = c.get_u32().ok_or_else(damaged)?;
            self.mapping(id)?;
        }
        Ok(())
    }

    fn mapping(&mut self, id: u32) -> Result<MappingId, StoreError> {
        if let Some(&m) = self.mappings.get(&id) {
            return Ok(m);
        }
        let data = self.dictionary.data(self.db, "mappings", id)?;
        let c = &mut Cursor(&data);
        let mut m = Mapping {
            start: c.get().ok_or_else(damaged)?,
            limit: c.get().ok_or_else(damaged)?,
            offset: c.get().ok_or_else(damaged)?,
            file: self.text(c)?,
            build_id: self.text(c)?,
            ..Mapping::default()
        };
        while let Some(flag) = c.get() {
            match flag {
                0 => m.has_functions = true,
                1 => m.has_filenames = true,
                2 => m.has_line_numbers = true,
                3 => m.has_inline_frames = true,
                _ => {}
            }
        }
        let number = MappingId(self.p.mappings.len() as u32);
        self.p.mappings.push(m);
        self.mappings.insert(id, number);
        Ok(number)
    }

    fn location(&mut self, id: u32) -> Result<LocationId, StoreError> {
        if let Some(&l) = self.locations.get(&id) {
            return Ok(l);
        }
        let data = self.dictionary.data(self.db, "locations", id)?;
        let c = &mut Cursor(&data);
        let head = c.get().ok_or_else(damaged)?;
        let mut l = Location {
            is_folded: head & 1 == 1,
            first_line: self.p.lines.len() as u32,
            ..Location::default()
        };
        if head / 2 == 0 {
            l.address = c.get().ok_or_else(damaged)?;
            if let Some(m) = c.get_u32() {
                l.mapping = Some(self.mapping(m)?);
            }
        } else {
            let file = self.text(c)?;
            let same = self.p.mappings.iter().position(|m| m.file == file);
            let any = (!self.p.mappings.is_empty()).then_some(0);
            l.mapping = same
                .or(any.filter(|_| file == StringId::default()))
                .map(|i| MappingId(i as u32));
        }
        for _ in 0..head / 2 {
            let function = Function {
                name: self.text(c)?,
                system_name: self.text(c)?,
                file: self.text(c)?,
                start_line: c.get_signed().ok_or_else(damaged)?,
            };
            let next = FunctionId(self.p.functions.len() as u32);
            let function = *self.functions.entry(function).or_insert_with(|| {
                self.p.functions.push(function);
                next
            });
            let line = Line {
                function,
                line: c.get_signed().ok_or_else(damaged)?,
                column: c.get_signed().ok_or_else(damaged)?,
            };
            self.p.lines.push(line);
            l.line_count += 1;
        }
        let number = LocationId(self.p.locations.len() as u32);
        self.p.locations.push(l);
        self.locations.insert(id, number);
        Ok(number)
    }

    fn stack(&mut self, id: u32) -> Result<StackId, StoreError> {
        if let Some(&s) = self.stacks.get(&id) {
            return Ok(s);
        }
        let data = self.dictionary.data(self.db, "stacks", id)?;
        let mut c = Cursor(&data);
        let mut list = Vec::new();
        while !c.0.is_empty() {
            list.push(self.location(c.get_u32().ok_or_else(damaged)?)?);
        }
        let number = StackId(self.p.stacks.intern(&list).ok_or_else(damaged)?);
        self.stacks.insert(id, number);
        Ok(number)
    }

    fn label_set(&mut self, id: u32) -> Result<LabelSetId, StoreError> {
        if let Some(&s) = self.labels.get(&id) {
            return Ok(s);
        }
        let data = self.dictionary.data(self.db, "labels", id)?;
        let c = &mut Cursor(&data);
        let mut list = Vec::new();
        while !c.0.is_empty() {
            let key = c.get().ok_or_else(damaged)?;
            let text = (key / 2).try_into().map_err(|_| damaged())?;
            let text = self.dictionary.text(self.db, text)?;
            let label = Label {
                key: self.p.intern(&text),
                value: if key & 1 == 0 {
                    LabelValue::Text(self.text(c)?)
                } else {
                    LabelValue::Number(c.get_signed().ok_or_else(damaged)?, self.text(c)?)
                },
            };
            list.push(label);
        }
        let number = LabelSetId(self.p.label_sets.intern(&list).ok_or_else(damaged)?);
        self.labels.insert(id, number);
        Ok(number)
    }
}
