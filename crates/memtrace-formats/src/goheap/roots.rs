//! What keeps objects alive from outside the heap.

use memtrace_model::{EdgeSlot, HeapGraph, NodeId, Root, RootKind};

use super::image::{Global, Image, Module};
use super::memory::Window;
use super::spans::Spans;
use super::types::{Form, Pointee, TypeNo, Types};
use super::typing::Typing;
use crate::Warning;

/// Bytes of variables that are read: programs have some MB.
const MAX_DATA: u64 = 4 << 30;

/// Roots with their edges, in the order of the roots.
#[derive(Debug, Default)]
pub(crate) struct Roots {
    pub(crate) list: Vec<Root>,
    starts: Vec<u32>,
    targets: Vec<u32>,
    slots: Vec<EdgeSlot>,
}

impl Roots {
    /// Adds a root; what [`Roots::edge`] adds from now on belongs to it.
    pub(crate) fn root(&mut self, root: Root) -> u32 {
        self.list.push(root);
        self.starts.push(self.targets.len() as u32);
        self.list.len() as u32 - 1
    }

    pub(crate) fn edge(&mut self, target: u32, slot: EdgeSlot) {
        self.targets.push(target);
        self.slots.push(slot);
    }

    /// Puts the roots' edges behind those of the objects.
    pub(crate) fn finish(self, graph: &mut HeapGraph) {
        let before = graph.edges.len() as u32;
        let ends = self.starts.iter().skip(1).copied();
        let ends = ends.chain((!self.list.is_empty()).then_some(self.targets.len() as u32));
        graph
            .edge_starts
            .extend(ends.map(|e| before.saturating_add(e)));
        graph.edges.extend(self.targets.into_iter().map(NodeId));
        graph.edge_slots.extend(self.slots);
        graph.roots = self.list;
    }
}

/// A pointer in a variable.
struct Pointer {
    /// Where the variable is in [`Image::globals`].
    global: Option<usize>,
    address: u64,
    target: u32,
    interior: bool,
    /// The word before it.
    before: u64,
}

/// Adds the variables of packages that lead to objects, and tells what they lead to.
pub(crate) fn globals(
    window: &Window<'_>,
    image: &Image,
    spans: &Spans,
    graph: &mut HeapGraph,
    roots: &mut Roots,
    warnings: &mut Vec<Warning>,
) -> Vec<Held> {
    let mut held = Vec::new();
    for module in &image.modules {
        for (range, mask) in [
            (module.data, module.data_mask),
            (module.bss, module.bss_mask),
        ] {
            let Some(pointers) = pointers(window, image, spans, range, mask) else {
                warnings.push(Warning::Heap {
                    what: format!("variables at {:#x} could not be read", range.0),
                });
                continue;
            };
            let mut last = None;
            for pointer in pointers {
                let place = pointer
                    .global
                    .map_or(pointer.address, |g| image.globals[g].address);
                if last != Some(place) {
                    last = Some(place);
                    let name = match pointer.global {
                        Some(global) => image.globals[global].name.clone(),
                        None => place_name(module, pointer.address),
                    };
                    roots.root(Root {
                        kind: RootKind::Global,
                        name: graph.strings.intern(&name),
                        ..Root::default()
                    });
                }
                let offset = pointer.address - place;
                roots.edge(pointer.target, EdgeSlot::new(offset, pointer.interior));
                held.push(Held {
                    global: pointer.global,
                    offset,
                    target: pointer.target,
                    interior: pointer.interior,
                    before: pointer.before,
                });
            }
        }
    }
    held
}

/// What a variable leads to.
pub(crate) struct Held {
    global: Option<usize>,
    offset: u64,
    pub(crate) target: u32,
    pub(crate) interior: bool,
    /// The word before the pointer: a type, where the variable is an interface.
    pub(crate) before: u64,
}

/// Where a variable without a name is.
fn place_name(module: &Module, address: u64) -> String {
    let (part, start) = if (module.bss.0..module.bss.1).contains(&address) {
        ("bss", module.bss.0)
    } else {
        ("data", module.data.0)
    };
    format!("{part}+{:#x}", address - start)
}

fn pointers(
    window: &Window<'_>,
    image: &Image,
    spans: &Spans,
    (from, to): (u64, u64),
    (mask, bits): (u64, u64),
) -> Option<Vec<Pointer>> {
    let length = to.checked_sub(from)?;
    if length > MAX_DATA {
        return None;
    }
    let mask = window
        .bytes(mask, bits.min(length / 8).div_ceil(8), MAX_DATA)
        .ok()?;
    let data = window.bytes(from, length, MAX_DATA).ok()?;
    let words = data.as_chunks::<8>().0;
    let mut global = 0;
    let mut found = Vec::new();
    for (i, word) in words.iter().enumerate().take(bits as usize) {
        if mask.get(i / 8)? >> (i % 8) & 1 == 0 {
            continue;
        }
        let Some(place) = spans.object_at(u64::from_le_bytes(*word)) else {
            continue;
        };
        let address = from + 8 * i as u64;
        let holds = |g: &Global| address >= g.address && address - g.address < g.size;
        if !image.globals.get(global).is_some_and(holds) {
            global = image
                .globals
                .partition_point(|g| g.address <= address)
                .saturating_sub(1);
        }
        found.push(Pointer {
            global: image
                .globals
                .get(global)
                .filter(|g| holds(g))
                .map(|_| global),
            address,
            target: place.node,
            interior: place.offset != 0,
            before: i.checked_sub(1).map_or(0, |b| u64::from_le_bytes(words[b])),
        });
    }
    Some(found)
}

/// Tells what variables with a type lead to.
pub(crate) fn claim(typing: &mut Typing<'_>, image: &Image, held: &[Held]) {
    let mut last: Option<(usize, Option<TypeNo>)> = None;
    for pointer in held {
        let Some(number) = pointer.global else {
            continue;
        };
        let kind = match last {
            Some((known, kind)) if known == number => kind,
            _ => image.globals[number]
                .kind
                .and_then(|k| typing.types.debug(k)),
        };
        last = Some((number, kind));
        if let Some(to) = kind.and_then(|k| pointee(&mut typing.types, k, pointer.offset)) {
            typing.pointer(pointer.target, to, pointer.interior);
        }
    }
}

fn pointee(types: &mut Types<'_>, kind: TypeNo, offset: u64) -> Option<Pointee> {
    let slots = types.slots(Form::Value, kind);
    let at = slots.binary_search_by_key(&offset, |s| s.offset).ok()?;
    Some(slots[at].to)
}
