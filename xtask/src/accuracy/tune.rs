//! The families of the tuning set.

use super::families::{
    DAY, Family, HOUR, KB, MB, Truth, case, churn, daily, endless, healthy, hit_rate, leak, size,
};
use super::sim::{Lifetime, Part, Scenario};

/// The families of the tuning set.
pub const TUNE: &[Family] = &[
    Family {
        name: "leak, nothing else",
        truth: Truth::Leak,
        weight: 2,
        make: |r| {
            let onset = r.range(300.0, 2.0 * HOUR);
            let (s, rate) = leak(r, onset, 5.0, 200.0);
            let z = size(r);
            case(s.part(endless(rate, onset), z), onset, rate)
        },
    },
    Family {
        name: "leak before the watch",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let (s, rate) = leak(r, 0.0, 5.0, 100.0);
            let z = size(r);
            case(s.part(endless(rate, -2.0 * HOUR), z), 0.0, rate)
        },
    },
    Family {
        name: "leak under a load ramp",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let onset = r.range(600.0, 2.0 * HOUR);
            let (mut s, rate) = leak(r, onset, 5.0, 200.0);
            s.load.ramps.push((
                onset - 600.0,
                onset + r.range(0.5, 3.0) * HOUR,
                r.range(1.3, 3.0),
            ));
            let z = size(r);
            let part = Part::Leak {
                rate,
                from: onset,
                load: true,
                burst: 0.0,
            };
            case(s.part(part, z), onset, rate)
        },
    },
    Family {
        name: "leak with churn at the stack",
        truth: Truth::Leak,
        weight: 2,
        make: |r| {
            let onset = r.range(600.0, 3.0 * HOUR);
            let (s, rate) = leak(r, onset, 5.0, 200.0);
            let z = size(r);
            let mean = r.log_range(0.05, 30.0);
            // Live churn up to a few MB.
            let rest = r.log_range(0.05, 4.0) * MB;
            let s = s.part(endless(rate, onset), z).part(
                churn((rest / mean).min(2.0 * MB), Lifetime::Exponential(mean)),
                z,
            );
            case(s, onset, rate)
        },
    },
    Family {
        name: "leak after hours",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let onset = r.range(4.0, 12.0) * HOUR;
            let (s, rate) = leak(r, onset, 5.0, 200.0);
            let z = size(r);
            let s = s.part(endless(rate, onset), z).part(
                churn(r.log_range(10.0, 500.0) * KB, Lifetime::Exponential(2.0)),
                z,
            );
            case(s, onset, rate)
        },
    },
    Family {
        name: "leak in a daily cycle",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let onset = r.range(1.0, 12.0) * HOUR;
            let (mut s, rate) = leak(r, onset, 5.0, 200.0);
            s.load.daily = daily(r, 0.2, 0.6);
            let z = size(r);
            let s = s.part(endless(rate, onset), z).part(
                churn(
                    r.log_range(10.0, 500.0) * KB,
                    Lifetime::Exponential(r.log_range(0.1, 5.0)),
                ),
                z,
            );
            case(s, onset, rate)
        },
    },
    Family {
        name: "leak of small objects",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let onset = r.range(300.0, 2.0 * HOUR);
            let (s, rate) = leak(r, onset, 5.0, 100.0);
            let z = r.range(16.0, 128.0).round();
            case(s.part(endless(rate, onset), z), onset, rate)
        },
    },
    Family {
        name: "leak of large objects",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let onset = r.range(300.0, 2.0 * HOUR);
            let (s, rate) = leak(r, onset, 5.0, 200.0);
            let z = r.range(65_536.0, 400_000.0).round();
            case(s.part(endless(rate, onset), z), onset, rate)
        },
    },
    Family {
        name: "leak in bursts",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let onset = r.range(300.0, 2.0 * HOUR);
            let (s, rate) = leak(r, onset, 5.0, 200.0);
            let z = size(r);
            let part = Part::Leak {
                rate,
                from: onset,
                load: false,
                burst: r.range(60.0, 300.0),
            };
            case(s.part(part, z), onset, rate)
        },
    },
    Family {
        name: "steady churn",
        truth: Truth::Healthy,
        weight: 2,
        make: |r| {
            let z = size(r);
            let mean = r.log_range(1.0, 1200.0 / 4.0);
            let live = r.log_range(1.0, 300.0) * MB;
            let rate = (live / mean).min(2.0 * MB);
            let s = Scenario::new(DAY).part(churn(rate, Lifetime::Exponential(mean)), z);
            healthy(r, s)
        },
    },
    Family {
        name: "load ramp",
        truth: Truth::Healthy,
        weight: 1,
        make: |r| {
            let z = size(r);
            let life = r.log_range(5.0, 1200.0);
            let mut s = Scenario::new(DAY).part(
                churn(r.log_range(20.0, 1500.0) * KB, Lifetime::Uniform(0.0, life)),
                z,
            );
            for _ in 0..3 {
                let from = r.range(0.0, 20.0) * HOUR;
                s.load.ramps.push((
                    from,
                    from + r.log_range(0.1, 6.0) * HOUR,
                    r.log_range(0.4, 3.0),
                ));
            }
            healthy(r, s)
        },
    },
    Family {
        name: "sessions up to 20 min",
        truth: Truth::Healthy,
        weight: 2,
        make: |r| {
            let z = size(r);
            let life = r.range(300.0, 1200.0);
            let mut s = Scenario::new(DAY).part(
                churn(r.log_range(10.0, 500.0) * KB, Lifetime::Fixed(life)),
                z,
            );
            s.load.daily = daily(r, 0.1, 0.9);
            healthy(r, s)
        },
    },
    Family {
        name: "saw-tooth batches",
        truth: Truth::Healthy,
        weight: 2,
        make: |r| {
            let z = size(r);
            let part = Part::Batch {
                bytes: r.log_range(5.0, 500.0) * MB,
                period: r.range(120.0, 1200.0),
                duty: r.range(0.2, 1.0),
            };
            let s = Scenario::new(DAY).part(part, z);
            healthy(r, s)
        },
    },
    Family {
        name: "daily cycle",
        truth: Truth::Healthy,
        weight: 2,
        make: |r| {
            let z = size(r);
            let mean = r.log_range(0.5, 300.0);
            let mut s = Scenario::new(DAY).part(
                churn(r.log_range(20.0, 1500.0) * KB, Lifetime::Exponential(mean)),
                z,
            );
            s.load.daily = daily(r, 0.3, 0.95);
            healthy(r, s)
        },
    },
    Family {
        name: "deploys and restarts",
        truth: Truth::Healthy,
        weight: 1,
        make: |r| {
            let z = size(r);
            let mut s = Scenario::new(DAY)
                .part(
                    churn(
                        r.log_range(20.0, 800.0) * KB,
                        Lifetime::Uniform(0.0, r.range(60.0, 1200.0)),
                    ),
                    z,
                )
                .part(
                    Part::Lru {
                        bytes: r.log_range(5.0, 200.0) * MB,
                        fill: r.range(60.0, 900.0),
                        flush: 0.0,
                    },
                    z,
                );
            let mut t = 0.0;
            while {
                t += r.log_range(0.3, 6.0) * HOUR;
                t < DAY
            } {
                s.restarts.push((t, r.chance(0.5)));
            }
            healthy(r, s)
        },
    },
    Family {
        name: "cache of new keys",
        truth: Truth::Healthy,
        weight: 1,
        make: |r| {
            let z = size(r);
            let fill = r.range(60.0, 1100.0);
            let mut s = Scenario::new(DAY).part(
                Part::Lru {
                    bytes: r.log_range(5.0, 400.0) * MB,
                    fill,
                    flush: 0.0,
                },
                z,
            );
            s.load.jitter = Some((0.05, 60.0));
            s.age = 0.0;
            healthy(r, s)
        },
    },
    Family {
        name: "cache with random hits",
        truth: Truth::Healthy,
        weight: 1,
        make: |r| {
            let z = size(r);
            let keys = r.log_range(5.0, 400.0) * MB;
            let bytes = keys * r.range(0.3, 1.5);
            let jitter = r.range(0.02, 0.4);
            let rate = hit_rate(keys, r.range(0.1, 1.0), jitter);
            let from = if r.chance(0.5) {
                r.range(0.0, 12.0) * HOUR
            } else {
                -3.0 * HOUR
            };
            let mut s = Scenario::new(DAY).part(
                Part::Hits {
                    bytes,
                    keys,
                    rate,
                    from,
                },
                z,
            );
            s.load.jitter = Some((jitter, r.range(30.0, 900.0)));
            healthy(r, s)
        },
    },
    Family {
        name: "two lifetimes, daily cycle",
        truth: Truth::Healthy,
        weight: 1,
        make: |r| {
            let z = size(r);
            let mut s = Scenario::new(DAY)
                .part(
                    churn(r.log_range(100.0, 1500.0) * KB, Lifetime::Exponential(1.0)),
                    z,
                )
                .part(
                    churn(
                        r.log_range(10.0, 100.0) * KB,
                        Lifetime::Uniform(300.0, 1200.0),
                    ),
                    z,
                );
            s.load.daily = daily(r, 0.3, 0.8);
            healthy(r, s)
        },
    },
    Family {
        name: "cache filling for hours",
        truth: Truth::Slow,
        weight: 1,
        make: |r| {
            let z = size(r);
            let fill = r.range(2.0, 12.0) * HOUR;
            let mut s = Scenario::new(DAY).part(
                Part::Lru {
                    bytes: r.log_range(20.0, 400.0) * MB,
                    fill,
                    flush: 0.0,
                },
                z,
            );
            s.age = 0.0;
            healthy(r, s)
        },
    },
    Family {
        name: "heavy-tailed lifetimes",
        truth: Truth::Slow,
        weight: 1,
        make: |r| {
            let z = size(r);
            let life = Lifetime::Pareto(r.log_range(10.0, 120.0), r.range(1.1, 1.8));
            let s = Scenario::new(DAY).part(churn(r.log_range(20.0, 300.0) * KB, life), z);
            healthy(r, s)
        },
    },
    Family {
        name: "sessions of hours, daily cycle",
        truth: Truth::Slow,
        weight: 1,
        make: |r| {
            let z = size(r);
            let mut s = Scenario::new(DAY).part(
                churn(
                    r.log_range(5.0, 100.0) * KB,
                    Lifetime::Exponential(r.range(1.0, 4.0) * HOUR),
                ),
                z,
            );
            s.load.daily = daily(r, 0.2, 0.8);
            healthy(r, s)
        },
    },
];
