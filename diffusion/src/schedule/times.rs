//! Times of a training batch, and grids of times for sampling.

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::random::{normal, uniform};

/// A time with the weight that makes a weighted mean estimate the mean under uniform times.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimeSample {
    /// The time, within the bounds that were asked for.
    pub t: f64,
    /// `1 / density(t)` relative to the uniform density; 1 for uniform times.
    pub weight: f64,
}

/// How the times of a batch are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TimeSampling {
    /// Independent uniform draws.
    Uniform,
    /// One uniform draw for the batch, spread evenly: `t_b = (u + b/B) mod 1` (VDM, arXiv 2107.00630, section 4.1). Each time is
    /// uniform on its own, and the batch covers the interval, so that the loss varies less.
    #[default]
    Stratified,
    /// Pairs `u` and `1 - u`.
    Antithetic,
    /// `t = u^exponent`: above 1 puts more times near 0. Importance-weighted.
    Power {
        /// Above 0.
        exponent: f64,
    },
    /// `t = logistic(mean + deviation * normal)` (Esser et al., arXiv 2403.03206, section 3.1): more times in the middle.
    /// Importance-weighted.
    LogitNormal {
        /// Location on the logit scale.
        mean: f64,
        /// Scale on the logit scale, above 0.
        deviation: f64,
    },
}

impl TimeSampling {
    /// Draws `count` times from `[time_min, 1]`.
    pub fn draw(self, count: usize, time_min: f64, rng: &mut dyn Rng) -> Vec<TimeSample> {
        let start = uniform(rng);
        let mut out = Vec::with_capacity(count.min(1 << 20));
        for b in 0..count {
            let (u, weight) = match self {
                Self::Uniform => (if b == 0 { start } else { uniform(rng) }, 1.0),
                Self::Stratified => ((start + b as f64 / count as f64).fract(), 1.0),
                Self::Antithetic => match out.last() {
                    Some(&TimeSample { t, .. }) if b % 2 == 1 => (1.0 - (t - time_min) / (1.0 - time_min), 1.0),
                    _ => (uniform(rng), 1.0),
                },
                Self::Power { exponent } => {
                    let t = (1.0 - uniform(rng)).powf(exponent);
                    // density = t^(1/exponent - 1) / exponent
                    (t, exponent * t.powf(1.0 - 1.0 / exponent))
                }
                Self::LogitNormal { mean, deviation } => {
                    let z = normal(rng);
                    let t = 1.0 / (1.0 + (-(mean + deviation * z)).exp());
                    let density = (-0.5 * z * z).exp() / (deviation * std::f64::consts::TAU.sqrt() * t * (1.0 - t));
                    (t, if density > 0.0 { 1.0 / density } else { 0.0 })
                }
            };
            out.push(TimeSample { t: time_min + (1.0 - time_min) * u.clamp(0.0, 1.0), weight });
        }
        out
    }
}

/// The grid of a sampler: `steps + 1` evenly spaced times from 1 down to `time_end`.
pub fn steps_down(steps: u32, time_end: f64) -> Vec<f64> {
    (0..=steps).map(|i| 1.0 + (time_end - 1.0) * f64::from(i) / f64::from(steps.max(1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::seeded;

    /// The mean of f over [0, 1] is known; each way of drawing has to estimate it.
    fn estimate(sampling: TimeSampling, batches: usize, size: usize) -> (f64, f64) {
        let mut rng = seeded(11);
        let means: Vec<f64> = (0..batches)
            .map(|_| {
                let batch = sampling.draw(size, 0.0, &mut rng);
                batch.iter().map(|s| s.weight * (1.0 - s.t).powi(2)).sum::<f64>() / size as f64
            })
            .collect();
        let mean = means.iter().sum::<f64>() / batches as f64;
        let variance = means.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / batches as f64;
        (mean, (variance / batches as f64).sqrt())
    }

    #[test]
    fn every_way_of_drawing_estimates_the_uniform_mean() {
        for sampling in [
            TimeSampling::Uniform,
            TimeSampling::Stratified,
            TimeSampling::Antithetic,
            TimeSampling::Power { exponent: 1.5 },
            TimeSampling::LogitNormal { mean: 0.0, deviation: 1.5 },
        ] {
            let (mean, error) = estimate(sampling, 4_000, 8);
            assert!((mean - 1.0 / 3.0).abs() < 4.0 * error + 1e-4, "{sampling:?}: {mean} +- {error}");
        }
    }

    #[test]
    fn stratified_and_antithetic_times_vary_less() {
        let plain = estimate(TimeSampling::Uniform, 2_000, 8).1;
        assert!(estimate(TimeSampling::Stratified, 2_000, 8).1 < 0.4 * plain);
        assert!(estimate(TimeSampling::Antithetic, 2_000, 8).1 < 0.7 * plain);
    }

    #[test]
    fn times_stay_within_their_bounds() {
        for sampling in [TimeSampling::Stratified, TimeSampling::Power { exponent: 3.0 }] {
            assert!(sampling.draw(1_000, 0.1, &mut seeded(4)).iter().all(|s| (0.1..=1.0).contains(&s.t)));
        }
        assert_eq!(steps_down(4, 0.0), vec![1.0, 0.75, 0.5, 0.25, 0.0]);
    }
}
