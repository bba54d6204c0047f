//! Whatever is wrong with the target, the file, the store or the command line:
//! one clear line on stderr, the right exit code, nothing lost.

#![allow(clippy::panic)] // that is how a test fails

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{Service, cnc, memtrace, run};

/// Serves the same answer to every request on a free port; its base URL.
fn serve(answer: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    let answer = std::sync::Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let mut stream = stream;
                let mut request = [0; 4096];
                let n = stream.read(&mut request).unwrap_or(0);
                let text = String::from_utf8_lossy(&request[..n]).into_owned();
                answer(&text, &mut stream);
            });
        }
    });
    url
}

fn reply(stream: &mut TcpStream, status: &str, kind: &str, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // The client may hang up on purpose.
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(bytes).expect("memory takes it");
    packed.finish().expect("memory takes it")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// One line on stderr that holds `says`, this exit code, and no more than `seconds`.
fn check(args: &[&str], code: i32, says: &str) {
    let started = std::time::Instant::now();
    let output = run(args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    assert_eq!(
        text.trim_end().lines().count(),
        1,
        "{args:?}: not one line: {text}"
    );
    assert!(
        text.starts_with("memtrace: ") && text.contains(says),
        "{args:?}: {says:?} not in {text:?}"
    );
    assert!(!text.contains("panicked"), "{args:?}: {text}");
    // Who read nothing knows nothing of health.
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!said.contains("no leak found"), "{args:?}: {said}");
    // Not a matter of speed: whoever hangs has not said anything.
    assert!(
        started.elapsed().as_secs() < 60,
        "{args:?} took {:?}",
        started.elapsed()
    );
}

fn check_watch(url: &str, says: &str) {
    check(&["watch", url, "--interval", "1s", "--for", "2s"], 3, says);
}

fn check_body(body: Vec<u8>, says: &str) {
    let url = serve(move |_, s| reply(s, "200 OK", "application/octet-stream", &body));
    check_watch(&url, says);
}

#[test]
fn nothing_listens() {
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("a free port")
        .port();
    check_watch(&format!("http://127.0.0.1:{port}"), "connection refused");
}

#[test]
fn the_host_does_not_exist() {
    check_watch("http://no-such-host.invalid:6060", "host name not found");
}

#[test]
fn no_such_process() {
    check(&["watch", "4194305"], 3, "no process with pid 4194305");
}

#[test]
fn html_instead_of_a_profile() {
    let url = serve(|_, s| {
        reply(
            s,
            "200 OK",
            "text/html",
            b"<!doctype html><title>Shop</title>",
        )
    });
    check_watch(&url, "HTML instead of a profile");
}

#[test]
fn forbidden() {
    let url = serve(|_, s| reply(s, "403 Forbidden", "text/plain", b"Forbidden"));
    check_watch(&url, "token refused");
}

#[test]
fn the_service_fails() {
    let url = serve(|_, s| reply(s, "500 Internal Server Error", "text/plain", b"boom"));
    check_watch(&url, "answered 500");
}

#[test]
fn not_found() {
    let url = serve(|_, s| reply(s, "404 Not Found", "text/plain", b"404 page not found"));
    check_watch(&url, "no pprof at");
}

#[test]
fn a_profile_cut_in_the_middle_of_gzip() {
    // Random enough that the head of the stream holds no whole profile.
    let noise: Vec<u8> = (0u32..4000)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let packed = gzip(&noise);
    check_body(packed[..packed.len() / 2].to_vec(), "profile");
}

#[test]
fn a_zip_bomb() {
    // 1.2 GiB in 1 MB, and every byte of it a sound profile: strings as long as the
    // format allows without a word in them.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut comment = vec![0x32, 0x80, 0x80, 0x40]; // string_table, 1 MiB
    comment.resize(4 + (1 << 20), b' ');
    for _ in 0..1200 {
        packed.write_all(&comment).expect("memory takes it");
    }
    check_body(packed.finish().expect("memory takes it"), "decompression");
}

#[test]
fn an_answer_of_two_gigabytes() {
    let url = serve(|_, s| {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 2147483648\r\n\r\n";
        let _ = s.write_all(head.as_bytes());
        let block = vec![0x1f; 1 << 20];
        // Until the client hangs up.
        for _ in 0..2048 {
            if s.write_all(&block).is_err() {
                return;
            }
        }
    });
    check_watch(&url, "stopped reading");
}

#[test]
fn garbage_instead_of_protobuf() {
    let noise: Vec<u8> = (0u32..5000)
        .map(|i| (i.wrapping_mul(2_246_822_519) >> 11) as u8)
        .collect();
    check_body(noise, "not a profile");
}

#[test]
fn a_profile_without_samples_is_not_an_error() {
    // Only a string table with its first, empty entry, and two sample types.
    let mut empty = vec![0x32, 0x00];
    for name in ["objects", "space"] {
        empty.extend([0x32, name.len() as u8]);
        empty.extend(name.bytes());
    }
    empty.extend([0x0a, 0x02, 0x08, 0x01, 0x0a, 0x02, 0x08, 0x02]);
    let body = gzip(&empty);
    let url = serve(move |_, s| reply(s, "200 OK", "application/octet-stream", &body));
    let output = run(&["watch", &url, "--interval", "1s", "--for", "2s"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("too few to tell"));
}

/// Sound, but not of the heap: nothing that it tells could ever be a leak.
#[test]
fn a_profile_of_something_else() {
    let seconds = [
        0x32, 0x00, 0x32, 0x01, b'a', 0x0a, 0x04, 0x08, 0x01, 0x10, 0x01,
    ];
    check_body(gzip(&seconds), "does not tell what memory is in use");
    check_body(vec![0x32, 0x00], "does not tell what memory is in use");
}

#[test]
fn a_token_is_sent_and_never_shown() {
    let url = serve(|request, s| {
        if request
            .to_lowercase()
            .contains("x-pprof-token: s3cret-of-the-test")
        {
            reply(s, "500 Oops", "text/plain", b"the token was right");
        } else {
            reply(s, "403 Forbidden", "text/plain", b"");
        }
    });
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("token");
    std::fs::write(&file, "s3cret-of-the-test\n").expect("a token file");
    let file = file.to_string_lossy().into_owned();
    let output = run(&[
        "watch",
        &url,
        "--interval",
        "1s",
        "--for",
        "1s",
        "--token-file",
        &file,
    ]);
    assert!(
        stderr(&output).contains("answered 500"),
        "{}",
        stderr(&output)
    );
    assert!(!stderr(&output).contains("s3cret"));
    check(
        &[
            "watch",
            &url,
            "--token-file",
            "/no/such/file",
            "--for",
            "1s",
        ],
        1,
        "cannot read the token",
    );
}

#[test]
fn files_that_are_no_profiles() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path.to_string_lossy().into_owned()
    };
    check(&["top", &file("empty", b"")], 1, "empty");
    check(&["top", &dir.path().to_string_lossy()], 1, "is a folder");
    check(&["top", &file("page", b"<html><body>hello")], 1, "HTML");
    check(&["top", &file("noise", &[0xff; 300])], 1, "not a profile");
    check(&["diff", &file("a", b"\x1f\x8b"), &file("b", b"")], 1, "a:");
    check(
        &["convert", "/no/such/profile", "x.folded"],
        1,
        "no such file",
    );
}

