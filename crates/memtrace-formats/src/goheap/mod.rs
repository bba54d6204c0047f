//! The heap of a Go process, read from outside.
//!
//! ```text
//! executable ──image──▶ version, layouts, globals ─┐
//! Memory ──┬──────────▶ module, functions ─────────┤
//!          ├─spans, masks──▶ objects, edges ───────┤
//!          ├─types────────▶ what each object is ───┼──▶ HeapGraph
//!          └─goroutines───▶ roots, frames, waits ──┘
//! ```
//!
//! The runtime's own structures are followed, from `mheap_.allspans` to each object and
//! from each root to what it holds. Their layouts come from the program's debug
//! information, else from a table of versions. Whatever is read may be wrong: every
//! number from the target is checked before it counts.

mod chain;
mod classes;
mod code;
mod descriptor;
mod frames;
mod functions;
mod goroutines;
mod image;
mod infer;
mod labels;
mod masks;
mod memory;
mod profile;
mod roots;
mod scan;
mod spans;
mod specials;
mod types;
mod typing;

use hashbrown::HashMap;

use memtrace_model::{HeapGraph, HeapTotals, NodeId, Time};

use crate::{Error, Warning};
use classes::Allocator;
use code::Code;
use functions::Functions;
use image::Image;
pub use image::table_of_layouts;
pub use labels::{LABEL_FUNCTIONS, LabelForm, LabelSites};
use memory::{Bounded, Window};
pub use memory::{Memory, Region, Registers, Thread, Unreadable};
pub use profile::Program;
use roots::Roots;
use scan::{Hint, Places};
use spans::Spans;
use types::Types;
use typing::Typing;

/// A process whose heap is to be read.
#[derive(Clone, Copy)]
pub struct Process<'a> {
    /// Its executable, as the file is.
    pub executable: &'a [u8],
    /// Its memory, which must not change meanwhile.
    pub memory: &'a dyn Memory,
    /// Its mappings, ascending.
    pub regions: &'a [Region],
    /// Its threads at that moment.
    pub threads: &'a [Thread],
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since the machine did; 0 when unknown.
    pub start: u64,
    /// The moment.
    pub taken: Time,
    /// That moment by the clock that the runtime uses (`CLOCK_MONOTONIC`), in nanoseconds,
    /// where it is known.
    pub monotonic: Option<u64>,
    /// Read the labels (`runtime/pprof`) of goroutines: texts of the program.
    pub with_labels: bool,
    /// Bytes of memory that the reading may take.
    pub max_memory: u64,
}

/// Bytes of memory that an object takes while its heap is read (measured: 39 at a hundred
/// million).
const OBJECT: u64 = 40;
/// Entries of the runtime's table of itabs that are read.
const MAX_ITABS: u64 = 1 << 22;

/// Reads all objects and what keeps them alive.
///
/// # Errors
/// What [`goexe::look`](crate::goexe::look) says of the executable, and why the runtime's
/// tables cannot be read. What is missing otherwise is among the warnings.
pub fn read(process: &Process<'_>) -> Result<(HeapGraph, Vec<Warning>), Error> {
    let memory = Bounded::new(process.memory, process.regions);
    let read = read_bounded(process, &memory);
    if memory.is_used_up() {
        return Err(damaged("its tables claim more than its memory can hold"));
    }
    read
}

