//! Losses of texts under the base, an adapter, or the base with retrieved text before them.
//!
//! What is compared is what the daemon serves: the likelihood of the causal mode, which decides every token in `ar` and `auto`.

use crate::error::Result;
use crate::generator::rows_of;
use crate::nn::adapter::Adapter;
use crate::nn::backbone::Backbone;
use crate::train::batch::{Batch, Noise};
use crate::train::learner::{hidden, losses, target_logits};

/// Rows of logits that exist at a time.
const LOGIT_ROWS: usize = 128;
/// Tokens of a rare string that an adapter might have learnt by heart.
const CANARY_TOKENS: usize = 6;

/// A text to judge: the loss is over `tokens[scored_from..]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// All tokens, the document token first.
    pub tokens: Vec<i64>,
    /// The first token that counts; at least 1.
    pub scored_from: usize,
}

/// The loss of each token, and whether it is the one that greedy decoding would write.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenLosses {
    /// Nats, for the tokens from `scored_from` on.
    pub losses: Vec<f32>,
    /// Whether the token is the likeliest.
    pub is_top: Vec<bool>,
}

impl TokenLosses {
    /// Mean loss (nats a token); 0 for a text without tokens.
    pub fn mean(&self) -> f32 {
        let sum: f64 = self.losses.iter().map(|loss| f64::from(*loss)).sum();
        (sum / self.losses.len().max(1) as f64) as f32
    }

    /// Where its rarest run of a few tokens begins: the one with the largest loss. `None` for a shorter text.
    pub fn rarest(&self) -> Option<usize> {
        let sum = |start: usize| self.losses[start..start + CANARY_TOKENS].iter().sum::<f32>();
        let starts = 0..(self.losses.len() + 1).saturating_sub(CANARY_TOKENS);
        starts.max_by(|a, b| sum(*a).total_cmp(&sum(*b)))
    }

    /// Whether greedy decoding writes the run that begins there.
    pub fn reproduces(&self, start: usize) -> bool {
        self.is_top.get(start..start + CANARY_TOKENS).is_some_and(|run| run.iter().all(|top| *top))
    }
}

/// Judges one text.
pub fn judge(backbone: &Backbone, adapters: &[&Adapter], case: &Case) -> Result<TokenLosses> {
    let _guard = tch::no_grad_guard();
    let mut rng = mneme_diffusion::random::seeded(0);
    let batch = Batch::pack(&[&case.tokens], backbone.config.mask_token, Noise::None, &mut rng);
    let targets = batch.causal.get(case.scored_from.max(1) - 1..).unwrap_or_default();
    if targets.is_empty() {
        return Ok(TokenLosses::default());
    }
    let hidden = hidden(backbone, adapters, &batch)?;
    let mut judged = TokenLosses::default();
    for chunk in targets.chunks(LOGIT_ROWS) {
        let logits = target_logits(backbone, &hidden, chunk)?;
        judged.losses.extend(rows_of(&losses(&logits, chunk)?)?);
        let top = Vec::<i64>::try_from(&logits.f_argmax(-1, false)?)?;
        judged.is_top.extend(top.iter().zip(chunk).map(|(top, target)| *top == target.token));
    }
    Ok(judged)
}

/// The loss of every masked target of a batch (nats): times their weights and summed they are the diffusion bound.
pub fn masked(backbone: &Backbone, adapters: &[&Adapter], batch: &Batch) -> Result<Vec<f32>> {
    let _guard = tch::no_grad_guard();
    let hidden = hidden(backbone, adapters, batch)?;
    let mut all = Vec::with_capacity(batch.masked.len());
    for chunk in batch.masked.chunks(LOGIT_ROWS) {
        all.extend(rows_of(&losses(&target_logits(backbone, &hidden, chunk)?, chunk)?)?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rarest_run_is_the_one_with_the_largest_loss() {
        let losses = vec![1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0, 9.0, 1.0];
        let judged = TokenLosses { is_top: vec![true; losses.len()], losses };
        assert_eq!(judged.rarest(), Some(3));
        assert!(judged.reproduces(3));
        assert_eq!(TokenLosses::default().rarest(), None);
        assert!(!judged.reproduces(5));
    }
}
