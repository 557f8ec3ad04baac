//! Several networks as one distribution: adapters composed (L0), and classifier-free guidance.
//!
//! All members read the same canvas behind their own prompts, so that one canvas position is one row of each.

use mneme_diffusion::guidance::{OnlineWeights, Weights, classifier_free, compose};
use mneme_diffusion::numeric::log_sum_exp;
use mneme_engine_api::EngineError;
use tch::Tensor;

use crate::error::Result;
use crate::generate::stream::{Mark, Stream};
use crate::nn::visibility::Visibility;

/// Share of the weight that is spread anew over all members at each token: lets the weights follow a change of topic
/// (fixed share, Herbster and Warmuth 1998).
const FIXED_SHARE: f64 = 0.02;

/// Tokens of the given text, from its end, that the weights of members are judged by.
const EVIDENCE_TOKENS: usize = 64;

/// Networks that answer together.
#[derive(Debug)]
pub struct Ensemble<'a> {
    /// Composed by their weights; the first is the base.
    members: Vec<Stream<'a>>,
    weights: Weights,
    /// Reads the canvas without the memories, when guidance is asked for.
    unconditional: Option<Stream<'a>>,
    guidance_scale: f32,
    vocabulary: usize,
    /// Evaluations of the whole ensemble so far.
    pub evaluations: u32,
    log_z: (f64, u64),
}

/// Hidden states of one window, for every stream.
#[derive(Debug)]
pub struct Hidden {
    states: Vec<Tensor>,
    carry: Option<Carry>,
}

/// The row that stands before undecided tokens.
#[derive(Debug, Clone, Copy)]
struct Carry {
    /// Decided tokens before it.
    decided: usize,
    /// Whether it predicts the first undecided token; otherwise the decided row does, exactly.
    leads: bool,
}

impl Hidden {
    /// The row that predicts a place, counted with the prefix's last as row 0.
    fn row_of(&self, place: usize) -> i64 {
        let is_behind = |carry: Carry| place > carry.decided || (place == carry.decided && carry.leads);
        place as i64 + i64::from(self.carry.is_some_and(is_behind))
    }
}

/// A place in all streams.
#[derive(Debug)]
pub struct Marks(Vec<Mark>);

fn internal(error: impl std::fmt::Display) -> EngineError {
    EngineError::Internal { reason: error.to_string() }
}

impl<'a> Ensemble<'a> {
    /// Puts streams together. `prior`: one weight for each member.
    pub fn new(
        members: Vec<Stream<'a>>,
        prior: &[f64],
        unconditional: Option<Stream<'a>>,
        guidance_scale: f32,
        vocabulary: usize,
    ) -> Result<Self> {
        let weights = Weights::new(prior).map_err(|error| EngineError::invalid("adapters", error.to_string()))?;
        Ok(Self { members, weights, unconditional, guidance_scale, vocabulary, evaluations: 0, log_z: (0.0, 0) })
    }

