use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Frame, Time};

/// Name and version of the JSON form of a [`HotLine`]. Fields may be added under this
/// version; none is renamed or removed.
pub const HOT_SCHEMA: &str = "memtrace.hot/1";

/// Which known way of allocating too much the stacks of a site show.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum HotPattern {
    /// A profile was written: the price of being looked at.
    Profiling,
    /// JSON is decoded.
    JsonDecoding,
    /// JSON is encoded.
    JsonEncoding,
    /// A (de)compressor makes its tables.
    Compression,
    /// Text is put together or converted.
    StringBuilding,
    /// A buffer is filled beyond its capacity.
    BufferPerWrite,
    /// HTTP requests are made or served.
    HttpRequest,
    /// Goroutines are started.
    GoroutineStart,
    /// A map outgrows its table.
    MapRegrowth,
    /// Maps are made.
    MapPerCall,
    /// A slice is appended to beyond its capacity.
    SliceRegrowth,
    /// Values are put into interfaces.
    Boxing,
    /// A constructor makes a large fixed buffer for each task.
    TaskLifecycle,
    /// Small objects of one size are made under an interpolator or a servo.
    InterpolationLoop,
    /// Small objects of one size are made under a loop or tick.
    PerTickAllocation,
    /// Function literals that capture variables are made.
    ClosurePerCall,
    /// A large slice is made at each call.
    BufferPerCall,
    /// Nothing more specific is known.
    Allocation,
}

/// One line of `memtrace hot --json`: the totals first, then the sites.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "line", rename_all = "kebab-case")]
#[allow(clippy::large_enum_variant)] // written one by one
pub enum HotLine {
    /// What the process allocated in all.
    Total(HotTotal),
    /// One allocation site.
    Site(HotSite),
}

/// What a process allocated between two readings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HotTotal {
    /// Always [`HOT_SCHEMA`].
    pub schema: String,
    /// The target, as the user named it.
    pub target: String,
    /// Time up to which the former profile counts.
    pub from: Option<Time>,
    /// Time up to which the latter counts.
    pub to: Option<Time>,
    /// Time between the two, seconds; rates are divided by it.
    pub seconds: f64,
    /// Bytes allocated in between, by the profile.
    pub bytes: i64,
    /// Objects allocated in between, by the profile.
    pub objects: i64,
    /// Bytes a second, by the profile.
    pub bytes_per_s: f64,
    /// Objects a second, by the profile.
    pub objects_per_s: f64,
    /// What the runtime itself counted, where it was read.
    pub runtime: Option<HotRuntime>,
    /// Bytes a second by the profile as a share of those that the runtime counted. Both
    /// are read at slightly different times, so it may exceed 1.
    pub explains: Option<f64>,
    /// So little is allocated that nothing is hot; no site follows.
    pub quiet: bool,
}

/// `runtime.MemStats` of Go between two readings: exact, but without a place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HotRuntime {
    /// Time between the readings, seconds.
    pub seconds: f64,
    /// Bytes a second (`TotalAlloc`).
    pub bytes_per_s: f64,
    /// Objects a second (`Mallocs`), the tiny ones that share a block each by itself.
    pub objects_per_s: f64,
    /// Garbage collections in between.
    pub collections: u32,
}

/// One allocation site: own code, and all that it allocates through libraries and runtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HotSite {
    /// Always [`HOT_SCHEMA`].
    pub schema: String,
    /// 1 is the site that allocates most bytes; `null` where too few objects were sampled
    /// to tell its place.
    pub rank: Option<u32>,
    /// The site: function, file and line as far as they were asked for.
    pub site: Frame,
    /// Package of the site.
    pub package: String,
    /// What it allocates through: a package (`encoding/json`), or the kind of object that
    /// it makes itself (`slice`, `map`, `string`, `interface`, `object`, `channel`,
    /// `goroutine`); empty when the profile does not show it.
    pub via: String,
    /// Bytes a second.
    pub bytes_per_s: f64,
    /// 95 % interval of `bytes_per_s`, of sampling alone.
    pub bytes_interval: [f64; 2],
    /// Objects a second.
    pub objects_per_s: f64,
    /// 95 % interval of `objects_per_s`, of sampling alone.
    pub objects_interval: [f64; 2],
    /// Mean size of an object, bytes.
    pub bytes_per_object: f64,
    /// Share of all bytes allocated, by the profile, 0 to 1.
    pub share: f64,
    /// How many objects the runtime sampled.
    pub samples: u64,
    /// Frames from the goroutine's first function to the allocation; the median over the
    /// bytes.
    pub depth: u32,
    /// Different call stacks.
    pub stacks: u32,
    /// Which known way of allocating too much it is.
    pub pattern: HotPattern,
    /// Share of the bytes whose stacks show the pattern, 0 to 1.
    pub pattern_share: f64,
    /// What was seen, in a sentence; empty for `allocation`.
    pub evidence: String,
    /// What to change; empty for `profiling`.
    pub advice: String,
    /// The stack that allocates most bytes, the allocation first.
    pub stack: Vec<Frame>,
}

/// JSON Schema of [`HotLine`].
#[must_use]
pub fn hot_schema() -> schemars::Schema {
    schemars::schema_for!(HotLine)
}
