//! Simulated series: objects of one allocation stack, as Go's sampler sees them.
//!
//! Only sampled objects are drawn: allocating R bytes per second in objects of
//! size z gives sampled objects at the rate R/z·p(z), p = 1 − e^(−z/512 KiB), a
//! Poisson stream; each lives as long as its part of the service lets it.

use memtrace_analysis::series::{Row, sampled_share};
use memtrace_model::{
    Function, FunctionId, Label, LabelSetId, LabelValue, Line, Location, LocationId, Profile,
    StackId, StackKey, Time, ValueType,
};

/// Mean distance of samples, bytes (Go's default).
pub const PERIOD: f64 = 512.0 * 1024.0;
/// First point of every series: 2026-01-01.
pub const START: i64 = 1_767_225_600_000;

/// xoshiro256++, seeded by splitmix64: the same series everywhere.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

impl Rng {
    pub fn new(seed: u64) -> Self {
        let mut x = seed;
        Self(std::array::from_fn(|_| {
            x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = x;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        }))
    }

    fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    pub fn log_range(&mut self, low: f64, high: f64) -> f64 {
        self.range(low.ln(), high.ln()).exp()
    }

    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }

    pub fn normal(&mut self) -> f64 {
        let r = (2.0 * self.exponential()).sqrt();
        r * (std::f64::consts::TAU * self.unit()).cos()
    }

    pub fn poisson(&mut self, mean: f64) -> u64 {
        if mean <= 0.0 {
            return 0;
        }
        if mean > 500.0 {
            return (mean + mean.sqrt() * self.normal()).round().max(0.0) as u64;
        }
        let mut count = 0;
        let mut time = self.exponential();
        while time < mean {
            count += 1;
            time += self.exponential();
        }
        count
    }
}

/// Traffic over time, a factor around 1.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// (from s, to s, factor gained).
    pub ramps: Vec<(f64, f64, f64)>,
    /// Daily cycle: amplitude 0..1, phase s, harmonics (a second peak).
    pub daily: Option<(f64, f64, f64)>,
    /// Random walk around 1 that comes back: deviation, correlation time s.
    pub jitter: Option<(f64, f64)>,
    /// (from s, to s, factor): flash crowds.
    pub bursts: Vec<(f64, f64, f64)>,
}

impl Load {
    fn smooth(&self, t: f64) -> f64 {
        let mut f = 1.0;
        for &(from, to, gain) in &self.ramps {
            f *= 1.0 + (gain - 1.0) * ((t - from) / (to - from).max(1.0)).clamp(0.0, 1.0);
        }
        if let Some((amplitude, phase, second)) = self.daily {
            let x = std::f64::consts::TAU * (t + phase) / 86_400.0;
            f *= (1.0 + amplitude * (x.sin() + second * (2.0 * x).sin()) / (1.0 + second)).max(0.0);
        }
        for &(from, to, gain) in &self.bursts {
            if t >= from && t < to {
                f *= gain;
            }
        }
        f
    }

    /// The factor at each step.
    pub fn steps(&self, n: usize, dt: f64, rng: &mut Rng) -> Vec<f64> {
        let mut x = rng.normal();
        (0..n)
            .map(|i| {
                let mut f = self.smooth(i as f64 * dt);
                if let Some((deviation, time)) = self.jitter {
                    let keep = (-dt / time).exp();
                    x = keep * x + (1.0 - keep * keep).sqrt() * rng.normal();
                    f *= (deviation * x - 0.5 * deviation * deviation).exp();
                }
                f
            })
            .collect()
    }
}

/// How long objects live, seconds.
#[derive(Clone, Debug)]
pub enum Lifetime {
    Exponential(f64),
    Fixed(f64),
    Uniform(f64, f64),
    /// Median and sigma, cut at the third.
    LogNormal(f64, f64, f64),
    /// Scale and exponent: a heavy tail.
    Pareto(f64, f64),
}

