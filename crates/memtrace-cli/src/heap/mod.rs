//! A heap to ask questions of: from a snapshot file, a core, or a running process.

#[cfg(test)]
pub(crate) mod sample;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use memtrace_analysis::graph::{Dominators, Heap, TypeGroup, live_objects};
use memtrace_model::{HeapFrameId, HeapGraph, HeapKind, HeapStackId, snapshot};
use serde_json::{Value, json};

use crate::args::PauseArgs;
use crate::failure::Failure;
use crate::progress::Step;
use crate::units::{bytes, count};

/// A heap with its dominators.
pub(crate) struct Loaded {
    pub(crate) graph: HeapGraph,
    dominators: Dominators,
}

impl Loaded {
    pub(crate) fn of(graph: HeapGraph) -> Self {
        let _step = Step::begin("finding what keeps what");
        let dominators = Dominators::of(&graph);
        Self { graph, dominators }
    }

    pub(crate) fn heap(&self) -> Heap<'_> {
        Heap {
            graph: &self.graph,
            dominators: &self.dominators,
        }
    }
}

/// The heap behind `from`: a snapshot, an ELF core, or a running process.
pub(crate) fn load(from: &str, pause: &PauseArgs) -> Result<Loaded, Failure> {
    graph(from, pause).map(Loaded::of)
}

fn graph(from: &str, pause: &PauseArgs) -> Result<HeapGraph, Failure> {
    let path = Path::new(from);
    if path.is_file() && !is_elf(path) {
        return snapshot_file(path);
    }
    crate::snapshot::take(from, pause).map(|taken| taken.graph)
}

/// Reads a snapshot file.
pub(crate) fn snapshot_file(path: &Path) -> Result<HeapGraph, Failure> {
    let file = File::open(path).map_err(|e| Failure::failed(path.display(), e))?;
    let _step = Step::begin(format!("reading {}", path.display()));
    snapshot::read(&mut io::BufReader::new(file), memory_to_use())
        .map_err(|e| Failure::failed(path.display(), e))
}

/// Half of the memory that is free: a small file may claim to hold a large heap.
fn memory_to_use() -> u64 {
    memtrace_collect::goproc::free_memory() / 2
}

/// Whether a file begins as a snapshot does.
pub(crate) fn is_snapshot(path: &Path) -> bool {
    begins_with(path, &snapshot::MAGIC)
}

/// Whether a file begins as programs and cores do.
fn is_elf(path: &Path) -> bool {
    begins_with(path, b"\x7fELF")
}

fn begins_with(path: &Path, magic: &[u8]) -> bool {
    let mut head = vec![0; magic.len()];
    path.is_file()
        && File::open(path)
            .and_then(|mut f| f.read_exact(&mut head))
            .is_ok_and(|()| head == magic)
}

/// What is there altogether.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sums {
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
    pub(crate) dead_objects: u64,
    pub(crate) dead_bytes: u64,
    /// Live bytes of objects whose type is known.
    pub(crate) known: u64,
}

impl Sums {
    /// Where nothing else is asked of the graph.
    pub(crate) fn of_all(graph: &HeapGraph) -> Self {
        let mut sums = Self::default();
        let live = live_objects(graph);
        for ((&kind, words), live) in graph.types.iter().zip(graph.words.iter()).zip(live) {
            let bytes = u64::from(words) * 8;
            if !live {
                sums.dead_objects += 1;
                sums.dead_bytes += bytes;
                continue;
            }
            sums.objects += 1;
            sums.bytes += bytes;
            if graph.heap_types[kind.index()].kind != HeapKind::Unknown {
                sums.known += bytes;
            }
        }
        sums
    }

    pub(crate) fn of(graph: &HeapGraph, types: &[TypeGroup]) -> Self {
        let mut sums = Self::default();
        for group in types {
            sums.objects += group.objects;
            sums.bytes += group.bytes;
            sums.dead_objects += group.dead_objects;
            sums.dead_bytes += group.dead_bytes;
            if graph.heap_types[group.heap_type.index()].kind != HeapKind::Unknown {
                sums.known += group.bytes;
            }
        }
        sums
    }

    pub(crate) fn known_share(&self) -> f64 {
        self.known as f64 / self.bytes.max(1) as f64
    }

