//! Where an ELF file keeps what is needed.

use std::io::{Read, Seek, SeekFrom};

use object::Endianness;
use object::elf::{
    EM_AARCH64, EM_X86_64, FileHeader64, PF_X, PT_LOAD, SHF_EXECINSTR, SHT_PROGBITS,
};
use object::read::ReadCache;
use object::read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _};

use super::code::{Machine, Text};
use super::{damaged, pclntab};
use crate::Error;

/// A part of the file: offset and length in bytes, both within it.
pub(super) type Part = (u64, u64);

/// The largest programs have tables of some 100 MB.
const MAX_TABLE: u64 = 512 << 20;
/// Constants of large programs are some tens of MB.
const MAX_TYPES: u64 = 128 << 20;

pub(super) struct Layout {
    pub(super) machine: Machine,
    pub(super) text: Text,
    /// The function table; it may be followed by other things.
    pub(super) table: Part,
    /// Sections that may hold types, with their addresses; the likeliest first.
    pub(super) types: Vec<(u64, Part)>,
}

/// Finds code and function table by their sections. The table has none of its own where
/// there are no sections at all, and where a C linker put it into a larger one: then it
/// is sought by what it starts with.
pub(super) fn layout(input: &mut (impl Read + Seek)) -> Result<Layout, Error> {
    let length = input.seek(SeekFrom::End(0)).map_err(unreadable)?;
    let headers = headers(input, length)?;
    let mut table = headers.table;
    if headers.may_be_go {
        for segment in headers.segments {
            if table.is_none() {
                // It is aligned to 8 bytes at least.
                table = search(input, segment, 8, pclntab::may_start)?;
            }
        }
    }
    let (address, (offset, size)) = headers.text.ok_or_else(|| other("without code"))?;
    let (at, size_of_table) = table.ok_or_else(|| other("with no table of functions"))?;
    Ok(Layout {
        machine: headers.machine,
        text: Text {
            address,
            offset,
            size: size.min(u64::MAX - address),
        },
        table: (at, size_of_table.min(MAX_TABLE)),
        types: headers
            .types
            .into_iter()
            .map(|(_, section)| section)
            .collect(),
    })
}

struct Headers {
    machine: Machine,
    /// Address and part of the code.
    text: Option<(u64, Part)>,
    table: Option<Part>,
    /// Sections that may hold types, by rank.
    types: Vec<(usize, (u64, Part))>,
    /// No section says that it is none: a search reads all of the file.
    may_be_go: bool,
    segments: Vec<Part>,
}

fn headers(input: &mut (impl Read + Seek), length: u64) -> Result<Headers, Error> {
    let failed = |e: object::read::Error| damaged(e.to_string());
    let cache = ReadCache::new(input);
    let header = FileHeader64::<Endianness>::parse(&cache).map_err(failed)?;
    let endian = header.endian().map_err(failed)?;
    if endian != Endianness::Little {
        return Err(Error::UnsupportedGo {
            what: "a big-endian program".to_owned(),
        });
    }
    let machine = match header.e_machine.get(endian) {
        EM_X86_64 => Machine::Amd64,
        EM_AARCH64 => Machine::Arm64,
        other => {
            return Err(Error::UnsupportedGo {
                what: format!("a program for ELF machine {other}"),
            });
        }
    };
    let within = |(offset, size): Part| {
        let size = size.min(length.saturating_sub(offset));
        (size > 0).then_some((offset, size))
    };

    let (mut text, mut table) = (None, None);
    let (mut types, mut go_sections) = (Vec::new(), false);
    // A program without section headers has none: no reason to give up.
    let sections = header.sections(endian, &cache).unwrap_or_default();
    for section in sections.iter() {
        let name = sections.section_name(endian, section).unwrap_or_default();
        go_sections |= name.starts_with(b".go.") || name == b".note.go.buildid";
        if section.sh_type(endian) != SHT_PROGBITS {
            continue;
        }
        let part = within((section.sh_offset.get(endian), section.sh_size.get(endian)));
        let runs = section.sh_flags.get(endian) & u64::from(SHF_EXECINSTR) != 0;
        // Since Go 1.27 types have a section of their own; before that they are among
        // what the loader relocates, in a position-independent program, or constants.
        let ranks: [fn(&[u8]) -> bool; 3] = [
            |name| name.ends_with(b".go.type"),
            |name| name == b".data.rel.ro",
            |name| name == b".rodata",
        ];
        if let (Some(rank), Some(part)) = (ranks.iter().position(|is| is(name)), part)
            && part.1 <= MAX_TYPES
        {
            types.push((rank, (section.sh_addr.get(endian), part)));
        }
        if name == b".text" && runs {
            text = part.map(|p| (section.sh_addr.get(endian), p));
        } else if name.ends_with(b".gopclntab") {
            table = part;
        }
    }
    let segments = header.program_headers(endian, &cache).map_err(failed)?;
    let loaded = || segments.iter().filter(|s| s.p_type(endian) == PT_LOAD);
    let part = |s: &object::elf::ProgramHeader64<Endianness>| {
        within((s.p_offset.get(endian), s.p_filesz.get(endian)))
    };
    if text.is_none() {
        text = loaded()
            .filter(|s| s.p_flags(endian) & PF_X != 0)
            .filter_map(|s| Some((s.p_vaddr.get(endian), part(s)?)))
            .max_by_key(|(_, (_, size))| *size);
    }
    types.sort_unstable();
    types.truncate(3);
    Ok(Headers {
        machine,
        text,
        table,
        types,
        may_be_go: sections.is_empty() || go_sections,
        segments: loaded().filter_map(part).collect(),
    })
}

/// Where in a part of the file something starts: `starts` is asked for every piece of
/// `align` bytes. Given is the rest of the part from there on.
pub(super) fn search(
    input: &mut (impl Read + Seek),
    (offset, size): Part,
    align: u64,
    starts: impl Fn(&[u8]) -> bool,
) -> Result<Option<Part>, Error> {
    const STEP: u64 = 1 << 20;
    let end = offset + size;
    let mut at = offset.next_multiple_of(align);
    while at < end {
        let chunk = bytes(input, (at, STEP.min(end - at)))?;
        if let Some(hit) = chunk.chunks(align as usize).position(&starts) {
            let start = at + align * hit as u64;
            return Ok(Some((start, end - start)));
        }
        at += STEP;
    }
    Ok(None)
}

/// Bytes of a part that lies within the file.
pub(super) fn bytes(input: &mut (impl Read + Seek), part: Part) -> Result<Vec<u8>, Error> {
    input.seek(SeekFrom::Start(part.0)).map_err(unreadable)?;
    let mut bytes = Vec::new();
    input
        .take(part.1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    Ok(bytes)
}

pub(super) fn unreadable(error: std::io::Error) -> Error {
    Error::UnreadableProgram {
        what: error.to_string(),
    }
}

/// It lacks what every Go program has.
fn other(lacks: &str) -> Error {
    Error::NotAGoProgram {
        what: format!("a program {lacks}, not a Go program"),
    }
}
