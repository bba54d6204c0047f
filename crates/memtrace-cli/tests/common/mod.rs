//! Real services and the real program, for the end-to-end tests.
// Each test file uses its part, and a test may panic.
#![allow(dead_code, unreachable_pub, clippy::panic)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

/// What the profiles of the services in the tests require.
pub const TOKEN: &str = "a-token-of-the-tests";

/// The memtrace program, which knows the token of the services.
pub fn memtrace() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_memtrace"));
    program.env("MEMTRACE_TOKEN", TOKEN);
    program
}

/// Runs it to the end.
pub fn run(args: &[&str]) -> Output {
    memtrace()
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("memtrace starts")
}

/// The CNC controller, built by `cargo xtask test`, which names it in `MEMTRACE_CNC`.
/// Without it the test says that it was skipped and passes.
pub fn cnc() -> Option<PathBuf> {
    let program = std::env::var_os("MEMTRACE_CNC").map(PathBuf::from);
    if program.is_none() {
        eprintln!(
            "skipped: MEMTRACE_CNC is not set; `cargo xtask test` builds the service and sets it"
        );
    }
    program
}

/// The same for tests that take minutes; `MEMTRACE_MINUTES` says that there are any.
pub fn cnc_for_minutes() -> Option<PathBuf> {
    if std::env::var_os("MEMTRACE_MINUTES").is_none() {
        eprintln!("skipped: takes minutes, and MEMTRACE_MINUTES is not set");
        return None;
    }
    cnc()
}

/// A running service, ended when dropped.
pub struct Service {
    child: Child,
    pub url: String,
}

impl Service {
    /// Starts the CNC controller, which serves profiles for [`TOKEN`], and waits for its
    /// address.
    pub fn start(program: &PathBuf, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command
            .args(["-pprof-audit", "/dev/null"])
            .env("PPROF_ENABLED", "1")
            .env("PPROF_TOKEN", TOKEN);
        Self::run(command, args)
    }

    /// The same without profiles.
    pub fn closed(program: &PathBuf, args: &[&str]) -> Self {
        Self::run(Command::new(program), args)
    }

    /// The same, with its heap profile off.
    #[allow(dead_code)] // not every test needs it
    pub fn unsampled(program: &PathBuf, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.env("GODEBUG", "memprofilerate=0");
        Self::run(command, args)
    }

    fn run(mut command: Command, args: &[&str]) -> Self {
        let mut child = command
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the service starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its stdout"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("its first line");
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        let url = line
            .split_whitespace()
            .find(|w| w.starts_with("http://"))
            .map(str::to_owned);
        Self {
            child,
            url: url.unwrap_or_else(|| panic!("no address in {line:?}")),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What the service knows of its own leak.
    pub fn truth(&self) -> Value {
        serde_json::from_str(&self.get("/truth")).expect("/truth is JSON")
    }

    /// A plain GET; the body.
    pub fn get(&self, path: &str) -> String {
        let host = self.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(host).expect("the service answers");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a timeout");
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").expect("it listens");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .expect("it answers in text");
        answer
            .split_once("\r\n\r\n")
            .expect("a head and a body")
            .1
            .to_owned()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The JSON lines of an output that are findings.
pub fn findings(output: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("each line is JSON"))
        .filter(|v| v["schema"] == "memtrace.finding/1")
        .collect()
}
