//! What a Go service's stacks call in its runtime. The protocol buffer leaves these
//! frames out; the text form has their addresses, the symbol page their names.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use memtrace_collect::{Process, ScrapeError, Scraper};
use memtrace_formats::pprof;

use crate::{pool, program};

/// Calls whose names are asked for, those of the heaviest stacks; a service has a hundred.
pub const MOST_NAMES: usize = 2000;

/// For the functions and lines that a stack shows, the leaf first, the runtime
/// functions that it leaves out. Two requests; where a service has no symbol page, the
/// file of its `process` has the names.
pub(crate) async fn fetch(
    scraper: &mut Scraper,
    process: Option<&Process>,
) -> Result<HashMap<Vec<(String, i64)>, Vec<Arc<str>>>, ScrapeError> {
    let text = scraper.mem_stats().await?;
    let read = pool::run(move || pprof::runtime_calls(&text.body));
    let mut stacks = read.await.unwrap_or_default();
    // Of stacks that look alike, the one that holds most speaks.
    stacks.sort_by_key(|s| s.live_bytes);
    let addresses = stacks.iter().rev().flat_map(|s| &s.addresses).copied();
    let mut some = BTreeSet::new();
    for address in addresses {
        if some.len() >= MOST_NAMES {
            break;
        }
        some.insert(address);
    }
    let addresses = some;
    let addresses: Vec<u64> = addresses.into_iter().collect();
    let names = match (scraper.symbols(&addresses).await, process) {
        (Ok(names), _) => names,
        (Err(error), None) => return Err(error),
        (Err(error), Some(process)) => {
            let found = program::names(process, addresses.clone()).await;
            let named = addresses.into_iter().zip(found.ok_or(error)?);
            named.filter(|(_, name)| !name.is_empty()).collect()
        }
    };
    // Many stacks call the same.
    let names = names.into_iter().map(|(a, name)| (a, Arc::from(name)));
    let names: HashMap<u64, Arc<str>> = names.collect();
    let named = pool::run(move || {
        let stacks = stacks.into_iter().map(|mut s| {
            let calls = s.addresses.iter().filter_map(|a| names.get(a).cloned());
            // The frames of tags are left out of the profiles that this must fit.
            s.shown
                .retain(|(function, _)| !pprof::tags::is_tag_frame(function));
            (s.shown, calls.collect())
        });
        stacks.collect()
    });
    Ok(named.await.unwrap_or_default())
}
