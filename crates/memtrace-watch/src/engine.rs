//! The life of one target.

use std::collections::{HashMap, HashSet};
use std::mem::Discriminant;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use memtrace_analysis::graph::Explanation;
use memtrace_analysis::leaks;
use memtrace_analysis::series::{History, Settings};
use memtrace_collect::{
    Attached as Place, CollectError, FreezeError, Process, Scraper, Target, TargetError,
};
use memtrace_formats::sdk::{Backlog, Events};
use memtrace_formats::{Limits, Warning, pprof};
use memtrace_model::{Event, EventKind, Finding, Gauge, Gauges, Pattern, Profile, Tier, Time};
use memtrace_store::Kind;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval_at, timeout, timeout_at};

use crate::follow::Follower;
use crate::inside::{self, Inside, InsideError, Subject, subject};
use crate::keeper::{Keep, KeepSender, Taken};
use crate::ledger::Ledger;
use crate::sdk::Sdk;
use crate::snapshots::Teller;
use crate::{Attached, Plan, Point, Summary, Update, WatchError};
use crate::{pool, program, runtime_calls};

/// The text form of a heap profile stops the world for its memory statistics:
/// never more often than this.
const CALLS_GAP: Duration = Duration::from_secs(60);

/// A copy of the heap is taken for suspicions at most so often.
const LOOKS_GAP: Duration = Duration::from_secs(60);

/// Profiles of a target that wait for the writer of the store, KiB; the target waits beyond.
/// So the large ones of one target delay its own next profile, not those of others.
const UNWRITTEN_KIB: usize = 16 << 10;
/// A profile beyond this, with its bytes, goes to the store by itself.
const LARGE_KIB: usize = 2 << 10;
/// How long goroutines wait for a large heap profile to be written; they are not read beyond,
/// since one is in memory at a time.
const WRITING: Duration = Duration::from_secs(1);

/// How long a profile may still be on its way when the watch should end.
const GRACE: Duration = Duration::from_secs(5);

/// What became of one target.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) leaking: usize,
    /// Profiles that were read.
    pub(crate) profiles: u64,
    /// Why it could not be read at the end.
    pub(crate) lost: Option<String>,
}

/// Watches one target until the plan's time is over, it is stopped, or its
/// process is gone for good.
pub(crate) async fn watch(
    plan: Plan,
    name: String,
    phase: Duration,
    updates: mpsc::Sender<Update>,
    keeper: Option<KeepSender>,
    mut stopped: watch::Receiver<bool>,
) -> Result<Outcome, WatchError> {
    let target = Target::parse(&name).map_err(CollectError::from)?;
    let started = Instant::now();
    let first = tokio::time::Instant::now() + phase;
    let end = plan.duration.map(|d| first + d);
    let mut refused = None;
    let attached = tokio::select! {
        life = attach(&plan, &name, &target, &updates, keeper, &mut refused) => Some(life?),
        () = late(end) => None,
        _ = stopped.wait_for(|&s| s) => None,
    };
    let Some(mut life) = attached else {
        return Ok(Outcome {
            lost: Some(refused.unwrap_or_else(|| format!("{name}: never reached"))),
            ..Outcome::default()
        });
    };
    life.begun().await;

    let mut beat = interval_at(first, plan.interval.max(Duration::from_millis(100)));
    // After a pause (a suspended machine, a slow answer) do not catch up in a burst.
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let tick = async {
            match end {
                // A tick that is due already would win over an end that has passed.
                Some(end) if tokio::time::Instant::now() > end => false,
                Some(end) => timeout_at(end, beat.tick()).await.is_ok(),
                None => {
                    beat.tick().await;
                    true
                }
            }
        };
        let go_on = tokio::select! {
            due = tick => due,
            _ = stopped.wait_for(|&s| s) => false,
        };
        if !go_on {
            break;
        }
        let in_time = tokio::select! {
            // What came at last counts.
            biased;
            () = life.point() => true,
            () = late(end) => false,
            _ = stopped.wait_for(|&s| s) => break,
        };
        // One late point of a process that is there says nothing.
        if !in_time && life.is_there() {
            break;
        }
        if !in_time {
            let reason = "no answer before the watch ended".to_owned();
            life.cannot_read(reason).await;
            break;
        }
        if life.gone_for_good {
            break;
        }
        // Not part of the point: a slow disk is no fault of the target.
        tokio::select! {
            () = life.written() => {}
            () = late(end) => break,
            _ = stopped.wait_for(|&s| s) => break,
        }
    }
    Ok(life.end(started.elapsed()).await)
}

