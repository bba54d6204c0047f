//! Public servers under load, from the Go module proxy: their clients must see no error, and
//! wait no longer than in turns without memtrace but for the pauses.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::invariants::Strangers;
use super::shot::{Memtrace, Taken};
use super::targets::{self, Build, MARK};
use super::{Options, process};
use crate::harm_bench::{Histogram, merge, quantile};
use crate::tools::{Outcome, go, go_command, run as run_command, target_dir};

/// Snapshots of each server.
const FULL: u32 = 100;
const SHORT: u32 = 12;

/// Between two snapshots.
const PAUSE: Duration = Duration::from_millis(600);

/// A server.
struct Server {
    name: &'static str,
    module: &'static str,
    version: &'static str,
    package: &'static str,
    /// How it is asked, and how often a second.
    protocol: &'static str,
    rate: u32,
}

const SERVERS: [Server; 3] = [
    Server {
        name: "nats-server",
        module: "github.com/nats-io/nats-server/v2",
        version: "v2.15.2",
        package: "github.com/nats-io/nats-server/v2",
        protocol: "nats",
        rate: 2000,
    },
    Server {
        name: "caddy",
        module: "github.com/caddyserver/caddy/v2",
        version: "v2.11.9",
        package: "github.com/caddyserver/caddy/v2/cmd/caddy",
        protocol: "http",
        rate: 1500,
    },
    Server {
        name: "etcd",
        module: "go.etcd.io/etcd/server/v3",
        version: "v3.7.3",
        package: "go.etcd.io/etcd/server/v3",
        protocol: "etcd",
        rate: 500,
    },
];

/// What clients saw in turns of one kind.
#[derive(Default)]
struct Seen {
    latencies: Histogram,
    requests: u64,
    errors: u64,
    first_error: String,
}

