//! JSON that <https://www.speedscope.app> opens; written after its
//! `file-format-schema.json`.

use std::collections::HashMap;

use memtrace_model::{FrameRef, OTHER, Profile, StackId, to_json};
use serde::Serialize;

use crate::budget;
use crate::folded::frame_name;

#[derive(Serialize)]
struct File<'a> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    exporter: &'static str,
    name: &'a str,
    #[serde(rename = "activeProfileIndex")]
    active: u32,
    shared: Shared<'a>,
    profiles: [Sampled<'a>; 1],
}

#[derive(Serialize)]
struct Shared<'a> {
    frames: Vec<Frame<'a>>,
}

#[derive(Serialize)]
struct Frame<'a> {
    name: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    file: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<i64>,
}

#[derive(Serialize)]
struct Sampled<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    name: &'a str,
    unit: &'static str,
    #[serde(rename = "startValue")]
    start: i64,
    #[serde(rename = "endValue")]
    end: i64,
    /// Frames from the root to the leaf.
    samples: Vec<Vec<u32>>,
    weights: Vec<i64>,
}

/// One sample type of a profile as a sampled profile of speedscope.
///
/// Stacks that are equal are one sample. Those whose values do not add up to more
/// than 0 are left out: the format has no place for them. As for folded stacks, what is
/// beyond the bearable is one sample [`OTHER`].
#[must_use]
pub fn write(profile: &Profile, sample_type: usize) -> Vec<u8> {
    let width = profile.sample_types.len();
    let mut totals = vec![0i64; profile.stacks.len()];
    let rows = profile.values.chunks_exact(width.max(1));
    for (stack, row) in profile.sample_stacks.iter().zip(rows) {
        if let (Some(total), Some(&value)) = (totals.get_mut(stack.index()), row.get(sample_type)) {
            *total = total.saturating_add(value);
        }
    }

    let mut frames = Vec::new();
    let mut known: HashMap<(String, &str, i64), u32> = HashMap::new();
    let (mut samples, mut weights) = (Vec::new(), Vec::new());
    let (keep, rest) = budget::written(profile, &totals);
    let kept = totals.iter().enumerate().filter(|&(i, _)| keep[i]);
    for (i, &total) in kept.filter(|(_, t)| **t > 0) {
        let mut stack: Vec<u32> = profile
            .frames(StackId(i as u32))
            .map(|frame: FrameRef<'_>| {
                let key = (frame_name(&frame), frame.file, frame.line);
                *known.entry(key).or_insert_with_key(|(name, file, line)| {
                    frames.push(Frame {
                        name: name.clone(),
                        file,
                        line: (*line > 0).then_some(*line),
                    });
                    frames.len() as u32 - 1
                })
            })
            .collect();
        stack.reverse();
        samples.push(stack);
        weights.push(total);
    }

    if rest > 0 {
        frames.push(Frame {
            name: OTHER.to_owned(),
            file: "",
            line: None,
        });
        samples.push(vec![frames.len() as u32 - 1]);
        weights.push(rest);
    }
    let shown = profile.sample_types.get(sample_type);
    let name = shown.map_or("", |t| profile.text(t.kind));
    let file = File {
        schema: "https://www.speedscope.app/file-format-schema.json",
        exporter: concat!("memtrace ", env!("CARGO_PKG_VERSION")),
        name,
        active: 0,
        profiles: [Sampled {
            kind: "sampled",
            name,
            unit: unit(shown.map_or("", |t| profile.text(t.unit))),
            start: 0,
            end: weights.iter().fold(0, |a: i64, &w| a.saturating_add(w)),
            samples,
            weights,
        }],
        shared: Shared { frames },
    };
    // Strings and numbers only: there is nothing that JSON cannot hold.
    to_json(&file).unwrap_or_default().into_bytes()
}

/// The units that the schema knows.
fn unit(unit: &str) -> &'static str {
    match unit {
        "bytes" | "byte" | "B" => "bytes",
        "nanoseconds" | "ns" => "nanoseconds",
        "microseconds" | "us" => "microseconds",
        "milliseconds" | "ms" => "milliseconds",
        "seconds" | "s" => "seconds",
        _ => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_schema_requires() {
        let mut profile = crate::folded::parse(b"main;a 5\nmain;b 7\nmain 0\n")
            .unwrap()
            .profile;
        profile.sample_types[0].unit = profile.intern("bytes");
        let mut json: serde_json::Value = serde_json::from_slice(&write(&profile, 0)).unwrap();
        // It changes with every release.
        assert!(json["exporter"].take().is_string());
        insta::assert_snapshot!(json, @r#"{"$schema":"https://www.speedscope.app/file-format-schema.json","activeProfileIndex":0,"exporter":null,"name":"samples","profiles":[{"endValue":12,"name":"samples","samples":[[1,0],[1,2]],"startValue":0,"type":"sampled","unit":"bytes","weights":[5,7]}],"shared":{"frames":[{"name":"a"},{"name":"main"},{"name":"b"}]}}"#);
        let none: serde_json::Value = serde_json::from_slice(&write(&profile, 9)).unwrap();
        assert_eq!(none["profiles"][0]["samples"], serde_json::json!([]));
    }

    #[test]
    fn units_of_the_schema() {
        for known in [
            "nanoseconds",
            "microseconds",
            "milliseconds",
            "seconds",
            "bytes",
        ] {
            assert_eq!(unit(known), known);
        }
        assert_eq!(unit("count"), "none");
    }
}
