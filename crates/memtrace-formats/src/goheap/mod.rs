//! The heap of a Go process, read from outside.
//!
//! ```text
//! executable ──image──▶ version, layouts, globals ─┐
//! Memory ──┬──────────▶ module, functions ─────────┤
//!          ├─spans, masks──▶ objects, edges ───────┤
//!          ├─types────────▶ what each object is ───┼──▶ HeapGraph
//!          └─goroutines───▶ roots, frames, waits ──┘
//! ```
//!
//! The runtime's own structures are followed, from `mheap_.allspans` to each object and
//! from each root to what it holds. Their layouts come from the program's debug
//! information, else from a table of versions. Whatever is read may be wrong: every
//! number from the target is checked before it counts.

mod image;
mod memory;

pub use memory::{Memory, Region, Registers, Thread, Unreadable};

use crate::Error;

fn damaged(what: impl Into<String>) -> Error {
    Error::NotAGoProgram { what: what.into() }
}
