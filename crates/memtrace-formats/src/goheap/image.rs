//! A Go program and where its runtime keeps what: from the executable, and from the
//! memory of the process where the executable is stripped.

use std::collections::HashMap;

use super::memory::{Region, Window};
use crate::Error;

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
            .ok_or_else(|| super::damaged(format!("the layout of {field} is not known")))
    }

    /// Size in bytes of a type.
    pub(crate) fn size(&self, name: &str) -> Result<u64, Error> {
        let size = self.sizes.get(name).copied();
        size.ok_or_else(|| super::damaged(format!("the size of {name} is not known")))
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
    Map(DebugTypeId),
    Channel(DebugTypeId),
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
    pub(crate) address: u64,
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
    /// Addresses in the process of the runtime's variables: `mheap_`, `allgs`, `mbuckets`.
    pub(crate) variables: HashMap<String, u64>,
}

impl Image {
    /// Reads a program.
    ///
    /// # Errors
    /// [`Error::NotAGoProgram`] where it is none, or none whose runtime can be read.
    pub(crate) fn read(
        _executable: &[u8],
        _memory: &Window<'_>,
        _regions: &[Region],
    ) -> Result<Self, Error> {
        Err(super::damaged("not yet"))
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
        address.ok_or_else(|| super::damaged(format!("runtime.{name} was not found")))
    }
}
