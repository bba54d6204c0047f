//! The verdict "leaking": old objects survive and keep accumulating.

use statkit::count::z_score;
use statkit::dist::{normal_tail, student_tail};
use statkit::trend::{least_squares, mean, robust_deviation};

use super::store::{Column, Lane};
use super::window::{BLOCKS, SPANS, Window};

// Thresholds of the verdict, chosen on the tuning set of `cargo xtask accuracy`.

/// Objects that outlived the settle horizon, at least.
const SURVIVORS: f64 = 8.0;
/// Net growth in standard deviations, survivors proved.
const Z_COHORT: f64 = 4.5;
/// Growth beyond load in standard deviations, churn at the same stack.
const Z_MIXED: f64 = 4.5;
/// Student's t of the straight line through the blocks, churn at the same stack.
const T_MIXED: f64 = 11.0;
/// Margin of the objects replaced within a settle horizon, standard deviations.
const RENEWED: f64 = 2.5;
/// The least variance of its steps.
const LEAST_VARIANCE: f64 = 0.1;
/// Beyond this length, settle horizons, a window holds what happens but now and
/// then: a mixture of lifetimes that changes, a second cache. More is demanded.
const LONG: f64 = 3.5;
/// Lags at which they are looked for, in settle horizons.
const LAGS: [f64; 4] = [0.0625, 0.125, 0.25, 0.5];
/// Student's t of the line through a long window, survivors proved: two caches
/// that fill one after the other make a stair.
const T_LONG: f64 = 12.0;
/// The same with churn at the same stack: means over blocks smooth the stair.
const T_LONG_MIXED: f64 = 18.0;
/// How growth must be spread over the window, survivors proved.
const COHORT: Spread = Spread {
    share: 0.3,
    z: 3.0,
    pace: 0.35,
};
/// The same for churn at the same stack, where less is proved.
const MIXED: Spread = Spread {
    share: 0.25,
    z: 3.0,
    pace: 0.4,
};

/// Demands on growth that goes on.
struct Spread {
    /// Share of it outside the settle horizon in which most of it happened.
    share: f64,
    /// That part in standard deviations.
    z: f64,
    /// Pace of each third of the window, as a share of the mean pace.
    pace: f64,
}

/// Why a stack is called leaking.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Leak {
    /// Growth in standard deviations.
    pub z: f64,
    /// Probability of such growth by chance, corrected for the windows tried.
    pub p: f64,
    /// Length of the window, seconds.
    pub seconds: f64,
    /// Its first point.
    pub from: usize,
    /// Sampled objects proved older than the settle horizon; `None` when churn
    /// at the same stack hides them.
    pub survivors: Option<f64>,
    /// Growth of sampled objects over the window (beyond load).
    pub growth: f64,
}

/// Whether `column` leaks by the windows given: the shortest window that says so.
pub(super) fn leaking(
    lane: &Lane,
    windows: &[Window],
    column: &Column,
    settle: f64,
) -> Option<Leak> {
    if !column.counted || f64::from(column.last().live) < SURVIVORS {
        return None;
    }
    windows
        .iter()
        .find_map(|w| cohort(w, column, settle).or_else(|| mixed(lane, w, column, settle)))
}

/// Objects born in the window and older than the settle horizon A now number at
/// least B(t−A) − D(t), whatever the order of deaths. Healthy lifetimes up to A
/// never give more than zero; what is left are caches and pools that fill, and
/// those fill within A: the growth must be spread over longer than that and go on.
fn cohort(w: &Window, column: &Column, settle: f64) -> Option<Leak> {
    let start = column.at(w.marks[0]);
    let end = column.at(w.marks[BLOCKS]);
    let growth = f64::from(end.live) - f64::from(start.live);
    if growth < SURVIVORS {
        return None;
    }
    let births = f64::from(end.births - start.births);
    let deaths = (births - growth).max(0.0);
    let settled = column.at(w.settled).births.saturating_sub(start.births);
    let survivors = f64::from(settled) - deaths;
    if survivors < SURVIVORS {
        return None;
    }
    let variance = (births + deaths).min(f64::from(start.live) + f64::from(end.live));
    let z = z_score(growth, variance);
    if z < Z_COHORT {
        return None;
    }
    let live = w.cells(column).map(|c| f64::from(c.live));
    let t: [f64; BLOCKS + 1] = std::array::from_fn(|i| i as f64);
    if w.seconds > LONG * settle && least_squares(&t, &live)?.t() < T_LONG {
        return None;
    }
    goes_on(&live, w.settle_blocks, &COHORT, variance).then(|| Leak {
        z,
        p: corrected(normal_tail(z)),
        seconds: w.seconds,
        from: w.marks[0],
        survivors: Some(survivors),
        growth,
    })
}

