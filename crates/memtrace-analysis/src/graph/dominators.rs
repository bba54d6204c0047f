use memtrace_model::{Bits, HeapGraph, NodeId, Packed};

use super::links::Links;

const NONE: u32 = u32::MAX;
/// Stands for the one node above all roots.
const ABOVE: NodeId = NodeId(NONE);

/// The dominator tree of a heap, with retained sizes.
///
/// Node `d` dominates `n` when every way from a root to `n` passes through `d`: were `d` gone,
/// `n` would be garbage. The closest such node is the immediate dominator. What a node
/// dominates, itself included, is what it retains.
///
/// Above all roots stands a node of its own. A root with a parent (a frame of a goroutine)
/// hangs below it. A goroutine leads to what it waits on, and edges of `runtime.sudog` are not
/// followed, so that a channel belongs to those who use it and not to the runtime's tables.
///
/// Nodes are kept in preorder of the tree: what a node retains is one slice
/// ([`Dominators::subtree`]), and its children lie in it one after the other. This takes 14
/// bytes a node, and 4 or 8 more for numbers that do not fit a byte.
///
/// Half of a heap are objects that lead nowhere and have one owner, which is then their
/// immediate dominator. The others' are found with the algorithm of Lengauer and Tarjan (path
/// compression, buckets), in O(edges · log nodes) whatever the graph looks like. That takes 4
/// bytes a node, 20 for each that is no such leaf, and 12 for each link beside the depth-first
/// tree.
#[derive(Clone, Debug)]
pub struct Dominators {
    /// Node at each position; the first is [`ABOVE`].
    order: Vec<NodeId>,
    /// Position of each node, [`NONE`] for one that no root leads to.
    position: Vec<u32>,
    /// Position of the immediate dominator of what is at each position.
    parent: Vec<u32>,
    /// How many positions the subtree takes that starts at each; from the last to the first.
    size: Packed<u32>,
    /// Size of that subtree in words of 8 bytes; from the last to the first.
    retained: Packed<u64>,
}

impl Dominators {
    /// The dominators of a graph that [`HeapGraph::check`] accepts.
    #[must_use]
    pub fn of(graph: &HeapGraph) -> Self {
        Self::over(graph, Links::of(graph))
    }

    /// The same, were these roots gone.
    #[must_use]
    pub fn without(graph: &HeapGraph, roots: &[NodeId]) -> Self {
        Self::over(graph, Links::without(graph, roots))
    }

    fn over(graph: &HeapGraph, links: Links<'_>) -> Self {
        let owned = owned_leaves(graph, &links);
        let (Reached { number, parent }, cross) = Reached::of(graph, &links, &owned);
        drop(links);
        let idom = immediate_dominators(parent, cross);
        let (position, parent) = preorder(number, idom, &owned);
        drop(owned);
        let mut order = vec![ABOVE; parent.len()];
        for (node, &at) in (0..).zip(&position) {
            if at != NONE {
                order[at as usize] = NodeId(node);
            }
        }
        let (size, retained) = sums(graph, &order, &parent);
        Self {
            order,
            position,
            parent,
            size,
            retained,
        }
    }

    /// Whether a root leads to the node. Others are dead: the next collection takes them.
    #[must_use]
    pub fn is_reachable(&self, node: NodeId) -> bool {
        self.position(node).is_some()
    }

    /// The immediate dominator of a node. `None` for a node that only all roots together keep,
    /// for roots without parent, and for dead nodes.
    #[must_use]
    pub fn immediate(&self, node: NodeId) -> Option<NodeId> {
        let dominator = self.order[self.parent[self.position(node)?] as usize];
        (dominator != ABOVE).then_some(dominator)
    }

    /// Bytes of objects that would be garbage without this node, its own included; 0 for dead
    /// nodes.
    #[must_use]
    pub fn retained(&self, node: NodeId) -> u64 {
        self.position(node).map_or(0, |p| self.retained_at(p))
    }

    /// How many nodes would be garbage without this one, itself included; 0 for dead nodes.
    #[must_use]
    pub fn retained_nodes(&self, node: NodeId) -> u32 {
        self.position(node).map_or(0, |p| self.size_at(p) as u32)
    }

    /// What a node retains: itself, then all below it in preorder. Empty for dead nodes.
    #[must_use]
    pub fn subtree(&self, node: NodeId) -> &[NodeId] {
        match self.position(node) {
            Some(p) => &self.order[p..p + self.size_at(p)],
            None => &[],
        }
    }

