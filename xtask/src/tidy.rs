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

/// The only file of the crates that writes to stdout and stderr: what it writes cannot give
/// orders to a terminal.
const PRINTS: &str = "crates/memtrace-cli/src/out.rs";

/// Ways past it, and past `memtrace_model::to_json`.
const PAST_IT: &[&str] = &[
    "print!(",
    "println!(",
    "dbg!(",
    "::stdout()",
    "::stderr()",
    "serde_json::to_string",
    "serde_json::to_vec",
    "serde_json::to_writer",
];

/// Checks the arrows between crates, the length of files, and who prints.
pub(crate) fn run() -> Outcome {
    let mut faults = arrows()?;
    for (path, text) in sources()? {
        faults.extend(is_long(&path, &text));
        faults.extend(prints(&path, &text));
    }
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

/// The source files with their text.
fn sources() -> Outcome<Vec<(String, String)>> {
    let listed = output(Command::new("git").current_dir(root()).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "*.rs",
        "*.go",
        "*.ts",
    ]))?;
    let read = |file: &str| {
        let text = std::fs::read_to_string(root().join(file)).ok()?;
        Some((file.to_owned(), text))
    };
    Ok(listed.lines().filter_map(read).collect())
}

fn is_test(file: &str) -> bool {
    let mut folders = Path::new(file).components();
    folders.any(|c| c.as_os_str() == "tests") || file.ends_with("_test.go")
}

/// The lines before the tests that are in the same file.
fn code(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    let tests = |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].ends_with('{');
    let end = lines.windows(2).position(tests);
    lines.truncate(end.unwrap_or(lines.len()));
    lines
}

fn is_long(file: &str, text: &str) -> Option<String> {
    let lines = code(text).len();
    let says_why = (text.lines().take(15)).any(|l| l.contains("Why one long file"));
    (!is_test(file) && lines > LONG_FILE && !says_why).then(|| {
        format!("{file}: {lines} lines; split it, or say \"Why one long file\" at its head")
    })
}

/// Lines of the crates that print, and are no test.
fn prints(file: &str, text: &str) -> Vec<String> {
    let is_ours = file.starts_with("crates/") && file.contains("/src/") && file.ends_with(".rs");
    if !is_ours || file.ends_with("tests.rs") || file == PRINTS {
        return Vec::new();
    }
    let past =
        |l: &&str| !l.trim_start().starts_with("//") && PAST_IT.iter().any(|p| l.contains(p));
    let lines = code(text).into_iter().enumerate();
    lines
        .filter(|(_, l)| past(l))
        .map(|(i, _)| format!("{file}:{}: use {PRINTS}, memtrace_model::to_json", i + 1))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::prints;

    #[test]
    fn whoever_prints_is_found() {
        let text = "#[cfg(test)]\nmod sample;\nfn f() {\n    eprintln!(\"x\");\n    // println!()\n    io::stdout().flush();\n}\n\
            #[cfg(test)]\nmod tests {\n    println!();\n";
        let found = |file: &str| prints(file, text).len();
        assert_eq!(found("crates/memtrace-watch/src/engine.rs"), 2);
        for elsewhere in [
            super::PRINTS,
            "crates/statkit/src/tests.rs",
            "crates/memtrace-cli/tests/hot.rs",
            "xtask/src/main.rs",
        ] {
            assert_eq!(found(elsewhere), 0, "{elsewhere}");
        }
    }
}
