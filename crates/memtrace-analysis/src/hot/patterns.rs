//! Known ways of allocating too much, told from the frames, and what to change.
//!
//! What a site calls is looked at first: [`LIBRARY`] knows functions of libraries, of which
//! the outermost on a stack decides, [`RUNTIME`] the runtime's for sites without a library.
//! [`SHAPES`] looks at sites that make their objects themselves. In each table the
//! specific comes before the general. A pattern is named only where the frames show it.

use std::collections::{HashMap, HashSet};

use memtrace_model::{Frame, HotPattern};

use super::{By, Increment, Site, Stack, is_runtime};
use crate::leaks::symbols;
use crate::units;

/// What a site was recognised as.
pub(super) struct Cause {
    pub(super) pattern: HotPattern,
    /// Share of the site's bytes whose stacks show it.
    pub(super) share: f64,
    pub(super) evidence: String,
    pub(super) advice: String,
}

type Library = (HotPattern, fn(&str) -> bool);

/// Functions of libraries.
const LIBRARY: &[Library] = &[
    (HotPattern::JsonDecoding, |f| {
        is_json(f) && (f.contains("nmarshal") || short(f).contains("ecode"))
    }),
    (HotPattern::JsonEncoding, |f| {
        is_json(f) && (f.contains("arshal") || short(f).contains("ncode"))
    }),
    (HotPattern::Compression, |f| {
        f.starts_with("compress/") || symbols::package(f).ends_with("/zstd")
    }),
    (HotPattern::StringBuilding, is_text_function),
    (HotPattern::BufferPerWrite, is_buffer_growth),
    (HotPattern::SliceRegrowth, |f| {
        f.starts_with("slices.Grow") || f.starts_with("slices.Insert")
    }),
    (HotPattern::HttpRequest, |f| {
        matches!(symbols::package(f), "net/http" | "net/textproto")
    }),
];

type Runtime = (HotPattern, fn(&str, &[Frame]) -> bool);

/// Functions of the runtime that a site calls itself, and all frames below the site.
const RUNTIME: &[Runtime] = &[
    (HotPattern::StringBuilding, |f, _| kind(f) == "string"),
    // A map's first table is made when its first key is assigned.
    (HotPattern::MapPerCall, |_, way| way.iter().any(makes_map)),
    (HotPattern::MapRegrowth, |f, way| {
        kind(f) == "map" && way.iter().any(grows_map)
    }),
    (HotPattern::SliceRegrowth, |f, _| f == "runtime.growslice"),
    (HotPattern::Boxing, |f, _| kind(f) == "interface"),
];

type Shape = (HotPattern, fn(&Site, &Literals) -> Option<String>);
type Literals = HashSet<(String, i64)>;

/// What a site is that makes its objects itself, told from rates and sizes too; each gives
/// the evidence.
const SHAPES: &[Shape] = &[
    (HotPattern::TaskLifecycle, |s, _| task_lifecycle(s)),
    (HotPattern::InterpolationLoop, |s, _| {
        small_under(s, |f, is_site| {
            words(f).any(|w| w.starts_with("interpolat") || (w == "interp" && is_site))
        })
    }),
    (HotPattern::PerTickAllocation, |s, _| {
        small_under(s, |f, _| {
            let tick = |w: &str| {
                matches!(
                    w,
                    "tick" | "ticker" | "cycle" | "loop" | "control" | "servo"
                )
            };
            words(f).any(|w| tick(&w))
        })
    }),
    (HotPattern::ClosurePerCall, closure),
    (HotPattern::BufferPerCall, |s, _| large_slice(s)),
];

/// A pattern that fewer of the bytes show does not stand for the site.
const LEAST_SHARE: f64 = 1.0 / 3.0;
/// Bytes of an object that has a size class of several KiB, or pages of its own: made
/// anew each time, it is zeroed, and soon fetched from `mcentral` under its lock.
const LARGE: f64 = 4096.0;
/// Bytes of a value that a loop could as well keep on its stack.
const SMALL: f64 = 1024.0;
/// Objects a second of a loop or tick.
const TICKS_PER_S: f64 = 100.0;
/// Share of the objects (bytes, of large ones) that have one size where it is fixed.
const FIXED: f64 = 0.8;
/// Call paths to the constructor of a task.
const FEW_PATHS: usize = 8;

