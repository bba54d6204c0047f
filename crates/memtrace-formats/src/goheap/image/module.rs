//! The runtime's account of a program: `runtime.moduledata`.

use std::collections::HashSet;

use super::elf::Elf;
use super::{Layout, Module};
use crate::Error;
use crate::goheap::memory::Window;
use crate::goheap::{damaged, missing};

/// A program with that many plugins is damaged.
const MAX_MODULES: usize = 1024;
/// Writable data is looked through up to this many bytes.
const MAX_DATA: u64 = 1 << 30;

/// The modules of a process, from the first on.
pub(super) fn read(memory: &Window<'_>, layout: &Layout, first: u64) -> Result<Vec<Module>, Error> {
    let next = layout.at("moduledata.next")?;
    let mut modules = Vec::new();
    let mut seen = HashSet::new();
    let mut at = first;
    while at != 0 && modules.len() < MAX_MODULES && seen.insert(at) {
        match module(memory, layout, at).filter(is_sound) {
            Some(module) => modules.push(module),
            // Those before it are of use.
            None => break,
        }
        at = memory.u64(at.wrapping_add(next)).unwrap_or(0);
    }
    if modules.is_empty() {
        memory.u64(first)?;
        return Err(damaged("runtime.firstmoduledata"));
    }
    Ok(modules)
}

/// Finds the first module: it starts with the address of the table of functions.
pub(super) fn find(
    elf: &Elf<'_>,
    bias: u64,
    memory: &Window<'_>,
    layout: &Layout,
) -> Result<u64, Error> {
    let table = match elf.function_table() {
        Some(address) => address,
        None => search_table(elf).ok_or_else(|| missing("the table of functions"))?,
    };
    let wanted = table.wrapping_add(bias).to_le_bytes();
    let mut lost = None;
    for segment in elf.segments().filter(|s| s.rwx[1]) {
        let start = segment.address.wrapping_add(bias).wrapping_add(7) & !7;
        let data = match memory.bytes(start, segment.size.saturating_sub(8), MAX_DATA) {
            Ok(data) => data,
            Err(error) => {
                lost = lost.or(Some(error));
                continue;
            }
        };
        for (i, word) in data.chunks_exact(8).enumerate() {
            if word != wanted {
                continue;
            }
            let address = start.wrapping_add(8 * i as u64);
            if module(memory, layout, address).is_some_and(|m| is_sound(&m)) {
                return Ok(address);
            }
        }
    }
    // Memory that is gone holds nothing.
    match lost {
        Some(unreadable) => Err(unreadable.into()),
        None => Err(missing("runtime.firstmoduledata")),
    }
}

/// Address of the table of functions in a file without sections.
fn search_table(elf: &Elf<'_>) -> Option<u64> {
    elf.segments().filter(|s| !s.rwx[2]).find_map(|segment| {
        let from = usize::try_from(segment.offset).ok()?;
        let to = from.checked_add(usize::try_from(segment.size).ok()?)?;
        let bytes = elf.bytes().get(from..to)?;
        let at = (bytes.chunks(8)).position(crate::goexe::starts_function_table)?;
        Some(segment.address.wrapping_add(8 * at as u64))
    })
}

/// `None` where memory or the layout lacks any of it.
fn module(memory: &Window<'_>, layout: &Layout, address: u64) -> Option<Module> {
    let field = |name: &str| {
        let offset = layout.find(&format!("moduledata.{name}"))?;
        address.checked_add(offset)
    };
    let word = |name: &str| memory.u64(field(name)?).ok();
    let range = |from: &str, to: &str| Some((word(from)?, word(to)?));
    let slice = |name: &str| {
        let (at, length, _) = memory.slice(field(name)?).ok()?;
        Some((at, length))
    };
    let mask = |name: &str| {
        let bits = memory.u32(field(&format!("{name}.n"))?).ok()?;
        Some((word(&format!("{name}.bytedata"))?, u64::from(bits)))
    };
    Some(Module {
        pc_header: word("pcHeader")?,
        funcnametab: slice("funcnametab")?,
        cutab: slice("cutab")?,
        filetab: slice("filetab")?,
        pctab: slice("pctab")?,
        pclntable: slice("pclntable")?,
        ftab: slice("ftab")?,
        text: range("text", "etext")?,
        data: range("data", "edata")?,
        bss: range("bss", "ebss")?,
        noptrdata: range("noptrdata", "enoptrdata")?,
        noptrbss: range("noptrbss", "enoptrbss")?,
        types: range("types", "etypes")?,
        rodata: word("rodata")?,
        gofunc: word("gofunc")?,
        data_mask: mask("gcdatamask")?,
        bss_mask: mask("gcbssmask")?,
    })
}

/// Whether what a module tells of itself can be.
fn is_sound(module: &Module) -> bool {
    let ranges = [
        module.text,
        module.data,
        module.bss,
        module.noptrdata,
        module.noptrbss,
        module.types,
    ];
    let tables = [
        module.funcnametab,
        module.pctab,
        module.pclntable,
        module.ftab,
    ];
    module.pc_header != 0
        && ranges.iter().all(|(from, to)| from <= to)
        && module.text.0 < module.text.1
        && (tables.iter()).all(|(at, length)| *at != 0 && *length < 1 << 32)
}
