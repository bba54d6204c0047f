//! The main job on real services: each leak is named, health is left in peace.
//! Each watch takes three to four minutes of real time, several run side by side.

#![allow(clippy::panic)] // that is how a test fails

mod common;

use common::{Service, cnc_for_minutes, findings, run};
use serde_json::Value;

/// Watches a service at `--interval 5s` until three minutes after its fault began;
/// the newest finding must be of `pattern`, rank 1, at the leaking function.
fn finds(leak: &str, patterns: &[&str]) {
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
        "3m20s",
        "--json",
    ]);
    let found = findings(&output);
    let truth = service.truth();

    let newest: Vec<&Value> = found
        .iter()
        .filter(|f| f["status"] == "open" && f["rank"] == 1)
        .collect();
    let last = newest.last().unwrap_or_else(|| {
        panic!(
            "{leak}: nothing found; {}",
            String::from_utf8_lossy(&output.stderr)
        )
    });
    let shown = serde_json::to_string_pretty(last).expect("JSON");
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
    finds("closure", &["growth", "slice-growth"]);
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
