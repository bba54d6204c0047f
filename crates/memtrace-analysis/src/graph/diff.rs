use std::cmp::Ordering;
use std::collections::HashMap;

use memtrace_model::{HeapGraph, HeapStackId, NodeId};

use super::groups::{Accumulation, accumulations, by_type};
use super::paths::root_words;
use super::{Heap, by_stack};

/// So many objects of so many bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// What became of one group of objects between two snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiffRow {
    /// The group: name of a type; frames of a stack, a line each, the leaf first; a root.
    pub name: String,
    /// Live now and not before.
    pub born: Count,
    /// Live before and not now.
    pub died: Count,
    /// Live in both.
    pub kept: Count,
    /// Bytes that the group retained before.
    pub retained_before: u64,
    /// Bytes that it retains now.
    pub retained_now: u64,
}

impl DiffRow {
    /// By how many bytes the group's own objects have grown; negative when they shrank.
    #[must_use]
    pub fn growth(&self) -> i64 {
        self.born.bytes as i64 - self.died.bytes as i64
    }
}

/// A place where memory piles up, then and now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// The place in the newer snapshot.
    pub now: Accumulation,
    /// Bytes that it retained in the older one; 0 where it was not there.
    pub before: u64,
}

/// Two snapshots of one heap compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeapDiff {
    /// All objects.
    pub total: DiffRow,
    /// By type. All rows come most growth first.
    pub types: Vec<DiffRow>,
    /// By allocation stack: sampled objects only, not scaled up.
    pub stacks: Vec<DiffRow>,
    /// By what stands at the top of the dominator tree: a root, or the type of an object that
    /// several roots keep.
    pub roots: Vec<DiffRow>,
    /// Places that retain more than before, most growth first.
    pub grown: Vec<Growth>,
}

/// Compares two snapshots, by object. `min_bytes` is as in [`accumulations`].
///
/// Go's heap does not move: an object of the newer snapshot is the one that was at the same
/// address before if it has the same size and type and was there at the last collection.
/// With one collection between the snapshots, or none, that is exact; with more, an address may have
/// been given to an equal object in between. Types told by a rule only are not compared.
/// Snapshots of different processes have no object in common.
#[must_use]
pub fn diff(old: Heap<'_>, new: Heap<'_>, min_bytes: u64) -> HeapDiff {
    let pairs = same_objects(old.graph, new.graph);
    let mut before = vec![false; old.graph.object_count()];
    let mut after = vec![false; new.graph.object_count()];
    for &(o, n) in &pairs {
        if old.dominators.is_reachable(o) && new.dominators.is_reachable(n) {
            before[o.index()] = true;
            after[n.index()] = true;
        }
    }
    let mut result = HeapDiff::default();
    let total = &mut result.total;
    (total.name, total.retained_before) = ("heap".to_owned(), old.dominators.reachable_bytes());
    total.retained_now = new.dominators.reachable_bytes();

    let mut types = Rows::default();
    for (heap, kept, is_new) in [(old, &before, false), (new, &after, true)] {
        let graph = heap.graph;
        let name = |t: usize| graph.strings.get(graph.heap_types[t].name);
        let rows: Vec<usize> = (0..graph.heap_types.len())
            .map(|t| types.row(name(t)))
            .collect();
        for n in live(heap) {
            let (row, bytes) = (rows[graph.types[n.index()].index()], graph.size(n));
            types.rows[row].count(kept[n.index()], is_new, bytes);
            result.total.count(kept[n.index()], is_new, bytes);
        }
        for group in by_type(heap) {
            let row = &mut types.rows[rows[group.heap_type.index()]];
            *row.retained(is_new) += group.retained;
        }
    }
    result.types = types.done();

    let mut stacks = Rows::default();
    for (heap, kept, is_new) in [(old, &before, false), (new, &after, true)] {
        let graph = heap.graph;
        let mut rows: HashMap<HeapStackId, usize> = HashMap::new();
        for a in graph
            .allocated
            .iter()
            .filter(|a| heap.dominators.is_reachable(a.node))
        {
            let row = rows
                .entry(a.stack)
                .or_insert_with(|| stacks.row(&stack_words(graph, a.stack)));
            stacks.rows[*row].count(kept[a.node.index()], is_new, graph.size(a.node));
        }
        for group in by_stack(heap) {
            if let Some(&row) = rows.get(&group.stack) {
                *stacks.rows[row].retained(is_new) += group.sampled_retained;
            }
        }
    }
    result.stacks = stacks.done();

    let mut roots = Rows::default();
    for (heap, kept, is_new) in [(old, &before, false), (new, &after, true)] {
        for top in heap.dominators.top() {
            let row = roots.row(&root_words(heap.graph, top));
            *roots.rows[row].retained(is_new) += heap.dominators.retained(top);
            for &n in heap.dominators.subtree(top) {
                if let Some(&kept) = kept.get(n.index()) {
                    roots.rows[row].count(kept, is_new, heap.graph.size(n));
                }
            }
        }
    }
    result.roots = roots.done();
    result.grown = grown(old, new, &pairs, min_bytes);
    result
}

