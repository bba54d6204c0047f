//! Folded stacks, one a line: frames from the root to the leaf with `;` between
//! them, a space, the value. Source: the flame graph tools of Brendan Gregg.

use std::collections::BTreeMap;

use memtrace_model::{LabelSetId, LocationId, OTHER, Profile, StackId, ValueType, folded_frame};

use crate::budget::{self, Folded};
use crate::{Error, Limits, Warning};

/// One sample type of a profile as folded stacks, sorted by stack.
///
/// Stacks whose values add up to 0 are left out. Where their names are more than a machine
/// bears, the heaviest are written and the rest is one line [`OTHER`]. A frame without a name is shown
/// by its binary or its address. A `;` within a name becomes `:`; see [`folded_frame`].
#[must_use]
pub fn write(profile: &Profile, sample_type: usize) -> String {
    let mut totals = vec![0i64; profile.stacks.len()];
    let width = profile.sample_types.len();
    if sample_type < width {
        for (stack, row) in profile
            .sample_stacks
            .iter()
            .zip(profile.values.chunks_exact(width))
        {
            if let Some(total) = totals.get_mut(stack.index()) {
                *total = total.saturating_add(row[sample_type]);
            }
        }
    }
    let (keep, rest) = budget::written(profile, &totals);
    let mut lines: BTreeMap<String, i64> = BTreeMap::new();
    if rest != 0 {
        lines.insert(OTHER.to_owned(), rest);
    }
    let kept = totals.iter().enumerate().filter(|&(i, _)| keep[i]);
    for (i, &total) in kept.filter(|(_, t)| **t != 0) {
        let frames: Vec<String> = profile
            .frames(StackId(i as u32))
            .map(|frame| frame_name(&frame))
            .collect();
        let mut line = String::new();
        for frame in frames.iter().rev() {
            if !line.is_empty() {
                line.push(';');
            }
            line.push_str(frame);
        }
        let value = lines.entry(line).or_default();
        *value = value.saturating_add(total);
    }
    let mut out = String::new();
    for (stack, value) in lines.iter().filter(|(_, v)| **v != 0) {
        out.push_str(stack);
        out.push_str(&format!(" {value}\n"));
    }
    out
}

/// A frame for people: its function, else its binary, else its address.
pub(crate) fn frame_name(frame: &memtrace_model::FrameRef<'_>) -> String {
    let name = match (frame.function, frame.binary) {
        ("", "") if frame.address == 0 => "[unknown]".to_owned(),
        ("", "") => format!("{:#x}", frame.address),
        ("", binary) => {
            let base = binary.trim_end_matches('/').rsplit('/').next();
            format!("[{}]", base.unwrap_or(binary))
        }
        (function, _) => function.to_owned(),
    };
    folded_frame(&name)
}

/// Bytes that are read before the memory they took is looked at.
const MEASURE_EVERY: usize = 1 << 20;

/// Folded stacks that were read.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Parsed {
    /// The profile; its only sample type is `samples`/`count`.
    pub profile: Profile,
    /// What was wrong with the text.
    pub warnings: Vec<Warning>,
}

