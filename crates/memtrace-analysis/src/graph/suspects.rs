use std::collections::HashMap;

use memtrace_model::{HeapGraph, MapUse, NodeId, RootKind};

use super::Heap;
use super::diff::{Growth, diff};
use super::goroutines::{GoroutineReport, goroutine_leaks};
use super::groups::{Member, accumulations, members};
use super::paths::{RootPath, shortest_paths};

/// From when on something is worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuspectOptions {
    /// Bytes below which nothing is told. 0: one percent of the live heap.
    pub min_bytes: u64,
    /// A map is bloated when it has room for this many times its entries.
    pub map_room: u64,
    /// Most suspects of a kind.
    pub most: usize,
}

impl Default for SuspectOptions {
    fn default() -> Self {
        Self {
            min_bytes: 0,
            map_room: 8,
            most: 20,
        }
    }
}

/// A map with room for many more entries than it has: Go's maps never shrink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BloatedMap {
    /// The map, its entries and its room.
    pub map: MapUse,
    /// Bytes of its tables and what they keep.
    pub retained: u64,
    /// About how many bytes of its tables are empty.
    pub wasted: u64,
    /// A shortest way to it.
    pub path: Option<RootPath>,
}

/// What lies in the `sync.Pool`s that one root keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolContents {
    /// A shortest way to the largest of them.
    pub path: RootPath,
    /// Bytes that the pools retain.
    pub retained: u64,
    /// What lies in the largest, most bytes first.
    pub members: Vec<Member>,
}

/// Finalizers or cleanups with one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalizerGroup {
    /// [`RootKind::Finalizer`] or [`RootKind::Cleanup`].
    pub kind: RootKind,
    /// The name of the roots.
    pub name: String,
    /// How many are set or wait to run.
    pub count: u64,
    /// Bytes that only they keep.
    pub retained: u64,
}

/// What may be wrong with a heap: evidence, not verdicts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspects {
    /// Places where memory piles up. With an older snapshot only those that grew, most growth
    /// first; without one all, most bytes first, and [`Growth::before`] is 0.
    pub accumulations: Vec<Growth>,
    /// Maps with much room left, most wasted bytes first.
    pub maps: Vec<BloatedMap>,
    /// Pools, most bytes first.
    pub pools: Vec<PoolContents>,
    /// Finalizers and cleanups, the most numerous first.
    pub finalizers: Vec<FinalizerGroup>,
    /// The verdict on every goroutine.
    pub goroutines: GoroutineReport,
}

/// Looks for what may be wrong with a heap, and what has grown since an older snapshot of it.
#[must_use]
pub fn suspects(heap: Heap<'_>, older: Option<Heap<'_>>, options: SuspectOptions) -> Suspects {
    let min_bytes = match options.min_bytes {
        0 => heap.dominators.reachable_bytes() / 100,
        min => min,
    }
    .max(1);
    let mut grown = match older {
        Some(older) => diff(older, heap, min_bytes).grown,
        None => (accumulations(heap, min_bytes).into_iter())
            .map(|now| Growth { now, before: 0 })
            .collect(),
    };
    grown.truncate(options.most);
    Suspects {
        accumulations: grown,
        maps: bloated_maps(heap, min_bytes, options),
        pools: pools(heap, min_bytes, options.most),
        finalizers: finalizers(heap, options.most),
        goroutines: goroutine_leaks(heap.graph),
    }
}

fn bloated_maps(heap: Heap<'_>, min_bytes: u64, options: SuspectOptions) -> Vec<BloatedMap> {
    let (graph, tree) = (heap.graph, heap.dominators);
    let bloated = graph.maps.iter().filter_map(|&map| {
        if map.capacity < map.used.max(1).saturating_mul(options.map_room) {
            return None;
        }
        // Pieces of the map alone: its dominated pieces, not what entries lead to.
        let mut tables = 0u64;
        let mut pending: Vec<NodeId> = tree.children(map.node).collect();
        while let Some(node) = pending.pop() {
            let heap_type = graph.types.get(node.index())?;
            if graph.heap_types[heap_type.index()].kind == memtrace_model::HeapKind::MapPart {
                tables += graph.size(node);
                pending.extend(tree.children(node));
            }
        }
        let empty = map.capacity.saturating_sub(map.used) as f64 / map.capacity as f64;
        let wasted = (tables as f64 * empty) as u64;
        (wasted >= min_bytes).then(|| BloatedMap {
            map,
            retained: tree.retained(map.node),
            wasted,
            path: None,
        })
    });
    let mut maps: Vec<BloatedMap> = bloated.collect();
    maps.sort_by_key(|m| (std::cmp::Reverse(m.wasted), m.map.node));
    maps.truncate(options.most);
    let nodes: Vec<NodeId> = maps.iter().map(|m| m.map.node).collect();
    for (map, path) in maps.iter_mut().zip(shortest_paths(graph, &nodes)) {
        map.path = path;
    }
    maps
}

