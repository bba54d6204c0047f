//! The functions of a Go program, and which of them calls which, from its ELF file.
//!
//! ```text
//! ELF ──elf──▶ .gopclntab ──▶ entries and names ──▶ function_at
//!         ├──▶ code ──▶ direct calls ─────────────▶ calls, callers
//!         └──▶ types ◀── references ──────────────▶ pointer_types
//! ```
//!
//! Every Go program carries the table of its functions (`pclntab`), which the runtime
//! needs for its own stack traces: stripping (`-ldflags=-s -w`) does not touch it. The
//! table tells entries relative to the start of Go's code, and since Go 1.26 not where
//! that is. The code itself does: with the right start, its calls lead to entries.
//!
//! A call instruction holds the distance to its target, so that nothing needs to be
//! relocated. No disassembler is needed either: bytes that look like a call count only
//! where they lead exactly to the entry of a known function. What the compiler inlined
//! is not called any more; calls through a pointer or an interface are not seen.

mod code;
mod elf;
mod look;
mod pclntab;
mod types;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{Read, Seek};

use crate::Error;
use code::Code;
use pclntab::Functions;
use types::Types;

pub use look::{Architecture, GoProgram, look};
pub(crate) use look::{INFO_MAGIC, OLDEST, info_version, minor, too_old};

/// A Go program: 64-bit ELF for amd64 or arm64, built by Go 1.18 or newer.
///
/// Addresses are those of the file; a position-independent program runs at a distance
/// from them ([`Self::bias`]). Held are the names and entries of its functions (about
/// 60 bytes each); code is read when it is asked for.
#[derive(Debug)]
pub struct Program<R> {
    code: Code<R>,
    functions: Functions,
    /// Sections that may hold types.
    types: Vec<(u64, elf::Part)>,
}

impl<R: Read + Seek> Program<R> {
    /// Reads the table of functions.
    ///
    /// # Errors
    /// [`Error::NotAGoProgram`], [`Error::UnsupportedGo`], [`Error::DamagedProgram`],
    /// [`Error::UnreadableProgram`].
    pub fn read(mut input: R) -> Result<Self, Error> {
        let layout = elf::layout(&mut input)?;
        let table = elf::bytes(&mut input, layout.table)?;
        let mut functions = pclntab::parse(&table)?;
        drop(table);
        let mut code = Code::new(input, layout.machine, layout.text);
        let start = code.go_start(&functions)?;
        functions.place(start);
        Ok(Self {
            code,
            functions,
            types: layout.types,
        })
    }

    /// How many functions it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.functions.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The names of all functions, in the order of their code.
    pub fn functions(&self) -> impl Iterator<Item = &str> {
        self.functions.iter().map(|(_, name)| name)
    }

    /// The function whose code holds this address. Of inlined code it is the function
    /// around it.
    #[must_use]
    pub fn function_at(&self, address: u64) -> Option<&str> {
        if !self.code.text.holds(address) {
            return None;
        }
        let (_, name) = self.functions.at(address)?;
        Some(name)
    }

    /// For each function for which `wanted` holds, by name, the place of its first
    /// instruction in the file, bytes. A name may stand for several functions.
    pub fn file_offsets(&self, wanted: impl Fn(&str) -> bool) -> Vec<(String, u64)> {
        let text = self.code.text;
        let entries = self.functions.iter();
        entries
            .filter(|(entry, name)| text.holds(*entry) && wanted(name))
            .map(|(entry, name)| (name.to_owned(), entry - text.address + text.offset))
            .collect()
    }

    /// By how much the addresses of a process that runs this program are greater than
    /// those of the file: its executable mapping of the file starts at `mapped`, with
    /// the file's byte `offset`. 0 unless it is position-independent.
    #[must_use]
    pub fn bias(&self, mapped: u64, offset: u64) -> u64 {
        let text = self.code.text;
        let in_file = text.address.wrapping_sub(text.offset).wrapping_add(offset);
        mapped.wrapping_sub(in_file)
    }