impl Lifetime {
    fn draw(&self, rng: &mut Rng) -> f64 {
        match *self {
            Self::Exponential(mean) => mean * rng.exponential(),
            Self::Fixed(x) => x,
            Self::Uniform(a, b) => rng.range(a, b),
            Self::LogNormal(median, sigma, cut) => (median * (sigma * rng.normal()).exp()).min(cut),
            Self::Pareto(scale, exponent) => scale * (1.0 - rng.unit()).powf(-1.0 / exponent),
        }
    }
}

/// One part of what a stack allocates. Rates in bytes per second, times in
/// seconds since the watch began (negative: before), sizes in bytes.
#[derive(Clone, Debug)]
pub enum Part {
    /// Objects that come with the load and die.
    Churn { rate: f64, lifetime: Lifetime },
    /// Objects that never die; with `load`, in proportion to it; in bursts every
    /// `burst` s where that is not 0.
    Leak {
        rate: f64,
        from: f64,
        load: bool,
        burst: f64,
    },
    /// Work that piles up `bytes` in `duty` of every period and then frees all.
    Batch { bytes: f64, period: f64, duty: f64 },
    /// A cache of `bytes`, new keys only, the oldest evicted; filled at load 1 in
    /// `fill` s; emptied every `flush` s where that is not 0.
    Lru { bytes: f64, fill: f64, flush: f64 },
    /// A cache with random hits: room for `bytes` of `keys` bytes of keys, asked
    /// at `rate` bytes of keys per second; evicts at random when full.
    Hits {
        bytes: f64,
        keys: f64,
        rate: f64,
        from: f64,
    },
    /// As `Hits`, the popularity of the keys falling as 1/rank.
    Zipf { keys: f64, rate: f64 },
}

/// One simulated series.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub parts: Vec<(Part, f64)>,
    pub load: Load,
    pub seconds: f64,
    pub interval: f64,
    /// Profiles between two garbage collections: between them nothing changes.
    pub gc_every: usize,
    /// Restarts, seconds; with `true` reported, else to be noticed.
    pub restarts: Vec<(f64, bool)>,
    /// How long the process ran before the watch began, seconds.
    pub age: f64,
    /// The watch knows when the process started.
    pub start_known: bool,
}

impl Scenario {
    pub fn new(seconds: f64) -> Self {
        Self {
            parts: Vec::new(),
            load: Load::default(),
            seconds,
            interval: 30.0,
            gc_every: 1,
            restarts: Vec::new(),
            age: 3.0 * 3600.0,
            start_known: false,
        }
    }

    pub fn part(mut self, part: Part, size: f64) -> Self {
        self.parts.push((part, size));
        self
    }
}

/// The series: at each profile the row of the stack; restarts in between.
pub struct Simulated {
    /// Seconds since the watch began, reported restart before it, the row.
    pub points: Vec<(f64, bool, Row)>,
}

/// Draws the series of a scenario.
pub fn simulate(scenario: &Scenario, rng: &mut Rng) -> Simulated {
    let dt = scenario.interval;
    let n = (scenario.seconds / dt) as usize;
    let mut cuts: Vec<(usize, bool)> = vec![(0, false)];
    cuts.extend(
        scenario
            .restarts
            .iter()
            .map(|&(t, told)| ((t / dt) as usize, told))
            .filter(|c| c.0 > 0 && c.0 < n),
    );
    let mut points = Vec::with_capacity(n);
    for (k, &(first, told)) in cuts.iter().enumerate() {
        let last = cuts.get(k + 1).map_or(n, |c| c.0);
        // The first run is older than the watch.
        let before = if k == 0 {
            (scenario.age / dt) as usize
        } else {
            0
        };
        let runs = run(scenario, first, last, before, rng);
        for (i, row) in runs.into_iter().enumerate() {
            // A row holds what happened until the end of its step.
            points.push(((first + i + 1) as f64 * dt, told && i == 0, row));
        }
    }
    Simulated { points }
}

