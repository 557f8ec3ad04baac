//! A world small enough to know exactly: a Markov chain over a few tokens, with the exact posterior of masked positions.
//!
//! A "network" that answers with these posteriors is perfect, so whatever a sampler or an estimate gets wrong is its own fault. Used by
//! the tests here and by those of the engine.

use rand::Rng;

use crate::random::categorical;

/// A stationary-transition Markov chain over tokens `0..vocab`. The token `vocab` is the mask.
#[derive(Debug, Clone, PartialEq)]
pub struct MarkovOracle {
    initial: Vec<f64>,
    transition: Vec<Vec<f64>>,
}

impl MarkovOracle {
    /// A chain with random positive probabilities, far enough from uniform for errors to show.
    pub fn random(vocab: usize, rng: &mut dyn Rng) -> Self {
        let mut distribution = || {
            let weights: Vec<f64> = (0..vocab).map(|_| (2.0 * crate::random::normal(rng)).exp() + 0.02).collect();
            let sum: f64 = weights.iter().sum();
            weights.into_iter().map(|weight| weight / sum).collect::<Vec<f64>>()
        };
        Self { initial: distribution(), transition: (0..vocab).map(|_| distribution()).collect() }
    }

    /// Tokens without the mask.
    pub fn vocab(&self) -> usize {
        self.initial.len()
    }

    /// The mask token: one past the last token.
    pub fn mask_id(&self) -> u32 {
        self.vocab() as u32
    }

    /// Draws a sequence.
    pub fn sample(&self, length: usize, rng: &mut dyn Rng) -> Vec<u32> {
        let mut out: Vec<u32> = Vec::with_capacity(length);
        for _ in 0..length {
            let weights: Vec<f32> = self.next(out.last().copied()).iter().map(|&p| p as f32).collect();
            out.push(categorical(rng, &weights).unwrap_or(0) as u32);
        }
        out
    }

    /// The exact distribution of the next token, the autoregressive view; of the first without a previous one.
    pub fn next(&self, previous: Option<u32>) -> &[f64] {
        previous.and_then(|token| self.transition.get(token as usize)).unwrap_or(&self.initial)
    }

    /// Log-probability of a whole sequence (nats).
    pub fn log_likelihood(&self, tokens: &[u32]) -> f64 {
        let mut previous = None;
        let mut sum = 0.0;
        for &token in tokens {
            sum += self.next(previous).get(token as usize).copied().unwrap_or(0.0).ln();
            previous = Some(token);
        }
        sum
    }

    /// Log-posteriors of every position given the visible tokens: `log p(x_i | visible)`, by the forward-backward recursion.
    ///
    /// # Shapes
    /// `tokens: [length]` with masks; result `[length, vocab + 1]`, the mask's column holding 0 (a logit that SUBS has to remove).
    pub fn posterior_rows(&self, tokens: &[u32]) -> Vec<f32> {
        let (length, vocab) = (tokens.len(), self.vocab());
        let sees =
            |position: usize, token: usize| tokens[position] == self.mask_id() || tokens[position] as usize == token;
        let mut forward = vec![vec![0.0_f64; vocab]; length];
        for i in 0..length {
            for y in 0..vocab {
                let reach = match i {
                    0 => self.initial[y],
                    _ => (0..vocab).map(|x| forward[i - 1][x] * self.transition[x][y]).sum(),
                };
                forward[i][y] = if sees(i, y) { reach } else { 0.0 };
            }
            rescale(&mut forward[i]);
        }
        let mut backward = vec![vec![1.0_f64; vocab]; length];
        for i in (0..length.saturating_sub(1)).rev() {
            for x in 0..vocab {
                backward[i][x] =
                    (0..vocab).filter(|&y| sees(i + 1, y)).map(|y| self.transition[x][y] * backward[i + 1][y]).sum();
            }
            rescale(&mut backward[i]);
        }
        let mut rows = Vec::with_capacity(length * (vocab + 1));
        for i in 0..length {
            let joint: Vec<f64> = (0..vocab).map(|x| forward[i][x] * backward[i][x]).collect();
            let sum: f64 = joint.iter().sum();
            rows.extend(joint.iter().map(|p| (p / sum).ln() as f32));
            rows.push(0.0);
        }
        rows
    }

