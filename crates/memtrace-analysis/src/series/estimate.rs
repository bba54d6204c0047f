//! Since when, and how fast.

use memtrace_model::{Rate, Time};
use statkit::change::{Hinge, hinge, rate_change};
use statkit::trend::{least_squares, median, robust_deviation};

use super::store::{Column, Lane};

/// The bend in a stack's series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Onset {
    pub at: Time,
    pub interval: [Time; 2],
    /// The last point before it.
    pub point: usize,
}

/// The growth of a stack since a point.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Slope {
    pub bytes_per_min: f64,
    pub interval: [f64; 2],
    pub objects_per_min: f64,
}

/// When the growth that shows since point `from` began; `None` when it was there
/// already when the watch began.
pub(super) fn onset(lane: &Lane, column: &Column, from: usize) -> Option<Onset> {
    let last = lane.times.len().checked_sub(1)?;
    let span = lane.times[last].since(lane.times[from]);
    // Look back a few times the window, then over everything: an old bend must
    // not outweigh the one that began the present growth.
    let mut begun: Option<usize> = None;
    for reach in [3.0, 9.0, f64::INFINITY] {
        let since = if reach.is_finite() {
            let at = lane.times[last].0 as f64 - reach * span * 1000.0;
            lane.point_at(Time(at as i64)).unwrap_or(0)
        } else {
            0
        };
        if begun == Some(since) {
            break;
        }
        begun = Some(since);
        if let Some(found) = bend(lane, column, since, last) {
            return Some(found);
        }
    }
    None
}

fn bend(lane: &Lane, column: &Column, since: usize, last: usize) -> Option<Onset> {
    if last < since + 6 {
        return None;
    }
    let start = lane.times[since];
    let t: Vec<f64> = (since..=last).map(|i| lane.times[i].since(start)).collect();
    let (a, b) = (column.at(since), column.at(last));
    let births = f64::from(b.births - a.births);
    let deaths = births - (f64::from(b.live) - f64::from(a.live));
    if column.counted && deaths <= 0.05 * births {
        // Nothing dies: births are the growth, and their rate is Poisson.
        let count: Vec<f64> = (since..=last)
            .map(|i| f64::from(column.at(i).births))
            .collect();
        // The likelihood falls off on one side only where nothing came before:
        // twice the usual 1.92 less what its own maximum costs.
        let found = rate_change(&t, &count, 3.0)?;
        let (low, high) = found.interval;
        if found.gain < 6.0 || found.before > 0.34 * found.after || found.index == 0 {
            return None;
        }
        // A profile shows the state of the last GC: where values stand still for
        // several profiles, the first count was gathered over as many.
        let stale = standing(&count[found.index..]);
        let next = found.index + 1;
        let gathered = (count[next] - count[found.index]) / found.after;
        let at = (t[next] - gathered).clamp(t[next.saturating_sub(stale)], t[next]);
        let high = t[(high + 1).min(t.len() - 1)].max(at);
        let lag = lag(lane, since + next);
        let low = t[low.saturating_sub(stale)].min(at) - lag;
        let at = at - lag;
        return Some(Onset {
            at: later(start, at),
            interval: [later(start, low), later(start, high)],
            point: since + found.index,
        });
    }
    let y: Vec<f64> = (since..=last)
        .map(|i| f64::from(column.at(i).live))
        .collect();
    let whole = bent(&t, &y)?;
    // A leak of chance walks away from its line, the further the longer: look
    // again at the bend alone, just long enough to rise clear of the churn.
    let at = t.partition_point(|&x| x <= whole.at).clamp(1, t.len() - 1);
    let churn = robust_deviation(&y[..at]);
    let near = (30.0 + 10.0 * churn) / whole.after;
    let from = t.partition_point(|&x| x < whole.at - 2.0 * near);
    let to = t.partition_point(|&x| x <= whole.at + near);
    let close = (to - from >= 12)
        .then(|| bent(&t[from..to], &y[from..to]))
        .flatten();
    let (found, t, y, since) = match close {
        Some(found) => (found, &t[from..to], &y[from..to], since + from),
        None => (whole, &t[..], &y[..], since),
    };
    let before = t.partition_point(|&x| x <= found.at).saturating_sub(1);
    // The profile of the fit takes the points as independent. The walk adds the
    // error of a line's end, √(2/15) of the root of the events, and a GC.
    let end = t[t.len() - 1];
    let step = (end - t[0]) / (t.len() - 1) as f64;
    let events = found.after * (end - found.at).max(0.0);
    let walk = 1.96 * (1.0 + 2.0 / 15.0 * events).sqrt() / found.after
        + step * standing(&y[before..]) as f64;
    let lag = lag(lane, since + before + 1);
    let low = found.at - lag - (found.at - found.interval.0).hypot(walk);
    let high = found.at + (found.interval.1 - found.at).hypot(walk);
    Some(Onset {
        at: later(start, found.at - lag),
        interval: [
            later(start, low.max(0.0)),
            later(start, high.min(lane.times[last].since(start))),
        ],
        point: since + before,
    })
}

