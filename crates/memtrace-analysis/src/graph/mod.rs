//! All objects of a heap: what keeps them alive, and how much each thing keeps.
//!
//! Everything here works on a [`HeapGraph`](memtrace_model::HeapGraph) that its `check`
//! accepts, does no I/O and reads no clock.

mod diff;
mod dominators;
mod explain;
mod goroutines;
mod groups;
mod holdings;
mod links;
mod paths;
#[cfg(test)]
mod sample;
mod survivors;
mod suspects;
mod tags;
mod tree;

pub use diff::{Count, DiffRow, Growth, HeapDiff, diff};
pub use dominators::Dominators;
pub use explain::{Explanation, explain};
pub use goroutines::{GoroutineGroup, GoroutineReport, GoroutineVerdict, goroutine_leaks};
pub use groups::{
    Accumulation, Member, StackGroup, TopGroup, TypeGroup, accumulations, by_stack, by_type,
    top_groups,
};
pub use holdings::Holdings;
pub(crate) use holdings::{BUILTIN, shown};
pub use links::live_objects;
pub use paths::{PathStep, RootPath, field, root_words, shortest_paths};
pub use survivors::{
    Share, SurvivorGroup, SurvivorOptions, SurvivorReport, SurvivorTracker, module_of,
};
pub use suspects::{BloatedMap, FinalizerGroup, PoolContents, SuspectOptions, Suspects, suspects};
pub use tags::{LabelPairs, TagBook, TagShare, tag_shares};
pub use tree::{RetentionNode, RetentionTree, TreeLimits};

use memtrace_model::HeapGraph;

/// A heap with its dominators: what most questions are asked of.
#[derive(Clone, Copy, Debug)]
pub struct Heap<'a> {
    /// The objects.
    pub graph: &'a HeapGraph,
    /// What retains what; of the same graph.
    pub dominators: &'a Dominators,
}
