use std::collections::HashMap;
use std::ops::Range;

use memtrace_model::{EdgeSlot, HeapGraph, HeapKind, NodeId, RootKind};

use super::Heap;
use super::paths::{field, root_words};

const NONE: u32 = u32::MAX;

/// How large a [`RetentionTree`] may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeLimits {
    /// Levels below the heap.
    pub depth: u32,
    /// Children of one node.
    pub width: usize,
    /// Nodes that retain less are left out.
    pub min_bytes: u64,
}

impl Default for TreeLimits {
    fn default() -> Self {
        Self {
            depth: 12,
            width: 20,
            min_bytes: 1,
        }
    }
}

/// The dominator tree for people: what one dominator keeps of one type by one field is one
/// node, and so are elements of a list or tree of the same type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionTree {
    /// The nodes; the first is the whole heap, and each stands before its children.
    pub nodes: Vec<RetentionNode>,
}

/// A node of a [`RetentionTree`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionNode {
    /// What it is: `global main.cache`, `main.Session`.
    pub name: String,
    /// The pointer of its dominator that leads to it: `.entries`, `[*].key`; empty where there
    /// is none (several ways lead from the dominator to it).
    pub field: String,
    /// How many nodes of the heap it stands for.
    pub nodes: u64,
    /// Bytes of those alone.
    pub bytes: u64,
    /// Bytes that they retain.
    pub retained: u64,
    /// Its children in [`RetentionTree::nodes`], most retained bytes first.
    pub children: Range<usize>,
    /// What its children left out retain.
    pub rest: u64,
}

/// What a node is for its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key {
    Root(u8, u32),
    Object { heap_type: u32, offset: Option<u32> },
}

impl RetentionTree {
    /// The tree of a heap. Takes 4 bytes a node, and time for the children of what it shows.
    #[must_use]
    pub fn of(heap: Heap<'_>, limits: TreeLimits) -> Self {
        let tree = heap.dominators;
        let mut slots = vec![NONE; heap.graph.node_count()];
        let mut nodes = vec![RetentionNode {
            name: "heap".to_owned(),
            retained: tree.reachable_bytes(),
            ..RetentionNode::default()
        }];
        // What each node stands for; `None` for the heap. Taken when its children are made.
        let mut members: Vec<Option<Vec<NodeId>>> = vec![None];
        let mut at = 0;
        let mut level_end = 1;
        let mut depth = 0;
        while at < nodes.len() {
            if at == level_end {
                depth += 1;
                level_end = nodes.len();
            }
            let mine = members[at].take();
            let children = match (at, mine) {
                _ if depth >= limits.depth => Vec::new(),
                (0, _) => children_of(heap, &[], tree.top(), &mut slots, limits),
                (_, Some(mine)) => {
                    let below = mine.iter().flat_map(|&n| {
                        let other = move |c: &NodeId| !is_one_with(heap.graph, n, *c);
                        tree.children(n).filter(other)
                    });
                    children_of(heap, &mine, below, &mut slots, limits)
                }
                (_, None) => Vec::new(),
            };
            let start = nodes.len();
            let mut shown = 0;
            for (node, mine) in children {
                shown += node.retained;
                nodes.push(node);
                members.push(Some(mine));
            }
            let end = nodes.len();
            let node = &mut nodes[at];
            node.children = start..end;
            node.rest = node.retained.saturating_sub(node.bytes + shown);
            at += 1;
        }
        Self { nodes }
    }
}

/// The children of the nodes `parents` merged, largest first, each with what it stands for.
fn children_of(
    heap: Heap<'_>,
    parents: &[NodeId],
    children: impl Iterator<Item = NodeId> + Clone,
    slots: &mut [u32],
    limits: TreeLimits,
) -> Vec<(RetentionNode, Vec<NodeId>)> {
    let (graph, tree) = (heap.graph, heap.dominators);
    // Which pointer of the parent leads to each child. Those of other parents are harmless:
    // a node has one dominator.
    for &parent in parents {
        for (&target, slot) in graph.targets(parent).iter().zip(graph.slots(parent)) {
            if slots[target.index()] == NONE && tree.immediate(target) == Some(parent) {
                slots[target.index()] = slot.bits();
            }
        }
    }
    let key = |node: NodeId| match graph.root(node) {
        Some(root) => Key::Root(root.kind as u8, root.name),
        None => Key::Object {
            heap_type: graph.types[node.index()].0,
            offset: offset(graph, tree.immediate(node), slots[node.index()]),
        },
    };
    let mut sums: HashMap<Key, u64> = HashMap::new();
    for child in children.clone() {
        *sums.entry(key(child)).or_default() += tree.retained(child);
    }
    let mut chosen: Vec<(Key, u64)> = (sums.into_iter())
        .filter(|&(_, retained)| retained >= limits.min_bytes.max(1))
        .collect();
    chosen.sort_by_key(|&(key, retained)| (std::cmp::Reverse(retained), key));
    chosen.truncate(limits.width);
    let place: HashMap<Key, usize> = chosen.iter().map(|c| c.0).zip(0..).collect();
    let mut members: Vec<Vec<NodeId>> = vec![Vec::new(); chosen.len()];
    for child in children {
        if let Some(&i) = place.get(&key(child)) {
            members[i].push(child);
        }
    }
    (chosen.iter().zip(members))
        .map(|(&(_, retained), mut mine)| {
            let first = mine[0];
            let slot = slots[first.index()];
            let above = tree.immediate(first).filter(|_| slot != NONE);
            // Elements of a list or tree are part of it.
            let mut next = 0;
            while let Some(&node) = mine.get(next) {
                next += 1;
                mine.extend(tree.children(node).filter(|&c| is_one_with(graph, node, c)));
            }
            let node = RetentionNode {
                name: name(graph, first),
                field: above
                    .map_or_else(String::new, |d| field(graph, d, EdgeSlot::from_bits(slot))),
                nodes: mine.len() as u64,
                bytes: mine.iter().map(|&n| graph.size(n)).sum(),
                retained,
                children: 0..0,
                rest: 0,
            };
            (node, mine)
        })
        .collect()
}

