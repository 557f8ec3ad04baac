//! Turns a draft into exact samples of an autoregressive model: speculative acceptance.
//!
//! The mode `auto` drafts a block by diffusion, evaluates the causal mode of the same network once over the draft, and keeps the longest
//! prefix that passes. What comes out is distributed as plain autoregressive sampling, whatever the draft was (Leviathan et al.,
//! arXiv 2211.17192, appendix A.1). Two forms of draft:
//!
//! - [`Drafted::Certain`]: the draft is taken as it is, from any source: several diffusion steps, a constraint, a lookup. A token is
//!   accepted with the probability that the target gives it; a rejected one is replaced by a draw from the target without it.
//! - [`Drafted::Independent`]: each token was drawn on its own from a distribution that depends on the prefix alone and is handed in (one
//!   diffusion step from a fully masked block). Acceptance is `min(1, p/q)`, the replacement comes from `max(0, p - q)`: more is kept. It
//!   is **not** exact for tokens that were decided after later tokens of the block were: use `Certain` there.

use rand::Rng;

use super::SamplerError;
use crate::random::{categorical, uniform};

/// Where the tokens of a draft came from.
#[derive(Debug, Clone, Copy)]
pub enum Drafted<'a> {
    /// From anywhere.
    Certain,
    /// Each drawn independently from its row. `[drafted, vocab]` probabilities.
    Independent(&'a [f32]),
}

/// What the verification keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Tokens to append: the accepted part of the draft and one more that the target drew.
    pub tokens: Vec<u32>,
    /// How many of them were drafted.
    pub accepted: usize,
}

/// Verifies a draft.
///
/// # Shapes
/// `draft: [d]`; `target: [d + 1, vocab]` probabilities, row i being the target's distribution of token i after the prefix and
/// `draft[..i]`, with temperature and filters already applied (at temperature 0: all on the top token, which makes the result the greedy
/// one). Rows need not sum to exactly 1.
///
/// At least one token comes out. Errors: shapes that do not fit, a target row without any possible token.
pub fn verify(
    draft: &[u32],
    drafted: Drafted<'_>,
    target: &[f32],
    vocab: usize,
    rng: &mut dyn Rng,
) -> Result<Verified, SamplerError> {
    let rows = draft.len() + 1;
    if vocab == 0 || rows.checked_mul(vocab) != Some(target.len()) {
        return Err(SamplerError::Shape { rows, vocab, values: target.len() });
    }
    if let Drafted::Independent(q) = drafted
        && q.len() != draft.len() * vocab
    {
        return Err(SamplerError::Shape { rows: draft.len(), vocab, values: q.len() });
    }
    let mut tokens = Vec::with_capacity(rows);
    for (position, (&token, p)) in draft.iter().zip(target.chunks_exact(vocab)).enumerate() {
        let bad_row = SamplerError::BadRow { position };
        if token as usize >= vocab {
            return Err(SamplerError::BadProposal { position, token });
        }
        let total = total(p).ok_or(bad_row.clone())?;
        let chance = f64::from(p[token as usize].max(0.0)) / total;
        let (accept, residual) = match drafted {
            Drafted::Certain => (chance, without(p, token)),
            Drafted::Independent(q) => {
                let q = &q[position * vocab..(position + 1) * vocab];
                let q_total = self::total(q).ok_or(bad_row.clone())?;
                let drawn = f64::from(q[token as usize].max(0.0)) / q_total;
                // A token that the draft could not have drawn breaks the proof; it is treated as a certain one would be.
                if drawn > 0.0 { (chance / drawn, excess(p, total, q, q_total)) } else { (chance, without(p, token)) }
            }
        };
        if uniform(rng) < accept {
            tokens.push(token);
            continue;
        }
        // The residual is empty only when the draft is as good as the target, up to rounding: then the token stands.
        let replacement = categorical(rng, &residual).map_or(token, |token| token as u32);
        let accepted = tokens.len();
        tokens.push(replacement);
        return Ok(Verified { tokens, accepted });
    }
    let last = &target[draft.len() * vocab..];
    let bonus = categorical(rng, last).ok_or(SamplerError::BadRow { position: draft.len() })?;
    tokens.push(bonus as u32);
    Ok(Verified { accepted: draft.len(), tokens })
}

fn total(row: &[f32]) -> Option<f64> {
    let total: f64 = row.iter().map(|&p| f64::from(p.max(0.0))).sum();
    (total > 0.0 && total.is_finite()).then_some(total)
}

fn without(p: &[f32], token: u32) -> Vec<f32> {
    let mut rest = p.to_vec();
    rest[token as usize] = 0.0;
    rest
}

