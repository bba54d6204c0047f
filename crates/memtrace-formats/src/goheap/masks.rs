//! Which words of an object are pointers.

use hashbrown::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use super::descriptor::{self, Descriptor};
use super::image::Image;
use super::memory::Window;
use super::spans::{Pointers, Span};

/// Bytes of an arena of Go 1.21, which has the bitmap of its words.
const ARENA: u64 = 64 << 20;
/// Added to an address before it is divided into arenas (amd64).
const ARENA_BASE: u64 = 0x8000_0000_0000;
/// The largest mask that is read: of a type of 32 GiB.
const MAX_MASK: u64 = 64 << 20;
/// Types within types that are looked at for masks that are not made yet, in all.
const MAX_STEPS: usize = 1 << 23;

/// The pointers of one value, and how far the next one is from it.
#[derive(Debug)]
pub(crate) struct Mask {
    pub(crate) size: u64,
    /// A bit for each word that is a pointer.
    words: Box<[u64]>,
}

impl Mask {
    fn of(
        window: &Window<'_>,
        image: &Image,
        descriptor: &Descriptor,
        steps: &AtomicUsize,
    ) -> Option<Self> {
        let bytes = descriptor.pointer_bytes.div_ceil(64);
        let is_aligned = descriptor.pointer_bytes == 0 || descriptor.size.is_multiple_of(8);
        if bytes > MAX_MASK || descriptor.size == 0 || !is_aligned {
            return None;
        }
        let mut words: Box<[u64]> = match descriptor.mask(window, image) {
            Some(at) => {
                let mut mask = window.bytes(at, bytes, MAX_MASK).ok()?;
                mask.resize(mask.len().next_multiple_of(8), 0);
                let words = mask.as_chunks::<8>().0.iter();
                words.map(|w| u64::from_le_bytes(*w)).collect()
            }
            None => descriptor::pointer_words(window, descriptor, steps)?,
        };
        // The mask is told in bytes; what is beyond the type is none of it.
        let used = descriptor.pointer_bytes / 8 % 64;
        if used != 0
            && let Some(last) = words.last_mut()
        {
            *last &= (1 << used) - 1;
        }
        Some(Self {
            size: descriptor.size,
            words,
        })
    }

    /// Gives the offset of each pointer among the `bytes` of values side by side.
    pub(crate) fn each(&self, bytes: u64, mut sink: impl FnMut(u64)) {
        let mut start = 0;
        while start < bytes && !self.words.is_empty() {
            for (i, &word) in (0_u64..).zip(&self.words) {
                let mut word = word;
                while word != 0 {
                    let offset = start + 8 * (64 * i + u64::from(word.trailing_zeros()));
                    if offset + 8 > bytes {
                        return;
                    }
                    sink(offset);
                    word &= word - 1;
                }
            }
            start += self.size;
        }
    }
}

/// Masks of types, read once each.
pub(crate) struct Masks<'a> {
    image: &'a Image,
    known: Mutex<HashMap<u64, Option<Arc<Mask>>>>,
    /// How much more may be looked at of types whose mask the runtime has not made.
    steps: AtomicUsize,
}

impl<'a> Masks<'a> {
    pub(crate) fn new(image: &'a Image) -> Self {
        Self {
            image,
            known: Mutex::default(),
            steps: AtomicUsize::new(MAX_STEPS),
        }
    }

    /// The mask of the type at an address, of which an object of so many bytes is made; `None`
    /// where there is no type, or none that fits.
    pub(crate) fn get(
        &self,
        near: &mut HashMap<u64, Option<Arc<Mask>>>,
        window: &Window<'_>,
        address: u64,
        bytes: u64,
    ) -> Option<Arc<Mask>> {
        let fits = |mask: Option<Arc<Mask>>| mask.filter(|m| m.size <= bytes);
        if let Some(known) = near.get(&address) {
            return fits(known.clone());
        }
        let known = self.known.lock().ok()?.get(&address).cloned();
        let mask = match known {
            Some(known) => known,
            None => {
                let descriptor = Descriptor::read(window, address);
                // Its mask is not longer than the object deserves.
                if descriptor.as_ref().is_some_and(|d| d.size > bytes) {
                    return None;
                }
                let mask = descriptor.and_then(|d| Mask::of(window, self.image, &d, &self.steps));
                mask.map(Arc::new)
            }
        };
        near.insert(address, mask.clone());
        self.known.lock().ok()?.insert(address, mask.clone());
        fits(mask)
    }
}

