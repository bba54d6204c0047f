//! Text behind each of the known headers, so that no run is spent on finding them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memtrace_formats::{Limits, pprof};

const HEADERS: [&str; 6] = [
    "",
    "heap profile: 3: 4 [5: 6] @ heap/1024\n",
    "heap profile: 3: 4 [5: 6] @ heapz_v2/512\n",
    "heap profile: 3: 4 [5: 6] @ growthz\n",
    "goroutine profile: total 5\n",
    "--- heapz 1 ---\nformat = java\n",
];

/// A line of ten bytes becomes a string, a function, a line and a location, and a message again.
const PER_BYTE: usize = 128;
const CONSTANT: usize = 32 << 20;

fuzz_target!(|bytes: &[u8]| {
    memtrace_fuzz::within(bytes, PER_BYTE, CONSTANT, || check(bytes));
});

fn check(bytes: &[u8]) {
    let Some((&first, rest)) = bytes.split_first() else {
        return;
    };
    // A seed starts with its own header: any byte of text chooses none.
    let header = HEADERS.get(usize::from(first)).copied();
    let mut text = header.unwrap_or_default().as_bytes().to_vec();
    text.extend(header.map_or(bytes, |_| rest));
    let limits = Limits {
        max_decompressed: 1 << 20,
        ..Limits::default()
    };
    let Ok(parsed) = pprof::parse_with(&text, &limits) else {
        return;
    };
    let again =
        pprof::parse(&pprof::write_uncompressed(&parsed.profile)).expect("what was written");
    assert_eq!(again.warnings, []);
    assert!(again.profile == parsed.profile);
}
