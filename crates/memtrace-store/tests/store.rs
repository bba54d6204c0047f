//! What goes into a store comes out of it, for as long as it is meant to.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{all, append, at, check, gauges, goroutines, heap, open, rows};
use memtrace_model::{Event, EventKind, Gauge, Gauges, Label, LabelValue, StackKey, Time};
use memtrace_store::{Kind, Options, Reader, Reading, Snapshot, Store, StoreError, TargetId};

#[test]
fn everything_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let a = store.target("a").unwrap();
    let b = store.target("b").unwrap();
    assert_eq!(store.target("a").unwrap(), a);
    // Long enough for runs to be sealed, and opened anew in between.
    for i in 0..150 {
        append(&mut store, a, i, 40);
        append(&mut store, b, i * 2, 30);
    }
    drop(store);
    let mut store = open(dir.path());
    for i in 150..300 {
        append(&mut store, a, i, 40);
    }
    let reader = store.reader();
    for i in [0, 1, 119, 120, 121, 149, 150, 151, 240, 298, 299] {
        check(reader, a, i, 40);
    }
    check(reader, b, 298, 30);
    // Between two snapshots the earlier one holds.
    let (time, _) = reader.profile_at(b, Kind::Heap, at(3)).unwrap().unwrap();
    assert_eq!(time, at(2));
    assert!(reader.profile_at(a, Kind::Heap, at(-1)).unwrap().is_none());
    assert_eq!(
        reader
            .profile_at(a, Kind::Heap, at(9999))
            .unwrap()
            .unwrap()
            .0,
        at(299)
    );

    for range in [0..=299, 100..=130, 270..=299, 5..=5] {
        let times: Vec<Time> = reader
            .snapshots(a, Kind::Heap, at(*range.start())..=at(*range.end()))
            .unwrap()
            .map(|s| s.unwrap().at)
            .collect();
        assert_eq!(times, range.map(at).collect::<Vec<_>>());
    }
    let targets = Reader::open(dir.path()).unwrap().targets().unwrap();
    assert_eq!(targets.len(), 2);
    assert_eq!(
        (targets[0].first, targets[0].last),
        (Some(at(0)), Some(at(299)))
    );
    reader.check().unwrap();
}

#[test]
fn the_profile_opens_as_pprof() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let t = store.target("t").unwrap();
    append(&mut store, t, 7, 50);
    let (_, p) = store
        .reader()
        .profile_at(t, Kind::Heap, at(7))
        .unwrap()
        .unwrap();
    let again = memtrace_formats::pprof::parse(&memtrace_formats::pprof::write(&p)).unwrap();
    assert!(again.warnings.is_empty(), "{:?}", again.warnings);
    assert_eq!(rows(&again.profile), rows(&heap(7, 50)));
    assert_eq!(p.text(p.sample_types[3].kind), "inuse_space");
    assert_eq!(p.text(p.mappings[0].file), "/srv/app");
    assert_eq!((p.period, p.default_sample_type), (524_288, Some(3)));
    let (old, new) = (heap(7, 50), p);
    let frames = |p: &memtrace_model::Profile| {
        let mut all: Vec<_> = p
            .sample_stacks
            .iter()
            .map(|&s| {
                p.frames(s)
                    .map(|f| (f.function.to_owned(), f.file.to_owned(), f.line, f.inlined))
                    .collect::<Vec<_>>()
            })
            .collect();
        all.sort();
        all
    };
    assert_eq!(frames(&old), frames(&new));
}

#[test]
fn series_and_gauges() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let t = store.target("t").unwrap();
    for i in 0..140 {
        append(&mut store, t, i, 20);
    }
    let reader = store.reader();
    let p = heap(0, 20);
    let keys = p.stack_keys();
    let key = keys[p.sample_stacks[7].index()];
    let s = reader
        .series(t, Kind::Heap, key, "inuse_objects", at(10)..=at(130))
        .unwrap();
    let want: Vec<f64> = (10..=130).map(|i| heap(i, 20).row(7)[2] as f64).collect();
    assert_eq!(s.values, want);
    assert_eq!(s.times[0], at(10));
    let unknown = reader
        .series(t, Kind::Heap, StackKey(1), "inuse_space", all())
        .unwrap();
    assert!(unknown.is_empty());
    let none = reader
        .series(t, Kind::Heap, key, "nonsense", all())
        .unwrap();
    assert!(none.is_empty());
    let frames = reader.stack(key).unwrap().unwrap();
    assert_eq!(frames[0].function, "app.(*Worker).step7");
    assert!(reader.stack(StackKey(1)).unwrap().is_none());

    for gauge in [Gauge::Rss, Gauge::HeapInuse, Gauge::Goroutines, Gauge::Fds] {
        let read = reader.gauges(t, gauge, all()).unwrap();
        let want: Vec<f64> = (0..140).filter_map(|i| gauges(i).get(gauge)).collect();
        assert_eq!(read.values, want, "{gauge:?}");
    }
}

