//! Trend: Mann–Kendall, Hamed–Rao, Theil–Sen, least squares.

use crate::dist::{normal_quantile, normal_tail};

/// Outcome of a Mann–Kendall test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MannKendall {
    /// Rising pairs less falling pairs.
    pub s: f64,
    /// Variance of `s` without a trend (after the correction, where one was made).
    pub variance: f64,
    /// Standard score, with continuity correction.
    pub z: f64,
    /// Kendall's tau, −1 to 1.
    pub tau: f64,
}

impl MannKendall {
    /// Two-sided p-value.
    #[must_use]
    pub fn p_two_sided(&self) -> f64 {
        2.0 * normal_tail(self.z.abs())
    }

    /// One-sided p-value of a rise.
    #[must_use]
    pub fn p_rise(&self) -> f64 {
        normal_tail(self.z)
    }
}

/// Slope of Theil and Sen: the median slope over all pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TheilSen {
    /// Median slope.
    pub slope: f64,
    /// Median of `y` less slope × median of `t`.
    pub intercept: f64,
    /// Confidence interval of the slope (Sen 1968).
    pub interval: (f64, f64),
}

/// Straight line by least squares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeastSquares {
    /// Slope.
    pub slope: f64,
    /// Value at t = 0.
    pub intercept: f64,
    /// Standard error of the slope for independent errors.
    pub slope_error: f64,
    /// Sum of squared residuals.
    pub sse: f64,
}

impl LeastSquares {
    /// Slope in standard errors; infinite on a perfect line, 0 on a constant.
    #[must_use]
    pub fn t(&self) -> f64 {
        if self.slope == 0.0 {
            0.0
        } else {
            self.slope / self.slope_error
        }
    }
}

/// Mann–Kendall test of `y` in its order, with the correction for ties. `None`
/// for fewer than three values or values that are not finite. O(n²).
#[must_use]
pub fn mann_kendall(y: &[f64]) -> Option<MannKendall> {
    if y.len() < 3 || y.iter().any(|v| !v.is_finite()) {
        return None;
    }
    let mut s = 0.0;
    for (i, a) in y.iter().enumerate() {
        for b in &y[i + 1..] {
            s += f64::from(i8::from(b > a) - i8::from(b < a));
        }
    }
    Some(scored(s, null_variance(y), y.len()))
}

/// Mann–Kendall test with the variance corrected for autocorrelation (Hamed and
/// Rao 1998): ranks of the values less their Theil–Sen trend, autocorrelations
/// significant at `level` (two-sided, for example 0.05) up to `max_lag`. `None`
/// as for [`mann_kendall`]. O(n²).
#[must_use]
pub fn hamed_rao(y: &[f64], level: f64, max_lag: usize) -> Option<MannKendall> {
    let plain = mann_kendall(y)?;
    let n = y.len();
    let order: Vec<f64> = (0..n).map(|i| i as f64).collect();
    let slope = theil_sen(&order, y, 0.95)?.slope;
    let rest: Vec<f64> = y
        .iter()
        .enumerate()
        .map(|(i, v)| v - (i as f64 + 1.0) * slope)
        .collect();
    let ranks = ranks(&rest);
    let bound = normal_quantile(1.0 - level / 2.0) / (n as f64).sqrt();
    let mut sum = 0.0;
    for lag in 1..=max_lag.min(n - 1) {
        let r = autocorrelation(&ranks, lag);
        if r.abs() > bound {
            let k = (n - lag) as f64;
            sum += k * (k - 1.0) * (k - 2.0) * r;
        }
    }
    let m = n as f64;
    let factor = 1.0 + 2.0 / (m * (m - 1.0) * (m - 2.0)) * sum;
    // The sum may go below zero for alternating values; the plain variance then
    // is the nearest usable one from below.
    let variance = if factor > 0.0 {
        plain.variance * factor
    } else {
        plain.variance
    };
    Some(scored(plain.s, variance, n))
}

fn scored(s: f64, variance: f64, n: usize) -> MannKendall {
    let z = if s == 0.0 || variance <= 0.0 {
        0.0
    } else {
        (s - s.signum()) / variance.sqrt()
    };
    let pairs = n as f64 * (n as f64 - 1.0) / 2.0;
    MannKendall {
        s,
        variance,
        z,
        tau: s / pairs,
    }
}

fn null_variance(y: &[f64]) -> f64 {
    let n = y.len() as f64;
    let ties: f64 = tie_sizes(y).map(|t| t * (t - 1.0) * (2.0 * t + 5.0)).sum();
    (n * (n - 1.0) * (2.0 * n + 5.0) - ties) / 18.0
}

