//! Snapshots of heaps, by the real program: what can be wrong with a file or a target, and
//! the way from a running process to an answer.

#![allow(clippy::panic)] // that is how a test fails

mod common;

use std::path::{Path, PathBuf};

use common::{Service, cnc, run};
use memtrace_model::{EdgeSlot, HeapGraph, HeapKind, HeapType, HeapTypeId, NodeId, Root, Time};
use serde_json::Value;

/// A chain of 40 objects below one variable.
fn graph(pid: u32, taken: i64) -> HeapGraph {
    let mut graph = HeapGraph {
        pid,
        taken: Time(taken),
        ..HeapGraph::default()
    };
    let name = graph.strings.intern("main.Node");
    let fields = graph.fields.intern(&[]).expect("one list");
    graph.heap_types.push(HeapType {
        name,
        kind: HeapKind::Value,
        fields,
        ..HeapType::default()
    });
    for n in 0..40u32 {
        graph.addresses.push(0xc000_0000_0000 + u64::from(n) * 64);
        graph.words.push(8);
        graph.types.push(HeapTypeId(0));
        graph.survived.push(true);
        graph.edge_starts.push(n);
        if n < 39 {
            graph.edges.push(NodeId(n + 1));
        }
    }
    let name = graph.strings.intern("main.list");
    graph.roots.push(Root {
        name,
        ..Root::default()
    });
    graph.edge_starts.push(39);
    graph.edges.push(NodeId(0));
    graph.edge_starts.push(40);
    graph.edge_slots = (0..40).map(|_| EdgeSlot::default()).collect();
    assert_eq!(graph.check(), Ok(()));
    graph
}

fn snapshot(folder: &Path, name: &str, graph: &HeapGraph) -> (PathBuf, Vec<u8>) {
    let mut bytes = Vec::new();
    memtrace_model::snapshot::write(graph, &mut bytes, &mut |_| ()).expect("memory takes it");
    let path = folder.join(name);
    std::fs::write(&path, &bytes).expect("a file");
    (path, bytes)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// One line on stderr that holds `says`, this exit code, and nothing on stdout.
fn refused(args: &[&str], code: i32, says: &str) {
    let output = run(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
    assert_eq!(error.trim_end().lines().count(), 1, "{args:?}: {error}");
    assert!(
        error.starts_with("memtrace: ") && error.contains(says),
        "{args:?}: {says:?} not in {error:?}"
    );
    assert!(output.stdout.is_empty(), "{args:?}");
}

fn document(args: &[&str]) -> Value {
    let output = run(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {error}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn files_that_are_no_snapshots() {
    let folder = tempfile::tempdir().expect("a folder");
    let (whole, bytes) = snapshot(folder.path(), "whole.mtsnap", &graph(7, 1));
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        text(&path).to_owned()
    };
    let half = file("half.mtsnap", &bytes[..bytes.len() / 2]);
    let empty = file("empty.mtsnap", b"");
    let other = file("other.mtsnap", b"a shopping list\n");
    let elf = file("program", b"\x7fELF\x02\x01\x01 and no more");
    let missing = text(&folder.path().join("missing.mtsnap")).to_owned();
    for verb in [&["report"][..], &["why", "--type", "main.Node"]] {
        let with = |file: &str, says: &str| {
            let mut args = verb.to_vec();
            args.push(file);
            refused(&args, 1, says);
        };
        with(&half, "cut off");
        with(&empty, "empty.mtsnap");
        with(&other, "not a memtrace snapshot");
        with(&missing, "missing.mtsnap");
        with(&elf, "program");
    }
    refused(&["survivors", text(&whole), &half], 1, "cut off");
    refused(&["diff", text(&whole), &half], 1, "cut off");
    refused(&["snapshot", &other], 1, "other.mtsnap");
}

#[test]
fn questions_that_cannot_be() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, _) = snapshot(folder.path(), "1.mtsnap", &graph(7, 1));
    let (two, _) = snapshot(folder.path(), "2.mtsnap", &graph(7, 2));
    let (other, _) = snapshot(folder.path(), "3.mtsnap", &graph(8, 3));
    let (one, two, other) = (text(&one), text(&two), text(&other));
    refused(
        &["why", one, "--type", "main.Nothing"],
        1,
        "no object has a type",
    );
    refused(
        &["why", one, "--object", "0x10"],
        1,
        "no object of the heap is at 0x10",
    );
    refused(&["why", one, "--stack", "("], 2, "--stack");
    refused(&["why", one, "--stack", "main"], 1, "allocation stack");
    refused(&["survivors", two, one], 2, "oldest first");
    refused(&["survivors", one, other], 2, "another process");
    refused(&["diff", one, two, "--lines"], 2, "for profiles");
    refused(&["snapshot", "4194305"], 3, "no process with pid 4194305");
    // Neither of three questions, and two at once.
    for wrong in [
        &["why", one][..],
        &["why", one, "--type", "T", "--object", "1"],
    ] {
        assert_eq!(run(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn answers() {
    let folder = tempfile::tempdir().expect("a folder");
    let (one, _) = snapshot(folder.path(), "1.mtsnap", &graph(7, 1));
    let (two, _) = snapshot(folder.path(), "2.mtsnap", &graph(7, 2));
    let page = folder.path().join("page.html");
    let report = document(&["report", text(&one), "--json", "--html", text(&page)]);
    assert_eq!(report["schema"], "memtrace.heap/1");
    assert_eq!(report["types"][0]["retained"], 40 * 64);
    assert_eq!(report["roots"][0]["name"], "global main.list");
    let page = std::fs::read_to_string(page).expect("the page");
    assert!(page.contains("main.list") && page.ends_with("</html>\n"));
    let why = document(&["why", text(&one), "--json", "--object", "0xc000000000c8"]);
    assert_eq!(why["retained"], 37 * 64);
    let diff = document(&["diff", text(&one), text(&two), "--json"]);
    assert_eq!(diff["total"]["kept"]["objects"], 40);
    let survivors = document(&["survivors", text(&one), text(&two), "--json"]);
    assert_eq!(survivors["cycles"], 2);
}

#[test]
fn a_running_service() {
    let Some(program) = cnc() else { return };
    let service = Service::start(&program, &["-load", "50"]);
    let pid = service.pid().to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("cnc.mtsnap");
    let taken = document(&["snapshot", &pid, "-o", text(&file), "--json"]);
    assert_eq!(taken["pid"], service.pid());
    assert!(
        taken["pause_ms"].as_f64().is_some_and(|ms| ms > 0.0),
        "{taken}"
    );
    // What the last collection marked has hardly gone since.
    let marked = taken["totals"]["heap_marked"].as_f64().expect("a number");
    let live = taken["totals"]["bytes"].as_f64().expect("a number");
    assert!(marked > 1e5 && live > 0.7 * marked, "{taken}");
    assert!(
        taken["totals"]["known_share"].as_f64() > Some(0.9),
        "{taken}"
    );
    let report = document(&["report", text(&file), "--json"]);
    assert_eq!(report["totals"]["objects"], taken["totals"]["objects"]);
    // The service goes on.
    assert!(!service.get("/truth").is_empty());
}
