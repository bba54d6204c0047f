//! Follows the labels under which a live Go process allocates, and when sections of its work
//! begin and end.
//!
//! ```text
//! Probe ──thread, ten times a second──▶ TagBook ◀── at a look inside: which objects live
//!                                  └──▶ sections that begin and end ──▶ snapshots
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use memtrace_analysis::graph::{Explanation, Heap, TagBook, tag_shares};
use memtrace_collect::goproc::tags::{Hit, Labels, Probe, TagError, Unseen, Wanted};
use memtrace_collect::goproc::{self, Frozen};
use memtrace_formats::goheap::Program;
use memtrace_model::{Finding, HeapGraph, Time};
use tokio::sync::mpsc;

use crate::inside::{self, InsideError};

/// How often the kernel's account of hits is emptied.
const BEAT: Duration = Duration::from_millis(100);
/// The same when there are many.
const SHORT_BEAT: Duration = Duration::from_millis(10);
const MANY: usize = 500;
/// Hits that are held back while a heap is read; further ones are lost.
const MOST_HELD: usize = 200_000;
/// A section that is over sooner is none: a label set that was only made, say.
const SHORTEST: u64 = 200_000;
/// Sections that are under way and remembered.
const MOST_SECTIONS: usize = 4096;

/// A section of work that begins or ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The value of a label (of any key) that the section runs under.
    pub tag: String,
    /// At its beginning, not at its end.
    pub at_begin: bool,
}

/// Why labels cannot be followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaggerError {
    #[error(transparent)]
    Inside(#[from] InsideError),
    #[error(transparent)]
    Tag(#[from] TagError),
    #[error("{0}")]
    Thread(#[from] std::io::Error),
}

/// A probe with the thread that empties it. Dropping it takes the probe out.
#[derive(Debug)]
pub(crate) struct Tagger {
    /// Not only sections of work are asked for.
    tags: bool,
    account: Arc<Mutex<Account>>,
    turn: Mutex<()>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Account {
    probe: Probe,
    book: TagBook,
    /// While a heap is read: what came after the moment of its copy.
    held: Option<VecDeque<Hit>>,
    marks: Marks,
    unseen: Option<Unseen>,
}

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) tags: bool,
    pub(crate) marks: Vec<Mark>,
    /// Where marks that were passed go.
    pub(crate) passed: mpsc::Sender<Mark>,
    pub(crate) since: Time,
}

impl Tagger {
    /// Puts a probe into a process; gives what of it is not possible, too.
    pub(crate) async fn start(
        pid: u32,
        asked: Asked,
    ) -> Result<(Self, Option<TagError>), TaggerError> {
        let started = tokio::task::spawn_blocking(move || Self::start_now(pid, asked)).await;
        started.unwrap_or(Err(TaggerError::Inside(InsideError::Broken)))
    }

    fn start_now(pid: u32, asked: Asked) -> Result<(Self, Option<TagError>), TaggerError> {
        let running = goproc::running(pid).map_err(InsideError::from)?;
        let executable = inside::executable(pid)?;
        let process = inside::process(pid, &executable, &running, running.regions(), &[]);
        let sites = Program::read(&process)
            .and_then(|program| program.label_sites(&running))
            .map_err(InsideError::from)?;
        drop(executable);
        let mut wanted = Vec::new();
        if asked.tags {
            wanted.push(Wanted::Sampled);
        }
        if !asked.marks.is_empty() {
            wanted.push(Wanted::Changed);
        }
        let (probe, missing) = match Probe::start(pid, &running, &sites, &wanted) {
            // Sections are seen without sampling.
            Err(error @ (TagError::SamplingOff | TagError::NoSampling)) if wanted.len() > 1 => {
                let probe = Probe::start(pid, &running, &sites, &[Wanted::Changed])?;
                (probe, Some(error))
            }
            probe => (probe?, None),
        };
        let tags = asked.tags;
        let account = Arc::new(Mutex::new(Account {
            probe,
            book: TagBook::new(asked.since),
            held: None,
            marks: Marks {
                wanted: asked.marks,
                begun: HashMap::new(),
            },
            unseen: None,
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, stopped) = (account.clone(), stop.clone());
        let work = move || {
            while !stopped.load(Ordering::Relaxed) {
                let (hits, marks) = lock(&theirs).drain(None);
                for mark in marks {
                    // Whoever takes snapshots takes at most one a minute: a full queue will do.
                    let _ = asked.passed.try_send(mark);
                }
                std::thread::park_timeout(if hits >= MANY { SHORT_BEAT } else { BEAT });
            }
        };
        let thread = std::thread::Builder::new().name("tags".to_owned());
        let thread = Some(thread.spawn(work)?);
        let tagger = Self {
            tags,
            account,
            turn: Mutex::new(()),
            stop,
            thread,
        };
        Ok((tagger, missing))
    }

    /// One copy after the other: to be asked for before it is made.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the book says of the heap of a copy that was just made. Until it is dropped, what
    /// happens later does not come into the book.
    pub(crate) fn at_copy(&self) -> AtCopy {
        let now = goproc::monotonic().unwrap_or(u64::MAX);
        let account = self.account.clone();
        lock(&account).drain(Some(now));
        AtCopy { account }
    }

    /// What a person should know of what was not seen.
    pub(crate) fn blind_spots(&self) -> (u64, Option<Unseen>) {
        let account = lock(&self.account);
        (account.book.lost(), account.unseen.clone())
    }
}

impl Drop for Tagger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic in it is told by its own message.
            let _ = thread.join();
        }
    }
}

