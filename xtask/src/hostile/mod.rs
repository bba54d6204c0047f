//! `cargo xtask hostile`: three services are watched, and one of them is an enemy.
//!
//! The enemy answers with profiles that stand for much more than they are, with damage and
//! with lies ([`profiles`]), or breaks every rule of HTTP ([`talks`]). The other two are
//! honest. What is measured is what they and the machine see of it: the time between two of
//! their profiles, and the memory of memtrace. A few watches run side by side, since most of
//! the time is spent on waiting.

mod profiles;
mod talks;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::tools::{Outcome, build_memtrace, root, side_by_side, target_dir};

/// When an honest service was asked, and how many hostile answers had been given by then.
type Beats = Mutex<Vec<(Instant, u64)>>;

/// Time between two profiles of a target.
const INTERVAL: Duration = Duration::from_secs(1);
/// Watches side by side, in a short run and in a full one.
const WATCHES: [u64; 2] = [8, 16];
/// What an enemy may cost, MiB. The honest targets are in it.
const MOST_MIB: u64 = 64;
const TARGETS: u64 = 3;
/// At first the enemy is honest, so that what memtrace itself takes can be told.
const PEACE: Duration = Duration::from_secs(5);
/// By when so many must be through, or something stands still.
const LONGEST: Duration = Duration::from_secs(3600);

/// What the enemy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Profiles,
    Talks,
}

/// What was seen of one watch.
#[derive(Debug)]
struct Seen {
    /// Longest time between two profiles of an honest service, and at which number.
    gap: (Duration, u64),
    /// Memory before the enemy is one, and the most afterwards, MiB.
    base: u64,
    peak: u64,
}

pub(crate) fn run(full: bool) -> Outcome {
    // With the priority that memtrace gives itself: the measure must not be ahead of it.
    rustix::process::nice(10).map_err(|e| e.to_string())?;
    let memtrace = build_memtrace()?;
    if full {
        attack(&memtrace, Part::Profiles, 10_000, WATCHES[1])?;
        return attack(&memtrace, Part::Talks, 10_000, WATCHES[1]);
    }
    // Few of them leave room for both at once.
    let few = |part| attack(&memtrace, part, 200, WATCHES[0]);
    side_by_side([Part::Profiles, Part::Talks].map(|part| move || few(part)))
}

fn attack(memtrace: &Path, part: Part, count: u64, watches: u64) -> Outcome {
    let fixture = root().join("crates/memtrace-analysis/tests/fixtures/profiles/go-heap.pb.gz");
    let honest = std::fs::read(&fixture).map_err(|e| format!("{}: {e}", fixture.display()))?;
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&honest[..])
        .read_to_end(&mut plain)
        .map_err(|e| format!("{}: {e}", fixture.display()))?;
    let (honest, plain) = (Arc::new(honest), Arc::new(plain));

    let done = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let pulse = pulse(&over);
    let begun = Instant::now();
    let threads: Vec<_> = (0..watches)
        .map(|turn| {
            let (memtrace, honest, plain) = (memtrace.to_owned(), honest.clone(), plain.clone());
            let done = done.clone();
            thread::spawn(move || watch(&memtrace, part, turn, count, &done, &honest, &plain))
        })
        .collect();
    let mut seen = Vec::new();
    for thread in threads {
        seen.push(
            thread
                .join()
                .map_err(|_| "a watch's thread died".to_owned())??,
        );
    }
    over.store(true, Ordering::Relaxed);
    let late = pulse.join().unwrap_or_default();

    let (gap, number) = seen.iter().map(|s| s.gap).max().unwrap_or_default();
    let base = seen.iter().map(|s| s.base).max().unwrap_or(0);
    let grown = seen.iter().map(|s| s.peak.saturating_sub(s.base)).max();
    let grown = grown.unwrap_or(0);
    println!(
        "{part:?}: {} in {:.0} s against {watches} watches of {TARGETS} targets, one beat each {INTERVAL:?}: \
         longest gap of an honest target {gap:.2?}, before number {number} (the machine itself was late by {late:.2?}), memory {base} MiB, \
         at most {grown} MiB more",
        done.load(Ordering::Relaxed).min(count),
        begun.elapsed().as_secs_f64(),
    );
    if gap > 2 * INTERVAL + late {
        return Err(format!("an honest target was not read for {gap:.2?}"));
    }
    if grown > MOST_MIB {
        return Err(format!("memtrace took {grown} MiB for one hostile target"));
    }
    Ok(())
}

/// How late a thread that now and then has a little to do was at most: what the machine
/// does to everybody.
fn pulse(over: &Arc<AtomicBool>) -> thread::JoinHandle<Duration> {
    const BEAT: Duration = Duration::from_millis(20);
    let over = over.clone();
    thread::spawn(move || {
        let mut late = Duration::ZERO;
        let mut dice = profiles::Dice(0);
        while !over.load(Ordering::Relaxed) {
            let begun = Instant::now();
            thread::sleep(BEAT);
            // About what the profile of an honest service takes, some milliseconds.
            let work = (0..1_000_000).fold(0, |sum: u64, _| sum.wrapping_add(dice.next()));
            std::hint::black_box(work);
            late = late.max(begun.elapsed().saturating_sub(BEAT));
        }
        late
    })
}

