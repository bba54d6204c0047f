//! A small heap for tests, everything in it known.

use memtrace_model::{
    Allocated, EdgeSlot, Goroutine, HeapField, HeapFrame, HeapFrameId, HeapGraph, HeapKind,
    HeapStackId, HeapType, HeapTypeId, MapUse, NodeId, Root, RootKind, Time, WaitsFor,
};

use super::Loaded;

/// A type whose name would end the script that holds the data of a page.
pub(crate) const HOSTILE: &str = "main.Box[</script><img src=x>]";

#[derive(Default)]
struct Sample {
    graph: HeapGraph,
    edges: Vec<(Node, u32, u64)>,
}

/// What a pointer starts in.
#[derive(Clone, Copy, PartialEq)]
enum Node {
    Object(u32),
    Root(u32),
}

impl Sample {
    fn kind(&mut self, name: &str, kind: HeapKind, fields: &[(u32, &str)]) -> HeapTypeId {
        let g = &mut self.graph;
        let list: Vec<HeapField> = (fields.iter())
            .map(|&(offset, name)| HeapField {
                offset,
                name: g.strings.intern(name),
            })
            .collect();
        g.heap_types.push(HeapType {
            name: g.strings.intern(name),
            kind,
            inferred: false,
            stride: if kind == HeapKind::Array { 16 } else { 0 },
            fields: g.fields.intern(&list).expect("few fields"),
        });
        HeapTypeId(g.heap_types.len() as u32 - 1)
    }

    fn object(&mut self, kind: HeapTypeId, bytes: u64) -> u32 {
        let g = &mut self.graph;
        let end = (g.addresses.last().zip(g.words.last()))
            .map_or(0xc000_0000_0000, |(a, w)| a + u64::from(w) * 8);
        g.addresses.push(end);
        g.words.push((bytes / 8) as u32);
        g.types.push(kind);
        g.survived.push(true);
        g.addresses.len() as u32 - 1
    }

    fn edge(&mut self, from: u32, offset: u64, to: u32) {
        self.edges.push((Node::Object(from), to, offset));
    }

    fn root(&mut self, kind: RootKind, name: &str, parent: Option<u32>, to: Option<u32>) -> u32 {
        let g = &mut self.graph;
        g.roots.push(Root {
            kind,
            name: g.strings.intern(name),
            parent,
            line: 0,
        });
        let root = g.roots.len() as u32 - 1;
        if let Some(to) = to {
            self.edges.push((Node::Root(root), to, 0));
        }
        root
    }

    fn stack(&mut self, functions: &[&str]) -> HeapStackId {
        let g = &mut self.graph;
        let mut ids = Vec::new();
        for name in functions {
            g.frames.push(HeapFrame {
                function: g.strings.intern(name),
                file: g.strings.intern("/src/main.go"),
                line: 10 + g.frames.len() as u32,
            });
            ids.push(HeapFrameId(g.frames.len() as u32 - 1));
        }
        HeapStackId(g.stacks.intern(&ids).expect("few stacks"))
    }

    fn done(mut self) -> HeapGraph {
        let objects = self.graph.object_count() as u32;
        let number = |n: Node| match n {
            Node::Object(n) => n,
            Node::Root(r) => objects + r,
        };
        self.edges.sort_by_key(|e| (number(e.0), e.2));
        self.graph.edge_starts = (0..=self.graph.node_count() as u32)
            .map(|n| self.edges.partition_point(|e| number(e.0) < n) as u32)
            .collect();
        self.graph.edges = self.edges.iter().map(|e| NodeId(e.1)).collect();
        self.graph.edge_slots = (self.edges.iter())
            .map(|e| EdgeSlot::new(e.2, false))
            .collect();
        assert_eq!(self.graph.check(), Ok(()));
        self.graph
    }
}

