use memtrace_model::{Pattern, SampleKind};

use super::{Cause, Site, symbols};

/// A slice that keeps being appended to: a growing stack reallocates a slice.
pub(super) fn detect(site: &Site<'_>) -> Option<Cause> {
    if site.kind != SampleKind::Heap {
        return None;
    }
    let stack = site.container(grows_slice, |_| false)?;
    let owner = symbols::culprit(stack).map_or("?", |f| f.function.as_str());
    Some(Cause {
        pattern: Pattern::SliceGrowth,
        evidence: vec![format!(
            "a slice appended to by {owner} keeps being reallocated to a larger array"
        )],
        advice: format!(
            "Bound the slice in {owner}: keep a ring of fixed length or cut the old part off with a copy \
             (a re-slice keeps the whole array alive), and remove entries when their owner is done."
        ),
    })
}

fn grows_slice(function: &str) -> bool {
    matches!(
        function,
        "runtime.growslice" | "runtime.growsliceNoAlias" | "bytes.growSlice"
    ) || function.starts_with("slices.Grow")
        || function.starts_with("slices.Insert")
}
