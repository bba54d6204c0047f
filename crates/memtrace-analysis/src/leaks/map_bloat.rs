use memtrace_model::{Frame, Pattern, SampleKind};

use super::{Cause, Site, symbols};
use crate::series::StackGrowth;

/// A map that keeps getting keys: the growing stack assigns to a map, or what
/// grows is allocated on behalf of a function that does.
pub(super) fn detect(site: &Site<'_>) -> Option<Cause> {
    if site.kind != SampleKind::Heap {
        return None;
    }
    let stack = site.container(assigns_to_map, large_table)?;
    let owner = symbols::culprit(stack).map_or("?", |f| f.function.as_str());
    let concurrent = symbols::callee_frames(stack).any(is_concurrent_map);
    let kind = if concurrent { "sync.Map" } else { "map" };
    Some(Cause {
        pattern: Pattern::MapBloat,
        evidence: vec![format!(
            "a {kind} filled by {owner} keeps growing; Go maps never shrink"
        )],
        advice: advice(kind, owner),
        stack: None,
    })
}

/// What grows is allocated for a function that puts it into a `sync.Map`: beside large
/// values the nodes of the map itself are too few to be sampled. Ordinary maps are
/// assigned to nearly everywhere, and say nothing.
pub(super) fn detect_kept(site: &Site<'_>) -> Option<Cause> {
    if site.kind != SampleKind::Heap {
        return None;
    }
    let stack = site.main_stack();
    let own = |f: &&Frame| !symbols::is_standard(&f.function);
    let culprit = &symbols::culprit(stack)?.function;
    // The culprit makes it or, one call further out, keeps what the culprit made.
    let owner = stack
        .iter()
        .filter(own)
        .take(2)
        .map(|f| f.function.as_str())
        .find(|f| site.calls(f, is_concurrent_map))?;
    Some(Cause {
        pattern: Pattern::MapBloat,
        evidence: vec![format!(
            "{owner} puts what {culprit} allocates into a sync.Map, and it stays alive"
        )],
        advice: advice("sync.Map", owner),
        stack: None,
    })
}

pub(super) fn advice(kind: &str, owner: &str) -> String {
    format!(
        "Bound the {kind} in {owner}: normalise the keys so that equal inputs share one (in G-code, say, \
         G01X10.5 and G01X10.500), delete entries when their owner is done, or cap it with an LRU."
    )
}

/// Average size of the tables of one large map, bytes at least: they hold up to
/// 1,024 entries. Many small maps are objects like any other.
const LARGE_TABLE: u64 = 4096;

fn large_table(stack: &[Frame], growth: &StackGrowth) -> bool {
    // A concurrent map is made of small nodes.
    symbols::callee_frames(stack).any(is_concurrent_map)
        || growth.live_bytes >= LARGE_TABLE * growth.live_objects.max(1)
}

pub(super) fn assigns_to_map(function: &str) -> bool {
    function.starts_with("runtime.mapassign")
        || function.starts_with("internal/runtime/maps.")
        || matches!(
            function,
            "runtime.hashGrow" | "runtime.growWork" | "runtime.makeBucketArray"
        )
        || is_concurrent_map(function)
}

pub(super) fn is_concurrent_map(function: &str) -> bool {
    function.starts_with("internal/sync.(*HashTrieMap[")
        || matches!(
            function,
            "sync.(*Map).Store"
                | "sync.(*Map).LoadOrStore"
                | "sync.(*Map).Swap"
                | "sync.(*Map).dirtyLocked"
        )
}
