use std::collections::HashMap;

use memtrace_model::{HeapGraph, HeapType, HeapTypeId, NodeId, RootKind};

use super::Heap;
use super::links::Links;
use super::paths::{is_of_the_runtime, root_words, system_roots};

const NONE: u32 = u32::MAX;

/// From when on objects count as survivors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SurvivorOptions {
    /// Cycles from birth to the last reference.
    pub cycles: u32,
    /// Modules that keep an object together.
    pub retainers: u32,
}

impl Default for SurvivorOptions {
    fn default() -> Self {
        Self {
            cycles: 3,
            retainers: 5,
        }
    }
}

/// Follows objects over snapshots, one per work cycle.
///
/// An object is the same as in the snapshot before as told for [`super::diff`]. Between
/// two snapshots only what is needed to know the objects again is kept: 11 bytes each.
#[derive(Clone, Debug, Default)]
pub struct SurvivorTracker {
    last: HeapGraph,
    /// Cycle of birth of each object of the last snapshot, [`NONE`] for dead ones.
    births: Vec<u32>,
    /// Live bytes of each cycle.
    bytes: Vec<u64>,
    /// The same by name of the type.
    by_type: HashMap<String, Vec<u64>>,
}

/// Objects of one type below one root that have outlived cycles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurvivorGroup {
    /// Their type, in the last snapshot.
    pub heap_type: HeapTypeId,
    /// What stands above them at the top of the dominator tree, in words; the type's own name
    /// for objects that several roots keep.
    pub root: String,
    /// How many survivors.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Live objects of the group by cycle of birth, the young ones included. Those of the
    /// first cycle may be older.
    pub births: Vec<u64>,
    /// Objects of this type are alive from every cycle, and their bytes never fell: they
    /// pile up. Without this a group is old, not leaking.
    pub accumulates: bool,
    /// Most modules (packages of package variables and of the functions that goroutines
    /// were started with) from which one survivor can be reached.
    pub retainers: u32,
    /// Those modules, sorted, of all survivors of the group.
    pub modules: Vec<String>,
    /// Survivors that no other survivor leads to and that lead to some: leak roots.
    pub leak_roots: u64,
    /// Bytes that the leak roots retain.
    pub leak_root_bytes: u64,
    /// A survivor to show the path of: the leak root that retains most, where there is one.
    pub example: NodeId,
    /// Share of the live bytes that all objects of the type had in each cycle, 0 to 1. For
    /// what leaks it does not fall.
    pub shares: Vec<Share>,
}

/// A share of live bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Bytes of the type.
    pub bytes: u64,
    /// All live bytes.
    pub of: u64,
}

/// What has outlived cycles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SurvivorReport {
    /// How many cycles were seen.
    pub cycles: u32,
    /// Live bytes in each.
    pub live_bytes: Vec<u64>,
    /// The groups: those that pile up first, then those with enough retainers, then by bytes
    /// that their leak roots retain.
    pub groups: Vec<SurvivorGroup>,
}

impl SurvivorTracker {
    /// Takes the snapshot at the end of the next cycle.
    pub fn add(&mut self, heap: Heap<'_>) {
        let (graph, cycle) = (heap.graph, self.bytes.len() as u32);
        let mut births: Vec<u32> = (0..graph.object_count() as u32)
            .map(|n| {
                if heap.dominators.is_reachable(NodeId(n)) {
                    cycle
                } else {
                    NONE
                }
            })
            .collect();
        for (old, new) in super::diff::same_objects(&self.last, graph) {
            let (was, is) = (self.births[old.index()], &mut births[new.index()]);
            if was != NONE && *is != NONE {
                *is = was;
            }
        }
        for group in super::by_type(heap) {
            let name = graph
                .strings
                .get(graph.heap_types[group.heap_type.index()].name);
            let bytes = self.by_type.entry(name.to_owned()).or_default();
            bytes.resize(cycle as usize + 1, 0);
            bytes[cycle as usize] += group.bytes;
        }
        self.bytes.push(heap.dominators.reachable_bytes());
        self.last = identity_of(graph);
        self.births = births;
    }