    /// The exact joint posterior of the masked positions, every completion with its probability, in lexicographic order.
    /// Exponential in the number of masks: for a handful.
    pub fn completions(&self, tokens: &[u32]) -> Vec<(Vec<u32>, f64)> {
        let masked: Vec<usize> = (0..tokens.len()).filter(|&i| tokens[i] == self.mask_id()).collect();
        let total = self.vocab().pow(masked.len() as u32);
        let mut out = Vec::with_capacity(total);
        for code in 0..total {
            let mut filled = tokens.to_vec();
            let mut rest = code;
            for &position in masked.iter().rev() {
                filled[position] = (rest % self.vocab()) as u32;
                rest /= self.vocab();
            }
            let likelihood = self.log_likelihood(&filled).exp();
            out.push((filled, likelihood));
        }
        let sum: f64 = out.iter().map(|(_, p)| p).sum();
        for (_, p) in &mut out {
            *p /= sum;
        }
        out
    }
}

/// Divides by the sum, which keeps long recursions from underflow and cancels in the posterior.
fn rescale(values: &mut [f64]) {
    let sum: f64 = values.iter().sum();
    if sum > 0.0 {
        for value in values {
            *value /= sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::seeded;
    use crate::schedule::{CorruptionPlan, DiscreteSchedule, MaskFamily, TimeSampling, corrupt, corrupt_exactly};

    #[test]
    fn posteriors_are_the_marginals_of_the_enumerated_joint() {
        let oracle = MarkovOracle::random(3, &mut seeded(1));
        let tokens = [3, 1, 3, 3, 0, 3];
        let rows = oracle.posterior_rows(&tokens);
        for position in 0..tokens.len() {
            for token in 0..3 {
                let exact: f64 = oracle
                    .completions(&tokens)
                    .iter()
                    .filter(|(filled, _)| filled[position] == token as u32)
                    .map(|(_, p)| p)
                    .sum();
                assert!((f64::from(rows[position * 4 + token]).exp() - exact).abs() < 1e-6);
            }
        }
    }

    /// With exact posteriors the NELBO is the negative log-likelihood (MDLM: the bound is tight for the true reverse process only
    /// through any-order likelihoods, whose mean over orders is the log-likelihood for an exact model).
    #[test]
    fn the_nelbo_of_exact_posteriors_is_the_negative_log_likelihood() {
        let mut rng = seeded(9);
        let oracle = MarkovOracle::random(3, &mut rng);
        let tokens = oracle.sample(6, &mut rng);
        let exact = -oracle.log_likelihood(&tokens);
        let loss = |tokens_masked: &[u32], masked: &[usize], weights: &[f32]| -> f64 {
            let rows = oracle.posterior_rows(tokens_masked);
            let cross = |(&i, &w): (&usize, &f32)| -f64::from(w) * f64::from(rows[i * 4 + tokens[i] as usize]);
            masked.iter().zip(weights).map(cross).sum()
        };
        let check = |name: &str, losses: &[f64]| {
            let n = losses.len() as f64;
            let mean = losses.iter().sum::<f64>() / n;
            let error = (losses.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n / n).sqrt();
            assert!((mean - exact).abs() < 4.0 * error, "{name}: {mean} +- {error}, exact {exact}");
            assert!(error < 0.05 * exact, "{name}: too noisy to tell");
        };
        for schedule in [DiscreteSchedule::Linear, DiscreteSchedule::Cosine] {
            let plan = CorruptionPlan { schedule, mask_id: 3, weight_max: f64::INFINITY };
            let times = TimeSampling::Stratified.draw(20_000, 1e-4, &mut rng);
            let losses: Vec<f64> = times
                .iter()
                .map(|s| {
                    let c = corrupt(&tokens, &[true; 6], s.t, MaskFamily::Full, plan, &mut rng).unwrap();
                    loss(&c.tokens, &c.masked, &c.weights)
                })
                .collect();
            check(&format!("{schedule:?}"), &losses);
        }
        let losses: Vec<f64> = (0..12_000)
            .map(|i| {
                let c = corrupt_exactly(&tokens, &[true; 6], 1 + i % 6, 3, &mut rng).unwrap();
                loss(&c.tokens, &c.masked, &c.weights)
            })
            .collect();
        check("exact counts", &losses);
    }
}
