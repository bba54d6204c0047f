//! Growth over time: from successive profiles of one process to the stacks whose
//! memory grows, since when and how fast.
//!
//! ```text
//! Profile ──heap──▶ rows of sampled objects ──store──▶ cells per stack and point
//!                                                        │
//!          StackGrowth ◀── estimate ◀── leaking / growing┘
//! ```
//!
//! What is hidden here: the undoing of the sampler's scaling (noise is known only
//! of what was really sampled), the thinning of old points, and every threshold.
//! Two verdicts are given. [`Tier::Leaking`]: objects outlive the settle horizon
//! (or, under churn, live objects outgrow the load), the growth is spread over
//! longer than that horizon, and it goes on. [`Tier::Growing`]: a trend that load
//! does not explain, and that may still level off. Each is decided anew at every
//! point; thresholds are set so that a healthy service stays silent for years
//! (`cargo xtask accuracy` measures it).

mod array;
mod before;
mod bound;
mod estimate;
mod frames;
mod growing;
mod heap;
mod leaking;
mod native;
mod store;
mod tags;
#[cfg(test)]
mod tests;
mod window;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use memtrace_model::{Bound, Frame, Gauge, Gauges, Profile, Rate, SampleKind, Series, StackId};
use memtrace_model::{StackKey, Tier, Time};
use statkit::count::z_score;
use statkit::fdr::benjamini_hochberg;
use statkit::trend::{TheilSen, theil_sen};

pub use bound::{Exhaustion, time_to_bound};
pub use heap::sampled_share;
pub use store::Row;
pub use tags::TagGrowth;

use crate::leaks::Code;
use store::{Column, Lane};

/// How a process is judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Time between two profiles, as planned.
    pub interval: Duration,
    /// The settle horizon: the longest time in which a healthy lifetime, session,
    /// batch or cache of the service settles. A leak is proved only by what lasts
    /// longer.
    pub settle: Duration,
}

impl Settings {
    /// Settings for profiles every `interval`: a settle horizon of 20 minutes
    /// from 30 s on, shorter for shorter intervals (5 s: 100 s), at least 60 s.
    #[must_use]
    pub fn every(interval: Duration) -> Self {
        let seconds = (44.0 * interval.as_secs_f64() - 120.0).clamp(60.0, 1200.0);
        Self {
            interval,
            settle: Duration::from_secs_f64(seconds),
        }
    }
}

/// Everything known of one process over time, and what it says.
///
/// Memory is bounded, whatever the profiles hold: at most 4,096 stacks of each kind are
/// followed (of goroutines and labels 1,024, once there are many points), points older than
/// the newest 256 are thinned, and earlier where stacks are many; some 40 MB are never
/// exceeded, and a service of 500 stacks takes a tenth.
#[derive(Clone, Debug)]
pub struct History {
    settings: Settings,
    started: Option<Time>,
    heap: Lane,
    goroutines: Lane,
    gauges: HashMap<Gauge, Series>,
    restarts: Vec<Time>,
    frames: frames::Frames,
    /// Stacks found before the last restart.
    found_before: HashMap<StackKey, Tier>,
    code: Option<Code>,
    tags: tags::Tags,
    /// The heap by labels instead of stacks: under churn, the growth of one job among
    /// many equal ones shows here first.
    labelled: Lane,
    labels: HashMap<StackKey, heap::Labels>,
    goroutine_tags: tags::Tags,
    /// Live heap after garbage collections, exact.
    collections: Series,
}

/// What the history says at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assessment {
    /// The stacks that grow, the one that explains most first.
    pub stacks: Vec<StackGrowth>,
    /// Stacks too weak to be called by themselves that grew since one of `stacks`
    /// did. They count where the calls show that they belong to it: a map beside
    /// what it holds, goroutines beside what they hold.
    pub companions: Vec<StackGrowth>,
    /// Growth outside the Go heap, of [`SampleKind::Process`] and without a stack.
    pub native: Option<StackGrowth>,
    /// The process as a whole.
    pub process: ProcessGrowth,
}

