//! A Go program and where its runtime keeps what: from the executable, and from the
//! memory of the process where the executable is stripped.
//!
//! ```text
//! symbols ──┬─▶ variables ──▶ modules
//! locate ───┘       (a stripped program's are found by the code that uses them)
//! debug information ─▶ layout, globals, types
//! layouts.tsv ───────▶ layout (of a stripped program)
//! ```

mod dwarf;
mod elf;
mod layout;
mod locals;
mod locate;
mod module;

use std::collections::{BTreeMap, HashMap};

use self::dwarf::{Debug, Sections};
use self::elf::Elf;
pub(crate) use self::locals::{FunctionInfo, Local};
use super::memory::{Region, Window};
use super::missing;
use crate::{Error, goexe};

/// The release of Go that built the program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Version {
    /// 27 for `go1.27.3`.
    pub(crate) minor: u32,
    /// As the program tells it: `go1.27.3`, with experiments after it.
    pub(crate) text: String,
}

/// Offsets of the fields of the runtime's types.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    /// By `type.field` without package: `mspan.startAddr`, `g.sched.pc`.
    pub(crate) offsets: HashMap<String, u64>,
    /// By type: `mspan`.
    pub(crate) sizes: HashMap<String, u64>,
    /// By name: `_KindSpecialProfile`.
    pub(crate) constants: HashMap<String, u64>,
}

impl Layout {
    /// Offset in bytes of a field; `None` where this release has none.
    pub(crate) fn find(&self, field: &str) -> Option<u64> {
        self.offsets.get(field).copied()
    }

    /// Offset in bytes of a field that every supported release has.
    pub(crate) fn at(&self, field: &str) -> Result<u64, Error> {
        self.find(field)
            .ok_or_else(|| missing(format!("the layout of {field}")))
    }

    /// Size in bytes of a type.
    pub(crate) fn size(&self, name: &str) -> Result<u64, Error> {
        let size = self.sizes.get(name).copied();
        size.ok_or_else(|| missing(format!("the size of {name}")))
    }
}

/// Number of a type in the debug information ([`Image::debug_types`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct DebugTypeId(pub(crate) u32);

/// A type of the debug information.
#[derive(Clone, Debug, Default)]
pub(crate) struct DebugType {
    pub(crate) name: String,
    /// Bytes of a value.
    pub(crate) size: u64,
    /// The address of the runtime's own descriptor of the type, where it has one.
    pub(crate) runtime: Option<u64>,
    pub(crate) shape: DebugShape,
}

/// What a type of the debug information consists of.
#[derive(Clone, Debug, Default)]
pub(crate) enum DebugShape {
    /// No pointer in it, or nothing is known of it.
    #[default]
    Plain,
    Pointer(Option<DebugTypeId>),
    /// Offset, name and type of each field.
    Struct(Vec<(u64, String, DebugTypeId)>),
    Array(DebugTypeId, u64),
    Slice(DebugTypeId),
    String,
    /// Pointers to the structures that the runtime keeps the map or channel in.
    Map,
    Channel,
    Function,
    /// With a type word, and with an itab.
    EmptyInterface,
    Interface,
}

/// A variable of a package.
#[derive(Clone, Debug, Default)]
pub(crate) struct Global {
    pub(crate) name: String,
    /// Where it is in the process.
    pub(crate) address: u64,
    pub(crate) size: u64,
    pub(crate) kind: Option<DebugTypeId>,
}

/// `runtime.moduledata`: addresses in the process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Module {
    pub(crate) pc_header: u64,
    /// Address, length in elements.
    pub(crate) funcnametab: (u64, u64),
    pub(crate) cutab: (u64, u64),
    pub(crate) filetab: (u64, u64),
    pub(crate) pctab: (u64, u64),
    pub(crate) pclntable: (u64, u64),
    pub(crate) ftab: (u64, u64),
    pub(crate) text: (u64, u64),
    pub(crate) data: (u64, u64),
    pub(crate) bss: (u64, u64),
    pub(crate) noptrdata: (u64, u64),
    pub(crate) noptrbss: (u64, u64),
    pub(crate) types: (u64, u64),
    pub(crate) rodata: u64,
    pub(crate) gofunc: u64,
    /// Address of the mask's bytes and its length in bits (words of `data`).
    pub(crate) data_mask: (u64, u64),
    pub(crate) bss_mask: (u64, u64),
}

