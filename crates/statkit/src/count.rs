//! Counts of independent events and their differences.

use crate::dist::{beta_i, gamma_p, gamma_q, normal_quantile};

/// Exact (Garwood) interval of the mean of a Poisson distribution of which
/// `count` was seen; `level` is the coverage, for example 0.95.
#[must_use]
pub fn poisson_interval(count: u64, level: f64) -> (f64, f64) {
    let alpha = (1.0 - level.clamp(0.0, 1.0 - 1e-12)) / 2.0;
    let n = count as f64;
    let low = if count == 0 {
        0.0
    } else {
        // P(N >= n | m) = P(n, m), which rises with m.
        solve(|m| gamma_p(n, m) - alpha, n)
    };
    let high = solve(|m| alpha - gamma_q(n + 1.0, m), n + 1.0);
    (low, high)
}

/// Zero of a rising function of m > 0, by bisection around `guess`.
fn solve(f: impl Fn(f64) -> f64, guess: f64) -> f64 {
    let (mut low, mut high) = (0.0, 2.0 * guess + 50.0);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if f(middle) < 0.0 {
            low = middle;
        } else {
            high = middle;
        }
        if high - low <= 1e-13 * high {
            break;
        }
    }
    0.5 * (low + high)
}

/// P(N ≥ `count`) of a Poisson distribution with this mean.
#[must_use]
pub fn poisson_tail(count: u64, mean: f64) -> f64 {
    if count == 0 {
        1.0
    } else {
        gamma_p(count as f64, mean)
    }
}

/// How surprising it is to see this many `gains` among `gains + losses` events
/// when both are equally frequent: P(at least `gains`), the exact conditional
/// test of a difference of two Poisson counts (Skellam with equal means).
#[must_use]
pub fn gain_tail(gains: u64, losses: u64) -> f64 {
    if gains == 0 {
        return 1.0;
    }
    beta_i(gains as f64, losses as f64 + 1.0, 0.5)
}

/// Interval of the mean of `gains − losses` (Skellam), normal approximation with
/// a half count on each side; `level` is the coverage.
#[must_use]
pub fn skellam_interval(gains: u64, losses: u64, level: f64) -> (f64, f64) {
    let z = normal_quantile(0.5 + level.clamp(0.0, 1.0 - 1e-12) / 2.0);
    let net = gains as f64 - losses as f64;
    let half = z * (gains as f64 + losses as f64 + 1.0).sqrt();
    (net - half, net + half)
}

/// Difference of two counts in standard deviations, when their sum of events
/// (at least 1 is taken) is its variance.
#[must_use]
pub fn z_score(difference: f64, variance: f64) -> f64 {
    difference / variance.max(1.0).sqrt()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-8 * b.abs().max(1e-12), "{a} is not {b}");
    }

    #[test]
    fn as_scipy_1_17_computes_them() {
        // scipy.stats.chi2.ppf for the interval, poisson.sf, binom.sf.
        let (low, high) = poisson_interval(8, 0.95);
        close(low, 3.4538321767485014);
        close(high, 15.763189220193313);
        let (low, high) = poisson_interval(0, 0.95);
        close(low, 0.0);
        close(high, 3.6888794541139354);
        close(poisson_tail(20, 8.0), 0.0002529394020919561);
        close(gain_tail(16, 0), 0.5f64.powi(16));
        close(gain_tail(40, 12), 6.376939192787034e-05);
    }

    proptest! {
        #[test]
        fn intervals_hold_what_was_seen(n in 0u64..5_000, m in 0u64..5_000) {
            let (low, high) = poisson_interval(n, 0.95);
            prop_assert!(low <= n as f64 && n as f64 <= high);
            let (low, high) = skellam_interval(n, m, 0.95);
            let net = n as f64 - m as f64;
            prop_assert!(low < net && net < high);
            let p = gain_tail(n, m);
            prop_assert!((0.0..=1.0).contains(&p));
        }
    }
}