/// Growth of the whole process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessGrowth {
    /// The rate is that of the live heap after garbage collections, as the service
    /// itself counts it, not of sampled profiles.
    pub exact: bool,
    /// In-use heap over all stacks, bytes per minute (Theil–Sen).
    pub rate_bytes_per_min: f64,
    /// 95 % interval of that rate.
    pub rate_interval: [f64; 2],
    /// In-use heap now, bytes.
    pub heap_bytes: u64,
    /// Goroutines now.
    pub goroutines: u64,
    /// Profiles in the present run.
    pub points: usize,
    /// Restarts seen.
    pub restarts: usize,
}

/// A stack that grows, with the evidence.
#[derive(Clone, Debug, PartialEq)]
pub struct StackGrowth {
    /// The stack; [`History::frames`] resolves it.
    pub key: StackKey,
    /// Heap or goroutines.
    pub source: SampleKind,
    /// How sure it is.
    pub tier: Tier,
    /// Probability that the growth is real, 0 to 1, over all stacks tested.
    pub confidence: f64,
    /// When it began; `None` when before the watch.
    pub onset: Option<Time>,
    /// 95 % interval of the onset.
    pub onset_interval: Option<[Time; 2]>,
    /// Growth of live bytes since the onset (0 for goroutines).
    pub rate_bytes_per_min: f64,
    /// 95 % interval of that rate.
    pub rate_interval: [f64; 2],
    /// Growth of live objects (goroutines).
    pub rate_objects_per_min: f64,
    /// Live bytes now (0 for goroutines).
    pub live_bytes: u64,
    /// Live objects (goroutines) now.
    pub live_objects: u64,
    /// Share of the growth of the process that this stack explains, 0 to 1.
    pub explains: f64,
    /// Rates at the newest points (for goroutines the MB are 0).
    pub points: Vec<Rate>,
    /// Up to three profiles just before the onset.
    pub before_onset: Vec<Time>,
    /// Labels (key, value) under which it grows, where the growth is that of all stacks
    /// under these labels and `key` is only the one that grew most.
    pub labels: Vec<(String, String)>,
    /// What was seen, in sentences.
    pub evidence: Vec<String>,
}

/// A stack explains at least this share of the growth, or it is not reported.
const LEAST_SHARE: f64 = 0.05;
/// A companion of a growing stack grew by so many samples, and by so many standard
/// deviations, at least; only the strongest are told.
const COMPANION_GROWTH: f64 = 3.0;
const COMPANION_Z: f64 = 2.0;
const MOST_COMPANIONS: usize = 64;
/// Size from which an array that grows is looked for, bytes.
const LARGE_ARRAY: u64 = 64 << 10;
/// False-discovery rate over the stacks of one process.
const FDR: f64 = 1e-3;
/// What a goroutine weighs beside memory, bytes: its stack, at first.
const GOROUTINE: u64 = 2048;
/// Bytes of the labels of all samples that are followed.
const LABEL_BYTES: usize = 2 << 20;
/// Points of a gauge that are kept.
const GAUGE_POINTS: usize = 512;

