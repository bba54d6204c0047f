//! One `memtrace snapshot`, and whether it is right.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::targets::{MARK, Target, Truth};
use crate::tools::Outcome;

/// A snapshot that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Items that the target holds by the way while it puts one in another's place.
const IN_HAND: u64 = 3;

/// What must not be said of a target that is whole.
const BLAME: &[&str] = &[
    "not a Go program",
    "0 objects",
    "damaged",
    "corrupt",
    "panicked",
];

/// The program under test.
pub(crate) struct Memtrace {
    pub(crate) program: PathBuf,
    /// Where its files go, and nothing else.
    pub(crate) folder: PathBuf,
    pub(crate) mark: String,
}

/// A snapshot that is being taken.
pub(crate) struct Shot {
    pub(crate) child: Child,
    file: PathBuf,
}

/// What became of it.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    out: String,
    err: String,
    file: PathBuf,
}

/// What a snapshot that did no wrong was.
pub(crate) enum Taken {
    /// A right one.
    Good {
        /// The pause that it tells of, ms.
        pause_ms: f64,
        /// What it warned of.
        warnings: Vec<String>,
    },
    /// None, for this reason.
    Refused(String),
}

impl Memtrace {
    /// Begins a snapshot.
    pub(crate) fn shoot(&self, pid: u32) -> Outcome<Shot> {
        let file = self.folder.join("heap.mtsnap");
        let child = Command::new(&self.program)
            .args(["snapshot", &pid.to_string(), "--json", "-o"])
            .arg(&file)
            .current_dir(&self.folder)
            .env("TMPDIR", &self.folder)
            .env(MARK, &self.mark)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}", self.program.display()))?;
        Ok(Shot { child, file })
    }

    /// Takes a snapshot and judges it.
    pub(crate) fn take(&self, target: &Target) -> Outcome<Taken> {
        let ended = self.shoot(target.pid)?.end()?;
        self.judge(&ended, Some(target))
    }

    /// The same of a process that does not tell what it holds.
    pub(crate) fn take_any(&self, pid: u32) -> Outcome<Taken> {
        let ended = self.shoot(pid)?.end()?;
        self.judge(&ended, None)
    }

    /// Whether a snapshot is right, or was refused as it should be. An error is a fault of memtrace.
    pub(crate) fn judge(&self, ended: &Ended, target: Option<&Target>) -> Outcome<Taken> {
        let judged = if ended.status.success() {
            self.judge_good(ended, target)
        } else {
            judge_refused(ended)
        };
        let was_there = ended.file.exists();
        self.clear(ended)?;
        if ended.status.success() != was_there {
            let what = if was_there { "there" } else { "missing" };
            return Err(format!("{}, but the file is {what}", ended.status));
        }
        judged
    }

    /// Whether a snapshot whose program was killed left nothing wrong; and whether it left its file.
    pub(crate) fn judge_killed(&self, ended: &Ended, target: &Target) -> Outcome<bool> {
        let was_there = ended.file.exists();
        let judged = if was_there {
            self.judge_file(&ended.file, Some(target))
        } else {
            Ok(())
        };
        self.clear(ended)?;
        judged.map(|()| was_there)
    }

    /// Removes the file; there must be no other.
    fn clear(&self, ended: &Ended) -> Outcome {
        let _ = std::fs::remove_file(&ended.file);
        let left: Vec<String> = std::fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
            .collect();
        for name in &left {
            let _ = std::fs::remove_file(self.folder.join(name));
        }
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("files are left: {}", left.join(", ")))
        }
    }

    fn judge_good(&self, ended: &Ended, target: Option<&Target>) -> Outcome<Taken> {
        let told: Value = serde_json::from_str(&ended.out)
            .map_err(|e| format!("exit 0, but it printed {:?} ({e})", ended.out))?;
        self.judge_file(&ended.file, target)?;
        let pause_ms = (told["pause_ms"].as_f64()).ok_or("it does not tell the pause")?;
        Ok(Taken::Good {
            pause_ms,
            warnings: ended.err.lines().map(without_numbers).collect(),
        })
    }

    /// Whether what is in the file is true, of the target too where that says what it holds.
    fn judge_file(&self, file: &Path, target: Option<&Target>) -> Outcome {
        let report = Command::new(&self.program)
            .arg("report")
            .arg(file)
            .args(["--json", "--rows", "0"])
            .output()
            .map_err(|e| e.to_string())?;
        let heap: Value = serde_json::from_slice(&report.stdout).map_err(|_| {
            let said = String::from_utf8_lossy(&report.stderr);
            format!("WRONG snapshot: it cannot be read: {}", said.trim())
        })?;
        let totals = &heap["totals"];
        let found = number(&totals["bytes"]) + number(&totals["dead_bytes"]);
        let counted = number(&totals["heap_alloc"]);
        // The runtime counts what its threads allocate now and then only.
        if number(&totals["objects"]) == 0 || found.abs_diff(counted) > counted / 20 + (512 << 10) {
            return Err(format!(
                "WRONG snapshot: {found} bytes found, the runtime counts {counted}"
            ));
        }
        target.map_or(Ok(()), |target| judge_items(&heap, target))
    }
}

