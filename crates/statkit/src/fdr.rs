//! Control of the false-discovery rate over many tests.

/// Benjamini–Hochberg adjusted p-values, in the order of `p`: rejecting all at
/// or below `q` keeps the expected share of false rejections at or below `q`,
/// for tests that are independent or positively dependent.
#[must_use]
pub fn benjamini_hochberg(p: &[f64]) -> Vec<f64> {
    adjust(p, 1.0)
}

/// Benjamini–Yekutieli adjusted p-values: as [`benjamini_hochberg`], whatever
/// the dependence between the tests.
#[must_use]
pub fn benjamini_yekutieli(p: &[f64]) -> Vec<f64> {
    adjust(p, (1..=p.len()).map(|i| 1.0 / i as f64).sum())
}

fn adjust(p: &[f64], factor: f64) -> Vec<f64> {
    let m = p.len() as f64;
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
    let mut adjusted = vec![1.0; p.len()];
    let mut least = 1.0f64;
    for (from_top, &i) in order.iter().enumerate() {
        let rank = m - from_top as f64;
        least = least.min(p[i] * m * factor / rank);
        adjusted[i] = least;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const P: [f64; 6] = [0.01, 0.04, 0.03, 0.005, 0.55, 0.2];

    fn close(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < 1e-12, "{got:?} is not {want:?}");
        }
    }

    #[test]
    fn as_scipy_stats_false_discovery_control() {
        close(
            &benjamini_hochberg(&P),
            &[0.03, 0.06, 0.06, 0.03, 0.55, 0.24],
        );
        close(
            &benjamini_yekutieli(&P),
            &[0.0735, 0.147, 0.147, 0.0735, 1.0, 0.588],
        );
        assert!(benjamini_hochberg(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn adjusted_is_larger_and_keeps_the_order(p in prop::collection::vec(0.0f64..=1.0, 1..40)) {
            let q = benjamini_hochberg(&p);
            let y = benjamini_yekutieli(&p);
            for i in 0..p.len() {
                prop_assert!(q[i] >= p[i] - 1e-15 && q[i] <= 1.0 && y[i] >= q[i] - 1e-15);
                for j in 0..p.len() {
                    prop_assert!(p[i] > p[j] || q[i] <= q[j]);
                }
            }
        }
    }
}