/// A bend upwards from next to nothing, which explains clearly more than one
/// straight line does.
fn bent(t: &[f64], y: &[f64]) -> Option<Hinge> {
    let freedom = (y.len() as f64 / 3.0).max(3.0);
    let found = hinge(t, y, 3.84, freedom)?;
    (found.after > 0.0
        && found.before <= 0.34 * found.after
        && found.sse <= 0.8 * found.line_sse
        && found.at > t[1])
        .then_some(found)
}

/// For how many points values stand still between two changes, typically; at
/// least 1.
fn standing(values: &[f64]) -> usize {
    let mut gaps: Vec<f64> = Vec::new();
    let mut run = 1.0;
    for pair in values.windows(2) {
        if pair[0] == pair[1] {
            run += 1.0;
        } else {
            gaps.push(run);
            run = 1.0;
        }
    }
    (median(&gaps) as usize).max(1)
}

fn later(start: Time, seconds: f64) -> Time {
    start.plus_ms((seconds * 1000.0).round() as i64)
}

/// The points since `from` at which the heap profile was new, each with the time that
/// it tells of. Go publishes at the end of each garbage collection what was alive at
/// the end of the one before (`mProf_NextCycle` in its runtime): a new profile tells
/// of the moment at which the last one was new. Repeated until the next, or taken for
/// the present, it would flatten every slope, as collections become rarer in a heap
/// that grows. Where few are new since `from`, earlier ones are added: a single step
/// has no slope. All points, as they are, where there are too few at all.
pub(super) fn fresh(lane: &Lane, from: usize) -> Vec<(usize, Time)> {
    let last = lane.times.len().saturating_sub(1);
    let news = |i: &usize| {
        *i == 0
            || lane.totals[*i] != lane.totals[i - 1]
            || lane.total_births[*i] != lane.total_births[i - 1]
    };
    const LEAST: usize = 6;
    let after = (from + 1..=last).filter(news).count();
    let before = (0..=from)
        .rev()
        .filter(news)
        .take(2.max(LEAST.saturating_sub(after)));
    let mut points: Vec<usize> = before.collect();
    points.reverse();
    points.extend((from + 1..=last).filter(news));
    if points.len() < LEAST - 1 {
        return (from..=last).map(|i| (i, lane.times[i])).collect();
    }
    let gap = |k: usize| lane.times[points[k]].since(lane.times[points[k - 1]]);
    let mut lag = f64::INFINITY;
    (1..points.len())
        .map(|k| {
            // A collection in which nothing changed is not seen; the gap behind it is
            // no lag. Collections become rarer, but not at once.
            let next = if k + 1 < points.len() {
                gap(k + 1)
            } else {
                2.0 * lag
            };
            lag = gap(k).min(next);
            let at = lane.times[points[k]].plus_ms((-1000.0 * lag) as i64);
            (points[k], at)
        })
        .collect()
}

/// How old the news of the first new profile at or after `point` was, seconds; none
/// where collections are as frequent as profiles.
fn lag(lane: &Lane, point: usize) -> f64 {
    let interval = lane.interval();
    fresh(lane, 0)
        .into_iter()
        .find(|&(i, _)| i >= point)
        .map(|(i, at)| lane.times[i].since(at))
        .filter(|&lag| lag > 1.5 * interval)
        .unwrap_or(0.0)
}

