//! Weights that follow which model predicts best, updated after every piece of text.

use super::{GuidanceError, Weights};

/// Posterior weights over models: Bayes' rule, with a share given back to the prior each round so that a switch of the best model is
/// followed (fixed share, Herbster and Warmuth 1998).
///
/// The loss of the mixture over all rounds exceeds that of model i by at most `-ln prior_i`, `ln N` for equal priors, when `share` is 0.
/// With a share the bound holds against any sequence of models with k switches, at `ln N + k ln(N / share) + (T - k) share`, nearly.
#[derive(Debug, Clone, PartialEq)]
pub struct OnlineWeights {
    prior: Weights,
    /// Logarithms of the posterior weights; normalised.
    log_weights: Vec<f64>,
    share: f64,
}

impl OnlineWeights {
    /// Starts at the prior. `share`, 0 to 1, is the part that returns to the prior each round; 0 is plain Bayes.
    pub fn new(prior: Weights, share: f64) -> Result<Self, GuidanceError> {
        if !(0.0..=1.0).contains(&share) {
            return Err(GuidanceError::Weight { index: 0, value: format!("share {share}") });
        }
        let log_weights = prior.as_slice().iter().map(|weight| weight.ln()).collect();
        Ok(Self { prior, log_weights, share })
    }

    /// The weights for the next round.
    pub fn weights(&self) -> Weights {
        let weights: Vec<f64> = self.log_weights.iter().map(|x| x.exp()).collect();
        Weights::new(&weights).unwrap_or_else(|_| self.prior.clone())
    }

    /// Learns from one round and returns the loss of the mixture in it, `-ln sum w_i exp(-loss_i)` (nats). Losses are negative
    /// log-likelihoods of the same text under each model (nats); an infinite loss rules a model out until a share revives it.
    pub fn update(&mut self, losses: &[f64]) -> Result<f64, GuidanceError> {
        let expected = self.log_weights.len();
        if losses.len() != expected {
            return Err(GuidanceError::Length { what: "list of losses", length: losses.len(), expected });
        }
        if let Some(index) = losses.iter().position(|loss| loss.is_nan() || *loss == f64::NEG_INFINITY) {
            return Err(GuidanceError::Value { what: "list of losses", index });
        }
        let joint: Vec<f64> = self.log_weights.iter().zip(losses).map(|(weight, loss)| weight - loss).collect();
        let max = joint.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if !max.is_finite() {
            return Err(GuidanceError::Disjoint);
        }
        let log_sum = max + joint.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
        for ((weight, joint), prior) in self.log_weights.iter_mut().zip(joint).zip(self.prior.as_slice()) {
            let posterior = joint - log_sum;
            *weight = if self.share > 0.0 {
                ((1.0 - self.share) * posterior.exp() + self.share * prior).ln()
            } else {
                posterior
            };
        }
        Ok(-log_sum)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn regret_against_the_best_model_is_at_most_ln_n(
            rounds in prop::collection::vec(prop::collection::vec(0.0_f64..30.0, 4), 1..60),
        ) {
            let mut online = OnlineWeights::new(Weights::uniform(4).unwrap(), 0.0).unwrap();
            let mixture: f64 = rounds.iter().map(|losses| online.update(losses).unwrap()).sum();
            let best = (0..4).map(|i| rounds.iter().map(|losses| losses[i]).sum::<f64>()).fold(f64::INFINITY, f64::min);
            prop_assert!(mixture <= best + 4.0_f64.ln() + 1e-9);
            let weights = online.weights();
            prop_assert!((weights.as_slice().iter().sum::<f64>() - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn a_share_follows_a_switch_that_plain_bayes_misses() {
        let total = |share: f64| {
            let mut online = OnlineWeights::new(Weights::uniform(2).unwrap(), share).unwrap();
            (0..400).map(|t| online.update(if t < 200 { &[0.5, 2.0] } else { &[2.0, 0.5] }).unwrap()).sum::<f64>()
        };
        // The best sequence loses 200; plain Bayes stays with the first model for the whole second half.
        assert!(total(0.01) < 215.0, "{}", total(0.01));
        assert!(total(0.0) > 480.0, "{}", total(0.0));
    }

    #[test]
    fn the_mixture_loss_is_the_loss_of_the_mixed_distribution() {
        let (a, b): ([f32; 2], [f32; 2]) = ([0.9_f32.ln(), 0.1_f32.ln()], [0.2_f32.ln(), 0.8_f32.ln()]);
        let weights = Weights::new(&[0.25, 0.75]).unwrap();
        let mixed = super::super::mix(&[&a, &b], &weights).unwrap();
        let mut online = OnlineWeights::new(weights, 0.0).unwrap();
        let loss = online.update(&[-f64::from(a[1]), -f64::from(b[1])]).unwrap();
        assert!((loss + f64::from(mixed[1])).abs() < 1e-6);
    }

    #[test]
    fn losses_that_are_no_numbers_are_refused() {
        let mut online = OnlineWeights::new(Weights::uniform(2).unwrap(), 0.1).unwrap();
        assert!(online.update(&[1.0]).is_err());
        assert!(online.update(&[1.0, f64::NAN]).is_err());
        assert!(online.update(&[f64::INFINITY; 2]).is_err());
        online.update(&[1.0, f64::INFINITY]).unwrap();
        assert!(online.weights().as_slice()[1] > 0.0);
        assert!(OnlineWeights::new(Weights::uniform(2).unwrap(), 1.5).is_err());
    }
}
