use memtrace_model::{Finding, Frame, Pattern, SampleKind};

use super::{map_bloat, slice_growth};
use crate::graph::{BUILTIN, shown};
use crate::units;

/// Findings whose stacks are ways of a heap's own objects ([`Holdings`](crate::graph::Holdings)):
/// turns the stack, which nobody called, into the type of what piles up and what keeps it, and
/// names the pattern by what is on the way.
pub fn from_ways(findings: &mut [Finding]) {
    let of_heap = findings.iter_mut().filter(|f| f.source == SampleKind::Heap);
    for finding in of_heap {
        let way = std::mem::take(&mut finding.stack);
        let Some(piled) = way.first() else { continue };
        let average = finding
            .live_bytes
            .checked_div(finding.live_objects)
            .unwrap_or(0);
        let is_one_array = slice_growth::is_one_array(finding.live_objects, finding.live_bytes);
        let (pattern, advice, owner) = cause(&way, holder(&way, is_one_array));
        let first = format!(
            "{} objects of {} on average are kept by {owner}, counted in copies of the heap; \
             the heap profile is off, so who allocated them is not known",
            finding.live_objects,
            units::bytes(average as f64)
        );
        // The detectors of call stacks spoke first.
        match finding.evidence.first_mut() {
            Some(evidence) => *evidence = first,
            None => finding.evidence.push(first),
        }
        (finding.pattern, finding.advice) = (pattern, advice);
        finding.type_name = Some(shown(&piled.function).to_owned());
        finding.retained_by = way
            .iter()
            .rev()
            .map(|f| shown(&f.function).to_owned())
            .collect();
        if let Some(culprit) = &mut finding.culprit {
            culprit.file.clear();
            if let Some(name) = culprit.function.strip_prefix(BUILTIN) {
                culprit.function = name.to_owned();
            }
        }
    }
}

/// The pattern and the advice for what piles up in the container that is at `holder` of a way.
pub(crate) fn of_container(way: &[Frame], holder: usize) -> (Pattern, String) {
    let (pattern, advice, _) = cause(way, Some(holder));
    (pattern, advice)
}

/// What a way says where the things that pile up lie in what is at `holder`: the pattern, what
/// to do, and who owns it.
fn cause(way: &[Frame], holder: Option<usize>) -> (Pattern, String, &str) {
    // The owner is a variable, a type or a goroutine that the service declares, above what
    // the things lie in.
    let above = holder.map_or(1, |at| at + 1).min(way.len() - 1);
    let is_own = |f: &&Frame| super::is_own_code(&f.function);
    let owner = way[above..].iter().find(is_own).or(way.last());
    let owner = owner.map_or("?", |f| shown(&f.function));
    let root = way.last().map_or("", |f| f.file.as_str());
    let (has_closure, is_pooled) = (
        // What the callbacks lie in is above them; what a callback has captured, below.
        way[..holder.unwrap_or(way.len())]
            .iter()
            .any(|f| f.file == "closure"),
        way.iter().any(|f| f.function.starts_with("sync.poolLocal")),
    );
    let concurrent =
        (way.iter()).any(|f| f.function == "sync.Map" || f.function.contains("sync.HashTrieMap["));
    let (pattern, advice) = if matches!(root, "finalizer" | "cleanup") {
        (
            Pattern::FinalizerBacklog,
            format!(
                "{owner} waits for its finalizer: release it by an explicit Close when its work is done."
            ),
        )
    } else if is_pooled {
        (
            Pattern::PoolMisuse,
            "Reset what goes back to the pool: clear its maps and slices, or drop what has grown beyond a bound."
                .to_owned(),
        )
    } else if has_closure {
        (
            Pattern::ListenerRetention,
            format!(
                "A callback keeps what it captured alive by {owner}: unregister it when its owner is done."
            ),
        )
    } else if concurrent {
        (Pattern::MapBloat, map_bloat::advice("sync.Map", owner))
    } else {
        match holder.map(|at| way[at].file.as_str()) {
            Some("map") => (Pattern::MapBloat, map_bloat::advice("map", owner)),
            Some("array") => (Pattern::SliceGrowth, slice_growth::advice(owner)),
            _ => (
                Pattern::Growth,
                format!("{owner} keeps it: release it there when the work it belongs to ends."),
            ),
        }
    };
    (pattern, advice, owner)
}

/// What the things that pile up lie in: a map or an array. Things are what the service
/// declares, with all that belongs to one of them.
fn holder(way: &[Frame], is_one_array: bool) -> Option<usize> {
    let holds = |f: &Frame| matches!(f.file.as_str(), "map" | "array");
    let leaf = way.first()?;
    if leaf.file == "array" && is_one_array || leaf.file == "map" {
        return Some(0);
    }
    let thing = way
        .iter()
        .position(|f| super::is_own_code(&f.function) && f.file == "type");
    let above = |i: usize| (i..way.len()).find(|&i| holds(&way[i]));
    thing.and_then(above).or_else(|| above(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leaks::tests::any_finding;

    fn check(way: &[(&str, &str)], pattern: Pattern, type_name: &str) {
        let mut finding = any_finding();
        finding.stack = way
            .iter()
            .map(|(name, what)| Frame {
                function: (*name).to_owned(),
                file: (*what).to_owned(),
                line: 0,
            })
            .collect();
        let mut all = [finding];
        from_ways(&mut all);
        let [finding] = all;
        assert_eq!(finding.pattern, pattern, "{finding:#?}");
        assert_eq!(finding.type_name.as_deref(), Some(type_name));
        if way.contains(&("main.cache", "variable")) && pattern == Pattern::MapBloat {
            assert!(!finding.advice.contains("main.Item"), "{}", finding.advice);
        }
        assert!(finding.stack.is_empty() && finding.retained_by.len() == way.len());
    }

    #[test]
    fn patterns_by_what_is_on_the_way() {
        let cache = ("main.cache", "variable");
        let map = ("builtin.map[string]*main.Item", "map");
        check(
            &[("main.Item", "type"), map, cache],
            Pattern::MapBloat,
            "main.Item",
        );
        let array = ("builtin.[]main.Item", "array");
        check(&[array, cache], Pattern::SliceGrowth, "[]main.Item");
        let session = ("main.Session", "type");
        check(
            &[("builtin.string", "type"), array, session, map, cache],
            Pattern::MapBloat,
            "string",
        );
        check(
            &[("builtin.string", "type"), map, cache],
            Pattern::MapBloat,
            "string",
        );
        check(
            &[("main.Item", "type"), cache],
            Pattern::Growth,
            "main.Item",
        );
        check(
            &[
                ("main.Request", "type"),
                ("main.on.func1", "closure"),
                array,
                cache,
            ],
            Pattern::ListenerRetention,
            "main.Request",
        );
        // The callback has captured the map; the map grows.
        let closure = ("main.serve.func1", "closure");
        check(
            &[("main.Item", "type"), map, closure, cache],
            Pattern::MapBloat,
            "main.Item",
        );
        check(
            &[("main.Buffer", "type"), ("main.newBuffer", "finalizer")],
            Pattern::FinalizerBacklog,
            "main.Buffer",
        );
    }
}
