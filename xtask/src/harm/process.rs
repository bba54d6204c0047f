//! What `/proc` tells of processes, as the invariants need it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How a thread is scheduled: policy, real-time priority, nice.
pub(crate) type Schedule = (u32, u32, i32);

/// One thread.
#[derive(Clone, Debug)]
pub(crate) struct Thread {
    pub(crate) start: u64,
    pub(crate) state: char,
    pub(crate) schedule: Schedule,
    /// Processors it may run on.
    pub(crate) affinity: String,
    /// Signals it blocks.
    pub(crate) mask: String,
    pub(crate) tracer: u32,
}

/// The fields of a `stat` file from the third on.
fn stat(path: &str) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(path).ok()?;
    let fields = text.get(text.rfind(')')? + 2..)?;
    Some(fields.split_ascii_whitespace().map(str::to_owned).collect())
}

/// When a process started, in ticks after the boot.
pub(crate) fn start_of(pid: u32) -> Option<u64> {
    stat(&format!("/proc/{pid}/stat"))?.get(19)?.parse().ok()
}

/// The parent of a process.
pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    stat(&format!("/proc/{pid}/stat"))?.get(1)?.parse().ok()
}

/// The state of a process: `Z`, say.
pub(crate) fn state_of(pid: u32) -> Option<char> {
    stat(&format!("/proc/{pid}/stat"))?.first()?.chars().next()
}

/// Name of a process.
pub(crate) fn name_of(pid: u32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

/// Pid of the tracer of a process, 0 where there is none.
pub(crate) fn tracer_of(pid: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    field(&text, "TracerPid")?.parse().ok()
}

/// The process that a thread is of.
pub(crate) fn leader_of(tid: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    field(&text, "Tgid")?.parse().ok()
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = status.lines();
    lines.find_map(|l| Some(l.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

fn numbers(folder: &str) -> Vec<u32> {
    let listed = std::fs::read_dir(folder).into_iter().flatten();
    listed
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// The threads of a process.
pub(crate) fn threads(pid: u32) -> BTreeMap<u32, Thread> {
    let look = |tid: u32| {
        let fields = stat(&format!("/proc/{pid}/task/{tid}/stat"))?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
        let number = |at: usize| fields.get(at)?.parse::<i64>().ok();
        Some(Thread {
            start: u64::try_from(number(19)?).ok()?,
            state: fields.first()?.chars().next()?,
            schedule: (
                u32::try_from(number(38)?).ok()?,
                u32::try_from(number(37)?).ok()?,
                i32::try_from(number(16)?).ok()?,
            ),
            affinity: field(&status, "Cpus_allowed")?.to_owned(),
            mask: field(&status, "SigBlk")?.to_owned(),
            tracer: field(&status, "TracerPid")?.parse().ok()?,
        })
    };
    let all = numbers(&format!("/proc/{pid}/task")).into_iter();
    all.filter_map(|tid| Some((tid, look(tid)?))).collect()
}

/// Children of a process, of whichever thread.
pub(crate) fn children(pid: u32) -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    for tid in numbers(&format!("/proc/{pid}/task")) {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/children"));
        let text = text.unwrap_or_default();
        all.extend(
            text.split_ascii_whitespace()
                .filter_map(|c| c.parse::<u32>().ok()),
        );
    }
    all
}

/// How many files a process has open.
pub(crate) fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// How many mappings a process has.
pub(crate) fn mappings(pid: u32) -> usize {
    std::fs::read(format!("/proc/{pid}/maps"))
        .unwrap_or_default()
        .iter()
        .filter(|b| **b == b'\n')
        .count()
}

/// All processes.
pub(crate) fn everybody() -> Vec<u32> {
    numbers("/proc")
}

/// Whether a process's environment has this text.
pub(crate) fn is_marked(pid: u32, mark: &str) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment
        .split(|b| *b == 0)
        .any(|variable| variable == mark.as_bytes())
}

/// How often the kernel has ended a process for want of memory, on the whole machine.
pub(crate) fn oom_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("oom_kill "));
    line.and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// A number that follows a word in a file of a control group; the only one where the word is empty.
pub(crate) fn counter(file: &Path, word: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    if word.is_empty() {
        return text.trim().parse().ok();
    }
    let mut lines = text.lines();
    lines.find_map(|l| l.strip_prefix(word)?.trim().parse().ok())
}

/// The longest times that a thread of a process was seen in a state.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Longest {
    /// Stopped by a tracer.
    pub(crate) held: Duration,
    /// Waiting in the kernel, for a disk or a lock.
    pub(crate) blocked: Duration,
    /// Nobody looked for so long.
    pub(crate) unseen: Duration,
}

impl std::fmt::Display for Longest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            held,
            blocked,
            unseen,
        } = self;
        write!(
            f,
            "held for {held:.1?} at a time, blocked for {blocked:.1?}, looked at every {unseen:.1?} at least"
        )
    }
}

/// Looks all the time how the threads of a process are: who stood still may have been held, or
/// had no processor.
pub(crate) struct Look {
    over: Arc<AtomicBool>,
    looks: JoinHandle<Longest>,
}

impl Look {
    pub(crate) fn at(pid: u32) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        let looks = thread::spawn(move || looks(pid, &until));
        Self { over, looks }
    }

    pub(crate) fn end(self) -> Longest {
        self.over.store(true, Ordering::Relaxed);
        self.looks.join().unwrap_or_default()
    }
}

fn looks(pid: u32, over: &AtomicBool) -> Longest {
    const EVERY: Duration = Duration::from_millis(10);
    /// To look at more threads takes too long.
    const MOST: usize = 64;
    // Busy loops must not keep it from looking. Of this thread alone.
    let _ = rustix::process::setpriority_process(None, -20);
    let mut longest = Longest::default();
    // Since when, and in which state.
    let mut since: BTreeMap<u32, (char, Instant)> = BTreeMap::new();
    let mut last = Instant::now();
    while !over.load(Ordering::Relaxed) {
        let now = Instant::now();
        longest.unseen = longest.unseen.max(now - last);
        let all = numbers(&format!("/proc/{pid}/task"));
        if all.len() > MOST {
            thread::sleep(EVERY);
            continue;
        }
        last = now;
        for tid in all {
            let Some(state) = stat(&format!("/proc/{pid}/task/{tid}/stat"))
                .and_then(|fields| fields.first()?.chars().next())
            else {
                continue;
            };
            let seen = since.entry(tid).or_insert((state, now));
            if seen.0 != state {
                *seen = (state, now);
            }
            let lasts = now - seen.1;
            match state {
                't' => longest.held = longest.held.max(lasts),
                'D' => longest.blocked = longest.blocked.max(lasts),
                _ => {}
            }
        }
        thread::sleep(EVERY);
    }
    longest
}
