//! The sampler itself: blocks in order, steps within a block, decisions within a step.

use std::sync::Arc;

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::rules::{Candidate, Course};
use super::{Canvas, CommitRule, Draw, LogitRows, Pacing, STEPS_MAX, SamplerError, Slot};
use crate::numeric::RowSummary;
use crate::random::uniform;
use crate::schedule::DiscreteSchedule;
use crate::uncertainty::ResidualTable;

/// How the open positions are cut into blocks that are finished one after the other (semi-autoregressive sampling).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blocks {
    /// All holes at once.
    #[default]
    Whole,
    /// Runs of this many open positions, each hole cut on its own (LLaDA).
    Holes(usize),
    /// Absolute positions divided by this size, as a network with a block-causal mask cuts them.
    Aligned(usize),
}

/// The settings of a sampler. The default is greedy, one block, 16 steps, confidence, an even split.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SamplerConfig {
    /// Which positions come first.
    pub rule: CommitRule,
    /// How many positions a step decides.
    pub pacing: Pacing,
    /// Steps for each block, 1 to [`STEPS_MAX`]; a block never takes more, and takes fewer when there is nothing left to decide.
    pub steps: u32,
    /// How holes are cut into blocks.
    pub blocks: Blocks,
    /// How a token is drawn.
    pub draw: Draw,
    /// Turns steps into mask rates for `Schedule`, `Remasking` and `Ancestral`.
    pub schedule: DiscreteSchedule,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            rule: CommitRule::default(),
            pacing: Pacing::default(),
            steps: 16,
            blocks: Blocks::default(),
            draw: Draw::default(),
            schedule: DiscreteSchedule::default(),
        }
    }
}

/// How one token came about: the uncertainty signals at the moment of its decision. All refer to the network's distribution at
/// temperature 1 without the mask token, whatever the draw was limited to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TokenTrace {
    /// Where it stands in the canvas.
    pub position: usize,
    /// The token.
    pub token: u32,
    /// The step that decided it, counted over all blocks from 0.
    pub step: u32,
    /// Probability of the token.
    pub confidence: f32,
    /// Log-probability of the token (nats).
    pub log_probability: f32,
    /// Gap between the first and the second probability of its distribution.
    pub margin: f32,
    /// Entropy of its distribution (nats): the ambiguity.
    pub entropy: f32,
    /// Share of its block's hole positions that were open when the step began.
    pub mask_rate: f32,
    /// `1 - confidence`.
    pub residual: f32,
    /// Residual over the residual expected at that mask rate; None without a table.
    pub surprise: Option<f32>,
}

/// What one step did.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// The step, counted over all blocks from 0.
    pub step: u32,
    /// The block it worked on.
    pub block: usize,
    /// What was decided, by position.
    pub committed: Vec<TokenTrace>,
    /// Decided positions that were opened again.
    pub remasked: Vec<usize>,
    /// Open positions left in all blocks.
    pub masked_left: usize,
    /// Whether everything is decided.
    pub done: bool,
}

/// Fills the holes of a canvas step by step. The same canvas, settings, logits and generator give the same result.
#[derive(Debug, Clone)]
pub struct DiscreteSampler {
    canvas: Canvas,
    config: SamplerConfig,
    residuals: Option<Arc<ResidualTable>>,
    /// Hole positions of each block, rising; blocks in order.
    blocks: Vec<Vec<usize>>,
    block: usize,
    step_in_block: u32,
    steps_done: u32,
    /// By position; None where nothing is decided.
    traces: Vec<Option<TokenTrace>>,
}

impl DiscreteSampler {
    /// Refuses settings out of their bounds. A canvas without open positions is done at once.
    pub fn new(canvas: Canvas, config: SamplerConfig) -> Result<Self, SamplerError> {
        config.rule.check()?;
        config.draw.check()?;
        if config.steps == 0 || config.steps > STEPS_MAX {
            return Err(SamplerError::parameter("steps", config.steps, "1 to 4096"));
        }
        let open: Vec<usize> = canvas.masked().collect();
        let blocks = match config.blocks {
            Blocks::Holes(0) | Blocks::Aligned(0) => {
                return Err(SamplerError::parameter("block size", 0, "at least 1"));
            }
            Blocks::Whole if open.is_empty() => Vec::new(),
            Blocks::Whole => vec![open],
            Blocks::Holes(size) => canvas
                .holes()
                .iter()
                .flat_map(|hole| {
                    hole.clone().collect::<Vec<_>>().chunks(size).map(<[usize]>::to_vec).collect::<Vec<_>>()
                })
                .collect(),
            Blocks::Aligned(size) => open.chunk_by(|a, b| a / size == b / size).map(<[usize]>::to_vec).collect(),
        };
        let traces = vec![None; canvas.tokens().len()];
        Ok(Self { canvas, config, residuals: None, blocks, block: 0, step_in_block: 0, steps_done: 0, traces })
    }

