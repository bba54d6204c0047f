//! The sites in words: a table with the advice below it, and one page of HTML.

use std::fmt::Write as _;

use memtrace_model::{HotPattern, HotSite, HotTotal, Time, visible_start};

use crate::diff::{escape, page, percent};
use crate::units::bytes;

/// Rows of a page.
const MOST_ROWS: usize = 500;
/// Characters of a layer: all rows are as wide as the widest.
const LONGEST_LAYER: usize = 80;

pub(super) fn text(total: &HotTotal, sites: &[HotSite], wanted: usize) -> Vec<String> {
    let mut lines = head(total);
    if sites.is_empty() {
        lines.push(nothing(total));
        return lines;
    }
    lines.push(format!("{wanted} of {} rows", sites.len()));
    let shown = &sites[..wanted.min(sites.len())];
    let cells: Vec<[String; 10]> = std::iter::once(HEADS.map(str::to_owned))
        .chain(shown.iter().map(cells))
        .collect();
    let width = |column: usize| {
        let lengths = cells.iter().map(|c| c[column].chars().count());
        lengths.max().unwrap_or(0)
    };
    let widths: [usize; 10] = std::array::from_fn(width);
    for row in &cells {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(widths).enumerate() {
            let _ = match i {
                9 => write!(line, "{cell}"),
                7.. => write!(line, "{cell:<width$}  "),
                _ => write!(line, "{cell:>width$}  "),
            };
        }
        lines.push(line);
    }
    if shown.iter().any(|s| s.rank.is_none()) {
        lines.push(
            "~ too few objects were sampled to tell the place; read for longer (--for 1m)".into(),
        );
    }
    for site in shown.iter().filter(|s| is_told(s)) {
        lines.push(String::new());
        lines.push(format!(
            "#{} {}  {}",
            rank(site),
            pattern(site.pattern),
            place(site)
        ));
        lines.push(format!("  seen   {}", site.evidence));
        if !site.advice.is_empty() {
            lines.push(format!("  fix    {}", site.advice));
        }
        lines.push(format!("  stack  {}", chain(site)));
    }
    lines
}

const HEADS: [&str; 10] = [
    "#", "bytes/s", "±", "allocs/s", "size", "share", "depth", "layer", "pattern", "site",
];

fn cells(site: &HotSite) -> [String; 10] {
    [
        rank(site),
        bytes(site.bytes_per_s),
        precision(site),
        count(site.objects_per_s),
        bytes(site.bytes_per_object),
        format!("{:.1} %", 100.0 * site.share),
        site.depth.to_string(),
        layer(site),
        pattern(site.pattern),
        place(site),
    ]
}

/// What was allocated, two lines.
fn head(total: &HotTotal) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(runtime) = &total.runtime {
        lines.push(format!(
            "{} allocates {}/s in {} objects/s, and collected garbage {} times in {:.1} s (runtime.MemStats)",
            total.target,
            bytes(runtime.bytes_per_s),
            count(runtime.objects_per_s),
            runtime.collections,
            runtime.seconds
        ));
    }
    if total.seconds > 0.0 {
        let span = match (total.from, total.to) {
            (Some(from), Some(to)) => format!(", {} to {} UTC", clock(from), clock(to)),
            _ => String::new(),
        };
        let explains = total.explains.map_or(String::new(), |share| {
            format!("; it explains {:.0} %", 100.0 * share)
        });
        lines.push(format!(
            "heap profile: {} in {} objects in {:.1} s{span}: {}/s{explains}",
            bytes(total.bytes as f64),
            count(total.objects as f64),
            total.seconds,
            bytes(total.bytes_per_s)
        ));
    }
    lines
}

fn nothing(total: &HotTotal) -> String {
    if total.quiet {
        "nothing hot: less than 512 KiB a second (--all lists the sites)".to_owned()
    } else {
        "the heap profile shows no allocation in this time".to_owned()
    }
}

/// Whether there is more to say of a row than its numbers.
fn is_told(site: &HotSite) -> bool {
    site.rank.is_some() && site.pattern != HotPattern::Allocation
}