pub(super) fn detect(site: &Site, literals: &Literals) -> Cause {
    // Bytes of each pattern, and the function that shows it on the heaviest stack.
    let mut seen: HashMap<HotPattern, (i64, &str)> = HashMap::new();
    for stack in &site.stacks {
        let (pattern, function) = call(stack).unwrap_or((HotPattern::Allocation, ""));
        let (bytes, _) = seen.entry(pattern).or_insert((0, function));
        *bytes = bytes.saturating_add(stack.bytes());
    }
    let most = seen
        .into_iter()
        .max_by_key(|&(pattern, (n, _))| (n, pattern));
    let (pattern, (n, function)) = most.unwrap_or((HotPattern::Allocation, (0, "")));
    let share = n as f64 / site.bytes.max(1) as f64;
    let (pattern, share, evidence) = if pattern != HotPattern::Allocation && share >= LEAST_SHARE {
        let evidence = format!("{:.0} % of the bytes through {function}", 100.0 * share);
        (pattern, share, evidence)
    } else {
        let shape = |(pattern, shows): &Shape| Some((*pattern, 1.0, shows(site, literals)?));
        SHAPES
            .iter()
            .filter(|_| site.is_sure() && site.by != By::Package)
            .find_map(shape)
            .unwrap_or((HotPattern::Allocation, 1.0, String::new()))
    };
    Cause {
        pattern,
        share,
        evidence,
        advice: advice(pattern, site),
    }
}

/// What a stack calls below its site, where it is known, and the function that tells.
fn call(stack: &Stack) -> Option<(HotPattern, &str)> {
    // Where nobody's own code is on the stack, the library's function is the site.
    let library = (!stack.is_own()).then(|| stack.culprit());
    let way = || stack.way().iter().map(|f| f.function.as_str());
    let called = || library.into_iter().chain(way().rev());
    let profiler = |f: &&str| {
        matches!(
            symbols::package(f),
            "runtime/pprof" | "net/http/pprof" | "runtime/trace"
        )
    };
    if let Some(f) = called().find(profiler) {
        return Some((HotPattern::Profiling, f));
    }
    // The runtime makes a goroutine on a stack of its own, without its caller.
    let starts = |f: &&str| f.starts_with("runtime.malg") || f.starts_with("runtime.newproc");
    if let Some(f) = called().find(starts) {
        return Some((HotPattern::GoroutineStart, f));
    }
    let known = |f| Some((LIBRARY.iter().find(|(_, is)| is(f))?.0, f));
    if let Some(found) = called().find_map(known) {
        return Some(found);
    }
    if is_own_buffer_write(stack.culprit()) {
        return Some((HotPattern::BufferPerWrite, stack.culprit()));
    }
    let entry = stack.entry().filter(|_| way().all(is_runtime))?;
    let (pattern, _) = RUNTIME.iter().find(|(_, is)| is(entry, stack.way()))?;
    Some((*pattern, entry))
}

