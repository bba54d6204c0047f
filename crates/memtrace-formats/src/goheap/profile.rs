//! The runtime's own profiles, read from its memory: what an endpoint would have told.

use std::cmp::Reverse;
use std::collections::HashMap;

use memtrace_model::{
    Label, LabelSetId, LabelValue, LocationId, Profile, StackId, Time, ValueType,
};

use super::chain::Chain;
use super::functions::{Functions, SourceFrame};
use super::image::Image;
use super::memory::{Memory, Thread, Window};
use super::{Process, goroutines};
use crate::budget::{self, Folded};
use crate::{Error, Limits};

/// Stacks of a heap profile that are read, and calls of one. Beyond what a profile of a live service may
/// take, those that hold least are one.
const MAX_BUCKETS: u64 = 1 << 19;
const MAX_STACK: u64 = 1 << 10;
/// Calls of all of them that are read in the order in which they come; of more, those that
/// hold most come first.
const MANY_CALLS: u64 = 1 << 20;
/// Bytes of `runtime.bucket`; the stack follows, then the record.
const BUCKET: u64 = 48;

/// A Go program whose runtime can be read again and again.
#[derive(Debug)]
pub struct Program {
    pub(super) image: Image,
    pub(super) functions: Functions,
}

impl Program {
    /// Reads what does not change while the process runs.
    ///
    /// # Errors
    /// As for [`read`](super::read).
    pub fn read(process: &Process<'_>) -> Result<Self, Error> {
        let window = Window::new(process.memory);
        let (image, _) = Image::read(process.executable, &window, process.regions)?;
        let functions = Functions::read(&window, &image)?;
        Ok(Self { image, functions })
    }

    /// The runtime's version: `go1.27.3`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.image.version.text
    }

    /// The heap profile as of the last collection but one, in the columns and the scale of
    /// Go's own; its stacks have the runtime's frames as well. The process need not stand
    /// still: the runtime only ever adds to what is read.
    ///
    /// # Errors
    /// Where there is none: the program never uses `runtime.MemProfile`, so that its linker
    /// left sampling out, or `MemProfileRate` is 0.
    pub fn heap_profile(&self, memory: &dyn Memory, taken: Time) -> Result<Profile, Error> {
        let window = Window::new(memory);
        let image = &self.image;
        let word = |at: u64| window.u64(at).ok();
        let rate = image
            .variable("MemProfileRate")
            .ok()
            .and_then(word)
            .unwrap_or(0);
        // Where sampling was left out, the runtime sets the rate to 0 when it starts. A program
        // that just started has no bucket yet: nothing was sampled.
        let first = image.variable("mbuckets").ok().and_then(word);
        let Some(first) = first.filter(|_| rate != 0) else {
            return Err(Error::HeapProfileOff);
        };
        let layout = &image.layout;
        let bytes = layout.find("memRecord.active.alloc_bytes");
        let freed = layout.find("memRecord.active.free_bytes");
        let mut building = Building::new(taken);
        let types = [
            "alloc_objects",
            "alloc_space",
            "inuse_objects",
            "inuse_space",
        ];
        for (kind, unit) in types.into_iter().zip(["count", "bytes", "count", "bytes"]) {
            building.sample_type(kind, unit);
        }
        building.profile.period = i64::try_from(rate).unwrap_or(i64::MAX);
        building.profile.period_type = building.value_type("space", "bytes");
        let key = building.profile.intern("bytes");
        let mut chain = Chain::new(first, MAX_BUCKETS);
        let mut calls = 0;
        let mut buckets = Vec::new();
        while let Some(at) = chain.node() {
            let field = |offset: u64| word(at.checked_add(offset)?);
            chain.follow(field(8));
            let (Some(size), Some(count)) = (field(32), field(40)) else {
                continue;
            };
            if count > MAX_STACK || size == 0 {
                continue;
            }
            let record = BUCKET + 8 * count;
            let value = |offset: Option<u64>| field(record.checked_add(offset?)?);
            let (Some(allocs), Some(frees)) = (value(Some(0)), value(Some(8))) else {
                continue;
            };
            // Since Go 1.27 bytes follow from the count.
            let allocated = value(bytes).unwrap_or(allocs.saturating_mul(size));
            let released = value(freed).unwrap_or(frees.saturating_mul(size));
            if allocs == 0 || frees > allocs || released > allocated {
                continue;
            }
            calls += count;
            let (all, all_bytes) = scaled(allocs, allocated, rate);
            let (live, live_bytes) = scaled(allocs - frees, allocated - released, rate);
            buckets.push(Bucket {
                at,
                size,
                calls: count,
                values: [all, all_bytes, live, live_bytes],
            });
        }
        if calls > MANY_CALLS {
            buckets.sort_by_key(|bucket| Reverse(bucket.values[3]));
        }
        for bucket in buckets {
            if building.is_full() {
                building.folded.take(&bucket.values);
                continue;
            }
            let stack = bucket.at.saturating_add(BUCKET);
            let Ok(stack) = window.bytes(stack, 8 * bucket.calls, 8 * MAX_STACK) else {
                continue;
            };
            let pcs: Vec<u64> = stack
                .as_chunks::<8>()
                .0
                .iter()
                .map(|b| u64::from_le_bytes(*b))
                .collect();
            let size = i64::try_from(bucket.size).unwrap_or(i64::MAX);
            let labels = [Label {
                key,
                value: LabelValue::Number(size, key),
            }];
            let frames = self.functions.call_stack(&window, &pcs);
            building.sample(&frames, &labels, &bucket.values);
        }
        Ok(building.done())
    }

    /// How many goroutines have each stack. The process has to stand still.
    #[must_use]
    pub fn goroutine_profile(
        &self,
        memory: &dyn Memory,
        threads: &[Thread],
        taken: Time,
    ) -> Profile {
        let window = Window::new(memory);
        let (all, _) = goroutines::read(&window, &self.image, &self.functions, threads, None);
        let mut building = Building::new(taken);
        building.sample_type("goroutine", "count");
        building.profile.period = 1;
        building.profile.period_type = building.value_type("goroutine", "count");
        for goroutine in all.iter().filter(|g| !g.is_system) {
            let frames: Vec<SourceFrame> = goroutine
                .frames
                .iter()
                .filter(|f| !f.is_hidden)
                .map(|f| SourceFrame {
                    function: f.function.clone(),
                    file: f.file.clone(),
                    line: f.line,
                })
                .collect();
            building.sample(&frames, &[], &[1]);
        }
        building.done()
    }
}