fn tie_sizes(y: &[f64]) -> impl Iterator<Item = f64> {
    let mut sorted = y.to_vec();
    sorted.sort_by(f64::total_cmp);
    let sizes: Vec<f64> = sorted
        .chunk_by(|a, b| a == b)
        .map(|run| run.len() as f64)
        .collect();
    sizes.into_iter()
}

fn ranks(y: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..y.len()).collect();
    order.sort_by(|&a, &b| y[a].total_cmp(&y[b]));
    let mut ranks = vec![0.0; y.len()];
    let mut first = 0;
    for run in order.chunk_by(|&a, &b| y[a] == y[b]) {
        let mean = first as f64 + (run.len() as f64 + 1.0) / 2.0;
        for &i in run {
            ranks[i] = mean;
        }
        first += run.len();
    }
    ranks
}

fn autocorrelation(y: &[f64], lag: usize) -> f64 {
    let mean = y.iter().sum::<f64>() / y.len() as f64;
    let total: f64 = y.iter().map(|v| (v - mean).powi(2)).sum();
    if total <= 0.0 {
        return 0.0;
    }
    y.iter()
        .zip(&y[lag..])
        .map(|(a, b)| (a - mean) * (b - mean))
        .sum::<f64>()
        / total
}

/// Theil–Sen slope of `y` over `t`; `level` is the coverage of the interval.
/// `None` for fewer than two different times, lengths that differ, or values
/// that are not finite. O(n² log n).
#[must_use]
pub fn theil_sen(t: &[f64], y: &[f64], level: f64) -> Option<TheilSen> {
    if t.len() != y.len() || t.iter().chain(y).any(|v| !v.is_finite()) {
        return None;
    }
    let mut slopes = Vec::with_capacity(t.len() * t.len() / 2);
    for i in 0..t.len() {
        for j in 0..i {
            let dt = t[i] - t[j];
            if dt != 0.0 {
                slopes.push((y[i] - y[j]) / dt);
            }
        }
    }
    if slopes.is_empty() {
        return None;
    }
    slopes.sort_by(f64::total_cmp);
    let slope = median_sorted(&slopes);
    let n = y.len() as f64;
    let ties = |v: &[f64]| -> f64 { tie_sizes(v).map(|k| k * (k - 1.0) * (2.0 * k + 5.0)).sum() };
    let variance = (n * (n - 1.0) * (2.0 * n + 5.0) - ties(t) - ties(y)) / 18.0;
    let half = normal_quantile(0.5 + level / 2.0) * variance.max(0.0).sqrt();
    let pairs = slopes.len() as f64;
    let low = ((pairs - half) / 2.0).round() - 1.0;
    let high = ((pairs + half) / 2.0).round();
    let at = |k: f64| slopes[(k.max(0.0) as usize).min(slopes.len() - 1)];
    Some(TheilSen {
        slope,
        intercept: median(y) - slope * median(t),
        interval: (at(low), at(high)),
    })
}

/// Least-squares line of `y` over `t`. `None` for fewer than three points, equal
/// times only, or values that are not finite.
#[must_use]
pub fn least_squares(t: &[f64], y: &[f64]) -> Option<LeastSquares> {
    let n = t.len();
    if n < 3 || n != y.len() || t.iter().chain(y).any(|v| !v.is_finite()) {
        return None;
    }
    let (mt, my) = (mean(t), mean(y));
    let (mut tt, mut ty) = (0.0, 0.0);
    for (a, b) in t.iter().zip(y) {
        tt += (a - mt) * (a - mt);
        ty += (a - mt) * (b - my);
    }
    if tt <= 0.0 {
        return None;
    }
    let slope = ty / tt;
    let intercept = my - slope * mt;
    let sse: f64 = t
        .iter()
        .zip(y)
        .map(|(a, b)| (b - intercept - slope * a).powi(2))
        .sum();
    Some(LeastSquares {
        slope,
        intercept,
        slope_error: (sse / (n as f64 - 2.0) / tt).sqrt(),
        sse,
    })
}

/// Arithmetic mean; 0 of nothing.
#[must_use]
pub fn mean(y: &[f64]) -> f64 {
    if y.is_empty() {
        0.0
    } else {
        y.iter().sum::<f64>() / y.len() as f64
    }
}

/// Median; 0 of nothing.
#[must_use]
pub fn median(y: &[f64]) -> f64 {
    let mut sorted = y.to_vec();
    sorted.sort_by(f64::total_cmp);
    median_sorted(&sorted)
}