#[test]
fn wrong_usage() {
    for args in [
        &["watch", "127.0.0.1:1", "--no-such-flag"][..],
        &["watch"],
        &["watch", "127.0.0.1:1", "--interval", "3 fortnights"],
        &["watch", "127.0.0.1:1", "--limit", "many"],
        &["frobnicate"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            stderr(&output).starts_with("error:"),
            "{args:?}: {}",
            stderr(&output)
        );
    }
    check(&["watch", "not a target at all"], 2, "not a target at all");
    check(
        &["watch", "127.0.0.1:1", "--interval", "0s"],
        2,
        "--interval",
    );
    check(&["watch", "127.0.0.1:1", "--settle", "1m"], 2, "--settle");
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    check(&["watch", here], 2, "memtrace top");
}

#[test]
fn a_store_that_cannot_be_used() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().to_string_lossy().into_owned();
    let watch = |store: &str, says: &str| {
        check(
            &["watch", "127.0.0.1:1", "--for", "1s", "--store", store],
            1,
            says,
        );
    };
    std::fs::write(
        dir.path().join("memtrace.db"),
        "this is not a database, it is a text of some length\n".repeat(40),
    )
    .expect("a file");
    watch(&path, "store");
    watch("/proc/self/no-such-store", "store");

    // A file stands where the folder should be.
    let file = dir.path().join("a-file");
    std::fs::write(&file, "").expect("a file");
    watch(&file.to_string_lossy(), "store");
}

