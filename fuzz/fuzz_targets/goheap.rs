//! A Go process with lies in its memory: the input says where they are and what they are.
//!
//! The process is a small program that is built and copied when fuzzing starts (MEMTRACE_GO,
//! else `go`); where there is no Go, nothing is read.
#![no_main]
#![allow(dead_code, unreachable_pub)] // shared with a test

#[path = "../../crates/memtrace-analysis/tests/hostile/mod.rs"]
mod hostile;

use std::path::Path;
use std::sync::LazyLock;

use hostile::{Base, Liar};
use libfuzzer_sys::fuzz_target;

static BASES: LazyLock<Vec<Base>> = LazyLock::new(|| {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../services/heaptruth");
    // Without debug information: all of it is read each time, and it never lies.
    Base::make(&program, true).into_iter().collect()
});

// Building the program must not count as time of an input.
/// The process is small, but all of it is read.
const PER_BYTE: usize = 1024;
const CONSTANT: usize = 512 << 20;

fuzz_target!(init: LazyLock::force(&BASES), |bytes: &[u8]| {
    memtrace_fuzz::within(bytes, PER_BYTE, CONSTANT, || check(bytes));
});

fn check(bytes: &[u8]) {
    let (words, _) = bytes.as_chunks::<4>();
    let mut words = words.iter().map(|w| u32::from_le_bytes(*w).into());
    let everywhere = words.next().unwrap_or(0);
    let words: Vec<u64> = words.collect();
    let places = words.as_chunks::<2>().0.iter().map(|w| (w[0], w[1]));
    for base in BASES.iter() {
        hostile::read(base, &Liar::new(base, everywhere, places.clone()), &[]);
    }
}