/// A Go program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pub(crate) version: Version,
    pub(crate) layout: Layout,
    /// The program's module first; then those of plugins.
    pub(crate) modules: Vec<Module>,
    /// Variables with their types, ascending by address; empty where the program is
    /// stripped.
    pub(crate) globals: Vec<Global>,
    pub(crate) debug_types: Vec<DebugType>,
    /// Addresses in the process of the runtime's variables: `mheap_`, `allgs`, `mbuckets`;
    /// and of those of the packages around it by their full names: `sync.allPools`.
    pub(crate) variables: HashMap<String, u64>,
    /// What is added to where the debug information says that a runtime's type is; `None`
    /// where that is not known.
    pub(super) type_base: Option<u64>,
    /// What a person should know about how the program was read.
    pub(crate) notes: Vec<String>,
    /// The layouts are those of an older release: nothing told those of this one.
    pub(crate) is_assumed: bool,
}

impl Image {
    /// Reads a program, and keeps what is to be read of its functions.
    ///
    /// # Errors
    /// What it is instead, or why its runtime cannot be read.
    pub(crate) fn read<'f>(
        executable: &'f [u8],
        memory: &Window<'_>,
        regions: &[Region],
    ) -> Result<(Self, FunctionInfo<'f>), Error> {
        goexe::look(std::io::Cursor::new(executable))?;
        let elf = Elf::parse(executable)?;
        let bias = elf.bias(memory, regions)?;
        let sections = Sections::read(&elf);
        let mut debug = sections.as_ref().map(Sections::debug).unwrap_or_default();
        let symbols = symbols(&elf, bias, &debug);
        let mut image = Self {
            variables: variables(&symbols),
            ..Self::default()
        };
        image.version = version(&elf, memory, &image.variables)?;
        image.lay_out(std::mem::take(&mut debug.layout))?;
        let first = match image.variables.get("firstmoduledata") {
            Some(address) => *address,
            None => module::find(&elf, bias, memory, &image.layout)?,
        };
        if !image.variables.contains_key("mheap_") {
            let found = locate::variables(&elf, bias, memory, &image.layout)?;
            let missing: Vec<&str> = locate::names(&image.layout)
                .filter(|name| !found.contains_key(*name))
                .collect();
            if !missing.is_empty() {
                let missing = missing.join(", ");
                image
                    .notes
                    .push(format!("not found in the stripped program: {missing}"));
            }
            image.variables.extend(found);
        }
        image.modules = module::read(memory, &image.layout, first)?;
        image.variables.insert("firstmoduledata".to_owned(), first);
        image.place_globals(symbols, &debug.types);
        image.debug_types = debug.types;
        image.place_types(&elf, bias, memory);
        let info = FunctionInfo {
            sections,
            numbers: debug.numbers,
            bias,
        };
        Ok((image, info))
    }

    /// The layout by the program's own account, and by the table where that says nothing.
    fn lay_out(&mut self, own: Layout) -> Result<(), Error> {
        let (table, newest) = match layout::of_version(&self.version) {
            Ok(found) => found,
            Err(error) if own.sizes.is_empty() => return Err(error),
            Err(_) => Default::default(),
        };
        if let Some(newest) = newest.filter(|_| own.sizes.is_empty()) {
            self.is_assumed = true;
            self.notes.push(format!(
                "{} is newer than what is known here; its runtime is read as that of Go 1.{newest}",
                self.version.text
            ));
        }
        self.layout = own;
        let told = std::mem::take(&mut self.layout.sizes);
        let is_told = |name: &str| {
            let mut ends = name.match_indices('.').map(|(at, _)| at);
            ends.any(|end| told.contains_key(&name[..end]))
        };
        for (name, at) in table.offsets {
            if !is_told(&name) {
                self.layout.offsets.entry(name).or_insert(at);
            }
        }
        self.layout.sizes = table.sizes;
        self.layout.sizes.extend(told);
        for (name, value) in table.constants {
            self.layout.constants.entry(name).or_insert(value);
        }
        Ok(())
    }

    fn place_globals(&mut self, symbols: BTreeMap<u64, Found>, types: &[DebugType]) {
        let ranges = |m: &Module| [m.data, m.bss, m.noptrdata, m.noptrbss];
        let ranges: Vec<(u64, u64)> = self.modules.iter().flat_map(ranges).collect();
        let mut covered = 0;
        for (address, found) in symbols {
            let size = (found.kind)
                .and_then(|k| types.get(k.0 as usize))
                .map_or(found.size, |t| t.size);
            let is_data = ranges
                .iter()
                .any(|(from, to)| (*from..*to).contains(&address));
            // Symbols also name parts of what debug information tells as one.
            if !is_data || size == 0 || address < covered {
                continue;
            }
            covered = address.saturating_add(size);
            self.globals.push(Global {
                name: found.name,
                address,
                size,
                kind: found.kind,
            });
        }
    }

    /// Debug information tells where the runtime's descriptor of a type is relative to
    /// where some section starts, linkers disagree on which: the right one has
    /// descriptors of the right sizes there.
    fn place_types(&mut self, elf: &Elf<'_>, bias: u64, memory: &Window<'_>) {
        const SAMPLE: usize = 128;
        let described = || {
            self.debug_types
                .iter()
                .filter_map(|t| Some((t.runtime?, t.size)))
        };
        let step = described().count().div_ceil(SAMPLE).max(1);
        let sample: Vec<(u64, u64)> = described().step_by(step).collect();
        let ranges: Vec<(u64, u64)> = self.modules.iter().map(|m| m.types).collect();
        let is_type = |address: u64| {
            ranges
                .iter()
                .any(|(from, to)| (*from..*to).contains(&address))
        };
        let fits = |base: u64| {
            let fits = |(at, size): &&(u64, u64)| {
                let address = base.wrapping_add(*at);
                is_type(address) && memory.u64(address).is_ok_and(|s| s == *size)
            };
            sample.iter().filter(fits).count()
        };
        let sections = [
            ".rodata",
            ".go.type",
            ".data.rel.ro",
            ".data.rel.ro.go.type",
        ];
        let sections = sections
            .iter()
            .filter_map(|s| Some(elf.section(s)?.0.wrapping_add(bias)));
        let first = self.modules.first().map(|m| m.types.0);
        let bases = first.into_iter().chain([0, bias]).chain(sections);
        let best = bases
            .map(|base| (fits(base), base))
            .max_by_key(|(fit, _)| *fit);
        self.type_base = best
            .filter(|(fit, _)| fit * 10 >= sample.len() * 9)
            .map(|(_, b)| b);
        self.place_types_from(0);
    }

    /// Places the types from a number on.
    fn place_types_from(&mut self, first: usize) {
        let ranges: Vec<(u64, u64)> = self.modules.iter().map(|m| m.types).collect();
        let is_type = |a: &u64| ranges.iter().any(|(from, to)| (*from..*to).contains(a));
        for kind in self.debug_types.iter_mut().skip(first) {
            kind.runtime = (kind.runtime.zip(self.type_base))
                .map(|(at, base)| base.wrapping_add(at))
                .filter(is_type);
        }
    }

    /// Whether spans of small objects hold marks of the collector ("green tea").
    pub(crate) fn has_inline_marks(&self) -> bool {
        let text = &self.version.text;
        let off = text.contains("nogreenteagc");
        !off && (self.version.minor >= 26 || text.contains("greenteagc"))
    }

    /// Address in the process of a variable of the runtime, without the package's name.
    pub(crate) fn variable(&self, name: &str) -> Result<u64, Error> {
        let address = self.variables.get(name).copied();
        address.ok_or_else(|| missing(format!("runtime.{name}")))
    }
}

