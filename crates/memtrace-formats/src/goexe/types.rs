//! Names of types that code refers to.
//!
//! A type's descriptor (`internal/abi.Type`) holds its name as an offset from where all
//! types begin. That is the start of a section, or soon after it where C has constants
//! of its own; the start with which names are names is the right one.

/// Where names begin is a multiple of this, so far from the section's start at most.
const ALIGN: usize = 32;
const REACH: usize = 8 << 10;
/// Descriptors that are enough to tell the start by, and how many there must be.
const SAMPLE: usize = 64;
const LEAST: usize = 8;
/// Longest name that is taken in.
const MAX_NAME: usize = 4 << 10;

/// A section with type descriptors.
#[derive(Debug)]
pub(super) struct Types {
    address: u64,
    bytes: Vec<u8>,
    /// Where names are counted from, relative to the section.
    base: usize,
}

impl Types {
    /// The section as types, if it has any that `referred` addresses lead to.
    pub(super) fn find(address: u64, bytes: Vec<u8>, referred: &[u64]) -> Option<Self> {
        let mut types = Self {
            address,
            bytes,
            base: 0,
        };
        let mut names: Vec<usize> = referred.iter().filter_map(|a| types.pointer(*a)).collect();
        names.sort_unstable();
        names.dedup();
        let step = names.len().div_ceil(SAMPLE).max(1);
        let sample: Vec<usize> = names.into_iter().step_by(step).collect();
        let named = |base: usize| {
            let names = sample.iter().filter_map(|n| name(&types.bytes, base + n));
            names.filter(|n| n.starts_with('*')).count()
        };
        // Of equals the nearest.
        let starts = (0..REACH / ALIGN).rev().map(|i| i * ALIGN);
        let (found, base) = starts.map(|b| (named(b), b)).max_by_key(|(n, _)| *n)?;
        types.base = base;
        (found >= LEAST && found * 10 >= sample.len() * 9).then_some(types)
    }

    /// The name of the pointer type whose descriptor is at an address: `*gcode.Command`.
    pub(super) fn name_at(&self, address: u64) -> Option<&str> {
        name(&self.bytes, self.base.checked_add(self.pointer(address)?)?)
            .filter(|n| n.starts_with('*'))
    }

    /// The offset of the name, if this is the descriptor of a pointer type.
    fn pointer(&self, address: u64) -> Option<usize> {
        const POINTER: u8 = 22;
        let at = usize::try_from(address.checked_sub(self.address)?).ok()?;
        let descriptor = self.bytes.get(at..at.checked_add(48)?)?;
        // Size, bytes with pointers, hash, flags, alignments, kind (with flags of its
        // own up to Go 1.25).
        let word = 8_u64.to_le_bytes();
        let is_pointer = descriptor[..8] == word
            && descriptor[8..16] == word
            && descriptor[21..23] == [8, 8]
            && descriptor[23] & 31 == POINTER;
        let name: [u8; 4] = descriptor[40..44].try_into().ok()?;
        usize::try_from(i32::from_le_bytes(name))
            .ok()
            .filter(|n| is_pointer && *n > 0)
    }
}

/// A name: flags, length, text.
fn name(bytes: &[u8], at: usize) -> Option<&str> {
    let rest = bytes.get(at..)?;
    let (&flags, rest) = rest.split_first()?;
    let (&low, mut rest) = rest.split_first()?;
    let mut length = usize::from(low & 0x7f);
    if low & 0x80 != 0 {
        let (&high, after) = rest.split_first()?;
        length |= usize::from(high & 0x7f) << 7;
        rest = after;
        if high & 0x80 != 0 {
            return None;
        }
    }
    let text = rest
        .get(..length)
        .filter(|_| flags < 16 && length <= MAX_NAME)?;
    let text = std::str::from_utf8(text).ok()?;
    (!text.is_empty() && text.chars().all(|c| !c.is_control())).then_some(text)
}