/// The growth is spread over longer than `settle_blocks`, beyond what chance
/// (`variance` over the whole) adds, and no third of the window is without its part.
fn goes_on(live: &[f64], settle_blocks: usize, spread: &Spread, variance: f64) -> bool {
    let n = live.len() - 1;
    let growth = live[n] - live[0];
    let steps = settle_blocks.min(n);
    let third = |k: usize| live[n * (k + 1) / 3] - live[n * k / 3];
    let most = (0..=n - steps)
        .map(|i| live[i + steps] - live[i])
        .fold(0.0, f64::max);
    let outside = growth - most;
    let chance = variance * (n - steps) as f64 / n as f64;
    growth > 0.0
        && outside >= spread.share * growth
        && z_score(outside, chance) >= spread.z
        && (0..3).all(|k| third(k) >= spread.pace * growth / 3.0)
}

/// Growth beyond load at a stack where most objects die soon. With lifetimes up
/// to A and a distribution that stays, live(t) is a positive mixture over a ≤ A
/// of the births within a before t; so live grows by no larger a factor than the
/// births of some lag do. What exceeds that must be significant, straight,
/// longer than A, and must go on.
fn mixed(lane: &Lane, w: &Window, column: &Column, settle: f64) -> Option<Leak> {
    let cells = w.cells(column);
    let means = w.means(lane, &cells);
    const Q: usize = BLOCKS / 4;
    let quarter =
        |v: &[f64; BLOCKS], k: usize| v[Q * k..Q * (k + 1)].iter().sum::<f64>() / Q as f64;
    let (old, new) = (quarter(&means, 0), quarter(&means, 3));
    // Cheap: most stacks stop here.
    if new - old < SURVIVORS * 0.5 {
        return None;
    }
    let births = w.birth_rates(lane, column, &cells, settle);
    // By how much load multiplied, block by block: the largest over the lags.
    // Load that falls explains nothing: misses of a filling cache fall too.
    let mut factor = [1.0f64; BLOCKS];
    let seconds = w.seconds / 4.0;
    let mut least = f64::INFINITY;
    for row in &births {
        let base = quarter(row, 0);
        least = least.min(base * seconds);
        for (f, b) in factor.iter_mut().zip(row) {
            *f = f.max(b / base.max(0.5 / seconds));
        }
    }
    // In a long window all are taken to come and go. Else objects that die between
    // two profiles average out over a quarter; others may live as long as it lasts.
    let long = w.seconds > LONG * settle;
    let (mut brief, mut moves, mut slow) = (0.0, old, old);
    if !long {
        brief = old * brief_share(column, w.marks[0], w.marks[Q], old);
        let renewed = Renewed::at_most(lane, w, column, 2.0 * brief, settle);
        // Nor are more alive than were born within the horizon.
        let born = births[0].iter().copied().fold(0.0, f64::max) * settle;
        moves = old.min(renewed.all).min(born);
        slow = (old - brief).min(renewed.slow).min(born);
    }
    let excess: [f64; BLOCKS] = std::array::from_fn(|i| means[i] - old - (factor[i] - 1.0) * moves);
    let growth = quarter(&excess, 3) - quarter(&excess, 0);
    if growth < SURVIVORS * 0.5 {
        return None;
    }
    let load = quarter(&factor, 3);
    let points = (w.marks[Q] - w.marks[0]).max(1) as f64;
    // Of a count that rises by chance, the means of the outer quarters differ by
    // 3/4 of the rise with a variance of 2/3 of it.
    let chance = (1.0 + load * load) * (slow + brief / points)
        + (load * moves).powi(2) * 2.0 / least.max(1.0);
    // What was measured in a short window holds the chances of the growth itself.
    let noise = if long {
        chance + 0.89 * growth
    } else {
        chance.max(0.89 * growth)
    };
    let z = z_score(growth, noise);
    if z < Z_MIXED {
        return None;
    }
    let t: [f64; BLOCKS] = std::array::from_fn(|i| i as f64);
    let line = least_squares(&t, &excess)?;
    if line.t() < if long { T_LONG_MIXED } else { T_MIXED } {
        return None;
    }
    // A mean over a block smears a step over one block more. What is alive must
    // itself go on rising: the expectation may fall for reasons of its own.
    let settle_blocks = (w.settle_blocks + 1).min(BLOCKS - 2);
    if !goes_on(&excess, settle_blocks, &MIXED, noise)
        || !goes_on(&means, settle_blocks, &MIXED, noise)
    {
        return None;
    }
    let p = normal_tail(z).max(student_tail(line.t(), BLOCKS as f64 - 2.0));
    Some(Leak {
        z,
        p: corrected(p),
        seconds: w.seconds,
        from: w.marks[0],
        survivors: None,
        growth,
    })
}

