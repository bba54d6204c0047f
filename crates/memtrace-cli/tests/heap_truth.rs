//! `services/heaptruth` tells what is true of its heap; the real program looks at it from
//! outside and must find the same.
//!
//! By hand: `HEAPTRUTH=program cargo test -p memtrace-cli --test heap_truth` checks a program
//! that was built elsewhere, `HEAPTRUTH_STRIPPED=program` one without symbols.

#![allow(clippy::panic)] // that is how a test fails

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use memtrace_analysis::graph::{Dominators, GoroutineVerdict, goroutine_leaks};
use memtrace_model::{HeapGraph, HeapKind, NodeId, RootKind, snapshot};
use serde_json::Value;

/// Objects and bytes.
type Tally = (u64, u64);

/// A running heaptruth, ended when dropped, and what it says of itself.
struct Program {
    child: Child,
    truth: Value,
}

impl Program {
    fn start(program: &Path) -> Self {
        let mut child = Command::new(program)
            .args(["-scale", "12"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("heaptruth starts");
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("its stdout"));
        output.read_line(&mut line).expect("its truth");
        Self {
            truth: serde_json::from_str(&line).expect("its truth is JSON"),
            child,
        }
    }

    /// Its heap, by `memtrace snapshot`; and what that says of it.
    fn heap(&self) -> (HeapGraph, Value) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("heap.mtsnap");
        let output = Command::new(env!("CARGO_BIN_EXE_memtrace"))
            .args(["snapshot", &self.child.id().to_string(), "--json", "-o"])
            .arg(&file)
            .output()
            .expect("memtrace starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        assert!(!errors.contains("warning"), "{errors}");
        let says = serde_json::from_slice(&output.stdout).expect("JSON");
        let file = std::fs::File::open(file).expect("a snapshot");
        let graph = snapshot::read(&mut BufReader::new(file), 1 << 30);
        (graph.expect("a snapshot that can be read"), says)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Builds the program; `None`, with a message, where Go is missing.
fn build(folder: &Path, cgo: bool, flags: &[&str]) -> Option<PathBuf> {
    let go = std::env::var_os("MEMTRACE_GO").unwrap_or_else(|| "go".into());
    let program = folder.join("heaptruth");
    let built = Command::new(&go)
        .args(["build", "-o"])
        .arg(&program)
        .args(flags)
        .arg(".")
        .env("CGO_ENABLED", if cgo { "1" } else { "0" })
        .env("GOTOOLCHAIN", "local")
        .env("GOFLAGS", "-mod=mod")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../services/heaptruth"))
        .output();
    match built {
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            if cgo && ["C compiler", "asan"].iter().any(|w| why.contains(w)) {
                eprintln!("skipped: {why}");
                return None;
            }
            assert!(output.status.success(), "{why}");
            Some(program)
        }
        Err(error) => {
            eprintln!("skipped: {go:?}: {error}; set MEMTRACE_GO");
            None
        }
    }
}

/// The program named by a variable, or one that is built with these flags. `None` where the
/// other variable asks for the other test only.
fn program(folder: &Path, given: &str, other: &str, flags: &[&str]) -> Option<PathBuf> {
    match (std::env::var_os(given), std::env::var_os(other)) {
        (Some(program), _) => Some(program.into()),
        (None, Some(_)) => None,
        (None, None) => build(folder, false, flags),
    }
}

/// What is found, beside what is true. Everything that differs is kept, so that one run
/// tells all.
struct Check {
    graph: HeapGraph,
    tree: Dominators,
    truth: Value,
    stripped: bool,
    wrong: Vec<String>,
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value}"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value}"))
}

