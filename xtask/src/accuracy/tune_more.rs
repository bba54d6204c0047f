//! More families for tuning: the first judging set, looked at once, found wanting,
//! and used for tuning since.

use super::families::{
    DAY, Family, HOUR, KB, MB, Truth, case, churn, daily, endless, healthy, hit_rate, leak, size,
};
use super::sim::{Lifetime, Part, Scenario};

/// The families.
pub const TUNE_MORE: &[Family] = &[
    Family {
        name: "leak, nothing else",
        truth: Truth::Leak,
        weight: 2,
        make: |r| {
            let onset = r.range(600.0, 3.0 * HOUR);
            let (s, rate) = leak(r, onset, 5.0, 300.0);
            let z = r.log_range(24.0, 30_000.0).round();
            case(s.part(endless(rate, onset), z), onset, rate)
        },
    },
    Family {
        name: "leak before the watch",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let (s, rate) = leak(r, 0.0, 5.0, 150.0);
            let z = r.log_range(24.0, 30_000.0).round();
            let s = s.part(endless(rate, -HOUR), z).part(
                churn(
                    r.log_range(5.0, 300.0) * KB,
                    Lifetime::LogNormal(0.5, 1.0, 30.0),
                ),
                z,
            );
            case(s, 0.0, rate)
        },
    },
    Family {
        name: "leak under a load ramp, with churn",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let onset = r.range(900.0, 2.0 * HOUR);
            let (mut s, rate) = leak(r, onset, 5.0, 200.0);
            s.load.ramps.push((
                onset - r.range(0.0, 900.0),
                onset + r.range(0.5, 4.0) * HOUR,
                r.range(1.2, 4.0),
            ));
            let z = size(r);
            let part = Part::Leak {
                rate,
                from: onset,
                load: true,
                burst: 0.0,
            };
            let s = s.part(part, z).part(
                churn(
                    r.log_range(5.0, 400.0) * KB,
                    Lifetime::Exponential(r.log_range(0.1, 3.0)),
                ),
                z,
            );
            case(s, onset, rate)
        },
    },
    Family {
        name: "leak with churn at the stack",
        truth: Truth::Leak,
        weight: 2,
        make: |r| {
            let onset = r.range(900.0, 4.0 * HOUR);
            let (s, rate) = leak(r, onset, 5.0, 300.0);
            let z = size(r);
            let median = r.log_range(0.1, 20.0);
            let rest = r.log_range(0.1, 3.0) * MB;
            let s = s.part(endless(rate, onset), z).part(
                churn(
                    (rest / median).min(3.0 * MB),
                    Lifetime::LogNormal(median, 0.8, 120.0),
                ),
                z,
            );
            case(s, onset, rate)
        },
    },
    Family {
        name: "leak beside a full cache",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let onset = r.range(1.0, 4.0) * HOUR;
            let (mut s, rate) = leak(r, onset, 5.0, 200.0);
            let z = size(r);
            s.load.jitter = Some((0.1, 300.0));
            let s = s.part(endless(rate, onset), z).part(
                Part::Lru {
                    bytes: r.log_range(0.5, 4.0) * MB,
                    fill: r.range(60.0, 600.0),
                    flush: 0.0,
                },
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
            let onset = r.range(6.0, 16.0) * HOUR;
            let (s, rate) = leak(r, onset, 5.0, 300.0);
            let z = size(r);
            let s = s.part(endless(rate, onset), z).part(
                churn(
                    r.log_range(20.0, 800.0) * KB,
                    Lifetime::LogNormal(1.0, 1.0, 60.0),
                ),
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
            let onset = r.range(2.0, 16.0) * HOUR;
            let (mut s, rate) = leak(r, onset, 5.0, 200.0);
            s.load.daily = Some((r.range(0.2, 0.7), r.range(0.0, DAY), r.range(0.0, 0.5)));
            let z = size(r);
            let s = s.part(endless(rate, onset), z).part(
                churn(
                    r.log_range(20.0, 600.0) * KB,
                    Lifetime::Uniform(0.0, r.log_range(0.5, 8.0)),
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
            let onset = r.range(600.0, 3.0 * HOUR);
            let (s, rate) = leak(r, onset, 5.0, 150.0);
            let z = r.range(8.0, 64.0).round();
            case(s.part(endless(rate, onset), z), onset, rate)
        },
    },
    Family {
        name: "leak of large objects",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let onset = r.range(600.0, 3.0 * HOUR);
            let (s, rate) = leak(r, onset, 5.0, 300.0);
            let z = r.range(100_000.0, 600_000.0).round();
            case(s.part(endless(rate, onset), z), onset, rate)
        },
    },
    Family {
        name: "leak in bursts, with load",
        truth: Truth::Leak,
        weight: 1,
        make: |r| {
            let onset = r.range(600.0, 3.0 * HOUR);
            let (mut s, rate) = leak(r, onset, 6.0, 200.0);
            let z = size(r);
            s.load.jitter = Some((0.2, 300.0));
            let part = Part::Leak {
                rate,
                from: onset,
                load: true,
                burst: r.range(30.0, 400.0),
            };
            case(s.part(part, z), onset, rate)
        },
    },
    Family {
        name: "steady churn, cut log-normal lifetimes",
        truth: Truth::Healthy,
        weight: 2,
        make: |r| {
            let z = r.log_range(16.0, 200_000.0).round();
            let life = Lifetime::LogNormal(r.log_range(0.5, 200.0), r.range(0.3, 1.5), 1200.0);
            let s = Scenario::new(DAY).part(churn(r.log_range(5.0, 1500.0) * KB, life), z);
            healthy(r, s)
        },
    },
    Family {
        name: "load ramps and steps",
        truth: Truth::Healthy,
        weight: 2,
        make: |r| {
            let z = size(r);
            let life = r.log_range(2.0, 1200.0);
            let mut s = Scenario::new(DAY).part(
                churn(r.log_range(10.0, 1200.0) * KB, Lifetime::Uniform(0.0, life)),
                z,
            );
            for _ in 0..4 {
                let from = r.range(0.0, 23.0) * HOUR;
                let length = if r.chance(0.4) {
                    60.0
                } else {
                    r.log_range(0.1, 8.0) * HOUR
                };
                s.load
                    .ramps
                    .push((from, from + length, r.log_range(0.3, 3.5)));
            }
            healthy(r, s)
        },
    },
    Family {
        name: "sessions up to 20 min, two peaks a day",
        truth: Truth::Healthy,
        weight: 2,
        make: |r| {
            let z = size(r);
            let life = Lifetime::Uniform(r.range(30.0, 600.0), r.range(600.0, 1200.0));
            let mut s = Scenario::new(DAY).part(churn(r.log_range(10.0, 700.0) * KB, life), z);
            s.load.daily = Some((r.range(0.2, 0.9), r.range(0.0, DAY), r.range(0.0, 1.0)));
            healthy(r, s)
        },
    },
    Family {
        name: "two batch jobs at one stack",
        truth: Truth::Healthy,
        weight: 2,
        make: |r| {
            let z = size(r);
            let mut s = Scenario::new(DAY);
            for _ in 0..2 {
                let part = Part::Batch {
                    bytes: r.log_range(5.0, 300.0) * MB,
                    period: r.range(90.0, 1200.0),
                    duty: r.range(0.1, 1.0),
                };
                s = s.part(part, z);
            }
            healthy(r, s)
        },
    },
    Family {
        name: "batches over churn, daily cycle",
        truth: Truth::Healthy,
        weight: 1,
        make: |r| {
            let z = size(r);
            let mut s = Scenario::new(DAY)
                .part(
                    Part::Batch {
                        bytes: r.log_range(2.0, 100.0) * MB,
                        period: r.range(300.0, 1200.0),
                        duty: r.range(0.1, 1.0),
                    },
                    z,
                )
                .part(
                    churn(
                        r.log_range(50.0, 1000.0) * KB,
                        Lifetime::Exponential(r.log_range(1.0, 60.0)),
                    ),
                    z,
                );
            s.load.daily = daily(r, 0.3, 0.9);
            healthy(r, s)
        },
    },
    Family {
        name: "daily cycle",
        truth: Truth::Healthy,
        weight: 2,
        make: |r| {
            let z = size(r);
            let mean = r.log_range(0.2, 250.0);
            let mut s = Scenario::new(DAY).part(
                churn(r.log_range(10.0, 2000.0) * KB, Lifetime::Exponential(mean)),
                z,
            );
            s.load.daily = Some((r.range(0.3, 0.95), r.range(0.0, DAY), r.range(0.0, 1.0)));
            healthy(r, s)
        },
    },
    Family {
        name: "flash crowds",
        truth: Truth::Healthy,
        weight: 1,
        make: |r| {
            let z = size(r);
            let mut s = Scenario::new(DAY).part(
                churn(
                    r.log_range(10.0, 300.0) * KB,
                    Lifetime::Uniform(0.0, r.log_range(30.0, 1200.0)),
                ),
                z,
            );
            for _ in 0..8 {
                let from = r.range(0.0, 24.0) * HOUR;
                s.load
                    .bursts
                    .push((from, from + r.log_range(60.0, 7200.0), r.range(1.5, 6.0)));
            }
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
                        r.log_range(10.0, 900.0) * KB,
                        Lifetime::Uniform(0.0, r.range(30.0, 1200.0)),
                    ),
                    z,
                )
                .part(
                    Part::Hits {
                        bytes: 1e12,
                        keys: r.log_range(5.0, 200.0) * MB,
                        rate: 1.0,
                        from: 0.0,
                    },
                    z,
                );
            let jitter = r.range(0.02, 0.4);
            for part in &mut s.parts {
                if let Part::Hits { keys, rate, .. } = &mut part.0 {
                    *rate = hit_rate(*keys, r.range(0.1, 1.0), jitter);
                }
            }
            s.load.jitter = Some((jitter, r.range(30.0, 900.0)));
            let mut t = 0.0;
            while {
                t += r.log_range(0.2, 8.0) * HOUR;
                t < DAY
            } {
                s.restarts.push((t, r.chance(0.5)));
            }
            healthy(r, s)
        },
    },
    Family {
        name: "cache emptied and filled again",
        truth: Truth::Healthy,
        weight: 1,
        make: |r| {
            let z = size(r);
            let fill = r.range(60.0, 1100.0);
            let mut s = Scenario::new(DAY).part(
                Part::Lru {
                    bytes: r.log_range(5.0, 300.0) * MB,
                    fill,
                    flush: r.range(0.5, 6.0) * HOUR,
                },
                z,
            );
            s.load.jitter = Some((0.05, 60.0));
            healthy(r, s)
        },
    },
    Family {
        name: "cache with random hits over churn",
        truth: Truth::Healthy,
        weight: 1,
        make: |r| {
            let z = size(r);
            let keys = r.log_range(5.0, 300.0) * MB;
            let bytes = keys * r.range(0.2, 1.5);
            let jitter = r.range(0.02, 0.4);
            let rate = hit_rate(keys, r.range(0.1, 1.0), jitter);
            let from = if r.chance(0.5) {
                r.range(0.0, 16.0) * HOUR
            } else {
                -3.0 * HOUR
            };
            let mut s = Scenario::new(DAY)
                .part(
                    Part::Hits {
                        bytes,
                        keys,
                        rate,
                        from,
                    },
                    z,
                )
                .part(
                    churn(
                        r.log_range(10.0, 600.0) * KB,
                        Lifetime::Exponential(r.log_range(0.5, 60.0)),
                    ),
                    z,
                );
            s.load.jitter = Some((jitter, r.range(30.0, 900.0)));
            healthy(r, s)
        },
    },
    Family {
        name: "three lifetimes, two peaks a day",
        truth: Truth::Healthy,
        weight: 1,
        make: |r| {
            let z = size(r);
            let mut s = Scenario::new(DAY)
                .part(
                    churn(r.log_range(50.0, 1000.0) * KB, Lifetime::Exponential(0.5)),
                    z,
                )
                .part(
                    churn(r.log_range(10.0, 200.0) * KB, Lifetime::Exponential(60.0)),
                    z,
                )
                .part(
                    churn(
                        r.log_range(5.0, 80.0) * KB,
                        Lifetime::Uniform(600.0, 1200.0),
                    ),
                    z,
                );
            s.load.daily = Some((r.range(0.3, 0.8), r.range(0.0, DAY), r.range(0.0, 0.7)));
            healthy(r, s)
        },
    },
    Family {
        name: "cache filling for hours",
        truth: Truth::Slow,
        weight: 1,
        make: |r| {
            let z = size(r);
            let fill = r.range(1.5, 16.0) * HOUR;
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
            let keys = r.log_range(20.0, 400.0) * MB;
            let s = Scenario::new(DAY).part(
                Part::Zipf {
                    keys,
                    rate: keys / r.range(1.0, 12.0) / HOUR,
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
            let life = Lifetime::Pareto(r.log_range(5.0, 60.0), r.range(1.0, 2.0));
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
                    Lifetime::LogNormal(r.range(0.7, 3.0) * HOUR, 0.6, DAY),
                ),
                z,
            );
            s.load.daily = daily(r, 0.2, 0.8);
            healthy(r, s)
        },
    },
];
