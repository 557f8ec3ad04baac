//! Samplers of continuous diffusion: DDPM, DDIM and annealed Langevin dynamics on plain slices, with the network injected.

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::random::normal;
use crate::schedule::ContinuousSchedule;

/// Steps of one run at most.
pub const CONTINUOUS_STEPS_MAX: u32 = 10_000;

/// Why a run failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContinuousError<E: std::error::Error + 'static> {
    /// A setting is outside its bounds.
    #[error("continuous sampler parameter {parameter} has to be {bound}")]
    Parameter {
        /// Its name.
        parameter: &'static str,
        /// What is accepted.
        bound: &'static str,
    },
    /// The network returned another number of values than it was given.
    #[error("network returned {length} values for a vector of {expected}")]
    Length {
        /// Values returned.
        length: usize,
        /// Values expected.
        expected: usize,
    },
    /// The network failed.
    #[error("network failed at time {time}")]
    Model {
        /// The time, as text.
        time: String,
        /// Why.
        #[source]
        source: E,
    },
}

/// A network: a noised vector and its time in, a prediction of the same length out.
pub type Network<'a, E> = dyn FnMut(&[f32], f64) -> Result<Vec<f32>, E> + 'a;

/// What the network predicts from a noised vector and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise.
    Noise,
    /// The velocity `alpha * noise - sigma * clean`.
    Velocity,
    /// The clean vector.
    Clean,
}

/// How a run goes from one time to the next.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ContinuousMethod {
    /// Ancestral sampling (Ho et al., arXiv 2006.11239): DDIM with eta 1.
    Ddpm,
    /// Song et al., arXiv 2010.02502, eq. 12 and 16; eta 0 is deterministic after the first draw.
    Ddim {
        /// Share of the ancestral noise, 0 to 1.
        eta: f64,
    },
    /// A deterministic step to each noise level, then Langevin steps `x + h score + sqrt(2 h) z` at it, with `h = step sigma^2` (Song and
    /// Ermon, arXiv 1907.05600, algorithm 1, and the corrector of arXiv 2011.13456).
    Langevin {
        /// Langevin steps at each level, each a network evaluation.
        corrections: u32,
        /// Step size relative to the variance of the noise, in (0, 1]; the stationary variance is off by `step / 2` of its noise part.
        step: f64,
    },
}

/// The settings of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ContinuousSampler {
    /// The noise schedule that the network was trained with.
    pub schedule: ContinuousSchedule,
    /// How steps are made.
    pub method: ContinuousMethod,
    /// What the network predicts.
    pub prediction: Prediction,
    /// Noise levels, 1 to [`CONTINUOUS_STEPS_MAX`].
    pub steps: u32,
    /// The first time, in (0, 1]: below 1 where the signal would be lost to rounding (a prediction of noise divides by alpha).
    pub time_start: f64,
}

