//! What a profile may come to once what it refers to is written out.
//!
//! A profile is small because it says things once: a stack names locations, a location
//! lines, a line a function, a function texts. Whoever walks the stacks pays for all of
//! it, and a few hundred bytes can stand for terabytes. [`keep_within`] makes that linear
//! in the bytes that were read: the heaviest stacks stay, the rest is one row [`OTHER`].

use std::borrow::Cow;
use std::cmp::Reverse;

use memtrace_model::{
    FrameRef, Label, LabelSetId, LabelValue, LocationId, OTHER, Profile, StackId, StringId,
};

use crate::Warning;

/// Names of the frames of all stacks, for each byte of the uncompressed profile. A frame of
/// a sound one takes two or three bytes, its names some 150.
const WRITTEN_PER_BYTE: u64 = 512;
/// The same that any profile may have: a small one may be odd.
const LEAST_WRITTEN: u64 = 16 << 20;
/// Frames of one stack. Runtimes record up to 128, or 1,024; recursion that ended a
/// program has been seen with tens of thousands.
pub(crate) const DEEPEST: u64 = 1 << 16;
/// Text of the functions of all locations, of all labels, of all mappings: bytes for each byte of the
/// uncompressed profile. A line of a sound one takes six bytes, its names some 150.
const TEXT_PER_BYTE: u64 = 64;
/// Text that any profile may have.
const LEAST_TEXT: u64 = 16 << 20;
/// What it takes later to follow a sample, bytes: a row, and places in tables.
pub(crate) const FOLLOWED: usize = 128;
/// What an entry without any text counts as, bytes.
const ENTRY: u64 = 16;

/// Names of all frames that are written in full, and the texts of one kind, bytes: what a million
/// stacks come to.
const MOST_WRITTEN: u64 = 1 << 30;

/// Longest text that is kept, bytes; longer ones are cut. Names of C++ templates come to
/// some thousands.
pub(crate) const LONGEST_TEXT: usize = 16 << 10;
/// Most sample types, as many as the store keeps values of a row.
pub(crate) const MOST_SAMPLE_TYPES: usize = 64;
/// Most labels of a sample. Who labels the most, collectors of a cluster's profiles, has some fifty.
pub(crate) const MOST_LABELS: usize = 128;
/// Most comments.
pub(crate) const MOST_COMMENTS: usize = 1024;

/// The beginning of a text that is longer than [`LONGEST_TEXT`].
pub(crate) fn cut(text: &str) -> &str {
    memtrace_model::cut(text, LONGEST_TEXT)
}

/// The text that `bytes` are, little longer than they are: most of what is no UTF-8 becomes `?`,
/// since the usual sign for it takes three bytes for one.
pub(crate) fn text(bytes: &[u8]) -> Cow<'_, str> {
    /// What the usual signs may add, bytes.
    const SIGNS: usize = 1 << 20;
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(bytes.len() + 3);
    let mut signs = 0;
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        if !chunk.invalid().is_empty() {
            signs += char::REPLACEMENT_CHARACTER.len_utf8();
            out.push(if signs <= SIGNS {
                char::REPLACEMENT_CHARACTER
            } else {
                '?'
            });
        }
    }
    Cow::Owned(out)
}

/// Of bytes that are longer than any text that is kept, as many as [`cut`] can need.
pub(crate) fn cut_bytes(bytes: &[u8]) -> &[u8] {
    // A character has three bytes at most beside its first.
    let most = bytes.len().min(LONGEST_TEXT + 4);
    let next = (LONGEST_TEXT..most).find(|&i| bytes[i] & 0xc0 != 0x80);
    &bytes[..next.unwrap_or(most)]
}

