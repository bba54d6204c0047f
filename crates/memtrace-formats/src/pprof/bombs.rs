//! Profiles that stand for much more than they are: what is read of them is bounded, and the
//! heaviest of it is there.

use memtrace_model::{LocationId, OTHER, StackId};

use super::tests::{message, round_trip, sample, small};
use super::wire::Writer;
use super::*;
use crate::{folded, speedscope};

fn location(w: &mut Writer, id: u64, lines: impl Iterator<Item = (u64, u64)>) {
    w.bytes(
        4,
        &message(|w| {
            w.number(1, id);
            for (function, line) in lines {
                w.bytes(
                    4,
                    &message(|w| {
                        w.number(1, function);
                        w.number(2, line);
                    }),
                );
            }
        }),
    );
}

fn function(w: &mut Writer, id: u64, name: u64) {
    w.bytes(
        5,
        &message(|w| {
            w.number(1, id);
            w.number(2, name);
            w.number(4, name);
        }),
    );
}

fn frames(profile: &Profile) -> usize {
    let stacks = 0..profile.stacks.len() as u32;
    stacks.map(|s| profile.frames(StackId(s)).count()).sum()
}

/// Bytes of the names at all lines of all locations.
fn texts(profile: &Profile) -> usize {
    let locations = 0..profile.locations.len() as u32;
    let names = locations.flat_map(|l| profile.frames_of(LocationId(l)));
    names.map(|f| f.function.len() + f.file.len()).sum()
}

/// The value of the row that stands for all others.
fn other(profile: &Profile) -> i64 {
    let is_other = |&i: &usize| {
        let mut frames = profile.frames(profile.sample_stacks[i]);
        frames.next().is_some_and(|f| f.function == OTHER)
    };
    (0..profile.len())
        .filter(is_other)
        .map(|i| profile.row(i)[0])
        .sum()
}

#[test]
fn many_deep_stacks_of_many_inlined_calls() {
    let bytes = small(|w| {
        function(w, 1, 3);
        location(w, 1, (0..20_000).map(|i| (1, i)));
        // Each stack another one, the last the heaviest.
        for value in 1..=100 {
            let stack = vec![1; 19_900 + value as usize];
            sample(w, &stack, &[value]);
        }
    });
    let parsed = parse(&bytes).unwrap();
    let p = &parsed.profile;
    // 40,000,000,000 frames stood there.
    assert!(frames(p) <= 16 * bytes.len(), "{}", frames(p));
    assert_eq!(p.total(0), 5050);
    assert!(
        matches!(parsed.warnings[..], [Warning::Deep { count: 100, .. }]),
        "{:?}",
        parsed.warnings
    );
    round_trip(p);
    assert!(folded::write(p, 0).len() < 4 << 20);
    assert!(speedscope::write(p, 0).len() < 4 << 20);
}

#[test]
fn the_heaviest_stacks_are_kept() {
    let bytes = small(|w| {
        function(w, 1, 3);
        location(w, 1, (0..300).map(|i| (1, i)));
        location(w, 2, std::iter::once((1, 7)));
        for value in 1..=100u64 {
            let mut stack = vec![1; 200];
            // A stack of its own.
            stack.extend((0..7).map(|bit| 1 + (value >> bit & 1)));
            sample(w, &stack, &[value]);
        }
    });
    let parsed = parse(&bytes).unwrap();
    let p = &parsed.profile;
    assert!(frames(p) <= 1 << 20);
    let kept = p.len() - 1;
    assert!((10..30).contains(&kept), "{kept}");
    assert_eq!(
        parsed.warnings,
        [Warning::Folded {
            samples: 100 - kept as u64
        }]
    );
    // The lightest are one.
    let rest: i64 = (1..=100 - kept as i64).sum();
    assert_eq!(other(p), rest);
    assert_eq!(p.total(0), 5050);
    round_trip(p);
}

#[test]
fn samples_beyond_the_memory() {
    let limits = Limits {
        max_memory: 2 << 20,
        ..Limits::default()
    };
    let bytes = small(|w| {
        function(w, 1, 3);
        for id in 1..=400 {
            location(w, id, std::iter::once((1, id)));
        }
        for i in 0..300_000u64 {
            sample(w, &[i % 400 + 1, i / 400 % 400 + 1, 1], &[i % 1000]);
        }
    });
    let parsed = parse_with(&gzip::compress(&bytes), &limits).unwrap();
    let p = &parsed.profile;
    assert!(p.memory() < 2 * limits.max_memory, "{}", p.memory());
    assert!(p.len() > 1_000, "{}", p.len());
    assert_eq!(p.total(0), (0..300_000).map(|i| i % 1000).sum::<i64>());
    assert!(matches!(
        parsed.warnings[..],
        [Warning::Folded { samples }] if samples > 200_000
    ));
    // A sample that was kept weighs more than most.
    let least = (0..p.len() - 1).map(|i| p.row(i)[0]).max().unwrap();
    assert_eq!(least, 999);
    round_trip(p);
}

