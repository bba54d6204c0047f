//! `memtrace diff`: what grew between two profiles, as numbers and as pictures.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use inferno::flamegraph;
use memtrace_analysis::top::{Top, diff};
use memtrace_formats::folded;
use memtrace_model::{Profile, visible};

use crate::args::DiffArgs;
use crate::convert::write;
use crate::failure::Failure;
use crate::units::bytes;
use crate::{heap, heap_diff, source, top};

pub(crate) fn run(args: &DiffArgs) -> Result<(), Failure> {
    if [&args.old, &args.new].map(|f| heap::is_snapshot(Path::new(f))) != [false; 2] {
        return heap_diff::run(args);
    }
    let old = source::profile(&args.old, &args.access)?;
    let new = source::profile(&args.new, &args.access)?;
    let wanted = args.view.sample_type.as_deref();
    let column = source::sample_type(&new, wanted)?;
    let kind = new.text(new.sample_types[column].kind).to_owned();
    let old_column = source::sample_type(&old, Some(&kind))?;
    let (before, after) = (old.total(old_column), new.total(column));
    let mut table = diff(&new, &old, column, top::granularity(&args.view)).ok_or_else(|| {
        Failure::Failed(format!("{kind} has different units in the two profiles"))
    })?;
    if let Some(min) = args.min {
        table
            .rows
            .retain(|r| r.flat.unsigned_abs().max(r.cum.unsigned_abs()) >= min);
    }
    if let Some(path) = &args.svg {
        write(path, &differential(&old, old_column, &new, column, &kind)?)?;
    }
    if let Some(path) = &args.html {
        let picture = differential(&old, old_column, &new, column, &kind)?;
        write(
            path,
            html(&table, &kind, &picture, args, [before, after]).as_bytes(),
        )?;
    }
    top::print(&new, column, table, &args.view, Some([before, after]))
}

/// A flame graph (SVG) of one column.
pub(crate) fn flame_graph(profile: &Profile, column: usize) -> Result<Vec<u8>, Failure> {
    let lines = folded::write(profile, column);
    draw(
        &lines,
        profile.text(profile.sample_types[column].kind),
        profile.text(profile.sample_types[column].unit),
    )
}

/// A differential flame graph (SVG): widths as in `new`, red where it grew.
fn differential(
    old: &Profile,
    old_column: usize,
    new: &Profile,
    column: usize,
    kind: &str,
) -> Result<Vec<u8>, Failure> {
    let mut stacks: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    let (before, after) = (folded::write(old, old_column), folded::write(new, column));
    for (stack, value) in before.lines().filter_map(split) {
        stacks.entry(stack.to_owned()).or_default().0 += value;
    }
    for (stack, value) in after.lines().filter_map(split) {
        stacks.entry(stack.to_owned()).or_default().1 += value;
    }
    let mut lines = String::new();
    for (stack, (a, b)) in &stacks {
        // Widths cannot be negative; a freed stack is drawn with what it has left.
        let _ = writeln!(lines, "{stack} {} {}", (*a).max(0), (*b).max(0));
    }
    draw(
        &lines,
        &format!("{kind}: growth is red"),
        new.text(new.sample_types[column].unit),
    )
}

fn split(line: &str) -> Option<(&str, i64)> {
    let (stack, value) = line.rsplit_once(' ')?;
    Some((stack, value.parse().ok()?))
}

/// A flame graph (SVG) of folded stacks.
pub(crate) fn draw(lines: &str, title: &str, unit: &str) -> Result<Vec<u8>, Failure> {
    let mut options = flamegraph::Options::default();
    options.title = visible(title).into_owned();
    options.count_name = visible(unit).into_owned();
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, lines.lines(), &mut svg)
        .map_err(|error| Failure::failed("drawing the flame graph", error))?;
    Ok(svg)
}

/// One file: the numbers and the picture, no other resource.
fn html(
    table: &Top,
    kind: &str,
    picture: &[u8],
    args: &DiffArgs,
    [before, after]: [i64; 2],
) -> String {
    let mut rows = String::new();
    for row in table.rows.iter().take(500) {
        let _ = writeln!(
            rows,
            "<tr><td>{}</td><td>{}</td><td class=name>{}</td></tr>",
            signed(row.flat),
            signed(row.cum),
            escape(&row.name)
        );
    }
    let kind = escape(kind);
    let body = format!(
        "<h1>What grew: {kind}</h1>\n<p>{old} → {new}: {before} → {after} ({grown})</p>\n\
         <iframe title=\"differential flame graph\" src=\"data:image/svg+xml,{picture}\"></iframe>\n\
         <table><tr><th>flat<th>cum<th class=name>function</tr>\n{rows}</table>",
        old = escape(&args.old),
        new = escape(&args.new),
        before = bytes(before as f64),
        after = bytes(after as f64),
        grown = signed(after - before),
        picture = percent(picture),
    );
    page("memtrace diff", &body)
}

/// A page that needs no other resource.
pub(crate) fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8><title>{title}</title>\n<style>\n\
         body{{font:14px/1.45 system-ui,sans-serif;margin:2rem;max-width:1280px;color:#222}}\n\
         table{{border-collapse:collapse}}td,th{{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}}\n\
         .name{{text-align:left;font-family:monospace}}iframe{{width:100%;height:640px;border:1px solid #ddd}}\n\
         </style>\n{body}</html>\n"
    )
}

fn signed(n: i64) -> String {
    format!("{}{}", if n > 0 { "+" } else { "" }, bytes(n as f64))
}

/// Text from outside as a part of a page.
pub(crate) fn escape(text: &str) -> String {
    visible(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// As the data part of a URL.
pub(crate) fn percent(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for &b in bytes {
        if b.is_ascii_alphanumeric() || b"-_.~ ;:,=/()".contains(&b) {
            out.push(b as char);
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}
