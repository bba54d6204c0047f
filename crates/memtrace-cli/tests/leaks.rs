//! The main job on real services: each leak is named, health is left in peace.
//! Each watch takes three to four minutes of real time, several run side by side.

#![allow(clippy::panic)] // that is how a test fails

mod common;

use common::{Service, cnc_for_minutes, findings, run};
use serde_json::Value;

/// Watches a service at `--interval 5s` until three minutes after its fault began;
/// the newest finding must be of `pattern`, rank 1, at the leaking function.
fn finds(leak: &str, patterns: &[&str]) {
    finds_with(leak, patterns, "3m20s", &[]);
}

/// The same for a time; the advice must name what the fix is made of.
fn finds_with(leak: &str, patterns: &[&str], time: &str, fix: &[&str]) {
    let Some(program) = cnc_for_minutes() else {
        return;
    };
    let service = Service::start(
        &program,
        &[
            "-leak",
            leak,
            "-leak-after",
            "20s",
            "-leak-rate",
            "2MB",
            "-load",
            "500",
        ],
    );
    let output = run(&[
        "watch",
        &service.url,
        "--interval",
        "5s",
        "--for",
        time,
        "--json",
    ]);
    let truth = service.truth();
    let last = newest(leak, &output);
    let shown = serde_json::to_string_pretty(&last).expect("JSON");
    assert!(
        patterns.iter().any(|p| last["pattern"] == *p),
        "{leak}: the pattern is not {patterns:?}: {shown}"
    );
    let culprit = &last["culprit"]["function"];
    let functions = truth["functions"]
        .as_array()
        .expect("the truth names functions");
    assert!(
        functions.contains(culprit),
        "{leak}: {culprit} is not one of {functions:?}"
    );
    let advice = last["advice"].as_str().expect("advice");
    for part in fix {
        assert!(advice.contains(part), "{leak}: no {part:?} in: {advice}");
    }
}

/// The newest finding of rank 1 that is open.
fn newest(leak: &str, output: &std::process::Output) -> Value {
    findings(output)
        .into_iter()
        .rfind(|f| f["status"] == "open" && f["rank"] == 1)
        .unwrap_or_else(|| {
            panic!(
                "{leak}: nothing found; {}",
                String::from_utf8_lossy(&output.stderr)
            )
        })
}

/// Everything of a leak's situation but with the document's fix in place.
fn is_silent_with_fix(leak: &str) {
    is_silent(&[
        "-leak",
        leak,
        "-fix",
        "-leak-after",
        "20s",
        "-leak-rate",
        "2MB",
    ]);
}

/// Watches a healthy service for longer than a leak takes to be called; nothing
/// may be called leaking.
fn is_silent(args: &[&str]) {
    let Some(program) = cnc_for_minutes() else {
        return;
    };
    let service = Service::start(
        &program,
        &[&["-leak", "none", "-load", "500"], args].concat(),
    );
    let output = run(&[
        "watch",
        &service.url,
        "--interval",
        "5s",
        "--for",
        "4m",
        "--json",
    ]);
    let leaking: Vec<Value> = findings(&output)
        .into_iter()
        .filter(|f| f["tier"] == "leaking")
        .collect();
    assert!(
        leaking.is_empty(),
        "{args:?}: {}",
        serde_json::to_string_pretty(&leaking).expect("JSON")
    );
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn goroutines_blocked_in_machine_io() {
    finds("goroutine", &["goroutine-leak"]);
}

#[test]
fn a_map_keyed_by_raw_lines() {
    finds("mapkey", &["map-bloat"]);
}

#[test]
fn a_history_appended_to_for_ever() {
    finds("slice", &["slice-growth"]);
}

#[test]
fn a_sync_map_never_deleted_from() {
    finds("syncmap", &["map-bloat"]);
}

#[test]
fn requests_captured_by_closures() {
    let fix = ["unsubscribe", "context", "*http.Request"];
    finds_with("closure", &["listener-retention"], "3m20s", &fix);
}

#[test]
fn commands_of_a_hung_machine() {
    let fix = ["ctx.Done()", "cancel"];
    finds_with("hang", &["goroutine-leak"], "3m20s", &fix);
}

#[test]
fn commands_put_back_without_a_reset() {
    let fix = [
        "Reset",
        "before Put",
        "delete all keys",
        "fresh one",
        "do not put back",
    ];
    finds_with("pool", &["pool-misuse"], "3m20s", &fix);
}

/// Whose memory grows is read once a minute, after the warm-up: it takes longer.
#[test]
fn buffers_that_wait_for_their_finalizers() {
    let fix = ["NewMotionBuffer", "Close", "defer", "AddCleanup"];
    finds_with("finalizer", &["finalizer-backlog"], "5m20s", &fix);
}

/// A service whose mux has no symbol page, in a program without symbols.
#[test]
fn a_map_in_a_stripped_service_without_symbol_page() {
    let flags = ["-ldflags=-s -w", "-buildmode=pie"];
    let Some(found) = found_in("bare", &flags, "3m") else {
        return;
    };
    assert_eq!(found["pattern"], "map-bloat", "{found}");
    let culprit = &found["culprit"]["function"];
    assert_eq!(culprit, "main.(*sessions).begin", "{found}");
}

#[test]
fn memory_of_c_that_is_never_freed() {
    let Some(found) = found_in("native", &[], "4m30s") else {
        return;
    };
    assert_eq!(found["pattern"], "native-growth", "{found}");
    assert_eq!(found["source"], "process", "{found}");
    let advice = found["advice"].as_str().expect("advice");
    for part in ["main.grab", "C.free", "Close"] {
        assert!(advice.contains(part), "no {part:?} in: {advice}");
    }
}

/// Builds a service of `tests/fixtures` and watches it; the newest finding.
fn found_in(fixture: &str, flags: &[&str], time: &str) -> Option<Value> {
    cnc_for_minutes()?;
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join(fixture);
    let go = std::env::var_os("MEMTRACE_GO").unwrap_or_else(|| "go".into());
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let built = std::process::Command::new(go)
        .arg("build")
        .args(flags)
        .arg("-o")
        .arg(&program)
        .current_dir(source.join(fixture))
        .status()
        .expect("go is there");
    assert!(built.success());
    let service = Service::start(&program, &[]);
    let url = &service.url;
    let output = run(&["watch", url, "--interval", "5s", "--for", time, "--json"]);
    Some(newest(fixture, &output))
}

#[test]
fn a_hung_machine_is_survived_with_the_fix() {
    is_silent_with_fix("hang");
}

#[test]
fn a_slow_machine_is_survived_with_the_fix() {
    is_silent_with_fix("goroutine");
}

#[test]
fn commands_that_are_reset_are_healthy() {
    is_silent_with_fix("pool");
}

#[test]
fn keys_that_are_normalised_are_healthy() {
    is_silent_with_fix("mapkey");
}

#[test]
fn buffers_that_are_closed_are_healthy() {
    is_silent_with_fix("finalizer");
}

#[test]
fn steady_load_is_healthy() {
    is_silent(&["-load-shape", "steady", "-cache", "0"]);
}

#[test]
fn a_load_ramp_is_healthy() {
    is_silent(&["-load-shape", "ramp", "-load-period", "3m", "-cache", "0"]);
}

#[test]
fn sawtooth_batches_are_healthy() {
    is_silent(&[
        "-load-shape",
        "sawtooth",
        "-load-period",
        "40s",
        "-cache",
        "0",
    ]);
}

#[test]
fn a_cache_that_fills_is_healthy() {
    is_silent(&["-load-shape", "steady", "-cache", "250"]);
}
