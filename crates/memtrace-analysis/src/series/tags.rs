//! What each business tag holds at a stack, over time.
//!
//! A verdict is about a stack, whatever its tags. This says afterwards whose growth it
//! is: what every label value held when it began, against what it holds now.

use std::collections::HashMap;

use memtrace_model::{Label, LabelSetId, LabelValue, Profile, StackKey, Strings, Time, is_visible};

/// Moments that are kept; beyond, every second one goes.
const MOST_MOMENTS: usize = 32;
/// Cells (stack, label) of one moment that are kept, the largest first.
const MOST_CELLS: usize = 3_500;
/// Labels that are remembered, and the bytes beyond which no more are: half of them text, since
/// its buffer doubles.
const MOST_LABELS: usize = 8_192;
const MOST_TEXT: usize = 2 << 20;
/// Longer keys and values are cut, characters.
const LONGEST: usize = 128;

/// The beginning of a key or value, without what a terminal could take for its own.
pub(super) fn cut(text: &str) -> String {
    let shown = |c: char| if is_visible(c) { c } else { '?' };
    text.chars().take(LONGEST).map(shown).collect()
}

/// A label as one text, each half cut.
fn label(key: &str, value: &str) -> String {
    format!("{}{BETWEEN}{}", cut(key), cut(value))
}

/// Number of a label among [`Tags::labels`].
type LabelNumber = u32;

/// Between the key of a label and its value; [`cut`] leaves none within them.
const BETWEEN: char = '\0';

/// What is held by label and stack.
#[derive(Clone, Debug, Default)]
pub(super) struct Tags {
    /// Keys and values.
    labels: Strings,
    moments: Vec<Moment>,
}

#[derive(Clone, Debug)]
struct Moment {
    at: Time,
    /// By label and stack.
    cells: Vec<Cell>,
}

/// What a stack holds under a label.
#[derive(Clone, Copy, Debug)]
struct Cell {
    label: LabelNumber,
    /// Goroutines, where `bytes` is 0.
    objects: u32,
    /// The halves of the key: as one number they would take more room.
    stack: [u64; 2],
    bytes: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    objects: u64,
    bytes: u64,
}

fn halves(key: StackKey) -> [u64; 2] {
    [(key.0 >> 64) as u64, key.0 as u64]
}

impl Cell {
    fn key(&self) -> StackKey {
        StackKey(u128::from(self.stack[0]) << 64 | u128::from(self.stack[1]))
    }

    fn amount(&self) -> u64 {
        match self.bytes {
            0 => u64::from(self.objects),
            bytes => bytes,
        }
    }
}

impl Moment {
    /// Bytes under a label at a stack.
    fn bytes(&self, label: LabelNumber, stack: StackKey) -> u64 {
        let place = (label, halves(stack));
        let found = self
            .cells
            .binary_search_by_key(&place, |c| (c.label, c.stack));
        found.map_or(0, |i| self.cells[i].bytes)
    }
}

/// What one value of a label adds to the growth of some stacks.
#[derive(Clone, Debug, PartialEq)]
pub struct TagGrowth {
    /// Key of the label (`tag` for those of the memtrace SDK).
    pub key: String,
    /// Its value: the tag.
    pub value: String,
    /// Growth of what it holds, bytes; for goroutines, their number.
    pub grown: f64,
    /// Share of the growth over all values of this key taken together, 0 to 1.
    pub share: f64,
    /// What it holds now, bytes; for goroutines, their number.
    pub holds: u64,
    /// How many values of this key grew.
    pub among: usize,
}

