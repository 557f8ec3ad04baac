//! Masks token sequences for training and for likelihood estimates, in the families that one model is trained on.

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::DiscreteSchedule;
use crate::random::{below, shuffle, uniform};

/// Why a sequence could not be masked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CorruptError {
    /// The two inputs differ in length.
    #[error("sequence has {tokens} tokens, the mask of positions that may be hidden has {maskable}")]
    Lengths {
        /// Tokens given.
        tokens: usize,
        /// Flags given.
        maskable: usize,
    },
    /// A parameter is outside its bounds.
    #[error("mask family parameter {parameter} is {value}, it has to be {bound}")]
    Parameter {
        /// Its name.
        parameter: &'static str,
        /// Its value.
        value: String,
        /// What is accepted.
        bound: &'static str,
    },
}

/// Which tokens of a sequence are hidden together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MaskFamily {
    /// Every maskable token on its own, at the rate of the time (LLaDA, MDLM).
    Full,
    /// One contiguous hole of random place and length; tokens inside are masked at the rate of the time, those outside stay.
    Span {
        /// Shortest hole (tokens), at least 1.
        length_min: usize,
        /// Longest hole (tokens).
        length_max: usize,
    },
    /// Consecutive blocks, each at a time of its own; the blocks' times are stratified (BD3-LM, arXiv 2503.09573).
    Block {
        /// Tokens of a block, at least 1.
        size: usize,
    },
}

/// A masked sequence, and what the loss needs to know of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Corruption {
    /// The sequence with hidden tokens replaced by the mask token.
    pub tokens: Vec<u32>,
    /// Positions that were hidden, rising.
    pub masked: Vec<usize>,
    /// Loss weight of each hidden position: `-alpha'/(1 - alpha)` at its time, clipped.
    pub weights: Vec<f32>,
    /// Positions that took part: the maskable ones, within the span for a span. The loss is divided by their number.
    pub considered: usize,
}

impl Corruption {
    fn new(tokens: &[u32], considered: usize) -> Self {
        Self { tokens: tokens.to_vec(), masked: Vec::new(), weights: Vec::new(), considered }
    }

    fn hide(&mut self, position: usize, mask_id: u32, weight: f64) {
        self.tokens[position] = mask_id;
        self.masked.push(position);
        self.weights.push(weight as f32);
    }
}

/// What corruption of every sequence of a run has in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CorruptionPlan {
    /// The schedule that turns times into rates.
    pub schedule: DiscreteSchedule,
    /// The token that hides others.
    pub mask_id: u32,
    /// Loss weights are clipped here.
    pub weight_max: f64,
}

/// Masks a sequence at time `t` (in `Block`, the blocks' times are spread from it). Only positions whose `maskable` flag is set
/// are hidden. The expectation of `sum(weight * cross_entropy)` over times is the NELBO, but for the clipping.
pub fn corrupt(
    tokens: &[u32],
    maskable: &[bool],
    t: f64,
    family: MaskFamily,
    plan: CorruptionPlan,
    rng: &mut dyn Rng,
) -> Result<Corruption, CorruptError> {
    let candidates = candidates(tokens, maskable)?;
    match family {
        MaskFamily::Full => Ok(hide_at(tokens, &candidates, t, plan, rng)),
        MaskFamily::Span { length_min, length_max } => {
            let value = || format!("{length_min}..={length_max}");
            if length_min == 0 || length_max < length_min {
                return Err(CorruptError::Parameter { parameter: "length", value: value(), bound: "1 <= min <= max" });
            }
            let length_max = length_max.min(tokens.len());
            let length_min = length_min.min(length_max);
            let length = length_min + below(rng, length_max - length_min + 1);
            let start = below(rng, tokens.len() - length + 1);
            let inside: Vec<usize> =
                candidates.into_iter().filter(|position| (start..start + length).contains(position)).collect();
            Ok(hide_at(tokens, &inside, t, plan, rng))
        }
        MaskFamily::Block { size: 0 } => {
            Err(CorruptError::Parameter { parameter: "size", value: "0".into(), bound: "at least 1" })
        }
        MaskFamily::Block { size } => {
            let blocks = tokens.len().div_ceil(size).max(1);
            // Which stratum a block gets is random, so that no block sees easier times than another.
            let mut strata: Vec<usize> = (0..blocks).collect();
            shuffle(rng, &mut strata);
            let mut out = Corruption::new(tokens, candidates.len());
            for position in candidates {
                let time = (t + strata[position / size] as f64 / blocks as f64).fract().max(super::TIME_MIN);
                if uniform(rng) < plan.schedule.mask_rate(time) {
                    let weight = plan.schedule.loss_weight_clipped(time, plan.weight_max);
                    out.hide(position, plan.mask_id, weight);
                }
            }
            Ok(out)
        }
    }
}

