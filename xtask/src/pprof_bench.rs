//! `cargo xtask bench pprof`: the table of a heap profile, by `go tool pprof -top`
//! and by us, on profiles of 5 thousand, 100 thousand and 1 million samples.
//!
//! Both are whole processes that read one gzip file and print the same numbers, which
//! is checked first. The peer is started directly, not through `go tool`, which would
//! add its own start. Runs alternate; the best of each counts. The peak of memory is
//! `VmHWM`, polled while separate runs go on, so that polling costs no time.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use memtrace_formats::pprof;
use memtrace_model::{
    Function, FunctionId, Label, LabelSetId, LabelValue, Line, Location, LocationId, Mapping,
    MappingId, Profile, StackId, ValueType,
};

use crate::tools::{Outcome, cargo, go, output, record, root, run as run_command, target_dir};

/// Samples of a profile, and how many runs of each program.
const SIZES: [(usize, usize); 3] = [(5_000, 15), (100_000, 5), (1_000_000, 3)];
/// What must hold.
const FASTER: f64 = 10.0;
const SMALLER: f64 = 3.0;
const ROWS: usize = 20;

/// Generates, checks, measures; prints the result and adds it to `bench/pprof.md`.
pub(crate) fn run() -> Outcome {
    let peer = PathBuf::from(output(Command::new(go()?).args(["tool", "-n", "pprof"]))?.trim());
    let version = output(Command::new(go()?).arg("version"))?;
    run_command(cargo().args([
        "build",
        "--release",
        "--quiet",
        "--package=memtrace-analysis",
        "--example=top",
    ]))?;
    let ours = target_dir().join("release/examples/top");

    let mut text = format!(
        "`cargo xtask bench pprof`; peer: `pprof -top -symbolize=none -unit=bytes` of {}.\n\n\
         | samples | file | pprof | memtrace | faster | pprof memory | memtrace memory | less |\n\
         |--:|--:|--:|--:|--:|--:|--:|--:|\n",
        version.trim()
    );
    let mut missed = Vec::new();
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    for (samples, runs) in SIZES {
        let file = folder.path().join(format!("{samples}.pb.gz"));
        let bytes = pprof::write(&generate(samples));
        std::fs::write(&file, &bytes).map_err(|e| e.to_string())?;
        same_numbers(&peer, &ours, &file)?;
        eprintln!("{samples} samples: the numbers are the same");

        let (mut theirs_best, mut ours_best) = (Duration::MAX, Duration::MAX);
        for _ in 0..runs {
            theirs_best = theirs_best.min(time(&mut theirs_command(&peer, &file, &[]))?);
            ours_best = ours_best.min(time(&mut ours_command(&ours, &file))?);
        }
        let (mut theirs_peak, mut ours_peak) = (0, 0);
        for _ in 0..runs.min(5) - 1 {
            theirs_peak = theirs_peak.max(peak(&mut theirs_command(&peer, &file, &[]))?);
            ours_peak = ours_peak.max(peak(&mut ours_command(&ours, &file))?);
        }
        let faster = theirs_best.as_secs_f64() / ours_best.as_secs_f64();
        let smaller = theirs_peak as f64 / ours_peak.max(1) as f64;
        let _ = writeln!(
            text,
            "| {samples} | {:.1} MB | {:.1} ms | {:.1} ms | {faster:.1} × | {:.1} MB | {:.1} MB | {smaller:.1} × |",
            bytes.len() as f64 / 1e6,
            theirs_best.as_secs_f64() * 1e3,
            ours_best.as_secs_f64() * 1e3,
            theirs_peak as f64 / 1e3,
            ours_peak as f64 / 1e3,
        );
        if faster < FASTER {
            missed.push(format!("{samples} samples: only {faster:.1} × faster"));
        }
        // Polling misses what lives shorter than a tick; without /proc there is nothing.
        if ours_peak > 0 && smaller < SMALLER {
            missed.push(format!(
                "{samples} samples: only {smaller:.1} × less memory"
            ));
        }
    }
    println!("{text}");
    record(
        &root().join("bench/pprof.md"),
        "Profiles against go tool pprof",
        &text,
    )?;
    if missed.is_empty() {
        Ok(())
    } else {
        Err(missed.join("; "))
    }
}