/// Share of the `live` objects that are others at the next profile: half the
/// variance of the steps, the variance of a count renewed every time, less a
/// margin for its own error. The variance is a robust one: batches freed at once
/// are no renewal.
fn brief_share(column: &Column, from: usize, to: usize, live: f64) -> f64 {
    if to < from + 8 || live < 1.0 {
        return 0.0;
    }
    let steps: Vec<f64> = (from..to)
        .map(|i| f64::from(column.at(i + 1).live) - f64::from(column.at(i).live))
        .collect();
    let variance = robust_deviation(&steps).powi(2) / 2.0;
    (0.8 * variance / live).min(0.95)
}

/// At most how many live objects are replaced within a settle horizon.
#[derive(Clone, Copy, Debug)]
struct Renewed {
    /// All.
    all: f64,
    /// Without those replaced at every profile.
    slow: f64,
}

impl Renewed {
    /// Where m sampled objects live up to A, what is alive differs after h by a
    /// variance of at least 2·m·h/A, whatever the lifetimes: a count that hardly
    /// moves holds few of them, the rest stays for good. `brief` is the variance of
    /// those replaced at every profile.
    fn at_most(lane: &Lane, w: &Window, column: &Column, brief: f64, settle: f64) -> Self {
        let now = column.last();
        // Objects that come evenly vary by the share of them that is not sampled.
        let missed = 1.0 - f64::from(now.live) / (now.objects.max(1) as f64);
        let mut found = Self {
            all: f64::INFINITY,
            slow: f64::INFINITY,
        };
        if missed < 0.05 {
            return found;
        }
        for lag in LAGS.map(|lag| lag * settle) {
            let Some(variance) = variance_after(lane, w, column, lag) else {
                continue;
            };
            let most = variance * margin(variance, w.seconds / lag);
            let scale = settle / (2.0 * lag) / missed;
            found.all = found.all.min(most * scale);
            found.slow = found.slow.min((most - brief).max(0.0) * scale);
        }
        found
    }
}

/// By how much a variance found in so many steps may be too small, at most.
fn margin(variance: f64, steps: f64) -> f64 {
    // Steps that overlap tell half as much again. A variance of small counts errs
    // by more than that of a normal value, as if there were fewer steps.
    let freedom = 1.5 * steps / (1.0 + 0.5 / variance.max(1e-9));
    // The low tail of χ² after Wilson and Hilferty.
    let part = 2.0 / (9.0 * freedom.max(1e-9));
    let low = (1.0 - part - RENEWED * part.sqrt()).max(0.01);
    low.powi(-3)
}

/// Variance of the difference of live objects a `lag` apart, its mean taken out.
fn variance_after(lane: &Lane, w: &Window, column: &Column, lag: f64) -> Option<f64> {
    let (from, to) = (w.marks[0], w.marks[BLOCKS]);
    let mut steps = Vec::with_capacity(to - from);
    let mut end = from;
    for i in from..to {
        while end < to && lane.times[end].since(lane.times[i]) < lag {
            end += 1;
        }
        if lane.times[end].since(lane.times[i]) < lag {
            break;
        }
        steps.push(f64::from(column.at(end).live) - f64::from(column.at(i).live));
    }
    if steps.len() < 8 {
        return None;
    }
    let mean = mean(&steps);
    let squares: f64 = steps.iter().map(|s| (s - mean).powi(2)).sum();
    // No count is so still that nothing moved at all.
    Some((squares / (steps.len() as f64 - 1.0)).max(LEAST_VARIANCE))
}

fn corrected(p: f64) -> f64 {
    (p * SPANS.len() as f64).min(1.0)
}
