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
/// `count` is how many hits there are, `scores` belongs to the first of them; later hits keep their order behind. Gives the old
/// place (from 0) and the fused score of each hit, in the new order. Scores that are not finite count as the lowest.
pub fn fuse_reranked(count: usize, scores: &[RerankScores]) -> Vec<(usize, f32)> {
    let scored = scores.len().min(count);
    let own = places(scores[..scored].iter().map(|score| score.own));
    let context = places(scores[..scored].iter().map(|score| score.context));
    let first = |at: usize| 1.0 / (K + at as f32 + 1.0);
    let mut order: Vec<(usize, f32)> = (0..scored)
        .map(|at| (at, first(at) + WEIGHT / (K + own[at] as f32) + WEIGHT / (K + context[at] as f32)))
        .collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    order.extend((scored..count).map(|at| (at, first(at) * WEIGHT)));
    order
}

/// Puts hits into the order of [`fuse_reranked`]; explanations, where there are any, gain a `rerank` signal.
pub fn rerank_hits(hits: Vec<Hit>, scores: &[RerankScores]) -> Vec<Hit> {
    let order = fuse_reranked(hits.len(), scores);
    let mut hits: Vec<Option<Hit>> = hits.into_iter().map(Some).collect();
    let mut ordered = Vec::with_capacity(hits.len());
    for (new, (old, fused)) in order.into_iter().enumerate() {
        let Some(mut hit) = hits[old].take() else { continue };
        hit.score = Score::new(fused);
        if let (Some(explanation), Some(score)) = (&mut hit.explanation, scores.get(old)) {
            explanation.signals.push(Signal {
                name: "rerank".into(),
                rank: new as u32 + 1,
                score: score.own.max(score.context),
                contribution: fused - 1.0 / (K + old as f32 + 1.0),
            });
        }
        ordered.push(hit);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likelihood_moves_hits_but_does_not_rule() {
        let scores = [0.0, -1.0, 5.0].map(|score| RerankScores { own: score, context: score });
        let order: Vec<usize> = fuse_reranked(5, &scores).into_iter().map(|(at, _)| at).collect();
        assert_eq!(order, [0, 2, 1, 3, 4]);
    }

    #[test]
    fn scores_that_are_no_numbers_come_last() {
        let scores = [f32::NAN, -9.0].map(|score| RerankScores { own: score, context: score });
        assert_eq!(places(scores.iter().map(|score| score.own)), [2, 1]);
        assert!(fuse_reranked(0, &scores).is_empty());
    }
}
