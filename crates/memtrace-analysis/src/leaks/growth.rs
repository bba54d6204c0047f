use memtrace_model::{Pattern, SampleKind};

use super::{Cause, Site, symbols};
use crate::units;

/// The general case: a stack whose live memory grows.
pub(super) fn detect(site: &Site<'_>) -> Option<Cause> {
    if site.kind != SampleKind::Heap {
        return None;
    }
    let at = symbols::culprit(site.main_stack()).map_or("this stack", |f| f.function.as_str());
    let size = site.live_bytes.checked_div(site.live_objects).unwrap_or(0);
    Some(Cause {
        pattern: Pattern::Growth,
        evidence: vec![format!(
            "{} objects of {} on average allocated by {at} are live",
            site.live_objects,
            units::bytes(size as f64)
        )],
        advice: format!(
            "Find who still refers to what {at} allocates: a registered callback or closure, a global, a cache \
             without a bound. Release it when the work it belongs to ends."
        ),
        stack: None,
    })
}