/// Finds the target. One of several that cannot be found is told of and sought
/// again, and why it was `refused` at last is kept; one alone is an error.
async fn attach(
    plan: &Plan,
    name: &str,
    target: &Target,
    updates: &mpsc::Sender<Update>,
    keeper: Option<KeepSender>,
    refused: &mut Option<String>,
) -> Result<Life, WatchError> {
    loop {
        let life = Life::attach(plan, name, target.clone(), updates.clone(), keeper.clone());
        let error = match life.await {
            Ok(life) => return Ok(life),
            Err(error) if plan.targets.len() == 1 => return Err(error.into()),
            Err(error) => error,
        };
        let reason = error.to_string();
        if refused.replace(reason.clone()).is_none() {
            let event = Event {
                at: now(),
                kind: EventKind::Lost { reason },
            };
            // Nobody listening any more is not this target's concern.
            let _ = updates
                .send(Update::Event {
                    target: name.to_owned(),
                    event,
                })
                .await;
        }
        tokio::time::sleep(plan.interval).await;
    }
}

/// A while after the end of the watch: whoever has not answered by then will not.
async fn late(end: Option<tokio::time::Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end + GRACE).await,
        None => std::future::pending().await,
    }
}

/// How a target is read.
enum Means {
    /// By its endpoint.
    Endpoint(Box<Scraper>),
    /// From its memory.
    Inside(Inside),
}

impl Means {
    fn how(&self) -> String {
        match self {
            Self::Endpoint(scraper) => scraper.endpoint().to_string(),
            Self::Inside(inside) => inside.how(),
        }
    }
}

struct Life {
    name: String,
    target: Target,
    plan: Plan,
    means: Means,
    process: Option<Process>,
    history: History,
    ledger: Ledger,
    updates: mpsc::Sender<Update>,
    keeper: Option<KeepSender>,
    profiles: u64,
    lost: Option<String>,
    gone_for_good: bool,
    /// It runs on this machine, or did until it ended.
    was_local: bool,
    clock: Clock,
    /// When calls into the runtime were asked for.
    asked: Option<Instant>,
    /// Whether the program's file was read, or tried.
    code_read: bool,
    sdk: Sdk,
    /// Kinds of warnings about the newest profile: they are told once, not with every profile.
    warned: HashSet<Discriminant<Warning>>,
    /// What the writer may still have to write of it.
    room: Arc<Semaphore>,
    /// How much of it must be free before more is read, KiB.
    owed: usize,
    notes: Vec<String>,
    /// Findings for which a copy of the heap was taken, and when the last one was.
    looked: HashSet<(Subject, Tier)>,
    looked_at: Option<Instant>,
    /// What the copies said of findings.
    explained: HashMap<Subject, Explanation>,
    follower: Follower,
}

