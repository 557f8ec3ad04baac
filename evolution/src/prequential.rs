//! Prequential evaluation: each entry of a person's stream is predicted before it is learned, arms are compared on the
//! same entries, and the gain is reported per tenth of the stream with paired confidence intervals.

use serde::{Deserialize, Serialize};

use crate::random::Random;
use crate::stats::BOOTSTRAP_RESAMPLES;

/// One entry as two arms saw it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Its length (characters).
    pub chars: u64,
    /// Its cost under the baseline (bits).
    pub baseline_bits: f64,
    /// Its cost under the arm (bits).
    pub arm_bits: f64,
}

/// What an arm gained in one part of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Entries.
    pub entries: usize,
    /// Characters.
    pub chars: u64,
    /// Baseline (bits a character).
    pub baseline: f64,
    /// Arm (bits a character).
    pub arm: f64,
    /// Gain of the arm as a share of the baseline's cost; above 0 when it is better.
    pub gain: f64,
    /// Two-sided 95% interval of the gain, lower end.
    pub gain_lower: f64,
    /// Upper end.
    pub gain_upper: f64,
}

/// Splits a stream into parts of equal numbers of characters (the last entry of a part may reach over) and measures each.
/// An empty stream has no parts. Costs [`BOOTSTRAP_RESAMPLES`] * entries.
pub fn by_part(pairs: &[Pair], parts: usize, seed: u64) -> Vec<Part> {
    split(&pairs.iter().map(|pair| pair.chars).collect::<Vec<_>>(), parts)
        .into_iter()
        .map(|range| measure(&pairs[range], seed))
        .collect()
}

/// Ranges of entries, each with about the same number of characters; at most one per entry.
pub fn split(chars: &[u64], parts: usize) -> Vec<std::ops::Range<usize>> {
    let total: u64 = chars.iter().sum();
    let (mut ranges, mut start, mut seen) = (Vec::new(), 0, 0_u64);
    for (index, length) in chars.iter().enumerate() {
        seen += length;
        let due = u128::from(seen) * parts as u128 >= u128::from(total) * (ranges.len() as u128 + 1);
        if (due && ranges.len() + 1 < parts) || index + 1 == chars.len() {
            ranges.push(start..index + 1);
            start = index + 1;
        }
    }
    ranges
}

/// Measures a part as a whole: the interval is a bootstrap over entries, which keeps each pair together.
pub fn measure(pairs: &[Pair], seed: u64) -> Part {
    let sums = |pick: &mut dyn FnMut() -> Option<Pair>| {
        let (mut baseline, mut arm) = (0.0, 0.0);
        while let Some(pair) = pick() {
            baseline += pair.baseline_bits;
            arm += pair.arm_bits;
        }
        (baseline, arm)
    };
    let share = |(baseline, arm): (f64, f64)| if baseline > 0.0 { (baseline - arm) / baseline } else { 0.0 };
    let mut all = pairs.iter().copied();
    let (baseline, arm) = sums(&mut || all.next());
    let mut random = Random::stream(seed, 0xDEC1);
    let mut draws: Vec<f64> = (0..BOOTSTRAP_RESAMPLES)
        .map(|_| {
            let mut left = pairs.len();
            share(sums(&mut || {
                left = left.checked_sub(1)?;
                pairs.get(random.below(pairs.len())).copied()
            }))
        })
        .collect();
    draws.sort_by(f64::total_cmp);
    let tail = BOOTSTRAP_RESAMPLES / 40;
    let chars: u64 = pairs.iter().map(|pair| pair.chars).sum();
    let per_char = |bits: f64| bits / chars.max(1) as f64;
    Part {
        entries: pairs.len(),
        chars,
        baseline: per_char(baseline),
        arm: per_char(arm),
        gain: share((baseline, arm)),
        gain_lower: draws[tail],
        gain_upper: draws[BOOTSTRAP_RESAMPLES - 1 - tail],
    }
}

/// A mixture of two models whose weight follows what they predicted so far (Bayes with fixed share): loop and cache.
///
/// Use it on the smallest pieces that both models price (tokens, bytes): on those the cache may be right where the loop is
/// not, within one text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Mixture {
    /// The logarithm (base 2) of the first model's weight over the second's: as a plain weight near 1 would round to 1,
    /// and the other model could never come back.
    odds: f64,
    share: f64,
}

