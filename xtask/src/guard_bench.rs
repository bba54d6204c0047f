//! `cargo xtask bench guard`: does a flood of requests without the right token move the
//! jitter of a 1 kHz control loop, and does the holder of the token still get a profile?
//!
//! The flood comes from this machine, so it takes time from the control loop whoever
//! answers it, although its senders run at the lowest priority. Turns are therefore of three kinds: quiet, the flood at the guard of the
//! service, and the same flood at a bystander, a bare socket that answers without looking.
//! They follow each other as A B C C B A, the histograms of all turns of a kind are
//! pooled before the quantile is taken, and the spread over rounds says how far a ratio
//! is noise.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::demo::Service;
use crate::harm_bench::{Histogram, merge, one_turn, quantile};
use crate::tools::{Outcome, TOKEN, build_cnc, record, root};

/// Requests a second.
const RATE: u32 = 1000;

/// Senders of the flood; the odd ones open a connection for each request.
const LANES: u32 = 8;

const PATIENCE: Duration = Duration::from_secs(10);

/// What the guard says, and the bystander with it.
const REFUSAL: &[u8] = b"Forbidden\n";

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Quiet,
    Guard,
    Bystander,
}

const KINDS: [Kind; 3] = [Kind::Quiet, Kind::Guard, Kind::Bystander];

/// Runs `rounds` rounds with turns of `seconds` each, and appends the result to
/// `bench/guard.md`.
pub(crate) fn run(rounds: u32, seconds: u64) -> Outcome {
    let cnc = build_cnc()?;
    let service = Service::start(Command::new(cnc).args([
        "-listen",
        "127.0.0.1:0",
        "-load",
        "500",
        "-pprof-listen",
        "127.0.0.1:0",
    ]))?;
    // A sender elsewhere would take nothing of these processors but what its packets cost:
    // ours, this thread and those that it starts, run only where nobody else wants to.
    rustix::process::nice(19).map_err(|e| e.to_string())?;
    let bystander = bystander()?;
    // Caches and the heap's size settle first.
    thread::sleep(Duration::from_secs(20));

    let mut pooled: [Histogram; 3] = Default::default();
    let mut ratios: [Vec<f64>; 3] = Default::default();
    let mut slowest = [Duration::ZERO; 3];
    let mut cpu = [Duration::ZERO; 3];
    for round in 0..rounds {
        let mut order = [0, 1, 2];
        if round % 2 == 1 {
            order.reverse();
        }
        let mut p999 = [0; 3];
        for i in order {
            let turn = turn(&service, KINDS[i], &bystander, seconds)?;
            p999[i] = quantile(&turn.jitter);
            slowest[i] = slowest[i].max(turn.profile);
            cpu[i] += turn.cpu;
            merge(&mut pooled[i], turn.jitter);
        }
        println!(
            "round {}: p99.9 {} µs quiet, {} µs guard, {} µs bystander",
            round + 1,
            p999[0] / 1000,
            p999[1] / 1000,
            p999[2] / 1000
        );
        for i in [1, 2] {
            ratios[i].push(p999[i] as f64 / p999[0].max(1) as f64);
        }
    }
    let quiet = quantile(&pooled[0]);
    let mut text = format!(
        "`cargo xtask bench guard --rounds {rounds} --seconds {seconds}`: {RATE} requests/s with a wrong token, half of them on \
         connections of their own. None was let in; a request with the token in the middle of each turn got its profile.\n\n\
         | turns | p99.9 jitter | pooled ratio to quiet | median of rounds | quartiles of rounds | profile took at most | CPU of the service |\n\
         |---|---|---|---|---|---|---|\n"
    );
    let cores = |i: usize| 100.0 * cpu[i].as_secs_f64() / (u64::from(rounds) * seconds) as f64;
    let _ = writeln!(
        text,
        "| quiet | {:.1} µs | | | | {} ms | {:.1} % of a core |",
        quiet as f64 / 1e3,
        slowest[0].as_millis(),
        cores(0)
    );
    for (i, name) in [
        (1, "flood at the guard"),
        (2, "flood at a bare socket elsewhere"),
    ] {
        ratios[i].sort_by(f64::total_cmp);
        let at = |q: f64| ratios[i][((ratios[i].len() - 1) as f64 * q) as usize];
        let _ = writeln!(
            text,
            "| {name} | {:.1} µs | **{:.3}** | {:.3} | {:.3} … {:.3} | {} ms | {:.1} % |",
            quantile(&pooled[i]) as f64 / 1e3,
            quantile(&pooled[i]) as f64 / quiet.max(1) as f64,
            at(0.5),
            at(0.25),
            at(0.75),
            slowest[i].as_millis(),
            cores(i)
        );
    }
    let _ = writeln!(
        text,
        "\nThe guard beside the bare socket: **{:.3}**.",
        quantile(&pooled[1]) as f64 / quantile(&pooled[2]).max(1) as f64
    );
    println!("\n{text}");
    record(
        &root().join("bench/guard.md"),
        "Guard: a flood of refused requests beside a 1 kHz control loop",
        &text,
    )
}