/// A file system of its own, gone when dropped; `None` where we may not mount.
struct Mount(tempfile::TempDir);

impl Mount {
    fn new(options: &str) -> Option<Self> {
        let mount = Self(tempfile::tempdir().expect("a folder"));
        let mounted = mount.mount(options);
        if !mounted {
            eprintln!("skipped: may not mount");
        }
        mounted.then_some(mount)
    }

    fn mount(&self, options: &str) -> bool {
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(self.0.path())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    }

    fn path(&self) -> String {
        self.0.path().to_string_lossy().into_owned()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// Heap profiles that compress badly, each different.
fn noise(stacks: usize) -> impl Fn() -> String {
    let seed = AtomicU64::new(1);
    move || {
        let mut text = String::from("heap profile: 1: 16 [1: 16] @ heap/1048576\n");
        for _ in 0..stacks {
            let x = seed.fetch_add(1, Ordering::Relaxed);
            let hash = || x.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
            text += &format!("1: {} [2: 64] @ {:#x}\n", 1 + hash() % 4096, hash());
        }
        text
    }
}

fn serve_noise() -> String {
    let noise = noise(3000);
    serve(move |_, s| reply(s, "200 OK", "text/plain", noise().as_bytes()))
}

/// How many profiles a store has of the only target.
fn kept(path: &str) -> u64 {
    let reader = memtrace_store::Reader::open(path.as_ref()).expect("a store");
    reader.check().expect("a whole store");
    let target = reader.targets().expect("its targets")[0].id;
    let all = memtrace_model::Time(0)..=memtrace_model::Time(i64::MAX);
    let snapshots = memtrace_store::Kind::ALL.map(|kind| {
        let found = reader.snapshots(target, kind, all.clone());
        found.expect("its profiles").filter(Result::is_ok).count() as u64
    });
    snapshots.iter().sum()
}

/// `10 of 15 profiles` in a line: 10 and 15.
fn lost(line: &str) -> (u64, u64) {
    let (before, after) = line.split_once(" of ").expect("so many of so many");
    let lost = before.rsplit(' ').next().and_then(|n| n.parse().ok());
    let of = after.split(' ').next().and_then(|n| n.parse().ok());
    (lost.expect("a number"), of.expect("a number"))
}

#[test]
fn a_disk_that_is_full() {
    let Some(disk) = Mount::new("size=1m") else {
        return;
    };
    let url = serve_noise();
    let watch = || {
        let (url, path) = (url.as_str(), disk.path());
        run(&[
            "watch",
            url,
            "--interval",
            "200ms",
            "--for",
            "4s",
            "--store",
            &path,
        ])
    };
    // The watch goes on, and says once that it cannot keep what it sees.
    let output = watch();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.matches("not stored").count(), 1, "{said}");
    assert!(said.contains("no space left"), "{said}");
    // At the end it says what it lost, and has not succeeded; what it did not lose is there.
    let errors = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    // A smaller one may have had room in between.
    let full: Vec<&str> = (errors.lines())
        .filter(|line| line.contains("could not be kept: no space left"))
        .collect();
    assert_eq!(full.len(), 2, "{errors}");
    assert!(errors.lines().count() <= 3, "{errors}");
    assert!(full[0].starts_with("memtrace: store "), "{errors}");
    assert_eq!(errors.lines().last(), Some(full[1]), "{errors}");
    let (lost_first, of_first) = lost(full[0]);
    let (lost, of) = lost(full[1]);
    assert!((1..=lost).contains(&lost_first), "{errors}");
    assert!(of_first < of && lost <= of && of > 10, "{errors}");
    assert_eq!(kept(&disk.path()), of - lost, "{errors}");
    // With room again, the same store takes up where it left off.
    assert!(disk.mount("remount,size=64m"));
    let output = watch();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!said.contains("not stored"), "{said}");
}

