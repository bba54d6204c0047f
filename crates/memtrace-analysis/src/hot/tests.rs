use memtrace_model::{HotPattern, HotSite, Profile};

use super::{By, Hot, Incomparable, hot};

/// One stack of a reading: objects sampled, their size, the frames with the allocation
/// first (`function` or `function@file:line`).
type Line<'a> = (i64, i64, &'a str);

/// A reading as Go's text form, with a mean distance of `period` bytes between samples.
fn reading(period: i64, lines: &[Line<'_>]) -> Profile {
    let mut text = format!("heap profile: 0: 0 [1: 1] @ heap/{}\n", 2 * period);
    for (i, (objects, size, frames)) in lines.iter().enumerate() {
        let frames: Vec<&str> = frames.split(" < ").collect();
        let address = |n: usize| 0x1000 * (i + 1) + n;
        let addresses: Vec<String> = (0..frames.len())
            .map(|n| format!("{:#x}", address(n) + 1))
            .collect();
        let bytes = objects.saturating_mul(*size);
        text += &format!("0: 0 [{objects}: {bytes}] @ {}\n", addresses.join(" "));
        for (n, frame) in frames.iter().enumerate() {
            let (name, place) = frame.split_once('@').unwrap_or((frame, "/app/main.go:1"));
            text += &format!("#\t{:#x}\t{name}+0x1\t\t{place}\n", address(n));
        }
    }
    memtrace_formats::pprof::parse(text.as_bytes())
        .unwrap()
        .profile
}

/// What these lines allocate in ten seconds, every object sampled.
fn exact(lines: &[Line<'_>], by: By) -> Hot {
    let none: Vec<_> = lines.iter().map(|&(_, size, f)| (0, size, f)).collect();
    hot(&reading(1, &none), &reading(1, lines), 10.0, by).unwrap()
}

fn check(stack: &str, objects: i64, size: i64, pattern: HotPattern) -> HotSite {
    let found = exact(&[(objects, size, stack)], By::Site);
    let site = found.sites.into_iter().next().unwrap();
    assert_eq!(site.pattern, pattern, "{stack}");
    site
}

#[test]
fn rates_of_exact_readings() {
    let old = [
        (
            100,
            64,
            "runtime.mallocgc < runtime.makeslice < a/b.(*T).f@/x/t.go:9 < main.main",
        ),
        (
            7,
            1000,
            "runtime.mallocgc < runtime.newobject < reflect.New < encoding/json.Unmarshal < main.read@/x/m.go:3",
        ),
    ];
    let mut new = old;
    new[0].0 += 500;
    new[1].0 += 20;
    let (old, new) = (reading(1, &old), reading(1, &new));
    let found = hot(&old, &new, 10.0, By::Site).unwrap();
    assert_eq!((found.bytes, found.objects), (52_000, 520));
    assert_eq!(
        found.folded,
        "main.main;a/b.(*T).f;runtime.makeslice;runtime.mallocgc 3200\n\
         main.read;encoding/json.Unmarshal;reflect.New;runtime.newobject;runtime.mallocgc 2000\n"
    );
    let [slice, json] = &found.sites[..] else {
        unreachable!("two sites: {:?}", found.sites)
    };
    assert_eq!(
        (slice.rank, &*slice.site.function, slice.site.line),
        (Some(1), "a/b.(*T).f", 9)
    );
    assert_eq!((&*slice.package, &*slice.via), ("a/b", "slice"));
    assert_eq!((slice.bytes_per_s, slice.objects_per_s), (3200.0, 50.0));
    assert_eq!(slice.bytes_interval, [3200.0, 3200.0]);
    assert_eq!((slice.bytes_per_object, slice.samples), (64.0, 500));
    assert_eq!((slice.depth, json.depth), (4, 5));
    assert_eq!((json.rank, &*json.via), (Some(2), "encoding/json"));
    assert_eq!(json.share, 2000.0 / 5200.0);

    let packages = hot(&old, &new, 10.0, By::Package).unwrap();
    let names: Vec<&str> = packages.sites.iter().map(|s| &*s.site.function).collect();
    assert_eq!(names, ["a/b", "main"]);
}

#[test]
fn what_was_restarted_or_counts_nothing_is_no_pair() {
    let (few, many) = (
        reading(1, &[(1, 8, "main.f")]),
        reading(1, &[(9, 8, "main.f")]),
    );
    let found = |old, new| hot(old, new, 1.0, By::Site).map(|h| h.bytes);
    assert_eq!(found(&few, &many), Ok(64));
    assert_eq!(found(&many, &few), Err(Incomparable::Fell));
    // Another process: its stacks are not there.
    let other = reading(1, &[(9, 8, "main.g")]);
    assert_eq!(found(&few, &other), Err(Incomparable::Fell));
    let none = memtrace_formats::folded::parse(b"main;f 3")
        .unwrap()
        .profile;
    assert_eq!(found(&none, &many), Err(Incomparable::NoAllocations));
}

#[test]
fn counts_beyond_all_measure() {
    let most = i64::MAX;
    let lines = [
        (most, 1, "main.f"),
        (most, 1, "main.g"),
        (1, most, "main.f"),
    ];
    let found = exact(&lines, By::Package);
    assert_eq!(found.bytes, most);
    assert_eq!(found.sites.len(), 1);
}

/// The interval must hold the true rate in about 95 % of all readings, whatever the sizes.
#[test]
fn intervals_hold_the_truth() {
    const PERIOD: f64 = 524_288.0;
    let mut state = 7u64;
    let mut uniform = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let mut poisson = move |mean: f64| {
        let (mut n, mut product) = (0, uniform());
        while product > (-mean).exp() {
            product *= uniform();
            n += 1;
        }
        n
    };
    for sizes in [
        &[64i64][..],
        &[16, 4096],
        &[2_000_000],
        &[32, 8192, 1_000_000],
    ] {
        // As many samples as a ranked site has, and a few more.
        let expected = 24.0 / sizes.len() as f64;
        let chance = |size: f64| 1.0 - (-size / PERIOD).exp();
        let truth: f64 = sizes
            .iter()
            .map(|&z| expected / chance(z as f64) * z as f64)
            .sum();
        let trials = 400;
        let held = (0..trials)
            .filter(|_| {
                let lines: Vec<Line<'_>> = sizes
                    .iter()
                    .map(|&z| (poisson(expected), z, "main.f"))
                    .collect();
                let old: Vec<Line<'_>> = sizes.iter().map(|&z| (0, z, "main.f")).collect();
                let period = PERIOD as i64;
                let found = hot(
                    &reading(period, &old),
                    &reading(period, &lines),
                    1.0,
                    By::Site,
                );
                let found = found.unwrap();
                let site = &found.sites[0];
                let sampled: i64 = lines.iter().map(|l| l.0).sum();
                assert_eq!(site.samples, sampled as u64, "scaling is undone");
                let [low, high] = site.bytes_interval;
                low <= truth && truth <= high
            })
            .count();
        let share = held as f64 / f64::from(trials);
        assert!((0.92..=0.99).contains(&share), "{sizes:?}: {share}");
    }
}

#[test]
fn few_samples_have_no_rank_and_no_shape() {
    let period = 524_288;
    let stack = "runtime.mallocgc < runtime.makeslice < x.NewTask";
    let found = |n| {
        let (old, new) = (
            reading(period, &[(0, 8192, stack)]),
            reading(period, &[(n, 8192, stack)]),
        );
        let found = hot(&old, &new, 1.0, By::Site).unwrap();
        (found.sites[0].rank, found.sites[0].pattern)
    };
    assert_eq!(found(7), (None, HotPattern::Allocation));
    assert_eq!(found(8), (Some(1), HotPattern::TaskLifecycle));
}

#[test]
fn patterns_of_what_is_called() {
    use HotPattern::*;
    for (stack, pattern) in [
        (
            "runtime.growslice < reflect.growslice < encoding/json.(*decodeState).array < encoding/json.Unmarshal < x.f",
            JsonDecoding,
        ),
        (
            "encoding/json/jsontext.(*Decoder).ReadValue < encoding/json.(*Decoder).Decode < x.f",
            JsonDecoding,
        ),
        (
            "bytes.growSlice < encoding/json.Marshal < x.f",
            JsonEncoding,
        ),
        (
            "compress/flate.NewWriter < compress/gzip.(*Writer).Write < x.f",
            Compression,
        ),
        (
            "runtime.rawstring < runtime.concatstrings < runtime.concatstring2 < x.f",
            StringBuilding,
        ),
        ("runtime.mallocgc < fmt.Sprintf < x.f", StringBuilding),
        (
            "runtime.slicebytetostring < strconv.FormatInt < x.f",
            StringBuilding,
        ),
        (
            "bytes.growSlice < bytes.(*Buffer).grow < bytes.(*Buffer).Write < x.f",
            BufferPerWrite,
        ),
        (
            "runtime.mallocgc < runtime.growslice < a/axis.(*Buffer).Write < x.f",
            BufferPerWrite,
        ),
        (
            "net/textproto.MIMEHeader.Set < net/http.NewRequest < x.f",
            HttpRequest,
        ),
        (
            "bufio.NewReaderSize < net/http.newBufioReader < net/http.(*conn).serve",
            HttpRequest,
        ),
        (
            "runtime.malg < runtime.newproc1 < runtime.newproc.func1 < runtime.systemstack",
            GoroutineStart,
        ),
        (
            "runtime.newarray < internal/runtime/maps.(*table).grow < runtime.mapassign_faststr < x.f",
            MapRegrowth,
        ),
        (
            "runtime.hashGrow < runtime.mapassign_fast64 < x.f",
            MapRegrowth,
        ),
        ("runtime.newobject < runtime.mapassign < x.f", Allocation),
        (
            "internal/runtime/maps.(*Map).growToSmall < runtime.mapassign < x.f",
            MapPerCall,
        ),
        ("runtime.makemap_small < x.f", MapPerCall),
        ("runtime.mallocgc < runtime.growslice < x.f", SliceRegrowth),
        ("slices.Grow[go.shape.[]int] < x.f", SliceRegrowth),
        ("runtime.mallocgc < runtime.convT < x.f", Boxing),
        (
            "compress/flate.NewWriter < runtime/pprof.newProfileBuilder < net/http/pprof.Index < x.guard",
            Profiling,
        ),
        // What a library makes for itself is not the caller's slice or string.
        (
            "runtime.mallocgc < runtime.growslice < regexp.(*Regexp).FindAll < x.f",
            Allocation,
        ),
        ("runtime.mallocgc < runtime.newobject < x.f", Allocation),
    ] {
        let site = check(stack, 10, 100, pattern);
        assert_eq!(site.advice.is_empty(), pattern == Profiling, "{stack}");
    }
}

#[test]
fn patterns_of_what_is_made() {
    use HotPattern::*;
    let make = "runtime.mallocgc < runtime.makeslice";
    let new = "runtime.mallocgc < runtime.newobject";
    // Ten seconds: 2,000 are 200 a second.
    for (stack, objects, size, pattern) in [
        (
            format!("{make} < nc.NewMotionTask < nc.run"),
            2000,
            8192,
            TaskLifecycle,
        ),
        (
            format!("{new} < nc.startJob < nc.run"),
            20,
            4096,
            TaskLifecycle,
        ),
        (
            "nc.NewMotionTask < nc.run".to_owned(),
            20,
            8192,
            TaskLifecycle,
        ),
        // No constructor; not large; renewed, not new.
        (
            format!("{make} < nc.plan < nc.run"),
            2000,
            8192,
            BufferPerCall,
        ),
        (
            format!("{make} < nc.NewPoint < nc.run"),
            2000,
            2048,
            Allocation,
        ),
        (
            format!("{make} < nc.newton < nc.run"),
            2000,
            8192,
            BufferPerCall,
        ),
        (
            format!("{new} < a/interp.next < a/interp.run"),
            1000,
            32,
            InterpolationLoop,
        ),
        (
            format!("{new} < nc.point < nc.(*Interpolator).Step"),
            1000,
            32,
            InterpolationLoop,
        ),
        // An interpreter calls.
        (
            format!("{new} < nc.point < a/interp.run"),
            1000,
            32,
            Allocation,
        ),
        (
            format!("{new} < nc.point < nc.(*Axis).controlLoop"),
            1000,
            32,
            PerTickAllocation,
        ),
        (
            format!("{new} < nc.point < nc.(*Axis).controlLoop"),
            999,
            32,
            Allocation,
        ),
        (
            format!("{new} < nc.point < nc.(*Axis).controlLoop"),
            1000,
            2048,
            Allocation,
        ),
        (
            format!("{make} < nc.copy < nc.run"),
            2000,
            100_000,
            BufferPerCall,
        ),
    ] {
        let site = check(&stack, objects, size, pattern);
        assert_eq!(site.evidence.is_empty(), pattern == Allocation, "{stack}");
    }
    // The struct and its buffer are made on one line: the buffer is told of.
    let line = "nc.NewMotionTask@/nc/task.go:9 < nc.run";
    let (small, large) = (format!("{new} < {line}"), format!("{make} < {line}"));
    let task = exact(&[(2000, 48, &small), (2000, 8192, &large)], By::Site);
    let evidence =
        "NewMotionTask, a constructor, makes 200 objects of 8.0 KiB a second on 1 call path";
    assert_eq!((task.sites.len(), &*task.sites[0].evidence), (1, evidence));
    // Sizes that differ are no fixed buffer, and many callers no start of a task.
    let mixed = exact(
        &[
            (100, 8192, "nc.NewTask < nc.a"),
            (100, 16384, "nc.NewTask < nc.a"),
        ],
        By::Site,
    );
    assert_eq!(mixed.sites[0].pattern, Allocation);
    let callers: Vec<String> = (0..9).map(|i| format!("nc.NewTask < nc.f{i}")).collect();
    let lines: Vec<Line<'_>> = callers.iter().map(|f| (10, 8192, &**f)).collect();
    assert_eq!(exact(&lines, By::Site).sites[0].pattern, Allocation);
    assert_eq!(exact(&lines[1..], By::Site).sites[0].pattern, TaskLifecycle);
}

#[test]
fn a_literal_that_begins_where_an_object_is_made() {
    let found = exact(
        &[
            (
                50,
                32,
                "runtime.mallocgc < runtime.newobject < x.f@/x/a.go:7",
            ),
            (
                40,
                32,
                "runtime.mallocgc < runtime.newobject < x.f@/x/a.go:9",
            ),
            (
                3,
                8,
                "runtime.mallocgc < runtime.newobject < x.f.func1@/x/a.go:7",
            ),
        ],
        By::Site,
    );
    let patterns: Vec<HotPattern> = found.sites.iter().map(|s| s.pattern).collect();
    assert_eq!(
        patterns,
        [
            HotPattern::ClosurePerCall,
            HotPattern::Allocation,
            HotPattern::Allocation
        ]
    );
}

#[test]
fn the_site_is_own_code_not_a_dependency() {
    let library = "github.com/x/y.Parse@/go/pkg/mod/github.com/x/y@v1.2.3/p.go:5";
    let site = check(
        &format!("runtime.growslice < {library} < shop.handle@/src/shop/h.go:8"),
        10,
        100,
        HotPattern::Allocation,
    );
    assert_eq!(site.site.function, "shop.handle");
    assert_eq!(site.via, "github.com/x/y");
    // Nobody's own code is there: the dependency is.
    let alone = check(
        &format!("runtime.growslice < {library} < net/http.(*conn).serve"),
        10,
        100,
        HotPattern::SliceRegrowth,
    );
    assert_eq!(alone.site.function, "github.com/x/y.Parse");
}

#[test]
fn a_mixed_site_gets_the_pattern_of_most_bytes_or_none() {
    let found = |text: i64| {
        let lines = [
            (text, 100, "runtime.mallocgc < fmt.Sprintf < x.f"),
            (60, 100, "runtime.mallocgc < runtime.newobject < x.f"),
        ];
        let site = exact(&lines, By::Function).sites.remove(0);
        (site.pattern, site.pattern_share)
    };
    assert_eq!(found(90), (HotPattern::StringBuilding, 0.6));
    assert_eq!(found(40), (HotPattern::Allocation, 1.0));
}