/// The frames of a stack, a line each, the leaf first: `main.alloc alloc.go:12`.
pub(super) fn stack_words(graph: &HeapGraph, stack: HeapStackId) -> String {
    let frames = graph.stacks.get(stack.0).iter().map(|f| {
        let frame = graph.frames[f.index()];
        let (function, file) = (
            graph.strings.get(frame.function),
            graph.strings.get(frame.file),
        );
        format!("{function} {file}:{}", frame.line)
    });
    frames.collect::<Vec<_>>().join("\n")
}

fn live(heap: Heap<'_>) -> impl Iterator<Item = NodeId> {
    (0..heap.graph.object_count() as u32)
        .map(NodeId)
        .filter(move |&n| heap.dominators.is_reachable(n))
}

impl DiffRow {
    fn count(&mut self, kept: bool, is_new: bool, bytes: u64) {
        match (kept, is_new) {
            (true, true) => self.kept.add(bytes),
            (true, false) => {}
            (false, true) => self.born.add(bytes),
            (false, false) => self.died.add(bytes),
        }
    }

    fn retained(&mut self, is_new: bool) -> &mut u64 {
        if is_new {
            &mut self.retained_now
        } else {
            &mut self.retained_before
        }
    }
}

#[derive(Default)]
struct Rows {
    rows: Vec<DiffRow>,
    index: HashMap<String, usize>,
}

impl Rows {
    fn row(&mut self, name: &str) -> usize {
        if let Some(&row) = self.index.get(name) {
            return row;
        }
        self.rows.push(DiffRow {
            name: name.to_owned(),
            ..DiffRow::default()
        });
        self.index.insert(name.to_owned(), self.rows.len() - 1);
        self.rows.len() - 1
    }

    fn done(self) -> Vec<DiffRow> {
        let mut rows = self.rows;
        rows.retain(|r| r.born.objects + r.died.objects + r.kept.objects > 0);
        rows.sort_by(|a, b| (b.growth(), &a.name).cmp(&(a.growth(), &b.name)));
        rows
    }
}

/// The objects that are the same in both, ascending, whether live or not.
pub(super) fn same_objects(old: &HeapGraph, new: &HeapGraph) -> Vec<(NodeId, NodeId)> {
    if (old.pid, old.process_start) != (new.pid, new.process_start) {
        return Vec::new();
    }
    let collected = old.collections != new.collections;
    let mut names: HashMap<&str, u32> = HashMap::new();
    let (old_names, new_names) = (type_names(old, &mut names), type_names(new, &mut names));
    let mut pairs = Vec::new();
    let (mut o, mut n) = (0, 0);
    while let (Some(a), Some(b)) = (old.addresses.get(o), new.addresses.get(n)) {
        match a.cmp(&b) {
            Ordering::Less => o += 1,
            Ordering::Greater => n += 1,
            Ordering::Equal => {
                let (was, is) = (
                    old_names[old.types[o].index()],
                    new_names[new.types[n].index()],
                );
                let same_type = was.is_none() || is.is_none() || was == is;
                let stayed = !collected || new.survived.at(n);
                if same_type && stayed && old.words.at(o) == new.words.at(n) {
                    pairs.push((NodeId(o as u32), NodeId(n as u32)));
                }
                o += 1;
                n += 1;
            }
        }
    }
    pairs
}

/// A number for the name of each type; `None` where the type is only inferred.
fn type_names<'a>(graph: &'a HeapGraph, names: &mut HashMap<&'a str, u32>) -> Vec<Option<u32>> {
    let number = |t: &memtrace_model::HeapType| {
        let next = names.len() as u32;
        let name = graph.strings.get(t.name);
        (!t.inferred).then(|| *names.entry(name).or_insert(next))
    };
    graph.heap_types.iter().map(number).collect()
}