/// Reads folded stacks. Lines without a value are left out and counted; a fraction
/// is rounded.
///
/// # Errors
/// When no line is a folded stack.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Error> {
    if bytes.is_empty() {
        return Err(Error::Empty);
    }
    let text = String::from_utf8_lossy(bytes);
    let mut profile = Profile::default();
    let value_type = ValueType {
        kind: profile.intern("samples"),
        unit: profile.intern("count"),
    };
    profile.sample_types.push(value_type);
    let mut warnings = Vec::new();
    let (mut first_bad, mut bad, mut any) = (0, 0, false);
    let mut stack = Vec::new();
    // A location per name, in the order of first sight: interned names are numbered
    // like that too, after what is there already.
    let mut locations: BTreeMap<u32, LocationId> = BTreeMap::new();
    let (mut folded, mut unmeasured, mut is_full) = (Folded::default(), 0, false);
    for (i, line) in text.lines().enumerate() {
        unmeasured += line.len();
        if unmeasured >= MEASURE_EVERY {
            unmeasured = 0;
            is_full |= profile.memory() > Limits::default().max_memory;
        }
        let line = line.trim_end();
        if line.is_empty() {
            continue;
        }
        let Some((frames, value)) = line
            .rsplit_once(' ')
            .and_then(|(frames, value)| Some((frames, count(value)?)))
        else {
            // A comment. A function may start with # too, so a value makes it a stack.
            if line.starts_with('#') {
                continue;
            }
            if bad == 0 {
                first_bad = i as u64 + 1;
            }
            bad += 1;
            continue;
        };
        any = true;
        if is_full {
            folded.take(&[value]);
            continue;
        }
        stack.clear();
        for name in frames.rsplit(';').filter(|f| !f.is_empty()) {
            let name = budget::cut(name);
            let id = profile.intern(name);
            let p = &mut profile;
            stack.push(
                *locations
                    .entry(id.0)
                    .or_insert_with(|| p.add_location(name, 0)),
            );
        }
        let (Some(id), Some(labels)) = (
            profile.stacks.intern(&stack),
            profile.label_sets.intern(&[]),
        ) else {
            continue;
        };
        profile.sample_stacks.push(StackId(id));
        profile.sample_labels.push(LabelSetId(labels));
        profile.values.push(value);
    }
    if !any {
        return Err(Error::NotAProfile {
            start: format!("\"{}\"", bytes[..bytes.len().min(24)].escape_ascii()),
        });
    }
    if folded.samples > 0 {
        warnings.push(Warning::Folded {
            samples: folded.samples,
        });
        folded.add_to(&mut profile);
    }
    budget::keep_within(&mut profile, bytes.len() as u64, &mut warnings);
    if bad > 0 {
        warnings.push(Warning::Lines {
            first: first_bad,
            count: bad,
        });
    }
    if matches!(text, std::borrow::Cow::Owned(_)) {
        warnings.push(Warning::Encoding { count: 1 });
    }
    Ok(Parsed { profile, warnings })
}

fn count(value: &str) -> Option<i64> {
    value.parse().ok().or_else(|| {
        let number: f64 = value.parse().ok()?;
        // `as` saturates; infinities and NaN are no counts.
        number.is_finite().then_some(number.round() as i64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let text = "main;a b;c 5\nmain;d 7\nmain;d;main -2\n";
        let parsed = parse(text.as_bytes()).unwrap();
        assert_eq!(parsed.warnings, []);
        assert_eq!(parsed.profile.len(), 3);
        let leaf = parsed.profile.frames(StackId(0)).next().unwrap();
        assert_eq!(leaf.function, "c");
        assert_eq!(write(&parsed.profile, 0), text);
        assert_eq!(write(&parsed.profile, 1), "");
    }

    /// Found by fuzzing.
    #[test]
    fn a_root_may_look_like_a_comment() {
        let parsed = parse(b"# comment\n;# 2\n").unwrap();
        assert_eq!(write(&parsed.profile, 0), "# 2\n");
        assert_eq!(parse(b"# 2\n").unwrap().profile.len(), 1);
    }

    #[test]
    fn equal_stacks_are_added() {
        let parsed = parse(b"a;b 1\na;b 2.4\nz 1\nz -1\n").unwrap();
        assert_eq!(write(&parsed.profile, 0), "a;b 3\n");
    }

    #[test]
    fn damage() {
        let parsed = parse(b"# comment\na;b 1\nnonsense\n\nb x\nc nan\na\xff 2").unwrap();
        assert_eq!(
            parsed.warnings,
            [
                Warning::Lines { first: 3, count: 3 },
                Warning::Encoding { count: 1 }
            ]
        );
        assert_eq!(parsed.profile.len(), 2);
        assert_eq!(parse(b"").unwrap_err(), Error::Empty);
        assert!(matches!(parse(b"hello"), Err(Error::NotAProfile { .. })));
    }

    #[test]
    fn names_cannot_break_the_format() {
        let mut p = parse(b"x 1").unwrap().profile;
        p.functions[0].name = p.intern("Lfoo;\nbar(a, b)");
        assert_eq!(write(&p, 0), "Lfoo: bar(a, b) 1\n");
        p.functions[0].name = p.intern("");
        assert_eq!(write(&p, 0), "[unknown] 1\n");
        p.locations[0].address = 0x1f;
        assert_eq!(write(&p, 0), "0x1f 1\n");
    }
}
