use std::time::Duration;

use memtrace_model::{
    Gauge, Gauges, Label, LabelSetId, LabelValue, LocationId, Profile, SampleKind, StackId,
    StackKey, StringId, Tier, Time, ValueType,
};
use proptest::prelude::*;

use super::store::Lane;
use super::*;

const T0: i64 = 1_767_225_600_000;

fn at(seconds: f64) -> Time {
    Time(T0 + (seconds * 1000.0) as i64)
}

/// A small deterministic generator (splitmix64).
struct Rng(u64);

impl Rng {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn poisson(&mut self, mean: f64) -> u64 {
        let mut n = 0;
        let mut t = -(1.0 - self.unit()).ln();
        while t < mean {
            n += 1;
            t -= (1.0 - self.unit()).ln();
        }
        n
    }
}

const KB512: u64 = 512 * 1024;

fn row(key: u128, births: u64, live: u64) -> Row {
    Row {
        key: StackKey(key),
        births: Some(births),
        live,
        bytes: live * KB512,
        objects: live * 1000,
    }
}

/// A Go heap profile of stacks `f0`, `f1`, … with (size, born, alive) sampled objects.
fn heap_profile(buckets: &[(usize, u64, u64, u64)]) -> Profile {
    let mut p = Profile {
        period: KB512 as i64,
        ..Profile::default()
    };
    for (kind, unit) in [
        ("alloc_objects", "count"),
        ("alloc_space", "bytes"),
        ("inuse_objects", "count"),
        ("inuse_space", "bytes"),
    ] {
        let kind = p.intern(kind);
        let unit = p.intern(unit);
        p.sample_types.push(ValueType { kind, unit });
    }
    let (bytes, unit) = (p.intern("bytes"), p.intern("bytes"));
    for &(stack, size, born, alive) in buckets {
        let location = p.add_location(&format!("f{stack}"), 7);
        let stack = StackId(p.stacks.intern(&[location]).unwrap());
        let labels = p.label_sets.intern(&[Label {
            key: bytes,
            value: LabelValue::Number(size as i64, unit),
        }]);
        p.sample_stacks.push(stack);
        p.sample_labels.push(LabelSetId(labels.unwrap()));
        let scale = 1.0 / (1.0 - (-(size as f64) / KB512 as f64).exp());
        for n in [born, alive] {
            // As runtime/pprof scales: both are cut to whole numbers.
            p.values.push((n as f64 * scale) as i64);
            p.values.push(((n * size) as f64 * scale) as i64);
        }
    }
    p
}

fn goroutine_profile(counts: &[(usize, i64)]) -> Profile {
    let mut p = heap_profile(
        &counts
            .iter()
            .map(|&(stack, _)| (stack, 1, 0, 0))
            .collect::<Vec<_>>(),
    );
    let kind = p.intern("goroutine");
    p.sample_types = vec![ValueType {
        kind,
        unit: StringId(0),
    }];
    p.values = counts.iter().map(|c| c.1).collect();
    p
}

fn every(seconds: u64) -> Settings {
    Settings::every(Duration::from_secs(seconds))
}

/// Leak of `rate` samples per second from `onset` on at stack 1, churn at stack 2.
fn leaking_history(interval: f64, onset: f64, end: f64, rate: f64) -> History {
    let mut rng = Rng(11);
    let mut history = History::new(every(interval as u64));
    let (mut leaked, mut churned) = (0, 0);
    for i in 0..(end / interval) as usize {
        let t = i as f64 * interval;
        if t >= onset {
            leaked += rng.poisson(rate * interval);
        }
        churned += rng.poisson(interval);
        let live = rng.poisson(40.0).min(churned);
        history.heap_rows(at(t), &[row(1, leaked, leaked), row(2, churned, live)]);
    }
    history
}

