//! Snapshots to bytes and back.
//!
//! A *chunk* is a run of snapshots of one target and one kind. Each snapshot says
//! only what changed since the one before: rows that are new, whose values moved,
//! or that are gone. The first of a chunk refers to a base: nothing (the chunk
//! stands alone), or the last snapshot of the chunk before it.
//!
//! ```text
//! chunk    zstd( version, lengths of the columns, columns )
//! head     per snapshot: time, flags [layout: header, width, rate], changes per section
//! moved    rows of a Go heap profile known as sampled counts: gap, Δallocations, Δlive
//! counted  the same, seen first here or with another size: gap, size, step, allocations, live
//! plain    any other row: gap, Δ of each value
//! gone     gap
//! ```
//! Numbers are LEB128, signed ones folded; a gap is the distance to the previous
//! row number of the section. Like is kept with like, so that the entropy coder
//! finds one distribution per column. Nothing is allocated by a length that the
//! bytes do not back.

use std::io::Read;

use crate::sampled::Counts;
use crate::varint::{Cursor, put, put_signed};

const VERSION: u64 = 1;
const COLUMNS: usize = 10;
/// Longest chunk that is unpacked.
const MAX_UNPACKED: u64 = 256 << 20;
/// Most values a row may have.
const MAX_WIDTH: usize = 64;

/// What all rows of a snapshot share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Number of the profile header in the dictionary.
    pub(crate) header: u32,
    /// Values of a row.
    pub(crate) width: usize,
    /// Sampling rate where the profile is Go's heap profile, else 0.
    pub(crate) rate: u64,
}

/// One snapshot: rows in order of their numbers, none of them all zero.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Frame {
    /// Time of the snapshot, milliseconds.
    pub(crate) at: i64,
    /// Time the profile itself gives less `at`, milliseconds; `None` where it gives none.
    pub(crate) taken: Option<i64>,
    /// Nanoseconds covered.
    pub(crate) duration: i64,
    pub(crate) layout: Layout,
    pub(crate) ids: Vec<u32>,
    /// Sampled counts behind each row; size 0 where the values are no scaled counts.
    /// On the way in, only the size is given.
    pub(crate) counts: Vec<Counts>,
    pub(crate) values: Vec<i64>,
}

impl Frame {
    pub(crate) fn row(&self, i: usize) -> &[i64] {
        let n = self.layout.width;
        self.values.get(i * n..(i + 1) * n).unwrap_or(&[])
    }

    fn push(&mut self, id: u32, counts: Counts, values: &[i64]) {
        self.ids.push(id);
        self.counts.push(counts);
        self.values.extend_from_slice(values);
    }
}

/// The entropy coder, made once.
pub(crate) type Packer = zstd::bulk::Compressor<'static>;

/// Writes one chunk.
#[derive(Debug)]
pub(crate) struct Encoder {
    columns: [Vec<u8>; COLUMNS],
    last: Frame,
    first: bool,
}

const HEAD: usize = 0;
const MOVED: usize = 1; // gap, Δalloc, Δlive
const COUNTED: usize = 4; // gap, size+step, alloc+live
const PLAIN: usize = 7; // gap, values
const GONE: usize = 9;

/// Distance between successive row numbers.
struct Gaps {
    next: [u32; 4],
    count: [u64; 4],
}

impl Encoder {
    /// A chunk that continues `base`, or stands alone.
    pub(crate) fn new(base: Option<Frame>) -> Self {
        Self {
            columns: Default::default(),
            last: base.unwrap_or_default(),
            first: true,
        }
    }

    /// Bytes so far, before compression.
    pub(crate) fn len(&self) -> usize {
        self.columns.iter().map(Vec::len).sum()
    }