    /// All nodes that a root leads to, in preorder of the dominator tree.
    #[must_use]
    pub fn reachable(&self) -> &[NodeId] {
        &self.order[1..]
    }

    /// The nodes that a node is the immediate dominator of.
    pub fn children(&self, node: NodeId) -> impl Iterator<Item = NodeId> + Clone + '_ {
        self.children_at(self.position(node))
    }

    /// The nodes without an immediate dominator: the roots, and what several of them keep.
    pub fn top(&self) -> impl Iterator<Item = NodeId> + Clone + '_ {
        self.children_at(Some(0))
    }

    /// The lowest node that dominates at least this share (above one half) of `nodes`, apart
    /// from the one in their middle, and the share that it does; `None` where only all roots
    /// together keep so many, and for dead nodes.
    #[must_use]
    pub fn keeper(&self, nodes: &[NodeId], share: f64) -> Option<(NodeId, f64)> {
        let mut places: Vec<usize> = nodes.iter().filter_map(|&n| self.position(n)).collect();
        places.sort_unstable();
        // What a node dominates stands side by side: more than half of them, the middle too.
        let mut at = *places.get(places.len() / 2)?;
        loop {
            at = self.parent[at] as usize;
            if at == 0 {
                return None;
            }
            let end = at + self.size_at(at);
            let held = places.partition_point(|&p| p < end) - places.partition_point(|&p| p < at);
            let held = held as f64 / places.len() as f64;
            if held >= share {
                return Some((self.order[at], held));
            }
        }
    }

    /// The dominators of a node from the root down, the node itself last; empty for dead nodes.
    #[must_use]
    pub fn path(&self, node: NodeId) -> Vec<NodeId> {
        let mut path = Vec::new();
        let mut at = self.position(node).unwrap_or(0);
        while at != 0 {
            path.push(self.order[at]);
            at = self.parent[at] as usize;
        }
        path.reverse();
        path
    }

    /// Bytes of all objects that a root leads to.
    #[must_use]
    pub fn reachable_bytes(&self) -> u64 {
        self.retained_at(0)
    }

    fn children_at(&self, parent: Option<usize>) -> impl Iterator<Item = NodeId> + Clone + '_ {
        let range = parent.map_or(0..0, |p| p + 1..p + self.size_at(p));
        let mut at = range.start;
        std::iter::from_fn(move || {
            let child = *self.order.get(at).filter(|_| at < range.end)?;
            at += self.size_at(at);
            Some(child)
        })
    }

    /// Place of a node in [`Dominators::reachable`] counted from 1; what it retains takes
    /// the places up to [`Dominators::retained_nodes`] further on.
    pub(super) fn position(&self, node: NodeId) -> Option<usize> {
        let at = *self.position.get(node.index())?;
        (at != NONE).then_some(at as usize)
    }

    /// How many positions the subtree takes that starts at this one.
    pub(super) fn size_at(&self, position: usize) -> usize {
        self.size.at(self.size.len() - 1 - position) as usize
    }

    /// Bytes that the node at a position retains.
    pub(super) fn retained_at(&self, position: usize) -> u64 {
        8 * self.retained.at(self.retained.len() - 1 - position)
    }
}

/// Objects that lead nowhere, and that one link at most leads to.
fn owned_leaves(graph: &HeapGraph, links: &Links<'_>) -> Bits {
    let nodes = graph.node_count();
    let (mut owned, mut shared) = (Bits::new(nodes), Bits::new(nodes));
    // Edges that are not followed may count: that costs time only.
    for target in graph.edges.iter().chain(links.all_below()) {
        if owned.set(target.index()) {
            shared.set(target.index());
        }
    }
    let is_owned = |n: u32| links.is_leaf(NodeId(n)) && !shared.at(n as usize);
    (0..nodes as u32).map(is_owned).collect()
}

/// What the roots lead to without owned leaves, numbered depth first; 0 is the node above all
/// roots.
struct Reached {
    /// Number of each node, of its owner for an owned leaf; [`NONE`] for dead ones.
    number: Vec<u32>,
    /// Number of the node from which each number was found.
    parent: Vec<u32>,
}