#[test]
fn definitions_beyond_the_memory() {
    let limits = Limits {
        max_memory: 2 << 20,
        ..Limits::default()
    };
    let fields: [fn(&mut Writer, u64); 5] = [
        |w, i| w.bytes(6, i.to_string().as_bytes()),
        |w, i| function(w, i, 3),
        |w, i| location(w, i * 0x1_0000_0001, std::iter::once((i, i))),
        |w, i| w.bytes(3, &message(|w| w.number(1, i))),
        // References only.
        |w, i| sample(w, &[i << 20], &[1]),
    ];
    for (kind, field) in fields.iter().enumerate() {
        let bytes = small(|w| {
            for i in 1..=200_000 {
                field(w, i);
            }
            sample(w, &[1], &[5]);
        });
        let parsed = parse_with(&bytes, &limits).unwrap();
        let p = &parsed.profile;
        assert!(p.memory() < 2 * limits.max_memory, "{kind}: {}", p.memory());
        assert!(!parsed.warnings.is_empty(), "{kind}");
        assert!(p.total(0) >= 5, "{kind}");
        round_trip(p);
    }
}

#[test]
fn long_names_at_many_lines() {
    let long = "n".repeat(3 << 20);
    let bytes = small(|w| {
        w.bytes(6, long.as_bytes());
        for id in 1..=20_000 {
            function(w, id, 5);
            location(w, id, (0..4).map(|i| (id, i)));
        }
        sample(w, &[1, 2, 3], &[7]);
    });
    let parsed = parse(&bytes).unwrap();
    let p = &parsed.profile;
    assert!(matches!(
        parsed.warnings[..],
        [Warning::Long { count: 1 }, Warning::Nameless { .. }]
    ));
    // 240 GB stood there.
    assert!(texts(p) <= 64 * bytes.len().max(1 << 18), "{}", texts(p));
    assert!(p.strings.iter().all(|s| s.len() <= 16 << 10));
    assert_eq!(p.stack_keys().len(), 1);
}

#[test]
fn long_labels_of_many_samples() {
    let long = "v".repeat(16 << 10);
    let bytes = small(|w| {
        w.bytes(6, long.as_bytes());
        for i in 0..3000 {
            w.bytes(
                2,
                &message(|w| {
                    w.packed(2, std::iter::once(1));
                    for key in 0..4 {
                        w.bytes(
                            3,
                            &message(|w| {
                                w.number(1, key);
                                w.number(2, 5);
                                w.number(4, i);
                            }),
                        );
                    }
                    w.bytes(
                        3,
                        &message(|w| {
                            w.number(1, 1);
                            w.number(3, i + 1);
                        }),
                    );
                }),
            );
        }
    });
    let p = parse(&bytes).unwrap().profile;
    let length = |l: &memtrace_model::Label| match l.value {
        memtrace_model::LabelValue::Text(t) => p.text(t).len(),
        memtrace_model::LabelValue::Number(..) => 0,
    };
    let all: usize = p.label_sets.iter().flatten().map(length).sum();
    assert!(all <= 64 * bytes.len().max(1 << 18), "{all}");
    assert_eq!(p.len(), 3000);
    round_trip(&p);
}

#[test]
fn sample_types_and_comments_are_counted() {
    let bytes = small(|w| {
        for _ in 0..10_000 {
            w.bytes(1, &message(|w| w.number(1, 1)));
            w.number(13, 1);
        }
        sample(w, &[], &vec![1; 10_001]);
    });
    let p = parse(&bytes).unwrap().profile;
    assert_eq!((p.sample_types.len(), p.comments.len()), (64, 1024));
    assert_eq!(p.row(0).len(), 64);
    round_trip(&p);
}

