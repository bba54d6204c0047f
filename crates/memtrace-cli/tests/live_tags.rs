//! Labels of a real service that has nothing of memtrace in it: `watch --tags` names the one
//! that leaks, `--snapshot-on` takes the heap where a section of work ends, and nothing is
//! left behind, however memtrace ends.

#![allow(clippy::unwrap_used, clippy::panic)] // that is how a test fails
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{findings, memtrace, run};
use memtrace_collect::goproc::tags;
use serde_json::Value;

/// `services/labels`, running.
struct Jobs(Child);

impl Jobs {
    /// Nothing without Go. `MEMTRACE_GO_LDFLAGS` has flags for its linker (`-s -w`).
    fn start(args: &[&str]) -> Option<Self> {
        let go = std::env::var_os("MEMTRACE_GO").unwrap_or_else(|| "go".into());
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("labels");
        let linker = std::env::var("MEMTRACE_GO_LDFLAGS").unwrap_or_default();
        let built = Command::new(go)
            .args(["build", "-ldflags", &linker, "-o"])
            .arg(&program)
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../services/labels"))
            .env("CGO_ENABLED", "0")
            .status();
        let Ok(built) = built else {
            eprintln!("skipped: no Go; set MEMTRACE_GO");
            return None;
        };
        assert!(built.success());
        let mut child = Command::new(&program)
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert!(line.starts_with("pid"), "{line}");
        Some(Self(child))
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether this machine allows probes; where not, the watch says so and goes on.
fn allowed() -> bool {
    let Err(error) = tags::definitions() else {
        return true;
    };
    eprintln!("SKIPPED: no probes on this machine, only the refusal is tested: {error}");
    let Some(jobs) = Jobs::start(&[]) else {
        return false;
    };
    let pid = jobs.pid();
    let output = run(&[
        "watch",
        &pid,
        "--tags",
        "--interval",
        "1s",
        "--for",
        "4s",
        "--json",
    ]);
    is_refused(&output);
    false
}

#[track_caller]
fn is_refused(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let warned = text.contains("no tags: ") && text.contains("\"event\":\"warning\"");
    assert!(warned, "{text}");
}

fn events(output: &Output, kind: &str) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|v| v["event"] == kind)
        .collect()
}

/// What the kernel has of probes in a service; other memtraces may have theirs.
fn probes(jobs: &Jobs) -> Vec<String> {
    let all = tags::definitions().unwrap().into_iter();
    let pid = jobs.pid();
    all.filter(|name| name.split('_').nth(3) == Some(&pid))
        .collect()
}

