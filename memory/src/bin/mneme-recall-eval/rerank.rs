//! What a generator reads of the first hits, and the orders that its likelihoods give.

use std::collections::HashMap;
use std::path::Path;

use mneme_base::ContentHash;
use mneme_memory::recall::{RerankFusion, RerankScores, fuse_reranked, rerank_contexts};
use serde::{Deserialize, Serialize};

use crate::stages::{Corpus, Indexed, Ranking, place};

/// Hits that a generator scores, at most.
const SCORED_HITS: usize = 50;
/// Hits that the daemon has scored.
pub(crate) const SHIPPED_HITS: usize = 30;

/// What a generator scores for one question.
#[derive(Debug, Serialize)]
pub(crate) struct Passages {
    /// By what its scores are found.
    key: String,
    question: String,
    /// For each hit: its [`rerank_contexts`], and the dated one with the turn before.
    contexts: Vec<Vec<String>>,
}

/// What a generator said of one question: for each hit the likelihood per token after each of its contexts.
#[derive(Debug, Deserialize)]
struct Scored {
    key: String,
    scores: Vec<Vec<f32>>,
}

/// The first hits of each question with what a generator reads of them.
pub(crate) fn passages(corpus: &Corpus, ranked: &[Ranking]) -> Vec<Passages> {
    let questions = corpus.chats.iter().flat_map(|indexed| indexed.chat.questions.iter().map(move |q| (indexed, q)));
    let one = |((indexed, question), ranking): ((&Indexed, &crate::chats::Question), &Ranking)| {
        let hits = ranking.iter().take(SCORED_HITS);
        let contexts: Vec<Vec<String>> = hits.map(|(turn, _)| contexts(indexed, *turn)).collect();
        let read = serde_json::to_vec(&(&question.text, &contexts)).expect("strings are JSON");
        Passages { key: ContentHash::of(&read).to_string(), question: question.text.clone(), contexts }
    };
    questions.zip(ranked).map(one).collect()
}

fn contexts(indexed: &Indexed, turn: usize) -> Vec<String> {
    let memories = &indexed.chat.memories;
    let [own, dated] = rerank_contexts(&memories[turn]);
    let near = indexed.index.neighbours(memories[turn].id).into_iter().map(place).filter(|other| *other < turn).max();
    let previous = near.map(|before| {
        let speaker = memories[before].speaker.as_deref().unwrap_or_default();
        format!("[{}]\n{speaker}: {}\n{own}", memories[turn].valid_from.date(), memories[before].text)
    });
    let previous = previous.unwrap_or_else(|| dated.clone());
    vec![own, dated, previous]
}

/// Reads what was scored: per question of `passages` its hits' likelihoods, empty where there are none.
pub(crate) fn read_scores(
    path: &Path,
    passages: &[Passages],
) -> Result<Vec<Vec<Vec<f32>>>, Box<dyn std::error::Error>> {
    let text = fs_err::read_to_string(path)?;
    let lines: Vec<Scored> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let mut found: HashMap<String, Vec<Vec<f32>>> = lines.into_iter().map(|line| (line.key, line.scores)).collect();
    let scores: Vec<Vec<Vec<f32>>> = passages.iter().map(|one| found.remove(&one.key).unwrap_or_default()).collect();
    for (one, scores) in passages.iter().zip(&scores) {
        if !scores.is_empty() && (scores.len() > one.contexts.len() || scores.iter().any(|hit| hit.len() < 2)) {
            return Err(format!(
                "{} does not hold two scores for each of at most 50 hits of {:?}",
                path.display(),
                one.question
            )
            .into());
        }
    }
    Ok(scores)
}

/// Settings of the fusion that the cross-validated rows choose from.
const KS: [f32; 4] = [5.0, 10.0, 20.0, 40.0];
/// See [`KS`].
const WEIGHTS: [f32; 7] = [0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0];

/// The likelihoods that a fusion is given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Judged {
    /// Hits of a question that were scored, at most.
    pub hits: usize,
    /// Which of a hit's contexts stand for its own text and for its context.
    pub contexts: [usize; 2],
}

/// What the daemon has judged.
pub(crate) const SHIPPED: Judged = Judged { hits: SHIPPED_HITS, contexts: [0, 1] };

/// A question's ranking in the order that a fusion gives; as it was where a context was not scored.
pub(crate) fn fused(ranking: &Ranking, scores: &[Vec<f32>], judged: Judged, fusion: RerankFusion) -> Vec<usize> {
    let [own, context] = judged.contexts;
    let scored = scores.iter().take(judged.hits);
    let scores: Option<Vec<RerankScores>> =
        scored.map(|hit| Some(RerankScores { own: *hit.get(own)?, context: *hit.get(context)? })).collect();
    let order = fuse_reranked(ranking.len(), &scores.unwrap_or_default(), fusion);
    order.into_iter().map(|(at, _)| ranking[at].0).collect()
}

/// Every question in the order of the fusion that is best on the other chats, by recall@10 and reciprocal rank together; and the
/// fusion of each chat. `chats` says which chat a question is of, `judge` gives a question's recall@10 and reciprocal rank.
pub(crate) fn cross_fused(
    ranked: &[Ranking],
    scores: &[Vec<Vec<f32>>],
    chats: &[usize],
    judged: Judged,
    judge: impl Fn(usize, &[usize]) -> f64,
) -> (Vec<Vec<usize>>, Vec<RerankFusion>) {
    let fusions = KS.into_iter().flat_map(|k| WEIGHTS.map(|weight| RerankFusion { k, weight }));
    let tried: Vec<(RerankFusion, Vec<Vec<usize>>, Vec<f64>)> = fusions
        .map(|fusion| {
            let orders: Vec<Vec<usize>> =
                ranked.iter().zip(scores).map(|(ranking, scores)| fused(ranking, scores, judged, fusion)).collect();
            let worth = orders.iter().enumerate().map(|(number, order)| judge(number, order)).collect();
            (fusion, orders, worth)
        })
        .collect();
    let last = chats.iter().copied().max().map_or(0, |last| last + 1);
    let best: Vec<usize> = (0..last)
        .map(|held_out| {
            let others = |worth: &[f64]| -> f64 {
                worth.iter().zip(chats).filter(|(_, chat)| **chat != held_out).map(|(worth, _)| worth).sum()
            };
            // Of equals the first, which moves less.
            (0..tried.len()).rev().max_by(|a, b| others(&tried[*a].2).total_cmp(&others(&tried[*b].2))).unwrap_or(0)
        })
        .collect();
    let orders = (0..ranked.len()).map(|number| tried[best[chats[number]]].1[number].clone()).collect();
    (orders, best.into_iter().map(|at| tried[at].0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chat_is_ordered_by_the_fusion_that_is_best_on_the_others() {
        // Two chats with two questions each. In the first the likelihoods are right, in the second they mislead.
        let ranking: Ranking = vec![(7, 2.0), (8, 1.0)];
        let ranked = vec![ranking; 4];
        let scores = vec![vec![vec![-9.0, -9.0], vec![-1.0, -1.0]]; 4];
        let gold = [8, 8, 7, 7];
        let judge = |number: usize, order: &[usize]| f64::from(u8::from(order[0] == gold[number]));
        let (orders, fusions) = cross_fused(&ranked, &scores, &[0, 0, 1, 1], SHIPPED, judge);
        assert_eq!(orders, [[7, 8], [7, 8], [8, 7], [8, 7]]);
        assert!(fusions[0].weight < fusions[1].weight);
        assert_eq!(fused(&ranked[0], &[], SHIPPED, RerankFusion::default()), [7, 8], "what was not scored stays");
    }
}