fn theirs_command(peer: &Path, file: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(peer);
    command
        .args(["-top", "-symbolize=none", "-unit=bytes"])
        .args(more)
        .arg(file)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn ours_command(ours: &Path, file: &Path) -> Command {
    let mut command = Command::new(ours);
    command.arg(file).arg(ROWS.to_string());
    command.stdin(Stdio::null());
    command
}

fn time(command: &mut Command) -> Outcome<Duration> {
    command.stdout(Stdio::null());
    let start = Instant::now();
    let status = command.status().map_err(|e| e.to_string())?;
    let elapsed = start.elapsed();
    if status.success() {
        Ok(elapsed)
    } else {
        Err(format!("{command:?}: {status}"))
    }
}

/// The greatest resident set of a run, in kB; 0 where the system does not tell.
fn peak(command: &mut Command) -> Outcome<u64> {
    let mut child = command
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| e.to_string())?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().map_err(|e| e.to_string())?.is_none() {
        let now = std::fs::read_to_string(&status).unwrap_or_default();
        let high = now
            .lines()
            .find_map(|l| l.strip_prefix("VmHWM:"))
            .and_then(|l| l.trim().trim_end_matches(" kB").parse().ok());
        peak = peak.max(high.unwrap_or(0));
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(peak)
}

/// Both print the same rows.
fn same_numbers(peer: &Path, ours: &Path, file: &Path) -> Outcome {
    let all = ["-nodefraction=0", "-edgefraction=0"];
    let theirs = output(&mut theirs_command(peer, file, &all))?;
    let ours = output(&mut ours_command(ours, file))?;
    let theirs: Vec<_> = theirs
        .lines()
        .skip_while(|l| !l.trim_start().starts_with("flat  flat%"))
        .skip(1)
        .take(ROWS)
        .map(|l| row(l, [0, 3, 5]))
        .collect();
    let ours: Vec<_> = ours.lines().map(|l| row(l, [0, 1, 2])).collect();
    if ours.len() == ROWS && theirs == ours {
        Ok(())
    } else {
        Err(format!(
            "the numbers differ: pprof {theirs:?}, memtrace {ours:?}"
        ))
    }
}

/// Flat and cumulative value without unit, and the name, by their columns.
fn row(line: &str, columns: [usize; 3]) -> [String; 3] {
    let fields: Vec<&str> = line.split_whitespace().collect();
    columns.map(|c| {
        let field = fields.get(c).copied().unwrap_or_default();
        field.trim_end_matches('B').to_owned()
    })
}

/// xorshift64*: the same profiles on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

/// A heap profile as a service of some size gives it: 600 functions in a fixed call
/// graph, a fifth of the locations with an inlined call, stacks of 10 to 40 frames,
/// four samples per stack that differ in object size and business tag.
fn generate(samples: usize) -> Profile {
    const FUNCTIONS: u64 = 600;
    const CALLS: u64 = 5;
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut p = Profile::default();
    for (kind, unit) in [
        ("alloc_objects", "count"),
        ("alloc_space", "bytes"),
        ("inuse_objects", "count"),
        ("inuse_space", "bytes"),
    ] {
        let kind = p.intern(kind);
        let unit = p.intern(unit);
        p.sample_types.push(ValueType { kind, unit });
    }
    p.period_type = ValueType {
        kind: p.intern("space"),
        unit: p.intern("bytes"),
    };
    p.period = 512 << 10;
    p.time_nanos = 1_767_225_600_000_000_000;
    let file = p.intern("/srv/service/bin/service");
    p.mappings.push(Mapping {
        start: 0x40_0000,
        limit: 0x140_0000,
        file,
        has_functions: true,
        ..Mapping::default()
    });
    for i in 0..FUNCTIONS {
        let name = p.intern(&format!(
            "example.com/service/internal/package{:02}.(*Type{:03}).Method{i}",
            i % 37,
            i % 211
        ));
        let file = p.intern(&format!(
            "/src/service/internal/package{:02}/file{}.go",
            i % 37,
            i % 97
        ));
        p.functions.push(Function {
            name,
            system_name: name,
            file,
            start_line: i as i64,
        });
    }
    // Location i*CALLS+c: function i where it calls its callee c.
    for i in 0..FUNCTIONS * CALLS {
        let first_line = p.lines.len() as u32;
        let mut line = |function: u64, line: u64| {
            p.lines.push(Line {
                function: FunctionId(function as u32),
                line: line as i64,
                column: 0,
            });
        };
        if i % 5 == 0 {
            line((i * 7) % FUNCTIONS, i % 300);
        }
        line(i / CALLS, 100 + i % 50);
        let line_count = p.lines.len() as u32 - first_line;
        p.locations.push(Location {
            address: 0x40_1000 + i * 37,
            mapping: Some(MappingId(0)),
            is_folded: false,
            first_line,
            line_count,
        });
    }
    let callees: Vec<u64> = (0..FUNCTIONS * CALLS)
        .map(|_| dice.below(FUNCTIONS))
        .collect();

    let (bytes, block) = (p.intern("bytes"), p.intern("block"));
    let tags: Vec<_> = (0..200)
        .map(|i| p.intern(&format!("G{:03}-M{:02}", i, i % 20)))
        .collect();
    let mut stack = Vec::new();
    let mut id = 0;
    for i in 0..samples {
        if i % 4 == 0 {
            let depth = 10 + dice.below(31);
            let mut function = dice.below(4);
            stack.clear();
            for _ in 0..depth {
                let call = function * CALLS + dice.below(CALLS);
                stack.push(LocationId(call as u32));
                function = callees[call as usize];
            }
            stack.reverse();
            id = p.stacks.intern(&stack).unwrap_or_default();
        }
        let size = 16 << dice.below(12);
        let labels = [
            Label {
                key: block,
                value: LabelValue::Text(tags[dice.below(200) as usize]),
            },
            Label {
                key: bytes,
                value: LabelValue::Number(size, bytes),
            },
        ];
        let labels = p.label_sets.intern(&labels).unwrap_or_default();
        p.sample_stacks.push(StackId(id));
        p.sample_labels.push(LabelSetId(labels));
        let objects = 1 + dice.below(5000) as i64;
        let live = if dice.below(3) == 0 { objects / 3 } else { 0 };
        p.values
            .extend([objects, objects * size, live, live * size]);
    }
    p
}
