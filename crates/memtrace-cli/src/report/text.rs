//! The report for a terminal.

use memtrace_model::HeapKind;

use super::Report;
use crate::heap;
use crate::units::{bytes, count, span};

/// Types told of what lies at one place.
const MEMBERS: usize = 3;

pub(super) fn lines(report: &Report<'_>, rows: usize) -> Vec<String> {
    let graph = report.heap.graph;
    let mut lines = vec![heap::origin(graph)];
    lines.extend(heap::sums_in_words(graph, &report.sums));
    types(report, rows, &mut lines);
    roots(report, rows, &mut lines);
    piles(report, rows, &mut lines);
    sparse_maps(report, rows, &mut lines);
    goroutines(report, rows, &mut lines);
    stacks(report, rows, &mut lines);
    lines
}

fn percent(report: &Report<'_>, n: u64) -> String {
    let whole = report.heap.dominators.reachable_bytes().max(1);
    format!("{:.1} %", 100.0 * n as f64 / whole as f64)
}

fn head(lines: &mut Vec<String>, title: &str, shown: usize, all: usize) {
    lines.push(String::new());
    lines.push(format!(
        "{title}, {} of {}",
        shown.min(all),
        count(all as u64)
    ));
}

fn types(report: &Report<'_>, rows: usize, lines: &mut Vec<String>) {
    head(lines, "types", rows, report.types.len());
    lines.push(format!(
        "{:>12} {:>10} {:>7} {:>10}  type",
        "objects", "bytes", "", "retained"
    ));
    for t in report.types.iter().take(rows) {
        let kind = report.heap.graph.heap_types.get(t.heap_type.index());
        let name = report.type_name(t.heap_type.index());
        let note = match kind {
            // On the heap by itself, behind an interface or a pointer; not the array.
            Some(k) if k.kind == HeapKind::Value && name.starts_with("[]") => " (slice header)",
            Some(k) if k.kind == HeapKind::Value && name == "string" => " (string header)",
            Some(k) if k.inferred => " (inferred)",
            _ => "",
        };
        lines.push(format!(
            "{:>12} {:>10} {:>7} {:>10}  {name}{note}",
            count(t.objects),
            bytes(t.bytes as f64),
            percent(report, t.bytes),
            bytes(t.retained as f64),
        ));
    }
}

fn roots(report: &Report<'_>, rows: usize, lines: &mut Vec<String>) {
    let told: Vec<_> = report.roots.iter().filter(|r| r.retained > 0).collect();
    head(lines, "what keeps it", rows, told.len());
    for r in told.iter().take(rows) {
        let times = match r.nodes {
            1 => String::new(),
            n => format!("  ×{}", count(n)),
        };
        let shared = match r.kind {
            Some(_) => "",
            None => "  (kept by several roots)",
        };
        lines.push(format!(
            "{:>12} {:>7}  {}{times}{shared}",
            bytes(r.retained as f64),
            percent(report, r.retained),
            r.name
        ));
        if let Some(path) = report.ways_to_shared.get(&r.largest) {
            lines.push(format!("{:>21} for one: {}", "", path.join(" → ")));
        }
    }
}

fn piles(report: &Report<'_>, rows: usize, lines: &mut Vec<String>) {
    let graph = report.heap.graph;
    head(lines, "where it piles up", rows, report.piles.len());
    for (i, pile) in report.piles.iter().take(rows).enumerate() {
        lines.push(format!(
            "#{} {} {}  {}",
            i + 1,
            bytes(pile.here as f64),
            percent(report, pile.here),
            graph.name(pile.at)
        ));
        let members: Vec<String> = (pile.members.iter().take(MEMBERS))
            .map(|m| {
                format!(
                    "{} × {} ({})",
                    count(m.objects),
                    report.type_name(m.heap_type.index()),
                    bytes(m.retained as f64)
                )
            })
            .collect();
        if !members.is_empty() {
            lines.push(format!("  holds  {}", members.join(", ")));
        }
        lines.push(format!("  path   {}", pile.path.words(graph).join(" → ")));
    }
}

fn sparse_maps(report: &Report<'_>, rows: usize, lines: &mut Vec<String>) {
    if report.sparse_maps.is_empty() {
        return;
    }
    head(
        lines,
        "maps with little in them",
        rows,
        report.sparse_maps.len(),
    );
    for map in report.sparse_maps.iter().take(rows) {
        lines.push(format!(
            "{:>12}  {} of {} entries used  {}",
            bytes(map.bytes as f64),
            count(map.used),
            count(map.capacity),
            map.path.join(" → ")
        ));
    }
}

fn goroutines(report: &Report<'_>, rows: usize, lines: &mut Vec<String>) {
    if report.goroutines.is_empty() {
        return;
    }
    head(lines, "goroutines", rows, report.goroutines.len());
    for g in report.goroutines.iter().take(rows) {
        // Below a second it says nothing.
        let waiting = g.waiting_ms.filter(|&ms| ms >= 1000);
        let waiting = waiting.map_or_else(String::new, |ms| {
            format!(", the longest for {}", span(ms as f64 / 1000.0))
        });
        lines.push(format!(
            "{:>12}  {:>8} × {} ({}{waiting})",
            bytes(g.retained as f64),
            count(g.count),
            g.entry,
            g.state
        ));
    }
}

fn stacks(report: &Report<'_>, rows: usize, lines: &mut Vec<String>) {
    if report.stacks.is_empty() {
        return;
    }
    head(
        lines,
        "who allocated it (by the heap profile's samples)",
        rows,
        report.stacks.len(),
    );
    for s in report.stacks.iter().take(rows) {
        lines.push(format!(
            "{:>12}  about {}; what was sampled retains {}  {}",
            bytes(s.bytes),
            heap::objects(s.objects as u64),
            bytes(s.sampled_retained as f64),
            heap::functions(report.heap.graph, s.stack)
        ));
    }
}
