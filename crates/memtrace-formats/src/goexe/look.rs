//! What an executable is, told from a few of its bytes: asked before its process is stopped.

use std::io::{Read, Seek, SeekFrom};

use object::Endianness;
use object::elf::{
    ELFCLASS32, ELFMAG, FileHeader32, FileHeader64, PF_W, PF_X, PT_LOAD, SHT_NOBITS,
};
use object::read::ReadCache;
use object::read::elf::{FileHeader, ProgramHeader as _, SectionHeader as _};

use super::elf::{self, Part, bytes, unreadable};
use crate::Error;

/// The oldest minor release of Go whose runtime is understood.
pub(crate) const OLDEST: u32 = 21;
/// What the information for `go version` starts with in an executable.
pub(crate) const INFO_MAGIC: &[u8] = b"\xff Go buildinf:";
/// Bytes of its header; the text follows since Go 1.18.
const INFO_HEADER: usize = 32;
/// It is aligned to this.
const INFO_ALIGN: u64 = 16;
/// Modules and settings of the largest programs have some tens of KiB.
const MAX_INFO: u64 = 1 << 20;
/// Sections that are looked at; linkers write some tens.
const MAX_SECTIONS: usize = 1000;
/// Names of what a dynamic program asks for and offers: some hundreds of KiB at most.
const MAX_NAMES: u64 = 4 << 20;
/// How much of a program without sections is searched, bytes.
const MAX_SEARCH: u64 = 512 << 20;

/// The instruction set of a Go program that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// x86-64.
    Amd64,
    /// `AArch64`, little-endian.
    Arm64,
}

/// A Go program that can be read, as its file tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoProgram {
    /// The release of Go that built it (`go1.26.3`), unless it does not say.
    pub version: Option<String>,
    /// What it was compiled for.
    pub architecture: Architecture,
    /// Its allocations are instrumented: `race`, `msan` or `asan`. `None` where that is not
    /// told, as by builds with other tools than `go build`.
    pub instrumented: Option<&'static str>,
}

/// Tells whether an executable is a Go program whose process can be read, from its headers
/// and build information: some tens of KiB. Only a program without section headers is
/// searched, up to 512 MiB.
///
/// # Errors
/// What it is instead, as a noun phrase that can follow "the process is":
/// [`Error::NotAProgram`], [`Error::NotAGoProgram`], [`Error::UnsupportedGo`],
/// [`Error::DamagedProgram`], [`Error::UnreadableProgram`].
pub fn look(mut input: impl Read + Seek) -> Result<GoProgram, Error> {
    let length = input.seek(SeekFrom::End(0)).map_err(unreadable)?;
    let start = bytes(&mut input, (0, 64))?;
    if !start.starts_with(&ELFMAG) {
        let shown = start[..start.len().min(16)].escape_ascii();
        return Err(Error::NotAProgram {
            start: match length {
                0 => "is empty".to_owned(),
                _ => format!("starts with \"{shown}\""),
            },
        });
    }
    let is_32_bit = start.get(4) == Some(&ELFCLASS32);
    let facts = if is_32_bit {
        facts::<FileHeader32<Endianness>>(&mut input, length)
    } else {
        facts::<FileHeader64<Endianness>>(&mut input, length)
    }?;
    let found = match facts.info {
        Some(part) => Some(part),
        None if facts.may_be_go => first(&mut input, &facts.writable, INFO_ALIGN, |piece| {
            piece.starts_with(INFO_MAGIC)
        })?,
        None => None,
    };
    let info = found.map(|part| Info::read(&mut input, part)).transpose()?;
    let info = info.flatten();
    let is_go = info.is_some()
        || match facts.table {
            Some((at, _)) => starts_table(&bytes(&mut input, (at, 8))?),
            None if facts.may_be_go => {
                first(&mut input, &facts.segments, 8, starts_table)?.is_some()
            }
            None => false,
        };
    if !is_go {
        return Err(Error::NotAGoProgram {
            what: format!("{}, not a Go program", other(&mut input, &facts)?),
        });
    }
    let info = info.unwrap_or_default();
    let unsupported = |what: String| Err(Error::UnsupportedGo { what });
    if is_32_bit {
        return unsupported(format!(
            "a 32-bit Go program ({}): memtrace reads 64-bit ones only",
            machine(facts.machine, true)
        ));
    }
    let architecture = match (facts.machine, facts.is_little) {
        (object::elf::EM_X86_64, true) => Architecture::Amd64,
        (object::elf::EM_AARCH64, true) => Architecture::Arm64,
        (number, _) => {
            return unsupported(format!(
                "a Go program for {}: memtrace reads those for amd64 and arm64 only",
                machine(number, false)
            ));
        }
    };
    if info.is_ancient
        || (info.version.as_deref())
            .and_then(minor)
            .is_some_and(|m| m < OLDEST)
    {
        return unsupported(too_old(info.version.as_deref()));
    }
    Ok(GoProgram {
        version: info.version,
        architecture,
        instrumented: info.instrumented,
    })
}

