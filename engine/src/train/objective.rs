//! Loss of masked tokens and its gradient, with the output layer differentiated by hand.
//!
//! The output layer is the widest part by far (49,152 rows): its softmax and gradient are made in place, a few rows at a time, and
//! only the gradient of the hidden states enters the graph of the rest.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::nn::adapter::Adapter;
use crate::nn::backbone::{Additions, Backbone, Window};
use crate::nn::cache::KvCache;
use crate::nn::visibility::Visibility;
use crate::train::segments::{Guess, Segments};

/// Rows of logits that exist at a time.
const LOGIT_ROWS: usize = 128;

/// A text read left to right by the base: what segments are predicted behind.
#[derive(Debug)]
pub struct Clean {
    cache: KvCache,
    /// `[length, hidden]`, normed.
    hidden: Tensor,
}

impl Clean {
    /// Reads a text without gradients. Adapters that reach everywhere change it too.
    pub fn read(backbone: &Backbone, additions: Additions<'_>, text: &[i64]) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let mut cache = backbone.cache(text.len() as i64)?;
        let positions: Vec<i64> = (0..text.len() as i64).collect();
        let window = Window { tokens: text, positions: &positions, visibility: Visibility::Causal };
        let hidden = backbone.hidden(&window, Some(&mut cache), additions)?;
        cache.commit(text.len() as i64);
        Ok(Self { cache, hidden })
    }
}

impl Clean {
    /// Reads texts after holes behind the text, without gradients, each without a word of its hole. Segments that are read later do
    /// not see them, but for the holes that they belong to; what was read so before is dropped.
    pub fn read_suffixes(&mut self, backbone: &Backbone, additions: Additions<'_>, suffixes: &Segments) -> Result<()> {
        let _guard = tch::no_grad_guard();
        self.cache.truncate(self.hidden.size().first().copied().unwrap_or(0));
        let rows = suffixes.tokens.len() as i64;
        if rows > 0 {
            self.cache.grow(rows)?;
            let _ = hidden(backbone, additions, self, suffixes)?;
            self.cache.commit(rows);
        }
        Ok(())
    }
}

/// Hidden states of segments behind a clean text. `[rows, hidden]`.
pub(crate) fn hidden(
    backbone: &Backbone,
    additions: Additions<'_>,
    clean: &mut Clean,
    segments: &Segments,
) -> Result<Tensor> {
    let visibility = Visibility::Segments(&segments.roles);
    let window = Window { tokens: &segments.tokens, positions: &segments.positions, visibility };
    clean.cache.reserve(segments.tokens.len() as i64);
    backbone.hidden(&window, Some(&mut clean.cache), additions)
}

/// The loss of each guess (nats), in order.
pub fn losses(
    backbone: &Backbone,
    additions: Additions<'_>,
    clean: &mut Clean,
    segments: &Segments,
    text: &[i64],
) -> Result<Vec<f32>> {
    let _guard = tch::no_grad_guard();
    // At block 1 the base has said everything.
    let rows = if segments.guesses.iter().any(|guess| guess.row.is_some()) { segments.roles.len() as i64 } else { 0 };
    let all = if rows > 0 {
        Tensor::f_cat(&[&hidden(backbone, additions, clean, segments)?, &clean.hidden], 0)?
    } else {
        clean.hidden.shallow_clone()
    };
    let mut losses = Vec::with_capacity(segments.guesses.len());
    for chunk in segments.guesses.chunks(LOGIT_ROWS) {
        let index: Vec<i64> =
            chunk.iter().map(|guess| guess.row.map_or(rows + guess.place as i64 - 1, |row| row as i64)).collect();
        let index = Tensor::f_from_slice(&index)?.f_to_device(all.device())?;
        let logits = backbone.logits(&all.f_index_select(0, &index)?)?;
        let chosen = logits.f_gather(1, &tokens_of(chunk, text, logits.device())?, false)?.f_squeeze_dim(1)?;
        losses.extend(crate::generator::rows_of(&logits.f_logsumexp([-1], false)?.f_sub(&chosen)?)?);
    }
    Ok(losses)
}

/// A loss to go back from, and what it says.
#[derive(Debug)]
pub struct Graph {
    /// Its gradient is that of the loss; its value means nothing.
    pub surrogate: Tensor,
    /// Sum of weighted losses against the text itself (nats).
    pub loss: f64,
    /// Tokens that were guessed.
    pub guesses: usize,
}

