//! What a Go service's stacks call in its runtime. The protocol buffer leaves these
//! frames out; the text form has their addresses, the symbol page their names.

use std::collections::{BTreeSet, HashMap};

use memtrace_collect::{ScrapeError, Scraper};
use memtrace_formats::pprof;

/// For the functions and lines that a stack shows, the leaf first, the runtime
/// functions that it leaves out. Two requests.
pub(crate) async fn fetch(
    scraper: &mut Scraper,
) -> Result<HashMap<Vec<(String, i64)>, Vec<String>>, ScrapeError> {
    let text = scraper.mem_stats().await?;
    let mut stacks = pprof::runtime_calls(&text.body);
    // Of stacks that look alike, the one that holds most speaks.
    stacks.sort_by_key(|s| s.live_bytes);
    let addresses: BTreeSet<u64> = stacks.iter().flat_map(|s| &s.addresses).copied().collect();
    let names = scraper
        .symbols(&addresses.into_iter().collect::<Vec<_>>())
        .await?;
    let name = |a: &u64| names.get(a).cloned();
    Ok(stacks
        .iter()
        .map(|s| {
            let calls = s.addresses.iter().filter_map(name).collect();
            // The frames of tags are left out of the profiles that this must fit.
            let mut shown = s.shown.clone();
            shown.retain(|(function, _)| !pprof::tags::is_tag_frame(function));
            (shown, calls)
        })
        .collect())
}
