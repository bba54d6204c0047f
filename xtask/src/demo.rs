//! `cargo xtask demo`: the main job, end to end, judged against what the service itself knows.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use memtrace_model::{Finding, Status, Time};
use serde_json::Value;

use crate::tools::{
    Outcome, build_cnc, build_memtrace, memtrace_command, target_dir, with_profiles,
};

const INTERVAL_S: u64 = 5;
const WATCH_S: u64 = 225;
const LEAK_AFTER: &str = "30s";
const LEAK_RATE: &str = "2MB";

/// Starts the CNC controller with a leak (or without), watches it for three
/// minutes, and compares the verdict with the service's own account.
pub(crate) fn run(healthy: bool) -> Outcome {
    let cnc = build_cnc()?;
    let memtrace = build_memtrace()?;
    let store = target_dir().join("demo.mtstore");
    let _ = std::fs::remove_dir_all(&store);

    let leak = if healthy { "none" } else { "mapkey" };
    println!("\nA CNC controller in Go, fault `{leak}`; memtrace watches it for {WATCH_S} s.\n");
    let service = Service::start(Command::new(cnc).args([
        "-listen",
        "127.0.0.1:0",
        "-leak",
        leak,
        "-leak-after",
        LEAK_AFTER,
        "-leak-rate",
        LEAK_RATE,
    ]))?;

    let mut watch = memtrace_command(&memtrace)
        .args([
            "watch",
            &service.url,
            "--interval",
            &format!("{INTERVAL_S}s"),
        ])
        .args([
            "--for",
            &format!("{WATCH_S}s"),
            "--limit",
            "2GiB",
            "--store",
        ])
        .arg(&store)
        .spawn()
        .map_err(|e| format!("{}: {e}", memtrace.display()))?;
    // The truth is read beside the watch, so that its rate is the rate that was there to see.
    let mut truth = Vec::new();
    let status = loop {
        if let Some(status) = watch.try_wait().map_err(|e| e.to_string())? {
            break status;
        }
        if let Ok(now) = service.truth() {
            truth.push(now);
        }
        std::thread::sleep(Duration::from_secs(1));
    };
    if !status.success() {
        return Err(format!("memtrace watch: {status}"));
    }

    let findings = open_findings(&store)?;
    println!();
    if healthy {
        return match findings.first() {
            None => {
                println!("Healthy service, no finding: as it should be.");
                Ok(())
            }
            Some(f) => Err(format!("a healthy service got a finding: {}", headline(f))),
        };
    }
    let first = findings.first().ok_or("the leak was not found")?;
    judge(first, &truth)
}

/// The findings that held at the end of the watch, rank 1 first.
fn open_findings(store: &Path) -> Outcome<Vec<Finding>> {
    let read = || -> Result<Vec<Finding>, memtrace_store::StoreError> {
        let reader = memtrace_store::Reader::open(store)?;
        let mut newest: Vec<Finding> = Vec::new();
        for target in reader.targets()? {
            for finding in reader.findings(target.id, Time(0)..=Time(i64::MAX))? {
                newest.retain(|f| f.id != finding.id);
                newest.push(finding);
            }
        }
        newest.retain(|f| f.status == Status::Open);
        newest.sort_by_key(|f| f.rank);
        Ok(newest)
    };
    read().map_err(|e| format!("{}: {e}", store.display()))
}

fn headline(f: &Finding) -> String {
    let at = f.culprit.as_ref().map_or("?", |c| c.function.as_str());
    format!(
        "{:?} {:?} at {at}, {:.0} bytes/min",
        f.tier, f.pattern, f.rate_bytes_per_min
    )
}

