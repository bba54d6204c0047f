//! Which pattern the same growth is given by what else is known.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use memtrace_model::{
    FINDING_SCHEMA, Finding, Gauge, Gauges, Label, LabelSetId, LabelValue, Pattern, Profile,
    SampleKind, StackId, Status, Tier, Time, ValueType,
};

use super::{Code, findings};
use crate::series::{History, Settings};

fn at(seconds: i64) -> Time {
    Time(1_767_225_600_000 + 1000 * seconds)
}

/// A profile of Go's: sample types, and for each stack (the leaf first) a size and the
/// values.
fn profile(types: &[(&str, &str)], rows: &[(&[&str], i64, Vec<i64>)]) -> Profile {
    let mut p = Profile {
        period: 512 << 10,
        ..Profile::default()
    };
    for (kind, unit) in types {
        let (kind, unit) = (p.intern(kind), p.intern(unit));
        p.sample_types.push(ValueType { kind, unit });
    }
    let (bytes, unit) = (p.intern("bytes"), p.intern("bytes"));
    for (stack, size, values) in rows {
        let locations: Vec<_> = stack.iter().map(|f| p.add_location(f, 7)).collect();
        let stack = StackId(p.stacks.intern(&locations).unwrap());
        let labels = p.label_sets.intern(&[Label {
            key: bytes,
            value: LabelValue::Number(*size, unit),
        }]);
        p.sample_stacks.push(stack);
        p.sample_labels.push(LabelSetId(labels.unwrap()));
        p.values.extend(values);
    }
    p
}

const HEAP: [(&str, &str); 4] = [
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
];

/// Objects of 1 MiB, which are always sampled: `lost` stay, each second one more at
/// each stack; `kept` are there from the beginning.
fn heap(seconds: i64, lost: &[&[&str]], kept: &[&[&str]]) -> Profile {
    const SIZE: i64 = 1 << 20;
    let row = |n: i64| vec![n, n * SIZE, n, n * SIZE];
    let lost = lost.iter().map(|s| (*s, SIZE, row(seconds)));
    let kept = kept.iter().map(|s| (*s, SIZE, row(40)));
    profile(&HEAP, &lost.chain(kept).collect::<Vec<_>>())
}

/// What is found in four minutes of profiles every 5 seconds.
fn found(lost: &[&[&str]], kept: &[&[&str]], code: Option<Code>) -> Finding {
    let mut history = History::new(Settings::every(Duration::from_secs(5)));
    for i in 0..48 {
        history.heap(at(5 * i), &heap(5 * i, lost, kept));
    }
    if let Some(code) = code {
        history.set_code(code);
    }
    let found = findings(&history, &history.assess(), None, "t", at(240));
    assert_eq!(found.len(), 1, "{found:#?}");
    found.into_iter().next().unwrap()
}

/// Code in which each caller calls one function.
fn code(calls: &[(&str, &str)]) -> Option<Code> {
    let mut callers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (caller, callee) in calls {
        assert!(Code::matters(callee), "{callee} is not asked for");
        callers
            .entry((*caller).to_owned())
            .or_default()
            .insert((*callee).to_owned());
    }
    let functions: Vec<String> = callers
        .keys()
        .flat_map(|f| [f.clone(), format!("{f}.func1")])
        .collect();
    Some(Code::new(functions.iter().map(String::as_str), callers))
}

const POOLED: &[&str] = &[
    "runtime.mallocgc",
    "runtime.mapassign_faststr",
    "m.(*Command).Parse",
    "m.(*Parser).Parse",
    "m.serve",
];

