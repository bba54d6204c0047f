//! `memtrace report`: what a heap is made of and what keeps it.

mod page;
mod text;

use std::collections::{BTreeMap, HashMap};

use memtrace_analysis::graph::{
    Accumulation, GoroutineGroup, GoroutineVerdict, Heap, Member, RetentionTree, StackGroup,
    SuspectOptions, Suspects, TopGroup, TreeLimits, TypeGroup, by_stack, by_type, shortest_paths,
    suspects, top_groups,
};
use memtrace_model::{HeapFrameId, NodeId, RootKind};
use serde_json::{Value, json};

use crate::args::ReportArgs;
use crate::convert::write;
use crate::failure::Failure;
use crate::heap::{self, Sums};
use crate::out::Out;

/// What keeps less than one part in this many of the heap needs no path.
const WORTH_A_PATH: u64 = 100;

/// Everything that is shown, each list with the heaviest first.
struct Report<'a> {
    heap: Heap<'a>,
    sums: Sums,
    types: Vec<TypeGroup>,
    roots: Vec<TopGroup>,
    stacks: Vec<StackGroup>,
    suspects: Suspects,
    /// A way, in words, to some of what several roots keep.
    ways_to_shared: HashMap<NodeId, Vec<String>>,
}

pub(crate) fn run(args: &ReportArgs) -> Result<(), Failure> {
    let loaded = heap::load(&args.from, &args.pause)?;
    let report = Report::of(loaded.heap());
    if let Some(path) = &args.html {
        write(path, page::page(&report).as_bytes())?;
    }
    let mut out = Out::open();
    let rows = if args.rows == 0 {
        usize::MAX
    } else {
        args.rows
    };
    if args.json {
        out.json(&report.json(rows))?;
    } else {
        out.lines(&text::lines(&report, rows))?;
    }
    Ok(out.done()?)
}

impl<'a> Report<'a> {
    fn of(heap: Heap<'a>) -> Self {
        let mut types = by_type(heap);
        types.sort_by_key(|t| std::cmp::Reverse(t.bytes));
        let roots = top_groups(heap);
        Self {
            heap,
            sums: Sums::of(heap.graph, &types),
            types,
            ways_to_shared: ways_to_shared(heap, &roots),
            roots,
            stacks: by_stack(heap),
            suspects: suspects(heap, None, SuspectOptions::default()),
        }
    }

    fn tree(&self) -> RetentionTree {
        let least = self.heap.dominators.reachable_bytes() / 20_000;
        RetentionTree::of(
            self.heap,
            TreeLimits {
                depth: 14,
                width: 24,
                min_bytes: least.max(1),
            },
        )
    }

    fn json(&self, rows: usize) -> Value {
        let graph = self.heap.graph;
        let stacks: Vec<Value> = (self.stacks.iter().take(rows))
            .map(|s| {
                json!({
                    "stack": heap::stack(graph, s.stack), "sampled_objects": s.sampled_objects,
                    "sampled_bytes": s.sampled_bytes, "sampled_retained": s.sampled_retained,
                    "objects": s.objects, "bytes": s.bytes,
                })
            })
            .collect();
        let mut document = json!({
            "schema": "memtrace.heap/1",
            "totals": self.sums.json(graph),
            "types": self.types_json(rows), "roots": self.roots_json(rows),
            "piles": self.piles().take(rows).map(|p| self.pile_json(p)).collect::<Vec<_>>(),
            "stacks": stacks, "maps": self.maps_json(rows), "pools": self.pools_json(rows),
            "finalizers": self.finalizers_json(rows),
            "leaked_by_goroutines": self.suspects.goroutines.leaked_bytes,
            "goroutines": self.goroutines_json(rows),
        });
        heap::merge(&mut document, heap::origin_json(graph));
        document
    }

