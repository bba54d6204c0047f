//! The snapshot file, `.mtsnap`: a [`HeapGraph`] in compressed columns. Shapes only, no
//! contents of the process.
//!
//! ```text
//! file   magic (8 bytes), version (u32), block*, 255 (u8), number of blocks (u32)
//! block  column (u8), items (u32), length (u32), packed length (u32),
//!        checksum (u64), the packed bytes: zstd
//! ```
//! Integers around the items are little-endian. The checksum is XXH3 of the packed bytes with
//! `column << 32 | items` as the seed. A column is cut into blocks at about 1 MiB; an
//! item never lies in two. Items are variable-length integers, and what is close to the item
//! before it (addresses, the targets of edges) is kept as the difference. Blocks of columns
//! that a reader does not know are passed over: adding a column needs no new version.
//!
//! A file is read with memory in proportion to what it really holds, up to a limit that the
//! caller sets: a few kilobytes of zstd may stand for terabytes.

use std::io::{self, Read, Write};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::heap::{
    Allocated, ChannelUse, EdgeSlot, Goroutine, HeapField, HeapFrame, HeapFrameId, HeapGraph,
    HeapKind, HeapStackId, HeapType, HeapTypeId, MapUse, NodeId, Root, RootKind, SliceUse,
    WaitsFor,
};
use crate::{Lists, Time};

/// What a snapshot file begins with.
pub const MAGIC: [u8; 8] = *b"\x89mtsnap\n";
/// The version of the format that is written.
pub const VERSION: u32 = 1;

/// Bytes of a block from which on it is written.
const BLOCK: usize = 1 << 20;
/// Most bytes of a block, unpacked.
const LARGEST: usize = 16 << 20;
/// Most bytes of one item.
const LARGEST_ITEM: usize = LARGEST - BLOCK;
const LEVEL: i32 = 1;

