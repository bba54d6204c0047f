//! Folded stacks: what was written is what is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memtrace_formats::{folded, pprof};

/// A name of two bytes becomes a string, a function, a line and a location; written out, each
/// stack is text again.
const PER_BYTE: usize = 128;
const CONSTANT: usize = 32 << 20;

fuzz_target!(|bytes: &[u8]| {
    memtrace_fuzz::within(bytes, PER_BYTE, CONSTANT, || check(bytes));
});

fn check(bytes: &[u8]) {
    let Ok(parsed) = folded::parse(bytes) else {
        return;
    };
    let text = folded::write(&parsed.profile, 0);
    if !text.is_empty() {
        let again = folded::parse(text.as_bytes()).expect("what was written");
        assert_eq!(again.warnings, [], "{text:?}");
        assert_eq!(folded::write(&again.profile, 0), text);
    }
    let wire = pprof::parse(&pprof::write_uncompressed(&parsed.profile)).expect("what was written");
    assert!(wire.profile == parsed.profile);
}
