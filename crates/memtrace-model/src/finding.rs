use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{FrameRef, Time};

/// Name and version of the JSON form of a [`Finding`]. Fields may be added under
/// this version; none is renamed or removed.
pub const FINDING_SCHEMA: &str = "memtrace.finding/1";

/// How sure the verdict is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Memory grows, and it may still level off.
    Growing,
    /// Old objects survive and keep accumulating: it will not stop by itself.
    Leaking,
}

/// Which known cause the evidence fits.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Pattern {
    /// A stack's live memory grows; nothing more specific is known.
    Growth,
    /// Goroutines pile up at one blocked stack.
    GoroutineLeak,
    /// A map keeps getting keys.
    MapBloat,
    /// A slice keeps being appended to.
    SliceGrowth,
    /// Pooled objects come back bigger than they left.
    PoolMisuse,
    /// Objects wait for finalizers that come late.
    FinalizerBacklog,
    /// Memory outside the managed heap grows.
    NativeGrowth,
    /// Registered callbacks keep what they captured.
    ListenerRetention,
    /// Objects outlive the work cycle they were made for.
    Survivor,
}

/// Whether the finding still holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It holds.
    #[default]
    Open,
    /// The growth has stopped.
    Resolved,
}

/// One frame of the finding's stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Frame {
    /// Function; `0x…` where the profile has no symbols.
    pub function: String,
    /// Source file.
    pub file: String,
    /// Line, 0 when unknown.
    pub line: i64,
}

impl From<FrameRef<'_>> for Frame {
    fn from(f: FrameRef<'_>) -> Self {
        let function = if f.function.is_empty() {
            format!("{:#x}", f.address)
        } else {
            f.function.to_owned()
        };
        Self {
            function,
            file: f.file.to_owned(),
            line: f.line,
        }
    }
}

/// What the numbers of a finding were read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SampleKind {
    /// Sampled heap profile.
    Heap,
    /// Goroutine profile.
    Goroutine,
    /// Gauges of the process.
    Process,
}

/// What will stop the process, and where it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Bound {
    /// `cgroup`, `GOMEMLIMIT`, `--limit` or `host`.
    pub kind: String,
    /// The limit, bytes.
    pub bytes: u64,
    /// What counts against it now, bytes.
    pub used: u64,
}

/// The rate at one point of the series (row A4 of the specification).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rate {
    /// Time of the later of the two profiles.
    pub at: Time,
    /// Live objects, % per minute.
    pub objects_percent_per_min: f64,
    /// Live bytes, MB (10^6 bytes) per minute.
    pub mb_per_min: f64,
    /// Out of line with what was normal before.
    pub suspicious: bool,
}

/// A verdict with its evidence. Serialised, it is the contract for scripts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// Always [`FINDING_SCHEMA`].
    pub schema: String,
    /// The same for every word about one finding: the first, a change of verdict, its
    /// end. Empty until the finding is told of.
    #[serde(default)]
    pub id: String,
    /// When the verdict was reached.
    pub at: Time,
    /// Which known cause it is.
    pub pattern: Pattern,
    /// How sure it is.
    pub tier: Tier,
    /// Whether it still holds.
    pub status: Status,
    /// 1 is the finding that explains most.
    pub rank: u32,
    /// Probability that the growth is real, 0 to 1.
    pub confidence: f64,
    /// The target, as the user named it.
    pub target: String,
    /// What the numbers come from.
    pub source: SampleKind,
    /// The stack, the allocating or blocked frame first.
    pub stack: Vec<Frame>,
    /// The first frame of `stack` that is neither runtime nor standard library.
    pub culprit: Option<Frame>,
    /// Type of the objects, where known.
    #[serde(rename = "type")]
    pub type_name: Option<String>,
    /// Bytes that would be freed with the leaked objects, where known.
    pub retained_bytes: Option<u64>,
    /// Path from the root that keeps the objects alive down to them.
    pub retained_by: Vec<String>,
    /// Business tags of the samples.
    pub tags: BTreeMap<String, String>,
    /// When the growth began; `null` when before the watch.
    pub onset: Option<Time>,
    /// 95 % interval of `onset`.
    pub onset_interval: Option<[Time; 2]>,
    /// Growth of live bytes.
    pub rate_bytes_per_min: f64,
    /// 95 % interval of `rate_bytes_per_min`.
    pub rate_interval: [f64; 2],
    /// Growth of live objects (goroutines for `goroutine-leak`).
    pub rate_objects_per_min: f64,
    /// Live bytes at this stack now.
    pub live_bytes: u64,
    /// Live objects (goroutines) at this stack now.
    pub live_objects: u64,
    /// Share of the growth of the process that this stack explains, 0 to 1.
    pub explains: f64,
    /// When the tightest bound is reached at this rate.
    pub oom_at: Option<Time>,
    /// 95 % interval of `oom_at`; the later end is `null` when it may never come.
    pub oom_interval: Option<(Time, Option<Time>)>,
    /// The bound that `oom_at` refers to.
    pub bound: Option<Bound>,
    /// Times of the (up to three) profiles just before the inflection.
    pub before_onset: Vec<Time>,
    /// The last points of the series, with their rates.
    pub points: Vec<Rate>,
    /// What was seen, in sentences.
    pub evidence: Vec<String>,
    /// What to change.
    pub advice: String,
}

/// JSON Schema of [`Finding`].
#[must_use]
pub fn finding_schema() -> schemars::Schema {
    schemars::schema_for!(Finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scripts rely on the schema: a change of it is seen in the diff of the file.
    /// `UPDATE_SCHEMA=1 cargo test -p memtrace-model` writes it anew.
    #[test]
    fn the_committed_schemas_are_those_in_force() {
        for (file, schema) in [
            ("finding.schema.json", finding_schema()),
            ("hot.schema.json", crate::hot_schema()),
        ] {
            let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
            let mut schema = serde_json::to_string_pretty(&schema).expect("JSON");
            schema.push('\n');
            if std::env::var_os("UPDATE_SCHEMA").is_some() {
                std::fs::write(&path, &schema).expect("the file can be written");
            }
            let committed = std::fs::read_to_string(&path).expect("the file is there");
            assert_eq!(committed, schema, "{file}");
        }
    }
}
