//! `cargo xtask bench store`: what a day of a hundred services costs on disk, how
//! fast it is written and read, and whether a kill -9 loses anything.
//!
//! The profiles are recorded from the CNC controller, under load, healthy and with
//! leaks; a recording is kept in the target folder and used again. They are then
//! replayed as 100 targets × 24 h × 30 s. A recording is minutes long and a day is
//! not, so a replay goes round: in each round the sampled allocation counts go on
//! from where the round before ended (what was allocated between the first and the
//! last profile is added per round, and one step more, scaled as the Go runtime scales), so that the
//! counters never repeat. Live values repeat; a fall at the seam stands for the end
//! of a leak. Nothing is extrapolated: every snapshot is written.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use memtrace_formats::pprof;
use memtrace_model::{Gauge, Gauges, LabelValue, Profile, StackKey, Time};
use memtrace_store::{Kind, Options, Reader, Reading, Snapshot, Store, TargetId};
use rayon::prelude::*;

use crate::tools::{Outcome, TOKEN, build_cnc, record, root, target_dir, with_profiles};

const TARGETS: usize = 100;
const STEP_MS: i64 = 30_000;
const TICKS: usize = 24 * 60 * 2;
const START: i64 = 1_767_225_600_000;
/// Profiles of each recording.
const PROFILES: usize = 60;
const KILLS: usize = 100;
/// Blocks a second of self load, ten times the controller's own default.
const LOAD: &str = "20000";
const SCRAPE: Duration = Duration::from_millis(1500);
/// The replay takes every second profile: 3 s at ten times the load allocate what 30 s
/// of ordinary life do.
const STRIDE: usize = 2;
const LEAKS: [&str; 6] = ["none", "goroutine", "mapkey", "slice", "syncmap", "closure"];
/// Set in the child that is killed: the folder of its store.
const CHILD: &str = "MEMTRACE_STORE_BENCH_CHILD";

/// Records, replays, reads, kills; prints the result and adds it to `bench/store.md`.
pub fn run() -> Outcome {
    let folder = target_dir().join("store-bench");
    if let Some(dir) = std::env::var_os(CHILD) {
        return child(Path::new(&dir), &load(&folder.join("none"))?);
    }
    record_all(&folder)?;
    let recordings = LEAKS
        .iter()
        .map(|leak| load(&folder.join(leak)))
        .collect::<Outcome<Vec<_>>>()?;
    let mut text = describe(&recordings);
    let scratch = tempfile::tempdir_in(target_dir()).map_err(show)?;
    replay(scratch.path(), &recordings, &mut text)?;
    kills(&mut text)?;
    println!("{text}");
    record(&root().join("bench/store.md"), "The store", &text)
}

fn show(e: impl std::fmt::Display) -> String {
    e.to_string()
}

/// One scrape.
struct Scrape {
    gzip: Vec<u8>,
    profile: Profile,
    gauges: Gauges,
    /// Per sample: the object size, and what one round adds to the sampled allocations.
    rounds: Vec<(i64, i64)>,
}

fn record_all(folder: &Path) -> Outcome {
    let missing: Vec<&str> = LEAKS
        .into_iter()
        .filter(|leak| {
            !folder
                .join(leak)
                .join(format!("{:03}.gz", PROFILES - 1))
                .exists()
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let cnc = build_cnc()?;
    for pair in missing.chunks(2) {
        eprintln!("recording {}", pair.join(" and "));
        std::thread::scope(|s| {
            let runs: Vec<_> = pair
                .iter()
                .map(|leak| {
                    let cnc = &cnc;
                    s.spawn(move || record_one(cnc, leak, &folder.join(leak)))
                })
                .collect();
            runs.into_iter()
                .try_for_each(|r| r.join().map_err(|_| "a recording panicked".to_owned())?)
        })?;
    }
    Ok(())
}

/// A child process that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn record_one(cnc: &Path, leak: &str, folder: &Path) -> Outcome {
    std::fs::create_dir_all(folder).map_err(show)?;
    let mut service = Running(
        with_profiles(&mut Command::new(cnc))
            .args(["-listen", "127.0.0.1:0", "-load", LOAD, "-leak", leak])
            .args(["-leak-after", "20s", "-leak-rate", "2MB"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("{}: {e}", cnc.display()))?,
    );
    let out = service.0.stdout.take().ok_or("no output of the service")?;
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line).map_err(show)?;
    let address = line
        .split_once("http://")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .ok_or_else(|| format!("the service said {line:?}"))?;
    // The first seconds are warm-up.
    std::thread::sleep(Duration::from_secs(10));
    for i in 0..PROFILES {
        let from = Instant::now();
        let bytes = get(address, "/debug/pprof/heap")?;
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", service.0.id())).unwrap_or_default();
        // The profile last: a recording is complete when its last profile is there.
        std::fs::write(folder.join(format!("{i:03}.status")), status).map_err(show)?;
        std::fs::write(folder.join(format!("{i:03}.gz")), bytes).map_err(show)?;
        std::thread::sleep(SCRAPE.saturating_sub(from.elapsed()));
    }
    Ok(())
}

fn get(address: &str, path: &str) -> Outcome<Vec<u8>> {
    let mut stream = TcpStream::connect(address).map_err(show)?;
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .map_err(show)?;
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {address}\r\nX-Pprof-Token: {TOKEN}\r\n\r\n"
    )
    .map_err(show)?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all).map_err(show)?;
    let end = all
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .ok_or("no HTTP answer")?;
    if !all.starts_with(b"HTTP/1.0 200") && !all.starts_with(b"HTTP/1.1 200") {
        return Err(String::from_utf8_lossy(&all[..end]).into_owned());
    }
    Ok(all.split_off(end + 4))
}

