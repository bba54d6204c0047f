//! From profiles and gauges over time to findings.
