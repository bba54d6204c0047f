//! What each object leads to: all spans are read once, in the order of their addresses.

use hashbrown::HashMap;
use std::ops::Range;
use std::sync::Arc;

use memtrace_model::{EdgeSlot, Packed};
use rayon::prelude::*;

use super::image::Image;
use super::masks::{self, ArenaBits, Mask, Masks};
use super::memory::{Memory, Window};
use super::spans::{Pointers, Span, Spans};
use crate::{Error, Warning};

/// Bytes that are read at a time.
const BATCH: u64 = 1 << 20;
/// Batches that are held before they are joined to the graph.
const WAVE: usize = 64;

/// Something that an object's words tell of a type.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hint {
    /// The allocator says that this object is made of the type at an address.
    Own(u32, u64),
    /// An interface holds this object, as the type or itab at an address.
    Held(u32, u64),
    /// Its first word is an address in the code.
    Code(u32, u64),
}

/// The edges of all objects.
#[derive(Debug, Default)]
pub(crate) struct Edges {
    /// One longer than there are objects.
    pub(crate) starts: Vec<u32>,
    pub(crate) targets: Vec<u32>,
    pub(crate) slots: Packed<EdgeSlot>,
}

/// Where words that tell types may point.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    pub(crate) types: Vec<Range<u64>>,
    pub(crate) text: Vec<Range<u64>>,
    pub(crate) itabs: HashMap<u64, u64>,
    /// From the lowest to the highest of `itabs`.
    pub(crate) itab_range: Range<u64>,
}

impl Places {
    fn tells_type(&self, word: u64) -> bool {
        word.is_multiple_of(8)
            && (self.types.iter().any(|r| r.contains(&word))
                || self.itab_range.contains(&word) && self.itabs.contains_key(&word))
    }

    fn is_code(&self, word: u64) -> bool {
        self.text.iter().any(|r| r.contains(&word))
    }
}

/// What a batch of spans gives.
#[derive(Default)]
struct Batch {
    /// Edges of each object.
    counts: Vec<u32>,
    targets: Vec<u32>,
    slots: Vec<EdgeSlot>,
    hints: Vec<Hint>,
    unread: u64,
}

/// Reads all objects that hold pointers.
///
/// # Errors
/// More edges than can be numbered.
pub(crate) fn edges(
    memory: &dyn Memory,
    image: &Image,
    spans: &Spans,
    places: &Places,
    mut hint: impl FnMut(Hint),
    warnings: &mut Vec<Warning>,
) -> Result<Edges, Error> {
    let masks = Masks::new(image);
    let mut edges = Edges::default();
    edges.starts.reserve_exact(spans.len() as usize + 1);
    // Without a word on how many there are: one large piece grows in place, small ones leave holes.
    edges.targets.reserve(spans.len() as usize);
    edges.slots.reserve(spans.len() as usize);
    edges.starts.push(0);
    let mut unread = 0;
    let batches = batches(&spans.list);
    for wave in batches.chunks(WAVE) {
        let done: Vec<Batch> = wave
            .par_iter()
            .map(|range| {
                let mut reader = Reader {
                    memory,
                    image,
                    spans,
                    places,
                    masks: &masks,
                    near: HashMap::new(),
                    batch: Batch::default(),
                };
                reader.batch(range.clone());
                reader.batch
            })
            .collect();
        for batch in done {
            let mut end = edges.targets.len() as u64;
            for count in batch.counts {
                end += u64::from(count);
                let end =
                    u32::try_from(end).map_err(|_| Error::HeapTooLarge { what: "pointers" })?;
                edges.starts.push(end);
            }
            edges.targets.extend(batch.targets);
            edges.slots.extend(batch.slots);
            batch.hints.into_iter().for_each(&mut hint);
            unread += batch.unread;
        }
    }
    if unread > 0 {
        warnings.push(Warning::Heap {
            what: format!("{unread} bytes of the heap could not be read"),
        });
    }
    Ok(edges)
}

