//! Who allocates: the sites upstream of the allocator, how often and how much, and
//! which known way of allocating too much their stacks show.
//!
//! Two readings of a cumulative profile (`alloc_space`) differ by what was allocated in
//! between. A row is a *site*: the first frame that is the service's own code; the runtime
//! and library frames below it say through what it allocates. The scaling of samples is
//! undone as for leaks, which gives the counts that intervals are made of.

mod increments;
mod patterns;

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use memtrace_model::{Frame, HOT_SCHEMA, HotSite, OTHER, Profile, folded_frame};
use statkit::count::poisson_interval;

pub use increments::Incomparable;
use increments::{Increment, increments};

use crate::leaks::symbols;

/// What makes one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// A line of own code.
    #[default]
    Site,
    /// A function.
    Function,
    /// A package.
    Package,
}

/// What was allocated between two readings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hot {
    /// Bytes, as the difference of the profiles' sums.
    pub bytes: i64,
    /// Objects, likewise.
    pub objects: i64,
    /// The sites: those with a rank first, the greatest rate first.
    pub sites: Vec<HotSite>,
    /// Folded stacks, the root first, with bytes a second: a flame graph's input.
    pub folded: String,
}

/// Sampled objects that a site needs for a rank. The 95 % interval of a count of 8 is 3.5
/// to 15.8: with fewer, not even the order of magnitude is sure.
pub const LEAST_SAMPLES: u64 = 8;

/// Bytes a second below which a service is quiet: one sample of the heap profile a second,
/// at the rate that Go samples with by default.
pub const QUIET: f64 = 512.0 * 1024.0;

/// Bytes of the frames of all stacks that are looked at; what allocates least beyond is one
/// stack [`OTHER`]. A million frames of common names.
const MOST_FRAMES: usize = 256 << 20;
/// What a frame takes beside its names, bytes.
const FRAME: usize = 64;

/// Coverage of the intervals.
const LEVEL: f64 = 0.95;

/// Sites of `new` less `old`, two readings of one process `seconds` apart.
///
/// # Errors
/// The profiles do not count allocations, or a count fell.
pub fn hot(old: &Profile, new: &Profile, seconds: f64, by: By) -> Result<Hot, Incomparable> {
    let found = increments(old, new)?;
    let literals = literals(new);
    let mut hot = Hot {
        bytes: sum(found.iter().map(|i| i.bytes)),
        objects: sum(found.iter().map(|i| i.objects)),
        ..Hot::default()
    };
    let mut sites: HashMap<Frame, Vec<Stack>> = HashMap::new();
    let mut folded: Vec<String> = Vec::new();
    let mut groups: Vec<&[Increment]> = found.chunk_by(|a, b| a.stack == b.stack).collect();
    groups.sort_by_key(|g| std::cmp::Reverse(sum(g.iter().map(|i| i.bytes))));
    let mut left = MOST_FRAMES;
    let mut other = Vec::new();
    let kept: Vec<(Vec<Frame>, &[Increment])> = groups
        .into_iter()
        .filter_map(|group| {
            let room = left;
            let frames = new.frames(group[0].stack).map_while(|f| {
                left = left.checked_sub(FRAME + f.function.len() + f.file.len())?;
                Some(Frame::from(f))
            });
            let frames: Vec<Frame> = frames.collect();
            if new.frames(group[0].stack).nth(frames.len()).is_some() {
                left = room;
                other.extend_from_slice(group);
                return None;
            }
            Some((frames, group))
        })
        .collect();
    let rest = (!other.is_empty()).then(|| {
        let frame = Frame {
            function: OTHER.to_owned(),
            ..Frame::default()
        };
        (vec![frame], &other[..])
    });
    for (frames, group) in kept.into_iter().chain(rest) {
        let stack = Stack::new(frames, group.to_vec());
        folded.push(stack.folded(seconds));
        sites.entry(stack.site(by)).or_default().push(stack);
    }
    folded.sort_unstable();
    hot.folded = folded.concat();
    let exact = new.period <= 1;
    hot.sites = sites
        .into_iter()
        .map(|(frame, stacks)| {
            let site = Site::new(frame, stacks, seconds, by, exact);
            site.row(hot.bytes, &literals)
        })
        .collect();
    let order = |s: &HotSite| (!is_sure(s.samples, exact), -s.bytes_per_s);
    hot.sites.sort_by(|a, b| {
        let (a_key, b_key) = (order(a), order(b));
        (a_key.0.cmp(&b_key.0))
            .then(a_key.1.total_cmp(&b_key.1))
            .then_with(|| (&a.site.function, a.site.line).cmp(&(&b.site.function, b.site.line)))
    });
    for (i, site) in hot.sites.iter_mut().enumerate() {
        site.rank = (!order(site).0).then_some(i as u32 + 1);
    }
    Ok(hot)
}

