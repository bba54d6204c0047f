//! Births before the watch began: not seen, but not wholly unknown.

use super::window::BLOCKS;

/// How a stack is taken to have allocated before the first point: along the line
/// its births follow in the window, drawn backwards, but never faster than now,
/// no more than its counter held at the first point, and nothing before the
/// process began. To take too few makes load seem to rise, which is the safe side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before {
    /// Births per second just before the first point.
    rate: f64,
    /// How much lower they were a second earlier.
    slope: f64,
    /// Seconds before the first point at which births began.
    reach: f64,
}

impl Before {
    /// From birth rates of the blocks of a window, `block` seconds each, the first
    /// of which begins `beyond` seconds after the first point of the axis; `base`
    /// births in all were counted before, within `age` seconds where known.
    pub(super) fn new(
        rates: &[f64; BLOCKS],
        block: f64,
        beyond: f64,
        base: f64,
        age: Option<f64>,
    ) -> Self {
        let mean = rates.iter().sum::<f64>() / BLOCKS as f64;
        let centre = (BLOCKS as f64 - 1.0) / 2.0;
        let (mut tt, mut ty) = (0.0, 0.0);
        for (i, r) in rates.iter().enumerate() {
            let t = i as f64 - centre;
            tt += t * t;
            ty += t * (r - mean);
        }
        let slope = (ty / tt / block.max(1e-9)).max(0.0);
        let mut rate = (mean - slope * (block * BLOCKS as f64 / 2.0 + beyond)).max(0.0);
        let mut reach = f64::INFINITY;
        if let Some(age) = age {
            rate = rate.min(base / age.max(1e-9));
            reach = age;
        }
        // Where rate·u − slope·u²/2 comes to all of them, or ends.
        let under = rate * rate - 2.0 * slope * base;
        let all = if under > 0.0 {
            2.0 * base / (rate + under.sqrt())
        } else {
            rate / slope.max(1e-12)
        };
        Self {
            rate,
            slope,
            reach: reach.min(all),
        }
    }

    /// Integral over the births still to come until the first point, from `seconds`
    /// before it: what ∫ births dt would be there, had it been counted from the
    /// first point backwards.
    pub(super) fn area(&self, seconds: f64) -> f64 {
        let u = seconds.min(self.reach);
        let born = u * (self.rate - 0.5 * self.slope * u);
        let area = u * u * (0.5 * self.rate - self.slope * u / 6.0);
        area + born * (seconds - u)
    }
}
