//! `memtrace survivors`: what lived through cycles of work.

use memtrace_analysis::graph::{
    SurvivorGroup, SurvivorOptions, SurvivorReport, SurvivorTracker, shortest_paths,
};
use memtrace_model::HeapGraph;
use serde_json::{Value, json};

use crate::args::SurvivorsArgs;
use crate::failure::Failure;
use crate::heap::{self, Loaded};
use crate::out::Out;
use crate::units::{bytes, count};

pub(crate) fn run(args: &SurvivorsArgs) -> Result<(), Failure> {
    let mut tracker = SurvivorTracker::default();
    let mut last: Option<Loaded> = None;
    // One graph at a time: the tracker keeps what it needs of those before.
    for path in &args.files {
        let graph = heap::snapshot_file(path)?;
        if let Some(last) = last.take() {
            follows(&last.graph, &graph)
                .map_err(|what| Failure::Usage(format!("{}: {what}", path.display())))?;
        }
        let loaded = Loaded::of(graph);
        tracker.add(loaded.heap());
        last = Some(loaded);
    }
    let Some(last) = last else {
        return Err(Failure::Usage("give snapshots".into()));
    };
    let options = SurvivorOptions {
        cycles: args.cycles,
        retainers: args.retainers,
    };
    let report = tracker.report(last.heap(), options);
    let rows = if args.rows == 0 {
        usize::MAX
    } else {
        args.rows
    };
    let shown = Shown::of(&last.graph, &report, options, rows);
    let mut out = Out::open();
    if args.json {
        out.json(&shown.json())?;
    } else {
        out.lines(&shown.lines())?;
    }
    Ok(out.done()?)
}

/// Whether one snapshot is a later one of the same process; where not, what is wrong.
pub(crate) fn follows(old: &HeapGraph, new: &HeapGraph) -> Result<(), String> {
    if (old.pid, old.process_start) != (new.pid, new.process_start) {
        return Err(format!(
            "it is of another process (pid {}) than the snapshot before it (pid {})",
            new.pid, old.pid
        ));
    }
    if new.taken <= old.taken {
        return Err(format!(
            "it was taken at {}, not after the one before it ({}): give the oldest first",
            new.taken, old.taken
        ));
    }
    Ok(())
}

/// The report with the ways to its examples.
struct Shown<'a> {
    graph: &'a HeapGraph,
    report: &'a SurvivorReport,
    options: SurvivorOptions,
    groups: &'a [SurvivorGroup],
    ways: Vec<Vec<String>>,
}

impl<'a> Shown<'a> {
    fn of(
        graph: &'a HeapGraph,
        report: &'a SurvivorReport,
        options: SurvivorOptions,
        rows: usize,
    ) -> Self {
        let groups = &report.groups[..rows.min(report.groups.len())];
        let examples: Vec<_> = groups.iter().map(|g| g.example).collect();
        let ways = shortest_paths(graph, &examples).into_iter();
        Self {
            graph,
            report,
            options,
            groups,
            ways: ways
                .map(|p| p.map_or_else(Vec::new, |p| p.words(graph)))
                .collect(),
        }
    }

    fn type_name(&self, group: &SurvivorGroup) -> &'a str {
        let kind = self.graph.heap_types.get(group.heap_type.index());
        kind.map_or("", |t| self.graph.strings.get(t.name))
    }

    fn lines(&self) -> Vec<String> {
        let live: Vec<String> = (self.report.live_bytes.iter())
            .map(|&b| bytes(b as f64))
            .collect();
        let mut lines = vec![
            heap::origin(self.graph),
            format!(
                "{} snapshots, live bytes: {}",
                self.report.cycles,
                live.join(" → ")
            ),
        ];
        // Nothing can have: that is no good news.
        if u64::from(self.report.cycles) <= u64::from(self.options.cycles) {
            lines.push(format!(
                "too few to tell: --cycles {} needs {} snapshots or more",
                self.options.cycles,
                u64::from(self.options.cycles) + 1
            ));
            return lines;
        }
        if self.groups.is_empty() {
            lines.push(format!(
                "nothing was made in a cycle, lived through {} more and is still referenced",
                self.options.cycles
            ));
            return lines;
        }
        for (i, (group, way)) in self.groups.iter().zip(&self.ways).enumerate() {
            let verdict = if group.accumulates {
                "piles up: alive from every cycle"
            } else {
                "old, and does not grow"
            };
            lines.push(String::new());
            lines.push(format!(
                "#{} {} × {} ({}) under {}; {verdict}",
                i + 1,
                count(group.objects),
                self.type_name(group),
                bytes(group.bytes as f64),
                group.root
            ));
            let births: Vec<String> = group.births.iter().map(|&n| count(n)).collect();
            lines.push(format!(
                "  born in each cycle and alive  {}",
                births.join(", ")
            ));
            lines.push(format!(
                "  leak roots  {}, which retain {}",
                heap::objects(group.leak_roots),
                bytes(group.leak_root_bytes as f64)
            ));
            lines.push(format!(
                "  kept by {} package{}  {}",
                group.retainers,
                if group.retainers == 1 { "" } else { "s" },
                group.modules.join(", ")
            ));
            if !way.is_empty() {
                lines.push(format!("  path  {}", way.join(" → ")));
            }
        }
        let rest = self.report.groups.len() - self.groups.len();
        if rest > 0 {
            lines.push(format!("and {rest} more groups (-n 0)"));
        }
        lines
    }

    fn json(&self) -> Value {
        let groups: Vec<Value> = (self.groups.iter().zip(&self.ways))
            .map(|(g, way)| {
                json!({
                    "type": self.type_name(g), "root": g.root, "objects": g.objects, "bytes": g.bytes,
                    "births": g.births, "accumulates": g.accumulates, "retainers": g.retainers,
                    "enough_retainers": g.retainers >= self.options.retainers,
                    "modules": g.modules, "leak_roots": g.leak_roots,
                    "leak_root_bytes": g.leak_root_bytes, "path": way,
                    "shares": g.shares.iter().map(|s| json!({"bytes": s.bytes, "of": s.of}))
                        .collect::<Vec<_>>(),
                })
            })
            .collect();
        let mut document = json!({
            "schema": "memtrace.survivors/1", "cycles": self.report.cycles,
            "live_bytes": self.report.live_bytes, "groups": groups,
        });
        heap::merge(&mut document, heap::origin_json(self.graph));
        document
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::sample;

    #[test]
    fn words_and_document() {
        let mut tracker = SurvivorTracker::default();
        let heaps = [0, 8, 16, 24, 32].map(|more| Loaded::of(sample::graph(more)));
        for loaded in &heaps {
            tracker.add(loaded.heap());
        }
        let options = SurvivorOptions {
            cycles: 1,
            retainers: 1,
        };
        let last = &heaps[4];
        let report = tracker.report(last.heap(), options);
        let shown = Shown::of(&last.graph, &report, options, 3);
        insta::assert_snapshot!(shown.lines().join("\n"));
        assert_eq!(shown.json()["cycles"], 5);
    }

    #[test]
    fn order_and_process() {
        let (old, new) = (sample::graph(0), sample::graph(1));
        assert_eq!(follows(&old, &new), Ok(()));
        assert!(follows(&new, &old).is_err_and(|e| e.contains("oldest first")));
        let mut other = new.clone();
        other.process_start += 1;
        assert!(follows(&old, &other).is_err_and(|e| e.contains("another process")));
    }
}
