//! One target's life from attach to verdict, for one target or hundreds.
//!
//! Hides the loop: attach, scrape on a beat of its own, parse, keep, assess, and
//! turn successive assessments into findings that open, change and resolve. Data
//! moves from `collect` through `formats` into `analysis` and `store`; what comes
//! out is a stream of [`Update`]s and, at the end, [`Ended`].

mod engine;
mod follow;
mod inside;
mod keeper;
mod ledger;
mod pool;
mod program;
mod runtime_calls;
mod sdk;
mod snapshots;
mod tags;

use std::path::PathBuf;
use std::time::Duration;
use std::{io, thread};

use memtrace_collect::{CollectError, Options as Access};
use memtrace_model::{Event, Finding, Gauges, Tier, Time};
use memtrace_store::StoreError;
use thiserror::Error;
use tokio::runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

pub use keeper::Unkept;
pub use runtime_calls::MOST_NAMES;
pub use sdk::Sdk;
pub use snapshots::Snapshots;
pub use tags::Mark;

/// What to watch, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The targets as the user wrote them.
    pub targets: Vec<String>,
    /// Time between two heap profiles of a target.
    pub interval: Duration,
    /// How long to watch; `None` until stopped.
    pub duration: Option<Duration>,
    /// Longest settling time of a healthy service; `None` for the default at this interval.
    pub settle: Option<Duration>,
    /// Bytes at which the user says the service is killed.
    pub limit: Option<u64>,
    /// Folder of the store; `None` keeps nothing.
    pub store: Option<PathBuf>,
    /// Findings may show content of the target, such as keys of a map.
    pub with_strings: bool,
    /// Follow the labels (`runtime/pprof`) under which a local Go process allocates.
    pub tags: bool,
    /// Snapshots that are taken by the way.
    pub snapshots: Option<Snapshots>,
    /// How a process is stopped for a copy of it, and for how long at most.
    pub freeze: memtrace_collect::goproc::Options,
    /// How to talk to the endpoints.
    pub access: Access,
}

/// Something new to show.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // few are alive at once
pub enum Update {
    /// A target was found and answered.
    Attached(Attached),
    /// A profile was taken.
    Point(Point),
    /// Something happened to a target.
    Event {
        /// The target, as the user named it.
        target: String,
        /// What happened.
        event: Event,
    },
    /// A finding is new, changed its tier or pattern, or was resolved.
    Finding(Finding),
    /// The store could not keep what was read, or, without a reason, keeps it again. Told
    /// at most once a minute.
    Store(Unkept),
    /// The watch of a target ended.
    Summary(Summary),
}

/// A target was found.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The target, as the user named it.
    pub target: String,
    /// When.
    pub at: Time,
    /// What it is, in words: `pid 4242 (cnc) at http://127.0.0.1:6060`.
    pub how: String,
}

/// One point of a target's series.
#[derive(Clone, Debug)]
pub struct Point {
    /// The target, as the user named it.
    pub target: String,
    /// When the profile was taken.
    pub at: Time,
    /// What was read.
    pub gauges: Gauges,
    /// Profiles taken so far.
    pub profiles: u64,
    /// The open findings with their newest numbers, rank 1 first.
    pub findings: Vec<Finding>,
}

/// Profiles that a trend takes: fewer say nothing.
pub const LEAST_PROFILES: u64 = 9;

impl Point {
    /// The state in one word.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self.findings.iter().map(|f| f.tier).max() {
            Some(Tier::Leaking) => "LEAKING",
            Some(Tier::Growing) => "growing",
            // Until then silence is not health.
            None if self.profiles < LEAST_PROFILES => "gathering",
            None => "ok",
        }
    }
}

/// What the watch of one target came to.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The target, as the user named it.
    pub target: String,
    /// How long it was watched.
    pub watched: Duration,
    /// The settle horizon it was judged by: a leak must outlast it.
    pub settle: Duration,
    /// Profiles taken.
    pub profiles: u64,
    /// Findings that held at the end, rank 1 first.
    pub findings: Vec<Finding>,
}

/// What the whole watch came to.
#[derive(Clone, Debug, Default)]
pub struct Ended {
    /// Findings called leaking, over all targets and the whole time.
    pub leaking: usize,
    /// Why there was no target left to watch, where that ended it.
    pub lost: Option<String>,
    /// Targets of which no profile was ever read, and why.
    pub never_read: Vec<(String, String)>,
    /// What the store could not keep; nothing where there is none, or where it kept all.
    pub unkept: Option<Unkept>,
}

/// How long what a target still does may take at the end.
const LAST_WORK: Duration = Duration::from_secs(2);

/// Why nothing was read, where nothing was wrong.
const TOO_SHORT: &str = "the watch ended before a profile was read";