impl ContinuousSampler {
    /// Turns noise into a sample, in place. `x` starts as standard normal noise (see [`Self::start`]); `network` maps a vector and its
    /// time to a prediction of the same length.
    ///
    /// # Shapes
    /// `x: [n] f32`.
    pub fn run<E: std::error::Error + 'static>(
        &self,
        x: &mut [f32],
        network: &mut Network<'_, E>,
        rng: &mut dyn Rng,
    ) -> Result<(), ContinuousError<E>> {
        self.check()?;
        let time = |i: u32| self.time_start * (1.0 - f64::from(i) / f64::from(self.steps));
        for i in 0..self.steps {
            let (t, s) = (time(i), time(i + 1));
            let prediction = ask(network, x, t)?;
            let eta = match self.method {
                ContinuousMethod::Ddpm => 1.0,
                ContinuousMethod::Ddim { eta } => eta,
                ContinuousMethod::Langevin { .. } => 0.0,
            };
            self.step(x, &prediction, t, s, eta, rng);
            if let ContinuousMethod::Langevin { corrections, step } = self.method {
                // At time 0 there is no noise level to be at.
                for _ in 0..if i + 1 < self.steps { corrections } else { 0 } {
                    let prediction = ask(network, x, s)?;
                    self.langevin(x, &prediction, s, step, rng);
                }
            }
        }
        Ok(())
    }

    /// Standard normal noise of `length` values.
    pub fn start(length: usize, rng: &mut dyn Rng) -> Vec<f32> {
        (0..length).map(|_| normal(rng) as f32).collect()
    }

    /// One DDIM step from time t to an earlier s, in place:
    /// `x_s = alpha_s x0 + sqrt(sigma_s^2 - c^2) noise + c z`, `c = eta (sigma_s / sigma_t) sqrt(1 - alpha_t^2 / alpha_s^2)`.
    pub fn step(&self, x: &mut [f32], prediction: &[f32], t: f64, s: f64, eta: f64, rng: &mut dyn Rng) {
        let (alpha_t, sigma_t) = (self.schedule.alpha(t), self.schedule.sigma(t));
        let (alpha_s, sigma_s) = (self.schedule.alpha(s), self.schedule.sigma(s));
        let fresh = if sigma_t > 0.0 && alpha_s > 0.0 {
            eta * sigma_s / sigma_t * (1.0 - (alpha_t / alpha_s).powi(2)).max(0.0).sqrt()
        } else {
            0.0
        };
        let kept = (sigma_s * sigma_s - fresh * fresh).max(0.0).sqrt();
        for (x, &p) in x.iter_mut().zip(prediction) {
            let (clean, noise) = self.split(f64::from(*x), f64::from(p), alpha_t, sigma_t);
            let z = if fresh > 0.0 { normal(rng) } else { 0.0 };
            *x = (alpha_s * clean + kept * noise + fresh * z) as f32;
        }
    }

    /// One Langevin step at time t, in place; the score is `-noise / sigma`.
    pub fn langevin(&self, x: &mut [f32], prediction: &[f32], t: f64, step: f64, rng: &mut dyn Rng) {
        let (alpha, sigma) = (self.schedule.alpha(t), self.schedule.sigma(t));
        let h = step * sigma * sigma;
        for (x, &p) in x.iter_mut().zip(prediction) {
            let (_, noise) = self.split(f64::from(*x), f64::from(p), alpha, sigma);
            let score = if sigma > 0.0 { -noise / sigma } else { 0.0 };
            *x = (f64::from(*x) + h * score + (2.0 * h).sqrt() * normal(rng)) as f32;
        }
    }

    /// The clean value and the noise that a prediction implies.
    fn split(&self, x: f64, prediction: f64, alpha: f64, sigma: f64) -> (f64, f64) {
        match self.prediction {
            Prediction::Noise => ((x - sigma * prediction) / alpha.max(1e-8), prediction),
            Prediction::Velocity => (alpha * x - sigma * prediction, sigma * x + alpha * prediction),
            Prediction::Clean => (prediction, if sigma > 0.0 { (x - alpha * prediction) / sigma } else { 0.0 }),
        }
    }

    fn check<E: std::error::Error + 'static>(&self) -> Result<(), ContinuousError<E>> {
        let bad = |parameter, bound| Err(ContinuousError::Parameter { parameter, bound });
        if self.steps == 0 || self.steps > CONTINUOUS_STEPS_MAX {
            return bad("steps", "1 to 10000");
        }
        if !(self.time_start > 0.0 && self.time_start <= 1.0) {
            return bad("time_start", "above 0 and at most 1");
        }
        match self.method {
            ContinuousMethod::Ddim { eta } if !(0.0..=1.0).contains(&eta) => bad("eta", "0 to 1"),
            ContinuousMethod::Langevin { step, .. } if !(step > 0.0 && step <= 1.0) => {
                bad("step", "above 0 and at most 1")
            }
            ContinuousMethod::Langevin { corrections, .. } if corrections > 1_000 => bad("corrections", "at most 1000"),
            _ => Ok(()),
        }
    }
}