    /// By how much the runtime's own number of allocated bytes is larger than what was found.
    pub(crate) fn runtime_has_more(&self, graph: &HeapGraph) -> Option<f64> {
        let found = (self.bytes + self.dead_bytes) as f64;
        let says = graph.totals.heap_alloc? as f64;
        (found > 0.0).then(|| says / found - 1.0)
    }

    pub(crate) fn json(&self, graph: &HeapGraph) -> Value {
        json!({
            "objects": self.objects, "bytes": self.bytes,
            "dead_objects": self.dead_objects, "dead_bytes": self.dead_bytes,
            "known_share": self.known_share(),
            "heap_alloc": graph.totals.heap_alloc, "heap_marked": graph.totals.heap_marked,
            "spans": graph.totals.spans, "stacks": graph.totals.stacks,
            "profile_rate": graph.totals.profile_rate,
        })
    }
}

/// What the snapshot is of, as fields of a JSON document.
pub(crate) fn origin_json(graph: &HeapGraph) -> Value {
    json!({
        "program": graph.strings.get(graph.program), "pid": graph.pid,
        "runtime": graph.strings.get(graph.runtime), "taken": graph.taken,
        "collections": graph.collections,
    })
}

/// What the snapshot is of, in words.
pub(crate) fn origin(graph: &HeapGraph) -> String {
    format!(
        "{} (pid {}), {}, {}, after {} collections",
        graph.strings.get(graph.program),
        graph.pid,
        graph.strings.get(graph.runtime),
        graph.taken,
        count(graph.collections.into())
    )
}

/// What is there altogether, in words.
pub(crate) fn sums_in_words(graph: &HeapGraph, sums: &Sums) -> Vec<String> {
    let mut lines = vec![format!(
        "{} live, {}; {} dead, {}, which the next collection takes",
        objects(sums.objects),
        bytes(sums.bytes as f64),
        objects(sums.dead_objects),
        bytes(sums.dead_bytes as f64),
    )];
    let mut line = format!(
        "{:.1} % of live bytes are of a known type",
        100.0 * sums.known_share()
    );
    if let Some(more) = sums.runtime_has_more(graph) {
        line.push_str(&format!(
            "; the runtime counts {} allocated ({:+.2} %)",
            bytes(graph.totals.heap_alloc.unwrap_or(0) as f64),
            100.0 * more
        ));
    }
    lines.push(line);
    lines
}

/// `1 object`, `1,204 objects`.
pub(crate) fn objects(n: u64) -> String {
    format!("{} object{}", count(n), if n == 1 { "" } else { "s" })
}

/// The word for a kind of type.
pub(crate) fn kind(kind: HeapKind) -> &'static str {
    match kind {
        HeapKind::Value => "value",
        HeapKind::Array => "array",
        HeapKind::Text => "text",
        HeapKind::Map => "map",
        HeapKind::MapPart => "map part",
        HeapKind::Channel => "channel",
        HeapKind::Closure => "closure",
        HeapKind::Tiny => "tiny",
        _ => "unknown",
    }
}

/// The frames of a stack, the leaf first, as `function (file:line)`.
pub(crate) fn stack(graph: &HeapGraph, stack: HeapStackId) -> Vec<String> {
    let frames = graph.stacks.get(stack.0).iter();
    frames.filter_map(|&f| frame(graph, f)).collect()
}

/// A frame in words: `main.run (main.go:42)`.
pub(crate) fn frame(graph: &HeapGraph, frame: HeapFrameId) -> Option<String> {
    let frame = graph.frames.get(frame.index())?;
    let file = graph.strings.get(frame.file);
    let file = file.rsplit_once('/').map_or(file, |(_, name)| name);
    let function = graph.strings.get(frame.function);
    Some(match frame.line {
        0 => function.to_owned(),
        line => format!("{function} ({file}:{line})"),
    })
}

/// The functions of a stack, the leaf first, without those of the runtime that allocate.
pub(crate) fn functions(graph: &HeapGraph, stack: HeapStackId) -> String {
    let frames = graph.stacks.get(stack.0).iter();
    let names: Vec<&str> = frames
        .filter_map(|f| graph.frames.get(f.index()))
        .map(|f| graph.strings.get(f.function))
        .collect();
    let own = names.iter().position(|n| !n.starts_with("runtime."));
    names[own.unwrap_or(0)..].join(" ← ")
}

/// Adds the fields of one JSON object to another.
pub(crate) fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