#[test]
fn a_leak_is_found_with_onset_and_rate() {
    let history = leaking_history(30.0, 3600.0, 3.0 * 3600.0, 0.05);
    let a = history.assess();
    assert_eq!(a.stacks.len(), 1, "{a:?}");
    let s = &a.stacks[0];
    assert_eq!((s.key, s.tier), (StackKey(1), Tier::Leaking));
    assert!(
        s.onset.unwrap().since(at(3600.0)).abs() < 120.0,
        "{:?}",
        s.onset
    );
    let truth = 0.05 * 60.0 * KB512 as f64;
    assert!((s.rate_bytes_per_min / truth - 1.0).abs() < 0.2);
    assert!(s.rate_interval[0] <= truth && truth <= s.rate_interval[1]);
    assert!(s.explains > 0.9 && s.confidence > 0.999);
    assert_eq!(s.before_onset.len(), 3);
    assert!(s.before_onset[2] <= s.onset.unwrap());
    assert!(!s.points.is_empty() && !s.evidence.is_empty());
    let p = a.process;
    assert!(p.rate_interval[0] > 0.0 && p.points > 0 && p.heap_bytes > 0);
}

#[test]
fn a_fast_leak_is_found_within_minutes() {
    let history = leaking_history(5.0, 60.0, 240.0, 3.0);
    let s = &history.assess().stacks[0];
    assert_eq!(s.tier, Tier::Leaking);
    assert!(s.onset.unwrap().since(at(60.0)).abs() <= 10.0);
    let onset = s.onset.unwrap();
    let (before, after): (Vec<_>, Vec<_>) = s.points.iter().partition(|r| r.at <= onset);
    assert!(before.iter().all(|r| !r.suspicious));
    let marked = after.iter().filter(|r| r.suspicious).count();
    assert!(marked * 10 >= after.len() * 9);
    let rate = after.iter().map(|r| r.mb_per_min).sum::<f64>() / after.len() as f64;
    assert!((rate - 94.4).abs() < 15.0, "{rate}");
}

#[test]
fn no_growth_no_finding() {
    let history = leaking_history(30.0, f64::INFINITY, 12.0 * 3600.0, 0.0);
    assert!(history.assess().stacks.is_empty());
    assert_eq!(History::new(every(30)).assess(), Assessment::default());
}

#[test]
fn a_restart_is_noticed_and_never_compared() {
    let mut history = leaking_history(30.0, 0.0, 3600.0, 0.05);
    assert!(!history.assess().stacks.is_empty());
    assert!(history.heap_rows(at(3600.0), &[row(1, 3, 3)]));
    let a = history.assess();
    assert!(a.stacks.is_empty());
    assert_eq!((a.process.restarts, a.process.points), (1, 1));
}

#[test]
fn goroutines_that_pile_up() {
    let mut history = History::new(every(5));
    for i in 0..60 {
        let t = at(5.0 * f64::from(i));
        let busy = [9, 12, 10, 11, 8][i as usize % 5];
        let profile = goroutine_profile(&[(0, i64::from(i) * 2), (1, busy)]);
        history.goroutines(t, &profile);
    }
    let a = history.assess();
    assert_eq!(a.stacks.len(), 1, "{a:?}");
    let s = &a.stacks[0];
    assert_eq!((s.source, s.tier), (SampleKind::Goroutine, Tier::Leaking));
    assert_eq!((s.live_objects, s.live_bytes), (118, 0));
    assert!((s.rate_objects_per_min - 24.0).abs() < 1.0);
    assert_eq!(s.rate_bytes_per_min, 0.0);
    assert_eq!(history.frames(s.key)[0].function, "f0");
    assert_eq!(a.process.goroutines, 126);
}

/// A process whose one large object has `size(t)` bytes, beside churn.
fn with_array(size: impl Fn(f64) -> u64) -> History {
    let mut rng = Rng(11);
    let mut history = History::new(every(5));
    let (mut churned, mut copies) = (100, 0);
    let mut before = 0;
    for i in 0..60 {
        let t = 5.0 * f64::from(i);
        churned += rng.poisson(20.0);
        let bytes = size(t);
        copies += u64::from(bytes != before);
        before = bytes;
        let array = Row {
            objects: 1,
            bytes,
            ..row(1, copies, 1)
        };
        history.heap_rows(at(t), &[array, row(2, churned, rng.poisson(10.0))]);
    }
    history
}

