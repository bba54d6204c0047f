//! `cargo xtask fuzz`: every fuzz target for a while, on stable Rust.
//!
//! libFuzzer is linked by `libfuzzer-sys`; the coverage that it needs is a pass of
//! LLVM which stable rustc can run. `--target` keeps build scripts and procedural
//! macros without instrumentation, with which they would not link.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::tools::{Outcome, cargo, output, root, run as run_command, target_dir};

const TARGETS: [&str; 7] = [
    "pprof", "text", "folded", "goexe", "sdk", "goheap", "mtsnap",
];

const FLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    --cfg fuzzing -Ccodegen-units=1";

/// Longest input, bytes. Larger ones are slow and find nothing more.
const MAX_LENGTH: u32 = 64 << 10;

/// Small samples of text that the profiles of the fixtures do not hold.
const FORMS: &str = "goroutine profile: total 5\n4 @ 0x47e30e 0x4dee39\n\
    # labels: {\"block\":\"G000\", \"q\":\"a \\\"b\\\"\"}\n\
    #\t0x4dee38\tmain.wait+0x18\t\t/app/main.go:68\n\n\
    --- heapz 1 ---\nformat = java\nresolution = bytes\n  7048  1 @ 0x00000003 0x00000009\n\
    \x20 0x00000003 com.example.A.make (A.java:103)\n  0x00000009 GC\n\n\
    heap profile: 1: 2 [3: 4] @ heap/8\n1: 2 [3: 4] @ 0x41f000\n--- Memory map: ---\n\
    source=/home\n00400000-00fcb000: $source/server\n\
    00400000-00452000 r-xp 00001000 08:02 173521 /usr/bin/dbus-daemon\n\
    0x40000-0x80000 /path/binary (@FF00) abc123456\n\n\
    heap profile: 1: 2 [3: 4] @ heap/8\n1: 2 [3: 4] @ 0x5\n# runtime.MemStats\n\
    # Alloc = 5\n# Stack = 3 / 4\n# PauseNs = [1 2 0]\n# GCCPUFraction = 0.5\n";

/// The columns of a small snapshot: two objects, a variable, a goroutine with a frame.
const COLUMNS: [(u8, u8, &[u8]); 17] = [
    (0, 1, &[0, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0]),
    (1, 2, &[1, b'a', 1, b'b']),
    (2, 2, &[0, 1, 0, 1]),
    (3, 1, &[1, 1, 0, 1]),
    (4, 1, &[1, 2, 5]),
    (5, 1, &[1, 0]),
    (6, 3, &[0, 1, 0, 0, 1, 2, 0, 0, 2, 1, 2, 3]),
    (7, 2, &[2, 2]),
    (8, 2, &[0x80, 4, 0]),
    (9, 2, &[0, 0]),
    (10, 1, &[2]),
    (11, 5, &[1, 0, 1, 0, 1]),
    (12, 3, &[2, 3, 7]),
    (13, 3, &[0, 0, 0]),
    (16, 1, &[1, 1, 2, 1, 1, 1, 0, 0, 1, 8, 0]),
    (17, 1, &[1, 1, 100]),
    (18, 1, &[1, 1, 2, 0]),
];

/// In the form that the target takes: column, items, bytes.
fn snapshot() -> Vec<u8> {
    let blocks = COLUMNS.iter().flat_map(|&(column, items, bytes)| {
        let head = [column, items, 0, bytes.len() as u8, 0];
        head.into_iter().chain(bytes.iter().copied())
    });
    blocks.collect()
}

/// Targets that run side by side.
const AT_ONCE: usize = 2;

/// What a run has besides: an input takes 5 s and 512 MiB at most, and the targets
/// themselves assert how much memory it may take for its length.
const BOUNDS: [&str; 3] = ["-timeout=5", "-rss_limit_mb=1024", "-malloc_limit_mb=512"];

/// Inputs of a target that are kept, bytes before they are packed.
const MOST_KEPT: usize = 512 << 10;

fn home() -> PathBuf {
    target_dir().join("fuzz")
}