impl Life {
    async fn attach(
        plan: &Plan,
        name: &str,
        target: Target,
        updates: mpsc::Sender<Update>,
        keeper: Option<KeepSender>,
    ) -> Result<Self, CollectError> {
        let (place, means) = match target.attach(&plan.access).await {
            Ok(place) => {
                let endpoint = place
                    .endpoint
                    .clone()
                    .ok_or_else(|| TargetError::Unrecognised {
                        text: name.to_owned(),
                    })?;
                let scraper = Scraper::new(endpoint, plan.access.clone())?;
                (place, Means::Endpoint(Box::new(scraper)))
            }
            // Without an endpoint, a Go process may still be read from outside.
            Err(error) => {
                let Some(pid) = error.pid() else {
                    return Err(error.into());
                };
                let inside = match Inside::attach(pid, &plan.freeze).await {
                    Ok(inside) => inside,
                    // It tells more, or all there is.
                    Err(InsideError::Process(memory @ FreezeError::Gone { .. })) => {
                        return Err(memory.into());
                    }
                    Err(InsideError::Process(memory))
                        if matches!(error, TargetError::Permission { .. }) =>
                    {
                        return Err(memory.into());
                    }
                    Err(InsideError::Process(memory)) => {
                        return Err(CollectError::Closed {
                            endpoint: error,
                            memory: Box::new(memory),
                        });
                    }
                    // What it is says more than that it has no endpoint, unless it is not in Go.
                    Err(InsideError::Program(what))
                        if !matches!(what, memtrace_formats::Error::NotAGoProgram { .. }) =>
                    {
                        return Err(CollectError::Program { pid, what });
                    }
                    Err(_) => return Err(error.into()),
                };
                let place = Place {
                    pid: Some(pid),
                    ..Place::default()
                };
                (place, Means::Inside(inside))
            }
        };
        let mut notes = place.notes.clone();
        match &means {
            Means::Endpoint(scraper) => notes.extend(scraper.warnings()),
            Means::Inside(inside) if inside.compares_copies() => notes.push(
                "its heap profile is off (MemProfileRate is 0, or the program never uses it): copies of \
                 its heap are compared instead; who allocates is not known"
                    .to_owned(),
            ),
            Means::Inside(_) => {}
        }
        let mut settings = Settings::every(plan.interval);
        settings.settle = plan.settle.unwrap_or(settings.settle);
        let process = process(&place);
        let teller = Teller {
            target: name.to_owned(),
            updates: updates.clone(),
            keeper: keeper.clone(),
        };
        Ok(Self {
            follower: Follower::new(plan, teller),
            was_local: process.is_some(),
            clock: Clock::new(),
            name: name.to_owned(),
            target,
            plan: plan.clone(),
            means,
            process,
            history: History::new(settings),
            ledger: Ledger::new(settings.settle),
            updates,
            keeper,
            profiles: 0,
            lost: None,
            gone_for_good: false,
            asked: None,
            code_read: false,
            sdk: Sdk::default(),
            warned: HashSet::new(),
            room: Arc::new(Semaphore::new(UNWRITTEN_KIB)),
            owed: LARGE_KIB,
            notes,
            looked: HashSet::new(),
            looked_at: None,
            explained: HashMap::new(),
        })
    }

    /// Tells what was found; nothing of the target was read yet.
    async fn begun(&mut self) {
        let at = self.clock.now();
        let started = self.process.as_ref().map(Process::started);
        if let Some(started) = started {
            self.history.started(started);
        }
        let how = match (&self.process, &self.means) {
            (Some(p), Means::Endpoint(scraper)) => {
                format!("{} (pid {}, {})", scraper.endpoint(), p.pid(), p.name())
            }
            _ => self.means.how(),
        };
        self.send(Update::Attached(Attached {
            target: self.name.clone(),
            at,
            how,
        }))
        .await;
        self.keep(Keep::Event {
            target: self.name.clone(),
            event: Event {
                at,
                kind: EventKind::Attach { started },
            },
        })
        .await;
        for text in std::mem::take(&mut self.notes) {
            self.event(EventKind::Warning { text }).await;
        }
        self.follow().await;
    }

    /// Follows the labels of the process that is there now, where it is asked for.
    async fn follow(&mut self) {
        let (pid, now) = (self.process.as_ref().map(Process::pid), self.clock.now());
        for text in self.follower.start(pid, now).await {
            self.event(EventKind::Warning { text }).await;
        }
    }

