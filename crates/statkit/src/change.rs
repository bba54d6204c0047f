//! When something changed: slope of a level, rate of events.

/// A continuous line with one bend: `a + before·t` up to `at`, then slope `after`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hinge {
    /// Where the slope changes.
    pub at: f64,
    /// Slope before.
    pub before: f64,
    /// Slope after.
    pub after: f64,
    /// Value at the bend.
    pub level: f64,
    /// Interval of `at` from the likelihood profile.
    pub interval: (f64, f64),
    /// Sum of squared residuals.
    pub sse: f64,
    /// The same for one straight line without a bend.
    pub line_sse: f64,
}

/// Fits a [`Hinge`] to `y` over `t` (rising) by least squares. The interval holds
/// every bend whose fit is worse by a factor of at most `1 + chi2/freedom` in
/// squared error: `chi2` 3.84 for 95 %, `freedom` the number of independent
/// points (fewer than there are when neighbours resemble each other). `None` for
/// fewer than five points or values that are not finite. O(n).
#[must_use]
pub fn hinge(t: &[f64], y: &[f64], chi2: f64, freedom: f64) -> Option<Hinge> {
    let n = t.len();
    if n < 5 || n != y.len() || t.iter().chain(y).any(|v| !v.is_finite()) {
        return None;
    }
    let (start, span) = (t[0], t[n - 1] - t[0]);
    if span <= 0.0 {
        return None;
    }
    let base = crate::trend::mean(y);
    let profile = Profile::new(
        t.iter().map(|v| (v - start) / span).collect(),
        y.iter().map(|v| v - base).collect(),
    );
    let line_sse = profile.line_sse();
    // A bend needs two points on each side; between two points the error is
    // smooth, so a few places each are enough.
    const PARTS: usize = 4;
    let mut tried: Vec<(f64, Fit)> = Vec::with_capacity(PARTS * n);
    for i in 1..n - 2 {
        let (a, b) = (profile.t[i], profile.t[i + 1]);
        for part in 0..PARTS {
            let k = a + (b - a) * part as f64 / PARTS as f64;
            if let Some(fit) = profile.fit(k, i) {
                tried.push((k, fit));
            }
        }
    }
    let &(k, best) = tried.iter().min_by(|a, b| a.1.sse.total_cmp(&b.1.sse))?;
    let limit = best.sse * (1.0 + chi2 / freedom.max(1.0)) + 1e-12 * line_sse;
    let good = || {
        tried
            .iter()
            .filter(|(_, f)| f.sse <= limit)
            .map(|(k, _)| *k)
    };
    let low = good().fold(k, f64::min);
    let high = good().fold(k, f64::max);
    let back = |k: f64| start + k * span;
    Some(Hinge {
        at: back(k),
        before: best.slope / span,
        after: (best.slope + best.bend) / span,
        level: base + best.intercept + best.slope * k,
        interval: (back(low), back(high)),
        sse: best.sse,
        line_sse,
    })
}

#[derive(Clone, Copy)]
struct Fit {
    intercept: f64,
    slope: f64,
    bend: f64,
    sse: f64,
}

/// Points in unit time with the suffix sums that make each fit O(1).
struct Profile {
    t: Vec<f64>,
    /// Sums over the points from index i on: 1, t, t², y, t·y.
    rest: Vec<[f64; 5]>,
    yy: f64,
}

impl Profile {
    fn new(t: Vec<f64>, y: Vec<f64>) -> Self {
        let mut rest = vec![[0.0; 5]; t.len() + 1];
        for i in (0..t.len()).rev() {
            let s = rest[i + 1];
            rest[i] = [
                s[0] + 1.0,
                s[1] + t[i],
                s[2] + t[i] * t[i],
                s[3] + y[i],
                s[4] + t[i] * y[i],
            ];
        }
        let yy = y.iter().map(|v| v * v).sum();
        Self { t, rest, yy }
    }

    fn line_sse(&self) -> f64 {
        let [n, t, tt, y, ty] = self.rest[0];
        let det = n * tt - t * t;
        let slope = if det > 0.0 {
            (n * ty - t * y) / det
        } else {
            0.0
        };
        (self.yy - (y - slope * t) / n * y - slope * ty).max(0.0)
    }

    /// Least squares with the bend at `k`; points after index `i` lie beyond it.
    fn fit(&self, k: f64, i: usize) -> Option<Fit> {
        let [n, t, tt, y, ty] = self.rest[0];
        let [m, u, uu, v, uv] = self.rest[i + 1];
        // h = max(0, t − k)
        let h = u - k * m;
        let th = uu - k * u;
        let hh = uu - 2.0 * k * u + k * k * m;
        let hy = uv - k * v;
        let [intercept, slope, bend] = solve3([[n, t, h], [t, tt, th], [h, th, hh]], [y, ty, hy])?;
        let sse = (self.yy - intercept * y - slope * ty - bend * hy).max(0.0);
        Some(Fit {
            intercept,
            slope,
            bend,
            sse,
        })
    }
}

/// Solves a symmetric positive 3 × 3 system; `None` when it is singular.
fn solve3(a: [[f64; 3]; 3], b: [f64; 3]) -> Option<[f64; 3]> {
    let det = |m: [[f64; 3]; 3]| {
        m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1])
            - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
            + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
    };
    let d = det(a);
    if d.abs() <= 1e-12 * (a[0][0] * a[1][1] * a[2][2]).abs() {
        return None;
    }
    let mut x = [0.0; 3];
    for (c, value) in x.iter_mut().enumerate() {
        let mut m = a;
        for r in 0..3 {
            m[r][c] = b[r];
        }
        *value = det(m) / d;
    }
    Some(x)
}