/// The bitmap of the words of a span, as arenas of Go 1.21 have it.
pub(crate) struct ArenaBits {
    /// A bit for each word of the span.
    words: Vec<u64>,
    /// For each of `words`, whether the object of its last bit has no pointer after it.
    last: Vec<bool>,
}

impl ArenaBits {
    /// `None` where it cannot be read.
    pub(crate) fn read(window: &Window<'_>, image: &Image, span: &Span) -> Option<Self> {
        let heap = image.variable("mheap_").ok()?;
        let arenas = heap.wrapping_add(image.layout.at("mheap.arenas").ok()?);
        let bitmap = image.layout.at("heapArena.bitmap").ok()?;
        let more = image.layout.at("heapArena.noMorePtrs").ok()?;
        let (mut words, mut last) = (Vec::new(), Vec::new());
        let mut at = span.start;
        let second_level = window.u64(arenas).ok()?;
        while at < span.start + span.bytes {
            let number = at.wrapping_add(ARENA_BASE) / ARENA;
            let arena = window
                .u64(second_level.wrapping_add(8 * (number & 0x3f_ffff)))
                .ok()?;
            let (from, to) = (
                at % ARENA,
                (span.start + span.bytes - at).min(ARENA - at % ARENA),
            );
            let bits = window
                .bytes(
                    arena.wrapping_add(bitmap).wrapping_add(from / 64),
                    to / 64,
                    ARENA,
                )
                .ok()?;
            words.extend(
                bits.as_chunks::<8>()
                    .0
                    .iter()
                    .map(|w| u64::from_le_bytes(*w)),
            );
            let flags = window
                .bytes(
                    arena.wrapping_add(more).wrapping_add(from / 4096),
                    (to / 4096).max(1),
                    ARENA,
                )
                .ok()?;
            last.extend(
                flags
                    .iter()
                    .flat_map(|f| (0..8).map(move |b| f >> b & 1 == 1)),
            );
            at += to;
        }
        Some(Self { words, last })
    }

    /// Gives the offset in the span of each pointer of the object from `start` to `end`.
    pub(crate) fn each(&self, start: u64, end: u64, mut sink: impl FnMut(u64)) {
        let (mut at, end) = (start / 8, end / 8);
        while at < end {
            let (word, bit) = ((at / 64) as usize, at % 64);
            let Some(&bits) = self.words.get(word) else {
                return;
            };
            let upto = end.min(at - bit + 64);
            let mut bits = bits >> bit << bit;
            while bits != 0 {
                let pointer = at - bit + u64::from(bits.trailing_zeros());
                if pointer >= upto {
                    break;
                }
                sink(8 * pointer);
                bits &= bits - 1;
            }
            if upto < end && self.last.get(word).copied().unwrap_or(true) {
                return;
            }
            at = upto;
        }
    }
}

/// Gives the offset in the object of each of its pointers, from the bitmap at the end of
/// its span. `bytes` are those of the span.
pub(crate) fn in_span(span: &Span, bytes: &[u8], index: u32, mut sink: impl FnMut(u64)) {
    let Pointers::SpanBitmap(bitmap) = span.pointers else {
        return;
    };
    let first = u64::from(index) * span.size / 8;
    let count = span.size / 8;
    let at = (bitmap + first / 64 * 8) as usize;
    let word = |at: usize| -> u64 {
        let field = bytes.get(at..).and_then(|b| b.first_chunk::<8>());
        field.map_or(0, |f| u64::from_le_bytes(*f))
    };
    let shift = first % 64;
    let mut bits = word(at) >> shift;
    if shift + count > 64 {
        bits |= word(at + 8) << (64 - shift);
    }
    if count < 64 {
        bits &= (1 << count) - 1;
    }
    while bits != 0 {
        sink(8 * u64::from(bits.trailing_zeros()));
        bits &= bits - 1;
    }
}
