//! Stores written by the first version keep opening.
//!
//! `fixtures/v1.db.zst` is a store as format 1 was first released, packed because
//! SQLite's pages are mostly air. It is never written again: `write` made it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use common::{all, append, at, check, gauges, open};
use memtrace_model::{Event, EventKind, Gauge};
use memtrace_store::{Kind, Options, Reader, Store};

const STACKS: u32 = 18;
const SNAPSHOTS: i64 = 128;

#[test]
#[ignore = "makes the fixture of a new format; old ones are never made again"]
fn write() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let t = store.target("http://127.0.0.1:6060").unwrap();
    store.event(t, &event()).unwrap();
    for i in 0..SNAPSHOTS {
        append(&mut store, t, i, STACKS);
        if i == 10 {
            store.keep_raw(t, &[at(8), at(9), at(10)]).unwrap();
        }
    }
    drop(store);
    let bytes = std::fs::read(dir.path().join("memtrace.db")).unwrap();
    let packed = zstd::encode_all(&bytes[..], 19).unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/v1.db.zst");
    std::fs::write(path, packed).unwrap();
}

fn event() -> Event {
    Event {
        at: at(0),
        kind: EventKind::Attach {
            started: Some(at(-5)),
        },
    }
}

#[test]
fn format_1() {
    let dir = tempfile::tempdir().unwrap();
    let packed = include_bytes!("fixtures/v1.db.zst");
    assert!(packed.len() < 100_000);
    let bytes = zstd::decode_all(&packed[..]).unwrap();
    std::fs::write(dir.path().join("memtrace.db"), bytes).unwrap();

    let reader = Reader::open(dir.path()).unwrap();
    reader.check().unwrap();
    let t = reader
        .find_target("http://127.0.0.1:6060")
        .unwrap()
        .unwrap();
    assert_eq!(
        reader.snapshots(t, Kind::Heap, all()).unwrap().count(),
        SNAPSHOTS as usize
    );
    for i in [0, 1, 63, 119, 120, 127] {
        check(&reader, t, i, STACKS);
    }
    for gauge in [Gauge::Rss, Gauge::Goroutines] {
        let want: Vec<f64> = (0..SNAPSHOTS)
            .filter_map(|i| gauges(i).get(gauge))
            .collect();
        assert_eq!(reader.gauges(t, gauge, all()).unwrap().values, want);
    }
    assert_eq!(reader.events(t, all()).unwrap(), [event()]);
    assert_eq!(reader.sessions(t).unwrap().len(), 1);
    assert_eq!(reader.raw(t, Kind::Heap, at(9)).unwrap().unwrap(), b"raw 9");
    drop(reader);

    // And it is gone on with.
    let mut store = Store::create_or_open(dir.path(), Options::default()).unwrap();
    append(&mut store, t, SNAPSHOTS, STACKS);
    check(store.reader(), t, SNAPSHOTS, STACKS);
}
