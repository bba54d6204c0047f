use std::collections::{BTreeMap, HashMap};

use memtrace_model::{
    Finding, HeapGraph, HeapKind, HeapStackId, HeapTypeId, NodeId, Pattern, Root, RootKind,
    SampleKind,
};

use super::holdings::way;
use super::paths::shortest_paths_without;
use super::{
    Dominators, GoroutineGroup, GoroutineReport, GoroutineVerdict, Heap, Holdings, RootPath,
    goroutine_leaks, root_words, shortest_paths,
};
use crate::{leaks, units};

/// Sampled objects that are followed upwards.
const FOLLOWED: usize = 4 << 10;
/// Of these, so many up to their roots.
const CLIMBED: usize = 256;
/// What keeps at least this share of them is what keeps them.
const MOST: f64 = 0.8;
/// Roots that are looked at for frames which have it at hand besides.
const MOST_ROOTS: usize = 4;
/// In larger graphs another dominator tree takes too long.
const MOST_NODES: usize = 1 << 24;

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
    /// What that makes of a finding that is only growth: a pattern, and what to do.
    pub cause: Option<(Pattern, String)>,
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
            kept(heap, finding, nodes, "of its kind")
        }
        SampleKind::Heap if leaks::makes_goroutines(&finding.stack) => most_goroutines(heap),
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
        finding,
        nodes,
        "of what the heap profile sampled of this stack",
    )
}

/// The type of most of these live objects, and what keeps them. `which` are they, in words.
fn kept(
    heap: Heap<'_>,
    finding: &Finding,
    mut nodes: Vec<NodeId>,
    which: &str,
) -> Option<Explanation> {
    let graph = heap.graph;
    let step = nodes.len().div_ceil(FOLLOWED).max(1);
    nodes = nodes.into_iter().step_by(step).collect();
    let piled = most(&nodes, |n| Some((graph.types[n.index()], graph.size(n))))?;
    // One in the middle of the type that most of the bytes are of.
    let of_type = nodes.iter().filter(|n| graph.types[n.index()] == piled);
    let of_type: Vec<NodeId> = of_type.copied().collect();
    let example = *of_type.get(of_type.len() / 2)?;
    let mut path = shortest_paths(graph, &[example]).pop().flatten();
    let mut keeper = heap.dominators.keeper(&nodes, MOST);
    let lasting = match (&keeper, &path) {
        (None, Some(path)) => Lasting::of(heap, &nodes, example, path),
        _ => None,
    };
    let dominators = lasting.as_ref().map_or(heap.dominators, |l| &l.dominators);
    let mut explanation = Explanation {
        type_name: Some(type_name(graph, piled)),
        ..Explanation::default()
    };
    if let Some(lasting) = &lasting {
        keeper = Some(lasting.keeper);
        path = Some(lasting.path.clone());
    }
    let root = path.as_ref().map(|p| p.root);
    explanation.retained_by = path.map(|p| p.words(graph)).unwrap_or_default();
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
            && let Some(above) = dominators.immediate(keeper)
        {
            keeper = above;
        }
        let heap_now = Heap { graph, dominators };
        let retained = dominators.retained(keeper);
        explanation.retained_bytes = Some(retained);
        explanation.evidence.push(format!(
            "{} keeps {} alive, and with that {:.0} % {which}",
            root_words(graph, keeper),
            units::bytes(retained as f64),
            100.0 * share
        ));
        // Also where the stack tells a pattern now: another stack may stand for the finding later.
        if has_places(heap_now, keeper, &nodes, piled, finding.live_objects) {
            let mut up: Vec<NodeId> = dominators.path(example).into_iter().rev().collect();
            // Where several roots lead to the container, none of them dominates it.
            if let (Some(last), Some(root)) = (up.last(), root)
                && graph.root(*last).is_none()
            {
                up.push(root);
            }
            let holder = up.iter().position(|n| *n == keeper);
            let way = way(graph, up.into_iter());
            explanation.cause = holder.map(|at| leaks::of_container(&way, at));
        }
        for frame in lasting.iter().flat_map(|l| &l.besides) {
            explanation.evidence.push(format!(
                "at that moment {} had it at hand as well",
                root_words(graph, *frame)
            ));
        }
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
    let seen = Heap { graph, dominators };
    explanation.evidence.extend(map_above(seen, example));
    Some(explanation)
}

