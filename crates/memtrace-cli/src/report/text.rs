//! The report for a terminal.

use memtrace_analysis::graph::{GoroutineVerdict, Member};
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
    maps(report, rows, &mut lines);
    pools(report, rows, &mut lines);
    finalizers(report, rows, &mut lines);
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
    let all = report.piles().count();
    if all == 0 {
        return;
    }
    head(lines, "where it piles up", rows, all);
    for (i, pile) in report.piles().take(rows).enumerate() {
        lines.push(format!(
            "#{} {} {}  {}",
            i + 1,
            bytes(pile.here as f64),
            percent(report, pile.here),
            graph.name(pile.at)
        ));
        if !pile.members.is_empty() {
            lines.push(format!("  holds  {}", members(report, &pile.members)));
        }
        lines.push(format!("  path   {}", pile.path.words(graph).join(" → ")));
    }
}

/// `40 × main.Session (7.50 KiB), …`
pub(super) fn members(report: &Report<'_>, members: &[Member]) -> String {
    let words: Vec<String> = (members.iter().take(MEMBERS))
        .map(|m| {
            format!(
                "{} × {} ({})",
                count(m.objects),
                report.type_name(m.heap_type.index()),
                bytes(m.retained as f64)
            )
        })
        .collect();
    words.join(", ")
}

fn maps(report: &Report<'_>, rows: usize, lines: &mut Vec<String>) {
    let maps = &report.suspects.maps;
    if maps.is_empty() {
        return;
    }
    head(
        lines,
        "maps with much empty room: they never shrink",
        rows,
        maps.len(),
    );
    for m in maps.iter().take(rows) {
        let path = m.path.as_ref().map(|p| p.words(report.heap.graph));
        lines.push(format!(
            "{:>12} wasted  {} of {} entries used  {}",
            bytes(m.wasted as f64),
            count(m.map.used),
            count(m.map.capacity),
            path.unwrap_or_default().join(" → ")
        ));
    }
}

fn pools(report: &Report<'_>, rows: usize, lines: &mut Vec<String>) {
    let pools = &report.suspects.pools;
    if pools.is_empty() {
        return;
    }
    head(lines, "what lies in pools", rows, pools.len());
    for pool in pools.iter().take(rows) {
        lines.push(format!(
            "{:>12}  {}  in {}",
            bytes(pool.retained as f64),
            members(report, &pool.members),
            pool.path.words(report.heap.graph).join(" → ")
        ));
    }
}

fn finalizers(report: &Report<'_>, rows: usize, lines: &mut Vec<String>) {
    let finalizers = &report.suspects.finalizers;
    if finalizers.is_empty() {
        return;
    }
    head(lines, "finalizers and cleanups", rows, finalizers.len());
    for f in finalizers.iter().take(rows) {
        lines.push(format!(
            "{:>12}  {:>8} × {}",
            bytes(f.retained as f64),
            count(f.count),
            f.name
        ));
    }
}

fn goroutines(report: &Report<'_>, rows: usize, lines: &mut Vec<String>) {
    let (graph, found) = (report.heap.graph, &report.suspects.goroutines);
    if found.groups.is_empty() {
        return;
    }
    head(lines, "goroutines", rows, found.groups.len());
    for g in found.groups.iter().take(rows) {
        let verdict = match g.verdict {
            GoroutineVerdict::Leaked => "LEAKED",
            // No proof: a variable leads to what could wake it.
            GoroutineVerdict::OnlyGlobals => "blocked",
            GoroutineVerdict::Live => "live",
        };
        // Below a second it says nothing.
        let waiting = g.waiting_ms.filter(|&ms| ms >= 1000);
        let waiting = waiting.map_or_else(String::new, |ms| {
            format!(", the longest for {}", span(ms as f64 / 1000.0))
        });
        lines.push(format!(
            "{verdict:>8} {:>8} × {} ({}{waiting})  {} and {} of stacks",
            count(g.goroutines.len() as u64),
            report.entry(g),
            graph.strings.get(g.state),
            bytes(g.retained as f64),
            bytes(g.stack_bytes as f64),
        ));
        if g.verdict == GoroutineVerdict::Leaked {
            lines.push(format!(
                "{:>17}  nothing can wake it: {}",
                "",
                heap::functions(graph, g.stack)
            ));
            let started = report.started_at(g);
            lines.extend(started.map(|at| format!("{:>17}  started at {at}", "")));
        }
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
