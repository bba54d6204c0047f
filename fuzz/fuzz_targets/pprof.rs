//! Any bytes: no panic; what was read comes back from what is written of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use memtrace_analysis::top::{Granularity, diff, top};
use memtrace_formats::{Limits, folded, pprof, speedscope};

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits {
        max_decompressed: 1 << 20,
        ..Limits::default()
    };
    let Ok(parsed) = pprof::parse_with(bytes, &limits) else {
        return;
    };
    let profile = parsed.profile;
    let again = pprof::parse(&pprof::write_uncompressed(&profile)).expect("what was written");
    assert_eq!(again.warnings, []);
    assert!(
        again.profile == profile,
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
});