/// What to change.
fn advice(pattern: HotPattern, site: &Site) -> String {
    let f = short(&site.frame.function);
    match pattern {
        HotPattern::Profiling => String::new(),
        HotPattern::TaskLifecycle => format!(
            "Recycle the task together with its buffer: a sync.Pool whose objects have a Reset, or a free list for \
             each axis or worker, filled before the first start. {f} then neither takes mcentral's lock nor zeroes {} at each \
             start, which is what delays the first frame.",
            units::bytes(dominant_by_bytes(site).size)
        ),
        HotPattern::JsonDecoding => format!(
            "Reuse what {f} decodes into: typed structs instead of map[string]any, the same value and byte buffer \
             again, a json.Decoder on the stream instead of reading it whole; or a code-generating decoder."
        ),
        HotPattern::JsonEncoding => format!(
            "Encode into a bytes.Buffer that {f} keeps (json.NewEncoder on it, Reset between uses), or append the \
             fields to a reused []byte."
        ),
        HotPattern::InterpolationLoop => format!(
            "Keep the points of {f} out of the heap: pass them by value or into a slice of the caller, or take them \
             from a sync.Pool and put them back once the axes have read them."
        ),
        HotPattern::PerTickAllocation => format!(
            "Make the object of {f} once, before the loop, and reuse it at each tick; return a value instead of a \
             pointer."
        ),
        HotPattern::StringBuilding => format!(
            "Append to a []byte that {f} reuses (strconv.AppendInt and kin, fmt.Appendf) or to one strings.Builder \
             grown once; compare and look up bytes without making a string of them."
        ),
        HotPattern::BufferPerWrite => format!(
            "Give the buffer of {f} its capacity once (Grow, make with a capacity) and reuse it (Reset, or a \
             sync.Pool); hand over a slice of it instead of a copy."
        ),
        HotPattern::Compression => format!(
            "Keep the compressor of {f} and call its Reset (sync.Pool of gzip.Writer or zlib readers): a new one \
             makes its tables anew."
        ),
        HotPattern::HttpRequest => format!(
            "Reuse connections: one http.Client for all requests of {f}, bodies read to their end and closed, \
             keep-alive on the server; fewer, larger requests."
        ),
        HotPattern::GoroutineStart => format!(
            "Start fewer goroutines from {f}: a fixed set of workers that read from a channel."
        ),
        HotPattern::MapRegrowth => format!(
            "Give the map its size in {f}: make(map[K]V, n); or keep the map and clear() it for the next use."
        ),
        HotPattern::MapPerCall => format!(
            "Keep one map in {f} and clear() it for the next use; for a handful of fixed keys use a struct or array."
        ),
        HotPattern::SliceRegrowth => format!(
            "Give the slice its capacity in {f}: make([]T, 0, n); or keep it and cut it to s[:0] for the next use."
        ),
        HotPattern::Boxing => format!(
            "Keep values out of interfaces in {f}: typed parameters or generics instead of any, a pointer to what \
             exists already, log arguments only where the level is on."
        ),
        HotPattern::ClosurePerCall => format!(
            "Make the function once, outside of {f}'s hot path: a method or a function with parameters captures \
             nothing and needs no object."
        ),
        HotPattern::BufferPerCall => format!(
            "Let {f} write into a slice of its caller (dst = dst[:0], then append) or take it from a sync.Pool; as \
             it is, each call zeroes {} anew.",
            units::bytes(site.bytes as f64 / site.objects.max(1) as f64)
        ),
        HotPattern::Allocation | _ => {
            let way = site.stacks.first().and_then(|s| s.callee());
            match way.filter(|w| !is_runtime(w)) {
                Some(callee) => {
                    format!("Call {callee} less often from {f}, or hand it memory to reuse.")
                }
                None => format!(
                    "Reuse the object that {f} makes, or keep it on the stack: return a value, do not store its address."
                ),
            }
        }
    }
}

// What is called.

fn is_json(function: &str) -> bool {
    let package = symbols::package(function);
    package == "encoding/json"
        || package.starts_with("encoding/json/")
        || ["json-iterator/go", "/go-json", "/sonic", "/easyjson"]
            .iter()
            .any(|library| package.contains(library))
}

fn is_text_function(function: &str) -> bool {
    let name = short(function);
    match symbols::package(function) {
        "fmt" => !name.contains("can"),
        "strconv" => ["Format", "Itoa", "Quote", "Append"]
            .iter()
            .any(|p| name.starts_with(p)),
        "strings" | "internal/stringslite" => [
            "(*Builder)",
            "Join",
            "Repeat",
            "Replace",
            "(*Replacer)",
            "ToUpper",
            "ToLower",
            "Map",
            "Clone",
        ]
        .iter()
        .any(|p| name.starts_with(p)),
        _ => false,
    }
}

fn is_buffer_growth(function: &str) -> bool {
    function.starts_with("bytes.(*Buffer).")
        || function.starts_with("bufio.New")
        || matches!(
            function,
            "bytes.growSlice" | "io.ReadAll" | "os.ReadFile" | "bytes.Clone"
        )
}

