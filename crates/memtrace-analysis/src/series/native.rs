//! Growth of a process outside the Go heap, from the gauges of the process.
//!
//! These gauges are exact: no sampling noise has to be told from growth. What has to be
//! told apart is who grows. Resident memory follows a Go heap (garbage of up to the
//! heap's own size, and what the scavenger has not given back yet), so it only raises
//! the suspicion; a verdict needs readings by owner ([`Gauge::RssGo`] and the others).

use memtrace_model::{Gauge, Rate, SampleKind, Series, StackKey, Tier, Time};
use statkit::change::hinge;
use statkit::trend::{mann_kendall, theil_sen};

use super::store::Column;
use super::{Frame, History, StackGrowth, grew_along, minutes};
use crate::leaks::culprit;

/// Growth below this is the runtime's own bookkeeping, an arena, a library; bytes.
const LEAST: f64 = (16 << 20) as f64;
/// The same as a share of the resident memory at the start.
const LEAST_PART: f64 = 0.05;
/// A heap in use that grew by one byte explains so many resident ones: garbage up to
/// GOGC=100, and fragments.
const PER_HEAP_BYTE: f64 = 2.5;
/// Readings by owner, and their span in settle horizons, for a verdict.
const READINGS: usize = 3;
const GROWING_SPAN: f64 = 0.6;
const LEAKING_SPAN: f64 = 1.9;
/// Growth in each part of the span, as a share of the mean: what levels off is no leak.
const PACE: f64 = 0.35;
/// A reading may be lower than the one before by so much; bytes.
const WOBBLE: f64 = (1 << 20) as f64;
/// Go's own mappings, and the heap in use, grew by at most this share of what the
/// others did.
const GO_SHARE: f64 = 1.0 / PER_HEAP_BYTE;
/// Chance of so steady a rise of the resident memory.
const P: f64 = 1e-4;

/// Owners of memory that Go's heap does not know of, with their names.
const OWNERS: [(Gauge, &str); 3] = [
    (Gauge::RssBrk, "malloc's break segment"),
    (Gauge::RssArenas, "malloc's arenas"),
    (Gauge::RssAnon, "other mappings"),
];

impl History {
    /// Whether resident memory has outgrown what the heap in use explains: time to
    /// look whose it is.
    #[must_use]
    pub fn native_suspected(&self) -> bool {
        let (Some(rss), Some(heap)) = (self.gauge(Gauge::Rss), self.gauge(Gauge::HeapInuse)) else {
            return false;
        };
        let Some(lowest) = (0..rss.len()).min_by(|&a, &b| rss.values[a].total_cmp(&rss.values[b]))
        else {
            return false;
        };
        let (Some(now), Some(then)) = (rss.last(), value_at(heap, rss.times[lowest])) else {
            return false;
        };
        let grown = now.1 - rss.values[lowest];
        let in_use = (heap.last().map_or(0.0, |l| l.1) - then).max(0.0);
        grown >= LEAST && grown > PER_HEAP_BYTE * in_use
    }

    /// Growth outside the Go heap, where there is any.
    pub(super) fn native(&self) -> Option<StackGrowth> {
        let go = self.gauge(Gauge::RssGo)?;
        let rss = self.gauge(Gauge::Rss)?;
        let settle = self.settings.settle;
        let settled = self.started.map_or(Time(i64::MIN), |s| s.plus(settle / 2));
        let owners: Vec<(&Series, &str)> = OWNERS
            .iter()
            .filter_map(|(gauge, name)| Some((self.gauge(*gauge)?, *name)))
            .collect();
        let native = |at: Time| -> f64 { owners.iter().filter_map(|(s, _)| value_at(s, at)).sum() };

        // The longest run of readings up to now that never went down.
        let mut readings: Vec<(Time, f64)> = Vec::new();
        for &at in go.times.iter().rev().take_while(|t| **t >= settled) {
            let value = native(at);
            if readings
                .last()
                .is_some_and(|&(_, later)| value > later + WOBBLE)
            {
                break;
            }
            readings.push((at, value));
        }
        readings.reverse();
        let n = readings
            .len()
            .checked_sub(1)
            .filter(|n| n + 1 >= READINGS)?;
        let ((from, first), (to, last)) = (readings[0], readings[n]);
        let span = to.since(from);
        let growth = last - first;
        let resident = value_at(rss, from)?;
        let part =
            |k: usize, parts: usize| readings[n * (k + 1) / parts].1 - readings[n * k / parts].1;
        let parts = n.min(3);
        let steady = (0..parts).all(|k| part(k, parts) >= PACE * growth / parts as f64);
        let go_growth = value_at(go, to)? - value_at(go, from)?;
        let heap = self.gauge(Gauge::HeapInuse)?;
        let heap_growth = value_at(heap, to)? - value_at(heap, from)?;
        if span < GROWING_SPAN * settle.as_secs_f64()
            || growth < LEAST.max(LEAST_PART * resident)
            || !steady
            || go_growth.max(heap_growth) > GO_SHARE * growth
        {
            return None;
        }
        let since = rss.times.partition_point(|&t| t < from);
        let p = mann_kendall(&rss.values[since..])?.p_rise();
        if p > P {
            return None;
        }
        let t: Vec<f64> = readings.iter().map(|r| r.0.since(from) / 60.0).collect();
        let y: Vec<f64> = readings.iter().map(|r| r.1).collect();
        let line = theil_sen(&t, &y, 0.95)?;
        let onset = onset(rss);
        let tier = if span >= LEAKING_SPAN * settle.as_secs_f64() {
            Tier::Leaking
        } else {
            Tier::Growing
        };
        let mb = |bytes: f64| bytes / 1e6;
        let mut grown: Vec<(f64, &str)> = owners
            .iter()
            .filter_map(|(s, name)| Some((value_at(s, to)? - value_at(s, from)?, *name)))
            .filter(|(bytes, _)| *bytes >= growth / 20.0)
            .collect();
        grown.sort_by(|a, b| b.0.total_cmp(&a.0));
        let places: Vec<String> = grown
            .iter()
            .map(|(bytes, name)| format!("{name} by {:.0} MB", mb(*bytes)))
            .collect();
        Some(StackGrowth {
            key: StackKey(0),
            source: SampleKind::Process,
            tier,
            confidence: (1.0 - p).clamp(0.0, 0.9999),
            onset: onset.map(|o| o.0),
            onset_interval: onset.map(|o| o.1),
            rate_bytes_per_min: line.slope,
            rate_interval: [line.interval.0, line.interval.1],
            rate_objects_per_min: 0.0,
            live_bytes: last.max(0.0) as u64,
            live_objects: 0,
            explains: growth / (value_at(rss, to)? - resident).max(growth),
            points: readings
                .windows(2)
                .map(|w| Rate {
                    at: w[1].0,
                    objects_percent_per_min: 0.0,
                    mb_per_min: mb(w[1].1 - w[0].1) / (w[1].0.since(w[0].0) / 60.0),
                    suspicious: true,
                })
                .collect(),
            before_onset: Vec::new(),
            labels: Default::default(),
            evidence: vec![format!(
                "Within the last {}, memory outside the Go heap rose by {:.0} MB ({}); what the Go runtime \
                 holds changed by {:+.0} MB.",
                minutes(span),
                mb(growth),
                places.join(", "),
                mb(go_growth)
            )],
        })
    }

