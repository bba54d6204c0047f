//! All objects of a heap: what keeps them alive, and how much each thing keeps.
//!
//! Everything here works on a [`HeapGraph`](memtrace_model::HeapGraph) that its `check`
//! accepts, does no I/O and reads no clock.

mod dominators;
mod groups;
mod links;
mod paths;
#[cfg(test)]
mod sample;
mod tree;

pub use dominators::Dominators;
pub use groups::{
    Accumulation, Member, StackGroup, TopGroup, TypeGroup, accumulations, by_stack, by_type,
    top_groups,
};
pub use paths::{PathStep, RootPath, field, root_words, shortest_paths};
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
