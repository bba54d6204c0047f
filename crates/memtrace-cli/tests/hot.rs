//! Who allocates: known services, and files beside `go tool pprof`.

#![allow(clippy::panic)] // that is how a test fails

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::time::Duration;

use common::{Service, TOKEN, cnc, run};
use serde_json::Value;
use tempfile::TempDir;

/// `go`, named by `cargo xtask test`.
fn go() -> Option<PathBuf> {
    let go = std::env::var_os("MEMTRACE_GO").map(PathBuf::from);
    if go.is_none() {
        eprintln!("skipped: MEMTRACE_GO does not name a go program; `cargo xtask test` sets it");
    }
    go
}

/// The service of `hot_service`, built once for all tests.
static SERVICE: LazyLock<Option<(TempDir, PathBuf)>> = LazyLock::new(|| {
    let go = go()?;
    let dir = tempfile::tempdir().expect("a folder");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hot_service/main.go");
    let program = dir.path().join("service");
    let built = Command::new(go)
        .args(["build", "-o"])
        .args([&program, &source])
        .env("GO111MODULE", "off")
        .status();
    assert!(built.expect("go starts").success());
    Some((dir, program))
});

fn lines(output: &Output) -> Vec<Value> {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines: Vec<Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect();
    assert!(lines.iter().all(|l| l["schema"] == "memtrace.hot/1"));
    assert_eq!(lines[0]["line"], "total");
    assert!(lines[1..].iter().all(|l| l["line"] == "site"));
    lines
}

/// Collections before the first reading: a profile counts what was allocated until the
/// last but one.
fn warm_up() {
    std::thread::sleep(Duration::from_secs(5));
}

/// What a service of this kind shows: the totals, then the sites.
fn of(kind: &str) -> Option<Vec<Value>> {
    let (_, program) = SERVICE.as_ref()?;
    let service = Service::start(program, &[kind]);
    warm_up();
    Some(lines(&run(&["hot", &service.url, "--for", "6s", "--json"])))
}

/// The first row has this pattern, at this function, through this layer.
fn finds(kind: &str, pattern: &str, function: &str, via: &str) -> Option<Vec<Value>> {
    let lines = of(kind)?;
    let first = &lines[1];
    let found = [
        &first["rank"],
        &first["pattern"],
        &first["site"]["function"],
        &first["via"],
    ];
    let expected: [Value; 4] = [1.into(), pattern.into(), function.into(), via.into()];
    assert_eq!(found.map(Value::clone), expected, "{first:#}");
    let explains = lines[0]["explains"].as_f64().expect("a share");
    assert!((0.5..2.0).contains(&explains), "{:#}", lines[0]);
    let rate = first["bytes_per_s"].as_f64().expect("a rate");
    let [low, high] = [0, 1].map(|i| first["bytes_interval"][i].as_f64().expect("a bound"));
    assert!(low < rate && rate < high, "{first:#}");
    Some(lines)
}

#[test]
fn json_decoding() {
    let lines = finds(
        "json",
        "json-decoding",
        "main.readMessages",
        "encoding/json",
    );
    if let Some(lines) = lines {
        let depth = lines[1]["depth"].as_u64().expect("a depth");
        assert!(depth >= 8, "{:#}", lines[1]);
    }
}

#[test]
fn points_of_a_control_loop() {
    finds(
        "tick",
        "per-tick-allocation",
        "main.(*Servo).next",
        "object",
    );
}

#[test]
fn text_put_together() {
    finds("text", "string-building", "main.writeLines", "fmt");
}

#[test]
fn tasks_made_anew() {
    let Some(lines) = finds("task", "task-lifecycle", "main.NewMotionTask", "slice") else {
        return;
    };
    let advice = lines[1]["advice"].as_str().expect("advice");
    assert!(
        advice.contains("sync.Pool") && advice.contains("Reset"),
        "{advice}"
    );
    let evidence = lines[1]["evidence"].as_str().expect("evidence");
    assert!(evidence.contains("8.0 KiB"), "{evidence}");
}

