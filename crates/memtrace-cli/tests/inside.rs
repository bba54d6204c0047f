//! The main job on services without an endpoint: what they allocate is read from their
//! memory, and a copy of their heap tells what keeps it alive.

#![allow(clippy::panic)] // that is how a test fails

mod common;

use common::{Service, cnc_for_minutes, findings, run};
use serde_json::Value;

/// Watches the process of a service that serves no profiles; the newest finding must be of
/// `pattern` at the leaking function, and tell the type of what piles up and the way to it.
fn finds(leak: &str, pattern: &str, kept: &[&str], names: &str) {
    let Some(program) = cnc_for_minutes() else {
        return;
    };
    let service = Service::closed(
        &program,
        &[
            "-leak",
            leak,
            "-leak-after",
            "20s",
            "-leak-rate",
            "2MB",
            "-load",
            "300",
        ],
    );
    let pid = service.pid().to_string();
    let output = run(&[
        "watch",
        &pid,
        "--interval",
        "5s",
        "--for",
        "3m20s",
        "--json",
    ]);
    let truth = service.truth();
    let errors = String::from_utf8_lossy(&output.stderr);
    let last: Value = findings(&output)
        .into_iter()
        .rfind(|f| f["status"] == "open" && f["rank"] == 1)
        .unwrap_or_else(|| panic!("{leak}: nothing found; {errors}"));
    assert_eq!(last["pattern"], pattern, "{last:#}");
    let functions = truth["functions"].as_array().expect("functions");
    assert!(functions.contains(&last["culprit"]["function"]), "{last:#}");
    let way = last["retained_by"].to_string();
    for part in kept {
        assert!(way.contains(part), "{leak}: no {part} on the way: {last:#}");
    }
    let name = last["type"].as_str().unwrap_or_default();
    assert!(
        name.contains(names),
        "{leak}: {name} is not {names}: {last:#}"
    );
    let retained = last["retained_bytes"].as_u64().unwrap_or_default();
    assert!(retained > 1 << 20, "{leak}: {last:#}");
    let told_how_full = last["evidence"]
        .to_string()
        .contains("that the map has room for");
    assert!(told_how_full || pattern != "map-bloat", "{last:#}");
}

#[test]
fn a_map_keyed_by_raw_lines() {
    finds("mapkey", "map-bloat", &["gcode.Cache"], "");
}

#[test]
fn a_history_appended_to_for_ever() {
    finds("slice", "slice-growth", &["servo.History"], "");
}

#[test]
fn requests_captured_by_closures() {
    finds("closure", "listener-retention", &["events."], "");
}

#[test]
fn goroutines_blocked_in_machine_io() {
    finds("goroutine", "goroutine-leak", &["goroutine"], "");
}

/// Without a heap profile nobody knows who allocates; what piles up and what keeps it is
/// found by comparing copies of the heap.
fn finds_unsampled(leak: &str, pattern: &str, kept: &str, names: &str) {
    let Some(program) = cnc_for_minutes() else {
        return;
    };
    let leaking = ["-leak", leak, "-leak-after", "20s", "-leak-rate", "500KB"];
    let service = Service::unsampled(&program, &[&leaking[..], &["-load", "300"]].concat());
    let pid = service.pid().to_string();
    let times = ["--interval", "5s", "--for", "3m20s", "--json"];
    let output = run(&[&["watch", &pid], &times[..]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("its heap profile is off"), "{told}");
    let last: Value = findings(&output)
        .into_iter()
        .rfind(|f| f["status"] == "open" && f["rank"] == 1)
        .unwrap_or_else(|| panic!("{leak}: nothing found; {errors}"));
    assert_eq!(last["pattern"], pattern, "{last:#}");
    // Only call stacks are told as such.
    assert_eq!(last["stack"].as_array().map(Vec::len), Some(0), "{last:#}");
    let way = last["retained_by"].to_string();
    assert!(way.contains(kept), "{leak}: no {kept} on the way: {last:#}");
    let name = last["type"].as_str().unwrap_or_default();
    assert!(
        name.contains(names),
        "{leak}: {name} is not {names}: {last:#}"
    );
    let retained = last["retained_bytes"].as_u64().unwrap_or_default();
    assert!(retained > 1 << 20, "{leak}: {last:#}");
}

#[test]
fn a_map_that_grows_unsampled() {
    finds_unsampled("mapkey", "map-bloat", "gcode.Cache", "");
}

#[test]
fn a_slice_that_grows_unsampled() {
    finds_unsampled("slice", "slice-growth", "servo.History", "");
}

#[test]
fn steady_load_is_healthy() {
    healthy(Service::closed);
}

#[test]
fn steady_load_is_healthy_unsampled() {
    healthy(Service::unsampled);
}

fn healthy(start: fn(&std::path::PathBuf, &[&str]) -> Service) {
    let Some(program) = cnc_for_minutes() else {
        return;
    };
    let service = start(
        &program,
        &[
            "-leak",
            "none",
            "-load",
            "300",
            "-load-shape",
            "steady",
            "-cache",
            "0",
        ],
    );
    let pid = service.pid().to_string();
    let output = run(&[
        "watch",
        &pid,
        "--interval",
        "5s",
        "--for",
        "3m20s",
        "--json",
    ]);
    let leaking: Vec<Value> = findings(&output)
        .into_iter()
        .filter(|f| f["tier"] == "leaking")
        .collect();
    assert!(leaking.is_empty(), "{leaking:#?}");
    assert!(output.status.success());
}
