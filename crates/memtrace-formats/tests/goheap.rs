//! The heap of `services/heaptruth`, which tells what is true of it.

#![allow(clippy::unwrap_used, clippy::panic)] // that is how a test fails

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use memtrace_formats::goheap::{self, Memory, Process, Region, Unreadable};
use memtrace_model::{HeapGraph, NodeId, Time};
use serde_json::Value;

/// The memory of a process that stands still.
struct Standing(File);

impl Memory for Standing {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        self.0
            .read_exact_at(into, address)
            .map_err(|_| Unreadable { address })
    }
}

/// A running program that is ended with the test.
struct Program {
    child: Child,
    truth: Value,
}

impl Program {
    fn start(program: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        Self {
            truth: serde_json::from_str(&line).unwrap(),
            child,
        }
    }

    /// Reads its heap while it stands still. All goroutines are parked, so that no
    /// registers are needed.
    fn heap(&self, program: &Path) -> (HeapGraph, Vec<String>) {
        let pid = self.child.id();
        let signal = |name: &str| {
            let sent = Command::new("kill").args([name, &pid.to_string()]).status();
            assert!(sent.unwrap().success());
        };
        signal("-STOP");
        let state = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit(") ").next().unwrap().starts_with('T')
        };
        while !state() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let memory = Standing(File::open(format!("/proc/{pid}/mem")).unwrap());
        let (graph, warnings) = goheap::read(&Process {
            executable: &std::fs::read(program).unwrap(),
            memory: &memory,
            regions: &regions(pid),
            threads: &[],
            pid,
            start: 0,
            taken: Time(0),
            monotonic: None,
        })
        .unwrap();
        signal("-CONT");
        (graph, warnings.iter().map(ToString::to_string).collect())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn regions(pid: u32) -> Vec<Region> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    maps.lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let (start, end) = words.next().unwrap().split_once('-').unwrap();
            let rights = words.next().unwrap().as_bytes();
            Region {
                start: number(start),
                end: number(end),
                offset: number(words.next().unwrap()),
                rwx: [rights[0] == b'r', rights[1] == b'w', rights[2] == b'x'],
                file: words.nth(2).unwrap_or_default().to_owned(),
            }
        })
        .collect()
}

/// Builds the program; `None`, with a message, where Go is missing.
fn build(folder: &Path, flags: &[&str]) -> Option<PathBuf> {
    let go = std::env::var_os("MEMTRACE_GO").unwrap_or_else(|| "go".into());
    let program = folder.join("heaptruth");
    let built = Command::new(&go)
        .args(["build", "-o"])
        .arg(&program)
        .args(flags)
        .arg(".")
        .env("CGO_ENABLED", "0")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../services/heaptruth"))
        .output();
    match built {
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{why}");
            Some(program)
        }
        Err(error) => {
            eprintln!("skipped: {go:?}: {error}; set MEMTRACE_GO");
            None
        }
    }
}

/// Nodes that roots lead to.
fn reached(graph: &HeapGraph) -> Vec<bool> {
    let mut seen = vec![false; graph.node_count()];
    let mut open: Vec<NodeId> = (0..graph.roots.len() as u32)
        .map(|r| graph.root_node(r))
        .collect();
    while let Some(node) = open.pop() {
        if !std::mem::replace(&mut seen[node.index()], true) {
            open.extend(graph.targets(node));
        }
    }
    seen
}

type Tally = BTreeMap<String, (u64, u64)>;

/// Objects and bytes of each type, of those that are alive.
fn types(graph: &HeapGraph) -> Tally {
    let seen = reached(graph);
    let mut types = Tally::new();
    for node in (0..graph.object_count() as u32).map(NodeId) {
        if seen[node.index()] {
            let tally = types.entry(graph.name(node).to_owned()).or_default();
            *tally = (tally.0 + 1, tally.1 + graph.size(node));
        }
    }
    types
}

/// Compares what is told with what is found; gives the types that are found, and those that
/// are told.
fn check(program: &Path) -> (Tally, Tally) {
    let args = std::env::var("HEAPARGS").unwrap_or_default();
    let args: Vec<&str> = args.split_whitespace().collect();
    let running = Program::start(program, &args);
    let start = std::time::Instant::now();
    let (graph, warnings) = running.heap(program);
    println!(
        "{} {} warnings {warnings:?}",
        running.truth["go"],
        graph.object_count()
    );
    println!("took {:?}", start.elapsed());
    let found = types(&graph);
    let all: u64 = (0..graph.object_count() as u32)
        .map(|n| graph.size(NodeId(n)))
        .sum();
    let live: u64 = found.values().map(|t| t.1).sum();
    let unknown: u64 = found
        .iter()
        .filter(|(n, _)| n.starts_with('('))
        .map(|(_, t)| t.1)
        .sum();
    println!(
        "alloc {} (told {}), live {live} (told {}), unknown {unknown}",
        all, running.truth["heap_alloc"], running.truth["heap_live"]
    );
    let mut expected = Tally::new();
    let mut add = |types: &Value| {
        for (name, tally) in types.as_object().unwrap() {
            let entry = expected.entry(name.clone()).or_default();
            entry.0 += tally["objects"].as_u64().unwrap();
            entry.1 += tally["bytes"].as_u64().unwrap();
        }
    };
    for structure in running.truth["structures"].as_array().unwrap() {
        add(&structure["types"]);
    }
    add(&running.truth["shared"]);
    add(&running.truth["needed_by_finalizers"]);
    for (name, tally) in &expected {
        let got = found.get(name).copied().unwrap_or_default();
        if got != *tally {
            println!("{name}: {got:?}, expected {tally:?}");
        }
    }
    let mut list: Vec<_> = found.iter().collect();
    list.sort_by_key(|(_, t)| std::cmp::Reverse(t.1));
    for (name, tally) in list.iter().take(60) {
        println!("   {name}: {tally:?}");
    }
    drop(list);
    (found, expected)
}

#[test]
fn everything_is_found() {
    if let Some(program) = std::env::var_os("HEAPTRUTH") {
        check(Path::new(&program));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    if let Some(program) = build(folder.path(), &[]) {
        let (found, expected) = check(&program);
        // Only the frame of a goroutine leads to them.
        assert_eq!(found.get("main.Held"), expected.get("main.Held"));
        assert!(expected.contains_key("main.Held"));
    }
}