#[test]
fn recycled_tasks_and_idleness_are_quiet() {
    for kind in ["fixed", "quiet"] {
        let Some(lines) = of(kind) else { return };
        assert_eq!(lines[0]["quiet"], true, "{kind}: {:#}", lines[0]);
        assert_eq!(lines.len(), 1, "{kind}");
    }
}

#[test]
fn a_profile_that_shows_nothing_yet_is_no_rate() {
    let Some((_, program)) = SERVICE.as_ref() else {
        return;
    };
    let mut service = Service::start(program, &["quiet"]);
    // Nothing was collected, so nothing was published.
    let output = run(&["hot", &service.url, "--for", "1s", "--all"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("garbage collection"), "{text}");
    // The runtime's own count tells as much, and a collection on demand the rest.
    let idle = lines(&run(&["hot", &service.url, "--for", "1s", "--json"]));
    assert_eq!(idle[0]["quiet"], true);
    let page = tempfile::NamedTempFile::new().expect("a file");
    let html = page.path().display().to_string();
    assert!(
        run(&["hot", &service.url, "--for", "1s", "--html", &html])
            .status
            .success()
    );
    let text = std::fs::read_to_string(page.path()).expect("it was written");
    assert!(
        text.contains("nothing hot") && !text.contains("<iframe "),
        "{text}"
    );
    let forced = run(&[
        "hot",
        &service.url,
        "--for",
        "1s",
        "--gc",
        "--all",
        "--json",
    ]);
    let forced = lines(&forced);
    assert!(forced[0]["seconds"].as_f64().is_some_and(|s| s > 0.0));

    service.kill();
    let output = run(&["hot", &service.url, "--for", "1s"]);
    assert_eq!(output.status.code(), Some(3));
}

/// A GET whose answer is bytes.
fn get(url: &str, path: &str) -> Vec<u8> {
    let host = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(host).expect("the service answers");
    let head = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nX-Pprof-Token: {TOKEN}\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("it listens");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it answers");
    let head = answer.windows(4).position(|w| w == b"\r\n\r\n");
    answer.split_off(head.expect("a head") + 4)
}

/// The sum of the flat values of all rows of pprof's difference.
fn pprof_total(go: &Path, sample: &str, old: &Path, new: &Path) -> i64 {
    let base = format!("-diff_base={}", old.display());
    let index = format!("-sample_index={sample}");
    let all = ["-nodecount=1000000", "-nodefraction=0", "-edgefraction=0"];
    let output = Command::new(go)
        .args(["tool", "pprof", "-top", "-symbolize=none", "-unit=bytes"])
        .args(all)
        .args([&index, &base])
        .arg(new)
        .output()
        .expect("pprof starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let rows = text.lines().skip_while(|l| !l.contains("flat%")).skip(1);
    rows.filter_map(|row| {
        let flat = row.split_whitespace().next()?;
        let flat = flat.trim_end_matches(|c: char| c.is_alphabetic());
        Some(flat.parse::<i64>().unwrap_or_else(|e| panic!("{row}: {e}")))
    })
    .sum()
}

#[test]
fn totals_are_those_of_pprof_to_the_byte() {
    let (Some(go), Some(program)) = (go(), cnc()) else {
        return;
    };
    let service = Service::start(&program, &["-load", "2000"]);
    warm_up();
    let dir = tempfile::tempdir().expect("a folder");
    let [old, new] = ["old.pb.gz", "new.pb.gz"].map(|name| dir.path().join(name));
    std::fs::write(&old, get(&service.url, "/debug/pprof/allocs")).expect("a file");
    std::thread::sleep(Duration::from_secs(6));
    std::fs::write(&new, get(&service.url, "/debug/pprof/allocs")).expect("a file");
    let [old_name, new_name] = [&old, &new].map(|p| p.display().to_string());
    let lines = lines(&run(&["hot", &old_name, &new_name, "-n", "0", "--json"]));
    let total = |name: &str| lines[0][name].as_i64().expect("a number");
    assert!(total("bytes") > 0);
    assert_eq!(total("bytes"), pprof_total(&go, "alloc_space", &old, &new));
    assert_eq!(
        total("objects"),
        pprof_total(&go, "alloc_objects", &old, &new)
    );
    // The rows are all of it.
    let seconds = lines[0]["seconds"].as_f64().expect("a number");
    let rates = lines[1..].iter().map(|l| l["bytes_per_s"].as_f64());
    let sum = rates.map(|r| r.expect("a rate")).sum::<f64>() * seconds;
    assert!((sum / total("bytes") as f64 - 1.0).abs() < 1e-9, "{sum}");

    let svg = dir.path().join("hot.svg");
    let html = dir.path().join("hot.html");
    let [svg_name, html_name] = [&svg, &html].map(|p| p.display().to_string());
    let output = run(&[
        "hot", &old_name, &new_name, "--svg", &svg_name, "--html", &html_name,
    ]);
    assert!(output.status.success());
    let function = "toolpath.(*Path).Interpolate";
    for file in [svg, html] {
        let text = std::fs::read_to_string(&file).expect("it was written");
        assert!(text.contains(function), "{}", file.display());
    }
    assert!(String::from_utf8_lossy(&output.stdout).contains(function));
}

#[test]
fn a_busy_controller_is_told_apart() {
    let Some(program) = cnc() else { return };
    let service = Service::start(&program, &["-load", "2000"]);
    warm_up();
    let lines = lines(&run(&["hot", &service.url, "--for", "6s", "--json"]));
    // Paths are interpolated into a new slice for each piece.
    let first = &lines[1];
    assert_eq!(first["pattern"], "buffer-per-call", "{first:#}");
    assert_eq!(
        first["site"]["function"], "cnc/internal/toolpath.(*Path).Interpolate",
        "{first:#}"
    );
}

/// The life cycle of motion tasks in the controller: 100 starts a second on each of 8 axes.
#[test]
fn motion_tasks_of_the_controller() {
    let Some(program) = cnc() else { return };
    let found = |fix: &[&str]| {
        let tasks = ["-load", "0", "-tasks", "100", "-axes", "8"];
        let service = Service::start(&program, &[&tasks, fix].concat());
        warm_up();
        lines(&run(&[
            "hot",
            &service.url,
            "--for",
            "6s",
            "--json",
            "--all",
        ]))
    };
    let anew = found(&[]);
    let first = &anew[1];
    assert_eq!(
        (&first["rank"], &first["pattern"]),
        (&1.into(), &"task-lifecycle".into())
    );
    assert_eq!(
        first["site"]["function"], "cnc/internal/motion.NewMotionTask",
        "{first:#}"
    );
    let advice = first["advice"].as_str().expect("advice");
    assert!(
        advice.contains("sync.Pool") && advice.contains("free list"),
        "{advice}"
    );
    for site in &found(&["-fix"])[1..] {
        assert_ne!(site["pattern"], "task-lifecycle", "{site:#}");
    }
}

#[test]
fn wrong_usage_is_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let few = file(
        "few",
        "heap profile: 0: 0 [1: 8] @ heap/2\n0: 0 [1: 8] @ 0x1\n",
    );
    let many = file(
        "many",
        "heap profile: 0: 0 [9: 72] @ heap/2\n0: 0 [9: 72] @ 0x1\n",
    );
    let other = file("other", "goroutine profile: total 1\n1 @ 0x1\n");
    for (args, code, says) in [
        (vec![&*few], 2, "one profile tells no rate"),
        (vec![&*few, "127.0.0.1:1"], 2, "is no profile"),
        (vec![&*few, &*many], 2, "--for"),
        (vec![&*many, &*few, "--for", "1s"], 1, "counts fell"),
        (vec![&*other, &*many, "--for", "1s"], 1, "does not count"),
        (vec!["127.0.0.1:1", "--for", "0"], 2, "a rate needs time"),
        (
            vec![&*few, "/no/such/file", "--for", "1s"],
            1,
            "no such file",
        ),
    ] {
        let output = run(&[&["hot"], &args[..]].concat());
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains(says), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
    }
    let output = run(&["hot", &few, &many, "--for", "4s", "--json", "--all"]);
    let lines = lines(&output);
    assert_eq!(lines[0]["bytes_per_s"].as_f64(), Some(16.0));
    assert_eq!(lines[1]["site"]["function"], "0x0");
}
