//! One network reading one text: a committed causal prefix and a window behind it.

use std::sync::{Arc, PoisonError};

use tch::Tensor;

use crate::error::{ModelError, Result};
use crate::generator::{Generator, SharedAdapter, rows_of};
use crate::nn::backbone::{Additions, Window};
use crate::nn::cache::KvCache;
use crate::nn::visibility::Visibility;

/// Tokens of one evaluation while a long prefix is read; between them the work can be cancelled.
const CHUNK_TOKENS: usize = 512;

/// Rows of logits that exist at a time: each is as long as the vocabulary.
const LOGIT_ROWS: usize = 64;

/// One token under the distribution that predicted it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged {
    /// Its log-probability (nats).
    pub likelihood: f32,
    /// Entropy of the distribution (nats).
    pub entropy: f32,
    /// Sum of its squared probabilities.
    pub agreement: f32,
    /// Its largest probability.
    pub top: f32,
}

/// A network, its prefix, and the hidden state of the prefix's last token.
#[derive(Debug)]
pub struct Stream<'a> {
    generator: &'a Generator,
    adapters: Vec<Arc<SharedAdapter>>,
    cache: KvCache,
    /// Projected memories, `[memories, hidden] f32`.
    memories: Option<Tensor>,
    /// `[1, hidden]`: by the shift, the logits of the next position come from it.
    tail: Option<Tensor>,
    /// The last committed token: it is seen once more by what is undecided after it.
    last: Option<u32>,
    /// The window that was evaluated last.
    window: Vec<u32>,
    /// Where the hole begins that is written with the text after it in view.
    hole: i64,
}

impl<'a> Stream<'a> {
    /// An empty stream for texts up to `tokens_max` tokens.
    pub fn new(generator: &'a Generator, adapters: Vec<Arc<SharedAdapter>>, tokens_max: usize) -> Result<Self> {
        // One more for the carry of a window that fills the rest.
        let cache = generator.backbone().cache(tokens_max as i64 + 1)?;
        Ok(Self { generator, adapters, memories: None, cache, tail: None, last: None, window: Vec::new(), hole: 0 })
    }

    /// Lets the network attend to memories, given by their embeddings; without a conditioner it cannot.
    pub fn attend_to(&mut self, embeddings: &[&[f32]]) -> Result<()> {
        let conditioner = self.generator.conditioner();
        let conditioner = conditioner.ok_or_else(|| ModelError::load("conditioner", "this model has none"))?;
        self.memories = Some(conditioner.project(embeddings)?);
        Ok(())
    }

    /// Committed tokens.
    pub fn len(&self) -> usize {
        self.cache.len() as usize
    }

    /// Whether nothing is committed.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// Evaluates tokens behind the prefix without committing them.
    ///
    /// # Shapes
    /// `[tokens, hidden]`, normed.
    pub fn peek(&mut self, tokens: &[u32], visibility: Visibility<'_>) -> Result<Tensor> {
        let places: Vec<usize> = (0..tokens.len()).collect();
        self.peek_at(tokens, &places, visibility)
    }

    /// Evaluates decided tokens, left to right, and undecided ones behind them that see everything. A model that was adapted to
    /// masked diffusion reads the decided token before the first undecided one once more, as its carry: a row that sees what is
    /// known after it. Returns whether there is one; it is the row after the decided ones.
    pub fn peek_undecided(&mut self, decided: &[u32], undecided: &[u32]) -> Result<(Tensor, bool)> {
        let carry = decided.last().copied().or(self.last).filter(|_| self.generator.adapter_zero.is_some());
        let tokens: Vec<u32> = decided.iter().chain(&carry).chain(undecided).copied().collect();
        let start = self.cache.len();
        let first = start + decided.len() as i64 - i64::from(carry.is_some());
        let positions: Vec<i64> = (start..start + decided.len() as i64)
            .chain((0..(tokens.len() - decided.len()) as i64).map(|place| first + place))
            .collect();
        let visibility =
            if decided.is_empty() { Visibility::All } else { Visibility::Draft { decided: decided.len() } };
        Ok((self.evaluate(&tokens, &positions, visibility)?, carry.is_some()))
    }