impl History {
    /// An empty history.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            started: None,
            heap: Lane::of_heap(),
            goroutines: Lane::default(),
            gauges: HashMap::new(),
            restarts: Vec::new(),
            frames: frames::Frames::default(),
            found_before: HashMap::new(),
            code: None,
            tags: tags::Tags::default(),
            labelled: Lane::default(),
            labels: HashMap::new(),
            goroutine_tags: tags::Tags::default(),
            collections: Series::default(),
        }
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Tells when the process started, where known: its warm-up, half a settle
    /// horizon, is left out when growth is looked for.
    pub fn started(&mut self, at: Time) {
        self.started = Some(at);
    }

    /// Whether a profile tells what is in use, so that [`heap`](Self::heap) can follow it.
    #[must_use]
    pub fn follows(profile: &Profile) -> bool {
        heap::columns_in_use(profile).is_some()
    }

    /// Adds a heap profile. Counters that fell mean a restart that nobody
    /// reported; it is noted, and `true` returned.
    pub fn heap(&mut self, at: Time, profile: &Profile) -> bool {
        let (rows, stacks) = heap::heap_rows(profile);
        let restarted = self.heap_rows(at, &rows);
        self.resolve(profile, &rows, &stacks);
        let objects = profile.sample_type("inuse_objects");
        if let Some((objects, bytes)) = objects.zip(profile.sample_type("inuse_space")) {
            self.tags.push(at, profile, objects, Some(bytes));
            self.labelled(at, profile);
        }
        restarted
    }

    fn labelled(&mut self, at: Time, profile: &Profile) {
        let (rows, samples) = heap::label_rows(profile);
        if rows.is_empty() && self.labelled.times.is_empty() {
            return;
        }
        let size = |labels: &heap::Labels| -> usize {
            let text = |(key, value): &(String, String)| key.len() + value.len();
            labels.iter().map(|l| text(l) + size_of_val(l)).sum()
        };
        self.labelled.push(at, &rows, |r| r.bytes as f64);
        let followed = &self.labelled.columns;
        self.labels.retain(|key, _| followed.contains_key(key));
        let mut bytes: usize = self.labels.values().map(size).sum();
        for (row, &sample) in rows.iter().zip(&samples) {
            if !followed.contains_key(&row.key) || self.labels.contains_key(&row.key) {
                continue;
            }
            let labels = heap::labels(profile, sample);
            bytes += size(&labels);
            if bytes > LABEL_BYTES {
                // What is left out says nothing of its labels.
                break;
            }
            self.labels.insert(row.key, labels);
        }
    }

    /// Adds a heap profile as rows of sampled objects, one for each stack.
    pub fn heap_rows(&mut self, at: Time, rows: &[Row]) -> bool {
        let restarted = self.heap.counters_fell(rows);
        if restarted {
            self.restart(at);
        }
        self.heap.push(at, rows, |r| r.bytes as f64);
        restarted
    }

    /// Adds a goroutine profile.
    pub fn goroutines(&mut self, at: Time, profile: &Profile) {
        let (rows, stacks) = heap::goroutine_rows(profile);
        self.goroutines.push(at, &rows, |r| r.live as f64);
        self.resolve(profile, &rows, &stacks);
        if let Some(count) = profile.sample_type("goroutine") {
            self.goroutine_tags.push(at, profile, count, None);
        }
    }

    /// Adds a reading of the gauges.
    pub fn gauges(&mut self, at: Time, gauges: &Gauges) {
        for (gauge, value) in gauges.iter() {
            let series = self.gauges.entry(gauge).or_default();
            series.push(at, value);
            if series.len() > GAUGE_POINTS {
                thin(series);
            }
        }
    }

    /// Adds a garbage collection: when it ended, and the bytes that it found alive.
    pub fn collection(&mut self, end: Time, live: f64) {
        self.collections.push(end, live);
        if self.collections.len() > GAUGE_POINTS {
            thin(&mut self.collections);
        }
    }

    /// The process was restarted: what follows is a new series, never compared
    /// with what was before.
    pub fn restart(&mut self, at: Time) {
        let found = self.assess();
        self.found_before
            .extend(found.stacks.iter().map(|s| (s.key, s.tier)));
        self.heap = Lane::of_heap();
        self.goroutines = Lane::default();
        self.gauges.clear();
        // Another build may have been started.
        self.code = None;
        self.tags = tags::Tags::default();
        self.labelled = Lane::default();
        self.labels.clear();
        self.goroutine_tags = tags::Tags::default();
        self.collections = Series::default();
        self.restarts.push(at);
        self.started = Some(at);
    }

    /// Frames of a stack, the leaf first; empty when it was never seen alive.
    #[must_use]
    pub fn frames(&self, key: StackKey) -> &[Frame] {
        self.frames.get(key)
    }

    /// Whose growth it is, by label, that these stacks grew since `onset` (`None`: since
    /// the beginning of the watch); the labels that grew most first, none where the
    /// samples have no labels.
    #[must_use]
    pub fn tags(
        &self,
        source: SampleKind,
        stacks: &[StackKey],
        onset: Option<Time>,
    ) -> Vec<TagGrowth> {
        match source {
            SampleKind::Goroutine => self.goroutine_tags.growth(stacks, onset),
            _ => self.tags.growth(stacks, onset),
        }
    }

    /// Values of a gauge in the present run, where it was read.
    #[must_use]
    pub fn gauge(&self, gauge: Gauge) -> Option<&Series> {
        self.gauges.get(&gauge)
    }

    /// Whether a stack of `assessment` hides what it calls in the runtime, and
    /// [`Self::runtime_calls`] was not told of it yet.
    #[must_use]
    pub fn hides_calls(&self, assessment: &Assessment) -> bool {
        let mut stacks = assessment.stacks.iter();
        stacks.any(|s| s.source == SampleKind::Heap && self.frames.hides_calls(s.key))
    }

    /// Tells what stacks call in the runtime, which the profile leaves out: for the
    /// functions and lines that are shown (the leaf first), the functions below
    /// them. Every stack seen so far counts as told.
    pub fn runtime_calls(&mut self, calls: &HashMap<Vec<(String, i64)>, Vec<Arc<str>>>) {
        self.frames.runtime_calls(calls);
    }

    /// Tells what the program's code calls; a restart forgets it.
    pub fn set_code(&mut self, code: Code) {
        self.code = Some(code);
    }

    /// What the program's code calls, where it was told.
    #[must_use]
    pub fn code(&self) -> Option<&Code> {
        self.code.as_ref()
    }

    fn resolve(&mut self, profile: &Profile, rows: &[Row], stacks: &[StackId]) {
        let (heap, goroutines) = (&self.heap.columns, &self.goroutines.columns);
        self.frames.add(profile, rows, stacks, |key| {
            let bytes = heap.get(&key).map_or(0, |c| c.last().bytes);
            let count = goroutines.get(&key).map_or(0, |c| c.last().objects);
            bytes.max(count.saturating_mul(GOROUTINE))
        });
        let followed = heap.len() + goroutines.len();
        self.frames.retain(followed, |key| {
            heap.contains_key(&key) || goroutines.contains_key(&key)
        });
    }

    /// What can be said now: every stack that grows, decided from the points so
    /// far alone.
    #[must_use]
    pub fn assess(&self) -> Assessment {
        let mut stacks = self.assess_lane(&self.heap, SampleKind::Heap);
        self.assess_labels(&mut stacks);
        let companions = self.companions(&stacks);
        stacks.extend(self.assess_lane(&self.goroutines, SampleKind::Goroutine));
        stacks.sort_by(|a, b| {
            (b.tier, b.explains)
                .partial_cmp(&(a.tier, a.explains))
                .unwrap_or(std::cmp::Ordering::Equal)
                .then(a.key.cmp(&b.key))
        });
        Assessment {
            process: self.process(&stacks),
            native: self.native(),
            stacks,
            companions,
        }
    }

    /// Adds what grows under some labels to the stacks that were found to grow: at the
    /// stack where it grew most, unless that was found with the same certainty.
    fn assess_labels(&self, stacks: &mut Vec<StackGrowth>) {
        for growth in self.assess_lane(&self.labelled, SampleKind::Heap) {
            let Some(labels) = self.labels.get(&growth.key) else {
                continue;
            };
            let Some(key) = self.tags.main_stack(labels, growth.onset) else {
                continue;
            };
            if stacks.iter().any(|s| s.key == key && s.tier >= growth.tier) {
                continue;
            }
            stacks.retain(|s| s.key != key);
            stacks.push(StackGrowth {
                key,
                labels: labels.clone(),
                ..growth
            });
        }
    }

    /// What grew since the strongest of `found` began to, without being found itself.
    fn companions(&self, found: &[StackGrowth]) -> Vec<StackGrowth> {
        let strongest = found
            .iter()
            .max_by(|a, b| a.explains.total_cmp(&b.explains));
        let Some(first) = strongest else {
            return Vec::new();
        };
        let since = |lane: &Lane| first.onset.and_then(|t| lane.point_at(t)).unwrap_or(0);
        let mut all = Vec::new();
        for (lane, source) in [
            (&self.heap, SampleKind::Heap),
            (&self.goroutines, SampleKind::Goroutine),
        ] {
            if lane.times.is_empty() {
                continue;
            }
            let from = since(lane);
            let mut weak: Vec<(u64, StackKey, &Column)> = lane
                .columns
                .iter()
                .filter(|(key, _)| found.iter().all(|s| s.key != **key))
                .filter(|(_, column)| match source {
                    SampleKind::Heap => grew_along(column, from),
                    _ => piled_up(column, from, lane.times.len() - 1),
                })
                .map(|(&key, column)| (column.last().bytes.max(column.last().objects), key, column))
                .collect();
            weak.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
            weak.truncate(MOST_COMPANIONS);
            let mut some: Vec<StackGrowth> = weak
                .into_iter()
                .map(|(_, key, column)| companion(lane, key, source, column, from, first))
                .collect();
            share_out(lane, from, source, &mut some);
            all.extend(some);
        }
        all
    }

    fn assess_lane(&self, lane: &Lane, source: SampleKind) -> Vec<StackGrowth> {
        if lane.times.is_empty() {
            return Vec::new();
        }
        let settle = self.settings.settle.as_secs_f64();
        // A process that has just begun grows by its nature.
        let settled = self.started.map(|s| s.plus(self.settings.settle / 2));
        let windows = window::Window::all(lane, settle, settled);
        let spans = growing::Spans::of(lane, settle, settled);
        let heap = &self.heap;
        let load = |point: usize| process_load(heap, lane, point, settle);
        let mut verdicts: Vec<Verdict> = Vec::new();
        let mut tested = 0usize;
        for (&key, column) in &lane.columns {
            tested += usize::from(column.last().live >= 8);
            if let Some(leak) = leaking::leaking(lane, &windows, column, settle) {
                verdicts.push(Verdict {
                    key,
                    tier: Tier::Leaking,
                    p: leak.p,
                    from: leak.from,
                    evidence: leak_sentence(&leak, settle),
                });
            } else if let Some(g) = growing::growing(lane, &spans, column, settle, &load) {
                let leaks = g.settled && source == SampleKind::Goroutine;
                verdicts.push(Verdict {
                    key,
                    tier: if leaks { Tier::Leaking } else { Tier::Growing },
                    p: g.p,
                    from: g.from,
                    evidence: growth_sentence(&g, source),
                });
            } else if source == SampleKind::Heap
                && let Some(a) = array::growing_array(lane, column, &load)
            {
                let settled = a.seconds >= 1.9 * settle;
                verdicts.push(Verdict {
                    key,
                    tier: if settled {
                        Tier::Leaking
                    } else {
                        Tier::Growing
                    },
                    p: a.p,
                    from: a.from,
                    evidence: array_sentence(&a),
                });
            }
        }
        // Stacks too small to be tested count for nothing; the rest is what
        // chance had to choose from.
        let mut p: Vec<f64> = verdicts.iter().map(|v| v.p).collect();
        p.resize(tested.max(p.len()), 1.0);
        let adjusted = benjamini_hochberg(&p);
        let mut found: Vec<StackGrowth> = verdicts
            .iter()
            .zip(adjusted)
            .filter(|(_, q)| *q <= FDR)
            .filter_map(|(v, q)| Some(self.describe(lane, source, v, q, lane.columns.get(&v.key)?)))
            .collect();
        let from = verdicts.iter().map(|v| v.from).min().unwrap_or(0);
        share_out(lane, from, source, &mut found);
        found.retain(|s| s.explains >= LEAST_SHARE);
        found
    }

    fn describe(
        &self,
        lane: &Lane,
        source: SampleKind,
        verdict: &Verdict,
        q: f64,
        column: &Column,
    ) -> StackGrowth {
        let onset = estimate::onset(lane, column, verdict.from);
        let from = onset.map_or(verdict.from, |o| o.point);
        let slope = estimate::slope(lane, column, from);
        let now = column.last();
        let mut evidence = vec![verdict.evidence.clone()];
        if self.found_before.contains_key(&verdict.key) {
            evidence.push("The same stack grew before the last restart.".to_owned());
        }
        StackGrowth {
            key: verdict.key,
            source,
            tier: verdict.tier,
            confidence: (1.0 - q).clamp(0.0, 0.9999),
            onset: onset.map(|o| o.at),
            onset_interval: onset.map(|o| o.interval),
            rate_bytes_per_min: slope.bytes_per_min,
            rate_interval: slope.interval,
            rate_objects_per_min: slope.objects_per_min,
            live_bytes: now.bytes,
            live_objects: now.objects,
            explains: 0.0,
            points: estimate::points(lane, column, onset.map(|o| o.point)),
            before_onset: onset.map_or_else(Vec::new, |o| {
                lane.times[o.point.saturating_sub(2)..=o.point].to_vec()
            }),
            labels: Vec::new(),
            evidence,
        }
    }

    fn process(&self, stacks: &[StackGrowth]) -> ProcessGrowth {
        let lane = &self.heap;
        let since = stacks
            .iter()
            .filter_map(|s| s.onset)
            .min()
            .and_then(|t| lane.point_at(t))
            .unwrap_or(0);
        let (mut t, mut y) = (Vec::new(), Vec::new());
        if !lane.times.is_empty() {
            let seen = estimate::fresh(lane, since);
            let n = seen.len().min(48);
            for (i, at) in (0..n).map(|i| seen[(seen.len() - 1) * i / (n - 1).max(1)]) {
                t.push(at.since(lane.times[since]) / 60.0);
                y.push(lane.totals[i]);
            }
        }
        let exact = self.after_collections(lane.times.get(since).copied());
        let line = theil_sen(&t, &y, 0.95);
        let line = exact.or(line);
        ProcessGrowth {
            exact: exact.is_some(),
            rate_bytes_per_min: line.map_or(0.0, |l| l.slope),
            rate_interval: line.map_or([0.0; 2], |l| [l.interval.0, l.interval.1]),
            heap_bytes: lane.totals.last().map_or(0, |&v| v as u64),
            goroutines: self.goroutines.totals.last().map_or(0, |&v| v as u64),
            points: lane.times.len(),
            restarts: self.restarts.len(),
        }
    }

    /// Slope of the live heap after garbage collections since then, bytes per minute,
    /// where the service tells of enough of them.
    fn after_collections(&self, since: Option<Time>) -> Option<TheilSen> {
        const ENOUGH: usize = 8;
        const MOST: usize = 48;
        let from = since.map_or(0, |t| self.collections.times.partition_point(|&c| c < t));
        let (times, values) = (
            &self.collections.times[from..],
            &self.collections.values[from..],
        );
        if times.len() < ENOUGH {
            return None;
        }
        let n = times.len().min(MOST);
        let some = (0..n).map(|i| (times.len() - 1) * i / (n - 1));
        let (t, y): (Vec<f64>, Vec<f64>) = some
            .map(|i| (times[i].since(times[0]) / 60.0, values[i]))
            .unzip();
        theil_sen(&t, &y, 0.95)
    }

    /// When the process will be stopped by the tightest of its limits, given what
    /// `assessment` found; `user_limit` is a further limit in bytes. `None` when
    /// no stack grows, or no limit is known.
    #[must_use]
    pub fn exhaustion(
        &self,
        assessment: &Assessment,
        user_limit: Option<u64>,
    ) -> Option<Exhaustion> {
        let (now, heap) = (*self.heap.times.last()?, *self.heap.totals.last()?);
        let found = || assessment.stacks.iter().chain(&assessment.native);
        found().next()?;
        let value = |g: Gauge| Some(self.gauges.get(&g)?.last()?.1).filter(|v| *v > 0.0);
        // What counts against a limit, where it is known. Without the process's own
        // figure: what GOGC=100 lets the heap become.
        let used = |gauges: &[Gauge]| {
            let known = gauges.iter().find_map(|&g| Some((Some(g), value(g)?)));
            known.unwrap_or((None, 2.0 * heap))
        };
        let own = used(&[Gauge::Rss, Gauge::RuntimeSys, Gauge::CgroupUsage]);
        let group = used(&[Gauge::CgroupUsage, Gauge::Rss, Gauge::RuntimeSys]);
        let runtime = used(&[Gauge::RuntimeSys, Gauge::Rss, Gauge::CgroupUsage]);
        // On the host others take memory, too; how fast this one grows is its own figure.
        let host = value(Gauge::HostTotal).zip(value(Gauge::HostAvailable));
        let host = host.map(|(total, free)| (total, total - free));
        let bounds = [
            ("cgroup", value(Gauge::CgroupLimit), group, group.1),
            ("GOMEMLIMIT", value(Gauge::RuntimeLimit), runtime, runtime.1),
            ("--limit", user_limit.map(|l| l as f64), own, own.1),
            ("host", host.map(|h| h.0), own, host.map_or(0.0, |h| h.1)),
        ];
        let since = found().filter_map(|s| s.onset).min();
        let ends = bounds
            .into_iter()
            .filter_map(|(kind, bytes, (gauge, own), used)| {
                // No limit is written as a number near 2^63.
                let bytes = bytes.filter(|b| *b < (1u64 << 60) as f64)?;
                let bound = Bound {
                    kind: kind.to_owned(),
                    bytes: bytes as u64,
                    used: used.max(0.0) as u64,
                };
                let measured = gauge
                    .and_then(|g| self.gauges.get(&g))
                    .and_then(|s| usage_slope(s, since));
                let (rate, interval) = match measured {
                    Some((rate, low, high)) if low > 0.0 => (rate, [low, high]),
                    _ => {
                        let p = &assessment.process;
                        let times = if heap > 0.0 {
                            (own / heap).clamp(1.0, 3.0)
                        } else {
                            2.0
                        };
                        (
                            p.rate_bytes_per_min * times,
                            [p.rate_interval[0] * times, p.rate_interval[1] * times],
                        )
                    }
                };
                time_to_bound(now, rate, interval, bound)
            });
        ends.min_by_key(|e| e.oom_at)
    }
}

