//! Each error, and what is left after it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{all, append, at, check, gauges, heap, open};
use memtrace_store::{Kind, Options, Reader, Reading, Snapshot, Store, StoreError, TargetId};

/// A file system of its own in memory, where we may mount one.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "memtrace-test"])
            .arg(dir.path())
            .output()
            .is_ok_and(|o| o.status.success());
        done.then_some(Self(dir))
    }

    fn remount(&self, options: &str) -> bool {
        Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(self.0.path())
            .status()
            .is_ok_and(|s| s.success())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn try_append(store: &mut Store, target: TargetId, i: i64, raw: &[u8]) -> Result<(), StoreError> {
    let p = heap(i, 40);
    store.append(&Reading {
        target,
        at: at(i),
        snapshots: &[Snapshot {
            kind: Kind::Heap,
            profile: &p,
            raw: Some(raw),
        }],
        gauges: &gauges(i),
    })
}

/// Bytes that no packer makes smaller.
fn noise(seed: i64, n: usize) -> Vec<u8> {
    let mut x = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    })
    .take(n)
    .collect()
}

/// Appends until there is no space; the number of the first that failed.
fn fill(store: &mut Store, target: TargetId) -> i64 {
    for i in 0..10_000 {
        match try_append(store, target, i, &noise(i, 60_000)) {
            Ok(()) => {}
            Err(StoreError::Full) => return i,
            Err(e) => panic!("{e:?}"),
        }
    }
    panic!("never full");
}

fn nothing_lost(store: &Store, target: TargetId, n: i64) {
    let times: Vec<_> = store
        .reader()
        .snapshots(target, Kind::Heap, all())
        .unwrap()
        .map(|s| s.unwrap().at)
        .collect();
    assert_eq!(times, (0..n).map(at).collect::<Vec<_>>());
    store.reader().check().unwrap();
}

#[test]
fn full_by_its_own_limit() {
    let dir = tempfile::tempdir().unwrap();
    let limited = Options {
        max_bytes: Some(1 << 20),
        ..Options::default()
    };
    let mut store = Store::create_or_open(dir.path(), limited).unwrap();
    let t = store.target("t").unwrap();
    let n = fill(&mut store, t);
    assert!(n > 5);
    assert!(matches!(
        try_append(&mut store, t, n, &noise(-1, 90_000)),
        Err(StoreError::Full)
    ));
    nothing_lost(&store, t, n);
    drop(store);
    let mut store = open(dir.path());
    try_append(&mut store, t, n, &noise(-1, 60_000)).unwrap();
    nothing_lost(&store, t, n + 1);
}

#[test]
fn full_disk() {
    let Some(disk) = Tmpfs::mount("size=3m") else {
        eprintln!("not run: may not mount");
        return;
    };
    let mut store = open(disk.0.path());
    let t = store.target("t").unwrap();
    let n = fill(&mut store, t);
    assert!(n > 5);
    nothing_lost(&store, t, n);
    // With space again, the same store goes on.
    assert!(disk.remount("size=8m"));
    try_append(&mut store, t, n, &noise(-1, 60_000)).unwrap();
    nothing_lost(&store, t, n + 1);
    drop(store);
    nothing_lost(&open(disk.0.path()), t, n + 1);
}

#[test]
fn second_writer() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    match Store::create_or_open(dir.path(), Options::default()) {
        Err(StoreError::Locked { pid }) => assert_eq!(pid, Some(std::process::id())),
        other => panic!("{other:?}"),
    }
    Reader::open(dir.path()).unwrap();
    drop(store);
    open(dir.path());
}

#[test]
fn missing() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        Reader::open(dir.path()),
        Err(StoreError::Missing(_))
    ));
    let deep = dir.path().join("a/b");
    assert!(matches!(Reader::open(&deep), Err(StoreError::Missing(_))));
    open(&deep);
    Reader::open(&deep).unwrap();
}