/// Brings a profile that was read from so many uncompressed bytes within the budget; says
/// what that took.
pub(crate) fn keep_within(profile: &mut Profile, read: u64, warnings: &mut Vec<Warning>) {
    let text = LEAST_TEXT
        .max(read.saturating_mul(TEXT_PER_BYTE))
        .min(MOST_WRITTEN);
    let nameless = strip_texts(profile, text);
    if nameless > 0 {
        warnings.push(Warning::Nameless { count: nameless });
    }
    let cut = cut_deep(profile);
    if cut > 0 {
        warnings.push(Warning::Deep {
            count: cut,
            deepest: DEEPEST,
        });
    }
    let most = LEAST_WRITTEN.max(read.saturating_mul(WRITTEN_PER_BYTE));
    let costs = stack_costs(profile);
    if costs.iter().fold(0, |sum: u64, c| sum.saturating_add(*c)) <= most {
        return;
    }
    let width = profile.sample_types.len();
    // The weight of a stack is that of its samples together.
    let mut weights = vec![Weight::default(); costs.len()];
    for (stack, weight) in profile
        .sample_stacks
        .iter()
        .zip(sample_weights(profile, width))
    {
        if let Some((shown, all)) = weights.get_mut(stack.index()) {
            *shown = shown.saturating_add(weight.0);
            *all = all.saturating_add(weight.1);
        }
    }
    let keep = heaviest(&weights, most, |stack| costs[stack]);
    let stays = |sample: usize| keep[profile.sample_stacks[sample].index()];
    let stays: Vec<bool> = (0..profile.len()).map(stays).collect();
    if let Some(folded) = fold(profile, width, &stays) {
        let samples = folded.samples;
        folded.add_to(profile);
        warnings.push(Warning::Folded { samples });
    }
}

/// Folds the lightest samples until the others take `most` bytes at most. `None` when
/// they do.
pub(crate) fn fold_lightest(profile: &mut Profile, width: usize, most: u64) -> Option<Folded> {
    let weights: Vec<Weight> = sample_weights(profile, width).collect();
    let bytes = |sample: usize| {
        let stack = profile.sample_stacks.get(sample).copied();
        let set = profile.sample_labels.get(sample).copied();
        let locations = profile.stack(stack.unwrap_or_default()).len();
        let labels = size_of_val(profile.label_sets.get(set.unwrap_or_default().0));
        // A list that is interned has an end and a place in the index besides.
        (FOLLOWED + 24 + 8 * width + (4 * locations + 12) + (labels + 12)) as u64
    };
    let keep = heaviest(&weights, most, bytes);
    fold(profile, width, &keep)
}

/// Stacks of which at most [`MOST_WRITTEN`] bytes of names are written, by the totals of the
/// stacks, and the sum of the other totals.
pub(crate) fn written(profile: &Profile, totals: &[i64]) -> (Vec<bool>, i64) {
    let costs = stack_costs(profile);
    let weights: Vec<Weight> = totals.iter().map(|t| (t.unsigned_abs(), 0)).collect();
    let keep = heaviest(&weights, MOST_WRITTEN, |s| {
        costs.get(s).copied().unwrap_or(0)
    });
    let rest = totals.iter().zip(&keep).filter(|(_, keep)| !**keep);
    let rest = rest.fold(0i64, |sum, (total, _)| sum.saturating_add(*total));
    (keep, rest)
}

/// Bytes of the names of each stack, as if it was written out.
fn stack_costs(profile: &Profile) -> Vec<u64> {
    let frame = |f: FrameRef<'_>| ENTRY + (f.function.len() + f.file.len() + f.binary.len()) as u64;
    let names: Vec<u64> = (0..profile.locations.len() as u32)
        .map(|l| profile.frames_of(LocationId(l)).map(frame).sum())
        .collect();
    let name = |l: &LocationId| names.get(l.index()).copied().unwrap_or(ENTRY);
    let bytes = |stack: &[LocationId]| stack.iter().map(name).fold(ENTRY, u64::saturating_add);
    profile.stacks.iter().map(bytes).collect()
}

/// Frames of a stack.
fn depth(profile: &Profile, stack: &[LocationId]) -> u64 {
    let frames = |l: &LocationId| match profile.locations.get(l.index()) {
        Some(location) => u64::from(location.line_count).max(1),
        None => 1,
    };
    stack.iter().map(frames).sum()
}

/// Ends stacks that are too deep with a frame [`OTHER`]; how many there were.
fn cut_deep(profile: &mut Profile) -> u64 {
    let is_deep = |p: &Profile, stack: &[LocationId]| depth(p, stack) > DEEPEST;
    let deep = profile.stacks.iter().filter(|s| is_deep(profile, s));
    let deep = deep.count() as u64;
    if deep == 0 {
        return 0;
    }
    let other = profile.add_location(OTHER, 0);
    let old = std::mem::take(&mut profile.stacks);
    let mut short = Vec::new();
    let numbers: Vec<u32> = old
        .iter()
        .map(|stack| {
            if !is_deep(profile, stack) {
                return profile.stacks.intern(stack).unwrap_or_default();
            }
            short.clear();
            let mut frames = 0;
            let fits = |l: &&LocationId| {
                frames += depth(profile, &[**l]);
                frames < DEEPEST
            };
            short.extend(stack.iter().take_while(fits));
            short.push(other);
            profile.stacks.intern(&short).unwrap_or_default()
        })
        .collect();
    for stack in &mut profile.sample_stacks {
        stack.0 = numbers.get(stack.index()).copied().unwrap_or_default();
    }
    deep
}