fn read_bounded(
    process: &Process<'_>,
    memory: &Bounded<'_>,
) -> Result<(HeapGraph, Vec<Warning>), Error> {
    let mut warnings = Vec::new();
    let window = Window::new(memory);
    let (mut image, info) = Image::read(process.executable, &window, process.regions)?;
    warnings.extend(
        image
            .notes
            .iter()
            .map(|what| Warning::Heap { what: what.clone() }),
    );
    let functions = Functions::read(&window, &image);
    if let Err(error) = &functions {
        warnings.push(Warning::Heap {
            what: format!("no goroutines, no stacks: {error}"),
        });
    }
    let spans = Spans::read(&window, &image, &mut warnings)?;
    let objects = u64::from(spans.len());
    let needed = objects.saturating_mul(OBJECT);
    if needed > process.max_memory {
        return Err(Error::TooManyObjects {
            objects,
            needed_mib: needed >> 20,
            allowed_mib: process.max_memory >> 20,
        });
    }
    let mut graph = HeapGraph {
        taken: process.taken,
        pid: process.pid,
        process_start: process.start,
        ..HeapGraph::default()
    };
    graph.runtime = graph.strings.intern(&image.version.text);
    graph.addresses.reserve(spans.len() as usize);
    graph.words.reserve(spans.len() as usize);
    for span in &spans.list {
        let (_, objects) = spans.objects(span);
        for (index, survived) in objects {
            graph
                .addresses
                .push(span.start + u64::from(index) * span.size);
            graph
                .words
                .push(u32::try_from(span.size / 8).unwrap_or(u32::MAX));
            graph.survived.push(survived);
        }
    }
    let places = places(&window, &image);
    let mut hints = Vec::new();
    let edges = scan::edges(
        memory,
        &image,
        &spans,
        &places,
        |hint| hints.push(hint),
        &mut warnings,
    )?;
    let mut roots = Roots::default();
    let held = roots::globals(
        &window,
        &image,
        &spans,
        &mut graph,
        &mut roots,
        &mut warnings,
    );

    let functions = functions.unwrap_or_default();
    let frames = roots::goroutines(
        &window,
        &image,
        &functions,
        process,
        &spans,
        &mut graph,
        &mut roots,
        &mut warnings,
    );
    roots::specials(
        &window, &image, &functions, &spans, &edges, &mut graph, &mut roots,
    );

    let locals = image.read_locals(info, &roots::places_of(&frames));
    let mut types = Types::new(&window, &image);
    let descriptors = infer::descriptors(&window, &image);
    types.know_maps(&descriptors);
    let code = Code::read(&window, &image, &functions, &mut types);
    let addresses = std::mem::take(&mut graph.addresses);
    let allocator = Allocator::of(&image, &functions);
    let mut typing = Typing::new(
        types, &window, &image, &spans, &addresses, &edges, allocator,
    );
    for hint in hints {
        tell(&mut typing, &places, &functions, &code, hint);
    }
    for pointer in &held {
        if !pointer.interior {
            tell(
                &mut typing,
                &places,
                &functions,
                &code,
                Hint::Held(pointer.target, pointer.before),
            );
        }
    }
    roots::claim(&mut typing, &image, &code, &held);
    let interfaces = roots::claim_frames(&mut typing, &window, &locals, &frames);
    for (node, word) in interfaces {
        tell(
            &mut typing,
            &places,
            &functions,
            &code,
            Hint::Held(node, word),
        );
    }
    for goroutine in &graph.goroutines {
        let state = graph.strings.get(goroutine.state);
        if state.starts_with("chan ") || state.starts_with("select") {
            for channel in &goroutine.waits_on {
                typing.channel(channel.0);
            }
        }
    }
    typing.propagate();
    infer::infer(&mut typing, &window, &image, &code, &descriptors, &spans);
    typing.finish(&mut graph);

    graph.addresses = addresses;
    graph.edge_starts = edges.starts;
    graph.edges = edges.targets.into_iter().map(NodeId).collect();
    graph.edge_slots = edges.slots;
    roots.finish(&mut graph);
    graph.totals = totals(&window, &image, &spans);
    graph.collections = collections(&window, &image).unwrap_or(0);
    graph.check().map_err(damaged)?;
    Ok((graph, warnings))
}

/// Takes in what a word tells of a type.
fn tell(typing: &mut Typing<'_>, places: &Places, functions: &Functions, code: &Code, hint: Hint) {
    match hint {
        Hint::Own(node, kind) => {
            if let Some(kind) = typing.types.runtime(kind) {
                typing.own(node, kind);
            }
        }
        Hint::Held(node, word) => {
            let kind = places.itabs.get(&word).copied().unwrap_or(word);
            if (places.itabs.contains_key(&word) || places.types.iter().any(|r| r.contains(&word)))
                && let Some(kind) = typing.types.runtime(kind)
            {
                typing.held(node, kind);
            }
        }
        Hint::Code(node, word) => {
            if let Some(function) = functions.at(word).filter(|f| f.entry == word) {
                let kind = code.closures.get(&word).copied();
                typing.closure(node, &functions.name(function), kind);
            }
        }
    }
}