/// One file: the numbers, the advice and the picture, no other resource.
pub(super) fn html(total: &HotTotal, sites: &[HotSite], picture: Option<&[u8]>) -> String {
    let mut rows = String::new();
    for site in sites.iter().take(MOST_ROWS) {
        rows.push_str("<tr>");
        for (i, cell) in cells(site).iter().enumerate() {
            let class = if i < 7 { "" } else { " class=name" };
            let _ = write!(rows, "<td{class}>{}</td>", escape(cell));
        }
        rows.push_str("</tr>\n");
    }
    let mut advice = String::new();
    for site in sites.iter().take(MOST_ROWS).filter(|s| is_told(s)) {
        let _ = writeln!(
            advice,
            "<h3>#{} {}: {}</h3>\n<p>{}. {}</p>\n<p class=name>{}</p>",
            rank(site),
            pattern(site.pattern),
            escape(&place(site)),
            escape(&site.evidence),
            escape(&site.advice),
            escape(&chain(site))
        );
    }
    if sites.is_empty() {
        advice = format!("<p>{}</p>", escape(&nothing(total)));
    }
    let picture = picture.map_or(String::new(), |svg| {
        let svg = percent(svg);
        format!("<iframe title=\"flame graph\" src=\"data:image/svg+xml,{svg}\"></iframe>\n")
    });
    let heads: String = HEADS.iter().map(|h| format!("<th>{h}")).collect();
    let body = format!(
        "<h1>Who allocates</h1>\n<p>{}</p>\n{picture}\
         <table><tr>{heads}</tr>\n{rows}</table>\n{advice}",
        head(total)
            .iter()
            .map(|l| escape(l))
            .collect::<Vec<_>>()
            .join("<br>")
    );
    page("memtrace hot", &body)
}

fn rank(site: &HotSite) -> String {
    site.rank.map_or("~".to_owned(), |rank| rank.to_string())
}

/// Half the width of the interval, in % of the rate.
fn precision(site: &HotSite) -> String {
    let [low, high] = site.bytes_interval;
    let half = (high - site.bytes_per_s).max(site.bytes_per_s - low);
    format!(
        "{:.0} %",
        100.0 * half / site.bytes_per_s.max(f64::MIN_POSITIVE)
    )
}

/// `toolpath → slice`: the package of the site, and what it allocates through.
fn layer(site: &HotSite) -> String {
    let package = site.package.rsplit('/').next().unwrap_or(&site.package);
    match site.via.as_str() {
        "" => visible_start(package, LONGEST_LAYER).into_owned(),
        via => visible_start(&format!("{package} → {via}"), LONGEST_LAYER).into_owned(),
    }
}

fn pattern(pattern: HotPattern) -> String {
    let name = serde_json::to_value(pattern).ok();
    let name = name.as_ref().and_then(|v| v.as_str());
    name.unwrap_or_default().to_owned()
}

/// `cnc/internal/toolpath.(*Path).Interpolate (toolpath.go:64)`
fn place(site: &HotSite) -> String {
    let frame = &site.site;
    match frame.file.rsplit('/').next() {
        Some(file) if !file.is_empty() && frame.line > 0 => {
            format!("{} ({file}:{})", frame.function, frame.line)
        }
        _ => frame.function.clone(),
    }
}

/// The heaviest stack in one line, the allocator first.
fn chain(site: &HotSite) -> String {
    let names: Vec<&str> = site
        .stack
        .iter()
        .map(|f| {
            let name = f.function.as_str();
            let end = name.find('[').unwrap_or(name.len());
            let start = name[..end].rfind('/').map_or(0, |slash| slash + 1);
            &name[start..]
        })
        .collect();
    names.join(" ← ")
}

/// `2350`, `23.5 k`, `2.35 M`.
fn count(n: f64) -> String {
    match n {
        0.0 => "0".to_owned(),
        n if n < 10.0 => format!("{n:.1}"),
        n if n < 10_000.0 => format!("{n:.0}"),
        n if n < 1e6 => format!("{:.1} k", n / 1e3),
        n => format!("{:.2} M", n / 1e6),
    }
}

/// `12:00:05.3` of a time, UTC.
fn clock(at: Time) -> String {
    at.to_string().get(11..21).unwrap_or("--:--:--").to_owned()
}