fn lock(account: &Mutex<Account>) -> MutexGuard<'_, Account> {
    account.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Account {
    /// Takes in what was seen: how many hits, and which marks were passed. With `until`, all
    /// that is later is held back from now on.
    fn drain(&mut self, until: Option<u64>) -> (usize, Vec<Mark>) {
        let drained = self.probe.drain();
        let threads = |unseen: &Option<Unseen>| unseen.as_ref().map_or(0, |u| u.threads);
        if threads(&drained.unseen) > threads(&self.unseen) {
            self.unseen = drained.unseen;
        }
        self.book.lose(drained.lost);
        let mut passed = Vec::new();
        let count = drained.hits.len();
        for hit in drained.hits {
            if let Hit::Changed { .. } = hit {
                passed.extend(self.marks.pass(&hit));
                continue;
            }
            match &mut self.held {
                Some(held) if held.len() < MOST_HELD => held.push_back(hit),
                Some(_) => self.book.lose(1),
                None if until.is_some_and(|until| hit.at() > until) => {
                    self.held = Some(VecDeque::from([hit]));
                }
                None => enter(&mut self.book, hit),
            }
        }
        if until.is_some() {
            self.held.get_or_insert_default();
        }
        (count, passed)
    }

    fn release(&mut self) {
        for hit in self.held.take().into_iter().flatten() {
            enter(&mut self.book, hit);
        }
    }
}

fn enter(book: &mut TagBook, hit: Hit) {
    if let Hit::Sampled { object, labels, .. } = hit {
        book.insert(object, labels.map(|l| l.pairs));
    }
}

/// The book as it was at the moment of a copy.
#[derive(Debug)]
pub(crate) struct AtCopy {
    account: Arc<Mutex<Account>>,
}

impl AtCopy {
    /// Adds under which tag the objects of a finding were allocated.
    pub(crate) fn explain(&self, heap: Heap<'_>, finding: &Finding, explanation: &mut Explanation) {
        let account = lock(&self.account);
        for share in tag_shares(heap, finding, &account.book) {
            explanation.evidence.push(share.words(account.book.since()));
            explanation.tags.insert(share.key, share.value);
        }
    }

    /// Adds the labels of the objects to a graph.
    pub(crate) fn label(&self, graph: &mut HeapGraph) {
        graph.tags = lock(&self.account).book.of_graph(graph);
    }
}

impl Drop for AtCopy {
    fn drop(&mut self) {
        lock(&self.account).release();
    }
}

/// Which sections of work begin and end.
#[derive(Debug)]
struct Marks {
    wanted: Vec<Mark>,
    /// When a goroutine began a section, by its number and that of the mark.
    begun: HashMap<(u64, usize), u64>,
}

