use memtrace_model::{
    Function, FunctionId, Label, LabelSetId, LabelValue, Line, Location, LocationId, Mapping,
    MappingId, StackId, StringId, ValueType,
};
use proptest::prelude::*;

use super::wire::Writer;
use super::*;

/// A message from its fields.
pub(super) fn message(fields: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut w = Writer::default();
    fields(&mut w);
    w.bytes
}

fn value_type(w: &mut Writer, kind: u64, unit: u64) {
    w.bytes(
        1,
        &message(|w| {
            w.number(1, kind);
            w.number(2, unit);
        }),
    );
}

/// Strings, one sample type, and what `more` adds.
pub(super) fn small(more: impl FnOnce(&mut Writer)) -> Vec<u8> {
    message(|w| {
        for text in ["", "space", "bytes", "main", "leak"] {
            w.bytes(6, text.as_bytes());
        }
        value_type(w, 1, 2);
        more(w);
    })
}

pub(super) fn sample(w: &mut Writer, stack: &[u64], values: &[u64]) {
    w.bytes(
        2,
        &message(|w| {
            w.packed(1, stack.iter().copied());
            w.packed(2, values.iter().copied());
        }),
    );
}

fn warnings(bytes: &[u8]) -> Vec<String> {
    let parsed = parse(bytes).unwrap();
    parsed.warnings.iter().map(ToString::to_string).collect()
}

fn same(a: &Profile, b: &Profile) {
    assert!(a == b, "{a:#?}\n{b:#?}");
}

pub(super) fn round_trip(profile: &Profile) {
    for bytes in [write(profile), write_uncompressed(profile)] {
        let again = parse(&bytes).unwrap();
        assert_eq!(again.warnings, []);
        same(&again.profile, profile);
    }
}

fn fixture(name: &str) -> Vec<u8> {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../memtrace-analysis/tests/fixtures/profiles/"
    );
    std::fs::read(format!("{folder}{name}")).unwrap()
}

#[test]
fn a_profile_of_go() {
    let parsed = parse(&fixture("go-heap.pb.gz")).unwrap();
    assert_eq!(parsed.warnings, []);
    let p = &parsed.profile;
    assert_eq!(p.sample_types.len(), 4);
    assert_eq!(p.shown_sample_type(), p.sample_type("inuse_space"));
    assert!(p.len() > 100 && p.total(3) > 100_000);
    assert!((0..p.stacks.len()).any(|s| {
        let frames: Vec<_> = p.frames(StackId(s as u32)).collect();
        frames
            .iter()
            .any(|f| f.function == "main.grow" && f.line > 0)
    }));
    round_trip(p);
}

#[test]
fn profiles_of_others() {
    for name in [
        "python-heap.pb.gz",
        "tcmalloc1.heap",
        "tcmalloc2.heap",
        "tcmalloc-v2.heap",
        "tcmalloc.growth",
    ] {
        let parsed = parse(&fixture(name)).unwrap();
        assert_eq!(parsed.warnings, [], "{name}");
        assert!(parsed.profile.len() > 5, "{name}");
        assert!(
            !parsed.profile.mappings.is_empty() || name.starts_with("python"),
            "{name}"
        );
        round_trip(&parsed.profile);
    }
}

#[test]
fn a_profile_cut_anywhere_gives_what_is_there() {
    let whole = write(&parse(&fixture("go-heap.pb.gz")).unwrap().profile);
    let plain = write_uncompressed(&parse(&whole).unwrap().profile);
    let all = parse(&whole).unwrap().profile.len();
    let mut most = 0;
    for bytes in [&whole, &plain] {
        for cut in (0..bytes.len()).step_by(37) {
            if let Ok(parsed) = parse(&bytes[..cut]) {
                assert!(parsed.profile.len() <= all);
                most = most.max(parsed.profile.len());
                round_trip(&parsed.profile);
            }
        }
    }
    assert!(most > all / 2);
    let parsed = parse(&whole[..whole.len() - 4]).unwrap();
    assert_eq!(parsed.profile.len(), all);
    assert!(matches!(parsed.warnings[..], [Warning::Compression { .. }]));
}

