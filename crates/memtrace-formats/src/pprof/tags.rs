//! Business tags that the memtrace SDK for Go puts on the stack.
//!
//! Go's heap profile has no labels. `memtrace.Do` therefore runs a tagged function
//! through two frames, `memtrace.tagHi07` and `memtrace.tagLo13`, whose names spell a
//! number of 12 bits; the service tells which name a number stands for
//! ([`crate::sdk::TagNames`]).

use memtrace_model::{Label, LabelSetId, LabelValue, Lists, LocationId, Profile, StackId};

use crate::sdk::TagNames;

/// What a function is to `memtrace.Do`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Frame {
    Other,
    Do,
    High(u16),
    Low(u16),
}

/// Whether a function is a frame of `memtrace.Do`, not of the service.
#[must_use]
pub fn is_tag_frame(function: &str) -> bool {
    frame(function) != Frame::Other
}

fn frame(function: &str) -> Frame {
    // The package may be vendored below any path.
    let Some((path, name)) = function.rsplit_once("memtrace.") else {
        return Frame::Other;
    };
    if !(path.is_empty() || path.ends_with('/')) {
        return Frame::Other;
    }
    if name == "Do" {
        return Frame::Do;
    }
    let digit = |text: &str| {
        let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|d| digits && *d < 64)
    };
    let high = name.strip_prefix("tagHi").and_then(digit).map(Frame::High);
    let low = || name.strip_prefix("tagLo").and_then(digit).map(Frame::Low);
    high.or_else(low).unwrap_or(Frame::Other)
}

/// Labels that samples keep beside their tag. Go's heap profile has none.
const MOST_OTHERS: usize = 1 << 18;

/// Whether a profile has such frames.
#[must_use]
pub fn has_tags(profile: &Profile) -> bool {
    let mut functions = profile.functions.iter();
    functions.any(|f| matches!(frame(profile.text(f.name)), Frame::High(_)))
}

/// Turns the frames into a label: samples allocated in a scope get the innermost tag,
/// and the frames leave their stacks. Returns whether there were any.
pub fn label(profile: &mut Profile, names: &TagNames) -> bool {
    if !has_tags(profile) {
        return false;
    }
    let functions: Vec<Frame> = profile
        .functions
        .iter()
        .map(|f| frame(profile.text(f.name)))
        .collect();
    // The last line of a location is the function that the code belongs to.
    let kind = |l: &LocationId| {
        let location = profile.locations.get(l.index())?;
        let line = profile.lines_of(location).last()?;
        functions.get(line.function.index()).copied()
    };
    let kinds: Vec<Frame> = (0..profile.locations.len())
        .map(|l| kind(&LocationId(l as u32)).unwrap_or(Frame::Other))
        .collect();

    let mut stacks = Lists::default();
    let mut plain = Vec::new();
    let moved: Vec<(StackId, Option<u16>)> = profile
        .stacks
        .iter()
        .map(|stack| {
            plain.clear();
            let tag = strip(stack, &kinds, &mut plain);
            // As many lists as before at most: they fit.
            (StackId(stacks.intern(&plain).unwrap_or(0)), tag)
        })
        .collect();
    profile.stacks = stacks;

    let key = profile.intern(names.key());
    let (mut set, mut others) = (Vec::new(), 0);
    for i in 0..profile.sample_stacks.len() {
        let Some(&(stack, tag)) = moved.get(profile.sample_stacks[i].index()) else {
            continue;
        };
        profile.sample_stacks[i] = stack;
        let Some(tag) = tag else { continue };
        let value = LabelValue::Text(profile.intern(&names.name(tag)));
        set.clear();
        if let Some(&LabelSetId(old)) = profile.sample_labels.get(i)
            && others < MOST_OTHERS
        {
            set.extend(profile.label_sets.get(old).iter().filter(|l| l.key != key));
            others += set.len();
        }
        set.push(Label { key, value });
        if let Some(id) = profile.label_sets.intern(&set)
            && let Some(labels) = profile.sample_labels.get_mut(i)
        {
            *labels = LabelSetId(id);
        }
    }
    true
}

/// Copies a stack without the frames of `Do`; returns the number that the innermost spell.
fn strip(stack: &[LocationId], kinds: &[Frame], plain: &mut Vec<LocationId>) -> Option<u16> {
    let (mut tag, mut low, mut in_do) = (None, None, false);
    for &location in stack {
        let kind = kinds.get(location.index()).copied().unwrap_or(Frame::Other);
        match (kind, low) {
            (Frame::Low(digit), _) => (low, in_do) = (Some(digit), false),
            (Frame::High(high), Some(digit)) => {
                tag = tag.or(Some(high << 6 | digit));
                (low, in_do) = (None, true);
            }
            (Frame::Do, _) if in_do => in_do = false,
            _ => {
                plain.push(location);
                (low, in_do) = (None, false);
            }
        }
    }
    tag
}