/// A variable by symbol or debug information.
struct Found {
    name: String,
    size: u64,
    kind: Option<DebugTypeId>,
}

/// Variables by their address in the process.
fn symbols(elf: &Elf<'_>, bias: u64, debug: &Debug) -> BTreeMap<u64, Found> {
    let mut found: BTreeMap<u64, Found> = BTreeMap::new();
    for symbol in elf.data_symbols() {
        // Constants of the compiler: strings, types, tables.
        if symbol.name.starts_with("go:") || symbol.name.starts_with("type:") {
            continue;
        }
        let place = found.entry(symbol.address.wrapping_add(bias));
        let held = place.or_insert_with(|| Found {
            name: symbol.name.to_owned(),
            size: symbol.size,
            kind: None,
        });
        // The linker marks ends and starts of sections with symbols without a size.
        if held.size < symbol.size {
            symbol.name.clone_into(&mut held.name);
            held.size = symbol.size;
        }
    }
    for (name, address, kind) in &debug.variables {
        let place = found.entry(address.wrapping_add(bias));
        let held = place.or_insert_with(|| Found {
            name: name.clone(),
            size: 0,
            kind: None,
        });
        if held.kind.is_none() && (held.size == 0 || held.name == *name) {
            held.name.clone_from(name);
            held.kind = *kind;
        }
    }
    found
}