/// `axis.(*Buffer).Write`: a buffer of the service's own.
fn is_own_buffer_write(function: &str) -> bool {
    let name = short(symbols::enclosing(function));
    let Some((holder, method)) = name.rsplit_once('.') else {
        return false;
    };
    holder.trim_matches(['(', ')', '*']).ends_with("Buffer") && method.starts_with("Write")
}

/// The kind of object that a function of the runtime makes; empty when it is not known.
pub(super) fn kind(entry: &str) -> &'static str {
    if entry.starts_with("internal/runtime/maps.") {
        return "map";
    }
    let name = short(entry);
    let kinds: &[(&str, &[&str])] = &[
        (
            "slice",
            &["growslice", "makeslice", "moveSlice", "newarray"],
        ),
        (
            "map",
            &["mapassign", "makemap", "hashGrow", "growWork", "mapclone"],
        ),
        (
            "string",
            &[
                "concatstring",
                "concatbyte",
                "slicebytetostring",
                "slicerunetostring",
                "stringtoslice",
                "rawstring",
                "rawbyteslice",
                "intstring",
            ],
        ),
        ("interface", &["convT"]),
        ("object", &["newobject"]),
        ("channel", &["makechan"]),
        ("goroutine", &["malg", "newproc", "gfget"]),
    ];
    let found = kinds
        .iter()
        .find(|(_, starts)| starts.iter().any(|s| name.starts_with(s)));
    found.map_or("", |(kind, _)| kind)
}

fn makes_map(frame: &Frame) -> bool {
    let f = frame.function.as_str();
    f.starts_with("runtime.makemap")
        || matches!(
            f,
            "internal/runtime/maps.NewMap"
                | "internal/runtime/maps.NewEmptyMap"
                | "internal/runtime/maps.(*Map).growToSmall"
        )
}

fn grows_map(frame: &Frame) -> bool {
    let f = frame.function.as_str();
    f.starts_with("internal/runtime/maps.")
        || matches!(
            f,
            "runtime.hashGrow"
                | "runtime.growWork"
                | "runtime.makeBucketArray"
                | "runtime.newarray"
        )
}

// What sites are.

/// A constructor that makes a large object of one size, again and again, in few places.
fn task_lifecycle(site: &Site) -> Option<String> {
    let culprit = site.stacks.first()?.culprit();
    let buffer = dominant_by_bytes(site);
    let fits = makes_itself(site)
        && is_constructor(culprit)
        && buffer.share >= FIXED
        && buffer.size >= LARGE
        && paths(site) <= FEW_PATHS;
    fits.then(|| {
        format!(
            "{}, a constructor, makes {:.0} objects of {} a second on {} call path{}",
            short(culprit),
            buffer.objects_per_s,
            units::bytes(buffer.size),
            paths(site),
            if paths(site) == 1 { "" } else { "s" }
        )
    })
}

/// Small objects of one size, at the rate of ticks, at or under a function that `is`
/// recognises (told whether it is the site).
fn small_under(site: &Site, is: fn(&str, bool) -> bool) -> Option<String> {
    let stack = site.stacks.first()?;
    let object = dominant_by_objects(site);
    let small =
        object.size <= SMALL && object.share >= FIXED && object.objects_per_s >= TICKS_PER_S;
    if !small || !makes_itself(site) {
        return None;
    }
    let own = |f: &&Frame| !symbols::is_standard(&f.function);
    let under = (stack.callers().iter().filter(own).enumerate())
        .find(|(i, f)| is(&f.function, *i == 0))?
        .1;
    Some(format!(
        "{:.0} objects of {} a second under {}",
        object.objects_per_s,
        units::bytes(object.size),
        short(&under.function)
    ))
}