/// Median absolute deviation from the median, times 1.4826 (the standard
/// deviation where the values are normal); 0 of nothing.
#[must_use]
pub fn robust_deviation(y: &[f64]) -> f64 {
    let centre = median(y);
    let away: Vec<f64> = y.iter().map(|v| (v - centre).abs()).collect();
    1.4826 * median(&away)
}

fn median_sorted(sorted: &[f64]) -> f64 {
    let n = sorted.len();
    match n {
        0 => 0.0,
        _ if n % 2 == 1 => sorted[n / 2],
        _ => 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const Y: [f64; 20] = [
        3.0, 3.5, 3.1, 4.4, 4.9, 4.4, 5.8, 6.1, 6.0, 5.2, 5.5, 6.9, 7.7, 7.4, 8.1, 9.0, 8.8, 8.8,
        9.9, 9.1,
    ];

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-9 * b.abs().max(1e-9), "{a} is not {b}");
    }

    #[test]
    fn as_pymannkendall_1_4_3() {
        let plain = mann_kendall(&Y).unwrap();
        close(plain.s, 162.0);
        close(plain.variance, 948.0);
        close(plain.z, 5.229036909816129);
        close(plain.tau, 0.8526315789473684);
        close(plain.p_two_sided(), 1.7039534783158672e-07);
        let corrected = hamed_rao(&Y, 0.05, 19).unwrap();
        close(corrected.variance, 948.0);
        close(corrected.z, 5.229036909816129);
        let one = hamed_rao(&WAVY, 0.05, 29).unwrap();
        close(one.variance, 8756.743846292413);
        close(one.z, 0.7266706002331371);
    }

    /// 6·sin(i/4) + i/3 for i in 0..30, rounded to 2 digits.
    const WAVY: [f64; 30] = [
        0.0, 1.82, 3.54, 5.09, 6.38, 7.36, 7.98, 8.24, 8.12, 7.67, 6.92, 5.96, 4.85, 3.68, 2.56,
        1.57, 0.79, 0.3, 0.13, 0.34, 0.91, 1.85, 3.1, 4.62, 6.32, 8.13, 9.96, 11.7, 13.28, 14.61,
    ];

    #[test]
    fn as_scipy_theilslopes_and_linregress() {
        let t: Vec<f64> = (0..20).map(f64::from).collect();
        let sen = theil_sen(&t, &Y, 0.95).unwrap();
        close(sen.slope, 0.3531372549019608);
        close(sen.intercept, 2.695196078431372);
        close(sen.interval.0, 0.3000000000000001);
        close(sen.interval.1, 0.4);
        let line = least_squares(&t, &Y).unwrap();
        close(line.slope, 0.3518796992481204);
        close(line.intercept, 3.037142857142856);
        close(line.slope_error, 0.02098682877704357);
    }

    #[test]
    fn neutral_on_nothing() {
        assert!(mann_kendall(&[1.0, 2.0]).is_none());
        assert!(hamed_rao(&[1.0, f64::NAN, 2.0], 0.05, 5).is_none());
        assert!(theil_sen(&[1.0, 1.0], &[1.0, 2.0], 0.95).is_none());
        assert!(least_squares(&[2.0; 4], &[1.0; 4]).is_none());
        assert_eq!(mann_kendall(&[1.0; 9]).unwrap().z, 0.0);
        assert_eq!(median(&[]), 0.0);
    }

    proptest! {
        #[test]
        fn a_line_is_found_again(a in -9.0f64..9.0, b in -9.0f64..9.0, n in 3usize..40) {
            let t: Vec<f64> = (0..n).map(|i| i as f64 * 1.5).collect();
            let y: Vec<f64> = t.iter().map(|x| a + b * x).collect();
            prop_assert!((theil_sen(&t, &y, 0.95).unwrap().slope - b).abs() < 1e-9);
            prop_assert!((least_squares(&t, &y).unwrap().slope - b).abs() < 1e-9);
        }

        #[test]
        fn reversed_is_opposite(y in prop::collection::vec(-50i32..50, 3..40)) {
            let y: Vec<f64> = y.into_iter().map(f64::from).collect();
            let back: Vec<f64> = y.iter().rev().copied().collect();
            let (a, b) = (mann_kendall(&y).unwrap(), mann_kendall(&back).unwrap());
            prop_assert_eq!(a.s, -b.s);
            prop_assert!((a.z + b.z).abs() < 1e-9);
            let t: Vec<f64> = (0..y.len()).map(|i| i as f64).collect();
            let sen = theil_sen(&t, &y, 0.95).unwrap();
            prop_assert!(sen.interval.0 <= sen.slope && sen.slope <= sen.interval.1);
        }
    }
}