#[test]
fn unpacked_numbers_and_any_order() {
    // Samples and locations first, the string table last, numbers one by one.
    let bytes = message(|w| {
        w.bytes(
            2,
            &message(|w| {
                w.number(2, 7);
                w.number(1, 1 << 40);
                w.number(1, 9);
                w.bytes(
                    3,
                    &message(|w| {
                        w.number(1, 1);
                        w.number(2, 2);
                    }),
                );
            }),
        );
        w.number(14, 1);
        w.bytes(
            4,
            &message(|w| {
                w.number(3, 0x99);
                w.number(1, 9);
            }),
        );
        w.bytes(
            4,
            &message(|w| {
                w.bytes(
                    4,
                    &message(|w| {
                        w.number(1, 5);
                        w.number(2, 12);
                    }),
                );
                w.number(2, 3);
                w.number(1, 1 << 40);
            }),
        );
        w.bytes(
            5,
            &message(|w| {
                w.number(2, 3);
                w.number(1, 5);
            }),
        );
        w.bytes(
            3,
            &message(|w| {
                w.number(1, 3);
                w.number(5, 4);
            }),
        );
        w.number(13, 4);
        value_type(w, 1, 2);
        w.bytes(99, b"unknown");
        w.number(98, 5);
        for text in ["", "space", "bytes", "main", "bin", "", "bytes"] {
            w.bytes(6, text.as_bytes());
        }
    });
    let parsed = parse(&bytes).unwrap();
    assert_eq!(parsed.warnings, []);
    let p = &parsed.profile;
    assert_eq!(p.default_sample_type, Some(0));
    assert_eq!(p.text(p.comments[0]), "bin");
    let frames: Vec<_> = p.frames(StackId(0)).collect();
    assert_eq!(
        (frames[0].function, frames[0].line, frames[0].binary),
        ("main", 12, "bin")
    );
    assert_eq!((frames[1].function, frames[1].address), ("", 0x99));
    let label = p.label_sets.get(0)[0];
    assert_eq!(p.text(label.key), "space");
    assert!(matches!(label.value, LabelValue::Text(t) if p.text(t) == "bytes"));
    round_trip(p);
}

#[test]
fn damage_is_named() {
    let cases: &[(&str, Vec<u8>, &[&str])] = &[
        ("sound and empty", small(|_| ()), &[]),
        (
            "cut field",
            small(|w| w.bytes.extend([0x12, 50, 1])),
            &["the profile ends within a field (at byte 34)"],
        ),
        (
            "garbage after it",
            small(|w| w.bytes.extend([0x07, 1, 2, 3])),
            &["what follows byte 34 is no profile and was not read"],
        ),
        (
            "locations that are nowhere",
            small(|w| sample(w, &[7, 8, 7], &[1])),
            &["2 references to locations that the profile does not hold"],
        ),
        (
            "a string, a mapping and a function that are nowhere",
            small(|w| {
                w.bytes(
                    4,
                    &message(|w| {
                        w.number(1, 1);
                        w.number(2, 4);
                        w.bytes(4, &[0x08, 9]);
                    }),
                );
                w.number(7, 77);
                w.number(13, u64::MAX);
            }),
            &[
                "1 references to mappings that the profile does not hold",
                "1 references to functions that the profile does not hold",
                "2 references to strings that the profile does not hold",
            ],
        ),
        (
            "ids twice",
            small(|w| {
                for field in [3, 3, 4, 4, 5, 5] {
                    w.bytes(field, &[0x08, 1]);
                }
            }),
            &[
                "1 mappings with an id that is taken; the first one counts",
                "1 functions with an id that is taken; the first one counts",
                "1 locations with an id that is taken; the first one counts",
            ],
        ),
        (
            "samples of another width",
            small(|w| {
                sample(w, &[], &[]);
                sample(w, &[], &[1]);
                sample(w, &[], &[1, 2]);
            }),
            &["2 damaged samples left out"],
        ),
        (
            "entries that are none",
            small(|w| {
                for field in [1, 3, 4, 5, 11] {
                    w.bytes(field, &[0x07]);
                }
                w.bytes(4, &message(|w| w.bytes(4, &[0x07])));
                w.bytes(2, &[0x07]);
                w.bytes(2, &message(|w| w.bytes(3, &[0x07])));
                w.bytes(2, &message(|w| w.bytes(1, &[0x80])));
                w.number(2, 5);
                w.bytes(13, &[0x80]);
                w.bytes(4, &message(|w| w.bytes(4, &[0x10, 5])));
            }),
            &[
                "3 damaged samples left out",
                "6 damaged entries left out",
                "2 fields of a wrong type left out",
                "1 lines without a function left out",
            ],
        ),
        (
            "not UTF-8",
            small(|w| w.bytes(6, &[0xff, b'a'])),
            &["1 strings are not UTF-8; bad bytes were replaced"],
        ),
        (
            "more values than types",
            small(|w| {
                sample(w, &[], &[1, 2]);
                sample(w, &[], &[3, 4]);
            }),
            &["samples have 2 values, but there are 1 sample types; only what matches was kept"],
        ),
        (
            "more types than values",
            message(|w| {
                w.bytes(6, b"");
                sample(w, &[], &[1]);
                value_type(w, 0, 0);
                value_type(w, 0, 0);
            }),
            &["samples have 1 values, but there are 2 sample types; only what matches was kept"],
        ),
    ];
    for (name, bytes, expected) in cases {
        assert_eq!(warnings(bytes), *expected, "{name}");
        assert_eq!(
            warnings(&gzip::compress(bytes)),
            *expected,
            "{name}, compressed"
        );
        round_trip(&parse(bytes).unwrap().profile);
    }
    let kept = parse(&cases[9].1).unwrap().profile;
    assert_eq!(kept.values, [1, 3]);
}

