//! Confidence intervals by resampling whole texts: tokens of one text are not independent.

use mneme_diffusion::random::{below, seeded};

/// Resamples of one interval.
const RESAMPLES: usize = 2_000;
/// Two-sided 95%.
const TAIL: f64 = 0.025;

/// A ratio of sums with its interval.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Estimate {
    /// Sum over sum.
    pub mean: f64,
    /// The lower end of the 95% interval.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Estimate {
    /// The same on another scale; `map` must be increasing.
    #[must_use]
    pub fn map(self, map: impl Fn(f64) -> f64) -> Self {
        Self { mean: map(self.mean), low: map(self.low), high: map(self.high) }
    }
}

impl std::fmt::Display for Estimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Small numbers are rates, large ones perplexities.
        let digits = if self.mean.abs() < 10.0 { 3 } else { 1 };
        write!(f, "{:.digits$} [{:.digits$}, {:.digits$}]", self.mean, self.low, self.high)
    }
}

/// Sum of the first over sum of the second of all pairs, with a percentile bootstrap over pairs (Efron 1979). Seeded: the same
/// pairs give the same interval. Without pairs everything is 0.
pub fn ratio(pairs: &[(f64, f64)], seed: u64) -> Estimate {
    let of = |pick: &mut dyn FnMut(usize) -> usize| {
        let sums = (0..pairs.len()).map(|i| pairs[pick(i)]).fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        if sums.1 == 0.0 { 0.0 } else { sums.0 / sums.1 }
    };
    let mean = of(&mut |i| i);
    if pairs.len() < 2 {
        return Estimate { mean, low: mean, high: mean };
    }
    let mut rng = seeded(seed);
    let mut drawn: Vec<f64> = (0..RESAMPLES).map(|_| of(&mut |_| below(&mut rng, pairs.len()))).collect();
    drawn.sort_by(f64::total_cmp);
    let at = |share: f64| drawn[((RESAMPLES - 1) as f64 * share).round() as usize];
    Estimate { mean, low: at(TAIL), high: at(1.0 - TAIL) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_holds_the_mean_and_shrinks_with_more_texts() {
        let texts = |count: usize| -> Vec<(f64, f64)> { (0..count).map(|i| (f64::from(i as u32 % 7), 2.0)).collect() };
        let (few, many) = (ratio(&texts(14), 1), ratio(&texts(700), 1));
        assert!((few.mean - 1.5).abs() < 1e-9 && (many.mean - 1.5).abs() < 1e-9);
        assert!(few.low < 1.5 && few.high > 1.5 && many.high - many.low < (few.high - few.low) / 4.0);
    }

    #[test]
    fn nothing_has_no_interval() {
        assert_eq!(ratio(&[], 1), Estimate { mean: 0.0, low: 0.0, high: 0.0 });
        assert_eq!(ratio(&[(3.0, 2.0)], 1), Estimate { mean: 1.5, low: 1.5, high: 1.5 });
    }
}