fn grown(old: Heap<'_>, new: Heap<'_>, pairs: &[(NodeId, NodeId)], min_bytes: u64) -> Vec<Growth> {
    let points = accumulations(new, min_bytes);
    let mut tops: HashMap<String, NodeId> = HashMap::new();
    if !points.is_empty() {
        for top in old.dominators.top() {
            let best = tops.entry(root_words(old.graph, top)).or_insert(top);
            if old.dominators.retained(top) > old.dominators.retained(*best) {
                *best = top;
            }
        }
    }
    let before = |node: NodeId| {
        let at = pairs.binary_search_by_key(&node, |p| p.1).ok()?;
        Some(pairs[at].0).filter(|&o| old.dominators.is_reachable(o))
    };
    let mut grown: Vec<Growth> = (points.into_iter())
        .map(|now| {
            // The same way down the older tree: by the object itself, else by the largest of
            // its type.
            let mut at: Option<NodeId> = None;
            for (depth, &node) in new.dominators.path(now.at).iter().enumerate() {
                let name = new.graph.name(node);
                at = before(node).or_else(|| match depth {
                    0 => tops.get(&root_words(new.graph, node)).copied(),
                    _ => {
                        let children = old.dominators.children(at?);
                        let alike = children.filter(|&c| old.graph.name(c) == name);
                        alike.max_by_key(|&c| old.dominators.retained(c))
                    }
                });
            }
            let before = at.map_or(0, |n| old.dominators.retained(n));
            Growth { now, before }
        })
        .filter(|g| g.now.retained > g.before)
        .collect();
    grown.sort_by_key(|g| (std::cmp::Reverse(g.now.retained - g.before), g.now.at));
    grown
}

#[cfg(test)]
mod tests {
    use memtrace_model::HeapKind;
    use proptest::prelude::*;

    use super::super::Dominators;
    use super::super::sample::{self, Sample};
    use super::*;

    /// A cache whose array moves when it grows; `entries` of them, the first few dropped.
    fn cache(entries: u32, dropped: u32, collections: u32) -> HeapGraph {
        let mut s = Sample::default();
        let cache = s.value("main.Cache");
        s.global("main.cache", cache);
        let all: Vec<u32> = (0..entries)
            .map(|_| s.object("main.Entry", HeapKind::Value, 10))
            .collect();
        let array = s.object("[]*main.Entry", HeapKind::Array, entries);
        s.edge(cache, array);
        for &e in &all[dropped as usize..] {
            s.edge(array, e);
        }
        s.graph().collections = collections;
        s.done()
    }

    #[test]
    fn a_cache_that_grows_is_told_by_object() {
        let (a, b) = (cache(100, 0, 1), cache(300, 20, 2));
        let (da, db) = (Dominators::of(&a), Dominators::of(&b));
        let old = Heap {
            graph: &a,
            dominators: &da,
        };
        let new = Heap {
            graph: &b,
            dominators: &db,
        };
        let d = diff(old, new, 1000);
        let entries = d.types.iter().find(|r| r.name == "main.Entry").unwrap();
        assert_eq!(
            (
                entries.born.objects,
                entries.died.objects,
                entries.kept.objects
            ),
            (200, 20, 80)
        );
        assert_eq!(
            (entries.retained_before, entries.retained_now),
            (8000, 280 * 80)
        );
        assert_eq!(d.types[0].name, "main.Entry");
        assert_eq!(
            (d.roots.len(), d.roots[0].name.as_str()),
            (1, "global main.cache")
        );
        assert_eq!(d.total.growth(), b_bytes(&db) - b_bytes(&da));
        let place = &d.grown[0];
        assert_eq!(b.name(place.now.at), "[]*main.Entry");
        assert_eq!((place.before, place.now.retained), (8800, 280 * 80 + 2400));
    }

    fn b_bytes(d: &Dominators) -> i64 {
        d.reachable_bytes() as i64
    }

    #[test]
    fn an_object_born_since_the_last_collection_is_another() {
        let a = cache(3, 0, 1);
        let mut b = cache(3, 0, 2);
        b.survived = (0..b.object_count()).map(|n| n != 1).collect();
        assert_eq!(same_objects(&a, &b).len(), 4);
        b.collections = 1;
        assert_eq!(same_objects(&a, &b).len(), 5);
        b.pid = 7;
        assert_eq!(same_objects(&a, &b).len(), 0);
    }

    proptest! {
        #[test]
        fn rows_add_up(a in sample::graphs(), b in sample::graphs(), min in 1u64..100) {
            let (da, db) = (Dominators::of(&a), Dominators::of(&b));
            let old = Heap { graph: &a, dominators: &da };
            let new = Heap { graph: &b, dominators: &db };
            let d = diff(old, new, min);
            for rows in [&d.types, &d.roots] {
                let sum: i64 = rows.iter().map(DiffRow::growth).sum();
                prop_assert_eq!(sum, d.total.growth());
                let kept: u64 = rows.iter().map(|r| r.kept.objects).sum();
                prop_assert_eq!(kept, d.total.kept.objects);
            }
            prop_assert_eq!(d.total.growth(), b_bytes(&db) - b_bytes(&da));
            let same = diff(new, new, min);
            prop_assert_eq!((same.total.born.objects, same.total.died.objects), (0, 0));
            prop_assert!(same.grown.is_empty());
        }
    }
}