fn variables(symbols: &BTreeMap<u64, Found>) -> HashMap<String, u64> {
    const PACKAGES: [&str; 6] = [
        "sync.",
        "internal/",
        "runtime/",
        "time.",
        "unique.",
        "weak.",
    ];
    let mut variables = HashMap::new();
    for (address, found) in symbols {
        if let Some(own) = found.name.strip_prefix("runtime.") {
            variables.insert(own.to_owned(), *address);
        } else if PACKAGES.iter().any(|p| found.name.starts_with(p)) {
            variables.insert(found.name.clone(), *address);
        }
    }
    variables
}

/// The release: by the variable that the runtime keeps it in, else by what the linker
/// wrote for `go version`.
fn version(
    elf: &Elf<'_>,
    memory: &Window<'_>,
    variables: &HashMap<String, u64>,
) -> Result<Version, Error> {
    /// With all experiments.
    const MAX: u64 = 1024;
    let told = variables.get("buildVersion").and_then(|address| {
        let (at, length, _) = memory.slice(*address).ok()?;
        let bytes = memory.bytes(at, length, MAX).ok()?;
        Version::parse(std::str::from_utf8(&bytes).ok()?)
    });
    let told = told.or_else(|| {
        let info = elf.section(".go.buildinfo").map(|(_, info)| info);
        build_info(info.or_else(|| search_info(elf))?)
    });
    let version = told.ok_or_else(|| missing("its release of Go"))?;
    if version.minor < goexe::OLDEST {
        return Err(Error::UnsupportedGo {
            what: goexe::too_old(Some(&version.text)),
        });
    }
    Ok(version)
}

/// The build information of a file without sections: it is at the start of a segment.
fn search_info<'f>(elf: &Elf<'f>) -> Option<&'f [u8]> {
    /// As far as the linker's own tool looks.
    const REACH: usize = 64 << 10;
    elf.segments().find_map(|segment| {
        let from = usize::try_from(segment.offset).ok()?;
        let bytes = elf.bytes().get(from..)?;
        let near = &bytes[..bytes.len().min(REACH)];
        let at = near
            .chunks(16)
            .position(|c| c.starts_with(goexe::INFO_MAGIC))?
            * 16;
        bytes.get(at..)
    })
}

/// The version in the build information (since Go 1.18).
fn build_info(info: &[u8]) -> Option<Version> {
    Version::parse(goexe::info_version(info)?.0)
}

impl Version {
    /// From `go1.25.5 X:greenteagc`, `go1.27.3-X:nogreenteagc`, `devel go1.28-abc`.
    fn parse(text: &str) -> Option<Self> {
        Some(Self {
            minor: goexe::minor(text)?,
            text: text.to_owned(),
        })
    }

    /// What it was built with that the release does not have by itself, or without: the
    /// words of `GOEXPERIMENT`.
    pub(crate) fn experiments(&self) -> impl Iterator<Item = &str> {
        let words = self.text.split_once("X:").map(|(_, words)| words);
        words.into_iter().flat_map(|words| words.split(','))
    }
}

/// The release of a program, and its layout as its debug information tells it.
fn own_layout(executable: &[u8]) -> Result<(Version, Layout), Error> {
    let elf = Elf::parse(executable)?;
    let info = (elf.section(".go.buildinfo")).and_then(|(_, info)| build_info(info));
    let version = info.ok_or_else(|| missing("its release of Go"))?;
    let sections = Sections::read(&elf).ok_or_else(|| missing("debug information"))?;
    Ok((version, sections.debug().layout))
}

/// The table of layouts by which stripped programs are read (`layouts.tsv`), from one
/// program with debug information for each release or experiment.
///
/// # Errors
/// Where one is no Go program, or stripped.
pub fn table_of_layouts(executables: &[Vec<u8>]) -> Result<String, Error> {
    let mut releases = Vec::new();
    for executable in executables {
        releases.push(own_layout(executable)?);
    }
    releases.sort_by_key(|(version, _)| (version.minor, version.text.clone()));
    Ok(layout::to_table(&releases))
}

#[cfg(test)]
mod tests;
