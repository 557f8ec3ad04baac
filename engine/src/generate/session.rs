//! What all modes of one generation share: the networks, the random numbers, the canvas so far, and who watches.

use mneme_diffusion::numeric::RowSummary;
use mneme_engine_api::{CancelToken, CanvasEvent, EngineError};
use rand_chacha::ChaCha8Rng;

use crate::error::Result;
use crate::generate::ensemble::Ensemble;
use crate::generate::plan::{Plan, PlanPiece};
use crate::generator::Generator;

/// What stands for an undecided token in the canvas that a person watches.
const UNDECIDED: &str = "░";

/// One decided token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decided {
    /// The token.
    pub token: u32,
    /// Its probability at temperature 1.
    pub confidence: f32,
    /// Entropy of its distribution (nats).
    pub entropy: f32,
    /// Share of its block that was open when it was decided; 0 left to right.
    pub mask_rate: f32,
    /// The step that decided it.
    pub step: u32,
}

/// One generation at work.
pub struct Session<'a> {
    /// The generator.
    pub generator: &'a Generator,
    /// The checked request.
    pub plan: &'a Plan,
    /// The networks.
    pub ensemble: Ensemble<'a>,
    /// All draws.
    pub rng: ChaCha8Rng,
    /// Whether anybody still wants the result.
    pub cancel: &'a CancelToken,
    /// Sees the canvas.
    pub observe: &'a mut dyn FnMut(CanvasEvent),
    /// All control tokens.
    pub control: Vec<u32>,
    /// Steps so far.
    pub step: u32,
    /// Steps expected in all.
    pub steps_total: u32,
}

impl std::fmt::Debug for Session<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("ensemble", &self.ensemble).field("step", &self.step).finish_non_exhaustive()
    }
}

impl Session<'_> {
    /// Reads text of the canvas into the networks.
    pub fn read(&mut self, tokens: &[u32]) -> Result<()> {
        let cancel = self.cancel;
        self.ensemble.read(tokens, &mut || Ok(cancel.check()?))
    }

    /// Reads decided tokens into the networks.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        let cancel = self.cancel;
        self.ensemble.feed(tokens, &mut || Ok(cancel.check()?))
    }

    /// Takes from a row what may not appear: control tokens always, the ends of a text where it may not end.
    pub fn restrict(&self, row: &mut [f32], may_stop: bool) {
        for token in &self.control {
            if let Some(logit) = row.get_mut(*token as usize)
                && !(may_stop && self.generator.is_stop(*token))
            {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    /// Leaves only tokens that start with a space: for the first token of a hole whose space was taken off the text.
    pub fn require_space(&self, row: &mut [f32]) {
        for (token, logit) in row.iter_mut().enumerate() {
            let bytes = self.generator.tokenizer.token_bytes(token as u32);
            if bytes.is_none_or(|bytes| bytes.first() != Some(&b' ')) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    /// What a row says about the token that was chosen from it.
    pub fn decide(&self, row: &[f32], token: u32, mask_rate: f32) -> Result<Decided> {
        let refuse = || EngineError::Internal { reason: "network gave no distribution".into() };
        let summary = RowSummary::of(row, Some(self.generator.special.mask)).ok_or_else(refuse)?;
        let logit = *row.get(token as usize).ok_or_else(refuse)?;
        let confidence = summary.log_probability(logit).min(0.0).exp();
        Ok(Decided { token, confidence, entropy: summary.entropy, mask_rate, step: self.step })
    }

    /// Shows the canvas: `fills` are the holes begun so far, `None` for an undecided token; later holes are all undecided.
    pub fn show(&mut self, fills: &[Vec<Option<u32>>]) -> Result<()> {
        let (mut canvas, mut decided, mut holes) = (String::new(), 0, 0);
        let mut fills = fills.iter();
        for piece in &self.plan.pieces {
            match piece {
                PlanPiece::Text { text, .. } => canvas.push_str(text),
                PlanPiece::Hole { min, max, .. } => {
                    let unknown = vec![None; *min];
                    let fill = fills.next().unwrap_or(&unknown);
                    holes += fill.len().clamp(*min, *max);
                    for run in fill.chunk_by(|a, b| a.is_some() == b.is_some()) {
                        let tokens: Vec<u32> = run.iter().copied().flatten().collect();
                        decided += tokens.len();
                        canvas.push_str(&self.generator.decode(&tokens)?);
                        canvas.push_str(&UNDECIDED.repeat(run.len() - tokens.len()));
                    }
                    canvas.push_str(&UNDECIDED.repeat(min.saturating_sub(fill.len())));
                }
            }
        }
        (self.observe)(CanvasEvent {
            step: self.step,
            steps_total: self.steps_total.max(self.step),
            canvas,
            decided: decided as u32,
            holes: holes as u32,
        });
        Ok(())
    }
}
