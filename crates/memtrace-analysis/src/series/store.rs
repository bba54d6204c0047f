//! What is remembered of one process: a shared time axis, and one column of
//! cells for each stack.

use std::collections::HashMap;

use memtrace_model::{StackKey, Time};

/// Values of one stack in one profile, in sampled objects ("raw"): what the
/// sampler really saw, before it was scaled up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Row {
    /// The stack.
    pub key: StackKey,
    /// Sampled objects allocated since the process started; `None` where the
    /// profile does not count allocations (goroutines, jemalloc).
    pub births: Option<u64>,
    /// Sampled objects alive.
    pub live: u64,
    /// Bytes alive, scaled up.
    pub bytes: u64,
    /// Objects alive, scaled up.
    pub objects: u64,
}

/// One stack at one point of the axis.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cell {
    /// Sampled objects born since the watch began.
    pub births: u32,
    /// Sampled objects alive.
    pub live: u32,
    /// ∫ births dt since the first cell, object-seconds.
    pub births_area: f64,
    /// ∫ live dt since the first cell, object-seconds.
    pub live_area: f64,
    /// Bytes alive.
    pub bytes: u64,
    /// Objects alive.
    pub objects: u64,
}

/// One stack's cells; cell `i` belongs to point `first + i` of the axis.
#[derive(Clone, Debug, Default)]
pub(super) struct Column {
    first: usize,
    cells: Vec<Cell>,
    /// The counter's value that `births = 0` stands for.
    base: u64,
    /// The profile counts allocations; else births are the upward steps of `live`.
    pub counted: bool,
}

impl Column {
    /// The cell at a point of the axis; all zero before the stack was first seen.
    pub(super) fn at(&self, point: usize) -> Cell {
        if point < self.first {
            return Cell::default();
        }
        self.cells
            .get(point - self.first)
            .or(self.cells.last())
            .copied()
            .unwrap_or_default()
    }

    /// Sampled objects born before the first cell, since the process began.
    pub(super) fn born_before(&self) -> u64 {
        if self.counted { self.base } else { 0 }
    }

    pub(super) fn last(&self) -> Cell {
        self.cells.last().copied().unwrap_or_default()
    }
}

/// How much is kept.
const MAX_POINTS: usize = 512;
const MAX_STACKS: usize = 4096;
/// A table of 32,768 places.
const MAX_DORMANT: usize = 7 << 12;
/// Cells of all stacks of a heap, 40 bytes each: 512 stacks have all points, 4,096 stacks 64.
const HEAP_CELLS: usize = 512 * MAX_POINTS;
/// The same of goroutines and of labels: 128 stacks have all points, 1,024 stacks 64.
const CELLS: usize = 128 * MAX_POINTS;
/// Points that are kept however many stacks there are: rather fewer stacks than fewer points.
const LEAST_POINTS: usize = 64;

/// How much of a stack is alive: its bytes, its objects (goroutines have no bytes).
type Weight = (u64, u64, StackKey);

fn weight(row: &Row) -> Weight {
    (row.bytes, row.objects, row.key)
}

/// All stacks of one kind of profile of one run of the process.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    pub times: Vec<Time>,
    /// Bytes (heap) or goroutines alive over all stacks, at each point.
    pub totals: Vec<f64>,
    /// Births over all stacks since the watch began, at each point.
    pub total_births: Vec<f64>,
    pub columns: HashMap<StackKey, Column>,
    /// Stacks that are not followed, with their counter: of those never seen alive, and of the
    /// lightest where there are too many.
    dormant: HashMap<StackKey, u64>,
    /// How many stacks of the newest profile are followed.
    seen: usize,
    max_cells: usize,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            times: Vec::new(),
            totals: Vec::new(),
            total_births: Vec::new(),
            columns: HashMap::new(),
            dormant: HashMap::new(),
            seen: 0,
            max_cells: CELLS,
        }
    }
}

impl Lane {
    /// The lane that verdicts mostly are about: it may take more memory.
    pub(super) fn of_heap() -> Self {
        Self {
            max_cells: HEAP_CELLS,
            ..Self::default()
        }
    }

    /// Whether allocation counters stand lower than before, which no process does
    /// to itself: it was restarted between the two profiles. Stacks that are
    /// missing do not count, a profile may be cut short.
    pub(super) fn counters_fell(&self, rows: &[Row]) -> bool {
        let mut lower = 0u64;
        for row in rows {
            let (Some(now), Some(column)) = (row.births, self.columns.get(&row.key)) else {
                continue;
            };
            let before = column.base + u64::from(column.last().births);
            // One sample may be lost to the rounding of the scaled counts.
            lower += before.saturating_sub(now).saturating_sub(1 + before / 1000);
        }
        lower >= 3
    }