fn excess(p: &[f32], p_total: f64, q: &[f32], q_total: f64) -> Vec<f32> {
    p.iter()
        .zip(q)
        .map(|(&p, &q)| (f64::from(p.max(0.0)) / p_total - f64::from(q.max(0.0)) / q_total).max(0.0) as f32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::MarkovOracle;
    use crate::random::{below, seeded};

    const LENGTH: usize = 3;
    const VOCAB: usize = 3;

    /// Tokens and their distributions, from the token before.
    type Drafter = dyn Fn(Option<u32>, &mut dyn Rng) -> (Vec<u32>, Vec<f32>);

    /// Draws `LENGTH` tokens of the oracle through drafts of two tokens; `draft` fills in tokens and their distribution.
    fn speculate(oracle: &MarkovOracle, independent: bool, rng: &mut dyn Rng, draft: &Drafter) -> (Vec<u32>, usize) {
        let (mut out, mut accepted) = (Vec::new(), 0);
        while out.len() < LENGTH {
            let (tokens, q) = draft(out.last().copied(), rng);
            let mut target = Vec::new();
            let mut previous = out.last().copied();
            for next in tokens.iter().copied().map(Some).chain([None]) {
                target.extend(oracle.next(previous).iter().map(|&p| p as f32));
                previous = next;
            }
            let drafted = if independent { Drafted::Independent(&q) } else { Drafted::Certain };
            let verified = verify(&tokens, drafted, &target, VOCAB, rng).unwrap();
            accepted += verified.accepted;
            out.extend(verified.tokens);
        }
        out.truncate(LENGTH);
        (out, accepted)
    }

    /// Pearson's chi-square of 27 sequences; the 99.99% point at 26 degrees of freedom is 62.
    fn chi_square(independent: bool, draft: &Drafter) -> f64 {
        let oracle = MarkovOracle::random(VOCAB, &mut seeded(21));
        let mut rng = seeded(22);
        let trials = 40_000;
        let mut counts = [0.0_f64; 27];
        for _ in 0..trials {
            let (tokens, _) = speculate(&oracle, independent, &mut rng, draft);
            counts[tokens.iter().fold(0, |code, &token| code * VOCAB + token as usize)] += 1.0;
        }
        let exact = oracle.completions(&[3, 3, 3]);
        exact
            .iter()
            .zip(counts)
            .map(|((_, p), count)| (count - p * f64::from(trials)).powi(2) / (p * f64::from(trials)))
            .sum()
    }

    #[test]
    fn any_draft_gives_exact_samples_when_it_is_taken_as_certain() {
        // A draft whose first token depends on its second: the kind that several diffusion steps make.
        let statistic = chi_square(false, &|_, rng| {
            let second = below(rng, VOCAB) as u32;
            (vec![(second + 1) % 3, second], Vec::new())
        });
        assert!(statistic < 62.0, "chi-square {statistic}");
        let constant = chi_square(false, &|_, _| (vec![0, 0], Vec::new()));
        assert!(constant < 62.0, "chi-square {constant}");
    }

    #[test]
    fn independent_drafts_give_exact_samples() {
        let statistic = chi_square(true, &|_, rng| {
            let q = [0.6_f32, 0.3, 0.1, 0.2, 0.2, 0.6];
            let token = |row: &[f32], rng: &mut dyn Rng| categorical(rng, row).unwrap() as u32;
            (vec![token(&q[..3], rng), token(&q[3..], rng)], q.to_vec())
        });
        assert!(statistic < 62.0, "chi-square {statistic}");
    }

    #[test]
    fn a_perfect_draft_is_accepted_whole() {
        let p = [0.5_f32, 0.25, 0.25];
        let mut rng = seeded(5);
        for _ in 0..500 {
            let token = categorical(&mut rng, &p).unwrap() as u32;
            let target = [p, p].concat();
            let verified = verify(&[token], Drafted::Independent(&p), &target, 3, &mut rng).unwrap();
            assert_eq!((verified.accepted, verified.tokens.len()), (1, 2));
        }
    }

    #[test]
    fn a_greedy_target_gives_the_greedy_sequence() {
        let target = [0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0];
        let run = |draft: &[u32]| verify(draft, Drafted::Certain, &target, 3, &mut seeded(1)).unwrap();
        assert_eq!(run(&[1, 0]), Verified { tokens: vec![1, 0, 2], accepted: 2 });
        assert_eq!(run(&[1, 2]), Verified { tokens: vec![1, 0], accepted: 1 });
        assert_eq!(run(&[2, 0]), Verified { tokens: vec![1], accepted: 0 });
    }

    #[test]
    fn shapes_and_tokens_are_checked() {
        let mut rng = seeded(1);
        assert!(verify(&[0], Drafted::Certain, &[1.0; 3], 3, &mut rng).is_err());
        assert!(verify(&[7], Drafted::Certain, &[1.0; 6], 3, &mut rng).is_err());
        assert!(verify(&[0], Drafted::Independent(&[1.0; 2]), &[1.0; 6], 3, &mut rng).is_err());
        assert!(verify(&[], Drafted::Certain, &[0.0; 3], 3, &mut rng).is_err());
    }
}