/// `main.cache` keeps a map with 40 sessions of 160 bytes with a name of 32 each;
/// `main.emptied` a map with much room; three workers wait and hold a buffer of 4 KiB each;
/// `main.list` is a list of 30; two variables share a box; 5 objects are dead. `more`
/// sessions are in the cache besides.
pub(crate) fn graph(more: u32) -> HeapGraph {
    let mut s = Sample::default();
    s.graph.program = s.graph.strings.intern("shop");
    s.graph.runtime = s.graph.strings.intern("go1.27.3");
    s.graph.pid = 4242;
    s.graph.process_start = 77;
    s.graph.collections = 12 + more;
    s.graph.taken = Time(1_767_225_600_000 + i64::from(more) * 60_000);
    let cache = s.kind("main.Cache", HeapKind::Value, &[(0, "entries")]);
    let map = s.kind("map[string]*main.Session", HeapKind::Map, &[]);
    let part = s.kind("map[string]*main.Session.groups", HeapKind::MapPart, &[]);
    let session = s.kind("main.Session", HeapKind::Value, &[(0, "user")]);
    let text = s.kind("string", HeapKind::Text, &[]);
    let node = s.kind("main.Node", HeapKind::Value, &[(8, "next")]);
    let buffer = s.kind("[]uint8", HeapKind::Array, &[]);
    let boxed = s.kind(HOSTILE, HeapKind::Value, &[]);
    let unknown = s.kind("64 bytes, pointers", HeapKind::Unknown, &[]);

    let top = s.object(cache, 16);
    let header = s.object(map, 48);
    let groups = s.object(part, 1024);
    s.edge(top, 0, header);
    s.edge(header, 0, groups);
    let by = s.stack(&["runtime.mallocgc", "main.(*Cache).Login", "main.serve"]);
    for i in 0..40 + more {
        let one = s.object(session, 160);
        let name = s.object(text, 32);
        s.edge(groups, u64::from(i) * 8, one);
        s.edge(one, 0, name);
        if i % 10 == 0 {
            s.graph.allocated.push(Allocated {
                node: NodeId(one),
                stack: by,
            });
        }
    }
    s.graph.maps.push(MapUse {
        node: NodeId(header),
        used: 40,
        capacity: 56,
    });
    let empty = s.object(map, 48);
    let room = s.object(part, 32 << 10);
    s.edge(empty, 0, room);
    s.graph.maps.push(MapUse {
        node: NodeId(empty),
        used: 3,
        capacity: 1792,
    });
    let mut next = None;
    for _ in 0..30 {
        let one = s.object(node, 16);
        if let Some(next) = next {
            s.edge(one, 8, next);
        }
        next = Some(one);
    }
    let shared = s.object(boxed, 64);
    let odd = s.object(unknown, 64);
    s.edge(shared, 0, odd);
    for _ in 0..5 {
        s.object(session, 160);
    }
    let buffers: Vec<u32> = (0..3).map(|_| s.object(buffer, 4096)).collect();

    s.root(RootKind::Global, "main.cache", None, Some(top));
    s.root(RootKind::Global, "main.emptied", None, Some(empty));
    s.root(RootKind::Global, "main.list", None, next);
    s.root(RootKind::Global, "main.left", None, Some(shared));
    s.root(RootKind::Global, "main.right", None, Some(shared));
    let waits = s.stack(&["runtime.gopark", "main.worker"]);
    let started = s.stack(&["main.start"]);
    let started = s.graph.stacks.get(started.0)[0];
    let state = s.graph.strings.intern("chan receive");
    for (i, &buffer) in buffers.iter().enumerate() {
        let root = s.root(RootKind::Goroutine, "main.worker", None, None);
        s.root(RootKind::Frame, "main.worker", Some(root), Some(buffer));
        s.graph.goroutines.push(Goroutine {
            id: 20 + i as u64,
            root,
            state,
            waits_for: WaitsFor::Nothing,
            waiting_ms: Some(90_000),
            stack: waits,
            created_by: Some(started),
            stack_bytes: 2048,
            ..Goroutine::default()
        });
    }
    s.graph.totals.profile_rate = 524_288;
    let bytes: u64 = s.graph.words.iter().map(|w| u64::from(w) * 8).sum();
    s.graph.totals.heap_alloc = Some(bytes + 100);
    s.done()
}

pub(crate) fn loaded() -> Loaded {
    Loaded::of(graph(0))
}