fn judge(found: &Finding, truth: &[Truth]) -> Outcome {
    let last = truth.last().ok_or("the service told no truth")?;
    let since = last.since.ok_or("the service says that it did not leak")?;
    let first = truth
        .iter()
        .find(|t| t.leaked_bytes > 0)
        .ok_or("the service says that it leaked nothing")?;
    let minutes = last.at.since(first.at) / 60.0;
    let real_rate = (last.leaked_bytes - first.leaked_bytes) as f64 / minutes;
    let rate_error = found.rate_bytes_per_min / real_rate - 1.0;
    let onset_error = found.onset.map(|t| t.since(since));
    let at = found.culprit.as_ref().map_or("?", |c| c.function.as_str());

    println!("{:<12}{:<52}the service's own truth", "", "memtrace");
    println!("{:<12}{:<52}{}", "where", at, last.function);
    println!(
        "{:<12}{:<52}{:.1} MB/min  (error {:+.0} %)",
        "rate",
        format!("{:.1} MB/min", found.rate_bytes_per_min / 1e6),
        real_rate / 1e6,
        rate_error * 100.0
    );
    println!(
        "{:<12}{:<52}{since}  (error {})",
        "onset",
        found.onset.map_or("?".into(), |t| t.to_string()),
        onset_error.map_or("?".into(), |s| format!("{s:+.1} s")),
    );
    println!(
        "{:<12}{}",
        "OOM",
        found
            .oom_at
            .map_or("no bound in sight".into(), |t| t.to_string())
    );

    let mut faults = Vec::new();
    if !last.functions.iter().any(|f| f == at) {
        faults.push("wrong function");
    }
    if rate_error.abs() > 0.2 {
        faults.push("rate off by more than 20 %");
    }
    if onset_error.is_none_or(|s| s.abs() > 2.0 * INTERVAL_S as f64) {
        faults.push("onset off by more than two intervals");
    }
    if found.oom_at.is_none() {
        faults.push("no time to OOM");
    }
    if faults.is_empty() {
        println!("\nFound: right function, rate, onset and time to OOM.");
        Ok(())
    } else {
        Err(faults.join("; "))
    }
}

/// What the service knows of its own leak.
pub(crate) struct Truth {
    /// When it said so.
    pub(crate) at: Time,
    /// The function that leaks.
    pub(crate) function: String,
    /// Every function a growing stack may rightly be blamed on.
    pub(crate) functions: Vec<String>,
    /// When the leak began.
    pub(crate) since: Option<Time>,
    /// Bytes leaked by now.
    pub(crate) leaked_bytes: u64,
}

/// A running service; it is ended when dropped.
pub(crate) struct Service {
    child: Child,
    /// Its base URL.
    pub(crate) url: String,
    /// Base URL of its profiles.
    pub(crate) profiles: String,
}

impl Service {
    /// Starts the CNC controller, which serves profiles for our token, and waits for the
    /// line that names its address.
    pub(crate) fn start(command: &mut Command) -> Outcome<Self> {
        let mut child = with_profiles(command)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}", command.get_program().to_string_lossy()))?;
        let stdout = child.stdout.take().ok_or("no stdout")?;
        let mut line = String::new();
        let mut lines = BufReader::new(stdout);
        let read = lines.read_line(&mut line);
        let mut urls = line
            .split_whitespace()
            .filter(|w| w.starts_with("http://"))
            .map(str::to_owned);
        let (url, profiles) = (urls.next(), urls.next());
        // Whatever it says later must not block it.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        match (read, url) {
            (Ok(_), Some(url)) => Ok(Self {
                child,
                profiles: profiles.unwrap_or_else(|| url.clone()),
                url,
            }),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                Err(format!("the service did not start: {line:?}"))
            }
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks the service for its truth.
    pub(crate) fn truth(&self) -> Outcome<Truth> {
        let json = get(&self.url, "/truth")?;
        let v: Value = serde_json::from_str(&json).map_err(|e| format!("/truth: {e}"))?;
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let function = text(&v["function"]);
        let mut functions: Vec<String> = v["functions"]
            .as_array()
            .into_iter()
            .flatten()
            .map(text)
            .collect();
        functions.push(function.clone());
        Ok(Truth {
            at: now(),
            function,
            functions,
            since: serde_json::from_value(v["since"].clone()).ok(),
            leaked_bytes: v["leaked_bytes"].as_u64().unwrap_or(0),
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn now() -> Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Time(since.map_or(0, |d| d.as_millis() as i64))
}

/// A plain HTTP/1.0 GET on loopback; the body.
pub(crate) fn get(url: &str, path: &str) -> Outcome<String> {
    request("GET", url, path)
}

/// A plain HTTP/1.0 request without a body on loopback; the body of the answer.
pub(crate) fn request(method: &str, url: &str, path: &str) -> Outcome<String> {
    let host = url.trim_start_matches("http://").trim_end_matches('/');
    let fail = |e: std::io::Error| format!("{url}{path}: {e}");
    let mut stream = TcpStream::connect(host).map_err(fail)?;
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .map_err(fail)?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"
    )
    .map_err(fail)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(fail)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") || head.contains(" 204 ") => {
            Ok(body.to_owned())
        }
        _ => Err(format!(
            "{url}{path}: {}",
            answer.lines().next().unwrap_or("no answer")
        )),
    }
}