    /// What has outlived cycles up to the snapshot that was added last, which is `heap`.
    #[must_use]
    pub fn report(&self, heap: Heap<'_>, options: SurvivorOptions) -> SurvivorReport {
        let (graph, tree) = (heap.graph, heap.dominators);
        let last = (self.bytes.len() as u32).saturating_sub(1);
        let birth = |n: NodeId| self.births.get(n.index()).copied().filter(|&b| b != NONE);
        let survives = |n: NodeId| birth(n).is_some_and(|b| last - b >= options.cycles);
        let modules = Modules::of(graph);
        let reached = modules.reach(graph);
        let mut below_survivor = vec![0u64; graph.object_count().div_ceil(64)];
        let mut leads_to_survivor = below_survivor.clone();
        let survivors = || {
            (0..graph.object_count() as u32)
                .map(NodeId)
                .filter(|&n| survives(n))
        };
        for node in survivors() {
            for &target in graph.targets(node) {
                if target != node && survives(target) {
                    below_survivor[target.index() / 64] |= 1 << (target.index() % 64);
                    leads_to_survivor[node.index() / 64] |= 1 << (node.index() % 64);
                }
            }
        }
        let bit = |bits: &[u64], n: NodeId| bits[n.index() / 64] >> (n.index() % 64) & 1 == 1;

        let mut groups: HashMap<(TopKey, HeapTypeId), (SurvivorGroup, u64)> = HashMap::new();
        let mut tops: HashMap<TopKey, NodeId> = HashMap::new();
        // Groups of one root, by type: a root's nodes come one after the other.
        let mut here: HashMap<HeapTypeId, (SurvivorGroup, u64, usize)> = HashMap::new();
        for top in tree.top() {
            here.clear();
            for &node in tree.subtree(top) {
                let (Some(&heap_type), Some(born)) = (graph.types.get(node.index()), birth(node))
                else {
                    continue;
                };
                let (group, mask, covered) = here
                    .entry(heap_type)
                    .or_insert_with(|| (SurvivorGroup::empty(heap_type, last), 0, 0));
                group.births[born as usize] += 1;
                if !survives(node) {
                    continue;
                }
                group.objects += 1;
                group.bytes += graph.size(node);
                *mask |= reached[node.index()];
                group.retainers = group.retainers.max(reached[node.index()].count_ones());
                let is_leak_root = bit(&leads_to_survivor, node) && !bit(&below_survivor, node);
                if is_leak_root {
                    group.leak_roots += 1;
                    let at = tree.position(node).unwrap_or(0);
                    if at >= *covered {
                        group.leak_root_bytes += tree.retained(node);
                        *covered = at + tree.retained_nodes(node) as usize;
                    }
                }
                let better = |n: NodeId| (!bit(&below_survivor, n), tree.retained(n));
                if group.objects == 1 || better(node) > better(group.example) {
                    group.example = node;
                }
            }
            let key = top_key(graph, top);
            tops.entry(key).or_insert(top);
            for (heap_type, (group, mask, _)) in here.drain() {
                let (all, masks) = groups
                    .entry((key, heap_type))
                    .or_insert_with(|| (SurvivorGroup::empty(heap_type, last), 0));
                *masks |= mask;
                let better = tree.retained(group.example) > tree.retained(all.example);
                if group.objects > 0 && (all.objects == 0 || better) {
                    all.example = group.example;
                }
                all.objects += group.objects;
                all.bytes += group.bytes;
                all.leak_roots += group.leak_roots;
                all.leak_root_bytes += group.leak_root_bytes;
                all.retainers = all.retainers.max(group.retainers);
                for (sum, n) in all.births.iter_mut().zip(group.births) {
                    *sum += n;
                }
            }
        }
        let mut groups: Vec<SurvivorGroup> = (groups.into_iter())
            .filter(|(_, (group, _))| group.objects > 0)
            .map(|((top, heap_type), (mut group, mask))| {
                let name = graph.strings.get(graph.heap_types[heap_type.index()].name);
                let mut bytes = self.by_type.get(name).cloned().unwrap_or_default();
                bytes.resize(self.bytes.len(), 0);
                let shares = bytes
                    .iter()
                    .zip(&self.bytes)
                    .map(|(&bytes, &of)| Share { bytes, of });
                group.shares = shares.collect();
                group.root = root_words(graph, tops[&top]);
                group.modules = modules.names(mask);
                group.accumulates = last > 0
                    && group.births[1..].iter().all(|&n| n > 0)
                    && bytes.is_sorted()
                    && bytes.first() < bytes.last();
                group
            })
            .collect();
        groups.sort_by(|a, b| {
            let rank = |g: &SurvivorGroup| {
                let enough = g.retainers >= options.retainers;
                (
                    !g.accumulates,
                    !enough,
                    std::cmp::Reverse((g.leak_root_bytes, g.bytes)),
                )
            };
            (rank(a), &a.root, a.heap_type).cmp(&(rank(b), &b.root, b.heap_type))
        });
        SurvivorReport {
            cycles: self.bytes.len() as u32,
            live_bytes: self.bytes.clone(),
            groups,
        }
    }
}

