//! The families of the judging set: nothing is chosen on them.

use super::families::{
    Case, DAY, Family, HOUR, KB, MB, Truth, case, churn, daily, endless, healthy, hit_rate, leak,
    size,
};
use super::sim::{Lifetime, Part, Rng, Scenario};

const fn family(
    name: &'static str,
    truth: Truth,
    weight: usize,
    make: fn(&mut Rng) -> Case,
) -> Family {
    Family {
        name,
        truth,
        weight,
        make,
    }
}

/// The families.
pub const JUDGE: &[Family] = &[
    family("leak alone, of any size", Truth::Leak, 2, |r| {
        let onset = r.range(300.0, 6.0 * HOUR);
        let (mut s, rate) = leak(r, onset, 5.0, 350.0);
        s.age = r.log_range(0.3, 30.0) * HOUR;
        let z = r.log_range(16.0, 300_000.0).round();
        case(s.part(endless(rate, onset), z), onset, rate)
    }),
    family("leak before the watch, with churn", Truth::Leak, 1, |r| {
        let (mut s, rate) = leak(r, 0.0, 5.0, 250.0);
        let z = r.log_range(24.0, 40_000.0).round();
        let begun = r.range(0.3, 2.5) * HOUR;
        s.age = begun + r.range(0.1, 3.0) * HOUR;
        let life = Lifetime::Exponential(r.log_range(0.1, 8.0));
        let s = s
            .part(endless(rate, -begun), z)
            .part(churn(r.log_range(8.0, 250.0) * KB, life), z);
        case(s, 0.0, rate)
    }),
    family("leak since the process began", Truth::Leak, 1, |r| {
        let (mut s, rate) = leak(r, 0.0, 5.0, 300.0);
        let z = size(r);
        s.age = r.range(0.0, 1.5) * HOUR;
        s.start_known = r.chance(0.7);
        let age = s.age;
        s.load.jitter = Some((r.range(0.02, 0.15), r.range(60.0, 600.0)));
        let life = Lifetime::Uniform(0.0, r.log_range(0.3, 6.0));
        let s = s
            .part(endless(rate, -age), z)
            .part(churn(r.log_range(4.0, 150.0) * KB, life), z);
        case(s, 0.0, rate)
    }),
    family("leak of a new version, in two steps", Truth::Leak, 1, |r| {
        let onset = r.range(1.0, 6.0) * HOUR;
        let (mut s, rate) = leak(r, onset, 5.0, 250.0);
        let z = size(r);
        s.restarts.push((onset * r.range(0.2, 0.8), r.chance(0.5)));
        s.restarts.push((onset, r.chance(0.5)));
        s.load.daily = daily(r, 0.05, 0.4);
        let life = Lifetime::LogNormal(r.log_range(0.1, 3.0), 0.8, 30.0);
        let s = s
            .part(endless(rate, onset), z)
            .part(churn(r.log_range(4.0, 250.0) * KB, life), z);
        case(s, onset, rate)
    }),
    family("leak of each request, load rising", Truth::Leak, 1, |r| {
        let onset = r.range(600.0, 3.0 * HOUR);
        let (mut s, rate) = leak(r, onset, 5.5, 220.0);
        let z = size(r);
        for _ in 0..2 {
            let from = onset + r.range(-1800.0, 1800.0);
            let to = from + r.range(0.4, 2.5) * HOUR;
            s.load.ramps.push((from, to, r.range(1.05, 1.9)));
        }
        let part = Part::Leak {
            rate,
            from: onset,
            load: true,
            burst: 0.0,
        };
        let life = Lifetime::Exponential(r.log_range(0.05, 4.0));
        let s = s
            .part(part, z)
            .part(churn(r.log_range(4.0, 250.0) * KB, life), z);
        case(s, onset, rate)
    }),
    family("leak beside two lifetimes", Truth::Leak, 2, |r| {
        let onset = r.range(1200.0, 4.0 * HOUR);
        let (s, rate) = leak(r, onset, 5.0, 280.0);
        let z = r.log_range(20.0, 25_000.0).round();
        let (mean, life) = (r.log_range(0.1, 2.0), r.log_range(5.0, 300.0));
        let (brief, slow) = (r.log_range(0.05, 1.5) * MB, r.log_range(0.05, 1.5) * MB);
        let s = s
            .part(endless(rate, onset), z)
            .part(
                churn((brief / mean).min(3.0 * MB), Lifetime::Exponential(mean)),
                z,
            )
            .part(churn(slow / life, Lifetime::Fixed(life)), z);
        case(s, onset, rate)
    }),
    family("leak beside small batches", Truth::Leak, 1, |r| {
        let onset = r.range(1200.0, 4.0 * HOUR);
        let (s, rate) = leak(r, onset, 5.0, 250.0);
        let z = size(r);
        let part = Part::Batch {
            bytes: r.log_range(0.2, 3.0) * MB,
            period: r.range(60.0, 600.0),
            duty: r.range(0.2, 1.0),
        };
        case(s.part(endless(rate, onset), z).part(part, z), onset, rate)
    }),
    family("leak after hours of a daily cycle", Truth::Leak, 1, |r| {
        let onset = r.range(4.0, 22.0) * HOUR;
        let (mut s, rate) = leak(r, onset, 5.0, 220.0);
        let z = size(r);
        s.load.daily = Some((r.range(0.1, 0.6), r.range(0.0, DAY), r.range(0.0, 1.0)));
        s.load.jitter = Some((r.range(0.02, 0.2), r.range(30.0, 600.0)));
        let life = Lifetime::Exponential(r.log_range(0.1, 4.0));
        let s = s
            .part(endless(rate, onset), z)
            .part(churn(r.log_range(10.0, 400.0) * KB, life), z);
        case(s, onset, rate)
    }),
    family("leak beside a cache filled long ago", Truth::Leak, 1, |r| {
        let onset = r.range(1.0, 5.0) * HOUR;
        let (mut s, rate) = leak(r, onset, 5.0, 250.0);
        let z = size(r);
        let keys = r.log_range(0.5, 40.0) * MB;
        s.load.jitter = Some((0.1, 200.0));
        let part = Part::Hits {
            bytes: 2.0 * keys,
            keys,
            rate: hit_rate(keys, 0.7, 0.1),
            from: -3.0 * HOUR,
        };
        case(s.part(endless(rate, onset), z).part(part, z), onset, rate)
    }),
    family("leak in bursts", Truth::Leak, 1, |r| {
        let onset = r.range(450.0, 4.0 * HOUR);
        let (s, rate) = leak(r, onset, 5.5, 250.0);
        let z = size(r);
        let part = Part::Leak {
            rate,
            from: onset,
            load: false,
            burst: r.log_range(20.0, 360.0),
        };
        case(s.part(part, z), onset, rate)
    }),
    family(
        "steady churn, few or many objects",
        Truth::Healthy,
        2,
        |r| {
            let z = r.log_range(10.0, 600_000.0).round();
            let longest = r.log_range(1.0, 1200.0);
            let rate = (r.log_range(0.5, 500.0) * MB / longest).min(3.0 * MB);
            let life = Lifetime::Uniform(0.0, longest);
            let s = Scenario::new(DAY).part(churn(rate, life), z);
            healthy(r, s)
        },
    ),
    family("ramps from before the watch on", Truth::Healthy, 2, |r| {
        let z = size(r);
        let median = r.log_range(0.5, 500.0);
        let life = Lifetime::LogNormal(median, r.range(0.2, 1.0), 1200.0);
        let mut s = Scenario::new(DAY).part(churn(r.log_range(10.0, 700.0) * KB, life), z);
        let mut t = -r.range(0.0, 2.0) * HOUR;
        while t < DAY {
            let length = r.log_range(60.0, 6.0 * HOUR);
            s.load.ramps.push((t, t + length, r.log_range(0.4, 2.5)));
            t += length + r.range(0.0, 6.0) * HOUR;
        }
        healthy(r, s)
    }),
    family("sessions, two kinds, daily cycle", Truth::Healthy, 2, |r| {
        let z = size(r);
        let short = Lifetime::Fixed(r.range(60.0, 500.0));
        let long = Lifetime::Uniform(r.range(400.0, 1000.0), 1200.0);
        let mut s = Scenario::new(DAY)
            .part(churn(r.log_range(8.0, 400.0) * KB, short), z)
            .part(churn(r.log_range(4.0, 300.0) * KB, long), z);
        s.load.daily = Some((r.range(0.2, 0.95), r.range(0.0, DAY), r.range(0.0, 1.0)));
        healthy(r, s)
    }),
    family("batches, one long, one short", Truth::Healthy, 2, |r| {
        let z = size(r);
        let mut s = Scenario::new(DAY);
        for (low, high) in [(700.0, 1200.0), (40.0, 400.0)] {
            let part = Part::Batch {
                bytes: r.log_range(2.0, 350.0) * MB,
                period: r.range(low, high),
                duty: r.range(0.05, 1.0),
            };
            s = s.part(part, z);
        }
        healthy(r, s)
    }),
    family("batches over a daily cycle", Truth::Healthy, 1, |r| {
        let z = size(r);
        let part = Part::Batch {
            bytes: r.log_range(3.0, 150.0) * MB,
            period: r.range(150.0, 1200.0),
            duty: r.range(0.1, 0.9),
        };
        let life = Lifetime::LogNormal(r.log_range(1.0, 300.0), 0.6, 1200.0);
        let mut s = Scenario::new(DAY)
            .part(part, z)
            .part(churn(r.log_range(10.0, 500.0) * KB, life), z);
        s.load.daily = daily(r, 0.2, 0.9);
        healthy(r, s)
    }),
    family(
        "daily cycle, lifetimes of three scales",
        Truth::Healthy,
        2,
        |r| {
            let z = size(r);
            let mut s = Scenario::new(DAY);
            for (rate, mean) in [(800.0, 0.4), (200.0, 15.0), (60.0, 200.0)] {
                let life = Lifetime::Exponential(mean * r.range(0.5, 1.4));
                s = s.part(churn(rate * KB * r.log_range(0.2, 2.0), life), z);
            }
            s.load.daily = Some((r.range(0.3, 0.9), r.range(0.0, DAY), r.range(0.0, 0.9)));
            healthy(r, s)
        },
    ),
    family("flash crowds over sessions", Truth::Healthy, 1, |r| {
        let z = size(r);
        let life = Lifetime::Uniform(0.0, r.log_range(20.0, 1200.0));
        let mut s = Scenario::new(DAY).part(churn(r.log_range(10.0, 350.0) * KB, life), z);
        s.load.daily = daily(r, 0.1, 0.5);
        for _ in 0..10 {
            let from = r.range(-1.0, 24.0) * HOUR;
            let length = r.log_range(45.0, 6000.0);
            let gain = r.range(1.2, 4.5);
            s.load.bursts.push((from, from + length, gain));
        }
        healthy(r, s)
    }),
    family(
        "deploys: sessions, cache of new keys",
        Truth::Healthy,
        2,
        |r| {
            let z = size(r);
            let cache = Part::Lru {
                bytes: r.log_range(4.0, 250.0) * MB,
                fill: r.range(60.0, 1000.0),
                flush: 0.0,
            };
            let life = Lifetime::LogNormal(r.log_range(1.0, 400.0), 0.7, 1200.0);
            let mut s = Scenario::new(DAY)
                .part(cache, z)
                .part(churn(r.log_range(10.0, 500.0) * KB, life), z);
            s.load.jitter = Some((r.range(0.02, 0.06), r.range(30.0, 600.0)));
            let mut t = r.range(0.1, 3.0) * HOUR;
            while t < DAY {
                s.restarts.push((t, r.chance(0.5)));
                t += r.log_range(0.15, 9.0) * HOUR;
            }
            healthy(r, s)
        },
    ),
    family(
        "cache of hits, filled in the watch",
        Truth::Healthy,
        1,
        |r| {
            let z = size(r);
            let jitter = r.range(0.02, 0.35);
            let keys = r.log_range(4.0, 350.0) * MB;
            let part = Part::Hits {
                bytes: keys * r.range(0.25, 1.6),
                keys,
                rate: hit_rate(keys, r.range(0.1, 1.0), jitter),
                // Also just before: the watch comes upon a cold cache.
                from: r.range(-0.3, 14.0) * HOUR,
            };
            let life = Lifetime::Exponential(r.log_range(0.2, 120.0));
            let mut s = Scenario::new(DAY)
                .part(part, z)
                .part(churn(r.log_range(5.0, 300.0) * KB, life), z);
            s.load.jitter = Some((jitter, r.range(30.0, 900.0)));
            healthy(r, s)
        },
    ),
    family(
        "cache flushed now and then, two of them",
        Truth::Healthy,
        1,
        |r| {
            let z = size(r);
            let mut s = Scenario::new(DAY);
            for _ in 0..2 {
                let part = Part::Lru {
                    bytes: r.log_range(4.0, 200.0) * MB,
                    fill: r.range(60.0, 1000.0),
                    flush: r.range(0.4, 7.0) * HOUR,
                };
                s = s.part(part, z);
            }
            s.load.jitter = Some((0.06, 90.0));
            healthy(r, s)
        },
    ),
    family("cache filling for hours", Truth::Slow, 1, |r| {
        let z = size(r);
        let part = Part::Lru {
            bytes: r.log_range(15.0, 350.0) * MB,
            fill: r.range(1.2, 15.0) * HOUR,
            flush: 0.0,
        };
        let mut s = Scenario::new(DAY).part(part, z);
        s.age = 0.0;
        healthy(r, s)
    }),
    family("cache with Zipf hits", Truth::Slow, 1, |r| {
        let z = size(r);
        let keys = r.log_range(15.0, 350.0) * MB;
        let rate = keys / r.range(1.0, 10.0) / HOUR;
        let s = Scenario::new(DAY).part(Part::Zipf { keys, rate }, z);
        healthy(r, s)
    }),
    family("heavy-tailed lifetimes", Truth::Slow, 1, |r| {
        let z = size(r);
        let life = Lifetime::Pareto(r.log_range(4.0, 80.0), r.range(1.05, 1.9));
        let s = Scenario::new(DAY).part(churn(r.log_range(20.0, 250.0) * KB, life), z);
        healthy(r, s)
    }),
    family("sessions of hours, daily cycle", Truth::Slow, 1, |r| {
        let z = size(r);
        let life = Lifetime::Exponential(r.range(0.8, 3.0) * HOUR);
        let mut s = Scenario::new(DAY).part(churn(r.log_range(5.0, 90.0) * KB, life), z);
        s.load.daily = daily(r, 0.2, 0.8);
        healthy(r, s)
    }),
];
