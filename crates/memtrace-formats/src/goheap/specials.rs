//! What the runtime notes of single objects (`runtime.special`): who allocated them,
//! finalizers, cleanups, weak pointers.

use std::collections::HashMap;
use std::sync::Arc;

use super::chain::Chain;
use super::image::Image;
use super::memory::Window;

/// Notes of all spans that are followed.
const MAX_SPECIALS: u64 = 1 << 26;
/// Addresses of a recorded stack; the runtime keeps at most 1024.
const MAX_STACK: u64 = 1024;
/// Blocks of finalizers and cleanups that wait to run.
const MAX_BLOCKS: u64 = 1 << 18;
/// Bytes of a bucket before its stack (`runtime.bucket`).
const BUCKET: u64 = 48;

/// A note of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawSpecial {
    /// The object, or an address in it.
    pub(crate) object: u64,
    pub(crate) kind: SpecialKind,
}

/// What is noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SpecialKind {
    /// The heap profile sampled its allocation.
    Profile(Arc<Bucket>),
    /// The function that runs when nothing leads to the object any more. What the object
    /// leads to stays until then.
    Finalizer {
        /// The closure.
        function: u64,
    },
    /// A function of `runtime.AddCleanup`: pointers that stay until it has run, 0 where
    /// a release has none.
    Cleanup {
        /// Since Go 1.26 the caller of the function and its argument are apart.
        pointers: [u64; 3],
    },
    /// A `weak.Pointer` leads to the object through this word.
    Weak {
        /// An object of 8 bytes.
        handle: u64,
    },
    /// Any other note, by the runtime's number.
    Other(u8),
}

/// A stack of the heap profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// Address of its `runtime.bucket`.
    pub(crate) address: u64,
    /// Bytes of each of its objects as they were asked for.
    pub(crate) size: u64,
    /// The runtime's addresses of the stack, the leaf first.
    pub(crate) pcs: Vec<u64>,
}

/// Reads the notes of spans.
pub(crate) struct Specials<'a> {
    window: &'a Window<'a>,
    kinds: Kinds,
    /// Bytes of the common part; the offset in the span is 16 bits in the short one.
    header: u64,
    minor: u32,
    buckets: HashMap<u64, Option<Arc<Bucket>>>,
    /// Notes that may still be followed, and bytes of buckets that may be read.
    budget: u64,
    bytes: u64,
}

/// Numbers of kinds: they move between releases.
struct Kinds {
    finalizer: u8,
    weak: u8,
    profile: u8,
    cleanup: u8,
}

impl Kinds {
    /// No note has it.
    const NONE: u8 = 0;

    fn of(minor: u32) -> Self {
        let (finalizer, weak, profile, cleanup) = match minor {
            ..=22 => (1, Self::NONE, 2, Self::NONE),
            23 => (1, 2, 3, Self::NONE),
            24 => (1, 2, 3, 6),
            _ => (2, 3, 4, 7),
        };
        Self {
            finalizer,
            weak,
            profile,
            cleanup,
        }
    }
}

impl<'a> Specials<'a> {
    pub(crate) fn new(window: &'a Window<'a>, image: &Image) -> Self {
        let minor = image.version.minor;
        let mut kinds = Kinds::of(minor);
        for (kind, name) in [
            (&mut kinds.finalizer, "_KindSpecialFinalizer"),
            (&mut kinds.weak, "_KindSpecialWeakHandle"),
            (&mut kinds.profile, "_KindSpecialProfile"),
            (&mut kinds.cleanup, "_KindSpecialCleanup"),
        ] {
            let told = image.layout.constants.get(name);
            *kind = told.and_then(|&n| u8::try_from(n).ok()).unwrap_or(*kind);
        }
        let wide = match image.layout.find("special.kind") {
            Some(at) => at >= 16,
            None => minor >= 24,
        };
        Self {
            window,
            kinds,
            header: if wide { 24 } else { 16 },
            minor,
            buckets: HashMap::new(),
            budget: MAX_SPECIALS.min(window.size() / 16),
            bytes: window.size(),
        }
    }

    /// The notes of the objects of a span, from `mspan.specials` on; what could be read.
    pub(crate) fn of_span(&mut self, span_base: u64, first: u64) -> Vec<RawSpecial> {
        let mut found = Vec::new();
        let mut chain = Chain::new(first, self.budget);
        while let Some(at) = chain.node() {
            self.budget -= 1;
            let Some((next, special)) = self.one(at, span_base) else {
                break;
            };
            found.push(special);
            chain.follow(Some(next));
        }
        found
    }