/// Whether a frame is of a goroutine that has stood still: what it has is not passing.
fn waits_long(graph: &HeapGraph, frame: &Root) -> bool {
    const LONG_MS: u64 = 10_000;
    let of_frame = graph
        .goroutines
        .iter()
        .find(|g| Some(g.root) == frame.parent);
    of_frame.is_some_and(|g| g.waiting_ms.is_some_and(|ms| ms >= LONG_MS))
}

/// Whether a map or an array has a place of its own for each of the things that pile up: then
/// it grows with them. Things are of the type `piled`, counted in the copy. `live` is how many
/// objects the profile tells of: a thing may be made of several, and the profile may be newer
/// than the copy. The nodes are those that were sampled.
fn has_places(
    heap: Heap<'_>,
    keeper: NodeId,
    nodes: &[NodeId],
    piled: HeapTypeId,
    live: u64,
) -> bool {
    /// Objects that a thing is made of, at most, and that were made since the copy.
    const OBJECTS: u64 = 8;
    let Heap { graph, dominators } = heap;
    let Some(kind) = graph.types.get(keeper.index()) else {
        return false;
    };
    let (places, taken) = match graph.heap_types[kind.index()].kind {
        HeapKind::Map => {
            let at = graph.maps.binary_search_by_key(&keeper, |m| m.node);
            let used = at.map_or(0, |at| graph.maps[at].used);
            (used, nodes.len())
        }
        HeapKind::Array => {
            let mut at: Vec<usize> = nodes
                .iter()
                .filter_map(|&n| dominators.position(n))
                .collect();
            at.sort_unstable();
            let (mut places, mut taken) = (0, 0);
            for child in dominators.children(keeper) {
                let from = dominators.position(child).unwrap_or(0);
                let first = at.partition_point(|&p| p < from);
                let holds = |&p: &usize| p < from + dominators.size_at(from);
                places += 1;
                taken += usize::from(at.get(first).is_some_and(holds));
            }
            (places, taken)
        }
        _ => (0, 0),
    };
    let below = dominators
        .position(keeper)
        .map_or(0..0, |at| at..at.saturating_add(dominators.size_at(at)));
    let of_type = graph
        .types
        .iter()
        .enumerate()
        .filter(|(_, kind)| **kind == piled);
    let things = of_type
        .filter_map(|(n, _)| dominators.position(NodeId(u32::try_from(n).ok()?)))
        .filter(|at| below.contains(at));
    let things = things.count().max(nodes.len()) as u64;
    places >= things / 2 && places >= live / OBJECTS && taken as f64 >= MOST * nodes.len() as f64
}

/// What keeps objects that a frame has at hand as well: a function that goes through a copy of
/// a list, say, and will have returned in a moment.
struct Lasting {
    /// Without those frames.
    dominators: Dominators,
    keeper: (NodeId, f64),
    path: RootPath,
    besides: Vec<NodeId>,
}

impl Lasting {
    /// Takes the frames away, one function after the other, that ways to an example start from.
    fn of(heap: Heap<'_>, nodes: &[NodeId], example: NodeId, path: &RootPath) -> Option<Self> {
        let graph = heap.graph;
        let way = |cut: &[NodeId]| shortest_paths_without(graph, &[example], cut).pop()?;
        let (mut cut, mut besides, mut others) = (Vec::new(), Vec::new(), Vec::new());
        let mut root = path.root;
        if graph.node_count() > MOST_NODES {
            return None;
        }
        for _ in 0..MOST_ROOTS {
            let known = graph.root(root)?;
            if known.kind == RootKind::Frame && !waits_long(graph, known) {
                besides.push(root);
                // Other goroutines may be about the same.
                let same = |root: &Root| root.kind == RootKind::Frame && root.name == known.name;
                let roots = graph
                    .roots
                    .iter()
                    .zip(0u32..)
                    .filter(|(root, _)| same(root));
                cut.extend(roots.map(|(_, number)| graph.root_node(number)));
                let path = way(&cut)?;
                let dominators = Dominators::without(graph, &cut);
                let kept = nodes.iter().filter(|n| dominators.is_reachable(**n));
                let kept = kept.count() as f64 / nodes.len() as f64;
                let keeper = dominators.keeper(nodes, MOST);
                let keeper = keeper.map(|(keeper, share)| (keeper, share * kept));
                // Another frame may be what is passing, and the one taken away what lasts.
                let lasts = |keeper: NodeId| {
                    let top = dominators.path(keeper).first().copied();
                    [top, Some(path.root)].into_iter().flatten().all(|root| {
                        let root = graph.root(root);
                        root.is_none_or(|r| r.kind != RootKind::Frame || waits_long(graph, r))
                    })
                };
                if let Some(keeper) = keeper.filter(|(k, share)| *share >= MOST && lasts(*k)) {
                    return Some(Self {
                        dominators,
                        keeper,
                        path,
                        besides,
                    });
                }
            } else if others.contains(&root) {
                return None;
            } else {
                others.push(root);
            }
            root = way(&[&cut[..], &others].concat())?.root;
        }
        None
    }
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
    let of_stack: Vec<usize> = (graph.goroutines.iter().enumerate())
        .filter(|(_, g)| fits.get(&g.stack) == Some(&true))
        .map(|(i, _)| i)
        .collect();
    stand_there(heap, &goroutine_leaks(graph), &of_stack)
}

