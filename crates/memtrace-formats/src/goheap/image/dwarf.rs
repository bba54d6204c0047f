//! Debug information: types, variables, constants.
//!
//! Two passes. The first goes over all units and notes what the file names at the top:
//! variables, structures of the runtime, constants. The second reads the types that
//! these lead to, and no others.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;

use gimli::{
    AttributeValue, DebugInfoOffset, DwAt, EndianSlice, LittleEndian, Operation, SectionId,
    UnitOffset,
};
use rayon::prelude::*;

use super::elf::Elf;
use super::layout::{is_wanted_constant, key_of_wanted};
use super::{DebugShape, DebugType, DebugTypeId, Layout};

pub(super) type Slice<'d> = EndianSlice<'d, LittleEndian>;
pub(super) type Unit<'d> = gimli::Unit<Slice<'d>>;

const MAX_TYPES: usize = 4 << 20;
const MAX_FIELDS: usize = 1 << 16;
/// Entries within types that are passed over to read those: types may lie in each other.
const MAX_ENTRIES: u64 = 1 << 28;
/// Names for names of names.
const MAX_TYPEDEFS: usize = 16;
/// Structures within structures whose fields have offsets of their own in a layout,
/// and how many fields a structure of the runtime may have then.
const MAX_DEPTH: usize = 3;
const MAX_FLAT: usize = 4096;

/// What Go adds to the standard's attributes.
const GO_KIND: DwAt = DwAt(0x2900);
const GO_ELEM: DwAt = DwAt(0x2902);
const GO_RUNTIME_TYPE: DwAt = DwAt(0x2904);

/// Kinds of types, as the runtime numbers them.
mod kind {
    pub(super) const CHAN: u64 = 18;
    pub(super) const FUNC: u64 = 19;
    pub(super) const INTERFACE: u64 = 20;
    pub(super) const MAP: u64 = 21;
    pub(super) const POINTER: u64 = 22;
    pub(super) const SLICE: u64 = 23;
    pub(super) const STRING: u64 = 24;
    pub(super) const UNSAFE_POINTER: u64 = 26;
}

/// What the debug information tells.
#[derive(Debug, Default)]
pub(super) struct Debug {
    pub(super) layout: Layout,
    /// Name, address in the file, type.
    pub(super) variables: Vec<(String, u64, Option<DebugTypeId>)>,
    /// `runtime` of each is as the file has it: not an address in the process yet.
    pub(super) types: Vec<DebugType>,
    /// Their numbers, by their offset in the section.
    pub(super) numbers: HashMap<usize, DebugTypeId>,
}

/// The sections, decompressed.
#[derive(Debug)]
pub(super) struct Sections<'f>(HashMap<SectionId, Cow<'f, [u8]>>);

impl<'f> Sections<'f> {
    /// `None` where the file is stripped.
    pub(super) fn read(elf: &Elf<'f>) -> Option<Self> {
        let wanted = [
            SectionId::DebugInfo,
            SectionId::DebugAbbrev,
            SectionId::DebugStr,
            SectionId::DebugStrOffsets,
            SectionId::DebugLineStr,
            SectionId::DebugAddr,
            // Units cannot be opened without it.
            SectionId::DebugLine,
            SectionId::DebugRanges,
            SectionId::DebugRngLists,
            SectionId::DebugLoc,
            SectionId::DebugLocLists,
        ];
        let sections: HashMap<_, _> = (wanted.into_par_iter())
            .map(|id| (id, elf.debug_section(id.name())))
            .collect();
        let has_any = sections
            .get(&SectionId::DebugInfo)
            .is_some_and(|s| !s.is_empty());
        has_any.then_some(Self(sections))
    }

