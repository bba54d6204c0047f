//! What must be of a target after a snapshot as it was before.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::groups::Events;
use super::process::{self, Schedule, Thread};
use super::targets::{MARK, State, Target};
use crate::tools::Outcome;

/// A Go program maps new memory now and then; a snapshot that left a mapping each time would
/// soon be above this.
const OTHER_MAPPINGS: usize = 6;

/// A thread more has its stack and the page that ends it, and in C an arena of malloc, of which
/// a part may be in use.
const MAPPINGS_OF_THREAD: usize = 4;

/// What memtrace's processes are called.
const OURS: [&str; 3] = ["memtrace", "memtrace-guard", "memtrace-copy"];

/// What a target is like when nobody disturbs it.
pub(crate) struct Baseline {
    descriptors: (usize, usize),
    mappings: usize,
    threads: usize,
    schedules: BTreeSet<(Schedule, String)>,
    masks: BTreeSet<String>,
    /// How each thread was scheduled when it was first seen.
    known: BTreeMap<(u32, u64), (Schedule, String)>,
    events: Events,
    /// The worst gap and lateness, ms.
    pub(crate) gap_ms: f64,
    pub(crate) late_ms: f64,
}

impl Baseline {
    /// Looks at a target for a while.
    pub(crate) fn of(target: &mut Target, span: Duration) -> Outcome<Self> {
        let mut seen = Self {
            descriptors: (usize::MAX, 0),
            mappings: 0,
            threads: 0,
            schedules: BTreeSet::new(),
            masks: BTreeSet::new(),
            known: BTreeMap::new(),
            events: Events::default(),
            gap_ms: 0.0,
            late_ms: 0.0,
        };
        target.ask()?;
        let until = Instant::now() + span;
        while Instant::now() < until {
            let files = process::descriptors(target.pid);
            seen.descriptors.0 = seen.descriptors.0.min(files);
            seen.descriptors.1 = seen.descriptors.1.max(files);
            seen.mappings = seen.mappings.max(process::mappings(target.pid));
            let threads = process::threads(target.pid);
            seen.threads = seen.threads.max(threads.len());
            for (tid, thread) in threads {
                let scheduled = (thread.schedule, thread.affinity);
                seen.known.insert((tid, thread.start), scheduled.clone());
                seen.schedules.insert(scheduled);
                seen.masks.insert(thread.mask);
            }
            std::thread::sleep(Duration::from_millis(40));
            // Again and again: who replaces itself forgets.
            let state = target.ask()?;
            seen.gap_ms = seen.gap_ms.max(state.gap_ms);
            seen.late_ms = seen.late_ms.max(state.late_ms);
            if let Some(fault) = state.faults.first() {
                return Err(format!(
                    "{} is not whole, before any snapshot: {fault}",
                    target.kind.name
                ));
            }
        }
        seen.events = target
            .group
            .as_ref()
            .map(|g| g.events())
            .unwrap_or_default();
        Ok(seen)
    }

