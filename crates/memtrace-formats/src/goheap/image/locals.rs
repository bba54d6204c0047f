//! Where functions keep their variables while they wait for a call to return.
//!
//! Only the functions that are in the stacks of a program are read, each once, and only
//! what is in memory: a call keeps nothing in registers.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use gimli::{AttributeValue, DebugInfoOffset, DwAt, Expression, Operation};
use rayon::prelude::*;

use super::dwarf::{Sections, Slice, Types, Unit, number, reference};
use super::{DebugTypeId, Image};

/// Instructions that are asked for.
const MAX_PLACES: usize = 1 << 16;
/// Entries, ranges and locations that are looked at for all of them.
const MAX_STEPS: u64 = 1 << 24;
/// Operations of a location.
const MAX_OPERATIONS: usize = 256;

/// The debug information of functions, kept until the stacks are known.
#[derive(Debug, Default)]
pub(crate) struct FunctionInfo<'f> {
    pub(super) sections: Option<Sections<'f>>,
    /// Types that were read, by their offset.
    pub(super) numbers: HashMap<usize, DebugTypeId>,
    /// What is added to an address of the file.
    pub(super) bias: u64,
}

/// A variable or parameter that is in its frame at some instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Local {
    pub(crate) kind: DebugTypeId,
    /// The frame has a pointer to the variable instead of the variable.
    pub(crate) is_behind: bool,
    pub(crate) pieces: Vec<Piece>,
}

/// Bytes of a variable that lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Where they are, from the canonical frame address (the caller's stack pointer).
    pub(crate) at: i64,
    /// Where they are in the variable.
    pub(crate) offset: u64,
    /// How many; `u64::MAX` for all that follow.
    pub(crate) size: u64,
}

/// A variable with what is yet to be read of it.
struct Found {
    place: u64,
    kind: Option<DebugInfoOffset>,
    origin: Option<DebugInfoOffset>,
    is_behind: bool,
    pieces: Vec<Piece>,
}

impl Image {
    /// The variables that are in the frames of functions at instructions: addresses in the
    /// process, of calls. Adds their types to [`Image::debug_types`].
    pub(crate) fn read_locals(
        &mut self,
        info: FunctionInfo<'_>,
        places: &HashSet<u64>,
    ) -> HashMap<u64, Vec<Local>> {
        let mut locals: HashMap<u64, Vec<Local>> = HashMap::new();
        let Some(dwarf) = info.sections.as_ref().and_then(Sections::open) else {
            return locals;
        };
        let mut left: Vec<u64> = (places.iter())
            .map(|p| p.wrapping_sub(info.bias))
            .take(MAX_PLACES)
            .collect();
        left.sort_unstable();
        if left.is_empty() {
            return locals;
        }
        let units = dwarf.units_by_offset();
        let steps = AtomicU64::new(MAX_STEPS);
        let reader = |unit| Reader {
            dwarf: &dwarf.0,
            unit,
            steps: &steps,
            found: Vec::new(),
        };
        let covered: Vec<Vec<u64>> = (units.par_iter())
            .map(|(_, unit)| reader(unit).covered(&left))
            .collect();
        // An instruction belongs to one unit only.
        let mut taken = HashSet::new();
        let mut work = Vec::new();
        for ((_, unit), mut places) in units.iter().zip(covered) {
            places.retain(|p| taken.insert(*p));
            if !places.is_empty() {
                work.push((unit, places));
            }
        }
        let found: Vec<Found> = (work.into_par_iter())
            .flat_map_iter(|(unit, places)| {
                let mut reader = reader(unit);
                // What could be read before the damage is of use.
                let _ = reader.functions(&places);
                reader.found
            })
            .collect();
        let known = self.debug_types.len();
        let types = std::mem::take(&mut self.debug_types);
        let mut types = Types::new(&dwarf.0, &units, types, info.numbers);
        let mut origins = HashMap::new();
        for variable in found {
            let kind = variable.kind.or_else(|| {
                let origin = variable.origin?;
                let read = || types.entry(origin)?.inner;
                *origins.entry(origin.0).or_insert_with(read)
            });
            let Some(kind) = kind.and_then(|k| types.number(k)) else {
                continue;
            };
            let place = variable.place.wrapping_add(info.bias);
            locals.entry(place).or_default().push(Local {
                kind,
                is_behind: variable.is_behind,
                pieces: variable.pieces,
            });
        }
        self.debug_types = types.finish().0;
        self.place_types_from(known);
        locals
    }
}