/// Why a watch cannot begin or go on.
#[derive(Debug, Error)]
pub enum WatchError {
    /// For the user: the target is not what it should be, or does not answer.
    #[error(transparent)]
    Target(#[from] CollectError),
    /// For the user: the store cannot be used.
    #[error("store {dir}: {error}")]
    Store {
        /// Its folder.
        dir: PathBuf,
        /// What is wrong with it.
        error: StoreError,
    },
    /// For us: a thread died, or could not be made.
    #[error("the watch broke off: {0}")]
    Broken(String),
}

/// A running watch.
#[derive(Debug)]
pub struct Engine {
    stop: watch::Sender<bool>,
    targets: JoinSet<(String, Result<engine::Outcome, WatchError>)>,
    keeper: Option<keeper::Keeper>,
}

/// Begins to watch. The updates end when every target's watch has ended.
///
/// # Errors
/// The store cannot be opened. Whether the targets can be reached is told by
/// [`Engine::ended`].
pub fn start(plan: Plan) -> Result<(Engine, mpsc::Receiver<Update>), WatchError> {
    let (sender, updates) = mpsc::channel(256);
    let open = |dir: &PathBuf| {
        keeper::Keeper::open(dir, sender.clone()).map_err(|error| WatchError::Store {
            dir: dir.clone(),
            error,
        })
    };
    let (keeper, keep) = plan.store.as_ref().map(open).transpose()?.unzip();
    let (stop, stopped) = watch::channel(false);
    let mut targets = JoinSet::new();
    let count = plan.targets.len().max(1) as u32;
    for (i, target) in plan.targets.iter().enumerate() {
        // Spread over the interval, so that hundreds of targets are not asked at once.
        let phase = plan.interval * (i as u32) / count;
        let watch = engine::watch(
            plan.clone(),
            target.clone(),
            phase,
            sender.clone(),
            keep.clone(),
            stopped.clone(),
        );
        let (name, done) = (target.clone(), alone(target.clone(), watch));
        targets.spawn(async move { (name, done.await) });
    }
    Ok((
        Engine {
            stop,
            targets,
            keeper,
        },
        updates,
    ))
}

/// Watches a target on a thread of its own. Where tasks share threads, one whose peer never
/// stops sending can keep a thread busy for seconds, and with it the timers and the sockets
/// of the others. A panic is told with the name of the target.
async fn alone(
    target: String,
    watch: impl Future<Output = Result<engine::Outcome, WatchError>> + Send + 'static,
) -> Result<engine::Outcome, WatchError> {
    let broken = |error: io::Error| WatchError::Broken(error.to_string());
    let (done, outcome) = oneshot::channel();
    let work = move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let watched = runtime.map_err(broken).and_then(|runtime| {
            let watched = runtime.block_on(watch);
            // A snapshot that is nearly written is; who stands still in /proc holds nobody up.
            runtime.shutdown_timeout(LAST_WORK);
            watched
        });
        // Nobody listens where the watch as a whole has ended.
        let _ = done.send(watched);
    };
    let thread = thread::Builder::new().name(target.replace('\0', ""));
    thread.spawn(work).map_err(broken)?;
    outcome
        .await
        .unwrap_or_else(|_| Err(WatchError::Broken("a thread died".to_owned())))
}

impl Engine {
    /// Asks every target's watch to end with its summary.
    pub fn stop(&self) {
        // Nobody listening means that all have ended.
        let _ = self.stop.send(true);
    }

    /// Waits until every target's watch has ended and everything is stored.
    ///
    /// # Errors
    /// None of the targets could be watched, or the store refused.
    pub async fn ended(mut self) -> Result<Ended, WatchError> {
        let mut ended = Ended::default();
        let mut first_error = None;
        let (mut watched, mut lost) = (0, None);
        while let Some(done) = self.targets.join_next().await {
            match done {
                Ok((target, Ok(outcome))) => {
                    ended.leaking += outcome.leaking;
                    if outcome.profiles == 0 {
                        let reason = outcome.lost.clone();
                        let reason = reason.unwrap_or_else(|| TOO_SHORT.to_owned());
                        ended.never_read.push((target, reason));
                    }
                    match outcome.lost {
                        Some(reason) => lost = Some(reason),
                        None => watched += 1,
                    }
                }
                Ok((target, Err(error))) => {
                    ended.never_read.push((target, error.to_string()));
                    first_error = first_error.or(Some(error));
                }
                Err(error) => {
                    first_error = first_error.or(Some(WatchError::Broken(error.to_string())))
                }
            }
        }
        if let Some(keeper) = self.keeper {
            ended.unkept = keeper.close().await?;
        }
        if watched == 0 {
            ended.lost = lost;
        }
        match first_error {
            Some(error) if watched == 0 && ended.lost.is_none() => Err(error),
            _ => Ok(ended),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_target_that_keeps_its_thread_busy_leaves_the_others_alone() {
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        let name = || "a test".to_owned();
        let busy = tokio::spawn(alone(name(), async move {
            let _ = held.recv();
            Ok(engine::Outcome::default())
        }));
        for profiles in 0..100 {
            let other = alone(name(), async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Ok(engine::Outcome {
                    profiles,
                    ..engine::Outcome::default()
                })
            });
            assert_eq!(other.await.unwrap().profiles, profiles);
        }
        let_go.send(()).unwrap();
        assert!(busy.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_thread_that_dies_is_told() {
        let watch = alone("a\0test".to_owned(), async {
            panic!("a panic of the test")
        });
        assert!(matches!(watch.await, Err(WatchError::Broken(_))));
    }
}
