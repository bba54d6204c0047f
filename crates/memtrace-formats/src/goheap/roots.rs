//! What keeps objects alive from outside the heap.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use memtrace_model::{
    Allocated, EdgeSlot, Goroutine, HeapFrame, HeapFrameId, HeapGraph, HeapStackId, NodeId, Root,
    RootKind, WaitsFor,
};

use super::Process;
use super::code::Code;
use super::functions::{Functions, SourceFrame};
use super::goroutines::{self, RawGoroutine};
use super::image::{Global, Image, Local, Module};
use super::memory::Window;
use super::scan::Edges;
use super::spans::Spans;
use super::specials::{self, SpecialKind, Specials};
use super::types::{Form, Pointee, TypeNo, Types};
use super::typing::Typing;
use crate::Warning;

/// Bytes of variables that are read: programs have some MB.
const MAX_DATA: u64 = 4 << 30;
/// Pointers of variables in frames that are looked at, at all instructions together.
const MAX_LOCAL_SLOTS: u64 = 1 << 26;

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
    // Modules lie apart.
    let mut left = MAX_DATA.min(window.size());
    for module in &image.modules {
        for (range, mask) in [
            (module.data, module.data_mask),
            (module.bss, module.bss_mask),
        ] {
            let length = range.1.saturating_sub(range.0);
            let pointers = (length <= left).then(|| pointers(window, image, spans, range, mask));
            left = left.saturating_sub(length);
            let Some(pointers) = pointers.flatten() else {
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
                    address: pointer.address,
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
    /// Where the pointer is, and how far that is from where the variable starts.
    address: u64,
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
pub(crate) fn claim(typing: &mut Typing<'_>, image: &Image, code: &Code, held: &[Held]) {
    let mut last: Option<(usize, Option<TypeNo>)> = None;
    for pointer in held {
        if let Some(&to) = code.variables.get(&pointer.address) {
            typing.pointer(pointer.target, to, pointer.interior);
        }
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
            if let Pointee::Object(Form::Array, _) = to {
                typing.slice(pointer.target, pointer.address);
            }
        }
    }
}

fn pointee(types: &mut Types<'_>, kind: TypeNo, offset: u64) -> Option<Pointee> {
    let slots = types.slots(Form::Value, kind);
    let at = slots.binary_search_by_key(&offset, |s| s.offset).ok()?;
    Some(slots[at].to)
}

/// What a frame leads to.
pub(crate) struct FrameHeld {
    /// The instruction where it stands.
    stands: u64,
    /// The canonical frame address.
    cfa: u64,
    pointers: Vec<FramePointer>,
}

struct FramePointer {
    /// Where it is.
    address: u64,
    target: u32,
    interior: bool,
}

/// The instructions where frames stand.
pub(crate) fn places_of(frames: &[FrameHeld]) -> HashSet<u64> {
    frames.iter().map(|f| f.stands).collect()
}

/// A pointer in a frame, by the variable that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LocalSlot {
    to: Pointee,
    /// Of an interface: where its type is, from the canonical frame address.
    before: Option<i64>,
    /// Of a slice: it is whole, length and capacity follow.
    is_whole: bool,
}

/// Tells what frames lead to by their variables. Returns what interfaces hold, each with the
/// word that tells its type.
pub(crate) fn claim_frames(
    typing: &mut Typing<'_>,
    window: &Window<'_>,
    locals: &HashMap<u64, Vec<Local>>,
    frames: &[FrameHeld],
) -> Vec<(u32, u64)> {
    let mut left = MAX_LOCAL_SLOTS;
    let mut known: HashMap<u64, HashMap<i64, Option<LocalSlot>>> = HashMap::new();
    let mut interfaces = Vec::new();
    for frame in frames {
        let Some(of) = locals.get(&frame.stands) else {
            continue;
        };
        let slots = (known.entry(frame.stands))
            .or_insert_with(|| local_slots(&mut typing.types, of, &mut left));
        for pointer in &frame.pointers {
            let at = pointer.address.wrapping_sub(frame.cfa).cast_signed();
            let Some(Some(slot)) = slots.get(&at) else {
                continue;
            };
            typing.pointer(pointer.target, slot.to, pointer.interior);
            match slot.to {
                Pointee::Object(Form::Array, _) if slot.is_whole => {
                    typing.slice(pointer.target, pointer.address);
                }
                Pointee::Interface if !pointer.interior => {
                    let word = slot.before.and_then(|b| frame.cfa.checked_add_signed(b));
                    if let Some(word) = word.and_then(|at| window.u64(at).ok()) {
                        interfaces.push((pointer.target, word));
                    }
                }
                _ => {}
            }
        }
    }
    interfaces
}

/// The pointers of variables, by where they are from the canonical frame address; `None`
/// where variables share a place and it is not known which one is there.
fn local_slots(
    types: &mut Types<'_>,
    locals: &[Local],
    left: &mut u64,
) -> HashMap<i64, Option<LocalSlot>> {
    let mut found: HashMap<i64, Option<LocalSlot>> = HashMap::new();
    let mut add = |at: i64, slot: LocalSlot| {
        let held = found.entry(at).or_insert(Some(slot));
        if held.is_some_and(|h| h.to != slot.to) {
            *held = None;
        }
    };
    for local in locals {
        let Some(kind) = types.debug(local.kind) else {
            continue;
        };
        if local.is_behind {
            for piece in &local.pieces {
                let slot = LocalSlot {
                    to: Pointee::Object(Form::Value, kind),
                    before: None,
                    is_whole: false,
                };
                add(piece.at, slot);
            }
            continue;
        }
        let slots = types.slots(Form::Value, kind);
        let (size, pieces) = (types.size(kind), &local.pieces);
        // Where bytes of the variable are.
        let place = |offset: u64, length: u64| {
            let end = offset.checked_add(length).filter(|e| *e <= size)?;
            pieces.iter().find_map(|p| {
                let into = offset.checked_sub(p.offset)?;
                let is_inside = end <= p.offset.saturating_add(p.size);
                is_inside.then(|| p.at.checked_add_unsigned(into)).flatten()
            })
        };
        for slot in slots.iter().filter(|s| s.to != Pointee::Unknown) {
            let work = 1 + pieces.len() as u64;
            let Some(rest) = left.checked_sub(work) else {
                return found;
            };
            *left = rest;
            if let Some(at) = place(slot.offset, 8) {
                let before = slot.offset.checked_sub(8);
                let slot = LocalSlot {
                    to: slot.to,
                    before: before.and_then(|b| place(b, 8)),
                    is_whole: place(slot.offset, 24).is_some(),
                };
                add(at, slot);
            }
        }
    }
    found
}

/// Places in the code, each once.
#[derive(Default)]
struct Sources {
    numbers: HashMap<(Arc<str>, Arc<str>, u32), HeapFrameId>,
}

impl Sources {
    fn frame(&mut self, graph: &mut HeapGraph, place: &SourceFrame) -> HeapFrameId {
        let key = (place.function.clone(), place.file.clone(), place.line);
        *self.numbers.entry(key).or_insert_with(|| {
            graph.frames.push(HeapFrame {
                function: graph.strings.intern(&place.function),
                file: graph.strings.intern(&place.file),
                line: place.line,
            });
            HeapFrameId(graph.frames.len() as u32 - 1)
        })
    }

    fn stack<'a>(
        &mut self,
        graph: &mut HeapGraph,
        places: impl Iterator<Item = &'a SourceFrame>,
    ) -> HeapStackId {
        let frames: Vec<HeapFrameId> = places.map(|p| self.frame(graph, p)).collect();
        HeapStackId(graph.stacks.intern(&frames).unwrap_or(0))
    }
}

