use memtrace_model::{EdgeSlot, HeapGraph, NodeId, Root, RootKind};

use super::links::Links;

const NONE: u32 = u32::MAX;

/// One step of a way from a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathStep {
    /// Where it starts.
    pub from: NodeId,
    /// Which pointer leads on; `None` where a goroutine keeps what it waits on, or a
    /// dominator has no pointer to what it dominates.
    pub slot: Option<EdgeSlot>,
    /// Where it ends.
    pub to: NodeId,
}

/// A way from a root to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootPath {
    /// Where it starts: a root.
    pub root: NodeId,
    /// The steps; none when the root itself was asked for.
    pub steps: Vec<PathStep>,
}

impl RootPath {
    /// The way in the words of the source: the root, then the pointer at each step with the
    /// type that holds it, then the type at the end.
    ///
    /// ```text
    /// global main.cache
    /// main.Cache.entries
    /// []main.Entry[*].key
    /// string
    /// ```
    /// Equal steps in a row (a linked list) are told once with their number: `… ×1024`.
    #[must_use]
    pub fn words(&self, graph: &HeapGraph) -> Vec<String> {
        let inner = self.steps.iter().skip(1).map(|s| step_words(graph, s));
        let last = self.steps.last().map(|s| graph.name(s.to).to_owned());
        let mut words: Vec<(String, u32)> = vec![(root_words(graph, self.root), 1)];
        for word in inner.chain(last) {
            match words.last_mut().filter(|w| w.0 == word) {
                Some(w) => w.1 += 1,
                None => words.push((word, 1)),
            }
        }
        (words.into_iter())
            .map(|(word, times)| match times {
                1 => word,
                _ => format!("{word} ×{times}"),
            })
            .collect()
    }
}

fn step_words(graph: &HeapGraph, step: &PathStep) -> String {
    let slot = step.slot.map(|s| field(graph, step.from, s));
    format!("{}{}", graph.name(step.from), slot.unwrap_or_default())
}

/// The word of the source for a pointer, with `[*]` for any element: `.entries`,
/// `[*].key`.
#[must_use]
pub fn field(graph: &HeapGraph, node: NodeId, slot: EdgeSlot) -> String {
    let name = graph.slot_name(node, slot);
    match name.split_once(']') {
        Some((element, rest)) if element.starts_with('[') => format!("[*]{rest}"),
        _ => name,
    }
}

/// What a root is, in words: `global main.cache`, `frame main.(*T).run:87 of goroutine
/// main.worker`. The name of the node's type for an object.
#[must_use]
pub fn root_words(graph: &HeapGraph, node: NodeId) -> String {
    let Some(root) = graph.root(node) else {
        return graph.name(node).to_owned();
    };
    let name = graph.strings.get(root.name);
    let kind = match root.kind {
        RootKind::Global => "global",
        RootKind::Goroutine => "goroutine",
        RootKind::Frame => "frame",
        RootKind::Finalizer => "finalizer",
        RootKind::Cleanup => "cleanup",
        RootKind::Registers => "registers",
        _ => "runtime",
    };
    let mut words = format!("{kind} {name}");
    if root.line > 0 {
        words.push_str(&format!(":{}", root.line));
    }
    if let Some(parent) = root.parent {
        words.push_str(" of ");
        words.push_str(&root_words_above(graph, &graph.roots[parent as usize]));
    }
    words
}

fn root_words_above(graph: &HeapGraph, root: &Root) -> String {
    let name = graph.strings.get(root.name);
    match root.kind {
        RootKind::Goroutine => format!("goroutine {name}"),
        _ => name.to_owned(),
    }
}

/// For each target a shortest way from a root; `None` for dead ones.
///
/// A way through the runtime's own tables or system goroutines explains little: it is given
/// only where there is no other. One breadth-first search for all targets; 4 bytes a node, and 4
/// for each that leads on.
#[must_use]
pub fn shortest_paths(graph: &HeapGraph, targets: &[NodeId]) -> Vec<Option<RootPath>> {
    ways(graph, &Links::of(graph), targets)
}