/// Who says what is to be predicted besides the text itself.
#[derive(Debug, Clone, Copy)]
pub enum Teaching<'a> {
    /// The base has this share of the target where nothing is known after a token: it reads all that is before it, so that its
    /// distribution says more than the one token that followed (Hinton et al. 2015), and drafts are verified by it. Where
    /// something is known after the token, the base could only mislead.
    Base(f64),
    /// A teacher has all of it, by these hidden states: `[guesses with a row, hidden]`.
    Teacher(&'a Tensor),
}

/// Runs segments with a graph. Weighted losses are divided by `tokens`.
///
/// `None` when no guess needs the network.
pub fn graph(
    backbone: &Backbone,
    adapters: &[&Adapter],
    clean: &mut Clean,
    segments: &Segments,
    text: &[i64],
    teaching: Teaching<'_>,
    tokens: f64,
) -> Result<Option<Graph>> {
    let mut guesses: Vec<Guess> = segments.guesses.iter().filter(|guess| guess.row.is_some()).copied().collect();
    if matches!(teaching, Teaching::Base(_)) {
        // Those that are taught come first, so that most chunks without them need no teacher.
        guesses.sort_by_key(|guess| !guess.is_last);
    }
    if guesses.is_empty() {
        return Ok(None);
    }
    let hidden = hidden(backbone, Additions::adapters(adapters), clean, segments)?;
    let index: Vec<i64> = guesses.iter().filter_map(|guess| guess.row).map(|row| row as i64).collect();
    let guessing = hidden.f_index_select(0, &Tensor::f_from_slice(&index)?.f_to_device(hidden.device())?)?;
    let (mut gradients, mut loss) = (Vec::new(), 0.0);
    for (number, chunk) in guesses.chunks(LOGIT_ROWS).enumerate() {
        let _guard = tch::no_grad_guard();
        let count = chunk.len() as i64;
        let device = hidden.device();
        let own = guessing.f_detach()?.f_narrow(0, (number * LOGIT_ROWS) as i64, count)?;
        let mut scores = backbone.logits(&own)?;
        let wanted = tokens_of(chunk, text, device)?;
        let norm = scores.f_logsumexp([-1], true)?;
        let weights: Vec<f32> = chunk.iter().map(|guess| (guess.weight / tokens) as f32).collect();
        let weights = Tensor::f_from_slice(&weights)?.f_to_device(device)?.f_unsqueeze(1)?;
        let own_loss = norm.f_sub(&scores.f_gather(1, &wanted, false)?)?;
        loss += own_loss.f_mul(&weights)?.f_sum(Kind::Float)?.f_double_value(&[])?;
        // softmax(scores) - target, each row times its weight.
        let _ = scores.f_sub_(&norm)?.f_exp_()?;
        let share = |guess: &Guess| match teaching {
            Teaching::Base(share) if guess.is_last => share as f32,
            Teaching::Base(_) => 0.0,
            Teaching::Teacher(_) => 1.0,
        };
        let taught: Vec<f32> = chunk.iter().map(share).collect();
        let share = Tensor::f_from_slice(&taught)?.f_to_device(device)?.f_unsqueeze(1)?;
        let _ = scores.f_scatter_add_(1, &wanted, &share.f_sub_scalar(1.0)?)?;
        if taught.iter().any(|share| *share > 0.0) {
            let states = match teaching {
                Teaching::Teacher(states) => states.f_narrow(0, (number * LOGIT_ROWS) as i64, count)?,
                Teaching::Base(_) => {
                    let before: Vec<i64> = chunk.iter().map(|guess| guess.place as i64 - 1).collect();
                    clean.hidden.f_index_select(0, &Tensor::f_from_slice(&before)?.f_to_device(device)?)?
                }
            };
            let teacher = backbone.logits(&states)?;
            let _ = scores.f_addcmul_(&teacher.f_softmax(-1, Kind::Float)?, &share.f_neg()?)?;
        }
        let _ = scores.f_mul_(&weights)?;
        gradients.push(backbone.logits_backward(&scores)?);
    }
    let gradient = Tensor::f_cat(&gradients, 0)?;
    let surrogate = guessing.f_mul(&gradient)?.f_sum(Kind::Float)?;
    Ok(Some(Graph { surrogate, loss, guesses: guesses.len() }))
}

/// The tokens to predict. `[guesses, 1]`.
fn tokens_of(guesses: &[Guess], text: &[i64], device: tch::Device) -> Result<Tensor> {
    let tokens: Vec<i64> = guesses.iter().map(|guess| text[guess.place]).collect();
    Ok(Tensor::f_from_slice(&tokens)?.f_to_device(device)?.f_unsqueeze(1)?)
}
