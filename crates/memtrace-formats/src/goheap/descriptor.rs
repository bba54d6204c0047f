//! The runtime's descriptors of types (`internal/abi.Type` and what is built on it).
//!
//! Their form is the same in all releases that are read: the common part of 48 bytes, then
//! what each kind adds.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::image::Image;
use super::memory::Window;

/// Bytes of the common part.
const COMMON: u64 = 48;
/// A program, not a mask, tells the pointers (before Go 1.24; a bit of the kind).
const KIND_PROGRAM: u8 = 1 << 6;
const KIND_MASK: u8 = (1 << 5) - 1;
const FLAG_UNCOMMON: u8 = 1;
const FLAG_EXTRA_STAR: u8 = 1 << 1;
const FLAG_NAMED: u8 = 1 << 2;
/// The mask is made when it is first needed (since Go 1.24).
const FLAG_ON_DEMAND: u8 = 1 << 4;
/// The largest type of a heap.
const MAX_SIZE: u64 = 1 << 40;
const MAX_NAME: u64 = 1 << 10;
const MAX_FIELDS: u64 = 1 << 12;
/// Words of a type that is looked at field by field: 32 MiB.
const MAX_WORDS: u64 = 4 << 20;

/// The common part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    address: u64,
    /// Bytes of a value.
    pub(crate) size: u64,
    /// Bytes of a value up to the end of its last pointer.
    pub(crate) pointer_bytes: u64,
    flags: u8,
    kind: u8,
    gc_data: u64,
    name: u32,
}

/// What a type consists of; types are told by the addresses of their descriptors.
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    /// Numbers and the like.
    Plain,
    Text,
    Pointer(u64),
    UnsafePointer,
    Function,
    Slice(u64),
    Array(u64, u64),
    Struct(Vec<Field>),
    /// Bucket (before Go 1.24) or group.
    Map(u64),
    Channel(u64),
    EmptyInterface,
    Interface,
}

#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) kind: u64,
    pub(crate) offset: u64,
}

impl Descriptor {
    /// `None` where there is none.
    pub(crate) fn read(window: &Window<'_>, address: u64) -> Option<Self> {
        let mut bytes = [0; COMMON as usize];
        window.read(address, &mut bytes).ok()?;
        let word = |at: usize| {
            bytes[at..]
                .first_chunk()
                .map_or(0, |b| u64::from_le_bytes(*b))
        };
        let descriptor = Self {
            address,
            size: word(0),
            pointer_bytes: word(8),
            flags: bytes[20],
            kind: bytes[23],
            gc_data: word(32),
            name: (word(40) & 0xffff_ffff) as u32,
        };
        let whole = descriptor.pointer_bytes <= descriptor.size
            && descriptor.size <= MAX_SIZE
            && descriptor.pointer_bytes.is_multiple_of(8);
        whole.then_some(descriptor)
    }

    /// As [`Descriptor::read`], for what may be anything: with a kind, an alignment, and a
    /// name.
    pub(crate) fn recognise(window: &Window<'_>, image: &Image, address: u64) -> Option<Self> {
        let descriptor = Self::read(window, address)?;
        let mut aligns = [0; 2];
        window.read(address.wrapping_add(21), &mut aligns).ok()?;
        let fits = (1..=26).contains(&descriptor.kind())
            && aligns.iter().all(|a| a.is_power_of_two() && *a <= 64)
            && !descriptor.name(window, image).is_empty();
        fits.then_some(descriptor)
    }

    pub(crate) fn kind(&self) -> u8 {
        self.kind & KIND_MASK
    }