/// The same, were these roots gone.
pub(super) fn shortest_paths_without(
    graph: &HeapGraph,
    targets: &[NodeId],
    roots: &[NodeId],
) -> Vec<Option<RootPath>> {
    ways(graph, &Links::without(graph, roots), targets)
}

fn ways(graph: &HeapGraph, links: &Links<'_>, targets: &[NodeId]) -> Vec<Option<RootPath>> {
    if targets.is_empty() {
        return Vec::new();
    }
    let mut before = vec![NONE; graph.node_count()];
    let mut wanted = targets.to_vec();
    wanted.sort_unstable();
    wanted.dedup();
    let mut missing = wanted.len();
    let (telling, other): (Vec<u32>, Vec<u32>) = (0..graph.roots.len() as u32).partition(|&r| {
        !is_of_the_runtime(graph, r) && !is_passing(graph, &graph.roots[r as usize])
    });
    let system = system_roots(graph);
    let (other_too, telling): (Vec<u32>, Vec<u32>) =
        telling.into_iter().partition(|&r| system[r as usize]);
    let mut queue: Vec<NodeId> = Vec::new();
    for seeds in [telling, other, other_too] {
        queue.clear();
        for root in seeds {
            let node = graph.root_node(root);
            if before[node.index()] == NONE {
                before[node.index()] = node.0;
                missing -= usize::from(wanted.binary_search(&node).is_ok());
                queue.push(node);
            }
        }
        let mut next = 0;
        while let Some(&node) = queue.get(next).filter(|_| missing > 0) {
            next += 1;
            let below = links.below(node).iter();
            let below = below.filter(|n| n.index() < graph.object_count());
            for &target in below.chain(links.edges(node)) {
                if before[target.index()] == NONE {
                    before[target.index()] = node.0;
                    missing -= usize::from(wanted.binary_search(&target).is_ok());
                    if !links.is_leaf(target) {
                        queue.push(target);
                    }
                }
            }
        }
    }
    let found = |&target: &NodeId| {
        let mut nodes = vec![target];
        let mut at = target;
        loop {
            let from = NodeId(*before.get(at.index()).filter(|&&b| b != NONE)?);
            if from == at {
                break;
            }
            nodes.push(from);
            at = from;
        }
        nodes.reverse();
        Some(along(graph, &nodes))
    };
    targets.iter().map(found).collect()
}

/// The way over the given nodes, a root first; a pointer where there is one from each to the
/// next.
pub(super) fn along(graph: &HeapGraph, nodes: &[NodeId]) -> RootPath {
    let steps = nodes.windows(2).map(|w| {
        let at = graph.targets(w[0]).iter().position(|&n| n == w[1]);
        PathStep {
            from: w[0],
            slot: at.and_then(|i| graph.slots(w[0]).nth(i)),
            to: w[1],
        }
    });
    RootPath {
        root: nodes.first().copied().unwrap_or_default(),
        steps: steps.collect(),
    }
}

/// Whether a root is the runtime's own business.
pub(super) fn is_of_the_runtime(graph: &HeapGraph, root: u32) -> bool {
    let root = &graph.roots[root as usize];
    match root.kind {
        RootKind::Runtime | RootKind::Registers => true,
        RootKind::Global => {
            let name = graph.strings.get(root.name);
            // The lists of all pools lead to each, whoever made it.
            name.starts_with("runtime.") || matches!(name, "sync.allPools" | "sync.oldPools")
        }
        _ => false,
    }
}

/// A frame of the runtime on anybody's stack is gone in a moment: `mapaccess1` holds the map only
/// while it looks for a key.
fn is_passing(graph: &HeapGraph, root: &Root) -> bool {
    let name = graph.strings.get(root.name);
    root.kind == RootKind::Frame
        && ["runtime.", "internal/runtime/"]
            .iter()
            .any(|p| name.starts_with(p))
}

