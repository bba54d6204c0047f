//! `memtrace diff` of two snapshots: what came, what went, what stayed.

use memtrace_analysis::graph::{DiffRow, Growth, Heap, HeapDiff, diff};
use memtrace_model::HeapGraph;
use serde_json::{Value, json};

use crate::args::DiffArgs;
use crate::failure::Failure;
use crate::heap;
use crate::out::Out;
use crate::units::{bytes, count};

/// A place that keeps less than one part in this many of the heap is not looked at.
const SMALLEST_PILE: u64 = 100;

pub(crate) fn run(args: &DiffArgs) -> Result<(), Failure> {
    let view = &args.view;
    if args.svg.is_some() || args.html.is_some() {
        return Err(Failure::Usage(
            "--svg and --html draw profiles; of a snapshot use `memtrace report --html`".into(),
        ));
    }
    if view.sample_type.is_some() || view.cum || view.lines {
        return Err(Failure::Usage(
            "--type, --cum and --lines are for profiles, and these are snapshots".into(),
        ));
    }
    let (old, new) = (
        heap::load(&args.old, &args.pause)?,
        heap::load(&args.new, &args.pause)?,
    );
    let whole = new.heap().dominators.reachable_bytes();
    let found = diff(old.heap(), new.heap(), (whole / SMALLEST_PILE).max(1));
    let shown = Shown {
        old: old.heap(),
        new: new.heap(),
        found: &found,
        rows: if view.rows == 0 {
            usize::MAX
        } else {
            view.rows
        },
        min: args.min.unwrap_or(0),
        raw: view.raw,
    };
    let mut out = Out::open();
    if view.json {
        out.json(&shown.json())?;
    } else {
        out.lines(&shown.lines())?;
    }
    Ok(out.done()?)
}

struct Shown<'a> {
    old: Heap<'a>,
    new: Heap<'a>,
    found: &'a HeapDiff,
    rows: usize,
    /// Rows that changed by less are left out.
    min: u64,
    /// Bytes as plain numbers.
    raw: bool,
}