/// Why a snapshot could not be read or written, sorted by who must act.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file is something else.
    #[error("not a memtrace snapshot")]
    NotASnapshot,
    /// Written by a newer memtrace: update this one.
    #[error(
        "the snapshot has format {found}, this memtrace knows formats up to {known}: update memtrace"
    )]
    Newer {
        /// Version of the file.
        found: u32,
        /// Newest version this program reads.
        known: u32,
    },
    /// The file ends too early: it was not written or copied to its end.
    #[error("the snapshot is cut off")]
    Truncated,
    /// The bytes are not those that were written.
    #[error("the snapshot is damaged: {0}")]
    Damaged(&'static str),
    /// It needs more memory than the caller allows.
    #[error("the snapshot needs more than {limit} bytes of memory")]
    TooLarge {
        /// What was allowed.
        limit: u64,
    },
    /// The graph holds something that the format cannot.
    #[error("the heap cannot be written: {0}")]
    Unwritable(&'static str),
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

use SnapshotError::Damaged;

type Result<T> = std::result::Result<T, SnapshotError>;

/// The columns, in the order in which they are written; the number of each is its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Column {
    Meta = 0,
    Strings,
    Fields,
    Types,
    Frames,
    Stacks,
    Roots,
    Words,
    Addresses,
    ObjectTypes,
    Survived,
    Degrees,
    Edges,
    Slots,
    Allocated,
    Tags,
    Goroutines,
    Maps,
    Channels,
    Slices,
}

const COLUMNS: [Column; 20] = [
    Column::Meta,
    Column::Strings,
    Column::Fields,
    Column::Types,
    Column::Frames,
    Column::Stacks,
    Column::Roots,
    Column::Words,
    Column::Addresses,
    Column::ObjectTypes,
    Column::Survived,
    Column::Degrees,
    Column::Edges,
    Column::Slots,
    Column::Allocated,
    Column::Tags,
    Column::Goroutines,
    Column::Maps,
    Column::Channels,
    Column::Slices,
];
const END: u8 = 255;

/// Whether a file that begins so is a snapshot.
#[must_use]
pub fn is_snapshot(start: &[u8]) -> bool {
    start.starts_with(&MAGIC)
}

/// Writes a graph that [`HeapGraph::check`] accepts. `progress` is told now and then which
/// share of it is done, from 0 to 1.
///
/// # Errors
/// [`SnapshotError::Unwritable`] where the graph does not fit together or a name has more than
/// 15 MiB, [`SnapshotError::Io`].
pub fn write(graph: &HeapGraph, out: &mut impl Write, progress: &mut dyn FnMut(f64)) -> Result<()> {
    graph.check().map_err(SnapshotError::Unwritable)?;
    out.write_all(&MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    let total = graph.object_count() * 5 + graph.edges.len() * 2 + 1;
    let mut w = Writer {
        out,
        packer: zstd::bulk::Compressor::new(LEVEL)?,
        column: Column::Meta,
        block: Vec::new(),
        items: 0,
        blocks: 0,
        done: 0,
        total: total as f64,
        progress,
    };
    w.graph(graph)?;
    let blocks = w.blocks;
    w.out.write_all(&[END])?;
    w.out.write_all(&blocks.to_le_bytes())?;
    w.out.flush()?;
    (w.progress)(1.0);
    Ok(())
}

struct Writer<'a, W> {
    out: &'a mut W,
    packer: zstd::bulk::Compressor<'static>,
    column: Column,
    block: Vec<u8>,
    items: u32,
    blocks: u32,
    done: u64,
    total: f64,
    progress: &'a mut dyn FnMut(f64),
}

impl<W: Write> Writer<'_, W> {
    fn graph(&mut self, g: &HeapGraph) -> Result<()> {
        let t = &g.totals;
        self.rows(Column::Meta, std::iter::once(()), |b, ()| {
            put_signed(b, g.taken.0);
            for v in [
                u64::from(g.pid),
                g.process_start,
                g.program.into(),
                g.runtime.into(),
            ] {
                put(b, v);
            }
            put(b, g.collections.into());
            put_option(b, t.heap_alloc);
            put_option(b, t.heap_marked);
            for v in [t.spans, t.stacks, t.profile_rate] {
                put(b, v);
            }
        })?;
        if g.strings.iter().any(|s| s.len() > LARGEST_ITEM) {
            return Err(SnapshotError::Unwritable("a name is too long"));
        }
        self.rows(Column::Strings, g.strings.iter().skip(1), |b, s| {
            put(b, s.len() as u64);
            b.extend_from_slice(s.as_bytes());
        })?;
        let too_long = g.fields.iter().any(|l| l.len() > LARGEST_ITEM / 10)
            || g.stacks.iter().any(|l| l.len() > LARGEST_ITEM / 5)
            || (g.goroutines.iter())
                .any(|g| g.waits_on.len() + 2 * g.labels.len() > LARGEST_ITEM / 5 - 100);
        if too_long {
            return Err(SnapshotError::Unwritable("a list is too long"));
        }
        self.rows(Column::Fields, g.fields.iter(), |b, list| {
            put(b, list.len() as u64);
            for f in list {
                put(b, f.offset.into());
                put(b, f.name.into());
            }
        })?;
        self.rows(Column::Types, g.heap_types.iter(), |b, t| {
            b.push(t.kind as u8 | u8::from(t.inferred) << 7);
            for v in [t.name, t.stride, t.fields] {
                put(b, v.into());
            }
        })?;
        self.rows(Column::Frames, g.frames.iter(), |b, f| {
            for v in [f.function, f.file, f.line] {
                put(b, v.into());
            }
        })?;
        self.rows(Column::Stacks, g.stacks.iter(), |b, list| {
            put(b, list.len() as u64);
            for f in list {
                put(b, f.0.into());
            }
        })?;
        self.rows(Column::Roots, g.roots.iter(), |b, r| {
            b.push(r.kind as u8);
            put(b, r.name.into());
            put_option(b, r.parent.map(u64::from));
            put(b, r.line.into());
        })?;
        self.rows(Column::Words, g.words.iter(), |b, w| put(b, w.into()))?;
        let mut end = 0u64;
        self.rows(
            Column::Addresses,
            g.addresses.iter().zip(g.words.iter()),
            |b, (a, w)| {
                put_address(b, a, end);
                end = end_of(a, w);
            },
        )?;
        self.rows(Column::ObjectTypes, g.types.iter(), |b, t| {
            put(b, t.0.into())
        })?;
        // Lengths of the runs of equal values, the first of them false.
        self.rows(Column::Survived, g.survived.runs(), |b, run| {
            put(b, run as u64)
        })?;
        let degrees = g.edge_starts.windows(2).map(|w| w[1] - w[0]);
        self.rows(Column::Degrees, degrees, |b, d| put(b, d.into()))?;
        let mut near = Near::of(&g.edge_starts);
        self.rows(Column::Edges, g.edges.iter(), |b, &to| {
            let from = near.next(to.0);
            put_signed(b, i64::from(to.0) - i64::from(from));
        })?;
        let mut near = Near::of(&g.edge_starts);
        self.rows(Column::Slots, g.edge_slots.iter(), |b, slot| {
            let bits = slot.bits().rotate_left(1);
            let from = near.next_in_row(bits);
            put_signed(b, i64::from(bits) - i64::from(from));
        })?;
        let mut last = 0;
        self.rows(Column::Allocated, g.allocated.iter(), |b, a| {
            put_node(b, a.node, &mut last);
            put(b, a.stack.0.into());
        })?;
        let mut last = 0;
        self.rows(Column::Tags, g.tags.iter(), |b, &(node, key, value)| {
            put_node(b, node, &mut last);
            put(b, key.into());
            put(b, value.into());
        })?;
        self.rows(Column::Goroutines, g.goroutines.iter(), put_goroutine)?;
        let mut last = 0;
        self.rows(Column::Maps, g.maps.iter(), |b, m| {
            put_node(b, m.node, &mut last);
            put(b, m.used);
            put(b, m.capacity);
        })?;
        let mut last = 0;
        self.rows(Column::Channels, g.channels.iter(), |b, c| {
            put_node(b, c.node, &mut last);
            put(b, c.used);
            put(b, c.capacity);
            put(b, c.waiting);
        })?;
        let mut last = 0;
        self.rows(Column::Slices, g.slices.iter(), |b, s| {
            put_node(b, s.node, &mut last);
            put(b, s.used);
            put(b, s.capacity);
        })
    }

    fn rows<T>(
        &mut self,
        column: Column,
        items: impl Iterator<Item = T>,
        mut put: impl FnMut(&mut Vec<u8>, T),
    ) -> Result<()> {
        self.column = column;
        for item in items {
            put(&mut self.block, item);
            self.items += 1;
            if self.block.len() >= BLOCK {
                self.flush()?;
            }
        }
        if self.items > 0 {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let packed = self.packer.compress(&self.block)?;
        self.out.write_all(&[self.column as u8])?;
        for n in [self.items, self.block.len() as u32, packed.len() as u32] {
            self.out.write_all(&n.to_le_bytes())?;
        }
        let hash = checksum(self.column as u8, self.items, &packed);
        self.out.write_all(&hash.to_le_bytes())?;
        self.out.write_all(&packed)?;
        self.done += u64::from(self.items);
        self.block.clear();
        self.items = 0;
        self.blocks = self.blocks.wrapping_add(1);
        (self.progress)((self.done as f64 / self.total).min(1.0));
        Ok(())
    }
}

/// Reads a graph. `limit` is how many bytes of memory it may take; it is passed by little
/// before reading ends with an error.
///
/// # Errors
/// All but [`SnapshotError::Unwritable`].
pub fn read(input: &mut impl Read, limit: u64) -> Result<HeapGraph> {
    let mut magic = [0u8; 8];
    match input.read_exact(&mut magic) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(SnapshotError::NotASnapshot);
        }
        other => other?,
    }
    if magic != MAGIC {
        return Err(SnapshotError::NotASnapshot);
    }
    let found = u32::from_le_bytes(exactly(input)?);
    if found > VERSION {
        return Err(SnapshotError::Newer {
            found,
            known: VERSION,
        });
    }
    if found == 0 {
        return Err(Damaged("it has no version"));
    }
    let mut reader = Reader::default();
    let mut unpacker = zstd::bulk::Decompressor::new()?;
    let (mut packed, mut block) = (Vec::new(), Vec::new());
    let mut blocks = 0u32;
    loop {
        let [column] = exactly(input)?;
        if column == END {
            if u32::from_le_bytes(exactly(input)?) != blocks {
                return Err(Damaged("a block is missing"));
            }
            break;
        }
        blocks = blocks.wrapping_add(1);
        let items = u32::from_le_bytes(exactly(input)?);
        let length = u32::from_le_bytes(exactly(input)?) as usize;
        let packed_length = u32::from_le_bytes(exactly(input)?) as usize;
        let hash = u64::from_le_bytes(exactly(input)?);
        if length > LARGEST || packed_length > LARGEST + LARGEST / 2 {
            return Err(Damaged("a block is too large"));
        }
        packed.clear();
        let read = input
            .by_ref()
            .take(packed_length as u64)
            .read_to_end(&mut packed)?;
        if read < packed_length {
            return Err(SnapshotError::Truncated);
        }
        if checksum(column, items, &packed) != hash {
            return Err(Damaged("a checksum is wrong"));
        }
        let Some(&column) = COLUMNS.get(usize::from(column)) else {
            continue;
        };
        block.clear();
        block.reserve(length);
        let unpacked = unpacker.decompress_to_buffer(&packed, &mut block);
        if unpacked.ok() != Some(length) {
            return Err(Damaged("a block does not unpack"));
        }
        reader.block(column, items, &block, limit)?;
    }
    reader.done()
}

