//! When the memory will be used up.

use memtrace_model::{Bound, Time};

/// When a bound will be reached.
#[derive(Clone, Debug, PartialEq)]
pub struct Exhaustion {
    /// When, at the present rate.
    pub oom_at: Time,
    /// 95 % interval; the later end is `None` when it may never come.
    pub interval: (Time, Option<Time>),
    /// The bound that is reached first.
    pub bound: Bound,
    /// Growth of what counts against it, bytes per minute.
    pub rate_bytes_per_min: f64,
}

/// Nothing is said about a time further away than this.
const HORIZON_MINUTES: f64 = 366.0 * 24.0 * 60.0;

/// When `bound` is reached when usage grows by `rate` bytes per minute from what it counts
/// as used now; `interval` is the 95 % interval of `rate`. `None` when nothing grows, or
/// not within a year. A bound passed already is reached now.
#[must_use]
pub fn time_to_bound(now: Time, rate: f64, interval: [f64; 2], bound: Bound) -> Option<Exhaustion> {
    let left = bound.bytes.saturating_sub(bound.used) as f64;
    let at = |rate: f64| {
        let minutes = left / rate;
        let is_known = rate > 0.0 && minutes.is_finite() && minutes <= HORIZON_MINUTES;
        is_known.then(|| now.plus_ms((minutes * 60_000.0) as i64))
    };
    Some(Exhaustion {
        oom_at: at(rate)?,
        interval: (at(interval[1].max(rate))?, at(interval[0].min(rate))),
        bound,
        rate_bytes_per_min: rate,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bound(kind: &str, bytes: u64, used: u64) -> Bound {
        Bound {
            kind: kind.to_owned(),
            bytes,
            used,
        }
    }

    #[test]
    fn at_the_present_rate() {
        let limit = || bound("cgroup", 300, 100);
        let end = time_to_bound(Time(0), 20.0, [10.0, 40.0], limit()).unwrap();
        assert_eq!(end.oom_at, Time(600_000));
        assert_eq!(end.interval, (Time(300_000), Some(Time(1_200_000))));
        let never = time_to_bound(Time(0), 20.0, [-1.0, 40.0], limit()).unwrap();
        assert_eq!(never.interval.1, None);
        assert_eq!(time_to_bound(Time(0), 0.0, [0.0, 0.0], limit()), None);
        let passed = time_to_bound(Time(0), 1.0, [1.0, 1.0], bound("host", 300, 400)).unwrap();
        assert_eq!(passed.oom_at, Time(0));
    }

    proptest! {
        #[test]
        fn the_interval_holds_the_time(rate in -1e9f64..1e9, low in 0.0f64..1e8, high in 0.0f64..1e8,
            bytes in 0u64..1 << 40, used in 0u64..1 << 40) {
            let found = time_to_bound(Time(5), rate, [rate - low, rate + high], bound("host", bytes, used));
            if let Some(e) = found {
                prop_assert!(e.interval.0 <= e.oom_at && e.oom_at >= Time(5));
                prop_assert!(e.interval.1.is_none_or(|t| t >= e.oom_at));
            }
        }
    }
}