fn load(folder: &Path) -> Outcome<Vec<Scrape>> {
    let mut all = Vec::new();
    for i in 0..PROFILES {
        let path = folder.join(format!("{i:03}.gz"));
        let gzip = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let profile = pprof::parse(&gzip).map_err(show)?.profile;
        let status = std::fs::read_to_string(path.with_extension("status")).unwrap_or_default();
        all.push(Scrape {
            gauges: gauges(&profile, &status),
            gzip,
            profile,
            rounds: Vec::new(),
        });
    }
    let (Some(first), Some(last)) = (all.first(), all.last()) else {
        return Err("an empty recording".into());
    };
    let mut gain: HashMap<(StackKey, i64), i64> = HashMap::new();
    for (scrape, sign) in [(last, 1), (first, -1)] {
        for (key, size, n) in counts(&scrape.profile) {
            *gain.entry((key, size)).or_default() += sign * n;
        }
    }
    for scrape in &mut all {
        scrape.rounds = counts(&scrape.profile)
            .into_iter()
            .map(|(key, size, _)| {
                let gain = gain.get(&(key, size)).copied().unwrap_or(0).max(0);
                // One step more: from the last profile to the first of the next round.
                (
                    size,
                    gain + (gain as u64).div_ceil(PROFILES as u64 - 1) as i64,
                )
            })
            .collect();
    }
    Ok(all)
}

/// Stack, object size and sampled allocations of each sample.
fn counts(p: &Profile) -> Vec<(StackKey, i64, i64)> {
    let keys = p.stack_keys();
    let bytes = p.strings.find("bytes").unwrap_or(0);
    (0..p.len())
        .map(|i| {
            let labels = p.label_sets.get(p.sample_labels[i].0);
            let size = labels.iter().find_map(|l| match l.value {
                LabelValue::Number(n, _) if l.key.0 == bytes => Some(n),
                _ => None,
            });
            let size = size.unwrap_or(0);
            let n = if size > 0 {
                (p.row(i)[0] as f64 / scale(size, p.period)).round() as i64
            } else {
                0
            };
            (keys[p.sample_stacks[i].index()], size, n)
        })
        .collect()
}

/// What the Go runtime multiplies sampled counts with.
fn scale(size: i64, rate: i64) -> f64 {
    1.0 / (1.0 - (-(size as f64) / rate as f64).exp())
}

fn gauges(p: &Profile, status: &str) -> Gauges {
    let mut g = Gauges::default();
    let number = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<f64>().ok()
    };
    if let Some(i) = p.sample_type("inuse_space") {
        g.set(Gauge::HeapInuse, p.total(i) as f64);
    }
    for (gauge, name, unit) in [
        (Gauge::Rss, "VmRSS:", 1024.0),
        (Gauge::Swap, "VmSwap:", 1024.0),
        (Gauge::Threads, "Threads:", 1.0),
    ] {
        if let Some(v) = number(name) {
            g.set(gauge, v * unit);
        }
    }
    g.set(Gauge::CgroupLimit, 512.0 * 1048576.0);
    g.set(
        Gauge::CgroupUsage,
        g.get(Gauge::Rss).unwrap_or(0.0) + 1_228_800.0,
    );
    g
}