impl Reached {
    /// Also returns all links that are not part of the tree, as pairs of numbers.
    fn of(graph: &HeapGraph, links: &Links<'_>, owned: &Bits) -> (Self, Vec<(u32, u32)>) {
        let mut found = Self {
            number: vec![NONE; graph.node_count()],
            parent: vec![0],
        };
        let mut cross = Vec::new();
        // Links yet to follow, the source by its number. A target may be here more than once:
        // the link that comes up first becomes part of the tree, which makes it depth first.
        let mut pending: Vec<(NodeId, u32)> = links.top().rev().map(|n| (n, 0)).collect();
        while let Some((node, from)) = pending.pop() {
            let seen = found.number[node.index()];
            if seen != NONE {
                cross.push((from, seen));
                continue;
            }
            let me = found.push(node, from);
            for &target in links.below(node).iter().chain(links.edges(node)) {
                if owned.at(target.index()) {
                    found.number[target.index()] = me;
                    continue;
                }
                let seen = found.number[target.index()];
                if seen != NONE {
                    if seen != me {
                        cross.push((me, seen));
                    }
                } else if links.is_leaf(target) {
                    // Without the way through those that wait.
                    found.push(target, me);
                } else {
                    pending.push((target, me));
                }
            }
        }
        (found, cross)
    }

    fn push(&mut self, node: NodeId, from: u32) -> u32 {
        let number = self.parent.len() as u32;
        self.number[node.index()] = number;
        self.parent.push(from);
        number
    }
}

/// Where a node stands in preorder, and where there is room for the next below it.
#[derive(Clone, Copy)]
struct Place {
    own: u32,
    free: u32,
}

/// The position of each node in preorder of the dominator tree, and the position of its
/// immediate dominator for what is at each. `number` and `owned` are as in [`Reached`], `idom`
/// is by number.
fn preorder(number: Vec<u32>, mut idom: Vec<u32>, owned: &Bits) -> (Vec<u32>, Vec<u32>) {
    let count = idom.len();
    // What each retains.
    let mut nodes = vec![1u32; count];
    for (&n, owned) in number.iter().zip(owned.iter()) {
        if owned && n != NONE {
            nodes[n as usize] += 1;
        }
    }
    for w in (1..count).rev() {
        nodes[idom[w] as usize] += nodes[w];
    }
    // A dominator has a smaller number than what it dominates: when a node is placed, its
    // dominator is, and knows its next free position.
    let all = nodes.first().map_or(0, |&n| n as usize);
    let mut places = vec![Place { own: 0, free: 1 }; count];
    for w in 1..count {
        let above = &mut places[idom[w] as usize];
        let own = above.free;
        above.free += nodes[w];
        idom[w] = above.own;
        places[w] = Place { own, free: own + 1 };
    }
    drop(nodes);
    let mut parent = vec![0; all];
    let mut position = number;
    for (position, owned) in position.iter_mut().zip(owned.iter()) {
        let w = match *position {
            NONE => continue,
            number => number as usize,
        };
        let place = &mut places[w];
        let dominator;
        (*position, dominator) = if owned {
            // Owned leaves take what is left.
            place.free += 1;
            (place.free - 1, place.own)
        } else {
            (place.own, idom[w])
        };
        parent[*position as usize] = dominator;
    }
    (position, parent)
}

/// How many positions and how many words each subtree takes, from the last to the first.
fn sums(graph: &HeapGraph, order: &[NodeId], parent: &[u32]) -> (Packed<u32>, Packed<u64>) {
    let mut size = Packed::with_capacity(order.len());
    let mut retained = Packed::with_capacity(order.len());
    // Sums of what is below nodes yet to come, by position, ascending.
    let mut open: Vec<(u32, u32, u64)> = Vec::new();
    for (at, &node) in (0..order.len() as u32).zip(order).rev() {
        let (mut nodes, mut words) = (1, graph.size(node) / 8);
        if let Some(&(_, n, w)) = open.last().filter(|o| o.0 == at) {
            open.pop();
            nodes += n;
            words += w;
        }
        size.push(nodes);
        retained.push(words);
        let above = parent[at as usize];
        match open.last_mut() {
            Some((p, n, w)) if *p == above => {
                *n += nodes;
                *w += words;
            }
            _ => open.push((above, nodes, words)),
        }
    }
    (size, retained)
}

