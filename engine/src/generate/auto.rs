//! Diffusion drafts a block, the causal mode of the same network verifies it.
//!
//! What comes out is distributed as plain autoregressive sampling (Leviathan et al. 2211.17192); how good the drafts are only
//! decides the speed. The first token of a draft comes from a decided row and is exact, so that two evaluations always yield
//! two tokens or more: never fewer than left to right.

use mneme_diffusion::sampler::verify::{Drafted, verify};
use mneme_engine_api::EngineError;

use crate::error::Result;
use crate::generate::ar::{Fill, Hole};
use crate::generate::session::Session;
use crate::nn::visibility::Visibility;

/// The smallest draft: its first token is exact, its second is the network's guess.
const DRAFT_MIN: usize = 2;
/// The largest draft; independent guesses further ahead are rarely kept.
const DRAFT_MAX: usize = 8;
/// Where the size of drafts starts.
const DRAFT_START: usize = 4;

/// How drafts fared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Acceptance {
    /// Guessed tokens: those of drafts without their exact first one.
    pub drafted: usize,
    /// Those that the causal mode kept.
    pub accepted: usize,
}

impl Acceptance {
    /// The share that was kept.
    pub fn rate(self) -> Option<f32> {
        (self.drafted > 0).then(|| self.accepted as f32 / self.drafted as f32)
    }
}

impl Session<'_> {
    /// Fills the hole at the end of the canvas; reads the fill up to its last token.
    pub fn fill_drafting(
        &mut self,
        hole: Hole,
        block: usize,
        acceptance: &mut Acceptance,
        shown: &[Vec<Option<u32>>],
    ) -> Result<Fill> {
        let mask = self.generator.special.mask;
        let vocabulary = self.ensemble.vocabulary();
        let mut fill = Fill { tokens: Vec::new(), finish: "length" };
        // The last token that came out of a verification: read together with the next draft.
        let mut pending: Option<u32> = None;
        let mut size = if block > 0 { block } else { DRAFT_START };
        while fill.tokens.len() < hole.max && fill.finish == "length" {
            self.cancel.check()?;
            let begun = fill.tokens.len();
            let left = hole.max - begun;
            let drafted = size.min(left);
            let may_stop = |place: usize| hole.may_stop && begun + place >= hole.min;
            let decided = usize::from(pending.is_some());
            let hidden = self.ensemble.peek_undecided(pending.as_slice(), &vec![mask; drafted], true)?;
            let places: Vec<usize> = (decided..decided + drafted).collect();
            let mut rows = self.ensemble.rows(Some(&hidden), &places)?;
            self.ensemble.commit(&hidden, decided)?;
            let (mut draft, mut proposals) = (Vec::with_capacity(drafted), Vec::with_capacity(rows.len()));
            for (place, row) in rows.chunks_exact_mut(vocabulary).enumerate() {
                self.restrict(row, may_stop(place));
                if hole.spaced && begun + place == 0 {
                    self.require_space(row);
                }
                let probabilities = self.plan.draw.probabilities(row, Some(mask));
                let token = mneme_diffusion::random::categorical(&mut self.rng, &probabilities);
                draft.push(token.ok_or_else(no_distribution)? as u32);
                proposals.extend(probabilities);
            }
            self.cancel.check()?;
            let hidden = self.ensemble.peek(&draft, Visibility::Causal)?;
            let places: Vec<usize> = (0..=drafted).collect();
            let mut rows = self.ensemble.rows(Some(&hidden), &places)?;
            for (place, row) in rows.chunks_exact_mut(vocabulary).enumerate() {
                self.restrict(row, may_stop(place));
                if hole.spaced && begun + place == 0 {
                    self.require_space(row);
                }
            }
            let target: Vec<f32> =
                rows.chunks_exact(vocabulary).flat_map(|row| self.plan.draw.probabilities(row, Some(mask))).collect();
            let verified = verify(&draft, Drafted::Independent(&proposals), &target, vocabulary, &mut self.rng)
                .map_err(|error| EngineError::Internal { reason: error.to_string() })?;
            self.ensemble.commit(&hidden, verified.accepted)?;
            acceptance.drafted += drafted - 1;
            acceptance.accepted += verified.accepted.saturating_sub(1);
            if block == 0 {
                size = next_size(size, drafted, verified.accepted);
            }
            for (token, row) in verified.tokens.iter().zip(rows.chunks_exact(vocabulary)).take(left) {
                if self.generator.is_stop(*token) {
                    fill.finish = "stop";
                    break;
                }
                fill.tokens.push(self.decide(row, *token, 0.0)?);
            }
            // The accepted tokens are read; the one that the causal mode drew after them is not.
            pending = verified.tokens.last().copied();
            self.step += 2;
            self.show_with(shown, &fill.tokens)?;
        }
        Ok(fill)
    }
}

/// Doubles after a draft that was kept whole, halves after one of which only the exact token was.
fn next_size(size: usize, drafted: usize, accepted: usize) -> usize {
    if accepted == drafted {
        (size * 2).min(DRAFT_MAX)
    } else if accepted <= 1 {
        (size / 2).max(DRAFT_MIN)
    } else {
        size
    }
}

fn no_distribution() -> EngineError {
    EngineError::Internal { reason: "network gave no distribution".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_grow_while_they_are_kept_and_shrink_when_they_are_not() {
        assert_eq!(next_size(4, 4, 4), 8);
        assert_eq!(next_size(8, 8, 8), DRAFT_MAX);
        assert_eq!(next_size(8, 8, 1), 4);
        assert_eq!(next_size(2, 2, 0), DRAFT_MIN);
        assert_eq!(next_size(4, 4, 2), 4);
    }
}