#[test]
fn one_array_that_grows() {
    // Appended to at 1 MB/s, it is copied to one a quarter larger when it is full.
    let grows = |t: f64| (1e6 * 1.25f64.powf((t.max(1.0).ln() / 1.25f64.ln()).ceil())) as u64;
    let found = with_array(grows).assess();
    let array = &found.stacks[0];
    assert_eq!((found.stacks.len(), array.key), (1, StackKey(1)));
    assert!(array.evidence[0].contains("one array grew"), "{array:?}");

    // A buffer as large as the work at hand, a cache that was filled, a queue that
    // ebbs and flows: none of them.
    let work = |t: f64| (1e7 * (1.5 + (t * 0.7).sin() * (t * 0.13).cos())) as u64;
    let filled = |t: f64| (1e6 * (t.min(80.0) + 1.0)) as u64;
    let queue = |t: f64| (1e7 * (2.0 + (t / 25.0).sin())) as u64;
    for healthy in [&work as &dyn Fn(f64) -> u64, &filled, &queue] {
        assert_eq!(with_array(healthy).assess().stacks, vec![]);
    }
}

#[test]
fn the_limit_that_is_reached_first() {
    let mut history = leaking_history(5.0, 60.0, 300.0, 3.0);
    let mut gauges = Gauges::default();
    gauges.set(Gauge::Rss, 1e9);
    gauges.set(Gauge::CgroupLimit, 2e9);
    gauges.set(Gauge::RuntimeLimit, 9.2e18);
    history.gauges(at(299.0), &gauges);
    let a = history.assess();
    let end = history.exhaustion(&a, Some(4_000_000_000)).unwrap();
    assert_eq!(end.bound.kind, "cgroup");
    assert!(end.oom_at > at(299.0) && end.interval.0 <= end.oom_at);
    assert!(end.interval.1.is_none_or(|t| t >= end.oom_at));
    assert_eq!(history.gauge(Gauge::Rss).unwrap().len(), 1);
}

/// In a group without a limit others may grow: the host ends this process by its own pace.
#[test]
fn each_limit_has_its_own_pace() {
    let mut history = leaking_history(5.0, 60.0, 300.0, 3.0);
    for i in 0..60 {
        let t = 5.0 * f64::from(i);
        let mut gauges = Gauges::default();
        gauges.set(Gauge::Rss, 1e9 + 1e6 * t);
        gauges.set(Gauge::CgroupUsage, 5e9 + 100e6 * t);
        gauges.set(Gauge::HostTotal, 64e9);
        gauges.set(Gauge::HostAvailable, 32e9);
        history.gauges(at(t), &gauges);
    }
    let a = history.assess();
    let end = |limit| history.exhaustion(&a, limit).unwrap();
    assert_eq!(end(None).bound.kind, "host");
    assert!((end(None).rate_bytes_per_min - 60e6).abs() < 1e6);
    assert_eq!(end(Some(2_000_000_000)).bound.kind, "--limit");
}

#[test]
fn memory_stays_bounded() {
    let mut lane = Lane::default();
    for i in 0..3000u64 {
        let rows: Vec<Row> = (0..3).map(|k| row(k, i * 7 + 1, i % 50 + 1)).collect();
        lane.push(at(30.0 * i as f64), &rows, |r| r.bytes as f64);
        assert!(lane.times.len() <= 512);
    }
    assert_eq!(lane.times[0], at(0.0));
    assert!(lane.times.is_sorted());
    let column = &lane.columns[&StackKey(1)];
    let last = lane.times.len() - 1;
    assert_eq!(u64::from(column.at(last).births), 2999 * 7);
    assert_eq!(u64::from(column.at(last).live), 2999 % 50 + 1);
    // The mean survives the thinning.
    let mean = column.at(last).live_area / lane.times[last].since(lane.times[0]);
    assert!((mean - 25.5).abs() < 0.2, "{mean}");
}