/// Whether a node and its dominator are elements of one list or tree.
fn is_one_with(graph: &HeapGraph, dominator: NodeId, node: NodeId) -> bool {
    let Some(heap_type) = graph.types.get(dominator.index()) else {
        return false;
    };
    let kind = graph.heap_types[heap_type.index()].kind;
    matches!(kind, HeapKind::Value | HeapKind::MapPart)
        && graph.types.get(node.index()) == Some(heap_type)
}

fn name(graph: &HeapGraph, node: NodeId) -> String {
    match graph.root(node) {
        // Frames stand below their goroutine, and those of one function together.
        Some(root) if root.kind == RootKind::Frame => {
            format!("frame {}", graph.strings.get(root.name))
        }
        _ => root_words(graph, node),
    }
}

/// Where in its parent a pointer lies; where in the element for an array.
fn offset(graph: &HeapGraph, parent: Option<NodeId>, slot: u32) -> Option<u32> {
    if slot == NONE {
        return None;
    }
    let bytes = EdgeSlot::from_bits(slot).offset();
    let heap_type = graph.types.get(parent?.index())?;
    let stride = u64::from(graph.heap_types[heap_type.index()].stride);
    Some(if stride > 0 { bytes % stride } else { bytes } as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Dominators, sample};
    use super::*;

    proptest! {
        #[test]
        fn every_byte_is_shown_or_left_out(graph in sample::graphs(), depth in 0u32..6, width in 1usize..5) {
            let dominators = Dominators::of(&graph);
            let heap = Heap { graph: &graph, dominators: &dominators };
            let tree = RetentionTree::of(heap, TreeLimits { depth, width, min_bytes: 1 });
            for (i, node) in tree.nodes.iter().enumerate() {
                prop_assert!(node.children.len() <= width);
                prop_assert!(node.children.is_empty() || node.children.start > i);
                let below: u64 = tree.nodes[node.children.clone()].iter().map(|n| n.retained).sum();
                prop_assert_eq!(node.bytes + below + node.rest, node.retained);
            }
            let own: u64 = tree.nodes.iter().map(|n| n.bytes + n.rest).sum();
            prop_assert_eq!(own, dominators.reachable_bytes());
        }
    }

    #[test]
    fn equal_things_are_one_node() {
        let mut s = sample::Sample::default();
        let cache = s.value("main.Cache");
        let array = s.object("[]*main.Entry", HeapKind::Array, 100);
        s.global("main.cache", cache);
        s.edge(cache, array);
        for _ in 0..100 {
            let entry = s.value("main.Entry");
            let key = s.object("string", HeapKind::Text, 1);
            s.edge(array, entry);
            s.edge(entry, key);
        }
        let mut last = s.value("main.Node");
        s.edge(cache, last);
        for _ in 0..1000 {
            let next = s.value("main.Node");
            s.edge(last, next);
            last = next;
        }
        let graph = s.done();
        let dominators = Dominators::of(&graph);
        let heap = Heap {
            graph: &graph,
            dominators: &dominators,
        };
        let tree = RetentionTree::of(heap, TreeLimits::default());
        let told: Vec<_> = (tree.nodes.iter())
            .map(|n| (n.name.as_str(), n.field.as_str(), n.nodes, n.retained))
            .collect();
        let all = 16 + 800 + 100 * 24 + 16 * 1001;
        assert_eq!(
            told,
            [
                ("heap", "", 0, all),
                ("global main.cache", "", 1, all),
                ("main.Cache", "", 1, all),
                ("main.Node", "", 1001, 16 * 1001),
                ("[]*main.Entry", "", 1, 800 + 100 * 24),
                ("main.Entry", "[*]", 100, 100 * 24),
                ("string", "", 100, 800),
            ]
        );
    }
}
