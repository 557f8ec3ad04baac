//! Iterative unmasking: the window sees both sides, the sampler decides which positions are settled first.
//!
//! A hole at the end of the canvas is filled block by block behind an exact prefix: the prefix is read causally, so that its
//! keys and values never change. Holes inside a text are filled with all of the text after them in view.

use mneme_diffusion::constraint::propose;
use mneme_diffusion::sampler::{
    Blocks, Canvas, DiscreteSampler, LogitRows, Pacing, Piece, SamplerConfig, SamplerError,
};
use mneme_engine_api::EngineError;

use crate::error::Result;
use crate::generate::ar::Fill;
use crate::generate::constrain::{Automaton, refused as constrained};
use crate::generate::plan::PlanPiece;
use crate::generate::session::{Decided, Session};

/// Tokens of a block at the end of a canvas: the network was adapted on blocks up to this size.
const CONTINUATION_BLOCK: usize = 8;
/// Tokens of a block inside a text, where both sides are known.
const INFILL_BLOCK: usize = 32;
/// Text after the last hole that the network sees: as much as adapter zero was trained with.
const SUFFIX_TOKENS_MAX: usize = 32;

/// What diffusion is told besides the canvas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Steps for each block; 0 takes half a block.
    pub steps: u32,
    /// Tokens of a block; 0 takes the default.
    pub block: usize,
}

/// Filled holes and how sure the network was of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Diffused {
    /// Each hole in order.
    pub fills: Vec<Fill>,
    /// Mean log-probability of the decided tokens (nats).
    pub mean_log_probability: f64,
}

