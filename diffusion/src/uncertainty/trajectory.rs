//! Several predictions of the same places: along the steps of one chain, and across chains of different seeds.

use std::collections::BTreeMap;

use crate::numeric::log_sum_exp;

/// Tokens that are kept of each prediction; the rest counts as one more outcome. 32 hold nearly all the mass of a usual prediction and
/// bound a canvas of 1,024 places at 256 KiB.
const TOP_TOKENS: usize = 32;

/// The likeliest tokens of a distribution and the mass of all others.
#[derive(Debug, Clone, PartialEq)]
pub struct TopTokens {
    /// `(token, probability)` by rising token.
    tokens: Vec<(u32, f32)>,
    rest: f32,
}

impl TopTokens {
    /// Reads a row of logits; `banned` is left out. A row without a finite value gives no tokens and a rest of 1.
    pub fn of(row: &[f32], banned: Option<u32>) -> Self {
        let mut logits: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
        logits.retain(|&(token, logit)| Some(token) != banned && logit > f32::NEG_INFINITY);
        let all: Vec<f32> = logits.iter().map(|&(_, logit)| logit).collect();
        let normalizer = log_sum_exp(&all);
        if !normalizer.is_finite() {
            return Self { tokens: Vec::new(), rest: 1.0 };
        }
        if logits.len() > TOP_TOKENS {
            logits.select_nth_unstable_by(TOP_TOKENS - 1, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            logits.truncate(TOP_TOKENS);
        }
        logits.sort_unstable_by_key(|&(token, _)| token);
        let tokens: Vec<(u32, f32)> =
            logits.into_iter().map(|(token, logit)| (token, (f64::from(logit) - normalizer).exp() as f32)).collect();
        let rest = (1.0 - tokens.iter().map(|&(_, p)| p).sum::<f32>()).max(0.0);
        Self { tokens, rest }
    }

    /// Jensen-Shannon divergence (nats, 0 to ln 2), with everything that neither names lumped together.
    pub fn divergence(&self, other: &Self) -> f64 {
        let find = |side: &Self, token: u32| {
            side.tokens.binary_search_by_key(&token, |&(token, _)| token).map_or(0.0, |index| side.tokens[index].1)
        };
        let both = self.tokens.iter().map(|&(token, p)| (p, find(other, token)));
        let only_other = other.tokens.iter().filter(|(token, _)| find(self, *token) == 0.0).map(|&(_, q)| (0.0, q));
        let sum: f64 =
            both.chain(only_other).chain([(self.rest, other.rest)]).map(|(p, q)| term(p, q) + term(q, p)).sum();
        (0.5 * sum).clamp(0.0, std::f64::consts::LN_2)
    }
}

/// `p ln(p / m)` with m the middle of p and q.
fn term(p: f32, q: f32) -> f64 {
    let (p, q) = (f64::from(p), f64::from(q));
    if p > 0.0 { p * (2.0 * p / (p + q)).ln() } else { 0.0 }
}

/// How much the predictions of open places change from step to step: a chain that keeps changing its mind is unsure in a way that the
/// entropy of a single step does not show.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Trajectory {
    last: BTreeMap<usize, TopTokens>,
    sum: f64,
    comparisons: usize,
}

impl Trajectory {
    /// Adds the predictions of one step: position and row of logits.
    pub fn push<'a>(&mut self, rows: impl IntoIterator<Item = (usize, &'a [f32])>, banned: Option<u32>) {
        for (position, row) in rows {
            let now = TopTokens::of(row, banned);
            if let Some(before) = self.last.get(&position) {
                self.sum += before.divergence(&now);
                self.comparisons += 1;
            }
            self.last.insert(position, now);
        }
    }

    /// Mean Jensen-Shannon divergence between successive predictions of a place (nats, 0 to ln 2); 0 before there are two.
    pub fn dissimilarity(&self) -> f64 {
        if self.comparisons == 0 { 0.0 } else { self.sum / self.comparisons as f64 }
    }
}