/// Builds all targets by this cargo: the folder with their programs.
pub(crate) fn build(mut cargo: Command) -> Outcome<PathBuf> {
    let host = host()?;
    cargo
        .args(["build", "--release", "--quiet", "--target", &host])
        .arg("--manifest-path")
        .arg(root().join("fuzz/Cargo.toml"))
        .arg("--target-dir")
        .arg(home())
        .env("RUSTFLAGS", FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    run_command(&mut cargo)?;
    Ok(home().join(host).join("release"))
}

/// Runs each target for `seconds`. Fails with the name of the input that crashed one. With
/// `keep`, the inputs that reach most of the code with the fewest bytes become the seeds
/// of later runs, in `fuzz/seeds`.
pub(crate) fn run(seconds: u64, keep: bool) -> Outcome {
    let programs = build(cargo())?;
    let home = home();
    let next = AtomicUsize::new(0);
    let work = || -> Outcome {
        while let Some(target) = TARGETS.get(next.fetch_add(1, Ordering::Relaxed)) {
            let place = Place::prepare(&home, target)?;
            place.fuzz(&programs.join(target), seconds)?;
            if keep {
                place.keep(&programs.join(target), target)?;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        runs.into_iter().try_for_each(|run| {
            run.join()
                .map_err(|_| "a fuzzer's thread died".to_owned())?
        })
    })
}

/// Where the inputs of a target are.
struct Place {
    corpus: PathBuf,
    seeds: PathBuf,
    kept: PathBuf,
    crashes: PathBuf,
}

impl Place {
    fn prepare(home: &Path, target: &str) -> Outcome<Self> {
        let folder = |kind: &str| {
            let folder = home.join(kind).join(target);
            std::fs::create_dir_all(&folder)
                .map_err(|e| format!("{}: {e}", folder.display()))
                .map(|()| folder)
        };
        let place = Self {
            corpus: folder("corpus")?,
            seeds: folder("seeds")?,
            kept: folder("kept")?,
            crashes: folder("crashes")?,
        };
        write_seeds(target, &place.seeds)?;
        for (i, input) in unpack(&seeds_file(target)).iter().enumerate() {
            let file = place.seeds.join(format!("kept-{i}"));
            std::fs::write(&file, input).map_err(|e| format!("{}: {e}", file.display()))?;
        }
        Ok(place)
    }

    fn fuzz(&self, program: &Path, seconds: u64) -> Outcome {
        let mut fuzz = Command::new(program);
        fuzz.arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={MAX_LENGTH}"))
            .args(BOUNDS)
            .args(["-print_final_stats=1", "-verbosity=0"])
            .arg(format!("-artifact_prefix={}/", self.crashes.display()))
            .args([&self.corpus, &self.seeds]);
        let crashes = self.crashes.display();
        run_command(&mut fuzz)
            .map_err(|e| format!("{e}; the input is in {crashes}, make a test of it"))
    }

    fn keep(&self, program: &Path, target: &str) -> Outcome {
        let mut merge = Command::new(program);
        merge
            .args(["-merge=1", "-verbosity=0"])
            .arg(format!("-max_len={}", MAX_LENGTH / 16))
            .args(BOUNDS)
            .args([&self.kept, &self.corpus, &self.seeds]);
        run_command(&mut merge)?;
        let kept = std::fs::read_dir(&self.kept).map_err(|e| e.to_string())?;
        let mut inputs: Vec<Vec<u8>> = kept
            .filter_map(|file| std::fs::read(file.ok()?.path()).ok())
            .collect();
        inputs.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
        let mut left = MOST_KEPT;
        inputs.retain(|input| {
            let fits = input.len() <= left;
            left -= if fits { input.len() } else { 0 };
            fits
        });
        let file = seeds_file(target);
        std::fs::write(&file, pack(&inputs)).map_err(|e| format!("{}: {e}", file.display()))
    }
}

fn seeds_file(target: &str) -> PathBuf {
    root().join("fuzz/seeds").join(format!("{target}.gz"))
}

/// Inputs one after the other, each behind its length.
fn pack(inputs: &[Vec<u8>]) -> Vec<u8> {
    let mut plain = Vec::new();
    for input in inputs {
        plain.extend((input.len() as u32).to_le_bytes());
        plain.extend(input);
    }
    let mut packed = Vec::new();
    // From memory to memory.
    let _ = flate2::read::GzEncoder::new(&plain[..], flate2::Compression::best())
        .read_to_end(&mut packed);
    packed
}

/// The inputs of a file, none where it is not there.
fn unpack(file: &Path) -> Vec<Vec<u8>> {
    let packed = std::fs::read(file).unwrap_or_default();
    let mut plain = Vec::new();
    let _ = flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut plain);
    let mut inputs = Vec::new();
    let mut rest = &plain[..];
    while let Some((length, more)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (input, more) = more.split_at(length.min(more.len()));
        inputs.push(input.to_vec());
        rest = more;
    }
    inputs
}

fn host() -> Outcome<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    output(Command::new(rustc).arg("-vV"))?
        .lines()
        .find_map(|l| l.strip_prefix("host: "))
        .map(str::to_owned)
        .ok_or_else(|| "rustc -vV names no host".to_owned())
}

