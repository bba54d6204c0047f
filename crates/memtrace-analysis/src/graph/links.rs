use memtrace_model::{HeapGraph, NodeId, WaitsFor};

/// What leads to what, seen as a tree of roots above the objects.
///
/// The edges of a graph, and besides: from a root to the roots below it (a goroutine to its
/// frames), and from a blocked goroutine to what it waits on. Edges of `runtime.sudog` are
/// left out. A sudog is the runtime's note that a goroutine waits for a channel or a mutex;
/// it hangs off tables of the runtime and off the other end's queue, and following it would
/// make the whole program the owner of every channel that anyone waits for. Nothing is lost:
/// the goroutine itself leads there.
pub(super) struct Links<'a> {
    graph: &'a HeapGraph,
    objects: usize,
    /// The links of root `r` beside its edges are `below[starts[r]..starts[r + 1]]`.
    starts: Vec<u32>,
    below: Vec<NodeId>,
    /// One bit per node: its edges are left out. The bits of the last ones may be missing.
    cut: Vec<u64>,
}

impl<'a> Links<'a> {
    /// Takes a graph that [`HeapGraph::check`] accepts.
    pub(super) fn of(graph: &'a HeapGraph) -> Self {
        let objects = graph.object_count();
        let waiting = || {
            graph.goroutines.iter().flat_map(|g| {
                let blocked = g.waits_for == WaitsFor::Objects;
                let on = if blocked { &g.waits_on[..] } else { &[] };
                on.iter().map(move |&n| (g.root, n))
            })
        };
        let held = || {
            (graph.roots.iter().zip(0u32..))
                .filter_map(|(r, i)| Some((r.parent?, graph.root_node(i))))
        };
        let mut starts = vec![0u32; graph.roots.len() + 1];
        for (root, _) in held().chain(waiting()) {
            starts[root as usize + 1] += 1;
        }
        for i in 1..starts.len() {
            starts[i] += starts[i - 1];
        }
        let mut free = starts.clone();
        let mut below = vec![NodeId(0); starts.last().map_or(0, |&n| n as usize)];
        for (root, node) in held().chain(waiting()) {
            below[free[root as usize] as usize] = node;
            free[root as usize] += 1;
        }
        Self {
            graph,
            objects,
            starts,
            below,
            cut: sudogs(graph),
        }
    }

    /// The same without the edges of some roots.
    pub(super) fn without(graph: &'a HeapGraph, roots: &[NodeId]) -> Self {
        let mut links = Self::of(graph);
        if let Some(last) = roots.iter().max() {
            let words = last.index() / 64 + 1;
            links.cut.resize(links.cut.len().max(words), 0);
        }
        for root in roots {
            links.cut[root.index() / 64] |= 1 << (root.index() % 64);
        }
        links
    }

    /// The objects that a node's own edges lead to.
    pub(super) fn edges(&self, node: NodeId) -> &'a [NodeId] {
        if self.is_cut(node) {
            return &[];
        }
        self.graph.targets(node)
    }

    /// What a root leads to beside its edges: roots below it, objects it waits on. Nothing
    /// for an object.
    pub(super) fn below(&self, node: NodeId) -> &[NodeId] {
        match node.index().checked_sub(self.objects) {
            Some(r) => &self.below[self.starts[r] as usize..self.starts[r + 1] as usize],
            None => &[],
        }
    }

    /// What any root leads to beside its edges.
    pub(super) fn all_below(&self) -> &[NodeId] {
        &self.below
    }

    /// Whether an object leads nowhere.
    pub(super) fn is_leaf(&self, node: NodeId) -> bool {
        let n = node.index();
        n < self.objects
            && (self.graph.edge_starts[n] == self.graph.edge_starts[n + 1] || self.is_cut(node))
    }

    /// The roots that hang below no other.
    pub(super) fn top(&self) -> impl DoubleEndedIterator<Item = NodeId> {
        let graph = self.graph;
        (0..graph.roots.len() as u32)
            .filter(|&r| graph.roots[r as usize].parent.is_none())
            .map(|r| graph.root_node(r))
    }

    fn is_cut(&self, node: NodeId) -> bool {
        let word = self.cut.get(node.index() / 64).copied().unwrap_or(0);
        word >> (node.index() % 64) & 1 == 1
    }
}

/// Whether a root leads to each object; the others are dead. What [`super::Dominators`] tells
/// as well, in a fraction of the time and memory.
#[must_use]
pub fn live_objects(graph: &HeapGraph) -> Vec<bool> {
    let links = Links::of(graph);
    let mut seen = vec![false; graph.node_count()];
    let mut open: Vec<NodeId> = links.top().collect();
    while let Some(node) = open.pop() {
        for &target in links.below(node).iter().chain(links.edges(node)) {
            if !std::mem::replace(&mut seen[target.index()], true) && !links.is_leaf(target) {
                open.push(target);
            }
        }
    }
    seen.truncate(graph.object_count());
    seen
}

fn sudogs(graph: &HeapGraph) -> Vec<u64> {
    let names: Vec<bool> = (graph.heap_types.iter())
        .map(|t| graph.strings.get(t.name) == "runtime.sudog")
        .collect();
    if !names.contains(&true) {
        return Vec::new();
    }
    let mut cut = vec![0u64; graph.object_count().div_ceil(64)];
    for (n, kind) in graph.types.iter().enumerate() {
        if names[kind.index()] {
            cut[n / 64] |= 1 << (n % 64);
        }
    }
    cut
}
