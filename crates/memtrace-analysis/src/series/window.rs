//! The windows that end now, cut into blocks; the same for every stack, so they
//! are looked up once.

use memtrace_model::Time;

use super::before::Before;
use super::store::{Cell, Column, Lane};

/// Blocks of a window.
pub(super) const BLOCKS: usize = 12;

/// How far back births are counted when load is compared, in settle horizons.
const LAGS: [f64; 3] = [1.0, 0.25, 0.0625];

/// Lengths of the windows, in settle horizons.
pub(super) const SPANS: [f64; 14] = [
    1.5, 2.0, 2.5, 2.75, 3.0, 4.0, 6.0, 9.0, 13.5, 20.0, 30.0, 45.0, 60.0, 72.0,
];

/// While everything seen is shorter than this, all of it is a window too.
const WHOLE: f64 = 4.0;

/// A moment between two points of the axis, or before the first.
#[derive(Clone, Copy, Debug, Default)]
struct Moment {
    point: usize,
    /// Seconds after the point; less than 0 before the first.
    beyond: f64,
    /// Seconds from the point to the next.
    gap: f64,
}

/// A span of the axis that ends at the newest point.
#[derive(Clone, Debug)]
pub(super) struct Window {
    /// Points of the axis at the block ends, the oldest first.
    pub marks: [usize; BLOCKS + 1],
    /// Real length, seconds.
    pub seconds: f64,
    /// Latest point at least one settle horizon old.
    pub settled: usize,
    /// How many blocks a settle horizon covers.
    pub settle_blocks: usize,
    /// The block ends moved back by each lag.
    lagged: [[Moment; BLOCKS + 1]; LAGS.len()],
    /// Seconds from the first point of the axis to the window.
    since_first: f64,
    /// Age of the process at the first point, seconds, where known.
    age: Option<f64>,
}

impl Window {
    /// The windows of a lane for settle horizon `settle` (seconds), the shortest
    /// first. A window the axis does not reach back to, or too short for its
    /// blocks to differ, is left out, and so is one that begins before `settled_from`, the end of the warm-up.
    pub(super) fn all(lane: &Lane, settle: f64, settled_from: Option<Time>) -> Vec<Self> {
        let (Some(&first), Some(&now)) = (lane.times.first(), lane.times.last()) else {
            return Vec::new();
        };
        let back = |seconds: f64| Time(now.0.saturating_sub((seconds * 1000.0) as i64));
        let Some(settled) = lane.point_at(back(settle)) else {
            return Vec::new();
        };
        // The longest possible too, while the watch is young.
        let from = settled_from.map_or(first, |t| t.max(first));
        let longest = now.since(from) / settle;
        let mut spans: Vec<f64> = SPANS.into_iter().filter(|s| *s <= longest).collect();
        if longest > SPANS[0] && longest < WHOLE {
            spans.push(longest);
            spans.sort_by(f64::total_cmp);
        }
        // The warm-up is half a settle horizon.
        let age = settled_from.map(|t| (first.since(t) + settle / 2.0).max(0.0));
        let mut windows = Vec::new();
        for span in spans {
            let seconds = span * settle;
            let block = seconds / BLOCKS as f64;
            let marks = std::array::from_fn(|i| {
                lane.point_at(back(block * (BLOCKS - i) as f64))
                    .unwrap_or(0)
            });
            let distinct = marks.windows(2).filter(|m| m[0] < m[1]).count();
            if distinct < BLOCKS * 2 / 3 {
                continue;
            }
            if settled_from.is_some_and(|t| lane.times[marks[0]] < t) {
                break;
            }
            let lagged = LAGS.map(|lag| {
                marks.map(|m| {
                    let at = lane.times[m].plus_ms((-lag * settle * 1000.0) as i64);
                    let point = lane.point_at(at).unwrap_or(0);
                    Moment {
                        point,
                        beyond: at.since(lane.times[point]),
                        gap: lane.times[point + 1].since(lane.times[point]),
                    }
                })
            });
            windows.push(Self {
                marks,
                seconds: now.since(lane.times[marks[0]]),
                settled,
                settle_blocks: ((settle / block).round() as usize).max(BLOCKS / 3),
                lagged,
                since_first: lane.times[marks[0]].since(first),
                age,
            });
        }
        windows
    }

    /// Cells of a stack at the block ends.
    pub(super) fn cells(&self, column: &Column) -> [Cell; BLOCKS + 1] {
        self.marks.map(|m| column.at(m))
    }

    /// Mean of live objects in each block.
    pub(super) fn means(&self, lane: &Lane, cells: &[Cell; BLOCKS + 1]) -> [f64; BLOCKS] {
        std::array::from_fn(|i| {
            let dt = lane.times[self.marks[i + 1]].since(lane.times[self.marks[i]]);
            if dt > 0.0 {
                (cells[i + 1].live_area - cells[i].live_area) / dt
            } else {
                f64::from(cells[i].live)
            }
        })
    }

    /// Births per second within each lag before a moment, averaged over the
    /// moments of each block; one row for each lag, the last for no lag at all.
    pub(super) fn birth_rates(
        &self,
        lane: &Lane,
        column: &Column,
        cells: &[Cell; BLOCKS + 1],
        settle: f64,
    ) -> Vec<[f64; BLOCKS]> {
        let length: [f64; BLOCKS] =
            std::array::from_fn(|i| lane.times[self.marks[i + 1]].since(lane.times[self.marks[i]]));
        let now: [f64; BLOCKS] = std::array::from_fn(|i| {
            f64::from(cells[i + 1].births - cells[i].births) / length[i].max(1e-9)
        });
        let before = Before::new(
            &now,
            self.seconds / BLOCKS as f64,
            self.since_first,
            column.born_before() as f64,
            self.age,
        );
        let mut rows: Vec<[f64; BLOCKS]> = Vec::with_capacity(LAGS.len() + 1);
        for (lag, ends) in LAGS.iter().zip(&self.lagged) {
            let old = ends.map(|m| births_area(column, &before, m));
            rows.push(std::array::from_fn(|i| {
                let now = cells[i + 1].births_area - cells[i].births_area;
                let then = old[i + 1] - old[i];
                ((now - then) / (length[i] * lag * settle).max(1e-9)).max(0.0)
            }));
        }
        rows.push(now);
        rows
    }
}

/// ∫ births dt up to a moment; births rise evenly between two points.
fn births_area(column: &Column, before: &Before, at: Moment) -> f64 {
    if at.beyond < 0.0 {
        return before.area(-at.beyond);
    }
    let (a, b) = (column.at(at.point), column.at(at.point + 1));
    let rise = f64::from(b.births.saturating_sub(a.births));
    let share = if at.gap > 0.0 {
        at.beyond / at.gap
    } else {
        0.0
    };
    a.births_area + at.beyond * (f64::from(a.births) + 0.5 * share * rise)
}