fn pools(heap: Heap<'_>, min_bytes: u64, most: usize) -> Vec<PoolContents> {
    let (graph, tree) = (heap.graph, heap.dominators);
    let of_pools: Vec<bool> = (graph.heap_types.iter())
        .map(|t| is_pool(graph.strings.get(t.name)))
        .collect();
    if !of_pools.contains(&true) {
        return Vec::new();
    }
    let is_piece = |n: NodeId| {
        graph
            .types
            .get(n.index())
            .is_some_and(|t| of_pools[t.index()])
    };
    // The pieces with no other above them, and what they retain.
    let mut found: Vec<NodeId> = Vec::new();
    let order = tree.reachable();
    let mut at = 0;
    while let Some(&node) = order.get(at) {
        at += if is_piece(node) {
            found.push(node);
            tree.retained_nodes(node) as usize
        } else {
            1
        };
    }
    found.retain(|&n| tree.retained(n) > graph.size(n));
    let mut by_root: HashMap<NodeId, PoolContents> = HashMap::new();
    let mut largest: HashMap<NodeId, u64> = HashMap::new();
    for (&node, path) in found.iter().zip(shortest_paths(graph, &found)) {
        let Some(path) = path else { continue };
        let retained = tree.retained(node);
        let best = largest.entry(path.root).or_default();
        let is_best = retained > *best;
        *best = retained.max(*best);
        let pool = by_root.entry(path.root).or_insert_with(|| PoolContents {
            path: path.clone(),
            retained: 0,
            members: Vec::new(),
        });
        pool.retained += retained;
        if is_best {
            pool.path = path;
            pool.members = pool_members(heap, node, &of_pools);
        }
    }
    let mut pools: Vec<PoolContents> = by_root.into_values().collect();
    pools.retain(|p| p.retained >= min_bytes);
    pools.sort_by_key(|p| (std::cmp::Reverse(p.retained), p.path.root));
    pools.truncate(most);
    pools
}

fn is_pool(name: &str) -> bool {
    ["sync.poolLocal", "sync.poolChain", "sync.poolDequeue"]
        .iter()
        .any(|p| name.contains(p))
        || matches!(name, "sync.Pool" | "*sync.Pool")
}

/// What lies in a pool: the first things below it that are no piece of it.
fn pool_members(heap: Heap<'_>, pool: NodeId, of_pools: &[bool]) -> Vec<Member> {
    members(heap, pool, &|graph: &HeapGraph, n: NodeId| {
        graph.types.get(n.index()).is_some_and(|t| {
            let heap_type = graph.heap_types[t.index()];
            // The ring of a pool is an array of interface words.
            of_pools[t.index()] || graph.strings.get(heap_type.name).contains("sync.eface")
        })
    })
}

fn finalizers(heap: Heap<'_>, most: usize) -> Vec<FinalizerGroup> {
    let graph = heap.graph;
    let mut groups: HashMap<(RootKind, u32), FinalizerGroup> = HashMap::new();
    for (root, r) in graph.roots.iter().zip(0u32..) {
        if !matches!(root.kind, RootKind::Finalizer | RootKind::Cleanup) {
            continue;
        }
        let group = groups
            .entry((root.kind, root.name))
            .or_insert_with(|| FinalizerGroup {
                kind: root.kind,
                name: graph.strings.get(root.name).to_owned(),
                count: 0,
                retained: 0,
            });
        group.count += 1;
        group.retained += heap.dominators.retained(graph.root_node(r));
    }
    let mut groups: Vec<FinalizerGroup> = groups.into_values().collect();
    groups.sort_by(|a, b| (b.count, b.retained, &a.name).cmp(&(a.count, a.retained, &b.name)));
    groups.truncate(most);
    groups
}

#[cfg(test)]
mod tests {
    use memtrace_model::HeapKind;

    use super::super::Dominators;
    use super::super::sample::Sample;
    use super::*;

    #[test]
    fn maps_pools_and_finalizers_are_told() {
        let mut s = Sample::default();
        let map = s.object("map[string]int", HeapKind::Map, 6);
        let table = s.object("table", HeapKind::MapPart, 1000);
        s.global("main.seen", map);
        s.edge(map, table);
        let full = s.object("map[string]int", HeapKind::Map, 6);
        let other = s.object("table", HeapKind::MapPart, 1000);
        s.global("main.full", full);
        s.edge(full, other);
        let local = s.object("[]sync.poolLocal", HeapKind::Array, 32);
        s.global("sync.allPools", local);
        s.global("main.buffers", local);
        for _ in 0..4 {
            let buffer = s.object("[]uint8", HeapKind::Array, 500);
            s.edge(local, buffer);
        }
        for _ in 0..3 {
            let held = s.value("main.Conn");
            let root = s.root(RootKind::Finalizer, "main.(*Conn).close", None);
            s.root_edge(root, held);
        }
        s.graph().maps = vec![
            MapUse {
                node: NodeId(map),
                used: 10,
                capacity: 1000,
            },
            MapUse {
                node: NodeId(full),
                used: 900,
                capacity: 1000,
            },
        ];
        let graph = s.done();
        let dominators = Dominators::of(&graph);
        let heap = Heap {
            graph: &graph,
            dominators: &dominators,
        };
        let found = suspects(heap, None, SuspectOptions::default());
        assert_eq!(found.maps.len(), 1);
        assert_eq!(
            (found.maps[0].map.node, found.maps[0].wasted),
            (NodeId(map), 7920)
        );
        let path = found.maps[0].path.as_ref().unwrap().words(&graph);
        assert_eq!(path, ["global main.seen", "map[string]int"]);
        assert_eq!(found.pools.len(), 1);
        assert_eq!(found.pools[0].retained, 4 * 4000 + 256);
        assert_eq!(found.pools[0].path.words(&graph)[0], "global main.buffers");
        assert_eq!(found.pools[0].members[0].objects, 4);
        let finalizer = &found.finalizers[0];
        assert_eq!(
            (finalizer.name.as_str(), finalizer.count, finalizer.retained),
            ("main.(*Conn).close", 3, 48)
        );
        assert!(!found.accumulations.is_empty());
        let same = suspects(heap, Some(heap), SuspectOptions::default());
        assert!(same.accumulations.is_empty());
    }
}