    /// Where its mask is; `None` where it has to be worked out.
    pub(crate) fn mask(&self, window: &Window<'_>, image: &Image) -> Option<u64> {
        if image.version.minor < 24 {
            return (self.kind & KIND_PROGRAM == 0).then_some(self.gc_data);
        }
        if self.flags & FLAG_ON_DEMAND == 0 {
            return Some(self.gc_data);
        }
        let made = window.u64(self.gc_data).ok()?;
        // While another thread makes it, it points to a variable of the runtime.
        let variable = image.modules.iter().any(|m| {
            [m.data, m.bss, m.noptrdata, m.noptrbss]
                .iter()
                .any(|&(from, to)| (from..to).contains(&made))
        });
        (made != 0 && !variable).then_some(made)
    }

    /// Its name as the source has it, with the whole path of its package; empty where it
    /// cannot be read.
    pub(crate) fn name(&self, window: &Window<'_>, image: &Image) -> String {
        let mut name = text(window, image, self.address, self.name).unwrap_or_default();
        if self.flags & FLAG_EXTRA_STAR != 0 && name.starts_with('*') {
            name.remove(0);
        }
        if self.flags & FLAG_NAMED != 0
            && let Some(path) = self.package(window, image)
            && let Some(dot) = name
                .find(['.', '['])
                .filter(|&d| name.as_bytes()[d] == b'.')
            && !path.is_empty()
        {
            name.replace_range(..dot, &path);
        }
        name
    }

    /// As [`Descriptor::name`], with the paths of packages in the types that a type without
    /// a name is made of, so many deep.
    pub(crate) fn full_name(&self, window: &Window<'_>, image: &Image, depth: u32) -> String {
        let named = self.flags & FLAG_NAMED != 0;
        let part = |address: u64| -> Option<String> {
            let part = Self::read(window, address)?;
            Some(part.full_name(window, image, depth.checked_sub(1)?))
        };
        let made = || -> Option<String> {
            Some(match self.shape(window)? {
                Shape::Pointer(to) => format!("*{}", part(to)?),
                Shape::Slice(of) => format!("[]{}", part(of)?),
                Shape::Array(of, count) => format!("[{count}]{}", part(of)?),
                Shape::Map(_) => {
                    let word = |i: u64| window.u64(self.address.wrapping_add(COMMON + 8 * i)).ok();
                    format!("map[{}]{}", part(word(0)?)?, part(word(1)?)?)
                }
                Shape::Channel(of) if !self.name(window, image).contains("<-") => {
                    format!("chan {}", part(of)?)
                }
                _ => return None,
            })
        };
        let made = if named { None } else { made() };
        let made = made.filter(|m| m.len() as u64 <= MAX_NAME);
        made.unwrap_or_else(|| self.name(window, image))
    }

    /// Path of the package that declares it.
    fn package(&self, window: &Window<'_>, image: &Image) -> Option<String> {
        if self.flags & FLAG_UNCOMMON == 0 {
            return None;
        }
        // What its kind adds to the common part comes before.
        let added = match self.kind() {
            // Array; channel; function, pointer and slice; interface and structure; map.
            17 => 24,
            18 => 16,
            19 | 22 | 23 => 8,
            20 | 25 => 32,
            21 => map_bytes(image),
            _ => 0,
        };
        let at = window.u32(self.address.wrapping_add(COMMON + added)).ok()?;
        text(window, image, self.address, at)
    }

    /// What it consists of.
    pub(crate) fn shape(&self, window: &Window<'_>) -> Option<Shape> {
        let word = |i: u64| window.u64(self.address.wrapping_add(COMMON + 8 * i)).ok();
        Some(match self.kind() {
            17 => Shape::Array(word(0)?, word(2)?),
            18 => Shape::Channel(word(0)?),
            19 => Shape::Function,
            20 if word(2)? == 0 => Shape::EmptyInterface,
            20 => Shape::Interface,
            21 => Shape::Map(word(2)?),
            22 => Shape::Pointer(word(0)?),
            23 => Shape::Slice(word(0)?),
            24 => Shape::Text,
            25 => self.structure(window, word(1)?, word(2)?)?,
            26 => Shape::UnsafePointer,
            _ => Shape::Plain,
        })
    }

