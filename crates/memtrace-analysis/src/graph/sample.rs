//! Small graphs for tests.

use memtrace_model::{
    EdgeSlot, Goroutine, HeapGraph, HeapKind, HeapStackId, HeapType, HeapTypeId, NodeId, Root,
    RootKind, WaitsFor,
};
use proptest::prelude::*;

/// A graph under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    graph: HeapGraph,
    edges: Vec<(Result<u32, u32>, u32, EdgeSlot)>,
}

impl Sample {
    pub(crate) fn type_of(&mut self, name: &str, kind: HeapKind) -> HeapTypeId {
        if self.graph.fields.is_empty() {
            self.graph.fields.intern(&[]);
            self.graph.stacks.intern(&[]);
        }
        let name = self.graph.strings.intern(name);
        let types = &mut self.graph.heap_types;
        let at = types.iter().position(|t| t.name == name && t.kind == kind);
        HeapTypeId(at.unwrap_or_else(|| {
            let stride = if kind == HeapKind::Array { 8 } else { 0 };
            types.push(HeapType {
                name,
                kind,
                stride,
                ..HeapType::default()
            });
            types.len() - 1
        }) as u32)
    }

    /// An object of `words` words, at the end of the heap.
    pub(crate) fn object(&mut self, name: &str, kind: HeapKind, words: u32) -> u32 {
        let kind = self.type_of(name, kind);
        let g = &mut self.graph;
        let end = g
            .addresses
            .last()
            .zip(g.words.last())
            .map_or(0x1000, |(a, w)| a + u64::from(w) * 8);
        g.addresses.push(end);
        g.words.push(words);
        g.types.push(kind);
        g.survived.push(true);
        g.addresses.len() as u32 - 1
    }

    /// An object of one value of 16 bytes.
    pub(crate) fn value(&mut self, name: &str) -> u32 {
        self.object(name, HeapKind::Value, 2)
    }

    /// A pointer, in the first word that has none yet.
    pub(crate) fn edge(&mut self, from: u32, to: u32) {
        self.link(Ok(from), to);
    }

    pub(crate) fn root_edge(&mut self, root: u32, to: u32) {
        self.link(Err(root), to);
    }

    fn link(&mut self, from: Result<u32, u32>, to: u32) {
        let taken = self.edges.iter().rev().take_while(|e| e.0 == from).count() as u64;
        self.edges.push((from, to, EdgeSlot::new(taken * 8, false)));
    }

    pub(crate) fn root(&mut self, kind: RootKind, name: &str, parent: Option<u32>) -> u32 {
        let name = self.graph.strings.intern(name);
        self.graph.roots.push(Root {
            kind,
            name,
            parent,
            line: 0,
        });
        self.graph.roots.len() as u32 - 1
    }

    /// A global variable that leads to an object.
    pub(crate) fn global(&mut self, name: &str, to: u32) -> u32 {
        let root = self.root(RootKind::Global, name, None);
        self.root_edge(root, to);
        root
    }

    /// A goroutine that waits on objects (none: it runs), and its frame.
    pub(crate) fn goroutine(&mut self, entry: &str, waits_on: &[u32]) -> (u32, u32) {
        let root = self.root(RootKind::Goroutine, entry, None);
        let frame = self.root(RootKind::Frame, entry, Some(root));
        let state = self.graph.strings.intern("chan receive");
        let stack = self.stack(entry);
        self.graph.goroutines.push(Goroutine {
            id: u64::from(root) + 1,
            root,
            state,
            stack,
            waits_for: if waits_on.is_empty() {
                WaitsFor::NotBlocked
            } else {
                WaitsFor::Objects
            },
            waits_on: waits_on.iter().map(|&n| NodeId(n)).collect(),
            stack_bytes: 2048,
            ..Goroutine::default()
        });
        (self.graph.goroutines.len() as u32 - 1, frame)
    }

    pub(crate) fn stack(&mut self, function: &str) -> HeapStackId {
        let function = self.graph.strings.intern(function);
        let g = &mut self.graph;
        let at = g.frames.iter().position(|f| f.function == function);
        let frame = memtrace_model::HeapFrameId(at.unwrap_or_else(|| {
            let frame = memtrace_model::HeapFrame {
                function,
                file: 0,
                line: 1,
            };
            g.frames.push(frame);
            g.frames.len() - 1
        }) as u32);
        if g.stacks.is_empty() {
            g.stacks.intern(&[]);
        }
        HeapStackId(g.stacks.intern(&[frame]).unwrap())
    }

    pub(crate) fn graph(&mut self) -> &mut HeapGraph {
        &mut self.graph
    }

    pub(crate) fn done(mut self) -> HeapGraph {
        let objects = self.graph.object_count() as u32;
        let node = |n: Result<u32, u32>| n.unwrap_or_else(|r| r + objects);
        self.edges.sort_by_key(|e| node(e.0));
        self.graph.edge_starts = vec![0];
        for n in 0..self.graph.node_count() as u32 {
            let end = self.edges.partition_point(|e| node(e.0) <= n);
            self.graph.edge_starts.push(end as u32);
        }
        self.graph.edges = self.edges.iter().map(|e| NodeId(e.1)).collect();
        self.graph.edge_slots = self.edges.iter().map(|e| e.2).collect();
        assert_eq!(self.graph.check(), Ok(()));
        self.graph
    }
}

/// `objects` objects of 16 bytes, edges between them, and a global for each of `roots`.
pub(crate) fn of(objects: u32, edges: &[(u32, u32)], roots: &[u32]) -> HeapGraph {
    let mut sorted = edges.to_vec();
    sorted.sort_by_key(|e| e.0);
    let mut sample = Sample::default();
    for _ in 0..objects {
        sample.value("main.T");
    }
    sample.edges = (sorted.iter())
        .map(|&(from, to)| (Ok(from), to, EdgeSlot::new(0, false)))
        .collect();
    for &r in roots {
        sample.global("main.g", r);
    }
    sample.done()
}

prop_compose! {
    /// Random graphs of up to 24 objects and some roots, some of which hang below others;
    /// objects of one word lead nowhere, some are sudogs, some goroutines wait.
    pub(crate) fn graphs()(
        sizes in prop::collection::vec((1u32..5, 0u8..12), 1..24),
    )(
        edges in prop::collection::vec((0..sizes.len() as u32, 0..sizes.len() as u32), 0..50),
        roots in prop::collection::vec((any::<bool>(), 0..sizes.len() as u32), 0..4),
        goroutines in prop::collection::vec(
            (prop::collection::vec(0..sizes.len() as u32, 0..3), 0..sizes.len() as u32), 0..3),
        sizes in Just(sizes),
    ) -> HeapGraph {
        let mut sample = Sample::default();
        for &(words, kind) in &sizes {
            match kind {
                0 => sample.object("runtime.sudog", HeapKind::Value, words),
                1 => sample.object("[]*main.T", HeapKind::Array, words),
                2..6 => sample.object("main.U", HeapKind::Value, words),
                _ => sample.object("main.T", HeapKind::Value, words),
            };
        }
        for &(from, to) in edges.iter().filter(|e| sizes[e.0 as usize].0 > 1) {
            sample.edge(from, to);
        }
        for &(with_edge, to) in &roots {
            let root = sample.root(RootKind::Global, &format!("pkg{to}.v"), None);
            if with_edge {
                sample.root_edge(root, to);
            }
        }
        for (waits_on, held) in &goroutines {
            let (_, frame) = sample.goroutine("main.work", waits_on);
            sample.root_edge(frame, *held);
        }
        sample.done()
    }
}