/// Whether a snapshot has as many items as its target, and the target's name.
fn judge_items(heap: &Value, target: &Target) -> Outcome {
    let objects = number(&heap["totals"]["objects"]);
    let items = (heap["types"].as_array().into_iter().flatten())
        .find(|t| t["name"] == "main.Item")
        .map_or(0, |t| number(&t["objects"]));
    let expected = target.items;
    let right = match target.kind.truth {
        Truth::Exact => (expected..=expected + IN_HAND).contains(&items),
        Truth::AtMost => items <= expected + IN_HAND,
        Truth::Unnamed => objects >= expected,
    };
    if !right {
        return Err(format!(
            "WRONG snapshot: {items} items, {objects} objects; the target holds {expected} items"
        ));
    }
    let built = std::fs::read_link(&target.program).unwrap_or_default();
    let named = heap["program"].as_str();
    let is_named = |path: &Path| path.file_name().and_then(|n| n.to_str()) == named;
    if is_named(&target.program) || is_named(&built) {
        return Ok(());
    }
    Err(format!(
        "WRONG snapshot: the program is named {}",
        named.unwrap_or_default()
    ))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

impl Shot {
    /// Waits for its end.
    pub(crate) fn end(mut self) -> Outcome<Ended> {
        let until = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().map_err(|e| e.to_string())? {
                Some(status) => break status,
                None if Instant::now() > until => {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    return Err(format!("memtrace hangs: no end after {PATIENCE:?}"));
                }
                None => std::thread::sleep(Duration::from_micros(500)),
            }
        };
        // What it says is short: it fits into a pipe. A guard that outlives it must not be waited for.
        let mut out = String::new();
        let mut err = String::new();
        if let Some(mut pipe) = self.child.stdout.take() {
            let _ = pipe.read_to_string(&mut out);
        }
        if let Some(mut pipe) = self.child.stderr.take() {
            let _ = pipe.read_to_string(&mut err);
        }
        Ok(Ended {
            status,
            out,
            err,
            file: self.file,
        })
    }
}

fn judge_refused(ended: &Ended) -> Outcome<Taken> {
    let reason = ended.err.trim();
    if ended.status.code() == Some(101) || ended.status.code().is_none() {
        return Err(format!("memtrace broke: {}: {reason}", ended.status));
    }
    if reason.is_empty() {
        return Err(format!("{} without a word", ended.status));
    }
    if let Some(word) = BLAME.iter().find(|b| reason.contains(*b)) {
        return Err(format!("it blames the target ({word}): {reason}"));
    }
    let last = reason.lines().last().unwrap_or_default();
    Ok(Taken::Refused(without_numbers(last)))
}

/// A line in which each number is one sign, so that equal reasons are equal.
pub(crate) fn without_numbers(line: &str) -> String {
    let mut text = String::new();
    for sign in line.chars() {
        match sign {
            '0'..='9' if text.ends_with('N') => {}
            '0'..='9' => text.push('N'),
            _ => text.push(sign),
        }
    }
    text
}