    /// `None` where the sections are damaged.
    pub(super) fn open(&self) -> Option<Dwarf<'_>> {
        let load = |id: SectionId| -> Result<Slice<'_>, gimli::Error> {
            let bytes: &[u8] = self.0.get(&id).map_or(&[], |b| b);
            Ok(EndianSlice::new(bytes, LittleEndian))
        };
        gimli::Dwarf::load(load).ok().map(Dwarf)
    }

    /// Reads what is there; damaged units are left out.
    pub(super) fn debug(&self) -> Debug {
        let Some(dwarf) = self.open() else {
            return Debug::default();
        };
        let units = dwarf.units_by_offset();
        let tops: Vec<Top> = (units.par_iter())
            .map(|(_, unit)| top(&dwarf.0, unit))
            .collect();
        let mut reader = Types::new(&dwarf.0, &units, Vec::new(), HashMap::new());
        let mut debug = Debug::default();
        let mut structures = Vec::new();
        for top in tops {
            for (name, address, kind) in top.variables {
                let kind = kind.and_then(|k| reader.number(k));
                debug.variables.push((name, address, kind));
            }
            for (name, offset) in top.structures {
                structures.extend(reader.number(offset).map(|id| (name, id)));
            }
            debug.layout.constants.extend(top.constants);
        }
        (debug.types, debug.numbers) = reader.finish();
        for (name, id) in structures {
            flatten(&debug.types, &name, id, &mut debug.layout);
        }
        debug
    }
}

/// The sections, opened.
pub(super) struct Dwarf<'d>(pub(super) gimli::Dwarf<Slice<'d>>);

impl<'d> Dwarf<'d> {
    /// Units by where they start, ascending.
    pub(super) fn units_by_offset(&self) -> Vec<(usize, Unit<'d>)> {
        let mut headers = Vec::new();
        let mut units = self.0.units();
        while let Ok(Some(header)) = units.next() {
            headers.push(header);
        }
        headers
            .into_par_iter()
            .filter_map(|header| {
                let unit = self.0.unit(header).ok()?;
                let start = UnitOffset(0).to_debug_info_offset(&unit.header)?;
                Some((start.0, unit))
            })
            .collect()
    }
}

/// What one unit has at its top.
#[derive(Default)]
struct Top {
    variables: Vec<(String, u64, Option<DebugInfoOffset>)>,
    /// By the name that the layout has for it.
    structures: Vec<(String, DebugInfoOffset)>,
    constants: Vec<(String, u64)>,
}

fn top(dwarf: &gimli::Dwarf<Slice<'_>>, unit: &Unit<'_>) -> Top {
    let mut top = Top::default();
    // What could be read before the damage is of use.
    let _ = read_top(dwarf, unit, &mut top);
    top
}

fn read_top(
    dwarf: &gimli::Dwarf<Slice<'_>>,
    unit: &Unit<'_>,
    top: &mut Top,
) -> Result<(), gimli::Error> {
    let mut entries = unit.entries_raw(None)?;
    let mut attributes = Vec::new();
    while !entries.is_empty() {
        let (depth, offset) = (entries.next_depth(), entries.next_offset());
        let Some(abbreviation) = entries.read_abbreviation()? else {
            continue;
        };
        let tag = abbreviation.tag();
        let wanted = match depth {
            0 => true,
            1 => matches!(
                tag,
                gimli::DW_TAG_variable
                    | gimli::DW_TAG_constant
                    | gimli::DW_TAG_structure_type
                    | gimli::DW_TAG_typedef
            ),
            _ => false,
        };
        if !wanted {
            entries.skip_attributes(abbreviation.attributes())?;
            continue;
        }
        entries.read_attributes(abbreviation.attributes(), &mut attributes)?;
        let value = |name: DwAt| attributes.iter().find(|a| a.name() == name);
        if depth == 0 {
            // C's types and variables have nothing that the collector looks at.
            match value(gimli::DW_AT_language).map(|a| a.value()) {
                Some(AttributeValue::Language(gimli::DW_LANG_Go)) => continue,
                _ => return Ok(()),
            }
        }
        let name = value(gimli::DW_AT_name)
            .and_then(|a| dwarf.attr_string(unit, a.value()).ok())
            .and_then(|s| std::str::from_utf8(s.slice()).ok());
        let Some(name) = name else {
            continue;
        };
        match tag {
            gimli::DW_TAG_variable => {
                let address = value(gimli::DW_AT_location)
                    .and_then(|a| a.exprloc_value())
                    .and_then(|e| address(dwarf, unit, e));
                let kind = value(gimli::DW_AT_type).and_then(|a| reference(unit, a.value()));
                if let Some(address) = address {
                    top.variables.push((name.to_owned(), address, kind));
                }
            }
            gimli::DW_TAG_constant if is_wanted_constant(name) => {
                let value = value(gimli::DW_AT_const_value);
                if let Some(value) = value.and_then(|a| number(&a.value())) {
                    let name = name.strip_prefix("runtime.").unwrap_or(name);
                    top.constants.push((name.to_owned(), value));
                }
            }
            _ => {
                let offset = offset.to_debug_info_offset(&unit.header);
                if let (Some(key), Some(offset)) = (key_of_wanted(name), offset) {
                    top.structures.push((key.to_owned(), offset));
                }
            }
        }
    }
    Ok(())
}