fn ask<E: std::error::Error + 'static>(
    network: &mut Network<'_, E>,
    x: &[f32],
    t: f64,
) -> Result<Vec<f32>, ContinuousError<E>> {
    let prediction = network(x, t).map_err(|source| ContinuousError::Model { time: format!("{t:.4}"), source })?;
    if prediction.len() == x.len() {
        Ok(prediction)
    } else {
        Err(ContinuousError::Length { length: prediction.len(), expected: x.len() })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::random::seeded;

    /// Data are normal with this mean and standard deviation, so the best prediction is known in closed form.
    const MEAN: f64 = 1.5;
    const DEVIATION: f64 = 0.4;

    fn ideal(sampler: ContinuousSampler) -> impl FnMut(&[f32], f64) -> Result<Vec<f32>, Infallible> {
        move |x, t| {
            let (alpha, sigma) = (sampler.schedule.alpha(t), sampler.schedule.sigma(t));
            let variance = (alpha * DEVIATION).powi(2) + sigma * sigma;
            Ok(x.iter()
                .map(|&x| {
                    let x = f64::from(x);
                    let noise = sigma * (x - alpha * MEAN) / variance;
                    let clean = MEAN + alpha * DEVIATION * DEVIATION * (x - alpha * MEAN) / variance;
                    (match sampler.prediction {
                        Prediction::Noise => noise,
                        Prediction::Clean => clean,
                        Prediction::Velocity => alpha * noise - sigma * clean,
                    }) as f32
                })
                .collect())
        }
    }

    fn moments(sampler: ContinuousSampler) -> (f64, f64) {
        let n = 20_000;
        let mut rng = seeded(6);
        let mut x = ContinuousSampler::start(n, &mut rng);
        sampler.run(&mut x, &mut ideal(sampler), &mut rng).unwrap();
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n as f64;
        (mean, variance.sqrt())
    }

    fn sampler(method: ContinuousMethod, prediction: Prediction, steps: u32) -> ContinuousSampler {
        let schedule = ContinuousSchedule::Cosine { offset: 0.008 };
        ContinuousSampler { schedule, method, prediction, steps, time_start: 0.999 }
    }

    /// The moments that DDIM must have after its steps: each is linear in x, with coefficients known from the ideal prediction.
    fn predicted(sampler: ContinuousSampler, eta: f64) -> (f64, f64) {
        let (mut mean, mut variance) = (0.0, 1.0);
        let time = |i: u32| sampler.time_start * (1.0 - f64::from(i) / f64::from(sampler.steps));
        for i in 0..sampler.steps {
            let (a, c) = (sampler.schedule.alpha(time(i)), sampler.schedule.sigma(time(i)));
            let (b, d) = (sampler.schedule.alpha(time(i + 1)), sampler.schedule.sigma(time(i + 1)));
            let spread = (a * DEVIATION).powi(2) + c * c;
            let fresh = eta * d / c * (1.0 - (a / b).powi(2)).sqrt();
            let kept = (d * d - fresh * fresh).sqrt();
            let slope = b * a * DEVIATION * DEVIATION / spread + kept * c / spread;
            mean = b * MEAN + slope * (mean - a * MEAN);
            variance = slope * slope * variance + fresh * fresh;
        }
        (mean, variance.sqrt())
    }

    #[test]
    fn ddim_and_ddpm_have_the_moments_of_the_closed_form() {
        for prediction in [Prediction::Noise, Prediction::Velocity, Prediction::Clean] {
            for (method, eta) in [
                (ContinuousMethod::Ddim { eta: 0.0 }, 0.0),
                (ContinuousMethod::Ddim { eta: 0.5 }, 0.5),
                (ContinuousMethod::Ddpm, 1.0),
            ] {
                for steps in [3, 40] {
                    let sampler = sampler(method, prediction, steps);
                    let ((mean, deviation), (m, d)) = (moments(sampler), predicted(sampler, eta));
                    // Four standard errors of 20,000 samples.
                    assert!((mean - m).abs() < 4.0 * d / 141.0 + 1e-3, "{sampler:?}: mean {mean}, exact {m}");
                    assert!((deviation / d - 1.0).abs() < 4.0 / 200.0, "{sampler:?}: deviation {deviation}, exact {d}");
                }
            }
        }
    }

    #[test]
    fn many_steps_reach_the_data() {
        for method in [
            ContinuousMethod::Ddpm,
            ContinuousMethod::Ddim { eta: 0.0 },
            ContinuousMethod::Langevin { corrections: 2, step: 0.1 },
        ] {
            let (mean, deviation) = moments(sampler(method, Prediction::Velocity, 150));
            assert!((mean - MEAN).abs() < 0.02, "{method:?}: {mean}");
            assert!((deviation / DEVIATION - 1.0).abs() < 0.05, "{method:?}: {deviation}");
        }
    }

    #[test]
    fn langevin_steps_hold_the_level_that_they_are_at() {
        let sampler = sampler(ContinuousMethod::Ddpm, Prediction::Noise, 1);
        let (t, step, n) = (0.5, 0.05, 20_000);
        let mut rng = seeded(7);
        // Far from the level's distribution at first.
        let mut x = vec![5.0_f32; n];
        for _ in 0..300 {
            let prediction = ideal(sampler)(&x, t).unwrap();
            sampler.langevin(&mut x, &prediction, t, step, &mut rng);
        }
        let (alpha, sigma) = (sampler.schedule.alpha(t), sampler.schedule.sigma(t));
        let spread = (alpha * DEVIATION).powi(2) + sigma * sigma;
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n as f64;
        // The discretised chain is linear: its stationary variance is spread / (1 - h / (2 spread)).
        let h = step * sigma * sigma;
        let exact = spread / (1.0 - h / (2.0 * spread));
        assert!((mean - alpha * MEAN).abs() < 0.03, "{mean}");
        assert!((variance / exact - 1.0).abs() < 0.04, "{variance} against {exact}");
    }

    #[test]
    fn a_seed_fixes_a_run_and_bad_settings_and_networks_are_errors() {
        let good = sampler(ContinuousMethod::Ddpm, Prediction::Noise, 5);
        let run = || {
            let mut rng = seeded(1);
            let mut x = ContinuousSampler::start(4, &mut rng);
            good.run(&mut x, &mut ideal(good), &mut rng).unwrap();
            x
        };
        assert_eq!(run(), run());
        let mut rng = seeded(1);
        let mut short = |_: &[f32], _: f64| Ok::<_, Infallible>(vec![0.0]);
        assert!(matches!(good.run(&mut [0.0; 2], &mut short, &mut rng), Err(ContinuousError::Length { .. })));
        for bad in [
            ContinuousSampler { steps: 0, ..good },
            ContinuousSampler { time_start: 1.5, ..good },
            ContinuousSampler { method: ContinuousMethod::Ddim { eta: 2.0 }, ..good },
            ContinuousSampler { method: ContinuousMethod::Langevin { corrections: 1, step: 0.0 }, ..good },
        ] {
            assert!(bad.run(&mut [0.0; 2], &mut ideal(good), &mut rng).is_err());
        }
        let mut failing = |_: &[f32], _: f64| Err(std::fmt::Error);
        assert!(matches!(good.run(&mut [0.0; 2], &mut failing, &mut rng), Err(ContinuousError::Model { .. })));
    }
}
