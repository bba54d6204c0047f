//! Any bytes: no panic; what was read comes back from what is written of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memtrace_analysis::top::{Granularity, diff, top};
use memtrace_formats::{Limits, Warning, folded, pprof, speedscope};

/// What compressed bytes unpack to is in the constant, and the names that any profile may
/// come to once it is written out, in three copies.
const PER_BYTE: usize = 1024;
const CONSTANT: usize = 160 << 20;

fuzz_target!(|bytes: &[u8]| {
    memtrace_fuzz::within(bytes, PER_BYTE, CONSTANT, || check(bytes));
});

fn check(bytes: &[u8]) {
    let limits = Limits {
        max_decompressed: 128 << 10,
        ..Limits::default()
    };
    let Ok(parsed) = pprof::parse_with(bytes, &limits) else {
        return;
    };
    // What had to be folded is shorter when it is written again, and may then be less.
    let is_whole = !parsed
        .warnings
        .iter()
        .any(|w| matches!(w, Warning::Folded { .. } | Warning::Nameless { .. }));
    let profile = parsed.profile;
    let again = pprof::parse(&pprof::write_uncompressed(&profile)).expect("what was written");
    assert!(
        again.warnings.is_empty() || !is_whole,
        "{:?}",
        again.warnings
    );
    assert!(
        again.profile == profile || !is_whole,
        "{profile:#?}\n{:#?}",
        again.profile
    );

    for column in 0..profile.sample_types.len() {
        let _ = folded::write(&profile, column);
        let _ = speedscope::write(&profile, column);
        let _ = top(&profile, column, Granularity::Functions);
        let _ = top(&profile, column, Granularity::Lines);
        let _ = diff(&profile, &profile, column, Granularity::Addresses);
    }
    let _ = profile.stack_keys();
}
