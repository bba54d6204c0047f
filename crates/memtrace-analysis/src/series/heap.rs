//! From a profile to rows of sampled objects.

use std::collections::HashMap;

use memtrace_model::{LabelSetId, LabelValue, LocationId, Profile, StackId, StackKey, StringId};

use xxhash_rust::xxh3::Xxh3;

use super::store::Row;

/// Rows of a heap profile, one for each stack, and where in the profile each
/// stack is found. Go scales the counts of sampled objects of size z up by 1/p,
/// p = 1 − e^(−z/period); this takes the scaling back. Empty when the profile
/// has no in-use values.
pub(super) fn heap_rows(profile: &Profile) -> (Vec<Row>, Vec<StackId>) {
    let keys = profile.stack_keys();
    let stack = |i: usize| profile.sample_stacks[i];
    let rows = rows_by(profile, |i| keys.get(stack(i).index()).copied());
    rows.into_iter().map(|(row, i)| (row, stack(i))).unzip()
}

/// Labels of a sample that are kept.
const MOST_LABELS: usize = 64;

/// Text labels of a sample, as (key, value).
pub(super) type Labels = Vec<(String, String)>;

/// Rows of a heap profile, one for each set of text labels, and the labels of each.
/// Samples without any are left out.
pub(super) fn label_rows(profile: &Profile) -> Vec<(Row, Labels)> {
    let sets: Vec<Option<StackKey>> = profile
        .label_sets
        .iter()
        .map(|set| {
            let mut hash = Xxh3::new();
            let mut some = false;
            for label in set {
                if let LabelValue::Text(value) = label.value {
                    for text in [profile.text(label.key), profile.text(value)] {
                        hash.update(&(text.len() as u64).to_le_bytes());
                        hash.update(text.as_bytes());
                    }
                    some = true;
                }
            }
            some.then(|| StackKey(hash.digest128()))
        })
        .collect();
    let set = |i: usize| profile.sample_labels.get(i).map(|l| l.index());
    rows_by(profile, |i| sets.get(set(i)?).copied().flatten())
        .into_iter()
        .map(|(row, i)| {
            let labels = profile.label_sets.get(set(i).unwrap_or(0) as u32);
            let texts = labels
                .iter()
                .take(MOST_LABELS)
                .filter_map(|l| match l.value {
                    LabelValue::Text(value) => {
                        let text = |id| super::tags::cut(profile.text(id));
                        Some((text(l.key), text(value)))
                    }
                    LabelValue::Number(..) => None,
                });
            (row, texts.collect())
        })
        .collect()
}

/// Where a profile has the objects and the bytes in use.
pub(super) fn columns_in_use(profile: &Profile) -> Option<(usize, usize)> {
    let column = |names: &[&str]| names.iter().find_map(|n| profile.sample_type(n));
    let objects = column(&["inuse_objects", "objects"]);
    objects.zip(column(&["inuse_space", "inuse_bytes", "space"]))
}

