//! The `memtrace` program: arguments in, verdicts out.
//!
//! Data goes to stdout, progress and notes to stderr. Exit codes: 0 fine,
//! 1 failed, 2 wrong usage, 3 target lost, 10 leak found (`--fail-on leak`).

mod args;
mod convert;
mod diff;
mod failure;
mod heap;
mod heap_diff;
mod hot;
mod out;
mod progress;
mod report;
mod shell;
mod snapshot;
mod source;
mod survivors;
mod top;
mod units;
mod watch;
mod why;

use std::process::ExitCode;

use args::{Args, Verb};
use failure::Failure;

fn main() -> ExitCode {
    out::tell_of_panics();
    let done = Args::typed().and_then(|args| match args.verb {
        Verb::Watch(args) => watch::run(args),
        Verb::Top(args) => top::run(&args),
        Verb::Diff(args) => diff::run(&args),
        Verb::Hot(args) => hot::run(&args),
        Verb::Snapshot(args) => snapshot::run(&args),
        Verb::Report(args) => report::run(&args),
        Verb::Why(args) => why::run(&args),
        Verb::Survivors(args) => survivors::run(&args),
        Verb::Convert(args) => convert::run(&args),
        Verb::Completions { shell } => shell::completions(shell),
        Verb::Man { dir } => shell::man(dir.as_deref()),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has seen enough (`| head`).
        Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(line) = failure.line() {
                out::note(line);
            }
            ExitCode::from(failure.code())
        }
    }
}
