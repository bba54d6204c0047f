//! `profile.proto` straight into the columns of a [`Profile`].
//!
//! Every message is read once, in the order of the file, without being whole in
//! memory. What it refers to may come later (some producers write the string table
//! last, some the locations), so references are kept as they are written until
//! the end: strings by their index, rows by a number that their id gets when it is
//! first seen. [`Decoder::finish`] resolves them; for a sound file that is cheap,
//! because the order of first sight becomes the order of the columns.

use std::collections::HashMap;
use std::hash::Hash;

use memtrace_model::{
    Function, FunctionId, Label, LabelSetId, LabelValue, Line, Lists, Location, LocationId,
    Mapping, MappingId, Profile, StackId, StringId, ValueType,
};

use super::wire::{Bad, Reader, Value, numbers};
use crate::budget::{self, Folded};
use crate::gzip::{Stop, Window};
use crate::{Error, Limits, Warning};

/// Reads the message in `window`. `start` is what its first bytes look like.
pub(super) fn decode(
    window: &mut Window<'_>,
    limits: &Limits,
    start: String,
) -> Result<(Profile, Vec<Warning>), Error> {
    let mut decoder = Decoder::default();
    let mut warnings = Vec::new();
    let mut offset = 0u64;
    let stop = loop {
        let mut reader = Reader::new(window.bytes());
        let before = reader.len();
        let mut measured = before;
        let bad = loop {
            match reader.field() {
                Ok((field, value)) => decoder.field(field, value)?,
                Err(bad) => break bad,
            }
            if measured - reader.len() >= MEASURE_EVERY {
                measured = reader.len();
                decoder.keep_within(limits.max_memory);
            }
        };
        let consumed = before - reader.len();
        offset += consumed as u64;
        window.consume(consumed);
        if bad == Bad::Garbage {
            warnings.push(Warning::Garbage { offset });
            break Stop::End;
        }
        if let Err(stop) = window.more() {
            match &stop {
                Stop::Corrupt(what) => warnings.push(Warning::Compression { what: what.clone() }),
                Stop::Limit => warnings.push(Warning::Limit {
                    limit: limits.max_decompressed,
                }),
                Stop::End if !window.bytes().is_empty() => {
                    warnings.push(Warning::Truncated { offset });
                }
                Stop::End => {}
            }
            break stop;
        }
    };
    decoder.check(&stop, limits, !warnings.is_empty(), start)?;
    let mut profile = decoder.finish(&mut warnings);
    budget::keep_within(&mut profile, offset, &mut warnings);
    Ok((profile, warnings))
}

/// Bytes that are read before the memory they took is looked at. A byte takes some 30 at most.
const MEASURE_EVERY: usize = 64 << 10;

/// Ids of the file to numbers in the order of first sight.
#[derive(Default)]
struct Ids {
    /// Number + 1 of the small ids, 0 for one that was not seen.
    dense: Vec<u32>,
    sparse: HashMap<u64, u32>,
    /// Row of each number, [`NONE`] as long as it is not defined.
    rows: Vec<u32>,
    /// Number of all ids that are met from now on; they cannot be defined.
    beyond: Option<u32>,
}

const NONE: u32 = u32::MAX;

impl Ids {
    #[inline]
    fn number(&mut self, id: u64) -> u32 {
        match self.dense.get(id as usize) {
            Some(&n) if n > 0 && id < u64::from(NONE) => n - 1,
            _ => self.rare(id),
        }
    }

    fn rare(&mut self, id: u64) -> u32 {
        if let Some(&n) = self.sparse.get(&id) {
            return n;
        }
        if let Some(beyond) = self.beyond {
            return beyond;
        }
        let number = self.rows.len() as u32;
        self.rows.push(NONE);
        // Ids are mostly 1, 2, 3…; the table may be four times as long as what is in it.
        if id < (1 << 12).max(self.rows.len() as u64 * 4) {
            let i = id as usize;
            if i >= self.dense.len() {
                self.dense.resize(i + 1, 0);
            }
            self.dense[i] = number + 1;
        } else {
            self.sparse.insert(id, number);
        }
        number
    }

    /// Takes in no more ids than there are.
    fn close(&mut self) {
        let rows = &mut self.rows;
        self.beyond.get_or_insert_with(|| {
            rows.push(NONE);
            rows.len() as u32 - 1
        });
    }

