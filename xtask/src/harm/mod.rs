//! `cargo xtask harm`: does `memtrace snapshot` harm those it looks at?
//!
//! Real programs that check themselves all the time (`services/targets`), of each kind that
//! could be hurt; thousands of snapshots, each by the `memtrace` program itself; after them
//! everything must be as it was. Nothing is judged by a number that only memtrace tells.
//!
//! ```text
//! targets ──▶ Target: a process that says how it is ─┐
//! shot    ──▶ one `memtrace snapshot`, right or wrong ├─▶ snapshots · kills · servers
//! invariants ─▶ what must be as before               ─┘
//! ```

mod groups;
mod invariants;
mod kills;
mod process;
mod servers;
mod shot;
mod snapshots;
mod targets;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::tools::{Outcome, build_memtrace, record, root};
use groups::Group;
use shot::{Memtrace, without_numbers};
use targets::Kind;

/// Snapshots of a full run.
const FULL: u32 = 10_000;

/// Snapshots of a usual kind in a short one.
const SHORT: u32 = 5;

/// What may be asked of `cargo xtask harm`.
#[derive(Args)]
pub(crate) struct Options {
    /// As much as proves something: more than an hour
    #[arg(long)]
    full: bool,
    /// Only this part
    #[arg(long)]
    part: Option<Part>,
    /// Only this kind of target
    #[arg(long)]
    kind: Option<String>,
    /// So many snapshots of each kind, or kills of each victim
    #[arg(long)]
    count: Option<u32>,
    /// The memtrace program; built where none is given
    #[arg(long)]
    memtrace: Option<PathBuf>,
    /// Busy loops beside a sixteenth of the snapshots
    #[arg(long, default_value_t = 8)]
    busy: u32,
}

/// A part of the proof.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Snapshots of all kinds of target
    Snapshots,
    /// `kill -9` of memtrace, of its guard, of both, of the copy, at random moments
    Kills,
    /// Public servers under load; only where asked for, or in a full run
    Servers,
}

impl Options {
    /// How many snapshots are taken of a kind.
    fn count_of(&self, kind: &Kind) -> u32 {
        if let Some(count) = self.count {
            return count;
        }
        let usual = if self.full {
            let all = targets::kinds(true, None).unwrap_or_default();
            let shares: u32 = all.iter().map(|k| k.share).sum();
            (FULL * 100).div_ceil(shares.max(1))
        } else {
            SHORT
        };
        (usual * kind.share).div_ceil(100).max(4)
    }
}

/// The short form, as part of all tests, with a program that is built already.
#[allow(dead_code, reason = "`cargo xtask test` calls it")]
pub(crate) fn short(memtrace: PathBuf) -> Outcome {
    run(&Options {
        full: false,
        part: None,
        kind: None,
        count: None,
        memtrace: Some(memtrace),
        busy: 8,
    })
}

/// Runs the parts that are asked for, and fails where one of them found harm.
pub(crate) fn run(options: &Options) -> Outcome {
    let program = match &options.memtrace {
        Some(program) => program.clone(),
        None => build_memtrace()?,
    };
    let program = program
        .canonicalize()
        .map_err(|e| format!("{}: {e}", program.display()))?;
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let files = folder.path().join("files");
    std::fs::create_dir(&files).map_err(|e| e.to_string())?;
    open_to_all(folder.path())?;
    let memtrace = Memtrace {
        program,
        folder: files,
        mark: format!("{}-end", std::process::id()),
    };
    let wanted = |part| options.part.is_none_or(|p| p == part);
    let mut faults = Vec::new();
    if wanted(Part::Snapshots) {
        let kinds = possible(targets::kinds(options.full, options.kind.as_deref())?);
        let (table, found) = snapshots::run(options, &memtrace, &kinds, folder.path())?;
        report(options, "snapshots", &table)?;
        faults.extend(found);
    }
    if wanted(Part::Kills) {
        let (table, found) = kills::run(options, &memtrace, folder.path())?;
        report(options, "kills", &table)?;
        faults.extend(found);
    }
    // To build them takes minutes.
    if options.part == Some(Part::Servers) || (options.full && options.part.is_none()) {
        let (table, found) = servers::run(options, &memtrace, folder.path())?;
        report(options, "servers", &table)?;
        faults.extend(found);
    }
    if faults.is_empty() {
        println!("no harm: ok");
        return Ok(());
    }
    Err(format!("{} times harm:{}", faults.len(), summary(&faults)))
}

/// Faults that differ in numbers only count as one, told by the first of them.
fn summary(faults: &[String]) -> String {
    let mut kinds: BTreeMap<String, (&str, usize)> = BTreeMap::new();
    for fault in faults {
        let kind = kinds.entry(without_numbers(fault)).or_insert((fault, 0));
        kind.1 += 1;
    }
    let lines = kinds.values().map(|(first, times)| match times {
        1 => format!("\n  {first}"),
        times => format!("\n  {times} times: {first}"),
    });
    lines.collect()
}

/// Shows a table; that of a full run is kept.
fn report(options: &Options, part: &str, table: &str) -> Outcome {
    println!("\n{table}");
    if !options.full || options.kind.is_some() || options.count.is_some() {
        return Ok(());
    }
    record(
        &root().join("bench/harm.md"),
        "Harm: what memtrace does to those it looks at",
        &format!("`cargo xtask harm --full --part {part}`\n\n{table}"),
    )
}

/// Without the kinds that this machine does not have.
fn possible(kinds: Vec<Kind>) -> Vec<Kind> {
    let may = |kind: &Kind| {
        let missing = kind.needs().into_iter().find(|n| !Group::can(n));
        if let Some(missing) = missing {
            eprintln!(
                "{}: left out, no control group for {missing} can be made",
                kind.name
            );
        }
        missing.is_none()
    };
    kinds.into_iter().filter(may).collect()
}

/// Targets of other users start programs from here.
fn open_to_all(folder: &Path) -> Outcome {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder, mode).map_err(|e| e.to_string())
}