impl Tags {
    /// Adds a profile; `objects` and `bytes` are columns of it. Nothing is kept of
    /// profiles without labels.
    pub(super) fn push(
        &mut self,
        at: Time,
        profile: &Profile,
        objects: usize,
        bytes: Option<usize>,
    ) {
        let text = |l: &Label| matches!(l.value, LabelValue::Text(_));
        let labelled = profile.label_sets.iter().any(|set| set.iter().any(text));
        if !labelled && self.moments.is_empty() {
            return;
        }
        let keys = profile.stack_keys();
        // Label sets are few, samples many: name each set once.
        let mut numbers: Vec<Option<Vec<LabelNumber>>> = vec![None; profile.label_sets.len()];
        let mut held: HashMap<(StackKey, LabelNumber), Held> = HashMap::new();
        for i in 0..profile.len() {
            let LabelSetId(set) = profile.sample_labels.get(i).copied().unwrap_or_default();
            let (Some(slot), Some(&key)) = (
                numbers.get_mut(set as usize),
                keys.get(profile.sample_stacks[i].index()),
            ) else {
                continue;
            };
            let labels = slot.get_or_insert_with(|| self.texts(profile, set));
            let row = profile.row(i);
            let value = |c: usize| row.get(c).copied().unwrap_or(0).max(0) as u64;
            if value(objects) == 0 {
                continue;
            }
            for &label in labels.iter() {
                // Chosen from many more than are kept.
                if held.len() >= 16 * MOST_CELLS && !held.contains_key(&(key, label)) {
                    continue;
                }
                let cell = held.entry((key, label)).or_default();
                cell.objects = cell.objects.saturating_add(value(objects));
                cell.bytes = cell.bytes.saturating_add(bytes.map_or(0, value));
            }
        }
        if held.len() > MOST_CELLS {
            let mut sizes: Vec<u64> = held.values().map(|h| h.bytes.max(h.objects)).collect();
            let (_, &mut least, _) = sizes.select_nth_unstable_by(MOST_CELLS, |a, b| b.cmp(a));
            held.retain(|_, h| h.bytes.max(h.objects) > least);
        }
        let mut cells: Vec<Cell> = held
            .into_iter()
            .map(|((stack, label), held)| Cell {
                label,
                objects: u32::try_from(held.objects).unwrap_or(u32::MAX),
                stack: halves(stack),
                bytes: held.bytes,
            })
            .collect();
        cells.sort_unstable_by_key(|c| (c.label, c.stack));
        self.moments.push(Moment { at, cells });
        if self.moments.len() > MOST_MOMENTS {
            let last = self.moments.len() - 1;
            let mut i = 0;
            self.moments.retain(|_| {
                i += 1;
                (i - 1) % 2 == 0 || i - 1 == last
            });
        }
    }

    /// Numbers of the text labels of a set.
    fn texts(&mut self, profile: &Profile, set: u32) -> Vec<LabelNumber> {
        let labels = profile.label_sets.get(set).iter();
        labels
            .filter_map(|l| match l.value {
                LabelValue::Text(value) => Some(label(profile.text(l.key), profile.text(value))),
                LabelValue::Number(..) => None,
            })
            .filter_map(|label| {
                let is_full = self.labels.len() > MOST_LABELS || self.labels.memory() > MOST_TEXT;
                if is_full {
                    return self.labels.find(&label);
                }
                Some(self.labels.intern(&label))
            })
            .collect()
    }

    /// Whose growth it is that these stacks grew since `onset` (`None`: since the
    /// first moment), those that grew most first.
    pub(super) fn growth(&self, stacks: &[StackKey], onset: Option<Time>) -> Vec<TagGrowth> {
        let Some(now) = self.moments.last() else {
            return Vec::new();
        };
        let Some(then) = self.before(onset) else {
            return Vec::new();
        };
        let mut by_label: HashMap<LabelNumber, (f64, u64)> = HashMap::new();
        // Growth of all together: where nothing leaks, ups and downs cancel.
        let mut net: HashMap<&str, f64> = HashMap::new();
        let mut add = |moment: &Moment, sign: f64| {
            for cell in &moment.cells {
                if stacks.contains(&cell.key()) {
                    let entry = by_label.entry(cell.label).or_default();
                    entry.0 += sign * cell.amount() as f64;
                    if sign > 0.0 {
                        entry.1 += cell.amount();
                    }
                }
            }
        };
        add(now, 1.0);
        add(then, -1.0);
        for (label, (grown, _)) in &by_label {
            if let Some((key, _)) = self.labels.get(*label).split_once(BETWEEN) {
                *net.entry(key).or_default() += grown;
            }
        }
        let mut grown: Vec<TagGrowth> = by_label
            .into_iter()
            .filter(|(_, (grown, _))| *grown > 0.0)
            .filter_map(|(label, (grown, holds))| {
                let (key, value) = self.labels.get(label).split_once(BETWEEN)?;
                Some(TagGrowth {
                    key: key.to_owned(),
                    value: value.to_owned(),
                    grown,
                    share: 0.0,
                    holds,
                    among: 0,
                })
            })
            .collect();
        let mut among: HashMap<String, usize> = HashMap::new();
        for tag in &grown {
            *among.entry(tag.key.clone()).or_default() += 1;
        }
        for tag in &mut grown {
            let all = net.get(tag.key.as_str()).copied().unwrap_or(0.0);
            tag.share = tag.grown / all.max(tag.grown);
            tag.among = among[&tag.key];
        }
        grown.sort_by(|a, b| {
            b.grown
                .total_cmp(&a.grown)
                .then_with(|| (&a.key, &a.value).cmp(&(&b.key, &b.value)))
        });
        grown
    }
}