/// The immediate dominator of each node of a depth-first tree, all by number. `parent` is the
/// tree, `cross` are the links that are not in it.
///
/// Memory is what large heaps run out of: columns that are needed one after the other for the
/// same node are one column.
fn immediate_dominators(parent: Vec<u32>, cross: Vec<(u32, u32)>) -> Vec<u32> {
    let count = parent.len();
    let (starts, sources) = by_target(count, cross);
    let mut forest = Forest {
        ancestor: parent,
        best: vec![NONE; count],
        semi: (0..count as u32).collect(),
        path: Vec::new(),
    };
    let mut idom = vec![0; count];
    for w in (1..count).rev() {
        let me = w as u32;
        // Nodes have waited for their semidominator to be reached, as a linked list: it starts
        // where the best will be, and goes on where immediate dominators will be.
        let mut v = std::mem::replace(&mut forest.best[w], me);
        while v != NONE {
            let best = forest.best_above(v, me + 1);
            let semi = forest.semi[best as usize];
            let next = std::mem::replace(&mut idom[v as usize], if semi < me { best } else { me });
            v = next;
        }
        let parent = forest.ancestor[w];
        let mut semi = parent;
        for &source in &sources[starts[w] as usize..starts[w + 1] as usize] {
            let best = forest.best_above(source, me + 1);
            semi = semi.min(forest.semi[best as usize]);
        }
        forest.semi[w] = semi;
        idom[w] = semi;
        if semi != 0 && semi != parent {
            idom[w] = std::mem::replace(&mut forest.best[semi as usize], me);
        }
    }
    for w in 1..count {
        if idom[w] != forest.semi[w] {
            idom[w] = idom[idom[w] as usize];
        }
    }
    idom
}

/// Links sorted by target: those into `w` come from `sources[starts[w]..starts[w + 1]]`.
fn by_target(count: usize, links: Vec<(u32, u32)>) -> (Vec<u32>, Vec<u32>) {
    let mut starts = vec![0u32; count + 1];
    for &(_, target) in &links {
        starts[target as usize] += 1;
    }
    let mut sum = 0;
    for start in &mut starts {
        sum += *start;
        *start = sum;
    }
    let mut sources = vec![0u32; links.len()];
    for (source, target) in links {
        let start = &mut starts[target as usize];
        *start -= 1;
        sources[*start as usize] = source;
    }
    (starts, sources)
}

/// The part of the depth-first tree with numbers from `first` on, where `first` falls.
struct Forest {
    /// A node above each, as far up as has been looked.
    ancestor: Vec<u32>,
    /// The node with the least semidominator from each up to (not including) its ancestor; of
    /// nodes below `first`, the first of those that wait for it.
    best: Vec<u32>,
    semi: Vec<u32>,
    /// Kept for its memory.
    path: Vec<u32>,
}

