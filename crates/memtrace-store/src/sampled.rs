//! Undoes the scaling of Go's heap profile.
//!
//! The Go runtime samples allocations (one in 512 KiB by default), counts what it
//! sampled, and scales the counts up when it writes a profile: a row with objects
//! of `size` bytes and `n` samples shows `n·k` objects and `n·size·k` bytes with
//! `k = 1 / (1 − e^(−size/rate))`, both cut to integers. Four large, noisy numbers
//! of a row are thus two small counts. They are stored instead wherever scaling
//! them again gives back exactly the numbers of the profile, and nowhere else.
//!
//! The exponential is computed here, from operations that IEEE 754 defines to the
//! last bit, so that a store reads the same on every machine. Go's own may differ
//! in the last bit, which large counters show; [`Counts::step`] says by how much.

/// A row of a Go heap profile before scaling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Bytes of one object.
    pub(crate) size: u64,
    /// How the exponential must be rounded: 0 as computed here, 1 one place down, 2 one up.
    pub(crate) step: u8,
    /// Sampled allocations.
    pub(crate) alloc: u64,
    /// Sampled allocations not yet freed.
    pub(crate) live: u64,
}

/// Sampled counts above this are not looked for: f64 holds them exactly below.
const LIMIT: u64 = 1 << 50;

impl Counts {
    /// The counts that scale to exactly `values` (allocated objects and bytes,
    /// objects and bytes in use). `first` is the step to try first.
    pub(crate) fn find(values: &[i64], size: u64, rate: u64, first: u8) -> Option<Self> {
        let &[alloc_n, alloc_b, live_n, live_b] = values else {
            return None;
        };
        if size == 0 || rate == 0 || size >= LIMIT {
            return None;
        }
        let steps = [first, 0, 1, 2];
        steps.into_iter().find_map(|step| {
            let k = scale(size, rate, step)?;
            let alloc = invert(alloc_n, alloc_b, size, k)?;
            let live = invert(live_n, live_b, size, k)?;
            Some(Self {
                size,
                step,
                alloc,
                live,
            })
        })
    }

    /// The four values of the profile.
    pub(crate) fn values(self, rate: u64) -> [i64; 4] {
        let k = scale(self.size, rate, self.step).unwrap_or(0.0);
        let (a, b) = apply(self.alloc, self.size, k);
        let (c, d) = apply(self.live, self.size, k);
        [a, b, c, d]
    }
}

fn scale(size: u64, rate: u64, step: u8) -> Option<f64> {
    if rate <= 1 {
        return (step == 0).then_some(1.0);
    }
    let e = exp_neg(size as f64 / rate as f64);
    let e = match step {
        0 => e,
        1 => e.next_down(),
        _ => e.next_up(),
    };
    let k = 1.0 / (1.0 - e);
    k.is_finite().then_some(k)
}

fn apply(n: u64, size: u64, k: f64) -> (i64, i64) {
    // A cast from float to integer saturates; Go's values are in range.
    (
        (n as f64 * k) as i64,
        (n.saturating_mul(size) as f64 * k) as i64,
    )
}

fn invert(objects: i64, bytes: i64, size: u64, k: f64) -> Option<u64> {
    if objects == 0 && bytes == 0 {
        return Some(0);
    }
    if objects <= 0 || bytes <= 0 {
        return None;
    }
    let near = (bytes as f64 / (size as f64 * k)).round();
    if !(near >= 0.0 && near < LIMIT as f64) {
        return None;
    }
    let near = near as u64;
    [near, near + 1, near.saturating_sub(1)]
        .into_iter()
        .find(|&n| n > 0 && apply(n, size, k) == (objects, bytes))
}

/// e^(−x) for x ≥ 0, to about half a unit in the last place.
fn exp_neg(x: f64) -> f64 {
    // ln 2 in two parts: the first has its low bits zero, so that k·HI is exact.
    const HI: f64 = 0.693_147_180_369_123_8;
    const LO: f64 = 1.908_214_929_270_587_7e-10;
    if !(0.0..=700.0).contains(&x) {
        return 0.0;
    }
    let k = (x * std::f64::consts::LOG2_E + 0.5).floor();
    let r = -(x - k * HI) + k * LO;
    // Taylor series; |r| ≤ 0.35, so the 16th term is below 1e-20.
    let mut sum = 0.0;
    for i in (2..=16).rev() {
        sum = (sum + 1.0) * r / f64::from(i);
    }
    // e^r = 1 + (r + r·sum)
    let e = 1.0 + (r + r * sum);
    let exponent = (1023 - k as i64) as u64;
    e * f64::from_bits(exponent << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Go's formula with the platform's exponential.
    fn go(n: u64, size: u64, rate: u64) -> (i64, i64) {
        let k = 1.0 / (1.0 - (-(size as f64) / rate as f64).exp());
        ((n as f64 * k) as i64, ((n * size) as f64 * k) as i64)
    }

    #[test]
    fn exponential_agrees_with_the_platform() {
        for i in 0..200_000 {
            let x = f64::from(i) * 0.000_37;
            let (a, b) = (exp_neg(x), (-x).exp());
            assert!((a - b).abs() <= b * 3e-16, "{x}: {a:e} {b:e}");
        }
        assert_eq!(exp_neg(1e9), 0.0);
        assert_eq!(exp_neg(f64::NAN), 0.0);
    }

    #[test]
    fn finds_the_counts_of_go() {
        let rate = 512 * 1024;
        let mut found = 0;
        let mut all = 0;
        for size in [
            8,
            16,
            24,
            48,
            64,
            112,
            512,
            1024,
            8192,
            65536,
            524_288,
            1 << 25,
        ] {
            for n in [1, 2, 3, 7, 100, 12_345, 1_000_000, 40_000_000] {
                let (a, b) = go(n, size, rate);
                let (c, d) = go(n / 3, size, rate);
                let values = [a, b, c, d];
                all += 1;
                if let Some(counts) = Counts::find(&values, size, rate, 0) {
                    found += 1;
                    assert_eq!(counts.values(rate), values);
                }
            }
        }
        assert!(found * 10 >= all * 9, "{found} of {all}");
    }

    #[test]
    fn refuses_what_is_no_scaled_count() {
        for values in [
            [1, 1, 1, 1],
            [-5, 16, 0, 0],
            [i64::MAX, i64::MAX, 0, 0],
            [0, 5, 0, 0],
        ] {
            assert_eq!(Counts::find(&values, 16, 524_288, 0), None);
        }
        assert_eq!(Counts::find(&[1, 16, 1, 16], 0, 524_288, 0), None);
        assert_eq!(Counts::find(&[1, 16], 16, 524_288, 0), None);
    }
}