    fn types_json(&self, rows: usize) -> Vec<Value> {
        let row = |t: &TypeGroup| {
            let known = &self.heap.graph.heap_types[t.heap_type.index()];
            json!({
                "name": self.type_name(t.heap_type.index()), "kind": heap::kind(known.kind),
                "inferred": known.inferred, "objects": t.objects, "bytes": t.bytes,
                "retained": t.retained, "dead_objects": t.dead_objects, "dead_bytes": t.dead_bytes,
            })
        };
        self.types.iter().take(rows).map(row).collect()
    }

    fn roots_json(&self, rows: usize) -> Vec<Value> {
        (self.roots.iter().take(rows))
            .map(|r| {
                json!({
                    "name": r.name, "nodes": r.nodes, "retained": r.retained,
                    "shared": r.kind.is_none(), "path": self.ways_to_shared.get(&r.largest),
                })
            })
            .collect()
    }

    /// Places where memory piles up.
    fn piles(&self) -> impl Iterator<Item = &Accumulation> {
        self.suspects.accumulations.iter().map(|g| &g.now)
    }

    fn pile_json(&self, pile: &Accumulation) -> Value {
        let graph = self.heap.graph;
        json!({
            "type": graph.name(pile.at), "retained": pile.retained, "here": pile.here,
            "address": self.address(pile), "path": pile.path.words(graph),
            "members": self.members_json(&pile.members),
        })
    }

    fn members_json(&self, members: &[Member]) -> Vec<Value> {
        (members.iter())
            .map(|m| {
                json!({
                    "type": self.type_name(m.heap_type.index()),
                    "objects": m.objects, "retained": m.retained,
                })
            })
            .collect()
    }

    fn maps_json(&self, rows: usize) -> Vec<Value> {
        let graph = self.heap.graph;
        (self.suspects.maps.iter().take(rows))
            .map(|m| {
                json!({
                    "type": graph.name(m.map.node), "used": m.map.used, "capacity": m.map.capacity,
                    "retained": m.retained, "wasted": m.wasted,
                    "path": m.path.as_ref().map(|p| p.words(graph)),
                })
            })
            .collect()
    }

    fn pools_json(&self, rows: usize) -> Vec<Value> {
        (self.suspects.pools.iter().take(rows))
            .map(|p| {
                json!({
                    "path": p.path.words(self.heap.graph), "retained": p.retained,
                    "members": self.members_json(&p.members),
                })
            })
            .collect()
    }

    fn finalizers_json(&self, rows: usize) -> Vec<Value> {
        (self.suspects.finalizers.iter().take(rows))
            .map(|f| {
                json!({
                    "name": f.name, "cleanup": f.kind == RootKind::Cleanup, "count": f.count,
                    "retained": f.retained,
                })
            })
            .collect()
    }

    fn goroutines_json(&self, rows: usize) -> Vec<Value> {
        let graph = self.heap.graph;
        (self.suspects.goroutines.groups.iter().take(rows))
            .map(|g| {
                json!({
                    "verdict": verdict(g.verdict), "entry": self.entry(g),
                    "started_at": self.started_at(g),
                    "state": graph.strings.get(g.state), "count": g.goroutines.len(),
                    "retained": g.retained, "stack_bytes": g.stack_bytes,
                    "waiting_ms": g.waiting_ms, "stack": heap::stack(graph, g.stack),
                })
            })
            .collect()
    }

    /// The function that goroutines of a group were started with.
    fn entry(&self, group: &GoroutineGroup) -> &str {
        let graph = self.heap.graph;
        let first = group.goroutines.first();
        first
            .and_then(|&g| graph.goroutines.get(g as usize))
            .and_then(|g| graph.roots.get(g.root as usize))
            .map_or("", |r| graph.strings.get(r.name))
    }