/// Spans side by side that are read together; a long one by itself.
fn batches(spans: &[Span]) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut bytes = 0;
    for (i, span) in spans.iter().enumerate() {
        match batches.last_mut() {
            Some(batch) if bytes + span.bytes <= BATCH => batch.end = i + 1,
            _ => {
                batches.push(i..i + 1);
                bytes = 0;
            }
        }
        bytes += span.bytes;
    }
    batches
}

struct Reader<'a> {
    memory: &'a dyn Memory,
    image: &'a Image,
    spans: &'a Spans,
    places: &'a Places,
    masks: &'a Masks<'a>,
    near: HashMap<u64, Option<Arc<Mask>>>,
    batch: Batch,
}

impl Reader<'_> {
    fn batch(&mut self, range: Range<usize>) {
        let spans = &self.spans.list[range];
        let mut buffer = Vec::new();
        let mut held = 0..0;
        for (i, span) in spans.iter().enumerate() {
            if span.pointers == Pointers::None {
                let objects = self.spans.objects(span).1.count();
                self.batch
                    .counts
                    .resize(self.batch.counts.len() + objects, 0);
                continue;
            }
            if span.bytes > BATCH {
                self.long(span);
                continue;
            }
            if !(held.start <= span.start && span.start + span.bytes <= held.end) {
                // As many of those that follow without a gap as hold pointers.
                let mut end = span.start;
                for next in &spans[i..] {
                    if next.start != end || next.pointers == Pointers::None || next.bytes > BATCH {
                        break;
                    }
                    end += next.bytes;
                }
                held = span.start..end;
                buffer.resize((end - span.start) as usize, 0);
                if self.memory.read(span.start, &mut buffer).is_err() {
                    held = 0..0;
                    buffer.resize(span.bytes as usize, 0);
                    if self.memory.read(span.start, &mut buffer).is_err() {
                        self.batch.unread += span.bytes;
                        let objects = self.spans.objects(span).1.count();
                        self.batch
                            .counts
                            .resize(self.batch.counts.len() + objects, 0);
                        continue;
                    }
                    held = span.start..span.start + span.bytes;
                }
            }
            let at = (span.start - held.start) as usize;
            self.span(span, &buffer[at..at + span.bytes as usize]);
        }
    }

    fn span(&mut self, span: &Span, bytes: &[u8]) {
        let window = Window::new(self.memory);
        let bits = match span.pointers {
            Pointers::ArenaBitmap => ArenaBits::read(&window, self.image, span),
            _ => None,
        };
        let (first, objects) = self.spans.objects(span);
        for (node, (index, _)) in (first..).zip(objects) {
            let before = self.batch.targets.len();
            let start = u64::from(index) * span.size;
            let object = &bytes[start as usize..(start + span.size) as usize];
            match span.pointers {
                Pointers::None => {}
                Pointers::SpanBitmap(_) => {
                    let mut last = None;
                    masks::in_span(span, bytes, index, |o| {
                        self.pointer(object, o, &mut last);
                    });
                    self.code(node, object);
                }
                Pointers::ArenaBitmap => {
                    let mut last = None;
                    if let Some(bits) = &bits {
                        bits.each(start, start + span.size, |o| {
                            self.pointer(object, o - start, &mut last);
                        });
                    }
                    self.code(node, object);
                }
                Pointers::Header => {
                    let kind = word(object, 0);
                    self.typed(node, &window, kind, &object[8..]);
                }
                Pointers::LargeType(kind) => self.typed(node, &window, kind, object),
            }
            self.batch
                .counts
                .push((self.batch.targets.len() - before) as u32);
        }
    }

    fn typed(&mut self, node: u32, window: &Window<'_>, kind: u64, value: &[u8]) {
        // 0 while the object is being made.
        if kind == 0 {
            return;
        }
        self.batch.hints.push(Hint::Own(node, kind));
        if let Some(mask) = self
            .masks
            .get(&mut self.near, window, kind, value.len() as u64)
        {
            let mut last = None;
            mask.each(value.len() as u64, |o| self.pointer(value, o, &mut last));
        }
    }

    /// A span of one object that is too long to be held.
    fn long(&mut self, span: &Span) {
        let window = Window::new(self.memory);
        let (mask, bits) = match span.pointers {
            Pointers::LargeType(kind) => (
                self.masks.get(&mut self.near, &window, kind, span.size),
                None,
            ),
            Pointers::ArenaBitmap => (None, ArenaBits::read(&window, self.image, span)),
            _ => (None, None),
        };
        let (first, objects) = self.spans.objects(span);
        for (node, (index, _)) in (first..).zip(objects) {
            if let Pointers::LargeType(kind @ 1..) = span.pointers {
                self.batch.hints.push(Hint::Own(node, kind));
            }
            let before = self.batch.targets.len();
            let start = u64::from(index) * span.size;
            let mut piece = Piece {
                memory: self.memory,
                object: span.start + start,
                size: span.size,
                from: 0,
                bytes: Vec::new(),
                unread: 0,
            };
            let mut last = None;
            let mut each = |o: u64| {
                if let Some((before, value)) = piece.words(o) {
                    self.found(o, before, value, &mut last);
                }
            };
            if let Some(mask) = &mask {
                mask.each(span.size, &mut each);
            } else if let Some(bits) = &bits {
                bits.each(start, start + span.size, |o| each(o - start));
            }
            self.batch.unread += piece.unread;
            self.batch
                .counts
                .push((self.batch.targets.len() - before) as u32);
        }
    }

    #[inline]
    fn pointer(&mut self, object: &[u8], offset: u64, last: &mut Option<u64>) {
        let before = match offset.checked_sub(8) {
            Some(at) => word(object, at as usize),
            None => 0,
        };
        self.found(offset, before, word(object, offset as usize), last);
    }

    /// A pointer, the word before it, and where the last pointer of the object was.
    #[inline]
    fn found(&mut self, offset: u64, before: u64, value: u64, last: &mut Option<u64>) {
        let after_pointer = offset >= 8 && *last == Some(offset - 8);
        *last = Some(offset);
        if value == 0 {
            return;
        }
        let Some(place) = self.spans.object_at(value) else {
            return;
        };
        self.batch.targets.push(place.node);
        self.batch
            .slots
            .push(EdgeSlot::new(offset, place.offset != 0));
        // The first word of an interface is no pointer for the collector.
        if place.offset == 0 && !after_pointer && self.places.tells_type(before) {
            self.batch.hints.push(Hint::Held(place.node, before));
        }
    }

    #[inline]
    fn code(&mut self, node: u32, object: &[u8]) {
        let first = word(object, 0);
        if self.places.is_code(first) {
            self.batch.hints.push(Hint::Code(node, first));
        }
    }
}

/// A long object, held piece by piece.
struct Piece<'a> {
    memory: &'a dyn Memory,
    object: u64,
    size: u64,
    /// Where in the object `bytes` start.
    from: u64,
    bytes: Vec<u8>,
    unread: u64,
}

impl Piece<'_> {
    /// The word before an offset, and the one at it. Offsets ascend.
    fn words(&mut self, offset: u64) -> Option<(u64, u64)> {
        let end = self.from + self.bytes.len() as u64;
        if offset + 8 > end || offset < self.from {
            self.from = offset.saturating_sub(8);
            let length = BATCH.min(self.size.saturating_sub(self.from));
            self.bytes.resize(length as usize, 0);
            if self
                .memory
                .read(self.object + self.from, &mut self.bytes)
                .is_err()
            {
                self.bytes.fill(0);
                self.unread += length;
            }
        }
        let at = (offset - self.from) as usize;
        let value = word(&self.bytes, at);
        Some((at.checked_sub(8).map_or(0, |b| word(&self.bytes, b)), value))
    }
}

/// The word at an offset; 0 where there is none.
#[inline]
fn word(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..).and_then(|b| b.first_chunk::<8>());
    field.map_or(0, |f| u64::from_le_bytes(*f))
}