/// One watch until `count` are `done`.
fn watch(
    memtrace: &Path,
    part: Part,
    turn: u64,
    count: u64,
    done: &Arc<AtomicU64>,
    honest: &Arc<Vec<u8>>,
    plain: &Arc<Vec<u8>>,
) -> Outcome<Seen> {
    let began = Instant::now();
    // When, and what number the enemy was at.
    let beats: [Arc<Beats>; 2] = Default::default();
    let mut urls = Vec::new();
    for beats in &beats {
        let (beats, honest, done) = (beats.clone(), honest.clone(), done.clone());
        urls.push(serve(move |path, stream| {
            if path.starts_with("/debug/pprof/heap") {
                let beat = (Instant::now(), done.load(Ordering::Relaxed));
                beats
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(beat);
                return answer(stream, &honest);
            }
            let _ = stream
                .write_all(b"HTTP/1.1 404 N\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        })?);
    }
    let (counter, honest, plain) = (done.clone(), honest.clone(), plain.clone());
    urls.insert(
        1,
        serve(move |path, stream| {
            if began.elapsed() < PEACE {
                return answer(stream, &honest);
            }
            // The numbers have gaps where the watch asks for something else.
            if part == Part::Profiles && path.starts_with("/debug/memtrace/") {
                return answer(stream, &profiles::sdk_page(counter.load(Ordering::Relaxed)));
            }
            let number = counter.fetch_add(1, Ordering::Relaxed);
            match part {
                Part::Profiles => answer(stream, &profiles::make(number, &honest, &plain)),
                Part::Talks => talks::hold(number, stream, &honest),
            }
        })?,
    );

    // What it said, for whoever looks into a failure.
    let said = target_dir().join("hostile");
    std::fs::create_dir_all(&said).map_err(|e| format!("{}: {e}", said.display()))?;
    let said = said.join(format!("{part:?}-{turn}.jsonl"));
    let said = std::fs::File::create(&said).map_err(|e| format!("{}: {e}", said.display()))?;
    // One of them also keeps what it reads.
    let store = tempfile::tempdir().map_err(|e| e.to_string())?;
    let kept = (turn == 0).then(|| ["--store".as_ref(), store.path().as_os_str()]);
    let child = Command::new(memtrace)
        .arg("watch")
        .args(&urls)
        .args(kept.iter().flatten())
        .args([
            "--json",
            "--interval",
            &format!("{}ms", INTERVAL.as_millis()),
        ])
        .stdin(Stdio::null())
        .stdout(said)
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("{}: {e}", memtrace.display()))?;
    let mut child = Ended(child);
    let status = format!("/proc/{}/status", child.0.id());
    thread::sleep(PEACE);
    let base = mib(&status, "VmRSS:");
    let (mut said, mut at) = (0, Instant::now());
    while done.load(Ordering::Relaxed) < count {
        thread::sleep(Duration::from_millis(100));
        if let Some(status) = child.0.try_wait().map_err(|e| e.to_string())? {
            return Err(format!(
                "the watch ended at number {}: {status}",
                done.load(Ordering::Relaxed)
            ));
        }
        let now = done.load(Ordering::Relaxed);
        if now > said {
            (said, at) = (now, Instant::now());
        }
        if at.elapsed() > Duration::from_secs(60) || began.elapsed() > LONGEST {
            return Err(format!("nothing happens any more after number {said}"));
        }
    }
    let peak = mib(&status, "VmHWM:");
    let end = Instant::now();
    let mut gap = (Duration::ZERO, 0);
    for beats in &beats {
        let mut beats = beats.lock().unwrap_or_else(PoisonError::into_inner).clone();
        beats.push((end, done.load(Ordering::Relaxed)));
        // The first ones are of the time before the enemy was one.
        let gaps = beats.windows(2).map(|w| (w[1].0 - w[0].0, w[1].1));
        gap = gap.max(gaps.max().unwrap_or((LONGEST, 0)));
    }
    Ok(Seen { gap, base, peak })
}

/// A child that is ended when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A figure of `/proc/PID/status`.
fn mib(status: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(status).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(name));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

fn answer(stream: &mut TcpStream, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // The other side may have gone.
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body));
}

/// Answers every connection on a free port by a thread of its own; gives the URL.
fn serve(answer: impl Fn(&str, &mut TcpStream) + Send + Sync + 'static) -> Outcome<String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    let address = listener.local_addr().map_err(|e| e.to_string())?;
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answer = answer.clone();
            thread::spawn(move || {
                let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
                let mut request = [0; 4096];
                let length = stream.read(&mut request).unwrap_or(0);
                let text = String::from_utf8_lossy(&request[..length]);
                let path = text.split(' ').nth(1).unwrap_or_default();
                answer(path, &mut stream);
            });
        }
    });
    Ok(format!("http://{address}"))
}