    /// Heap stacks that grew since a time, the one with most bytes first.
    pub(crate) fn grown_since(&self, since: Option<Time>) -> Vec<&[Frame]> {
        let from = since.and_then(|t| self.heap.point_at(t)).unwrap_or(0);
        let mut grown: Vec<_> = self
            .heap
            .columns
            .iter()
            .filter(|(_, column)| grew_along(column, from))
            .map(|(&key, column)| (column.last().bytes, key))
            .collect();
        grown.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        grown.iter().map(|(_, key)| self.frames(*key)).collect()
    }

    /// The heap stack with most live bytes on which the first own frame is `function`'s.
    pub(crate) fn live_stack_at(&self, function: &str) -> Option<&[Frame]> {
        let live = |(key, column): (&StackKey, &Column)| {
            let frames = self.frames(*key);
            let own = culprit(frames)?.function == function;
            (own && column.last().live > 0).then_some((column.last().bytes, *key))
        };
        let (_, key) = self.heap.columns.iter().filter_map(live).max()?;
        Some(self.frames(key))
    }

    /// Of the newest `last` goroutine profiles, the oldest first: the stack in it for
    /// which `is` holds.
    pub(crate) fn goroutines_in(
        &self,
        last: usize,
        is: fn(&[Frame]) -> bool,
    ) -> Vec<Option<&[Frame]>> {
        let lane = &self.goroutines;
        let stacks: Vec<_> = lane
            .columns
            .iter()
            .map(|(&key, column)| (self.frames(key), column))
            .filter(|(frames, _)| is(frames))
            .collect();
        (lane.times.len().saturating_sub(last)..lane.times.len())
            .map(|point| {
                stacks
                    .iter()
                    .find(|(_, c)| c.at(point).live > 0)
                    .map(|(frames, _)| *frames)
            })
            .collect()
    }

    /// Whether a function was seen to call another, on any stack with live memory.
    pub(crate) fn seen_calling(&self, caller: &str, is: fn(&str) -> bool) -> bool {
        self.heap.columns.keys().any(|&key| {
            self.frames(key)
                .windows(2)
                .any(|w| w[1].function == caller && is(&w[0].function))
        })
    }
}

/// The newest value at or before a time.
fn value_at(series: &Series, at: Time) -> Option<f64> {
    let i = series.times.partition_point(|&t| t <= at).checked_sub(1)?;
    series.values.get(i).copied()
}

/// Where resident memory bent upwards, and the 95 % interval.
fn onset(rss: &Series) -> Option<(Time, [Time; 2])> {
    let start = *rss.times.first()?;
    let t: Vec<f64> = rss.times.iter().map(|&x| x.since(start)).collect();
    let bend = hinge(&t, &rss.values, 3.84, t.len() as f64 / 2.0)?;
    let at = |seconds: f64| start.plus_ms((seconds * 1000.0) as i64);
    (bend.after > 0.0 && bend.before < 0.34 * bend.after)
        .then(|| (at(bend.at), [at(bend.interval.0), at(bend.interval.1)]))
}
