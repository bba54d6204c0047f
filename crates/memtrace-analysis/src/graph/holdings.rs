use std::collections::HashMap;

use memtrace_model::{
    Frame, FunctionId, HeapGraph, HeapKind, NodeId, Profile, RootKind, StringId, ValueType,
};

use super::Heap;

/// Ways that are told apart; what lies deeper counts with what is above it.
const MAX_WAYS: usize = 1 << 20;
/// Names on one way.
const MAX_DEPTH: u32 = 64;
/// Ways of one profile, those with most bytes.
const MAX_SAMPLES: usize = 4000;
const NONE: u32 = u32::MAX;

/// What is before the name of a type that no package declares, so that it reads like one of
/// the standard library: `builtin.[]uint8`.
pub(crate) const BUILTIN: &str = "builtin.";

/// The live objects of a heap, put together by what they are and what keeps them.
///
/// The *way* of an object is its type below the types of all that dominates it, up to a root.
/// A type that comes again on its way (a list, a tree) is there once. Ways mean the same in all
/// heaps of a program.
#[derive(Debug)]
pub struct Holdings {
    names: Vec<Name>,
    ways: Vec<Way>,
    /// The way of each of `Dominators::reachable`.
    of: Vec<u32>,
}

#[derive(Debug)]
struct Name {
    text: String,
    what: &'static str,
}

#[derive(Clone, Copy, Debug)]
struct Way {
    /// [`NONE`] for one that has nothing above it.
    above: u32,
    name: u32,
    depth: u32,
}

impl Holdings {
    /// Puts the live objects together. Takes 8 bytes a node while it works, 4 after.
    #[must_use]
    pub fn of(heap: Heap<'_>) -> Self {
        let mut found = Finder::new(heap.graph);
        let mut of = Vec::with_capacity(heap.dominators.reachable().len());
        // In preorder the dominators of a node are the last ones that are not over.
        let mut open: Vec<(usize, u32)> = Vec::new();
        for (at, &node) in heap.dominators.reachable().iter().enumerate() {
            while open.last().is_some_and(|&(end, _)| end <= at) {
                open.pop();
            }
            let above = open.last().map_or(NONE, |&(_, way)| way);
            let way = found.way(above, node);
            of.push(way);
            let nodes = heap.dominators.retained_nodes(node) as usize;
            if nodes > 1 {
                open.push((at + nodes, way));
            }
        }
        let Finder { names, ways, .. } = found;
        Self { names, ways, of }
    }

    /// Live objects and bytes of each way, as a profile whose stacks are ways, the object's own
    /// type first and the root last. A frame's file says what the name is: `type`, `map`,
    /// `array`, `closure`, `channel`, or the kind of root. All objects are counted (period 1);
    /// what was allocated is not known.
    #[must_use]
    pub fn profile(&self, heap: Heap<'_>) -> Profile {
        let mut sums = vec![(0_u64, 0_u64); self.ways.len()];
        for (&node, &way) in heap.dominators.reachable().iter().zip(&self.of) {
            let size = heap.graph.size(node);
            if size > 0 {
                let (objects, bytes) = &mut sums[way as usize];
                *objects += 1;
                *bytes += size;
            }
        }
        let mut largest: Vec<u32> = (0..sums.len() as u32)
            .filter(|&w| sums[w as usize].1 > 0)
            .collect();
        largest.sort_by_key(|&w| (std::cmp::Reverse(sums[w as usize].1), w));
        largest.truncate(MAX_SAMPLES);

        let mut profile = Profile {
            time_nanos: heap.graph.taken.0.saturating_mul(1_000_000),
            period: 1,
            ..Profile::default()
        };
        for (kind, unit) in [("inuse_objects", "count"), ("inuse_space", "bytes")] {
            let (kind, unit) = (profile.intern(kind), profile.intern(unit));
            profile.sample_types.push(ValueType { kind, unit });
        }
        let labels = profile.label_sets.intern(&[]);
        let mut locations = HashMap::new();
        for way in largest {
            let stack: Vec<_> = self
                .names_of(way)
                .map(|name| {
                    *locations
                        .entry(name)
                        .or_insert_with(|| self.place(&mut profile, name))
                })
                .collect();
            let (Some(stack), Some(labels)) = (profile.stacks.intern(&stack), labels) else {
                continue;
            };
            let (objects, bytes) = sums[way as usize];
            profile.sample_stacks.push(memtrace_model::StackId(stack));
            profile
                .sample_labels
                .push(memtrace_model::LabelSetId(labels));
            for value in [objects, bytes] {
                profile
                    .values
                    .push(i64::try_from(value).unwrap_or(i64::MAX));
            }
        }
        profile
    }