impl SurvivorGroup {
    fn empty(heap_type: HeapTypeId, last: u32) -> Self {
        Self {
            heap_type,
            root: String::new(),
            objects: 0,
            bytes: 0,
            births: vec![0; last as usize + 1],
            accumulates: false,
            retainers: 0,
            modules: Vec::new(),
            leak_roots: 0,
            leak_root_bytes: 0,
            example: NodeId(0),
            shares: Vec::new(),
        }
    }
}

/// What is needed of a snapshot to know its objects again.
fn identity_of(graph: &HeapGraph) -> HeapGraph {
    HeapGraph {
        strings: graph.strings.clone(),
        pid: graph.pid,
        process_start: graph.process_start,
        collections: graph.collections,
        addresses: graph.addresses.clone(),
        words: graph.words.clone(),
        types: graph.types.clone(),
        heap_types: (graph.heap_types.iter())
            .map(|t| HeapType { fields: 0, ..*t })
            .collect(),
        ..HeapGraph::default()
    }
}

/// The package of a function or variable: `github.com/a/b` of `github.com/a/b.(*T).run`.
#[must_use]
pub fn module_of(name: &str) -> &str {
    let end = name.find(['[', '(']).unwrap_or(name.len());
    let start = name[..end].rfind('/').map_or(0, |i| i + 1);
    match name[start..].find('.') {
        Some(dot) => &name[..start + dot],
        None => name,
    }
}

/// Nodes at the top of the dominator tree that are told as one: roots of one kind and name,
/// objects of one type.
type TopKey = (Option<RootKind>, u32);

fn top_key(graph: &HeapGraph, top: NodeId) -> TopKey {
    match graph.root(top) {
        Some(root) => (Some(root.kind), root.name),
        None => (None, graph.types[top.index()].0),
    }
}

/// The modules that roots belong to.
struct Modules {
    names: Vec<String>,
    /// For each root the bit of its module; 0 for the runtime's own.
    bits: Vec<u64>,
}

impl Modules {
    fn of(graph: &HeapGraph) -> Self {
        let system = system_roots(graph);
        let mut index: HashMap<&str, usize> = HashMap::new();
        let mut all = Self {
            names: Vec::new(),
            bits: Vec::with_capacity(graph.roots.len()),
        };
        for (r, root) in graph.roots.iter().enumerate() {
            let bit = match root.parent {
                // A frame belongs to the goroutine, whatever function it is of.
                Some(p) if root.kind == RootKind::Frame => all.bits[p as usize],
                _ if system[r] || is_of_the_runtime(graph, r as u32) => 0,
                _ => {
                    let name = module_of(graph.strings.get(root.name));
                    let number = *index.entry(name).or_insert_with(|| {
                        all.names.push(name.to_owned());
                        all.names.len() - 1
                    });
                    // Beyond 64 modules the last bit stands for several.
                    1 << number.min(63)
                }
            };
            all.bits.push(bit);
        }
        all
    }

