//! `memtrace snapshot`: all objects of a process, into a file.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use memtrace_collect::goproc::{self, FreezeError, Frozen, Spent};
use memtrace_collect::{Draft, Options, Target};
use memtrace_formats::goheap::{self, Process};
use memtrace_model::{HeapGraph, snapshot};
use serde_json::{Value, json};

use crate::args::{PauseArgs, SnapshotArgs};
use crate::failure::Failure;
use crate::heap::{self, Sums, origin_json};
use crate::out::{Out, note};
use crate::progress::Step;
use crate::source::{freeze_failure, step_back, target_failure};
use crate::units::bytes;

/// A heap that was read from a process or a core.
pub(crate) struct Taken {
    pub(crate) graph: HeapGraph,
    /// What it cost the process; nothing for a core.
    cost: Option<Cost>,
    /// From the moment of the snapshot until all was read.
    reading: Duration,
}

/// What it cost a process to be copied.
#[derive(Clone, Copy)]
struct Cost {
    /// How long it stood still.
    pause: Duration,
    spent: Spent,
}

impl Cost {
    fn json(self) -> Value {
        json!({"pause_ms": milliseconds(self.pause), "copy_ms": milliseconds(self.spent.life),
            "copy_bytes": self.spent.written})
    }

    fn words(self) -> String {
        let mut words = format!("the process was paused for {}", span(self.pause));
        if !self.spent.life.is_zero() {
            words.push_str(&format!(
                "; the copy lived for {} and cost it {}",
                span(self.spent.life),
                bytes(self.spent.written as f64)
            ));
        }
        words
    }
}

pub(crate) fn run(args: &SnapshotArgs) -> Result<(), Failure> {
    let options = args.pause.options();
    let (frozen, moment) = freeze(&args.target, args.exe.as_deref(), &options)?;
    if let Some(path) = &args.core {
        write_whole(path, |file| {
            let mut out = io::BufWriter::with_capacity(1 << 20, file);
            let step = Step::begin(format!("writing {}", path.display()));
            let mut done = |bytes, all: u64| step.done(bytes as f64 / all.max(1) as f64);
            goproc::write_core(&frozen, &mut out, &mut done)
                .and_then(|()| out.flush())
                .map_err(|e| Failure::failed(path.display(), e))
        })?;
        if args.output.is_none() {
            let mut out = Out::open();
            let (pid, pause, file) = (frozen.pid(), frozen.pause(), path.display().to_string());
            let spent = frozen.thaw().map_err(|error| freeze_failure(&error))?;
            let cost = Cost { pause, spent };
            if args.json {
                let mut document =
                    json!({"schema": "memtrace.snapshot/1", "pid": pid, "core": file});
                heap::merge(&mut document, cost.json());
                out.json(&document)?;
            } else {
                out.line(format_args!("{file}: {}", cost.words()))?;
            }
            return Ok(out.done()?);
        }
    }
    let taken = read(&args.target, frozen, moment, &options)?;
    let graph = &taken.graph;
    let path = args.output.clone().unwrap_or_else(|| default_name(graph));
    write_whole(&path, |file| {
        let mut out = io::BufWriter::new(file);
        let step = Step::begin(format!("writing {}", path.display()));
        snapshot::write(graph, &mut out, &mut |share| step.done(share))
            .map_err(|e| Failure::failed(path.display(), e))?;
        out.flush().map_err(|e| Failure::failed(path.display(), e))
    })?;
    let sums = Sums::of_all(graph);
    let size = std::fs::metadata(&path).map_or(0, |m| m.len());
    let mut out = Out::open();
    if args.json {
        let mut document = json!({
            "schema": "memtrace.snapshot/1", "file": path.display().to_string(), "file_bytes": size,
            "core": args.core.as_ref().map(|c| c.display().to_string()),
            "reading_ms": milliseconds(taken.reading), "totals": sums.json(graph),
        });
        if let Some(cost) = taken.cost {
            heap::merge(&mut document, cost.json());
        }
        heap::merge(&mut document, origin_json(graph));
        out.json(&document)?;
    } else {
        let mut lines = vec![heap::origin(graph)];
        lines.extend(heap::sums_in_words(graph, &sums));
        lines.push(format!(
            "{} ({}), read in {}{}",
            path.display(),
            bytes(size as f64),
            span(taken.reading),
            taken
                .cost
                .map_or_else(String::new, |cost| format!("; {}", cost.words()))
        ));
        out.lines(&lines)?;
    }
    Ok(out.done()?)
}

/// Takes the heap of a target; says on stderr how long it stood still.
pub(crate) fn take(from: &str, pause: &PauseArgs) -> Result<Taken, Failure> {
    let options = pause.options();
    let (frozen, moment) = freeze(from, None, &options)?;
    let taken = read(from, frozen, moment, &options)?;
    if let Some(cost) = taken.cost {
        note(format_args!(
            "read in {}; {}",
            span(taken.reading),
            cost.words()
        ));
    }
    Ok(taken)
}

/// The moment of a copy: as this program tells time, and as the runtime does.
#[derive(Clone, Copy)]
struct Moment {
    here: Instant,
    monotonic: Option<u64>,
}

