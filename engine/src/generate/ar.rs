//! Left to right, one token for each evaluation; and the choice of a hole's length by the text after it.

use mneme_diffusion::sampler::lengths::candidates;
use mneme_engine_api::EngineError;

use crate::error::Result;
use crate::generate::constrain::{Automaton, refused};
use crate::generate::session::{Decided, Session};

/// Candidate lengths of a hole inside a text.
const LENGTHS_TRIED: usize = 6;
/// Candidate lengths where each has to be written anew.
const LENGTHS_WRITTEN: usize = 4;
/// Text after a hole that is in view while it is written: as much as adapter zero was trained with.
const SUFFIX_SEEN: usize = 32;
/// Tokens after a hole that judge its length.
const SUFFIX_TOKENS: usize = 12;

/// A filled hole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fill {
    /// Its tokens, without one that ended it.
    pub tokens: Vec<Decided>,
    /// Why it ended: `length`, `stop`, `constraint`.
    pub finish: &'static str,
}

/// The bounds of one hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// Tokens at least.
    pub min: usize,
    /// Tokens at most.
    pub max: usize,
    /// Whether the text may end inside it.
    pub may_stop: bool,
    /// Whether its first token starts with a space.
    pub spaced: bool,
}

impl Session<'_> {
    /// Fills one hole after what was read, and reads the fill. `shown` are the holes before it.
    pub fn fill_left_to_right(
        &mut self,
        hole: Hole,
        suffix: &[u32],
        automaton: Option<&Automaton>,
        shown: &[Vec<Option<u32>>],
    ) -> Result<Fill> {
        let mark = self.ensemble.mark()?;
        let mut fill = Fill { tokens: Vec::new(), finish: "length" };
        let mut state = automaton.map(Automaton::start);
        while fill.tokens.len() < hole.max {
            self.cancel.check()?;
            let mut row = self.ensemble.next_row()?;
            let past_min = fill.tokens.len() >= hole.min;
            match (automaton, state) {
                (Some(automaton), Some(state)) => {
                    // Only the automaton's ending token ends a constrained text, and only where the text matches.
                    automaton.mask(state, hole.max - fill.tokens.len(), &mut row).map_err(refused)?;
                    if !past_min {
                        self.restrict(&mut row, false);
                    }
                }
                _ => self.restrict(&mut row, hole.may_stop && past_min),
            }
            if hole.spaced && fill.tokens.is_empty() {
                self.require_space(&mut row);
            }
            let drawn = self.plan.draw.token(&row, Some(self.generator.special.mask), &mut self.rng);
            let token = drawn.ok_or_else(|| EngineError::Unsatisfiable {
                problem: format!("no token may follow after {} of {} to {}", fill.tokens.len(), hole.min, hole.max),
            })?;
            if self.generator.is_stop(token) {
                fill.finish = "stop";
                break;
            }
            fill.tokens.push(self.decide(&row, token, 0.0)?);
            if let (Some(automaton), Some(now)) = (automaton, state) {
                state = automaton.next(now, token);
            }
            self.feed(&[token])?;
            self.step += 1;
            self.show_with(shown, &fill.tokens)?;
        }
        if automaton.is_some() {
            fill.finish = "constraint";
        }
        if !hole.may_stop && hole.min < hole.max && automaton.is_none() && !suffix.is_empty() {
            let length = self.best_length(&mark, &fill.tokens, hole.min, suffix)?;
            fill.tokens.truncate(length);
            self.ensemble.rewind(&mark);
            let kept: Vec<u32> = fill.tokens.iter().map(|decided| decided.token).collect();
            self.feed(&kept)?;
        }
        Ok(fill)
    }

    /// Fills one hole left to right with the text after it in view, and reads the fill. Of several lengths the one is kept with which
    /// hole and text are likeliest to the base, in the mean over their tokens.
    pub fn fill_between(&mut self, hole: Hole, suffix: &[u32], shown: &[Vec<Option<u32>>]) -> Result<Fill> {
        let mark = self.ensemble.mark()?;
        let lengths = candidates(hole.min, hole.max, LENGTHS_WRITTEN);
        let mut best: Option<(f64, Fill)> = None;
        for length in &lengths {
            let fill = self.write_between(hole, *length, suffix, shown)?;
            self.ensemble.rewind(&mark);
            let score = if lengths.len() > 1 { self.fit(&fill.tokens, suffix)? } else { 0.0 };
            if best.as_ref().is_none_or(|(best, _)| score > *best) {
                best = Some((score, fill));
            }
        }
        let fill = best.map(|(_, fill)| fill).unwrap_or_default();
        let kept: Vec<u32> = fill.tokens.iter().map(|decided| decided.token).collect();
        self.feed(&kept)?;
        Ok(fill)
    }

    fn write_between(&mut self, hole: Hole, length: usize, suffix: &[u32], shown: &[Vec<Option<u32>>]) -> Result<Fill> {
        self.cancel.check()?;
        self.ensemble.look_ahead(&suffix[..suffix.len().min(SUFFIX_SEEN)], length)?;
        let mut fill = Fill { tokens: Vec::with_capacity(length), finish: "length" };
        let mut written: Vec<u32> = Vec::with_capacity(length);
        while written.len() < length {
            self.cancel.check()?;
            let mut row = self.ensemble.middle_row(&written)?;
            self.restrict(&mut row, false);
            if hole.spaced && written.is_empty() {
                self.require_space(&mut row);
            }
            let drawn = self.plan.draw.token(&row, Some(self.generator.special.mask), &mut self.rng);
            let problem = || format!("no token may follow after {} of {length}", written.len());
            let token = drawn.ok_or_else(|| EngineError::Unsatisfiable { problem: problem() })?;
            fill.tokens.push(self.decide(&row, token, 0.0)?);
            written.push(token);
            self.step += 1;
            self.show_with(shown, &fill.tokens)?;
        }
        Ok(fill)
    }

    /// Mean log-probability that the base gives to a fill and the text after it (nats).
    fn fit(&mut self, tokens: &[Decided], suffix: &[u32]) -> Result<f64> {
        let suffix = &suffix[..suffix.len().min(SUFFIX_TOKENS)];
        let text: Vec<u32> = tokens.iter().map(|decided| decided.token).chain(suffix.iter().copied()).collect();
        self.cancel.check()?;
        let likelihoods = self.ensemble.base().likelihoods(&[&text])?.concat();
        Ok(likelihoods.iter().map(|l| f64::from(*l)).sum::<f64>() / likelihoods.len().max(1) as f64)
    }

    /// The length after which the text that follows is likeliest, in the mean over all tokens.
    fn best_length(
        &mut self,
        mark: &crate::generate::ensemble::Marks,
        tokens: &[Decided],
        min: usize,
        suffix: &[u32],
    ) -> Result<usize> {
        self.ensemble.rewind(mark);
        let mut best = (f64::NEG_INFINITY, tokens.len());
        for length in candidates(min.min(tokens.len()), tokens.len(), LENGTHS_TRIED) {
            let mean = self.fit(&tokens[..length], suffix)?;
            if mean > best.0 {
                best = (mean, length);
            }
        }
        Ok(best.1)
    }

    /// Shows the canvas with one more hole that is being filled from the left.
    pub(crate) fn show_with(&mut self, shown: &[Vec<Option<u32>>], tokens: &[Decided]) -> Result<()> {
        let mut fills = shown.to_vec();
        fills.push(tokens.iter().map(|decided| Some(decided.token)).collect());
        self.show(&fills)
    }
}