proptest! {
    #[test]
    fn the_scaling_is_taken_back(buckets in prop::collection::vec(
        (0usize..4, 1u64..3_000_000, 0u64..100_000, 0u64..2_000), 1..8)) {
        let buckets: Vec<_> = buckets.into_iter().map(|(s, z, b, l)| (s, z, b + l, l)).collect();
        let (rows, stacks) = heap::heap_rows(&heap_profile(&buckets));
        prop_assert_eq!(rows.len(), stacks.len());
        let total = |f: &dyn Fn(&Row) -> u64| rows.iter().map(f).sum::<u64>();
        let near = |a: u64, b: u64| a.abs_diff(b) as f64 <= 1e-3 * b as f64 + 0.5;
        prop_assert!(near(total(&|r| r.births.unwrap_or(0)), buckets.iter().map(|b| b.2).sum()));
        prop_assert!(near(total(&|r| r.live), buckets.iter().map(|b| b.3).sum()));
    }

    #[test]
    fn anything_is_survived(steps in prop::collection::vec(
        (-5_000i64..60_000, prop::collection::vec((0u128..4, 0u64..400, 0u64..400), 0..4)), 0..60)) {
        let mut history = History::new(every(5));
        let mut now = 0i64;
        for (dt, rows) in steps {
            now += dt;
            let mut rows: Vec<Row> = rows.into_iter().map(|(k, b, l)| row(k, b, l)).collect();
            rows.sort_by_key(|r| r.key);
            rows.dedup_by_key(|r| r.key);
            history.heap_rows(Time(now), &rows);
            for s in history.assess().stacks {
                prop_assert!((0.0..=1.0).contains(&s.explains) && (0.0..=1.0).contains(&s.confidence));
            }
        }
    }
}

/// A heap profile of equal jobs, each under its own tag at the same two stacks: live and
/// allocated objects of 64 KiB for each job, every one sampled. Before them come the requests:
/// so many with an object each and long labels.
fn jobs_profile(requests: u64, jobs: &[(u64, u64)]) -> Profile {
    let mut p = Profile {
        period: 1,
        ..Profile::default()
    };
    for kind in [
        "alloc_objects",
        "alloc_space",
        "inuse_objects",
        "inuse_space",
    ] {
        let kind = p.intern(kind);
        p.sample_types.push(ValueType {
            kind,
            ..ValueType::default()
        });
    }
    for name in ["job.parse", "job.read"] {
        let location = p.add_location(name, 0);
        p.stacks.intern(&[location]);
    }
    let key = p.intern("tag");
    let long = LabelValue::Text(p.intern(&"long ".repeat(20)));
    let others = ["agent", "host", "path", "user"].map(|key| Label {
        key: p.intern(key),
        value: long,
    });
    let requests = (0..requests).map(|n| (format!("R{n}"), &others[..], (2, 2)));
    let jobs = jobs.iter().enumerate();
    let jobs = jobs.map(|(n, &job)| (format!("G{n:03}"), &[][..], job));
    for (name, others, (live, born)) in requests.chain(jobs) {
        let value = LabelValue::Text(p.intern(&name));
        let labels = [&[Label { key, value }], others].concat();
        let set = p.label_sets.intern(&labels).unwrap();
        for stack in 0..2 {
            let half = |n: u64| (n + stack) / 2;
            p.sample_stacks.push(StackId(stack as u32));
            p.sample_labels.push(LabelSetId(set));
            for n in [half(born), half(live)] {
                p.values.extend([n as i64, (n << 16) as i64]);
            }
        }
    }
    p
}

/// Three minutes of a hundred jobs that each keep some 20 objects of many; from the
/// fiftieth second on, job 17 keeps `leak` more of them every second.
fn watch_jobs(leak: u64, requests: u64) -> Assessment {
    let mut history = History::new(Settings::every(Duration::from_secs(5)));
    let mut rng = Rng(7);
    let mut born = [0u64; 100];
    for point in 0..44u64 {
        let seconds = 5 * point;
        let jobs: Vec<(u64, u64)> = (0..100)
            .map(|job| {
                born[job] += rng.poisson(220.0);
                let leaked = if job == 17 {
                    seconds.saturating_sub(50) * leak
                } else {
                    0
                };
                (rng.poisson(20.0) + leaked, born[job])
            })
            .collect();
        history.heap(at(seconds as f64), &jobs_profile(requests, &jobs));
    }
    history.assess()
}

#[test]
fn one_job_of_many_leaks() {
    // Beside more labels than are kept, too.
    for requests in [0, 6000] {
        let found = watch_jobs(1, requests).stacks;
        let named: Vec<&(String, String)> = found.iter().flat_map(|s| &s.labels).collect();
        assert_eq!(
            named,
            [&("tag".to_owned(), "G017".to_owned())],
            "{found:#?}"
        );
    }
}

#[test]
fn equal_jobs_are_healthy() {
    assert_eq!(watch_jobs(0, 0).stacks, []);
}

