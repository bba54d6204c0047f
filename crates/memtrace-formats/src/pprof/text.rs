//! The text forms: heap profiles of Go (`heap?debug=1`), of tcmalloc (`heap_v2`,
//! `heapz_v2`, `growthz`, `fragmentationz`) and of Java (`heapz`), and the counting
//! profiles of Go (`goroutine?debug=1`, `threadcreate?debug=1`).
//!
//! Go writes names of functions beside the addresses, as comments that pprof skips;
//! they are read here, because the binary is rarely at hand. A line that makes no
//! sense is left out and counted.

mod build;
mod java;
mod maps;
mod mem_stats;
mod scan;

use memtrace_model::{Label, LabelValue, ValueType};

pub(super) use java::java_heap;
pub use mem_stats::MemStats;

use build::{Builder, Frame};
use scan::{Scan, hex_numbers};

use super::Parsed;
use crate::{Limits, Warning, budget};

/// Frames of one stack that are read, far more than any program writes.
const MOST_FRAMES: usize = 1 << 16;
/// Frames of all stacks whose calls into the runtime are told; the heaviest come first.
const MOST_CALLS: usize = 1 << 16;

/// Lines that make no sense.
#[derive(Default)]
struct BadLines {
    first: u64,
    count: u64,
}

impl BadLines {
    fn add(&mut self, index: usize) {
        if self.count == 0 {
            self.first = index as u64 + 1;
        }
        self.count += 1;
    }

    fn report(&self, warnings: &mut Vec<Warning>) {
        if self.count > 0 {
            warnings.push(Warning::Lines {
                first: self.first,
                count: self.count,
            });
        }
    }
}

/// How the values of a heap sample become estimates of everything allocated.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sampling {
    /// They are everything already.
    None,
    /// Sampled by a Poisson process with this mean distance in bytes.
    Poisson(i64),
}

struct HeapHeader {
    sampling: Sampling,
    period: i64,
    with_alloc: bool,
}

/// `heap profile: 13: 1595680 [47130736: 2584596557304] @ heap/1048576`
fn heap_header(line: &str) -> Option<HeapHeader> {
    let at = line.find("heap profile:")?;
    let mut scan = Scan::new(&line[at + "heap profile:".len()..]);
    let (objects, bytes, all_objects, all_bytes) = scan.quadruple()?;
    scan.spaces();
    scan.expect('@')?;
    scan.spaces();
    let kind = scan.while_(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let number = if scan.expect('/').is_some() {
        scan.integer()
    } else {
        None
    };
    let period = number.unwrap_or(0);
    let (sampling, period) = match kind {
        "heapz_v2" | "heap_v2" => (Sampling::Poisson(period), period),
        // Go and early C++ profilers write twice the mean distance.
        "heap" => (Sampling::Poisson(period / 2), period / 2),
        "heapprofile" | "growth" | "growthz" | "fragmentation" | "fragmentationz" => {
            (Sampling::None, 1)
        }
        _ => return None,
    };
    let heap = kind.starts_with("heap");
    Some(HeapHeader {
        sampling,
        period,
        with_alloc: heap
            && (all_objects != objects && all_objects != 0 || all_bytes != bytes && all_bytes != 0),
    })
}

/// What was really allocated, where `count` objects of together `size` bytes were
/// met with a mean distance of `rate` bytes between samples: each is divided by the
/// probability of meeting an object of its size, 1 − e^(−size/rate).
fn unsample(count: i64, size: i64, rate: i64) -> (i64, i64) {
    if count == 0 || size == 0 {
        return (0, 0);
    }
    if rate <= 1 {
        return (count, size);
    }
    let mean = size as f64 / count as f64;
    let scale = 1.0 / (1.0 - (-mean / rate as f64).exp());
    ((count as f64 * scale) as i64, (size as f64 * scale) as i64)
}

/// Go's and tcmalloc's heap text.
pub(super) fn heap(text: &str, limits: &Limits) -> Option<Parsed> {
    heap_with(text, limits, false)
}

/// Reads `heap?debug=1` of Go like [`parse`](super::parse), but the calls into the runtime
/// that Go leaves out of every symbolised form stay at the leaf of their stacks, as
/// locations without a name ([`memtrace_model::Profile::name_addresses`]). `None` when it
/// is no such text.
#[must_use]
pub fn with_runtime_calls(text: &[u8]) -> Option<Parsed> {
    heap_with(&budget::text(text), &Limits::default(), true)
}

fn heap_with(text: &str, limits: &Limits, with_runtime: bool) -> Option<Parsed> {
    let mut lines = text.lines().enumerate().peekable();
    let header = lines
        .by_ref()
        .find(|(_, l)| !l.trim().is_empty())
        .and_then(|(_, l)| heap_header(l))?;

    let mut b = Builder::new(limits);
    b.profile.period = header.period;
    b.profile.period_type = value_type(&mut b, "space", "bytes");
    let kinds: &[_] = if header.with_alloc {
        &[
            ("alloc_objects", "count"),
            ("alloc_space", "bytes"),
            ("inuse_objects", "count"),
            ("inuse_space", "bytes"),
        ]
    } else {
        &[("objects", "count"), ("space", "bytes")]
    };
    b.sample_types(kinds);
    let label = b.profile.intern("bytes");

    let mut bad = BadLines::default();
    let mut mem_stats = None;
    while let Some((i, line)) = lines.next() {
        let line = line.trim();
        if line.starts_with("# runtime.MemStats") {
            let rest = lines.by_ref().map(|(_, l)| l);
            mem_stats = Some(mem_stats::read(rest));
            break;
        }
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if maps::is_start(line) {
            break;
        }
        let Some((values, block, addresses)) = heap_sample(line, &header) else {
            bad.add(i);
            continue;
        };
        let frames = comments(&mut lines);
        let labels = [Label {
            key: label,
            value: LabelValue::Number(block, Default::default()),
        }];
        // A stack address is where the call returns to; one byte less is the call.
        let addresses = addresses.iter().map(|a| a.wrapping_sub(1));
        b.sample(&values, addresses, &frames.frames, &labels, with_runtime);
    }
    b.memory_map(maps::entries(text));
    b.legacy_frames();
    Some(b.done(&bad, mem_stats, text.len()))
}

/// The calls of one stack of `heap?debug=1` that Go leaves out of every symbolised
/// form of a heap profile: those into its own runtime, between the allocating
/// function and the allocator. They tell a map that grows from a slice that does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeCalls {
    /// Addresses of the calls left out, the innermost first.
    pub addresses: Vec<u64>,
    /// Function and line of the frames that are shown, the innermost first.
    pub shown: Vec<(String, i64)>,
    /// Bytes in use as sampled, not scaled up.
    pub live_bytes: i64,
}