/// Takes the texts away from entries beyond `most` bytes of them, each kind by itself; how
/// many lost theirs.
fn strip_texts(profile: &mut Profile, most: u64) -> u64 {
    let strings = &profile.strings;
    let length = |id: StringId| strings.get(id.0).len() as u64;
    let mut nameless = 0;

    let mut mappings = Budget::of(most);
    let texts: Vec<u64> = profile
        .mappings
        .iter_mut()
        .map(|m| {
            let bytes = length(m.file) + length(m.build_id);
            if mappings.takes(bytes) {
                return bytes;
            }
            nameless += 1;
            (m.file, m.build_id) = Default::default();
            0
        })
        .collect();

    let mut functions = Budget::of(most);
    let names: Vec<u64> = profile
        .functions
        .iter_mut()
        .map(|f| {
            let bytes = length(f.name) + length(f.system_name) + length(f.file);
            if functions.takes(bytes) {
                return bytes;
            }
            nameless += 1;
            *f = Default::default();
            0
        })
        .collect();

    let mut locations = Budget::of(most);
    let lines = &profile.lines;
    for l in &mut profile.locations {
        let first = l.first_line as usize;
        let own = lines.get(first..first + l.line_count as usize);
        let own = own.unwrap_or(&[]).iter();
        let named = own.map(|line| names.get(line.function.index()).copied().unwrap_or(0));
        let binary = l.mapping.and_then(|m| texts.get(m.index())).copied();
        if !locations.takes(named.map(|n| n + ENTRY).sum::<u64>() + binary.unwrap_or(0)) {
            nameless += 1;
            l.mapping = None;
            (l.first_line, l.line_count) = (0, 0);
        }
    }

    let mut labels = Budget::of(most);
    let bytes = |set: &[Label]| {
        let label = |l: &Label| match l.value {
            LabelValue::Text(text) | LabelValue::Number(_, text) => {
                ENTRY + length(l.key) + length(text)
            }
        };
        set.iter().map(label).sum()
    };
    let takes: Vec<bool> = profile
        .label_sets
        .iter()
        .map(|set| labels.takes(bytes(set)))
        .collect();
    if takes.contains(&false) {
        let old = std::mem::take(&mut profile.label_sets);
        for set in &mut profile.sample_labels {
            let stays = takes.get(set.index()) == Some(&true);
            nameless += u64::from(!stays);
            let labels = if stays { old.get(set.0) } else { &[] };
            set.0 = profile.label_sets.intern(labels).unwrap_or_default();
        }
    }
    nameless
}

/// Bytes that are still free.
struct Budget {
    left: u64,
}

impl Budget {
    fn of(most: u64) -> Self {
        Self { left: most }
    }

    /// Takes what fits.
    fn takes(&mut self, bytes: u64) -> bool {
        let fits = bytes.saturating_add(ENTRY) <= self.left;
        if fits {
            self.left -= bytes + ENTRY;
        }
        fits
    }
}

/// The magnitude of the value to show, then of all values.
type Weight = (u64, u64);

fn sample_weights(profile: &Profile, width: usize) -> impl Iterator<Item = Weight> {
    let shown = profile.shown_sample_type();
    let shown = shown.unwrap_or(width.saturating_sub(1));
    profile.values.chunks_exact(width.max(1)).map(move |row| {
        let all = row.iter().map(|v| v.unsigned_abs());
        let value = row.get(shown).map_or(0, |v| v.unsigned_abs());
        (value, all.fold(0, u64::saturating_add))
    })
}

/// Which stay: the heaviest that together cost `most` at most.
fn heaviest(weights: &[Weight], most: u64, cost: impl Fn(usize) -> u64) -> Vec<bool> {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_unstable_by_key(|&i| (Reverse(weights[i]), i));
    let mut keep = vec![false; weights.len()];
    let mut left = most;
    for i in order {
        let cost = cost(i);
        keep[i] = cost <= left;
        if keep[i] {
            left -= cost;
        }
    }
    keep
}