fn address(value: &Value) -> u64 {
    let digits = text(value).strip_prefix("0x").expect("an address");
    u64::from_str_radix(digits, 16).expect("an address")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn tally(value: &Value) -> Tally {
    (number(&value["objects"]), number(&value["bytes"]))
}

fn tallies(value: &Value) -> BTreeMap<String, Tally> {
    let types = value.as_object().into_iter().flatten();
    types.map(|(n, t)| (n.clone(), tally(t))).collect()
}

impl Check {
    fn of(program: &Path, stripped: bool) -> (Self, Value) {
        let running = Program::start(program);
        let (graph, says) = running.heap();
        let check = Self {
            tree: Dominators::of(&graph),
            graph,
            truth: running.truth.clone(),
            stripped,
            wrong: Vec::new(),
        };
        (check, says)
    }

    fn expect<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, found: T, truth: T) {
        if found != truth {
            self.wrong
                .push(format!("{what}: {found:?}, in truth {truth:?}"));
        }
    }

    /// The name under which heaptruth counts an object: what a map, a channel or a pool
    /// allocates for itself is under the name of its type, and a closure has the name of its
    /// function.
    fn counts_as(&self, node: NodeId) -> String {
        let name = self.graph.name(node);
        let kind = self.graph.heap_types[self.graph.types[node.index()].index()].kind;
        let name = match kind {
            HeapKind::MapPart => name.rsplit_once(" (").map_or(name, |(map, _)| map),
            HeapKind::Closure => name.strip_prefix("func ").unwrap_or(name),
            _ => name,
        };
        match name {
            // Values with pointers are kept beside the channel.
            "[]*main.Job" => "chan *main.Job",
            "sync.poolLocal" | "[]sync.poolLocal" | "sync.poolChainElt" | "[]sync.eface" => {
                "sync.Pool"
            }
            name => name,
        }
        .to_owned()
    }

    /// Objects and bytes by type of what a node keeps.
    fn kept(&self, node: NodeId) -> BTreeMap<String, Tally> {
        let mut types = BTreeMap::<String, Tally>::new();
        for &node in self.tree.subtree(node) {
            if self.graph.root(node).is_none() {
                let tally = types.entry(self.counts_as(node)).or_default();
                *tally = (tally.0 + 1, tally.1 + self.graph.size(node));
            }
        }
        types
    }

    /// The root that keeps what a structure is made of, by its name; without symbols by what
    /// it leads to.
    fn root_of(&mut self, structure: &Value) -> Option<NodeId> {
        let name = text(&structure["root"]);
        let graph = &self.graph;
        let (kind, name) = match name {
            "main.holdList" => (RootKind::Goroutine, Some(name)),
            _ => (RootKind::Global, (!self.stripped).then_some(name)),
        };
        let is = |r: u32| {
            let root = &graph.roots[r as usize];
            root.kind == kind && name.is_none_or(|n| graph.strings.get(root.name) == n)
        };
        let first = structure["first"].as_str().filter(|f| !f.is_empty());
        let first = match first {
            Some(_) => address(&structure["first"]),
            None => address(&structure["markers"]["content"]),
        };
        let node = graph.object_at(first)?;
        let root = *self.tree.path(node).first()?;
        let number = (0..graph.roots.len() as u32).find(|&r| graph.root_node(r) == root)?;
        is(number).then_some(root)
    }

    fn structures(&mut self) {
        for structure in list(&self.truth["structures"]).to_vec() {
            let name = text(&structure["root"]).to_owned();
            let Some(root) = self.root_of(&structure) else {
                self.wrong
                    .push(format!("{name}: nothing with this name keeps it"));
                continue;
            };
            self.expect(
                &format!("{name} retains"),
                self.tree.retained(root),
                number(&structure["retained"]),
            );
            let mut types = self.kept(root);
            // Only the variable of a function leads there: without debug information nothing
            // tells its type.
            if self.stripped
                && let Some(held) = types.remove("(32 bytes with pointers)")
            {
                types.insert("main.Held".to_owned(), held);
            }
            self.expect(
                &format!("{name} types"),
                types,
                tallies(&structure["types"]),
            );
        }
    }

    /// What the program knows the address of is an object that lives, of the type that it
    /// has there.
    fn markers(&mut self) {
        for structure in list(&self.truth["structures"]).to_vec() {
            let markers = structure["markers"].as_object().into_iter().flatten();
            let first = structure.get("first").map(|a| ("first", a));
            let all = markers.map(|(n, a)| (n.as_str(), a)).chain(first);
            for (name, at) in all.filter(|(_, a)| !text(a).is_empty()) {
                let what = format!("{} at {at}, {name}", text(&structure["name"]));
                let node = self.graph.object_at(address(at));
                let lives = node.is_some_and(|n| self.tree.is_reachable(n));
                self.expect(&what, lives, true);
            }
        }
    }

    /// How full maps and channels are.
    fn uses(&mut self) {
        for structure in list(&self.truth["structures"]).to_vec() {
            let (Some(used), Some(peak)) = (structure["used"].as_u64(), structure["peak"].as_u64())
            else {
                continue;
            };
            let name = text(&structure["root"]).to_owned();
            let node = self.graph.object_at(address(&structure["first"]));
            let map = self
                .graph
                .maps
                .iter()
                .find(|m| Some(m.node) == node)
                .copied();
            let channel = (self.graph.channels.iter()).find(|c| Some(c.node) == node);
            if let Some(channel) = channel.copied() {
                self.expect(&name, (channel.used, channel.capacity), (used, peak));
            } else if let Some(map) = map {
                self.expect(&name, map.used, used);
                // A map doubles.
                let fits = (peak..=4 * peak).contains(&map.capacity);
                self.expect(&format!("{name}, {map:?} has room for {peak}"), fits, true);
            } else {
                self.wrong.push(format!("{name}: neither map nor channel"));
            }
        }
    }

    fn goroutines(&mut self) {
        let report = goroutine_leaks(&self.graph);
        for truth in list(&self.truth["goroutines"]).to_vec() {
            let id = number(&truth["id"]);
            let name = text(&truth["function"]).to_owned();
            let found = self.graph.goroutines.iter().position(|g| g.id == id);
            let Some(found) = found else {
                self.wrong.push(format!("{name}: no goroutine {id}"));
                continue;
            };
            let goroutine = self.graph.goroutines[found].clone();
            // It may have been started with a function of the compiler that calls it.
            let graph = &self.graph;
            let stack = graph.stacks.get(goroutine.stack.0).iter();
            let runs = stack
                .map(|f| graph.strings.get(graph.frames[f.index()].function))
                .any(|f| f == name);
            self.expect(&format!("{name} runs"), runs, true);
            let leaked = report.verdicts[found] == GoroutineVerdict::Leaked;
            self.expect(
                &format!("{name} leaks"),
                Some(leaked),
                truth["leaked"].as_bool(),
            );
            let state = self.graph.strings.get(goroutine.state).to_owned();
            self.expect(&format!("{name} state"), &*state, text(&truth["state"]));
            // The runtime's note of who waits for a condition hangs off the condition (Go 1.21
            // to 1.24); heaptruth cannot see it.
            let root = self.graph.root_node(goroutine.root);
            let notes = self.kept(root).get("runtime.sudog").map_or(0, |t| t.1);
            self.expect(
                &format!("{name} retains"),
                self.tree.retained(root) - notes,
                number(&truth["retains"]),
            );
            if truth["waits_on"].is_string() {
                let on = self.graph.object_at(address(&truth["waits_on"]));
                let waits = on.is_some_and(|on| goroutine.waits_on.contains(&on));
                self.expect(
                    &format!("{name} waits on {:?}", goroutine.waits_on),
                    waits,
                    true,
                );
            }
        }
    }

    /// All that lives and all that is dead, beside what the runtime said of itself. Returns
    /// the figures in words.
    fn totals(&mut self, says: &Value) -> String {
        let (mut live, mut dead, mut known, mut dead_ones) = ((0, 0), (0, 0), 0, 0);
        let graph = &self.graph;
        for node in (0..graph.object_count() as u32).map(NodeId) {
            let size = graph.size(node);
            let sum: &mut Tally = if self.tree.is_reachable(node) {
                let kind = graph.heap_types[graph.types[node.index()].index()].kind;
                known += if kind == HeapKind::Unknown { 0 } else { size };
                &mut live
            } else {
                dead_ones += u64::from(graph.name(node) == "main.Dead");
                &mut dead
            };
            *sum = (sum.0 + 1, sum.1 + size);
        }
        let truth = self.truth.clone();
        let gone = tally(&truth["dead"]["main.Dead"]);
        self.expect("dead objects of main.Dead", dead_ones, gone.0);
        // Beside them, a note of the runtime about who waited for what.
        let few = |more: u64| more <= 2;
        let more = dead.0.checked_sub(gone.0).is_some_and(few);
        self.expect(&format!("{dead:?} dead, {gone:?}"), more, true);
        let known = known as f64 / live.1 as f64;
        self.expect(&format!("{known} of live bytes typed"), known > 0.9, true);
        // The program's own numbers are those of a moment before: what threads that start
        // since take is not in them.
        let off = |found: u64, told: &Value| found as f64 / number(told) as f64 - 1.0;
        let (objects, bytes) = (
            off(live.0, &truth["live_objects"]),
            off(live.1, &truth["heap_live"]),
        );
        let agree = objects.abs() < 0.01 && bytes.abs() < 0.01;
        self.expect(
            &format!("live {live:?}, off by {objects}, {bytes}"),
            agree,
            true,
        );
        let all = off(live.1 + dead.1, &truth["heap_alloc"]);
        self.expect(&format!("all off by {all}"), all.abs() < 0.01, true);
        // What the runtime's own counters say at the moment of the snapshot is exact.
        let counted = self.graph.totals.heap_alloc;
        self.expect("the runtime's counters", counted, Some(live.1 + dead.1));
        // The collections before the last line of the program, and none since.
        self.expect("collections", self.graph.collections > 2, true);
        let marked = self.graph.totals.heap_marked.unwrap_or(0) as f64;
        let agree = (marked / live.1 as f64 - 1.0).abs() < 0.02;
        self.expect(&format!("the last collection marked {marked}"), agree, true);
        format!(
            "known {:.1} %, live {:+.2} %, all {:+.2} %, {} ms",
            100.0 * known,
            100.0 * bytes,
            100.0 * all,
            says["pause_ms"]
        )
    }
}

