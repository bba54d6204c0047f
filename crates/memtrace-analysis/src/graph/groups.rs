use std::collections::HashMap;

use memtrace_model::{HeapGraph, HeapKind, HeapStackId, HeapTypeId, NodeId, RootKind};

use super::Heap;
use super::paths::{RootPath, along};

/// All objects of one type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TypeGroup {
    /// The type.
    pub heap_type: HeapTypeId,
    /// Live objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that they retain, themselves included. What several of them keep together but
    /// none alone is not in it.
    pub retained: u64,
    /// Dead objects: those that the next collection takes.
    pub dead_objects: u64,
    /// Their bytes.
    pub dead_bytes: u64,
}

/// All objects that one stack allocated, as far as the heap profile sampled them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StackGroup {
    /// The stack.
    pub stack: HeapStackId,
    /// Live objects that were sampled.
    pub sampled_objects: u64,
    /// Their bytes.
    pub sampled_bytes: u64,
    /// Bytes that the sampled ones retain: at least that much hangs on this stack.
    pub sampled_retained: u64,
    /// How many live objects the stack has allocated, estimated.
    pub objects: f64,
    /// Their bytes, estimated.
    pub bytes: f64,
}

/// What has no dominator but all roots together: roots of one kind and name (all goroutines
/// with one entry function), or objects of one type that several roots keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopGroup {
    /// In words: `global main.cache`, `goroutine main.worker`, `main.Session`.
    pub name: String,
    /// What kind of root; `None` for objects that several roots keep.
    pub kind: Option<RootKind>,
    /// How many nodes.
    pub nodes: u64,
    /// Bytes that they retain.
    pub retained: u64,
    /// The one that retains most.
    pub largest: NodeId,
}

/// Things of one type that pile up at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Their type.
    pub heap_type: HeapTypeId,
    /// How many.
    pub objects: u64,
    /// Bytes that they retain.
    pub retained: u64,
}

/// A node that keeps much memory in many small pieces: a map, a list, a large buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accumulation {
    /// The node.
    pub at: NodeId,
    /// Bytes that it retains.
    pub retained: u64,
    /// Those bytes less what lies at other such nodes below it. All nodes together with
    /// [`top_groups`] make up the heap: nothing counts twice.
    pub here: u64,
    /// What it keeps, most bytes first; pieces of maps, arrays and list elements are looked
    /// through.
    pub members: Vec<Member>,
    /// The dominators down to it.
    pub path: RootPath,
}

/// Objects by type, most live bytes first. Types without objects are left out.
#[must_use]
pub fn by_type(heap: Heap<'_>) -> Vec<TypeGroup> {
    let (graph, tree) = (heap.graph, heap.dominators);
    let mut groups: Vec<TypeGroup> = (0..graph.heap_types.len() as u32)
        .map(|t| TypeGroup {
            heap_type: HeapTypeId(t),
            ..TypeGroup::default()
        })
        .collect();
    for (n, (t, words)) in graph.types.iter().zip(graph.words.iter()).enumerate() {
        let (group, bytes) = (&mut groups[t.index()], u64::from(words) * 8);
        if tree.is_reachable(NodeId(n as u32)) {
            group.objects += 1;
            group.bytes += bytes;
        } else {
            group.dead_objects += 1;
            group.dead_bytes += bytes;
        }
    }
    let typed = (tree.reachable().iter().zip(1..))
        .filter_map(|(&n, at)| Some((at, graph.types.get(n.index())?.0)));
    for (t, retained) in retained_by(heap, groups.len(), typed)
        .into_iter()
        .enumerate()
    {
        groups[t].retained = retained;
    }
    groups.retain(|g| g.objects + g.dead_objects > 0);
    groups.sort_by_key(|g| (std::cmp::Reverse(g.bytes), g.heap_type));
    groups
}

/// Bytes that the nodes of each group retain, without those below others of the same group.
/// `nodes` come in preorder, by their position in it.
fn retained_by(
    heap: Heap<'_>,
    groups: usize,
    nodes: impl Iterator<Item = (usize, u32)>,
) -> Vec<u64> {
    let tree = heap.dominators;
    let mut retained = vec![0u64; groups];
    // Where the last counted subtree of each group ends.
    let mut covered = vec![0usize; groups];
    for (at, group) in nodes {
        let g = group as usize;
        if at >= covered[g] {
            retained[g] += tree.retained_at(at);
            covered[g] = at + tree.size_at(at);
        }
    }
    retained
}