/// A byte or two for what takes many, in one message: memory is looked at between two.
#[test]
fn one_sample_of_millions() {
    let limits = Limits::live();
    let of = |write: &dyn Fn(&mut Writer)| {
        let bytes = small(|w| {
            function(w, 1, 3);
            w.bytes(2, &message(write));
            sample(w, &[1], &[5]);
        });
        parse_with(&bytes, &limits).unwrap()
    };
    let count = 1 << 22;
    let labels = of(&|w| {
        w.packed(2, std::iter::once(7));
        for _ in 0..count {
            w.bytes(3, &[]);
        }
    });
    let sets = labels.profile.label_sets.iter().map(<[_]>::len);
    assert_eq!((sets.max(), labels.profile.total(0)), (Some(128), 12));
    let limit = "entries beyond a limit";
    let is_told = |w: &Warning| matches!(w, Warning::Dropped { what, .. } if *what == limit);
    assert!(labels.warnings.iter().any(is_told), "{:?}", labels.warnings);

    let values = of(&|w| w.packed(2, (0..count).map(|_| 1)));
    assert!(values.profile.memory() < 1 << 20);
    let stack = of(&|w| {
        w.packed(1, (0..count).map(|_| 1));
        w.packed(2, std::iter::once(7));
    });
    assert!(
        stack
            .warnings
            .iter()
            .any(|w| matches!(w, Warning::Deep { count: 1, .. }))
    );
    assert!(stack.profile.memory() < 2 << 20);
    let lines = small(|w| {
        function(w, 1, 3);
        location(w, 1, (0..count).map(|_| (1, 0)));
        sample(w, &[1], &[5]);
    });
    let lines = parse_with(&lines, &limits).unwrap();
    assert!(
        lines.profile.memory() < 4 << 20,
        "{}",
        lines.profile.memory()
    );
}

#[test]
fn text_with_more_addresses_than_memory() {
    // Half of it is the text's.
    let limits = Limits {
        max_memory: 8 << 20,
        ..Limits::default()
    };
    let mut text = "heap profile: 1: 8 [1: 8] @ heapprofile\n".to_owned();
    for i in 0..40_000 {
        text += &format!(
            "1: 8 [1: 8] @ {:#x} {:#x}\n#\t{:#x}\tf{i}\t/a.go:1\n",
            i * 16,
            i * 16 + 1,
            i * 16
        );
    }
    let parsed = parse_with(text.as_bytes(), &limits).unwrap();
    let p = &parsed.profile;
    assert!(p.memory() < limits.max_memory, "{}", p.memory());
    assert_eq!(p.total(0), 40_000);
    assert!(other(p) > 1000, "{}", other(p));
    assert!(matches!(parsed.warnings[..], [Warning::Folded { .. }]));
    round_trip(p);

    // One stack of frames without end.
    let mut text = "heap profile: 1: 8 [1: 8] @ heapprofile\n1: 8 [1: 8] @".to_owned();
    text += &" 0x1 0x2".repeat(200_000);
    let p = parse(text.as_bytes()).unwrap().profile;
    assert!(frames(&p) <= (1 << 16) + 1);
}

/// Each address is looked for in each mapping: the product is what is bounded.
#[test]
fn text_with_many_mappings_for_many_addresses() {
    let mut text = "heap profile: 1: 8 [1: 8] @ heapprofile\n".to_owned();
    for i in 0..2000 {
        text += "1: 8 [1: 8] @";
        for j in 0..100 {
            text += &format!(" {:#x}", 0x7000_0000_0000u64 + i * 1000 + j);
        }
        text += "\n";
    }
    text += "--- Memory map: ---\n";
    for i in 0..50_000u64 {
        text += &format!(
            "{:x}-{:x} r-xp 0 00:00 0 /x{i}\n",
            i << 13,
            (i << 13) + 4096
        );
        text += &format!("v{i}=$v{}$v{}\n", i / 2, i / 3);
    }
    let p = parse(text.as_bytes()).unwrap().profile;
    assert_eq!(p.locations.len(), 200_000);
    let product = p.locations.len() * p.mappings.len();
    assert!(product <= (1 << 26) + 2 * p.locations.len(), "{product}");
}

#[test]
fn calls_into_the_runtime_are_counted() {
    let mut text = "heap profile: 1: 8 [1: 8] @ heap/1\n".to_owned();
    for i in 0..200_000 {
        text += &format!(
            "1: 8 [1: 8] @ {:#x} {:#x}\n#\t{:#x}\tf\t/a.go:1\n",
            i * 2 + 1,
            i * 2 + 2,
            i * 2 + 1
        );
    }
    let calls = runtime_calls(text.as_bytes());
    let told: usize = calls
        .iter()
        .map(|c| c.addresses.len() + c.shown.len())
        .sum();
    assert!(told <= (1 << 18) + 2, "{told}");
}