    /// Adds a snapshot. Its rows are in ascending order of their numbers.
    pub(crate) fn push(&mut self, mut frame: Frame) {
        let old = std::mem::take(&mut self.last);
        let same = old.layout == frame.layout;
        // Values of another layout mean something else: begin with nothing.
        let comparable =
            old.layout.width == frame.layout.width && old.layout.rate == frame.layout.rate;
        let rate = frame.layout.rate;
        let mut gaps = Gaps {
            next: [0; 4],
            count: [0; 4],
        };
        let columns = &mut self.columns;
        let mut gap = |section: usize, column: &mut Vec<u8>, id: u32| {
            put(column, u64::from(id.wrapping_sub(gaps.next[section])));
            gaps.next[section] = id.wrapping_add(1);
            gaps.count[section] += 1;
        };
        let mut o = 0;
        for i in 0..frame.ids.len() {
            let id = frame.ids[i];
            while o < old.ids.len() && old.ids[o] < id {
                gap(3, &mut columns[GONE], old.ids[o]);
                o += 1;
            }
            let before = (o < old.ids.len() && old.ids[o] == id).then_some(o);
            o += usize::from(before.is_some());
            let before = before.filter(|_| comparable);
            let values = frame.row(i);
            let known = before.map(|b| old.counts[b]).unwrap_or_default();
            if before.is_some_and(|b| old.row(b) == values) {
                frame.counts[i] = known;
                continue;
            }
            let size = frame.counts[i].size;
            match Counts::find(values, size, rate, known.step) {
                Some(now) if known.size == now.size && known.step == now.step => {
                    gap(0, &mut columns[MOVED], id);
                    put_signed(
                        &mut columns[MOVED + 1],
                        now.alloc as i64 - known.alloc as i64,
                    );
                    put_signed(&mut columns[MOVED + 2], now.live as i64 - known.live as i64);
                    frame.counts[i] = now;
                }
                Some(now) => {
                    gap(1, &mut columns[COUNTED], id);
                    put(&mut columns[COUNTED + 1], now.size);
                    columns[COUNTED + 1].push(now.step);
                    put(&mut columns[COUNTED + 2], now.alloc);
                    put(&mut columns[COUNTED + 2], now.live);
                    frame.counts[i] = now;
                }
                None => {
                    gap(2, &mut columns[PLAIN], id);
                    for (j, &v) in values.iter().enumerate() {
                        let from = before.map_or(0, |b| old.row(b)[j]);
                        put_signed(&mut columns[PLAIN + 1], v.wrapping_sub(from));
                    }
                    frame.counts[i] = Counts::default();
                }
            }
        }
        for &id in &old.ids[o..] {
            gap(3, &mut columns[GONE], id);
        }

        let head = &mut columns[HEAD];
        let from = if self.first { 0 } else { old.at };
        put_signed(head, frame.at.wrapping_sub(from));
        let has_layout = self.first || !same;
        let flags = u64::from(has_layout)
            | u64::from(frame.taken.is_some()) << 1
            | u64::from(frame.duration != 0) << 2;
        put(head, flags);
        if has_layout {
            put(head, u64::from(frame.layout.header));
            put(head, frame.layout.width as u64);
            put(head, frame.layout.rate);
        }
        if let Some(taken) = frame.taken {
            put_signed(head, taken);
        }
        if frame.duration != 0 {
            put_signed(head, frame.duration);
        }
        for n in gaps.count {
            put(head, n);
        }
        self.first = false;
        self.last = frame;
    }

    /// The chunk, and its last snapshot: the base of the next chunk.
    pub(crate) fn finish(self, packer: &mut Packer) -> std::io::Result<(Vec<u8>, Frame)> {
        let mut all = Vec::with_capacity(self.len() + 32);
        put(&mut all, VERSION);
        for column in &self.columns {
            put(&mut all, column.len() as u64);
        }
        for column in &self.columns {
            all.extend_from_slice(column);
        }
        Ok((packer.compress(&all)?, self.last))
    }
}

/// Reads one chunk, snapshot by snapshot.
#[derive(Debug)]
pub(crate) struct Decoder {
    bytes: Vec<u8>,
    /// Where each column goes on.
    at: [(usize, usize); COLUMNS],
    last: Frame,
    first: bool,
}

impl Decoder {
    /// Unpacks a chunk that continues `base`. `None` when it is damaged.
    pub(crate) fn new(packed: &[u8], base: Frame) -> Option<Self> {
        let mut bytes = Vec::new();
        let unpacked = zstd::stream::read::Decoder::with_buffer(packed).ok()?;
        unpacked
            .take(MAX_UNPACKED + 1)
            .read_to_end(&mut bytes)
            .ok()
            .filter(|&n| n as u64 <= MAX_UNPACKED)?;
        let mut cursor = Cursor(&bytes);
        if cursor.get()? != VERSION {
            return None;
        }
        let mut lengths = [0u64; COLUMNS];
        for n in &mut lengths {
            *n = cursor.get()?;
        }
        let mut start = bytes.len() - cursor.0.len();
        let mut at = [(0, 0); COLUMNS];
        for (slot, n) in at.iter_mut().zip(lengths) {
            let end = start.checked_add(usize::try_from(n).ok()?)?;
            if end > bytes.len() {
                return None;
            }
            *slot = (start, end);
            start = end;
        }
        Some(Self {
            bytes,
            at,
            last: base,
            first: true,
        })
    }

    /// The snapshot read last.
    pub(crate) fn last(&self) -> &Frame {
        &self.last
    }

    /// The snapshot read last: the base of the next chunk.
    pub(crate) fn into_last(self) -> Frame {
        self.last
    }