/// Live objects by the stack that allocated them, most estimated bytes first.
///
/// Only sampled objects have a stack. An object of `s` bytes is sampled with probability
/// 1 − exp(−s / rate), and stands for the inverse of it, as in the heap profile. Where the rate
/// is unknown (0) nothing is scaled.
#[must_use]
pub fn by_stack(heap: Heap<'_>) -> Vec<StackGroup> {
    let (graph, tree) = (heap.graph, heap.dominators);
    let mut groups: Vec<StackGroup> = (0..graph.stacks.len() as u32)
        .map(|s| StackGroup {
            stack: HeapStackId(s),
            sampled_objects: 0,
            sampled_bytes: 0,
            sampled_retained: 0,
            objects: 0.0,
            bytes: 0.0,
        })
        .collect();
    let live = |n: NodeId| tree.position(n);
    let mut sampled: Vec<(usize, NodeId, u32)> = (graph.allocated.iter())
        .filter_map(|a| Some((live(a.node)?, a.node, a.stack.0)))
        .collect();
    sampled.sort_unstable();
    for &(_, node, stack) in &sampled {
        let (group, bytes) = (&mut groups[stack as usize], graph.size(node));
        let times = scale(bytes, graph.totals.profile_rate);
        group.sampled_objects += 1;
        group.sampled_bytes += bytes;
        group.objects += times;
        group.bytes += times * bytes as f64;
    }
    let sampled = sampled.into_iter().map(|(at, _, s)| (at, s));
    for (s, retained) in retained_by(heap, groups.len(), sampled)
        .into_iter()
        .enumerate()
    {
        groups[s].sampled_retained = retained;
    }
    groups.retain(|g| g.sampled_objects > 0);
    groups.sort_by(|a, b| b.bytes.total_cmp(&a.bytes).then(a.stack.cmp(&b.stack)));
    groups
}

/// How many objects of that many bytes one sampled object stands for.
pub(super) fn scale(bytes: u64, rate: u64) -> f64 {
    if rate <= 1 || bytes == 0 {
        return 1.0;
    }
    -1.0 / (-(bytes as f64) / rate as f64).exp_m1()
}

/// What stands right below all roots together, most retained bytes first.
#[must_use]
pub fn top_groups(heap: Heap<'_>) -> Vec<TopGroup> {
    let (graph, tree) = (heap.graph, heap.dominators);
    let mut groups: HashMap<(Option<RootKind>, u32), TopGroup> = HashMap::new();
    for node in tree.top() {
        let root = graph.root(node);
        let key = match root {
            Some(root) => (Some(root.kind), root.name),
            None => (None, graph.types[node.index()].0),
        };
        let group = groups.entry(key).or_insert_with(|| TopGroup {
            name: super::root_words(graph, node),
            kind: root.map(|r| r.kind),
            nodes: 0,
            retained: 0,
            largest: node,
        });
        group.nodes += 1;
        group.retained += tree.retained(node);
        if tree.retained(node) > tree.retained(group.largest) {
            group.largest = node;
        }
    }
    let mut groups: Vec<TopGroup> = groups.into_values().collect();
    groups.sort_by(|a, b| (b.retained, &a.name).cmp(&(a.retained, &b.name)));
    groups
}

