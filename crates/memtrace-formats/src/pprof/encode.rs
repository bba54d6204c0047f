//! A [`Profile`] as `profile.proto`.

use memtrace_model::{LabelSetId, LabelValue, Profile, StackId, StringId, ValueType};

use super::wire::Writer;

/// The message, uncompressed. Definitions come before what refers to them, so a
/// reader meets the rows in the order of the columns.
pub(super) fn encode(profile: &Profile) -> Vec<u8> {
    let mut out = Writer::default();
    let mut part = Writer::default();
    let mut inner = Writer::default();

    for text in profile.strings.iter() {
        out.bytes(6, text.as_bytes());
    }
    for t in &profile.sample_types {
        value_type(&mut out, &mut part, 1, *t);
    }
    for (i, m) in profile.mappings.iter().enumerate() {
        part.clear();
        part.number(1, i as u64 + 1);
        part.number_opt(2, m.start);
        part.number_opt(3, m.limit);
        part.number_opt(4, m.offset);
        part.number_opt(5, text(m.file));
        part.number_opt(6, text(m.build_id));
        part.number_opt(7, u64::from(m.has_functions));
        part.number_opt(8, u64::from(m.has_filenames));
        part.number_opt(9, u64::from(m.has_line_numbers));
        part.number_opt(10, u64::from(m.has_inline_frames));
        out.bytes(3, &part.bytes);
    }
    for (i, f) in profile.functions.iter().enumerate() {
        part.clear();
        part.number(1, i as u64 + 1);
        part.number_opt(2, text(f.name));
        part.number_opt(3, text(f.system_name));
        part.number_opt(4, text(f.file));
        part.number_opt(5, f.start_line as u64);
        out.bytes(5, &part.bytes);
    }
    for (i, l) in profile.locations.iter().enumerate() {
        part.clear();
        part.number(1, i as u64 + 1);
        part.number_opt(2, l.mapping.map_or(0, |m| u64::from(m.0) + 1));
        part.number_opt(3, l.address);
        for line in profile.lines_of(l) {
            inner.clear();
            inner.number(1, u64::from(line.function.0) + 1);
            inner.number_opt(2, line.line as u64);
            inner.number_opt(3, line.column as u64);
            part.bytes(4, &inner.bytes);
        }
        part.number_opt(5, u64::from(l.is_folded));
        out.bytes(4, &part.bytes);
    }
    for i in 0..profile.len() {
        sample(&mut out, &mut part, &mut inner, profile, i);
    }
    out.number_opt(7, text(profile.drop_frames));
    out.number_opt(8, text(profile.keep_frames));
    out.number_opt(9, profile.time_nanos as u64);
    out.number_opt(10, profile.duration_nanos as u64);
    if profile.period_type != ValueType::default() {
        value_type(&mut out, &mut part, 11, profile.period_type);
    }
    out.number_opt(12, profile.period as u64);
    out.packed(13, profile.comments.iter().map(|&c| text(c)));
    let default = profile
        .default_sample_type
        .and_then(|i| profile.sample_types.get(i))
        .map_or(0, |t| text(t.kind));
    out.number_opt(14, default);
    out.number_opt(15, text(profile.doc_url));
    out.bytes
}

fn sample(out: &mut Writer, part: &mut Writer, inner: &mut Writer, profile: &Profile, i: usize) {
    let stack = profile.sample_stacks.get(i).copied();
    let labels: Option<LabelSetId> = profile.sample_labels.get(i).copied();
    part.clear();
    part.packed(
        1,
        profile
            .stack(stack.unwrap_or(StackId(u32::MAX)))
            .iter()
            .map(|l| u64::from(l.0) + 1),
    );
    part.packed(2, profile.row(i).iter().map(|&v| v as u64));
    for label in labels.map_or(&[][..], |l| profile.label_sets.get(l.0)) {
        inner.clear();
        inner.number_opt(1, text(label.key));
        match label.value {
            // Written even when empty: that is what tells it from the number 0.
            LabelValue::Text(t) => inner.number(2, text(t)),
            LabelValue::Number(n, unit) => {
                inner.number(3, n as u64);
                inner.number_opt(4, text(unit));
            }
        }
        part.bytes(3, &inner.bytes);
    }
    out.bytes(2, &part.bytes);
}

fn value_type(out: &mut Writer, part: &mut Writer, field: u64, t: ValueType) {
    part.clear();
    part.number_opt(1, text(t.kind));
    part.number_opt(2, text(t.unit));
    out.bytes(field, &part.bytes);
}

/// The string table is the column, so its numbers are the indices.
fn text(id: StringId) -> u64 {
    u64::from(id.0)
}