/// The profile of `scrape` in the given round, at `at`.
fn continued(scrape: &Scrape, round: i64, at: Time) -> Profile {
    let mut p = scrape.profile.clone();
    go_on(&mut p, scrape, round, at);
    p
}

/// Makes `p`, a copy of the profile of `scrape`, that of the given round.
fn go_on(p: &mut Profile, scrape: &Scrape, round: i64, at: Time) {
    p.time_nanos = at.0 * 1_000_000;
    for (i, &(size, gain)) in scrape.rounds.iter().enumerate() {
        if round == 0 || size <= 0 || gain == 0 {
            continue;
        }
        let k = scale(size, p.period);
        let n = (scrape.profile.values[i * 4] as f64 / k).round() as i64 + round * gain;
        p.values[i * 4] = (n as f64 * k) as i64;
        p.values[i * 4 + 1] = ((n * size) as f64 * k) as i64;
    }
}

fn describe(recordings: &[Vec<Scrape>]) -> String {
    let all = || recordings.iter().flatten();
    let bytes: usize = all().map(|s| s.gzip.len()).sum();
    let rows: usize = all().map(|s| s.profile.len()).sum();
    let (mut moved, mut pairs) = (0, 0);
    for r in recordings {
        for w in r.windows(STRIDE + 1) {
            let old = rows_of(&w[0].profile);
            let new = rows_of(&w[STRIDE].profile);
            moved += new.iter().filter(|(k, v)| old.get(*k) != Some(*v)).count();
            pairs += 1;
        }
    }
    let n = all().count().max(1);
    format!(
        "Recorded: {n} heap profiles of the CNC controller ({}), {LOAD} blocks/s, one every {:.1} s, \
         on average {} samples, {} bytes gzip. Replayed is every second one; \
         {} samples change from one to the next on average.\n",
        LEAKS.join(", "),
        SCRAPE.as_secs_f64(),
        rows / n,
        bytes / n,
        moved / pairs.max(1),
    )
}

/// Rows by stack and object size; numbers of label sets differ from profile to profile.
fn rows_of(p: &Profile) -> HashMap<(StackKey, i64), Vec<i64>> {
    counts(p)
        .into_iter()
        .enumerate()
        .map(|(i, (key, size, _))| ((key, size), p.row(i).to_vec()))
        .collect()
}

fn size_of(dir: &Path) -> u64 {
    ["memtrace.db", "memtrace.db-wal"]
        .iter()
        .filter_map(|f| std::fs::metadata(dir.join(f)).ok())
        .map(|m| m.len())
        .sum()
}

fn percentile(sorted: &[f64], p: f64) -> f64 {
    let i = (sorted.len().saturating_sub(1)) as f64 * p;
    sorted.get(i.round() as usize).copied().unwrap_or(f64::NAN)
}