fn checksum(column: u8, items: u32, packed: &[u8]) -> u64 {
    xxh3_64_with_seed(packed, u64::from(column) << 32 | u64::from(items))
}

fn exactly<const N: usize>(input: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0u8; N];
    match input.read_exact(&mut bytes) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(SnapshotError::Truncated),
        other => Ok(other.map(|()| bytes)?),
    }
}

/// What has been read so far.
#[derive(Default)]
struct Reader {
    graph: HeapGraph,
    seen: Option<Column>,
    /// End of the last object.
    end: u64,
    /// Whether the next run of ages is of survivors.
    survived: bool,
    targets: Near<Vec<u32>>,
    slots: Near<Vec<u32>>,
    /// The last node of the column that is being read.
    last: u32,
    /// Bytes of text and lists inside items, which the lengths of columns do not tell.
    inside: u64,
}

impl Reader {
    fn block(&mut self, column: Column, items: u32, block: &[u8], limit: u64) -> Result<()> {
        match self.seen {
            Some(seen) if seen > column => return Err(Damaged("columns are out of order")),
            Some(seen) if seen == column => {}
            _ => {
                self.last = 0;
                if matches!(column, Column::Edges | Column::Slots) {
                    self.complete_starts();
                    // Both columns need it, one after the other.
                    let starts = std::mem::take(&mut self.graph.edge_starts);
                    let (targets, slots) = (&mut self.targets, &mut self.slots);
                    let near = if column == Column::Edges {
                        targets
                    } else {
                        slots
                    };
                    *near = Near::of(starts.clone());
                    self.graph.edge_starts = starts;
                }
            }
        }
        self.seen = Some(column);
        let mut from = Cursor(block);
        for i in 0..items {
            if self.item(column, &mut from).is_none() {
                return Err(Damaged("an item is wrong"));
            }
            if i % 0x10000 == 0 && self.memory() > limit {
                return Err(SnapshotError::TooLarge { limit });
            }
        }
        if !from.0.is_empty() {
            return Err(Damaged("a block holds more than its items"));
        }
        if self.memory() > limit {
            return Err(SnapshotError::TooLarge { limit });
        }
        Ok(())
    }