    /// The `go` statement that started most goroutines of a group.
    fn started_at(&self, group: &GoroutineGroup) -> Option<String> {
        let graph = self.heap.graph;
        let mut counts: BTreeMap<HeapFrameId, usize> = BTreeMap::new();
        let started = group.goroutines.iter();
        for frame in started.filter_map(|&g| graph.goroutines.get(g as usize)?.created_by) {
            *counts.entry(frame).or_default() += 1;
        }
        let (frame, _) = counts.into_iter().max_by_key(|&(_, count)| count)?;
        heap::frame(graph, frame)
    }

    fn type_name(&self, heap_type: usize) -> &str {
        let graph = self.heap.graph;
        graph
            .heap_types
            .get(heap_type)
            .map_or("", |t| graph.strings.get(t.name))
    }

    fn address(&self, pile: &Accumulation) -> Option<String> {
        let address = self.heap.graph.addresses.get(pile.at.index())?;
        Some(format!("{address:#x}"))
    }
}

/// A group that no single root keeps says little without a way to it.
fn ways_to_shared(heap: Heap<'_>, roots: &[TopGroup]) -> HashMap<NodeId, Vec<String>> {
    let least = heap.dominators.reachable_bytes() / WORTH_A_PATH;
    let shared: Vec<NodeId> = (roots.iter())
        .filter(|r| r.kind.is_none() && r.retained > least)
        .map(|r| r.largest)
        .collect();
    let paths = shortest_paths(heap.graph, &shared).into_iter();
    (shared.iter().copied().zip(paths))
        .filter_map(|(node, path)| Some((node, path?.words(heap.graph))))
        .collect()
}

/// The word for a verdict on goroutines.
fn verdict(verdict: GoroutineVerdict) -> &'static str {
    match verdict {
        GoroutineVerdict::Live => "live",
        GoroutineVerdict::OnlyGlobals => "only-globals",
        GoroutineVerdict::Leaked => "leaked",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::sample;

    fn check(test: impl FnOnce(&Report<'_>)) {
        let loaded = sample::loaded();
        test(&Report::of(loaded.heap()));
    }

    #[test]
    fn words() {
        check(|r| insta::assert_snapshot!(text::lines(r, 15).join("\n")));
    }

    #[test]
    fn few_rows() {
        check(|r| {
            let lines = text::lines(r, 1).join("\n");
            assert!(
                lines.contains("types, 1 of 9") && !lines.contains("#2"),
                "{lines}"
            );
        });
    }

    #[test]
    fn document() {
        check(|r| insta::assert_snapshot!(format!("{:#}", r.json(3))));
    }

    // Names come from the program that is looked at: none of them may become part of the page.
    #[test]
    fn page_holds_names_as_data_only() {
        check(|r| {
            let page = page::page(r);
            assert!(!page.contains("<img"), "a name became an element");
            assert_eq!(page.matches("</script>").count(), 2);
            assert_eq!(page.matches("<script").count(), 2);
            for elsewhere in ["http://", "https://", "src=", "href=", "@import", "url("] {
                let own = page
                    .replace(sample::HOSTILE, "")
                    .replace("\\u003cimg src=x>", "");
                let own = own.replace("&lt;img src=x", "");
                assert!(!own.contains(elsewhere), "{elsewhere}");
            }
        });
    }

    #[test]
    fn data_of_the_page_is_json() {
        check(|r| {
            let page = page::page(r);
            let data = page.split_once("id=data>").expect("data").1;
            let data = data.split_once("</script>").expect("its end").0;
            let data: Value = serde_json::from_str(data).expect("JSON");
            let tree = data["tree"].as_array().expect("a tree");
            assert_eq!(tree[0]["retained"], r.heap.dominators.reachable_bytes());
            assert!(tree.iter().any(|n| n["name"] == sample::HOSTILE));
            // Each child stands behind its parent: what is opened ends.
            for (i, node) in tree.iter().enumerate() {
                let first = node["children"][0].as_u64().expect("a number");
                let end = node["children"][1].as_u64().expect("a number");
                assert!(first == end || first > i as u64);
                assert!(end <= tree.len() as u64);
            }
        });
    }
}