    /// Takes one profile and says what it means.
    async fn point(&mut self) {
        if let Means::Inside(inside) = &self.means
            && !inside.is_due()
        {
            return;
        }
        let mut gauges = self.process_gauges().await;
        if self.gone_for_good {
            return;
        }
        let begun = Instant::now();
        let (mut heap, raw, warnings) = match self.heap().await {
            Ok(read) => read,
            Err(reason) => {
                self.gone_for_good = self.is_mistake();
                return self.cannot_read(reason).await;
            }
        };
        if self.lost.take().is_some() {
            self.event(EventKind::Recovered).await;
        }
        let kinds = warnings.iter().map(std::mem::discriminant).collect();
        let told = std::mem::replace(&mut self.warned, kinds);
        for warning in warnings {
            if !told.contains(&std::mem::discriminant(&warning)) {
                let text = warning.to_string();
                self.event(EventKind::Warning { text }).await;
            }
        }
        self.profiles += 1;
        let took = begun.elapsed();
        let at = self.clock.now().plus_ms(-(took.as_millis() as i64));
        let mut events = None;
        if let Means::Endpoint(scraper) = &mut self.means {
            if !self.sdk.label(scraper, &mut heap).await {
                return self.cannot_read("its tags cannot be read".to_owned()).await;
            }
            events = self.sdk.events(scraper).await;
        }
        // One after the other: each may be large.
        let heap = Taken {
            kind: Kind::Heap,
            profile: heap,
            raw,
        };
        let Some((heap, restarted)) = self.take_in(at, heap, &mut gauges).await else {
            return;
        };
        if restarted {
            self.restarted("its counters fell".into()).await;
        }
        let mut kept: Vec<Taken> = heap.into_iter().collect();
        let mut is_written = true;
        if kept.iter().any(|t| t.kib() > LARGE_KIB) {
            self.keep_reading(at, std::mem::take(&mut kept), Gauges::default())
                .await;
            is_written = timeout(WRITING, self.written()).await.is_ok();
        }
        if is_written && let Some(goroutines) = self.goroutines(at).await {
            let Some((goroutines, _)) = self.take_in(at, goroutines, &mut gauges).await else {
                return;
            };
            kept.extend(goroutines);
        }
        if let Some(text) = self.sdk.source(events.as_ref()) {
            self.event(EventKind::Source { text }).await;
        }
        if let Some(events) = events {
            self.collections(at, &events, &mut gauges);
        }
        self.history.gauges(at, &gauges);
        self.keep_reading(at, kept, gauges.clone()).await;
        self.judge(at, gauges).await;
    }

    /// Adds a profile to the history, and what it tells of the process to the gauges. Gives it
    /// back where it is to be kept, and whether its counters fell.
    async fn take_in(
        &mut self,
        at: Time,
        taken: Taken,
        gauges: &mut Gauges,
    ) -> Option<(Option<Taken>, bool)> {
        let is_kept = self.keeper.is_some();
        let work = move |history: &mut History| {
            let profile = &taken.profile;
            let (gauge, total, restarted) = match taken.kind {
                Kind::Heap => {
                    let column = profile.sample_type("inuse_space");
                    let total = column.map(|column| profile.total(column));
                    (Gauge::HeapInuse, total, history.heap(at, profile))
                }
                Kind::Goroutine => {
                    history.goroutines(at, profile);
                    (Gauge::Goroutines, Some(profile.total(0)), false)
                }
            };
            (is_kept.then_some(taken), gauge, total, restarted)
        };
        let (taken, gauge, total, restarted) = self.with_history(work).await?;
        if let Some(total) = total {
            gauges.set(gauge, total as f64);
        }
        Some((taken, restarted))
    }

    /// Sends to the store what was read, where there is one.
    async fn keep_reading(&mut self, at: Time, profiles: Vec<Taken>, gauges: Gauges) {
        if self.keeper.is_none() {
            return;
        }
        let kib = profiles.iter().map(Taken::kib).sum::<usize>();
        if kib > LARGE_KIB {
            self.owed = UNWRITTEN_KIB;
        }
        // Only this takes room, so what is free now stays free.
        let taken = kib.min(self.room.available_permits()) as u32;
        let room = Arc::clone(&self.room).try_acquire_many_owned(taken).ok();
        self.keep(Keep::Reading {
            target: self.name.clone(),
            at,
            profiles,
            gauges,
            room,
        })
        .await;
    }

    /// Waits until more may be read: a large reading is written, of others few are not.
    async fn written(&mut self) {
        let _ = self.room.acquire_many(self.owed as u32).await;
        self.owed = LARGE_KIB;
    }