/// A number that an attribute holds; a negative one as its two's complement.
pub(super) fn number(value: &AttributeValue<Slice<'_>>) -> Option<u64> {
    value
        .udata_value()
        .or_else(|| value.sdata_value().map(|v| v as u64))
}

/// The address of a variable of a package.
fn address(
    dwarf: &gimli::Dwarf<Slice<'_>>,
    unit: &Unit<'_>,
    expression: gimli::Expression<Slice<'_>>,
) -> Option<u64> {
    let mut operations = expression.operations(unit.encoding());
    let address = match operations.next().ok()?? {
        Operation::Address { address } => address,
        Operation::AddressIndex { index } => dwarf.address(unit, index).ok()?,
        _ => return None,
    };
    operations.next().ok()?.is_none().then_some(address)
}

pub(super) fn reference(
    unit: &Unit<'_>,
    value: AttributeValue<Slice<'_>>,
) -> Option<DebugInfoOffset> {
    match value {
        AttributeValue::UnitRef(offset) => offset.to_debug_info_offset(&unit.header),
        AttributeValue::DebugInfoRef(offset) => Some(offset),
        _ => None,
    }
}

/// Types by number, read when something refers to them.
pub(super) struct Types<'u, 'd> {
    dwarf: &'u gimli::Dwarf<Slice<'d>>,
    /// By their start.
    units: &'u [(usize, Unit<'d>)],
    numbers: HashMap<usize, DebugTypeId>,
    /// Numbered, and yet to be read.
    pending: Vec<(DebugTypeId, DebugInfoOffset)>,
    types: Vec<DebugType>,
    /// Entries within types that may still be passed over.
    left: Cell<u64>,
}

/// An entry with what is needed of its attributes and children.
#[derive(Default)]
pub(super) struct Entry {
    tag: Option<gimli::DwTag>,
    name: String,
    size: Option<u64>,
    kind: Option<u64>,
    runtime: Option<u64>,
    pub(super) inner: Option<DebugInfoOffset>,
    element: Option<DebugInfoOffset>,
    count: Option<u64>,
    members: Vec<(u64, String, DebugInfoOffset)>,
}

