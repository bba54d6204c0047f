//! What two readings differ by, for each stack and size of object.

use std::collections::HashMap;

use memtrace_model::{Profile, StackId, StackKey, StringId};
use thiserror::Error;

use crate::series::sampled_share;

/// Why two profiles have no difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Incomparable {
    /// For the user: a profile of another kind.
    #[error("the profile does not count allocations (alloc_space, alloc_objects)")]
    NoAllocations,
    /// For the user: the process was restarted, or the profiles are of two processes or
    /// in the wrong order.
    #[error(
        "counts fell from the former to the latter: a restart in between, two processes, or the wrong order"
    )]
    Fell,
}

/// What one stack allocated in objects of one size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Increment {
    /// In the later profile.
    pub(super) stack: StackId,
    /// Of one object, bytes.
    pub(super) size: f64,
    pub(super) bytes: i64,
    pub(super) objects: i64,
    /// Objects of which the runtime made a sample.
    pub(super) samples: u64,
    /// Probability with which an object is sampled.
    pub(super) chance: f64,
}

/// All that is not 0, sorted by stack.
pub(super) fn increments(old: &Profile, new: &Profile) -> Result<Vec<Increment>, Incomparable> {
    let mut before = counts(old)?;
    let after = counts(new)?;
    let mut found = Vec::new();
    for ((key, size), now) in after {
        let was = before.remove(&(key, size)).unwrap_or_default();
        let (bytes, objects) = (now.bytes - was.bytes, now.objects - was.objects);
        if bytes < 0 || objects < 0 {
            return Err(Incomparable::Fell);
        }
        if bytes == 0 {
            continue;
        }
        let size = match size {
            0 => bytes as f64 / objects.max(1) as f64,
            size => size as f64,
        };
        let chance = sampled_share(size, new.period as f64);
        found.push(Increment {
            stack: now.stack,
            size,
            bytes,
            objects,
            // Objects were cut to whole ones, bytes are exact to one.
            samples: (bytes as f64 / size * chance).round().max(1.0) as u64,
            chance,
        });
    }
    // Go never forgets a stack.
    if before.values().any(|c| c.bytes > 0) {
        return Err(Incomparable::Fell);
    }
    found.sort_by(|a, b| (a.stack.cmp(&b.stack)).then(a.size.total_cmp(&b.size)));
    Ok(found)
}

#[derive(Clone, Copy, Default)]
struct Counts {
    stack: StackId,
    bytes: i64,
    objects: i64,
}

/// What was allocated so far, by stack and size; size 0 where the profile does not tell it.
fn counts(profile: &Profile) -> Result<HashMap<(StackKey, i64), Counts>, Incomparable> {
    let (Some(objects), Some(bytes)) = (
        profile.sample_type("alloc_objects"),
        profile.sample_type("alloc_space"),
    ) else {
        return Err(Incomparable::NoAllocations);
    };
    let label = profile.strings.find("bytes").map(StringId);
    let keys = profile.stack_keys();
    // Stacks that look alike are one, under the number that was there first.
    let mut first: HashMap<StackKey, StackId> = HashMap::new();
    let mut counts: HashMap<(StackKey, i64), Counts> = HashMap::new();
    for (i, &stack) in profile.sample_stacks.iter().enumerate() {
        let Some(&key) = keys.get(stack.index()) else {
            continue;
        };
        let value = |c: usize| profile.row(i).get(c).copied().unwrap_or(0).max(0);
        let size = label.and_then(|k| profile.number_label(i, k)).unwrap_or(0);
        let entry = counts.entry((key, size.max(0))).or_default();
        entry.stack = *first.entry(key).or_insert(stack);
        entry.bytes = entry.bytes.saturating_add(value(bytes));
        entry.objects = entry.objects.saturating_add(value(objects));
    }
    Ok(counts)
}
