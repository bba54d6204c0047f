//! The words memtrace speaks.
//!
//! | word | what it is |
//! |---|---|
//! | [`Profile`] | sampled: rows of (stack, labels, values), interned in columns; pprof is its wire form |
//! | [`HeapGraph`] | exact: objects, types, edges, roots of one moment |
//! | [`Series`] | values over time: gauges of the process and per-stack values of successive profiles |
//! | [`Event`] | something that happened: attach, restart, loss |
//! | [`Finding`] | a verdict with its evidence |
//!
//! What this crate hides: interning, the identity of a stack across
//! profiles, processes and files ([`StackKey`]), and how text from outside is shown
//! ([`visible`]). It does no I/O, reads no clock,
//! and knows no wire format. In-use values are gauges: two profiles of one
//! process are never added.

mod columns;
mod event;
mod finding;
mod heap;
mod hot;
mod intern;
mod profile;
mod series;
pub mod snapshot;
mod time;
mod visible;

pub use columns::{Addresses, Bits, Pack, Packed};
pub use event::{Event, EventKind};
pub use finding::{
    Bound, FINDING_SCHEMA, Finding, Frame, Pattern, Rate, SampleKind, Status, Tier, finding_schema,
};
pub use heap::{
    Allocated, ChannelUse, EdgeSlot, Goroutine, HeapField, HeapFrame, HeapFrameId, HeapGraph,
    HeapKind, HeapStackId, HeapTotals, HeapType, HeapTypeId, MapUse, NodeId, Root, RootKind,
    SliceUse, WaitsFor,
};
pub use hot::{HOT_SCHEMA, HotLine, HotPattern, HotRuntime, HotSite, HotTotal, hot_schema};
pub use intern::{Lists, Strings, cut};
pub use profile::{
    FrameRef, Function, FunctionId, Label, LabelSetId, LabelValue, Line, Location, LocationId,
    Mapping, MappingId, OTHER, Profile, StackId, StackKey, StringId, ValueType,
};
pub use series::{Gauge, Gauges, Series};
pub use time::Time;
pub use visible::{folded_frame, is_visible, to_json, visible, visible_start};