#[test]
fn nothing_usable_is_an_error() {
    let cases: &[(&[u8], &str)] = &[
        (b"", "the profile is empty: no byte was received"),
        (
            &gzip::compress(b""),
            "the profile is empty: no byte was received",
        ),
        (
            b"<!DOCTYPE html><html><head><title>Sign in</title>",
            "this is HTML, not a profile (its title is \"Sign in\")",
        ),
        (b"\n\n<HTML>", "this is HTML, not a profile"),
        (&gzip::compress(b"<html>"), "this is HTML, not a profile"),
        (
            b"404 page not found\n",
            "not a profile: it starts with \"404 page not found\\n\"",
        ),
        (
            b"{\"error\": 1}",
            "not a profile: it starts with \"{\\\"error\\\": 1}\"",
        ),
        (
            b"\x7fELF\x02\x01",
            "not a profile: it starts with \"\\x7fELF\\x02\\x01\"",
        ),
        (
            b"JAVA PROFILE 1.0.2\0\0\0\0\x08",
            "not a profile: it starts with \"JAVA PROFILE 1.0.2\\x00\\x00\\x00\\x00\\x08\"",
        ),
        (
            b"--- contentionz 1 ---\ncycles/second = 1",
            "a contention profile is not supported: it has no heap data",
        ),
        (
            b"--- mutex:\n",
            "a contention profile is not supported: it has no heap data",
        ),
        (
            b"--- threadz 1 ---\n",
            "a thread dump is not supported: it has no heap data",
        ),
        (
            b"goroutine 1 [running]:\nmain.main()\n",
            "a list of goroutines (debug=2), which is no profile, is not supported: it has no heap data",
        ),
        (
            &[
                0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0x10, 0x27, 0, 0, 0, 0, 0, 0,
            ],
            "a legacy CPU profile is not supported: it has no heap data",
        ),
        (
            &[0x1f, 0x8b, 8, 0],
            "the profile is damaged: unexpected end of file",
        ),
        (
            b"heap profile: 1: 2 [3: 4] @ heap_v9/5\n",
            "not a profile: it starts with \"heap profile: 1: 2 [3: 4\"",
        ),
        (
            b"--- heapz 1 ---\nformat = c++\n",
            "not a profile: it starts with \"--- heapz 1 ---\\nformat =\"",
        ),
    ];
    for (bytes, expected) in cases {
        assert_eq!(parse(bytes).unwrap_err().to_string(), *expected);
    }
    let no_types = message(|w| {
        w.bytes(6, b"");
        sample(w, &[], &[1]);
    });
    assert_eq!(
        parse(&no_types).unwrap_err().to_string(),
        "the profile is damaged: it names no sample type"
    );
    let no_strings = message(|w| sample(w, &[], &[1]));
    assert_eq!(
        parse(&no_strings).unwrap_err().to_string(),
        "the profile is damaged: it ends before its string table"
    );
    let mut two = small(|w| w.number(9, 5));
    two.extend(small(|w| w.number(9, 6)));
    assert_eq!(parse(&two).unwrap_err(), Error::Concatenated);
}