/// Which goroutines pile up, of whom only the number was known: those that nothing can wake,
/// or where nearly all of them are.
fn most_goroutines(heap: Heap<'_>) -> Option<Explanation> {
    let graph = heap.graph;
    let report = goroutine_leaks(graph);
    let all = graph.goroutines.iter().filter(|g| !g.is_system).count();
    let is_it = |g: &&GoroutineGroup| {
        let share = g.goroutines.len() as f64 / all.max(1) as f64;
        g.verdict == GoroutineVerdict::Leaked || share >= MOST
    };
    let sure = report.groups.iter().filter(is_it);
    let group = sure.max_by_key(|g| (g.verdict == GoroutineVerdict::Leaked, g.goroutines.len()))?;
    let of_stack: Vec<usize> = group.goroutines.iter().map(|&g| g as usize).collect();
    let mut explanation = stand_there(heap, &report, &of_stack)?;
    if let Some((function, line)) = stack(graph, group.stack).first() {
        let count = of_stack.len();
        let place = format!("{count} of {all} goroutines are at {function}:{line}");
        explanation.evidence.insert(0, place);
    }
    Some(explanation)
}

fn stand_there(
    heap: Heap<'_>,
    report: &GoroutineReport,
    of_stack: &[usize],
) -> Option<Explanation> {
    let graph = heap.graph;
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
        ..Explanation::default()
    })
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;
    use crate::leaks::tests::any_finding;

    const RECORDS: u32 = 20;

    /// What is told of these objects, of which there are `live`.
    fn explained(live: u64, build: impl Fn(&mut Sample) -> Vec<u32>) -> Explanation {
        let mut sample = Sample::default();
        let nodes = build(&mut sample).into_iter().map(NodeId).collect();
        let graph = sample.done();
        let dominators = Dominators::of(&graph);
        let heap = Heap {
            graph: &graph,
            dominators: &dominators,
        };
        let finding = Finding {
            live_objects: live,
            ..any_finding()
        };
        kept(heap, &finding, nodes, "of them").unwrap()
    }

    /// What is told of records that a list of a variable leads to; `also` adds what else does.
    fn told(also: impl Fn(&mut Sample, u32, &[u32])) -> Explanation {
        explained(0, |sample| {
            let list = sample.object("[]*main.record", HeapKind::Array, RECORDS);
            sample.global("main.list", list);
            let records: Vec<u32> = (0..RECORDS).map(|_| sample.value("main.record")).collect();
            let copy = sample.object("[]*main.record", HeapKind::Array, RECORDS);
            for array in [list, copy] {
                records.iter().for_each(|&r| sample.edge(array, r));
            }
            also(sample, copy, &records);
            records
        })
    }

    #[test]
    fn what_keeps_them_alone() {
        let told = told(|_, _, _| ());
        let way = ["global main.list", "[]*main.record[*]", "main.record"];
        assert_eq!(told.retained_by, way);
        assert_eq!(told.retained_bytes, Some(8 * 20 + 16 * 20));
        let words = "[]*main.record keeps 480 B alive, and with that 100 % of them";
        assert_eq!(told.evidence, [words]);
        let (pattern, advice) = told.cause.unwrap();
        assert_eq!(pattern, Pattern::SliceGrowth);
        assert!(advice.contains("main.list"), "{advice}");
    }

    /// A table of few places does not grow with what is in it.
    #[test]
    fn a_container_that_does_not_grow() {
        let told = explained(0, |sample| {
            let table = sample.object("[]main.bucket", HeapKind::Array, 4);
            sample.global("main.table", table);
            let entries: Vec<u32> = (0..RECORDS).map(|_| sample.value("main.entry")).collect();
            for (i, &entry) in entries.iter().enumerate() {
                sample.edge(if i < 4 { table } else { entries[i - 4] }, entry);
            }
            entries
        });
        assert!(
            told.evidence[0].starts_with("[]main.bucket keeps"),
            "{told:?}"
        );
        assert_eq!(told.cause, None);
        // Of many things few are sampled, each in another shard.
        let shards = |live| {
            explained(live, |sample| {
                let table = sample.object("[]main.shard", HeapKind::Array, 1000);
                sample.global("main.shards", table);
                let all: Vec<u32> = (0..1000).map(|_| sample.value("main.entry")).collect();
                all.iter().for_each(|&entry| sample.edge(table, entry));
                all.into_iter().step_by(10).collect()
            })
        };
        assert_eq!(shards(6_000_000).cause, None);
        assert!(shards(1100).cause.is_some());
        // Each is made of some objects, which the profile counts one by one.
        assert!(shards(6000).cause.is_some());
        // Behind each that was sampled there are more of its kind.
        let lists = explained(1000, |sample| {
            let table = sample.object("[]main.list", HeapKind::Array, 200);
            sample.global("main.lists", table);
            let mut sampled = Vec::new();
            for _ in 0..200 {
                let list: Vec<u32> = (0..5).map(|_| sample.value("main.entry")).collect();
                sample.edge(table, list[0]);
                list.windows(2)
                    .for_each(|pair| sample.edge(pair[0], pair[1]));
                sampled.push(list[4]);
            }
            sampled
        });
        assert_eq!(lists.cause, None);
    }

    /// A list that a function builds in a variable of its own, while another goes through a copy.
    #[test]
    fn frames_only() {
        let told = explained(0, |sample| {
            let records: Vec<u32> = (0..RECORDS).map(|_| sample.value("main.record")).collect();
            for entry in ["main.run", "main.publish"] {
                let array = sample.object("[]*main.record", HeapKind::Array, RECORDS);
                let (_, frame) = sample.goroutine(entry, &[]);
                sample.root_edge(frame, array);
                records.iter().for_each(|&r| sample.edge(array, r));
            }
            records
        });
        assert_eq!((told.retained_bytes, told.cause), (None, None));
    }

    /// A function that goes through a copy of the list does not keep it for long.
    #[test]
    fn frames_that_have_it_at_hand() {
        let told = told(|sample, copy, _| {
            for _ in 0..2 {
                let (_, frame) = sample.goroutine("main.publish", &[]);
                sample.root_edge(frame, copy);
            }
            // So short a way that it is told.
            let (_, other) = sample.goroutine("main.look", &[]);
            for record in 2..2 + RECORDS / 2 {
                sample.root_edge(other, record);
            }
        });
        assert_eq!(told.retained_by[0], "global main.list", "{told:?}");
        assert_eq!(told.retained_bytes, Some(8 * 20 + 16 * 20));
        let besides: Vec<&String> = told.evidence[1..].iter().collect();
        assert!(
            besides
                .iter()
                .all(|e| e.ends_with("had it at hand as well")),
            "{besides:?}"
        );
        assert!(besides.iter().any(|e| e.contains("main.publish")));
    }

    #[test]
    fn two_variables_or_a_variable_and_a_frame() {
        let none = "no single object or variable keeps it: at least two lead to most of it";
        let two = told(|sample, copy, _| {
            sample.global("main.other", copy);
        });
        assert_eq!((two.retained_bytes, &*two.evidence[0]), (None, none));
        // A frame, and another variable that has one of them.
        let frame = told(|sample, copy, records| {
            let (_, frame) = sample.goroutine("main.publish", &[]);
            sample.root_edge(frame, copy);
            let other = sample.object("main.other", HeapKind::Value, 2);
            sample.global("main.other", other);
            sample.edge(other, records[0]);
        });
        assert!(
            frame.evidence[0].contains("with that 95 % of them"),
            "{frame:?}"
        );
    }
}
