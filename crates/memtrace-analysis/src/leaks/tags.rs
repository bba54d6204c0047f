use memtrace_model::{Finding, SampleKind, StackKey};

use super::Site;
use crate::series::{History, TagGrowth};

/// A tag is named as the one that leaks when it makes so much of the growth.
const MOST_OF_IT: f64 = 0.5;
/// Keys of tags that are told of; services have one or two.
const MOST_KEYS: usize = 8;
/// Tags that are named where none makes most of it.
const SHOWN: usize = 3;

/// Says under which business tags a site grows.
pub(super) fn name(history: &History, site: &Site<'_>, finding: &mut Finding) {
    let labels = site.members.iter().flat_map(|m| &m.growth.labels);
    for (key, value) in labels.take(MOST_KEYS) {
        finding.tags.insert(key.clone(), value.clone());
        finding.evidence.push(format!(
            "what is allocated under {key} {value} grows, at whatever stack; others of the same stacks do not"
        ));
    }
    let stacks: Vec<StackKey> = site
        .members
        .iter()
        .filter(|m| m.growth.source == site.kind)
        .map(|m| m.growth.key)
        .collect();
    let grown = history.tags(site.kind, &stacks, finding.onset);
    let mut keys: Vec<&str> = Vec::new();
    for growth in &grown {
        if keys.len() < MOST_KEYS && !keys.contains(&&*growth.key) {
            keys.push(&growth.key);
        }
    }
    keys.sort_unstable();
    for key in keys {
        let of_key: Vec<&TagGrowth> = grown.iter().filter(|t| t.key == key).collect();
        let Some(first) = of_key.first() else {
            continue;
        };
        let holds = |t: &TagGrowth| match site.kind {
            SampleKind::Goroutine => format!("{} goroutines", t.holds),
            _ => format!("{:.1} MB", t.holds as f64 / 1e6),
        };
        if first.share >= MOST_OF_IT {
            let named = finding.tags.entry(key.to_owned());
            if *named.or_insert_with(|| first.value.clone()) != first.value {
                continue;
            }
            let others = match first.among {
                1 => String::new(),
                n => format!("; {} others grew by the rest", n - 1),
            };
            finding.evidence.push(format!(
                "{key} {} makes {:.0} % of the growth and holds {} here{others}",
                first.value,
                100.0 * first.share,
                holds(first),
            ));
        } else if !finding.tags.contains_key(key) {
            let some: Vec<String> = of_key
                .iter()
                .take(SHOWN)
                .map(|t| format!("{} ({:.0} %)", t.value, 100.0 * t.share))
                .collect();
            finding.evidence.push(format!(
                "the growth is spread over {} values of {key}: {}, …",
                first.among,
                some.join(", ")
            ));
        }
    }
}
