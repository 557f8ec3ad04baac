//! Puts the first hits into a better order by how likely the question is after each of them (query likelihood).
//!
//! Measured on long chats, likelihood alone orders worse than the first stage; fused with it, better. So it is fused.

use crate::domain::{Hit, Signal};
use mneme_base::Score;

/// What the generator says about one hit: log P(question | text), per token, of the text alone and with its context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RerankScores {
    /// Given the memory's own text.
    pub own: f32,
    /// Given the date, the previous memory and the memory.
    pub context: f32,
}

/// Rank constant of the fusion: small, because only the first places matter here.
const K: f32 = 10.0;
/// What the places by likelihood count against the place of the first stage.
const WEIGHT: f32 = 0.5;

/// Orders hits anew: `1/(10 + place) + 0.5/(10 + place by own) + 0.5/(10 + place by context)`.
///
/// `scores` belongs to the first `scores.len()` hits; later hits keep their order behind them. Scores that are not finite
/// count as the lowest. Explanations, where there are any, gain a `rerank` signal.
pub fn fuse_reranked(mut hits: Vec<Hit>, scores: &[RerankScores]) -> Vec<Hit> {
    let count = scores.len().min(hits.len());
    let rest = hits.split_off(count);
    let own = places(scores.iter().take(count).map(|score| score.own));
    let context = places(scores.iter().take(count).map(|score| score.context));
    let mut ordered: Vec<Hit> = hits
        .into_iter()
        .enumerate()
        .map(|(at, mut hit)| {
            let added = WEIGHT / (K + own[at] as f32) + WEIGHT / (K + context[at] as f32);
            hit.score = Score::new(1.0 / (K + at as f32 + 1.0) + added);
            if let Some(explanation) = &mut hit.explanation {
                let (rank, score) = (own[at].min(context[at]), scores[at].own.max(scores[at].context));
                explanation.signals.push(Signal { name: "rerank".into(), rank, score, contribution: added });
            }
            hit
        })
        .collect();
    ordered.sort_by_key(|hit| std::cmp::Reverse(hit.score));
    ordered.extend(rest);
    ordered
}

/// The place of each score, from 1; the largest score has place 1.
fn places(scores: impl Iterator<Item = f32>) -> Vec<u32> {
    let scores: Vec<Score> = scores.map(Score::new).collect();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].cmp(&scores[*a]));
    let mut places = vec![0; scores.len()];
    for (place, at) in order.into_iter().enumerate() {
        places[at] = place as u32 + 1;
    }
    places
}
