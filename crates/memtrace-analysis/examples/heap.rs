//! Time and memory of what is computed of a large heap that is made up.
//!
//! `heap [MILLIONS] [tree|near|far]`: how many objects; whether nearly all have one owner, or
//! most pointers lead to objects allocated at about the same time, or anywhere.

use std::time::Instant;

use memtrace_analysis::graph::{
    Dominators, Heap, SuspectOptions, by_type, goroutine_leaks, suspects,
};
use memtrace_model::snapshot;
use memtrace_model::{EdgeSlot, HeapGraph, HeapType, HeapTypeId, NodeId, Root};

fn main() {
    let mut args = std::env::args().skip(1);
    let millions: u32 = args.next().and_then(|a| a.parse().ok()).unwrap_or(10);
    let shape = args.next().unwrap_or_else(|| "tree".to_owned());
    let start = Instant::now();
    let graph = made_up(millions * 1_000_000, &shape);
    let before = peak();
    println!(
        "{} objects, {} edges, made in {:.1} s; {before} MB",
        graph.object_count(),
        graph.edges.len(),
        start.elapsed().as_secs_f64()
    );
    let start = Instant::now();
    let tree = Dominators::of(&graph);
    let spent = start.elapsed().as_secs_f64();
    let bytes = (peak() - before) as f64 * 1e6 / graph.object_count() as f64;
    println!(
        "dominators: {spent:.2} s, {:.1} M objects/s; {} of {} MB reachable; peak {} MB, {bytes:.0} bytes/object beside the graph",
        graph.object_count() as f64 / spent / 1e6,
        tree.reachable_bytes() / 1_000_000,
        graph.words.iter().map(|w| u64::from(w) * 8).sum::<u64>() / 1_000_000,
        peak()
    );
    let heap = Heap {
        graph: &graph,
        dominators: &tree,
    };
    timed("types", || by_type(heap).len());
    timed("goroutines", || goroutine_leaks(&graph).groups.len());
    timed("suspects", || {
        suspects(heap, None, SuspectOptions::default())
            .accumulations
            .len()
    });
    drop(tree);
    let mut file = Vec::new();
    timed("write", || {
        snapshot::write(&graph, &mut file, &mut |_| {}).is_ok()
    });
    println!(
        "file: {:.1} bytes/object",
        file.len() as f64 / graph.object_count() as f64
    );
    timed("read", || {
        snapshot::read(&mut &file[..], u64::MAX).is_ok_and(|g| g == graph)
    });
}

fn timed<T: std::fmt::Debug>(what: &str, run: impl FnOnce() -> T) {
    let start = Instant::now();
    let result = run();
    println!(
        "{what}: {:.2} s ({result:?})",
        start.elapsed().as_secs_f64()
    );
}

/// A tree with four objects below each and some other edges; or half of the objects lead
/// nowhere and the others have four edges, one of them to the next.
fn made_up(objects: u32, shape: &str) -> HeapGraph {
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |below: u32| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (((random >> 32) * u64::from(below)) >> 32) as u32
    };
    let mut graph = HeapGraph {
        heap_types: vec![HeapType::default()],
        edge_starts: vec![0],
        ..HeapGraph::default()
    };
    let mut address = 0xc000_0000_0000u64;
    for n in 0..objects {
        let words = 2 + next(6);
        graph.addresses.push(address);
        address += u64::from(words) * 8;
        graph.words.push(words);
        graph.types.push(HeapTypeId(0));
        graph.survived.push(true);
        if shape == "tree" {
            let below = (4 * u64::from(n) + 1..4 * u64::from(n) + 5).map(|c| c as u32);
            graph.edges.extend(
                below
                    .filter(|&c| n < objects / 4 && c < objects)
                    .map(NodeId),
            );
            if next(20) == 0 {
                graph.edges.push(NodeId(next(objects)));
            }
        } else if n % 2 == 0 {
            graph.edges.push(NodeId((n + 1) % objects));
            for _ in 0..3 {
                let to = if shape == "near" && next(100) < 90 {
                    let around = next(2000).min(n + 1000);
                    (n + 1000 - around).min(objects - 1)
                } else {
                    next(objects)
                };
                graph.edges.push(NodeId(to));
            }
        }
        graph.edge_starts.push(graph.edges.len() as u32);
    }
    for r in 0..1000 {
        graph.roots.push(Root::default());
        let to = if shape == "tree" { r } else { next(objects) };
        graph.edges.push(NodeId(to));
        graph.edge_starts.push(graph.edges.len() as u32);
    }
    graph.edge_slots = (graph.edges.iter()).map(|_| EdgeSlot::default()).collect();
    graph
}

/// Most memory that this process had resident, in MB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024 / 1_000_000
}