/// What is said of a program from before [`OLDEST`].
pub(crate) fn too_old(version: Option<&str>) -> String {
    format!(
        "a Go program built by {}: memtrace reads Go 1.{OLDEST} and newer",
        version.unwrap_or("a release before Go 1.18")
    )
}

/// What the headers tell.
struct Facts {
    machine: u16,
    is_little: bool,
    /// The build information and the table of functions, by the names of their sections.
    info: Option<Part>,
    table: Option<Part>,
    /// The names that a dynamic program asks for and offers.
    names: Option<Part>,
    /// No section says that it is none.
    may_be_go: bool,
    /// Loaded parts of the file, and those of them that can be written to.
    segments: Vec<Part>,
    writable: Vec<Part>,
}

fn facts<E: FileHeader<Endian = Endianness>>(
    input: &mut (impl Read + Seek),
    length: u64,
) -> Result<Facts, Error> {
    let failed = |error: object::read::Error| Error::DamagedProgram {
        what: error.to_string(),
    };
    let cache = ReadCache::new(input);
    let header = E::parse(&cache).map_err(failed)?;
    let endian = header.endian().map_err(failed)?;
    let within = |offset: u64, size: u64| {
        let size = size.min(length.saturating_sub(offset));
        (size > 0).then_some((offset, size))
    };
    let mut facts = Facts {
        machine: header.e_machine(endian),
        is_little: endian == Endianness::Little,
        info: None,
        table: None,
        names: None,
        may_be_go: false,
        segments: Vec::new(),
        writable: Vec::new(),
    };
    // More than the header can count are told in the sections; no linker needs that for a
    // program, and a liar could claim the whole file.
    const OVERFLOW: u16 = 0xffff;
    let sections = match header.e_shnum(endian) {
        0 => None,
        _ => header.sections(endian, &cache).ok(),
    };
    let sections = sections.unwrap_or_default();
    for section in sections.iter().take(MAX_SECTIONS) {
        if section.sh_type(endian) == SHT_NOBITS {
            continue;
        }
        let name = sections.section_name(endian, section).unwrap_or_default();
        let part = within(
            section.sh_offset(endian).into(),
            section.sh_size(endian).into(),
        );
        match name {
            b".go.buildinfo" => facts.info = part,
            b".dynstr" => facts.names = part,
            name if name.ends_with(b".gopclntab") => facts.table = part,
            _ => {}
        }
        facts.may_be_go |= name.starts_with(b".go.") || name == b".note.go.buildid";
    }
    facts.may_be_go |= sections.is_empty();
    if header.e_phnum(endian) != OVERFLOW {
        for segment in header.program_headers(endian, &cache).map_err(failed)? {
            let part = within(
                segment.p_offset(endian).into(),
                segment.p_filesz(endian).into(),
            );
            if let Some(part) = part.filter(|_| segment.p_type(endian) == PT_LOAD) {
                facts.segments.push(part);
                if segment.p_flags(endian) & (PF_W | PF_X) == PF_W {
                    facts.writable.push(part);
                }
            }
        }
    }
    Ok(facts)
}