/// Reads them from the text of `heap?debug=1`; stacks without any are left out.
pub fn runtime_calls(text: &[u8]) -> Vec<RuntimeCalls> {
    let text = budget::text(text);
    let mut lines = text.lines().enumerate().peekable();
    let Some(header) = lines.next().and_then(|(_, l)| heap_header(l)) else {
        return Vec::new();
    };
    let unscaled = HeapHeader {
        sampling: Sampling::None,
        ..header
    };
    let mut found = Vec::new();
    let mut told = 0;
    while let Some((_, line)) = lines.next_if(|_| told < MOST_CALLS) {
        let Some((values, _, addresses)) = heap_sample(line.trim(), &unscaled) else {
            continue;
        };
        let frames = comments(&mut lines).frames;
        let Some(first) = frames.first() else {
            continue;
        };
        let calls = addresses.iter().map(|a| a.wrapping_sub(1));
        let hidden: Vec<u64> = calls.take_while(|&a| a != first.address).collect();
        if !hidden.is_empty() && hidden.len() < addresses.len() {
            told += hidden.len() + frames.len();
            found.push(RuntimeCalls {
                addresses: hidden,
                shown: frames.iter().map(|f| (f.name.to_owned(), f.line)).collect(),
                live_bytes: values.last().copied().unwrap_or(0),
            });
        }
    }
    found
}

/// `1: 10240 [642: 6574080] @ 0x420cef 0x422151`: the values, the size of a block,
/// the addresses.
fn heap_sample(line: &str, header: &HeapHeader) -> Option<(Vec<i64>, i64, Vec<u64>)> {
    let mut scan = Scan::new(line);
    let (objects, bytes, all_objects, all_bytes) = scan.quadruple()?;
    scan.spaces();
    scan.expect('@')?;
    let mut block = 0;
    let mut values = Vec::with_capacity(4);
    let mut add = |count: i64, size: i64| {
        if count == 0 && size != 0 {
            return None;
        }
        let (mut count, mut size) = (count, size);
        if count != 0 {
            block = size.checked_div(count)?;
            if let Sampling::Poisson(rate) = header.sampling {
                (count, size) = unsample(count, size, rate);
            }
        }
        values.extend([count, size]);
        Some(())
    };
    if header.with_alloc {
        add(all_objects, all_bytes)?;
    }
    add(objects, bytes)?;
    Some((values, block, hex_numbers(scan.rest())?))
}