#[track_caller]
fn nothing_is_left(jobs: &Jobs, within: Duration) {
    let until = Instant::now() + within;
    loop {
        let left = probes(jobs);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "{left:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

const MINUTE: [&str; 8] = [
    "--tags",
    "--interval",
    "1s",
    "--settle",
    "15s",
    "--for",
    "75s",
    "--json",
];

#[test]
fn the_label_that_leaks_is_named() {
    if std::env::var_os("MEMTRACE_MINUTES").is_none() {
        eprintln!("skipped: takes minutes, and MEMTRACE_MINUTES is not set");
        return;
    }
    if !allowed() {
        return;
    }
    let leak = ["-leak", "G001-M17", "-leak-after", "8s"];
    let (Some(mut leaky), Some(mut healthy)) = (Jobs::start(&leak), Jobs::start(&[])) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let heaps = dir.path().to_string_lossy().into_owned();
    let (pid, twin) = (leaky.pid(), healthy.pid());
    let (output, silent) = std::thread::scope(|s| {
        let twin = s.spawn(|| run(&[&["watch", &twin][..], &MINUTE].concat()));
        let save = ["--snapshots", &heaps, "--cycle", "8s"];
        let output = run(&[&["watch", &pid][..], &MINUTE, &save].concat());
        (output, twin.join().unwrap())
    });
    let found = findings(&output);
    let last = found
        .last()
        .unwrap_or_else(|| panic!("nothing found: {}", String::from_utf8_lossy(&output.stdout)));
    assert_eq!(last["tier"], "leaking", "{last:#}");
    assert_eq!(last["tags"]["block"], "G001-M17", "{last:#}");
    // The stack only makes records; the copy shows what they pile up in.
    assert_eq!(last["pattern"], "slice-growth", "{last:#}");
    let advice = last["advice"].to_string();
    assert!(advice.contains("main.leaked"), "{advice}");
    let evidence = last["evidence"].to_string();
    assert!(evidence.contains("tag block=G001-M17 holds "), "{evidence}");
    // The heap of the leak, and another a cycle later, for `diff`.
    let written = events(&output, "snapshot");
    let files: Vec<&str> = written.iter().filter_map(|e| e["file"].as_str()).collect();
    assert!(files.len() >= 2, "{written:?}");
    let diff = run(&["diff", files[0], files[files.len() - 1]]);
    let text = String::from_utf8_lossy(&diff.stdout);
    assert!(
        diff.status.success() && text.contains("main.record"),
        "{text}"
    );

    assert_eq!(findings(&silent), Vec::<Value>::new());
    assert!(leaky.lives() && healthy.lives());
    nothing_is_left(&leaky, Duration::ZERO);
    nothing_is_left(&healthy, Duration::ZERO);
}

/// Goroutines have the label of the job that started them.
#[test]
fn the_label_of_goroutines_that_pile_up() {
    if std::env::var_os("MEMTRACE_MINUTES").is_none() {
        eprintln!("skipped: takes minutes, and MEMTRACE_MINUTES is not set");
        return;
    }
    let hang = ["-hang", "G001-M05", "-leak-after", "8s"];
    if !allowed() {
        return;
    }
    let Some(mut jobs) = Jobs::start(&hang) else {
        return;
    };
    // Goroutines are looked at once a minute.
    let longer = MINUTE.map(|argument| if argument == "75s" { "160s" } else { argument });
    let output = run(&[&["watch", &jobs.pid()][..], &longer].concat());
    let found = findings(&output);
    let hanging = found.iter().rfind(|f| f["source"] == "goroutine");
    let hanging = hanging.unwrap_or_else(|| panic!("{found:#?}"));
    assert_eq!(hanging["pattern"], "goroutine-leak", "{hanging:#}");
    assert_eq!(hanging["tags"]["block"], "G001-M05", "{hanging:#}");
    let evidence = hanging["evidence"].to_string();
    assert!(
        evidence.contains("tag block=G001-M05: 100 % of"),
        "{evidence}"
    );
    assert!(jobs.lives());
    nothing_is_left(&jobs, Duration::ZERO);
}

/// Labels are texts of the program: they are read with `--tags` only.
#[test]
fn a_snapshot_has_no_labels() {
    let Some(jobs) = Jobs::start(&[]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jobs.mtsnap");
    let output = run(&["snapshot", &jobs.pid(), "-o", &file.to_string_lossy()]);
    assert!(output.status.success(), "{output:?}");
    let bytes = std::fs::read(&file).unwrap();
    let graph = memtrace_model::snapshot::read(&mut &bytes[..], 1 << 30).unwrap();
    assert!(graph.goroutines.len() >= 20);
    assert!(graph.goroutines.iter().all(|g| g.labels.is_empty()));
    assert!(!graph.strings.iter().any(|text| text.contains("G001-M")));
}

/// A snapshot where a section of work ends, which `report` opens; after SIGINT there is no
/// probe.
#[test]
fn snapshots_of_sections() {
    if !allowed() {
        return;
    }
    let Some(mut jobs) = Jobs::start(&["-section", "night shift/7"]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let heaps = dir.path().join("heaps");
    let mut watch = memtrace()
        .args(["watch", &jobs.pid(), "--tags", "--interval", "1s", "--json"])
        .args(["--snapshot-on", "tag:night shift/7", "--snapshots"])
        .arg(&heaps)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(probes(&jobs).len(), 2);
    let interrupted = Command::new("kill")
        .args(["-INT", &watch.id().to_string()])
        .status();
    assert!(interrupted.unwrap().success());
    let status = watch.wait().unwrap();
    nothing_is_left(&jobs, Duration::ZERO);
    let mut text = String::new();
    std::io::Read::read_to_string(watch.stdout.as_mut().unwrap(), &mut text).unwrap();
    assert!(status.success(), "{text}");
    // One a minute at most.
    let files: Vec<_> = std::fs::read_dir(&heaps).unwrap().collect();
    assert_eq!(files.len(), 1, "{files:?}\n{text}");
    let file = files[0].as_ref().unwrap().path();
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    assert!(
        name.starts_with("heap_20") && name.ends_with("_night-shift-7.mtsnap"),
        "{name}"
    );
    assert!(
        text.contains(&name) && text.contains("night shift/7 ends"),
        "{text}"
    );
    let report = run(&["report", &file.to_string_lossy()]);
    let words = String::from_utf8_lossy(&report.stdout);
    assert!(
        report.status.success() && words.contains("main.main"),
        "{words}"
    );
    assert!(jobs.lives());
}

/// Whatever happens to memtrace, the service goes on, and the kernel keeps nothing.
#[test]
fn killed() {
    if !allowed() {
        return;
    }
    let Some(mut jobs) = Jobs::start(&["-rate", "4e6"]) else {
        return;
    };
    // In the middle of its work, and at its very beginning.
    for after in [1500, 400, 250, 150, 120, 90, 60] {
        let mut watch = memtrace()
            .args(["watch", &jobs.pid(), "--tags", "--interval", "1s"])
            .args(["--snapshot-on", "tag:none"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(after));
        watch.kill().unwrap();
        watch.wait().unwrap();
        nothing_is_left(&jobs, Duration::from_secs(5));
        assert!(jobs.lives());
    }
    std::thread::sleep(Duration::from_millis(300));
    assert!(jobs.lives());
}

/// Without the rights, and where nothing is sampled, the watch says so and goes on.
#[test]
fn refusals() {
    let Some(mut jobs) = Jobs::start(&[]) else {
        return;
    };
    let watch = ["--interval", "1s", "--for", "3s", "--json"];
    let nowhere = run(&[
        &["watch", &jobs.pid(), "--snapshot-on", "night"][..],
        &watch,
    ]
    .concat());
    assert_eq!(nowhere.status.code(), Some(2));
    let without = Command::new("setpriv")
        .args([
            "--bounding-set",
            "-sys_admin,-perfmon",
            "--inh-caps",
            "-all",
        ])
        .arg(env!("CARGO_BIN_EXE_memtrace"))
        .args(["watch", &jobs.pid(), "--tags"])
        .args(watch)
        .output();
    match without {
        Ok(output) if !output.stdout.is_empty() => {
            is_refused(&output);
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains("CAP_SYS_ADMIN"), "{text}");
        }
        _ => eprintln!("skipped: no setpriv to give up rights with"),
    }
    assert!(jobs.lives());
}