/// Masks exactly `count` maskable tokens, each set of that size equally likely, with weight `L / count` (LLaDA's likelihood
/// estimate, arXiv 2502.09992 eq. 6, which varies less than random counts). `count` is cut to the number of maskable tokens.
pub fn corrupt_exactly(
    tokens: &[u32],
    maskable: &[bool],
    count: usize,
    mask_id: u32,
    rng: &mut dyn Rng,
) -> Result<Corruption, CorruptError> {
    let mut order = candidates(tokens, maskable)?;
    let considered = order.len();
    shuffle(rng, &mut order);
    order.truncate(count);
    order.sort_unstable();
    let mut out = Corruption::new(tokens, considered);
    for &position in &order {
        out.hide(position, mask_id, considered as f64 / order.len() as f64);
    }
    Ok(out)
}

/// The complementary view: hides what `corruption` left visible among the maskable tokens and shows what it hid, so that a pair of
/// views asks for every token once. The weights are those of the time at which the schedule hides this share.
pub fn complement(
    tokens: &[u32],
    maskable: &[bool],
    corruption: &Corruption,
    plan: CorruptionPlan,
) -> Result<Corruption, CorruptError> {
    let candidates = candidates(tokens, maskable)?;
    let hidden = |position: &usize| corruption.masked.binary_search(position).is_ok();
    let rest: Vec<usize> = candidates.iter().copied().filter(|position| !hidden(position)).collect();
    let mut out = Corruption::new(tokens, candidates.len());
    let rate = rest.len() as f64 / candidates.len().max(1) as f64;
    let weight = plan.schedule.loss_weight_clipped(plan.schedule.time_of_mask_rate(rate), plan.weight_max);
    for position in rest {
        out.hide(position, plan.mask_id, weight);
    }
    Ok(out)
}

fn candidates(tokens: &[u32], maskable: &[bool]) -> Result<Vec<usize>, CorruptError> {
    if tokens.len() != maskable.len() {
        return Err(CorruptError::Lengths { tokens: tokens.len(), maskable: maskable.len() });
    }
    Ok((0..tokens.len()).filter(|&position| maskable[position]).collect())
}