/// Growth of live bytes and objects since point `from`.
pub(super) fn slope(lane: &Lane, column: &Column, from: usize) -> Slope {
    let Some(last) = lane.times.len().checked_sub(1) else {
        return Slope::default();
    };
    let from = from.min(last);
    let start = lane.times[from];
    let seen = if column.counted {
        fresh(lane, from)
    } else {
        (from..=last).map(|i| (i, lane.times[i])).collect()
    };
    let t: Vec<f64> = seen.iter().map(|(_, at)| at.since(start) / 60.0).collect();
    let of = |value: &dyn Fn(usize) -> f64| {
        let y: Vec<f64> = seen.iter().map(|&(i, _)| value(i)).collect();
        let line = least_squares(&t, &y).map(|l| (l.slope, l.slope_error));
        line.unwrap_or_else(|| {
            let dt = t.last().copied().unwrap_or(0.0);
            let rise = y.last().copied().unwrap_or(0.0) - y.first().copied().unwrap_or(0.0);
            (if dt > 0.0 { rise / dt } else { 0.0 }, 0.0)
        })
    };
    let (bytes, error) = of(&|i| column.at(i).bytes as f64);
    let (objects, _) = of(&|i| column.at(i).objects as f64);
    // Births and deaths are chance: over the span the count walks at random by
    // their root, and a least-squares line through a walk errs by √1.2 of that.
    let (a, b) = (column.at(from), column.at(last));
    let births = f64::from(b.births - a.births);
    let growth = f64::from(b.live) - f64::from(a.live);
    let events = (2.0 * births - growth).max(births);
    let events = events.min(f64::from(a.live) + f64::from(b.live)).max(1.0);
    let weight = if b.live > 0 {
        b.bytes as f64 / f64::from(b.live)
    } else {
        0.0
    };
    let minutes = t
        .last()
        .zip(t.first())
        .map_or(0.0, |(b, a)| b - a)
        .max(1e-3);
    let walk = if column.counted {
        weight * (1.2 * events).sqrt() / minutes
    } else {
        0.0
    };
    let half = 1.96 * walk.hypot(error);
    Slope {
        bytes_per_min: bytes,
        interval: [bytes - half, bytes + half],
        objects_per_min: objects,
    }
}

/// How many points a finding shows.
const SHOWN: usize = 40;

/// The rates of the newest points (row A4). A point is suspicious when it grew
/// faster than what was normal before `onset`: more than four robust deviations
/// above the median, and more than a couple of samples.
pub(super) fn points(lane: &Lane, column: &Column, onset: Option<usize>) -> Vec<Rate> {
    // Between two collections nothing is new, and a rate of zero would be none.
    let seen: Vec<(usize, Time)> = if column.counted {
        fresh(lane, 0)
    } else {
        lane.times.iter().copied().enumerate().collect()
    };
    let rate = |k: usize| {
        let ((i, then), (j, now)) = (seen[k - 1], seen[k]);
        let (a, b) = (column.at(i), column.at(j));
        let minutes = now.since(then).max(1.0) / 60.0;
        let objects = b.objects as f64 - a.objects as f64;
        let percent = if a.objects > 0 {
            100.0 * objects / a.objects as f64
        } else if b.objects > 0 {
            100.0
        } else {
            0.0
        };
        let megabytes = (b.bytes as f64 - a.bytes as f64) / 1e6;
        let steps = f64::from(b.live) - f64::from(a.live);
        (percent / minutes, megabytes / minutes, steps)
    };
    // Goroutines have no bytes: their number is what grows.
    let pace = |k: usize| if column.counted { rate(k).1 } else { rate(k).2 };
    let before = onset.map_or(0, |point| seen.partition_point(|&(i, _)| i <= point));
    let normal: Vec<f64> = (before.saturating_sub(120).max(1)..before)
        .map(pace)
        .collect();
    let limit = if normal.len() >= 3 {
        median(&normal) + 4.0 * robust_deviation(&normal)
    } else {
        0.0
    };
    (seen.len().saturating_sub(SHOWN).max(1)..seen.len())
        .map(|k| {
            let (percent, megabytes, steps) = rate(k);
            Rate {
                at: lane.times[seen[k].0],
                objects_percent_per_min: percent,
                mb_per_min: megabytes,
                suspicious: pace(k) > limit && steps >= 2.0,
            }
        })
        .collect()
}