    /// Does what may take a while with the history. Whoever drops this is left with an empty
    /// one, and so is who works with one that makes it panic: that is told.
    async fn with_history<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut History) -> T + Send + 'static,
    ) -> Option<T> {
        let empty = History::new(self.history.settings());
        let mut history = std::mem::replace(&mut self.history, empty);
        let done = pool::run(move || {
            let done = work(&mut history);
            (history, done)
        });
        let Some((history, done)) = done.await else {
            let reason = "its profile cannot be judged".to_owned();
            self.cannot_read(reason).await;
            return None;
        };
        self.history = history;
        Some(done)
    }

    /// Whether it was read, from its memory, and still runs.
    fn is_there(&self) -> bool {
        let runs = self.process.as_ref().is_some_and(|p| p.check().is_ok());
        runs && self.profiles > 0 && matches!(self.means, Means::Inside(_))
    }

    fn compares_copies(&self) -> bool {
        matches!(&self.means, Means::Inside(inside) if inside.compares_copies())
    }

    /// Takes over what the service's SDK tells.
    fn collections(&mut self, at: Time, events: &Events, gauges: &mut Gauges) {
        // The service may run by another clock.
        let ahead = events.now.0 - at.0;
        for collection in &events.collections {
            if let Some(live) = collection.live {
                let end = Time(collection.end.0.saturating_sub(ahead));
                self.history.collection(end, live as f64);
            }
        }
        let stats = &events.stats;
        gauges.set(Gauge::HeapLive, stats.heap_live as f64);
        gauges.set(Gauge::RuntimeSys, stats.go_memory as f64);
        gauges.set(Gauge::GcCycles, stats.gcs as f64);
        let waiting = |b: &Backlog| b.queued.saturating_sub(b.executed) as f64;
        let finalizers = waiting(&stats.finalizers) + waiting(&stats.cleanups);
        gauges.set(Gauge::FinalizersWaiting, finalizers);
    }

    /// Alone and never read: more likely a mistake than a pause.
    fn is_mistake(&self) -> bool {
        self.profiles == 0 && self.plan.targets.len() == 1
    }

    /// Assesses the history and tells what is new.
    async fn judge(&mut self, at: Time, gauges: Gauges) {
        let assess = |history: &mut History| history.assess();
        let Some(assessment) = self.with_history(assess).await else {
            return;
        };
        if self.history.hides_calls(&assessment) {
            self.learn_calls().await;
        }
        let grows = !assessment.stacks.is_empty() || assessment.native.is_some();
        if grows
            && !self.code_read
            && let Some(process) = &self.process
        {
            self.code_read = true;
            if let Some(code) = program::code(process).await {
                self.history.set_code(code);
            }
        }
        let (limit, name, copies) = (self.plan.limit, self.name.clone(), self.compares_copies());
        let find = move |history: &mut History| {
            let mut seen = leaks::findings(history, &assessment, limit, &name, at);
            if copies {
                leaks::from_ways(&mut seen);
            }
            seen
        };
        let Some(mut seen) = self.with_history(find).await else {
            return;
        };
        if self.plan.with_strings
            && let Means::Endpoint(scraper) = &mut self.means
        {
            self.sdk.show_keys(scraper, &mut seen).await;
        }
        let mut news = self.ledger.update(seen, at);
        if let Some(text) = self.follower.blind_spots() {
            self.event(EventKind::Warning { text }).await;
        }
        self.look_inside().await;
        self.explain(&mut news);
        self.tell(news).await;
        let mut findings = self.ledger.open();
        self.explain(&mut findings);
        let point = Point {
            target: self.name.clone(),
            at,
            gauges,
            profiles: self.profiles,
            findings,
        };
        self.send(Update::Point(point)).await;
    }

    /// Takes a copy of the heap where something is newly suspected, and again where it is
    /// called a leak, for what keeps it alive. Where the process is not on this machine, or
    /// may not be frozen, the finding does without.
    async fn look_inside(&mut self) {
        let Some(pid) = self.process.as_ref().map(Process::pid) else {
            return;
        };
        let mut asked = self.ledger.open();
        asked.retain(|f| !self.looked.contains(&(subject(f), f.tier)));
        let is_leak = asked.iter().any(|f| f.tier == Tier::Leaking);
        let too_early = self.looked_at.is_some_and(|t| t.elapsed() < LOOKS_GAP);
        if asked.is_empty() || too_early && !is_leak {
            return;
        }
        self.looked_at = Some(Instant::now());
        self.looked
            .extend(asked.iter().map(|f| (subject(f), f.tier)));
        let eyes = self.follower.eyes(&asked);
        match inside::look(pid, asked, eyes).await {
            Ok((told, saved)) => {
                self.explained.extend(told);
                if let Some(saved) = saved {
                    let kind = self.follower.saved(pid, saved);
                    self.event(kind).await;
                }
            }
            Err(error) => {
                let text = format!("what keeps it alive is not known: {error}");
                self.event(EventKind::Warning { text }).await;
            }
        }
    }

    /// Adds what a copy of the heap said.
    fn explain(&self, findings: &mut [Finding]) {
        for finding in findings {
            let Some(told) = self.explained.get(&subject(finding)) else {
                continue;
            };
            finding.type_name.clone_from(&told.type_name);
            finding.retained_bytes = told.retained_bytes;
            finding.retained_by.clone_from(&told.retained_by);
            finding.evidence.extend(told.evidence.iter().cloned());
            if let (Pattern::Growth, Some((pattern, advice))) = (finding.pattern, &told.cause) {
                (finding.pattern, finding.advice) = (*pattern, advice.clone());
            }
            for (key, value) in &told.tags {
                let tag = finding.tags.entry(key.clone());
                tag.or_insert_with(|| value.clone());
            }
        }
    }

    /// The heap profile, its bytes, and what was wrong with it.
    async fn heap(&mut self) -> Result<(Profile, Vec<u8>, Vec<Warning>), String> {
        let at = self.clock.now();
        match &mut self.means {
            Means::Endpoint(scraper) => {
                let fetched = scraper.heap().await.map_err(|e| e.to_string())?;
                let (parsed, body) = parse(fetched.body, self.keeper.is_some()).await;
                let parsed = parsed.map_err(|e| format!("{}: {e}", scraper.endpoint()))?;
                if !History::follows(&parsed.profile) {
                    let what = "a profile that does not tell what memory is in use";
                    return Err(format!("{}: {what}", scraper.endpoint()));
                }
                Ok((parsed.profile, body, parsed.warnings))
            }
            Means::Inside(inside) => {
                let profile = inside.heap(at).await.map_err(|e| e.to_string())?;
                let (profile, raw) = self.raw(profile).await?;
                Ok((profile, raw, Vec::new()))
            }
        }
    }

    /// A profile with its bytes, where they are kept.
    async fn raw(&self, profile: Profile) -> Result<(Profile, Vec<u8>), String> {
        if self.keeper.is_none() {
            return Ok((profile, Vec::new()));
        }
        let written = pool::run(move || {
            let raw = pprof::write(&profile);
            (profile, raw)
        });
        written
            .await
            .ok_or_else(|| "it cannot be written".to_owned())
    }

    /// Asks for what the stacks found call in the runtime. Where the service does not
    /// tell, the verdict does without.
    async fn learn_calls(&mut self) {
        let Means::Endpoint(scraper) = &mut self.means else {
            return;
        };
        if self.asked.is_some_and(|at| at.elapsed() < CALLS_GAP) {
            return;
        }
        self.asked = Some(Instant::now());
        if let Ok(calls) = runtime_calls::fetch(scraper, self.process.as_ref()).await {
            self.with_history(move |history| history.runtime_calls(&calls))
                .await;
        }
    }

    /// The goroutine profile, where it is time for one and the endpoint has one:
    /// without it the heap profile alone must do.
    async fn goroutines(&mut self, at: Time) -> Option<Taken> {
        let (profile, raw) = match &mut self.means {
            Means::Endpoint(scraper) => {
                let fetched = scraper.goroutines().await.ok()??;
                let (parsed, body) = parse(fetched.body, self.keeper.is_some()).await;
                (parsed.ok()?.profile, body)
            }
            Means::Inside(inside) => {
                let profile = inside.goroutines(at).await?;
                self.raw(profile).await.ok()?
            }
        };
        Some(Taken {
            kind: Kind::Goroutine,
            profile,
            raw,
        })
    }

    /// Gauges of the local process; notices that it was replaced.
    async fn process_gauges(&mut self) -> Gauges {
        if self.was_local && self.process.is_none() {
            self.successor().await;
        }
        let Some(process) = &self.process else {
            return Gauges::default();
        };
        match process.read() {
            Ok(mut gauges) => {
                if self.history.native_suspected()
                    && let Some(read) = process.rss_by_owner()
                    && let Ok(owners) = tokio::task::spawn_blocking(read).await
                {
                    gauges.extend(&owners);
                }
                gauges
            }
            Err(_) if process.check().is_ok() => Gauges::default(),
            Err(_) if matches!(self.target, Target::Pid(_)) => {
                let reason = format!("process {} has ended", process.pid());
                self.gone_for_good = true;
                self.cannot_read(reason).await;
                Gauges::default()
            }
            Err(_) => {
                self.successor().await;
                Gauges::default()
            }
        }
    }

    /// The process behind the address has gone; the same address may be served by another.
    async fn successor(&mut self) {
        self.process = None;
        let Ok(place) = self.target.attach(&self.plan.access).await else {
            return;
        };
        self.process = process(&place);
        self.code_read = false;
        if let Some(endpoint) = place.endpoint
            && let Means::Endpoint(known) = &self.means
            && endpoint != *known.endpoint()
            && let Ok(scraper) = Scraper::new(endpoint, self.plan.access.clone())
        {
            self.means = Means::Endpoint(Box::new(scraper));
        }
        if let Some(process) = &self.process {
            let (started, pid) = (process.started(), process.pid());
            self.history.restart(self.clock.now());
            self.history.started(started);
            self.restarted(format!("pid {pid} serves the address now"))
                .await;
            self.follow().await;
        }
    }

    async fn restarted(&mut self, reason: String) {
        self.sdk = Sdk::default();
        let mut closed = self.ledger.restart(self.clock.now());
        self.explain(&mut closed);
        self.event(EventKind::Restart { reason }).await;
        self.tell(closed).await;
    }

    async fn tell(&self, findings: Vec<Finding>) {
        for finding in findings {
            self.keep(Keep::Finding(Box::new(finding.clone()))).await;
            self.send(Update::Finding(finding)).await;
        }
    }

    async fn cannot_read(&mut self, reason: String) {
        if self.lost.is_none() {
            self.event(EventKind::Lost {
                reason: reason.clone(),
            })
            .await;
        }
        self.lost = Some(reason);
    }

    async fn event(&mut self, kind: EventKind) {
        let event = Event {
            at: self.clock.now(),
            kind,
        };
        self.keep(Keep::Event {
            target: self.name.clone(),
            event: event.clone(),
        })
        .await;
        self.send(Update::Event {
            target: self.name.clone(),
            event,
        })
        .await;
    }

    async fn send(&self, update: Update) {
        // Nobody listening any more is not this target's concern.
        let _ = self.updates.send(update).await;
    }

    async fn keep(&self, keep: Keep) {
        if let Some(keeper) = &self.keeper {
            // The writer has gone only when the watch is ending.
            let _ = keeper.send(keep).await;
        }
    }

    async fn end(mut self, watched: Duration) -> Outcome {
        let nothing = Follower::default();
        std::mem::replace(&mut self.follower, nothing).end().await;
        let mut findings = self.ledger.open();
        self.explain(&mut findings);
        for finding in &findings {
            self.keep(Keep::Finding(Box::new(finding.clone()))).await;
        }
        let summary = Summary {
            target: self.name.clone(),
            watched,
            settle: self.history.settings().settle,
            profiles: self.profiles,
            findings,
        };
        self.send(Update::Summary(summary)).await;
        Outcome {
            leaking: self.ledger.leaking(),
            profiles: self.profiles,
            lost: self.lost,
        }
    }
}

