//! Findings in words, for both views.

use memtrace_model::{Finding, Pattern, SampleKind, Status, Tier, Time};

use crate::units::{bytes, span};

/// How many points of the series a finding shows.
const POINTS: usize = 4;

/// `12:00:05` of a time, UTC.
pub(super) fn clock(at: Time) -> String {
    at.to_string().get(11..19).unwrap_or("--:--:--").to_owned()
}

/// The same with its zone, and with the date where it is not that of `now`.
fn when(at: Time, now: Time) -> String {
    let (text, today) = (at.to_string(), now.to_string());
    if text.get(..10) == today.get(..10) {
        format!("{}Z", clock(at))
    } else {
        format!("{} {}Z", text.get(..10).unwrap_or_default(), clock(at))
    }
}

/// The pattern's name in the JSON contract.
pub(super) fn pattern(pattern: Pattern) -> String {
    serde_json::to_value(pattern)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}

pub(super) fn tier(finding: &Finding) -> &'static str {
    match (finding.status, finding.tier) {
        (Status::Resolved, _) => "RESOLVED",
        (Status::Open, Tier::Leaking) => "LEAKING",
        (Status::Open, Tier::Growing) => "GROWING",
    }
}

/// `cnc/internal/gcode.(*Cache).Lookup  cache.go:87`
pub(super) fn place(finding: &Finding) -> String {
    let frame = finding.culprit.as_ref().or(finding.stack.first());
    let no_stack = match finding.source {
        SampleKind::Process => "(outside the Go heap)",
        _ => "(no stack)",
    };
    frame.map_or(no_stack.into(), |f| match f.file.rsplit('/').next() {
        Some(file) if !file.is_empty() && f.line > 0 => {
            format!("{} ({file}:{})", f.function, f.line)
        }
        _ => f.function.clone(),
    })
}

pub(super) fn rate(finding: &Finding) -> String {
    let [low, high] = finding.rate_interval;
    let mut text = format!("+{}/min", bytes(finding.rate_bytes_per_min));
    if high > low {
        text += &format!(" ({} … {})", bytes(low.max(0.0)), bytes(high));
    }
    if finding.pattern == Pattern::GoroutineLeak {
        text += &format!(", +{:.0} goroutines/min", finding.rate_objects_per_min);
    }
    text
}

pub(super) fn since(finding: &Finding) -> String {
    match (finding.onset, finding.onset_interval) {
        (Some(at), Some([early, late])) => {
            format!(
                "since {} (± {})",
                when(at, finding.at),
                span(late.since(early) / 2.0)
            )
        }
        (Some(at), None) => format!("since {}", when(at, finding.at)),
        (None, _) => "since before the watch began".into(),
    }
}

pub(super) fn oom(finding: &Finding) -> String {
    let (Some(bound), Some(at)) = (&finding.bound, finding.oom_at) else {
        return "no limit is reached within a year at this rate, or none is known".into();
    };
    let limit = format!(
        "{} {}, {} used",
        bound.kind,
        bytes(bound.bytes as f64),
        bytes(bound.used as f64)
    );
    let left = span(at.since(finding.at));
    match finding.oom_interval {
        Some((early, late)) => format!(
            "in {left}, at {} ({} … {}; {limit})",
            when(at, finding.at),
            when(early, finding.at),
            late.map_or("never".into(), |t| when(t, finding.at))
        ),
        None => format!("in {left}, at {} ({limit})", when(at, finding.at)),
    }
}

/// The whole finding, one line each.
pub(super) fn lines(finding: &Finding) -> Vec<String> {
    let mut lines = vec![
        format!(
            "{} #{} {}  {}",
            tier(finding),
            finding.rank,
            pattern(finding.pattern),
            place(finding)
        ),
        format!(
            "  growth   {}, {}; explains {:.0} % of the process's growth",
            rate(finding),
            since(finding),
            finding.explains * 100.0
        ),
        format!(
            "  live     {} {}; confidence {:.1} %",
            bytes(finding.live_bytes as f64),
            match finding.source {
                SampleKind::Process => "outside the Go heap".to_owned(),
                _ => format!("in {} objects", finding.live_objects),
            },
            finding.confidence * 100.0
        ),
    ];
    if !finding.tags.is_empty() {
        let tags: Vec<_> = finding
            .tags
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        lines.push(format!("  tag      {}", tags.join(", ")));
    }
    if let Some(name) = &finding.type_name {
        let retained = finding
            .retained_bytes
            .map(|b| format!(", {} kept alive in all", bytes(b as f64)));
        lines.push(format!("  type     {name}{}", retained.unwrap_or_default()));
    }
    if !finding.retained_by.is_empty() {
        lines.push(format!("  kept by  {}", finding.retained_by.join(" → ")));
    }
    if finding.status == Status::Open {
        lines.push(format!("  OOM      {}", oom(finding)));
    }
    lines.push(format!("  fix      {}", finding.advice));
    if !finding.before_onset.is_empty() {
        let times: Vec<_> = finding
            .before_onset
            .iter()
            .map(|&t| when(t, finding.at))
            .collect();
        lines.push(format!(
            "  before   profiles just before the inflection: {}",
            times.join(", ")
        ));
    }
    // The newest points of the series: what the rate above is made of.
    let newest = finding.points.len().saturating_sub(POINTS);
    for (i, point) in finding.points[newest..].iter().enumerate() {
        let head = if i == 0 { "  points   " } else { "           " };
        lines.push(format!(
            "{head}{}  {:+.1} %/min  {:+.1} MB/min  {}",
            clock(point.at),
            point.objects_percent_per_min,
            point.mb_per_min,
            if point.suspicious {
                "suspicious"
            } else {
                "normal"
            }
        ));
    }
    for (i, frame) in finding.stack.iter().take(12).enumerate() {
        let head = if i == 0 { "  stack    " } else { "           " };
        let place = if frame.file.is_empty() {
            String::new()
        } else {
            format!(" {}:{}", short(&frame.file), frame.line)
        };
        lines.push(format!("{head}{}{place}", frame.function));
    }
    for (i, text) in finding.evidence.iter().enumerate() {
        let head = if i == 0 { "  evidence " } else { "           " };
        lines.push(format!("{head}{text}"));
    }
    lines
}

/// The last two parts of a path.
fn short(path: &str) -> &str {
    let cut = path.rmatch_indices('/').nth(1).map_or(0, |(i, _)| i + 1);
    &path[cut..]
}