/// Whether so many samples tell the place of a site among others.
fn is_sure(samples: u64, exact: bool) -> bool {
    exact || samples >= LEAST_SAMPLES
}

/// One call stack that allocates.
struct Stack {
    /// The allocation first.
    frames: Vec<Frame>,
    /// Where in `frames` the site is.
    at: usize,
    /// One for each size of object.
    parts: Vec<Increment>,
}

impl Stack {
    fn new(mut frames: Vec<Frame>, parts: Vec<Increment>) -> Self {
        // An address that nobody could name says nothing.
        let unnamed = frames
            .iter()
            .take_while(|f| f.function.starts_with("0x"))
            .count();
        if unnamed < frames.len() {
            frames.drain(..unnamed);
        }
        frames.retain(|f| f.function != "runtime.goexit");
        let own = frames
            .iter()
            .position(|f| !symbols::is_standard(&f.function) && !is_dependency(f))
            .or_else(|| {
                frames
                    .iter()
                    .position(|f| !symbols::is_standard(&f.function))
            });
        // Nobody's own code: the job that the library does, its outermost function.
        let at = own
            .or_else(|| frames.iter().rposition(|f| !is_runtime(&f.function)))
            .unwrap_or(frames.len().saturating_sub(1));
        Self { frames, at, parts }
    }

    fn culprit(&self) -> &str {
        self.frames.get(self.at).map_or("", |f| &f.function)
    }

    fn is_own(&self) -> bool {
        !symbols::is_standard(self.culprit())
    }

    /// What the site called, the allocation first.
    fn way(&self) -> &[Frame] {
        &self.frames[..self.at.min(self.frames.len())]
    }

    /// The function of the runtime that was called to allocate: `runtime.growslice`.
    fn entry(&self) -> Option<&str> {
        self.way()
            .iter()
            .map(|f| f.function.as_str())
            .take_while(|f| is_runtime(f))
            .last()
    }

    /// The function that the site called.
    fn callee(&self) -> Option<&str> {
        self.way().last().map(|f| f.function.as_str())
    }

    /// The site and what called it.
    fn callers(&self) -> &[Frame] {
        self.frames.get(self.at..).unwrap_or(&[])
    }

    /// An order that does not depend on the profile's.
    fn frames_cmp(&self, other: &Self) -> Ordering {
        let names = self.frames.iter().map(|f| &f.function);
        names.cmp(other.frames.iter().map(|f| &f.function))
    }

    fn bytes(&self) -> i64 {
        sum(self.parts.iter().map(|p| p.bytes))
    }

    /// The frame that names the row this stack belongs to.
    fn site(&self, by: By) -> Frame {
        let frame = self.frames.get(self.at).cloned().unwrap_or_default();
        match by {
            // Lines of a library say nothing to those who did not write it.
            By::Site if self.is_own() => frame,
            By::Site | By::Function => Frame { line: 0, ..frame },
            By::Package => Frame {
                function: symbols::package(&frame.function).to_owned(),
                ..Frame::default()
            },
        }
    }

    /// Through what the site allocates: see [`HotSite::via`].
    fn via(&self) -> &str {
        match self.callee() {
            Some(callee) if !is_runtime(callee) => symbols::package(callee),
            _ => self.entry().map_or("", patterns::kind),
        }
    }

    fn folded(&self, seconds: f64) -> String {
        let frames = self.frames.iter().rev();
        let names: Vec<String> = frames.map(|f| folded_frame(&f.function)).collect();
        let rate = self.bytes() as f64 / seconds;
        format!("{} {rate:.0}\n", names.join(";"))
    }
}

/// What is allocated in one place.
struct Site {
    frame: Frame,
    /// The one that allocates most bytes first.
    stacks: Vec<Stack>,
    seconds: f64,
    by: By,
    /// Every object was sampled.
    exact: bool,
    bytes: i64,
    objects: i64,
}

impl Site {
    fn new(frame: Frame, mut stacks: Vec<Stack>, seconds: f64, by: By, exact: bool) -> Self {
        stacks.sort_by(|a, b| (b.bytes().cmp(&a.bytes())).then_with(|| a.frames_cmp(b)));
        let parts = || stacks.iter().flat_map(|s| &s.parts);
        Self {
            bytes: sum(parts().map(|p| p.bytes)),
            objects: sum(parts().map(|p| p.objects)),
            frame,
            stacks,
            seconds,
            by,
            exact,
        }
    }

    fn parts(&self) -> impl Iterator<Item = &Increment> {
        self.stacks.iter().flat_map(|s| &s.parts)
    }

    fn objects_per_s(&self) -> f64 {
        self.objects as f64 / self.seconds
    }