    /// Reads one item; `None` where it is not one, or does not fit what came before.
    fn item(&mut self, column: Column, from: &mut Cursor<'_>) -> Option<()> {
        let g = &mut self.graph;
        match column {
            Column::Meta => {
                g.taken = Time(from.signed()?);
                g.pid = from.u32()?;
                g.process_start = from.u64()?;
                g.program = from.u32()?;
                g.runtime = from.u32()?;
                g.collections = from.u32()?;
                g.totals.heap_alloc = from.option()?;
                g.totals.heap_marked = from.option()?;
                g.totals.spans = from.u64()?;
                g.totals.stacks = from.u64()?;
                g.totals.profile_rate = from.u64()?;
            }
            Column::Strings => {
                let length = from.u64()?;
                let text = std::str::from_utf8(from.bytes(length)?).ok()?;
                let next = g.strings.len();
                if g.strings.intern(text) as usize != next {
                    return None;
                }
                self.inside += length;
            }
            Column::Fields => {
                let list = from.list(2, |from| {
                    let offset = from.u32()?;
                    Some(HeapField {
                        offset,
                        name: from.u32()?,
                    })
                })?;
                self.inside += 8 * list.len() as u64;
                intern_next(&mut g.fields, &list)?;
            }
            Column::Types => {
                let kind = from.byte()?;
                g.heap_types.push(HeapType {
                    kind: *HeapKind::ALL.get(usize::from(kind & 0x7f))?,
                    inferred: kind & 0x80 != 0,
                    name: from.u32()?,
                    stride: from.u32()?,
                    fields: from.u32()?,
                });
            }
            Column::Frames => g.frames.push(HeapFrame {
                function: from.u32()?,
                file: from.u32()?,
                line: from.u32()?,
            }),
            Column::Stacks => {
                let list = from.list(1, |from| from.u32().map(HeapFrameId))?;
                self.inside += 4 * list.len() as u64;
                intern_next(&mut g.stacks, &list)?;
            }
            Column::Roots => g.roots.push(Root {
                kind: *RootKind::ALL.get(usize::from(from.byte()?))?,
                name: from.u32()?,
                parent: from.option_u32()?,
                line: from.u32()?,
            }),
            Column::Words => g.words.push(from.u32()?),
            Column::Addresses => {
                let words = g.words.get(g.addresses.len())?;
                let address = from.address(self.end)?;
                self.end = end_of(address, words);
                g.addresses.push(address);
            }
            Column::ObjectTypes => g.types.push(HeapTypeId(from.u32()?)),
            Column::Survived => {
                let run = usize::try_from(from.u64()?).ok()?;
                let length = g.survived.len().checked_add(run)?;
                if length > g.words.len() {
                    return None;
                }
                g.survived.push_run(run, self.survived);
                self.survived = !self.survived;
            }
            Column::Degrees => {
                if g.edge_starts.is_empty() {
                    g.edge_starts.push(0);
                }
                let end = g.edge_starts.last()?.checked_add(from.u32()?)?;
                g.edge_starts.push(end);
            }
            Column::Edges => {
                let near = self.targets.before()?;
                let to = u32::try_from(i64::from(near).checked_add(from.signed()?)?).ok()?;
                self.targets.next(to);
                g.edges.push(NodeId(to));
            }
            Column::Slots => {
                let near = self.slots.before_in_row()?;
                let bits = u32::try_from(i64::from(near).checked_add(from.signed()?)?).ok()?;
                self.slots.next_in_row(bits);
                g.edge_slots.push(EdgeSlot::from_bits(bits.rotate_right(1)));
            }
            Column::Allocated => g.allocated.push(Allocated {
                node: from.node(&mut self.last)?,
                stack: HeapStackId(from.u32()?),
            }),
            Column::Tags => {
                let node = from.node(&mut self.last)?;
                g.tags.push((node, from.u32()?, from.u32()?));
            }
            Column::Goroutines => {
                let goroutine = from.goroutine()?;
                self.inside += 8 * (goroutine.waits_on.len() + goroutine.labels.len()) as u64;
                g.goroutines.push(goroutine);
            }
            Column::Maps => g.maps.push(MapUse {
                node: from.node(&mut self.last)?,
                used: from.u64()?,
                capacity: from.u64()?,
            }),
            Column::Channels => g.channels.push(ChannelUse {
                node: from.node(&mut self.last)?,
                used: from.u64()?,
                capacity: from.u64()?,
                waiting: from.u64()?,
            }),
            Column::Slices => g.slices.push(SliceUse {
                node: from.node(&mut self.last)?,
                used: from.u64()?,
                capacity: from.u64()?,
            }),
        }
        Some(())
    }

