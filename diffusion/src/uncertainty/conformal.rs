//! From scores to p-values and thresholds whose false alarms are bounded, whatever the scores' distribution.

use rand::Rng;

use super::calibration::SCORES_MAX;
use crate::random::uniform;

/// The conformal p-value of a score against calibration scores of the same kind: `(1 + #{calibration >= score}) / (n + 1)`. At most `u` with
/// probability at most `u` for a score that is exchangeable with them (Vovk et al. 2005). Larger scores are stranger.
pub fn conformal_p_value(calibration: &[f32], score: f32) -> f64 {
    let above = calibration.iter().filter(|&&known| known >= score).count();
    (1 + above) as f64 / (calibration.len() + 1) as f64
}

/// Which largest calibration score may serve as a threshold: the largest `j` such that the j-th largest of `events` has a false positive
/// rate of at most `rate` with the stated confidence. The rate given the calibration is `Beta(j, n + 1 - j)`, and
/// `P(Beta(j, n + 1 - j) <= rate) = P(Binomial(n, rate) >= j)`. None when there are too few events for any.
pub fn conformal_rank(events: usize, rate: f64, confidence: f64) -> Option<usize> {
    if !(rate > 0.0 && rate < 1.0 && confidence > 0.0 && confidence < 1.0) {
        return None;
    }
    // Walks up the cumulative binomial until P(X < j) exceeds what confidence leaves.
    let n = events as f64;
    let mut log_term = n * (-rate).ln_1p();
    let mut below = log_term.exp();
    let mut rank = 0;
    while rank < events && below <= 1.0 - confidence {
        rank += 1;
        log_term += ((n - rank as f64 + 1.0) / rank as f64).ln() + rate.ln() - (-rate).ln_1p();
        below += log_term.exp();
    }
    (rank > 0).then_some(rank)
}

/// The fewest events that allow the j-th largest score as a threshold.
pub fn conformal_events_needed(rank: usize, rate: f64, confidence: f64) -> Option<usize> {
    /// Searched up to here: more is no use to anybody.
    const EVENTS_MAX: usize = 1 << 24;
    let allows = |events: usize| conformal_rank(events, rate, confidence).is_some_and(|allowed| allowed >= rank.max(1));
    let (mut low, mut high) = (0, 1);
    while !allows(high) {
        low = high;
        high *= 2;
        if high > EVENTS_MAX {
            return None;
        }
    }
    while high - low > 1 {
        let middle = low.midpoint(high);
        if allows(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

/// The threshold itself: scores strictly above it are false positives at a rate of at most `rate`, with the stated confidence over the
/// calibration. None when there are too few scores.
pub fn conformal_threshold(calibration: &[f32], rate: f64, confidence: f64) -> Option<f32> {
    let rank = conformal_rank(calibration.len(), rate, confidence)?;
    let mut scores = calibration.to_vec();
    scores.sort_by(|a, b| b.total_cmp(a));
    scores.get(rank - 1).copied()
}

/// Online conformal p-values: each score is compared with all before it and then joins them. Under exchangeability the p-values are
/// independent and exactly uniform (Vovk et al. 2003), which is what a test martingale needs. P-values against one fixed calibration set
/// are *not* independent of each other: an unlucky set makes all of them small, and a martingale on them alarms beyond its level.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OnlineConformal {
    /// Sorted.
    scores: Vec<f32>,
}

impl OnlineConformal {
    /// Starts from calibration scores that are exchangeable with what will come. Those that are not numbers are dropped.
    pub fn new(calibration: &[f32]) -> Self {
        let mut scores: Vec<f32> =
            calibration.iter().copied().filter(|score| !score.is_nan()).take(SCORES_MAX).collect();
        scores.sort_by(f32::total_cmp);
        Self { scores }
    }

    /// The smoothed p-value `(#{above} + u (#{equal} + 1)) / (n + 1)` of a score, which then joins the others while there is room (after
    /// [`SCORES_MAX`] the set is fixed, and large enough for that to matter little). NaN counts as the strangest, and does not join.
    pub fn p_value(&mut self, score: f32, rng: &mut dyn Rng) -> f64 {
        let n = self.scores.len();
        let score_or_top = if score.is_nan() { f32::INFINITY } else { score };
        let below = self.scores.partition_point(|&known| known < score_or_top);
        let not_above = self.scores.partition_point(|&known| known <= score_or_top);
        let (above, equal) = (n - not_above, not_above - below);
        let p = (above as f64 + uniform(rng) * (equal + 1) as f64) / (n + 1) as f64;
        if !score.is_nan() && n < SCORES_MAX {
            self.scores.insert(not_above, score);
        }
        p
    }

    /// Scores that are compared with, rising.
    pub fn scores(&self) -> &[f32] {
        &self.scores
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{normal, seeded};

    #[test]
    fn ranks_equal_the_published_table() {
        for (rank, events) in [(1, 59), (2, 93), (3, 124), (5, 181), (10, 311)] {
            assert_eq!(conformal_events_needed(rank, 0.05, 0.95), Some(events), "rank {rank}");
            assert_eq!(conformal_rank(events, 0.05, 0.95), Some(rank));
            assert_ne!(conformal_rank(events - 1, 0.05, 0.95), Some(rank));
        }
        assert_eq!(conformal_rank(1_000, 0.05, 0.95), Some(39));
        assert_eq!(conformal_rank(58, 0.05, 0.95), None);
        assert_eq!(conformal_rank(100, 0.0, 0.95), None);
        assert_eq!(conformal_rank(0, 0.05, 0.95), None);
    }

    #[test]
    fn thresholds_keep_their_rate_with_their_confidence() {
        let mut rng = seeded(17);
        let trials = 2_000;
        let mut kept = 0;
        for _ in 0..trials {
            let calibration: Vec<f32> = (0..181).map(|_| uniform(&mut rng) as f32).collect();
            // For uniform scores the false positive rate of a threshold is what lies above it.
            let threshold = conformal_threshold(&calibration, 0.05, 0.95).unwrap();
            kept += u32::from(1.0 - threshold <= 0.05);
        }
        // The confidence at n = 181, j = 5 is 0.9510 or so; three standard errors of 2,000 trials are 0.015.
        let share = f64::from(kept) / f64::from(trials);
        assert!((0.935..0.97).contains(&share), "{share}");
    }

    #[test]
    fn online_p_values_are_uniform_and_ties_do_not_matter() {
        let mut rng = seeded(3);
        let mut online = OnlineConformal::new(&[]);
        let mut ps: Vec<f64> = (0..4_000)
            .map(|_| {
                let score = (normal(&mut rng) * 2.0).round() as f32;
                online.p_value(score, &mut rng)
            })
            .collect();
        ps.sort_by(f64::total_cmp);
        // Kolmogorov-Smirnov; the 99.9% point is 1.95 / sqrt(n).
        let distance = ps.iter().enumerate().map(|(i, p)| (p - i as f64 / 4_000.0).abs()).fold(0.0, f64::max);
        assert!(distance < 1.95 / 4_000_f64.sqrt(), "{distance}");
        assert!(online.p_value(f32::NAN, &mut rng) <= 1.0 / 4_000.0);
        assert!((conformal_p_value(&[1.0, 2.0, 3.0], 2.5) - 0.5).abs() < 1e-9);
    }
}