impl Marks {
    fn pass(&mut self, hit: &Hit) -> Vec<Mark> {
        let Hit::Changed {
            at,
            goroutine,
            before: Some(before),
            after: Some(after),
        } = hit
        else {
            return Vec::new();
        };
        // It has it, it has not, or its labels are too many to tell.
        let has = |labels: &Labels, tag: &str| match labels.has_value(tag) {
            true => Some(true),
            false => labels.is_whole.then_some(false),
        };
        let mut passed = Vec::new();
        for (i, mark) in self.wanted.iter().enumerate() {
            let key = (*goroutine, i);
            match (has(before, &mark.tag), has(after, &mark.tag)) {
                (Some(false), Some(true)) => {
                    if self.begun.len() < MOST_SECTIONS {
                        self.begun.insert(key, *at);
                    }
                    if mark.at_begin {
                        passed.push(mark.clone());
                    }
                }
                (Some(true), Some(false)) => {
                    let begun = self.begun.remove(&key);
                    let is_short = begun.is_some_and(|b| at.saturating_sub(b) < SHORTEST);
                    if !mark.at_begin && !is_short {
                        passed.push(mark.clone());
                    }
                }
                _ => {}
            }
        }
        passed
    }
}

/// Reads the heap of a copy, with labels where they are followed. The copy ends.
pub(crate) fn read_labelled(
    pid: u32,
    frozen: Frozen,
    tagger: Option<&Tagger>,
) -> Result<(HeapGraph, Option<AtCopy>), InsideError> {
    let at_copy = tagger.map(Tagger::at_copy);
    let executable = inside::executable(pid)?;
    let process = inside::process(
        pid,
        &executable,
        &frozen,
        frozen.regions(),
        frozen.threads(),
    );
    let read = memtrace_formats::goheap::read(&memtrace_formats::goheap::Process {
        start: frozen.start_ticks(),
        taken: frozen.taken(),
        with_labels: tagger.is_some_and(|t| t.tags),
        ..process
    });
    // Of a copy that did not last nothing counts, nor what the reader says of it.
    frozen.thaw()?;
    let (mut graph, _) = read?;
    graph.agrees().map_err(InsideError::Contradiction)?;
    let program = std::fs::read_link(format!("/proc/{pid}/exe"));
    let name = program.as_ref().ok().and_then(|p| p.file_name()?.to_str());
    graph.program = graph.strings.intern(name.unwrap_or_default());
    if let Some(at_copy) = &at_copy {
        at_copy.label(&mut graph);
    }
    Ok((graph, at_copy))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &[&str], is_whole: bool) -> Option<Labels> {
        let pairs = values.iter().map(|v| ("block".to_owned(), (*v).to_owned()));
        Some(Labels {
            pairs: pairs.collect(),
            is_whole,
        })
    }

    #[test]
    fn sections_that_begin_and_end() {
        let mark = |tag: &str, at_begin| Mark {
            tag: tag.to_owned(),
            at_begin,
        };
        let mut marks = Marks {
            wanted: vec![mark("a", false), mark("a", true), mark("b", false)],
            begun: HashMap::new(),
        };
        let mut pass = |at: u64, before: Option<Labels>, after: Option<Labels>| {
            marks.pass(&Hit::Changed {
                at,
                goroutine: 7,
                before,
                after,
            })
        };
        let (none, a) = (labels(&[], true), labels(&["a"], true));
        let begun = vec![mark("a", true)];
        let ended = vec![mark("a", false)];
        assert_eq!(pass(1_000, none.clone(), a.clone()), begun);
        // More labels, and fewer again.
        let more = labels(&["a", "c"], true);
        assert_eq!(pass(2_000, a.clone(), more.clone()), []);
        assert_eq!(pass(3_000, more, a.clone()), []);
        assert_eq!(pass(9_000_000, a.clone(), none.clone()), ended);
        // One that began before the watch.
        assert_eq!(pass(10_000_000, a.clone(), none.clone()), ended);
        // A label set that is only made.
        assert_eq!(pass(20_000_000, none.clone(), a.clone()), begun);
        assert_eq!(pass(20_000_100, a.clone(), none.clone()), []);
        // Not all labels were fetched, or none could be.
        assert_eq!(pass(30_000_000, a.clone(), labels(&["x", "y"], false)), []);
        assert_eq!(pass(40_000_000, None, a), []);
        assert_eq!(
            pass(50_000_000, labels(&["b"], false), none),
            [mark("b", false)]
        );
    }
}