#[test]
fn a_map_in_pooled_objects() {
    let misuse = |code, kept: &[&[&str]]| found(&[POOLED], kept, code).pattern;
    let parser = "m.(*Parser).Parse";
    let put = code(&[(parser, "sync.(*Pool).Put")]);
    let finding = found(&[POOLED], &[], put);
    assert_eq!(finding.pattern, Pattern::PoolMisuse);
    assert_eq!(finding.culprit.unwrap().function, "m.(*Command).Parse");
    for part in [
        "m.(*Parser).Parse",
        "before Put",
        "delete all keys",
        "fresh",
        "do not put back",
    ] {
        assert!(finding.advice.contains(part), "{part}: {}", finding.advice);
    }
    let slice: &[&str] = &["runtime.growslice", "m.(*Command).add", parser, "m.serve"];
    let put = code(&[(parser, "sync.(*Pool).Put")]);
    let finding = found(&[slice], &[], put);
    assert_eq!(finding.pattern, Pattern::PoolMisuse);
    assert!(finding.advice.contains("length 0"), "{}", finding.advice);
    // Without the program's file: the profile has what the pool's New allocated.
    let new: &[&str] = &["m.newCommand", "sync.(*Pool).Get", parser, "m.serve"];
    assert_eq!(misuse(None, &[new]), Pattern::PoolMisuse);
    // The deferred call is a function of its own.
    let deferred = code(&[("m.(*Parser).Parse.deferwrap1", "sync.(*Pool).Put")]);
    assert_eq!(misuse(deferred, &[]), Pattern::PoolMisuse);
}

/// Before a profile of goroutines is there, the heap has what the runtime keeps of each.
#[test]
fn descriptors_of_goroutines() {
    let stack: &[&str] = &[
        "runtime.mallocgc",
        "runtime.malg",
        "runtime.newproc1",
        "runtime.newproc.func1",
        "runtime.systemstack",
    ];
    let finding = found(&[stack], &[], None);
    assert_eq!(finding.pattern, Pattern::GoroutineLeak);
    let evidence = &finding.evidence[0];
    assert!(
        evidence.contains("60 descriptors of goroutines"),
        "{evidence}"
    );
}

#[test]
fn what_is_put_into_a_sync_map() {
    let stack: &[&str] = &["m.newReport", "m.(*Reports).Publish", "m.serve"];
    let by = |caller| code(&[(caller, "internal/sync.(*HashTrieMap[go.shape.string]).Swap")]);
    let finding = found(&[stack], &[], by("m.(*Reports).Publish"));
    assert_eq!(finding.pattern, Pattern::MapBloat);
    assert!(
        finding.advice.contains("sync.Map in m.(*Reports).Publish"),
        "{}",
        finding.advice
    );
    // Further out, anything may be kept in a map.
    assert_eq!(found(&[stack], &[], by("m.serve")).pattern, Pattern::Growth);
}