/// Reads the functions of a unit.
struct Reader<'u, 'd> {
    dwarf: &'u gimli::Dwarf<Slice<'d>>,
    unit: &'u Unit<'d>,
    steps: &'u AtomicU64,
    found: Vec<Found>,
}

type Attributes<'d> = [gimli::Attribute<Slice<'d>>];

fn value<'d>(attributes: &Attributes<'d>, name: DwAt) -> Option<AttributeValue<Slice<'d>>> {
    let found = attributes.iter().find(|a| a.name() == name);
    found.map(gimli::Attribute::value)
}

/// Those of some sorted places that are in a range.
fn within(places: &[u64], from: u64, to: u64) -> &[u64] {
    let start = places.partition_point(|&p| p < from);
    let end = places.partition_point(|&p| p < to);
    places.get(start..end).unwrap_or_default()
}

impl<'d> Reader<'_, 'd> {
    /// Takes from what may be looked at; false when nothing is left.
    fn step(&self, count: usize) -> bool {
        let take = |left: u64| left.checked_sub(count as u64);
        let order = Ordering::Relaxed;
        self.steps.fetch_update(order, order, take).is_ok()
    }

    /// Places in the unit, ascending.
    fn covered(&self, places: &[u64]) -> Vec<u64> {
        let read = || -> Result<Vec<u64>, gimli::Error> {
            let mut entries = self.unit.entries_raw(None)?;
            let mut attributes = Vec::new();
            let Some(abbreviation) = entries.read_abbreviation()? else {
                return Ok(Vec::new());
            };
            entries.read_attributes(abbreviation.attributes(), &mut attributes)?;
            match value(&attributes, gimli::DW_AT_language) {
                Some(AttributeValue::Language(gimli::DW_LANG_Go)) => {}
                _ => return Ok(Vec::new()),
            }
            self.inside(&attributes, places)
        };
        read().unwrap_or_default()
    }

    /// Those of some places that are in the ranges of an entry, ascending; all of them
    /// where it has none.
    fn inside(
        &self,
        attributes: &Attributes<'d>,
        places: &[u64],
    ) -> Result<Vec<u64>, gimli::Error> {
        if let Some(ranges) = value(attributes, gimli::DW_AT_ranges) {
            let mut inside = Vec::new();
            let mut ranges = self.dwarf.attr_ranges(self.unit, ranges)?;
            while let Some(range) = ranges.as_mut().map(|r| r.next()).transpose()?.flatten() {
                let found = within(places, range.begin, range.end);
                if !self.step(1 + found.len()) {
                    break;
                }
                inside.extend_from_slice(found);
            }
            inside.sort_unstable();
            inside.dedup();
            return Ok(inside);
        }
        let address = |name| match value(attributes, name) {
            Some(address) => self.dwarf.attr_address(self.unit, address),
            None => Ok(None),
        };
        let Some(low) = address(gimli::DW_AT_low_pc)? else {
            return Ok(places.to_vec());
        };
        let high = match address(gimli::DW_AT_high_pc)? {
            Some(high) => high,
            None => {
                let length = value(attributes, gimli::DW_AT_high_pc).and_then(|v| number(&v));
                low.saturating_add(length.unwrap_or(0))
            }
        };
        Ok(within(places, low, high).to_vec())
    }

    fn functions(&mut self, places: &[u64]) -> Result<(), gimli::Error> {
        let mut entries = self.unit.entries_raw(None)?;
        let mut attributes = Vec::new();
        // The function's places, and those of the scopes that are entered.
        let mut function = Vec::new();
        let mut scopes: Vec<(isize, Vec<u64>)> = Vec::new();
        while !entries.is_empty() {
            let depth = entries.next_depth();
            let Some(abbreviation) = entries.read_abbreviation()? else {
                continue;
            };
            while scopes.last().is_some_and(|(scope, _)| *scope >= depth) {
                scopes.pop();
            }
            let tag = abbreviation.tag();
            let is_wanted = match depth {
                ..=0 => false,
                1 => {
                    function.clear();
                    tag == gimli::DW_TAG_subprogram
                }
                _ => {
                    !function.is_empty()
                        && matches!(
                            tag,
                            gimli::DW_TAG_variable
                                | gimli::DW_TAG_formal_parameter
                                | gimli::DW_TAG_lexical_block
                                | gimli::DW_TAG_inlined_subroutine
                        )
                }
            };
            if !is_wanted {
                entries.skip_attributes(abbreviation.attributes())?;
                continue;
            }
            entries.read_attributes(abbreviation.attributes(), &mut attributes)?;
            if !self.step(1) {
                return Ok(());
            }
            match tag {
                gimli::DW_TAG_subprogram => {
                    // What is only ever inlined has no code of its own.
                    if value(&attributes, gimli::DW_AT_low_pc).is_some() {
                        function = self.inside(&attributes, places)?;
                    }
                }
                gimli::DW_TAG_lexical_block | gimli::DW_TAG_inlined_subroutine => {
                    let outer = scopes.last().map_or(&function, |(_, places)| places);
                    let inner = self.inside(&attributes, outer)?;
                    if !self.step(inner.len()) {
                        return Ok(());
                    }
                    scopes.push((depth, inner));
                }
                _ => {
                    let scope = scopes.last().map_or(&function, |(_, places)| places);
                    // Damage of one variable is none of the others.
                    let _ = self.variable(&attributes, &function, scope);
                }
            }
        }
        Ok(())
    }

    /// Takes in where a variable is.
    fn variable(
        &mut self,
        attributes: &Attributes<'d>,
        function: &[u64],
        scope: &[u64],
    ) -> Result<(), gimli::Error> {
        let offset = |name| value(attributes, name).and_then(|v| reference(self.unit, v));
        let kind = offset(gimli::DW_AT_type);
        let origin = offset(gimli::DW_AT_abstract_origin);
        let Some(location) = value(attributes, gimli::DW_AT_location) else {
            return Ok(());
        };
        let mut found = Vec::new();
        let mut add = |places: &[u64], expression| {
            let (pieces, is_behind) = pieces_of(self.unit.encoding(), expression);
            if pieces.is_empty() || !self.step(places.len()) {
                return;
            }
            found.extend(places.iter().map(|&place| Found {
                place,
                kind,
                origin,
                is_behind,
                pieces: pieces.clone(),
            }));
        };
        if let Some(expression) = location.exprloc_value() {
            add(scope, expression);
        } else if let Some(mut list) = self.dwarf.attr_locations(self.unit, location)? {
            // A list says by itself where the variable is valid, and a block leaves out what
            // is inlined into it.
            while let Some(entry) = list.next()? {
                if !self.step(1) {
                    break;
                }
                let places = within(function, entry.range.begin, entry.range.end);
                if !places.is_empty() {
                    add(places, entry.data);
                }
            }
        }
        self.found.append(&mut found);
        Ok(())
    }
}