#[test]
fn a_bomb_stops_at_the_limit() {
    let limits = Limits {
        max_decompressed: 1 << 20,
        ..Limits::default()
    };
    // Sound until the limit, then nothing more is read.
    let sound = small(|w| {
        for i in 0..400_000 {
            sample(w, &[], &[i]);
        }
    });
    let parsed = parse_with(&gzip::compress(&sound), &limits).unwrap();
    assert!(parsed.profile.len() > 50_000);
    assert!(parsed.warnings.contains(&Warning::Limit { limit: 1 << 20 }));
    assert!(parse_with(&sound, &limits).unwrap().warnings.is_empty());
    // One field that never ends.
    let mut endless = vec![0x12, 0xff, 0xff, 0xff, 0x1f];
    endless.resize(4 << 20, 0);
    let error = parse_with(&gzip::compress(&endless), &limits).unwrap_err();
    assert_eq!(error, Error::TooLarge { limit: 1 << 20 });
    // Text.
    let mut text = b"heap profile: 1: 2 [3: 4] @ heapprofile\n".to_vec();
    text.resize(4 << 20, b'\n');
    let parsed = parse_with(&gzip::compress(&text), &limits).unwrap();
    assert_eq!(parsed.warnings, [Warning::Limit { limit: 1 << 20 }]);
}

#[test]
fn a_length_that_nothing_can_have_is_garbage() {
    let bytes = small(|w| w.bytes.extend([0x12, 0xff, 0xff, 0xff, 0xff, 0x7f]));
    assert_eq!(
        warnings(&bytes),
        ["what follows byte 34 is no profile and was not read"]
    );
}

#[test]
fn ids_without_order_and_gaps() {
    let ids: Vec<u64> = (0..3000u64)
        .map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
        .collect();
    let bytes = small(|w| {
        for (i, &id) in ids.iter().enumerate().rev() {
            sample(w, &[id, ids[i / 2], 4000, 3], &[i as u64]);
        }
        for (i, &id) in ids.iter().enumerate() {
            w.bytes(
                4,
                &message(|w| {
                    w.number(1, id);
                    w.number(3, i as u64 + 1);
                }),
            );
        }
        for id in [3, 4000] {
            w.bytes(
                4,
                &message(|w| {
                    w.number(1, id);
                    w.number(3, id + 1_000_000);
                }),
            );
        }
    });
    let parsed = parse(&bytes).unwrap();
    assert_eq!(parsed.warnings, []);
    let p = &parsed.profile;
    for i in 0..p.len() {
        let value = p.row(i)[0] as u64;
        let addresses: Vec<u64> = p.frames(p.sample_stacks[i]).map(|f| f.address).collect();
        assert_eq!(addresses, [value + 1, value / 2 + 1, 1_004_000, 1_000_003]);
    }
    round_trip(p);
}

/// Found by fuzzing: the words of a header within a message made a text of it.
#[test]
fn strings_of_a_message_do_not_make_it_text() {
    for name in [
        "heap profile: 1: 2 [3: 4] @ heap/8",
        "x profile: total 5",
        "<html>",
    ] {
        for bytes in [
            small(|w| w.bytes(6, name.as_bytes())),
            message(|w| {
                value_type(w, 0, 0);
                w.bytes(6, b"");
                w.bytes(6, name.as_bytes());
            }),
        ] {
            round_trip(&parse(&bytes).unwrap().profile);
        }
    }
}

