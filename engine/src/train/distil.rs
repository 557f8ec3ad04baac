//! What two steps of the teacher would say, for a student that is to say it in one (SDTT, Deschenaux and Gulcehre 2024,
//! arXiv 2410.21035). After a round the student is the teacher of the next, so that each round halves the steps that a text takes.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::nn::adapter::Adapter;
use crate::nn::backbone::{Additions, Backbone};
use crate::train::objective::{Clean, hidden};
use crate::train::segments::{Guess, Segments};

/// Hidden states of the step in which the teacher would decide each guess: the surer half of a segment in its first step, the rest
/// in a second one that sees them decided, by the likeliest token as holes are filled by default.
///
/// # Shapes
/// `[guesses with a row, hidden]`, in their order.
pub(crate) fn two_steps(
    backbone: &Backbone,
    teacher: &Adapter,
    clean: &mut Clean,
    segments: &Segments,
) -> Result<Option<Tensor>> {
    let _guard = tch::no_grad_guard();
    let guesses: Vec<(usize, Guess)> = segments.guesses.iter().filter_map(|g| Some((g.row?, *g))).collect();
    if guesses.is_empty() {
        return Ok(None);
    }
    let adapters = [teacher];
    let index: Vec<i64> = guesses.iter().map(|(row, _)| *row as i64).collect();
    let index = Tensor::f_from_slice(&index)?.f_to_device(backbone.device())?;
    let first = hidden(backbone, Additions::adapters(&adapters), clean, segments)?.f_index_select(0, &index)?;
    let scores = backbone.logits(&first)?;
    // The mask itself is never written.
    let _ = scores.f_narrow(1, backbone.config.mask_token, 1)?.f_fill_(f64::NEG_INFINITY)?;
    let (likeliest, tokens) = scores.f_max_dim(-1, false)?;
    let sureness = Vec::<f32>::try_from(&likeliest.f_sub(&scores.f_logsumexp([-1], false)?)?)?;
    let tokens = Vec::<i64>::try_from(&tokens)?;
    let mut decided = segments.clone();
    let mut is_second = vec![1.0_f32; guesses.len()];
    let segment_of = |number: &usize| segments.roles[guesses[*number].0].segment;
    let numbers: Vec<usize> = (0..guesses.len()).collect();
    for own in numbers.chunk_by(|a, b| segment_of(a) == segment_of(b)) {
        let mut own = own.to_vec();
        own.sort_by(|a, b| sureness[*b].total_cmp(&sureness[*a]).then(a.cmp(b)));
        for number in &own[..own.len().div_ceil(2)] {
            // A token stands one row after the row that predicts it.
            decided.tokens[guesses[*number].0 + 1] = tokens[*number];
            is_second[*number] = 0.0;
        }
    }
    let second = hidden(backbone, Additions::adapters(&adapters), clean, &decided)?.f_index_select(0, &index)?;
    let is_second = Tensor::f_from_slice(&is_second)?.f_to_device(backbone.device())?.f_unsqueeze(1)?;
    Ok(Some(second.f_where_self(&is_second.f_to_kind(Kind::Bool)?, &first)?))
}
