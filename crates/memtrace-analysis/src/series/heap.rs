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
    let (rows, firsts) = rows_by(profile, |i| keys.get(stack(i).index()).copied());
    let stacks = firsts.into_iter().map(|i| stack(i as usize)).collect();
    (rows, stacks)
}

/// Labels of a sample that are kept.
const MOST_LABELS: usize = 64;

/// Text labels of a sample, as (key, value).
pub(super) type Labels = Vec<(String, String)>;

/// Rows of a heap profile, one for each set of text labels, and a sample that has them.
/// Samples without any are left out.
pub(super) fn label_rows(profile: &Profile) -> (Vec<Row>, Vec<u32>) {
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
    rows_by(profile, |i| {
        let set = profile.sample_labels.get(i)?;
        sets.get(set.index()).copied().flatten()
    })
}

/// The text labels of a sample.
pub(super) fn labels(profile: &Profile, sample: u32) -> Labels {
    let set = profile.sample_labels.get(sample as usize).copied();
    let labels = profile.label_sets.get(set.unwrap_or_default().0);
    labels
        .iter()
        .take(MOST_LABELS)
        .filter_map(|l| match l.value {
            LabelValue::Text(value) => {
                let text = |id| super::tags::cut(profile.text(id));
                Some((text(l.key), text(value)))
            }
            LabelValue::Number(..) => None,
        })
        .collect()
}

/// Where a profile has the objects and the bytes in use.
pub(super) fn columns_in_use(profile: &Profile) -> Option<(usize, usize)> {
    let column = |names: &[&str]| names.iter().find_map(|n| profile.sample_type(n));
    let objects = column(&["inuse_objects", "objects"]);
    objects.zip(column(&["inuse_space", "inuse_bytes", "space"]))
}

/// Rows of sampled objects by a key of their samples, and the first sample of each.
fn rows_by(profile: &Profile, key_of: impl Fn(usize) -> Option<StackKey>) -> (Vec<Row>, Vec<u32>) {
    let mut found = Rows::default();
    let Some((live_objects, live_bytes)) = columns_in_use(profile) else {
        return found.rows();
    };
    let column = |names: &[&str]| names.iter().find_map(|n| profile.sample_type(n));
    let born = column(&["alloc_objects"]).zip(column(&["alloc_space", "alloc_bytes"]));
    let size_key = profile.strings.find("bytes").map(StringId);
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
        let row = found.row(key, i);
        row.live = row.live.saturating_add(raw(objects, bytes));
        row.bytes = row.bytes.saturating_add(bytes as u64);
        row.objects = row.objects.saturating_add(objects as u64);
        if born.is_some() {
            let births = row.births.get_or_insert(0);
            *births = births.saturating_add(raw(all_objects, all_bytes));
        }
    }
    found.rows()
}

/// Rows by their key, each with the first sample that it is of.
#[derive(Default)]
struct Rows {
    rows: Vec<Row>,
    firsts: Vec<u32>,
    index: HashMap<StackKey, u32>,
}

impl Rows {
    fn row(&mut self, key: StackKey, sample: usize) -> &mut Row {
        let next = self.rows.len() as u32;
        let at = *self.index.entry(key).or_insert(next);
        if at == next {
            let row = Row {
                key,
                ..Row::default()
            };
            self.rows.push(row);
            self.firsts.push(sample as u32);
        }
        &mut self.rows[at as usize]
    }

    fn rows(self) -> (Vec<Row>, Vec<u32>) {
        (self.rows, self.firsts)
    }
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
    let mut found = Rows::default();
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
        let row = found.row(key, i);
        row.live = row.live.saturating_add(n);
        row.objects = row.objects.saturating_add(n);
    }
    let (rows, firsts) = found.rows();
    let stack = |i: u32| profile.sample_stacks[i as usize];
    (rows, firsts.into_iter().map(stack).collect())
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