/// Whether a heap stack grew since point `from`: by samples, or as one large array
/// does, which is one object however far it grows.
fn grew_along(column: &Column, from: usize) -> bool {
    let (a, b) = (column.at(from), column.last());
    let growth = f64::from(b.live) - f64::from(a.live);
    let births = f64::from(b.births - a.births);
    let events = (2.0 * births - growth).min(f64::from(a.live) + f64::from(b.live));
    let samples = growth >= COMPANION_GROWTH && z_score(growth, events) >= COMPANION_Z;
    let array =
        b.bytes >= LARGE_ARRAY * b.objects.max(1) && b.bytes >= a.bytes + a.bytes / 2 + LARGE_ARRAY;
    samples || array
}

/// Whether goroutines at a stack became more in each profile since point `from`:
/// their count is exact.
fn piled_up(column: &Column, from: usize, last: usize) -> bool {
    let live = |i: usize| f64::from(column.at(i).live);
    last >= from + 2
        && (from..last).all(|i| live(i + 1) >= live(i))
        && (from + 1..last).all(|i| live(i + 1) > live(i))
        && live(last) >= 2.0 * live(from) + 20.0
}

fn companion(
    lane: &Lane,
    key: StackKey,
    source: SampleKind,
    column: &Column,
    from: usize,
    first: &StackGrowth,
) -> StackGrowth {
    let slope = estimate::slope(lane, column, from);
    let now = column.last();
    StackGrowth {
        key,
        source,
        tier: Tier::Growing,
        confidence: 0.0,
        onset: first.onset,
        onset_interval: first.onset_interval,
        rate_bytes_per_min: slope.bytes_per_min,
        rate_interval: slope.interval,
        rate_objects_per_min: slope.objects_per_min,
        live_bytes: now.bytes,
        live_objects: now.objects,
        explains: 0.0,
        points: estimate::points(lane, column, Some(from)),
        before_onset: first.before_onset.clone(),
        labels: Vec::new(),
        evidence: Vec::new(),
    }
}