/// Reads a profile that a service sent; gives its bytes back where they are kept.
async fn parse(body: Vec<u8>, is_kept: bool) -> (Result<pprof::Parsed, String>, Vec<u8>) {
    let read = pool::run(move || {
        let parsed = pprof::parse_with(&body, &Limits::live());
        let raw = if is_kept { body } else { Vec::new() };
        (parsed.map_err(|e| e.to_string()), raw)
    });
    let cannot = || (Err("it cannot be read".to_owned()), Vec::new());
    read.await.unwrap_or_else(cannot)
}

/// The time of day, which never runs backwards: a clock that is set back must not
/// stop a series. It follows a clock that is set forward, and a machine that slept.
struct Clock {
    base: Time,
    since: Instant,
}

impl Clock {
    /// A jump of the time of day beyond this is followed, seconds.
    const JUMP: f64 = 5.0;

    fn new() -> Self {
        Self {
            base: now(),
            since: Instant::now(),
        }
    }

    fn now(&mut self) -> Time {
        let steady = self.base.plus(self.since.elapsed());
        let day = now();
        if day.since(steady) <= Self::JUMP {
            return steady;
        }
        *self = Self::new();
        day
    }
}

fn process(place: &Place) -> Option<Process> {
    place.pid.and_then(|pid| Process::open(pid).ok())
}

pub(crate) fn now() -> Time {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Time(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