    /// The next snapshot; `Ok(None)` after the last, `Err` where the bytes are damaged.
    pub(crate) fn next(&mut self) -> Result<Option<&Frame>, Damaged> {
        if self.at[HEAD].0 == self.at[HEAD].1 {
            return Ok(None);
        }
        self.read().ok_or(Damaged)?;
        Ok(Some(&self.last))
    }

    fn read(&mut self) -> Option<()> {
        let mut columns: [Cursor<'_>; COLUMNS] =
            std::array::from_fn(|i| Cursor(&self.bytes[self.at[i].0..self.at[i].1]));
        let old = &self.last;
        let mut frame = Frame::default();

        let head = &mut columns[HEAD];
        let from = if self.first { 0 } else { old.at };
        frame.at = from.wrapping_add(head.get_signed()?);
        let flags = head.get()?;
        frame.layout = if flags & 1 == 0 {
            if self.first {
                return None;
            }
            old.layout
        } else {
            Layout {
                header: head.get_u32()?,
                width: usize::try_from(head.get()?)
                    .ok()
                    .filter(|&w| w <= MAX_WIDTH)?,
                rate: head.get()?,
            }
        };
        if flags & 2 != 0 {
            frame.taken = Some(head.get_signed()?);
        }
        if flags & 4 != 0 {
            frame.duration = head.get_signed()?;
        }
        let mut left = [0u64; 4];
        for n in &mut left {
            *n = head.get()?;
        }
        let comparable =
            old.layout.width == frame.layout.width && old.layout.rate == frame.layout.rate;
        let rate = frame.layout.rate;
        let width = frame.layout.width;

        // Merge the old rows with the four sections, each in ascending order.
        let gap_columns = [MOVED, COUNTED, PLAIN, GONE];
        let mut next: [Option<u32>; 4] = [None; 4];
        let mut advance = |s: usize, last: Option<u32>, columns: &mut [Cursor<'_>; COLUMNS]| {
            if left[s] == 0 {
                return Some(None);
            }
            left[s] -= 1;
            let gap = columns[gap_columns[s]].get_u32()?;
            let from = match last {
                None => 0,
                Some(last) => last.checked_add(1)?,
            };
            from.checked_add(gap).map(Some)
        };
        for (s, slot) in next.iter_mut().enumerate() {
            *slot = advance(s, None, &mut columns)?;
        }
        let mut scratch = [0i64; MAX_WIDTH];
        let mut o = 0;
        loop {
            let changed = (0..4).filter_map(|s| Some((next[s]?, s))).min();
            // Rows before the next change stay as they were.
            let until = changed.map_or(u32::MAX, |(id, _)| id);
            while o < old.ids.len() && (old.ids[o] < until || changed.is_none()) {
                if !comparable {
                    return None;
                }
                frame.push(old.ids[o], old.counts[o], old.row(o));
                o += 1;
            }
            let Some((id, section)) = changed else { break };
            let before = (o < old.ids.len() && old.ids[o] == id).then_some(o);
            o += usize::from(before.is_some());
            let before = before.filter(|_| comparable || section == 3);
            match section {
                0 => {
                    let mut counts = old.counts[before?];
                    if counts.size == 0 || width != 4 {
                        return None;
                    }
                    counts.alloc = counts
                        .alloc
                        .wrapping_add_signed(columns[MOVED + 1].get_signed()?);
                    counts.live = counts
                        .live
                        .wrapping_add_signed(columns[MOVED + 2].get_signed()?);
                    frame.push(id, counts, &counts.values(rate));
                }
                1 => {
                    if width != 4 {
                        return None;
                    }
                    let size = columns[COUNTED + 1].get()?;
                    let step = columns[COUNTED + 1].get()?;
                    let counts = Counts {
                        size: Some(size).filter(|&s| s > 0)?,
                        step: u8::try_from(step).ok().filter(|&s| s < 3)?,
                        alloc: columns[COUNTED + 2].get()?,
                        live: columns[COUNTED + 2].get()?,
                    };
                    frame.push(id, counts, &counts.values(rate));
                }
                2 => {
                    for (j, v) in scratch[..width].iter_mut().enumerate() {
                        let from = before.map_or(0, |b| old.row(b)[j]);
                        *v = from.wrapping_add(columns[PLAIN + 1].get_signed()?);
                    }
                    frame.push(id, Counts::default(), &scratch[..width]);
                }
                _ => {
                    before?;
                }
            }
            next[section] = advance(section, Some(id), &mut columns)?;
            // Two changes of one row contradict each other.
            if next.contains(&Some(id)) {
                return None;
            }
        }
        for (slot, cursor) in self.at.iter_mut().zip(columns) {
            slot.0 = slot.1 - cursor.0.len();
        }
        self.first = false;
        self.last = frame;
        Some(())
    }
}

/// The bytes are no chunk of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damaged;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(at: i64, layout: Layout, rows: &[(u32, u64, Vec<i64>)]) -> Frame {
        let mut f = Frame {
            at,
            layout,
            taken: (at % 2 == 0).then_some(at % 7),
            duration: at % 3,
            ..Frame::default()
        };
        for (id, size, values) in rows {
            let counts = Counts {
                size: *size,
                ..Counts::default()
            };
            f.push(*id, counts, values);
        }
        f
    }

    fn same(a: &Frame, b: &Frame) -> bool {
        (a.at, a.taken, a.duration, a.layout) == (b.at, b.taken, b.duration, b.layout)
            && a.ids == b.ids
            && a.values == b.values
    }

    /// Rows that look like those of Go's heap profile, some of them tampered with.
    fn rows(width: usize) -> impl Strategy<Value = Vec<(u32, u64, Vec<i64>)>> {
        let row = (
            prop_oneof![Just(16u64), Just(4096), Just(0), Just(1 << 20)],
            0u64..50,
            0u64..50,
            prop::collection::vec(any::<i64>(), width),
            0u8..8,
        );
        prop::collection::btree_map(0u32..30, row, 0..20).prop_map(move |map| {
            map.into_iter()
                .map(|(id, (size, alloc, live, noise, pick))| {
                    let counts = Counts {
                        size,
                        step: 0,
                        alloc,
                        live,
                    };
                    let scaled = counts.values(524_288).to_vec();
                    let values = if pick == 0 || width != 4 {
                        noise
                    } else {
                        scaled
                    };
                    (id, size, values)
                })
                .collect()
        })
    }

    fn snapshots() -> impl Strategy<Value = Vec<Frame>> {
        let one = (prop::bool::weighted(0.9), any::<i32>()).prop_flat_map(|(wide, at)| {
            let layout = Layout {
                header: u32::from(wide),
                width: if wide { 4 } else { 2 },
                rate: if wide { 524_288 } else { 0 },
            };
            rows(layout.width).prop_map(move |r| frame(i64::from(at), layout, &r))
        });
        prop::collection::vec(one, 1..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn what_goes_in_comes_out(frames in snapshots(), split in 0usize..8) {
            let split = split.min(frames.len());
            let mut base = None;
            let mut out = Vec::new();
            for part in [&frames[..split], &frames[split..]] {
                let from = base.clone().unwrap_or_default();
                let mut encoder = Encoder::new(base.take());
                for f in part {
                    encoder.push(f.clone());
                }
                let (bytes, last) = encoder.finish(&mut Packer::new(3).unwrap()).unwrap();
                let mut decoder = Decoder::new(&bytes, from).unwrap();
                while let Some(f) = decoder.next().unwrap() {
                    out.push(f.clone());
                }
                let read = decoder.into_last();
                prop_assert_eq!(&read.counts, &last.counts);
                base = Some(last);
            }
            prop_assert_eq!(out.len(), frames.len());
            for (a, b) in out.iter().zip(&frames) {
                prop_assert!(same(a, b), "{:?}\n{:?}", a, b);
            }
        }

        #[test]
        fn damaged_bytes_do_no_harm(frames in snapshots(), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
            let mut encoder = Encoder::new(None);
            for f in frames {
                encoder.push(f);
            }
            let (packed, _) = encoder.finish(&mut Packer::new(3).unwrap()).unwrap();
            // Behind zstd, so that the damage reaches our own decoder.
            let mut bytes = zstd::bulk::decompress(&packed, 1 << 24).unwrap();
            for (i, b) in flips {
                let i = i.index(bytes.len());
                bytes[i] ^= b;
            }
            let packed = zstd::bulk::compress(&bytes, 1).unwrap();
            if let Some(mut d) = Decoder::new(&packed, Frame::default()) {
                while let Ok(Some(f)) = d.next() {
                    prop_assert_eq!(f.values.len(), f.ids.len() * f.layout.width);
                }
            }
        }

        #[test]
        fn any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(mut decoder) = Decoder::new(&bytes, Frame::default()) {
                while let Ok(Some(_)) = decoder.next() {}
            }
        }
    }

    #[test]
    fn an_unchanged_snapshot_costs_a_few_bytes() {
        let layout = Layout {
            header: 1,
            width: 4,
            rate: 524_288,
        };
        let rows: Vec<_> = (0..1000)
            .map(|i| (i, 16, vec![40_000, 640_000, 0, 0]))
            .collect();
        let mut e = Encoder::new(None);
        for i in 0..100 {
            e.push(frame(i * 30_000, layout, &rows));
        }
        let (bytes, _) = e.finish(&mut Packer::new(9).unwrap()).unwrap();
        assert!(bytes.len() < 800, "{}", bytes.len());
    }
}
