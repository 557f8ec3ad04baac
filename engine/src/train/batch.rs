//! Texts packed into one training window `[noisy; clean]` (Arriola et al. 2025, arXiv 2503.09573, section 3.2).
//!
//! The clean half reads left to right and learns the next token; the noisy half has tokens masked and learns them from their own
//! block and the clean blocks before. By the shift, a masked token is predicted by the row before it; the first of a block by
//! the clean row before it, which makes block size 1 the autoregressive model itself.

use mneme_diffusion::random::{below, uniform};
use mneme_diffusion::schedule::DiscreteSchedule;
use rand_chacha::ChaCha8Rng;

use crate::nn::visibility::TrainRole;

/// Weights `1/t` beyond this make single tokens dominate a batch.
const LOSS_WEIGHT_MAX: f64 = 20.0;
/// The smallest mask rate that is drawn: below it most texts lose nothing.
const TIME_MIN: f64 = 1e-3;

/// One token to predict.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// The window's row that predicts it.
    pub row: usize,
    /// The token.
    pub token: i64,
    /// Its weight in the loss.
    pub weight: f32,
    /// Which text it belongs to.
    pub text: usize,
}

/// A window with its targets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Token ids.
    pub tokens: Vec<i64>,
    /// Position of each in its text.
    pub positions: Vec<i64>,
    /// Role of each.
    pub roles: Vec<TrainRole>,
    /// What the clean half predicts.
    pub causal: Vec<Target>,
    /// What the noisy half predicts; empty without one.
    pub masked: Vec<Target>,
}

/// How much of a batch is noisy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noise<'a> {
    /// Only the clean half: the autoregressive loss.
    None,
    /// Each text with a block size drawn from these.
    Blocks(&'a [usize]),
}

/// How one text is masked, and where its two copies begin in the window.
#[derive(Debug, Clone, Copy)]
struct Noising {
    block: usize,
    mask: i64,
    time: f64,
    noisy_row: usize,
    clean_row: usize,
}

impl Batch {
    /// Packs texts, each of which starts with the document token. `mask` is the mask token.
    pub fn pack(texts: &[&[i64]], mask: i64, noise: Noise<'_>, rng: &mut ChaCha8Rng) -> Self {
        let mut batch = Self::default();
        let total: usize = texts.iter().map(|text| text.len()).sum();
        // Low-variance times: one offset, evenly spread over the texts (MDLM, arXiv 2406.07524, appendix C).
        let offset = uniform(rng);
        let clean_start = if matches!(noise, Noise::None) { 0 } else { total };
        let mut start = 0;
        for (number, text) in texts.iter().enumerate() {
            let block = match noise {
                Noise::None | Noise::Blocks([]) => 1,
                Noise::Blocks(sizes) => sizes[below(rng, sizes.len())].max(1),
            };
            if clean_start > 0 {
                let time = ((offset + number as f64 / texts.len() as f64) % 1.0).max(TIME_MIN);
                let noising = Noising { block, mask, time, noisy_row: start, clean_row: clean_start + start };
                batch.add_noisy(number, text, noising, rng);
            }
            start += text.len();
        }
        let mut start = clean_start;
        for (number, text) in texts.iter().enumerate() {
            for (place, token) in text.iter().enumerate() {
                batch.push(number, *token, place, 0, false);
                if let Some(next) = text.get(place + 1) {
                    batch.causal.push(Target { row: start + place, token: *next, weight: 1.0, text: number });
                }
            }
            start += text.len();
        }
        batch.assign_blocks();
        batch
    }

    fn push(&mut self, text: usize, token: i64, place: usize, block: usize, noisy: bool) {
        self.tokens.push(token);
        self.positions.push(place as i64);
        self.roles.push(TrainRole { text: text as u32, block: block as u32, place: place as u32, noisy });
    }

    /// Adds the noisy copy of a text.
    fn add_noisy(&mut self, number: usize, text: &[i64], noising: Noising, rng: &mut ChaCha8Rng) {
        let Noising { block, mask, time, noisy_row, clean_row } = noising;
        let weight = DiscreteSchedule::default().loss_weight_clipped(time, LOSS_WEIGHT_MAX) as f32;
        let rate = DiscreteSchedule::default().mask_rate(time);
        for (place, token) in text.iter().enumerate() {
            // The document token starts every text and is never masked: block 0 holds it alone.
            let own_block = if place == 0 { 0 } else { 1 + (place - 1) / block };
            let is_masked = place > 0 && uniform(rng) < rate;
            self.push(number, if is_masked { mask } else { *token }, place, own_block, true);
            if is_masked {
                let is_first = (place - 1).is_multiple_of(block);
                let row = if is_first { clean_row } else { noisy_row } + place - 1;
                self.masked.push(Target { row, token: *token, weight, text: number });
            }
        }
    }

    /// Gives clean positions the blocks of their noisy copies.
    fn assign_blocks(&mut self) {
        let noisy: Vec<TrainRole> = self.roles.iter().filter(|role| role.noisy).copied().collect();
        if noisy.is_empty() {
            return;
        }
        let clean = self.roles.iter_mut().filter(|role| !role.noisy);
        for (role, twin) in clean.zip(noisy) {
            role.block = twin.block;
        }
    }
}

#[cfg(test)]
mod tests {
    use mneme_diffusion::random::seeded;

    use super::*;

    #[test]
    fn block_one_predicts_every_masked_token_from_the_clean_row_before_it() {
        let text: Vec<i64> = (0..20).collect();
        let batch = Batch::pack(&[&text], 99, Noise::Blocks(&[1]), &mut seeded(1));
        assert!(!batch.masked.is_empty());
        for target in &batch.masked {
            let role = batch.roles[target.row];
            assert!(!role.noisy);
            assert_eq!(batch.tokens[target.row] + 1, target.token);
        }
    }

    #[test]
    fn a_masked_token_is_never_visible_to_the_row_that_predicts_it() {
        let texts: [Vec<i64>; 3] = [(0..17).collect(), (100..109).collect(), (200..202).collect()];
        let texts: Vec<&[i64]> = texts.iter().map(Vec::as_slice).collect();
        for seed in 0..50 {
            let batch = Batch::pack(&texts, 999, Noise::Blocks(&[1, 2, 4, 8]), &mut seeded(seed));
            for target in batch.masked.iter().chain(&batch.causal) {
                let row = batch.roles[target.row];
                let shown = |(role, token): (&TrainRole, &i64)| row.sees(role) && *token == target.token;
                assert!(!batch.roles.iter().zip(&batch.tokens).any(shown), "seed {seed}: {target:?}");
            }
        }
    }

    #[test]
    fn without_noise_the_window_is_the_texts_themselves() {
        let text: Vec<i64> = (0..5).collect();
        let batch = Batch::pack(&[&text], 9, Noise::None, &mut seeded(0));
        assert_eq!(batch.tokens, text);
        assert_eq!(batch.causal.len(), 4);
        assert!(batch.masked.is_empty());
    }
}