    fn samples(&self) -> u64 {
        self.parts().map(|p| p.samples).fold(0, u64::saturating_add)
    }

    fn is_sure(&self) -> bool {
        is_sure(self.samples(), self.exact)
    }

    fn row(&self, total: i64, literals: &HashSet<(String, i64)>) -> HotSite {
        let cause = patterns::detect(self, literals);
        let rate = |n: i64| n as f64 / self.seconds;
        let (bytes_per_s, objects_per_s) = (rate(self.bytes), rate(self.objects));
        let interval = |estimate, weight: fn(&Increment) -> f64| match self.exact {
            true => [estimate, estimate],
            false => interval(
                estimate,
                self.parts().map(|p| (p.samples as f64, weight(p))),
            ),
        };
        HotSite {
            schema: HOT_SCHEMA.to_owned(),
            rank: None,
            package: symbols::package(self.stacks[0].culprit()).to_owned(),
            via: self.via(),
            site: self.frame.clone(),
            bytes_per_s,
            bytes_interval: interval(bytes_per_s, |p| p.size / p.chance),
            objects_per_s,
            objects_interval: interval(objects_per_s, |p| 1.0 / p.chance),
            bytes_per_object: self.bytes as f64 / self.objects.max(1) as f64,
            share: self.bytes as f64 / total.max(1) as f64,
            samples: self.samples(),
            depth: self.depth(),
            stacks: self.stacks.len() as u32,
            pattern: cause.pattern,
            pattern_share: cause.share,
            evidence: cause.evidence,
            advice: cause.advice,
            stack: self.stacks[0].frames.clone(),
        }
    }

    /// The layer through which most bytes are allocated.
    fn via(&self) -> String {
        let mut bytes: HashMap<&str, i64> = HashMap::new();
        for stack in &self.stacks {
            let n = bytes.entry(stack.via()).or_default();
            *n = n.saturating_add(stack.bytes());
        }
        let most = bytes.into_iter().max_by_key(|&(name, n)| (n, name));
        most.map_or("", |(name, _)| name).to_owned()
    }

    /// Median length of the stacks, over their bytes.
    fn depth(&self) -> u32 {
        let mut depths: Vec<(usize, i64)> = self
            .stacks
            .iter()
            .map(|s| (s.frames.len(), s.bytes()))
            .collect();
        depths.sort_unstable();
        let mut below = 0;
        let median = depths.iter().find(|(_, bytes)| {
            below = sum([below, *bytes].into_iter());
            below >= self.bytes / 2
        });
        median.map_or(0, |&(depth, _)| depth as u32)
    }
}

/// Counts of a damaged file may add up to anything.
fn sum(counts: impl Iterator<Item = i64>) -> i64 {
    counts.fold(0, i64::saturating_add)
}

/// Interval of a sum of Poisson counts, each with a weight: that of the one count that has
/// the same relative error, scaled. It is exact where all weights are equal.
fn interval(estimate: f64, counts: impl Iterator<Item = (f64, f64)>) -> [f64; 2] {
    let (mut sum, mut variance) = (0.0, 0.0);
    for (count, weight) in counts {
        sum += count * weight;
        variance += count * weight * weight;
    }
    if variance <= 0.0 {
        return [estimate, estimate];
    }
    let alike = (sum * sum / variance).round().max(1.0);
    let (low, high) = poisson_interval(alike as u64, LEVEL);
    [estimate * low / alike, estimate * high / alike]
}

/// Function literals: the function each was written in, with the lines on which it is
/// known to begin, else those on which it was seen.
fn literals(profile: &Profile) -> HashSet<(String, i64)> {
    let mut found = HashSet::new();
    for line in &profile.lines {
        let Some(function) = profile.functions.get(line.function.index()) else {
            continue;
        };
        let name = profile.text(function.name);
        let Some((outer, number)) = name.rsplit_once('.') else {
            continue;
        };
        let number = number
            .strip_prefix("func")
            .or(number.strip_prefix("gowrap"))
            .unwrap_or(number);
        if symbols::enclosing(name) != name && number.bytes().all(|b| b.is_ascii_digit()) {
            let at = match function.start_line {
                0 => line.line,
                start => start,
            };
            found.insert((outer.to_owned(), at));
        }
    }
    found
}

fn is_runtime(function: &str) -> bool {
    matches!(
        symbols::package(function).split('/').next(),
        Some("runtime")
    ) && !function.starts_with("runtime/pprof.")
        || function.starts_with("internal/runtime/")
}

/// Whether the file lies in the module cache (`…@v1.2.3/…`) or a vendor folder.
fn is_dependency(frame: &Frame) -> bool {
    frame.file.contains("@v") || frame.file.contains("/vendor/")
}

#[cfg(test)]
mod tests;