impl Tags {
    /// The stack at which what has these labels grew most since `onset`.
    pub(super) fn main_stack(
        &self,
        labels: &[(String, String)],
        onset: Option<Time>,
    ) -> Option<StackKey> {
        let (key, value) = labels.first()?;
        let number = self.labels.find(&label(key, value))?;
        let now = self.moments.last()?;
        let then = self.before(onset)?;
        let held = now.cells.iter().filter(|c| c.label == number);
        let grown = held.map(|c| (c.bytes.saturating_sub(then.bytes(number, c.key())), c.key()));
        grown.max().map(|(_, stack)| stack)
    }

    /// The last moment at or before `onset`, else the first.
    fn before(&self, onset: Option<Time>) -> Option<&Moment> {
        let after = onset.map_or(0, |t| self.moments.partition_point(|m| m.at <= t));
        self.moments.get(after.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtrace_model::StackId;

    /// A profile with one stack; for each (tag, bytes) a sample.
    fn profile(held: &[(&str, i64)]) -> Profile {
        let mut p = Profile::default();
        for _ in 0..2 {
            p.sample_types.push(memtrace_model::ValueType::default());
        }
        p.stacks.intern(&[]);
        let key = p.intern("tag");
        for (tag, bytes) in held {
            let value = LabelValue::Text(p.intern(tag));
            let set = p.label_sets.intern(&[Label { key, value }]).unwrap();
            p.sample_labels.push(LabelSetId(set));
            p.sample_stacks.push(StackId(0));
            p.values.extend([1, *bytes]);
        }
        p
    }

    #[test]
    fn the_tag_that_grows_is_told() {
        let mut tags = Tags::default();
        let key = profile(&[]).stack_keys()[0];
        for i in 0..100i64 {
            // Two hundred jobs hold much, one of them more and more from point 50 on.
            let names: Vec<String> = (0..200).map(|n| format!("job {n}")).collect();
            let held: Vec<(&str, i64)> = names
                .iter()
                .enumerate()
                .map(|(n, name)| {
                    let leaked = if n == 17 { (i - 50).max(0) * 100 } else { 0 };
                    (name.as_str(), 1000 + (i * n as i64) % 7 + leaked)
                })
                .collect();
            tags.push(Time(i * 1000), &profile(&held), 0, Some(1));
        }
        assert!(tags.moments.len() <= MOST_MOMENTS);
        let grown = tags.growth(&[key], Some(Time(50_000)));
        assert_eq!(
            (grown[0].key.as_str(), grown[0].value.as_str()),
            ("tag", "job 17")
        );
        assert!(grown[0].share > 0.85, "{:?}", grown[0]);
        assert_eq!(grown[0].holds, 1000 + (99 * 17) % 7 + 4900);
        assert_eq!(tags.growth(&[StackKey(8)], None), []);
    }

    #[test]
    fn many_cells_are_bounded() {
        let mut tags = Tags::default();
        let names: Vec<String> = (0..MOST_LABELS + 10).map(|n| n.to_string()).collect();
        let held: Vec<(&str, i64)> = names
            .iter()
            .enumerate()
            .map(|(n, name)| (name.as_str(), n as i64 + 1))
            .collect();
        tags.push(Time(0), &profile(&held), 0, Some(1));
        // The empty text is none.
        assert_eq!(tags.labels.len(), 1 + MOST_LABELS);
        assert!(tags.moments[0].cells.len() <= MOST_CELLS);
    }

    #[test]
    fn long_texts_are_bounded_too() {
        let mut tags = Tags::default();
        for round in 0..4 {
            let name = |n: usize| format!("{round}.{n}{}", "\u{10348}".repeat(200));
            let names: Vec<String> = (0..4000).map(name).collect();
            let held: Vec<(&str, i64)> = names.iter().map(|n| (n.as_str(), 5)).collect();
            tags.push(Time(round), &profile(&held), 0, Some(1));
        }
        assert!(
            tags.labels.memory() < 3 * MOST_TEXT,
            "{}",
            tags.labels.memory()
        );
        assert!(tags.labels.len() > 1000);
    }
}
