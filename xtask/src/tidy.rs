//! Rules of the house that a compiler does not check.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::tools::{Outcome, cargo, output, root};

/// Who may depend on whom inside the workspace: the list is complete.
const ARROWS: &[(&str, &[&str])] = &[
    ("statkit", &[]),
    ("memtrace-model", &[]),
    ("memtrace-formats", &["memtrace-model"]),
    ("memtrace-analysis", &["memtrace-model", "statkit"]),
    ("memtrace-store", &["memtrace-model"]),
    ("memtrace-collect", &["memtrace-formats", "memtrace-model"]),
    (
        "memtrace-watch",
        &[
            "memtrace-analysis",
            "memtrace-collect",
            "memtrace-formats",
            "memtrace-model",
            "memtrace-store",
        ],
    ),
];

/// These may use everything.
const FREE: &[&str] = &["memtrace-cli", "xtask"];

/// A file above this many lines of non-test code says why in its head comment.
const LONG_FILE: usize = 1000;

/// Checks the arrows between crates and the length of files.
pub(crate) fn run() -> Outcome {
    let mut faults = arrows()?;
    faults.extend(long_files()?);
    if faults.is_empty() {
        println!("tidy: ok");
        return Ok(());
    }
    Err(format!("tidy:\n  {}", faults.join("\n  ")))
}

fn arrows() -> Outcome<Vec<String>> {
    let json = output(cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: Value =
        serde_json::from_str(&json).map_err(|e| format!("cargo metadata: {e}"))?;
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    let names: Vec<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let mut faults = Vec::new();
    for package in &packages {
        let name = package["name"].as_str().unwrap_or_default();
        if FREE.contains(&name) {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(n, _)| *n == name) else {
            faults.push(format!(
                "{name}: not in the list of arrows (xtask/src/tidy.rs)"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            // A test may look at more of the house than the crate it tests.
            let for_tests = dependency["kind"].as_str() == Some("dev");
            if names.contains(&to) && !for_tests && !allowed.contains(&to) {
                faults.push(format!("{name} → {to}: not an allowed arrow"));
            }
        }
    }
    Ok(faults)
}

fn long_files() -> Outcome<Vec<String>> {
    let listed = output(Command::new("git").current_dir(root()).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "*.rs",
        "*.go",
        "*.ts",
    ]))?;
    let mut faults = Vec::new();
    for file in listed.lines() {
        let path = Path::new(file);
        let is_test =
            path.components().any(|c| c.as_os_str() == "tests") || file.ends_with("_test.go");
        let Ok(text) = std::fs::read_to_string(root().join(path)) else {
            continue;
        };
        let code = text
            .lines()
            .take_while(|l| !l.starts_with("#[cfg(test)]"))
            .count();
        let says_why = text
            .lines()
            .take(15)
            .any(|l| l.contains("Why one long file"));
        if !is_test && code > LONG_FILE && !says_why {
            faults.push(format!(
                "{file}: {code} lines; split it, or say \"Why one long file\" at its head"
            ));
        }
    }
    Ok(faults)
}
