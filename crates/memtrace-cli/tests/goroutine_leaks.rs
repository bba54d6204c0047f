//! Goroutine leaks proved from outside, beside what Go's own `goroutineleak` profile finds
//! in the same processes: the programs that the Go project tests that profile with.
//!
//! `MEMTRACE_GO` names the `go` program that builds them. They come with the sources of Go
//! 1.26 and newer; `MEMTRACE_GO_SOURCES` names the `GOROOT` of such a release where the one
//! that builds is older.

#![allow(clippy::unwrap_used, clippy::panic)] // that is how a test fails

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use memtrace_analysis::graph::{GoroutineVerdict, goroutine_leaks};
use memtrace_collect::goproc;
use memtrace_formats::{Warning, goheap};
use memtrace_model::{Goroutine, HeapGraph};
use regex_lite::Regex;
use serde_json::Value;

/// Stands in for `runtime/pprof`: stops before and after the profile is written.
const STOPS: &str = include_str!("fixtures/pprof_with_stops.go.txt");

/// Tries until all expected leaks have been seen: they hang on the scheduler.
const TRIES: usize = 3;
/// The same for those that hang on chance, where there is time.
const FLAKY_TRIES: usize = 11;

/// Programs that run side by side; they mostly wait.
const AT_ONCE: usize = 3;

/// A goroutine as it was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    id: u64,
    /// The function it was started with and what it waits for, as the expected lists have
    /// them: `NilRecv.func1() [chan receive (nil chan)]`.
    place: String,
}

/// One of the programs, and where it leaks.
struct Case {
    name: String,
    leaks: Vec<Regex>,
    /// Whether a leak happens depends on chance.
    is_flaky: bool,
}

/// Times that one of a case's leaks may be hidden.
const HIDDEN: usize = 2;

/// What a run showed.
struct Seen {
    /// From outside, before Go's own profile and after it.
    before: Look,
    after: Look,
    /// What Go found in between, where this release can.
    go: Option<BTreeSet<Found>>,
}

/// A process as it is seen from outside.
struct Look {
    leaked: BTreeSet<Found>,
    /// Of all goroutines, by their numbers.
    stacks: BTreeMap<u64, Vec<(String, u32)>>,
}

