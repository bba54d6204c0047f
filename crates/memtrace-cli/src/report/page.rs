//! The report as one page: no other resource, nothing sent anywhere, works from a file.

use std::fmt::Write as _;

use memtrace_model::visible;
use serde_json::{Value, json};

use super::{Report, text};
use crate::diff::escape;
use crate::heap;
use crate::units::{bytes, count};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Rows of a table at most.
const MOST_ROWS: usize = 2000;
/// Suspects of a kind at most.
const MOST_BLOCKS: usize = 50;

pub(super) fn page(report: &Report<'_>) -> String {
    let graph = report.heap.graph;
    let tree: Vec<_> = (report.tree().nodes.iter())
        .map(|n| {
            json!({
                "name": n.name, "field": n.field, "nodes": n.nodes, "bytes": n.bytes,
                "retained": n.retained, "rest": n.rest,
                "children": [n.children.start, n.children.end],
            })
        })
        .collect();
    let mut data = json!({
        "tree": tree, "types": report.types_json(MOST_ROWS), "roots": report.roots_json(MOST_ROWS),
        "goroutines": report.goroutines_json(MOST_ROWS),
    });
    heap::merge(&mut data, heap::origin_json(graph));
    // Within a script element only `<` could end it or begin something else.
    show(&mut data);
    let data = data.to_string().replace('<', "\\u003c");
    let mut body = format!("<h1>Heap of {}</h1>\n", escape(&heap::origin(graph)));
    for line in heap::sums_in_words(graph, &report.sums) {
        let _ = writeln!(body, "<p>{}</p>", escape(&line));
    }
    body.push_str(
        "<noscript><p>The tables and the tree below need JavaScript; it is part of this file.</p></noscript>\n\
         <h2>What retains the memory</h2>\n\
         <p class=quiet>Dominators: each thing with what would be garbage without it. Objects of one type behind one \
         field are one row.</p>\n<ul class=tree id=tree></ul>\n",
    );
    piles(report, &mut body);
    maps(report, &mut body);
    pools(report, &mut body);
    body.push_str(
        "<h2>Types</h2>\n<input id=types-filter type=search placeholder=\"part of a name\" aria-label=\"filter types\">\n\
         <table id=types></table>\n<h2>Roots</h2>\n<table id=roots></table>\n",
    );
    if !report.suspects.goroutines.groups.is_empty() {
        body.push_str("<h2>Goroutines</h2>\n<table id=goroutines></table>\n");
    }
    format!(
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'\">\n<title>memtrace report: {title}</title>\n<style>\n{STYLE}</style></head>\n<body>\n\
         {body}<script type=\"application/json\" id=data>{data}</script>\n<script>\n{SCRIPT}</script>\n</body></html>\n",
        title = escape(graph.strings.get(graph.program)),
    )
}

/// One below the other.
fn each_escaped(lines: &[String]) -> String {
    let lines: Vec<String> = lines.iter().map(|l| escape(l)).collect();
    lines.join("\n")
}

/// The script of the page shows all texts of its data as they are.
fn show(data: &mut Value) {
    match data {
        Value::String(text) => *text = visible(text).into_owned(),
        Value::Array(list) => list.iter_mut().for_each(show),
        Value::Object(fields) => fields.values_mut().for_each(show),
        _ => {}
    }
}

fn piles(report: &Report<'_>, body: &mut String) {
    let graph = report.heap.graph;
    for (i, pile) in report.piles().take(MOST_BLOCKS).enumerate() {
        if i == 0 {
            body.push_str("<h2>Where it piles up</h2>\n");
        }
        let _ = writeln!(
            body,
            "<p><b>{}</b> at <span class=name>{}</span> {}</p>\n<pre>{}</pre>",
            bytes(pile.here as f64),
            escape(graph.name(pile.at)),
            escape(&text::members(report, &pile.members)),
            each_escaped(&pile.path.words(graph))
        );
    }
}

fn maps(report: &Report<'_>, body: &mut String) {
    for (i, m) in report.suspects.maps.iter().take(MOST_BLOCKS).enumerate() {
        if i == 0 {
            body.push_str("<h2>Maps with much empty room</h2>\n");
        }
        let path = m.path.as_ref().map(|p| p.words(report.heap.graph));
        let _ = writeln!(
            body,
            "<p><b>{}</b> wasted, {} of {} entries used</p>\n<pre>{}</pre>",
            bytes(m.wasted as f64),
            count(m.map.used),
            count(m.map.capacity),
            each_escaped(&path.unwrap_or_default())
        );
    }
}

fn pools(report: &Report<'_>, body: &mut String) {
    for (i, pool) in report.suspects.pools.iter().take(MOST_BLOCKS).enumerate() {
        if i == 0 {
            body.push_str("<h2>What lies in pools</h2>\n");
        }
        let _ = writeln!(
            body,
            "<p><b>{}</b> {}</p>\n<pre>{}</pre>",
            bytes(pool.retained as f64),
            escape(&text::members(report, &pool.members)),
            each_escaped(&pool.path.words(report.heap.graph))
        );
    }
}
