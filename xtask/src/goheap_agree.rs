//! Whether memtrace sees the same objects, of the same types, as its rivals do in one core.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use memtrace_analysis::graph::Dominators;
use memtrace_model::{HeapGraph, HeapKind, NodeId, snapshot};

use crate::tools::Outcome;

/// Bytes of a graph that are read.
const LIMIT: u64 = 8 << 30;

/// Compares a snapshot with what viewcore and goref find in the core of the same moment; in
/// words.
pub(crate) fn agreement(
    snap: &Path,
    core: &Path,
    program: &Path,
    rivals: &Path,
) -> Outcome<String> {
    let mut file = std::fs::File::open(snap).map_err(|e| e.to_string())?;
    let graph = snapshot::read(&mut file, LIMIT).map_err(|e| e.to_string())?;
    let mut text = with_viewcore(&graph, core, program, rivals)?;
    text.push_str(&with_goref(&graph, core, program, rivals)?);
    Ok(text)
}

fn with_viewcore(graph: &HeapGraph, core: &Path, program: &Path, rivals: &Path) -> Outcome<String> {
    let listed = Command::new(rivals.join("viewcore"))
        .arg(core)
        .arg("--exe")
        .arg(program)
        .arg("objects")
        .stderr(Stdio::null())
        .output()
        .map_err(|e| format!("viewcore: {e}"))?;
    let listed = String::from_utf8_lossy(&listed.stdout);
    let mut theirs: HashMap<u64, &str> = listed
        .lines()
        .filter_map(|line| {
            let (address, kind) = line.trim_start().split_once(' ')?;
            Some((u64::from_str_radix(address, 16).ok()?, kind))
        })
        .collect();
    let found = theirs.len();
    let dominators = Dominators::of(graph);
    let (mut both, mut same, mut untyped) = (0u64, 0u64, 0u64);
    let (mut only_ours, mut below_maps) = (0u64, 0u64);
    let mut differ: HashMap<(String, String), u64> = HashMap::new();
    for (i, address) in graph.addresses.iter().enumerate() {
        let node = NodeId(i as u32);
        let live = dominators.is_reachable(node);
        let Some(kind) = theirs.remove(&address) else {
            only_ours += u64::from(live);
            below_maps += u64::from(live && is_below_a_map(graph, &dominators, node));
            continue;
        };
        both += 1;
        let (ours, kind) = (element(graph.name(node)), element(kind));
        if kind.starts_with("unk") {
            untyped += 1;
        } else if ours == kind {
            same += 1;
        } else {
            *differ.entry((ours, kind)).or_default() += 1;
        }
    }
    let mut differ: Vec<_> = differ.into_iter().collect();
    differ.sort_by_key(|(names, count)| (std::cmp::Reverse(*count), names.clone()));
    let mut text = format!(
        "\nviewcore lists {found} objects of memtrace's own core of that moment; {both} of them are memtrace's as well, {} \
         are not. Of those in both, {same} have the same type, {untyped} have none in viewcore, {} differ. {only_ours} live \
         objects are memtrace's alone, {below_maps} of them kept by a map (viewcore does not follow swiss maps).\n",
        theirs.len(),
        differ.iter().map(|d| d.1).sum::<u64>(),
    );
    for ((ours, kind), count) in differ.iter().take(8) {
        let _ = writeln!(text, "- {count} × `{ours}`, in viewcore `{kind}`");
    }
    Ok(text)
}

/// Whether the entries of a map are above it in the dominator tree.
fn is_below_a_map(graph: &HeapGraph, dominators: &Dominators, node: NodeId) -> bool {
    let is_map = |n: &NodeId| {
        let kind = graph
            .types
            .get(n.index())
            .map(|t| graph.heap_types[t.index()].kind);
        matches!(kind, Some(HeapKind::Map | HeapKind::MapPart))
    };
    dominators.path(node).iter().any(is_map)
}

/// A type's name as both write it: of an array that of its elements, of maps Go's.
fn element(name: &str) -> String {
    let mut name = name.trim();
    while let Some((size, rest)) = name.strip_prefix('[').and_then(|n| n.split_once(']')) {
        if !size.chars().all(|c| c.is_ascii_digit() || "+?".contains(c)) {
            break;
        }
        name = rest;
    }
    // What is printed for parts of maps tells the map.
    let name = name.split(" (").next().unwrap_or(name);
    let inner = |prefix: &str| {
        let (key, value) = name
            .strip_prefix(prefix)?
            .strip_suffix('>')?
            .split_once(',')?;
        Some(format!("map[{key}]{value}"))
    };
    for prefix in [
        "map<",
        "table<",
        "*table<",
        "group<",
        "noalg.map.group[",
        "hash<",
        "bucket<",
    ] {
        if let Some(map) = inner(prefix) {
            return map;
        }
    }
    match name {
        "string" | "uint8" | "byte" => "uint8".to_owned(),
        other => other.to_owned(),
    }
}

fn with_goref(graph: &HeapGraph, core: &Path, program: &Path, rivals: &Path) -> Outcome<String> {
    let out = core.with_extension("grf");
    let done = Command::new(rivals.join("grf"))
        .arg("core")
        .arg(program)
        .arg(core)
        .arg("-o")
        .arg(&out)
        .output()
        .map_err(|e| format!("goref: {e}"))?;
    if !done.status.success() || !out.is_file() {
        return Ok("\ngoref could not read the core.\n".to_owned());
    }
    let bytes = std::fs::read(&out).map_err(|e| e.to_string())?;
    let profile = memtrace_formats::pprof::parse(&bytes)
        .map_err(|e| e.to_string())?
        .profile;
    let total = |kind: &str| profile.sample_type(kind).map_or(0, |c| profile.total(c));
    let dominators = Dominators::of(graph);
    let live = dominators
        .reachable()
        .iter()
        .filter(|&&n| graph.size(n) > 0);
    Ok(format!(
        "\ngoref counts {} objects and {} bytes in that core, memtrace {} and {}.\n",
        total("inuse_objects"),
        total("inuse_space"),
        live.count(),
        dominators.reachable_bytes()
    ))
}

#[cfg(test)]
mod tests {
    use super::element;

    #[test]
    fn names_of_both() {
        for (ours, theirs) in [
            ("[]main.Line", "[3]main.Line"),
            ("string", "[14+2?]uint8"),
            ("map[string]int (entries)", "table<string,int>"),
            ("main.Node", "main.Node"),
            ("[]*main.Item", "[5+1?]*main.Item"),
        ] {
            assert_eq!(element(ours), element(theirs));
        }
        assert_ne!(element("main.Item"), element("main.Order"));
    }
}