/// Mean pairwise edit distance between fills of the same hole by chains of different seeds, each over the longer length: 0 when all agree,
/// 1 when nothing is shared. 0 for fewer than two chains. Cost: pairs times the product of lengths.
pub fn chain_disagreement(chains: &[&[u32]]) -> f64 {
    let (mut sum, mut pairs) = (0.0, 0_usize);
    for (index, a) in chains.iter().enumerate() {
        for b in &chains[..index] {
            let longer = a.len().max(b.len());
            sum += if longer == 0 { 0.0 } else { edit_distance(a, b) as f64 / longer as f64 };
            pairs += 1;
        }
    }
    if pairs == 0 { 0.0 } else { sum / pairs as f64 }
}

/// Mean entropy over places of the tokens that chains chose there (nats); chains that are too short do not vote.
pub fn vote_entropy(chains: &[&[u32]]) -> f64 {
    let length = chains.iter().map(|chain| chain.len()).max().unwrap_or(0);
    let entropy_at = |position: usize| {
        let mut votes: BTreeMap<u32, usize> = BTreeMap::new();
        for token in chains.iter().filter_map(|chain| chain.get(position)) {
            *votes.entry(*token).or_default() += 1;
        }
        let total = votes.values().sum::<usize>() as f64;
        -votes.values().map(|&count| count as f64 / total).map(|p| p * p.ln()).sum::<f64>()
    };
    if length == 0 { 0.0 } else { (0..length).map(entropy_at).sum::<f64>() / length as f64 }
}

fn edit_distance(a: &[u32], b: &[u32]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::numeric::softmax;

    proptest! {
        #[test]
        fn the_divergence_is_that_of_the_full_distributions_when_few_tokens_matter(
            rows in prop::collection::vec((-9.0_f32..9.0, -9.0_f32..9.0), 1..30),
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = rows.into_iter().unzip();
            let (x, y) = (TopTokens::of(&a, None), TopTokens::of(&b, None));
            let exact: f64 = softmax(&a).iter().zip(softmax(&b)).map(|(&p, q)| 0.5 * (term(p, q) + term(q, p))).sum();
            prop_assert!((x.divergence(&y) - exact).abs() < 1e-5);
            prop_assert!((x.divergence(&y) - y.divergence(&x)).abs() < 1e-9);
            prop_assert!(x.divergence(&x) < 1e-9);
        }
    }

    #[test]
    fn a_chain_that_changes_its_mind_is_dissimilar() {
        let (likes_a, likes_b) = ([9.0_f32, 0.0], [0.0_f32, 9.0]);
        let mut steady = Trajectory::default();
        let mut wavering = Trajectory::default();
        for step in 0..6 {
            steady.push([(3, &likes_a[..])], None);
            wavering.push([(3, if step % 2 == 0 { &likes_a[..] } else { &likes_b[..] })], None);
        }
        assert!(steady.dissimilarity() < 1e-9 && wavering.dissimilarity() > 0.6);
    }

    #[test]
    fn disagreement_is_the_share_of_edits() {
        let (a, b, c): (&[u32], &[u32], &[u32]) = (&[1, 2, 3, 4], &[1, 2, 4], &[9, 9, 9, 9]);
        assert!((chain_disagreement(&[a, a])).abs() < 1e-9);
        assert!((chain_disagreement(&[a, b]) - 0.25).abs() < 1e-9);
        assert!((chain_disagreement(&[a, c]) - 1.0).abs() < 1e-9);
        assert!((chain_disagreement(&[a])).abs() < 1e-9);
        assert!((vote_entropy(&[&[1, 1], &[1, 2]]) - 0.5 * std::f64::consts::LN_2).abs() < 1e-9);
        assert!(vote_entropy(&[]).abs() < 1e-9);
    }
}