#[test]
fn go_heap_text_has_names_and_gauges() {
    let text = "heap profile: 2: 48 [5: 4144] @ heap/1048576\n\
        1: 16 [1: 16] @ 0x40a0c8 0x40b001 0x40c001 0x44d415 0x484821\n\
        #\t0x40b000\tmain.inlined+0x20\t\t/app/main.go:9\n\
        #\t0x40b000\tmain.leak+0x47\t\t/app/main.go:12\n\
        #\t0x40c000\tmain.main+0x10\t\t/app/main.go:30\n\
        \n\
        1: 32 [4: 4128] @ 0x40a0c8 0x40d001\n\
        garbage\n\
        0: 5 [1: 1] @ 0x1\n\
        \n\
        # runtime.MemStats\n\
        # Alloc = 1\n# HeapAlloc = 3036232\n# HeapInuse = 3702784\n# HeapSys = 8060928\n\
        # Stack = 327680 / 327681\n# Sys = 13203720\n# NextGC = 4194304\n\
        # LastGC = 1795425584202760291\n# PauseNs = [5 7 0]\n# NumGC = 4\n\
        # PauseEnd = [1795425584202760291 8 9]\n\
        # GCCPUFraction = 0.25\n# MaxRSS = 21860352\n# Odd\n# NumForcedGC = x\n";
    let parsed = parse(text.as_bytes()).unwrap();
    assert_eq!(parsed.warnings, [Warning::Lines { first: 8, count: 2 }]);
    let stats = parsed.mem_stats.unwrap();
    assert_eq!(stats.heap_alloc, 3_036_232);
    assert_eq!(stats.heap_inuse, 3_702_784);
    assert_eq!(stats.heap_sys, 8_060_928);
    assert_eq!((stats.stack_inuse, stats.stack_sys), (327_680, 327_681));
    assert_eq!(stats.sys, 13_203_720);
    assert_eq!(stats.next_gc, 4_194_304);
    assert_eq!(stats.last_gc, 1_795_425_584_202_760_291);
    assert_eq!(
        (stats.pause_total, stats.pause_max, stats.num_gc),
        (12, 7, 4)
    );
    assert_eq!(stats.gc_cpu_fraction, 0.25);
    assert_eq!((stats.max_rss, stats.num_forced_gc), (21_860_352, 0));
    // The fourth collection ended where the ring begins anew.
    assert_eq!(stats.last_gc_but_one, 9);

    let p = &parsed.profile;
    assert_eq!(p.period, 524_288);
    assert_eq!(p.sample_types.len(), 4);
    let frames: Vec<_> = p
        .frames(StackId(0))
        .map(|f| (f.function, f.file, f.line, f.inlined))
        .collect();
    assert_eq!(
        frames,
        [
            ("main.inlined", "/app/main.go", 9, true),
            ("main.leak", "/app/main.go", 12, false),
            ("main.main", "/app/main.go", 30, false),
        ]
    );
    // Without comments the addresses remain, those of the calls.
    let addresses: Vec<u64> = p.frames(StackId(1)).map(|f| f.address).collect();
    assert_eq!(addresses, [0x40_a0c7, 0x40_d000]);
    // 16 bytes are met once in 32768.
    assert_eq!(p.row(0), [32768, 524_296, 32768, 524_296]);
    round_trip(p);
}

/// A function that calls itself returns to one address at each level, like calls that were
/// inlined into each other.
#[test]
fn recursion_in_text_is_no_inlining() {
    let frame = |name| format!("#\t0x40b000\tmain.{name}+0x20\t\t/app/main.go:9\n");
    let level = frame("inlined") + &frame("recursive");
    let record = |levels: usize| {
        let addresses = " 0x40b001".repeat(levels);
        format!("1: 16 [1: 16] @{addresses}\n{}\n", level.repeat(levels))
    };
    let text = format!(
        "heap profile: 2: 48 [5: 4144] @ heap/1048576\n{}{}",
        record(3),
        record(1)
    );
    let p = parse(text.as_bytes()).unwrap().profile;
    let depth = |stack| p.frames(StackId(stack)).count();
    assert_eq!((depth(0), depth(1)), (6, 2));
    assert_eq!(p.locations.len(), 1);
}

#[test]
fn calls_into_the_runtime_can_be_kept_and_named() {
    let text = b"heap profile: 2: 48 [5: 4144] @ heap/1048576\n\
        1: 16 [1: 16] @ 0x40a0c8 0x40b001 0x40c001 0x484821\n\
        #\t0x40b000\tmain.leak+0x47\t\t/app/main.go:12\n\
        #\t0x40c000\tmain.main+0x10\t\t/app/main.go:30\n\
        \n\
        1: 32 [4: 4128] @ 0x40a0c8 0x40d001\n\
        #\t0x40f000\tmain.elsewhere+0x47\t\t/app/main.go:12\n\
        \n\
        1: 32 [4: 4128] @ 0x40a0c8\n\
        #\t0x40a0c7\truntime.mallocgc+0x7\t\t/go/malloc.go:12\n";
    let mut p = with_runtime_calls(text).unwrap().profile;
    let names = [(0x40_a0c7, "runtime.mallocgc".to_owned()), (7, "x".into())];
    p.name_addresses(&names.into());
    let functions = |p: &Profile, stack| -> Vec<String> {
        p.frames(StackId(stack))
            .map(|f| f.function.into())
            .collect()
    };
    assert_eq!(
        functions(&p, 0),
        ["runtime.mallocgc", "main.leak", "main.main"]
    );
    assert_eq!(functions(&p, 1), ["main.elsewhere"]);
    // What another stack shows does not change what this one is.
    let files = |stack| p.frames(StackId(stack)).map(|f| f.file).next();
    assert_eq!((files(0), files(2)), (Some(""), Some("/go/malloc.go")));
    assert_eq!(
        functions(&parse(text).unwrap().profile, 0),
        ["main.leak", "main.main"]
    );
    assert!(with_runtime_calls(b"goroutine profile: total 1\n").is_none());
}

