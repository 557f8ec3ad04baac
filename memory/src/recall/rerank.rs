//! Puts the first hits into another order by how likely the question is after each of them (query likelihood).
//!
//! Measured on long chats, likelihood alone orders worse than the first stage, so it is fused with it. Behind a weak first stage that
//! gains recall; behind the ranking that is learned here it gains nothing that can be told from chance (`docs/benchmarks/retrieval.md`).

use mneme_base::Score;

use crate::domain::{Hit, Memory, Signal};

/// What the generator says about one hit: log P(question | text), per token, of the text alone and with its context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RerankScores {
    /// Given the memory's own text.
    pub own: f32,
    /// Given its date and the memory.
    pub context: f32,
}

/// What is read of a memory's text at most (bytes): some 300 tokens. A generator reads some 2,000 tokens a second, and reads each text
/// twice.
const TEXT_BYTES_MAX: usize = 1_200;

/// What the generator reads before the question, so that [`RerankScores::own`] and [`RerankScores::context`] come of it: the memory,
/// and its date with the memory.
pub fn rerank_contexts(memory: &Memory) -> [String; 2] {
    let speaker = memory.speaker.as_deref().map(|name| format!("{name}: ")).unwrap_or_default();
    let end = memory.text.floor_char_boundary(TEXT_BYTES_MAX);
    let turn = format!("{speaker}{}\nQuestion: ", &memory.text[..end]);
    let dated = format!("[{}]\n{turn}", memory.valid_from.date());
    [turn, dated]
}

/// How places by likelihood and the place of the first stage are fused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RerankFusion {
    /// The rank constant: the larger it is, the less the first places stand out.
    pub k: f32,
    /// What each place by likelihood counts against the place of the first stage.
    pub weight: f32,
}

impl RerankFusion {
    /// What the first stage's place (from 0) counts.
    fn first(self, at: usize) -> f32 {
        1.0 / (self.k + at as f32 + 1.0)
    }
}

/// Measured on chats (`docs/benchmarks/retrieval.md`): with more weight the likelihoods cost recall and the place of the first answer.
impl Default for RerankFusion {
    fn default() -> Self {
        Self { k: 20.0, weight: 0.2 }
    }
}

/// Orders hits anew: `1/(k + place) + weight/(k + place by own) + weight/(k + place by context)`.
///
/// `count` is how many hits there are, `scores` belongs to the first of them; later hits keep their order behind. Gives the old
/// place (from 0) and the fused score of each hit, in the new order. Scores that are not finite count as the lowest.
pub fn fuse_reranked(count: usize, scores: &[RerankScores], fusion: RerankFusion) -> Vec<(usize, f32)> {
    let RerankFusion { k, weight } = fusion;
    let scored = scores.len().min(count);
    let own = places(scores[..scored].iter().map(|score| score.own));
    let context = places(scores[..scored].iter().map(|score| score.context));
    let mut order: Vec<(usize, f32)> = (0..scored)
        .map(|at| (at, fusion.first(at) + weight / (k + own[at] as f32) + weight / (k + context[at] as f32)))
        .collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    // Below the least that a scored hit can have.
    order.extend((scored..count).map(|at| (at, fusion.first(at))));
    order
}

/// Puts hits into the order of [`fuse_reranked`]; explanations, where there are any, gain a `rerank` signal.
pub fn rerank_hits(hits: Vec<Hit>, scores: &[RerankScores]) -> Vec<Hit> {
    let fusion = RerankFusion::default();
    let order = fuse_reranked(hits.len(), scores, fusion);
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
                contribution: fused - fusion.first(old),
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
        let fused = fuse_reranked(5, &scores, RerankFusion { k: 10.0, weight: 0.5 });
        assert_eq!(fused.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [0, 2, 1, 3, 4]);
        assert!(fused.windows(2).all(|pair| pair[0].1 >= pair[1].1), "scores fall with the order: {fused:?}");
        let unmoved = fuse_reranked(5, &scores, RerankFusion { k: 10.0, weight: 0.0 });
        assert!(unmoved.iter().map(|(at, _)| *at).eq(0..5));
    }

    #[test]
    fn a_long_memory_is_read_from_its_beginning_and_cut_between_letters() {
        let now = mneme_base::Timestamp::from_millis(1_795_514_400_000);
        let memory = Memory {
            id: mneme_base::MemoryId::from_bytes([1; 16]),
            namespace: mneme_base::Namespace::default(),
            kind: crate::domain::MemoryKind::Note,
            text: format!("x{}", "é".repeat(TEXT_BYTES_MAX)),
            speaker: Some("Anna".into()),
            thread: None,
            position: None,
            metadata: std::collections::BTreeMap::new(),
            provenance: mneme_base::Provenance::user("test"),
            valid_from: now,
            valid_to: None,
            recorded_at: now,
            supersedes: None,
            superseded_by: None,
            state: crate::domain::MemoryState::Active,
            content_hash: mneme_base::ContentHash::of(b""),
            evidence: 0,
            redactions: 0,
            lsn: mneme_base::Lsn(1),
        };
        let [own, dated] = rerank_contexts(&memory);
        assert!(own.starts_with("Anna: xéé") && own.ends_with("é\nQuestion: "), "{} bytes", own.len());
        assert_eq!(own.len(), "Anna: ".len() + TEXT_BYTES_MAX - 1 + "\nQuestion: ".len());
        assert_eq!(dated, format!("[{}]\n{own}", now.date()));
    }

    #[test]
    fn scores_that_are_no_numbers_come_last() {
        let scores = [f32::NAN, -9.0].map(|score| RerankScores { own: score, context: score });
        assert_eq!(places(scores.iter().map(|score| score.own)), [2, 1]);
        assert!(fuse_reranked(0, &scores, RerankFusion::default()).is_empty());
    }
}