/// Steps `first..last` of one run of the process that started `before` steps
/// earlier.
fn run(s: &Scenario, first: usize, last: usize, before: usize, rng: &mut Rng) -> Vec<Row> {
    let dt = s.interval;
    let steps = last - first + before;
    let offset = (first as f64 - before as f64) * dt;
    let shifted = Load {
        ramps: s
            .load
            .ramps
            .iter()
            .map(|r| (r.0 - offset, r.1 - offset, r.2))
            .collect(),
        daily: s.load.daily.map(|d| (d.0, d.1 + offset, d.2)),
        jitter: s.load.jitter,
        bursts: s
            .load
            .bursts
            .iter()
            .map(|r| (r.0 - offset, r.1 - offset, r.2))
            .collect(),
    };
    let load = shifted.steps(steps, dt, rng);
    let mut rows = vec![
        Row {
            key: StackKey(1),
            births: Some(0),
            ..Row::default()
        };
        steps
    ];
    for (part, size) in &s.parts {
        let p = sampled_share(*size, PERIOD);
        // Sampled objects per byte allocated.
        let density = p / size;
        let mut sim = Bins::new(steps, dt);
        fill(part, density, &load, offset, &mut sim, rng);
        let (mut births, mut live) = (0u64, 0i64);
        for (i, row) in rows.iter_mut().enumerate() {
            births += u64::from(sim.births[i]);
            live += i64::from(sim.births[i]) - i64::from(sim.deaths[i]);
            let n = live.max(0) as u64;
            row.births = row.births.map(|b| b + births);
            row.live += n;
            row.bytes += (n as f64 / density) as u64;
            row.objects += (n as f64 / p) as u64;
        }
    }
    // Go publishes at the end of a collection what was alive at the end of the one
    // before; between two the values stand still. Where there are several collections
    // between two profiles that is nearly the present.
    let every = s.gc_every.max(1);
    let lag = if every > 1 { every } else { 0 };
    (before..steps)
        .map(|i| rows[(i - i % every).saturating_sub(lag).max(before.min(i))])
        .collect()
}

struct Bins {
    births: Vec<u32>,
    deaths: Vec<u32>,
    dt: f64,
}

impl Bins {
    fn new(n: usize, dt: f64) -> Self {
        Self {
            births: vec![0; n],
            deaths: vec![0; n],
            dt,
        }
    }

    fn object(&mut self, step: usize, at: f64, lifetime: f64) {
        self.births[step] += 1;
        let dies = (at + lifetime) / self.dt;
        if dies < self.deaths.len() as f64 {
            self.deaths[(dies as usize).max(step)] += 1;
        }
    }
}