/// Adds goroutines, and their frames that lead to objects; tells what these lead to.
#[expect(clippy::too_many_arguments, reason = "all that is known meets here")]
pub(crate) fn goroutines(
    window: &Window<'_>,
    image: &Image,
    functions: &Functions,
    process: &Process<'_>,
    spans: &Spans,
    graph: &mut HeapGraph,
    roots: &mut Roots,
    warnings: &mut Vec<Warning>,
) -> Vec<FrameHeld> {
    let mut held = Vec::new();
    let (mut all, lost) =
        goroutines::read(window, image, functions, process.threads, process.monotonic);
    if !process.with_labels {
        all.iter_mut().for_each(|g| g.labels.clear());
    }
    warnings.extend(lost.into_iter().map(|what| Warning::Heap { what }));
    let mut sources = Sources::default();
    for raw in &all {
        let root = roots.root(Root {
            kind: RootKind::Goroutine,
            name: graph.strings.intern(&raw.entry_function),
            ..Root::default()
        });
        for place in raw.other.iter().filter_map(|&p| spans.object_at(p)) {
            roots.edge(place.node, EdgeSlot::new(0, place.offset != 0));
        }
        for frame in &raw.frames {
            let pointers = frame.pointers.iter().filter_map(|&(address, pointer)| {
                let place = spans.object_at(pointer)?;
                Some(FramePointer {
                    address,
                    target: place.node,
                    interior: place.offset != 0,
                })
            });
            let pointers: Vec<FramePointer> = pointers.collect();
            if pointers.is_empty() {
                continue;
            }
            roots.root(Root {
                kind: RootKind::Frame,
                name: graph.strings.intern(&frame.function),
                parent: Some(root),
                line: frame.line,
            });
            for pointer in &pointers {
                roots.edge(pointer.target, EdgeSlot::new(0, pointer.interior));
            }
            held.push(FrameHeld {
                stands: frame.stands,
                cfa: frame.cfa,
                pointers,
            });
        }
        let goroutine = goroutine(raw, root, spans, graph, &mut sources);
        graph.goroutines.push(goroutine);
    }
    held
}