#[test]
fn what_go_itself_calls_leaked() {
    let Some(go) = Go::find() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let cases = cases(&go.tests());
    assert!(cases.len() > 80, "{} programs", cases.len());
    let mut wrong = String::new();
    // The profile is an experiment of Go 1.26.
    let experiment = match go.minor {
        26 => "goroutineleakprofile",
        // All were written for loops whose variable is new in each turn.
        21 => "loopvar",
        _ => "",
    };
    for stripped in [false, true] {
        let (flags, experiment) = match stripped {
            false => (&[][..], experiment),
            // As programs are built and shipped.
            true if go.minor == 26 => (&["-ldflags=-s -w"][..], ""),
            true => (&["-ldflags=-s -w"][..], experiment),
        };
        let program = go.build(&dir.path().join(stripped.to_string()), flags, experiment);
        let has_profile = go.minor > 26 || experiment == "goroutineleakprofile";
        let next = AtomicUsize::new(0);
        let faults = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(what) = case.check(&program, go.minor, has_profile) {
                            faults.lock().unwrap().push(what);
                        }
                    }
                });
            }
        });
        for what in faults.into_inner().unwrap() {
            let _ = writeln!(wrong, "Go 1.{}, stripped {stripped}: {what}", go.minor);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// A program that tells of each of its goroutines whether anything can ever wake it.
#[test]
fn healthy_goroutines_are_not_called_leaked() {
    let Some(go) = Go::find() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("heaptruth");
    let services = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../services");
    go.compile(&services.join("heaptruth"), &program, &[], "");
    let mut running = Running::start(&mut Command::new(&program));
    let mut line = String::new();
    running.output.read_line(&mut line).unwrap();
    let truth: Value = serde_json::from_str(&line).unwrap();
    let truth = truth["goroutines"].as_array().unwrap();
    let leaked: BTreeSet<u64> = (truth.iter())
        .filter(|g| g["leaked"].as_bool().unwrap())
        .map(|g| g["id"].as_u64().unwrap())
        .collect();
    assert!(leaked.len() > 5 && leaked.len() < truth.len());
    let found: BTreeSet<u64> = running.look(go.minor).leaked.iter().map(|f| f.id).collect();
    assert_eq!(found, leaked);
}

/// A service with work to do, at any moment.
#[test]
fn a_healthy_service_at_work() {
    let Some(program) = common::cnc() else {
        return;
    };
    let service = common::Service::start(&program, &[]);
    for _ in 0..10 {
        let graph = heap(service.pid());
        let none = BTreeSet::new();
        let all = graph.goroutines.len();
        assert_eq!(leaked(&graph, u32::MAX), none, "of {all} goroutines");
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Case {
    fn check(&self, program: &Path, minor: u32, has_profile: bool) -> Result<(), String> {
        let minutes = std::env::var_os("MEMTRACE_MINUTES").is_some();
        let tries = match self.is_flaky {
            true if minutes => FLAKY_TRIES,
            true => 1,
            false => TRIES,
        };
        let mut missing: Vec<&Regex> = self.leaks.iter().collect();
        let mut counts = Vec::new();
        let mut hidden: Vec<Result<(), String>> = Vec::new();
        for _ in 0..tries {
            let seen = self.run(program, minor, has_profile);
            let (before, after) = (&seen.before.leaked, &seen.after.leaked);
            let known = |found: &Found| self.leaks.iter().any(|l| l.is_match(&found.place));
            if let Some(other) = before.iter().chain(after).find(|f| !known(f)) {
                return Err(format!("{}: not expected: {other:?}", self.name));
            }
            for Found { id, place } in before {
                let (was, is) = (seen.before.stacks.get(id), seen.after.stacks.get(id));
                if was != is {
                    let what = format!("{place} went on from {was:?} to {is:?}");
                    return Err(format!("{}: {what}", self.name));
                }
            }
            // What leaks once leaks for ever: none may be missing from the later set.
            let all_in = |a: &BTreeSet<Found>, b: &BTreeSet<Found>, what: &str| {
                let lost = a.difference(b).next();
                lost.map_or(Ok(()), |f| Err(format!("{}: {what}: {f:?}", self.name)))
            };
            if let Some(go) = &seen.go {
                all_in(before, go, "leaks from outside, not for Go")?;
                hidden.push(all_in(go, after, "leaks for Go, not from outside"));
            }
            // A thread that was stopped amid its work is scanned conservatively, which may hide
            // a leak: silence is no wrong verdict, but it must be rare.
            hidden.push(all_in(before, after, "leaked, then did not"));
            hidden.retain(Result::is_err);
            if hidden.len() > HIDDEN {
                return hidden.remove(0);
            }
            let go = seen.go.as_ref().unwrap_or(after);
            counts.push([before, go, after].map(BTreeSet::len));
            missing.retain(|l| !after.iter().any(|f| l.is_match(&f.place)));
            if missing.is_empty() && !self.leaks.is_empty() {
                break;
            }
        }
        eprintln!(
            "{:<26} {} of {} places{}; goroutines before, for Go, after: {counts:?}",
            self.name,
            self.leaks.len() - missing.len(),
            self.leaks.len(),
            if self.is_flaky { " (by chance)" } else { "" },
        );
        if missing.is_empty() || self.is_flaky {
            Ok(())
        } else {
            let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
            Err(format!("{}: not found: {}", self.name, missing.join(", ")))
        }
    }

    fn run(&self, program: &Path, minor: u32, has_profile: bool) -> Seen {
        let mut command = Command::new(program);
        command.arg(&self.name).env("GODEBUG", "asyncpreemptoff=1");
        if !self.is_flaky {
            command.env("GOMAXPROCS", "1");
        }
        let mut running = Running::start(&mut command);
        running.until("stop before");
        let before = running.look(minor);
        running.go_on();
        let profile = running.until("stop after");
        let after = running.look(minor);
        Seen {
            before,
            after,
            go: has_profile.then(|| {
                let mut leaked = profiled(&profile);
                // Go 1.26 does not except the main goroutine at rest yet.
                leaked.retain(|f| f.id != 1 || !f.place.ends_with("[select (no cases)]"));
                leaked
            }),
        }
    }
}

/// The Go that builds the programs, and the one whose sources have them.
struct Go {
    program: PathBuf,
    minor: u32,
    sources: PathBuf,
}

impl Go {
    fn find() -> Option<Self> {
        let Some(program) = std::env::var_os("MEMTRACE_GO").map(PathBuf::from) else {
            eprintln!("skipped: MEMTRACE_GO is not set");
            return None;
        };
        let env = |name: &str| {
            let output = Command::new(&program).args(["env", name]).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        let version = env("GOVERSION");
        let minor = version.split('.').nth(1).unwrap().parse().unwrap();
        let sources = std::env::var_os("MEMTRACE_GO_SOURCES").map(PathBuf::from);
        let go = Self {
            minor,
            sources: sources.unwrap_or_else(|| env("GOROOT").into()),
            program,
        };
        if !go.programs().exists() {
            eprintln!("skipped: {} has no such programs", go.sources.display());
            return None;
        }
        Some(go)
    }

    fn tests(&self) -> String {
        let path = self
            .sources
            .join("src/runtime/goroutineleakprofile_test.go");
        fs::read_to_string(path).unwrap()
    }

    fn programs(&self) -> PathBuf {
        self.sources
            .join("src/runtime/testdata/testgoroutineleakprofile")
    }

    /// Builds all as one program, with [`STOPS`].
    fn build(&self, folder: &Path, flags: &[&str], experiment: &str) -> PathBuf {
        fs::create_dir_all(folder.join("pprof")).unwrap();
        fs::write(folder.join("pprof/pprof.go"), STOPS).unwrap();
        let module = format!("module leaks\n\ngo 1.{}\n", self.minor);
        fs::write(folder.join("go.mod"), module).unwrap();
        // The second has a main of its own, which does the same.
        for from in [self.programs().join("goker"), self.programs()] {
            for file in fs::read_dir(from).unwrap() {
                let path = file.unwrap().path();
                if path.extension().is_some_and(|e| e == "go") {
                    let source = fs::read_to_string(&path).unwrap();
                    let source = source.replace("\"runtime/pprof\"", "\"leaks/pprof\"");
                    fs::write(folder.join(path.file_name().unwrap()), source).unwrap();
                }
            }
        }
        let program = folder.join("leaks");
        self.compile(folder, &program, flags, experiment);
        program
    }

    fn compile(&self, folder: &Path, program: &Path, flags: &[&str], experiment: &str) {
        let mut command = Command::new(&self.program);
        command
            .args(["build", "-o"])
            .arg(program)
            .args(flags)
            .arg(".")
            .env("GOTOOLCHAIN", "local")
            .env("CGO_ENABLED", "0")
            .env("GOEXPERIMENT", experiment)
            .current_dir(folder);
        let built = command.output().unwrap();
        assert!(
            built.status.success(),
            "{}",
            String::from_utf8_lossy(&built.stderr)
        );
    }
}

/// The programs and their leaks, from Go's own test of them.
fn cases(source: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in source.lines().map(str::trim) {
        if line.starts_with("//") {
            continue;
        }
        let name = ["makeTest(\"", "makeFlakyTest(\""]
            .iter()
            .find_map(|start| line.strip_prefix(start));
        if let Some(name) = name.and_then(|n| n.split('"').next()) {
            cases.push(Case {
                name: name.to_owned(),
                leaks: Vec::new(),
                is_flaky: line.starts_with("makeFlaky"),
            });
        } else if let (Some(leak), Some(case)) = (line.strip_prefix('`'), cases.last_mut()) {
            let leak = leak.split('`').next().unwrap();
            case.leaks.push(Regex::new(leak).unwrap());
        }
    }
    cases
}

/// The goroutines that a profile calls leaked.
fn profiled(text: &str) -> BTreeSet<Found> {
    let header = Regex::new(r"^goroutine (\d+) \[(.*) \(leaked\).*\]:$").unwrap();
    let mut found = BTreeSet::new();
    for part in text.split("\n\n") {
        let lines: Vec<&str> = part.lines().filter(|l| !l.is_empty()).collect();
        let Some(head) = lines.first().and_then(|l| header.captures(l)) else {
            continue;
        };
        // Function, place, then who started it.
        let last = lines.iter().position(|l| l.starts_with("created by "));
        let entry = lines[last.unwrap_or(lines.len()) - 2];
        found.insert(Found {
            id: head[1].parse().unwrap(),
            place: place(entry.rsplit_once('(').unwrap().0, &head[2]),
        });
    }
    found
}

fn place(entry: &str, state: &str) -> String {
    let entry = entry.strip_prefix("main.").unwrap_or(entry);
    format!("{entry}() [{state}]")
}

/// A running program, ended when dropped.
struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// What it prints up to this line.
    fn until(&mut self, end: &str) -> String {
        let mut text = String::new();
        loop {
            let from = text.len();
            let read = self.output.read_line(&mut text).unwrap();
            assert!(read > 0, "it ended before {end:?}: {text}");
            if text[from..].trim_end() == end {
                text.truncate(from);
                return text;
            }
        }
    }

    fn go_on(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    fn look(&self, minor: u32) -> Look {
        let graph = heap(self.child.id());
        Look {
            leaked: leaked(&graph, minor),
            stacks: (graph.goroutines.iter())
                .map(|g| (g.id, stack(&graph, g)))
                .collect(),
        }
    }
}

/// The heap of a process as it is now.
fn heap(pid: u32) -> HeapGraph {
    // Many processes on few cores: a thread may take its time to stop.
    let options = goproc::Options {
        max_pause: Duration::from_secs(10),
        ..goproc::Options::default()
    };
    let frozen = goproc::freeze(pid, &options).unwrap();
    let executable = frozen.executable().unwrap();
    let (graph, warnings) = goheap::read(&goheap::Process {
        executable: &executable,
        memory: &frozen,
        regions: frozen.regions(),
        threads: frozen.threads(),
        pid,
        start: frozen.start_ticks(),
        taken: frozen.taken(),
        monotonic: None,
        with_labels: false,
        max_memory: u64::MAX,
    })
    .unwrap();
    // A thread may be stopped while it changes stacks: that stack is told of, and what it may
    // lead to counts as alive.
    let of_stacks = |w: &Warning| matches!(w, Warning::Heap { what } if what.contains("not followed to their end"));
    assert!(warnings.iter().all(of_stacks), "{warnings:?}");
    graph
}

fn leaked(graph: &HeapGraph, minor: u32) -> BTreeSet<Found> {
    let report = goroutine_leaks(graph);
    let all = graph.goroutines.iter().zip(&report.verdicts);
    all.filter(|(_, verdict)| **verdict == GoroutineVerdict::Leaked)
        .map(|(goroutine, _)| found(graph, goroutine, minor))
        .collect()
}

/// Where a goroutine stands, function and line, the leaf first.
fn stack(graph: &HeapGraph, goroutine: &Goroutine) -> Vec<(String, u32)> {
    (graph.stacks.get(goroutine.stack.0).iter())
        .map(|f| &graph.frames[f.index()])
        .map(|f| (graph.strings.get(f.function).to_owned(), f.line))
        .collect()
}

fn found(graph: &HeapGraph, goroutine: &Goroutine, minor: u32) -> Found {
    let names: Vec<&str> = (graph.stacks.get(goroutine.stack.0).iter())
        .map(|f| graph.strings.get(graph.frames[f.index()].function))
        .collect();
    let entry = names.iter().rfind(|n| **n != "runtime.goexit");
    let mut state = graph.strings.get(goroutine.state);
    // Up to Go 1.23 a wait group had no word of its own.
    if minor <= 23 && state == "semacquire" && names.contains(&"sync.(*WaitGroup).Wait") {
        state = "sync.WaitGroup.Wait";
    }
    Found {
        id: goroutine.id,
        place: place(entry.unwrap(), state),
    }
}