struct Verdict {
    key: StackKey,
    tier: Tier,
    p: f64,
    from: usize,
    evidence: String,
}

/// Shares of the growth since point `from`: of the growth of the process, or of
/// what the growing stacks add up to where that is more (others may have shrunk).
fn share_out(lane: &Lane, from: usize, source: SampleKind, found: &mut [StackGrowth]) {
    let last = lane.times.len().saturating_sub(1);
    let grown = |key: StackKey| {
        let Some(column) = lane.columns.get(&key) else {
            return 0.0;
        };
        let (a, b) = (column.at(from), column.at(last));
        match source {
            SampleKind::Heap => b.bytes as f64 - a.bytes as f64,
            _ => f64::from(b.live) - f64::from(a.live),
        }
        .max(0.0)
    };
    let shares: Vec<f64> = found.iter().map(|s| grown(s.key)).collect();
    let process = lane.totals[last] - lane.totals[from.min(last)];
    let whole = shares.iter().sum::<f64>().max(process);
    for (stack, share) in found.iter_mut().zip(shares) {
        stack.explains = if whole > 0.0 { share / whole } else { 0.0 };
    }
}

/// By how much the births of the process multiplied between a point of `lane`
/// and now; 1 where the heap does not tell.
fn process_load(heap: &Lane, lane: &Lane, point: usize, settle: f64) -> f64 {
    let rate = |at: Time| {
        let to = heap.point_at(at)?;
        let lag = Time(at.0.saturating_sub((settle * 500.0) as i64));
        let from = heap.point_at(lag).unwrap_or(0);
        let dt = heap.times[to].since(heap.times[from]);
        (dt > 0.0).then(|| (heap.total_births[to] - heap.total_births[from]) / dt)
    };
    let (Some(&then), Some(&now)) = (lane.times.get(point), lane.times.last()) else {
        return 1.0;
    };
    match (rate(then), rate(now)) {
        (Some(a), Some(b)) if a > 0.0 => (b / a).max(1.0),
        _ => 1.0,
    }
}

