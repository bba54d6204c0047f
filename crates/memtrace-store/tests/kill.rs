//! A kill -9 at any moment loses nothing that was acknowledged.
//! `MEMTRACE_KILL_ROUNDS` says how often to try.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{all, append, at, check, open};
use memtrace_store::{Kind, Reader, StoreError};

const CHILD: &str = "MEMTRACE_KILL_CHILD";
const STACKS: u32 = 60;

/// Not a test by itself: what the killed process runs.
#[test]
fn writer() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    let mut store = open(Path::new(&dir));
    let t = store.target("t").unwrap();
    let last = store.reader().targets().unwrap()[0].last;
    let next = last.map_or(0, |l| (l.0 - common::START) / 30_000 + 1);
    for i in next.. {
        append(&mut store, t, i, STACKS);
        // Not println: the harness holds that back.
        writeln!(std::io::stderr(), "ack {i}").unwrap();
    }
}

#[test]
fn nothing_acknowledged_is_lost() {
    let rounds = std::env::var("MEMTRACE_KILL_ROUNDS").map_or(10, |n| n.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = -1;
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let last = std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .filter_map(|l| l.strip_prefix("ack ")?.parse::<i64>().ok())
                .last()
        });
        let wait = 30 + (round * 7919) % 250;
        std::thread::sleep(Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged = last.join().unwrap().unwrap_or(acknowledged);

        let reader = match Reader::open(dir.path()) {
            Err(StoreError::Missing(_)) if acknowledged < 0 => continue,
            r => r.unwrap(),
        };
        reader.check().unwrap();
        let Some(t) = reader.find_target("t").unwrap() else {
            continue;
        };
        let times: Vec<_> = reader
            .snapshots(t, Kind::Heap, all())
            .unwrap()
            .map(|s| s.unwrap().at)
            .collect();
        assert!(times.len() as i64 > acknowledged, "round {round}");
        assert_eq!(times, (0..times.len() as i64).map(at).collect::<Vec<_>>());
        if acknowledged >= 0 {
            check(&reader, t, acknowledged, STACKS);
        }
    }
    assert!(acknowledged > 0);
}