/// A change in the rate of events.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateChange {
    /// Index of the last time at which the old rate still held.
    pub index: usize,
    /// Events per unit of time before.
    pub before: f64,
    /// Events per unit of time after.
    pub after: f64,
    /// Index range of the change, from the likelihood profile.
    pub interval: (usize, usize),
    /// Gain in log-likelihood over one constant rate.
    pub gain: f64,
}

/// Where the rate of a Poisson process changed, from its cumulative `count` at
/// rising `times`. The interval holds every place whose log-likelihood is within
/// `drop` of the best (1.92 for 95 %). Counts that fall are taken as equal.
/// `None` for fewer than three times or no event. O(n).
#[must_use]
pub fn rate_change(times: &[f64], count: &[f64], drop: f64) -> Option<RateChange> {
    let n = times.len();
    if n < 3 || n != count.len() || times.iter().chain(count).any(|v| !v.is_finite()) {
        return None;
    }
    let (first, last) = (count[0], count[n - 1]);
    let span = times[n - 1] - times[0];
    if span <= 0.0 || last <= first {
        return None;
    }
    let part = |events: f64, time: f64| {
        if events <= 0.0 || time <= 0.0 {
            0.0
        } else {
            events * (events / time).ln()
        }
    };
    let at = |i: usize| {
        let (time, events) = (
            times[i] - times[0],
            (count[i] - first).clamp(0.0, last - first),
        );
        part(events, time) + part(last - first - events, span - time)
    };
    let likelihood: Vec<f64> = (0..n - 1).map(at).collect();
    let best = (0..n - 1).max_by(|&a, &b| likelihood[a].total_cmp(&likelihood[b]))?;
    let limit = likelihood[best] - drop;
    let low = likelihood.iter().position(|&l| l >= limit).unwrap_or(best);
    let high = likelihood.iter().rposition(|&l| l >= limit).unwrap_or(best);
    let time = times[best] - times[0];
    let events = (count[best] - first).clamp(0.0, last - first);
    Some(RateChange {
        index: best,
        before: if time > 0.0 { events / time } else { 0.0 },
        after: (last - first - events) / (span - time),
        interval: (low, high),
        gain: likelihood[best] - part(last - first, span),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn near_the_change_point_that_ruptures_finds() {
        // ruptures 1.1.10, Dynp(model="clinear", min_size=2, jump=1).predict(n_bkps=1)
        // (a spline through the data points) on these 40 values with a bend at 25 gives 27.
        let y = [
            9.36, 9.04, 10.0, 10.64, 11.31, 10.59, 10.16, 10.07, 11.4, 12.21, 11.22, 10.11, 10.43,
            12.58, 11.56, 10.11, 11.53, 10.77, 11.3, 11.51, 11.43, 12.54, 12.15, 11.83, 12.73,
            13.16, 13.19, 16.29, 17.72, 20.36, 21.47, 24.52, 26.47, 28.26, 29.66, 32.18, 33.63,
            35.42, 38.68, 39.61,
        ];
        let t: Vec<f64> = (0..40).map(f64::from).collect();
        let found = hinge(&t, &y, 3.84, 36.0).unwrap();
        assert!((found.at - 27.0).abs() <= 2.0, "{found:?}");
        assert!(found.interval.0 <= 25.0 && 25.0 <= found.interval.1);
        assert!((found.after - 2.0).abs() < 0.3);
        assert!(found.sse < 0.1 * found.line_sse);
    }

    #[test]
    fn a_rate_that_jumps() {
        let t: Vec<f64> = (0..60).map(f64::from).collect();
        let count: Vec<f64> = t.iter().map(|&x| (x - 40.0).max(0.0) * 7.0).collect();
        let found = rate_change(&t, &count, 1.92).unwrap();
        assert_eq!(found.index, 40);
        assert_eq!(found.interval, (40, 40));
        assert!((found.after - 7.0).abs() < 1e-9 && found.before == 0.0);
        assert!(rate_change(&t, &[1.0; 60], 1.92).is_none());
    }

    #[test]
    fn neutral_on_nothing() {
        assert!(hinge(&[1.0; 9], &[1.0; 9], 3.84, 5.0).is_none());
        assert!(hinge(&[1.0, 2.0], &[1.0, 2.0], 3.84, 5.0).is_none());
        let flat = hinge(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &[2.0; 6], 3.84, 5.0).unwrap();
        assert_eq!((flat.before, flat.after), (0.0, 0.0));
    }

    proptest! {
        #[test]
        fn an_exact_bend_is_found(k in 5usize..35, a in -5.0f64..5.0, bend in 0.5f64..9.0, base in -1e6f64..1e6) {
            let t: Vec<f64> = (0..40).map(|i| 1e9 + 30.0 * i as f64).collect();
            let bend_at = t[k];
            let y: Vec<f64> = t.iter().map(|&x| base + a * (x - t[0]) + bend * (x - bend_at).max(0.0)).collect();
            let found = hinge(&t, &y, 3.84, 10.0).unwrap();
            prop_assert!((found.at - bend_at).abs() < 1.0, "{found:?}");
            prop_assert!((found.after - a - bend).abs() < 1e-3);
        }

        #[test]
        fn never_panics(t in prop::collection::vec(-10.0f64..10.0, 0..20), y in prop::collection::vec(-10.0f64..10.0, 0..20)) {
            let mut t = t;
            t.sort_by(f64::total_cmp);
            let _ = hinge(&t, &y, 3.84, 5.0);
            let _ = rate_change(&t, &y, 1.92);
        }
    }
}