impl<'u, 'd> Types<'u, 'd> {
    /// Goes on from types that were read before.
    pub(super) fn new(
        dwarf: &'u gimli::Dwarf<Slice<'d>>,
        units: &'u [(usize, Unit<'d>)],
        types: Vec<DebugType>,
        numbers: HashMap<usize, DebugTypeId>,
    ) -> Self {
        Self {
            dwarf,
            units,
            numbers,
            pending: Vec::new(),
            types,
            left: Cell::new(MAX_ENTRIES),
        }
    }

    /// Reads what was numbered, and all that it leads to.
    pub(super) fn finish(mut self) -> (Vec<DebugType>, HashMap<usize, DebugTypeId>) {
        self.read_all();
        (self.types, self.numbers)
    }

    /// The number of a type.
    pub(super) fn number(&mut self, offset: DebugInfoOffset) -> Option<DebugTypeId> {
        if let Some(id) = self.numbers.get(&offset.0) {
            return Some(*id);
        }
        if self.types.len() >= MAX_TYPES {
            return None;
        }
        let id = DebugTypeId(self.types.len() as u32);
        self.types.push(DebugType::default());
        self.numbers.insert(offset.0, id);
        self.pending.push((id, offset));
        Some(id)
    }

    fn read_all(&mut self) {
        while let Some((id, offset)) = self.pending.pop() {
            if let Some(read) = self.read(offset)
                && let Some(place) = self.types.get_mut(id.0 as usize)
            {
                *place = read;
            }
        }
    }

    /// Reads a type, behind the names that stand for it.
    fn read(&mut self, offset: DebugInfoOffset) -> Option<DebugType> {
        let mut entry = self.entry(offset)?;
        let mut name = None;
        for _ in 0..MAX_TYPEDEFS {
            // Go tells its maps, channels and interfaces as names for what the runtime
            // keeps them in.
            if entry.tag != Some(gimli::DW_TAG_typedef) || entry.kind.is_some() {
                break;
            }
            let next = self.entry(entry.inner?)?;
            name = name.or(Some(std::mem::take(&mut entry.name)));
            entry = next;
        }
        let name = name.unwrap_or(entry.name);
        let is_empty_interface = entry.kind == Some(kind::INTERFACE)
            && (entry.inner)
                .and_then(|i| self.entry(i))
                .is_some_and(|e| e.name == "runtime.eface");
        let word = |shape| (shape, 8);
        let (shape, size) = match (entry.kind, entry.tag?) {
            (Some(kind::CHAN), _) => word(DebugShape::Channel),
            (Some(kind::MAP), _) => word(DebugShape::Map),
            (Some(kind::FUNC), _) | (_, gimli::DW_TAG_subroutine_type) => {
                word(DebugShape::Function)
            }
            (Some(kind::INTERFACE), _) if is_empty_interface => (DebugShape::EmptyInterface, 16),
            (Some(kind::INTERFACE), _) => (DebugShape::Interface, 16),
            (Some(kind::STRING), _) => (DebugShape::String, 16),
            (Some(kind::SLICE), _) => (DebugShape::Slice(self.number(entry.element?)?), 24),
            (Some(kind::UNSAFE_POINTER), _) => word(DebugShape::Pointer(None)),
            (Some(kind::POINTER), _) | (_, gimli::DW_TAG_pointer_type) => word(
                DebugShape::Pointer(entry.inner.and_then(|i| self.number(i))),
            ),
            (_, gimli::DW_TAG_array_type) => {
                let element = self.number(entry.inner?)?;
                (DebugShape::Array(element, entry.count.unwrap_or(0)), 0)
            }
            (_, gimli::DW_TAG_structure_type) => {
                let mut fields = Vec::new();
                for (at, name, kind) in entry.members {
                    fields.push((at, name, self.number(kind)?));
                }
                (DebugShape::Struct(fields), 0)
            }
            _ => (DebugShape::Plain, 0),
        };
        Some(DebugType {
            name,
            size: entry.size.unwrap_or(size),
            runtime: entry.runtime,
            shape,
        })
    }

    pub(super) fn entry(&self, offset: DebugInfoOffset) -> Option<Entry> {
        let next = self.units.partition_point(|(start, _)| *start <= offset.0);
        let (_, unit) = self.units.get(next.checked_sub(1)?)?;
        let offset = offset.to_unit_offset(&unit.header)?;
        self.read_entry(unit, offset).ok()
    }

    fn read_entry(&self, unit: &Unit<'_>, offset: UnitOffset) -> Result<Entry, gimli::Error> {
        let mut entries = unit.entries_raw(Some(offset))?;
        let mut entry = Entry::default();
        let mut attributes = Vec::new();
        let Some(abbreviation) = entries.read_abbreviation()? else {
            return Ok(entry);
        };
        entry.tag = Some(abbreviation.tag());
        entries.read_attributes(abbreviation.attributes(), &mut attributes)?;
        for attribute in &attributes {
            let value = attribute.value();
            match attribute.name() {
                gimli::DW_AT_name => entry.name = self.text(unit, value),
                gimli::DW_AT_byte_size => entry.size = number(&value),
                gimli::DW_AT_type => entry.inner = reference(unit, value),
                GO_ELEM => entry.element = reference(unit, value),
                GO_KIND => entry.kind = number(&value),
                GO_RUNTIME_TYPE => {
                    entry.runtime = match value {
                        AttributeValue::Addr(address) => Some(address),
                        other => number(&other),
                    }
                    .filter(|r| *r != 0);
                }
                _ => {}
            }
        }
        if !abbreviation.has_children() {
            return Ok(entry);
        }
        while !entries.is_empty() && entries.next_depth() > 0 && entry.members.len() < MAX_FIELDS {
            let Some(left) = self.left.get().checked_sub(1) else {
                break;
            };
            self.left.set(left);
            let depth = entries.next_depth();
            let Some(abbreviation) = entries.read_abbreviation()? else {
                continue;
            };
            entries.read_attributes(abbreviation.attributes(), &mut attributes)?;
            if depth != 1 {
                continue;
            }
            let value = |name: DwAt| {
                let found = attributes.iter().find(|a| a.name() == name);
                found.map(gimli::Attribute::value)
            };
            match abbreviation.tag() {
                gimli::DW_TAG_member => {
                    let at = value(gimli::DW_AT_data_member_location)
                        .and_then(|v| member_offset(unit, &v));
                    let kind = value(gimli::DW_AT_type).and_then(|v| reference(unit, v));
                    let name =
                        value(gimli::DW_AT_name).map_or_else(String::new, |v| self.text(unit, v));
                    if let (Some(at), Some(kind)) = (at, kind) {
                        entry.members.push((at, name, kind));
                    }
                }
                gimli::DW_TAG_subrange_type => {
                    entry.count = value(gimli::DW_AT_count).and_then(|v| number(&v));
                }
                _ => {}
            }
        }
        Ok(entry)
    }

    fn text(&self, unit: &Unit<'_>, value: AttributeValue<Slice<'_>>) -> String {
        // Of the same sections, so that the lifetimes differ in name only.
        let text = match value {
            AttributeValue::String(text) => Some(text),
            AttributeValue::DebugStrRef(offset) => self.dwarf.string(offset).ok(),
            AttributeValue::DebugStrOffsetsIndex(index) => self
                .dwarf
                .string_offset(unit, index)
                .and_then(|o| self.dwarf.string(o))
                .ok(),
            _ => None,
        };
        text.map(|t| t.to_string_lossy().into_owned())
            .unwrap_or_default()
    }
}