#[test]
fn a_disk_that_is_full_for_a_while() {
    let Some(disk) = Mount::new("size=1m") else {
        return;
    };
    let (url, path) = (serve_noise(), disk.path());
    let mut watch = memtrace()
        .args(["watch", &url, "--interval", "200ms", "--for", "1m"])
        .args(["--json", "--store", &path])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("memtrace starts");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(
        watch.stderr.take().expect("its stderr"),
    ));
    let mut line = || lines.next().expect("a line").expect("a text");
    let first = line();
    assert!(first.contains("no space left"), "{first}");
    assert!(disk.mount("remount,size=64m"));
    let again = line();
    assert!(again.ends_with("what comes now is kept again"), "{again}");
    let (lost_then, of_then) = lost(&again);
    std::thread::sleep(Duration::from_secs(1));
    signal(watch.id(), "TERM");
    let last = line();
    let status = watch.wait().expect("it ends");
    assert_eq!(status.code(), Some(1), "{last}");
    let (lost, of) = lost(&last);
    assert!(lost == lost_then && of > of_then, "{again} {last}");
    assert_eq!(kept(&path), of - lost, "{last}");
}

fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .status();
    assert!(sent.is_ok_and(|s| s.success()));
}

/// A service that takes a request and never answers.
/// A disk that stands still while large profiles come is no fault of their target.
#[test]
fn a_store_that_another_writer_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, noise) = (folder.path().join("memtrace.db"), noise(40_000));
    let writer = Mutex::new(None);
    let url = serve(move |_, s| {
        writer.lock().expect("whole").get_or_insert_with(|| {
            let db = rusqlite::Connection::open(&store).expect("the store");
            db.execute_batch("BEGIN IMMEDIATE")
                .expect("to be its writer");
            db
        });
        reply(s, "200 OK", "text/plain", noise().as_bytes());
    });
    let path = folder.path().to_string_lossy();
    let output = run(&[
        "watch",
        &url,
        "--interval",
        "500ms",
        "--for",
        "1s",
        "--store",
        &path,
    ]);
    let errors = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("could not be kept: the store is busy"),
        "{errors}"
    );
    assert!(!errors.contains("no answer"), "{errors}");
}

fn serve_silence() -> String {
    serve(|_, _| std::thread::sleep(Duration::from_secs(600)))
}

#[test]
fn one_target_of_two_is_never_read() {
    let good = serve_noise();
    let bad = serve(|_, s| reply(s, "404 Not Found", "text/plain", b"404 page not found"));
    for also in [&[][..], &["--json"], &["--fail-on", "leak"]] {
        let times = ["--interval", "300ms", "--for", "1s"];
        let output = run(&[&["watch", &good, &bad], &times[..], also].concat());
        let errors = stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{also:?}: {errors}");
        let lines: Vec<&str> = errors.lines().collect();
        assert_eq!(lines.len(), 2, "{errors}");
        let start = format!("memtrace: {bad}: never read: ");
        assert!(lines[0].starts_with(&start), "{errors}");
        assert!(lines[0].contains("no pprof at"), "{errors}");
        assert_eq!(lines[1], "memtrace: 1 of 2 targets were never read");
    }
}

#[test]
fn no_target_of_two_is_ever_read() {
    let bad = serve(|_, s| reply(s, "404 Not Found", "text/plain", b"404 page not found"));
    let nobody = "http://127.0.0.1:1";
    let output = run(&["watch", &bad, nobody, "--interval", "300ms", "--for", "1s"]);
    let errors = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{errors}");
    assert_eq!(errors.lines().count(), 3, "{errors}");
    assert!(errors.contains("connection refused"), "{errors}");
    assert!(
        errors.contains("2 of 2 targets were never read"),
        "{errors}"
    );
    // One that can be no target at all is wrong usage, however many others there are.
    check(
        &["watch", &bad, "not a target at all"],
        2,
        "not a target at all",
    );
}