fn replay(dir: &Path, recordings: &[Vec<Scrape>], text: &mut String) -> Outcome {
    let mut store = Store::create_or_open(dir, Options::default()).map_err(show)?;
    let targets = (0..TARGETS)
        .map(|t| {
            store
                .target(&format!("http://10.0.0.{t}:6060"))
                .map_err(show)
        })
        .collect::<Outcome<Vec<TargetId>>>()?;
    let (mut gzip, mut writing, mut slowest) = (0u64, Duration::ZERO, Duration::ZERO);
    let mut own: Vec<Vec<Profile>> = (0..TARGETS)
        .map(|t| {
            let recording = &recordings[t % recordings.len()];
            recording.iter().map(|s| s.profile.clone()).collect()
        })
        .collect();
    let from = Instant::now();
    for tick in 0..TICKS {
        let at = Time(START + tick as i64 * STEP_MS);
        let batch: Vec<(usize, &Scrape, &Profile)> = own
            .par_iter_mut()
            .enumerate()
            .map(|(t, own)| {
                let recording = &recordings[t % recordings.len()];
                // Each target begins at another place.
                let place = tick * STRIDE + t * 7;
                let i = place % recording.len();
                let round = (place / recording.len()) as i64;
                go_on(&mut own[i], &recording[i], round, at);
                (t, &recording[i], &own[i])
            })
            .collect();
        let snapshots: Vec<[Snapshot<'_>; 1]> = batch
            .iter()
            .map(|(_, scrape, profile)| {
                [Snapshot {
                    kind: Kind::Heap,
                    profile,
                    raw: Some(&scrape.gzip),
                }]
            })
            .collect();
        let readings: Vec<Reading<'_>> = batch
            .iter()
            .zip(&snapshots)
            .map(|((t, scrape, _), snapshots)| Reading {
                target: targets[*t],
                at: at.plus_ms(*t as i64 * 37),
                snapshots,
                gauges: &scrape.gauges,
            })
            .collect();
        gzip += batch.iter().map(|b| b.1.gzip.len() as u64).sum::<u64>();
        let began = Instant::now();
        store.append_many(&readings).map_err(show)?;
        slowest = slowest.max(began.elapsed());
        if tick % 2 == 1 {
            store.maintain(at).map_err(show)?;
        }
        writing += began.elapsed();
        if tick % 288 == 287 {
            eprintln!(
                "{:3} % after {:.0} s, {:.1} MB of {:.1} MB gzip",
                (tick + 1) * 100 / TICKS,
                from.elapsed().as_secs_f64(),
                size_of(dir) as f64 / 1e6,
                gzip as f64 / 1e6
            );
        }
    }
    drop(store);
    let all = from.elapsed();
    let stored = size_of(dir);
    let reader = Reader::open(dir).map_err(show)?;
    let end = Time(START + TICKS as i64 * STEP_MS);
    let mut raw = 0u64;
    for &t in &targets {
        for at in reader.raw_times(t, Kind::Heap).map_err(show)? {
            let bytes = reader.raw(t, Kind::Heap, at).map_err(show)?;
            raw += bytes.map_or(0, |b| b.len() as u64);
        }
    }
    reader.check().map_err(show)?;
    drop(reader);
    let n = (TARGETS * TICKS) as f64;
    let ratio = gzip as f64 / stored as f64;
    let _ = writeln!(
        text,
        "\nReplayed: {TARGETS} targets × 24 h × 30 s = {n} snapshots with gauges, their gzip bytes given as well.\n\n\
         | | |\n|---|---|\n\
         | gzip pprof that came in | {:.1} MB ({:.0} bytes a snapshot) |\n\
         | store, everything | {:.1} MB ({:.0} bytes a snapshot): **1/{ratio:.1}** |\n\
         | of it the profiles of the last 15 minutes that can be had again as bytes | {:.1} MB of gzip |\n\
         | ingest, one writer thread | {:.0} snapshots/s ({:.1} MB/s of gzip pprof), slowest batch of {TARGETS} {:.0} ms |\n\
         | whole replay | {:.0} s |",
        gzip as f64 / 1e6,
        gzip as f64 / n,
        stored as f64 / 1e6,
        stored as f64 / n,
        raw as f64 / 1e6,
        n / writing.as_secs_f64(),
        gzip as f64 / 1e6 / writing.as_secs_f64(),
        slowest.as_secs_f64() * 1e3,
        all.as_secs_f64(),
    );

    let mut cold = true;
    let mut times = Vec::new();
    let mut snapshots = 0;
    for &t in &targets {
        cold &= std::fs::write("/proc/sys/vm/drop_caches", "1").is_ok();
        let began = Instant::now();
        let reader = Reader::open(dir).map_err(show)?;
        let range = end.plus_ms(-15 * 60_000)..=end.plus_ms(60_000);
        let mut sum = 0i64;
        for s in reader
            .snapshots(t, Kind::Heap, range.clone())
            .map_err(show)?
        {
            let s = s.map_err(show)?;
            sum = s.values.iter().fold(sum, |a, v| a.wrapping_add(*v));
            snapshots += 1;
        }
        reader.gauges(t, Gauge::Rss, range).map_err(show)?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        std::hint::black_box(sum);
    }
    times.sort_by(f64::total_cmp);
    let (median, p95) = (percentile(&times, 0.5), percentile(&times, 0.95));
    let _ = writeln!(
        text,
        "| last 15 minutes of one target ({} snapshots, all values, one gauge), store opened anew{} | median {median:.1} ms, p95 {p95:.1} ms, worst {:.1} ms |",
        snapshots / TARGETS,
        if cold {
            ", page cache dropped"
        } else {
            ", page cache warm"
        },
        percentile(&times, 1.0)
    );
    if std::env::var_os("MEMTRACE_STORE_BENCH_KEEP").is_some() {
        let to = target_dir().join("store-bench/memtrace.db");
        std::fs::copy(dir.join("memtrace.db"), to).map_err(show)?;
    }
    if ratio < 50.0 || p95 >= 50.0 {
        println!("{text}");
        return Err(format!(
            "not met: 1/{ratio:.1} (asked 1/50), p95 {p95:.1} ms (asked 50 ms)"
        ));
    }
    Ok(())
}

/// Writes until it is killed, and says what is safe.
fn child(dir: &Path, recording: &[Scrape]) -> Outcome {
    // At the speed of this loop an hour is over in a moment; all of it must stay.
    let ever = Duration::from_secs(10 * 365 * 24 * 3600);
    let options = Options {
        retention: ever,
        thin_after: ever,
        ..Options::default()
    };
    let mut store = Store::create_or_open(dir, options).map_err(show)?;
    let target = store.target("killed").map_err(show)?;
    let next = store
        .reader()
        .targets()
        .map_err(show)?
        .first()
        .and_then(|t| t.last)
        .map_or(0, |t| (t.0 - START) / STEP_MS + 1);
    let mut out = std::io::stdout();
    for i in next.. {
        let at = Time(START + i * STEP_MS);
        let scrape = &recording[i as usize % recording.len()];
        let profile = continued(scrape, i / recording.len() as i64, at);
        let reading = Reading {
            target,
            at,
            snapshots: &[Snapshot {
                kind: Kind::Heap,
                profile: &profile,
                raw: Some(&scrape.gzip),
            }],
            gauges: &scrape.gauges,
        };
        store.append(&reading).map_err(show)?;
        store.maintain(at).map_err(show)?;
        writeln!(out, "{i}")
            .and_then(|()| out.flush())
            .map_err(show)?;
    }
    Ok(())
}

fn kills(text: &mut String) -> Outcome {
    let recording = load(&target_dir().join("store-bench/none"))?;
    let dir = tempfile::tempdir_in(target_dir()).map_err(show)?;
    let me = std::env::current_exe().map_err(show)?;
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let (mut acknowledged, mut seen) = (-1i64, 0i64);
    for round in 0..KILLS {
        let mut writer = Running(
            Command::new(&me)
                .args(std::env::args_os().skip(1))
                .env(CHILD, dir.path())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(show)?,
        );
        let out = BufReader::new(writer.0.stdout.take().ok_or("no output of the child")?);
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let wait = Duration::from_micros(20_000 + random % 400_000);
        let lines = std::thread::spawn(move || out.lines().map_while(Result::ok).last());
        std::thread::sleep(wait);
        // SIGKILL, wherever it is.
        writer.0.kill().map_err(show)?;
        writer.0.wait().map_err(show)?;
        let last = lines.join().map_err(|_| "the reading thread panicked")?;
        if let Some(n) = last.and_then(|l| l.parse::<i64>().ok()) {
            acknowledged = acknowledged.max(n);
        }
        let reader = match Reader::open(dir.path()) {
            Err(memtrace_store::StoreError::Missing(_)) if acknowledged < 0 => continue,
            r => r.map_err(show)?,
        };
        reader.check().map_err(|e| format!("round {round}: {e}"))?;
        let Some(target) = reader.find_target("killed").map_err(show)? else {
            continue;
        };
        let mut i = 0i64;
        for s in reader
            .snapshots(target, Kind::Heap, Time(0)..=Time(i64::MAX))
            .map_err(show)?
        {
            let s = s.map_err(|e| format!("round {round}: {e}"))?;
            if s.at != Time(START + i * STEP_MS) {
                return Err(format!("round {round}: snapshot {i} is missing"));
            }
            i += 1;
            // Values of what earlier rounds wrote were compared then.
            if i <= seen {
                continue;
            }
            let i = i - 1;
            let want = continued(
                &recording[i as usize % recording.len()],
                i / recording.len() as i64,
                s.at,
            );
            let column = |values: &[i64], n: usize| {
                values
                    .iter()
                    .skip(n)
                    .step_by(4)
                    .fold(0i64, |a, v| a.wrapping_add(*v))
            };
            let right = (0..4).all(|n| column(&s.values, n) == column(&want.values, n));
            if !right {
                return Err(format!(
                    "round {round}: snapshot {i} is not what was written"
                ));
            }
        }
        seen = i;
        if i <= acknowledged {
            return Err(format!(
                "round {round}: {acknowledged} was acknowledged, {i} are there"
            ));
        }
    }
    let _ = writeln!(
        text,
        "\nKilled: {KILLS} × kill -9 after 20 to 420 ms of writing; {} snapshots were acknowledged, \
         none is missing, all values are right ({seen} compared), integrity check ok each time.",
        acknowledged + 1
    );
    Ok(())
}