    /// Logs surprise ratios against this table.
    #[must_use]
    pub fn with_residuals(mut self, table: Arc<ResidualTable>) -> Self {
        self.residuals = Some(table);
        self
    }

    /// The canvas as it is now.
    pub fn canvas(&self) -> &Canvas {
        &self.canvas
    }

    /// The settings.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// Whether everything is decided.
    pub fn is_done(&self) -> bool {
        self.block >= self.blocks.len()
    }

    /// Steps taken so far: network evaluations spent.
    pub fn steps_done(&self) -> u32 {
        self.steps_done
    }

    /// At most this many steps in all, those done included; shrinks when a block is done early.
    pub fn steps_total(&self) -> u32 {
        let ahead = self.blocks.iter().skip(self.block + 1).map(|block| self.steps_of(block.len()));
        let now = self.blocks.get(self.block).map_or(0, |_| {
            let open = self.wanted().len();
            self.steps_of(open).min(self.config.steps.saturating_sub(self.step_in_block))
        });
        ahead.fold(self.steps_done.saturating_add(now), u32::saturating_add)
    }

    /// The active block: its index, and its hole positions, decided or not. Empty when done.
    pub fn active_block(&self) -> (usize, &[usize]) {
        (self.block, self.blocks.get(self.block).map_or(&[], Vec::as_slice))
    }

    /// The open positions of the active block, rising: the next step needs the logits of these and of no others.
    pub fn wanted(&self) -> Vec<usize> {
        let open = |position: &usize| self.canvas.slots().get(*position) == Some(&Slot::Masked);
        self.active_block().1.iter().copied().filter(open).collect()
    }

    /// How every decided token came about, by position.
    pub fn traces(&self) -> impl Iterator<Item = &TokenTrace> {
        self.traces.iter().flatten()
    }

    /// Mean log-probability of the decided tokens (nats), what candidate lengths are ranked by; None before any is decided.
    pub fn mean_log_probability(&self) -> Option<f64> {
        let (sum, count) =
            self.traces().fold((0.0, 0_usize), |(sum, n), t| (sum + f64::from(t.log_probability), n + 1));
        (count > 0).then(|| sum / count as f64)
    }

    /// Takes one step: chooses positions of the active block and decides each by a draw from its own row.
    ///
    /// `logits` needs a row for every position of [`Self::wanted`]; others are ignored. A done sampler reports nothing.
    pub fn step(&mut self, logits: &LogitRows<'_>, rng: &mut dyn Rng) -> Result<StepReport, SamplerError> {
        self.advance(logits, None, rng)
    }

    /// Takes one step in which every decided position gets the token that was proposed for it (by a constraint, a draft, an energy).
    /// The rules then go by the probability of the proposed token.
    ///
    /// `proposals` are `(position, token)` by rising position, one for each position of [`Self::wanted`].
    pub fn step_proposed(
        &mut self,
        logits: &LogitRows<'_>,
        proposals: &[(usize, u32)],
        rng: &mut dyn Rng,
    ) -> Result<StepReport, SamplerError> {
        self.advance(logits, Some(proposals), rng)
    }

    /// Decides every position after a stop token by a filler token, when all before it in its hole are decided, so that no network
    /// evaluation is spent on them. Returns how many positions were filled. They get no trace.
    pub fn finish_after_stop(&mut self, stops: &[u32], filler: u32) -> usize {
        let mut filled = 0;
        for hole in self.canvas.holes().to_vec() {
            let mut stopped = false;
            for position in hole {
                match self.canvas.slots()[position] {
                    Slot::Masked if stopped => {
                        self.canvas.decide(position, filler);
                        filled += 1;
                    }
                    Slot::Masked => break,
                    _ => stopped |= stops.contains(&self.canvas.tokens()[position]),
                }
            }
        }
        self.skip_finished_blocks();
        filled
    }