fn freeze(
    from: &str,
    executable: Option<&Path>,
    options: &goproc::Options,
) -> Result<(Frozen, Moment), Failure> {
    let target = Target::parse(from).map_err(|error| target_failure(&error))?;
    let here = Instant::now();
    if let Target::File(path) = &target {
        let frozen = goproc::open_core(path, executable).map_err(|error| freeze_failure(&error))?;
        let moment = Moment {
            here,
            monotonic: None,
        };
        return Ok((frozen, moment));
    }
    let pid = process(&target)?;
    step_back();
    let frozen = goproc::freeze(pid, options).map_err(|error| freeze_failure(&error))?;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let monotonic = u64::try_from(now.tv_sec)
        .ok()
        .zip(u64::try_from(now.tv_nsec).ok())
        .and_then(|(s, ns)| s.checked_mul(1_000_000_000)?.checked_add(ns));
    Ok((frozen, Moment { here, monotonic }))
}

/// The process of a target that is no file.
fn process(target: &Target) -> Result<u32, Failure> {
    if let Target::Pid(pid) = target {
        return Ok(*pid);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed("starting", error))?;
    // Where it serves profiles is of no moment here.
    let found = match runtime.block_on(target.attach(&Options::default())) {
        Ok(attached) => attached.pid,
        Err(error) => Some(error.pid().ok_or_else(|| target_failure(&error))?),
    };
    found.ok_or_else(|| {
        Failure::TargetLost(format!(
            "{target}: its process is not on this machine, or cannot be seen; give its pid"
        ))
    })
}

/// Why a heap was not read.
enum Unread {
    /// The copy did not last: nothing counts that was read of it, nor what the reader says.
    Lost(FreezeError),
    Failed(Failure),
}

/// Reads a heap; where the target cannot spare its copy as long as that takes, without one.
fn read(
    from: &str,
    frozen: Frozen,
    moment: Moment,
    options: &goproc::Options,
) -> Result<Taken, Failure> {
    let lost = match read_once(from, frozen, moment, options.max_memory) {
        Ok(taken) => return Ok(taken),
        Err(Unread::Failed(failure)) => return Err(failure),
        Err(Unread::Lost(error)) => error,
    };
    if !matches!(lost, FreezeError::CopyLost { short: true, .. }) {
        return Err(freeze_failure(&lost));
    }
    note(format_args!("{lost}"));
    let options = goproc::Options {
        method: goproc::Method::Direct,
        ..options.clone()
    };
    let (frozen, moment) = freeze(from, None, &options)?;
    read_once(from, frozen, moment, options.max_memory).map_err(|unread| match unread {
        Unread::Lost(error) => freeze_failure(&error),
        Unread::Failed(failure) => failure,
    })
}

fn read_once(from: &str, frozen: Frozen, moment: Moment, max_memory: u64) -> Result<Taken, Unread> {
    let step = Step::begin(format!("reading the heap of {from}"));
    let executable = match frozen.executable() {
        Ok(executable) => executable,
        Err(error) => {
            frozen.whole().map_err(Unread::Lost)?;
            let path = frozen.executable_path().map(|p| p.display().to_string());
            let path = path.unwrap_or_default();
            let line = format!("{from}: its executable {path}: {error}");
            return Err(Unread::Failed(Failure::Failed(line)));
        }
    };
    let pid = moment.monotonic.map(|_| frozen.pid());
    let read = goheap::read(&Process {
        executable: &executable,
        memory: &frozen,
        regions: frozen.regions(),
        threads: frozen.threads(),
        pid: frozen.pid(),
        start: frozen.start_ticks(),
        taken: frozen.taken(),
        monotonic: moment.monotonic,
        with_labels: false,
        max_memory,
    });
    let (pause, program) = (frozen.pause(), program(&frozen));
    let spent = frozen.thaw().map_err(Unread::Lost)?;
    let (mut graph, warnings) = read.map_err(|error| Unread::Failed(unread(from, pid, &error)))?;
    drop(step);
    for warning in &warnings {
        note(format_args!("{from}: {warning}"));
    }
    if graph.program == 0 {
        graph.program = graph.strings.intern(&program);
    }
    let is_live = moment.monotonic.is_some();
    if is_live {
        (graph.agrees())
            .map_err(|what| Unread::Failed(Failure::Failed(format!("{from}: {what}"))))?;
    }
    Ok(Taken {
        graph,
        cost: is_live.then_some(Cost { pause, spent }),
        reading: moment.here.elapsed(),
    })
}

/// What it is that cannot be read: errors of the reader are noun phrases.
fn unread(from: &str, pid: Option<u32>, error: &memtrace_formats::Error) -> Failure {
    Failure::Failed(match pid {
        Some(pid) => format!("process {pid} is {error}"),
        None => format!("{from}: {error}"),
    })
}

/// Name of the file of the program.
fn program(frozen: &Frozen) -> String {
    let path = frozen.executable_path().map(Path::to_path_buf);
    // Of a live process it is a link below /proc.
    let path = path.map(|p| std::fs::read_link(&p).unwrap_or(p));
    let name = path.as_ref().and_then(|p| p.file_name()?.to_str());
    name.map_or("", |n| n.trim_end_matches(" (deleted)"))
        .to_owned()
}

fn default_name(graph: &HeapGraph) -> PathBuf {
    let name = graph.strings.get(graph.program);
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name: String = name.chars().filter(|c| safe(*c)).take(64).collect();
    let name = name.trim_start_matches('.');
    let name = if name.is_empty() { "heap" } else { name };
    PathBuf::from(format!("{name}-{}.mtsnap", graph.pid))
}

/// Writes all or nothing: no half file is left under the name asked for.
fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::failed(path.display(), error);
    let mut draft = Draft::of(path).map_err(failed)?;
    write(draft.file())?;
    draft.replace(path).map_err(failed)
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn span(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.1} s"),
    }
}
