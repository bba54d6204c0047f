//! What a service's SDK answers, and tags on the stacks of a profile with any names.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memtrace_formats::pprof::{self, tags};
use memtrace_formats::sdk::{Events, TagNames};

/// The target itself makes a name of ten bytes of each byte.
const PER_BYTE: usize = 512;
const CONSTANT: usize = 32 << 20;

fuzz_target!(|bytes: &[u8]| {
    memtrace_fuzz::within(bytes, PER_BYTE, CONSTANT, || check(bytes));
});

fn check(bytes: &[u8]) {
    if let Some(events) = Events::parse(bytes) {
        let numbers: Vec<u64> = events.collections.iter().map(|c| c.number).collect();
        assert!(numbers.windows(2).all(|w| w[0] < w[1]), "{numbers:?}");
    }
    let names = TagNames::parse(bytes).unwrap_or_default();
    // A line is a stack, a letter or digit a frame, so that frames of tags meet in any order.
    let stacks: String = String::from_utf8_lossy(bytes)
        .lines()
        .map(|line| {
            let frame = |c: char| match c {
                '0'..='9' => format!("memtrace.tagHi0{c}"),
                'a'..='j' => format!("memtrace.tagLo0{}", c as u32 - 'a' as u32),
                'D' => "x/memtrace.Do".to_owned(),
                c => format!("f{}", c as u32),
            };
            let frames: Vec<String> = line.chars().map(frame).collect();
            format!("{} 1\n", frames.join(";"))
        })
        .collect();
    let Ok(parsed) = memtrace_formats::folded::parse(stacks.as_bytes()) else {
        return;
    };
    let mut profile = parsed.profile;
    let (samples, values) = (profile.len(), profile.values.clone());
    let had = tags::has_tags(&profile);
    assert_eq!(tags::label(&mut profile, &names), had);
    assert_eq!((profile.len(), &profile.values), (samples, &values));
    let again = pprof::parse(&pprof::write_uncompressed(&profile)).expect("what was written");
    assert_eq!(again.profile.len(), samples);
    let _ = profile.stack_keys();
}