/// A stack of the heap profile and what was allocated there, before its calls are read.
struct Bucket {
    at: u64,
    size: u64,
    calls: u64,
    values: [i64; 4],
}

/// Counts of sampled objects, scaled up to all: an object of `bytes / objects` is sampled
/// with the probability 1 - e^(-size / rate).
fn scaled(objects: u64, bytes: u64, rate: u64) -> (i64, i64) {
    if objects == 0 || bytes == 0 {
        return (0, 0);
    }
    let whole = |v: f64| v as i64;
    if rate <= 1 {
        return (whole(objects as f64), whole(bytes as f64));
    }
    let size = bytes as f64 / objects as f64;
    let scale = 1.0 / -(-size / rate as f64).exp_m1();
    (whole(objects as f64 * scale), whole(bytes as f64 * scale))
}

/// A profile on its way, with equal stacks in one sample.
struct Building {
    profile: Profile,
    locations: HashMap<SourceFrame, LocationId>,
    samples: HashMap<(StackId, LabelSetId), usize>,
    /// Samples beyond what the profile may take.
    folded: Folded,
    unmeasured: usize,
    full: bool,
}

impl Building {
    fn new(taken: Time) -> Self {
        let mut profile = Profile {
            time_nanos: taken.0.saturating_mul(1_000_000),
            ..Profile::default()
        };
        // The first set of labels is the empty one.
        profile.label_sets.intern(&[]);
        Self {
            profile,
            locations: HashMap::new(),
            samples: HashMap::new(),
            folded: Folded::default(),
            unmeasured: 0,
            full: false,
        }
    }

    /// Whether it takes as much memory as the profile of a live service may.
    fn is_full(&mut self) -> bool {
        const MEASURE_EVERY: usize = 4096;
        if self.unmeasured >= MEASURE_EVERY && !self.full {
            self.unmeasured = 0;
            let tables = self.locations.capacity() * (size_of::<SourceFrame>() + 16)
                + self.samples.capacity() * (budget::FOLLOWED + 32);
            self.full = self.profile.memory() + tables > Limits::live().max_memory;
        }
        self.full
    }

    fn done(mut self) -> Profile {
        if self.folded.samples > 0 {
            self.folded.add_to(&mut self.profile);
        }
        self.profile
    }

    fn value_type(&mut self, kind: &str, unit: &str) -> ValueType {
        ValueType {
            kind: self.profile.intern(kind),
            unit: self.profile.intern(unit),
        }
    }

    fn sample_type(&mut self, kind: &str, unit: &str) {
        let value_type = self.value_type(kind, unit);
        self.profile.sample_types.push(value_type);
    }

    fn sample(&mut self, frames: &[SourceFrame], labels: &[Label], values: &[i64]) {
        self.unmeasured += frames.len() + 1;
        if self.is_full() {
            self.folded.take(values);
            return;
        }
        let stack: Vec<LocationId> = frames
            .iter()
            .map(|frame| match self.locations.get(frame) {
                Some(&known) => known,
                None => {
                    let new = self.location(frame);
                    self.locations.insert(frame.clone(), new);
                    new
                }
            })
            .collect();
        let profile = &mut self.profile;
        let (Some(stack), Some(labels)) = (
            profile.stacks.intern(&stack),
            profile.label_sets.intern(labels),
        ) else {
            return;
        };
        let key = (StackId(stack), LabelSetId(labels));
        let at = *self.samples.entry(key).or_insert_with(|| {
            profile.sample_stacks.push(key.0);
            profile.sample_labels.push(key.1);
            profile.values.extend(std::iter::repeat_n(0, values.len()));
            profile.sample_stacks.len() - 1
        });
        for (sum, value) in profile.values[at * values.len()..].iter_mut().zip(values) {
            *sum = sum.saturating_add(*value);
        }
    }

    fn location(&mut self, frame: &SourceFrame) -> LocationId {
        let location = self
            .profile
            .add_location(&frame.function, frame.line.into());
        let file = self.profile.intern(&frame.file);
        let line = self.profile.locations[location.index()].first_line as usize;
        let function = self.profile.lines[line].function;
        self.profile.functions[function.index()].file = file;
        location
    }
}