    /// For each node the modules that lead to it.
    fn reach(&self, graph: &HeapGraph) -> Vec<u64> {
        let links = Links::of(graph);
        let mut reached = vec![0u64; graph.node_count()];
        let mut pending: Vec<NodeId> = Vec::new();
        // Module by module: what comes later mostly finds all bits set at once.
        for (r, &bit) in self.bits.iter().enumerate().filter(|b| *b.1 != 0) {
            pending.push(graph.root_node(r as u32));
            reached[pending[0].index()] |= bit;
            while let Some(node) = pending.pop() {
                let bits = reached[node.index()];
                for &target in links.below(node).iter().chain(links.edges(node)) {
                    let seen = &mut reached[target.index()];
                    if *seen | bits != *seen {
                        *seen |= bits;
                        pending.push(target);
                    }
                }
            }
        }
        reached
    }

    fn names(&self, mask: u64) -> Vec<String> {
        let mine = self.names.iter().enumerate();
        let mine = mine.filter(|(i, _)| mask >> (*i).min(63) & 1 == 1 && *i < 64);
        let mut names: Vec<String> = mine.map(|(_, n)| n.clone()).collect();
        names.sort();
        names
    }
}

#[cfg(test)]
mod tests {
    use memtrace_model::HeapKind;

    use super::super::Dominators;
    use super::super::sample::Sample;
    use super::*;

    #[test]
    fn the_module_of_a_name_is_its_package() {
        for (name, module) in [
            ("main.main", "main"),
            ("github.com/a/b.c/d.(*T).run", "github.com/a/b.c/d"),
            ("net/http.(*conn).serve", "net/http"),
            ("a/b.F[go.shape.c/d.T]", "a/b"),
            ("noname", "noname"),
        ] {
            assert_eq!(module_of(name), module, "{name}");
        }
    }

    /// At each cycle one more job, kept with its data by a list and by six modules; a table
    /// that was there from the beginning; something new for each cycle.
    fn cycle(n: u32) -> HeapGraph {
        let mut s = Sample::default();
        let table = s.object("main.Table", HeapKind::Value, 100);
        s.global("main.table", table);
        let registry = s.value("main.Registry");
        let jobs: Vec<u32> = (0..=n)
            .map(|_| {
                let job = s.object("main.Job", HeapKind::Value, 4);
                let data = s.object("[]uint8", HeapKind::Array, 50);
                s.edge(job, data);
                job
            })
            .collect();
        let fresh = s.object("main.Fresh", HeapKind::Value, 7 + n);
        s.global("main.fresh", fresh);
        s.global("main.registry", registry);
        for module in ["a", "b", "c", "d", "e/f"] {
            let root = s.root(RootKind::Global, &format!("{module}.jobs"), None);
            for &job in &jobs {
                s.root_edge(root, job);
            }
        }
        let (_, frame) = s.goroutine("worker.run", &[]);
        for &job in &jobs {
            s.root_edge(frame, job);
        }
        s.graph().collections = n;
        s.done()
    }

    #[test]
    fn what_outlives_cycles_is_told_by_who_keeps_it() {
        let mut tracker = SurvivorTracker::default();
        let mut report = SurvivorReport::default();
        let mut graph = HeapGraph::default();
        for n in 0..6 {
            graph = cycle(n);
            let dominators = Dominators::of(&graph);
            let heap = Heap {
                graph: &graph,
                dominators: &dominators,
            };
            tracker.add(heap);
            report = tracker.report(heap, SurvivorOptions::default());
            if n < 3 {
                assert!(report.groups.is_empty());
            }
        }
        let told: Vec<_> = (report.groups.iter())
            .map(|g| {
                let name = graph
                    .strings
                    .get(graph.heap_types[g.heap_type.index()].name);
                (name, g.objects, g.accumulates, g.retainers)
            })
            .collect();
        // Born in the cycles 0, 1 and 2 of 0 to 5.
        assert_eq!(told[0], ("main.Job", 3, true, 6));
        let job = &report.groups[0];
        assert_eq!(job.births, [1; 6]);
        assert_eq!((job.leak_roots, job.leak_root_bytes), (3, 3 * (32 + 400)));
        assert_eq!(job.modules, ["a", "b", "c", "d", "e/f", "worker"]);
        assert!(told.contains(&("main.Table", 1, false, 1)), "{told:?}");
        assert!(told.iter().all(|t| t.0 != "main.Fresh"), "{told:?}");
    }
}
