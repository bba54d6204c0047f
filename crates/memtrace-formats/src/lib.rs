//! Bytes to model and back.
//!
//! ```text
//! bytes ──▶ pprof::parse ──▶ Profile + warnings ──▶ pprof::write ──▶ bytes
//!                               │      ▲
//!                               │      └── folded::parse ◀── text
//!                               ├──▶ folded::write ──▶ text
//!                               └──▶ speedscope::write ──▶ JSON
//! ```
//!
//! What this crate hides: compression, the wire format of protocol buffers, the
//! text forms that came before pprof's message, their quirks, and what is done
//! about damage. It does no I/O and knows no target; it takes and gives bytes. Beside
//! profiles it reads the function table of a Go program ([`goexe`]).
//!
//! Damaged input gives what could be read and a list of [`Warning`]s. An
//! [`Error`] comes only where nothing is usable. Memory grows with the bytes that
//! are there, never with a number that they claim, and [`Limits`] bound what a
//! small file may unpack to.

mod budget;
mod error;
pub mod folded;
pub mod goexe;
pub mod goheap;
mod gzip;
pub mod pprof;
pub mod sdk;
pub mod speedscope;

pub use error::{Error, Warning};
pub use gzip::Limits;