/// The first place in one of these parts where something starts.
fn first(
    input: &mut (impl Read + Seek),
    parts: &[Part],
    align: u64,
    starts: impl Fn(&[u8]) -> bool,
) -> Result<Option<Part>, Error> {
    let mut left = MAX_SEARCH;
    for (offset, size) in parts {
        let part = (*offset, (*size).min(left));
        left -= part.1;
        if let Some(found) = elf::search(input, part, align, &starts)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Whether these are the first 8 bytes of a table of functions, whatever the program is
/// built for and since Go 1.2: magic, two zeroes, the least size of an instruction, the
/// size of a pointer.
fn starts_table(head: &[u8]) -> bool {
    matches!(
        head,
        [
            0xf0 | 0xf1 | 0xfa | 0xfb,
            0xff,
            0xff,
            0xff,
            0,
            0,
            1 | 2 | 4,
            4 | 8
        ] | [
            0xff,
            0xff,
            0xff,
            0xf0 | 0xf1 | 0xfa | 0xfb,
            0,
            0,
            1 | 2 | 4,
            4 | 8
        ]
    )
}

/// What the linker wrote for `go version -m`.
#[derive(Default)]
struct Info {
    version: Option<String>,
    /// Written before Go 1.18, as pointers.
    is_ancient: bool,
    instrumented: Option<&'static str>,
}

impl Info {
    fn read(input: &mut (impl Read + Seek), part: Part) -> Result<Option<Self>, Error> {
        let bytes = bytes(input, (part.0, part.1.min(MAX_INFO)))?;
        if !bytes.starts_with(INFO_MAGIC) || bytes.len() < INFO_HEADER {
            return Ok(None);
        }
        let Some((version, rest)) = info_version(&bytes) else {
            let info = Self {
                is_ancient: true,
                ..Self::default()
            };
            return Ok(Some(info));
        };
        let settings = info_text(rest).map_or(&[][..], |(text, _)| text);
        let is_set = |name: &&str| {
            let line = format!("build\t-{name}=true");
            settings
                .split(|b| *b == b'\n')
                .any(|l| l == line.as_bytes())
        };
        Ok(Some(Self {
            version: Some(version.to_owned()),
            is_ancient: false,
            instrumented: ["race", "msan", "asan"].into_iter().find(is_set),
        }))
    }
}

/// The release in the build information, and what follows it. `None` before Go 1.18, which
/// wrote pointers, and where it is damaged.
pub(crate) fn info_version(info: &[u8]) -> Option<(&str, &[u8])> {
    const INLINE: u8 = 2;
    let header = info.get(..INFO_HEADER)?;
    if !header.starts_with(INFO_MAGIC) || header[15] & INLINE == 0 {
        return None;
    }
    let (text, rest) = info_text(&info[INFO_HEADER..])?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

/// A text after its length, a varint.
fn info_text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length = 0_usize;
    for (i, byte) in bytes.iter().enumerate().take(4) {
        length |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return bytes[i + 1..].split_at_checked(length);
        }
    }
    None
}

/// The minor release in `go1.25.5 X:greenteagc`, `devel go1.28-abc`.
pub(crate) fn minor(version: &str) -> Option<u32> {
    let (_, after) = version.split_once("go1.")?;
    let digits = after.bytes().take_while(u8::is_ascii_digit).count();
    after[..digits].parse().ok()
}

/// What a program is that is none of Go's, as far as a look tells.
fn other(input: &mut (impl Read + Seek), facts: &Facts) -> Result<&'static str, Error> {
    const LANGUAGES: [(&str, &str); 5] = [
        ("libpython", "a Python program"),
        ("Py_BytesMain", "a Python program"),
        ("libjli.so", "a Java program"),
        ("JNI_CreateJavaVM", "a Java program"),
        ("napi_create_function", "a Node.js program"),
    ];
    /// Where its packer leaves its name.
    const PACKER: u64 = 1024;
    let start = bytes(input, (0, PACKER))?;
    let holds = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());
    if holds(&start, "UPX!") {
        return Ok("a program packed by UPX");
    }
    let names = match facts.names {
        Some((at, size)) => bytes(input, (at, size.min(MAX_NAMES)))?,
        None => Vec::new(),
    };
    let known = LANGUAGES.iter().find(|(text, _)| holds(&names, text));
    Ok(known.map_or("a native program", |(_, language)| language))
}

/// An instruction set, as `GOARCH` names it.
fn machine(number: u16, is_32_bit: bool) -> String {
    use object::elf;
    let name = match (number, is_32_bit) {
        (elf::EM_386, _) => "386",
        (elf::EM_ARM, _) => "arm",
        (elf::EM_AARCH64, _) => "big-endian arm64",
        (elf::EM_MIPS, true) => "mips",
        (elf::EM_MIPS, false) => "mips64",
        (elf::EM_PPC64, _) => "ppc64",
        (elf::EM_RISCV, _) => "riscv64",
        (elf::EM_S390, _) => "s390x",
        (elf::EM_LOONGARCH, _) => "loong64",
        (number, _) => return format!("ELF machine {number}"),
    };
    name.to_owned()
}