    /// The first member, the base.
    pub fn base(&mut self) -> &mut Stream<'a> {
        &mut self.members[0]
    }

    /// The weight of each member.
    pub fn weights(&self) -> &[f64] {
        self.weights.as_slice()
    }

    /// Mean `-log Z` of the composition (nats a token); 0 for one member.
    pub fn disagreement(&self) -> f32 {
        if self.log_z.1 == 0 { 0.0 } else { (-self.log_z.0 / self.log_z.1 as f64) as f32 }
    }

    /// Length of a row.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn streams(&mut self) -> impl Iterator<Item = &mut Stream<'a>> {
        self.members.iter_mut().chain(self.unconditional.as_mut())
    }

    /// Reads the prompts: `conditional` for the members, `unconditional` for the guidance stream.
    pub fn prompt(
        &mut self,
        conditional: &[u32],
        unconditional: &[u32],
        between: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        for member in &mut self.members {
            member.feed(conditional, between)?;
        }
        match &mut self.unconditional {
            Some(stream) => stream.feed(unconditional, between),
            None => Ok(()),
        }
    }

    /// Reads text of the canvas into all streams and lets it judge the members: Bayes weights by how well each predicts it.
    pub fn read(&mut self, text: &[u32], between: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        if self.members.len() == 1 || text.is_empty() {
            return self.feed(text, between);
        }
        let (early, evidence) = text.split_at(text.len().saturating_sub(EVIDENCE_TOKENS));
        self.feed(early, between)?;
        let mut losses: Vec<Vec<f64>> = Vec::new();
        between()?;
        let hidden = self.peek(evidence, Visibility::Causal)?;
        for (member, hidden) in self.members.iter().zip(&hidden.states) {
            let rows = match member.tail() {
                Ok(tail) => Tensor::f_cat(&[tail, &hidden.f_narrow(0, 0, evidence.len() as i64 - 1)?], 0)?,
                Err(_) => hidden.f_narrow(0, 0, evidence.len() as i64)?,
            };
            let rows = member.logit_rows(&rows)?;
            let loss = |(row, token): (&[f32], &u32)| {
                log_sum_exp(row) - row.get(*token as usize).map_or(f64::NEG_INFINITY, |logit| f64::from(*logit))
            };
            losses.push(rows.chunks_exact(self.vocabulary).zip(evidence).map(loss).collect());
        }
        let mut online = OnlineWeights::new(self.weights.clone(), FIXED_SHARE).map_err(internal)?;
        for token in 0..evidence.len() {
            let of_token: Vec<f64> = losses.iter().map(|of_member| of_member[token]).collect();
            online.update(&of_token).map_err(internal)?;
        }
        self.weights = online.weights();
        self.commit(&hidden, evidence.len())
    }

    /// Reads tokens left to right and commits them.
    pub fn feed(&mut self, tokens: &[u32], between: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        if tokens.is_empty() {
            return Ok(());
        }
        self.evaluations += 1;
        self.streams().try_for_each(|stream| stream.feed(tokens, between))
    }

    /// Evaluates a window behind the prefix without committing it.
    pub fn peek(&mut self, tokens: &[u32], visibility: Visibility<'_>) -> Result<Hidden> {
        self.evaluations += 1;
        let states = self.streams().map(|stream| stream.peek(tokens, visibility)).collect::<Result<_>>()?;
        Ok(Hidden { states, carry: None })
    }

    /// Evaluates decided tokens, left to right, and undecided ones behind them that see everything. With nothing decided behind
    /// it, `is_open`, the first undecided token comes exactly from the row before it.
    pub fn peek_undecided(&mut self, decided: &[u32], undecided: &[u32], is_open: bool) -> Result<Hidden> {
        self.evaluations += 1;
        let (mut states, mut has_carry) = (Vec::new(), false);
        for stream in self.streams() {
            let (hidden, carries) = stream.peek_undecided(decided, undecided)?;
            states.push(hidden);
            has_carry = carries;
        }
        Ok(Hidden { states, carry: has_carry.then_some(Carry { decided: decided.len(), leads: !is_open }) })
    }

    /// Reads the text after a hole of `hole` tokens that begins here; see [`Stream::look_ahead`].
    pub fn look_ahead(&mut self, text: &[u32], hole: usize) -> Result<()> {
        self.evaluations += 1;
        self.streams().try_for_each(|stream| stream.look_ahead(text, hole))
    }

    /// Logits of the next place of such a hole, of which `written` is decided. `[vocabulary]`.
    pub fn middle_row(&mut self, written: &[u32]) -> Result<Vec<f32>> {
        self.evaluations += 1;
        let states = self.streams().map(|stream| stream.write_middle(written)).collect::<Result<_>>()?;
        self.rows(Some(&Hidden { states, carry: None }), &[1])
    }

    /// Commits the first `count` tokens of a window that was peeked at causally.
    pub fn commit(&mut self, hidden: &Hidden, count: usize) -> Result<()> {
        self.streams().zip(&hidden.states).try_for_each(|(stream, hidden)| stream.commit(hidden, count))
    }

    /// Remembers where all streams stand.
    pub fn mark(&self) -> Result<Marks> {
        let streams = self.members.iter().chain(self.unconditional.as_ref());
        Ok(Marks(streams.map(Stream::mark).collect::<Result<_>>()?))
    }

    /// Goes back to a mark.
    pub fn rewind(&mut self, marks: &Marks) {
        self.streams().zip(&marks.0).for_each(|(stream, mark)| stream.rewind(mark));
    }

    /// Logits of the token after the prefix. `[vocabulary]`.
    pub fn next_row(&mut self) -> Result<Vec<f32>> {
        self.rows(None, &[0])
    }

    /// Logits of places of a window, by the shift: place 0 is predicted by the prefix, place `i` by the window's row `i - 1`.
    /// A place may be one past the window's end.
    ///
    /// # Shapes
    /// `[places, vocabulary]`.
    pub fn rows(&mut self, window: Option<&Hidden>, places: &[usize]) -> Result<Vec<f32>> {
        let row_of = |place: &usize| window.map_or(*place as i64, |hidden| hidden.row_of(*place));
        let index: Vec<i64> = places.iter().map(row_of).collect();
        let read = |stream: &Stream<'a>, number: usize| -> Result<Vec<f32>> {
            let rows = match window.and_then(|hidden| hidden.states.get(number)) {
                Some(hidden) => Tensor::f_cat(&[stream.tail()?, hidden], 0)?,
                None => stream.tail()?.shallow_clone(),
            };
            let index = Tensor::f_from_slice(&index)?.f_to_device(rows.device())?;
            stream.logit_rows(&rows.f_index_select(0, &index)?)
        };
        let mut all = Vec::with_capacity(self.members.len());
        for (number, member) in self.members.iter().enumerate() {
            all.push(read(member, number)?);
        }
        let mut rows = if all.len() == 1 { all.remove(0) } else { self.compose(&all)? };
        if let Some(stream) = &self.unconditional {
            let plain = read(stream, self.members.len())?;
            let pairs = rows.chunks_exact_mut(self.vocabulary).zip(plain.chunks_exact(self.vocabulary));
            for (conditional, unconditional) in pairs {
                classifier_free(conditional, unconditional, self.guidance_scale).map_err(internal)?;
            }
        }
        Ok(rows)
    }

    fn compose(&mut self, all: &[Vec<f32>]) -> Result<Vec<f32>> {
        let mut composed = Vec::with_capacity(all[0].len());
        for start in (0..all[0].len()).step_by(self.vocabulary) {
            let rows: Vec<&[f32]> = all.iter().map(|member| &member[start..start + self.vocabulary]).collect();
            let one = compose(&rows, &self.weights).map_err(internal)?;
            self.log_z.0 += one.log_z;
            self.log_z.1 += 1;
            composed.extend(one.log_probabilities);
        }
        Ok(composed)
    }
}