    /// What is not as it was, after as much patience as it takes a guard to clean up.
    pub(crate) fn faults(&self, target: &Target, patience: Duration) -> Vec<String> {
        let until = Instant::now() + patience;
        loop {
            let faults = self.faults_now(target);
            if faults.is_empty() || Instant::now() > until {
                return faults;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn faults_now(&self, target: &Target) -> Vec<String> {
        let pid = target.pid;
        if process::start_of(pid) != Some(target.start) {
            return vec!["it is not alive".to_owned()];
        }
        let mut faults = Vec::new();
        let files = process::descriptors(pid);
        // One may be closed or opened at this moment.
        if files > self.descriptors.1 || files < self.descriptors.0 {
            faults.push(format!(
                "{files} open files, {} to {} before",
                self.descriptors.0, self.descriptors.1
            ));
        }
        let mappings = process::mappings(pid);
        let threads = process::threads(pid);
        let more = threads.len().saturating_sub(self.threads);
        let usual = self.mappings + more * MAPPINGS_OF_THREAD;
        if mappings > usual + OTHER_MAPPINGS.max(self.mappings / 10) {
            faults.push(format!(
                "{mappings} mappings, {} before; {} threads, {} before",
                self.mappings,
                threads.len(),
                self.threads
            ));
        }
        for (tid, thread) in threads {
            faults.extend(
                self.fault_of(tid, thread)
                    .map(|f| format!("thread {tid} {f}")),
            );
        }
        let events = target
            .group
            .as_ref()
            .map(|g| g.events())
            .unwrap_or_default();
        if events != self.events {
            faults.push(format!("its group: {events:?}, {:?} before", self.events));
        }
        faults
    }

    fn fault_of(&self, tid: u32, thread: Thread) -> Option<String> {
        if thread.tracer != 0 {
            return Some(format!("is traced by {}", thread.tracer));
        }
        if matches!(thread.state, 'T' | 't') {
            return Some(format!("is stopped ({})", thread.state));
        }
        if !self.masks.contains(&thread.mask) {
            return Some(format!("blocks the signals {}", thread.mask));
        }
        let scheduled = (thread.schedule, thread.affinity);
        let as_before = match self.known.get(&(tid, thread.start)) {
            Some(before) => *before == scheduled,
            None => self.schedules.contains(&scheduled),
        };
        (!as_before).then(|| format!("is scheduled as {scheduled:?}"))
    }
}

/// What a target says that must not be.
pub(crate) fn own_faults(state: &State) -> Vec<String> {
    (state.faults.iter())
        .map(|f| format!("it says: {f}"))
        .collect()
}

/// Only what is seen with the process itself, quickly: after each snapshot.
pub(crate) fn quick_faults(target: &Target) -> Vec<String> {
    if process::start_of(target.pid) != Some(target.start) {
        return vec!["it is not alive".to_owned()];
    }
    if process::tracer_of(target.pid) != Some(0) {
        return vec!["it is still traced".to_owned()];
    }
    Vec::new()
}

/// Processes that snapshots left behind.
#[derive(Default)]
pub(crate) struct Strangers {
    /// Those that were there before, of other runs.
    before: BTreeSet<(u32, u64)>,
}

/// A process that nobody should have left.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stranger {
    pub(crate) pid: u32,
    pub(crate) start: u64,
    pub(crate) zombie: bool,
    name: String,
    parent: u32,
}

impl std::fmt::Display for Stranger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.zombie { "zombie" } else { "process" };
        write!(
            f,
            "a {what} is left: {} ({}), child of {}",
            self.pid, self.name, self.parent
        )
    }
}

impl Strangers {
    /// What is there now is not counted later.
    pub(crate) fn new() -> Self {
        let all = process::everybody().into_iter();
        let before = all.filter_map(|p| Some((p, process::start_of(p)?)));
        Self {
            before: before.collect(),
        }
    }

    /// Those that are there now and still after `patience`, beside the targets and what
    /// waits for them.
    pub(crate) fn left(&self, family: &[u32], mark: &str, patience: Duration) -> Vec<Stranger> {
        let until = Instant::now() + patience;
        let mut left = self.now(family, mark);
        while !left.is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
            let now = self.now(family, mark);
            left.retain(|s| now.contains(s));
        }
        left
    }

    fn now(&self, family: &[u32], mark: &str) -> Vec<Stranger> {
        let mark = format!("{MARK}={mark}");
        let names: BTreeSet<String> = (family.iter())
            .filter_map(|p| process::name_of(*p))
            .chain(OURS.map(str::to_owned))
            .collect();
        let look = |pid: u32| {
            let start = process::start_of(pid)?;
            if family.contains(&pid) || self.before.contains(&(pid, start)) {
                return None;
            }
            let name = process::name_of(pid)?;
            let parent = process::parent_of(pid)?;
            let zombie = process::state_of(pid)? == 'Z';
            // A zombie has no environment any more: those of other runs are told by their parents.
            let ours = if zombie {
                parent == 1 || parent == std::process::id() || family.contains(&parent)
            } else {
                process::is_marked(pid, &mark)
            };
            (ours && names.contains(&name)).then_some(Stranger {
                pid,
                start,
                zombie,
                name,
                parent,
            })
        };
        process::everybody().into_iter().filter_map(look).collect()
    }
}
