//! Spans, and the objects in them.
//!
//! A span (`runtime.mspan`) is a run of pages with objects of one size. Each of its
//! places holds an object or is free: places below `freeindex` are taken, later ones as
//! `allocBits` says. Objects are numbered through all spans, ascending by address.

use super::damaged;
use super::image::Image;
use super::memory::Window;
use crate::{Error, Warning};

/// Bytes of a page of Go's heap.
pub(crate) const PAGE: u64 = 8 << 10;
/// Pages of an arena, the unit of the table from addresses to spans.
const ARENA_PAGES: u64 = 8 << 10;
const ARENA: u64 = PAGE * ARENA_PAGES;
/// Addresses of user space on the machines that are read.
const ADDRESSES: u64 = 1 << 48;
/// Bytes of all spans that are read.
const MAX_HEAP: u64 = 1 << 42;
/// The largest size of objects whose pointers the span itself tells (Go 1.22 or newer).
const MAX_BITMAP_OBJECT: u64 = 512;
/// Bytes of `runtime.spanInlineMarkBits`, at the end of spans of small objects.
const INLINE_MARKS: u64 = 128;
/// A record of a span (`runtime.mspan`) has at least that many bytes.
const MIN_RECORD: u64 = 96;
/// `runtime.mSpanInUse`.
const IN_USE: u8 = 1;

/// Where the pointers of a span's objects are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pointers {
    /// There are none.
    None,
    /// By a bitmap of the arena (Go 1.21).
    ArenaBitmap,
    /// By a bitmap in the span, so far from its start.
    SpanBitmap(u64),
    /// By the type that the first word of each object names.
    Header,
    /// By the type of the span's only object; 0 while it is being made.
    LargeType(u64),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) start: u64,
    /// Bytes of all its pages.
    pub(crate) bytes: u64,
    /// Bytes of an object's place.
    pub(crate) size: u64,
    /// Places.
    pub(crate) count: u32,
    /// 2^32 / size, rounded up: multiplying is quicker than dividing.
    reciprocal: u64,
    pub(crate) pointers: Pointers,
    /// First record about an object (`runtime.special`), 0 for none.
    pub(crate) specials: u64,
    /// Where its places start in [`Spans::taken`], in words of 64 places.
    first_word: u32,
    /// Words of [`Spans::taken`] that it has.
    words: u32,
}

impl Span {
    /// Whether the objects of this span start with 8 bytes of their own.
    pub(crate) fn has_headers(&self) -> bool {
        self.pointers == Pointers::Header
    }

    /// How many bytes of an object come before its value.
    pub(crate) fn header(&self) -> u64 {
        if self.has_headers() { 8 } else { 0 }
    }
}

/// A place of an object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) node: u32,
    /// Bytes from the start of the object's value.
    pub(crate) offset: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Spans {
    /// Ascending by address.
    pub(crate) list: Vec<Span>,
    /// For each place, whether there is an object; each span starts a word.
    taken: Vec<u64>,
    /// For each place, whether its object had been found alive by the last collection.
    survived: Vec<u64>,
    /// The number of the first object of each word of `taken`.
    ranks: Vec<u32>,
    /// Number of a table in `pages` for each arena from `first_arena` on, 0 for none.
    arenas: Vec<u32>,
    first_arena: u64,
    /// Tables of [`ARENA_PAGES`]: number of the span of each page, plus 1.
    pages: Vec<u32>,
    objects: u32,
    /// Bytes of spans with objects, and of those of stacks.
    pub(crate) bytes: u64,
    pub(crate) stack_bytes: u64,
    /// Bytes of objects that the runtime has made in spans of its caches and not counted yet.
    pub(crate) uncounted: u64,
}