    fn memory(&self) -> usize {
        self.dense.capacity() * size_of::<u32>()
            + self.sparse.capacity() * (size_of::<(u64, u32)>() + 1)
            + self.rows.capacity() * size_of::<u32>()
    }

    /// Says that `id` is defined in row `row`; `false` when it was already.
    fn define(&mut self, id: u64, row: usize) -> bool {
        let number = self.number(id) as usize;
        if self.beyond == Some(number as u32) {
            return false;
        }
        let free = self.rows[number] == NONE;
        if free {
            self.rows[number] = row as u32;
        }
        free
    }

    /// Puts `rows` in the order of the numbers. Numbers without a row share one at
    /// the end. Gives the new number of each when they changed, and how many have no row.
    fn arrange<T: Copy + Default>(&self, rows: &mut Vec<T>) -> (Option<Vec<u32>>, u64) {
        let missing = self.rows.iter().filter(|&&r| r == NONE).count();
        if self.rows.iter().enumerate().any(|(i, &r)| r != i as u32) {
            *rows = self
                .rows
                .iter()
                .filter_map(|&r| rows.get(r as usize).copied())
                .collect();
        }
        if missing == 0 {
            return (None, 0);
        }
        let placeholder = rows.len() as u32;
        rows.push(T::default());
        let mut next = 0;
        let map = self
            .rows
            .iter()
            .map(|&r| {
                if r == NONE {
                    return placeholder;
                }
                next += 1;
                next - 1
            })
            .collect();
        (Some(map), missing as u64)
    }
}

#[derive(Default)]
struct Decoder {
    profile: Profile,
    /// Interned number of each string of the table.
    table: Vec<u32>,
    /// Some string stands in the table under another number than in the column.
    table_differs: bool,
    /// Greatest index of a string that something refers to.
    max_string: u32,
    first_string_not_empty: bool,
    mappings: Ids,
    functions: Ids,
    locations: Ids,
    default_sample_type: StringId,
    /// Values of a sample, taken from the first one.
    width: Option<usize>,
    /// Samples that were folded while reading, for the memory that they took.
    folded: Folded,
    /// Memory for mappings, functions and locations is used up: no more are defined.
    rows_full: bool,
    strings_full: bool,

    stack: Vec<LocationId>,
    row: Vec<i64>,
    labels: Vec<Label>,

    not_utf8: u64,
    too_long: u64,
    too_many: u64,
    bad_fields: u64,
    bad_messages: u64,
    bad_samples: u64,
    bad_lines: u64,
    second_mappings: u64,
    second_functions: u64,
    second_locations: u64,
}

impl Decoder {
    fn field(&mut self, field: u64, value: Value<'_>) -> Result<(), Error> {
        match (field, value) {
            (1, Value::Bytes(_))
                if self.profile.sample_types.len() >= budget::MOST_SAMPLE_TYPES =>
            {
                self.too_many += 1;
            }
            (3..=5, Value::Bytes(_)) if self.rows_full => self.too_many += 1,
            (6, Value::Bytes(_)) if self.strings_full => self.too_many += 1,
            (1, Value::Bytes(b)) => match self.value_type(b) {
                Some(t) => self.profile.sample_types.push(t),
                None => self.bad_messages += 1,
            },
            (2, Value::Bytes(b)) => self.bad_samples += u64::from(!self.sample(b)),
            (3, Value::Bytes(b)) => self.mapping(b),
            (4, Value::Bytes(b)) => self.location(b),
            (5, Value::Bytes(b)) => self.function(b),
            (6, Value::Bytes(b)) => self.string(b),
            (7, Value::Number(n)) => self.profile.drop_frames = self.text(n),
            (8, Value::Number(n)) => self.profile.keep_frames = self.text(n),
            (9, Value::Number(n)) => {
                // One message holds it once. Two of them, one after the other, read
                // like one with twice the samples.
                if self.profile.time_nanos != 0 {
                    return Err(Error::Concatenated);
                }
                self.profile.time_nanos = n as i64;
            }
            (10, Value::Number(n)) => self.profile.duration_nanos = n as i64,
            (11, Value::Bytes(b)) => match self.value_type(b) {
                Some(t) => self.profile.period_type = t,
                None => self.bad_messages += 1,
            },
            (12, Value::Number(n)) => self.profile.period = n as i64,
            (13, value) => {
                let mut comments = std::mem::take(&mut self.profile.comments);
                let take = |n| match comments.len() < budget::MOST_COMMENTS {
                    true => comments.push(self.text(n)),
                    false => self.too_many += 1,
                };
                if !numbers(value, take) {
                    self.bad_fields += 1;
                }
                self.profile.comments = comments;
            }
            (14, Value::Number(n)) => self.default_sample_type = self.text(n),
            (15, Value::Number(n)) => self.profile.doc_url = self.text(n),
            (1..=15, _) => self.bad_fields += 1,
            _ => {}
        }
        Ok(())
    }