#[test]
fn newer() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    patch_version(dir.path(), 99);
    for error in [
        Store::create_or_open(dir.path(), Options::default()).err(),
        Reader::open(dir.path()).err(),
    ] {
        match error {
            Some(StoreError::Newer {
                found: 99,
                known: 1,
            }) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// `user_version` lies at offset 60 of the file.
fn patch_version(dir: &Path, version: u32) {
    let path = dir.join("memtrace.db");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[60..64].copy_from_slice(&version.to_be_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn no_store_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("memtrace.db"), vec![b'x'; 9000]).unwrap();
    for error in [
        Store::create_or_open(dir.path(), Options::default()).err(),
        Reader::open(dir.path()).err(),
    ] {
        assert!(matches!(error, Some(StoreError::Corrupt(_))), "{error:?}");
    }
    // What was there is still there.
    assert_eq!(
        std::fs::read(dir.path().join("memtrace.db")).unwrap(),
        vec![b'x'; 9000]
    );
}

#[test]
fn damaged_pages_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let t = store.target("t").unwrap();
    for i in 0..150 {
        append(&mut store, t, i, 40);
    }
    drop(store);
    let path = dir.path().join("memtrace.db");
    let whole = std::fs::read(&path).unwrap();
    let mut random = 88_172_645_463_325_252u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize
    };
    let mut errors = 0;
    for _ in 0..150 {
        let mut bytes = whole.clone();
        for _ in 0..8 {
            let i = 100 + next() % (bytes.len() - 100);
            bytes[i] = next() as u8;
        }
        if next() % 4 == 0 {
            let len = bytes.len();
            bytes.truncate(len / 2 + next() % (len / 2));
        }
        std::fs::write(&path, &bytes).unwrap();
        if read_all(dir.path(), t).is_err() {
            errors += 1;
        }
        if let Ok(mut store) = Store::create_or_open(dir.path(), Options::default()) {
            let _ = try_append(&mut store, t, 151, b"x");
            let _ = store.maintain(at(100_000));
        }
        let _ = std::fs::remove_file(dir.path().join("memtrace.db-wal"));
    }
    assert!(errors > 10, "{errors}");
}

fn read_all(dir: &Path, t: TargetId) -> Result<(), StoreError> {
    let reader = Reader::open(dir)?;
    let mut error = reader.check().err();
    for kind in Kind::ALL {
        for s in reader.snapshots(t, kind, all())? {
            error = error.or(s.err());
        }
        reader.profile_at(t, kind, at(70))?;
        reader.raw(t, kind, at(140))?;
    }
    reader.gauges(t, memtrace_model::Gauge::Rss, all())?;
    reader.targets()?;
    error.map_or(Ok(()), Err)
}

#[test]
fn read_only_directory() {
    let (mounted, plain);
    let dir: &Path = match Tmpfs::mount("size=8m") {
        Some(m) => {
            mounted = m;
            mounted.0.path()
        }
        None => {
            plain = tempfile::tempdir().unwrap();
            plain.path()
        }
    };
    let dir = &dir.join("store");
    let mut store = open(dir);
    let t = store.target("t").unwrap();
    for i in 0..5 {
        append(&mut store, t, i, 10);
    }
    drop(store);
    set_read_only(dir, true);
    match Store::create_or_open(dir, Options::default()) {
        Err(StoreError::ReadOnly(_)) => {}
        other => panic!("{other:?}"),
    }
    let reader = Reader::open(dir).unwrap();
    check(&reader, t, 4, 10);
    drop(reader);
    set_read_only(dir, false);
    check(open(dir).reader(), t, 4, 10);
}

/// Permissions do not bind root; a mount does.
fn set_read_only(dir: &Path, on: bool) {
    use std::os::unix::fs::PermissionsExt;
    let parent = dir.parent().unwrap();
    let mounted = Command::new("mount")
        .args(["-o", if on { "remount,ro" } else { "remount,rw" }])
        .arg(parent)
        .output()
        .is_ok_and(|o| o.status.success());
    if !mounted {
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set(dir, if on { 0o555 } else { 0o755 });
        for f in std::fs::read_dir(dir).unwrap() {
            set(&f.unwrap().path(), if on { 0o444 } else { 0o644 });
        }
    }
}