fn check(program: &Path, stripped: bool) {
    let (mut check, says) = Check::of(program, stripped);
    check.structures();
    check.markers();
    check.uses();
    check.goroutines();
    let figures = check.totals(&says);
    assert!(
        check.wrong.is_empty(),
        "{} {}: {figures}\n{}",
        check.truth["go"],
        program.display(),
        check.wrong.join("\n")
    );
    println!("heaptruth: {figures}");
}

#[test]
fn with_symbols() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path(), "HEAPTRUTH", "HEAPTRUTH_STRIPPED", &[]);
    if let Some(program) = program {
        check(&program, false);
    }
}

#[test]
fn stripped() {
    let folder = tempfile::tempdir().expect("a folder");
    let flags = ["-ldflags=-s -w"];
    let program = program(folder.path(), "HEAPTRUTH_STRIPPED", "HEAPTRUTH", &flags);
    if let Some(program) = program {
        check(&program, true);
    }
}

/// Behind each object is a red zone, so that it stands in a place of another size.
#[test]
fn with_red_zones() {
    for flags in [&["-asan"][..], &["-asan", "-ldflags=-s -w"]] {
        let folder = tempfile::tempdir().expect("a folder");
        let given = ["HEAPTRUTH", "HEAPTRUTH_STRIPPED"];
        if given.iter().any(|name| std::env::var_os(name).is_some()) {
            return;
        }
        let Some(program) = build(folder.path(), true, flags) else {
            continue;
        };
        if flags.len() == 1 {
            check(&program, false);
            continue;
        }
        // What a stripped program's code tells of types is hidden among the checks that the
        // compiler puts in: channels, mainly.
        let (_, says) = Check::of(&program, true);
        let known = says["totals"]["known_share"].as_f64();
        assert!(known > Some(0.98), "{known:?}");
    }
}