/// A goroutine profile of one stack, the leaf first, with so many goroutines.
fn goroutines_at(stack: &[&str], count: i64) -> Profile {
    let mut p = Profile::default();
    let kind = p.intern("goroutine");
    p.sample_types.push(ValueType {
        kind,
        ..ValueType::default()
    });
    let list: Vec<LocationId> = stack.iter().map(|f| p.add_location(f, 0)).collect();
    p.stacks.intern(&list);
    p.label_sets.intern(&[]);
    p.sample_stacks.push(StackId(0));
    p.sample_labels.push(LabelSetId(0));
    p.values.push(count);
    p
}

#[test]
fn goroutines_that_help_the_collector_do_not_pile_up() {
    let found = |stack: &[&str]| {
        let mut history = History::new(Settings::every(Duration::from_secs(5)));
        for minute in 0..20 {
            history.goroutines(
                at(60.0 * minute as f64),
                &goroutines_at(stack, 20 + 40 * minute),
            );
        }
        history.assess().stacks.len()
    };
    assert_eq!(found(&["runtime.gopark", "nc.wait", "main.main"]), 1);
    let assists = [
        "runtime.gopark",
        "runtime.gcAssistAlloc",
        "runtime.mallocgc",
        "nc.read",
    ];
    assert_eq!(found(&assists), 0);
}

/// Whatever the profiles hold, a lane keeps so many cells, and the heaviest stack all its
/// points that are kept.
#[test]
fn a_lane_is_bounded() {
    let mut lane = Lane::of_heap();
    let row = |key: u128, bytes| Row {
        key: memtrace_model::StackKey(key),
        births: Some(1),
        live: 1,
        bytes,
        objects: 1,
    };
    for point in 0..150u64 {
        // The same heavy stack, and thousands that were never there before.
        let new = u128::from(point + 1) * 10_000;
        let rows: Vec<Row> = std::iter::once(row(1, 1 << 30))
            .chain((0..6000).map(|i| row(new + i, i as u64 + 1)))
            .collect();
        lane.push(Time(1000 * (point as i64 + 1)), &rows, |r| r.bytes as f64);
        let cells: usize = lane.columns.len() * lane.times.len();
        assert!(lane.columns.len() <= 4096 && cells <= 1 << 20, "{cells}");
    }
    let heavy = &lane.columns[&memtrace_model::StackKey(1)];
    assert_eq!(heavy.last().bytes, 1 << 30);
    assert_eq!(heavy.at(0).bytes, 1 << 30);
    assert!(lane.times.len() >= 60, "{}", lane.times.len());
}

#[test]
fn the_row_of_all_others_never_leaks() {
    let mut lane = Lane::default();
    for point in 1..20u64 {
        let row = Row {
            key: memtrace_model::StackKey::other(),
            births: Some(point),
            live: point,
            bytes: point << 20,
            objects: point,
        };
        lane.push(Time(1000 * point as i64), &[row], |r| r.bytes as f64);
    }
    assert!(lane.columns.is_empty());
    assert_eq!(lane.totals.last(), Some(&f64::from(19 << 20)));
}

#[test]
fn of_a_crowd_of_new_stacks_the_heaviest_are_followed() {
    let crowd = |of: u128, weight: &dyn Fn(u128) -> u64| -> Vec<Row> {
        let row = |k| row(of + k, weight(k), weight(k));
        (0..20_000).map(row).collect()
    };
    let mut lane = Lane::of_heap();
    lane.push(at(0.0), &crowd(1 << 20, &|k| 1 + k as u64), |r| {
        r.bytes as f64
    });
    assert!((2048..=4096).contains(&lane.columns.len()));
    let heaviest = StackKey((1 << 20) + 19_999);
    assert_eq!(lane.columns[&heaviest].last().live, 20_000);
    // What is lighter than others is known: it was not born when it became heavy.
    let awake = row(1 << 20, 50_000, 50_000);
    lane.push(at(30.0), &[awake], |r| r.bytes as f64);
    assert_eq!(lane.columns[&awake.key].last().births, 49_999);
    // All alike, or without bytes as goroutines are: as many as there is room for.
    for bytes in [0, KB512] {
        let mut lane = Lane::default();
        let rows: Vec<Row> = crowd(0, &|_| 1)
            .iter()
            .map(|r| Row { bytes, ..*r })
            .collect();
        lane.push(at(0.0), &rows, |r| r.live as f64);
        assert!((2048..=4096).contains(&lane.columns.len()));
    }
}
