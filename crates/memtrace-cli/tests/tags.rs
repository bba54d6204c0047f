//! Business tags on a real service with the Go SDK: 200 equal jobs, each under its own tag.

#![allow(clippy::panic)] // that is how a test fails

mod common;

use std::path::PathBuf;
use std::process::Command;

use common::{Service, cnc, cnc_for_minutes, findings, run};
use serde_json::Value;

const JOBS: &[&str] = &[
    "-tagged-jobs",
    "200",
    "-leak",
    "tag",
    "-leak-after",
    "20s",
    "-leak-rate",
    "300KB",
    "-load",
    "100",
    "-cache",
    "0",
    "-trace",
    "/dev/null",
];

fn watch(service: &Service) -> std::process::Output {
    run(&[
        "watch",
        &service.url,
        "--interval",
        "5s",
        "--for",
        "3m20s",
        "--json",
    ])
}

#[test]
fn the_tag_that_leaks_is_named() {
    let Some(program) = cnc_for_minutes() else {
        return;
    };
    let service = Service::start(&program, JOBS);
    let output = watch(&service);
    let found = findings(&output);
    let tag = &service.truth()["tag"];
    assert!(
        tag.as_str().is_some_and(|t| !t.is_empty()),
        "no tag in the truth"
    );
    let open: Vec<&Value> = found
        .iter()
        .filter(|f| f["status"] == "open" && f["rank"] == 1)
        .collect();
    let last = open
        .last()
        .unwrap_or_else(|| panic!("nothing found; {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(&last["tags"]["tag"], tag, "{last:#}");
    // Of what the service says exactly: some 18 MB a minute leak.
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        stdout.contains("exact after each garbage collection"),
        "the watch does not say that it has exact collections"
    );
}

#[test]
fn equal_jobs_are_healthy() {
    let Some(program) = cnc_for_minutes() else {
        return;
    };
    let service = Service::start(&program, &[JOBS, &["-fix"]].concat());
    let found = findings(&watch(&service));
    assert!(found.is_empty(), "{found:#?}");
}

/// Keys of a map that grows are shown to who asks for them, and to nobody else.
#[test]
fn keys_on_request() {
    let Some(program) = cnc_for_minutes() else {
        return;
    };
    let leak = ["-leak", "mapkey", "-leak-after", "10s", "-leak-rate", "2MB"];
    let service = Service::start(&program, &[&leak[..], &["-load", "100"]].concat());
    let asked = |flag: &[&str]| {
        let watch = ["watch", &service.url, "--interval", "5s", "--for", "3m10s"];
        let output = run(&[&watch[..], &["--json"], flag].concat());
        findings(&output)
            .iter()
            .filter(|f| f["pattern"] == "map-bloat")
            .map(|f| f["evidence"].to_string())
            .collect::<Vec<_>>()
            .join("\n")
    };
    let (with, without) = std::thread::scope(|s| {
        let with = s.spawn(|| asked(&["--with-strings"]));
        let without = asked(&[]);
        (with.join().expect("it ends"), without)
    });
    assert!(
        with.contains("8 of the ") && with.contains("keys of cnc/internal/gcode.(*Cache): "),
        "{with}"
    );
    assert!(without.contains("map"), "nothing found: {without}");
    assert!(!without.contains("keys of"), "{without}");
}

/// What `convert` writes of a running service has labels that `go tool pprof` knows.
#[test]
fn labels_for_pprof() {
    let (Some(program), Some(go)) = (cnc(), std::env::var_os("MEMTRACE_GO")) else {
        return;
    };
    let service = Service::start(
        &program,
        &["-tagged-jobs", "20", "-leak-rate", "4MB", "-load", "100"],
    );
    let dir = tempfile::tempdir().expect("a folder");
    let file: PathBuf = dir.path().join("heap.pb.gz");
    let mut tags = String::new();
    // A heap profile shows what was allocated before the last collection but one.
    for _ in 0..120 {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let output = run(&["convert", &service.url, &file.to_string_lossy()]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let shown = Command::new(&go)
            .args(["tool", "pprof", "-tags", "-sample_index=alloc_space"])
            .arg(&file)
            .output()
            .expect("go runs");
        tags = String::from_utf8_lossy(&shown.stdout).into_owned();
        if (1..=20).all(|n| tags.contains(&format!("G{n:03}-M"))) {
            let focus = Command::new(&go)
                .args([
                    "tool",
                    "pprof",
                    "-top",
                    "-sample_index=alloc_space",
                    "-tagfocus=tag=G001-M17",
                ])
                .arg(&file)
                .output()
                .expect("go runs");
            let top = String::from_utf8_lossy(&focus.stdout);
            assert!(top.contains("cnc/internal/gcode.Parse"), "{top}");
            assert!(!top.contains("tagHi"), "{top}");
            return;
        }
    }
    panic!("tags are missing in {tags}");
}
