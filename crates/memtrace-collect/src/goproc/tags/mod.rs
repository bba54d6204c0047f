//! Labels (`runtime/pprof`) of a running Go program, bound to what it allocates, with
//! nothing of memtrace in it.
//!
//! ```text
//! runtime.setprofilebucket ──▶ uprobe ──▶ Hit::Sampled: object, size, labels of the goroutine
//! runtime_setProfLabel ──────▶ uprobe ──▶ Hit::Changed: goroutine, labels before and after
//! ```
//!
//! The probes are events of the kernel, opened for the threads of the target only: other
//! processes that run the same file have no breakpoint, and the target's vanish with our
//! files, whatever ends us. What the kernel would keep, the definition of the event, is
//! removed when a [`Probe`] is dropped, by a process of its own where memtrace was killed,
//! and by the next memtrace where that was killed too. What stays in the target is one
//! page that the kernel maps for the instruction below a breakpoint (`[uprobes]`), until it
//! ends.
//!
//! A hit costs the target's thread about ten microseconds; the first one happens once for
//! each object that the heap profile samples (512 KiB of allocation), the second one each
//! time a goroutine gets other labels.

mod cleaner;
mod event;
mod tracefs;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memtrace_formats::goexe;
use memtrace_formats::goheap::{LABEL_FUNCTIONS, LabelForm, LabelSites, Memory as _};
use perf_event::data::Record;
use perf_event::events::Tracepoint;
use perf_event::{Builder, Clock, SampleFlag, Sampler};

use super::Running;
use cleaner::Cleaner;
use event::Format;
pub use event::Labels;
use tracefs::Tracefs;

/// Threads that are followed; further ones are told of.
const MAX_THREADS: usize = 256;
/// Bytes that the kernel keeps for us, for each thread and probe: 250 hits or more.
const RING: usize = 128 << 10;
/// Hits that are taken of one thread and probe at a time.
const AT_ONCE: usize = 10_000;
/// How long our own end waits for somebody else who uses our events.
const PATIENCE: Duration = Duration::from_secs(2);
/// A thread that could not be followed is tried again after this.
const AGAIN: Duration = Duration::from_secs(5);
/// What a breakpoint of the kernel is in the code of a process.
const BREAKPOINT: u8 = 0xcc;

/// Why labels cannot be seen. The target is as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TagError {
    /// This system is of another kind.
    #[error("labels of a running program are read on Linux on amd64 only")]
    System,
    /// The linker left out what samples allocations: nothing in the program reads its heap
    /// profile.
    #[error("the program has nothing that samples allocations")]
    NoSampling,
    /// Sampling is switched off.
    #[error(
        "the program samples no allocations: runtime.MemProfileRate is 0, as Go has it where \
         nothing in the program reads its heap profile (import net/http/pprof, or use \
         runtime.MemProfile)"
    )]
    SamplingOff,
    /// Nothing in the program sets labels.
    #[error(
        "nothing in the program sets labels; use pprof.Do or pprof.SetGoroutineLabels \
         (runtime/pprof) around its jobs"
    )]
    NoLabels,
    /// The user lacks a right.
    #[error("not allowed to {what}: {missing}")]
    Permission {
        /// What was tried.
        what: &'static str,
        /// What is missing.
        missing: &'static str,
    },
    /// The kernel has no such probes.
    #[error(
        "this kernel has no probes on programs (tracefs with uprobe_events: \
         CONFIG_UPROBE_EVENTS)"
    )]
    NoProbes,
    /// Two ways to find a function in the program's file disagree.
    #[error("{function} was not found for certain in the program's file")]
    Unsure {
        /// The function.
        function: &'static str,
    },
    /// It ended.
    #[error("process {pid} ended")]
    Gone {
        /// The pid.
        pid: u32,
    },
    /// The system did not do it.
    #[error("cannot {what}: {reason}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        reason: String,
    },
}

/// What is to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Sampled objects with the labels of who allocated them.
    Sampled,
    /// Goroutines that get other labels.
    Changed,
}

/// What a probe saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hit {
    /// An object was sampled.
    Sampled {
        /// When, nanoseconds of `CLOCK_MONOTONIC`.
        at: u64,
        /// Its address.
        object: u64,
        /// Bytes that were asked for, in newer releases with what the allocator adds.
        size: u64,
        /// The labels of who allocated it; `None` where they could not be read.
        labels: Option<Labels>,
    },
    /// A goroutine gets other labels. Told several times where the runtime preempts it at the
    /// entry of the function, which then begins anew.
    Changed {
        /// When, nanoseconds of `CLOCK_MONOTONIC`.
        at: u64,
        /// The number of the goroutine.
        goroutine: u64,
        /// Its labels until now.
        before: Option<Labels>,
        /// Its labels from now on.
        after: Option<Labels>,
    },
}

impl Hit {
    /// When, nanoseconds of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn at(&self) -> u64 {
        match self {
            Self::Sampled { at, .. } | Self::Changed { at, .. } => *at,
        }
    }
}