    fn structure(&self, window: &Window<'_>, at: u64, count: u64) -> Option<Shape> {
        if count > MAX_FIELDS {
            return None;
        }
        let mut fields = Vec::new();
        for i in 0..count {
            let (name, kind, offset) = window.slice(at.wrapping_add(24 * i)).ok()?;
            if offset > self.size {
                return None;
            }
            fields.push(Field {
                name: name_at(window, name).unwrap_or_default(),
                kind,
                offset,
            });
        }
        Some(Shape::Struct(fields))
    }
}

/// Bytes that a map's descriptor has beyond the common part.
fn map_bytes(image: &Image) -> u64 {
    let minor = image.version.minor;
    let known = ["MapType", "SwissMapType", "OldMapType"].iter();
    let size = known
        .filter_map(|name| image.layout.sizes.get(&format!("internal/abi.{name}")))
        .next();
    match size {
        Some(size) => size.saturating_sub(COMMON),
        None if minor < 24 => 40,
        None if minor < 27 => 64,
        None => 88,
    }
}

/// The name at an offset from where the types of its module begin.
fn text(window: &Window<'_>, image: &Image, near: u64, offset: u32) -> Option<String> {
    let modules = image.modules.iter();
    let base = modules
        .map(|m| m.types)
        .find(|t| (t.0..t.1).contains(&near));
    let base = base.or_else(|| image.modules.first().map(|m| m.types))?.0;
    name_at(window, base.wrapping_add(offset.into()))
}

/// A name: flags, its length in 7-bit groups, its bytes.
fn name_at(window: &Window<'_>, address: u64) -> Option<String> {
    let (mut length, mut shift, mut at) = (0_u64, 0, address.wrapping_add(1));
    loop {
        let byte = window.u8(at).ok()?;
        at = at.wrapping_add(1);
        length |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
        if shift > 21 {
            return None;
        }
    }
    if length > MAX_NAME {
        return None;
    }
    let mut bytes = vec![0; length as usize];
    window.read(at, &mut bytes).ok()?;
    String::from_utf8(bytes).ok()
}

/// A bit for each word of a value that is a pointer, field by field.
/// `left` is for how many more types within types there is time.
pub(crate) fn pointer_words(
    window: &Window<'_>,
    whole: &Descriptor,
    left: &AtomicUsize,
) -> Option<Box<[u64]>> {
    let spend = |steps: usize| {
        let take = |left: usize| left.checked_sub(steps);
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .ok()
    };
    let words = whole.pointer_bytes / 8;
    if words > MAX_WORDS {
        return None;
    }
    let mut bits = vec![0_u64; words.div_ceil(64) as usize];
    let mut set = |offset: u64| {
        let word = offset / 8;
        if let Some(field) = bits.get_mut((word / 64) as usize) {
            *field |= 1 << (word % 64);
        }
    };
    let mut open = vec![(0_u64, whole.address)];
    while let Some((offset, address)) = open.pop() {
        if offset > whole.size {
            return None;
        }
        let descriptor = Descriptor::read(window, address)?;
        if descriptor.pointer_bytes == 0 {
            continue;
        }
        match descriptor.shape(window)? {
            Shape::Plain => {}
            Shape::EmptyInterface | Shape::Interface => set(offset + 8),
            Shape::Text
            | Shape::Pointer(_)
            | Shape::UnsafePointer
            | Shape::Function
            | Shape::Slice(_)
            | Shape::Map(_)
            | Shape::Channel(_) => set(offset),
            Shape::Array(element, count) => {
                let size = Descriptor::read(window, element)?.size.max(1);
                if count > MAX_WORDS || count.checked_mul(size)? > whole.size {
                    return None;
                }
                spend(count as usize)?;
                open.extend((0..count).map(|i| (offset + i * size, element)));
            }
            Shape::Struct(fields) => {
                spend(fields.len())?;
                open.extend(fields.iter().map(|f| (offset + f.offset, f.kind)));
            }
        }
    }
    Some(bits.into())
}