/// The nodes that keep at least `min_bytes` in pieces smaller than that, most bytes first.
///
/// A linked list counts at its head, a tree at its root, a map at its header.
#[must_use]
pub fn accumulations(heap: Heap<'_>, min_bytes: u64) -> Vec<Accumulation> {
    let (graph, tree) = (heap.graph, heap.dominators);
    let min_bytes = min_bytes.max(1);
    // The nodes that retain enough, in preorder, each with its dominator's place in the list.
    let order = tree.reachable();
    let mut big: Vec<(NodeId, Option<u32>)> = Vec::new();
    let mut above: Vec<(usize, u32)> = Vec::new();
    let mut at = 0;
    while let Some(&node) = order.get(at) {
        while above.last().is_some_and(|&(end, _)| end <= at) {
            above.pop();
        }
        let size = tree.retained_nodes(node) as usize;
        if tree.retained(node) < min_bytes {
            at += size;
            continue;
        }
        let place = big.len() as u32;
        big.push((node, above.last().map(|&(_, i)| i)));
        above.push((at + size, place));
        at += 1;
    }
    let mut here: Vec<u64> = big.iter().map(|&(n, _)| tree.retained(n)).collect();
    for i in (0..big.len()).rev() {
        if let Some(d) = big[i].1 {
            here[d as usize] -= tree.retained(big[i].0);
        }
    }
    let mut points: Vec<Accumulation> = Vec::new();
    for i in (0..big.len()).rev() {
        let (node, dominator) = big[i];
        let belongs_above = dominator.is_some_and(|d| {
            let (d, next) = (big[d as usize].0, big[d as usize].1);
            let same = |above: NodeId| graph.root(above).is_none() && same_type(heap, above, node);
            is_part_of(heap, node, d) || same(d) || next.is_some_and(|i| same(big[i as usize].0))
        });
        if here[i] >= min_bytes && !belongs_above {
            points.push(Accumulation {
                at: node,
                retained: tree.retained(node),
                here: here[i],
                members: Vec::new(),
                path: along(graph, &[]),
            });
        } else if let Some(d) = dominator {
            here[d as usize] += here[i];
        }
    }
    points.sort_by_key(|p| (std::cmp::Reverse(p.here), p.at));
    for point in &mut points {
        point.members = members(heap, point.at, &|_, _| false);
        point.path = along(graph, &tree.path(point.at));
    }
    points
}

fn same_type(heap: Heap<'_>, a: NodeId, b: NodeId) -> bool {
    let types = &heap.graph.types;
    types
        .get(a.index())
        .is_some_and(|t| Some(t) == types.get(b.index()))
}

fn kind(heap: Heap<'_>, node: NodeId) -> Option<HeapKind> {
    let heap_type = heap.graph.types.get(node.index())?;
    Some(heap.graph.heap_types[heap_type.index()].kind)
}

/// Whether a node is a piece of the map that its dominator is or belongs to.
fn is_part_of(heap: Heap<'_>, node: NodeId, dominator: NodeId) -> bool {
    kind(heap, node) == Some(HeapKind::MapPart)
        && matches!(
            kind(heap, dominator),
            Some(HeapKind::Map | HeapKind::MapPart)
        )
}

/// What piles up at a node, by type, most bytes first; `through` says which objects more are
/// only looked through.
pub(super) fn members(
    heap: Heap<'_>,
    at: NodeId,
    through: &dyn Fn(&HeapGraph, NodeId) -> bool,
) -> Vec<Member> {
    let (graph, tree) = (heap.graph, heap.dominators);
    let mut groups: HashMap<HeapTypeId, Member> = HashMap::new();
    let mut pending: Vec<NodeId> = tree.children(at).collect();
    while let Some(node) = pending.pop() {
        let Some(&heap_type) = graph.types.get(node.index()) else {
            pending.extend(tree.children(node));
            continue;
        };
        let list = same_type(heap, at, node);
        let seen_through = matches!(kind(heap, node), Some(HeapKind::MapPart | HeapKind::Array));
        let seen_through = (seen_through && tree.retained_nodes(node) > 1) || through(graph, node);
        if list || seen_through {
            pending.extend(tree.children(node));
        }
        if !seen_through {
            let member = groups.entry(heap_type).or_insert(Member {
                heap_type,
                objects: 0,
                retained: 0,
            });
            member.objects += 1;
            member.retained += if list {
                graph.size(node)
            } else {
                tree.retained(node)
            };
        }
    }
    let mut groups: Vec<Member> = groups.into_values().collect();
    groups.sort_by_key(|m| (std::cmp::Reverse(m.retained), m.heap_type));
    groups
}

#[cfg(test)]
mod tests {
    use memtrace_model::Allocated;
    use proptest::prelude::*;

