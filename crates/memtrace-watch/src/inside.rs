//! A Go process without an endpoint: its runtime's profiles are read from its memory, and a
//! copy of its heap tells what keeps alive what grows. Where its heap profile is off, copies
//! are compared.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memtrace_analysis::graph::{Dominators, Explanation, Heap, Holdings, explain};
use memtrace_collect::goproc::{self, FreezeError};
use memtrace_formats::goheap::{self, Memory, Program, Region, Thread};
use memtrace_model::{Finding, Profile, SampleKind, Time};

use crate::follow::Eyes;
use crate::tags::{Tagger, read_labelled};

/// For the stacks of goroutines the process is frozen for some milliseconds: never more
/// often than this.
const GOROUTINES_GAP: Duration = Duration::from_secs(60);
/// Of the time of one processor, copies take one part in so many at most.
const COPIES_SHARE: u32 = 10;
/// Executables that are read.
const MAX_EXECUTABLE: u64 = 4 << 30;

/// Why the inside of a process cannot be seen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InsideError {
    /// The process cannot be read.
    #[error(transparent)]
    Process(#[from] FreezeError),
    /// It is no Go program, or its heap profile is off.
    #[error(transparent)]
    Program(#[from] memtrace_formats::Error),
    /// Its executable cannot be read.
    #[error("its executable cannot be read: {0}")]
    Executable(#[from] std::io::Error),
    /// What was read does not fit together.
    #[error("{0}")]
    Contradiction(String),
    /// A snapshot cannot be written.
    #[error("it cannot be written: {0}")]
    Snapshot(std::io::Error),
    /// The reading broke off.
    #[error("the reading broke off")]
    Broken,
}

#[derive(Debug)]
pub(crate) struct Inside {
    pid: u32,
    program: Arc<Program>,
    freeze: goproc::Options,
    frozen_at: Option<Instant>,
    /// Its heap profile is off: when the next copy may be taken.
    next_copy: Option<Instant>,
}

impl Inside {
    /// Reads what does not change.
    pub(crate) async fn attach(pid: u32, freeze: &goproc::Options) -> Result<Self, InsideError> {
        let (program, has_profile) = blocking(move || {
            let running = goproc::running(pid)?;
            let executable = executable(pid)?;
            let process = process(pid, &executable, &running, running.regions(), &[]);
            let program = Program::read(&process)?;
            let has_profile = program.heap_profile(&running, Time(0)).is_ok();
            Ok((program, has_profile))
        })
        .await?;
        Ok(Self {
            pid,
            program: Arc::new(program),
            freeze: freeze.clone(),
            frozen_at: None,
            next_copy: (!has_profile).then(Instant::now),
        })
    }

    /// Whether copies of the heap are compared, since its profile is off. Its stacks are then
    /// ways ([`Holdings`]).
    pub(crate) fn compares_copies(&self) -> bool {
        self.next_copy.is_some()
    }

    /// Whether the heap may be read now.
    pub(crate) fn is_due(&self) -> bool {
        self.next_copy.is_none_or(|at| at <= Instant::now())
    }

    /// In words: `Go 1.27.3 from inside`.
    pub(crate) fn how(&self) -> String {
        format!(
            "pid {} ({}, read from its memory)",
            self.pid,
            self.program.version()
        )
    }

    /// The heap profile. The process goes on.
    pub(crate) async fn heap(&mut self, at: Time) -> Result<Profile, InsideError> {
        let (pid, program) = (self.pid, self.program.clone());
        if self.compares_copies() {
            let (begun, cpu) = (Instant::now(), cpu_time());
            let freeze = self.freeze.clone();
            let profile = blocking(move || {
                let frozen = goproc::freeze(pid, &freeze)?;
                let (graph, _) = read_labelled(pid, frozen, None)?;
                let dominators = Dominators::of(&graph);
                let heap = Heap {
                    graph: &graph,
                    dominators: &dominators,
                };
                let mut profile = Holdings::of(heap).profile(heap);
                profile.time_nanos = at.0.saturating_mul(1_000_000);
                Ok(profile)
            });
            let profile = profile.await;
            // Other targets work on the same clock; time is lost to others on the other one.
            let cost = cpu_time().saturating_sub(cpu).min(begun.elapsed());
            self.next_copy = Some(begun + cost * COPIES_SHARE);
            return profile;
        }
        blocking(move || {
            let running = goproc::running(pid)?;
            Ok(program.heap_profile(&running, at)?)
        })
        .await
    }

    /// The goroutine profile, where it is time for one.
    pub(crate) async fn goroutines(&mut self, at: Time) -> Option<Profile> {
        if self.frozen_at.is_some_and(|t| t.elapsed() < GOROUTINES_GAP) {
            return None;
        }
        self.frozen_at = Some(Instant::now());
        let (pid, program) = (self.pid, self.program.clone());
        let freeze = self.freeze.clone();
        let profile = blocking(move || {
            let frozen = goproc::freeze(pid, &freeze)?;
            let profile = program.goroutine_profile(&frozen, frozen.threads(), at);
            frozen.thaw()?;
            Ok(profile)
        });
        profile.await.ok()
    }
}

/// What a finding is about: its id, and whether objects or goroutines pile up, which may change.
pub(crate) type Subject = (String, SampleKind);

pub(crate) fn subject(finding: &Finding) -> Subject {
    (finding.id.clone(), finding.source)
}

/// What a copy of the heap of a process says of each finding; and where the heap was written, if it was to be.
pub(crate) async fn look(
    pid: u32,
    findings: Vec<Finding>,
    eyes: Eyes,
) -> Result<(Vec<(Subject, Explanation)>, Option<io::Result<PathBuf>>), InsideError> {
    blocking(move || {
        let tagger = eyes.tagger.as_deref();
        let _turn = tagger.map(Tagger::turn);
        let frozen = goproc::freeze(pid, &eyes.freeze)?;
        let (graph, at_copy) = read_labelled(pid, frozen, tagger)?;
        let saved = eyes.album.map(|album| album.write(&graph, "leak"));
        let dominators = Dominators::of(&graph);
        let heap = Heap {
            graph: &graph,
            dominators: &dominators,
        };
        let explained = findings.iter().filter_map(|finding| {
            let mut explanation = explain(heap, finding)?;
            if let Some(at_copy) = &at_copy {
                at_copy.explain(heap, finding, &mut explanation);
            }
            Some((subject(finding), explanation))
        });
        Ok((explained.collect(), saved))
    })
    .await
}

/// Processor time of this process.
fn cpu_time() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.unsigned_abs() as u32,
    )
}

pub(crate) fn executable(pid: u32) -> Result<Vec<u8>, InsideError> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(format!("/proc/{pid}/exe"))?
        .take(MAX_EXECUTABLE)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(crate) fn process<'a>(
    pid: u32,
    executable: &'a [u8],
    memory: &'a dyn Memory,
    regions: &'a [Region],
    threads: &'a [Thread],
) -> goheap::Process<'a> {
    goheap::Process {
        executable,
        memory,
        regions,
        threads,
        pid,
        start: 0,
        taken: Time(0),
        monotonic: None,
        with_labels: false,
        max_memory: goproc::free_memory() / 2,
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, InsideError> + Send + 'static,
) -> Result<T, InsideError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or(Err(InsideError::Broken))
}