    /// Reads the text after a hole of `hole` tokens that begins here, so that what is written into it sees that text. The stream
    /// stays where it is; going back to a mark forgets the text again.
    pub fn look_ahead(&mut self, text: &[u32], hole: usize) -> Result<()> {
        self.hole = self.cache.len();
        let first = self.hole + hole as i64;
        let positions: Vec<i64> = (first..first + text.len() as i64).collect();
        if !text.is_empty() {
            let _ = self.evaluate(text, &positions, Visibility::Causal)?;
            self.cache.commit(text.len() as i64);
        }
        Ok(())
    }

    /// Reads the token before a place of such a hole, as written; at its first place that is the token before the hole once more.
    /// What it gives predicts the place.
    ///
    /// # Shapes
    /// `[1, hidden]`, normed.
    pub fn write_middle(&mut self, written: &[u32]) -> Result<Tensor> {
        let token = written.last().copied().or(self.last);
        let token = token.ok_or_else(|| ModelError::load("hole", "nothing stands before it"))?;
        let hidden = self.evaluate(&[token], &[self.hole + written.len() as i64 - 1], Visibility::Middle)?;
        self.cache.commit(1);
        Ok(hidden)
    }

    /// As [`Stream::peek`], with the place of each token counted from the end of the prefix: several texts in one window each
    /// start at place 0.
    pub fn peek_at(&mut self, tokens: &[u32], places: &[usize], visibility: Visibility<'_>) -> Result<Tensor> {
        let start = self.cache.len();
        let positions: Vec<i64> = places.iter().map(|place| start + *place as i64).collect();
        self.evaluate(tokens, &positions, visibility)
    }

    fn evaluate(&mut self, tokens: &[u32], positions: &[i64], visibility: Visibility<'_>) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let ids: Vec<i64> = tokens.iter().map(|token| i64::from(*token)).collect();
        self.window.clear();
        self.window.extend(tokens);
        let window = Window { tokens: &ids, positions, visibility };
        let backbone = self.generator.backbone();
        let held: Vec<_> = self.adapters.iter().map(|one| one.lock().unwrap_or_else(PoisonError::into_inner)).collect();
        let adapters: Vec<_> = held.iter().map(|adapter| &**adapter).collect();
        let conditioner = self.memories.as_ref().and_then(|memories| Some((self.generator.conditioner()?, memories)));
        let memories = conditioner.as_ref().map(|(conditioner, memories)| (&**conditioner, *memories));
        backbone.hidden(&window, Some(&mut self.cache), Additions { adapters: &adapters, memories })
    }

    /// Commits the first `count` tokens of the window that was peeked at causally, whose hidden states are given.
    pub fn commit(&mut self, hidden: &Tensor, count: usize) -> Result<()> {
        if count > 0 {
            self.tail = Some(hidden.f_narrow(0, count as i64 - 1, 1)?);
            self.last = self.window.get(count - 1).copied();
            self.cache.commit(count as i64);
        }
        Ok(())
    }

    /// Reads tokens left to right and commits them; `between` is asked before each evaluation.
    pub fn feed(&mut self, tokens: &[u32], between: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        for chunk in tokens.chunks(CHUNK_TOKENS) {
            between()?;
            let hidden = self.peek(chunk, Visibility::Causal)?;
            self.commit(&hidden, chunk.len())?;
        }
        Ok(())
    }

