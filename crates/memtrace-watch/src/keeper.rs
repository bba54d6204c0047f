//! The one writer of the store, on a thread of its own: SQLite blocks, targets must not.

use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use memtrace_model::{Event, EventKind, Finding, Gauges, Profile, Time};
use memtrace_store::{Kind, Options, Reading, Snapshot, Store, StoreError};
use tokio::sync::mpsc;

use crate::Update;

/// What is to be kept.
pub(crate) enum Keep {
    /// What was read at one moment.
    Reading {
        target: String,
        at: Time,
        profiles: Vec<Taken>,
        gauges: Gauges,
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

/// Where targets send what is to be kept. A full queue drops nothing: the target waits.
pub(crate) type KeepSender = mpsc::Sender<Keep>;

/// The writer. It ends when the last sender is gone; so it keeps none itself.
#[derive(Debug)]
pub(crate) struct Keeper {
    thread: JoinHandle<()>,
}

/// How often a store that refuses is complained about.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How often old data is thinned out and given up.
const MAINTAIN_EVERY: Duration = Duration::from_secs(10);

impl Keeper {
    /// Opens the store in `dir` and begins to write what is sent. A write that
    /// fails is told as a warning now and then; later ones are tried again, so that a
    /// disk that was full goes on being used when there is room.
    pub(crate) fn open(
        dir: &Path,
        updates: mpsc::Sender<Update>,
    ) -> Result<(Self, KeepSender), StoreError> {
        let mut store = Store::create_or_open(dir, Options::default())?;
        let (sender, mut queue) = mpsc::channel::<Keep>(64);
        let thread = std::thread::spawn(move || {
            let mut told: Option<Instant> = None;
            let mut maintained = Instant::now();
            while let Some(keep) = queue.blocking_recv() {
                let (target, at) = keep.whose();
                let written = write(&mut store, keep).and_then(|()| {
                    if maintained.elapsed() >= MAINTAIN_EVERY {
                        maintained = Instant::now();
                        store.maintain(at)?;
                    }
                    Ok(())
                });
                match written {
                    Ok(()) => {}
                    Err(_) if told.is_some_and(|at| at.elapsed() < TELL_EVERY) => {}
                    Err(error) => {
                        told = Some(Instant::now());
                        let kind = EventKind::Warning {
                            text: format!("not stored: {error}"),
                        };
                        let _ = updates.blocking_send(Update::Event {
                            target,
                            event: Event { at, kind },
                        });
                    }
                }
            }
        });
        Ok((Self { thread }, sender))
    }

    /// Waits until everything sent is written.
    pub(crate) async fn close(self) {
        // A panic in the thread is told by its own message.
        let _ = tokio::task::spawn_blocking(move || self.thread.join()).await;
    }
}

impl Keep {
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
