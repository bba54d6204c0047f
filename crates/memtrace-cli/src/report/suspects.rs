//! What wastes memory without being a place where it piles up.

use memtrace_analysis::graph::{Heap, shortest_paths};
use memtrace_model::{HeapKind, NodeId};

/// A map whose room is much larger than what is in it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SparseMap {
    pub(super) node: NodeId,
    pub(super) used: u64,
    pub(super) capacity: u64,
    /// Bytes of the map itself, without what its entries lead to.
    pub(super) bytes: u64,
    /// The way from a root to it, in words.
    pub(super) path: Vec<String>,
}

/// A map is sparse when it uses less than one part in this many of its room.
const SPARSE: u64 = 8;
/// Below this a map is too small to care.
const LEAST_BYTES: u64 = 16 << 10;
/// How many are told.
const MOST: usize = 50;

/// Maps never shrink: these have room for many more entries than they hold. Most bytes
/// first.
pub(super) fn sparse_maps(heap: Heap<'_>) -> Vec<SparseMap> {
    let graph = heap.graph;
    let mut found: Vec<SparseMap> = (graph.maps.iter())
        .filter(|m| m.used.saturating_mul(SPARSE) < m.capacity)
        .filter(|m| heap.dominators.is_reachable(m.node))
        .map(|m| SparseMap {
            node: m.node,
            used: m.used,
            capacity: m.capacity,
            bytes: own_bytes(heap, m.node),
            path: Vec::new(),
        })
        .filter(|m| m.bytes >= LEAST_BYTES)
        .collect();
    found.sort_by_key(|m| (std::cmp::Reverse(m.bytes), m.node));
    found.truncate(MOST);
    let nodes: Vec<NodeId> = found.iter().map(|m| m.node).collect();
    for (map, path) in found.iter_mut().zip(shortest_paths(graph, &nodes)) {
        map.path = path.map_or_else(Vec::new, |p| p.words(graph));
    }
    found
}

/// The header and the parts that it dominates through parts.
fn own_bytes(heap: Heap<'_>, map: NodeId) -> u64 {
    let graph = heap.graph;
    let is_part = |n: NodeId| {
        let kind = graph
            .types
            .get(n.index())
            .and_then(|t| graph.heap_types.get(t.index()));
        kind.is_some_and(|t| t.kind == HeapKind::MapPart)
    };
    let mut sum = graph.size(map);
    let mut open = vec![map];
    while let Some(node) = open.pop() {
        for child in heap.dominators.children(node).filter(|&n| is_part(n)) {
            sum += graph.size(child);
            open.push(child);
        }
    }
    sum
}