/// Samples that were folded, and the sum of their values.
#[derive(Debug, Default)]
pub(crate) struct Folded {
    pub(crate) samples: u64,
    pub(crate) values: Vec<i64>,
}

impl Folded {
    /// Adds a sample.
    pub(crate) fn take(&mut self, values: &[i64]) {
        self.samples += 1;
        self.values.resize(self.values.len().max(values.len()), 0);
        for (sum, value) in self.values.iter_mut().zip(values) {
            *sum = sum.saturating_add(*value);
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        let samples = self.samples + other.samples;
        self.take(&other.values);
        self.samples = samples;
    }

    /// Adds the row [`OTHER`].
    pub(crate) fn add_to(mut self, profile: &mut Profile) {
        let stack = profile.other_stack();
        profile.sample_stacks.push(stack);
        let none = profile.label_sets.intern(&[]).unwrap_or_default();
        profile.sample_labels.push(LabelSetId(none));
        self.values.resize(profile.sample_types.len(), 0);
        profile.values.extend(self.values);
    }
}

/// Takes out the samples that do not stay, with what only they used of the stacks and
/// labels. `None` when all stay.
fn fold(profile: &mut Profile, width: usize, keep: &[bool]) -> Option<Folded> {
    if !keep.contains(&false) {
        return None;
    }
    let stacks = std::mem::take(&mut profile.stacks);
    let sets = std::mem::take(&mut profile.label_sets);
    let rows = std::mem::take(&mut profile.values);
    let samples = std::mem::take(&mut profile.sample_stacks)
        .into_iter()
        .zip(std::mem::take(&mut profile.sample_labels));
    let mut folded = Folded::default();
    let samples = samples.zip(rows.chunks_exact(width.max(1))).zip(keep);
    for (((stack, set), row), stays) in samples {
        if !stays {
            folded.take(row);
            continue;
        }
        // Fewer lists than before: they fit.
        let number = profile.stacks.intern(stacks.get(stack.0));
        profile.sample_stacks.push(StackId(number.unwrap_or(0)));
        let number = profile.label_sets.intern(sets.get(set.0));
        profile.sample_labels.push(LabelSetId(number.unwrap_or(0)));
        profile.values.extend_from_slice(row);
    }
    Some(folded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_written_are_bounded() {
        let mut p = Profile::default();
        let long = p.add_location(&"n".repeat(LONGEST_TEXT), 0);
        let short = p.add_location("short", 0);
        let heavy = vec![long; 40_000];
        let light = vec![long; 30_000];
        for stack in [&[short][..], &light, &heavy] {
            p.stacks.intern(stack).unwrap();
        }
        // 640 MB and 480 MB: one of them fits.
        let (keep, rest) = written(&p, &[1, 10, -100]);
        assert_eq!((keep, rest), (vec![true, false, true], 10));
        let (keep, rest) = written(&p, &[1, 200, 100]);
        assert_eq!((keep, rest), (vec![true, true, false], 100));
    }

    #[test]
    fn text_is_little_longer_than_its_bytes() {
        assert_eq!(text(b"a\xffb\xc3\xa9"), "a\u{fffd}b\u{e9}");
        let bytes = vec![0xff; 8 << 20];
        assert!(text(&bytes).len() <= bytes.len() + (1 << 20));
    }

    #[test]
    fn cuts_between_characters() {
        for end in ["", "a", "é", "€", "𝄞", "𝄞a", "\u{fffd}bc"] {
            for start in LONGEST_TEXT - 4..=LONGEST_TEXT {
                let text = "a".repeat(start) + end;
                let kept = std::str::from_utf8(cut_bytes(text.as_bytes())).unwrap();
                assert_eq!(cut(kept), cut(&text), "{start} {end}");
                assert!(kept.len() <= LONGEST_TEXT + 3);
            }
        }
        assert!(cut_bytes(&vec![0x80; 1 << 20]).len() <= LONGEST_TEXT + 4);
        let text = "é".repeat(LONGEST_TEXT);
        assert_eq!(cut(&text).len(), LONGEST_TEXT);
        let text = format!("a{text}");
        assert_eq!(cut(&text).len(), LONGEST_TEXT - 1);
        assert_eq!(cut("short"), "short");
    }
}