#[test]
fn a_map_beside_pools_is_a_map() {
    let pattern = |lost: &[&str], code, kept: &[&[&str]]| found(&[lost], kept, code).pattern;
    // No pool is known of; the pools are the library's, or other functions'.
    assert_eq!(pattern(POOLED, None, &[]), Pattern::MapBloat);
    let others = code(&[
        ("fmt.Fprintf", "sync.(*Pool).Put"),
        ("m.(*Logger).Write", "sync.(*Pool).Put"),
        ("other.(*Parser).Parse", "sync.(*Pool).Put"),
    ]);
    let library: &[&str] = &[
        "fmt.newPrinter.func1",
        "sync.(*Pool).Get",
        "fmt.newPrinter",
        "m.serve",
    ];
    assert_eq!(
        pattern(POOLED, others.clone(), &[library]),
        Pattern::MapBloat
    );
    // A cache whose own function takes a buffer from a pool of another package's.
    let cache: &[&str] = &[
        "runtime.mallocgc",
        "runtime.mapassign_faststr",
        "cache.(*Cache).Lookup",
        "m.(*Logger).Write",
    ];
    assert_eq!(pattern(cache, others, &[]), Pattern::MapBloat);
    // What the pool's user reads or appends for something else.
    let put = || code(&[("m.(*Parser).Parse", "sync.(*Pool).Put")]);
    for callees in [
        &["runtime.growslice", "io.ReadAll"][..],
        &["runtime.growslice"],
    ] {
        let reads = [callees, &["m.(*Parser).Parse", "m.serve"]].concat();
        assert_eq!(pattern(&reads, put(), &[]), Pattern::Growth);
    }
    // A cache of another type, where the pooled type is known; and of the user's own,
    // beside a pool of buffers.
    let typed = |user: &str, name: &str| {
        let types = BTreeSet::from([name.to_owned()]);
        let put = code(&[(user, "sync.(*Pool).Put")]).unwrap();
        Some(put.with_types(BTreeMap::from([(user.to_owned(), types)])))
    };
    let parser = "m.(*Parser).Parse";
    assert_eq!(
        pattern(POOLED, typed(parser, "*m.Buffer"), &[]),
        Pattern::MapBloat
    );
    assert_eq!(
        pattern(POOLED, typed(parser, "*m.Command"), &[]),
        Pattern::PoolMisuse
    );
    let scratch: &[&str] = &["runtime.mapassign_faststr", "m.(*Cache).Lookup", "m.serve"];
    let lookup = "m.(*Cache).Lookup";
    assert_eq!(
        pattern(scratch, typed(lookup, "*bytes.Buffer"), &[]),
        Pattern::MapBloat
    );
    assert_eq!(
        pattern(scratch, typed(lookup, "*m.Command"), &[]),
        Pattern::PoolMisuse
    );
    // A cache that belongs to the pool's user.
    let own: &[&str] = &[
        "runtime.mallocgc",
        "runtime.mapassign_faststr",
        "m.(*Parser).remember",
        "m.(*Parser).Parse",
    ];
    assert_eq!(pattern(own, put(), &[]), Pattern::MapBloat);
    // What grows is no container.
    let plain: &[&str] = &["m.(*Command).Parse", "m.(*Parser).Parse", "m.serve"];
    assert_eq!(pattern(plain, put(), &[]), Pattern::Growth);
}

#[test]
fn listeners_that_are_never_removed() {
    let list: &[&str] = &[
        "runtime.mallocgc",
        "runtime.growslice",
        "events.(*Bus).Subscribe",
        "api.(*Server).watch",
        "net/http.HandlerFunc.ServeHTTP",
        "net/http.(*conn).serve",
    ];
    let body: &[&str] = &[
        "io.ReadAll",
        "api.(*Server).watch",
        "net/http.HandlerFunc.ServeHTTP",
        "net/http.(*conn).serve",
    ];
    let request: &[&str] = &[
        "net/http.readRequest",
        "net/http.(*conn).readRequest",
        "net/http.(*conn).serve",
    ];
    for (lost, code) in [
        (&[list, body][..], None),
        (
            &[body][..],
            code(&[("api.(*Server).watch", "events.(*Bus).Subscribe")]),
        ),
    ] {
        let finding = found(lost, &[request], code);
        assert_eq!(finding.pattern, Pattern::ListenerRetention, "{lost:?}");
        for part in [
            "api.(*Server).watch",
            "events.(*Bus).Subscribe",
            "unsubscribe",
            "context",
            "*http.Request",
        ] {
            assert!(finding.advice.contains(part), "{part}: {}", finding.advice);
        }
    }
    // A registering function that allocates, and no function literal; a list that is
    // none of callbacks.
    let plain = Code::new(
        ["api.(*Server).watch"].into_iter(),
        BTreeMap::from([(
            "api.(*Server).watch".to_owned(),
            BTreeSet::from(["events.(*Bus).Subscribe".to_owned()]),
        )]),
    );
    assert_eq!(found(&[body], &[], Some(plain)).pattern, Pattern::Growth);
    // Services are registered too.
    let work: &[&str] = &["main.(*app).run"];
    let service = code(&[("main.(*app).run", "pb.RegisterControlServer")]);
    assert_eq!(found(&[work], &[], service).pattern, Pattern::Growth);
    let events = code(&[("main.(*app).run", "events.(*Bus).Subscribe")]);
    assert_eq!(
        found(&[work], &[], events).pattern,
        Pattern::ListenerRetention
    );
    let cache: &[&str] = &[
        "runtime.mallocgc",
        "runtime.mapassign_faststr",
        "gcode.(*Cache).Lookup",
        "api.(*Server).watch",
        "net/http.(*conn).serve",
    ];
    let registers = code(&[("api.(*Server).watch", "events.(*Bus).Subscribe")]);
    assert_eq!(found(&[cache], &[], registers).pattern, Pattern::MapBloat);
}