/// Rows of sampled objects by a key of their samples, each with its first sample.
fn rows_by(profile: &Profile, key_of: impl Fn(usize) -> Option<StackKey>) -> Vec<(Row, usize)> {
    let Some((live_objects, live_bytes)) = columns_in_use(profile) else {
        return Vec::new();
    };
    let column = |names: &[&str]| names.iter().find_map(|n| profile.sample_type(n));
    let born = column(&["alloc_objects"]).zip(column(&["alloc_space", "alloc_bytes"]));
    let size_key = profile.strings.find("bytes").map(StringId);
    let mut rows: Vec<(Row, usize)> = Vec::new();
    let mut index: HashMap<StackKey, usize> = HashMap::new();
    for i in 0..profile.len() {
        let Some(key) = key_of(i) else { continue };
        let values = profile.row(i);
        let value = |c: usize| values.get(c).copied().unwrap_or(0).max(0) as f64;
        let (objects, bytes) = (value(live_objects), value(live_bytes));
        let (all_objects, all_bytes) = born.map_or((0.0, 0.0), |(o, b)| (value(o), value(b)));
        let label = size_key.and_then(|k| number(profile, i, k));
        let size = match label {
            Some(z) if z > 0 => z as f64,
            _ if all_objects > 0.0 => all_bytes / all_objects,
            _ if objects > 0.0 => bytes / objects,
            _ => 0.0,
        };
        let p = sampled_share(size, profile.period as f64);
        let raw = |objects: f64, bytes: f64| {
            // Bytes were cut to whole bytes, objects to whole objects: bytes are exact.
            let n = if size > 0.0 { bytes / size } else { objects };
            let n = (n * p).round();
            // Something is there: at least one object was sampled.
            if objects > 0.0 { n.max(1.0) as u64 } else { 0 }
        };
        let at = *index.entry(key).or_insert_with(|| {
            rows.push((
                Row {
                    key,
                    births: born.map(|_| 0),
                    ..Row::default()
                },
                i,
            ));
            rows.len() - 1
        });
        let row = &mut rows[at].0;
        row.live = row.live.saturating_add(raw(objects, bytes));
        row.bytes = row.bytes.saturating_add(bytes as u64);
        row.objects = row.objects.saturating_add(objects as u64);
        if let Some(births) = &mut row.births {
            *births = births.saturating_add(raw(all_objects, all_bytes));
        }
    }
    rows
}

/// Locations in the allocator: a goroutine that stands there helps the collector or waits for
/// it, and will go on. Many do so at a time on a busy machine.
fn allocating(profile: &Profile) -> Vec<bool> {
    let is = |name: &str| matches!(name, "runtime.mallocgc" | "runtime.gcStart");
    (0..profile.locations.len() as u32)
        .map(|l| {
            let mut frames = profile.frames_of(LocationId(l));
            frames.any(|f| is(f.function))
        })
        .collect()
}

/// Rows of a goroutine profile: exact counts, no births.
pub(super) fn goroutine_rows(profile: &Profile) -> (Vec<Row>, Vec<StackId>) {
    let count = profile
        .sample_type("goroutine")
        .or_else(|| profile.sample_type("goroutines"))
        .or_else(|| profile.shown_sample_type());
    let Some(count) = count else {
        return (Vec::new(), Vec::new());
    };
    let keys = profile.stack_keys();
    let allocating = allocating(profile);
    let mut rows: Vec<(Row, StackId)> = Vec::new();
    let mut index: HashMap<StackKey, usize> = HashMap::new();
    for i in 0..profile.len() {
        let stack = profile.sample_stacks[i];
        let Some(&key) = keys.get(stack.index()) else {
            continue;
        };
        let mut locations = profile.stack(stack).iter();
        if locations.any(|l| allocating.get(l.index()) == Some(&true)) {
            continue;
        }
        let n = profile.row(i).get(count).copied().unwrap_or(0).max(0) as u64;
        let at = *index.entry(key).or_insert_with(|| {
            rows.push((
                Row {
                    key,
                    ..Row::default()
                },
                stack,
            ));
            rows.len() - 1
        });
        rows[at].0.live = rows[at].0.live.saturating_add(n);
        rows[at].0.objects = rows[at].0.objects.saturating_add(n);
    }
    rows.into_iter().unzip()
}

/// Probability that an object of `size` bytes is sampled, one sample every
/// `period` bytes on average; 1 where nothing is sampled away.
#[must_use]
pub fn sampled_share(size: f64, period: f64) -> f64 {
    if period <= 1.0 || size <= 0.0 {
        return 1.0;
    }
    -(-size / period).exp_m1()
}

fn number(profile: &Profile, sample: usize, key: StringId) -> Option<i64> {
    let LabelSetId(set) = *profile.sample_labels.get(sample)?;
    let labels = profile.label_sets.get(set);
    labels.iter().find_map(|l| match l.value {
        LabelValue::Number(n, _) if l.key == key => Some(n),
        _ => None,
    })
}