    use super::super::{Dominators, sample};
    use super::*;

    proptest! {
        #[test]
        fn groups_add_up(graph in sample::graphs(), min in 1u64..200) {
            let tree = Dominators::of(&graph);
            let heap = Heap { graph: &graph, dominators: &tree };
            let groups = by_type(heap);
            let sum: u64 = groups.iter().map(|g| g.bytes).sum();
            prop_assert_eq!(sum, tree.reachable_bytes());
            let all: u64 = groups.iter().map(|g| g.objects + g.dead_objects).sum();
            prop_assert_eq!(all as usize, graph.object_count());
            for group in &groups {
                let mine = |n: &NodeId| graph.types.get(n.index()) == Some(&group.heap_type);
                let below_mine = |n: &&NodeId| tree.path(**n).iter().any(mine);
                let truth: u64 = tree.reachable().iter().filter(below_mine).map(|&n| graph.size(n)).sum();
                prop_assert_eq!(group.retained, truth);
            }
            let top: u64 = top_groups(heap).iter().map(|g| g.retained).sum();
            prop_assert_eq!(top, tree.reachable_bytes());
            // What lies at the points and what lies at none is everything.
            let points = accumulations(heap, min);
            let here: u64 = points.iter().map(|p| p.here).sum();
            prop_assert!(here <= tree.reachable_bytes());
            let outside = tree.reachable().iter().filter(|&&n| {
                !tree.path(n).iter().any(|d| points.iter().any(|p| p.at == *d))
            });
            let outside: u64 = outside.map(|&n| graph.size(n)).sum();
            prop_assert_eq!(here + outside, tree.reachable_bytes());
        }
    }

    #[test]
    fn things_pile_up_where_they_are_kept() {
        let mut s = sample::Sample::default();
        let app = s.value("main.App");
        let map = s.object("map[string]*main.Session", HeapKind::Map, 6);
        s.global("main.app", app);
        s.edge(app, map);
        for _ in 0..4 {
            let part = s.object("groups", HeapKind::MapPart, 16);
            s.edge(map, part);
            for _ in 0..25 {
                let session = s.object("main.Session", HeapKind::Value, 10);
                s.edge(part, session);
            }
        }
        let mut last = s.value("main.Node");
        s.edge(app, last);
        for _ in 0..1000 {
            let next = s.value("main.Node");
            s.edge(last, next);
            last = next;
        }
        let graph = s.done();
        let tree = Dominators::of(&graph);
        let heap = Heap {
            graph: &graph,
            dominators: &tree,
        };
        let points = accumulations(heap, 2000);
        let told: Vec<_> = (points.iter())
            .map(|p| {
                (
                    graph.name(p.at),
                    p.here,
                    graph
                        .strings
                        .get(graph.heap_types[p.members[0].heap_type.index()].name),
                    p.members[0].objects,
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("main.Node", 16 * 1001, "main.Node", 1000),
                (
                    "map[string]*main.Session",
                    48 + 4 * 128 + 100 * 80,
                    "main.Session",
                    100
                ),
            ]
        );
    }

    #[test]
    fn samples_stand_for_what_was_not_sampled() {
        let mut s = sample::Sample::default();
        let a = s.object("main.A", HeapKind::Value, 4);
        let b = s.object("main.A", HeapKind::Value, 4);
        s.global("main.a", a);
        s.edge(a, b);
        let stack = s.stack("main.alloc");
        s.graph().allocated = [a, b]
            .map(|n| Allocated {
                node: NodeId(n),
                stack,
            })
            .to_vec();
        s.graph().totals.profile_rate = 512;
        let graph = s.done();
        let tree = Dominators::of(&graph);
        let groups = by_stack(Heap {
            graph: &graph,
            dominators: &tree,
        });
        assert_eq!(groups.len(), 1);
        assert_eq!(
            (groups[0].sampled_objects, groups[0].sampled_retained),
            (2, 64)
        );
        let each = 1.0 / (1.0 - (-32.0f64 / 512.0).exp());
        assert!((groups[0].objects - 2.0 * each).abs() < 1e-9);
        assert!((groups[0].bytes - 64.0 * each).abs() < 1e-6);
    }
}