fn fill(part: &Part, density: f64, load: &[f64], offset: f64, bins: &mut Bins, rng: &mut Rng) {
    let dt = bins.dt;
    let n = load.len();
    match part {
        Part::Churn { rate, lifetime } => {
            for (i, f) in load.iter().enumerate() {
                for _ in 0..rng.poisson(rate * density * f * dt) {
                    let at = (i as f64 + rng.unit()) * dt;
                    bins.object(i, at, lifetime.draw(rng));
                }
            }
        }
        Part::Leak {
            rate,
            from,
            load: follow,
            burst,
        } => {
            for (i, f) in load.iter().enumerate() {
                let t = offset + i as f64 * dt;
                if t + dt <= *from {
                    continue;
                }
                let share = ((t + dt - from) / dt).min(1.0);
                let follows = if *follow { *f } else { 1.0 };
                let mut amount = rate * density * follows * share * dt;
                if *burst > 0.0 {
                    let k = (burst / dt).max(1.0) as usize;
                    amount = if i % k == k - 1 {
                        amount * k as f64
                    } else {
                        0.0
                    };
                }
                for _ in 0..rng.poisson(amount) {
                    bins.object(i, i as f64 * dt, f64::INFINITY);
                }
            }
        }
        Part::Batch {
            bytes,
            period,
            duty,
        } => {
            let phase = rng.unit() * period;
            for i in 0..n {
                let at = (i as f64 + 0.5) * dt + phase;
                let within = at % period;
                if within < duty * period {
                    let amount = bytes * density * dt / (duty * period);
                    for _ in 0..rng.poisson(amount) {
                        bins.object(i, i as f64 * dt, period - within);
                    }
                }
            }
        }
        Part::Lru { bytes, fill, flush } => {
            // Inserted so far, in cache sizes.
            let mut inserted = vec![0.0; n + 1];
            for i in 0..n {
                inserted[i + 1] = inserted[i] + load[i] * dt / fill;
            }
            let phase = rng.unit() * flush;
            for i in 0..n {
                for _ in 0..rng.poisson(bytes / fill * density * load[i] * dt) {
                    let mine = inserted[i] + rng.unit() * (inserted[i + 1] - inserted[i]);
                    let out = inserted.partition_point(|&x| x < mine + 1.0);
                    let mut dies = if out > n {
                        f64::INFINITY
                    } else {
                        out as f64 * dt
                    };
                    let now = i as f64 * dt;
                    if *flush > 0.0 {
                        dies = dies.min(((now + phase) / flush).floor() * flush + flush - phase);
                    }
                    bins.object(i, now, dies - now);
                }
            }
        }
        Part::Hits {
            bytes,
            keys,
            rate,
            from,
        } => {
            let (mut held, mut sampled) = (0.0f64, 0u64);
            for (i, load) in load.iter().enumerate().take(n) {
                if offset + i as f64 * dt < *from {
                    continue;
                }
                let missed = rate * load * dt * (1.0 - held / keys).max(0.0);
                let missed = missed.min(keys - held.min(*keys));
                let evicted = (held + missed - bytes).max(0.0);
                let born = rng.poisson(missed * density);
                let mut died = 0;
                if evicted > 0.0 && held > 0.0 {
                    let share = (evicted / held).min(1.0);
                    died = (0..sampled).filter(|_| rng.chance(share)).count() as u64;
                }
                bins.births[i] += born as u32;
                bins.deaths[i] += died as u32;
                sampled = sampled + born - died;
                held = (held + missed).min(*bytes);
            }
        }
        Part::Zipf { keys, rate } => {
            // Keys by decades of rank; each decade holds an equal share of hits.
            const CLASSES: usize = 40;
            let mut held = [0.0f64; CLASSES];
            let edge = |c: usize| keys.powf(c as f64 / CLASSES as f64);
            for (i, load) in load.iter().enumerate().take(n) {
                for (c, h) in held.iter_mut().enumerate() {
                    let size = edge(c + 1) - edge(c);
                    let asked = rate * load * dt / CLASSES as f64;
                    let fresh = (size - *h) * (1.0 - (-asked / size).exp());
                    *h += fresh;
                    let born = rng.poisson(fresh * density);
                    bins.births[i] += born as u32;
                }
            }
        }
    }
}

/// Time of a point.
pub fn time(seconds: f64) -> Time {
    Time(START + (seconds * 1000.0) as i64)
}

/// The row as Go's runtime would write it: one bucket of objects of `size` bytes,
/// counts scaled up and cut to whole numbers.
pub fn profile(row: &Row, size: f64) -> Profile {
    let mut p = Profile {
        period: PERIOD as i64,
        ..Profile::default()
    };
    for (kind, unit) in [
        ("alloc_objects", "count"),
        ("alloc_space", "bytes"),
        ("inuse_objects", "count"),
        ("inuse_space", "bytes"),
    ] {
        let (kind, unit) = (p.intern(kind), p.intern(unit));
        p.sample_types.push(ValueType { kind, unit });
    }
    let name = p.intern("main.allocate");
    p.functions.push(Function {
        name,
        ..Function::default()
    });
    p.lines.push(Line {
        function: FunctionId(0),
        line: 1,
        column: 0,
    });
    p.locations.push(Location {
        line_count: 1,
        ..Location::default()
    });
    let key = p.intern("bytes");
    let label = Label {
        key,
        value: LabelValue::Number(size as i64, key),
    };
    let stack = p.stacks.intern(&[LocationId(0)]).unwrap_or_default();
    let labels = p.label_sets.intern(&[label]).unwrap_or_default();
    p.sample_stacks.push(StackId(stack));
    p.sample_labels.push(LabelSetId(labels));
    let scale = 1.0 / sampled_share(size, PERIOD);
    for n in [row.births.unwrap_or(0), row.live] {
        p.values.push((n as f64 * scale) as i64);
        p.values.push((n as f64 * size * scale) as i64);
    }
    p
}