    /// The live objects whose way has these names, the root first.
    #[must_use]
    pub fn nodes(&self, heap: Heap<'_>, names: &[String]) -> Vec<NodeId> {
        let fits: Vec<bool> = (0..self.ways.len() as u32)
            .map(|way| {
                self.ways[way as usize].depth as usize + 1 == names.len()
                    && self
                        .names_of(way)
                        .zip(names.iter().rev())
                        .all(|(name, wanted)| shown(&self.names[name as usize].text) == wanted)
            })
            .collect();
        let all = heap.dominators.reachable().iter().zip(&self.of);
        all.filter(|&(_, &way)| fits[way as usize])
            .map(|(&node, _)| node)
            .collect()
    }

    /// Names of a way from the object's own up.
    fn names_of(&self, way: u32) -> impl Iterator<Item = u32> + '_ {
        let up = |&way: &u32| Some(self.ways[way as usize].above).filter(|&w| w != NONE);
        std::iter::successors(Some(way), up).map(|way| self.ways[way as usize].name)
    }

    fn place(&self, profile: &mut Profile, name: u32) -> memtrace_model::LocationId {
        let Name { text, what } = &self.names[name as usize];
        let location = profile.add_location(text, 0);
        let file: StringId = profile.intern(what);
        let line = profile.locations[location.index()].first_line as usize;
        let function: FunctionId = profile.lines[line].function;
        profile.functions[function.index()].file = file;
        location
    }
}

/// A name without what was put before it.
pub(crate) fn shown(name: &str) -> &str {
    name.strip_prefix(BUILTIN).unwrap_or(name)
}

struct Finder<'a> {
    graph: &'a HeapGraph,
    names: Vec<Name>,
    by_text: HashMap<(String, &'static str), u32>,
    /// Number of each type's name.
    of_type: Vec<u32>,
    ways: Vec<Way>,
    known: HashMap<(u32, u32), u32>,
}

impl<'a> Finder<'a> {
    fn new(graph: &'a HeapGraph) -> Self {
        Self {
            graph,
            names: Vec::new(),
            by_text: HashMap::new(),
            of_type: vec![NONE; graph.heap_types.len()],
            ways: Vec::new(),
            known: HashMap::new(),
        }
    }

    fn way(&mut self, above: u32, node: NodeId) -> u32 {
        let name = self.name(node);
        if let Some(&way) = self.known.get(&(above, name)) {
            return way;
        }
        let up = |&way: &u32| Some(self.ways[way as usize].above).filter(|&w| w != NONE);
        let mut ways = std::iter::successors((above != NONE).then_some(above), up);
        let again = ways.find(|&way| self.ways[way as usize].name == name);
        let depth = match above {
            NONE => 0,
            above => self.ways[above as usize].depth + 1,
        };
        let way = match again {
            Some(way) => way,
            None if above != NONE && (depth >= MAX_DEPTH || self.ways.len() >= MAX_WAYS) => above,
            None => {
                self.ways.push(Way { above, name, depth });
                self.ways.len() as u32 - 1
            }
        };
        self.known.insert((above, name), way);
        way
    }