/// Loads each server: a table for people, and what went wrong.
pub(crate) fn run(
    options: &Options,
    memtrace: &Memtrace,
    folder: &Path,
) -> Outcome<(String, Vec<String>)> {
    let mut table = String::from(
        "| server | snapshots | refused | pause p50 | max | requests with | p99.9 with | max with | requests without | \
         p99.9 without | max without | errors with | without |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut faults = Vec::new();
    let named = |s: &&Server| options.kind.as_deref().is_none_or(|k| k == s.name);
    for server in SERVERS.iter().filter(named) {
        match server.measure(options, memtrace, folder, &mut faults) {
            Ok(row) => table.push_str(&row),
            Err(error) => faults.push(format!("{}: {error}", server.name)),
        }
    }
    table.push_str("\nLatencies in ms, from the moment at which a request was due.\n");
    Ok((table, faults))
}

impl Server {
    fn build(&self) -> Outcome<PathBuf> {
        let program = target_dir().join(format!("services/{}-{}", self.name, self.version));
        if program.exists() {
            return Ok(program);
        }
        // A module of its own: what a module of others replaces for itself does not count there.
        let module = target_dir().join(format!("services/module-{}", self.name));
        std::fs::create_dir_all(&module).map_err(|e| e.to_string())?;
        std::fs::write(module.join("go.mod"), "module server\n\ngo 1.21\n")
            .map_err(|e| e.to_string())?;
        let go = go()?;
        run_command(
            go_command(&go, &module)
                .arg("get")
                .arg(format!("{}@{}", self.module, self.version)),
        )?;
        run_command(
            go_command(&go, &module)
                .args(["build", "-o"])
                .arg(&program)
                .arg(self.package),
        )?;
        Ok(program)
    }

    /// Starts it, with its files in `folder`; it listens on the first of the ports.
    fn start(&self, folder: &Path, ports: [u16; 2]) -> Outcome<Running> {
        let program = self.build()?;
        let home = folder.join(self.name);
        std::fs::create_dir_all(&home).map_err(|e| e.to_string())?;
        std::fs::write(home.join("page.txt"), "0123456789abcdef".repeat(256))
            .map_err(|e| e.to_string())?;
        let [port, peers] = ports;
        let (host, peers) = (
            format!("127.0.0.1:{port}"),
            format!("http://127.0.0.1:{peers}"),
        );
        let url = format!("http://{host}");
        let mut command = Command::new(program);
        match self.protocol {
            "nats" => command.args(["-a", "127.0.0.1", "-p", &port.to_string()]),
            "http" => command
                .args(["file-server", "--listen", &host, "--root"])
                .arg(&home),
            _ => command
                .arg("--data-dir")
                .arg(home.join("data"))
                .args([
                    "--listen-client-urls",
                    &url,
                    "--advertise-client-urls",
                    &url,
                ])
                .args(["--listen-peer-urls", &peers])
                .args(["--initial-advertise-peer-urls", &peers])
                .args(["--initial-cluster", &format!("default={peers}")])
                // The disk of this machine is not what is measured.
                .args(["--unsafe-no-fsync", "--log-level", "error"]),
        };
        let child = command
            .current_dir(&home)
            .env("HOME", &home)
            .env("XDG_DATA_HOME", &home)
            .env("XDG_CONFIG_HOME", &home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| e.to_string())?;
        let running = Running(child);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let until = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            if Instant::now() > until {
                return Err("it does not listen".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // It is not ready at once for all that it serves.
        std::thread::sleep(Duration::from_secs(2));
        Ok(running)
    }

    fn measure(
        &self,
        options: &Options,
        memtrace: &Memtrace,
        folder: &Path,
        faults: &mut Vec<String>,
    ) -> Outcome<String> {
        let all = options
            .count
            .unwrap_or(if options.full { FULL } else { SHORT });
        // A B B A: what drifts hits both alike.
        let turns = if options.full { "ABBAABBA" } else { "ABBA" };
        let with_snapshots = turns.len() as u32 / 2;
        let each = all.div_ceil(with_snapshots);
        let ports = [free_port()?, free_port()?];
        let server = self.start(folder, ports)?;
        let pid = server.0.id();
        let start = process::start_of(pid).ok_or("it ended at once")?;
        let files = process::descriptors(pid);
        let strangers = Strangers::new();
        let mut load = Load::start(self, ports[0], &memtrace.mark)?;
        std::thread::sleep(Duration::from_secs(2));
        load.take()?;

        let (mut with, mut without) = (Seen::default(), Seen::default());
        let mut pauses = Vec::new();
        let mut refused = 0;
        for turn in turns.chars() {
            let until = Instant::now() + PAUSE * each;
            if turn == 'A' {
                for _ in 0..each {
                    let next = Instant::now() + PAUSE;
                    match memtrace.take_any(pid) {
                        Ok(Taken::Good { pause_ms, .. }) => pauses.push(pause_ms),
                        Ok(Taken::Refused(reason)) => {
                            refused += 1;
                            eprintln!("{}: refused: {reason}", self.name);
                        }
                        Err(fault) => faults.push(format!("{}: {fault}", self.name)),
                    }
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            }
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
            let seen = load.take()?;
            if turn == 'A' {
                with.add(seen);
            } else {
                without.add(seen);
            }
        }
        if process::start_of(pid) != Some(start) {
            return Err("it DIED".into());
        }
        if process::tracer_of(pid) != Some(0) {
            faults.push(format!("{}: it is still traced", self.name));
        }
        let left = strangers.left(&[pid], &memtrace.mark, Duration::from_secs(3));
        faults.extend(left.iter().map(|s| format!("{}: {s}", self.name)));
        drop(load);
        let mut now = process::descriptors(pid);
        for _ in 0..100 {
            if now <= files {
                break;
            }
            // It closes the connections of the clients.
            std::thread::sleep(Duration::from_millis(50));
            now = process::descriptors(pid);
        }
        // Logs and databases of its own may be among them.
        if now > files + 4 {
            faults.push(format!("{}: {now} open files, {files} before", self.name));
        }
        if with.errors > 0 {
            faults.push(format!(
                "{}: its clients saw {} errors: {}",
                self.name, with.errors, with.first_error
            ));
        }
        pauses.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let last = pauses.len().saturating_sub(1) as f64;
            pauses.get((last * share) as usize).copied().unwrap_or(0.0)
        };
        let milliseconds = |ns: u64| ns as f64 / 1e6;
        let worst = |seen: &Seen| seen.latencies.keys().next_back().copied().unwrap_or(0);
        let mut row = String::new();
        let _ = writeln!(
            row,
            "| {} {} | {} | {refused} | {:.1} | {:.1} | {} | {:.2} | {:.1} | {} | {:.2} | {:.1} | {} | {} |",
            self.name,
            self.version,
            pauses.len() + refused,
            at(0.5),
            at(1.0),
            with.requests,
            milliseconds(quantile(&with.latencies)),
            milliseconds(worst(&with)),
            without.requests,
            milliseconds(quantile(&without.latencies)),
            milliseconds(worst(&without)),
            with.errors,
            without.errors,
        );
        eprint!("{row}");
        Ok(row)
    }
}

impl Seen {
    fn add(&mut self, said: Value) {
        let asked = &said["asked"];
        self.requests += asked["requests"].as_u64().unwrap_or(0);
        self.errors += asked["errors"].as_u64().unwrap_or(0);
        if let Some(error) = asked["first_error"].as_str() {
            error.clone_into(&mut self.first_error);
        }
        let latencies = asked["latencies"].as_object();
        let latencies = latencies.into_iter().flatten();
        let latencies = latencies.filter_map(|(top, n)| Some((top.parse().ok()?, n.as_u64()?)));
        merge(&mut self.latencies, latencies.collect());
    }
}

/// A server that runs; it ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The clients of a server; they end with this.
struct Load {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Load {
    fn start(server: &Server, port: u16, mark: &str) -> Outcome<Self> {
        let mut child = Command::new(targets::build(Build::Go, None)?)
            .args(["-mode=load", "-protocol", server.protocol])
            .args(["-rate", &server.rate.to_string()])
            .args(["-address", &format!("127.0.0.1:{port}")])
            .env(MARK, format!("clients of {mark}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        let out = child.stdout.take().ok_or("no stdout")?;
        let mut load = Self {
            child,
            lines: BufReader::new(out),
        };
        load.hear()?;
        Ok(load)
    }

    /// What the clients saw since they were asked before.
    fn take(&mut self) -> Outcome<Value> {
        let input = self.child.stdin.as_mut().ok_or("no stdin")?;
        input.write_all(b"\n").map_err(|e| e.to_string())?;
        self.hear()
    }

    fn hear(&mut self) -> Outcome<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line).map_err(|e| e.to_string())?;
        serde_json::from_str(&line).map_err(|e| format!("the clients say {line:?}: {e}"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port of this machine that nobody listens on.
fn free_port() -> Outcome<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    let address = listener.local_addr().map_err(|e| e.to_string())?;
    Ok(address.port())
}