    /// Appends one profile. Rows of one stack must have been added up.
    pub(super) fn push(&mut self, at: Time, rows: &[Row], weigh: impl Fn(&Row) -> f64) {
        let attach = self.times.is_empty();
        if self.times.last().is_some_and(|&last| at <= last) {
            return;
        }
        let point = self.times.len();
        let dt = self.times.last().map_or(0.0, |&last| at.since(last));
        self.times.push(at);
        self.totals.push(rows.iter().map(weigh).sum());
        self.seen = 0;
        let mut born = 0.0;
        // What the row of all others stands for changes: it is in the total alone.
        let other = StackKey::other();
        let least = self.least_new(rows);
        for row in rows.iter().filter(|row| row.key != other) {
            if !self.columns.contains_key(&row.key) {
                if row.live == 0 || least.is_some_and(|least| weight(row) <= least) {
                    if self.dormant.len() >= MAX_DORMANT {
                        // One that wakes later seems to have been born then, and to
                        // have died: no leak.
                        self.dormant.clear();
                    }
                    self.dormant.insert(row.key, row.births.unwrap_or(0));
                    continue;
                }
                let before = self.dormant.remove(&row.key).unwrap_or(if attach {
                    row.births.unwrap_or(0)
                } else {
                    0
                });
                self.columns.insert(
                    row.key,
                    Column {
                        first: point,
                        cells: Vec::new(),
                        base: before,
                        counted: row.births.is_some(),
                    },
                );
            }
            if let Some(column) = self.columns.get_mut(&row.key) {
                let last = column.last();
                let live = u32::try_from(row.live).unwrap_or(u32::MAX);
                let births = match row.births {
                    Some(n) => u32::try_from(n.saturating_sub(column.base)).unwrap_or(u32::MAX),
                    None => {
                        let step = if column.cells.is_empty() && attach {
                            0
                        } else {
                            live.saturating_sub(last.live)
                        };
                        last.births.saturating_add(step)
                    }
                }
                .max(last.births);
                born += f64::from(births - last.births);
                column.push(births, live, row.bytes, row.objects, dt);
                self.seen += 1;
            }
        }
        if self.seen < self.columns.len() {
            // A stack without a row has nothing alive.
            for column in self.columns.values_mut() {
                if column.first + column.cells.len() <= point {
                    let births = column.last().births;
                    column.push(births, 0, 0, 0, dt);
                }
            }
        }
        let births = self.total_births.last().map_or(0.0, |b| b + born);
        self.total_births.push(births);
        if self.times.len() > MAX_POINTS {
            self.thin();
        }
        if self.columns.len() > MAX_STACKS {
            self.drop_lightest(MAX_STACKS);
        }
        while self.cells() > self.max_cells {
            if self.times.len() > LEAST_POINTS {
                self.thin();
            } else {
                self.drop_lightest(self.columns.len() - 1);
            }
        }
    }

    /// What a stack that is not followed yet must weigh more than, where there are more of them
    /// than can be.
    fn least_new(&self, rows: &[Row]) -> Option<Weight> {
        if rows.len() <= MAX_STACKS {
            return None;
        }
        let is_new = |row: &&Row| row.live > 0 && !self.columns.contains_key(&row.key);
        let mut new: Vec<Weight> = rows.iter().filter(is_new).map(weight).collect();
        if new.len() <= MAX_STACKS {
            return None;
        }
        let (_, &mut least, _) = new.select_nth_unstable_by(MAX_STACKS, |a, b| b.cmp(a));
        Some(least)
    }

    /// Cells of all columns together.
    fn cells(&self) -> usize {
        self.columns.values().map(|c| c.cells.len()).sum()
    }

    /// Drops every second point of the older half, the very first kept.
    fn thin(&mut self) {
        let half = self.times.len() / 2;
        let keep = |point: usize| point >= half || point.is_multiple_of(2);
        let mut to = vec![0; self.times.len() + 1];
        for point in 0..self.times.len() {
            to[point + 1] = to[point] + usize::from(keep(point));
        }
        retain(&mut self.times, 0, keep);
        retain(&mut self.totals, 0, keep);
        retain(&mut self.total_births, 0, keep);
        for column in self.columns.values_mut() {
            retain(&mut column.cells, column.first, keep);
            column.cells.shrink_to(column.cells.len() * 9 / 8);
            column.first = to[column.first];
        }
    }

    /// Forgets the stacks with the least alive, an eighth below the limit.
    fn drop_lightest(&mut self, limit: usize) {
        let weigh = |(&key, column): (&StackKey, &Column)| {
            let last = column.last();
            (last.bytes, last.objects, key)
        };
        let mut weights: Vec<Weight> = self.columns.iter().map(weigh).collect();
        weights.sort_unstable();
        let excess = self.columns.len() - limit * 7 / 8;
        for (_, _, key) in weights.into_iter().take(excess) {
            if let Some(column) = self.columns.remove(&key)
                && self.dormant.len() < MAX_DORMANT
            {
                self.dormant
                    .insert(key, column.base + u64::from(column.last().births));
            }
        }
    }

    /// Latest point at or before `at`; `None` when the watch began later.
    pub(super) fn point_at(&self, at: Time) -> Option<usize> {
        self.times.partition_point(|&t| t <= at).checked_sub(1)
    }

    /// Typical distance of the newest points, seconds; 0 for fewer than two.
    pub(super) fn interval(&self) -> f64 {
        let n = self.times.len();
        let gaps: Vec<f64> = (n.saturating_sub(16).max(1)..n)
            .map(|i| self.times[i].since(self.times[i - 1]))
            .collect();
        statkit::trend::median(&gaps)
    }
}

impl Column {
    fn push(&mut self, births: u32, live: u32, bytes: u64, objects: u64, dt: f64) {
        let last = self.last();
        if self.cells.len() == self.cells.capacity() {
            // Thousands of columns grow alike: what they have in reserve adds up.
            self.cells.reserve_exact(self.cells.len() / 8 + 4);
        }
        self.cells.push(Cell {
            births,
            live,
            births_area: last.births_area + 0.5 * dt * (f64::from(births) + f64::from(last.births)),
            live_area: last.live_area + 0.5 * dt * (f64::from(live) + f64::from(last.live)),
            bytes,
            objects,
        });
    }
}

fn retain<T>(values: &mut Vec<T>, first: usize, keep: impl Fn(usize) -> bool) {
    let mut point = first;
    values.retain(|_| {
        point += 1;
        keep(point - 1)
    });
}
