//! A process that cannot be read is told what it is, truly, and is left alone: the right line
//! and the right exit code.

#![allow(clippy::panic)] // that is how a test fails

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::run;

/// A program that waits, ended when dropped.
struct Program(Child);

impl Program {
    fn start(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Self(child.expect("it starts"))
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// A field of its status.
    fn status(&self, field: &str) -> String {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let text = text.expect("it runs");
        let mut lines = text.lines().filter_map(|l| l.split_once(':'));
        let found = lines.find(|(name, _)| *name == field);
        found.expect("a field").1.trim().to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Go program that sleeps, built for a machine; `None`, with a message, without Go.
fn sleeper(folder: &Path, machine: &str) -> Option<PathBuf> {
    let source = folder.join("main.go");
    let text = "package main\nimport \"time\"\nfunc main() { time.Sleep(time.Hour) }\n";
    std::fs::write(&source, text).expect("a file");
    let go = std::env::var_os("MEMTRACE_GO").unwrap_or_else(|| "go".into());
    let program = folder.join("sleeper");
    let built = Command::new(&go)
        .args(["build", "-o"])
        .arg(&program)
        .arg(&source)
        .envs([("CGO_ENABLED", "0"), ("GOARCH", machine)])
        .envs([("GOTOOLCHAIN", "local"), ("GO111MODULE", "off")])
        .output();
    match built {
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{why}");
            Some(program)
        }
        Err(error) => {
            eprintln!("skipped: {go:?}: {error}; set MEMTRACE_GO");
            None
        }
    }
}

/// Every verb that reads a process fails with this in one line, and with nothing written.
#[track_caller]
fn refused(pid: &str, folder: &Path, says: &[&str]) {
    let file = folder.join("heap.mtsnap").display().to_string();
    for args in [
        &["snapshot", pid, "-o", &file][..],
        &["report", pid],
        &["why", pid, "--type", "main.T"],
        &["watch", pid, "--interval", "300ms", "--for", "1s"],
    ] {
        let output = run(args);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{args:?}: {errors}");
        for part in says {
            assert!(errors.contains(part), "{args:?}: no {part:?} in {errors}");
        }
        assert!(!Path::new(&file).exists(), "{args:?}");
    }
}

#[test]
fn a_32_bit_go_program() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(program) = sleeper(folder.path(), "386") else {
        return;
    };
    let ran = Command::new(&program).stdin(Stdio::null()).spawn();
    let Ok(child) = ran else {
        eprintln!("skipped: this system runs no 32-bit programs");
        return;
    };
    let program = Program(child);
    let what = format!(
        "process {} is a 32-bit Go program (386): memtrace reads 64-bit ones only",
        program.pid()
    );
    refused(&program.pid(), folder.path(), &[&what]);
    assert!(!program.status("State").starts_with('T'));
}

#[test]
fn a_program_that_is_not_go() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = Program::start(Command::new("sleep").arg("600"));
    let file = folder.path().join("heap.mtsnap").display().to_string();
    for args in [
        &["snapshot", &program.pid(), "-o", &file][..],
        &["report", &program.pid()],
    ] {
        let output = run(args);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {errors}");
        let what = format!(
            "process {} is a native program, not a Go program",
            program.pid()
        );
        assert!(errors.contains(&what), "{args:?}: {errors}");
    }
}

#[test]
fn a_program_under_a_debugger() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(program) = sleeper(folder.path(), "") else {
        return;
    };
    let program = Program::start(&mut Command::new(program));
    // It waits for a command as long as its input is open.
    let debugger = Command::new("gdb")
        .args(["-nx", "-q", "-p", &program.pid()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(debugger) = debugger else {
        eprintln!("skipped: gdb is not here");
        return;
    };
    let debugger = Program(debugger);
    let begun = Instant::now();
    while program.status("TracerPid") == "0" {
        if begun.elapsed() > Duration::from_secs(60) {
            eprintln!("skipped: gdb may not trace here");
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let tracer = debugger.pid();
    refused(&program.pid(), folder.path(), &["is traced by", &tracer]);
    // Who has it keeps it.
    assert_eq!(program.status("TracerPid"), tracer);
}