fn hide_at(tokens: &[u32], candidates: &[usize], t: f64, plan: CorruptionPlan, rng: &mut dyn Rng) -> Corruption {
    let rate = plan.schedule.mask_rate(t);
    let weight = plan.schedule.loss_weight_clipped(t, plan.weight_max);
    let mut out = Corruption::new(tokens, candidates.len());
    for &position in candidates {
        if uniform(rng) < rate {
            out.hide(position, plan.mask_id, weight);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::random::seeded;

    const PLAN: CorruptionPlan =
        CorruptionPlan { schedule: DiscreteSchedule::Linear, mask_id: 99, weight_max: super::super::LOSS_WEIGHT_MAX };

    fn families() -> impl Strategy<Value = MaskFamily> {
        prop_oneof![
            Just(MaskFamily::Full),
            (1_usize..5, 0_usize..9)
                .prop_map(|(min, more)| MaskFamily::Span { length_min: min, length_max: min + more }),
            (1_usize..9).prop_map(|size| MaskFamily::Block { size }),
        ]
    }

    proptest! {
        #[test]
        fn only_maskable_tokens_are_hidden_and_the_rest_is_untouched(
            maskable in prop::collection::vec(any::<bool>(), 0..40), t in 0.0_f64..1.0, family in families(), seed: u64,
        ) {
            let tokens: Vec<u32> = (0..maskable.len() as u32).collect();
            let out = corrupt(&tokens, &maskable, t, family, PLAN, &mut seeded(seed)).unwrap();
            prop_assert_eq!(out.masked.len(), out.weights.len());
            for (position, &token) in out.tokens.iter().enumerate() {
                let hidden = out.masked.contains(&position);
                let fits = if hidden { maskable[position] && token == 99 } else { token == tokens[position] };
                prop_assert!(fits);
            }
            prop_assert!(out.weights.iter().all(|w| (1.0..=20.0).contains(w)));
            if let MaskFamily::Span { length_max, .. } = family {
                let width = out.masked.last().map_or(0, |last| last - out.masked[0] + 1);
                prop_assert!(width <= length_max);
            }
        }

        #[test]
        fn complementary_views_hide_every_maskable_token_once(
            maskable in prop::collection::vec(any::<bool>(), 1..40), t in 0.01_f64..1.0, seed: u64,
        ) {
            let tokens: Vec<u32> = (0..maskable.len() as u32).collect();
            let first = corrupt(&tokens, &maskable, t, MaskFamily::Full, PLAN, &mut seeded(seed)).unwrap();
            let second = complement(&tokens, &maskable, &first, PLAN).unwrap();
            let mut both: Vec<usize> = first.masked.iter().chain(&second.masked).copied().collect();
            both.sort_unstable();
            prop_assert_eq!(both, (0..maskable.len()).filter(|&i| maskable[i]).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_share_of_hidden_tokens_is_the_rate_of_the_schedule() {
        let n = 20_000;
        for schedule in [DiscreteSchedule::Linear, DiscreteSchedule::Cosine] {
            let plan = CorruptionPlan { schedule, ..PLAN };
            let out = corrupt(&vec![0; n], &vec![true; n], 0.3, MaskFamily::Full, plan, &mut seeded(5)).unwrap();
            let rate = schedule.mask_rate(0.3);
            let error = (rate * (1.0 - rate) / n as f64).sqrt();
            assert!((out.masked.len() as f64 / n as f64 - rate).abs() < 4.0 * error);
        }
    }

    #[test]
    fn blocks_are_hidden_at_times_of_their_own_that_cover_the_interval() {
        let (n, size) = (64_000, 4_000);
        let out = corrupt(&vec![0; n], &vec![true; n], 0.5, MaskFamily::Block { size }, PLAN, &mut seeded(6)).unwrap();
        let mut rates: Vec<f64> =
            (0..16).map(|b| out.masked.iter().filter(|&&p| p / size == b).count() as f64 / size as f64).collect();
        rates.sort_by(f64::total_cmp);
        // Sixteen strata of width 1/16 at the offset 0.5: times 0, 1/16, .. 15/16.
        for (i, rate) in rates.iter().enumerate() {
            assert!((rate - i as f64 / 16.0).abs() < 0.035, "{rates:?}");
        }
    }

    #[test]
    fn exact_counts_hide_exactly_that_many() {
        let out = corrupt_exactly(&[1; 10], &[true; 10], 4, 99, &mut seeded(1)).unwrap();
        assert_eq!((out.masked.len(), out.considered), (4, 10));
        assert!(out.weights.iter().all(|w| (w - 2.5).abs() < 1e-6));
        assert_eq!(corrupt_exactly(&[1; 3], &[true; 3], 40, 99, &mut seeded(1)).unwrap().masked.len(), 3);
    }

    #[test]
    fn bad_parameters_are_errors() {
        let bad = |family| corrupt(&[1], &[true], 0.5, family, PLAN, &mut seeded(0)).is_err();
        assert!(bad(MaskFamily::Block { size: 0 }));
        assert!(bad(MaskFamily::Span { length_min: 0, length_max: 3 }));
        assert!(bad(MaskFamily::Span { length_min: 3, length_max: 2 }));
        assert!(corrupt(&[1], &[], 0.5, MaskFamily::Full, PLAN, &mut seeded(0)).is_err());
    }
}