    /// Bytes that are needed for what has been read.
    fn memory(&self) -> u64 {
        fn of<T>(column: &[T]) -> u64 {
            size_of_val(column) as u64
        }
        let g = &self.graph;
        self.inside
            + (g.addresses.bytes() + g.words.bytes() + g.survived.bytes()) as u64
            + of(&g.types)
            + 2 * of(&g.edge_starts)
            + of(&g.edges)
            + g.edge_slots.bytes() as u64
            + of(&g.roots)
            + of(&g.heap_types)
            + of(&g.frames)
            + of(&g.allocated)
            + of(&g.tags)
            + of(&g.goroutines)
            + of(&g.maps)
            + of(&g.channels)
            + of(&g.slices)
            // Ends and index of each string and list.
            + 12 * (g.strings.len() + g.fields.len() + g.stacks.len()) as u64
    }

    fn complete_starts(&mut self) {
        if self.graph.edge_starts.is_empty() {
            self.graph.edge_starts.push(0);
        }
    }

    fn done(mut self) -> Result<HeapGraph> {
        self.complete_starts();
        self.graph.check().map_err(Damaged)?;
        Ok(self.graph)
    }
}

fn intern_next<T: Copy + Eq + std::hash::Hash>(lists: &mut Lists<T>, list: &[T]) -> Option<()> {
    let next = lists.len();
    (lists.intern(list)? as usize == next).then_some(())
}