/// What stands in comments below a sample.
#[derive(Default)]
struct Comments<'a> {
    frames: Vec<Frame<'a>>,
    labels: Vec<(String, String)>,
}

/// `# 0x40a0c7 main.leak+0x47 /app/main.go:12` with tabs, and `# labels: {"k":"v"}`.
fn comments<'a, I>(lines: &mut std::iter::Peekable<I>) -> Comments<'a>
where
    I: Iterator<Item = (usize, &'a str)>,
{
    let mut found = Comments::default();
    while let Some((_, line)) =
        lines.next_if(|(_, l)| l.starts_with("#\t0x") || l.starts_with("# labels: {"))
    {
        if let Some(labels) = line.strip_prefix("# labels: ") {
            found.labels = scan::go_labels(labels);
            continue;
        }
        let mut fields = line[1..]
            .split('\t')
            .map(str::trim)
            .filter(|f| !f.is_empty());
        let address = fields
            .next()
            .and_then(|a| u64::from_str_radix(a.strip_prefix("0x")?, 16).ok());
        let Some(address) = address else { continue };
        let name = fields.next().unwrap_or_default();
        // main.leak+0x47: the offset within the function says no more than the line.
        let name = name.rsplit_once("+0x").map_or(name, |(name, _)| name);
        let place = fields.next().unwrap_or_default();
        let (file, line) = place
            .rsplit_once(':')
            .and_then(|(file, line)| Some((file, line.parse().ok()?)))
            .unwrap_or((place, 0));
        if found.frames.len() >= MOST_FRAMES {
            continue;
        }
        found.frames.push(Frame {
            address,
            name,
            file,
            line,
        });
    }
    found
}

/// `goroutine profile: total 7`: the kind of what is counted.
fn count_header(line: &str) -> Option<&str> {
    let (kind, total) = line.trim().split_once(" profile: total ")?;
    let sound = !kind.is_empty()
        && !kind.contains(|c: char| c.is_whitespace() || c.is_control())
        && !total.is_empty()
        && total.bytes().all(|b| b.is_ascii_digit());
    sound.then_some(kind)
}

pub(super) fn is_count_header(line: &str) -> bool {
    count_header(line).is_some()
}

/// Go's counting profiles.
pub(super) fn count(text: &str, limits: &Limits) -> Option<Parsed> {
    let mut lines = text.lines().enumerate().peekable();
    let kind = lines
        .by_ref()
        .find(|(_, l)| !l.trim().is_empty() && !l.trim().starts_with('#'))
        .and_then(|(_, l)| count_header(l))?;

    let mut b = Builder::new(limits);
    b.sample_types(&[(kind, "count")]);
    b.profile.period_type = value_type(&mut b, kind, "count");
    b.profile.period = 1;
    let mut bad = BadLines::default();
    while let Some((i, line)) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with("---") {
            break;
        }
        let Some((count, addresses)) = count_sample(line) else {
            bad.add(i);
            continue;
        };
        let comments = comments(&mut lines);
        // They are interned before the sample can be refused.
        if b.is_full(comments.labels.len()) {
            b.sample(&[count], addresses.iter().copied(), &[], &[], false);
            continue;
        }
        let labels: Vec<Label> = comments
            .labels
            .iter()
            .map(|(key, value)| Label {
                key: b.intern(key),
                value: LabelValue::Text(b.intern(value)),
            })
            .collect();
        let addresses = addresses.iter().map(|a| a.wrapping_sub(1));
        b.sample(&[count], addresses, &comments.frames, &labels, false);
    }
    b.memory_map(maps::entries(text));
    b.legacy_frames();
    Some(b.done(&bad, None, text.len()))
}

/// `1 @ 0x44cb3 0x45045`
fn count_sample(line: &str) -> Option<(i64, Vec<u64>)> {
    let (count, stack) = line.split_once(" @")?;
    let addresses = hex_numbers(stack)?;
    (!addresses.is_empty()).then_some(())?;
    Some((count.parse().ok()?, addresses))
}

fn value_type(b: &mut Builder, kind: &str, unit: &str) -> ValueType {
    ValueType {
        kind: b.profile.intern(kind),
        unit: b.profile.intern(unit),
    }
}
