//! Snapshots of the heap that a watch takes by itself: where a section of work ends, where a
//! leak is found, and a cycle of work later.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use memtrace_collect::Draft;
use memtrace_collect::goproc::{self, FreezeError};
use memtrace_model::{Event, EventKind, HeapGraph, Time, snapshot};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::Update;
use crate::engine::now;
use crate::inside::InsideError;
use crate::keeper::{Keep, KeepSender};
use crate::tags::{Mark, Tagger, read_labelled};

/// Snapshots of a watch that are kept.
const KEPT: usize = 12;
/// Of a tag in a file's name.
const LONGEST: usize = 64;
/// Another tracer of ours may have the process just now.
const TRIES: u32 = 5;
const AGAIN: Duration = Duration::from_millis(500);
/// How long the end of a watch waits for a snapshot that is on its way.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which snapshots a watch takes by itself, and where they go.
#[derive(Clone, Debug)]
pub struct Snapshots {
    /// The folder.
    pub dir: PathBuf,
    /// The heap of a finding that is called leaking is written, and once more a `cycle` later.
    pub verdicts: bool,
    /// How long a cycle of work takes.
    pub cycle: Duration,
    /// At which sections of work.
    pub marks: Vec<Mark>,
    /// At most one in this time for marks.
    pub every: Duration,
}

/// The snapshots of one target.
#[derive(Debug)]
pub(crate) struct Album {
    plan: Snapshots,
    freeze: goproc::Options,
    /// Those that this watch wrote, oldest first.
    written: Mutex<VecDeque<PathBuf>>,
}

impl Album {
    pub(crate) fn new(plan: Snapshots, freeze: goproc::Options) -> Self {
        Self {
            plan,
            freeze,
            written: Mutex::default(),
        }
    }

    /// Whether the heaps of leaks are asked for.
    pub(crate) fn is_for_verdicts(&self) -> bool {
        self.plan.verdicts
    }

    /// Writes a heap, all or nothing, and removes the oldest that this watch wrote where there
    /// are too many.
    pub(crate) fn write(&self, graph: &HeapGraph, tag: &str) -> io::Result<PathBuf> {
        let dir = &self.plan.dir;
        std::fs::create_dir_all(dir)?;
        let stem = stem(graph.taken, tag);
        let names = (1..1000).map(|n| match n {
            1 => format!("{stem}.mtsnap"),
            n => format!("{stem}_{n}.mtsnap"),
        });
        let mut draft = Draft::of(&dir.join(&stem))?;
        let mut out = io::BufWriter::new(draft.file());
        snapshot::write(graph, &mut out, &mut |_| ()).map_err(io::Error::other)?;
        out.flush()?;
        drop(out);
        let free = names
            .map(|name| dir.join(name))
            .find_map(|path| match draft.name(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
                named => Some(named.map(|()| path)),
            });
        let path = free.unwrap_or(Err(io::ErrorKind::AlreadyExists.into()))?;
        let mut all = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        all.push_back(path.clone());
        while all.len() > KEPT {
            if let Some(oldest) = all.pop_front() {
                let _ = std::fs::remove_file(oldest);
            }
        }
        Ok(path)
    }

    /// Copies a live process and writes its heap.
    fn take(
        &self,
        pid: u32,
        tag: &str,
        tagger: Option<&Tagger>,
    ) -> Result<(PathBuf, Duration), InsideError> {
        let _turn = tagger.map(Tagger::turn);
        let mut tries = 0;
        let frozen = loop {
            tries += 1;
            match goproc::freeze(pid, &self.freeze) {
                Err(FreezeError::Traced { .. } | FreezeError::Busy { .. }) if tries < TRIES => {
                    std::thread::sleep(AGAIN);
                }
                frozen => break frozen?,
            }
        };
        let pause = frozen.pause();
        let (graph, _) = read_labelled(pid, frozen, tagger)?;
        let path = self.write(&graph, tag).map_err(InsideError::Snapshot)?;
        Ok((path, pause))
    }
}

/// `heap_20261123_2210_05_G001-M17`, UTC; of the tag what every file system takes.
fn stem(at: Time, tag: &str) -> String {
    let digits: String = at
        .to_string()
        .chars()
        .filter(char::is_ascii_digit)
        .take(14)
        .collect();
    let (day, time) = digits.split_at(digits.len().min(8));
    let (minute, second) = time.split_at(time.len().min(4));
    let safe = |c: char| match c {
        c if c.is_ascii_alphanumeric() || "-_.+=".contains(c) => c,
        _ => '-',
    };
    let tag: String = tag.chars().take(LONGEST).map(safe).collect();
    format!("heap_{day}_{minute}_{second}_{tag}")
}

/// Takes snapshots of one process beside its watch, and tells of each.
#[derive(Debug)]
pub(crate) struct Photographer {
    task: Option<tokio::task::JoinHandle<()>>,
    later: Vec<AbortHandle>,
    teller: Teller,
    pub(crate) album: Arc<Album>,
}

/// Tells what happens to a target.
#[derive(Clone, Debug)]
pub(crate) struct Teller {
    pub(crate) target: String,
    pub(crate) updates: mpsc::Sender<Update>,
    pub(crate) keeper: Option<KeepSender>,
}

