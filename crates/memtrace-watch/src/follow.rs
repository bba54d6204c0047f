//! What a watch does beside its profiles, where it is asked to: follows labels, and takes
//! snapshots.

use std::path::PathBuf;
use std::sync::Arc;

use memtrace_collect::goproc::Options;
use memtrace_model::{EventKind, Finding, Tier, Time};
use tokio::sync::mpsc;

use crate::Plan;
use crate::snapshots::{Album, Photographer, Teller};
use crate::tags::{Asked, Tagger};

/// Marks that wait for whoever takes snapshots.
const QUEUE: usize = 16;

/// Follows one target.
#[derive(Debug, Default)]
pub(crate) struct Follower {
    tags: bool,
    tagger: Option<Arc<Tagger>>,
    photographer: Option<Photographer>,
    freeze: Options,
    /// Hits that were not seen, as far as they were told of.
    told: (u64, usize),
}

/// What a look inside a process has with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Eyes {
    pub(crate) tagger: Option<Arc<Tagger>>,
    /// Where the heap is to be written.
    pub(crate) album: Option<Arc<Album>>,
    /// How the process is stopped.
    pub(crate) freeze: Options,
}

impl Follower {
    pub(crate) fn new(plan: &Plan, teller: Teller) -> Self {
        let snapshots = plan.snapshots.clone();
        Self {
            tags: plan.tags,
            tagger: None,
            photographer: snapshots
                .map(|asked| Photographer::new(asked, plan.freeze.clone(), teller)),
            freeze: plan.freeze.clone(),
            told: (0, 0),
        }
    }

    /// Begins with a process; what is not possible is told in words.
    pub(crate) async fn start(&mut self, pid: Option<u32>, since: Time) -> Vec<String> {
        self.tagger = None;
        self.told = (0, 0);
        let marks = self.photographer.as_ref();
        let marks = marks.map_or_else(Vec::new, Photographer::marks);
        if !self.tags && marks.is_empty() {
            return Vec::new();
        }
        let what = match (self.tags, marks.is_empty()) {
            (true, true) => "no tags",
            (true, false) => "no tags, and no snapshots of sections of work",
            _ => "no snapshots of sections of work",
        };
        let Some(pid) = pid else {
            return vec![format!(
                "{what}: its process is not on this machine, or cannot be seen; give its pid"
            )];
        };
        let (passed, marks_passed) = mpsc::channel(QUEUE);
        let asked = Asked {
            tags: self.tags,
            marks,
            passed,
            since,
        };
        match Tagger::start(pid, asked).await {
            Ok((tagger, missing)) => {
                let tagger = Arc::new(tagger);
                if let Some(photographer) = &mut self.photographer {
                    photographer.follow(pid, &tagger, marks_passed);
                }
                self.tagger = Some(tagger);
                let words = missing.map(|error| format!("no tags: {error}"));
                words.into_iter().collect()
            }
            Err(error) => vec![format!("{what}: {error}")],
        }
    }

    /// What a look for these findings has with it.
    pub(crate) fn eyes(&self, findings: &[Finding]) -> Eyes {
        let is_leak = findings.iter().any(|f| f.tier == Tier::Leaking);
        let photographer = self.photographer.as_ref();
        Eyes {
            tagger: self.tagger.clone().filter(|_| self.tags),
            album: photographer
                .map(|p| p.album.clone())
                .filter(|album| is_leak && album.is_for_verdicts()),
            freeze: self.freeze.clone(),
        }
    }

    /// A heap was written, or could not be: tells of it, and sees to the next one.
    pub(crate) fn saved(&mut self, pid: u32, saved: Result<PathBuf, std::io::Error>) -> EventKind {
        let Some(photographer) = &mut self.photographer else {
            return EventKind::Recovered;
        };
        photographer.again_later(pid, self.tagger.as_ref());
        match saved {
            Ok(path) => EventKind::Snapshot {
                file: path.display().to_string(),
                text: "a leak was found".to_owned(),
            },
            Err(error) => EventKind::Warning {
                text: format!("no snapshot although a leak was found: {error}"),
            },
        }
    }

    /// What was not seen, where that has become more.
    pub(crate) fn blind_spots(&mut self) -> Option<String> {
        let (lost, unseen) = self.tagger.as_ref()?.blind_spots();
        let threads = unseen.as_ref().map_or(0, |u| u.threads);
        let (told_lost, told_threads) = self.told;
        if lost <= 2 * told_lost && threads <= told_threads {
            return None;
        }
        self.told = (lost, threads);
        let mut words = Vec::new();
        if lost > 0 {
            words.push(format!(
                "{lost} sampled allocations: there was no room for them"
            ));
        }
        if let Some(unseen) = unseen {
            words.push(format!("{threads} threads: {}", unseen.reason));
        }
        Some(format!("tags: not seen: {}", words.join("; ")))
    }

    /// Takes the probe out, and ends what is on its way.
    pub(crate) async fn end(mut self) {
        if let Some(tagger) = self.tagger.take() {
            // The thread that empties the probe is waited for.
            let _ = tokio::task::spawn_blocking(move || drop(tagger)).await;
        }
        if let Some(photographer) = self.photographer.take() {
            photographer.end().await;
        }
    }
}
