//! Pure statistics of time series: trend tests, change points, count intervals,
//! false-discovery control.
//!
//! No dependency, no I/O, no clock, no panic: input that is too short or not
//! finite gives `None` or the neutral answer, as each function says. Times are
//! plain `f64` in a unit of the caller's choice; slopes are per that unit.
//!
//! | module | what it answers |
//! |---|---|
//! | [`trend`] | does it rise (Mann–Kendall, with the Hamed–Rao correction), and how fast (Theil–Sen, least squares)? |
//! | [`change`] | since when: change of slope (continuous hinge), change of rate (Poisson) |
//! | [`count`] | how far can a count, or a difference of counts, be chance: Poisson and Skellam |
//! | [`fdr`] | which of many small p-values still count: Benjamini–Hochberg, Benjamini–Yekutieli |
//! | [`dist`] | the distributions behind them: normal, Student, gamma, beta |

pub mod change;
pub mod count;
pub mod dist;
pub mod fdr;
pub mod trend;