#[test]
fn events_findings_sessions() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let t = store.target("t").unwrap();
    let events = [
        Event {
            at: at(0),
            kind: EventKind::Attach {
                started: Some(at(-100)),
            },
        },
        Event {
            at: at(5),
            kind: EventKind::Warning { text: "odd".into() },
        },
        Event {
            at: at(9),
            kind: EventKind::Restart {
                reason: "pid changed".into(),
            },
        },
    ];
    for e in &events {
        store.event(t, e).unwrap();
    }
    assert_eq!(store.reader().events(t, all()).unwrap(), events);
    assert_eq!(
        store.reader().events(t, at(1)..=at(5)).unwrap(),
        events[1..2]
    );
    let sessions = store.reader().sessions(t).unwrap();
    assert_eq!(sessions.len(), 2);
    assert_eq!(sessions[0].started, Some(at(-100)));
    assert_eq!(
        (sessions[1].began, &*sessions[1].reason),
        (at(9), "pid changed")
    );

    let finding = finding(at(4));
    store.finding(t, &finding).unwrap();
    assert_eq!(store.reader().findings(t, all()).unwrap(), [finding]);
}

fn finding(at: Time) -> memtrace_model::Finding {
    use memtrace_model::{FINDING_SCHEMA, Finding, Pattern, SampleKind, Status, Tier};
    Finding {
        id: String::new(),
        schema: FINDING_SCHEMA.into(),
        at,
        pattern: Pattern::MapBloat,
        tier: Tier::Leaking,
        status: Status::Open,
        rank: 1,
        confidence: 0.5,
        target: "t".into(),
        source: SampleKind::Heap,
        stack: Vec::new(),
        culprit: None,
        type_name: None,
        retained_bytes: None,
        retained_by: Vec::new(),
        tags: Default::default(),
        onset: Some(at),
        onset_interval: None,
        rate_bytes_per_min: 1.5,
        rate_interval: [1.0, 2.0],
        rate_objects_per_min: 3.0,
        live_bytes: 4,
        live_objects: 5,
        explains: 0.9,
        oom_at: None,
        oom_interval: None,
        bound: None,
        before_onset: vec![at],
        points: Vec::new(),
        evidence: Vec::new(),
        advice: "stop".into(),
    }
}

#[test]
fn a_clock_set_back_reorders_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let t = store.target("t").unwrap();
    for i in [3, 1, 4] {
        append(&mut store, t, i, 5);
    }
    let times: Vec<_> = store
        .reader()
        .snapshots(t, Kind::Heap, all())
        .unwrap()
        .map(|s| s.unwrap().at)
        .collect();
    assert_eq!(times, [at(3), at(3), at(4)]);
}

/// Whether it is packed or kept as it came: what was given is handed out.
#[test]
fn large_raw_bytes_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let t = store.target("t").unwrap();
    let gzip = |length: usize| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, &vec![7; length]).unwrap();
        packed.finish().unwrap()
    };
    let raws = [vec![7; 12 << 20], gzip(7 << 20), gzip(12 << 20)];
    for (i, raw) in (0..).zip(&raws) {
        let profile = heap(i, 3);
        let reading = Reading {
            target: t,
            at: at(i),
            snapshots: &[Snapshot {
                kind: Kind::Heap,
                profile: &profile,
                raw: Some(raw),
            }],
            gauges: &Gauges::default(),
        };
        store.append(&reading).unwrap();
    }
    let plain = |bytes: &[u8]| {
        let mut out = Vec::new();
        match bytes.starts_with(&[0x1f, 0x8b]) {
            true => {
                std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes), &mut out)
                    .unwrap();
            }
            false => out.extend(bytes),
        }
        out
    };
    for (i, raw) in (0..).zip(&raws) {
        let got = store.reader().raw(t, Kind::Heap, at(i)).unwrap().unwrap();
        assert!(plain(&got) == plain(raw), "{i}");
    }
}