    fn name(&mut self, node: NodeId) -> u32 {
        let number = self.graph.types.get(node.index()).map(|t| t.index());
        let known = number.map_or(NONE, |n| self.of_type[n]);
        if known != NONE {
            return known;
        }
        let (text, what) = told(self.graph, node);
        let name = self.named(text, what);
        if let Some(number) = number {
            self.of_type[number] = name;
        }
        name
    }

    fn named(&mut self, text: String, what: &'static str) -> u32 {
        let names = &mut self.names;
        *self
            .by_text
            .entry((text, what))
            .or_insert_with_key(|(text, what)| {
                names.push(Name {
                    text: text.clone(),
                    what,
                });
                names.len() as u32 - 1
            })
    }
}

/// A node on a way: its name, and what that is ([`Holdings::profile`]).
fn told(graph: &HeapGraph, node: NodeId) -> (String, &'static str) {
    let mut text = graph.name(node).to_owned();
    let Some(number) = graph.types.get(node.index()) else {
        let root = graph.root(node);
        return (text, root.map_or("root", |r| root_kind(r.kind)));
    };
    if is_builtin(&text) {
        text.insert_str(0, BUILTIN);
    }
    let what = match graph.heap_types[number.index()].kind {
        HeapKind::Array => "array",
        HeapKind::Map | HeapKind::MapPart => "map",
        HeapKind::Channel => "channel",
        HeapKind::Closure => "closure",
        _ => "type",
    };
    (text, what)
}

/// A way over these nodes, as a stack of [`Holdings::profile`].
pub(super) fn way(graph: &HeapGraph, nodes: impl Iterator<Item = NodeId>) -> Vec<Frame> {
    let frame = |node| {
        let (function, what) = told(graph, node);
        Frame {
            function,
            file: what.to_owned(),
            line: 0,
        }
    };
    nodes.map(frame).collect()
}

fn root_kind(kind: RootKind) -> &'static str {
    match kind {
        RootKind::Global => "variable",
        RootKind::Goroutine => "goroutine",
        RootKind::Frame => "frame",
        RootKind::Finalizer => "finalizer",
        RootKind::Cleanup => "cleanup",
        _ => "runtime",
    }
}

/// Whether no package declares the type: `string`, `[]main.Item`, `map[string]int`.
fn is_builtin(name: &str) -> bool {
    let words = ["map[", "func(", "chan ", "struct ", "interface "];
    !name.starts_with(|c: char| c.is_alphabetic() || c == '_')
        || !name.contains('.')
        || words.iter().any(|w| name.starts_with(w))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Dominators, sample};
    use super::*;

    proptest! {
        #[test]
        fn every_live_object_is_counted_once(graph in sample::graphs()) {
            let dominators = Dominators::of(&graph);
            let heap = Heap { graph: &graph, dominators: &dominators };
            let is_object = |n: &&NodeId| graph.size(**n) > 0;
            let live = dominators.reachable().iter().filter(is_object).count();
            let holdings = Holdings::of(heap);
            let profile = holdings.profile(heap);
            prop_assert_eq!(profile.total(0), live as i64);
            prop_assert_eq!(profile.total(1), dominators.reachable_bytes() as i64);
            // Each way leads back to its objects, and to no others.
            for i in 0..profile.len() {
                let frames = profile.frames(profile.sample_stacks[i]);
                let mut names: Vec<String> = frames.map(|f| shown(f.function).to_owned()).collect();
                names.reverse();
                let found = holdings.nodes(heap, &names);
                prop_assert_eq!(found.iter().filter(is_object).count() as i64, profile.row(i)[0]);
            }
        }
    }

    #[test]
    fn names_of_types_that_no_package_declares() {
        for name in [
            "string",
            "[]main.Item",
            "map[string]main.T",
            "*main.T",
            "func() main.T",
            "chan main.T",
        ] {
            assert!(is_builtin(name), "{name}");
        }
        for name in [
            "main.Item",
            "cnc/internal/gcode.Cache",
            "sync.Map",
            "main.Box[go.shape.int]",
        ] {
            assert!(!is_builtin(name), "{name}");
        }
    }
}