struct Turn {
    jitter: Histogram,
    /// How long the holder of the token waited for a heap profile.
    profile: Duration,
    /// What the service used of a core.
    cpu: Duration,
}

fn turn(service: &Service, kind: Kind, bystander: &str, seconds: u64) -> Outcome<Turn> {
    let guard = service.profiles.trim_start_matches("http://");
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    thread::scope(|scope| {
        let lanes = if kind == Kind::Quiet { 0 } else { LANES };
        let host = if kind == Kind::Guard {
            guard
        } else {
            bystander
        };
        let stop = &stop;
        let senders: Vec<_> = (0..lanes)
            .map(|lane| scope.spawn(move || send(host, lane, stop)))
            .collect();
        let profile = scope.spawn(|| {
            thread::sleep(Duration::from_secs(seconds) / 2);
            heap_profile(guard)
        });
        let before = cpu_time(service.pid())?;
        let jitter = one_turn(service, seconds);
        let cpu = cpu_time(service.pid())?.saturating_sub(before);
        stop.store(true, Ordering::Relaxed);
        let mut sent = 0;
        for sender in senders {
            sent += sender.join().map_err(|_| "a sender panicked")??;
        }
        let profile = profile.join().map_err(|_| "a request panicked")??;
        let rate = f64::from(sent) / begun.elapsed().as_secs_f64();
        if lanes > 0 && rate < 0.97 * f64::from(RATE) {
            return Err(format!("the flood had {rate:.0} requests/s only"));
        }
        Ok(Turn {
            jitter: jitter?,
            profile,
            cpu,
        })
    })
}

/// CPU time that a process has used (Linux).
fn cpu_time(pid: u32) -> Outcome<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|e| e.to_string())?;
    // The name in parentheses may hold anything; user and system time are the 14th and
    // 15th field, in ticks of 10 ms.
    let ticks: u64 = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// Sends at fixed times until told to stop, without waiting for the answers, and gives
/// the number of requests. The guard answers with 403, later or not at all; anything else
/// is an error.
fn send(host: &str, lane: u32, stop: &AtomicBool) -> Outcome<u32> {
    let keep = lane.is_multiple_of(2);
    let request = format!(
        "GET /debug/pprof/heap HTTP/1.1\r\nHost: {host}\r\nX-Pprof-Token: not-the-token-at-all\r\nConnection: {}\r\n\r\n",
        if keep { "keep-alive" } else { "close" }
    );
    let gap = Duration::from_secs(1) / (RATE / LANES);
    let mut next = Instant::now() + gap * lane / LANES;
    let mut kept = None;
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        next += gap;
        sent += 1;
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => connect(host)?,
        };
        stream.set_nonblocking(keep).map_err(|e| e.to_string())?;
        // Closed, or full of requests that are not read: the flood goes on elsewhere.
        if stream.write_all(request.as_bytes()).is_err() {
            continue;
        }
        let mut some = [0; 1024];
        match stream.read(&mut some) {
            Ok(n) if some[..n].windows(14).any(|w| w == b"HTTP/1.1 200 O") => {
                return Err(format!("{host}: a wrong token was let in"));
            }
            Ok(0) => {}
            Err(e) if e.kind() != ErrorKind::WouldBlock => {}
            _ => kept = keep.then_some(stream),
        }
    }
    Ok(sent)
}

fn connect(host: &str) -> Outcome<TcpStream> {
    let stream = TcpStream::connect(host).map_err(|e| format!("{host}: {e}"))?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_nodelay(true))
        .map_err(|e| format!("{host}: {e}"))?;
    Ok(stream)
}

/// Asks until there is a profile: new connections from the address that floods are
/// closed at times.
fn heap_profile(host: &str) -> Outcome<Duration> {
    let begun = Instant::now();
    loop {
        match try_profile(host) {
            Ok(()) => return Ok(begun.elapsed()),
            Err(why) if begun.elapsed() > PATIENCE => {
                return Err(format!("the request with the token got no profile: {why}"));
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn try_profile(host: &str) -> Outcome {
    let mut stream = connect(host)?;
    write!(
        stream,
        "GET /debug/pprof/heap HTTP/1.0\r\nHost: {host}\r\nX-Pprof-Token: {TOKEN}\r\n\r\n"
    )
    .map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(|e| e.to_string())?;
    let head = answer.windows(4).position(|w| w == b"\r\n\r\n");
    let body = head.map_or(&[][..], |end| &answer[end + 4..]);
    memtrace_formats::pprof::parse(body).map_err(|e| e.to_string())?;
    Ok(())
}

/// Address of a socket in this process that refuses whatever is asked.
fn bystander() -> Outcome<String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    let host = listener.local_addr().map_err(|e| e.to_string())?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || refuse(stream));
        }
    });
    Ok(host.to_string())
}

fn refuse(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let answer = format!(
        "HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\n\r\n",
        REFUSAL.len()
    );
    let answer = [answer.as_bytes(), REFUSAL].concat();
    let mut some = [0; 1024];
    // A request of ours comes in one piece.
    while let Ok(n) = stream.read(&mut some) {
        if n == 0 || stream.write_all(&answer).is_err() {
            return;
        }
    }
}