/// The parts of a variable that are in the frame, and whether it is a pointer to the
/// variable that is there. What is in registers or has no place is left out.
fn pieces_of(encoding: gimli::Encoding, expression: Expression<Slice<'_>>) -> (Vec<Piece>, bool) {
    let mut operations = expression.operations(encoding);
    let mut pieces = Vec::new();
    // Where the next piece is, a number to add to it, whether all that led to it was known.
    let (mut at, mut pending, mut is_known) = (None, None, true);
    let (mut offset, mut is_behind, mut is_whole) = (0_u64, false, true);
    for _ in 0..MAX_OPERATIONS {
        let operation = match operations.next() {
            Ok(Some(operation)) => operation,
            Ok(None) => {
                let size = if is_behind { 8 } else { u64::MAX };
                let at = at.filter(|_| is_whole && is_known && pending.is_none());
                pieces.extend(at.map(|at| Piece { at, offset, size }));
                return (pieces, is_behind);
            }
            Err(_) => break,
        };
        match operation {
            Operation::FrameOffset { offset } if at.is_none() => at = Some(offset),
            Operation::CallFrameCFA if at.is_none() => at = Some(0),
            Operation::PlusConstant { value } => {
                at = at.and_then(|a| a.checked_add_unsigned(value));
            }
            Operation::SignedConstant { value } if at.is_some() => pending = Some(value),
            Operation::UnsignedConstant { value } if at.is_some() => {
                pending = i64::try_from(value).ok();
            }
            Operation::Plus => {
                at = at.and_then(|a| a.checked_add(pending.take()?));
            }
            Operation::Deref { .. } if at.is_some() && !is_behind => is_behind = true,
            Operation::Piece {
                size_in_bits,
                bit_offset: None | Some(0),
            } if !is_behind && size_in_bits % 8 == 0 => {
                let size = size_in_bits / 8;
                let place = at.take().filter(|_| is_known && pending.is_none());
                pieces.extend(place.map(|at| Piece { at, offset, size }));
                (pending, is_known) = (None, true);
                let Some(next) = offset.checked_add(size) else {
                    break;
                };
                (offset, is_whole) = (next, false);
            }
            Operation::Piece { .. } => break,
            _ => is_known = false,
        }
    }
    (Vec::new(), false)
}

