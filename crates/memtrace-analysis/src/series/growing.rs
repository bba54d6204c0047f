//! The verdict "growing": a trend that load does not explain, which may still
//! level off.

use memtrace_model::Time;
use statkit::count::z_score;
use statkit::dist::normal_tail;
use statkit::trend::{hamed_rao, theil_sen};

use super::store::{Column, Lane};

/// Points in a trend test at most: it is quadratic.
const MOST: usize = 24;
/// Points at least.
const LEAST: usize = 8;

/// Thresholds, chosen on the tuning set of `cargo xtask accuracy`.
const Z: f64 = 5.0;
const Z_LOAD: f64 = 4.0;
const P_TREND: f64 = 1e-3;
const MIN_GROWTH: f64 = 10.0;
/// Goroutines that come and go at a stack that only leaks: downward steps as a
/// share of upward steps.
const MAX_DOWN: f64 = 0.1;

/// Why a stack is called growing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Growth {
    /// Growth in standard deviations.
    pub z: f64,
    /// Probability of such growth by chance.
    pub p: f64,
    /// Length of the window, seconds.
    pub seconds: f64,
    /// Its first point.
    pub from: usize,
    /// It outlasted the settle horizon without coming down (goroutines only).
    pub settled: bool,
}

/// The spans that a trend is sought in: first points of windows that end now.
#[derive(Clone, Debug, Default)]
pub(super) struct Spans(Vec<Vec<usize>>);

impl Spans {
    /// Spans of `lane` that begin at or after `settled`, the end of the warm-up.
    pub(super) fn of(lane: &Lane, settle: f64, settled: Option<Time>) -> Self {
        let Some(&now) = lane.times.last() else {
            return Self::default();
        };
        let interval = lane.interval();
        let mut spans: Vec<Vec<usize>> = Vec::new();
        let lengths = [
            LEAST as f64 * interval,
            settle / 2.0,
            settle,
            2.0 * settle,
            4.0 * settle,
            12.0 * settle,
            36.0 * settle,
        ];
        let last = lane.times.len() - 1;
        // Where points come ever more slowly, none of these lengths may hold enough of them.
        if let Some(first) = last.checked_sub(LEAST)
            && now.since(lane.times[first]) > 1.5 * LEAST as f64 * interval
            && settled.is_none_or(|t| lane.times[first] >= t)
        {
            spans.push((first..=last).collect());
        }
        for length in lengths {
            let from = Time(now.0.saturating_sub((length * 1000.0) as i64));
            let Some(first) = lane.point_at(from) else {
                break;
            };
            if last - first < LEAST {
                continue;
            }
            if settled.is_some_and(|t| lane.times[first] < t) {
                break;
            }
            let n = (last - first + 1).min(MOST);
            let points: Vec<usize> = (0..n)
                .map(|i| first + (last - first) * i / (n - 1))
                .collect();
            if spans.last() != Some(&points) {
                spans.push(points);
            }
        }
        Self(spans)
    }
}

/// Whether `column` grows. `load` is the factor by which the births of the whole
/// process multiplied since a point (used where the stack counts none).
pub(super) fn growing(
    lane: &Lane,
    spans: &Spans,
    column: &Column,
    settle: f64,
    load: &dyn Fn(usize) -> f64,
) -> Option<Growth> {
    let now = column.last();
    if f64::from(now.live) < MIN_GROWTH {
        return None;
    }
    spans
        .0
        .iter()
        .find_map(|points| over(lane, points, column, settle, load))
}

fn over(
    lane: &Lane,
    points: &[usize],
    column: &Column,
    settle: f64,
    load: &dyn Fn(usize) -> f64,
) -> Option<Growth> {
    let (&first, &last) = (points.first()?, points.last()?);
    let (start, end) = (column.at(first), column.at(last));
    let (old, new) = (f64::from(start.live), f64::from(end.live));
    let growth = new - old;
    if growth < MIN_GROWTH {
        return None;
    }
    let births = f64::from(end.births - start.births);
    let deaths = (births - growth).max(0.0);
    let z = z_score(growth, (births + deaths).min(old + new));
    if z < Z {
        return None;
    }
    let seconds = lane.times[last].since(lane.times[first]);
    // Twice as many births make twice as many alive. A stack that starts to
    // allocate grows until its first objects die: wait half a horizon for that.
    let settled = seconds >= 0.95 * settle;
    let pure = deaths <= 0.1 * births && seconds >= 0.45 * settle;
    if column.counted {
        let factor = load_factor(column, lane, first, last, settle);
        let beyond = new - factor * old;
        let noise = new + factor * factor * old;
        let steady = old >= MIN_GROWTH && factor < 1.5 && z_score(beyond, noise) >= Z_LOAD;
        if !steady && !(pure && (settled || factor < 1.5 || old < 0.2 * new)) {
            return None;
        }
    } else if load(first) * old + Z_LOAD * (new + old).sqrt() > new {
        return None;
    }
    // Higher than ever before: batches that come and go return to old heights.
    let before = (0..=first).map(|i| column.at(i).live).max().unwrap_or(0);
    if new < f64::from(before) + 2.0 * f64::from(before).sqrt() {
        return None;
    }
    let y: Vec<f64> = points
        .iter()
        .map(|&i| f64::from(column.at(i).live))
        .collect();
    let trend = hamed_rao(&y, 0.05, y.len() / 3)?;
    if trend.p_rise() > P_TREND {
        return None;
    }
    let t: Vec<f64> = points
        .iter()
        .map(|&i| lane.times[i].since(lane.times[first]))
        .collect();
    if theil_sen(&t, &y, 0.95)?.interval.0 <= 0.0 {
        return None;
    }
    let third = |k: usize| y[(y.len() - 1) * (k + 1) / 3] - y[(y.len() - 1) * k / 3];
    if third(2) < 0.2 * growth / 3.0 {
        return None;
    }
    // Every profile counts here: what comes and goes shows between neighbours.
    let (mut up, mut down) = (0.0, 0.0);
    for i in first..last {
        let step = f64::from(column.at(i + 1).live) - f64::from(column.at(i).live);
        up += step.max(0.0);
        down += (-step).max(0.0);
    }
    Some(Growth {
        z,
        p: normal_tail(z).max(trend.p_rise() * 1e-2),
        seconds,
        from: first,
        settled: seconds >= 1.9 * settle
            && down <= MAX_DOWN * up
            && (0..3).all(|k| third(k) >= 0.25 * growth / 3.0),
    })
}

/// By how much the births multiplied from just before `first` to now: the
/// largest factor over a few lags. Infinite when there were none before.
fn load_factor(column: &Column, lane: &Lane, first: usize, last: usize, settle: f64) -> f64 {
    let rate = |point: usize, lag: f64| {
        let from = lane.point_at(Time(lane.times[point].0 - (lag * 1000.0) as i64))?;
        let dt = lane.times[point].since(lane.times[from]);
        (dt > 0.0).then(|| f64::from(column.at(point).births - column.at(from).births) / dt)
    };
    let mut factor = 0.0f64;
    let shortest = lane.interval();
    for lag in [settle, settle / 4.0, settle / 16.0] {
        let lag = lag.max(2.0 * shortest);
        if let (Some(before), Some(after)) = (rate(first, lag), rate(last, lag)) {
            factor = factor.max(if before > 0.0 {
                after / before
            } else {
                f64::INFINITY
            });
        }
    }
    if factor == 0.0 { f64::INFINITY } else { factor }
}
