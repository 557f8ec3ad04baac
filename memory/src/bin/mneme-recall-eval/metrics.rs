//! The figures of a ranking and their bootstrap intervals.

/// What one question gave.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Outcome {
    /// Share of its gold turns in the first ten.
    pub recall: f64,
    /// 1 when all of them are.
    pub all: f64,
    /// 1 / place of the first gold turn; 0 past the first hundred.
    pub reciprocal: f64,
    /// Share of its gold sessions among the first ten sessions.
    pub session_recall: f64,
    /// 1 when all gold sessions are.
    pub session_all: f64,
    /// 1 / place of the first gold session.
    pub session_reciprocal: f64,
}

impl Outcome {
    /// Judges a ranking of turns, best first.
    pub(crate) fn of(ranking: &[usize], gold: &[usize], sessions: &[u32]) -> Self {
        let (recall, all, reciprocal) = judge(ranking, gold);
        let mut ranked_sessions: Vec<usize> = Vec::new();
        for turn in ranking {
            let session = sessions[*turn] as usize;
            if !ranked_sessions.contains(&session) {
                ranked_sessions.push(session);
            }
        }
        let mut gold_sessions: Vec<usize> = gold.iter().map(|turn| sessions[*turn] as usize).collect();
        gold_sessions.dedup();
        let (session_recall, session_all, session_reciprocal) = judge(&ranked_sessions, &gold_sessions);
        Self { recall, all, reciprocal, session_recall, session_all, session_reciprocal }
    }
}

fn judge(ranking: &[usize], gold: &[usize]) -> (f64, f64, f64) {
    let found = ranking.iter().take(10).filter(|unit| gold.contains(unit)).count();
    let first = ranking.iter().position(|unit| gold.contains(unit));
    let recall = found as f64 / gold.len() as f64;
    (recall, f64::from(u8::from(found == gold.len())), first.map_or(0.0, |place| 1.0 / (place as f64 + 1.0)))
}

/// The mean of a sample.
pub(crate) fn mean(sample: &[f64]) -> f64 {
    sample.iter().sum::<f64>() / sample.len().max(1) as f64
}

/// The 95% interval of the mean by 2,000 resamples (Efron's percentile bootstrap), the same for the same sample.
pub(crate) fn interval(sample: &[f64]) -> (f64, f64) {
    const RESAMPLES: usize = 2_000;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    if sample.is_empty() {
        return (0.0, 0.0);
    }
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            (0..sample.len()).map(|_| sample[(next() % sample.len() as u64) as usize]).sum::<f64>()
                / sample.len() as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    (means[RESAMPLES / 40], means[RESAMPLES - 1 - RESAMPLES / 40])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ranking_is_judged_by_its_first_ten() {
        let sessions = vec![1; 20];
        let ranking: Vec<usize> = (0..20).collect();
        let outcome = Outcome::of(&ranking, &[1, 15], &sessions);
        assert!((outcome.recall - 0.5).abs() < 1e-9 && outcome.all == 0.0);
        assert!((outcome.reciprocal - 0.5).abs() < 1e-9);
        assert!((outcome.session_recall - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_interval_holds_the_mean_of_a_plain_sample() {
        let sample: Vec<f64> = (0..100).map(|x| f64::from(x % 2)).collect();
        let (low, high) = interval(&sample);
        assert!(low > 0.38 && low < 0.5 && high > 0.5 && high < 0.62);
    }
}