/// Slope of a gauge since a time, with its interval, per minute.
fn usage_slope(series: &Series, since: Option<Time>) -> Option<(f64, f64, f64)> {
    let first = since.map_or(0, |t| series.times.partition_point(|&x| x < t));
    let n = series.len().checked_sub(first)?;
    if n < 8 {
        return None;
    }
    let m = n.min(64);
    let pick = |i: usize| first + (n - 1) * i / (m - 1);
    let start = series.times[first];
    let t: Vec<f64> = (0..m)
        .map(|i| series.times[pick(i)].since(start) / 60.0)
        .collect();
    let y: Vec<f64> = (0..m).map(|i| series.values[pick(i)]).collect();
    let line = theil_sen(&t, &y, 0.95)?;
    Some((line.slope, line.interval.0, line.interval.1))
}

fn thin(series: &mut Series) {
    let half = series.len() / 2;
    for i in 0..half / 2 {
        series.times[i] = series.times[2 * i];
        series.values[i] = series.values[2 * i];
    }
    series.times.drain(half / 2..half);
    series.values.drain(half / 2..half);
}

fn minutes(seconds: f64) -> String {
    if seconds < 90.0 {
        format!("{seconds:.0} s")
    } else {
        format!("{:.0} min", seconds / 60.0)
    }
}

fn leak_sentence(leak: &leaking::Leak, settle: f64) -> String {
    let (span, z) = (minutes(leak.seconds), leak.z);
    match leak.survivors {
        Some(n) => format!(
            "Within the last {span}, at least {n:.0} sampled objects outlived {}, and their \
             number still rises ({z:.1} standard deviations above chance).",
            minutes(settle)
        ),
        None => format!(
            "Within the last {span}, live objects rose by {:.0} samples more than the \
             allocations explain ({z:.1} standard deviations above chance).",
            leak.growth
        ),
    }
}

fn array_sentence(array: &array::Array) -> String {
    let span = minutes(array.seconds);
    format!(
        "Within the last {span}, one array grew {:.1} times in {} steps, and none was taken back.",
        array.times, array.steps
    )
}

fn growth_sentence(growth: &growing::Growth, source: SampleKind) -> String {
    let (span, z) = (minutes(growth.seconds), growth.z);
    match source {
        SampleKind::Goroutine => {
            format!("Goroutines at this stack rose steadily for {span}, beyond what load explains.")
        }
        _ => format!(
            "Live objects rose steadily for {span} ({z:.1} standard deviations above chance), \
             beyond what load explains."
        ),
    }
}
