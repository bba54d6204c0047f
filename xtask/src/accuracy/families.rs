//! What the families of series are made of: leaking, healthy, and healthy but slow
//! to settle. The set for tuning and the set for judging share shapes where nature
//! has only one, but differ in parameters, sizes, and several families altogether.

use super::sim::{Lifetime, Part, Rng, Scenario};

/// What is true of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// Leaks from `Case::onset` on.
    Leak,
    /// Everything settles within 20 minutes.
    Healthy,
    /// Healthy, but takes hours to settle: may be called growing.
    Slow,
}

/// One series to simulate, and what is true of it.
pub struct Case {
    pub scenario: Scenario,
    /// Second at which the leak begins; negative before the watch.
    pub onset: f64,
    /// Leaked bytes per second.
    pub rate: f64,
}

/// A named family.
pub struct Family {
    pub name: &'static str,
    pub truth: Truth,
    /// Share of the series of its kind.
    pub weight: usize,
    pub make: fn(&mut Rng) -> Case,
}

pub(super) const HOUR: f64 = 3600.0;
pub(super) const DAY: f64 = 86_400.0;
/// Watched after the onset: a little over the hour that counts.
const AFTER: f64 = HOUR + 60.0;
pub(super) const KB: f64 = 1000.0;
pub(super) const MB: f64 = 1e6;

pub(super) fn leak(rng: &mut Rng, onset: f64, low: f64, high: f64) -> (Scenario, f64) {
    let rate = rng.log_range(low * KB, high * KB);
    let mut s = Scenario::new(onset.max(0.0) + AFTER);
    s.gc_every = if rng.chance(0.3) {
        1 + (rng.unit() * 4.0) as usize
    } else {
        1
    };
    (s, rate)
}

pub(super) fn case(scenario: Scenario, onset: f64, rate: f64) -> Case {
    Case {
        scenario,
        onset,
        rate,
    }
}

pub(super) fn endless(rate: f64, from: f64) -> Part {
    Part::Leak {
        rate,
        from,
        load: false,
        burst: 0.0,
    }
}

pub(super) fn churn(rate: f64, lifetime: Lifetime) -> Part {
    Part::Churn { rate, lifetime }
}

pub(super) fn healthy(rng: &mut Rng, scenario: Scenario) -> Case {
    let mut s = scenario;
    if rng.chance(0.3) {
        s.gc_every = 1 + (rng.unit() * 4.0) as usize;
    }
    s.age = if rng.chance(0.3) { 0.0 } else { 3.0 * HOUR };
    s.start_known = s.age == 0.0;
    if s.load.jitter.is_none() && rng.chance(0.5) {
        s.load.jitter = Some((rng.range(0.05, 0.4), rng.range(30.0, 900.0)));
    }
    case(s, f64::INFINITY, 0.0)
}

pub(super) fn size(rng: &mut Rng) -> f64 {
    rng.log_range(16.0, 16_384.0).round()
}

pub(super) fn daily(rng: &mut Rng, low: f64, high: f64) -> Option<(f64, f64, f64)> {
    Some((rng.range(low, high), rng.range(0.0, DAY), 0.0))
}

/// Keys asked for per second, for a cache of `keys` bytes of keys that holds 95 %
/// of what it will hold within `fraction` of 20 minutes even at the lowest load
/// that `jitter` brings (2.5 deviations).
pub(super) fn hit_rate(keys: f64, fraction: f64, jitter: f64) -> f64 {
    let lowest = (-2.5 * jitter - 0.5 * jitter * jitter).exp();
    3.0 * keys / (1200.0 * fraction * lowest)
}

/// A leak of 1 to 2 MB/s in a service watched every 5 s: what a person tries first.
pub fn fast_leak(r: &mut Rng) -> Case {
    let onset = r.range(120.0, 300.0);
    let rate = r.range(1.0, 2.0) * MB;
    let mut s = Scenario::new(onset + 400.0);
    s.interval = 5.0;
    s.age = r.range(5.0, 120.0);
    s.start_known = true;
    s.gc_every = 1 + (r.unit() * 3.0) as usize;
    let z = size(r);
    case(s.part(endless(rate, onset), z), onset, rate)
}