#[test]
fn objects_with_finalizers() {
    let made: &[&str] = &["servo.NewBuffer", "servo.(*Drive).Move"];
    let sets = code(&[("servo.NewBuffer", "runtime.SetFinalizer")]);
    let finding = found(&[made], &[], sets);
    assert_eq!(finding.pattern, Pattern::FinalizerBacklog);
    for part in ["servo.NewBuffer", "Close", "defer", "AddCleanup"] {
        assert!(finding.advice.contains(part), "{part}: {}", finding.advice);
    }
    let elsewhere = code(&[("servo.NewDrive", "runtime.AddCleanup[go.shape.int]")]);
    assert_eq!(found(&[made], &[], elsewhere).pattern, Pattern::Growth);
}

/// Gauges of a process every 5 seconds, by owner once a minute; MiB at a second.
fn process(
    go: impl Fn(f64) -> f64,
    in_use: impl Fn(f64) -> f64,
    native: impl Fn(f64) -> f64,
    goroutines: &[&[&str]],
    code: Option<Code>,
) -> Vec<Finding> {
    let mut history = History::new(Settings::every(Duration::from_secs(5)));
    let mib = |v: f64| v * f64::from(1 << 20);
    let (mut last_owners, mut suspected) = (-60, 0);
    for i in 0..72 {
        let t = (5 * i) as f64;
        let mut gauges = Gauges::default();
        gauges.set(Gauge::Rss, mib(20.0 + go(t) + native(t)));
        gauges.set(Gauge::HeapInuse, mib(in_use(t)));
        if history.native_suspected() && 5 * i >= last_owners + 60 {
            suspected += 1;
            last_owners = 5 * i;
            gauges.set(Gauge::RssGo, mib(go(t)));
            gauges.set(Gauge::RssBrk, mib(1.0));
            gauges.set(Gauge::RssArenas, mib(native(t)));
            gauges.set(Gauge::RssAnon, mib(9.0));
        }
        history.gauges(at(5 * i), &gauges);
        history.heap(at(5 * i), &heap(0, &[], &[&["m.work"]]));
        if i % 12 == 0 {
            let rows: Vec<_> = goroutines.iter().map(|s| (*s, 0, vec![1])).collect();
            history.goroutines(at(5 * i), &profile(&[("goroutine", "count")], &rows));
        }
    }
    if let Some(code) = code {
        history.set_code(code);
    }
    assert!(suspected <= 6);
    findings(&history, &history.assess(), None, "t", at(360))
}

/// Two MiB a second from 30 seconds on.
fn leak(t: f64) -> f64 {
    2.0 * (t - 30.0).max(0.0)
}

const WAITING: &[&str] = &[
    "runtime.gopark",
    "time.Sleep",
    "servo.(*Buffer).Close",
    "servo.(*Buffer).finalize",
    "runtime.runFinalizers",
];