#[test]
fn goroutines_have_labels() {
    let text = "goroutine profile: total 5\n\
        4 @ 0x47e30e 0x4dee39 0x484821\n\
        # labels: {\"block\":\"G000\", \"quote\":\"a \\\"b\\\"\"}\n\
        #\t0x4dee38\tmain.wait+0x18\t\t/app/main.go:68\n\
        \n\
        1 @ 0x4432d1\n\
        x @ 0x1\n\
        7 @\n\
        --- Memory map: ---\n\
        00400000-00fcb000: /bin/service\n";
    let parsed = parse(text.as_bytes()).unwrap();
    assert_eq!(parsed.warnings, [Warning::Lines { first: 7, count: 2 }]);
    let p = &parsed.profile;
    assert_eq!(p.values, [4, 1]);
    assert_eq!(p.sample_type("goroutine"), Some(0));
    let labels: Vec<_> = p
        .label_sets
        .get(p.sample_labels[0].0)
        .iter()
        .map(|l| match l.value {
            LabelValue::Text(t) => (p.text(l.key), p.text(t)),
            LabelValue::Number(..) => panic!(),
        })
        .collect();
    assert_eq!(labels, [("block", "G000"), ("quote", "a \"b\"")]);
    assert_eq!(p.frames(StackId(1)).next().unwrap().binary, "/bin/service");
    round_trip(p);
}

#[test]
fn java_heap_text() {
    let text = "--- heapz 1 ---\nformat = java\nresolution = bytes\n\
        \x20  7048     1 @ 0x00000003 0x00000004 0x00000009\n\
        \x20  7048     0 @ 0x00000003\n\
        \n\
        \x20 0x00000009 GC\n\
        \x20 0x00000003 com.example.A.make (A.java:103)\n\
        \x20 0x00000004 native (/usr/lib/libx.so)\n\
        \x20 0x00000005 unused (B.java:1)\n";
    let parsed = parse(text.as_bytes()).unwrap();
    assert_eq!(parsed.warnings, [Warning::Lines { first: 5, count: 1 }]);
    let p = &parsed.profile;
    // The table need not be in the order of the stacks.
    round_trip(p);
    let frames: Vec<_> = p
        .frames(StackId(0))
        .map(|f| (f.function, f.file, f.line, f.address))
        .collect();
    assert_eq!(
        frames,
        [
            ("com.example.A.make", "A.java", 103, 0),
            ("native", "libx.so", 0, 0),
            ("GC", "", 0, 0),
        ]
    );
    assert_eq!(p.values, [74, 527_819]);
}

#[test]
fn sampling_of_each_header() {
    for (header, expected) in [
        ("1: 1000 [1: 1000] @ heap/2", Some(vec![1, 1000])),
        ("1: 1000 [1: 1000] @ heap_v2/1", Some(vec![1, 1000])),
        ("1: 1000 [1: 1000] @ heapz_v2/1000", Some(vec![1, 1581])),
        ("1: 1000 [0: 0] @ heapz_v2", Some(vec![1, 1000])),
        ("1: 1000 [1: 1000] @ heapprofile", Some(vec![1, 1000])),
        (
            "1: 1000 [2: 1000] @ heapprofile",
            Some(vec![1, 1000, 1, 1000]),
        ),
        ("1: 1000 [2: 1000] @ growthz", Some(vec![1, 1000])),
        ("1: 1000 [2: 1000] @ fragmentation", Some(vec![1, 1000])),
        ("1: 1000 [1: 1000] @ something", None),
        ("1: 1000", None),
    ] {
        let text = format!("heap profile: {header}\n1: 1000 [1: 1000] @ 0x5\n");
        let values = parse(text.as_bytes()).ok().map(|p| p.profile.values);
        assert_eq!(values, expected, "{header}");
    }
}