    /// A reference into the string table, not yet resolved.
    #[inline]
    fn text(&mut self, index: u64) -> StringId {
        let index = u32::try_from(index).unwrap_or(NONE);
        self.max_string = self.max_string.max(index);
        StringId(index)
    }

    fn string(&mut self, bytes: &[u8]) {
        let kept = budget::cut_bytes(bytes);
        let text = String::from_utf8_lossy(kept);
        if matches!(text, std::borrow::Cow::Owned(_)) {
            self.not_utf8 += 1;
        }
        if self.table.is_empty() && !text.is_empty() {
            self.first_string_not_empty = true;
        }
        let short = budget::cut(&text);
        self.too_long += u64::from(short.len() < text.len() || kept.len() < bytes.len());
        let number = self.profile.strings.intern(short);
        self.table_differs |= number as usize != self.table.len();
        self.table.push(number);
    }

    /// Folds the lightest samples, or leaves out further definitions, so that the memory is
    /// little more than `most`: half of it is for samples, half for rows, a quarter for strings.
    fn keep_within(&mut self, most: usize) {
        let ids = self.mappings.memory() + self.functions.memory() + self.locations.memory();
        let profile = &self.profile;
        let samples = profile.stacks.memory()
            + profile.label_sets.memory()
            + profile.values.capacity() * size_of::<i64>()
            + profile.sample_stacks.capacity() * size_of::<StackId>()
            + profile.sample_labels.capacity() * size_of::<LabelSetId>();
        let strings = profile.strings.memory() + self.table.capacity() * size_of::<u32>();
        let rows = profile.memory() - samples - profile.strings.memory() + ids;
        let samples = samples + profile.len() * budget::FOLLOWED;
        self.strings_full |= strings > most / 4;
        if rows > most / 2 && !self.rows_full {
            self.rows_full = true;
            self.mappings.close();
            self.functions.close();
            self.locations.close();
        }
        if let Some(width) = self.width.filter(|_| samples > most / 2)
            && let Some(folded) = budget::fold_lightest(&mut self.profile, width, most as u64 / 8)
        {
            self.folded.merge(&folded);
        }
    }