impl Teller {
    async fn tell(&self, kind: EventKind) {
        let event = Event { at: now(), kind };
        let target = self.target.clone();
        if let Some(keeper) = &self.keeper {
            let event = event.clone();
            let target = target.clone();
            // The writer has gone only when the watch is ending.
            let _ = keeper.send(Keep::Event { target, event }).await;
        }
        // Nobody listening any more is not this target's concern.
        let _ = self.updates.send(Update::Event { target, event }).await;
    }
}

impl Photographer {
    pub(crate) fn new(plan: Snapshots, freeze: goproc::Options, teller: Teller) -> Self {
        Self {
            task: None,
            later: Vec::new(),
            teller,
            album: Arc::new(Album::new(plan, freeze)),
        }
    }

    /// At which sections of work.
    pub(crate) fn marks(&self) -> Vec<Mark> {
        self.album.plan.marks.clone()
    }

    /// Takes a snapshot where a mark is passed, until nobody passes any more.
    pub(crate) fn follow(
        &mut self,
        pid: u32,
        tagger: &Arc<Tagger>,
        mut passed: mpsc::Receiver<Mark>,
    ) {
        let (album, teller) = (self.album.clone(), self.teller.clone());
        let tagger = Arc::downgrade(tagger);
        self.task = Some(tokio::spawn(async move {
            let mut last: Option<Instant> = None;
            while let Some(mark) = passed.recv().await {
                if last.is_some_and(|at| at.elapsed() < album.plan.every) {
                    continue;
                }
                last = Some(Instant::now());
                let what = match mark.at_begin {
                    true => format!("{} begins", mark.tag),
                    false => format!("{} ends", mark.tag),
                };
                let (album, tagger, teller) = (album.clone(), tagger.clone(), teller.clone());
                shoot(pid, album, tagger, mark.tag, what, teller).await;
                // What was passed meanwhile is over: a heap of now would not be of then.
                while passed.try_recv().is_ok() {}
            }
        }));
    }

    /// Takes another snapshot after a cycle of work.
    pub(crate) fn again_later(&mut self, pid: u32, tagger: Option<&Arc<Tagger>>) {
        let cycle = self.album.plan.cycle;
        let (album, teller) = (self.album.clone(), self.teller.clone());
        let tagger = tagger.map(Arc::downgrade).unwrap_or_default();
        self.later.retain(|task| !task.is_finished());
        let task = tokio::spawn(async move {
            tokio::time::sleep(cycle).await;
            let what = "a cycle of work after the leak was found".to_owned();
            shoot(pid, album, tagger, "cycle".to_owned(), what, teller).await;
        });
        self.later.push(task.abort_handle());
    }

    /// Ends with what is on its way; the tagger must have gone.
    pub(crate) async fn end(self) {
        for task in self.later {
            task.abort();
        }
        if let Some(task) = self.task {
            let shot = task.abort_handle();
            if tokio::time::timeout(PATIENCE, task).await.is_err() {
                shot.abort();
            }
        }
    }
}

async fn shoot(
    pid: u32,
    album: Arc<Album>,
    tagger: std::sync::Weak<Tagger>,
    tag: String,
    what: String,
    teller: Teller,
) {
    let taken = tokio::task::spawn_blocking(move || {
        let tagger = tagger.upgrade();
        album.take(pid, &tag, tagger.as_deref())
    });
    let kind = match taken.await.unwrap_or(Err(InsideError::Broken)) {
        Ok((path, pause)) => EventKind::Snapshot {
            file: path.display().to_string(),
            text: format!(
                "{what} (the process stood still for {:.1} ms)",
                pause.as_secs_f64() * 1e3
            ),
        },
        Err(error) => EventKind::Warning {
            text: format!("no snapshot although {what}: {error}"),
        },
    };
    teller.tell(kind).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files() {
        let at: Time = "2026-11-23T22:10:05.123Z".parse().unwrap();
        assert_eq!(stem(at, "G001-M17"), "heap_20261123_2210_05_G001-M17");
        assert_eq!(stem(at, "../a b/ü\n"), "heap_20261123_2210_05_..-a-b---");
        assert_eq!(stem(at, &"x".repeat(500)).len(), 22 + LONGEST);
        // Outside the calendar.
        assert!(stem(Time(i64::MAX), "a").starts_with("heap_"));
    }

    #[test]
    fn the_newest_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let asked = Snapshots {
            dir: dir.path().join("new"),
            verdicts: true,
            cycle: Duration::from_secs(600),
            marks: Vec::new(),
            every: Duration::from_secs(60),
        };
        let album = Album::new(asked, goproc::Options::default());
        let graph = HeapGraph {
            edge_starts: vec![0],
            ..HeapGraph::default()
        };
        for i in 0..KEPT + 3 {
            let path = album.write(&graph, "a").unwrap();
            assert!(path.exists(), "{i}");
        }
        let left = std::fs::read_dir(dir.path().join("new")).unwrap();
        let mut left: Vec<String> = left
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        assert_eq!(left.len(), KEPT, "{left:?}");
        assert!(left.iter().all(|name| name.ends_with(".mtsnap")));
    }
}