    fn one(&mut self, at: u64, span_base: u64) -> Option<(u64, RawSpecial)> {
        let word = |offset: u64| self.window.u64(at.checked_add(offset)?).ok();
        let next = word(0)?;
        let (offset, kind) = if self.header == 24 {
            (word(8)?, word(16)? as u8)
        } else {
            let both = word(8)?;
            (both & 0xffff, (both >> 16) as u8)
        };
        let first = |i: u64| word(self.header + 8 * i);
        let kind = match kind {
            Kinds::NONE => SpecialKind::Other(kind),
            k if k == self.kinds.finalizer => SpecialKind::Finalizer {
                function: first(0)?,
            },
            k if k == self.kinds.weak => SpecialKind::Weak { handle: first(0)? },
            k if k == self.kinds.cleanup => SpecialKind::Cleanup {
                pointers: match self.minor {
                    ..=25 => [first(0)?, 0, 0],
                    _ => [first(0)?, first(1)?, first(2)?],
                },
            },
            k if k == self.kinds.profile => {
                let bucket = first(0)?;
                match self.bucket(bucket) {
                    Some(bucket) => SpecialKind::Profile(bucket),
                    None => SpecialKind::Other(kind),
                }
            }
            other => SpecialKind::Other(other),
        };
        let object = span_base.checked_add(offset)?;
        Some((next, RawSpecial { object, kind }))
    }

    /// `runtime.bucket`: two links, type, hash, size, length of the stack, the stack.
    fn bucket(&mut self, address: u64) -> Option<Arc<Bucket>> {
        if let Some(known) = self.buckets.get(&address) {
            return known.clone();
        }
        let word = |offset: u64| self.window.u64(address.checked_add(offset)?).ok();
        let read = || {
            let count = word(40)?;
            if count > MAX_STACK {
                return None;
            }
            if count * 8 > self.bytes {
                return None;
            }
            let start = address.checked_add(BUCKET)?;
            let bytes = self.window.bytes(start, count * 8, MAX_STACK * 8).ok()?;
            let pcs = bytes.chunks_exact(8);
            Some(Arc::new(Bucket {
                address,
                size: word(32)?,
                pcs: pcs
                    .map(|b| u64::from_le_bytes(b.try_into().unwrap_or_default()))
                    .collect(),
            }))
        };
        let bucket = read();
        if let Some(bucket) = &bucket {
            self.bytes -= 8 * bucket.pcs.len() as u64;
        }
        self.buckets.insert(address, bucket.clone());
        bucket
    }
}

/// What finalizers and cleanups hold that wait to run: functions, objects, arguments.
pub(crate) fn queued_finalizers(window: &Window<'_>, image: &Image) -> Vec<u64> {
    let mut pointers = Vec::new();
    // runtime.finblock: all blocks, queued blocks, count, and of each function, object,
    // bytes of results, two types.
    if let Ok(list) = image.variable("allfin") {
        let blocks = window.u64(list).unwrap_or(0);
        collect(window, blocks, 0, 16, 24, (40, 101), &[0, 8], &mut pointers);
    }
    // runtime.cleanupBlock: two words for its queue, all blocks, count, the cleanups: a
    // function; since Go 1.26 what calls it, function, argument.
    let all = image.layout.find("cleanupQueue.all");
    if let (Ok(queue), Some(all)) = (image.variable("gcCleanups"), all) {
        let blocks = queue
            .checked_add(all)
            .and_then(|at| window.u64(at).ok())
            .unwrap_or(0);
        if image.version.minor >= 26 {
            collect(
                window,
                blocks,
                16,
                24,
                32,
                (24, 20),
                &[0, 8, 16],
                &mut pointers,
            );
        } else {
            collect(window, blocks, 16, 24, 32, (8, 60), &[0], &mut pointers);
        }
    }
    pointers
}

/// Follows a list of blocks by the link at `link`: at `count` how many entries there are,
/// from `entries` on the entries, of so many bytes and at most so many, with pointers at
/// `fields`.
#[allow(clippy::too_many_arguments)] // the shape of two kinds of blocks
fn collect(
    window: &Window<'_>,
    first: u64,
    link: u64,
    count: u64,
    entries: u64,
    (size, most): (u64, u64),
    fields: &[u64],
    pointers: &mut Vec<u64>,
) {
    // A block has a page of its own.
    let mut chain = Chain::new(first, MAX_BLOCKS.min(window.size() / 1024));
    while let Some(block) = chain.node() {
        let at = |offset: u64| block.checked_add(offset);
        let Some(used) = at(count).and_then(|a| window.u32(a).ok()) else {
            return;
        };
        for i in 0..u64::from(used).min(most) {
            for field in fields {
                let value = at(entries + i * size + field).and_then(|a| window.u64(a).ok());
                pointers.extend(value.filter(|&v| v != 0));
            }
        }
        chain.follow(at(link).and_then(|a| window.u64(a).ok()));
    }
}