    /// Logits of rows of hidden states.
    ///
    /// # Shapes
    /// `[rows, vocabulary] f32`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        self.generator.backbone().logits(hidden)
    }

    /// As [`Stream::logits`], as numbers.
    pub fn logit_rows(&self, hidden: &Tensor) -> Result<Vec<f32>> {
        let _guard = tch::no_grad_guard();
        self.generator.backbone().logit_rows(hidden)
    }

    /// Log-probabilities that the causal mode gives to texts after the prefix; nothing is committed. The texts share one
    /// window, so that few evaluations read many.
    ///
    /// # Shapes
    /// For each text one number for each token (nats).
    pub fn likelihoods(&mut self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        self.read(texts, &mut |logits, chosen| {
            let chosen = logits.f_gather(1, chosen, false)?.f_squeeze_dim(1)?;
            rows_of(&chosen.f_sub(&logits.f_logsumexp([-1], false)?)?)
        })
    }

    /// As [`Stream::likelihoods`], with what else there is to know of each token's distribution.
    pub fn judged(&mut self, texts: &[&[u32]]) -> Result<Vec<Vec<Judged>>> {
        self.read(texts, &mut |logits, chosen| {
            let log = logits.f_log_softmax(-1, None)?;
            let p = log.f_exp()?;
            let column = |tensor: Tensor| rows_of(&tensor);
            let likelihood = column(log.f_gather(1, chosen, false)?.f_squeeze_dim(1)?)?;
            let sum = |tensor: &Tensor| tensor.f_sum_dim_intlist([-1_i64].as_slice(), false, tch::Kind::Float);
            let entropy = column(sum(&p.f_mul(&log)?)?.f_neg()?)?;
            let agreement = column(sum(&p.f_square()?)?)?;
            let top = column(p.f_amax([-1_i64].as_slice(), false)?)?;
            let judged = likelihood.into_iter().zip(entropy).zip(agreement).zip(top);
            Ok(judged
                .map(|(((likelihood, entropy), agreement), top)| Judged { likelihood, entropy, agreement, top })
                .collect())
        })
    }

    /// Reads texts after the prefix; `judge` gets `[rows, vocabulary]` logits and the `[rows, 1]` tokens that came.
    fn read<T: Clone>(
        &mut self,
        texts: &[&[u32]],
        judge: &mut dyn FnMut(&Tensor, &Tensor) -> Result<Vec<T>>,
    ) -> Result<Vec<Vec<T>>> {
        let _guard = tch::no_grad_guard();
        let tokens: Vec<u32> = texts.concat();
        if tokens.is_empty() {
            return Ok(vec![Vec::new(); texts.len()]);
        }
        let of_text: Vec<u32> = (0_u32..).zip(texts).flat_map(|(i, text)| vec![i; text.len()]).collect();
        let places: Vec<usize> = texts.iter().flat_map(|text| 0..text.len()).collect();
        let hidden = self.peek_at(&tokens, &places, Visibility::CausalTexts(&of_text))?;
        // A token is predicted by the row before it; the first of a text by the prefix, which is row 0 here.
        let rows: Vec<i64> =
            places.iter().enumerate().map(|(i, place)| if *place == 0 { 0 } else { i as i64 }).collect();
        let sources = Tensor::f_cat(&[self.tail()?, &hidden], 0)?;
        let mut all = Vec::with_capacity(tokens.len());
        for (rows, tokens) in rows.chunks(LOGIT_ROWS).zip(tokens.chunks(LOGIT_ROWS)) {
            let rows = Tensor::f_from_slice(rows)?.f_to_device(hidden.device())?;
            let wanted: Vec<i64> = tokens.iter().map(|token| i64::from(*token)).collect();
            let wanted = Tensor::f_from_slice(&wanted)?.f_to_device(hidden.device())?.f_unsqueeze(1)?;
            let logits = self.logits(&sources.f_index_select(0, &rows)?)?;
            all.extend(judge(&logits, &wanted)?);
        }
        let mut rest = all.as_slice();
        let split = |text: &&[u32]| {
            let (own, later) = rest.split_at(text.len());
            rest = later;
            own.to_vec()
        };
        Ok(texts.iter().map(split).collect())
    }

    /// The hidden state that predicts the token after the prefix.
    pub fn tail(&self) -> Result<&Tensor> {
        self.tail.as_ref().ok_or_else(|| ModelError::load("prefix", "nothing was read yet"))
    }

    /// Remembers where the stream stands.
    pub fn mark(&self) -> Result<Mark> {
        Ok(Mark { len: self.cache.len(), tail: self.tail.as_ref().map(Tensor::shallow_clone), last: self.last })
    }

    /// Forgets what was committed after a mark.
    pub fn rewind(&mut self, mark: &Mark) {
        self.cache.truncate(mark.len);
        self.tail = mark.tail.as_ref().map(Tensor::shallow_clone);
        self.last = mark.last;
    }
}

/// A place in a stream.
#[derive(Debug)]
pub struct Mark {
    len: i64,
    tail: Option<Tensor>,
    last: Option<u32>,
}
