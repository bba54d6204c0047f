//! `cargo xtask replay STORE`: what a watch would say now about readings that an
//! earlier one stored: a change of the analysis is tried in a second, not in minutes.

use std::path::Path;
use std::time::Duration;

use memtrace_analysis::leaks;
use memtrace_analysis::series::{History, Settings};
use memtrace_model::{EventKind, Time};
use memtrace_store::{Kind, Reader, StoreError, TargetId};

use crate::tools::Outcome;

/// Prints the findings whenever they change.
pub(crate) fn run(store: &Path) -> Outcome {
    let failed = |e: StoreError| format!("{}: {e}", store.display());
    let reader = Reader::open(store).map_err(failed)?;
    for target in reader.targets().map_err(failed)? {
        println!("{}", target.name);
        replay(&reader, target.id, &target.name).map_err(failed)?;
    }
    Ok(())
}

fn replay(reader: &Reader, target: TargetId, name: &str) -> Result<(), StoreError> {
    let all = Time(0)..=Time(i64::MAX);
    let heaps = reader.raw_times(target, Kind::Heap)?;
    let goroutines = reader.raw_times(target, Kind::Goroutine)?;
    let gaps: Vec<f64> = heaps.windows(2).map(|w| w[1].since(w[0])).collect();
    let interval = statkit::trend::median(&gaps).max(1.0);
    let mut history = History::new(Settings::every(Duration::from_secs_f64(interval.round())));
    for event in reader.events(target, all.clone())? {
        if let EventKind::Attach {
            started: Some(started),
        } = event.kind
        {
            history.started(started);
        }
    }
    let mut before = String::new();
    for at in heaps {
        for (kind, due) in [
            (Kind::Heap, true),
            (Kind::Goroutine, goroutines.contains(&at)),
        ] {
            let raw = if due {
                reader.raw(target, kind, at)?
            } else {
                None
            };
            let Some(Ok(parsed)) = raw.map(|raw| memtrace_formats::pprof::parse(&raw)) else {
                continue;
            };
            match kind {
                Kind::Heap => {
                    history.heap(at, &parsed.profile);
                }
                Kind::Goroutine => history.goroutines(at, &parsed.profile),
            }
        }
        let assessment = history.assess();
        let mut now = String::new();
        for f in leaks::findings(&history, &assessment, None, name, at) {
            let culprit = f.culprit.as_ref().map_or("?", |c| &c.function);
            now.push_str(&format!(
                "  {:?} #{} {:?} {culprit}\n",
                f.tier, f.rank, f.pattern
            ));
        }
        if now != before {
            println!("{at}\n{now}");
            for s in assessment.stacks.iter().chain(&assessment.companions) {
                let leaf: Vec<&str> = history
                    .frames(s.key)
                    .iter()
                    .take(5)
                    .map(|f| f.function.as_str())
                    .collect();
                println!(
                    "      {:?} {:.1} MB/min {:.0}/min live {} since {:?} explains {:.2} {}",
                    s.tier,
                    s.rate_bytes_per_min / 1e6,
                    s.rate_objects_per_min,
                    s.live_objects,
                    s.onset.map(|t| t.to_string()),
                    s.explains,
                    leaf.join(" < ")
                );
            }
        }
        before = now;
    }
    Ok(())
}