impl Spans {
    /// Reads all spans.
    ///
    /// # Errors
    /// Where the table of spans cannot be read.
    pub(crate) fn read(
        window: &Window<'_>,
        image: &Image,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self, Error> {
        let layout = &image.layout;
        let heap = image.variable("mheap_")?;
        let (table, count, capacity) =
            window.slice(heap.wrapping_add(layout.at("mheap.allspans")?))?;
        let record = layout.size("mspan")?.clamp(MIN_RECORD, 1 << 10);
        // Each span has a record of its own.
        if count > capacity || count > (ADDRESSES / PAGE).min(window.size() / MIN_RECORD) {
            return Err(damaged("the table of spans"));
        }
        let generation = window.u32(heap.wrapping_add(layout.at("mheap.sweepgen")?))?;
        let fields = Fields::of(image)?;
        let pointers = window.bytes(table, count.saturating_mul(8), u64::MAX)?;
        let mut found: Vec<(Span, Bits)> = Vec::new();
        let mut bytes = vec![0; record as usize];
        let (mut stack_bytes, mut unreadable, mut uncounted) = (0_u64, 0_u64, 0_u64);
        for pointer in pointers.as_chunks::<8>().0 {
            let address = u64::from_le_bytes(*pointer);
            if window.read(address, &mut bytes).is_err() {
                unreadable += 1;
                continue;
            }
            match fields.span(&bytes, generation) {
                Some(Kind::Objects(span, bits)) => {
                    uncounted = uncounted.saturating_add(bits.uncounted);
                    found.push((span, bits));
                }
                Some(Kind::Stack(size)) => stack_bytes = stack_bytes.saturating_add(size),
                None => {}
            }
        }
        if unreadable > 0 {
            warnings.push(Warning::Heap {
                what: format!("{unreadable} of {count} spans could not be read"),
            });
        }
        let mut spans = Self::build(found, window, stack_bytes, warnings)?;
        spans.uncounted = uncounted;
        Ok(spans)
    }

    fn build(
        mut found: Vec<(Span, Bits)>,
        window: &Window<'_>,
        stack_bytes: u64,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self, Error> {
        // What is not mapped holds no objects.
        let all = found.len();
        found.retain(|(s, _)| window.has(s.start, s.bytes));
        if found.len() < all {
            warnings.push(Warning::Heap {
                what: format!("{} spans lie outside of the memory", all - found.len()),
            });
        }
        found.sort_unstable_by_key(|(s, _)| s.start);
        let mut end = 0;
        let before = found.len();
        found.retain(|(s, _)| {
            let apart = s.start >= end;
            if apart {
                end = s.start + s.bytes;
            }
            apart
        });
        if found.len() < before {
            warnings.push(Warning::Heap {
                what: format!("{} spans overlap others", before - found.len()),
            });
        }
        let bytes: u64 = found.iter().map(|(s, _)| s.bytes).sum();
        if bytes > MAX_HEAP {
            return Err(Error::HeapTooLarge { what: "bytes" });
        }
        // Records of spans, their bitmaps and their marks lie in tables of their own.
        let bitmaps = [window.beside(), window.beside(), window.beside()];
        let mut spans = Self {
            first_arena: found.first().map_or(0, |(s, _)| s.start / ARENA),
            stack_bytes,
            ..Self::default()
        };
        spans.list.reserve_exact(found.len());
        for (mut span, bits) in found {
            let Ok(first_word) = u32::try_from(spans.taken.len()) else {
                return Err(Error::HeapTooLarge { what: "objects" });
            };
            span.first_word = first_word;
            span.words = span.count.div_ceil(64);
            spans.objects_of(&span, bits, &bitmaps);
            spans.map_pages(&span, spans.list.len() as u32 + 1);
            spans.bytes += span.bytes;
            spans.list.push(span);
        }
        let mut rank = 0_u64;
        for word in &spans.taken {
            spans.ranks.push(u32::try_from(rank).unwrap_or(u32::MAX));
            rank += u64::from(word.count_ones());
        }
        spans.objects = u32::try_from(rank).map_err(|_| Error::HeapTooLarge { what: "objects" })?;
        Ok(spans)
    }

    /// Which places of the span hold objects.
    fn objects_of(&mut self, span: &Span, bits: Bits, windows: &[Window<'_>; 3]) {
        let length = u64::from(span.count).div_ceil(8) as usize;
        let bitmap = |window: &Window<'_>, address: u64| {
            let mut bytes = vec![0; length.next_multiple_of(8)];
            let read = window.read(address, &mut bytes[..length]);
            (address != 0 && read.is_ok()).then_some(bytes)
        };
        let allocated = bitmap(&windows[0], bits.allocated);
        let marked = if bits.swept {
            None
        } else {
            bitmap(&windows[1], bits.marked)
        };
        let inline = if bits.swept {
            None
        } else {
            bitmap(&windows[2], bits.inline)
        };
        for i in 0..span.words {
            let word = |bytes: &Option<Vec<u8>>| -> u64 {
                let word = bytes
                    .as_ref()
                    .and_then(|b| b.as_chunks::<8>().0.get(i as usize));
                word.map_or(0, |b| u64::from_le_bytes(*b))
            };
            let below = |n: u32| -> u64 {
                match n.saturating_sub(64 * i) {
                    64.. => u64::MAX,
                    n => (1 << n) - 1,
                }
            };
            let (old, all) = (word(&allocated), below(span.count));
            let taken = (old | below(bits.free_index)) & all;
            self.taken.push(taken);
            // Until a span is swept, its marks tell what the collection found.
            let alive = if bits.swept {
                old
            } else {
                word(&marked) | word(&inline)
            };
            self.survived.push(alive & taken);
        }
    }

    fn map_pages(&mut self, span: &Span, number: u32) {
        let first = span.start / PAGE;
        for page in first..first + span.bytes / PAGE {
            let arena = (page / ARENA_PAGES - self.first_arena) as usize;
            if arena >= self.arenas.len() {
                self.arenas.resize(arena + 1, 0);
            }
            if self.arenas[arena] == 0 {
                self.pages
                    .resize(self.pages.len() + ARENA_PAGES as usize, 0);
                self.arenas[arena] = (self.pages.len() / ARENA_PAGES as usize) as u32;
            }
            let table = (self.arenas[arena] as usize - 1) * ARENA_PAGES as usize;
            self.pages[table + (page % ARENA_PAGES) as usize] = number;
        }
    }

    /// How many objects there are.
    pub(crate) fn len(&self) -> u32 {
        self.objects
    }

    /// The span that an address lies in, by its place in the list.
    pub(crate) fn span_at(&self, address: u64) -> Option<usize> {
        let arena = (address / ARENA).checked_sub(self.first_arena)?;
        let table = *self.arenas.get(usize::try_from(arena).ok()?)?;
        let table = (table.checked_sub(1)? as u64) * ARENA_PAGES;
        let page = table + address / PAGE % ARENA_PAGES;
        (self.pages[page as usize] as usize).checked_sub(1)
    }

    /// The object at or around an address.
    #[inline]
    pub(crate) fn object_at(&self, address: u64) -> Option<Place> {
        let span = &self.list[self.span_at(address)?];
        let offset = address - span.start;
        let index = span.index(offset);
        if index >= u64::from(span.count) {
            return None;
        }
        let (word, bit) = (span.first_word as usize + index as usize / 64, index % 64);
        let taken = self.taken[word];
        if taken >> bit & 1 == 0 {
            return None;
        }
        let before = (taken & ((1 << bit) - 1)).count_ones();
        let within = offset.wrapping_sub(index * span.size);
        (within < span.size).then(|| Place {
            node: self.ranks[word] + before,
            offset: within.saturating_sub(span.header()),
        })
    }

    /// The number of the first object of a span, and the index of each of its objects in
    /// the span with whether it had been found alive by the last collection.
    pub(crate) fn objects(&self, span: &Span) -> (u32, impl Iterator<Item = (u32, bool)>) {
        let first = span.first_word as usize;
        let rank = self.ranks.get(first).copied().unwrap_or(self.objects);
        let words = first..first + span.words as usize;
        let objects = words.zip(0_u32..).flat_map(move |(word, i)| {
            let (mut taken, survived) = (self.taken[word], self.survived[word]);
            std::iter::from_fn(move || {
                let bit = taken.trailing_zeros();
                if bit == 64 {
                    return None;
                }
                taken &= taken - 1;
                Some((64 * i + bit, survived >> bit & 1 == 1))
            })
        });
        (rank, objects)
    }
}

impl Span {
    /// The place that the byte at an offset belongs to.
    #[inline]
    fn index(&self, offset: u64) -> u64 {
        if self.reciprocal == 0 {
            offset / self.size
        } else {
            (offset * self.reciprocal) >> 32
        }
    }
}

/// Where the bitmaps of a span are.
#[derive(Clone, Copy, Debug)]
struct Bits {
    allocated: u64,
    marked: u64,
    /// More marks, in the span itself; 0 where there are none.
    inline: u64,
    free_index: u32,
    swept: bool,
    /// Bytes of objects made since a cache took the span; 0 where none has it.
    uncounted: u64,
}

enum Kind {
    Objects(Span, Bits),
    /// Bytes of stacks.
    Stack(u64),
}

/// Offsets of what is read of `runtime.mspan`.
struct Fields {
    start: usize,
    pages: usize,
    elements: (usize, bool),
    free_index: (usize, bool),
    allocated: usize,
    marked: usize,
    sweep_generation: usize,
    /// Objects now, and before a cache took the span (both 16 bits).
    counts: (usize, usize),
    class: usize,
    state: usize,
    element_size: usize,
    specials: usize,
    large_type: Option<usize>,
    inline_marks: bool,
}

impl Fields {
    fn of(image: &Image) -> Result<Self, Error> {
        let at = |name: &str| -> Result<usize, Error> {
            Ok(image.layout.at(&format!("mspan.{name}"))? as usize)
        };
        let large_type = image.layout.find("mspan.largeType").map(|o| o as usize);
        // They became uint16 with the field after them.
        let narrow = at("freeIndexForScan")?.saturating_sub(at("freeindex")?) < 8;
        Ok(Self {
            start: at("startAddr")?,
            pages: at("npages")?,
            elements: (at("nelems")?, narrow),
            free_index: (at("freeindex")?, narrow),
            allocated: at("allocBits")?,
            marked: at("gcmarkBits")?,
            sweep_generation: at("sweepgen")?,
            counts: (at("allocCount")?, at("allocCountBeforeCache")?),
            class: at("spanclass")?,
            state: at("state")?,
            element_size: at("elemsize")?,
            specials: at("specials")?,
            large_type,
            inline_marks: image.has_inline_marks(),
        })
    }

    /// `None` for a span that is free, or whose numbers do not fit together.
    fn span(&self, bytes: &[u8], generation: u32) -> Option<Kind> {
        let word = |at: usize| -> Option<u64> {
            let field = bytes.get(at..at.checked_add(8)?)?;
            Some(u64::from_le_bytes(field.try_into().ok()?))
        };
        let number = |(at, narrow): (usize, bool)| {
            Some(if narrow {
                word(at)? & 0xffff
            } else {
                word(at)?
            })
        };
        let (start, size) = (word(self.start)?, word(self.element_size)?);
        let length = word(self.pages)?.checked_mul(PAGE)?;
        let end = start.checked_add(length)?;
        if !start.is_multiple_of(PAGE) || end > ADDRESSES || length == 0 || start == 0 {
            return None;
        }
        let state = *bytes.get(self.state)?;
        if state != IN_USE {
            // Manually managed memory is stacks, and a little of the runtime's own.
            return (state == 2).then_some(Kind::Stack(length));
        }
        let count = number(self.elements)?;
        if size == 0 || !size.is_multiple_of(8) || count == 0 || count.checked_mul(size)? > length {
            return None;
        }
        let class = *bytes.get(self.class)?;
        let large = class >> 1 == 0;
        let inline = if self.inline_marks && (16..=MAX_BITMAP_OBJECT).contains(&size) {
            INLINE_MARKS
        } else {
            0
        };
        let pointers = if class & 1 == 1 {
            Pointers::None
        } else if let Some(at) = self.large_type {
            if size <= MAX_BITMAP_OBJECT {
                Pointers::SpanBitmap(length.checked_sub(length / 64 + inline)?)
            } else if large {
                Pointers::LargeType(word(at)?)
            } else {
                Pointers::Header
            }
        } else {
            Pointers::ArenaBitmap
        };
        let generation_of_span = u32::try_from(word(self.sweep_generation)? & 0xffff_ffff).ok()?;
        let span = Span {
            start,
            bytes: length,
            size,
            count: u32::try_from(count).ok()?,
            // Exact for the spans of small objects, which are some pages long.
            reciprocal: if length <= 1 << 17 {
                (u64::from(u32::MAX) / size) + 1
            } else {
                0
            },
            pointers,
            specials: word(self.specials)?,
            first_word: 0,
            words: 0,
        };
        let since_sweep = generation_of_span.wrapping_sub(generation);
        let made = number((self.counts.0, true))?.checked_sub(number((self.counts.1, true))?);
        let bits = Bits {
            allocated: word(self.allocated)?,
            marked: word(self.marked)?,
            inline: if inline > 0 {
                end - inline + INLINE_MARKS / 2
            } else {
                0
            },
            free_index: number(self.free_index)?.min(count) as u32,
            // sweepgen - 2: to be swept; - 1: being swept; + 1: cached before, to be swept.
            swept: matches!(since_sweep, 0 | 3),
            uncounted: match made {
                Some(made) if matches!(since_sweep, 1 | 3) => made.saturating_mul(size),
                _ => 0,
            },
        };
        Some(Kind::Objects(span, bits))
    }
}