#[test]
fn raw_bytes_are_kept_for_a_while_and_longer_when_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let t = store.target("t").unwrap();
    for i in 0..20 {
        append(&mut store, t, i, 5);
    }
    store.keep_raw(t, &[at(3), at(4), at(5), at(1000)]).unwrap();
    for i in 20..100 {
        append(&mut store, t, i, 5);
    }
    let times = store.reader().raw_times(t, Kind::Heap).unwrap();
    let want: Vec<Time> = (3..=5).chain(69..=99).map(at).collect();
    assert!(want.iter().all(|t| times.contains(t)), "{times:?}");
    // One older may stay, which others are packed against.
    assert!(times.len() <= want.len() + 1, "{times:?}");
    for i in 69..100 {
        let raw = store.reader().raw(t, Kind::Heap, at(i)).unwrap().unwrap();
        assert_eq!(raw, format!("raw {i}").as_bytes());
    }
    assert_eq!(
        store.reader().raw(t, Kind::Heap, at(4)).unwrap().unwrap(),
        b"raw 4"
    );
    assert_eq!(store.reader().raw(t, Kind::Heap, at(6)).unwrap(), None);
    assert_eq!(store.reader().raw(t, Kind::Goroutine, at(4)).unwrap(), None);
}

#[test]
fn old_snapshots_are_thinned_then_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        thin_after: Duration::from_secs(12 * 3600),
        retention: Duration::from_secs(48 * 3600),
        ..Options::default()
    };
    let mut store = Store::create_or_open(dir.path(), options).unwrap();
    let t = store.target("t").unwrap();
    let last = 24 * 120;
    for i in 0..=last {
        append(&mut store, t, i, 25);
        if i == 100 {
            store.keep_raw(t, &[at(95)]).unwrap();
        }
    }
    let size = |s: &Store| {
        s.reader()
            .check()
            .map(|()| {
                std::fs::metadata(dir.path().join("memtrace.db"))
                    .unwrap()
                    .len()
            })
            .unwrap()
    };
    let mut thinned = 0;
    for _ in 0..50 {
        thinned += store.maintain(at(last)).unwrap().thinned;
    }
    assert!(thinned > 1000, "{thinned}");
    let times: Vec<Time> = store
        .reader()
        .snapshots(t, Kind::Heap, all())
        .unwrap()
        .map(|s| s.unwrap().at)
        .collect();
    // Every ten minutes in the first part, all of the last twelve hours, and the pin.
    for i in [0, 20, 40, 95] {
        assert!(times.contains(&at(i)), "{i}");
        check(store.reader(), t, i, 25);
    }
    assert!(!times.contains(&at(1)) && !times.contains(&at(96)));
    let young = times.iter().filter(|t| **t >= at(last - 12 * 120)).count();
    assert_eq!(young, 12 * 120 + 1);
    for i in (last - 12 * 120..=last).step_by(97) {
        check(store.reader(), t, i, 25);
    }
    // Thinning does not stop the run that goes on.
    append(&mut store, t, last + 1, 25);
    check(store.reader(), t, last + 1, 25);

    // The target ends; two days later nothing is left of it, and the space comes back.
    let before = size(&store);
    let later = last + 3 * 24 * 120;
    for _ in 0..200 {
        store.maintain(at(later)).unwrap();
    }
    assert_eq!(
        store
            .reader()
            .snapshots(t, Kind::Heap, all())
            .unwrap()
            .count(),
        0
    );
    assert_eq!(
        store
            .reader()
            .snapshots(t, Kind::Goroutine, all())
            .unwrap()
            .count(),
        0
    );
    assert!(store.reader().raw_times(t, Kind::Heap).unwrap().is_empty());
    drop(store);
    let mut store = open(dir.path());
    append(&mut store, t, later, 25);
    check(store.reader(), t, later, 25);
    assert!(size(&store) <= before);
}