#[test]
fn a_watch_that_is_stopped_before_it_read_anything() {
    let url = serve_silence();
    for (name, also) in [("TERM", &[][..]), ("INT", &["--json"])] {
        let watch = memtrace()
            .args(["watch", &url])
            .args(also)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("memtrace starts");
        std::thread::sleep(Duration::from_millis(800));
        signal(watch.id(), name);
        let output = watch.wait_with_output().expect("it ends");
        let errors = stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
    check(&["watch", &url, "--for", "1s"], 3, "");
}

#[test]
fn a_store_that_may_not_be_written() {
    let Some(disk) = Mount::new("size=4m,ro") else {
        return;
    };
    let path = disk.path();
    check(
        &["watch", "127.0.0.1:1", "--for", "1s", "--store", &path],
        1,
        "Read-only",
    );
}

#[test]
fn a_store_of_a_newer_version() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().to_string_lossy().into_owned();
    let url = serve_noise();
    let output = run(&[
        "watch",
        &url,
        "--interval",
        "1s",
        "--for",
        "1s",
        "--store",
        &path,
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    // SQLite keeps a file's user_version at offset 60.
    let file = dir.path().join("memtrace.db");
    let mut bytes = std::fs::read(&file).expect("the store");
    bytes[60..64].copy_from_slice(&4711u32.to_be_bytes());
    std::fs::write(&file, bytes).expect("the store");
    check(
        &["watch", &url, "--for", "1s", "--store", &path],
        1,
        "knows formats up to",
    );
}

/// Where a watch has come, by the events it printed as JSON lines.
fn events(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
    lines
        .filter_map(|v| Some(v["event"].as_str()?.to_owned()))
        .collect()
}

#[test]
fn a_service_that_restarts() {
    let Some(program) = cnc() else { return };
    let mut service = Service::start(&program, &["-load", "100"]);
    let (url, host) = (
        service.url.clone(),
        service.url.trim_start_matches("http://").to_owned(),
    );
    let watch = memtrace()
        .args([
            "watch",
            &url,
            "--interval",
            "500ms",
            "--for",
            "12s",
            "--json",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("memtrace starts");
    std::thread::sleep(Duration::from_secs(4));
    service.kill();
    std::thread::sleep(Duration::from_secs(2));
    let _again = Service::start(&program, &["-load", "100", "-listen", &host]);
    let output = watch.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let mut seen = events(&output);
    // Which of the two is noticed first is chance.
    seen.sort();
    assert_eq!(seen, ["lost", "recovered", "restart"]);
}

#[test]
fn a_service_that_dies() {
    let Some(program) = cnc() else { return };
    let mut service = Service::start(&program, &["-load", "100"]);
    let pid = service.pid().to_string();
    let watch = memtrace()
        .args([
            "watch",
            &pid,
            "--interval",
            "500ms",
            "--for",
            "5m",
            "--json",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("memtrace starts");
    std::thread::sleep(Duration::from_secs(4));
    service.kill();
    let output = watch.wait_with_output().expect("it ends");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(&format!("process {pid} has ended")), "{said}");
    assert_eq!(events(&output), ["lost"]);
}

#[test]
fn output_into_a_closed_pipe_is_no_error() {
    let dir = tempfile::tempdir().expect("a folder");
    let heap = dir.path().join("heap.txt");
    let mut text = String::from("heap profile: 1: 16 [1: 16] @ heap/1048576\n");
    for i in 0..20_000 {
        text += &format!("1: 16 [1: 16] @ {:#x}\n", 0x1000 + i * 16);
    }
    std::fs::write(&heap, text).expect("a file");
    let mut child = memtrace()
        .args(["top", "-n", "0"])
        .arg(&heap)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("memtrace starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(
        (output.status.code(), stderr(&output).as_str()),
        (Some(0), "")
    );
}
