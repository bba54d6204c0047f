//! The table of functions (`runtime.pcHeader` and what it points to).

use super::damaged;
use crate::Error;

/// Go 1.18 and 1.19; since Go 1.20. They differ in nothing that is read here.
const MAGIC: [u32; 2] = [0xffff_fff0, 0xffff_fff1];

/// Longest name that is taken in; generic instances reach some hundreds.
const MAX_NAME: usize = 4 << 10;

/// Entries, ascending, and names.
#[derive(Debug)]
pub(super) struct Functions {
    /// Relative to the start of Go's code, and where the name starts in `names`.
    entries: Vec<(u32, u32)>,
    names: Vec<u8>,
    start: u64,
}

/// Whether these are the first 8 bytes of a table: magic, two zeroes, the least size
/// of an instruction, the size of a pointer.
pub(super) fn may_start(head: &[u8]) -> bool {
    matches!(head, [a, b, c, d, 0, 0, 1 | 4, 8]
        if MAGIC.contains(&u32::from_le_bytes([*a, *b, *c, *d])))
}

pub(super) fn parse(table: &[u8]) -> Result<Functions, Error> {
    let broken = || damaged("its table of functions is damaged");
    if !may_start(table.get(..8).unwrap_or_default()) {
        return Err(damaged("its table of functions is of an unknown version"));
    }
    let word = |i: usize| -> Option<usize> { usize::try_from(u64_at(table, 8 * i)?).ok() };
    let (count, names_at, names_end, lines_at) = (|| {
        // 8 is where the file table's length is; 24 what was the start of the code.
        Some((word(1)?, word(4)?, word(5)?, word(8)?))
    })()
    .ok_or_else(broken)?;
    let names = table.get(names_at..names_end).ok_or_else(broken)?;
    let lines = table.get(lines_at..).ok_or_else(broken)?;
    // Two words of 32 bits for each function, and the end of the last one.
    let size = count.checked_mul(8).ok_or_else(broken)?;
    let index = lines.get(..size).ok_or_else(broken)?;

    let mut entries = Vec::with_capacity(count);
    let mut last = 0;
    for pair in index.chunks_exact(8) {
        let (Some(entry), Some(at)) = (u32_at(pair, 0), u32_at(pair, 4)) else {
            break;
        };
        // runtime._func starts with the entry again and the offset of the name.
        let name = u32_at(lines, (at as usize).saturating_add(4));
        let Some(name) = name.filter(|&n| (n as usize) < names.len()) else {
            continue;
        };
        if entry < last {
            return Err(broken());
        }
        last = entry;
        entries.push((entry, name));
    }
    Ok(Functions {
        entries,
        names: names.to_vec(),
        start: 0,
    })
}

impl Functions {
    pub(super) fn place(&mut self, start: u64) {
        self.start = start;
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Entry and name of each function.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &str)> {
        self.entries
            .iter()
            .map(|&(entry, name)| (self.start.wrapping_add(entry.into()), self.name(name)))
    }

    /// Entry and name of the function around an address.
    pub(super) fn at(&self, address: u64) -> Option<(u64, &str)> {
        let offset = u32::try_from(address.checked_sub(self.start)?).ok()?;
        let next = self.entries.partition_point(|&(entry, _)| entry <= offset);
        let &(entry, name) = self.entries.get(next.checked_sub(1)?)?;
        Some((self.start.wrapping_add(entry.into()), self.name(name)))
    }

    /// From where to where the code of a function reaches, the last one's to `end`.
    /// A name may stand for several functions.
    pub(super) fn spans(&self, function: &str, end: u64) -> Vec<(u64, u64)> {
        let address = |i: usize| {
            let entry = self.entries.get(i).map(|&(e, _)| e);
            entry.map_or(end, |e| self.start.wrapping_add(e.into()))
        };
        (0..self.entries.len())
            .filter(|&i| self.name(self.entries[i].1) == function)
            .map(|i| (address(i), address(i + 1)))
            .collect()
    }

    /// Empty where it is not UTF-8 or without end.
    fn name(&self, at: u32) -> &str {
        let rest = self.names.get(at as usize..).unwrap_or_default();
        let rest = &rest[..rest.len().min(MAX_NAME)];
        let end = rest.iter().position(|b| *b == 0).unwrap_or(0);
        std::str::from_utf8(&rest[..end]).unwrap_or_default()
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(field.try_into().ok()?))
}