#[test]
fn readers_work_beside_the_writer() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let t = store.target("t").unwrap();
    append(&mut store, t, 0, 30);
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                let reader = Reader::open(dir.path()).unwrap();
                let mut seen = 0;
                while !done.load(Ordering::Relaxed) {
                    let n = reader
                        .snapshots(t, Kind::Heap, all())
                        .unwrap()
                        .enumerate()
                        .map(|(i, s)| assert_eq!(s.unwrap().at, at(i as i64)))
                        .count();
                    assert!(n >= seen, "{n} after {seen}");
                    seen = n;
                    check(&reader, t, seen as i64 - 1, 30);
                }
            });
        }
        // Through two seals.
        for i in 1..300 {
            append(&mut store, t, i, 30);
            store.maintain(at(i)).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn beyond_the_limit_the_heaviest_rows_stay() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        max_rows: 10,
        ..Options::default()
    };
    let mut store = Store::create_or_open(dir.path(), options).unwrap();
    let t = store.target("t").unwrap();
    for i in 0..3 {
        append(&mut store, t, i, 100);
    }
    let (_, p) = store
        .reader()
        .profile_at(t, Kind::Heap, at(2))
        .unwrap()
        .unwrap();
    let whole = heap(2, 100);
    assert_eq!(p.len(), 10);
    for column in 0..4 {
        assert_eq!(p.total(column), whole.total(column));
    }
    let leaf = |i: usize| p.frames(p.sample_stacks[i]).next().unwrap().function;
    assert_eq!((0..10).filter(|&i| leaf(i) == "[other]").count(), 1);
    let mut weights: Vec<i64> = (0..whole.len()).map(|i| whole.row(i)[3]).collect();
    weights.sort_unstable();
    let kept = (0..10)
        .filter(|&i| leaf(i) != "[other]")
        .map(|i| p.row(i)[3])
        .min()
        .unwrap();
    assert!(kept >= weights[weights.len() - 9]);
}

#[test]
fn labels_without_end_are_dropped_not_their_rows() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        max_label_sets: 20,
        ..Options::default()
    };
    let mut store = Store::create_or_open(dir.path(), options).unwrap();
    let t = store.target("t").unwrap();
    let mut wrote = Vec::new();
    for i in 0..30 {
        let mut p = goroutines(i);
        let key = p.intern("request");
        for s in 0..p.len() {
            let text = p.intern(&format!("r{i}-{s}"));
            let label = Label {
                key,
                value: LabelValue::Text(text),
            };
            p.sample_labels[s].0 = p.label_sets.intern(&[label]).unwrap();
        }
        let reading = Reading {
            target: t,
            at: at(i),
            snapshots: &[Snapshot {
                kind: Kind::Goroutine,
                profile: &p,
                raw: None,
            }],
            gauges: &Gauges::default(),
        };
        store.append(&reading).unwrap();
        wrote.push(p.total(0));
    }
    let read: Vec<i64> = store
        .reader()
        .snapshots(t, Kind::Goroutine, all())
        .unwrap()
        .map(|s| s.unwrap().values.iter().sum())
        .collect();
    assert_eq!(read, wrote);
}

#[test]
fn odd_profiles() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let t = store.target("t").unwrap();
    let empty = memtrace_model::Profile::default();
    let mut twice = heap(1, 10);
    for i in 0..10 {
        twice.sample_stacks.push(twice.sample_stacks[i]);
        twice.sample_labels.push(twice.sample_labels[i]);
        let row = twice.row(i).to_vec();
        twice.values.extend(row);
    }
    let mut negative = heap(2, 10);
    negative.values.iter_mut().for_each(|v| *v = -*v);
    negative.values[0] = i64::MIN;
    negative.values[5] = i64::MAX;
    let profiles = [empty, twice, negative, heap(3, 10)];
    for (i, p) in profiles.iter().enumerate() {
        let reading = Reading {
            target: t,
            at: at(i as i64),
            snapshots: &[Snapshot {
                kind: Kind::Heap,
                profile: p,
                raw: None,
            }],
            gauges: &Gauges::default(),
        };
        store.append(&reading).unwrap();
    }
    for (i, p) in profiles.iter().enumerate() {
        let (_, read) = store
            .reader()
            .profile_at(t, Kind::Heap, at(i as i64))
            .unwrap()
            .unwrap();
        assert_eq!(rows(&read), rows(p), "{i}");
    }
    let nobody = Reading {
        target: TargetId(99),
        at: at(0),
        snapshots: &[],
        gauges: &gauges(1),
    };
    assert!(matches!(store.append(&nobody), Err(StoreError::NoTarget)));
}
