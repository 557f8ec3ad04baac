//! The cache that is mixed into a language model: counts of what followed the last tokens, which learn as they read.
//!
//! Every level falls back to the one below, the lowest to the language model, by Witten and Bell's rule (1991): a context
//! seen n times with t different followers keeps `t / (n + t)` for what it has not seen. Each level is a distribution over
//! the vocabulary, and the levels are mixed by weights that follow what each has predicted (Bayes with fixed share), so the
//! mixture is one too: its cost is that of a code.

use std::collections::HashMap;

/// Tokens of the longest context.
const ORDER: usize = 3;
/// The weight that flows back for each token.
const SHARE: f64 = 0.005;
/// Contexts kept at most.
const CONTEXTS_MAX: usize = 2_000_000;

#[derive(Debug, Clone, Default)]
struct Followers {
    total: u32,
    counts: Vec<(u32, u32)>,
}

/// Counts of a person's tokens.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenCache {
    contexts: HashMap<Vec<u32>, Followers>,
}

/// The weights of the levels; 0 is the language model alone.
#[derive(Debug, Clone)]
pub(crate) struct Weights([f64; ORDER + 2]);

impl Default for Weights {
    fn default() -> Self {
        Self([1.0 / (ORDER + 2) as f64; ORDER + 2])
    }
}

impl TokenCache {
    /// Learns the tokens of one entry.
    pub(crate) fn learn(&mut self, tokens: &[u32]) {
        for (place, token) in tokens.iter().enumerate() {
            for order in 0..=ORDER.min(place) {
                let context = tokens[place - order..place].to_vec();
                if self.contexts.len() >= CONTEXTS_MAX && !self.contexts.contains_key(&context) {
                    continue;
                }
                let followers = self.contexts.entry(context).or_default();
                followers.total += 1;
                match followers.counts.iter_mut().find(|(known, _)| known == token) {
                    Some((_, count)) => *count += 1,
                    None => followers.counts.push((*token, 1)),
                }
            }
        }
    }

    /// The cost of an entry (bits) under the mixture of a language model with this cache; `log_likelihoods` (nats) are the
    /// model's own.
    pub(crate) fn cost(&self, tokens: &[u32], log_likelihoods: &[f32], weights: &mut Weights) -> f64 {
        let mut bits = 0.0;
        for (place, (token, log)) in tokens.iter().zip(log_likelihoods).enumerate() {
            let mut levels = [0.0; ORDER + 2];
            levels[0] = f64::from(*log).exp();
            for order in 0..=ORDER {
                // A context that was never seen adds nothing: the level is the one below.
                levels[order + 1] = levels[order];
                if order > place {
                    continue;
                }
                if let Some(followers) = self.contexts.get(&tokens[place - order..place]) {
                    let count =
                        followers.counts.iter().find(|(known, _)| known == token).map_or(0, |(_, count)| *count);
                    let (n, t) = (f64::from(followers.total), followers.counts.len() as f64);
                    levels[order + 1] = (f64::from(count) + t * levels[order]) / (n + t);
                }
            }
            let mixed: f64 = weights.0.iter().zip(levels).map(|(weight, level)| weight * level).sum();
            let mixed = mixed.max(f64::MIN_POSITIVE);
            bits -= mixed.log2();
            for (weight, level) in weights.0.iter_mut().zip(levels) {
                *weight = (1.0 - SHARE) * *weight * level / mixed + SHARE / (ORDER + 2) as f64;
            }
        }
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_costs_less_and_the_mixture_is_a_distribution() {
        let mut cache = TokenCache::default();
        cache.learn(&[1, 2, 3, 1, 2, 3, 1, 2, 4]);
        // A vocabulary of 6 tokens, all as likely to the model.
        let flat = (1.0_f32 / 6.0).ln();
        let cost = |last: u32| cache.cost(&[1, 2, last], &[0.0, 0.0, flat], &mut Weights::default());
        assert!(cost(3) < cost(5));
        let first = cache.cost(&[1, 2], &[0.0, 0.0], &mut Weights::default());
        let total: f64 = (0..6).map(|token| (first - cost(token)).exp2()).sum();
        // The model's likelihoods come in single precision.
        assert!((total - 1.0).abs() < 1e-6, "{total}");
    }
}