/// What each edge is kept as the difference to: the edge before it of the same node, or the
/// node itself (nothing, for slots) where it is the first.
#[derive(Default)]
struct Near<S> {
    starts: S,
    row: usize,
    edge: u32,
    last: u32,
}

impl<S: AsRef<[u32]>> Near<S> {
    fn of(starts: S) -> Self {
        Self {
            starts,
            row: 0,
            edge: 0,
            last: 0,
        }
    }

    /// Whether the next edge is the first of its node; goes to that node. `None` when all
    /// edges have been told.
    fn is_first(&mut self) -> Option<bool> {
        let starts = self.starts.as_ref();
        let row = self.row;
        while *starts.get(self.row + 1)? <= self.edge {
            self.row += 1;
        }
        Some(self.row != row || starts[self.row] == self.edge)
    }

    fn before(&mut self) -> Option<u32> {
        let first = self.is_first()?;
        Some(if first { self.row as u32 } else { self.last })
    }

    fn before_in_row(&mut self) -> Option<u32> {
        let first = self.is_first()?;
        Some(if first { 0 } else { self.last })
    }

    /// What to take the difference to for an edge, which is told by this.
    fn next(&mut self, target: u32) -> u32 {
        let before = self.before().unwrap_or(0);
        self.edge += 1;
        self.last = target;
        before
    }

    fn next_in_row(&mut self, slot: u32) -> u32 {
        let before = self.before_in_row().unwrap_or(0);
        self.edge += 1;
        self.last = slot;
        before
    }
}

/// Where an object ends, as the address after it is predicted. Any value will do.
fn end_of(address: u64, words: u32) -> u64 {
    address.wrapping_add(u64::from(words) * 8)
}

/// Appends `v`, seven bits a byte, low bits first.
fn put(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

fn put_signed(out: &mut Vec<u8>, v: i64) {
    put(out, zigzag(v));
}

fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)) as u64
}

fn unzigzag(v: u64) -> i64 {
    (v >> 1) as i64 ^ -((v & 1) as i64)
}

/// 0 stands for nothing; the largest number is told as the last below.
fn put_option(out: &mut Vec<u8>, v: Option<u64>) {
    put(out, v.map_or(0, |v| v.saturating_add(1)));
}

