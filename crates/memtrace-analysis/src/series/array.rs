//! One array that grows without end: a slice, a buffer. It is one object however
//! large it gets, so counting objects sees nothing; but its steps are seen exactly,
//! an object of that size is always sampled.

use super::store::{Column, Lane};

/// Size from which an object is sampled nearly always, bytes.
const LARGE: u64 = 1 << 20;
/// The array, what it is being copied to, and what waits to be collected.
const FEW: u64 = 8;
/// Steps upwards, each by so much: a slice of this size grows by a quarter.
const STEPS: usize = 6;
const STEP: f64 = 1.1;
/// Old and new array are alive together until the next collection.
const SPREAD: f64 = 2.6;
/// Growth of each third of the span, as a share of the mean.
const PACE: f64 = 0.35;

/// Why a stack is said to hold a growing array.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Array {
    /// First point of the growth.
    pub from: usize,
    /// Its length, seconds.
    pub seconds: f64,
    /// Steps seen.
    pub steps: usize,
    /// How often it multiplied.
    pub times: f64,
    /// Probability that values which come and go lie in such an order by chance: all
    /// of the newest third above most of the range.
    pub p: f64,
}

/// The longest span up to now in which what is held at `column` went up in steps,
/// none of which was taken back. `load` is the factor by which the births of the
/// whole process multiplied since a point: what grows with it is no leak.
pub(super) fn growing_array(
    lane: &Lane,
    column: &Column,
    load: &dyn Fn(usize) -> f64,
) -> Option<Array> {
    let now = column.last();
    if now.bytes < LARGE || now.objects > FEW || now.bytes < LARGE / 4 * now.objects {
        return None;
    }
    // What was never undercut later, from the newest point back.
    let last = lane.times.len() - 1;
    let mut least = now.bytes as f64;
    let mut levels = vec![least];
    let mut from = last;
    while from > 0 && least > 0.0 {
        let bytes = column.at(from - 1).bytes as f64;
        if bytes > SPREAD * least.min(bytes) || column.at(from - 1).objects > FEW {
            break;
        }
        least = least.min(bytes);
        levels.push(least);
        from -= 1;
    }
    levels.reverse();
    // Where it stood still at first, nothing grew yet.
    let begin = levels
        .iter()
        .position(|&l| l > levels[0])
        .unwrap_or(0)
        .saturating_sub(1);
    let (levels, from) = (&levels[begin..], from + begin);
    let mut steps = 0;
    let mut level = levels[0].max(1.0);
    for &l in levels {
        if l >= STEP * level {
            steps += 1;
            level = l;
        }
    }
    let n = levels.len() - 1;
    let growth = levels[n] - levels[0];
    let third = |k: usize| levels[n * (k + 1) / 3] - levels[n * k / 3];
    let times = levels[n] / levels[0].max(1.0);
    let steady = (0..3).all(|k| third(k) >= PACE * growth / 3.0);
    (steps >= STEPS && n >= 2 * STEPS && steady && times > 1.5 * load(from)).then(|| Array {
        from,
        seconds: lane.times[last].since(lane.times[from]),
        steps,
        times,
        p: PACE.powf(n as f64 / 3.0),
    })
}
