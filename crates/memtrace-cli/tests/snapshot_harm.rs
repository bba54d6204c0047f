//! `memtrace snapshot`, whole, on a Go service under load: nothing is lost, nothing is left,
//! and a `kill -9` of memtrace at any moment changes none of that.
//!
//! `MEMTRACE_FULL=1000` takes so many snapshots, and kills 200.

#![allow(clippy::panic, clippy::unwrap_used)] // that is how a test fails

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SERVICE: &str = include_str!("../../memtrace-collect/tests/goproc_service.go.txt");

struct Service {
    child: Child,
    address: String,
    program: PathBuf,
}

impl Service {
    /// `None` without a Go toolchain.
    fn start(folder: &Path) -> Option<Self> {
        let Some(go) = std::env::var_os("MEMTRACE_GO") else {
            eprintln!(
                "skipped: MEMTRACE_GO does not name a go program; `cargo xtask test` sets it"
            );
            return None;
        };
        std::fs::write(folder.join("main.go"), SERVICE).unwrap();
        std::fs::write(folder.join("go.mod"), "module service\n\ngo 1.21\n").unwrap();
        let mut build = Command::new(go);
        build
            .args(["build", "-o", "service", "."])
            .current_dir(folder);
        assert!(build.status().unwrap().success());
        let program = folder.join("service").canonicalize().unwrap();
        let mut child = Command::new(&program)
            .arg("20")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        let output = child.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut address).unwrap();
        Some(Self {
            child,
            address: address.trim().to_owned(),
            program,
        })
    }

    fn proc(&self, what: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{what}", self.child.id()))
    }

    /// What it has open, but for its connections.
    fn files(&self) -> BTreeSet<PathBuf> {
        let all = std::fs::read_dir(self.proc("fd")).unwrap();
        let targets = all.filter_map(|f| std::fs::read_link(f.ok()?.path()).ok());
        targets
            .filter(|t| !t.to_string_lossy().starts_with("socket:"))
            .collect()
    }

    /// It runs, nobody traces it, it has no child, and nobody else runs its program.
    fn is_whole(&mut self, when: &str) {
        assert_eq!(self.child.try_wait().unwrap(), None, "{when}: it has ended");
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let wrong = self.wrong();
            if wrong.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "{when}: {wrong:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for task in std::fs::read_dir(self.proc("task")).unwrap().flatten() {
            let read =
                |what: &str| std::fs::read_to_string(task.path().join(what)).unwrap_or_default();
            let children = read("children");
            if !children.trim().is_empty() {
                wrong.push(format!("children {children}"));
            }
            let status = read("status");
            let stopped = |l: &&str| {
                l.starts_with("State:")
                    && (l.contains('T') || l.contains('t'))
                    && !l.contains("sleeping")
                    || l.starts_with("TracerPid:") && !l.ends_with("\t0")
            };
            wrong.extend(status.lines().filter(stopped).map(str::to_owned));
        }
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let exe = std::fs::read_link(process.path().join("exe"));
            let own = process.file_name().to_str() == Some(&self.child.id().to_string());
            if !own && exe.is_ok_and(|e| e == self.program) {
                wrong.push(format!("a copy: {}", process.path().display()));
            }
        }
        wrong
    }

    fn snapshot(&self, to: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_memtrace"));
        command
            .args(["snapshot", &self.child.id().to_string(), "-o"])
            .arg(to);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Requests on one connection until told to stop: each has to be answered rightly.
fn client(address: &str, stop: &AtomicBool, answered: &AtomicU64) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let request = format!("GET /?n={number} HTTP/1.1\r\nHost: service\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let (mut answer, end) = (Vec::new(), format!("<{number}>"));
        while !answer.ends_with(end.as_bytes()) {
            let mut part = [0; 4096];
            let got = stream.read(&mut part).unwrap();
            assert!(got > 0, "the connection was closed");
            answer.extend_from_slice(&part[..got]);
        }
        number += 1;
        // A busy machine has room for memtrace, if little.
        std::thread::sleep(Duration::from_micros(500));
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn many_snapshots_and_kills_under_load() {
    let full: Option<u64> = std::env::var("MEMTRACE_FULL")
        .ok()
        .and_then(|n| n.parse().ok());
    let (snapshots, kills) = full.map_or((8, 12), |n| (n, 200));
    let folder = tempfile::tempdir().unwrap();
    let Some(mut service) = Service::start(folder.path()) else {
        return;
    };
    let to = folder.path().join("heap.mtsnap");
    let files = service.files();
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let address = service.address.clone();
    let mut killed = 0;
    std::thread::scope(|scope| {
        // The clients end, whatever fails.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&stop);
        for _ in 0..4 {
            scope.spawn(|| client(&address, &stop, &answered));
        }
        let mut times = Vec::new();
        for round in 0..snapshots {
            let begun = Instant::now();
            let done = service.snapshot(&to).output().unwrap();
            times.push(begun.elapsed());
            let says = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "{round}: {says}");
            service.is_whole("after a snapshot");
        }
        assert!(to.is_file());
        times.sort_unstable();
        let usual = times[times.len() / 2];
        for round in 0..kills {
            std::fs::remove_file(&to).ok();
            let mut run = service.snapshot(&to).spawn().unwrap();
            // Spread over all of a snapshot, each moment as likely.
            let share = (round * 0x9e37_79b9) % 1000;
            std::thread::sleep(usual.mul_f64(share as f64 / 1000.0));
            killed += u64::from(run.try_wait().unwrap().is_none());
            run.kill().unwrap();
            run.wait().unwrap();
            service.is_whole("after a kill");
            // All of a snapshot, or none of it.
            if to.is_file() {
                let mut report = Command::new(env!("CARGO_BIN_EXE_memtrace"));
                let opened = report.arg("report").arg(&to).output().unwrap();
                assert!(opened.status.success(), "half a snapshot was left");
            }
        }
    });
    let answered = answered.load(Ordering::Relaxed);
    assert!(
        killed > kills / 4,
        "only {killed} kills fell into a snapshot"
    );
    assert!(answered > 0);
    assert_eq!(service.files(), files);
    eprintln!(
        "{snapshots} snapshots, {killed} of {kills} kills before their end, {answered} requests, none lost"
    );
}