/// For each root whether it belongs to a system goroutine.
pub(super) fn system_roots(graph: &HeapGraph) -> Vec<bool> {
    let mut system = vec![false; graph.roots.len()];
    for goroutine in graph.goroutines.iter().filter(|g| g.is_system) {
        system[goroutine.root as usize] = true;
    }
    for (r, root) in graph.roots.iter().enumerate() {
        if let Some(parent) = root.parent {
            system[r] |= system[parent as usize];
        }
    }
    system
}

#[cfg(test)]
mod tests {
    use memtrace_model::{HeapField, HeapKind};

    use super::super::sample::Sample;
    use super::*;

    #[test]
    fn a_function_of_the_runtime_keeps_nothing_for_long() {
        let mut s = Sample::default();
        let cache = s.value("main.Cache");
        let map = s.object("map[string]int", HeapKind::Map, 6);
        let alone = s.value("main.Alone");
        s.edge(cache, map);
        s.global("main.cache", cache);
        let (_, frame) = s.goroutine("runtime.mapaccess1_faststr", &[]);
        s.root_edge(frame, map);
        s.root_edge(frame, alone);
        let graph = s.done();
        let paths = shortest_paths(&graph, &[NodeId(map), NodeId(alone)]);
        let words = |i: usize| paths[i].as_ref().unwrap().words(&graph).join(" → ");
        assert_eq!(words(0), "global main.cache → main.Cache → map[string]int");
        // Where there is no other way it is told all the same.
        assert!(
            words(1).contains("runtime.mapaccess1_faststr"),
            "{}",
            words(1)
        );
    }

    #[test]
    fn a_path_speaks_the_words_of_the_source() {
        let mut s = Sample::default();
        let cache = s.value("main.Cache");
        let array = s.object("[]*main.Entry", HeapKind::Array, 8);
        let entry = s.value("main.Entry");
        let node: Vec<u32> = (0..5).map(|_| s.value("main.Node")).collect();
        let dead = s.value("main.Dead");
        s.global("runtime.allgs", entry);
        s.global("main.cache", cache);
        s.edge(cache, array);
        s.edge(array, cache);
        s.edge(array, entry);
        s.edge(entry, node[0]);
        for w in node.windows(2) {
            s.edge(w[0], w[1]);
        }
        let name = s.graph().strings.intern("entries");
        let fields = s
            .graph()
            .fields
            .intern(&[HeapField { offset: 0, name }])
            .unwrap();
        s.graph().heap_types[0].fields = fields;
        let (_, frame) = s.goroutine("main.worker", &[]);
        s.root_edge(frame, dead);
        let graph = s.done();
        let asked = [
            NodeId(entry),
            NodeId(node[4]),
            NodeId(dead),
            graph.root_node(1),
        ];
        let paths = shortest_paths(&graph, &asked);
        let words = |i: usize| paths[i].as_ref().unwrap().words(&graph).join(" → ");
        assert_eq!(
            words(0),
            "global main.cache → main.Cache.entries → []*main.Entry[*] → main.Entry"
        );
        assert!(
            words(1).ends_with("main.Entry → main.Node ×5"),
            "{}",
            words(1)
        );
        assert_eq!(
            words(2),
            "frame main.worker of goroutine main.worker → main.Dead"
        );
        assert_eq!(words(3), "global main.cache");
    }

    #[test]
    fn the_dead_have_no_path() {
        let graph = super::super::sample::of(3, &[(0, 1)], &[0]);
        let paths = shortest_paths(&graph, &[NodeId(2), NodeId(1), NodeId(1)]);
        assert_eq!(paths[0], None);
        assert_eq!(paths[1].as_ref().unwrap().steps.len(), 2);
        assert_eq!(paths[1], paths[2]);
    }
}