#[test]
fn memory_outside_the_go_heap() {
    let found = process(|_| 60.0, |_| 30.0, leak, &[], None);
    assert_eq!(found.len(), 1, "{found:#?}");
    let f = &found[0];
    assert_eq!(
        (f.pattern, f.source, f.tier),
        (Pattern::NativeGrowth, SampleKind::Process, Tier::Leaking)
    );
    assert!(f.stack.is_empty() && f.culprit.is_none());
    assert!(
        (f.rate_bytes_per_min / (120.0 * 1048576.0) - 1.0).abs() < 0.1,
        "{}",
        f.rate_bytes_per_min
    );
    let onset = f.onset.unwrap().since(at(30));
    assert!(onset.abs() < 20.0, "{onset}");
    assert!(
        f.evidence.iter().any(|e| e.contains("malloc's arenas")),
        "{:?}",
        f.evidence
    );
    assert!(f.advice.contains("C.free"), "{}", f.advice);
    assert!(f.explains > 0.9, "{}", f.explains);
    // The one function that allocates in C is named; of several, all.
    let alloc = ("servo.alloc", "servo._cgo_cmalloc");
    let free = ("servo.free", "servo._Cfunc_free");
    let found = process(|_| 60.0, |_| 30.0, leak, &[], code(&[alloc, free]));
    assert!(
        found[0].advice.contains("servo.alloc"),
        "{}",
        found[0].advice
    );
    let copy = ("camera.name", "camera._Cfunc_CString");
    let found = process(|_| 60.0, |_| 30.0, leak, &[], code(&[alloc, free, copy]));
    let listed = |e: &String| e.contains("camera.name, servo.alloc");
    assert!(
        found[0].evidence.iter().any(listed),
        "{:?}",
        found[0].evidence
    );
}

#[test]
fn native_memory_that_waits_for_finalizers() {
    let sets = code(&[
        ("servo.NewBuffer", "runtime.SetFinalizer"),
        ("servo.(*Buffer).Close", "runtime.SetFinalizer"),
    ]);
    let found = process(|_| 60.0, |_| 30.0, leak, &[WAITING], sets);
    assert_eq!(found.len(), 1, "{found:#?}");
    let f = &found[0];
    assert_eq!(f.pattern, Pattern::FinalizerBacklog);
    assert_eq!(
        f.culprit.as_ref().unwrap().function,
        "servo.(*Buffer).finalize"
    );
    for part in ["servo.NewBuffer", "Close", "defer", "AddCleanup"] {
        assert!(f.advice.contains(part), "{part}: {}", f.advice);
    }
    // The library's own finalizers are nobody's fault.
    let library: &[&str] = &["os.(*file).close", "runtime.runFinalizers"];
    let found = process(|_| 60.0, |_| 30.0, leak, &[library], None);
    assert_eq!(found[0].pattern, Pattern::NativeGrowth);
}

#[test]
fn healthy_processes_do_not_grow_outside_the_heap() {
    let silent = |go: fn(f64) -> f64, in_use: fn(f64) -> f64, native: fn(f64) -> f64| {
        let found = process(go, in_use, native, &[WAITING], None);
        assert!(found.is_empty(), "{found:#?}");
    };
    // The Go heap grows, and with it the runtime's own books.
    silent(|t| 20.0 + 2.0 * t, |t| 10.0 + t, |t| 10.0 + 0.05 * t);
    // It only holds on to what it once needed.
    silent(|t| 20.0 + 2.0 * t, |_| 10.0, |_| 10.0);
    // Native memory fills up; comes and goes; hardly grows.
    silent(|_| 60.0, |_| 30.0, |t| (3.0 * t).min(200.0));
    silent(|_| 60.0, |_| 30.0, |t| 100.0 + 80.0 * (t / 20.0).sin());
    silent(|_| 60.0, |_| 30.0, |t| 100.0 + 0.04 * t);
}

/// A finding in which nothing is told.
pub(crate) fn any_finding() -> Finding {
    Finding {
        schema: FINDING_SCHEMA.into(),
        id: String::new(),
        at: Time(0),
        pattern: Pattern::Growth,
        tier: Tier::Growing,
        status: Status::Open,
        rank: 1,
        confidence: 0.99,
        target: "t".into(),
        source: SampleKind::Heap,
        stack: vec![],
        culprit: None,
        type_name: None,
        retained_bytes: None,
        retained_by: vec![],
        tags: Default::default(),
        onset: None,
        onset_interval: None,
        rate_bytes_per_min: 1.0,
        rate_interval: [0.0, 2.0],
        rate_objects_per_min: 1.0,
        live_bytes: 4 << 20,
        live_objects: 1,
        explains: 1.0,
        oom_at: None,
        oom_interval: None,
        bound: None,
        before_onset: vec![],
        points: vec![],
        evidence: vec![],
        advice: String::new(),
    }
}
