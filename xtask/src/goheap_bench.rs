//! `cargo xtask bench goheap`: how long a process stands still while its heap is taken, and
//! what a whole report costs, beside goref and viewcore on the same process.
//!
//! The target is `services/heaptruth`, which measures by its own clock how long it stood
//! still. The rivals are programs that lie in a folder named by `MEMTRACE_RIVALS`: `grf`
//! (github.com/cloudwego/goref) and `viewcore` (golang.org/x/debug), built from their public
//! sources. viewcore reads a core, which gdb's `gcore` writes; both are told.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::goheap_agree::agreement;
use crate::matrix::build_heaptruth;
use crate::tools::{Outcome, build_memtrace, record, root, target_dir};

/// The Go of the target: the newest that both rivals read.
const GO: &str = "1.26.6";

/// Snapshots of which the longest pause counts.
const PAUSES: usize = 5;

/// The target, ended when dropped.
struct Target {
    child: Child,
    output: BufReader<ChildStdout>,
    truth: Value,
}

impl Target {
    fn start(program: &Path, fill: u64) -> Outcome<Self> {
        let mut child = Command::new(program)
            .args(["-beat", "-fill", &fill.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        let output = child.stdout.take().ok_or("no output")?;
        let mut target = Self {
            child,
            output: BufReader::new(output),
            truth: Value::Null,
        };
        target.truth = target.line()?;
        Ok(target)
    }

    fn line(&mut self) -> Outcome<Value> {
        let mut line = String::new();
        self.output
            .read_line(&mut line)
            .map_err(|e| e.to_string())?;
        serde_json::from_str(&line).map_err(|e| format!("the target says {line:?}: {e}"))
    }

    /// The longest time that the target stood still since the last call, in milliseconds.
    fn gap(&mut self) -> Outcome<f64> {
        std::thread::sleep(Duration::from_millis(300));
        let input = self.child.stdin.as_mut().ok_or("no input")?;
        input.write_all(b"\n").map_err(|e| e.to_string())?;
        Ok(self.line()?["gap_ms"].as_f64().unwrap_or(f64::NAN))
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program took.
#[derive(Clone, Copy, Default)]
struct Cost {
    seconds: f64,
    user: f64,
    /// Most memory resident, in MB.
    peak: f64,
}

/// Runs a program under `time`, with its output in a file; nothing where it fails.
fn cost(command: &mut Command, output: &Path) -> Outcome<Option<Cost>> {
    let times = output.with_extension("times");
    let mut timed = Command::new("/usr/bin/time");
    timed
        .args(["-f", "%e %U %M", "-o"])
        .arg(&times)
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(output).map_err(|e| e.to_string())?)
        .stderr(Stdio::null());
    let status = timed.status().map_err(|e| format!("/usr/bin/time: {e}"))?;
    if !status.success() {
        eprintln!("{:?}: {status}", command.get_program());
        return Ok(None);
    }
    let text = std::fs::read_to_string(&times).map_err(|e| e.to_string())?;
    let mut words = text.split_whitespace().map(|w| w.parse().unwrap_or(0.0));
    let mut next = || words.next().unwrap_or(0.0);
    Ok(Some(Cost {
        seconds: next(),
        user: next(),
        peak: next() * 1024.0 / 1e6,
    }))
}

/// Measures at each size (bytes of heap), and appends the result to `bench/goheap.md`.
pub(crate) fn run(sizes: &[f64]) -> Outcome {
    let memtrace = build_memtrace()?;
    let target = build_heaptruth(GO, "bench", false, &[])?;
    let rivals = std::env::var_os("MEMTRACE_RIVALS").map(PathBuf::from);
    if rivals.is_none() {
        eprintln!("without rivals: MEMTRACE_RIVALS names no folder");
    }
    let mut text = format!(
        "`cargo xtask bench goheap --gb {}`, Go {GO}, one process for all rows of a size. *Stop* is the longest gap between\n\
         two beats of the target's own clock (0.2 ms apart) while the program worked, the longest of {PAUSES} for memtrace;\n\
         *told* is memtrace's own figure. *Report* ends with types, dominators, retained sizes and suspects (memtrace,\n\
         from the pid), reference chains (goref), histogram and object graph (viewcore, from gcore's file).\n",
        sizes
            .iter()
            .map(f64::to_string)
            .collect::<Vec<_>>()
            .join(",")
    );
    for &size in sizes {
        measure(&memtrace, &target, rivals.as_deref(), size, &mut text)?;
    }
    println!("{text}");
    record(
        &root().join("bench/goheap.md"),
        "The heap of a Go process, seen from outside",
        &text,
    )
}

struct Row {
    name: &'static str,
    stop: Option<f64>,
    cost: Cost,
}

fn measure(
    memtrace: &Path,
    program: &Path,
    rivals: Option<&Path>,
    gigabytes: f64,
    text: &mut String,
) -> Outcome {
    let mut target = Target::start(program, (gigabytes * 1e9) as u64)?;
    let pid = target.pid();
    let folder = tempfile::tempdir_in(target_dir()).map_err(|e| e.to_string())?;
    let file = |name: &str| folder.path().join(name);
    std::thread::sleep(Duration::from_secs(2));
    target.gap()?;
    let quiet = target.gap()?;

    let (mut stop, mut told, mut snapshot) = (0.0_f64, 0.0_f64, Cost::default());
    for _ in 0..PAUSES {
        let mut command = Command::new(memtrace);
        command
            .args(["snapshot", &pid, "--json", "-o"])
            .arg(file("heap.mtsnap"));
        snapshot = cost(&mut command, &file("snapshot"))?.ok_or("no snapshot")?;
        stop = stop.max(target.gap()?);
        let says = std::fs::read_to_string(file("snapshot")).map_err(|e| e.to_string())?;
        let says: Value = serde_json::from_str(&says).map_err(|e| e.to_string())?;
        told = told.max(says["pause_ms"].as_f64().unwrap_or(f64::NAN));
    }
    let report = |what: &str| {
        let mut command = Command::new(memtrace);
        command.args(["report", "--json"]).arg(what);
        cost(&mut command, &file("report"))
    };
    let from_file = report(&file("heap.mtsnap").display().to_string())?.ok_or("no report")?;
    let from_pid = report(&pid)?.ok_or("no report")?;
    let mut rows = vec![
        Row {
            name: "memtrace snapshot PID",
            stop: Some(stop),
            cost: snapshot,
        },
        Row {
            name: "memtrace report FILE",
            stop: None,
            cost: from_file,
        },
        Row {
            name: "memtrace report PID",
            stop: Some(stop),
            cost: from_pid,
        },
    ];
    target.gap()?;
    if let Some(rivals) = rivals {
        let mut command = Command::new(rivals.join("grf"));
        command.args(["attach", &pid, "-o"]).arg(file("grf"));
        if let Some(cost) = cost(&mut command, &file("grf.log"))? {
            rows.push(Row {
                name: "goref attach PID",
                stop: Some(target.gap()?),
                cost,
            });
        }
        target.gap()?;
        let mut command = Command::new("gcore");
        command.arg("-o").arg(file("core")).arg(&pid);
        if let Some(cost) = cost(&mut command, &file("gcore.log"))? {
            rows.push(Row {
                name: "gcore PID (for viewcore)",
                stop: Some(target.gap()?),
                cost,
            });
            let core = file(&format!("core.{pid}"));
            let graph = file("graph.dot").display().to_string();
            for (name, words) in [
                ("viewcore histogram", &["histogram"][..]),
                ("viewcore objgraph", &["objgraph", &graph]),
            ] {
                let mut command = Command::new(rivals.join("viewcore"));
                command.arg(&core).arg("--exe").arg(program).args(words);
                if let Some(cost) = self::cost(&mut command, &file("viewcore.log"))? {
                    rows.push(Row {
                        name,
                        stop: None,
                        cost,
                    });
                }
            }
        }
    }
    // Listings of all objects: of a heap that they are done with in a minute.
    let agreement = match rivals {
        Some(rivals) if gigabytes <= 0.2 => {
            let (snap, core) = (file("agree.mtsnap"), file("agree.core"));
            let mut command = Command::new(memtrace);
            command
                .args(["snapshot", &pid, "-o"])
                .arg(&snap)
                .arg("--core")
                .arg(&core);
            cost(&mut command, &file("agree.log"))?.ok_or("no core")?;
            agreement(&snap, &core, program, rivals)?
        }
        _ => String::new(),
    };
    let live = target.truth["heap_live"].as_f64().unwrap_or(0.0);
    let objects = target.truth["live_objects"].as_f64().unwrap_or(0.0);
    let _ = writeln!(
        text,
        "\n{:.2} GB, {:.1} M objects; longest gap of the target left alone {quiet:.1} ms; memtrace: stop {stop:.1} ms, told \
         {told:.1} ms = {:.1} ms/GB.\n\n\
         | | stop, ms | s | user s | peak, MB | stop, memtrace = 1 | s, report PID = 1 | peak, report PID = 1 |\n|---|---|---|---|---|---|---|---|",
        live / 1e9,
        objects / 1e6,
        told / (live / 1e9),
    );
    for row in &rows {
        let number =
            |n: Option<f64>, places: usize| n.map_or_else(String::new, |n| format!("{n:.places$}"));
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} | {:.2} | {:.0} | {} | {:.2} | {:.2} |",
            row.name,
            number(row.stop, 1),
            row.cost.seconds,
            row.cost.user,
            row.cost.peak,
            number(row.stop.map(|s| s / stop), 0),
            row.cost.seconds / from_pid.seconds,
            row.cost.peak / from_pid.peak,
        );
    }
    text.push_str(&agreement);
    Ok(())
}