fn goroutine(
    raw: &RawGoroutine,
    root: u32,
    spans: &Spans,
    graph: &mut HeapGraph,
    sources: &mut Sources,
) -> Goroutine {
    let objects: Vec<Option<NodeId>> = raw
        .waits_on
        .iter()
        .map(|&a| spans.object_at(a).map(|p| NodeId(p.node)))
        .collect();
    let places: Vec<SourceFrame> = raw
        .frames
        .iter()
        .filter(|f| !f.is_hidden)
        .map(|f| SourceFrame {
            function: f.function.clone(),
            file: f.file.clone(),
            line: f.line,
        })
        .collect();
    let stack = sources.stack(graph, places.iter());
    let created_by = raw.created_by.as_ref().map(|c| sources.frame(graph, c));
    Goroutine {
        id: raw.id,
        root,
        state: graph.strings.intern(&raw.state),
        waits_for: match raw.waits_for {
            // One that is not in the heap can always be found again.
            WaitsFor::Objects if objects.is_empty() || objects.iter().any(Option::is_none) => {
                WaitsFor::Elsewhere
            }
            waits_for => waits_for,
        },
        waits_on: objects.into_iter().flatten().collect(),
        waiting_ms: raw.waiting_ns.map(|ns| ns / 1_000_000),
        stack,
        created_by,
        stack_bytes: raw.stack.1.saturating_sub(raw.stack.0),
        is_system: raw.is_system,
        labels: raw
            .labels
            .iter()
            .map(|(k, v)| (graph.strings.intern(k), graph.strings.intern(v)))
            .collect(),
    }
}

/// Adds what finalizers and cleanups keep alive, and who allocated the objects that the heap
/// profile sampled.
pub(crate) fn specials(
    window: &Window<'_>,
    image: &Image,
    functions: &Functions,
    spans: &Spans,
    edges: &Edges,
    graph: &mut HeapGraph,
    roots: &mut Roots,
) {
    let mut sources = Sources::default();
    let mut stacks: HashMap<u64, HeapStackId> = HashMap::new();
    let mut finalized: HashSet<u32> = HashSet::new();
    let mut reader = Specials::new(window, image);
    let (finalizer, cleanup) = (
        graph.strings.intern("finalizer"),
        graph.strings.intern("cleanup"),
    );
    for span in spans.list.iter().filter(|s| s.specials != 0) {
        for special in reader.of_span(span.start, span.specials) {
            let Some(object) = spans.object_at(special.object) else {
                continue;
            };
            match special.kind {
                SpecialKind::Profile(bucket) => {
                    let stack = *stacks.entry(bucket.address).or_insert_with(|| {
                        let places = functions.call_stack(window, &bucket.pcs);
                        // The allocator's own frames say nothing.
                        let own = |p: &SourceFrame| !p.function.starts_with("runtime.");
                        let first = places.iter().position(own).unwrap_or(0);
                        sources.stack(graph, places[first..].iter())
                    });
                    graph.allocated.push(Allocated {
                        node: NodeId(object.node),
                        stack,
                    });
                }
                // An object has one at most.
                SpecialKind::Finalizer { .. } if !finalized.insert(object.node) => {}
                SpecialKind::Finalizer { function } => {
                    roots.root(Root {
                        kind: RootKind::Finalizer,
                        name: finalizer,
                        ..Root::default()
                    });
                    // What the object leads to stays, the object itself does not.
                    let range = edges.starts[object.node as usize] as usize
                        ..edges.starts[object.node as usize + 1] as usize;
                    for edge in range {
                        roots.edge(
                            edges.targets[edge],
                            EdgeSlot::new(0, edges.slots.at(edge).is_interior()),
                        );
                    }
                    held(spans, roots, &[function]);
                }
                SpecialKind::Cleanup { pointers } => {
                    roots.root(Root {
                        kind: RootKind::Cleanup,
                        name: cleanup,
                        ..Root::default()
                    });
                    held(spans, roots, &pointers);
                }
                SpecialKind::Weak { handle } => {
                    roots.root(Root {
                        kind: RootKind::Runtime,
                        name: graph.strings.intern("handle of a weak pointer"),
                        ..Root::default()
                    });
                    held(spans, roots, &[handle]);
                }
                SpecialKind::Other(_) => {}
            }
        }
    }
    graph.allocated.sort_unstable();
    graph.allocated.dedup_by_key(|a| a.node);
    let queued = specials::queued_finalizers(window, image);
    if !queued.is_empty() {
        roots.root(Root {
            kind: RootKind::Runtime,
            name: graph.strings.intern("queue of finalizers"),
            ..Root::default()
        });
        held(spans, roots, &queued);
    }
}

fn held(spans: &Spans, roots: &mut Roots, pointers: &[u64]) {
    for place in pointers.iter().filter_map(|&p| spans.object_at(p)) {
        roots.edge(place.node, EdgeSlot::new(0, place.offset != 0));
    }
}