prop_compose! {
    fn any_profile()(
        strings in prop::collection::vec("[a-z:/é]{0,6}", 1..20),
        types in 1usize..4,
        functions in prop::collection::vec((any::<u8>(), any::<u8>(), any::<i64>()), 1..8),
        mappings in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u8>(), any::<bool>()), 0..3),
        locations in prop::collection::vec(
            (any::<u64>(), any::<u8>(), prop::collection::vec((any::<u8>(), any::<i32>(), any::<u8>()), 0..3), any::<bool>()), 1..10),
        samples in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..6), prop::collection::vec((any::<u8>(), any::<u8>(), any::<i64>(), any::<bool>()), 0..3), any::<[i64; 3]>()), 0..20),
        header in any::<(i64, i64, i64, u8, u8)>(),
    ) -> Profile {
        let mut p = Profile::default();
        for s in &strings { p.intern(s); }
        let count = p.strings.len();
        let text = move |n: u8| StringId((usize::from(n) % count) as u32);
        for i in 0..types {
            let kind = p.intern(&format!("type{i}"));
            p.sample_types.push(ValueType { kind, unit: text(i as u8) });
        }
        for &(name, file, start_line) in &functions {
            p.functions.push(Function { name: text(name), system_name: text(file), file: text(name / 2), start_line });
        }
        for &(start, limit, file, flag) in &mappings {
            p.mappings.push(Mapping { start, limit, offset: start / 3, file: text(file), build_id: text(file / 2), has_functions: flag, has_inline_frames: !flag, ..Mapping::default() });
        }
        for (address, mapping, lines, is_folded) in &locations {
            let first = p.lines.len() as u32;
            for &(f, line, column) in lines {
                let function = FunctionId((usize::from(f) % p.functions.len()) as u32);
                p.lines.push(Line { function, line: line.into(), column: column.into() });
            }
            let mapping = match p.mappings.len() {
                0 => None,
                n => (usize::from(*mapping) % (n + 1)).checked_sub(1).map(|m| MappingId(m as u32)),
            };
            p.locations.push(Location { address: *address, mapping, is_folded: *is_folded,
                first_line: if lines.is_empty() { 0 } else { first }, line_count: lines.len() as u32 });
        }
        for (stack, labels, values) in &samples {
            let stack: Vec<_> = stack.iter().map(|&l| LocationId((usize::from(l) % p.locations.len()) as u32)).collect();
            let labels: Vec<_> = labels.iter().map(|&(key, value, n, number)| Label {
                key: text(key),
                value: if number { LabelValue::Number(n, text(value)) } else { LabelValue::Text(text(value)) },
            }).collect();
            p.sample_stacks.push(StackId(p.stacks.intern(&stack).unwrap()));
            p.sample_labels.push(LabelSetId(p.label_sets.intern(&labels).unwrap()));
            p.values.extend(&values[..types]);
        }
        p.time_nanos = header.0;
        p.duration_nanos = header.1;
        p.period = header.2;
        p.drop_frames = text(header.3);
        p.keep_frames = text(header.4);
        p.doc_url = text(header.3 / 2);
        p.comments = vec![text(header.4), text(header.3)];
        p.period_type = ValueType { kind: text(header.3), unit: text(header.4) };
        p.default_sample_type = usize::from(header.4).checked_rem(types + 1).and_then(|n| n.checked_sub(1));
        p
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(profile in any_profile()) {
        round_trip(&profile);
    }

    #[test]
    fn damage_never_panics(profile in any_profile(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = write_uncompressed(&profile);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(parsed) = parse(&bytes) {
            round_trip(&parsed.profile);
        }
        let _ = parse(&bytes[at..]);
    }

    #[test]
    fn any_text_is_taken(text in "(heap profile: 1: 2 \\[3: 4\\] @ heap/8\n|goroutine profile: total 1\n|--- heapz 1 ---\n)([ -~\n]{0,30}|1: 2 \\[3: 4\\] @ 0x1f\n|#\t0x1e\ta\tb:1\n|1 @ 0x1f 0x2\n|--- Memory map: ---\n|[0-9a-f]{1,5}-[0-9a-f]{1,5}: [a-z.]{1,4}\n){0,8}") {
        if let Ok(parsed) = parse(text.as_bytes()) {
            round_trip(&parsed.profile);
        }
    }
}