/// What was seen since the last look.
#[derive(Clone, Debug, Default)]
pub struct Drained {
    /// In the order of time.
    pub hits: Vec<Hit>,
    /// Hits for which there was no room.
    pub lost: u64,
    /// Threads of the target that are not followed.
    pub unseen: Option<Unseen>,
}

/// Threads that are not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unseen {
    /// How many.
    pub threads: usize,
    /// Why.
    pub reason: String,
}

/// A probe in a live process. Dropping it takes it out.
#[derive(Debug)]
pub struct Probe {
    pid: u32,
    form: LabelForm,
    rings: Vec<Ring>,
    known: HashSet<u32>,
    /// At least one thread was followed.
    began: bool,
    /// Why a thread could not be followed, and when that may be tried again.
    refused: Option<(String, Instant)>,
    events: Vec<Event>,
    tracefs: Tracefs,
    /// After all that it may have to clean up.
    _cleaner: Cleaner,
}

#[derive(Debug)]
struct Event {
    wanted: Wanted,
    name: String,
    number: u64,
    format: Format,
}

/// What one thread is seen to do.
struct Ring {
    tid: u32,
    event: usize,
    sampler: Sampler,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring {{ tid: {}, event: {} }}", self.tid, self.event)
    }
}

/// Names of the events that the kernel has for any memtrace: none, where nobody looks at
/// labels.
///
/// # Errors
/// Where they cannot be seen.
pub fn definitions() -> Result<Vec<String>, TagError> {
    Ok(Tracefs::open()?.ours())
}

impl Probe {
    /// Puts a probe into a live process, for which `sites` were read.
    ///
    /// It takes some tenths of a second for a large program. The target goes on; its
    /// threads are not stopped.
    ///
    /// # Errors
    /// See [`TagError`]: nothing is left behind then.
    pub fn start(
        pid: u32,
        running: &Running,
        sites: &LabelSites,
        wanted: &[Wanted],
    ) -> Result<Self, TagError> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return Err(TagError::System);
        }
        let places = places(pid, running, sites, wanted)?;
        let tracefs = Tracefs::open()?;
        tracefs.remove_stale();
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let names: Vec<String> = wanted
            .iter()
            .map(|wanted| {
                let kind = match wanted {
                    Wanted::Sampled => "s",
                    Wanted::Changed => "c",
                };
                tracefs::name(kind, pid, number)
            })
            .collect();
        let cleaner =
            Cleaner::start(names.clone()).map_err(|e| tracefs::refused("start a process", e))?;
        let mut probe = Self {
            pid,
            form: sites.form,
            rings: Vec::new(),
            known: HashSet::new(),
            began: false,
            refused: None,
            events: Vec::new(),
            tracefs,
            _cleaner: cleaner,
        };
        for ((&wanted, name), offset) in wanted.iter().zip(names).zip(places) {
            let arguments = match wanted {
                Wanted::Sampled => event::sampled(sites),
                Wanted::Changed => event::changed(sites),
            };
            let (number, format) = probe.tracefs.define(&name, pid, offset, &arguments)?;
            probe.events.push(Event {
                wanted,
                name,
                number,
                format: Format::parse(&format),
            });
        }
        probe.follow_threads()?;
        if probe.rings.is_empty() {
            return Err(TagError::Gone { pid });
        }
        Ok(probe)
    }

    /// Opens the events for threads that are new; tells which are left out.
    fn follow_threads(&mut self) -> Result<Option<Unseen>, TagError> {
        let pid = self.pid;
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
        let threads = threads.map_err(|_| TagError::Gone { pid })?;
        let threads: HashSet<u32> = threads
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        // What a thread did before its end is still to be read, by whoever drains next.
        self.known.retain(|tid| threads.contains(tid));
        let mut unseen = 0;
        // What the system refuses it will refuse ten times a second.
        self.refused.take_if(|(_, until)| *until <= Instant::now());
        for tid in threads {
            if self.known.contains(&tid) {
                continue;
            }
            if self.known.len() >= MAX_THREADS || self.refused.is_some() {
                unseen += 1;
                continue;
            }
            match self.follow(tid) {
                Ok(()) => {
                    self.began = true;
                    self.known.insert(tid);
                }
                // It ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => {
                    // It may have one event of two.
                    self.rings.retain(|ring| ring.tid != tid);
                    if self.rings.is_empty() && self.known.is_empty() && !self.began {
                        return Err(tracefs::refused("open an event", error));
                    }
                    unseen += 1;
                    let reason = match error.raw_os_error() {
                        // It was allowed for others.
                        Some(libc::EPERM) => {
                            "no more memory may be locked (ulimit -l, kernel.perf_event_mlock_kb)"
                                .to_owned()
                        }
                        _ => error.to_string(),
                    };
                    self.refused = Some((reason, Instant::now() + AGAIN));
                }
            }
        }
        let reason = match &self.refused {
            Some((reason, _)) => reason.clone(),
            None => format!("more than {MAX_THREADS}"),
        };
        let unseen = (unseen > 0).then_some(Unseen {
            threads: unseen,
            reason,
        });
        Ok(unseen)
    }

    fn follow(&mut self, tid: u32) -> io::Result<()> {
        let thread = i32::try_from(tid).map_err(io::Error::other)?;
        for (i, event) in self.events.iter().enumerate() {
            let mut counter = Builder::new(Tracepoint::with_id(event.number))
                .observe_pid(thread)
                .any_cpu()
                .sample_period(1)
                .sample(SampleFlag::RAW | SampleFlag::TIME)
                .clockid(Clock::MONOTONIC)
                .build()?;
            counter.enable()?;
            self.rings.push(Ring {
                tid,
                event: i,
                sampler: counter.sampled(RING)?,
            });
        }
        Ok(())
    }

    /// Takes what was seen since the last time, and looks for new threads. To be called
    /// several times a second: the kernel keeps little. What threads do before they are
    /// known is not seen.
    pub fn drain(&mut self) -> Drained {
        let mut drained = Drained {
            unseen: self.follow_threads().unwrap_or(None),
            ..Drained::default()
        };
        for ring in &mut self.rings {
            let Some(event) = self.events.get(ring.event) else {
                continue;
            };
            for _ in 0..AT_ONCE {
                let Some(record) = ring.sampler.next_record() else {
                    break;
                };
                match record.parse_record() {
                    Ok(Record::Sample(sample)) => {
                        let raw = sample.raw().unwrap_or_default();
                        let at = sample.time().unwrap_or_default();
                        drained.hits.extend(event.hit(raw, at, self.form));
                    }
                    Ok(Record::Lost(lost)) => drained.lost += lost.lost,
                    _ => {}
                }
            }
        }
        let known = &self.known;
        self.rings.retain(|ring| known.contains(&ring.tid));
        drained.hits.sort_by_key(Hit::at);
        drained
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // The breakpoints first: an event that is open cannot be removed.
        self.rings.clear();
        for event in &self.events {
            self.tracefs.remove(&event.name, PATIENCE);
        }
    }
}

