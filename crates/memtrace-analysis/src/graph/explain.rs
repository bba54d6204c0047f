use std::collections::{BTreeMap, HashMap};

use memtrace_model::{Finding, HeapGraph, HeapKind, HeapStackId, HeapTypeId, NodeId, SampleKind};

use super::{
    GoroutineVerdict, Heap, Holdings, RootPath, goroutine_leaks, root_words, shortest_paths,
};
use crate::{leaks, units};

/// Sampled objects that are followed upwards.
const FOLLOWED: usize = 4 << 10;
/// Of these, so many up to their roots.
const CLIMBED: usize = 256;
/// What keeps at least this share of them is what keeps them.
const MOST: f64 = 0.8;

/// What a heap says of a finding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// The type of what piles up.
    pub type_name: Option<String>,
    /// Bytes that would be free without the object or root that keeps it.
    pub retained_bytes: Option<u64>,
    /// From a root to what piles up, in the words of the source.
    pub retained_by: Vec<String>,
    /// What was seen, in sentences.
    pub evidence: Vec<String>,
    /// Under which labels it was allocated, where those were followed: see
    /// [`tag_shares`](super::tag_shares).
    pub tags: BTreeMap<String, String>,
}

/// What keeps alive what a finding speaks of: the objects that its stack allocated, as far
/// as the heap profile sampled them, or the goroutines that have its stack. `None` where
/// the heap holds none of them.
#[must_use]
pub fn explain(heap: Heap<'_>, finding: &Finding) -> Option<Explanation> {
    match finding.source {
        // What it grows by was told by a way of the heap itself.
        SampleKind::Heap if finding.stack.is_empty() => {
            let nodes = Holdings::of(heap).nodes(heap, &finding.retained_by);
            kept(heap, nodes, "of its kind")
        }
        SampleKind::Heap => objects(heap, finding),
        SampleKind::Goroutine => goroutines(heap, finding),
        _ => None,
    }
}

/// The functions of a stack that are the service's own, with their lines.
type Own<'a> = Vec<(&'a str, i64)>;

fn wanted(finding: &Finding) -> Own<'_> {
    let frames = finding.stack.iter().map(|f| (f.function.as_str(), f.line));
    frames.filter(|(f, _)| leaks::is_own_code(f)).collect()
}

fn stack(graph: &HeapGraph, stack: HeapStackId) -> Own<'_> {
    let frames = graph.stacks.get(stack.0).iter();
    let frames = frames.filter_map(|f| graph.frames.get(f.index()));
    frames
        .map(|f| (graph.strings.get(f.function), i64::from(f.line)))
        .filter(|(f, _)| leaks::is_own_code(f))
        .collect()
}

/// Which of these stacks are the finding's; where none is, those that pass its culprit.
pub(super) fn fitting(
    graph: &HeapGraph,
    finding: &Finding,
    stacks: impl Iterator<Item = HeapStackId>,
) -> HashMap<HeapStackId, bool> {
    let stacks: Vec<HeapStackId> = stacks.collect();
    let wanted = wanted(finding);
    let by = |fits: &dyn Fn(&Own<'_>) -> bool| -> HashMap<HeapStackId, bool> {
        let mut known = HashMap::new();
        for &number in &stacks {
            known
                .entry(number)
                .or_insert_with(|| fits(&stack(graph, number)));
        }
        known
    };
    let exactly = by(&|own| !wanted.is_empty() && *own == wanted);
    if exactly.values().any(|&fits| fits) {
        return exactly;
    }
    let culprit = finding.culprit.as_ref().map(|c| c.function.as_str());
    by(&|own| culprit.is_some_and(|c| own.iter().any(|(f, _)| *f == c)))
}

fn objects(heap: Heap<'_>, finding: &Finding) -> Option<Explanation> {
    let graph = heap.graph;
    let fits = fitting(graph, finding, graph.allocated.iter().map(|a| a.stack));
    let nodes = (graph.allocated.iter())
        .filter(|a| fits.get(&a.stack) == Some(&true) && heap.dominators.is_reachable(a.node))
        .map(|a| a.node)
        .collect();
    kept(
        heap,
        nodes,
        "of what the heap profile sampled of this stack",
    )
}

/// The type of most of these live objects, and what keeps them. `which` are they, in words.
fn kept(heap: Heap<'_>, mut nodes: Vec<NodeId>, which: &str) -> Option<Explanation> {
    let graph = heap.graph;
    let step = nodes.len().div_ceil(FOLLOWED).max(1);
    nodes = nodes.into_iter().step_by(step).collect();
    let piled = most(&nodes, |n| Some((graph.types[n.index()], graph.size(n))))?;
    let keeper = heap.dominators.keeper(&nodes, MOST);
    // One in the middle of the type that most of the bytes are of.
    let of_type = nodes.iter().filter(|n| graph.types[n.index()] == piled);
    let of_type: Vec<NodeId> = of_type.copied().collect();
    let example = *of_type.get(of_type.len() / 2)?;
    let path = shortest_paths(graph, &[example])
        .into_iter()
        .next()
        .flatten();
    let mut explanation = Explanation {
        type_name: Some(type_name(graph, piled)),
        retained_by: path.map(|p| RootPath::words(&p, graph)).unwrap_or_default(),
        ..Explanation::default()
    };
    if let Some((mut keeper, share)) = keeper {
        // The parts of a map are kept by the map.
        let is_part = |n: NodeId| {
            let kind = graph
                .types
                .get(n.index())
                .map(|t| graph.heap_types[t.index()].kind);
            kind == Some(HeapKind::MapPart)
        };
        while is_part(keeper)
            && let Some(above) = heap.dominators.immediate(keeper)
        {
            keeper = above;
        }
        let retained = heap.dominators.retained(keeper);
        explanation.retained_bytes = Some(retained);
        explanation.evidence.push(format!(
            "{} keeps {} alive, and with that {:.0} % {which}",
            root_words(graph, keeper),
            units::bytes(retained as f64),
            100.0 * share
        ));
    } else if let Some((words, count, retained)) = roots_alike(heap, &nodes) {
        explanation.retained_bytes = Some(retained);
        explanation.evidence.push(format!(
            "{count} × {words} keep {} alive, each its own",
            units::bytes(retained as f64)
        ));
    } else {
        explanation.evidence.push(
            "no single object or variable keeps it: at least two lead to most of it".to_owned(),
        );
    }
    explanation.evidence.extend(map_above(heap, example));
    Some(explanation)
}