/// Appends an address as its distance from where the object before it ends. That is mostly a
/// multiple of 8: its low bits, and the sign, go to the top.
fn put_address(out: &mut Vec<u8>, address: u64, near: u64) {
    put(
        out,
        zigzag(address.wrapping_sub(near) as i64).rotate_right(4),
    );
}

/// Appends a node that does not stand before the last one.
fn put_node(out: &mut Vec<u8>, node: NodeId, last: &mut u32) {
    put(out, u64::from(node.0.wrapping_sub(*last)));
    *last = node.0;
}

fn put_goroutine(out: &mut Vec<u8>, g: &Goroutine) {
    put(out, g.id);
    put(out, g.root.into());
    put(out, g.state.into());
    let waits_for = match g.waits_for {
        WaitsFor::NotBlocked => 0,
        WaitsFor::Objects => 1,
        WaitsFor::Nothing => 2,
        WaitsFor::Elsewhere => 3,
    };
    out.push(waits_for | u8::from(g.is_system) << 7);
    put(out, g.waits_on.len() as u64);
    for n in &g.waits_on {
        put(out, n.0.into());
    }
    put_option(out, g.waiting_ms);
    put(out, g.stack.0.into());
    put_option(out, g.created_by.map(|f| f.0.into()));
    put(out, g.stack_bytes);
    put(out, g.labels.len() as u64);
    for &(key, value) in &g.labels {
        put(out, key.into());
        put(out, value.into());
    }
}

/// Takes items off the front of a block.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    fn bytes(&mut self, length: u64) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(bytes)
    }

    /// The next integer; `None` when the bytes end or it does not fit 64 bits.
    fn u64(&mut self) -> Option<u64> {
        let mut v = 0u64;
        for (i, &byte) in self.0.iter().enumerate().take(10) {
            let part = u64::from(byte & 0x7f);
            if i == 9 && part > 1 {
                return None;
            }
            v |= part << (7 * i);
            if byte < 0x80 {
                self.0 = &self.0[i + 1..];
                return Some(v);
            }
        }
        None
    }

    fn u32(&mut self) -> Option<u32> {
        self.u64()?.try_into().ok()
    }

    fn signed(&mut self) -> Option<i64> {
        self.u64().map(unzigzag)
    }

    fn option(&mut self) -> Option<Option<u64>> {
        self.u64().map(|v| v.checked_sub(1))
    }

    fn option_u32(&mut self) -> Option<Option<u32>> {
        self.option()?.map(u32::try_from).transpose().ok()
    }

    fn address(&mut self, near: u64) -> Option<u64> {
        let away = unzigzag(self.u64()?.rotate_left(4));
        Some(near.wrapping_add(away as u64))
    }

    fn node(&mut self, last: &mut u32) -> Option<NodeId> {
        *last = last.checked_add(self.u32()?)?;
        Some(NodeId(*last))
    }

    /// A length and that many items of at least `least` bytes each.
    fn list<T>(
        &mut self,
        least: usize,
        mut item: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let length = usize::try_from(self.u64()?).ok()?;
        if length > self.0.len() / least {
            return None;
        }
        (0..length).map(|_| item(self)).collect()
    }

    fn goroutine(&mut self) -> Option<Goroutine> {
        let (id, root, state) = (self.u64()?, self.u32()?, self.u32()?);
        let waits_for = self.byte()?;
        Some(Goroutine {
            id,
            root,
            state,
            waits_for: match waits_for & 0x7f {
                0 => WaitsFor::NotBlocked,
                1 => WaitsFor::Objects,
                2 => WaitsFor::Nothing,
                3 => WaitsFor::Elsewhere,
                _ => return None,
            },
            is_system: waits_for & 0x80 != 0,
            waits_on: self.list(1, |from| from.u32().map(NodeId))?,
            waiting_ms: self.option()?,
            stack: HeapStackId(self.u32()?),
            created_by: self.option_u32()?.map(HeapFrameId),
            stack_bytes: self.u64()?,
            labels: self.list(2, |from| Some((from.u32()?, from.u32()?)))?,
        })
    }
}