#[cfg(test)]
mod tests {
    use gimli::constants::{
        DW_OP_call_frame_cfa, DW_OP_consts, DW_OP_deref, DW_OP_fbreg, DW_OP_lit0, DW_OP_piece,
        DW_OP_plus, DW_OP_reg0, DW_OP_stack_value,
    };
    use gimli::{EndianSlice, LittleEndian};

    use super::{Piece, pieces_of};

    const ENCODING: gimli::Encoding = gimli::Encoding {
        format: gimli::Format::Dwarf32,
        version: 5,
        address_size: 8,
    };

    fn told(bytes: &[u8]) -> (Vec<(i64, u64, u64)>, bool) {
        let expression = gimli::Expression(EndianSlice::new(bytes, LittleEndian));
        let (pieces, is_behind) = pieces_of(ENCODING, expression);
        let told = |p: &Piece| (p.at, p.offset, p.size);
        (pieces.iter().map(told).collect(), is_behind)
    }

    #[test]
    fn a_variable_in_one_place() {
        let whole = |at| (vec![(at, 0, u64::MAX)], false);
        assert_eq!(told(&[DW_OP_fbreg.0, 0x78]), whole(-8));
        assert_eq!(told(&[DW_OP_call_frame_cfa.0]), whole(0));
        let sum = [DW_OP_call_frame_cfa.0, DW_OP_consts.0, 0x70, DW_OP_plus.0];
        assert_eq!(told(&sum), whole(-16));
    }

    #[test]
    fn a_variable_in_pieces_some_of_which_are_elsewhere() {
        let slice = [
            [DW_OP_fbreg.0, 0x70, DW_OP_piece.0, 8].as_slice(),
            &[DW_OP_reg0.0, DW_OP_piece.0, 8],
            &[DW_OP_lit0.0, DW_OP_stack_value.0, DW_OP_piece.0, 8],
            &[DW_OP_piece.0, 8],
            &[DW_OP_fbreg.0, 0x10, DW_OP_piece.0, 16],
        ];
        let expected = (vec![(-16, 0, 8), (16, 32, 16)], false);
        assert_eq!(told(&slice.concat()), expected);
    }

    #[test]
    fn a_pointer_to_a_variable() {
        let escaped = [DW_OP_fbreg.0, 0x70, DW_OP_deref.0];
        assert_eq!(told(&escaped), (vec![(-16, 0, 8)], true));
    }

    #[test]
    fn what_is_not_understood_has_no_place() {
        for bytes in [
            &[][..],
            &[DW_OP_reg0.0],
            &[DW_OP_fbreg.0],
            &[DW_OP_fbreg.0, 0x70, DW_OP_stack_value.0],
            &[DW_OP_fbreg.0, 0x70, DW_OP_lit0.0],
            &[DW_OP_fbreg.0, 0x70, DW_OP_deref.0, DW_OP_deref.0],
            &[0xff; 64],
        ] {
            assert!(told(bytes).0.is_empty(), "{bytes:?}");
        }
        // As many pieces as bytes allow are too many.
        let endless = [DW_OP_fbreg.0, 0x70, DW_OP_piece.0, 8].repeat(1 << 16);
        assert!(told(&endless).0.is_empty());
    }
}