#[cfg(test)]
mod tests {
    use super::*;
    use memtrace_model::ValueType;

    /// A heap profile of one sample for each stack, functions named, the leaf first.
    fn profile(stacks: &[&[&str]]) -> Profile {
        let mut p = Profile::default();
        let kind = p.intern("inuse_space");
        p.sample_types.push(ValueType {
            kind,
            ..ValueType::default()
        });
        p.label_sets.intern(&[]);
        for (i, stack) in stacks.iter().enumerate() {
            let list: Vec<LocationId> = stack.iter().map(|f| p.add_location(f, 0)).collect();
            let id = p.stacks.intern(&list).unwrap();
            p.sample_stacks.push(StackId(id));
            p.sample_labels.push(LabelSetId(0));
            p.values.push(i as i64);
        }
        p
    }

    fn shown(p: &Profile, i: usize) -> (String, String) {
        let stack: Vec<&str> = p.frames(p.sample_stacks[i]).map(|f| f.function).collect();
        let labels: Vec<String> = p
            .label_sets
            .get(p.sample_labels[i].0)
            .iter()
            .map(|l| match l.value {
                LabelValue::Text(t) => format!("{}={}", p.text(l.key), p.text(t)),
                LabelValue::Number(n, _) => format!("{}={n}", p.text(l.key)),
            })
            .collect();
        (stack.join(";"), labels.join(","))
    }

    #[test]
    fn frames_become_labels() {
        let names = TagNames::parse(
            br#"{"schema":"memtrace.tags/1","key":"tag","other":"other","names":{"67":"G001-M17"}}"#,
        )
        .unwrap();
        let mut p = profile(&[
            &[
                "a.f",
                "memtrace.tagLo03",
                "memtrace.tagHi01",
                "memtrace.Do",
                "main.main",
            ],
            &[
                "a.f",
                "x/y/memtrace.tagLo04",
                "x/y/memtrace.tagHi01",
                "x/y/memtrace.Do",
            ],
            // Nested: the innermost counts, the frames of both go.
            &[
                "a.f",
                "memtrace.tagLo03",
                "memtrace.tagHi01",
                "memtrace.Do",
                "b.g",
                "memtrace.tagLo00",
                "memtrace.tagHi00",
                "memtrace.Do",
            ],
            &["a.f", "memtrace.tagLo00", "memtrace.tagHi00"],
            // Not ours, or broken off.
            &["a.f", "notmemtrace.tagLo03", "main.main"],
            &["a.f", "memtrace.tagLo03"],
            &["a.f", "memtrace.tagHi01", "memtrace.Do"],
            &["memtrace.tagLo64", "memtrace.tagHi+1"],
        ]);
        assert!(label(&mut p, &names));
        for (i, want) in [
            ("a.f;main.main", "tag=G001-M17"),
            ("a.f", "tag=#68"),
            ("a.f;b.g", "tag=G001-M17"),
            ("a.f", "tag=other"),
            ("a.f;notmemtrace.tagLo03;main.main", ""),
            ("a.f", ""),
            ("a.f;memtrace.tagHi01;memtrace.Do", ""),
            ("memtrace.tagLo64;memtrace.tagHi+1", ""),
        ]
        .into_iter()
        .enumerate()
        {
            let (stack, labels) = shown(&p, i);
            assert_eq!((stack.as_str(), labels.as_str()), want, "sample {i}");
        }
    }

    #[test]
    fn labels_beside_tags_are_bounded() {
        let names: Vec<String> = (0..128)
            .map(|i| format!("memtrace.tag{}{:02}", ["Hi", "Lo"][i / 64], i % 64))
            .collect();
        let stacks: Vec<[&str; 2]> = (0..4096)
            .map(|pair| [&*names[64 + pair % 64], &*names[pair / 64]])
            .collect();
        let stacks: Vec<&[&str]> = stacks.iter().map(<[_; 2]>::as_slice).collect();
        let mut p = profile(&stacks);
        let one = Label {
            key: Default::default(),
            value: LabelValue::Text(Default::default()),
        };
        let many = vec![one; 1000];
        let set = LabelSetId(p.label_sets.intern(&many).unwrap());
        p.sample_labels.fill(set);
        assert!(label(&mut p, &TagNames::default()));
        let kept: usize = p.label_sets.iter().map(<[_]>::len).sum();
        assert!(kept <= MOST_OTHERS + 1000 + 2 * 4096, "{kept}");
        assert_eq!(shown(&p, 4095).1, "tag=#4095");
    }

    #[test]
    fn a_profile_without_tags_stays_as_it_is() {
        let mut p = profile(&[&["a.f", "main.main"], &["memtrace.Do"]]);
        let before = p.clone();
        assert!(!label(&mut p, &TagNames::default()));
        assert_eq!(p, before);
    }
}