impl Shown<'_> {
    /// Compared by object, rather than by the sums of groups.
    fn same_process(&self) -> bool {
        let id = |g: &HeapGraph| (g.pid, g.process_start);
        id(self.old.graph) == id(self.new.graph)
    }

    fn bytes(&self, n: f64) -> String {
        if self.raw {
            format!("{n:.0}")
        } else {
            bytes(n)
        }
    }

    fn signed(&self, n: i64) -> String {
        let sign = if n > 0 { "+" } else { "" };
        format!("{sign}{}", self.bytes(n as f64))
    }

    /// The rows that changed enough, cut off.
    fn rows<'r>(&self, rows: &'r [DiffRow]) -> Vec<&'r DiffRow> {
        let changed = |r: &&DiffRow| {
            let retained = r.retained_now.abs_diff(r.retained_before);
            let change = r.growth().unsigned_abs().max(retained);
            change > 0 && change >= self.min
        };
        rows.iter().filter(changed).take(self.rows).collect()
    }

    fn grown(&self) -> impl Iterator<Item = &Growth> {
        let by = |g: &&Growth| g.now.retained.saturating_sub(g.before) >= self.min;
        self.found.grown.iter().filter(by).take(self.rows)
    }

    fn lines(&self) -> Vec<String> {
        let total = &self.found.total;
        let mut lines = vec![
            format!("from {}", heap::origin(self.old.graph)),
            format!("to   {}", heap::origin(self.new.graph)),
            format!(
                "live {} → {} ({}): {} born ({}), {} died ({}), {} kept",
                self.bytes(total.retained_before as f64),
                self.bytes(total.retained_now as f64),
                self.signed(total.retained_now as i64 - total.retained_before as i64),
                heap::objects(total.born.objects),
                self.bytes(total.born.bytes as f64),
                heap::objects(total.died.objects),
                self.bytes(total.died.bytes as f64),
                heap::objects(total.kept.objects),
            ),
        ];
        if !self.same_process() {
            lines.push(
                "two different processes: they have no object in common, compare the sums".into(),
            );
        }
        for (title, rows) in [
            ("type", &self.found.types),
            ("root", &self.found.roots),
            (
                "allocation stack (sampled objects, not scaled)",
                &self.found.stacks,
            ),
        ] {
            self.table(title, rows, &mut lines);
        }
        for (i, g) in self.grown().enumerate() {
            if i == 0 {
                lines.push(String::new());
                lines.push("places that grew".to_owned());
            }
            lines.push(format!(
                "#{} {} → {}  {}",
                i + 1,
                self.bytes(g.before as f64),
                self.bytes(g.now.retained as f64),
                g.now.path.words(self.new.graph).join(" → ")
            ));
        }
        lines
    }

    fn table(&self, title: &str, all: &[DiffRow], lines: &mut Vec<String>) {
        let rows = self.rows(all);
        if rows.is_empty() {
            return;
        }
        lines.push(String::new());
        lines.push(format!(
            "{:>12} {:>10} {:>10} {:>10} {:>12}  {title}",
            "bytes", "born", "died", "kept", "retained"
        ));
        for r in rows {
            lines.push(format!(
                "{:>12} {:>10} {:>10} {:>10} {:>12}  {}",
                self.signed(r.growth()),
                count(r.born.objects),
                count(r.died.objects),
                count(r.kept.objects),
                self.signed(r.retained_now as i64 - r.retained_before as i64),
                r.name.replace('\n', " ← ")
            ));
        }
    }

    fn json(&self) -> Value {
        let rows = |all: &[DiffRow]| self.rows(all).into_iter().map(row_json).collect::<Vec<_>>();
        json!({
            "schema": "memtrace.heap-diff/1",
            "old": heap::origin_json(self.old.graph), "new": heap::origin_json(self.new.graph),
            "by_object": self.same_process(), "total": row_json(&self.found.total),
            "types": rows(&self.found.types), "roots": rows(&self.found.roots),
            "stacks": rows(&self.found.stacks),
            "grown": self.grown().map(|g| json!({
                "before": g.before, "retained": g.now.retained,
                "path": g.now.path.words(self.new.graph),
            })).collect::<Vec<_>>(),
        })
    }
}

fn row_json(r: &DiffRow) -> Value {
    let part =
        |c: &memtrace_analysis::graph::Count| json!({"objects": c.objects, "bytes": c.bytes});
    json!({
        "name": r.name, "growth": r.growth(), "born": part(&r.born), "died": part(&r.died),
        "kept": part(&r.kept), "retained_before": r.retained_before, "retained_now": r.retained_now,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::{Loaded, sample};

    fn check(old: HeapGraph, new: HeapGraph, min: u64, test: impl FnOnce(&Shown<'_>)) {
        let (old, new) = (Loaded::of(old), Loaded::of(new));
        let found = diff(old.heap(), new.heap(), 500);
        test(&Shown {
            old: old.heap(),
            new: new.heap(),
            found: &found,
            rows: 5,
            min,
            raw: false,
        });
    }

    #[test]
    fn words() {
        check(sample::graph(0), sample::graph(20), 0, |shown| {
            insta::assert_snapshot!(shown.lines().join("\n"));
            assert_eq!(shown.json()["by_object"], true);
        });
    }

    #[test]
    fn small_changes_are_left_out() {
        check(sample::graph(0), sample::graph(20), 1 << 20, |shown| {
            assert_eq!(shown.lines().len(), 3);
        });
    }

    #[test]
    fn another_process() {
        let mut other = sample::graph(20);
        other.pid = 1;
        check(sample::graph(0), other, 0, |shown| {
            assert!(
                shown
                    .lines()
                    .iter()
                    .any(|l| l.contains("no object in common"))
            );
        });
    }
}