impl Event {
    fn hit(&self, raw: &[u8], at: u64, form: LabelForm) -> Option<Hit> {
        let field = |name: &str| self.format.number(raw, name);
        let labels = |set: char| self.format.labels(raw, form, set);
        Some(match self.wanted {
            Wanted::Sampled => Hit::Sampled {
                at,
                object: field("obj")?,
                size: field("size")?,
                // Without a goroutine the rest is of an older event.
                labels: (field("g")? != 0).then(|| labels('n')).flatten(),
            },
            Wanted::Changed => Hit::Changed {
                at,
                goroutine: field("id")?,
                before: labels('o'),
                after: labels('n'),
            },
        })
    }
}

/// Where in the file the functions start. A breakpoint within an instruction would end the
/// target: two ways must agree (from the process's own tables by its mappings, and from the
/// file's), and the code in memory must be that of the file.
fn places(
    pid: u32,
    running: &Running,
    sites: &LabelSites,
    wanted: &[Wanted],
) -> Result<Vec<u64>, TagError> {
    const CODE: usize = 16;
    let failed = |error: io::Error| TagError::Io {
        what: "read the program's file",
        reason: error.to_string(),
    };
    let file = File::open(format!("/proc/{pid}/exe")).map_err(failed)?;
    let offsets = goexe::Program::read(file.try_clone().map_err(failed)?)
        .map_err(|error| failed(io::Error::other(error.to_string())))?
        .file_offsets(|name| LABEL_FUNCTIONS.contains(&name));
    let [sampled, set_labels] = LABEL_FUNCTIONS;
    let place = |wanted: &Wanted| {
        let (function, address) = match wanted {
            Wanted::Sampled if sites.is_sampling_off && sites.sampled.is_some() => {
                return Err(TagError::SamplingOff);
            }
            Wanted::Sampled => (sampled, sites.sampled.ok_or(TagError::NoSampling)?),
            Wanted::Changed => (set_labels, sites.set_labels.ok_or(TagError::NoLabels)?),
        };
        let unsure = TagError::Unsure { function };
        let holds = |r: &&memtrace_formats::goheap::Region| {
            (r.start..r.end).contains(&address) && r.rwx[2] && !r.file.is_empty()
        };
        let region = running.regions().iter().find(holds);
        let region = region.ok_or_else(|| unsure.clone())?;
        let offset = address - region.start + region.offset;
        let mut named = offsets.iter().filter(|(name, _)| name == function);
        let (Some((_, told)), None) = (named.next(), named.next()) else {
            return Err(unsure);
        };
        let (mut held, mut filed) = ([0; CODE], [0; CODE]);
        file.read_exact_at(&mut filed, offset).map_err(failed)?;
        let is_read = running.read(address, &mut held).is_ok();
        // Another memtrace may look at the same place.
        if held[0] == BREAKPOINT {
            held[0] = filed[0];
        }
        if *told != offset || !is_read || held != filed {
            return Err(unsure);
        }
        Ok(offset)
    };
    if sites.set_labels.is_none() {
        return Err(TagError::NoLabels);
    }
    wanted.iter().map(place).collect()
}