impl Mixture {
    /// Starts even. `share` is the weight that flows back per piece, 0 to 1: about 1 over the pieces between switches.
    pub fn new(share: f64) -> Self {
        Self { odds: 0.0, share: share.clamp(0.0, 1.0) }
    }

    /// Takes the costs of the next piece under both models (bits) and returns the mixture's cost (bits). A model whose cost
    /// is not finite is left out of this piece.
    pub fn observe(&mut self, first_bits: f64, second_bits: f64) -> f64 {
        match (first_bits.is_finite(), second_bits.is_finite()) {
            (true, true) => {}
            (first, _) => return if first { first_bits } else { second_bits },
        }
        let mixed = -log_add(-first_bits - log_add(0.0, -self.odds), -second_bits - log_add(0.0, self.odds));
        self.odds += second_bits - first_bits;
        if self.share > 0.0 {
            let first = (1.0 - self.share) * self.first() + self.share * 0.5;
            self.odds = (first / (1.0 - first)).log2().clamp(-1_000.0, 1_000.0);
        }
        mixed
    }

    /// The weight of the first model now, 0 to 1.
    pub fn first(&self) -> f64 {
        1.0 / (1.0 + (-self.odds).exp2())
    }
}

/// log2(2^a + 2^b).
fn log_add(a: f64, b: f64) -> f64 {
    a.max(b) + (-(a - b).abs()).exp2().ln_1p() * std::f64::consts::LOG2_E
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair(baseline_bits: f64, arm_bits: f64) -> Pair {
        Pair { chars: 100, baseline_bits, arm_bits }
    }

    #[test]
    fn a_steady_gain_is_found_in_every_part() {
        let pairs: Vec<Pair> =
            (0..200).map(|k| pair(200.0 + f64::from(k % 7) * 30.0, 180.0 + f64::from(k % 7) * 27.0)).collect();
        let parts = by_part(&pairs, 10, 1);
        assert_eq!(parts.len(), 10);
        for part in parts {
            assert_eq!(part.entries, 20);
            assert!((part.gain - 0.1).abs() < 1e-9 && part.gain_lower > 0.0999 && part.gain_upper < 0.1001);
        }
    }

    #[test]
    fn noise_without_gain_has_an_interval_around_zero() {
        let mut random = Random::new(1);
        let pairs: Vec<Pair> = (0..300).map(|_| pair(200.0 + random.normal(), 200.0 + random.normal())).collect();
        let part = measure(&pairs, 1);
        assert!(part.gain_lower < 0.0 && part.gain_upper > 0.0);
        assert!((part.baseline - 2.0).abs() < 0.01);
    }

    #[test]
    fn an_empty_stream_has_no_parts() {
        assert!(by_part(&[], 10, 1).is_empty());
        assert_eq!(measure(&[], 1).entries, 0);
    }

    proptest! {
        #[test]
        fn parts_cover_every_entry_once(chars in prop::collection::vec(0_u64..500, 0..60), parts in 1_usize..12) {
            let ranges = split(&chars, parts);
            let covered: Vec<usize> = ranges.iter().cloned().flatten().collect();
            prop_assert_eq!(covered, (0..chars.len()).collect::<Vec<_>>());
            prop_assert!(ranges.len() <= parts && ranges.iter().all(|range| !range.is_empty()));
        }

        #[test]
        fn a_mixture_costs_at_most_one_bit_more_than_the_better_model(
            costs in prop::collection::vec((0.0_f64..5_000.0, 0.0_f64..5_000.0), 1..60),
        ) {
            let mut mixture = Mixture::new(0.0);
            let mixed: f64 = costs.iter().map(|(a, b)| mixture.observe(*a, *b)).sum();
            let best = costs.iter().map(|c| c.0).sum::<f64>().min(costs.iter().map(|c| c.1).sum());
            prop_assert!(mixed <= best + 1.0 + 1e-6, "{mixed} against {best}");
        }
    }
}