/// Where words that tell types may point.
fn places(window: &Window<'_>, image: &Image) -> Places {
    let mut places = Places {
        types: image.modules.iter().map(|m| m.types.0..m.types.1).collect(),
        text: image.modules.iter().map(|m| m.text.0..m.text.1).collect(),
        ..Places::default()
    };
    places.itabs = itabs(window, image).unwrap_or_default();
    if let (Some(&low), Some(&high)) = (places.itabs.keys().min(), places.itabs.keys().max()) {
        places.itab_range = low..high.saturating_add(1);
    }
    places
}

/// The type of each itab of the runtime's table.
fn itabs(window: &Window<'_>, image: &Image) -> Option<HashMap<u64, u64>> {
    let table = window.u64(image.variable("itabTable").ok()?).ok()?;
    let size = window.u64(table).ok()?.min(MAX_ITABS);
    let entries = window
        .bytes(table.wrapping_add(16), size * 8, MAX_ITABS * 8)
        .ok()?;
    let entries = entries.as_chunks::<8>().0.iter();
    let mut itabs: Vec<u64> = entries.map(|e| u64::from_le_bytes(*e)).collect();
    // In their order, so that one window serves many.
    itabs.sort_unstable();
    itabs.dedup();
    let itabs = itabs.into_iter();
    let types = itabs.filter(|&itab| itab != 0).filter_map(|itab| {
        let kind = window.u64(itab.wrapping_add(8)).ok()?;
        Some((itab, kind))
    });
    Some(types.collect())
}

fn totals(window: &Window<'_>, image: &Image, spans: &Spans) -> HeapTotals {
    let read = |variable: &str, field: &str| {
        let at = image.variable(variable).ok()?;
        window.u64(at.wrapping_add(image.layout.find(field)?)).ok()
    };
    HeapTotals {
        heap_alloc: heap_alloc(window, image, spans),
        heap_marked: read("gcController", "gcControllerState.heapMarked"),
        spans: spans.bytes,
        stacks: spans.stack_bytes,
        profile_rate: image
            .variable("MemProfileRate")
            .ok()
            .and_then(|at| window.u64(at).ok())
            .unwrap_or(0),
    }
}

/// How many collections had finished (`MemStats.NumGC`), where that can be read.
fn collections(window: &Window<'_>, image: &Image) -> Option<u32> {
    let at = image.variable("memstats").ok()?;
    window
        .u32(at.wrapping_add(image.layout.find("mstats.numgc")?))
        .ok()
}

/// What the runtime would say is allocated (`MemStats.HeapAlloc`): made less freed, of each
/// size, and what was made in cached spans. Three shards are written in turns; the sum of all
/// is always whole.
fn heap_alloc(window: &Window<'_>, image: &Image, spans: &Spans) -> Option<u64> {
    let layout = &image.layout;
    let stats = (image.variable("memstats").ok()?)
        .wrapping_add(layout.find("mstats.heapStats")?)
        .wrapping_add(layout.find("consistentHeapStats.stats")?);
    let shard = layout.size("heapStatsDelta").ok()?;
    let field = |name: &str| layout.find(&format!("heapStatsDelta.{name}"));
    let (large, small) = (
        [field("largeAlloc")?, field("largeFree")?],
        [field("smallAllocCount")?, field("smallFreeCount")?],
    );
    // Counts of single shards may be below zero.
    let mut total = spans.uncounted;
    for shard in (0..3).map(|i| stats.wrapping_add(shard.wrapping_mul(i))) {
        for (i, sign) in [1, -1_i64].into_iter().enumerate() {
            let at = shard.wrapping_add(large[i]);
            let mut bytes = window.u64(at).ok()?;
            let counts = shard.wrapping_add(small[i]);
            // The first class is that of large objects.
            for (class, size) in (1..).zip(classes::CLASSES) {
                let count = window.u64(counts.wrapping_add(8 * class)).ok()?;
                bytes = bytes.wrapping_add(count.wrapping_mul(size));
            }
            total = total.wrapping_add(bytes.wrapping_mul(sign as u64));
        }
    }
    // Nonsense where the numbers were not what they were taken for.
    (total <= spans.bytes).then_some(total)
}

fn damaged(what: impl Into<String>) -> Error {
    Error::DamagedRuntime { what: what.into() }
}

fn missing(what: impl Into<String>) -> Error {
    Error::RuntimeNotFound { what: what.into() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)] // that is how a test fails
mod goroutine_tests;