impl Forest {
    /// The node with the least semidominator among `v` and those above it in the forest.
    fn best_above(&mut self, v: u32, first: u32) -> u32 {
        if v < first {
            return v;
        }
        let mut top = v;
        while self.ancestor[top as usize] >= first {
            self.path.push(top);
            top = self.ancestor[top as usize];
        }
        let (end, mut best) = (self.ancestor[top as usize], self.best[top as usize]);
        while let Some(u) = self.path.pop() {
            let own = self.best[u as usize];
            if self.semi[best as usize] < self.semi[own as usize] {
                self.best[u as usize] = best;
            } else {
                best = own;
            }
            self.ancestor[u as usize] = end;
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;

    use super::super::sample;
    use super::*;

    /// Every node's dominators by taking each node away in turn.
    fn naive(graph: &HeapGraph) -> Vec<Option<Vec<NodeId>>> {
        let links = Links::of(graph);
        let nodes = graph.node_count();
        let reach = |without: Option<NodeId>| {
            let mut seen = vec![false; nodes];
            let mut todo: Vec<NodeId> = links.top().filter(|&n| Some(n) != without).collect();
            while let Some(n) = todo.pop() {
                if !std::mem::replace(&mut seen[n.index()], true) {
                    let next = links.below(n).iter().chain(links.edges(n));
                    todo.extend(next.filter(|&&n| Some(n) != without));
                }
            }
            seen
        };
        let all = reach(None);
        let without: Vec<Vec<bool>> = (0..nodes as u32).map(|n| reach(Some(NodeId(n)))).collect();
        (0..nodes)
            .map(|n| {
                all[n].then(|| {
                    let all = (0..nodes).filter(|&d| !without[d][n]);
                    all.map(|d| NodeId(d as u32)).collect()
                })
            })
            .collect()
    }

    proptest! {
        #[test]
        fn agrees_with_taking_each_node_away(graph in sample::graphs()) {
            prop_assert_eq!(graph.check(), Ok(()));
            let tree = Dominators::of(&graph);
            let truth = naive(&graph);
            for (n, dominators) in truth.iter().enumerate() {
                let node = NodeId(n as u32);
                let mut path = tree.path(node);
                prop_assert_eq!(tree.is_reachable(node), dominators.is_some());
                prop_assert_eq!(path.last().copied(), dominators.as_ref().map(|_| node));
                prop_assert_eq!(tree.immediate(node), path.iter().rev().nth(1).copied());
                path.sort();
                prop_assert_eq!(path, dominators.clone().unwrap_or_default());
                let kept: Vec<NodeId> = (0..truth.len()).map(|m| NodeId(m as u32))
                    .filter(|m| truth[m.index()].as_ref().is_some_and(|d| d.contains(&node)))
                    .collect();
                let bytes: u64 = kept.iter().map(|&m| graph.size(m)).sum();
                prop_assert_eq!(tree.retained(node), bytes);
                prop_assert_eq!(tree.retained_nodes(node) as usize, kept.len());
                let mut below = tree.subtree(node).to_vec();
                below.sort();
                prop_assert_eq!(below, kept);
                for child in tree.children(node) {
                    prop_assert_eq!(tree.immediate(child), Some(node));
                }
            }
            let sum: u64 = tree.top().map(|n| tree.retained(n)).sum();
            prop_assert_eq!(sum, tree.reachable_bytes());
            let live = truth.iter().filter(|t| t.is_some()).count();
            prop_assert_eq!(tree.reachable().len(), live);
        }
    }

    /// What the property above is tried with has leaves of all kinds.
    #[test]
    fn leaves_are_owned_shared_waited_on_held_by_roots_and_dead() {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let (mut owned, mut shared, mut waited, mut held, mut dead) = (0, 0, 0, 0, 0);
        for _ in 0..500 {
            let graph = sample::graphs().new_tree(&mut runner).unwrap().current();
            let (links, tree) = (Links::of(&graph), Dominators::of(&graph));
            let is_owned = owned_leaves(&graph, &links);
            let objects = (0..graph.object_count() as u32).map(NodeId);
            for leaf in objects.filter(|&n| links.is_leaf(n)) {
                let is_live = tree.is_reachable(leaf);
                dead += u32::from(!is_live);
                owned += u32::from(is_live && is_owned.at(leaf.index()));
                shared += u32::from(is_live && !is_owned.at(leaf.index()));
                let mut roots = (0..graph.roots.len() as u32).map(|r| graph.root_node(r));
                held += u32::from(roots.any(|r| links.edges(r).contains(&leaf)));
                let mut waits = graph.goroutines.iter().flat_map(|g| &g.waits_on);
                waited += u32::from(waits.any(|&n| n == leaf));
            }
        }
        let all = [owned, shared, waited, held, dead];
        assert!(all.iter().all(|&n| n > 50), "{all:?}");
    }

    #[test]
    fn a_chain_with_a_shared_tail_takes_no_time() {
        // The graph on which algorithms that climb the tree need the square of its size:
        // the end of a long chain leads to as many objects, and so does its head.
        let n = 200_000u32;
        let mut edges: Vec<(u32, u32)> = (1..n).map(|i| (i - 1, i)).collect();
        edges.extend((n..2 * n).map(|x| (n - 1, x)));
        edges.extend((n..2 * n).map(|x| (0, x)));
        let graph = sample::of(2 * n, &edges, &[0]);
        let tree = Dominators::of(&graph);
        assert_eq!(tree.retained(NodeId(0)), u64::from(2 * n) * 16);
        assert_eq!(tree.retained(NodeId(1)), u64::from(n - 1) * 16);
        assert_eq!(tree.immediate(NodeId(n + 5)), Some(NodeId(0)));
    }

    #[test]
    fn a_heap_without_roots_is_dead() {
        let tree = Dominators::of(&sample::of(3, &[(0, 1)], &[]));
        assert_eq!((tree.reachable_bytes(), tree.reachable().len()), (0, 0));
        assert!(!tree.is_reachable(NodeId(0)));
        assert_eq!(tree.subtree(NodeId(0)), []);
    }
}