impl Session<'_> {
    /// Fills all holes after the text that was read, each with the length given for it. `pieces` start with a hole.
    pub fn fill_by_diffusion(
        &mut self,
        pieces: &[PlanPiece],
        lengths: &[usize],
        pace: Pace,
        automaton: Option<&Automaton>,
    ) -> Result<Diffused> {
        let is_continuation = self.plan.is_continuation();
        let block = match pace.block {
            0 if is_continuation => CONTINUATION_BLOCK,
            0 => INFILL_BLOCK,
            block => block,
        };
        let steps = if pace.steps == 0 { block.div_ceil(2) as u32 } else { pace.steps };
        let config = SamplerConfig {
            rule: self.plan.rule,
            pacing: Pacing::Even,
            steps,
            blocks: Blocks::Holes(block),
            draw: self.plan.draw,
            ..SamplerConfig::default()
        };
        let canvas = Canvas::new(&region(pieces, lengths), self.generator.special.mask).map_err(refused)?;
        let mut sampler = DiscreteSampler::new(canvas, config).map_err(refused)?;
        let min = match pieces.first() {
            Some(PlanPiece::Hole { min, .. }) => *min,
            _ => 0,
        };
        let of_hole = |piece: &PlanPiece| match piece {
            PlanPiece::Hole { spaced, .. } => Some(*spaced),
            PlanPiece::Text { .. } => None,
        };
        let spaced = pieces.iter().filter_map(of_hole).zip(sampler.canvas().holes().to_vec());
        let spaced: Vec<usize> = spaced.filter(|(spaced, _)| *spaced).map(|(_, hole)| hole.start).collect();
        let mark = self.ensemble.mark()?;
        let started = self.step;
        let mut read = 0;
        while !sampler.is_done() {
            self.cancel.check()?;
            let wanted = sampler.wanted();
            let (start, end) = match sampler.active_block().1 {
                [first, .., last] if is_continuation => (*first, *last + 1),
                [only] if is_continuation => (*only, *only + 1),
                _ => (0, sampler.canvas().tokens().len()),
            };
            if start > read {
                let settled = sampler.canvas().tokens()[read..start].to_vec();
                self.feed(&settled)?;
                read = start;
            }
            let window = &sampler.canvas().tokens()[start..end];
            let is_open = window.iter().all(|token| *token == self.generator.special.mask);
            let hidden = self.ensemble.peek_undecided(&[], window, is_open)?;
            let places: Vec<usize> = wanted.iter().map(|position| position - start).collect();
            let mut rows = self.ensemble.rows(Some(&hidden), &places)?;
            let vocabulary = self.ensemble.vocabulary();
            for (row, position) in rows.chunks_exact_mut(vocabulary).zip(&wanted) {
                self.restrict(row, automaton.is_some() || (is_continuation && *position >= min));
                if spaced.contains(position) {
                    self.require_space(row);
                }
            }
            let logits = LogitRows::new(&wanted, vocabulary, &rows).map_err(refused)?;
            match automaton {
                None => sampler.step(&logits, &mut self.rng),
                Some(automaton) => {
                    let hole = sampler.canvas().holes().iter().position(|hole| hole.contains(&wanted[0])).unwrap_or(0);
                    let temperature = self.plan.draw.temperature;
                    let proposals = propose(automaton, sampler.canvas(), hole, &logits, temperature, &mut self.rng)
                        .map_err(constrained)?;
                    sampler.step_proposed(&logits, &proposals, &mut self.rng)
                }
            }
            .map_err(refused)?;
            if is_continuation || automaton.is_some() {
                let special = self.generator.special;
                sampler.finish_after_stop(&[special.document, special.turn_end], special.turn_end);
            }
            self.step += 1;
            self.steps_total = started + sampler.steps_total();
            let shown: Vec<Vec<Option<u32>>> = sampler.canvas().fills().iter().map(|fill| self.visible(fill)).collect();
            self.show(&shown)?;
        }
        self.ensemble.rewind(&mark);
        Ok(self.collect(&sampler, started, automaton.is_some()))
    }

    fn visible(&self, fill: &[u32]) -> Vec<Option<u32>> {
        fill.iter().map(|token| (*token != self.generator.special.mask).then_some(*token)).collect()
    }

    /// Turns the sampler's record into fills, each cut at its end token.
    fn collect(&self, sampler: &DiscreteSampler, started: u32, is_constrained: bool) -> Diffused {
        let mut fills = Vec::new();
        for hole in sampler.canvas().holes() {
            let mut fill = Fill { tokens: Vec::new(), finish: if is_constrained { "constraint" } else { "length" } };
            for trace in sampler.traces().filter(|trace| hole.contains(&trace.position)) {
                if self.generator.is_stop(trace.token) {
                    fill.finish = if is_constrained { "constraint" } else { "stop" };
                    break;
                }
                fill.tokens.push(Decided {
                    token: trace.token,
                    confidence: trace.confidence,
                    entropy: trace.entropy,
                    mask_rate: trace.mask_rate,
                    step: started + trace.step,
                });
            }
            fills.push(fill);
        }
        let mean_log_probability = sampler.mean_log_probability().unwrap_or(f64::NEG_INFINITY);
        Diffused { fills, mean_log_probability }
    }
}

/// The canvas as the sampler sees it: the text after the last hole is cut to what the network is shown.
fn region(pieces: &[PlanPiece], lengths: &[usize]) -> Vec<Piece> {
    let mut lengths = lengths.iter();
    let last = pieces.len().saturating_sub(1);
    let piece = |(index, piece): (usize, &PlanPiece)| match piece {
        PlanPiece::Hole { max, .. } => Piece::Hole(lengths.next().copied().unwrap_or(*max)),
        PlanPiece::Text { tokens, .. } if index == last => {
            Piece::Text(tokens[..tokens.len().min(SUFFIX_TOKENS_MAX)].to_vec())
        }
        PlanPiece::Text { tokens, .. } => Piece::Text(tokens.clone()),
    };
    pieces.iter().enumerate().map(piece).collect()
}

/// The sampler's refusals: its parameters were checked before, so that what is left is the network's fault.
fn refused(error: SamplerError) -> EngineError {
    EngineError::Internal { reason: error.to_string() }
}
