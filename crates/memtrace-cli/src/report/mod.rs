//! `memtrace report`: what a heap is made of and what keeps it.

mod page;
mod suspects;
mod text;

use std::collections::HashMap;
use std::io::{self, Write};

use memtrace_analysis::graph::{
    Accumulation, Heap, RetentionTree, StackGroup, TopGroup, TreeLimits, TypeGroup, accumulations,
    by_stack, by_type, shortest_paths, top_groups,
};
use memtrace_model::NodeId;
use serde_json::{Value, json};

use crate::args::ReportArgs;
use crate::convert::write;
use crate::failure::Failure;
use crate::heap::{self, Sums};

use suspects::SparseMap;

/// A node that keeps less than one part in this many of the heap is no place where it
/// piles up.
const SMALLEST_PILE: u64 = 100;

/// Everything that is shown, each list with the heaviest first.
struct Report<'a> {
    heap: Heap<'a>,
    sums: Sums,
    types: Vec<TypeGroup>,
    roots: Vec<TopGroup>,
    piles: Vec<Accumulation>,
    stacks: Vec<StackGroup>,
    sparse_maps: Vec<SparseMap>,
    goroutines: Vec<GoroutineGroup>,
    /// A way, in words, to some of what several roots keep.
    ways_to_shared: HashMap<NodeId, Vec<String>>,
}

/// Goroutines that were started with one function and are in one state.
#[derive(Clone, Debug, PartialEq)]
struct GoroutineGroup {
    entry: String,
    state: String,
    count: u64,
    /// Bytes that each alone retains, summed.
    retained: u64,
    stack_bytes: u64,
    /// The longest wait, in milliseconds.
    waiting_ms: Option<u64>,
}

pub(crate) fn run(args: &ReportArgs) -> Result<(), Failure> {
    let loaded = heap::load(&args.from)?;
    let report = Report::of(loaded.heap());
    if let Some(path) = &args.html {
        write(path, page::page(&report).as_bytes())?;
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    let rows = if args.rows == 0 {
        usize::MAX
    } else {
        args.rows
    };
    if args.json {
        writeln!(out, "{}", report.json(rows))?;
    } else {
        heap::print(&mut out, &text::lines(&report, rows))?;
    }
    Ok(out.flush()?)
}

impl<'a> Report<'a> {
    fn of(heap: Heap<'a>) -> Self {
        let whole = heap.dominators.reachable_bytes();
        let mut types = by_type(heap);
        types.sort_by_key(|t| std::cmp::Reverse(t.bytes));
        let roots = top_groups(heap);
        Self {
            heap,
            sums: Sums::of(heap),
            types,
            ways_to_shared: ways_to_shared(heap, &roots),
            roots,
            piles: accumulations(heap, (whole / SMALLEST_PILE).max(1)),
            stacks: by_stack(heap),
            sparse_maps: suspects::sparse_maps(heap),
            goroutines: goroutines(heap),
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
        let piles: Vec<Value> = (self.piles.iter().take(rows))
            .map(|p| {
                json!({
                    "type": graph.name(p.at), "retained": p.retained, "here": p.here,
                    "address": self.address(p),
                    "path": p.path.words(graph),
                    "members": p.members.iter().map(|m| json!({
                        "type": self.type_name(m.heap_type.index()),
                        "objects": m.objects, "retained": m.retained,
                    })).collect::<Vec<_>>(),
                })
            })
            .collect();
        let stacks: Vec<Value> = (self.stacks.iter().take(rows))
            .map(|s| {
                json!({
                    "stack": heap::stack(graph, s.stack), "sampled_objects": s.sampled_objects,
                    "sampled_bytes": s.sampled_bytes, "sampled_retained": s.sampled_retained,
                    "objects": s.objects, "bytes": s.bytes,
                })
            })
            .collect();
        let maps: Vec<Value> = (self.sparse_maps.iter().take(rows))
            .map(|m| {
                json!({
                    "type": graph.name(m.node), "used": m.used, "capacity": m.capacity,
                    "bytes": m.bytes, "path": m.path,
                })
            })
            .collect();
        let mut document = json!({
            "schema": "memtrace.heap/1",
            "totals": self.sums.json(graph),
            "types": self.types_json(rows), "roots": self.roots_json(rows),
            "piles": piles, "stacks": stacks, "sparse_maps": maps,
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

    fn goroutines_json(&self, rows: usize) -> Vec<Value> {
        (self.goroutines.iter().take(rows))
            .map(|g| {
                json!({
                    "entry": g.entry, "state": g.state, "count": g.count, "retained": g.retained,
                    "stack_bytes": g.stack_bytes, "waiting_ms": g.waiting_ms,
                })
            })
            .collect()
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
    let least = heap.dominators.reachable_bytes() / SMALLEST_PILE;
    let shared: Vec<NodeId> = (roots.iter())
        .filter(|r| r.kind.is_none() && r.retained > least)
        .map(|r| r.largest)
        .collect();
    let paths = shortest_paths(heap.graph, &shared).into_iter();
    (shared.iter().copied().zip(paths))
        .filter_map(|(node, path)| Some((node, path?.words(heap.graph))))
        .collect()
}

fn goroutines(heap: Heap<'_>) -> Vec<GoroutineGroup> {
    let graph = heap.graph;
    let mut groups: HashMap<(u32, u32), GoroutineGroup> = HashMap::new();
    for goroutine in graph.goroutines.iter().filter(|g| !g.is_system) {
        let entry = graph
            .roots
            .get(goroutine.root as usize)
            .map_or(0, |r| r.name);
        let group = groups
            .entry((entry, goroutine.state))
            .or_insert_with(|| GoroutineGroup {
                entry: graph.strings.get(entry).to_owned(),
                state: graph.strings.get(goroutine.state).to_owned(),
                count: 0,
                retained: 0,
                stack_bytes: 0,
                waiting_ms: None,
            });
        group.count += 1;
        group.retained += heap.dominators.retained(graph.root_node(goroutine.root));
        group.stack_bytes += goroutine.stack_bytes;
        group.waiting_ms = group.waiting_ms.max(goroutine.waiting_ms);
    }
    let mut groups: Vec<GoroutineGroup> = groups.into_values().collect();
    groups.sort_by(|a, b| {
        (b.retained, b.count, &a.entry, &a.state).cmp(&(a.retained, a.count, &b.entry, &b.state))
    });
    groups
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