    /// Names of the functions that a function calls directly.
    ///
    /// # Errors
    /// [`Error::UnreadableProgram`].
    pub fn calls(&mut self, function: &str) -> Result<BTreeSet<String>, Error> {
        let functions = &self.functions;
        let mut found = BTreeSet::new();
        for (from, to) in functions.spans(function, self.code.text.end()) {
            self.code.direct_calls(from..to, |_, target| {
                if let Some((entry, name)) = functions.at(target)
                    && entry == target
                {
                    found.insert(name.to_owned());
                }
            })?;
        }
        Ok(found)
    }

    /// Who calls the functions for which `wanted` holds directly: caller → callees.
    /// One pass over the code.
    ///
    /// # Errors
    /// [`Error::UnreadableProgram`].
    pub fn callers(
        &mut self,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<BTreeMap<String, BTreeSet<String>>, Error> {
        let functions = &self.functions;
        let targets: HashSet<u64> = functions
            .iter()
            .filter(|(_, name)| wanted(name))
            .map(|(entry, _)| entry)
            .collect();
        let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let text = self.code.text;
        self.code
            .direct_calls(text.address..text.end(), |site, target| {
                if targets.contains(&target)
                    && let (Some((_, caller)), Some((_, callee))) =
                        (functions.at(site), functions.at(target))
                {
                    let callees = found.entry(caller.to_owned()).or_default();
                    callees.insert(callee.to_owned());
                }
            })?;
        Ok(found)
    }
}

/// Code from which types are referred to often enough to find them.
const TYPES_SAMPLE: u64 = 4 << 20;

impl<R: Read + Seek> Program<R> {
    /// The pointer types that each of these functions refers to, by name
    /// (`*gcode.Command`, with the package's last element only): what it asserts a value
    /// to be, or passes on as an interface. Empty where types cannot be found: on arm64,
    /// and where a C linker put them among others.
    ///
    /// # Errors
    /// [`Error::UnreadableProgram`].
    pub fn pointer_types(
        &mut self,
        functions: impl IntoIterator<Item = String>,
    ) -> Result<BTreeMap<String, BTreeSet<String>>, Error> {
        let text = self.code.text;
        let mut referred = Vec::new();
        let sample = text.address..text.address.saturating_add(TYPES_SAMPLE);
        self.code.references(sample, |a| referred.push(a))?;
        referred.sort_unstable();
        referred.dedup();
        let mut types = None;
        for (address, part) in self.types.clone() {
            if types.is_none() {
                types = Types::find(address, self.code.part(part)?, &referred);
            }
        }
        let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let Some(types) = types else {
            return Ok(found);
        };
        for function in functions {
            for (from, to) in self.functions.spans(&function, text.end()) {
                self.code.references(from..to, |address| {
                    if let Some(name) = types.name_at(address) {
                        let names = found.entry(function.clone()).or_default();
                        names.insert(name.to_owned());
                    }
                })?;
            }
        }
        Ok(found)
    }
}

/// A function, the address of its code in the file, and the code.
pub(crate) type FunctionCode = (String, u64, Vec<u8>);

impl<R: Read + Seek> Program<R> {
    /// The code of the functions for which `wanted` holds, at most `limit` bytes of each.
    pub(crate) fn code_of(
        &mut self,
        wanted: impl Fn(&str) -> bool,
        limit: u64,
    ) -> Result<Vec<FunctionCode>, Error> {
        let functions = &self.functions;
        let mut entries = functions.iter().peekable();
        let mut found = Vec::new();
        while let Some((entry, name)) = entries.next() {
            if wanted(name) {
                let end = (entries.peek()).map_or(self.code.text.end(), |(next, _)| *next);
                let end = end.min(entry.saturating_add(limit));
                found.push((name.to_owned(), entry, self.code.bytes(entry..end)?));
            }
        }
        Ok(found)
    }
}

/// Whether these are the first 8 bytes of a table of functions.
pub(crate) fn starts_function_table(head: &[u8]) -> bool {
    pclntab::may_start(head)
}

fn damaged(what: impl Into<String>) -> Error {
    Error::DamagedProgram { what: what.into() }
}

#[cfg(test)]
mod tests;
