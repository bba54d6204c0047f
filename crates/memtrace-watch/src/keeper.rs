//! The one writer of the store, on a thread of its own: SQLite blocks, targets must not.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use memtrace_model::{Event, EventKind, Finding, Gauges, Profile, Time};
use memtrace_store::{Kind, Options, Reading, Snapshot, Store, StoreError};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::{Update, WatchError};

/// What is to be kept.
pub(crate) enum Keep {
    /// What was read at one moment.
    Reading {
        target: String,
        at: Time,
        profiles: Vec<Taken>,
        gauges: Gauges,
        /// What it takes of the room that its target has in the queue.
        room: Option<OwnedSemaphorePermit>,
    },
    /// Something that happened.
    Event { target: String, event: Event },
    /// A verdict; the raw profiles before its inflection are kept with it.
    Finding(Box<Finding>),
}

/// A profile with the bytes it came in.
pub(crate) struct Taken {
    pub(crate) kind: Kind,
    pub(crate) profile: Profile,
    pub(crate) raw: Vec<u8>,
}

impl Taken {
    /// What it takes, KiB.
    pub(crate) fn kib(&self) -> usize {
        (self.profile.memory() + self.raw.len()) / 1024 + 1
    }
}

/// Where targets send what is to be kept. A full queue drops nothing: the target waits.
pub(crate) type KeepSender = mpsc::Sender<Keep>;

/// The writer. It ends when the last sender is gone; so it keeps none itself.
#[derive(Debug)]
pub(crate) struct Keeper {
    dir: PathBuf,
    thread: JoinHandle<Option<Unkept>>,
}

/// What a store could not keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unkept {
    /// The folder of the store.
    pub dir: PathBuf,
    /// Profiles that were lost, and of how many.
    pub profiles: u64,
    /// All profiles that were to be kept.
    pub of: u64,
    /// Events, findings, and gauges without a profile that were lost.
    pub others: u64,
    /// Why, at last; `None` where the store keeps again what is read.
    pub reason: Option<String>,
}

impl std::fmt::Display for Unkept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { profiles, of, .. } = self;
        write!(
            f,
            "store {}: {profiles} of {of} profiles",
            self.dir.display()
        )?;
        match self.others {
            0 => {}
            1 => write!(f, " and 1 other record")?,
            n => write!(f, " and {n} other records")?,
        }
        match &self.reason {
            Some(reason) => write!(f, " could not be kept: {reason}"),
            None => write!(f, " could not be kept; what comes now is kept again"),
        }
    }
}

/// What may wait to be written: much more than one target sends before it has to wait.
const QUEUE: usize = 1024;

/// How often a store that refuses is complained about.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How often old data is thinned out and given up.
const MAINTAIN_EVERY: Duration = Duration::from_secs(10);

impl Keeper {
    /// Opens the store in `dir` and begins to write what is sent. What cannot be written is
    /// counted, and told now and then; what comes later is tried again, so that a
    /// disk that was full goes on being used when there is room.
    pub(crate) fn open(
        dir: &Path,
        updates: mpsc::Sender<Update>,
    ) -> Result<(Self, KeepSender), StoreError> {
        let mut store = Store::create_or_open(dir, Options::default())?;
        let (sender, mut queue) = mpsc::channel::<Keep>(QUEUE);
        let mut unkept = Unkept {
            dir: dir.to_owned(),
            profiles: 0,
            of: 0,
            others: 0,
            reason: None,
        };
        let tell = move |target: String, at, text: String, unkept: Option<&Unkept>| {
            let kind = EventKind::Warning { text };
            let event = Event { at, kind };
            let _ = updates.blocking_send(Update::Event { target, event });
            if let Some(unkept) = unkept {
                let _ = updates.blocking_send(Update::Store(unkept.clone()));
            }
        };
        let thread = std::thread::spawn(move || {
            let (mut told, mut maintained) = (None, Instant::now());
            // The last word was that profiles are lost.
            let mut is_open = false;
            let is_time = |told: Option<Instant>| told.is_none_or(|at| at.elapsed() >= TELL_EVERY);
            while let Some(keep) = queue.blocking_recv() {
                let ((target, at), profiles) = (keep.whose(), keep.profiles());
                unkept.of += profiles;
                match write(&mut store, keep) {
                    Ok(()) if profiles > 0 && std::mem::take(&mut is_open) => {
                        let now = Unkept {
                            reason: None,
                            ..unkept.clone()
                        };
                        tell(target.clone(), at, "stored again".to_owned(), Some(&now));
                    }
                    Ok(()) => {}
                    Err(error) => {
                        unkept.profiles += profiles;
                        unkept.others += u64::from(profiles == 0);
                        unkept.reason = Some(error.to_string());
                        if is_time(told) {
                            (told, is_open) = (Some(Instant::now()), true);
                            let text = format!("not stored: {error}");
                            tell(target.clone(), at, text, Some(&unkept));
                        }
                    }
                }
                if maintained.elapsed() >= MAINTAIN_EVERY {
                    maintained = Instant::now();
                    // A store that is full is told of already.
                    if let Err(error) = store.maintain(at)
                        && is_time(told)
                    {
                        told = Some(Instant::now());
                        let text = format!("old data of the store could not be thinned: {error}");
                        tell(target, at, text, None);
                    }
                }
            }
            unkept.reason.is_some().then_some(unkept)
        });
        let dir = dir.to_owned();
        Ok((Self { dir, thread }, sender))
    }

    /// Waits until everything sent is written; what could not be.
    pub(crate) async fn close(self) -> Result<Option<Unkept>, WatchError> {
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await;
        // A panic in the thread is told by its own message.
        match joined {
            Ok(Ok(unkept)) => Ok(unkept),
            _ => Err(WatchError::Broken(format!(
                "the writer of the store {} ended",
                self.dir.display()
            ))),
        }
    }
}

impl Keep {
    fn profiles(&self) -> u64 {
        match self {
            Self::Reading { profiles, .. } => profiles.len() as u64,
            Self::Event { .. } | Self::Finding(_) => 0,
        }
    }

    fn whose(&self) -> (String, Time) {
        match self {
            Self::Reading { target, at, .. } => (target.clone(), *at),
            Self::Event { target, event } => (target.clone(), event.at),
            Self::Finding(finding) => (finding.target.clone(), finding.at),
        }
    }
}

fn write(store: &mut Store, keep: Keep) -> Result<(), StoreError> {
    match keep {
        Keep::Reading {
            target,
            at,
            profiles,
            gauges,
            room: _room,
        } => {
            let target = store.target(&target)?;
            let snapshots: Vec<Snapshot<'_>> = profiles
                .iter()
                .map(|t| Snapshot {
                    kind: t.kind,
                    profile: &t.profile,
                    raw: Some(&t.raw),
                })
                .collect();
            store.append(&Reading {
                target,
                at,
                snapshots: &snapshots,
                gauges: &gauges,
            })
        }
        Keep::Event { target, event } => {
            let target = store.target(&target)?;
            store.event(target, &event)
        }
        Keep::Finding(finding) => {
            let target = store.target(&finding.target)?;
            store.keep_raw(target, &finding.before_onset)?;
            store.finding(target, &finding)
        }
    }
}