/// Small profiles of several producers, uncompressed too: the fuzzer does not see
/// through compression.
fn write_seeds(target: &str, folder: &Path) -> Outcome {
    let write = |name: &OsStr, bytes: &[u8]| {
        let file = folder.join(name);
        std::fs::write(&file, bytes).map_err(|e| format!("{}: {e}", file.display()))
    };
    if target == "folded" {
        return write(
            "seed".as_ref(),
            b"main;a b;c 5\nmain;d 7.5\n# note\nmain;d;main -2\n",
        );
    }
    if target == "goexe" {
        let seed = root().join("crates/memtrace-formats/tests/fixtures/tiny.goexe");
        let bytes = std::fs::read(&seed).map_err(|e| format!("{}: {e}", seed.display()))?;
        return write("seed".as_ref(), &bytes);
    }
    if target == "goheap" {
        // The truth; one lie; lies everywhere in a region, unreadable pages.
        write("truth".as_ref(), &[0; 4])?;
        write("one".as_ref(), &[0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8])?;
        write("many".as_ref(), &[0x17, 9, 0x17, 0, 1, 2, 3, 4, 5, 6, 7, 8])?;
        // So long that some dozens of lies are told at a time from the start.
        let lies: Vec<u8> = (0..260u32).map(|i| ((i * i * 167) >> 4) as u8).collect();
        return write("lies".as_ref(), &[&[0; 4][..], &lies].concat());
    }
    if target == "mtsnap" {
        return write("seed".as_ref(), &snapshot());
    }
    if target == "sdk" {
        write("stacks".as_ref(), b"xD1bay\nxD0a\n1b2c\nD1")?;
        write(
            "tags".as_ref(),
            br#"{"schema":"memtrace.tags/1","key":"tag","other":"other","names":{"67":"G001"}}"#,
        )?;
        return write(
            "events".as_ref(),
            br#"{"schema":"memtrace.events/1","names":["nc"],"missed":true,"stats":{"gcs":4},
                "gcs":[{"n":3,"end":1700000000123456789,"pause":4,"live":1,"before":2,"goal":3}]}"#,
        );
    }
    if target == "text" {
        write("forms".as_ref(), FORMS.as_bytes())?;
        for (i, form) in FORMS.split("\n\n").enumerate() {
            write(format!("form{i}").as_ref(), form.as_bytes())?;
        }
    }
    let profiles = root().join("crates/memtrace-analysis/tests/fixtures/profiles");
    let files = std::fs::read_dir(&profiles).map_err(|e| format!("{}: {e}", profiles.display()))?;
    let mut files: Vec<PathBuf> = files.filter_map(|f| Some(f.ok()?.path())).collect();
    files.sort();
    for file in files {
        let bytes = std::fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let name = file.file_name().unwrap_or_default();
        let compressed = file.extension().is_some_and(|e| e == "gz");
        if compressed && target == "pprof" {
            write(name, &bytes)?;
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&bytes[..])
                .read_to_end(&mut plain)
                .map_err(|e| format!("{}: {e}", file.display()))?;
            write(
                file.with_extension("").file_name().unwrap_or_default(),
                &plain,
            )?;
        } else if !compressed && target == "text" {
            // The head of a long one holds every form of line that it has.
            write(name, &bytes[..bytes.len().min(4 << 10)])?;
        }
    }
    Ok(())
}
