//! Families for tuning: the second judging set, looked at once, found wanting,
//! and used for tuning since.

use super::families::{
    DAY, Family, HOUR, KB, MB, Truth, case, churn, daily, endless, healthy, hit_rate, leak, size,
};
use super::sim::{Lifetime, Part, Scenario};

/// The families.
pub const TUNE_THIRD: &[Family] = &[
    Family {
        name: "leak, nothing else",
        truth: Truth::Leak,
        weight: 2,
        make: |r| {
            let onset = r.range(450.0, 4.0 * HOUR);
            let (s, rate) = leak(r, onset, 5.0, 400.0);
            let z = r.log_range(48.0, 60_000.0).round();
            let s = s.part(endless(rate, onset), z);
            case(s, onset, rate)
        },
    },
    Family {
        name: "leak before the watch, with churn",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let (s, rate) = leak(r, 0.0, 5.0, 200.0);
            let onset = 0.0;
            let z = size(r);
            let life = Lifetime::Uniform(0.0, r.log_range(0.2, 20.0));
            let s = s
                .part(endless(rate, -1.5 * HOUR), z)
                .part(churn(r.log_range(5.0, 200.0) * KB, life), z);
            case(s, onset, rate)
        },
    },
    Family {
        name: "leak beside sessions",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let onset = r.range(900.0, 3.0 * HOUR);
            let (s, rate) = leak(r, onset, 5.0, 200.0);
            let z = size(r);
            let life = r.log_range(20.0, 600.0);
            let live = r.log_range(0.2, 3.0) * MB;
            let s = s
                .part(endless(rate, onset), z)
                .part(churn(2.0 * live / life, Lifetime::Uniform(0.0, life)), z);
            case(s, onset, rate)
        },
    },
    Family {
        name: "leak with heavy churn at the stack",
        truth: Truth::Leak,
        weight: 2,
        make: |r| {
            let onset = r.range(900.0, 3.0 * HOUR);
            let (s, rate) = leak(r, onset, 5.0, 250.0);
            let z = r.log_range(32.0, 30_000.0).round();
            let mean = r.log_range(0.05, 5.0);
            let live = r.log_range(0.05, 2.0) * MB;
            let s = s.part(endless(rate, onset), z).part(
                churn((live / mean).min(4.0 * MB), Lifetime::Exponential(mean)),
                z,
            );
            case(s, onset, rate)
        },
    },
    Family {
        name: "leak that follows a load ramp",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let onset = r.range(600.0, 3.0 * HOUR);
            let (mut s, rate) = leak(r, onset, 5.0, 200.0);
            let z = size(r);
            s.load.ramps.push((
                onset + r.range(-600.0, 600.0),
                onset + r.range(0.5, 3.0) * HOUR,
                r.range(1.2, 3.0),
            ));
            let s = s
                .part(
                    Part::Leak {
                        rate,
                        from: onset,
                        load: true,
                        burst: 0.0,
                    },
                    z,
                )
                .part(
                    churn(r.log_range(5.0, 100.0) * KB, Lifetime::Uniform(0.0, 4.0)),
                    z,
                );
            case(s, onset, rate)
        },
    },
    Family {
        name: "leak from the start of a new version",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let onset = r.range(0.5, 5.0) * HOUR;
            let (mut s, rate) = leak(r, onset, 5.0, 200.0);
            let z = size(r);
            s.restarts.push((onset, r.chance(0.5)));
            let s = s.part(endless(rate, onset), z).part(
                churn(
                    r.log_range(5.0, 300.0) * KB,
                    Lifetime::Exponential(r.log_range(0.2, 5.0)),
                ),
                z,
            );
            case(s, onset, rate)
        },
    },
    Family {
        name: "leak after hours, two peaks a day",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let onset = r.range(3.0, 20.0) * HOUR;
            let (mut s, rate) = leak(r, onset, 5.0, 250.0);
            let z = size(r);
            s.load.daily = Some((r.range(0.2, 0.6), r.range(0.0, DAY), r.range(0.2, 1.0)));
            let s = s.part(endless(rate, onset), z).part(
                churn(
                    r.log_range(10.0, 300.0) * KB,
                    Lifetime::LogNormal(1.0, 0.7, 60.0),
                ),
                z,
            );
            case(s, onset, rate)
        },
    },
    Family {
        name: "leak in flash crowds",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let onset = r.range(0.5, 3.0) * HOUR;
            let (mut s, rate) = leak(r, onset, 5.0, 200.0);
            let z = size(r);
            for _ in 0..3 {
                let at = r.range(0.0, onset + HOUR);
                s.load
                    .bursts
                    .push((at, at + r.range(120.0, 1200.0), r.range(1.3, 3.0)));
            }
            let s = s.part(endless(rate, onset), z).part(
                churn(r.log_range(5.0, 200.0) * KB, Lifetime::Uniform(0.0, 5.0)),
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
            let onset = r.range(450.0, 3.0 * HOUR);
            let (s, rate) = leak(r, onset, 5.0, 120.0);
            let z = r.range(8.0, 100.0).round();
            let s = s.part(endless(rate, onset), z);
            case(s, onset, rate)
        },
    },
    Family {
        name: "leak of large objects",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let onset = r.range(450.0, 3.0 * HOUR);
            let (s, rate) = leak(r, onset, 5.0, 250.0);
            let z = r.range(50_000.0, 500_000.0).round();
            let s = s.part(endless(rate, onset), z);
            case(s, onset, rate)
        },
    },
    Family {
        name: "steady churn of all sizes",
        truth: Truth::Healthy,
        weight: 2,
        make: |r| {
            let z = r.log_range(8.0, 900_000.0).round();
            let mean = r.log_range(0.3, 280.0);
            let s = Scenario::new(DAY).part(
                churn(r.log_range(10.0, 2000.0) * KB, Lifetime::Exponential(mean)),
                z,
            );
            healthy(r, s)
        },
    },
    Family {
        name: "ramps and steps, fixed lifetimes",
        truth: Truth::Healthy,
        weight: 2,
        make: |r| {
            let z = size(r);
            let life = r.log_range(10.0, 1200.0);
            let mut s = Scenario::new(DAY).part(
                churn(r.log_range(10.0, 800.0) * KB, Lifetime::Fixed(life)),
                z,
            );
            for _ in 0..5 {
                let from = r.range(0.0, 23.0) * HOUR;
                let length = if r.chance(0.3) {
                    30.0
                } else {
                    r.log_range(0.05, 10.0) * HOUR
                };
                s.load
                    .ramps
                    .push((from, from + length, r.log_range(0.35, 3.0)));
            }
            healthy(r, s)
        },
    },
    Family {
        name: "slow jitter of the load",
        truth: Truth::Healthy,
        weight: 1,
        make: |r| {
            let z = size(r);
            let mut s = Scenario::new(DAY).part(
                churn(
                    r.log_range(10.0, 600.0) * KB,
                    Lifetime::LogNormal(r.log_range(1.0, 300.0), 0.7, 1200.0),
                ),
                z,
            );
            s.load.jitter = Some((r.range(0.2, 0.6), r.range(600.0, 4.0 * HOUR)));
            healthy(r, s)
        },
    },
    Family {
        name: "sessions up to 20 min, daily cycle",
        truth: Truth::Healthy,
        weight: 2,
        make: |r| {
            let z = size(r);
            let mut s = Scenario::new(DAY).part(
                churn(
                    r.log_range(10.0, 600.0) * KB,
                    Lifetime::Uniform(r.range(200.0, 900.0), 1200.0),
                ),
                z,
            );
            s.load.daily = daily(r, 0.2, 0.95);
            healthy(r, s)
        },
    },
    Family {
        name: "three batch jobs, periods alike",
        truth: Truth::Healthy,
        weight: 2,
        make: |r| {
            let z = size(r);
            let base = r.range(120.0, 1100.0);
            let mut s = Scenario::new(DAY);
            for _ in 0..3 {
                s = s.part(
                    Part::Batch {
                        bytes: r.log_range(3.0, 200.0) * MB,
                        period: base * r.range(0.92, 1.08),
                        duty: r.range(0.1, 1.0),
                    },
                    z,
                );
            }
            healthy(r, s)
        },
    },
    Family {
        name: "batches over sessions",
        truth: Truth::Healthy,
        weight: 1,
        make: |r| {
            let z = size(r);
            let mut s = Scenario::new(DAY)
                .part(
                    Part::Batch {
                        bytes: r.log_range(2.0, 200.0) * MB,
                        period: r.range(200.0, 1200.0),
                        duty: r.range(0.05, 0.9),
                    },
                    z,
                )
                .part(
                    churn(
                        r.log_range(10.0, 300.0) * KB,
                        Lifetime::Uniform(0.0, 1200.0),
                    ),
                    z,
                );
            s.load.daily = Some((r.range(0.2, 0.8), r.range(0.0, DAY), r.range(0.0, 0.8)));
            healthy(r, s)
        },
    },
    Family {
        name: "daily cycle, log-normal lifetimes",
        truth: Truth::Healthy,
        weight: 2,
        make: |r| {
            let z = size(r);
            let mut s = Scenario::new(DAY).part(
                churn(
                    r.log_range(10.0, 1500.0) * KB,
                    Lifetime::LogNormal(r.log_range(0.2, 250.0), r.range(0.3, 1.2), 1200.0),
                ),
                z,
            );
            s.load.daily = daily(r, 0.3, 0.95);
            healthy(r, s)
        },
    },
    Family {
        name: "flash crowds, fixed lifetimes",
        truth: Truth::Healthy,
        weight: 1,
        make: |r| {
            let z = size(r);
            let mut s = Scenario::new(DAY).part(
                churn(
                    r.log_range(10.0, 250.0) * KB,
                    Lifetime::Fixed(r.log_range(20.0, 1200.0)),
                ),
                z,
            );
            for _ in 0..12 {
                let from = r.range(0.0, 24.0) * HOUR;
                s.load
                    .bursts
                    .push((from, from + r.log_range(30.0, 5400.0), r.range(1.3, 5.0)));
            }
            healthy(r, s)
        },
    },
    Family {
        name: "deploys: cache and sessions",
        truth: Truth::Healthy,
        weight: 1,
        make: |r| {
            let z = size(r);
            let jitter = r.range(0.02, 0.3);
            let keys = r.log_range(5.0, 250.0) * MB;
            let rate = hit_rate(keys, r.range(0.1, 1.0), jitter);
            let mut s = Scenario::new(DAY)
                .part(
                    Part::Hits {
                        bytes: keys * r.range(0.4, 1.4),
                        keys,
                        rate,
                        from: -4.0 * HOUR,
                    },
                    z,
                )
                .part(
                    churn(
                        r.log_range(10.0, 500.0) * KB,
                        Lifetime::Uniform(0.0, r.range(100.0, 1200.0)),
                    ),
                    z,
                );
            let mut t = 0.0;
            while {
                t += r.log_range(0.2, 6.0) * HOUR;
                t < DAY
            } {
                s.restarts.push((t, r.chance(0.5)));
            }
            s.load.jitter = Some((jitter, r.range(30.0, 900.0)));
            healthy(r, s)
        },
    },
    Family {
        name: "cache emptied, over churn",
        truth: Truth::Healthy,
        weight: 1,
        make: |r| {
            let z = size(r);
            let mut s = Scenario::new(DAY)
                .part(
                    Part::Lru {
                        bytes: r.log_range(5.0, 300.0) * MB,
                        fill: r.range(60.0, 1000.0),
                        flush: r.range(0.4, 8.0) * HOUR,
                    },
                    z,
                )
                .part(
                    churn(
                        r.log_range(10.0, 500.0) * KB,
                        Lifetime::Exponential(r.log_range(0.3, 100.0)),
                    ),
                    z,
                );
            s.load.jitter = Some((0.07, 120.0));
            healthy(r, s)
        },
    },
    Family {
        name: "caches with random hits",
        truth: Truth::Healthy,
        weight: 1,
        make: |r| {
            let z = size(r);
            let jitter = r.range(0.02, 0.3);
            let mut s = Scenario::new(DAY);
            for _ in 0..2 {
                let keys = r.log_range(3.0, 200.0) * MB;
                let rate = hit_rate(keys, r.range(0.1, 1.0), jitter);
                let from = if r.chance(0.3) {
                    r.range(0.0, 20.0) * HOUR
                } else {
                    -4.0 * HOUR
                };
                s = s.part(
                    Part::Hits {
                        bytes: keys * r.range(0.2, 1.5),
                        keys,
                        rate,
                        from,
                    },
                    z,
                );
            }
            s.load.jitter = Some((jitter, r.range(30.0, 900.0)));
            healthy(r, s)
        },
    },
    Family {
        name: "four lifetimes, daily cycle",
        truth: Truth::Healthy,
        weight: 1,
        make: |r| {
            let z = size(r);
            let mut s = Scenario::new(DAY);
            for (low, high, mean) in [
                (50.0, 1000.0, 0.3),
                (20.0, 400.0, 10.0),
                (5.0, 150.0, 90.0),
                (3.0, 60.0, 280.0),
            ] {
                s = s.part(
                    churn(r.log_range(low, high) * KB, Lifetime::Exponential(mean)),
                    z,
                );
            }
            s.load.daily = daily(r, 0.2, 0.8);
            healthy(r, s)
        },
    },
    Family {
        name: "cache filling for hours",
        truth: Truth::Slow,
        weight: 1,
        make: |r| {
            let z = size(r);
            let fill = r.range(1.5, 20.0) * HOUR;
            let mut s = Scenario::new(DAY).part(
                Part::Lru {
                    bytes: r.log_range(20.0, 300.0) * MB,
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
        name: "cache with Zipf hits",
        truth: Truth::Slow,
        weight: 1,
        make: |r| {
            let z = size(r);
            let keys = r.log_range(20.0, 300.0) * MB;
            let s = Scenario::new(DAY).part(
                Part::Zipf {
                    keys,
                    rate: keys / r.range(1.0, 8.0) / HOUR,
                },
                z,
            );
            healthy(r, s)
        },
    },
    Family {
        name: "heavy-tailed lifetimes",
        truth: Truth::Slow,
        weight: 1,
        make: |r| {
            let z = size(r);
            let life = Lifetime::Pareto(r.log_range(5.0, 100.0), r.range(1.1, 1.9));
            let s = Scenario::new(DAY).part(churn(r.log_range(20.0, 250.0) * KB, life), z);
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
                    r.log_range(5.0, 80.0) * KB,
                    Lifetime::Uniform(0.0, r.range(2.0, 8.0) * HOUR),
                ),
                z,
            );
            s.load.daily = daily(r, 0.2, 0.8);
            healthy(r, s)
        },
    },
];