    fn advance(
        &mut self,
        logits: &LogitRows<'_>,
        proposals: Option<&[(usize, u32)]>,
        rng: &mut dyn Rng,
    ) -> Result<StepReport, SamplerError> {
        let block = self.block;
        let open = self.wanted();
        let mask_id = self.canvas.mask_id();
        let mut report = StepReport {
            step: self.steps_done,
            block,
            committed: Vec::new(),
            remasked: Vec::new(),
            masked_left: 0,
            done: self.is_done(),
        };
        if report.done {
            return Ok(report);
        }
        // Everything that can fail comes first, so that an error leaves the sampler as it was.
        let mut readings = Vec::with_capacity(open.len());
        for &position in &open {
            readings.push(Reading::of(position, logits, proposals, mask_id)?);
        }
        let mut candidates: Vec<Candidate> = readings.iter().map(Reading::candidate).collect();
        let course = self.course();
        let reopened = self.draw_remasked(course, rng);
        let chosen = self.config.rule.choose(&mut candidates, self.config.pacing, course, reopened.len(), rng);

        let mask_rate = open.len() as f32 / self.blocks[block].len() as f32;
        let mut decided = Vec::with_capacity(chosen.len());
        for &position in &chosen {
            let index = open.binary_search(&position).expect("rules choose among the open positions");
            let reading = &readings[index];
            let token = match reading.proposal {
                Some(token) => token,
                None if self.config.draw.temperature <= 0.0 => reading.summary.top,
                None => {
                    let drawn = self.config.draw.token(reading.row, Some(mask_id), rng);
                    drawn.ok_or(SamplerError::BadRow { position })?
                }
            };
            decided.push(self.trace(reading, token, mask_rate));
        }
        for &position in &reopened {
            self.canvas.reopen(position);
            self.traces[position] = None;
        }
        for trace in &decided {
            self.canvas.decide(trace.position, trace.token);
            self.traces[trace.position] = Some(*trace);
        }
        self.steps_done += 1;
        self.step_in_block += 1;
        self.skip_finished_blocks();
        report.committed = decided;
        report.remasked = reopened;
        report.masked_left = self.canvas.masked().count();
        report.done = self.is_done();
        Ok(report)
    }

    fn course(&self) -> Course {
        let steps = self.config.steps;
        let time = |step: u32| 1.0 - f64::from(step.min(steps)) / f64::from(steps);
        Course {
            steps_left: steps.saturating_sub(self.step_in_block),
            before: time(self.step_in_block),
            after: time(self.step_in_block + 1),
            schedule: self.config.schedule,
        }
    }

    /// Decided positions of the active block that are to be opened again; none in the last step, where the bound is 0.
    fn draw_remasked(&self, course: Course, rng: &mut dyn Rng) -> Vec<usize> {
        let CommitRule::Remasking { eta } = self.config.rule else { return Vec::new() };
        if course.steps_left <= 1 {
            return Vec::new();
        }
        let sigma = course.schedule.remask_bound(course.after, course.before).min(f64::from(eta));
        let decided = |position: &usize| self.canvas.slots()[*position] == Slot::Decided;
        self.active_block().1.iter().copied().filter(decided).filter(|_| uniform(rng) < sigma).collect()
    }

    fn trace(&self, reading: &Reading<'_>, token: u32, mask_rate: f32) -> TokenTrace {
        let log_probability = reading.summary.log_probability(reading.row[token as usize]).min(0.0);
        let confidence = log_probability.exp();
        let residual = 1.0 - confidence;
        TokenTrace {
            position: reading.position,
            token,
            step: self.steps_done,
            confidence,
            log_probability,
            margin: reading.summary.top_probability - reading.summary.second_probability,
            entropy: reading.summary.entropy,
            mask_rate,
            residual,
            surprise: self.residuals.as_ref().map(|table| table.surprise(residual, mask_rate)),
        }
    }

    fn skip_finished_blocks(&mut self) {
        while !self.is_done() && self.wanted().is_empty() {
            self.block += 1;
            self.step_in_block = 0;
        }
    }

    /// Steps that so many open positions can take at most.
    fn steps_of(&self, open: usize) -> u32 {
        match self.config.rule {
            // These may decide nothing, or take decisions back.
            CommitRule::Ancestral | CommitRule::Remasking { .. } => self.config.steps,
            _ => self.config.steps.min(u32::try_from(open).unwrap_or(u32::MAX)),
        }
    }
}

/// One open position with its row, read once.
struct Reading<'a> {
    position: usize,
    row: &'a [f32],
    summary: RowSummary,
    proposal: Option<u32>,
}

impl<'a> Reading<'a> {
    fn of(
        position: usize,
        logits: &LogitRows<'a>,
        proposals: Option<&[(usize, u32)]>,
        mask_id: u32,
    ) -> Result<Self, SamplerError> {
        let row = logits.row(position).ok_or(SamplerError::MissingRow { position })?;
        let summary = RowSummary::of(row, Some(mask_id)).ok_or(SamplerError::BadRow { position })?;
        let proposal = match proposals {
            None => None,
            Some(proposals) => {
                let index = proposals
                    .binary_search_by_key(&position, |(place, _)| *place)
                    .map_err(|_| SamplerError::BadProposal { position, token: mask_id })?;
                let token = proposals[index].1;
                if token == mask_id || token as usize >= row.len() {
                    return Err(SamplerError::BadProposal { position, token });
                }
                Some(token)
            }
        };
        Ok(Self { position, row, summary, proposal })
    }

    fn candidate(&self) -> Candidate {
        let summary = &self.summary;
        let (confidence, rival) = match self.proposal {
            Some(token) if token != summary.top => {
                (summary.log_probability(self.row[token as usize]).exp(), summary.top_probability)
            }
            _ => (summary.top_probability, summary.second_probability),
        };
        Candidate { position: self.position, confidence, margin: confidence - rival, entropy: summary.entropy }
    }
}