    fn value_type(&mut self, bytes: &[u8]) -> Option<ValueType> {
        let mut value_type = ValueType::default();
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            match reader.field().ok()? {
                (1, Value::Number(n)) => value_type.kind = self.text(n),
                (2, Value::Number(n)) => value_type.unit = self.text(n),
                _ => {}
            }
        }
        Some(value_type)
    }

    fn sample(&mut self, bytes: &[u8]) -> bool {
        let mut stack = std::mem::take(&mut self.stack);
        let mut row = std::mem::take(&mut self.row);
        let mut labels = std::mem::take(&mut self.labels);
        stack.clear();
        row.clear();
        labels.clear();
        let sound = self.sample_fields(bytes, &mut stack, &mut row, &mut labels)
            && self.add_sample(&stack, &row, &labels);
        self.stack = stack;
        self.row = row;
        self.labels = labels;
        sound
    }

    fn sample_fields(
        &mut self,
        bytes: &[u8],
        stack: &mut Vec<LocationId>,
        row: &mut Vec<i64>,
        labels: &mut Vec<Label>,
    ) -> bool {
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            let sound = match reader.field() {
                Ok((1, value)) => {
                    let ids = &mut self.locations;
                    // One more than there may be: such a stack is cut in the end, and told of.
                    let take = |id| {
                        if stack.len() as u64 <= budget::DEEPEST {
                            stack.push(LocationId(ids.number(id)));
                        }
                    };
                    numbers(value, take)
                }
                Ok((2, value)) => numbers(value, |n| {
                    if row.len() < budget::MOST_SAMPLE_TYPES {
                        row.push(n as i64);
                    }
                }),
                Ok((3, Value::Bytes(_))) if labels.len() >= budget::MOST_LABELS => {
                    self.too_many += 1;
                    true
                }
                Ok((3, Value::Bytes(b))) => match self.label(b) {
                    Some(label) => {
                        labels.push(label);
                        true
                    }
                    None => false,
                },
                Ok(_) => true,
                Err(_) => false,
            };
            if !sound {
                return false;
            }
        }
        true
    }

    fn add_sample(&mut self, stack: &[LocationId], row: &[i64], labels: &[Label]) -> bool {
        let width = *self.width.get_or_insert_with(|| {
            // A first sample with fewer values than types known so far is damaged.
            row.len().max(self.profile.sample_types.len()).max(1)
        });
        if row.len() != width {
            return false;
        }
        let profile = &mut self.profile;
        let (Some(stack), Some(labels)) = (
            profile.stacks.intern(stack),
            profile.label_sets.intern(labels),
        ) else {
            return false;
        };
        profile.sample_stacks.push(StackId(stack));
        profile.sample_labels.push(LabelSetId(labels));
        profile.values.extend_from_slice(row);
        true
    }

    fn label(&mut self, bytes: &[u8]) -> Option<Label> {
        let (mut key, mut text, mut number, mut unit) = (0, None, 0, 0);
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            match reader.field().ok()? {
                (1, Value::Number(n)) => key = n,
                (2, Value::Number(n)) => text = Some(n),
                (3, Value::Number(n)) => number = n as i64,
                (4, Value::Number(n)) => unit = n,
                _ => {}
            }
        }
        // Absent and 0 are the same on the wire, except that an explicit empty text
        // with nothing else can only be meant as a text.
        let value = match text {
            Some(text) if text != 0 || (number == 0 && unit == 0) => {
                LabelValue::Text(self.text(text))
            }
            _ => LabelValue::Number(number, self.text(unit)),
        };
        Some(Label {
            key: self.text(key),
            value,
        })
    }

    fn mapping(&mut self, bytes: &[u8]) {
        let (mut id, mut m) = (0, Mapping::default());
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            match reader.field() {
                Ok((1, Value::Number(n))) => id = n,
                Ok((2, Value::Number(n))) => m.start = n,
                Ok((3, Value::Number(n))) => m.limit = n,
                Ok((4, Value::Number(n))) => m.offset = n,
                Ok((5, Value::Number(n))) => m.file = self.text(n),
                Ok((6, Value::Number(n))) => m.build_id = self.text(n),
                Ok((7, Value::Number(n))) => m.has_functions = n != 0,
                Ok((8, Value::Number(n))) => m.has_filenames = n != 0,
                Ok((9, Value::Number(n))) => m.has_line_numbers = n != 0,
                Ok((10, Value::Number(n))) => m.has_inline_frames = n != 0,
                Ok(_) => {}
                Err(_) => {
                    self.bad_messages += 1;
                    return;
                }
            }
        }
        if self.mappings.define(id, self.profile.mappings.len()) {
            self.profile.mappings.push(m);
        } else {
            self.second_mappings += 1;
        }
    }

    fn function(&mut self, bytes: &[u8]) {
        let (mut id, mut f) = (0, Function::default());
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            match reader.field() {
                Ok((1, Value::Number(n))) => id = n,
                Ok((2, Value::Number(n))) => f.name = self.text(n),
                Ok((3, Value::Number(n))) => f.system_name = self.text(n),
                Ok((4, Value::Number(n))) => f.file = self.text(n),
                Ok((5, Value::Number(n))) => f.start_line = n as i64,
                Ok(_) => {}
                Err(_) => {
                    self.bad_messages += 1;
                    return;
                }
            }
        }
        if self.functions.define(id, self.profile.functions.len()) {
            self.profile.functions.push(f);
        } else {
            self.second_functions += 1;
        }
    }

    fn location(&mut self, bytes: &[u8]) {
        let (mut id, mut l) = (0, Location::default());
        let first = self.profile.lines.len();
        let mut reader = Reader::new(bytes);
        let mut sound = true;
        while sound && !reader.is_empty() {
            match reader.field() {
                Ok((1, Value::Number(n))) => id = n,
                Ok((2, Value::Number(0))) => l.mapping = None,
                Ok((2, Value::Number(n))) => l.mapping = Some(MappingId(self.mappings.number(n))),
                Ok((3, Value::Number(n))) => l.address = n,
                // No stack may have as many frames.
                Ok((4, Value::Bytes(_)))
                    if (self.profile.lines.len() - first) as u64 > budget::DEEPEST =>
                {
                    self.too_many += 1;
                }
                Ok((4, Value::Bytes(b))) => sound = self.line(b),
                Ok((5, Value::Number(n))) => l.is_folded = n != 0,
                Ok(_) => {}
                Err(_) => sound = false,
            }
        }
        let count = self.profile.lines.len() - first;
        if let (true, Ok(first), Ok(count)) = (sound, u32::try_from(first), u32::try_from(count)) {
            l.first_line = if count == 0 { 0 } else { first };
            l.line_count = count;
            if self.locations.define(id, self.profile.locations.len()) {
                self.profile.locations.push(l);
                return;
            }
            self.second_locations += 1;
        } else {
            self.bad_messages += 1;
        }
        self.profile.lines.truncate(first);
    }

    fn line(&mut self, bytes: &[u8]) -> bool {
        let (mut function, mut line) = (0, Line::default());
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            match reader.field() {
                Ok((1, Value::Number(n))) => function = n,
                Ok((2, Value::Number(n))) => line.line = n as i64,
                Ok((3, Value::Number(n))) => line.column = n as i64,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
        if function == 0 {
            // A line of no function says nothing that could be shown.
            self.bad_lines += 1;
        } else {
            line.function = FunctionId(self.functions.number(function));
            self.profile.lines.push(line);
        }
        true
    }

    /// Whether anything usable was read.
    fn check(
        &self,
        stop: &Stop,
        limits: &Limits,
        damaged: bool,
        start: String,
    ) -> Result<(), Error> {
        let profile = &self.profile;
        let something = !profile.sample_types.is_empty() || !profile.is_empty();
        let what = if self.table.is_empty() && something {
            // Names of the sample types are missing: the values mean nothing.
            "it ends before its string table"
        } else if self.table.is_empty() || self.first_string_not_empty {
            return Err(
                crate::gzip::nothing_usable(stop, limits).unwrap_or(Error::NotAProfile { start })
            );
        } else if profile.sample_types.is_empty() && (damaged || !profile.is_empty()) {
            "it names no sample type"
        } else {
            return Ok(());
        };
        Err(
            crate::gzip::nothing_usable(stop, limits).unwrap_or(Error::Damaged {
                what: what.to_owned(),
            }),
        )
    }

    fn finish(mut self, warnings: &mut Vec<Warning>) -> Profile {
        let mut dangling = Vec::new();
        self.arrange_rows(&mut dangling);
        self.arrange_values(warnings);
        let strings = self.resolve_strings();
        dangling.push(("strings", strings));
        let profile = &mut self.profile;
        if self.folded.samples > 0 {
            warnings.push(Warning::Folded {
                samples: self.folded.samples,
            });
            std::mem::take(&mut self.folded).add_to(profile);
        }
        let default = self.default_sample_type;
        profile.default_sample_type = (default.0 != 0)
            .then(|| profile.sample_types.iter().position(|t| t.kind == default))
            .flatten();

        for (what, count) in [
            ("damaged samples", self.bad_samples),
            ("damaged entries", self.bad_messages),
            ("fields of a wrong type", self.bad_fields),
            ("lines without a function", self.bad_lines),
            ("entries beyond a limit", self.too_many),
        ] {
            if count > 0 {
                warnings.push(Warning::Dropped { what, count });
            }
        }
        for (what, count) in [
            ("mappings", self.second_mappings),
            ("functions", self.second_functions),
            ("locations", self.second_locations),
        ] {
            if count > 0 {
                warnings.push(Warning::Duplicate { what, count });
            }
        }
        for (what, count) in dangling {
            if count > 0 {
                warnings.push(Warning::Dangling { what, count });
            }
        }
        if self.too_long > 0 {
            warnings.push(Warning::Long {
                count: self.too_long,
            });
        }
        if self.not_utf8 > 0 {
            warnings.push(Warning::Encoding {
                count: self.not_utf8,
            });
        }
        self.profile
    }

    fn arrange_rows(&mut self, dangling: &mut Vec<(&'static str, u64)>) {
        let profile = &mut self.profile;
        let known = profile.mappings.len() as u32;
        let (map, missing) = self.mappings.arrange(&mut profile.mappings);
        dangling.push(("mappings", missing));
        if let Some(map) = map {
            // A location may do without a mapping, so no row stands for the missing ones.
            profile.mappings.truncate(known as usize);
            for l in &mut profile.locations {
                l.mapping = l
                    .mapping
                    .map(|m| MappingId(map[m.index()]))
                    .filter(|m| m.0 < known);
            }
        }

        let (map, missing) = self.functions.arrange(&mut profile.functions);
        dangling.push(("functions", missing));
        if let Some(map) = map {
            for line in &mut profile.lines {
                line.function = FunctionId(map[line.function.index()]);
            }
        }

        let (map, missing) = self.locations.arrange(&mut profile.locations);
        dangling.push(("locations", missing));
        super::lines_in_order(profile);
        if let Some(map) = map {
            let numbers = rebuild(&mut profile.stacks, |l| LocationId(map[l.index()]));
            for s in &mut profile.sample_stacks {
                s.0 = numbers[s.index()];
            }
        }
    }

    /// Makes rows and sample types equally wide.
    fn arrange_values(&mut self, warnings: &mut Vec<Warning>) {
        let profile = &mut self.profile;
        let (types, Some(values)) = (profile.sample_types.len(), self.width) else {
            return;
        };
        if profile.is_empty() || types == values {
            return;
        }
        warnings.push(Warning::SampleTypes { types, values });
        profile.sample_types.truncate(values);
        if types < values {
            profile.values = profile
                .values
                .chunks_exact(values)
                .flat_map(|row| &row[..types])
                .copied()
                .collect();
        }
    }

    /// Replaces indices of the string table by numbers of the column; counts those
    /// that are in neither.
    fn resolve_strings(&mut self) -> u64 {
        if !self.table_differs && (self.max_string as usize) < self.table.len() {
            return 0;
        }
        let table = &self.table;
        let mut missing = 0;
        let mut put = |id: &mut StringId| {
            *id = match table.get(id.index()) {
                Some(&number) => StringId(number),
                None => {
                    missing += 1;
                    StringId(0)
                }
            }
        };
        let p = &mut self.profile;
        for t in p.sample_types.iter_mut().chain([&mut p.period_type]) {
            put(&mut t.kind);
            put(&mut t.unit);
        }
        for m in &mut p.mappings {
            put(&mut m.file);
            put(&mut m.build_id);
        }
        for f in &mut p.functions {
            put(&mut f.name);
            put(&mut f.system_name);
            put(&mut f.file);
        }
        for id in &mut p.comments {
            put(id);
        }
        put(&mut p.drop_frames);
        put(&mut p.keep_frames);
        put(&mut p.doc_url);
        put(&mut self.default_sample_type);
        let numbers = rebuild(&mut p.label_sets, |mut label| {
            put(&mut label.key);
            match &mut label.value {
                LabelValue::Text(text) => put(text),
                LabelValue::Number(_, unit) => put(unit),
            }
            label
        });
        for l in &mut p.sample_labels {
            l.0 = numbers[l.index()];
        }
        missing
    }
}

/// Maps every item of every list; gives the new number of each list.
fn rebuild<T: Copy + Eq + Hash>(lists: &mut Lists<T>, mut map: impl FnMut(T) -> T) -> Vec<u32> {
    let old = std::mem::take(lists);
    let mut items = Vec::new();
    old.iter()
        .map(|list| {
            items.clear();
            items.extend(list.iter().map(|&item| map(item)));
            // Mapping makes lists equal or leaves them different; it adds none.
            lists.intern(&items).unwrap_or_default()
        })
        .collect()
}