/// How full the map is that alone keeps an object, the closest where there are several.
fn map_above(heap: Heap<'_>, node: NodeId) -> Option<String> {
    let graph = heap.graph;
    let use_of = |node: &NodeId| {
        let at = graph.maps.binary_search_by_key(node, |m| m.node).ok()?;
        Some(graph.maps[at])
    };
    let map = heap.dominators.path(node).iter().rev().find_map(use_of)?;
    let full = 100.0 * map.used as f64 / map.capacity.max(1) as f64;
    (map.capacity > 0).then(|| {
        format!(
            "it lies in a {} with {} entries, {full:.0} % of the {} that the map has room for",
            graph.name(map.node),
            map.used,
            map.capacity
        )
    })
}

/// Roots with the same words (goroutines of one function) that together dominate most of the
/// nodes: the words, how many there are, and the bytes that they retain.
fn roots_alike(heap: Heap<'_>, nodes: &[NodeId]) -> Option<(String, usize, u64)> {
    let graph = heap.graph;
    let step = nodes.len().div_ceil(CLIMBED).max(1);
    let (mut sums, mut climbed) = (HashMap::<u32, u32>::new(), 0);
    for &node in nodes.iter().step_by(step) {
        climbed += 1;
        let top = heap.dominators.path(node).into_iter().next();
        if let Some(root) = top.and_then(|top| graph.root(top)) {
            *sums.entry(root.name).or_default() += 1;
        }
    }
    let (name, count) = sums
        .into_iter()
        .max_by_key(|&(name, count)| (count, name))?;
    if f64::from(count) < MOST * f64::from(climbed) {
        return None;
    }
    let alike: Vec<NodeId> = (0..graph.roots.len() as u32)
        .filter(|&r| {
            let root = &graph.roots[r as usize];
            root.name == name && root.parent.is_none()
        })
        .map(|r| graph.root_node(r))
        .collect();
    let retained = alike.iter().map(|&n| heap.dominators.retained(n)).sum();
    Some((root_words(graph, *alike.first()?), alike.len(), retained))
}

fn type_name(graph: &HeapGraph, number: HeapTypeId) -> String {
    let name = graph.heap_types.get(number.index()).map_or(0, |t| t.name);
    graph.strings.get(name).to_owned()
}

/// The key under which most bytes are.
fn most<K: Copy + Ord + std::hash::Hash>(
    nodes: &[NodeId],
    of: impl Fn(NodeId) -> Option<(K, u64)>,
) -> Option<K> {
    let mut sums: HashMap<K, u64> = HashMap::new();
    for (key, bytes) in nodes.iter().filter_map(|&n| of(n)) {
        *sums.entry(key).or_default() += bytes;
    }
    let largest = sums.into_iter().max_by_key(|&(key, bytes)| (bytes, key));
    largest.map(|(key, _)| key)
}

fn goroutines(heap: Heap<'_>, finding: &Finding) -> Option<Explanation> {
    let graph = heap.graph;
    let fits = fitting(graph, finding, graph.goroutines.iter().map(|g| g.stack));
    let report = goroutine_leaks(graph);
    let of_stack: Vec<usize> = (graph.goroutines.iter().enumerate())
        .filter(|(_, g)| fits.get(&g.stack) == Some(&true))
        .map(|(i, _)| i)
        .collect();
    let count = of_stack.len();
    let verdict = |wanted| {
        of_stack
            .iter()
            .filter(|&&i| report.verdicts[i] == wanted)
            .count()
    };
    let (leaked, waiting) = (
        verdict(GoroutineVerdict::Leaked),
        verdict(GoroutineVerdict::OnlyGlobals),
    );
    let first = graph.goroutines.get(*of_stack.first()?)?;
    let retained: u64 = (of_stack.iter())
        .map(|&i| {
            heap.dominators
                .retained(graph.root_node(graph.goroutines[i].root))
        })
        .sum();
    let stacks: u64 = of_stack
        .iter()
        .map(|&i| graph.goroutines[i].stack_bytes)
        .sum();
    let state = graph.strings.get(first.state);
    let mut evidence = vec![format!(
        "{count} goroutines stand there ({state}) with {} of stacks, and alone keep \
         {} of objects alive",
        units::bytes(stacks as f64),
        units::bytes(retained as f64)
    )];
    if leaked > 0 {
        evidence.push(format!(
            "proved: nothing can ever wake {leaked} of them, what they wait for is out of reach \
             for all that may still run"
        ));
    }
    if waiting > 0 {
        evidence.push(format!(
            "{waiting} of them wait for what only variables of packages lead to"
        ));
    }
    let waits_on = first.waits_on.first().map(|&n| graph.name(n).to_owned());
    Some(Explanation {
        type_name: waits_on,
        retained_bytes: Some(retained + stacks),
        retained_by: vec![root_words(graph, graph.root_node(first.root))],
        evidence,
        tags: BTreeMap::new(),
    })
}
