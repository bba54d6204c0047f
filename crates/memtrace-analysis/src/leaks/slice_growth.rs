use memtrace_model::{Frame, Pattern, SampleKind};

use super::{Cause, Site, symbols};
use crate::series::StackGrowth;

/// A slice that keeps being appended to: a growing stack reallocates a slice.
pub(super) fn detect(site: &Site<'_>) -> Option<Cause> {
    if site.kind != SampleKind::Heap {
        return None;
    }
    let stack = site.container(grows_slice, few_and_large)?;
    let owner = symbols::culprit(stack).map_or("?", |f| f.function.as_str());
    Some(Cause {
        pattern: Pattern::SliceGrowth,
        evidence: vec![format!(
            "a slice appended to by {owner} keeps being reallocated to a larger array"
        )],
        advice: advice(owner),
        stack: None,
    })
}

pub(super) fn advice(owner: &str) -> String {
    format!(
        "Bound the slice in {owner}: keep a ring of fixed length or cut the old part off with a copy \
         (a re-slice keeps the whole array alive), and remove entries when their owner is done."
    )
}

/// A slice that grows is one array, ever larger, and few that wait to be collected.
/// Many arrays are buffers that something else keeps.
const FEW: u64 = 16;
const LARGE: u64 = 64 << 10;

fn few_and_large(_: &[Frame], growth: &StackGrowth) -> bool {
    is_one_array(growth.live_objects, growth.live_bytes)
}

pub(super) fn is_one_array(live_objects: u64, live_bytes: u64) -> bool {
    live_objects <= FEW && live_bytes >= LARGE * live_objects.max(1)
}

pub(super) fn grows_slice(function: &str) -> bool {
    matches!(
        function,
        "runtime.growslice" | "runtime.growsliceNoAlias" | "bytes.growSlice"
    ) || function.starts_with("slices.Grow")
        || function.starts_with("slices.Insert")
}
