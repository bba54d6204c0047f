//! The project's own commands. `cargo xtask help` lists them.

// A program: whatever is `pub` here is seen by its own modules only.
#![allow(unreachable_pub)]

mod accuracy;
mod demo;
mod fuzz;
mod goheap_agree;
mod goheap_bench;
mod guard_bench;
mod harm;
mod harm_bench;
mod hostile;
mod layouts;
mod matrix;
mod pprof_bench;
mod replay;
mod store_bench;
mod tidy;
mod tools;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};

use tools::{
    Outcome, build_cnc, build_memtrace, build_memtrace_by, cargo, go, go_command, patient_cargo,
    root, run, side_by_side,
};

/// How long CI runs each fuzz target, seconds.
const FUZZ_SECONDS: u64 = 15;

/// How many real services are watched side by side: with more of them a slow machine of two cores
/// collects garbage too seldom for verdicts in time.
const WATCHES_AT_ONCE: &str = "6";

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own commands")]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// The main job on a real service: find its leak (or, healthy, find nothing)
    Demo {
        /// The same service without a leak: memtrace must stay silent
        #[arg(long)]
        healthy: bool,
    },
    /// Everything that must pass: format, lints, tidy, unit and end-to-end tests, fuzzing
    Test {
        /// Leave out the watches of real services, the fuzz targets and the simulation (minutes)
        #[arg(long, conflicts_with = "full")]
        quick: bool,
        /// All watches of real services instead of one of each kind (half an hour more)
        #[arg(long)]
        full: bool,
    },
    /// The rules of the house that no compiler checks
    Tidy,
    /// How often the verdict is right, on simulated series whose truth is known
    Accuracy(accuracy::Options),
    /// Side-by-side measurements; results are added to bench/
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// What watch would say about the readings in a store: for work on the analysis
    Replay {
        /// Folder of a store that `memtrace watch --store` wrote
        store: std::path::PathBuf,
    },
    /// The Go SDK, a watch of a real service, and heaps whose truth is known, with every Go
    /// from 1.21 to the newest
    Matrix {
        /// Only versions that begin with this, such as 1.22
        version: Option<String>,
        /// Only this part
        #[arg(long)]
        part: Option<matrix::Part>,
    },
    /// Does `memtrace snapshot` harm those it looks at? Real programs of many kinds, thousands of
    /// snapshots, and invariants that must hold after each
    Harm(harm::Options),
    /// Write the table by which the runtimes of stripped Go programs are read
    Layouts,
    /// Three services are watched, and one of them is an enemy
    Hostile {
        /// 10,000 hostile profiles and as many conversations
        #[arg(long)]
        full: bool,
    },
    /// Run every fuzz target for a while
    Fuzz {
        /// Seconds for each target
        #[arg(long, default_value_t = FUZZ_SECONDS)]
        seconds: u64,
        /// Make the inputs that were found the seeds of later runs
        #[arg(long)]
        keep: bool,
    },
}