/// The objects are made on the line on which a function literal begins.
fn closure(site: &Site, literals: &Literals) -> Option<String> {
    let object = |s: &Stack| matches!(s.entry(), None | Some("runtime.newobject"));
    let line = (site.frame.function.clone(), site.frame.line);
    let fits = site.frame.line > 0
        && makes_itself(site)
        && site.stacks.iter().all(object)
        && dominant_by_objects(site).size <= SMALL
        && literals.contains(&line);
    fits.then(|| {
        let f = short(&site.frame.function);
        format!("a function literal of {f} begins on this line")
    })
}

/// Large slices, known to be made whole.
fn large_slice(site: &Site) -> Option<String> {
    let made = |s: &Stack| {
        s.entry()
            .is_some_and(|f| f.starts_with("runtime.makeslice"))
    };
    let mean = site.bytes as f64 / site.objects.max(1) as f64;
    let fits = makes_itself(site) && site.stacks.iter().all(made) && mean >= LARGE;
    fits.then(|| {
        format!(
            "{:.0} slices of {} on average a second",
            site.objects_per_s(),
            units::bytes(mean)
        )
    })
}

/// No library stands between the site and the allocator, and the runtime was called for a
/// new object or slice, as far as the profile shows.
fn makes_itself(site: &Site) -> bool {
    site.stacks.iter().all(|s| {
        s.way().iter().all(|f| is_runtime(&f.function))
            && s.entry().is_none_or(|f| {
                f.starts_with("runtime.makeslice")
                    || matches!(
                        f,
                        "runtime.newobject" | "runtime.mallocgc" | "runtime.newarray"
                    )
            })
    })
}

/// `NewMotionTask`, `startJob`.
fn is_constructor(function: &str) -> bool {
    let function = symbols::enclosing(function);
    let name = short(function).rsplit('.').next().unwrap_or_default();
    [
        "new", "start", "create", "make", "begin", "launch", "spawn", "open",
    ]
    .iter()
    .any(|verb| {
        name.get(..verb.len())
            .is_some_and(|n| n.eq_ignore_ascii_case(verb))
            && !name[verb.len()..].starts_with(|c: char| c.is_lowercase())
    })
}

/// Different ways to the site, whatever it calls then.
fn paths(site: &Site) -> usize {
    let paths: HashSet<&[Frame]> = site.stacks.iter().map(Stack::callers).collect();
    paths.len()
}

/// The size that most of the bytes or objects of a site are in.
struct Dominant {
    /// Of one object, bytes.
    size: f64,
    /// Share of all bytes (objects), 0 to 1.
    share: f64,
    objects_per_s: f64,
}

/// The size that most bytes are in.
fn dominant_by_bytes(site: &Site) -> Dominant {
    dominant(site, |p| p.bytes)
}

/// The size that most objects have.
fn dominant_by_objects(site: &Site) -> Dominant {
    dominant(site, |p| p.objects)
}

fn dominant(site: &Site, of: fn(&Increment) -> i64) -> Dominant {
    let mut sizes: HashMap<u64, (f64, f64)> = HashMap::new();
    let mut all = 0.0;
    for part in site.parts() {
        let (amount, objects) = sizes.entry(part.size as u64).or_default();
        *amount += of(part) as f64;
        *objects += part.objects as f64;
        all += of(part) as f64;
    }
    let most = sizes
        .into_iter()
        .max_by(|a, b| a.1.0.total_cmp(&b.1.0).then(a.0.cmp(&b.0)));
    let (size, (amount, objects)) = most.unwrap_or_default();
    Dominant {
        size: size as f64,
        share: amount / f64::max(all, 1.0),
        objects_per_s: objects / site.seconds,
    }
}

/// A function without the path of its package: `(*Path).Interpolate`.
fn short(function: &str) -> &str {
    function[symbols::package(function).len()..].trim_start_matches('.')
}

/// The words of the package's last element and of the name, in lower case.
fn words(function: &str) -> impl Iterator<Item = String> {
    let mut words = vec![String::new()];
    let mut lower = false;
    for c in function.rsplit('/').next().unwrap_or_default().chars() {
        if !c.is_alphanumeric() || (c.is_uppercase() && lower) {
            words.push(String::new());
        }
        lower = c.is_lowercase();
        if c.is_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.extend(c.to_lowercase());
        }
    }
    words.into_iter()
}
