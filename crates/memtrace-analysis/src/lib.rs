//! From profiles and gauges over time to findings.

pub mod graph;
pub mod hot;
pub mod leaks;
pub mod series;
pub mod top;
mod units;