/// Offset of a member: a number, or (before Go 1.22) an expression that adds it.
fn member_offset(unit: &Unit<'_>, value: &AttributeValue<Slice<'_>>) -> Option<u64> {
    if let Some(at) = number(value) {
        return Some(at);
    }
    let mut operations = value.exprloc_value()?.operations(unit.encoding());
    match operations.next().ok()?? {
        Operation::PlusConstant { value } => Some(value),
        Operation::UnsignedConstant { value } => Some(value),
        _ => None,
    }
}

/// Adds a structure with those in it to the layout.
fn flatten(types: &[DebugType], key: &str, id: DebugTypeId, layout: &mut Layout) {
    let Some(outer) = types.get(id.0 as usize) else {
        return;
    };
    layout.sizes.insert(key.to_owned(), outer.size);
    let mut open = vec![(key.to_owned(), id, 0_u64, 0_usize)];
    let mut count = 0;
    while let Some((path, id, base, depth)) = open.pop() {
        let Some(DebugShape::Struct(fields)) = types.get(id.0 as usize).map(|t| &t.shape) else {
            continue;
        };
        for (at, name, kind) in fields {
            if name == "_" || name == "noCopy" || count == MAX_FLAT {
                continue;
            }
            count += 1;
            // An embedded field is told by its type's name with the package.
            let name = name.rsplit('/').next().unwrap_or(name);
            let name = name.split_once('.').map_or(name, |(_, last)| last);
            let path = format!("{path}.{name}");
            let at = base.saturating_add(*at);
            if depth < MAX_DEPTH {
                open.push((path.clone(), *kind, at, depth + 1));
            }
            layout.offsets.insert(path, at);
        }
    }
}
