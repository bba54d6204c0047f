//! Time and memory of the dominators of a large heap that is made up.
//!
//! `dominators [MILLIONS] [near|far]`: objects, and whether most pointers lead to objects
//! allocated at about the same time (as in real heaps) or anywhere.

use std::time::Instant;

use memtrace_analysis::graph::Dominators;
use memtrace_model::{EdgeSlot, HeapGraph, HeapType, HeapTypeId, NodeId, Root};

fn main() {
    let mut args = std::env::args().skip(1);
    let millions: u32 = args.next().and_then(|a| a.parse().ok()).unwrap_or(10);
    let near = args.next().is_none_or(|a| a != "far");
    let start = Instant::now();
    let graph = heap(millions * 1_000_000, near);
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
        graph.words.iter().map(|&w| u64::from(w) * 8).sum::<u64>() / 1_000_000,
        peak()
    );
}

/// Half of the objects lead nowhere; the others have four edges, one of them to the next.
fn heap(objects: u32, near: bool) -> HeapGraph {
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
        if n % 2 == 0 {
            graph.edges.push(NodeId((n + 1) % objects));
            for _ in 0..3 {
                let to = if near && next(100) < 90 {
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
    for _ in 0..1000 {
        graph.roots.push(Root::default());
        graph.edges.push(NodeId(next(objects)));
        graph.edge_starts.push(graph.edges.len() as u32);
    }
    graph.edge_slots = vec![EdgeSlot::default(); graph.edges.len()];
    graph
}

/// Most memory that this process had resident, in MB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024 / 1_000_000
}