#[derive(Subcommand)]
enum Bench {
    /// Parse and aggregate pprof files, beside `go tool pprof`
    Pprof,
    /// Bytes, reads and kills of the store
    Store,
    /// Pause and cost of reading a Go heap, beside goref and viewcore
    Goheap {
        /// Sizes of the heap, GB
        #[arg(long, value_delimiter = ',', default_values_t = [0.1, 1.0, 4.0])]
        gb: Vec<f64>,
    },
    /// Does watching disturb a 1 kHz control loop?
    Harm {
        /// Pairs of turns, watched and not
        #[arg(long, default_value_t = 10)]
        pairs: u32,
        /// Seconds of each turn
        #[arg(long, default_value_t = 30)]
        seconds: u64,
        /// Interval of the watch
        #[arg(long, default_value = "5s")]
        interval: String,
    },
    /// Does a flood of requests with a wrong token disturb a 1 kHz control loop?
    Guard {
        /// Rounds of three turns: quiet, the flood at the guard, the flood at a bystander
        #[arg(long, default_value_t = 8)]
        rounds: u32,
        /// Seconds of each turn
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
}

fn main() -> ExitCode {
    let done = match Args::parse().verb {
        Verb::Demo { healthy } => demo::run(healthy),
        Verb::Test { quick, full } => test(quick, full),
        Verb::Tidy => tidy::run(),
        Verb::Accuracy(options) => accuracy::run(&options),
        Verb::Bench { what: Bench::Pprof } => pprof_bench::run(),
        Verb::Bench { what: Bench::Store } => store_bench::run(),
        Verb::Bench {
            what: Bench::Goheap { gb },
        } => goheap_bench::run(&gb),
        Verb::Bench {
            what:
                Bench::Harm {
                    pairs,
                    seconds,
                    interval,
                },
        } => harm_bench::run(pairs, seconds, &interval),
        Verb::Bench {
            what: Bench::Guard { rounds, seconds },
        } => guard_bench::run(rounds, seconds),
        Verb::Replay { store } => replay::run(&store),
        Verb::Matrix { version, part } => matrix::run_all(version.as_deref(), part),
        Verb::Harm(options) => harm::run(&options),
        Verb::Layouts => layouts::write(),
        Verb::Hostile { full } => hostile::run(full),
        Verb::Fuzz { seconds, keep } => fuzz::run(seconds, keep),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Watches of real services that every run makes, by their test: each way to a verdict once, and
/// what is healthy.
const WATCHES: [(&str, &[&str]); 4] = [
    (
        "leaks",
        &[
            "a_map_keyed_by_raw_lines",
            "goroutines_blocked_in_machine_io",
            "memory_of_c_that_is_never_freed",
            "sawtooth_batches_are_healthy",
        ],
    ),
    ("inside", &["a_slice_that_grows_unsampled"]),
    ("tags", &["the_tag_that_leaks_is_named"]),
    ("live_tags", &["the_label_that_leaks_is_named"]),
];

/// Runs a part of `test`, and says how long it took.
fn step(name: &str, work: impl FnOnce() -> Outcome) -> Outcome {
    let began = Instant::now();
    let done = work();
    eprintln!("xtask: {name}: {:.0} s", began.elapsed().as_secs_f64());
    done
}

/// The watches, which mostly wait: more of them at a time than there are cores.
fn watches(full: bool, go: &Path, cnc: &Path) -> Outcome {
    let watch = |test: &str, only: &[&str], at_once: &str| {
        let mut command = cargo();
        command
            .args(["test", "--package", "memtrace-cli", "--test", test, "--"])
            .args(["--test-threads", at_once])
            .env("MEMTRACE_GO", go)
            .env("MEMTRACE_CNC", cnc)
            .env("MEMTRACE_MINUTES", "1");
        if !only.is_empty() {
            command.arg("--exact").args(only);
        }
        run(&mut command)
    };
    if full {
        for (test, _) in WATCHES {
            watch(test, &[], WATCHES_AT_ONCE)?;
        }
        return Ok(());
    }
    side_by_side(WATCHES.map(|(test, only)| move || watch(test, only, "8")))
}

fn test(quick: bool, full: bool) -> Outcome {
    step("format, lints, rules", || {
        run(cargo().args(["fmt", "--all", "--check"]))?;
        run(cargo().args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))?;
        tidy::run()
    })?;

    let go = go()?;
    step("Go tests", || {
        // The SDK runs inside of other people's programs: with the race detector.
        let all = [
            ("sdk/go", &["test", "-race", "./..."][..]),
            ("services/cnc", &["test", "./..."][..]),
        ];
        side_by_side(all.map(|(folder, words)| {
            let (go, folder) = (&go, root().join(folder));
            move || {
                run(go_command(go, &folder).args(["vet", "./..."]))?;
                run(go_command(go, &folder).args(words))
            }
        }))
    })?;

    let cnc = build_cnc()?;
    step("Rust tests", || {
        run(cargo()
            .args(["test", "--workspace", "--no-fail-fast"])
            // Many of them wait for a service most of their time.
            .env("RUST_TEST_THREADS", "4")
            .env("MEMTRACE_GO", &go)
            .env("MEMTRACE_CNC", &cnc))
    })?;
    if quick {
        return Ok(());
    }
    step("watches of real services, and builds beside them", || {
        let builds = || {
            // For the steps below: compilers take what the watches leave.
            build_memtrace_by(patient_cargo())?;
            fuzz::build(patient_cargo()).map(drop)
        };
        let watches = || watches(full, &go, &cnc);
        let both: [&(dyn Fn() -> Outcome + Sync); 2] = [&builds, &watches];
        side_by_side(both)
    })?;
    step("simulation", || {
        run(cargo().args(["xtask", "accuracy", "--quick"]))
    })?;
    step("snapshots of many kinds of process", || {
        harm::short(build_memtrace()?)
    })?;
    step("hostile profiles and conversations", || hostile::run(false))?;
    let seconds = if full { 4 * FUZZ_SECONDS } else { FUZZ_SECONDS };
    step("fuzzing", || fuzz::run(seconds, false))
}
