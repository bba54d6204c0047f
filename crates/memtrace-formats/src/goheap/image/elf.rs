//! What an executable file says of itself: segments, sections, symbols, and where the
//! process has it.

use std::borrow::Cow;
use std::io::Read as _;

use object::elf::{ET_DYN, PF_R, PF_W, PF_X};
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{
    Architecture, CompressionFormat, LittleEndian, Object as _, ObjectSection as _,
    ObjectSymbol as _, SymbolKind,
};

use crate::Error;
use crate::goheap::memory::{Region, Window};
use crate::goheap::missing;

/// Debug information of the largest programs has some hundreds of MB.
const MAX_SECTION: u64 = 2 << 30;
/// Deflate makes data smaller by a factor of 1032 at most.
const MAX_RATIO: u64 = 1032;

pub(super) struct Elf<'f> {
    file: ElfFile64<'f, LittleEndian>,
    bytes: &'f [u8],
}

/// A loadable segment, by the addresses of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) address: u64,
    /// Bytes that are in the file, and where in it.
    pub(super) size: u64,
    pub(super) offset: u64,
    /// Bytes of memory.
    pub(super) memory: u64,
    pub(super) rwx: [bool; 3],
}

/// A named piece of data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol<'f> {
    pub(super) name: &'f str,
    pub(super) address: u64,
    pub(super) size: u64,
}

impl<'f> Elf<'f> {
    pub(super) fn parse(bytes: &'f [u8]) -> Result<Self, Error> {
        let file = ElfFile64::<LittleEndian>::parse(bytes).map_err(|e| Error::DamagedProgram {
            what: e.to_string(),
        })?;
        match file.architecture() {
            Architecture::X86_64 | Architecture::Aarch64 => Ok(Self { file, bytes }),
            other => Err(Error::UnsupportedGo {
                what: format!("a program for {other:?}"),
            }),
        }
    }

    pub(super) fn is_amd64(&self) -> bool {
        self.file.architecture() == Architecture::X86_64
    }

    pub(super) fn bytes(&self) -> &'f [u8] {
        self.bytes
    }

    pub(super) fn segments(&self) -> impl Iterator<Item = Segment> + '_ {
        let segments = self.file.elf_program_headers().iter();
        segments
            .filter(|s| s.p_type(LittleEndian) == object::elf::PT_LOAD)
            .map(|s| Segment {
                address: s.p_vaddr(LittleEndian),
                size: s.p_filesz(LittleEndian).min(s.p_memsz(LittleEndian)),
                offset: s.p_offset(LittleEndian),
                memory: s.p_memsz(LittleEndian),
                rwx: [PF_R, PF_W, PF_X].map(|f| s.p_flags(LittleEndian) & f != 0),
            })
    }

    /// Address and content of a section that the process has in its memory.
    pub(super) fn section(&self, name: &str) -> Option<(u64, &'f [u8])> {
        let section = self.file.section_by_name(name)?;
        Some((section.address(), section.data().ok()?))
    }

    /// The table of functions, which some linkers put among relocated data.
    pub(super) fn function_table(&self) -> Option<u64> {
        let mut sections = self.file.sections();
        let table = sections.find(|s| s.name().is_ok_and(|n| n.ends_with(".gopclntab")))?;
        Some(table.address())
    }

    /// Content of a section, empty where there is none or where it is damaged.
    pub(super) fn debug_section(&self, name: &str) -> Cow<'f, [u8]> {
        // Finds the old form with its own name (.zdebug_info) as well.
        let Some(section) = self.file.section_by_name(name) else {
            return Cow::Borrowed(&[]);
        };
        let Ok(data) = section.compressed_data() else {
            return Cow::Borrowed(&[]);
        };
        match data.format {
            CompressionFormat::None => Cow::Borrowed(data.data),
            CompressionFormat::Zlib => {
                let most = (data.data.len() as u64).saturating_mul(MAX_RATIO);
                let size = data.uncompressed_size.min(most).min(MAX_SECTION);
                let mut bytes = Vec::new();
                let mut input = flate2::read::ZlibDecoder::new(data.data).take(size);
                // Damaged to the end of what could be read: the rest of it is of use.
                let _ = input.read_to_end(&mut bytes);
                Cow::Owned(bytes)
            }
            _ => Cow::Borrowed(&[]),
        }
    }

    /// Symbols of data.
    pub(super) fn data_symbols(&self) -> impl Iterator<Item = Symbol<'f>> + '_ {
        self.file.symbols().filter_map(|s| {
            let is_data = matches!(s.kind(), SymbolKind::Data | SymbolKind::Unknown);
            let name = s.name().ok()?;
            (is_data && s.is_definition() && !name.is_empty()).then_some(Symbol {
                name,
                address: s.address(),
                size: s.size(),
            })
        })
    }

    /// By how much the addresses of the process are greater than those of the file: 0
    /// unless it is position-independent. The process maps other files too; the right
    /// mapping has the bytes of this one.
    pub(super) fn bias(&self, memory: &Window<'_>, regions: &[Region]) -> Result<u64, Error> {
        if self.file.elf_header().e_type(LittleEndian) != ET_DYN {
            return Ok(0);
        }
        const PAGE: u64 = 4 << 10;
        let mut unread = None;
        // Constants and code are the same in memory as in the file.
        for segment in self.segments().filter(|s| !s.rwx[1]) {
            let offset = segment.offset & !(PAGE - 1);
            for region in regions {
                let within = offset.wrapping_sub(region.offset);
                if region.file.is_empty()
                    || region.offset > offset
                    || within >= region.end.saturating_sub(region.start)
                {
                    continue;
                }
                let start = region.start.wrapping_add(within);
                let bias = start.wrapping_sub(segment.address & !(PAGE - 1));
                let from = segment.offset as usize;
                let sample = self.bytes.get(from..).unwrap_or_default();
                let sample = &sample[..sample.len().min(PAGE as usize).min(segment.size as usize)];
                let mut held = vec![0; sample.len()];
                match memory.read(bias.wrapping_add(segment.address), &mut held) {
                    Ok(()) if held == sample && !held.is_empty() => return Ok(bias),
                    Ok(()) => {}
                    Err(_) => unread = unread.or(Some(bias)),
                }
            }
        }
        unread.ok_or_else(|| missing("the process does not map this file"))
    }
}
