//! Variance-preserving schedules for vectors: `x_t = alpha(t) x_0 + sigma(t) noise`, `alpha^2 + sigma^2 = 1`.

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::random::normal;

/// A variance-preserving noise schedule. Every method clamps its time to `[0, 1]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ContinuousSchedule {
    /// `alpha = cos(pi/2 (t + offset)/(1 + offset)) / cos(pi/2 offset/(1 + offset))` (Nichol and Dhariwal, arXiv 2102.09672,
    /// eq. 17; their offset is 0.008).
    Cosine {
        /// Keeps the first steps from being too small, at least 0.
        offset: f64,
    },
    /// `beta = beta_min + t (beta_max - beta_min)`, `alpha = exp(-1/2 integral of beta)` (Song et al., arXiv 2011.13456, eq. 32).
    LinearBeta {
        /// Noise rate at time 0; usually 0.1.
        beta_min: f64,
        /// Noise rate at time 1; usually 20.
        beta_max: f64,
    },
}

impl Default for ContinuousSchedule {
    fn default() -> Self {
        Self::Cosine { offset: 0.008 }
    }
}

impl ContinuousSchedule {
    /// Share of the signal that is left at time t, in `[0, 1]`.
    pub fn alpha(self, t: f64) -> f64 {
        let t = t.clamp(0.0, 1.0);
        match self {
            Self::Cosine { offset } => {
                let quarter = std::f64::consts::FRAC_PI_2;
                let start = (quarter * offset / (1.0 + offset)).cos();
                ((quarter * (t + offset) / (1.0 + offset)).cos() / start).clamp(0.0, 1.0)
            }
            Self::LinearBeta { beta_min, beta_max } => {
                (-0.5 * (beta_min * t + 0.5 * (beta_max - beta_min) * t * t)).exp()
            }
        }
    }

    /// Standard deviation of the noise at time t: `sqrt(1 - alpha^2)`.
    pub fn sigma(self, t: f64) -> f64 {
        (1.0 - self.alpha(t).powi(2)).max(0.0).sqrt()
    }

    /// `ln(alpha^2 / sigma^2)`; `+inf` at a clean time.
    pub fn log_snr(self, t: f64) -> f64 {
        2.0 * (self.alpha(t).ln() - self.sigma(t).ln())
    }

    /// Noises a vector and returns the noised vector and the noise that was used.
    ///
    /// # Shapes
    /// `clean: [n] f32`; both results `[n] f32`.
    pub fn add_noise(self, clean: &[f32], t: f64, rng: &mut dyn Rng) -> (Vec<f32>, Vec<f32>) {
        let (alpha, sigma) = (self.alpha(t), self.sigma(t));
        let noise: Vec<f32> = clean.iter().map(|_| normal(rng) as f32).collect();
        let noised = clean.iter().zip(&noise).map(|(&x, &e)| (alpha * f64::from(x) + sigma * f64::from(e)) as f32);
        (noised.collect(), noise)
    }

    /// The v-prediction target `alpha * noise - sigma * clean` (Salimans and Ho, arXiv 2202.00512, section 4).
    pub fn velocity(self, clean: &[f32], noise: &[f32], t: f64) -> Vec<f32> {
        let (alpha, sigma) = (self.alpha(t), self.sigma(t));
        clean.iter().zip(noise).map(|(&x, &e)| (alpha * f64::from(e) - sigma * f64::from(x)) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::seeded;

    #[test]
    fn values_equal_the_closed_forms() {
        let plain = ContinuousSchedule::Cosine { offset: 0.0 };
        assert!((plain.alpha(0.5) - std::f64::consts::FRAC_1_SQRT_2).abs() < 1e-6);
        assert!((plain.sigma(1.0 / 3.0) - 0.5).abs() < 1e-6);
        assert!(plain.alpha(1.0).abs() < 1e-6);
        // exp(-(0.1 * 0.5 + 0.5 * 19.9 * 0.25) / 2) = exp(-1.26875)
        let linear = ContinuousSchedule::LinearBeta { beta_min: 0.1, beta_max: 20.0 };
        assert!((linear.alpha(0.5) - (-1.268_75_f64).exp()).abs() < 1e-6);
        for schedule in [plain, linear, ContinuousSchedule::default()] {
            assert!((schedule.alpha(0.0) - 1.0).abs() < 1e-9);
            for i in 1..10 {
                let t = f64::from(i) / 10.0;
                assert!((schedule.alpha(t).powi(2) + schedule.sigma(t).powi(2) - 1.0).abs() < 1e-9);
                assert!(schedule.log_snr(t) < schedule.log_snr(t - 0.05));
            }
        }
    }

    #[test]
    fn noised_vectors_have_the_mean_and_variance_of_the_schedule() {
        let schedule = ContinuousSchedule::default();
        let (t, n) = (0.4, 50_000);
        let (noised, noise) = schedule.add_noise(&vec![2.0; n], t, &mut seeded(3));
        let mean = noised.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let variance = noised.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n as f64;
        let sigma = schedule.sigma(t);
        // Four standard errors of each estimate.
        assert!((mean - 2.0 * schedule.alpha(t)).abs() < 4.0 * sigma / (n as f64).sqrt());
        assert!((variance / sigma.powi(2) - 1.0).abs() < 4.0 * (2.0 / n as f64).sqrt());
        // The clean signal comes back from the velocity: x0 = alpha x_t - sigma v.
        let velocity = schedule.velocity(&vec![2.0; n], &noise, t);
        let back = schedule.alpha(t) * f64::from(noised[0]) - sigma * f64::from(velocity[0]);
        assert!((back - 2.0).abs() < 1e-5);
    }
}
