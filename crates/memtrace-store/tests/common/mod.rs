//! Profiles that look like those of a Go service, made from a number.

#![allow(dead_code, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;
use std::path::Path;

use memtrace_model::{
    Function, FunctionId, Gauge, Gauges, Label, LabelSetId, LabelValue, Line, Location, LocationId,
    Mapping, MappingId, Profile, StackId, StackKey, Time, ValueType,
};
use memtrace_store::{Kind, Options, Reader, Reading, Snapshot, Store, TargetId};

pub const START: i64 = 1_767_225_600_000;

pub fn at(i: i64) -> Time {
    Time(START + i * 30_000)
}

pub fn all() -> std::ops::RangeInclusive<Time> {
    Time(i64::MIN)..=Time(i64::MAX)
}

/// A heap profile with `stacks` stacks; values follow from `i`.
pub fn heap(i: i64, stacks: u32) -> Profile {
    let mut p = Profile::default();
    let types = [
        ("alloc_objects", "count"),
        ("alloc_space", "bytes"),
        ("inuse_objects", "count"),
        ("inuse_space", "bytes"),
    ];
    for (kind, unit) in types {
        let t = ValueType {
            kind: p.intern(kind),
            unit: p.intern(unit),
        };
        p.sample_types.push(t);
    }
    p.default_sample_type = Some(3);
    p.period_type = ValueType {
        kind: p.intern("space"),
        unit: p.intern("bytes"),
    };
    p.period = 524_288;
    p.time_nanos = at(i).0 * 1_000_000;
    let mapping = Mapping {
        start: 0x40_0000,
        limit: 0x80_0000,
        file: p.intern("/srv/app"),
        build_id: p.intern("cafe"),
        has_functions: true,
        ..Mapping::default()
    };
    p.mappings.push(mapping);
    for f in 0..stacks + 2 {
        let name = p.intern(&format!("app.(*Worker).step{f}"));
        let file = p.intern(&format!("/src/step{}.go", f % 5));
        p.functions.push(Function {
            name,
            system_name: name,
            file,
            start_line: i64::from(f) * 10,
        });
        // Every seventh location holds an inlined call, every eleventh has no symbols.
        let first_line = p.lines.len() as u32;
        let count = match f {
            f if f % 11 == 10 => 0,
            f if f % 7 == 6 => 2,
            _ => 1,
        };
        for l in 0..count {
            p.lines.push(Line {
                function: FunctionId(f.saturating_sub(l)),
                line: i64::from(f * 10 + l),
                column: 0,
            });
        }
        p.locations.push(Location {
            address: 0x40_1000 + u64::from(f) * 16,
            mapping: Some(MappingId(0)),
            first_line,
            line_count: count,
            ..Location::default()
        });
    }
    let key = p.intern("bytes");
    let none = p.intern("");
    for s in 0..stacks {
        let list = [LocationId(s), LocationId(s + 1), LocationId(s / 2)];
        let stack = p.stacks.intern(&list).unwrap();
        let size = 16i64 << (s % 6);
        let label = Label {
            key,
            value: LabelValue::Number(size, none),
        };
        let labels = p.label_sets.intern(&[label]).unwrap();
        let k = 1.0 / (1.0 - (-(size as f64) / 524_288.0).exp());
        let alloc = i64::from(s + 1) + i * i64::from(s % 4);
        let live = i64::from(s % 3) * (i % 5) + i64::from(s % 2);
        p.sample_stacks.push(StackId(stack));
        p.sample_labels.push(LabelSetId(labels));
        for n in [alloc, live] {
            p.values.push((n as f64 * k) as i64);
            p.values.push(((n * size) as f64 * k) as i64);
        }
    }
    p
}

/// A goroutine profile in which stacks come and go.
pub fn goroutines(i: i64) -> Profile {
    let mut p = heap(i, 12);
    p.sample_types.truncate(1);
    p.sample_types[0] = ValueType {
        kind: p.intern("goroutine"),
        unit: p.intern("count"),
    };
    p.default_sample_type = None;
    p.period = 1;
    p.values = (0..12).map(|s| (i + s) % 4 * 100).collect();
    p
}

pub fn gauges(i: i64) -> Gauges {
    let mut g = Gauges::default();
    g.set(Gauge::HeapInuse, 1e6 + i as f64 * 512.0);
    g.set(Gauge::Rss, 2e6 + i as f64 * 0.25);
    if i % 3 == 0 {
        g.set(Gauge::Goroutines, 0.0);
    }
    g
}

pub fn append(store: &mut Store, target: TargetId, i: i64, stacks: u32) {
    let (heap, goroutines) = (heap(i, stacks), goroutines(i));
    let raw = format!("raw {i}");
    store
        .append(&Reading {
            target,
            at: at(i),
            snapshots: &[
                Snapshot {
                    kind: Kind::Heap,
                    profile: &heap,
                    raw: Some(raw.as_bytes()),
                },
                Snapshot {
                    kind: Kind::Goroutine,
                    profile: &goroutines,
                    raw: None,
                },
            ],
            gauges: &gauges(i),
        })
        .unwrap();
}

pub fn open(dir: &Path) -> Store {
    Store::create_or_open(dir, Options::default()).unwrap()
}

/// A stack with its labels as text.
pub type RowKey = (StackKey, Vec<(String, String)>);

/// Rows of a profile by stack and labels, equal ones summed, empty ones left out.
pub fn rows(p: &Profile) -> BTreeMap<RowKey, Vec<i64>> {
    let keys = p.stack_keys();
    let mut all: BTreeMap<_, Vec<i64>> = BTreeMap::new();
    for i in 0..p.len() {
        let labels = p.label_sets.get(p.sample_labels[i].0).iter().map(|l| {
            let value = match l.value {
                LabelValue::Text(t) => p.text(t).to_owned(),
                LabelValue::Number(n, unit) => format!("{n} {}", p.text(unit)),
            };
            (p.text(l.key).to_owned(), value)
        });
        let key = (keys[p.sample_stacks[i].index()], labels.collect());
        let sum = all.entry(key).or_insert_with(|| vec![0; p.row(i).len()]);
        for (s, v) in sum.iter_mut().zip(p.row(i)) {
            *s += v;
        }
    }
    all.retain(|_, v| v.iter().any(|&v| v != 0));
    all
}

/// That snapshot `i` of the target is what `append` wrote.
pub fn check(reader: &Reader, target: TargetId, i: i64, stacks: u32) {
    let (time, read) = reader
        .profile_at(target, Kind::Heap, at(i))
        .unwrap()
        .unwrap();
    assert_eq!(time, at(i));
    let wrote = heap(i, stacks);
    assert_eq!(rows(&read), rows(&wrote), "snapshot {i}");
    assert_eq!(read.time_nanos, wrote.time_nanos);
    let (time, read) = reader
        .profile_at(target, Kind::Goroutine, at(i))
        .unwrap()
        .unwrap();
    assert_eq!(time, at(i));
    assert_eq!(rows(&read), rows(&goroutines(i)), "goroutines {i}");
}
