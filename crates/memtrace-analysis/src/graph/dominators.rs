use memtrace_model::{HeapGraph, NodeId};

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
/// ([`Dominators::subtree`]), and its children lie in it one after the other. This takes 24
/// bytes a node. Making it takes about 50 bytes a node, the result included (10 M objects
/// measured: 38 to 52), and never more than 48 a node and 16 an edge.
///
/// Made with the algorithm of Lengauer and Tarjan (path compression, buckets), in
/// O(edges · log nodes) whatever the graph looks like.
#[derive(Clone, Debug)]
pub struct Dominators {
    /// Node at each position; the first is [`ABOVE`].
    order: Vec<NodeId>,
    /// Position of each node, [`NONE`] for one that no root leads to.
    position: Vec<u32>,
    /// Position of the immediate dominator of what is at each position.
    parent: Vec<u32>,
    /// How many positions the subtree takes that starts at each.
    size: Vec<u32>,
    /// Bytes of that subtree.
    retained: Vec<u64>,
}

impl Dominators {
    /// The dominators of a graph that [`HeapGraph::check`] accepts.
    #[must_use]
    pub fn of(graph: &HeapGraph) -> Self {
        let (mut reached, cross) = Reached::of(graph);
        let idom = immediate_dominators(std::mem::take(&mut reached.parent), cross);
        Self::lay_out(graph, reached, idom)
    }

    /// Sorts the nodes into preorder of the dominator tree. `idom` is in numbers of `reached`.
    fn lay_out(graph: &HeapGraph, reached: Reached, idom: Vec<u32>) -> Self {
        let Reached {
            number,
            order,
            parent: _,
        } = reached;
        let count = order.len();
        let mut nodes = vec![1u32; count];
        for w in (1..count).rev() {
            nodes[idom[w] as usize] += nodes[w];
        }
        // A dominator has a smaller number than what it dominates: when a node is placed, its
        // dominator is, and knows its next free position.
        let mut place = vec![0u32; count];
        let mut free = vec![1u32; count];
        for w in 1..count {
            let d = idom[w] as usize;
            place[w] = free[d];
            free[d] += nodes[w];
            free[w] = place[w] + 1;
        }
        drop(free);
        // One column after the other, each in place of what it is made from.
        let mut parents = vec![0; count];
        for (w, &d) in idom.iter().enumerate() {
            parents[place[w] as usize] = place[d as usize];
        }
        drop(idom);
        let size = moved(nodes, &place);
        let order = moved(order, &place);
        let mut position = number;
        for position in &mut position {
            if *position != NONE {
                *position = place[*position as usize];
            }
        }
        drop(place);
        let mut retained: Vec<u64> = order.iter().map(|&n| graph.size(n)).collect();
        for at in (1..count).rev() {
            retained[parents[at] as usize] += retained[at];
        }
        Self {
            order,
            position,
            parent: parents,
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
        self.position(node).map_or(0, |p| self.retained[p])
    }

    /// How many nodes would be garbage without this one, itself included; 0 for dead nodes.
    #[must_use]
    pub fn retained_nodes(&self, node: NodeId) -> u32 {
        self.position(node).map_or(0, |p| self.size[p])
    }

    /// What a node retains: itself, then all below it in preorder. Empty for dead nodes.
    #[must_use]
    pub fn subtree(&self, node: NodeId) -> &[NodeId] {
        match self.position(node) {
            Some(p) => &self.order[p..p + self.size[p] as usize],
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
            let end = at + self.size[at] as usize;
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
        self.retained[0]
    }

    fn children_at(&self, parent: Option<usize>) -> impl Iterator<Item = NodeId> + Clone + '_ {
        let range = parent.map_or(0..0, |p| p + 1..p + self.size[p] as usize);
        let mut at = range.start;
        std::iter::from_fn(move || {
            let child = *self.order.get(at).filter(|_| at < range.end)?;
            at += self.size[at] as usize;
            Some(child)
        })
    }

    /// Place of a node in [`Dominators::reachable`] counted from 1; what it retains takes
    /// the places up to [`Dominators::retained_nodes`] further on.
    pub(super) fn position(&self, node: NodeId) -> Option<usize> {
        let at = *self.position.get(node.index())?;
        (at != NONE).then_some(at as usize)
    }
}

/// What the roots lead to, numbered depth first; 0 is the node above all roots.
struct Reached {
    /// Number of each node, [`NONE`] for dead ones.
    number: Vec<u32>,
    /// The node of each number.
    order: Vec<NodeId>,
    /// Number of the node from which each was found.
    parent: Vec<u32>,
}

impl Reached {
    /// Also returns all links that are not part of the tree, as pairs of numbers.
    fn of(graph: &HeapGraph) -> (Self, Vec<(u32, u32)>) {
        let links = Links::of(graph);
        let mut found = Self {
            number: vec![NONE; graph.node_count()],
            order: Vec::with_capacity(graph.node_count() + 1),
            parent: Vec::with_capacity(graph.node_count() + 1),
        };
        found.order.push(ABOVE);
        found.parent.push(0);
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
                let seen = found.number[target.index()];
                if seen != NONE {
                    if seen != me {
                        cross.push((me, seen));
                    }
                } else if links.is_leaf(target) {
                    // Half of a heap leads nowhere. Taken at once it lies beside its owner.
                    found.push(target, me);
                } else {
                    pending.push((target, me));
                }
            }
        }
        (found, cross)
    }

    fn push(&mut self, node: NodeId, from: u32) -> u32 {
        let number = self.order.len() as u32;
        self.number[node.index()] = number;
        self.order.push(node);
        self.parent.push(from);
        number
    }
}

/// Each value at its place.
fn moved<T: Copy + Default>(values: Vec<T>, place: &[u32]) -> Vec<T> {
    let mut sorted = vec![T::default(); values.len()];
    for (value, &at) in values.into_iter().zip(place) {
        sorted[at as usize] = value;
    }
    sorted
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
